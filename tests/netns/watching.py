"""`ping` into real kernels, and captures that Wireshark's tools read.

Needs root (namespaces, TAP devices) and tshark.
"""

import json
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from containers import addressed, containers  # noqa: E402
from harness import process, requirements  # noqa: E402
from harness.daemon import BINARY  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402


def check():
    requirements.root()
    requirements.tun()
    requirements.programs("ip", "ping", "dhclient", "tshark", "capinfos", "tcpdump")


suite = Suite("watching", check)


@suite.test("a probe is answered by the other kernel, and the kernel that it is sent for sees nothing of it")
def probes(case):
    daemon, (a, b) = containers(case, "a", "b")
    addressed(a, b)
    listener = a.spawn(["tcpdump", "-n", "-l", "-i", a.device, "icmp or icmp6 or tcp"], "tcpdump.log")
    log = case.log("tcpdump.log")
    until(lambda: "listening on" in open(log).read(), "tcpdump listens", 20)
    for address in (b.port.v4, b.port.v6):
        done = json.loads(daemon.cli("ping", "a", address, "-c", "2", "-o", "json"))
        assert all(probe["answer"]["reached"] for probe in done), done
        assert all(probe["answer"]["ttl"] == 63 for probe in done), done
        # Nothing listens there: the kernel says so, and that is an answer.
        done = json.loads(daemon.cli("ping", "a", address, "--tcp", "9", "-c", "1", "-o", "json"))
        assert done[0]["answer"]["text"].startswith("RST"), done
    # tcpdump sees what is real, so that its silence means something.
    a.sh("ping -c 1 -W 5 %s" % b.port.v4)
    until(lambda: "echo reply, id" in open(log).read(), "tcpdump sees the kernel's own ping", 20)
    replies = [line for line in open(log) if "echo reply" in line or "Flags [R" in line]
    assert len(replies) == 1, replies
    process.kill(listener)
    daemon.check_ledger()


@suite.test("a capture is a pcapng file that capinfos and tshark read: interfaces, directions, comments, nanoseconds")
def captures(case):
    daemon, (a, b) = containers(case, "a", "b")
    addressed(a, b)
    path = os.path.join(case.run, "x.pcapng")
    argv = [BINARY, "--control", daemon.control, "capture", "a", "b", "--drops", "-w", path]
    capture = process.spawn(argv, case.log("capture.log"))
    until(lambda: os.path.getsize(path) > 0, "the capture has begun", 20)
    for address in (b.port.v4, b.port.v6):
        a.sh("ping -c 3 -i 0.2 -W 5 %s" % address)
    a.sh("ping -c 1 -W 1 %s" % (".".join(b.port.v4.split(".")[:3] + ["200"])), check=False)

    def frames(*arguments):
        return process.run(["tshark", "-n", "-r", path] + list(arguments)).splitlines()

    until(lambda: frames("-Y", "icmp.type == 8 && frame.comment contains \"no_route\""), "the drop is there", 20, 0.5)
    capture.send_signal(signal.SIGINT)
    assert capture.wait(20) == 0
    fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.packet_flags_direction", "-e", "frame.comment"]
    for version, request, reply in (("icmp", 8, 0), ("icmpv6", 128, 129)):
        for kind, out, into in ((request, "default/a", "default/b"), (reply, "default/b", "default/a")):
            wanted = "%s.type == %d && frame.comment contains \"egress\"" % (version, kind)
            seen = [line.split("\t") for line in frames("-Y", wanted, *fields)]
            assert len(seen) == 6, (version, kind, seen)
            # 1 is inbound: sent by the guest; 2 is outbound.
            assert {(name, int(way, 0)) for name, way, _ in seen} == {(out, 1), (into, 2)}, seen
            assert all("no policy had a say" in comment for _, _, comment in seen), seen
    info = process.run(["capinfos", path])
    assert "pcapng" in info and "Number of interfaces in file: 2" in info, info
    assert info.count("Time precision = nanoseconds (9)") == 2, info
    daemon.check_ledger()


if __name__ == "__main__":
    suite.main()
