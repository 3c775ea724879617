"""DNS at the gateway, asked by real resolvers in a container: dig, glibc (getent), musl (busybox). The upstream server is
a program in the host's namespace.

Needs root (namespaces, TAP devices).
"""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from containers import slaac  # noqa: E402
from harness import process, requirements  # noqa: E402
from harness.daemon import Daemon  # noqa: E402
from harness.namespace import Namespace  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402


def check():
    requirements.root()
    requirements.tun()
    requirements.programs("ip", "busybox", "dig", "getent", "python3")


suite = Suite("dns", check)

# Knows www.example, has big.example only over TCP, and says what it was asked.
UPSTREAM = """
import socket, struct, sys, threading
def reply(query, tcp):
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    name, question = ".".join(labels), query[12:at + 5]
    kind = struct.unpack(">H", query[at + 1:at + 3])[0]
    print("asked", name, kind, "tcp" if tcp else "udp", flush=True)
    record = lambda n: b"\\xc0\\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([198, 51, 100, n])
    soa = b"\\0" + struct.pack(">HHIH", 6, 1, 60, 22) + b"\\0\\0" + struct.pack(">IIIII", 1, 1, 1, 1, 60)
    flags, answers, authority = 0x8180, [], b""
    if name == "www.example":
        answers = [record(1)] if kind == 1 else []
    elif name == "big.example":
        answers, flags = ([record(n) for n in range(200)], flags) if tcp else ([], 0x8380)
    else:
        flags |= 3
    if not answers and not flags & 0x200:
        authority = soa
    head = query[:2] + struct.pack(">HHHHH", flags, 1, len(answers), 1 if authority else 0, 0)
    return head + question + b"".join(answers) + authority
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", int(sys.argv[1])))
tcp = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def serve_tcp():
    while True:
        connection = tcp.accept()[0]
        length = struct.unpack(">H", connection.recv(2))[0]
        answer = reply(connection.recv(length), True)
        connection.sendall(struct.pack(">H", len(answer)) + answer)
        connection.close()
threading.Thread(target=serve_tcp, daemon=True).start()
print("ready", flush=True)
while True:
    query, peer = udp.recvfrom(4096)
    udp.sendto(reply(query, False), peer)
"""
PORT = 5399


class Scene:
    """A daemon, an upstream server, a container with its resolver set up by DHCP, and another network with a port."""

    def __init__(self, case):
        self.case = case
        self.log = case.log("upstream.log")
        self.upstream = process.spawn(["python3", "-uc", UPSTREAM, str(PORT)], self.log)
        case.callback(process.kill, self.upstream)
        until(lambda: "\nready\n" in open(self.log).read(), "the upstream server", 20)
        same = ["192.0.2.0/24", "2001:db8:0:1::/64"]
        self.daemon = Daemon(case, networks={"red": same, "blue": ["198.18.0.0/24"]})
        self.daemon.host(dns={"upstream": ["127.0.0.1:%d" % PORT]})
        self.space = Namespace(case, "a")
        self.space.device = "hw-a"
        self.space.port = self.daemon.port("a", "red", tap="hw-a", netns=self.space.path)
        self.blue = self.daemon.port("hidden", "blue")
        self.daemon.start()
        until(lambda: self.space.sh("ip link show hw-a"), "the device", 30)
        assert self.space.dhcp("hw-a") == self.space.port.v4
        slaac(self.space)
        self.resolv = open(case.log("resolv-%s.conf" % self.space.name)).read()
        self.space.resolv(self.resolv)

    def gateways(self):
        return self.space.port.describe()["gateways"]

    def dig(self, *arguments):
        return self.space.sh("dig +time=3 +tries=2 " + " ".join(arguments))

    def asked(self):
        return [line[len("asked "):] for line in open(self.log).read().split("\n") if line.startswith("asked ")]


@suite.test("dig gets ports, reverse names, SOA and the version from both gateways; another network's names do not exist")
def cluster_zone(case):
    scene = Scene(case)
    port = scene.space.port
    for gateway in scene.gateways():
        at = "@" + gateway
        name = "a.default.port.cluster.local"
        assert scene.dig(at, "+short", name).strip() == port.v4
        assert scene.dig(at, "+short", name, "AAAA").strip() == port.v6
        assert scene.dig(at, "+short", "+tcp", name).strip() == port.v4
        assert scene.dig(at, "+short", "-x", port.v4).strip() == name + "."
        assert scene.dig(at, "+short", "-x", port.v6).strip() == name + "."
        assert scene.dig(at, "+short", "dns-version.cluster.local", "TXT").strip() == '"1.1.0"'
        out = scene.dig(at, "A.Default.PORT.cluster.LOCAL", "MX")
        assert "status: NOERROR" in out and "SOA\tns.dns.cluster.local." in out and " aa " in out, out
        assert "A.Default.PORT.cluster.LOCAL" in out, "the case of the question: %s" % out
        assert "status: NXDOMAIN" in scene.dig(at, "hidden.default.port.cluster.local")
        assert "status: NXDOMAIN" in scene.dig(at, "-x", scene.blue.v4)
        assert "RFC8482" in scene.dig(at, name, "ANY", "+notcp")
        assert "Transfer failed" in scene.dig(at, "cluster.local", "AXFR")
        assert "status: BADVERS" in scene.dig(at, name, "+edns=1", "+noednsnegotiation")
    assert scene.asked() == [], "nothing of this is for others: %s" % scene.asked()
    scene.daemon.check_ledger()


