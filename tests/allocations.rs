//! Nothing is allocated on the packet path: every allocation of a worker thread is counted while
//! guests send what takes every way through the switch.
//!
//! A test binary of its own, because it has an allocator of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "guests/support.rs"]
#[allow(dead_code, reason = "shared with the scenarios")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hostweave_guest::frames;
use hostweave_guest::{Guest, VnetHeader, features};

use support::{Host, PATIENCE, Up, handshake, path_to, paths};

/// The system's allocator, which counts the allocations of workers while [`COUNTING`].
struct Counted;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    if !COUNTING.load(Ordering::Relaxed) {
        return;
    }
    let mut name = [0; 16];
    // SAFETY: PR_GET_NAME writes at most 16 octets, which is what `name` has.
    // JUSTIFICATION: the safe ways to a thread's name allocate, and this is inside the allocator.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"hw-worker") {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes on to the system's allocator with the same arguments.
// JUSTIFICATION: the trait of global allocators is unsafe.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on. JUSTIFICATION: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promises are passed on. JUSTIFICATION: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Frames of every kind that a guest may send to another, and back to itself from the switch.
fn traffic(from: &mut Guest, to: &mut Guest, frames: &[(VnetHeader, Vec<u8>)], rounds: usize) {
    let mut frame = Vec::new();
    for _ in 0..rounds {
        for (header, octets) in frames {
            from.nic().push_frame(0, header, octets).unwrap();
        }
        from.nic().flush(0).unwrap();
        from.nic().drain_tx(PATIENCE).unwrap();
        for guest in [&mut *from, &mut *to] {
            while guest.nic().recv_frame(&mut frame).unwrap().is_some() {}
        }
    }
}

#[test]
fn a_worker_allocates_nothing_for_a_packet() {
    let mut host = Host::new(2);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut guest_a = host.guest(&a).with(features::ALL_OFFLOADS).up();
    let mut guest_b = host.guest(&b).without(features::ALL_OFFLOADS).up();
    let plain = VnetHeader::default();
    let mut kinds = vec![(plain, frames::arp_request(a.mac.0, a.v4[0], "192.0.2.1".parse().unwrap()))];
    for path in paths(&a, &b) {
        kinds.push((plain, path.udp(1, 2, &[1; 20])));
        kinds.push((plain, path.udp(1, 2, &[1; 1_400])));
        // Cut into segments by the switch: the receiver has no offloads.
        let segment = handshake(&mut guest_a, &mut guest_b, &path, 1, 2);
        kinds.push(path.tcp_gso(&segment, &[3; 30_000], 1_440));
        // Answered with an ICMP error, and dropped.
        kinds.push((plain, path.ttl(1).udp(1, 2, b"x")));
        kinds.push((plain, frames::Path { src: path.dst, ..path }.udp(1, 2, b"spoofed")));
    }
    for gateway in ["192.0.2.1", "2001:db8:1::1"] {
        let path = path_to(&a, gateway.parse::<std::net::IpAddr>().unwrap());
        kinds.push((plain, path.echo_request(1, 1, b"ping")));
        kinds.push((plain, path.udp(1, 2, b"to the host's own services")));
    }
    traffic(&mut guest_a, &mut guest_b, &kinds, 50);
    let before = host.status("a").totals.received;
    COUNTING.store(true, Ordering::SeqCst);
    traffic(&mut guest_a, &mut guest_b, &kinds, 300);
    COUNTING.store(false, Ordering::SeqCst);
    let packets = host.status("a").totals.received - before;
    assert_eq!(packets, 300 * kinds.len() as u64);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0, "in {packets} packets");
    // The count itself works.
    COUNTING.store(true, Ordering::SeqCst);
    let worker = std::thread::Builder::new().name("hw-worker-9".into()).spawn(|| std::hint::black_box(vec![7]));
    worker.unwrap().join().unwrap();
    COUNTING.store(false, Ordering::SeqCst);
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > 0);
}
