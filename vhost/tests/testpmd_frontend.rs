//! DPDK's virtio-user driver as the guest: another implementation of everything the in-process guests do.
//!
//! Skipped, with a line that says so, where `dpdk-testpmd` is not installed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod patch;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hostweave_guest::{Nic, NicConfig, VnetHeader, features};
use hostweave_vhost::State;
use patch::{Patch, SECONDS};

/// One `dpdk-testpmd` that sends back whatever comes in on its one card.
struct Echo(Child);

impl Echo {
    fn start(folder: &Path, socket: &Path, queues: usize, options: &str, longest: usize) -> Option<Self> {
        let binary = Path::new("/usr/bin/dpdk-testpmd");
        if !binary.exists() {
            println!("skipped: {} is not installed", binary.display());
            return None;
        }
        let prefix = folder.file_name()?.to_string_lossy().trim_start_matches('.').to_owned();
        let card = format!("net_virtio_user0,path={},queues={queues},queue_size=256,{options}", socket.display());
        // Scattered receive needs mergeable buffers.
        let offloads = if longest > 2048 { "--rx-offloads=0x2000" } else { "--rx-offloads=0" };
        let child = Command::new(binary)
            .args(["--lcores", "(0,1)@(0-1)", "--main-lcore", "0", "--no-huge", "-m", "256", "--no-shconf", "--no-pci"])
            .args(["--no-telemetry", "--single-file-segments", &format!("--file-prefix={prefix}"), "--vdev", &card])
            .args(["--", "--auto-start", "--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=4096"])
            .args(["--mbuf-size=2176", &format!("--max-pkt-len={longest}"), offloads, "--tx-offloads=0x8000"])
            .args([&format!("--rxq={queues}"), &format!("--txq={queues}"), "--stats-period=3600"])
            .env("XDG_RUNTIME_DIR", folder)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(folder.join("log")).ok()?)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self(child))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn every_frame_comes_back(queues: usize, options: &str) {
    // Without mergeable buffers a frame must fit one of testpmd's.
    let longest = if options.contains("mrg_rxbuf=1") { 9216 } else { 1518 };
    let patch = Patch::new(2, queues);
    let folder = tempfile::tempdir().unwrap();
    let Some(echo) = Echo::start(folder.path(), &patch.socket(1), queues, options, longest) else { return };
    let running = || patch.attachments[1].status().running_pairs == queues;
    for _ in 0..300 {
        if running() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(running(), "{options}: {:?}\n{log}", patch.attachments[1].status());
    let features = features::LINUX & !(features::GUEST_TSO4 | features::GUEST_TSO6);
    let mut nic = Nic::connect(NicConfig { features, mtu: 9000, ..NicConfig::new(patch.socket(0)) }).unwrap();
    let mut frame = vec![];
    // testpmd throws away what arrives before it begins to forward.
    let answered = (0..100).any(|_| {
        nic.send_frame(&VnetHeader::default(), &[0; 60]).unwrap();
        nic.recv_within(Duration::from_millis(200), &mut frame).is_ok()
    });
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(answered, "{options}: nothing comes back; {:x?}\n{log}", patch.attachments[1].status());
    while nic.recv_within(Duration::from_millis(200), &mut frame).is_ok() {}
    for round in 0..20 {
        for len in [60usize, 64, 65, 116, 128, 129, 1514, 2100, 9000].into_iter().filter(|len| *len <= longest) {
            let sent: Vec<u8> = (0..len).map(|at| (at * 31 + round) as u8).collect();
            nic.send_frame(&VnetHeader::default(), &sent).unwrap();
            nic.recv_within(SECONDS, &mut frame).unwrap_or_else(|error| panic!("{options}, {len} octets: {error}"));
            assert_eq!(frame, sent, "{options}, {len} octets");
        }
    }
    assert_eq!(nic.violations(), []);
    drop(echo);
    patch.until("testpmd is gone", || patch.attachments[1].status().state == State::WaitingForFrontend);
    assert_eq!(patch.attachments[1].status().fault, None);
}

#[test]
fn mergeable_and_in_order() {
    every_frame_comes_back(1, "mrg_rxbuf=1,in_order=1");
}

#[test]
fn mergeable_and_not_in_order_with_two_queue_pairs() {
    every_frame_comes_back(2, "mrg_rxbuf=1,in_order=0");
}

#[test]
fn without_mergeable_buffers() {
    every_frame_comes_back(1, "mrg_rxbuf=0,in_order=1");
    every_frame_comes_back(1, "mrg_rxbuf=0,in_order=0");
}
