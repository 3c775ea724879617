"""What Kubernetes documents about Services, row by row, as packets between real kernels: tests/netns/README.md is the table, and
tests/tidy.rs holds that each of its tests exists. Rows that are not here are proven in the files that the table names.

Backends "elsewhere" are servers behind the uplink that an EndpointSlice says run on another node. Needs root.
"""

import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness import internet, process  # noqa: E402
from harness.internet import CUSTOMER, GATEWAY, POOL, SERVER, family  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402
from services import CHECK, CLUSTER, ECHO, HTTP, PUBLIC_PAIR, UDP, Scene, ask, check, curl, refused, url  # noqa: E402

suite = Suite("kubernetes", check)
TERMINATING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}
NOT_READY = {"ready": False, "serving": False, "terminating": False}
PUBLIC = {"service.beta.kubernetes.io/coreweave-load-balancer-type": "public", "metallb.universe.tf/loadBalancerIPs": ",".join(PUBLIC_PAIR)}
SLICE_PORTS = [{"name": "http", "port": HTTP}, {"name": "echo", "port": ECHO}, {"name": "dns", "port": UDP, "protocol": "UDP"}]


class Sliced(Scene):
    """A Service without selector; EndpointSlices say who stands behind it."""

    def slices(self, *endpoints):
        """Each endpoint is a container, or the server elsewhere, and fields that differ from a ready one's."""
        for number, kind in enumerate(("IPv4", "IPv6")):
            found = []
            for space, fields in endpoints:
                own = space is not self.host.server
                address = space.families[number] if own else SERVER[number]
                found.append({"addresses": [address], "nodeName": "test" if own else "elsewhere", **fields})
            self.daemon.set("discovery.k8s.io/v1", "EndpointSlice", "web-" + kind.lower(), None, labels={"kubernetes.io/service-name": "web"},
                            addressType=kind, ports=SLICE_PORTS, endpoints=found)

    def become(self, *endpoints, **spec):
        """The Service of now."""
        self.slices(*endpoints)
        self.service(selector={}, **spec)
        self.daemon.reload()

    def answering(self, addresses=CLUSTER, space=None, times=24):
        """Who answers new connections to a Service, alike in both families."""
        found = [{name for name, _ in curl(space or self.client, address, times)} for address in addresses]
        assert found[0] == found[1], found
        return found[0]


def sliced(case, backends="ab", **options):
    """A scene without any Service yet, its servers running; one runs elsewhere, too."""
    scene = Sliced(case, backends, **options)
    scene.start()
    scene.serve(scene.host.server)
    return scene


def silent(space, address):
    """Whether a new connection gets no answer at all."""
    return space.sh("curl -sS -m 2 %s" % url(address), check=False).returncode == 28


@suite.test("KEP-1669: an endpoint that terminates gets new connections only when no other is ready and while it serves; what it has goes on")
def terminating(case):
    scene = sliced(case)
    a, b = scene.backends
    scene.become((a, {}), (b, {}))
    assert scene.answering() == {"a", "b"}
    for address in CLUSTER:
        scene.client.peer("open", group=address, host=address, port=7, count=40)
    scene.become((a, {}), (b, {"conditions": TERMINATING}))
    assert scene.answering() == {"a"}
    for address in CLUSTER:
        assert scene.client.peer("echo", group=address) == {"ok": 40}
    # Only those that end are left.
    scene.become((a, {"conditions": NOT_READY}), (b, {"conditions": TERMINATING}))
    assert scene.answering() == {"b"}
    assert {ask(scene.client, address)[0] for address in CLUSTER} == {"b"}
    scene.become((a, {"conditions": NOT_READY}), (b, {"conditions": GONE}))
    assert all(refused(scene.client, address) for address in CLUSTER)
    scene.finish()


@suite.test("publishNotReadyAddresses: endpoints that are not ready get connections and are in the headless Service's DNS; else neither")
def publish_not_ready(case):
    scene = sliced(case)
    a, b = scene.backends
    name = "web.default.svc.cluster.local"
    dig = lambda kind: set(scene.client.sh("dig +short +time=3 @%s %s %s" % (GATEWAY[0], name, kind)).split())
    both = [{a.families[number], b.families[number]} for number in (0, 1)]
    for publish in (False, True):
        scene.become((a, {"conditions": NOT_READY}), (b, {"conditions": NOT_READY}), publishNotReadyAddresses=publish)
        if publish:
            assert scene.answering() == {"a", "b"}
        else:
            assert all(refused(scene.client, address) for address in CLUSTER)
        scene.daemon.set("v1", "Service", "web", None)
        scene.daemon.reload()
        scene.become((a, {"conditions": NOT_READY}), (b, {"conditions": NOT_READY}), publishNotReadyAddresses=publish, clusterIP="None", at=None)
        for number, kind in enumerate(("A", "AAAA")):
            until(lambda: dig(kind) == (both[number] if publish else set()), "the names of both, or of none", 10)
        scene.daemon.set("v1", "Service", "web", None)
        scene.daemon.reload()
    scene.finish()


