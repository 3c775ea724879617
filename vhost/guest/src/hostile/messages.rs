//! Frontends that break the rules of the vhost-user socket.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq as Req;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MessageAttack;
use crate::Error;
use crate::features;
use crate::memory::Region;
use crate::wire::{FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Wire, message, words32, words64};

/// Descriptors that one message can carry at most (`SCM_MAX_FD`).
const FD_COUNT_MAX: usize = 253;

/// How long an attack waits for an answer that may never come.
const PATIENCE: Duration = Duration::from_millis(500);

/// Octets of the memory that the attacks hand over.
const MEMORY_BYTES: usize = 1 << 20;

macro_rules! attacks {
    ($($(#[doc = $sentence:literal])* fn $name:ident($wire:ident) $body:block)*) => {
        $($(#[doc = $sentence])*
        ///
        /// # Errors
        /// When something of ours fails, never because the backend hangs up.
        pub fn $name(stream: UnixStream) -> Result<UnixStream, Error> {
            attack(stream, |$wire| $body)
        })*

        /// All of them.
        pub const MESSAGE_ATTACKS: &[MessageAttack] = &[$(MessageAttack {
            name: stringify!($name),
            sentence: concat!($($sentence),*),
            run: $name,
        }),*];
    };
}

attacks! {
    /// Connects and says nothing.
    fn silence(_wire) { Ok(()) }

    /// Half a message header, then silence.
    fn partial_header(wire) { wire.send_bytes(&[1, 0, 0, 0, 1], &[]) }

    /// A header that promises a payload which never comes.
    fn header_without_body(wire) {
        let bytes = message(Req::SET_FEATURES.into(), FLAG_VERSION, &words64(&[0]));
        wire.send_bytes(&bytes[..12], &[])
    }

    /// Half of a payload, then silence.
    fn partial_body(wire) {
        let bytes = message(Req::SET_FEATURES.into(), FLAG_VERSION, &words64(&[0]));
        wire.send_bytes(&bytes[..15], &[])
    }

    /// A message in pieces of one octet, which is allowed.
    fn octet_by_octet(wire) {
        let bytes = message(Req::GET_FEATURES.into(), FLAG_VERSION, &[]);
        bytes.chunks(1).try_for_each(|octet| wire.send_bytes(octet, &[]))
    }

    /// A payload said to be 4 GiB long.
    fn giant_size(wire) { wire.send_bytes(&words32(&[2, FLAG_VERSION, u32::MAX]), &[]) }

    /// A payload just above what any message may have.
    fn size_above_limit(wire) { wire.send(Req::SET_FEATURES.into(), 0, &vec![0; 4097], &[]) }

    /// A request with number 0.
    fn request_zero(wire) { wire.send(0, 0, &[], &[]) }

    /// A request that nobody knows.
    fn request_unknown(wire) { wire.send(9999, 0, &words64(&[1]), &[]) }

    /// An unknown request that wants an acknowledgement.
    fn request_unknown_with_reply(wire) { wire.send(9999, FLAG_NEED_REPLY, &words64(&[1]), &[]) }

    /// Version 0.
    fn version_zero(wire) { wire.send_bytes(&words32(&[1, 0, 0]), &[]) }

    /// Version 3.
    fn version_three(wire) { wire.send_bytes(&words32(&[1, 3, 0]), &[]) }

    /// A request that claims to be a reply.
    fn request_as_reply(wire) { wire.send(Req::GET_FEATURES.into(), FLAG_REPLY, &[], &[]) }

    /// Reserved flag bits.
    fn reserved_flags(wire) { wire.send(Req::GET_FEATURES.into(), 0xffff_fff0, &[], &[]) }

    /// Octets without any meaning.
    fn noise(wire) {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(4096)
        .collect();
        wire.send_bytes(&noise, &[])
    }

    /// A payload shorter than the request has.
    fn short_payload(wire) { wire.send(Req::SET_FEATURES.into(), 0, &words32(&[0]), &[]) }

    /// A payload longer than the request has.
    fn long_payload(wire) { wire.send(Req::SET_VRING_NUM.into(), 0, &words64(&[0, 256, 1, 2]), &[]) }

    /// A payload where the request has none.
    fn payload_on_get_features(wire) { wire.send(Req::GET_FEATURES.into(), 0, &words64(&[7]), &[]) }

    /// A descriptor with a request that takes none.
    fn stray_descriptor(wire) { with_files(1, |fds| wire.send(Req::GET_FEATURES.into(), 0, &[], fds)) }

    /// As many descriptors as a message can carry, with a request that takes none.
    fn stray_descriptors_many(wire) {
        with_files(FD_COUNT_MAX, |fds| wire.send(Req::SET_OWNER.into(), 0, &[], fds))
    }

    /// Descriptors in every octet of a message.
    fn descriptors_in_pieces(wire) {
        let bytes = message(Req::SET_FEATURES.into(), FLAG_VERSION, &words64(&[0]));
        with_files(8, |fds| bytes.chunks(1).try_for_each(|octet| wire.send_bytes(octet, fds)))
    }

    /// Descriptors with an unfinished message, then the end.
    fn descriptors_then_hangup(wire) {
        with_files(32, |fds| wire.send_bytes(&words32(&[5, FLAG_VERSION]), fds))?;
        shutdown(wire)
    }

    /// The owner is set twice.
    fn owner_twice(wire) {
        wire.send(Req::SET_OWNER.into(), 0, &[], &[])?;
        wire.send(Req::SET_OWNER.into(), 0, &[], &[])
    }

    /// Features that were not offered.
    fn features_not_offered(wire) { wire.send(Req::SET_FEATURES.into(), 0, &words64(&[u64::MAX]), &[]) }

    /// Protocol features that were not offered.
    fn protocol_features_not_offered(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_PROTOCOL_FEATURES.into(), 0, &words64(&[u64::MAX]), &[])
    }

    /// A memory table without a single descriptor.
    fn mem_table_without_files(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_MEM_TABLE.into(), 0, &table(&[[0, 4096, 0x1000, 0]]), &[])
    }

    /// A memory table with fewer descriptors than regions.
    fn mem_table_with_few_files(wire) {
        negotiate(wire)?;
        let body = table(&[[0, 4096, 0x1000, 0], [0x10000, 4096, 0x2000, 0]]);
        with_files(1, |fds| wire.send(Req::SET_MEM_TABLE.into(), 0, &body, fds))
    }

    /// A memory table with more descriptors than regions.
    fn mem_table_with_many_files(wire) {
        negotiate(wire)?;
        let body = table(&[[0, 4096, 0x1000, 0]]);
        with_files(16, |fds| wire.send(Req::SET_MEM_TABLE.into(), 0, &body, fds))
    }

    /// A memory table without regions.
    fn mem_table_empty(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_MEM_TABLE.into(), 0, &table(&[]), &[])
    }

    /// A memory table whose count says 4 billion.
    fn mem_table_count_giant(wire) {
        negotiate(wire)?;
        let mut body = words32(&[u32::MAX, 0]);
        body.extend(words64(&[0, 4096, 0x1000, 0]));
        with_files(1, |fds| wire.send(Req::SET_MEM_TABLE.into(), 0, &body, fds))
    }

    /// A region of no octets.
    fn region_empty(wire) { regions(wire, &[[0, 0, 0x1000, 0]]) }

    /// A region larger than its file.
    fn region_beyond_file(wire) { regions(wire, &[[0, 1 << 40, 0x1000, 0]]) }

    /// A region whose end wraps around the guest's address space.
    fn region_wraps(wire) { regions(wire, &[[u64::MAX - 4095, 8192, 0x1000, 0]]) }

    /// A region whose end wraps around the frontend's address space.
    fn region_user_address_wraps(wire) { regions(wire, &[[0, 8192, u64::MAX - 4095, 0]]) }

    /// A region whose offset and size wrap.
    fn region_offset_wraps(wire) { regions(wire, &[[0, 8192, 0x1000, u64::MAX - 4095]]) }

    /// A region whose offset is not a multiple of the page size.
    fn region_offset_odd(wire) { regions(wire, &[[0, 8192, 0x1000, 13]]) }

    /// Regions that overlap.
    fn regions_overlap(wire) { regions(wire, &[[0, 16384, 0x10000, 0], [8192, 16384, 0x20000, 0]]) }

    /// One region twice.
    fn region_twice(wire) {
        regions(wire, &[[0, 16384, 0x10000, 0]])?;
        let body = single([0, 16384, 0x10000, 0]);
        with_files(1, |fds| wire.send(Req::ADD_MEM_REG.into(), 0, &body, fds))
    }

    /// Memory that is a directory.
    fn memory_is_a_directory(wire) {
        negotiate(wire)?;
        with_file("/", |fd| wire.send(Req::SET_MEM_TABLE.into(), 0, &table(&[[0, 4096, 0x1000, 0]]), &[fd]))
    }

    /// Memory that can only be read.
    fn memory_is_read_only(wire) {
        negotiate(wire)?;
        with_file("/proc/self/exe", |fd| {
            wire.send(Req::SET_MEM_TABLE.into(), 0, &table(&[[0, 4096, 0x1000, 0]]), &[fd])
        })
    }

    /// A region added without a descriptor.
    fn add_region_without_file(wire) {
        negotiate(wire)?;
        wire.send(Req::ADD_MEM_REG.into(), FLAG_NEED_REPLY, &single([0, 4096, 0x1000, 0]), &[])
    }

    /// A region taken out that was never there.
    fn remove_unknown_region(wire) {
        negotiate(wire)?;
        wire.send(Req::REM_MEM_REG.into(), FLAG_NEED_REPLY, &single([0, 4096, 0x1000, 0]), &[])
    }

    /// 2,000 regions, one after the other.
    fn regions_without_end(wire) {
        negotiate(wire)?;
        with_files(1, |fds| {
            (0..2000).try_for_each(|i: u64| {
                wire.send(Req::ADD_MEM_REG.into(), 0, &single([i << 20, 4096, 0x1000 + (i << 20), 0]), fds)
            })
        })
    }

    /// Memory is taken away from under running rings.
    fn memory_removed_under_rings(wire) {
        let _memory = start_rings(wire, 256)?;
        wire.send(Req::REM_MEM_REG.into(), FLAG_NEED_REPLY, &single([0, MEMORY_BYTES as u64, USER, 0]), &[])
    }

    /// Another memory table, which does not hold the rings, while they run.
    fn memory_replaced_under_rings(wire) {
        let _memory = start_rings(wire, 256)?;
        let body = table(&[[1 << 40, 65536, 1 << 41, 0]]);
        with_files(1, |fds| wire.send(Req::SET_MEM_TABLE.into(), FLAG_NEED_REPLY, &body, fds))
    }

    /// A ring of no descriptors.
    fn ring_size_zero(wire) { start_rings(wire, 0).map(drop) }

    /// A ring whose size is no power of two.
    fn ring_size_odd(wire) { start_rings(wire, 255).map(drop) }

    /// A ring of 4 billion descriptors.
    fn ring_size_giant(wire) { start_rings(wire, u32::MAX).map(drop) }

    /// A ring of 65,536 descriptors, which is 0 in 16 bits.
    fn ring_size_wraps(wire) { start_rings(wire, 0x1_0000).map(drop) }

    /// A ring with a number far behind the last one.
    fn ring_index_giant(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_VRING_NUM.into(), 0, &words32(&[u32::MAX, 256]), &[])
    }

    /// A kick for ring 255.
    fn kick_index_out_of_range(wire) {
        negotiate(wire)?;
        with_files(1, |fds| wire.send(Req::SET_VRING_KICK.into(), 0, &words64(&[255]), fds))
    }

    /// Ring addresses without any memory.
    fn ring_address_without_memory(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_VRING_ADDR.into(), 0, &addresses(0, USER), &[])
    }

    /// Ring addresses outside all memory.
    fn ring_address_outside_memory(wire) {
        let _memory = memory(wire)?;
        wire.send(Req::SET_VRING_ADDR.into(), 0, &addresses(0, USER + (1 << 30)), &[])
    }

    /// Ring addresses so close to the end of memory that the ring does not fit.
    fn ring_crosses_memory_end(wire) {
        let _memory = memory(wire)?;
        wire.send(Req::SET_VRING_NUM.into(), 0, &words32(&[0, 1024]), &[])?;
        wire.send(Req::SET_VRING_ADDR.into(), 0, &addresses(0, USER + MEMORY_BYTES as u64 - 64), &[])?;
        kick_and_enable(wire)
    }

    /// Ring addresses that are not aligned.
    fn ring_address_odd(wire) {
        let _memory = memory(wire)?;
        wire.send(Req::SET_VRING_NUM.into(), 0, &words32(&[0, 256]), &[])?;
        wire.send(Req::SET_VRING_ADDR.into(), 0, &addresses(0, USER + 1), &[])?;
        kick_and_enable(wire)
    }

    /// All three parts of a ring at one address.
    fn ring_parts_overlap(wire) {
        let _memory = memory(wire)?;
        wire.send(Req::SET_VRING_NUM.into(), 0, &words32(&[0, 256]), &[])?;
        let mut body = words32(&[0, 0]);
        body.extend(words64(&[USER, USER, USER, 0]));
        wire.send(Req::SET_VRING_ADDR.into(), 0, &body, &[])?;
        kick_and_enable(wire)
    }

    /// A base above 16 bits.
    fn ring_base_giant(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_VRING_BASE.into(), 0, &words32(&[0, u32::MAX]), &[])
    }

    /// A ring is kicked and enabled before it has memory, size or addresses.
    fn kick_before_setup(wire) {
        negotiate(wire)?;
        kick_and_enable(wire)
    }

    /// A kick that is a regular file.
    fn kick_is_a_file(wire) {
        negotiate(wire)?;
        with_file("/proc/self/exe", |fd| wire.send(Req::SET_VRING_KICK.into(), 0, &words64(&[0]), &[fd]))
    }

    /// A kick that is a socket on which nobody ever writes.
    fn kick_is_a_socket(wire) {
        let _memory = memory(wire)?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("socketpair", e))?;
        wire.send(Req::SET_VRING_KICK.into(), 0, &words64(&[0]), &[theirs.as_raw_fd()])?;
        drop(ours);
        Ok(())
    }

    /// A call that is the vhost-user socket itself.
    fn call_is_the_connection(wire) {
        start_rings(wire, 256)?;
        wire.send(Req::SET_VRING_CALL.into(), 0, &words64(&[0]), &[wire.stream().as_raw_fd()])
    }

    /// A kick whose descriptor is missing although its flag says that there is one.
    fn kick_without_file(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_VRING_KICK.into(), 0, &words64(&[0]), &[])
    }

    /// A kick with a descriptor although its flag says that there is none.
    fn kick_with_file_and_flag(wire) {
        negotiate(wire)?;
        with_files(1, |fds| wire.send(Req::SET_VRING_KICK.into(), 0, &words64(&[0x100]), fds))
    }

    /// 1,000 kick descriptors for one ring.
    fn kicks_without_end(wire) {
        negotiate(wire)?;
        let kick = EventFd::new(EFD_NONBLOCK).map_err(|e| Error::io("eventfd", e))?;
        (0..1000).try_for_each(|_| wire.send(Req::SET_VRING_KICK.into(), 0, &words64(&[0]), &[kick.as_raw_fd()]))
    }

    /// A ring is stopped that never ran.
    fn stop_before_start(wire) {
        negotiate(wire)?;
        wire.send(Req::GET_VRING_BASE.into(), 0, &words32(&[0, 0]), &[])
    }

    /// A ring is stopped twice.
    fn stop_twice(wire) {
        let _memory = start_rings(wire, 256)?;
        wire.send(Req::GET_VRING_BASE.into(), 0, &words32(&[0, 0]), &[])?;
        wire.send(Req::GET_VRING_BASE.into(), 0, &words32(&[0, 0]), &[])
    }

    /// A ring is enabled and disabled 1,000 times.
    fn enable_flapping(wire) {
        let _memory = start_rings(wire, 256)?;
        (0..1000u32).try_for_each(|i| wire.send(Req::SET_VRING_ENABLE.into(), 0, &words32(&[0, i % 2]), &[]))
    }

    /// An enable value that is neither 0 nor 1.
    fn enable_two(wire) {
        negotiate(wire)?;
        wire.send(Req::SET_VRING_ENABLE.into(), 0, &words32(&[0, 2]), &[])
    }

    /// A device is reset while its rings run.
    fn reset_under_rings(wire) {
        let _memory = start_rings(wire, 256)?;
        wire.send(Req::RESET_OWNER.into(), 0, &[], &[])?;
        wire.send(Req::RESET_DEVICE.into(), 0, &[], &[])
    }

    /// A dirty log without a file.
    fn log_without_file(wire) {
        let _memory = start_rings(wire, 256)?;
        wire.send(Req::SET_LOG_BASE.into(), 0, &words64(&[4096, 0]), &[])
    }

    /// A dirty log far too small for the memory, switched on.
    fn log_too_small(wire) {
        let _memory = start_rings(wire, 256)?;
        with_files(1, |fds| wire.send(Req::SET_LOG_BASE.into(), 0, &words64(&[1, 0]), fds))?;
        wire.send(Req::SET_FEATURES.into(), 0, &words64(&[BASIC | features::LOG_ALL]), &[])
    }

    /// A dirty log whose size and offset wrap.
    fn log_wraps(wire) {
        let _memory = start_rings(wire, 256)?;
        with_files(1, |fds| wire.send(Req::SET_LOG_BASE.into(), 0, &words64(&[u64::MAX, u64::MAX - 4095]), fds))
    }

    /// Configuration space far behind its end.
    fn config_out_of_range(wire) {
        negotiate(wire)?;
        let mut body = words32(&[0xffff_ff00, 256, 0]);
        body.extend([0; 256]);
        wire.send(Req::GET_CONFIG.into(), 0, &body, &[])
    }

    /// Requests of features that were never offered: IOTLB, in-flight memory, postcopy, device state.
    fn requests_not_offered(wire) {
        negotiate(wire)?;
        for request in [Req::IOTLB_MSG, Req::GET_INFLIGHT_FD, Req::POSTCOPY_ADVISE, Req::SET_DEVICE_STATE_FD] {
            wire.send(request.into(), 0, &words64(&[0, 0]), &[])?;
        }
        Ok(())
    }

    /// 10,000 questions whose answers are never read.
    fn answers_never_read(wire) {
        for _ in 0..10_000 {
            match wire.send(Req::GET_FEATURES.into(), 0, &[], &[]) {
                // Full: that is the point.
                Err(Error::Io { .. }) => break,
                other => other?,
            }
        }
        Ok(())
    }

    /// Half of the set-up, then the end.
    fn hangup_in_the_middle(wire) {
        let _memory = memory(wire)?;
        shutdown(wire)
    }

    /// Running rings, then the end without stopping them.
    fn hangup_under_rings(wire) {
        let _memory = start_rings(wire, 256)?;
        shutdown(wire)
    }
}

