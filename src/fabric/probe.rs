//! `ping`: sends a probe for a port through the worker that owns it, and waits for the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::connection::Ending;
use hostweave_switch::flow::FlowKey;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Network, Port};
use hostweave_switch::wire::tcp::flags as tcp_flags;

use super::mailbox::Message;
use super::plane::owner;
use super::what_if::Picture;
use super::{Fabric, Inner};
use crate::observe::synthetic::{Protocol, TcpFields, Tuple, frame, tcp_frame};
use crate::observe::trace::{Narrator, Request, Trace, TraceError, is_free, key};
pub use crate::worker::probe::{Answer, AnswerKind};
use crate::worker::probe::{Probe, ProbeEvent, Sent, Shot};
use crate::worker::watch::PROBES_MAX;

/// How long a worker may take to send: it is busy with one burst, or asleep.
const SEND_LIMIT: Duration = Duration::from_secs(2);

/// Events of one probe: it is sent, answered, perhaps several times, and reset.
const EVENTS_MAX: usize = 8;

/// Source ports and identifiers of probes: the last of those that hosts give out themselves (RFC 6335 §6). There are more than
/// probes at a time.
const FIRST_PORT: u16 = 61_000;
const PORTS: u16 = 4_096;
const _: () = assert!(PORTS as usize > PROBES_MAX);

/// What became of a probe.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// The stages that it met.
    pub path: Trace,
    /// Why its destination did not take it.
    pub refused: Option<DropReason>,
    /// The answer and how long it took; `None` when none came, or none was to be expected.
    pub answer: Option<(Answer, Duration)>,
}

/// Why no probe was sent.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no such port or packet.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Too many at a time.
    #[error("{PROBES_MAX} probes are under way already")]
    TooMany,
    /// The worker did not look into its mailbox.
    #[error("the worker of that port did not send the probe in time")]
    Stuck,
}

/// Forgets a probe when it is over.
struct Awaited<'a> {
    inner: &'a Inner,
    probe: Arc<Probe>,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        // First the connection: an answer that comes from now on belongs to none, and ends where it enters.
        let (key, vni) = (&self.probe.key, self.probe.vni);
        let connections = &self.inner.connections;
        if let Some(found) = connections.find(key, connections.keys().hash(key, vni), vni) {
            connections.remove(found.index, found.generation, Ending::Flushed);
        }
        self.inner.watch.change(|watching| {
            watching.probes.retain(|probe| !Arc::ptr_eq(probe, &self.probe));
            true
        });
    }
}

impl Fabric {
    /// Sends one probe, ICMP echo or a TCP SYN, and waits for its answer. Its source port or identifier is one that no
    /// connection has, whatever `request` says. Blocks for `timeout` at most, and for a moment longer.
    ///
    /// # Errors
    /// There is no such port or packet, or the worker is stuck.
    pub fn ping(&self, request: &Request, timeout: Duration) -> Result<ProbeReport, ProbeError> {
        let picture = self.picture();
        let tables = &picture.plane.tables;
        let gone = || TraceError::NoPort(request.from);
        let port = tables.port(request.from).ok_or_else(gone)?;
        let network = tables.network(port.network).ok_or_else(gone)?;
        let tuple = self.unused(&picture, network, &request.tuple);
        let octets = frame(port.mac, MacAddr::ROUTER, &tuple).ok_or(TraceError::NoPacket(tuple))?;
        let key: FlowKey = key(&tuple).ok_or(TraceError::NoPacket(tuple))?;
        let (events, receiver) = sync_channel(EVENTS_MAX);
        let probe = Arc::new(Probe { port: port.id, key, vni: network.vni, events });
        let added = self.inner.watch.change(|watching| {
            let room = watching.probes.len() < PROBES_MAX;
            if room {
                watching.probes.push(Arc::clone(&probe));
            }
            room
        });
        if !added {
            return Err(ProbeError::TooMany);
        }
        let awaited = Awaited { inner: &self.inner, probe };
        self.shoot(&awaited.probe, octets);
        let (sent, early) = wait_sent(&receiver)?;
        let answer = early.or_else(|| wait_answer(&receiver, &sent, timeout));
        if let Some(Answer { kind: AnswerKind::Tcp { flags, acknowledgement }, .. }) = answer
            && flags & tcp_flags::SYN != 0
        {
            self.reset(&awaited.probe, port, &tuple, acknowledgement, &receiver);
        }
        let rtt = |answer: Answer| (answer, answer.at.saturating_duration_since(sent.at));
        Ok(ProbeReport {
            path: self.narrate(&picture, network, port, &tuple, &sent),
            refused: sent.refused,
            answer: answer.map(rtt),
        })
    }

