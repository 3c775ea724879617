//! Services and EndpointSlices: what is refused, what is warned of, and health checks.

use super::outside::{all, pools};
use super::services::{backend, backends, one, service, slice, told, web};
use super::*;
use crate::fabric::spec::{AllDown, Drain, HealthCheck, HealthSpec, OutlierSpec};

fn health(text: &str) -> HealthSpec {
    let spec = "{selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]}";
    let service = service(&format!("hostweave.dev/health-check: '{text}'"), spec);
    one(&[backends(), service]).health.unwrap()
}

#[test]
fn sv2_health_checks_of_every_type() {
    let http = |tls, path: &str, host: Option<&str>, statuses| HealthCheck::Http {
        tls,
        path: path.to_owned(),
        host: host.map(str::to_owned),
        statuses,
    };
    let udp = |send: &[u8], expect: &[u8]| HealthCheck::Udp { send: send.to_vec(), expect: expect.to_vec() };
    for (text, check) in [
        ("{type: tcp}", HealthCheck::Tcp),
        ("{type: icmp}", HealthCheck::Icmp),
        ("{type: http}", http(false, "/", None, 200..=399)),
        (
            "{type: https, path: /healthz?full=1, host: web.example.com, status: 200-204}",
            http(true, "/healthz?full=1", Some("web.example.com"), 200..=204),
        ),
        ("{type: http, status: 204}", http(false, "/", None, 204..=204)),
        ("{type: grpc, service: shop.Cart}", HealthCheck::Grpc { service: "shop.Cart".into() }),
        ("{type: udp, send: ping, expect: pong}", udp(b"ping", b"pong")),
        ("{type: udp, send: \"hex:00fF\"}", udp(&[0, 255], b"")),
    ] {
        let spec = health(text);
        assert_eq!(spec.check, check, "{text}");
        assert_eq!((spec.l4, spec.interval_ms, spec.timeout_ms, spec.rise, spec.fall), (None, 5000, 2000, 2, 3));
    }
    let spec = health("{type: tcp, port: 8080, interval: 500ms, rise: 1, fall: 10}");
    assert_eq!((spec.l4, spec.interval_ms, spec.timeout_ms, spec.rise, spec.fall), (Some(8080), 500, 500, 1, 10));
    assert_eq!(health("{type: tcp, interval: 1m, timeout: 3s}").timeout_ms, 3000);
    let choices = "hostweave.dev/all-down: panic, hostweave.dev/drain: reset";
    let spec = one(&[backends(), service(choices, "{selector: {app: web}, ports: [{port: 80}]}")]);
    assert_eq!((spec.all_down, spec.drain), (AllDown::Panic, Drain::Reset));
}

/// A check that no L4 port of the Service understands would fail for ever.
#[test]
fn a_check_needs_an_l4_port_of_its_protocol_or_one_of_its_own() {
    let says = |check: &str, form: &str, ports: &str| -> Vec<String> {
        let text = service(&format!("hostweave.dev/health-check: '{check}'"), &format!("{{{form}ports: [{ports}]}}"));
        match validate(&text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.0.into_iter().map(|problem| problem.message).collect(),
        }
    };
    let (tcp, udp) = ("{name: t, port: 80}", "{name: u, port: 53, protocol: UDP}");
    let (both, sctp) = (format!("{tcp}, {udp}"), "{name: s, port: 90, protocol: SCTP}");
    let headless = "clusterIP: None, ";
    for (check, form, ports, word) in [
        ("{type: http}", "", udp, "TCP"),
        ("{type: tcp}", "", sctp, "TCP"),
        ("{type: grpc}", headless, "", "TCP"),
        ("{type: udp}", "", tcp, "UDP"),
    ] {
        let said = says(check, form, ports);
        assert!(
            said.len() == 1 && said[0].contains(&format!("the check speaks {word}, and no port")),
            "{check}: {said:?}"
        );
    }
    for (check, form, ports) in [
        ("{type: http}", "", &*both),
        ("{type: udp}", "", &both),
        ("{type: icmp}", "", sctp),
        ("{type: icmp}", headless, ""),
        ("{type: tcp, port: 9000}", "", udp),
        ("{type: tcp, port: 9000}", headless, ""),
    ] {
        assert_eq!(says(check, form, ports), Vec::<String>::new(), "{check} {form}{ports}");
    }
}

