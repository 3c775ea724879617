//! What rules say about L4 protocols and ports, for one class of peers: the first rule that matches.
//!
//! All tiers use it: rules have a rank within their tier (lower first). NetworkPolicy v1 only needs to know whether any rule
//! matches (SEMANTICS NP1), and the lowest rank answers that as well.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::intervals::Intervals;
use crate::model::Protocol;

/// Ranks of the first matching rules; [`Match::NO_RULE`] where none matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Match {
    /// Of those in force.
    pub rule: u32,
    /// Of `Deny` rules of policies in audit mode, which are only reported.
    pub audit: u32,
}

impl Match {
    pub(crate) const NO_RULE: u32 = u32::MAX;
    pub(crate) const NONE: Match = Match { rule: Self::NO_RULE, audit: Self::NO_RULE };

    #[inline]
    pub(crate) fn min(self, other: Match) -> Match {
        Match { rule: self.rule.min(other.rule), audit: self.audit.min(other.audit) }
    }
}

/// A name that the destination declares for an L4 port (SEMANTICS NP15). Sorted by protocol, then port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Declared {
    pub protocol: Protocol,
    pub port: u16,
    /// Number of the name.
    pub name: u32,
}

/// What a new connection asks of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    /// See [`place`]; [`NO_PLACE`] when only rules without `ports` can match (SEMANTICS NP25, CT10).
    place: u32,
    /// All lists of names, and which of them the destination declares.
    lists: &'a [Arc<[Declared]>],
    declared: u32,
}

impl<'a> Query<'a> {
    /// `l4`: protocol and destination port. `declared`: number of the destination's list of names.
    #[inline]
    pub(crate) fn new(l4: Option<(Protocol, u16)>, lists: &'a [Arc<[Declared]>], declared: Option<u32>) -> Self {
        let place = l4.map_or(NO_PLACE, |(protocol, port)| place(protocol, port));
        Self { place, lists, declared: declared.unwrap_or(u32::MAX) }
    }

    /// Names that the destination declares for just this protocol and port: a named port is resolved for each destination
    /// (SEMANTICS NP15).
    fn names(&self) -> impl Iterator<Item = &'a Declared> {
        let declared = self.lists.get(self.declared as usize).map_or(&[][..], |list| list);
        let place_of = |name: &Declared| place(name.protocol, name.port);
        let begin = declared.partition_point(|name| place_of(name) < self.place);
        declared[begin..].iter().take_while(move |name| place_of(name) == self.place)
    }
}

/// `PortMatch` with its name numbered and its protocol spelled out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PortRange {
    Numbers(Protocol, u16, u16),
    Named(Protocol, u32),
}

/// One rule, as far as a class needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClassRule<'a> {
    pub rank: u32,
    /// A `Deny` of a policy in audit mode.
    pub audited: bool,
    /// `None`: any protocol (SEMANTICS NP12).
    pub ports: Option<&'a [PortRange]>,
}

/// First matching rules by protocol and port.
#[derive(Debug)]
pub(crate) struct Class {
    /// Of rules without `ports`.
    any: Match,
    /// Of the others, if they are one range of numbers, as most are: no further access to memory. Ends as in [`place`].
    range: (u32, u32),
    in_range: Match,
    /// Of the others, if they are more.
    table: Option<Box<PortTable>>,
}

/// No place is in it, nor is [`NO_PLACE`].
const NO_RANGE: (u32, u32) = (u32::MAX, 0);

#[derive(Debug)]
struct PortTable {
    /// By protocol and port, see [`place`].
    ranges: Intervals<u32, Match>,
    /// Sorted by name and protocol.
    names: Box<[(u32, Protocol, Match)]>,
}

impl Class {
    pub(crate) fn new<'a>(rules: impl Iterator<Item = ClassRule<'a>>) -> Self {
        let mut any = Match::NONE;
        let mut ranges: Vec<(u32, u32, Match)> = Vec::new();
        let mut names: Vec<(u32, Protocol, Match)> = Vec::new();
        for rule in rules {
            let found = if rule.audited {
                Match { rule: Match::NO_RULE, audit: rule.rank }
            } else {
                Match { rule: rule.rank, audit: Match::NO_RULE }
            };
            let Some(ports) = rule.ports else {
                any = any.min(found);
                continue;
            };
            for port in ports {
                match *port {
                    PortRange::Numbers(protocol, first, last) if first <= last => {
                        ranges.push((place(protocol, first), place(protocol, last), found));
                    }
                    PortRange::Numbers(..) => {}
                    PortRange::Named(protocol, name) => names.push((name, protocol, found)),
                }
            }
        }
        if names.is_empty() {
            match ranges[..] {
                [] => return Self { any, range: NO_RANGE, in_range: Match::NONE, table: None },
                [(first, last, in_range)] => return Self { any, range: (first, last), in_range, table: None },
                _ => {}
            }
        }
        names.sort_unstable_by_key(|(name, protocol, _)| (*name, *protocol));
        names.dedup_by(|next, kept| {
            let same = (next.0, next.1) == (kept.0, kept.1);
            if same {
                kept.2 = kept.2.min(next.2);
            }
            same
        });
        let table = PortTable { ranges: flatten(ranges), names: names.into() };
        Self { any, range: NO_RANGE, in_range: Match::NONE, table: Some(Box::new(table)) }
    }

    #[inline]
    pub(crate) fn get(&self, query: &Query<'_>) -> Match {
        let mut found = self.any;
        if self.range.0 <= query.place && query.place <= self.range.1 {
            found = found.min(self.in_range);
        }
        if let Some(table) = &self.table {
            found = found.min(table.get(query));
        }
        found
    }

    /// Rank of any rule in force that matches.
    #[inline]
    pub(crate) fn rule(&self, query: &Query<'_>) -> u32 {
        if self.range.0 <= query.place && query.place <= self.range.1 {
            return self.in_range.rule.min(self.any.rule);
        }
        match &self.table {
            Some(table) if self.any.rule == Match::NO_RULE => table.get(query).rule,
            _ => self.any.rule,
        }
    }

    /// Memory, in octets.
    pub(crate) fn bytes(&self) -> usize {
        let table = self
            .table
            .as_ref()
            .map_or(0, |table| size_of::<PortTable>() + size_of_val(&*table.names) + table.ranges.bytes());
        size_of::<Self>() + table
    }
}

