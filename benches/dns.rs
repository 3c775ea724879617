//! Answers a second from the zone, from octets to octets, in one thread: 10,000 ports and as many Services.
//!
//! `cargo bench --bench dns` prints the best of several rounds for each kind of question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use hostweave::services::dns::Answers;
use hostweave::services::dns::spec::{PortRecords, ServicePort, ServiceRecords, ServiceTarget, ZoneInput};

const NAMES: u32 = 10_000;
const ROUNDS: usize = 20;
const KINDS: [(&str, RecordType); 5] = [
    ("web-{i}.ns{n}.port.cluster.local.", RecordType::A),
    ("svc-{i}.ns{n}.svc.cluster.local.", RecordType::A),
    ("svc-{i}.ns{n}.svc.cluster.local.", RecordType::AAAA),
    ("_http._tcp.svc-{i}.ns{n}.svc.cluster.local.", RecordType::SRV),
    ("www.example.com.ns{n}.svc.cluster.local.", RecordType::A),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let answers = Answers::new(&input()?);
    println!("zone of {NAMES} ports and {NAMES} Services: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    for (pattern, kind) in KINDS {
        let queries = (0..NAMES).map(|i| query(pattern, kind, i)).collect::<Result<Vec<_>, _>>()?;
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let answered = queries.iter().filter_map(|query| answers.answer(query)).filter(|reply| reply.len() > 12);
            assert_eq!(answered.count(), queries.len());
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{kind} {pattern}: {:.0} answers/s", f64::from(NAMES) / best);
    }
    Ok(())
}

fn input() -> Result<ZoneInput, ipnet::AddrParseError> {
    let v4 = |i: u32| IpAddr::V4(Ipv4Addr::from(0x0a40_0000 + 10 + i));
    let v6 = |i: u32| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, (i >> 16) as u16, i as u16));
    let namespace = |i: u32| format!("ns{}", i % 100);
    let port = |i| PortRecords { namespace: namespace(i), name: format!("web-{i}"), addresses: vec![v4(i), v6(i)] };
    let service = |i| ServiceRecords {
        network: "default".to_owned(),
        namespace: namespace(i),
        name: format!("svc-{i}"),
        target: ServiceTarget::ClusterIp(vec![v4(NAMES + i)]),
        ports: vec![ServicePort { name: "http".to_owned(), protocol: "tcp", port: 80 }],
    };
    Ok(ZoneInput {
        domain: "cluster.local".to_owned(),
        gateways: vec![Ipv4Addr::new(10, 64, 0, 1).into()],
        ranges: vec!["10.64.0.0/10".parse()?],
        private: Vec::new(),
        ports: (0..NAMES).map(port).collect(),
        services: (0..NAMES).map(|i| service(i).into()).collect(),
    })
}

fn query(pattern: &str, kind: RecordType, i: u32) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let name = pattern.replace("{i}", &i.to_string()).replace("{n}", &(i % 100).to_string());
    let mut message = Message::new(i as u16, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name)?, kind));
    message.edns = Some(Edns::new());
    Ok(message.to_vec()?)
}
