//! What comes from outside counts for whoever has its destination (SEMANTICS CT11).

use super::*;

/// A network whose range is routed to the host.
const NETWORK: crate::tables::NetworkId = crate::tables::NetworkId(3);

/// The port from which the outside comes.
const UPLINK: PortId = PortId(77);

/// Addresses at the uplink, and from whom fragments come to them.
fn outside(v6: bool, last: u8) -> IpAddr {
    if v6 { IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(last)]) } else { IpAddr::from([198, 51, 100, last]) }
}

fn from_outside(v6: bool, from: u8, to: u8, of: Piece) -> Vec<u8> {
    let mut frame = of.frame();
    let (at, len) = if v6 { (22, 16) } else { (26, 4) };
    for (address, at) in [(from, at), (to, at + len)] {
        match outside(v6, address) {
            IpAddr::V4(v4) => frame[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => frame[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    if !v6 {
        ipv4::fill_checksum(frame[14..34].first_chunk_mut().unwrap());
    }
    frame
}

/// A host that has for 1 and 2 a port each, NAT behind 3 and a Service at 4, and the range of a network with ports at 5 and 6 routed to it.
fn with_uplink(v6: bool) -> Tables {
    let attached = |port| Owned::Attached { port: PortId(port), inside: None };
    let owned = [attached(1), attached(2), Owned::Nat, Owned::Service];
    let owned = (1..).zip(owned).map(|(last, owned)| (mapped(outside(v6, last)), owned)).collect();
    let uplink = crate::tables::Uplink {
        owned,
        routed: vec![(ipnet::IpNet::new(outside(v6, 0), if v6 { 120 } else { 24 }).unwrap(), NETWORK)],
        ..crate::tables::Uplink::bare(UPLINK, crate::tables::NetworkId(0), crate::MacAddr([2; 6]))
    };
    let mut addresses = crate::tables::AddressTable::default();
    addresses.extend([5, 6].map(|last| (AddressKey::new(NETWORK, outside(v6, last)), PortId(last.into()))));
    Tables { uplink: Some(std::sync::Arc::new(uplink)), addresses: std::sync::Arc::new(addresses), ..Tables::default() }
}

#[test]
fn ct11_a_flood_from_outside_pushes_out_its_receivers_own_only() {
    for v6 in [false, true] {
        let (tables, fragments) = (with_uplink(v6), Fragments::new());
        let send = |from, to, of| admit_of(&fragments, &tables, UPLINK, &from_outside(v6, from, to, of), 0);
        // To each address one waits, also to the one that is flooded.
        for to in 1..=6 {
            assert!(matches!(send(100, to, piece(v6, 1, 8, 16, false)), Admit::Queued));
        }
        assert!(matches!(admit(&fragments, piece(v6, 1, 8, 16, false)), Admit::Queued));
        for ident in 2..3_000 {
            // First fragments that nothing follows, and others that wait.
            let _ = send(200, 1, piece(v6, ident, 0, 8, true));
            let _ = send(200, 1, piece(v6, ident + 3_000, 8, 16, true));
            let _ = send(200, 99, piece(v6, ident, 8, 16, true));
        }
        assert!(first(send(100, 1, piece(v6, 1, 0, 8, true))).is_empty(), "it was pushed out");
        for to in 2..=6 {
            assert_eq!(first(send(100, to, piece(v6, 1, 0, 8, true))).len(), 1, "{to}");
        }
        assert_eq!(first(admit(&fragments, piece(v6, 1, 0, 8, true))).len(), 1);
        let usage = fragments.usage();
        assert!(usage.datagrams <= 2 * FRAGMENT_DATAGRAMS_PER_PORT_MAX, "{usage:?}");
        let ended = expire(&fragments, u64::MAX);
        assert!(ended.iter().all(|(port, ..)| *port == UPLINK), "it is told of where they came in: {ended:?}");
        assert_eq!(fragments.usage(), Usage::default());
    }
}

#[test]
fn ct11_one_sender_does_not_take_an_address_that_many_share() {
    for v6 in [false, true] {
        for to in [3, 4] {
            let (tables, fragments) = (with_uplink(v6), Fragments::new());
            let send = |from, of| admit_of(&fragments, &tables, UPLINK, &from_outside(v6, from, to, of), 0);
            for from in 100..196 {
                assert!(matches!(send(from, piece(v6, 1, 8, 16, false)), Admit::Queued));
            }
            for ident in 2..3_000 {
                let _ = send(200, piece(v6, ident, 0, 8, true));
            }
            let arrive = |from: &u8| matches!(send(*from, piece(v6, 1, 0, 8, true)), Admit::First(of) if of.len() == 1);
            let others = (100..196).filter(arrive).count();
            // One in sixteen has a place beside the flooder's, on average.
            assert!((60..=96).contains(&others), "{others}");
            // Not even one with any source takes what is for others.
            let victim = Piece { src_port: 9, ..piece(v6, 1, 8, 16, false) };
            let frame = from_outside(v6, 100, 1, victim);
            assert!(matches!(admit_of(&fragments, &tables, UPLINK, &frame, 0), Admit::Queued));
            for ident in 0..200 {
                for from in 0..=255 {
                    let _ = send(from, piece(v6, ident, 0, 8, true));
                }
            }
            let frame = from_outside(v6, 100, 1, Piece { src_port: 9, ..piece(v6, 1, 0, 8, true) });
            assert_eq!(first(admit_of(&fragments, &tables, UPLINK, &frame, 0)).len(), 1);
            let most = (FRAGMENT_SHARED_RECEIVERS as usize + 1) * FRAGMENT_DATAGRAMS_PER_PORT_MAX;
            assert!(fragments.usage().datagrams <= most);
            let mut told = 0;
            fragments.forget(UPLINK, |_, count| told += count);
            assert!(told > 0);
            assert_eq!(fragments.usage(), Usage::default());
        }
    }
}
