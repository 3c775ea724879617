#!/usr/bin/env python3
"""Writes the first inputs of the fuzz targets into corpus/. Inputs that once failed stand beside them and stay.

The formats are those that the targets read: see targets.rs, vhost/src/fuzz.rs and switch/src/fuzz.rs.
"""
import pathlib
import struct

ROOT = pathlib.Path(__file__).parent / "corpus"


def write(target, name, data):
    folder = ROOT / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


# --- rings: feature choice, then operations -------------------------------------------------------------------------
def address(value):
    return bytes([0]) + struct.pack("<H", value)


def descriptor(ring, index, where, length, flags=0, following=None, indirect_table=False):
    choice = 1 | ring << 7 | (0x40 if indirect_table else 0) | (0x08 if following is None else 0)
    return bytes([0, choice, index, flags]) + address(where) + struct.pack("<H", length) + bytes([following or 0])


def offer(ring, *heads):
    return bytes([0, 4 | ring << 7, len(heads) - 1, *heads])


def frame(where, header_octet=0, flip=0):
    return bytes([0, 7 | header_octet << 3]) + address(where) + bytes([flip])


FORWARD, NOTIFY, RESTART_TX, RESTART_RX = b"\x08", b"\x0c", b"\x0d\x00", b"\x0d\x01"
buffers = b"".join(descriptor(1, i, 0x8000 + i * 0x200, 0x200, flags=2) for i in range(16)) + offer(1, *range(16))
for features in range(8):
    one = frame(0x4000) + descriptor(0, 0, 0x4000, 86) + offer(0, 0)
    write("rings", f"one-frame-features-{features}", bytes([features]) + buffers + one + FORWARD + NOTIFY)
chain = frame(0x4000) + descriptor(0, 0, 0x4000, 12, 1) + descriptor(0, 1, 0x400C, 40, 1) + descriptor(0, 2, 0x4034, 500)
write("rings", "chain", b"\0" + buffers + chain + offer(0, 0, 0, 0) + FORWARD + FORWARD)
indirect = (
    frame(0x4000)
    + descriptor(0, 0, 0x4000, 86, 1, indirect_table=True)
    + descriptor(0, 1, 0x5000, 900, indirect_table=True)
    + descriptor(0, 3, 0x3000, 32, 4)
)
write("rings", "indirect", b"\0" + buffers + indirect + offer(0, 3) + FORWARD)
write("rings", "loop", b"\0" + descriptor(0, 0, 0x4000, 86, 1, 1) + descriptor(0, 1, 0x4000, 9, 1, 0) + offer(0, 0) + FORWARD)
write("rings", "head-out-of-range", b"\0" + offer(0, 32) + FORWARD)
write("rings", "index-jumps", b"\0" + bytes([0, 0x16, 0xFF, 0x7F]) + FORWARD + RESTART_TX + FORWARD)
write("rings", "memory-shrinks", b"\0" + buffers + frame(0x4000) + descriptor(0, 0, 0x4000, 86) + offer(0, 0) + b"\x0e\xff\x00" + FORWARD)
write("rings", "restarts", b"\0" + buffers + chain + (offer(0, 0) + FORWARD + RESTART_TX + RESTART_RX) * 4)
write("rings", "another-thread-writes", b"\x80" + buffers + chain + (offer(0, 0, 0, 0) + FORWARD) * 20 + bytes(range(256)))

# --- messages: queue pairs and config space, then (request, flags, descriptors, shape, length, body) ---------------------
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE = 1, 2, 3, 4, 5, 6
NUM, ADDR, BASE, GET_BASE, KICK, CALL, ERR = 8, 9, 10, 11, 12, 13, 14
GET_PROTOCOL, SET_PROTOCOL, GET_QUEUE_NUM, ENABLE, GET_CONFIG, SET_CONFIG = 15, 16, 17, 18, 24, 25
RESET_DEVICE, GET_SLOTS, ADD_REGION, REMOVE_REGION = 34, 36, 37, 38
EVENT, MEMORY, NULL, SOCKET = 1, 3, 5, 6


def say(request, shape=0, body=b"", fds=0, flags=0):
    return bytes([request, flags, fds, shape, len(body)]) + body


def ring(index):
    return (
        say(NUM, 1, bytes([index, 32]))
        + say(BASE, 1, bytes([index, 0]))
        + say(ADDR, 2, bytes([index, *(3 * [0 if index % 2 else 64]), 0]))
        + say(CALL, 6, bytes([index]), EVENT)
        + say(KICK, 6, bytes([index]), EVENT)
    )