/// What every attack negotiates.
const BASIC: u64 = features::VERSION_1 | features::PROTOCOL_FEATURES;

/// User address of the memory that the attacks hand over.
const USER: u64 = 0x7000_0000_0000;

/// Runs an attack; the backend may hang up at any time.
fn attack(stream: UnixStream, run: impl FnOnce(&Wire) -> Result<(), Error>) -> Result<UnixStream, Error> {
    let back = stream.try_clone().map_err(|e| Error::io("dup", e))?;
    let wire = Wire::new(stream, PATIENCE)?;
    match run(&wire) {
        Ok(()) | Err(Error::Disconnected | Error::Timeout { .. } | Error::Io { what: "sendmsg" | "send", .. }) => {
            Ok(back)
        }
        Err(e) => Err(e),
    }
}

/// The ordinary beginning.
fn negotiate(wire: &Wire) -> Result<(), Error> {
    wire.send(Req::SET_OWNER.into(), 0, &[], &[])?;
    wire.send(Req::GET_FEATURES.into(), 0, &[], &[])?;
    let offered = wire.reply_u64(Req::GET_FEATURES)?;
    wire.send(Req::GET_PROTOCOL_FEATURES.into(), 0, &[], &[])?;
    let protocol = wire.reply_u64(Req::GET_PROTOCOL_FEATURES)?;
    wire.send(Req::SET_PROTOCOL_FEATURES.into(), 0, &words64(&[protocol]), &[])?;
    wire.send(Req::SET_FEATURES.into(), 0, &words64(&[offered & BASIC]), &[])
}

