//! Rate limits of a port: packets and bits per second, each with a burst, in both directions, and again for what passes the
//! uplink.
//!
//! Each is a generic cell rate algorithm: one word says when the port will have paid for everything that it was let through.
//! Workers share it, and none waits: who loses a race tries again a few times, and then passes without paying. A frame passes
//! whole while the port is less than its burst ahead of its rate, and is paid for in full: one of 64 KiB counts as many packets
//! as it will be on the wire, with a header each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::Packet;

/// How often a worker tries to be the one that writes.
const TRIES: usize = 4;

/// Ticks of a nanosecond: 64-bit counts of them last nine years.
const TICKS_PER_NS: u64 = 64;

/// Units per second, and how many may come at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Units per second, at least 1; of bits at least 1000.
    pub per_s: u64,
    /// Units at once after a pause.
    pub burst: u64,
}

/// Of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    /// Packets, as on the wire.
    pub packets: Option<Rate>,
    /// Bits of frames, as on the wire, without preamble and check sequence.
    pub bits: Option<Rate>,
}

/// Of one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortRates {
    /// What the guest sends.
    pub egress: Rates,
    /// What the guest receives.
    pub ingress: Rates,
    /// What the guest sends through the uplink, besides.
    pub uplink_egress: Rates,
    /// What the guest receives from the uplink, besides.
    pub uplink_ingress: Rates,
}

/// The state of a port's limits.
#[derive(Debug)]
pub struct RateLimits {
    egress: [Limit; 2],
    ingress: [Limit; 2],
}

impl RateLimits {
    /// Nothing has passed yet; `None` for a port without limits.
    pub fn new(rates: &PortRates) -> Option<Arc<Self>> {
        (*rates != PortRates::default()).then(|| {
            Arc::new(Self {
                egress: [Limit::new(&rates.egress), Limit::new(&rates.uplink_egress)],
                ingress: [Limit::new(&rates.ingress), Limit::new(&rates.uplink_ingress)],
            })
        })
    }

    /// Whether the guest may send this packet now; it is paid for then.
    pub fn egress(&self, packet: &Packet, uplink: bool, now_ticks: u64) -> bool {
        pay(&self.egress, packet, uplink, now_ticks)
    }

    /// Whether the guest may receive this packet now; it is paid for then.
    pub fn ingress(&self, packet: &Packet, uplink: bool, now_ticks: u64) -> bool {
        pay(&self.ingress, packet, uplink, now_ticks)
    }
}

/// Nanoseconds as ticks, for [`RateLimits`].
#[inline]
pub fn ticks(nanos: u64) -> u64 {
    nanos.wrapping_mul(TICKS_PER_NS)
}

/// What has no room anywhere pays nowhere.
fn pay([total, outside]: &[Limit; 2], packet: &Packet, uplink: bool, now: u64) -> bool {
    let cost = cost(packet);
    if !total.has_room(now) || (uplink && !outside.has_room(now)) {
        return false;
    }
    total.pay(cost, now);
    if uplink {
        outside.pay(cost, now);
    }
    true
}

/// Packets and bits on the wire.
fn cost(packet: &Packet) -> (u64, u64) {
    let octets = packet.len() as u64;
    let offload = &packet.meta.offload;
    if !offload.is_gso() {
        return (1, octets * 8);
    }
    let headers = u64::from(packet.meta.layers.l5);
    let segments = octets.saturating_sub(headers).div_ceil(u64::from(offload.gso_size).max(1)).max(1);
    (segments, (octets + (segments - 1) * headers) * 8)
}

#[derive(Debug)]
struct Limit {
    packets: Option<Meter>,
    bits: Option<Meter>,
}

impl Limit {
    fn new(rates: &Rates) -> Self {
        Self { packets: rates.packets.map(Meter::new), bits: rates.bits.map(Meter::new) }
    }

    fn has_room(&self, now: u64) -> bool {
        self.packets.iter().chain(&self.bits).all(|meter| meter.has_room(now))
    }

    fn pay(&self, (packets, bits): (u64, u64), now: u64) {
        self.packets.iter().for_each(|meter| meter.pay(packets, now));
        self.bits.iter().for_each(|meter| meter.pay(bits, now));
    }
}

/// One rate.
#[derive(Debug)]
struct Meter {
    /// Tick at which everything that passed is paid for.
    paid_at: AtomicU64,
    /// Millionths of a tick that a unit costs.
    price: u64,
    /// Ticks that the port may be ahead.
    ahead_max: u64,
}

