"""Public addresses that sit on a port, directly and 1:1, over a small internet, also as real clients are given them; and ways out other than
the plain one: a prefix that is routed to the host, an uplink in a VLAN, an interface that is pulled.

Needs root. The topology is in harness/internet.py; what the kernel of the host could not do is not asked of it.
"""

import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import packets, process, requirements  # noqa: E402
from harness.internet import (  # noqa: E402
    CUSTOMER, DRIVERS, ECHO, FIRST_PUBLIC, GATEWAY, INSIDE, KERNEL, OWN, POOL, PUBLIC, REFLECT, ROUTER, SECOND, SERVER, TELLS, Node, addresses,
    digest, family, in_pool, outside_of, product_only, requires, url, world, world_with,
)
from harness.namespace import UDHCPC_SCRIPT  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402


def check():
    requires()
    requirements.programs("busybox", "dhclient")


suite = Suite("attach", check)
TRUNK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trunk.py")


# Attached, directly and 1:1


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


def carries_public(host, container):
    """It has the addresses on its NIC, and who comes from outside to `TELLS` there hears who it is."""
    host.attach(container, *FIRST_PUBLIC)
    for public in FIRST_PUBLIC:
        container.carry(public)
    container.peer("serve", port=TELLS, mode="tells")
    for number, public in enumerate(FIRST_PUBLIC):
        assert outside_of(host.customer, container, public)[0] == CUSTOMER[number]


@suite.test("direct attach: policy judges what comes in by its real source, the first packet and the thousandth")
def attach_policy(case):
    host, a = world(case, "a")
    carries_public(host, a)
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
    carries_public(host, a)
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


# Addresses that clients are given


class Udhcpc:
    """busybox' client, which stays and is told to renew."""

    def __init__(self, space):
        self.space, self.process = space, None

    def renew(self):
        if self.process:
            self.process.send_signal(signal.SIGUSR1)
            return
        self.process = self.space.spawn(["env", "RESOLV_CONF=" + self.space.case.log("resolv.conf"), "busybox", "udhcpc", "-f", "-t", "10", "-T", "1",
                                         "-i", self.space.device, "-s", UDHCPC_SCRIPT], "udhcpc-%s.log" % self.space.short)


class Dhclient:
    """ISC's client, which is started anew: it asks for what it had (INIT-REBOOT), hears that this is over, and asks again."""

    def __init__(self, space):
        self.space, case = space, space.case
        self.files = "-lf %s -pf %s/dhclient4-%s.pid" % (case.log("leases4-" + space.short), case.run, space.short)

    def renew(self):
        self.space.sh("dhclient -4 -x %s %s; ip -4 addr flush dev %s; dhclient -4 -1 %s %s" % (
            self.files, self.space.device, self.space.device, self.files, self.space.device), timeout=90)


def renew_v6(space):
    """DHCPv6 by ISC's client, beside what the kernel does by itself with router advertisements. It gives its lease back and forgets it:
    else it would put the old address, which it has released, beside the new one."""
    case = space.case
    leases, pid = case.log("leases6-" + space.short), "%s/dhclient6-%s.pid" % (case.run, space.short)
    client = "dhclient -6 %%s -lf %s -pf %s %s" % (leases, pid, space.device)
    space.sh("[ ! -e %s ] || %s; rm -f %s; %s" % (pid, client % "-r", leases, client % "-1"), timeout=90)


def has(space, address):
    """Whether an address is on the container's NIC, and preferred."""
    lines = space.sh("ip -o addr show dev %s scope global" % space.device).splitlines()
    found = [line for line in lines if line.split()[3].split("/")[0] == address and "tentative" not in line]
    return bool(found) and all("deprecated" not in line for line in found)


@suite.test("DHCP and DHCPv6 give a container its attached address, and nobody sets it by hand: it is reached there and sends from there; when "
            "the address moves, both containers learn it at their next renewal; with 1:1 NAT the private one is given",
            cases={"udhcpc": Udhcpc, "dhclient": Dhclient})
