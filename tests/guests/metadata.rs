//! Metadata at 169.254.169.254 and fd00:ec2::254, asked by guests over both IP versions.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hostweave::fabric::spec::{MetadataSpec, PortMetadata, PortSpec};
use hostweave_guest::Guest;
use hostweave_policy::model::{DefaultPolicy, Infrastructure};
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, eventually, network};

const SERVERS: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

fn metadata(user_data: &str) -> Arc<PortMetadata> {
    Arc::new(PortMetadata { user_data: user_data.into(), ..PortMetadata::default() })
}

/// A host that serves metadata, and a guest on a port of it.
fn host() -> (Host, PortSpec, Guest) {
    let mut host = Host::new(1);
    host.desired.metadata = Some(MetadataSpec::default());
    let mut spec = host.spec("default", "web-0", 10, 1);
    spec.metadata = metadata("of web-0");
    host.desired.ports.push(spec.clone().into());
    host.apply();
    let mut guest = host.guest(&spec).up();
    host.settle(&mut guest, &spec);
    (host, spec, guest)
}

/// Sends octets to metadata, and what comes back until the other side ends the connection.
fn exchange(guest: &mut Guest, server: &str, octets: &[u8]) -> Vec<u8> {
    let handle = guest.tcp_connect(server.parse().unwrap(), 80, PATIENCE).unwrap();
    let (mut sent, mut received) = (0, Vec::new());
    guest
        .run_until("the end of the connection", PATIENCE, |guest| {
            let socket = guest.tcp_socket(handle);
            if socket.can_send() && sent < octets.len() {
                sent += socket.send_slice(&octets[sent..]).unwrap();
            }
            while socket.can_recv() {
                socket.recv(|data| (data.len(), received.extend_from_slice(data))).unwrap();
            }
            (!socket.may_recv()).then_some(())
        })
        .unwrap();
    guest.close(handle);
    received
}

