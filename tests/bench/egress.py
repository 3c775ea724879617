#!/usr/bin/env python3
"""One TCP stream from a QEMU guest to a server outside: hostweave with NAT, beside QEMU's own `tap` on a kernel bridge with masquerade.

    tests/bench/egress.py [--pairs N] [--seconds S] [--anyway] [--json FILE]

Both guests start from the same image (tests/qemu/setup.sh) and leave by the same veth to the same server; each pair measures one after
the other, the second guest stopped meanwhile, in turns first. `ratio` is ours by theirs, `CPU s/GB` the time of all threads of QEMU but the
vCPU's, of the daemon, and of the kernel's ksoftirqd. Needs root. It refuses a machine that is busy (load above 1.5) without --anyway.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("HOSTWEAVE_BIN", os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "hostweave"))

from harness import guest, internet, requirements  # noqa: E402
from harness.daemon import BINARY  # noqa: E402
from harness.guest import boot  # noqa: E402
from harness.suite import Case, Skip  # noqa: E402

LOAD_MAX = 1.5
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
GOAL = 0.95
# The network of the other: a bridge of the kernel.
BRIDGE = "10.65.0.1", "fd00:65::1"
TAP_GUEST = "10.65.0.2", "fd00:65::2"
TAP = "tap-g"


def cpu_s(task):
    """User and system time of a thread, from /proc/PID/task/TID."""
    with open(task + "/stat") as stat:
        # The name in parentheses may contain anything.
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def tasks(pid, without=()):
    return ["/proc/%d/task/%s" % (pid, tid) for tid in os.listdir("/proc/%d/task" % pid) if int(tid) not in without]


def softirq_threads():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/comm" % pid) as comm:
                if comm.read().startswith("ksoftirqd/"):
                    found.append("/proc/" + pid)
        except OSError:
            pass  # It ended meanwhile.
    return found


class Side:
    """A guest with its way out, and the processes that pay for it."""

    def __init__(self, name, vm, processes):
        self.name, self.vm, self.processes = name, vm, processes
        self.vcpus = {cpu["thread-id"] for cpu in vm.qmp("query-cpus-fast")}

    def cpu_s(self):
        seconds = sum(cpu_s(task) for task in softirq_threads() + tasks(self.vm.process.pid, self.vcpus))
        return seconds + sum(cpu_s(task) for pid in self.processes for task in tasks(pid))

    def measure(self, server, seconds):
        """(Gbit/s, CPU seconds per gigabyte)."""
        before = self.cpu_s()
        said = json.loads(self.vm.sh("iperf3 -J -c %s -t %d" % (server, seconds), 90 + seconds))
        spent = self.cpu_s() - before
        received = said["end"]["sum_received"]
        return received["bits_per_second"] / 1e9, spent / (received["bytes"] / 1e9)


def ours(case, host, port):
    vm = boot(case, "ours", space=host.host)
    vm.plug(0, port.socket, port.mac)
    vm.sh("ip link set eth0 up; udhcpc -i eth0 -n -q -f -t 20 -T 1 -s /usr/share/udhcpc/default.script; "
          "until ip -6 -o addr show dev eth0 scope global -tentative | grep -q ' %s/'; do sleep 0.1; done" % port.v6, 90)
    return Side("hostweave", vm, [host.daemon.process.pid])


def theirs(case, host):
    host.host.sh("ip link add br-g type bridge; ip addr add {1}/24 dev br-g; ip addr add {2}/64 dev br-g nodad; ip link set br-g up; "
                 "ip tuntap add {0} mode tap vnet_hdr; ip link set {0} master br-g up".format(TAP, *BRIDGE))
    host.host.sh("nft -f - <<'END'\nadd table inet bench\nadd chain inet bench out { type nat hook postrouting priority srcnat; }\n"
                 "add rule inet bench out oifname up0 ip saddr %s/24 masquerade\nadd rule inet bench out oifname up0 ip6 saddr %s/64 masquerade\nEND"
                 % (BRIDGE[0], BRIDGE[1]))
    vm = boot(case, "theirs", space=host.host)
    vm.qmp("netdev_add", type="tap", id="net0", ifname=TAP, script="no", downscript="no", vhost=False)
    vm.qmp("device_add", driver="virtio-net-pci", id="nic0", netdev="net0", mac="02:00:00:00:65:02", bus="rp0",
           rx_queue_size=1024, tx_queue_size=256)
    vm.sh("until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done; ip link set eth0 up; ip addr add {0}/24 dev eth0; "
          "ip addr add {1}/64 dev eth0 nodad; ip route add default via {2}; ip -6 route add default via {3}".format(*TAP_GUEST, *BRIDGE), 60)
    return Side("tap", vm, [])


def measure(case, options):
    host = internet.Product(case, (), start=False)
    port = host.daemon.port("ours")
    host.start()
    host.iperf()
    sides = [ours(case, host, port), theirs(case, host)]
    results = {}
    for family, server in zip(("IPv4", "IPv6"), internet.SERVER):
        pairs = []
        for number in range(options.pairs + 1):
            pair = {}
            for side in sides if number % 2 else reversed(sides):
                for other in sides:
                    other.vm.qmp("cont" if other is side else "stop")
                pair[side.name] = side.measure(server, options.seconds)
            for side in sides:
                side.vm.qmp("cont")
            # The first one warms both up: code that is translated, windows that grow.
            if number:
                pairs.append(pair)
        results[family] = summary(pairs)
    host.finish()
    return results


def summary(pairs):
    def median(f):
        return statistics.median(f(pair) for pair in pairs)

    ratios = [pair["hostweave"][0] / pair["tap"][0] for pair in pairs]
    return {
        "pairs": pairs,
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "gbit": {name: median(lambda pair, n=name: pair[n][0]) for name in ("hostweave", "tap")},
        "cpu_s_per_gb": {name: median(lambda pair, n=name: pair[n][1]) for name in ("hostweave", "tap")},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4, help="of each stream (default 4)")
    parser.add_argument("--anyway", action="store_true", help="also on a machine that is busy: the numbers say little")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    try:
        internet.requires()
        requirements.programs(guest.QEMU)
    except Skip as reason:
        sys.exit("egress: %s" % reason)
    for path, cure in ((BINARY, "cargo build --release"), (os.path.join(guest.IMAGES, "stamp"), "tests/qemu/setup.sh")):
        if not os.path.exists(path):
            sys.exit("egress: there is no %s; run: %s" % (path, cure))
    load = os.getloadavg()[0]
    if load > LOAD_MAX and not options.anyway:
        sys.exit("egress: the machine is busy (load %.1f, at most %.1f): nothing is measured" % (load, LOAD_MAX))
    logs = tempfile.mkdtemp(prefix="hw-egress-")
    with Case("egress", logs) as case:
        results = measure(case, options)
    shutil.rmtree(logs)
    print("%-6s %-11s %-11s %-24s %-17s %s" % ("", "hostweave", "tap + nft", "ratio (least to most)", "hostweave", "tap + nft"))
    for family, result in results.items():
        gbit, cpu = result["gbit"], result["cpu_s_per_gb"]
        print("%-6s %.2f Gbit/s %.2f Gbit/s %.2f (%.2f-%.2f), goal %.2f  %.2f CPU s/GB     %.2f CPU s/GB" % (
            family, gbit["hostweave"], gbit["tap"], result["ratio"], result["ratios"][0], result["ratios"][-1], GOAL, cpu["hostweave"], cpu["tap"]))
    print("load at the start %.1f, %s, %d pairs of %d s" % (load, guest.ACCEL, options.pairs, options.seconds))
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"load": load, "accelerator": guest.ACCEL, "results": results}, out, indent=1)


if __name__ == "__main__":
    main()
