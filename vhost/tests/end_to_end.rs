//! Guests on real sockets, with our attachments between them and a patch cable instead of a switch.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod patch;

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use hostweave_guest::frontend::Frontend;
use hostweave_guest::ring::Descriptor;
use hostweave_guest::wire::{Wire, words32, words64};
use hostweave_guest::{Guest, GuestBuilder, MemoryConfig, Mode, Nic, NicConfig, Profile, Split, VnetHeader, features};
use hostweave_vhost::State;
use patch::{Patch, SECONDS};
use vhost::vhost_user::message::FrontendReq;

fn guest(patch: &Patch, index: usize) -> GuestBuilder {
    let mac = [2, 0, 0, 0, 0, index as u8 + 1];
    let address = Ipv4Addr::new(192, 0, 2, index as u8 + 1);
    Guest::builder().socket(patch.socket(index)).mac(mac).address(address, 24, None).timeout(SECONDS)
}

/// Two guests ping each other and move TCP and UDP data; nobody's ring is out of order.
fn converse(patch: &Patch, make: [&dyn Fn(GuestBuilder) -> GuestBuilder; 2]) {
    let mut a = make[0](guest(patch, 0)).connect().unwrap();
    let mut b = make[1](guest(patch, 1)).connect().unwrap();
    b.tcp_echo_server(7).unwrap();
    b.udp_echo_server(7).unwrap();
    let address = b.ipv4().unwrap();
    let b = b.spawn("guest-b", false).unwrap();
    a.run_until("first ping", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok()).unwrap();
    assert_eq!(a.udp_exchange(address, 7, b"hello", SECONDS).unwrap(), b"hello");
    a.tcp_transfer(address, 7, 2_000_000, 3 * SECONDS).unwrap();
    let mut b = b.stop().unwrap();
    for guest in [&mut a, &mut b] {
        guest.nic().drain_tx(SECONDS).unwrap();
        assert_eq!(guest.nic().violations(), []);
    }
}

fn same(patch: &Patch, make: &dyn Fn(GuestBuilder) -> GuestBuilder) {
    converse(patch, [make, make]);
}

#[test]
fn linux_under_qemu() {
    let patch = Patch::new(2, 1);
    same(&patch, &|guest| guest);
    patch.until("the end", || patch.attachments[0].status().state == State::WaitingForFrontend);
    assert_eq!(patch.attachments[0].status().fault, None);
}

#[test]
fn other_frontends_and_in_order_rings() {
    for profile in [Profile::Dpdk, Profile::CloudHypervisor] {
        let patch = Patch::new(2, 1);
        same(&patch, &|guest| guest.nic(|nic| nic.profile = profile).with(features::IN_ORDER));
    }
}

#[test]
fn several_queue_pairs() {
    let patch = Patch::new(2, 4);
    same(&patch, &|guest| guest.pairs(4));
}

#[test]
fn a_sender_with_offloads_and_a_receiver_without() {
    let bare = |guest: GuestBuilder| {
        guest.without(features::ALL_OFFLOADS | features::MRG_RXBUF | features::EVENT_IDX).ring_size(64)
    };
    let patch = Patch::new(2, 1);
    converse(&patch, [&|guest| guest, &bare]);
    converse(&patch, [&bare, &|guest| guest]);
    converse(&patch, [&bare, &bare]);
}

#[test]
fn pieces_indirect_tables_and_regions_that_a_buffer_crosses() {
    let memory = MemoryConfig { regions: vec![64 << 10, 4096, 40 << 10, 0], ..MemoryConfig::default() };
    let patch = Patch::new(2, 1);
    same(&patch, &|guest| {
        let guest = guest.memory(memory.clone()).without(features::ALL_GSO);
        guest.splits(Split::every(700).indirect(), Split::every(900))
    });
    same(&patch, &|guest| guest.splits(Split::header_apart(), Split::header_apart()));
}

#[test]
fn we_connect_and_the_vmm_listens() {
    let patch = Patch::connecting(2);
    same(&patch, &|guest| guest.mode(Mode::Server));
}