/// Status and body of a request.
fn ask(guest: &mut Guest, server: &str, request: &str, headers: &str) -> (u16, String) {
    let text = format!("{request} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", host_of(server));
    let reply = String::from_utf8(exchange(guest, server, text.as_bytes())).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn host_of(server: &str) -> String {
    if server.contains(':') { format!("[{server}]") } else { server.to_owned() }
}

fn token(guest: &mut Guest, server: &str) -> String {
    let (status, token) = ask(guest, server, "PUT /latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n");
    assert_eq!(status, 200);
    format!("X-aws-ec2-metadata-token: {token}\r\n")
}

#[test]
fn a_guest_reads_its_own_with_a_token_over_both_versions() {
    let (mut host, spec, mut guest) = host();
    for server in SERVERS {
        assert_eq!(ask(&mut guest, server, "GET /latest/user-data", "").0, 401);
        let token = token(&mut guest, server);
        assert_eq!(ask(&mut guest, server, "GET /latest/user-data", &token), (200, "of web-0".to_owned()));
        let local = ask(&mut guest, server, "GET /latest/meta-data/local-ipv4", &token);
        assert_eq!(local, (200, spec.v4[0].to_string()));
        let agent = "User-Agent: Cloud-Init/24.1\r\n";
        assert_eq!(ask(&mut guest, server, "GET /nocloud/user-data", agent), (200, "of web-0".to_owned()));
        // The address answers to ping, as the gateway does.
        guest.ping(server.parse::<IpAddr>().unwrap(), PATIENCE).unwrap();
    }
    // The gateway has no metadata, and metadata's address has nothing else.
    for (server, port) in [("192.0.2.1", 80), ("2001:db8:1::1", 80), (SERVERS[0], 81), (SERVERS[1], 81)] {
        let refused = guest.tcp_connect(server.parse().unwrap(), port, PATIENCE).unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
    }
    // Changed user data is there at once.
    host.desired.ports.edit(0).unwrap().metadata = metadata("changed");
    host.apply();
    let token = token(&mut guest, SERVERS[0]);
    assert_eq!(ask(&mut guest, SERVERS[0], "GET /latest/user-data", &token), (200, "changed".to_owned()));
    let report = host.fabric.metadata().report();
    assert_eq!(report.answers.iter().map(|(status, _)| status.as_str()).collect::<Vec<_>>(), ["200", "401"]);
    // Nobody is served any more.
    host.desired.metadata = None;
    host.apply();
    for server in SERVERS {
        assert!(guest.tcp_connect(server.parse().unwrap(), 80, PATIENCE).is_err());
    }
}

#[test]
fn equal_addresses_of_two_networks_get_each_its_own() {
    let (mut host, _, mut guest) = host();
    host.desired.networks.push(network("other", 2, 1500));
    let mut other = host.spec("other", "twin", 10, 1);
    other.metadata = metadata("of twin");
    host.desired.ports.push(other.clone().into());
    host.apply();
    let mut twin = host.guest(&other).up();
    host.settle(&mut twin, &other);
    for server in SERVERS {
        let first = token(&mut guest, server);
        assert_eq!(ask(&mut guest, server, "GET /latest/user-data", &first), (200, "of web-0".to_owned()));
        assert_eq!(ask(&mut twin, server, "GET /latest/user-data", &first).0, 401, "the token of another port");
        let own = token(&mut twin, server);
        assert_eq!(ask(&mut twin, server, "GET /latest/user-data", &own), (200, "of twin".to_owned()));
    }
}

#[test]
fn a_connection_ends_when_its_address_goes_to_another_port() {
    let (mut host, spec, mut guest) = host();
    let server: IpAddr = SERVERS[0].parse().unwrap();
    let first = guest.tcp_connect(server, 80, PATIENCE).unwrap();
    let local = guest.tcp_socket(first).local_endpoint().unwrap();
    // A port with the same addresses takes the place of this one.
    let mut next = host.spec("default", "web-1", 10, 1);
    next.metadata = metadata("of web-1");
    next.mac = spec.mac;
    host.desired.ports = vec![next.clone()].into();
    host.apply();
    let mut heir = host.guest(&next).up();
    host.settle(&mut heir, &next);
    // With the old connection still there, this SYN would belong to it.
    let handle = heir.tcp_connect(server, 80, PATIENCE).unwrap();
    assert_eq!(heir.tcp_socket(handle).local_endpoint(), Some(local));
    let token = token(&mut heir, SERVERS[0]);
    assert_eq!(ask(&mut heir, SERVERS[0], "GET /latest/user-data", &token), (200, "of web-1".to_owned()));
}

#[test]
fn np34_metadata_passes_a_deny_default_until_that_is_switched_off() {
    let (mut host, _, mut guest) = host();
    host.desired.policy.default = DefaultPolicy::Deny;
    host.apply();
    for server in SERVERS {
        assert_eq!(ask(&mut guest, server, "GET /latest/user-data", "").0, 401);
    }
    host.desired.policy.infrastructure = Infrastructure { metadata: false, ..Infrastructure::default() };
    host.apply();
    let before = host.dropped("web-0", DropReason::PolicyDenied);
    for server in SERVERS {
        let failed = guest.tcp_connect(server.parse().unwrap(), 80, std::time::Duration::from_millis(500));
        assert!(failed.is_err());
    }
    assert!(host.dropped("web-0", DropReason::PolicyDenied) >= before + 2);
}

#[test]
fn hostile_clients_are_cut_and_others_go_on() {
    let (mut host, _, mut guest) = host();
    let mut other = host.ready_guest("other", 11);
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    for server in SERVERS {
        for octets in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", long.as_bytes(), many.as_bytes()] {
            let reply = exchange(&mut guest, server, octets);
            assert!(reply.is_empty() || reply.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&reply));
        }
    }
    // Slow ones are cut; those beyond the limit of a port are not let in.
    let open = |guest: &mut Guest| guest.tcp_connect(SERVERS[0].parse().unwrap(), 80, PATIENCE).unwrap();
    let slow: Vec<_> = (0..20).map(|_| open(&mut guest)).collect();
    eventually("four are refused", || {
        guest.poll(Instant::now());
        host.fabric.metadata().report().refused == 4
    });
    assert_eq!(ask(&mut other, SERVERS[0], "GET /latest/user-data", "").0, 401, "another port is served meanwhile");
    let mut ended = |handle| {
        guest.poll(Instant::now());
        !guest.tcp_socket(handle).may_recv()
    };
    eventually("all slow ones are cut", || slow.iter().all(|handle| ended(*handle)));
    assert_eq!(ask(&mut guest, SERVERS[0], "GET /latest/user-data", "").0, 401);
}

#[test]
fn a_port_that_asks_too_often_is_told_so() {
    let (host, _, mut guest) = host();
    let request = "GET /latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".repeat(1_000);
    let last = "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n";
    let reply = exchange(&mut guest, SERVERS[0], [request, last.to_owned()].concat().as_bytes());
    let reply = String::from_utf8(reply).unwrap();
    assert!(reply.contains("HTTP/1.1 401") && reply.contains("HTTP/1.1 429"));
    drop(host);
}
