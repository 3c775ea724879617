"""A small internet in network namespaces, and a host of ours at its edge.

    containers ── host ──up0──── router ──┬── server    two addresses of each family
                                          ├── second    another server
                                          └── customer  somebody else, who asks unasked

The kernel of `host` forwards, has addresses of its own on `up0`, and must stay out of everything else there. Three things can
be that host, chosen by HOSTWEAVE_INTERNET, so that the tests are judged, too:

    product   the daemon, with TAP ports; what is under test (default)
    kernel    the kernel's own routing and NAT (nftables): a test that fails with it is wrong
    none      the kernel without NAT: a test of NAT that passes with it proves nothing
"""

import hashlib
import ipaddress
import json
import os
import shutil
import signal

from . import packets, process, requirements
from .daemon import Daemon, ROUTER_MAC
from .namespace import Namespace
from .peer import Peer
from .process import until
from .suite import Skip

WAY = os.environ.get("HOSTWEAVE_INTERNET", "product")

# The segment between host and router: who is who on it.
ROUTER = "198.51.100.1", "2001:db8:100::1"
OWN = "198.51.100.2", "2001:db8:100::2"
KERNEL = "198.51.100.3", "2001:db8:100::3"
NEAR = "198.51.100.77", "2001:db8:100::77"
POOL = "198.51.100.16/30", "2001:db8:100::10/126"
PUBLIC = "198.51.100.32/29", "2001:db8:100::20/125"
# Behind OWN, where the router sends what is for them.
ROUTED = "192.0.2.128/26", "2001:db8:a000::/40"
# Behind the host.
INSIDE = "10.64.0.0/24", "fd00:64::/64"
GATEWAY = "10.64.0.1", "fd00:64::1"
# Behind the router.
SERVER = "203.0.113.10", "2001:db8:201::10"
SERVER_ALIAS = "203.0.113.11", "2001:db8:201::11"
SECOND = "203.0.113.74", "2001:db8:202::10"
CUSTOMER = "203.0.113.138", "2001:db8:203::10"
_LINKS = {"server": ("203.0.113.1/26", "2001:db8:201::1/64", SERVER), "second": ("203.0.113.65/26", "2001:db8:202::1/64", SECOND),
          "customer": ("203.0.113.129/26", "2001:db8:203::1/64", CUSTOMER)}

# What `named` answers for example.org.
ZONE = """$TTL 60
@ SOA ns hostmaster 1 60 60 60 60
  NS ns
ns A 203.0.113.10
ns AAAA 2001:db8:201::10
www A 203.0.113.80
www AAAA 2001:db8:201::80
"""

_SYSCTL = ("sysctl -qw net.ipv6.conf.default.accept_ra=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.ping_group_range='0 0' "
           "net.ipv4.ip_local_port_range='10000 65000'")
# Errors are what tests wait for: none is held back for its rate.
_FORWARD = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0"


def addresses(cidr):
    """All addresses of a range, as text."""
    return [str(address) for address in ipaddress.ip_network(cidr)]


def family(address):
    """0 for IPv4, 1 for IPv6: the index into pairs of addresses."""
    return 1 if ":" in address else 0


# L4 ports of servers: what a `peer` that serves there does.
ECHO, TELLS, REFLECT = 7000, 7001, 7002
PUBLIC_4, PUBLIC_6 = (addresses(cidr) for cidr in PUBLIC)
# For the port that a test attaches an address to, and for another.
FIRST_PUBLIC = PUBLIC_4[2], PUBLIC_6[2]
SECOND_PUBLIC = PUBLIC_4[3], PUBLIC_6[3]

# By a packet socket, as by default, and with AF_XDP beside it.
DRIVERS = {"afPacket": None, "afXdp": "afXdp"}


def requires():
    """What a suite over it needs."""
    requirements.root()
    requirements.tun()
    requirements.programs("ip", "python3", "tcpdump", "ping", "curl", "nginx", "iperf3", "traceroute", "tracepath",
                          "turnserver", "turnutils_natdiscovery", "nft")


def product_only(why):
    if WAY != "product":
        raise Skip("only the product: %s" % why)


