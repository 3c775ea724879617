//! Services against a small world: two networks, endpoints by name, and the news in whatever order it comes.

use std::net::IpAddr;
use std::time::Duration;

use hostweave_nat::service::{Backend, Refusal};
use hostweave_switch::tables::OUTSIDE_VNI;

use super::super::spec::{AllDown, Condition, Drain, HealthCheck, HealthSpec, LoadBalancerAddress, OutlierSpec};
use super::super::uplink::owned::mapped;
use super::*;

const VIP: &str = "10.96.0.20";
const VIP6: &str = "2001:db8:96::20";
const PUBLIC: &str = "203.0.113.9";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn network(name: &str, vni: u32) -> Network {
    Network {
        v4: Some(("10.64.0.0/16".parse().unwrap(), "10.64.0.1".parse().unwrap())),
        v6: Some(("2001:db8:64::/64".parse().unwrap(), "2001:db8:64::1".parse().unwrap())),
        ..Network::bare(name, vni)
    }
}

fn endpoint(n: u8) -> EndpointSpec {
    EndpointSpec {
        name: format!("shop/web-{n}"),
        port: Some(Uuid::from_u128(n.into())),
        address: IpAddr::from([10, 64, 0, 10 + n]),
        l4: Some(8080),
        weight: 1,
        condition: Condition::Ready,
        internal: true,
        external: true,
        rank: 0,
    }
}

fn check() -> HealthSpec {
    HealthSpec { check: HealthCheck::Tcp, l4: None, interval_ms: 5000, timeout_ms: 2000, rise: 2, fall: 3 }
}

fn service(endpoints: Vec<EndpointSpec>) -> ServiceSpec {
    ServiceSpec {
        cluster: vec![ip(VIP)],
        ports: vec![ServicePortSpec { name: "http".into(), proto: 6, l4: 80..=80, endpoints }],
        refusal_external: Refusal::Drop,
        ..ServiceSpec::bare("shop/web")
    }
}

struct World {
    balance: Balance,
    second: u64,
    start: Instant,
}

impl Default for World {
    fn default() -> Self {
        Self { balance: Balance::default(), second: 0, start: Instant::now() }
    }
}

impl World {
    fn of(spec: ServiceSpec) -> Self {
        let mut world = World::default();
        for port in 0..10 {
            world.balance.set_running(Uuid::from_u128(port), true, Instant::now());
        }
        world.apply(spec);
        world
    }

    fn apply(&mut self, spec: ServiceSpec) -> Settled {
        self.apply_all(vec![spec])
    }

    fn apply_all(&mut self, specs: Vec<ServiceSpec>) -> Settled {
        let specs: Vec<_> = specs.into_iter().map(Arc::new).collect();
        self.balance.update(&[network("default", 4096), network("other", 4097)], &specs);
        self.settle()
    }

    /// So far apart that nobody flaps.
    fn now(&self) -> Instant {
        self.start + damping::FORGOTTEN_AFTER * self.second as u32
    }

    fn settle(&mut self) -> Settled {
        self.second += 1;
        self.balance.settle(at(self.second))
    }

    fn run(&mut self, port: u8, running: bool) -> Settled {
        self.balance.set_running(Uuid::from_u128(port.into()), running, self.now());
        self.settle()
    }

    fn verdict(&mut self, port: u8, healthy: bool) -> Settled {
        self.verdict_at(port, healthy, self.now())
    }

    fn verdict_at(&mut self, port: u8, healthy: bool, now: Instant) -> Settled {
        let targets: Vec<Target> = self.balance.facts.targets().map(|target| (**target).clone()).collect();
        // Of both families.
        let addresses = [endpoint(port).address, ip(&format!("2001:db8:64::{port}"))];
        for target in targets.iter().filter(|target| addresses.contains(&target.address())) {
            self.balance.set_verdict(target, healthy, if healthy { "" } else { "connection refused" }, now);
        }
        self.settle()
    }

    fn drain(&mut self, port: u8, service: Option<&str>, drained: bool) -> Settled {
        let what = Drained { backend: endpoint(port).name, service: service.map(str::to_owned) };
        self.balance.set_drained(what, drained);
        self.settle()
    }