def leased(case, client):
    product_only("DHCP")
    host, a, b = world(case, "a", "b", start=False)
    for space in (a, b):
        space.connected = True  # Nothing by hand.
    host.start()
    private = {space: space.families for space in (a, b)}
    host.attach(a, *FIRST_PUBLIC)
    clients = [client(space) for space in (a, b)]
    for space in (a, b):
        device = space.device
        space.sh("ip link set {0} down; sysctl -qw net.ipv6.conf.{0}.accept_ra=1 net.ipv6.conf.{0}.autoconf=1; ip link set {0} up".format(device))
        until(lambda: "fe80" in space.sh("ip -6 -o addr show dev %s scope link -tentative" % device), "the link-local address", 20)
        until(lambda: "via fe80::1" in space.sh("ip -6 route show default"), "the default route by RA", 20)
    host.server.peer("serve", port=TELLS, mode="tells")
    for space in (a, b):
        space.peer("serve", port=TELLS, mode="tells")

    def renewed(owner, one_to_one=False):
        for one in clients:
            one.renew()
        for space in (a, b):
            renew_v6(space)
            wanted = FIRST_PUBLIC if space is owner and not one_to_one else private[space]
            for address in wanted:
                until(lambda: has(space, address), "%s has %s" % (space.short, address), 30)
            for address in FIRST_PUBLIC:
                assert address in wanted or address not in space.sh("ip addr show dev %s" % space.device), "%s is another's" % address
        for number, server in enumerate(SERVER):
            for space in (a, b):
                seen = outside_of(space, host.server, server)[0]
                assert seen == FIRST_PUBLIC[number] if space is owner else in_pool(seen), (space.short, seen)
            opened = host.customer.peer("open", group="in", host=FIRST_PUBLIC[number], port=TELLS, timeout=5)
            assert opened["opened"] == 1, opened
            assert host.customer.peer("tell", group="in")[0] == CUSTOMER[number], "its real source"
            remotes = [remote[0] for remote in owner.peer("remotes", port=TELLS)]
            host.customer.peer("close", group="in")
            assert CUSTOMER[number] in remotes, "it was %s that was reached: %s" % (owner.short, remotes)

    renewed(a)
    assert "%s/32" % FIRST_PUBLIC[0] in a.sh("ip -4 addr show dev %s" % a.device), "the gateway is in no subnet of it"
    # The private IPv6 address of the prefix stays, but is not what anything new comes from (RFC 4862 §5.5.4).
    line, = (line for line in a.sh("ip -6 -o addr show dev %s scope global" % a.device).splitlines() if private[a][1] + "/" in line)
    assert "deprecated" in line, line
    host.attach(b, *FIRST_PUBLIC)
    renewed(b)
    host.attach(b, *FIRST_PUBLIC, one_to_one=True)
    renewed(b, one_to_one=True)
    host.finish()


# A prefix that is routed


@suite.test("egress.ipv6: routed: connections leave with the container's own address, answers and errors come back, unasked nothing does; "
            "IPv4 beside it goes through NAT", cases=DRIVERS)
