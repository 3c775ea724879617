//! Services at run time: which backends each has now, and what the packet path is told of it.
//!
//! # Theory of operation
//!
//! Control says which endpoints a Service has ([`ServiceSpec`]). The rest is found out here: whether a port runs, what its checks
//! say, whether somebody drained it ([`known`]). [`choice`] decides from both who takes connections, [`frontend`] puts that into
//! the form of the packet path.
//!
//! Every piece of news marks the Services that it concerns, and [`Balance::settle`] works these out again, and no others: with ten
//! thousand Services a backend that fails costs as much as with ten. One that comes and goes again and again is held out
//! ([`damping`]). Nothing here waits, sends or reads a clock; [`lifecycle`] does. What clients could not connect to is a matter of
//! [`outlier`] and [`ejection`].

pub mod choice;
pub mod damping;
pub mod ejection;
pub mod frontend;
pub mod history;
pub mod known;
pub mod left;
pub mod lifecycle;
pub mod outlier;
pub mod remembered;
pub mod report;
pub mod serving;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hostweave_nat::service::{Begun, FrontendSpec};
use hostweave_switch::tables::Network;
use uuid::Uuid;

use super::spec::{EndpointSpec, ServicePortSpec, ServiceSpec};
use super::wanted::differing;
use crate::services::health::Target;
use choice::BackendState;
use history::{CHANGES_MAX, Change, View};
use known::{Check, Drained, Facts};
use left::{Left, Was};
use outlier::Outliers;
use remembered::Remembered;
use serving::Serving;

/// A Service and what is known of it.
struct Held {
    name: Arc<str>,
    spec: Arc<ServiceSpec>,
    /// VNI of its network.
    vni: u32,
    /// By L4 port and endpoint, as in `spec`.
    checks: Vec<Vec<Check>>,
    /// Who is no endpoint any more.
    left: Arc<Left>,
    /// As it was when it was settled last; `None` before the first time.
    view: Option<View>,
    /// What the packet path was told last.
    frontends: Vec<FrontendSpec>,
    /// Where somebody takes connections; `None` while that is not known yet.
    serving: Option<Serving>,
    /// Whether every client finds somebody, healthy ones among them, and since when that is so.
    ready: (bool, SystemTime),
    /// Whom its name does not stand for.
    absent: BTreeSet<IpAddr>,
    /// The last ones, oldest first.
    changes: VecDeque<Change>,
    /// What clients saw of its backends.
    outliers: Outliers,
    /// Connections to it.
    begun: Begun,
    /// What the store has, or is about to have.
    stored: Option<Remembered>,
}

/// All Services.
#[derive(Default)]
pub struct Balance {
    /// As control said last.
    wanted: Vec<Arc<ServiceSpec>>,
    services: HashMap<Arc<str>, Held>,
    /// VNIs by the names of networks.
    networks: HashMap<String, u32>,
    facts: Facts,
    /// Services that something is new about.
    marked: HashSet<Arc<str>>,
    /// Services with backends that clients could not connect to lately.
    observed: HashSet<Arc<str>>,
    /// Second in which connections were looked through for them.
    looked: u32,
    /// Headless Services that are gone, whose names did not stand for all of their endpoints.
    present: Vec<Arc<str>>,
    /// Whether somebody had a place that nobody has any more.
    gone: bool,
    /// Targets that came and went since the last time somebody asked.
    started: HashSet<Arc<Target>>,
    unwanted: HashSet<Arc<Target>>,
    /// Of Services that are not there yet, from the run before.
    restored: BTreeMap<String, Remembered>,
    restored_at: Option<(u32, SystemTime)>,
    /// Of Services of which something else is to be remembered.
    to_store: Vec<(Arc<str>, Option<Remembered>)>,
}

