//! Which addresses ports get, and that they keep them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use uuid::Uuid;

use super::*;
use crate::config::desired::{HostFacts, to_desired};
use crate::config::ipam::{Assignments, LearnError, Plan, assign, learn};

/// Assigns with identities 1, 2, …
fn plan(set: &ObjectSet, remembered: &Assignments) -> Plan {
    let mut count = 100 * remembered.len() as u128;
    assign(set, remembered, &mut || {
        count += 1;
        Uuid::from_u128(count)
    })
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::port("default", name)
}

/// One port per (name, spec), in a network `n` with `cidrs`.
fn set(cidrs: &str, ports: &[(&str, &str)]) -> ObjectSet {
    let ports = ports.iter().map(|(name, spec)| port(spec).replace("{name: p}", &format!("{{name: {name}}}")));
    valid(&(network(&format!("{{cidrs: [{cidrs}]}}")) + "---\n" + &ports.collect::<Vec<_>>().join("---\n")))
}

fn v4(plan: &Plan, name: &str) -> String {
    plan.assignments[&key(name)].v4.unwrap().to_string()
}

#[test]
fn ports_get_the_lowest_free_address_and_a_mac_that_shows_it() {
    let set = set(
        "10.0.0.0/29, '2001:db8::/64'",
        &[("a", "{network: n}"), ("b", "{network: n, addresses: [10.0.0.3]}"), ("c", "{network: n}")],
    );
    let plan = plan(&set, &Assignments::new());
    assert_eq!((v4(&plan, "a"), v4(&plan, "c")), ("10.0.0.2".to_owned(), "10.0.0.4".to_owned()));
    let b = &plan.assignments[&key("b")];
    assert_eq!((b.v4, b.mac.to_string().as_str()), (None, "02:00:0a:00:00:03"));
    let c = &plan.assignments[&key("c")];
    assert_eq!(c.mac.to_string(), "02:00:0a:00:00:04");
    assert_eq!(c.v6.unwrap().to_string(), "2001:db8::aff:fe00:4");
    assert_eq!(plan.changed.len(), 3);
}

#[test]
fn what_was_given_stays_and_what_was_freed_is_given_again() {
    let cidrs = "10.0.0.0/29";
    let three = set(cidrs, &[("a", "{network: n}"), ("b", "{network: n}"), ("c", "{network: n}")]);
    let first = plan(&three, &Assignments::new());
    assert_eq!(plan(&three, &first.assignments).changed, []);

    let two = set(cidrs, &[("b", "{network: n}"), ("c", "{network: n}")]);
    let second = plan(&two, &first.assignments);
    assert_eq!((second.changed.as_slice(), second.freed.as_slice()), (&[][..], &[key("a")][..]));
    assert_eq!((v4(&second, "b"), v4(&second, "c")), (v4(&first, "b"), v4(&first, "c")));

    let again = set(cidrs, &[("a0", "{network: n}"), ("b", "{network: n}"), ("c", "{network: n}")]);
    let third = plan(&again, &second.assignments);
    assert_eq!(v4(&third, "a0"), "10.0.0.2");
    assert_ne!(third.assignments[&key("a0")].uid, first.assignments[&key("a")].uid);
}

#[test]
fn a_full_range_refuses_only_who_comes_too_late() {
    let ports: Vec<_> = ["a", "b", "c", "d", "e", "f"].into_iter().map(|name| (name, "{network: n}")).collect();
    let plan = plan(&set("10.0.0.0/29", &ports), &Assignments::new());
    assert_eq!(plan.assignments.len(), 5);
    assert_eq!(plan.problems.len(), 1);
    assert_eq!(plan.problems[0].object.as_deref(), Some("Port default/f"));
    assert_eq!(plan.problems[0].code, "hostweave::config::exhausted");
}