def routed(case, driver):
    product_only("objects")
    host, a, b = world(case, "a", "b", start=False, pool=POOL[:1], **({"driver": driver} if driver else {}))
    network = next(o for o in host.daemon.objects if o["kind"] == "Network")
    network["spec"]["egress"] = {"ipv4": "nat", "ipv6": "routed"}
    # What the provider does.
    host.router.sh("ip -6 route add %s via %s" % (INSIDE[1], OWN[1]))
    host.start()
    host.nginx()
    own = a.v6
    server = SERVER[1]
    assert in_pool(outside(host, a, SERVER[0])[0]), "IPv4"
    a.peer("serve", port=22, mode="tells")
    a.peer("reflect", port=53)
    # TCP, UDP and echo leave as they are.
    assert outside(host, a, server)[0] == own
    host.server.peer("reflect", port=REFLECT)
    a.peer("bind", name="own", host=own, port=6000)
    assert a.peer("ask", name="own", to=[server, REFLECT]) == [own, 6000], "its own port, too"
    listener = host.router.capture("host0", "icmp6 and ip6[40] == 128")
    a.sh("ping -c 3 -i 0.2 -W 3 %s; ping -c 2 -i 0.2 -W 3 -s 3333 %s" % (server, server))
    assert {seen.src for seen in listener.stop() if seen.dst == server} == {own}
    path = os.path.join(case.run, "up")
    with open(path, "wb") as out:
        out.write(os.urandom(5 << 20))
    a.sh("curl -sS -f -m 60 -T %s %s" % (path, url(server, "up")))
    assert digest(os.path.join(host.www, "up")) == digest(path) and host.clients()[-1] == own
    # Unasked nothing comes in: neither the owner of the address nor anybody else hears of it, and the sender hears nothing.
    before = host.drops("nat_no_mapping")
    listeners = [space.capture(space.device, "host %s or host %s" % (CUSTOMER[1], b.v6)) for space in (a, b)]
    host.customer.peer("bind", name="prober", host=CUSTOMER[1], port=5000)
    for to in (own, b.v6, INSIDE[1][:-3] + "77", GATEWAY[1]):
        host.customer.peer("send", name="prober", to=[to, 53])
        found = host.customer.peer("open", group="none", host=to, port=22, timeout=1.5)
        assert found == {"opened": 0, "failed": {"timeout": 1}}, (to, found)
        assert host.customer.sh("ping -c 1 -W 1 %s" % to, check=False).returncode == 1, to
    assert host.customer.peer("take", name="prober", timeout=0.5) is None
    # Nor from one that was asked, but not there.
    host.server.peer("bind", name="other", host=server, port=5001)
    host.server.peer("send", name="other", to=[own, 6000])
    assert a.peer("take", name="own", timeout=0.5) is None, "another port was not asked"
    for listener in listeners:
        came = [seen for seen in listener.stop() if CUSTOMER[1] in (seen.src, seen.dst)]
        assert came == [], came
    assert host.drops("nat_no_mapping") >= before + 9, "counted"
    assert a.peer("ask", name="own", to=[server, REFLECT]) == [own, 6000], "what was asked goes on"
    # Errors: the closed port of the server, the router's hop limit, and a path that gets narrow.
    assert a.peer("datagram", host=server, port=9) == "ECONNREFUSED"
    out = a.sh("traceroute -n -q 2 -w 2 -m 8 %s" % server)
    assert [line.split()[1] for line in out.splitlines()[1:]][1:] == [ROUTER[1], server], out
    host.narrow(1300)
    a.sh("curl -sS -f -m 60 -T %s %s" % (path, url(server, "narrow")))
    assert digest(os.path.join(host.www, "narrow")) == digest(path)
    assert "mtu 1300" in a.sh("ip route get %s" % server), "the container's kernel has learnt it"
    # Nobody sends as another of the prefix.
    frame = packets.frame(120, 1, a.mac, "02:68:77:00:00:01", b.v6, server, 4242, 4243)
    a.peer("frames", device=a.device, frames=[frame.hex()])
    until(lambda: host.drops("spoofed_ip") >= 1, "it is dropped", 5)
    # The daemon ends and comes back: the connections go on.
    host.server.peer("serve", port=ECHO)
    assert a.peer("open", group="kept", host=server, port=ECHO, count=20)["opened"] == 20
    host.restart("kill")
    assert a.peer("echo", group="kept", timeout=30) == {"ok": 20}
    assert {remote for remote, _ in host.server.peer("remotes", port=ECHO)} == {own}
    host.finish()


# Beside everything else


@suite.test("an attached address, a LoadBalancer Service with an address of the same pool, and NAT, side by side, while the attachment moves from "
            "port to port and away: each keeps its address, and what is not moved goes on")
