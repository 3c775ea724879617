//! Instructions of each stage of the packet path, guest to guest, one flow whose connection is known: each stage is a
//! function that is not inlined, so that callgrind tells them apart (ARCHITECTURE.md, "Cost of a packet").
//!
//! `cargo bench --bench stages -- FRAME_OCTETS BURSTS [v4|v6 [service]]`, `service` for guest to guest by a Service; the program that it builds, under
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='stages::switch_burst'` for the instructions.
//! Without callgrind it prints ns a frame, everything hot and in one thread.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave::connect::Flows;
use hostweave::datapath::{self, Context, Lookup};
use hostweave::fabric::plane::Plane;
use hostweave::observe::recorder::Unwatched;
use hostweave::services;
use hostweave_guest::{Nic, NicConfig, VnetHeader, features, frames::Path};
use hostweave_nat::Nat;
use hostweave_nat::service::{Backend, FrontendSpec, Refusal, Services};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::{Endpoint, Labels, World};
use hostweave_switch::connection::{Connections, FreeRecords, Options};
use hostweave_switch::flow::{FlowCache, FlowKey};
use hostweave_switch::fuzz::{GUEST_A, GUEST_B, NETWORK, mac, tables, v4, v6};
use hostweave_switch::packet::{Burst, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::{AddressKey, Port};
use hostweave_switch::{MacAddr, guard, parse};
use hostweave_vhost::{Attachment, AttachmentConfig, FromGuest, Mode, Observer, Peer, ToGuest};

struct Deaf;

impl Observer for Deaf {
    fn connected(&self, _peer: Peer) {}
    fn queue_started(&self, _pair: usize) {}
    fn queue_stopped(&self, _pair: usize) {}
    fn started(&self, _features: u64, _pairs: usize) {}
    fn stopped(&self) {}
    fn disconnected(&self) {}
    fn fault(&self, reason: &str) {
        panic!("{reason}");
    }
}

const BURST: usize = 64;

type Failure = Box<dyn std::error::Error>;

#[inline(never)]
fn stage_rx(rx: &mut FromGuest<'_>, burst: &mut Burst) -> usize {
    rx.receive(GUEST_A, burst, &mut |_| ()).unwrap_or(0)
}

#[inline(never)]
fn stage_parse(packet: &mut Packet, arena: &mut [Segment]) -> Verdict {
    parse::parse(packet, arena)
}

/// The link addresses, and whether `local` has anything to do with it.
#[inline(never)]
fn stage_guard(ctx: &Context<'_>, packet: &Packet) -> Verdict {
    if services::is_for_others(packet) { guard::link(ctx.port, packet) } else { Verdict::Reply }
}

/// The key of the packet's flow and its hash.
#[inline(never)]
fn stage_key(ctx: &Context<'_>, state: &State, packet: &Packet) -> Lookup {
    let key = FlowKey::of(packet, ctx.port.id.0 as u16).unwrap_or_default();
    Lookup { key, hash: state.connections.keys().hash(&key, ctx.network.vni) }
}

/// `flow` on a hit, link address, TTL and MTU, and `rewrite`.
#[inline(never)]
fn stage_forward(
    ctx: &Context<'_>,
    state: &mut State,
    index: usize,
    packet: &mut Packet,
    arena: &mut [Segment],
) -> Verdict {
    let State { cache, connections, nat, free, lookups } = state;
    let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
    datapath::forward(ctx, &mut flows, &lookups[index], packet, arena, &mut Unwatched)
}

#[inline(never)]
fn stage_tx(tx: &mut ToGuest<'_>, packet: &Packet, arena: &[Segment]) -> u32 {
    tx.transmit(packet, arena).unwrap_or(0)
}

/// What the worker knows of flows.
struct State {
    cache: FlowCache,
    connections: Connections,
    nat: Nat,
    free: FreeRecords,
    lookups: Box<[Lookup]>,
}

/// No packet asks it.
fn nat_options(now: u32) -> hostweave_nat::Options {
    hostweave_nat::Options { capacity: 1024, boot: 1, now, timers: hostweave_nat::Timers::default(), seed: None }
}

/// One burst through all stages. Returns how many frames arrived.
#[inline(never)]
fn switch_burst(
    ctx: &Context<'_>,
    state: &mut State,
    burst: &mut Burst,
    rx: &mut FromGuest<'_>,
    tx: &mut ToGuest<'_>,
) -> u32 {
    let count = stage_rx(rx, burst);
    let mut arrived = 0;
    for index in 0..count {
        let (packet, arena) = burst.packet_mut(index);
        if stage_parse(packet, arena) != Verdict::Continue || stage_guard(ctx, packet) != Verdict::Continue {
            return 0;
        }
        state.lookups[index] = stage_key(ctx, state, packet);
    }
    tx.prefetch(count);
    for index in 0..count {
        let (packet, arena) = burst.packet_mut(index);
        if stage_forward(ctx, state, index, packet, arena) == Verdict::Forward {
            arrived += stage_tx(tx, packet, arena);
        }
    }
    black_box(tx.publish());
    burst.clear();
    black_box(rx.complete());
    arrived
}

/// A plane of two ports, whose policies are compiled and isolate nobody, so that flows differ in nothing but their tuple.
fn plane() -> Plane {
    let tables = tables();
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
    let world = World { endpoints: tables.ports.iter().flatten().map(endpoint).collect(), ..World::default() };
    Plane { tables, policy: Compiler::new().update(&world).table, ..Plane::default() }
}

/// Has a Service whose only backend is `to`; returns its address.
fn serve(plane: &mut Plane, to: IpAddr) -> IpAddr {
    let vip: IpAddr = if to.is_ipv6() { [0x2001, 0xdb8, 0x96, 0, 0, 0, 0, 1].into() } else { [10, 96, 0, 1].into() };
    let vni = plane.tables.network(NETWORK).map_or(0, |network| network.vni);
    let mapped = |address| AddressKey::new(NETWORK, address).address;
    let backend = Backend { name: "b".into(), address: mapped(to), l4: Some(3), weight: 1, active: true };
    let spec = FrontendSpec {
        service: "default/b".into(),
        port_name: "".into(),
        scope: vni,
        address: mapped(vip),
        proto: 17,
        l4: 2..=2,
        vni,
        sources: [].into(),
        affinity_s: None,
        backends: [backend].into(),
        refusal: Refusal::Reject,
    };
    plane.services = Arc::new(Services::compile(&[spec], None));
    vip
}

/// From one guest to the other, by a Service or not.
fn path(plane: &mut Plane, six: bool, service: bool) -> Path {
    let (from, to): (IpAddr, IpAddr) =
        if six { (v6(GUEST_A).into(), v6(GUEST_B).into()) } else { (v4(GUEST_A).into(), v4(GUEST_B).into()) };
    let to = if service { serve(plane, to) } else { to };
    Path::new(mac(GUEST_A).0, MacAddr::ROUTER.0, from, to)
}

/// The protocol thread may still be at the last messages of the start.
fn claim<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(claimed) = attempt() {
            return claimed;
        }
        std::hint::spin_loop();
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (len, bursts) = (number(0, 64)?, number(1, 20_000)?);
    let folder = tempfile::tempdir()?;
    let (mut attachments, mut nics) = (vec![], vec![]);
    for index in 0..2 {
        let path = folder.path().join(format!("{index}.sock"));
        let config = AttachmentConfig {
            mode: Mode::Listen,
            path: path.clone(),
            queue_pairs: 1,
            group: None,
            allowed_uids: vec![],
            mtu: 1500,
            config_space: None,
            name: format!("bench-{index}"),
        };
        attachments.push(Attachment::start(config, Arc::new(Deaf))?);
        let features = features::VERSION_1 | features::MRG_RXBUF | features::INDIRECT_DESC;
        nics.push(Nic::connect(NicConfig { features, ring_size: 1024, ..NicConfig::new(path) })?);
    }
    let (from, to) = (&attachments[0].queues()[0].from_guest, &attachments[1].queues()[0].to_guest);
    while !(from.is_running() && to.is_running()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let is = |at: usize, word: &str| arguments.get(at).is_some_and(|argument| argument == word);
    let mut plane = plane();
    let path = path(&mut plane, is(2, "v6"), is(3, "service"));
    let headers = path.udp(1, 2, &[]).len();
    let frame = path.udp(1, 2, &vec![7; len.saturating_sub(headers)]);
    let (Some(port), now) = (plane.tables.port(GUEST_A), 100) else { return Err("no port".into()) };
    let network = plane.tables.network(port.network).ok_or("no network")?;
    let mut ctx = Context::new(&plane, port, network, 0, now);
    let options = Options { capacity: 1024, boot: 1, now: now - 10 };
    let mut state = State {
        cache: FlowCache::new(2048)?,
        connections: Connections::open(&folder.path().join("connections"), &options)?,
        nat: Nat::open(&folder.path().join("nat"), &nat_options(now - 10))?,
        free: FreeRecords::new(),
        lookups: vec![Lookup::default(); BURST].into(),
    };
    state.connections.make_available(1024);
    state.connections.make_translatable(1024);
    state.connections.share([(GUEST_A.0, 1024)].into_iter());
    let (mut burst, mut received) = (Burst::new(), vec![]);
    let mut samples = Vec::with_capacity(bursts);
    for round in 0..bursts {
        // The connection begins with the first burst; from the second on it has gone on for long enough to be assured.
        ctx.now = if round == 0 { now } else { now + 3 };
        for _ in 0..BURST {
            nics[0].push_frame(0, &VnetHeader::default(), &frame)?;
        }
        nics[0].flush(0)?;
        let (mut rx, mut tx) = (claim(|| from.try_claim()), claim(|| to.try_claim()));
        let start = Instant::now();
        let arrived = switch_burst(&ctx, &mut state, &mut burst, &mut rx, &mut tx);
        samples.push(start.elapsed().as_nanos() as f64 / BURST as f64);
        drop((rx, tx));
        assert_eq!(arrived as usize, BURST);
        for _ in 0..BURST {
            nics[1].recv_frame(&mut received)?.ok_or("lost")?;
        }
        nics[0].drain_tx(Duration::from_secs(1))?;
    }
    samples.sort_by(f64::total_cmp);
    println!("{} octets: best {:.1}, median {:.1} ns a frame", frame.len(), samples[0], samples[bursts / 2]);
    Ok(())
}
