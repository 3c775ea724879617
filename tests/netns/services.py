"""Services under real kernels: containers with TAP ports behind and before cluster addresses, nginx, curl, dig, and clients at the
uplink over a small internet (harness/internet.py).

Needs root. Every test does its work over IPv4 and over IPv6.
"""

import collections
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import internet, process, requirements  # noqa: E402
from harness.internet import CUSTOMER, GATEWAY, PUBLIC, SECOND, Product, addresses, family  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402

CLUSTER = "10.104.0.20", "fd68:7700:68::20"
OTHER = "10.104.0.21", "fd68:7700:68::21"
PUBLIC_PAIR = addresses(PUBLIC[0])[2], addresses(PUBLIC[1])[2]
# L4 ports of the servers: HTTP, echo over TCP, UDP.
HTTP, ECHO, UDP = 8080, 7000, 7001
# Fast enough for a test; the bounds of tests are far beyond.
CHECK = "{type: %s, port: %d, interval: 600ms, timeout: 600ms, rise: 1, fall: 3}"


def check():
    internet.requires()
    internet.product_only("the kernel has no Services")
    requirements.programs("dig", "nginx", "curl", "python3")


suite = Suite("services", check)

# Answers each datagram with its name and whom the datagram came from.
NAMED_UDP = """
import socket, sys
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
sock.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, source = sock.recvfrom(2048)
    sock.sendto(("%s %s" % (sys.argv[2], source[0].removeprefix("::ffff:"))).encode(), source)
"""


class Scene:
    """A host with containers: those of `backends` have the label `app: web` and run servers, those of `clients` ask."""

    def __init__(self, case, backends="abc", clients="x", serve=True, **options):
        self.case = case
        self.host = Product(case, list(backends + clients), pool=options.pop("pool", None), start=False, **options)
        self.daemon = self.host.daemon
        self.spaces = {space.short: space for space in self.host.containers}
        self.backends = [self.spaces[name] for name in backends]
        for space in self.backends:
            space.port.labels["app"] = "web"
        self.client = self.spaces[clients[0]] if clients else None
        self.serve_at_once = serve

    def start(self):
        self.host.start()
        os.chmod(self.case.run, 0o755)
        if self.serve_at_once:
            for space in self.backends:
                self.serve(space)
        return self

    def serve(self, space):
        """nginx, an echo server and a UDP server."""
        name = space.short
        config, self.run = os.path.join(self.case.run, name + ".conf"), self.case.run
        space.access = self.case.log("access-%s.log" % name)
        with open(config, "w") as out:
            out.write("""user root; worker_processes 1; master_process off; daemon off; pid {run}/{name}.pid; error_log {log} warn;
events {{ worker_connections 4096; }}
http {{
    log_format who '$remote_addr $request'; access_log {access} who; client_body_temp_path {run}/b; proxy_temp_path {run}/p;
    fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;
    server {{ listen {port}; listen [::]:{port}; location / {{ return 200 "{name} $remote_addr\\n"; }} }}
}}
""".format(run=self.run, name=name, log=self.case.log("nginx-%s.log" % name), access=space.access, port=HTTP))
        space.nginx = space.spawn(["nginx", "-c", config, "-e", self.case.log("nginx-%s.log" % name)], "nginx-%s.log" % name)
        space.udp = space.spawn(["python3", "-uc", NAMED_UDP, str(UDP), name], "udp-%s.log" % name)
        space.peer("serve", port=ECHO)
        until(lambda: ":%d " % HTTP in space.sh("ss -tln") and ":%d " % UDP in space.sh("ss -uln"), "%s serves" % name, 20)

    def service(self, name="web", at=CLUSTER, annotations=None, ports=None, **spec):
        """A Service of both families with these cluster addresses; without ports HTTP at 80, the echo at 7, UDP at 53."""
        ports = ports or [{"name": "http", "port": 80, "targetPort": HTTP}, {"name": "echo", "port": 7, "targetPort": ECHO},
                          {"name": "dns", "port": 53, "targetPort": UDP, "protocol": "UDP"}]
        spec = {"selector": {"app": "web"}, "ports": ports, "ipFamilyPolicy": "RequireDualStack", **spec}
        if at:
            spec["clusterIPs"] = list(at)
        self.daemon.set("v1", "Service", name, spec, annotations)

    def public(self, **spec):
        """The Service is of type LoadBalancer, with public addresses, from now on."""
        self.host.public()
        self.service(annotations={"service.beta.kubernetes.io/coreweave-load-balancer-type": "public",
                                  "metallb.universe.tf/loadBalancerIPs": ",".join(PUBLIC_PAIR)}, type="LoadBalancer", **spec)

    def backends_of(self, name="web"):
        return self.daemon.rpc("service.backends", name=name)["backends"]

    def wait(self, wanted, name="web"):
        """Until so many backends of the port `http`, over both families, take connections."""
        until(lambda: sum(b["internal"] for b in self.backends_of(name) if b["portName"] == "http") == wanted,
              "%d backends of %s take connections" % (wanted, name), 30, 0.05)

    def metric(self, name):
        """A value of /metrics, by its name with labels."""
        lines = self.daemon.http("/metrics")[1].splitlines()
        return int(next(line for line in lines if line.startswith(name + " ")).split()[1])

    def dropped_of(self, name, reason):
        """How many packets of a port were dropped for this reason."""
        return self.daemon.stats()[name]["dropped"].get(reason, 0)

    def finish(self, allowed=None):
        self.daemon.check_ledger(allowed)


