//! The fuzz targets: plain functions of octets that panic when something does not hold that must. `cargo test` runs them
//! over the corpus and some seconds of mutation, `cargo fuzz` (see `cargo-fuzz/`) runs the same functions.

use std::cell::RefCell;
use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hostweave::connect::Flows;
use hostweave::datapath::{self, Context, Lookup};
use hostweave::observe::recorder::Unwatched;
use hostweave_nat::service::{Backend, FrontendSpec, Refusal, Services};
use hostweave_nat::{Nat, Pools, Timers};
use hostweave_policy::compile::Compiler;
use hostweave_policy::model::{Endpoint, Labels, World};
use hostweave_policy::table::Table;
use hostweave_switch::MacAddr;
use hostweave_switch::connection::{Connections, FreeRecords, Options};
use hostweave_switch::flow::{FlowCache, FlowKey, round, stamp};
use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta};
use hostweave_switch::parse;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{AddressKey, Port, PortKind, Tables};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Takes octets, panics if the program is wrong.
pub type Target = fn(&[u8]);

/// Every target by name: that of its folder in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("rings", rings),
    ("messages", messages),
    ("packets", packets),
    ("offload", offload),
    ("local", local),
    ("yaml", yaml),
    ("rpc", rpc),
];

/// Virtqueues whose driver changes memory while the device is inside.
pub fn rings(data: &[u8]) {
    hostweave_vhost::fuzz::fuzz_rings(data);
}

/// Parse, guard, route, rewrite, ICMP errors.
pub fn packets(data: &[u8]) {
    hostweave_switch::fuzz::fuzz_parse(data);
}

/// Partial checksums and segmentation.
pub fn offload(data: &[u8]) {
    hostweave_vhost::fuzz::fuzz_offload(data);
}

/// Files of objects.
pub fn yaml(data: &[u8]) {
    hostweave::config::fuzz::fuzz_yaml(data);
}

/// Requests on the control socket.
pub fn rpc(data: &[u8]) {
    hostweave::control::rpc::fuzz_rpc(data);
}

/// What the packet path works with, for one thread.
struct Path {
    burst: Burst,
    tables: Tables,
    policy: Arc<Table>,
    cache: FlowCache,
    connections: Connections,
    nat: Nat,
    pools: Pools,
    services: Services,
    free: FreeRecords,
    now: u32,
}

impl Path {
    fn new() -> Self {
        let tables = hostweave_switch::fuzz::tables();
        let endpoints = tables.ports.iter().flatten().filter(|port| port.kind != PortKind::Internal);
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
        let world = World { endpoints: endpoints.map(endpoint).collect(), ..World::default() };
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        // The table keeps its own descriptor.
        let options = Options { capacity: 1024, boot: 1, now: 0 };
        let connections = Connections::open(file.path(), &options).expect("a table");
        connections.make_available(1024);
        connections.make_translatable(1024);
        connections.share((0..4).map(|port| (port, 256)));
        let options =
            hostweave_nat::Options { capacity: 16, boot: 1, now: 0, timers: Timers::default(), seed: Some(1) };
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let nat = Nat::open(file.path(), &options).expect("a table");
        Self {
            burst: Burst::new(),
            tables,
            policy: Compiler::new().update(&world).table,
            cache: FlowCache::new(1024).expect("a cache"),
            connections,
            nat,
            pools: Pools::default(),
            services: services(),
            free: FreeRecords::new(),
            now: 1,
        }
    }
}

/// Addresses that no guest has, on any L4 port of TCP and UDP, with both guests behind them.
fn services() -> Services {
    use hostweave_switch::fuzz::{GUEST_A, GUEST_B, NETWORK, tables, v4, v6};
    let mapped = |address: IpAddr| AddressKey::new(NETWORK, address).address;
    let vni = tables().network(NETWORK).expect("a network of the tables").vni;
    let backend = |address: IpAddr| Backend {
        name: address.to_string().into(),
        address: mapped(address),
        l4: Some(80),
        weight: 1,
        active: true,
        ejected: false,
    };
    let families: [(IpAddr, [IpAddr; 2]); 2] = [
        ([192, 0, 2, 99].into(), [GUEST_A, GUEST_B].map(|guest| v4(guest).into())),
        ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99].into(), [GUEST_A, GUEST_B].map(|guest| v6(guest).into())),
    ];
    let spec = |address: IpAddr, proto, backends: [IpAddr; 2]| FrontendSpec {
        service: "default/web".into(),
        port_name: "".into(),
        scope: vni,
        address: mapped(address),
        proto,
        l4: 1..=u16::MAX,
        vni,
        sources: [].into(),
        affinity_s: None,
        backends: backends.map(backend).into(),
        refusal: Refusal::Reject,
        begun: Default::default(),
    };
    let specs = families.into_iter().flat_map(|(at, backends)| [6, 17, 132].map(|proto| spec(at, proto, backends)));
    Services::compile(&specs.collect::<Vec<_>>(), None)
}

