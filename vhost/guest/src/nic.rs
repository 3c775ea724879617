//! A virtio-net card as its driver sees it: connection, memory and queue pairs together.
//!
//! `Nic` sends and receives raw frames with their virtio headers. A stack on top is [`crate::Guest`]. Everything about
//! the card can be chosen: order of messages, features, queue pairs, ring size, how memory and buffers are cut.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Error;
use crate::features::{self, protocol};
use crate::frontend::{Endpoint, Frontend, Mode, Profile, Vring};
use crate::memory::{GuestMemory, MemoryConfig, Region};
use crate::queue::{HEADER_BYTES, RxQueue, SlotLayout, Split, TxQueue, VnetHeader};
use crate::ring::{RingLayout, Violation};
use crate::wire::Wire;

/// Largest frame with segmentation offload: 64 KiB of IP and the Ethernet header.
pub const GSO_FRAME_BYTES_MAX: usize = 65_535 + 14;

/// Everything that can be chosen about a card.
#[derive(Clone, Debug)]
pub struct NicConfig {
    /// The socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: Mode,
    /// Whose order of messages.
    pub profile: Profile,
    /// Virtio features to accept if offered.
    pub features: u64,
    /// Virtio features without which connecting fails.
    pub required: u64,
    /// vhost-user protocol features to accept if offered.
    pub protocol: u64,
    /// Queue pairs.
    pub pairs: usize,
    /// Descriptors of each ring, a power of two.
    pub ring_size: u16,
    /// How guest memory is laid out.
    pub memory: MemoryConfig,
    /// How transmitted frames are cut into descriptors.
    pub tx_split: Split,
    /// How receive buffers are cut into descriptors.
    pub rx_split: Split,
    /// Octets of a transmit buffer; 0: what the features need.
    pub tx_slot_bytes: usize,
    /// Octets of a receive buffer; 0: what the features need.
    pub rx_slot_bytes: usize,
    /// Buffers of each queue; 0: one per descriptor.
    pub slot_count: u32,
    /// IP MTU in octets.
    pub mtu: usize,
    /// How long connecting and each reply may take.
    pub timeout: Duration,
}

impl NicConfig {
    /// A Linux guest under QEMU that connects to `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            mode: Mode::Client,
            profile: Profile::Qemu,
            features: features::LINUX,
            required: features::VERSION_1,
            protocol: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::LOG_SHMFD
                | protocol::RESET_DEVICE,
            pairs: 1,
            ring_size: 256,
            memory: MemoryConfig::default(),
            tx_split: Split::whole(),
            rx_split: Split::whole(),
            tx_slot_bytes: 0,
            rx_slot_bytes: 0,
            slot_count: 0,
            mtu: 1500,
            timeout: Duration::from_secs(5),
        }
    }

    fn tx_slot(&self, negotiated: u64) -> usize {
        let gso = negotiated & (features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_USO) != 0;
        let frame = if gso { GSO_FRAME_BYTES_MAX } else { self.mtu + 14 };
        if self.tx_slot_bytes != 0 { self.tx_slot_bytes } else { (frame + HEADER_BYTES).next_multiple_of(64) }
    }

    fn rx_slot(&self, negotiated: u64) -> usize {
        let gso = features::GUEST_TSO4 | features::GUEST_TSO6 | features::GUEST_USO4 | features::GUEST_USO6;
        let frame = match negotiated {
            f if f & features::MRG_RXBUF != 0 => 1514,
            f if f & gso != 0 => GSO_FRAME_BYTES_MAX,
            _ => self.mtu + 14,
        };
        if self.rx_slot_bytes != 0 { self.rx_slot_bytes } else { (frame + HEADER_BYTES).next_multiple_of(64) }
    }
}

/// One receive and one transmit queue with their eventfds.
#[derive(Debug)]
pub struct Pair {
    /// Frames to the guest.
    pub rx: RxQueue,
    /// Frames from the guest.
    pub tx: TxQueue,
    rx_fds: Fds,
    tx_fds: Fds,
}

#[derive(Debug)]
struct Fds {
    kick: EventFd,
    call: EventFd,
}

