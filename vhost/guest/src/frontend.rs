//! vhost-user frontend: what a VMM says to a backend, in the order in which a given VMM says it.
//!
//! Read the vhost-user specification (QEMU `docs/interop/vhost-user.rst`) first. The [`Profile`]s replay three real
//! frontends: QEMU 10 (`hw/virtio/vhost-user.c`, `hw/net/vhost_net.c`), DPDK 22.11 virtio-user and cloud-hypervisor
//! (`virtio-devices/src/vhost_user/vu_common_ctrl.rs`). What differs: when `SET_OWNER` and `SET_FEATURES` come, whether
//! rings are enabled before or after they are set up, whether `CALL` comes first, whether every message asks for an
//! acknowledgement, and whether memory is handed over in one table or region by region.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::features::{self, protocol};
use crate::memory::{GuestMemory, Region};
use crate::ring::RingLayout;
use crate::wire::{FLAG_NEED_REPLY, Wire, name, words32, words64};

/// Which side opens the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// We connect; the backend listens.
    #[default]
    Client,
    /// We listen; the backend connects.
    Server,
}

/// Whose order of messages to replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// QEMU 10.
    #[default]
    Qemu,
    /// DPDK virtio-user.
    Dpdk,
    /// cloud-hypervisor.
    CloudHypervisor,
}

/// A ring as the frontend describes it to the backend.
#[derive(Debug)]
pub struct Vring<'a> {
    /// Where it lies.
    pub layout: RingLayout,
    /// Index of the first chain to process.
    pub base: u16,
    /// Kicks from us.
    pub kick: &'a EventFd,
    /// Calls from the backend.
    pub call: &'a EventFd,
}

/// Where the connection comes from; kept for reconnecting.
#[derive(Debug)]
pub enum Endpoint {
    /// Connect to this path.
    Client(PathBuf),
    /// Accept on this listener.
    Server(UnixListener),
}

impl Endpoint {
    /// Prepares one; in server mode the socket exists afterwards.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn new(path: &Path, mode: Mode) -> Result<Self, Error> {
        match mode {
            Mode::Client => Ok(Self::Client(path.to_path_buf())),
            Mode::Server => {
                let listener = UnixListener::bind(path).map_err(|e| Error::io("bind", e))?;
                listener.set_nonblocking(true).map_err(|e| Error::io("fcntl", e))?;
                Ok(Self::Server(listener))
            }
        }
    }

    /// Tries until a connection stands or `timeout` is over.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn connect(&self, timeout: Duration) -> Result<UnixStream, Error> {
        let start = Instant::now();
        loop {
            let result = match self {
                Self::Client(path) => UnixStream::connect(path),
                Self::Server(listener) => listener.accept().map(|(stream, _)| stream),
            };
            match result {
                Ok(stream) => return Ok(stream),
                Err(_) if start.elapsed() < timeout => std::thread::sleep(Duration::from_millis(2)),
                Err(_) => return Err(Error::timeout("connection", timeout)),
            }
        }
    }
}

/// A negotiated connection to a backend.
#[derive(Debug)]
pub struct Frontend {
    wire: Wire,
    profile: Profile,
    features: u64,
    protocol: u64,
    offered: u64,
    protocol_offered: u64,
    queue_num: u64,
    ack_all: bool,
}

