//! What Linux guests are told to do, and how what they print is read.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::board::Board;
use super::member::Port;
use super::vm::Vm;

/// Where `iperf3` listens unless told otherwise.
pub const IPERF: u16 = 5201;

/// How long anything in a guest may take that has to work; an emulated one on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Gets addresses as any Linux does, and prints them.
const ADDRESSES: &str = r"
ip link set eth0 up
udhcpc -i eth0 -n -q -f -t 20 -T 1 -s /usr/share/udhcpc/default.script >/dev/null 2>&1 || { echo 'no lease'; exit 1; }
i=0
until ip -6 -o addr show dev eth0 scope global | grep -v tentative | grep -q inet6; do
    i=$((i+1)); [ $i -lt 200 ] || { echo 'no address from a router advertisement'; exit 1; }; sleep 0.1
done
ip -4 -o addr show dev eth0 scope global | awk '{print $4}'
ip -6 -o addr show dev eth0 scope global | awk '{print $4}'
";

/// Has a guest get its addresses, IPv4 by DHCP, IPv6 from router advertisements; [`settled`] waits for it.
///
/// # Errors
/// The guest is gone.
pub fn start_settling(vm: &mut Vm) -> anyhow::Result<()> {
    vm.start(0, ADDRESSES, PATIENCE)
}

/// Waits until a guest has its addresses.
///
/// # Errors
/// It gets none, or others than the daemon says.
pub fn settled(board: &Board, vm: &mut Vm, port: &Port) -> anyhow::Result<()> {
    let said = vm.finish(board, 0)?;
    let Port { name, v4, v6, .. } = port;
    for address in [format!("{v4}/24"), format!("{v6}/64")] {
        ensure!(said.lines().any(|line| line.trim() == address), "{name} got {said:?}, and not {address}");
    }
    Ok(())
}

/// The best round trip out of `round-trip min/avg/max = 0.5/0.6/0.7 ms`.
pub fn best_of_ping(said: &str) -> Option<Duration> {
    let numbers = said.lines().find(|line| line.contains("min/avg/max"))?.split('=').nth(1)?;
    let ms: f64 = numbers.trim().split('/').next()?.parse().ok()?;
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

/// Bit/s that arrived, and segments that were sent again, out of what `iperf3 -J` says.
///
/// # Errors
/// It failed, or carried nothing.
pub fn carried(said: &str) -> anyhow::Result<(f64, u64)> {
    let report: Value = serde_json::from_str(said).context("iperf3 did not print JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 says no rate")?;
    ensure!(bits > 0.0, "iperf3 carried nothing");
    Ok((bits, report["end"]["sum_sent"]["retransmits"].as_u64().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ping_says_is_read() {
        let said = "5 packets transmitted\nround-trip min/avg/max = 0.512/0.600/0.700 ms\n";
        assert_eq!(best_of_ping(said), Some(Duration::from_micros(512)));
        assert_eq!(best_of_ping("5 packets transmitted, 0 received"), None);
    }

    #[test]
    fn what_iperf3_says_is_read() {
        let said = r#"{"end": {"sum_sent": {"retransmits": 3}, "sum_received": {"bits_per_second": 1.5e9}}}"#;
        assert_eq!(carried(said).unwrap(), (1.5e9, 3));
        let refused = carried(r#"{"error": "unable to connect"}"#).unwrap_err();
        assert!(refused.to_string().contains("unable"), "{refused}");
        assert!(carried("{}").is_err() && carried("").is_err());
    }
}
