//! Which of the addresses that the host is to own at the uplink it can have: probes, defences, and what follows from them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use hostweave_nat::PoolSpec;
use hostweave_switch::MacAddr;
use hostweave_switch::tables::Owned;

use super::conflict::Claim;
use super::{Attended, UplinkRuntime, owned};
use crate::fabric::Inner;
use crate::fabric::spec::{FabricEvent, OnConflict, UplinkDriver, UplinkSpec};
use crate::services::uplink::{Frame, probe};

/// Probes that are sent in one go.
const PROBE_MAX: usize = 32;

/// Addresses that somebody else at the uplink has.
#[derive(Clone, Default, Debug)]
pub struct Lost {
    /// Each with whether it was ours and in use, so that connections that began with it go on.
    used: HashMap<IpAddr, bool>,
}

impl Lost {
    /// What is left of them where `spec` is wanted.
    pub fn under(self, spec: &UplinkSpec) -> Self {
        if mode(spec) == OnConflict::Ignore { Self::default() } else { self }
    }

    /// Of what the host is to own, what it does own, and what it has given up while it was in use.
    pub fn split<M: FromIterator<(u128, Owned)>>(&self, wanted: &HashMap<u128, Owned>) -> [M; 2] {
        let used = |address: &u128| self.used.get(&owned::unmapped(*address));
        let of = |wants: &dyn Fn(Option<&bool>) -> bool| {
            let found = wanted.iter().filter(|(address, _)| wants(used(address)));
            found.map(|(address, owner)| (*address, *owner)).collect()
        };
        [of(&|used| used.is_none()), of(&|used| used == Some(&true))]
    }

    /// Has a pool begin nothing with them.
    pub fn drain(&self, spec: &mut PoolSpec) {
        let lost = spec.addresses.iter().filter(|address| self.used.contains_key(address));
        spec.draining.extend(lost);
    }
}

/// Behind a TAP device there is nobody but the kernel, whose addresses are known.
fn mode(spec: &UplinkSpec) -> OnConflict {
    if spec.driver == UplinkDriver::Tap { OnConflict::Ignore } else { spec.on_conflict }
}

impl UplinkRuntime {
    /// Takes over which addresses there are to be: what is new is probed, what has another owner on this host only announced.
    pub(super) fn set_addresses(&mut self, spec: &UplinkSpec, wanted: &HashMap<u128, Owned>, now: Instant) {
        let mut ours = self.conflicts.set_mode(mode(spec));
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

    /// What packets and pools may not count on.
    pub fn lost_addresses(&self) -> Lost {
        let lost = self.conflicts.lost().map(|(address, _)| (address, self.conflicts.was_used(address)));
        Lost { used: lost.collect() }
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

#[cfg(test)]
mod tests {
    use hostweave_switch::tables::PortId;

    use super::*;

    #[test]
    fn what_somebody_else_has_is_not_owned_and_pools_begin_nothing_with_it() {
        let [ours, taken, given_up]: [[IpAddr; 2]; 3] = [7, 8, 9].map(|last: u16| {
            let v6 = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
            [[192, 0, 2, last as u8].into(), v6.into()]
        });
        for v6 in [0, 1] {
            let lost = Lost { used: [(taken[v6], false), (given_up[v6], true)].into() };
            let all = [ours, taken, given_up].map(|address| address[v6]);
            let attached = Owned::Attached { port: PortId(3), inside: None };
            let wanted = all.map(|address| (owned::mapped(address), attached)).into();
            let [owned, kept]: [HashMap<u128, Owned>; 2] = lost.split(&wanted);
            assert_eq!(owned, HashMap::from([(owned::mapped(ours[v6]), attached)]));
            assert_eq!(kept, HashMap::from([(owned::mapped(given_up[v6]), attached)]));
            let mut spec = PoolSpec {
                name: "pool".to_owned(),
                addresses: vec![ours[v6], given_up[v6]],
                draining: Vec::new(),
                workloads: Vec::new(),
                in_family: Default::default(),
                block_size: 64,
                blocks: 1..=1,
                filtering: Default::default(),
                overload: false,
                limits: Default::default(),
            };
            lost.drain(&mut spec);
            assert_eq!(spec.draining, [given_up[v6]], "of its own addresses only");
        }
    }
}
