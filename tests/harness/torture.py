"""Connections and policy under kernels' own TCP/IP, told apart from where those kernels run: network namespaces on TAP ports
(`tests/netns/connections.py`) or guests in QEMU (`tests/qemu/scenarios.py`).

An end has a `port`, a `device`, a `peer` (`harness.peer`), and `sh`; `serve_iperf()` and `load(host)`, which begins iperf3 and
returns what waits for its text. The daemon's default is deny, and `allow` is its one policy.
"""

import os
import time

from . import packets
from .daemon import ROUTER_MAC
from .packets import RST, SYN
from .process import until

# What a policy lets in; 7100 and up are allowed nowhere.
ECHO, OTHER, CLOSES, LATE, IPERF = 7000, 7001, 7002, 7003, 5201
MEET = range(7010, 7090)


def allow(daemon, *ports):
    """Egress is open, ingress takes these TCP ports, UDP from 7000 to 7099, and no more."""
    rules = [{"ports": [{"protocol": "TCP", "port": port} for port in ports] + [{"protocol": "UDP", "port": 7000, "endPort": 7099}]}]
    daemon.policy("only", podSelector={}, policyTypes=["Ingress", "Egress"], ingress=rules, egress=[{}])


def families(port):
    return port.v4, port.v6


def dropped(daemon, name, reason):
    return daemon.stats()[name]["dropped"].get(reason, 0)


def frames(*made):
    return [data.hex() for data in made]


def short_connections(daemon, a, b, count=6000, parallel=50, timeout=20):
    """Connections come and go; each is answered, and what is not allowed begins none."""
    b.peer("serve", port=ECHO)
    b.peer("serve", port=7100)
    answered = a.peer("churn", hosts=families(b.port), port=ECHO, count=count, parallel=parallel, timeout=timeout)
    assert answered == {"ok": count}, answered
    for host in families(b.port):
        refused = a.peer("open", group="denied", host=host, port=7100, count=5, timeout=2)
        assert refused == {"opened": 0, "failed": {"timeout": 5}}, refused
    stats = daemon.check_ledger()
    assert stats["a"]["dropped"].get("policy_denied", 0) >= 10, stats["a"]
    for name in ("a", "b"):
        for reason in ("no_connection", "tcp_out_of_window", "tcp_invalid", "connection_quota", "connection_table_full"):
            assert reason not in stats[name]["dropped"], stats[name]


def half_open_connections_recover(daemon, a, b):
    """Either end forgets in silence, and the same two ports connect again (CT4)."""
    b.peer("serve", port=ECHO)
    for host in families(b.port):
        # The client's end is gone. Its SYN meets the old connection: challenge, RST, and the SYN again a second later.
        assert a.peer("open", group="one", host=host, port=ECHO, source_port=6000)["opened"] == 1
        assert a.peer("echo", group="one") == {"ok": 1}
        a.peer("forget", group="one")
        assert a.peer("open", group="one", host=host, port=ECHO, source_port=6000) == {"opened": 1, "failed": {}}
        assert a.peer("echo", group="one") == {"ok": 1}
        # The server's end is gone: it answers the next word by RST, which ends the client's.
        b.peer("forget", port=ECHO)
        assert a.peer("echo", group="one") == {"ECONNRESET": 1}
        assert a.peer("open", group="two", host=host, port=ECHO, source_port=6000) == {"opened": 1, "failed": {}}
        assert a.peer("echo", group="two") == {"ok": 1}
        a.peer("forget", group="one")
        a.peer("forget", group="two")
        b.peer("forget", port=ECHO)
    daemon.check_ledger()


def half_open_connections_pile_up(daemon, a, b, c, syns=2000, flows=1000, others=200):
    """SYNs that nobody completes are held to the port's quota, and hinder nobody else (CT11)."""
    a.port.flows = flows
    daemon.reload()
    b.peer("serve", port=ECHO)
    assert a.peer("open", group="own", host=b.port.v4, port=ECHO, count=20)["opened"] == 20
    assert a.peer("echo", group="own") == {"ok": 20}
    # The kernel of `a` knows nothing of what is sent past it, and must not answer: its own way to `b` is cut.
    a.sh("ip route add blackhole %s; ip -6 route add blackhole %s metric 1" % families(b.port))
    for number, host in enumerate(families(b.port)):
        made = [packets.tcp_frame(a.port.mac, ROUTER_MAC, families(a.port)[number], host, (20_000 + i, ECHO), i, 0, SYN)
                for i in range(syns)]
        for at in range(0, len(made), 250):
            a.peer("frames", device=a.device, frames=frames(*made[at:at + 250]))
        opened = c.peer("open", group=host, host=host, port=ECHO, count=others)
        assert opened == {"opened": others, "failed": {}}, opened
        assert c.peer("echo", group=host) == {"ok": others}
    a.sh("ip route del blackhole %s; ip -6 route del blackhole %s metric 1" % families(b.port))
    # `b` answered them, but `a` never acknowledged: at the quota the oldest of them make room for the next (`room.rs`).
    held = daemon.rpc("server.status")["connections"]
    # Emulated guests take so long over it that a part times out.
    assert held["evicted"] + dropped(daemon, "a", "connection_quota") > (2 * syns - flows) // 3, (held, daemon.stats()["a"])
    assert held["used"] <= flows + 2 * others + 50, held
    assert a.peer("echo", group="own") == {"ok": 20}, "its own that were there before go on"
    for name in ("b", "c"):
        for reason in ("connection_quota", "connection_table_full", "no_connection"):
            assert name == "b" and reason == "no_connection" or dropped(daemon, name, reason) == 0, daemon.stats()[name]
    daemon.check_ledger()


