//! Cost of one burst from a guest's transmit queue into another guest's receive queue, everything in one thread and
//! hot in the cache: the instructions of rx and tx without the price of remote cache lines.
//!
//! `cargo bench -p hostweave-vhost`. Prints the best and the median of many bursts, in ns per frame.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave_guest::{Nic, NicConfig, VnetHeader, features};
use hostweave_switch::packet::Burst;
use hostweave_switch::tables::PortId;
use hostweave_vhost::{Attachment, AttachmentConfig, Mode, Observer, Peer};

struct Deaf;

impl Observer for Deaf {
    fn connected(&self, _peer: Peer) {}
    fn queue_started(&self, _pair: usize) {}
    fn queue_stopped(&self, _pair: usize) {}
    fn started(&self, _features: u64, _pairs: usize) {}
    fn stopped(&self) {}
    fn disconnected(&self) {}
    fn fault(&self, reason: &str) {
        panic!("{reason}");
    }
}

const BURST: usize = 64;
const BURSTS: usize = 20_000;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let plain = features::VERSION_1 | features::MRG_RXBUF;
    for (name, features) in [("plain", plain), ("EVENT_IDX", plain | features::EVENT_IDX | features::INDIRECT_DESC)] {
        for len in [60, 124, 252, 1514, 9000] {
            measure(name, features, len)?;
        }
    }
    Ok(())
}

/// The protocol thread may still be at the last messages of the start.
fn claim<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(claimed) = attempt() {
            return claimed;
        }
        std::hint::spin_loop();
    }
}

fn measure(name: &str, features: u64, len: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let mut attachments = vec![];
    let mut nics = vec![];
    for index in 0..2 {
        let path = folder.path().join(format!("{index}.sock"));
        let config = AttachmentConfig {
            mode: Mode::Listen,
            path: path.clone(),
            queue_pairs: 1,
            group: None,
            allowed_uids: vec![],
            mtu: 9000,
            config_space: None,
            name: format!("bench-{index}"),
        };
        attachments.push(Attachment::start(config, Arc::new(Deaf))?);
        let (slot, mtu) = (9216, 9000);
        let config = NicConfig {
            features,
            ring_size: 1024,
            tx_slot_bytes: slot,
            rx_slot_bytes: slot,
            mtu,
            ..NicConfig::new(path)
        };
        nics.push(Nic::connect(config)?);
    }
    let (from, to) = (&attachments[0].queues()[0].from_guest, &attachments[1].queues()[0].to_guest);
    while !(from.is_running() && to.is_running()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let frame = vec![0x42; len];
    let mut burst = Burst::new();
    let mut received = vec![];
    let mut samples = Vec::with_capacity(BURSTS);
    for _ in 0..BURSTS {
        for _ in 0..BURST {
            nics[0].push_frame(0, &VnetHeader::default(), &frame)?;
        }
        nics[0].flush(0)?;
        let start = Instant::now();
        let mut rx = claim(|| from.try_claim());
        let count = rx.receive(PortId(0), &mut burst, &mut |_| ())?;
        let mut tx = claim(|| to.try_claim());
        for packet in burst.packets() {
            black_box(tx.transmit(packet, &burst.segments).map_err(|reason| reason.name())?);
        }
        black_box(tx.publish());
        drop(tx);
        burst.clear();
        black_box(rx.complete());
        drop(rx);
        samples.push(start.elapsed().as_nanos() as f64 / count as f64);
        assert_eq!(count, BURST);
        for _ in 0..BURST {
            nics[1].recv_frame(&mut received)?.ok_or("lost")?;
        }
        assert_eq!(received, frame);
        nics[0].drain_tx(Duration::from_secs(1))?;
    }
    samples.sort_by(f64::total_cmp);
    println!("{name:10} {len:5} octets: best {:6.1}, median {:6.1} ns a frame", samples[0], samples[BURSTS / 2]);
    Ok(())
}
