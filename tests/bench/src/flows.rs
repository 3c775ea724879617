//! Which flows a run has, in which order they are seen, and how each begins.
//!
//! Flows differ in their L4 ports alone, so that each belongs to the two ports under test. A run does not go through them
//! in the order in which they began, but in strides of about 0.618 of their number: what a switch laid down one after
//! the other is not met one after the other, and each flow is met equally often.
//!
//! Before a run every flow is opened through the switch, whichever it is: UDP by a datagram and an answer, TCP by a
//! handshake. What does not come through is sent again, a bounded number of times.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hostweave_guest::VnetHeader;
use hostweave_guest::frames::{self, ETHER_BYTES, Frame, Path, Segment};
use hostweave_guest::queue::HEADER_BYTES;

use crate::crossing::Expected;
use crate::driver::{Port, RING_SIZE};
use crate::generator::Traffic;

/// Flows of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// So many, over and over again.
    Cycle(u32),
    /// Each frame begins a new one.
    New,
}

/// Source ports that flows have.
const SRC_PORTS: u32 = 50_000;

/// The first of them.
const SRC_PORT_FIRST: u16 = 10_000;

/// The first destination port.
pub const DST_PORT_FIRST: u16 = 5_001;

/// Different flows at most: every source port with every destination port.
const FLOWS_MAX: u32 = SRC_PORTS * (65_536 - DST_PORT_FIRST as u32);

impl Flows {
    /// Flows to open before the run. At least one: by then both ports are known to run.
    pub fn to_open(self) -> u32 {
        match self {
            Self::Cycle(count) => count,
            Self::New => 1,
        }
    }
}

/// The order in which the frames of a run take the flows.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    next: u32,
    stride: u32,
    count: u32,
}

impl Order {
    /// The order of all flows.
    pub fn new(flows: Flows) -> Self {
        match flows {
            Flows::Cycle(count) => {
                let wanted = (f64::from(count) * 0.618) as u32;
                let stride = (wanted..count).find(|&stride| gcd(stride, count) == 1).unwrap_or(0);
                Self { next: 0, stride, count: count.max(1) }
            }
            Flows::New => Self { next: Flows::New.to_open(), stride: 1, count: FLOWS_MAX },
        }
    }

