//! As whom ingress policy sees a port behind NAT, from its first packet on: by the address that this packet has.

use hostweave_policy::model::Peer;

use super::*;

/// Another address of the pool.
const POOL_TOO: u16 = 8;

/// `B` has a public address, on its own NIC or by 1:1 NAT.
fn host(one_to_one: bool, edit: impl FnOnce(&mut PoolSpec)) -> Host {
    let mut host = Host::with_pool(edit);
    host.edit_uplink(|uplink| {
        for v6 in [false, true] {
            let inside = one_to_one.then(|| mapped(address(B, v6)));
            uplink.owned.insert(mapped(public(v6, PUBLIC)), Owned::Attached { port: PortId(B), inside });
            uplink.owned.insert(mapped(public(v6, POOL_TOO)), Owned::Nat);
        }
    });
    host
}

fn two(spec: &mut PoolSpec) {
    spec.addresses = [false, true].into_iter().flat_map(|v6| [POOL, POOL_TOO].map(|last| public(v6, last))).collect();
}

impl Host {
    /// Only from these addresses.
    fn admit(&mut self, range: &str) {
        let peers = vec![Peer::IpBlock { cidr: range.parse().unwrap(), except: vec![] }];
        self.world.policies = vec![Arc::new(NetworkPolicy {
            name: PolicyName { namespace: Some("test".to_owned()), name: "range".to_owned() },
            origin: String::new(),
            selector: Selector::default(),
            ingress: Some(vec![Rule { origin: String::new(), peers, ports: Vec::new() }]),
            egress: None,
            audit: false,
        })];
        self.publish();
    }

    /// As [`Host::leaves`], of whichever address of the pool: that and the L4 port.
    fn leaves_from(&mut self, from: u32, to: IpAddr, ports: (u16, u16)) -> (IpAddr, u16) {
        let (_, seen) = self.through(0, from, &out(from, to).udp(ports.0, ports.1, b"data")).unwrap();
        (seen.0, seen.2)
    }

    fn admit_address(&mut self, address: IpAddr) {
        self.admit(&ipnet::IpNet::from(address).to_string());
    }
}

fn frames(v6: bool) -> [Vec<u8>; 4] {
    let way = out(D, public(v6, PUBLIC));
    let syn = TcpHeader { src_port: 4000, dst_port: 80, flags: SYN, window: 1000, ..Default::default() };
    [way.udp(4000, 80, b"?"), way.tcp(&syn, b""), way.echo_request(7, 1, b"?"), way.ip(47, b"any protocol!")]
}

#[test]
fn the_first_packet_of_a_port_behind_nat_is_judged_by_the_address_that_its_pool_gives_it() {
    both(|v6| {
        for (one_to_one, number) in [false, true].into_iter().flat_map(|kind| (0..4).map(move |number| (kind, number)))
        {
            let frame = &frames(v6)[number];
            for range in [
                public(v6, POOL).to_string() + if v6 { "/128" } else { "/32" },
                if v6 { "::/0" } else { "0.0.0.0/0" }.into(),
            ] {
                let mut host = host(one_to_one, |_| {});
                host.admit(&range);
                assert_eq!(host.traced(D, frame), Ok(B), "{range}");
                let (to, seen) = host.through(0, D, frame).unwrap();
                assert_eq!((to, seen.0), (B, public(v6, POOL)), "{range}");
                assert_eq!(host.through(0, D, frame).unwrap().0, B);
            }
        }
    });
}

#[test]
fn what_is_denied_by_that_address_takes_nothing_of_the_pool() {
    both(|v6| {
        for frame in &frames(v6) {
            let mut host = host(false, |_| {});
            for denied in [public(v6, POOL_TOO), address(A, v6), if v6 { "::" } else { "0.0.0.0" }.parse().unwrap()] {
                host.admit_address(denied);
                let before = host.state();
                assert_eq!(host.traced(D, frame), Err(DropReason::PolicyDenied));
                assert_eq!(host.to(D, frame), Err(DropReason::PolicyDenied), "{denied}");
                assert_eq!(host.state(), before, "{denied}");
            }
        }
    });
}

#[test]
fn of_several_addresses_the_one_that_is_judged_is_the_one_that_it_gets() {
    both(|v6| {
        let mut got = std::collections::HashSet::new();
        for uid in 1000..1016 {
            for (address, other) in [(POOL, POOL_TOO), (POOL_TOO, POOL)] {
                let mut host = host(false, |spec| {
                    two(spec);
                    spec.workloads = vec![Workload { port: D, uid }];
                });
                host.connections.set_port_id(D, uid);
                let frame = &frames(v6)[0];
                host.admit_address(public(v6, address));
                let first = host.through(0, D, frame);
                match first {
                    Ok((to, seen)) => assert_eq!((to, seen.0), (B, public(v6, address))),
                    Err(reason) => {
                        assert_eq!(reason, DropReason::PolicyDenied);
                        assert_eq!(host.nat.stats().mappings, 0);
                        host.admit_address(public(v6, other));
                        assert_eq!(host.through(0, D, frame).unwrap().1.0, public(v6, other));
                    }
                }
                got.insert((address, first.is_ok()));
            }
        }
        assert_eq!(got.len(), 4, "either address is had and either is not");
    });
}

