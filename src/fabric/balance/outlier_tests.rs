//! Ejection of backends on a clock that the tests turn.

use std::time::Duration;

use hostweave_nat::service::Refusal;

use super::super::super::spec::{AllDown, Condition, Drain};
use super::*;

const SPEC: OutlierSpec = OutlierSpec { consecutive_failures: 5, base_ejection_s: 30, max_ejection_percent: 50 };

/// Backends of both families, by number; the last octet is theirs.
fn address(n: u8, v6: bool) -> IpAddr {
    if v6 { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]) } else { IpAddr::from([10, 0, 0, n]) }
}

struct World {
    spec: ServiceSpec,
    /// Without ejections.
    states: Vec<BackendState>,
    outliers: Outliers,
    now: u32,
    connection: u32,
    answered: HashMap<Place, u32>,
    v6: bool,
}

impl World {
    fn new(count: u8, v6: bool) -> Self {
        // The other family is there as well, and has nothing to do with it.
        let endpoints = [v6, !v6].into_iter().flat_map(|v6| {
            (0..count).map(move |n| EndpointSpec {
                name: format!("shop/web-{n}"),
                port: None,
                address: address(n, v6),
                l4: Some(80),
                weight: 1,
                condition: Condition::Ready,
                internal: true,
                external: true,
                rank: 0,
            })
        });
        let endpoints: Vec<_> = endpoints.collect();
        let states = vec![BackendState::Healthy; endpoints.len()];
        let spec = ServiceSpec {
            name: "shop/web".into(),
            network: "default".into(),
            cluster: Vec::new(),
            load_balancer: Vec::new(),
            ports: vec![ServicePortSpec { name: "http".into(), proto: proto::TCP, l4: 80..=80, endpoints }],
            names_healthy: false,
            internal_local: false,
            external_local: false,
            affinity_s: None,
            sources: Vec::new(),
            refusal_internal: Refusal::Reject,
            refusal_external: Refusal::Reject,
            health: None,
            outlier: Some(SPEC),
            all_down: AllDown::Reject,
            drain: Drain::Keep,
        };
        let (outliers, answered) = Default::default();
        Self { spec, states, outliers, now: 1_000, connection: 0, answered, v6 }
    }

    fn both(count: u8, test: impl Fn(World)) {
        [false, true].into_iter().for_each(|v6| test(World::new(count, v6)));
    }

    fn place(&self, n: u8) -> Place {
        (address(n, self.v6), 80, self.spec.ports[0].proto)
    }

    /// The same over UDP, with as many failures as asked for, of two clients, that nobody answered.
    fn is_silent(&mut self, n: u8, count: u32) {
        let (now, v6) = (self.now, self.v6);
        let silent = |connection: u32| Failure {
            connection: (1_000 * now + connection, 1),
            from: connection % 2,
            client: None,
            asked: address(n, v6),
            refused: false,
            created: now,
        };
        self.note(n, &Vec::from_iter((0..count).map(silent)));
        self.tick(1);
    }

    /// Failures of connections that begin now, one a client, and the second that follows.
    fn fail(&mut self, n: u8, clients: &[u32]) {
        let failures: Vec<Failure> = clients
            .iter()
            .map(|from| {
                self.connection += 1;
                Failure {
                    connection: (self.connection, 1),
                    from: *from,
                    client: None,
                    asked: address(n, self.v6),
                    refused: true,
                    created: self.now,
                }
            })
            .collect();
        self.note(n, &failures);
        self.tick(1);
    }

    fn note(&mut self, n: u8, failures: &[Failure]) {
        let place = self.place(n);
        self.outliers.note(&self.spec, &HashMap::from([(place, failures)]), self.now);
    }

    /// Somebody's connection is answered.
    fn answer(&mut self, n: u8) {
        self.answered.insert(self.place(n), self.now);
    }

    /// So many seconds pass.
    fn tick(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.now += 1;
            self.outliers.come_back(&self.spec, self.now);
            let states = self.states();
            let sought = self.outliers.sought(&self.spec, &states, self.now);
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.now.into());
            self.outliers.judge(&self.spec, &states, &sought, &self.answered, (self.now, time));
        }
    }

    fn states(&mut self) -> Vec<Vec<BackendState>> {
        let mut states = vec![self.states.clone()];
        self.outliers.apply(&self.spec, &mut states);
        states
    }

    /// Backends of the family that are out.
    fn out(&mut self) -> Vec<u8> {
        let states = self.states();
        let half = states[0].len() / 2;
        assert!(states[0][half..].iter().all(|state| *state == BackendState::Healthy), "the other family");
        let of = |(n, state): (usize, &BackendState)| (*state == BackendState::Ejected).then_some(n as u8);
        states[0][..half].iter().enumerate().filter_map(of).collect()
    }
}

