//! Questions of one packet: whether a guest takes connections, answers an echo request, or a datagram.
//!
//! A SYN is answered by SYN with ACK, which is reset at once: the guest's program never hears of it, nothing waits for an
//! end, and no socket, no buffer and no place among connections is taken. So thousands may wait for guests that are
//! silent, at the price of an entry in a table each. Every other packet goes its way through smoltcp.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, Waker};

use hostweave_switch::wire::proto;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr,
    IpVersion, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use super::EPHEMERAL;
use super::device::StackDevice;

/// Questions of one network that wait for an answer.
pub const QUESTIONS_MAX: usize = 16_384;
/// Packets that wait for room, beyond those of questions: resets of what was answered.
const RESETS_MAX: usize = 256;
/// What we would take if the connection were to stay.
const WINDOW: u16 = 8_192;
const HOP_LIMIT: u8 = 64;
const ECHO_DATA: &[u8] = b"hostweave health";

/// What is asked of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question<'a> {
    /// Does somebody take connections on this TCP port?
    Connect(u16),
    /// Is an echo request answered?
    Echo,
    /// What is the answer to this datagram, sent to this UDP port?
    Datagram(u16, &'a [u8]),
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A connection would be taken.
    Accepted,
    /// The echo.
    Echo,
    /// The payload of the first datagram.
    Datagram(Vec<u8>),
}

/// Who asked whom. An echo has its identifier in place of L4 ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    proto: u8,
    remote: SocketAddr,
    local: SocketAddr,
}

/// What became of a packet from a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// It is about something else.
    Other,
    /// It was about a question; nothing more is to be done.
    Answer,
}

struct Pending {
    /// As it was sent.
    packet: Box<[u8]>,
    /// TCP: the sequence number of the SYN. Echo: the sequence number.
    number: u32,
    answer: Option<io::Result<Answer>>,
    waker: Option<Waker>,
}

/// The questions of one network.
pub struct Questions {
    pending: HashMap<Key, Pending>,
    /// Questions whose packets are to be sent.
    unsent: VecDeque<Key>,
    resets: VecDeque<Vec<u8>>,
    /// Where sequence numbers come from.
    random: u64,
    next_port: u16,
}

impl Questions {
    /// None yet. `seed` must be random: sequence numbers start from it.
    pub fn new(seed: u64) -> Self {
        let (pending, unsent, resets) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        Self { pending, unsent, resets, random: seed | 1, next_port: 0 }
    }

    /// Asks. `ident` names who asks: the same echo identifier or UDP port is used each time, so that the switch sees one flow
    /// and no new one for each question. A connection has a new port each time. `None` when too many wait.
    pub fn ask(&mut self, from: IpAddr, to: IpAddr, ident: u16, question: Question<'_>) -> Option<Key> {
        if self.pending.len() >= QUESTIONS_MAX {
            return None;
        }
        let (proto, remote_port) = match (question, to.is_ipv4()) {
            (Question::Connect(port), _) => (proto::TCP, port),
            (Question::Datagram(port, _), _) => (proto::UDP, port),
            (Question::Echo, true) => (proto::ICMPV4, 0),
            (Question::Echo, false) => (proto::ICMPV6, 0),
        };
        let remote = SocketAddr::new(to, remote_port);
        // As many tries as may be in vain: one for each that waits.
        let key = (0..=self.pending.len()).find_map(|step| {
            let local = SocketAddr::new(from, self.local_port(proto, ident.wrapping_add(step as u16)));
            let key = Key { proto, remote, local };
            (!self.pending.contains_key(&key)).then_some(key)
        })?;
        let number = self.random();
        let packet = packet(&key, question, number).into();
        self.pending.insert(key, Pending { packet, number, answer: None, waker: None });
        self.unsent.push_back(key);
        Some(key)
    }