@suite.test("a named targetPort is another number at each backend, and one without the name gets nothing")
def named_ports(case):
    scene = Scene(case, "abc", serve=False)
    for name, number in (("a", 7100), ("b", 7200)):
        scene.spaces[name].port.named_ports = {"talk": number}
    scene.service(ports=[{"name": "talk", "port": 77, "targetPort": "talk"}])
    scene.start()
    for name, number in (("a", 7100), ("b", 7200)):
        scene.spaces[name].peer("serve", port=number)
    for number, address in enumerate(CLUSTER):
        assert scene.client.peer("open", group=address, host=address, port=77, count=60) == {"opened": 60, "failed": {}}
        assert scene.client.peer("echo", group=address) == {"ok": 60}
    for number, own in enumerate(scene.client.families):
        counts = [sum(host == own for host, _ in scene.spaces[name].peer("remotes", port=port)) for name, port in (("a", 7100), ("b", 7200))]
        assert sum(counts) == 60 and min(counts) > 10, counts
    scene.finish()


@suite.test("internalTrafficPolicy: with Cluster endpoints of every node, with Local those of this one; without any of those silence")
def internal_policy(case):
    scene = sliced(case, "a", pool=POOL)
    (a,), away = scene.backends, scene.host.server
    scene.become((a, {}), (away, {}))
    assert scene.answering() == {"a", "server"}
    scene.become((a, {}), (away, {}), internalTrafficPolicy="Local")
    assert scene.answering() == {"a"}
    scene.become((away, {}), internalTrafficPolicy="Local")
    assert all(silent(scene.client, address) for address in CLUSTER)
    assert scene.daemon.stats()["x"]["dropped"]["service_no_local_backend"] >= 2
    scene.become(internalTrafficPolicy="Local")
    assert all(refused(scene.client, address) for address in CLUSTER), "nobody anywhere is a refusal"
    scene.finish()


@suite.test("externalTrafficPolicy Local: clients outside reach endpoints of this node, which see their addresses, and without one hear nothing")
def external_policy(case):
    scene = sliced(case, "a", pool=POOL)
    (a,), away = scene.backends, scene.host.server
    scene.host.public()
    local = {"annotations": PUBLIC, "type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    scene.become((a, {}), (away, {}), **local)
    for number, address in enumerate(PUBLIC_PAIR):
        assert set(curl(scene.host.customer, address, 24)) == {("a", CUSTOMER[number])}
    scene.become((away, {}), **local)
    assert all(silent(scene.host.customer, address) for address in PUBLIC_PAIR)
    scene.become(**local)
    assert all(refused(scene.host.customer, address) for address in PUBLIC_PAIR), "nobody anywhere is a refusal"
    scene.finish()


def zoned(case):
    """A host in the zone `here`, its endpoint, and one beyond it."""
    scene = Sliced(case, "a", pool=POOL)
    scene.daemon.objects[0]["metadata"]["labels"] = {"topology.kubernetes.io/zone": "here"}
    scene.start()
    scene.serve(scene.host.server)
    (a,) = scene.backends
    return scene, a, scene.host.server


@suite.test("trafficDistribution: endpoints of this node, or of this zone, come first; where none is there, the others are used",
            cases={"node": "PreferSameNode", "zone": "PreferSameZone"})
def distribution(case, prefer):
    scene, a, away = zoned(case)
    here, there = {"zone": "here"}, {"zone": "there"}
    scene.become((a, here), (away, there))
    assert scene.answering() == {"a", "server"}
    scene.become((a, here), (away, there), trafficDistribution=prefer)
    assert scene.answering() == {"a"}
    scene.become((away, there), trafficDistribution=prefer)
    assert scene.answering() == {"server"}
    scene.finish()


@suite.test("sessionAffinity: a client keeps its backend when another one comes, and gets a new one when it was away for timeoutSeconds")
def affinity_timeout(case):
    scene = Scene(case, "ab", "wxyz")
    scene.spaces["b"].port.labels["app"] = "later"
    affinity = lambda seconds: scene.service(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}})
    affinity(60)
    scene.start().wait(2)
    clients = [(scene.spaces[name], address) for name in "wxyz" for address in CLUSTER]
    answers = lambda: [curl(space, address)[0][0] for space, address in clients]
    assert answers() == ["a"] * 8
    scene.spaces["b"].port.labels["app"] = "web"
    scene.daemon.reload()
    scene.wait(4)
    assert answers() == answers() == ["a"] * 8
    affinity(1)
    scene.daemon.reload()
    assert set(answers()) <= {"a", "b"}
    process.run(["sleep", "3"])
    # By the client's address now, which is the same time and again.
    settled = answers()
    assert set(settled) == {"a", "b"} and answers() == settled, settled
    scene.finish()


