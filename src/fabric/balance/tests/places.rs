//! Where somebody takes connections, who comes first, whom a check speaks for, and whose name a headless Service has.

use super::*;

#[test]
fn sv2_a_headless_name_stands_for_backends_that_run_and_pass_their_checks() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let of = |names_healthy| ServiceSpec {
        cluster: Vec::new(),
        names_healthy,
        health: Some(check()),
        ..service(vec![endpoint(1), six(1), endpoint(2), six(2)])
    };
    let absent = |settled: &Settled| -> Vec<String> {
        let [(service, absent)] = &settled.absent[..] else { panic!("{:?}", settled.absent) };
        assert_eq!(&**service, "shop/web");
        absent.iter().map(ToString::to_string).collect()
    };
    let mut world = World::default();
    for port in [1, 2] {
        world.run(port, true);
    }
    let (first, second) = (["10.64.0.11", "2001:db8:64::1"], ["10.64.0.12", "2001:db8:64::2"]);
    let all = ["10.64.0.11", "10.64.0.12", "2001:db8:64::1", "2001:db8:64::2"];
    assert_eq!(absent(&world.apply(of(true))), all, "nobody was asked yet");
    assert_eq!(absent(&world.verdict(1, true)), second);
    assert_eq!(absent(&world.verdict(2, true)), [""; 0]);
    assert!(world.verdict(2, true).absent.is_empty(), "no news");
    assert_eq!(absent(&world.run(2, false)), second);
    assert_eq!(absent(&world.drain(1, Some("shop/web"), true)), all);
    assert_eq!(absent(&world.run(2, true)), first);
    assert_eq!(world.balance.frontends().count(), 0);
    // `publishNotReadyAddresses`.
    assert_eq!(absent(&world.apply(of(false))), [""; 0]);
}

#[test]
fn a_service_serves_where_each_of_its_l4_ports_does_over_each_ip_version() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let dns = |endpoints| ServicePortSpec { name: "dns".into(), proto: 17, l4: 53..=53, endpoints };
    let of = |http: Vec<EndpointSpec>, udp: Vec<EndpointSpec>| {
        let mut spec = ServiceSpec { cluster: vec![ip(VIP), ip(VIP6)], ..service(http) };
        spec.ports.push(dns(udp));
        spec
    };
    let mut world = World::of(of(vec![endpoint(1), six(1)], vec![endpoint(1), six(1)]));
    let gaps = |world: &World| world.balance.status("shop/web").unwrap().serving.unwrap().gaps().join(", ");
    assert_eq!(gaps(&world), "");
    let health = |world: &World| world.balance.health("shop/web").unwrap();
    let since = health(&world).since;
    assert!(health(&world).ready);
    let settled = world.apply(of(vec![endpoint(1), six(1)], vec![endpoint(1)]));
    assert_eq!(gaps(&world), "dns (53/UDP) over IPv6");
    assert!(told(&settled).contains(&"not serving at dns (53/UDP) over IPv6".to_owned()), "{:?}", told(&settled));
    let now = health(&world);
    assert!(!now.ready && now.since > since);
    assert_eq!((now.healthy(), now.total()), (1, 1), "a backend counts once");
    world.apply(of(vec![endpoint(1)], vec![endpoint(1), six(1)]));
    assert_eq!(gaps(&world), "http (80/TCP) over IPv6");
    let settled = world.run(1, false);
    assert_eq!(world.balance.status("shop/web").unwrap().serving, Some(Serving::Nowhere));
    assert!(told(&settled).contains(&"serving false".to_owned()), "{:?}", told(&settled));
}

