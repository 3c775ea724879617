//! The way out: hostweave with a guest behind NAT, beside a bare loop that writes, or reads, the same frames on the same interface.
//!
//! Both have CPU 1. *Transmit*: how many frames arrive at the other end of the interface in a while. *Receive*: frames
//! are put into the queue of the interface while nobody reads, then how long it takes until all were read, by hostweave until
//! they are in the guest's memory: on two CPUs no sender is as fast as a reader.

mod bare;
mod place;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hostweave_guest::frames::{Body, Frame, L4, Mac, Path, Segment};
use hostweave_guest::nic::NicConfig;
use hostweave_guest::queue::HEADER_BYTES;
use hostweave_guest::{Nic, VnetHeader, features};

use crate::cases::{Options, ask_router};
use crate::driver::{Port, RING_SIZE};
use crate::flows;
use crate::generator::SIDES;
use crate::measure::{self, SWITCH_CPU, Spread};
use bare::Interface;
use place::Place;

/// The uplink's interface.
const UPLINK: &str = "hwb-up";
/// The other end of its cable.
const FAR: &str = "hwb-far";
/// The TAP device of the bare loop.
const BARE_TAP: &str = "hwb-bare";
/// Octets of a virtio-net header of a TAP device, and of a packet socket.
const TAP_HEADER: usize = 12;
const PACKET_HEADER: usize = 10;

/// Gateway and server of each family.
const OUTSIDE: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9))),
    (
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xee, 0, 0, 0, 0, 9)),
    ),
];

/// L4 ports of guest and server.
const GUEST_PORT: u16 = 40_000;
const SERVER_PORT: u16 = 4_791;

const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 60_000;
const SEGMENT_BYTES: u16 = 1_400;

/// Frames that fit the queues of all interfaces, and of the guest: of the small ones, and of the large ones.
const DRAINED: [usize; 2] = [1_000, 96];

/// How often a queue is filled and drained in one round: it takes little time.
const DRAINS: [usize; 2] = [40, 40];

/// How long everything may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A reader that has seen nothing for so long has seen all.
const QUIET: Duration = Duration::from_millis(50);

/// How the daemon uses the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Driver {
    /// A packet socket on a veth.
    AfPacket,
    /// The same, where small frames leave by AF_XDP; the bare loop has a packet socket.
    AfXdp,
    /// A TAP device.
    Tap,
}

impl Driver {
    const ALL: [Self; 3] = [Self::AfPacket, Self::AfXdp, Self::Tap];

    fn name(self) -> &'static str {
        match self {
            Self::AfPacket => "afPacket",
            Self::AfXdp => "afXdp",
            Self::Tap => "tap",
        }
    }

    fn header_bytes(self) -> usize {
        if self == Self::Tap { TAP_HEADER } else { PACKET_HEADER }
    }
}

/// One line of the table.
#[derive(Debug, serde::Serialize)]
pub struct Row {
    /// How.
    pub driver: Driver,
    /// `transmit` or `receive`.
    pub direction: &'static str,
    /// IP version.
    pub family: u8,
    /// Octets of a frame.
    pub frame_bytes: usize,
    /// Frames per second of hostweave, each round.
    pub ours: Vec<f64>,
    /// The same of the bare loop.
    pub bare: Vec<f64>,
    /// CPU time per frame of hostweave's worker, while it had frames, by that of the bare loop: on a busy machine the
    /// better measure, because hostweave needs the guest's CPU beside its own. Each round of `transmit`.
    pub cpu: Vec<f64>,
}

impl Row {
    /// hostweave's rate by the bare loop's, round by round.
    pub fn ratio(&self) -> Spread {
        Spread::of(&self.ours.iter().zip(&self.bare).map(|(ours, bare)| ours / bare).collect::<Vec<_>>())
    }
}

/// Measures the drivers with these names.
pub fn measure(options: &Options<'_>, drivers: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in drivers {
        let driver = Driver::ALL.into_iter().find(|driver| driver.name() == name);
        let driver = driver.with_context(|| format!("no driver is called {name:?}: afPacket, afXdp or tap"))?;
        let place = Place::new(driver, options.binary)?;
        let measured = Bench::new(driver, &place).and_then(|mut bench| bench.all(options, &mut rows));
        measured.with_context(|| format!("driver {}: {}", driver.name(), place.log()))?;
    }
    Ok(rows)
}

struct Bench<'a> {
    driver: Driver,
    place: &'a Place,
    guest: Port,
    router: Mac,
    /// Where the bare loop writes and reads.
    bare: Interface,
    /// Where frames come from that the daemon receives, and those that the bare loop does.
    senders: [Interface; 2],
}

/// What came out of a queue.
struct Drained {
    total: usize,
    /// At the first look that found some.
    first: usize,
    /// From then to the last one.
    took: Duration,
    began: Option<Instant>,
    last: Instant,
}

