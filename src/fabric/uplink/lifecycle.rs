//! The uplink as part of the fabric: when it comes, changes and goes, and who looks after it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hostweave_switch::tables::{NetworkId, PortId, Tables, Uplink};
use hostweave_uplink::netlink::interfaces::Watch;

use super::super::spec::{Desired, PortSpec};
use super::super::{Inner, State};
use super::kernel::Hidden;
use super::owned::{self, Outside};
use super::{Attended, UPLINK_UID, UplinkRuntime};
use crate::services::LocalNote;

/// How long the thread that listens for changes of interfaces waits before it looks whether it is still wanted.
const PATIENCE: Duration = Duration::from_secs(1);

/// Interfaces of a busy host change in bursts.
const DEBOUNCE: Duration = Duration::from_millis(20);

impl Inner {
    /// Refuses what cannot be, before anything changes. What an earlier run or a file asked for is not refused but tried
    /// again and again: a daemon must start.
    pub(in crate::fabric) fn check_outside(&self, state: &State, desired: &Desired) -> anyhow::Result<()> {
        match &state.outside {
            Some(before) if !before.has_places_of(desired) || !before.has_services_of(desired) => {
                owned::refuse_addresses_of_the_kernel(&Outside::of(desired))
            }
            _ => Ok(()),
        }
    }

    /// Makes the uplink what is wanted; networks and ports are there already. Returns one that is not wanted any more, to
    /// be closed once no worker knows it.
    pub(in crate::fabric) fn update_uplink(
        self: &Arc<Self>,
        state: &mut State,
        desired: &Desired,
    ) -> Option<UplinkRuntime> {
        let outside = Outside::of(desired);
        let first = state.outside.replace(outside.clone()).is_none();
        let Some(spec) = &outside.uplink else {
            if first {
                // What an earlier run hid.
                Hidden::new(&self.config.runtime_dir).remove();
            }
            let retired = state.uplink.take()?;
            state.port_ids.give_back(retired.port().id.0);
            state.network_ids.give_back(u32::from(retired.network().0.0));
            state.departed.push(Arc::clone(retired.port()));
            return Some(retired);
        };
        if state.uplink.is_none() {
            let slot = state.remembered.remove(&UPLINK_UID).unwrap_or_else(|| state.port_ids.take());
            self.connections.set_port_id(slot, UPLINK_UID);
            // `check` bounds the number of networks far below the type's range.
            let network = NetworkId(state.network_ids.take() as u16);
            state.uplink = Some(UplinkRuntime::new(self, PortId(slot), network, spec));
            self.watch_links();
        }
        let ports: HashMap<uuid::Uuid, (PortId, &PortSpec)> = desired
            .ports
            .iter()
            .filter_map(|spec| Some((spec.uid, (state.ports.get(&spec.full_name())?.id(), &**spec))))
            .collect();
        let owners = outside.owners(|uid| ports.get(uid).copied());
        let routed = owned::routed(state.networks.values().map(|network| (network.id, &*network.network)));
        if let Some(uplink) = state.uplink.as_mut() {
            uplink.set(&outside, owners, routed);
        }
        None
    }

    /// Looks after the uplink, if there is one: what neighbours said, whether its device failed, what time asks for.
    pub(in crate::fabric) fn attend_uplink(
        &self,
        state: &mut State,
        notes: &[LocalNote],
        failed: &[PortId],
    ) -> Attended {
        let Some(uplink) = state.uplink.as_mut() else { return Attended::default() };
        let mut heard = false;
        for note in notes {
            heard |= uplink.heard(self, note);
        }
        let mut attended = uplink.attend(self, failed.contains(&uplink.port().id));
        attended.changed |= heard;
        attended
    }

    /// Publishes what attending changed, then sends what it wanted to be sent. Returns when there is more to do.
    pub(in crate::fabric) fn finish_attending(&self, state: &mut State, attended: Attended) -> Option<Instant> {
        if attended.pools
            && let Some(pools) = state.outside.as_ref().map(|outside| outside.nat_pools.clone())
        {
            match self.compile_pools(state, &pools) {
                Ok(pools) => state.pools = pools,
                Err(error) => tracing::error!(%error, "NAT pools keep an address that somebody else at the uplink has"),
            }
        }
        if attended.changed || attended.pools {
            self.publish(state);
            // Or a worker would send frames by a device that it does not know yet.
            self.wait_until_in_force(state.revision);
        }
        if let Some(uplink) = &state.uplink {
            super::send(self, uplink.port().id, attended.frames);
        }
        attended.again
    }

    /// Closes an uplink that no worker knows any more.
    pub(in crate::fabric) fn close_uplink(&self, mut uplink: UplinkRuntime) {
        self.forget_fragments_of(uplink.port());
        uplink.close();
    }

