//! What becomes of the packets of one flow that crosses, made ready: the very words that are written into them.
//!
//! [`crate::cross`] finds them out for one packet: addresses, L4 ports, differences of checksums, link addresses, MTU, and whether the
//! source is the host's to use. Nothing of it changes between two packets of a flow while neither its connection nor the tables do,
//! so the next one gets it out of one cache line beside its flow's ([`crate::flow::FlowCache`]). Packets that need more than that
//! take the long way: fragments, headers with options, everything but TCP and UDP, a SYN whose MSS may have to be clamped, what must not go on.

use crate::connection::Change;
use crate::limits::HEADROOM;
use crate::packet::{L3, Packet};
use crate::route;
use crate::shared::Line;
use crate::translate::{DONT_FRAGMENT, IPV4_FLAGS};
use crate::wire::checksum::combine;
use crate::wire::{array, ethernet, ipv4, ipv6, proto, tcp};

/// What the packets of a flow become.
///
/// Words as they are loaded and stored on this machine: the first octet in memory is the lowest. Counted in words from the start of the
/// frame, the first four are 3 and 4 of an IPv4 packet, or 3 to 6 of an IPv6 packet, with zeros where the packet's own octets stay. The fifth
/// holds the bits of words 2 and 7 of an IPv6 packet that change (`shared`), or the difference of an IPv4 header's checksum; then what a
/// partial checksum changes by, and any other. The sixth is word 0.
#[derive(Clone, Copy, Debug)]
pub struct Rewriting(Line);

/// The lower half of word 1 of the frame, the MTU, [`V6`], [`TCP`] and [`CLAMPS`].
const MORE: usize = 6;
/// Whose line it is.
const TAG: usize = 7;

/// It is IPv6.
const V6: u64 = 1 << 63;
/// It is TCP.
const TCP: u64 = 1 << 62;
/// The MSS of its SYNs may have to be clamped.
const CLAMPS: u64 = 1 << 61;

/// Where a transport header begins that no option or extension header precedes.
const L4_V4: u16 = (ethernet::HEADER_LEN + ipv4::HEADER_LEN) as u16;
const L4_V6: u16 = (ethernet::HEADER_LEN + ipv6::HEADER_LEN) as u16;

/// What is written of a frame: up to the checksum of TCP behind an IPv6 header, in whole words.
type Frame = [u8; 72];

impl Rewriting {
    /// For packets like this one, which [`crate::cross::cross`] has just let go: what it wrote, and what of that stands in a packet's own
    /// octets is not looked at again. `before` is what [`shared_of`] said of it until then. `None` when the next one may need another look.
    pub(crate) fn of(packet: &mut Packet, before: u32, change: &Change, mtu: u16, clamps: bool) -> Option<Self> {
        let meta = packet.meta;
        let tcp = match meta.proto {
            proto::TCP => TCP,
            proto::UDP => 0,
            _ => return None,
        };
        let l4 = match meta.l3 {
            L3::V4 => L4_V4,
            L3::V6 => L4_V6,
            L3::Arp | L3::None => return None,
        };
        if meta.layers.l4 != l4 || meta.later_fragment {
            return None;
        }
        let frame = packet.slot()[HEADROOM..].first_chunk_mut()?;
        let (words, low, v6) = if l4 == L4_V4 {
            // RFC 1624: the word whose upper octet is the TTL loses 0x0100.
            let header = combine(change.address_sum, !0x0100).to_be();
            ([word(frame, 3) >> 16 << 16, word(frame, 4) << 16 >> 16, 0, 0], u64::from(header) << 16, 0)
        } else {
            let words = [word(frame, 3), word(frame, 4), word(frame, 5), word(frame, 6)];
            (words, (before ^ shared(frame)).into(), V6)
        };
        let [a, b, c, d] = words;
        let sums = [change.address_sum, combine(change.address_sum, change.port_sum)].map(|sum| u64::from(sum.to_be()));
        let flags = v6 | tcp | if clamps { CLAMPS } else { 0 };
        let more = word(frame, 1) & 0xffff_ffff | u64::from(mtu) << 32 | flags;
        Some(Self(Line([a, b, c, d, low | sums[0] << 32 | sums[1] << 48, word(frame, 0), more, 0])))
    }

    /// As a line that belongs to a record, named by its index and generation in one word.
    #[inline]
    pub(crate) fn to_line(self, record: u64) -> Line {
        let Self(Line(mut words)) = self;
        words[TAG] = !record;
        Line(words)
    }