protocol = say(GET_PROTOCOL) + say(SET_PROTOCOL, 0, struct.pack("<Q", 0x1 | 0x2 | 0x8 | 0x2000 | 0x8000))
protocol_config = say(GET_PROTOCOL) + say(SET_PROTOCOL, 0, struct.pack("<Q", 0x208))
hello = say(GET_FEATURES) + protocol + say(SET_OWNER) + say(SET_FEATURES, 5)
table = say(SET_MEM_TABLE, 4, fds=MEMORY)
enable = say(ENABLE, 1, b"\x00\x01") + say(ENABLE, 1, b"\x01\x01")
start = hello + table + ring(0) + ring(1) + enable
write("messages", "a-guest-comes-and-goes", b"\0" + start + say(GET_BASE, 1, b"\0") + say(GET_BASE, 1, b"\1"))
write("messages", "slots", b"\0" + hello + say(GET_SLOTS) + say(ADD_REGION, 3, fds=MEMORY) + ring(0) + ring(1) + enable + say(REMOVE_REGION, 3))
write("messages", "log", b"\0" + start + say(SET_LOG_BASE, 7, fds=MEMORY) + say(SET_FEATURES, 5) + say(ADDR, 2, bytes(5)))
write("messages", "reset", b"\0" + start + say(RESET_DEVICE) + say(RESET_OWNER) + start)
write("messages", "enable-before-features", b"\1" + enable + say(ENABLE, 1, b"\2\0", flags=8) + start)
write("messages", "config", b"\x80" + protocol_config + say(GET_CONFIG, 0, struct.pack("<III", 0, 12, 0) + bytes(12)))
write("messages", "config-write", b"\x80" + protocol_config + say(SET_CONFIG, 0, struct.pack("<III", 0, 2, 0) + bytes(2)))
write("messages", "many-queues", b"\3" + hello + say(GET_QUEUE_NUM) + table + b"".join(map(ring, range(6))))
write("messages", "wrong-descriptors", b"\0" + hello + say(SET_MEM_TABLE, 4, fds=NULL) + say(CALL, 6, fds=SOCKET) + say(ERR, 6, fds=MEMORY | EVENT << 4))
write("messages", "memory-changes-under-rings", b"\0" + start + table * 3)
write("messages", "acknowledged", b"\0" + hello + say(SET_MEM_TABLE, 4, fds=MEMORY, flags=8) + say(NUM, 1, b"\0\x20", flags=8))
write("messages", "garbage", b"\0" + say(0xFF, 0, b"\xff" * 64))
write("messages", "half-a-message", b"\0" + say(0xFF, 0, bytes([18, 0, 0, 0, 1, 0])))

# --- packets, offload, local: choice, virtio-net header, frame -----------------------------------------------------------
V4, V6, TO_B = 0x1B, 0x0F, 0x20
ROUTER_TO_ME = bytes(12)


def v4(proto, payload):
    return ROUTER_TO_ME + b"\x08\x00\x45\0" + bytes(6) + bytes([64, proto]) + bytes(10) + payload


def v6(proto, payload):
    return ROUTER_TO_ME + b"\x86\xdd\x60\0\0\0\0\0" + bytes([proto, 64]) + bytes(32) + payload


def header(flags=0, gso=0, size=0, start=0, offset=0, plausible=False):
    return struct.pack("<BBHHHH", flags | (0x40 if plausible else 0), gso, 0, size, start, offset)


