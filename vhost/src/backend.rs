//! The vhost-user messages of one connection (QEMU `docs/interop/vhost-user.rst`).
//!
//! State of each ring: *stopped* until a kick descriptor (or "poll") has arrived and size, addresses and memory are
//! known; then *started*, until `GET_VRING_BASE`, a reset, or the end of the connection. *Enabled* is apart from it.
//! All changes happen under the claim of the ring, so that nothing is touched any more when a message is answered.
//! An error ends the connection, with a sentence in the port's status.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::attachment::Shared;
use crate::features;
use crate::memory::{DirtyLog, GuestMemory, MemoryError, REGIONS_MAX, Region, RegionSpec};
use crate::queue::{CallFd, Control};
use crate::ring::{RING_SIZE_MAX, RingAddresses, RingFeatures, RingLog, SplitRing};
use crate::sys;

/// What the VMM said about one ring.
#[derive(Default)]
struct Vring {
    size: u16,
    addresses: Option<RingAddresses>,
    base: u16,
    /// `SET_VRING_KICK` arrived: the ring may start.
    kicked: bool,
    kick: Option<Arc<OwnedFd>>,
    call: Option<CallFd>,
    /// Kept open as long as the VMM wants; faults are reported through the port's status instead.
    err: Option<OwnedFd>,
    enabled: bool,
    started: bool,
}

/// One connection.
pub(crate) struct Backend {
    shared: Arc<Shared>,
    /// `SET_FEATURES`.
    acked: u64,
    /// `SET_PROTOCOL_FEATURES`.
    protocol: u64,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    rings: Vec<Vring>,
    /// Pairs that run, as last told to the observer.
    running: Vec<bool>,
}

/// A sentence that ends the connection.
fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::ReqHandlerError(io::Error::other(reason.into())))
}

/// A cause with its own cause.
fn refused(error: impl std::error::Error) -> Error {
    let text = match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Error::ReqHandlerError(io::Error::other(text))
}

