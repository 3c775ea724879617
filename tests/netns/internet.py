"""The way out, under real kernels and with other people's judges: NAT and what is known of it, over a small internet.

Needs root. The topology, and how the tests themselves are judged (HOSTWEAVE_INTERNET=kernel, none), is in harness/internet.py.
Every test does its work over IPv4 and over IPv6.
"""

import itertools
import json
import os
import shutil
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import internet, packets, requirements  # noqa: E402
from harness.daemon import ROUTER_MAC  # noqa: E402
from harness.internet import (  # noqa: E402
    CUSTOMER, DRIVERS, ECHO, FIRST_PUBLIC, GATEWAY, INSIDE, OWN, POOL, REFLECT, ROUTER, SECOND, SERVER, TELLS, ZONE, addresses, digest, family,
    in_pool, outside_of, product_only, url, world, world_with,
)
from harness.packets import ACK, SYN  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402

suite = Suite("internet", internet.requires)


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
    internet.segments_stay_large(a, host.router, "host0")
    host.finish()


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
            first, *hops = a.hops(server, options)
            assert hops == [ROUTER[number], server], (options, first, hops)
            assert first in (GATEWAY[number], "fe80::1", OWN[number]), (options, first)
        out = a.sh("tracepath -n -m 8 %s" % server)
        assert "reached" in out and "pmtu 1500" in out and ROUTER[number] in out, out
    host.finish()


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
        for _ in range(3):
            out = a.sh("turnutils_natdiscovery -m -f -L %s %s" % (a.families[number], server))
            case.note(out)
            if "NAT with Endpoint Independent Mapping" in out and verdict in out:
                break
        assert "NAT with Endpoint Independent Mapping" in out, out
        assert verdict in out, out
    host.finish()


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
        # The kernel's NAT puts IPv6 fragments together, and sends them on whole.
        a.knows_path_mtu(server, 1300, "EMSGSIZE" if number and internet.WAY == "kernel" else "ECONNREFUSED")
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