impl Fds {
    fn new() -> Result<Self, Error> {
        let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(|e| Error::io("eventfd", e));
        Ok(Self { kick: eventfd()?, call: eventfd()? })
    }
}

impl Pair {
    /// Kick of the receive ring.
    pub fn rx_kick(&self) -> &EventFd {
        &self.rx_fds.kick
    }

    /// Kick of the transmit ring.
    pub fn tx_kick(&self) -> &EventFd {
        &self.tx_fds.kick
    }

    /// Calls for the receive ring.
    pub fn rx_call(&self) -> &EventFd {
        &self.rx_fds.call
    }
}

/// Frames and octets that passed, and notifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Frames sent.
    pub tx_frames: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Kicks written.
    pub kicks: u64,
}

/// A connected card.
#[derive(Debug)]
pub struct Nic {
    /// What was chosen.
    pub config: NicConfig,
    /// The connection.
    pub frontend: Frontend,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The queue pairs.
    pub pairs: Vec<Pair>,
    /// What passed.
    pub counters: NicCounters,
    endpoint: Endpoint,
    epoll: Epoll,
    log: Option<Region>,
    next_rx: usize,
    running: bool,
}

impl Nic {
    /// Connects, negotiates, sets everything up and posts receive buffers.
    ///
    /// # Errors
    /// When the backend is not there, does not follow the protocol or lacks a required feature.
    pub fn connect(config: NicConfig) -> Result<Self, Error> {
        let endpoint = Endpoint::new(&config.socket, config.mode)?;
        Self::connect_on(config, endpoint)
    }

    /// The same on an endpoint made before, so that a listening socket can exist before the backend is told of it.
    ///
    /// # Errors
    /// As for [`Nic::connect`].
    pub fn connect_on(config: NicConfig, endpoint: Endpoint) -> Result<Self, Error> {
        let frontend = Self::negotiate(&config, &endpoint)?;
        let negotiated = frontend.features();
        let (memory, pairs) = build_queues(&config, negotiated)?;
        let epoll = Epoll::new().map_err(|e| Error::io("epoll_create", e))?;
        for pair in &pairs {
            let event = EpollEvent::new(EventSet::IN, 0);
            epoll
                .ctl(ControlOperation::Add, pair.rx_fds.call.as_raw_fd(), event)
                .map_err(|e| Error::io("epoll_ctl", e))?;
        }
        let counters = NicCounters::default();
        let mut nic =
            Self { config, frontend, memory, pairs, counters, endpoint, epoll, log: None, next_rx: 0, running: false };
        nic.start(None)?;
        for pair in 0..nic.pairs.len() {
            nic.refill(pair)?;
        }
        Ok(nic)
    }

    fn negotiate(config: &NicConfig, endpoint: &Endpoint) -> Result<Frontend, Error> {
        let wire = Wire::new(endpoint.connect(config.timeout)?, config.timeout)?;
        let wish = config.features | if config.pairs > 1 { features::MQ } else { 0 };
        let frontend = Frontend::negotiate(wire, config.profile, wish, config.protocol, config.pairs)?;
        let missing = config.required & !frontend.features();
        if missing != 0 {
            return Err(Error::NotOffered { what: format!("feature bits {missing:#x}") });
        }
        Ok(frontend)
    }

    /// Starts all rings; from `bases` if given, else from the beginning of a fresh ring.
    fn start(&mut self, bases: Option<&[u16]>) -> Result<(), Error> {
        let base = |i: usize| bases.and_then(|b| b.get(i)).copied().unwrap_or(0);
        let mut rings = Vec::with_capacity(2 * self.pairs.len());
        for (i, pair) in self.pairs.iter().enumerate() {
            let (rx, tx) = (&pair.rx_fds, &pair.tx_fds);
            let (rx_base, tx_base) = (base(2 * i), base(2 * i + 1));
            rings.push(Vring { layout: pair.rx.ring.layout(), base: rx_base, kick: &rx.kick, call: &rx.call });
            rings.push(Vring { layout: pair.tx.ring.layout(), base: tx_base, kick: &tx.kick, call: &tx.call });
        }
        let count = rings.len();
        self.frontend.start(&self.memory, &rings, count)?;
        self.running = true;
        // Whatever is in the rings already would never be kicked for again.
        self.kick_all()
    }

