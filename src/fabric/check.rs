//! Contradictions that control should have caught; looked for again because everything below relies on it.

use std::collections::HashSet;

use anyhow::bail;
use hostweave_switch::limits::{NETWORKS_MAX, PORTS_MAX};

use super::spec::Desired;
use super::uplink::owned;

/// Refuses contradictions.
///
/// # Errors
/// The first one, with what it is about.
pub(super) fn check(desired: &Desired) -> anyhow::Result<()> {
    if desired.networks.len() > NETWORKS_MAX {
        bail!("{} networks are more than this host's limit of {NETWORKS_MAX}", desired.networks.len());
    }
    if desired.ports.len() + desired.networks.len() + usize::from(desired.uplink.is_some()) > PORTS_MAX {
        bail!("{} ports are more than this host's limit of {PORTS_MAX}", desired.ports.len());
    }
    owned::refuse_shared(desired)?;
    let networks: HashSet<&str> = desired.networks.iter().map(|network| network.name.as_str()).collect();
    let mut names = HashSet::new();
    let mut owners = HashSet::new();
    for port in &desired.ports {
        if !networks.contains(port.network.as_str()) {
            bail!("port {}: network {:?} does not exist", port.full_name(), port.network);
        }
        if !names.insert(port.full_name()) {
            bail!("port {} is there twice", port.full_name());
        }
        for address in port.addresses() {
            if !owners.insert((port.network.as_str(), address)) {
                bail!("port {}: address {address} of network {} has another owner", port.full_name(), port.network);
            }
        }
    }
    for service in desired.services.iter() {
        if !networks.contains(service.network.as_str()) {
            bail!("Service {}: network {:?} does not exist", service.name, service.network);
        }
        let inside = service.load_balancer.iter().filter(|given| !given.public).map(|given| given.address);
        if let Some(address) =
            service.cluster.iter().copied().chain(inside).find(|at| owners.contains(&(service.network.as_str(), *at)))
        {
            bail!("Service {}: address {address} of network {} is a port's", service.name, service.network);
        }
    }
    Ok(())
}
