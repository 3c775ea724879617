//! The zone and what is answered from it, message by message.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use tokio::sync::mpsc::unbounded_channel;

use super::counters::Counters;
use super::forward::Forwarder;
use super::message::UDP_PAYLOAD;
use super::server::{Handled, Server};
use super::spec::{EndpointPort, EndpointRecords, PortRecords, ServicePort, ServiceRecords, ServiceTarget, ZoneInput};
use super::upstream::Upstreams;
use super::zone::Zone;

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn port(namespace: &str, name: &str, texts: &[&str]) -> PortRecords {
    PortRecords { namespace: namespace.into(), name: name.into(), addresses: addresses(texts) }
}

fn service(name: &str, target: ServiceTarget) -> Arc<ServiceRecords> {
    let named = |name: &str, protocol, port| ServicePort { name: name.into(), protocol, port };
    let ports = vec![named("http", "tcp", 80), named("dns", "udp", 53), named("", "tcp", 9_000)];
    Arc::new(ServiceRecords { network: "default".into(), namespace: "shop".into(), name: name.into(), target, ports })
}

fn endpoint(hostname: Option<&str>, texts: &[&str], ready: bool) -> EndpointRecords {
    EndpointRecords { hostname: hostname.map(Into::into), addresses: addresses(texts), ready, ports: Vec::new() }
}

fn headless(endpoints: Vec<EndpointRecords>, not_ready: bool) -> ServiceTarget {
    ServiceTarget::Headless { endpoints, not_ready }
}

fn input() -> ZoneInput {
    let many = (1..=100).map(|n| endpoint(None, &[&format!("192.0.2.{n}")], true)).collect();
    let mut moved = endpoint(Some("db-1"), &["192.0.2.32"], true);
    moved.ports = vec![EndpointPort { name: "http".into(), port: Some(8_080) }];
    ZoneInput {
        domain: "cluster.local".into(),
        gateways: addresses(&["192.0.2.1", "2001:db8:1::1"]),
        ranges: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()],
        private: vec!["192.0.2.0/24".parse().unwrap(), "10.64.0.0/20".parse().unwrap()],
        ports: vec![port("shop", "web-0", &["192.0.2.10", "2001:db8:1::10"]), port("shop", "v4.only", &["192.0.2.11"])],
        services: vec![
            service("api", ServiceTarget::ClusterIp(addresses(&["192.0.2.200"]))),
            service(
                "db",
                headless(vec![endpoint(Some("db-0"), &["192.0.2.31", "2001:db8:1::31"], true), moved], false),
            ),
            service("cold", headless(vec![endpoint(Some("cold-0"), &["192.0.2.40"], false)], false)),
            service("early", headless(vec![endpoint(Some("early-0"), &["192.0.2.41"], false)], true)),
            service("many", headless(many, false)),
            service("alias", ServiceTarget::ExternalName("api.shop.svc.cluster.local".into())),
            service("away", ServiceTarget::ExternalName("www.example.com".into())),
            service("a", ServiceTarget::ExternalName("b.shop.svc.cluster.local".into())),
            service("b", ServiceTarget::ExternalName("a.shop.svc.cluster.local".into())),
            service("gone", ServiceTarget::ExternalName("nothing.shop.svc.cluster.local".into())),
        ],
    }
}

fn server() -> Server {
    let counters = Arc::new(Counters::default());
    let upstreams = Upstreams::new(unbounded_channel().0);
    upstreams.configure(Some(&[]), Vec::new());
    let forwarder = Forwarder::new(upstreams, Arc::clone(&counters));
    Server { zone: ArcSwap::from_pointee(Zone::new(&input(), 7)), forwarder, counters }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(4_096).set_version(0);
    message.edns = Some(edns);
    message
}

fn reply_octets(server: &Server, message: &Message, udp: bool) -> Option<Vec<u8>> {
    match server.handle(&message.to_vec().unwrap(), udp) {
        Handled::Reply(reply, _) => Some(reply),
        Handled::Later(_) => None,
        Handled::Nothing => panic!("no answer"),
    }
}