    /// The next flow.
    #[inline]
    pub fn step(&mut self) -> u32 {
        let flow = self.next;
        // Neither reaches half of the type's range.
        let next = flow + self.stride;
        self.next = if next >= self.count { next - self.count } else { next };
        flow
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Source and destination port of a flow.
#[inline]
pub fn ports(flow: u32) -> (u16, u16) {
    // Below `FLOWS_MAX` both fit.
    (SRC_PORT_FIRST + (flow % SRC_PORTS) as u16, DST_PORT_FIRST + (flow / SRC_PORTS) as u16)
}

/// Flows opened in one go: fewer frames than a ring holds.
const BATCH: u32 = 512;

/// How long to wait before what did not come through is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// How often a frame is sent.
const TRIES: usize = 60;

/// Octets of each frame that tell it: L4 ports and sequence numbers (TCP), or the payload (UDP).
type Mark = [u8; 12];

/// Octets read of each frame: virtio header, Ethernet, IPv6, UDP header and payload, or what tells it of TCP.
const READ_BYTES: usize = 96;

/// Window scale of both ends: with the largest window a gigabyte may be on the way.
const WINDOW_SCALE: u8 = 14;

/// The first sequence number of data, either way.
pub const SEQUENCE_FIRST: u32 = 0;

/// Both ends of the traffic.
pub struct Ends<'a> {
    /// Who begins.
    pub a: &'a mut Port,
    /// Who answers.
    pub b: &'a mut Port,
    /// From A to B, as A sends it.
    pub there: Path,
    /// From B to A, as B sends it.
    pub back: Path,
    /// What has to arrive at B.
    pub expected: &'a mut Expected,
}

/// Opens flows `first..last`: each is seen in both directions afterwards.
///
/// # Errors
/// A frame does not come through.
pub fn open(ends: &mut Ends<'_>, traffic: Traffic, first: u32, last: u32) -> Result<()> {
    let mut from = first;
    while from < last {
        let to = last.min(from + BATCH);
        match traffic {
            Traffic::Gso4 { .. } => handshakes(ends, from..to)?,
            Traffic::Udp4 | Traffic::Udp6 => datagrams(ends, from..to)?,
        }
        from = to;
    }
    Ok(())
}

fn datagrams(ends: &mut Ends<'_>, flows: std::ops::Range<u32>) -> Result<()> {
    let payload = |flow: u32| {
        let mut octets = Mark::default();
        octets[..4].copy_from_slice(&flow.to_be_bytes());
        octets
    };
    let mark = |frame: &[u8]| frame.get(l4(frame) + 8..)?.first_chunk().copied();
    let parse = |frame: &[u8]| Frame::parse(&VnetHeader::default(), frame).map_err(anyhow::Error::msg);
    let flows: Vec<_> = flows.map(|flow| (payload(flow), ports(flow))).collect();
    let Ends { a, b, there, back, expected } = ends;
    let frames: Vec<_> = flows.iter().map(|(payload, (from, to))| there.udp(*from, *to, payload)).collect();
    let mut seen = vec![(0, 0); flows.len()];
    transfer(a, b, &frames, mark, |at, frame| {
        seen[at] = expected.opened(flows[at].1, &parse(frame)?)?;
        Ok(())
    })
    .context("a datagram from A to B")?;
    let frames: Vec<_> =
        flows.iter().zip(&seen).map(|((payload, _), (from, to))| back.udp(*to, *from, payload)).collect();
    transfer(b, a, &frames, mark, |at, frame| expected.answered(flows[at].1, &parse(frame)?))
        .context("an answer from B to A")
}

/// Where the L4 header begins.
fn l4(frame: &[u8]) -> usize {
    ETHER_BYTES + if frame[12..14] == [8, 0] { 20 } else { 40 }
}

/// SYN, SYN-ACK, ACK; and once more an ACK of the receiver, whose window is scaled now (RFC 7323 §2.2).
fn handshakes(ends: &mut Ends<'_>, flows: std::ops::Range<u32>) -> Result<()> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let before = SEQUENCE_FIRST.wrapping_sub(1);
    let steps = [
        (true, SYN, before, 0),
        (false, SYN | ACK, before, SEQUENCE_FIRST),
        (true, ACK, SEQUENCE_FIRST, SEQUENCE_FIRST),
        (false, ACK, SEQUENCE_FIRST, SEQUENCE_FIRST),
    ];
    for (there, flags, seq, ack) in steps {
        let path = if there { ends.there } else { ends.back };
        let segment = |flow: u32| {
            let (from, to) = ports(flow);
            let (src_port, dst_port) = if there { (from, to) } else { (to, from) };
            tcp(&path, &Segment { src_port, dst_port, seq, ack, flags, window: u16::MAX })
        };
        let frames = flows.clone().map(segment).collect::<Result<Vec<_>>>()?;
        let (from, to) = if there { (&mut *ends.a, &mut *ends.b) } else { (&mut *ends.b, &mut *ends.a) };
        let mark = |frame: &[u8]| frame.get(l4(frame)..)?.first_chunk().copied();
        transfer(from, to, &frames, mark, |_, _| Ok(()))
            .with_context(|| format!("a TCP segment with flags {flags:#x}"))?;
    }
    Ok(())
}

/// A segment without payload; a SYN has a window scale.
pub fn tcp(path: &Path, segment: &Segment) -> Result<Vec<u8>> {
    const SYN: u8 = 2;
    // RFC 7323 §2.2: kind 3, length 3; an end of options (RFC 9293 §3.1) pads it.
    let options: &[u8] = if segment.flags & SYN != 0 { &[3, 3, WINDOW_SCALE, 0] } else { &[] };
    let mut l4 = path.tcp(segment, &[]).split_off(path.header_bytes());
    l4[12] = ((5 + options.len() / 4) << 4) as u8;
    l4.extend(options);
    let mut frame = path.ip(frames::TCP, &l4);
    let header = frames::partial_checksum(&mut frame).context("a TCP segment")?;
    frames::complete_checksum(&header, &mut frame).map_err(anyhow::Error::msg)?;
    Ok(frame)
}

/// Sends frames, each told by its mark, and waits until all have arrived. Calls `arrived` once for each, with its place and its octets.
fn transfer(
    from: &mut Port,
    to: &mut Port,
    frames: &[Vec<u8>],
    mark: impl Fn(&[u8]) -> Option<Mark>,
    mut arrived: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let padded: Vec<Vec<u8>> = frames.iter().map(|frame| pad(frame)).collect();
    let mut missing: HashMap<Mark, usize> =
        padded.iter().enumerate().filter_map(|(at, frame)| Some((mark(frame)?, at))).collect();
    ensure!(missing.len() == frames.len(), "frames that look alike");
    for _ in 0..TRIES {
        let again: Vec<usize> = missing.values().copied().collect();
        post(from, again.iter().map(|&at| padded[at].as_slice()))?;
        let mut last = Instant::now();
        while !missing.is_empty() && last.elapsed() < AGAIN_AFTER {
            let count = to.receive::<READ_BYTES>(RING_SIZE, |octets, len| {
                let frame = &octets[HEADER_BYTES..READ_BYTES.min(len as usize).max(HEADER_BYTES + ETHER_BYTES)];
                match mark(frame).and_then(|mark| missing.remove(&mark)) {
                    Some(at) => arrived(at, frame),
                    // Somebody else's, or one that was sent twice.
                    None => Ok(()),
                }
            })?;
            if count > 0 {
                last = Instant::now();
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
    }
    anyhow::bail!("{} of {} frames do not come through", missing.len(), frames.len())
}

/// Ethernet's least length, without the checksum (IEEE 802.3 §3.2.7).
fn pad(frame: &[u8]) -> Vec<u8> {
    let mut padded = frame.to_vec();
    padded.resize(frame.len().max(60), 0);
    padded
}

/// Posts frames whose buffers hold what was sent last: they are written anew.
pub fn post<'a>(from: &mut Port, frames: impl Iterator<Item = &'a [u8]>) -> Result<()> {
    let start = Instant::now();
    for frame in frames {
        while from.reclaim()? == 0 {
            ensure!(start.elapsed() < Duration::from_secs(10), "the switch takes no frames");
        }
        from.prepare(from.next_slot(), &VnetHeader::default().to_bytes(), frame);
        from.send(1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_flow_comes_once_a_turn() {
        for count in [1, 2, 64, 1000, 1_000_000] {
            let mut order = Order::new(Flows::Cycle(count));
            let seen: HashSet<u32> = (0..count).map(|_| order.step()).collect();
            assert_eq!(seen.len(), count as usize);
            assert_eq!(order.step(), 0);
        }
    }

    #[test]
    fn flows_have_ports_of_their_own() {
        let last = ports(FLOWS_MAX - 1);
        assert_eq!(last, (59_999, 65_535));
        let all: HashSet<_> = (0..200_000).map(ports).collect();
        assert_eq!(all.len(), 200_000);
    }

    #[test]
    fn a_syn_has_a_scale_and_a_right_checksum() {
        let path = Path::new(
            [2, 0, 0, 0, 0, 1],
            [2, 0, 0, 0, 0, 2],
            std::net::Ipv4Addr::new(192, 0, 2, 1),
            std::net::Ipv4Addr::new(192, 0, 2, 2),
        );
        let frame =
            tcp(&path, &Segment { src_port: 1, dst_port: 2, flags: 2, window: 9, ..Segment::default() }).unwrap();
        assert_eq!(frame[34 + 12] >> 4, 6);
        assert_eq!(&frame[54..], &[3, 3, 14, 0]);
        let parsed = frames::Frame::parse(&VnetHeader::default(), &frame).unwrap();
        assert!(parsed.tcp().is_some());
    }
}
