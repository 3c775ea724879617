//! What the machine and the process offer: kernel, `io_uring`, limits, capabilities, huge pages.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use super::Finding;
use crate::config::ObjectSet;
use crate::config::checked::Backend;
use crate::fabric::spec::UplinkDriver;

/// Memory that rings and their buffers may need to be locked, in octets.
const MEMLOCK_WANTED: u64 = 64 << 20;

/// Descriptors of the daemon itself, and of one port: sockets, queue eventfds, memory regions.
const DESCRIPTORS_BASE: u64 = 256;
const DESCRIPTORS_PER_PORT: u64 = 32;

/// The oldest kernel whose `io_uring` has what workers use: multishot receive into provided buffer rings.
const KERNEL_MIN: (u32, u32) = (6, 0);

/// Bits of capabilities (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_IPC_LOCK: u32 = 14;

/// What objects ask of the host.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Ports.
    pub ports: u64,
    /// Whether some port is a TAP device.
    pub tap: bool,
    /// The uplink's driver.
    pub uplink: Option<UplinkDriver>,
}

impl Needs {
    /// What the objects of a host ask for.
    pub fn of(set: &ObjectSet) -> Self {
        Self {
            ports: set.ports().count() as u64,
            tap: set.ports().any(|(_, _, port)| matches!(port.backend, Backend::Tap(_) | Backend::Host(_))),
            uplink: set.host().uplink.as_ref().map(|uplink| uplink.driver),
        }
    }
}

/// Looks at the machine and at this process.
pub fn examine(needs: &Needs) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let capabilities = effective_capabilities(&read("/proc/self/status"));
    vec![
        kernel(read("/proc/sys/kernel/osrelease").trim()),
        io_uring(read("/proc/sys/kernel/io_uring_disabled").trim()),
        memlock(getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |limits| limits.0), has(capabilities, CAP_IPC_LOCK)),
        nofile(getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |limits| limits.0), needs.ports),
        self::capabilities(capabilities, needs),
        huge_pages(&read("/proc/meminfo")),
    ]
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        return Finding::ok("kernel", format!("Linux {release}"));
    }
    let message = format!("Linux {release} has no multishot receive in io_uring");
    Finding::error("kernel", message, format!("use Linux {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1))
}

fn io_uring(disabled: &str) -> Finding {
    match disabled {
        "2" => Finding::error(
            "io_uring",
            "io_uring is disabled for everybody (kernel.io_uring_disabled=2)",
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        "1" if !nix::unistd::geteuid().is_root() => Finding::error(
            "io_uring",
            "io_uring is disabled for users without CAP_SYS_ADMIN (kernel.io_uring_disabled=1)",
            "sysctl -w kernel.io_uring_disabled=0, or put the daemon's group into kernel.io_uring_group",
        ),
        _ => Finding::ok("io_uring", "io_uring is allowed"),
    }
}

fn memlock(limit: u64, unlimited: bool) -> Finding {
    if unlimited || limit >= MEMLOCK_WANTED {
        return Finding::ok("memlock", "enough memory may be locked for rings and their buffers");
    }
    let message =
        format!("only {} KiB of memory may be locked; rings and their buffers need up to 64 MiB", limit >> 10);
    Finding::warning("memlock", message, "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited")
}

fn nofile(limit: u64, ports: u64) -> Finding {
    let wanted = DESCRIPTORS_BASE + DESCRIPTORS_PER_PORT * ports;
    if limit >= wanted {
        return Finding::ok("nofile", format!("{limit} descriptors are enough for {ports} ports"));
    }
    let message = format!("only {limit} descriptors may be open; {ports} ports need up to {wanted}");
    Finding::warning("nofile", message, format!("LimitNOFILE={} in the unit, or ulimit -n", wanted.next_power_of_two()))
}

fn capabilities(effective: u64, needs: &Needs) -> Finding {
    let mut missing = Vec::new();
    if matches!(needs.uplink, Some(UplinkDriver::AfPacket | UplinkDriver::AfXdp)) {
        if !has(effective, CAP_NET_RAW) {
            missing.push("CAP_NET_RAW (packet and AF_XDP sockets)");
        }
        if !has(effective, CAP_NET_ADMIN) {
            missing.push("CAP_NET_ADMIN (hiding frames from the kernel)");
        }
    } else if (needs.tap || needs.uplink.is_some()) && !has(effective, CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN (TAP devices)");
    }
    if missing.is_empty() {
        return Finding::ok("capabilities", "the process has what its objects need");
    }
    let message = format!("the process lacks {}", missing.join(" and "));
    let help = "run the daemon as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in the unit";
    Finding::error("capabilities", message, help)
}

fn huge_pages(meminfo: &str) -> Finding {
    let number = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (total, free) = (number("HugePages_Total"), number("HugePages_Free"));
    if total > 0 {
        return Finding::ok(
            "hugepages",
            format!("{free} of {total} huge pages of {} KiB are free", number("Hugepagesize")),
        );
    }
    let help = "for faster guests: sysctl -w vm.nr_hugepages=N, and hugetlb=on in the VMM's memory backend";
    Finding::note("hugepages", "no huge pages are reserved: guests' memory is in small pages", help)
}

/// `CapEff` of `/proc/self/status`.
fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn has(capabilities: u64, bit: u32) -> bool {
    capabilities >> bit & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::doctor::Severity::{self, *};

    #[test]
    fn what_is_missing_is_found_and_what_to_do_is_said() {
        let packet = Needs { ports: 40, tap: false, uplink: Some(UplinkDriver::AfPacket) };
        let tap = Needs { tap: true, ..Needs::default() };
        let raw = 1 << CAP_NET_RAW;
        let admin = 1 << CAP_NET_ADMIN;
        for (finding, severity, word) in [
            (kernel("6.8.0-31-generic"), Ok, "6.8"),
            (kernel("5.15.0"), Severity::Error, "5.15"),
            (kernel(""), Severity::Error, ""),
            (io_uring("0"), Ok, ""),
            (io_uring(""), Ok, ""),
            (io_uring("2"), Severity::Error, "io_uring_disabled=2"),
            (memlock(8 << 20, false), Warning, "8192 KiB"),
            (memlock(8 << 20, true), Ok, ""),
            (memlock(u64::MAX, false), Ok, ""),
            (nofile(1024, 40), Warning, "1536"),
            (nofile(1024, 24), Ok, ""),
            (capabilities(0, &packet), Severity::Error, "CAP_NET_RAW"),
            (capabilities(raw, &packet), Severity::Error, "CAP_NET_ADMIN"),
            (capabilities(raw | admin, &packet), Ok, ""),
            (capabilities(0, &tap), Severity::Error, "TAP"),
            (capabilities(0, &Needs::default()), Ok, ""),
            (huge_pages("HugePages_Total:       0\n"), Note, "no huge pages"),
            (huge_pages("HugePages_Total: 512\nHugePages_Free: 100\nHugepagesize: 2048 kB\n"), Ok, "100 of 512"),
        ] {
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.message.contains(word), "{finding:?}");
            assert_eq!(finding.help.is_some(), severity != Ok, "{finding:?}");
        }
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t0000000000003000\n"), raw | admin);
    }

    #[test]
    fn this_machine_can_be_examined() {
        assert_eq!(examine(&Needs::default()).len(), 6);
    }
}
