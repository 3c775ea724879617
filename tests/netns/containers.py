"""Containers: TAP ports in network namespaces, with the kernel's TCP/IP, real DHCP clients and a real HTTP server.

Needs root (namespaces, TAP devices). Every namespace, device and process goes away with its test.
"""

import hashlib
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import requirements  # noqa: E402
from harness.daemon import V6, Daemon, eui64  # noqa: E402
from harness.namespace import Namespace  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402


def check():
    requirements.root()
    requirements.tun()
    requirements.programs("ip", "ping", "busybox", "dhclient", "curl", "python3")


suite = Suite("netns", check)


def containers(case, *names, networks=None):
    """A daemon with one container for each name; names may be "NAME@NETWORK". Devices are called hw-NAME."""
    daemon = Daemon(case, networks=networks)
    spaces = []
    for text in names:
        name, _, network = text.partition("@")
        space = Namespace(case, name)
        space.device = "hw-" + name
        space.port = daemon.port(name, network or "default", tap=space.device, netns=space.path)
        spaces.append(space)
    daemon.start()
    for space in spaces:
        until(lambda: space.sh("ip link show " + space.device), "the device of %s" % space.port.name, 30)
    return daemon, spaces


def addressed(*spaces):
    for space in spaces:
        assert space.dhcp(space.device) == space.port.v4
        slaac(space)


def slaac(space):
    """Waits for the address that the kernel forms out of the advertised prefix; it is the port's."""
    def address():
        out = space.sh("ip -6 -o addr show dev %s scope global -tentative" % space.device)
        return any(line.split()[3].split("/")[0] == space.port.v6 for line in out.splitlines())

    until(address, "%s has its address by SLAAC" % space.port.name, 30)


def web_server(space, files):
    """busybox' HTTP server with files (name: octets) on port 80, IPv4 and IPv6."""
    folder = os.path.join(space.case.run, "www-" + space.port.name)
    os.makedirs(folder, exist_ok=True)
    for name, octets in files.items():
        with open(os.path.join(folder, name), "wb") as out:
            out.write(octets)
    space.spawn(["busybox", "httpd", "-f", "-p", "[::]:80", "-h", folder], "httpd-%s.log" % space.port.name)
    until(lambda: space.sh("curl -s -o /dev/null -m 2 http://127.0.0.1/ -w '%{http_code}'", check=False).stdout == "404",
          "the HTTP server of %s" % space.port.name, 20)


@suite.test("a container gets its addresses from udhcpc and by SLAAC, and reaches its gateways")
def addresses_by_udhcpc_and_slaac(case):
    daemon, (a,) = containers(case, "a")
    addressed(a)
    assert a.port.v6 == eui64(a.port.mac, V6), "the automatic IPv6 address is the EUI-64 of the MAC (RFC 4291)"
    described = a.port.describe()
    for gateway in described["gateways"]:
        a.sh("ping -c 3 -i 0.2 -W 5 %s" % gateway)
    assert "default via" in a.sh("ip -4 route show default")
    until(lambda: "via fe80::1" in a.sh("ip -6 route show default"), "the default route by RA", 20)
    assert "mtu 1500" in a.sh("ip link show " + a.device)
    daemon.check_ledger()


@suite.test("ISC dhclient gets the same addresses by DHCPv4 and DHCPv6, and gives them back")
def addresses_by_dhclient(case):
    daemon, (a,) = containers(case, "a")
    a.sh("ip link set %s up" % a.device)
    until(lambda: "fe80" in a.sh("ip -6 -o addr show dev %s scope link -tentative" % a.device), "the link-local address", 20)
    files = "-lf %s -pf %s" % (case.log("leases%s"), case.run + "/dhclient%s.pid")
    four, six = files % ("4", "4"), files % ("6", "6")
    a.sh("dhclient -4 -1 -v %s %s" % (four, a.device), timeout=90)
    assert a.port.v4 in a.sh("ip -4 -o addr show dev %s" % a.device)
    a.sh("dhclient -6 -1 -v %s %s" % (six, a.device), timeout=90)
    leased = open(case.log("leases6")).read()
    assert "iaaddr %s " % a.port.v6 in leased, "another IPv6 address than %s: %s" % (a.port.v6, leased)
    a.sh("dhclient -4 -r %s %s; dhclient -6 -r %s %s" % (four, a.device, six, a.device), timeout=60)
    daemon.check_ledger()


@suite.test("curl fetches 20 MB from an HTTP server in another namespace, IPv4 and IPv6, octet for octet")
def curl_between_namespaces(case):
    daemon, (a, b) = containers(case, "a", "b")
    addressed(a, b)
    octets = os.urandom(20_000_000)
    web_server(b, {"blob": octets})
    for host in (b.port.v4, "[%s]" % b.port.v6):
        got = a.sh("curl -sS -m 120 http://%s/blob | sha256sum" % host, timeout=150).split()[0]
        assert got == hashlib.sha256(octets).hexdigest(), "the file arrived damaged over %s" % host
    stats = daemon.check_ledger()
    packets, received = stats["b"]["forwarded"], stats["b"]["receivedBytes"]
    assert received / packets > 3000, "segmentation offload works: %d octets in %d frames" % (received, packets)


