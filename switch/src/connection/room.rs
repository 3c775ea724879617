//! Which connection makes room for a new one of its port at the port's quota (SEMANTICS CT11).
//!
//! What nobody has answered goes first. A flood can be answered, though: whoever sends SYNs under false names fills the quota of
//! a server that answers them, and a resolver answers questions that nobody has asked. So behind those come, in this order, what has
//! ended, TCP whose opener has never acknowledged the answer, and one question with its answer some time ago. What both ends have
//! shown to be there stays, whoever else wants to come.
//!
//! Flow caches may trust a connection that was answered for a round (`flow`), and it must not be freed meanwhile. They never trust
//! TCP, whose every segment asks for its record by its generation, and of anything else the round must be over.

use super::ending::Ending;
use super::record::Record;
use super::shard::Shard;
use super::table::Connections;
use super::timeouts::has_ended;
use crate::flow::TRUST_S;
use crate::tcp_track::Side;
use crate::wheel::Wheel;
use crate::wire::proto;

/// Records looked at for one to give up, of each kind.
const LOOKS: usize = 16;

/// Seconds in which nothing was seen of a connection that no flow cache trusts any more: a round, and another for workers whose
/// clocks were read a little earlier.
const UNTRUSTED_S: u32 = 2 * TRUST_S;

impl Connections {
    /// Frees a connection of a port in this shard, of the first kind of which there is one among those that would end soonest. The
    /// port's share of the table stays taken, for the one that comes in its place.
    pub(super) fn evict(&self, shard: &Shard, wheel: &mut Wheel, port: u32, now: u32) -> Option<u32> {
        let records = self.records();
        let of = |wanted: fn(&Record, u32) -> bool| {
            wheel.soonest(records, LOOKS, |record: &Record| record.payer() == port && wanted(record, now))
        };
        let index = of(is_unanswered)
            .or_else(|| of(|record, _| has_ended(record)))
            .or_else(|| of(is_half_open))
            .or_else(|| of(was_asked_once))?;
        self.evict_at(shard, wheel, index);
        Some(index)
    }

    /// Frees a connection that nobody has answered of another port, which has more than its share, for one that has not: the table
    /// had filled before this one was there.
    #[cold]
    pub(super) fn evict_beyond(&self, shard: &Shard, wheel: &mut Wheel, port: u32) -> Option<u32> {
        if !self.quotas.is_within_share(port) {
            return None;
        }
        let records = self.records();
        let beyond = |record: &Record| !record.is_assured() && !self.quotas.is_within_share(record.payer());
        let index = wheel.soonest(records, LOOKS, beyond)?;
        let payer = records[index as usize].payer();
        self.evict_at(shard, wheel, index);
        self.quotas.give_back(payer);
        Some(index)
    }

    fn evict_at(&self, shard: &Shard, wheel: &mut Wheel, index: u32) {
        let records = self.records();
        let record = &records[index as usize];
        wheel.remove(records, index);
        self.unlink(shard, self.bucket(self.keys().hash(&record.key(), record.vni())), index, Ending::Evicted);
        shard.count_evicted();
    }
}

fn is_unanswered(record: &Record, _now: u32) -> bool {
    !record.is_assured()
}

/// Over TCP: whoever began it may not be there at all.
fn is_half_open(record: &Record, _now: u32) -> bool {
    is_tcp(record) && record.side(0).flags & Side::ACKED == 0
}

/// Over UDP, and of an ICMP query: whoever began it may not be there at all, for nothing was heard of it behind the first second.
fn was_asked_once(record: &Record, now: u32) -> bool {
    let asks = matches!(record.key().proto(), proto::UDP | proto::ICMPV4 | proto::ICMPV6);
    let seen = record.last_seen(0).max(record.last_seen(1));
    asks && record.last_seen(0) <= record.created() && seen.saturating_add(UNTRUSTED_S) < now
}

fn is_tcp(record: &Record) -> bool {
    record.key().proto() == proto::TCP
}
