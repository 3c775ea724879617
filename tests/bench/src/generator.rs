//! The generator: one sender and one receiver in one thread, the same for every switch.
//!
//! It keeps up to [`WINDOW`] frames on the way from port A to port B and measures what arrives. The window is below the
//! ring's size, so that a switch never has to drop for want of a receive buffer, and above 512, so that throughput is
//! measured and not latency. Frames are as a guest sends them in a routed network: the router's MAC, the port's own
//! source address, a fresh TTL, L4 ports that vary ([`crate::flows`]), a full checksum (GSO: a partial one). Each carries a
//! sequence number; of each received frame length, buffer count and sequence number are checked, and of UDP all that the switch may have
//! translated ([`crate::crossing`]).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hostweave_guest::frames::{self, Path, Segment};
use hostweave_guest::queue::HEADER_BYTES;
use hostweave_guest::{VnetHeader, features};

use crate::crossing::{Expected, Way, checksum};
use crate::driver::{Port, RING_SIZE};
use crate::flows::{self, Ends, Flows, Order};

/// Frames on the way at most.
pub const WINDOW: u16 = 768;

/// Frames that are posted or taken in one go.
const BURST: u16 = 64;

/// A frame is lost when nothing arrives for so long.
const STALL: Duration = Duration::from_secs(2);

/// How far behind the frame sent last one may be that counts: further back it is somebody else's.
const BEHIND: u16 = 4 * WINDOW;

/// Octets of the smallest frames, which are written afresh each time.
const SMALL_BYTES: usize = 64;

/// Octets read of each received frame, one cache line: virtio header, Ethernet, IPv4 and L4 header, sequence number.
const CHECKED_V4_BYTES: usize = 64;

/// The same with an IPv6 header.
const CHECKED_V6_BYTES: usize = 80;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
    /// TCP over IPv4 in 64 KiB frames, to be cut into segments of this size.
    Gso4 {
        /// Payload octets of a segment.
        gso_size: u16,
    },
}

/// One side of the traffic.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Hardware address.
    pub mac: frames::Mac,
    /// IPv4 address.
    pub v4: std::net::Ipv4Addr,
    /// IPv6 address.
    pub v6: std::net::Ipv6Addr,
}

/// The two sides of every run.
pub const SIDES: [Side; 2] = [side(1), side(2)];

const fn side(n: u8) -> Side {
    Side {
        mac: [0x02, 0, 0x0a, 0x40, 0, 0x10 + n],
        v4: std::net::Ipv4Addr::new(10, 64, 0, 0x10 + n),
        v6: std::net::Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 0x10 + n as u16),
    }
}

/// What a measurement saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Frames that arrived.
    pub frames: u64,
    /// Frames that did not.
    pub lost: u64,
    /// Frames that arrived behind ones that were sent later, or after they had been given up.
    pub late: u64,
    /// Sum over all looks at the transmit ring of the frames that the switch had not given back, and the looks.
    backlog: (u64, u64),
    /// How long it took.
    pub elapsed: Duration,
}

impl Sample {
    /// Frames that waited for the switch on average. Near the window the switch is the limit, near 0 the generator is.
    pub fn backlog(&self) -> f64 {
        self.backlog.0 as f64 / self.backlog.1.max(1) as f64
    }
}

/// Traffic from A to B.
pub struct Generator {
    /// Sender.
    pub a: Port,
    /// Receiver.
    pub b: Port,
    /// Octets of a frame.
    pub frame_bytes: usize,
    /// Where the L4 header begins in the frame.
    l4_at: usize,
    /// The first octets of a frame of UDP, without L4 ports, checksum and sequence number.
    template: [u8; SMALL_BYTES],
    /// The sum over which UDP's checksum goes, without L4 ports and sequence number.
    sum: u32,
    /// From A to B and back, as each sends it.
    paths: [Path; 2],
    expected: Expected,
    flows: Flows,
    order: Order,
    sent: u16,
    received: u16,
    traffic: Traffic,
}

impl Generator {
    /// Opens the flows and prepares frames of `frame_bytes` octets. `routers` are where A and B send to.
    pub fn new(
        a: Port,
        b: Port,
        (traffic, flows, way): (Traffic, Flows, Way),
        frame_bytes: usize,
        routers: [frames::Mac; 2],
    ) -> Result<Self> {
        let six = traffic == Traffic::Udp6;
        let [(a_src, a_dst), (b_dst, b_src)] = way.addresses(six);
        let there = Path::new(SIDES[0].mac, routers[0], a_src, a_dst);
        let paths = [there, Path::new(SIDES[1].mac, routers[1], b_src, b_dst)];
        let mut this = Self {
            a,
            b,
            frame_bytes,
            l4_at: paths[0].header_bytes(),
            template: [0; SMALL_BYTES],
            sum: 0,
            paths,
            expected: Expected::new(way, six),
            flows,
            order: Order::new(flows),
            sent: 0,
            received: 0,
            traffic,
        };
        this.open(0, flows.to_open())?;
        this.prepare()?;
        Ok(this)
    }

