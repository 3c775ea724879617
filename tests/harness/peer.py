"""`tests/netns/peer.py` in a namespace, or in a guest: one end of many connections, told what to do over a pipe."""

import base64
import json
import os
import subprocess

from . import process
from .process import until

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns", "peer.py")


class Peer:
    def __init__(self, space, name):
        self.case, self.name, self.number = space.case, name, 0
        self.log = self.case.log("peer-%s.log" % name)
        argv = ["ip", "netns", "exec", space.name, "python3", "-u", PROGRAM]
        self.process = process.spawn(argv, self.log, stdin=subprocess.PIPE)
        self.case.callback(process.kill, self.process)

    def start(self, do, **arguments):
        self.number += 1
        line = json.dumps({"number": self.number, "do": do, **arguments})
        self.case.note("peer %s: %s" % (self.name, line[:300]))
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def finish(self, timeout=90):
        """The answer to what was started last."""
        mark = "\n=%d " % self.number

        def answered():
            text = open(self.log).read()
            if mark in text and text.split(mark)[1].endswith("\n"):
                return json.loads(text.split(mark)[1].splitlines()[0])
            if self.process.poll() is not None:
                error = TimeoutError("peer %s ended: %s" % (self.name, text[-2000:]))
                error.final = True
                raise error

        answer = until(answered, "peer %s has done what it was told" % self.name, timeout, 0.02)
        self.case.note("peer %s: %s" % (self.name, str(answer)[:300]))
        assert "error" not in answer, "peer %s: %s" % (self.name, answer["error"])
        return answer["answer"]

    def __call__(self, do, **arguments):
        self.start(do, **arguments)
        return self.finish()


class GuestPeer:
    """The same in a guest: commands go through a pipe there, answers into a file."""

    def __init__(self, vm):
        self.vm, self.number = vm, 0
        with open(PROGRAM, "rb") as program:
            vm.sh("base64 -d >/tmp/peer.py <<'END'\n%s\nEND" % base64.encodebytes(program.read()).decode())
        # Open for reading and writing: it has no end while nobody writes.
        vm.sh("mkfifo /tmp/peer.in; python3 -I -S -u /tmp/peer.py <>/tmp/peer.in >/tmp/peer.out 2>&1 &")

    def start(self, do, **arguments):
        self.number += 1
        line = json.dumps({"number": self.number, "do": do, **arguments})
        self.vm.sh("cat >/tmp/peer.in <<'END'\n%s\nEND" % line)

    def finish(self, timeout=600):
        """The answer to what was started last."""
        wait = "until grep '^=%d ' /tmp/peer.out; do pidof python3 >/dev/null || { cat /tmp/peer.out; exit 1; }; sleep 0.3; done"
        answer = json.loads(self.vm.sh(wait % self.number, timeout).split(" ", 1)[1])
        assert "error" not in answer, "peer %s: %s" % (self.vm.name, answer["error"])
        return answer["answer"]

    def __call__(self, do, **arguments):
        self.start(do, **arguments)
        return self.finish()
