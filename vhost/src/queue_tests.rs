//! Tests of [`super`]: queues between a driver written here and the worker's side, well-behaved and hostile.

use hostweave_switch::packet::Offload;
use hostweave_switch::packet::{Meta, virtio_net};

use super::*;
use crate::features::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use crate::testing::{ALL, BUFFERS, Driver, INDIRECT, MEMORY, NEXT, NO_OFFLOADS, SECOND, SIZE, WRITE};

const PORT: PortId = PortId(7);

/// A frame whose octets count up.
fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| at as u8).collect()
}

fn plain(frame: &[u8]) -> Vec<u8> {
    [&[0; 12], frame].concat()
}

/// One burst: packets as whole frames, drops, result.
fn receive(driver: &Driver) -> (Vec<Vec<u8>>, Vec<DropReason>, Result<usize, Fault>) {
    let mut burst = Burst::new();
    let mut drops = vec![];
    let mut queue = driver.pair.from_guest.try_claim().unwrap();
    let result = queue.receive(PORT, &mut burst, &mut |reason| drops.push(reason));
    let frames = burst
        .packets()
        .iter()
        .map(|packet| {
            assert_eq!(packet.meta.in_port, PORT);
            let mut out = vec![0xa5; packet.len()];
            assert_eq!(packet.copy_frame(&burst.segments, &mut out), Some(packet.len()));
            out
        })
        .collect();
    burst.clear();
    queue.complete();
    (frames, drops, result)
}

/// The fault that one burst ends with, told to the port as well.
fn fault(driver: &Driver) -> Fault {
    let (frames, drops, result) = receive(driver);
    assert!(frames.is_empty() && drops.is_empty());
    let fault = result.unwrap_err();
    assert_eq!(receive(driver).2, Err(fault), "it stays broken");
    assert_eq!(driver.sink.0.lock().unwrap()[..], [fault, fault], "told again after the first try failed");
    assert_eq!(receive(driver).2, Err(fault));
    assert_eq!(driver.sink.0.lock().unwrap().len(), 2, "and then no more");
    fault
}

#[test]
fn frames_of_all_sizes_in_one_buffer() {
    for len in [14, 15, 60, 64, 116, 117, 128, 1514, 9000, 65_549] {
        let mut driver = Driver::transmit(ALL);
        driver.write(BUFFERS, &plain(&frame(len)));
        driver.chain(3, &[(BUFFERS, 12 + len as u32)], 0);
        let (frames, drops, result) = receive(&driver);
        assert_eq!((frames, drops, result), (vec![frame(len)], vec![], Ok(1)));
        assert_eq!(driver.take_used(), [(3, 0)]);
    }
}

#[test]
fn chains_of_all_shapes_give_the_same_frame() {
    let shapes: &[&[u32]] =
        &[&[12, 300], &[6, 306], &[1; 30], &[12, 116, 184], &[128, 184], &[12, 0, 300], &[20, 92, 200]];
    for shape in shapes {
        let mut driver = Driver::transmit(ALL);
        let octets = plain(&frame(shape.iter().sum::<u32>() as usize - 12));
        let mut at = 0;
        let buffers: Vec<_> = shape
            .iter()
            .enumerate()
            .map(|(index, len)| {
                // Not next to each other.
                let address = BUFFERS + 0x1000 * index as u64;
                driver.write(address, &octets[at..at + *len as usize]);
                at += *len as usize;
                (address, *len)
            })
            .collect();
        driver.chain(0, &buffers, 0);
        let table = 0x18_0000;
        for (index, (address, len)) in buffers.iter().enumerate() {
            let more = if index + 1 < buffers.len() { NEXT } else { 0 };
            driver.descriptor_at(table, index as u16, *address, *len, more, index as u16 + 1);
        }
        driver.descriptor(100, table, 16 * buffers.len() as u32, INDIRECT, 0);
        driver.offer(100);
        let (frames, drops, result) = receive(&driver);
        assert_eq!(frames, [&octets[12..], &octets[12..]], "{shape:?}");
        assert_eq!((drops, result), (vec![], Ok(2)));
        assert_eq!(driver.take_used(), [(0, 0), (100, 0)]);
    }
}

