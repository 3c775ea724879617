//! Backends that are held out: ejected because clients cannot connect to them, or because they flap.

use super::*;

impl World {
    /// Connections of these ports to a backend of the network with this VNI failed; then it is judged.
    fn fail(&mut self, vni: u32, port: u8, clients: &[u32], answered: bool) -> Settled {
        self.second += 10;
        let now = u32::try_from(self.second).unwrap();
        let failures = clients.iter().zip(1..).map(|(from, n)| outlier::Failure {
            connection: (n, now),
            from: *from,
            client: None,
            asked: ip(VIP),
            refused: true,
            created: now,
        });
        let located = (vni, endpoint(port).address, 8080, 6);
        let sought = self.balance.observe(&HashMap::from([(located, failures.collect())]), now);
        let answered = answered.then_some((located, now)).into_iter().collect();
        self.balance.judge(&sought, &answered, (now, at(self.second)));
        self.settle()
    }

    fn pass(&mut self, seconds: u64) -> Settled {
        self.second += seconds;
        self.balance.observe(&HashMap::new(), u32::try_from(self.second).unwrap());
        self.settle()
    }
}

fn outlier() -> ServiceSpec {
    let outlier = OutlierSpec { consecutive_failures: 3, base_ejection_s: 30, max_ejection_percent: 50 };
    ServiceSpec { outlier: Some(outlier), drain: Drain::Reset, ..service(vec![endpoint(1), endpoint(2)]) }
}

#[test]
fn a_backend_that_clients_cannot_connect_to_is_out_for_a_while_and_keeps_its_connections() {
    let mut world = World::of(outlier());
    assert!(told(&world.fail(4097, 1, &[1, 2, 1], false)).is_empty(), "that address of another network");
    assert!(told(&world.fail(4096, 1, &[1, 2, 1], true)).is_empty(), "another client was answered");
    let settled = world.fail(4096, 1, &[1, 2, 1], false);
    let reason = "3 connections of several clients in a row failed (3 refused, 0 unanswered); out for 30 s, ejection 1";
    assert_eq!(told(&settled), [format!("shop/web-1 healthy -> ejected: {reason}")]);
    assert!(settled.is_visible());
    // What it has goes on, although connections of those that leave are reset.
    assert_eq!(world.behind(VIP), "(web-1) web-2");
    let ejected = |world: &World| -> Vec<bool> {
        world.balance.frontends().flat_map(|spec| spec.backends.iter().map(|backend| backend.ejected)).collect()
    };
    assert_eq!(ejected(&world), [true, false], "over UDP, too");
    let status = world.balance.status("shop/web").unwrap();
    assert_eq!(&*status.backends[0].ejection.as_ref().unwrap().reason, reason);
    assert!(status.backends[1].ejection.is_none());
    assert_eq!(world.balance.services["shop/web"].outliers.ejections, 1);
    assert!(told(&world.fail(4096, 2, &[1, 2, 1], false)).is_empty(), "the last one stays");
    assert!(told(&world.pass(5)).is_empty());
    assert_eq!(told(&world.pass(30)), ["shop/web-1 ejected -> healthy: its ejection is over"]);
    assert_eq!(world.behind(VIP), "web-1 web-2");
    // Nothing to be done is left, a good while later.
    world.pass(1_000);
    assert!(world.balance.observed.is_empty());
}

#[test]
fn an_ejected_backend_is_better_than_nobody_and_worse_than_one_that_ends() {
    let mut world = World::of(outlier());
    world.fail(4096, 1, &[1, 2, 1], false);
    assert_eq!(told(&world.run(2, false)), ["shop/web-2 healthy -> stopped"], "somebody serves yet");
    assert_eq!(world.behind(VIP), "web-1");
    assert!(world.balance.frontends().all(|spec| spec.backends.iter().all(|backend| !backend.ejected)));
    world.run(2, true);
    assert_eq!(world.behind(VIP), "(web-1) web-2");
    let ends = EndpointSpec { condition: Condition::Terminating, ..endpoint(2) };
    world.apply(ServiceSpec { ports: service(vec![endpoint(1), ends]).ports, ..outlier() });
    assert_eq!(world.behind(VIP), "(web-1) web-2");
}