#[test]
fn a_check_speaks_for_the_l4_ports_of_other_protocols_too() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let at =
        |l4: u16| [endpoint(1), six(1), endpoint(2), six(2)].map(|it| EndpointSpec { l4: Some(l4), ..it }).to_vec();
    let port = |name: &str, proto, l4: u16| ServicePortSpec {
        name: name.into(),
        proto,
        l4: l4..=l4,
        endpoints: at(l4 + 8000),
    };
    let of = |health: HealthSpec| ServiceSpec {
        cluster: vec![ip(VIP), ip(VIP6)],
        ports: vec![port("dns", 17, 53), port("http", 6, 80), port("https", 6, 443), port("sig", 132, 90)],
        health: Some(health),
        ..ServiceSpec::bare("shop/web")
    };
    // What is asked is TCP, and never an L4 port of UDP or SCTP.
    let asked = |world: &World| {
        let mut l4: Vec<u16> = world.balance.facts().targets().map(|target| target.l4()).collect();
        l4.sort_unstable();
        l4.dedup();
        l4
    };
    let mut world = World::of(of(check()));
    assert_eq!(asked(&world), [8080, 8443]);
    let targets: Vec<Target> = world.balance.facts().targets().map(|target| (**target).clone()).collect();
    for target in &targets {
        // The second one's first L4 port fails: the one that others go by.
        let ill = [ip("10.64.0.12"), ip("2001:db8:64::2")].contains(&target.address()) && target.l4() == 8080;
        world.balance.set_verdict(target, !ill, "", world.now());
    }
    world.settle();
    let status = world.balance.status("shop/web").unwrap();
    let states = |name: &str| -> Vec<(String, BackendState)> {
        let of = status.backends.iter().filter(|backend| backend.name == name && backend.address.is_ipv4());
        of.map(|backend| (backend.port_name.clone(), backend.state)).collect()
    };
    let like = |states: [BackendState; 4]| {
        ["dns", "http", "https", "sig"].map(str::to_owned).into_iter().zip(states).collect::<Vec<_>>()
    };
    use BackendState::{Healthy, Unhealthy};
    assert_eq!(states("shop/web-1"), like([Healthy; 4]));
    assert_eq!(states("shop/web-2"), like([Unhealthy, Unhealthy, Healthy, Unhealthy]));
    // A check with an L4 port of its own is for the backend as a whole; so is an echo request.
    world.apply(of(HealthSpec { l4: Some(9000), ..check() }));
    assert_eq!(asked(&world), [9000]);
    world.apply(of(HealthSpec { check: HealthCheck::Icmp, ..check() }));
    assert_eq!(asked(&world), [0]);
    let udp = HealthCheck::Udp { send: b"?".to_vec(), expect: Vec::new() };
    world.apply(of(HealthSpec { check: udp, ..check() }));
    assert_eq!(asked(&world), [8053]);
}

#[test]
fn sv15_a_preference_overflows_to_the_next_where_the_near_ones_take_nothing() {
    let near = |n: u8, rank: u8| EndpointSpec { rank, ..endpoint(n) };
    let endpoints = vec![near(1, 0), near(2, 1), near(3, 2)];
    let public = LoadBalancerAddress { address: ip(PUBLIC), public: true };
    let of = |endpoints: Vec<EndpointSpec>| ServiceSpec {
        health: Some(check()),
        load_balancer: vec![public],
        ..service(endpoints)
    };
    let mut world = World::of(of(endpoints.clone()));
    // One that was not asked yet is no more there than one that fails.
    world.verdict(3, true);
    assert_eq!(world.behind(VIP), "(web-1) (web-2) web-3");
    world.verdict(1, true);
    world.verdict(2, true);
    for address in [VIP, PUBLIC] {
        assert_eq!(world.behind(address), "web-1 (web-2) (web-3)", "{address}");
    }
    world.verdict(1, false);
    assert_eq!(world.behind(VIP), "(web-1) web-2 (web-3)");
    world.run(2, false);
    assert_eq!(world.behind(VIP), "(web-1) (web-2) web-3");
    world.verdict(1, true);
    world.drain(1, None, true);
    assert_eq!(world.behind(VIP), "(web-1) (web-2) web-3");
    world.drain(1, None, false);
    assert_eq!(world.behind(VIP), "web-1 (web-2) (web-3)");
    // What ends is for when nobody else is there, near or not.
    let ends = EndpointSpec { condition: Condition::Terminating, ..near(1, 0) };
    world.apply(of(vec![ends, near(2, 1), near(3, 2)]));
    assert_eq!(world.behind(VIP), "(web-1) (web-2) web-3");
    // To clients of a policy `Local` every local one is alike; others know nothing of it (SEMANTICS SV13).
    world.apply(ServiceSpec { internal_local: true, ..of(vec![near(1, 0), near(3, 2)]) });
    assert_eq!(
        (world.behind(VIP).as_str(), world.behind(PUBLIC).as_str()),
        ("web-1 (web-2) web-3", "web-1 (web-2) (web-3)")
    );
    let private = LoadBalancerAddress { address: ip(PUBLIC), public: false };
    let local = ServiceSpec { external_local: true, load_balancer: vec![private], ..of(vec![near(1, 0), near(3, 2)]) };
    world.apply(local);
    assert_eq!(world.behind(PUBLIC), "web-1 (web-2) (web-3)", "a client inside is as under Cluster, which prefers");
}

