//! `HostConfig.spec.uplink`, checked.

use std::net::IpAddr;

use hostweave_switch::limits::{MTU_MAX, MTU_MIN};
use ipnet::IpNet;

use super::range;
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::ranges::Range;
use crate::config::raw::host_config as raw;
use crate::fabric::spec::{OnConflict, UplinkDriver, UplinkSpec};

/// Addresses of the host itself at the uplink.
const ADDRESSES_MAX: usize = 64;

/// Default routers.
const GATEWAYS_MAX: usize = 16;

/// Checks what is written; values of fields that have a problem are meaningless.
pub(super) fn check(raw: &raw::Uplink, path: &Path, problems: &mut Vec<Problem>) -> UplinkSpec {
    if let Err(reason) = names::check_device_name(&raw.interface) {
        let path = path.key("interface");
        let message = format!("{path} {:?} {reason}", raw.interface);
        problems.push(Problem::value(&path, "invalid_name", message).label("not an interface"));
    }
    let number = |value: Option<u32>| value.and_then(|value| u16::try_from(value).ok());
    let vlan = range(raw.vlan, 1, 4094, &path.key("vlan"), problems);
    let mtu = range(raw.mtu, u32::from(MTU_MIN), u32::from(MTU_MAX), &path.key("mtu"), problems);
    let driver = match raw.driver {
        None | Some(raw::UplinkDriver::Auto | raw::UplinkDriver::AfPacket) => UplinkDriver::AfPacket,
        Some(raw::UplinkDriver::Tap) => UplinkDriver::Tap,
        Some(raw::UplinkDriver::AfXdp) => UplinkDriver::AfXdp,
    };
    if driver == UplinkDriver::Tap && vlan.is_some() {
        let message = format!("{} has no meaning with driver tap", path.key("vlan"));
        let problem = Problem::key(&path.key("vlan"), "conflict", message).label("remove it");
        problems.push(problem.help("the kernel routes what comes out of the TAP device: let it do the tagging"));
    }
    let addresses = addresses(&raw.addresses, &path.key("addresses"), problems);
    let gateways = gateways(&raw.gateways, &addresses, &path.key("gateways"), problems);
    let on_conflict = match raw.address_conflicts {
        None | Some(raw::AddressConflicts::Defend) => OnConflict::Defend,
        Some(raw::AddressConflicts::Yield) => OnConflict::Yield,
        Some(raw::AddressConflicts::Ignore) => OnConflict::Ignore,
    };
    let (vlan, mtu) = (number(vlan), number(mtu));
    UplinkSpec { interface: raw.interface.clone(), driver, addresses, gateways, vlan, mtu, on_conflict }
}

fn addresses(texts: &[String], path: &Path, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    if texts.len() > ADDRESSES_MAX {
        let message = format!("{path} has {} addresses; at most {ADDRESSES_MAX} are allowed", texts.len());
        problems.push(Problem::value(path, "out_of_range", message).label("too many"));
    }
    let mut addresses: Vec<IpNet> = Vec::new();
    for (index, text) in texts.iter().enumerate().take(ADDRESSES_MAX) {
        let path = path.index(index);
        let mut refuse = |reason: String, help: Option<String>| {
            let problem = Problem::value(&path, "invalid_address", format!("{path} {text:?} {reason}"));
            let problem = problem.label("not usable");
            problems.push(match help {
                Some(help) => problem.help(help),
                None => problem,
            });
        };
        let Ok(net) = text.parse::<IpNet>() else {
            let example = if text.contains(':') { "2001:db8:9::2/64" } else { "198.51.100.2/24" };
            refuse("is not an address with the length of its subnet".to_owned(), Some(format!("like {example}")));
            continue;
        };
        let address = net.addr();
        // RFC 3021 and RFC 6164: in a /31 or /127 both are hosts.
        let has_edges = net.max_prefix_len() - net.prefix_len() > 1;
        if let Some(what) = Range::from(address).special() {
            refuse(format!("overlaps {what}"), None);
        } else if has_edges && address == net.network() {
            refuse("is the address of the subnet itself".to_owned(), None);
        } else if has_edges && net.addr().is_ipv4() && address == net.broadcast() {
            refuse("is the broadcast address of its subnet".to_owned(), None);
        } else if addresses.iter().any(|other| other.addr() == address) {
            let message = format!("{path} {address} is listed twice");
            problems.push(Problem::value(&path, "duplicate", message).label("second time"));
        } else {
            addresses.push(net);
        }
    }
    addresses
}

fn gateways(texts: &[String], addresses: &[IpNet], path: &Path, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    if texts.len() > GATEWAYS_MAX {
        let message = format!("{path} has {} routers; at most {GATEWAYS_MAX} are allowed", texts.len());
        problems.push(Problem::value(path, "out_of_range", message).label("too many"));
    }
    let mut gateways = Vec::new();
    for (index, text) in texts.iter().enumerate().take(GATEWAYS_MAX) {
        let path = path.index(index);
        let mut refuse = |code, reason: &str, help: &str| {
            let problem = Problem::value(&path, code, format!("{path} {text:?} {reason}")).label("not usable");
            problems.push(if help.is_empty() { problem } else { problem.help(help) });
        };
        let Ok(gateway) = text.parse::<IpAddr>() else {
            refuse("invalid_address", "is not an IP address", "write it without prefix length");
            continue;
        };
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let near = addresses.iter().find(|net| net.contains(&gateway));
        if addresses.iter().any(|net| net.addr() == gateway) {
            refuse("conflict", "is an address of this host itself", "");
        } else if gateways.contains(&gateway) {
            refuse("duplicate", "is listed twice", "");
        } else if !link_local && (near.is_none() || Range::from(gateway).special().is_some()) {
            let help = "a router is a neighbour: add an address in its subnet to spec.uplink.addresses";
            refuse("invalid_address", "is in no subnet of spec.uplink.addresses", help);
        } else {
            gateways.push(gateway);
        }
    }
    gateways
}