    /// What a line holds, if it belongs to this record. One of zeros is nobody's: no record has the last index of all.
    #[inline(always)]
    pub(crate) fn of_line(line: &Line, record: u64) -> Option<Self> {
        (line.0[TAG] == !record).then_some(Self(*line))
    }

    /// Makes a packet of UDP what it has to become, and takes one off its TTL. `false` when it is not like its flow's others, or may not go
    /// on: it is as it was then.
    #[inline(always)]
    pub fn apply_udp(&self, packet: &mut Packet) -> bool {
        self.apply::<false>(packet)
    }

    /// The same of TCP.
    #[inline(always)]
    pub fn apply_tcp(&self, packet: &mut Packet) -> bool {
        self.apply::<true>(packet)
    }

    #[inline(always)]
    fn apply<const IS_TCP: bool>(&self, packet: &mut Packet) -> bool {
        debug_assert_eq!(self.0.0[MORE] & TCP != 0, IS_TCP);
        let more = self.0.0[MORE];
        if more & V6 == 0 { self.apply_v4::<IS_TCP>(packet, more) } else { self.apply_v6::<IS_TCP>(packet, more) }
    }

    #[inline(always)]
    fn apply_v4<const IS_TCP: bool>(&self, packet: &mut Packet, more: u64) -> bool {
        const TTL: usize = ethernet::HEADER_LEN + 8;
        let partial = packet.meta.offload.needs_csum();
        let Some(frame) = like_the_others::<IS_TCP>(packet, more, L4_V4, TTL) else { return false };
        let [first, second, _, _, rest, link, ..] = self.0.0;
        set_link(frame, link, more);
        set_word(frame, 2, word(frame, 2).wrapping_sub(1 << 48));
        let header = !combine(!(word(frame, 3) as u16), (rest >> 16) as u16);
        set_word(frame, 3, first | u64::from(header));
        set_word(frame, 4, second | word(frame, 4) >> 48 << 48);
        if IS_TCP {
            let old = word(frame, 6);
            let new = covered((old >> 16) as u16, rest, partial);
            set_word(frame, 6, old & !(0xffff << 16) | u64::from(new) << 16);
        } else {
            let old = word(frame, 5);
            set_word(frame, 5, old >> 16 << 16 | u64::from(udp_covered(old as u16, rest, partial)));
        }
        true
    }

    #[inline(always)]
    fn apply_v6<const IS_TCP: bool>(&self, packet: &mut Packet, more: u64) -> bool {
        const HOP_LIMIT: usize = ethernet::HEADER_LEN + 7;
        let partial = packet.meta.offload.needs_csum();
        let Some(frame) = like_the_others::<IS_TCP>(packet, more, L4_V6, HOP_LIMIT) else { return false };
        let [first, second, third, fourth, rest, link, ..] = self.0.0;
        set_link(frame, link, more);
        set_word(frame, 2, word(frame, 2).wrapping_sub(1 << 40) ^ rest << 48);
        set_word(frame, 3, first);
        set_word(frame, 4, second);
        set_word(frame, 5, third);
        set_word(frame, 6, fourth);
        let old = word(frame, 7) ^ (rest >> 16 & 0xffff);
        if IS_TCP {
            set_word(frame, 7, old);
            let old = word(frame, 8);
            set_word(frame, 8, old << 16 >> 16 | u64::from(covered((old >> 48) as u16, rest, partial)) << 48);
        } else {
            let checksum = (old >> 32) as u16;
            set_word(frame, 7, old ^ u64::from(checksum ^ udp_covered(checksum, rest, partial)) << 32);
        }
        true
    }
}

/// What changes in words that an IPv6 packet has octets of its own in, before it is changed ([`shared`]).
pub(crate) fn shared_of(packet: &mut Packet) -> u32 {
    packet.slot()[HEADROOM..].first_chunk().map_or(0, shared)
}

/// The first octets of the source address, in word 2 of an IPv6 packet, and its L4 destination port, in word 7. All packets of a flow have
/// the same, so their difference turns each into what it has to become.
fn shared(frame: &Frame) -> u32 {
    (word(frame, 2) >> 48) as u32 | (word(frame, 7) as u32) << 16
}

