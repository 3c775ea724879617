//! Services by their specs: what is found, who is chosen, what goes on.

use hostweave_switch::tables::OUTSIDE_VNI;
use hostweave_switch::wire::proto::{SCTP, TCP, UDP};

use super::super::frontend::{Asking, Standing, Why};
use super::super::hash::of_tuple;
use super::super::model::Refusal;
use super::*;

const VNI: u32 = 100;
const V6: &str = "fd00::20";

fn addr(text: &str) -> u128 {
    hostweave_switch::tables::mapped(text.parse().expect("an address"))
}

fn backend(name: &str, address: &str, l4: u16) -> Backend {
    Backend { name: name.into(), address: addr(address), l4: Some(l4), weight: 1, active: true, ejected: false }
}

fn drained(name: &str, address: &str, l4: u16) -> Backend {
    Backend { active: false, ..backend(name, address, l4) }
}

fn spec(service: &str, address: &str, proto: u8, l4: RangeInclusive<u16>, backends: &[Backend]) -> FrontendSpec {
    FrontendSpec {
        service: service.into(),
        port_name: "".into(),
        scope: VNI,
        address: addr(address),
        proto,
        l4,
        vni: VNI,
        sources: [].into(),
        affinity_s: None,
        backends: backends.into(),
        refusal: Refusal::Reject,
        begun: Default::default(),
    }
}

fn web(count: usize) -> Vec<Backend> {
    (0..count).map(|i| backend(&format!("shop/web-{i}"), &format!("10.64.1.{i}"), 8080)).collect()
}

fn asking(client: &str, hash: u64) -> Asking {
    Asking { hash, client: addr(client), l4: 80, attempt: 0, now: 1000 }
}

fn frontend<'a>(services: &'a Services, address: &str, proto: u8, l4: u16) -> &'a Frontend {
    match services.lookup(VNI, addr(address), proto, l4) {
        Lookup::Frontend(frontend) => frontend,
        other => panic!("{address} {proto} {l4}: {other:?}"),
    }
}

fn service_of(services: &Services, address: &str, proto: u8, l4: u16) -> String {
    match services.lookup(VNI, addr(address), proto, l4) {
        Lookup::Frontend(frontend) => frontend.spec().service.to_string(),
        Lookup::Undeclared => "undeclared".into(),
        Lookup::None => "none".into(),
    }
}

/// Names that many connections get, with how many of them.
fn spread(frontend: &Frontend) -> HashMap<String, usize> {
    let mut spread = HashMap::new();
    for i in 0..4000 {
        let hash = of_tuple(addr("10.64.0.10"), addr("10.96.0.1"), i, 80, TCP);
        let chosen = frontend.choose(&asking("10.64.0.10", hash)).expect("a backend");
        *spread.entry(chosen.backend.name.to_string()).or_default() += 1;
    }
    spread
}

/// How a connection to L4 port 80 of an address stands that goes to this backend.
fn standing(services: &Services, address: &str, proto: u8, (to, l4): (&str, u16)) -> Standing {
    match services.lookup(VNI, addr(address), proto, 80) {
        Lookup::Frontend(frontend) => frontend.standing(80, addr(to), l4),
        _ => Standing::Gone,
    }
}

#[test]
fn an_address_has_l4_ports_of_several_services_in_its_own_network() {
    let specs = [
        spec("a/web", "10.96.0.1", TCP, 80..=80, &web(1)),
        spec("a/dns", "10.96.0.1", UDP, 53..=53, &web(1)),
        spec("a/sig", "10.96.0.1", SCTP, 36412..=36412, &web(1)),
        spec("a/six", V6, TCP, 443..=443, &web(1)),
        FrontendSpec { scope: OUTSIDE_VNI, ..spec("a/out", "10.96.0.1", TCP, 80..=80, &web(1)) },
    ];
    let services = Services::compile(&specs, None);
    let of = |address, proto, l4| service_of(&services, address, proto, l4);
    assert_eq!(of("10.96.0.1", TCP, 80), "a/web");
    assert_eq!(of("10.96.0.1", UDP, 53), "a/dns");
    assert_eq!(of("10.96.0.1", SCTP, 36412), "a/sig");
    assert_eq!(of(V6, TCP, 443), "a/six");
    assert_eq!(of("10.96.0.1", UDP, 80), "undeclared");
    assert_eq!(of("10.96.0.1", TCP, 79), "undeclared");
    assert_eq!(of("10.96.0.1", TCP, 81), "undeclared");
    assert_eq!(of("10.96.0.1", 1, 0), "undeclared");
    assert_eq!(of("10.96.0.2", TCP, 80), "none");
    assert!(services.has_address(OUTSIDE_VNI, addr("10.96.0.1")) && !services.has_address(7, addr("10.96.0.1")));
    assert_eq!(services.sizes().addresses, 3);
    assert!(Services::default().is_empty() && !services.is_empty());
}

