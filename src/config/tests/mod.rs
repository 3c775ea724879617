//! Files in, objects or diagnostics out: one table of what is refused, one of what passes, and the examples.

mod annotations;
mod cluster_policies;
mod egress;
mod held;
mod host_access;
mod ipam;
mod outside;
mod policies;
mod service_addresses;
mod service_refusals;
mod services;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fuzz::fuzz_yaml;
use super::*;

/// Everything that an offline `validate` does.
fn validate(text: &str) -> Result<(ObjectSet, Vec<Diagnostic>), Diagnostics> {
    let loaded = load_sources(vec![Source { name: "t.yaml".to_owned(), text: text.to_owned() }])?;
    let objects = loaded.objects.into_iter().map(Arc::new);
    let (set, mut warnings) = check_set(objects, Path::new("/run/hostweave"))?;
    warnings.extend(loaded.warnings);
    Ok((set, warnings))
}

/// A set that must be valid, without warnings.
fn valid(text: &str) -> ObjectSet {
    let (set, warnings) = validate(text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    assert_eq!(warnings, [], "{text}");
    set
}

/// `code line what-is-marked`, for each problem.
fn summary(text: &str) -> Vec<String> {
    let diagnostics = match validate(text) {
        Ok((_, warnings)) => Diagnostics(warnings),
        Err(problems) => problems,
    };
    let line = |diagnostic: &Diagnostic| {
        let code = diagnostic.code.rsplit("::").next().unwrap().to_owned();
        let Some(place) = &diagnostic.place else { return code };
        let marked = &place.text[place.offset as usize..(place.offset + place.length) as usize];
        let before = place.text[..place.offset as usize].chars().count();
        assert_eq!(place.column as usize, before + 1, "{diagnostic:?}");
        format!("{code} {} {marked}", place.line)
    };
    diagnostics.0.iter().map(line).collect()
}

fn port(spec: &str) -> String {
    format!("apiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {{name: p}}\nspec: {spec}\n")
}

fn network(spec: &str) -> String {
    format!("apiVersion: hostweave.dev/v1alpha1\nkind: Network\nmetadata: {{name: n}}\nspec: {spec}\n")
}

fn nat_pool(name: &str, spec: &str) -> String {
    format!("apiVersion: hostweave.dev/v1alpha1\nkind: NatPool\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn address_pool(name: &str, spec: &str) -> String {
    format!("apiVersion: hostweave.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn host(spec: &str) -> String {
    format!("apiVersion: hostweave.dev/v1alpha1\nkind: HostConfig\nmetadata: {{name: h}}\nspec: {spec}\n")
}

/// Each case with the problems it must show, in order.
fn check(cases: &[(String, &[&str])]) {
    let wrong = |(text, expected): &(String, &[&str])| {
        let found = summary(text);
        (found != *expected).then(|| format!("{text}expected {expected:?}\n   found {found:?}\n"))
    };
    let wrong: Vec<String> = cases.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ports_that_are_refused() {
    check(&[
        (port("{netwrok: default}"), &["unknown_field 4 netwrok"]),
        (port("{network: nowhere}"), &["not_found 4 nowhere"]),
        (port("{backend: {vhostUser: {mode: lisen}}}"), &["unknown_value 4 lisen"]),
        (port("{backend: {vhostUser: {mode: connect}}}"), &["missing_field 4 mode"]),
        (port("{backend: {vhostUser: {queues: 17}}}"), &["out_of_range 4 17"]),
        (port("{backend: {vhostUser: {queues: two}}}"), &["wrong_type 4 two"]),
        (port("{backend: {vhostUser: {socketPath: run/x}}}"), &["invalid_path 4 run/x"]),
        (port("{backend: {vhostUser: {socketPath: /run/../x}}}"), &["invalid_path 4 /run/../x"]),
        (
            port(&format!("{{backend: {{vhostUser: {{socketPath: /{}}}}}}}", "x".repeat(104))),
            &[&format!("out_of_range 4 /{}", "x".repeat(104))],
        ),
        (port("{backend: {vhostUser: {}, tap: {name: a}}}"), &["conflict 4 backend"]),
        (port("{backend: {tap: {name: sixteen-octets-x}}}"), &["invalid_name 4 sixteen-octets-x"]),
        (port("{backend: {tap: {}}}"), &["missing_field 4 tap"]),
        (port("{mac: 01:00:5e:00:00:01}"), &["invalid_mac 4 01:00:5e:00:00:01"]),
        (port("{mac: 02:68:77:00:00:01}"), &["invalid_mac 4 02:68:77:00:00:01"]),
        (port("{mac: 02-00-00-00-00-01}"), &["invalid_mac 4 02-00-00-00-00-01"]),
        (port("{addresses: [10.64.0.300]}"), &["invalid_address 4 10.64.0.300"]),
        (port("{addresses: [10.64.0.9/16]}"), &["invalid_address 4 10.64.0.9/16"]),
        (port("{addresses: [10.65.0.9]}"), &["invalid_address 4 10.65.0.9"]),
        (port("{addresses: [10.64.0.1]}"), &["invalid_address 4 10.64.0.1"]),
        (port("{addresses: [10.64.0.0]}"), &["invalid_address 4 10.64.0.0"]),
        (port("{addresses: [10.64.255.255]}"), &["invalid_address 4 10.64.255.255"]),
        (port("{addresses: ['fd68:7700:64::1']}"), &["invalid_address 4 'fd68:7700:64::1'"]),
        (port("{addresses: [10.64.0.9, 10.64.0.9]}"), &["duplicate 4 10.64.0.9"]),
        (port("{adminState: sideways}"), &["unknown_value 4 sideways"]),
        (port("{hostname: Web_0}"), &["invalid_name 4 Web_0"]),
        (port("{namedPorts: [{name: http, port: 0}]}"), &["out_of_range 4 0"]),
        (port("{namedPorts: [{name: http, port: 80, protocol: tcp}]}"), &["unknown_value 4 tcp"]),
        (port("{metadata: {userData: a, userDataBase64: YQ==}}"), &["conflict 4 metadata"]),
        (port("{metadata: {userDataBase64: '?'}}"), &["invalid_base64 4 userDataBase64"]),
        (port("{metadata: {sshKeys: [ssh-ed25519 AAAA]}}"), &["invalid_key 4 ssh-ed25519 AAAA"]),
        (port("{metadata: {tokens: never}}"), &["unknown_value 4 never"]),
        (port("{metadata: {userdata: a}}"), &["unknown_field 4 userdata"]),
        (port("[a]"), &["wrong_type 4 spec"]),
    ]);
}

#[test]
fn networks_and_hosts_that_are_refused() {
    check(&[
        (network("{}"), &["missing_field 4 spec"]),
        (
            host(
                "{externalDNS: {server: ns, zone: Example.org, baseDomain: a.net, ttl: 0, tsig: {name: '-', secretFile: k}}}",
            ),
            &[
                "invalid_name 4 Example.org",
                "conflict 4 a.net",
                "invalid_address 4 ns",
                "invalid_name 4 '-'",
                "invalid_path 4 k",
                "out_of_range 4 0",
            ],
        ),
        (host("{externalDNS: {server: 192.0.2.1, zone: a.b}}"), &["missing_field 4 externalDNS"]),
        (network("{cidrs: []}"), &["missing_field 4 cidrs"]),
        (network("{cidrs: [10.0.0.1/24]}"), &["invalid_cidr 4 10.0.0.1/24"]),
        (network("{cidrs: [10.0.0.0]}"), &["invalid_cidr 4 10.0.0.0"]),
        (network("{cidrs: ['fd00:ec2::/64']}"), &["invalid_cidr 4 'fd00:ec2::/64'"]),
        (network("{cidrs: [10.0.0.0/31]}"), &["invalid_cidr 4 10.0.0.0/31"]),
        (network("{cidrs: [127.0.0.0/8]}"), &["invalid_cidr 4 127.0.0.0/8"]),
        (network("{cidrs: ['fe80::/64']}"), &["invalid_cidr 4 'fe80::/64'"]),
        (network("{cidrs: [10.0.0.0/24, 10.1.0.0/24]}"), &["duplicate 4 10.1.0.0/24"]),
        (network("{cidrs: [10.0.0.0/24], gateways: [10.1.0.1]}"), &["invalid_address 4 10.1.0.1"]),
        (network("{cidrs: [10.0.0.0/24], gateways: [10.0.0.255]}"), &["invalid_address 4 10.0.0.255"]),
        (network("{cidrs: [10.0.0.0/24], gateways: ['2001:db8::1']}"), &["invalid_address 4 '2001:db8::1'"]),
        (network("{cidrs: [10.0.0.0/24], mtu: 576}"), &["out_of_range 4 576"]),
        (network("{cidrs: [10.0.0.0/24], vni: 16777216}"), &["out_of_range 4 16777216"]),
        (network("{cidrs: [10.0.0.0/24], vni: 4096}"), &["conflict 4 4096"]),
        (network("{cidrs: [10.0.0.0/24], bridged: true}"), &["not_yet_supported 4 bridged"]),
        (network("{cidrs: [10.0.0.0/24], hostPrefixes: []}"), &["not_yet_supported 4 hostPrefixes"]),
        (network("{cidrs: [10.0.0.0/24], gatewayAddressPolicy: EUI64}"), &["not_yet_supported 4 gatewayAddressPolicy"]),
        (
            network("{cidrs: [10.0.0.0/24], egress: {disablePublicAccess: true}}"),
            &["refused_field 4 disablePublicAccess"],
        ),
        (network("{cidrs: [10.0.0.0/24], ingress: {disablePublicServices: true}}"), &["not_yet_supported 4 ingress"]),
        (network("{cidrs: [10.0.0.0/24], addressLearning: maybe}"), &["unknown_value 4 maybe"]),
        (network("{cidrs: [10.0.0.0/24], dns: {servers: [dns.example]}}"), &["invalid_address 4 dns.example"]),
        (host("{store: {etcd: {endpoints: []}}}"), &["not_yet_supported 4 etcd"]),
        (host("{workers: {cpus: [2, 2]}}"), &["duplicate 4 2"]),
        (host("{workers: {cpus: [1], count: 1}}"), &["conflict 4 workers"]),
        (host("{workers: {count: 65}}"), &["out_of_range 4 65"]),
        (host("{region: Ord_1}"), &["invalid_name 4 Ord_1"]),
        (host("{}") + "---\n" + &host("{}").replace("name: h", "name: i"), &["duplicate 8 i"]),
    ]);
}

#[test]
fn metadata_that_is_refused() {
    let with = |metadata: &str| format!("apiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {metadata}\n");
    check(&[
        (with("{}"), &["missing_field 3 metadata"]),
        (with("{name: Web}"), &["invalid_name 3 Web"]),
        (with("{name: 7}"), &["wrong_type 3 7"]),
        (with("{name: a, namespace: a.b}"), &["invalid_name 3 a.b"]),
        (with("{name: a, namespace: shop}"), &["not_found 3 shop"]),
        (with("{name: a, labels: {app: a b}}"), &["invalid_label 3 a b"]),
        (with("{name: a, labels: {version: 1.10}}"), &["wrong_type 3 1.10"]),
        (with("{name: a, labels: {on: yes, b: true}}"), &["wrong_type 3 true"]),
        (with("{name: a, labels: {-x: y}}"), &["invalid_label 3 -x"]),
        (with("{name: a, finalizers: [x]}"), &["refused_field 3 finalizers"]),
        (with("{name: a, generation: 4}"), &["ignored_field 3 generation"]),
        (with("{name: a, uid: 17}"), &["wrong_type 3 17"]),
        (with("{name: a, uid: x}"), &["wrong_value 3 x"]),
        (with(&format!("{{name: {}}}", "a".repeat(90))), &[&format!("out_of_range 3 {}", "a".repeat(90))]),
    ]);
}

#[test]
fn documents_that_are_no_objects() {
    let cases: &[(String, &[&str])] = &[
        ("just text\n".to_owned(), &["wrong_type 1 just text"]),
        ("kind: Port\n".to_owned(), &["missing_field 1 kind"]),
        ("apiVersion: v1\nkind: Prot\n".to_owned(), &["unknown_kind 2 Prot"]),
        ("apiVersion: v1\nkind: Port\n".to_owned(), &["unknown_value 1 v1"]),
        ("apiVersion: v1\nkind: [Port]\n".to_owned(), &["wrong_type 2 kind"]),
        ("apiVersion: networking.k8s.io/v1\nkind: Ingress\n".to_owned(), &["not_yet_supported 2 Ingress"]),
        (
            "apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\n".to_owned(),
            &["unknown_value 1 networking.k8s.io/v1beta1"],
        ),
        ("apiVersion: v1\nkind: Secret\n".to_owned(), &["not_yet_supported 2 Secret"]),
        (
            "apiVersion: virtualservers.coreweave.com/v1alpha1\nkind: VirtualServer\n".to_owned(),
            &["not_yet_supported 2 VirtualServer"],
        ),
    ];
    check(cases);
    for syntax in ["a: [b", "a: b: c", "a: *nowhere", "{a: 1, a: 2}", "%YAML 9\n---\na", "a: !evil b"] {
        let problems = validate(syntax).unwrap_err();
        let problem = &problems.0[0];
        assert_eq!(problems.0.len(), 1, "{syntax}: {problems}");
        assert!(
            ["hostweave::config::syntax", "hostweave::config::duplicate_field"].contains(&problem.code.as_str()),
            "{syntax}: {problems}"
        );
        assert!(problem.place.is_some(), "{syntax}: {problems}");
    }
}

#[test]
fn all_problems_of_all_objects_are_reported_at_once() {
    let text = port("{netwrok: a, mac: x, addresses: [y], backend: {vhostUser: {mode: z}}}")
        + "---\n"
        + &network("{cidrs: [1], mtu: big}")
        + "---\n"
        + &port("{}").replace("name: p", "name: fine");
    assert_eq!(
        summary(&text),
        [
            "unknown_field 4 netwrok",
            "unknown_value 4 z",
            "invalid_mac 4 x",
            "invalid_address 4 y",
            "wrong_type 9 1",
            "wrong_type 9 big",
        ]
    );
}

#[test]
fn what_two_objects_cannot_share() {
    let two = |a: &str, b: &str| port(a) + "---\n" + &port(b).replace("name: p", "name: q");
    check(&[
        (two("{mac: 02:00:00:00:00:01}", "{mac: 02:00:00:00:00:01}"), &["conflict 9 02:00:00:00:00:01"]),
        (two("{addresses: [10.64.0.9]}", "{addresses: [10.64.0.9]}"), &["conflict 9 10.64.0.9"]),
        (two("{backend: {tap: {name: a}}}", "{backend: {tap: {name: a}}}"), &["conflict 9 a"]),
        (
            two("{backend: {vhostUser: {socketPath: /s}}}", "{backend: {vhostUser: {socketPath: /s}}}"),
            &["conflict 9 /s"],
        ),
        (port("{}") + "---\n" + &port("{}"), &["duplicate 8 p"]),
    ]);
    // The same device name in two namespaces, and the same address in two networks, are two things.
    valid(&two("{backend: {tap: {name: a, netns: /run/netns/x}}}", "{backend: {tap: {name: a, netns: /run/netns/y}}}"));
    valid(&std::fs::read_to_string(configs().join("two-networks.yaml")).unwrap());
    // A listening port's default socket belongs to it as if it were written.
    check(&[(
        two("{}", "{backend: {vhostUser: {socketPath: /run/hostweave/ports/default.p.sock}}}"),
        &["conflict 9 /run/hostweave/ports/default.p.sock"],
    )]);
}

#[test]
fn a_pod_lends_its_labels_to_the_port_of_its_name() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}}\n";
    let set = valid(&(port("{}").replace("{name: p}", "{name: p, labels: {tier: a}}") + pod));
    let labels = set.labels(&ObjectKey::port("default", "p"));
    assert_eq!(
        labels.into_iter().collect::<Vec<_>>(),
        [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "a".to_owned())]
    );
    let whole = pod.to_owned() + "spec: {containers: []}\nstatus: {phase: Running}\n";
    check(&[
        (port("{}") + &whole, &["ignored_field 9 spec", "ignored_field 10 status"]),
        (pod.to_owned(), &["not_found 4 p"]),
        (port("{}").replace("{name: p}", "{name: p, labels: {app: b}}") + pod, &["conflict 8 web"]),
    ]);
}

