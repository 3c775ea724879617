"""The way out through the host's own kernel (`driver: tap`), with nothing set up but by the commands that `doctor` prints.

Needs root. The topology is in harness/internet.py; between the switch and the router there is the host's kernel, one hop more.
Every test does its work over IPv4 and over IPv6.
"""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import internet  # noqa: E402
from harness.internet import (  # noqa: E402
    CUSTOMER, ECHO, FIRST_PUBLIC, GATEWAY, INSIDE, KERNEL, POOL, PUBLIC, REFLECT, ROUTER, SERVER, TELLS, addresses, digest, family, flood_stopped, in_pool,
    outside_of, product_only, url, world,
)
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402

# The switch and the kernel, at the two ends of the device.
SWITCH = "192.168.77.2", "fd00:77::2"
DEVICE, OURS = "hw-up", ("192.168.77.1", "fd00:77::1")
# Of a network whose own addresses are known outside.
INSIDE_PUBLIC = "2001:db8:300::/64"
# Of doctor, where nothing is to be translated any more.
REMOVE = "nft 'add table inet hostweave; delete table inet hostweave'"
# Of NAT: in a subnet that the router is in, and one that nobody outside answers.
POOLS = {"subnet": POOL, "private": ("192.168.78.0/30", "fd00:78::/126")}


def requires():
    internet.requires()
    product_only("drivers")


suite = Suite("uplink_tap", requires)


def finding(host):
    """What doctor says about the kernel behind the TAP device: how bad it is, what is so, and the commands."""
    findings = json.loads(host.daemon.cli("doctor", "-o", "json", check=False).stdout)
    found, = (finding for finding in findings if finding["check"] == "tap")
    return found["severity"], found["message"], found["help"]


def obey(host):
    """Gives doctor's commands, twice: the second time they change nothing, and doctor has nothing to say, nor others to give."""
    commands = finding(host)[2]
    host.host.sh(commands)
    once = rules(host)
    host.host.sh(commands)
    assert rules(host) == once, (once, rules(host))
    severity, message, again = finding(host)
    # What was left of before is told once.
    left = [line for line in commands.splitlines() if line not in again.splitlines()]
    assert severity == "note" and left in ([], [REMOVE]) and commands.startswith(again), (severity, message, again)


def rules(host):
    return host.host.sh("nft list ruleset; ip route; ip -6 route; ip neigh show proxy; ip -6 neigh show proxy; ip address show dev %s | grep inet" % DEVICE)


def behind_kernel(case, *names, pool=POOL):
    """A world whose uplink is a TAP device, of which the kernel has not been told."""
    host, *containers = world(case, *names, driver="tap", start=False, pool=pool)
    host.host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    host.uplink(driver="tap", interface=DEVICE, addresses=[SWITCH[0] + "/30", SWITCH[1] + "/64"], gateways=list(OURS))
    return (host, *containers)


def start(host):
    host.daemon.start()
    until(lambda: host.host.sh("ip link show %s" % DEVICE, check=False).returncode == 0, "the TAP", 20)


def connect(host):
    """Doctor's commands, then as with any other driver."""
    obey(host)
    host.connect()


def both_ways(case, host, a):
    """5 MB by HTTP to and from the server, octet for octet."""
    big, got = os.path.join(host.www, "big"), os.path.join(case.run, "got")
    with open(big, "wb") as out:
        out.write(os.urandom(5 << 20))
    for server in SERVER:
        a.sh("curl -sS -f -m 60 -o %s %s" % (got, url(server, "big")), 90)
        assert digest(got) == digest(big)
        a.sh("curl -sS -f -m 60 -T %s %s" % (got, url(server, "up-%d" % family(server))), 90)
        assert digest(os.path.join(host.www, "up-%d" % family(server))) == digest(big)


def taken(host):
    """Frames that each worker took, of whatever source."""
    _, metrics = host.daemon.http("/metrics")
    lines = (line.split() for line in metrics.splitlines() if line.startswith("hostweave_worker_packets_total{"))
    return {name: float(value) for name, value in lines}


