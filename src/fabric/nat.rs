//! NAT as the fabric keeps it: where its file lies, which pools serve whom, what an earlier run left, and that mappings are given back
//! when connections end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use hostweave_nat::{Claim, End, Lease, MappingRef, Nat, NatEvent, Options, PoolSpec, Pools, Timers, V4, V6, Workload};
use hostweave_switch::connection::{Connections, Direction, Entry, Hold, Translation};
use hostweave_switch::tcp_track::{self, State as TcpState};
use hostweave_switch::wire::proto;
use uuid::Uuid;

use super::connections::boot_id;
use super::port::PortRuntime;
use super::spec::{FabricConfig, FabricEvent, NatPoolSpec, internal_uid};
use super::uplink::owned::unmapped;
use super::uplink::settle::Lost;
use super::{Inner, State};
use crate::connect;
use crate::worker::clock::Clock;

/// Mappings and blocks looked at in one go, in each shard.
const EXPIRE_BUDGET: usize = 1024;

/// Mappings whose blocks of the file are allocated in one go.
const STEP: u32 = 1 << 14;

/// What fails when pools cannot be.
pub(super) const POOLS: &str = "setting up the NAT pools";

/// Opens the table of mappings under the runtime directory.
pub(super) fn open(config: &FabricConfig, now: u32) -> anyhow::Result<Nat> {
    let path = config.runtime_dir.join("nat");
    let options =
        Options { capacity: config.connections_max, boot: boot_id(), now, timers: Timers::default(), seed: None };
    let nat = Nat::open(&path, &options).with_context(|| format!("opening {}", path.display()))?;
    let first = nat.ever_used().max(STEP).min(nat.capacity());
    allocate(&nat, first).with_context(|| format!("making room in {}", path.display()))?;
    Ok(nat)
}

/// Has blocks allocated up to a number of mappings, so that touching one can never fail.
fn allocate(nat: &Nat, mappings: u32) -> std::io::Result<()> {
    let before = nat.available();
    let start = if before == 0 { 0 } else { nat.file_len(before) };
    nat.file().allocate(start..nat.file_len(mappings))?;
    nat.make_available(mappings);
    Ok(())
}

/// Allocates the rest of the table, step by step. A file system that is full ends it: the table is smaller then.
pub(super) fn allocate_all(nat: &Nat) {
    while nat.available() < nat.capacity() {
        let next = nat.available().saturating_add(STEP).min(nat.capacity());
        if let Err(error) = allocate(nat, next) {
            let (room, wanted) = (nat.available(), nat.capacity());
            tracing::warn!(%error, "the runtime directory has room for {room} NAT mappings only, not {wanted}");
            return;
        }
    }
}

/// Has each mapping that a connection held given back when the connection ends, whoever ends it.
pub(super) fn give_back(nat: &Arc<Nat>, connections: &Connections, clock: Clock) {
    let nat = Arc::clone(nat);
    connections.on_release(Box::new(move |side, hold, entry| {
        release(&nat, side, hold, entry, clock.seconds(Instant::now()));
    }));
}

/// Gives back the mapping of one side that a connection held which has ended.
pub(crate) fn release(nat: &Nat, side: Direction, hold: Hold, entry: &Entry, now: u32) {
    let [began, answered] = entry.seen;
    match side {
        0 => nat.release(mapping_of(hold), began.max(answered), now, how(entry)),
        _ => {
            let heard = answered != 0 && connect::has_answered(entry.key.proto(), &entry.sides[1]);
            nat.release_unasked(mapping_of(hold), heard.then_some(answered), now, how(entry));
        }
    }
}

/// How a connection ended, as mappings want to know it.
fn how(entry: &Entry) -> End {
    let tcp = entry.key.proto() == proto::TCP;
    if tcp && tcp_track::state(&entry.sides[0], &entry.sides[1]) == TcpState::Established {
        return End::Established;
    }
    End::Closed
}

fn mapping_of(Hold { index, generation }: Hold) -> MappingRef {
    MappingRef { index, generation }
}

impl State {
    /// Slots of the ports that there are, and of the host itself in each network, by the uids by which NAT knows them.
    pub(super) fn slots(&self) -> HashMap<Uuid, u32> {
        let ports = self.ports.values().filter_map(|port| Some((port.uid()?, port.id().0)));
        let internal = self.networks.values().map(|of| (internal_uid(of.network.vni), of.port.id().0));
        ports.chain(internal).collect()
    }
}

impl Inner {
    /// Does what can fail of [`Inner::compile_pools`]; that addresses are known then harms nobody.
    pub(super) fn prepare_pools(&self, pools: &[NatPoolSpec]) -> anyhow::Result<()> {
        let specs: Vec<PoolSpec> = pools.iter().map(|pool| pool_spec(pool, &Lost::default(), |_| None)).collect();
        Pools::prepare(&self.nat, &specs).context(POOLS)
    }