/// What is different since the last time.
#[derive(Default)]
pub struct Settled {
    /// Frontends that are new or changed.
    pub frontends: Vec<FrontendSpec>,
    /// Whether others are gone: then [`Balance::frontends`] are all that there are.
    pub gone: bool,
    /// Backends that are to be checked from now on.
    pub start: Vec<Arc<Target>>,
    /// Those that are not any more.
    pub stop: Vec<Arc<Target>>,
    /// What people are told.
    pub news: Vec<News>,
    /// Headless Services whose names stand for others now, and for which of their endpoints they do not.
    pub absent: Vec<(Arc<str>, BTreeSet<IpAddr>)>,
}

/// Who was told of something. Each costs as much as there is: a new plane, or a new zone of the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// The packet path.
    pub packet_path: bool,
    /// DNS.
    pub names: bool,
}

impl Told {
    /// Whether anybody was: then the next news wait for a moment.
    pub fn anybody(self) -> bool {
        self.packet_path || self.names
    }
}

impl Settled {
    /// What came out a moment later.
    fn add(&mut self, later: Settled) {
        let Settled { frontends, gone, start, stop, news, absent } = later;
        let places: HashSet<(Arc<str>, Place)> =
            frontends.iter().map(|spec| (Arc::clone(&spec.service), place(spec))).collect();
        self.frontends.retain(|spec| !places.contains(&(Arc::clone(&spec.service), place(spec))));
        self.frontends.extend(frontends);
        self.gone |= gone;
        self.start.extend(start);
        self.stop.extend(stop);
        self.news.extend(news);
        self.absent.extend(absent);
    }

    /// Whether the packet path must be told.
    pub fn is_visible(&self) -> bool {
        !self.frontends.is_empty() || self.gone
    }

    /// Who must be told.
    pub fn told(&self) -> Told {
        Told { packet_path: self.is_visible(), names: !self.absent.is_empty() }
    }
}

/// Something that people are told.
#[derive(Clone, PartialEq, Debug)]
pub enum News {
    /// A backend is otherwise than before.
    Backend {
        /// `namespace/name` of the Service.
        service: Arc<str>,
        /// What became of whom.
        change: Change,
    },
    /// Somewhere nobody takes connections of a Service; or somebody does everywhere again.
    Serving {
        /// `namespace/name` of the Service.
        service: Arc<str>,
        /// Where somebody does.
        serving: Serving,
        /// Its endpoints, by how they are.
        counts: Vec<(BackendState, usize)>,
    },
}

impl Balance {
    /// Takes over what control wants. A Service whose network is not there is nowhere.
    pub fn update(&mut self, networks: &[Network], services: &[Arc<ServiceSpec>]) {
        let same = self.networks.len() == networks.len()
            && networks.iter().all(|network| self.networks.get(&network.name) == Some(&network.vni));
        if !same {
            self.networks = networks.iter().map(|network| (network.name.clone(), network.vni)).collect();
        }
        // Nearly always it is one, and all others are where they were.
        let all = (0..self.wanted.len(), 0..services.len());
        let (was, are) = if same { differing(&self.wanted, services) } else { all };
        let are = services.get(are).unwrap_or_default();
        let was: Vec<_> = self.wanted.splice(was, are.iter().cloned()).collect();
        let names: HashSet<&str> = are.iter().map(|spec| spec.name.as_str()).collect();
        for spec in was.iter().filter(|spec| !names.contains(spec.name.as_str())) {
            self.remove(&spec.name);
        }
        for spec in are {
            self.update_one(spec);
        }
        // Those of the run before that are not there are gone.
        self.to_store.extend(std::mem::take(&mut self.restored).into_keys().map(|name| (name.into(), None)));
    }

    /// What was to be remembered in the run before. Before anything is wanted. `now` is the second of the packet path, and that time.
    pub fn restore(&mut self, mut all: BTreeMap<String, Remembered>, now: (u32, SystemTime)) {
        // Whose time is over is back.
        all.values_mut().for_each(|of| of.ejected.retain(|ejected| ejected.until > now.1));
        self.restored = all;
        self.restored_at = Some(now);
    }

    /// What is to be remembered otherwise than the last time somebody asked; `None` for nothing.
    pub fn take_to_store(&mut self) -> Vec<(Arc<str>, Option<Remembered>)> {
        std::mem::take(&mut self.to_store)
    }