    /// The backends behind an address: `web-1` takes connections, `(web-2)` keeps those that it has.
    fn behind(&self, address: &str) -> String {
        let frontend = self.balance.frontends().find(|spec| spec.address == mapped(ip(address))).unwrap();
        let text = |backend: &Backend| {
            let name = backend.name.trim_start_matches("shop/");
            if backend.active { name.to_owned() } else { format!("({name})") }
        };
        frontend.backends.iter().map(text).collect::<Vec<_>>().join(" ")
    }
}

fn told(settled: &Settled) -> Vec<String> {
    let news = settled.news.iter().map(|news| match news {
        News::Backend { change, .. } => {
            let name = |state: Option<BackendState>| state.map_or("nothing", BackendState::name);
            let reason = change.reason.as_deref().filter(|reason| !reason.is_empty());
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{} {} -> {}{reason}", change.backend, name(change.from), name(change.to))
        }
        News::Serving { serving: Serving::NotAt(places), .. } => format!("not serving at {}", places.join(", ")),
        News::Serving { serving, .. } => format!("serving {}", *serving == Serving::Everywhere),
    });
    news.collect()
}

#[test]
fn sv1_ready_ones_first_then_those_that_end_and_nobody_else() {
    let with = |conditions: &[Condition]| {
        let each = conditions.iter().zip(1..);
        World::of(service(each.map(|(condition, n)| EndpointSpec { condition: *condition, ..endpoint(n) }).collect()))
    };
    use Condition::{NotReady, Ready, Terminating};
    for (conditions, wanted) in [
        (&[Ready, Ready, NotReady][..], "web-1 web-2 (web-3)"),
        (&[Ready, Terminating], "web-1 (web-2)"),
        (&[Terminating, Terminating, NotReady], "web-1 web-2 (web-3)"),
        (&[NotReady, NotReady], "(web-1) (web-2)"),
        (&[], ""),
    ] {
        assert_eq!(with(conditions).behind(VIP), wanted, "{conditions:?}");
    }
    let mut world = with(&[Ready, Terminating]);
    world.run(1, false);
    assert_eq!(world.behind(VIP), "(web-1) web-2", "one that is ready and does not run serves nobody");
}

#[test]
fn sv2_only_those_that_run() {
    let mut world = World::of(service(vec![endpoint(1), endpoint(2)]));
    assert_eq!(world.behind(VIP), "web-1 web-2");
    assert_eq!(told(&world.run(2, false)), ["shop/web-2 healthy -> stopped"]);
    assert_eq!(world.behind(VIP), "web-1 (web-2)");
    assert_eq!(told(&world.run(1, false)), ["shop/web-1 healthy -> stopped", "serving false"]);
    assert_eq!(told(&world.run(1, true)), ["shop/web-1 stopped -> healthy", "serving true"]);
    assert!(told(&world.run(1, true)).is_empty());
    let foreign = EndpointSpec { port: None, ..endpoint(40) };
    assert_eq!(World::of(service(vec![foreign])).behind(VIP), "web-40", "whom nobody here can see runs");
}

#[test]
fn sv3_a_backend_gets_nothing_before_its_first_verdict() {
    let checked = |endpoints| ServiceSpec { health: Some(check()), ..service(endpoints) };
    let mut world = World::default();
    for port in 0..4 {
        world.balance.set_running(Uuid::from_u128(port), true, Instant::now());
    }
    let first = world.apply(checked(vec![endpoint(1)]));
    assert_eq!(first.start.len(), 1);
    assert!(told(&first).is_empty(), "nobody can say yet whether it serves");
    assert_eq!(world.behind(VIP), "(web-1)");
    assert_eq!(told(&world.verdict(1, true)), ["shop/web-1 unchecked -> healthy"]);
    assert_eq!(world.behind(VIP), "web-1");
    let added = world.apply(checked(vec![endpoint(1), endpoint(2)]));
    assert_eq!(told(&added), ["shop/web-2 nothing -> unchecked"]);
    assert_eq!(world.behind(VIP), "web-1 (web-2)");
    world.verdict(2, true);
    assert_eq!(world.behind(VIP), "web-1 web-2");
}