impl Frontend {
    /// Negotiates on a fresh connection: of the virtio features in `wish` and the protocol features in
    /// `protocol_wish` those that the backend offers. `pairs` queue pairs must be possible.
    ///
    /// # Errors
    /// When the backend does not follow the protocol or offers too few queues.
    pub fn negotiate(wire: Wire, profile: Profile, wish: u64, protocol_wish: u64, pairs: usize) -> Result<Self, Error> {
        let mut this = Self {
            wire,
            profile,
            features: 0,
            protocol: 0,
            offered: 0,
            protocol_offered: 0,
            queue_num: 2,
            ack_all: false,
        };
        if profile != Profile::Qemu {
            this.command(FrontendReq::SET_OWNER, &[])?;
        }
        this.offered = this.query(FrontendReq::GET_FEATURES)?;
        if this.offered & features::PROTOCOL_FEATURES != 0 {
            this.protocol_offered = this.query(FrontendReq::GET_PROTOCOL_FEATURES)?;
            this.protocol = this.protocol_offered & protocol_wish;
            this.command(FrontendReq::SET_PROTOCOL_FEATURES, &words64(&[this.protocol]))?;
        }
        this.features = this.offered & (wish | features::PROTOCOL_FEATURES);
        if this.protocol & protocol::MQ != 0 {
            this.queue_num = this.query(FrontendReq::GET_QUEUE_NUM)?;
        }
        // QEMU compares pairs, cloud-hypervisor rings: an answer has to satisfy the one that is asking.
        let need = if profile == Profile::CloudHypervisor { 2 * pairs } else { pairs } as u64;
        if this.queue_num < need {
            return Err(Error::NotOffered { what: format!("{need} queues (it says {})", this.queue_num) });
        }
        if profile == Profile::Qemu {
            if this.has(protocol::CONFIGURE_MEM_SLOTS) {
                let _slots = this.query(FrontendReq::GET_MAX_MEM_SLOTS)?;
            }
            this.command(FrontendReq::SET_OWNER, &[])?;
            // `vhost_dev_init` asks once more.
            this.offered = this.query(FrontendReq::GET_FEATURES)?;
        }
        Ok(this)
    }

