"""The daemon under test: its configuration, its life and death, its control socket, and the ledger.

Every test has a daemon of its own, with its folders below `case.run`, started with `--rootless` unless TAP ports need more.
"""

import ipaddress
import json
import os
import signal
import socket

from . import process
from .guest import ROOT, Line
from .process import until

BINARY = os.environ.get("HOSTWEAVE_BIN", os.path.join(ROOT, "target", "debug", "hostweave"))
# The one MAC address of the switch, the same on all hosts and networks.
ROUTER_MAC = "02:68:77:00:00:01"
V4, V6 = "192.0.2.0/24", "2001:db8:0:1::/64"


class Port:
    """A `Port` object, and once the daemon runs what it says about it."""

    def __init__(self, daemon, name, network, mode, queues, tap, netns, labels=None):
        self.daemon, self.name, self.network, self.queues, self.tap = daemon, name, network, queues, tap
        self.labels, self.flows, self.annotations, self.metadata, self.named_ports = labels or {}, None, {}, None, {}
        self.limits = {}
        if tap:
            self.backend = {"tap": {"name": tap, **({"netns": netns} if netns else {})}}
        else:
            self.backend = {"vhostUser": {"mode": mode, "queues": queues}}
            if mode == "connect":
                self.socket = os.path.join(daemon.case.run, name + ".vmm.sock")
                self.backend["vhostUser"]["socketPath"] = self.socket

    def object(self):
        return {"apiVersion": "hostweave.dev/v1alpha1", "kind": "Port",
                "metadata": {"name": self.name, "labels": self.labels, **({"annotations": self.annotations} if self.annotations else {})},
                "spec": {"network": self.network, "backend": self.backend,
                         **({"metadata": self.metadata} if self.metadata else {}),
                         **({"namedPorts": [{"name": n, "port": p} for n, p in self.named_ports.items()]} if self.named_ports else {}),
                         **({"limits": {**self.limits, **({"flows": self.flows} if self.flows else {})}} if self.limits or self.flows else {})}}

    def get(self):
        return self.daemon.rpc("port.get", name=self.name)["port"]

    def refresh(self):
        """Reads MAC, addresses and sockets from the daemon."""
        port = self.get()
        self.mac = port["mac"]
        addresses = port["addresses"]
        self.v4 = next((a for a in addresses if "." in a), None)
        self.v6 = next((a for a in addresses if ":" in a), None)
        self.socket = port.get("socketPath")
        return self

    def incoming_socket(self):
        """The second socket of a listening port, for the target of a migration."""
        return self.describe()["incomingSocketPath"]

    def describe(self):
        return self.daemon.rpc("port.describe", name=self.name)["port"]

    def state(self):
        return self.get()["state"]

    def wait(self, state, timeout=60):
        until(lambda: self.state() == state, "port %s is %s" % (self.name, state), timeout)