/// Each zone that is built anew costs as much as the network has names, and guests cause it: DNS is told no faster than the packet path.
#[test]
fn news_for_dns_alone_are_held_back_as_others_are() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let headless = ServiceSpec { cluster: Vec::new(), names_healthy: true, ..service(vec![endpoint(1), six(1)]) };
    let mut world = World::of(headless);
    let told = world.run(1, false).told();
    assert_eq!(told, Told { packet_path: false, names: true });
    assert!(told.anybody());
    assert!(!world.run(1, false).told().anybody());
    let mut world = World::of(service(vec![endpoint(1)]));
    assert_eq!(world.run(1, false).told(), Told { packet_path: true, names: false });
}

/// Each kind of client for itself: those of the cluster address are not helped by what only others may use.
#[test]
fn sv13_a_service_serves_everywhere_if_each_kind_of_client_finds_somebody() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let serving = |world: &World| world.balance.status("shop/web").unwrap().serving.unwrap();
    let public = |address: &str| LoadBalancerAddress { address: ip(address), public: true };
    let both = |change: fn(EndpointSpec) -> EndpointSpec| service(vec![change(endpoint(1)), change(six(1))]).ports;
    let base = |ports| ServiceSpec { cluster: vec![ip(VIP), ip(VIP6)], ports, ..service(Vec::new()) };
    let not_inside = || both(|it| EndpointSpec { internal: false, ..it });
    let not_outside = || both(|it| EndpointSpec { external: false, ..it });
    // `internalTrafficPolicy: Local` with backends elsewhere only, and nobody comes from outside.
    assert_eq!(serving(&World::of(base(not_inside()))), Serving::Nowhere);
    assert_eq!(serving(&World::of(base(not_outside()))), Serving::Everywhere);
    let public = vec![public(PUBLIC), public("2001:db8:f::9")];
    let at = |ports| serving(&World::of(ServiceSpec { load_balancer: public.clone(), ..base(ports) }));
    let gaps = |whose: &str| {
        Serving::NotAt(
            ["IPv4", "IPv6"].map(|version| format!("http (80/TCP) over {version} for clients {whose}")).into(),
        )
    };
    assert_eq!(at(both(|it| it)), Serving::Everywhere);
    assert_eq!(at(not_inside()), gaps("of the cluster address"));
    assert_eq!(at(not_outside()), gaps("from outside"));
    // The name of a headless one is for its network.
    let headless = |ports| serving(&World::of(ServiceSpec { cluster: Vec::new(), ..base(ports) }));
    assert_eq!((headless(not_outside()), headless(not_inside())), (Serving::Everywhere, Serving::Nowhere));
}

