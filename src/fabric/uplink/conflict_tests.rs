//! Tests of `conflict`: time is an argument, and who answers.

use super::*;

const HIS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x66]);

fn address(last: u16, v6: bool) -> IpAddr {
    if v6 { std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into() } else { [192, 0, 2, last as u8].into() }
}

struct Scene {
    conflicts: Conflicts,
    now: Instant,
    probed: Vec<IpAddr>,
    settled: Vec<IpAddr>,
    regained: Vec<IpAddr>,
}

impl Scene {
    fn new(mode: OnConflict) -> Self {
        let mut conflicts = Conflicts::default();
        conflicts.set_mode(mode);
        Self { conflicts, now: Instant::now(), probed: Vec::new(), settled: Vec::new(), regained: Vec::new() }
    }

    fn arrive(&mut self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        self.conflicts.arrived(addresses.to_vec(), self.now)
    }

    /// Lets time pass, in steps of ten milliseconds. Each probe of an address of `taken` is answered.
    fn pass(&mut self, time: Duration, taken: &[IpAddr]) -> &mut Self {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(10);
            let step = self.conflicts.step(self.now, 8);
            assert!(self.conflicts.due().is_none_or(|due| due > self.now), "it waits until there is something to do");
            for address in step.probes.iter().filter(|address| taken.contains(address)) {
                self.conflicts.claimed(*address, HIS, self.now);
            }
            self.probed.extend(step.probes);
            self.settled.extend(step.settled);
            self.regained.extend(step.regained);
        }
        self
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_address_that_nobody_answers_for_is_ours_within_a_second_after_three_probes() {
    for v6 in [false, true] {
        let mut scene = Scene::new(OnConflict::Yield);
        let all: Vec<IpAddr> = (1..41).map(|last| address(last, v6)).collect();
        assert!(scene.arrive(&all).is_empty());
        assert!(
            scene.conflicts.unsettled().count() == 40
                && all.iter().all(|address| !scene.conflicts.is_settled(*address))
        );
        scene.pass(SECOND, &[]);
        assert_eq!((scene.settled.clone(), scene.regained.len()), (all.clone(), 0), "all at once");
        assert!(all.iter().all(|address| scene.probed.iter().filter(|probed| *probed == address).count() == 3));
        assert_eq!((scene.conflicts.unsettled().count(), scene.conflicts.due()), (0, None));
    }
}

#[test]
fn an_address_that_somebody_answers_for_is_lost_until_nobody_does() {
    for v6 in [false, true] {
        let mut scene = Scene::new(OnConflict::Yield);
        let (free, taken) = (address(1, v6), address(2, v6));
        scene.arrive(&[free, taken]);
        scene.pass(20 * SECOND, &[taken]);
        assert_eq!(
            (scene.settled.clone(), scene.conflicts.lost().collect::<Vec<_>>()),
            (vec![free], vec![(taken, HIS)])
        );
        assert!(
            scene.conflicts.is_settled(free) && !scene.conflicts.is_settled(taken) && scene.conflicts.is_lost(taken)
        );
        let probes = scene.probed.iter().filter(|probed| **probed == taken).count();
        assert!((4..=16).contains(&probes), "less and less often: {probes}");
        // It moves here: its other owner lets go of it.
        scene.pass(40 * SECOND, &[]);
        assert_eq!((scene.regained.clone(), scene.settled.clone()), (vec![taken], vec![free, taken]));
        assert_eq!(scene.conflicts.unsettled().count(), 0);
    }
}

#[test]
fn two_hosts_that_probe_one_address_at_once_agree_in_the_end() {
    for v6 in [false, true] {
        let (mut one, mut two) = (Scene::new(OnConflict::Yield), Scene::new(OnConflict::Yield));
        (one.conflicts.salt, two.conflicts.salt) = (1, 200);
        let address = address(1, v6);
        one.arrive(&[address]);
        two.arrive(&[address]);
        let ten = Duration::from_millis(10);
        for _ in 0..6000 {
            for at in [false, true] {
                let (asks, hears) = if at { (&mut one, &mut two) } else { (&mut two, &mut one) };
                let before = asks.probed.len();
                asks.pass(ten, &[]);
                for _ in before..asks.probed.len() {
                    if hears.conflicts.unsettled().any(|(unsettled, _)| unsettled == address) {
                        hears.conflicts.claimed(address, HIS, hears.now);
                    } else {
                        asks.conflicts.claimed(address, HIS, asks.now);
                    }
                }
            }
        }
        assert_eq!([&one, &two].map(|host| host.settled.len()).iter().sum::<usize>(), 1, "one of them has it");
    }
}

#[test]
fn an_address_of_ours_is_defended_once_and_given_up_when_it_is_claimed_again() {
    for v6 in [false, true] {
        let address = address(1, v6);
        for (mode, second) in [(OnConflict::Yield, Claim::Lost), (OnConflict::Defend, Claim::Known)] {
            let mut scene = Scene::new(mode);
            scene.arrive(&[address]);
            scene.pass(SECOND, &[]);
            for _ in 0..3 {
                assert_eq!(scene.conflicts.claimed(address, HIS, scene.now), Claim::Defended);
                let again = scene.now + Duration::from_millis(10);
                assert_eq!(scene.conflicts.claimed(address, HIS, again), Claim::Known, "said in two ways");
                scene.pass(11 * SECOND, &[]);
            }
            assert_eq!(scene.conflicts.claimed(address, HIS, scene.now), Claim::Defended);
            scene.pass(SECOND, &[]);
            assert_eq!(scene.conflicts.claimed(address, HIS, scene.now), second);
            assert_eq!(scene.conflicts.is_lost(address), second == Claim::Lost);
            assert_eq!(scene.conflicts.was_used(address), second == Claim::Lost);
            scene.pass(4 * SECOND, &[]);
            assert!(!scene.conflicts.is_lost(address), "who claimed it does not answer");
        }
    }
}

#[test]
fn nothing_is_probed_where_that_is_not_wanted_and_what_leaves_is_forgotten() {
    for v6 in [false, true] {
        let all = [address(1, v6), address(2, v6)];
        let mut scene = Scene::new(OnConflict::Ignore);
        assert_eq!(scene.arrive(&all), all);
        assert_eq!(scene.conflicts.claimed(all[0], HIS, scene.now), Claim::Told);
        assert_eq!((scene.conflicts.due(), scene.conflicts.is_lost(all[0])), (None, false));
        let mut scene = Scene::new(OnConflict::Yield);
        scene.arrive(&all);
        scene.pass(Duration::from_millis(300), &all[..1]);
        assert!(scene.conflicts.is_lost(all[0]) && !scene.conflicts.was_used(all[0]));
        scene.conflicts.keep(|address| *address == all[1]);
        scene.pass(SECOND, &[]);
        assert_eq!((scene.settled.clone(), scene.conflicts.due()), (vec![all[1]], None));
        scene.arrive(&all);
        let mut ours = scene.conflicts.set_mode(OnConflict::Ignore);
        ours.sort_unstable();
        assert_eq!((ours, scene.conflicts.due()), (all.to_vec(), None), "from now on they are ours");
        // The cable came anew: what somebody else had is asked about at once.
        let mut scene = Scene::new(OnConflict::Yield);
        scene.arrive(&all);
        scene.pass(Duration::from_millis(300), &all[..1]);
        scene.arrive(&all);
        scene.pass(SECOND, &[]);
        assert_eq!(scene.settled.len(), 2);
    }
}

#[test]
fn claims_of_any_number_of_addresses_that_are_not_settled_count_without_a_note() {
    for v6 in [false, true] {
        let mut scene = Scene::new(OnConflict::Defend);
        let all: Vec<IpAddr> = (1..201).map(|last| address(last, v6)).collect();
        scene.arrive(&all);
        scene.pass(Duration::from_millis(100), &[]);
        scene.conflicts.unsettled().for_each(|(_, claimed)| claimed.note(HIS));
        let mut lost = Vec::new();
        for _ in 0..200 {
            scene.now += Duration::from_millis(10);
            let step = scene.conflicts.step(scene.now, 8);
            assert!(step.settled.is_empty());
            lost.extend(step.lost);
        }
        assert_eq!(lost, all.iter().map(|address| (*address, HIS)).collect::<Vec<_>>());
        assert!(all.iter().all(|address| scene.conflicts.is_lost(*address)));
        // Nor are they taken over while somebody answers.
        for _ in 0..2000 {
            scene.now += Duration::from_millis(10);
            let step = scene.conflicts.step(scene.now, 8);
            assert!(step.settled.is_empty());
            scene.conflicts.unsettled().filter(|(at, _)| step.probes.contains(at)).for_each(|(_, at)| at.note(HIS));
        }
        scene.pass(70 * SECOND, &[]);
        assert_eq!((scene.regained.len(), scene.conflicts.unsettled().count()), (200, 0), "nobody has them any more");
    }
}

#[test]
fn by_default_no_number_of_claims_takes_an_address_away_that_is_ours() {
    for v6 in [false, true] {
        let address = address(1, v6);
        let mut scene = Scene::new(OnConflict::default());
        scene.arrive(&[address]);
        scene.pass(SECOND, &[]);
        let mut defended = 0;
        for _ in 0..120 {
            scene.pass(Duration::from_millis(500), &[]);
            match scene.conflicts.claimed(address, HIS, scene.now) {
                Claim::Defended => defended += 1,
                other => assert_eq!(other, Claim::Known),
            }
            assert_eq!(scene.conflicts.contested().collect::<Vec<_>>(), [(address, HIS)], "people see it");
        }
        assert_eq!(defended, 6, "every ten seconds");
        assert!(scene.conflicts.is_settled(address) && !scene.conflicts.is_lost(address));
        scene.pass(CONTESTED, &[]);
        assert_eq!(scene.conflicts.contested().count(), 0);
    }
}
