//! A packet socket on an interface of the host (packet(7)): the uplink's frames, beside the kernel's own use of it.
//!
//! It receives each frame that comes in, before any filter of the kernel sees it, and none that goes out. A filter in
//! the kernel lets only frames with our VLAN tag pass, or, without one, those without a tag: the kernel takes the tag
//! out of the frame before we see it, so nobody could tell afterwards.
//!
//! Several of them make a *group* (`PACKET_FANOUT`): each frame is received by one, chosen by a program in the kernel from where it is
//! going, not from where it comes from (`steering.rs`).
//!
//! Frames that leave go through the interface's queueing discipline. To go past it (`PACKET_QDISC_BYPASS`) would be
//! cheaper, but there the kernel drops each GSO frame that the interface cannot segment itself, and whatever does not
//! fit its ring at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use libc::sock_filter;

use crate::Error;
use crate::limits::SOCKET_BUFFER;
use crate::xdp_socket::XdpSockets;
use crate::{steering, sys};

#[cfg(target_endian = "big")]
compile_error!(
    "packet sockets have virtio-net headers in the byte order of the host, and this crate reads little endian"
);

/// A packet socket that is bound to an interface, for [`crate::device::Device::packet`].
#[derive(Debug)]
pub struct PacketSocket {
    pub(crate) fd: OwnedFd,
    /// Another one, which transmits: the kernel tells whoever waits for frames of each one that has left.
    pub(crate) sender: OwnedFd,
    pub(crate) name: String,
    pub(crate) vlan: Option<u16>,
    pub(crate) uso: bool,
    pub(crate) xdp: Option<Arc<XdpSockets>>,
}

impl PacketSocket {
    /// Opens `count` of them, at least one, on the interface with this name and index, which must be set up: a group. With `vlan` (1 to
    /// 4094) they receive and send only frames with that tag.
    ///
    /// # Errors
    /// When the interface is gone or down, or capabilities are missing.
    pub fn open_group(name: &str, index: u32, vlan: Option<u16>, count: usize) -> Result<Vec<Self>, Error> {
        let mut sockets: Vec<Self> = Vec::with_capacity(count);
        sockets.push(Self::open(name, index, vlan)?);
        if count == 1 {
            return Ok(sockets);
        }
        let failed = |action: &'static str| {
            move |source| Error::Interface { name: name.to_owned(), action: action.to_owned(), source }
        };
        let first = sockets[0].fd.as_fd();
        sys::set_number(first, libc::SOL_PACKET, libc::PACKET_FANOUT, fanout(0, PACKET_FANOUT_FLAG_UNIQUEID))
            .map_err(failed("begin a group of packet sockets"))?;
        let group = sys::number(first, libc::SOL_PACKET, libc::PACKET_FANOUT).map_err(failed("ask for its group"))?;
        sys::steer(first, &mut steering::of_sockets()).map_err(failed("steer frames to workers"))?;
        for _ in 1..count {
            let socket = Self::open(name, index, vlan)?;
            sys::set_number(socket.fd.as_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, fanout(group, 0))
                .map_err(failed("join a group of packet sockets"))?;
            sockets.push(socket);
        }
        Ok(sockets)
    }

    /// The same, with AF_XDP sockets by which small frames leave.
    ///
    /// # Errors
    /// As above, and when the kernel has no AF_XDP, or somebody else uses it on this interface, or did until a moment ago: try
    /// again later.
    pub fn open_group_with_xdp(name: &str, index: u32, vlan: Option<u16>, count: usize) -> Result<Vec<Self>, Error> {
        let action = "open an AF_XDP socket (it needs CAP_NET_RAW, a kernel with CONFIG_XDP_SOCKETS and an interface \
                      that no other program uses so; driver afPacket does without)";
        let failed = |source| Error::Interface { name: name.to_owned(), action: action.to_owned(), source };
        let xdp = match XdpSockets::open(name, index, count) {
            // The way without always works.
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => None,
            opened => Some(Arc::new(opened.map_err(failed)?)),
        };
        let mut sockets = Self::open_group(name, index, vlan, count)?;
        sockets.iter_mut().for_each(|socket| socket.xdp.clone_from(&xdp));
        Ok(sockets)
    }

    fn open(name: &str, index: u32, vlan: Option<u16>) -> Result<Self, Error> {
        let failed = |action: &'static str| {
            move |source| Error::Interface { name: name.to_owned(), action: action.to_owned(), source }
        };
        let fd = sys::packet_socket().map_err(failed("open a packet socket"))?;
        let socket = fd.as_fd();
        let set = |option, value| sys::set_number(socket, libc::SOL_PACKET, option, value);
        set(libc::PACKET_VNET_HDR, 1).map_err(failed("ask for offload headers"))?;
        set(libc::PACKET_IGNORE_OUTGOING, 1).map_err(failed("ignore outgoing frames"))?;
        sys::attach_filter(socket, &mut tag_filter(vlan)).map_err(failed("filter VLAN tags"))?;
        make_room(socket, libc::SO_RCVBUFFORCE).map_err(failed("make room for frames"))?;
        // Neighbour solicitations for addresses of ours are sent to groups that the kernel has not joined.
        sys::join(socket, index, libc::PACKET_MR_ALLMULTI).map_err(failed("receive all groups"))?;
        if vlan.is_some() {
            // Some interfaces drop tags in hardware for which the kernel has no device, unless they take everything.
            sys::join(socket, index, libc::PACKET_MR_PROMISC).map_err(failed("receive its VLAN"))?;
        }
        sys::bind_packet(socket, index, true).map_err(failed("bind a packet socket"))?;
        let sender = sender(index).map_err(failed("open a packet socket"))?;
        Ok(Self { fd, sender, name: name.to_owned(), vlan, uso: kernel_takes_uso(), xdp: None })
    }
}

