//! `NatPool` and `AddressPool`, checked.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use hostweave_nat::{BLOCKS_MAX, Limits, MAPPINGS_MAX};
use hostweave_policy::model::Selector;

use super::{range, selector};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::raw::address_pool as raw_addresses;
use crate::config::raw::nat_pool as raw_nat;
use crate::fabric::spec::Filtering;

pub use raw_addresses::PoolType;

/// Addresses of one NAT pool: each has its own bitmap of L4 ports.
const NAT_ADDRESSES_MAX: u128 = 4096;

/// Ranges of one AddressPool.
const RANGES_MAX: usize = 256;

/// L4 ports of a block, where nothing is written.
const BLOCK_SIZE_DEFAULT: u32 = 512;

/// L4 ports of a workload, where nothing is written.
const PORTS_MAX_DEFAULT: u32 = 4096;

/// L4 ports that an address has for translations: 1024 to 65535 (RFC 4787 REQ-3).
const PORTS_PER_ADDRESS: u32 = 64_512;

/// NAT addresses, and whom they serve.
#[derive(Clone, PartialEq, Debug)]
pub struct NatPool {
    /// Its addresses as written; none overlap.
    pub ranges: Vec<Range>,
    /// Each of them, in that order.
    pub addresses: Vec<IpAddr>,
    /// Those that take no new connections.
    pub draining: Vec<IpAddr>,
    /// Names of the networks that it serves; empty for all of them.
    pub networks: Vec<String>,
    /// Which ports it serves, by their labels.
    pub selector: Selector,
    /// Ports of which namespaces, by their labels.
    pub namespaces: Selector,
    /// L4 ports per block, a power of two.
    pub block_size: u16,
    /// Blocks that a workload gets at once, and at most.
    pub blocks: RangeInclusive<u16>,
    /// Who may send to a mapping from outside.
    pub filtering: Filtering,
    /// Whether TCP connections may share an L4 port when the blocks are full.
    pub overload: bool,
    /// What one port may have, besides blocks.
    pub limits: Limits,
}

impl NatPool {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(raw: &raw_nat::NatPoolSpec, problems: &mut Vec<Problem>) -> Self {
        let spec = Path::of("spec");
        let (ranges, addresses) = addresses(&raw.addresses, &spec.key("addresses"), true, problems);
        let draining_path = spec.key("draining");
        let (_, draining) = self::addresses(&raw.draining, &draining_path, false, problems);
        if let Some(stranger) = draining.iter().find(|address| !addresses.contains(address)) {
            let message = format!("{draining_path} has {stranger}, which spec.addresses has not");
            problems.push(Problem::value(&draining_path, "not_found", message).label("not all of this pool"));
        }
        let path = spec.key("networks");
        for (index, name) in raw.networks.iter().enumerate() {
            if let Err(reason) = names::check_dns_subdomain(name) {
                let path = path.index(index);
                let message = format!("{path} {name:?} {reason}");
                problems.push(Problem::value(&path, "invalid_name", message).label("not a valid name"));
            }
        }
        let select = |raw, key: &str, problems: &mut Vec<Problem>| {
            selector::check_option(raw, &spec.key(key), problems).unwrap_or_default()
        };
        let (block_size, blocks) = blocks(raw.port_block.as_ref(), &spec.key("portBlock"), problems);
        Self {
            ranges,
            addresses,
            draining,
            networks: raw.networks.clone(),
            selector: select(raw.selector.as_ref(), "selector", problems),
            namespaces: select(raw.namespace_selector.as_ref(), "namespaceSelector", problems),
            block_size,
            blocks,
            filtering: match raw.filtering {
                Some(raw_nat::Filtering::EndpointIndependent) => Filtering::EndpointIndependent,
                Some(raw_nat::Filtering::AddressDependent) => Filtering::AddressDependent,
                Some(raw_nat::Filtering::AddressAndPortDependent) | None => Filtering::AddressAndPortDependent,
            },
            overload: raw.overload.unwrap_or(true),
            limits: limits(raw.limits.as_ref(), &spec.key("limits"), problems),
        }
    }

    /// Whether it has addresses for a network.
    pub fn serves(&self, network: &str, ipv4: bool) -> bool {
        let named = self.networks.is_empty() || self.networks.iter().any(|name| name == network);
        named && self.addresses.iter().any(|address| address.is_ipv4() == ipv4)
    }
}

/// Addresses for Services.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressPool {
    /// Who can reach them.
    pub pool_type: PoolType,
    /// Its ranges, none of which overlap.
    pub ranges: Vec<Range>,
}

impl AddressPool {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(raw: &raw_addresses::AddressPoolSpec, problems: &mut Vec<Problem>) -> Self {
        let path = Path::of("spec.addresses");
        if raw.addresses.len() > RANGES_MAX {
            let message = format!("{path} has {} ranges; at most {RANGES_MAX} are allowed", raw.addresses.len());
            problems.push(Problem::value(&path, "out_of_range", message).label("too many"));
        }
        Self { pool_type: raw.pool_type, ranges: ranges(&raw.addresses, &path, true, problems) }
    }

