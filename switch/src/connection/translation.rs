//! What becomes of a connection's packets on their way between two networks, beside the connection's record: one cache
//! line in the shared file, at the record's own index.
//!
//! A connection that *crosses* has two tuples: that of the packets which the side that began it sends, in its record, and
//! that of the answers as the other side sends them, here. A packet of either direction becomes the reverse of the other
//! direction's tuple. Where nothing is translated the two are each other's reverse and only the networks differ.
//! Connections within a network have no line: the pages of the file stay untouched.

use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

use super::record::{Direction, Record};
use crate::flow::{FlowKey, Kind};
use crate::shared::plain_struct;
use crate::wire::checksum::{combine, fold};
use crate::wire::proto;

/// How a connection crosses from one network into another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Tuple of the answers, as the side that answers sends them. Without scope.
    pub reply: FlowKey,
    /// Network of that side.
    pub vni: u32,
    /// The NAT mappings that the connection holds: its source's, and its destination's.
    pub held: [Option<Hold>; 2],
}

impl Translation {
    /// Whether the connection holds a NAT mapping.
    #[inline]
    pub(super) fn is_mapped(&self) -> bool {
        self.held.iter().any(Option::is_some)
    }
}

/// Names a record of somebody else's table, which one connection holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Hold {
    /// Its place in that table.
    pub index: u32,
    /// Its generation there.
    pub generation: u32,
}

/// What a packet has to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Source and destination address afterwards, as in [`FlowKey::addresses`].
    pub addresses: [u64; 4],
    /// L4 source port afterwards, or what [`Kind`](crate::flow::Kind) says.
    pub src_port: u16,
    /// L4 destination port afterwards, or what [`Kind`](crate::flow::Kind) says.
    pub dst_port: u16,
    /// What the new addresses add to a checksum that covers them (RFC 1624: the sum of `~old + new`).
    pub address_sum: u16,
    /// What the new ports add to one that covers them.
    pub port_sum: u16,
}

impl Change {
    /// Destination address afterwards.
    #[inline]
    pub fn dst(&self) -> u128 {
        u128::from(self.addresses[2]) << 64 | u128::from(self.addresses[3])
    }
}

/// A translation as it lies in the shared file.
#[repr(C, align(64))]
pub(super) struct TranslationLine {
    addresses: [AtomicU64; 4],
    /// Source and destination port of the answers.
    ports: AtomicU32,
    /// VNI, and the protocol in the lowest octet.
    scope: AtomicU32,
    /// Index and generation of mappings, [`NO_MAPPING`] for none.
    held: [[AtomicU32; 2]; 2],
    /// [`Change::address_sum`] and [`Change::port_sum`] of direction 0. Those of direction 1 are their complement.
    sums: AtomicU32,
    /// The next one of its chain, as index plus one.
    pub(super) next: AtomicU32,
}

const _: () = assert!(size_of::<TranslationLine>() == 64);

plain_struct!(TranslationLine { addresses, ports, scope, held, sums, next });

const NO_MAPPING: u32 = u32::MAX;

impl TranslationLine {
    /// Only for a record that is free.
    pub(super) fn write(&self, key: &FlowKey, translation: &Translation) {
        // Who still reads what was here before must learn that its record has another generation ([`Record::is_still`]).
        fence(Release);
        let reply = &translation.reply;
        self.addresses.iter().zip(reply.addresses).for_each(|(word, value)| word.store(value, Relaxed));
        self.ports.store(u32::from(reply.src_port()) << 16 | u32::from(reply.dst_port()), Relaxed);
        self.scope.store(translation.vni << 8 | u32::from(reply.proto()), Relaxed);
        for (words, hold) in self.held.iter().zip(translation.held) {
            let hold = hold.unwrap_or(Hold { index: NO_MAPPING, generation: 0 });
            words[0].store(hold.index, Relaxed);
            words[1].store(hold.generation, Relaxed);
        }
        let change = change(key, &reply.reversed());
        self.sums.store(u32::from(change.address_sum) << 16 | u32::from(change.port_sum), Relaxed);
    }

    #[inline]
    fn addresses(&self) -> [u64; 4] {
        std::array::from_fn(|i| self.addresses[i].load(Relaxed))
    }

