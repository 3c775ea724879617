"""The host at its uplink, under real kernels: links that flap, routers and neighbours that come, move and die, addresses that others claim,
the host's own kernel on the same interface, and who lies about where a frame is from.

Needs root. The topology is in harness/internet.py. Every test does its work over IPv4 and over IPv6.
"""

import ipaddress
import json
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import internet, packets  # noqa: E402
from harness.daemon import ROUTER_MAC  # noqa: E402
from harness.internet import (  # noqa: E402
    CUSTOMER, DRIVERS, ECHO, FIRST_PUBLIC, GATEWAY, INSIDE, KERNEL, NEAR, OWN, POOL, PUBLIC, PUBLIC_4, PUBLIC_6, REFLECT, ROUTER, SECOND,
    SECOND_PUBLIC, SERVER, SERVER_ALIAS, TELLS, addresses, family, flood_stopped, in_pool, outside_of, product_only, url, world, world_with,
)
from harness.packets import ACK, RST, SYN  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402

# Of a prefix that is routed here, and nobody has it.
UNUSED = "192.0.2.150", "2001:db8:a0ff::1"

suite = Suite("uplink", internet.requires)


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


if __name__ == "__main__":
    suite.main()