fn reply(server: &Server, message: &Message) -> Option<Message> {
    reply_octets(server, message, true).map(|octets| Message::from_vec(&octets).unwrap())
}

/// The code and the answers, as a word each; `forwarded` for what is asked elsewhere.
fn ask(server: &Server, name: &str, kind: RecordType) -> String {
    let Some(reply) = reply(server, &query(name, kind)) else { return "forwarded".into() };
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (0x1234, MessageType::Response));
    let nothing = reply.answers.is_empty() || reply.metadata.response_code == ResponseCode::NXDomain;
    let soa = reply.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
    let has_soa = reply.metadata.authoritative && nothing;
    assert_eq!(soa, has_soa, "a negative answer has the SOA, another has not: {name}");
    let mut words: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    words.sort();
    words.insert(0, format!("{:?}", reply.metadata.response_code).to_uppercase());
    words.join(" ")
}

#[test]
fn np15_an_endpoint_without_the_port_has_an_address_and_no_srv() {
    let without = EndpointRecords {
        ports: vec![EndpointPort { name: "http".into(), port: None }],
        ..endpoint(Some("c"), &["192.0.2.33", "2001:db8:1::33"], true)
    };
    let mut input = input();
    let db = input.services.iter_mut().find(|service| service.name == "db").unwrap();
    let name = "_http._tcp.db.shop.svc.cluster.local.";
    let before = ask(&server(), name, RecordType::SRV);
    let ServiceTarget::Headless { endpoints, .. } = &mut Arc::make_mut(db).target else { panic!() };
    endpoints.push(without);
    let server = server();
    server.zone.store(Arc::new(Zone::new(&input, 8)));
    assert_eq!(ask(&server, name, RecordType::SRV), before);
    assert_eq!(ask(&server, "c.db.shop.svc.cluster.local.", RecordType::A), "NOERROR 192.0.2.33");
    assert_eq!(ask(&server, "c.db.shop.svc.cluster.local.", RecordType::AAAA), "NOERROR 2001:db8:1::33");
}

#[test]
fn dn1_names_have_the_records_of_the_specification() {
    let server = server();
    use RecordType::{A, AAAA, NS, PTR, SOA, SRV, TXT};
    for (name, kind, expected) in [
        ("dns-version.cluster.local.", TXT, "NOERROR 1.1.0"),
        ("cluster.local.", NS, "NOERROR ns.dns.cluster.local."),
        ("cluster.local.", SOA, "NOERROR ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"),
        ("ns.dns.cluster.local.", AAAA, "NOERROR 2001:db8:1::1"),
        ("web-0.shop.port.cluster.local.", A, "NOERROR 192.0.2.10"),
        ("web-0.shop.port.cluster.local.", AAAA, "NOERROR 2001:db8:1::10"),
        ("v4.only.shop.port.cluster.local.", A, "NOERROR 192.0.2.11"),
        ("api.shop.svc.cluster.local.", A, "NOERROR 192.0.2.200"),
        ("_http._tcp.api.shop.svc.cluster.local.", SRV, "NOERROR 0 100 80 api.shop.svc.cluster.local."),
        ("_dns._udp.api.shop.svc.cluster.local.", SRV, "NOERROR 0 100 53 api.shop.svc.cluster.local."),
        ("_http._udp.api.shop.svc.cluster.local.", SRV, "NXDOMAIN"),
        ("db.shop.svc.cluster.local.", A, "NOERROR 192.0.2.31 192.0.2.32"),
        ("db.shop.svc.cluster.local.", AAAA, "NOERROR 2001:db8:1::31"),
        ("db-0.db.shop.svc.cluster.local.", A, "NOERROR 192.0.2.31"),
        ("192-0-2-7.many.shop.svc.cluster.local.", A, "NOERROR 192.0.2.7"),
        // SEMANTICS NP15: a named port may be another number on each endpoint.
        (
            "_http._tcp.db.shop.svc.cluster.local.",
            SRV,
            "NOERROR 0 100 80 db-0.db.shop.svc.cluster.local. 0 100 8080 db-1.db.shop.svc.cluster.local.",
        ),
        // SEMANTICS DN2.
        ("200.2.0.192.in-addr.arpa.", PTR, "NOERROR api.shop.svc.cluster.local."),
        ("31.2.0.192.in-addr.arpa.", PTR, "NOERROR db-0.db.shop.svc.cluster.local."),
        ("10.2.0.192.in-addr.arpa.", PTR, "NOERROR web-0.shop.port.cluster.local."),
        ("1.2.0.192.in-addr.arpa.", PTR, "NOERROR ns.dns.cluster.local."),
        // SEMANTICS DN3: ready endpoints only, unless it is said otherwise.
        ("cold.shop.svc.cluster.local.", A, "NXDOMAIN"),
        ("cold-0.cold.shop.svc.cluster.local.", A, "NXDOMAIN"),
        ("early.shop.svc.cluster.local.", A, "NOERROR 192.0.2.41"),
    ] {
        assert_eq!(ask(&server, name, kind), expected, "{name} {kind}");
    }
    let v6 = Name::from("2001:db8:1::10".parse::<IpAddr>().unwrap()).to_ascii();
    assert_eq!(ask(&server, &v6, PTR), "NOERROR web-0.shop.port.cluster.local.");
}

