//! Either side goes and comes back under load: guests, the daemon, a port, memory. No ring entry is lost or used
//! twice, and what the guests were doing goes on.

use std::net::IpAddr;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use hostweave::fabric::spec::{BackendSpec, PortSpec, SocketMode};
use hostweave_guest::{Guest, GuestBuilder, GuestHandle, Mode, Profile, VnetHeader, features};

use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, addresses, eventually, paths};

const BYTES: usize = 4_000_000;

/// Connects a client, then sends [`BYTES`] to an echo server and checks what comes back, whatever happens to the
/// connection with the backend meanwhile.
fn start_transfer(client: &GuestHandle, to: IpAddr) -> Receiver<Result<(), String>> {
    let socket = client.call(move |guest| guest.tcp_connect(to, 7, PATIENCE).unwrap()).unwrap();
    let job = move |guest: &mut Guest| {
        let (mut sent, mut back, end) = (0, 0, Instant::now() + 2 * PATIENCE);
        while back < BYTES {
            if Instant::now() > end {
                return Err(format!("{sent} octets sent, {back} came back"));
            }
            if !guest.nic().is_connected() {
                // The daemon may end again on the way.
                if guest.nic().reconnect().is_err() {
                    continue;
                }
            }
            let tcp = guest.tcp_socket(socket);
            if !tcp.is_active() {
                return Err(format!("the connection ended after {back} octets"));
            }
            let chunk: Vec<u8> = (sent..BYTES.min(sent + 8_192)).map(|at| (at % 251) as u8).collect();
            sent += tcp.send_slice(&chunk).unwrap_or(0);
            let mut octets = [0; 8_192];
            let count = tcp.recv_slice(&mut octets).unwrap_or(0);
            if let Some(at) = (0..count).find(|at| octets[*at] != ((back + at) % 251) as u8) {
                return Err(format!("octet {} came back changed", back + at));
            }
            back += count;
            guest.poll_or_wait(Duration::from_millis(1)).map_err(|error| error.to_string())?;
        }
        Ok(())
    };
    client.start(job).unwrap()
}

/// A client and an echo server with their addresses, which connect again whenever the backend is gone.
fn pair(host: &mut Host, specs: [&PortSpec; 2], dress: impl Fn(GuestBuilder) -> GuestBuilder) -> [GuestHandle; 2] {
    specs.map(|spec| {
        let mut guest = dress(host.guest(spec)).up();
        host.settle(&mut guest, spec);
        guest.tcp_echo_server(7).unwrap();
        guest.spawn(&spec.name, true).unwrap()
    })
}

/// No ring entry was lost or used twice.
fn assert_rings(guests: [GuestHandle; 2]) {
    for guest in guests {
        let mut guest = guest.stop().unwrap();
        guest.nic().drain_tx(PATIENCE).unwrap();
        assert_eq!(guest.nic().violations(), []);
        assert_eq!(guest.phy().bad_checksum_fields, 0);
    }
}

#[test]
fn tcp_goes_on_when_the_daemon_restarts() {
    let mut host = Host::new(2);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let guests = pair(&mut host, [&a, &b], |guest| guest);
    for address in addresses(&b) {
        let transfer = start_transfer(&guests[0], address);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(30));
            host.restart();
        }
        transfer.recv().unwrap().unwrap();
    }
    assert_rings(guests);
}

#[test]
fn every_ring_entry_comes_back_when_the_daemon_restarts_under_full_rings() {
    for dress in [
        (|guest| guest) as fn(GuestBuilder) -> GuestBuilder,
        |guest| guest.without(features::EVENT_IDX | features::MRG_RXBUF).profile(Profile::Qemu),
        |guest| guest.with(features::IN_ORDER).profile(Profile::CloudHypervisor),
    ] {
        let mut host = Host::new(1);
        let (a, b) = (host.port("a", 10), host.port("b", 11));
        let mut from = dress(host.guest(&a)).ring_size(64).up();
        let mut to = dress(host.guest(&b)).ring_size(64).up();
        let path = paths(&a, &b)[0];
        let mut frame = Vec::new();
        let mut last = None;
        let (mut sequence, mut received) = (0u32, 0u32);
        for round in 0..5 {
            if round > 0 {
                host.restart();
                from.nic().reconnect().unwrap();
                to.nic().reconnect().unwrap();
            }
            // The rings are in use when the daemon ends.
            let (goal, end) = (received + 300, Instant::now() + PATIENCE);
            while received < goal {
                assert!(Instant::now() < end, "{received} frames in round {round}");
                let filled = from.nic().push_frame(0, &VnetHeader::default(), &path.udp(1, 2, &sequence.to_be_bytes()));
                sequence += u32::from(filled.is_ok());
                from.nic().flush(0).unwrap();
                while to.nic().recv_frame(&mut frame).unwrap().is_some() {
                    let number = u32::from_be_bytes(frame[42..46].try_into().unwrap());
                    assert!(last < Some(number), "{number} behind {last:?}");
                    last = Some(number);
                    received += 1;
                }
            }
        }
        from.nic().drain_tx(PATIENCE).unwrap();
        assert_eq!((from.nic().violations(), to.nic().violations()), (vec![], vec![]));
        // Every receive buffer still goes round: three times the ring, one after the other.
        while to.nic().recv_frame(&mut frame).unwrap().is_some() {}
        for _ in 0..3 * 64 {
            from.send_frame(&path.udp(1, 2, &u32::MAX.to_be_bytes()), &VnetHeader::default()).unwrap();
            to.nic().recv_within(PATIENCE, &mut frame).unwrap();
        }
        assert_eq!(to.nic().violations(), []);
    }
}

