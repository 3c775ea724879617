//! `tx`: packets of one burst into their destinations.
//!
//! A destination queue is claimed once per burst, with one try; its used index is published once, when the burst is
//! over. A queue that somebody else holds right now does not make anybody wait: the packet goes to the stash.

use arrayvec::ArrayVec;
use hostweave_switch::counters::PortCounters;
use hostweave_switch::limits::BURST;
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::rate::RateLimits;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;
use hostweave_uplink::uring::Uring;
use hostweave_vhost::ToGuest;

use crate::fabric::plane::{Output, Plane, VhostOutput};

/// A destination queue, claimed for this burst.
struct Open<'p> {
    port: PortId,
    pair: u16,
    /// The guest runs no other queue.
    single: bool,
    queue: ToGuest<'p>,
    counters: &'p PortCounters,
    limits: Option<&'p RateLimits>,
    frames: u64,
    octets: u64,
}

impl Open<'_> {
    #[inline(always)]
    fn transmit(&mut self, packet: &Packet, arena: &[Segment]) -> Result<(), DropReason> {
        let frames = self.queue.transmit(packet, arena)?;
        self.frames += u64::from(frames.max(1));
        self.octets += packet.len() as u64;
        if frames > 1 {
            self.counters.extra_segments.add(u64::from(frames - 1));
        }
        Ok(())
    }
}

/// Deliveries of one burst.
pub struct Delivery<'p> {
    plane: &'p Plane,
    worker: usize,
    /// About how many packets there are.
    burst_len: usize,
    /// When, for rate limits.
    ticks: u64,
    open: ArrayVec<Open<'p>, BURST>,
}

/// What became of a packet that was handed to a destination.
pub enum Outcome {
    /// Written (or queued to the device).
    Done,
    /// Its queue is held by another thread right now.
    Busy,
    /// It ends here.
    Dropped(DropReason),
}

impl<'p> Delivery<'p> {
    /// Nothing claimed yet.
    #[inline]
    pub fn new(plane: &'p Plane, worker: usize, burst_len: usize, ticks: u64) -> Self {
        Self { plane, worker, burst_len, ticks, open: ArrayVec::new() }
    }

    /// Hands a packet to `to`. A drop is counted here; a busy packet is the caller's to keep.
    #[inline(always)]
    pub fn deliver(&mut self, uring: &mut Uring, packet: &Packet, arena: &[Segment], to: PortId) -> Outcome {
        // A burst goes mostly to one place.
        if let Some(last) = self.open.last_mut()
            && last.port == to
            && last.single
        {
            if let Some(limits) = last.limits
                && !within(limits, self.plane, packet, to, self.ticks)
            {
                return self.dropped(to, DropReason::RateLimited);
            }
            return match last.transmit(packet, arena) {
                Ok(()) => Outcome::Done,
                Err(reason) => self.dropped(to, reason),
            };
        }
        self.deliver_elsewhere(uring, packet, arena, to)
    }

    /// To another place than the packet before, or one with several queues.
    #[inline(never)]
    fn deliver_elsewhere(&mut self, uring: &mut Uring, packet: &Packet, arena: &[Segment], to: PortId) -> Outcome {
        let outcome = match self.plane.output(to) {
            Some(Output::Vhost(output)) => self.vhost(output, packet, arena, to),
            Some(Output::Device(_)) if !self.may_receive(packet, to) => Outcome::Dropped(DropReason::RateLimited),
            Some(Output::Device(device)) => self.count_sent(to, packet, device.transmit(packet, arena, uring)),
            Some(Output::Internal(port)) => self.count_sent(to, packet, port.deliver(packet, arena)),
            None => Outcome::Dropped(DropReason::PortNotRunning),
        };
        match outcome {
            Outcome::Dropped(reason) => self.dropped(to, reason),
            outcome => outcome,
        }
    }

