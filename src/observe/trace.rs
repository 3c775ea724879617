//! `trace`: what would become of a packet, stage by stage, and why.
//!
//! The packet is made up ([`super::synthetic`]), the stages are the packet path's own ([`crate::datapath`]), run with a
//! recorder that lets them change nothing. What they tell is put into words here: which policies select a port, which rule
//! decided (object, file and line), which rule came nearest to another verdict. Nothing here decides anything.

use std::time::Duration;

use hostweave_nat::Nat;
use hostweave_policy::explain::{Explanation, Miss, explain};
use hostweave_policy::infrastructure::BuiltIn;
use hostweave_policy::model::{Direction, World};
use hostweave_policy::table::{Basis, Decision, Flow, PolicyInfo, RuleInfo, Table};
use hostweave_switch::MacAddr;
use hostweave_switch::connection::{Connections, Entry, Found, FreeRecords};
use hostweave_switch::flow::{FlowCache, FlowKey, NO_QUEUE};
use hostweave_switch::packet::{Burst, Meta, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Network, Owned, Port, PortId, PortKind, Tables, Uplink, mapped};
use serde::{Deserialize, Serialize};

use super::balanced;
use super::recorder::{Detail, Recorder};
use super::synthetic::{self, Protocol, Tuple};
use super::time;
use crate::connect::Flows;
use crate::datapath::{self, Context, Lookup};
use crate::fabric::plane::Plane;

/// Who knows why backends of Services are not chosen.
pub trait Unchosen {
    /// Of an L4 port of a Service those of a family that take no connections, and why; at most a few.
    fn unchosen(&self, service: &str, port_name: &str, ipv4: bool) -> Vec<String>;
}

/// What the stages work with: the live tables, or those of a draft, and the live connections.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// Tables and compiled policies.
    pub plane: &'a Plane,
    /// What the policies were compiled from.
    pub world: &'a World,
    /// Connections of all workers.
    pub connections: &'a Connections,
    /// NAT mappings of all workers.
    pub nat: &'a Nat,
    /// Seconds of the monotonic clock.
    pub now: u32,
    /// Why backends are not chosen, if anybody knows.
    pub unchosen: Option<&'a dyn Unchosen>,
}

/// The packet in question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The port that would send it.
    pub from: PortId,
    /// Addresses and ports.
    pub tuple: Tuple,
}

/// Why there is nothing to trace.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TraceError {
    /// The tables have no such port, or not its network.
    #[error("port {} is not in the tables", .0.0)]
    NoPort(PortId),
    /// IPv4 and IPv6, or a protocol that one of them does not have.
    #[error("there is no {} packet from {} to {}", .0.protocol, .0.src, .0.dst)]
    NoPacket(Tuple),
    /// The kernel refuses memory.
    #[error("no memory for an empty flow cache")]
    Memory,
}

/// What became of the packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The sender's network.
    pub network: String,
    /// The port that sends: `namespace/name`, or `gateway of NETWORK`.
    pub from: String,
    /// Who has the destination address, if anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Addresses and ports.
    pub tuple: Tuple,
    /// The stages that it met, in order.
    pub stages: Vec<Stage>,
    /// How it ended.
    pub verdict: Ended,
    /// Why it was dropped: a name of the closed list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// That reason in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// How a packet ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Ended {
    /// It goes to another port.
    Forwarded,
    /// The host answers it itself.
    Replied,
    /// It goes no further.
    Dropped,
}

/// One stage's say.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Name, as the packet path has it.
    pub stage: String,
    /// One word: what it decided.
    pub result: String,
    /// What about.
    pub detail: String,
    /// Why, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// The policy that decided, or whose rule came nearest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Where that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// All policies that select the port in this direction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selecting: Vec<String>,
}

impl Trace {
    /// Whether the packet arrives, or is answered.
    pub fn allowed(&self) -> bool {
        self.verdict != Ended::Dropped
    }

    /// A line for each stage, for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (number, stage) in (1..).zip(&self.stages) {
            let line = format!("{number:2} {:9} {:8} {}", stage.stage, stage.result, stage.detail);
            text += line.trim_end();
            text.push('\n');
            for line in &stage.lines {
                text += &format!("{:22}{line}\n", "");
            }
        }
        let reason = self.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let word = match self.verdict {
            Ended::Forwarded => "FORWARDED",
            Ended::Replied => "REPLIED",
            Ended::Dropped => "DROPPED",
        };
        let verdict = format!(" verdict {word}{reason}");
        text + &format!("{verdict:78}exit {}\n", i32::from(!self.allowed()))
    }
}