/// A packet socket that only transmits.
fn sender(index: u32) -> io::Result<OwnedFd> {
    let fd = sys::packet_socket()?;
    sys::set_number(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    make_room(fd.as_fd(), libc::SO_SNDBUFFORCE)?;
    sys::bind_packet(fd.as_fd(), index, false)?;
    Ok(fd)
}

fn make_room(socket: BorrowedFd<'_>, option: i32) -> io::Result<()> {
    sys::set_number(socket, libc::SOL_SOCKET, option, SOCKET_BUFFER as i32)
}

/// What `PACKET_FANOUT` takes: the group in its lower half, how it is divided in its upper one.
fn fanout(group: i32, flags: i32) -> i32 {
    (group & 0xffff) | (PACKET_FANOUT_CBPF | flags) << 16
}

/// `linux/if_packet.h`.
const PACKET_FANOUT_CBPF: i32 = 6;
const PACKET_FANOUT_FLAG_UNIQUEID: i32 = 0x2000;

/// Whether the kernel knows UDP segments in virtio-net headers (Linux 6.2).
fn kernel_takes_uso() -> bool {
    let Ok(system) = nix::sys::utsname::uname() else { return false };
    let release = system.release().to_string_lossy().into_owned();
    release_at_least(&release, (6, 2))
}

fn release_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return false };
    (major, minor) >= wanted
}

/// A classic BPF program that accepts frames with this tag only, or without any. A tag of VLAN 0 is none: it only says
/// the priority (IEEE 802.1Q §6.9.1).
fn tag_filter(vlan: Option<u16>) -> Vec<sock_filter> {
    let load = |what: libc::c_int| sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: (libc::SKF_AD_OFF + what) as u32,
    };
    let equals = |value: u32, jt: u8, jf: u8| sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k: value,
    };
    let identifier =
        sock_filter { code: (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, jt: 0, jf: 0, k: VLAN_MASK };
    let end = |len: u32| sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: len };
    let (accept, drop) = (end(u32::MAX), end(0));
    match vlan {
        None => vec![
            load(libc::SKF_AD_VLAN_TAG_PRESENT),
            equals(0, 3, 0),
            load(libc::SKF_AD_VLAN_TAG),
            identifier,
            equals(0, 0, 1),
            accept,
            drop,
        ],
        Some(vlan) => vec![
            load(libc::SKF_AD_VLAN_TAG_PRESENT),
            equals(0, 6, 0),
            load(SKF_AD_VLAN_TPID),
            equals(ETHERTYPE_VLAN, 0, 4),
            load(libc::SKF_AD_VLAN_TAG),
            identifier,
            equals(u32::from(vlan), 0, 1),
            accept,
            drop,
        ],
    }
}

const VLAN_MASK: u32 = 0xfff;
const ETHERTYPE_VLAN: u32 = 0x8100;
/// `linux/filter.h`.
const SKF_AD_VLAN_TPID: libc::c_int = 60;

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says about a frame with this tag (protocol, identifier and priority), by a small interpreter.
    fn run(program: &[sock_filter], tag: Option<(u32, u32)>) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                0x20 => {
                    a = match step.k.wrapping_sub(libc::SKF_AD_OFF as u32) {
                        44 => tag.map_or(0, |(_, tag)| tag),
                        48 => u32::from(tag.is_some()),
                        60 => tag.map_or(0, |(protocol, _)| protocol),
                        other => panic!("{other}"),
                    }
                }
                0x15 => at += usize::from(if a == step.k { step.jt } else { step.jf }),
                0x54 => a &= step.k,
                0x06 => return step.k,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn only_frames_of_the_vlan_pass() {
        for (vlan, tag, passes) in [
            (None, None, true),
            (None, Some((0x8100, 0)), true),
            (None, Some((0x8100, 0xe000)), true),
            (None, Some((0x8100, 7)), false),
            (Some(7), None, false),
            (Some(7), Some((0x8100, 7)), true),
            (Some(7), Some((0x8100, 0xe007)), true),
            (Some(7), Some((0x8100, 8)), false),
            (Some(7), Some((0x8100, 0)), false),
            (Some(7), Some((0x88a8, 7)), false),
        ] {
            assert_eq!(run(&tag_filter(vlan), tag) != 0, passes, "{vlan:?} {tag:?}");
        }
    }

    #[test]
    fn releases_are_compared_by_number() {
        for (release, wanted) in [
            ("6.2.0", true),
            ("6.18.44-fc", true),
            ("10.0", true),
            ("6.1.999", false),
            ("5.15.0-91", false),
            ("", false),
        ] {
            assert_eq!(release_at_least(release, (6, 2)), wanted, "{release}");
        }
    }
}
