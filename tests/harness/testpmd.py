"""DPDK's testpmd, as a vhost backend to compare with and as a frontend (virtio-user) that judges ours.

No huge pages, no root: memory is a memfd. Forwarding threads float over all CPUs, so that two testpmd and a switch
make progress on two of them.
"""

import os
import re
import subprocess

from . import process
from .process import until

TESTPMD = "dpdk-testpmd"


class Testpmd:
    """An interactive testpmd. Its output is the log file."""

    def __init__(self, case, name, vdevs, options, threads=1):
        self.name, self.log_path = name, case.log("testpmd-%s.log" % name)
        last = (os.cpu_count() or 1) - 1
        lcores = "(%s)@(0-%d)" % (",".join(str(i) for i in range(threads + 1)), last)
        # Its prompt is written past stdio: without `stdbuf` what a command prints comes after the next prompt.
        argv = ["nice", "-n", "5", "stdbuf", "-o0", TESTPMD, "--lcores", lcores, "--main-lcore", "0", "--no-huge", "-m", "1024"]
        argv += ["--file-prefix", "%s-%s" % (os.path.basename(case.run), name), "--no-shconf", "--no-pci", "--no-telemetry"]
        argv += ["--log-level", "lib.vhost.*:info", "--log-level", "pmd.net.virtio.*:info"]
        for vdev in vdevs:
            argv += ["--vdev", vdev]
        argv += ["--", "-i", "--nb-cores=%d" % threads, "--no-mlockall"] + list(options)
        environment = dict(os.environ, XDG_RUNTIME_DIR=case.run)
        self.process = process.spawn(argv, self.log_path, stdin=subprocess.PIPE, env=environment)
        case.callback(self.kill)
        until(lambda: self._alive() and self.output().rstrip().endswith("testpmd>"), "testpmd %s is ready" % name, 60)
        assert "Start ports failed" not in self.output(), "testpmd could not start its ports: see %s" % self.log_path

    def _alive(self):
        if self.process.poll() is not None:
            error = TimeoutError("testpmd %s ended: %s" % (self.name, self.output()[-1500:]))
            error.final = True
            raise error
        return True

    def output(self):
        with open(self.log_path, errors="replace") as log:
            return log.read()

    def __call__(self, command, timeout=30):
        """Runs a command and returns what it printed."""
        before = len(self.output())
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        until(lambda: self._alive() and "testpmd>" in self.output()[before:], command, timeout, 0.02)
        return self.output()[before:]

    def statistics(self):
        """Counters of all ports: {port: {"RX-packets": n, ...}}."""
        found = {}
        for block in re.split(r"NIC statistics for port ", self("show port stats all"))[1:]:
            found[int(block.split()[0])] = {k: int(v) for k, v in re.findall(r"([RT]X-\w+):\s*(\d+)", block)}
        return found

    def kill(self):
        process.kill(self.process)


def backend(case, sockets, queues=1, tso=True, client=False):
    """A vhost backend that forwards between pairs of sockets; it checks and changes nothing."""
    vdevs = ["net_vhost%d,iface=%s,queues=%d%s%s" % (i, path, queues, ",tso=1" if tso else "", ",client=1" if client else "")
             for i, path in enumerate(sockets)]
    options = ["--auto-start", "--forward-mode=io", "--rxq=%d" % queues, "--txq=%d" % queues, "--total-num-mbufs=16384"]
    pmd = Testpmd(case, "backend", vdevs, options)
    if not client:
        until(lambda: all(os.path.exists(path) for path in sockets), "the backend listens", 30)
    return pmd