    /// Whether an address is one of its own.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

/// Ranges that do not overlap.
fn ranges(texts: &[String], path: &Path, needed: bool, problems: &mut Vec<Problem>) -> Vec<Range> {
    if needed && texts.is_empty() {
        let problem = Problem::value(path, "missing_field", format!("{path} is empty: a pool needs addresses"));
        problems.push(problem.label("for example [203.0.113.0/26]"));
    }
    let mut ranges: Vec<Range> = Vec::with_capacity(texts.len().min(RANGES_MAX));
    for (index, text) in texts.iter().enumerate().take(RANGES_MAX) {
        let path = path.index(index);
        match Range::parse(text) {
            Err((reason, help)) => {
                let problem = Problem::value(&path, "invalid_address", format!("{path} {text:?} {reason}"));
                problems.push(problem.label("not usable").help(help));
            }
            Ok(range) => match ranges.iter().find(|other| other.overlaps(&range)) {
                Some(other) => {
                    let message = format!("{path} {text} overlaps {other}, which is listed already");
                    problems.push(Problem::value(&path, "duplicate", message).label("second time"));
                }
                None => ranges.push(range),
            },
        }
    }
    ranges
}

/// Every address of ranges that are not too large.
fn addresses(texts: &[String], path: &Path, needed: bool, problems: &mut Vec<Problem>) -> (Vec<Range>, Vec<IpAddr>) {
    let ranges = ranges(texts, path, needed, problems);
    let count = ranges.iter().fold(0_u128, |sum, range| sum.saturating_add(range.count()));
    if count > NAT_ADDRESSES_MAX || texts.len() > RANGES_MAX {
        let message = format!("{path} has {count} addresses; a pool has room for {NAT_ADDRESSES_MAX}");
        problems.push(Problem::value(path, "out_of_range", message).label("too many"));
        return (Vec::new(), Vec::new());
    }
    let addresses = ranges.iter().flat_map(Range::addresses).collect();
    (ranges, addresses)
}

/// What one port may have of the table of mappings.
fn limits(raw: Option<&raw_nat::NatLimits>, path: &Path, problems: &mut Vec<Problem>) -> Limits {
    let Some(raw) = raw else { return Limits::default() };
    let mut limit = |written, key| range(written, 1, MAPPINGS_MAX, &path.key(key), problems);
    Limits {
        mappings: limit(raw.mappings, "mappings"),
        rate: limit(raw.new_mappings_per_second, "newMappingsPerSecond"),
    }
}

/// Size of a block, and how many of them a workload gets.
fn blocks(raw: Option<&raw_nat::PortBlock>, path: &Path, problems: &mut Vec<Problem>) -> (u16, RangeInclusive<u16>) {
    let none = raw_nat::PortBlock::default();
    let raw = raw.unwrap_or(&none);
    let size = range(raw.size, 64, 4096, &path.key("size"), problems).unwrap_or(BLOCK_SIZE_DEFAULT);
    if !size.is_power_of_two() {
        let path = path.key("size");
        let message = format!("{path} {size} is not a power of two");
        problems.push(
            Problem::value(&path, "out_of_range", message).label(format!("for example {}", size.next_power_of_two())),
        );
        return (512, 1..=8);
    }
    let mut ports = |written, key: &str, default| {
        let path = path.key(key);
        let ports: u32 = range(written, size, PORTS_PER_ADDRESS, &path, problems).unwrap_or(default);
        if !ports.is_multiple_of(size) {
            let message = format!("{path} {ports} is not a multiple of {size}, the size of a block");
            let label = format!("for example {}", ports.next_multiple_of(size));
            problems.push(Problem::value(&path, "out_of_range", message).label(label));
        }
        ports
    };
    let min = ports(raw.min, "min", size);
    let max = ports(raw.max, "max", PORTS_MAX_DEFAULT.max(min));
    if max < min {
        let path = path.key("max");
        let message = format!("{path} {max} is less than min, {min}");
        problems.push(Problem::value(&path, "out_of_range", message).label("less than min"));
    }
    let most = size * u32::from(BLOCKS_MAX);
    if max > most {
        // Without max, min is what is written.
        let path = path.key(if raw.max.is_some() { "max" } else { "min" });
        let message = format!("{path} {max} is {} blocks of {size}; a workload has at most {BLOCKS_MAX}", max / size);
        let larger = max.div_ceil(u32::from(BLOCKS_MAX)).next_power_of_two();
        let problem = Problem::value(&path, "out_of_range", message).label(format!("at most {most}"));
        problems.push(problem.help(format!("write size: {larger}")));
    }
    // At most 4096, and 64512 / 64.
    let small = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    (small(size), small(min / size)..=small(max / size))
}