class Capture:
    """tcpdump in a namespace, into a file."""

    def __init__(self, space, device, expression="", octets=262144):
        space.captures = getattr(space, "captures", 0) + 1
        name = "%s-%d" % (space.short, space.captures)
        self.path, self.whole, self.log = space.case.log(name + ".pcap"), octets == 262144, space.case.log(name + ".log")
        self.process = space.spawn(["tcpdump", "-n", "-U", "--immediate-mode", "-Z", "root", "-B", "8192", "-s", octets, "-i", device, "-w", self.path]
                                   + ([expression] if expression else []), name + ".log")
        until(lambda: "listening on" in open(self.log).read(), "tcpdump listens", 20, 0.02)

    def frames(self):
        """What it has by now."""
        return [packets.Seen(data) for data in packets.read_pcap(self.path, self.whole)]

    def stop(self):
        """The frames, all of them."""
        # What has been sent arrives within a moment, and tcpdump writes what it has not read yet.
        size = 0

        def written():
            nonlocal size
            process.run(["sleep", "0.2"])
            before, size = size, os.path.getsize(self.path)
            return before == size

        until(written, "tcpdump has written what came", 20, 0)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        return self.frames()


class Node(Namespace):
    """A machine of the internet, with a `peer`."""

    def __init__(self, case, name):
        super().__init__(case, name)
        self.short = name
        self.sh(_SYSCTL)
        self._peer = None

    @property
    def peer(self):
        self._peer = self._peer or Peer(self, self.short)
        return self._peer

    def capture(self, device, expression="", octets=262144):
        return Capture(self, device, expression, octets)

    def hops(self, to, options=""):
        """Who answers on the way, by traceroute."""
        out = self.sh("traceroute -n -q 2 -w 3 -m 8 %s %s" % (options, to))
        return [line.split()[1] for line in out.splitlines()[1:]]


