//! The ring as a judge: a device that keeps the rules passes, one that breaks any of them is found out.
//!
//! The device here is a few lines that read and write guest memory by address; it shares no code with the driver.
#![allow(clippy::unwrap_used)]

use hostweave_guest::memory::{GuestMemory, MemoryConfig};
use hostweave_guest::queue::{RxQueue, SlotLayout, TxQueue};
use hostweave_guest::ring::{Piece, RingFeatures, RingLayout, SplitRing};
use hostweave_guest::{Error, Split, Violation, VnetHeader, features};

const SIZE: u16 = 8;
const BASE: u64 = 0x10_0000;

/// A device on one ring.
struct Device<'a> {
    memory: &'a GuestMemory,
    layout: RingLayout,
    used: u16,
}

impl Device<'_> {
    fn bytes<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(gpa, &mut bytes).unwrap();
        bytes
    }

    fn avail_idx(&self) -> u16 {
        u16::from_le_bytes(self.bytes(self.layout.avail + 2))
    }

    fn head(&self, index: u16) -> u16 {
        u16::from_le_bytes(self.bytes(self.layout.avail + 4 + 2 * u64::from(index % SIZE)))
    }

    /// (address, length, flags, next).
    fn descriptor(&self, table: u64, index: u16) -> (u64, u32, u16, u16) {
        let raw = u128::from_le_bytes(self.bytes(table + 16 * u64::from(index)));
        (raw as u64, (raw >> 64) as u32, (raw >> 96) as u16, (raw >> 112) as u16)
    }

    /// All octets of a chain, direct or indirect.
    fn read_chain(&self, head: u16) -> Vec<u8> {
        let (mut table, mut index) = (self.layout.desc, head);
        let (addr, _, flags, _) = self.descriptor(table, index);
        if flags & 4 != 0 {
            (table, index) = (addr, 0);
        }
        let mut octets = Vec::new();
        loop {
            let (addr, len, flags, next) = self.descriptor(table, index);
            let mut part = vec![0; len as usize];
            self.memory.read(addr, &mut part).unwrap();
            octets.extend(part);
            if flags & 1 == 0 {
                return octets;
            }
            index = next;
        }
    }

    fn put_used(&mut self, id: u32, len: u32) {
        let at = self.layout.used + 4 + 8 * u64::from(self.used % SIZE);
        self.memory.write(at, &id.to_le_bytes()).unwrap();
        self.memory.write(at + 4, &len.to_le_bytes()).unwrap();
        self.used = self.used.wrapping_add(1);
    }

    fn publish(&self) {
        self.memory.write(self.layout.used + 2, &self.used.to_le_bytes()).unwrap();
    }
}

