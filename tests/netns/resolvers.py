"""The resolvers of both libcs against DNS at the gateway, in a container whose resolv.conf says what DHCP handed out: glibc's
`getaddrinfo` (python), musl's (a small program that musl-gcc compiles), dig, and dnsperf.

musl asks A and AAAA at once from one socket and takes no NXDOMAIN of one for both; glibc does so, too. Needs root.
"""

import collections
import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dns  # noqa: E402
from harness import process, requirements  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402


def check():
    dns.check()
    requirements.programs("musl-gcc", "dnsperf", "tcpdump")


suite = Suite("resolvers", check)

# Prints the addresses of a name, one a line, or getaddrinfo's error.
MUSL = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(argv[1], 0, &hints, &found);
    if (error) { printf("%s\n", error == EAI_NONAME ? "no such name" : gai_strerror(error)); return 0; }
    for (; found; found = found->ai_next) {
        char text[INET6_ADDRSTRLEN];
        void *address = found->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
                                                    : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
        puts(inet_ntop(found->ai_family, address, text, sizeof text));
    }
}
"""
GLIBC = """
import socket, sys
try:
    for entry in socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM):
        print(entry[4][0])
except socket.gaierror as error:
    print("no such name" if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA) else error)
"""
LIBCS = ("glibc", "musl")
# More addresses of each family than fit 1232 octets.
MANY = 100


class Scene(dns.Scene):
    """`web` (both families), `old` (IPv4 only), headless `many`, `away` (a name outside) and `alias`, all of the container's network."""

    def __init__(self, case):
        super().__init__(case)
        network = {"hostweave.dev/network": "red"}
        web = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}
        self.daemon.set("v1", "Service", "web", {**web, "ipFamilyPolicy": "RequireDualStack"}, network)
        self.daemon.set("v1", "Service", "old", {**web, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}, network)
        self.daemon.set("v1", "Service", "many", {"ports": web["ports"], "clusterIP": "None"}, network)
        self.daemon.set("v1", "Service", "away", {"type": "ExternalName", "externalName": "www.example"}, network)
        self.daemon.set("v1", "Service", "alias", {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}, network)
        self.many = [["198.18.7.%d" % (n + 1) for n in range(MANY)], ["2001:db8:7::%x" % (n + 1) for n in range(MANY)]]
        for number, kind in enumerate(("IPv4", "IPv6")):
            self.daemon.set("discovery.k8s.io/v1", "EndpointSlice", "many-" + kind.lower(), None, labels={"kubernetes.io/service-name": "many"},
                            addressType=kind, ports=[{"name": "http", "port": 80}], endpoints=[{"addresses": [a]} for a in self.many[number]])
        self.daemon.reload()
        address = lambda name: json.loads(self.daemon.cli("get", "svc", name, "-o", "json"))["spec"]["clusterIPs"]
        self.web, self.old = address("web"), address("old")
        # A lease with the daemon as it is now; the options are the container's resolv.conf, and nothing else.
        assert self.space.dhcp(self.space.device) == self.space.port.v4
        self.handed_out = open(case.log("resolv-%s.conf" % self.space.name)).read()
        self.resolv_conf()
        source = os.path.join(case.run, "resolve.c")
        with open(source, "w") as out:
            out.write(MUSL)
        self.program = {"musl": os.path.join(case.run, "resolve"), "glibc": "python3 -c '%s'" % GLIBC.replace("'", '"')}
        process.run(["musl-gcc", "-static", "-o", self.program["musl"], source])

    def resolv_conf(self, *lines):
        """What DHCP handed out, and more; of several `search` lines the last one counts."""
        self.space.resolv("\n".join([self.handed_out, *lines, ""]))

    def resolve(self, libc, name):
        """The addresses that a program of this libc gets, or its error."""
        return self.space.sh("%s %s" % (self.program[libc], name), 30).split("\n")[:-1]


@suite.test("names by the search list of DHCP, which is a pod's, and by the zone alone, with glibc and with musl, ndots below and above; ExternalName, one "
            "family, and names that do not exist")
def search_domains(case):
    scene = Scene(case)
    full = "web.default.svc.cluster.local"
    pods = "search default.svc.cluster.local svc.cluster.local cluster.local"
    assert re.search("^%s$" % re.escape(pods), scene.handed_out, re.M), scene.handed_out
    # musl searches for names with fewer dots than ndots only; glibc searches for the others, too, after asking for them as they are.
    short = ["web.default.svc", "WEB.Default.svc"]
    shortest = ["web", "alias", "web.default"] + short
    zone = "search cluster.local"
    for lines, names in (([], {"glibc": shortest, "musl": ["web", "alias"]}), (["options ndots:5"], {"glibc": shortest, "musl": shortest}),
                         ([zone], {"glibc": short, "musl": []}), ([zone, "options ndots:5"], {"glibc": short, "musl": short})):
        scene.resolv_conf(*lines)
        for libc in LIBCS:
            for name in names[libc] + [full, full + ".", full.upper()]:
                assert sorted(scene.resolve(libc, name)) == sorted(scene.web), (libc, lines, name)
            assert scene.resolve(libc, "old.default.svc.cluster.local") == scene.old, "%s: AAAA of it is no error" % libc
            assert scene.resolve(libc, "www.example") == ["198.51.100.1"], libc
            assert scene.resolve(libc, "away.default.svc.cluster.local") == ["198.51.100.1"], libc
            for name in ("nothing", "nothing.default.svc", "nothing.default.svc.cluster.local", "nothing.example", "web.other"):
                assert scene.resolve(libc, name) == ["no such name"], (libc, lines, name)
    outside = [line for line in scene.asked() if "cluster.local" in line]
    assert outside == [], "the cluster's names are nobody else's: %s" % outside
    scene.daemon.check_ledger()


