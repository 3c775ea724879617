//! A plane with a way out, and connections that lead from one network into another, for benchmarks: through a NAT pool, from an
//! attached address, and to a virtual address within one network (what a Service is to the packet path).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hostweave::connect::Flows;
use hostweave::datapath::{self, Context, Lookup};
use hostweave::fabric::plane::Plane;
use hostweave::observe::recorder::Unwatched;
use hostweave_guest::frames::{Path, Segment};
use hostweave_nat::{Filtering, PoolSpec, Pools, Workload};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::{Endpoint, Labels, World};
use hostweave_switch::MacAddr;
use hostweave_switch::connection::{NewConnection, Translation};
use hostweave_switch::flow::{FlowKey, Kind};
use hostweave_switch::fuzz::{GUEST_A, GUEST_B, NETWORK, mac, tables, v4, v6};
use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta};
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::{
    AddressKey, Egress, Network, NetworkId, NextHop, Owned, Port, PortId, PortKind, Tables, Uplink, mapped,
};
use hostweave_switch::tcp_track::Side;
use hostweave_switch::wire::proto;
use hostweave_switch::wire::tcp::flags::{ACK, PSH, SYN};

use super::State;

type Failure = Box<dyn std::error::Error>;

/// The way out.
pub const UPLINK: PortId = PortId(4);
const OUTSIDE: NetworkId = NetworkId(2);
const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 1]);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 2]);
/// L4 ports of the client and of the server.
const CLIENT: u16 = 4000;
const SERVER: u16 = 8080;

/// Which packets are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// From guest to guest, not translated.
    Stay,
    /// From a guest through a NAT pool to the outside.
    NatOut,
    /// The answers to these.
    NatIn,
    /// From a guest that has an address of the outside.
    AttachedOut,
    /// To such a guest.
    AttachedIn,
    /// From a guest to a virtual address of its own network, behind which is another guest.
    Service,
    /// The answers to these.
    ServiceBack,
}

impl Case {
    /// By its name in the budget.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "stay" => Self::Stay,
            "nat-out" => Self::NatOut,
            "nat-in" => Self::NatIn,
            "attached-out" => Self::AttachedOut,
            "attached-in" => Self::AttachedIn,
            "service" => Self::Service,
            "service-back" => Self::ServiceBack,
            _ => return None,
        })
    }

    /// Where its packets come from.
    pub fn sender(self) -> PortId {
        match self {
            Self::NatIn | Self::AttachedIn => UPLINK,
            Self::ServiceBack => GUEST_B,
            _ => GUEST_A,
        }
    }

    fn is_answer(self) -> bool {
        matches!(self, Self::NatIn | Self::AttachedIn | Self::ServiceBack)
    }

    fn is_service(self) -> bool {
        matches!(self, Self::Service | Self::ServiceBack)
    }
}

/// One side's packets as it sends them.
#[derive(Clone, Copy)]
struct End {
    port: PortId,
    path: Path,
    l4: [u16; 2],
}

fn public(six: bool, last: u16) -> IpAddr {
    if six { Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, last).into() } else { [203, 0, 113, last as u8].into() }
}

fn remote(six: bool) -> IpAddr {
    if six { Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0, 1).into() } else { [198, 51, 100, 1].into() }
}

fn virtual_address(six: bool) -> IpAddr {
    if six { Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10).into() } else { [10, 96, 0, 10].into() }
}

fn inside(port: PortId, six: bool) -> IpAddr {
    if six { v6(port).into() } else { v4(port).into() }
}

/// A plane of two guests, whose policies are compiled and isolate nobody, so that flows differ in nothing but their tuple, and of an
/// uplink. As many pools, owned addresses and attached ports as `others` come on top.
pub fn plane(state: &State, case: Case, others: u16) -> Result<Plane, Failure> {
    let mut tables = tables();
    add_uplink(&mut tables, case, others);
    let endpoint = |port: &Arc<Port>| {
        Arc::new(Endpoint {
            id: port.id,
            network: port.network,
            namespace: "default".to_owned(),
            name: port.name.clone(),
            labels: Labels::new(),
            named_ports: Vec::new(),
        })
    };
    let guests = tables.ports.iter().flatten().filter(|port| port.kind == PortKind::VhostUser);
    let world = World { endpoints: guests.map(endpoint).collect(), ..World::default() };
    let pools: Vec<PoolSpec> = (0..=others).map(pool).collect();
    let pools = Arc::new(Pools::compile(&state.nat, &pools, 0)?);
    Ok(Plane { tables, policy: Compiler::new().update(&world).table, pools, ..Plane::default() })
}