def url(address, port=80):
    return "http://%s:%d/" % ("[%s]" % address if family(address) else address, port)


def curl(space, address, times=1, port=80):
    """Who answered new connections, and whom they saw: (name, address) each."""
    text = space.sh("for i in $(seq %d); do curl -sS -m 10 %s || exit 1; done" % (times, url(address, port)))
    return [tuple(line.split()) for line in text.splitlines()]


def refused(space, address, port=80):
    """Whether a connection is refused: by a reset or an ICMP error, and not by silence."""
    return space.sh("curl -sS -m 10 %s" % url(address, port), check=False).returncode == 7


def ask(space, address, port=53, source=0):
    """Who answers a datagram."""
    script = ("import socket,sys; s=socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET,socket.SOCK_DGRAM); "
              "s.bind(('',int(sys.argv[3]))); s.settimeout(10); s.connect((sys.argv[1],int(sys.argv[2]))); s.send(b'who'); "
              "print(s.recv(200).decode())")
    return tuple(space.sh("python3 -c \"%s\" %s %d %d" % (script, address, port, source)).split())


# Addresses


@suite.test("a cluster address spreads TCP and UDP connections over all backends, which see the client's own address")
def cluster_address(case):
    scene = Scene(case)
    scene.service()
    scene.start().wait(6)
    for number, address in enumerate(CLUSTER):
        answers = curl(scene.client, address, 40)
        assert {name for name, _ in answers} == set("abc"), answers
        assert {seen for _, seen in answers} == {scene.client.families[number]}, "the real client"
        answers = [ask(scene.client, address) for _ in range(20)]
        assert len({name for name, _ in answers}) > 1 and {seen for _, seen in answers} == {scene.client.families[number]}, answers
        assert scene.client.peer("open", group=address, host=address, port=7, count=30) == {"opened": 30, "failed": {}}
        assert scene.client.peer("echo", group=address) == {"ok": 30}
    assert scene.metric('hostweave_service_connections_total{service="default/web"}') == 2 * (40 + 20 + 30)
    assert scene.metric('hostweave_service_backends{service="default/web",state="healthy"}') == 3 * 2 * 3, "backends, families, L4 ports"
    scene.finish()