#[test]
fn lists_and_json_are_objects_too() {
    let json = r#"[
	{"apiVersion": "hostweave.dev/v1alpha1", "kind": "Port", "metadata": {"name": "a"}},
	{"apiVersion": "hostweave.dev/v1alpha1", "kind": "Port", "metadata": {"name": "b"}, "spec": null}
]"#;
    assert_eq!(valid(json).ports().count(), 2);
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: hostweave.dev/v1alpha1\n  kind: Port\n  metadata: {name: a}\n";
    assert_eq!(valid(list).ports().count(), 1);
}

#[test]
fn the_built_in_network_and_namespace_give_way_to_written_ones() {
    let set = valid("");
    assert_eq!(set.network("default").unwrap().v4.unwrap().0.to_string(), "10.64.0.0/16");
    assert_eq!(set.iter().count(), 2);
    for (_, object) in set.iter() {
        let again = valid(&object.to_yaml());
        assert!(again.get(&object.key).unwrap().says_the_same(object));
    }
    let set = valid(&network("{cidrs: [192.0.2.0/24]}").replace("name: n", "name: default"));
    assert_eq!(set.network("default").unwrap().v6, None);
}

#[test]
fn a_diagnostic_reads_as_the_manual_shows() {
    let problems = validate(&port("{backend: {vhostUser: {mode: lisen}}}")).unwrap_err();
    let text = problems.render(false);
    assert_eq!(
        text,
        "Error: hostweave::config::unknown_value
  × Port default/p: spec.backend.vhostUser.mode \"lisen\" is not one of listen, connect
   ╭─[t.yaml:4:36]
 4 │ spec: {backend: {vhostUser: {mode: lisen}}}
   ·                                    ──┬──
   ·                                      ╰── did you mean listen?
   ╰────
  help: nothing was applied. See: hostweave explain Port.spec.backend.vhostUser.mode
"
    );
    let sent: Diagnostics = serde_json::from_str(&serde_json::to_string(&problems).unwrap()).unwrap();
    assert_eq!(sent.render(false), text);
    let plain = Diagnostic::error("x", "cannot reach the daemon").with_help("start it\nor not").render(false);
    assert_eq!(plain, "Error: cannot reach the daemon\n  help: start it\n        or not\n");
}

