//! Rate limits of ports: what is more than a guest may send or receive ends with a reason, and nothing else does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave_guest::{Guest, VnetHeader};
use hostweave_switch::rate::{Rate, Rates};
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, eventually, handshake, paths};

/// Frames of each family.
const SENT: usize = 400;

#[test]
fn a_guest_sends_and_receives_what_its_limits_let_it() {
    let packets = |burst| Rates { packets: Some(Rate { per_s: 1, burst }), bits: None };
    for (egress, ingress, passed) in [(100, None, 100), (300, Some(50), 50)] {
        let mut host = Host::new(1);
        let (mut a, mut b) = (host.spec("default", "a", 10, 1), host.spec("default", "b", 11, 1));
        a.rates.egress = packets(egress);
        b.rates.ingress = ingress.map(packets).unwrap_or_default();
        host.desired.ports = vec![a.clone(), b.clone()].into();
        host.apply();
        let (mut sender, mut receiver) = (host.guest(&a).ring_size(1_024).up(), host.guest(&b).ring_size(1_024).up());
        let began = Instant::now();
        for path in paths(&a, &b) {
            for _ in 0..SENT {
                sender.nic().push_frame(0, &VnetHeader::default(), &path.udp(5_000, 9, b"data")).unwrap();
            }
            sender.nic().flush(0).unwrap();
            sender.nic().drain_tx(PATIENCE).unwrap();
        }
        let (sent, mut received, mut frame) = (2 * SENT as u64, 0, Vec::new());
        let counted = |host: &Host| {
            let reason = DropReason::RateLimited;
            (host.dropped("a", reason), host.tx_dropped("b", reason))
        };
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(200) {
            while receiver.nic().recv_frame(&mut frame).unwrap().is_some() {
                // Neighbour discovery and the like are no datagrams of ours.
                received += u64::from(frame.ends_with(b"data"));
                quiet = Instant::now();
            }
            receiver.nic().wait(Duration::from_millis(5)).unwrap();
        }
        // One a second is what the burst grows by meanwhile.
        let more = began.elapsed().as_secs() + 1;
        let (at_a, at_b) = counted(&host);
        assert_eq!(received + at_a + at_b, sent, "{received} {at_a} {at_b}");
        assert!((passed..=passed + more).contains(&received), "{received}");
        assert_eq!(at_b > 0, ingress.is_some());
    }
}

/// Sends a frame so many times; returns how many of them went on.
fn passed(host: &Host, sender: &mut Guest, name: &str, (header, frame): (VnetHeader, Vec<u8>), times: u64) -> u64 {
    let before = host.status(name).totals;
    for _ in 0..times {
        sender.nic().push_frame(0, &header, &frame).unwrap();
    }
    sender.nic().flush(0).unwrap();
    sender.nic().drain_tx(PATIENCE).unwrap();
    eventually("all are counted", || {
        let now = host.status(name).totals;
        now.received == before.received + times && now.input_closes()
    });
    host.status(name).totals.forwarded - before.forwarded
}

#[test]
fn whatever_else_changes_at_a_port_it_gets_no_new_burst() {
    let mut host = Host::new(1);
    let (mut a, b) = (host.spec("default", "a", 10, 1), host.port("b", 11));
    a.rates.egress.packets = Some(Rate { per_s: 1, burst: 100 });
    host.desired.ports.push(Arc::new(a.clone()));
    host.apply();
    let mut sender = host.guest(&a).ring_size(1_024).up();
    let began = Instant::now();
    let mut sum = 0;
    let mut send = |host: &Host, flow: u16| {
        let frame = paths(&a, &b)[usize::from(flow) % 2].udp(5_000 + flow, 9, b"data");
        passed(host, &mut sender, "a", (VnetHeader::default(), frame), 200)
    };
    for change in 0..5 {
        let spec = Arc::make_mut(host.desired.ports.last_mut().unwrap());
        match change {
            0 => {}
            1 => drop(spec.labels.insert("app".into(), "web".into())),
            // As one that was learned.
            2 => spec.v6.push("2001:db8:1::77".parse().unwrap()),
            3 => spec.rates.ingress.packets = None,
            _ => spec.flows_max -= 1,
        }
        host.apply();
        sum += send(&host, change);
    }
    let more = began.elapsed().as_secs() + 1;
    assert!((100..=100 + more).contains(&sum), "{sum} of one burst");
    // Another limit is another one.
    Arc::make_mut(host.desired.ports.last_mut().unwrap()).rates.egress.packets = Some(Rate { per_s: 1, burst: 50 });
    host.apply();
    let since = Instant::now();
    let again = send(&host, 9);
    assert!((50..=51 + since.elapsed().as_secs()).contains(&again), "{again}");
}

#[test]
fn bits_are_counted_as_on_the_wire_and_large_frames_as_their_segments() {
    const SIZE: usize = 1_000;
    const SEGMENTS: usize = 10;
    for bits in [false, true] {
        for ipv4 in [true, false] {
            let headers = 14 + 20 + if ipv4 { 20 } else { 40 };
            let wire = (SEGMENTS * (SIZE + headers) * 8) as u64;
            // Two frames of the handshake are the sender's, too, one is the receiver's; each without data.
            let small = headers as u64 * 8;
            let rates = |frames: u64, shaking: u64| match bits {
                false => {
                    Rates { packets: Some(Rate { per_s: 1, burst: frames * SEGMENTS as u64 + shaking }), bits: None }
                }
                true => {
                    Rates { packets: None, bits: Some(Rate { per_s: 1_000, burst: frames * wire + shaking * small }) }
                }
            };
            let mut host = Host::new(1);
            let (mut a, mut b) = (host.spec("default", "a", 10, 1), host.spec("default", "b", 11, 1));
            a.rates.egress = rates(8, 2);
            b.rates.ingress = rates(5, 2);
            host.desired.ports = vec![a.clone(), b.clone()].into();
            host.apply();
            let (mut sender, mut receiver) = (host.guest(&a).up(), host.guest(&b).ring_size(1_024).up());
            let path = paths(&a, &b)[usize::from(!ipv4)];
            let data = handshake(&mut sender, &mut receiver, &path, 5_000, 80);
            let frame = path.tcp_gso(&data, &vec![7; SEGMENTS * SIZE], SIZE as u16);
            // The rate adds one frame in ten seconds, and in more than eighty.
            let sent = passed(&host, &mut sender, "a", frame, 40);
            assert!((8..=9).contains(&sent), "bits: {bits}, IPv4: {ipv4}: {sent}");
            assert_eq!(host.dropped("a", DropReason::RateLimited), 40 - sent);
            let refused = host.tx_dropped("b", DropReason::RateLimited);
            assert!((sent - 6..=sent - 5).contains(&refused), "bits: {bits}, IPv4: {ipv4}: {refused} of {sent}");
        }
    }
}
