//! DNS at the gateway, asked by guests over both IP versions, UDP and TCP, with an upstream server in this process.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hostweave::fabric::spec::{DnsSpec, FabricEvent, PortSpec};
use hostweave::services::dns::spec::{ServiceRecords, ServiceTarget};
use hostweave_guest::Guest;

use crate::support::{Host, PATIENCE, Up, eventually, network};

const GATEWAYS: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

/// A server that knows `www.example.`, has `big.example.` only over TCP, and nothing else.
struct Upstream {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    over_tcp: Arc<AtomicUsize>,
}

impl Upstream {
    fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).unwrap();
        let (asked, over_tcp) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok((len, from)) = udp.recv_from(&mut buffer) {
                let reply = known(&buffer[..len], false);
                log.lock().unwrap().push(reply.queries[0].name.to_ascii());
                udp.send_to(&reply.to_vec().unwrap(), from).unwrap();
            }
        });
        let count = Arc::clone(&over_tcp);
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                let mut prefix = [0; 2];
                stream.read_exact(&mut prefix).unwrap();
                let mut query = vec![0; usize::from(u16::from_be_bytes(prefix))];
                stream.read_exact(&mut query).unwrap();
                let reply = known(&query, true).to_vec().unwrap();
                stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat()).unwrap();
            }
        });
        Self { address, asked, over_tcp }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn known(query: &[u8], tcp: bool) -> Message {
    let query = Message::from_vec(query).unwrap();
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    let name = query.queries[0].name.clone();
    let record = |n: u8| Record::from_rdata(name.clone(), 60, RData::A(A::new(198, 51, 100, n)));
    match name.to_ascii().as_str() {
        "www.example." => reply.answers.push(record(1)),
        "big.example." if tcp => reply.answers.extend((0..200).map(record)),
        "big.example." => reply.metadata.truncation = true,
        _ => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 60);
            reply.authorities.push(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
        }
    }
    reply.queries = query.queries;
    reply
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// A host with DNS and a guest on `test/web-0`.
fn host(upstreams: Vec<SocketAddr>) -> (Host, PortSpec, Guest) {
    let mut host = Host::new(1);
    let api = ServiceRecords {
        network: "default".into(),
        namespace: "test".into(),
        name: "api".into(),
        target: ServiceTarget::ClusterIp(vec!["192.0.2.200".parse().unwrap()]),
        ports: Vec::new(),
    };
    host.desired.networks.push(network("other", 2, 1500));
    host.desired.dns =
        Some(DnsSpec { upstreams: Some(upstreams), services: vec![api.into()].into(), ..DnsSpec::default() });
    host.port_in("other", "hidden", 20, 1);
    let spec = host.port("web-0", 10);
    let mut guest = host.guest(&spec).up();
    host.settle(&mut guest, &spec);
    (host, spec, guest)
}

fn ask(guest: &mut Guest, gateway: &str, name: &str, kind: RecordType) -> Message {
    let gateway: IpAddr = gateway.parse().unwrap();
    let reply = guest.udp_exchange(gateway, 53, &question(name, kind), PATIENCE).unwrap();
    Message::from_vec(&reply).unwrap()
}

fn data(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Sends octets over a connection of their own, and takes what comes back until `enough` or the end.
fn over_tcp(guest: &mut Guest, gateway: &str, octets: &[u8], enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let handle = guest.tcp_connect(gateway.parse().unwrap(), 53, PATIENCE).unwrap();
    assert_eq!(guest.tcp_socket(handle).send_slice(octets).unwrap(), octets.len());
    let mut received = Vec::new();
    guest
        .run_until("the answer over TCP", PATIENCE, |guest| {
            let socket = guest.tcp_socket(handle);
            while socket.can_recv() {
                socket.recv(|data| (data.len(), received.extend_from_slice(data))).unwrap();
            }
            (enough(&received) || !socket.may_recv()).then_some(())
        })
        .unwrap();
    guest.close(handle);
    received
}

fn framed(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u16).to_be_bytes()[..], octets].concat()
}

fn whole(octets: &[u8]) -> bool {
    octets.first_chunk().is_some_and(|prefix| octets.len() >= 2 + usize::from(u16::from_be_bytes(*prefix)))
}