impl Drained {
    fn new() -> Self {
        Self { total: 0, first: 0, took: Duration::ZERO, began: None, last: Instant::now() }
    }

    fn goes_on(&self, wanted: usize) -> bool {
        self.total < wanted && self.last.elapsed() < QUIET
    }

    fn add(&mut self, frames: usize) {
        if frames == 0 {
            return;
        }
        self.last = Instant::now();
        self.total += frames;
        match self.began {
            Some(began) => self.took = self.last - began,
            None => (self.began, self.first) = (Some(self.last), frames),
        }
    }
}

/// A connection of the guest to the server, and its frames.
struct Flow {
    /// As the guest writes them.
    inside: (VnetHeader, Vec<u8>),
    /// As they leave, and as they come from outside.
    outside: [(VnetHeader, Vec<u8>); 2],
}

impl<'a> Bench<'a> {
    fn new(driver: Driver, place: &'a Place) -> Result<Self> {
        let start = Instant::now();
        while !place.socket().exists() || (driver == Driver::Tap && place.host.received(UPLINK).is_err()) {
            ensure!(start.elapsed() < PATIENCE, "hostweave did not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        place.finish()?;
        let mut config = NicConfig::new(place.socket());
        config.features =
            features::VERSION_1 | features::CSUM | features::GUEST_CSUM | features::MRG_RXBUF | features::ALL_GSO;
        Port::config(&mut config, LARGE_BYTES, false);
        let mut guest = Port::new(Nic::connect(config)?)?;
        let router = ask_router(&mut guest)?;
        let (bare, senders) = match &place.far {
            Some(far) => {
                let open = |namespace: &place::Namespace, name, receives| {
                    namespace.run(move || Interface::packet(name, receives))?
                };
                (open(&place.host, UPLINK, true)?, [open(far, FAR, false)?, open(far, FAR, false)?])
            }
            None => {
                let bare = place.host.run(|| Interface::tap(BARE_TAP))??;
                place.finish_bare()?;
                let open = |name| place.host.run(move || Interface::packet(name, false))?;
                (bare, [open(UPLINK)?, open(BARE_TAP)?])
            }
        };
        Ok(Self { driver, place, guest, router, bare, senders })
    }

    fn all(&mut self, options: &Options<'_>, rows: &mut Vec<Row>) -> Result<()> {
        for large in [false, true] {
            for family in [0, 1] {
                let flow = self.open(family, large).context("the first frames")?;
                let frame_bytes = flow.inside.1.len();
                let row = |direction| {
                    let (driver, family) = (self.driver, [4, 6][family]);
                    Row { driver, direction, family, frame_bytes, ours: Vec::new(), bare: Vec::new(), cpu: Vec::new() }
                };
                let (mut transmit, mut receive) = (row("transmit"), row("receive"));
                for slot in 0..RING_SIZE {
                    // As many buffers as the bare loop has.
                    match slot.checked_sub(bare::BATCH as u16) {
                        None => self.guest.prepare(slot, &flow.inside.0.to_bytes(), &flow.inside.1),
                        Some(_) => self.guest.share(slot, slot % bare::BATCH as u16, frame_bytes),
                    }
                }
                for round in 0..=options.rounds {
                    let (ours, bare) = (self.transmit(options.time)?, self.transmit_bare(&flow, options.time)?);
                    let (ours_rx, bare_rx) = (self.receive(&flow, large)?, self.receive_bare(&flow, large)?);
                    // The first one warms up.
                    if round > 0 {
                        transmit.ours.push(ours.0);
                        transmit.bare.push(bare.0);
                        transmit.cpu.push(bare.1 / ours.1);
                        receive.ours.push(ours_rx);
                        receive.bare.push(bare_rx);
                    }
                }
                for row in [transmit, receive] {
                    eprintln!("{}", line(&row));
                    rows.push(row);
                }
            }
        }
        Ok(())
    }

    /// Opens a connection through NAT, as far as both sides have spoken.
    fn open(&mut self, family: usize, large: bool) -> Result<Flow> {
        let (_, server) = OUTSIDE[family];
        let own: IpAddr = if family == 0 { SIDES[0].v4.into() } else { SIDES[0].v6.into() };
        let path = Path::new(SIDES[0].mac, self.router, own, server);
        let (here, to) = (GUEST_PORT + u16::from(large), SERVER_PORT);
        let segment =
            |(src_port, dst_port), flags, seq, ack| Segment { src_port, dst_port, seq, ack, flags, window: u16::MAX };
        let first = match large {
            true => flows::tcp(&path, &segment((here, to), 2, u32::MAX, 0))?,
            false => path.udp(here, to, &vec![0x5a; SMALL_BYTES - path.header_bytes() - 8]),
        };
        let listener = match &self.place.far {
            Some(far) => far.run(|| Interface::packet(FAR, true))??,
            None => self.place.host.run(|| Interface::packet(UPLINK, true))??,
        };
        let (out, port) = self.outside_of(&listener, &first, server)?;
        let back = Path::new(out.dst_mac, out.src_mac, server, out.src);
        let answers = match large {
            true => vec![
                flows::tcp(&back, &segment((to, port), 0x12, u32::MAX, 0))?,
                flows::tcp(&back, &segment((to, port), 0x10, 0, 0))?,
            ],
            false => vec![back.udp(to, port, &vec![0x5a; SMALL_BYTES - back.header_bytes() - 8])],
        };
        for answer in &answers {
            let frame = with_header(PACKET_HEADER, &(VnetHeader::default(), answer.clone()));
            bare::send(&self.senders[0], &frame, 1)?;
            self.await_guest()?;
            if large {
                flows::post(
                    &mut self.guest,
                    std::iter::once(flows::tcp(&path, &segment((here, to), 0x10, 0, 0))?.as_slice()),
                )?;
            }
        }
        let frame = |path: &Path, ports: (u16, u16)| match large {
            true => {
                let payload = vec![0x5a; LARGE_BYTES - path.header_bytes() - 20];
                path.tcp_gso(&segment(ports, 0x10, 0, 0), &payload, SEGMENT_BYTES)
            }
            false => {
                let payload = vec![0x5a; SMALL_BYTES - path.header_bytes() - 8];
                (VnetHeader::default(), path.udp(ports.0, ports.1, &payload))
            }
        };
        let out = out.ttl(63);
        Ok(Flow { inside: frame(&path, (here, to)), outside: [frame(&out, (port, to)), frame(&back, (to, port))] })
    }

    /// Sends a frame until it is seen outside: from where, through which hardware addresses, and from which L4 port.
    fn outside_of(&mut self, listener: &Interface, first: &[u8], server: IpAddr) -> Result<(Path, u16)> {
        let start = Instant::now();
        let mut seen = bare::Frames::new(&[0; 2048])?;
        while start.elapsed() < PATIENCE {
            flows::post(&mut self.guest, std::iter::once(first))?;
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_millis(200) {
                let count = bare::read(listener, &mut seen)?;
                for octets in seen.get(count) {
                    if let Some(found) = ends(&octets[PACKET_HEADER..], server) {
                        return Ok(found);
                    }
                }
            }
        }
        bail!("nothing leaves for {server}")
    }

    fn await_guest(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.guest.receive::<64>(64, |_, _| Ok(()))? == 0 {
            ensure!(start.elapsed() < PATIENCE, "no answer arrives");
        }
        Ok(())
    }

    /// Frames that have arrived at the other end.
    fn arrived(&self) -> Result<u64> {
        match (&self.place.far, &self.bare) {
            (Some(far), _) => far.received(FAR),
            (None, _) => Ok(self.place.host.received(UPLINK)? + self.place.host.received(BARE_TAP)?),
        }
    }

    /// Frames per second, and CPU time of one.
    fn transmit(&mut self, time: Duration) -> Result<(f64, f64)> {
        let (before, busy, start) = (self.arrived()?, self.place.busy()?, Instant::now());
        while start.elapsed() < time {
            let free = self.guest.reclaim()?;
            if free > 0 {
                self.guest.send(free)?;
            }
            // A guest does not take the line of the ring away all the time; and the CPUs may be two threads of one core.
            (0..500).for_each(|_| std::hint::spin_loop());
        }
        let (frames, elapsed) = ((self.arrived()? - before) as f64, start.elapsed());
        let cpu = busy.until(&self.place.busy()?) / frames;
        let end = Instant::now();
        while self.guest.reclaim()? < RING_SIZE {
            ensure!(end.elapsed() < PATIENCE, "hostweave takes no frames");
        }
        Ok((frames / elapsed.as_secs_f64(), cpu))
    }

    fn transmit_bare(&self, flow: &Flow, time: Duration) -> Result<(f64, f64)> {
        self.place.pause(true)?;
        let frame = with_header(self.driver.header_bytes(), &flow.outside[0]);
        let (before, start) = (self.arrived()?, Instant::now());
        let measured = std::thread::scope(|scope| -> Result<(f64, f64)> {
            let writer = scope.spawn(|| -> Result<f64> {
                measure::pin(SWITCH_CPU)?;
                let before = measure::own_cpu_s()?;
                bare::write(&self.bare, &frame, time)?;
                Ok(measure::own_cpu_s()? - before)
            });
            // The generator is as busy while hostweave is measured.
            while !writer.is_finished() {
                std::hint::spin_loop();
            }
            let (frames, elapsed) = ((self.arrived()? - before) as f64, start.elapsed());
            let cpu = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            Ok((frames / elapsed.as_secs_f64(), cpu / frames))
        });
        self.place.pause(false)?;
        measured
    }

    fn receive(&mut self, flow: &Flow, large: bool) -> Result<f64> {
        let frame = with_header(PACKET_HEADER, &flow.outside[1]);
        let (count, len) = (DRAINED[usize::from(large)], (HEADER_BYTES + flow.inside.1.len()) as u32);
        // What the bare loop's frames left in the queue of the daemon.
        self.collect(usize::MAX, 0)?;
        let mut took = Duration::ZERO;
        let mut frames = 0;
        for _ in 0..DRAINS[usize::from(large)] {
            self.place.pause(true)?;
            bare::send(&self.senders[0], &frame, count)?;
            self.place.pause(false)?;
            let drained = self.collect(count, len)?;
            ensure!(drained.total == count, "{} of {count} frames arrived", drained.total);
            frames += drained.total - drained.first;
            took += drained.took;
        }
        Ok(frames as f64 / took.as_secs_f64())
    }

    /// Takes up to `count` frames of this length (0: of any, until there are no more).
    fn collect(&mut self, count: usize, len: u32) -> Result<Drained> {
        let mut drained = Drained::new();
        while drained.goes_on(count) {
            let mut came = 0;
            self.guest.receive::<64>(64, |_, used| {
                came += usize::from(used == len || len == 0);
                Ok(())
            })?;
            drained.add(came);
        }
        Ok(drained)
    }

    fn receive_bare(&self, flow: &Flow, large: bool) -> Result<f64> {
        let like = vec![0; TAP_HEADER + flow.inside.1.len()];
        let frame = with_header(PACKET_HEADER, &flow.outside[1]);
        let count = DRAINED[usize::from(large)];
        self.place.pause(true)?;
        let (mut frames, mut took) = (0, Duration::ZERO);
        // What came while hostweave was measured.
        bare::drain(&self.bare, &like, usize::MAX)?;
        for _ in 0..DRAINS[usize::from(large)] {
            bare::send(&self.senders[1], &frame, count)?;
            let drained = std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    measure::pin(SWITCH_CPU)?;
                    bare::drain(&self.bare, &like, count)
                });
                while !reader.is_finished() {
                    std::hint::spin_loop();
                }
                reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
            })?;
            ensure!(drained.total >= count, "{} of {count} frames were read", drained.total);
            frames += drained.total - drained.first;
            took += drained.took;
        }
        self.place.pause(false)?;
        Ok(frames as f64 / took.as_secs_f64())
    }
}

