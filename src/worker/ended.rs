//! What the flow log hears of packets that end where no stage sees them: their destination does not take them, their sender may
//! send no more, they waited in vain, or were none. Paced by who sent them, as every event; nothing here is on the way of a packet
//! that arrives.

use std::time::Instant;

use hostweave_switch::flow::FlowKey;
use hostweave_switch::packet::Packet;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::PortId;

use super::pace::Pace;
use super::{Shared, add};
use crate::connect::{Denied, Opened};
use crate::datapath::{Context, Lookup};
use crate::fabric::plane::Plane;
use crate::observe::flow_event::FlowEvent;

/// Tells the flow log.
pub(super) struct Teller<'a> {
    /// Who tells.
    pub shared: &'a Shared,
    /// How often.
    pub pace: &'a mut Pace,
    /// The tables of now.
    pub plane: &'a Plane,
    /// Now.
    pub now: Instant,
}

/// Counts what stages said of a packet that began a connection or ended, and tells the flow log, if that may hear of it.
#[cold]
pub(super) fn judged(
    shared: &Shared,
    may: bool,
    (ctx, lookup, packet): (&Context<'_>, &Lookup, &Packet),
    verdict: Verdict,
    opened: Option<Opened>,
    denied: Option<Denied>,
) {
    shared.stats.verdicts.count(opened.as_ref(), denied.as_ref());
    if !may {
        return;
    }
    if let Some(opened) = &opened {
        shared.log(FlowEvent::opened(ctx, lookup, packet, opened));
    }
    if let Verdict::Drop(reason) = verdict {
        shared.log(FlowEvent::dropped(ctx, &lookup.key, packet, reason, denied));
    }
}

/// Whether the flow log may hear of another packet of a port; if not, that is counted.
pub(super) fn may_log(shared: &Shared, pace: &mut Pace, port: PortId, now: Instant) -> bool {
    let may = pace.flow_event(port, now);
    if !may {
        add(&shared.stats.flows_lost, 1);
    }
    may
}

impl Teller<'_> {
    /// See [`may_log`].
    pub fn may(&mut self, port: PortId) -> bool {
        may_log(self.shared, self.pace, port, self.now)
    }

    /// Of a packet that `to` did not take, or of which its sender may send no more. `key` is as which it was sent; without one
    /// it is as it is now.
    #[cold]
    pub fn undelivered(&mut self, packet: &Packet, key: Option<FlowKey>, to: PortId, reason: DropReason) {
        // What the switch itself says to a port comes from the gateway of its network.
        let own = key.is_none() && (packet.meta.in_port == to || packet.meta.in_port == PortId::NONE);
        let tables = &self.plane.tables;
        let internal = || tables.network(tables.port(to)?.network).map(|network| network.internal);
        let from = if own { internal().unwrap_or(PortId::NONE) } else { packet.meta.in_port };
        let key = key.or_else(|| FlowKey::of(packet, 0)).unwrap_or_else(FlowEvent::no_tuple);
        self.ended([from, to], key, reason);
    }

    /// Of a packet that its sender may not send, if that is why it ended; other reasons are a stage's, which has told.
    pub fn limited(&mut self, packet: &Packet, key: &FlowKey, reason: DropReason) {
        if reason == DropReason::RateLimited {
            self.undelivered(packet, Some(*key), packet.meta.out_port, reason);
        }
    }

    /// Of a question to the switch itself that it answers no more; the packet is the answer by now.
    #[cold]
    pub fn unanswered(&mut self, packet: &Packet, port: PortId) {
        let key = FlowKey::of(packet, 0).map_or_else(FlowEvent::no_tuple, |key| key.reversed());
        self.ended([port, PortId::NONE], key, DropReason::LocalRateLimited);
    }

    /// Of a packet that is no more, or was none: from whom and for whom, as far as that is known.
    #[cold]
    pub fn ended(&mut self, [from, to]: [PortId; 2], key: FlowKey, reason: DropReason) {
        let tables = &self.plane.tables;
        let known = |id: PortId| Some((id, tables.network(tables.port(id)?.network)?));
        let Some((payer, network)) = known(from).or_else(|| known(to)) else { return };
        if self.may(payer) {
            let now = self.shared.clock.seconds(self.now);
            self.shared.log(FlowEvent::ended(key, network.vni, [from, to], reason, now));
        }
    }
}
