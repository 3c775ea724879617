"""The way out, under real kernels and with other people's judges: uplink, NAT, direct attach, over a small internet.

Needs root. The topology, and how the tests themselves are judged (HOSTWEAVE_INTERNET=kernel, none), is in harness/internet.py.
Every test does its work over IPv4 and over IPv6.
"""

import hashlib
import ipaddress
import itertools
import json
import os
import re
import shutil
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import internet, packets, process, requirements  # noqa: E402
from harness.daemon import ROUTER_MAC  # noqa: E402
from harness.internet import (  # noqa: E402
    CUSTOMER, GATEWAY, INSIDE, KERNEL, NEAR, OWN, POOL, PUBLIC, ROUTED, ROUTER, SECOND, SERVER, SERVER_ALIAS, ZONE, addresses, family, product_only, world,
)
from harness.packets import ACK, RST, SYN  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402

ECHO, TELLS, REFLECT = 7000, 7001, 7002
PUBLIC_4, PUBLIC_6 = (addresses(cidr) for cidr in PUBLIC)
# Of a prefix that is routed here, and nobody has it.
UNUSED = "192.0.2.150", "2001:db8:a0ff::1"
FIRST_PUBLIC = PUBLIC_4[2], PUBLIC_6[2]
SECOND_PUBLIC = PUBLIC_4[3], PUBLIC_6[3]

suite = Suite("internet", internet.requires)

# By a packet socket, as by default, and with AF_XDP beside it.
DRIVERS = {"afPacket": None, "afXdp": "afXdp"}


def world_with(case, driver, *names):
    """A world whose uplink has this driver; `None`: the default."""
    if driver:
        product_only("drivers")
        return world(case, *names, driver=driver)
    return world(case, *names)


def in_pool(address):
    return address in addresses(POOL[family(address)])


