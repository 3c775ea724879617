"""DPDK's virtio-user driver as the frontend: every frame that it sends arrives intact.

One testpmd has two virtio-user ports, and two pcap ports that replay and record:

    in-a.pcap ─► pcap A ─► virtio-user A ═► switch ═► virtio-user B ─► pcap B ─► out-b.pcap      (and the other way at the same time)

A round sends no more than one ring holds, so that a slow machine loses nothing; rounds go on until the rings have wrapped
several times. `--reference` runs the same against testpmd's own vhost backend, which proves the test itself.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from harness import packets, requirements, testpmd  # noqa: E402
from harness.daemon import ROUTER_MAC, Daemon  # noqa: E402
from harness.process import until  # noqa: E402
from harness.suite import Suite  # noqa: E402

REFERENCE = "--reference" in sys.argv
if REFERENCE:
    sys.argv.remove("--reference")

RING = 256
MBUF = 2048
SIZES = [64, 65, 66, 78, 100, 128, 129, 256, 511, 512, 513, 1000, 1280, 1500, 1514, 2036, 2048, 2049, 4084, 4096, 6000, 8192, 8999, 9000]

suite = Suite("testpmd", lambda: requirements.programs(testpmd.TESTPMD))


class Side:
    """One virtio-user port and what the network calls it."""

    def __init__(self, name, socket, mac, v4, v6):
        self.name, self.socket, self.mac, self.v4, self.v6 = name, socket, mac, v4, v6


def switch(case, queues):
    """Starts the switch; the two sides, the MAC of the next hop, the hops that a frame makes, and a function for the end."""
    if REFERENCE:
        sides = [Side("a", case.run + "/a.sock", "52:54:00:00:00:01", "192.0.2.1", "2001:db8::1"),
                 Side("b", case.run + "/b.sock", "52:54:00:00:00:02", "192.0.2.2", "2001:db8::2")]
        testpmd.backend(case, [side.socket for side in sides], queues, tso=False)
        return sides, None, 0, lambda: None
    daemon = Daemon(case, mtu=9000)
    ports = [daemon.port(name, queues=queues) for name in ("a", "b")]
    daemon.start()
    sides = [Side(port.name, port.socket, port.mac, port.v4, port.v6) for port in ports]
    return sides, ROUTER_MAC, 1, daemon.check_ledger


def rounds(source, target, gateway, queues, mergeable, total):
    """Lists of frames per queue, each list small enough for the rings."""
    sequence, lists = 1, []
    while sequence <= total:
        lists.append([[] for _ in range(queues)])
        for queue in range(queues):
            # The switch may lead all flows to one queue of the receiver: a round must fit into one ring.
            room = (RING - 32) // queues
            while room > 8:
                size = SIZES[sequence % len(SIZES)]
                # Every other lap over the sizes is IPv6, whose smallest test frame is 78 octets.
                six = (sequence // len(SIZES)) % 2 == 1
                size = max(size, 78) if six else size
                src, dst = (source.v6, target.v6) if six else (source.v4, target.v4)
                lists[-1][queue].append(packets.frame(size, sequence, source.mac, gateway or target.mac, src, dst, 4000 + queue))
                room -= 1 + (size + 12) // MBUF if mergeable else 1
                sequence += 1
    return lists


def exchange(case, mergeable, in_order, queues):
    sides, gateway, hops, finish = switch(case, queues)
    vdevs, files = [], {}
    for side in sides:
        files[side.name] = [(case.log("in-%s%d.pcap" % (side.name, q)), case.log("out-%s%d.pcap" % (side.name, q)))
                            for q in range(queues)]
        for path, _ in files[side.name]:
            packets.write_pcap(path, [])
        pcap = "net_pcap_%s" % side.name + "".join(",rx_pcap=%s,tx_pcap=%s" % pair for pair in files[side.name])
        user = "virtio_user_%s,path=%s,mac=%s,queues=%d,queue_size=%d,mrg_rxbuf=%d,in_order=%d,packed_vq=0" % (
            side.name, side.socket, side.mac, queues, RING, mergeable, in_order)
        vdevs += [pcap, user] if side is sides[0] else [user, pcap]
    # testpmd otherwise empties its receive queues when forwarding starts, and with them the files to replay.
    options = ["--no-flush-rx", "--forward-mode=io", "--rxq=%d" % queues, "--txq=%d" % queues, "--rxd=%d" % RING, "--txd=%d" % RING,
               "--total-num-mbufs=%d" % (queues * 2048 + 4096)]
    # Without mergeable buffers one buffer must hold the longest frame.
    options += ["--mbuf-size=%d" % (MBUF + 128)] if mergeable else ["--mbuf-size=9856"]
    pmd = testpmd.Testpmd(case, "frontend", vdevs, options, threads=2)
    both = [rounds(sides[i], sides[1 - i], gateway, queues, mergeable, RING * 4 * (2 if queues > 1 else 1)) for i in range(2)]
    for port in (0, 3):
        pmd("port stop %d" % port)
    for number, (to_b, to_a) in enumerate(zip(*both)):
        for side, frames in zip(sides, (to_b, to_a)):
            for (path, _), batch in zip(files[side.name], frames):
                packets.write_pcap(path, batch)
        # Starting a pcap port again opens its files anew.
        for port in (0, 3):
            pmd("port start %d" % port)
        pmd("clear port stats all")
        pmd("start")
        sent = {side.name: [f for batch in frames for f in batch] for side, frames in zip(sides, (to_b, to_a))}
        arrived(pmd, {0: len(sent["b"]), 3: len(sent["a"])}, "round %d" % number)
        pmd("stop")
        for port in (0, 3):
            pmd("port stop %d" % port)  # Closes the files: what was received is in them now.
        for side, other in zip(sides, sides[::-1]):
            compare(sent[other.name], received(files[side.name]), side, gateway, hops)
    finish()


def arrived(pmd, expected, what):
    """Waits until each recording port wrote as many frames as it should, and writes no more; a lost frame is `compare`'s to name."""
    last = {}

    def quiet():
        nonlocal last
        now = {port: count["TX-packets"] for port, count in pmd.statistics().items() if port in expected}
        done = now == last and all(now[port] >= expected[port] for port in expected)
        last = now
        return done

    try:
        until(quiet, what, 30, 0.2)
    except AssertionError:
        pass