#[test]
fn nobody_takes_the_address_of_a_port_that_has_it() {
    let before = set("10.0.0.0/29", &[("a", "{network: n}")]);
    let first = plan(&before, &Assignments::new());
    let spec = "{network: n, addresses: [10.0.0.2]}";
    let after = set("10.0.0.0/29", &[("a", "{network: n}"), ("thief", spec)]);
    let second = plan(&after, &first.assignments);
    assert_eq!(v4(&second, "a"), "10.0.0.2");
    assert!(!second.assignments.contains_key(&key("thief")));
    assert_eq!(second.problems.len(), 1, "{:?}", second.problems);
    assert!(second.problems[0].message.contains("10.0.0.2 was given to Port default/a"), "{:?}", second.problems);
}

#[test]
fn a_port_that_moves_keeps_its_identity_and_changes_its_addresses() {
    let text = |network_name: &str| {
        network("{cidrs: [10.0.0.0/24]}") + "---\n" + &port(&format!("{{network: {network_name}}}"))
    };
    let first = plan(&valid(&text("n")), &Assignments::new());
    let second = plan(&valid(&text("default")), &first.assignments);
    let (old, new) = (&first.assignments[&key("p")], &second.assignments[&key("p")]);
    assert_eq!((old.uid, old.mac), (new.uid, new.mac));
    assert_eq!((old.v4, new.v4), (Some(Ipv4Addr::new(10, 0, 0, 2)), Some(Ipv4Addr::new(10, 64, 0, 2))));
}

#[test]
fn fixed_macs_decide_slaac_addresses_and_small_prefixes_count_up() {
    let mac = "{network: n, mac: '02:aa:00:00:00:01'}";
    let one = plan(&set("'2001:db8::/64'", &[("a", mac), ("b", "{network: n}")]), &Assignments::new());
    assert_eq!(one.assignments[&key("a")].v6.unwrap().to_string(), "2001:db8::aa:ff:fe00:1");
    let b = &one.assignments[&key("b")];
    assert_eq!((b.v4, b.mac.0[0], b.mac.0[1]), (None, 2, 1));

    let small = set("'2001:db8::/126'", &[("a", "{network: n}"), ("b", "{network: n}"), ("c", "{network: n}")]);
    let two = plan(&small, &Assignments::new());
    assert_eq!(two.assignments[&key("a")].v6.unwrap().to_string(), "2001:db8::2");
    assert_eq!(two.assignments[&key("b")].v6.unwrap().to_string(), "2001:db8::3");
    assert_eq!(two.problems.len(), 1);
}

#[test]
fn learned_addresses_belong_to_the_first_owner() {
    let set = set("'2001:db8::/64'", &[("a", "{network: n}"), ("b", "{network: n}")]);
    let mut assignments = plan(&set, &Assignments::new()).assignments;
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let own = assignments[&key("a")].v6.unwrap();
    assert_eq!(learn(&set, &mut assignments, &key("a"), own), Ok(false));
    assert_eq!(learn(&set, &mut assignments, &key("b"), own), Err(LearnError::Taken));
    assert_eq!(learn(&set, &mut assignments, &key("a"), address("2001:db8::77")), Ok(true));
    assert_eq!(learn(&set, &mut assignments, &key("b"), address("2001:db8::77")), Err(LearnError::Taken));
    assert_eq!(learn(&set, &mut assignments, &key("a"), address("2001:db8::1")), Err(LearnError::Outside));
    assert_eq!(learn(&set, &mut assignments, &key("a"), address("2001:db8:1::9")), Err(LearnError::Outside));
    assert_eq!(learn(&set, &mut assignments, &key("x"), address("2001:db8::9")), Err(LearnError::NoPort));
    for last in 1..8 {
        assert_eq!(learn(&set, &mut assignments, &key("a"), address(&format!("2001:db8::1:{last}"))), Ok(true));
    }
    assert_eq!(learn(&set, &mut assignments, &key("a"), address("2001:db8::9")), Err(LearnError::Full));
    // They survive a restart, through the store's JSON.
    let json = serde_json::to_value(&assignments[&key("a")]).unwrap();
    assert_eq!(serde_json::from_value::<Assignment>(json).unwrap(), assignments[&key("a")]);
    assert_eq!(plan(&set, &assignments).assignments, assignments);
}

