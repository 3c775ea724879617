//! How frames leave: as requests to a TAP device, many at a time to a packet socket, by AF_XDP, and large ones at once.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hostweave_switch::payload::Segment;
use hostweave_switch::stage::DropReason;

use super::{Event, Kind, Stream, Uring, WRITE, user_data};
use crate::direct;
use crate::limits::{DEVICE_IN_FLIGHT_MAX, FRAME_BUFFER, WRITE_BUFFERS};
use crate::sys::WritePool;
use crate::xdp_socket::{Kicked, XdpSocket, XdpSockets};

impl Uring {
    /// Queues one frame, which `fill` writes to a buffer and tells the length of.
    #[inline]
    pub(crate) fn write(
        &mut self,
        device: &Arc<Stream>,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<(), DropReason> {
        if device.kind == Kind::Socket {
            return self.send(device, fill);
        }
        if self.writes.as_ref().is_none_or(WritePool::is_empty)
            || device.in_flight.load(Ordering::Relaxed) >= DEVICE_IN_FLIGHT_MAX
        {
            self.make_room()?;
            if device.in_flight.load(Ordering::Relaxed) >= DEVICE_IN_FLIGHT_MAX {
                return Err(DropReason::DeviceQueueFull);
            }
        }
        let (Some(pool), Some(ring)) = (self.writes.as_mut(), self.ring.as_mut()) else {
            return Err(DropReason::Internal);
        };
        if pool.is_empty() {
            return Err(DropReason::DeviceQueueFull);
        }
        let buffer = pool.fill(fill).ok_or(DropReason::FrameTooLong)?;
        let index = usize::from(buffer.0);
        device.in_flight.fetch_add(1, Ordering::Relaxed);
        self.writing[index] = Some((Arc::clone(device), buffer.1));
        ring.push_write(device.fd.as_raw_fd(), pool, buffer, user_data(WRITE, index));
        Ok(())
    }

    /// Queues one frame for a packet socket.
    #[inline]
    fn send(&mut self, device: &Arc<Stream>, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> Result<(), DropReason> {
        let other = self.sending.as_ref().is_none_or(|sending| !Arc::ptr_eq(sending, device));
        if other || self.sends.is_full() || self.writes.as_ref().is_none_or(WritePool::is_empty) {
            self.make_room()?;
            self.sending = Some(Arc::clone(device));
        }
        let pool = self.writes.as_mut().ok_or(DropReason::Internal)?;
        if pool.is_empty() {
            return Err(DropReason::DeviceQueueFull);
        }
        let buffer = pool.fill(fill).ok_or(DropReason::FrameTooLong)?;
        self.sends.push(pool, buffer);
        Ok(())
    }

    #[inline]
    pub(super) fn flush_sends(&mut self) {
        if self.sends.is_empty() {
            return;
        }
        if let (Some(device), Some(pool)) = (self.sending.take(), self.writes.as_mut()) {
            let (port, overhead, events) = (device.port, device.overhead, &mut self.events);
            self.sends.flush(device.fd.as_fd(), pool, &mut |len| {
                events.push(Event::Refused { port, octets: len.saturating_sub(overhead) });
            });
        }
    }

    /// Queues one frame for an AF_XDP socket. `None` when this worker has none.
    #[inline]
    pub(crate) fn write_xdp(
        &mut self,
        sockets: &Arc<XdpSockets>,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<Result<(), DropReason>> {
        // Frames of one flow stay in order.
        self.flush_sends();
        let pushed = sockets.with(self.number, |socket| socket.push(fill))?;
        if !self.kicks_for(sockets) {
            // A host has one uplink: the other one is on its way out.
            self.kick_sends();
            self.kicking = Some(Arc::clone(sockets));
        }
        Some(pushed.ok_or(DropReason::DeviceQueueFull))
    }

    #[inline]
    fn kicks_for(&self, sockets: &Arc<XdpSockets>) -> bool {
        self.kicking.as_ref().is_some_and(|kicking| Arc::ptr_eq(kicking, sockets))
    }

    /// Has the kernel take what was queued by [`Uring::write_xdp`]. Whether a frame may leave another way now, without passing
    /// others.
    #[inline]
    pub(crate) fn settle_xdp(&mut self, sockets: &Arc<XdpSockets>) -> bool {
        if self.kicks_for(sockets) {
            self.kick_sends();
        }
        !self.kicks_for(sockets)
    }

    #[inline]
    pub(super) fn kick_sends(&mut self) {
        if let Some(sockets) = self.kicking.take()
            && sockets.with(self.number, XdpSocket::kick) == Some(Kicked::Part)
            // Who alone knows it does not keep it from whoever opens the interface next.
            && Arc::strong_count(&sockets) > 1
        {
            self.kicking = Some(sockets);
        }
    }

    /// Writes one large frame at once, behind those that are queued, from where it lies. `None` when it is in too many parts.
    pub(crate) fn write_direct(
        &mut self,
        device: &Arc<Stream>,
        head: &[u8],
        segments: impl Iterator<Item = Segment>,
    ) -> Option<Result<(), DropReason>> {
        self.submit();
        let written = direct::write(device.fd.as_fd(), device.kind == Kind::Socket, head, segments)?;
        Some(written.map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropReason::DeviceQueueFull,
            _ => DropReason::DeviceError,
        }))
    }

    /// Lets the kernel take the frames that wait. It nearly always takes all of them at once.
    #[cold]
    fn make_room(&mut self) -> Result<(), DropReason> {
        if self.writes.is_none() {
            self.writes = Some(WritePool::new(WRITE_BUFFERS, FRAME_BUFFER).map_err(|_| DropReason::Internal)?);
            self.writing.resize_with(usize::from(WRITE_BUFFERS), || None);
            return Ok(());
        }
        self.submit();
        self.reap();
        Ok(())
    }
}