@suite.test("a UDP backend that leaves loses its clients at once: the next datagram of the same socket reaches another (SEMANTICS SV5)")
def udp_backend_leaves(case):
    scene = Scene(case, "ab")
    scene.service()
    scene.start().wait(4)
    peer = scene.client.peer
    # Two sockets for each backend and family at least, of 20.
    has = {}
    for number, address in enumerate(CLUSTER):
        for k in range(20):
            name = "%d-%d" % (number, k)
            peer("bind", name=name, host=scene.client.families[number])
            peer("send", name=name, to=[address, 53])
            has[name] = peer("take", name=name)[0].split()[0]
    for number in "01":
        assert {who for name, who in has.items() if name.startswith(number)} == {"a", "b"}, has
    scene.spaces["b"].port.labels["app"] = "another"
    scene.daemon.reload()
    for name in has:
        peer("send", name=name, to=[CLUSTER[int(name[0])], 53])
        text, source = peer("take", name=name)
        assert text.split()[0] == "a" and source[0] == CLUSTER[int(name[0])], (name, text, source)
    scene.finish()


@suite.test("a port range, and all ports: a backend gets the L4 port that the client asked for, TCP and UDP; others are refused")
def port_range(case):
    scene = Scene(case, "a")
    scene.service(ports=[{"name": "tcp", "port": 7000}, {"name": "udp", "port": 7000, "protocol": "UDP"}],
                  annotations={"hostweave.dev/port-range": "tcp=7000-8080,udp=7000-7001"})
    scene.start()
    for address in CLUSTER:
        assert curl(scene.client, address, port=HTTP) == [("a", scene.client.families[family(address)])]
        assert scene.client.peer("open", group=address, host=address, port=ECHO, count=5) == {"opened": 5, "failed": {}}
        assert scene.client.peer("echo", group=address) == {"ok": 5}
        assert ask(scene.client, address, UDP)[0] == "a"
        # Within the range, and nobody listens there: the backend's own kernel says so. Beyond it: the switch.
        assert refused(scene.client, address, 7777) and refused(scene.client, address, 8081)
    before = scene.dropped_of("x", "service_no_port")
    assert before >= 2, "one for each family"
    scene.service(ports=[{"name": "tcp", "port": 1}, {"name": "udp", "port": 1, "protocol": "UDP"}],
                  annotations={"hostweave.dev/port-range": "tcp=all,udp=all"})
    scene.daemon.reload()
    for address in CLUSTER:
        assert curl(scene.client, address, port=HTTP)[0][0] == "a" and ask(scene.client, address, UDP)[0] == "a"
        assert refused(scene.client, address, 8081)
        assert scene.client.peer("datagram", host=address, port=9) == "ECONNREFUSED"
    assert scene.dropped_of("x", "service_no_port") == before, "every port is declared"
    scene.finish()


