"""One end of many connections, in a namespace of its own: commands are JSON lines on standard input, each answered by one
line `=NUMBER JSON` on standard output. `harness.peer.Peer` speaks to it.

Sockets are the kernel's; nothing here knows the switch. Needs root for raw frames and for TCP_REPAIR, by which a socket is
forgotten without a word, or says its sequence numbers.
"""

import asyncio
import errno
import json
import os
import resource
import socket
import sys
import time

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECV_QUEUE, SEND_QUEUE = 1, 2
# Ends repair mode without the window probe that otherwise tells the other side.
REPAIR_OFF_QUIETLY = -1


def stream(host, source_port=0):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if source_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", source_port))
    return sock


def plain(address):
    """Address and L4 port; the address without the form that IPv4 has on a socket of both families."""
    return [address[0].removeprefix("::ffff:"), address[1]]


def name_of(error):
    return "timeout" if isinstance(error, asyncio.TimeoutError) else errno.errorcode.get(error.errno, repr(error))


class Peer:
    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.groups, self.held, self.tasks, self.heard, self.raw, self.bound = {}, {}, set(), [], {}, {}
        self.humming, self.hums, self.served = {}, {}, set()

    def task(self, coroutine):
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # Servers

    async def serve(self, port, mode="echo"):
        """Both families. `echo`; `closes` answers once and closes first; `late` answers behind the other side's FIN. Once a port."""
        if port in self.served:
            return
        self.served.add(port)
        server = socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
        server.setblocking(False)
        self.task(self._accept(server, getattr(self, "_" + mode)))

    async def _accept(self, server, serve):
        while True:
            sock, _ = await self.loop.sock_accept(server)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.held.setdefault(server.getsockname()[1], []).append(sock)
            self.task(self._quietly(serve(sock), sock))

    async def _quietly(self, serve, sock):
        try:
            await serve
        except OSError:
            pass
        sock.close()

    async def _echo(self, sock):
        while data := await self.loop.sock_recv(sock, 65536):
            await self.loop.sock_sendall(sock, data)

    async def _closes(self, sock):
        await self.loop.sock_sendall(sock, await self.loop.sock_recv(sock, 65536))

    async def _late(self, sock):
        count = 0
        while data := await self.loop.sock_recv(sock, 65536):
            count += len(data)
        for _ in range(5):
            await asyncio.sleep(0.2)
            await self.loop.sock_sendall(sock, b"x" * count)

    async def _tells(self, sock):
        """Says who has connected, as seen from here; then an echo."""
        await self.loop.sock_sendall(sock, json.dumps(plain(sock.getpeername())).encode())
        await self._echo(sock)

    async def remotes(self, port):
        """Who has connected to a port of ours, as seen from here."""
        return [plain(sock.getpeername()) for sock in self.held.get(port, []) if sock.fileno() >= 0]

    async def reflect(self, port):
        """Answers each datagram by whom it came from, as seen from here; both families."""
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("", port))
        sock.setblocking(False)

        async def answer():
            while True:
                _, source = await self.loop.sock_recvfrom(sock, 65536)
                await self.loop.sock_sendto(sock, json.dumps(plain(source)).encode(), source)

        self.task(answer())

    # UDP sockets that stay, by name

    async def bind(self, name, host, port=0):
        """A socket of an address; answers its L4 port."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, port))
        sock.setblocking(False)
        self.bound[name] = sock
        return sock.getsockname()[1]

    async def send(self, name, to, text="a word"):
        """Sends to an address and L4 port."""
        try:
            await self.loop.sock_sendto(self.bound[name], text.encode(), tuple(to))
        except OSError as error:
            return name_of(error)

    async def take(self, name, timeout=5):
        """What comes next to a socket, and from where; `None` when nothing does."""
        try:
            data, source = await asyncio.wait_for(self.loop.sock_recvfrom(self.bound[name], 65536), timeout)
            return [data.decode(), plain(source)]
        except asyncio.TimeoutError:
            return None

    async def ask(self, name, to, tries=3, timeout=2):
        """Who we are to the other side's `reflect`; `None` when it never answers."""
        for attempt in range(tries):
            await self.send(name, to)
            answer = await self.take(name, timeout)
            if answer:
                # Or the answer to an earlier try would be taken for that to the next question.
                while attempt and await self.take(name, 1):
                    pass
                return json.loads(answer[0])

    async def hear(self, port):
        """Takes UDP datagrams, both families; `heard` gives them back."""
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("", port))
        sock.setblocking(False)
        self.loop.add_reader(sock, lambda: self.heard.append(sock.recv(65536).hex()))

    async def heard_since(self):
        heard, self.heard = self.heard, []
        return heard

    # Clients

    async def open(self, group, host, port, count=1, source_port=0, timeout=20, parallel=200):
        """Opens connections that stay; says how many, and what came of the others."""
        gate, failed = asyncio.Semaphore(parallel), {}

        async def one():
            async with gate:
                sock = stream(host, source_port)
                try:
                    await asyncio.wait_for(self.loop.sock_connect(sock, (host, port)), timeout)
                    self.groups.setdefault(group, []).append(sock)
                except (OSError, asyncio.TimeoutError) as error:
                    failed[name_of(error)] = failed.get(name_of(error), 0) + 1
                    sock.close()

        await asyncio.gather(*(one() for _ in range(count)))
        return {"opened": len(self.groups.get(group, [])), "failed": failed}

    async def echo(self, group, timeout=10):
        """Sends a word on each connection of a group and waits for its echo."""
        counts = {}

        async def one(number, sock):
            word, back = b"%08d" % number, b""
            try:
                await self.loop.sock_sendall(sock, word)
                while len(back) < len(word):
                    data = await asyncio.wait_for(self.loop.sock_recv(sock, 64), timeout)
                    if not data:
                        return "closed"
                    back += data
                return "ok" if back == word else "damaged"
            except (OSError, asyncio.TimeoutError) as error:
                return name_of(error)

        for result in await asyncio.gather(*(one(i, sock) for i, sock in enumerate(self.groups[group]))):
            counts[result] = counts.get(result, 0) + 1
        return counts

    async def hum(self, group, every=0.2, patience=8):
        """From now on each connection of a group sends a word now and then, and waits for its echo; `hummed` ends that."""
        self.humming[group] = stop = asyncio.Event()

        async def one(sock):
            port, word = sock.getsockname()[1], b"8 octets"
            try:
                while not stop.is_set():
                    await self.loop.sock_sendall(sock, word)
                    back = b""
                    while len(back) < len(word):
                        data = await asyncio.wait_for(self.loop.sock_recv(sock, len(word) - len(back)), patience)
                        if not data:
                            return "closed", port
                        back += data
                    if back != word:
                        return "damaged", port
                    await asyncio.sleep(every)
                return "ok", port
            except (OSError, asyncio.TimeoutError) as error:
                return name_of(error), port

        self.hums[group] = [self.loop.create_task(one(sock)) for sock in self.groups[group]]

    async def hummed(self, group):
        """What became of each connection since `hum`: own L4 ports by `ok`, or by how the connection failed."""
        self.humming.pop(group).set()
        found = {}
        for result, port in await asyncio.gather(*self.hums.pop(group)):
            found.setdefault(result, []).append(port)
        return found

    async def tell(self, group, timeout=10):
        """Who the first connection of a group is to the other side's `tells`."""
        return json.loads(await asyncio.wait_for(self.loop.sock_recv(self.groups[group][0], 200), timeout))

    async def churn(self, hosts, port, count, parallel=50, timeout=20):
        """Short connections, one after the other: opened, used once, closed."""
        gate, counts = asyncio.Semaphore(parallel), {}

        async def one(number):
            async with gate:
                sock = stream(hosts[number % len(hosts)])
                try:
                    await asyncio.wait_for(self._once(sock, (hosts[number % len(hosts)], port)), timeout)
                    result = "ok"
                except (OSError, asyncio.TimeoutError) as error:
                    result = name_of(error)
                sock.close()
                counts[result] = counts.get(result, 0) + 1

        await asyncio.gather(*(one(number) for number in range(count)))
        return counts

    async def _once(self, sock, to):
        await self.loop.sock_connect(sock, to)
        await self.loop.sock_sendall(sock, b"a word")
        assert await self.loop.sock_recv(sock, 64) == b"a word"

    async def reuse(self, host, port, source_port, count):
        """One connection after the other between the same two ports; the server closes first and is in TIME_WAIT."""
        slow = 0
        for _ in range(count):
            started = time.monotonic()
            while True:
                sock = stream(host, source_port)
                try:
                    await asyncio.wait_for(self._once(sock, (host, port)), 10)
                    break
                except OSError as error:
                    # Our own end has not left LAST_ACK yet.
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE) or time.monotonic() > started + 10:
                        raise
                    sock.close()
                    await asyncio.sleep(0.001)
            assert await asyncio.wait_for(self.loop.sock_recv(sock, 64), 10) == b"", "the server closes"
            sock.close()
            slow += time.monotonic() - started > 0.9
        return {"slow": slow}

    async def half_close(self, host, port):
        """Sends, closes its direction, and counts what comes behind."""
        sock = stream(host)
        await asyncio.wait_for(self.loop.sock_connect(sock, (host, port)), 10)
        await self.loop.sock_sendall(sock, b"y" * 20_000)
        sock.shutdown(socket.SHUT_WR)
        count = 0
        while data := await asyncio.wait_for(self.loop.sock_recv(sock, 65536), 10):
            count += len(data)
        sock.close()
        return count

    async def meet(self, host, port, at):
        """Simultaneous open: connects at an instant, from the same port that it connects to."""
        sock = stream(host, port)
        while time.monotonic() < at:
            pass
        try:
            await asyncio.wait_for(self.loop.sock_connect(sock, (host, port)), 0.3)
            await self.loop.sock_sendall(sock, b"here")
            return (await asyncio.wait_for(self.loop.sock_recv(sock, 64), 2)).decode()
        except (OSError, asyncio.TimeoutError) as error:
            return name_of(error)
        finally:
            sock.close()

    async def forget(self, group=None, port=None):
        """The sockets of a group, or those accepted on a port, are gone without a word, as after a power cut."""
        for sock in self.groups.pop(group, []) if group else self.held.pop(port, []):
            if sock.fileno() < 0:
                continue
            self.loop.remove_reader(sock)
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            sock.close()

    async def close(self, group):
        """Closes the connections of a group, as one does."""
        for sock in self.groups.pop(group, []):
            sock.close()

    async def numbers(self, group):
        """Own port, next sequence number sent and expected, of the first connection of a group."""
        sock = self.groups[group][0]
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        found = []
        for queue in (SEND_QUEUE, RECV_QUEUE):
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
            found.append(sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_QUIETLY)
        return [sock.getsockname()[1]] + found

    async def frames(self, device, frames, times=1):
        """Sends frames as they are (hexadecimal), all of them several times."""
        if device not in self.raw:
            self.raw[device] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self.raw[device].bind((device, 0))
        frames = [bytes.fromhex(frame) for frame in frames]
        for _ in range(times):
            for frame in frames:
                self.raw[device].send(frame)

    async def datagram(self, host, port, octets=100, answer=True, timeout=5):
        """A datagram; what comes back: its length, or the error that ICMP reports."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect((host, port))
        sock.send(os.urandom(octets))
        try:
            return len(await asyncio.wait_for(self.loop.sock_recv(sock, 65536), timeout)) if answer else None
        except (OSError, asyncio.TimeoutError) as error:
            return name_of(error)
        finally:
            sock.close()


async def main():
    limit = 32_768
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peer, reader = Peer(), asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        number, do = command.pop("number"), command.pop("do")
        try:
            answer = {"answer": await getattr(peer, do)(**command)}
        except Exception as error:
            answer = {"error": repr(error)}
        print("=%d %s" % (number, json.dumps(answer)), flush=True)


asyncio.run(main())