/// What is written and does nothing is said.
#[test]
fn annotations_that_a_form_cannot_follow_are_warned_about() {
    let annotations = "hostweave.dev/health-check: '{type: icmp}', hostweave.dev/outlier-detection: off, \
                       hostweave.dev/all-down: panic, hostweave.dev/drain: reset";
    let ignored = |spec: &str| -> Vec<String> {
        let (_, warnings) = validate(&service(annotations, spec)).unwrap();
        let mut keys: Vec<String> = warnings
            .iter()
            .filter(|warning| warning.code.ends_with("ignored_field"))
            .map(|warning| {
                warning.field.clone().unwrap().trim_start_matches("metadata.annotations.hostweave.dev/").to_owned()
            })
            .collect();
        keys.sort();
        keys
    };
    assert_eq!(ignored("{ports: [{port: 80}]}"), [""; 0]);
    assert_eq!(ignored("{clusterIP: None, ports: [{port: 80}]}"), ["all-down", "drain", "outlier-detection"]);
    let external = "{type: ExternalName, externalName: a.example}";
    assert_eq!(ignored(external), ["all-down", "drain", "health-check", "outlier-detection"]);
}

#[test]
fn health_checks_that_are_refused() {
    let annotation = "hostweave.dev/health-check";
    for (text, code, says) in [
        ("", "missing_field", "it is empty"),
        ("{type: [}", "syntax", ""),
        ("{path: /}", "missing_field", "field type is missing"),
        ("{type: htp}", "unknown_value", "\"htp\" is not one of tcp, http, https, grpc, icmp, udp"),
        ("{type: http, intervall: 5s}", "unknown_field", "unknown field intervall"),
        ("{type: http, interval: 5}", "wrong_type", "interval must be text"),
        ("{type: http, interval: 5 s}", "wrong_value", "is not a time such as 5s"),
        ("{type: http, interval: 50ms}", "out_of_range", "100ms to 3600000ms"),
        ("{type: http, interval: 1s, timeout: 2s}", "out_of_range", "10ms to 1000ms"),
        ("{type: http, rise: 0}", "out_of_range", "rise 0 is out of range: 1 to 100"),
        ("{type: http, port: 0}", "out_of_range", "port 0 is out of range: 1 to 65535"),
        ("{type: http, path: healthz}", "invalid_path", "must begin with /"),
        ("{type: http, path: \"/a b\"}", "invalid_path", "visible ASCII"),
        ("{type: http, path: \"/a\\r\\nX: y\"}", "invalid_path", "visible ASCII"),
        ("{type: http, host: \"a\\r\\nb\"}", "invalid_name", "host"),
        ("{type: http, status: 99}", "out_of_range", "100 to 599"),
        ("{type: http, status: 399-200}", "out_of_range", "100 to 599"),
        ("{type: tcp, path: /}", "conflict", "path has no meaning with type tcp"),
        ("{type: icmp, port: 7}", "conflict", "port has no meaning with type icmp"),
        ("{type: grpc, send: x}", "conflict", "send has no meaning with type grpc"),
        ("{type: udp, send: \"hex:0\"}", "wrong_value", "not hexadecimal"),
    ] {
        let spec = "{ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]}";
        let text = service(&format!("{annotation}: '{text}'"), spec);
        let problems = validate(&text).unwrap_err().0;
        let problem = &problems[0];
        assert!(problem.code.ends_with(code) && problem.message.contains(says), "{text}\n{problem:?}");
        assert_eq!(problem.field.as_deref(), Some("metadata.annotations.hostweave.dev/health-check"));
        assert_eq!(problem.place.as_ref().unwrap().line, 3);
    }
    let range = format!("hostweave.dev/port-range: all, {annotation}: '{{type: tcp}}'");
    let problems = validate(&service(&range, "{ports: [{port: 80}]}")).unwrap_err().0;
    assert!(problems[0].message.contains("port is missing"), "{problems:?}");
}

