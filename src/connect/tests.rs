//! Tests of the stages that know connections, one packet at a time: two workers with a cache each, three guests, one table.
//! Time is an argument, frames come from the tests' own builder.

use std::net::IpAddr;
use std::sync::Arc;

use hostweave_guest::frames::{Path, Segment as TcpHeader};
use hostweave_nat::{Nat, Timers};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::{
    DefaultPolicy, Endpoint, Labels, NetworkPolicy, PolicyName, PortMatch, Protocol, Rule, Selector, World,
};
use hostweave_switch::MacAddr;
use hostweave_switch::connection::{Connections, Ending, Entry, Failed, FreeRecords, Options};
use hostweave_switch::flow::{FlowCache, FlowKey, NO_QUEUE, TRUST_S};
use hostweave_switch::fragment::{Admit, Fragments};
use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta, Offload, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Network, NetworkId, Port, PortId, PortKind, Tables};
use hostweave_switch::wire::tcp::flags::{ACK, FIN, RST, SYN};

use super::{Flows, Opened};
use crate::datapath::{self, Context, Lookup};
use crate::fabric::plane::Plane;
use crate::observe::recorder::{Detail, Recorder, Unwatched};
use crate::worker::burst::error_reply;

mod icmp;
mod limits;
mod nat;
mod policy;
mod race;
mod tcp;

/// Ports of the network, besides the host's own at 0. `C` is the third, who has no part in what the two others do.
const A: u32 = 1;
const B: u32 = 2;
const C: u32 = 3;
const NETWORK: NetworkId = NetworkId(0);

/// The host, with what two workers have of their own.
struct Host {
    plane: Plane,
    compiler: Compiler,
    world: World,
    connections: Arc<Connections>,
    nat: Arc<Nat>,
    fragments: Fragments,
    workers: [(FlowCache, FreeRecords); 2],
    now: u32,
    queue: u8,
    dir: tempfile::TempDir,
    /// What the last packet told of a connection.
    opened: Option<Opened>,
}

/// Where a packet went, and into which receive queue.
type Sent = Result<(u32, u8), DropReason>;

/// Where a packet went, and as what.
struct Passed {
    to: u32,
    queue: u8,
    frame: Vec<u8>,
    offload: Offload,
    /// The connection that began with it.
    opened: Option<Opened>,
}

/// Why a packet ended, and the ICMP error that its sender hears of it.
struct Ended(DropReason, Option<Vec<u8>>);

/// Watches as `trace` does.
struct Masked;

impl Recorder for Masked {
    const MASKED: bool = true;
    fn stage(&mut self, _name: &'static str, _detail: Detail) {}
}

fn mac(port: u32) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, port as u8])
}

/// The address of a port in one family.
fn address(port: u32, v6: bool) -> IpAddr {
    match v6 {
        false => IpAddr::from([192, 0, 2, port as u8]),
        true => IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, port as u16]),
    }
}

fn path(from: u32, to: u32, v6: bool) -> Path {
    Path::new(mac(from).0, MacAddr::ROUTER.0, address(from, v6), address(to, v6))
}

fn udp(from: u32, to: u32, v6: bool, ports: (u16, u16)) -> Vec<u8> {
    path(from, to, v6).udp(ports.0, ports.1, b"data")
}

fn port(id: u32, kind: PortKind) -> Port {
    let addresses = [false, true].map(|v6| address(id, v6));
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses else { unreachable!() };
    Port {
        id: PortId(id),
        name: format!("test/{id}"),
        kind,
        network: NETWORK,
        mac: mac(id),
        v4: vec![v4],
        v6: vec![v6],
        hostname: String::new(),
        up: true,
        lease_s: 3600,
        limits: None,
        counters: Arc::new([]),
    }
}

fn tables() -> Tables {
    let network = Network {
        v4: Some(("192.0.2.0/24".parse().unwrap(), "192.0.2.254".parse().unwrap())),
        v6: Some(("2001:db8:0:1::/64".parse().unwrap(), "2001:db8:0:1::fe".parse().unwrap())),
        learning: true,
        internal: PortId(0),
        ..Network::bare("default", 7)
    };
    let ports = [(0, PortKind::Internal), (A, PortKind::VhostUser), (B, PortKind::VhostUser), (C, PortKind::Tap)];
    let mut tables = Tables { epochs: vec![1], networks: vec![Some(Arc::new(network))], ..Tables::default() };
    for (id, kind) in ports {
        tables.set_ports([Arc::new(port(id, kind))]);
        for v6 in [false, true] {
            tables.set_addresses([(AddressKey::new(NETWORK, address(id, v6)), PortId(id))]);
        }
    }
    tables
}