#[test]
fn a_buffer_across_two_regions() {
    for before in [1, 12, 100, 128, 200] {
        let mut driver = Driver::transmit(ALL);
        let address = SECOND - before;
        driver.write(address, &plain(&frame(300)));
        driver.chain(0, &[(address, 312)], 0);
        assert_eq!(receive(&driver).0, [frame(300)]);
    }
}

#[test]
fn bursts_end_at_64_and_go_on() {
    let mut driver = Driver::transmit(ALL);
    for head in 0..100 {
        driver.write(BUFFERS + 0x100 * u64::from(head), &plain(&frame(64)));
        driver.chain(head, &[(BUFFERS + 0x100 * u64::from(head), 76)], 0);
    }
    assert_eq!(receive(&driver).2, Ok(64));
    assert_eq!(receive(&driver).2, Ok(36));
    assert_eq!(driver.take_used(), (0..100).map(|head| (head, 0)).collect::<Vec<_>>());
}

#[test]
fn chains_that_do_not_fit_the_arena_wait_or_are_dropped() {
    // 33 chains of one table with 128 buffers each: 4224 segments.
    let mut driver = Driver::transmit(ALL);
    driver.write(BUFFERS, &plain(&frame(64)));
    let table = 0x18_0000;
    driver.descriptor_at(table, 0, BUFFERS, 76, NEXT, 1);
    for index in 1..128 {
        driver.descriptor_at(table, index, BUFFERS, 1, if index == 127 { 0 } else { NEXT }, index + 1);
    }
    for head in 0..33 {
        driver.descriptor(head, table, 128 * 16, INDIRECT, 0);
        driver.offer(head);
    }
    let (frames, drops, result) = receive(&driver);
    assert_eq!((frames.len(), drops, result), (32, vec![], Ok(32)));
    assert_eq!(receive(&driver).2, Ok(1));

    // Each octet its own buffer, each descriptor of each table twice split by the region's end.
    for index in 0..1024 {
        driver.descriptor_at(table, index, BUFFERS, 1, if index == 1023 { 0 } else { NEXT }, index + 1);
    }
    driver.descriptor(0, table, 1024 * 16, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(receive(&driver).0[0].len(), 1012);
}

#[test]
fn frames_that_are_none_are_dropped_and_given_back() {
    let mut driver = Driver::transmit(ALL);
    driver.chain(0, &[(BUFFERS, 25)], 0);
    driver.chain(1, &[(BUFFERS, 0)], 0);
    driver.chain(2, &[(BUFFERS, 12 + 65_554)], 0);
    driver.chain(3, &[(BUFFERS, 40_000), (BUFFERS, 40_000)], 0);
    driver.chain(10, &[(BUFFERS, 12), (BUFFERS, 13)], 0);
    let (frames, drops, result) = receive(&driver);
    use DropReason::{FrameTooLong, FrameTooShort};
    assert!(frames.is_empty());
    assert_eq!(drops, [FrameTooShort, FrameTooShort, FrameTooLong, FrameTooLong, FrameTooShort]);
    assert_eq!(result, Ok(5));
    assert_eq!(driver.take_used(), [(0, 0), (1, 0), (2, 0), (3, 0), (10, 0)]);
}

#[test]
fn legacy_header_has_ten_octets() {
    let mut driver = Driver::transmit(0);
    driver.write(BUFFERS, &[&[0; 10][..], &frame(64)].concat());
    driver.chain(0, &[(BUFFERS, 74)], 0);
    driver.chain(1, &[(BUFFERS, 10), (BUFFERS + 10, 64)], 0);
    assert_eq!(receive(&driver).0, [frame(64), frame(64)]);
}

#[test]
fn offload_headers_are_checked() {
    let mut driver = Driver::transmit(ALL);
    let mut octets = plain(&frame(100));
    octets[0] = virtio_net::NEEDS_CSUM;
    octets[6] = 34;
    octets[8] = 16;
    driver.write(BUFFERS, &octets);
    driver.chain(0, &[(BUFFERS, 112)], 0);
    octets[6] = 85;
    driver.write(BUFFERS + 0x1000, &octets);
    driver.chain(1, &[(BUFFERS + 0x1000, 112)], 0);
    driver.chain(2, &[(BUFFERS + 0x1000, 12), (BUFFERS + 0x100c, 100)], 0);
    let mut burst = Burst::new();
    let mut drops = vec![];
    let mut queue = driver.pair.from_guest.try_claim().unwrap();
    assert_eq!(queue.receive(PORT, &mut burst, &mut |reason| drops.push(reason)), Ok(3));
    let offload = burst.packets()[0].meta.offload;
    assert_eq!((offload.flags, offload.csum_start, offload.csum_offset), (1, 34, 16));
    assert_eq!((burst.len(), drops), (1, vec![DropReason::ChecksumBad; 2]));
}

#[test]
fn a_disabled_queue_is_drained_and_dropped() {
    let mut driver = Driver::transmit(ALL);
    driver.chain(0, &[(BUFFERS, 76)], 0);
    driver.queue().control().state.enabled = false;
    let (frames, drops, result) = receive(&driver);
    assert_eq!((frames.len(), drops, result), (0, vec![DropReason::QueueDisabled], Ok(1)));
    assert!(!driver.pair.from_guest.is_running());
    assert_eq!(driver.take_used(), [(0, 0)]);
}

#[test]
fn hostile_available_index_jumps() {
    let driver = Driver::transmit(ALL);
    driver.set_available_index(SIZE + 1);
    assert_eq!(fault(&driver), Fault::AvailableIndex { index: 257, next: 0, ahead: 257, size: SIZE });
}

#[test]
fn hostile_available_index_goes_back() {
    let mut driver = Driver::new(ALL, true, 5);
    driver.chain(0, &[(BUFFERS, 76)], 0);
    assert_eq!(receive(&driver).2, Ok(1));
    driver.set_available_index(5);
    assert!(matches!(fault(&driver), Fault::AvailableIndex { index: 5, next: 6, ahead: 0xffff, .. }));
}

#[test]
fn hostile_head_out_of_range() {
    let mut driver = Driver::transmit(ALL);
    driver.offer(SIZE);
    assert_eq!(fault(&driver), Fault::HeadOutOfRange { head: SIZE, size: SIZE });
}

#[test]
fn hostile_next_out_of_range() {
    let mut driver = Driver::transmit(ALL);
    driver.descriptor(0, BUFFERS, 76, NEXT, SIZE);
    driver.offer(0);
    assert_eq!(fault(&driver), Fault::NextOutOfRange { next: SIZE, size: SIZE });
}

#[test]
fn hostile_loop() {
    let mut driver = Driver::transmit(ALL);
    driver.descriptor(0, BUFFERS, 0, NEXT, 1);
    driver.descriptor(1, BUFFERS, 1, NEXT, 0);
    driver.offer(0);
    assert_eq!(fault(&driver), Fault::ChainTooLong(SIZE));
}

#[test]
fn hostile_addresses() {
    for (address, len) in [(MEMORY, 76), (MEMORY - 75, 76), (u64::MAX, 76), (u64::MAX - 75, 76), (BUFFERS, u32::MAX)] {
        let mut driver = Driver::transmit(ALL);
        driver.chain(0, &[(address, len)], 0);
        assert_eq!(fault(&driver), Fault::OutsideMemory { address, len });
        let mut driver = Driver::transmit(ALL);
        driver.chain(0, &[(BUFFERS, 76), (address, len)], 0);
        assert_eq!(fault(&driver), Fault::OutsideMemory { address, len });
    }
}

#[test]
fn hostile_writable_buffer_in_transmit() {
    for buffers in [&[(BUFFERS, 76)][..], &[(BUFFERS, 12), (BUFFERS, 64)]] {
        let mut driver = Driver::transmit(ALL);
        driver.chain(0, buffers, WRITE);
        assert_eq!(fault(&driver), Fault::WritableInTransmit);
    }
}

#[test]
fn hostile_indirect_tables() {
    let table = 0x18_0000;
    let bad = |features: u64, len: u32, flags: u16, first: (u64, u32, u16, u16)| {
        let mut driver = Driver::transmit(features);
        driver.descriptor_at(table, 0, first.0, first.1, first.2, first.3);
        driver.descriptor(0, table, len, INDIRECT | flags, 1);
        driver.offer(0);
        fault(&driver)
    };
    let good = (BUFFERS, 76, 0, 0);
    assert_eq!(bad(ALL & !INDIRECT_DESC, 16, 0, good), Fault::IndirectNotNegotiated);
    assert_eq!(bad(ALL, 16, NEXT, good), Fault::IndirectWithNext);
    for len in [0, 8, 17, 1025 * 16, u32::MAX] {
        assert_eq!(bad(ALL, len, 0, good), Fault::IndirectLength(len));
    }
    assert_eq!(bad(ALL, 16, 0, (table, 16, INDIRECT, 0)), Fault::IndirectNested);
    assert_eq!(bad(ALL, 16, 0, (BUFFERS, 76, NEXT, 1)), Fault::NextOutOfRange { next: 1, size: 1 });
    assert_eq!(bad(ALL, 32, 0, (BUFFERS, 0, NEXT, 0)), Fault::ChainTooLong(2));
    assert!(matches!(bad(ALL, 16, 0, (MEMORY, 76, 0, 0)), Fault::OutsideMemory { .. }));
    let mut driver = Driver::transmit(ALL);
    driver.descriptor(0, u64::MAX - 15, 64, INDIRECT, 0);
    driver.offer(0);
    assert!(matches!(fault(&driver), Fault::OutsideMemory { .. }));
}

#[test]
fn good_frames_before_a_bad_chain_still_count() {
    let mut driver = Driver::transmit(ALL);
    driver.write(BUFFERS, &plain(&frame(64)));
    driver.chain(0, &[(BUFFERS, 76)], 0);
    driver.chain(1, &[(MEMORY, 76)], 0);
    let (frames, _, result) = receive(&driver);
    assert_eq!((frames.len(), result), (1, Ok(1)));
    assert_eq!(driver.take_used(), [(0, 0)]);
    assert!(matches!(receive(&driver).2, Err(Fault::OutsideMemory { .. })));
}

#[test]
fn memory_that_shrinks_breaks_the_ring_of_this_guest_only() {
    let (mut driver, other) = (Driver::transmit(ALL), Driver::transmit(ALL));
    driver.chain(0, &[(SECOND + 0x10_0000, 76)], 0);
    // The second region lies at the start of the file: cut the first one's end, which no ring uses.
    driver.file.set_len(0x10_0000).unwrap();
    let (.., result) = receive(&driver);
    // The rings themselves were cut off, and read as zero now.
    assert!(matches!(result, Ok(0) | Err(Fault::MemoryShrank)));
    assert_eq!(receive(&driver).2, Err(Fault::MemoryShrank));
    assert_eq!(receive(&other).2, Ok(0));
}

/// Transmits frames with this offload; what `transmit` said for each.
fn transmit(driver: &Driver, frames: &[&[u8]], offload: Offload) -> Vec<Result<u32, DropReason>> {
    let mut queue = driver.pair.to_guest.try_claim().unwrap();
    let mut burst = Burst::new();
    let mut results = vec![];
    for frame in frames {
        let meta = hostweave_switch::packet::Meta { offload, ..Default::default() };
        results.push(burst.with_frame(meta, frame, 100, |packet, arena| queue.transmit(packet, arena)));
    }
    queue.publish();
    results
}

#[test]
fn frames_into_one_buffer_each() {
    for features in [ALL, ALL & !crate::features::MRG_RXBUF] {
        let mut driver = Driver::receive(features);
        let lens = [14, 60, 64, 100, 101, 1514, 9000];
        for head in 0..lens.len() as u16 {
            driver.chain(head, &[(BUFFERS + 0x4000 * u64::from(head), 0x4000)], WRITE);
        }
        let frames: Vec<_> = lens.iter().map(|len| frame(*len)).collect();
        let refs: Vec<_> = frames.iter().map(Vec::as_slice).collect();
        assert_eq!(transmit(&driver, &refs, Offload::default()), vec![Ok(1); lens.len()]);
        let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        for (head, frame) in frames.iter().enumerate() {
            let got = driver.read(BUFFERS + 0x4000 * head as u64, frame.len() + 13);
            assert_eq!(got, [&header[..], frame, &[0]].concat());
        }
        let expected: Vec<_> = lens.iter().enumerate().map(|(head, len)| (head as u32, *len as u32 + 12)).collect();
        assert_eq!(driver.take_used(), expected);
    }
}

#[test]
fn mergeable_frames_span_chains_and_regions() {
    let mut driver = Driver::receive(ALL);
    let len = 1000;
    // Six chains: a direct pair, one across the regions' border, small ones.
    driver.chain(0, &[(BUFFERS, 11), (BUFFERS + 0x1000, 89)], WRITE);
    driver.chain(2, &[(SECOND - 50, 100)], WRITE);
    driver.chain(3, &[(BUFFERS + 0x2000, 500)], WRITE);
    driver.chain(4, &[(BUFFERS + 0x3000, 500)], WRITE);
    driver.chain(5, &[(BUFFERS + 0x4000, 2000)], WRITE);
    let frame = frame(len);
    assert_eq!(transmit(&driver, &[&frame, &frame], Offload::default()), [Ok(1), Ok(1)]);
    assert_eq!(driver.take_used(), [(0, 100), (2, 100), (3, 500), (4, 312), (5, 1012)]);
    let parts = [
        driver.read(BUFFERS, 11),
        driver.read(BUFFERS + 0x1000, 89),
        driver.read(SECOND - 50, 100),
        driver.read(BUFFERS + 0x2000, 500),
        driver.read(BUFFERS + 0x3000, 312),
    ];
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0];
    assert_eq!(parts.concat(), [&header[..], &frame].concat());
    assert_eq!(driver.read(BUFFERS + 0x4000, 1012), [&header[..10], &[1, 0], &frame].concat());
}

