"""Linux guests in QEMU: started from a snapshot in under a second, NICs plugged in while they run.

Theory of operation. `tests/qemu/setup.sh` has built a kernel and an initramfs. The first guest of a machine boots from
them (about 5 s under TCG), without NICs but with empty PCIe root ports, and is saved to a file (`migrate` to a
`mapped-ram` file). Every other guest starts from that file, gets a new identity, and its NICs by hot-plug. Commands
run in the guest through virtio-serial ports (see `tests/qemu/guest/init`). Memory is a shared memfd, as vhost-user
needs. `QEMU_ACCEL=kvm` uses KVM on machines where it works.
"""

import base64
import fcntl
import hashlib
import json
import os
import select
import socket
import subprocess
import time

from . import process
from .process import until

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IMAGES = os.environ.get("HOSTWEAVE_QEMU_GUEST", os.path.join(ROOT, "target", "qemu-guest"))
QEMU = "qemu-system-x86_64"
ACCEL = os.environ.get("QEMU_ACCEL", "tcg")
MEMORY_MIB = 256
ROOT_PORTS = 3
CHANNELS = 4
_CMDLINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable cryptomgr.notests"
_SNAPSHOT_CAPABILITIES = ("mapped-ram", "multifd")


class Line:
    """A client of a UNIX stream socket that speaks lines."""

    def __init__(self, path, timeout=10):
        self.path, self.buffer = path, b""
        deadline = time.monotonic() + timeout
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                return
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def send(self, data):
        self.socket.sendall(data)

    def readline(self, timeout):
        deadline = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no line from %s" % self.path)
            if select.select([self.socket], [], [], left)[0]:
                data = self.socket.recv(1 << 16)
                if not data:
                    raise EOFError("%s was closed" % self.path)
                self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode(errors="replace")

    def close(self):
        self.socket.close()


class Qmp:
    """QEMU's monitor. Events are kept in `events`."""

    def __init__(self, path):
        self.line, self.events = Line(path), []
        self.line.readline(20)
        self("qmp_capabilities")

    def __call__(self, execute, timeout=60, **arguments):
        self.line.send(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self.line.readline(timeout))
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError("%s: %s" % (execute, answer["error"]["desc"]))
            else:
                return answer["return"]

    def wait_event(self, name, timeout=60, match=lambda data: True):
        """Waits for an event, those seen since the last call included."""
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] == name and match(event.get("data", {})):
                    return self.events.pop(index)
            self.events.append(json.loads(self.line.readline(max(0.0, deadline - time.monotonic()))))


