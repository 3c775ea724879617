"""The runner of a suite: named tests, one sentence each, a folder of logs for each, one summary line at the end.

    suite = Suite("netns")

    @suite.test("a container gets its addresses by DHCP and RA")
    def addresses(case): ...

    suite.main()

`SUITE.py --list`, `SUITE.py NAME...`, `--logs DIR`, `--keep` (keep the logs of tests that pass, too). Exit 1 if any test failed.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback


class Skip(Exception):
    """Raised by a test, or by a suite's check, that cannot run here; the text says why."""


class TestTimeout(TimeoutError):
    """The test took longer than it may. `until` does not swallow it."""

    final = True


# What a test of containers must never write: a DHCP client that is let loose takes the machine's names away.
MACHINE = ("/etc/resolv.conf", "/etc/hosts")


def machine():
    """The machine's own configuration, as it is."""
    return {path: open(path, "rb").read() for path in MACHINE if os.path.exists(path)}


def restored(before):
    """Puts the machine's own configuration back; the files that were changed."""
    changed = [path for path, octets in before.items() if machine().get(path) != octets]
    for path in changed:
        with open(path, "wb") as out:
            out.write(before[path])
    return changed


class Case(contextlib.ExitStack):
    """One running test: `logs` is its folder for everything worth keeping, `run` a short path for sockets."""

    def __init__(self, name, logs):
        super().__init__()
        self.name = name
        self.logs = logs
        # sun_path holds 107 octets: sockets live below /tmp, whatever the length of the path of the checkout.
        self.run = tempfile.mkdtemp(prefix="hw-")
        self.callback(shutil.rmtree, self.run, ignore_errors=True)

    def note(self, text):
        """A line of the test's own log."""
        with open(os.path.join(self.logs, "test.log"), "a") as out:
            out.write("%s %s\n" % (time.strftime("%H:%M:%S"), text))

    def log(self, name):
        """Path of a log file of this test."""
        return os.path.join(self.logs, name)


class Suite:
    def __init__(self, name, check=lambda: None):
        """`check` raises `Skip` when the whole suite cannot run here."""
        self.name, self.check, self.tests = name, check, []

    def test(self, sentence, timeout=300, cases=None):
        """Registers a test. With `cases` (a dict of names), one test for each: `function(case, value)`."""

        def register(function):
            if cases is None:
                self.tests.append((function.__name__, sentence, timeout, function))
            for key, value in (cases or {}).items():
                name = "%s[%s]" % (function.__name__, key)
                self.tests.append((name, sentence, timeout, lambda case, f=function, v=value: f(case, v)))
            return function

        return register

    def main(self):
        parser = argparse.ArgumentParser(prog=self.name)
        parser.add_argument("names", nargs="*", help="run only tests whose name contains one of these")
        parser.add_argument("--list", action="store_true", help="print the tests and end")
        parser.add_argument("--logs", default=None, help="folder for logs (default target/test-logs/SUITE)")
        parser.add_argument("--keep", action="store_true", help="keep the logs of tests that pass")
        options = parser.parse_args()
        chosen = [t for t in self.tests if not options.names or any(n in t[0] for n in options.names)]
        if options.list:
            for name, sentence, _, _ in chosen:
                print("%s::%s  %s" % (self.name, name, sentence))
            return
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        logs = os.path.abspath(options.logs or os.path.join(root, "target", "test-logs", self.name))
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        try:
            self.check()
            unavailable = None
        except Skip as reason:
            unavailable = str(reason)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        for name, sentence, timeout, function in chosen:
            counts[self._one(name, sentence, timeout, function, logs, unavailable, options.keep)] += 1
        print("%(passed)d passed, %(failed)d failed, %(skipped)d skipped" % counts, flush=True)
        sys.exit(1 if counts["failed"] else 0)

    def _one(self, name, sentence, timeout, function, logs, unavailable, keep):
        title = "%s::%s" % (self.name, name)
        if unavailable:
            print("skip  %s  (%s)" % (title, unavailable), flush=True)
            return "skipped"
        folder = os.path.join(logs, re.sub(r"[^\w.-]+", "_", name).strip("_"))
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        started = time.monotonic()

        def expired(*_):
            raise TestTimeout("the test ran for more than %d s" % timeout)

        signal.signal(signal.SIGALRM, expired)
        signal.alarm(timeout)
        before = machine()
        try:
            try:
                with Case(name, folder) as case:
                    try:
                        function(case)
                    finally:
                        signal.alarm(0)  # Cleaning up is bounded by its own time-outs.
            finally:
                changed = restored(before)
            assert not changed, "the test changed the machine's own %s" % ", ".join(changed)
        except Skip as reason:
            print("skip  %s  (%s)" % (title, reason), flush=True)
            return "skipped"
        except Exception:
            print("FAIL  %s  (%.1f s)  %s\n      logs: %s" % (title, time.monotonic() - started, sentence, folder))
            text = traceback.format_exc()
            with open(os.path.join(folder, "failure.txt"), "w") as out:
                out.write(text)
            print("\n".join("      | " + line for line in text.splitlines()), flush=True)
            return "failed"
        print("ok    %s  (%.1f s)  %s" % (title, time.monotonic() - started, sentence), flush=True)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        return "passed"