    /// Counts a drop.
    #[cold]
    fn dropped(&self, to: PortId, reason: DropReason) -> Outcome {
        if let Some(counters) = counters(self.plane, to, self.worker) {
            counters.tx_dropped.add(reason, 1);
        }
        Outcome::Dropped(reason)
    }

    fn vhost(&mut self, output: &'p VhostOutput, packet: &Packet, arena: &[Segment], to: PortId) -> Outcome {
        let Some((pair, queue)) = output.queue(packet.meta.queue, packet.meta.hash) else {
            return Outcome::Dropped(DropReason::PortNotRunning);
        };
        let found = self.open.iter().position(|open| open.port == to && open.pair == pair);
        let index = match found {
            Some(index) => index,
            None => {
                let Some(counters) = counters(self.plane, to, self.worker) else {
                    return Outcome::Dropped(DropReason::Internal);
                };
                let Some(mut queue) = queue.try_claim() else {
                    return Outcome::Busy;
                };
                // A burst has at most `BURST` packets, so at most as many destinations; retries of the stash finish
                // before they open more.
                if self.open.is_full() {
                    return Outcome::Busy;
                }
                queue.prefetch(self.burst_len);
                let single = output.is_single();
                let limits = self.plane.tables.port(to).and_then(|port| port.limits.as_deref());
                self.open.push(Open { port: to, pair, single, queue, counters, limits, frames: 0, octets: 0 });
                self.open.len() - 1
            }
        };
        if let Some(limits) = self.open[index].limits
            && !within(limits, self.plane, packet, to, self.ticks)
        {
            return Outcome::Dropped(DropReason::RateLimited);
        }
        match self.open[index].transmit(packet, arena) {
            Ok(()) => Outcome::Done,
            Err(reason) => Outcome::Dropped(reason),
        }
    }

    /// Whether the receiver may receive another packet now.
    fn may_receive(&self, packet: &Packet, to: PortId) -> bool {
        let limits = self.plane.tables.port(to).and_then(|port| port.limits.as_deref());
        limits.is_none_or(|limits| within(limits, self.plane, packet, to, self.ticks))
    }

    /// Counts a frame that a device or a service took.
    fn count_sent(&self, to: PortId, packet: &Packet, result: Result<(), DropReason>) -> Outcome {
        if let Err(reason) = result {
            return Outcome::Dropped(reason);
        }
        if let Some(counters) = counters(self.plane, to, self.worker) {
            counters.transmitted.add(1);
            counters.transmitted_bytes.add(packet.len() as u64);
        }
        Outcome::Done
    }

    /// Publishes what was written and signals the guests that asked for it. Claims end here.
    #[inline]
    pub fn finish(mut self, uring: &mut Uring) {
        for mut open in self.open.drain(..) {
            open.counters.transmitted.add(open.frames);
            open.counters.transmitted_bytes.add(open.octets);
            let lost = u64::from(open.queue.take_lost());
            if lost > 0 {
                open.counters.extra_segments.add(lost);
                open.counters.tx_dropped.add(DropReason::GuestRingFull, lost);
            }
            if let Some(call) = open.queue.publish() {
                open.counters.calls.add(1);
                uring.signal(call.into());
            }
        }
    }
}

/// Whether a port may receive another packet now. What the switch itself says to it is free: nobody starves a guest of its
/// address or its router.
#[inline(never)]
fn within(limits: &RateLimits, plane: &Plane, packet: &Packet, to: PortId, ticks: u64) -> bool {
    if packet.meta.in_port == to || packet.meta.in_port == PortId::NONE {
        return true;
    }
    let uplink = plane.tables.uplink.as_ref().is_some_and(|uplink| uplink.port == packet.meta.in_port);
    limits.ingress(packet, uplink, ticks)
}

/// This worker's counters of a port.
#[inline]
pub fn counters(plane: &Plane, port: PortId, worker: usize) -> Option<&PortCounters> {
    plane.tables.port(port)?.counters.get(worker)
}
