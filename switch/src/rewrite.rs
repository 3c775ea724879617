//! Applies what `route` decided: link addresses and TTL, with the IPv4 checksum updated (RFC 1812 §5.3.1, RFC 1624).
//! Transport checksums, partial ones too, cover none of it.

use crate::MacAddr;
use crate::packet::{L3, Packet};
use crate::route;
use crate::stage::DropReason;
use crate::tables::{Network, Port, PortKind};
use crate::wire::{ethernet, ipv4, ipv6};

/// Addresses a packet to `out` and takes one off its TTL or hop limit, unless `out` is the host's own: there the packet
/// arrives and is not forwarded. Link address, TTL and MTU are checked first ([`route::may_go_on`]).
///
/// # Errors
/// Why the packet may not go on; it is as before then.
#[inline(always)]
pub fn rewrite(packet: &mut Packet, network: &Network, out: &Port) -> Result<(), DropReason> {
    let l3 = packet.meta.l3;
    let too_long = route::widest(packet) > u32::from(network.mtu);
    let frame = packet.head_mut().first_chunk_mut::<{ ethernet::HEADER_LEN + ipv4::HEADER_LEN }>();
    let frame = frame.ok_or(DropReason::Internal)?;
    route::check(frame, l3, too_long, out)?;
    let Some(start) = frame.first_chunk_mut() else { return Err(DropReason::Internal) };
    ethernet::set_addresses_by_words(start, out.mac, MacAddr::ROUTER);
    if out.kind == PortKind::Internal {
        return Ok(());
    }
    let Some(header) = frame[ethernet::HEADER_LEN..].first_chunk_mut() else { return Err(DropReason::Internal) };
    // It is above one: checked.
    match l3 {
        L3::V4 => ipv4::decrement_ttl(header),
        L3::V6 => ipv6::decrement_hop_limit(header),
        L3::Arp | L3::None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{GUEST_A, GUEST_B, INTERNAL, NETWORK, mac, tables, v4, v6};
    use crate::parse::parse;
    use crate::stage::Verdict;
    use crate::tables::PortId;
    use crate::testing::{self, ipv4_frame, ipv6_frame, udp};
    use crate::wire::checksum;

    fn rewritten(frame: &[u8], out: PortId) -> Vec<u8> {
        let tables = tables();
        testing::with(frame, |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            rewrite(packet, tables.network(NETWORK).unwrap(), tables.port(out).unwrap()).unwrap();
            packet.head().to_vec()
        })
    }

    #[test]
    fn ipv4_loses_one_and_keeps_its_checksum_right() {
        let frame = ipv4_frame(v4(GUEST_A), v4(GUEST_B), 17, 64, &udp(1, 2, b"data"));
        let out = rewritten(&frame, GUEST_B);
        assert_eq!((&out[..6], &out[6..12]), (&mac(GUEST_B).0[..], &MacAddr::ROUTER.0[..]));
        assert_eq!(out[22], 63);
        assert_eq!(checksum::sum(&out[14..34]), 0xffff);
        assert_eq!((&out[12..22], &out[23], &out[26..]), (&frame[12..22], &frame[23], &frame[26..]));
    }

    #[test]
    fn ipv6_loses_one() {
        let frame = ipv6_frame(v6(GUEST_A), v6(GUEST_B), 17, 64, &udp(1, 2, b"data"));
        let out = rewritten(&frame, GUEST_B);
        assert_eq!(out[21], 63);
        assert_eq!((&out[12..21], &out[22..]), (&frame[12..21], &frame[22..]));
    }

    #[test]
    fn what_arrives_at_the_host_is_not_forwarded() {
        let frame = ipv4_frame(v4(GUEST_A), v4(INTERNAL), 17, 1, &udp(1, 2, b"data"));
        let out = rewritten(&frame, INTERNAL);
        assert_eq!((&out[..6], &out[12..]), (&mac(INTERNAL).0[..], &frame[12..]));
    }
}
