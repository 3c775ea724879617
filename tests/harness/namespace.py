"""A network namespace as a container: created for one test, gone after it."""

import os
import shutil

from . import process

UDHCPC_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "qemu", "guest", "udhcpc.script")


class Namespace:
    def __init__(self, case, name):
        self.case = case
        self.name = "hwt-%d-%s" % (os.getpid(), name)
        self.path = "/run/netns/" + self.name
        # `ip netns exec` binds what is below over /etc: programs inside read and write this one, never the machine's.
        self.etc = "/etc/netns/" + self.name
        os.makedirs(self.etc)
        case.callback(shutil.rmtree, self.etc, ignore_errors=True)
        self.resolv("")
        process.run(["ip", "netns", "add", self.name])
        case.callback(self.delete)
        self.sh("ip link set lo up")

    def resolv(self, text):
        """Writes its resolv.conf."""
        with open(self.etc + "/resolv.conf", "w") as out:
            out.write(text)

    def delete(self):
        process.run(["ip", "netns", "del", self.name], check=False)

    def sh(self, script, timeout=60, check=True):
        """Runs a script in the namespace; its standard output, or with `check=False` the finished process."""
        self.case.note("%s$ %s" % (self.name, script))
        done = process.run(["ip", "netns", "exec", self.name, "sh", "-c", script], timeout, check=False)
        self.case.note("%s: exit %d\n%s%s" % (self.name, done.returncode, done.stdout, done.stderr))
        if check:
            assert done.returncode == 0, "%s: exit %d\n%s%s" % (script, done.returncode, done.stdout, done.stderr)
            return done.stdout
        return done

    def spawn(self, argv, log):
        """Starts a program in the namespace; it ends with the test."""
        started = process.spawn(["ip", "netns", "exec", self.name] + list(argv), self.case.log(log))
        self.case.callback(process.kill, started)
        return started

    def dhcp(self, device):
        """A lease by busybox' client; returns the address. RFC 2131."""
        resolv = self.case.log("resolv-%s.conf" % self.name)
        self.sh("ip link set %s up; RESOLV_CONF=%s busybox udhcpc -i %s -O search -n -q -f -t 10 -T 1 -s %s" % (device, resolv, device, UDHCPC_SCRIPT))
        return self.sh("ip -4 -o addr show dev %s scope global" % device).split()[3].split("/")[0]
