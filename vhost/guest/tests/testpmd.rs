//! The driver against a backend that is not ours: DPDK's vhost library as a plain forwarder between two sockets.
//!
//! This judges the judge. Skipped, with a line that says so, where `dpdk-testpmd` is not installed.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hostweave_guest::{Guest, GuestBuilder, MemoryConfig, Profile, Split, Violation, features};

const SECONDS: Duration = Duration::from_secs(10);

struct Testpmd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Testpmd {
    fn start(queues: usize) -> Option<Self> {
        let binary = Path::new("/usr/bin/dpdk-testpmd");
        if !binary.exists() {
            println!("skipped: {} is not installed", binary.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let vdev = |i| format!("--vdev=net_vhost{i},iface={}/{i}.sock,queues={queues},tso=1", dir.path().display());
        let prefix = dir.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_owned();
        let child = Command::new(binary)
            .args(["--lcores", "(0,1)@(0-1)", "--main-lcore", "0", "--no-huge", "-m", "256", "--no-shconf", "--no-pci"])
            .args(["--no-telemetry", &format!("--file-prefix={prefix}"), &vdev(0), &vdev(1)])
            .args(["--", "--auto-start", "--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=16384"])
            .args([&format!("--rxq={queues}"), &format!("--txq={queues}"), "--stats-period=3600"])
            .env("XDG_RUNTIME_DIR", dir.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.path().join("log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { child, dir })
    }

    fn socket(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("{i}.sock"))
    }

    fn guest(&self, i: usize) -> GuestBuilder {
        let mac = [2, 0, 0, 0, 0, i as u8 + 1];
        let address = Ipv4Addr::new(192, 0, 2, i as u8 + 1);
        Guest::builder().socket(self.socket(i)).mac(mac).address(address, 24, None).timeout(SECONDS)
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two guests, each made by `make`, ping each other and move TCP data both ways; no ring entry is out of order.
fn converse(queues: usize, make: impl Fn(GuestBuilder) -> GuestBuilder) {
    let Some(switch) = Testpmd::start(queues) else { return };
    let mut a = make(switch.guest(0)).connect().unwrap();
    let mut b = make(switch.guest(1)).connect().unwrap();
    b.tcp_echo_server(7).unwrap();
    b.udp_echo_server(7).unwrap();
    let address = b.ipv4().unwrap();
    let link_local = b.addresses()[0].0;
    let b = b.spawn("guest-b", false).unwrap();
    a.run_until("first ping", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok()).unwrap();
    a.ping(link_local, SECONDS).unwrap();
    assert_eq!(a.udp_exchange(address, 7, b"hello", SECONDS).unwrap(), b"hello");
    a.tcp_transfer(address, 7, 3_000_000, 3 * SECONDS).unwrap();
    let mut b = b.stop().unwrap();
    for guest in [&mut a, &mut b] {
        guest.nic().drain_tx(SECONDS).unwrap();
        // DPDK 22.11 leaves `num_buffers` as it finds it without MRG_RXBUF, against virtio 1.2 §5.1.6.4.1.
        let mut violations = guest.nic().violations();
        violations.retain(|v| *v != Violation::NumBuffers { num: 0 } || guest.has(features::MRG_RXBUF));
        assert_eq!(violations, []);
    }
}

#[test]
fn linux_under_qemu() {
    converse(1, |guest| guest);
}

#[test]
fn no_offloads_no_mergeable_buffers_small_ring() {
    converse(1, |guest| {
        guest.without(features::ALL_OFFLOADS | features::MRG_RXBUF | features::EVENT_IDX).ring_size(64)
    });
}

#[test]
fn dpdk_order_with_in_order_rings() {
    converse(1, |guest| guest.nic(|nic| nic.profile = Profile::Dpdk).with(features::IN_ORDER));
}

#[test]
fn pieces_indirect_tables_and_regions_that_a_buffer_crosses() {
    let memory = MemoryConfig { regions: vec![64 << 10, 4096, 40 << 10, 0], ..MemoryConfig::default() };
    converse(1, move |guest| {
        guest.memory(memory.clone()).splits(Split::every(700).indirect(), Split::whole()).without(features::ALL_GSO)
    });
}

#[test]
fn rings_go_on_after_a_stop() {
    let Some(switch) = Testpmd::start(1) else { return };
    let mut a = switch.guest(0).connect().unwrap();
    let b = switch.guest(1).connect().unwrap();
    let address = b.ipv4().unwrap();
    let _b = b.spawn("guest-b", false).unwrap();
    a.run_until("first ping", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok()).unwrap();
    let bases = a.nic().stop().unwrap();
    let before = a.nic().pairs[0].rx.ring.used_snapshot();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(before, a.nic().pairs[0].rx.ring.used_snapshot(), "a stopped ring is not touched");
    a.nic().resume(&bases).unwrap();
    a.run_until("ping after the stop", SECONDS, |a| a.ping(address, Duration::from_millis(300)).ok()).unwrap();
    assert_eq!(a.nic().violations(), []);
}
