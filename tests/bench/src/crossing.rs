//! Ways between the two guests on which the switch translates: through NAT, from an attached address by 1:1 NAT, to a Service;
//! and what has to arrive of what was sent.
//!
//! Every frame is held against it: addresses, L4 ports, the checksums of IPv4 and UDP. A NAT chooses L4 ports itself; what it chose for a
//! source port when it was seen first must stay (RFC 4787 REQ-1), and no two source ports may have the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail, ensure};
use hostweave_guest::frames::{Body, ETHER_BYTES, Frame, L4};

use crate::generator::{SIDES, WINDOW};

/// How frames get from guest A to guest B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Within a network, to B's own address.
    Stay,
    /// From a network with NAT egress, to an attached address that B has itself in another network: the source becomes the
    /// pool's.
    Nat,
    /// The same, from a guest that has an attached address of its own by 1:1 NAT: the source becomes that one.
    Attached,
    /// Within a network, to a Service's cluster address: the destination becomes B's.
    Service {
        /// Whether the Service has all L4 ports from [`crate::flows::DST_PORT_FIRST`] on, each of which leads to the same one of B; else only that
        /// one, which leads to [`TARGET_PORT`].
        range: bool,
    },
}

/// An address of each family.
#[derive(Clone, Copy, Debug)]
pub struct Dual {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Dual {
    fn of(self, six: bool) -> IpAddr {
        if six { self.v6.into() } else { self.v4.into() }
    }
}

const fn public(n: u8) -> Dual {
    Dual { v4: Ipv4Addr::new(203, 0, 113, n), v6: Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, n as u16) }
}

/// The only address of the NAT pool. With 61,440 L4 ports for its only workload it has one for each source port of the
/// generator ([`crate::flows::ports`]); flows to other destination ports share the mapping.
pub const POOL: Dual = public(7);

/// The address that B carries.
pub const B_PUBLIC: Dual = public(8);

/// A's, by 1:1 NAT.
pub const A_PUBLIC: Dual = public(9);

/// The Service's.
pub const SERVICE: Dual = Dual { v4: Ipv4Addr::new(10, 96, 0, 10), v6: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10) };

/// B's L4 port behind a Service of one port.
pub const TARGET_PORT: u16 = 7_001;

impl Way {
    /// Whether the switch translates.
    pub fn translates(self) -> bool {
        self != Self::Stay
    }

    /// Whether frames leave the network of A, by what the host owns at its uplink.
    pub fn leaves(self) -> bool {
        matches!(self, Self::Nat | Self::Attached)
    }

    /// Source and destination as A sends them, and as B sees them.
    pub fn addresses(self, six: bool) -> [(IpAddr, IpAddr); 2] {
        let [a, b] = SIDES.map(|side| Dual { v4: side.v4, v6: side.v6 }.of(six));
        let (to, from, arrives) = match self {
            Self::Stay => (b, a, b),
            Self::Nat => (B_PUBLIC.of(six), POOL.of(six), B_PUBLIC.of(six)),
            Self::Attached => (B_PUBLIC.of(six), A_PUBLIC.of(six), B_PUBLIC.of(six)),
            Self::Service { .. } => (SERVICE.of(six), a, b),
        };
        [(a, to), (from, arrives)]
    }
}

/// Frames that are remembered until they arrive: more than may be behind the one sent last.
const REMEMBERED: usize = 4096;

const _: () = assert!(REMEMBERED > 4 * WINDOW as usize);

/// What has to arrive at B.
pub struct Expected {
    /// Source and destination, as A sends them and as B sees them.
    addresses: [(IpAddr, IpAddr); 2],
    /// What B sees, as in the header: 8 octets of IPv4 or 32 of IPv6.
    octets: [u8; 32],
    six: bool,
    /// The destination port that B sees, if it is another.
    dst_port: Option<u16>,
    /// Where the switch chooses source ports.
    chosen: Option<Chosen>,
    /// L4 ports of frames by the lower bits of their sequence number.
    sent: Vec<(u16, u16)>,
    /// The sum over which UDP's checksum goes, without L4 ports and sequence number.
    sum: u32,
}

/// Source ports that the switch chose; 0 is none yet.
struct Chosen {
    by_source: Vec<u16>,
    source_of: Vec<u16>,
}

impl Chosen {
    fn new() -> Self {
        Self { by_source: vec![0; 1 << 16], source_of: vec![0; 1 << 16] }
    }