class Internet:
    """Everything outside of the host, and the host's namespace itself, without anything in it but the uplink."""

    def __init__(self, case):
        self.case = case
        self.host, self.router = Node(case, "host"), Node(case, "router")
        self._veth(self.router, "host0", self.host, "up0")
        self.router.sh("%s; ip addr add %s/24 dev host0; ip addr add %s/64 dev host0 nodad; ip link set host0 up" % ((_FORWARD,) + ROUTER))
        self.host.sh("{0}; ip addr add {1}/24 dev up0; ip addr add {2}/64 dev up0 nodad; ip link set up0 up; "
                     "ip route add default via {3}; ip route add default via {4}".format(_FORWARD, *KERNEL, *ROUTER))
        for name, (v4, v6, own) in _LINKS.items():
            node = Node(case, name)
            setattr(self, name, node)
            self._veth(self.router, name, node, "eth0")
            self.router.sh("ip addr add {0} dev {2}; ip addr add {1} dev {2} nodad; ip link set {2} up".format(v4, v6, name))
            node.addresses = own
            node.sh("ip addr add {0}/26 dev eth0; ip addr add {1}/64 dev eth0 nodad; ip link set eth0 up; "
                    "ip route add default via {2}; ip route add default via {3}".format(*own, v4.split("/")[0], v6.split("/")[0]))
        # Deprecated (RFC 4862): nothing is sent from there that does not ask for it.
        self.server.sh("ip addr add %s/26 dev eth0; ip addr add %s/64 dev eth0 nodad preferred_lft 0" % SERVER_ALIAS)

    def _veth(self, a, name_a, b, name_b):
        process.run(["ip", "link", "add", name_a, "netns", a.name, "type", "veth", "peer", "name", name_b, "netns", b.name])

    def narrow(self, mtu):
        """The MTU of the path between router and `server`, which no MSS tells."""
        for number, cidr in enumerate(("203.0.113.0/26", "2001:db8:201::/64")):
            self.router.sh("ip -{0} route del {1} dev server; ip -{0} route add {1} dev server mtu lock {2}".format((4, 6)[number], cidr, mtu))

    def neighbour(self):
        """Another machine on the segment between host and router, which the router itself cannot reach (macvlan): `near`."""
        self.near = Node(self.case, "near")
        self.near.addresses = NEAR
        self.router.sh("ip link add link host0 name near0 type macvlan mode bridge; ip link set near0 netns %s" % self.near.name)
        self.near.sh("ip addr add %s/24 dev near0; ip addr add %s/64 dev near0 nodad; ip link set near0 up" % NEAR)
        return self.near

    # What the servers run

    def nginx(self):
        """On `server`, port 80, both families: files of `www` by GET, and PUT. `clients` is then who was seen."""
        self.www = os.path.join(self.case.run, "www")
        os.makedirs(self.www)
        os.chmod(self.www, 0o777)
        os.chmod(self.case.run, 0o755)
        self.access = self.case.log("access.log")
        config = os.path.join(self.case.run, "nginx.conf")
        with open(config, "w") as out:
            out.write("""user root; worker_processes 1; daemon off; pid {run}/nginx.pid; error_log {logs} warn;
events {{ worker_connections 4096; }}
http {{
    log_format who '$remote_addr $remote_port $request $status';
    access_log {access} who; sendfile on; client_max_body_size 0; client_body_temp_path {run}/body; proxy_temp_path {run}/p;
    fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;
    server {{ listen 80; listen [::]:80; root {run}/www; location / {{ dav_methods PUT; }} }}
}}
""".format(run=self.case.run, logs=self.case.log("nginx.log"), access=self.access))
        self.server.spawn(["nginx", "-c", config, "-e", self.case.log("nginx.log")], "nginx.log")
        until(lambda: ":80 " in self.server.sh("ss -tln"), "nginx listens", 20)

    def clients(self):
        """Addresses in nginx's log, one for each request."""
        return [line.split()[0] for line in open(self.access)]

    def iperf(self):
        self.server.spawn(["iperf3", "-s"], "iperf3-server.log")
        until(lambda: ":5201" in self.server.sh("ss -tln"), "iperf3 listens", 20)

    def named(self, zone=ZONE):
        """BIND on `server`, both families, with a zone of example.org."""
        folder = os.path.join(self.case.run, "named")
        os.makedirs(folder)
        with open(folder + "/zone", "w") as out:
            out.write(zone)
        with open(folder + "/named.conf", "w") as out:
            out.write('options {{ directory "{0}"; pid-file none; session-keyfile none; listen-on {{ {1}; }}; listen-on-v6 {{ {2}; }}; recursion no; }};\n'
                      'controls {{ }};\nzone "example.org" {{ type primary; file "{0}/zone"; }};\n'.format(folder, *SERVER))
        # A copy: Debian's AppArmor profile lets /usr/sbin/named read its own folders only.
        program = shutil.copy(shutil.which("named"), folder + "/named")
        self.server.spawn([program, "-g", "-c", folder + "/named.conf"], "named.log")
        # It listens before it has the zone.
        until(lambda: "all zones loaded" in open(self.case.log("named.log")).read() and ":53 " in self.server.sh("ss -tln"), "named serves its zone", 30)

    def stun(self):
        """coturn on both addresses of `server`, with what RFC 5780 asks for."""
        argv = ["turnserver", "-n", "--stun-only", "--no-tls", "--no-dtls", "--no-cli", "--no-auth", "--log-file", "stdout",
                "--pidfile", os.path.join(self.case.run, "turn.pid"), "--userdb", os.path.join(self.case.run, "turndb")]
        # The alternate address of RFC 5780 is the next one: each family has a server of its own.
        for number in (0, 1):
            self.server.spawn(argv + ["-L", SERVER[number], "-L", SERVER_ALIAS[number]], "turnserver-%d.log" % number)
            listening = "%s:3479" % ("[%s]" % SERVER_ALIAS[1] if number else SERVER_ALIAS[0])
            until(lambda: listening in self.server.sh("ss -uln"), "coturn listens", 20)


def world(case, *names, **options):
    """An internet, with a host and its containers, connected: (host, containers...)."""
    inside = (Product if WAY == "product" else KernelNat)(case, names, **options)
    return (inside, *inside.containers)


def world_with(case, driver, *names):
    """A world whose uplink has this driver; `None`: the default."""
    if driver:
        product_only("drivers")
        return world(case, *names, driver=driver)
    return world(case, *names)


def in_pool(address):
    """Whether it is of the NAT pool."""
    return address in addresses(POOL[family(address)])


