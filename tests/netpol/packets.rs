//! Verdicts of real packets. Each is asked with a new flow: a TCP handshake, a UDP datagram and its answer, an SCTP INIT and
//! its INIT-ACK. It passes when the answer is back at the sender. It is denied when the first packet ends at the switch and is
//! counted as `policy_denied` there; a packet that gets lost in any other way is an error.
//!
//! Each is asked once more through a Service whose only backend is the receiver: policy sees the backend, and the real sender, so
//! that the verdict is the same (SEMANTICS §2).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use anyhow::bail;
use hostweave_guest::frames::{Body, Frame, L4, Path, Segment};
use hostweave_switch::stage::DropReason;
use hostweave_switch::wire::proto;

use crate::cluster::{Cluster, Pod};
use crate::data::{Protocol, Verdict};
use crate::lab::{Lab, RING_SIZE, service_l4};
use crate::trace::Tracer;

/// Flows at a time. Of each, two packets are on their way to one guest at most.
const BATCH: usize = RING_SIZE as usize / 2;

/// Source ports from here on, one for each flow between the same two pods to the same port.
const SRC_PORT_FIRST: u16 = 20_000;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Asks with packets.
pub struct Packets {
    pub lab: Lab,
    /// Next source port, by sender, receiver, protocol and L4 port.
    src_ports: HashMap<(IpAddr, IpAddr, Protocol, u16), u16>,
}

/// What came of a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// It got through.
    pub passed: bool,
    /// `trace` said before that it would.
    pub traced: bool,
    /// The same through a Service before the receiver; `None` where that is not asked.
    pub behind: Option<[bool; 2]>,
}

/// A new flow.
struct Flow<'a> {
    verdict: &'a Verdict,
    /// From sender to receiver, and back.
    paths: [Path; 2],
    /// The address of the Service that it goes through.
    service: Option<IpAddr>,
    src_port: u16,
    /// How far it came.
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The first packet is not there.
    Sent,
    /// It is at the receiver.
    Arrived,
    /// The answer is at the sender.
    Answered,
    /// TCP: so is the last packet of the handshake at the receiver.
    Open,
}

/// Source, destination, protocol, L4 ports.
type Tuple = (IpAddr, IpAddr, Protocol, u16, u16);

impl Packets {
    /// With a host that has room for pods of these addresses.
    ///
    /// # Errors
    /// When the machine refuses something.
    pub fn new(pods: &[IpAddr]) -> anyhow::Result<Self> {
        Ok(Self { lab: Lab::new(pods)?, src_ports: HashMap::new() })
    }

    /// Makes the host what the world is now. `case` is the number of the case.
    ///
    /// # Errors
    /// When the fabric refuses.
    pub fn update(&mut self, case: usize, cluster: &Cluster) -> anyhow::Result<()> {
        self.lab.apply(case, cluster)
    }