impl Meter {
    fn new(rate: Rate) -> Self {
        let per_s = u128::from(rate.per_s.max(1));
        let second = u128::from(TICKS_PER_NS) * 1_000_000_000;
        let small = |number: u128| u64::try_from(number).unwrap_or(u64::MAX >> 1);
        Self {
            paid_at: AtomicU64::new(0),
            price: small(second * 1_000_000 / per_s),
            ahead_max: small(second * u128::from(rate.burst.max(1) - 1) / per_s),
        }
    }

    fn has_room(&self, now: u64) -> bool {
        self.paid_at.load(Ordering::Relaxed) <= now.saturating_add(self.ahead_max)
    }

    fn pay(&self, units: u64, now: u64) {
        let cost = (u128::from(self.price) * u128::from(units) / 1_000_000) as u64;
        let mut seen = self.paid_at.load(Ordering::Relaxed);
        for _ in 0..TRIES {
            let next = seen.max(now).saturating_add(cost);
            match self.paid_at.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(newer) => seen = newer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HEAD_FIRST;
    use crate::packet::{Burst, Layers, Meta, Offload, virtio_net};

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        for per_s in [1, 3, 1_000, 1_000_000, 100_000_000] {
            let meter = Meter::new(Rate { per_s, burst: 10 });
            let begin = ticks(5 * SECOND);
            let take = |now| {
                let room = meter.has_room(now);
                if room {
                    meter.pay(1, now);
                }
                room
            };
            assert_eq!((0..100).filter(|_| take(begin)).count(), 10, "{per_s}");
            // After the time of three units, three more.
            let later = begin + ticks(3 * SECOND / per_s) + 64;
            assert_eq!((0..100).filter(|_| take(later)).count(), 3, "{per_s}");
            // After a long pause a burst, not what a pause would have let through.
            assert_eq!((0..100).filter(|_| take(later + ticks(3_600 * SECOND))).count(), 10, "{per_s}");
        }
    }

    /// How many of a thousand frames pass at once.
    fn passed(rates: &PortRates, frame: usize, gso_size: u16, uplink: bool) -> (usize, usize) {
        let gso_type = if gso_size > 0 { virtio_net::GSO_TCPV4 } else { virtio_net::GSO_NONE };
        let offload = Offload { gso_type, gso_size, ..Offload::default() };
        let meta = Meta { offload, layers: Layers { l3: 14, l4: 34, l5: 54 }, ..Meta::default() };
        let limits = RateLimits::new(rates).unwrap();
        Burst::new().with_frame(meta, &vec![0; frame], HEAD_FIRST, |packet, _| {
            let count = |direction: &dyn Fn() -> bool| (0..1000).filter(|_| direction()).count();
            let now = ticks(SECOND);
            (count(&|| limits.egress(packet, uplink, now)), count(&|| limits.ingress(packet, uplink, now)))
        })
    }

    #[test]
    fn large_frames_pay_for_each_of_their_segments() {
        let packets = |burst| Rates { packets: Some(Rate { per_s: 1_000, burst }), bits: None };
        let rates = PortRates { egress: packets(100), ..PortRates::default() };
        assert_eq!(passed(&rates, 1_054, 0, false), (100, 1_000));
        // 10 segments each: the first ten frames; the burst is not torn.
        assert_eq!(passed(&rates, 54 + 10 * 1_000, 1_000, false), (10, 1_000));
        let bits = Rates { packets: None, bits: Some(Rate { per_s: 1_000_000, burst: 80_000 }) };
        let rates = PortRates { ingress: bits, ..PortRates::default() };
        assert_eq!(passed(&rates, 1_000, 0, false), (1_000, 10));
        // Ten times 1000 octets with a header each.
        assert_eq!(passed(&rates, 50_054, 5_000, false), (1_000, 1));
        assert_eq!(cost_of(54 + 2_500, 1_000), (3, (54 * 3 + 2_500) * 8));
    }

    fn cost_of(frame: usize, gso_size: u16) -> (u64, u64) {
        let offload = Offload { gso_type: virtio_net::GSO_TCPV4, gso_size, ..Offload::default() };
        let meta = Meta { offload, layers: Layers { l3: 14, l4: 34, l5: 54 }, ..Meta::default() };
        Burst::new().with_frame(meta, &vec![0; frame], HEAD_FIRST, |packet, _| cost(packet))
    }

    #[test]
    fn the_uplink_has_limits_of_its_own_besides() {
        let packets = |burst| Rates { packets: Some(Rate { per_s: 1, burst }), bits: None };
        let rates = PortRates {
            egress: packets(100),
            uplink_egress: packets(7),
            uplink_ingress: packets(5),
            ..PortRates::default()
        };
        assert_eq!(passed(&rates, 64, 0, false), (100, 1_000));
        assert_eq!(passed(&rates, 64, 0, true), (7, 5));
        assert!(RateLimits::new(&PortRates::default()).is_none());
    }
}
