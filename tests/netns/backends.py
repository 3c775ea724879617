"""Backends that come, go, freeze, die and flap under 1,000 live TCP connections through a Service, 500 of each family: exactly
those of the backend concerned are touched, and those only where that is what was asked for.

Every connection sends a word five times a second all the while and waits for its echo, so nothing happens unseen; the servers
say whose connections they hold. Needs root.
"""

import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness import process  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402
from services import CLUSTER, ECHO, HTTP, Scene, check, curl  # noqa: E402

suite = Suite("backends", check)
# Connections of each family.
COUNT = 500
HEALTH = "hostweave.dev/health-check"
# Seconds after which a connection whose backend is silent has failed: longer than the patience of `hum` in peer.py.
LONGER = 10
# Patient, so that a machine that is busy ejects nobody.
HEALTH_CHECK = "{type: http, port: %d, interval: 1s, timeout: 1s, rise: 1, fall: 3}" % HTTP


class Crowd(Scene):
    """Backends and a client with its connections. Checks ask nginx, so that the echo server has no others than the client's."""

    def __init__(self, case, backends="abc", annotations=None):
        super().__init__(case, backends)
        self.annotations = {HEALTH: HEALTH_CHECK, **(annotations or {})}
        self.service(annotations=self.annotations)

    def fill(self, backends):
        """Opens the connections and lets them talk; who has which: `held[backend]`, and `held[backend][family]` own L4 ports."""
        self.wait(2 * len(backends))
        for address in CLUSTER:
            assert self.client.peer("open", group=address, host=address, port=7, count=COUNT) == {"opened": COUNT, "failed": {}}
            self.client.peer("hum", group=address)

        def accepted():
            remotes = {name: self.spaces[name].peer("remotes", port=ECHO) for name in backends}
            self.held = {name: [{port for host, port in found if host == own} for own in self.client.families]
                         for name, found in remotes.items()}
            shares = [[len(held[number]) for held in self.held.values()] for number in (0, 1)]
            assert all(sum(counts) == COUNT for counts in shares), shares
            # How even they are is not the question here.
            return all(min(counts) > COUNT / 10 for counts in shares)

        until(accepted, "every backend has connections, and together they have all", 20)

    def lost(self, backend=None, how=None):
        """Ends the talk: exactly the connections of this backend have failed (in one way, if that is named), or none at all."""
        for number, address in enumerate(CLUSTER):
            found = self.client.peer("hummed", group=address)
            ok = set(found.pop("ok", []))
            failed = {port for ports in found.values() for port in ports}
            wanted = self.held[backend][number] if backend else set()
            assert failed == wanted, "%s: %s have failed, of which not the backend's: %s; went on all the same: %s" % (
                address, {how: len(ports) for how, ports in found.items()}, failed - wanted, wanted & ok)
            assert len(ok) == COUNT - len(wanted)
            assert how is None or set(found) == {how}, {how: len(ports) for how, ports in found.items()}

    def taken_by(self, names):
        """Who takes new connections now."""
        for address in CLUSTER:
            assert {name for name, _ in curl(self.client, address, 60)} == set(names), address

    def label(self, name, app):
        self.spaces[name].port.labels["app"] = app
        self.daemon.reload()


@suite.test("added: a third backend takes its share of new connections, and none of the 1,000 of the others is touched")
def added(case):
    scene = Crowd(case)
    scene.spaces["c"].port.labels["app"] = "later"
    scene.start().fill("ab")
    scene.label("c", "web")
    scene.wait(6)
    scene.taken_by("abc")
    scene.lost()
    scene.finish()


@suite.test("removed: a backend that the selector does not select any more gets nothing new, and none of the 1,000 is touched")
def removed(case):
    scene = Crowd(case).start()
    scene.fill("abc")
    scene.label("b", "another")
    scene.taken_by("ac")
    # Beyond the patience of a connection that nobody answers.
    process.run(["sleep", str(LONGER)])
    scene.lost()
    scene.finish()


@suite.test("deleted: a backend whose port is deleted takes its own connections with it, and no other")
def deleted(case):
    scene = Crowd(case).start()
    scene.fill("abc")
    scene.daemon.ports.remove(scene.spaces["b"].port)
    scene.daemon.reload()
    scene.taken_by("ac")
    process.run(["sleep", str(LONGER)])
    scene.lost("b", "ECONNRESET")
    scene.finish()