def both_workers_receive(host, a):
    """By a TAP device as their uplink, and connections survive kill -9."""
    # What nobody asked for comes by the uplink alone: both workers receive it, each what its queue got.
    for pool in POOL:
        # Routers queue only a few while they ask who has it.
        host.server.sh("ping -c 2 -i 0.5 -W 1 %s" % addresses(pool)[0], check=False)
    before = taken(host)
    for pool in POOL:
        host.server.sh("python3 -c 'import socket as s; u = s.socket(s.AF_INET%s, s.SOCK_DGRAM); "
                       "[u.sendto(b\"?\", (\"%s\", 20480 + 64 * block)) for block in range(64) for _ in range(8)]'"
                       % ("6" if family(addresses(pool)[0]) else "", addresses(pool)[0]))
    until(lambda: sum(taken(host).values()) >= sum(before.values()) + 1000, "what was sent", 20)
    after = taken(host)
    assert len(after) == 2 and all(after[worker] >= before[worker] + 400 for worker in after), (before, after)
    host.server.peer("serve", port=ECHO)
    for server in SERVER:
        assert a.peer("open", group=server, host=server, port=ECHO, count=200)["opened"] == 200
        assert a.peer("echo", group=server) == {"ok": 200}
    for _ in range(2):
        host.restart("kill")
        for server in SERVER:
            assert a.peer("echo", group=server, timeout=30) == {"ok": 200}


@suite.test("driver: tap: doctor's own commands, given twice, make the kernel route a pool in its subnet, and translate a private one", cases=POOLS)
def told(case, pool):
    host, a = behind_kernel(case, "a", pool=pool)
    host.nginx()
    start(host)
    severity, message, commands = finding(host)
    wanted = ["net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"]
    wanted += ["gateway's address " + address for address in OURS] + ["no route to " + cidr for cidr in pool]
    if pool == POOL:
        wanted += ["does not answer for %s and 3 more on up0" % addresses(pool[0])[0], "net.ipv6.conf.up0.proxy_ndp=0"]
    assert severity == "error" and all(words in message for words in wanted), (severity, message)
    connect(host)
    assert finding(host)[2] == commands
    both_ways(case, host, a)
    seen = set(host.clients())
    assert all(in_pool(address) if pool == POOL else address in KERNEL for address in seen) and len(seen) == 2, seen
    # Another MTU is the device's at once, and with the next change.
    uplink = host.daemon.objects[0]["spec"]["uplink"]
    for mtu in (1400, 1500):
        host.daemon.host(uplink={**uplink, "mtu": mtu})
        host.reload()
        until(lambda: " mtu %d " % mtu in host.host.sh("ip link show " + DEVICE), "the device has it", 20)
        assert host.uplink_status()["mtu"] == mtu and host.uplink_status()["link"]
    # Each of them is missed when it goes.
    gone = [("ip route del %s" % pool[0], "no route to %s" % pool[0]), ("ip -6 route del %s" % pool[1], "no route to %s" % pool[1])]
    if pool == POOL:
        gone += [("ip neigh del proxy %s dev up0" % addresses(pool[0])[1], "answer for %s on up0" % addresses(pool[0])[1]),
                  ("ip -6 neigh del proxy %s dev up0" % addresses(pool[1])[1], "answer for %s on up0" % addresses(pool[1])[1])]
    else:
        gone += [("nft delete table inet hostweave", "no table inet hostweave")]
    for command, words in gone:
        host.host.sh(command)
        severity, message, _ = finding(host)
        assert severity in ("error", "warning") and words in message, (command, severity, message)
        host.host.sh(commands)
        assert finding(host)[0] == "note"
    if pool == POOL:
        for cidr in pool:
            missed = host.uplink_status()["missedPackets"]
            # The kernel has to know the address: nobody tells it while the daemon is stopped. NAT answers no echo.
            host.server.sh("ping -c 3 -i 0.3 -W 1 %s || true" % addresses(cidr)[0])
            flood_stopped(host, addresses(cidr)[0], lambda: int(host.host.sh("cat /sys/class/net/%s/statistics/tx_dropped" % DEVICE)))
            until(lambda: host.uplink_status()["missedPackets"] > missed, "what the TAP device drops is counted", 20)
        both_workers_receive(host, a)
        # Another run has missed nothing yet, whatever the device has.
        assert host.uplink_status()["missedPackets"] == 0
    host.finish()