#[test]
fn a_stopped_ring_is_not_touched_and_goes_on() {
    let patch = Patch::new(2, 1);
    let mut a = guest(&patch, 0).connect().unwrap();
    let b = guest(&patch, 1).connect().unwrap();
    let address = b.ipv4().unwrap();
    let _b = b.spawn("guest-b", false).unwrap();
    a.run_until("first ping", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok()).unwrap();
    let bases = a.nic().stop().unwrap();
    assert_eq!(patch.attachments[0].status().state, State::Connected);
    let before = a.nic().pairs[0].rx.ring.used_snapshot();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(before, a.nic().pairs[0].rx.ring.used_snapshot());
    a.nic().resume(&bases).unwrap();
    a.run_until("ping after the stop", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok()).unwrap();
    assert_eq!(a.nic().violations(), []);
}

#[test]
fn either_side_may_die_and_return() {
    let mut patch = Patch::new(2, 1);
    let mut a = guest(&patch, 0).connect().unwrap();
    let mut b = guest(&patch, 1).connect().unwrap();
    let address = b.ipv4().unwrap();
    b.udp_echo_server(7).unwrap();
    let b = b.spawn("guest-b", true).unwrap();
    let ping = |a: &mut Guest| a.run_until("ping", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok());
    ping(&mut a).unwrap();
    for _ in 0..3 {
        patch.restart();
        a.nic().reconnect().unwrap();
        ping(&mut a).unwrap();
    }
    drop(a);
    let mut a = guest(&patch, 0).connect().unwrap();
    ping(&mut a).unwrap();
    assert_eq!(a.nic().violations(), []);
    assert_eq!(b.stop().unwrap().nic().violations(), []);
}

#[test]
fn memory_comes_and_goes_under_traffic() {
    for slots in [true, false] {
        let patch = Patch::new(2, 1);
        let make = |guest: GuestBuilder| {
            guest.nic(|nic| {
                if !slots {
                    nic.protocol &= !features::protocol::CONFIGURE_MEM_SLOTS;
                }
            })
        };
        let mut a = make(guest(&patch, 0)).connect().unwrap();
        let mut b = make(guest(&patch, 1)).connect().unwrap();
        b.tcp_sink_server(9).unwrap();
        let address = b.ipv4().unwrap();
        let b = b.spawn("guest-b", false).unwrap();
        a.run_until("first ping", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok()).unwrap();
        let a = a.spawn("guest-a", false).unwrap();
        let transfer = a.start(move |a| a.tcp_send(address, 9, 3_000_000, 3 * SECONDS).map(drop)).unwrap();
        for _ in 0..20 {
            let before = patch.attachments[1].status().memory;
            let gpa = b.call(|b| b.nic().add_memory(1 << 20).unwrap()).unwrap();
            b.call(|b| b.nic().frontend.barrier().unwrap()).unwrap();
            assert_eq!(patch.attachments[1].status().memory, before + (1 << 20));
            b.call(move |b| b.nic().remove_memory(gpa).unwrap()).unwrap();
            b.call(|b| b.nic().frontend.barrier().unwrap()).unwrap();
            assert_eq!(patch.attachments[1].status().memory, before);
        }
        transfer.recv().unwrap().unwrap();
        for guest in [a, b] {
            assert_eq!(guest.stop().unwrap().nic().violations(), []);
        }
    }
}