#[test]
fn enough_failures_of_two_clients_eject_for_a_growing_time_and_then_it_is_back() {
    World::both(3, |mut world| {
        for (round, seconds) in [30, 60, 90].into_iter().enumerate() {
            world.fail(1, &[1, 1, 1, 2]);
            assert_eq!(world.out(), [] as [u8; 0], "round {round}");
            world.fail(1, &[2]);
            assert_eq!(world.out(), [1], "round {round}");
            let ejection = world.outliers.ejection(&world.place(1)).unwrap();
            let (reason, until) = (ejection.reason.to_string(), ejection.until);
            assert!(reason.contains("5 connections of several clients in a row failed (5 refused, 0 unanswered)"));
            assert!(reason.ends_with(&format!("out for {seconds} s, ejection {}", round + 1)), "{reason}");
            assert_eq!(until, SystemTime::UNIX_EPOCH + Duration::from_secs((world.now + seconds).into()));
            world.tick(seconds - 1);
            assert_eq!(world.out(), [1], "round {round}");
            world.tick(1);
            assert_eq!(world.out(), [] as [u8; 0], "round {round}");
        }
        assert_eq!(world.outliers.ejections, 3);
        // It behaves for two base times: one ejection counts, and then this one.
        world.tick(60);
        world.fail(1, &[1, 2, 1, 2, 1]);
        assert!(world.outliers.ejection(&world.place(1)).unwrap().reason.ends_with("out for 60 s, ejection 2"));
        world.tick(60 + 121);
        assert!(world.outliers.is_empty(), "what behaves is forgotten");
    });
}

#[test]
fn an_ejection_has_an_end() {
    let mut track = Track { times: 1_000, returned: 1_000, ..Track::default() };
    track.eject(&SPEC, 1_000, SystemTime::UNIX_EPOCH);
    assert!(!track.come_back(1_000 + EJECTION_MAX_S - 1) && track.come_back(1_000 + EJECTION_MAX_S));
    let long = OutlierSpec { base_ejection_s: 3_600, ..SPEC };
    track.eject(&long, 2_000, SystemTime::UNIX_EPOCH);
    assert!(!track.come_back(2_000 + 3_599) && track.come_back(2_000 + 3_600));
}

#[test]
fn a_client_alone_needs_more_and_none_ejects_a_backend_that_answers_others() {
    World::both(2, |mut world| {
        world.fail(0, &[7; 14]);
        assert_eq!(world.out(), [] as [u8; 0]);
        world.fail(0, &[7]);
        assert_eq!(world.out(), [0]);
    });
    World::both(2, |mut world| {
        // As many hostile clients as it likes to be, for an hour, and one connection of somebody else now and then.
        for second in 0..3_600 {
            if second % 2 == 0 {
                world.answer(0);
            }
            world.fail(0, &[1, 2, 3, 4]);
        }
        assert_eq!((world.out(), world.outliers.ejections), (vec![], 0));
        // From when nobody is answered any more it takes the failures of one second.
        world.fail(0, &[1, 2, 3, 4, 5]);
        world.fail(0, &[1, 2, 3, 4, 5]);
        assert_eq!(world.out(), [0]);
    });
    // A short streak is looked at before what was answered is forgotten, and begins anew then.
    World::both(2, |mut world| {
        world.fail(0, &[1, 2, 1, 2]);
        world.answer(0);
        world.tick(LOOK_EVERY_S);
        world.answered.clear();
        world.fail(0, &[1, 2, 1, 2]);
        assert_eq!(world.out(), [] as [u8; 0]);
        world.fail(0, &[1]);
        assert_eq!(world.out(), [0]);
    });
}

#[test]
fn never_all_of_them_nor_more_than_the_share() {
    for (count, percent, most) in
        [(1, 100, 0), (2, 50, 1), (2, 1, 1), (2, 100, 1), (3, 50, 1), (10, 30, 3), (10, 100, 9)]
    {
        World::both(count, |mut world| {
            world.spec.outlier = Some(OutlierSpec { max_ejection_percent: percent, ..SPEC });
            for n in 0..count {
                world.fail(n, &[1, 2, 1, 2, 1]);
            }
            assert_eq!(world.out().len(), most, "{count} {percent}");
            // Those that had to stay go when others return, if that is soon. What others do counts: one that fails its checks is none of those that serve.
            world.tick(STREAK_S + 100);
            assert_eq!(world.out(), [] as [u8; 0], "{count} {percent}");
            (1..usize::from(count)).for_each(|n| world.states[n] = BackendState::Unhealthy);
            world.fail(0, &[1, 2, 1, 2, 1]);
            assert_eq!(world.out(), [] as [u8; 0], "the last one: {count} {percent}");
        });
    }
}

#[test]
fn one_connection_counts_once_and_what_is_old_not_at_all() {
    World::both(2, |mut world| {
        let asked = address(0, world.v6);
        let silent =
            |n: u32, created| Failure { connection: (n, 1), from: n % 2, client: None, asked, refused: false, created };
        // A SYN comes again after 3, 7, 15 and 31 seconds.
        for wait in [3, 4, 8, 16] {
            world.tick(wait);
            world.note(0, &[silent(1, 1_000), silent(2, 1_000)]);
        }
        world.tick(1);
        assert_eq!(world.out(), [] as [u8; 0]);
        let now = world.now;
        world.note(0, &[silent(3, now), silent(4, now), silent(5, now)]);
        world.tick(1);
        assert_eq!(world.out(), [0]);
        // After its return those that it did not answer before say nothing.
        world.tick(40);
        world.note(0, &Vec::from_iter((6..20).map(|n| silent(n, now))));
        world.tick(1);
        assert_eq!(world.out(), [] as [u8; 0]);
        // Failures far from each other are no streak.
        for _ in 0..20 {
            world.fail(0, &[1, 2]);
            world.tick(STREAK_S);
        }
        assert_eq!(world.out(), [] as [u8; 0]);
    });
}

