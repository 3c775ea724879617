//! Backends that clients cannot connect to, whatever their checks say: out for a while, then back (Envoy's outlier detection, HAProxy's
//! `observe layer4`). The state machine of the backends of one Service; nothing here reads a clock or looks at the packet path.
//!
//! # Theory of operation
//!
//! Each failed connection (`Connections::take_failures`) that is followed by no success makes the streak of its backend longer. With
//! [`OutlierSpec::consecutive_failures`] of two clients, or `ALONE_FACTOR` times as many of one, the backend is due. Whoever
//! is due, or has had a streak for `LOOK_EVERY_S`, is looked for in the table of connections: one that was answered since
//! the streak began ends it. So no client ejects a backend that answers others. Over UDP not every question expects an answer: silence counts
//! where another backend of the L4 port has answered meanwhile, ICMP port unreachable always. Who is due and was not answered is out for
//! [`OutlierSpec::base_ejection_s`] times the number of ejections before and this one, which well-behaved time makes fewer again;
//! never more than [`OutlierSpec::max_ejection_percent`] of an L4 port's backends of a family are, and never all of them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hostweave_switch::wire::proto;

use super::super::spec::{EndpointSpec, OutlierSpec, ServicePortSpec, ServiceSpec};
use super::choice::BackendState;
use super::frontend::addresses;
use super::remembered::Ejected;

/// Failures of one client alone that are as good as one of several.
const ALONE_FACTOR: u32 = 3;

/// A streak in which nothing failed for as many seconds is none.
const STREAK_S: u32 = 60;

/// A streak is looked at after as many seconds at the latest. Less than any connection that was answered stays in the table
/// (`Timeouts::tcp_closed`), so none is overlooked.
const LOOK_EVERY_S: u32 = 5;

/// Seconds that an ejection lasts at most, unless the base is longer.
const EJECTION_MAX_S: u32 = 300;

/// Seconds that an ejection of the run before lasts at most, whatever the clock says: as long as one can.
const RESTORED_MAX_S: u32 = 3_600;

/// Connections that are remembered as counted: a SYN that stays unanswered comes again and again.
const COUNTED_MAX: usize = 8;

/// A backend of a Service: its address, L4 port and IP protocol.
pub type Place = (IpAddr, u16, u8);

/// A connection that a backend did not take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Who tells it apart: index and generation.
    pub connection: (u32, u32),
    /// Slot of the client's port.
    pub from: u32,
    /// The client's address, where that tells clients of the port apart.
    pub client: Option<IpAddr>,
    /// The address that the client asked: the Service's, or the backend's own.
    pub asked: IpAddr,
    /// Whether it was refused; else nobody answered.
    pub refused: bool,
    /// Second in which it began.
    pub created: u32,
}

/// What clients have seen of one backend.
#[derive(Clone, Default, Debug)]
struct Track {
    refused: u32,
    unanswered: u32,
    /// Second in which the first connection of the streak began.
    since: u32,
    /// Second in which the last one failed.
    last: u32,
    /// Second in which answered connections were looked for.
    looked: u32,
    /// Connections that began before this second say nothing any more.
    floor: u32,
    first: Option<(u32, Option<IpAddr>)>,
    several: bool,
    counted: [Option<(u32, u32)>; COUNTED_MAX],
    next: usize,
    /// Second in which it came back last.
    returned: u32,
    /// Ejections that count yet.
    times: u32,
    ejected: Option<Ejection>,
    /// It is of the run before, and how the backend is otherwise is not known yet.
    restored: bool,
}

/// A backend is out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ejection {
    /// The second in which it is back.
    back: u32,
    /// The same for people.
    pub until: SystemTime,
    /// Why.
    pub reason: Arc<str>,
}

impl Track {
    fn streak(&self) -> u32 {
        self.refused + self.unanswered
    }

    fn end_streak(&mut self, floor: u32) {
        (self.refused, self.unanswered, self.first, self.several) = (0, 0, None, false);
        self.floor = self.floor.max(floor);
    }