#[test]
fn dn4_a_name_without_that_type_exists_and_one_without_anything_below_does_not() {
    let server = server();
    use RecordType::{A, AAAA, MX, PTR};
    for (name, kind, expected) in [
        ("api.shop.svc.cluster.local.", AAAA, "NOERROR"),
        ("web-0.shop.port.cluster.local.", MX, "NOERROR"),
        // Names above others exist.
        ("cluster.local.", A, "NOERROR"),
        ("port.cluster.local.", A, "NOERROR"),
        ("shop.svc.cluster.local.", A, "NOERROR"),
        ("only.shop.port.cluster.local.", A, "NOERROR"),
        ("_tcp.api.shop.svc.cluster.local.", A, "NOERROR"),
        ("nothing.cluster.local.", A, "NXDOMAIN"),
        ("x.web-0.shop.port.cluster.local.", A, "NXDOMAIN"),
        ("web-0.other.port.cluster.local.", A, "NXDOMAIN"),
        // DN8: the storms of a search list end here.
        ("www.example.com.cluster.local.", A, "NXDOMAIN"),
        ("www.example.com.svc.cluster.local.", A, "NXDOMAIN"),
        // Reverse names.
        ("10.2.0.192.in-addr.arpa.", A, "NOERROR"),
        ("2.0.192.in-addr.arpa.", PTR, "NOERROR"),
        ("99.2.0.192.in-addr.arpa.", PTR, "NOERROR 192-0-2-99"),
        ("199.2.0.192.in-addr.arpa.", PTR, "NXDOMAIN"),
        ("x.10.2.0.192.in-addr.arpa.", PTR, "NXDOMAIN"),
        ("0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", PTR, "forwarded"),
        ("0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", PTR, "NOERROR"),
        ("9.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", PTR, "NXDOMAIN"),
    ] {
        // Endpoints without a hostname have no reverse name.
        let expected = if expected == "NOERROR 192-0-2-99" { "NXDOMAIN" } else { expected };
        assert_eq!(ask(&server, name, kind), expected, "{name} {kind}");
    }
    let reply = reply(&server, &query("199.2.0.192.in-addr.arpa.", PTR)).unwrap();
    assert_eq!(reply.authorities[0].name.to_ascii(), "2.0.192.in-addr.arpa.");
    assert_eq!(reply.authorities[0].ttl, 5);
}