impl Host {
    /// Everything allowed, room for 1024 connections, no quota.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { capacity: 1024, boot: 1, now: 100 };
        let connections = Arc::new(Connections::open(&dir.path().join("connections"), &options).unwrap());
        connections.make_available(1024);
        connections.share((0..4).map(|port| (port, 1024)));
        let options =
            hostweave_nat::Options { capacity: 1024, boot: 1, now: 100, timers: Timers::default(), seed: Some(1) };
        let nat = Arc::new(Nat::open(&dir.path().join("nat"), &options).unwrap());
        let endpoint = |id: u32| {
            let (namespace, name) = ("test".to_owned(), id.to_string());
            let (labels, named_ports) = (Labels::new(), Vec::new());
            Arc::new(Endpoint { id: PortId(id), network: NETWORK, namespace, name, labels, named_ports })
        };
        let world = World { endpoints: [A, B, C].map(endpoint).to_vec(), ..World::default() };
        let mut compiler = Compiler::new();
        let policy = compiler.update(&world).table;
        let plane = Plane { tables: tables(), policy, ..Plane::default() };
        let workers = [(); 2].map(|()| (FlowCache::new(4096).unwrap(), FreeRecords::new()));
        Self {
            plane,
            compiler,
            world,
            connections,
            nat,
            fragments: Fragments::new(),
            workers,
            now: 100,
            queue: 0,
            opened: None,
            dir,
        }
    }

    /// A world in which a policy isolates every port; in come TCP and UDP to these ports alone.
    fn allow_only(&mut self, ports: &[u16]) {
        let matches = |protocol| ports.iter().map(move |port| PortMatch::Range(protocol, *port, *port));
        let rule = Rule {
            origin: String::new(),
            peers: Vec::new(),
            ports: [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(matches).collect(),
        };
        self.world.policies = vec![Arc::new(NetworkPolicy {
            name: PolicyName { namespace: Some("test".to_owned()), name: "only".to_owned() },
            origin: String::new(),
            selector: Selector::default(),
            // A rule without ports would be one for all ports (SEMANTICS NP12).
            ingress: Some(if ports.is_empty() { Vec::new() } else { vec![rule] }),
            egress: None,
            audit: false,
        })];
        self.publish();
    }

    /// Policies and tables as they are now, under a new epoch.
    fn publish(&mut self) {
        self.plane.policy = self.compiler.update(&self.world).table;
        self.plane.tables.epochs[0] += 1;
        self.plane.tables.crossings += 1;
    }

    fn send_with<R: Recorder>(&mut self, worker: usize, from: u32, frame: &[u8], record: &mut R) -> Sent {
        let passed = self.pass(worker, from, frame, Offload::default(), record);
        passed.map(|passed| (passed.to, passed.queue)).map_err(|ended| ended.0)
    }

    /// A frame with what its virtio-net header asks for, and what comes of it.
    fn pass<R: Recorder>(
        &mut self,
        worker: usize,
        from: u32,
        frame: &[u8],
        offload: Offload,
        record: &mut R,
    ) -> Result<Passed, Ended> {
        let Self { plane, connections, nat, fragments, workers, now, queue, opened, .. } = self;
        let (cache, free) = &mut workers[worker];
        let port = plane.tables.port(PortId(from)).unwrap();
        let network = plane.tables.network(port.network).unwrap();
        let ctx = Context::new(plane, port, network, *queue, *now);
        let meta = Meta { in_port: PortId(from), offload, ..Meta::default() };
        Burst::new().with_frame(meta, frame, HEAD_FIRST, |packet, arena| {
            let ended = |packet: &mut Packet, arena: &mut Vec<Segment>, reason| {
                let answered = error_reply(packet, arena, &ctx, reason);
                Ended(reason, answered.then(|| packet.head().to_vec()))
            };
            match datapath::classify(&ctx, packet, arena, &mut None, record) {
                Verdict::Continue => {}
                Verdict::Drop(reason) => return Err(ended(packet, arena, reason)),
                other => panic!("{other:?} of a packet to another guest"),
            }
            if packet.meta.fragment {
                match fragments.admit(packet, arena, &plane.tables, network.vni, u64::from(*now) * 1000) {
                    Admit::Known(ports) => ports.write(&mut packet.meta),
                    Admit::First(waiting) => assert!(waiting.is_empty()),
                    _ => panic!("a fragment before its first"),
                }
            }
            let key = FlowKey::of(packet, from as u16).unwrap();
            let lookup = Lookup::new(connections.keys(), key, network.vni);
            let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
            let verdict = datapath::forward(&ctx, &mut flows, &lookup, packet, arena, record);
            *opened = flows.opened;
            let denied = flows.denied.is_some();
            assert_eq!(denied, verdict == Verdict::Drop(DropReason::PolicyDenied), "who denied it is told");
            match verdict {
                Verdict::Forward => {
                    let mut octets = vec![0; packet.len()];
                    packet.copy_frame(arena, &mut octets).unwrap();
                    let meta = &packet.meta;
                    let (to, opened) = (meta.out_port.0, flows.opened);
                    Ok(Passed { to, queue: meta.queue, frame: octets, offload: meta.offload, opened })
                }
                Verdict::Drop(reason) => Err(ended(packet, arena, reason)),
                other => panic!("{other:?} of forward"),
            }
        })
    }

    /// A frame of a port, on the first worker.
    fn send(&mut self, from: u32, frame: &[u8]) -> Sent {
        self.send_with(0, from, frame, &mut Unwatched)
    }

    /// As [`Host::send`]; only where to.
    fn to(&mut self, from: u32, frame: &[u8]) -> Result<u32, DropReason> {
        self.send(from, frame).map(|(to, _)| to)
    }

    fn entries(&self) -> Vec<Entry> {
        self.connections.entries().collect()
    }

    /// The one connection that there is.
    #[track_caller]
    fn entry(&self) -> Entry {
        let entries = self.entries();
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries[0]
    }
}