impl Backend {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let pairs = shared.queues().len();
        Self {
            shared,
            acked: 0,
            protocol: 0,
            memory: Arc::default(),
            log: None,
            rings: (0..2 * pairs).map(|_| Vring::default()).collect(),
            running: vec![false; pairs],
        }
    }

    /// Whether `SET_VRING_ENABLE` still has to be handled here: QEMU's network devices send it before they have acked
    /// any feature, when the device is made, and the message layer would end the connection.
    pub(crate) fn is_before_features(&self) -> bool {
        self.acked & features::PROTOCOL_FEATURES == 0
    }

    /// Whether the VMM may ask for acknowledgements.
    pub(crate) fn acknowledges(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Ends the connection: every ring stops, then the memory goes.
    pub(crate) fn close(&mut self) {
        self.stop_all();
        self.set_memory_status(Arc::default());
        self.log = None;
    }

    fn index(&self, index: u32) -> Result<usize> {
        let count = self.rings.len();
        if (index as usize) < count {
            return Ok(index as usize);
        }
        refuse(format!(
            "the VMM uses queue {index}, but the port has {} queue pairs; lower `queues` in the VMM or raise it in the Port",
            count / 2
        ))
    }

    /// Waits for the ring's claim. Even queues are receive queues (VIRTIO 1.2 §5.1.2).
    fn control(shared: &Shared, index: usize) -> Option<Control<'_>> {
        let pair = shared.queues().get(index / 2)?;
        Some(if index.is_multiple_of(2) { pair.to_guest.0.control() } else { pair.from_guest.0.control() })
    }

    fn ring_log(&self, addresses: &RingAddresses) -> Option<RingLog> {
        let log = self.log.as_ref().filter(|_| self.acked & features::LOG_ALL != 0)?;
        Some(RingLog { log: log.clone(), used: addresses.log })
    }

    /// Starts the ring if everything is there, or brings a running one up to date; then tells the observer.
    fn update(&mut self, index: usize) -> Result<()> {
        self.update_ring(index)?;
        self.report(index / 2);
        Ok(())
    }

    fn update_ring(&mut self, index: usize) -> Result<()> {
        let shared = self.shared.clone();
        let Some(mut control) = Self::control(&shared, index) else { return Ok(()) };
        let state = &mut *control.state;
        let ring = &mut self.rings[index];
        (state.call, state.kick) = (ring.call.clone(), ring.kick.clone());
        state.enabled = ring.enabled || self.acked & features::PROTOCOL_FEATURES == 0;
        let Some(addresses) = ring.addresses.filter(|_| ring.kicked && ring.size > 0 && !self.memory.is_empty()) else {
            return Ok(());
        };
        if ring.started {
            return Ok(());
        }
        let ring_features = RingFeatures {
            event_idx: self.acked & features::EVENT_IDX != 0,
            indirect: self.acked & features::INDIRECT_DESC != 0,
        };
        let mut split =
            SplitRing::new(self.memory.clone(), &addresses, ring.size, ring.base, ring_features).map_err(refused)?;
        split.disable_notifications();
        ring.started = true;
        split.set_log(self.ring_log(&addresses));
        state.features = self.acked;
        state.header_len = features::header_len(self.acked);
        state.install(Some(split));
        let call = state.call.clone();
        drop(control);
        if let Some(call) = call {
            // The driver may wait for an interrupt that a backend before us owed it. Not under the claim: a VMM that
            // takes O_NONBLOCK away again can make this wait.
            sys::signal(&call.0);
        }
        Ok(())
    }

    /// Stops the ring: afterwards nothing touches it. Says where it stopped.
    fn stop(&mut self, index: usize) -> u16 {
        let shared = self.shared.clone();
        if let Some(mut control) = Self::control(&shared, index) {
            if let Some(mut split) = control.state.ring.take() {
                split.publish();
                self.rings[index].base = split.base();
            }
            control.stop();
        }
        let ring = &mut self.rings[index];
        (ring.started, ring.kicked, ring.kick, ring.call) = (false, false, None, None);
        let base = ring.base;
        self.report(index / 2);
        base
    }

    fn stop_all(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
        }
    }

    /// Tells the observer when a pair starts or stops to run.
    fn report(&mut self, pair: usize) {
        let Some(queues) = self.shared.queues().get(pair) else { return };
        let runs = |queue: &crate::queue::Queue| queue.is_started();
        let now = runs(&queues.from_guest.0) && runs(&queues.to_guest.0);
        if now == self.running[pair] {
            return;
        }
        self.running[pair] = now;
        let count = self.running.iter().filter(|running| **running).count();
        self.shared.pair_changed(pair, now, count);
    }

    /// Another memory table: each running ring moves over, or the connection ends.
    fn exchange_memory(&mut self, memory: GuestMemory) -> Result<()> {
        let memory = Arc::new(memory);
        let shared = self.shared.clone();
        let mut result = Ok(());
        for index in 0..self.rings.len() {
            if !self.rings[index].started {
                continue;
            }
            let (Some(mut control), Some(addresses)) = (Self::control(&shared, index), self.rings[index].addresses)
            else {
                continue;
            };
            if let Some(ring) = &mut control.state.ring
                && let Err(error) = ring.relocate(memory.clone(), &addresses)
            {
                control.state.install(None);
                result = Err(refused(error));
            }
        }
        self.set_memory_status(memory);
        result?;
        // Rings that waited for memory may start now.
        (0..self.rings.len()).try_for_each(|index| self.update(index))
    }

    fn set_memory_status(&mut self, memory: Arc<GuestMemory>) {
        self.shared.set_memory(memory.len(), memory.page_size());
        self.memory = memory;
    }

    fn add_region(&mut self, regions: Vec<Region>) -> Result<()> {
        let mut table = GuestMemory::default();
        for region in regions {
            table = table.with(region).map_err(refused)?;
        }
        self.exchange_memory(table)
    }

    /// Logging follows `F_LOG_ALL` and `SET_LOG_BASE`, also in rings that run.
    fn update_logs(&mut self) {
        let shared = self.shared.clone();
        for index in 0..self.rings.len() {
            let Some(addresses) = self.rings[index].addresses else { continue };
            let log = self.ring_log(&addresses);
            if let Some(mut control) = Self::control(&shared, index)
                && let Some(ring) = &mut control.state.ring
            {
                ring.set_log(log);
            }
        }
    }
}