#[test]
fn outlier_detection_is_on_unless_said_otherwise() {
    let annotation = "hostweave.dev/outlier-detection";
    let of = |written: &str| {
        let written = if written.is_empty() { String::new() } else { format!("{annotation}: '{written}'") };
        one(&[backends(), service(&written, "{selector: {app: web}, ports: [{port: 80}]}")]).outlier
    };
    let values = |consecutive_failures, base_ejection_s, max_ejection_percent| {
        Some(OutlierSpec { consecutive_failures, base_ejection_s, max_ejection_percent })
    };
    for (written, spec) in [
        ("", values(5, 30, 50)),
        ("{}", values(5, 30, 50)),
        ("off", None),
        ("{consecutiveFailures: 1, baseEjectionTime: 1s, maxEjectionPercent: 100}", values(1, 1, 100)),
        ("{baseEjectionTime: 1500ms}", values(5, 2, 50)),
        ("{consecutiveFailures: 80, baseEjectionTime: 60m}", values(80, 3_600, 50)),
    ] {
        assert_eq!(of(written), spec, "{written}");
    }
    for (text, code, says) in [
        ("", "missing_field", "it is empty"),
        ("on", "wrong_type", ""),
        ("{consecutive: 3}", "unknown_field", "unknown field consecutive"),
        ("{consecutiveFailures: 0}", "out_of_range", "consecutiveFailures 0 is out of range: 1 to 80 are allowed"),
        ("{consecutiveFailures: 81}", "out_of_range", "1 to 80"),
        ("{maxEjectionPercent: 101}", "out_of_range", "maxEjectionPercent 101 is out of range: 1 to 100"),
        ("{baseEjectionTime: 30}", "wrong_type", "must be text"),
        ("{baseEjectionTime: soon}", "wrong_value", "is not a time such as 30s"),
        ("{baseEjectionTime: 999ms}", "out_of_range", "1s to 60m"),
        ("{baseEjectionTime: 61m}", "out_of_range", "1s to 60m"),
    ] {
        let problems = validate(&service(&format!("{annotation}: '{text}'"), "{ports: [{port: 80}]}")).unwrap_err().0;
        let problem = &problems[0];
        assert!(problem.code.ends_with(code) && problem.message.contains(says), "{text}\n{problem:?}");
        assert_eq!(problem.field.as_deref(), Some("metadata.annotations.hostweave.dev/outlier-detection"));
    }
}

