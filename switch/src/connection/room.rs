//! Which connection makes room for a new one of its port at the port's quota (SEMANTICS CT11).
//!
//! What nobody has answered goes first. A flood can be answered, though: whoever sends SYNs under false names fills the quota of
//! a server that answers them, and a resolver answers questions that nobody has asked. So behind those come, in this order, what has
//! ended, TCP whose opener has never acknowledged the answer, and of anything else what has been quiet for longer than its opener had
//! gone on: a question that is asked twice under a false name shows no more than one that is asked once. What both ends have
//! shown to be there stays, whoever else wants to come.
//!
//! Flow caches may trust a connection that is assured for a round (`flow`), and it must not be freed meanwhile. They never trust
//! TCP, whose every segment asks for its record by its generation, and of anything else the round must be over.
//!
//! The wheel is that of all ports. Among those that would end soonest a neighbour may have any number of its own, with shorter times; so
//! where none of them may go, some more are looked at in turn, and each has its turn.

use super::ending::Ending;
use super::record::Record;
use super::shard::Shard;
use super::table::Connections;
use super::timeouts::has_ended;
use crate::flow::TRUST_S;
use crate::tcp_track::Side;
use crate::wheel::Wheel;
use crate::wire::proto;

/// Records looked at for one to give up, among those that would end soonest, and then in turn: what a packet of a flood costs.
const LOOKS: usize = 16;
/// See [`LOOKS`].
const LOOKS_IN_TURN: usize = 32;

/// Seconds in which nothing was seen of a connection that no flow cache trusts any more: a round, and another for workers whose
/// clocks were read a little earlier.
pub(super) const UNTRUSTED_S: u32 = 2 * TRUST_S;

impl Connections {
    /// Frees a connection of a port in this shard, of the first kind of which there is one among those that are looked at. The
    /// port's share of the table stays taken, for the one that comes in its place.
    pub(super) fn evict(&self, shard: &Shard, wheel: &mut Wheel, port: u32, now: u32) -> Option<u32> {
        let index =
            find(wheel, self.records(), |record| if record.payer() == port { rank(record, now) } else { None })?;
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
        let index = find(wheel, records, |record| beyond(record).then_some(0))?;
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

fn find(wheel: &mut Wheel, records: &[Record], rank: impl Fn(&Record) -> Option<u8>) -> Option<u32> {
    wheel.soonest(records, LOOKS, &rank).or_else(|| wheel.sweep(records, LOOKS_IN_TURN, &rank))
}

/// Which kind of a connection that may go it is.
fn rank(record: &Record, now: u32) -> Option<u8> {
    if !record.is_assured() {
        Some(0)
    } else if has_ended(record) {
        Some(1)
    } else if is_half_open(record) {
        Some(2)
    } else {
        has_gone_quiet(record, now).then_some(3)
    }
}

/// Over TCP: whoever began it may not be there at all.
fn is_half_open(record: &Record) -> bool {
    is_tcp(record) && record.side(0).flags & Side::ACKED == 0
}

/// Not over TCP, where nothing tells whoever began it from one who sends under false names, but that he goes on.
fn has_gone_quiet(record: &Record, now: u32) -> bool {
    let went_on = record.last_seen(0).saturating_sub(record.created());
    let seen = record.last_seen(0).max(record.last_seen(1));
    !is_tcp(record) && seen.saturating_add(went_on.max(UNTRUSTED_S)) < now
}

fn is_tcp(record: &Record) -> bool {
    record.key().proto() == proto::TCP
}