def reset_injection(daemon, a, b, c):
    """An RST cuts a connection only from its own end and with the right number (CT2)."""
    b.peer("serve", port=ECHO)
    for number, host in enumerate(families(b.port)):
        own = families(a.port)[number]
        assert a.peer("open", group=host, host=host, port=ECHO)["opened"] == 1
        assert a.peer("echo", group=host) == {"ok": 1}
        port, sent, expected = a.peer("numbers", group=host)
        before = daemon.stats()

        def reset(mac, src, dst, ports, sequence, flags=RST, acknowledgement=0):
            return packets.tcp_frame(mac, ROUTER_MAC, src, dst, ports, sequence, acknowledgement, flags)

        # The third port knows everything: addresses, ports, numbers. It lacks the address.
        forged = [reset(c.port.mac, own, host, (port, ECHO), sent + i) for i in range(50)]
        forged += [reset(c.port.mac, host, own, (ECHO, port), expected + i) for i in range(50)]
        c.peer("frames", device=c.device, frames=frames(*forged))
        # The other's MAC does not help either.
        c.peer("frames", device=c.device, frames=frames(reset(a.port.mac, own, host, (port, ECHO), sent)))
        # From its own address it is nobody's segment.
        mine = families(c.port)[number]
        c.peer("frames", device=c.device, frames=frames(reset(c.port.mac, mine, host, (port, ECHO), sent)))
        count = lambda reason: dropped(daemon, "c", reason) - before["c"]["dropped"].get(reason, 0)
        until(lambda: [count(reason) for reason in ("spoofed_ip", "spoofed_mac", "no_connection")] == [100, 1, 1], "each is counted once", 20)
        assert a.peer("echo", group=host) == {"ok": 1}, "the connection was cut"
        port, sent, expected = a.peer("numbers", group=host)
        # Of its own end, far outside of the window: dropped here.
        b.peer("frames", device=b.device, frames=frames(reset(b.port.mac, host, own, (ECHO, port), expected + (1 << 30))))
        until(lambda: dropped(daemon, "b", "tcp_out_of_window") > before["b"]["dropped"].get("tcp_out_of_window", 0), "counted", 20)
        # In the window, not exact: goes on to the kernel, which challenges it (RFC 5961 §3.2).
        b.peer("frames", device=b.device, frames=frames(reset(b.port.mac, host, own, (ECHO, port), expected + 100)))
        assert a.peer("echo", group=host) == {"ok": 1}, "an inexact RST ended the connection"
        port, sent, expected = a.peer("numbers", group=host)
        b.peer("frames", device=b.device, frames=frames(reset(b.port.mac, host, own, (ECHO, port), expected)))
        # ECONNRESET by that RST; never an echo.
        assert a.peer("echo", group=host) == {"ECONNRESET": 1}
    daemon.check_ledger()