#[test]
fn a_full_ring_takes_nothing_of_a_frame() {
    let mut driver = Driver::receive(ALL);
    driver.chain(0, &[(BUFFERS, 500)], WRITE);
    driver.chain(1, &[(BUFFERS + 0x1000, 500)], WRITE);
    let (large, small) = (frame(1000), frame(400));
    let results = transmit(&driver, &[&large, &small, &small, &small], Offload::default());
    assert_eq!(results, [Err(DropReason::GuestRingFull), Ok(1), Ok(1), Err(DropReason::GuestRingFull)]);
    assert_eq!(driver.take_used(), [(0, 412), (1, 412)]);
}

#[test]
fn without_mergeable_buffers_one_chain_holds_the_frame() {
    let mut driver = Driver::receive(VERSION_1);
    driver.chain(0, &[(BUFFERS, 12), (BUFFERS + 0x1000, 1000)], WRITE);
    let (large, fits) = (frame(1001), frame(1000));
    let results = transmit(&driver, &[&large, &fits], Offload::default());
    assert_eq!(results, [Err(DropReason::GuestBufferTooSmall), Ok(1)]);
    assert_eq!(driver.take_used(), [(0, 1012)]);
    assert_eq!(driver.read(BUFFERS + 0x1000, 1000), fits);
}