#[test]
fn squatting_on_the_address_of_the_next_port_does_not_keep_it_away() {
    let cidrs = "10.0.0.0/24, '2001:db8::/64'";
    let one = set(cidrs, &[("a", "{network: n}")]);
    let mut assignments = plan(&one, &Assignments::new()).assignments;
    let next = "2001:db8::aff:fe00:3".parse().unwrap();
    assert_eq!(learn(&one, &mut assignments, &key("a"), next), Ok(true));
    let two = plan(&set(cidrs, &[("a", "{network: n}"), ("b", "{network: n}")]), &assignments);
    let b = &two.assignments[&key("b")];
    assert_eq!((v4(&two, "b").as_str(), b.mac.0[1]), ("10.0.0.3", 1));
    assert_ne!(b.v6, Some(next));
    assert_eq!(two.assignments[&key("a")].learned, [next]);
}

#[test]
fn learning_that_is_off_learns_nothing() {
    let text = network("{cidrs: ['2001:db8::/64'], addressLearning: off}") + "---\n" + &port("{network: n}");
    let set = valid(&text);
    let mut assignments = plan(&set, &Assignments::new()).assignments;
    let address = "2001:db8::77".parse().unwrap();
    assert_eq!(learn(&set, &mut assignments, &key("p"), address), Err(LearnError::Off));
}

#[test]
fn the_packet_path_is_told_everything() {
    let text = host("{defaults: {queues: 4, group: kvm}}")
        + "---\n"
        + &port("{addresses: [10.64.0.9], backend: {vhostUser: {allowedUsers: [vmm, 7]}}}")
        + "---\n"
        + &port("{backend: {vhostUser: {group: nobody-knows}}}").replace("name: p", "name: q");
    let set = valid(&text);
    let plan = plan(&set, &Assignments::new());
    let group = |name: &str| (name == "kvm").then_some(36);
    let user = |name: &str| (name == "vmm").then_some(1000);
    let facts = HostFacts { runtime_dir: Path::new("/run/hw"), group: &group, user: &user, node: &String::new };
    let (desired, problems) = to_desired(&set, &plan.assignments, &Default::default(), Default::default(), &facts);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field.as_deref(), Some("spec.backend.vhostUser.group"));
    assert_eq!(desired.networks.len(), 1);
    assert_eq!(desired.ports.len(), 1);
    let port = &desired.ports[0];
    assert_eq!((port.v4[0], port.v6.len(), port.hostname.as_str()), (Ipv4Addr::new(10, 64, 0, 9), 1, "p"));
    assert_eq!(
        port.backend,
        crate::fabric::spec::BackendSpec::VhostUser {
            mode: crate::fabric::spec::SocketMode::Listen,
            socket: "/run/hw/ports/default.p.sock".into(),
            incoming_socket: Some("/run/hw/ports/default.p.sock+in".into()),
            queues: 4,
            group: Some(36),
            allowed_uids: vec![1000, 7],
        }
    );
}

#[test]
fn ten_thousand_ports_are_assigned_in_one_go() {
    let ports: Vec<String> = (0..10_000).map(|number| format!("p{number}")).collect();
    let specs: Vec<_> = ports.iter().map(|name| (name.as_str(), "{network: n}")).collect();
    let set = set("10.0.0.0/16, '2001:db8::/64'", &specs);
    let plan = plan(&set, &Assignments::new());
    assert_eq!((plan.assignments.len(), plan.problems.len()), (10_000, 0));
    let mut all: Vec<IpAddr> =
        plan.assignments.values().flat_map(|own| [own.v4.unwrap().into(), own.v6.unwrap().into()]).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 20_000);
}