#[test]
fn ranges_reach_from_end_to_end_and_narrow_ones_win() {
    let specs = [
        spec("a/all", "10.96.0.1", TCP, 0..=65535, &web(1)),
        spec("a/web", "10.96.0.1", TCP, 80..=80, &web(1)),
        spec("a/rtp", "10.96.0.1", TCP, 10000..=20000, &web(1)),
        spec("b/rtp", "10.96.0.1", TCP, 10000..=20000, &web(1)),
    ];
    let services = Services::compile(&specs, None);
    for (l4, service) in [(0, "a/all"), (79, "a/all"), (80, "a/web"), (81, "a/all"), (65535, "a/all")] {
        assert_eq!(service_of(&services, "10.96.0.1", TCP, l4), service, "{l4}");
    }
    for (l4, service) in [(9999, "a/all"), (10000, "a/rtp"), (20000, "a/rtp"), (20001, "a/all")] {
        assert_eq!(service_of(&services, "10.96.0.1", TCP, l4), service, "{l4}");
    }
    let mut reversed = specs.to_vec();
    reversed.reverse();
    let reversed = Services::compile(&reversed, None);
    for l4 in [0, 79, 80, 81, 9999, 10000, 15000, 20001, 65535] {
        let [a, b] = [&services, &reversed].map(|services| service_of(services, "10.96.0.1", TCP, l4));
        assert_eq!(a, b, "{l4}");
    }
}

#[test]
fn sv8_the_order_of_backends_does_not_matter() {
    let mut backends = web(10);
    let one = Services::compile(&[spec("a/web", "10.96.0.1", TCP, 80..=80, &backends)], None);
    backends.reverse();
    backends.swap(2, 7);
    let other = Services::compile(&[spec("a/web", "10.96.0.1", TCP, 80..=80, &backends)], None);
    for hash in (0..10_000).map(|i| of_tuple(1, 2, i, 80, TCP)) {
        let [a, b] = [&one, &other].map(|services| {
            let frontend = frontend(services, "10.96.0.1", TCP, 80);
            frontend.choose(&asking("10.64.0.10", hash)).expect("a backend").backend.name.clone()
        });
        assert_eq!(a, b);
    }
}

#[test]
fn sv8_identical_sets_share_one_table() {
    let specs: Vec<FrontendSpec> = (0..50)
        .map(|i| {
            // Other addresses and L4 ports, the same names and weights.
            let shift = |b: Backend| Backend { address: b.address + (i << 8), l4: Some(i as u16 + 1), ..b };
            let backends: Vec<Backend> = web(10).into_iter().map(shift).collect();
            spec("a/web", &format!("10.96.0.{i}"), TCP, 80..=80, &backends)
        })
        .collect();
    let services = Services::compile(&specs, None);
    assert_eq!(services.sizes(), Sizes { addresses: 50, tables: 1, octets: 2 * 4093 });
    let mut heavier = specs.clone();
    heavier[3].backends = web(10).into_iter().map(|b| Backend { weight: 2, ..b }).collect();
    let next = Services::compile(&heavier, Some(&services));
    assert_eq!(next.sizes().tables, 2);
    let entries = |services| frontend(services, "10.96.0.1", TCP, 80).group.table.entries().as_ptr();
    assert_eq!(entries(&next), entries(&services));
    let last = Services::compile(&specs[..1], Some(&next));
    drop((services, next));
    assert_eq!(last.sizes(), Sizes { addresses: 1, tables: 1, octets: 2 * 4093 });
}

#[test]
fn only_active_backends_get_connections_by_their_weight() {
    let mut backends = web(3);
    backends[1].active = false;
    backends[2].weight = 3;
    let services = Services::compile(&[spec("a/web", "10.96.0.1", TCP, 80..=80, &backends)], None);
    let spread = spread(frontend(&services, "10.96.0.1", TCP, 80));
    assert_eq!(spread.get("shop/web-1"), None);
    let share = spread["shop/web-2"] as f64 / 4000.0;
    assert!((0.72..0.78).contains(&share), "{share}");
    let frontend = frontend(&services, "10.96.0.1", TCP, 80);
    let chosen = frontend.choose(&asking("10.64.0.10", 1)).expect("a backend");
    assert_eq!((frontend.counts(), chosen.l4, chosen.why), ((2, 3), 8080, Why::Maglev));
}

