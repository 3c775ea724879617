//! One tier in one direction for the ports that one list of policies selects: the first rule that matches a new connection.
//!
//! Ports with different labels but the same policies share it. Peers are looked up in three places whose answers are merged:
//! rules for anybody (or for anybody and every known port), the class of the peer's identity, the class of its address. A
//! class is the set of rules that match such a peer; within it, protocol and L4 port decide. Each of the three is a handful of
//! memory accesses, whatever the number of rules. Where all rules allow, the first place that has one will do.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::class::{Class, ClassRule, Match, Query};
use crate::intervals::Intervals;
use crate::model::Action;
use crate::peers::PeerMap;
use crate::resolve::{ALL_PORTS, Resolved, ResolvedRule};
use crate::table::{PolicyInfo, RuleId};

/// No tier: no policy of it selects the port in this direction.
pub(crate) const NO_TIER: u32 = u32::MAX;

/// `::ffff:0:0`, where IPv4 begins in the one address space of both families.
pub(crate) const V4_MAPPED: u128 = 0xffff_0000_0000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Tier {
    /// By rank.
    rules: Box<[(RuleId, Action)]>,
    /// Whether a policy in force isolates (NetworkPolicy v1 only).
    pub enforced: bool,
    /// The isolation of the first policy in audit mode (NetworkPolicy v1 only).
    pub audited: Option<RuleId>,
    /// By precedence.
    pub policies: Box<[Arc<PolicyInfo>]>,
    /// Rules for anybody.
    any: Class,
    /// Those and the rules for every known port.
    known: Class,
    /// By selections of the policies' own namespace, and by the others. The maps of the latter are large, and many tiers
    /// have the same.
    peers: [Option<PeerClasses>; 2],
    blocks: Option<Arc<Blocks>>,
    bytes: usize,
}

/// Which class an identity has, and the classes by that.
type PeerClasses = (Arc<PeerMap>, Box<[Class]>);

/// Classes by address.
#[derive(Debug)]
struct Blocks {
    /// Rules for every IPv4, every IPv6 address: kept apart, so that they are not repeated in each class within.
    every: [Class; 2],
    v4: Intervals<u32, u32>,
    v6: Intervals<u128, u32>,
    classes: Box<[Class]>,
}

/// Where a tier finds what it shares with others.
pub(crate) trait Source {
    /// Whether a selection is of the ports of a policy's own namespace.
    fn is_own(&self, selection: u32) -> bool;
    /// Makes or finds the map for a sorted list of selections.
    fn peer_map(&mut self, selections: Vec<u32>) -> Arc<PeerMap>;
    /// The same tier compiled from the same policies, when only members of selections have changed.
    fn before(&self) -> Option<&Tier>;
}

/// A policy of the tier, in order of precedence.
pub(crate) struct TierPolicy<'a> {
    pub info: &'a Arc<PolicyInfo>,
    pub resolved: &'a Resolved,
    /// Isolation (NetworkPolicy v1): its rule number.
    pub isolation: Option<RuleId>,
}