    fn local_port(&mut self, proto: u8, ident: u16) -> u16 {
        let ports = EPHEMERAL.end() - EPHEMERAL.start() + 1;
        match proto {
            proto::TCP => {
                self.next_port = self.next_port.wrapping_add(1);
                EPHEMERAL.start() + self.next_port % ports
            }
            proto::UDP => EPHEMERAL.start() + ident % ports,
            _ => ident,
        }
    }

    /// Xorshift: a guest that guesses numbers could answer for another one only if `guard` let it use the address.
    fn random(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32
    }

    /// Sends the packet of a question once more.
    pub fn repeat(&mut self, key: &Key) {
        if self.pending.get(key).is_some_and(|pending| pending.answer.is_none()) {
            self.unsent.push_back(*key);
        }
    }

    /// Forgets a question.
    pub fn forget(&mut self, key: &Key) {
        self.pending.remove(key);
    }

    /// The answer, once.
    pub fn poll(&mut self, key: &Key, cx: &Context<'_>) -> Poll<io::Result<Answer>> {
        let Some(pending) = self.pending.get_mut(key) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if let Some(answer) = pending.answer.take() {
            return Poll::Ready(answer);
        }
        pending.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The network is gone: nobody will answer any more.
    pub fn close(&mut self) {
        for (_, pending) in self.pending.drain() {
            pending.waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Sends what is to be sent, as far as there is room.
    pub fn send(&mut self, device: &mut StackDevice) {
        while let Some(packet) = self.resets.front() {
            if !device.send(packet) {
                return;
            }
            self.resets.pop_front();
        }
        while let Some(key) = self.unsent.front() {
            if self.pending.get(key).is_some_and(|pending| !device.send(&pending.packet)) {
                return;
            }
            self.unsent.pop_front();
        }
    }

    /// Takes a packet, if it is about a question. `own` are the addresses of the gateway: errors come from the guest itself or
    /// from there.
    pub fn hear(&mut self, packet: &[u8], own: &[IpAddr]) -> Heard {
        if self.pending.is_empty() {
            return Heard::Other;
        }
        self.understand(packet, own).map_or(Heard::Other, |()| Heard::Answer)
    }

    fn understand(&mut self, packet: &[u8], own: &[IpAddr]) -> Option<()> {
        let (source, destination, protocol, payload) = layers(packet)?;
        let key = |protocol, remote, local| Key {
            proto: protocol,
            remote: SocketAddr::new(source, remote),
            local: SocketAddr::new(destination, local),
        };
        match protocol {
            IpProtocol::Tcp => {
                let segment = TcpPacket::new_checked(payload).ok()?;
                self.hear_segment(key(proto::TCP, segment.src_port(), segment.dst_port()), &segment)
            }
            IpProtocol::Udp => {
                let datagram = UdpPacket::new_checked(payload).ok()?;
                let key = key(proto::UDP, datagram.src_port(), datagram.dst_port());
                self.answer(&key, Ok(Answer::Datagram(datagram.payload().to_vec())))
            }
            IpProtocol::Icmp => {
                let message = Icmpv4Packet::new_checked(payload).ok()?;
                match message.msg_type() {
                    Icmpv4Message::EchoReply => {
                        self.hear_echo(key(proto::ICMPV4, 0, message.echo_ident()), message.echo_seq_no())
                    }
                    Icmpv4Message::DstUnreachable => {
                        let code = message.msg_code();
                        let refused = code == 3;
                        self.hear_error(source, own, payload.get(8..)?, refused, format!("ICMP type 3 code {code}"))
                    }
                    _ => None,
                }
            }
            IpProtocol::Icmpv6 => {
                let message = Icmpv6Packet::new_checked(payload).ok()?;
                match message.msg_type() {
                    Icmpv6Message::EchoReply => {
                        self.hear_echo(key(proto::ICMPV6, 0, message.echo_ident()), message.echo_seq_no())
                    }
                    Icmpv6Message::DstUnreachable => {
                        let code = message.msg_code();
                        let refused = code == 4;
                        self.hear_error(source, own, payload.get(8..)?, refused, format!("ICMPv6 type 1 code {code}"))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn answer(&mut self, key: &Key, answer: io::Result<Answer>) -> Option<()> {
        let pending = self.pending.get_mut(key)?;
        // A second answer changes nothing.
        if pending.answer.is_none() {
            pending.answer = Some(answer);
            pending.waker.take().into_iter().for_each(Waker::wake);
        }
        Some(())
    }

    /// RFC 9293 §3.10.7.3, as far as it goes here.
    fn hear_segment(&mut self, key: Key, segment: &TcpPacket<&[u8]>) -> Option<()> {
        let expected = self.pending.get(&key)?.number.wrapping_add(1);
        let acknowledges = segment.ack() && segment.ack_number().0 as u32 == expected;
        if segment.rst() {
            // A reset that does not acknowledge the SYN is somebody's guess.
            let refused = io::ErrorKind::ConnectionRefused.into();
            return if acknowledges { self.answer(&key, Err(refused)) } else { Some(()) };
        }
        if segment.ack() && self.resets.len() < RESETS_MAX {
            // Ends what the guest thinks of: this connection, or an old one with these ports.
            self.resets.push_back(reset(&key, segment.ack_number()));
        }
        if segment.syn() && acknowledges { self.answer(&key, Ok(Answer::Accepted)) } else { Some(()) }
    }

    fn hear_echo(&mut self, key: Key, number: u16) -> Option<()> {
        if self.pending.get(&key)?.number as u16 != number {
            return Some(());
        }
        self.answer(&key, Ok(Answer::Echo))
    }

    fn hear_error(&mut self, source: IpAddr, own: &[IpAddr], quote: &[u8], refused: bool, text: String) -> Option<()> {
        let (key, number) = quoted(quote)?;
        let pending = self.pending.get(&key)?;
        let from_there = source == key.remote.ip() || own.contains(&source);
        if !from_there || (key.proto == proto::TCP && number != Some(pending.number)) {
            return Some(());
        }
        let kind = if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::HostUnreachable };
        self.answer(&key, Err(io::Error::new(kind, text)))
    }
}

/// Addresses, protocol and payload of a packet that is no fragment.
fn layers(packet: &[u8]) -> Option<(IpAddr, IpAddr, IpProtocol, &[u8])> {
    // smoltcp looks at the first octet, whether there is one or not.
    packet.first()?;
    match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            let whole = packet.frag_offset() == 0 && !packet.more_frags();
            whole.then(|| (packet.src_addr().into(), packet.dst_addr().into(), packet.next_header(), packet.payload()))
        }
        IpVersion::Ipv6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            Some((packet.src_addr().into(), packet.dst_addr().into(), packet.next_header(), packet.payload()))
        }
    }
}

/// The question that an error quotes, and the sequence number of TCP if it is there. Errors need not quote more than the ports.
fn quoted(quote: &[u8]) -> Option<(Key, Option<u32>)> {
    let address_4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(quote.get(at..at + 4)?).ok()?));
    let address_6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(quote.get(at..at + 16)?).ok()?));
    let first = *quote.first()?;
    let (protocol, local, remote, l4) = match first >> 4 {
        4 => (*quote.get(9)?, address_4(12)?, address_4(16)?, quote.get(4 * usize::from(first & 15)..)?),
        6 => (*quote.get(6)?, address_6(8)?, address_6(24)?, quote.get(40..)?),
        _ => return None,
    };
    let word = |at: usize| Some(u16::from_be_bytes(<[u8; 2]>::try_from(l4.get(at..at + 2)?).ok()?));
    let (local_port, remote_port) = match protocol {
        proto::TCP | proto::UDP => (word(0)?, word(2)?),
        _ => (word(4)?, 0),
    };
    let number = l4.get(4..8).and_then(|octets| Some(u32::from_be_bytes(octets.try_into().ok()?)));
    let (remote, local) = (SocketAddr::new(remote, remote_port), SocketAddr::new(local, local_port));
    Some((Key { proto: protocol, remote, local }, number))
}