#[test]
fn a_check_that_is_changed_leaves_healthy_backends_in_place() {
    let spec = |interval_ms, n| {
        let health = Some(HealthSpec { interval_ms, ..check() });
        ServiceSpec { health, ..service((1..=n).map(endpoint).collect()) }
    };
    let mut world = World::of(service(vec![endpoint(1)]));
    let settled = world.apply(spec(5000, 2));
    assert_eq!(settled.start.len(), 2);
    assert_eq!(world.behind(VIP), "web-1 (web-2)", "one was there without checks, one is new");
    world.verdict(1, false);
    let settled = world.apply(spec(1000, 2));
    assert_eq!((settled.start.len(), settled.stop.len()), (2, 2));
    assert_eq!(world.behind(VIP), "(web-1) (web-2)", "one that failed does not become healthy by that");
    let settled = world.apply(service(vec![endpoint(1), endpoint(2)]));
    assert_eq!((settled.start.len(), settled.stop.len()), (0, 2));
    assert_eq!(world.behind(VIP), "web-1 web-2");
}

#[test]
fn sv4_when_all_fail_clients_are_refused_or_all_get_some() {
    for (all_down, wanted) in [(AllDown::Reject, "(web-1) (web-2) (web-3)"), (AllDown::Panic, "web-1 web-2 (web-3)")] {
        let ends = EndpointSpec { condition: Condition::NotReady, ..endpoint(3) };
        let health = Some(check());
        let mut world = World::of(ServiceSpec { health, all_down, ..service(vec![endpoint(1), endpoint(2), ends]) });
        world.verdict(2, true);
        world.verdict(1, false);
        assert_eq!(world.behind(VIP), "(web-1) web-2 (web-3)");
        let news = told(&world.verdict(2, false));
        assert_eq!(news[0], "shop/web-2 healthy -> unhealthy: connection refused");
        assert_eq!(news.len(), if all_down == AllDown::Reject { 2 } else { 1 }, "{news:?}");
        assert_eq!(world.behind(VIP), wanted);
    }
}

#[test]
fn sv5_who_leaves_keeps_or_resets_connections() {
    let reset = |endpoints| ServiceSpec { drain: Drain::Reset, ..service(endpoints) };
    let ends = EndpointSpec { condition: Condition::Terminating, ..endpoint(2) };
    assert_eq!(World::of(service(vec![endpoint(1), ends.clone()])).behind(VIP), "web-1 (web-2)");
    assert_eq!(World::of(reset(vec![endpoint(1), ends])).behind(VIP), "web-1");
    // A daemon that has just started has checked nobody: that ends nothing.
    let world = World::of(ServiceSpec { health: Some(check()), ..reset(vec![endpoint(1)]) });
    assert_eq!(world.behind(VIP), "(web-1)");
    // Nor does a traffic policy that speaks of new connections.
    let far = EndpointSpec { internal: false, ..endpoint(2) };
    assert_eq!(World::of(reset(vec![endpoint(1), far])).behind(VIP), "web-1 (web-2)");
}