/// The whole packet path: the services that answer on the worker (ARP, ND, DHCP, echo), and connections with policy.
pub fn local(data: &[u8]) {
    thread_local! {
        static STATE: RefCell<Path> = RefCell::new(Path::new());
    }
    let Some((id, offload, frame)) = hostweave_switch::fuzz::prepare(data) else { return };
    STATE.with_borrow_mut(|path| {
        let Path { burst, tables, policy, pools, services, nat, cache, connections, free, now } = path;
        let services = &*services;
        let tables = &*tables;
        let port = tables.port(id).expect("a port of the tables");
        let network = tables.network(port.network).expect("a network of the tables");
        let meta = Meta { in_port: id, offload, ..Meta::default() };
        // Now and then time passes, and connections end.
        *now += u32::from(data.first().is_some_and(|octet| octet % 16 == 0));
        let crossing_epoch = tables.crossing_epoch();
        let (epoch, queue) = (1, 0);
        let [stamp, crossing_stamp] = [epoch, crossing_epoch].map(|epoch| stamp(epoch, round(*now)));
        #[rustfmt::skip]
        let ctx = Context {
            tables, policy, port, network, pools, services, epoch, crossing_epoch, stamp, crossing_stamp, queue, now: *now,
        };
        for shard in 0..Connections::shards() {
            connections.expire(shard, &tables.timeouts, *now, 4);
        }
        let reply = burst.with_frame(meta, &frame, HEAD_FIRST, |packet, arena| {
            let mut note = None;
            let mut verdict = datapath::classify(&ctx, packet, arena, &mut note, &mut Unwatched);
            if verdict == Verdict::Continue
                && let Some(key) = FlowKey::of(packet, id.0 as u16)
            {
                let lookup = Lookup::new(connections.keys(), key, network.vni);
                let mut flows = Flows { cache, connections, nat, free, denied: None, opened: None };
                verdict = datapath::forward(&ctx, &mut flows, &lookup, packet, arena, &mut Unwatched);
                assert_ne!(verdict, Verdict::Drop(DropReason::PolicyDenied), "nothing is isolated");
            }
            assert_ne!(verdict, Verdict::Drop(DropReason::Internal));
            if verdict != Verdict::Reply {
                return None;
            }
            let mut reply = vec![0; packet.len()];
            packet.copy_frame(arena, &mut reply).expect("it is as long as the packet");
            Some((packet.meta.offload, reply))
        });
        let Some((offload, reply)) = reply else { return };
        let to = MacAddr(*reply.first_chunk().expect("a frame"));
        assert!(to == port.mac || to.is_multicast(), "an answer to {to}");
        assert_eq!(reply[6..12], MacAddr::ROUTER.0, "answers come from the router");
        let meta = Meta { offload, ..Meta::default() };
        let verdict = burst.with_frame(meta, &reply, HEAD_FIRST, |packet, arena| parse::parse(packet, arena));
        assert_eq!(verdict, Verdict::Continue, "an answer that is no frame: {reply:02x?}");
    });
}

/// Messages that one input may hold: as many as the socket buffers, answers included.
const MESSAGES_MAX: usize = 64;