#[test]
fn guests_ask_for_ports_and_services_of_their_network() {
    let (mut host, spec, mut guest) = host(Vec::new());
    let v6 = spec.v6[0].to_string();
    for gateway in GATEWAYS {
        let mut ask = |name: &str, kind| ask(&mut guest, gateway, name, kind);
        let web = ask("web-0.test.port.cluster.local.", RecordType::A);
        assert_eq!((data(&web), web.metadata.authoritative), (vec!["192.0.2.10".to_owned()], true));
        assert_eq!(data(&ask("web-0.test.port.cluster.local.", RecordType::AAAA)), std::slice::from_ref(&v6));
        assert_eq!(data(&ask("api.test.svc.cluster.local.", RecordType::A)), ["192.0.2.200"]);
        let reverse = ask("10.2.0.192.in-addr.arpa.", RecordType::PTR);
        assert_eq!(data(&reverse), ["web-0.test.port.cluster.local."]);
        // A port of another network does not exist here, by name and by address.
        let hidden = ask("hidden.test.port.cluster.local.", RecordType::A);
        assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(ask("20.2.0.192.in-addr.arpa.", RecordType::PTR).metadata.response_code, ResponseCode::NXDomain);
        // There is nobody to ask: an answer all the same (SEMANTICS DN9).
        assert_eq!(ask("www.example.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    }
    // A port that comes is known at once, and one that goes is not any more.
    host.port("db-0", 11);
    let db = |guest: &mut Guest| ask(guest, GATEWAYS[0], "db-0.test.port.cluster.local.", RecordType::A);
    assert_eq!(data(&db(&mut guest)), ["192.0.2.11"]);
    host.desired.ports.retain(|port| port.name != "db-0");
    host.apply();
    assert_eq!(db(&mut guest).metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn other_names_come_from_upstream_once_and_private_ones_never_leave() {
    let upstream = Upstream::start();
    let (host, _, mut guest) = host(vec![upstream.address]);
    for gateway in GATEWAYS {
        let reply = ask(&mut guest, gateway, "www.example.", RecordType::A);
        assert_eq!((data(&reply), reply.metadata.authoritative), (vec!["198.51.100.1".to_owned()], false));
        assert!(reply.metadata.recursion_available);
        let nothing = ask(&mut guest, gateway, "nothing.example.", RecordType::A);
        assert_eq!(nothing.metadata.response_code, ResponseCode::NXDomain);
        for private in ["nothing.cluster.local.", "77.2.0.192.in-addr.arpa.", "0.0.2.0.8.b.d.0.1.0.0.2.ip6.arpa."] {
            ask(&mut guest, gateway, private, RecordType::PTR);
        }
    }
    let asked = upstream.asked();
    assert_eq!(asked.iter().filter(|name| *name == "www.example.").count(), 1, "{asked:?}");
    assert_eq!(asked.iter().filter(|name| *name == "nothing.example.").count(), 1, "{asked:?}");
    assert!(!asked.iter().any(|name| name.contains("cluster") || name.contains("192.in-addr")), "{asked:?}");
    let report = host.fabric.dns().report();
    let count = |zone, code| report.answers.iter().find(|(z, c, _)| (*z, *c) == (zone, code)).map(|(.., count)| *count);
    assert_eq!((count("upstream", "noerror"), count("cache", "noerror")), (Some(1), Some(1)));
    // The same from the command line.
    let looked = host.fabric.dns().look_up("default", "www.example", "a").unwrap();
    assert_eq!((looked.source, looked.answers.len()), ("cache", 1));
}

#[test]
fn what_does_not_fit_a_datagram_comes_over_tcp_from_upstream_to_the_guest() {
    let upstream = Upstream::start();
    let (host, _, mut guest) = host(vec![upstream.address]);
    for gateway in GATEWAYS {
        let cut = ask(&mut guest, gateway, "big.example.", RecordType::A);
        assert!(cut.metadata.truncation && (20..200).contains(&cut.answers.len()));
        let octets = over_tcp(&mut guest, gateway, &framed(&question("big.example.", RecordType::A)), whole);
        assert_eq!(Message::from_vec(&octets[2..]).unwrap().answers.len(), 200);
    }
    assert_eq!(upstream.over_tcp.load(Ordering::Relaxed), 1);
    assert_eq!(host.fabric.dns().report().truncated, 2);
}

#[test]
fn servers_that_do_not_answer_are_told_and_the_guest_gets_an_answer() {
    // Nobody listens there any more.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut host, _, mut guest) = host(vec![closed]);
    for name in ["a.example.", "b.example.", "c.example."] {
        let reply = ask(&mut guest, GATEWAYS[0], name, RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
    host.event(
        "event of the server",
        |event| matches!(event, FabricEvent::DnsUpstream { server, failure: Some(_) } if *server == closed.to_string()),
    );
    assert_eq!(host.fabric.dns().report().upstreams, [(closed.to_string(), false)]);
    // The other one of two is asked, and found at once.
    let upstream = Upstream::start();
    host.desired.dns.as_mut().unwrap().upstreams = Some(vec![closed, upstream.address]);
    host.apply();
    assert_eq!(data(&ask(&mut guest, GATEWAYS[0], "www.example.", RecordType::A)), ["198.51.100.1"]);
}

#[test]
fn hostile_connections_are_cut_and_others_go_on() {
    let (host, _, mut guest) = host(Vec::new());
    let good = framed(&question("web-0.test.port.cluster.local.", RecordType::A));
    for gateway in GATEWAYS {
        // A length that no query has, one of nothing, a response: the connection ends without an answer.
        let mut response = good.clone();
        response[4] |= 0x80;
        for octets in [&[0xff, 0xff, 1, 2, 3][..], &[0, 0], &response] {
            assert!(over_tcp(&mut guest, gateway, octets, |_| false).is_empty());
        }
        // Two queries at once have two answers.
        let both = over_tcp(&mut guest, gateway, &[&good[..], &good].concat(), |octets| {
            whole(octets) && whole(&octets[2 + usize::from(u16::from_be_bytes([octets[0], octets[1]]))..])
        });
        let first = 2 + usize::from(u16::from_be_bytes([both[0], both[1]]));
        assert_eq!(both[2..first], both[first + 2..]);
    }
    eventually("all were counted", || host.fabric.dns().report().connections_cut >= 6);
    // Garbage gets a short answer or none.
    let gateway: IpAddr = GATEWAYS[0].parse().unwrap();
    let reply = guest.udp_exchange(gateway, 53, &[0; 64], PATIENCE).unwrap();
    assert_eq!((reply.len(), reply[3] & 15), (12, 1));
}
