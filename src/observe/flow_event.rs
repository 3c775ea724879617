//! What a worker tells the flow log of a connection: plain values, nothing that allocates.

use hostweave_policy::model::Direction;
use hostweave_policy::table::{Basis, RuleId};
use hostweave_switch::connection::{Ending, Entry};
use hostweave_switch::flow::{FlowKey, Kind};
use hostweave_switch::packet::Packet;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;

use crate::connect::{Again, Denied, Opened};
use crate::datapath::{Context, Lookup};

/// Something that happened to a connection, or to a packet that belongs to none.
#[derive(Clone, Copy, Debug)]
pub struct FlowEvent {
    /// What happened.
    pub kind: FlowEventKind,
    /// Tuple, in the direction of the packet; of a connection that ended, in that of its first.
    pub key: FlowKey,
    /// Of a connection, the tuple as the other side sees it, where NAT makes it another one.
    pub there: Option<FlowKey>,
    /// Of a connection that begins: whether its L4 port there is one that others use too, towards other destinations (SEMANTICS NA17).
    pub shared: bool,
    /// Network.
    pub vni: u32,
    /// The port that sent it.
    pub from: PortId,
    /// The port that it was for, [`PortId::NONE`] if that is not known.
    pub to: PortId,
    /// Flags of the TCP header, 0 of others.
    pub tcp_flags: u8,
    /// Type and code of an ICMP message, the type in the upper octet; 0 of others.
    pub icmp: u16,
    /// Seconds of the monotonic clock.
    pub at: u32,
}

/// See [`FlowEvent`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowEventKind {
    /// A connection began; what allowed it at the sender and at the receiver, and what policies in audit mode say against it.
    Opened {
        /// Of the sender.
        egress: Basis,
        /// Of the receiver.
        ingress: Basis,
        /// Would have been denied by, at the sender and at the receiver.
        audit: [Option<RuleId>; 2],
    },
    /// Policies have changed, and one in audit mode says something against a connection that there was.
    Audited {
        /// Of the sender.
        egress: Basis,
        /// Of the receiver.
        ingress: Basis,
        /// Would be denied by, at the sender and at the receiver.
        audit: [Option<RuleId>; 2],
    },
    /// It ended.
    Closed(Ending),
    /// It goes on, and has for long.
    Sample,
    /// A packet ended.
    Dropped {
        /// Why.
        reason: DropReason,
        /// What policy said, where that is the reason.
        denied: Option<(Direction, Basis)>,
    },
}

impl FlowEvent {
    /// A connection began with a packet, or was judged again by it.
    pub fn opened(ctx: &Context<'_>, lookup: &Lookup, packet: &Packet, opened: &Opened) -> Self {
        let allowed = &opened.allowed;
        let (egress, ingress) = (allowed.egress.basis, allowed.ingress.basis);
        let audit = [allowed.egress.audit, allowed.ingress.audit];
        let event = match opened.again {
            None => {
                Self::new(ctx, &lookup.key, packet, opened.out_port, FlowEventKind::Opened { egress, ingress, audit })
            }
            // Whichever side the packet is from.
            Some(Again { key, vni, from }) => {
                let kind = FlowEventKind::Audited { egress, ingress, audit };
                let event = Self::new(ctx, &key, packet, opened.out_port, kind);
                Self { vni, from, tcp_flags: 0, icmp: 0, ..event }
            }
        };
        Self { there: opened.there.filter(|there| *there != event.key), shared: opened.shared, ..event }
    }

    /// A packet ended.
    pub fn dropped(
        ctx: &Context<'_>,
        key: &FlowKey,
        packet: &Packet,
        reason: DropReason,
        denied: Option<Denied>,
    ) -> Self {
        let to = denied.map_or(PortId::NONE, |denied| denied.out_port);
        let denied = denied.map(|denied| (denied.direction, denied.decision.basis));
        Self::new(ctx, key, packet, to, FlowEventKind::Dropped { reason, denied })
    }

    /// A packet ended behind the stages, or before there was one: nobody looks at it any more.
    pub fn ended(key: FlowKey, vni: u32, [from, to]: [PortId; 2], reason: DropReason, now: u32) -> Self {
        let kind = FlowEventKind::Dropped { reason, denied: None };
        Self { kind, key: key.unscoped(), there: None, shared: false, vni, from, to, tcp_flags: 0, icmp: 0, at: now }
    }

    /// The key of a frame that has no IP header.
    pub fn no_tuple() -> FlowKey {
        FlowKey::new(0, 0, 0, 0, 0, Kind::Addresses)
    }

    /// A connection ended.
    pub fn closed(entry: &Entry, why: Ending, now: u32) -> Self {
        Self::of(entry, FlowEventKind::Closed(why), now)
    }

    /// A connection goes on.
    pub fn sample(entry: &Entry, now: u32) -> Self {
        Self::of(entry, FlowEventKind::Sample, now)
    }

    fn of(entry: &Entry, kind: FlowEventKind, now: u32) -> Self {
        Self {
            kind,
            key: entry.key,
            there: entry.translation.map(|how| how.reply.reversed()).filter(|there| *there != entry.key),
            shared: false,
            vni: entry.vni,
            from: PortId(entry.in_port),
            to: PortId(entry.out_port),
            tcp_flags: 0,
            icmp: 0,
            at: now,
        }
    }

    fn new(ctx: &Context<'_>, key: &FlowKey, packet: &Packet, to: PortId, kind: FlowEventKind) -> Self {
        use hostweave_switch::wire::proto;
        const FLAGS: usize = 13;
        let l4 = usize::from(packet.meta.layers.l4);
        let is_tcp = packet.meta.proto == proto::TCP && !packet.meta.later_fragment;
        let tcp_flags = if is_tcp { packet.head().get(l4 + FLAGS).copied().unwrap_or(0) } else { 0 };
        let is_icmp = matches!(packet.meta.proto, proto::ICMPV4 | proto::ICMPV6) && !packet.meta.later_fragment;
        let icmp = if is_icmp { packet.meta.dst_port } else { 0 };
        let (key, vni, from) = (key.unscoped(), ctx.network.vni, ctx.port.id);
        Self { kind, key, there: None, shared: false, vni, from, to, tcp_flags, icmp, at: ctx.now }
    }
}