def digest(path):
    """Of a file's octets."""
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def url(host, name):
    """Of a file of `nginx`."""
    return "http://%s/%s" % ("[%s]" % host if family(host) else host, name)


def outside_of(container, node, host, port=TELLS):
    """Who a container is to a peer that `tells`: address and L4 port of a new TCP connection."""
    group = "tell-%s-%d" % (host, port)
    opened = container.peer("open", group=group, host=host, port=port, timeout=5)
    assert opened["opened"] == 1, "%s reaches %s: %s" % (container.short, host, opened)
    told = container.peer("tell", group=group)
    container.peer("close", group=group)
    return told


def segments_stay_large(container, node, device):
    """What iperf3 sends to `server` and from there passes a device of a node in segments far beyond the MTU."""
    for server in SERVER:
        for direction in ("", "-R"):
            listener = node.capture(device, "tcp and greater 9000", octets=128)
            container.iperf(server, 1, direction)
            # Which side of a veth a capture sees tells the direction by the source.
            large = [seen for seen in listener.stop() if (seen.src == server) == (direction == "-R")]
            assert len(large) > 20, "%d large frames %s" % (len(large), direction)


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


class Container(Node):
    """A container on a host: `families` are its addresses inside."""

    @property
    def families(self):
        return self.v4, self.v6

    def connect(self):
        self.sh("ip addr add {v4}/24 dev {d}; ip -6 addr add {v6}/64 dev {d} nodad; ip link set {d} up; ip route add default via {g}; "
                "ip -6 route replace default via fe80::1 dev {d}".format(v4=self.v4, v6=self.v6, d=self.device, g=GATEWAY[0]))

    def carry(self, address):
        """Takes a public address onto its NIC; what it sends to the outside of that family comes from there."""
        if family(address):
            self.sh("ip -6 addr add {0}/128 dev {1} nodad; ip -6 route replace default via fe80::1 dev {1} src {0}".format(address, self.device))
        else:
            self.sh("ip addr add {0}/32 dev {1}; ip route replace default via {2} dev {1} src {0}".format(address, self.device, GATEWAY[0]))

    def drop(self, address):
        """Gives it back."""
        if family(address):
            self.sh("ip -6 addr del {0}/128 dev {1}; ip -6 route replace default via fe80::1 dev {1} src {2}".format(
                address, self.device, self.v6))
        else:
            self.sh("ip addr del {0}/32 dev {1}; ip route replace default via {2} dev {1} src {3}".format(
                address, self.device, GATEWAY[0], self.v4))

    def iperf(self, host, seconds, options=""):
        """What iperf3 says at the end."""
        return json.loads(self.sh("iperf3 -J -c %s -t %s %s" % (host, seconds, options), 90))["end"]

    def knows_path_mtu(self, host, mtu, in_fragments="ECONNREFUSED"):
        """Its kernel has learnt the MTU of the path to a closed port, and learns it anew from a datagram, of which the next goes in fragments, and by
        tracepath."""
        forget = "ip -%d route flush cache" % (4, 6)[family(host)]
        assert "mtu %d" % mtu in self.sh("ip route get %s" % host), "the container's kernel has learnt it"
        self.sh(forget)
        assert self.peer("datagram", host=host, port=9, octets=1400) == "EMSGSIZE"
        found = self.peer("datagram", host=host, port=9, octets=1400)
        assert found == in_fragments, "in fragments, to a port that is closed: %s" % found
        self.sh(forget)
        out = self.sh("tracepath -n -m 8 %s" % host)
        assert "pmtu %d" % mtu in out and "reached" in out, out


