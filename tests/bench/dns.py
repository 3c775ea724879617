#!/usr/bin/env python3
"""Answers of the cluster zone per second on one CPU, beside `named` with the same zone, in turn, in one run.

    tests/bench/dns.py [--rounds N] [--seconds S]

A container asks (`dnsperf` on CPU 0). hostweave, all of it (worker, stack, DNS), runs on CPU 1 and answers at the gateway behind a TAP device;
`named` runs on CPU 1 with one thread and answers behind a veth pair. While one is measured the other is stopped. Each is asked for the
addresses of 1,000 ports, both families, in random order. Prints every round, and the median of each and of their ratio. Root only.
"""

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import process  # noqa: E402
from harness.daemon import Daemon  # noqa: E402
from harness.namespace import Namespace  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Case  # noqa: E402

PORTS, CLIENTS, OUTSTANDING = 1000, 8, 48
ZONE = "cluster.local"
NAMED = "198.18.0.2"
RATE = re.compile(r"Queries per second:\s+([\d.]+)")
LOST = re.compile(r"Queries lost:\s+(\d+)")


def hostweave(case, space):
    daemon = Daemon(case, networks={"default": ["10.0.0.0/16", "2001:db8:0:1::/64"]})
    client = daemon.port("client", tap="hw-a", netns=space.path)
    names = [daemon.port("p%d" % i) for i in range(PORTS)]
    daemon.start()
    process.run(["taskset", "-a", "-c", "-p", "1", str(daemon.process.pid)])
    until(lambda: space.sh("ip link show hw-a", check=False).returncode == 0, "the device", 30)
    space.sh("ip link set hw-a up; ip addr add %s/16 dev hw-a" % client.v4)
    return daemon, names


def named(case, space, names):
    server = Namespace(case, "named")
    process.run(["ip", "link", "add", "va", "netns", space.name, "type", "veth", "peer", "name", "vb", "netns", server.name])
    space.sh("ip link set va up; ip addr add 198.18.0.1/24 dev va")
    server.sh("ip link set vb up; ip addr add %s/24 dev vb" % NAMED)
    folder = tempfile.mkdtemp(prefix="hw-named-")
    case.callback(process.run, ["rm", "-r", folder])
    with open(folder + "/zone", "w") as out:
        out.write("$TTL 5\n@ SOA ns hostmaster 1 7200 1800 86400 5\n@ NS ns\nns A %s\n" % NAMED)
        for port in names:
            out.write("%s.default.port A %s\n%s.default.port AAAA %s\n" % (port.name, port.v4, port.name, port.v6))
    with open(folder + "/named.conf", "w") as out:
        out.write("""options { directory "%s"; listen-on { %s; }; listen-on-v6 { none; }; recursion no; pid-file none;
                     session-keyfile none; minimal-responses yes; dnssec-validation no; };
                     controls { }; zone "%s" { type primary; file "zone"; };\n""" % (folder, NAMED, ZONE))
    os.chmod(folder, 0o755)
    started = server.spawn(["taskset", "-c", "1", "named", "-g", "-n", "1", "-c", folder + "/named.conf"], "named.log")
    until(lambda: "NOERROR" in space.sh("dig +time=1 +tries=1 p0.default.port.%s @%s" % (ZONE, NAMED), check=False).stdout, "named", 30)
    return started


def measure(space, server, queries, seconds):
    out = space.sh("taskset -c 0 dnsperf -s %s -d %s -l %d -c %d -q %d" % (server, queries, seconds, CLIENTS, OUTSTANDING), timeout=seconds + 60)
    return float(RATE.search(out)[1]), int(LOST.search(out)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    logs = tempfile.mkdtemp(prefix="hw-bench-dns-")
    with Case("dns", logs) as case:
        case.callback(shutil.rmtree, logs, ignore_errors=True)
        space = Namespace(case, "a")
        daemon, names = hostweave(case, space)
        peer = named(case, space, names)
        gateway = next(g for g in daemon.ports[0].describe()["gateways"] if ":" not in g)
        questions = ["%s.default.port.%s %s" % (port.name, ZONE, kind) for port in names for kind in ("A", "AAAA")]
        random.shuffle(questions)
        with open(case.log("queries"), "w") as out:
            out.write("\n".join(questions) + "\n")
        ratios, rates = [], ([], [])
        for number in range(options.rounds):
            round_ = []
            for (running, stopped, server), own in zip(((daemon.process, peer, gateway), (peer, daemon.process, NAMED)), rates):
                stopped.send_signal(signal.SIGSTOP)
                try:
                    rate, lost = measure(space, server, case.log("queries"), options.seconds)
                finally:
                    stopped.send_signal(signal.SIGCONT)
                own.append(rate)
                round_.append("%7.0f/s (%d lost)" % (rate, lost))
            ratios.append(rates[0][-1] / rates[1][-1])
            print("round %d: hostweave %s, named %s, ratio %.2f" % (number + 1, *round_, ratios[-1]), flush=True)
        print("median: hostweave %.0f/s, named %.0f/s, ratio %.2f" % (*map(statistics.median, rates), statistics.median(ratios)))


main()