/// A frontend that says anything, with any descriptors.
pub fn messages(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else { return };
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let files = Files::new();
    for _ in 0..MESSAGES_MAX {
        let Some((head, body)) = rest.split_first_chunk::<5>() else { break };
        let (body, tail) = body.split_at(usize::from(head[4]).min(body.len()));
        rest = tail;
        let message = if head[0] == 0xff { body.to_vec() } else { message(head, body) };
        let fds = files.chosen(head[2]);
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if message.is_empty()
            || sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(&message)], control, flags, None).is_err()
        {
            break;
        }
    }
    let _ = ours.shutdown(std::net::Shutdown::Write);
    hostweave_vhost::fuzz::serve_messages(theirs, usize::from(choice % 4) + 1, choice & 0x80 != 0);
}

/// Request, version and flags, and a body that is right where the input does not say otherwise: a ring's number, its
/// addresses, a memory region.
fn message(head: &[u8; 5], body: &[u8]) -> Vec<u8> {
    let [request, flags, _, shape, _] = *head;
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let octet = |at: usize| u64::from(body.get(at).copied().unwrap_or(0));
    let ring = octet(0) % 8;
    let mut octets = match shape % 8 {
        0 => body.to_vec(),
        // `struct vhost_vring_state`: a ring and a number.
        1 => words(&[ring | octet(1) << 32 | (octet(2) << 8) << 32]),
        // `struct vhost_vring_addr` of a ring in the first region.
        2 => words(&[ring, UVA + octet(1) * 16, UVA + 0x2000 + octet(2) * 4, UVA + 0x1000 + octet(3) * 2, octet(4)]),
        // One memory region, alone and as a table.
        3 => words(&[0, octet(1) % 4 * 0x1000, 0x8000, UVA, octet(2) % 4 * 0x1000]),
        4 => words(&[1, octet(1) % 4 * 0x1000, 0x8000, UVA, octet(2) % 4 * 0x1000]),
        // Features as a guest under Linux takes them, or some of them.
        5 => words(&[hostweave_vhost::features::OFFERED & !(octet(0) << (octet(1) % 48))]),
        6 => words(&[ring | (octet(1) & 1) << 8]),
        _ => words(&[0x8000, octet(0)]),
    };
    if shape & 0x80 != 0 {
        for (at, octet) in body.iter().enumerate().skip(5) {
            if let Some(target) = octets.get_mut(at) {
                *target ^= octet;
            }
        }
    }
    let version = 1 | u32::from(flags & 0x08) | if flags & 0x80 != 0 { u32::from(flags) } else { 0 };
    let header = [u32::from(request), version, octets.len() as u32];
    header.into_iter().flat_map(u32::to_ne_bytes).chain(octets).collect()
}

/// Where the first memory region is in the frontend.
const UVA: u64 = 0x7f00_0000_0000;

/// Descriptors that a frontend may send.
struct Files {
    memory: OwnedFd,
    event: EventFd,
    null: std::fs::File,
    socket: (UnixStream, UnixStream),
}

impl Files {
    fn new() -> Self {
        let memory = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a memory file");
        nix::unistd::ftruncate(&memory, 0x10_000).expect("it grows");
        // A transmit ring with 7 frames, and behind it a receive ring with 30 buffers.
        let mut octets = [0; 0x3000];
        for index in 0..128u64 {
            let descriptor = &mut octets[16 * index as usize..][..16];
            descriptor[..8].copy_from_slice(&(0x3000 + index * 64).to_le_bytes());
            (descriptor[8], descriptor[12]) = (if index < 64 { 76 } else { 200 }, if index < 64 { 0 } else { 2 });
        }
        octets[0x1002] = 7;
        octets[0x1082] = 30;
        for index in 0..32 {
            (octets[0x1004 + 2 * index], octets[0x1084 + 2 * index]) = (index as u8, index as u8);
        }
        nix::sys::uio::pwrite(&memory, &octets, 0).expect("it is writable");
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        Self { memory, event, null, socket: UnixStream::pair().expect("a pair") }
    }

    /// Up to two descriptors, mostly none or the right one.
    fn chosen(&self, choice: u8) -> Vec<RawFd> {
        let one = |choice: u8| match choice % 8 {
            1 | 2 => Some(self.event.as_raw_fd()),
            3 | 4 => Some(self.memory.as_raw_fd()),
            5 => Some(self.null.as_raw_fd()),
            6 => Some(self.socket.0.as_raw_fd()),
            _ => None,
        };
        one(choice).into_iter().chain(one(choice >> 4)).collect()
    }
}