/// Behind a virtio-net header of this length.
fn with_header(len: usize, (header, frame): &(VnetHeader, Vec<u8>)) -> Vec<u8> {
    [&header.to_bytes()[..len], frame].concat()
}

/// Where a frame to the server comes from.
fn ends(octets: &[u8], server: IpAddr) -> Option<(Path, u16)> {
    let header = VnetHeader::default();
    // Behind a small frame the buffer goes on: what IP says of its length counts.
    let len = match octets.get(12..14)? {
        [8, 0] => 14 + usize::from(u16::from_be_bytes([*octets.get(16)?, *octets.get(17)?])),
        _ => 54 + usize::from(u16::from_be_bytes([*octets.get(18)?, *octets.get(19)?])),
    };
    let frame = Frame::parse(&header, octets.get(..len)?).ok()?;
    let Body::Ip { src, dst, l4, .. } = frame.body else { return None };
    let port = match l4 {
        L4::Udp { src_port, .. } => src_port,
        L4::Tcp { segment, .. } => segment.src_port,
        _ => return None,
    };
    (dst == server).then(|| (Path::new(frame.src_mac, frame.dst_mac, src, dst), port))
}

/// As the table shows it.
pub fn line(row: &Row) -> String {
    let (ratio, ours, bare) = (row.ratio(), Spread::of(&row.ours), Spread::of(&row.bare));
    let (driver, family) = (row.driver.name(), row.family);
    let gbit = |rate: f64| rate * row.frame_bytes as f64 * 8.0 / 1e9;
    let cpu = match row.cpu.is_empty() {
        true => String::new(),
        false => format!(", by CPU time {:.2}", Spread::of(&row.cpu).median),
    };
    format!(
        "{driver:9} {:8} IPv{family} {:5} B  {:8.4} Mpps {:6.2} Gbit/s  bare {:8.4} Mpps {:6.2} Gbit/s  ratio {:.2} ({:.2}-{:.2}){cpu}",
        row.direction,
        row.frame_bytes,
        ours.median / 1e6,
        gbit(ours.median),
        bare.median / 1e6,
        gbit(bare.median),
        ratio.median,
        ratio.q1,
        ratio.q3
    )
}