/// Runs the stages on a packet.
///
/// # Errors
/// There is no such port or packet.
pub fn run(scene: &Scene<'_>, request: &Request) -> Result<Trace, TraceError> {
    let tables = &scene.plane.tables;
    let port = tables.port(request.from).ok_or(TraceError::NoPort(request.from))?;
    let network = tables.network(port.network).ok_or(TraceError::NoPort(request.from))?;
    let mut log = Log::default();
    let verdict = walk(scene, request, &mut log)?;
    let narrator = Narrator { scene, tables, network, port, tuple: &request.tuple };
    Ok(narrator.trace(&log.0, verdict))
}

/// Runs the stages on a packet and puts nothing into words: how it ends.
///
/// # Errors
/// There is no such port or packet.
pub fn walk<R: Recorder>(scene: &Scene<'_>, request: &Request, record: &mut R) -> Result<Verdict, TraceError> {
    let tables = &scene.plane.tables;
    let port = tables.port(request.from).ok_or(TraceError::NoPort(request.from))?;
    let network = tables.network(port.network).ok_or(TraceError::NoPort(request.from))?;
    // At the uplink it is a neighbour that sends, by this host.
    let (mac, router) = match tables.uplink.as_deref() {
        Some(uplink) if port.kind == PortKind::Uplink => (neighbor(uplink), port.mac),
        _ => (port.mac, MacAddr::ROUTER),
    };
    let frame = synthetic::frame(mac, router, &request.tuple).ok_or(TraceError::NoPacket(request.tuple))?;
    let mut cache = FlowCache::new(1).map_err(|_| TraceError::Memory)?;
    let ctx = Context::new(scene.plane, port, network, NO_QUEUE, scene.now);
    let meta = Meta { in_port: port.id, ..Meta::default() };
    Ok(Burst::new().with_frame(meta, &frame, frame.len(), |packet, arena| {
        stages(&ctx, scene.connections, scene.nat, &mut cache, packet, arena, record)
    }))
}

/// Who hands packets from outside to this host: one of its routers, or somebody else where none has told its link address.
fn neighbor(uplink: &Uplink) -> MacAddr {
    const NOBODY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    uplink.v4.iter().chain(&uplink.v6).find_map(|gateway| gateway.mac).unwrap_or(NOBODY)
}

/// The pipeline as a worker has it, for one packet.
pub fn stages<R: Recorder>(
    ctx: &Context<'_>,
    connections: &Connections,
    nat: &Nat,
    cache: &mut FlowCache,
    packet: &mut Packet,
    arena: &mut [Segment],
    record: &mut R,
) -> Verdict {
    let verdict = datapath::classify(ctx, packet, arena, &mut None, record);
    if verdict != Verdict::Continue {
        return verdict;
    }
    let Some(key) = FlowKey::of(packet, ctx.port.id.0 as u16) else {
        return Verdict::Drop(DropReason::NeighborNoAnswer);
    };
    let lookup = Lookup::new(connections.keys(), key, ctx.network.vni);
    let mut free = FreeRecords::new();
    let mut flows = Flows { cache, connections, nat, free: &mut free, denied: None, opened: None };
    datapath::forward(ctx, &mut flows, &lookup, packet, arena, record)
}

