//! The story with Linux guests in QEMU: `web` and `db` of `configs/demo.yaml`, attached as `port attach-args` says.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::daemon::Daemon;
use super::ledger::{Ledger, balance, reasons};
use super::sampler;
use super::story::{SCENE, hint, open};
use crate::guests::board::Board;
use crate::guests::boot::boot;
use crate::guests::control::Control;
use crate::guests::linux::{best_of_ping, carried, settled, start_settling};
use crate::guests::member::{Port, short};
use crate::guests::vm::{Images, Vm};

/// How long anything in a guest may take that has to work; an emulated one on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the connection lives during which the daemon is killed.
const KILL_STREAM_S: u64 = 8;

/// When it is killed, counted from the start of `iperf3`.
const KILL_AFTER: Duration = Duration::from_millis(2_500);

/// The story while it is played.
struct Story<'a> {
    board: &'a Board,
    daemon: Daemon,
    web: Vm,
    db: Vm,
    ports: [Port; 2],
    before: Ledger,
}

/// Plays it to its end. With `keep` the network stays until somebody wants to stop.
pub fn play(board: &Arc<Board>, folder: &Path, duration: Duration, keep: bool) {
    let mut images = None;
    board.step("pieces", || {
        images = Some(Images::find()?);
        Ok("QEMU, a kernel and an initramfs are there".to_owned())
    });
    let Some(images) = images else { return };
    let mut daemon = None;
    board.step("daemon", || {
        let (started, seen) = open(folder, board, SCENE)?;
        daemon = Some(started);
        Ok(seen)
    });
    let Some(daemon) = daemon else { return };
    if board.live && sampler::start(board, daemon.control().clone()).is_err() {
        return;
    }
    let mut guests = None;
    board.step("boot", || {
        let ports = [Port::ask(daemon.control(), "web")?, Port::ask(daemon.control(), "db")?];
        let (vms, seen) = boot(board, daemon.control(), &images, folder, ["web", "db"])?;
        guests = Some((vms, ports));
        Ok(seen)
    });
    let Some(([web, db], ports)) = guests else { return };
    let mut story = Story { board, daemon, web, db, ports, before: Ledger::default() };
    story.talk(duration);
    board.pause();
    board.step("spoofing", || story.spoofing());
    board.pause();
    board.step("first sums", || {
        let (ledger, seen) = balance(story.daemon.control(), board)?;
        story.before = ledger;
        Ok(seen)
    });
    board.step("kill -9", || story.killed());
    board.pause();
    story.finish(keep);
}

