//! Two TCPs of somebody else (smoltcp) talk through a path that loses, repeats, delays and reorders, with the tracker in
//! the middle of it: whatever they send is legal, so nothing of it may be refused. Time is virtual.

use std::collections::BTreeMap;

use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::*;

/// A link end: what came for its host, and what its host sent.
#[derive(Default)]
struct Link {
    received: Vec<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);
struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        if self.received.is_empty() { None } else { Some((Received(self.received.remove(0)), Sent(&mut self.sent))) }
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ip, self.mtu);
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Both;
        capabilities.checksum = checksum;
        capabilities
    }
}

struct Host {
    link: Link,
    iface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    to_send: usize,
    received: usize,
    closed: bool,
}

fn address(v6: bool, host: usize) -> IpAddress {
    match v6 {
        false => IpAddress::v4(192, 0, 2, 1 + host as u8),
        true => IpAddress::v6(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1 + host as u16),
    }
}

impl Host {
    fn new(plan: &Plan, index: usize) -> Self {
        let mut link = Link { mtu: plan.mtu, ..Link::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = plan.seed ^ index as u64;
        let mut iface = Interface::new(config, &mut link, Instant::ZERO);
        iface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(address(plan.v6, index), 24));
        });
        let buffer = |len| tcp::SocketBuffer::new(vec![0; len]);
        let mut socket = tcp::Socket::new(buffer(plan.windows[index]), buffer(plan.windows[index]));
        socket.set_keep_alive(plan.keep_alive.then(|| Duration::from_millis(400)));
        let peer = (address(plan.v6, 1 - index), PORTS[1 - index]);
        if index == 0 || plan.simultaneous {
            socket.connect(iface.context(), peer, PORTS[index]).unwrap();
        } else {
            socket.listen(PORTS[1]).unwrap();
        }
        let mut sockets = SocketSet::new(vec![]);
        let socket = sockets.add(socket);
        let to_send = plan.octets[index];
        Self { link, iface, sockets, socket, to_send, received: 0, closed: false }
    }

    /// Lets the host work: at most `pace` octets are read, so that windows close.
    fn work(&mut self, now: Instant, pace: usize) {
        self.iface.poll(now, &mut self.link, &mut self.sockets);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        let mut left = pace;
        while socket.can_recv() && left > 0 {
            let got = socket.recv(|data| (data.len().min(left), data.len().min(left))).unwrap();
            (self.received, left) = (self.received + got, left - got);
        }
        if socket.can_send() && self.to_send > 0 {
            self.to_send -= socket.send(|room| (room.len().min(self.to_send), room.len().min(self.to_send))).unwrap();
        }
        if self.to_send == 0 && socket.may_send() && !self.closed {
            socket.close();
            self.closed = true;
        }
        self.iface.poll(now, &mut self.link, &mut self.sockets);
    }

    fn state(&mut self) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(self.socket).state()
    }
}

#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    v6: bool,
    mtu: usize,
    windows: [usize; 2],
    octets: [usize; 2],
    /// Added to the numbers of each side, so that they wrap around somewhere.
    shift: [u32; 2],
    loss_percent: u64,
    repeat_percent: u64,
    jitter_ms: u64,
    pace: usize,
    keep_alive: bool,
    simultaneous: bool,
    attack: bool,
}

fn plans() -> impl Strategy<Value = Plan> {
    let window = || prop_oneof![600usize..4_000, 4_000usize..65_000, 65_536usize..400_000];
    let path = (
        prop_oneof![Just(0u64), 1u64..12],
        0u64..8,
        prop_oneof![Just(0u64), 1u64..25],
        prop_oneof![300usize..3_000, Just(usize::MAX)],
    );
    let ways = (any::<bool>(), any::<bool>(), proptest::bool::weighted(0.2), any::<bool>());
    let octets = || prop_oneof![Just(0usize), 1usize..2_000, 2_000usize..150_000];
    (any::<u64>(), 1280usize..9_000, [window(), window()], [octets(), octets()], any::<[u32; 2]>(), path, ways)
        .prop_map(|(seed, mtu, windows, octets, shift, (loss_percent, repeat_percent, jitter_ms, pace), ways)| {
            let (v6, keep_alive, simultaneous, attack) = ways;
            #[rustfmt::skip]
            let plan = Plan {
                seed, v6, mtu, windows, octets, shift, loss_percent, repeat_percent, jitter_ms, pace, keep_alive,
                simultaneous, attack,
            };
            plan
        })
}