    /// Starts the thread that hears of changes of interfaces, once. Without it they are seen a second later.
    fn watch_links(self: &Arc<Self>) {
        if self.links_watched.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = Arc::downgrade(self);
        let started = std::thread::Builder::new().name("hw-links".into()).spawn(move || listen(&inner));
        if let Err(error) = started {
            tracing::warn!(%error, "changes of the uplink's interface will be seen late");
        }
    }
}

fn listen(inner: &Weak<Inner>) {
    let watch = match Watch::new(PATIENCE) {
        Ok(watch) => watch,
        Err(error) => return tracing::warn!(%error, "changes of the uplink's interface will be seen late"),
    };
    loop {
        let news = match watch.wait() {
            Ok(news) => news,
            Err(error) => return tracing::warn!(%error, "changes of the uplink's interface will be seen late"),
        };
        let Some(inner) = inner.upgrade() else { return };
        if inner.stopping.load(Ordering::Relaxed) {
            return;
        }
        if news {
            inner.links_changed.store(true, Ordering::Release);
            inner.workers.iter().take(1).for_each(|worker| worker.listener.unpark());
            drop(inner);
            std::thread::sleep(DEBOUNCE);
        }
    }
}

/// Whether packets may be decided otherwise because of what is different at the uplink: not when only its routers or
/// its link are.
pub(in crate::fabric) fn decides_otherwise(old: &Tables, new: &Tables) -> bool {
    match (&old.uplink, &new.uplink) {
        (None, None) => false,
        (Some(old), Some(new)) => {
            (old.port, old.network, &old.routed) != (new.port, new.network, &new.routed)
                || differ(old, new, |address| !has_moved(old, new, address))
        }
        _ => true,
    }
}

/// Whether what the host owns there is different, as far as `counts`.
fn differ(old: &Uplink, new: &Uplink, counts: impl Fn(u128) -> bool) -> bool {
    let within = |one: &Uplink, other: &Uplink| {
        one.owned.iter().all(|(address, owner)| !counts(*address) || other.owned.get(address) == Some(owner))
    };
    !(within(old, new) && within(new, old))
}

/// Whether an address was lost to somebody else there, or regained. Of that only what crosses knows.
fn has_moved(old: &Uplink, new: &Uplink, address: u128) -> bool {
    let unsettled = old.unsettled.contains_key(&address) || new.unsettled.contains_key(&address);
    unsettled && old.owned.contains_key(&address) != new.owned.contains_key(&address)
}

/// Whether packets that leave take another way there, or none, or as another: each flow that crosses keeps its own ([`hostweave_switch::rewriting`]).
pub(in crate::fabric) fn leads_otherwise(old: &Tables, new: &Tables) -> bool {
    let way = |tables: &Tables| {
        let uplink = tables.uplink.as_deref()?;
        Some((uplink.link, uplink.mac, uplink.v4.clone(), uplink.v6.clone()))
    };
    let moved = match (&old.uplink, &new.uplink) {
        (Some(old), Some(new)) => old.kept != new.kept || differ(old, new, |_| true),
        _ => false,
    };
    moved || way(old) != way(new)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use hostweave_switch::tables::{Owned, mapped};

    use super::*;

    fn tables(owned: &[(IpAddr, Owned)], unsettled: &[IpAddr]) -> Tables {
        let uplink = Uplink {
            owned: owned.iter().map(|(address, owner)| (mapped(*address), *owner)).collect(),
            unsettled: unsettled.iter().map(|address| (mapped(*address), Default::default())).collect(),
            ..Uplink::bare(PortId(9), NetworkId(3), Default::default())
        };
        Tables { uplink: Some(Arc::new(uplink)), ..Tables::default() }
    }

    #[test]
    fn an_address_that_is_lost_or_regained_concerns_only_what_crosses() {
        for address in ["203.0.113.7", "2001:db8::7"] {
            let address: IpAddr = address.parse().unwrap();
            let owned = [(address, Owned::Nat)];
            let (ours, probed) = (tables(&owned, &[]), tables(&owned, &[address]));
            let lost = tables(&[], &[address]);
            for (old, new) in [(&ours, &lost), (&probed, &lost), (&lost, &ours), (&lost, &probed)] {
                assert!(!decides_otherwise(old, new) && leads_otherwise(old, new));
            }
            assert!(!leads_otherwise(&probed, &ours) && !decides_otherwise(&probed, &ours));
            // What is asked for otherwise concerns all.
            let (none, other) = (tables(&[], &[]), tables(&[(address, Owned::Service)], &[address]));
            for (old, new) in [(&ours, &none), (&none, &ours), (&ours, &other), (&probed, &other)] {
                assert!(decides_otherwise(old, new) && leads_otherwise(old, new));
            }
        }
    }
}