@suite.test("L4 ports that are not declared are refused, both families, TCP by RST and UDP by ICMP; the address answers ping")
def undeclared_and_ping(case):
    scene = Scene(case, "a")
    scene.public()
    scene.start().wait(2)
    for address in CLUSTER + PUBLIC_PAIR:
        askers = [scene.client] if address in CLUSTER else [scene.client, scene.host.customer]
        for space in askers:
            assert refused(space, address, 81), "TCP to %s from %s" % (address, space.short)
            assert space.peer("datagram", host=address, port=54) == "ECONNREFUSED", "UDP to %s from %s" % (address, space.short)
            space.sh("ping -c 2 -i 0.2 -W 5 %s" % address)
            assert curl(space, address)[0][0] == "a"
    scene.finish()


@suite.test("without backends clients are refused at once; one that comes is used, one that goes is not")
def no_backend(case):
    scene = Scene(case, "a")
    scene.service(selector={"app": "nobody"})
    scene.start()
    for address in CLUSTER:
        assert refused(scene.client, address)
        assert scene.client.peer("datagram", host=address, port=53) == "ECONNREFUSED"
    assert [f["message"] for f in scene.daemon.rpc("doctor.run")["findings"] if f["check"] == "service"] == [
        "Services that select no port of their network: default/web"]
    assert scene.metric("hostweave_service_no_backend_total") >= 4
    assert "ServiceUnavailable" in {e["type"] for e in scene.daemon.rpc("event.list", filter={"kind": "Service"})["events"]}
    scene.service()
    scene.daemon.reload()
    for address in CLUSTER:
        assert curl(scene.client, address) == [("a", scene.client.families[family(address)])]
    scene.backends[0].port.labels["app"] = "another"
    scene.daemon.reload()
    assert all(refused(scene.client, address) for address in CLUSTER)
    scene.finish()


@suite.test("a backend reaches its own Service, alone behind it, and sees the gateway as the client (SEMANTICS SV19)")
def hairpin(case):
    scene = Scene(case, "a", "")
    scene.service()
    scene.start().wait(2)
    (own,) = scene.backends
    for number, address in enumerate(CLUSTER):
        assert curl(own, address, 3) == [("a", GATEWAY[number])] * 3
        assert ask(own, address) == ("a", GATEWAY[number])
    scene.finish()


@suite.test("headless: dig gets every backend's address and SRV records with port names; an ordinary one has its address and PTR")
def names(case):
    scene = Scene(case, "ab", serve=False)
    scene.service("all", None, clusterIP="None")
    scene.service()
    scene.start()

    def dig(what):
        return sorted(scene.client.sh("dig +short +time=3 +tries=2 @%s %s" % (GATEWAY[0], what)).split("\n")[:-1])

    for number, kind in enumerate(("A", "AAAA")):
        # Without servers a port runs all the same: nothing is checked.
        assert dig("all.default.svc.cluster.local " + kind) == sorted(space.families[number] for space in scene.backends)
        assert dig("web.default.svc.cluster.local " + kind) == [CLUSTER[number]]
        assert dig("-x " + CLUSTER[number]) == ["web.default.svc.cluster.local."]
    records = [line.split() for line in dig("_http._tcp.all.default.svc.cluster.local SRV")]
    assert {int(port) for _, _, port, _ in records} == {HTTP} and len(records) >= 2, records
    assert dig("_http._tcp.web.default.svc.cluster.local SRV")[0].endswith(" 80 web.default.svc.cluster.local.")
    scene.finish()


@suite.test("sessionAffinity: each client keeps its backend over all of its connections, and gets another when that is gone")
def affinity(case):
    scene = Scene(case, "abc", "xyz")
    scene.service(sessionAffinity="ClientIP")
    scene.start().wait(6)
    for address in CLUSTER:
        for name in "xyz":
            own = {answer[0] for answer in curl(scene.spaces[name], address, 12)}
            assert len(own) == 1, "%s has %s" % (name, own)
    (own,) = {answer[0] for answer in curl(scene.client, CLUSTER[0], 2)}
    scene.spaces[own].port.labels["app"] = "another"
    scene.daemon.reload()
    after = {answer[0] for answer in curl(scene.client, CLUSTER[0], 12)}
    assert len(after) == 1 and own not in after, after
    scene.finish()