@suite.test("what does not fit a datagram comes over TCP: glibc and dig get 100 addresses of each family; musl, which may not ask again, gets what fits")
def truncated(case):
    scene = Scene(case)
    wanted = sorted(scene.many[0] + scene.many[1])
    for gateway in scene.gateways():
        cut = scene.dig("@" + gateway, "+ignore", "many.default.svc.cluster.local")
        assert " tc" in re.search("flags:([^;]*);", cut).group(1), cut
        for number, kind in enumerate(("A", "AAAA")):
            whole = scene.dig("@" + gateway, "+short", "many.default.svc.cluster.local", kind).split()
            assert sorted(whole) == sorted(scene.many[number])
    found = scene.resolve("glibc", "many.default.svc.cluster.local")
    assert sorted(found) == wanted, "glibc: %d" % len(found)
    # musl keeps 48 addresses of a name (its MAXADDRS); before 1.2.4 it never asks over TCP, and has what fits 512 octets.
    found = scene.resolve("musl", "many.default.svc.cluster.local")
    assert 40 <= len(found) <= 48 and set(found) <= set(wanted), "musl: %d" % len(found)
    scene.daemon.check_ledger()


@suite.test("A and AAAA of one socket at once: both libcs ask both before either is answered, and get both, a hundred times")
def both_families_at_once(case):
    scene = Scene(case)
    for libc in LIBCS:
        log = case.log("%s.log" % libc)
        tcpdump = scene.space.spawn(["tcpdump", "-n", "-l", "-tt", "-i", "hw-a", "udp port 53"], "%s.log" % libc)
        until(lambda: "listening on" in open(log).read(), "tcpdump listens", 20)
        command = "%s web.default.svc.cluster.local." % scene.program[libc]
        out = scene.space.sh("for i in $(seq 100); do %s; done" % command, 120).split()
        assert collections.Counter(out) == {address: 100 for address in scene.web}, collections.Counter(out)
        # The client's L4 port, and the type that was asked.
        asked = lambda: re.findall(r"\.(\d+) > \S+\.53: \d+\+ (?:\[\w+\] )?(A|AAAA)\?", open(log).read())
        until(lambda: len(asked()) >= 200, "tcpdump has seen all", 10)
        by_socket = collections.defaultdict(set)
        for source, kind in asked():
            by_socket[source].add(kind)
        together = sum(kinds == {"A", "AAAA"} for kinds in by_socket.values())
        assert together >= 90, "%s asks both from one socket: %s" % (libc, together)
        process.kill(tcpdump)
    scene.daemon.check_ledger()


@suite.test("SRV by dig: a named port of each protocol, of a headless Service each endpoint; negative answers with SOA for their time")
def srv_and_negative(case):
    scene = Scene(case)
    for gateway in scene.gateways():
        ask = lambda *words: scene.dig("@" + gateway, *words)
        name = "web.default.svc.cluster.local"
        assert ask("+short", "_http._tcp." + name, "SRV").strip() == "0 100 80 %s." % name
        assert ask("+short", "_dns._udp." + name, "SRV").strip() == "0 100 53 %s." % name
        assert "status: NXDOMAIN" in ask("_http._udp." + name, "SRV"), "the name goes with its protocol"
        records = ask("+short", "+tcp", "_http._tcp.many.default.svc.cluster.local", "SRV").splitlines()
        assert len(records) == 2 * MANY and {line.split()[2] for line in records} == {"80"}, len(records)
        for words, status in ((("old.default.svc.cluster.local", "AAAA"), "NOERROR"), (("no.default.svc.cluster.local",), "NXDOMAIN")):
            out = ask(*words)
            assert "status: " + status in out and "ANSWER: 0" in out, out
            soa = re.search(r"^cluster\.local\.\s+(\d+)\s+IN\s+SOA\s.*\s(\d+)$", out, re.M)
            assert soa and int(soa.group(1)) <= 5 and int(soa.group(2)) <= 5, "SEMANTICS DN8: %s" % out
    scene.daemon.check_ledger()


@suite.test("dnsperf: 20,000 questions of a guest, over UDP and over TCP: each is answered, and each as it should be")
def perf(case):
    scene = Scene(case)
    # A port's own share of what the host answers would end first.
    names = [("web.default.svc.cluster.local", "A"), ("web.default.svc.cluster.local", "AAAA"), ("old.default.svc.cluster.local", "AAAA"),
             ("_http._tcp.web.default.svc.cluster.local", "SRV"), ("nothing.default.svc.cluster.local", "A")]
    questions = os.path.join(case.run, "questions")
    with open(questions, "w") as out:
        out.writelines("%s %s\n" % pair for pair in names)
    for gateway in scene.gateways():
        for mode in ("udp", "tcp"):
            out = scene.space.sh("dnsperf -s %s -m %s -d %s -n 1000 -c 5 -q 20 -t 5 -Q 1000" % (gateway, mode, questions), 120)
            case.note(out)
            assert "Queries completed:    5000 (100.00%)" in out, out
            assert "NOERROR 4000 (80.00%), NXDOMAIN 1000 (20.00%)" in out, out
    scene.daemon.check_ledger()


if __name__ == "__main__":
    suite.main()