/// The octets of a packet that its [`Rewriting`] suits. `ttl` is where the TTL stands, or the hop limit.
#[inline(always)]
fn like_the_others<const IS_TCP: bool>(packet: &mut Packet, more: u64, l4: u16, ttl: usize) -> Option<&mut Frame> {
    const GROUP: u8 = 1;
    let meta = &packet.meta;
    let too_long = route::widest(packet) > u32::from((more >> 32) as u16);
    if meta.layers.l4 != l4 || meta.later_fragment || too_long {
        return None;
    }
    let frame: &mut Frame = packet.slot()[HEADROOM..].first_chunk_mut()?;
    // RFC 1812 §5.3.1; RFC 1122 §3.3.6.
    if frame[ttl] <= 1 || frame[0] & GROUP != 0 {
        return None;
    }
    // What may be fragmented gets another identification (`translate`), and all of its fragments the same one.
    if l4 == L4_V4 && frame[ethernet::HEADER_LEN + IPV4_FLAGS] & DONT_FRAGMENT == 0 {
        return None;
    }
    let clamped = IS_TCP && frame[usize::from(l4) + TCP_FLAGS] & tcp::flags::SYN != 0 && more & CLAMPS != 0;
    (!clamped).then_some(frame)
}

/// Where the flags of TCP stand in its header.
const TCP_FLAGS: usize = 13;

#[inline(always)]
fn set_link(frame: &mut Frame, link: u64, more: u64) {
    set_word(frame, 0, link);
    set_word(frame, 1, more & 0xffff_ffff | word(frame, 1) >> 32 << 32);
}

/// The transport checksum, in this machine's order (RFC 1071 §2 (B)). One that is partial is a sum, and covers addresses only.
#[inline(always)]
fn covered(old: u16, rest: u64, partial: bool) -> u16 {
    if partial { combine(old, (rest >> 32) as u16) } else { !combine(!old, (rest >> 48) as u16) }
}

/// RFC 768: zero says that there is none, and one that is zero is sent as all ones.
#[inline(always)]
fn udp_covered(old: u16, rest: u64, partial: bool) -> u16 {
    if old == 0 && !partial {
        return 0;
    }
    let new = covered(old, rest, partial);
    if new == 0 && !partial { u16::MAX } else { new }
}

#[inline(always)]
fn word(frame: &Frame, at: usize) -> u64 {
    u64::from_le_bytes(array(frame, 8 * at))
}