impl PortTable {
    fn get(&self, query: &Query<'_>) -> Match {
        if query.place == NO_PLACE {
            return Match::NONE;
        }
        let mut found = self.ranges.get(query.place).unwrap_or(Match::NONE);
        if !self.names.is_empty() {
            for declared in query.names() {
                let wanted = (declared.name, declared.protocol);
                if let Ok(at) = self.names.binary_search_by_key(&wanted, |entry| (entry.0, entry.1)) {
                    found = found.min(self.names[at].2);
                }
            }
        }
        found
    }
}

/// Of a connection without L4 port.
const NO_PLACE: u32 = u32::MAX;

/// All ports of all protocols in one line.
#[inline]
fn place(protocol: Protocol, port: u16) -> u32 {
    (protocol as u32) << 16 | u32::from(port)
}

/// Ranks of open ranges, lowest first, with where they end.
type Open = BinaryHeap<Reverse<(u32, u32)>>;

/// Overlapping ranges to disjoint ones, each with the lowest ranks of those over it: a sweep upward.
fn flatten(mut ranges: Vec<(u32, u32, Match)>) -> Intervals<u32, Match> {
    ranges.sort_unstable_by_key(|(first, ..)| *first);
    let mut bounds: Vec<u32> = ranges.iter().map(|(first, ..)| *first).collect();
    bounds.extend(ranges.iter().map(|(_, last, _)| last + 1));
    bounds.sort_unstable();
    bounds.dedup();
    // What has ended is thrown away when it comes to the top.
    let (mut rules, mut audits) = (Open::new(), Open::new());
    let lowest = |heap: &mut Open, bound: u32| loop {
        match heap.peek() {
            Some(Reverse((_, last))) if *last < bound => drop(heap.pop()),
            Some(Reverse((rank, _))) => return *rank,
            None => return Match::NO_RULE,
        }
    };
    let mut next = ranges.iter().peekable();
    Intervals::new(bounds.into_iter().map(|bound| {
        while let Some((_, last, found)) = next.next_if(|(first, ..)| *first <= bound) {
            if found.rule != Match::NO_RULE {
                rules.push(Reverse((found.rule, *last)));
            }
            if found.audit != Match::NO_RULE {
                audits.push(Reverse((found.audit, *last)));
            }
        }
        (bound, Match { rule: lowest(&mut rules, bound), audit: lowest(&mut audits, bound) })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol::{Sctp, Tcp, Udp};

    fn class(rules: &[(u32, bool, Option<&[PortRange]>)]) -> Class {
        Class::new(rules.iter().map(|(rank, audited, ports)| ClassRule {
            rank: *rank,
            audited: *audited,
            ports: *ports,
        }))
    }

    fn ask(class: &Class, protocol: Protocol, port: u16) -> Match {
        let query = Query::new(Some((protocol, port)), &[], None);
        let found = class.get(&query);
        assert_eq!(class.rule(&query) == Match::NO_RULE, found.rule == Match::NO_RULE);
        found
    }

    #[test]
    fn the_lowest_rank_wins_where_ranges_overlap() {
        let class = class(&[
            (3, false, Some(&[PortRange::Numbers(Tcp, 0, 65_535)])),
            (1, false, Some(&[PortRange::Numbers(Tcp, 80, 90), PortRange::Numbers(Tcp, 65_535, 65_535)])),
            (2, false, Some(&[PortRange::Numbers(Tcp, 85, 100)])),
            (0, true, Some(&[PortRange::Numbers(Tcp, 100, 101)])),
            (7, false, None),
        ]);
        let ranks = [(0, 3), (79, 3), (80, 1), (90, 1), (91, 2), (100, 2), (101, 3), (65_534, 3), (65_535, 1)];
        for (port, rank) in ranks {
            assert_eq!(ask(&class, Tcp, port).rule, rank, "port {port}");
            assert_eq!(ask(&class, Tcp, port).audit == 0, (100..=101).contains(&port), "port {port}");
        }
        assert_eq!(ask(&class, Udp, 80).rule, 7);
        assert_eq!(class.get(&Query::new(None, &[], None)).rule, 7, "CT10");
    }

    #[test]
    fn np15_names_match_by_protocol() {
        let class = class(&[(0, false, Some(&[PortRange::Named(Tcp, 5), PortRange::Named(Sctp, 6)]))]);
        let declared = |protocol, name| [Declared { protocol, port: 8, name: 5 }, Declared { protocol, port: 9, name }];
        let ask = |protocol, name| {
            let lists = [Arc::from([]), Arc::from(declared(protocol, name))];
            class.get(&Query::new(Some((protocol, 9)), &lists, Some(1))).rule
        };
        assert_eq!(ask(Tcp, 5), 0);
        assert_eq!(ask(Sctp, 6), 0);
        assert_eq!(ask(Udp, 5), Match::NO_RULE);
        assert_eq!(ask(Tcp, 6), Match::NO_RULE);
    }
}
