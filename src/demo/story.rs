//! The story with built-in guests: four VMs come up, talk, and one of them turns hostile.
//!
//! `configs/demo.yaml` is the network of the story. This file holds its order and its peaceful half; what goes wrong
//! on purpose is in `trouble`.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hostweave_guest::Profile;
use serde_json::json;

use super::daemon::Daemon;
use super::ledger::{Ledger, balance, reasons};
use super::traffic::{Carried, Stream};
use super::{sampler, trouble};
use crate::guests::board::Board;
use crate::guests::control::Control;
use crate::guests::member::{ECHO, Member, PATIENCE, Pings, Port, short};

/// The objects of the story.
pub const SCENE: &str = include_str!("../../configs/demo.yaml");

/// Octets that are sent to and fro and compared.
const COMPARED_BYTES: u64 = 2 << 20;

/// Pings of each pair; the first finds out the way.
const PING_COUNT: usize = 5;

/// The VMs.
pub struct Cast {
    /// Talks to `db` most of the time.
    pub web: Member,
    /// Is talked to.
    pub db: Member,
    /// Turns hostile.
    pub cache: Member,
    /// Has the addresses of `db`, in another network.
    pub stranger: Member,
}

impl Cast {
    fn enter(control: &Control) -> anyhow::Result<Self> {
        // Each VMM has its own order of messages. `cache` must stay away once it was thrown out.
        let boot = |name, profile, reconnect| Port::ask(control, name)?.boot(profile, reconnect);
        let cast = Self {
            web: boot("web", Profile::Qemu, true)?,
            db: boot("db", Profile::CloudHypervisor, true)?,
            cache: boot("cache", Profile::Qemu, false)?,
            stranger: boot("stranger", Profile::Dpdk, true)?,
        };
        cast.members().into_iter().try_for_each(Member::settle)?;
        Ok(cast)
    }

    /// All of them.
    pub fn members(&self) -> [&Member; 4] {
        [&self.web, &self.db, &self.cache, &self.stranger]
    }
}

/// The story while it is played.
pub struct Story<'a> {
    /// Where it is shown.
    pub board: &'a Board,
    /// The daemon.
    pub daemon: Daemon,
    /// The VMs.
    pub cast: Cast,
    /// What daemons did that have ended since.
    pub before: Ledger,
}

/// Plays it to its end. With `keep` the network stays until somebody wants to stop.
pub fn play(board: &Arc<Board>, folder: &Path, duration: Duration, keep: bool) {
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
    let mut cast = None;
    board.step("addresses", || {
        cast = Some(Cast::enter(daemon.control())?);
        Ok("4 VMs attached over vhost-user, IPv4 by DHCP, IPv6 from router advertisements".to_owned())
    });
    let Some(cast) = cast else { return };
    let mut story = Story { board, daemon, cast, before: Ledger::default() };
    story.introduce();
    story.talk(duration);
    trouble::play(&mut story);
    story.finish(keep);
}

/// Starts a daemon and gives it objects.
///
/// # Errors
/// It does not start, or refuses them.
pub fn open(folder: &Path, board: &Board, objects: &str) -> anyhow::Result<(Daemon, String)> {
    let asked = Instant::now();
    let daemon = Daemon::start(folder, board)?;
    let ready = asked.elapsed();
    let source = json!({"name": "demo.yaml", "text": objects});
    let applied = daemon.control().call("object.apply", json!({"sources": [source]}))?;
    let status = daemon.control().call("server.status", json!({}))?;
    let seen = format!(
        "ready {} after its start, process {}; {} objects applied: {} networks, {} ports",
        short(ready),
        daemon.pid(),
        applied["changes"].as_array().map_or(0, Vec::len),
        status["networks"],
        status["ports"]["total"],
    );
    Ok((daemon, seen))
}