def digest(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def url(host, name):
    return "http://%s/%s" % ("[%s]" % host if family(host) else host, name)


def outside_of(container, node, host, port=TELLS):
    """Who a container is to a peer that `tells`: address and L4 port of a new TCP connection."""
    group = "tell-%s-%d" % (host, port)
    opened = container.peer("open", group=group, host=host, port=port, timeout=5)
    assert opened["opened"] == 1, "%s reaches %s: %s" % (container.short, host, opened)
    told = container.peer("tell", group=group)
    container.peer("close", group=group)
    return told


# 1


@suite.test("20 MB by curl to and from nginx, octet for octet, 10 connections at once: all come from one address of the pool")
def curl(case):
    host, a, b = world(case, "a", "b")
    host.nginx()
    with open(os.path.join(host.www, "big"), "wb") as out:
        out.write(os.urandom(20 << 20))
    wanted = digest(os.path.join(host.www, "big"))
    for number, server in enumerate(SERVER):
        for space in (a, b):
            path = os.path.join(case.run, "got")
            space.sh("curl -sS -f -m 60 -o %s %s" % (path, url(server, "big")))
            assert digest(path) == wanted, "what came differs"
            name = "up-%d-%s" % (number, space.short)
            space.sh("curl -sS -f -m 60 -T %s %s" % (path, url(server, name)))
            assert digest(os.path.join(host.www, name)) == wanted, "what was sent differs"
            space.sh("curl -sS -f -m 60 -Z %s" % " ".join("-o /dev/null " + url(server, "big?%d" % i) for i in range(10)))
            seen = set(host.clients())
            assert len(seen) == 1, "paired pooling (RFC 4787 REQ-2): one inside address has one outside address: %s" % seen
            assert in_pool(seen.pop()), "the pool's, not its own"
            open(host.access, "w").close()
    host.finish()


@suite.test("what a container sends as 60 KB segments crosses the uplink as such: the router sees frames far beyond the MTU")
def segments_stay_large(case):
    host, a = world(case, "a")
    host.iperf()
    for server in SERVER:
        for direction in ("", "-R"):
            listener = host.router.capture("host0", "tcp and greater 9000", octets=128)
            a.iperf(server, 1, direction)
            # Which side of a veth a capture sees tells the direction by the source.
            large = [seen for seen in listener.stop() if (seen.src == server) == (direction == "-R")]
            assert len(large) > 20, "%d large frames %s" % (len(large), direction)
    host.finish()


# 2


@suite.test("unasked, nothing comes in: no answer, no RST, no ICMP error, and no container sees any of it; counted as nat_no_mapping")
def unasked(case):
    host, a = world(case, "a")
    host.server.peer("serve", port=TELLS, mode="tells")
    host.server.peer("reflect", port=REFLECT)
    before = host.drops("nat_no_mapping")
    sent = 0
    mac = host.router.sh("cat /sys/class/net/host0/address").strip()
    up0 = host.host.sh("cat /sys/class/net/up0/address").strip()
    for number, server in enumerate(SERVER):
        # With a mapping that is in use: others who know it do not get in, not even by the same port.
        a.peer("bind", name="own", host=a.families[number], port=6000)
        udp = a.peer("ask", name="own", to=[server, REFLECT])
        assert in_pool(udp[0]), udp
        a.peer("open", group=server, host=server, port=TELLS)
        tcp = a.peer("tell", group=server)
        # Links and neighbours have said what they have to before anybody looks.
        host.customer.sh("ping -c 1 -W 1 %s" % ROUTER[number])
        listeners = [host.router.capture("host0", "not arp and not (icmp6 and ip6[40] >= 133)"), a.capture(a.device)]
        for node, own in ((host.customer, CUSTOMER), (host.second, SECOND)):
            node.peer("bind", name="prober", host=own[number], port=5000)
            for to in ([udp[0], udp[1]], [tcp[0], tcp[1]], [udp[0], 22], [addresses(POOL[number])[-1], 5353]):
                node.peer("send", name="prober", to=to)
                found = node.peer("open", group="none", host=to[0], port=to[1], timeout=1.5)
                assert found == {"opened": 0, "failed": {"timeout": 1}}, "TCP to %s: %s" % (to, found)
            assert node.peer("take", name="prober", timeout=0.5) is None, "a datagram was answered"
            assert node.sh("ping -c 1 -W 1 %s" % udp[0], check=False).returncode == 1, "an echo was answered"
            # What can begin nothing: a segment in mid-stream, and an answer to an echo that nobody sent.
            protocol, kind = ((1, 0), (58, 129))[number]
            answer = packets.with_checksum(own[number], udp[0], protocol, struct.pack(">BBHHH", kind, 0, 0, udp[1], 1), 2)
            frames = [packets.tcp_frame(mac, up0, own[number], tcp[0], (5000, tcp[1]), 7, 7, ACK),
                      packets.ip_frame(mac, up0, own[number], udp[0], protocol, answer)]
            host.router.peer("frames", device="host0", frames=[frame.hex() for frame in frames])
            # Two SYNs each within the time that they were given, at least.
            sent += 4 + 4 + 1 + len(frames)
        # The server itself, from a port that was not asked: address and port decide (REQ-8).
        host.server.peer("bind", name="other", host=server, port=5001)
        host.server.peer("send", name="other", to=udp)
        assert a.peer("take", name="own", timeout=0.5) is None, "what came from another port was let in"
        outside, inside = (listener.stop() for listener in listeners)
        leaked = [seen for seen in outside if seen.src in addresses(POOL[number]) and seen.dst != server]
        assert leaked == [], "a pool address answered: %s" % leaked
        assert len([seen for seen in outside if seen.dst in addresses(POOL[number])]) >= sent // (number + 1), "the probes were sent"
        came = [seen for seen in inside if {seen.src, seen.dst} & {CUSTOMER[number], SECOND[number]} or
                (seen.ports and 5001 in seen.ports)]
        assert came == [], "the container saw: %s" % came
        assert a.peer("ask", name="own", to=[server, REFLECT]) == udp, "its own goes on"
    if before is not None:
        assert host.drops("nat_no_mapping") - before >= sent, "all of them were counted"
    host.finish()


# 3


@suite.test("ping, in fragments too, and what comes back as ICMP: the closed port of the server, the router's time exceeded", cases=DRIVERS)
def icmp(case, driver):
    host, a = world_with(case, driver, "a")
    for number, server in enumerate(SERVER):
        a.sh("ping -c 3 -i 0.2 -W 3 %s" % server)
        # Not a multiple of eight, in three fragments, with the identifier of a socket that stays.
        a.sh("ping -c 3 -i 0.2 -W 3 -s 3333 %s" % server)
        # Two at once do not take each other's answers.
        first = a.spawn(["ping", "-c", "10", "-i", "0.1", "-W", "3", server], "ping-1.log")
        a.sh("ping -c 10 -i 0.1 -W 3 %s" % server)
        assert first.wait(20) == 0
        assert a.peer("datagram", host=server, port=9) == "ECONNREFUSED"
        # No answer at all, but no error either, is what this is not.
        started = time.monotonic()
        assert a.peer("open", group="closed", host=server, port=9, timeout=5)["failed"] == {"ECONNREFUSED": 1}
        assert time.monotonic() - started < 4
        out = a.sh("ping -c 1 -W 3 -t 2 %s" % server, check=False).stdout
        assert "Time to live exceeded" in out or "Hop limit" in out, out
        assert ROUTER[number] in out, out
    host.finish()


@suite.test("fragments in every order, in and out: each datagram arrives whole (RFC 4787 REQ-14)", cases=DRIVERS)
def fragments(case, driver):
    host, a = world_with(case, driver, "a")
    host.server.peer("reflect", port=REFLECT)
    mac = host.router.sh("cat /sys/class/net/host0/address").strip()
    up0 = host.host.sh("cat /sys/class/net/up0/address").strip()
    listener = host.router.capture("host0", "udp or ip6 proto 44 or ip[6:2] & 0x3fff != 0")
    for number, server in enumerate(SERVER):
        own = a.families[number]
        a.peer("bind", name=server, host=own, port=6000)
        told = a.peer("ask", name=server, to=[server, REFLECT])
        for turn, order in enumerate(itertools.permutations(range(3))):
            text = "%d%d" % (number, turn) + "all of it " * 300
            cuts = [(0, 1200), (1200, 2400), (2400, 8 + len(text))]
            frames = packets.udp_fragments(mac, up0, server, told[0], (REFLECT, told[1]), text.encode(), 100 + turn, cuts)
            host.router.peer("frames", device="host0", frames=[frames[at].hex() for at in order])
            assert a.peer("take", name=server) == [text, [server, REFLECT]], "in, as %s" % (order,)
            frames = packets.udp_fragments(a.mac, ROUTER_MAC, own, server, (6000, REFLECT), text.encode(), 200 + turn, cuts)
            a.peer("frames", device=a.device, frames=[frames[at].hex() for at in order])
            # The server says who it was, once it has all of it.
            answer = a.peer("take", name=server)
            assert answer and answer[1] == [server, REFLECT] and told[0] in answer[0], "out, as %s: %s" % (order, answer)
    sources = {seen.src for seen in listener.stop() if seen.dst in SERVER}
    assert all(in_pool(source) for source in sources), "no fragment leaves untranslated: %s" % sources
    host.finish()


@suite.test("traceroute by UDP, TCP and ICMP, and tracepath: the gateway, the router, the server, in this order")
def routes(case):
    host, a = world(case, "a")
    host.nginx()
    for number, server in enumerate(SERVER):
        for options in ("", "-T -p 80", "-I"):
            out = a.sh("traceroute -n -q 2 -w 2 -m 8 %s %s" % (options, server))
            hops = [line.split()[1] for line in out.splitlines()[1:]]
            assert hops[1:] == [ROUTER[number], server], (options, out)
            assert hops[0] in (GATEWAY[number], "fe80::1", OWN[number]), out
        out = a.sh("tracepath -n -m 8 %s" % server)
        assert "reached" in out and "pmtu 1500" in out and ROUTER[number] in out, out
    host.finish()


# 4


@suite.test("iperf3, TCP and UDP, both ways, one stream and eight", cases=DRIVERS)
def iperf(case, driver):
    host, a = world_with(case, driver, "a")
    host.iperf()
    for server in SERVER:
        for options in ("", "-R", "-P 8"):
            got = a.iperf(server, 2, options)
            rate = got["sum_received"]["bits_per_second"] / 1e6
            case.note("%s %s: %d Mbit/s" % (server, options, rate))
            assert rate > 10, (options, got)
        for options in ("", "-R"):

            def passes():
                got = a.iperf(server, 2, "-u -b 20M -l 1200 " + options)["sum"]
                case.note("%s %s: %s" % (server, options, got))
                return got["packets"] > 1000 and got["lost_percent"] < 5

            # The receiver's buffer holds 44 ms: a stall of its own loses some, once.
            assert any(passes() for _ in range(3)), "of each stream datagrams are lost"
    host.finish()


# 5

FILTERINGS = {
    "default": (None, "NAT with Address and Port Dependent Filtering"),
    "address-and-port": ("addressAndPortDependent", "NAT with Address and Port Dependent Filtering"),
    "address": ("addressDependent", "NAT with Address Dependent Filtering"),
    "endpoint-independent": ("endpointIndependent", "NAT with Endpoint Independent Filtering"),
}


@suite.test("turnutils_natdiscovery (RFC 5780) says: endpoint-independent mapping, and the filtering that was configured", cases=FILTERINGS)
def natdiscovery(case, expected):
    filtering, verdict = expected
    host, a = world(case, "a", filtering=filtering)
    host.stun()
    for number, server in enumerate(SERVER):
        # It asks once, and takes silence for an answer: one that is late is a wrong verdict.
        for last in (False, False, True):
            out = a.sh("turnutils_natdiscovery -m -f -L %s %s" % (a.families[number], server))
            case.note(out)
            if last or ("NAT with Endpoint Independent Mapping" in out and verdict in out):
                break
        assert "NAT with Endpoint Independent Mapping" in out, out
        assert verdict in out, out
    host.finish()


# 6


@suite.test("a smaller MTU on the path: TCP through NAT learns it and goes on, octet for octet; a datagram hears EMSGSIZE")
def path_mtu(case):
    host, a = world(case, "a")
    host.nginx()
    path = os.path.join(case.run, "up")
    with open(path, "wb") as out:
        out.write(os.urandom(3 << 20))
    host.narrow(1300)
    for number, server in enumerate(SERVER):
        a.sh("curl -sS -f -m 60 -T %s %s" % (path, url(server, "up-%d" % number)))
        assert digest(os.path.join(host.www, "up-%d" % number)) == digest(path)
        assert "mtu 1300" in a.sh("ip route get %s" % server), "the container's kernel has learnt it"
        a.sh("ip -4 route flush cache; ip -6 route flush cache")
        assert a.peer("datagram", host=server, port=9, octets=1400) == "EMSGSIZE"
        found = a.peer("datagram", host=server, port=9, octets=1400)
        # The kernel's NAT puts IPv6 fragments together, and sends them on whole.
        wanted = "EMSGSIZE" if number and internet.WAY == "kernel" else "ECONNREFUSED"
        assert found == wanted, "in fragments, to a port that is closed: %s" % found
        a.sh("ip -4 route flush cache; ip -6 route flush cache")
        out = a.sh("tracepath -n -m 8 %s" % server)
        assert "pmtu 1300" in out and "reached" in out, out
    host.finish()


@suite.test("an uplink with a smaller MTU than the networks: too big is told (RFC 4787 REQ-13); what may be fragmented leaves in fragments")
def narrow_uplink(case):
    product_only("the kernel's interface has one MTU")
    host, a = world(case, "a", start=False)
    host.uplink(mtu=1300)
    host.start()
    host.server.peer("reflect", port=REFLECT)
    for number, server in enumerate(SERVER):
        own = a.families[number]
        a.peer("bind", name=server, host=own, port=6000)
        told = a.peer("ask", name=server, to=[server, REFLECT])
        assert a.peer("datagram", host=server, port=9, octets=1400) == "EMSGSIZE"
        assert "mtu 1300" in a.sh("ip route get %s" % server), "the container's kernel has learnt it"
        assert a.peer("datagram", host=server, port=9, octets=1400) == "ECONNREFUSED", "in fragments, by its own kernel"
        if number:
            # Routers of IPv6 do not fragment (RFC 8200 §5).
            continue
        listener = host.router.capture("host0", "udp or ip[6:2] & 0x3fff != 0")
        text = b"all of it " * 145
        datagram = packets.with_checksum(own, server, 17, struct.pack(">HHHH", 6000, REFLECT, 8 + len(text), 0) + text, 6)
        a.peer("frames", device=a.device, frames=[packets.ip_frame(a.mac, ROUTER_MAC, own, server, 17, datagram, 77).hex()])
        answer = a.peer("take", name=server)
        assert answer and json.loads(answer[0]) == told, "without DF, fragmented by the switch: %s" % answer
        left = [seen for seen in listener.stop() if seen.dst == server]
        assert len(left) == 2 and left[0].protocol == 17 and left[1].protocol is None, "in order: %s" % left
        assert {seen.src for seen in left} == {told[0]} and all(len(seen.data) <= 14 + 1300 for seen in left), left
    # More than the interface has: that of the interface, and doctor says so.
    host.uplink(mtu=9000)
    host.reload()
    assert host.uplink_status()["mtu"] == 1500
    asked, = [found for found in host.daemon.rpc("doctor.run")["findings"] if "9000" in found["message"]]
    assert (asked["check"], asked["severity"]) == ("mtu", "warning") and "9000 asked, up0 has 1500" in asked["message"], asked
    assert "ip link set dev up0 mtu 9000" in asked["help"], asked
    host.finish()


@suite.test("a network with a smaller MTU than the outside: MSS says so, datagrams hear EMSGSIZE from the switch; octet for octet, both ways")
def narrow_network(case):
    product_only("the kernel's bridge has one MTU")
    host, a = world(case, "a", mtu=1300)
    host.attach(a, *FIRST_PUBLIC)
    host.nginx()
    with open(os.path.join(host.www, "big"), "wb") as out:
        out.write(os.urandom(3 << 20))
    # A container that says it takes segments as long as the outside has them.
    a.sh("ip -4 route change default via {0} dev {1} advmss 1460; ip -6 route change default via fe80::1 dev {1} advmss 1440".format(
        GATEWAY[0], a.device))
    a.peer("serve", port=ECHO)
    for number, server in enumerate(SERVER):
        listener, answers = host.router.capture("host0", "tcp port 80", octets=128), a.capture(a.device, "tcp port 80", octets=128)
        path = os.path.join(case.run, "got")
        a.sh("curl -sS -f -m 60 -o %s %s" % (path, url(server, "big")))
        assert digest(path) == digest(os.path.join(host.www, "big"))
        a.sh("curl -sS -f -m 60 -T %s %s" % (path, url(server, "up-%d" % number)))
        assert digest(path) == digest(os.path.join(host.www, "up-%d" % number))
        # The first option is the MSS (RFC 9293 §3.7.1).
        mss = lambda mtu: b"\2\4" + (mtu - (40, 60)[number]).to_bytes(2, "big")
        begins = [seen for seen in listener.stop() if seen.tcp_flags & SYN]
        begun = [seen for seen in begins if seen.src != server]
        assert begun and all(seen.body[20:24] == mss(1300) for seen in begun), begun
        # What the server says about itself is made to fit, too.
        assert {seen.body[20:24] for seen in begins if seen.src == server} == {mss(1500)}, begins
        told = [seen for seen in answers.stop() if seen.tcp_flags & SYN and seen.src == server]
        assert told and all(seen.body[20:24] == mss(1300) for seen in told), told
        public = FIRST_PUBLIC[number]
        a.carry(public)
        # And what a customer says, who begins.
        said, heard = host.router.capture("host0", "tcp port %d" % ECHO), a.capture(a.device, "tcp port %d" % ECHO)
        assert host.customer.peer("open", group=public, host=public, port=ECHO) == {"opened": 1, "failed": {}}
        for listener, mtu in ((said, 1500), (heard, 1300)):
            told = [seen for seen in listener.stop() if seen.tcp_flags & SYN and seen.src == CUSTOMER[number]]
            assert told and all(seen.body[20:24] == mss(mtu) for seen in told), (mtu, told)
        assert host.server.peer("datagram", host=public, port=9, octets=1400) == "EMSGSIZE"
        assert "mtu 1300" in host.server.sh("ip route get %s" % public), "the server has learnt it"
        assert host.server.peer("datagram", host=public, port=9, octets=1400) == "ECONNREFUSED", "in fragments"
    # Datagrams that leave their sender as one frame, and that a router may cut.
    got = os.path.join(case.run, "datagrams")
    a.spawn(["python3", "-c", """
import socket as s
u = s.socket(s.AF_INET, s.SOCK_DGRAM)
u.bind(("", 7003))
print("ready", flush=True)
while True:
    data = u.recv(65535)
    with open("%s", "a") as out:
        out.write("%%d %%d\\n" %% (len(data), data[0]) if len(set(data)) == 1 else "mixed\\n")
""" % got], "datagrams.log")
    until(lambda: ":7003 " in a.sh("ss -uln"), "it listens", 20)
    listener = a.capture(a.device, "udp port 7003 or ip[6:2] & 0x1fff != 0", octets=128)
    host.server.sh("""python3 -c '
import socket as s
u = s.socket(s.AF_INET, s.SOCK_DGRAM)
u.setsockopt(s.IPPROTO_IP, 10, 4)       # IP_MTU_DISCOVER: IP_PMTUDISC_INTERFACE, whatever it has learnt
u.setsockopt(17, 103, 1400)             # SOL_UDP, UDP_SEGMENT
u.sendto(b"".join(bytes([n]) * 1400 for n in range(20)) + b"z" * 100, ("%s", 7003))'""" % FIRST_PUBLIC[0])
    until(lambda: os.path.exists(got) and len(open(got).readlines()) == 21, "each of them whole", 20)
    assert open(got).read() == "".join("1400 %d\n" % n for n in range(20)) + "100 122\n", open(got).read()
    assert len(listener.stop()) == 41, "two fragments each, and a short one"
    host.finish()


# 7


@suite.test("direct attach: the container has the public address on its NIC; every protocol and port comes in, its own leave from there", cases=DRIVERS)
def direct_attach(case, driver):
    host, a, b = world_with(case, driver, "a", "b")
    host.attach(a, *FIRST_PUBLIC)
    host.server.peer("serve", port=TELLS, mode="tells")
    host.server.peer("reflect", port=REFLECT)
    for number, public in enumerate(FIRST_PUBLIC):
        a.carry(public)
        if not number:
            for port in (22, 8080, 65535):
                a.peer("serve", port=port, mode="tells")
            a.peer("reflect", port=53)
        for node, own in ((host.customer, CUSTOMER), (host.server, SERVER)):
            node.sh("ping -c 2 -i 0.2 -W 3 %s" % public)
            for port in (22, 8080, 65535):
                assert outside_of(node, a, public, port)[0] == own[number], "the guest sees who it is"
            node.peer("bind", name="u", host=own[number])
            assert node.peer("ask", name="u", to=[public, 53])[0] == own[number]
            # Nobody listens: its own kernel says so.
            assert node.peer("datagram", host=public, port=9) == "ECONNREFUSED"
            assert node.peer("open", group="closed", host=public, port=9, timeout=5)["failed"] == {"ECONNREFUSED": 1}
        assert outside_of(a, host.server, SERVER[number])[0] == public, "its own connections leave from there"
        a.peer("bind", name="own", host=public, port=6000)
        assert a.peer("ask", name="own", to=[SERVER[number], REFLECT]) == [public, 6000], "unchanged"
        a.sh("ping -c 2 -i 0.2 -W 3 %s" % SERVER[number])
        # The other one has what it had: the pool.
        assert in_pool(outside_of(b, host.server, SERVER[number])[0])
    # A protocol without ports: 47, GRE (RFC 2784), as it is.
    listener = a.capture(a.device, "ip proto 47 or ip6 proto 47")
    mac = host.router.sh("cat /sys/class/net/host0/address").strip()
    up0 = host.host.sh("cat /sys/class/net/up0/address").strip()
    for number, public in enumerate(FIRST_PUBLIC):
        frame = packets.ip_frame(mac, up0, CUSTOMER[number], public, 47, b"\0\0\x08\0 payload")
        host.router.peer("frames", device="host0", frames=[frame.hex()])
    until(lambda: len(listener.frames()) == 2, "GRE arrives", 5)
    host.finish()


@suite.test("direct attach: policy judges what comes in by its real source, the first packet and the thousandth")
def attach_policy(case):
    host, a = world(case, "a")
    host.attach(a, *FIRST_PUBLIC)
    for public in FIRST_PUBLIC:
        a.carry(public)
    a.peer("serve", port=TELLS, mode="tells")
    for number, public in enumerate(FIRST_PUBLIC):
        assert outside_of(host.customer, a, public)[0] == CUSTOMER[number]
    host.admit(a, SERVER[0] + "/32", SERVER[1] + "/128")
    before = host.drops("policy_denied")
    for number, public in enumerate(FIRST_PUBLIC):
        found = host.customer.peer("open", group="denied", host=public, port=TELLS, timeout=2)
        assert found == {"opened": 0, "failed": {"timeout": 1}}, found
        assert host.customer.sh("ping -c 1 -W 1 %s" % public, check=False).returncode == 1
        assert outside_of(host.server, a, public)[0] == SERVER[number]
    if before is not None:
        assert host.drops("policy_denied") >= before + 4
    host.finish()


@suite.test("direct attach: an address moves from one port to another and back; the daemon goes on, and so does everything else")
def attach_moves(case):
    host, a, b = world(case, "a", "b")
    host.server.peer("serve", port=ECHO)
    for space in (a, b):
        space.peer("serve", port=TELLS, mode="tells")
    for server in SERVER:
        assert b.peer("open", group="nat" + server, host=server, port=ECHO, count=20)["opened"] == 20
    for turn, (to, other) in enumerate(((a, b), (b, a), (a, b))):
        host.attach(to, *FIRST_PUBLIC)
        for number, public in enumerate(FIRST_PUBLIC):
            if turn:
                other.drop(public)
            to.carry(public)

            def arrives():
                listener = "tells-%d-%d" % (turn, number)
                found = host.customer.peer("open", group=listener, host=public, port=TELLS, timeout=1)
                return found["opened"] >= 1 and host.customer.peer("tell", group=listener)[0] == CUSTOMER[number]

            until(arrives, "%s reaches %s" % (public, to.short), 15)
            remotes = [r[0] for r in to.peer("remotes", port=TELLS)]
            assert CUSTOMER[number] in remotes, "it is %s that was reached" % to.short
            assert outside_of_attached(host, to, number) == public
        for server in SERVER:
            assert b.peer("echo", group="nat" + server) == {"ok": 20}, "what was there before goes on"
    host.finish()


def outside_of_attached(host, space, number):
    """Who a container is to the second server."""
    if not getattr(host.second, "told", False):
        host.second.peer("serve", port=TELLS, mode="tells")
        host.second.told = True
    return outside_of(space, host.second, SECOND[number])[0]


@suite.test("1:1 NAT: a guest that cannot carry the address has it all the same, every protocol and port, both ways")
def one_to_one(case):
    host, a = world(case, "a")
    host.attach(a, *FIRST_PUBLIC, one_to_one=True)
    host.server.peer("serve", port=TELLS, mode="tells")
    host.server.peer("reflect", port=REFLECT)
    a.peer("serve", port=22, mode="tells")
    a.peer("reflect", port=53)
    for number, public in enumerate(FIRST_PUBLIC):
        host.customer.sh("ping -c 5 -i 0.2 -W 8 %s" % public)
        assert outside_of(host.customer, a, public, 22)[0] == CUSTOMER[number]
        host.customer.peer("bind", name="u", host=CUSTOMER[number])
        assert host.customer.peer("ask", name="u", to=[public, 53])[0] == CUSTOMER[number]
        assert host.customer.peer("datagram", host=public, port=9) == "ECONNREFUSED"
        assert outside_of(a, host.server, SERVER[number])[0] == public
        a.peer("bind", name="own", host=a.families[number], port=6000)
        assert a.peer("ask", name="own", to=[SERVER[number], REFLECT]) == [public, 6000], "ports stay as they are"
        a.sh("ping -c 2 -i 0.2 -W 3 %s" % SERVER[number])
    host.finish()


@suite.test("da3: two ports that claim one address: apply is refused, names both, and what was before stays")
def two_claims(case):
    product_only("objects")
    host, a, b = world(case, "a", "b")
    host.attach(a, *FIRST_PUBLIC)
    for public in FIRST_PUBLIC:
        a.carry(public)
    a.peer("serve", port=TELLS, mode="tells")
    for number, public in enumerate(FIRST_PUBLIC):
        assert outside_of(host.customer, a, public)[0] == CUSTOMER[number]
    host.annotate(b, "own-ip")
    try:
        host.reload()
        refused = json.dumps(b.port.describe())
        assert "default/a" in refused or " a " in refused, "its status says who has it: %s" % refused
    except RuntimeError as error:
        refused = str(error)
        assert "default/a" in refused and "default/b" in refused, refused
    for number, public in enumerate(FIRST_PUBLIC):
        assert outside_of(host.customer, a, public)[0] == CUSTOMER[number], "the first goes on"
    host.finish()


# 8


@suite.test("kill -9 under 200 (then 1,000) translated TCP connections and a UDP mapping: all go on, from the same outside ports",
            cases={"200": (200, None), "1000": (1000, None), "afXdp": (200, "afXdp")})
def killed(case, how):
    count, driver = how
    host, a, b = world_with(case, driver, "a", "b")
    host.server.peer("serve", port=ECHO)
    host.server.peer("reflect", port=REFLECT)
    each = count // 4
    told = {}
    for space in (a, b):
        for number, server in enumerate(SERVER):
            opened = space.peer("open", group=server, host=server, port=ECHO, count=each)
            assert opened == {"opened": each, "failed": {}}, opened
            assert space.peer("echo", group=server) == {"ok": each}
            space.peer("bind", name=server, host=space.families[number], port=6000)
            told[space.short, server] = space.peer("ask", name=server, to=[server, REFLECT])
            assert in_pool(told[space.short, server][0])
    before = sorted(map(tuple, host.server.peer("remotes", port=ECHO)))
    assert len(set(before)) == count
    for times, how in enumerate(("kill", "stop", "kill"), 1):
        host.restart(how)
        for space in (a, b):
            for number, server in enumerate(SERVER):
                assert space.peer("echo", group=server, timeout=30) == {"ok": each}, (how, space.short, server)
                again = space.peer("ask", name=server, to=[server, REFLECT])
                assert again == told[space.short, server], (how, again, told)
                # Nobody new gets an outside port that is in use.
                assert space.peer("open", group="new" + server, host=server, port=ECHO, count=20)["failed"] == {}
                assert space.peer("echo", group="new" + server) == {"ok": 20 * times}, (how, space.short, server)
        after = list(map(tuple, host.server.peer("remotes", port=ECHO)))
        assert len(after) == len(set(after)) and set(before) <= set(after), "the same connections, all different"
    host.finish()


# 9


@suite.test("the uplink goes down and up again, four times: what needed it waits and goes on; what did not never notices", cases=DRIVERS)
def flapped(case, driver):
    host, a, b = world_with(case, driver, "a", "b")
    host.server.peer("serve", port=ECHO)
    b.peer("serve", port=ECHO)
    for server in SERVER:
        assert a.peer("open", group=server, host=server, port=ECHO, count=50)["opened"] == 50
    for address in b.families:
        assert a.peer("open", group=address, host=address, port=ECHO, count=50)["opened"] == 50
    for space, device in ((host.host, "up0"), (host.router, "host0")) * 2:
        space.sh("ip link set %s down" % device)
        for address in b.families:
            assert a.peer("echo", group=address, timeout=5) == {"ok": 50}, "others do not notice"
        time.sleep(0.5)
        if internet.WAY == "product":
            degraded = lambda: host.daemon.rpc("server.status")["degraded"]
            until(lambda: any("nothing passes up0" in reason for reason in degraded()), "status says so", 10)
        space.sh("ip link set %s up" % device)
        # The kernel's IPv6 addresses went with the link.
        if space is host.router:
            space.sh("ip addr replace %s/64 dev host0 nodad" % ROUTER[1])
        else:
            space.sh("ip addr replace %s/64 dev up0 nodad; ip route replace default via %s; ip route replace default via %s" % ((KERNEL[1],) + ROUTER))
            if internet.WAY != "product":
                space.sh("; ".join("ip addr replace %s/128 dev up0 nodad" % address for address in addresses(POOL[1])))
        for server in SERVER:
            assert a.peer("echo", group=server, timeout=40) == {"ok": 50}, server
    host.finish()


@suite.test("a bridge that snoops multicast between host and router: solicitations for attached and pool addresses reach the host, for as long as one likes")
def snooped(case):
    product_only("the kernel reports its own groups")
    host, a = world(case, "a", start=False)
    # The segment's bridge asks every 3 s who listens, and forgets whoever has not said so for 8 s.
    host.router.sh("ip addr flush dev host0; ip link add seg type bridge mcast_snooping 1 mcast_querier 1 mcast_mld_version 2 mcast_startup_query_interval 100 "
                   "mcast_query_interval 300 mcast_query_response_interval 100 mcast_membership_interval 800; ip link set host0 master seg; "
                   "ip link set seg up; ip addr add %s/24 dev seg; ip addr add %s/64 dev seg nodad" % ROUTER)
    time.sleep(5)
    host.start()
    host.attach(a, *FIRST_PUBLIC)
    host.server.peer("serve", port=ECHO)
    for server, public in zip(SERVER, FIRST_PUBLIC):
        assert a.peer("open", group=server, host=server, port=ECHO, count=5)["opened"] == 5
        a.carry(public)
    for seconds in (0, 20):
        time.sleep(seconds)
        host.router.sh("ip neigh flush dev seg")
        for server, public in zip(SERVER, FIRST_PUBLIC):
            host.customer.sh("ping -c 5 -i 0.2 -W 8 %s" % public)
            assert a.peer("echo", group=server, timeout=60) == {"ok": 5}, "by the pool: %s" % server
    known = host.router.sh("bridge mdb show dev seg")
    assert "ff02::1:ff00:22" in known, known
    host.finish()


@suite.test("a container with an attached address, or 1:1: TCP from it and to it outlives an uplink that flaps, and learns a path that gets narrow",
            cases={"direct": False, "one-to-one": True})
def attach_recovers(case, one_to_one):
    host, a = world(case, "a")
    host.attach(a, *FIRST_PUBLIC, one_to_one=one_to_one)
    host.nginx()
    path = os.path.join(case.run, "up")
    with open(path, "wb") as out:
        out.write(os.urandom(3 << 20))
    for node in (a, host.server):
        node.peer("serve", port=ECHO)
    pairs = list(zip(SERVER, FIRST_PUBLIC))
    for server, public in pairs:
        if not one_to_one:
            a.carry(public)
        for space, to in ((a, server), (host.customer, public)):
            assert space.peer("open", group=to, host=to, port=ECHO, count=50) == {"opened": 50, "failed": {}}
    for server, public in pairs:
        seen = {remote for remote, _ in host.server.peer("remotes", port=ECHO)}
        assert public in seen, "it comes from there: %s" % seen
    for _ in range(2):
        host.router.sh("ip link set host0 down")
        time.sleep(0.5)
        host.router.sh("ip link set host0 up; ip addr replace %s/64 dev host0 nodad" % ROUTER[1])
        for server, public in pairs:
            for space, to in ((a, server), (host.customer, public)):
                assert space.peer("echo", group=to, timeout=40) == {"ok": 50}, to
    host.narrow(1300)
    for number, (server, _) in enumerate(pairs):
        a.sh("curl -sS -f -m 60 -T %s %s" % (path, url(server, "up-%d" % number)))
        assert digest(os.path.join(host.www, "up-%d" % number)) == digest(path)
        assert "mtu 1300" in a.sh("ip route get %s" % server), "the container's kernel has learnt it"
    host.finish()


@suite.test("dig asks a real named outside, by NAT: UDP and TCP, both families, each kind of record, and one that is cut off and comes over TCP")
def dig_outside(case):
    requirements.programs("dig", "named")
    host, a = world(case, "a")
    host.named(ZONE + "".join("many A 203.0.113.%d\n" % n for n in range(1, 101)))
    for server in SERVER:
        for how in ("+notcp", "+tcp"):
            ask = lambda *words: a.sh("dig +time=10 +tries=2 +short @%s %s %s" % (server, how, " ".join(words))).split()
            assert ask("www.example.org") == ["203.0.113.80"]
            assert ask("www.example.org", "AAAA") == ["2001:db8:201::80"]
            assert ask("example.org", "NS") == ["ns.example.org."]
        assert len(a.sh("dig +time=10 +tries=2 +short @%s many.example.org" % server).split()) == 100, "over TCP by itself"
    host.finish()


@suite.test("the gateway has another MAC address all of a sudden, and does not say so: it is found again, and traffic goes on")
def gateway_changes(case):
    host, a = world(case, "a")
    host.server.peer("serve", port=ECHO)
    for server in SERVER:
        assert a.peer("open", group=server, host=server, port=ECHO, count=20)["opened"] == 20
    # Nor does it ask for anybody, which would say it, too.
    ours = host.host.sh("cat /sys/class/net/up0/address").strip()
    known = [address for cidr in POOL for address in addresses(cidr)] + list(KERNEL)
    host.router.sh("ip link set host0 address 02:00:00:00:01:01; " + "; ".join(
        "ip neigh replace %s lladdr %s dev host0 nud permanent" % (address, ours) for address in known))
    for server in SERVER:
        assert a.peer("echo", group=server, timeout=60) == {"ok": 20}, server
    host.finish()


@suite.test("one of two gateways dies without a word: its share of the connections goes on by the other")
def gateway_dies(case):
    product_only("the kernel's route has one")
    host, a = world(case, "a", start=False)
    second = "198.51.100.5", "2001:db8:100::5"
    host.router.sh("sysctl -qw net.ipv4.conf.all.arp_ignore=1; ip link add link host0 name gw2 type macvlan mode bridge; "
                   "ip addr add %s/24 dev gw2; ip addr add %s/64 dev gw2 nodad; ip link set gw2 up" % second)
    host.uplink(gateways=list(ROUTER + second))
    host.start()
    host.server.peer("serve", port=ECHO)
    listener = host.router.capture("gw2", "tcp")
    for server in SERVER:
        assert a.peer("open", group=server, host=server, port=ECHO, count=40)["opened"] == 40
        assert a.peer("echo", group=server) == {"ok": 40}
    used = {family(seen.dst) for seen in listener.stop() if seen.dst in SERVER}
    assert used == {0, 1}, "both families use both: %s" % used
    host.router.sh("ip link set gw2 down")
    for server in SERVER:
        assert a.peer("echo", group=server, timeout=60) == {"ok": 40}, server
    host.finish()


def on_link(host):
    """Neighbours at the uplink: state and MAC by address."""
    return {one["address"]: (one["state"], one["mac"]) for one in host.uplink_status()["neighbors"]}


@suite.test("a machine on the uplink's own link is reached without the router, by NAT and from an attached address, and found again when its MAC changes",
            cases=DRIVERS)
def neighbour(case, driver):
    host, a = world_with(case, driver, "a")
    near = host.neighbour()
    near.peer("serve", port=ECHO)
    a.peer("serve", port=ECHO)
    mac = lambda: near.sh("cat /sys/class/net/near0/address").strip()
    by_router = host.router.capture("host0", "tcp port %d" % ECHO)
    for address in NEAR:
        assert a.peer("open", group=address, host=address, port=ECHO, count=20) == {"opened": 20, "failed": {}}
        assert a.peer("echo", group=address) == {"ok": 20}
    assert all(in_pool(remote) for remote, _ in near.peer("remotes", port=ECHO)), "translated"
    if internet.WAY == "product":
        assert {on_link(host)[address] for address in NEAR} == {("reachable", mac())}
        # What was sent before it answered went to the router, which is no way there.
        router = host.router.sh("cat /sys/class/net/host0/address").strip()
        late = [seen for seen in by_router.stop() if seen.dst_mac == router and not seen.tcp_flags & SYN]
        assert not late, late[:3]
        host.attach(a, *FIRST_PUBLIC, one_to_one=True)
        for public in FIRST_PUBLIC:
            assert near.peer("open", group=public, host=public, port=ECHO, count=20) == {"opened": 20, "failed": {}}
    # Another network card, which says nothing.
    near.sh("ip link set near0 address 02:00:00:00:01:77; ip addr replace %s/64 dev near0 nodad" % NEAR[1])
    for address in NEAR:
        assert a.peer("echo", group=address, timeout=60) == {"ok": 20}, address
    host.finish()


@suite.test("an uplink with a subnet and no router: neighbours are reached, one that does not answer is told to be unreachable, nobody else is looked for")
def neighbours_only(case):
    product_only("an uplink without gateways")
    host, a = world(case, "a", start=False)
    host.uplink(gateways=[])
    near = host.neighbour()
    near.peer("serve", port=ECHO)
    host.start()
    for number, address in enumerate(NEAR):
        # The first packet asks for it, and is not kept.
        until(lambda: a.sh("ping -c 1 -W 1 %s" % address, check=False).returncode == 0, "%s answers" % address, 10)
        assert a.sh("ping -c 5 -i 0.2 -W 10 %s | grep -c 'bytes from'" % address).strip() == "5"
        assert a.peer("open", group=address, host=address, port=ECHO, count=20)["opened"] == 20
        nobody = NEAR[number].replace("77", "78")
        said = a.sh("ping -c 5 -W 1 %s" % nobody, check=False).stdout
        assert "nreachable" in said, said
        until(lambda: on_link(host)[nobody] == ("unresolved", None), "%s is not found" % nobody, 10)
        far = a.sh("ping -c 2 -W 1 %s" % SERVER[number], check=False).stdout
        assert "nreachable" in far and SERVER[number] not in on_link(host), far
    assert host.daemon.stats()["a"]["dropped"]["next_hop_unresolved"] >= 6
    host.finish()


@suite.test("a container that scans the uplink's subnet: few questions at once, and its neighbour's connections are as they were")
def scans_the_link(case):
    product_only("a guest against the switch")
    host, a, b = world(case, "a", "b")
    near = host.neighbour()
    near.peer("serve", port=ECHO)
    for address in NEAR:
        assert b.peer("open", group=address, host=address, port=ECHO, count=20)["opened"] == 20
    asked = near.capture("near0", "arp or icmp6")
    started = time.monotonic()
    a.sh("for i in $(seq 100 254); do for to in 198.51.100.$i 2001:db8:100::1$i; do ping -c 1 -W 0.01 $to >/dev/null; done; done; true", 200)
    took = time.monotonic() - started
    for address in NEAR:
        assert b.peer("echo", group=address) == {"ok": 20}
        assert b.peer("open", group="more" + address, host=address, port=ECHO, count=20)["opened"] == 20
    neighbours = on_link(host)
    for address in NEAR:
        assert neighbours[address][0] == "reachable"
    asked = [seen for seen in asked.stop() if seen.src in OWN and (seen.ethertype == 0x0806 or seen.neighbour)]
    # A port is looked after eight at a time, each for a second; without a bound it is three questions for each of 310.
    assert 3 <= len(asked) < 100 + 12 * took, (len(asked), took)
    host.finish()


def flood_stopped(host, address, drops):
    """While the daemon is stopped, the server sends datagrams until the kernel drops some of them there, as `drops` counts. Returns how many it sent."""
    host.daemon.process.send_signal(signal.SIGSTOP)
    sent, before = 0, drops()

    def dropped():
        nonlocal sent
        # Queues on the way lose some, on a machine that is busy: then what gets here fits.
        host.server.sh("python3 -c 'import socket as s; u = s.socket(s.AF_INET%s, s.SOCK_DGRAM); [u.sendto(bytes(1400), (\"%s\", 9)) for _ in range(40000)]'"
                       % ("6" if family(address) else "", address))
        sent += 40000
        return drops() > before

    try:
        until(dropped, "the kernel drops what does not fit", 120, 0)
    finally:
        host.daemon.process.send_signal(signal.SIGCONT)
    return sent


@suite.test("frames that come while no worker runs: what the kernel drops is counted by uplink get, /metrics and doctor; the rest is received",
            cases=DRIVERS)
def missed(case, driver):
    product_only("its counters")
    host, a = world_with(case, driver, "a")
    host.server.peer("serve", port=ECHO)
    pool = [addresses(cidr)[0] for cidr in POOL]
    # The router asks nobody who cannot answer.
    mac = host.host.sh("cat /sys/class/net/up0/address").strip()
    host.router.sh("; ".join("ip neigh replace %s lladdr %s dev host0 nud permanent" % (address, mac) for address in pool))

    def counted():
        status = host.uplink_status()
        return status["missedPackets"], status["counters"]["receivedPackets"]

    assert counted()[0] == 0 and "missed" not in host.daemon.cli("uplink", "get")
    # Of packet sockets: the daemon has the only ones here.
    drops = lambda: sum(map(int, re.findall(r"skmem:\([^)]*,d([0-9]+)\)", host.host.sh("ss -0mH"))))
    first, sent = counted(), 0
    for address in pool:
        before = counted()
        sent += flood_stopped(host, address, drops)
        until(lambda: counted()[0] > before[0], "what the kernel dropped is counted", 20)
        until(lambda: counted()[1] > before[1] + 1000, "what fitted is received", 20)
    until(lambda: counted() == (time.sleep(1.2), counted())[1], "all that fitted is received", 60)
    # Neighbours say a little.
    assert sum(counted()) - sum(first) < sent + 2000, "each frame counts once: %s, %s" % (first, counted())
    total = counted()[0]
    assert "missed: %d (" % total in host.daemon.cli("uplink", "get")
    assert 'hostweave_uplink_missed_packets_total{interface="up0"} %d' % total in host.daemon.http("/metrics")[1].splitlines()
    findings = json.loads(host.daemon.cli("doctor", "-o", "json", check=False).stdout)
    assert [finding["severity"] for finding in findings if "dropped %d frames" % total in finding["message"]] == ["note"], findings
    for server in SERVER:
        assert a.peer("open", group=server, host=server, port=ECHO, count=5)["opened"] == 5
    host.finish()


def conflicts(host):
    """Addresses that are not used because somebody else has them, with his MAC."""
    return {conflict["address"]: conflict["mac"] for conflict in host.uplink_status()["conflicts"] if not conflict["used"]}


def contested(host):
    """Addresses that are used although somebody else claims them, with his MAC."""
    return {conflict["address"]: conflict["mac"] for conflict in host.uplink_status()["conflicts"] if conflict["used"]}


@suite.test("an address that another host has already: not announced, not used, a Conflict with his MAC; taken over when he lets go of it")
def address_taken(case):
    product_only("kernels do not look")
    host, a = world(case, "a")
    mac = host.router.sh("cat /sys/class/net/host0/address").strip()
    up0 = host.host.sh("cat /sys/class/net/up0/address").strip()
    host.server.peer("serve", port=TELLS, mode="tells")
    listener = host.router.capture("host0", "arp or icmp6")
    host.router.sh("ip addr add %s/32 dev host0; ip addr add %s/128 dev host0 nodad" % FIRST_PUBLIC)
    host.attach(a, *FIRST_PUBLIC)
    until(lambda: conflicts(host) == {public: mac for public in FIRST_PUBLIC}, "both are found out", 10)
    for number, public in enumerate(FIRST_PUBLIC):
        host.customer.sh("ping -c 1 -W 3 %s" % public)
        assert in_pool(outside_of(a, host.server, SERVER[number])[0]), "what needs neither goes on"
    doctor = json.dumps(host.daemon.rpc("doctor.run"))
    assert all("%s is not used: %s" % (public, mac) in doctor for public in FIRST_PUBLIC), doctor
    said = [seen for seen in listener.stop() if seen.src_mac == up0]
    asked = [seen for seen in said if seen.src in ("0.0.0.0", "::")]
    assert len(asked) >= 2 and not [seen for seen in said if seen.src in FIRST_PUBLIC], "probed, not announced: %s" % said
    # It moves here.
    listener = host.router.capture("host0", "arp or icmp6")
    host.router.sh("ip addr del %s/32 dev host0; ip addr del %s/128 dev host0" % FIRST_PUBLIC)
    until(lambda: not conflicts(host), "both are free", 40)
    for public in FIRST_PUBLIC:
        a.carry(public)
        until(lambda: host.customer.sh("ping -c 1 -W 1 %s" % public, check=False).returncode == 0, "it is the container's", 10)
    told = {seen.src for seen in listener.stop() if seen.src_mac == up0 and seen.dst_mac in ("ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01")}
    assert told >= set(FIRST_PUBLIC), "announced: %s" % told
    host.finish()


def errors_from_outside(host, a):
    """ICMP errors about connections to attached addresses: of a router on the way, and that a packet is too large. Those seen."""
    listener = host.router.capture("host0", "icmp or icmp6")
    for number, public in enumerate(FIRST_PUBLIC):
        said = host.customer.sh("ping -c 2 -i 0.3 -W 2 -t 2 %s" % public, check=False).stdout
        assert "ime to live exceeded" in said or "op limit" in said, said
        assert host.customer.peer("datagram", host=public, port=9, octets=1400) == "EMSGSIZE"
        assert "mtu 1300" in host.customer.sh("ip route get %s" % public), "the customer has learnt it"
    seen = [seen for seen in listener.stop() if seen.dst in CUSTOMER and seen.icmp in ((11, 0), (3, 4), (3, 0), (2, 0))]
    assert {seen.icmp for seen in seen} == {(11, 0), (3, 4), (3, 0), (2, 0)}, seen
    return seen


@suite.test("the host's own address is another's: errors about packets from outside come from the pool, and not from there")
def own_address_taken(case):
    product_only("kernels do not look")
    host, a = world(case, "a", mtu=1300, start=False)
    host.router.sh("ip addr add %s/32 dev host0; ip addr add %s/128 dev host0 nodad" % OWN)
    host.start()
    host.attach(a, *FIRST_PUBLIC)
    until(lambda: set(conflicts(host)) == set(OWN), "both are found out", 10)
    for public in FIRST_PUBLIC:
        a.carry(public)
        until(lambda: host.customer.sh("ping -c 1 -W 1 %s" % public, check=False).returncode == 0, "it is the container's", 10)
    for seen in errors_from_outside(host, a):
        assert in_pool(seen.src), seen
    host.router.sh("ip addr del %s/32 dev host0; ip addr del %s/128 dev host0" % OWN)
    until(lambda: not conflicts(host), "both are free", 40)
    host.customer.sh("ip -4 route flush cache; ip -6 route flush cache")
    for seen in errors_from_outside(host, a):
        assert seen.src in OWN, seen
    host.finish()


@suite.test("a router that is known by its link-local address, and no IPv6 address of the host's own: NAT and attached addresses work, too large is told from the pool")
def link_local_gateway(case):
    product_only("an uplink without IPv6 addresses")
    host, a = world(case, "a", mtu=1300, start=False)
    router, = [word.split("/")[0] for word in host.router.sh("ip -6 -o addr show dev host0 scope link").split() if word.startswith("fe80:")]
    host.uplink(addresses=[OWN[0] + "/24"], gateways=[ROUTER[0], router])
    host.start()
    assert [gateway["address"] for gateway in host.uplink_status()["gateways"]] == [ROUTER[0], router]
    host.server.peer("serve", port=ECHO)
    for server in SERVER:
        assert a.peer("open", group=server, host=server, port=ECHO, count=20) == {"opened": 20, "failed": {}}
        assert a.peer("echo", group=server) == {"ok": 20}
    host.attach(a, *FIRST_PUBLIC)
    for number, public in enumerate(FIRST_PUBLIC):
        a.carry(public)
        until(lambda: host.customer.sh("ping -c 1 -W 1 %s" % public, check=False).returncode == 0, "it is the container's", 10)
        assert a.peer("open", group=public, host=SERVER[number], port=ECHO)["opened"] == 1
    for seen in errors_from_outside(host, a):
        assert seen.src == OWN[0] or family(seen.src) and in_pool(seen.src), seen
    host.finish()


@suite.test("gateways that do not answer: doctor says which, by ARP or ND, and no more once they do")
def gateway_silent(case):
    product_only("doctor")
    host, a = world(case, "a", start=False)
    nobody = "198.51.100.9", "2001:db8:100::9"
    host.uplink(gateways=list(nobody))
    host.daemon.start()
    until(lambda: host.uplink_status()["link"], "the link", 20)
    # Longer than it takes to ask three times.
    time.sleep(4)
    finished = host.daemon.cli("doctor", "-o", "json", check=False)
    found = [finding for finding in json.loads(finished.stdout) if finding["check"] == "gateway"]
    words = ["%s does not answer %s at up0" % asked for asked in zip(nobody, ("ARP", "neighbour discovery"))]
    assert [(one["severity"], one["message"]) for one in found] == [("error", said) for said in words], found
    assert finished.returncode == 1 and all("interface, VLAN and address" in one["help"] for one in found), found
    host.router.sh("ip addr add %s/24 dev host0; ip addr add %s/64 dev host0 nodad" % nobody)
    host.ready()
    mac = host.router.sh("cat /sys/class/net/host0/address").strip()
    found = [finding for finding in host.daemon.rpc("doctor.run")["findings"] if finding["check"] == "gateway"]
    assert [(one["severity"], one["message"]) for one in found] == [("ok", "%s is at %s" % (address, mac)) for address in nobody], found
    host.finish()


def claim(address, mac):
    """The frame by which another host announces an address."""
    octets = bytes.fromhex(mac.replace(":", ""))
    packed = ipaddress.ip_address(address).packed
    if not family(address):
        return b"\xff" * 6 + octets + b"\x08\x06\0\1\x08\0\6\4\0\1" + octets + packed + b"\0" * 6 + packed
    everybody = ipaddress.ip_address("ff02::1").packed
    body = b"\x20\0\0\0" + packed + b"\2\1" + octets
    words = packed + everybody + (len(body) + 4).to_bytes(4, "big") + b"\0\0\0\x3a" + b"\x88\0\0\0" + body
    total = sum(int.from_bytes(words[i:i + 2], "big") for i in range(0, len(words), 2))
    total = 0xffff - (total % 0xffff)
    header = b"\x60\0\0\0" + (len(body) + 4).to_bytes(2, "big") + b"\x3a\xff" + packed + everybody
    return b"\x33\x33\0\0\0\1" + octets + b"\x86\xdd" + header + b"\x88\0" + total.to_bytes(2, "big") + body


@suite.test("an address in use that another host announces, however often, is defended and goes on, with a Conflict that has his MAC")
def address_claimed(case):
    product_only("kernels do not look")
    host, a = world(case, "a")
    host.server.peer("reflect", port=REFLECT)
    up0, his = host.host.sh("cat /sys/class/net/up0/address").strip(), "02:00:00:00:00:66"
    for number, server in enumerate(SERVER):
        a.peer("bind", name="first-%d" % number, host=a.families[number])
        told = a.peer("ask", name="first-%d" % number, to=[server, REFLECT])
        assert in_pool(told[0])
        frame = claim(told[0], his).hex()
        listener = host.router.capture("host0", "arp or icmp6")
        host.router.peer("frames", device="host0", frames=[frame])
        until(lambda: [seen for seen in listener.frames() if seen.src_mac == up0 and seen.src == told[0]], "it is defended", 5)
        listener.stop()
        # Claims at any distance from each other: whatever time passes between them, it stays ours.
        for _ in range(5):
            time.sleep(0.6)
            host.router.peer("frames", device="host0", frames=[frame])
            until(lambda: contested(host).get(told[0]) == his, "people see it", 5)
            assert conflicts(host) == {}
            host.router.sh("ip neigh flush dev host0")
            assert a.peer("ask", name="first-%d" % number, to=[server, REFLECT]) == told, "it goes on"
        a.peer("bind", name="second-%d" % number, host=a.families[number])
        assert a.peer("ask", name="second-%d" % number, to=[server, REFLECT])[0] == told[0], "and what begins goes out by it, too"
    doctor = json.dumps(host.daemon.rpc("doctor.run"))
    assert "%s at the uplink claims our address" % his in doctor, doctor
    # What is over is no finding: the event of it is still in the log.
    until(lambda: not contested(host), "a minute without a claim", 90)
    doctor = json.dumps(host.daemon.rpc("doctor.run"))
    assert "claims our address" not in doctor, doctor
    host.finish()


@suite.test("addressConflicts: yield: an address in use that another host claims twice is given up to him; what began with it goes on, what begins has another")
def address_yielded(case):
    product_only("kernels do not look")
    host, a = world(case, "a", start=False)
    host.uplink(addressConflicts="yield")
    host.start()
    host.server.peer("reflect", port=REFLECT)
    up0, his = host.host.sh("cat /sys/class/net/up0/address").strip(), "02:00:00:00:00:66"
    # Somebody else on the segment, whom the router's own kernel does not hear.
    other = internet.Node(case, "other")
    host.router.sh("ip link add link host0 name liar address %s type macvlan mode bridge; ip link set liar netns %s" % (his, other.name))
    other.sh("ip link set liar up")
    draft = os.path.join(case.run, "draft.yaml")
    with open(draft, "w") as out:
        out.write("{apiVersion: v1, kind: Namespace, metadata: {name: drafted}}\n")
    for number, server in enumerate(SERVER):
        ask = lambda name: a.peer("ask", name="%s-%d" % (name, number), to=[server, REFLECT])
        for name in ("first", "second", "third"):
            a.peer("bind", name="%s-%d" % (name, number), host=a.families[number])
        told = ask("first")
        assert in_pool(told[0])
        # Traffic to it still reaches us, as of anybody who has not heard of him.
        host.router.sh("ip neigh replace %s lladdr %s dev host0 nud permanent" % (told[0], up0))
        frame = claim(told[0], his).hex()
        listener = host.router.capture("host0", "arp or icmp6")
        other.peer("frames", device="liar", frames=[frame])
        until(lambda: [seen for seen in listener.frames() if seen.src_mac == up0 and seen.src == told[0]], "the first is answered", 5)
        assert contested(host) == {told[0]: his} and conflicts(host) == {}
        listener.stop()
        time.sleep(0.6)
        other.sh("ip addr add %s dev liar%s" % (told[0] + ("/128" if number else "/32"), " nodad" if number else ""))
        other.peer("frames", device="liar", frames=[frame])
        until(lambda: conflicts(host) == {told[0]: his}, "the second takes it", 5)
        listener = host.router.capture("host0", "arp or icmp6")
        host.second.sh("ping -c 1 -W 1 %s" % told[0], check=False)
        assert ask("first") == told, "what began with it goes on"
        began = ask("second")
        assert in_pool(began[0]) and began[0] != told[0], "what begins has another: %s" % began
        # It is not ours in a draft either, that would change nothing here: whoever sends there leaves.
        to = "%s:80" % ("[%s]" % told[0] if number else told[0])
        for more in ((), ("-f", draft)):
            said = host.daemon.cli("trace", "--from", "default/a", "--to", to, *more, check=False)
            assert said.returncode == 0 and "uplink" in said.stdout, (more, said.stdout, said.stderr)
        # It is probed for, less and less often, and he says every time that he has it.
        time.sleep(2)
        assert conflicts(host) == {told[0]: his}
        said = [seen for seen in listener.stop() if seen.src_mac == up0]
        assert not [seen for seen in said if seen.src == told[0]], "not announced, no neighbour answered: %s" % said
        doctor = json.dumps(host.daemon.rpc("doctor.run"))
        assert "%s is not used: %s" % (told[0], his) in doctor, doctor
        # He lets go of it.
        other.sh("ip addr flush dev liar; ip -6 addr flush dev liar scope global")
        host.router.sh("ip neigh del %s dev host0" % told[0])
        until(lambda: not conflicts(host), "it is ours again", 40)
        assert ask("first") == told and ask("second") == began and in_pool(ask("third")[0])
    host.finish()


# 10


def foreign(host, frames, up0):
    """What the kernel of the host had no business to say on the segment."""
    ours = set(OWN) | {address for cidr in POOL + PUBLIC for address in addresses(cidr)}
    found = []
    for seen in frames:
        if seen.src_mac != up0:
            continue
        if seen.ethertype == 0x0806 and seen.dst in ours and seen.operation == 1 and seen.src not in (seen.dst, "0.0.0.0"):
            found.append(("asks for an address of ours", seen))
        if seen.neighbour and seen.neighbour[0] == 135 and seen.neighbour[1] in ours and seen.src != "::":
            found.append(("asks for an address of ours", seen))
        if seen.icmp in ((5, 0), (5, 1), (137, 0)):
            found.append(("redirects", seen))
        if seen.tcp_flags & RST and seen.src in ours:
            found.append(("resets", seen))
        if seen.icmp and seen.icmp[0] in (3, 11) and seen.protocol == 1 or seen.icmp and seen.icmp[0] in (1, 2, 3, 4) and seen.protocol == 58:
            found.append(("complains", seen))
        if seen.src in SERVER + SERVER_ALIAS + SECOND + CUSTOMER or seen.ethertype != 0x0806 and seen.dst in UNUSED:
            found.append(("forwards back what came for us", seen))
    return found


@suite.test("the host's kernel forwards, and stays out: no RST, no redirect, no duplicate, no neighbour's question or second answer", cases=DRIVERS)
def kernel_stays_out(case, driver):
    product_only("it is about the kernel beside it")
    host, a, b = world_with(case, driver, "a", "b")
    host.routed_public()
    host.attach(b, *FIRST_PUBLIC)
    host.nginx()
    host.server.peer("serve", port=ECHO)
    b.peer("serve", port=TELLS, mode="tells")
    for public in FIRST_PUBLIC:
        b.carry(public)
    up0 = host.host.sh("cat /sys/class/net/up0/address").strip()

    def talk():
        # The router asks again, with nobody's help.
        host.router.sh("ip neigh flush dev host0")
        for number, server in enumerate(SERVER):
            a.sh("curl -sS -f -m 20 -o /dev/null -w '%%{http_code}' %s || true" % url(server, ""))
            assert a.peer("open", group=server, host=server, port=ECHO, count=20)["failed"] == {}
            assert a.peer("echo", group=server) in ({"ok": 20}, {"ok": 40}, {"ok": 60})
            a.sh("ping -c 2 -i 0.2 -W 3 %s" % server)
            assert outside_of(host.customer, b, FIRST_PUBLIC[number])[0] == CUSTOMER[number]
            # To addresses of ours that nobody has, and to ports without a mapping.
            for address in (addresses(POOL[number])[3], SECOND_PUBLIC[number], OWN[number], UNUSED[number]):
                host.customer.peer("open", group="none", host=address, port=99, timeout=0.5)
            # What comes to that prefix is not sent back to where it came from.
            assert host.server.sh("ping -c 2 -i 0.2 -W 1 %s" % UNUSED[number], check=False).returncode == 1
            # The kernel's own addresses work as ever.
            host.host.sh("ping -c 1 -W 3 %s" % server)
            host.server.sh("ping -c 1 -W 3 %s" % KERNEL[number])

    def observed():
        # Nobody knows where anybody is.
        host.router.sh("ip neigh flush dev host0")
        listener = host.router.capture("host0")
        talk()
        return listener.stop()

    frames = observed()
    assert {seen.dst for seen in frames if seen.src_mac != up0} >= set(UNUSED), "the router sent it here"
    wrong = foreign(host, frames, up0)
    assert wrong == [], wrong[:10]
    # Each question is answered once.
    for number in (0, 1):
        answered = set()
        for address in addresses(POOL[number]) + [FIRST_PUBLIC[number]]:
            if number:
                asked = [s for s in frames if s.neighbour == (135, address) and s.src_mac != up0]
                # Solicited ones: the others are announcements.
                told = [s for s in frames if s.neighbour == (136, address) and s.body[4] & 0x40]
            else:
                asked = [s for s in frames if s.ethertype == 0x0806 and s.operation == 1 and s.dst == address and s.src_mac != up0]
                told = [s for s in frames if s.ethertype == 0x0806 and s.operation == 2 and s.src == address and s.dst != address]
            assert len(told) <= len(asked), (address, asked, told)
            answered.update({address} if told else {})
        assert answered >= {addresses(POOL[number])[3], FIRST_PUBLIC[number]}, answered
    # Nothing twice: a TCP segment of ours with data appears once (retransmissions are rare where nothing is lost).
    segments = [s.data[14:] for s in frames if s.src_mac == up0 and s.protocol == 6 and len(s.data) > 100]
    assert len(segments) - len(set(segments)) <= len(segments) // 50, "%d of %d twice" % (len(segments) - len(set(segments)), len(segments))
    rules = host.host.sh("nft list ruleset; tc filter show dev up0 ingress; tc qdisc show dev up0")
    # A crash leaves the rules; the next start has them once, and its end takes them away.
    host.restart("kill")
    assert foreign(host, observed(), up0) == []
    again = host.host.sh("nft list ruleset; tc filter show dev up0 ingress; tc qdisc show dev up0")
    assert len(again.splitlines()) == len(rules.splitlines()), (rules, again)
    host.finish()
    host.daemon.stop()
    left = host.host.sh("nft list ruleset; tc filter show dev up0 ingress").strip()
    assert left == "", left
    host.daemon.start()


@suite.test("a pool address that the kernel itself holds is refused, with the cure, by apply and by its dry run, at the line of the pool or of the uplink")
def kernel_holds_a_pool_address(case):
    product_only("objects")
    host, a = world(case, "a")
    cures = {"driver: tap": "it is the only one there", "ip address del": "there is another"}
    draft = os.path.join(case.run, "draft.yaml")
    for number, address in enumerate(KERNEL):
        own = [OWN[0] + "/24", OWN[1] + "/64"]
        own[number] = address + ("/24", "/64")[number]
        # Nobody has any of that range.
        around = "%s-%s" % (address, address[:-1] + "6")
        services = {"type": "public", "addresses": [around]}
        for cure, why in cures.items():
            def is_said(said):
                assert address in said and "up0" in said, said
                assert [other for other in cures if other in said] == [cure], "%s: %s" % (why, said)

            for named, wrong, right in (
                    ("NatPool out", lambda: host.pool(addresses=list(POOL) + [address]), lambda: host.pool(addresses=list(POOL))),
                    ("AddressPool held", lambda: host.daemon.set("hostweave.dev/v1alpha1", "AddressPool", "held", services),
                     lambda: host.daemon.set("hostweave.dev/v1alpha1", "AddressPool", "held", {})),
                    ("HostConfig test", lambda: host.uplink(addresses=own), host.uplink)):
                wrong()
                try:
                    host.reload()
                except RuntimeError as error:
                    is_said(str(error))
                    assert '"object": "%s"' % named in str(error) and '"line"' in str(error), error
                else:
                    raise AssertionError("it was accepted: %s of %s" % (address, named))
                right()
            for kind, spec in (("NatPool", {"addresses": [around]}), ("AddressPool", services)):
                with open(draft, "w") as out:
                    json.dump({"apiVersion": "hostweave.dev/v1alpha1", "kind": kind, "metadata": {"name": "drafted"}, "spec": spec}, out)
                for how in ("--dry-run=server",), ():
                    said = host.daemon.cli("apply", *how, "-f", draft, check=False)
                    words = " ".join((said.stdout + said.stderr).split())
                    assert said.returncode == 5 and "conflict" in words and draft.split("/")[-1] + ":1:" in words, (how, said.stdout, said.stderr)
                    is_said(words)
            host.host.sh("ip addr add %s dev up0" % ("192.0.2.4/24", "2001:db8:104::4/64 nodad")[number], check=False)
    host.reload()
    # What the kernel gets later stands in nobody's way, and doctor says it.
    host.public()
    host.reload()
    held = PUBLIC_4[5], PUBLIC_6[5]
    host.host.sh("ip addr add %s/32 dev lo; ip addr add %s/128 dev lo" % held)
    for space in host.containers:
        space.port.labels["more"] = "yes"
    host.reload()
    doctor = json.dumps(host.daemon.rpc("doctor.run"))
    assert all("the kernel holds %s on lo" % address in doctor for address in held), doctor
    host.finish()


# 11


UNREACHABLE = {(3, 1), (1, 3)}


@suite.test("a workload that has all its L4 ports: new flows are refused by ICMP (code 1; IPv6: 3), what is there goes on, others too")
def limited(case):
    product_only("port blocks")
    host, a, b = world(case, "a", "b", block={"size": 64, "min": 64, "max": 64}, overload=False)
    host.server.peer("reflect", port=REFLECT)
    host.server.peer("serve", port=ECHO)
    for number, server in enumerate(SERVER):
        listener = a.capture(a.device, "icmp or icmp6")
        names, refused = [], 0
        for i in range(80):
            name = "%d-%d" % (number, i)
            a.peer("bind", name=name, host=a.families[number])
            if a.peer("ask", name=name, to=[server, REFLECT], tries=1, timeout=5 if i < 64 else 0.3):
                names.append(name)
            else:
                refused += 1
        assert len(names) == 64 and refused == 16, (len(names), refused)
        told = {seen.icmp for seen in listener.stop() if seen.icmp and seen.icmp[0] in (1, 3)}
        assert told == {((3, 1), (1, 3))[number]}, "RFC 6888 REQ-11: %s" % told
        for name in names[:8]:
            assert a.peer("ask", name=name, to=[server, REFLECT]), "what is there goes on"
        # TCP has room of its own (RFC 7857: the spaces are separate).
        assert a.peer("open", group=server, host=server, port=ECHO, count=64)["failed"] == {}
        found = a.peer("open", group="more", host=server, port=ECHO, count=1, timeout=2)
        assert found["opened"] == 0, found
        assert a.peer("echo", group=server) == {"ok": 64}
        b.peer("bind", name=server, host=b.families[number])
        assert b.peer("ask", name=server, to=[server, REFLECT]), "one workload's load is its own"
    assert host.drops("nat_port_limit") >= 34
    host.finish()


@suite.test("limits.uplink.ingress.bitsPerSecond: a container has from outside what it may have, and from its neighbours more")
def limited_from_outside(case):
    product_only("rate limits")
    host, a, b = world(case, "a", "b", start=False)
    a.port.limits = {"uplink": {"ingress": {"bitsPerSecond": 20_000_000}}}
    host.start()
    host.iperf()
    b.spawn(["iperf3", "-s"], "iperf3-b.log")
    until(lambda: ":5201" in b.sh("ss -tln"), "iperf3 listens", 20)
    for number, server in enumerate(SERVER):
        rate = lambda *how: a.iperf(*how)["sum_received"]["bits_per_second"]

        def reaches(least, *how):
            """TCP finds out by its losses what passes, and now and then waits for seconds."""
            rates = [rate(*how)]
            while rates[-1] < least and len(rates) < 3:
                rates.append(rate(*how))
            case.note("%s: %s" % (how, rates))
            assert rates[-1] >= least, (how, rates)
            return rates

        # A burst is 1 Mbit.
        assert max(reaches(5e6, server, 3, "-R")) < 22e6
        reaches(40e6, b.families[number], 3, "-R")
        reaches(40e6, server, 2)
    dropped = host.daemon.stats()["a"]["transmitDropped"]
    assert dropped.get("rate_limited", 0) > 0, dropped
    host.finish()


@suite.test("a pool without a free block: who comes last is refused by ICMP, who was there goes on, an event names the biggest user")
def exhausted(case):
    product_only("port blocks")
    # 64512 L4 ports of one address are 15 blocks of 4096.
    host, *spaces = world(case, *("c%d" % i for i in range(17)), block={"size": 4096, "min": 4096, "max": 8192}, overload=False,
                          pool=[addresses(POOL[0])[0], addresses(POOL[1])[0]])
    host.server.peer("reflect", port=REFLECT)
    heavy = spaces[7]
    for number, server in enumerate(SERVER):
        # One has two blocks: a mapping for each of more L4 ports than one holds.

        def heaviest():
            heavy.sh("python3 - <<'END'\nimport socket, time\nfor port in range(20000, 24600):\n"
                     "    time.sleep(0.001 * (not port & 7))\n"
                     "    with socket.socket(socket.AF_INET%s, socket.SOCK_DGRAM) as one:\n"
                     "        one.bind(('%s', port))\n        one.sendto(b'?', ('%s', 9))\nEND" % ("6" if number else "", heavy.families[number], server))
            user = host.daemon.rpc("nat.stats")["users"][0]
            return user["port"], user["leasedPorts"]

        # Again where the device's queue was full: the same L4 ports have the same mappings.
        until(lambda: heaviest() == ("default/c7", 8192 * (number + 1)), "it has two blocks of each family", 60)
        served, refused = [], []
        for space in spaces:
            listener = space.capture(space.device, "icmp or icmp6")
            space.peer("bind", name=server, host=space.families[number])
            if space.peer("ask", name=server, to=[server, REFLECT], tries=1, timeout=3):
                served.append(space)
                continue
            refused.append(space)
            assert {s.icmp for s in listener.stop()} & UNREACHABLE, "it hears of it: %s" % listener.frames()
        assert len(served) == 14 and len(refused) == 3 and heavy in served, (len(served), len(refused))
        for space in served:
            assert space.peer("ask", name=server, to=[server, REFLECT]), "what is there goes on"
    assert host.drops("nat_exhausted") >= 6
    for cidr in POOL:
        told = "has no more L4 ports of %s for " % addresses(cidr)[0]
        said = until(lambda: [line for line in open(case.log("daemon.log")) if told in line], "the event", 5)
        assert all("largest user: default/c7, 8192 L4 ports)" in line for line in said), said
    host.finish()


@suite.test("an address of the pool is drained: what uses it goes on, what is new comes from the others")
def drained(case):
    product_only("the kernel has no such thing")
    host, a = world(case, "a")
    host.server.peer("serve", port=ECHO)
    host.server.peer("serve", port=TELLS, mode="tells")
    for number, server in enumerate(SERVER):
        assert a.peer("open", group=server, host=server, port=ECHO, count=20)["opened"] == 20
        used = host.server.peer("remotes", port=ECHO)[-1][0]
        host.pool(addresses=list(POOL), draining=[used])
        host.reload()
        assert a.peer("echo", group=server) == {"ok": 20}
        told = outside_of(a, host.server, server)
        assert in_pool(told[0]) and told[0] != used, (told, used)
        assert a.peer("echo", group=server) == {"ok": 20}
    host.finish()


# 12


@suite.test("hairpin: one container reaches another by its mapping, or by its 1:1 address, and is seen as from outside", cases={
    "mapping": False, "one-to-one": True})
def hairpin(case, one_to_one):
    product_only("a kernel has one way to a network that it is on")
    host, a, b = world(case, "a", "b", **({} if one_to_one else {"filtering": "endpointIndependent"}))
    if one_to_one:
        host.attach(b, *FIRST_PUBLIC, one_to_one=True)
        b.peer("serve", port=TELLS, mode="tells")
    host.server.peer("reflect", port=REFLECT)
    listener = host.router.capture("host0", "port 6000")
    for number, server in enumerate(SERVER):
        a.peer("bind", name=server, host=a.families[number], port=6000)
        own = a.peer("ask", name=server, to=[server, REFLECT])
        b.peer("bind", name=server, host=b.families[number], port=6000)
        to = b.peer("ask", name=server, to=[server, REFLECT])
        if one_to_one:
            assert to == [FIRST_PUBLIC[number], 6000], to
            assert in_pool(outside_of(a, b, to[0])[0]), "TCP: the external source"
        a.peer("send", name=server, to=to, text="around")
        assert b.peer("take", name=server) == ["around", own], "the external source and port (RFC 4787 REQ-9)"
        b.peer("send", name=server, to=own, text="and back")
        assert a.peer("take", name=server) == ["and back", to]
    assert [s for s in listener.stop() if {s.src, s.dst} <= set(addresses(POOL[family(s.src)]) + list(FIRST_PUBLIC))] == [], "never on the wire"
    host.finish()


@suite.test("hairpin where only whom a port has sent to may answer: both send first, and meet")
def hairpin_both_first(case):
    product_only("a kernel has one way to a network that it is on")
    host, a, b = world(case, "a", "b")
    host.server.peer("reflect", port=REFLECT)
    for number, server in enumerate(SERVER):
        own, to = [], []
        for node, seen in ((a, own), (b, to)):
            node.peer("bind", name=server, host=node.families[number], port=6000)
            seen.extend(node.peer("ask", name=server, to=[server, REFLECT]))
        a.peer("send", name=server, to=to, text="too early")
        assert b.peer("take", name=server, timeout=0.5) is None, "b has not sent yet"
        b.peer("send", name=server, to=own, text="hello")
        assert a.peer("take", name=server) == ["hello", to]
        a.peer("send", name=server, to=to, text="and back")
        assert b.peer("take", name=server) == ["and back", own]
    host.finish()


@suite.test("the flow log says as whom a port was seen outside, and finds it by that")
def xlated(case):
    product_only("a flow log")
    host, a = world(case, "a")
    host.server.peer("serve", port=TELLS, mode="tells")
    for server in SERVER:
        address, port = outside_of(a, host.server, server)
        seen = "%s:%d" % ("[%s]" % address if family(address) else address, port)

        def logged():
            lines = host.daemon.cli("observe", "--last", "1000", "-o", "json", "--snat-ip", address, "--to-ip", server, "--type", "new")
            return [json.loads(line)["flow"] for line in lines.splitlines()]
        flow, = until(logged, "the flow that was translated")
        assert (flow["verdict"], flow["IP"]["source_xlated"]) == ("TRANSLATED", address), flow
        assert flow["Summary"].endswith("; as " + seen), flow["Summary"]
        assert "as " + seen in host.daemon.cli("observe", "--last", "1000", "--to-ip", server)
    host.finish()


@suite.test("an attached address is its port's own in its network, too: neighbours reach it directly, and policy knows them by their labels")
def attached_neighbours(case):
    product_only("labels")
    host, a, b, c = world(case, "a", "b", "c")
    host.attach(b, *FIRST_PUBLIC)
    b.peer("serve", port=TELLS, mode="tells")
    host.daemon.policy("only-a", podSelector={"matchLabels": {"name": "b"}}, policyTypes=["Ingress"],
                       ingress=[{"from": [{"podSelector": {"matchLabels": {"name": "a"}}}]}])
    host.reload()
    for number, public in enumerate(FIRST_PUBLIC):
        b.carry(public)
        assert outside_of(a, b, public)[0] == a.families[number], "as itself"
        for node in (c, host.customer):
            found = node.peer("open", group="denied", host=public, port=TELLS, timeout=1.5)
            assert found == {"opened": 0, "failed": {"timeout": 1}}, found
    host.finish()


# 13


@suite.test("frames with other people's sources, a million of them: none reaches the router or the other container")
def spoofed(case):
    host, a, b = world(case, "a", "b")
    host.server.peer("serve", port=ECHO)
    for server in SERVER:
        assert a.peer("open", group=server, host=server, port=ECHO, count=5)["opened"] == 5
    listeners = [host.router.capture("host0", octets=128), b.capture(b.device, octets=128)]
    made = []
    for number, server in enumerate(SERVER):
        sources = [OWN[number], KERNEL[number], ROUTER[number], SECOND[number], CUSTOMER[number], addresses(POOL[number])[0],
                   FIRST_PUBLIC[number], b.families[number], GATEWAY[number], addresses(INSIDE[0])[77] if not number else INSIDE[1][:-3] + "77",
                   "::1" if number else "127.0.0.1", "ff02::1" if number else "224.0.0.1", "fe80::77" if number else "169.254.7.7",
                   "::" if number else "0.0.0.0"]
        for source in sources:
            for to in (server, b.families[number], FIRST_PUBLIC[number], addresses(POOL[number])[1]):
                made.append(packets.frame(120, len(made), a.mac, ROUTER_MAC, source, to, 4242, 4243))
                made.append(packets.tcp_frame(a.mac, ROUTER_MAC, source, to, (4242, 4243), 1, 0, SYN))
                made.append(packets.tcp_frame(a.mac, ROUTER_MAC, source, to, (4242, 4243), 1, 1, ACK | RST))
    times = 1_000_000 // len(made) + 1
    for at in range(0, len(made), 100):
        a.peer("frames", device=a.device, frames=[frame.hex() for frame in made[at:at + 100]], times=times)
    for listener, who in zip(listeners, ("router", "b")):
        reached = [s for s in listener.stop() if s.ports and 4242 in s.ports or s.ports and 4243 in s.ports]
        assert reached == [], "%d at %s: %s" % (len(reached), who, reached[:5])
    for server in SERVER:
        assert a.peer("echo", group=server) == {"ok": 5}
    if host.daemon:
        # A TAP device drops what its queue does not hold; what the switch got it counted. tests/uplink sends as many with back-pressure.
        counted = host.drops("spoofed_ip")
        assert counted >= 100_000, host.daemon.stats()["a"]
    host.finish()


@suite.test("from outside with sources of ours or of the inside: none is let in, whatever it pretends to answer")
def spoofed_from_outside(case):
    host, a, b = world(case, "a", "b")
    host.attach(b, *FIRST_PUBLIC)
    for public in FIRST_PUBLIC:
        b.carry(public)
    mac = host.router.sh("cat /sys/class/net/host0/address").strip()
    up0 = host.host.sh("cat /sys/class/net/up0/address").strip()
    product_only("reverse path filters of a kernel are another matter")
    listeners = [a.capture(a.device), b.capture(b.device)]
    made = []
    for number in (0, 1):
        for source in (OWN[number], addresses(POOL[number])[0], FIRST_PUBLIC[number], a.families[number], b.families[number],
                       "::1" if number else "127.0.0.1", "ff02::1" if number else "224.0.0.1"):
            for to in (a.families[number], b.families[number], FIRST_PUBLIC[number], addresses(POOL[number])[0]):
                made.append(packets.frame(120, len(made), mac, up0, source, to, 4242, 4243))
    host.router.peer("frames", device="host0", frames=[frame.hex() for frame in made])
    for listener in listeners:
        reached = [s for s in listener.stop() if s.ports and 4242 in s.ports]
        assert reached == [], reached[:5]
    host.finish()


# 14


# The pool in the subnet of the host's own interface; addresses of nobody's, behind the single one that the host has.
TAP_POOLS = {"subnet": POOL, "private": ("192.168.78.0/30", "fd00:78::/126")}


def tap_finding(host):
    """What doctor says about the kernel behind the TAP device: how bad it is, what is so, and the commands."""
    findings = json.loads(host.daemon.cli("doctor", "-o", "json", check=False).stdout)
    found, = (finding for finding in findings if finding["check"] == "tap")
    return found["severity"], found["message"], found["help"]


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


@suite.test("driver: tap: doctor's own commands, given twice, make the kernel route a pool in its subnet, and translate a private one", cases=TAP_POOLS)
def tap_driver(case, pool):
    product_only("drivers")
    host, a = world(case, "a", driver="tap", start=False, pool=pool)
    host.nginx()
    host.host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    host.uplink(driver="tap", interface="hw-up", addresses=["192.168.77.2/30", "fd00:77::2/64"], gateways=["192.168.77.1", "fd00:77::1"])
    host.daemon.start()
    until(lambda: host.host.sh("ip link show hw-up", check=False).returncode == 0, "the TAP", 20)
    severity, message, commands = tap_finding(host)
    wanted = ["net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0", "gateway's address 192.168.77.1", "gateway's address fd00:77::1",
              "no route to %s" % pool[0], "no route to %s" % pool[1]]
    if pool == POOL:
        wanted += ["does not answer for %s and 3 more on up0" % addresses(pool[0])[0], "net.ipv6.conf.up0.proxy_ndp=0"]
    assert severity == "error" and all(words in message for words in wanted), (severity, message)

    def rules():
        return host.host.sh("nft list ruleset; ip route; ip -6 route; ip neigh show proxy; ip -6 neigh show proxy; ip address show dev hw-up | grep inet")

    host.host.sh(commands)
    once = rules()
    host.host.sh(commands)
    assert rules() == once, (once, rules())
    severity, message, again = tap_finding(host)
    assert severity == "note" and again == commands, (severity, message, again)
    for space in host.containers:
        space.v4, space.v6, space.mac = space.port.v4, space.port.v6, space.port.mac
        space.connect()
    host.ready()
    with open(os.path.join(host.www, "big"), "wb") as out:
        out.write(os.urandom(5 << 20))
    for server in SERVER:
        path = os.path.join(case.run, "got")
        a.sh("curl -sS -f -m 60 -o %s %s" % (path, url(server, "big")))
        assert digest(path) == digest(os.path.join(host.www, "big"))
        a.sh("curl -sS -f -m 60 -T %s %s" % (path, url(server, "up-%d" % family(server))))
        assert digest(path) == digest(os.path.join(host.www, "up-%d" % family(server)))
    seen = set(host.clients())
    assert all(in_pool(address) if pool == POOL else address in KERNEL for address in seen) and len(seen) == 2, seen
    # Another MTU is the device's at once, and with the next change.
    uplink = host.daemon.objects[0]["spec"]["uplink"]
    for mtu in (1400, 1500):
        host.daemon.host(uplink={**uplink, "mtu": mtu})
        host.reload()
        until(lambda: " mtu %d " % mtu in host.host.sh("ip link show hw-up"), "the device has it", 5)
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
        severity, message, _ = tap_finding(host)
        assert severity in ("error", "warning") and words in message, (command, severity, message)
        host.host.sh(commands)
        assert tap_finding(host)[0] == "note"
    if pool == POOL:
        for cidr in pool:
            missed = host.uplink_status()["missedPackets"]
            # The kernel has to know the address: nobody tells it while the daemon is stopped. NAT answers no echo.
            host.server.sh("ping -c 3 -i 0.3 -W 1 %s || true" % addresses(cidr)[0])
            flood_stopped(host, addresses(cidr)[0], lambda: int(host.host.sh("cat /sys/class/net/hw-up/statistics/tx_dropped")))
            until(lambda: host.uplink_status()["missedPackets"] > missed, "what the TAP device drops is counted", 20)
        both_workers_receive(host, a)
        # Another run has missed nothing yet, whatever the device has.
        assert host.uplink_status()["missedPackets"] == 0
    host.finish()


def taken(host):
    """Frames that each worker took, of whatever source."""
    _, metrics = host.daemon.http("/metrics")
    lines = (line.split() for line in metrics.splitlines() if line.startswith("hostweave_worker_packets_total{"))
    return {name: float(value) for name, value in lines}


# 15


@suite.test("no pool, or egress none: nothing leaves, the container hears it, the drop and trace say why", cases={"no-pool": False, "none": True})
def no_way_out(case, none):
    product_only("objects")
    host, a, b = world(case, "a", "b", start=False, **({} if none else {"pool": None}))
    if none:
        network = next(o for o in host.daemon.objects if o["kind"] == "Network")
        network["spec"]["egress"] = {"ipv4": "none", "ipv6": "none"}
    host.start()
    listener = host.router.capture("host0", "not arp and not icmp6")
    before = sum(host.daemon.stats()["a"]["dropped"].values())
    for number, server in enumerate(SERVER):
        assert a.sh("ping -c 1 -W 1 %s" % server, check=False).returncode != 0
        heard = a.capture(a.device, "icmp or icmp6")
        found = a.peer("open", group="none", host=server, port=80, timeout=2)
        assert found["opened"] == 0, found
        # What is written is a refusal by policy; else there is no route.
        expected = ((3, 13), (1, 1)) if none else ((3, 0), (1, 0))
        codes = {seen.icmp for seen in heard.stop() if seen.icmp and seen.icmp[0] == expected[number][0]}
        assert codes == {expected[number]}, codes
        done = host.daemon.cli("trace", "--from", "default/a", "--to", "%s:80" % ("[%s]" % server if number else server), check=False)
        case.note(done.stdout + done.stderr)
        assert done.returncode == 1 and "egress" in done.stdout, done.stdout + done.stderr
        a.sh("ping -c 1 -W 3 %s" % b.families[number])
    assert [s for s in listener.stop() if s.src in a.families] == []
    after = host.daemon.stats()["a"]["dropped"]
    assert sum(after.values()) >= before + 4, after
    host.finish()


@suite.test("destinations that are exempt from NAT (RFC 6888 REQ-6): they see who it is, others the pool; nothing unasked comes in")
def untranslated(case):
    product_only("objects")
    host, a = world(case, "a", start=False)
    network = next(o for o in host.daemon.objects if o["kind"] == "Network")
    network["spec"]["egress"] = {"untranslated": [SECOND[0] + "/32", SECOND[1] + "/128"]}
    host.start()
    # Who answers there needs a route.
    host.router.sh("; ".join("ip route add %s via %s" % pair for pair in zip(INSIDE, OWN)))
    for node in (host.server, host.second):
        node.peer("serve", port=TELLS, mode="tells")
        node.peer("reflect", port=REFLECT)
    listener = host.router.capture("host0", "tcp or udp")
    for number, server in enumerate(SERVER):
        own, second = a.families[number], SECOND[number]
        assert outside_of(a, host.second, second)[0] == own, "as itself"
        assert in_pool(outside_of(a, host.server, server)[0]), "as an address of the pool"
        a.peer("bind", name=server, host=own, port=6000)
        assert a.peer("ask", name=server, to=[second, REFLECT]) == [own, 6000]
        assert in_pool(a.peer("ask", name=server, to=[server, REFLECT])[0])
        a.sh("ping -c 2 -i 0.2 -W 3 %s" % second)
        # The host's kernel, which forwards, has nothing to do with it.
        for node in (host.second, host.customer):
            found = node.peer("open", group="none", host=own, port=22, timeout=1.5)
            assert found == {"opened": 0, "failed": {"timeout": 1}}, found
        assert a.peer("ask", name=server, to=[second, REFLECT]) == [own, 6000], "and goes on"
    wrong = [seen for seen in listener.stop() if seen.src in a.families and seen.dst not in SECOND]
    assert wrong == [], "to nobody else: %s" % wrong
    host.finish()


@suite.test("who had it: nat list, nat lookup, nat stats, whois, uplink get and trace answer for a connection that is there")
def who_had_it(case):
    product_only("the command line")
    host, a = world(case, "a")
    host.server.peer("serve", port=ECHO)
    for number, server in enumerate(SERVER):
        assert a.peer("open", group=server, host=server, port=ECHO)["opened"] == 1
        address, port = host.server.peer("remotes", port=ECHO)[-1]
        outside = ("[%s]:%d" if number else "%s:%d") % (address, port)
        inside = a.families[number]
        for command in (["nat", "list"], ["nat", "lookup", outside], ["whois", outside]):
            said = host.daemon.cli(*command, check=False)
            case.note("%s: %s%s" % (command, said.stdout, said.stderr))
            assert said.returncode == 0 and "default/a" in said.stdout, (command, said.stdout, said.stderr)
        assert inside in host.daemon.cli("nat", "list"), "the inside address"
        # One TCP connection, one block of 512 L4 ports out of 64512; its address among those that the host owns.
        rows = {"nat stats": [address, "out", "512", "of", "64512", "(1%)", "1", "0", "0", "-"], "uplink get -o wide": [address, "natPool", "out"]}
        for command, row in rows.items():
            said = host.daemon.cli(*command.split())
            case.note("%s: %s" % (command, said))
            assert [line.split()[:len(row)] for line in said.splitlines() if line.startswith(address + " ")] == [row], said
        _, metrics = host.daemon.http("/metrics")
        lines = metrics.splitlines()
        labels = 'pool="out",address="%s"' % address
        for line in ('nat_ports_in_use{%s,protocol="tcp"} 1', 'nat_ports_in_use{%s,protocol="udp"} 0', "nat_ports_leased{%s} 512", "nat_ports{%s} 64512"):
            assert "hostweave_" + line % labels in lines, (line, metrics)
        said = host.daemon.cli("trace", "--from", "default/a", "--to", "%s:80" % ("[%s]" % server if number else server))
        assert "snat" in said and "NAT pool" in said and "uplink" in said, said
    host.finish()


@suite.test("trace from outside says what then happens: an attached address and 1:1, whom policy lets in and whom not, a mapping, a port that nobody has")
def trace_from_outside(case):
    product_only("the command line")
    host, a, b = world(case, "a", "b")

    def traced(source, target):
        """Exit code and what was said."""
        done = host.daemon.cli("trace", "--from", source, "--to", target, check=False)
        case.note("%s -> %s: %s%s" % (source, target, done.stdout, done.stderr))
        return done.returncode, done.stdout

    def end(address, port):
        return ("[%s]:%s" if ":" in address else "%s:%s") % (address, port)

    for one_to_one in (False, True):
        host.attach(a, *FIRST_PUBLIC, one_to_one=one_to_one)
        for public in () if one_to_one else FIRST_PUBLIC:
            a.carry(public)
        if not one_to_one:
            a.peer("serve", port=TELLS, mode="tells")
        host.admit(a, SERVER[0] + "/32", SERVER[1] + "/128")
        for number, public in enumerate(FIRST_PUBLIC):
            for space, source, passes in ((host.server, SERVER[number], True), (host.customer, CUSTOMER[number], False)):
                code, said = traced(source, end(public, TELLS))
                opened = space.peer("open", group="traced-%s-%s" % (one_to_one, number), host=public, port=TELLS, timeout=8 if passes else 2)["opened"]
                assert (code == 0, opened == 1) == (passes, passes), (source, public, said, opened)
                assert "uplink" in said and ("policy_denied" in said) != passes, said
                code, said = traced(source, public + "/icmp")
                pinged = space.sh("ping -c 1 -W %d %s" % (8 if passes else 2, public), check=False).returncode
                assert (code == 0) == (pinged == 0) == passes, (source, public, said, pinged)
        if not one_to_one:
            for public in FIRST_PUBLIC:
                a.sh("ip addr del %s dev eth0" % (public + ("/128" if ":" in public else "/32")), check=False)
    host.server.peer("serve", port=ECHO)
    for number, server in enumerate(SERVER):
        assert b.peer("open", group=server, host=server, port=ECHO)["opened"] == 1
        address, port = host.server.peer("remotes", port=ECHO)[-1]
        code, said = traced(end(server, ECHO), end(address, port))
        assert code == 0 and "established connection, begun by default/b" in said, said
        unused = port + 1 if port < 65535 else port - 1
        code, said = traced(server, end(address, unused))
        assert code == 1 and "nat_no_mapping" in said, said
        before = host.drops("nat_no_mapping")
        assert host.server.peer("open", group="none-%d" % number, host=address, port=unused, timeout=1)["opened"] == 0
        assert host.drops("nat_no_mapping") > before
    host.finish()


@suite.test("who had it then: nat lookup and whois --at name a port that is deleted, over a restart, after its block went back, and after a reboot")
def who_had_it_then(case):
    product_only("the command line")
    host, a, b = world(case, "a", "b")
    host.server.peer("serve", port=ECHO)
    had = []
    for number, server in enumerate(SERVER):
        assert a.peer("open", group=server, host=server, port=ECHO)["opened"] == 1
        address, port = host.server.peer("remotes", port=ECHO)[-1]
        had.append((address, ("[%s]:%d" if number else "%s:%d") % (address, port)))
    uid = host.daemon.rpc("nat.list")["mappings"][0]["uid"]
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    time.sleep(1.5)
    then = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def answers(what):
        for address, outside in had:
            for command in (["nat", "lookup", outside], ["whois", outside], ["whois", address]):
                said = host.daemon.cli(*command, "--at", then, check=False)
                case.note("%s: %s: %s%s" % (what, command, said.stdout, said.stderr))
                assert said.returncode == 0 and "default/a" in said.stdout and "gone" in said.stdout, (what, command, said.stdout, said.stderr)
            assert host.daemon.cli("nat", "lookup", outside, "--at", before, check=False).returncode == 3, what
            assert "0 ports" in host.daemon.cli("whois", address, "--at", before), what

    host.daemon.ports.remove(a.port)
    host.containers.remove(a)
    host.reload()
    answers("deleted")
    host.restart()
    answers("restarted")

    def released():
        lines = host.daemon.cli("observe", "--type", "port", "--last", "1000", "-o", "json")
        events = [json.loads(line) for line in lines.splitlines()]
        return [event for event in events if event.get("type") == "NatBlockReleased"]

    told = until(lambda: len(released()) >= 2 and released(), "each block that goes back is logged", 200)
    assert {(event["name"], event["data"]["uid"], event["data"]["address"]) for event in told} == {("a", uid, address) for address, _ in had}, told
    answers("given back")
    for _, outside in had:
        assert host.daemon.cli("nat", "lookup", outside, check=False).returncode == 3, "nobody has it now"
    # A reboot: what the packet path keeps in memory is gone.
    host.daemon.kill()
    os.remove(os.path.join(os.path.dirname(host.daemon.control), "nat"))
    host.daemon.start()
    host.ready()
    answers("rebooted")
    host.finish()


def quiet_second():
    """A second in which nothing changes: all of before is before it, and what follows after it."""
    begin = int(time.time())
    until(lambda: int(time.time()) >= begin + 2, "two seconds later")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin + 1))