class Product(Internet):
    """The daemon."""

    def __init__(self, case, names, pool=POOL, filtering=None, block=None, mtu=1500, driver=None, workers=2, uplink=True,
                 start=True, host=None, **spec):
        """`pool` are ranges of a NatPool, none without; `spec` are more of its fields; `host` more of HostConfig's."""
        super().__init__(case)
        self.daemon = Daemon(case, mtu=mtu, workers=workers, networks={"default": list(INSIDE)}, space=self.host)
        self.daemon.host(**(host or {}))
        if uplink:
            self.uplink(**({"driver": driver} if driver else {}))
        if pool:
            self.pool(addresses=list(pool), **({"filtering": filtering} if filtering else {}),
                      **({"portBlock": block} if block else {}), **spec)
        self.containers = []
        for name in names:
            space = Container(case, name)
            space.device = "hw-" + name
            space.port = self.daemon.port(name, tap=space.device, netns=space.path, labels={"name": name})
            self.containers.append(space)
        if start:
            self.start()

    # The objects: all that the suite knows of their fields

    def uplink(self, **fields):
        fields = {"interface": "up0", "driver": "afPacket", "addresses": [OWN[0] + "/24", OWN[1] + "/64"], "gateways": list(ROUTER), **fields}
        self.daemon.host(uplink=fields)

    def pool(self, name="out", **spec):
        """A NatPool; without fields it goes."""
        self.daemon.set("hostweave.dev/v1alpha1", "NatPool", name, spec)

    def public(self):
        """The pool that Services have their addresses from."""
        self.daemon.set("hostweave.dev/v1alpha1", "AddressPool", "public", {"type": "public", "addresses": list(PUBLIC)})

    def routed_public(self):
        """A pool besides, of a prefix that the router knows to be behind OWN."""
        self.daemon.set("hostweave.dev/v1alpha1", "AddressPool", "routed", {"type": "public", "addresses": list(ROUTED)})
        self.router.sh("; ".join("ip route replace %s via %s" % way for way in zip(ROUTED, OWN)))

    def stub(self, name, *wanted):
        """CoreWeave's stub Service (SEMANTICS CW3) with addresses of our choice, one of each family."""
        self.daemon.set("v1", "Service", name, {
            "type": "LoadBalancer", "selector": {"coreweave.cloud/ignore": "ignore"}, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "attach", "port": 1, "targetPort": "attach"}],
        }, {"service.beta.kubernetes.io/coreweave-load-balancer-type": "public", "metallb.universe.tf/loadBalancerIPs": ",".join(wanted)})

    def annotate(self, container, service, one_to_one=False):
        """Attaches the stub's addresses to a port, or with `None` detaches."""
        annotations = container.port.annotations
        annotations.clear()
        if service:
            annotations["net.coreweave.cloud/attachLoadbalancerIP"] = service
            if one_to_one:
                annotations["hostweave.dev/attach-mode"] = "nat"

    # Life

    def start(self):
        self.daemon.start()
        self.connect()

    def connect(self):
        """The containers, as soon as they have their devices."""
        for space in self.containers:
            until(lambda: space.sh("ip link show " + space.device, check=False).returncode == 0, "the device of %s" % space.short, 30)
            space.v4, space.v6, space.mac = space.port.v4, space.port.v6, space.port.mac
            if not getattr(space, "connected", False):
                space.connect()
                space.connected = True
        self.ready()

    def ready(self):
        """The gateways have answered."""

        def resolved():
            status = self.uplink_status()
            return status["link"] and all(gateway.get("mac") for gateway in status["gateways"])

        if "uplink" in self.daemon.objects[0]["spec"]:
            until(resolved, "the gateways are resolved", 20)

    def uplink_status(self):
        return self.daemon.rpc("uplink.get")

    def restart(self, how="kill"):
        getattr(self.daemon, how)()
        self.daemon.start()
        self.ready()

    def reload(self):
        self.daemon.reload()

    def attach(self, container, *addresses, one_to_one=False):
        """From now on these, one of each family, are the container's and of nobody else; by 1:1 NAT its NIC knows nothing of them."""
        self.public()
        self.stub("own-ip", *addresses)
        for space in self.containers:
            self.annotate(space, "own-ip" if space is container else None, one_to_one)
        self.reload()

    def admit(self, container, *cidrs):
        """Policy: from outside only these may reach it."""
        self.daemon.policy("admit", podSelector={"matchLabels": {"name": container.short}}, policyTypes=["Ingress"],
                           ingress=[{"from": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}])
        self.reload()

    # Ledger

    def drops(self, reason):
        """How often the whole host dropped for a reason."""
        return self.daemon.rpc("port.stats")["host"]["dropped"].get(reason, 0)

    def finish(self, allowed=None):
        self.daemon.check_ledger(allowed)


