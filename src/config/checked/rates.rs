//! `Port.spec.limits`, as far as it is about packets and bits per second, checked.

use hostweave_switch::rate::{PortRates, Rate, Rates};

use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::port as raw;

/// Parts of a second that a burst lasts where none is written: 20 milliseconds.
const BURSTS_PER_S: u64 = 50;

/// What a unit may be: the least and the most of a rate, and the least burst where none is written.
struct Unit {
    name: &'static str,
    burst_name: &'static str,
    min: u64,
    max: u64,
    burst_min: u64,
}

const PACKETS: Unit =
    Unit { name: "packetsPerSecond", burst_name: "burstPackets", min: 1, max: 1_000_000_000, burst_min: 64 };

/// Two frames of 64 KiB.
const BITS: Unit =
    Unit { name: "bitsPerSecond", burst_name: "burstBits", min: 1_000, max: 1_000_000_000_000, burst_min: 1 << 20 };

/// Checks what is written; values of fields that have a problem are meaningless.
pub(super) fn check(raw: Option<&raw::Limits>, path: &Path, problems: &mut Vec<Problem>) -> PortRates {
    let Some(raw) = raw else { return PortRates::default() };
    let uplink = raw.uplink.as_ref();
    let outside = path.key("uplink");
    PortRates {
        egress: rates(raw.egress.as_ref(), &path.key("egress"), problems),
        ingress: rates(raw.ingress.as_ref(), &path.key("ingress"), problems),
        uplink_egress: rates(uplink.and_then(|uplink| uplink.egress.as_ref()), &outside.key("egress"), problems),
        uplink_ingress: rates(uplink.and_then(|uplink| uplink.ingress.as_ref()), &outside.key("ingress"), problems),
    }
}

fn rates(raw: Option<&raw::Rates>, path: &Path, problems: &mut Vec<Problem>) -> Rates {
    let Some(raw) = raw else { return Rates::default() };
    Rates {
        packets: rate(raw.packets_per_second, raw.burst_packets, &PACKETS, path, problems),
        bits: rate(raw.bits_per_second, raw.burst_bits, &BITS, path, problems),
    }
}

fn rate(per_s: Option<u64>, burst: Option<u64>, unit: &Unit, path: &Path, problems: &mut Vec<Problem>) -> Option<Rate> {
    let mut within = |value: Option<u64>, name: &str, min: u64| {
        let value = value?;
        if !(min..=unit.max).contains(&value) {
            let path = path.key(name);
            let message = format!("{path} {value} is out of range: {min} to {} are allowed", unit.max);
            problems.push(Problem::value(&path, "out_of_range", message).label(format!("{min} to {}", unit.max)));
        }
        Some(value)
    };
    let (per_s, burst) = (within(per_s, unit.name, unit.min), within(burst, unit.burst_name, 1));
    if per_s.is_none() && burst.is_some() {
        let path = path.key(unit.burst_name);
        let message = format!("{path} has no meaning without {}", unit.name);
        problems.push(Problem::key(&path, "conflict", message).label(format!("needs {}", unit.name)));
    }
    let per_s = per_s?;
    Some(Rate { per_s, burst: burst.unwrap_or((per_s / BURSTS_PER_S).max(unit.burst_min)) })
}