/// For both families.
fn both(test: impl Fn(bool)) {
    [false, true].into_iter().for_each(test);
}

#[test]
fn a_connection_begins_is_answered_and_is_found_in_the_cache() {
    both(|v6| {
        let mut host = Host::new();
        assert_eq!(host.send(A, &udp(A, B, v6, (1, 2))), Ok((B, NO_QUEUE)));
        let entry = host.entry();
        assert_eq!((entry.in_port, entry.out_port, entry.seen), (A, B, [100, 0]));
        assert_eq!(host.to(B, &udp(B, A, v6, (2, 1))), Ok(A));
        assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Ok(B));
        assert_eq!(host.entry().seen, [100, 100], "one connection for both directions");
        assert_eq!(host.entry().generation, entry.generation);
        // Other ports are another connection, and so is the reverse order of ports.
        assert_eq!(host.to(B, &udp(B, A, v6, (1, 2))), Ok(A));
        assert_eq!(host.entries().len(), 2);
    });
}

#[test]
fn a_hit_keeps_its_connection_alive_once_a_round() {
    both(|v6| {
        let mut host = Host::new();
        host.to(A, &udp(A, B, v6, (1, 2))).unwrap();
        host.to(B, &udp(B, A, v6, (2, 1))).unwrap();
        for now in [100 + TRUST_S, 100 + 2 * TRUST_S, 152] {
            host.now = now;
            assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Ok(B));
            assert_eq!(host.entry().seen, [now, 100]);
        }
        host.to(B, &udp(B, A, v6, (2, 1))).unwrap();
        assert_eq!(host.entry().seen, [152, 152]);
    });
}

#[test]
fn a_record_that_has_a_new_owner_is_no_answer_for_the_flow_of_the_old_one() {
    both(|v6| {
        let mut host = Host::new();
        host.to(A, &udp(A, B, v6, (1, 2))).unwrap();
        host.to(B, &udp(B, A, v6, (2, 1))).unwrap();
        let old = host.entry();
        assert!(host.connections.remove(old.index, old.generation, Ending::Flushed));
        // The next connections take that record among others.
        for port in 1010..1200 {
            host.to(C, &udp(C, B, v6, (port, 9))).unwrap();
        }
        let same = |entry: &Entry| entry.index == old.index;
        let taken = host.entries().into_iter().any(|entry| same(&entry) && entry.in_port == C);
        assert!(taken, "the record was used again");
        host.now += 1;
        host.allow_only(&[9]);
        assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Err(DropReason::PolicyDenied), "a new connection, and denied");
        let entry = host.entries().into_iter().find(same).unwrap();
        assert_eq!((entry.in_port, entry.seen), (C, [100, 0]), "the new owner was not touched");
    });
}

#[test]
fn an_address_that_moved_to_another_port_takes_no_connection_along() {
    both(|v6| {
        for old_peer_first in [true, false] {
            let mut host = Host::new();
            host.to(A, &udp(A, B, v6, (1, 2))).unwrap();
            host.to(B, &udp(B, A, v6, (2, 1))).unwrap();
            // Port C gets the addresses of B, which has none any more.
            let (mut giver, mut taker) = (port(B, PortKind::VhostUser), port(C, PortKind::Tap));
            (taker.v4, taker.v6) = (std::mem::take(&mut giver.v4), std::mem::take(&mut giver.v6));
            host.plane.tables.set_ports([Arc::new(giver)]);
            host.plane.tables.set_ports([Arc::new(taker)]);
            host.plane.tables.set_addresses([(AddressKey::new(NETWORK, address(B, v6)), PortId(C))]);
            host.publish();
            let stranger = Path { src_mac: mac(C).0, ..path(B, A, v6) }.udp(2, 1, b"data");
            if old_peer_first {
                let old = host.entry();
                assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Ok(C), "the old one ends, and another begins");
                let new = host.entry();
                assert_ne!((new.index, new.generation), (old.index, old.generation));
                assert_eq!(host.to(C, &stranger), Ok(A));
                assert_eq!((host.entry().in_port, host.entry().out_port), (A, C));
            } else {
                assert_eq!(host.to(C, &stranger), Ok(A), "a connection of its own");
                assert_eq!((host.entry().in_port, host.entry().out_port), (C, A));
                assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Ok(C), "the answer of that one");
            }
            assert_eq!(host.to(B, &udp(B, A, v6, (2, 1))), Err(DropReason::SpoofedIp));
        }
    });
}