    /// What was taken could not be written: it is to be remembered the next time, unless there is something newer.
    pub fn put_back_to_store(&mut self, taken: Vec<(Arc<str>, Option<Remembered>)>) {
        let newer = std::mem::take(&mut self.to_store);
        let all: BTreeMap<_, _> = taken.into_iter().chain(newer).collect();
        self.to_store = all.into_iter().collect();
    }

    fn update_one(&mut self, spec: &Arc<ServiceSpec>) {
        let Some(vni) = self.networks.get(&spec.network).copied() else { return self.remove(&spec.name) };
        let held = self.services.get(spec.name.as_str());
        if held.is_some_and(|held| held.vni == vni && (Arc::ptr_eq(&held.spec, spec) || held.spec == *spec)) {
            return;
        }
        let held_already = held.is_some();
        let name = held.map_or_else(|| spec.name.as_str().into(), |held| Arc::clone(&held.name));
        let checks: Vec<Vec<Check>> = checks(spec);
        for (endpoint, check) in endpoints(spec, &checks) {
            let inherited = self.services.get(&name).and_then(|held| inherited(&self.facts, held, endpoint));
            if self.facts.add(&name, endpoint, check, inherited)
                && let Check::Target(target) = check
            {
                self.started.insert(Arc::clone(target));
            }
        }
        let stored = if held_already { None } else { self.restored.remove(&spec.name) };
        let restored = stored.as_ref().filter(|of| of.vni == vni);
        let outliers = self.restored_at.zip(restored).map(|(at, of)| Outliers::restored(&of.ejected, at));
        let was = self.services.get(&name).map(Held::was).or_else(|| restored.map(|of| of.was(spec)));
        let left = Arc::new(left::left(was.as_ref(), vni, spec, |port| self.facts.has_port(port)));
        let held = match self.services.remove(&name) {
            Some(before) => {
                self.leave(&before);
                Held { spec: Arc::clone(spec), vni, checks, left, ..before }
            }
            None => Held {
                name: Arc::clone(&name),
                spec: Arc::clone(spec),
                vni,
                checks,
                left,
                view: None,
                frontends: Vec::new(),
                serving: None,
                ready: (false, SystemTime::now()),
                absent: BTreeSet::new(),
                changes: VecDeque::new(),
                outliers: outliers.unwrap_or_default(),
                stored,
                begun: Begun::default(),
            },
        };
        if !held.outliers.is_empty() {
            self.observed.insert(Arc::clone(&name));
        }
        self.services.insert(Arc::clone(&name), held);
        self.marked.insert(name);
    }

