//! How long a connection lives without a packet.

use super::record::Record;
use super::room::UNTRUSTED_S;
use super::table::deadline;
use crate::flow::FlowKey;
use crate::tcp_track::{self, Side, State};
use crate::wire::{DNS_L4, proto};

/// Seconds without a packet after which a connection is forgotten (SEMANTICS CT12, NA14; RFC 5382, RFC 4787).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP: both sides have acknowledged each other's SYN.
    pub tcp_established: u32,
    /// TCP: the handshake is not complete.
    pub tcp_opening: u32,
    /// TCP: one side or both have sent a FIN.
    pub tcp_closing: u32,
    /// TCP: both FINs are acknowledged.
    pub tcp_time_wait: u32,
    /// TCP: reset.
    pub tcp_closed: u32,
    /// UDP that nobody has answered.
    pub udp_unreplied: u32,
    /// UDP in both directions.
    pub udp_stream: u32,
    /// ICMP queries.
    pub icmp: u32,
    /// SCTP.
    pub sctp: u32,
    /// Any other protocol.
    pub other: u32,
    /// UDP that holds a NAT mapping: as long as that lives (RFC 4787 REQ-5), which must not outlive it (SEMANTICS NA16).
    pub mapped_udp: u32,
    /// The same towards the L4 port of DNS: many are asked once and answered at once (REQ-5a).
    pub mapped_dns: u32,
    /// TCP that holds a NAT mapping and is not established (RFC 5382 REQ-5).
    pub mapped_tcp: u32,
    /// ICMP queries that hold a NAT mapping (RFC 5508 REQ-2).
    pub mapped_icmp: u32,
    /// Established TCP that holds a NAT mapping, whatever others are given (RFC 5382 REQ-5).
    pub mapped_tcp_established: u32,
    /// Protocols of which NAT translates addresses only, SCTP among them, that hold a mapping.
    pub mapped_other: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: 7440,
            tcp_opening: 60,
            tcp_closing: 240,
            tcp_time_wait: 60,
            tcp_closed: 10,
            udp_unreplied: 30,
            udp_stream: 180,
            icmp: 30,
            sctp: 210,
            other: 600,
            mapped_udp: 300,
            mapped_dns: 30,
            mapped_tcp: 240,
            mapped_icmp: 60,
            mapped_tcp_established: 7440,
            mapped_other: 600,
        }
    }
}

impl Timeouts {
    /// Seconds that a connection may live from its last packet.
    pub fn of(&self, record: &Record) -> u32 {
        let alone = self.within(record);
        if record.is_mapped() { self.mapped(&record.key(), alone) } else { alone }
    }

    /// Whether nothing of a connection is to be expected any more: TCP has ended, or there was no packet for as long as one within a
    /// network lives. One that holds a NAT mapping is remembered for longer only for the sake of that.
    pub fn is_over(&self, record: &Record, now: u32) -> bool {
        has_ended(record) || deadline(record, self.within(record)) <= now
    }

    /// Whether flow caches may trust a connection for a round from now on: it is assured, and does not end meanwhile. Where only
    /// answers keep it, what else is sent does not put its end off.
    pub fn may_trust(&self, record: &Record, now: u32) -> bool {
        let lasts = || deadline(record, self.of(record)) > now.saturating_add(UNTRUSTED_S);
        record.is_assured() && (!record.is_kept_by_answers() || lasts())
    }

    /// Seconds that a connection which holds a NAT mapping lives from its last packet, where without one it would live `alone`. No
    /// other: what comes from outside to a public address is anybody's, and fills the quota of whoever has it.
    #[inline]
    pub(super) fn mapped(&self, key: &FlowKey, alone: u32) -> u32 {
        match key.proto() {
            proto::TCP => alone.max(self.mapped_tcp),
            proto::UDP if key.dst_port() == DNS_L4 => alone.max(self.mapped_dns),
            proto::UDP => alone.max(self.mapped_udp),
            proto::ICMPV4 | proto::ICMPV6 => alone.max(self.mapped_icmp),
            _ => alone.max(self.mapped_other),
        }
    }

    /// Of one within a network. Established TCP that holds a NAT mapping is owed more, whatever it may stand in the way of.
    fn within(&self, record: &Record) -> u32 {
        match record.key().proto() {
            proto::TCP => {
                let (side, other) = (record.side(0), record.side(1));
                let alone = self.tcp(&side, &other);
                let owed = record.is_mapped() && tcp_track::state(&side, &other) == State::Established;
                if owed { alone.max(self.mapped_tcp_established) } else { alone }
            }
            proto::UDP if record.is_replied() => self.udp_stream,
            other => self.of_new(other, &Side::default()),
        }
    }

    /// The same of a connection that begins, whose first segment shows `side` (TCP).
    #[inline]
    pub(super) fn of_new(&self, protocol: u8, side: &Side) -> u32 {
        match protocol {
            proto::TCP => self.tcp(side, &Side::default()),
            proto::UDP => self.udp_unreplied,
            proto::ICMPV4 | proto::ICMPV6 => self.icmp,
            proto::SCTP => self.sctp,
            _ => self.other,
        }
    }

    fn tcp(&self, side: &Side, other: &Side) -> u32 {
        match tcp_track::state(side, other) {
            State::Opening => self.tcp_opening,
            State::Established => self.tcp_established,
            State::Closing => self.tcp_closing,
            State::TimeWait => self.tcp_time_wait,
            State::Closed => self.tcp_closed,
        }
    }
}

/// Over TCP: reset, or both ends have said that they have sent everything.
pub(super) fn has_ended(record: &Record) -> bool {
    let state = || tcp_track::state(&record.side(0), &record.side(1));
    record.key().proto() == proto::TCP && matches!(state(), State::Closed | State::TimeWait)
}