#[test]
fn sv7_an_l4_port_that_is_not_named_is_the_clients() {
    let backends = [Backend { l4: None, ..backend("a/one", "10.64.1.1", 0) }];
    let services = Services::compile(&[spec("a/all", "10.96.0.1", UDP, 1..=65535, &backends)], None);
    let frontend = frontend(&services, "10.96.0.1", UDP, 5004);
    let asking = Asking { l4: 5004, ..asking("10.64.0.10", 1) };
    assert_eq!(frontend.choose(&asking).expect("a backend").l4, 5004);
    assert_eq!(frontend.standing(5004, addr("10.64.1.1"), 5004), Standing::Active);
    assert_eq!(frontend.standing(5004, addr("10.64.1.1"), 5005), Standing::Gone);
}

#[test]
fn sv16_without_an_active_backend_there_is_none() {
    for refusal in [Refusal::Reject, Refusal::Drop] {
        for backends in [vec![], vec![drained("a/one", "10.64.1.1", 80)]] {
            let spec = FrontendSpec { refusal, ..spec("a/web", "10.96.0.1", TCP, 80..=80, &backends) };
            let services = Services::compile(&[spec], None);
            let frontend = frontend(&services, "10.96.0.1", TCP, 80);
            let chosen = frontend.choose(&asking("10.64.0.10", 1)).map(|_| ());
            assert_eq!(chosen, Err(refusal));
        }
    }
}

#[test]
fn sv18_source_ranges_are_the_clients() {
    let sources = ["198.51.100.0/24", "2001:db8::/32"].map(|net| net.parse().expect("a range"));
    let spec = FrontendSpec { sources: sources.into(), ..spec("a/web", "10.96.0.1", TCP, 80..=80, &web(1)) };
    let services = Services::compile(&[spec], None);
    let frontend = frontend(&services, "10.96.0.1", TCP, 80);
    for (client, admitted) in
        [("198.51.100.7", true), ("198.51.101.7", false), ("2001:db8::7", true), ("2001:db9::7", false)]
    {
        assert_eq!(frontend.admits(addr(client)), admitted, "{client}");
    }
}

#[test]
fn sv5_sv9_what_is_drained_keeps_established_tcp_and_sctp_and_nothing_else() {
    let ejected = Backend { ejected: true, ..drained("a/four", "10.64.1.4", 80) };
    let backends = [backend("a/one", "10.64.1.1", 80), drained("a/two", "10.64.1.2", 80), ejected];
    let specs = [TCP, UDP].map(|proto| spec("a/web", "10.96.0.1", proto, 80..=80, &backends));
    let services = Services::compile(&specs, None);
    let standing = |address, proto, to: &str| standing(&services, address, proto, (to, 80));
    assert_eq!(standing("10.96.0.1", TCP, "10.64.1.1"), Standing::Active);
    assert_eq!(standing("10.96.0.1", UDP, "10.64.1.2"), Standing::Draining);
    assert_eq!(standing("10.96.0.1", TCP, "10.64.1.3"), Standing::Gone);
    assert_eq!(standing("10.96.0.2", TCP, "10.64.1.1"), Standing::Gone);
    assert_eq!(standing("10.96.0.1", SCTP, "10.64.1.1"), Standing::Gone);
    assert!(Standing::Active.goes_on(UDP, false) && Standing::Draining.goes_on(TCP, true));
    assert!(!Standing::Draining.goes_on(TCP, false) && !Standing::Draining.goes_on(UDP, true));
    assert!(Standing::Draining.goes_on(SCTP, true) && !Standing::Draining.goes_on(SCTP, false));
    // One that is ejected has not left: also over UDP what it answers is not broken.
    assert_eq!(standing("10.96.0.1", UDP, "10.64.1.4"), Standing::Ejected);
    for proto in [TCP, UDP, SCTP] {
        assert!(Standing::Ejected.goes_on(proto, true) && !Standing::Ejected.goes_on(proto, false), "{proto}");
    }
    assert!(!Standing::Gone.goes_on(TCP, true) && !Standing::Gone.goes_on(SCTP, true));
}

#[test]
fn one_address_behind_two_names_stands_by_the_active_one() {
    let backends = [drained("a/one", "10.64.1.1", 80), backend("a/two", "10.64.1.1", 80)];
    let services = Services::compile(&[spec("a/web", "10.96.0.1", TCP, 80..=80, &backends)], None);
    assert_eq!(standing(&services, "10.96.0.1", TCP, ("10.64.1.1", 80)), Standing::Active);
}