@suite.test("a public address: clients outside reach all backends, nginx logs their real addresses; source ranges keep others out")
def public_address(case):
    scene = Scene(case)
    scene.public()
    scene.start().wait(6)
    for number, address in enumerate(PUBLIC_PAIR):
        answers = curl(scene.host.customer, address, 30)
        assert {name for name, _ in answers} == set("abc"), answers
        assert {seen for _, seen in answers} == {CUSTOMER[number]}, answers
        assert ask(scene.host.customer, address)[1] == CUSTOMER[number]
        assert curl(scene.host.second, address)[0][1] == SECOND[number]
        # From inside, as from anywhere.
        assert curl(scene.client, address)[0][0] in "abc"
    logged = collections.Counter(line.split()[0] for space in scene.backends for line in open(space.access))
    assert logged[CUSTOMER[0]] == logged[CUSTOMER[1]] == 30, logged
    scene.public(loadBalancerSourceRanges=["203.0.113.128/26", "2001:db8:203::/64"])
    scene.daemon.reload()
    for number, address in enumerate(PUBLIC_PAIR):
        assert curl(scene.host.customer, address)[0][1] == CUSTOMER[number]
        assert scene.host.second.sh("curl -sS -m 2 %s" % url(address), check=False).returncode != 0
        assert curl(scene.client, CLUSTER[number])[0][0] in "abc", "a cluster address is not concerned (SEMANTICS SV18)"
    owner = scene.daemon.rpc("whois.run", address=PUBLIC_PAIR[0])["owners"]
    assert [o["name"] for o in owner if o["kind"] == "service"] == ["default/web"], owner
    scene.finish()


# Backends that come and go


def held_by(scene):
    """How many IPv4 connections to the echo port each backend has."""
    return {b["backend"]: b["connections"] for b in scene.backends_of() if b["portName"] == "echo" and "." in b["address"]}


@suite.test("relabelled out of a Service, a port keeps its TCP connections and gets no new ones; UDP goes elsewhere at once")
def relabelled(case):
    scene = Scene(case, "ab")
    scene.service()
    scene.start().wait(4)
    for address in CLUSTER:
        scene.client.peer("open", group=address, host=address, port=7, count=40)
        assert scene.client.peer("echo", group=address) == {"ok": 40}
    held = held_by(scene)
    assert held["default/a"] > 0, held
    scene.spaces["a"].port.labels["app"] = "other"
    scene.daemon.reload()
    for address in CLUSTER:
        assert scene.client.peer("echo", group=address) == {"ok": 40}, "what there was goes on"
        assert {name for name, _ in curl(scene.client, address, 12)} == {"b"}
        assert ask(scene.client, address, source=5000)[0] == "b"
    scene.finish()


@suite.test("drained, a backend keeps its TCP connections and gets no new ones; drained it stays over a restart, until undrained")
def drain(case):
    scene = Scene(case, "ab")
    scene.service()
    scene.start().wait(4)
    for address in CLUSTER:
        scene.client.peer("open", group=address, host=address, port=7, count=40)
        assert scene.client.peer("echo", group=address) == {"ok": 40}
    scene.daemon.cli("service", "drain", "a", "--service", "web")
    held = held_by(scene)
    assert sum(held.values()) == 40 and held["default/a"] > 0, held
    for again in (False, True):
        for address in CLUSTER:
            assert scene.client.peer("echo", group=address) == {"ok": 40}, "what there was goes on"
            assert {name for name, _ in curl(scene.client, address, 12)} == {"b"}
            assert ask(scene.client, address, source=5000)[0] == "b"
        if not again:
            scene.host.restart()
    assert "drained" in scene.daemon.cli("service", "backends", "web")
    scene.daemon.cli("service", "undrain", "a", "--service", "web")
    for address in CLUSTER:
        assert {name for name, _ in curl(scene.client, address, 24)} == {"a", "b"}
    scene.finish()


