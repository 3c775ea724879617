"""Connections and policy under the kernel's own TCP/IP: TAP ports in network namespaces, default deny, one policy that allows.

Needs root. Each namespace has a process `peer.py` that holds its ends of connections and sends what no kernel would.
Addresses are set by hand (containers.py proves DHCP and SLAAC), so that a test takes a second to begin.
"""

import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import packets, requirements, torture  # noqa: E402
from harness.daemon import ROUTER_MAC, Daemon  # noqa: E402
from harness.namespace import Namespace  # noqa: E402
from harness.packets import ACK  # noqa: E402
from harness.peer import Peer  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402
from harness.torture import CLOSES, ECHO, IPERF, LATE, MEET, OTHER, allow, dropped, families, frames  # noqa: E402


def check():
    requirements.root()
    requirements.tun()
    requirements.programs("ip", "ping", "iperf3", "python3")


suite = Suite("connections", check)


class End(Namespace):
    """One end of connections, as `harness.torture` knows it."""

    def __init__(self, case, name):
        super().__init__(case, name)
        self.device = "hw-" + name

    def serve_iperf(self):
        self.spawn(["iperf3", "-s"], "iperf3.log")
        until(lambda: ":%d" % IPERF in self.sh("ss -tln"), "iperf3 listens", 20)

    def load(self, host):
        started = self.spawn(["iperf3", "-c", host, "-t", "6", "-i", "1"], "load.log")

        def text():
            assert started.wait(timeout=60) == 0
            return open(self.case.log("load.log")).read()

        return text


def spaces(case, *names, mtu=1500, workers=2, **host):
    """A daemon whose default is deny, and for each name a namespace on a port, with its addresses and a peer."""
    daemon = Daemon(case, mtu=mtu, workers=workers)
    daemon.host(defaultPolicy="deny", **host)
    allow(daemon, ECHO, OTHER, CLOSES, LATE, IPERF, *MEET)
    found = []
    for name in names:
        space = End(case, name)
        space.sh("sysctl -qw net.ipv6.conf.default.accept_ra=0 net.ipv6.conf.default.accept_dad=0 "
                 "net.ipv4.ip_local_port_range='10000 65000'")
        space.port = daemon.port(name, tap=space.device, netns=space.path, labels={"name": name})
        found.append(space)
    daemon.start()
    for space in found:
        until(lambda: space.sh("ip link show " + space.device), "the device of %s" % space.port.name, 30)
        space.sh("ip addr add {v4}/24 dev {d}; ip -6 addr add {v6}/64 dev {d} nodad; ip link set {d} up; "
                 "ip -6 route replace default via fe80::1 dev {d}".format(v4=space.port.v4, v6=space.port.v6, d=space.device))
        space.peer = Peer(space, space.port.name)
    return daemon, found


def iperf(client, host, seconds, options=""):
    out = client.sh("iperf3 -J -c %s -t %d %s" % (host, seconds, options), 60 + seconds)
    return json.loads(out)["end"]["sum_received"]["bits_per_second"] / 1e6


@suite.test("iperf3 both ways, IPv4 and IPv6, between ports that deny all but a few ports of their own")
def iperf_with_policy_on(case):
    daemon, (a, b) = spaces(case, "a", "b")
    b.serve_iperf()
    for host in families(b.port):
        rates = [iperf(a, host, 2), iperf(a, host, 2, "-R"), iperf(a, host, 2, "-P 8")]
        case.note("to %s: %s Mbit/s" % (host, rates))
        assert min(rates) > 10, "Mbit/s: %s" % rates
    for name in ("a", "b"):
        for reason in ("no_connection", "tcp_out_of_window", "tcp_invalid", "policy_denied"):
            assert dropped(daemon, name, reason) == 0, (name, reason, daemon.stats()[name])
    daemon.check_ledger()


@suite.test("6000 short connections come and go, IPv4 and IPv6; each is answered, and what is not allowed begins none")
def short_connections(case):
    daemon, (a, b) = spaces(case, "a", "b")
    torture.short_connections(daemon, a, b)


@suite.test("ct4: half-open connections recover: either end forgets in silence, and the same two ports connect again")
def half_open_connections_recover(case):
    daemon, (a, b) = spaces(case, "a", "b")
    torture.half_open_connections_recover(daemon, a, b)


@suite.test("ct11: 4000 SYNs that nobody completes are held to the port's quota, and hinder nobody else")
def half_open_connections_pile_up(case):
    daemon, (a, b, c) = spaces(case, "a", "b", "c")
    torture.half_open_connections_pile_up(daemon, a, b, c)