#[test]
fn another_spec_of_the_service_keeps_an_ejection_and_a_guest_that_comes_anew_ends_it() {
    let mut world = World::of(outlier());
    world.fail(4096, 1, &[1, 2, 1], false);
    world.apply(ServiceSpec { ports: service(vec![endpoint(3), endpoint(1), endpoint(2)]).ports, ..outlier() });
    assert_eq!(world.behind(VIP), "(web-1) web-2 web-3");
    assert_eq!(told(&world.run(1, false)), ["shop/web-1 ejected -> stopped"]);
    assert_eq!(told(&world.run(1, true)), ["shop/web-1 stopped -> healthy"]);
    world.fail(4096, 1, &[1, 2, 1], false);
    assert_eq!(world.behind(VIP), "(web-1) web-2 web-3");
    let off = ServiceSpec { outlier: None, ..outlier() };
    world.apply(off);
    assert_eq!(world.behind(VIP), "web-1 web-2");
}

#[test]
fn a_backend_that_flaps_as_fast_as_it_can_is_held_out_and_costs_others_nothing() {
    let six = |n: u8| EndpointSpec { address: ip(&format!("2001:db8:64::{n}")), ..endpoint(n) };
    let of = |name: &str, last: u8, ports: [u8; 2]| ServiceSpec {
        name: name.into(),
        cluster: vec![IpAddr::from([10, 96, 0, last]), ip(&format!("2001:db8:96::{last}"))],
        health: Some(check()),
        ..service(ports.iter().flat_map(|n| [endpoint(*n), six(*n)]).collect())
    };
    for by_checks in [false, true] {
        let mut world = World::of(of("shop/web", 1, [1, 2]));
        world.apply_all(vec![of("shop/web", 1, [1, 2]), of("shop/other", 2, [3, 4])]);
        let start = world.now();
        for target in world.balance.targets().map(Arc::clone).collect::<Vec<_>>() {
            world.balance.set_verdict(&target, true, "", start);
        }
        world.settle();
        let (mut publications, mut news, mut frontends) = (0, 0, 0);
        let change = |world: &mut World, good: bool, now: Instant| {
            if by_checks {
                return world.verdict_at(1, good, now);
            }
            world.balance.set_running(Uuid::from_u128(1), good, now);
            world.settle()
        };
        // For ten minutes, a hundred times a second.
        for step in 0..60_000_u32 {
            let now = start + Duration::from_millis(10) * step;
            world.balance.release(now);
            let settled = change(&mut world, step % 2 == 1, now);
            publications += u32::from(settled.is_visible());
            frontends += settled.frontends.iter().filter(|spec| *spec.service != *"shop/web").count();
            news += settled.news.len();
            assert!(!settled.gone && settled.start.is_empty() && settled.stop.is_empty());
        }
        // Nine holds of 1 to 256 s are ten minutes; before that, departures are free.
        assert!((10..=2 * (damping::DEPARTURES_FREE + 10)).contains(&publications), "{publications}");
        assert!(news <= 80, "{news}");
        assert_eq!(frontends, 0, "nobody else is told anything");
        assert_eq!(world.behind("10.96.0.1"), "(web-1) web-2");
        let held = &world.balance.services["shop/web"];
        let change_of = held.changes.iter().rev().find(|change| change.to == Some(BackendState::Flapping)).unwrap();
        assert!(change_of.reason.as_ref().unwrap().contains("held out for"), "{change_of:?}");
        // It is good from now on, and comes back when its time is over.
        change(&mut world, true, start + Duration::from_secs(600));
        assert_eq!(world.behind("10.96.0.1"), "(web-1) web-2");
        let until = world.balance.facts().next_release().unwrap();
        world.balance.release(until);
        world.settle();
        assert_eq!(
            (world.behind("10.96.0.1").as_str(), world.behind("2001:db8:96::1").as_str()),
            ("web-1 web-2", "web-1 web-2")
        );
        assert_eq!(world.balance.facts().next_release(), None);
    }
}