/// The tracker in the middle, and the two halves of the path on both of its sides.
struct Path {
    random: u64,
    sides: [Side; 2],
    known: bool,
    /// By arrival in microseconds and order: where to, whether it was seen by the tracker, and the packet.
    flying: BTreeMap<(u64, u64), (usize, bool, Vec<u8>)>,
    order: u64,
    passed: usize,
    refused: usize,
}

impl Path {
    /// Splitmix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Half of the way: perhaps lost, perhaps twice, some time later.
    fn fly(&mut self, plan: &Plan, now: u64, to: usize, seen: bool, packet: &[u8]) {
        if self.random() % 100 < plan.loss_percent {
            return;
        }
        let copies = 1 + u64::from(self.random() % 100 < plan.repeat_percent);
        for _ in 0..copies {
            let at = now + 1_000 + self.random() % (plan.jitter_ms * 1_000 + 1);
            self.order += 1;
            self.flying.insert((at, self.order), (to, seen, packet.to_vec()));
        }
    }

    /// The tracker sees a packet of `from`.
    fn judge(&mut self, plan: &Plan, from: usize, packet: &[u8]) -> Result<(), TestCaseError> {
        let l4 = if plan.v6 { 40 } else { 20 };
        let l5 = l4 + usize::from(packet[l4 + 12] >> 4) * 4;
        let mut segment = Segment::read(packet, l4, l5, packet.len()).unwrap();
        segment.seq = segment.seq.wrapping_add(plan.shift[from]);
        segment.ack = segment.ack.wrapping_add(if segment.has(flags::ACK) { plan.shift[1 - from] } else { 0 });
        if !self.known {
            // The opener's SYN; or of two, the one that comes first.
            self.sides[from] = first(&segment, false).unwrap();
            self.known = true;
            return Ok(());
        }
        let receiver = self.sides[1 - from];
        match track(&self.sides[from], &receiver, &segment) {
            Outcome::Pass(side) => self.sides[from] = side,
            Outcome::Challenge(_) => {}
            // It was overtaken by more than a window: its receiver discards it too (RFC 5961 §5.2, RFC 9293 §3.10.7.4).
            Outcome::OutOfWindow if overtaken(&segment, &self.sides[from]) => self.refused += 1,
            // smoltcp 0.14 retransmits a whole segment (three duplicate acknowledgements) whatever the window, and goes on
            // behind it.
            Outcome::OutOfWindow if (1..=plan.mtu as i32).contains(&distance(segment.seq, receiver.limit)) => {
                self.refused += 1;
            }
            other => {
                let sender = self.sides[from];
                return Err(TestCaseError::fail(format!("{other:?}: {segment:?}\n of {sender:?}\n to {receiver:?}")));
            }
        }
        self.passed += 1;
        if plan.attack && self.passed.is_multiple_of(4) {
            self.attack()?;
        }
        Ok(())
    }

