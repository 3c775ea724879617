//! Drivers that break the rules of rings, headers and memory.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::{Expect, RingAttack};
use crate::Error;
use crate::nic::Nic;
use crate::queue::{HEADER_BYTES, VnetHeader};
use crate::ring::{DESC_BYTES, Descriptor};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// How long the memory under the switch is changed.
const FLICKER: Duration = Duration::from_millis(200);

macro_rules! attacks {
    ($($(#[doc = $sentence:literal])* fn $name:ident($nic:ident, $frame:ident) -> $expect:ident $($traffic:ident)? $body:block)*) => {
        $($(#[doc = $sentence])*
        ///
        /// # Errors
        /// When guest memory or a descriptor of ours fails, never because of the backend's reaction.
        pub fn $name($nic: &mut Nic, $frame: &[u8]) -> Result<(), Error> $body)*

        /// All of them.
        pub const RING_ATTACKS: &[RingAttack] = &[$(RingAttack {
            name: stringify!($name),
            sentence: concat!($($sentence),*),
            expect: Expect::$expect,
            needs_traffic: attacks!(@traffic $($traffic)?),
            run: $name,
        }),*];
    };
    (@traffic) => { false };
    (@traffic on_traffic) => { true };
}

attacks! {
    /// A chain whose last descriptor points back to the first.
    fn descriptor_loop(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let desc = |next| Descriptor { addr: gpa, len: 64, flags: NEXT, next };
        offer(nic, &[desc(1), desc(2), desc(0)])
    }

    /// A descriptor that points to itself.
    fn self_loop(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        offer(nic, &[Descriptor { addr: gpa, len: 64, flags: NEXT, next: 0 }])
    }

    /// A chain that goes on behind the end of the table.
    fn next_out_of_range(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let next = nic.config.ring_size;
        offer(nic, &[Descriptor { addr: gpa, len: 64, flags: NEXT, next }])
    }

    /// A head behind the end of the table.
    fn head_out_of_range(nic, _frame) -> Stops {
        let head = nic.config.ring_size + 7;
        nic.pairs[0].tx.ring.offer_raw(head);
        push(nic)
    }

    /// The available index runs ahead by more than the ring has.
    fn avail_jump(nic, _frame) -> Stops {
        let by = nic.config.ring_size + 1;
        nic.pairs[0].tx.ring.jump_avail(by);
        push(nic)
    }

    /// The available index runs ahead by half its range.
    fn avail_jump_far(nic, _frame) -> Stops {
        nic.pairs[0].tx.ring.jump_avail(0x8000);
        push(nic)
    }

    /// The available index goes back by one.
    fn avail_goes_back(nic, _frame) -> Stops {
        nic.pairs[0].tx.ring.jump_avail(u16::MAX);
        push(nic)
    }

    /// One head is offered four times at once.
    fn same_head_four_times(nic, frame) -> Survives {
        let gpa = good_slot(nic, frame)?;
        let len = (HEADER_BYTES + frame.len()) as u32;
        nic.pairs[0].tx.ring.write_descriptor(0, Descriptor { addr: gpa, len, flags: 0, next: 0 });
        (0..4).for_each(|_| nic.pairs[0].tx.ring.offer_raw(0));
        push(nic)
    }

    /// A chain of one descriptor with no octets.
    fn zero_length_chain(nic, frame) -> Survives {
        let addr = good_slot(nic, frame)?;
        offer(nic, &[Descriptor { addr, len: 0, flags: 0, next: 0 }])
    }

    /// A good frame with an empty descriptor between header and payload.
    fn zero_length_between(nic, frame) -> Survives {
        let gpa = good_slot(nic, frame)?;
        let header = Descriptor { addr: gpa, len: HEADER_BYTES as u32, flags: NEXT, next: 1 };
        let empty = Descriptor { addr: gpa, len: 0, flags: NEXT, next: 2 };
        let rest = Descriptor { addr: gpa + HEADER_BYTES as u64, len: frame.len() as u32, flags: 0, next: 0 };
        offer(nic, &[header, empty, rest])
    }

    /// A chain as long as the ring, all of it empty descriptors.
    fn all_descriptors_empty(nic, frame) -> Survives {
        let addr = good_slot(nic, frame)?;
        let size = nic.config.ring_size;
        let table: Vec<_> = (0..size)
            .map(|i| Descriptor { addr, len: 0, flags: if i + 1 < size { NEXT } else { 0 }, next: i + 1 })
            .collect();
        offer(nic, &table)
    }

    /// An indirect table inside an indirect table.
    fn nested_indirect(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let table = nic.pairs[0].tx.slot_gpa(1);
        let inner = Descriptor { addr: gpa, len: DESC_BYTES as u32, flags: INDIRECT, next: 0 };
        indirect(nic, table, &[inner], DESC_BYTES as u32, INDIRECT)
    }

    /// An indirect table whose length is not a multiple of 16.
    fn indirect_odd_length(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let table = nic.pairs[0].tx.slot_gpa(1);
        indirect(nic, table, &[Descriptor { addr: gpa, len: 64, flags: 0, next: 0 }], 17, INDIRECT)
    }

    /// An indirect table without entries.
    fn indirect_empty(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let table = nic.pairs[0].tx.slot_gpa(1);
        indirect(nic, table, &[Descriptor { addr: gpa, len: 64, flags: 0, next: 0 }], 0, INDIRECT)
    }

    /// A descriptor that is both indirect and chained.
    fn indirect_with_next(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let table = nic.pairs[0].tx.slot_gpa(1);
        let entry = Descriptor { addr: gpa, len: 64, flags: 0, next: 0 };
        indirect(nic, table, &[entry], DESC_BYTES as u32, INDIRECT | NEXT)
    }

    /// An indirect table that is not in guest memory.
    fn indirect_outside_memory(nic, _frame) -> Stops {
        let addr = nic.memory.end() + 0x1000;
        offer(nic, &[Descriptor { addr, len: 64, flags: INDIRECT, next: 0 }])
    }

    /// An indirect table whose only entry points to itself.
    fn indirect_loop(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let table = nic.pairs[0].tx.slot_gpa(1);
        let entry = Descriptor { addr: gpa, len: 64, flags: NEXT, next: 0 };
        indirect(nic, table, &[entry], DESC_BYTES as u32, INDIRECT)
    }

    /// An indirect chain that goes on behind its table.
    fn indirect_next_out_of_range(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let table = nic.pairs[0].tx.slot_gpa(1);
        let entry = Descriptor { addr: gpa, len: 64, flags: NEXT, next: 1 };
        indirect(nic, table, &[entry], DESC_BYTES as u32, INDIRECT)
    }

    /// An indirect table of 4 GiB.
    fn indirect_giant(nic, frame) -> Stops {
        let gpa = good_slot(nic, frame)?;
        let table = nic.pairs[0].tx.slot_gpa(1);
        let entry = Descriptor { addr: gpa, len: 64, flags: NEXT, next: 0 };
        indirect(nic, table, &[entry], 0xffff_fff0, INDIRECT)
    }

    /// A buffer that is not in guest memory.
    fn address_outside_memory(nic, _frame) -> Stops {
        let addr = nic.memory.end() + 0x1000;
        offer(nic, &[Descriptor { addr, len: 64, flags: 0, next: 0 }])
    }

    /// A buffer whose end wraps around the address space.
    fn address_wraps(nic, _frame) -> Stops {
        offer(nic, &[Descriptor { addr: u64::MAX - 15, len: 64, flags: 0, next: 0 }])
    }

    /// A buffer that begins in guest memory and ends behind it.
    fn crosses_memory_end(nic, _frame) -> Stops {
        let addr = nic.memory.end() - 32;
        offer(nic, &[Descriptor { addr, len: 64, flags: 0, next: 0 }])
    }

    /// A buffer of 4 GiB.
    fn giant_length(nic, frame) -> Stops {
        let addr = good_slot(nic, frame)?;
        offer(nic, &[Descriptor { addr, len: u32::MAX, flags: 0, next: 0 }])
    }

    /// Lengths whose sum wraps in 32 bits.
    fn lengths_wrap(nic, frame) -> Stops {
        let addr = good_slot(nic, frame)?;
        let desc = |next, flags| Descriptor { addr, len: 0x8000_0000, flags, next };
        offer(nic, &[desc(1, NEXT), desc(2, NEXT), desc(0, 0)])
    }

    /// A good frame whose header lies in three descriptors, which is allowed.
    fn header_split(nic, frame) -> Survives {
        let gpa = good_slot(nic, frame)?;
        let cut = |offset: u64, len: usize, next: u16| {
            let flags = if next == 0 { 0 } else { NEXT };
            Descriptor { addr: gpa + offset, len: len as u32, flags, next }
        };
        offer(nic, &[cut(0, 3, 1), cut(3, 4, 2), cut(7, HEADER_BYTES - 7 + frame.len(), 0)])
    }

    /// A good frame in descriptors of one octet each, as many as the ring has.
    fn one_octet_descriptors(nic, frame) -> Survives {
        let gpa = good_slot(nic, frame)?;
        let count = (HEADER_BYTES + frame.len()).min(usize::from(nic.config.ring_size)) as u16;
        let table: Vec<_> = (0..count)
            .map(|i| {
                let flags = if i + 1 < count { NEXT } else { 0 };
                Descriptor { addr: gpa + u64::from(i), len: 1, flags, next: i + 1 }
            })
            .collect();
        offer(nic, &table)
    }

    /// A transmit chain of buffers that only the device may write.
    fn tx_writable_descriptor(nic, frame) -> Stops {
        let addr = good_slot(nic, frame)?;
        let len = (HEADER_BYTES + frame.len()) as u32;
        offer(nic, &[Descriptor { addr, len, flags: WRITE, next: 0 }])
    }

    /// A transmit chain with a device-writable buffer in front of a readable one.
    fn tx_writable_before_readable(nic, frame) -> Stops {
        let addr = good_slot(nic, frame)?;
        let first = Descriptor { addr, len: HEADER_BYTES as u32, flags: WRITE | NEXT, next: 1 };
        let second = Descriptor { addr: addr + HEADER_BYTES as u64, len: frame.len() as u32, flags: 0, next: 0 };
        offer(nic, &[first, second])
    }

    /// A transmit chain too short for its header.
    fn header_too_short(nic, frame) -> Survives {
        let addr = good_slot(nic, frame)?;
        offer(nic, &[Descriptor { addr, len: 5, flags: 0, next: 0 }])
    }

    /// A transmit chain with a header and no frame.
    fn header_without_frame(nic, frame) -> Survives {
        let addr = good_slot(nic, frame)?;
        offer(nic, &[Descriptor { addr, len: HEADER_BYTES as u32, flags: 0, next: 0 }])
    }

    /// A frame of 13 octets.
    fn runt_frame(nic, frame) -> Drops {
        send(nic, VnetHeader::default(), &frame[..frame.len().min(13)])
    }

    /// A frame far longer than 64 KiB, out of one buffer used again and again.
    fn giant_frame(nic, frame) -> Survives {
        let addr = good_slot(nic, frame)?;
        let count = nic.config.ring_size.min(128);
        let table: Vec<_> = (0..count)
            .map(|i| Descriptor { addr, len: 1500, flags: if i + 1 < count { NEXT } else { 0 }, next: i + 1 })
            .collect();
        offer(nic, &table)
    }

    /// A frame to be cut into segments of no octets.
    fn gso_size_zero(nic, frame) -> Drops {
        send(nic, VnetHeader { gso_type: gso_type(frame), gso_size: 0, ..partial(frame) }, frame)
    }

    /// A frame to be cut into segments of one octet.
    fn gso_size_one(nic, frame) -> Drops {
        send(nic, VnetHeader { gso_type: gso_type(frame), gso_size: 1, ..partial(frame) }, &long(frame))
    }

    /// A segment size larger than any frame.
    fn gso_size_giant(nic, frame) -> Survives {
        send(nic, VnetHeader { gso_type: gso_type(frame), gso_size: u16::MAX, ..partial(frame) }, frame)
    }

    /// A segmentation type that does not exist.
    fn gso_type_unknown(nic, frame) -> Drops {
        send(nic, VnetHeader { gso_type: 0x7e, gso_size: 1000, ..partial(frame) }, frame)
    }

    /// TCP segmentation of the other IP version.
    fn gso_type_wrong_version(nic, frame) -> Drops {
        let gso_type = if gso_type(frame) == VnetHeader::GSO_TCPV4 { VnetHeader::GSO_TCPV6 } else { VnetHeader::GSO_TCPV4 };
        send(nic, VnetHeader { gso_type, gso_size: 1000, ..partial(frame) }, &long(frame))
    }

    /// TCP segmentation without a partial checksum.
    fn gso_without_checksum(nic, frame) -> Drops {
        let header = VnetHeader { gso_type: gso_type(frame), gso_size: 1000, ..VnetHeader::default() };
        send(nic, header, &long(frame))
    }

    /// Headers said to be longer than the frame.
    fn hdr_len_beyond_frame(nic, frame) -> Survives {
        let header = VnetHeader { gso_type: gso_type(frame), gso_size: 1000, hdr_len: u16::MAX, ..partial(frame) };
        send(nic, header, &long(frame))
    }

    /// A checksum that begins behind the frame.
    fn csum_start_beyond_frame(nic, frame) -> Drops {
        send(nic, VnetHeader { csum_start: u16::MAX, csum_offset: 6, ..partial(frame) }, frame)
    }

    /// A checksum to be stored behind the frame.
    fn csum_offset_beyond_frame(nic, frame) -> Drops {
        send(nic, VnetHeader { csum_start: 34, csum_offset: u16::MAX, ..partial(frame) }, frame)
    }

    /// A checksum to be stored in the frame's last octet and the one behind it.
    fn csum_straddles_the_end(nic, frame) -> Drops {
        let csum_offset = (frame.len() as u16).wrapping_sub(14 + 1);
        send(nic, VnetHeader { csum_start: 14, csum_offset, ..partial(frame) }, frame)
    }

    /// A checksum over the Ethernet header.
    fn csum_over_ethernet(nic, frame) -> Drops {
        send(nic, VnetHeader { csum_start: 0, csum_offset: 0, ..partial(frame) }, frame)
    }

    /// A transmitted frame that claims to lie in 65,535 receive buffers.
    fn num_buffers_on_tx(nic, frame) -> Survives {
        send(nic, VnetHeader { num_buffers: u16::MAX, ..VnetHeader::default() }, frame)
    }

    /// Every bit of the header's flags set.
    fn all_header_flags(nic, frame) -> Survives {
        send(nic, VnetHeader { flags: 0xff, ..VnetHeader::default() }, frame)
    }

    /// Receive buffers that the device may not write.
    fn rx_readable_descriptor(nic, _frame) -> Stops on_traffic {
        rewrite_rx(nic, |d| d.flags = 0)
    }

    /// Receive buffers outside guest memory.
    fn rx_outside_memory(nic, _frame) -> Stops on_traffic {
        let end = nic.memory.end();
        rewrite_rx(nic, |d| d.addr = end + 0x1000)
    }

    /// Receive buffers that end behind guest memory.
    fn rx_crosses_memory_end(nic, _frame) -> Stops on_traffic {
        let end = nic.memory.end();
        rewrite_rx(nic, |d| (d.addr, d.len) = (end - 16, 4096))
    }

    /// Receive chains that loop.
    fn rx_descriptor_loop(nic, _frame) -> Stops on_traffic {
        rewrite_rx(nic, |d| (d.len, d.flags, d.next) = (1, WRITE | NEXT, 0))
    }

    /// Receive buffers of one octet.
    fn rx_short_descriptor(nic, _frame) -> Survives on_traffic {
        rewrite_rx(nic, |d| d.len = 1)
    }

    /// Receive buffers of no octets.
    fn rx_zero_length(nic, _frame) -> Survives on_traffic {
        rewrite_rx(nic, |d| d.len = 0)
    }

    /// Receive buffers that lie in the used ring itself.
    fn rx_into_used_ring(nic, _frame) -> Survives on_traffic {
        let used = nic.pairs[0].rx.ring.layout().used;
        rewrite_rx(nic, |d| d.addr = used)
    }

    /// Receive buffers that lie in the descriptor table itself.
    fn rx_into_descriptor_table(nic, _frame) -> Survives on_traffic {
        let desc = nic.pairs[0].rx.ring.layout().desc;
        rewrite_rx(nic, |d| d.addr = desc)
    }

    /// The receive ring's available index runs ahead.
    fn rx_avail_jump(nic, _frame) -> Stops on_traffic {
        let by = nic.config.ring_size + 1;
        nic.pairs[0].rx.ring.jump_avail(by);
        nic.pairs[0].rx.ring.publish();
        kick(nic)
    }

    /// All files behind guest memory become empty while rings run; the caller must touch no guest memory afterwards.
    fn memory_shrinks(nic, frame) -> Stops {
        let len = (HEADER_BYTES + frame.len()) as u32;
        let addr = good_slot(nic, frame)?;
        nic.pairs[0].tx.ring.write_descriptor(0, Descriptor { addr, len, flags: 0, next: 0 });
        for region in nic.memory.regions() {
            region.file().set_len(0).map_err(|e| Error::io("ftruncate", e))?;
        }
        kick(nic)
    }

    /// Header and frame change all the time while the switch reads them.
    fn memory_changes_underneath(nic, frame) -> Survives {
        let gpa = good_slot(nic, frame)?;
        let good = [&VnetHeader::default().to_bytes(), frame].concat();
        let len = good.len() as u32;
        nic.pairs[0].tx.ring.write_descriptor(0, Descriptor { addr: gpa, len, flags: 0, next: 0 });
        let end = Instant::now() + FLICKER;
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        while Instant::now() < end {
            nic.pairs[0].tx.ring.offer_raw(0);
            push(nic)?;
            for _ in 0..64 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (seed >> 33) % good.len() as u64;
                nic.memory.write(gpa + at, &[(seed >> 24) as u8])?;
            }
            nic.memory.write(gpa, &good)?;
        }
        Ok(())
    }

    /// Descriptors change all the time while the switch walks them.
    fn descriptors_change_underneath(nic, frame) -> Survives {
        let gpa = good_slot(nic, frame)?;
        let good = Descriptor { addr: gpa, len: (HEADER_BYTES + frame.len()) as u32, flags: 0, next: 0 };
        let bad = Descriptor { addr: u64::MAX - 7, len: u32::MAX, flags: NEXT | INDIRECT, next: u16::MAX };
        let end = Instant::now() + FLICKER;
        while Instant::now() < end {
            nic.pairs[0].tx.ring.write_descriptor(0, good);
            nic.pairs[0].tx.ring.offer_raw(0);
            push(nic)?;
            (0..32).for_each(|i| nic.pairs[0].tx.ring.write_descriptor(0, if i % 2 == 0 { bad } else { good }));
        }
        Ok(())
    }

    /// The receive ring is never read again: the driver takes nothing back and posts nothing.
    fn never_reads_rx(nic, _frame) -> Survives on_traffic {
        nic.pairs[0].rx.ring.set_interrupts(false);
        Ok(())
    }

    /// Half a million kicks with nothing in the ring.
    fn kick_storm(nic, _frame) -> Survives {
        (0..500_000).try_for_each(|_| kick(nic))
    }

    /// The kick eventfd's counter is brought to its limit, so that a write blocks or fails.
    fn kick_counter_full(nic, _frame) -> Survives {
        // The counter may hold something already: then the limit is reached all the more.
        let _ = nic.pairs[0].tx_kick().write(u64::MAX - 1);
        Ok(())
    }

    /// The call eventfd's counter is brought to its limit, so that the backend cannot signal.
    fn call_counter_full(nic, _frame) -> Survives on_traffic {
        let _ = nic.pairs[0].rx_call().write(u64::MAX - 1);
        nic.pairs[0].rx.ring.set_interrupts(true);
        Ok(())
    }

    /// The connection is cut while the rings are full of work.
    fn hangs_up_under_load(nic, frame) -> Survives {
        let gpa = good_slot(nic, frame)?;
        let len = (HEADER_BYTES + frame.len()) as u32;
        let size = nic.config.ring_size;
        (0..size).for_each(|i| {
            nic.pairs[0].tx.ring.write_descriptor(i, Descriptor { addr: gpa, len, flags: 0, next: 0 });
            nic.pairs[0].tx.ring.offer_raw(i);
        });
        push(nic)?;
        nic.frontend.wire().stream().shutdown(std::net::Shutdown::Both).map_err(|e| Error::io("shutdown", e))
    }
}

/// Puts a good header and `frame` into the first transmit slot; returns where.
fn good_slot(nic: &Nic, frame: &[u8]) -> Result<u64, Error> {
    let gpa = nic.pairs[0].tx.slot_gpa(0);
    nic.memory.write(gpa, &[&VnetHeader::default().to_bytes(), frame].concat())?;
    Ok(gpa)
}

/// Writes `table` from descriptor 0 on and offers descriptor 0 to the transmit queue.
fn offer(nic: &mut Nic, table: &[Descriptor]) -> Result<(), Error> {
    let ring = &mut nic.pairs[0].tx.ring;
    for (i, descriptor) in table.iter().enumerate() {
        ring.write_descriptor(i as u16, *descriptor);
    }
    ring.offer_raw(0);
    push(nic)
}

/// Offers an indirect table at `table`, with the length and the flags given.
fn indirect(nic: &mut Nic, table: u64, entries: &[Descriptor], len: u32, flags: u16) -> Result<(), Error> {
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_bytes()).collect();
    nic.memory.write(table, &bytes)?;
    offer(nic, &[Descriptor { addr: table, len, flags, next: 0 }])
}

fn push(nic: &mut Nic) -> Result<(), Error> {
    nic.pairs[0].tx.ring.publish();
    kick(nic)
}

/// Kicks whether the device wants it or not.
fn kick(nic: &mut Nic) -> Result<(), Error> {
    nic.kick_all()
}

/// A good chain with any header.
fn send(nic: &mut Nic, header: VnetHeader, frame: &[u8]) -> Result<(), Error> {
    nic.send_frame(&header, frame)?;
    kick(nic)
}

/// Changes every posted receive descriptor.
fn rewrite_rx(nic: &mut Nic, change: impl Fn(&mut Descriptor)) -> Result<(), Error> {
    let layout = nic.pairs[0].rx.ring.layout();
    for i in 0..layout.size {
        let mut bytes = [0; DESC_BYTES];
        nic.memory.read(layout.desc + u64::from(i) * DESC_BYTES as u64, &mut bytes)?;
        let mut descriptor = Descriptor::from_bytes(&bytes);
        change(&mut descriptor);
        nic.pairs[0].rx.ring.write_descriptor(i, descriptor);
    }
    Ok(())
}

fn gso_type(frame: &[u8]) -> u8 {
    if frame.get(12..14) == Some(&[0x86, 0xdd]) { VnetHeader::GSO_TCPV6 } else { VnetHeader::GSO_TCPV4 }
}

/// The header that a partial checksum of `frame` would have.
fn partial(frame: &[u8]) -> VnetHeader {
    crate::frames::partial_checksum(&mut frame.to_vec()).unwrap_or_default()
}

/// The frame with zeros behind it, so that there is something to cut.
fn long(frame: &[u8]) -> Vec<u8> {
    let mut long = frame.to_vec();
    long.resize(frame.len().max(1400), 0);
    long
}