    pub(super) fn reply(&self) -> FlowKey {
        let (ports, proto) = (self.ports.load(Relaxed), self.scope.load(Relaxed) as u8);
        let [a, b, c, d] = self.addresses();
        let word = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let kind = match proto {
            proto::TCP | proto::UDP | proto::SCTP => Kind::Ports,
            // What answers a query has its type for a port, and that is not zero.
            proto::ICMPV4 | proto::ICMPV6 if ports != 0 => Kind::Answer,
            _ => Kind::Addresses,
        };
        FlowKey::new(word(a, b), word(c, d), (ports >> 16) as u16, ports as u16, proto, kind)
    }

    pub(super) fn vni(&self) -> u32 {
        self.scope.load(Relaxed) >> 8
    }

    pub(super) fn read(&self) -> Translation {
        let hold = |[index, generation]: &[AtomicU32; 2]| {
            let (index, generation) = (index.load(Relaxed), generation.load(Relaxed));
            (index != NO_MAPPING).then_some(Hold { index, generation })
        };
        Translation { reply: self.reply(), vni: self.vni(), held: [hold(&self.held[0]), hold(&self.held[1])] }
    }

    /// What a packet of a direction has to become; `record` is the line's.
    #[inline]
    pub(super) fn change(&self, record: &Record, direction: Direction) -> Change {
        let sums = self.sums.load(Relaxed);
        // The reverse of the other direction's tuple.
        let ([a, b, c, d], ports, sums) = if direction == 0 {
            (self.addresses(), self.ports.load(Relaxed), sums)
        } else {
            let key = record.key();
            (key.addresses, (key.l4 >> 32) as u32, !sums)
        };
        Change {
            addresses: [c, d, a, b],
            src_port: ports as u16,
            dst_port: (ports >> 16) as u16,
            address_sum: (sums >> 16) as u16,
            port_sum: sums as u16,
        }
    }
}

/// What turns a packet of the tuple `from` into one of the tuple `to`.
pub fn change(from: &FlowKey, to: &FlowKey) -> Change {
    let words = |key: &FlowKey| key.addresses.iter().fold(0, |sum, word| combine(sum, fold_word(*word)));
    let ports = |key: &FlowKey| combine(key.src_port(), key.dst_port());
    Change {
        addresses: to.addresses,
        src_port: to.src_port(),
        dst_port: to.dst_port(),
        address_sum: combine(!words(from), words(to)),
        port_sum: combine(!ports(from), ports(to)),
    }
}

/// The sum of the four 16-bit words of a word of network order.
fn fold_word(word: u64) -> u16 {
    fold((word >> 32) + (word & 0xffff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tuple() -> impl Strategy<Value = FlowKey> {
        (any::<[u64; 4]>(), any::<u16>(), any::<u16>()).prop_map(|([a, b, c, d], src, dst)| {
            let word = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
            FlowKey::new(word(a, b), word(c, d), src, dst, 17, Kind::Ports)
        })
    }

    proptest! {
        /// A sum over the old words and the difference is a sum over the new words, in both directions.
        #[test]
        fn sums_are_differences(from in tuple(), to in tuple()) {
            let words = |key: &FlowKey| {
                let octets: Vec<u8> = key.addresses.iter().flat_map(|word| word.to_be_bytes()).collect();
                crate::wire::checksum::sum(&octets)
            };
            // Zero has two forms in one's complement.
            let same = |a: u16, b: u16| a == b || (a == 0 || a == 0xffff) && (b == 0 || b == 0xffff);
            let forth = change(&from, &to);
            prop_assert!(same(combine(words(&from), forth.address_sum), words(&to)));
            let line = TranslationLine {
                addresses: Default::default(), ports: Default::default(), scope: Default::default(),
                held: Default::default(), sums: Default::default(), next: Default::default(),
            };
            let translation = Translation {
                reply: to.reversed(), vni: 0xab_cdef, held: [None, Some(Hold { index: 3, generation: 4 })],
            };
            line.write(&from, &translation);
            prop_assert_eq!(line.read(), translation);
            let record = Record::default();
            prop_assert_eq!(line.change(&record, 0), forth);
            let back = line.change(&record, 1);
            prop_assert!(same(combine(words(&to), back.address_sum), words(&from)));
        }
    }
}