type Breach = fn(&mut Device<'_>);

fn memory() -> GuestMemory {
    GuestMemory::new(&MemoryConfig { gpa: BASE, ..MemoryConfig::default() }, 1 << 20).unwrap()
}

fn ring(memory: &GuestMemory, features: RingFeatures) -> (SplitRing, Device<'_>) {
    let layout = RingLayout::at(SIZE, BASE);
    (SplitRing::new(memory, layout, features).unwrap(), Device { memory, layout, used: 0 })
}

fn buffer(i: u16) -> [Piece; 1] {
    [Piece { gpa: BASE + 0x8000 + 64 * u64::from(i), len: 64, writable: true }]
}

#[test]
fn many_turns_of_an_honest_device() {
    let memory = memory();
    let (mut ring, mut device) = ring(&memory, RingFeatures::default());
    for round in 0..20_000u32 {
        assert!(ring.add(&buffer((round % 8) as u16), round));
        ring.publish();
        let head = device.head(device.avail_idx().wrapping_sub(1));
        device.put_used(u32::from(head), round % 64);
        device.publish();
        let used = ring.pop().unwrap();
        assert_eq!((used.token, used.len), (round, round % 64));
        assert!(ring.pop().is_none());
    }
    assert_eq!(ring.violations.count, 0);
    assert_eq!(ring.free_count(), usize::from(SIZE));
}

#[test]
fn chains_may_come_back_in_any_order() {
    let memory = memory();
    let (mut ring, mut device) = ring(&memory, RingFeatures::default());
    for token in 0..4 {
        assert!(ring.add(&[buffer(0), buffer(1)].concat(), token));
    }
    assert!(!ring.add(&buffer(0), 9), "no descriptor is left");
    ring.publish();
    for index in [2, 0, 3, 1] {
        device.put_used(u32::from(device.head(index)), 128);
    }
    device.publish();
    let tokens: Vec<u32> = std::iter::from_fn(|| ring.pop()).map(|used| used.token).collect();
    assert_eq!(tokens, [2, 0, 3, 1]);
    assert_eq!((ring.free_count(), ring.violations.count), (8, 0));
}

#[test]
fn in_order_one_element_may_stand_for_a_batch() {
    let memory = memory();
    let (mut ring, mut device) = ring(&memory, RingFeatures { in_order: true, ..RingFeatures::default() });
    (0..5).for_each(|token| assert!(ring.add(&buffer(0), token)));
    ring.publish();
    device.put_used(u32::from(device.head(3)), 10);
    device.used += 3;
    device.publish();
    let lens: Vec<(u32, u32)> = std::iter::from_fn(|| ring.pop()).map(|used| (used.token, used.len)).collect();
    assert_eq!(lens, [(0, 64), (1, 64), (2, 64), (3, 10)]);
    assert_eq!((ring.outstanding(), ring.violations.count), (1, 0));
}

#[test]
fn every_breach_is_found() {
    let cases: [(&str, Breach, Violation); 5] = [
        ("unknown id", |d| d.put_used(77, 0), Violation::UsedId { id: 77 }),
        ("idle id", |d| d.put_used(5, 0), Violation::UsedId { id: 5 }),
        ("id twice", |d| (0..2).for_each(|_| d.put_used(0, 0)), Violation::UsedId { id: 0 }),
        ("too long", |d| d.put_used(0, 65), Violation::UsedLen { len: 65, room: 64 }),
        ("index ahead", |d| d.used = 3, Violation::UsedIndex { index: 3, ahead: 3, outstanding: 2 }),
    ];
    for (name, breach, expected) in cases {
        let memory = memory();
        let (mut ring, mut device) = ring(&memory, RingFeatures::default());
        assert!(ring.add(&buffer(0), 0) && ring.add(&buffer(1), 1));
        ring.publish();
        breach(&mut device);
        device.publish();
        while ring.pop().is_some() {}
        assert_eq!(ring.violations.list, [expected], "{name}");
    }
    let memory = memory();
    let (mut ring, mut device) = ring(&memory, RingFeatures { in_order: true, ..RingFeatures::default() });
    assert!(ring.add(&buffer(0), 0) && ring.add(&buffer(1), 1));
    ring.publish();
    device.put_used(1, 0);
    device.publish();
    assert!(ring.pop().is_none());
    assert_eq!(ring.violations.list, [Violation::OutOfOrder { id: 1, expected: 0 }]);
}

#[test]
fn kicks_are_exactly_what_the_device_asked_for() {
    let memory = memory();
    let (mut ring, device) = ring(&memory, RingFeatures { event_idx: true, ..RingFeatures::default() });
    let event = device.layout.used + 4 + 8 * u64::from(SIZE);
    let kick = |ring: &mut SplitRing, wish: u16| {
        device.memory.write(event, &wish.to_le_bytes()).unwrap();
        assert!(ring.add(&buffer(0), 0));
        ring.publish()
    };
    assert!(kick(&mut ring, 0), "index 0 to 1 passes event 0");
    assert!(!kick(&mut ring, 0), "index 1 to 2 does not");
    assert!(kick(&mut ring, 2));
    assert!(!kick(&mut ring, 100));
    assert!(!ring.publish(), "nothing new, nothing to tell");
}

/// Each way to cut a frame gives the device the same octets.
#[test]
fn any_split_carries_the_same_frame() {
    let frame: Vec<u8> = (0..200).collect();
    for split in [Split::whole(), Split::header_apart(), Split::every(40), Split::every(7).indirect()] {
        let memory = memory();
        let layout = RingLayout::at(SIZE, BASE);
        let slots = SlotLayout::at(layout.end(), 4, 256, true);
        let mut tx = TxQueue::new(&memory, layout, slots, split.clone(), features::VERSION_1).unwrap();
        let header = VnetHeader { flags: 1, csum_start: 34, csum_offset: 6, ..VnetHeader::default() };
        tx.push(&memory, &header, &frame).unwrap();
        tx.ring.publish();
        let device = Device { memory: &memory, layout, used: 0 };
        let octets = device.read_chain(device.head(0));
        assert_eq!(octets[..12], header.to_bytes(), "{split:?}");
        assert_eq!(octets[12..], frame, "{split:?}");
        assert!(matches!(tx.push(&memory, &header, &[0; 300]), Err(Error::FrameTooLong { .. })));
    }
}

/// Writes `parts` into consecutive receive buffers and returns what the driver makes of them.
fn receive(wish: u64, parts: &[&[u8]]) -> (Option<(VnetHeader, Vec<u8>)>, Vec<Violation>) {
    let memory = memory();
    let layout = RingLayout::at(SIZE, BASE);
    let slots = SlotLayout::at(layout.end(), 8, 128, false);
    let mut rx = RxQueue::new(&memory, layout, slots, Split::whole(), wish).unwrap();
    assert_eq!(rx.fill(&memory).unwrap(), 8);
    rx.ring.publish();
    let mut device = Device { memory: &memory, layout, used: 0 };
    for (i, part) in parts.iter().enumerate() {
        let head = device.head(i as u16);
        memory.write(device.descriptor(layout.desc, head).0, part).unwrap();
        device.put_used(u32::from(head), part.len() as u32);
    }
    device.publish();
    let mut frame = Vec::new();
    let header = rx.pop(&memory, &mut frame).unwrap();
    (header.map(|header| (header, frame)), rx.ring.violations.list.clone())
}

fn header(num_buffers: u16, flags: u8, gso_type: u8) -> Vec<u8> {
    VnetHeader { flags, gso_type, num_buffers, ..VnetHeader::default() }.to_bytes().to_vec()
}

#[test]
fn merged_buffers_become_one_frame() {
    let first = [header(2, 0, 0), vec![1; 116]].concat();
    let (frame, violations) = receive(features::VERSION_1 | features::MRG_RXBUF, &[&first, &[2; 50]]);
    assert_eq!(frame.unwrap().1, [vec![1; 116], vec![2; 50]].concat());
    assert_eq!(violations, []);
}

#[test]
fn a_wrong_receive_header_is_found() {
    let merged = features::VERSION_1 | features::MRG_RXBUF;
    let missing = Violation::MissingBuffers { num: 3, have: 1 };
    let cases = [
        (merged, [header(3, 0, 0), vec![0; 60]].concat(), missing),
        (merged, [header(0, 0, 0), vec![0; 60]].concat(), Violation::NumBuffers { num: 0 }),
        (features::VERSION_1, [header(2, 0, 0), vec![0; 60]].concat(), Violation::NumBuffers { num: 2 }),
        (merged, vec![0; 11], Violation::ShortHeader { len: 11 }),
        (merged, [header(1, 2, 0), vec![0; 60]].concat(), Violation::NotNegotiated { flags: 2, gso_type: 0 }),
        (
            merged | features::GUEST_CSUM,
            [header(1, 1, 1), vec![0; 60]].concat(),
            Violation::NotNegotiated { flags: 1, gso_type: 1 },
        ),
    ];
    for (wish, octets, expected) in cases {
        assert_eq!(receive(wish, &[&octets]).1, [expected]);
    }
    let good = [header(1, 1, 1), vec![0; 60]].concat();
    assert_eq!(receive(merged | features::GUEST_CSUM | features::GUEST_TSO4, &[&good]).1, []);
}