@suite.test("drained: a backend gets no new connections, and none of the 1,000 is touched; undrained it gets its share")
def drained(case):
    scene = Crowd(case).start()
    scene.fill("abc")
    scene.daemon.cli("service", "drain", "b", "--service", "web")
    scene.taken_by("ac")
    process.run(["sleep", str(LONGER)])
    scene.daemon.cli("service", "undrain", "b", "--service", "web")
    scene.taken_by("abc")
    scene.lost()
    scene.finish()


@suite.test("frozen: servers that accept and never answer are out; their own connections stall, no other does, and thawed they go on")
def frozen(case):
    scene = Crowd(case).start()
    scene.fill("abc")
    stopped = [scene.spaces["b"].nginx, scene.spaces["b"].peer.process]
    for server in stopped:
        server.send_signal(signal.SIGSTOP)
    scene.wait(4)
    scene.taken_by("ac")
    process.run(["sleep", str(LONGER)])
    scene.lost("b")
    for server in stopped:
        server.send_signal(signal.SIGCONT)
    scene.wait(6)
    scene.taken_by("abc")
    # Nothing was cut: what was sent meanwhile is answered now.
    for address in CLUSTER:
        scene.client.peer("hum", group=address)
    scene.lost()
    scene.finish()


@suite.test("killed, the kernel lives: the connections of a server that is killed are reset, and no other is touched")
def killed(case):
    scene = Crowd(case).start()
    scene.fill("abc")
    for server in (scene.spaces["b"].nginx, scene.spaces["b"].peer.process):
        process.kill(server)
    scene.wait(4)
    scene.taken_by("ac")
    scene.lost("b")
    scene.finish()


@suite.test("killed, as by a power cut: a backend that falls silent is out; its own connections starve, and no other is touched")
def power_cut(case):
    scene = Crowd(case).start()
    scene.fill("abc")
    # Nobody is told: no FIN, no RST.
    scene.spaces["b"].sh("ip link set hw-b down")
    scene.wait(4)
    scene.taken_by("ac")
    process.run(["sleep", str(LONGER)])
    scene.lost("b")
    scene.finish()


@suite.test("flapping: a backend fails its checks and passes them again, five times: `drain: keep` touches none of the 1,000 "
            "connections, `drain: reset` those of this backend", cases={"keep": "keep", "reset": "reset"})
def flapping(case, drain):
    scene = Crowd(case, annotations={"hostweave.dev/drain": drain}).start()
    scene.fill("abc")
    for _ in range(5):
        scene.spaces["b"].nginx.send_signal(signal.SIGSTOP)
        scene.wait(4)
        # Longer than a connection is silent between two words.
        process.run(["sleep", "1"])
        scene.spaces["b"].nginx.send_signal(signal.SIGCONT)
        scene.wait(6)
    scene.taken_by("abc")
    ways = [(entry["from"], entry["to"]) for entry in scene.daemon.rpc("service.backends", name="web")["history"]
            if entry["backend"] == "default/b"]
    assert ways.count(("healthy", "unhealthy")) >= 5 and ways.count(("unhealthy", "healthy")) >= 5, ways
    process.run(["sleep", str(LONGER)])
    scene.lost("b" if drain == "reset" else None)
    scene.finish()


@suite.test("all of it at once: one is added, one drained, one frozen, one killed, while a fifth serves: those of the two that are gone "
            "fail, and no other")
def at_once(case):
    scene = Crowd(case, "abcde")
    scene.spaces["e"].port.labels["app"] = "later"
    scene.start().fill("abcd")
    scene.label("e", "web")
    scene.daemon.cli("service", "drain", "b", "--service", "web")
    for server in (scene.spaces["c"].nginx, scene.spaces["c"].peer.process):
        server.send_signal(signal.SIGSTOP)
    for server in (scene.spaces["d"].nginx, scene.spaces["d"].peer.process):
        process.kill(server)
    until(lambda: sum(b["internal"] for b in scene.backends_of() if b["portName"] == "http") == 4, "a and e are left", 30, 0.05)
    scene.taken_by("ae")
    process.run(["sleep", str(LONGER)])
    scene.held["gone"] = [scene.held["c"][number] | scene.held["d"][number] for number in (0, 1)]
    scene.lost("gone")
    scene.finish()


if __name__ == "__main__":
    suite.main()
