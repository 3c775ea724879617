//! What a draft makes of the uplink as it is.

use hostweave::fabric::plane::Plane;
use hostweave::fabric::spec::OnConflict;
use hostweave_switch::tables::mapped;

use super::*;

/// One address of a family is the router's from the start, that of the other is given up at the second claim.
pub(super) fn lost() {
    for (taken, given_up) in [(1, 0), (0, 1)] {
        let router = Router::new(&format!("drafts-{taken}"));
        lost_to(&router, taken, given_up);
        drop(router);
        eventually("the cable is gone", || interface("up0").unwrap().is_none());
    }
}

fn lost_to(router: &Router, taken: usize, given_up: usize) {
    let options = ["32 dev eth0", "128 dev eth0 nodad"][taken];
    router.ip(&format!("addr add {}/{options}", POOL[taken]));
    let mut host = Host::with(UplinkSpec { on_conflict: OnConflict::Yield, ..spec() });
    host.up();
    let pool = POOL.map(|address| address.parse::<IpAddr>().unwrap());
    host.event(
        "the router has it",
        |event| matches!(event, FabricEvent::UplinkAddressLost { address, .. } if *address == pool[taken]),
    );
    let (mut liar, his) = (router.liar(), MacAddr([2, 0, 0, 0, 0, 0x66]));
    eventually("the other is ours", || {
        !host.fabric.plane().tables.uplink.as_deref().unwrap().unsettled.contains_key(&mapped(pool[given_up]))
    });
    let owns = |plane: &Plane, at: usize| {
        let uplink = plane.tables.uplink.as_deref().unwrap();
        [uplink.owned.contains_key(&mapped(pool[at])), uplink.kept.contains_key(&mapped(pool[at]))]
    };
    let end = Instant::now() + PATIENCE;
    while owns(&host.fabric.plane(), given_up)[0] {
        assert!(Instant::now() < end, "it is given up");
        liar.says(1, MacAddr::BROADCAST, (his, POOL[given_up]), (MacAddr::default(), POOL[given_up]));
        std::thread::sleep(Duration::from_millis(600));
    }
    let draft = |desired: &Desired| host.fabric.draft(desired).unwrap().plane;
    for plane in [&*host.fabric.plane(), &draft(&host.desired)] {
        assert_eq!([owns(plane, given_up), owns(plane, taken)], [[false, true], [false, false]], "nor does a draft");
    }
    // One that would not look has them.
    let ignores = UplinkSpec { on_conflict: OnConflict::Ignore, ..spec() };
    let plane = draft(&Desired { uplink: Some(ignores), ..host.desired.clone() });
    assert_eq!([owns(&plane, given_up), owns(&plane, taken)], [[true, false]; 2]);
}