@suite.test("direct attach and 1:1: every protocol comes in through the kernel, and leaves from that address; errors both ways; kill -9",
            cases={"direct": False, "one-to-one": True})
def attached(case, one_to_one):
    host, a, b = behind_kernel(case, "a", "b")
    start(host)
    connect(host)
    host.attach(a, *FIRST_PUBLIC, one_to_one=one_to_one)
    severity, message, _ = finding(host)
    assert severity == "error" and all("no route to " + cidr in message for cidr in PUBLIC), (severity, message)
    obey(host)
    for node in (host.server, a):
        node.peer("serve", port=TELLS, mode="tells")
        node.peer("serve", port=ECHO)
        node.peer("reflect", port=REFLECT)
    for number, public in enumerate(FIRST_PUBLIC):
        if not one_to_one:
            a.carry(public)
        host.customer.sh("ping -c 5 -i 0.2 -W 8 %s" % public)
        assert outside_of(host.customer, a, public)[0] == CUSTOMER[number], "it sees who it is"
        host.customer.peer("bind", name="u", host=CUSTOMER[number])
        assert host.customer.peer("ask", name="u", to=[public, REFLECT])[0] == CUSTOMER[number]
        assert host.customer.peer("datagram", host=public, port=9) == "ECONNREFUSED", "its own kernel says so"
        assert host.customer.peer("open", group="closed", host=public, port=9, timeout=5)["failed"] == {"ECONNREFUSED": 1}
        a.peer("bind", name="own", host=a.families[number] if one_to_one else public, port=6000)
        assert a.peer("ask", name="own", to=[SERVER[number], REFLECT]) == [public, 6000], "unchanged"
        assert outside_of(a, host.server, SERVER[number])[0] == public, "what it begins leaves from there"
        assert a.peer("datagram", host=SERVER[number], port=9) == "ECONNREFUSED", "and what is said of it comes back"
        a.sh("ping -c 2 -i 0.2 -W 8 %s" % SERVER[number])
        assert in_pool(outside_of(b, host.server, SERVER[number])[0]), "others have the pool"
        hops = host.customer.hops(public, "-I")
        assert KERNEL[number] in hops and hops[-1] == public, hops
    # Neighbours inside still have it by its addresses inside.
    for address in a.families:
        b.sh("ping -c 2 -i 0.2 -W 8 %s" % address)
    pairs = [(space, to) for server, public in zip(SERVER, FIRST_PUBLIC) for space, to in ((a, server), (host.customer, public))]
    for space, to in pairs:
        assert space.peer("open", group=to, host=to, port=ECHO, count=50) == {"opened": 50, "failed": {}}
    host.restart("kill")
    for space, to in pairs:
        assert space.peer("echo", group=to, timeout=60) == {"ok": 50}, to
    assert finding(host)[0] == "note"
    host.finish()


@suite.test("NAT: traceroute sees the kernel and the router, tracepath and TCP learn a narrow path, large segments stay large")
def paths(case):
    host, a = behind_kernel(case, "a")
    start(host)
    connect(host)
    host.nginx()
    host.iperf()
    both_ways(case, host, a)
    for number, server in enumerate(SERVER):
        for options in ("", "-T -p 80", "-I"):
            first, kernel, *hops = a.hops(server, options)
            assert first in (GATEWAY[number], "fe80::1", SWITCH[number]) and hops == [ROUTER[number], server], (options, first, hops)
            assert kernel in (OURS[number], KERNEL[number]), (options, kernel)
    internet.segments_stay_large(a, host.host, DEVICE)
    host.narrow(1300)
    both_ways(case, host, a)
    for server in SERVER:
        a.knows_path_mtu(server, 1300)
    host.finish()


