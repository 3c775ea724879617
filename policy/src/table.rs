//! The compiled policies: may this new connection pass, by which rule?
//!
//! Theory of operation, in the order that a new connection meets it. (1) The port that policy protects (the subject) has an
//! identity, and the identity one tier of each kind, or none: Admin, NetworkPolicy v1, Baseline (SEMANTICS CN1). (2) Each tier
//! says which of its rules matches first, looked up by the peer's identity and address, protocol and L4 port (`crate::tier`).
//! (3) The tiers' answers are put together in [`Table::decide`]. Nothing here allocates or loops over policies, rules, ports.

use std::sync::Arc;

use hostweave_switch::tables::{NetworkId, PortId};

use crate::class::{Declared, Query};
use crate::infrastructure::BuiltIn;
use crate::model::{Action, Direction, Infrastructure, PolicyName, Protocol, Tier as TierName};
use crate::resolve::direction_index;
use crate::tier::{NO_TIER, Tier};

/// Compiled policies. Immutable; shared by the workers.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// By [`PortId`].
    pub(crate) ports: Arc<Vec<PortEntry>>,
    /// By identity.
    pub(crate) subjects: Arc<Vec<Subject>>,
    pub(crate) tiers: Arc<Vec<Option<Arc<Tier>>>>,
    /// Lists of named ports.
    pub(crate) declared: Arc<Vec<Arc<[Declared]>>>,
    /// Sorted by their first rule number.
    pub(crate) policies: Arc<Vec<Arc<PolicyInfo>>>,
    pub(crate) infrastructure: Infrastructure,
    pub(crate) stats: Stats,
}

/// A new connection as policy sees it: after Service DNAT and before SNAT (SEMANTICS NP19).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Seen from `subject`.
    pub direction: Direction,
    /// The port whose policy is asked.
    pub subject: PortId,
    /// The other side, if (network, address) is that of a port (SEMANTICS SV26).
    pub peer: Option<PortId>,
    /// Its address; IPv4 is mapped into IPv6.
    pub peer_address: u128,
    /// IP protocol number.
    pub proto: u8,
    /// `None`: the protocol has no L4 ports (ICMP, others), or it is unknown. Then only rules without `ports` match (SEMANTICS
    /// NP25, CT10).
    pub dst_port: Option<u16>,
}

/// What policy says about a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether it passes.
    pub allowed: bool,
    /// Why.
    pub basis: Basis,
    /// What a policy in audit mode would have denied it with: a `Deny` rule, or its isolation ([`RuleInfo::index`] is `None`).
    /// Only where `allowed`.
    pub audit: Option<RuleId>,
}

/// What a decision rests on. Packed into connection records by [`Basis::to_u32`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Basis {
    /// Allowed: no policy has a say.
    NotSelected,
    /// Denied: no policy has a say, and the default is deny (SEMANTICS NP35).
    HostDefault,
    /// Allowed by a rule of a NetworkPolicy, or accepted or denied by one of a ClusterNetworkPolicy.
    Rule(RuleId),
    /// Denied: isolated, and no rule matches ([`Table::isolating`] says by what).
    NoRule,
    /// Denied: the subject's policy is not compiled yet (SEMANTICS NP30).
    NotCompiled,
    /// Allowed: a port cannot be blocked from itself (SEMANTICS NP24).
    Myself,
    /// Allowed by a built-in rule for the host's own services (SEMANTICS NP28, NP34). Said by the caller of
    /// [`Infrastructure::builtin`], never by [`Table::decide`].
    BuiltIn(BuiltIn),
    /// Allowed: the side is the host's own, which no policy selects (SEMANTICS NP29). Said by the caller, too.
    Host,
}

/// Number of a rule. It stays as long as the policy object stays as it is; a changed object gets numbers that none had before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RuleId(pub u32);

/// What people want to know about a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleInfo {
    /// The object that it is in.
    pub policy: Arc<PolicyName>,
    /// `None` for a NetworkPolicy v1.
    pub tier: Option<TierName>,
    /// Seen from the ports that the policy selects.
    pub direction: Direction,
    /// Place in the list of rules of its direction, from 0; `None` stands for the isolation by a NetworkPolicy itself.
    pub index: Option<usize>,
    /// Its own name, if it has one.
    pub name: Option<String>,
    /// Where it was written (`conf.d/20-shop.yaml:9`).
    pub origin: String,
    /// What it does: NetworkPolicy rules accept, their isolation denies; `Deny` for a `Pass` that cannot be understood
    /// (SEMANTICS CN9).
    pub action: Action,
    /// Whether its policy is in audit mode.
    pub audit: bool,
}

/// What people want to know about a policy.
#[derive(Debug)]
pub struct PolicyInfo {
    /// Namespace and name.
    pub name: Arc<PolicyName>,
    /// Where it was written.
    pub origin: String,
    /// `None` for a NetworkPolicy v1.
    pub tier: Option<TierName>,
    /// Whether would-be denials are only reported.
    pub audit: bool,
    pub(crate) first: RuleId,
    pub(crate) rules: Box<[RuleInfo]>,
}

