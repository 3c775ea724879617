//! Seeded mutation of everything that the local stage answers: whatever a guest sends, the stage ends, and what it
//! answers is well formed, from the router, and for nobody but the guest.

use std::net::{Ipv4Addr, Ipv6Addr};

use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Burst, Meta, Offload, virtio_net};
use hostweave_switch::stage::Verdict;
use hostweave_switch::{MacAddr, parse};
use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscRepr};

use super::testing::{A_LINK_LOCAL, A_V4, A_V6, GATEWAY_V4, GATEWAY_V6, GUEST_A, World, ethernet, icmpv6, ipv4, udp};

const ROUNDS: usize = 60_000;

/// xorshift64: the same sequence for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn dhcp4() -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&GUEST_A.0);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, 3, 61, 3, 1, 2, 3, 50, 4, 192, 0, 2, 10, 57, 2, 5, 0xdc, 52, 1, 3, 255]);
    udp(Ipv4Addr::UNSPECIFIED.into(), 68, Ipv4Addr::BROADCAST.into(), 67, &message)
}

fn dhcp6() -> Vec<u8> {
    let mut message = vec![1, 7, 8, 9, 0, 1, 0, 6, 0, 3, 0, 1, 2, 3, 0, 14, 0, 0, 0, 6, 0, 4, 0, 23, 0, 24];
    message.extend([0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 24]);
    message.extend(A_V6.octets());
    message.extend([0; 8]);
    message.extend([0, 25, 0, 12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 4, 0, 0, 0, 3]);
    let servers: Ipv6Addr = "ff02::1:2".parse().unwrap();
    udp(A_LINK_LOCAL.into(), 546, servers.into(), 547, &message)
}

/// One valid message of each kind, and where the part starts that is worth changing.
fn questions() -> Vec<(Vec<u8>, usize)> {
    let neighbor = NdiscRepr::NeighborSolicit { target_addr: GATEWAY_V6, lladdr: None };
    let routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(GUEST_A.0.iter().chain(&A_V4.octets()).chain(&[0; 6]).chain(&GATEWAY_V4.octets()));
    vec![
        (dhcp4(), 42),
        (dhcp6(), 62),
        (icmpv6(A_LINK_LOCAL, GATEWAY_V6, 255, &Icmpv6Repr::Ndisc(neighbor)), 54),
        (icmpv6(A_LINK_LOCAL, routers, 255, &Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None })), 54),
        (ethernet(MacAddr::BROADCAST, smoltcp::wire::EthernetProtocol::Arp, &arp), 14),
        (ipv4(MacAddr::ROUTER, A_V4, GATEWAY_V4, IpProtocol::Icmp, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]), 34),
        (icmpv6(A_V6, GATEWAY_V6, 64, &Icmpv6Repr::EchoRequest { ident: 1, seq_no: 1, data: b"data" }), 54),
    ]
}

/// Changes a few octets, sometimes the length, and makes the checksum pass: by a right one, or by leaving it partial.
fn mutate(random: &mut Random, original: &[u8], start: usize) -> (Vec<u8>, Offload) {
    let mut frame = original.to_vec();
    if random.below(8) == 0 {
        let cut = start + random.below(frame.len() - start);
        frame.truncate(cut.max(start));
        frame.extend((0..random.below(3)).map(|_| 0));
    }
    for _ in 0..random.below(6) {
        // Behind the transport header mostly; anywhere now and then.
        let from = if random.below(10) == 0 { 0 } else { start.min(frame.len() - 1) };
        let at = from + random.below(frame.len() - from);
        frame[at] = match random.below(4) {
            0 => 0,
            1 => 0xff,
            2 => frame[at] ^ (1 << random.below(8)),
            _ => random.below(256) as u8,
        };
    }
    let mut offload = Offload::default();
    if original[12..14] == [0x86, 0xdd] && original[20] == 58 && frame.len() >= 62 {
        let octets = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
        let (src, dst) = (octets(22), octets(38));
        let mut packet = Icmpv6Packet::new_unchecked(&mut frame[54..]);
        packet.fill_checksum(&src, &dst);
    } else if start == 42 || start == 62 {
        let csum_start = start as u16 - 8;
        offload = Offload { flags: virtio_net::NEEDS_CSUM, csum_start, csum_offset: 6, ..Offload::default() };
    }
    (frame, offload)
}

#[test]
fn whatever_a_guest_sends_is_answered_well_or_not_at_all() {
    let seed = 0x9e37_79b9_7f4a_7c15;
    let mut random = Random(seed);
    let questions = questions();
    let world = World::new();
    let mut answered = vec![0; questions.len()];
    for round in 0..ROUNDS {
        let index = round % questions.len();
        let (question, start) = &questions[index];
        let (frame, offload) = mutate(&mut random, question, *start);
        let outcome = world.ask_with(&frame, offload);
        if outcome.verdict != Verdict::Reply {
            continue;
        }
        answered[index] += 1;
        let reply = outcome.frame;
        let to = MacAddr(reply[..6].try_into().unwrap());
        assert!(to == GUEST_A || to.is_multicast(), "seed {seed:#x}, round {round}: to {to}");
        assert_eq!(reply[6..12], MacAddr::ROUTER.0, "seed {seed:#x}, round {round}");
        let meta = Meta { offload: outcome.offload, ..Meta::default() };
        let verdict = Burst::new().with_frame(meta, &reply, HEAD_FIRST, |packet, arena| parse::parse(packet, arena));
        assert_eq!(verdict, Verdict::Continue, "seed {seed:#x}, round {round}: {reply:02x?}");
    }
    assert!(answered.iter().all(|count| *count > ROUNDS / 100), "{answered:?}");
}
