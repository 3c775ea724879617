//! Which of the addresses that the host is to own at the uplink it can have: probes, defences, and what follows from them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use hostweave_switch::MacAddr;
use hostweave_switch::tables::Owned;

use super::conflict::Claim;
use super::{Attended, UplinkRuntime, owned};
use crate::fabric::Inner;
use crate::fabric::spec::{FabricEvent, OnConflict, UplinkDriver, UplinkSpec};
use crate::services::uplink::{Frame, probe};

/// Probes that are sent in one go.
const PROBE_MAX: usize = 32;

impl UplinkRuntime {
    /// Takes over which addresses there are to be: what is new is probed, what has another owner on this host only announced.
    pub(super) fn set_addresses(&mut self, spec: &UplinkSpec, wanted: &HashMap<u128, Owned>, now: Instant) {
        // Behind a TAP device there is nobody but the kernel, whose addresses are known.
        let mode = if spec.driver == UplinkDriver::Tap { OnConflict::Ignore } else { spec.on_conflict };
        let mut ours = self.conflicts.set_mode(mode);
        if !ours.is_empty() {
            self.moved.note([]);
        }
        let is_wanted = |address: &IpAddr| wanted.contains_key(&owned::mapped(*address));
        self.conflicts.keep(is_wanted);
        self.announcements.retain(is_wanted);
        ours.retain(is_wanted);
        let mut arrived = Vec::new();
        for (address, owner) in wanted {
            let address = owned::unmapped(*address);
            match self.owned.get(&owned::mapped(address)) {
                None => arrived.push(address),
                Some(before) if before != owner && self.conflicts.is_settled(address) => ours.push(address),
                Some(_) => {}
            }
        }
        // Without a link all of them arrive when it comes.
        if self.link {
            ours.extend(self.conflicts.arrived(arrived, now));
        }
        self.announcements.add(ours, now);
    }

    /// Probes what is due, and announces what is ours. Returns the probes.
    pub(super) fn settle(&mut self, inner: &Inner, changed: &mut bool, now: Instant) -> Vec<Frame> {
        let mac = self.port.mac;
        self.conflicts.salt = mac.0[5];
        let step = self.conflicts.step(now, PROBE_MAX);
        for (address, mac) in step.lost {
            self.lose(inner, address, mac);
        }
        let (regained, settled): (Vec<IpAddr>, Vec<IpAddr>) =
            step.settled.into_iter().partition(|address| step.regained.contains(address));
        *changed |= !settled.is_empty();
        for address in &regained {
            inner.event(FabricEvent::UplinkAddressRegained { address: *address });
        }
        self.announcements.add(settled, now);
        self.moved.note(regained);
        step.probes.into_iter().filter_map(|address| probe(mac, address)).collect()
    }

    /// Lets packets see which addresses were lost or regained, if it is time for that. Returns when it is, if not now.
    pub(super) fn move_addresses(&mut self, attended: &mut Attended, now: Instant) -> Option<Instant> {
        match self.moved.take(now) {
            Ok(regained) => {
                (attended.changed, attended.pools) = (true, true);
                let ours = regained.into_iter().filter(|address| self.conflicts.is_settled(*address));
                let ours: Vec<IpAddr> =
                    ours.filter(|address| self.owned.contains_key(&owned::mapped(*address))).collect();
                self.announcements.add(ours, now);
                None
            }
            Err(at) => at,
        }
    }

    fn lose(&mut self, inner: &Inner, address: IpAddr, mac: MacAddr) {
        inner.event(FabricEvent::UplinkAddressLost { address, mac });
        self.announcements.retain(|announced| *announced != address);
        self.moved.note([]);
    }

    /// Somebody at the uplink says that an address of ours is his.
    pub(super) fn claimed(&mut self, inner: &Inner, address: IpAddr, mac: MacAddr) {
        let now = Instant::now();
        if !self.link || !self.owned.contains_key(&owned::mapped(address)) {
            return;
        }
        match self.conflicts.claimed(address, mac, now) {
            Claim::Known => {}
            Claim::Told => inner.event(FabricEvent::UplinkAddressConflict { address, mac }),
            Claim::Defended => {
                inner.event(FabricEvent::UplinkAddressConflict { address, mac });
                self.announcements.once(address, now);
            }
            Claim::Lost => self.lose(inner, address, mac),
        }
    }

    /// Addresses that somebody else has, in order, with the link address.
    pub fn lost(&self) -> Vec<(IpAddr, MacAddr)> {
        let mut lost: Vec<_> = self.conflicts.lost().collect();
        lost.sort_unstable();
        lost
    }

    /// Addresses that are used and that somebody else claims, in order, with the link address.
    pub(super) fn contested(&self) -> Vec<(IpAddr, MacAddr)> {
        let mut contested: Vec<_> = self.conflicts.contested().collect();
        contested.sort_unstable();
        contested
    }
}