#[test]
fn sv5_a_port_that_is_relabelled_out_of_a_service_is_drained_until_it_is_gone() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let of = |ports: &[u8]| ServiceSpec {
        cluster: vec![ip(VIP), ip(VIP6)],
        ..service(ports.iter().flat_map(|n| [endpoint(*n), six(*n)]).collect())
    };
    let both = |world: &World| [VIP, VIP6].map(|at| world.behind(at));
    let mut world = World::of(of(&[1, 2, 3]));
    world.apply(of(&[1, 3]));
    assert_eq!(both(&world), ["web-1 (web-2) web-3"; 2]);
    let mut drafts = draft(world.balance.facts(), &world.balance.services(), &[network("default", 4096)], &[]);
    assert!(drafts.is_empty());
    let none = [Arc::new(of(&[1]))];
    drafts = draft(world.balance.facts(), &world.balance.services(), &[network("default", 4096)], &none);
    let names = |spec: &FrontendSpec| -> Vec<(String, bool)> {
        spec.backends.iter().map(|backend| (backend.name.to_string(), backend.active)).collect()
    };
    let wanted = [("shop/web-1", true), ("shop/web-2", false), ("shop/web-3", false)];
    assert_eq!(names(&drafts[0]), wanted.map(|(name, active)| (name.to_owned(), active)));
    // It goes on through other changes, and comes back.
    world.apply(of(&[1]));
    assert_eq!(both(&world), ["web-1 (web-2) (web-3)"; 2]);
    world.apply(of(&[1, 2]));
    assert_eq!(both(&world), ["web-1 web-2 (web-3)"; 2]);
    // A port that is gone has nothing any more.
    world.balance.retain_ports(|port| *port != Uuid::from_u128(3));
    assert!(world.settle().is_visible());
    assert_eq!(both(&world), ["web-1 web-2"; 2]);
    world.balance.retain_ports(|port| *port != Uuid::from_u128(2));
    world.apply(of(&[1]));
    assert_eq!(both(&world), ["web-1"; 2], "nor has one that goes with its port");
    world.apply(ServiceSpec { drain: Drain::Reset, ..of(&[1, 4]) });
    world.apply(ServiceSpec { drain: Drain::Reset, ..of(&[1]) });
    assert_eq!(both(&world), ["web-1"; 2], "reset, as it is configured");
    // Another L4 port of the Service has nothing of it, nor has another network.
    world.apply(of(&[1, 4]));
    world.apply(ServiceSpec { network: "other".into(), ..of(&[1]) });
    assert_eq!(both(&world), ["web-1"; 2]);
}

#[test]
fn who_leaves_a_service_is_remembered_within_a_limit() {
    let far = |n: usize| EndpointSpec {
        name: format!("far-{n}"),
        port: None,
        address: IpAddr::from([11, 0, (n / 256) as u8, n as u8]),
        ..endpoint(1)
    };
    let mut world = World::of(service(vec![far(0)]));
    for n in 1..2 * left::LEFT_MAX {
        world.apply(service(vec![far(n)]));
    }
    let frontend = world.balance.frontends().next().unwrap();
    assert_eq!(frontend.backends.len(), left::LEFT_MAX + 1);
    assert!(frontend.backends.iter().any(|backend| *backend.name == *format!("far-{}", 2 * left::LEFT_MAX - 2)));
}

#[test]
fn sv13_clients_in_the_network_of_a_public_address_are_no_others() {
    let far = |n: u8| EndpointSpec { external: false, ..endpoint(n) };
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..far(n) };
    const PUBLIC6: &str = "2001:db8:f::9";
    let of = |endpoints| ServiceSpec {
        load_balancer: [PUBLIC, PUBLIC6].map(|at| LoadBalancerAddress { address: ip(at), public: true }).into(),
        refusal_internal: Refusal::Drop,
        ..service(endpoints)
    };
    let world = World::of(of(vec![far(1), six(1), EndpointSpec { internal: false, ..endpoint(2) }]));
    let behind = |scope: u32, address: &str| {
        let of = |spec: &&FrontendSpec| spec.scope == scope && spec.address == mapped(ip(address));
        let frontend = world.balance.frontends().find(of).unwrap();
        (frontend.backends.iter().filter(|backend| backend.active).count(), frontend.refusal)
    };
    assert_eq!((behind(OUTSIDE_VNI, PUBLIC), behind(4096, PUBLIC)), ((1, Refusal::Drop), (2, Refusal::Reject)));
    assert_eq!((behind(OUTSIDE_VNI, PUBLIC6), behind(4096, PUBLIC6)), ((0, Refusal::Drop), (1, Refusal::Reject)));
    // Where there is no difference, there is one frontend.
    let world = World::of(of(vec![endpoint(1)]));
    assert_eq!(world.balance.frontends().filter(|spec| spec.address == mapped(ip(PUBLIC))).count(), 1);
}