    /// Hands memory and rings over and starts them, in the profile's order. Even rings are receive queues;
    /// the first `enabled` rings are enabled.
    ///
    /// # Errors
    /// When the backend refuses or goes away.
    pub fn start(&mut self, memory: &GuestMemory, rings: &[Vring<'_>], enabled: usize) -> Result<(), Error> {
        match self.profile {
            Profile::Qemu => self.start_qemu(memory, rings, enabled),
            Profile::Dpdk => self.start_dpdk(memory, rings, enabled),
            Profile::CloudHypervisor => self.start_cloud_hypervisor(memory, rings, enabled),
        }
    }

    fn start_qemu(&mut self, memory: &GuestMemory, rings: &[Vring<'_>], enabled: usize) -> Result<(), Error> {
        for (i, ring) in rings.iter().enumerate() {
            self.set_fd(FrontendReq::SET_VRING_CALL, i, ring.call)?;
        }
        let memory_ack = self.has(protocol::REPLY_ACK);
        for pair in 0..rings.len().div_ceil(2) {
            let both = 2 * pair..rings.len().min(2 * pair + 2);
            if self.features & features::PROTOCOL_FEATURES != 0 {
                for i in both.clone() {
                    self.enable(i, i < enabled)?;
                }
            }
            self.set_features(self.features)?;
            if pair == 0 {
                if self.has(protocol::CONFIGURE_MEM_SLOTS) {
                    for region in memory.regions() {
                        self.add_region(region)?;
                    }
                } else {
                    self.set_mem_table(memory, memory_ack)?;
                }
            }
            for i in both {
                let ring = &rings[i];
                self.command(FrontendReq::SET_VRING_NUM, &words32(&[i as u32, u32::from(ring.layout.size)]))?;
                self.command(FrontendReq::SET_VRING_BASE, &words32(&[i as u32, u32::from(ring.base)]))?;
                self.set_addr(memory, i, &ring.layout)?;
                self.set_fd(FrontendReq::SET_VRING_KICK, i, ring.kick)?;
                self.set_fd(FrontendReq::SET_VRING_CALL, i, ring.call)?;
            }
        }
        Ok(())
    }

    fn start_dpdk(&mut self, memory: &GuestMemory, rings: &[Vring<'_>], enabled: usize) -> Result<(), Error> {
        for (i, ring) in rings.iter().enumerate() {
            self.set_fd(FrontendReq::SET_VRING_CALL, i, ring.call)?;
        }
        self.set_features(self.features)?;
        self.set_mem_table(memory, false)?;
        for (i, ring) in rings.iter().enumerate() {
            self.command(FrontendReq::SET_VRING_NUM, &words32(&[i as u32, u32::from(ring.layout.size)]))?;
            self.command(FrontendReq::SET_VRING_BASE, &words32(&[i as u32, u32::from(ring.base)]))?;
            self.set_addr(memory, i, &ring.layout)?;
            // The kick is last: it is what starts the ring.
            self.set_fd(FrontendReq::SET_VRING_KICK, i, ring.kick)?;
        }
        self.enable_all(rings.len(), enabled)
    }

    fn start_cloud_hypervisor(
        &mut self,
        memory: &GuestMemory,
        rings: &[Vring<'_>],
        enabled: usize,
    ) -> Result<(), Error> {
        self.set_features(self.features)?;
        // From here on every message asks for an acknowledgement.
        self.ack_all = self.has(protocol::REPLY_ACK);
        self.set_mem_table(memory, false)?;
        for (i, ring) in rings.iter().enumerate() {
            self.command(FrontendReq::SET_VRING_NUM, &words32(&[i as u32, u32::from(ring.layout.size)]))?;
            self.set_addr(memory, i, &ring.layout)?;
            self.command(FrontendReq::SET_VRING_BASE, &words32(&[i as u32, u32::from(ring.base)]))?;
            self.set_fd(FrontendReq::SET_VRING_CALL, i, ring.call)?;
            self.set_fd(FrontendReq::SET_VRING_KICK, i, ring.kick)?;
        }
        self.enable_all(rings.len(), enabled)
    }

    fn enable_all(&self, rings: usize, enabled: usize) -> Result<(), Error> {
        if self.features & features::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        (0..rings).try_for_each(|i| self.enable(i, i < enabled))
    }

    /// Virtio features in force.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Virtio features that the backend offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Protocol features in force.
    pub fn protocol_features(&self) -> u64 {
        self.protocol
    }

    /// Protocol features that the backend offers.
    pub fn protocol_offered(&self) -> u64 {
        self.protocol_offered
    }

    /// The answer to `GET_QUEUE_NUM`, 2 if it was not asked.
    pub fn queue_num(&self) -> u64 {
        self.queue_num
    }

    /// The message channel, for what no well-behaved frontend sends.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    fn has(&self, bit: u64) -> bool {
        self.protocol & bit != 0
    }

    /// Sends a request that has a 64-bit answer.
    ///
    /// # Errors
    /// When the answer does not come or does not fit.
    pub fn query(&self, request: FrontendReq) -> Result<u64, Error> {
        self.wire.send(request.into(), 0, &[], &[])?;
        self.wire.reply_u64(request)
    }

    /// Sends a request that has no answer; acknowledged when the profile asks for that everywhere.
    ///
    /// # Errors
    /// When it cannot be sent or is refused.
    pub fn command(&self, request: FrontendReq, body: &[u8]) -> Result<(), Error> {
        self.command_with(request, body, &[], self.ack_all)
    }

    fn command_with(&self, request: FrontendReq, body: &[u8], fds: &[i32], ack: bool) -> Result<(), Error> {
        let ack = ack && self.has(protocol::REPLY_ACK);
        self.wire.send(request.into(), if ack { FLAG_NEED_REPLY } else { 0 }, body, fds)?;
        if !ack {
            return Ok(());
        }
        match self.wire.reply_u64(request)? {
            0 => Ok(()),
            code => Err(Error::Refused { request: name(request), code }),
        }
    }

    /// Waits until the backend has worked through everything sent so far.
    ///
    /// # Errors
    /// When the backend is gone.
    pub fn barrier(&self) -> Result<(), Error> {
        self.query(FrontendReq::GET_FEATURES).map(drop)
    }

    /// `SET_FEATURES`; also switches `LOG_ALL` while rings run.
    ///
    /// # Errors
    /// When it cannot be sent or is refused.
    pub fn set_features(&self, features: u64) -> Result<(), Error> {
        self.command(FrontendReq::SET_FEATURES, &words64(&[features]))
    }

    /// Hands all regions over in one message.
    ///
    /// # Errors
    /// When it cannot be sent or is refused.
    pub fn set_mem_table(&self, memory: &GuestMemory, ack: bool) -> Result<(), Error> {
        let mut body = words32(&[memory.regions().len() as u32, 0]);
        body.extend(memory.regions().iter().flat_map(|r| region_bytes(r)));
        let fds: Vec<i32> = memory.regions().iter().map(|r| r.file().as_raw_fd()).collect();
        self.command_with(FrontendReq::SET_MEM_TABLE, &body, &fds, ack || self.ack_all)
    }

    /// Plugs one region in.
    ///
    /// # Errors
    /// When it cannot be sent or is refused.
    pub fn add_region(&self, region: &Region) -> Result<(), Error> {
        let mut body = words64(&[0]);
        body.extend(region_bytes(region));
        self.command_with(FrontendReq::ADD_MEM_REG, &body, &[region.file().as_raw_fd()], true)
    }

    /// Takes one region out.
    ///
    /// # Errors
    /// When it cannot be sent or is refused.
    pub fn remove_region(&self, region: &Region) -> Result<(), Error> {
        let mut body = words64(&[0]);
        body.extend(region_bytes(region));
        self.command_with(FrontendReq::REM_MEM_REG, &body, &[], true)
    }

    /// Tells where a ring lies, in user addresses.
    ///
    /// # Errors
    /// When the ring is not in guest memory, or the message is refused.
    pub fn set_addr(&self, memory: &GuestMemory, index: usize, layout: &RingLayout) -> Result<(), Error> {
        let user = |gpa: u64| user_addr(memory, gpa);
        let mut body = words32(&[index as u32, 0]);
        body.extend(words64(&[user(layout.desc)?, user(layout.used)?, user(layout.avail)?, layout.used]));
        self.command(FrontendReq::SET_VRING_ADDR, &body)
    }

    /// Hands a kick or call descriptor over.
    ///
    /// # Errors
    /// When it cannot be sent or is refused.
    pub fn set_fd(&self, request: FrontendReq, index: usize, fd: &EventFd) -> Result<(), Error> {
        self.command_with(request, &words64(&[index as u64]), &[fd.as_raw_fd()], self.ack_all)
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    /// When it cannot be sent or is refused.
    pub fn enable(&self, index: usize, on: bool) -> Result<(), Error> {
        self.command(FrontendReq::SET_VRING_ENABLE, &words32(&[index as u32, u32::from(on)]))
    }

    /// Stops a ring; after the answer the backend touches nothing of it. Returns the index of its next chain.
    ///
    /// # Errors
    /// When the answer does not come or does not fit.
    pub fn stop_ring(&self, index: usize) -> Result<u16, Error> {
        let request = FrontendReq::GET_VRING_BASE;
        self.wire.send(request.into(), 0, &words32(&[index as u32, 0]), &[])?;
        let value = self.wire.reply_u64(request)?;
        let (ring, base) = (value as u32, (value >> 32) as u32);
        u16::try_from(base)
            .ok()
            .filter(|_| ring == index as u32)
            .ok_or_else(|| Error::BadReply { request: name(request), why: format!("ring {ring}, base {base}") })
    }

    /// Hands a dirty log over; answered by the backend.
    ///
    /// # Errors
    /// When the backend has no `LOG_SHMFD`, or refuses.
    pub fn set_log(&self, log: &Region) -> Result<(), Error> {
        if !self.has(protocol::LOG_SHMFD) {
            return Err(Error::NotOffered { what: "LOG_SHMFD".into() });
        }
        let request = FrontendReq::SET_LOG_BASE;
        self.wire.send(request.into(), 0, &words64(&[log.len() as u64, 0]), &[log.file().as_raw_fd()])?;
        self.wire.reply(request).map(drop)
    }
}

/// Where a guest address lies in this process.
fn user_addr(memory: &GuestMemory, gpa: u64) -> Result<u64, Error> {
    memory
        .regions()
        .iter()
        .find(|r| gpa >= r.gpa() && gpa - r.gpa() < r.len() as u64)
        .map(|r| r.user_addr() + (gpa - r.gpa()))
        .ok_or(Error::OutOfMemory { gpa, len: 1 })
}

/// Guest address, size, user address, offset in the file.
fn region_bytes(region: &Region) -> Vec<u8> {
    words64(&[region.gpa(), region.len() as u64, region.user_addr(), 0])
}