    fn note(&mut self, failure: &Failure, now: u32) {
        if self.ejected.is_some() || failure.created < self.floor || self.counted.contains(&Some(failure.connection)) {
            return;
        }
        self.forget(now);
        if self.streak() == 0 {
            (self.since, self.looked) = (failure.created, now);
        }
        self.counted[self.next % COUNTED_MAX] = Some(failure.connection);
        self.next = (self.next + 1) % COUNTED_MAX;
        // One that waited began earlier than what was refused meanwhile.
        self.since = self.since.min(failure.created);
        self.last = now;
        let count = if failure.refused { &mut self.refused } else { &mut self.unanswered };
        *count = count.saturating_add(1);
        let client = (failure.from, failure.client);
        self.several |= *self.first.get_or_insert(client) != client;
    }

    /// A streak that is old is over.
    fn forget(&mut self, now: u32) {
        if self.streak() > 0 && now.saturating_sub(self.last) > STREAK_S {
            self.end_streak(0);
        }
    }

    /// Whether it has failed often enough; `silence`: whether not to answer is a failure.
    fn is_due(&self, spec: &OutlierSpec, silence: bool) -> bool {
        let enough = u32::from(spec.consecutive_failures);
        let failures = if silence { self.streak() } else { self.refused };
        failures >= if self.several { enough } else { enough * ALONE_FACTOR }
    }

    fn wants_look(&self, now: u32) -> bool {
        self.streak() > 0 && now.saturating_sub(self.looked) >= LOOK_EVERY_S
    }

    fn eject(&mut self, spec: &OutlierSpec, now: u32, time: SystemTime) {
        let base = spec.base_ejection_s.max(1);
        let behaved = now.saturating_sub(self.returned) / base;
        self.times = self.times.saturating_sub(behaved).saturating_add(1);
        let seconds = base.saturating_mul(self.times).min(EJECTION_MAX_S.max(base));
        let clients = if self.several { "several clients" } else { "a client" };
        let reason = format!(
            "{} connections of {clients} in a row failed ({} refused, {} unanswered); out for {seconds} s, ejection {}",
            self.streak(),
            self.refused,
            self.unanswered,
            self.times
        );
        let until = time + Duration::from_secs(seconds.into());
        self.ejected = Some(Ejection { back: now.saturating_add(seconds), until, reason: reason.into() });
    }

    /// Whether it is back now.
    fn come_back(&mut self, now: u32) -> bool {
        self.forget(now);
        let back = self.ejected.take_if(|ejection| ejection.back <= now).is_some();
        if back {
            self.returned = now;
            self.end_streak(now);
        }
        back
    }

    /// Whether it has nothing to say any more.
    fn is_idle(&self, spec: &OutlierSpec, now: u32) -> bool {
        let quiet = now.saturating_sub(self.last.max(self.floor));
        self.ejected.is_none() && quiet > STREAK_S.max(spec.base_ejection_s.saturating_mul(self.times))
    }
}

/// What clients have seen of the backends of a Service: one track for each that has failed, at most as many as it has backends.
#[derive(Default)]
pub struct Outliers {
    tracks: HashMap<Place, Track>,
    /// Ejections so far.
    pub ejections: u64,
}

impl Outliers {
    /// Those that were out in the run before, at the second `now` of the packet path, which is `time`.
    pub fn restored(ejected: &[Ejected], (now, time): (u32, SystemTime)) -> Self {
        let track = |ejected: &Ejected| {
            let left = ejected.until.duration_since(time).unwrap_or_default().as_secs_f64().ceil() as u32;
            let left = left.min(RESTORED_MAX_S);
            let ejection = Ejection {
                back: now.saturating_add(left),
                until: ejected.until,
                reason: ejected.reason.as_str().into(),
            };
            let track = Track { times: ejected.times, ejected: Some(ejection), restored: true, ..Track::default() };
            ((ejected.address, ejected.l4, ejected.proto), track)
        };
        Self { tracks: ejected.iter().map(track).collect(), ejections: 0 }
    }

    /// Who is out now, in order.
    pub fn ejected(&self) -> Vec<Ejected> {
        let of = |((address, l4, proto), track): (&Place, &Track)| {
            let ejection = track.ejected.as_ref()?;
            let (until, times, reason) = (ejection.until, track.times, ejection.reason.to_string());
            Some(Ejected { address: *address, l4: *l4, proto: *proto, until, times, reason })
        };
        let mut all: Vec<Ejected> = self.tracks.iter().filter_map(of).collect();
        all.sort_unstable_by_key(|ejected| (ejected.address, ejected.l4, ejected.proto));
        all
    }