    /// Whether a new flow passes, for each verdict between two pods.
    ///
    /// # Errors
    /// When a packet is lost that policy did not drop, or arrives where it should not.
    pub fn allows(&mut self, cluster: &Cluster, verdicts: &[&Verdict]) -> anyhow::Result<Vec<Answer>> {
        let direct = self.ask(cluster, verdicts, false)?;
        // A pod that asks itself has the gateway's address behind a Service, which is a test of its own (SEMANTICS SV19).
        let others: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.from != verdict.to).copied().collect();
        let mut wanted: BTreeMap<String, BTreeSet<(u8, u16)>> = BTreeMap::new();
        for verdict in &others {
            wanted.entry(verdict.to.clone()).or_default().insert((number(verdict.protocol), verdict.port));
        }
        self.lab.serve(&wanted)?;
        let mut behind = self.ask(cluster, &others, true)?.into_iter();
        let answer = |(verdict, (passed, traced)): (&&Verdict, (bool, bool))| {
            let behind = if verdict.from == verdict.to { None } else { behind.next() };
            Answer { passed, traced, behind: behind.map(|(passed, traced)| [passed, traced]) }
        };
        Ok(verdicts.iter().zip(direct).map(answer).collect())
    }

    /// Whether a new flow passes, and whether `trace` said so, for each verdict.
    fn ask(
        &mut self,
        cluster: &Cluster,
        verdicts: &[&Verdict],
        through_services: bool,
    ) -> anyhow::Result<Vec<(bool, bool)>> {
        let mut answers = Vec::with_capacity(verdicts.len());
        for batch in verdicts.chunks(BATCH) {
            let mut flows = Vec::with_capacity(batch.len());
            for verdict in batch {
                flows.push(self.flow(cluster, verdict, through_services)?);
            }
            let tracer = Tracer::new(&self.lab.fabric);
            let trace = |flow: &Flow<'_>| {
                let (path, [src_port, dst_port]) = flow.sent(0);
                tracer.probe_verdict(&flow.verdict.from, flow.verdict, &path, [src_port, dst_port])
            };
            let traced: Vec<bool> = flows.iter().map(trace).collect::<anyhow::Result<_>>()?;
            self.send_first(&mut flows)?;
            self.answer(&mut flows)?;
            self.finish(&mut flows)?;
            answers.extend(flows.iter().zip(traced).map(|(flow, traced)| (flow.state != State::Sent, traced)));
        }
        Ok(answers)
    }

    fn flow<'a>(&mut self, cluster: &Cluster, verdict: &'a Verdict, through_service: bool) -> anyhow::Result<Flow<'a>> {
        let [from, to] = cluster.ends(verdict)?;
        let paths = [self.lab.path(&verdict.from, to.address)?, self.lab.path(&verdict.to, from.address)?];
        let service = if through_service { Some(self.lab.service_address(&verdict.to)?) } else { None };
        let src_port = self.src_port(from, to, verdict);
        Ok(Flow { verdict, paths, service, src_port, state: State::Sent })
    }

    /// One that makes the flow a new one.
    pub fn src_port(&mut self, from: &Pod, to: &Pod, verdict: &Verdict) -> u16 {
        let key = (from.address, to.address, verdict.protocol, verdict.port);
        let next = self.src_ports.entry(key).or_insert(SRC_PORT_FIRST);
        let src_port = *next;
        *next = next.checked_add(1).unwrap_or(SRC_PORT_FIRST);
        src_port
    }

    /// The first packet of each flow. What does not arrive was dropped by policy, and by nothing else.
    fn send_first(&mut self, flows: &mut [Flow<'_>]) -> anyhow::Result<()> {
        let before = self.lab.dropped()?;
        for flow in flows.iter() {
            self.lab.push(&flow.verdict.from, &flow.first())?;
        }
        self.advance(flows, State::Arrived)?;
        let mut lost: BTreeMap<&str, u64> = BTreeMap::new();
        for flow in flows.iter().filter(|flow| flow.state == State::Sent) {
            *lost.entry(&flow.verdict.from).or_default() += 1;
        }
        for (pod, after) in self.lab.dropped()? {
            let before = before.get(&pod).map_or(&[][..], Vec::as_slice);
            let mut denied = 0;
            for (reason, count) in after {
                let new = count - before.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count);
                if reason == DropReason::PolicyDenied {
                    denied = new;
                } else if new > 0 {
                    bail!("{new} first packets of {pod} were dropped: {}", reason.name());
                }
            }
            let lost = lost.get(pod.as_str()).copied().unwrap_or(0);
            if denied != lost {
                bail!("{lost} first packets of {pod} did not arrive, and policy dropped {denied}");
            }
        }
        Ok(())
    }

    /// Whoever was reached answers; replies always pass (SEMANTICS NP22).
    fn answer(&mut self, flows: &mut [Flow<'_>]) -> anyhow::Result<()> {
        for flow in flows.iter().filter(|flow| flow.state == State::Arrived) {
            self.lab.push(&flow.verdict.to, &flow.reply())?;
        }
        self.advance(flows, State::Answered)?;
        match flows.iter().find(|flow| flow.state == State::Arrived) {
            Some(flow) => bail!("{}: the receiver's answer did not arrive", flow.verdict),
            None => Ok(()),
        }
    }

    /// The end of TCP's handshake, and a reset, so that the connection is gone.
    fn finish(&mut self, flows: &mut [Flow<'_>]) -> anyhow::Result<()> {
        let is_tcp = |flow: &Flow<'_>| flow.verdict.protocol == Protocol::Tcp && flow.state == State::Answered;
        for flow in flows.iter().filter(|flow| is_tcp(flow)) {
            self.lab.push(&flow.verdict.from, &flow.tcp(0, ACK))?;
            self.lab.push(&flow.verdict.from, &flow.tcp(0, ACK | RST))?;
        }
        self.advance(flows, State::Open)?;
        match flows.iter().find(|flow| is_tcp(flow)) {
            Some(flow) => bail!("{}: the handshake did not end", flow.verdict),
            None => Ok(()),
        }
    }

    /// Sends what was pushed, and notes how far that brought the flows.
    fn advance(&mut self, flows: &mut [Flow<'_>], state: State) -> anyhow::Result<()> {
        let direction = usize::from(state == State::Answered);
        let known: HashMap<Tuple, usize> =
            flows.iter().enumerate().map(|(at, flow)| (flow.tuple(direction), at)).collect();
        for (pod, frame) in self.lab.exchange()? {
            // Router advertisements are no part of this, nor are late words from outside.
            let of_us = |(src, ..): &Tuple| self.lab.has(*src) || flows.iter().any(|flow| flow.service == Some(*src));
            let Some(tuple) = tuple_of(&frame).filter(of_us) else { continue };
            let Some(flow) = known.get(&tuple).and_then(|at| flows.get_mut(*at)) else {
                bail!("{pod} got a packet that nobody sent now: {tuple:?}");
            };
            let right = if direction == 0 { &flow.verdict.to } else { &flow.verdict.from };
            if pod != *right {
                bail!("{}: arrived at {pod}", flow.verdict);
            }
            flow.state = state;
        }
        Ok(())
    }
}

impl Flow<'_> {
    /// Of packets in that direction as they arrive: 1 is the receiver's, which the Service answers for.
    fn tuple(&self, direction: usize) -> Tuple {
        let (path, protocol) = (&self.paths[direction], self.verdict.protocol);
        match (direction, self.service) {
            (0, _) => (path.src, path.dst, protocol, self.src_port, self.verdict.port),
            (_, None) => (path.src, path.dst, protocol, self.verdict.port, self.src_port),
            (_, Some(service)) => (service, path.dst, protocol, service_l4(self.verdict.port), self.src_port),
        }
    }

    /// The way of packets in that direction, and their L4 ports, as they are sent.
    fn sent(&self, direction: usize) -> (Path, [u16; 2]) {
        let path = &self.paths[direction];
        match (direction, self.service) {
            (0, None) => (*path, [self.src_port, self.verdict.port]),
            (0, Some(dst)) => (Path { dst, ..*path }, [self.src_port, service_l4(self.verdict.port)]),
            _ => (*path, [self.verdict.port, self.src_port]),
        }
    }

    fn first(&self) -> Vec<u8> {
        match self.verdict.protocol {
            Protocol::Tcp => self.tcp(0, SYN),
            Protocol::Udp => {
                let (path, [src_port, dst_port]) = self.sent(0);
                path.udp(src_port, dst_port, b"there")
            }
            Protocol::Sctp => {
                let (path, ports) = self.sent(0);
                path.ip(SCTP, &sctp_init(ports))
            }
        }
    }

    fn reply(&self) -> Vec<u8> {
        match self.verdict.protocol {
            Protocol::Tcp => self.tcp(1, SYN | ACK),
            Protocol::Udp => self.paths[1].udp(self.verdict.port, self.src_port, b"back"),
            Protocol::Sctp => self.paths[1].ip(SCTP, &sctp_init_ack(self.sent(1).1)),
        }
    }

    fn tcp(&self, direction: usize, flags: u8) -> Vec<u8> {
        const FIRST: [u32; 2] = [1_000, 5_000];
        let (path, [src_port, dst_port]) = self.sent(direction);
        let syn = u32::from(flags & SYN == 0);
        let ack = if flags & ACK == 0 { 0 } else { FIRST[1 - direction] + 1 };
        let segment = Segment { src_port, dst_port, seq: FIRST[direction] + syn, ack, flags, window: 65_535 };
        path.tcp(&segment, &[])
    }
}

/// What a frame belongs to; `None` for frames of other kinds than flows here have.
fn tuple_of(frame: &Frame) -> Option<Tuple> {
    let Body::Ip { src, dst, l4, .. } = &frame.body else { return None };
    let (protocol, src_port, dst_port) = match l4 {
        L4::Tcp { segment, .. } => (Protocol::Tcp, segment.src_port, segment.dst_port),
        L4::Udp { src_port, dst_port, .. } => (Protocol::Udp, *src_port, *dst_port),
        L4::Other(SCTP, octets) => {
            let ports = octets.first_chunk::<4>()?;
            let [a, b, c, d] = *ports;
            (Protocol::Sctp, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
        _ => return None,
    };
    Some((*src, *dst, protocol, src_port, dst_port))
}

/// Protocol number of SCTP.
pub const SCTP: u8 = proto::SCTP;

/// IP protocol.
const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
        Protocol::Sctp => proto::SCTP,
    }
}

/// Tags that the ends of an SCTP association choose.
const TAGS: [u32; 2] = [0x0102_0304, 0x0506_0708];

/// INIT (RFC 9260 §3.3.2): in a packet of its own, with verification tag 0.
pub fn sctp_init(ports: [u16; 2]) -> Vec<u8> {
    sctp(ports, 0, 1, TAGS[0], &[])
}

/// INIT ACK (RFC 9260 §3.3.3), with the state cookie that it must have.
fn sctp_init_ack(ports: [u16; 2]) -> Vec<u8> {
    sctp(ports, TAGS[0], 2, TAGS[1], &[0, 7, 0, 8, b'e', b'a', b't', b'!'])
}

fn sctp([src_port, dst_port]: [u16; 2], verification_tag: u32, kind: u8, initiate_tag: u32, rest: &[u8]) -> Vec<u8> {
    const CHUNK_LEN: u16 = 20;
    const WINDOW: u32 = 65_536;
    const STREAMS: u16 = 10;
    let mut packet = Vec::new();
    packet.extend(src_port.to_be_bytes());
    packet.extend(dst_port.to_be_bytes());
    packet.extend(verification_tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0]);
    packet.extend((CHUNK_LEN + rest.len() as u16).to_be_bytes());
    packet.extend(initiate_tag.to_be_bytes());
    packet.extend(WINDOW.to_be_bytes());
    packet.extend(STREAMS.to_be_bytes());
    packet.extend(STREAMS.to_be_bytes());
    packet.extend(1_u32.to_be_bytes());
    packet.extend(rest);
    // RFC 9260 appendix A: the checksum stands in the packet least significant octet first.
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// CRC32c (RFC 9260 appendix A).
fn crc32c(octets: &[u8]) -> u32 {
    const REVERSED: u32 = 0x82f6_3b78;
    !octets.iter().fold(u32::MAX, |crc, octet| {
        (0..8).fold(crc ^ u32::from(*octet), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { REVERSED } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_that_of_the_rfc() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