    /// Kicks every ring.
    ///
    /// # Errors
    /// When the eventfd refuses.
    pub fn kick_all(&mut self) -> Result<(), Error> {
        for pair in &self.pairs {
            for fds in [&pair.rx_fds, &pair.tx_fds] {
                fds.kick.write(1).map_err(|e| Error::io("kick", e))?;
            }
        }
        Ok(())
    }

    /// Stops every ring; returns where each would go on. Nothing touches guest memory afterwards.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub fn stop(&mut self) -> Result<Vec<u16>, Error> {
        self.running = false;
        (0..2 * self.pairs.len()).map(|i| self.frontend.stop_ring(i)).collect()
    }

    /// Starts stopped rings again on the same connection.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn resume(&mut self, bases: &[u16]) -> Result<(), Error> {
        self.start(Some(bases))
    }

    /// After the backend went away: connects anew and goes on with the rings as they are, as QEMU does
    /// (the used index in memory says how far the old backend came).
    ///
    /// # Errors
    /// When no backend comes back within the configured time.
    pub fn reconnect(&mut self) -> Result<(), Error> {
        let bases: Vec<u16> =
            self.pairs.iter().flat_map(|p| [p.rx.ring.base_from_memory(), p.tx.ring.base_from_memory()]).collect();
        let frontend = Self::negotiate(&self.config, &self.endpoint)?;
        if frontend.features() != self.frontend.features() {
            let what = format!("features {:#x} again", self.frontend.features());
            return Err(Error::NotOffered { what });
        }
        self.frontend = frontend;
        self.start(Some(&bases))
    }

    /// Whether the backend is there.
    pub fn is_connected(&self) -> bool {
        self.frontend.wire().is_connected()
    }

    /// Virtio features in force.
    pub fn features(&self) -> u64 {
        self.frontend.features()
    }

    /// Sends one frame on queue pair `pair` and kicks if the device wants that.
    ///
    /// # Errors
    /// [`Error::RingFull`], [`Error::FrameTooLong`].
    pub fn send_frame_on(&mut self, pair: usize, header: &VnetHeader, frame: &[u8]) -> Result<(), Error> {
        self.push_frame(pair, header, frame)?;
        self.flush(pair)
    }

    /// Adds one frame to queue pair `pair`, unseen by the device until [`Nic::flush`].
    ///
    /// # Errors
    /// [`Error::RingFull`], [`Error::FrameTooLong`].
    pub fn push_frame(&mut self, pair: usize, header: &VnetHeader, frame: &[u8]) -> Result<(), Error> {
        self.pairs[pair].tx.push(&self.memory, header, frame)?;
        self.counters.tx_frames += 1;
        self.counters.tx_bytes += frame.len() as u64;
        Ok(())
    }

    /// Publishes what was pushed and kicks if the device wants that.
    ///
    /// # Errors
    /// When the eventfd refuses.
    pub fn flush(&mut self, pair: usize) -> Result<(), Error> {
        let pair = &mut self.pairs[pair];
        if pair.tx.ring.publish() {
            self.counters.kicks += 1;
            pair.tx_fds.kick.write(1).map_err(|e| Error::io("kick", e))?;
        }
        Ok(())
    }

    /// Sends one frame on the first queue pair.
    ///
    /// # Errors
    /// As for [`Nic::send_frame_on`].
    pub fn send_frame(&mut self, header: &VnetHeader, frame: &[u8]) -> Result<(), Error> {
        self.send_frame_on(0, header, frame)
    }

    /// Takes the next frame from any queue, by turns: which pair, and its header.
    ///
    /// # Errors
    /// When a ring is broken beyond reading.
    pub fn recv_frame(&mut self, frame: &mut Vec<u8>) -> Result<Option<(usize, VnetHeader)>, Error> {
        for _ in 0..self.pairs.len() {
            let index = self.next_rx;
            self.next_rx = (index + 1) % self.pairs.len();
            let found = self.pairs[index].rx.pop(&self.memory, frame)?;
            self.refill(index)?;
            if let Some(header) = found {
                self.counters.rx_frames += 1;
                self.counters.rx_bytes += frame.len() as u64;
                return Ok(Some((index, header)));
            }
        }
        Ok(None)
    }

    /// Waits up to `timeout` for a frame.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Disconnected`].
    pub fn recv_within(&mut self, timeout: Duration, frame: &mut Vec<u8>) -> Result<(usize, VnetHeader), Error> {
        let start = Instant::now();
        loop {
            if let Some(found) = self.recv_frame(frame)? {
                return Ok(found);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Error::timeout("frame", timeout));
            }
            if !self.is_connected() {
                return Err(Error::Disconnected);
            }
            self.wait(left.min(Duration::from_millis(20)))?;
        }
    }

    /// Posts free receive buffers of a pair.
    ///
    /// # Errors
    /// When the eventfd refuses.
    pub fn refill(&mut self, pair: usize) -> Result<(), Error> {
        let pair = &mut self.pairs[pair];
        if pair.rx.fill(&self.memory)? > 0 && pair.rx.ring.publish() {
            self.counters.kicks += 1;
            pair.rx_fds.kick.write(1).map_err(|e| Error::io("kick", e))?;
        }
        Ok(())
    }

    /// Sleeps until a receive queue is called or `timeout` is over.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        let mut ready = false;
        for pair in &mut self.pairs {
            pair.rx.ring.set_interrupts(true);
            ready |= pair.rx.ring.used_count() > 0;
        }
        if !ready {
            let mut events = [EpollEvent::default(); 8];
            let ms = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            match self.epoll.wait(ms, &mut events) {
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => return Err(Error::io("epoll_wait", e)),
                _ => (),
            }
        }
        for pair in &mut self.pairs {
            // Nobody called: the counter is empty, which is not an error.
            let _ = pair.rx_fds.call.read();
            pair.rx.ring.set_interrupts(false);
        }
        Ok(())
    }

    /// Waits until the device has given back every transmitted buffer.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn drain_tx(&mut self, timeout: Duration) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let left: u32 = self
                .pairs
                .iter_mut()
                .map(|p| {
                    p.tx.reclaim();
                    u32::from(p.tx.ring.outstanding())
                })
                .sum();
            if left == 0 {
                return Ok(());
            }
            if start.elapsed() > timeout {
                return Err(Error::timeout(format!("return of {left} transmit buffers"), timeout));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Everything the device did wrong so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.pairs
            .iter()
            .flat_map(|p| p.rx.ring.violations.list.iter().chain(&p.tx.ring.violations.list))
            .copied()
            .collect()
    }

    /// Enables the first `pairs` queue pairs and disables the others, as a guest's driver does with `ethtool -L`.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn enable_pairs(&mut self, pairs: usize) -> Result<(), Error> {
        (0..2 * self.pairs.len()).try_for_each(|i| self.frontend.enable(i, i < 2 * pairs))
    }

    /// Plugs `bytes` of memory in, behind what is there.
    ///
    /// # Errors
    /// When mapping fails or the backend refuses.
    pub fn add_memory(&mut self, bytes: usize) -> Result<u64, Error> {
        let region = Region::new(self.memory.end(), bytes, self.config.memory.huge)?;
        let gpa = region.gpa();
        let region = self.memory.add(region);
        if self.frontend.protocol_features() & protocol::CONFIGURE_MEM_SLOTS != 0 {
            self.frontend.add_region(&region)?;
        } else {
            self.frontend.set_mem_table(&self.memory, true)?;
        }
        Ok(gpa)
    }

    /// Takes the region that begins at `gpa` out.
    ///
    /// # Errors
    /// When there is none, or the backend refuses.
    pub fn remove_memory(&mut self, gpa: u64) -> Result<(), Error> {
        let region = self.memory.remove(gpa).ok_or(Error::OutOfMemory { gpa, len: 1 })?;
        if self.frontend.protocol_features() & protocol::CONFIGURE_MEM_SLOTS != 0 {
            self.frontend.remove_region(&region)
        } else {
            self.frontend.set_mem_table(&self.memory, true)
        }
    }

    /// Begins to log writes as a migration does: one bit per 4 KiB page of guest memory.
    ///
    /// # Errors
    /// When the backend has no log.
    pub fn start_logging(&mut self) -> Result<(), Error> {
        let pages = usize::try_from(self.memory.end() / 4096).unwrap_or(usize::MAX) + 1;
        let log = Region::new(0, pages.div_ceil(8), false)?;
        self.frontend.set_log(&log)?;
        self.log = Some(log);
        for i in 0..2 * self.pairs.len() {
            let pair = &self.pairs[i / 2];
            let layout = if i % 2 == 0 { pair.rx.ring.layout() } else { pair.tx.ring.layout() };
            // Flag 1: log writes to the used ring, at its guest address.
            self.set_addr_logged(i, &layout)?;
        }
        self.frontend.set_features(self.frontend.features() | features::LOG_ALL)?;
        self.frontend.barrier()
    }

    fn set_addr_logged(&self, index: usize, layout: &RingLayout) -> Result<(), Error> {
        let user = |gpa: u64| {
            let region = self.memory.regions().iter().find(|r| gpa >= r.gpa() && gpa < r.gpa() + r.len() as u64);
            region.map(|r| r.user_addr() + gpa - r.gpa()).ok_or(Error::OutOfMemory { gpa, len: 1 })
        };
        let mut body = crate::wire::words32(&[index as u32, 1]);
        let addresses = [user(layout.desc)?, user(layout.used)?, user(layout.avail)?, layout.used];
        body.extend(crate::wire::words64(&addresses));
        self.frontend.command(FrontendReq::SET_VRING_ADDR, &body)
    }

    /// Takes and clears the log: guest addresses of the pages written since the last call.
    ///
    /// # Errors
    /// When no log was begun.
    pub fn take_dirty_pages(&mut self) -> Result<Vec<u64>, Error> {
        let log = self.log.as_ref().ok_or_else(|| Error::NotOffered { what: "a log before start_logging".into() })?;
        Ok(log.take_bits().into_iter().map(|bit| bit * 4096).collect())
    }

    /// Ends logging.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn stop_logging(&mut self) -> Result<(), Error> {
        self.frontend.set_features(self.frontend.features())?;
        self.frontend.barrier()
    }
}