#[test]
fn guests_of_an_earlier_run_are_awaited_and_nobody_is_refused_meanwhile() {
    let mut world = World::default();
    world.apply(ServiceSpec { drain: Drain::Reset, ..service(vec![endpoint(1), endpoint(2)]) });
    let refusal = |world: &World| world.balance.frontends().map(|spec| spec.refusal).collect::<Vec<_>>();
    assert_eq!((world.behind(VIP), refusal(&world)), (String::new(), vec![Refusal::Reject]));
    world.balance.set_awaiting(true);
    world.settle();
    assert_eq!((world.behind(VIP), refusal(&world)), ("(web-1) (web-2)".to_owned(), vec![Refusal::Drop]));
    // One is back; and gone again, which is what it is from now on.
    world.run(2, true);
    assert_eq!(world.behind(VIP), "(web-1) web-2");
    world.run(2, false);
    assert_eq!(world.behind(VIP), "(web-1)");
    world.balance.set_awaiting(false);
    world.settle();
    assert_eq!((world.behind(VIP), refusal(&world)), (String::new(), vec![Refusal::Reject]));
}

#[test]
fn drained_of_one_service_or_of_all() {
    let other =
        ServiceSpec { name: "shop/other".into(), cluster: vec![ip("10.96.0.21")], ..service(vec![endpoint(1)]) };
    let mut world = World::default();
    world.balance.set_running(Uuid::from_u128(1), true, Instant::now());
    world.balance.set_running(Uuid::from_u128(2), true, Instant::now());
    world.apply_all(vec![other, service(vec![endpoint(1), endpoint(2)])]);
    let settled = world.drain(1, Some("shop/web"), true);
    assert_eq!(settled.frontends.len(), 1);
    assert_eq!((world.behind(VIP).as_str(), world.behind("10.96.0.21").as_str()), ("(web-1) web-2", "web-1"));
    world.drain(1, None, true);
    assert_eq!((world.behind(VIP).as_str(), world.behind("10.96.0.21").as_str()), ("(web-1) web-2", "(web-1)"));
    world.drain(1, None, false);
    assert_eq!(world.behind("10.96.0.21"), "web-1");
    world.drain(1, Some("shop/web"), false);
    assert_eq!(world.behind(VIP), "web-1 web-2");
    assert!(!world.drain(1, None, false).is_visible());
}

#[test]
fn each_address_has_its_scope_audience_and_family() {
    let far = EndpointSpec { external: false, ..endpoint(1) };
    let private = EndpointSpec { internal: false, ..endpoint(2) };
    let six = EndpointSpec { address: ip("2001:db8:64::3"), ..endpoint(3) };
    let world = World::of(ServiceSpec {
        cluster: vec![ip(VIP), ip(VIP6)],
        load_balancer: vec![
            LoadBalancerAddress { address: ip(PUBLIC), public: true },
            LoadBalancerAddress { address: ip("10.96.0.99"), public: false },
        ],
        sources: vec!["192.0.2.0/24".parse().unwrap()],
        ..service(vec![far, private, six])
    });
    assert_eq!(world.behind(VIP), "web-1 (web-2)");
    assert_eq!(world.behind(VIP6), "web-3");
    assert_eq!(world.behind(PUBLIC), "(web-1) web-2");
    assert_eq!(world.behind("10.96.0.99"), "web-1 web-2", "SV13");
    let of = |address: &str| world.balance.frontends().find(|spec| spec.address == mapped(ip(address))).unwrap();
    assert_eq!((of(VIP).scope, of(PUBLIC).scope, of("10.96.0.99").scope), (4096, OUTSIDE_VNI, 4096));
    assert_eq!((of(VIP).refusal, of(PUBLIC).refusal), (Refusal::Reject, Refusal::Drop));
    assert_eq!([VIP, PUBLIC, "10.96.0.99"].map(|at| of(at).sources.len()), [0, 1, 1], "SV18");
    assert!(world.balance.frontends().all(|spec| spec.vni == 4096 && *spec.service == *"shop/web"));
}