    /// The tuple with a source port or identifier that no connection and no other probe has.
    fn unused(&self, picture: &Picture, network: &Network, tuple: &Tuple) -> Tuple {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let scene = self.scene(picture);
        let next = || Tuple { src_port: FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS, ..*tuple };
        let mut tried = (0..PORTS).map(|_| next());
        tried.find(|tuple| is_free(&scene, network, tuple)).unwrap_or(*tuple)
    }

    fn shoot(&self, probe: &Arc<Probe>, frame: Vec<u8>) {
        let worker = owner(probe.port, 0, self.inner.workers.len());
        let shot = Shot { probe: Arc::clone(probe), frame };
        self.inner.workers[worker].mailbox.send(Message::Probe(Arc::new(shot)));
    }

    /// Ends the connection that a SYN began: the other side must not wait for the rest of a handshake.
    fn reset(
        &self,
        probe: &Arc<Probe>,
        port: &Port,
        tuple: &Tuple,
        acknowledged: u32,
        receiver: &Receiver<ProbeEvent>,
    ) {
        let fields = TcpFields { flags: tcp_flags::RST, sequence: acknowledged, acknowledgement: 0 };
        if let Some(frame) = tcp_frame(port.mac, tuple, &fields) {
            self.shoot(probe, frame);
            // Until it was sent, the connection must stay. If it is not, the other side times out.
            drop(wait_sent(receiver));
        }
    }

    fn narrate(&self, picture: &Picture, network: &Network, port: &Port, tuple: &Tuple, sent: &Sent) -> Trace {
        let scene = self.scene(picture);
        let narrator = Narrator { scene: &scene, tables: &picture.plane.tables, network, port, tuple };
        narrator.trace(&sent.stages, sent.verdict)
    }
}

/// The answer may be faster than the news that it was sent.
fn wait_sent(receiver: &Receiver<ProbeEvent>) -> Result<(Sent, Option<Answer>), ProbeError> {
    let mut early = None;
    let end = Instant::now() + SEND_LIMIT;
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(ProbeEvent::Sent(sent)) => return Ok((sent, early)),
            Ok(ProbeEvent::Answer(answer)) => early = early.or(Some(answer)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(ProbeError::Stuck),
        }
    }
}

/// `None` where there will be no answer, or none came in time.
fn wait_answer(receiver: &Receiver<ProbeEvent>, sent: &Sent, timeout: Duration) -> Option<Answer> {
    match (sent.verdict, sent.refused) {
        (Verdict::Reply, _) => {
            // The worker has the answer in its hand.
            return Some(Answer { at: sent.done, kind: AnswerKind::Reply, ttl: LOCAL_TTL });
        }
        (Verdict::Forward, None) => {}
        _ => return None,
    }
    let end = Instant::now() + timeout;
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(ProbeEvent::Answer(answer)) => return Some(answer),
            Ok(ProbeEvent::Sent(_)) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Time to live of what the host answers itself.
const LOCAL_TTL: u8 = 64;

/// Whether an answer says that somebody is there.
pub fn is_positive(kind: AnswerKind) -> bool {
    match kind {
        AnswerKind::Reply => true,
        // Refused, but by the guest: the way there and back is open.
        AnswerKind::Tcp { flags, .. } => flags & (tcp_flags::SYN | tcp_flags::RST) != 0,
        AnswerKind::Error { .. } => false,
    }
}

/// An answer in words.
pub fn answer_text(protocol: Protocol, kind: AnswerKind) -> String {
    match kind {
        AnswerKind::Reply if protocol == Protocol::Icmp => "echo reply".to_owned(),
        AnswerKind::Reply => "reply".to_owned(),
        AnswerKind::Tcp { flags, .. } if flags & tcp_flags::SYN != 0 => "SYN-ACK: something listens".to_owned(),
        AnswerKind::Tcp { flags, .. } if flags & tcp_flags::RST != 0 => "RST: nothing listens there".to_owned(),
        AnswerKind::Tcp { .. } => "a TCP segment".to_owned(),
        AnswerKind::Error { kind, code } => format!("ICMP error: type {kind}, code {code}"),
    }
}