#[test]
fn replies_arrive_on_the_queue_on_which_the_flow_was_last_sent() {
    both(|v6| {
        let mut host = Host::new();
        host.queue = 3;
        assert_eq!(host.send(A, &udp(A, B, v6, (1, 2))), Ok((B, NO_QUEUE)), "by hash, until B has sent");
        host.queue = 1;
        assert_eq!(host.send(B, &udp(B, A, v6, (2, 1))), Ok((A, 3)));
        host.now += TRUST_S;
        host.queue = 2;
        assert_eq!(host.send(A, &udp(A, B, v6, (1, 2))), Ok((B, 1)));
        host.now += TRUST_S;
        host.queue = 1;
        assert_eq!(host.send(B, &udp(B, A, v6, (2, 1))), Ok((A, 2)), "the queue changed with the sender's");
    });
}

#[test]
fn two_workers_see_one_connection() {
    both(|v6| {
        let mut host = Host::new();
        let watch = &mut Unwatched;
        assert_eq!(host.send_with(0, A, &udp(A, B, v6, (1, 2)), watch), Ok((B, NO_QUEUE)));
        assert_eq!(host.send_with(1, B, &udp(B, A, v6, (2, 1)), watch), Ok((A, 0)));
        assert_eq!(host.send_with(1, A, &udp(A, B, v6, (1, 2)), watch), Ok((B, 0)), "the same direction on the other");
        assert_eq!(host.entry().seen, [100, 100]);
        // What one of them ends, the other ends with its next second.
        let entry = host.entry();
        host.connections.remove(entry.index, entry.generation, Ending::Flushed);
        host.now += 1;
        host.allow_only(&[]);
        for worker in [0, 1] {
            let denied = Err(DropReason::PolicyDenied);
            assert_eq!(host.send_with(worker, A, &udp(A, B, v6, (1, 2)), watch), denied);
            assert_eq!(host.send_with(worker, B, &udp(B, A, v6, (2, 1)), watch), denied);
        }
    });
}

#[test]
fn a_destination_that_is_down_or_not_there_begins_nothing() {
    both(|v6| {
        let mut host = Host::new();
        let mut down = port(B, PortKind::VhostUser);
        down.up = false;
        host.plane.tables.set_ports([Arc::new(down)]);
        assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Err(DropReason::PortDown));
        assert_eq!(host.to(A, &udp(A, 99, v6, (1, 2))), Err(DropReason::NoRoute));
        assert_eq!(host.entries(), []);
        // A port that goes down keeps its connections for when it comes back.
        host.plane.tables.set_ports([Arc::new(port(B, PortKind::VhostUser))]);
        host.publish();
        host.to(A, &udp(A, B, v6, (1, 2))).unwrap();
        let mut down = port(B, PortKind::VhostUser);
        down.up = false;
        host.plane.tables.set_ports([Arc::new(down)]);
        host.publish();
        assert_eq!(host.to(A, &udp(A, B, v6, (1, 2))), Err(DropReason::PortDown));
        assert_eq!(host.entries().len(), 1);
    });
}

#[test]
fn a_trace_changes_nothing() {
    both(|v6| {
        let mut host = Host::new();
        let frame = udp(A, B, v6, (1, 2));
        assert_eq!(host.send_with(0, A, &frame, &mut Masked), Ok((B, NO_QUEUE)));
        assert_eq!(host.entries(), [], "no connection began");
        host.to(A, &frame).unwrap();
        host.to(B, &udp(B, A, v6, (2, 1))).unwrap();
        let before = host.entry();
        host.now = 110;
        assert_eq!(host.send_with(1, A, &frame, &mut Masked).map(|way| way.0), Ok(B));
        assert_eq!(host.entry(), before, "it was not kept alive");
        // Not even one that its next packet will end.
        host.allow_only(&[]);
        for worker in [0, 1] {
            assert_eq!(host.send_with(worker, A, &frame, &mut Masked), Err(DropReason::PolicyDenied));
            assert_eq!(host.entry(), before, "it was not cut");
        }
        assert_eq!(host.to(A, &frame), Err(DropReason::PolicyDenied));
        assert_eq!(host.entries(), []);
    });
}
