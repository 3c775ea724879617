//! Verdicts with one end outside the cluster. What a port's policy sees of the outside is an address that no workload has, that no
//! selector matches and that is not policed itself. The gateway of a network is just that to policy once the built-in rules for
//! it are off: here it takes the outside address, and the host's own sockets are the other end. An uplink would need a device, and
//! thus rights that this runner does not ask for; policy by way of one is the matter of `src/connect/tests/nat` and of the suites
//! under `tests/uplink` and `tests/netns`.
//!
//! The host's stack knows TCP and UDP. Of SCTP the first packet to the outside is asked, which nobody there answers; from outside
//! nobody begins it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::bail;
use hostweave_guest::frames::{Body, Frame, L4, Path, Segment};
use tokio::time::timeout;

use crate::cluster::{Cluster, Pod};
use crate::data::{Protocol, Verdict};
use crate::lab::{INTERNAL, NETWORK, PATIENCE};
use crate::packets::{Answer, Packets, SCTP, sctp_init};
use crate::trace::Tracer;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// How often the host's side is looked at.
const GLANCE: Duration = Duration::from_micros(200);

impl Packets {
    /// Whether a new flow passes between a pod and the outside. `None` for what cannot be asked: SCTP from outside, and from outside
    /// to outside.
    ///
    /// # Errors
    /// When a packet is lost that policy did not drop.
    pub fn allows_outside(&mut self, cluster: &Cluster, verdict: &Verdict) -> anyhow::Result<Option<Answer>> {
        let [from, to] = cluster.ends(verdict)?;
        let inbound = from.external;
        if from.external == to.external || inbound && verdict.protocol == Protocol::Sctp {
            return Ok(None);
        }
        let (outside, pod) = if inbound { (from, to) } else { (to, from) };
        self.lab.take_address(outside.address)?;
        let src_port = self.src_port(from, to, verdict);
        let name = if inbound { &verdict.to } else { &verdict.from };
        let path = self.lab.path(name, outside.address)?;
        let traced = {
            let there = Path { src: from.address, dst: to.address, ..path };
            let sender = if inbound { INTERNAL } else { name };
            Tracer::new(&self.lab.fabric).probe_verdict(sender, verdict, &there, [src_port, verdict.port])?
        };
        let passed = match (inbound, verdict.protocol) {
            (false, Protocol::Tcp) => self.tcp_out(verdict, &path, src_port)?,
            (false, Protocol::Sctp) => {
                self.sent(&verdict.from, &path.ip(SCTP, &sctp_init([src_port, verdict.port])))?
            }
            (false, _) => self.udp_out(verdict, &path, src_port)?,
            (true, Protocol::Tcp) => self.tcp_in(verdict, outside, pod, &path)?,
            (true, _) => self.udp_in(verdict, outside, pod, &path, src_port)?,
        };
        Ok(Some(Answer { passed, traced, behind: None }))
    }

    fn tcp_out(&mut self, verdict: &Verdict, path: &Path, src_port: u16) -> anyhow::Result<bool> {
        let _listener = self.lab.fabric.sockets().listen(NETWORK, verdict.port)?;
        let syn = Segment { src_port, dst_port: verdict.port, seq: 1_000, ack: 0, flags: SYN, window: u16::MAX };
        if !self.sent(&verdict.from, &path.tcp(&syn, &[]))? {
            return Ok(false);
        }
        let answer = self.wait_for(&verdict.from, |frame| match tcp_of(frame) {
            Some(got) if got.dst_port == src_port && got.flags == SYN | ACK => Some(*got),
            _ => None,
        })?;
        let seq = answer.ack;
        let ack = answer.seq.wrapping_add(1);
        for flags in [ACK, ACK | RST] {
            self.lab.push(&verdict.from, &path.tcp(&Segment { seq, ack, flags, ..syn }, &[]))?;
        }
        self.lab.settle()?;
        Ok(true)
    }

    fn udp_out(&mut self, verdict: &Verdict, path: &Path, src_port: u16) -> anyhow::Result<bool> {
        let socket = self.lab.fabric.sockets().udp_bind(NETWORK, verdict.port)?;
        if !self.sent(&verdict.from, &path.udp(src_port, verdict.port, b"there"))? {
            return Ok(false);
        }
        self.lab.runtime.block_on(async {
            let got = timeout(PATIENCE, socket.recv_from(&mut [0; 64])).await??;
            socket.send_to(b"back", Some(path.dst), SocketAddr::new(path.src, got.peer.port)).await?;
            anyhow::Ok(())
        })?;
        self.wait_for(&verdict.from, |frame| udp_of(frame).filter(|(_, to)| *to == src_port))?;
        Ok(true)
    }