#[test]
fn services_that_are_refused() {
    let spec = |text: &str| service("", text);
    let ranged = |range: &str, ports: &str| {
        service(&format!("hostweave.dev/port-range: '{range}'"), &format!("{{ports: {ports}}}"))
    };
    let two = "[{name: a, port: 80}, {name: b, port: 90}]";
    check(&[
        (spec("{}"), &["missing_field 4 spec"]),
        (spec("{ports: []}"), &["missing_field 4 spec"]),
        (spec("{ports: [{port: 0}]}"), &["out_of_range 4 0"]),
        (spec("{ports: [{port: 80, targetPort: 65536}]}"), &["out_of_range 4 65536"]),
        (spec("{ports: [{port: 80, targetPort: HTTP}]}"), &["invalid_name 4 HTTP"]),
        (spec("{ports: [{port: 80, protocol: ICMP}]}"), &["unknown_value 4 ICMP"]),
        (spec("{ports: [{port: 80}, {name: b, port: 90}]}"), &["missing_field 4 {"]),
        (spec("{ports: [{name: a, port: 80}, {name: a, port: 90}]}"), &["duplicate 4 a"]),
        (spec("{ports: [{name: a, port: 80}, {name: b, port: 80}]}"), &["duplicate 4 80"]),
        (spec("{ports: [{name: a_b, port: 80}]}"), &["invalid_name 4 a_b"]),
        (spec("{ports: [{port: 80}], selector: {'a b': c}}"), &["invalid_label 4 'a b'"]),
        (spec("{ports: [{port: 80}], clusterIP: nowhere}"), &["invalid_address 4 nowhere"]),
        (spec("{ports: [{port: 80}], clusterIPs: [10.104.0.1, 10.104.0.2]}"), &["duplicate 4 clusterIPs"]),
        (spec("{ports: [{port: 80}], clusterIP: 10.104.0.1, clusterIPs: [10.104.0.2]}"), &["conflict 4 10.104.0.1"]),
        (spec("{ports: [{port: 80}], clusterIP: 10.104.0.1, ipFamilies: [IPv6]}"), &["conflict 4 10.104.0.1"]),
        (spec("{ports: [{port: 80}], externalIPs: [192.0.2.1]}"), &["refused_field 4 externalIPs"]),
        (
            spec("{ports: [{port: 80}], loadBalancerSourceRanges: [192.0.2.0/24]}"),
            &["conflict 4 loadBalancerSourceRanges"],
        ),
        (
            spec("{ports: [{port: 80}], type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.0]}"),
            &["invalid_cidr 4 192.0.2.0"],
        ),
        (spec("{ports: [{port: 80}], loadBalancerClass: a/b}"), &["conflict 4 loadBalancerClass"]),
        (spec("{ports: [{port: 80}], sessionAffinityConfig: {clientIP: {}}}"), &["conflict 4 sessionAffinityConfig"]),
        (
            spec(
                "{ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}}",
            ),
            &["out_of_range 4 86401"],
        ),
        (spec("{ports: [{port: 80}], trafficDistribution: PreferNobody}"), &["unknown_value 4 PreferNobody"]),
        (spec("{ports: [{port: 80}], type: LoadBalancer, clusterIP: None}"), &["conflict 4 None"]),
        (spec("{ports: [{port: 80}], selektor: {app: web}}"), &["unknown_field 4 selektor"]),
        (spec("{type: ExternalName}"), &["missing_field 4 type"]),
        (spec("{type: ExternalName, externalName: a_b}"), &["invalid_name 4 a_b"]),
        (service("hostweave.dev/network: nowhere", "{ports: [{port: 80}]}"), &["not_found 3 nowhere"]),
        (service("hostweave.dev/all-down: open", "{ports: [{port: 80}]}"), &["unknown_value 3 open"]),
        (service("hostweave.dev/drain: now", "{ports: [{port: 80}]}"), &["unknown_value 3 now"]),
        (service("hostweave.dev/weigth: '5'", "{ports: [{port: 80}]}"), &["ignored_field 3 hostweave.dev/weigth"]),
        (ranged("90-80", "[{port: 80}]"), &["invalid_range 3 '90-80'"]),
        (ranged("0-80", "[{port: 80}]"), &["invalid_range 3 '0-80'"]),
        (ranged("81-90", "[{port: 80}]"), &["invalid_range 3 '81-90'"]),
        (ranged("70-90", "[{port: 80, targetPort: 8080}]"), &["invalid_range 3 '70-90'"]),
        (ranged("70-85", two), &["invalid_range 3 '70-85'"]),
        (ranged("c=70-85", two), &["invalid_range 3 'c=70-85'"]),
        (ranged("a=70-85,a=70-86", two), &["invalid_range 3 'a=70-85,a=70-86'"]),
        (ranged("a=70-95", two), &["duplicate 4 90"]),
        (backend("a", ", annotations: {hostweave.dev/weight: '0'}", ""), &["out_of_range 3 '0'"]),
        (backend("a", ", annotations: {hostweave.dev/weight: heavy}", ""), &["out_of_range 3 heavy"]),
        // A Service that spreads connections sits on no port.
        (all(&[super::outside::attached("p", "web", ""), web("")]), &["conflict 3 web"]),
    ]);
}

#[test]
fn fields_without_effect_are_warned_of_and_kubernetes_own_defaults_are_not() {
    let spec = |text: &str| service("", text);
    check(&[
        (spec("{ports: [{port: 80, nodePort: 30080}]}"), &["ignored_field 4 nodePort"]),
        (spec("{type: NodePort, ports: [{port: 80}]}"), &["ignored_field 4 type"]),
        (spec("{ports: [{port: 80}], healthCheckNodePort: 30001}"), &["ignored_field 4 healthCheckNodePort"]),
        (spec("{ports: [{port: 80}], externalTrafficPolicy: Local}"), &["ignored_field 4 externalTrafficPolicy"]),
        (spec("{ports: [{port: 80}], loadBalancerIP: 192.0.2.1}"), &["ignored_field 4 loadBalancerIP"]),
        (spec("{ports: [{port: 80}], externalName: a.example}"), &["ignored_field 4 externalName"]),
        (spec("{type: ExternalName, externalName: a.example, selector: {a: b}}"), &["ignored_field 4 selector"]),
        (spec("{type: LoadBalancer, loadBalancerClass: a/b, ports: [{port: 80}]}"), &["ignored_field 4 a/b"]),
    ]);
    // What `kubectl get -o yaml` says of a Service, without the addresses of that cluster.
    valid(&all(&[
        "apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
spec:
  allocateLoadBalancerNodePorts: true
  externalTrafficPolicy: Cluster
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - appProtocol: http
    name: http
    port: 80
    protocol: TCP
    targetPort: 8080
  selector:
    app: web
  sessionAffinity: None
  type: LoadBalancer
"
        .to_owned(),
        pools(),
    ]));
}