/// A check over TCP of a backend that has an L4 port of UDP only: it would be unchecked for ever.
#[test]
fn who_has_no_l4_port_that_the_check_speaks_to_goes_by_whether_it_runs() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let port = |name: &str, proto, of: &[u8]| ServicePortSpec {
        name: name.into(),
        proto,
        l4: 53..=53,
        endpoints: of.iter().flat_map(|n| [endpoint(*n), six(*n)]).collect(),
    };
    let ports = vec![port("dns-tcp", 6, &[1]), port("dns", 17, &[1, 2])];
    let mut world = World::of(ServiceSpec { ports, health: Some(check()), ..ServiceSpec::bare("shop/web") });
    let states = |world: &World, name: &str| -> Vec<BackendState> {
        let status = world.balance.status("shop/web").unwrap();
        status.backends.iter().filter(|backend| backend.name == name).map(|backend| backend.state).collect()
    };
    assert_eq!(states(&world, "shop/web-1"), [BackendState::Unchecked; 4]);
    assert_eq!(states(&world, "shop/web-2"), [BackendState::Healthy; 2]);
    world.run(2, false);
    assert_eq!(states(&world, "shop/web-2"), [BackendState::Stopped; 2]);
}

#[test]
fn whether_a_service_is_ready_is_one_thing_and_what_is_wrong_with_backends_another() {
    let (mut http, mut dns) = (service(vec![endpoint(1)]).ports, service(vec![endpoint(2)]).ports);
    // Each of the two is ill at the other L4 port, where the other one serves.
    let ends = |n| EndpointSpec { condition: Condition::NotReady, ..endpoint(n) };
    http[0].endpoints.push(ends(2));
    dns[0].endpoints.push(ends(1));
    (dns[0].name, dns[0].l4) = ("other".into(), 81..=81);
    http.append(&mut dns);
    let mut world = World::of(ServiceSpec { ports: http, ..service(Vec::new()) });
    let health = world.balance.health("shop/web").unwrap();
    assert_eq!((health.ready, health.healthy(), health.total()), (true, 0, 2));
    let since = health.since;
    world.run(1, false);
    let health = world.balance.health("shop/web").unwrap();
    assert!(!health.ready && health.since > since);
}

#[test]
fn a_headless_name_outlives_a_restart_of_the_daemon_until_the_first_check() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let headless = ServiceSpec {
        cluster: Vec::new(),
        names_healthy: true,
        health: Some(check()),
        ..service(vec![endpoint(1), six(1)])
    };
    let mut world = World::default();
    world.balance.set_awaiting(true);
    let absent = |world: &World| world.balance.services["shop/web"].absent.len();
    world.apply(headless.clone());
    assert_eq!(absent(&world), 0, "awaited");
    world.run(1, true);
    assert_eq!(absent(&world), 0, "it is back, and was not asked yet");
    world.verdict(1, false);
    assert_eq!(absent(&world), 2, "what was asked counts");
    world.verdict(1, true);
    world.balance.set_awaiting(false);
    world.settle();
    assert_eq!(absent(&world), 0);
    // Later on one that was never asked has no name.
    world.apply(ServiceSpec { ports: service(vec![endpoint(1), six(1), endpoint(2), six(2)]).ports, ..headless });
    world.run(2, true);
    assert_eq!(absent(&world), 2);
}

#[test]
fn a_headless_service_that_was_gone_begins_with_all_of_its_endpoints() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let headless = ServiceSpec { cluster: Vec::new(), names_healthy: true, ..service(vec![endpoint(1), six(1)]) };
    let mut world = World::of(headless.clone());
    world.run(1, false);
    // An ExternalName of that name is none of these Services.
    let gone = world.apply_all(Vec::new());
    assert_eq!(gone.absent, [(Arc::from("shop/web"), BTreeSet::new())]);
    world.run(1, true);
    assert!(world.apply(headless.clone()).absent.is_empty());
    // Gone and back before anybody was told: what is true now comes last.
    world.run(1, false);
    world.balance.update(&[network("default", 4096)], &[]);
    let told = world.apply(headless).absent;
    assert_eq!(told.last().map(|(_, absent)| absent.len()), Some(2));
}