class Daemon:
    """`hostweave daemon`. `start`, `kill` (as a crash), `stop` (SIGTERM) and `start` again, as often as wanted."""

    def __init__(self, case, mtu=1500, workers=1, networks=None, space=None):
        """With `space`, a namespace, it runs there."""
        self.case, self.ports, self.process, self.starts, self.space = case, [], None, 0, space
        self.runtime = os.path.join(case.run, "run")
        self.config = os.path.join(case.run, "conf")
        self.control = os.path.join(self.runtime, "control.sock")
        os.makedirs(self.config)
        networks = networks or {"default": [V4, V6]}
        self.objects = [{
            "apiVersion": "hostweave.dev/v1alpha1", "kind": "HostConfig", "metadata": {"name": "test"},
            "spec": {"workers": {"count": workers},
                     "paths": {"runtime": self.runtime, "state": os.path.join(case.run, "state")}},
        }] + [{
            "apiVersion": "hostweave.dev/v1alpha1", "kind": "Network", "metadata": {"name": name},
            "spec": {"cidrs": cidrs, "mtu": mtu},
        } for name, cidrs in networks.items()]
        case.callback(self._end)

    def port(self, name, network="default", mode="listen", queues=1, tap=None, netns=None, labels=None):
        """Adds a port to the configuration; before `start`, or followed by `reload`."""
        port = Port(self, name, network, mode, queues, tap, netns, labels)
        self.ports.append(port)
        return port

    def host(self, **spec):
        """Sets fields of `HostConfig.spec`; before `start`, or followed by `reload`."""
        self.objects[0]["spec"].update(spec)

    def set(self, version, kind, name, spec, annotations=None, labels=None, **fields):
        """Sets an object, of the namespace `default` if it has one; without fields it goes. `fields` stand beside `spec`, for kinds
        that have none. Before `start`, or followed by `reload`."""
        self.objects = [o for o in self.objects if (o["kind"], o["metadata"]["name"]) != (kind, name)]
        if spec or fields:
            metadata = {"name": name, **({"annotations": annotations} if annotations else {}), **({"labels": labels} if labels else {})}
            self.objects.append({"apiVersion": version, "kind": kind, "metadata": metadata, **({"spec": spec} if spec else {}), **fields})

    def policy(self, name, **spec):
        """Sets a NetworkPolicy; without fields it goes."""
        self.set("networking.k8s.io/v1", "NetworkPolicy", name, spec)

    def reload(self):
        """Applies the configuration as it is now to the running daemon."""
        self._write()
        self.rpc("server.reload")

    def _write(self):
        # JSON is YAML.
        documents = [json.dumps(o) for o in self.objects + [port.object() for port in self.ports]]
        with open(os.path.join(self.config, "test.yaml"), "w") as out:
            out.write("\n---\n".join(documents) + "\n")

    def start(self):
        self._write()
        self.starts += 1
        argv = [BINARY, "daemon", "--rootless", "--config", self.config, "--control", self.control]
        if self.space:
            argv = ["ip", "netns", "exec", self.space.name] + argv
        environment = dict(os.environ, RUST_BACKTRACE="1")
        self.process = process.spawn(argv, self.case.log("daemon.log"), env=environment)

        def up():
            if self.process.poll() is not None:
                error = TimeoutError("the daemon ended: %s" % open(self.case.log("daemon.log")).read()[-3000:])
                error.final = True
                raise error
            self.rpc("server.hello", client="tests")
            return True

        until(up, "the daemon answers", 60, 0.02)
        for port in self.ports:
            port.refresh()
        return self

    def kill(self):
        """SIGKILL, as a crash."""
        self.alive()
        process.kill(self.process)

    def stop(self):
        """SIGTERM; the daemon must end by itself, with exit code 0."""
        self.alive()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0, "the daemon did not end cleanly"

    def alive(self):
        assert self.process.poll() is None, "the daemon ended by itself: exit %s" % self.process.poll()

    def _end(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            try:  # What a person would look at first.
                for name, arguments in (("ports", ["port", "list", "-A", "-o", "yaml"]), ("stats", ["port", "stats", "-A", "-o", "yaml"]), ("events", ["observe", "--type", "port", "--last", "200"]), ("flows", ["observe", "--last", "200"])):
                    done = process.run([BINARY, "--control", self.control] + arguments, timeout=10, check=False)
                    with open(self.case.log(name + ".txt"), "w") as out:
                        out.write(done.stdout + done.stderr)
            except Exception as error:
                self.case.note("no last words of the daemon: %s" % error)
        process.kill(self.process)

    # Control

    def rpc(self, method, **parameters):
        """One request on a connection of its own."""
        line = Line(self.control, timeout=0)
        try:
            request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
            line.send(json.dumps(request).encode() + b"\n")
            answer = json.loads(line.readline(30))
        finally:
            line.close()
        if "error" in answer:
            raise RuntimeError("%s: %s" % (method, json.dumps(answer["error"])))
        return answer["result"]

    def cli(self, *arguments, check=True):
        """A command of the CLI; what it printed, or with `check=False` the finished process."""
        return process.run([BINARY, "--control", self.control] + list(arguments), timeout=180, check=check)

    def http(self, path):
        """A GET on the control socket: (status, body)."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(self.control)
        with client:
            client.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
            answer = b""
            while data := client.recv(65536):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    # The ledger

    def stats(self):
        """Counters of every port, by name."""
        return {port["name"]: port["counters"] for port in self.rpc("port.stats")["ports"]}

    def check_ledger(self, allowed=None):
        """Both sums close, as soon as nothing is under way. With `allowed`, no other drop reason was counted."""

        def closes():
            answer = self.rpc("port.stats")
            stats, host = {port["name"]: port["counters"] for port in answer["ports"]}, answer["host"]
            for name, s in list(stats.items()) + [("the host", host)]:
                left = s["receivedPackets"] - s["forwarded"] - s["replied"] - sum(s["dropped"].values()) - s["queued"]
                assert left == 0, "the input of %s does not close by %d: %s" % (name, left, s)
            # The output sum is the whole host's: the networks' own ports, and those that were deleted, are in it.
            due = host["forwarded"] + host["replied"] + host["originated"] + host["extraSegments"]
            done = host["transmittedPackets"] + sum(host["transmitDropped"].values()) + host["transmitQueued"]
            assert due == done, "the output of the host does not close by %d: %s" % (due - done, answer)
            return stats

        # Counters are read one after the other while guests talk: in an instant without traffic they close.
        stats = until(closes, "the ledger closes", 20, 0.2)
        self.case.note("ledger: %s" % json.dumps(stats))
        self.alive()
        for name, s in stats.items():
            for reason in list(s["dropped"]) + list(s["transmitDropped"]):
                assert allowed is None or reason in allowed, "port %s dropped for %s: %s" % (name, reason, s)
        return stats


def eui64(mac, prefix):
    """The SLAAC address of RFC 4862 with the interface identifier of RFC 4291, appendix A."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2
    identifier = bytes(octets[:3] + [0xFF, 0xFE] + octets[3:])
    network = ipaddress.ip_network(prefix)
    return str(ipaddress.ip_address(network.network_address.packed[:8] + identifier))