def side_by_side(case):
    product_only("Services")
    host, a, b, backend, plain = world(case, "a", "b", "backend", "plain", start=False)
    shared = addresses(PUBLIC[0])[4], addresses(PUBLIC[1])[4]
    host.public()
    host.daemon.set("v1", "Service", "web", {
        "type": "LoadBalancer", "selector": {"name": "backend"}, "ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local",
        "ports": [{"name": "tells", "port": TELLS}, {"name": "echo", "port": ECHO}],
    }, {"service.beta.kubernetes.io/coreweave-load-balancer-type": "public", "metallb.universe.tf/loadBalancerIPs": ",".join(shared)})
    host.start()
    host.server.peer("serve", port=ECHO)
    backend.peer("serve", port=ECHO)
    for space in (a, b, backend):
        space.peer("serve", port=TELLS, mode="tells")
    kept = []
    for number, server in enumerate(SERVER):
        kept += [(plain, server), (backend, server), (host.customer, shared[number]), (plain, shared[number])]
    for space, to in kept:
        until(lambda: space.peer("open", group="kept" + to, host=to, port=ECHO, count=1)["opened"] == 1, "%s reaches %s" % (space.short, to), 15)
    had = None
    for owner in (a, b, a, None):
        host.attach(owner, *FIRST_PUBLIC)
        for number, (public, server) in enumerate(zip(FIRST_PUBLIC, SERVER)):
            if had:
                had.drop(public)
            if owner:
                owner.carry(public)
                until(lambda: outside_of(host.customer, owner, public)[0] == CUSTOMER[number], "%s reaches %s" % (public, owner.short), 15)
                assert outside(host, owner, server)[0] == public
                assert outside_of(plain, owner, public)[0] == plain.families[number], "a neighbour is who it is"
            else:
                assert host.customer.peer("open", group="none-%d" % number, host=public, port=TELLS, timeout=2)["opened"] == 0
            # The Service's address is nobody's but the Service's, and NAT has its own.
            assert outside_of(host.customer, backend, shared[number])[0] == CUSTOMER[number]
            assert outside_of(plain, backend, shared[number])[0] == plain.families[number]
            for space in {a, b, backend, plain} - {owner}:
                assert in_pool(outside(host, space, server)[0]), space.short
        for space, to in kept:
            assert space.peer("echo", group="kept" + to) == {"ok": 1}, (owner and owner.short, space.short, to)
        owned = {entry["address"]: (entry["owner"], entry.get("port")) for entry in host.uplink_status()["owned"]}
        for number in (0, 1):
            assert owned.get(FIRST_PUBLIC[number], ("none", None)) == (("service", "default/" + owner.short) if owner else ("none", None)), owned
            assert owned[shared[number]] == ("service", None) and owned[addresses(POOL[number])[0]] == ("natPool", None), owned
        had = owner
    host.finish()


def outside(host, space, server):
    """Who a container is to the server, which begins to tell."""
    if not getattr(host.server, "told", False):
        host.server.peer("serve", port=TELLS, mode="tells")
        host.server.told = True
    return outside_of(space, host.server, server)


# A VLAN

VLAN, OTHER = 7, 8
# Without a tag, and in another VLAN: a neighbour of the host's kernel.
NATIVE = ("192.0.2.1", "2001:db8:99::1"), ("192.0.2.3", "2001:db8:99::3")


def behind_a_trunk(case, host):
    """The router is in a VLAN now, behind a switch whose other ports are in none and in another: (switch, native, other)."""
    switch, native, other = (Node(case, name) for name in ("switch", "native", "other"))
    host.router.sh("ip link del host0")
    switch.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
    for space, name, device in ((host.host, "up0", "trunk"), (host.router, "host0", "v7"), (native, "eth0", "v0"), (other, "eth0", "v8")):
        process.run(["ip", "link", "add", name, "netns", space.name, "type", "veth", "peer", "name", device, "netns", switch.name])
        switch.sh("ip link set %s up" % device)
        space.sh("ip link set %s up" % name)
    host.router.sh("ip addr add %s/24 dev host0; ip addr add %s/64 dev host0 nodad" % ROUTER)
    for space, device, own in ((native, "eth0", NATIVE[0]), (other, "eth0", NATIVE[0]), (host.host, "up0", NATIVE[1])):
        space.sh("ip addr add %s/24 dev {0}; ip addr add %s/64 dev {0} nodad".format(device) % own)
    switch.spawn(["python3", "-u", TRUNK, "trunk", "v%d:%d" % (VLAN, VLAN), "v0:0", "v%d:%d" % (OTHER, OTHER)], "trunk.log")
    until(lambda: "ready" in open(case.log("trunk.log")).read(), "the switch is ready", 20)
    return switch, native, other