SERVER = """
import socket, threading
server = socket.create_server(("", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
def echo(connection):
    while data := connection.recv(4096):
        connection.sendall(data)
while True:
    threading.Thread(target=echo, args=server.accept()[:1]).start()
"""
CLIENT = """
import socket, sys, time
# Two connections, one of each family, opened before the daemon ends and used again after it is back.
both = [socket.create_connection((host, 7000), timeout=60) for host in sys.argv[1:3]]
number = 0
while True:
    number += 1
    for connection in both:
        word = b"%08d" % number
        connection.sendall(word)
        answer = b""
        while len(answer) < 8:
            more = connection.recv(8 - len(answer))
            assert more, "the connection was closed"
            answer += more
        assert answer == word
    print(number, flush=True)
    time.sleep(0.05)
"""


def echo_goes_on(case, end):
    """Two containers with an echo over TCP; the daemon ends by `end(daemon)` and is started again."""
    daemon, (a, b) = containers(case, "a", "b")
    addressed(a, b)
    b.spawn(["python3", "-uc", SERVER], "server.log")
    until(lambda: ":7000" in b.sh("ss -tln"), "the server listens", 20)
    client = a.spawn(["python3", "-uc", CLIENT, b.port.v4, b.port.v6], "client.log")
    def count():
        assert client.poll() is None, open(case.log("client.log")).read()[-2000:]
        return int(open(case.log("client.log")).read().split()[-1])
    until(lambda: count() > 20, "the echo runs", 30)
    before = [s.sh("ip -o link show %s; ip -o addr show %s; ip route; ip -6 route" % (s.device, s.device)) for s in (a, b)]
    for _ in range(2):
        daemon.check_ledger()
        end(daemon)
        time.sleep(0.5)  # Frames go nowhere for a while: TCP has something to repeat.
        after = [s.sh("ip -o addr show %s" % s.device) for s in (a, b)]
        assert all(s.port.v4 in text and s.port.v6 in text for s, text in zip((a, b), after)), "addresses stay"
        stopped = count()
        daemon.start()
        until(lambda: count() > stopped + 20, "the connections go on", 60)
    index = [text.split(":")[0] for text in before]
    again = [s.sh("ip -o link show %s" % s.device).split(":")[0] for s in (a, b)]
    assert index == again, "the devices are the same: %s, now %s" % (index, again)
    daemon.check_ledger()


@suite.test("kill -9 and start again: the container keeps device, addresses, routes and TCP connections")
def tcp_survives_kill(case):
    echo_goes_on(case, lambda daemon: daemon.kill())


@suite.test("an orderly stop and start: the container keeps device, addresses, routes and TCP connections")
def tcp_survives_stop(case):
    echo_goes_on(case, lambda daemon: daemon.stop())


@suite.test("two networks with the same CIDRs: each container reaches its own neighbour and never the other network")
def overlapping_networks_are_isolated(case):
    same = ["192.0.2.0/24", "2001:db8:0:1::/64"]
    daemon, (a1, b1, a2, b2) = containers(case, "a1@red", "b1@red", "a2@blue", "b2@blue", networks={"red": same, "blue": same})
    addressed(a1, b1, a2, b2)
    web_server(b1, {"who": b"red"})
    web_server(b2, {"who": b"blue"})
    for client, server, word in ((a1, b1, "red"), (a2, b2, "blue")):
        for host in (server.port.v4, "[%s]" % server.port.v6):
            assert client.sh("curl -sS -m 20 http://%s/who" % host) == word
    daemon.check_ledger()


@suite.test("a source address or MAC that is not the port's own goes nowhere and is counted by its name")
def spoofing_is_dropped(case):
    daemon, (a, b) = containers(case, "a", "b")
    addressed(a, b)
    spoofed = ".".join(b.port.v4.split(".")[:3] + ["200"])
    a.sh("ip addr add %s/24 dev %s; ip addr add 2001:db8:9::9/64 dev %s nodad" % (spoofed, a.device, a.device))
    a.sh("ping -c 3 -i 0.2 -W 1 -I %s %s" % (spoofed, b.port.v4), check=False)
    a.sh("ip -6 route add %s/128 dev %s via fe80::1" % (b.port.v6, a.device))
    a.sh("ping -c 3 -i 0.2 -W 1 -I 2001:db8:9::9 %s" % b.port.v6, check=False)
    stats = daemon.check_ledger()
    dropped = stats["a"]["dropped"]
    assert dropped.get("spoofed_ip", 0) + dropped.get("spoofed_arp", 0) >= 3, dropped
    assert dropped.get("spoofed_ip", 0) >= 3, "the IPv6 packets: %s" % dropped


@suite.test("deleting a port takes its device out of the namespace; what it had is free for the next")
def deleting_a_port_removes_the_device(case):
    daemon, (a,) = containers(case, "a")
    addressed(a)
    space = Namespace(case, "late")
    daemon.cli("port", "add", "late", "--tap", "hw-late", "--netns", space.path)
    until(lambda: space.sh("ip link show hw-late"), "the device of the new port", 20)
    address = daemon.rpc("port.get", name="late")["port"]["ip"]
    assert space.dhcp("hw-late") == address
    a.sh("ping -c 2 -i 0.2 -W 5 %s" % address)
    daemon.cli("port", "delete", "late")
    until(lambda: space.sh("ip link show hw-late", check=False).returncode != 0, "the device is gone", 20)
    assert a.sh("ping -c 1 -W 1 %s" % address, check=False).returncode != 0
    daemon.check_ledger()


if __name__ == "__main__":
    suite.main()