/// RFC 2308 §3: a resolver takes no SOA of somewhere else.
#[test]
fn the_soa_of_a_negative_reverse_answer_is_above_the_name_that_was_asked() {
    let mut input = input();
    input.ranges = ["10.64.16.0/20", "2001:db8:40::/45"].map(|range| range.parse().unwrap()).into();
    input.private.clone_from(&input.ranges);
    let server = server();
    server.zone.store(Arc::new(Zone::new(&input, 8)));
    for (address, apex) in [
        ("10.64.16.9", "16.64.10.in-addr.arpa."),
        ("10.64.19.9", "19.64.10.in-addr.arpa."),
        ("2001:db8:40::9", "0.4.0.0.8.b.d.0.1.0.0.2.ip6.arpa."),
        ("2001:db8:47::9", "7.4.0.0.8.b.d.0.1.0.0.2.ip6.arpa."),
    ] {
        let name = Name::from(address.parse::<std::net::IpAddr>().unwrap());
        let reply = reply(&server, &query(&name.to_ascii(), RecordType::PTR)).unwrap();
        let soa = &reply.authorities[0].name;
        assert!(soa.zone_of(&name), "{address}: {soa}");
        assert_eq!(
            (reply.metadata.response_code, soa.to_ascii().as_str()),
            (ResponseCode::NXDomain, apex),
            "{address}"
        );
        // Its own top exists.
        assert!(ask(&server, apex, RecordType::NS).starts_with("NOERROR"), "{apex}");
    }
}

#[test]
fn dn5_the_question_comes_back_as_it_was_written() {
    let server = server();
    let reply = reply(&server, &query("WeB-0.sHoP.PORT.Cluster.LOCAL.", RecordType::A)).unwrap();
    assert_eq!(reply.queries[0].name.to_ascii(), "WeB-0.sHoP.PORT.Cluster.LOCAL.");
    assert_eq!(reply.answers[0].name.to_ascii(), "WeB-0.sHoP.PORT.Cluster.LOCAL.");
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.10");
}

#[test]
fn dn6_aliases_are_followed_as_far_as_they_lead() {
    let server = server();
    let first = ask(&server, "alias.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(first, "NOERROR 192.0.2.200 api.shop.svc.cluster.local.");
    assert_eq!(ask(&server, "alias.shop.svc.cluster.local.", RecordType::CNAME), "NOERROR api.shop.svc.cluster.local.");
    assert_eq!(ask(&server, "away.shop.svc.cluster.local.", RecordType::A), "forwarded");
    assert_eq!(ask(&server, "gone.shop.svc.cluster.local.", RecordType::A), "NXDOMAIN nothing.shop.svc.cluster.local.");
    // In a circle.
    let circle = reply(&server, &query("a.shop.svc.cluster.local.", RecordType::A)).unwrap();
    assert_eq!(circle.answers.len(), super::answer::ALIASES_MAX);
}

#[test]
fn dn7_what_does_not_fit_is_left_out_and_asked_again_over_tcp() {
    let server = server();
    let name = "many.shop.svc.cluster.local.";
    let mut plain = query(name, RecordType::A);
    plain.edns = None;
    for (message, most) in [(plain, 512), (query(name, RecordType::A), usize::from(UDP_PAYLOAD))] {
        let octets = reply_octets(&server, &message, true).unwrap();
        let cut = Message::from_vec(&octets).unwrap();
        assert!(octets.len() <= most && cut.metadata.truncation);
        // As many as there is room for: resolvers that never ask over TCP have some addresses (musl before 1.2.4).
        assert!(octets.len() + 48 > most && cut.answers.len() > 20, "{} of {most} octets", octets.len());
        assert_eq!(cut.edns.is_some(), message.edns.is_some());
        let whole = Message::from_vec(&reply_octets(&server, &message, false).unwrap()).unwrap();
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 100));
    }
    // Names are written once: 16 octets a record.
    assert!(reply_octets(&server, &query(name, RecordType::A), false).unwrap().len() < 100 * 16 + 100);
    // A record more than fits is no reason to leave out those that were asked for.
    let srv = reply(&server, &query("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV)).unwrap();
    assert_eq!((srv.answers.len(), srv.additionals.len()), (2, 3));
}

#[test]
fn several_addresses_take_turns() {
    let server = server();
    let first = |id| {
        let mut message = query("db.shop.svc.cluster.local.", RecordType::A);
        message.metadata.id = id;
        reply(&server, &message).unwrap().answers[0].data.to_string()
    };
    assert_ne!(first(1), first(2));
}

#[test]
fn rfc6891_options_are_answered_by_options() {
    let server = server();
    let mut message = query("cluster.local.", RecordType::SOA);
    let reply_to = |message: &Message| reply(&server, message).unwrap();
    assert_eq!(reply_to(&message).edns.unwrap().max_payload(), UDP_PAYLOAD);
    message.edns.as_mut().unwrap().set_version(1);
    let refused = reply_to(&message);
    // BADVERS; hickory reads it as BADSIG, which has the same number.
    assert_eq!((u16::from(refused.metadata.response_code), refused.answers.len()), (16, 0));
    assert_eq!(refused.edns.unwrap().version(), 0);
    message.edns = None;
    assert!(reply_to(&message).edns.is_none());
}

#[test]
fn what_is_not_for_this_server_is_refused() {
    let server = server();
    let code = |message: &Message| reply(&server, message).map(|reply| reply.metadata.response_code);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&query("cluster.local.", kind)), Some(ResponseCode::Refused));
    }
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    // Nobody looks into the cache.
    let mut plain = query("www.example.com.", RecordType::A);
    plain.metadata.recursion_desired = false;
    assert_eq!(code(&plain), Some(ResponseCode::Refused));
    plain.queries[0] = query("cluster.local.", RecordType::SOA).queries[0].clone();
    assert_eq!(code(&plain), Some(ResponseCode::NoError));
    let mut update = query("cluster.local.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    update.edns = None;
    assert_eq!(code(&update), Some(ResponseCode::NotImp));
    // RFC 8482: ANY has one small answer, here and elsewhere.
    for name in ["db.shop.svc.cluster.local.", "www.example.com."] {
        assert_eq!(ask(&server, name, RecordType::ANY), "NOERROR RFC8482 ", "{name}");
    }
}