tcp = struct.pack(">HHIIBBHHH", 40000, 80, 1, 0, 0x50, 0x18, 512, 0, 0)
udp = struct.pack(">HHHH", 1000, 2000, 8 + 64, 0)
icmp = b"\x08\0\xf7\xff\0\0\0\0"
for target in ("packets", "offload", "local"):
    for name, choice, data in (
        ("tcp-v4", V4, v4(6, tcp + bytes(64))),
        ("tcp-v6", V6, v6(6, tcp + bytes(64))),
        ("udp-v4", V4, v4(17, udp + bytes(64))),
        ("udp-v6", V6, v6(17, udp + bytes(64))),
        ("icmp-v4", V4, v4(1, icmp)),
        ("icmp-v6", V6, v6(58, b"\x80\0" + bytes(6))),
        ("extensions-v6", V6, v6(0, b"\x2c\0" + bytes(6) + b"\x06\0\0\0" + bytes(4) + tcp)),
        ("fragment-v4", V4, v4(17, udp + bytes(64))[:20] + b"\x20\0" + v4(17, udp + bytes(64))[22:]),
    ):
        for to, bit in (("gateway", 0), ("guest", TO_B)):
            write(target, f"{name}-{to}", bytes([choice | bit]) + header() + data)
    write(target, "tso-v4", bytes([V4 | TO_B | 0x80]) + header(1, 1, 100, 34, 16) + v4(6, tcp + bytes(range(256)) * 3))
    write(target, "tso-v6", bytes([V6 | TO_B | 0x80]) + header(1, 4, 100, 54, 16) + v6(6, tcp + bytes(range(256)) * 3))
    write(target, "uso-v4", bytes([V4 | TO_B | 0x80]) + header(1, 5, 60, 34, 6) + v4(17, struct.pack(">HHHH", 1, 2, 648, 0) + bytes(640)))
    write(target, "partial-v4", bytes([V4 | TO_B | 0x80]) + header(1, 0, 0, 34, 16) + v4(6, tcp + bytes(99)))

ROUTER = bytes([2, 0, 0, 0, 0, 1])
ME, MY_V4, MY_V6 = bytes([2, 0, 0, 0, 0, 0x11]), bytes([192, 0, 2, 11]), bytes.fromhex("20010db8" + "00" * 10 + "0011")
GATEWAY_V4 = bytes([192, 0, 2, 1])
arp = b"\xff" * 6 + ME + b"\x08\x06\0\1\x08\0\6\4\0\1" + ME + MY_V4 + bytes(6) + GATEWAY_V4
write("local", "arp", b"\0" + header() + arp)
write("packets", "arp", b"\0" + header() + arp)