@suite.test("a frozen backend, whose kernel accepts and nobody answers, gets nothing any more; thawed it does; all is in the history")
def frozen(case):
    scene = Scene(case, "ab")
    scene.service(annotations={"hostweave.dev/health-check": CHECK % ("http", HTTP)})
    scene.start().wait(4)
    scene.spaces["a"].nginx.send_signal(signal.SIGSTOP)
    scene.wait(2)
    for address in CLUSTER:
        assert {name for name, _ in curl(scene.client, address, 12)} == {"b"}
    scene.spaces["a"].nginx.send_signal(signal.SIGCONT)
    scene.wait(4)
    for address in CLUSTER:
        assert {name for name, _ in curl(scene.client, address, 24)} == {"a", "b"}
    history = scene.daemon.rpc("service.backends", name="web")["history"]
    ways = [(entry["from"], entry["to"]) for entry in history if entry["backend"] == "default/a"]
    assert ("healthy", "unhealthy") in ways and ways[-1] == ("unhealthy", "healthy"), history
    assert all(entry["reason"] for entry in history if entry["to"] == "unhealthy"), history
    kinds = {e["type"] for e in scene.daemon.rpc("event.list", filter={"kind": "Service"})["events"]}
    assert "ServiceBackendUnhealthy" in kinds, kinds
    scene.finish()


@suite.test("a backend that refuses a client is checked long before its turn, and is out")
def suspected(case):
    scene = Scene(case, "ab").start()
    # Nobody asks again for 37 seconds; the wait below is shorter.
    scene.service(annotations={"hostweave.dev/health-check": "{type: tcp, port: %d, interval: 40s, timeout: 5s, rise: 1, fall: 1}" % HTTP})
    scene.daemon.reload()
    scene.wait(4)
    process.kill(scene.spaces["a"].nginx)
    for address in CLUSTER:
        scene.client.sh("for i in $(seq 12); do curl -sS -m 10 %s; done" % url(address), check=False)
    scene.wait(2)
    for address in CLUSTER:
        assert {name for name, _ in curl(scene.client, address, 12)} == {"b"}
    scene.finish()


