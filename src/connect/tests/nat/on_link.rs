//! Hosts on the uplink's own link: they are sent to themselves, routers or not (RFC 1122 §3.3.1.1).

use super::*;

#[test]
fn a_neighbour_on_the_link_is_sent_to_itself_once_it_has_answered() {
    both(|v6| {
        const NEIGHBOR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xff, 9]);
        let mut host = Host::outside();
        let sought = Arc::new(Sought::default());
        let (near, far) = (remote(v6, 1), public(v6, 100));
        let subnet = [IpNet::new(near, if v6 { 64 } else { 24 }).unwrap()];
        let link = |known: bool| {
            let known = known.then(|| (near, Arc::new(Neighbor::new(NEIGHBOR_MAC))));
            OnLink::new(&subnet, known, Arc::clone(&sought))
        };
        let to = |host: &mut Host, to, port| {
            let frame = out(A, to).udp(4000, port, b"data");
            let passed = host.pass(0, A, &frame, Offload::default(), &mut Unwatched).ok()?;
            Some(MacAddr(*passed.frame.first_chunk().unwrap()))
        };
        host.edit_uplink(|uplink| uplink.on_link = link(false));
        assert_eq!(
            [to(&mut host, near, 53), to(&mut host, far, 53)],
            [Some(GATEWAY_MAC); 2],
            "nothing is lost meanwhile"
        );
        assert_eq!(sought.take(), [(PortId(A), mapped(near))]);
        host.edit_uplink(|uplink| uplink.on_link = link(true));
        assert_eq!([to(&mut host, near, 54), to(&mut host, far, 54)], [Some(NEIGHBOR_MAC), Some(GATEWAY_MAC)]);
        // The flow that began before, from its next round on.
        host.now += 2 * TRUST_S;
        assert_eq!(to(&mut host, near, 53), Some(NEIGHBOR_MAC));
        assert_eq!(sought.take(), []);
        // Without any router neighbours are reached, and nobody else.
        host.edit_uplink(|uplink| (uplink.v4, uplink.v6) = (Vec::new(), Vec::new()));
        assert_eq!([to(&mut host, near, 55), to(&mut host, far, 55)], [Some(NEIGHBOR_MAC), None]);
        host.edit_uplink(|uplink| uplink.on_link = link(false));
        assert_eq!(host.to(A, &out(A, near).udp(4000, 56, b"data")), Err(DropReason::NextHopUnresolved));
        assert_eq!(sought.take(), [(PortId(A), mapped(near))]);
    });
}
