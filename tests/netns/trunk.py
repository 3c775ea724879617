"""A switch of IEEE 802.1Q between a trunk and one access device for each VLAN: `trunk.py TRUNK DEVICE:VLAN...`

VLAN 0 is what has no tag. Frames pass with what their offload headers ask for, so that large ones stay large. It is a program because
some kernels know no VLANs. Needs root.
"""

import select
import socket
import struct
import sys

PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, PACKET_ADD_MEMBERSHIP = 8, 15, 23, 1
SOL_PACKET, PACKET_MR_PROMISC, SO_RCVBUFFORCE = 263, 1, 33
ETH_P_ALL, ETH_P_8021Q = 3, 0x8100
STATUS_VLAN_VALID = 1 << 4
VNET_HEADER = 10


def opened(name):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    for option in (PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING):
        sock.setsockopt(SOL_PACKET, option, 1)
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8x", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    sock.bind((name, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def received(sock):
    """Offload header, frame without tag, and the tag's VLAN (0 for none)."""
    data, extra, _, _ = sock.recvmsg(VNET_HEADER + 70000, 128)
    vlan = 0
    for level, kind, value in extra:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, tci = struct.unpack_from("=I", value)[0], struct.unpack_from("=H", value, 16)[0]
            vlan = tci & 0xFFF if status & STATUS_VLAN_VALID else 0
    return data[:VNET_HEADER], data[VNET_HEADER:], vlan


def tagged(header, frame, vlan):
    """With the tag in its place, and the header counting from behind it."""
    flags, gso_type, length, gso_size, start, offset = struct.unpack("=BBHHHH", header)
    header = struct.pack("=BBHHHH", flags, gso_type, length + 4 if gso_type else length, gso_size, start + 4 if flags & 1 else start, offset)
    return header + frame[:12] + struct.pack(">HH", ETH_P_8021Q, vlan) + frame[12:]


def main(trunk, *places):
    trunk = opened(trunk)
    access = {int(vlan): opened(name) for name, vlan in (place.rsplit(":", 1) for place in places)}
    vlan_of = {sock: vlan for vlan, sock in access.items()}
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in [trunk, *access.values()]}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            sock = by_fd[fd]
            for _ in range(64):
                try:
                    header, frame, vlan = received(sock)
                except OSError:
                    break  # Nothing more, or the device is down.
                if sock is trunk:
                    to, out = access.get(vlan), header + frame
                else:
                    to, out = trunk, header + frame if not vlan_of[sock] else tagged(header, frame, vlan_of[sock])
                try:
                    if to:
                        to.send(out)
                except OSError:
                    pass  # A switch drops what does not fit.


if __name__ == "__main__":
    main(*sys.argv[1:])