#[test]
fn another_reason_to_be_out_ends_an_ejection_and_so_does_off() {
    for end in 0..3 {
        World::both(2, |mut world| {
            world.fail(0, &[1, 2, 1, 2, 1]);
            assert_eq!(world.out(), [0]);
            match end {
                0 => world.states[0] = BackendState::Unhealthy,
                1 => world.states[0] = BackendState::Drained,
                _ => world.spec.outlier = None,
            }
            assert_eq!(world.out(), [] as [u8; 0]);
            (world.states[0], world.spec.outlier) = (BackendState::Healthy, Some(SPEC));
            assert_eq!(world.out(), [] as [u8; 0], "it was another's matter since");
        });
    }
    World::both(2, |mut world| {
        world.spec.outlier = None;
        world.fail(0, &[1, 2, 1, 2, 1]);
        assert!(world.outliers.is_empty());
    });
}

#[test]
fn what_a_client_chooses_is_not_observed() {
    World::both(2, |mut world| {
        world.spec.ports[0].l4 = 1..=65_535;
        world.spec.ports[0].endpoints.iter_mut().for_each(|endpoint| endpoint.l4 = None);
        world.fail(0, &[1, 2, 1, 2, 1, 2]);
        assert!(world.outliers.is_empty());
        // One L4 port is no choice.
        world.spec.ports[0].l4 = 80..=80;
        world.fail(0, &[1, 2, 1, 2, 1, 2]);
        assert_eq!(world.out(), [0]);
    });
}

#[test]
fn over_udp_silence_counts_where_others_answer_and_refusals_always() {
    let udp = |count, test: fn(World)| {
        World::both(count, |mut world| {
            world.spec.ports[0].proto = proto::UDP;
            test(world);
        });
    };
    // ICMP port unreachable.
    udp(2, |mut world| {
        world.fail(0, &[1, 2, 1, 2, 1]);
        assert_eq!(world.out(), [0]);
    });
    // The other backend answers, this one does not.
    udp(2, |mut world| {
        world.is_silent(0, 4);
        world.answer(1);
        assert_eq!(world.out(), [] as [u8; 0]);
        world.is_silent(0, 1);
        assert_eq!(world.out(), [0]);
    });
    // Nobody answers: that is how this Service is (syslog, telemetry), for as long as you like.
    udp(3, |mut world| {
        for _ in 0..200 {
            world.is_silent(0, 7);
            world.is_silent(1, 7);
        }
        assert_eq!((world.out(), world.outliers.ejections), (vec![], 0));
        // Nor does what was answered before they fell silent count for long.
        world.answer(2);
        world.tick(STREAK_S + 1);
        for _ in 0..STREAK_S {
            world.is_silent(0, 1);
        }
        assert_eq!(world.out(), [] as [u8; 0]);
        // A client that is answered by this one itself ends it as over TCP.
        for _ in 0..100 {
            (0..3).for_each(|n| world.answer(n));
            world.is_silent(0, 4);
        }
        assert_eq!(world.out(), [] as [u8; 0]);
    });
    // One backend's silence over UDP is none over TCP.
    World::both(2, |mut world| {
        let tcp = world.spec.ports[0].clone();
        world.spec.ports.push(ServicePortSpec { proto: proto::UDP, ..tcp });
        world.fail(0, &[1, 2, 1, 2, 1]);
        assert_eq!(world.outliers.ejection(&(address(0, world.v6), 80, proto::UDP)), None);
        assert!(world.outliers.ejection(&world.place(0)).is_some());
    });
}

/// Junk straight to a backend's address is its sender's choice: the Service's other clients have nothing to do with it.
#[test]
fn what_did_not_come_by_the_service_is_no_failure_of_its_backend() {
    for proto in [proto::TCP, proto::UDP] {
        World::both(2, |mut world| {
            world.spec.ports[0].proto = proto;
            world.spec.cluster = vec![address(100, world.v6), address(100, !world.v6)];
            for _ in 0..50 {
                world.answer(1);
                world.fail(0, &[1, 2, 3, 1, 2, 3]);
            }
            assert!(world.outliers.is_empty() && world.out().is_empty(), "{proto}");
            // By the Service it is.
            let (asked, created) = (address(100, world.v6), world.now);
            let of = |n: u32| Failure {
                connection: (5_000 + n, 1),
                from: n % 2,
                client: None,
                asked,
                refused: true,
                created,
            };
            world.note(0, &Vec::from_iter((0..5).map(of)));
            world.tick(1);
            assert_eq!(world.out(), [0], "{proto}");
        });
    }
}