#[test]
fn a_place_that_lies_is_not_trusted() {
    let place = Place {
        file: "f".to_owned(),
        line: 0,
        column: 0,
        text: "ä".to_owned(),
        offset: u32::MAX,
        length: u32::MAX,
        label: String::new(),
    };
    let text = Diagnostic::error("c", "m").with_place(Some(place)).render(true);
    assert!(text.contains('m'));
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

#[test]
fn every_example_is_valid_and_comes_back_unchanged() {
    let mut count = 0;
    for source in read_paths(&[configs()]).unwrap() {
        let set = valid(&source.text);
        for (key, object) in set.iter().filter(|(_, object)| object.origin != Origin::BuiltIn) {
            let again = load_sources(vec![Source { name: "again".to_owned(), text: object.to_yaml() }]).unwrap();
            assert!(again.objects[0].says_the_same(object), "{key}\n{}", object.to_yaml());
            let mut again = again.objects[0].clone();
            let mut object = (**object).clone();
            // Policies hold the lines of their rules.
            again.set_origin(Origin::Store);
            object.set_origin(Origin::Store);
            assert_eq!(again.spec, object.spec);
        }
        fuzz_yaml(source.text.as_bytes());
        count += 1;
    }
    assert!(count >= 7, "{count} examples");
}

/// Text that looks like something else to one YAML reader or another.
#[test]
fn text_comes_back_as_text() {
    let words = [
        "on",
        "yes",
        "1.10",
        "null",
        "~",
        "0x10",
        "1e3",
        "",
        "1_000",
        "007",
        ".5",
        ".inf",
        "-",
        "- a",
        "a: b",
        "# a",
        " a ",
        "a\nb\n",
        "a\n\n b",
        "\t",
        "\u{1f600}",
        "{",
        "[x]",
        "'",
        "\"",
        "\\",
        "&a",
        "*a",
        "!x",
        "%",
        "@",
        "`",
        "|",
        ">",
        "2026-11-23",
        "12:30:45",
        "=",
        "<<",
        "\u{85}\u{2028}",
        "\r\n",
        "\u{feff}x",
        "\u{0}",
    ];
    let annotations: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(number, word)| (format!("w{number}"), serde_json::json!(word))).collect();
    let value = serde_json::json!({
        "apiVersion": kind::API_VERSION, "kind": "Port",
        "metadata": {"name": "p", "labels": {"a": "on", "b": "1.10", "c": "007"}, "annotations": annotations},
    });
    let (object, _) = Object::from_json(&value, Origin::Store).unwrap();
    let set = valid(&object.to_yaml());
    let again = set.get(&object.key).unwrap();
    assert_eq!(again.metadata, object.metadata, "{}", object.to_yaml());
}

