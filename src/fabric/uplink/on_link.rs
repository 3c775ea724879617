//! Neighbours at the uplink that are no routers: whom workers want to reach without one, who answers, and who is forgotten. What is known
//! of each is the same state machine as of a router ([`super::neighbor`]). It sends nothing and knows no clock.
//!
//! Neither a guest that scans a subnet nor anybody on the link may make this grow, or drown others (RFC 6583): so many are asked for at
//! once, so many of them for one port, and who does not answer is left alone for a while. Packets take a router meanwhile.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave_switch::on_link::{self, Neighbor, Sought};
use hostweave_switch::tables::{NextHop, PortId, unmapped};
use ipnet::IpNet;

use super::neighbor::{Change, Question, SILENT, Said, State, Traffic};

/// Neighbours that are known, asked for, or left alone, at most.
const NEIGHBORS_MAX: usize = 1024;
/// Those that are asked for at once, at most, and those of them that one port wants.
const ASKED_MAX: usize = 64;
/// See [`ASKED_MAX`].
const ASKED_BY_PORT: usize = 8;
/// How long a neighbour is left alone that does not answer.
const FAILED: Duration = Duration::from_secs(20);
/// How long a neighbour is known that nothing is sent to.
const IDLE: Duration = Duration::from_secs(60);

/// What is known of one.
#[derive(Debug)]
enum Entry {
    /// This port wants it.
    Asked { state: State, port: PortId },
    /// It has answered. `used`: when something was last sent there.
    Known { state: State, neighbor: Arc<Neighbor>, used: Instant },
    /// It does not answer.
    Failed { until: Instant },
}

impl Entry {
    fn known(state: State, used: Instant) -> Option<Self> {
        let neighbor = Arc::new(Neighbor::new(state.mac()?));
        Some(Entry::Known { state, neighbor, used })
    }

    fn state(&self) -> Option<&State> {
        match self {
            Entry::Asked { state, .. } | Entry::Known { state, .. } => Some(state),
            Entry::Failed { .. } => None,
        }
    }
}

/// All of them.
#[derive(Default, Debug)]
pub struct OnLinkNeighbors {
    subnets: Vec<IpNet>,
    entries: HashMap<IpAddr, Entry>,
    sought: Arc<Sought>,
}

impl OnLinkNeighbors {
    /// Nobody is known. Workers write to `sought`.
    pub fn new(sought: Arc<Sought>) -> Self {
        Self { sought, ..Self::default() }
    }

    /// Takes over which subnets there are. Nobody beyond them is a neighbour, nor anybody of whom `is_other` is true: we ourselves, and
    /// routers.
    pub fn set(&mut self, subnets: &[IpNet], is_other: impl Fn(IpAddr) -> bool) {
        self.subnets = subnets.to_vec();
        let near = |address: &IpAddr| subnets.iter().any(|subnet| subnet.contains(address));
        self.entries.retain(|address, _| near(address) && !is_other(*address));
    }

    /// Forgets what is known: the cable leads elsewhere, or nowhere.
    pub fn forget(&mut self) {
        self.entries.clear();
    }

    /// Begins to ask for those whom workers want; not for those of whom `is_other` is true, as in [`OnLinkNeighbors::set`].
    pub fn want(&mut self, now: Instant, is_other: impl Fn(IpAddr) -> bool) {
        for (port, address) in self.sought.take() {
            let address = unmapped(address);
            if !is_other(address) && !self.entries.contains_key(&address) && self.may_ask(port) && self.make_room() {
                self.entries.insert(address, Entry::Asked { state: State::begin(now), port });
            }
        }
    }

    fn may_ask(&self, port: PortId) -> bool {
        let asked = || {
            self.entries
                .values()
                .filter_map(|entry| if let Entry::Asked { port, .. } = entry { Some(*port) } else { None })
        };
        asked().count() < ASKED_MAX && asked().filter(|by| *by == port).count() < ASKED_BY_PORT
    }