    /// Flows of the run.
    pub fn flows(&self) -> Flows {
        self.flows
    }

    /// Opens flows `first..last`. What the transmit buffers held is gone: see [`Generator::prepare`].
    pub fn open(&mut self, first: u32, last: u32) -> Result<()> {
        let [there, back] = self.paths;
        let mut ends = Ends { a: &mut self.a, b: &mut self.b, there, back, expected: &mut self.expected };
        flows::open(&mut ends, self.traffic, first, last)
    }

    /// The same, begun by B, where nothing is translated.
    pub fn open_from_b(&mut self, first: u32, last: u32) -> Result<()> {
        let [there, back] = self.paths;
        let mut expected = Expected::back(self.traffic == Traffic::Udp6);
        let mut ends = Ends { a: &mut self.b, b: &mut self.a, there: back, back: there, expected: &mut expected };
        flows::open(&mut ends, self.traffic, first, last)
    }

    /// Writes the frames of a run into the transmit buffers of A.
    pub fn prepare(&mut self) -> Result<()> {
        let (path, frame_bytes) = (self.paths[0], self.frame_bytes);
        for slot in 0..RING_SIZE {
            let (header, frame) = match self.traffic {
                Traffic::Gso4 { gso_size } => {
                    // Connections by buffer: all have the same sequence number at a time.
                    let (src_port, dst_port) = flows::ports(u32::from(slot) % self.flows.to_open().max(1));
                    let (seq, ack) = (flows::SEQUENCE_FIRST, flows::SEQUENCE_FIRST);
                    let segment = Segment { src_port, dst_port, seq, ack, flags: 0x10, window: 0xffff };
                    let payload = vec![0x5a; frame_bytes - path.header_bytes() - 20];
                    path.tcp_gso(&segment, &payload, gso_size)
                }
                _ => {
                    let mut payload = vec![0x5a; frame_bytes - path.header_bytes() - 8];
                    payload[..2].fill(0);
                    let (src, dst) = self.expected.seen();
                    let seen = Path::new(path.src_mac, path.dst_mac, src, dst).udp(0, 0, &payload);
                    self.expected.prepare(checksummed(&seen, self.l4_at));
                    (VnetHeader::default(), path.udp(0, 0, &payload))
                }
            };
            ensure!(frame.len() == frame_bytes, "frame of {} octets, not {frame_bytes}", frame.len());
            self.a.prepare(slot, &header.to_bytes(), &frame);
            self.sum = checksummed(&frame, self.l4_at);
            self.template = *frame.first_chunk::<SMALL_BYTES>().context("a frame shorter than 64 octets")?;
        }
        Ok(())
    }

    /// Sends for `time` and counts what arrives. What is on the way at the end is waited for.
    pub fn run(&mut self, time: Duration) -> Result<Sample> {
        let mut sample = Sample::default();
        let start = Instant::now();
        let mut last_arrival = start;
        loop {
            let moved = self.step(&mut sample, true)?;
            let now = Instant::now();
            if moved > 0 {
                last_arrival = now;
            } else if now - last_arrival > STALL {
                sample.lost += u64::from(self.sent.wrapping_sub(self.received));
                self.received = self.sent;
                last_arrival = now;
            }
            if now - start >= time {
                break;
            }
        }
        sample.elapsed = start.elapsed();
        let (counted, end) = (sample.frames, Instant::now());
        while self.sent != self.received && end.elapsed() < STALL {
            self.step(&mut sample, false)?;
        }
        sample.lost += u64::from(self.sent.wrapping_sub(self.received));
        self.received = self.sent;
        sample.frames = counted;
        Ok(sample)
    }

    /// Posts what the window allows, takes what has arrived: a few bursts, so that the clock is read seldom.
    #[inline]
    fn step(&mut self, sample: &mut Sample, send: bool) -> Result<u64> {
        let before = sample.frames;
        for _ in 0..8 {
            if send {
                self.post(sample)?;
            }
            self.take(sample)?;
        }
        Ok(sample.frames - before)
    }

    /// Posts up to a burst.
    #[inline]
    fn post(&mut self, sample: &mut Sample) -> Result<()> {
        let on_the_way = self.sent.wrapping_sub(self.received);
        let free = self.a.reclaim()?;
        sample.backlog.0 += u64::from(RING_SIZE - free);
        sample.backlog.1 += 1;
        let count = free.min(WINDOW.saturating_sub(on_the_way)).min(BURST);
        if count == 0 {
            return Ok(());
        }
        self.a.prefetch(count);
        for i in 0..count {
            self.write(i);
        }
        self.a.send(count)
    }