def received(files):
    return [frame for _, path in files for frame in packets.read_pcap(path) if packets.sequence_of(frame) is not None]


def compare(sent, got, side, gateway, hops):
    """Every frame once, octet by octet, each flow in its order, with the MAC addresses of the last hop."""
    by_sequence = {packets.sequence_of(frame): frame for frame in sent}
    seen, last = set(), {}
    for frame in got:
        sequence = packets.sequence_of(frame)
        flow = (frame[12:14], packets.source_port(frame))
        assert last.get(flow, 0) < sequence, "frames of one flow changed their order: %d after %d" % (sequence, last[flow])
        last[flow] = sequence
        assert sequence in by_sequence, "frame %d was never sent" % sequence
        assert sequence not in seen, "frame %d arrived twice" % sequence
        seen.add(sequence)
        want = by_sequence[sequence]
        if packets.routed(frame, hops) != packets.routed(want, 0):
            at = next((i for i, (x, y) in enumerate(zip(frame, want)) if i >= 14 and x != y and i not in (21, 22, 24, 25)), min(len(frame), len(want)))
            raise AssertionError("frame %d of %d octets arrived with %d, different from octet %d on" % (sequence, len(want), len(frame), at))
        assert frame[:6] == packets.mac_bytes(side.mac), "frame %d is not addressed to the receiver" % sequence
        assert not gateway or frame[6:12] == packets.mac_bytes(gateway), "frame %d does not come from the router" % sequence
    assert len(seen) == len(by_sequence), "%d frames of %d arrived" % (len(seen), len(by_sequence))


CASES = {
    "mrg_rxbuf=%d,in_order=%d,queues=%d" % (mergeable, in_order, queues): (mergeable, in_order, queues)
    for queues in (1, 4) for mergeable in (0, 1) for in_order in (0, 1)
}


@suite.test("every frame of 64 to 9000 octets, IPv4 and IPv6, both ways at once, arrives intact", timeout=120, cases=CASES)
def frames(case, parameters):
    exchange(case, *parameters)


if __name__ == "__main__":
    suite.main()