    /// Whether there is room for one more; one that does not answer goes for it.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < NEIGHBORS_MAX {
            return true;
        }
        let until = |(address, entry): (&IpAddr, &Entry)| match entry {
            Entry::Failed { until } => Some((*until, *address)),
            _ => None,
        };
        let first = self.entries.iter().filter_map(until).min();
        first.is_some_and(|(_, address)| self.entries.remove(&address).is_some())
    }

    /// Takes note of what somebody said. Returns whether packets must see it.
    pub fn heard(&mut self, heard: &Said, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&heard.address) else { return false };
        let (Entry::Asked { state, .. } | Entry::Known { state, .. }) = entry else { return false };
        if !matches!(state.heard(heard, now), Some(Change::Reachable(..))) {
            return false;
        }
        if let Some(known) = Entry::known(*state, now) {
            *entry = known;
        }
        true
    }

    /// What is to be sent now. Returns whether packets must see what has changed by waiting.
    pub fn tick(&mut self, now: Instant, traffic: &Traffic<'_>, questions: &mut Vec<Question>) -> bool {
        let mut changed = false;
        self.entries.retain(|address, entry| {
            let (state, leaves) = match entry {
                Entry::Failed { until } => return now < *until,
                Entry::Asked { state, .. } => (state, false),
                Entry::Known { state, neighbor, used } => {
                    if neighbor.was_used() {
                        *used = now;
                    }
                    let idle = now.saturating_duration_since(*used);
                    if idle >= IDLE {
                        changed = true;
                        return false;
                    }
                    (state, idle < SILENT)
                }
            };
            let asked = state.tick(*address, now, &Traffic { leaves, ..*traffic });
            let known = matches!(entry, Entry::Known { .. });
            match asked.died {
                // By now it may have another link address.
                true if known => {
                    *entry = Entry::Asked { state: State::begin(now), port: PortId::NONE };
                    changed = true;
                }
                true => *entry = Entry::Failed { until: now + FAILED },
                false => questions.extend(asked.question),
            }
            true
        });
        changed
    }

    /// When [`OnLinkNeighbors::tick`] has something to ask, if that is known; `asks` as in [`Traffic`].
    pub fn due(&self, asks: impl Fn(IpAddr) -> bool) -> Option<Instant> {
        let entries = self.entries.iter().filter(|(address, _)| asks(**address));
        entries.filter_map(|(_, entry)| entry.state()?.due()).min()
    }

    /// Whether workers may want somebody without waking anyone.
    pub fn is_awaited(&self) -> bool {
        self.sought.is_awaited()
    }

    /// As packets see it; `routers` are neighbours, too.
    pub fn table(&self, routers: &[NextHop]) -> on_link::OnLink {
        let routers = routers.iter().filter_map(|hop| Some((hop.address, Arc::new(Neighbor::new(hop.mac?)))));
        let known = self.entries.iter().filter_map(|(address, entry)| match entry {
            Entry::Known { neighbor, .. } => Some((*address, Arc::clone(neighbor))),
            _ => None,
        });
        on_link::OnLink::new(&self.subnets, routers.chain(known), Arc::clone(&self.sought))
    }

    /// Those that are wanted, in order.
    pub fn hops(&self) -> Vec<NextHop> {
        let hop = |(address, entry): (&IpAddr, &Entry)| NextHop {
            address: *address,
            mac: entry.state().and_then(State::mac),
        };
        let mut hops: Vec<NextHop> = self.entries.iter().map(hop).collect();
        hops.sort_unstable_by_key(|hop| hop.address);
        hops
    }
}