impl Tier {
    /// Compiles the policies of a tier.
    pub(crate) fn new(policies: &[TierPolicy<'_>], source: &mut impl Source) -> Self {
        let ranked: Vec<(u32, bool, &ResolvedRule)> = (0..)
            .zip(policies.iter().flat_map(|policy| policy.resolved.rules.iter().map(move |rule| (policy, rule))))
            .map(|(rank, (policy, rule))| (rank, policy.info.audit && rule.action == Action::Deny, rule))
            .collect();
        let class = |ranks: &mut dyn Iterator<Item = u32>| {
            Class::new(ranks.map(|rank| {
                let (rank, audited, rule) = ranked[rank as usize];
                ClassRule { rank, audited, ports: rule.ports.as_deref() }
            }))
        };
        let pick = |accept: fn(&ResolvedRule) -> bool| {
            class(&mut ranked.iter().filter(|(.., rule)| accept(rule)).map(|(rank, ..)| *rank))
        };

        let users: Vec<(u32, u32)> =
            ranked.iter().flat_map(|(rank, _, rule)| rule.selections.iter().map(|id| (*id, *rank))).collect();
        let peers = [true, false].map(|own| {
            let of = |id: u32| id != ALL_PORTS && source.is_own(id) == own;
            let mut users: Vec<(u32, u32)> = users.iter().copied().filter(|(id, _)| of(*id)).collect();
            users.sort_unstable();
            if users.is_empty() {
                return None;
            }
            let mut selections: Vec<u32> = users.iter().map(|(selection, _)| *selection).collect();
            selections.dedup();
            let ranks: Vec<&[(u32, u32)]> = users.chunk_by(|a, b| a.0 == b.0).collect();
            let map = source.peer_map(selections);
            let of =
                |signature: &[u32]| class(&mut signature.iter().flat_map(|at| ranks[*at as usize]).map(|user| user.1));
            let classes: Box<[Class]> = map.signatures.iter().map(|signature| of(signature)).collect();
            Some((map, classes))
        });

        let blocks = match source.before() {
            Some(before) => before.blocks.clone(),
            None => {
                let any = ranked.iter().any(|(.., rule)| !rule.blocks.is_empty());
                any.then(|| Arc::new(Blocks::new(&ranked, &class)))
            }
        };
        let isolating = |audit: bool| policies.iter().filter(move |p| p.info.audit == audit).find_map(|p| p.isolation);
        let mut tier = Self {
            rules: ranked.iter().map(|(.., rule)| (rule.id, rule.action)).collect(),
            enforced: isolating(false).is_some(),
            audited: isolating(true),
            policies: policies.iter().map(|policy| Arc::clone(policy.info)).collect(),
            any: pick(|rule| rule.anybody),
            known: pick(|rule| rule.anybody || rule.selections.contains(&ALL_PORTS)),
            peers,
            blocks,
            bytes: 0,
        };
        tier.bytes = tier.measure();
        tier
    }

    /// The first rules that match. `peer`: identity of the other side, if it is a port of the same network.
    pub(crate) fn get(&self, query: &Query<'_>, peer: Option<u32>, address: u128) -> Match {
        let mut found = match peer {
            Some(_) => self.known.get(query),
            None => self.any.get(query),
        };
        if let Some(identity) = peer {
            for class in self.classes(identity) {
                found = found.min(class.get(query));
            }
        }
        if let Some(blocks) = &self.blocks {
            found = found.min(blocks.get(query, address));
        }
        found
    }

    /// Rank of any rule in force that matches, [`Match::NO_RULE`] when none does: for a tier whose rules all do the same, so that
    /// which of them is found does not matter. What ports may do is looked at first, addresses last: they take longest.
    #[inline]
    pub(crate) fn any_rule(&self, query: &Query<'_>, peer: Option<u32>, address: u128) -> u32 {
        let everybody = match peer {
            Some(identity) => {
                for class in self.classes(identity) {
                    let rank = class.rule(query);
                    if rank != Match::NO_RULE {
                        return rank;
                    }
                }
                &self.known
            }
            None => &self.any,
        };
        match (everybody.rule(query), &self.blocks) {
            (Match::NO_RULE, Some(blocks)) => blocks.get(query, address).rule,
            (rank, _) => rank,
        }
    }

    /// What rules with selectors say about an identity.
    #[inline]
    fn classes(&self, identity: u32) -> impl Iterator<Item = &Class> {
        self.peers.iter().flatten().filter_map(move |(map, classes)| classes.get(map.get(identity)? as usize))
    }

    /// The rule of a rank that [`Self::get`] gave.
    #[inline]
    pub(crate) fn rule(&self, rank: u32) -> Option<(RuleId, Action)> {
        self.rules.get(rank as usize).copied()
    }

    /// Memory, in octets; a peer map counts in each tier that shares it as a part.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn measure(&self) -> usize {
        let of = |(map, classes): &PeerClasses| {
            map.bytes() / Arc::strong_count(map).max(1) + classes.iter().map(Class::bytes).sum::<usize>()
        };
        let peers = self.peers.iter().flatten().map(of).sum::<usize>();
        let blocks = self.blocks.as_ref().map_or(0, |blocks| {
            let classes = blocks.classes.iter().chain(&blocks.every).map(Class::bytes).sum::<usize>();
            blocks.v4.bytes() + blocks.v6.bytes() + classes
        });
        size_of::<Self>() + size_of_val(&*self.rules) + self.any.bytes() + self.known.bytes() + peers + blocks
    }
}