    /// A blind attacker guesses numbers: nothing changes, whatever he sends.
    fn attack(&mut self) -> Result<(), TestCaseError> {
        use flags::{ACK, FIN, PSH, RST, SYN};
        let victim = self.random() as usize % 2;
        let (sender, receiver) = (self.sides[victim], self.sides[1 - victim]);
        if sender.flags & receiver.flags & Side::ACKED == 0 || state(&sender, &receiver) != State::Established {
            return Ok(());
        }
        let seq = self.random() as u32;
        let far = 1 << 24;
        let close = |number: u32| distance(seq, number).unsigned_abs() < far;
        if close(sender.end) || close(receiver.limit) || close(receiver.ack) {
            return Ok(());
        }
        for flags in [RST, RST | ACK, ACK, ACK | PSH, FIN | ACK, SYN, SYN | ACK] {
            let payload_len = (self.random() % 65_000) as u32;
            // Even with an acknowledgement that fits.
            for ack in [self.random() as u32, sender.ack, receiver.end] {
                let segment = Segment {
                    seq,
                    ack,
                    window: self.random() as u16,
                    payload_len,
                    flags,
                    scale: None,
                    fragment: false,
                };
                match track(&sender, &receiver, &segment) {
                    Outcome::Pass(side) => prop_assert_eq!(side, sender, "{:?}", segment),
                    Outcome::Challenge(_) => prop_assert_eq!(flags, SYN),
                    other => prop_assert_eq!(other, Outcome::OutOfWindow, "{:?}", segment),
                }
            }
        }
        Ok(())
    }
}

fn exchange(plan: &Plan) -> Result<(), TestCaseError> {
    let mut hosts = [Host::new(plan, 0), Host::new(plan, 1)];
    let (random, sides, flying) = (plan.seed, [Side::default(); 2], BTreeMap::new());
    let mut path = Path { random, sides, known: false, flying, order: 0, passed: 0, refused: 0 };
    let mut now = 0;
    // A minute more than the longest exchange needs at this loss.
    while now < 900_000_000 {
        for (index, host) in hosts.iter_mut().enumerate() {
            host.work(Instant::from_micros(now as i64), plan.pace);
            for packet in std::mem::take(&mut host.link.sent) {
                path.fly(plan, now, 1 - index, false, &packet);
            }
        }
        while let Some(((_, _), (to, seen, packet))) =
            path.flying.first_entry().filter(|e| e.key().0 <= now).map(|e| e.remove_entry())
        {
            if seen {
                hosts[to].link.received.push(packet);
            } else {
                path.judge(plan, 1 - to, &packet)?;
                path.fly(plan, now, to, true, &packet);
            }
        }
        let over = |state| matches!(state, tcp::State::Closed | tcp::State::TimeWait);
        let read = (0..2).all(|index| hosts[index].received == plan.octets[1 - index]);
        if read && hosts.iter_mut().all(|host| host.closed && over(host.state())) && path.flying.is_empty() {
            break;
        }
        now += 1_000;
    }
    // On a bad path smoltcp 0.14 may rest before the end by itself (a lost window update, a lost last FIN).
    let good = plan.loss_percent + plan.repeat_percent + plan.jitter_ms == 0;
    if !good && path.refused == 0 {
        return Ok(());
    }
    let ends = [hosts[0].state(), hosts[1].state()];
    prop_assert!(!good || path.refused == 0, "{} refused", path.refused);
    if plan.loss_percent == 0 {
        for (index, host) in hosts.iter().enumerate() {
            prop_assert_eq!(host.received, plan.octets[1 - index], "{:?} {:?}", ends, path.sides);
        }
    }
    let last = state(&path.sides[0], &path.sides[1]);
    prop_assert!(!good || last == State::TimeWait, "{:?} {:?} {:?}", last, ends, path.sides);
    Ok(())
}

fn overtaken(segment: &Segment, sender: &Side) -> bool {
    let behind = |number, newest: u32| distance(newest, number) > WINDOW_MIN as i32;
    behind(segment.end(), sender.end) || behind(segment.ack, sender.ack)
}

const CASES: u32 = 192;
const PORTS: [u16; 2] = [40_000, 80];

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// SEMANTICS CT2, CT3, NA12.
    #[test]
    fn legal_exchanges_pass_and_blind_attackers_change_nothing(plan in plans()) {
        exchange(&plan)?;
    }

    /// Nothing is lost: both ends get everything, and the tracker ends in TIME-WAIT with them.
    #[test]
    fn exchanges_on_a_good_path_come_to_their_end(plan in plans()) {
        exchange(&Plan { loss_percent: 0, repeat_percent: 0, jitter_ms: 0, ..plan })?;
    }
}
