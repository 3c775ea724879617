//! What is kept of a flow that crosses is never used past what it rests on.

use super::*;

/// Invariant 12, whatever was decided and kept: what leaves has a source that the host owns when its flow was last looked at.
#[test]
fn a_source_that_is_the_hosts_no_more_does_not_leave_whatever_is_kept_of_its_flow() {
    both(|v6| {
        let mut host = Host::outside();
        let server = remote(v6, 1);
        let l4 = host.leaves(A, server, (4000, 53));
        let frame = out(A, server).udp(4000, 53, b"data");
        host.through(0, UPLINK, &inward(server, public(v6, POOL)).udp(53, l4, b"answer")).unwrap();
        for _ in 0..3 {
            assert_eq!(host.leaves(A, server, (4000, 53)), l4);
        }
        let disown = |host: &mut Host| {
            let mut uplink = (**host.plane.tables.uplink.as_ref().unwrap()).clone();
            uplink.owned.insert(mapped(public(v6, POOL)), Owned::Host);
            host.plane.tables.uplink = Some(Arc::new(uplink));
            host.plane.tables.keep_established = true;
        };
        // As if nobody had been told: the flow's next round finds it out.
        disown(&mut host);
        host.now += TRUST_S;
        assert_eq!(host.to(A, &frame), Err(DropReason::SourceNotOwned));
        assert_eq!(host.to(A, &frame), Err(DropReason::SourceNotOwned), "and nothing is kept of that");
        // Told, the next packet does.
        let mut host = Host::outside();
        let l4 = host.leaves(A, server, (4000, 53));
        host.through(0, UPLINK, &inward(server, public(v6, POOL)).udp(53, l4, b"answer")).unwrap();
        assert_eq!(host.leaves(A, server, (4000, 53)), l4);
        disown(&mut host);
        host.publish();
        assert!(host.to(A, &frame).is_err());
    });
}

#[test]
fn a_flow_that_crosses_follows_its_gateway_and_the_link() {
    both(|v6| {
        let mut host = Host::outside();
        let server = remote(v6, 1);
        let l4 = host.leaves(A, server, (4000, 53));
        host.through(0, UPLINK, &inward(server, public(v6, POOL)).udp(53, l4, b"answer")).unwrap();
        let frame = out(A, server).udp(4000, 53, b"data");
        let first = |host: &mut Host| {
            let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).map_err(|ended| ended.0)?;
            Ok(MacAddr(read(&passed.frame).0.dst_mac))
        };
        assert_eq!([first(&mut host), first(&mut host)], [Ok(GATEWAY_MAC); 2]);
        let other = MacAddr([2, 0, 0, 0, 0xff, 9]);
        host.edit_uplink(|uplink| {
            uplink.v4.iter_mut().chain(&mut uplink.v6).for_each(|gateway| gateway.mac = Some(other));
        });
        assert_eq!([first(&mut host), first(&mut host)], [Ok(other); 2]);
        host.edit_uplink(|uplink| uplink.link = false);
        assert_eq!([first(&mut host), first(&mut host)], [Err(DropReason::UplinkDown); 2]);
        host.edit_uplink(|uplink| uplink.link = true);
        assert_eq!([first(&mut host), first(&mut host)], [Ok(other); 2]);
    });
}