#[test]
fn dn9_private_names_never_leave() {
    let server = server();
    // In the range of another network: it exists for nobody here, and nobody else is asked.
    assert_eq!(ask(&server, "5.0.64.10.in-addr.arpa.", RecordType::PTR), "NXDOMAIN");
    assert_eq!(ask(&server, "5.16.64.10.in-addr.arpa.", RecordType::PTR), "forwarded");
    for name in ["a.invalid.", "b.onion."] {
        assert_eq!(ask(&server, name, RecordType::A), "NXDOMAIN");
    }
    assert_eq!(ask(&server, "x.localhost.", RecordType::AAAA), "NOERROR ::1");
    assert_eq!(ask(&server, "1.0.0.127.in-addr.arpa.", RecordType::PTR), "NOERROR localhost.");
    assert_eq!(ask(&server, "notcluster.local.", RecordType::A), "forwarded");
}

#[test]
fn what_is_no_query_gets_no_answer_or_a_short_one() {
    let server = server();
    let good = query("web-0.shop.port.cluster.local.", RecordType::A).to_vec().unwrap();
    let nothing = |octets: &[u8]| matches!(server.handle(octets, true), Handled::Nothing);
    assert!((0..12).all(|len| nothing(&good[..len])));
    let mut response = good.clone();
    response[2] |= 0x80;
    assert!(nothing(&response), "two servers could answer each other for ever");
    let code = |octets: &[u8]| match server.handle(octets, true) {
        Handled::Reply(reply, _) => (reply.len(), reply[3] & 15),
        _ => panic!("no reply"),
    };
    for len in 12..good.len() {
        assert_eq!(code(&good[..len]), (12, 1), "cut off after {len}");
    }
    // Counts that lie.
    for (at, value) in [(4, 0), (4, 2), (4, 0xffff), (6, 1), (8, 1), (10, 9), (10, 0xffff)] {
        let mut octets = good.clone();
        octets[at..at + 2].copy_from_slice(&u16::to_be_bytes(value));
        assert_eq!(code(&octets), (12, 1), "{value} at {at}");
    }
    // A name that points at itself, forwards, or at the header.
    for pointer in [12_u16, 14, 200, 0] {
        let mut octets = good[..12].to_vec();
        octets[10..12].fill(0);
        octets.extend((0xc000 | pointer).to_be_bytes());
        octets.extend([0, 1, 0, 1]);
        match server.handle(&octets, true) {
            Handled::Reply(reply, _) => assert!(reply.len() < 64),
            Handled::Later(_) | Handled::Nothing => {}
        }
    }
}