#[test]
fn a_guest_that_restarts_under_load_is_served_again() {
    let mut host = Host::new(2);
    let (a, b) = (host.port("a", 10), host.port("b", 11));
    let mut from = host.guest(&a).up();
    let path = paths(&a, &b)[0];
    for _ in 0..5 {
        let mut to = host.guest(&b).up();
        for n in 0..400u32 {
            let _ = from.nic().push_frame(0, &VnetHeader::default(), &path.udp(1, 2, &n.to_be_bytes()));
            from.nic().flush(0).unwrap();
        }
        to.recv_frame(PATIENCE).unwrap();
        assert_eq!(to.nic().violations(), []);
        // Its process ends in the middle of the stream.
        drop(to);
    }
    from.nic().drain_tx(PATIENCE).unwrap();
    assert_eq!(from.nic().violations(), []);
    eventually("the port waits", || host.status("b").attachments[0].state == "waiting-for-frontend");
    assert_eq!(host.status("b").attachments[0].fault, None);
}

#[test]
fn both_sides_may_restart_where_the_vmm_listens() {
    let mut host = Host::new(1);
    let specs = [("a", 10), ("b", 11)].map(|(name, n)| {
        let mut spec = host.spec("default", name, n, 1);
        if let BackendSpec::VhostUser { mode, incoming_socket, .. } = &mut spec.backend {
            (*mode, *incoming_socket) = (SocketMode::Connect, None);
        }
        spec
    });
    host.desired.ports = specs.to_vec().into();
    host.apply();
    let guests = pair(&mut host, [&specs[0], &specs[1]], |guest| guest.mode(Mode::Server));
    let transfer = start_transfer(&guests[0], addresses(&specs[1])[0]);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(30));
        host.restart();
    }
    transfer.recv().unwrap().unwrap();
    assert_rings(guests);
    // The VMM ends, and another one listens at the same place.
    let BackendSpec::VhostUser { socket, .. } = &specs[0].backend else { panic!() };
    std::fs::remove_file(socket).unwrap();
    let mut guest = host.guest(&specs[0]).mode(Mode::Server).up();
    host.settle(&mut guest, &specs[0]);
    guest.ping("192.0.2.1".parse::<IpAddr>().unwrap(), PATIENCE).unwrap();
}

#[test]
fn a_port_is_removed_and_added_again_under_traffic() {
    let mut host = Host::new(2);
    let (a, b, c) = (host.port("a", 10), host.port("b", 11), host.port("c", 12));
    let guests = pair(&mut host, [&a, &b], |guest| guest);
    let mut noise = host.guest(&c).up();
    let path = paths(&c, &b)[0];
    let transfer = start_transfer(&guests[0], addresses(&b)[0]);
    let all = host.desired.ports.clone();
    for _ in 0..4 {
        for _ in 0..50 {
            let _ = noise.send_frame(&path.udp(1, 2, b"noise"), &VnetHeader::default());
        }
        host.desired.ports = all.iter().filter(|spec| spec.name != "b").map(|spec| PortSpec::clone(spec)).collect();
        host.apply();
        assert!(host.fabric.port_status("test/b").is_none());
        host.desired.ports = all.clone();
        host.apply();
        std::thread::sleep(Duration::from_millis(20));
    }
    // Its connections went with the port; new ones begin.
    transfer.recv().unwrap().unwrap_err();
    assert!(host.dropped("a", DropReason::NoConnection) > 0);
    start_transfer(&guests[0], addresses(&b)[1]).recv().unwrap().unwrap();
    noise.nic().drain_tx(PATIENCE).unwrap();
    assert_eq!(noise.nic().violations(), []);
    assert_rings(guests);
}

#[test]
fn memory_is_plugged_and_unplugged_under_traffic() {
    for profile in [Profile::Qemu, Profile::Dpdk] {
        let mut host = Host::new(2);
        let (a, b) = (host.port("a", 10), host.port("b", 11));
        let slots = |guest: GuestBuilder| {
            guest.profile(profile).nic(|nic| {
                if profile == Profile::Dpdk {
                    // The whole table anew instead of one region.
                    nic.protocol &= !features::protocol::CONFIGURE_MEM_SLOTS;
                }
            })
        };
        let guests = pair(&mut host, [&a, &b], slots);
        let transfer = start_transfer(&guests[0], addresses(&b)[0]);
        let memory = |host: &Host| host.status("b").attachments[0].memory.unwrap().0;
        let before = memory(&host);
        for _ in 0..10 {
            let gpa = guests[1].call(|guest| guest.nic().add_memory(1 << 20).unwrap()).unwrap();
            guests[1].call(|guest| guest.nic().frontend.barrier().unwrap()).unwrap();
            assert_eq!(memory(&host), before + (1 << 20));
            guests[1].call(move |guest| guest.nic().remove_memory(gpa).unwrap()).unwrap();
            guests[1].call(|guest| guest.nic().frontend.barrier().unwrap()).unwrap();
            assert_eq!(memory(&host), before);
        }
        transfer.recv().unwrap().unwrap();
        assert_rings(guests);
    }
}