/// Lays rings and buffers out in fresh memory.
fn build_queues(config: &NicConfig, negotiated: u64) -> Result<(GuestMemory, Vec<Pair>), Error> {
    let slots = if config.slot_count == 0 { u32::from(config.ring_size) } else { config.slot_count };
    let (rx_bytes, tx_bytes) = (config.rx_slot(negotiated), config.tx_slot(negotiated));
    let mut gpa = config.memory.gpa;
    let mut rings = Vec::new();
    for _ in 0..2 * config.pairs {
        let layout = RingLayout::at(config.ring_size, gpa);
        gpa = layout.end();
        rings.push(layout);
    }
    let mut buffers = Vec::new();
    for i in 0..2 * config.pairs {
        let (bytes, split) = if i % 2 == 0 { (rx_bytes, &config.rx_split) } else { (tx_bytes, &config.tx_split) };
        let layout = SlotLayout::at(gpa, slots, bytes, split.indirect);
        gpa = layout.end();
        buffers.push(layout);
    }
    let need = usize::try_from(gpa - config.memory.gpa).map_err(|_| Error::OutOfMemory { gpa, len: 0 })?;
    let memory = GuestMemory::new(&config.memory, need)?;
    let mut pairs = Vec::new();
    for i in 0..config.pairs {
        let rx = RxQueue::new(&memory, rings[2 * i], buffers[2 * i], config.rx_split.clone(), negotiated)?;
        let tx = TxQueue::new(&memory, rings[2 * i + 1], buffers[2 * i + 1], config.tx_split.clone(), negotiated)?;
        pairs.push(Pair { rx, tx, rx_fds: Fds::new()?, tx_fds: Fds::new()? });
    }
    for pair in &mut pairs {
        // Polled by default; `wait` asks for interrupts while it sleeps.
        pair.rx.ring.set_interrupts(false);
        pair.tx.ring.set_interrupts(false);
    }
    Ok((memory, pairs))
}