/// The packet of a question.
fn packet(key: &Key, question: Question<'_>, number: u32) -> Vec<u8> {
    let (source, destination) = (IpAddress::from(key.local.ip()), IpAddress::from(key.remote.ip()));
    let sums = ChecksumCapabilities::default();
    match question {
        Question::Connect(_) => {
            let mut segment = segment(key, TcpControl::Syn, TcpSeqNumber(number as i32));
            segment.max_seg_size = Some(if key.local.is_ipv4() { 536 } else { 1220 });
            tcp(key, &segment)
        }
        Question::Datagram(_, data) => {
            let repr = UdpRepr { src_port: key.local.port(), dst_port: key.remote.port() };
            ip(key, IpProtocol::Udp, repr.header_len() + data.len(), |octets| {
                let fill = |payload: &mut [u8]| payload.copy_from_slice(data);
                repr.emit(&mut UdpPacket::new_unchecked(octets), &source, &destination, data.len(), fill, &sums);
            })
        }
        Question::Echo => {
            let (ident, seq_no, data) = (key.local.port(), number as u16, ECHO_DATA);
            match (source, destination) {
                (IpAddress::Ipv6(source), IpAddress::Ipv6(destination)) => {
                    let repr = Icmpv6Repr::EchoRequest { ident, seq_no, data };
                    ip(key, IpProtocol::Icmpv6, repr.buffer_len(), |octets| {
                        repr.emit(&source, &destination, &mut Icmpv6Packet::new_unchecked(octets), &sums);
                    })
                }
                _ => {
                    let repr = Icmpv4Repr::EchoRequest { ident, seq_no, data };
                    ip(key, IpProtocol::Icmp, repr.buffer_len(), |octets| {
                        repr.emit(&mut Icmpv4Packet::new_unchecked(octets), &sums);
                    })
                }
            }
        }
    }
}