def mac_of(space, device):
    return space.sh("cat /sys/class/net/%s/address" % device).strip()


@suite.test("an uplink in a VLAN: the router is found there, NAT, routes from outside and attached addresses work on top of the tag, and large "
            "frames stay large; what has no tag or another is the kernel's, our addresses too", cases=DRIVERS)
def vlan(case, driver):
    product_only("VLAN tags")
    host, a, b = world(case, "a", "b", start=False)
    switch, native, other = behind_a_trunk(case, host)
    host.uplink(vlan=VLAN, **({"driver": driver} if driver else {}))
    listener = switch.capture("trunk", octets=128)
    host.start()
    host.attach(b, *FIRST_PUBLIC)
    host.nginx()
    host.server.peer("serve", port=TELLS, mode="tells")
    b.peer("serve", port=TELLS, mode="tells")
    path = os.path.join(case.run, "big")
    with open(path, "wb") as out:
        out.write(os.urandom(2 << 20))
    for number, server in enumerate(SERVER):
        # The router asks by ARP and ND, and hears who is there.
        host.router.sh("ip neigh flush dev host0; ping -c 1 -W 3 %s" % OWN[number])
        assert in_pool(outside_of(a, host.server, server)[0])
        a.sh("ping -c 2 -i 0.2 -W 3 %s; ping -c 1 -W 3 -s 3333 %s" % (server, server))
        a.sh("curl -sS -f -m 90 -T %s %s" % (path, url(server, "up-%d" % number)))
        assert digest(os.path.join(host.www, "up-%d" % number)) == digest(path)
        a.sh("curl -sS -f -m 90 -o %s %s" % (path + ".got", url(server, "up-%d" % number)))
        assert digest(path + ".got") == digest(path)
        assert a.peer("datagram", host=server, port=9) == "ECONNREFUSED", "errors come back"
        b.carry(FIRST_PUBLIC[number])
        assert outside_of(host.customer, b, FIRST_PUBLIC[number])[0] == CUSTOMER[number]
        assert outside_of(b, host.server, server)[0] == FIRST_PUBLIC[number]
        assert host.customer.peer("open", group="none", host=addresses(POOL[number])[0], port=22, timeout=1)["opened"] == 0
        # Beside it the kernel has the interface to itself.
        native.sh("ping -c 1 -W 3 %s" % NATIVE[1][number])
    up0 = mac_of(host.host, "up0")
    frames = listener.stop()
    tag = (0x8100).to_bytes(2, "big")
    assert any(len(seen.data) == 128 for seen in frames)
    untagged = [seen for seen in frames if seen.src_mac == up0 and seen.ethertype != 0x8100 and
                {seen.src, seen.dst} & ({*SERVER, *ROUTER, *OWN, *FIRST_PUBLIC, *addresses(POOL[0]), *addresses(POOL[1])})]
    assert untagged == [], untagged[:5]
    tags = {int.from_bytes(seen.data[14:16], "big") & 0xFFF for seen in frames if seen.data[12:14] == tag and {seen.src_mac, seen.dst_mac} & {up0}}
    assert tags == {VLAN}, tags
    large = switch.capture("trunk", "greater 9000", octets=128)
    for number, server in enumerate(SERVER):
        a.sh("curl -sS -f -m 90 -T %s %s" % (path, url(server, "up-%d" % number)))
    assert len([seen for seen in large.stop() if seen.src_mac == up0]) > 5, "segments leave uncut"
    hidden_in_its_vlan(host, native, other, up0)
    host.finish()