@suite.test("who had an attached address then: whois --at names the port that a customer reached there, directly and 1:1, when the address has moved, over kill -9, "
            "when ports and Service are deleted, after a reboot")
def who_had_the_address_then(case):
    product_only("the command line")
    host, a, b, _ = world(case, "a", "b", "stays")
    before = quiet_second()
    had = []
    for space, one_to_one in ((a, False), (b, True), (a, True)):
        host.attach(space, *FIRST_PUBLIC, one_to_one=one_to_one)
        port = TELLS + len(had)
        space.peer("serve", port=port, mode="tells")
        for number, public in enumerate(FIRST_PUBLIC):
            if not one_to_one:
                space.carry(public)

            def arrives():
                group = "then-%d-%d" % (port, number)
                found = host.customer.peer("open", group=group, host=public, port=port, timeout=1)
                return found["opened"] >= 1 and host.customer.peer("tell", group=group)[0] == CUSTOMER[number]

            until(arrives, "%s reaches %s" % (public, space.short))
            if not one_to_one:
                space.drop(public)
        had.append(("default/%s" % space.short, "nat" if one_to_one else "direct", quiet_second()))

    def answers(what, gone=()):
        for public in FIRST_PUBLIC:
            for place in (public, ("[%s]:%d" if family(public) else "%s:%d") % (public, TELLS)):
                for number, (name, mode, at) in enumerate(had):
                    owners = json.loads(host.daemon.cli("whois", place, "--at", at, "-o", "json"))["owners"]
                    case.note("%s: %s at %s: %s" % (what, place, at, owners))
                    then = [owner for owner in owners if owner.get("at") != "now"]
                    assert len(then) == 1, (what, place, owners)
                    owner = then[0]
                    assert (owner["port"], owner["mode"], owner["name"], owner["gone"]) == (name, mode, "default/own-ip", name in gone), (what, owner)
                    assert (owner["pool"], owner["network"], owner["untilAtLatest"]) == ("public", "default", at == latest), (what, owner)
                    assert (owner["until"] is None) == (number == len(had) - 1 and not deleted), (what, owner)
                said = host.daemon.cli("whois", place, "--at", before, check=False).stdout
                assert not any(name in said for name, _, _ in had) or "now: " in said, (what, said)

    latest, deleted = None, False
    answers("moved")
    host.restart()
    answers("restarted")
    # What the files say when a daemon is there again: nobody knows when it became so.
    host.daemon.kill()
    host.annotate(a, None)
    host.annotate(b, "own-ip")
    host.daemon.start()
    host.ready()
    latest = had[-1][2]
    had.append(("default/b", "direct", quiet_second()))
    answers("changed while no daemon ran")
    for space in (a, b):
        host.daemon.ports.remove(space.port)
        host.containers.remove(space)
    host.daemon.set("v1", "Service", "own-ip", {})
    host.daemon.set("hostweave.dev/v1alpha1", "AddressPool", "public", {})
    host.reload()
    deleted, gone = True, ("default/a", "default/b")
    answers("deleted", gone)
    # A reboot: of the runtime directory nothing is left.
    host.daemon.kill()
    shutil.rmtree(os.path.dirname(host.daemon.control))
    host.daemon.start()
    host.ready()
    answers("rebooted", gone)
    for public in FIRST_PUBLIC:
        assert host.daemon.cli("whois", public, check=False).returncode == 3, "nobody has it now"
    host.finish()