    /// Endpoints of a Service as it was are nobody's any more, as far as that Service goes.
    fn leave(&mut self, held: &Held) {
        for (endpoint, check) in endpoints(&held.spec, &held.checks) {
            if self.facts.remove(&held.name, endpoint, check)
                && let Check::Target(target) = check
            {
                self.unwanted.insert(Arc::clone(target));
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(held) = self.services.remove(name) {
            self.leave(&held);
            self.gone |= !held.frontends.is_empty();
            // Its name may be that of a Service of another form meanwhile, and stands for everybody if it comes back.
            if !held.absent.is_empty() {
                self.present.push(Arc::clone(&held.name));
            }
            self.marked.remove(name);
            self.to_store.extend(held.stored.is_some().then(|| (Arc::clone(&held.name), None)));
        }
    }

    /// Whether a port runs.
    pub fn set_running(&mut self, port: Uuid, running: bool, now: Instant) {
        self.marked.extend(self.facts.set_running(port, running, now).iter().map(Arc::clone));
    }

    /// Lets backends in again that were held out for long enough.
    pub fn release(&mut self, now: Instant) {
        self.marked.extend(self.facts.release(now));
    }

    /// From now on guests of an earlier run are awaited, or are not any more: their connections go on meanwhile, and new ones to Services
    /// that have nobody else are not refused but dropped, which clients survive.
    pub fn set_awaiting(&mut self, awaiting: bool) {
        if self.facts.awaiting() != awaiting {
            self.facts.set_awaiting(awaiting);
            self.marked.extend(self.services.keys().map(Arc::clone));
        }
    }

    /// Forgets ports that are gone.
    pub fn retain_ports(&mut self, there: impl Fn(&Uuid) -> bool) {
        let is_there = |endpoint: &EndpointSpec| endpoint.port.as_ref().is_none_or(&there);
        for held in self.services.values_mut() {
            if !held.left.iter().flatten().all(is_there) {
                Arc::make_mut(&mut held.left).iter_mut().for_each(|left| left.retain(is_there));
                self.marked.insert(Arc::clone(&held.name));
            }
        }
        self.facts.retain_ports(there);
    }

    /// What a check said about a target, and why.
    pub fn set_verdict(&mut self, target: &Target, healthy: bool, reason: &str, now: Instant) {
        self.marked.extend(self.facts.set_verdict(target, healthy, reason, now).iter().map(Arc::clone));
    }

    /// Drains a backend, or undoes that. Returns whether that is news.
    pub fn set_drained(&mut self, what: Drained, drained: bool) -> bool {
        let news = self.facts.set_drained(what.clone(), drained);
        if news {
            let has =
                |held: &&Held| endpoints(&held.spec, &held.checks).any(|(endpoint, _)| endpoint.name == what.backend);
            let concerned: Vec<Arc<str>> = match &what.service {
                Some(service) => {
                    self.services.get(service.as_str()).iter().map(|held| Arc::clone(&held.name)).collect()
                }
                None => self.services.values().filter(has).map(|held| Arc::clone(&held.name)).collect(),
            };
            self.marked.extend(concerned);
        }
        news
    }

    /// Lets off what is gone: a backend that is neither a port nor an endpoint, and backends of a Service that is no more. A new port
    /// of that name is another one.
    pub fn retain_drained(&mut self, ports: &HashSet<String>) {
        let Self { services, facts, .. } = self;
        let endpoints: HashSet<&str> = services
            .values()
            .flat_map(|held| endpoints(&held.spec, &held.checks).map(|(endpoint, _)| endpoint.name.as_str()))
            .collect();
        facts.retain_drained(|what| {
            what.service.as_ref().is_none_or(|name| services.contains_key(name.as_str()))
                && (ports.contains(&what.backend) || endpoints.contains(&*what.backend))
        });
    }

    /// All that was drained.
    pub fn drained(&self) -> &BTreeSet<Drained> {
        self.facts.drained()
    }

    /// Works out what all the news mean.
    pub fn settle(&mut self, now: SystemTime) -> Settled {
        let mut settled = Settled { gone: std::mem::take(&mut self.gone), ..Settled::default() };
        settled.absent.extend(self.present.drain(..).map(|name| (name, BTreeSet::new())));
        let mut marked: Vec<Arc<str>> = self.marked.drain().collect();
        marked.sort_unstable();
        for name in marked {
            if let Some(held) = self.services.get_mut(&name) {
                held.settle(&self.facts, now, &mut settled);
                let remembered = held.remembered();
                if remembered != held.stored {
                    held.stored.clone_from(&remembered);
                    self.to_store.push((name, remembered));
                }
            }
        }
        for target in self.unwanted.drain() {
            if self.facts.forget(&target) && !self.started.remove(&target) {
                settled.stop.push(target);
            }
        }
        settled.start = self.started.drain().collect();
        settled
    }

    /// Every backend that is to be checked.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.facts.targets()
    }

    /// What is known of endpoints.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Services as they are, by name.
    pub fn services(&self) -> HashMap<Arc<str>, Was> {
        self.services.iter().map(|(name, held)| (Arc::clone(name), held.was())).collect()
    }

    /// Every frontend there is.
    pub fn frontends(&self) -> impl Iterator<Item = &FrontendSpec> {
        self.services.values().flat_map(|held| &held.frontends)
    }
}

impl Held {
    fn was(&self) -> Was {
        Was {
            vni: self.vni,
            spec: Arc::clone(&self.spec),
            left: Arc::clone(&self.left),
            ejected: self.outliers.places(),
        }
    }