@suite.test("a backend whose kernel resets every new connection while it answers echo is ejected, keeps what it has, and comes back")
def ejected(case):
    requirements.programs("nft")
    scene = Scene(case, "ab", "xy")
    scene.service(annotations={
        "hostweave.dev/health-check": "{type: icmp, interval: 600ms, timeout: 600ms, rise: 1, fall: 3}",
        "hostweave.dev/outlier-detection": "{consecutiveFailures: 3, baseEjectionTime: 30s}"})
    scene.start().wait(4)
    for address in CLUSTER:
        assert scene.client.peer("open", group=address, host=address, port=7, count=40)["opened"] == 40
    a, clients = scene.spaces["a"], [scene.client, scene.spaces["y"]]
    # A firewall on the guest, or a server whose queue is full: those it has go on, its checks pass.
    a.sh("nft 'add table inet t; add chain inet t i { type filter hook input priority 0; }; "
         "add rule inet t i tcp dport %d tcp flags & (syn|ack) == syn reject with tcp reset'" % ECHO)
    out = lambda: [b for b in scene.backends_of() if b["portName"] == "echo" and b["state"] == "ejected"]
    tries = [0]

    def ask_until_out():
        tries[0] += 1
        for client in clients:
            for address in CLUSTER:
                client.peer("open", group="try", host=address, port=7, count=4, timeout=5)
                client.peer("close", group="try")
        return len(out()) == 2

    until(ask_until_out, "it is ejected in both families", 20, 0.3)
    assert tries[0] <= 30, "a few connections of each: %d rounds" % tries[0]
    for backend in out():
        assert backend["backend"] == "default/a" and backend["ejection"]["until"], backend
        assert "refused" in backend["ejection"]["reason"] and not backend["internal"], backend
    # Its other server is another backend, and nobody failed there.
    assert {b["state"] for b in scene.backends_of() if b["portName"] == "http"} == {"healthy"}
    assert "ejected (until " in scene.daemon.cli("service", "backends", "web")
    for number, address in enumerate(CLUSTER):
        at = "[%s]:7" % address if number else "%s:7" % address
        said = scene.daemon.cli("trace", "--from", "default/x", "--to", at)
        assert "not default/a (" in said and "): ejected until" in said, said
        assert scene.client.peer("open", group="new", host=address, port=7, count=20)["opened"] == 20
        scene.client.peer("close", group="new")
        assert scene.client.peer("echo", group=address) == {"ok": 40}, "what there was goes on"
    assert scene.metric('hostweave_service_ejections_total{service="default/web"}') >= 2
    kinds = {e["type"] for e in scene.daemon.rpc("event.list", filter={"kind": "Service"})["events"]}
    assert "ServiceBackendEjected" in kinds, kinds
    a.sh("nft delete table inet t")
    until(lambda: not out(), "it is back", 90)
    ways = [(e["from"], e["to"], e["reason"]) for e in scene.daemon.rpc("service.backends", name="web")["history"] if e["backend"] == "default/a"]
    assert ways[-1] == ("ejected", "healthy", "its ejection is over"), ways
    remotes = len(a.peer("remotes", port=ECHO))
    for address in CLUSTER:
        assert scene.client.peer("open", group="again" + address, host=address, port=7, count=20)["opened"] == 20
    assert len(a.peer("remotes", port=ECHO)) > remotes, "it gets its share again"
    scene.finish()


@suite.test("a new backend gets nothing before its first successful check, and then its share")
def added(case):
    scene = Scene(case, "ab", serve=False)
    scene.spaces["b"].port.labels["app"] = "later"
    scene.service(annotations={"hostweave.dev/health-check": CHECK % ("tcp", HTTP)})
    scene.start()
    scene.serve(scene.spaces["a"])
    scene.wait(2)
    scene.spaces["b"].port.labels["app"] = "web"
    scene.daemon.reload()
    states = lambda: {b["state"] for b in scene.backends_of() if b["backend"] == "default/b"}
    until(lambda: states() == {"unhealthy"}, "the new one was checked", 20)
    for address in CLUSTER:
        assert {name for name, _ in curl(scene.client, address, 12)} == {"a"}
    scene.serve(scene.spaces["b"])
    scene.wait(4)
    for address in CLUSTER:
        assert {name for name, _ in curl(scene.client, address, 24)} == {"a", "b"}
    scene.finish()


@suite.test("headless: DNS names only the backends that pass the Service's checks, and all of them again when they do")
def names_of_healthy(case):
    scene = Scene(case, "ab", serve=False)
    scene.service("all", None, annotations={"hostweave.dev/health-check": CHECK % ("tcp", HTTP)}, clusterIP="None")
    scene.start()
    a, b = scene.backends

    def dig(what):
        return set(scene.client.sh("dig +short +time=3 +tries=2 @%s %s" % (GATEWAY[0], what)).split("\n")[:-1])

    def named(*spaces):
        for number, kind in enumerate(("A", "AAAA")):
            expected = {space.families[number] for space in spaces}
            until(lambda: dig("all.default.svc.cluster.local " + kind) == expected, "%d are named" % len(spaces), 20)

    until(lambda: {it["state"] for it in scene.backends_of("all")} == {"unhealthy"}, "both were asked", 20)
    named()
    assert "NXDOMAIN" in scene.client.sh("dig +time=3 @%s all.default.svc.cluster.local" % GATEWAY[0]), "SEMANTICS DN3"
    scene.serve(a)
    named(a)
    scene.serve(b)
    named(a, b)
    process.kill(a.nginx)
    named(b)
    assert dig("a.all.default.svc.cluster.local A") == set()
    assert all("b.all." in line for line in dig("_http._tcp.all.default.svc.cluster.local SRV"))
    scene.daemon.cli("service", "drain", "b", "--service", "all")
    named()
    scene.finish()