impl Blocks {
    fn new(rules: &[(u32, bool, &ResolvedRule)], class: &dyn Fn(&mut dyn Iterator<Item = u32>) -> Class) -> Self {
        let (v4_all, v6_all) =
            ((V4_MAPPED, V4_MAPPED + u128::from(u32::MAX)), [(0, V4_MAPPED - 1), (V4_MAPPED + (1 << 32), u128::MAX)]);
        let mut every = [Vec::new(), Vec::new()];
        let mut spans: Vec<(u128, u128, u32)> = Vec::new();
        for (rank, _, rule) in rules {
            // A /0 without holes is exactly these spans; see `crate::resolve::spans`.
            let all = [rule.blocks.contains(&v4_all), v6_all.iter().all(|span| rule.blocks.contains(span))];
            for family in [0, 1] {
                if all[family] {
                    every[family].push(*rank);
                }
            }
            spans.extend(
                rule.blocks.iter().filter(|span| !all[usize::from(!is_v4(span.0))]).map(|span| (span.0, span.1, *rank)),
            );
        }
        let mut signatures: HashMap<Box<[u32]>, u32, RandomState> = HashMap::default();
        let pieces = flatten(spans, &mut signatures);
        let v4 = pieces.iter().filter(|(start, _)| is_v4(*start)).map(|(start, class)| (low_half(*start), *class));
        let v6 = pieces.iter().filter(|(start, _)| !is_v4(*start)).copied();
        Self {
            v4: Intervals::new(v4),
            v6: Intervals::new(v6),
            every: every.map(|ranks| class(&mut ranks.into_iter())),
            classes: in_order(signatures).iter().map(|signature| class(&mut signature.iter().copied())).collect(),
        }
    }

    #[inline]
    fn get(&self, query: &Query<'_>, address: u128) -> Match {
        let (every, class) = if is_v4(address) {
            (&self.every[0], self.v4.get(low_half(address)))
        } else {
            (&self.every[1], self.v6.get(address))
        };
        let class = class.map_or(Match::NONE, |class| self.classes[class as usize].get(query));
        every.get(query).min(class)
    }
}

/// Overlapping spans of addresses (first, last, rank) to the starts of disjoint ones, each with the set of ranks over it. No
/// span has addresses of both families; a piece begins at each border between them, so that they can be told apart by start.
fn flatten(spans: Vec<(u128, u128, u32)>, signatures: &mut HashMap<Box<[u32]>, u32, RandomState>) -> Vec<(u128, u32)> {
    let mut events: Vec<(u128, bool, u32)> = Vec::with_capacity(spans.len() * 2);
    for border in [0, V4_MAPPED, V4_MAPPED + (1 << 32)] {
        events.push((border, false, Match::NO_RULE));
    }
    for (first, last, rank) in spans {
        events.push((first, true, rank));
        if let Some(after) = last.checked_add(1) {
            events.push((after, false, rank));
        }
    }
    events.sort_unstable();
    // Sorted ranks with the number of spans open for each: two blocks of one rule may overlap.
    let mut open: Vec<(u32, u32)> = Vec::new();
    let mut pieces = Vec::new();
    for at_one in events.chunk_by(|a, b| a.0 == b.0) {
        for (_, begins, rank) in at_one {
            match (open.binary_search_by_key(rank, |(rank, _)| *rank), begins) {
                (Ok(at), true) => open[at].1 += 1,
                (Err(at), true) => open.insert(at, (*rank, 1)),
                // Ends sort before beginnings, and each has begun at a lower address.
                (Ok(at), false) if open[at].1 > 1 => open[at].1 -= 1,
                (Ok(at), false) => drop(open.remove(at)),
                // A border.
                (Err(_), false) => {}
            }
        }
        let ranks: Vec<u32> = open.iter().map(|(rank, _)| *rank).collect();
        pieces.push((at_one[0].0, intern(signatures, &ranks)));
    }
    pieces
}

pub(crate) fn intern(signatures: &mut HashMap<Box<[u32]>, u32, RandomState>, signature: &[u32]) -> u32 {
    if let Some(class) = signatures.get(signature) {
        return *class;
    }
    let class = u32::try_from(signatures.len()).unwrap_or(u32::MAX);
    signatures.insert(signature.into(), class);
    class
}

pub(crate) fn in_order(signatures: HashMap<Box<[u32]>, u32, RandomState>) -> Vec<Box<[u32]>> {
    let mut entries: Vec<(Box<[u32]>, u32)> = signatures.into_iter().collect();
    entries.sort_unstable_by_key(|(_, class)| *class);
    entries.into_iter().map(|(signature, _)| signature).collect()
}

/// Whether an address of the common space is IPv4.
#[inline]
pub(crate) fn is_v4(address: u128) -> bool {
    address >> 32 == V4_MAPPED >> 32
}

/// The IPv4 address within its mapped form.
#[inline]
fn low_half(address: u128) -> u32 {
    (address & u128::from(u32::MAX)) as u32
}