#[test]
fn sv10_a_client_keeps_its_backend_when_others_come_and_go() {
    let with = |backends: &[Backend]| FrontendSpec {
        affinity_s: Some(60),
        ..spec("a/web", "10.96.0.1", TCP, 80..=80, backends)
    };
    let services = Services::compile(&[with(&web(4))], None);
    let get = |services: &Services, client: &str, hash, now| {
        let frontend = frontend(services, "10.96.0.1", TCP, 80);
        let chosen = frontend.choose(&Asking { now, ..asking(client, hash) }).expect("a backend");
        let (name, why) = (chosen.backend.name.to_string(), chosen.why);
        frontend.begun(addr(client), &name, now);
        (name, why)
    };
    let clients: Vec<String> = (0..200).map(|i| format!("10.64.2.{i}")).collect();
    let first: Vec<String> = clients.iter().map(|client| get(&services, client, 1, 1000).0).collect();
    // Another tuple of the same client, later, and with 20 more backends.
    let more = services.replace(&[with(&web(24))]);
    for (client, had) in clients.iter().zip(&first) {
        assert_eq!(get(&more, client, 99, 1060), (had.clone(), Why::Affinity));
    }
    // The time counts from there, and is over a second later for those who did not come back.
    assert_eq!(get(&more, &clients[0], 5, 1120), (first[0].clone(), Why::Affinity));
    assert_eq!(get(&more, &clients[1], 5, 1121).1, Why::Maglev);
    // Whose backend is drained gets another one.
    let drained: Vec<Backend> = web(24).into_iter().map(|b| Backend { active: *b.name != *first[0], ..b }).collect();
    let fewer = more.replace(&[with(&drained)]);
    let (name, why) = get(&fewer, &clients[0], 5, 1121);
    assert!(name != first[0] && why == Why::Maglev);
}

#[test]
fn without_affinity_a_client_is_not_remembered() {
    let services = Services::compile(&[spec("a/web", "10.96.0.1", TCP, 80..=80, &web(4))], None);
    let frontend = frontend(&services, "10.96.0.1", TCP, 80);
    frontend.begun(addr("10.64.0.10"), "shop/web-1", 1000);
    let spread = spread(frontend);
    assert_eq!(spread.len(), 4);
}

#[test]
fn another_attempt_finds_another_backend() {
    let services = Services::compile(&[spec("a/web", "10.96.0.1", TCP, 80..=80, &web(4))], None);
    let frontend = frontend(&services, "10.96.0.1", TCP, 80);
    let names = (0..16).map(|attempt| {
        let asking = Asking { attempt, ..asking("10.64.0.10", 77) };
        frontend.choose(&asking).expect("a backend").backend.name.to_string()
    });
    assert_eq!(names.collect::<std::collections::BTreeSet<_>>().len(), 4);
}

#[test]
fn what_is_replaced_leaves_the_rest_as_it_was() {
    let specs = [
        spec("a/web", "10.96.0.1", TCP, 80..=80, &web(2)),
        spec("a/all", "10.96.0.1", TCP, 1..=65535, &web(3)),
        spec("a/dns", "10.96.0.2", UDP, 53..=53, &web(3)),
    ];
    let before = Services::compile(&specs, None);
    let changed = [
        spec("a/web", "10.96.0.1", TCP, 80..=80, &[backend("a/new", "10.64.9.9", 80)]),
        spec("a/new", "10.96.0.3", TCP, 80..=80, &web(1)),
    ];
    let after = before.replace(&changed);
    assert_eq!(standing(&after, "10.96.0.1", TCP, ("10.64.9.9", 80)), Standing::Active);
    assert_eq!(standing(&after, "10.96.0.1", TCP, ("10.64.1.1", 8080)), Standing::Gone);
    assert_eq!(standing(&before, "10.96.0.1", TCP, ("10.64.1.1", 8080)), Standing::Active);
    assert_eq!(service_of(&after, "10.96.0.1", TCP, 81), "a/all");
    assert_eq!(service_of(&after, "10.96.0.3", TCP, 80), "a/new");
    assert_eq!(service_of(&before, "10.96.0.3", TCP, 80), "none");
    let same = |a: &Frontend, b: &Frontend| std::ptr::eq(a, b);
    assert!(same(frontend(&before, "10.96.0.2", UDP, 53), frontend(&after, "10.96.0.2", UDP, 53)));
    let whole = Services::compile(&specs, Some(&before));
    assert!(same(frontend(&before, "10.96.0.1", TCP, 80), frontend(&whole, "10.96.0.1", TCP, 80)));
}
