//! A Linux guest in QEMU.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::client::Client;
use crate::guests::board::Board;
use crate::guests::boot::boot;
use crate::guests::control::Control;
use crate::guests::linux::{PATIENCE, best_of_ping, carried, settled, start_settling};
use crate::guests::member::Port;
use crate::guests::vm::{Images, Vm};

/// Octets that are sent over TCP.
const SENT_BYTES: u64 = 4 << 20;

/// The shell that serves; the other one is for questions.
const SERVICE: usize = 1;

/// How long it serves at most.
const SERVICE_LIMIT: Duration = Duration::from_secs(3600);

/// The guest.
pub struct Emulated {
    vm: Vm,
    port: Port,
}

impl Emulated {
    /// Boots a guest on each of two ports; how long it took, in words.
    ///
    /// # Errors
    /// QEMU or its images are missing, or they do not boot.
    pub fn boot(
        board: &Board,
        control: &Control,
        folder: &Path,
        names: [&str; 2],
    ) -> anyhow::Result<([Self; 2], String)> {
        let images = Images::find()?;
        let ports = [Port::ask(control, names[0])?, Port::ask(control, names[1])?];
        let ([first, second], seen) = boot(board, control, &images, folder, names)?;
        let [port, other] = ports;
        Ok(([Self { vm: first, port }, Self { vm: second, port: other }], seen))
    }
}

impl Client for Emulated {
    fn port(&self) -> &Port {
        &self.port
    }

    fn settle(&mut self, board: &Board) -> anyhow::Result<()> {
        start_settling(&mut self.vm)?;
        settled(board, &mut self.vm, &self.port)?;
        self.vm.start(SERVICE, "iperf3 -s >/dev/null", SERVICE_LIMIT)
    }

    fn ping(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<Duration> {
        let said = self.vm.sh(board, &format!("ping -c 3 -i 0.2 -W 5 {to}"), PATIENCE)?;
        best_of_ping(&said).with_context(|| format!("ping {to} said {said:?}"))
    }

    fn hears_nothing_from(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<bool> {
        let script = format!(
            "ping -c 2 -W 1 {to} >/dev/null 2>&1 && echo ping; \
             iperf3 -c {to} -n 1 --connect-timeout 1500 >/dev/null 2>&1 && echo tcp; true"
        );
        Ok(self.vm.sh(board, &script, PATIENCE)?.trim().is_empty())
    }

    fn is_refused(&mut self, board: &Board, to: IpAddr, l4: u16) -> anyhow::Result<bool> {
        let script = format!("iperf3 -c {to} -p {l4} -n 1 --connect-timeout 5000 2>&1; true");
        Ok(self.vm.sh(board, &script, PATIENCE)?.contains("refused"))
    }

    fn asks_built_in(&self) -> bool {
        false
    }

    fn tcp(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<u64> {
        let said = self.vm.sh(board, &format!("iperf3 -J -n {SENT_BYTES} -c {to}"), PATIENCE)?;
        carried(&said)?;
        Ok(SENT_BYTES)
    }

    fn udp(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<()> {
        let said = self.vm.sh(board, &format!("iperf3 -J -u -b 1M -l 500 -t 1 -c {to}"), PATIENCE)?;
        let report: serde_json::Value = serde_json::from_str(&said).context("iperf3 did not print JSON")?;
        let sum = &report["end"]["sum"];
        let (sent, lost) = (sum["packets"].as_u64().unwrap_or(0), sum["lost_packets"].as_u64().unwrap_or(0));
        ensure!(sent > lost, "no datagram arrived at {to}: {}", report["error"]);
        Ok(())
    }

    fn resolve(&mut self, board: &Board, server: IpAddr, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        let kind = if server.is_ipv6() { "aaaa" } else { "a" };
        let said = self.vm.sh(board, &format!("nslookup -type={kind} {name} {server}"), PATIENCE)?;
        Ok(resolved(&said))
    }
}

/// The addresses that `nslookup` prints after the name; those before are the server's.
fn resolved(said: &str) -> Vec<IpAddr> {
    let lines = said.lines().skip_while(|line| !line.starts_with("Name:"));
    let text = lines.filter_map(|line| line.strip_prefix("Address")?.split_once(": ").map(|(_, text)| text));
    text.filter_map(|text| text.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nslookup_says_is_read() {
        let said =
            "Server:\t\t198.18.0.1\nAddress:\t198.18.0.1:53\n\nName:\tb.x.port.cluster.local\nAddress: 198.18.0.3\n";
        assert_eq!(resolved(said), ["198.18.0.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolved("Server: x\n** server can't find b: NXDOMAIN\n"), [] as [IpAddr; 0]);
    }
}
