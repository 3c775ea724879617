//! Metadata at 169.254.169.254 and fd00:ec2::254 of every network: what a guest must know at its first boot.
//!
//! # Theory of operation
//!
//! A `server` for each network listens behind the internal port. Who asks follows from the network and the source address
//! (`directory`), which `guard` has checked: a port gets its own metadata and no other's. `answer` decides, `tree` is EC2's
//! layout and `nocloud` that of cloud-init's NoCloud; `token` is what EC2's second version adds.
//!
//! An address may go from one port to another. Before the packet path knows ([`Metadata::withdraw`]) it belongs to nobody here
//! and its connections end; once it does ([`Metadata::update`]) it is the new port's.

mod answer;
mod counters;
mod directory;
mod nocloud;
mod server;
pub mod spec;
#[cfg(test)]
mod tests;
mod token;
mod tree;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

pub use counters::MetadataReport;

use self::directory::Directory;
use self::server::{PORT, Service, serve};
use self::spec::MetadataSpec;
use super::sockets::{Place, Sockets};
use crate::fabric::spec::Desired;

/// The metadata servers of all networks.
pub struct Metadata {
    sockets: Sockets,
    runtime: Handle,
    service: Arc<Service>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By name of the network.
    served: HashMap<String, Served>,
    /// As told last.
    told: Option<(Option<MetadataSpec>, bool)>,
}

struct Served(AbortHandle);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Metadata {
    /// No networks yet. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no random octets.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(sockets: Sockets) -> std::io::Result<Self> {
        let service = Arc::new(Service::new()?);
        Ok(Self { sockets, runtime: Handle::current(), service, state: Mutex::default() })
    }

    /// To be called before the packet path knows of a change: addresses that change their owner have none from now on.
    pub fn withdraw(&self, desired: &Desired) {
        let next = Directory::new(desired, &desired.metadata.clone().unwrap_or_default());
        let (rest, moved) = self.service.directory.load().without_moved(&next);
        if moved.is_empty() {
            return;
        }
        self.service.directory.store(Arc::new(rest));
        for (network, address) in moved {
            self.sockets.reset_peer(&network, address);
        }
    }

    /// As [`Metadata::update`], where networks and ports are those of last time.
    pub fn update_spec(&self, desired: &Desired) {
        let told = Some((desired.metadata.clone(), desired.local.dhcp));
        let same = self.state.lock().unwrap_or_else(PoisonError::into_inner).told == told;
        if !same {
            self.update(desired);
        }
    }

    /// As [`Metadata::update`], where only ports are others than last time; `places`: they, their addresses or their networks are.
    pub fn update_ports(&self, desired: &Desired, places: bool) {
        let told = Some((desired.metadata.clone(), desired.local.dhcp));
        let same = self.state.lock().unwrap_or_else(PoisonError::into_inner).told == told;
        if places || !same {
            return self.update(desired);
        }
        if desired.metadata.is_some() {
            let next = self.service.directory.load().with_ports(&desired.ports);
            self.service.directory.store(Arc::new(next));
        }
    }

    /// Serves what exists. The networks must have their stacks.
    pub fn update(&self, desired: &Desired) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.told = Some((desired.metadata.clone(), desired.local.dhcp));
        let Some(spec) = &desired.metadata else {
            state.served.clear();
            self.service.directory.store(Arc::default());
            return;
        };
        self.service.directory.store(Arc::new(Directory::new(desired, spec)));
        self.service.forget_idle();
        state.served.retain(|name, _| desired.networks.iter().any(|network| network.name == *name));
        for network in &desired.networks {
            if state.served.get(&network.name).is_some_and(|served| !served.0.is_finished()) {
                continue;
            }
            match self.sockets.listen_at(&network.name, Place::Metadata, PORT) {
                Ok(listener) => {
                    let task = self.runtime.spawn(serve(Arc::clone(&self.service), listener));
                    state.served.insert(network.name.clone(), Served(task.abort_handle()));
                }
                Err(error) => tracing::error!(network = network.name, %error, "metadata is not served in a network"),
            }
        }
    }

    /// What was counted.
    pub fn report(&self) -> MetadataReport {
        self.service.counters.report()
    }
}
