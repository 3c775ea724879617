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
    assert!(health(&world).is_ready());
    let settled = world.apply(of(vec![endpoint(1), six(1)], vec![endpoint(1)]));
    assert_eq!(gaps(&world), "dns (53/UDP) over IPv6");
    assert!(told(&settled).contains(&"not serving at dns (53/UDP) over IPv6".to_owned()), "{:?}", told(&settled));
    let now = health(&world);
    assert!(!now.is_ready() && now.since > since);
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
