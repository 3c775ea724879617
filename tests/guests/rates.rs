//! Rate limits of ports: what is more than a guest may send or receive ends with a reason, and nothing else does.

use std::time::{Duration, Instant};

use hostweave_guest::VnetHeader;
use hostweave_switch::rate::{Rate, Rates};
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, paths};

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