/// The beginning, and a good region of 1 MiB at guest address 0.
fn memory(wire: &Wire) -> Result<Region, Error> {
    negotiate(wire)?;
    let region = Region::new(0, MEMORY_BYTES, false)?;
    let body = table(&[[0, MEMORY_BYTES as u64, USER, 0]]);
    wire.send(Req::SET_MEM_TABLE.into(), 0, &body, &[region.file().as_raw_fd()])?;
    Ok(region)
}

/// Memory and two rings of `size` in it, kicked and enabled.
fn start_rings(wire: &Wire, size: u32) -> Result<Region, Error> {
    let region = memory(wire)?;
    for i in 0..2u32 {
        wire.send(Req::SET_VRING_NUM.into(), 0, &words32(&[i, size]), &[])?;
        wire.send(Req::SET_VRING_BASE.into(), 0, &words32(&[i, 0]), &[])?;
        wire.send(Req::SET_VRING_ADDR.into(), 0, &addresses(i, USER + u64::from(i) * 0x10000), &[])?;
    }
    kick_and_enable(wire)?;
    Ok(region)
}

fn kick_and_enable(wire: &Wire) -> Result<(), Error> {
    let kick = EventFd::new(EFD_NONBLOCK).map_err(|e| Error::io("eventfd", e))?;
    for i in 0..2u32 {
        wire.send(Req::SET_VRING_CALL.into(), 0, &words64(&[u64::from(i)]), &[kick.as_raw_fd()])?;
        wire.send(Req::SET_VRING_KICK.into(), 0, &words64(&[u64::from(i)]), &[kick.as_raw_fd()])?;
        wire.send(Req::SET_VRING_ENABLE.into(), 0, &words32(&[i, 1]), &[])?;
    }
    kick.write(1).map_err(|e| Error::io("kick", e))
}