#[test]
fn hostile_receive_chains() {
    let bad = |buffers: &[(u64, u32)], flags: u16| {
        let mut driver = Driver::receive(ALL);
        driver.chain(0, buffers, flags);
        assert_eq!(transmit(&driver, &[&frame(64)], Offload::default()), [Err(DropReason::GuestRingBroken)]);
        assert_eq!(transmit(&driver, &[&frame(64)], Offload::default()), [Err(DropReason::GuestRingBroken)]);
        assert!(driver.take_used().is_empty());
        driver.pair.to_guest.try_claim().unwrap().fault().unwrap()
    };
    assert_eq!(bad(&[(BUFFERS, 100)], 0), Fault::ReadOnlyInReceive);
    assert_eq!(bad(&[(BUFFERS, 0)], WRITE), Fault::ReceiveChainEmpty(0));
    assert_eq!(bad(&[(BUFFERS, 11)], WRITE), Fault::ReceiveChainEmpty(11));
    assert_eq!(bad(&[(MEMORY, 100)], WRITE), Fault::OutsideMemory { address: MEMORY, len: 76 });
    assert_eq!(bad(&[(BUFFERS, 50), (MEMORY - 5, 100)], WRITE), Fault::OutsideMemory { address: MEMORY - 5, len: 26 });
    assert_eq!(bad(&[(u64::MAX - 3, 100)], WRITE), Fault::OutsideMemory { address: u64::MAX - 3, len: 76 });
}

