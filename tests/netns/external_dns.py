"""External DNS against a real `named` on loopback, with TSIG: names of Services come, change and go, and nobody else's.

Needs bind9's programs; nothing of the host's own DNS is used.
"""

import json
import os
import re
import shutil
import signal
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import process, requirements  # noqa: E402
from harness.daemon import Daemon  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402


def check():
    requirements.programs("named", "dig", "nsupdate")


suite = Suite("external_dns", check)

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0IQ=="
ZONE = """$TTL 300
@ SOA ns hostmaster 1 3600 600 86400 60
@ NS ns
ns A 127.0.0.1
taken A 192.0.2.99
mail 900 TXT "v=spf1 -all"
other A 192.0.2.98
other TXT "heritage=external-dns,external-dns/owner=default,external-dns/resource=service/x/y"
"""
CONF = """options { directory "%(dir)s"; listen-on port %(port)d { 127.0.0.1; }; listen-on-v6 { none; }; pid-file none;
  session-keyfile none; recursion no; notify no; dnssec-validation no; };
controls {};
key "hostweave-key" { algorithm hmac-sha256; secret "%(secret)s"; };
zone "example.org" { type primary; file "%(dir)s/zone";
  update-policy { deny hostweave-key subdomain closed.example.org ANY; grant hostweave-key zonesub ANY; };
  allow-transfer { key "hostweave-key"; }; };
"""


