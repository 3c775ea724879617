//! What a draft makes of the uplink as it is.

use hostweave::fabric::plane::Plane;
use hostweave::fabric::spec::OnConflict;
use hostweave_switch::tables::mapped;

use super::*;

pub(super) fn lost() {
    let router = Router::new("drafts");
    // One address is the router's from the start, the other is given up at the second claim.
    router.ip(&format!("addr add {}/128 dev eth0 nodad", POOL[1]));
    let mut host = Host::with(UplinkSpec { on_conflict: OnConflict::Yield, ..spec() });
    host.up();
    let pool = POOL.map(|address| address.parse::<IpAddr>().unwrap());
    let is_lost = |event: &FabricEvent, at: usize| matches!(event, FabricEvent::UplinkAddressLost { address, .. } if *address == pool[at]);
    host.event("the router has it", |event| is_lost(event, 1));
    let (mut liar, his) = (router.liar(), MacAddr([2, 0, 0, 0, 0, 0x66]));
    eventually("the other is ours", || {
        !host.fabric.plane().tables.uplink.as_deref().unwrap().unsettled.contains_key(&mapped(pool[0]))
    });
    let owns = |plane: &Plane, at: usize| {
        let uplink = plane.tables.uplink.as_deref().unwrap();
        [uplink.owned.contains_key(&mapped(pool[at])), uplink.kept.contains_key(&mapped(pool[at]))]
    };
    let end = Instant::now() + PATIENCE;
    while owns(&host.fabric.plane(), 0)[0] {
        assert!(Instant::now() < end, "it is given up");
        liar.arp(1, MacAddr::BROADCAST, (his, POOL[0]), (MacAddr::default(), POOL[0]));
        std::thread::sleep(Duration::from_millis(600));
    }
    let draft = |desired: &Desired| host.fabric.draft(desired).unwrap().plane;
    for plane in [&*host.fabric.plane(), &draft(&host.desired)] {
        assert_eq!([owns(plane, 0), owns(plane, 1)], [[false, true], [false, false]], "nor does a draft");
    }
    // One that would not look has them.
    let ignores = UplinkSpec { on_conflict: OnConflict::Ignore, ..spec() };
    let plane = draft(&Desired { uplink: Some(ignores), ..host.desired.clone() });
    assert_eq!([owns(&plane, 0), owns(&plane, 1)], [[true, false]; 2]);
}