@suite.test("half-close: what the other side sends for a second behind our FIN arrives, IPv4 and IPv6")
def half_close(case):
    daemon, (a, b) = spaces(case, "a", "b")
    b.peer("serve", port=LATE, mode="late")
    for host in families(b.port):
        assert a.peer("half_close", host=host, port=LATE) == 100_000
    stats = daemon.check_ledger()
    assert "no_connection" not in stats["b"]["dropped"], stats["b"]


@suite.test("ct4: 200 connections in a row between the same two ports, the server in TIME_WAIT each time: none waits")
def time_wait_is_reused(case):
    daemon, (a, b) = spaces(case, "a", "b")
    b.peer("serve", port=CLOSES, mode="closes")
    for host in families(b.port):
        took = a.peer("reuse", host=host, port=CLOSES, source_port=6000, count=200)
        # A SYN that is dropped is sent again after a second; a machine that stands still is no reason to complain, once.
        assert took["slow"] <= 1, took
    daemon.check_ledger()


@suite.test("ct4: simultaneous open: two sockets that connect to each other, without a listener, talk")
def simultaneous_open(case):
    daemon, (a, b) = spaces(case, "a", "b")
    for index in (0, 1):
        hosts = [families(space.port)[index] for space in (a, b)]

        def attempt(port):
            at = time.monotonic() + 0.05
            a.peer.start("meet", host=hosts[1], port=port, at=at)
            b.peer.start("meet", host=hosts[0], port=port, at=at)
            # The switch stands still while both send their SYN, so that these cross in it.
            daemon.process.send_signal(signal.SIGSTOP)
            time.sleep(max(0.0, at + 0.05 - time.monotonic()))
            daemon.process.send_signal(signal.SIGCONT)
            return (a.peer.finish(), b.peer.finish()) == ("here", "here")

        # A port of its own for each attempt: one that ended half-way leaves an end in TIME_WAIT.
        assert any(attempt(port) for port in MEET), "never, to %s" % hosts[1]
    daemon.check_ledger()


@suite.test("ct2: an RST cuts a connection only from its own end and with the right number; a third port cannot, however it guesses")
def reset_injection(case):
    daemon, (a, b, c) = spaces(case, "a", "b", "c")
    torture.reset_injection(daemon, a, b, c)


@suite.test("ct6, ct7, ct8: fragments arrive in and out of order, IPv4 and IPv6; of a datagram whose fragments overlap nothing does")
def fragments(case):
    daemon, (a, b) = spaces(case, "a", "b")
    torture.fragments(daemon, a, b)


@suite.test("ct5, np23: ICMP errors about a connection reach who sent it, isolated or not; any other is dropped as unrelated")
def icmp_errors(case):
    daemon, (a, b, c) = spaces(case, "a", "b", "c")
    torture.icmp_errors(daemon, a, b, c)


@suite.test("path MTU discovery: both ends believe in 1500 octets where the network has 1400; TCP and UDP learn better, both families")
def path_mtu_discovery(case):
    daemon, (a, b) = spaces(case, "a", "b", mtu=1400)
    for space in (a, b):
        space.sh("ip link set %s mtu 1500" % space.device)
    b.serve_iperf()
    for host in families(b.port):
        for teller, options in (("a", "-n 32M"), ("b", "-n 32M -R")):
            before = dropped(daemon, teller, "mtu_exceeded")
            out = json.loads(a.sh("iperf3 -J -c %s %s" % (host, options), 60))
            # What is under way when the sender has sent all is not in the receiver's count.
            assert out["end"]["sum_received"]["bytes"] >= 16_000_000, out["end"]
            assert dropped(daemon, teller, "mtu_exceeded") > before, "%s met the limit" % teller
            space = a if teller == "a" else b
            peer = host if teller == "a" else families(a.port)[families(b.port).index(host)]
            assert "mtu 1400" in space.sh("ip route get %s" % peer), "the kernel has learnt it"
            # What one end knows it tells the other by its MSS: the next begins without knowledge.
            for end in (a, b):
                end.sh("ip -4 route flush cache; ip -6 route flush cache")
        # UDP: the first datagram is too long, which its sender hears; the second goes in fragments, to a port that is closed.
        assert a.peer("datagram", host=host, port=7050, octets=1450) == "EMSGSIZE"
        assert a.peer("datagram", host=host, port=7050, octets=1450) == "ECONNREFUSED"
    daemon.check_ledger()