class Guest:
    """One QEMU process. `sh` runs a script in it; `qmp` speaks to QEMU."""

    def __init__(self, case, name, incoming=None, options=(), smp=1, tag=None, space=None):
        """`tag` names the process (logs, sockets) where two processes are the same guest, as in a migration. With `space`, a
        namespace, QEMU runs there."""
        self.case, self.name, self.smp = case, name, smp
        self.dir = os.path.join(case.run, tag or name)
        os.makedirs(self.dir)
        self.log = case.log("qemu-%s.log" % (tag or name))
        self.console = case.log("console-%s.log" % (tag or name))
        argv = [QEMU, "-name", name, "-accel", ACCEL, "-cpu", "host" if ACCEL == "kvm" else "Nehalem", "-smp", smp]
        argv += ["-m", MEMORY_MIB, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        for i in range(ROOT_PORTS):
            argv += ["-device", "pcie-root-port,id=rp%d,chassis=%d,slot=%d,addr=0x%x" % (i, i + 1, i + 1, 0x10 + i)]
        argv += ["-object", "memory-backend-memfd,id=mem,size=%dM,share=on" % MEMORY_MIB, "-M", "q35,memory-backend=mem"]
        argv += ["-kernel", os.path.join(IMAGES, "vmlinux"), "-initrd", os.path.join(IMAGES, "initramfs.cpio")]
        argv += ["-append", _CMDLINE, "-chardev", "file,id=con,path=" + self.console, "-serial", "chardev:con"]
        argv += ["-qmp", "unix:%s/qmp,server=on,wait=off" % self.dir, "-device", "virtio-serial-pci,addr=0x1e"]
        for i in range(CHANNELS):
            argv += ["-chardev", "socket,id=ctl%d,path=%s/ctl%d,server=on,wait=off" % (i, self.dir, i)]
            argv += ["-device", "virtserialport,chardev=ctl%d,name=ctl%d" % (i, i)]
        argv += ["-incoming", incoming] if incoming else []
        argv = (["ip", "netns", "exec", space.name] if space else []) + argv
        self.process = process.spawn(argv + list(options), self.log)
        case.callback(self.kill)
        self._number, self._pending = 0, {}
        try:
            self.qmp = Qmp(self.dir + "/qmp")
            self.channels = [Line("%s/ctl%d" % (self.dir, i)) for i in range(CHANNELS)]
        except OSError as error:
            raise RuntimeError("QEMU did not start: %s" % open(self.log, errors="replace").read()) from error

    # Commands in the guest

    def start(self, script, channel=1, timeout=60):
        """Starts a script on a channel of its own; `finish` waits for it."""
        self._number += 1
        self._pending[channel] = (self._number, timeout)
        body = base64.b64encode(script.encode()).decode()
        self.case.note("%s[%d]$ %s" % (self.name, channel, script))
        self.channels[channel].send(b"%d %d %s\n" % (self._number, timeout, body.encode()))

    def finish(self, channel=1, check=True, timeout=None):
        """Waits for the script that `start` started; returns (exit code, stdout, stderr), or stdout with `check`."""
        number, limit = self._pending[channel]
        deadline = time.monotonic() + (timeout or limit) + 30
        while True:
            fields = self.channels[channel].readline(deadline - time.monotonic()).split(" ")
            if fields[0] == str(number):
                break
        code = int(fields[1])
        out, err = ("" if f == "-" else base64.b64decode(f).decode(errors="replace") for f in fields[2:4])
        self.case.note("%s[%d]: exit %d\n%s%s" % (self.name, channel, code, out, err))
        if check:
            assert code == 0, "%s: exit %d\n%s%s" % (self.name, code, out, err)
            return out
        return code, out, err

    def sh(self, script, timeout=60, check=True):
        """Runs a script in the guest; its standard output, or with `check=False` (code, stdout, stderr)."""
        self.start(script, 0, timeout)
        return self.finish(0, check)

    def wait_ready(self, timeout=120):
        for channel in self.channels:
            line = channel.readline(timeout)
            assert line.startswith("READY"), line

    def reconnect(self, other):
        """Takes over what was running on the channels of `other`, whose guest now runs here (after a migration)."""
        self._pending, self._number = dict(other._pending), other._number

    # Devices

    def plug(self, index, path, mac, queues=1, server=False, host_mtu=1500, **device):
        """Plugs in NIC `index` on the vhost-user socket `path`; returns when the guest sees ethINDEX.

        QEMU blocks while it listens and nobody has connected: with `server`, the backend must be trying already.
        """
        self.plug_backend(index, path, queues, server)
        arguments = dict(driver="virtio-net-pci", id="nic%d" % index, netdev="net%d" % index, mac=mac, bus="rp%d" % index)
        arguments.update({"rx_queue_size": 1024, "tx_queue_size": 1024, "host_mtu": host_mtu})
        if queues > 1:
            arguments.update({"mq": True, "vectors": 2 * queues + 2})
        arguments.update(device)
        self.qmp("device_add", **arguments)
        self.sh("i=0; until [ -e /sys/class/net/eth%d ]; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.05; done"
                % index, timeout=60)

    def plug_backend(self, index, path, queues=1, server=False):
        data = {"addr": {"type": "unix", "data": {"path": path}}, "server": server}
        data.update({"wait": True} if server else {"reconnect-ms": 200})
        self.qmp("chardev-add", id="chr%d" % index, backend={"type": "socket", "data": data})
        self.qmp("netdev_add", type="vhost-user", id="net%d" % index, chardev="chr%d" % index, queues=queues)

    def unplug(self, index):
        """Takes NIC `index` out; returns when the guest and QEMU have let go of it."""
        def gone():
            # A guest that is busy may miss the first request: ask again, as a person would.
            try:
                self.qmp("device_del", id="nic%d" % index)
            except RuntimeError as error:
                if "not found" in str(error):
                    return True
            try:
                self.qmp.wait_event("DEVICE_DELETED", 10, lambda data: data.get("device") == "nic%d" % index)
                return True
            except TimeoutError:
                return False

        until(gone, "%s: NIC %d unplugged" % (self.name, index), 60)
        self.sh("i=0; while [ -e /sys/class/net/eth%d ]; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.05; done" % index)
        self.qmp("netdev_del", id="net%d" % index)

    def kill(self):
        """SIGKILL, as when a VMM crashes."""
        process.kill(self.process)


def nic_options(index, path, mac, queues=1, server=False, host_mtu=1500):
    """The command line of a NIC that is there from the start (migration targets, listening QEMU), as `plug` makes it."""
    chardev = "socket,id=chr%d,path=%s,%s" % (index, path, "server=on,wait=on" if server else "reconnect-ms=200")
    device = "virtio-net-pci,id=nic%d,netdev=net%d,mac=%s,bus=rp%d,rx_queue_size=1024,tx_queue_size=1024,host_mtu=%d" % (
        index, index, mac, index, host_mtu)
    if queues > 1:
        device += ",mq=on,vectors=%d" % (2 * queues + 2)
    netdev = "vhost-user,id=net%d,chardev=chr%d,queues=%d" % (index, index, queues)
    return ["-chardev", chardev, "-netdev", netdev, "-device", device]


def _capabilities(guest, state):
    guest.qmp("migrate-set-capabilities", capabilities=[{"capability": c, "state": state} for c in _SNAPSHOT_CAPABILITIES])


def _migrated(guest):
    status = guest.qmp("query-migrate")
    assert status.get("status") != "failed", "migration failed: %s" % status.get("error-desc")
    return status if status.get("status") == "completed" else None


def _snapshot(case, smp):
    """Path of the saved guest, made by the first caller."""
    path = os.path.join(IMAGES, "snapshot-%d.mig" % smp)
    version = subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE, check=True).stdout
    source = version + open(os.path.join(IMAGES, "stamp"), "rb").read() + open(__file__, "rb").read() + ACCEL.encode()
    key = hashlib.sha256(source).hexdigest()
    with open(os.path.join(IMAGES, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path) and os.path.exists(path + ".key") and open(path + ".key").read() == key:
            return path
        guest = Guest(case, "snapshot", smp=smp, tag="snapshot-%d" % smp)
        guest.wait_ready()
        # The programs the tests use, once, so that the page cache holds them and they are translated code no more slowly.
        guest.sh("iperf3 --version; tcpdump --version; curl --version; ethtool --version; ping -c1 127.0.0.1", check=False)
        _capabilities(guest, True)
        guest.qmp("stop")
        guest.qmp("migrate", uri="file:" + path)
        until(lambda: _migrated(guest), "the snapshot is saved", 60, 0.05)
        guest.kill()
        with open(path + ".key", "w") as out:
            out.write(key)
    return path


def boot(case, *names, smp=1, space=None):
    """Starts guests from the snapshot, all at once; one guest for one name, else a list. With `space`, QEMU runs there."""
    path = _snapshot(case, smp)
    guests = [Guest(case, name, incoming="defer", smp=smp, space=space) for name in names]
    for guest in guests:
        _capabilities(guest, True)
        guest.qmp("migrate-incoming", uri="file:" + path)
    for guest in guests:
        until(lambda: guest.qmp("query-status")["status"] != "inmigrate", "%s is restored" % guest.name, 60, 0.02)
        guest.qmp("cont")
        _capabilities(guest, False)
        seed = os.urandom(16).hex()
        guest.sh("hostname %s; echo %s >/dev/urandom; date -s @%d >/dev/null" % (guest.name, seed, time.time()))
    return guests[0] if len(guests) == 1 else guests


def migrate(source, target, timeout=120):
    """Moves the guest live; returns QEMU's own account of it."""
    address = "unix:%s/migration" % target.dir
    target.qmp("migrate-incoming", uri=address)
    source.qmp("migrate", uri=address)
    status = until(lambda: _migrated(source), "the migration completes", timeout, 0.02)
    target.reconnect(source)
    source.case.note("migrated: %s" % json.dumps(status))
    return status
