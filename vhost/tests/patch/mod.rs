//! Attachments and one worker that copies whatever comes in on one of them to the next.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every test program uses everything")]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hostweave_switch::packet::{Burst, L3};
use hostweave_switch::tables::PortId;
use hostweave_vhost::{Attachment, AttachmentConfig, CallFd, Mode, Observer, Peer};

pub const SECONDS: Duration = Duration::from_secs(10);

/// Keeps faults.
#[derive(Default)]
pub struct Ear(Mutex<Vec<String>>);

impl Observer for Ear {
    fn connected(&self, peer: Peer) {
        assert!(peer.pid > 0);
    }
    fn queue_started(&self, _pair: usize) {}
    fn queue_stopped(&self, _pair: usize) {}
    fn started(&self, _features: u64, pairs: usize) {
        assert!(pairs > 0);
    }
    fn stopped(&self) {}
    fn disconnected(&self) {}
    fn fault(&self, reason: &str) {
        self.0.lock().unwrap().push(reason.to_owned());
    }
}

pub struct Patch {
    pub attachments: Vec<Arc<Attachment>>,
    ears: Vec<Arc<Ear>>,
    configs: Vec<AttachmentConfig>,
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Patch {
    /// `ports` listening attachments with `pairs` queue pairs each.
    pub fn new(ports: usize, pairs: usize) -> Self {
        Self::with(ports, |config| config.queue_pairs = pairs)
    }

    pub fn connecting(ports: usize) -> Self {
        Self::with(ports, |config| config.mode = Mode::Connect)
    }

    pub fn with(ports: usize, change: impl Fn(&mut AttachmentConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let configs = (0..ports).map(|index| {
            let mut config = AttachmentConfig {
                mode: Mode::Listen,
                path: folder.path().join(format!("{index}.sock")),
                queue_pairs: 1,
                group: None,
                allowed_uids: vec![],
                mtu: 1500,
                config_space: None,
                name: format!("port-{index}"),
            };
            change(&mut config);
            config
        });
        let mut patch = Self {
            attachments: vec![],
            ears: vec![],
            configs: configs.collect(),
            rounds: Arc::default(),
            stop: Arc::default(),
            worker: None,
            _folder: folder,
        };
        patch.start();
        patch
    }

    fn start(&mut self) {
        self.ears = self.configs.iter().map(|_| Arc::default()).collect();
        self.attachments = self
            .configs
            .iter()
            .zip(&self.ears)
            .map(|(config, ear)| Attachment::start(config.clone(), ear.clone()).unwrap())
            .collect();
        self.stop = Arc::default();
        let (attachments, stop, rounds) = (self.attachments.clone(), self.stop.clone(), self.rounds.clone());
        self.worker = Some(std::thread::spawn(move || {
            let mut burst = Burst::new();
            while !stop.load(Ordering::Relaxed) {
                let moved = forward(&attachments, &mut burst);
                rounds.fetch_add(1, Ordering::Release);
                if !moved {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }));
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
        self.attachments.clear();
    }

    /// As if the daemon was killed and started again.
    pub fn restart(&mut self) {
        self.end();
        self.start();
    }

    pub fn socket(&self, index: usize) -> PathBuf {
        self.configs[index].path.clone()
    }

    /// Waits until the worker has been round twice.
    pub fn settle(&self) {
        let until = self.rounds.load(Ordering::Acquire) + 2;
        self.until("two rounds", || self.rounds.load(Ordering::Acquire) >= until);
    }

    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + SECONDS;
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The first fault that the observer of a port heard, once the status says so too.
    pub fn fault(&self, index: usize) -> String {
        self.until("a fault", || self.attachments[index].status().fault.is_some());
        let heard = self.ears[index].0.lock().unwrap().clone();
        assert_eq!(heard, [self.attachments[index].status().fault.unwrap()]);
        heard[0].clone()
    }
}

impl Drop for Patch {
    fn drop(&mut self) {
        self.end();
    }
}

fn signal(call: Option<CallFd>) {
    if let Some(call) = call {
        let fd: Arc<OwnedFd> = call.into();
        // A full eventfd is signalled already.
        let _ = std::fs::File::from(fd.try_clone().unwrap()).write(&1u64.to_ne_bytes());
    }
}

fn forward(attachments: &[Arc<Attachment>], burst: &mut Burst) -> bool {
    let mut moved = false;
    for (index, attachment) in attachments.iter().enumerate() {
        let Some(other) = attachments.get(index ^ 1) else { continue };
        for (number, pair) in attachment.queues().iter().enumerate() {
            let Some(mut from) = pair.from_guest.try_claim() else { continue };
            // A fault ends the connection by itself.
            let Ok(count) = from.receive(PortId(index as u32), burst, &mut |_| ()) else { continue };
            moved |= count > 0;
            let to = other.queues().get(number).and_then(|pair| pair.to_guest.try_claim());
            if let Some(mut to) = to {
                for at in 0..burst.len() {
                    let (packet, arena) = burst.packet_mut(at);
                    if packet.head()[12..14] == [0x86, 0xdd] {
                        packet.meta.l3 = L3::V6;
                    }
                    // A full ring drops, as a switch would.
                    let _ = to.transmit(packet, arena);
                }
                signal(to.publish());
            }
            burst.clear();
            signal(from.complete());
        }
    }
    moved
}
