//! A wire between two devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hostweave_switch::packet::Burst;
use hostweave_switch::tables::PortId;
use hostweave_uplink::device::Device;
use hostweave_uplink::uring::{Event, Uring, Waker};

/// What was carried.
#[derive(Default)]
pub struct Seen {
    pub frames: AtomicU64,
    pub gso: AtomicU64,
    pub partial: AtomicU64,
    pub dropped: AtomicU64,
}

/// A wire between two devices, moved by one worker's ring.
pub struct Wire {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    pub seen: Arc<Seen>,
}

impl Wire {
    pub fn new(a: Device, b: Device) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                let mut uring = Uring::new().unwrap();
                sender.send(uring.waker()).unwrap();
                carry(&mut uring, &[a, b], &stop, &seen);
            }
        });
        Self { stop, waker: receiver.recv().unwrap(), thread: Some(thread), seen }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.waker.wake();
        let joined = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || joined.is_ok());
    }
}

fn carry(uring: &mut Uring, devices: &[Device; 2], stop: &AtomicBool, seen: &Seen) {
    let mut burst = Burst::new();
    devices[0].start(uring, 0);
    devices[1].start(uring, 1);
    let mut events = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        uring.poll_completions(&mut |event| events.push(event));
        if events.is_empty() {
            uring.wait(Some(Duration::from_secs(1)));
            continue;
        }
        for event in events.drain(..) {
            let Event::Frame { token, frame } = event else {
                // Nothing else is to happen while it carries.
                seen.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (from, to) = (token as usize, 1 - token as usize);
            let received = devices[from].receive(PortId(from as u32), &frame, &mut burst);
            seen.frames.fetch_add(1, Ordering::Relaxed);
            seen.dropped.fetch_add(u64::from(received.is_err()), Ordering::Relaxed);
            for index in 0..burst.len() {
                let (packet, arena) = burst.packet_mut(index);
                seen.gso.fetch_add(u64::from(packet.meta.offload.is_gso()), Ordering::Relaxed);
                seen.partial.fetch_add(u64::from(packet.meta.offload.needs_csum()), Ordering::Relaxed);
                let sent = devices[to].transmit(packet, arena, uring);
                seen.dropped.fetch_add(u64::from(sent.is_err()), Ordering::Relaxed);
            }
            burst.clear();
            uring.release(frame);
        }
        uring.submit();
    }
    devices[0].stop(uring, 0);
    devices[1].stop(uring, 1);
}