#[test]
fn a_migration_sees_every_write() {
    let patch = Patch::new(2, 1);
    let config = |index| NicConfig::new(patch.socket(index));
    let mut a = Nic::connect(config(0)).unwrap();
    let mut b = Nic::connect(config(1)).unwrap();
    b.start_logging().unwrap();
    // Turning it on marks the used rings as a whole.
    b.take_dirty_pages().unwrap();
    let snapshot = |nic: &Nic| {
        let region = &nic.memory.regions()[0];
        let mut octets = vec![0; region.len()];
        nic.memory.read(region.gpa(), &mut octets).unwrap();
        (region.gpa(), octets)
    };
    let mut frame = vec![];
    for len in [60, 1514, 9000, 60_000] {
        let (gpa, before) = snapshot(&b);
        a.send_frame(&VnetHeader::default(), &vec![len as u8 | 1; len]).unwrap();
        let deadline = Instant::now() + SECONDS;
        while b.pairs[0].rx.ring.used_count() == 0 {
            assert!(Instant::now() < deadline);
        }
        patch.settle();
        let (_, after) = snapshot(&b);
        let dirty = b.take_dirty_pages().unwrap();
        let pages = before.chunks(4096).zip(after.chunks(4096)).enumerate();
        let changed: Vec<u64> =
            pages.filter(|(_, (old, new))| old != new).map(|(page, _)| gpa + 4096 * page as u64).collect();
        assert!(changed.len() > len / 4096, "{changed:x?}");
        let missing: Vec<_> = changed.iter().filter(|page| !dirty.contains(page)).collect();
        assert!(missing.is_empty(), "frame of {len}: {missing:x?} changed but are not in the log");
        b.recv_within(SECONDS, &mut frame).unwrap();
        assert_eq!(frame, vec![len as u8 | 1; len]);
        b.take_dirty_pages().unwrap();
    }
    b.stop_logging().unwrap();
    a.send_frame(&VnetHeader::default(), &[1; 60]).unwrap();
    b.recv_within(SECONDS, &mut frame).unwrap();
    patch.settle();
    assert_eq!(b.take_dirty_pages().unwrap(), [0u64; 0]);
}

/// A hostile guest on port 0 ends with `fault`; then a good one comes, and ports 1 and 2 never noticed.
fn hostile(name: &str, expected: &str, act: impl FnOnce(&mut Nic)) {
    let patch = Patch::new(3, 1);
    let mut good = Nic::connect(NicConfig::new(patch.socket(1))).unwrap();
    let mut nic = Nic::connect(NicConfig::new(patch.socket(0))).unwrap();
    act(&mut nic);
    assert!(nic.frontend.wire().wait_hangup(SECONDS), "{name}: the connection ends");
    let fault = patch.fault(0);
    assert!(fault.contains(expected), "{name}: {fault}");
    assert_eq!(patch.attachments[0].status().state, State::Faulted);
    drop(nic);
    assert!(good.is_connected());
    good.send_frame(&VnetHeader::default(), &[0; 60]).unwrap();
    good.drain_tx(SECONDS).unwrap();
    let mut again = Nic::connect(NicConfig::new(patch.socket(0))).unwrap();
    again.send_frame(&VnetHeader::default(), &[0; 60]).unwrap();
    again.drain_tx(SECONDS).unwrap();
    patch.until("the fault is forgotten once queues run again", || patch.attachments[0].status().fault.is_none());
}

#[test]
fn hostile_rings_stop_only_their_port() {
    hostile("available index", "available index", |nic| {
        nic.pairs[0].tx.ring.jump_avail(300);
        nic.pairs[0].tx.ring.publish();
    });
    hostile("head", "made descriptor 60000 available", |nic| {
        nic.pairs[0].tx.ring.offer_raw(60_000);
        nic.pairs[0].tx.ring.publish();
    });
    hostile("loop", "does not end", |nic| {
        nic.pairs[0].tx.ring.write_descriptor(0, Descriptor { addr: 0x10_0000, len: 1, flags: 1, next: 0 });
        nic.pairs[0].tx.ring.offer_raw(0);
        nic.pairs[0].tx.ring.publish();
    });
    hostile("address", "outside the memory", |nic| {
        nic.pairs[0].tx.ring.write_descriptor(0, Descriptor { addr: 0x10, len: 100, flags: 0, next: 0 });
        nic.pairs[0].tx.ring.offer_raw(0);
        nic.pairs[0].tx.ring.publish();
    });
}

