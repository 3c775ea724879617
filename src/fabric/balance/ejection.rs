//! What clients could not connect to, from the packet path to [`outlier`](super::outlier): once a second, for all Services.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hostweave_switch::connection::{Entry, Failed};
use hostweave_switch::tables::{PortId, PortKind, Tables};
use hostweave_switch::wire::proto;

use super::super::{Fabric, Inner};
use super::choice::BackendState;
use super::outlier::{Ejection, Failure, Place, place};
use super::report::BackendStatus;
use super::{Balance, Held};
use crate::observe::time::rfc3339;
use crate::observe::trace::Unchosen;

/// Seconds from one look at all connections to the next at least: clients can cause it.
const LOOK_PAUSE_S: u32 = 2;

/// Backends that `trace` names which take no connections.
const UNCHOSEN_MAX: usize = 4;

/// A backend, and in which network.
pub type Located = (u32, IpAddr, u16, u8);

/// Backends of a Service of which it must be known whether they answered anybody.
pub struct Sought {
    service: Arc<str>,
    vni: u32,
    places: Vec<Place>,
}

impl Inner {
    /// Takes in connections that backends did not take: their checks come forward, and who takes none is ejected for a while. `now` is the
    /// second of the packet path. Called once a second by the maintenance thread.
    pub(in crate::fabric) fn heed_failures(&self, now: u32) {
        let failed: Vec<Failed> = self.connections.take_failures().collect();
        let plane = self.plane.load();
        // Who does not answer over UDP may have nothing to say.
        let speaks = |failed: &&Failed| failed.proto == proto::TCP || failed.refused;
        if failed.iter().any(|failed| speaks(&failed)) {
            let networks = plane.tables.networks.iter().flatten();
            let names: HashMap<u32, &str> = networks.map(|network| (network.vni, network.name.as_str())).collect();
            let suspects = failed.iter().filter(speaks);
            self.health.suspect(suspects.filter_map(|failed| Some((*names.get(&failed.vni)?, failed.address))));
        }
        let sought = self.lock().balance.observe(&failures(&plane.tables, &failed), now);
        // Not under the lock: the table is large.
        let answered = match sought.is_empty() {
            true => HashMap::new(),
            false => answered(self.connections.entries(), &plane.tables, &sought),
        };
        let mut state = self.lock();
        state.balance.judge(&sought, &answered, (now, SystemTime::now()));
        self.republish_services(&mut state);
    }
}

/// Failures by backend.
fn failures(tables: &Tables, failed: &[Failed]) -> HashMap<Located, Vec<Failure>> {
    let mut failures: HashMap<Located, Vec<Failure>> = HashMap::new();
    for failed in failed {
        let outside = kind(tables, failed.client_port) == Some(PortKind::Uplink);
        let failure = Failure {
            connection: failed.connection,
            from: failed.client_port,
            // A port is one client, whatever addresses it has.
            client: outside.then(|| client(failed.client)),
            asked: failed.asked,
            refused: failed.refused,
            created: failed.created,
        };
        failures.entry((failed.vni, failed.address, failed.l4, failed.proto)).or_default().push(failure);
    }
    failures
}

/// What tells a client beyond the uplink from another: of IPv6 the first 64 bits, because whoever has one address there has all that begin so.
fn client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & !u128::from(u64::MAX)).to_be_bytes()),
    }
}

fn kind(tables: &Tables, slot: u32) -> Option<PortKind> {
    tables.port(PortId(slot)).map(|port| port.kind)
}

/// The latest seconds in which backends that are sought took connections: over TCP when the latest one began that was answered, over UDP
/// when anything was answered, because a session there may be older than any failure. Checks do not count: that a backend answers the gateway is known.
fn answered(entries: impl Iterator<Item = Entry>, tables: &Tables, sought: &[Sought]) -> HashMap<Located, u32> {
    let places = |sought: &Sought| {
        let vni = sought.vni;
        Vec::from_iter(sought.places.iter().map(|(address, l4, proto)| ((vni, *address, *l4, *proto), None)))
    };
    let mut latest: HashMap<Located, Option<u32>> = sought.iter().flat_map(places).collect();
    for entry in entries.filter(Entry::is_taken) {
        let (vni, address, l4) = entry.answerer();
        if let Some(second) = latest.get_mut(&(vni, address, l4, entry.key.proto()))
            && kind(tables, entry.in_port) != Some(PortKind::Internal)
        {
            let udp = entry.key.proto() == proto::UDP;
            *second = (*second).max(Some(if udp { entry.seen[1] } else { entry.created }));
        }
    }
    latest.into_iter().filter_map(|(place, second)| Some((place, second?))).collect()
}

