//! Netlink: how the kernel is asked for interfaces and addresses (rtnetlink(7)), and told what to hide from itself
//! (nf_tables) and which addresses and routes an interface of the host has. One small codec serves both: headers, attributes, acknowledgements.
//!
//! Everything here blocks for a moment. Not for workers.

pub mod configure;
pub mod hide;
pub mod interfaces;
pub mod offloads;
pub mod routing;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long the kernel may take to answer; it does so before `send` returns, nearly always.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Octets of answers that are read at once; the kernel makes no longer ones unasked.
const BUFFER: usize = 64 << 10;

/// Octets of a message header.
const HEADER: usize = 16;

/// A netlink socket.
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

/// One message of an answer: its type, and what stands behind its header.
pub(crate) struct Answer {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

impl Netlink {
    /// For one family of questions. `groups` are the news to listen for.
    pub(crate) fn open(family: SockProtocol, groups: u32, patience: Duration) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let patience = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&fd, ReceiveTimeout, &patience)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Asks, and collects answers until the kernel says that there are no more.
    pub(crate) fn ask(&mut self, message: Message) -> io::Result<Vec<Answer>> {
        self.ask_all(vec![message])
    }

    /// Sends messages as one datagram; each is answered or acknowledged.
    pub(crate) fn ask_all(&mut self, messages: Vec<Message>) -> io::Result<Vec<Answer>> {
        let mut octets = Vec::new();
        let first = self.sequence.wrapping_add(1);
        let mut open = 0;
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            open += usize::from(message.is_answered());
            octets.extend(message.finish(self.sequence));
        }
        send(self.fd.as_raw_fd(), &octets, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        while open > 0 {
            let len = self.receive(&mut buffer)?;
            for (header, body) in Parts::new(buffer.get(..len).unwrap_or_default()) {
                // An answer to a question whose patience ran out.
                if header.sequence.wrapping_sub(first) > self.sequence.wrapping_sub(first) {
                    continue;
                }
                match i32::from(header.kind) {
                    libc::NLMSG_ERROR => match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                        Some(0) => open -= 1,
                        Some(code) => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        None => return Err(io::ErrorKind::InvalidData.into()),
                    },
                    libc::NLMSG_DONE => open -= 1,
                    _ => answers.push(Answer { kind: header.kind, body: body.to_vec() }),
                }
                if open == 0 {
                    break;
                }
            }
        }
        Ok(answers)
    }

    /// Waits for news, whatever they are. `false` when there were none in time.
    pub(crate) fn wait(&self) -> io::Result<bool> {
        match self.receive(&mut vec![0; BUFFER]) {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(false),
                // So many that some were lost.
                Some(libc::ENOBUFS) => Ok(true),
                _ => Err(error),
            },
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty())?)
    }
}

/// A question to the kernel, being written.
pub(crate) struct Message {
    octets: Vec<u8>,
    flags: u16,
}

impl Message {
    /// `fixed` stands between the header and the attributes.
    pub(crate) fn new(kind: u16, flags: libc::c_int, fixed: &[u8]) -> Self {
        let mut octets = vec![0; HEADER];
        octets[4..6].copy_from_slice(&kind.to_ne_bytes());
        octets.extend_from_slice(fixed);
        octets.resize(octets.len().next_multiple_of(4), 0);
        Self { octets, flags: (libc::NLM_F_REQUEST | flags) as u16 }
    }

    fn is_answered(&self) -> bool {
        self.flags & (libc::NLM_F_ACK | libc::NLM_F_DUMP) as u16 != 0
    }

    /// Adds an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |message| message.octets.extend_from_slice(value))
    }

    /// Adds a text with its terminating zero.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nest(kind, |message| message.octets.extend(value.bytes().chain([0])))
    }

    /// Adds a number as nf_tables wants it.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that `fill` writes the content of.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.octets.len();
        self.octets.extend([0, 0]);
        self.octets.extend(kind.to_ne_bytes());
        fill(self);
        // Callers keep attributes below 64 KiB.
        let len = (self.octets.len() - start) as u16;
        self.octets[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.octets.len() as u32;
        self.octets[..4].copy_from_slice(&len.to_ne_bytes());
        self.octets[6..8].copy_from_slice(&self.flags.to_ne_bytes());
        self.octets[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.octets
    }
}

/// What a message's header says.
struct Header {
    kind: u16,
    sequence: u32,
}

/// The messages of a datagram.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn new(octets: &'a [u8]) -> Self {
        Self(octets)
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<HEADER>()?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = self.0.get(HEADER..len)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((Header { kind, sequence }, body))
    }
}

/// The attributes behind the fixed part of a message: type and value.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        // The upper two bits say how to read the value, which we know.
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    }
}

/// A socket for questions.
fn questions(family: SockProtocol) -> io::Result<Netlink> {
    Netlink::open(family, 0, ANSWER_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut message = Message::new(16, libc::NLM_F_ACK, &[1, 2, 3]);
        message.text(3, "eth0").number(4, 7).nest(0x8005, |inner| {
            inner.put(1, &[9; 5]);
        });
        assert!(message.is_answered());
        let octets = message.finish(5);
        let mut parts = Parts::new(&octets);
        let (header, body) = parts.next().unwrap();
        assert_eq!((header.kind, header.sequence, &body[..4]), (16, 5, &[1, 2, 3, 0][..]));
        let found: Vec<_> = Attributes(&body[4..]).collect();
        assert_eq!(found, [(3, &b"eth0\0"[..]), (4, &[0, 0, 0, 7]), (5, &[9, 0, 1, 0, 9, 9, 9, 9, 9, 0, 0, 0])]);
        assert!(parts.next().is_none());
    }

    #[test]
    fn octets_that_are_no_messages_end_the_reading() {
        for octets in [&[][..], &[0; 15], &[0; 16], &[17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Parts::new(octets).count(), 0, "{octets:?}");
        }
        for octets in [&[][..], &[4, 0, 0], &[3, 0, 0, 0], &[0; 4], &[9, 0, 1, 0, 1, 2, 3, 4]] {
            assert_eq!(Attributes(octets).count(), 0, "{octets:?}");
        }
    }
}