#[test]
fn no_octets_bring_it_down() {
    let server = server();
    let good = query("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV).to_vec().unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    for _ in 0..20_000 {
        let mut octets = good.clone();
        for _ in 0..=random(6) {
            let at = random(octets.len());
            match random(4) {
                0 => octets.truncate(at.max(12)),
                1 => octets.insert(at, 0xc0),
                2 => octets[at] = u8::try_from(random(256)).unwrap(),
                _ => octets[at] ^= 1 << random(8),
            }
        }
        if let Handled::Reply(reply, _) = server.handle(&octets, true) {
            assert!(reply.len() <= usize::from(UDP_PAYLOAD) && reply[2] & 0x80 != 0);
        }
    }
}

#[test]
fn every_record_is_listed_once() {
    let zone = Zone::new(&input(), 1);
    let records = zone.records();
    let lines: Vec<String> =
        records.iter().map(|(name, data)| format!("{name} {} {data}", data.record_type())).collect();
    let mut unique = lines.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), lines.len());
    for line in [
        "web-0.shop.port.cluster.local. A 192.0.2.10",
        "10.2.0.192.in-addr.arpa. PTR web-0.shop.port.cluster.local.",
        "away.shop.svc.cluster.local. CNAME www.example.com.",
    ] {
        assert!(lines.iter().any(|have| have == line), "{line} is not in {lines:#?}");
    }
}

/// SEMANTICS SV2 and DN3: a headless Service has no name while none of its backends is healthy.
#[test]
fn a_headless_name_does_not_stand_for_the_absent() {
    let mut state = super::State::default();
    let answers = |state: &super::State, name: &str, kind| {
        let mut input = input();
        input.services = input.services.iter().map(|service| state.present(service)).collect();
        let server = server();
        server.zone.store(Arc::new(Zone::new(&input, 8)));
        ask(&server, name, kind)
    };
    let (db, early) = ("db.shop.svc.cluster.local.", "early.shop.svc.cluster.local.");
    let before = answers(&state, db, RecordType::A);
    assert!(before.contains("192.0.2.31"), "{before}");
    state.absent.insert("shop/db".to_owned(), addresses(&["192.0.2.31"]).into_iter().collect());
    assert!(!answers(&state, db, RecordType::A).contains("192.0.2.31"));
    assert!(
        answers(&state, "db-0.db.shop.svc.cluster.local.", RecordType::A).starts_with("NOERROR"),
        "its other address"
    );
    assert_eq!(answers(&state, "db-0.db.shop.svc.cluster.local.", RecordType::AAAA), "NOERROR 2001:db8:1::31");
    let everybody: Vec<IpAddr> = match &input().services.iter().find(|service| service.name == "db").unwrap().target {
        ServiceTarget::Headless { endpoints, .. } => endpoints.iter().flat_map(|it| it.addresses.clone()).collect(),
        _ => panic!(),
    };
    state.absent.insert("shop/db".to_owned(), everybody.into_iter().collect());
    for (name, kind) in
        [(db, RecordType::A), (db, RecordType::AAAA), ("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV)]
    {
        assert_eq!(answers(&state, name, kind), "NXDOMAIN", "{name}");
    }
    // `publishNotReadyAddresses`: whatever becomes of them.
    state.absent.insert("shop/early".to_owned(), addresses(&["192.0.2.41"]).into_iter().collect());
    assert_eq!(answers(&state, early, RecordType::A), "NOERROR 192.0.2.41");
}