/// Sizes, for status and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Ports known.
    pub ports: usize,
    /// Distinct namespaces and labels among them.
    pub identities: usize,
    /// Policy objects.
    pub policies: usize,
    /// Rules in them.
    pub rules: usize,
    /// Compiled tiers, each shared by all ports that the same policies select.
    pub tables: usize,
    /// Memory of what the packet path reads, in octets, nearly.
    pub bytes: usize,
}

/// What the packet path knows of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PortEntry {
    /// [`PortEntry::UNKNOWN`] where there is no such port.
    pub identity: u32,
    pub declared: u32,
    pub network: NetworkId,
}

impl PortEntry {
    pub(crate) const UNKNOWN: PortEntry =
        PortEntry { identity: u32::MAX, declared: u32::MAX, network: NetworkId(u16::MAX) };
}

/// What the packet path knows of an identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Subject {
    /// By direction and tier.
    pub tiers: [[u32; 3]; 2],
    pub deny: bool,
}

impl Subject {
    pub(crate) const UNUSED: Subject = Subject { tiers: [[NO_TIER; 3]; 2], deny: true };

    /// Where no policy has a say (SEMANTICS NP35).
    #[inline]
    fn unselected(&self, audit: Option<RuleId>) -> Decision {
        if self.deny {
            return Decision::denied(Basis::HostDefault);
        }
        Decision { allowed: true, basis: Basis::NotSelected, audit }
    }
}

impl Table {
    /// Whether a new connection may pass, one direction: A to B needs egress of A and ingress of B (SEMANTICS NP20).
    #[inline]
    pub fn decide(&self, flow: &Flow) -> Decision {
        let Some(port) = self.port(flow.subject) else { return Decision::denied(Basis::NotCompiled) };
        if flow.peer == Some(flow.subject) {
            return Decision { allowed: true, basis: Basis::Myself, audit: None };
        }
        let Some(subject) = self.subjects.get(port.identity as usize) else {
            return Decision::denied(Basis::NotCompiled);
        };
        let tiers = &subject.tiers[direction_index(flow.direction)];
        if tiers.iter().all(|tier| *tier == NO_TIER) {
            return subject.unselected(None);
        }
        self.ask(port, subject, tiers, flow)
    }

    /// Asks the tiers of a port that some policy selects.
    fn ask(&self, port: &PortEntry, subject: &Subject, tiers: &[u32; 3], flow: &Flow) -> Decision {
        // An address of another network is an address and no port, whoever has it here (SEMANTICS SV26).
        let peer = flow.peer.and_then(|peer| self.port(peer)).filter(|peer| peer.network == port.network);
        let destination = if flow.direction == Direction::Ingress { Some(port) } else { peer };
        let l4 = Protocol::from_number(flow.proto).zip(flow.dst_port);
        let query = Query::new(l4, &self.declared, destination.map(|port| port.declared));
        let peer = peer.map(|peer| peer.identity);
        let [admin, v1, baseline] = *tiers;

        let mut audit = None;
        if let Some(tier) = self.tier(admin)
            && let Some(decision) = cluster(tier, &query, peer, flow.peer_address, &mut audit)
        {
            return decision;
        }
        if let Some(tier) = self.tier(v1) {
            // Policies are additive, and the order of rules never matters (SEMANTICS NP1).
            if let Some((id, _)) = tier.rule(tier.any_rule(&query, peer, flow.peer_address)) {
                return Decision { allowed: true, basis: Basis::Rule(id), audit };
            }
            // Baseline is not reached where a NetworkPolicy selects (SEMANTICS CN5).
            if tier.enforced {
                return Decision::denied(Basis::NoRule);
            }
            // In audit mode it opens nothing either: what would happen without it happens.
            audit = audit.or(tier.audited);
        }
        if let Some(tier) = self.tier(baseline)
            && let Some(decision) = cluster(tier, &query, peer, flow.peer_address, &mut audit)
        {
            return decision;
        }
        // Nothing matched anywhere (SEMANTICS CN6).
        subject.unselected(audit)
    }

    #[inline]
    fn tier(&self, id: u32) -> Option<&Tier> {
        self.tiers.get(id as usize)?.as_deref()
    }

    /// Which built-in rules are on.
    pub fn infrastructure(&self) -> Infrastructure {
        self.infrastructure
    }

    /// What a rule number stands for; `None` if its policy has changed or gone.
    pub fn rule(&self, id: RuleId) -> Option<&RuleInfo> {
        let after = self.policies.partition_point(|policy| policy.first <= id);
        let policy = self.policies.get(after.checked_sub(1)?)?;
        policy.rules.get((id.0 - policy.first.0) as usize)
    }

