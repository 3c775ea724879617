//! The routers at the uplink, and which of them answer: ARP (RFC 826) and neighbour unreachability detection (RFC 4861
//! §7.3) as one state machine. It sends nothing and knows no clock. Other neighbours (`super::on_link`) have the same.
//!
//! ```text
//!            answer                silence while in use (5 s) or not (30 s), or somebody else claims the address
//!   Asking ──────────► Reachable ─────────────────────────────────────────► Probing
//!     ▲  ▲ every 1 s    ▲   ▲ └ delivers parts of known connections            │
//!     │  └─ then 3 s    │   └──┘                                               │
//!     │                 └───────────────────── the same MAC answers ───────────┤
//!     └───────────────────────── three questions without answer ───────────────┘
//! ```
//!
//! *Asking* is for everybody and believes the first answer. *Probing* asks only whom we know, and goes on using it
//! meanwhile: once a second when it fell silent, four times a second when somebody says that it is elsewhere now, as a router
//! does that takes over from another. So whoever claims a router's address gets it only once the router itself does not answer
//! (Linux believes the claim), however often they say so; and what they say never makes us probe more than once a second.
//!
//! A router that delivers parts of known connections, from its link address, is there and is not asked (RFC 4861 §7.3.1). One
//! that is replaced by another with another link address delivers nothing any more, and is asked as soon as packets leave and
//! it has been silent for five seconds.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::flow::TRUST_S;
use hostweave_switch::tables::NextHop;

/// Between two questions (RFC 4861 §10, `RETRANS_TIMER`).
const AGAIN: Duration = Duration::from_secs(1);
/// Between two questions about a router that is dead.
const AGAIN_DEAD: Duration = Duration::from_secs(3);
/// Between two questions about a router that somebody says is elsewhere.
const AGAIN_CLAIMED: Duration = Duration::from_millis(250);
/// How long an answer holds while nothing leaves (RFC 4861 §10, `REACHABLE_TIME`).
const FRESH: Duration = Duration::from_secs(30);
/// How long it holds while packets leave (RFC 4861 §10, `DELAY_FIRST_PROBE_TIME`). Longer than the round of seconds after which
/// a flow is looked at again.
pub(super) const SILENT: Duration = Duration::from_secs(TRUST_S as u64 + 1);
/// Questions without answer after which a router is dead (RFC 4861 §10, `MAX_UNICAST_SOLICIT`).
const UNANSWERED_MAX: u32 = 3;

/// A question to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Who is asked for.
    pub address: IpAddr,
    /// Who is asked; everybody when `None`.
    pub to: Option<MacAddr>,
}

/// Something that a router, or somebody in its name, said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    /// The router's address.
    pub address: IpAddr,
    /// The link address that it is said to have.
    pub mac: MacAddr,
    /// Whether it was said to us, as an answer is.
    pub answer: bool,
}

/// Something that packets and people must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A router answers, with this link address.
    Reachable(IpAddr, MacAddr),
    /// A router does not answer.
    Unreachable(IpAddr),
}

/// What is known beside what routers say.
#[derive(Clone, Copy)]
pub struct Traffic<'a> {
    /// Whether packets have left since the last time.
    pub leaves: bool,
    /// How long ago a link address delivered a part of a known connection; whether of IPv4.
    pub delivered: &'a dyn Fn(MacAddr, bool) -> Option<Duration>,
    /// Whether there is an address of ours to ask about a router from. What was not asked is not left unanswered.
    pub asks: &'a dyn Fn(IpAddr) -> bool,
}

/// What is known of one neighbour.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// `dead`: somebody was told already.
    Asking {
        sent: u32,
        next: Instant,
        dead: bool,
    },
    /// `answered`: when it last said so, `since`: when it was last known to be there.
    Reachable {
        mac: MacAddr,
        answered: Instant,
        since: Instant,
    },
    Probing {
        mac: MacAddr,
        sent: u32,
        next: Instant,
        apart: Duration,
    },
}

impl State {
    pub(super) fn begin(now: Instant) -> Self {
        State::Asking { sent: 0, next: now, dead: false }
    }

    pub(super) fn mac(&self) -> Option<MacAddr> {
        match self {
            State::Asking { .. } => None,
            State::Reachable { mac, .. } | State::Probing { mac, .. } => Some(*mac),
        }
    }