#[test]
fn identity_and_revision_travel_with_get_and_do_not_make_a_difference() {
    let set = valid(&port("{}"));
    let object = set.get(&ObjectKey::port("default", "p")).unwrap();
    let uid = uuid::Uuid::from_u128(7);
    let printed = object.with_identity(Some(uid), Some(17)).to_yaml();
    let again = valid(&printed);
    let again = again.get(&object.key).unwrap();
    assert_eq!((again.metadata.uid, again.metadata.resource_version), (Some(uid), Some(17)));
    assert!(again.says_the_same(object));
}

#[test]
fn help_is_there_for_every_field_of_every_kind() {
    for kind in Kind::ALL {
        let mut paths = vec![kind.to_string()];
        while let Some(path) = paths.pop() {
            let text = explain::explain(&path).unwrap();
            let body = text.split("\n\n").nth(1).unwrap_or_default().trim();
            assert!(body.len() > 3, "{path} says nothing:\n{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
            let fields = text.split("\nFIELDS\n").nth(1).unwrap_or_default();
            let names =
                fields.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|n| !n.is_empty()));
            paths.extend(names.map(|name| format!("{path}.{name}")));
        }
    }
    let text = explain::explain("port.spec.backend.vhostUser.mode").unwrap();
    assert!(text.contains("FIELD    Port.spec.backend.vhostUser.mode <listen|connect>"), "{text}");
    let group = explain::explain("port.spec.backend.vhostUser.group").unwrap();
    assert!(group.contains("<integer or string>"), "{group}");
    assert!(Kind::ALL.iter().all(|kind| explain::explain("").unwrap().contains(kind.as_str())));
    assert!(explain::explain("port.spec.netwrok").unwrap_err().to_string().contains("Port.spec.network"));
    assert!(explain::explain("prot").unwrap_err().to_string().contains("did you mean Port?"));
}