#[inline(always)]
fn set_word(frame: &mut Frame, at: usize, word: u64) {
    frame[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::change;
    use crate::cross::cross;
    use crate::flow::FlowKey;
    use crate::fuzz::{GUEST_A, GUEST_B, NETWORK, tables, v4, v6};
    use crate::packet::{Offload, virtio_net};
    use crate::parse::parse;
    use crate::stage::{DropReason, Verdict};
    use crate::testing::{self, ipv4_frame, ipv6_frame, tcp, udp};
    use proptest::prelude::*;

    /// What differs between the packets of a flow.
    #[derive(Clone, Debug)]
    struct Sample {
        payload: Vec<u8>,
        ttl: u8,
        checksum: u16,
        flags: u8,
        group: bool,
        partial: bool,
        df: bool,
    }

    fn samples() -> impl Strategy<Value = Sample> {
        let checksum = prop_oneof![Just(0), Just(0xffff), any::<u16>()];
        let payload = proptest::collection::vec(any::<u8>(), 0..60);
        let ttl = prop_oneof![9 => 2u8..255, 1 => 0u8..2];
        let rare = prop::bool::weighted(0.1);
        (payload, ttl, checksum, any::<u8>(), rare, any::<bool>(), any::<bool>()).prop_map(
            |(payload, ttl, checksum, flags, group, partial, df)| Sample {
                payload,
                ttl,
                checksum,
                flags,
                group,
                partial,
                df,
            },
        )
    }

    /// A frame of the flow.
    fn frame(six: bool, is_tcp: bool, sample: &Sample) -> Vec<u8> {
        let mut transport = if is_tcp { tcp(4000, 53, &sample.payload) } else { udp(4000, 53, &sample.payload) };
        let place = if is_tcp { 16 } else { 6 };
        transport[place..place + 2].copy_from_slice(&sample.checksum.to_be_bytes());
        if is_tcp {
            transport[TCP_FLAGS] = sample.flags;
        }
        let proto = if is_tcp { 6 } else { 17 };
        let mut frame = match six {
            false => ipv4_frame(v4(GUEST_A), [198, 51, 100, 1].into(), proto, sample.ttl, &transport),
            true => ipv6_frame(v6(GUEST_A), "2001:db8:e::1".parse().unwrap(), proto, sample.ttl, &transport),
        };
        frame[0] |= u8::from(sample.group);
        if !six {
            frame[ethernet::HEADER_LEN + IPV4_FLAGS] = if sample.df { DONT_FRAGMENT } else { 0 };
            ipv4::fill_checksum(frame[ethernet::HEADER_LEN..].first_chunk_mut().unwrap());
        }
        frame
    }

    /// A frame after it was parsed and then changed by `with`, and what that said.
    fn after<T>(six: bool, is_tcp: bool, sample: &Sample, with: impl FnOnce(&mut Packet) -> T) -> (Vec<u8>, T) {
        testing::with(&frame(six, is_tcp, sample), |packet, arena| {
            assert_eq!(parse(packet, arena), Verdict::Continue);
            if sample.partial {
                let (csum_start, csum_offset) = (packet.meta.layers.l4, if is_tcp { 16 } else { 6 });
                packet.meta.offload =
                    Offload { flags: virtio_net::NEEDS_CSUM, csum_start, csum_offset, ..Offload::default() };
            }
            let said = with(packet);
            (packet.head().to_vec(), said)
        })
    }

    /// To another address and L4 port.
    fn translated(packet: &Packet) -> Change {
        let from = FlowKey::of(packet, 0).unwrap();
        let src = from.src() ^ 0x0102_0304;
        change(&from, &FlowKey::new(src, from.dst(), 50_000, from.dst_port(), from.proto(), from.kind()))
    }

    fn long_way(packet: &mut Packet) -> Result<Option<Rewriting>, DropReason> {
        let (tables, change) = (tables(), translated(packet));
        cross(packet, &tables, NETWORK, tables.port(GUEST_B).unwrap(), 0, Some(&change))
    }

    proptest! {
        /// What one packet left behind makes of any other what the long way makes of it; or it leaves it alone, if that is refused.
        #[test]
        fn the_short_way_is_the_long_way(six: bool, is_tcp: bool, first in samples(), second in samples()) {
            let first = Sample { ttl: 64, group: false, df: true, ..first };
            let rewriting = after(six, is_tcp, &first, long_way).1.unwrap().unwrap();
            let (long, refused) = after(six, is_tcp, &second, long_way);
            let (short, done) = after(six, is_tcp, &second, |packet| {
                if is_tcp { rewriting.apply_tcp(packet) } else { rewriting.apply_udp(packet) }
            });
            // What may be fragmented gets another identification, which takes the long way.
            prop_assert_eq!(done, refused.is_ok() && (six || second.df));
            // Of a long frame the head is the start.
            let expected = if done { long } else { frame(six, is_tcp, &second) };
            prop_assert_eq!(&short[..], &expected[..short.len()]);
        }
    }

    #[test]
    fn what_needs_another_look_takes_the_long_way() {
        let sample =
            |flags| Sample { payload: vec![1; 9], ttl: 9, checksum: 7, flags, group: false, partial: false, df: true };
        for six in [false, true] {
            for is_tcp in [false, true] {
                let (_, rewriting) = after(six, is_tcp, &sample(0x10), long_way);
                let rewriting = rewriting.unwrap().unwrap();
                let apply = |edit: fn(&mut Packet)| {
                    after(six, is_tcp, &sample(0x10), |packet| {
                        edit(packet);
                        if is_tcp { rewriting.apply_tcp(packet) } else { rewriting.apply_udp(packet) }
                    })
                    .1
                };
                assert!(apply(|_| {}));
                assert!(!apply(|packet| packet.meta.later_fragment = true));
                assert!(!apply(|packet| packet.meta.layers.l4 += 4), "options");
                assert!(!apply(|packet| packet.meta.l3_len = 1501));
            }
            // Between networks of different MTUs a SYN is looked at, and only a SYN.
            let clamps = after(six, true, &sample(0x10), |packet| {
                long_way(packet).unwrap();
                Rewriting::of(packet, 0, &translated(packet), 1400, true)
            });
            for (flags, passes) in [(0x02, false), (0x12, false), (0x10, true)] {
                let applied = after(six, true, &sample(flags), |packet| clamps.1.unwrap().apply_tcp(packet));
                assert_eq!(applied.1, passes, "{flags:x}");
            }
        }
    }

    #[test]
    fn a_line_of_zeros_and_that_of_another_record_are_nobodys() {
        let sample =
            Sample { payload: vec![], ttl: 9, checksum: 7, flags: 0x10, group: false, partial: false, df: true };
        let rewriting = after(false, false, &sample, long_way).1.unwrap().unwrap();
        for record in [0, 1, 1 << 32, u64::MAX >> 1] {
            assert!(Rewriting::of_line(&Line([0; 8]), record).is_none());
            assert!(Rewriting::of_line(&rewriting.to_line(record), record).is_some());
            assert!(Rewriting::of_line(&rewriting.to_line(record), record ^ 1).is_none());
        }
    }
}