    /// Takes note of what somebody said of this neighbour.
    pub(super) fn heard(&mut self, heard: &Said, now: Instant) -> Option<Change> {
        let fresh = State::Reachable { mac: heard.mac, answered: now, since: now };
        match self {
            State::Asking { .. } if heard.answer => {
                *self = fresh;
                return Some(Change::Reachable(heard.address, heard.mac));
            }
            // It is there: ask soon.
            State::Asking { next, .. } => *next = (*next).min(now + AGAIN),
            State::Reachable { mac, .. } | State::Probing { mac, .. } if *mac == heard.mac => {
                if heard.answer {
                    *self = fresh;
                }
            }
            State::Reachable { mac, answered, .. } => {
                let next = now.max(*answered + AGAIN);
                *self = State::Probing { mac: *mac, sent: 0, next, apart: AGAIN_CLAIMED };
            }
            State::Probing { next, apart, .. } => {
                *next = (*next).min(now + AGAIN_CLAIMED);
                *apart = AGAIN_CLAIMED;
            }
        }
        None
    }

    /// What is to be asked of the neighbour at `address` now, and whether it turned out to be dead.
    pub(super) fn tick(&mut self, address: IpAddr, now: Instant, traffic: &Traffic<'_>) -> Asked {
        let mut asked = Asked::default();
        if let State::Reachable { mac, answered, mut since } = *self {
            let ago = (traffic.delivered)(mac, address.is_ipv4());
            since = ago.and_then(|ago| now.checked_sub(ago)).map_or(since, |at| at.max(since));
            let silent = now.saturating_duration_since(since);
            *self = if silent >= FRESH || silent >= SILENT && traffic.leaves {
                State::Probing { mac, sent: 0, next: now, apart: AGAIN }
            } else {
                State::Reachable { mac, answered, since }
            };
        }
        if let State::Probing { sent, next, .. } = *self
            && now >= next
            && sent >= UNANSWERED_MAX
        {
            *self = State::Asking { sent: 0, next: now, dead: true };
            asked.died = true;
        }
        match self {
            // It waits for an address to ask from.
            State::Probing { .. } | State::Asking { .. } if !(traffic.asks)(address) => {}
            State::Probing { mac, sent, next, apart } if now >= *next => {
                asked.question = Some(Question { address, to: Some(*mac) });
                (*sent, *next) = (*sent + 1, now + *apart);
            }
            State::Asking { sent, next, dead } if now >= *next => {
                if *sent >= UNANSWERED_MAX && !*dead {
                    *dead = true;
                    asked.died = true;
                }
                asked.question = Some(Question { address, to: None });
                *sent = sent.saturating_add(1);
                *next = now + if *sent > UNANSWERED_MAX { AGAIN_DEAD } else { AGAIN };
            }
            _ => {}
        }
        asked
    }

    /// When there is something to ask, if that is known.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            State::Asking { next, .. } | State::Probing { next, .. } => Some(*next),
            State::Reachable { .. } => None,
        }
    }
}

/// What [`State::tick`] found.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) question: Option<Question>,
    /// It does not answer, which nobody has been told of.
    pub(super) died: bool,
}

/// All routers.
#[derive(Default, Debug)]
pub struct Neighbors(Vec<(IpAddr, State)>);

impl Neighbors {
    /// Takes over which routers there are. What is known of those that stay is kept.
    pub fn set(&mut self, routers: &[IpAddr], now: Instant) {
        let known = std::mem::take(&mut self.0);
        let state = |router: &IpAddr| known.iter().find(|(address, _)| address == router).map(|(_, state)| *state);
        self.0 = routers.iter().map(|router| (*router, state(router).unwrap_or(State::begin(now)))).collect();
    }

    /// Forgets what is known: the cable leads elsewhere, or nowhere.
    pub fn forget(&mut self, now: Instant) {
        self.0.iter_mut().for_each(|(_, state)| *state = State::begin(now));
    }

    /// Takes note of what somebody said.
    pub fn heard(&mut self, heard: &Said, now: Instant) -> Option<Change> {
        let (_, state) = self.0.iter_mut().find(|(address, _)| *address == heard.address)?;
        state.heard(heard, now)
    }

    /// What is to be sent now, and what has changed by waiting.
    pub fn tick(
        &mut self,
        now: Instant,
        traffic: &Traffic<'_>,
        questions: &mut Vec<Question>,
        changes: &mut Vec<Change>,
    ) {
        for (address, state) in &mut self.0 {
            let asked = state.tick(*address, now, traffic);
            questions.extend(asked.question);
            changes.extend(asked.died.then_some(Change::Unreachable(*address)));
        }
    }

    /// When [`Neighbors::tick`] has something to ask, if that is known; `asks` as in [`Traffic`].
    pub fn due(&self, asks: impl Fn(IpAddr) -> bool) -> Option<Instant> {
        self.0.iter().filter(|(address, _)| asks(*address)).filter_map(|(_, state)| state.due()).min()
    }