/// A descriptor that must be an eventfd: anything else could block a worker or be a file of ours.
fn eventfd(name: &str, file: Option<File>) -> Result<Option<OwnedFd>> {
    let Some(file) = file else { return Ok(None) };
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if !link.as_ref().is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]") {
        return refuse(format!("the VMM sent a {name} descriptor that is no eventfd"));
    }
    sys::set_nonblocking(&file).map_err(refused)?;
    Ok(Some(file.into()))
}

fn spec(gpa: u64, len: u64, uva: u64, offset: u64) -> RegionSpec {
    RegionSpec { gpa, len, uva, offset }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// No longer used; back-ends should treat it as a request to disable all rings.
    fn reset_owner(&mut self) -> Result<()> {
        for index in 0..self.rings.len() {
            self.rings[index].enabled = false;
            self.update(index)?;
        }
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.rings.iter_mut().for_each(|ring| *ring = Vring::default());
        self.acked = 0;
        self.shared.set_features(0);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(features::OFFERED)
    }

    fn set_features(&mut self, acked: u64) -> Result<()> {
        let unknown = acked & !features::OFFERED;
        if unknown != 0 {
            return refuse(format!("the VMM takes features that were never offered: {unknown:#x}"));
        }
        let changed = (self.acked ^ acked) & !features::LOG_ALL;
        if changed != 0 && self.rings.iter().any(|ring| ring.started) {
            return refuse(format!("the VMM changes features {changed:#x} while rings are running"));
        }
        self.acked = acked;
        self.shared.set_features(acked);
        self.update_logs();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        if regions.len() > REGIONS_MAX {
            return Err(refused(MemoryError::TooManyRegions));
        }
        let map = |(region, file): (&VhostUserMemoryRegion, &File)| {
            let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = *region;
            Region::map(spec(guest_phys_addr, memory_size, user_addr, mmap_offset), file)
        };
        let mapped: std::result::Result<Vec<_>, _> = regions.iter().zip(&files).map(map).collect();
        self.add_region(mapped.map_err(refused)?)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let ring = self.index(index)?;
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= RING_SIZE_MAX);
        let Some(size) = size else {
            return refuse(format!(
                "the VMM asks for queue {index} with {num} descriptors; it must be a power of two, at most {RING_SIZE_MAX}"
            ));
        };
        if self.rings[ring].started && self.rings[ring].size != size {
            return refuse(format!("the VMM resizes queue {index} while it is running"));
        }
        self.rings[ring].size = size;
        self.update(ring)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let index = self.index(index)?;
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let addresses = RingAddresses { descriptors, available, used, log };
        self.rings[index].addresses = Some(addresses);
        if !self.rings[index].started {
            return self.update(index);
        }
        // QEMU sends the same addresses again when it turns logging on or off.
        let ring_log = self.ring_log(&addresses);
        let shared = self.shared.clone();
        if let Some(mut control) = Self::control(&shared, index)
            && let Some(ring) = &mut control.state.ring
        {
            if let Err(error) = ring.relocate(self.memory.clone(), &addresses) {
                control.state.install(None);
                return Err(refused(error));
            }
            ring.set_log(ring_log);
        }
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let ring = self.index(index)?;
        let Ok(base) = u16::try_from(base) else {
            return refuse(format!("the VMM sets the base of queue {index} to {base}, which is no split ring index"));
        };
        if self.rings[ring].started {
            return refuse(format!("the VMM moves the base of queue {index} while it is running"));
        }
        self.rings[ring].base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.index(index)?;
        let base = self.stop(ring);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        let fd = eventfd("kick", fd)?.map(Arc::new);
        let ran = self.rings[index].started && self.running[index / 2];
        self.rings[index].kick = fd;
        self.rings[index].kicked = true;
        self.update(index)?;
        if ran {
            // Whoever waits for the old descriptor must look at the ring again.
            self.shared.kick_changed(index / 2);
        }
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        self.rings[index].call = eventfd("call", fd)?.map(|fd| CallFd(Arc::new(fd)));
        self.update(index)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        self.rings[index].err = eventfd("error", fd)?;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::protocol_features(self.shared.config().config_space.is_some()))
    }

    fn set_protocol_features(&mut self, acked: u64) -> Result<()> {
        let unknown = acked & !features::protocol_features(self.shared.config().config_space.is_some()).bits();
        if unknown != 0 {
            return refuse(format!("the VMM takes protocol features that were never offered: {unknown:#x}"));
        }
        self.protocol = acked;
        Ok(())
    }

    /// QEMU compares the answer with its number of queue pairs, cloud-hypervisor with its number of queues; both ask
    /// for at least as many. A VMM that then uses more than there are gets a sentence that says so.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        self.rings[index].enabled = enable;
        self.update(index)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let Some(mac) = self.shared.config().config_space else {
            return refuse("the VMM reads the configuration space, which this port does not offer");
        };
        let pairs = self.shared.queues().len() as u16;
        let octets = config_space(mac, pairs, self.shared.config().mtu);
        let end = u64::from(offset) + u64::from(size);
        match usize::try_from(end).ok().and_then(|end| octets.get(offset as usize..end)) {
            Some(part) => Ok(part.to_vec()),
            // Fields behind those that were negotiated read as zero.
            None if end <= 256 => {
                let mut whole = vec![0; 256];
                whole[..octets.len()].copy_from_slice(&octets);
                Ok(whole[offset as usize..end as usize].to_vec())
            }
            None => refuse(format!("the VMM reads the configuration space at {offset} for {size} octets")),
        }
    }

    /// Nothing in it is the driver's to write; VIRTIO 1.2 §5.1.4 has such writes ignored.
    fn set_config(&mut self, _offset: u32, _octets: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Ok(())
    }

    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> Result<()> {
        refuse("the VMM treats a network port as a GPU")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        refuse("the VMM asks for a shared object, which was not offered")
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        refuse("the VMM asks for an inflight region, which was not offered")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        refuse("the VMM sets an inflight region, which was not offered")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let spec = spec(region.guest_phys_addr, region.memory_size, region.user_addr, region.mmap_offset);
        let region = Region::map(spec, &file).map_err(refused)?;
        let table = self.memory.with(region).map_err(refused)?;
        self.exchange_memory(table)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let table = self.memory.without(region.guest_phys_addr, region.memory_size, region.user_addr);
        self.exchange_memory(table.map_err(refused)?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        refuse("the VMM transfers device state, which was not offered")
    }

    fn check_device_state(&mut self) -> Result<()> {
        refuse("the VMM asks for device state, which was not offered")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refuse("the VMM asks for shared memory regions, which were not offered")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::map(&file, log.mmap_offset, log.mmap_size).map_err(refused)?;
        self.log = Some(Arc::new(log));
        self.update_logs();
        Ok(())
    }
}

/// `struct virtio_net_config` (VIRTIO 1.2 §5.1.4) up to `mtu`.
fn config_space(mac: [u8; 6], pairs: u16, mtu: u16) -> [u8; 12] {
    const LINK_UP: u16 = 1;
    let mut octets = [0; 12];
    octets[..6].copy_from_slice(&mac);
    octets[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
    octets[8..10].copy_from_slice(&pairs.to_le_bytes());
    octets[10..].copy_from_slice(&mtu.to_le_bytes());
    octets
}