    /// Every policy, in the order of their rule numbers.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<PolicyInfo>> {
        self.policies.iter()
    }

    /// Number of a port's identity: ports of one namespace with the same labels share it. `None` until its policy is compiled (SEMANTICS NP30).
    pub fn identity(&self, port: PortId) -> Option<u32> {
        self.port(port).map(|port| port.identity)
    }

    /// The policies that have a say about a port's traffic of a direction, as they are asked: Admin, v1, Baseline.
    pub fn selecting(&self, subject: PortId, direction: Direction) -> impl Iterator<Item = &Arc<PolicyInfo>> {
        let subject = self.port(subject).and_then(|port| self.subjects.get(port.identity as usize));
        let tiers = subject.map_or([NO_TIER; 3], |subject| subject.tiers[direction_index(direction)]);
        tiers
            .into_iter()
            .filter_map(|tier| self.tiers.get(tier as usize)?.as_ref())
            .flat_map(|tier| tier.policies.iter())
    }

    /// Those of them that isolate it (SEMANTICS NP2).
    pub fn isolating(&self, subject: PortId, direction: Direction) -> impl Iterator<Item = &Arc<PolicyInfo>> {
        self.selecting(subject, direction).filter(|policy| policy.isolates())
    }

    /// Sizes.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    #[inline]
    fn port(&self, port: PortId) -> Option<&PortEntry> {
        self.ports.get(port.0 as usize).filter(|entry| entry.identity != PortEntry::UNKNOWN.identity)
    }
}

/// What a tier of ClusterNetworkPolicies decides; `None` when the next tier is to be asked (SEMANTICS CN4).
#[inline(never)]
fn cluster(
    tier: &Tier,
    query: &Query<'_>,
    peer: Option<u32>,
    address: u128,
    audit: &mut Option<RuleId>,
) -> Option<Decision> {
    let found = tier.get(query, peer, address);
    // A would-be denial that an earlier rule in force makes moot is none.
    if found.audit < found.rule {
        *audit = audit.or(tier.rule(found.audit).map(|(id, _)| id));
    }
    let (id, action) = tier.rule(found.rule)?;
    match action {
        Action::Accept => Some(Decision { allowed: true, basis: Basis::Rule(id), audit: *audit }),
        Action::Deny => Some(Decision::denied(Basis::Rule(id))),
        Action::Pass => None,
    }
}

impl Decision {
    const fn denied(basis: Basis) -> Self {
        Self { allowed: false, basis, audit: None }
    }
}

impl Basis {
    pub(crate) const RULES: u32 = 16;

    /// For records with 32 bits of space.
    pub const fn to_u32(self) -> u32 {
        match self {
            Basis::NotSelected => 0,
            Basis::HostDefault => 1,
            Basis::NoRule => 2,
            Basis::NotCompiled => 3,
            Basis::Myself => 4,
            Basis::BuiltIn(BuiltIn::Dns) => 5,
            Basis::BuiltIn(BuiltIn::Metadata) => 6,
            Basis::BuiltIn(BuiltIn::HealthProbes) => 7,
            Basis::Host => 8,
            Basis::Rule(RuleId(id)) => id.saturating_add(Self::RULES),
        }
    }

    /// The reverse; `None` for numbers that it does not give (9 to 15 are free).
    pub const fn from_u32(bits: u32) -> Option<Self> {
        match bits {
            0 => Some(Basis::NotSelected),
            1 => Some(Basis::HostDefault),
            2 => Some(Basis::NoRule),
            3 => Some(Basis::NotCompiled),
            4 => Some(Basis::Myself),
            5 => Some(Basis::BuiltIn(BuiltIn::Dns)),
            6 => Some(Basis::BuiltIn(BuiltIn::Metadata)),
            7 => Some(Basis::BuiltIn(BuiltIn::HealthProbes)),
            8 => Some(Basis::Host),
            Self::RULES.. => Some(Basis::Rule(RuleId(bits - Self::RULES))),
            _ => None,
        }
    }
}

impl PolicyInfo {
    /// Whether it denies what none of its rules allows: a NetworkPolicy v1, unless it is in audit mode, when it only would.
    pub fn isolates(&self) -> bool {
        self.tier.is_none() && !self.audit
    }

    /// Its rules, for a NetworkPolicy after its isolation in each direction.
    pub fn rules(&self) -> &[RuleInfo] {
        &self.rules
    }
}

impl Protocol {
    /// From the IP protocol number.
    pub const fn from_number(proto: u8) -> Option<Self> {
        match proto {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn np30_an_empty_table_denies_everything() {
        let flow = Flow {
            direction: Direction::Ingress,
            subject: PortId(0),
            peer: Some(PortId(0)),
            peer_address: 0,
            proto: 6,
            dst_port: Some(80),
        };
        assert_eq!(Table::default().decide(&flow), Decision::denied(Basis::NotCompiled));
        assert_eq!(Table::default().identity(PortId::NONE), None);
    }

    #[test]
    fn basis_survives_packing() {
        let all = [Basis::NotSelected, Basis::HostDefault, Basis::NoRule, Basis::NotCompiled, Basis::Myself];
        let others = BuiltIn::ALL.map(Basis::BuiltIn).into_iter().chain([Basis::Host]);
        let rules = [0, 1, 77, u32::MAX - 16].map(|id| Basis::Rule(RuleId(id)));
        for basis in all.into_iter().chain(others).chain(rules) {
            assert_eq!(Basis::from_u32(basis.to_u32()), Some(basis));
        }
        assert_eq!(Basis::from_u32(9), None);
    }
}