#[test]
fn stopped_and_disabled_queues_say_so() {
    let driver = Driver::receive(ALL);
    driver.queue().control().state.enabled = false;
    assert_eq!(transmit(&driver, &[&frame(64)], Offload::default()), [Err(DropReason::QueueDisabled)]);
    driver.queue().control().state.install(None);
    assert_eq!(transmit(&driver, &[&frame(64)], Offload::default()), [Err(DropReason::PortNotRunning)]);
}

#[test]
fn a_receiver_without_offloads_gets_complete_segments() {
    use crate::offload::tests::{gso_frame, verify};
    for v6 in [false, true] {
        for tcp in [false, true] {
            let (frame, offload) = gso_frame(v6, tcp, 3000, 1000);
            let mut driver = Driver::receive(NO_OFFLOADS);
            for head in 0..4 {
                driver.chain(head, &[(BUFFERS + 0x1000 * u64::from(head), 0x1000)], WRITE);
            }
            let mut queue = driver.pair.to_guest.try_claim().unwrap();
            let l3 = if v6 { hostweave_switch::packet::L3::V6 } else { hostweave_switch::packet::L3::V4 };
            let meta = hostweave_switch::packet::Meta { offload, l3, ..Default::default() };
            let sent = Burst::new().with_frame(meta, &frame, 100, |packet, arena| queue.transmit(packet, arena));
            assert_eq!(sent, Ok(3));
            queue.publish();
            drop(queue);
            for (head, len) in driver.take_used() {
                verify(&driver.read(BUFFERS + 0x1000 * u64::from(head) + 12, len as usize - 12));
            }
            // One buffer is left: one segment more, two are lost; then nothing fits.
            let mut queue = driver.pair.to_guest.try_claim().unwrap();
            let mut send = || Burst::new().with_frame(meta, &frame, 100, |packet, arena| queue.transmit(packet, arena));
            assert_eq!((send(), send()), (Ok(1), Err(DropReason::GuestRingFull)));
            assert_eq!((queue.take_lost(), queue.take_lost()), (2, 0));
            queue.publish();
            drop(queue);
            assert_eq!(driver.take_used().len(), 1);
        }
    }
}