#[test]
fn hostile_messages_end_the_connection_with_a_reason() {
    let frontend = |nic: &Nic, request, body: &[u8]| drop(nic.frontend.wire().send(u32::from(request), 1, body, &[]));
    hostile("queue index", "the port has 1 queue pairs", |nic| {
        frontend(nic, FrontendReq::SET_VRING_NUM, &words32(&[2, 256]));
    });
    hostile("ring size", "power of two", |nic| frontend(nic, FrontendReq::SET_VRING_NUM, &words32(&[0, 100])));
    hostile("resize", "while it is running", |nic| frontend(nic, FrontendReq::SET_VRING_NUM, &words32(&[0, 512])));
    hostile("base", "while it is running", |nic| frontend(nic, FrontendReq::SET_VRING_BASE, &words32(&[0, 5])));
    hostile("features", "never offered", |nic| frontend(nic, FrontendReq::SET_FEATURES, &words64(&[1 << 34])));
    hostile("features of a running ring", "while rings are running", |nic| {
        frontend(nic, FrontendReq::SET_FEATURES, &words64(&[1 << 32]));
    });
    hostile("ring addresses", "not inside one shared memory region", |nic| {
        let mut body = words32(&[0, 0]);
        body.extend(words64(&[0x10, 0x10, 0x10, 0]));
        frontend(nic, FrontendReq::SET_VRING_ADDR, &body);
    });
    hostile("unknown region", "never shared", |nic| {
        frontend(nic, FrontendReq::REM_MEM_REG, &words64(&[0, 1 << 40, 4096, 0, 0]));
    });
    hostile("message", "malformed or not allowed", |nic| frontend(nic, FrontendReq::NET_SET_MTU, &words64(&[1500])));
    hostile("garbage", "malformed or not allowed", |nic| {
        nic.frontend.wire().send_bytes(&[0xff; 64], &[]).unwrap();
    });
    hostile("stray descriptor", "no eventfd", |nic| {
        let file = tempfile::tempfile().unwrap();
        let request = u32::from(FrontendReq::SET_VRING_CALL);
        nic.frontend.wire().send(request, 1, &words64(&[0]), &[file.as_raw_fd()]).unwrap();
    });
    hostile("memory that is no file", "no memory file", |nic| {
        let null = std::fs::File::open("/dev/zero").unwrap();
        let body = words64(&[0, 1 << 40, 4096, 1 << 40, 0]);
        nic.frontend.wire().send(u32::from(FrontendReq::ADD_MEM_REG), 1, &body, &[null.as_raw_fd()]).unwrap();
    });
    hostile("memory that shrinks", "shrank", |nic| {
        nic.memory.regions()[0].file().set_len(0).unwrap();
    });
}

#[test]
fn no_descriptor_or_mapping_is_left_behind() {
    let patch = Patch::new(2, 2);
    let count = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        (fds, maps.lines().filter(|line| line.contains("memfd")).count())
    };
    let visit = || {
        let mut nic = Nic::connect(NicConfig { pairs: 2, ..NicConfig::new(patch.socket(0)) }).unwrap();
        nic.send_frame(&VnetHeader::default(), &[0; 60]).unwrap();
        nic.drain_tx(SECONDS).unwrap();
        drop(nic);
        patch.until("the end of the connection", || patch.attachments[0].status().state == State::WaitingForFrontend);
    };
    visit();
    // Other tests of this process come and go meanwhile.
    let mut best = (usize::MAX, usize::MAX);
    for _ in 0..20 {
        let before = count();
        visit();
        visit();
        let after = count();
        best = best.min((after.0.saturating_sub(before.0), after.1.saturating_sub(before.1)));
    }
    assert_eq!(best, (0, 0));
}