@suite.test("a check of TCP without an L4 port speaks for the backend as a whole: UDP of the same Service is served as well")
def mixed_protocols(case):
    scene = Scene(case, "ab")
    scene.service(annotations={"hostweave.dev/health-check": "{type: tcp, interval: 600ms, timeout: 600ms, rise: 1, fall: 3}"})
    scene.start().wait(4)
    for number, address in enumerate(CLUSTER):
        assert ask(scene.client, address)[1] == scene.client.families[number]
    until(lambda: {b["state"] for b in scene.backends_of()} == {"healthy"}, "every L4 port of every backend is healthy", 20)
    process.kill(scene.spaces["a"].nginx)
    scene.wait(2)
    for address in CLUSTER:
        assert {ask(scene.client, address)[0] for _ in range(12)} == {"b"}, "its other server goes with it"
        assert {name for name, _ in curl(scene.client, address, 12)} == {"b"}
    scene.finish()


# Together with everything else


@suite.test("policy sees the backend with its L4 port, and the real client: inside by labels, outside by address")
def policy(case):
    scene = Scene(case, "a", "xy")
    scene.public()
    scene.start().wait(2)
    allow = [{"from": [{"podSelector": {"matchLabels": {"name": "x"}}}, {"ipBlock": {"cidr": CUSTOMER[0] + "/32"}},
                       {"ipBlock": {"cidr": CUSTOMER[1] + "/128"}}], "ports": [{"port": HTTP}]}]
    scene.daemon.policy("web", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Ingress"], ingress=allow)
    scene.daemon.reload()
    passes = lambda space, address: space.sh("curl -sS -m 2 %s" % url(address), check=False).returncode == 0
    for number in (0, 1):
        assert passes(scene.spaces["x"], CLUSTER[number]) and not passes(scene.spaces["y"], CLUSTER[number])
        assert passes(scene.host.customer, PUBLIC_PAIR[number]) and not passes(scene.host.second, PUBLIC_PAIR[number])
    # The Service's own L4 port means nothing to it.
    allow[0]["ports"] = [{"port": 80}]
    scene.daemon.policy("web", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Ingress"], ingress=allow)
    scene.daemon.reload()
    assert not any(passes(scene.spaces["x"], address) for address in CLUSTER)
    scene.finish()


@suite.test("killed and started again, the daemon has the same addresses, and connections through them go on")
def restart(case):
    scene = Scene(case, "ab")
    scene.host.public()
    # Whatever addresses it gets.
    scene.service(at=None, annotations={"service.beta.kubernetes.io/coreweave-load-balancer-type": "public"}, type="LoadBalancer")
    scene.start().wait(4)
    given = lambda: scene.daemon.rpc("service.backends", name="web")["addresses"]
    before = given()
    assert len(before) == 4, before
    for address in before:
        asker = scene.client if address in before[:2] else scene.host.customer
        assert asker.peer("open", group=address, host=address, port=7, count=50)["opened"] == 50
    scene.host.restart()
    assert given() == before
    for address in before:
        asker = scene.client if address in before[:2] else scene.host.customer
        assert asker.peer("echo", group=address) == {"ok": 50}
        assert curl(asker, address)[0][0] in "ab"
    scene.finish()


if __name__ == "__main__":
    suite.main()