#[test]
fn interrupts_follow_no_interrupt() {
    let mut driver = Driver::transmit(ALL);
    let complete = |driver: &mut Driver| {
        driver.chain(0, &[(BUFFERS, 76)], 0);
        let mut queue = driver.pair.from_guest.try_claim().unwrap();
        queue.receive(PORT, &mut Burst::new(), &mut |_| ()).unwrap();
        queue.complete().is_some()
    };
    driver.set_available_flags(1);
    assert!(complete(&mut driver), "the first after a start, whatever the driver says");
    assert!(!complete(&mut driver));
    driver.set_available_flags(0);
    assert!(complete(&mut driver));
    assert!(driver.pair.from_guest.try_claim().unwrap().complete().is_none(), "nothing new, no interrupt");
}

#[test]
fn interrupts_follow_the_used_event_over_the_wrap() {
    // Base 0xfffd: the index wraps after three.
    let mut driver = Driver::new(OFFERED_EVENT, true, 0xfffd);
    let complete = |driver: &mut Driver, event: u16| {
        driver.set_used_event(event);
        driver.chain(0, &[(BUFFERS, 76)], 0);
        let mut queue = driver.pair.from_guest.try_claim().unwrap();
        queue.receive(PORT, &mut Burst::new(), &mut |_| ()).unwrap();
        queue.complete().is_some()
    };
    assert!(complete(&mut driver, 5), "the first after a start");
    assert!(complete(&mut driver, 0xfffe), "0xfffe is done now");
    assert!(!complete(&mut driver, 0), "0xffff is done, 0 is awaited");
    assert!(complete(&mut driver, 0), "0 is done");
    assert!(!complete(&mut driver, 0), "passed long ago");
    assert_eq!(driver.take_used().len(), 5);
}