impl Story<'_> {
    fn talk(&mut self, duration: Duration) {
        let board = self.board;
        board.step("addresses", || self.addresses());
        board.step("ping", || {
            let mut best = [Duration::ZERO; 2];
            for (best, to) in best.iter_mut().zip(self.ports[1].addresses()) {
                let said = self.web.sh(board, &format!("ping -c 5 -i 0.2 -W 5 {to}"), PATIENCE)?;
                *best = best_of_ping(&said).with_context(|| format!("ping said {said:?}"))?;
            }
            let seen = format!("round trip IPv4 {}, IPv6 {}", short(best[0]), short(best[1]));
            board.fact("ping", format!("web to db, best {seen}"));
            Ok(format!("web to db, best {seen}"))
        });
        let serve = self.db.start(1, "iperf3 -s >/dev/null", Duration::from_secs(3600));
        let each_s = (duration / 2).as_secs().max(2);
        for (name, to) in ["TCP IPv4", "TCP IPv6"].into_iter().zip(self.ports[1].addresses()) {
            board.step(name, || {
                if let Err(error) = &serve {
                    bail!("{error:#}");
                }
                board.progress(format!("iperf3 from web to {to}, {each_s} s"));
                let client = format!("sleep 0.3; iperf3 -J -t {each_s} -c {to}");
                let said = self.web.sh(board, &client, PATIENCE + Duration::from_secs(each_s))?;
                let (bits, retransmits) = carried(&said)?;
                let seen = format!("{:.2} Gbit/s by iperf3, {retransmits} segments sent again", bits / 1e9);
                board.fact("TCP", format!("{} {seen}", &name[4..]));
                Ok(format!("web to db {seen}"))
            });
        }
    }

    fn addresses(&mut self) -> anyhow::Result<String> {
        start_settling(&mut self.web)?;
        start_settling(&mut self.db)?;
        for (vm, port) in [&mut self.web, &mut self.db].into_iter().zip(&self.ports) {
            let Port { name, v4, v6, .. } = port;
            settled(self.board, vm, port)?;
            self.board.fact("ports", format!("{name:<5} {v4:<11} {v6}"));
        }
        Ok("web and db: IPv4 by udhcpc, IPv6 from router advertisements".to_owned())
    }

    /// `web` takes the address of `db`.
    fn spoofing(&mut self) -> anyhow::Result<String> {
        let control = self.daemon.control();
        let lies = |control: &Control| -> anyhow::Result<u64> {
            let counters = control.counters("web")?;
            Ok(counters.dropped("spoofed_ip") + counters.dropped("spoofed_arp"))
        };
        let before = lies(control)?;
        let gateway = control.port("web")?["gateways"][0].as_str().context("the gateway of web")?.to_owned();
        let victim = self.ports[1].v4;
        let script = format!(
            "ip addr add {victim}/32 dev eth0; ping -c 3 -i 0.2 -W 1 -I {victim} {gateway} >/dev/null; echo $?; \
             ip addr del {victim}/32 dev eth0"
        );
        let said = self.web.sh(self.board, &script, PATIENCE)?;
        ensure!(said.trim() != "0", "the gateway answers web, which pretends to be db");
        let count = lies(control)? - before;
        ensure!(count > 0, "no frame of web was dropped as spoofed");
        Ok(format!("web takes db's address: {count} frames dropped, no answer"))
    }

    /// The daemon is killed under load and started again.
    fn killed(&mut self) -> anyhow::Result<String> {
        let board = self.board;
        let boots = |story: &mut Self| -> anyhow::Result<[String; 2]> {
            let script = "cat /proc/sys/kernel/random/boot_id";
            Ok([story.web.sh(board, script, PATIENCE)?, story.db.sh(board, script, PATIENCE)?])
        };
        let before = boots(self)?;
        let limit = PATIENCE + Duration::from_secs(KILL_STREAM_S);
        let to: IpAddr = self.ports[1].v4.into();
        self.web.start(1, &format!("iperf3 -J -t {KILL_STREAM_S} -c {to}"), limit)?;
        board.rest(KILL_AFTER);
        self.daemon.kill()?;
        board.progress("the daemon is gone");
        let asked = Instant::now();
        self.daemon.start_again(board)?;
        let ready = asked.elapsed();
        for port in &self.ports {
            board.wait("every port runs again", PATIENCE, || {
                Ok((self.daemon.control().state(&port.name)? == "running").then_some(()))
            })?;
        }
        let attached = asked.elapsed();
        board.progress("QEMU has attached again; the TCP connection goes on");
        let (bits, retransmits) = carried(&self.web.finish(board, 1)?)?;
        ensure!(boots(self)? == before, "a guest was started again");
        for to in self.ports[1].addresses() {
            self.web.sh(board, &format!("ping -c 1 -W 5 {to}"), PATIENCE)?;
        }
        let mut line = format!("ready again in {}, QEMU attached again after {}", short(ready), short(attached));
        let _ = write!(line, "; the same TCP connection carried {:.2} Gbit/s", bits / 1e9);
        let _ = write!(line, " ({retransmits} segments sent again)");
        board.fact("kill -9", line.clone());
        Ok(format!("{line}, no guest was started again"))
    }

    fn finish(mut self, keep: bool) {
        let board = self.board;
        let passed = board.step("ledger", || {
            let (mut ledger, seen) = balance(self.daemon.control(), board)?;
            ledger.add(&self.before);
            board.fact("drops", reasons(&ledger.dropped));
            board
                .fact("ledger", format!("closed before the daemon's end and after: {} frames in all", ledger.received));
            Ok(seen)
        });
        board.scene().over = !board.stopped();
        if keep && passed {
            hint(board, self.daemon.control(), "web");
            while !board.stopped() {
                board.rest(Duration::from_secs(1));
            }
        }
        drop((self.web, self.db));
        if passed {
            board.last_step("stop", || Ok(format!("the daemon ended {} after SIGTERM", short(self.daemon.stop()?))));
        }
    }
}