    /// The routers of one family, as packets see them.
    pub fn hops(&self, ipv4: bool) -> Vec<NextHop> {
        let family = self.0.iter().filter(|(address, _)| address.is_ipv4() == ipv4);
        family.map(|(address, state)| NextHop { address: *address, mac: state.mac() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const GOOD: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const EVIL: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x66]);

    struct Scene {
        neighbors: Neighbors,
        now: Instant,
        asked: Vec<Option<MacAddr>>,
        changes: Vec<Change>,
        leaves: bool,
        delivered: Option<(MacAddr, Instant)>,
        /// No address of ours can ask.
        mute: bool,
    }

    impl Scene {
        fn new() -> Self {
            let now = Instant::now();
            let mut neighbors = Neighbors::default();
            neighbors.set(&[ROUTER], now);
            Self { neighbors, now, asked: Vec::new(), changes: Vec::new(), leaves: false, delivered: None, mute: false }
        }

        /// Lets time pass, in steps of a tenth of a second.
        fn pass(&mut self, tenths: u32) -> &mut Self {
            for _ in 0..tenths {
                self.now += Duration::from_millis(100);
                let mut questions = Vec::new();
                let now = self.now;
                let at = |mac| self.delivered.filter(|(by, _)| *by == mac).map(|(_, at)| now - at);
                let traffic = Traffic {
                    leaves: self.leaves,
                    delivered: &|mac, ipv4| at(mac).filter(|_| ipv4),
                    asks: &|_| !self.mute,
                };
                self.neighbors.tick(now, &traffic, &mut questions, &mut self.changes);
                self.asked.extend(questions.iter().map(|question| question.to));
            }
            self
        }

        fn hear(&mut self, mac: MacAddr, answer: bool) -> &mut Self {
            let heard = Said { address: ROUTER, mac, answer };
            self.changes.extend(self.neighbors.heard(&heard, self.now));
            self
        }

        fn mac(&self) -> Option<MacAddr> {
            self.neighbors.hops(true)[0].mac
        }

        fn taken(&mut self) -> (Vec<Option<MacAddr>>, Vec<Change>) {
            (std::mem::take(&mut self.asked), std::mem::take(&mut self.changes))
        }
    }

    #[test]
    fn a_router_is_asked_for_until_it_answers_then_asked_itself() {
        let mut scene = Scene::new();
        assert_eq!(scene.pass(1).taken(), (vec![None], vec![]));
        scene.hear(GOOD, true);
        assert_eq!((scene.mac(), scene.taken().1), (Some(GOOD), vec![Change::Reachable(ROUTER, GOOD)]));
        assert_eq!(scene.pass(295).taken(), (vec![], vec![]), "an answer holds for half a minute");
        assert_eq!(scene.pass(10).taken(), (vec![Some(GOOD)], vec![]));
        scene.hear(GOOD, true);
        assert_eq!(scene.pass(295).taken(), (vec![], vec![]));
    }

    #[test]
    fn three_questions_without_answer_and_it_is_dead_and_asked_for_again() {
        let mut scene = Scene::new();
        scene.pass(1).hear(GOOD, true).pass(300).taken();
        scene.pass(25);
        assert_eq!(scene.mac(), Some(GOOD), "in use until it is dead");
        assert_eq!(scene.pass(5).taken(), (vec![Some(GOOD), Some(GOOD), None], vec![Change::Unreachable(ROUTER)]));
        assert_eq!(scene.mac(), None);
        let (asked, changes) = scene.pass(300).taken();
        assert!(asked.len() >= 9 && asked.len() <= 13 && asked.iter().all(Option::is_none), "{asked:?}");
        assert_eq!(changes, [], "told once");
        scene.hear(EVIL, true);
        assert_eq!(scene.mac(), Some(EVIL), "a router that was replaced");
    }

    #[test]
    fn one_that_never_answered_is_told_of_once() {
        let mut scene = Scene::new();
        let (asked, changes) = scene.pass(100).taken();
        assert_eq!(changes, [Change::Unreachable(ROUTER)]);
        assert!((5..=6).contains(&asked.len()), "{asked:?}");
    }

    #[test]
    fn claims_do_not_move_a_router_that_answers() {
        let mut scene = Scene::new();
        scene.pass(1).hear(GOOD, true).taken();
        for _ in 0..100 {
            scene.pass(1);
            for answer in [true, false] {
                scene.hear(EVIL, answer);
            }
            // The router answers what it is asked.
            if scene.asked.last() == Some(&Some(GOOD)) {
                scene.hear(GOOD, true);
            }
            assert_eq!(scene.mac(), Some(GOOD));
        }
        let (asked, changes) = scene.taken();
        assert!(asked.len() <= 11, "claims cost at most one question a second: {}", asked.len());
        assert!(asked.iter().all(|to| *to == Some(GOOD)) && changes.is_empty(), "nobody else is asked");
    }

    #[test]
    fn a_router_that_delivers_is_not_asked_and_one_that_fell_silent_is_while_packets_leave() {
        let mut scene = Scene::new();
        scene.pass(1).hear(GOOD, true).taken();
        scene.leaves = true;
        for _ in 0..100 {
            scene.delivered = Some((GOOD, scene.now));
            assert_eq!(scene.pass(40).taken(), (vec![], vec![]), "once a round is enough");
        }
        // Replaced without a word: what comes in comes from another link address.
        for _ in 0..5 {
            scene.delivered = Some((EVIL, scene.now));
            scene.pass(9);
        }
        let (asked, changes) = scene.taken();
        assert_eq!(
            (asked, changes),
            (vec![Some(GOOD), Some(GOOD), Some(GOOD), None], vec![Change::Unreachable(ROUTER)])
        );
        assert_eq!(scene.hear(EVIL, true).mac(), Some(EVIL), "within nine seconds");
    }

    #[test]
    fn without_any_answer_one_question_in_six_seconds_while_packets_leave() {
        let mut scene = Scene::new();
        scene.pass(1).hear(GOOD, true).taken();
        scene.leaves = true;
        for _ in 0..10 {
            let (asked, changes) = scene.pass(60).taken();
            assert!(asked == [Some(GOOD), Some(GOOD)] || asked == [Some(GOOD)], "{asked:?}");
            assert_eq!(changes, []);
            scene.hear(GOOD, true);
        }
    }

    #[test]
    fn a_router_that_says_where_it_is_now_is_found_there_within_a_second() {
        let mut scene = Scene::new();
        scene.pass(1).hear(GOOD, true).pass(50).hear(EVIL, false).pass(11);
        let (asked, changes) = scene.taken();
        assert_eq!(changes, [Change::Reachable(ROUTER, GOOD), Change::Unreachable(ROUTER)]);
        assert_eq!(asked, [None, Some(GOOD), Some(GOOD), Some(GOOD), None]);
        // Also when it says so while its silence has been noticed.
        scene.hear(EVIL, true).pass(301).taken();
        assert_eq!(scene.hear(GOOD, false).pass(11).taken().1, [Change::Unreachable(ROUTER)]);
    }

    #[test]
    fn a_silent_router_is_replaced_within_four_seconds_of_the_claim() {
        let mut scene = Scene::new();
        scene.pass(1).hear(GOOD, true).pass(50).hear(EVIL, false).pass(40);
        let (asked, changes) = scene.taken();
        assert_eq!(changes, [Change::Reachable(ROUTER, GOOD), Change::Unreachable(ROUTER)]);
        assert_eq!(asked.last(), Some(&None));
        assert_eq!(scene.hear(EVIL, true).mac(), Some(EVIL));
    }

    #[test]
    fn a_router_that_was_not_asked_is_not_dead() {
        // Neither one that is known, nor one that is looked for.
        for known in [false, true] {
            let mut scene = Scene::new();
            scene.mute = true;
            if known {
                scene.mute = false;
                scene.pass(1).hear(GOOD, true).mute = true;
            }
            let _ = scene.taken();
            scene.leaves = true;
            scene.pass(600);
            assert_eq!(scene.taken(), (Vec::new(), Vec::new()));
            assert_eq!((scene.mac(), scene.neighbors.due(|_| false)), (known.then_some(GOOD), None));
            // Once there is an address again it is asked at once.
            scene.mute = false;
            assert_eq!(scene.pass(1).taken().0, [known.then_some(GOOD)]);
        }
    }

    #[test]
    fn announcements_are_no_answers() {
        let mut scene = Scene::new();
        scene.pass(1).hear(EVIL, false).pass(1);
        assert_eq!(scene.mac(), None);
    }

    #[test]
    fn routers_come_and_go_and_a_new_cable_is_a_new_world() {
        let mut scene = Scene::new();
        scene.pass(1).hear(GOOD, true);
        let other: IpAddr = "2001:db8::1".parse().unwrap();
        scene.neighbors.set(&[other, ROUTER], scene.now);
        assert_eq!(scene.mac(), Some(GOOD));
        assert_eq!(scene.neighbors.hops(false), [NextHop { address: other, mac: None }]);
        scene.neighbors.forget(scene.now);
        assert_eq!(scene.mac(), None);
        scene.neighbors.set(&[], scene.now);
        assert_eq!(scene.hear(GOOD, true).neighbors.hops(true), []);
    }
}