    /// What a source port has become. `seen` is it, where nothing was known.
    #[inline]
    fn port(&mut self, source: u16, seen: u16) -> Result<u16> {
        match self.by_source[usize::from(source)] {
            0 => self.learn(source, seen),
            known => Ok(known),
        }
    }

    #[cold]
    fn learn(&mut self, source: u16, seen: u16) -> Result<u16> {
        let other = self.source_of[usize::from(seen)];
        ensure!(seen != 0 && other == 0, "L4 port {source} becomes {seen}, as {other} does");
        self.by_source[usize::from(source)] = seen;
        self.source_of[usize::from(seen)] = source;
        Ok(seen)
    }
}

impl Expected {
    /// Nothing sent yet.
    pub fn new(way: Way, six: bool) -> Self {
        Self::between(way, way.addresses(six))
    }

    /// The same from B to A, where nothing is translated.
    pub fn back(six: bool) -> Self {
        let [(a, b), _] = Way::Stay.addresses(six);
        Self::between(Way::Stay, [(b, a); 2])
    }

    fn between(way: Way, addresses: [(IpAddr, IpAddr); 2]) -> Self {
        let (src, dst) = addresses[1];
        let mut octets = [0; 32];
        for (at, address) in [src, dst].into_iter().enumerate() {
            match address {
                IpAddr::V4(address) => octets[4 * at..4 * at + 4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => octets[16 * at..16 * at + 16].copy_from_slice(&address.octets()),
            }
        }
        Self {
            addresses,
            octets,
            six: src.is_ipv6(),
            dst_port: (way == Way::Service { range: false }).then_some(TARGET_PORT),
            chosen: (way == Way::Nat).then(Chosen::new),
            sent: vec![(0, 0); REMEMBERED],
            sum: 0,
        }
    }

    /// As B sees a frame: source and destination.
    pub fn seen(&self) -> (IpAddr, IpAddr) {
        self.addresses[1]
    }

    /// From now on frames have this sum under UDP's checksum as B sees them, without L4 ports and sequence number.
    pub fn prepare(&mut self, sum: u32) {
        self.sum = sum;
    }

    /// A frame is sent.
    #[inline]
    pub fn send(&mut self, seq: u16, ports: (u16, u16)) {
        self.sent[usize::from(seq) % REMEMBERED] = ports;
    }

    /// Checks a frame of UDP that arrived, from its first octet to the sequence number behind the UDP header.
    ///
    /// # Errors
    /// It is not what it has to be.
    #[inline]
    pub fn check(&mut self, seq: u16, frame: &[u8], udp_bytes: u16) -> Result<()> {
        let l4_at = if self.six { 54 } else { 34 };
        let (src, dst) = self.sent[usize::from(seq) % REMEMBERED];
        let udp = &frame[l4_at..l4_at + 8];
        let src = match &mut self.chosen {
            Some(chosen) => chosen.port(src, u16::from_be_bytes([udp[0], udp[1]]))?,
            None => src,
        };
        let dst = self.dst_port.unwrap_or(dst);
        let sum = checksum(self.sum + u32::from(src) + u32::from(dst) + u32::from(seq));
        let ([a, b], [c, d], [e, f], [g, h]) =
            (src.to_be_bytes(), dst.to_be_bytes(), udp_bytes.to_be_bytes(), sum.to_be_bytes());
        let is_right = match self.six {
            true => frame[22..54] == self.octets,
            false => frame[26..34] == self.octets[..8] && sum_of_header(&frame[ETHER_BYTES..34]) == 0xffff,
        };
        if !is_right || *udp != [a, b, c, d, e, f, g, h] {
            bail!(
                "{} -> {} with UDP header {:02x?} has to arrive, not {frame:02x?}",
                self.seen().0,
                self.seen().1,
                [a, b, c, d, e, f, g, h]
            );
        }
        Ok(())
    }

    /// Checks the first frame of a flow at B. Returns its L4 ports there.
    ///
    /// # Errors
    /// It is not what it has to be.
    pub fn opened(&mut self, (src, dst): (u16, u16), frame: &Frame) -> Result<(u16, u16)> {
        let seen = tuple(frame)?;
        let src = match &mut self.chosen {
            Some(chosen) => chosen.port(src, seen.2)?,
            None => src,
        };
        let expected = (self.addresses[1].0, self.addresses[1].1, src, self.dst_port.unwrap_or(dst));
        ensure!(seen == expected, "a flow has to arrive as {expected:?}, not as {seen:?}");
        Ok((seen.2, seen.3))
    }

    /// Checks its first answer at A.
    ///
    /// # Errors
    /// It is not what it has to be.
    pub fn answered(&self, (src, dst): (u16, u16), frame: &Frame) -> Result<()> {
        let expected = (self.addresses[0].1, self.addresses[0].0, dst, src);
        let seen = tuple(frame)?;
        ensure!(seen == expected, "an answer has to arrive as {expected:?}, not as {seen:?}");
        Ok(())
    }
}

/// Addresses and L4 ports of UDP.
fn tuple(frame: &Frame) -> Result<(IpAddr, IpAddr, u16, u16)> {
    match &frame.body {
        Body::Ip { src, dst, l4: L4::Udp { src_port, dst_port, .. }, .. } => Ok((*src, *dst, *src_port, *dst_port)),
        other => bail!("not UDP: {other:?}"),
    }
}

/// The checksum field for an unfolded sum; 0 means "none" in UDP, so it is sent as its twin.
#[inline]
pub fn checksum(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let folded = ((once & 0xffff) + (once >> 16)) as u16;
    if folded == 0xffff { 0xffff } else { !folded }
}

/// The sum of an IPv4 header with its checksum: all ones if it is right, in either order of octets (RFC 1071 §2).
#[inline]
fn sum_of_header(header: &[u8]) -> u16 {
    let words = header.as_chunks::<4>().0.iter();
    let sum: u64 = words.map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let once = (sum & 0xffff_ffff) + (sum >> 32);
    let twice = (once & 0xffff) + (once >> 16 & 0xffff) + (once >> 32);
    let thrice = (twice & 0xffff) + (twice >> 16);
    ((thrice & 0xffff) + (thrice >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use hostweave_guest::frames::Path;

    use super::*;
    use crate::flows::DST_PORT_FIRST;

    /// A frame as B sees it, with its sequence number.
    fn frame(way: Way, six: bool, (src, dst): (u16, u16), seq: u16) -> Vec<u8> {
        let (from, to) = way.addresses(six)[1];
        let mut payload = vec![0x5a; 64 - if six { 62 } else { 42 }];
        payload[..2].copy_from_slice(&seq.to_be_bytes());
        Path::new([2; 6], [4; 6], from, to).udp(src, dst, &payload)
    }

    fn expected(way: Way, six: bool) -> Expected {
        let mut expected = Expected::new(way, six);
        let plain = frame(way, six, (0, 0), 0);
        let at = if six { 60 } else { 40 };
        expected.prepare(u32::from(!u16::from_be_bytes([plain[at], plain[at + 1]])));
        expected
    }

    #[test]
    fn what_is_right_passes_and_each_octet_counts() {
        let ways = [Way::Stay, Way::Nat, Way::Attached, Way::Service { range: false }, Way::Service { range: true }];
        for (way, six) in ways.into_iter().flat_map(|way| [(way, false), (way, true)]) {
            let udp_bytes = if six { 10 } else { 30 };
            let mut expected = expected(way, six);
            let dst = if way == (Way::Service { range: false }) { TARGET_PORT } else { DST_PORT_FIRST };
            for seq in 1..1000 {
                let src = 10_000 + seq;
                expected.send(seq, (src, DST_PORT_FIRST));
                let right = frame(way, six, (src, dst), seq);
                expected.check(seq, &right, udp_bytes).unwrap();
            }
            // Addresses, L4 ports, length and checksum; of IPv4 the whole header.
            for at in if six { 22..62 } else { 14..42 } {
                let mut wrong = frame(way, six, (10_001, dst), 1);
                wrong[at] ^= 1;
                assert!(expected.check(1, &wrong, udp_bytes).is_err(), "{way:?} {six} {at}");
            }
        }
    }

    #[test]
    fn what_nat_chose_stays_and_is_of_one_source_port_alone() {
        let mut expected = expected(Way::Nat, false);
        for (seq, src, seen, is_right) in [
            (1, 10_000, 40_000, true),
            (2, 10_000, 40_000, true),
            (3, 10_000, 40_001, false),
            (4, 10_001, 40_000, false),
            (5, 10_001, 40_001, true),
        ] {
            expected.send(seq, (src, DST_PORT_FIRST));
            let frame = frame(Way::Nat, false, (seen, DST_PORT_FIRST), seq);
            assert_eq!(expected.check(seq, &frame, 30).is_ok(), is_right, "{seq}");
        }
    }
}