const OFFERED_EVENT: u64 = ALL | EVENT_IDX;

#[test]
fn notifications_are_asked_for_and_looked_at_again() {
    for features in [ALL, OFFERED_EVENT] {
        let mut driver = Driver::transmit(features);
        let event_idx = features & EVENT_IDX != 0;
        driver.pair.from_guest.try_claim().unwrap().disable_notifications();
        assert_eq!(
            if event_idx { driver.available_event() } else { driver.used_flags() },
            if event_idx { 0xffff } else { 1 }
        );
        assert!(!driver.pair.from_guest.try_claim().unwrap().enable_notifications());
        assert_eq!((driver.used_flags(), driver.available_event()), (0, 0));
        driver.chain(0, &[(BUFFERS, 76)], 0);
        assert!(driver.pair.from_guest.try_claim().unwrap().enable_notifications(), "work arrived meanwhile");
    }
}

#[test]
fn every_write_is_logged() {
    for features in [ALL, OFFERED_EVENT] {
        let mut driver = Driver::receive(features);
        driver.start_log();
        assert_eq!(driver.logged(), [8], "the used ring, once");
        driver.chain(0, &[(BUFFERS + 0x7ff8, 100)], WRITE);
        driver.chain(1, &[(SECOND - 10, 20)], WRITE);
        driver.chain(2, &[(SECOND + 0x9000, 100)], WRITE);
        driver.write(BUFFERS, &vec![0xa5; (MEMORY - BUFFERS) as usize]);
        let before = driver.read(0, MEMORY as usize);
        assert_eq!(transmit(&driver, &[&frame(64), &frame(64)], Offload::default()), [Ok(1), Ok(1)]);
        let after = driver.read(0, MEMORY as usize);
        let changed: Vec<u64> =
            (0..MEMORY / 4096).filter(|page| page_of(&before, *page) != page_of(&after, *page)).collect();
        let logged = driver.logged();
        assert!(changed.len() >= 5, "{changed:?}");
        assert!(changed.iter().all(|page| logged.contains(page)), "{changed:?} {logged:?}");
        assert_eq!(driver.take_used().len(), 3);
    }
    let mut driver = Driver::transmit(ALL);
    driver.start_log();
    driver.logged();
    driver.chain(0, &[(BUFFERS, 76)], 0);
    receive(&driver).2.unwrap();
    assert_eq!(driver.logged(), [8], "the used ring");
    driver.pair.from_guest.try_claim().unwrap().disable_notifications();
    assert_eq!(driver.logged(), [8], "the flags");
    receive(&driver).2.unwrap();
    assert!(driver.logged().is_empty());
}

fn page_of(memory: &[u8], page: u64) -> &[u8] {
    &memory[page as usize * 4096..][..4096]
}

#[test]
fn a_ring_takes_over_what_a_dead_backend_held() {
    // It had taken up to 10, but given back only up to 7.
    let driver = Driver::new(ALL, true, 7);
    driver.install(ALL, 10);
    assert_eq!(driver.queue().control().state.ring.as_ref().unwrap().base(), 7);
    // A used index that has nothing to do with the base.
    driver.install(ALL, 5_000);
    assert_eq!(driver.queue().control().state.ring.as_ref().unwrap().base(), 5_000);
}

#[test]
fn memory_exchange_keeps_the_ring() {
    let mut driver = Driver::transmit(ALL);
    driver.write(BUFFERS, &plain(&frame(64)));
    driver.chain(0, &[(BUFFERS, 76)], 0);
    assert_eq!(receive(&driver).0.len(), 1);
    let (memory, addresses) = (driver.memory(), driver.addresses());
    driver.queue().control().state.ring.as_mut().unwrap().relocate(memory, &addresses).unwrap();
    driver.chain(1, &[(BUFFERS, 76)], 0);
    assert_eq!(receive(&driver).0, [frame(64)]);
    assert_eq!(driver.take_used(), [(0, 0), (1, 0)]);
}