/// What the stages told.
#[derive(Default)]
struct Log(Vec<(&'static str, Detail)>);

impl Recorder for Log {
    const MASKED: bool = true;

    fn stage(&mut self, name: &'static str, detail: Detail) {
        self.0.push((name, detail));
    }
}

/// Puts into words what the stages told.
pub struct Narrator<'a> {
    /// What they worked with.
    pub scene: &'a Scene<'a>,
    /// Its tables.
    pub tables: &'a Tables,
    /// The sender's network.
    pub network: &'a Network,
    /// The sender.
    pub port: &'a Port,
    /// The packet.
    pub tuple: &'a Tuple,
}

impl Narrator<'_> {
    /// The whole story.
    pub fn trace(&self, log: &[(&'static str, Detail)], verdict: Verdict) -> Trace {
        let mut stages: Vec<Stage> = log.iter().filter_map(|(name, detail)| self.stage(name, *detail)).collect();
        if let Verdict::Drop(reason) = verdict {
            let told = stages.last().is_some_and(|last| matches!(last.result.as_str(), "DROP" | "DENIED"));
            if !told {
                stages.push(dropped(stage_of(reason, stages.last().map(|last| last.stage.as_str())), reason));
            }
        }
        // What `dnat` ends, `route` has no way for: that is one reason.
        stages
            .dedup_by(|later, first| later.result == "DROP" && first.result == "DROP" && later.detail == first.detail);
        let owner = self.owner();
        let (ended, reason) = match verdict {
            Verdict::Forward => (Ended::Forwarded, None),
            Verdict::Reply => (Ended::Replied, None),
            Verdict::Drop(reason) => (Ended::Dropped, Some(reason)),
            // Nothing made up is a fragment, and `stages` always comes to an end.
            Verdict::Continue | Verdict::Queued => (Ended::Dropped, Some(DropReason::Internal)),
        };
        Trace {
            network: self.network.name.clone(),
            from: self.name(self.port.id),
            to: owner.map(|id| self.name(id)),
            tuple: *self.tuple,
            stages,
            verdict: ended,
            reason: reason.map(|reason| reason.name().to_owned()),
            help: reason.map(|reason| reason.help().trim().to_owned()),
        }
    }

    /// One stage; `None` for what a person need not know.
    fn stage(&self, name: &'static str, detail: Detail) -> Option<Stage> {
        match (name, detail) {
            (_, Detail::Verdict(Verdict::Drop(reason))) => Some(dropped(name, reason)),
            ("guard", Detail::Verdict(_)) => Some(stage(name, "ok", self.packet())),
            ("local", Detail::Verdict(Verdict::Reply)) => Some(stage(name, "REPLY", self.answered())),
            ("conn", Detail::Miss) => Some(stage(name, "new", "no connection with these addresses and ports")),
            ("conn", Detail::Connection(found) | Detail::Related(found)) => Some(self.known(found)),
            (_, Detail::BuiltIn(rule)) => Some(self.builtin(rule)),
            (_, Detail::Policy(flow, decision)) => Some(self.policy(name, &flow, decision)),
            ("route", Detail::Port(id)) => Some(stage(name, self.how_far(id), self.leads_to(id))),
            ("dnat", Detail::Destination(address, l4)) => {
                Some(stage(name, "changed", format!("{} becomes {}", self.tuple.destination(), self.end(address, l4))))
            }
            ("dnat", Detail::Service(given)) => Some(balanced::stage(self.scene, self.tuple, &given)),
            ("snat", Detail::Source(outside)) => Some(self.leaves_as(outside)),
            ("commit", Detail::Masked) => Some(stage(name, "ok", "here the connection would begin")),
            _ => None,
        }
    }

    /// `shop/cache-0  10.64.0.12:49152 -> shop/db-0 10.64.0.31:5432 tcp`.
    fn packet(&self) -> String {
        let (tuple, owner) = (self.tuple, self.owner());
        let to = owner.map(|id| format!("{} ", self.name(id))).unwrap_or_default();
        let (from, source, destination) = (self.name(self.port.id), tuple.source(), tuple.destination());
        format!("{from}  {source} -> {to}{destination} {}", tuple.protocol)
    }

    /// Who has the destination address.
    fn owner(&self) -> Option<PortId> {
        let key = AddressKey::new(self.port.network, self.tuple.dst);
        let attached = || match self.tables.uplink.as_deref()?.owned.get(&key.address)? {
            Owned::Attached { port, .. } => Some(*port),
            Owned::Host | Owned::Nat | Owned::Service => None,
        };
        self.tables.owner(key).or_else(attached)
    }

    /// Which of the host's own services it is.
    fn answered(&self) -> String {
        let gateway = match self.port.kind {
            PortKind::Uplink => "this host at its uplink".to_owned(),
            _ => format!("the gateway of network {}", self.network.name),
        };
        match self.tuple.protocol {
            Protocol::Arp => format!("ARP: {gateway} answers with the router's MAC address"),
            Protocol::Nd => format!("neighbour discovery: {gateway} answers with the router's MAC address"),
            Protocol::Rs => format!("router discovery: {gateway} answers with a router advertisement"),
            Protocol::Icmp => balanced::echo(&self.scene.plane.services, &gateway, self.network.vni, self.tuple),
            _ if self.tuple.dst.is_ipv4() => format!("DHCP: {gateway} answers"),
            _ => format!("DHCPv6: {gateway} answers"),
        }
    }

    /// `shop/web-0`, `gateway of default`.
    fn name(&self, id: PortId) -> String {
        port_name(self.tables, id)
    }

    /// `uplink` for what leaves the host, `network` for what another network gets.
    fn how_far(&self, id: PortId) -> &'static str {
        match self.tables.port(id) {
            Some(port) if port.kind == PortKind::Uplink => "uplink",
            Some(port) if port.network != self.port.network => "network",
            _ => "local",
        }
    }

    /// An address with the L4 port or identifier that belongs to it.
    fn end(&self, address: u128, l4: u16) -> String {
        let end = Tuple { src: std::net::Ipv6Addr::from(address).to_canonical(), src_port: l4, ..*self.tuple };
        end.source()
    }

    fn leaves_as(&self, outside: Option<(u128, u16)>) -> Stage {
        let from = self.tuple.source();
        match outside {
            Some((address, l4)) => {
                let mut stage = stage("snat", "changed", format!("{from} leaves as {}", self.end(address, l4)));
                stage.lines.extend(self.pool_of(address));
                stage
            }
            None => {
                let mut stage = stage("snat", "pool", format!("{from} would get an address and L4 port of a NAT pool"));
                stage.lines.push("nothing is taken for a trace; the first real packet settles which".to_owned());
                stage
            }
        }
    }

    fn pool_of(&self, address: u128) -> Option<String> {
        let pool = self.scene.plane.pools.pool_of(address)?;
        Some(format!("an address of NatPool {pool}"))
    }

    fn leads_to(&self, id: PortId) -> String {
        match self.tables.port(id) {
            Some(port) if port.kind == PortKind::Uplink => self.out(),
            Some(port) if port.kind == PortKind::Internal => format!("the {}", self.name(id)),
            _ => format!("port {}", self.name(id)),
        }
    }

    /// The way out of the host, for the packet's family.
    fn out(&self) -> String {
        let Some(uplink) = self.tables.uplink.as_deref() else { return "the uplink".to_owned() };
        let gateways = if self.tuple.dst.is_ipv4() { &uplink.v4 } else { &uplink.v6 };
        let names: Vec<String> = gateways.iter().map(|gateway| gateway.address.to_string()).collect();
        let by = match names.as_slice() {
            [] => "which has no gateway of this family".to_owned(),
            names => format!("by {}", names.join(" or ")),
        };
        let dst = self.tuple.dst;
        match uplink.on_link.mac_of(mapped(dst)) {
            Some(mac) => format!("the uplink, to {dst} itself, which is at {mac}"),
            None if uplink.on_link.has(mapped(dst)) => format!("the uplink, {by} until {dst} itself has answered"),
            None => format!("the uplink, {by}"),
        }
    }

    fn known(&self, found: Found) -> Stage {
        let Some(entry) = self.scene.connections.entry(found.index, found.generation) else {
            return stage("conn", "known", "a connection that has just ended");
        };
        let age = Duration::from_secs(u64::from(self.scene.now.saturating_sub(entry.created)));
        let answer = if found.direction == 1 { "answer in an " } else { "" };
        let by = self.name(PortId(entry.in_port));
        let mut stage =
            stage("conn", "known", format!("{answer}established connection, begun by {by} {} ago", time::short(age)));
        stage.lines = self.allowed_by(&entry);
        stage.lines.extend(self.translated(&entry, found));
        stage
    }

    /// What packets of this direction become on their way.
    fn translated(&self, entry: &Entry, found: Found) -> Option<String> {
        let translation = entry.translation?;
        let (here, there) = match found.direction {
            0 => (entry.key, translation.reply.reversed()),
            _ => (translation.reply, entry.key.reversed()),
        };
        if here.unscoped() == there.unscoped() {
            return None;
        }
        let end = |key: &FlowKey, source: bool| {
            let end = if source { (key.src(), key.src_port()) } else { (key.dst(), key.dst_port()) };
            let tuple = Tuple { src: std::net::Ipv6Addr::from(end.0).to_canonical(), src_port: end.1, ..*self.tuple };
            tuple.source()
        };
        Some(format!("translated: goes on from {} to {}", end(&there, true), end(&there, false)))
    }

    fn allowed_by(&self, entry: &Entry) -> Vec<String> {
        let table = &self.scene.plane.policy;
        let line = |direction: &str, bits| format!("{direction} allowed: {}", basis_text(table, bits));
        vec![line("egress", entry.basis[0]), line("ingress", entry.basis[1])]
    }

    /// Both directions at once: nobody is asked about the host's own services.
    fn builtin(&self, rule: BuiltIn) -> Stage {
        let name = if self.port.kind == PortKind::Internal { "ingress" } else { "egress" };
        let what = match rule {
            BuiltIn::Dns => "DNS to the gateway",
            BuiltIn::Metadata => "metadata from the gateway",
            BuiltIn::HealthProbes => "anything from the gateway",
        };
        let mut stage = stage(name, "ALLOWED", rule.name());
        stage.lines = vec![format!("{what} passes whatever policies say")];
        stage.policy = Some(rule.name().to_owned());
        stage
    }

    fn policy(&self, name: &'static str, flow: &Flow, decision: Decision) -> Stage {
        let explanation = explain(self.scene.world, &self.scene.plane.policy, flow);
        let mut stage = stage(name, if decision.allowed { "ALLOWED" } else { "DENIED" }, "");
        stage.selecting = explanation.selecting.iter().map(|policy| policy.name.to_string()).collect();
        self.reason(&mut stage, &explanation);
        if let Some(audit) = &explanation.audit {
            stage.lines.push(format!("audit: {} would deny it  {}", audit.policy, audit.origin));
        }
        stage
    }

    /// Fills in what decided, and the sentences that explain it.
    fn reason(&self, stage: &mut Stage, explanation: &Explanation) {
        let isolating: Vec<&PolicyInfo> =
            explanation.selecting.iter().filter(|policy| policy.isolates()).map(|policy| &**policy).collect();
        match (&explanation.rule, &explanation.miss) {
            (Some(rule), miss) => {
                decided(stage, &rule.policy.to_string(), &rule.origin);
                stage.lines.push(explanation.sentence.clone());
                stage.lines.extend(miss.as_ref().map(nearest));
            }
            (None, Some(miss)) if explanation.decision.basis == Basis::HostDefault => {
                stage.detail.clone_from(&explanation.sentence);
                stage.lines.push(nearest(miss));
            }
            (None, Some(miss)) => {
                decided(stage, &miss.policy.to_string(), &miss.origin);
                stage.lines.push(explanation.sentence.clone());
                stage.lines.push(default_deny(&isolating));
            }
            (None, None) if explanation.decision.basis == Basis::NoRule => {
                if let Some(policy) = isolating.first() {
                    decided(stage, &policy.name.to_string(), &policy.origin);
                }
                stage.lines.push(default_deny(&isolating));
            }
            (None, None) => stage.detail.clone_from(&explanation.sentence),
        }
        let named = stage.policy.as_slice();
        let others: Vec<&str> =
            stage.selecting.iter().filter(|name| !named.contains(name)).map(String::as_str).collect();
        if !others.is_empty() && explanation.decision.basis != Basis::NoRule {
            stage.lines.push(format!("also selected by: {}", others.join(", ")));
        }
    }
}

/// `shop/web-0`, `gateway of default`.
pub fn port_name(tables: &Tables, id: PortId) -> String {
    match tables.port(id) {
        Some(port) if port.kind == PortKind::Internal => match tables.network(port.network) {
            Some(network) => format!("gateway of {}", network.name),
            None => port.name.clone(),
        },
        Some(port) => port.name.clone(),
        None => "a port that is gone".to_owned(),
    }
}

/// What a record says allowed it, in words.
pub fn basis_text(table: &Table, bits: u32) -> String {
    match Basis::from_u32(bits) {
        Some(Basis::Rule(id)) => match table.rule(id) {
            Some(rule) => rule_text(rule),
            None => "by a rule that is no longer there".to_owned(),
        },
        Some(Basis::NotSelected) => "no policy had a say".to_owned(),
        Some(Basis::Myself) => "a port cannot be blocked from itself".to_owned(),
        Some(Basis::BuiltIn(rule)) => rule.name().to_owned(),
        Some(Basis::Host) => "the host's own side, which no policy selects".to_owned(),
        Some(Basis::HostDefault) => "default policy deny".to_owned(),
        Some(Basis::NoRule) => "isolated, and no rule matches".to_owned(),
        Some(Basis::NotCompiled) | None => "not decided yet".to_owned(),
    }
}

/// `rule 1 of shop/db-only-from-web  conf.d/20-shop.yaml:9`.
pub fn rule_text(rule: &RuleInfo) -> String {
    let name = rule.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    match rule.index {
        Some(index) => format!("rule {}{name} of {}  {}", index + 1, rule.policy, rule.origin),
        None => format!("isolation by {}  {}", rule.policy, rule.origin),
    }
}

/// What a decision rests on, for lists: as [`basis_text`], with the isolating policies named.
pub fn denied_text(table: &Table, subject: PortId, direction: Direction, decision: Decision) -> String {
    match decision.basis {
        Basis::NoRule => default_deny_text(table, subject, direction),
        basis => basis_text(table, basis.to_u32()),
    }
}

/// `default deny: selected by shop/db-only`.
pub fn default_deny_text(table: &Table, subject: PortId, direction: Direction) -> String {
    let isolating: Vec<&PolicyInfo> = table.isolating(subject, direction).map(|policy| &**policy).collect();
    default_deny(&isolating)
}

fn decided(stage: &mut Stage, policy: &str, origin: &str) {
    stage.detail = format!("{policy}  {origin}");
    stage.policy = Some(policy.to_owned());
    stage.origin = Some(origin.to_owned());
}

/// `nearest: web-out accepts all but port 8080 (it has tcp 80)  20-shop.yaml:9`.
fn nearest(miss: &Miss) -> String {
    format!("nearest of {}: {}  {}", miss.policy, miss.sentence, miss.origin)
}

fn default_deny(isolating: &[&PolicyInfo]) -> String {
    let names: Vec<String> = isolating.iter().map(|policy| policy.name.to_string()).collect();
    format!("default deny: selected by {}", names.join(", "))
}

fn stage(name: &str, result: &str, detail: impl Into<String>) -> Stage {
    Stage { stage: name.to_owned(), result: result.to_owned(), detail: detail.into(), ..Stage::default() }
}

fn dropped(name: &str, reason: DropReason) -> Stage {
    let mut stage = stage(name, "DROP", reason.name());
    stage.lines = vec![reason.help().trim().to_owned()];
    stage
}

/// The stage that ended a packet without saying so itself.
fn stage_of(reason: DropReason, last: Option<&str>) -> &'static str {
    match (reason, last) {
        (_, None) => "rx",
        (DropReason::NoConnection | DropReason::ServiceEnded, _) => "conn",
        (DropReason::PolicyPending, _) => "egress",
        (DropReason::NatTupleTaken, _) => "commit",
        (DropReason::SourceNotOwned, _) => "rewrite",
        (DropReason::IcmpUnrelated, _) => "conn",
        _ => "route",
    }
}