class Scene:
    """A zone, and a daemon that may change it."""

    def __init__(self, case, **spec):
        self.case, folder = case, os.path.join(case.run, "named")
        os.makedirs(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with open(folder + "/zone", "w") as out:
            out.write(ZONE)
        with open(folder + "/named.conf", "w") as out:
            out.write(CONF % {"dir": folder, "port": self.port, "secret": SECRET})
        # A copy: Debian's AppArmor profile lets /usr/sbin/named read its own folders only.
        named = shutil.copy(shutil.which("named"), folder + "/named")
        self.log = case.log("named.log")
        self.conf = folder + "/named.conf"
        self.named = process.spawn([named, "-g", "-c", self.conf], self.log)
        case.callback(process.kill, self.named)
        until(lambda: self.dig("ns", "A") == ["127.0.0.1"], "named answers", 30)
        self.secret = os.path.join(case.run, "secret")
        self.write_secret(SECRET)
        self.daemon = Daemon(case)
        self.spec = {"server": "127.0.0.1:%d" % self.port, "zone": "example.org", "owner": "test", "graceSeconds": 1, "intervalSeconds": 1,
                     "tsig": {"name": "hostweave-key", "secretFile": self.secret}, "baseDomain": "acme.example.org", **spec}
        self.daemon.host(externalDNS=self.spec)
        self.daemon.set("hostweave.dev/v1alpha1", "AddressPool", "private", {"type": "private", "addresses": ["10.96.0.0/24", "fd68:96::/112"]})

    def write_secret(self, secret):
        with open(self.secret, "w") as out:
            out.write(secret + "\n")

    def service(self, name, annotations=None):
        """Sets a Service with addresses of both families; without annotations it goes."""
        port = {"name": "attach", "port": 1, "targetPort": "attach"}
        spec = {"type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "selector": {"coreweave.cloud/ignore": "ignore"}, "ports": [port]}
        self.daemon.set("v1", "Service", name, spec if annotations else None, annotations)

    def dig(self, name, kind):
        done = process.run(["dig", "@127.0.0.1", "-p", str(self.port), "+short", "+time=5", "+tries=3", name + ".example.org", kind], check=False)
        return sorted(line for line in done.stdout.split("\n") if line and not line.startswith(";;")) if done.returncode == 0 else None

    def serial(self):
        return process.run(["dig", "@127.0.0.1", "-p", str(self.port), "+short", "example.org", "SOA"]).split()[2]

    def events(self, service):
        """What was told of a Service's names, oldest first."""
        events = self.daemon.rpc("event.list", filter={"kind": "Service"})["events"]
        return [e["type"] for e in events if e["type"].startswith("ExternalName") and service in json.dumps(e)]

    def reconfigure(self, old, new):
        """Changes the server's configuration while it runs."""
        text = open(self.conf).read()
        assert old in text
        with open(self.conf, "w") as out:
            out.write(text.replace(old, new))
        self.named.send_signal(signal.SIGHUP)

    def refuses_soa(self):
        key = "hmac-sha256:hostweave-key:%s" % SECRET
        return "REFUSED" in process.run(["dig", "@127.0.0.1", "-p", str(self.port), "-y", key, "example.org", "SOA"])

    def update(self, line):
        """Changes the zone as somebody else would, with the same key."""
        commands = "server 127.0.0.1 %d\nzone example.org\n%s\nsend\n" % (self.port, line)
        process.run(["nsupdate", "-y", "hmac-sha256:hostweave-key:%s" % SECRET], input=commands)

    def status(self, name):
        return json.loads(self.daemon.cli("get", "service", name, "-o", "json"))["status"]

    def addresses(self, name):
        found = [one["ip"] for one in self.status(name)["loadBalancer"]["ingress"]]
        return [a for a in found if "." in a], [a for a in found if ":" in a]

    def condition(self, name):
        return next(c for c in self.status(name)["conditions"] if c["type"] == "ExternalRecords")

    def synced(self, *names):
        for name in names:
            until(lambda: self.condition(name)["status"] == "True", "%s is in the zone: %s" % (name, self.condition(name)), 30)

    def has(self, service, *names):
        """Every name stands for the Service's addresses, and is marked."""
        v4, v6 = self.addresses(service)
        assert v4 and v6, (v4, v6)
        mark = '"heritage=hostweave,hostweave/owner=test,hostweave/resource=service/default/%s"' % service
        for name in names:
            assert (self.dig(name, "A"), self.dig(name, "AAAA")) == (v4, v6), name
            assert mark in self.dig(name, "TXT"), self.dig(name, "TXT")

    def gone(self, name):
        return all(self.dig(name, kind) == [] for kind in ("A", "AAAA", "TXT"))

    def rounds(self, count):
        """Waits for more looks at the zone."""
        before = self.metric("looks")
        until(lambda: self.metric("looks") >= before + count, "%d more looks at the zone" % count, 60)

    def metric(self, name):
        """A counter of /metrics."""
        return int(re.search(r"^hostweave_external_dns_%s_total (\d+)$" % name, self.daemon.http("/metrics")[1], re.M)[1])

    def transfers(self):
        """Whole zones that the server sent."""
        return len(re.findall("AXFR ended", open(self.log).read()))


HOSTNAME, SHORT = "external-dns.alpha.kubernetes.io/hostname", "service.beta.kubernetes.io/external-hostname"


@suite.test("names of both annotations, wildcards too, come with A, AAAA and TXT; the next looks change nothing; they go with the Service")
def life(case):
    scene = Scene(case)
    scene.service("web", {HOSTNAME: "web.example.org,*.web.example.org"})
    scene.service("api", {SHORT: "api"})
    scene.daemon.start()
    scene.synced("web", "api")
    scene.has("web", "web", "anything.web", "*.web")
    scene.has("api", "api.acme")
    serial = scene.serial()
    scene.rounds(3)
    assert scene.serial() == serial, "applying twice changes nothing"
    # Another daemon, with nothing but the zone to go by.
    scene.daemon.stop()
    scene.daemon.start()
    scene.synced("web", "api")
    assert scene.serial() == serial
    scene.service("web", {HOSTNAME: "www.example.org"})
    scene.service("api")
    scene.daemon.reload()
    scene.synced("web")
    until(lambda: all(scene.gone(name) for name in ("web", "*.web", "api.acme")), "names that nobody wants are gone", 30)
    scene.has("web", "www")
    text = json.loads(scene.daemon.cli("get", "service", "web", "-o", "json"))["metadata"]["annotations"]
    assert text == {HOSTNAME: "www.example.org"}, "the annotation stays as it was"
    assert "hostweave_external_dns_updates_total" in scene.daemon.http("/metrics")[1]


@suite.test("a zone that is right is not read again until its serial number or what is wanted is another")
def unchanged(case):
    scene = Scene(case)
    scene.service("web", {HOSTNAME: "web.example.org,taken.example.org"})
    scene.daemon.start()
    until(lambda: scene.condition("web")["reason"] == "Conflict", "all that can be is in the zone", 30)
    scene.rounds(2)
    told = scene.events("web")
    assert sorted(told) == ["ExternalNameCreated", "ExternalNameRefused"], told
    before, counted = scene.transfers(), scene.metric("transfers")
    scene.rounds(5)
    assert (scene.transfers(), scene.metric("transfers")) == (before, counted), "nothing was read"
    assert scene.condition("web")["reason"] == "Conflict", "and nothing forgotten"
    assert scene.events("web") == told, "each once, not each time"
    scene.has("web", "web")
    # Somebody takes our address away: the serial number says so, and it is put right.
    scene.update("update delete web.example.org A")
    until(lambda: scene.transfers() > before, "the zone is read again", 30)
    until(lambda: scene.dig("web", "A"), "it is as it was", 30)
    scene.has("web", "web")
    # What else is wanted has the zone read as well.
    scene.rounds(3)
    before = scene.transfers()
    scene.service("web", {HOSTNAME: "other-name.example.org"})
    scene.daemon.reload()
    scene.synced("web")
    assert scene.transfers() > before
    until(lambda: scene.gone("web"), "what nobody wants goes after its grace", 30)
    until(lambda: scene.events("web")[2:] == ["ExternalNameUpdated", "ExternalNameCreated", "ExternalNameRemoved"], "all of it is told", 10)


@suite.test("a server that does not tell the zone's serial number has it read each time")
def untold(case):
    scene = Scene(case)
    scene.service("web", {HOSTNAME: "web.example.org"})
    scene.daemon.start()
    scene.synced("web")
    scene.rounds(2)
    # Transfers have a permission of their own.
    scene.reconfigure("allow-transfer", 'allow-query { !key "hostweave-key"; any; }; allow-transfer')
    until(lambda: scene.refuses_soa(), "the key may not ask any more", 30)
    before = scene.transfers()
    scene.rounds(4)
    assert scene.transfers() >= before + 3
    assert scene.condition("web")["status"] == "True", "nothing is wrong for that"
    scene.has("web", "web")


@suite.test("records of others are not touched: a conflict is a condition, and others' TXT records stay beside ours")
def foreign(case):
    scene = Scene(case)
    for name in ("taken", "other", "mail"):
        scene.service(name, {HOSTNAME: name + ".example.org"})
    scene.service("outside", {HOSTNAME: "www.example.net"})
    scene.service("twin", {HOSTNAME: "mail.example.org"})
    scene.daemon.start()
    scene.synced("mail")
    scene.has("mail", "mail")
    assert '"v=spf1 -all"' in scene.dig("mail", "TXT")
    assert (scene.dig("taken", "A"), scene.dig("other", "A")) == (["192.0.2.99"], ["192.0.2.98"])
    wanted = {"taken": "Conflict", "other": "Conflict", "outside": "InvalidName", "twin": "Conflict"}
    until(lambda: {name: scene.condition(name)["reason"] for name in wanted} == wanted, "each has its condition", 20)
    assert "somebody else" in scene.condition("taken")["message"]
    for name in ("taken", "other", "mail", "twin"):
        scene.service(name)
    scene.daemon.reload()
    until(lambda: scene.dig("mail", "A") == [] and scene.dig("mail", "TXT") == ['"v=spf1 -all"'], "only ours went", 30)
    assert (scene.dig("taken", "A"), scene.dig("other", "A")) == (["192.0.2.99"], ["192.0.2.98"])
    assert len(scene.dig("other", "TXT")) == 1


@suite.test("a name that the server refuses is a condition of its Service, and stands in nobody else's way")
def refused(case):
    scene = Scene(case)
    scene.service("a", {HOSTNAME: "a.closed.example.org"})
    scene.service("web", {HOSTNAME: "web.example.org"})
    scene.daemon.start()
    scene.synced("web")
    scene.has("web", "web")
    until(lambda: scene.condition("a")["reason"] == "Refused", "it is told", 30)
    assert "a.closed.example.org" in scene.condition("a")["message"], scene.condition("a")
    assert scene.gone("a.closed")


@suite.test("upsertOnly deletes nothing")
def upsert_only(case):
    scene = Scene(case, policy="upsertOnly")
    scene.service("web", {HOSTNAME: "web.example.org"})
    scene.daemon.start()
    scene.synced("web")
    before = scene.dig("web", "A")
    scene.service("web")
    scene.service("api", {HOSTNAME: "api.example.org"})
    scene.daemon.reload()
    scene.synced("api")
    scene.rounds(4)
    assert scene.dig("web", "A") == before != []


@suite.test("a wrong key is told as what it is, and the right one is taken up without a restart")
def wrong_key(case):
    scene = Scene(case)
    scene.write_secret("d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmch")
    scene.service("web", {HOSTNAME: "web.example.org"})
    scene.daemon.start()
    until(lambda: scene.condition("web")["reason"] == "ServerFailure", "the failure is told", 30)
    assert "TSIG key" in scene.condition("web")["message"], scene.condition("web")
    assert scene.gone("web")
    scene.write_secret(SECRET)
    scene.synced("web")
    scene.has("web", "web")


if __name__ == "__main__":
    suite.main()