#[test]
fn only_what_is_different_is_told_to_the_packet_path() {
    let many = |n: u8| -> Vec<ServiceSpec> {
        let of = |n: u8| ServiceSpec {
            name: format!("shop/s{n}"),
            cluster: vec![IpAddr::from([10, 96, 0, n])],
            ..service(vec![endpoint(n % 5), endpoint(9)])
        };
        (0..n).map(of).collect()
    };
    let mut world = World::default();
    for port in 0..10 {
        world.balance.set_running(Uuid::from_u128(port), true, Instant::now());
    }
    assert_eq!(world.apply_all(many(50)).frontends.len(), 50);
    assert!(!world.apply_all(many(50)).is_visible());
    assert_eq!(world.run(3, false).frontends.len(), 10);
    assert_eq!(world.run(9, false).frontends.len(), 50);
    let settled = world.apply_all(many(48));
    assert_eq!((settled.frontends.len(), settled.gone), (0, true));
    assert_eq!(world.balance.frontends().count(), 48);
    // The place of a Service that is gone, and of one that is new, at once.
    let mut renamed = many(48);
    renamed[7].name = "shop/new".into();
    let settled = world.apply_all(renamed);
    assert_eq!((settled.frontends.len(), settled.gone), (1, true));
}

#[test]
fn one_check_of_several_services_is_one_target() {
    let of = |name: &str, last: u8, interval_ms| ServiceSpec {
        name: name.into(),
        cluster: vec![IpAddr::from([10, 96, 0, last])],
        health: Some(HealthSpec { interval_ms, ..check() }),
        ..service(vec![endpoint(1)])
    };
    let mut world = World::of(of("shop/a", 1, 5000));
    assert!(world.apply_all(vec![of("shop/a", 1, 5000), of("shop/b", 2, 5000)]).start.is_empty());
    let settled = world.apply_all(vec![of("shop/a", 1, 5000), of("shop/b", 2, 5000), of("shop/c", 3, 900)]);
    assert_eq!(settled.start.len(), 1, "another interval is another check");
    let [target] = &settled.start[..] else { unreachable!() };
    assert_eq!((target.address(), target.l4()), (ip("10.64.0.11"), 8080));
    assert_eq!(world.verdict(1, true).frontends.len(), 3);
    let settled = world.apply_all(vec![of("shop/b", 2, 5000)]);
    assert_eq!((settled.start.len(), settled.stop.len(), settled.gone), (0, 1, true));
    assert_eq!(world.apply_all(Vec::new()).stop.len(), 1);
}

#[test]
fn the_last_changes_are_remembered_with_their_reasons() {
    let mut world = World::of(ServiceSpec { health: Some(check()), ..service(vec![endpoint(1)]) });
    for _ in 0..CHANGES_MAX {
        world.verdict(1, true);
        world.verdict(1, false);
    }
    let held = &world.balance.services["shop/web"];
    assert_eq!(held.changes.len(), CHANGES_MAX);
    let last = held.changes.back().unwrap();
    assert_eq!((last.time, last.to), (at(world.second), Some(BackendState::Unhealthy)));
    assert_eq!(last.reason.as_deref(), Some("connection refused"));
}

/// Counters only grow (Prometheus): an address that goes, or every one, takes none of what was counted there with it.
#[test]
fn connections_are_counted_for_a_service_whatever_becomes_of_its_addresses() {
    let spec = ServiceSpec { cluster: vec![ip(VIP), ip(VIP6)], ..service(vec![endpoint(0)]) };
    let mut world = World::of(spec.clone());
    let count = |world: &World| world.balance.counts().next().unwrap().connections;
    let begin = |world: &World, at: &str| {
        let frontends: Vec<_> = world.balance.frontends().cloned().collect();
        let services = hostweave_nat::service::Services::compile(&frontends, None);
        let hostweave_nat::service::Lookup::Frontend(frontend) = services.lookup(4096, mapped(ip(at)), 6, 80) else {
            panic!()
        };
        frontend.begun(7, "shop/web-0", 1);
    };
    begin(&world, VIP);
    begin(&world, VIP6);
    begin(&world, VIP6);
    assert_eq!(count(&world), 3);
    world.apply(ServiceSpec { cluster: vec![ip(VIP)], ..spec.clone() });
    assert_eq!(count(&world), 3);
    begin(&world, VIP);
    world.apply(ServiceSpec { cluster: Vec::new(), ..spec.clone() });
    assert_eq!(count(&world), 4);
    world.apply(spec.clone());
    begin(&world, VIP6);
    assert_eq!(count(&world), 5);
    // Another Service of that name begins anew.
    world.apply_all(Vec::new());
    world.apply(spec);
    assert_eq!(count(&world), 0);
}
mod held_out;
mod places;