/// An L4 source port that no connection of this tuple uses, from 49152 on (RFC 6335 §6): a trace asks about a new connection.
pub fn free_source_port(scene: &Scene<'_>, network: &Network, tuple: &Tuple) -> u16 {
    const FIRST: u16 = 49_152;
    const TRIED: u16 = 1_024;
    let free = |src_port: &u16| is_free(scene, network, &Tuple { src_port: *src_port, ..*tuple });
    (FIRST..FIRST + TRIED).find(free).unwrap_or(FIRST)
}

/// Whether no connection has this tuple.
pub fn is_free(scene: &Scene<'_>, network: &Network, tuple: &Tuple) -> bool {
    let Some(key) = key(tuple) else { return true };
    let hash = scene.connections.keys().hash(&key, network.vni);
    scene.connections.find(&key, hash, network.vni).is_none()
}

/// The key that a packet of this tuple has, without scope. `None` for those that belong to no connection.
pub fn key(tuple: &Tuple) -> Option<FlowKey> {
    use hostweave_switch::flow::Kind;
    let (src_port, dst_port, kind) = match tuple.protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => (tuple.src_port, tuple.dst_port, Kind::Ports),
        Protocol::Icmp => {
            use hostweave_switch::wire::{icmpv4, icmpv6};
            let request = if tuple.dst.is_ipv4() { icmpv4::kind::ECHO_REQUEST } else { icmpv6::kind::ECHO_REQUEST };
            hostweave_switch::flow::query(tuple.proto(), tuple.src_port, request)
        }
        Protocol::Other(_) => (0, 0, Kind::Addresses),
        Protocol::Arp | Protocol::Nd | Protocol::Rs => return None,
    };
    Some(FlowKey::new(mapped(tuple.src), mapped(tuple.dst), src_port, dst_port, tuple.proto(), kind))
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