impl Balance {
    /// Takes in failures, and lets those back whose time is over. Returns whom [`Balance::judge`] wants to know of.
    pub fn observe(&mut self, failures: &HashMap<Located, Vec<Failure>>, now: u32) -> Vec<Sought> {
        if !failures.is_empty() {
            let mut by_network: HashMap<u32, HashMap<Place, &[Failure]>> = HashMap::new();
            for ((vni, address, l4, proto), failures) in failures {
                by_network.entry(*vni).or_default().insert((*address, *l4, *proto), failures);
            }
            for held in self.services.values_mut() {
                let Some(here) = by_network.get(&held.vni) else { continue };
                held.outliers.note(&held.spec, here, now);
                if !held.outliers.is_empty() {
                    self.observed.insert(Arc::clone(&held.name));
                }
            }
        }
        let mut all = Vec::new();
        let Self { observed, services, marked, looked, .. } = self;
        observed.retain(|name| {
            let Some(held) = services.get_mut(name) else { return false };
            if held.outliers.come_back(&held.spec, now) {
                marked.insert(Arc::clone(name));
            }
            if let Some(view) = &held.view {
                let places = held.outliers.sought(&view.spec, &view.states, now);
                if !places.is_empty() {
                    all.push(Sought { service: Arc::clone(name), vni: held.vni, places });
                }
            }
            !held.outliers.is_empty()
        });
        if now.saturating_sub(*looked) < LOOK_PAUSE_S {
            return Vec::new();
        }
        if !all.is_empty() {
            *looked = now;
        }
        all
    }

    /// Ejects those of `sought` that clients cannot connect to, as `answered` bears out. It is settled by the caller.
    pub fn judge(&mut self, sought: &[Sought], answered: &HashMap<Located, u32>, now: (u32, SystemTime)) {
        for Sought { service, vni, places } in sought {
            let Some(held) = self.services.get_mut(service) else { continue };
            let Some(view) = held.view.as_ref().filter(|_| held.vni == *vni) else { continue };
            let here = |place: &Place| Some((*place, *answered.get(&(*vni, place.0, place.1, place.2))?));
            let answered: HashMap<Place, u32> = places.iter().filter_map(here).collect();
            // Both as they were settled last: what came since is settled next.
            if held.outliers.judge(&view.spec, &view.states, places, &answered, now) {
                self.marked.insert(Arc::clone(service));
            }
        }
    }
}

impl Unchosen for Fabric {
    fn unchosen(&self, service: &str, port_name: &str, ipv4: bool) -> Vec<String> {
        let Some(status) = self.inner.lock().balance.status(service) else { return Vec::new() };
        let of = |backend: &&BackendStatus| {
            let takes = backend.internal || backend.external || backend.state == BackendState::Healthy;
            !takes && backend.port_name == port_name && backend.address.is_ipv4() == ipv4
        };
        let text = |backend: &BackendStatus| {
            let BackendStatus { name, address, state, .. } = backend;
            let ejection = backend.ejection.as_ref();
            let why = ejection.map(|ejection| format!(" until {}: {}", rfc3339(ejection.until), ejection.reason));
            format!("not {name} ({address}): {}{}", state.name(), why.unwrap_or_default())
        };
        let mut lines: Vec<String> = status.backends.iter().filter(of).map(text).collect();
        let more = lines.len().saturating_sub(UNCHOSEN_MAX);
        lines.truncate(UNCHOSEN_MAX);
        lines.extend((more > 0).then(|| format!("and {more} more: hostweave service backends {service}")));
        lines
    }
}