impl Story<'_> {
    /// The daemon's control socket.
    pub fn control(&self) -> &Control {
        self.daemon.control()
    }

    fn introduce(&self) {
        for member in self.cast.members() {
            let Port { name, v4, v6, .. } = &member.port;
            let network = self.control().port(name).map(|port| port["network"].as_str().unwrap_or("-").to_owned());
            let network = network.unwrap_or_default();
            self.board.fact("ports", format!("{name:<9} {network:<5} {v4:<11} {v6}"));
        }
    }

    fn talk(&self, duration: Duration) {
        let Self { board, cast, .. } = self;
        board.step("ping", || {
            let pairs = [(&cast.web, &cast.db), (&cast.db, &cast.cache), (&cast.cache, &cast.web)];
            let mut best = [Duration::MAX; 2];
            for (i, best) in best.iter_mut().enumerate() {
                let start =
                    |(from, to): (&Member, &Member)| from.start_ping(to.port.addresses()[i], PING_COUNT, PATIENCE);
                let pings: Vec<Pings> = pairs.into_iter().map(start).collect::<anyhow::Result<_>>()?;
                for pings in pings {
                    *best = pings.end()?.into_iter().min().unwrap_or(*best).min(*best);
                }
            }
            let gateways = self.control().port("web")?["gateways"].take();
            for gateway in gateways.as_array().into_iter().flatten() {
                let gateway: IpAddr = gateway.as_str().unwrap_or_default().parse().context("a gateway's address")?;
                cast.web.ping(gateway, 1, PATIENCE)?;
            }
            let seen = format!("round trip IPv4 {}, IPv6 {}", short(best[0]), short(best[1]));
            board.fact("ping", format!("best {seen}"));
            Ok(format!("3 pairs and the gateway answer; best {seen}"))
        });
        board.step("TCP data", || {
            for address in cast.db.port.addresses() {
                let done =
                    cast.web.guest()?.call(move |guest| guest.tcp_transfer(address, ECHO, COMPARED_BYTES, PATIENCE));
                done?.with_context(|| format!("web to {address}"))?;
            }
            Ok(format!("{} MiB to db and back over IPv4 and IPv6, every octet compared", COMPARED_BYTES >> 20))
        });
        for (name, address) in ["TCP IPv4", "TCP IPv6"].into_iter().zip(cast.db.port.addresses()) {
            board.step(name, || self.fill(name, address, duration / 2));
        }
    }

    /// Keeps a connection from `web` to `db` full for some time.
    fn fill(&self, name: &'static str, to: IpAddr, time: Duration) -> anyhow::Result<String> {
        let frames = || -> anyhow::Result<[u64; 2]> {
            let counters = self.control().counters("web")?;
            Ok([counters.get("/receivedPackets"), counters.get("/receivedBytes")])
        };
        let before = frames()?;
        let stream = Stream::start(&self.cast.web, to)?;
        let started = Instant::now();
        stream.moves()?;
        while started.elapsed() < time && !self.board.stopped() {
            let so_far = Carried { bytes: stream.bytes(), elapsed: started.elapsed() };
            self.board.progress(format!("web to db, {:.1} Gbit/s", so_far.gbit_per_s()));
            self.board.rest(Duration::from_millis(100));
        }
        let carried = stream.end()?;
        let after = frames()?;
        let mean = (after[1] - before[1]) / (after[0] - before[0]).max(1);
        let how = if mean > 1514 { "passed on whole" } else { "of one segment each" };
        let seen = format!("{:.1} Gbit/s, frames of {mean} octets, {how}", carried.gbit_per_s());
        self.board.fact("TCP", format!("{} {seen}", &name[4..]));
        Ok(format!("web to db {seen}"))
    }

    fn finish(mut self, keep: bool) {
        let board = self.board;
        let passed = board.step("ledger", || {
            let (mut ledger, seen) = balance(self.control(), board)?;
            ledger.add(&self.before);
            board.fact("drops", reasons(&ledger.dropped));
            board
                .fact("ledger", format!("closed before the daemon's end and after: {} frames in all", ledger.received));
            Ok(seen)
        });
        board.scene().over = !board.stopped();
        if keep && passed {
            self.keep();
        }
        // The VMs go first, as they would on a host.
        drop(self.cast);
        if passed {
            board.last_step("stop", || Ok(format!("the daemon ended {} after SIGTERM", short(self.daemon.stop()?))));
        }
    }

    /// Keeps the network up, with a little traffic, until somebody wants to stop.
    fn keep(&self) {
        hint(self.board, self.control(), "cache");
        while !self.board.stopped() {
            for to in self.cast.db.port.addresses() {
                // What happens from here on is up to the user: a port that is down does not answer.
                let _ = self.cast.web.ping(to, 1, Duration::from_millis(500));
            }
            self.board.rest(Duration::from_secs(1));
        }
    }
}

/// Says what a person can try on the running daemon.
pub fn hint(board: &Board, control: &Control, port: &str) {
    let program = std::env::args().next().unwrap_or_else(|| "hostweave".to_owned());
    let describe = format!("port describe {port}");
    let mut hints = vec![format!("export HOSTWEAVE_CONTROL={}", control.path().display())];
    let commands = ["status", "port list", &describe, "observe --last 20", "observe --type port --last 20"];
    hints.extend(commands.iter().map(|command| format!("{program} {command}")));
    board.print("The daemon stays until Ctrl-C. In another terminal:");
    hints.iter().for_each(|line| board.print(&format!("  {line}")));
    board.scene().hints = hints;
}