@suite.test("several protocols and Services on one address: each L4 port of each protocol has the backends of its own Service")
def shared_address(case):
    scene = Scene(case, "ab")
    scene.host.public()
    for space in scene.backends:
        space.port.labels["app"] = space.short
    shared = {**PUBLIC, "metallb.universe.tf/allow-shared-ip": "one"}
    scene.service("first", None, shared, [{"name": "http", "port": 80, "targetPort": HTTP}], type="LoadBalancer", selector={"app": "a"})
    scene.service("second", None, shared, [{"name": "dns", "port": 80, "targetPort": UDP, "protocol": "UDP"}, {"name": "echo", "port": 7, "targetPort": ECHO}],
                  type="LoadBalancer", selector={"app": "b"})
    scene.start()
    for asker in (scene.host.customer, scene.client):
        for address in PUBLIC_PAIR:
            assert {name for name, _ in curl(asker, address, 6)} == {"a"}
            assert ask(asker, address, 80)[0] == "b"
            assert asker.peer("open", group=address, host=address, port=7)["opened"] == 1
            assert asker.peer("datagram", host=address, port=7) == "ECONNREFUSED", "UDP to a port that is TCP's"
    assert {host for host, _ in scene.spaces["b"].peer("remotes", port=ECHO)} >= set(CUSTOMER)
    scene.finish()


@suite.test("ipFamilies: a Service of one family has an address and backends of that family only; with both it serves both",
            cases={"IPv4": 0, "IPv6": 1})
def single_stack(case, number):
    scene = Scene(case, "a")
    scene.service(at=CLUSTER[number:number + 1], ipFamilyPolicy="SingleStack", ipFamilies=["IPv4" if number == 0 else "IPv6"])
    scene.start()
    assert curl(scene.client, CLUSTER[number]) == [("a", scene.client.families[number])]
    assert scene.daemon.rpc("service.backends", name="web")["addresses"] == [CLUSTER[number]]
    assert {family(b["address"]) for b in scene.backends_of()} == {number}
    other = CLUSTER[1 - number]
    assert scene.client.sh("curl -sS -m 2 %s" % url(other), check=False).returncode != 0
    dig = lambda kind: scene.client.sh("dig +time=3 @%s web.default.svc.cluster.local %s" % (GATEWAY[0], kind))
    kinds = ("A", "AAAA")
    assert CLUSTER[number] in dig(kinds[number])
    absent = dig(kinds[1 - number])
    assert "status: NOERROR" in absent and "ANSWER: 0" in absent, "never NXDOMAIN (SEMANTICS DN4): %s" % absent
    scene.service()
    scene.daemon.reload()
    for address in CLUSTER:
        assert curl(scene.client, address)[0][0] == "a"
    scene.finish()


@suite.test("health checks reach endpoints elsewhere through the network's NAT pool, as its clients do; one that fails is out")
def checked_elsewhere(case):
    scene = sliced(case, "a", pool=POOL)
    (a,), away = scene.backends, scene.host.server
    scene.become((a, {}), (away, {}), annotations={"hostweave.dev/health-check": CHECK % ("http", HTTP)})
    scene.wait(4)
    assert scene.answering() == {"a", "server"}
    askers = {line.split()[0] for line in open(away.access)}
    assert all(askers & set(internet.addresses(cidr)) for cidr in POOL), "by the addresses of the pool: %s" % askers
    away.nginx.send_signal(signal.SIGSTOP)
    scene.wait(2)
    assert scene.answering() == {"a"}
    away.nginx.send_signal(signal.SIGCONT)
    scene.wait(4)
    assert scene.answering() == {"a", "server"}
    names = {user["port"] for user in scene.daemon.rpc("nat.stats")["users"]}
    assert "network/default/internal" in names, names
    scene.finish()


@suite.test("trafficDistribution: where the endpoints that come first fail their checks, or are drained, the others are used",
            cases={"node": "PreferSameNode", "zone": "PreferSameZone"})
def distribution_overflows(case, prefer):
    scene, a, away = zoned(case)
    scene.become((a, {"zone": "here"}), (away, {"zone": "there"}), trafficDistribution=prefer,
                 annotations={"hostweave.dev/health-check": CHECK % ("http", HTTP)})
    states = lambda *names: {b["state"] for b in scene.backends_of() if b["portName"] == "http" and b["backend"] in (names or [b["backend"]])}
    until(lambda: states() == {"healthy"}, "all were asked", 30)
    assert scene.answering() == {"a"}
    a.nginx.send_signal(signal.SIGSTOP)
    until(lambda: states("default/a") == {"unhealthy"}, "the near one fails", 30)
    assert scene.answering() == {"server"}
    a.nginx.send_signal(signal.SIGCONT)
    until(lambda: states("default/a") == {"healthy"}, "it is back", 30)
    assert scene.answering() == {"a"}
    scene.daemon.cli("service", "drain", "a", "--service", "web")
    assert scene.answering() == {"server"}
    scene.finish()


if __name__ == "__main__":
    suite.main()
