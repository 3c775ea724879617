//! A trace changes nothing, whatever it is of: mappings, blocks, timers, connections, counters, affinity (`observe::trace` asks the same
//! stages, masked).

use hostweave_nat::{Entry as Mapping, Lease, Stats};

use super::*;
use crate::fabric::nat::release;

/// Everything that packets change.
#[derive(PartialEq, Debug)]
pub(super) struct State {
    mappings: Vec<Mapping>,
    leases: Vec<Lease>,
    stats: Stats,
    connections: Vec<Entry>,
    evicted: u64,
    failures: usize,
}

impl State {
    /// Whether all mappings and connections of another state are there.
    pub(super) fn has_all_of(&self, other: &Self) -> bool {
        other.mappings.iter().all(|mapping| self.mappings.contains(mapping))
            && other.connections.iter().all(|connection| self.connections.contains(connection))
    }
}

impl Host {
    pub(super) fn state(&self) -> State {
        State {
            mappings: self.nat.entries().collect(),
            leases: self.nat.history().collect(),
            stats: self.nat.stats(),
            connections: self.entries(),
            evicted: self.connections.evicted(),
            failures: self.connections.take_failures().count(),
        }
    }

    /// Traces a frame, twice, and says what became of it.
    #[track_caller]
    pub(super) fn traced(&mut self, from: u32, frame: &[u8]) -> Result<u32, DropReason> {
        let before = self.state();
        // As `observe::trace` has it: a cache of its own.
        let mut ways = [(); 2].map(|()| {
            self.workers[1].0 = FlowCache::new(1).unwrap();
            self.send_with(1, from, frame, &mut Masked).map(|(to, _)| to)
        });
        assert_eq!(self.state(), before, "a trace from {from}: {:?}", ways[0]);
        assert_eq!(ways[0], ways[1]);
        std::mem::replace(&mut ways[0], Ok(0))
    }

    /// Ends every connection; the mappings live on by their timers.
    pub(super) fn end_connections(&mut self) {
        for entry in self.entries() {
            assert!(self.connections.remove(entry.index, entry.generation, Ending::Flushed));
            for (side, hold) in entry.translation.into_iter().flat_map(|translation| translation.held).enumerate() {
                hold.inspect(|hold| release(&self.nat, side, *hold, &entry, self.now));
            }
        }
    }
}

/// A segment that begins a connection.
fn syn(way: Path, src_port: u16, dst_port: u16) -> Vec<u8> {
    way.tcp(&TcpHeader { src_port, dst_port, flags: SYN, window: 1000, ..Default::default() }, b"")
}

#[test]
fn a_trace_of_what_leaves_or_arrives_makes_no_mapping_and_prolongs_none() {
    both(|v6| {
        for filtering in
            [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent]
        {
            let mut host = Host::with_pool(|pool| (pool.filtering, pool.overload) = (filtering, true));
            let (pool, server) = (public(v6, POOL), remote(v6, 1));
            let fresh = out(A, server).udp(4000, 53, b"?");
            assert_eq!(host.traced(A, &fresh), Ok(UPLINK), "the first of its endpoint");
            let l4 = host.leaves(A, server, (4000, 99));
            let (_, seen) = host.through(0, A, &syn(out(A, server), 4000, 80)).unwrap();
            let tcp = seen.2;
            assert_eq!(host.traced(A, &fresh), Ok(UPLINK), "another remote of a mapping");
            host.end_connections();
            host.now += 100;
            let independent = filtering == Filtering::EndpointIndependent;
            let dependent = filtering == Filtering::AddressDependent;
            for (remote, lets_in) in [(server, independent || dependent), (remote(v6, 2), independent)] {
                let way = if lets_in { Ok(A) } else { Err(DropReason::NatNoMapping) };
                assert_eq!(host.traced(UPLINK, &inward(remote, pool).udp(9, l4, b"?")), way);
                assert_eq!(host.traced(UPLINK, &syn(inward(remote, pool), 9, tcp)), way);
            }
            assert_eq!(host.traced(UPLINK, &inward(server, pool).udp(9, 9, b"?")), Err(DropReason::NatNoMapping));
            // From another port of the host.
            let way = if independent { Ok(A) } else { Err(DropReason::NatNoMapping) };
            for from in [B, D] {
                assert_eq!(host.traced(from, &out(from, pool).udp(5000, l4, b"?")), way);
                assert_eq!(host.traced(from, &syn(out(from, pool), 5000, tcp)), way);
            }
            // What policy refuses on its way in.
            host.allow_only(&[1]);
            if independent {
                let denied = Err(DropReason::PolicyDenied);
                assert_eq!(host.traced(UPLINK, &inward(server, pool).udp(9, l4, b"?")), denied);
            }
        }
    });
}

#[test]
fn a_trace_towards_a_service_leaves_its_affinity_and_its_count_alone() {
    use hostweave_nat::service::Lookup;
    use services::{backend, vip};
    both(|v6| {
        let mut host = Host::serving_as(v6, &[backend(B, v6), backend(C, v6)], |spec| spec.affinity_s = Some(60));
        for (from, at) in [(A, vip(v6)), (A, public(v6, 20)), (D, public(v6, 20)), (UPLINK, public(v6, 20))] {
            let way = if from == UPLINK { inward(remote(v6, 1), at) } else { out(from, at) };
            let begun = |host: &Host| {
                let scope = if at == vip(v6) { 7 } else { hostweave_switch::tables::OUTSIDE_VNI };
                let found = host.plane.services.lookup(scope, mapped(at), 17, 80);
                let Lookup::Frontend(frontend) = found else { panic!("there is one") };
                frontend.spec().begun.count()
            };
            let to = host.traced(from, &way.udp(4000, 80, b"?")).unwrap();
            assert_eq!(begun(&host), 0);
            // A client that was remembered would keep its backend where the table says another.
            host.serve(v6, &[backend(if to == B { C } else { B }, v6)], |spec| spec.affinity_s = Some(60));
            host.serve(v6, &[backend(B, v6), backend(C, v6)], |spec| spec.affinity_s = Some(60));
            assert_eq!(host.traced(from, &way.udp(4000, 80, b"?")), Ok(to));
        }
    });
}

#[test]
fn what_is_refused_on_its_way_in_prolongs_no_mapping() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| pool.filtering = Filtering::EndpointIndependent);
        let l4 = host.leaves(A, remote(v6, 1), (4000, 99));
        host.end_connections();
        let before = host.state();
        host.now += 100;
        host.allow_only(&[1]);
        let stranger = inward(remote(v6, 2), public(v6, POOL)).udp(9, l4, b"?");
        assert_eq!(host.to(UPLINK, &stranger), Err(DropReason::PolicyDenied));
        assert_eq!(host.state().mappings, before.mappings, "RFC 4787 REQ-6: a stranger cannot keep it alive");
    });
}