impl Held {
    /// Why the endpoint at these indices is out, if clients are the reason.
    pub(super) fn ejection(&self, port: usize, endpoint: usize) -> Option<&Ejection> {
        let port = self.spec.ports.get(port)?;
        self.outliers.ejection(&place(port, port.endpoints.get(endpoint)?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hostweave_switch::flow::{FlowKey, Kind};
    use hostweave_switch::tables::{Network, NetworkId, mapped};
    use hostweave_switch::tcp_track::Side;

    use super::super::super::port::internal_port;
    use super::*;

    const SERVER: [&str; 2] = ["10.64.0.10", "2001:db8:64::10"];
    const CLIENT: [&str; 2] = ["10.64.0.20", "2001:db8:64::20"];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A connection to the server of a family, from this slot, in this second.
    fn entry(family: usize, proto: u8, in_port: u32, created: u32, flags: u8) -> Entry {
        let (client, server) = (mapped(ip(CLIENT[family])), mapped(ip(SERVER[family])));
        Entry {
            index: 1,
            generation: 1,
            key: FlowKey::new(client, server, 40_000, 80, proto, Kind::Ports),
            vni: 7,
            in_port,
            out_port: 3,
            basis: [0; 2],
            created,
            seen: [0; 2],
            sides: [Side::default(), Side { flags, ..Side::default() }],
            translation: None,
        }
    }

    #[test]
    fn only_what_a_client_was_answered_is_a_success() {
        let network = Network { internal: PortId(0), ..Network::bare("default", 7) };
        let gateway = internal_port(PortId(0), NetworkId(0), &Arc::new(network), Arc::default());
        let tables = Tables { ports: vec![Some(Arc::new(gateway))].into(), ..Tables::default() };
        for family in [0, 1] {
            let place = (ip(SERVER[family]), 80, proto::TCP);
            let sought = [Sought { service: "shop/web".into(), vni: 7, places: vec![place] }];
            let of = |entries: &[Entry]| answered(entries.iter().cloned(), &tables, &sought);
            let here = |second| HashMap::from([((7, place.0, place.1, place.2), second)]);
            assert_eq!(
                of(&[entry(family, proto::TCP, 2, 50, Side::SEEN), entry(family, proto::TCP, 2, 40, Side::SEEN)]),
                here(50)
            );
            assert_eq!(of(&[entry(family, proto::TCP, 2, 50, Side::SEEN | Side::RST)]), here(50), "and reset later");
            for other in [
                entry(family, proto::TCP, 2, 50, Side::RST),
                entry(family, proto::TCP, 2, 50, 0),
                entry(family, proto::TCP, 0, 50, Side::SEEN),
                entry(family, proto::UDP, 2, 50, Side::SEEN),
                entry(1 - family, proto::TCP, 2, 50, Side::SEEN),
                Entry { vni: 8, ..entry(family, proto::TCP, 2, 50, Side::SEEN) },
            ] {
                assert_eq!(of(&[other]), HashMap::new());
            }
            let udp = (place.0, place.1, proto::UDP);
            let sought = [Sought { service: "shop/web".into(), vni: 7, places: vec![udp] }];
            let of = |entry: Entry| answered([entry].into_iter(), &tables, &sought);
            let asked = entry(family, proto::UDP, 2, 50, 0);
            assert_eq!(of(Entry { seen: [55, 0], ..asked }), HashMap::new());
            assert_eq!(of(Entry { seen: [55, 51], ..asked }), HashMap::from([((7, udp.0, udp.1, udp.2), 51)]));
            assert_eq!(of(entry(family, proto::TCP, 2, 50, Side::SEEN)), HashMap::new());
        }
    }

    /// A client that floods a backend with junk, and has another answer: whoever the backend serves since long is what decides.
    #[test]
    fn a_session_over_udp_that_goes_on_speaks_for_its_backend_however_old_it_is() {
        for family in [0, 1] {
            let udp = (ip(SERVER[family]), 80, proto::UDP);
            let sought = [Sought { service: "shop/web".into(), vni: 7, places: vec![udp] }];
            let session = Entry { seen: [1_000, 999], ..entry(family, proto::UDP, 2, 50, 0) };
            let answered = answered([session].into_iter(), &Tables::default(), &sought);
            assert_eq!(answered, HashMap::from([((7, udp.0, udp.1, udp.2), 999)]));
        }
    }

    #[test]
    fn clients_beyond_the_uplink_are_told_apart_as_far_as_they_have_addresses() {
        assert_eq!(client(ip("192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(client(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
    }
}