def change_under_load(case, established):
    """Load and connections to two ports; one of the two is forbidden meanwhile."""
    daemon, (a, b) = spaces(case, "a", "b", established=established)
    torture.change_under_load(daemon, a, b, established)


@suite.test("np31, np33: a policy changes under load, `recheck`: what it forbids is cut on its next packet, the rest never notices")
def policy_change_recheck(case):
    change_under_load(case, "recheck")


@suite.test("np31: a policy changes under load, `keep`: what is established goes on, what is new is judged")
def policy_change_keep(case):
    change_under_load(case, "keep")


@suite.test("np33: policies change twenty times under 4000 short connections that all of them allow: not one is lost or late")
def policies_change_all_the_time(case):
    daemon, (a, b) = spaces(case, "a", "b")
    b.peer("serve", port=ECHO)
    b.peer("serve", port=OTHER)
    assert a.peer("open", group="other", host=b.port.v6, port=OTHER, count=50)["opened"] == 50
    a.peer.start("churn", hosts=families(b.port), port=ECHO, count=4000)
    for number in range(20):
        allow(daemon, *((ECHO, OTHER) if number % 2 else (OTHER, ECHO, LATE, IPERF)))
        # Others that come and go select both ports as well, and allow nothing that matters here.
        daemon.policy("more", **({} if number % 2 else {"podSelector": {}, "ingress": [{"ports": [{"port": 1}]}]}))
        daemon.reload()
        time.sleep(0.05)
    assert a.peer.finish() == {"ok": 4000}
    assert a.peer("echo", group="other") == {"ok": 50}
    for name in ("a", "b"):
        for reason in ("policy_denied", "policy_pending", "no_connection", "tcp_out_of_window"):
            assert dropped(daemon, name, reason) == 0, (reason, daemon.stats()[name])
    daemon.check_ledger()


@suite.test("ct1, np30: kill -9 under 10,000 TCP connections: none breaks, and those that the policy of now forbids are cut, exactly",
            timeout=240)
def ten_thousand_connections_survive_kill(case):
    # With `keep`: what an earlier run allowed is judged all the same.
    daemon, (a, b) = spaces(case, "a", "b", established="keep")
    ports = (ECHO, OTHER, CLOSES, LATE)
    for port in ports:
        b.peer("serve", port=port)
    groups = [(str(port) + host, host, port) for port in ports for host in families(b.port)]
    for group, host, port in groups:
        opened = a.peer("open", group=group, host=host, port=port, count=1250)
        assert opened == {"opened": 1250, "failed": {}}, opened
    for group, _, _ in groups:
        assert a.peer("echo", group=group) == {"ok": 1250}, group
    daemon.kill()
    # The last of four ports is forbidden from now on.
    allow(daemon, ECHO, OTHER, CLOSES)
    daemon.start()
    for group, _, port in groups:
        if port != LATE:
            assert a.peer("echo", group=group, timeout=30) == {"ok": 1250}, group
    denied = dropped(daemon, "a", "policy_denied")
    assert denied == 0, "nothing that is allowed was refused"
    for group, _, port in groups:
        if port == LATE:
            assert a.peer("echo", group=group, timeout=3) == {"timeout": 1250}, group
    assert dropped(daemon, "a", "policy_denied") == 2500, "each was cut by its first packet: %s" % daemon.stats()["a"]
    # A segment in the middle of a connection that never was.
    before = dropped(daemon, "a", "no_connection")
    for own, host in zip(families(a.port), families(b.port)):
        stray = packets.tcp_frame(a.port.mac, ROUTER_MAC, own, host, (6000, ECHO), 1, 1, ACK, b"stray")
        a.peer("frames", device=a.device, frames=frames(stray))
    until(lambda: dropped(daemon, "a", "no_connection") >= before + 2, "the stray segments are counted", 5)
    # Once more, in order: still none breaks.
    daemon.stop()
    daemon.start()
    for group, _, port in groups:
        if port != LATE:
            assert a.peer("echo", group=group, timeout=30) == {"ok": 1250}, group
    for name in ("a", "b"):
        for reason in ("tcp_out_of_window", "tcp_invalid", "connection_quota", "connection_table_full"):
            assert dropped(daemon, name, reason) == 0, (reason, daemon.stats()[name])
    daemon.check_ledger()


if __name__ == "__main__":
    suite.main()