@suite.test("the device goes down: doctor and status say so, and with doctor's commands it is as before; connections go on")
def down(case):
    host, a, b = behind_kernel(case, "a", "b")
    start(host)
    connect(host)
    host.server.peer("serve", port=ECHO)
    b.peer("serve", port=ECHO)
    for to in SERVER + b.families:
        assert a.peer("open", group=to, host=to, port=ECHO, count=50)["opened"] == 50
    for _ in range(2):
        host.host.sh("ip link set %s down" % DEVICE)
        until(lambda: finding(host)[0] == "error", "doctor misses it", 20)
        case.note(finding(host)[1])
        until(lambda: any("nothing passes " + DEVICE in reason for reason in host.daemon.rpc("server.status")["degraded"]), "status says so", 20)
        for address in b.families:
            assert a.peer("echo", group=address, timeout=20) == {"ok": 50}, "others do not notice"
        obey(host)
        host.ready()
        for server in SERVER:
            assert a.peer("echo", group=server, timeout=60) == {"ok": 50}, server
    host.finish()


@suite.test("egress routed: a prefix behind the kernel keeps its own addresses, unasked nothing comes in")
def routed(case):
    host, a = behind_kernel(case, "a", pool=(POOL[0],))
    network = next(item for item in host.daemon.objects if item["kind"] == "Network")
    network["spec"]["egress"] = {"ipv4": "nat", "ipv6": "routed"}
    # A private prefix would be translated by the kernel. The router knows this one to be behind this host.
    network["spec"]["cidrs"][1] = INSIDE_PUBLIC
    host.router.sh("ip -6 route add %s via %s" % (INSIDE_PUBLIC, KERNEL[1]))
    start(host)
    connect(host)
    host.server.peer("serve", port=TELLS, mode="tells")
    a.peer("serve", port=22)
    assert in_pool(outside_of(a, host.server, SERVER[0])[0])
    assert outside_of(a, host.server, SERVER[1])[0] == a.v6, "its own"
    assert a.peer("datagram", host=SERVER[1], port=9) == "ECONNREFUSED"
    a.sh("ping -c 2 -i 0.2 -W 8 %s" % SERVER[1])
    assert host.server.peer("open", group="in", host=a.v6, port=22, timeout=2)["opened"] == 0, "unasked"
    host.finish()


@suite.test("private ranges that are translated, others, and none any more: doctor says each time that the rules are of before, and its commands mend it")
def retranslated(case):
    host, a = behind_kernel(case, "a", pool=POOLS["private"])
    # The router knows the container's network to be behind this host, and its server who it is.
    host.router.sh("; ".join("ip route add %s via %s" % way for way in zip(INSIDE, KERNEL)))
    start(host)
    connect(host)
    host.server.peer("serve", port=TELLS, mode="tells")
    seen = lambda: tuple(outside_of(a, host.server, server)[0] for server in SERVER)
    assert seen() == KERNEL
    host.pool(addresses=["192.168.79.0/30", "fd00:79::/126"])
    host.reload()
    assert "no route to 192.168.79.0/30" in finding(host)[1]
    host.host.sh("; ".join(line for line in finding(host)[2].splitlines() if line.startswith("ip ")))
    severity, message, _ = finding(host)
    assert severity == "warning" and "for other ranges than 192.168.79.0/30, fd00:79::/126" in message, (severity, message)
    obey(host)
    assert seen() == KERNEL
    # Nothing private is left but whom the server is to see.
    host.pool(addresses=list(POOL))
    network = next(item for item in host.daemon.objects if item["kind"] == "Network")
    network["spec"]["egress"] = {"untranslated": [server + ("/128" if family(server) else "/32") for server in SERVER]}
    host.reload()
    host.host.sh("; ".join(line for line in finding(host)[2].splitlines() if not line.startswith("nft ")))
    severity, message, _ = finding(host)
    assert severity == "warning" and "still translates" in message, (severity, message)
    obey(host)
    assert "hostweave" not in host.host.sh("nft list tables")
    assert seen() == a.families
    host.finish()


if __name__ == "__main__":
    suite.main()