@suite.test("other names come from the upstream server once, over TCP where they must, and what it does not know is remembered")
def forwarding(case):
    scene = Scene(case)
    asked = []
    for gateway in scene.gateways():
        at = "@" + gateway
        assert scene.dig(at, "+short", "www.example").strip() == "198.51.100.1"
        assert "status: NXDOMAIN" in scene.dig(at, "nothing.example")
        assert len(scene.dig(at, "+short", "big.example").split()) == 200
        # By UDP again, if the server was slow; and never for the second gateway.
        asked = asked or scene.asked()
        assert sorted(set(asked)) == ["big.example 1 tcp", "big.example 1 udp", "nothing.example 1 udp", "www.example 1 udp"], asked
    assert scene.asked() == asked
    answer = json.loads(scene.daemon.cli("dns", "query", "www.example", "--network", "red", "-o", "json"))
    assert answer["source"] == "cache" and answer["answers"][0]["data"] == "198.51.100.1", answer
    process.kill(scene.upstream)
    out = scene.dig("@" + scene.gateways()[0], "other.example", "+time=8")
    assert "status: SERVFAIL" in out, "an answer, not silence: %s" % out
    scene.daemon.check_ledger()


@suite.test("glibc and musl-like resolvers with what DHCP gave them find ports, their reverse names and the world")
def resolvers(case):
    scene = Scene(case)
    port = scene.space.port
    gateway = scene.gateways()[0]
    assert "nameserver " + gateway in scene.resolv, "DHCP hands out the gateway: %r" % scene.resolv
    # As glibc reads it: with the search domain, which udhcpc gives its script.
    scene.space.resolv(scene.resolv + "\nsearch cluster.local\n")
    sh = scene.space.sh
    assert sh("getent ahostsv4 a.default.port.cluster.local").split()[0] == port.v4
    assert sh("getent ahostsv6 a.default.port.cluster.local").split()[0] == port.v6
    assert sh("getent ahostsv4 a.default.port").split()[0] == port.v4, "by the search domain"
    assert "a.default.port.cluster.local" in sh("getent hosts " + port.v4)
    assert sh("getent ahostsv4 www.example").split()[0] == "198.51.100.1"
    assert sh("getent hosts nothing.default.port.cluster.local", check=False).returncode == 2
    for server in scene.gateways():
        out = sh("busybox nslookup a.default.port.cluster.local " + server)
        assert port.v4 in out and port.v6 in out, out
    scene.daemon.check_ledger()


@suite.test("a Service has its name, named ports, reverse names and backends, and only in its network")
def services(case):
    scene = Scene(case)
    port, at = scene.space.port, "@" + scene.gateways()[0]
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    red = {"hostweave.dev/network": "red"}
    spec = {"selector": {"app": "web"}, "ports": ports}
    scene.daemon.set("v1", "Service", "web", dict(spec, ipFamilyPolicy="RequireDualStack"), red)
    scene.daemon.set("v1", "Service", "all", dict(spec, clusterIP="None", ipFamilyPolicy="RequireDualStack"), red)
    scene.daemon.set("v1", "Service", "away", {"type": "ExternalName", "externalName": "www.example"}, red)
    scene.daemon.set("v1", "Service", "alias", {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}, red)
    scene.daemon.set("v1", "Service", "other", dict(spec), {"hostweave.dev/network": "blue"})
    scene.daemon.reload()
    service = json.loads(scene.daemon.cli("get", "svc", "web", "-o", "json"))
    v4, v6 = service["spec"]["clusterIPs"]
    name = "web.default.svc.cluster.local"
    for at in ["@" + gateway for gateway in scene.gateways()]:
        assert scene.dig(at, "+short", name).strip() == v4
        assert scene.dig(at, "+short", name, "AAAA").strip() == v6
        assert scene.dig(at, "+short", "_http._tcp." + name, "SRV").strip() == "0 100 80 %s." % name
        for address in [v4, v6]:
            assert scene.dig(at, "+short", "-x", address).strip() == name + "."
        assert scene.dig(at, "+short", "alias.default.svc.cluster.local").split() == [name + ".", v4]
        assert scene.dig(at, "+short", "away.default.svc.cluster.local").split() == ["www.example.", "198.51.100.1"]
        assert "status: NXDOMAIN" in scene.dig(at, "other.default.svc.cluster.local")
        # Nobody stands behind the headless one yet (SEMANTICS DN3).
        assert "status: NXDOMAIN" in scene.dig(at, "all.default.svc.cluster.local")
    port.labels = {"app": "web"}
    scene.daemon.reload()
    headless = "all.default.svc.cluster.local"
    until(lambda: scene.dig(at, "+short", headless).strip() == port.v4, "the backend", 10)
    assert scene.dig(at, "+short", headless, "AAAA").strip() == port.v6
    assert scene.dig(at, "+short", "a." + headless).strip() == port.v4
    assert scene.dig(at, "+short", "_http._tcp." + headless, "SRV").strip() == "0 100 8080 a.%s." % headless
    scene.space.resolv(scene.resolv + "\nsearch default.svc.cluster.local\n")
    assert scene.space.sh("getent ahostsv4 web").split()[0] == v4
    scene.daemon.check_ledger()


if __name__ == "__main__":
    suite.main()