/// Negotiates and hands over regions (guest address, size, user address, offset), each with a file of 1 MiB.
fn regions(wire: &Wire, list: &[[u64; 4]]) -> Result<(), Error> {
    negotiate(wire)?;
    with_files(list.len(), |fds| wire.send(Req::SET_MEM_TABLE.into(), FLAG_NEED_REPLY, &table(list), fds))
}

fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = words32(&[regions.len() as u32, 0]);
    body.extend(regions.iter().flat_map(|region| words64(region)));
    body
}

fn single(region: [u64; 4]) -> Vec<u8> {
    words64(&[0, region[0], region[1], region[2], region[3]])
}

/// Addresses of a ring whose parts follow each other from `user`.
fn addresses(index: u32, user: u64) -> Vec<u8> {
    let mut body = words32(&[index, 0]);
    body.extend(words64(&[user, user.wrapping_add(0x8000), user.wrapping_add(0x4000), 0]));
    body
}

/// Calls `send` with `count` descriptors of one fresh file of 1 MiB.
fn with_files(count: usize, send: impl FnOnce(&[RawFd]) -> Result<(), Error>) -> Result<(), Error> {
    let region = Region::new(0, MEMORY_BYTES, false)?;
    send(&vec![region.file().as_raw_fd(); count])
}

fn with_file(path: &str, send: impl FnOnce(RawFd) -> Result<(), Error>) -> Result<(), Error> {
    let file = File::open(path).map_err(|e| Error::io("open", e))?;
    send(file.as_raw_fd())
}

fn shutdown(wire: &Wire) -> Result<(), Error> {
    wire.stream().shutdown(std::net::Shutdown::Both).map_err(|e| Error::io("shutdown", e))
}