    /// Compiles the pools for the ports that there are.
    pub(super) fn compile_pools(&self, state: &State, pools: &[NatPoolSpec]) -> anyhow::Result<Arc<Pools>> {
        let slots = state.slots();
        // What somebody else at the uplink has takes no new connections.
        let lost = state.uplink.as_ref().map(|uplink| uplink.lost_addresses()).unwrap_or_default();
        let specs: Vec<PoolSpec> =
            pools.iter().map(|pool| pool_spec(pool, &lost, |uid| slots.get(&uid).copied())).collect();
        let now = self.clock.seconds(Instant::now());
        Ok(Arc::new(Pools::compile(&self.nat, &specs, now).context(POOLS)?))
    }

    /// Ends the mappings of ports that are gone, for whose connections nobody waits any more. After those have ended.
    pub(super) fn forget_mappings_of(&self, gone: &HashSet<Uuid>) {
        if !gone.is_empty() {
            self.nat.forget(|uid| gone.contains(&Uuid::from_u128(uid)), self.clock.seconds(Instant::now()));
        }
    }

    /// Takes over the mappings of an earlier run whose ports are there and still have their addresses. Before the connections
    /// that hold them.
    pub(super) fn adopt_mappings(&self, state: &State) {
        let vnis: HashMap<_, u32> = state.networks.values().map(|network| (network.id, network.network.vni)).collect();
        let ports: HashMap<u32, &PortRuntime> = state.ports.values().map(|port| (port.id().0, port)).collect();
        let owns = |entry: &hostweave_nat::Entry| {
            let inside = &entry.inside;
            let port = ports.get(&inside.port).map(|port| port.port());
            port.is_some_and(|port| port.owns(inside.address) && vnis.get(&port.network) == Some(&inside.vni))
        };
        let claim = |entry: &_| if owns(entry) { Claim::Keep } else { Claim::Forget };
        let adopted = self.nat.adopt(&state.pools, self.clock.seconds(Instant::now()), claim);
        if adopted.kept + adopted.forgotten > 0 {
            let (kept, forgotten, blocks) = (adopted.kept, adopted.forgotten, adopted.blocks);
            tracing::info!(kept, forgotten, blocks, "NAT mappings of the last run");
        }
    }

    /// Takes hold of the mappings that a connection of an earlier run held; `uplink` is the slot of that port. False, and none is held: they are not its own,
    /// or it has one at an address of a pool without any.
    pub(super) fn hold_again(&self, pools: &Pools, uplink: Option<u32>, entry: &Entry) -> bool {
        let Some(translation) = &entry.translation else { return true };
        if lacks_hold(pools, entry, translation) {
            return false;
        }
        let ends = connect::held_ends(entry, translation, uplink, |slot| self.connections.port_id(slot));
        let held = || {
            let held = [false, true].into_iter().zip(translation.held.iter().zip(&ends));
            held.filter_map(|(unasked, (hold, end))| Some((unasked, mapping_of((*hold)?), end)))
        };
        // Both or none: one that was held in vain and is given back ends at once, and others may hold it.
        held().all(|(_, mapping, end)| self.nat.may_hold(pools, mapping, &end.inside, end.outside, end.remote))
            && held().all(|(unasked, mapping, end)| {
                self.nat.hold(pools, mapping, &end.inside, end.outside, end.remote, unasked)
            })
    }

    /// Ends mappings and blocks whose time has come, and tells what happened to blocks. Called once a second by the maintenance
    /// thread.
    pub(super) fn expire_mappings(&self) {
        let now = self.clock.seconds(Instant::now());
        let mut told = Vec::new();
        while self.nat.expire(now, EXPIRE_BUDGET, |event| told.push(event)) {}
        if told.is_empty() {
            return;
        }
        let plane = self.plane.load();
        let names: std::collections::HashMap<u128, &str> = plane
            .tables
            .ports
            .iter()
            .flatten()
            .map(|port| (self.connections.port_id(port.id.0), port.name.as_str()))
            .collect();
        let name =
            |uid: u128| names.get(&uid).map_or_else(|| Uuid::from_u128(uid).to_string(), |name| (*name).to_owned());
        let lease = |block, since, until| self.lease_view(Lease { block, since, until, mappings: 0 });
        let known = |uid: u128| names.get(&uid).map(|name| (*name).to_owned());
        for event in told {
            self.event(match event {
                NatEvent::Allocated { block, at } => {
                    FabricEvent::NatBlockAllocated { lease: lease(block, at, None), port: known(block.uid) }
                }
                NatEvent::Released { block, since, at } => {
                    FabricEvent::NatBlockReleased { lease: lease(block, since, Some(at)), port: known(block.uid) }
                }
                NatEvent::Lost => FabricEvent::NatEventsLost,
                NatEvent::Exhausted { uid, address, biggest, ports, .. } => FabricEvent::NatExhausted {
                    port: name(uid),
                    pool: plane.pools.pool_of(address).unwrap_or_default().to_owned(),
                    address: unmapped(address),
                    biggest: name(biggest),
                    ports,
                },
                NatEvent::Full { uid, biggest, mappings, .. } => {
                    FabricEvent::NatTableFull { port: name(uid), biggest: name(biggest), mappings }
                }
            });
        }
    }
}