/// A chain of all descriptors of the ring, `len` octets each.
fn longest_chain(driver: &Driver, len: u32, flags: u16) {
    for index in 0..SIZE {
        let more = if index + 1 < SIZE { NEXT } else { 0 };
        driver.descriptor(index, BUFFERS + u64::from(len) * u64::from(index), len, flags | more, index + 1);
    }
}

#[test]
fn long_chains_do_not_keep_a_worker() {
    let visits = usize::from(DESCRIPTORS_MAX as u16 / SIZE);
    // Frames, frames that are too short, and none at all: every descriptor that is read counts.
    for (len, drops_expected) in [(1, 0), (0, visits)] {
        let mut driver = Driver::transmit(ALL);
        longest_chain(&driver, len, 0);
        (0..40).for_each(|_| driver.offer(0));
        let (frames, drops, result) = receive(&driver);
        assert_eq!((drops.len(), result), (drops_expected, Ok(visits)));
        assert_eq!(frames.len(), visits - drops_expected);
        assert_eq!((receive(&driver).2, receive(&driver).2), (Ok(visits), Ok(40 - 2 * visits)), "the rest comes later");
    }
    // A chain that is longer than any frame is not followed to its end, which here is none.
    let mut driver = Driver::transmit(ALL);
    driver.descriptor(0, BUFFERS, 0x8000, NEXT, 0);
    (0..64).for_each(|_| driver.offer(0));
    let (_, drops, result) = receive(&driver);
    assert_eq!((drops.len(), result), (64, Ok(64)));
    assert!(drops.iter().all(|reason| *reason == DropReason::FrameTooLong));
}

#[test]
fn huge_frames_do_not_keep_a_worker() {
    for shape in [&[65_561][..], &[12, 65_549]] {
        let mut driver = Driver::transmit(ALL);
        let buffers: Vec<_> = shape.iter().map(|len| (BUFFERS, *len)).collect();
        (0..64).for_each(|_| driver.chain(0, &buffers, 0));
        let taken = OCTETS_MAX.div_ceil(65_549);
        assert_eq!(receive(&driver).2, Ok(taken));
        assert_eq!(receive(&driver).2, Ok(taken));
    }
}

#[test]
fn receive_buffers_of_one_octet_do_not_keep_a_worker() {
    let mut driver = Driver::receive(ALL);
    longest_chain(&driver, 1, WRITE);
    (0..SIZE).for_each(|_| driver.offer(0));
    let send = |len: usize| {
        let mut burst = Burst::new();
        let mut queue = driver.pair.to_guest.try_claim().unwrap();
        let mut write = |len: usize| {
            burst.with_frame(Meta::default(), &frame(len), HEAD_FIRST, |packet, arena| queue.transmit(packet, arena))
        };
        let result = (write(len), write(60));
        queue.publish();
        result
    };
    assert_eq!(send(60), (Ok(1), Ok(1)));
    assert_eq!(
        send(60_000),
        (Err(DropReason::GuestRingFull), Err(DropReason::GuestRingFull)),
        "the claim's share is used up"
    );
    assert_eq!(send(60), (Ok(1), Ok(1)), "the next claim has another");
    assert_eq!(driver.take_used().len(), 4);
    assert_eq!(driver.sink.0.lock().unwrap().len(), 0);
}

#[test]
fn a_ring_that_starts_in_memory_that_shrank() {
    let driver = Driver::transmit(ALL);
    driver.file.set_len(0).unwrap();
    // Its memory was mapped before, as when a VMM truncates between two messages.
    let memory = driver.queue().control().state.ring.take().unwrap().memory().memory().clone();
    let ring = SplitRing::new(memory, &driver.addresses(), SIZE, 0, Default::default()).unwrap();
    driver.queue().control().state.install(Some(ring));
    assert_eq!(driver.sink.0.lock().unwrap()[..], [Fault::MemoryShrank]);
    assert_eq!(receive(&driver).2, Err(Fault::MemoryShrank));
}