    fn tcp_in(&mut self, verdict: &Verdict, outside: &Pod, pod: &Pod, path: &Path) -> anyhow::Result<bool> {
        let sockets = self.lab.fabric.sockets();
        let (own, peer) = (outside.address, SocketAddr::new(pod.address, verdict.port));
        let before = self.lab.denied(INTERNAL)?;
        let connecting = self.lab.runtime.spawn(async move { sockets.connect(NETWORK, Some(own), peer).await });
        let syn = |frame: &Frame| tcp_of(frame).filter(|got| got.dst_port == peer.port() && got.flags == SYN).copied();
        let Some(syn) = self.wait_unless_denied(&verdict.to, before, syn)? else {
            connecting.abort();
            return Ok(false);
        };
        let (src_port, dst_port, ack) = (syn.dst_port, syn.src_port, syn.seq.wrapping_add(1));
        let answer = Segment { src_port, dst_port, seq: 5_000, ack, flags: SYN | ACK, window: u16::MAX };
        self.lab.push(&verdict.to, &path.tcp(&answer, &[]))?;
        self.lab.settle()?;
        self.lab.runtime.block_on(async { timeout(PATIENCE, connecting).await })???;
        Ok(true)
    }

    fn udp_in(
        &mut self,
        verdict: &Verdict,
        outside: &Pod,
        pod: &Pod,
        path: &Path,
        src_port: u16,
    ) -> anyhow::Result<bool> {
        let socket = self.lab.fabric.sockets().udp_bind(NETWORK, src_port)?;
        let before = self.lab.denied(INTERNAL)?;
        let to = SocketAddr::new(pod.address, verdict.port);
        self.lab.runtime.block_on(socket.send_to(b"there", Some(outside.address), to))?;
        let mine = |frame: &Frame| udp_of(frame).filter(|ports| *ports == (src_port, verdict.port));
        if self.wait_unless_denied(&verdict.to, before, mine)?.is_none() {
            return Ok(false);
        }
        self.lab.push(&verdict.to, &path.udp(verdict.port, src_port, b"back"))?;
        self.lab.settle()?;
        self.lab.runtime.block_on(async { timeout(PATIENCE, socket.recv_from(&mut [0; 64])).await })??;
        Ok(true)
    }

    /// Sends the first packet of a flow; whether it went on. It ended because of policy if not.
    fn sent(&mut self, pod: &str, frame: &[u8]) -> anyhow::Result<bool> {
        let (denied, dropped) = (self.lab.denied(pod)?, self.lab.dropped_of(pod)?);
        self.lab.push(pod, frame)?;
        self.lab.settle()?;
        match (self.lab.denied(pod)? - denied, self.lab.dropped_of(pod)? - dropped) {
            (0, 0) => Ok(true),
            (1, 1) => Ok(false),
            _ => bail!("the first packet of {pod} was dropped, and not because of policy"),
        }
    }

    /// The first frame for a pod that is looked for.
    fn wait_for<T>(&mut self, pod: &str, wanted: impl Fn(&Frame) -> Option<T>) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            while let Some(frame) = self.lab.take(pod)? {
                if let Some(found) = wanted(&frame) {
                    return Ok(found);
                }
            }
            if Instant::now() > end {
                bail!("{pod} does not get its answer from outside");
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// As [`Self::wait_for`]; `None` when policy denied something that came from outside, of which `before` had been before.
    fn wait_unless_denied<T>(
        &mut self,
        pod: &str,
        before: u64,
        wanted: impl Fn(&Frame) -> Option<T>,
    ) -> anyhow::Result<Option<T>> {
        let end = Instant::now() + PATIENCE;
        loop {
            while let Some(frame) = self.lab.take(pod)? {
                if let Some(found) = wanted(&frame) {
                    return Ok(Some(found));
                }
            }
            if self.lab.denied(INTERNAL)? > before {
                return Ok(None);
            }
            if Instant::now() > end {
                bail!("what {pod} is sent from outside neither arrives nor is denied");
            }
            std::thread::sleep(GLANCE);
        }
    }
}

fn tcp_of(frame: &Frame) -> Option<&Segment> {
    frame.tcp().map(|(segment, _)| segment)
}

/// L4 ports of a UDP datagram.
fn udp_of(frame: &Frame) -> Option<(u16, u16)> {
    match &frame.body {
        Body::Ip { l4: L4::Udp { src_port, dst_port, .. }, .. } => Some((*src_port, *dst_port)),
        _ => None,
    }
}