def checksum(octets):
    total = sum(struct.unpack(f">{len(octets) // 2}H", octets[: len(octets) // 2 * 2])) + (octets[-1] << 8 if len(octets) % 2 else 0)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def nd(source, destination, body):
    body = bytearray(body)
    body[2:4] = struct.pack(">H", checksum(source + destination + struct.pack(">IBBBB", len(body), 0, 0, 0, 58) + body))
    mac = b"\x33\x33" + destination[-4:]
    return mac + ME + b"\x86\xdd\x60\0\0\0" + struct.pack(">HBB", len(body), 58, 255) + source + destination + body


GATEWAY_V6 = bytes.fromhex("20010db8" + "00" * 10 + "0001")
solicited = bytes.fromhex("ff02" + "00" * 9 + "01ff000001")
routers = bytes.fromhex("ff02" + "00" * 13 + "02")
write("local", "neighbor", b"\0" + header() + nd(MY_V6, solicited, b"\x87" + bytes(7) + GATEWAY_V6 + b"\1\1" + ME))
free = bytes.fromhex("20010db8" + "00" * 4 + "dead000000ff0001")
write("local", "duplicate-address-detection", b"\0" + header() + nd(bytes(16), bytes.fromhex("ff02" + "00" * 9 + "01ffff0001"), b"\x87" + bytes(7) + free))
write("local", "router-solicitation", b"\0" + header() + nd(bytes(16), routers, b"\x85" + bytes(7)))
bootp = bytes([1, 1, 6, 0, 1, 2, 3, 4]) + bytes(20) + ME + bytes(202) + bytes([99, 130, 83, 99])
for kind, name in ((1, "discover"), (3, "request"), (4, "decline"), (8, "inform")):
    options = bytes([53, 1, kind, 50, 4]) + MY_V4 + bytes([61, 7, 1]) + ME + bytes([55, 3, 1, 3, 6, 57, 2, 5, 220, 255])
    dhcp = struct.pack(">HHHH", 68, 67, 8 + len(bootp) + len(options), 0) + bootp + options
    ip = bytearray(b"\x45\0" + struct.pack(">H", 20 + len(dhcp)) + bytes(4) + bytes([64, 17, 0, 0]) + bytes(4) + b"\xff" * 4)
    ip[10:12] = struct.pack(">H", checksum(bytes(ip)))
    write("local", f"dhcp-{name}", b"\0" + header() + b"\xff" * 6 + ME + b"\x08\0" + bytes(ip) + dhcp)
duid = bytes([0, 1, 0, 10, 0, 3, 0, 1]) + ME
ia_na = struct.pack(">HHIII", 3, 12, 1, 0, 0)
me_link = bytes.fromhex("fe80" + "00" * 6 + "000000fffe000011")
servers = bytes.fromhex("ff02" + "00" * 11 + "010002")
for kind, name in ((1, "solicit"), (3, "request"), (11, "information-request")):
    message = bytes([kind, 1, 2, 3]) + duid + ia_na + bytes([0, 6, 0, 4, 0, 23, 0, 24, 0, 14, 0, 0])
    message = bytearray(struct.pack(">HHHH", 546, 547, 8 + len(message), 0) + message)
    pseudo = me_link + servers + struct.pack(">IBBBB", len(message), 0, 0, 0, 17)
    message[6:8] = struct.pack(">H", checksum(pseudo + bytes(message)))
    ip = b"\x60\0\0\0" + struct.pack(">HBB", len(message), 17, 64) + me_link + servers
    write("local", f"dhcp6-{name}", b"\0" + header() + b"\x33\x33\0\1\0\2" + ME + b"\x86\xdd" + ip + bytes(message))

# --- yaml, rpc: texts ----------------------------------------------------------------------------------------------------
META = "apiVersion: hostweave.dev/v1alpha1\n"
write("yaml", "network", (META + "kind: Network\nmetadata: {name: n}\nspec:\n  cidrs: [10.1.0.0/24, 'fd00:1::/64']\n  mtu: 1500\n").encode())
write("yaml", "port", (META + "kind: Port\nmetadata:\n  name: p\n  namespace: shop\n  labels: {app: web}\nspec:\n  network: default\n  mac: 02:00:00:00:00:01\n  backend: {vhostUser: {mode: listen, queues: 2}}\n").encode())
write("yaml", "tap", (META + "kind: Port\nmetadata: {name: c}\nspec:\n  backend: {tap: {name: eth0, netns: /run/netns/c}}\n  addresses: [10.1.0.9]\n").encode())
write("yaml", "several", (META + "kind: Network\nmetadata: {name: n}\nspec: {cidrs: [10.0.0.0/8]}\n---\n" + META + "kind: Port\nmetadata: {name: p}\nspec: {network: n, addresses: [10.0.0.3]}\n").encode())
write("yaml", "list", (META + "kind: List\nitems:\n- kind: Port\n  metadata: {name: *a}\n").encode())
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {%s}}\nspec: {%s}\n"
CHECK = "hostweave.dev/health-check: '{type: http, path: /healthz, interval: 5s, status: 200-204}', hostweave.dev/port-range: 'a=80-90,b=all'"
write("yaml", "service", (SERVICE % (CHECK, "type: LoadBalancer, selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 1, protocol: UDP}]")).encode())
SLICE = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: web}}\naddressType: IPv6\n"
SLICE += "endpoints: [{addresses: ['2001:db8::1'], conditions: {ready: false, serving: true, terminating: true}, hints: {forZones: [{name: z}]}}]\n"
write("yaml", "endpoint-slice", (SERVICE % ("", "clusterIP: None, ports: [{port: 80}]") + "---\n" + SLICE + "ports: [{port: 80}]\n").encode())
write("yaml", "anchors", b"a: &a [1, 2]\nb: *a\n<<: {c: d}\n")
write("yaml", "deep", b"[" * 200)
for name, text in {
    "hello": '{"jsonrpc":"2.0","id":1,"method":"server.hello","params":{}}',
    "batch": '[{"jsonrpc":"2.0","id":"a","method":"object.list","params":{"kind":"Port"}},{"jsonrpc":"2.0","method":"status.get"}]',
    "apply": '{"jsonrpc":"2.0","id":2,"method":"object.apply","params":{"documents":[{"name":"f","text":"kind: Port"}],"dryRun":true}}',
    "wrong": '{"jsonrpc":"1.0","id":{},"method":7,"params":[1],"more":null}',
    "numbers": '{"jsonrpc":"2.0","id":1e400,"method":"x","params":{"a":-0,"b":18446744073709551616}}',
    "cut": '{"jsonrpc":"2.0","id":1,"meth',
    "lines": '{"jsonrpc":"2.0","id":1,"method":"events.subscribe"}\n\n{"jsonrpc":"2.0","id":1,"method":"port.get","params":{"name":"\\ud800"}}',
    "deep": "[" * 300,
}.items():
    write("rpc", name, text.encode())