/// Whether a connection says that it uses an address of a pool, and holds no mapping there: of another's L4 port, or of nobody's.
fn lacks_hold(pools: &Pools, entry: &Entry, translation: &Translation) -> bool {
    let ends = [translation.reply.dst(), entry.key.dst()];
    ends.iter().zip(translation.held).any(|(address, held)| held.is_none() && pools.pool_of(*address).is_some())
}

/// A pool as the NAT knows it, with the ports that `slot` knows, and without new connections from addresses that are `lost`.
pub(super) fn pool_spec(pool: &NatPoolSpec, lost: &Lost, slot: impl Fn(Uuid) -> Option<u32>) -> PoolSpec {
    let workload = |uid: &Uuid| Some(Workload { port: slot(*uid)?, uid: uid.as_u128() });
    let workloads = |uids: &[Uuid]| uids.iter().filter_map(workload).collect();
    let mut spec = PoolSpec {
        name: pool.name.clone(),
        addresses: pool.addresses.clone(),
        draining: pool.draining.clone(),
        workloads: workloads(&pool.ports),
        in_family: [workloads(&pool.hosts[V4]), workloads(&pool.hosts[V6])],
        block_size: pool.block_size,
        blocks: pool.blocks.clone(),
        filtering: pool.filtering,
        overload: pool.overload,
        limits: pool.limits,
    };
    lost.drain(&mut spec);
    spec
}

#[cfg(test)]
mod tests {
    use hostweave_switch::flow::{FlowKey, Kind};

    use super::*;

    const POOL: [&str; 2] = ["203.0.113.7", "2001:db8:f::7"];
    const GUEST: [&str; 2] = ["192.0.2.1", "2001:db8:0:1::1"];
    const REMOTE: [&str; 2] = ["198.51.100.1", "2001:db8:e::1"];

    fn mapped(address: &str) -> u128 {
        hostweave_nat::mapped(address.parse().unwrap())
    }

    fn key(from: &str, to: &str) -> FlowKey {
        FlowKey::new(mapped(from), mapped(to), 4000, 53, proto::UDP, Kind::Ports)
    }

    #[test]
    fn na38_an_address_of_a_pool_is_nobodys_without_a_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { capacity: 1024, boot: 1, now: 1, timers: Timers::default(), seed: Some(1) };
        let nat = Nat::open(&dir.path().join("nat"), &options).unwrap();
        let spec = PoolSpec {
            name: "pool".to_owned(),
            addresses: POOL.map(|address| address.parse().unwrap()).to_vec(),
            draining: Vec::new(),
            workloads: Vec::new(),
            in_family: Default::default(),
            block_size: 64,
            blocks: 1..=1,
            filtering: hostweave_nat::Filtering::default(),
            overload: false,
            limits: hostweave_nat::Limits::default(),
        };
        let pools = Pools::compile(&nat, &[spec], 1).unwrap();
        let hold = Some(Hold { index: 1, generation: 1 });
        for family in 0..2 {
            let (pool, guest, remote) = (POOL[family], GUEST[family], REMOTE[family]);
            // As it is sent, as it arrives, and which of the two ends need a mapping.
            for (sent, arrives, needs) in [
                (key(guest, remote), key(pool, remote), [true, false]),
                (key(remote, pool), key(remote, guest), [false, true]),
                (key(guest, pool), key(pool, guest), [true, true]),
                (key(guest, remote), key(guest, remote), [false, false]),
            ] {
                for held in [[hold, hold], [hold, None], [None, hold], [None, None]] {
                    let translation = Translation { reply: arrives.reversed(), vni: 1, held };
                    let entry = Entry {
                        index: 0,
                        generation: 0,
                        key: sent,
                        vni: 7,
                        in_port: 1,
                        out_port: 2,
                        basis: [0; 2],
                        created: 0,
                        seen: [0; 2],
                        sides: Default::default(),
                        translation: Some(translation),
                    };
                    let lacks = needs.iter().zip(held).any(|(needs, held)| *needs && held.is_none());
                    assert_eq!(lacks_hold(&pools, &entry, &translation), lacks, "{sent:?} {arrives:?} {held:?}");
                }
            }
        }
    }
}