    fn settle(&mut self, facts: &Facts, now: SystemTime, settled: &mut Settled) {
        let state = |(port, checks): (&ServicePortSpec, &Vec<Check>)| -> Vec<BackendState> {
            let each = port.endpoints.iter().zip(checks);
            each.map(|(endpoint, check)| facts.known(&self.name, endpoint, check).state(endpoint.condition)).collect()
        };
        let mut states: Vec<Vec<BackendState>> = self.spec.ports.iter().zip(&self.checks).map(state).collect();
        self.outliers.apply(&self.spec, &mut states);
        let view = View { spec: Arc::clone(&self.spec), states };
        let reason = |port: usize, endpoint: usize| match self.ejection(port, endpoint) {
            Some(ejection) => Some(Arc::clone(&ejection.reason)),
            None => {
                let check = self.checks.get(port)?.get(endpoint)?;
                facts.reason(self.spec.ports.get(port)?.endpoints.get(endpoint)?, check)
            }
        };
        // Of a Service that is new everything is.
        let changes = self.view.as_ref().map_or(Vec::new(), |before| view.changes_since(before, now, reason));
        for change in changes {
            if self.changes.len() == CHANGES_MAX {
                self.changes.pop_front();
            }
            self.changes.push_back(change.clone());
            settled.news.push(News::Backend { service: Arc::clone(&self.name), change });
        }
        self.tell_serving(&view, now, settled);
        let absent = serving::absent(&view, facts.awaiting());
        if absent != self.absent {
            settled.absent.push((Arc::clone(&self.name), absent.clone()));
            self.absent = absent;
        }
        let frontends = frontend::frontends(&self.spec, self.vni, &view.states, &self.left, &self.begun);
        self.view = Some(view);
        let same: HashSet<Place> = frontends.iter().map(place).collect();
        settled.gone |= self.frontends.iter().any(|spec| !same.contains(&place(spec)));
        let before: HashMap<Place, &FrontendSpec> = self.frontends.iter().map(|spec| (place(spec), spec)).collect();
        let changed = frontends.iter().filter(|spec| before.get(&place(spec)) != Some(spec));
        settled.frontends.extend(changed.cloned());
        self.frontends = frontends;
    }

    fn tell_serving(&mut self, view: &View, now: SystemTime, settled: &mut Settled) {
        let serving = serving::serving(view);
        let healthy = view.states.iter().flatten().filter(|state| **state == BackendState::Healthy).count();
        let ready = serving == Serving::Everywhere && healthy > 0;
        if self.view.is_none() || self.ready.0 != ready {
            self.ready = (ready, now);
        }
        // Before the first checks nobody can say.
        let open = view.states.iter().flatten().any(|state| *state == BackendState::Unchecked);
        if self.serving.as_ref() == Some(&serving) || (serving != Serving::Everywhere && open && self.serving.is_none())
        {
            return;
        }
        let first = self.serving.replace(serving.clone()).is_none();
        if !(first && serving == Serving::Everywhere) {
            let (service, counts) = (Arc::clone(&self.name), view.counts());
            settled.news.push(News::Serving { service, serving, counts });
        }
    }
}

/// The frontends that Services would have that are now as `known` says, as far as anything is known of their endpoints.
pub fn draft(
    facts: &Facts,
    known: &HashMap<Arc<str>, Was>,
    networks: &[Network],
    services: &[Arc<ServiceSpec>],
) -> Vec<FrontendSpec> {
    let vnis: HashMap<&str, u32> = networks.iter().map(|network| (network.name.as_str(), network.vni)).collect();
    let mut frontends = Vec::new();
    for spec in services {
        let Some(vni) = vnis.get(spec.network.as_str()) else { continue };
        let checks = checks(spec);
        let of = |(port, checks): (&ServicePortSpec, &Vec<Check>)| -> Vec<BackendState> {
            let each = port.endpoints.iter().zip(checks);
            each.map(|(endpoint, check)| facts.supposed(&spec.name, endpoint, check).state(endpoint.condition))
                .collect()
        };
        let mut states: Vec<Vec<BackendState>> = spec.ports.iter().zip(&checks).map(of).collect();
        let was = known.get(spec.name.as_str()).filter(|was| was.vni == *vni);
        if let Some(was) = was {
            outlier::eject(spec, &mut states, |place| was.ejected.contains(place));
        }
        let left = left::left(was, *vni, spec, |port| facts.has_port(port));
        frontends.extend(frontend::frontends(spec, *vni, &states, &left, &Begun::default()));
    }
    frontends
}

/// Whether two versions of a Service mean the same backend.
fn is_the_same(a: &EndpointSpec, b: &EndpointSpec) -> bool {
    (&a.name, a.address, a.l4) == (&b.name, b.address, b.l4)
}

/// What no two frontends of a Service have in common: scope, address, protocol, L4 ports.
type Place = (u32, u128, u8, u16, u16);

fn place(spec: &FrontendSpec) -> Place {
    (spec.scope, spec.address, spec.proto, *spec.l4.start(), *spec.l4.end())
}

fn endpoints<'a>(
    spec: &'a ServiceSpec,
    checks: &'a [Vec<Check>],
) -> impl Iterator<Item = (&'a EndpointSpec, &'a Check)> {
    spec.ports.iter().zip(checks).flat_map(|(port, checks)| port.endpoints.iter().zip(checks))
}