    /// Takes in connections that failed, by backend. Those of others than `spec`'s backends are nothing to it, nor are those to a backend
    /// itself, past the Service: what is asked of it there is the client's choice. Only a headless Service has no other way.
    pub fn note(&mut self, spec: &ServiceSpec, failures: &HashMap<Place, &[Failure]>, now: u32) {
        if spec.outlier.is_none() {
            return;
        }
        let own: HashSet<IpAddr> = addresses(spec).map(|at| at.address).collect();
        let came_by = |failure: &Failure| own.is_empty() || own.contains(&failure.asked);
        let failed = spec
            .ports
            .iter()
            .flat_map(observed)
            .map(|(_, place)| place)
            .filter(|place| failures.get(place).is_some_and(|of| of.iter().any(came_by)));
        // Once each: several L4 ports of the Service may lead to one backend.
        for place in failed.collect::<HashSet<Place>>() {
            let track = self.tracks.entry(place).or_default();
            let failures = failures.get(&place).copied().unwrap_or_default().iter();
            failures.filter(|failure| came_by(failure)).for_each(|failure| track.note(failure, now));
        }
    }

    /// Backends whose answered connections are to be looked for.
    pub fn sought(&self, spec: &ServiceSpec, states: &[Vec<BackendState>], now: u32) -> Vec<Place> {
        let Some(outlier) = &spec.outlier else { return Vec::new() };
        let wanted = |(place, track): &(&Place, &Track)| {
            let due = || track.is_due(outlier, true) && self.admits(spec, outlier, states, place);
            track.ejected.is_none() && (track.wants_look(now) || due())
        };
        let wanted: Vec<Place> = self.tracks.iter().filter(wanted).map(|(place, _)| *place).collect();
        // Whether anybody is answered there at all.
        let beside = wanted.iter().filter(|place| place.2 == proto::UDP).flat_map(|place| beside(spec, place));
        let all: HashSet<Place> = wanted.iter().copied().chain(beside).collect();
        all.into_iter().collect()
    }

    /// Judges those that were sought: `answered` are the latest seconds in which connections to them began that were answered.
    /// Returns whether anybody is ejected.
    pub fn judge(
        &mut self,
        spec: &ServiceSpec,
        states: &[Vec<BackendState>],
        sought: &[Place],
        answered: &HashMap<Place, u32>,
        (now, time): (u32, SystemTime),
    ) -> bool {
        let Some(outlier) = &spec.outlier else { return false };
        let mut due: Vec<Place> = Vec::new();
        for place in sought {
            let Some(track) = self.tracks.get_mut(place) else { continue };
            track.looked = now;
            let others =
                |since| beside(spec, place).any(|other| answered.get(&other).is_some_and(|last| *last >= since));
            let silence = place.2 != proto::UDP || others(track.since);
            match answered.get(place) {
                Some(last) if *last >= track.since => track.end_streak(*last),
                _ if track.is_due(outlier, silence) => due.push(*place),
                // It is asked and never answers, as none of them does: nobody expects it to. Let it be for a while.
                _ if track.is_due(outlier, true) => track.end_streak(now + STREAK_S),
                _ => {}
            }
        }
        // The worst first, where not all of them may go.
        let streak = |place: &Place| self.tracks.get(place).map_or(0, Track::streak);
        due.sort_unstable_by_key(|place| (std::cmp::Reverse(streak(place)), *place));
        let before = self.ejections;
        for place in due {
            if self.admits(spec, outlier, states, &place)
                && let Some(track) = self.tracks.get_mut(&place)
            {
                track.eject(outlier, now, time);
                self.ejections += 1;
            }
        }
        self.ejections != before
    }

    /// Whether one more may be ejected of every L4 port and family that has it: at least one, never all, else the percentage.
    fn admits(&self, spec: &ServiceSpec, outlier: &OutlierSpec, states: &[Vec<BackendState>], place: &Place) -> bool {
        spec.ports.iter().zip(states).all(|(port, states)| {
            let serves = |at: usize| matches!(states.get(at), Some(BackendState::Healthy | BackendState::Ejected));
            let members: Vec<Place> = observed(port)
                .filter(|(at, member)| serves(*at) && member.0.is_ipv4() == place.0.is_ipv4())
                .map(|(_, place)| place)
                .collect();
            if !members.contains(place) {
                return true;
            }
            let out = members.iter().filter(|member| self.ejection(member).is_some()).count();
            let most = (members.len() * usize::from(outlier.max_ejection_percent) / 100).max(1);
            out < most.min(members.len() - 1)
        })
    }