def fragments(daemon, a, b):
    """In and out of order; of a datagram whose fragments overlap nothing arrives (CT6, CT7, CT8)."""
    b.peer("hear", port=7000)
    b.peer("hear", port=7100)
    for number, host in enumerate(families(b.port)):
        own = families(a.port)[number]
        # By the kernel, up to the longest there is.
        for octets in (1473, 5000, 60_000):
            a.peer("datagram", host=host, port=7000, octets=octets, answer=False)
            until(lambda: [len(x) // 2 for x in b.peer("heard_since")] == [octets], "%d octets arrive" % octets, 20)
        payload = os.urandom(4000)
        whole = [(0, 1400), (1400, 2800), (2800, 4008)]

        def send(identification, cuts, port=7000):
            made = packets.udp_fragments(a.port.mac, ROUTER_MAC, own, host, (6000, port), payload, identification, cuts)
            a.peer("frames", device=a.device, frames=frames(*made))

        def arrived(cuts):
            until(lambda: b.peer("heard_since") == [payload.hex()], "fragments %s arrive" % cuts, 20)

        for identification, cuts in enumerate((whole, whole[::-1], [whole[1], whole[2], whole[0]], [whole[2], whole[0], whole[1]])):
            send(1000 + identification, cuts)
            arrived(cuts)
        # Second copies do no harm; an overlap does, in whatever order.
        send(1010, [whole[0], whole[0], whole[1], whole[2]])
        arrived("with a copy")
        before = dropped(daemon, "a", "fragment_overlap")
        overlaps = ([whole[0], (1392, 2800), whole[2]], [(1392, 2800), whole[2], whole[0]], [whole[0], whole[1], (2720, 4008)])
        for identification, cuts in enumerate(overlaps):
            send(1020 + identification, cuts)
        # Fragments of what policy does not allow: none passes, first or later.
        denied = dropped(daemon, "a", "policy_denied")
        send(1030, whole, 7100)
        send(1031, whole[::-1], 7100)
        until(lambda: dropped(daemon, "a", "policy_denied") - denied == 6, "each fragment is counted once", 20)
        time.sleep(0.5)
        assert b.peer("heard_since") == [], "overlapping or denied fragments arrived"
        assert dropped(daemon, "a", "fragment_overlap") - before >= 3, daemon.stats()["a"]
    # `ping -s` takes ICMP along the same way: it needs a rule without ports.
    daemon.policy("ping", podSelector={}, ingress=[{}])
    daemon.reload()
    for host in families(b.port):
        a.sh("ping -c 3 -i 0.2 -W 5 -s 20000 %s" % host)
    daemon.policy("ping")
    daemon.reload()
    daemon.check_ledger()


def icmp_errors(daemon, a, b, c):
    """About a connection they reach who sent it; any other is unrelated (CT5, NP23)."""
    for number, host in enumerate(families(b.port)):
        own = families(a.port)[number]
        assert a.peer("datagram", host=host, port=7050) == "ECONNREFUSED", "port unreachable arrives"
        before = daemon.stats()
        quoted = packets.ip_frame(a.port.mac, ROUTER_MAC, own, host, 17, b"\x17\x70\x1b\xbc\x00\x0c\x00\x00data")[14:]
        # About a datagram that was never sent; and from somebody whom no datagram was sent to.
        b.peer("frames", device=b.device, frames=frames(packets.unreachable_frame(b.port.mac, ROUTER_MAC, host, own, quoted)))
        mine = families(c.port)[number]
        c.peer("frames", device=c.device, frames=frames(packets.unreachable_frame(c.port.mac, ROUTER_MAC, mine, own, quoted)))
        for name in ("b", "c"):
            until(lambda: dropped(daemon, name, "icmp_unrelated") == before[name]["dropped"].get("icmp_unrelated", 0) + 1,
                  "%s is told off" % name, 20)
    daemon.check_ledger()


def change_under_load(daemon, a, b, established, count=100, steady=True):
    """Load and connections to two ports; one of the two is forbidden meanwhile."""
    b.peer("serve", port=ECHO)
    b.peer("serve", port=OTHER)
    b.serve_iperf()
    groups = [(str(port) + host, host, port) for port in (ECHO, OTHER) for host in families(b.port)]
    for group, host, port in groups:
        assert a.peer("open", group=group, host=host, port=port, count=count)["opened"] == count
    before = {reason: dropped(daemon, "a", reason) for reason in ("policy_denied", "no_connection")}
    load = a.load(b.port.v6)
    time.sleep(1)
    allow(daemon, ECHO, IPERF)
    daemon.reload()
    for group, _, port in groups:
        goes_on = port == ECHO or established == "keep"
        found = a.peer("echo", group=group, timeout=30 if goes_on else 2)
        assert found == ({"ok": count} if goes_on else {"timeout": count}), (group, found)
    for host in families(b.port):
        new = a.peer("open", group="new", host=host, port=OTHER, count=3, timeout=2)
        assert new["opened"] == 0, "new connections are judged by the policy of now: %s" % new
    denied = dropped(daemon, "a", "policy_denied") - before["policy_denied"]
    assert denied >= (2 * count if established == "recheck" else 6), denied
    # Allowed again: what was cut stays cut, what is new passes.
    allow(daemon, ECHO, OTHER, IPERF)
    daemon.reload()
    for group, host, port in groups:
        assert a.peer("open", group="again" + group, host=host, port=port, count=3)["opened"] == 3
        if port == OTHER and established == "recheck":
            found = a.peer("echo", group=group, timeout=1)
            assert found == {"timeout": count}, found
            assert dropped(daemon, "a", "no_connection") - before["no_connection"] >= count
        else:
            assert a.peer("echo", group=group, timeout=30) == {"ok": count}
    # The load was allowed all the time: it never stood still, but for a second in which this machine did.
    seconds = [line for line in load().splitlines() if "sec" in line and "0.00 bits/sec" in line]
    assert len(seconds) <= 1 or not steady, "the load stood still: %s" % seconds
    daemon.check_ledger()