#[test]
fn schemas_have_all_they_refer_to() {
    for schema in Kind::ALL.map(explain::schema).into_iter().chain([explain::schema_of_all()]) {
        let text = schema.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(schema.pointer(pointer).is_some(), "{pointer}");
        }
        assert!(text.contains("\"additionalProperties\":false"));
    }
}

#[test]
fn paths_that_cannot_be_read_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b.yaml"), port("{}")).unwrap();
    std::fs::write(folder.path().join("a.yml"), "# nothing\n").unwrap();
    std::fs::write(folder.path().join("c.txt"), "not read").unwrap();
    std::fs::write(folder.path().join(".d.yaml"), "not read").unwrap();
    let loaded = load_paths(&[folder.path().to_owned()]).unwrap();
    assert_eq!(loaded.objects.len(), 1);
    assert!(matches!(&loaded.objects[0].origin, Origin::File { file, line: 1 } if file.ends_with("b.yaml")));
    std::fs::write(folder.path().join("e.yaml"), [0xff, 0xfe, 0xff]).unwrap();
    let problems = load_paths(&[folder.path().to_owned(), folder.path().join("none.yaml")]).unwrap_err();
    assert_eq!(problems.0.len(), 2, "{problems}");
}

/// Mutations of the examples, seeded: the same every time.
#[test]
fn mutated_files_never_panic() {
    let sources = read_paths(&[configs()]).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    let words = [
        "{", "}", "[", "]", ":", "- ", "&a ", "*a", "\n", "---\n", "null", "\"", "'", "|\n", "<<: ", "? ", "!x ", "ä",
        "1e999", "~",
    ];
    for round in 0..1500 {
        let mut text = sources[random(sources.len())].text.clone().into_bytes();
        for _ in 0..=random(6) {
            let at = random(text.len());
            match random(4) {
                0 => text.truncate(at),
                1 => drop(text.splice(at..at, words[random(words.len())].bytes())),
                2 => drop(text.drain(at..(at + random(20)).min(text.len()))),
                _ if !text.is_empty() => text[at] = u8::try_from(random(128)).unwrap(),
                _ => {}
            }
        }
        let copy = text.clone();
        let result = std::panic::catch_unwind(|| fuzz_yaml(&copy));
        assert!(result.is_ok(), "round {round}: {}", String::from_utf8_lossy(&text));
    }
}

#[test]
fn hostile_files_are_bounded() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(0..12)
            .map(|level| {
                let (name, from) = (char::from(b'b' + level), char::from(b'a' + level));
                format!("{name}: &{name} [{}]\n", vec![format!("*{from}"); 10].join(","))
            })
            .collect::<String>();
    let deep = "[".repeat(10_000);
    let block_deep = (0..500).map(|level| format!("{}a:\n", " ".repeat(level))).collect::<String>();
    for text in [bomb, deep, block_deep] {
        assert!(validate(&text).is_err());
    }
    let long_line = format!("# {}\n{}", "x".repeat(100_000), port(&format!("{{mac: {}}}", "y".repeat(50_000))));
    let problems = validate(&long_line).unwrap_err();
    assert!(problems.0[0].place.as_ref().unwrap().text.len() <= 300);
}