    /// Writes what is different about the next frame, into the buffer `ahead` places from the next one.
    #[inline]
    fn write(&mut self, ahead: u16) {
        self.sent = self.sent.wrapping_add(1);
        let [a, b] = self.sent.to_be_bytes();
        if let Traffic::Gso4 { .. } = self.traffic {
            // The lower half of TCP's sequence number; a partial checksum does not cover it.
            return self.a.patch(ahead, self.l4_at + 6, &[a, b]);
        }
        let (src, dst) = flows::ports(self.order.step());
        self.expected.send(self.sent, (src, dst));
        let [c, d] = checksum(self.sum + u32::from(src) + u32::from(dst) + u32::from(self.sent)).to_be_bytes();
        let ([e, f], [g, h]) = (src.to_be_bytes(), dst.to_be_bytes());
        let [i, j] = ((self.frame_bytes - self.l4_at) as u16).to_be_bytes();
        if self.frame_bytes == SMALL_BYTES {
            // A small frame is written afresh, as a guest would.
            self.a.patch(ahead, 0, &self.template);
        }
        self.a.patch(ahead, self.l4_at, &[e, f, g, h, i, j, c, d, a, b]);
    }

    /// Takes and checks up to a burst.
    #[inline]
    fn take(&mut self, sample: &mut Sample) -> Result<()> {
        match self.traffic {
            Traffic::Udp6 => self.take_reading::<CHECKED_V6_BYTES>(sample),
            _ => self.take_reading::<CHECKED_V4_BYTES>(sample),
        }
    }

    #[inline]
    fn take_reading<const N: usize>(&mut self, sample: &mut Sample) -> Result<()> {
        let (at, len) = (HEADER_BYTES + self.l4_at, (HEADER_BYTES + self.frame_bytes) as u32);
        let seq_at = if matches!(self.traffic, Traffic::Gso4 { .. }) { at + 6 } else { at + 8 };
        let (received, sent, expected) = (&mut self.received, self.sent, &mut self.expected);
        let (is_udp, udp_bytes) = (seq_at == at + 8, (self.frame_bytes - self.l4_at) as u16);
        // Without merged buffers DPDK leaves the count as it finds it.
        let mergeable = self.b.nic.features() & features::MRG_RXBUF != 0;
        let ether = if self.traffic == Traffic::Udp6 { [0x86, 0xdd] } else { [8, 0] };
        self.b.receive::<N>(BURST, |octets, used| {
            let seq = u16::from_be_bytes([octets[seq_at], octets[seq_at + 1]]);
            if used != len || (mergeable && octets[10..12] != [1, 0]) || octets[24..26] != ether {
                bail!("wrong frame: {used} octets, {:02x?}", &octets[..54]);
            }
            let gap = seq.wrapping_sub(*received);
            if gap == 0 || sent.wrapping_sub(seq) > BEHIND {
                // Somebody else's (a neighbour advertisement, say).
                return Ok(());
            }
            if is_udp {
                expected.check(seq, &octets[HEADER_BYTES..], udp_bytes)?;
            }
            if gap > BEHIND {
                // Behind one that was received: out of order, or from before the last stall. It was counted as lost.
                sample.late += 1;
                sample.lost = sample.lost.saturating_sub(1);
                sample.frames += 1;
                return Ok(());
            }
            sample.lost += u64::from(gap - 1);
            sample.frames += 1;
            *received = seq;
            Ok(())
        })?;
        Ok(())
    }

    /// Round trip of single frames: sends one, waits until it arrives; ns of each.
    pub fn latencies(&mut self, count: usize) -> Result<Vec<u64>> {
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            let mut sample = Sample::default();
            self.a.reclaim()?;
            let start = Instant::now();
            self.post_one()?;
            while sample.frames == 0 {
                self.take(&mut sample)?;
                ensure!(start.elapsed() < Duration::from_secs(1), "a frame alone was lost");
            }
            list.push(u64::try_from(start.elapsed().as_nanos())?);
        }
        Ok(list)
    }

    /// Sends exactly one frame.
    pub fn post_one(&mut self) -> Result<()> {
        self.write(0);
        self.a.send(1)
    }

    /// Whether something has arrived since; forgets what is on the way.
    pub fn arrived(&mut self) -> Result<bool> {
        let mut sample = Sample::default();
        self.take(&mut sample)?;
        Ok(sample.frames > 0)
    }

    /// Gbit/s of plain copies over the same buffers, for `time`.
    pub fn memcpy(&self, time: Duration) -> f64 {
        let start = Instant::now();
        let mut copied = 0u64;
        let len = HEADER_BYTES + self.frame_bytes;
        while start.elapsed() < time {
            for slot in 0..usize::from(RING_SIZE) {
                self.a.copy_to(&self.b, slot, len);
            }
            copied += u64::from(RING_SIZE) * self.frame_bytes as u64;
        }
        copied as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
    }
}

/// The sum under the UDP checksum of a frame.
fn checksummed(frame: &[u8], l4_at: usize) -> u32 {
    u32::from(!u16::from_be_bytes([frame[l4_at + 6], frame[l4_at + 7]]))
}