#[cfg(test)]
mod tests {
    use hostweave_switch::MacAddr;
    use hostweave_switch::tables::mapped;

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 8]);
    const PORT: PortId = PortId(1);

    struct Scene {
        link: OnLinkNeighbors,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let mut link = OnLinkNeighbors::default();
            link.set(&["198.51.100.2/16".parse().unwrap(), "2001:db8::2/64".parse().unwrap()], |_| false);
            Self { link, now: Instant::now() }
        }

        /// A packet of a port to this address. Returns where it goes without a router.
        fn send(&mut self, port: PortId, to: IpAddr) -> Option<MacAddr> {
            let hop = self.link.table(&[]).next_hop(port, mapped(to));
            self.link.want(self.now, |address| address == host(false, 1) || address == host(true, 1));
            hop
        }

        /// Lets time pass, in steps of a tenth of a second. Returns who was asked for, and how often something changed.
        fn pass(&mut self, tenths: u32) -> (Vec<(IpAddr, Option<MacAddr>)>, u32) {
            let (mut asked, mut changes) = (Vec::new(), 0);
            for _ in 0..tenths {
                self.now += Duration::from_millis(100);
                let traffic = Traffic { leaves: true, delivered: &|_, _| None, asks: &|_| true };
                changes += u32::from(self.link.tick(self.now, &traffic, &mut asked));
            }
            (asked.into_iter().map(|question| (question.address, question.to)).collect(), changes)
        }

        fn answer(&mut self, address: IpAddr, mac: MacAddr) -> bool {
            self.link.heard(&Said { address, mac, answer: true }, self.now)
        }
    }

    fn host(v6: bool, number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        if v6 { format!("2001:db8::{number:x}").parse().unwrap() } else { IpAddr::from([198, 51, high, low]) }
    }

    #[test]
    fn a_neighbour_is_asked_for_when_it_is_wanted_and_sent_to_when_it_answers() {
        for v6 in [false, true] {
            let (mut scene, neighbour) = (Scene::new(), host(v6, 7));
            assert!(!scene.answer(neighbour, MAC), "nobody asked");
            assert_eq!(scene.send(PORT, neighbour), None);
            assert_eq!(scene.pass(5), (vec![(neighbour, None)], 0));
            assert!(scene.answer(neighbour, MAC));
            assert_eq!(scene.send(PORT, neighbour), Some(MAC));
            assert!(
                !scene.answer(neighbour, OTHER) && scene.send(PORT, neighbour) == Some(MAC),
                "whoever claims it is not believed"
            );
            assert_eq!(scene.send(PORT, host(v6, 1)), None);
            let (asked, _) = scene.pass(5);
            assert!(asked.iter().all(|one| *one == (neighbour, Some(MAC))), "a router or we ourselves: {asked:?}");
        }
    }

    #[test]
    fn one_that_falls_silent_while_it_is_sent_to_is_looked_for_again_then_left_alone() {
        let (mut scene, neighbour) = (Scene::new(), host(false, 7));
        scene.send(PORT, neighbour);
        scene.pass(1);
        scene.answer(neighbour, MAC);
        for _ in 0..7 {
            assert_eq!(scene.send(PORT, neighbour), Some(MAC));
            scene.pass(10);
        }
        let (_, changes) = scene.pass(20);
        assert_eq!((changes, scene.send(PORT, neighbour)), (1, None), "packets take a router");
        // Its address is another machine's now.
        assert!(scene.answer(neighbour, OTHER));
        assert_eq!(scene.send(PORT, neighbour), Some(OTHER));
        for _ in 0..13 {
            scene.send(PORT, neighbour);
            scene.pass(10);
        }
        // Nobody is there: of somebody whom packets are for all the time, four questions in more than twenty seconds.
        let asked: usize = (0..20)
            .map(|_| {
                scene.send(PORT, neighbour);
                scene.pass(10).0.len()
            })
            .sum();
        assert!(asked <= 4, "{asked}");
    }

    #[test]
    fn one_that_nothing_is_sent_to_is_forgotten_without_a_question() {
        let (mut scene, neighbour) = (Scene::new(), host(true, 7));
        scene.send(PORT, neighbour);
        scene.pass(1);
        scene.answer(neighbour, MAC);
        assert_eq!(scene.send(PORT, neighbour), Some(MAC));
        let mut changes = 0;
        for _ in 0..61 {
            changes += scene.pass(10).1;
            let silent = scene.link.hops().iter().filter_map(|hop| hop.mac).next();
            if silent.is_some() {
                scene.answer(neighbour, MAC);
            }
        }
        assert_eq!((changes, scene.link.hops()), (1, vec![]));
    }

    #[test]
    fn a_port_that_scans_asks_for_few_at_once_and_leaves_room_for_others() {
        let mut scene = Scene::new();
        let mut asked = 0;
        for number in 2..6002 {
            scene.send(PORT, host(false, number));
            asked += scene.pass(1).0.len();
        }
        // In ten minutes, eight at once, three questions for each within three seconds.
        assert!((1000..=5000).contains(&asked), "{asked}");
        assert!(scene.link.entries.len() <= NEIGHBORS_MAX);
        let friend = host(false, 7000);
        scene.send(PortId(2), friend);
        assert!(scene.pass(1).0.contains(&(friend, None)));
        assert!(scene.answer(friend, MAC) && scene.send(PortId(2), friend) == Some(MAC));
    }

    #[test]
    fn who_is_full_of_silent_ones_takes_another_and_who_is_full_of_friends_none() {
        let mut scene = Scene::new();
        let silent = |scene: &mut Scene, number| {
            scene.link.entries.insert(host(false, number), Entry::Failed { until: scene.now + FAILED });
        };
        (2..2 + NEIGHBORS_MAX as u16).for_each(|number| silent(&mut scene, number));
        scene.send(PORT, host(false, 5000));
        assert_eq!((scene.link.entries.len(), scene.pass(1).0.len()), (NEIGHBORS_MAX, 1));
        scene.link.forget();
        for number in 2..2 + NEIGHBORS_MAX as u16 {
            let state = State::Reachable { mac: MAC, answered: scene.now, since: scene.now };
            scene.link.entries.insert(host(false, number), Entry::known(state, scene.now).unwrap());
        }
        scene.send(PORT, host(false, 5000));
        assert!(scene.pass(1).0.is_empty());
    }

    #[test]
    fn subnets_come_and_go_with_those_who_are_there() {
        let (mut scene, neighbour) = (Scene::new(), host(false, 7));
        scene.send(PORT, neighbour);
        scene.answer(neighbour, MAC);
        scene.link.set(&["198.51.0.2/16".parse().unwrap()], |_| false);
        assert_eq!(scene.send(PORT, neighbour), Some(MAC));
        scene.link.set(&["198.51.0.2/16".parse().unwrap()], |address| address == neighbour);
        assert_eq!(scene.link.hops(), [], "it is ours now");
    }
}
