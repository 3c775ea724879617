//! `SET_VRING_ENABLE` before `SET_FEATURES`.
//!
//! QEMU's virtio-net enables its first queue pair when the device is made, long before the guest's driver has acked
//! features (`hw/net/virtio-net.c`, `peer_attach`). The specification ties the message to an offered feature, but the
//! message layer to an acked one, and would end the connection. So the next header is looked at before the message
//! layer gets it, and exactly this message is taken here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};

use crate::backend::Backend;
use crate::sys;

/// Octets of a message header: request, flags, size of the payload.
const HEADER: usize = 12;
/// Octets of the payload: queue, and on or off.
const PAYLOAD: usize = 8;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Waits for the next message. True when it is one for [`handle`], false when it is the message layer's.
pub(crate) fn is_next(stream: &UnixStream) -> bool {
    let mut header = [0; HEADER];
    // Whatever is wrong here, the message layer meets it again and says so.
    if !sys::peek(stream, &mut header).is_ok_and(|count| count == HEADER) {
        return false;
    }
    let (request, flags, size) = (word(&header, 0), word(&header, 1), word(&header, 2));
    request == u32::from(FrontendReq::SET_VRING_ENABLE)
        && flags & (VERSION_MASK | REPLY) == VERSION
        && size as usize == PAYLOAD
}

/// Takes and answers the message that [`is_next`] saw.
pub(crate) fn handle(mut stream: &UnixStream, backend: &mut Backend) -> Result<()> {
    let mut message = [0; HEADER + PAYLOAD];
    stream.read_exact(&mut message).map_err(Error::SocketBroken)?;
    let enable = match word(&message, 4) {
        0 => false,
        1 => true,
        other => {
            let text = format!("the VMM sets a queue's enable state to {other}, which is neither 0 nor 1");
            return Err(Error::ReqHandlerError(io::Error::other(text)));
        }
    };
    backend.set_vring_enable(word(&message, 3), enable)?;
    if word(&message, 1) & NEED_REPLY != 0 && backend.acknowledges() {
        let header = [u32::from(FrontendReq::SET_VRING_ENABLE), VERSION | REPLY, PAYLOAD as u32, 0, 0];
        let octets: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
        stream.write_all(&octets).map_err(Error::SocketBroken)?;
    }
    Ok(())
}

/// The 32-bit word number `index`, in the host's order (vhost-user messages never leave it).
fn word(octets: &[u8], index: usize) -> u32 {
    let at = 4 * index;
    u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}