#[test]
fn a_mapping_that_begins_nothing_any_more_is_not_what_is_judged() {
    both(|v6| {
        let mut host = host(false, |_| {});
        host.leaves(D, remote(v6, 1), (4000, 99));
        host.end_connections();
        let spec = PoolSpec { draining: pool().addresses, ..pool() };
        let addresses = pool().addresses.into_iter().chain([false, true].map(|v6| public(v6, POOL_TOO))).collect();
        let spec = PoolSpec { addresses, ..spec };
        host.plane.pools = Arc::new(Pools::compile(&host.nat, &[spec], host.now).unwrap());
        host.admit_address(public(v6, POOL));
        assert_eq!(host.traced(D, &frames(v6)[0]), Err(DropReason::PolicyDenied));
        assert_eq!(host.to(D, &frames(v6)[0]), Err(DropReason::PolicyDenied));
        host.admit_address(public(v6, POOL_TOO));
        let (_, seen) = host.through(0, D, &frames(v6)[0]).unwrap();
        assert_eq!((seen.0, seen.2 == 0), (public(v6, POOL_TOO), false));
    });
}

/// Another worker, which gives the sender the other address between the question and the mapping.
struct Other {
    nat: Arc<Nat>,
    pools: Pools,
    v6: bool,
    asked: u32,
}

impl Recorder for Other {
    const MASKED: bool = false;

    fn stage(&mut self, name: &'static str, _detail: Detail) {
        if name != "ingress" {
            return;
        }
        self.asked += 1;
        let address = mapped(address(A, self.v6));
        let inside = hostweave_nat::Inside { port: D, uid: workload(D).uid, vni: 9, address, l4: 1, proto: 17 };
        let remote = hostweave_nat::Outside { address: mapped(remote(self.v6, 1)), l4: 9 };
        self.nat.outbound(&self.pools, &inside, remote, 100).unwrap();
    }
}

/// The same about the filter of a pool.
#[test]
fn who_was_let_in_by_an_address_that_it_does_not_get_is_not_let_in() {
    both(|v6| {
        let filtered = |spec: &mut PoolSpec| {
            two(spec);
            spec.filtering = Filtering::AddressDependent;
        };
        // Which of the two addresses the sender would get.
        let mut host = host(false, filtered);
        host.leaves_from(B, remote(v6, 1), (5000, 53));
        let foreseen = host.leaves_from(D, remote(v6, 1), (4000, 53)).0;
        let mut host = self::host(false, filtered);
        let (at, l4) = host.leaves_from(B, remote(v6, 1), (5000, 53));
        assert_eq!(host.through(0, B, &out(B, foreseen).udp(5000, 9, b"?")), Err(DropReason::NatNoMapping));
        let frame = out(D, at).udp(4000, l4, b"?");
        assert_eq!(host.traced(D, &frame), Ok(B));
        let mut spec = PoolSpec { draining: vec![foreseen], ..pool() };
        filtered(&mut spec);
        let pools = Pools::compile(&host.nat, &[spec], host.now).unwrap();
        let mut other = Other { nat: Arc::clone(&host.nat), pools, v6, asked: 0 };
        let before = host.entries().len();
        let ended = host.pass(0, D, &frame, Offload::default(), &mut other).err().unwrap();
        assert_eq!((ended.0, other.asked), (DropReason::NatNoMapping, 1));
        assert_eq!(host.entries().len(), before);
        assert_eq!(host.to(D, &frame), Err(DropReason::NatNoMapping), "B has not sent to where it is now");
    });
}

#[test]
fn an_address_that_was_not_foreseen_is_judged_before_anything_passes() {
    both(|v6| {
        for allowed in [false, true] {
            let mut host = host(false, two);
            host.admit_address(public(v6, POOL));
            let foreseen = if host.traced(D, &frames(v6)[0]).is_ok() { POOL } else { POOL_TOO };
            let given = POOL + POOL_TOO - foreseen;
            let mut spec = pool();
            two(&mut spec);
            spec.draining = vec![public(v6, foreseen)];
            let pools = Pools::compile(&host.nat, &[spec], host.now).unwrap();
            let mut other = Other { nat: Arc::clone(&host.nat), pools, v6, asked: 0 };
            if allowed {
                host.admit(if v6 { "::/0" } else { "0.0.0.0/0" });
            } else {
                host.admit_address(public(v6, foreseen));
            }
            let passed = host.pass(0, D, &frames(v6)[0], Offload::default(), &mut other);
            assert_eq!(other.asked, 2);
            match passed {
                Ok(passed) => assert_eq!((allowed, passed.to, read(&passed.frame).1.0), (true, B, public(v6, given))),
                Err(ended) => assert_eq!((allowed, ended.0), (false, DropReason::PolicyDenied)),
            }
            assert_eq!(host.nat.stats().mappings, 1 + u64::from(allowed), "of the other worker's, and of this one");
            assert_eq!(host.entries().len(), usize::from(allowed));
        }
    });
}

/// SEMANTICS NA17: the flow log says of which connections the L4 port outside is one that others use too.
#[test]
fn na17_a_connection_on_a_shared_l4_port_is_told() {
    both(|v6| {
        let mut host = Host::with_pool(|pool| (pool.blocks, pool.overload) = (1..=1, true));
        let mut shares = |l4: u16, server: IpAddr| {
            let header = TcpHeader { src_port: l4, dst_port: 80, flags: SYN, window: 1000, ..Default::default() };
            let frame = out(A, server).tcp(&header, b"");
            let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).map_err(|ended| ended.0).unwrap();
            passed.opened.unwrap().shared
        };
        for l4 in 4000..4064 {
            assert!(!shares(l4, remote(v6, 1)), "{l4} has one of the block for itself");
        }
        assert!(shares(5000, remote(v6, 2)));
    });
}