class KernelNat(Internet):
    """The kernel of the host, as routers have it; the same interface as far as it can do the same."""

    daemon = None

    def __init__(self, case, names, pool=POOL, filtering=None, mtu=1500, **others):
        if filtering:
            raise Skip("the kernel's NAT has one filtering")
        super().__init__(case)
        self.host.sh("ip link add br0 address {0} type bridge; ip addr add {1}/24 dev br0; ip addr add {2}/64 dev br0 nodad; "
                     "ip addr add fe80::1/64 dev br0 nodad; ip link set br0 up".format(ROUTER_MAC, *GATEWAY))
        self.containers = []
        for number, name in enumerate(names):
            space = Container(case, name)
            space.device, port = "hw-" + name, "p-" + name
            space.v4, space.v6 = "10.64.0.%d" % (10 + number), "fd00:64::%d" % (10 + number)
            self._veth(self.host, port, space, space.device)
            self.host.sh("ip link set %s master br0 up" % port)
            space.connect()
            space.mac = space.sh("cat /sys/class/net/%s/address" % space.device).strip()
            space.port = space
            self.containers.append(space)
        if pool and WAY == "kernel":
            self._nat(pool)

    def _nat(self, pool):
        owned = [addresses(cidr) for cidr in pool]
        rules = ["add table inet nat",
                 "add chain inet nat out { type nat hook postrouting priority srcnat; }",
                 # Nobody asked for what belongs to no connection, and nobody is told.
                 "add chain inet nat guard { type filter hook input priority filter; }",
                 "add chain inet nat through { type filter hook forward priority filter; }"]
        for number, (kind, inside) in enumerate(zip(("ip", "ip6"), INSIDE)):
            for address in owned[number]:
                self.host.sh("ip addr add %s/%d dev up0 %s" % (address, (32, 128)[number], "nodad" if number else ""))
            rules.append("add rule inet nat guard %s daddr %s ct state new drop" % (kind, pool[number]))
            rules.append("add rule inet nat guard %s daddr %s ct state invalid drop" % (kind, pool[number]))
            rules.append("add rule inet nat through iifname up0 %s daddr %s ct state new drop" % (kind, inside))
            # Each has its own sources, and no other.
            rules.append("add set inet nat own%d { type ether_addr . ipv%d_addr; }" % (number, (4, 6)[number]))
            rules.append("add rule inet nat through iifname br0 meta nfproto %s ether saddr . %s saddr != @own%d drop" % (
                ("ipv4", "ipv6")[number], kind, number))
            rules += ["add element inet nat own%d { %s . %s }" % (number, space.mac, space.families[number]) for space in self.containers]
            rules.append("add rule inet nat through iifname br0 meta nfproto %s ct state invalid drop" % ("ipv4", "ipv6")[number])
            for place, space in enumerate(self.containers):
                rules.append("add rule inet nat out oifname up0 %s saddr %s snat %s to %s" % (
                    kind, space.families[number], kind, owned[number][place % len(owned[number])]))
        self._nft(*rules)

    def _nft(self, *rules):
        self.host.sh("nft -f - <<'END'\n%s\nEND" % "\n".join(rules))

    def restart(self, how="kill"):
        pass

    def reload(self):
        pass

    def attach(self, container, *addresses, one_to_one=False):
        if one_to_one:
            raise Skip("not set up with the kernel")
        for address in addresses:
            self._nft("add element inet nat own%d { %s . %s }" % (family(address), container.mac, address))
            if family(address):
                self.host.sh("ip -6 neigh replace proxy {0} dev up0; sysctl -qw net.ipv6.conf.up0.proxy_ndp=1; "
                             "ip -6 route replace {0} via {1} dev br0".format(address, container.v6))
            else:
                self.host.sh("ip neigh replace proxy {0} dev up0; ip route replace {0} via {1} dev br0 onlink".format(address, container.v4))

    def admit(self, container, *cidrs):
        self._nft(*("add rule inet nat through iifname up0 %s daddr %s %s saddr != { %s } drop" % (
            kind, public, kind, ", ".join(c for c in cidrs if family(c) == number))
            for number, (kind, public) in enumerate(zip(("ip", "ip6"), PUBLIC))))

    def drops(self, reason):
        return None

    def finish(self, allowed=None):
        pass