/// The pool of the guests, and others that serve nobody.
fn pool(number: u16) -> PoolSpec {
    let addresses = match number {
        0 => [false, true].map(|six| public(six, 7)).to_vec(),
        _ => vec![Ipv4Addr::from(0xcb00_7200 + u32::from(number)).into()],
    };
    let workloads = if number == 0 { vec![Workload { port: GUEST_A.0, uid: 1 }] } else { vec![] };
    PoolSpec {
        name: format!("pool-{number}"),
        addresses,
        draining: vec![],
        workloads,
        in_family: Default::default(),
        block_size: 64,
        blocks: 1..=4,
        filtering: Filtering::default(),
        overload: false,
        limits: Default::default(),
    }
}

fn add_uplink(tables: &mut Tables, case: Case, others: u16) {
    let Some(first) = tables.networks.first().and_then(|network| network.as_deref().cloned()) else { return };
    let first = Network { egress_v4: Egress::Nat, egress_v6: Egress::Nat, ..first };
    let outside = Network {
        name: "outside".to_owned(),
        vni: 0xff_ffff,
        v4: "203.0.113.0/24".parse().ok().map(|range| (range, [203, 0, 113, 254].into())),
        v6: "2001:db8:f::/64".parse().ok().map(|range: ipnet::Ipv6Net| (range, range.network())),
        egress_v4: Egress::None,
        egress_v6: Egress::None,
        ..first.clone()
    };
    tables.networks[0] = Some(Arc::new(first));
    tables.networks.push(Some(Arc::new(outside)));
    let gateway = |six| NextHop { address: public(six, 254), mac: Some(GATEWAY_MAC) };
    let mut uplink =
        Uplink { v4: vec![gateway(false)], v6: vec![gateway(true)], ..Uplink::bare(UPLINK, OUTSIDE, UPLINK_MAC) };
    for six in [false, true] {
        uplink.owned.insert(mapped(public(six, 7)), Owned::Nat);
        if matches!(case, Case::AttachedOut | Case::AttachedIn) {
            uplink.owned.insert(mapped(public(six, 9)), Owned::Attached { port: GUEST_A, inside: None });
            tables.set_addresses([(AddressKey::new(NETWORK, public(six, 9)), GUEST_A)]);
        }
    }
    let template = tables.ports.get(GUEST_B.0 as usize).and_then(|port| port.as_deref().cloned());
    let Some(template) = template else { return };
    let attached = Port { id: GUEST_A, mac: mac(GUEST_A), ..template.clone() };
    let attached = Port {
        v4: vec![v4(GUEST_A), Ipv4Addr::new(203, 0, 113, 9)],
        v6: vec![v6(GUEST_A), Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 9)],
        ..attached
    };
    tables.set_ports([Arc::new(attached)]);
    let port = Port { id: UPLINK, kind: PortKind::Uplink, network: OUTSIDE, mac: UPLINK_MAC, ..template.clone() };
    tables.set_ports([Arc::new(Port { v4: vec![], v6: vec![], ..port })]);
    // Ports with an address of the outside each.
    for number in 0..others {
        let id = PortId(u32::from(UPLINK.0 as u16 + 1 + number));
        let address = Ipv4Addr::from(0xcb00_8000 + u32::from(number));
        tables.set_ports([Arc::new(Port { id, v4: vec![address], v6: vec![], ..template.clone() })]);
        tables.set_addresses([(AddressKey::v4(NETWORK, address), id)]);
        uplink.owned.insert(mapped(address.into()), Owned::Attached { port: id, inside: None });
        uplink.owned.insert(mapped(Ipv4Addr::from(0xcb00_7200 + u32::from(number) + 1).into()), Owned::Nat);
    }
    tables.epochs = vec![1; 3];
    tables.uplink = Some(Arc::new(uplink));
}