#[test]
fn slices_that_are_refused() {
    let of = |endpoints: &str| slice("s", "IPv4", endpoints, "[{port: 80}]");
    let ports = |ports: &str| slice("s", "IPv4", "[]", ports);
    check(&[
        (of("[{addresses: []}]"), &["out_of_range 5 addresses"]),
        (of("[{addresses: [x]}]"), &["invalid_address 5 x"]),
        (of("[{addresses: ['2001:db8::1']}]"), &["invalid_address 5 '2001:db8::1'"]),
        (of("[{addresses: [127.0.0.1]}]"), &["invalid_address 5 127.0.0.1"]),
        (of("[{addresses: [169.254.169.254]}]"), &["invalid_address 5 169.254.169.254"]),
        (of("[{addresses: [192.0.2.1], hostname: a.b}]"), &["invalid_name 5 a.b"]),
        (of("[{addresses: [192.0.2.1], ready: true}]"), &["unknown_field 5 ready"]),
        (ports("[{port: 0}]"), &["out_of_range 6 0"]),
        (ports("[{port: 1}, {port: 2}]"), &["duplicate 6 {"]),
        (slice("s", "FQDN", "[]", "[]"), &["refused_field 4 FQDN"]),
        (slice("s", "IPv5", "[]", "[]"), &["unknown_value 4 IPv5"]),
        (slice("s", "IPv4", "[]", "[]").replace("kubernetes.io/service-name: web", "a: b"), &["no_effect 3 labels"]),
    ]);
    // As Kubernetes writes them.
    valid(&slice(
        "web-abc",
        "IPv4",
        "[{addresses: [192.0.2.1], conditions: {ready: true, serving: true, terminating: false}, nodeName: n, zone: z, \
         targetRef: {kind: Pod, name: p, namespace: default, uid: u}, hints: {forZones: [{name: z}]}}]",
        "[{name: '', port: 80, protocol: TCP, appProtocol: http}]",
    ));
}

#[test]
fn what_is_dubious_about_services() {
    let dubious = |objects: &[String]| -> Vec<String> {
        let told = told(objects);
        let set = validate(&all(objects)).unwrap().0;
        let found = crate::config::services::dubious(&set, &told.ports, set.iter().map(|(key, _)| key));
        found.iter().map(|it| format!("{} {}", it.code.rsplit("::").next().unwrap(), it.message)).collect()
    };
    assert_eq!(dubious(&[backends(), web("")]), Vec::<String>::new());
    assert_eq!(dubious(&[web("")]), ["selects_nothing it selects 0 ports of namespace default (app=web)"]);
    let n = network("{cidrs: [10.1.0.0/24]}");
    let elsewhere = backend("x", "", "network: n");
    let found = dubious(&[n, backends(), elsewhere, web("")]);
    assert_eq!(
        found,
        ["other_network 1 of the ports that it selects are not in Network default, and are ignored: default/x"]
    );
    let named = backend("c", "", "namedPorts: [{name: http, port: 8080}]");
    let found = dubious(&[backends(), named, web("").replace("{port: 80}", "{port: 80, targetPort: htpp}")]);
    assert!(found[0].starts_with("no_such_port 3 of its 3 ports have no L4 port \"htpp\""), "{found:?}");
    let endpoints = slice("s", "IPv4", "[{addresses: [192.0.2.1]}]", "[{port: 80}]");
    assert_eq!(dubious(std::slice::from_ref(&endpoints)), ["no_effect Service default/web does not exist"]);
    let found = dubious(&[backends(), web(""), endpoints]);
    assert!(found[0].contains("its EndpointSlices are ignored") && found[1].contains("has a selector"), "{found:?}");
}