def hidden_in_its_vlan(host, native, other, up0):
    """Rules of another's behind ours count what the kernel is left with."""
    places = {"router": (host.router, "host0"), "native": (native, "eth0"), "other": (other, "eth0")}
    ours = [addresses(POOL[0])[0], FIRST_PUBLIC[0], addresses(POOL[1])[0], FIRST_PUBLIC[1]]
    macs = ["02:00:00:00:09:0%d" % n for n in range(len(places))]
    rules = ["ether saddr %s counter" % mac for mac in macs]
    host.host.sh("nft -f - <<'END'\ntable netdev witness { chain seen { type filter hook ingress device \"up0\" priority 0; %s; }; }\nEND" % "; ".join(rules))
    for (space, device), mac in zip(places.values(), macs):
        made = [packets.frame(120, number, mac, up0, CUSTOMER[family(to)], to) for number, to in enumerate(ours)]
        space.peer("frames", device=device, frames=[frame.hex() for frame in made])

    def counts():
        text = host.host.sh("nft list table netdev witness")
        counted = [int(rest.split()[0]) for rest in text.split("counter packets ")[1:]]
        assert len(counted) == len(rules), text
        return dict(zip(places, counted))

    until(lambda: counts()["native"] == counts()["other"] == len(ours), "the kernel has what is in no VLAN, and in another", 10)
    assert counts()["router"] == 0, "what is ours is hidden from it: %s" % counts()
    host.host.sh("nft delete table netdev witness")


# A path that gets narrow, and an interface that is pulled


@suite.test("a smaller MTU on the path of connections that began outside: the container with the attached address, or 1:1, learns it and goes on, "
            "octet for octet", cases={"direct": False, "one-to-one": True})
def narrow_inbound(case, one_to_one):
    product_only("1:1 NAT")
    host, a = world(case, "a")
    host.attach(a, *FIRST_PUBLIC, one_to_one=one_to_one)
    folder = os.path.join(case.run, "www-a")
    os.makedirs(folder)
    with open(os.path.join(folder, "big"), "wb") as out:
        out.write(os.urandom(3 << 20))
    a.spawn(["busybox", "httpd", "-f", "-p", "[::]:80", "-h", folder], "httpd.log")
    until(lambda: ":80 " in a.sh("ss -tln"), "the HTTP server of the container", 20)
    host.narrow(1300)
    for server, public in zip(SERVER, FIRST_PUBLIC):
        if not one_to_one:
            a.carry(public)
        path = os.path.join(case.run, "got")
        host.server.sh("curl -sS -f -m 60 -o %s %s" % (path, url(public, "big")))
        assert digest(path) == digest(os.path.join(folder, "big"))
        assert "mtu 1300" in a.sh("ip route get %s" % server), "the container's kernel has learnt it"
    host.finish()


@suite.test("the uplink's interface is pulled and plugged in again, twice, with another link address of the router: TCP through NAT, to and from an "
            "attached address, and 1:1, goes on", cases={"direct": False, "one-to-one": True})
def pulled(case, one_to_one):
    product_only("interfaces that come and go")
    host, a, b = world(case, "a", "b")
    host.attach(b, *FIRST_PUBLIC, one_to_one=one_to_one)
    for node in (a, b, host.server):
        node.peer("serve", port=ECHO)
    flows = []
    for server, public in zip(SERVER, FIRST_PUBLIC):
        if not one_to_one:
            b.carry(public)
        flows += [(a, server), (b, server), (host.customer, public)]
    assert a.peer("open", group="local", host=b.v4, port=ECHO, count=20)["opened"] == 20
    for space, to in flows:
        assert space.peer("open", group=to, host=to, port=ECHO, count=40) == {"opened": 40, "failed": {}}, to
    before = sorted(map(tuple, host.server.peer("remotes", port=ECHO)))
    for _ in range(2):
        host.host.sh("ip link del up0")
        until(lambda: not host.uplink_status()["link"], "it is gone", 10)
        assert a.peer("echo", group="local", timeout=5) == {"ok": 20}, "others do not notice"
        time.sleep(0.5)
        process.run(["ip", "link", "add", "host0", "netns", host.router.name, "type", "veth", "peer", "name", "up0", "netns", host.host.name])
        host.router.sh("ip addr add %s/24 dev host0; ip addr add %s/64 dev host0 nodad; ip link set host0 up" % ROUTER)
        host.host.sh("ip addr add %s/24 dev up0; ip addr add %s/64 dev up0 nodad; ip link set up0 up" % KERNEL)
        for space, to in flows:
            assert space.peer("echo", group=to, timeout=60) == {"ok": 40}, (space.short, to)
    assert sorted(map(tuple, host.server.peer("remotes", port=ECHO))) == before, "the same connections"
    host.finish()


if __name__ == "__main__":
    suite.main()