/// After a kill and a restart nobody is forgotten: until it is checked again, and then until its time is over.
#[test]
fn who_is_ejected_still_is_after_a_restart() {
    let spec = ServiceSpec {
        outlier: Some(OutlierSpec { consecutive_failures: 2, base_ejection_s: 100, max_ejection_percent: 50 }),
        health: Some(check()),
        ..service(vec![endpoint(0), endpoint(1)])
    };
    let mut world = World::of(spec.clone());
    for n in 0..2 {
        world.verdict(n, true);
    }
    world.fail(4096, 0, &[1, 2, 1], false);
    let stored: BTreeMap<String, remembered::Remembered> =
        world.balance.take_to_store().into_iter().filter_map(|(name, of)| Some((name.to_string(), of?))).collect();
    assert_eq!(stored.len(), 1);
    let ejected = &stored["shop/web"].ejected;
    assert_eq!((ejected.len(), ejected[0].address, ejected[0].times), (1, endpoint(0).address, 1));
    let (time, until) = (at(world.second), ejected[0].until);
    assert!(until > time);

    let mut again = World { second: world.second, ..World::default() };
    again.balance.restore(stored, (7, time));
    for n in 0..2 {
        again.balance.set_running(Uuid::from_u128(n), true, Instant::now());
    }
    again.apply(spec.clone());
    let states = |world: &World| world.balance.services["shop/web"].view.as_ref().unwrap().states.clone();
    assert_eq!(states(&again), [[BackendState::Unchecked; 2]]);
    again.verdict(0, true);
    again.verdict(1, true);
    assert_eq!(states(&again), [[BackendState::Ejected, BackendState::Healthy]]);
    assert!(again.balance.take_to_store().is_empty(), "as the store has it");
    let left = until.duration_since(time).unwrap().as_secs() as u32;
    again.balance.observe(&HashMap::new(), 7 + left - 1);
    again.settle();
    assert_eq!(states(&again), [[BackendState::Ejected, BackendState::Healthy]]);
    again.balance.observe(&HashMap::new(), 7 + left + 1);
    again.settle();
    assert_eq!(states(&again), [[BackendState::Healthy; 2]]);
    let told: Vec<_> = again.balance.take_to_store();
    assert!(matches!(&told[..], [(name, None)] if **name == *"shop/web"), "{told:?}");

    // One whose checks fail first is no outlier any more; and a Service that is gone is forgotten.
    let mut other = World::default();
    other.balance.restore(
        [("shop/gone".to_owned(), remembered::Remembered { vni: 1, left: vec![], ejected: vec![] })].into(),
        (7, time),
    );
    other.apply(spec);
    let told: Vec<_> = other.balance.take_to_store();
    assert!(matches!(&told[..], [(name, None)] if **name == *"shop/gone"), "{told:?}");
}

#[test]
fn what_could_not_be_written_is_written_later_unless_there_is_something_newer() {
    let of = |vni| Some(remembered::Remembered { vni, left: vec![], ejected: vec![] });
    let mut world = World::default();
    let taken = vec![("shop/a".into(), of(1)), ("shop/a".into(), of(2)), ("shop/b".into(), of(1))];
    world.balance.put_back_to_store(taken);
    world.balance.to_store.push(("shop/b".into(), None));
    let taken = world.balance.take_to_store();
    world.balance.put_back_to_store(taken);
    let told: Vec<_> = world.balance.take_to_store();
    assert_eq!(told, [("shop/a".into(), of(2)), ("shop/b".into(), None)]);
}

#[test]
fn a_draft_knows_who_is_ejected() {
    let mut world = World::of(outlier());
    world.fail(4096, 1, &[1, 2, 1], false);
    let drafted = |world: &World, vni| -> Vec<(bool, bool)> {
        let specs = [Arc::new(ServiceSpec { affinity_s: Some(60), ..outlier() })];
        let drafts = draft(world.balance.facts(), &world.balance.services(), &[network("default", vni)], &specs);
        drafts[0].backends.iter().map(|backend| (backend.active, backend.ejected)).collect()
    };
    assert_eq!(drafted(&world, 4096), [(false, true), (true, false)]);
    assert_eq!(drafted(&world, 4098), [(true, false); 2], "in another network it is another");
    world.pass(35);
    assert_eq!(drafted(&world, 4096), [(true, false); 2]);
}