/// How each endpoint is checked: on the first L4 port of a range, where nothing else is said. A check does not speak the protocol of every L4
/// port: a backend is asked at its first one of that protocol then, and that speaks for the others. One that has none is not asked.
fn checks(spec: &ServiceSpec) -> Vec<Vec<Check>> {
    let network: Arc<str> = spec.network.as_str().into();
    let health = spec.health.clone().map(Arc::new);
    let is_asked = |port: &ServicePortSpec| health.as_ref().is_none_or(|health| health.speaks_to(port.proto));
    let l4_of = |port: &ServicePortSpec, endpoint: &EndpointSpec| endpoint.l4.unwrap_or(*port.l4.start());
    let mut asked_at: HashMap<(&str, IpAddr), u16> = HashMap::new();
    if !spec.ports.iter().all(is_asked) {
        for port in spec.ports.iter().filter(|port| is_asked(port)) {
            for endpoint in &port.endpoints {
                asked_at.entry((&endpoint.name, endpoint.address)).or_insert(l4_of(port, endpoint));
            }
        }
    }
    let of = |port: &ServicePortSpec, endpoint: &EndpointSpec| {
        let Some(health) = &health else { return Check::None };
        let l4 = match is_asked(port) {
            true => Some(l4_of(port, endpoint)),
            false => asked_at.get(&(&*endpoint.name, endpoint.address)).copied(),
        };
        let target = Target::new(Arc::clone(&network), endpoint.address, l4, Arc::clone(health));
        // Where the check reaches no L4 port of a backend at all, whether that runs decides: it would be out for ever.
        let without = if is_asked(port) { Check::Impossible } else { Check::None };
        target.map_or(without, |target| Check::Target(Arc::new(target.of_port(endpoint.port))))
    };
    let port = |port: &ServicePortSpec| port.endpoints.iter().map(|endpoint| of(port, endpoint)).collect();
    spec.ports.iter().map(port).collect()
}

/// What a check that is changed begins with: a backend that was healthy so far is until the first verdict. One that a Service did
/// not have before begins with nothing (SEMANTICS SV3).
fn inherited(facts: &Facts, held: &Held, endpoint: &EndpointSpec) -> Option<bool> {
    let mut before = endpoints(&held.spec, &held.checks);
    let (old, check) = before.find(|(other, _)| is_the_same(other, endpoint))?;
    facts.known(&held.name, old, check).healthy.filter(|healthy| *healthy)
}

#[cfg(test)]
mod tests;
