//! How connections to the outside end, and how they outlive the process (SEMANTICS NA16, NA38, CT1).

use super::*;

#[test]
fn mappings_are_given_back_when_connections_end_whoever_ends_them() {
    both(|v6| {
        let mut host = Host::outside();
        let nat = Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = Arc::clone(&nat);
        host.connections
            .on_release(Box::new(move |_, hold, entry| told.lock().unwrap().push((hold, entry.key.src_port()))));
        host.leaves(A, remote(v6, 1), (4000, 7000));
        let held = host.entry().translation.unwrap().held[0].unwrap();
        host.leaves(A, remote(v6, 1), (4001, 7000));
        let entry = host.entries().into_iter().find(|entry| entry.key.src_port() == 4000).unwrap();
        assert!(host.connections.remove(entry.index, entry.generation, Ending::Flushed));
        assert_eq!(*nat.lock().unwrap(), [(held, 4000)]);
        // By its time, which is that of a mapping (SEMANTICS NA16), not that of UDP within a network.
        let expire = |host: &Host, now| {
            for shard in 0..Connections::shards() {
                host.connections.expire(shard, &host.plane.tables.timeouts, now, 1000);
            }
        };
        expire(&host, 100 + 300);
        assert_eq!(nat.lock().unwrap().len(), 1);
        expire(&host, 100 + 302);
        assert_eq!((nat.lock().unwrap().len(), host.entries().len()), (2, 0));
        // By its own port at its limit, of those that nobody answered.
        host.connections.share([(A, 1)].into_iter());
        host.leaves(A, remote(v6, 1), (4002, 7000));
        for port in 4003..5000 {
            let _ = host.to(A, &out(A, remote(v6, 1)).udp(port, 7000, b"data"));
        }
        let told = nat.lock().unwrap().len();
        assert!(host.connections.evicted() > 0);
        assert_eq!(told as u64, 2 + host.connections.evicted());
    });
}

#[test]
fn connections_of_an_earlier_run_go_on_and_are_judged_again() {
    both(|v6| {
        let mut host = Host::outside();
        let (server, pool) = (remote(v6, 1), public(v6, POOL));
        let l4 = host.leaves(A, server, (4000, 53));
        host.leaves(B, server, (4000, 53));
        let before = host.entries();
        let options = Options { capacity: 1024, boot: 1, now: 101 };
        let next = Connections::open(&host.dir.path().join("connections"), &options).unwrap();
        next.make_available(1024);
        next.make_translatable(1024);
        next.share((0..6).map(|port| (port, 1024)));
        let mut seen = Vec::new();
        let adopted = next.adopt(&host.plane.tables.timeouts, 101, |entry| {
            seen.push((entry.in_port, entry.translation));
            if entry.in_port == A {
                hostweave_switch::connection::Claim::Keep
            } else {
                hostweave_switch::connection::Claim::Forget
            }
        });
        assert_eq!((adopted.kept, adopted.forgotten), (1, 1));
        assert_eq!(seen, before.iter().map(|entry| (entry.in_port, entry.translation)).collect::<Vec<_>>());
        host.connections = Arc::new(next);
        host.workers = [(); 2].map(|()| (FlowCache::new(4096).unwrap(), FreeRecords::new()));
        let answer = inward(server, pool).udp(53, l4, b"answer");
        assert_eq!(host.through(1, UPLINK, &answer), Ok((A, (server, address(A, v6), 53, 4000))));
        assert_eq!(host.leaves(A, server, (4000, 53)), l4);
        assert_eq!(host.entries().len(), 1);
        assert_ne!(host.connections.records()[host.entry().index as usize].epoch(), 0, "judged");
        // One whose translation makes no sense any more is forgotten: the file holds none.
        let truncated = Connections::open(&host.dir.path().join("connections"), &options).unwrap();
        truncated.make_available(1024);
        let keep = |_: &Entry| hostweave_switch::connection::Claim::Keep;
        assert_eq!(truncated.adopt(&host.plane.tables.timeouts, 101, keep).kept, 0);
    });
}

