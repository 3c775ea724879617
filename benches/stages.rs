//! Instructions of each stage of the packet path, guest to guest, one flow whose connection is known: each stage is a
//! function that is not inlined, so that callgrind tells them apart (ARCHITECTURE.md, "Cost of a packet").
//!
//! `cargo bench --bench stages -- FRAME_OCTETS BURSTS [v6] [tcp] [CASE] [OTHERS]`: the case is one of `crossing::Case`, that of packets
//! which stay in their network if none is given; so many pools, owned addresses and attached ports exist besides. The program that it
//! builds, under
//! `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='stages::switch_burst'` for the instructions.
//! Without callgrind it prints ns a frame, everything hot and in one thread.

mod crossing;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave::connect::{Flows, ahead};
use hostweave::datapath::{self, Context, Lookup};
use hostweave::observe::recorder::Unwatched;
use hostweave::services;
use hostweave_guest::{Nic, NicConfig, VnetHeader, features};
use hostweave_nat::Nat;
use hostweave_switch::connection::{Connections, FreeRecords, Options};
use hostweave_switch::flow::{FlowCache, FlowKey};
use hostweave_switch::packet::{Burst, Packet};
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::PortId;
use hostweave_switch::{guard, parse};
use hostweave_vhost::{Attachment, AttachmentConfig, FromGuest, Mode, Observer, Peer, ToGuest};

use crossing::Case;

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
fn stage_rx(rx: &mut FromGuest<'_>, port: PortId, burst: &mut Burst) -> usize {
    rx.receive(port, burst, &mut |_| ()).unwrap_or(0)
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
    Lookup::new(state.connections.keys(), key, ctx.network.vni)
}

/// Where the burst's flows are expected.
#[inline(never)]
fn stage_ahead(ctx: &Context<'_>, state: &mut State, count: usize) {
    let State { cache, connections, nat, lookups, .. } = state;
    ahead::expect(ctx, cache, connections, nat, &mut lookups[..count], u64::MAX);
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

/// One burst through all stages. Returns how many frames arrived.
#[inline(never)]
fn switch_burst(
    ctx: &Context<'_>,
    state: &mut State,
    burst: &mut Burst,
    rx: &mut FromGuest<'_>,
    tx: &mut ToGuest<'_>,
) -> u32 {
    let count = stage_rx(rx, ctx.port.id, burst);
    let mut arrived = 0;
    for index in 0..count {
        let (packet, arena) = burst.packet_mut(index);
        if stage_parse(packet, arena) != Verdict::Continue || stage_guard(ctx, packet) != Verdict::Continue {
            return 0;
        }
        state.lookups[index] = stage_key(ctx, state, packet);
    }
    stage_ahead(ctx, state, count);
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

/// The protocol thread may still be at the last messages of the start.
fn claim<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(claimed) = attempt() {
            return claimed;
        }
        std::hint::spin_loop();
    }
}

/// Two guests' connections to the switch.
type Rings = (Vec<Arc<Attachment>>, Vec<Nic>);

fn rings(folder: &std::path::Path) -> Result<Rings, Failure> {
    let (mut attachments, mut nics) = (vec![], vec![]);
    for index in 0..2 {
        let path = folder.join(format!("{index}.sock"));
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
    while !(attachments[0].queues()[0].from_guest.is_running() && attachments[1].queues()[0].to_guest.is_running()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((attachments, nics))
}

fn state(folder: &std::path::Path, now: u32) -> Result<State, Failure> {
    let options = Options { capacity: 1024, boot: 1, now };
    let timers = hostweave_nat::Timers::default();
    let nat = hostweave_nat::Options { capacity: 1024, boot: 1, now, timers, seed: Some(1) };
    let state = State {
        cache: FlowCache::new(2048)?,
        connections: Connections::open(&folder.join("connections"), &options)?,
        nat: Nat::open(&folder.join("nat"), &nat)?,
        free: FreeRecords::new(),
        lookups: vec![Lookup::default(); BURST].into(),
    };
    state.connections.make_available(1024);
    state.connections.make_translatable(1024);
    state.connections.share((0..5).map(|port| (port, 1024)));
    state.nat.make_available(1024);
    Ok(state)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (len, bursts) = (number(0, 64)?, number(1, 20_000)?);
    let (words, now) = (arguments.get(2..).unwrap_or_default(), 100);
    let has = |word: &str| words.iter().any(|argument| argument == word);
    let case = words.iter().find_map(|word| Case::named(word)).unwrap_or(Case::Stay);
    let others = words.iter().find_map(|word| word.parse().ok()).unwrap_or(0);
    let folder = tempfile::tempdir()?;
    let mut state = state(folder.path(), now - 10)?;
    let plane = crossing::plane(&state, case, others)?;
    let frame = crossing::begin(&mut state, &plane, case, (has("v6"), has("tcp")), len, now)?;
    let port = plane.tables.port(case.sender()).ok_or("no port")?;
    let network = plane.tables.network(port.network).ok_or("no network")?;
    // The connection has gone on for long enough to be assured.
    let ctx = Context::new(&plane, port, network, 0, now + 3);
    let (attachments, mut nics) = rings(folder.path())?;
    let (from, to) = (&attachments[0].queues()[0].from_guest, &attachments[1].queues()[0].to_guest);
    let (mut burst, mut received) = (Burst::new(), vec![]);
    let mut samples = Vec::with_capacity(bursts);
    for _ in 0..bursts {
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
