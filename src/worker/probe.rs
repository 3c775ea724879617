//! A probe of `ping`: a packet that a port did not send, through the stages and into its destination as if it had, and the
//! recognition of its answer, which ends at the port and never reaches its guest.
//!
//! The probe is a connection of its own: its identifier or source port is one that no connection has. Who makes it
//! (`crate::fabric`) removes that connection afterwards, so that an answer that comes too late belongs to nothing.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use hostweave_switch::flow::{FlowKey, NO_QUEUE, is_icmp_error};
use hostweave_switch::packet::{Meta, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::PortId;
use hostweave_switch::wire::proto;
use hostweave_switch::wire::tcp::Tcp;

use super::Path;
use super::burst::keep;
use super::delivery::{Delivery, Outcome};
use crate::connect::{self, Flows};
use crate::datapath::{self, Context, Lookup};
use crate::fabric::plane::Plane;
use crate::observe::flow_event::FlowEvent;
use crate::observe::recorder::{Detail, Recorder};

/// A probe whose answer is awaited.
pub struct Probe {
    /// The port that it is sent for.
    pub port: PortId,
    /// Tuple of the probe, without scope.
    pub key: FlowKey,
    /// Its network.
    pub vni: u32,
    /// Who waits.
    pub events: SyncSender<ProbeEvent>,
}

/// What becomes of a probe.
#[derive(Debug)]
pub enum ProbeEvent {
    /// It went through the stages.
    Sent(Sent),
    /// Its answer is there.
    Answer(Answer),
}

/// See [`ProbeEvent::Sent`].
#[derive(Debug)]
pub struct Sent {
    /// When it began.
    pub at: Instant,
    /// When it was out of the worker's hands.
    pub done: Instant,
    /// What the stages told.
    pub stages: Vec<(&'static str, Detail)>,
    /// How it ended.
    pub verdict: Verdict,
    /// Why its destination did not take it.
    pub refused: Option<DropReason>,
}

/// See [`ProbeEvent::Answer`].
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When it was on its way to the port.
    pub at: Instant,
    /// What it says.
    pub kind: AnswerKind,
    /// Time to live with which it reached the switch, less one for the switch itself.
    pub ttl: u8,
}

/// What an answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerKind {
    /// An echo reply, or a datagram.
    Reply,
    /// A TCP segment.
    Tcp {
        /// Its flags.
        flags: u8,
        /// Its acknowledgement number.
        acknowledgement: u32,
    },
    /// An ICMP error about the probe.
    Error {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
}

/// A frame to be sent for a port.
pub struct Shot {
    /// Whose.
    pub probe: Arc<Probe>,
    /// The frame.
    pub frame: Vec<u8>,
}

impl std::fmt::Debug for Shot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shot").field("port", &self.probe.port).finish_non_exhaustive()
    }
}

impl Probe {
    fn tell(&self, event: ProbeEvent) {
        // Who has given up waiting need not know.
        let _ = self.events.try_send(event);
    }

    /// Whether a packet for `to` answers it; who waits is told then.
    pub(super) fn takes(&self, vni: u32, packet: &mut Packet, arena: &mut [Segment], to: PortId) -> bool {
        if (to, vni) != (self.port, self.vni) {
            return false;
        }
        let Some(kind) = self.answer(packet, arena) else { return false };
        let ttl = match packet.meta.l3 {
            hostweave_switch::packet::L3::V4 => packet.head().get(usize::from(packet.meta.layers.l3) + 8),
            _ => packet.head().get(usize::from(packet.meta.layers.l3) + 7),
        };
        let ttl = ttl.copied().unwrap_or(0);
        self.tell(ProbeEvent::Answer(Answer { at: super::now(), kind, ttl }));
        true
    }

    fn answer(&self, packet: &mut Packet, arena: &mut [Segment]) -> Option<AnswerKind> {
        let [kind, code] = packet.meta.dst_port.to_be_bytes();
        if is_icmp_error(packet.meta.proto, kind) && !packet.meta.later_fragment {
            let about = connect::quoted(packet, arena)?;
            return (about == self.key).then_some(AnswerKind::Error { kind, code });
        }
        if FlowKey::of(packet, 0)? != self.key.reversed() {
            return None;
        }
        if packet.meta.proto != proto::TCP {
            return Some(AnswerKind::Reply);
        }
        let segment = Tcp::new_checked(packet.head().get(usize::from(packet.meta.layers.l4)..)?)?;
        Some(AnswerKind::Tcp { flags: segment.flags(), acknowledgement: segment.acknowledgement() })
    }
}

/// Remembers what the stages tell.
#[derive(Default)]
struct Story(Vec<(&'static str, Detail)>);

impl Recorder for Story {
    const MASKED: bool = false;

    fn stage(&mut self, name: &'static str, detail: Detail) {
        self.0.push((name, detail));
    }
}

impl Path {
    /// Sends a frame for a port. It counts as one that the switch made itself, at that port, if it goes on.
    #[cold]
    pub(super) fn shoot(&mut self, plane: &Plane, shot: &Shot, now: Instant) {
        let mut story = Story::default();
        let at = super::now();
        let (verdict, refused) = self.try_shoot(plane, shot, now, &mut story);
        shot.probe.tell(ProbeEvent::Sent(Sent { at, done: super::now(), stages: story.0, verdict, refused }));
    }

    fn try_shoot(
        &mut self,
        plane: &Plane,
        shot: &Shot,
        now: Instant,
        story: &mut Story,
    ) -> (Verdict, Option<DropReason>) {
        const GONE: (Verdict, Option<DropReason>) = (Verdict::Drop(DropReason::Internal), None);
        let Some(input) = plane.tables.port(shot.probe.port) else { return GONE };
        let (Some(network), Some(count)) = (plane.tables.network(input.network), input.counters.get(self.shared.index))
        else {
            return GONE;
        };
        let ctx = Context::new(plane, input, network, NO_QUEUE, self.shared.clock.seconds(now));
        let Path { shared, uring, burst, cache, free, stash, .. } = self;
        let mut out = Delivery::new(plane, shared.index, 1, shared.clock.ticks(now));
        let meta = Meta { in_port: input.id, ..Meta::default() };
        let ended = burst.with_frame(meta, &shot.frame, shot.frame.len(), |packet, arena| {
            let verdict = datapath::classify(&ctx, packet, arena, &mut None, story);
            if verdict != Verdict::Continue {
                return (verdict, None);
            }
            let Some(key) = FlowKey::of(packet, input.id.0 as u16) else { return GONE };
            let lookup = Lookup::new(shared.connections.keys(), key, network.vni);
            let (connections, nat) = (&shared.connections, &shared.nat);
            let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
            let verdict = datapath::forward(&ctx, &mut flows, &lookup, packet, arena, story);
            if let Some(opened) = flows.opened {
                shared.log(FlowEvent::opened(&ctx, &lookup, packet, &opened));
            }
            if verdict != Verdict::Forward {
                return (verdict, None);
            }
            count.originated.add(1);
            let to = packet.meta.out_port;
            let outcome = if stash.holds(to) { Outcome::Busy } else { out.deliver(uring, packet, arena, to) };
            match outcome {
                Outcome::Done => (verdict, None),
                Outcome::Dropped(reason) => (verdict, Some(reason)),
                Outcome::Busy if keep(stash, plane, shared.index, packet, arena, to, now) => (verdict, None),
                Outcome::Busy => (verdict, Some(DropReason::GuestRingBusy)),
            }
        });
        out.finish(uring);
        ended
    }
}
