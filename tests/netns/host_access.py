"""`HostConfig.spec.hostAccess`: the host's own interface in a network. The daemon runs in a namespace of its own, which is the
host here, so that the machine's own interfaces and routes are left alone.

Needs root (namespaces, TAP devices).
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from containers import CLIENT, SERVER, addressed, web_server  # noqa: E402
from harness import requirements  # noqa: E402
from harness.daemon import V4, V6, Daemon  # noqa: E402
from harness.namespace import Namespace  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402

HOST = {"namespace": "hostweave-system", "name": "host"}


def check():
    requirements.root()
    requirements.tun()
    requirements.programs("ip", "ping", "busybox", "curl", "python3")


suite = Suite("host-access", check)


class Host:
    """A host (a namespace with a daemon), and a container `a` on it."""

    def __init__(self, case, **access):
        self.space = Namespace(case, "host")
        self.device = access.get("interface", "hostweave0")
        self.daemon = Daemon(case, space=self.space)
        self.daemon.host(hostAccess={"network": "default", **access})
        self.a = Namespace(case, "a")
        self.a.device = "hw-a"
        self.a.port = self.daemon.port("a", tap=self.a.device, netns=self.a.path)

    def start(self):
        self.daemon.start()
        until(lambda: self.a.sh("ip link show " + self.a.device), "the device of the container", 30)
        addressed(self.a)
        return self

    def port(self):
        return self.daemon.rpc("port.get", **HOST)["port"]

    def addresses(self):
        return self.port()["addresses"]

    def has_device(self):
        return self.space.sh("ip link show " + self.device, check=False).returncode == 0

    def reaches(self, address):
        return self.space.sh("ping -c 1 -W 5 %s" % address, check=False).returncode == 0


@suite.test("the host reaches a container and a Service, and the container the host, IPv4 and IPv6, by ping and HTTP")
def both_ways(case):
    host = Host(case)
    host.a.port.labels = {"app": "web"}
    host.daemon.set("v1", "Service", "web", {"selector": {"app": "web"}, "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]})
    host.start()
    a, space = host.a, host.space
    v4, v6 = host.addresses()
    port = host.port()
    assert (port["backend"], port["device"], port["state"]) == ("host", "hostweave0", "running"), port
    assert port["labels"] == {"hostweave.dev/host-access": "true"}, port
    web_server(a, {"who": b"container"})
    space.port = type("Port", (), {"name": "host"})
    web_server(space, {"who": b"host"})
    for address in (a.port.v4, a.port.v6):
        space.sh("ping -c 3 -i 0.2 -W 5 %s" % address)
    for address in (v4, v6):
        a.sh("ping -c 3 -i 0.2 -W 5 %s" % address)
    url = "curl -sS -m 20 http://%s/who"
    for address in (a.port.v4, "[%s]" % a.port.v6):
        assert space.sh(url % address) == "container"
    for address in (v4, "[%s]" % v6):
        assert a.sh(url % address) == "host"
    cluster = host.daemon.rpc("object.get", kind="Service", name="web")["object"]["spec"]["clusterIPs"]
    assert len(cluster) == 2, cluster
    for address in cluster:
        assert space.sh(url % ("[%s]" % address if ":" in address else address)) == "container"
    for gateway in host.daemon.rpc("port.describe", **HOST)["port"]["gateways"]:
        space.sh("ping -c 1 -W 5 %s" % gateway)
    assert "hostweave-system" in host.daemon.cli("port", "list", "-A")
    host.daemon.check_ledger()


@suite.test("the device has the port's addresses and the network's routes, and never becomes the default route")
def addresses_and_routes(case):
    host = Host(case, interface="vms")
    space = host.space
    # Hosts have interfaces without IPv6, or with link-local addresses that are not made of the MAC (RFC 7217).
    space.sh("cd /proc/sys/net/ipv6/conf/default && echo 1 >disable_ipv6 && echo 3 >addr_gen_mode")
    host.start()
    v4, v6 = host.addresses()
    shown = space.sh("ip -o addr show dev vms scope global")
    assert "%s/32" % v4 in shown and "%s/128" % v6 in shown and "tentative" not in shown, shown
    assert "%s via " % V4 in space.sh("ip -4 route show dev vms")
    assert "%s via fe80::1" % V6 in space.sh("ip -6 route show dev vms")
    assert "mtu 1500" in space.sh("ip link show vms")
    # The network's router advertises itself to every port when it changes.
    host.daemon.objects[1]["spec"]["mtu"] = 1400
    host.daemon.reload()
    a = host.a
    until(lambda: "mtu 1400" in a.sh("ip -6 route show default; ip link show " + a.device), "the container heard it", 20)
    until(lambda: "mtu 1400" in space.sh("ip link show vms"), "the host's own side follows the MTU of the network", 20)
    until(lambda: host.reaches(a.port.v6), "the host is in the network", 20)
    for version in ("-4", "-6"):
        assert space.sh("ip %s route show default" % version) == "", "only containers have a default route"
    assert len(space.sh("ip -6 -o addr show dev vms scope global").splitlines()) == 1, "nothing by SLAAC"
    host.daemon.check_ledger()


@suite.test("policies select the host's port by its label and its namespace, in both directions")
def policy(case):
    host = Host(case)
    host.daemon.objects.append({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "nobody-to-the-host", "namespace": "hostweave-system"},
        "spec": {"podSelector": {"matchLabels": {"hostweave.dev/host-access": "true"}}, "policyTypes": ["Ingress"]}})
    host.start()
    a, space = host.a, host.space
    web_server(a, {"who": b"container"})
    for address, own in zip((a.port.v4, a.port.v6), host.addresses()):
        assert a.sh("ping -c 1 -W 5 %s" % own, check=False).returncode != 0, "nobody may reach the host"
        assert host.reaches(address), "but the host may reach others, and hears their answers"
    # A container that only the host may reach.
    namespaces = {"matchLabels": {"kubernetes.io/metadata.name": "hostweave-system"}}
    host.daemon.policy("from-the-host", podSelector={}, ingress=[{"from": [{"namespaceSelector": namespaces}]}])
    host.daemon.reload()
    assert host.reaches(a.port.v4) and host.reaches(a.port.v6)
    pods = {"matchLabels": {"hostweave.dev/host-access": "false"}}
    host.daemon.policy("from-the-host", podSelector={}, ingress=[{"from": [{"namespaceSelector": namespaces, "podSelector": pods}]}])
    host.daemon.reload()
    for address in (a.port.v4, a.port.v6):
        assert not host.reaches(address), "the policy no longer lets the host in"
    host.daemon.check_ledger()


@suite.test("the device goes with hostAccess, with the daemon, and with a daemon that is killed; addresses and connections do not")
def gone_afterwards(case):
    host = Host(case).start()
    daemon, a = host.daemon, host.a
    addresses = host.addresses()
    assert host.has_device()
    a.spawn(["python3", "-uc", SERVER], "server.log")
    until(lambda: ":7000" in a.sh("ss -tln"), "the server listens", 20)
    client = host.space.spawn(["python3", "-uc", CLIENT, a.port.v4, a.port.v6], "client.log")

    def count():
        assert client.poll() is None, open(case.log("client.log")).read()[-2000:]
        return int((open(case.log("client.log")).read().split() or ["0"])[-1])

    until(lambda: count() > 20, "the echo runs", 30)
    for end in (daemon.stop, daemon.kill):
        end()
        until(lambda: not host.has_device(), "the device is gone", 20)
        assert V4 not in host.space.sh("ip route")
        daemon.start()
        until(host.has_device, "the device is back", 20)
        assert host.addresses() == addresses
        until(lambda: host.reaches(a.port.v4) and host.reaches(a.port.v6), "the host is back in the network", 20)
        before = count()
        until(lambda: count() > before + 20, "connections of the host go on", 60)
    access = daemon.objects[0]["spec"].pop("hostAccess")
    daemon.reload()
    until(lambda: not host.has_device(), "the device is gone", 20)
    assert V4 not in host.space.sh("ip route") and V6 not in host.space.sh("ip -6 route")
    assert a.sh("ping -c 1 -W 5 %s" % addresses[0], check=False).returncode != 0
    assert "host" not in [port["name"] for port in daemon.rpc("port.list")["ports"]]
    # Somewhere else, by another name.
    daemon.host(hostAccess={**access, "interface": "vms"})
    daemon.reload()
    host.device = "vms"
    until(lambda: host.has_device() and host.reaches(a.port.v6), "the host is in the network again", 20)
    # Whoever deletes the device gets another.
    host.space.sh("ip link del vms")
    until(lambda: host.has_device() and host.reaches(a.port.v4) and host.reaches(a.port.v6), "the device is made again", 20)
    daemon.check_ledger()


@suite.test("subnets, routes and interfaces of the host's own are left alone and named; as soon as they are gone the device is there")
def what_the_host_has(case):
    host = Host(case)
    space = host.space
    space.sh("ip link add lan type veth peer name other && ip link set lan up && ip addr add 192.0.0.9/16 dev lan")
    host.start()
    described = host.daemon.rpc("port.describe", **HOST)["port"]
    reasons = str(described)
    assert "the host has 192.0.0.9/16 on lan" in reasons and "Network default" in reasons, described
    assert not host.has_device() and V4 not in space.sh("ip route")
    space.sh("ip link del lan")
    until(lambda: host.has_device() and host.reaches(host.a.port.v4), "the device is there", 20)
    # Nor is another interface taken away, nor a route.
    host.daemon.stop()
    space.sh("ip tuntap add hostweave0 mode tap")
    host.daemon.start()
    reason = "the host has an interface hostweave0 already"
    until(lambda: reason in str(host.daemon.rpc("port.describe", **HOST)), "the reason", 20)
    assert "inet" not in space.sh("ip -o addr show dev hostweave0")
    space.sh("ip link del hostweave0")
    until(lambda: host.reaches(host.a.port.v4), "the device is there", 20)
    host.daemon.stop()
    space.sh("ip link add lan type veth peer name other && ip link set lan up && ip link set other up && ip route add %s dev lan" % V4)
    host.daemon.start()
    until(lambda: "cannot become the host's route to %s" % V4 in str(host.daemon.rpc("port.describe", **HOST)), "the reason", 20)
    assert "dev lan" in space.sh("ip route show %s" % V4)
    host.daemon.check_ledger()


if __name__ == "__main__":
    suite.main()