@suite.test("`connectivity test` tries the way out as well: both routers answer by NAT; without a pool it says that there is no way out")
def connectivity_test(case):
    product_only("a command of the daemon")
    host, a = world(case, "a")
    before = host.daemon.cli("get", "ports", "-A", "-o", "name")
    said = host.daemon.cli("connectivity", "test")
    line = next(line for line in said.splitlines() if line.startswith("PASS  egress"))
    assert all(router + " (" in line for router in internet.ROUTER), said
    assert "13 of 13 passed" in said and host.daemon.cli("get", "ports", "-A", "-o", "name") == before, said
    host.pool()
    host.reload()
    said = host.daemon.cli("connectivity", "test")
    assert "SKIP  egress     no way out to %s and %s" % internet.ROUTER in said, said
    # A router that does not answer is no passed test.
    host.pool(addresses=list(POOL))
    host.reload()
    host.router.sh("sysctl -qw net.ipv4.icmp_echo_ignore_all=1")
    done = host.daemon.cli("connectivity", "test", check=False)
    assert done.returncode == 1 and "FAIL  egress" in done.stdout and "PASS  cleanup" in done.stdout, done.stdout
    assert host.daemon.cli("get", "ports", "-A", "-o", "name") == before


if __name__ == "__main__":
    suite.main()