/// Sends the first packets of a connection through, and returns the frame of `len` octets that is measured.
pub fn begin(
    state: &mut State,
    plane: &Plane,
    case: Case,
    (six, tcp): (bool, bool),
    len: usize,
    now: u32,
) -> Result<Vec<u8>, Failure> {
    state.connections.set_port_id(GUEST_A.0, 1);
    let client_address = match case {
        Case::AttachedOut | Case::AttachedIn => public(six, 9),
        _ => inside(GUEST_A, six),
    };
    let target = match case {
        Case::Stay => inside(GUEST_B, six),
        Case::Service | Case::ServiceBack => virtual_address(six),
        _ => remote(six),
    };
    let path = Path::new(mac(GUEST_A).0, MacAddr::ROUTER.0, client_address, target);
    let client = End { port: GUEST_A, path, l4: [CLIENT, SERVER] };
    if case.is_service() {
        add_service(state, plane, &client, (six, tcp), now)?;
    }
    send(state, plane, &client, tcp, SYN, (1000, 0), now)?;
    let server = match case {
        Case::Stay | Case::Service | Case::ServiceBack => {
            let path = Path::new(mac(GUEST_B).0, MacAddr::ROUTER.0, inside(GUEST_B, six), client_address);
            End { port: GUEST_B, path, l4: [SERVER, CLIENT] }
        }
        _ => {
            let entry = state.connections.entries().next().ok_or("no connection")?;
            let reply = entry.translation.ok_or("no translation")?.reply;
            let to = Ipv6Addr::from(reply.dst()).to_canonical();
            let path = Path::new(GATEWAY_MAC.0, UPLINK_MAC.0, target, to);
            End { port: UPLINK, path, l4: [SERVER, reply.dst_port()] }
        }
    };
    send(state, plane, &server, tcp, SYN | ACK, (5000, 1001), now)?;
    send(state, plane, &client, tcp, ACK, (1001, 5001), now)?;
    send(state, plane, &server, tcp, ACK, (5001, 1001), now)?;
    let (end, numbers) = if case.is_answer() { (server, (5001, 1001)) } else { (client, (1001, 5001)) };
    let headers = frame(&end, tcp, ACK, numbers, &[]).len();
    Ok(frame(&end, tcp, ACK | PSH, numbers, &vec![7; len.saturating_sub(headers)]))
}

fn frame(end: &End, tcp: bool, flags: u8, (seq, ack): (u32, u32), payload: &[u8]) -> Vec<u8> {
    let [src_port, dst_port] = end.l4;
    match tcp {
        true => end.path.tcp(&Segment { src_port, dst_port, seq, ack, flags, window: 60_000 }, payload),
        false => end.path.udp(src_port, dst_port, payload),
    }
}

/// What a Service's decision commits: the connection to the virtual address, whose answers come from the guest behind it.
fn add_service(
    state: &mut State,
    plane: &Plane,
    client: &End,
    (six, tcp): (bool, bool),
    now: u32,
) -> Result<(), Failure> {
    let network = plane.tables.network(NETWORK).ok_or("no network")?;
    let protocol = if tcp { proto::TCP } else { proto::UDP };
    let key = |src, dst, l4: [u16; 2]| FlowKey::new(mapped(src), mapped(dst), l4[0], l4[1], protocol, Kind::Ports);
    let forth = key(inside(GUEST_A, six), virtual_address(six), client.l4);
    let reply = key(inside(GUEST_B, six), inside(GUEST_A, six), [SERVER, CLIENT]);
    let side = if tcp { Side { end: 1001, ack: 1001, flags: Side::SEEN, ..Side::default() } } else { Side::default() };
    let new = NewConnection {
        key: forth,
        hash: state.connections.keys().hash(&forth, network.vni),
        vni: network.vni,
        in_port: GUEST_A.0,
        out_port: GUEST_B.0,
        basis: [0, 0],
        epoch: plane.tables.crossing_epoch(),
        queue: 0,
        side,
        translation: Some(Translation { reply, vni: network.vni, held: [None, None] }),
        receiver_pays: false,
    };
    state
        .connections
        .commit(&new, &plane.tables.timeouts, &mut state.free, now)
        .map_err(|error| format!("{error:?}"))?;
    Ok(())
}

/// One packet, from `classify` to `rewrite`.
fn send(
    state: &mut State,
    plane: &Plane,
    end: &End,
    tcp: bool,
    flags: u8,
    numbers: (u32, u32),
    now: u32,
) -> Result<(), Failure> {
    let port = plane.tables.port(end.port).ok_or("no port")?;
    let network = plane.tables.network(port.network).ok_or("no network")?;
    let ctx = Context::new(plane, port, network, 0, now);
    let octets = frame(end, tcp, flags, numbers, &[]);
    let meta = Meta { in_port: end.port, ..Meta::default() };
    let verdict = Burst::new().with_frame(meta, &octets, HEAD_FIRST, |packet, arena| {
        match datapath::classify(&ctx, packet, arena, &mut None, &mut Unwatched) {
            Verdict::Continue => {}
            ended => return ended,
        }
        let Some(key) = FlowKey::of(packet, end.port.0 as u16) else { return Verdict::Continue };
        let lookup = Lookup::new(state.connections.keys(), key, network.vni);
        let State { cache, connections, nat, free, .. } = state;
        let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
        datapath::forward(&ctx, &mut flows, &lookup, packet, arena, &mut Unwatched)
    });
    if verdict == Verdict::Forward { Ok(()) } else { Err(format!("a first packet ends: {verdict:?}").into()) }
}