#[test]
fn two_connections_never_have_one_tuple_of_answers() {
    both(|v6| {
        let mut host = Host::outside();
        let l4 = host.leaves(A, remote(v6, 1), (4000, 53));
        // The address of the pool becomes that of a port, with the same L4 port in use.
        host.edit_uplink(|uplink| {
            let attached = Owned::Attached { port: PortId(B), inside: Some(mapped(address(B, v6))) };
            uplink.owned.insert(mapped(public(v6, POOL)), attached);
        });
        let frame = out(B, remote(v6, 1)).udp(l4, 53, b"data");
        assert_eq!(host.to(B, &frame), Err(DropReason::NatTupleTaken));
    });
}

#[test]
fn a_trace_of_a_packet_that_would_leave_changes_nothing() {
    both(|v6| {
        let mut host = Host::outside();
        let frame = out(A, remote(v6, 1)).udp(4000, 53, b"data");
        assert_eq!(host.send_with(0, A, &frame, &mut Masked).map(|way| way.0), Ok(UPLINK));
        assert_eq!((host.entries().len(), host.nat.stats().mappings), (0, 0));
        host.to(A, &frame).unwrap();
        let before = host.entry();
        host.now = 110;
        assert_eq!(host.send_with(1, A, &frame, &mut Masked).map(|way| way.0), Ok(UPLINK));
        assert_eq!(host.entry(), before);
    });
}

#[test]
fn connections_of_an_address_that_was_given_up_go_on_and_none_begins() {
    both(|v6| {
        for attached in [None, Some(Some(mapped(address(B, v6)))), Some(None)] {
            let mut host = Host::outside();
            let (from, at) = if attached.is_some() { (B, public(v6, PUBLIC)) } else { (A, public(v6, POOL)) };
            let mut sent = out(from, remote(v6, 1));
            if let Some(inside) = attached {
                host.edit_uplink(|uplink| {
                    uplink.owned.insert(mapped(at), Owned::Attached { port: PortId(B), inside });
                });
                if inside.is_none() {
                    sent.src = at;
                    host.plane.tables.set_addresses([(AddressKey::new(NETWORK, at), PortId(B))]);
                    let mut port = (**host.plane.tables.ports[B as usize].as_ref().unwrap()).clone();
                    match at {
                        IpAddr::V4(at) => port.v4.push(at),
                        IpAddr::V6(at) => port.v6.push(at),
                    }
                    host.plane.tables.set_ports([Arc::new(port)]);
                    host.publish();
                }
            }
            let frame = sent.udp(4000, 53, b"data");
            let (_, (shown, _, l4, _)) = host.through(0, from, &frame).unwrap();
            assert_eq!(shown, at);
            let before = host.entry();
            host.edit_uplink(|uplink| {
                let owner = uplink.owned.remove(&mapped(at)).unwrap();
                uplink.kept.insert(mapped(at), owner);
            });
            for worker in 0..2 {
                let answer = inward(remote(v6, 1), at).udp(53, l4, b"answer");
                assert_eq!(host.through(worker, UPLINK, &answer).map(|(to, _)| to), Ok(from), "{attached:?}");
                assert_eq!(host.through(worker, from, &frame), Ok((UPLINK, (at, remote(v6, 1), l4, 53))));
            }
            assert_eq!(host.entries().iter().map(|entry| entry.generation).collect::<Vec<_>>(), [before.generation]);
            let stranger = inward(remote(v6, 2), at).udp(53, l4, b"?");
            assert_eq!(host.through(0, UPLINK, &stranger), Err(DropReason::NotOurs), "none begins");
            // Once it is nobody's of ours at all, they end.
            host.edit_uplink(|uplink| uplink.kept.clear());
            let answer = inward(remote(v6, 1), at).udp(53, l4, b"answer");
            assert_eq!(host.through(0, UPLINK, &answer), Err(DropReason::NotOurs));
        }
    });
}