    /// Lets those back whose time is over. Returns whether there are any.
    pub fn come_back(&mut self, spec: &ServiceSpec, now: u32) -> bool {
        let mut back = false;
        self.tracks.values_mut().for_each(|track| back |= track.come_back(now));
        if let Some(outlier) = &spec.outlier {
            self.tracks.retain(|_, track| !track.is_idle(outlier, now));
        }
        back
    }

    /// How backends are, when otherwise they were as `states` says. Whoever is not there, not healthy, or drained, has another reason
    /// to be out, and returns for one: what clients saw before means nothing then.
    pub fn apply(&mut self, spec: &ServiceSpec, states: &mut [Vec<BackendState>]) {
        if self.tracks.is_empty() {
            return;
        }
        if spec.outlier.is_none() {
            return self.tracks.clear();
        }
        let (mut healthy, mut unknown): (HashSet<Place>, HashSet<Place>) = Default::default();
        for (port, states) in spec.ports.iter().zip(&*states) {
            let is_healthy = |at: usize| states.get(at) == Some(&BackendState::Healthy);
            healthy.extend(observed(port).filter(|(at, _)| is_healthy(*at)).map(|(_, place)| place));
            let is_unknown = |at: usize| {
                use BackendState::{Awaited, Stopped, Unchecked};
                matches!(states.get(at), Some(Unchecked | Awaited | Stopped))
            };
            unknown.extend(observed(port).filter(|(at, _)| is_unknown(*at)).map(|(_, place)| place));
        }
        self.tracks.retain(|place, track| {
            track.restored &= !healthy.contains(place);
            healthy.contains(place) || track.restored && unknown.contains(place)
        });
        eject(spec, states, |place| self.ejection(place).is_some());
    }

    /// Who is out now.
    pub fn places(&self) -> HashSet<Place> {
        self.tracks.iter().filter(|(_, track)| track.ejected.is_some()).map(|(place, _)| *place).collect()
    }

    /// Why a backend is out, if clients are the reason.
    pub fn ejection(&self, place: &Place) -> Option<&Ejection> {
        self.tracks.get(place)?.ejected.as_ref()
    }

    /// Whether nothing is known of anybody.
    pub fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }
}

/// Marks those healthy backends that are `out`; none of a Service that ejects nobody.
pub fn eject(spec: &ServiceSpec, states: &mut [Vec<BackendState>], out: impl Fn(&Place) -> bool) {
    if spec.outlier.is_none() {
        return;
    }
    for (port, states) in spec.ports.iter().zip(states) {
        for (at, place) in observed(port) {
            if let Some(state) = states.get_mut(at).filter(|state| **state == BackendState::Healthy)
                && out(&place)
            {
                *state = BackendState::Ejected;
            }
        }
    }
}

/// The L4 port of an endpoint where clients are observed: of one that has all L4 ports of a range there is none, because a client chooses
/// what is asked of it, and may choose what nobody serves.
pub fn place(port: &ServicePortSpec, endpoint: &EndpointSpec) -> Option<Place> {
    let single = (port.l4.start() == port.l4.end()).then_some(*port.l4.start());
    matches!(port.proto, proto::TCP | proto::UDP).then_some((endpoint.address, endpoint.l4.or(single)?, port.proto))
}

/// The other backends of the L4 ports that a backend stands behind.
fn beside<'a>(spec: &'a ServiceSpec, place: &'a Place) -> impl Iterator<Item = Place> + use<'a> {
    let has = |port: &&ServicePortSpec| observed(port).any(|(_, other)| other == *place);
    let all = spec.ports.iter().filter(has).flat_map(observed).map(|(_, other)| other);
    all.filter(|other| *other != *place)
}

/// The endpoints of an L4 port that are observed, with their indices.
fn observed(port: &ServicePortSpec) -> impl Iterator<Item = (usize, Place)> {
    port.endpoints.iter().enumerate().filter_map(|(at, endpoint)| Some((at, place(port, endpoint)?)))
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