fn reset(key: &Key, number: TcpSeqNumber) -> Vec<u8> {
    tcp(key, &segment(key, TcpControl::Rst, number))
}

fn segment(key: &Key, control: TcpControl, seq_number: TcpSeqNumber) -> TcpRepr<'static> {
    TcpRepr {
        src_port: key.local.port(),
        dst_port: key.remote.port(),
        control,
        seq_number,
        ack_number: None,
        window_len: if control == TcpControl::Rst { 0 } else { WINDOW },
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

fn tcp(key: &Key, repr: &TcpRepr<'_>) -> Vec<u8> {
    let (source, destination) = (IpAddress::from(key.local.ip()), IpAddress::from(key.remote.ip()));
    ip(key, IpProtocol::Tcp, repr.buffer_len(), |octets| {
        let mut segment = TcpPacket::new_unchecked(octets);
        repr.emit(&mut segment, &source, &destination, &ChecksumCapabilities::default());
    })
}

/// A packet of ours, its payload filled by `fill`.
fn ip(key: &Key, protocol: IpProtocol, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let (source, destination) = (IpAddress::from(key.local.ip()), IpAddress::from(key.remote.ip()));
    let header = IpRepr::new(source, destination, protocol, len, HOP_LIMIT);
    let mut octets = vec![0; header.buffer_len()];
    header.emit(&mut octets, &ChecksumCapabilities::default());
    let (_, payload) = octets.split_at_mut(header.header_len());
    fill(payload);
    octets
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{A_V4, A_V6, B_V4, B_V6, GATEWAY_V4, GATEWAY_V6};
    use super::*;

    /// Gateway, guest and another guest.
    const BOTH: [[IpAddr; 3]; 2] = [
        [IpAddr::V4(GATEWAY_V4), IpAddr::V4(A_V4), IpAddr::V4(B_V4)],
        [IpAddr::V6(GATEWAY_V6), IpAddr::V6(A_V6), IpAddr::V6(B_V6)],
    ];

    /// One question, and what the guest sees of it.
    struct Asked {
        questions: Questions,
        key: Key,
        number: u32,
        own: IpAddr,
    }

    impl Asked {
        fn new(gateway: IpAddr, guest: IpAddr, question: Question<'_>) -> Self {
            let mut questions = Questions::new(7);
            let key = questions.ask(gateway, guest, 77, question).unwrap();
            let number = questions.pending[&key].number;
            Self { questions, key, number, own: gateway }
        }

        /// What the other side sends, in place of `self.key`.
        fn reverse(&self) -> Key {
            Key { remote: self.key.local, local: self.key.remote, ..self.key }
        }

        fn hear(&mut self, packet: &[u8]) -> Heard {
            self.questions.hear(packet, &[self.own])
        }

        fn answer(&mut self) -> Option<Result<Answer, io::ErrorKind>> {
            match self.questions.poll(&self.key, &Context::from_waker(Waker::noop())) {
                Poll::Ready(answer) => Some(answer.map_err(|error| error.kind())),
                Poll::Pending => None,
            }
        }

        fn segment(&self, control: TcpControl, ack: u32) -> Vec<u8> {
            let repr = segment(&self.reverse(), control, TcpSeqNumber(900));
            tcp(&self.reverse(), &TcpRepr { ack_number: Some(TcpSeqNumber(ack as i32)), ..repr })
        }

        fn error(&self, source: IpAddr, code: u8, quote: &[u8]) -> Vec<u8> {
            let (kind, protocol) = if source.is_ipv4() { (3, IpProtocol::Icmp) } else { (1, IpProtocol::Icmpv6) };
            let key = Key { proto: 0, local: (source, 0).into(), remote: (self.own, 0).into() };
            ip(&key, protocol, 8 + quote.len(), |octets| {
                octets[..2].copy_from_slice(&[kind, code]);
                octets[8..].copy_from_slice(quote);
            })
        }

        fn sent(&self) -> Vec<u8> {
            self.questions.pending[&self.key].packet.to_vec()
        }
    }

    #[test]
    fn only_who_was_asked_answers_and_only_what_was_asked() {
        for [gateway, guest, other] in BOTH {
            let mut asked = Asked::new(gateway, guest, Question::Connect(80));
            let next = asked.number.wrapping_add(1);
            // Guesses at the acknowledgement, and plain segments of an old connection.
            for (control, ack) in
                [(TcpControl::Rst, 5), (TcpControl::Syn, next.wrapping_add(1)), (TcpControl::None, next)]
            {
                let segment = asked.segment(control, ack);
                assert_eq!((asked.hear(&segment), asked.answer()), (Heard::Answer, None), "{control:?} {ack}");
            }
            // Errors that another guest makes up, or that do not know the sequence number.
            let port_unreachable = if guest.is_ipv4() { 3 } else { 4 };
            let quote = asked.sent();
            let mut guess = quote.clone();
            let number_at = quote.len() - 24 + 4;
            guess[number_at] ^= 1;
            for (source, quote) in [(other, &quote), (guest, &guess), (gateway, &guess)] {
                let error = asked.error(source, port_unreachable, quote);
                assert_eq!((asked.hear(&error), asked.answer()), (Heard::Answer, None), "{source}");
            }
            // To another port, or from one; from another guest; about nothing.
            for packet in [asked.sent(), vec![], vec![0x45], vec![0x60; 41]] {
                assert_eq!(asked.hear(&packet), Heard::Other);
            }
            let segment = asked.segment(TcpControl::Syn, next);
            assert_eq!((asked.hear(&segment), asked.answer()), (Heard::Answer, Some(Ok(Answer::Accepted))));
            asked.questions.forget(&asked.key);
            assert_eq!(asked.hear(&segment), Heard::Other);
        }
    }

    #[test]
    fn refusals_and_errors() {
        for [gateway, guest, _] in BOTH {
            let mut asked = Asked::new(gateway, guest, Question::Connect(80));
            let refusal = asked.segment(TcpControl::Rst, asked.number.wrapping_add(1));
            asked.hear(&refusal);
            assert_eq!(asked.answer(), Some(Err(io::ErrorKind::ConnectionRefused)));
            let port_unreachable = if guest.is_ipv4() { 3 } else { 4 };
            let questions = [Question::Connect(80), Question::Datagram(53, b"ping"), Question::Echo];
            for (source, code, kind) in [
                (guest, port_unreachable, io::ErrorKind::ConnectionRefused),
                (gateway, port_unreachable, io::ErrorKind::ConnectionRefused),
                (gateway, 1, io::ErrorKind::HostUnreachable),
            ] {
                for question in questions {
                    let mut asked = Asked::new(gateway, guest, question);
                    // As much as RFC 792 promises.
                    let quote = asked.sent();
                    let shortest = if guest.is_ipv4() { 20 + 8 } else { 40 + 8 };
                    let error = asked.error(source, code, &quote[..shortest]);
                    assert_eq!((asked.hear(&error), asked.answer()), (Heard::Answer, Some(Err(kind))), "{question:?}");
                    let error = asked.error(source, code, &quote[..shortest - 5]);
                    assert_eq!(asked.hear(&error), Heard::Other, "a quote without ports");
                }
            }
        }
    }

    #[test]
    fn limits() {
        let [gateway, guest, _] = BOTH[0];
        let mut asked = Asked::new(gateway, guest, Question::Connect(80));
        let segment = asked.segment(TcpControl::Syn, asked.number.wrapping_add(1));
        for _ in 0..10_000 {
            asked.hear(&segment);
        }
        assert_eq!(asked.questions.resets.len(), RESETS_MAX);
        let mut questions = Questions::new(7);
        // The same guest is asked the same by many at once: each has an answer of its own.
        let keys: Vec<_> = (0..300).map(|_| questions.ask(gateway, guest, 5, Question::Echo).unwrap()).collect();
        assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), 300);
        for index in 300..QUESTIONS_MAX {
            let port = 1 + (index % 4) as u16;
            assert!(questions.ask(gateway, guest, 5, Question::Connect(port)).is_some());
        }
        assert_eq!(questions.ask(gateway, guest, 6, Question::Connect(80)), None);
        questions.forget(&keys[0]);
        assert!(questions.ask(gateway, guest, 6, Question::Connect(80)).is_some());
        questions.close();
        let gone = questions.poll(&keys[1], &Context::from_waker(Waker::noop()));
        assert!(matches!(gone, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected));
    }

    /// Any octets behind a plausible start: never a panic, and no connection is accepted by chance.
    #[test]
    fn mutated_answers() {
        let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 16) as usize % below
        };
        for [gateway, guest, _] in BOTH {
            for question in [Question::Connect(80), Question::Datagram(53, b"ping"), Question::Echo] {
                let mut asked = Asked::new(gateway, guest, question);
                let sent = asked.sent();
                let reply = packet(&asked.reverse(), question, asked.number);
                let corpus = [asked.segment(TcpControl::Syn, 5), reply, asked.error(guest, 3, &sent), sent];
                for _ in 0..10_000 {
                    let mut octets = corpus[random(corpus.len())].clone();
                    if random(4) == 0 {
                        octets.truncate(random(octets.len()));
                    }
                    for _ in 0..random(4) {
                        if !octets.is_empty() {
                            let at = random(octets.len());
                            octets[at] = random(256) as u8;
                        }
                    }
                    asked.hear(&octets);
                    assert_ne!(asked.answer(), Some(Ok(Answer::Accepted)));
                }
            }
        }
    }
}
