//! vhost-user messages, octet by octet, on a UNIX stream socket (vhost-user specification, "Message Specification").
//!
//! The codes are those of the crate `vhost`. The channel is our own because a judge has to send what that crate's
//! frontend refuses (orders of messages that QEMU and DPDK use, wrong sizes, stray descriptors) and has to give up
//! after a time instead of waiting for ever. Nothing here retries or repairs: what is asked for is sent.

use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::Error;

/// Version bits of a message's flags.
pub const FLAG_VERSION: u32 = 0x1;
/// The message is a reply.
pub const FLAG_REPLY: u32 = 0x4;
/// The sender wants an acknowledgement.
pub const FLAG_NEED_REPLY: u32 = 0x8;

/// Octets of a message's header: request, flags, size.
pub const HEADER_BYTES: usize = 12;

/// Largest reply taken, in octets.
const REPLY_BYTES_MAX: u32 = 4096;

/// One end of a vhost-user connection, without any state of the protocol.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    epoll: Epoll,
}

impl Wire {
    /// Takes a connected socket; every reply has to come within `timeout`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(stream: UnixStream, timeout: Duration) -> Result<Self, Error> {
        stream.set_nonblocking(false).map_err(|e| Error::io("fcntl", e))?;
        stream.set_read_timeout(Some(timeout)).map_err(|e| Error::io("SO_RCVTIMEO", e))?;
        stream.set_write_timeout(Some(timeout)).map_err(|e| Error::io("SO_SNDTIMEO", e))?;
        let epoll = Epoll::new().map_err(|e| Error::io("epoll_create", e))?;
        let hangup = EpollEvent::new(EventSet::HANG_UP | EventSet::READ_HANG_UP, 0);
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), hangup).map_err(|e| Error::io("epoll_ctl", e))?;
        Ok(Self { stream, epoll })
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the other side is still there.
    pub fn is_connected(&self) -> bool {
        let mut events = [EpollEvent::default()];
        matches!(self.epoll.wait(0, &mut events), Ok(0))
    }

    /// Waits until the other side hangs up; false when it has not after `timeout`.
    pub fn wait_hangup(&self, timeout: Duration) -> bool {
        let mut events = [EpollEvent::default()];
        let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        matches!(self.epoll.wait(ms, &mut events), Ok(n) if n > 0)
    }

    /// Sends octets and descriptors exactly as given.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the other side is gone, [`Error::Io`] when it does not read.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        let sent = self
            .stream
            .send_with_fds(&[bytes], fds)
            .map_err(|e| Error::io("sendmsg", std::io::Error::from_raw_os_error(e.errno())))?;
        if sent == bytes.len() {
            return Ok(());
        }
        std::io::Write::write_all(&mut &self.stream, &bytes[sent..]).map_err(|e| Error::io("send", e))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// As for [`Wire::send_bytes`].
    pub fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        self.send_bytes(&message(request, FLAG_VERSION | flags, body), fds)
    }

    /// Takes the reply to `request`: its payload.
    ///
    /// # Errors
    /// When none comes in time, the other side hangs up, or the header does not fit.
    pub fn reply(&self, request: FrontendReq) -> Result<Vec<u8>, Error> {
        let name = name(request);
        let mut header = [0; HEADER_BYTES];
        self.read_exact(name, &mut header)?;
        let word = |i: usize| u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (code, flags, size) = (word(0), word(4), word(8));
        if code != u32::from(request) || flags & (0x3 | FLAG_REPLY) != FLAG_VERSION | FLAG_REPLY {
            return Err(Error::BadReply { request: name, why: format!("request {code}, flags {flags:#x}") });
        }
        if size > REPLY_BYTES_MAX {
            return Err(Error::BadReply { request: name, why: format!("{size} octets") });
        }
        let mut body = vec![0; size as usize];
        self.read_exact(name, &mut body)?;
        Ok(body)
    }

    /// Takes the reply to `request`: one 64-bit number.
    ///
    /// # Errors
    /// As for [`Wire::reply`], and when the payload is not 8 octets.
    pub fn reply_u64(&self, request: FrontendReq) -> Result<u64, Error> {
        let body = self.reply(request)?;
        let octets: [u8; 8] = body.try_into().map_err(|body: Vec<u8>| Error::BadReply {
            request: name(request),
            why: format!("{} octets of payload, not 8", body.len()),
        })?;
        Ok(u64::from_ne_bytes(octets))
    }

    fn read_exact(&self, what: &'static str, into: &mut [u8]) -> Result<(), Error> {
        (&self.stream).read_exact(into).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Error::timeout(
                format!("reply to {what}"),
                self.stream.read_timeout().ok().flatten().unwrap_or_default(),
            ),
            _ => Error::io("read of a reply", e),
        })
    }
}

/// The octets of one message.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(request.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend((body.len() as u32).to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// A payload made of 64-bit numbers.
pub fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// A payload made of 32-bit numbers.
pub fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// The specification's name of a request, without `VHOST_USER_`.
pub fn name(request: FrontendReq) -> &'static str {
    match request {
        FrontendReq::GET_FEATURES => "GET_FEATURES",
        FrontendReq::SET_FEATURES => "SET_FEATURES",
        FrontendReq::SET_OWNER => "SET_OWNER",
        FrontendReq::RESET_OWNER => "RESET_OWNER",
        FrontendReq::SET_MEM_TABLE => "SET_MEM_TABLE",
        FrontendReq::SET_LOG_BASE => "SET_LOG_BASE",
        FrontendReq::SET_VRING_NUM => "SET_VRING_NUM",
        FrontendReq::SET_VRING_ADDR => "SET_VRING_ADDR",
        FrontendReq::SET_VRING_BASE => "SET_VRING_BASE",
        FrontendReq::GET_VRING_BASE => "GET_VRING_BASE",
        FrontendReq::SET_VRING_KICK => "SET_VRING_KICK",
        FrontendReq::SET_VRING_CALL => "SET_VRING_CALL",
        FrontendReq::GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
        FrontendReq::SET_PROTOCOL_FEATURES => "SET_PROTOCOL_FEATURES",
        FrontendReq::GET_QUEUE_NUM => "GET_QUEUE_NUM",
        FrontendReq::SET_VRING_ENABLE => "SET_VRING_ENABLE",
        FrontendReq::GET_CONFIG => "GET_CONFIG",
        FrontendReq::RESET_DEVICE => "RESET_DEVICE",
        FrontendReq::GET_MAX_MEM_SLOTS => "GET_MAX_MEM_SLOTS",
        FrontendReq::ADD_MEM_REG => "ADD_MEM_REG",
        FrontendReq::REM_MEM_REG => "REM_MEM_REG",
        _ => "another request",
    }
}