#[test]
fn a_frontend_that_stops_reading_blocks_only_its_own_thread() {
    let patch = Patch::new(2, 1);
    let stream = std::os::unix::net::UnixStream::connect(patch.socket(0)).unwrap();
    stream.set_nonblocking(true).unwrap();
    let message = hostweave_guest::wire::message(FrontendReq::GET_FEATURES.into(), 1, &[]);
    // Asks until nothing goes out any more: the answers fill the other direction.
    let mut refused = 0;
    while refused < 50 {
        match std::io::Write::write(&mut &stream, &message) {
            Ok(_) => refused = 0,
            Err(_) => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    let start = Instant::now();
    patch.attachments[0].shutdown();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(!patch.socket(0).exists(), "its socket is gone");
}

#[test]
fn the_number_of_queues_satisfies_both_ways_of_counting() {
    let patch = Patch::new(1, 2);
    for profile in [Profile::Qemu, Profile::CloudHypervisor] {
        let config = NicConfig { profile, pairs: 2, ..NicConfig::new(patch.socket(0)) };
        let nic = Nic::connect(config).unwrap();
        assert_eq!(nic.frontend.queue_num(), 4);
        patch.until("both pairs run", || patch.attachments[0].status().running_pairs == 2);
    }
}

#[test]
fn only_allowed_users_are_served() {
    let patch = Patch::with(1, |config| config.allowed_uids = vec![u32::MAX - 1]);
    let stream = std::os::unix::net::UnixStream::connect(patch.socket(0)).unwrap();
    let wire = Wire::new(stream, SECONDS).unwrap();
    assert!(wire.wait_hangup(SECONDS));
    patch.until("a reason", || {
        patch.attachments[0].status().waiting.is_some_and(|reason| reason.contains("allowed users"))
    });
    assert!(Frontend::negotiate(wire, Profile::Qemu, features::LINUX, 0, 1).is_err());
}

#[test]
fn an_inactive_attachment_is_left_alone() {
    let patch = Patch::new(2, 1);
    let mut nic = Nic::connect(NicConfig::new(patch.socket(0))).unwrap();
    patch.until("it runs", || patch.attachments[0].queues()[0].from_guest.is_running());
    patch.attachments[0].activate(false);
    assert!(patch.attachments[0].queues()[0].from_guest.try_claim().is_none());
    assert!(!patch.attachments[0].queues()[0].from_guest.is_running());
    nic.send_frame(&VnetHeader::default(), &[0; 60]).unwrap();
    nic.drain_tx(Duration::from_millis(50)).unwrap_err();
    patch.attachments[0].activate(true);
    nic.drain_tx(SECONDS).unwrap();
}

/// Hears of a queue that started, and does not come back from it until it is let go.
struct Stuck(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

impl hostweave_vhost::Observer for Stuck {
    fn connected(&self, _: hostweave_vhost::Peer) {}
    fn queue_started(&self, _: usize) {
        let _ = self.0.lock().unwrap().recv();
    }
    fn queue_stopped(&self, _: usize) {}
    fn started(&self, _: u64, _: usize) {}
    fn stopped(&self) {}
    fn disconnected(&self) {}
    fn fault(&self, _: &str) {}
}

fn attachment(path: &std::path::Path, observer: Stuck) -> std::sync::Arc<hostweave_vhost::Attachment> {
    let config = hostweave_vhost::AttachmentConfig {
        mode: hostweave_vhost::Mode::Listen,
        path: path.to_owned(),
        queue_pairs: 1,
        group: None,
        allowed_uids: vec![],
        mtu: 1500,
        config_space: None,
        name: "stuck".to_owned(),
    };
    hostweave_vhost::Attachment::start(config, std::sync::Arc::new(observer)).unwrap()
}

#[test]
fn a_thread_that_a_vmm_keeps_busy_is_left_behind_without_its_rings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let (release, wait) = std::sync::mpsc::channel();
    let attachment = attachment(&path, Stuck(wait.into()));
    let nic = std::thread::spawn({
        let config = NicConfig::new(&path);
        move || drop(Nic::connect(config))
    });
    let start = Instant::now();
    while !attachment.queues()[0].from_guest.is_running() || !attachment.queues()[0].to_guest.is_running() {
        assert!(start.elapsed() < SECONDS);
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    attachment.shutdown();
    assert!(start.elapsed() < 2 * SECONDS, "it does not wait for ever");
    assert!(!attachment.queues()[0].from_guest.is_running());
    assert!(attachment.queues()[0].to_guest.try_claim().is_none());
    drop(release);
    nic.join().unwrap();
}

#[test]
fn an_end_that_meets_a_new_connection_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..200 {
        let path = folder.path().join(format!("{round}.sock"));
        let (release, wait) = std::sync::mpsc::channel();
        let attachment = attachment(&path, Stuck(wait.into()));
        // It says nothing, so that only the end of the attachment ends it.
        let client = std::thread::spawn({
            let path = path.clone();
            move || std::os::unix::net::UnixStream::connect(path)
        });
        std::thread::sleep(Duration::from_micros(round % 40 * 5));
        let start = Instant::now();
        attachment.shutdown();
        assert!(start.elapsed() < Duration::from_secs(4), "round {round}");
        drop((client.join().unwrap(), release));
    }
}
