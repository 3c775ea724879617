"""Frames made and read by hand, and pcap files. Independent of the switch's own wire module, so that it can judge.

Test frames are UDP over IPv4 or IPv6 whose payload starts with a magic word and a sequence number; the rest is
pseudo-random, made from that number, so that the receiver can tell which octet is wrong.
"""

import ipaddress
import random
import struct

MAGIC = b"hwtest01"
_LINKTYPE_ETHERNET = 1


def checksum(data):
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(">%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac_bytes(text):
    return bytes(int(part, 16) for part in text.split(":"))


def frame(length, sequence, src_mac, dst_mac, src, dst, src_port=4000, dst_port=5000, hop_limit=64):
    """A UDP frame of `length` octets from Ethernet header to last octet of payload (no FCS)."""
    src, dst = ipaddress.ip_address(src), ipaddress.ip_address(dst)
    header = 14 + (20 if src.version == 4 else 40) + 8
    assert length >= header + len(MAGIC) or src.version == 6, "no room for the magic word"
    body = MAGIC + struct.pack(">Q", sequence) + random.Random(sequence).randbytes(max(0, length))
    body = body[: max(length - header, len(MAGIC) + 8)]
    udp_length = 8 + len(body)
    pseudo = src.packed + dst.packed + struct.pack(">II", udp_length, 17)
    udp = struct.pack(">HHHH", src_port, dst_port, udp_length, 0)
    # RFC 768: a sum of zero is sent as all ones.
    udp = udp[:6] + struct.pack(">H", checksum(pseudo + udp + body) or 0xFFFF)
    if src.version == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + udp_length, sequence & 0xFFFF, 0x4000, hop_limit, 17, 0)
        ip += src.packed + dst.packed
        ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
        ethertype = 0x0800
    else:
        ip = struct.pack(">IHBB", 6 << 28, udp_length, 17, hop_limit) + src.packed + dst.packed
        ethertype = 0x86DD
    return mac_bytes(dst_mac) + mac_bytes(src_mac) + struct.pack(">H", ethertype) + ip + udp + body


FIN, SYN, RST, ACK = 1, 2, 4, 16


def ip_frame(src_mac, dst_mac, src, dst, protocol, payload, identification=0, fragment=0):
    """An IP packet in a frame. `fragment` is the second word of RFC 791's header behind the identification: flags and offset."""
    src, dst = ipaddress.ip_address(src), ipaddress.ip_address(dst)
    if src.version == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), identification & 0xFFFF, fragment, 64, protocol, 0)
        ip += src.packed + dst.packed
        ip, ethertype = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:], 0x0800
    else:
        ip = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + src.packed + dst.packed
        ethertype = 0x86DD
    return mac_bytes(dst_mac) + mac_bytes(src_mac) + struct.pack(">H", ethertype) + ip + payload


def with_checksum(src, dst, protocol, payload, at):
    """A transport message whose checksum stands at `at`, completed (RFC 793, 768, 4443; of ICMP without pseudo-header)."""
    src, dst = ipaddress.ip_address(src), ipaddress.ip_address(dst)
    pseudo = b"" if protocol == 1 else src.packed + dst.packed + struct.pack(">II", len(payload), protocol)
    return payload[:at] + struct.pack(">H", checksum(pseudo + payload) or 0xFFFF) + payload[at + 2:]


def tcp_frame(src_mac, dst_mac, src, dst, ports, sequence, acknowledgement, flags, payload=b""):
    """A TCP segment without options."""
    header = struct.pack(">HHIIBBHHH", *ports, sequence & 0xFFFFFFFF, acknowledgement & 0xFFFFFFFF, 0x50, flags, 500, 0, 0)
    return ip_frame(src_mac, dst_mac, src, dst, 6, with_checksum(src, dst, 6, header + payload, 16))


def unreachable_frame(src_mac, dst_mac, src, dst, quoted):
    """Port unreachable that quotes an IP packet (RFC 792, RFC 4443)."""
    v4 = ipaddress.ip_address(src).version == 4
    protocol, message = (1, b"\3\3") if v4 else (58, b"\1\4")
    message = with_checksum(src, dst, protocol, message + bytes(6) + quoted[:500], 2)
    return ip_frame(src_mac, dst_mac, src, dst, protocol, message)


def udp_fragments(src_mac, dst_mac, src, dst, ports, payload, identification, cuts):
    """A UDP datagram in fragments `(start, end)` of its IP payload; each but the one that reaches the end has more to come."""
    datagram = struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload
    datagram = with_checksum(src, dst, 17, datagram, 6)
    v4, frames = ipaddress.ip_address(src).version == 4, []
    for start, end in cuts:
        more = end < len(datagram)
        part = datagram[start:end]
        if v4:
            frames.append(ip_frame(src_mac, dst_mac, src, dst, 17, part, identification, (0x2000 if more else 0) | start // 8))
        else:
            header = struct.pack(">BBHI", 17, 0, start | more, identification)
            frames.append(ip_frame(src_mac, dst_mac, src, dst, 44, header + part))
    return frames


def sequence_of(data):
    """The sequence number of a test frame; `None` for any other frame."""
    at = data.find(MAGIC, 14, 14 + 40 + 8 + len(MAGIC))
    return struct.unpack_from(">Q", data, at + len(MAGIC))[0] if at > 0 and len(data) >= at + 16 else None


def source_port(data):
    """The UDP source port of a test frame."""
    return struct.unpack_from(">H", data, 14 + (20 if data[12:14] == b"\x08\x00" else 40))[0]


def routed(data, hops):
    """What is left to compare after `hops` routers: no MAC addresses, hop limit as it was, IPv4 header sum checked and cut."""
    ethertype = data[12:14]
    ip = bytearray(data[14:])
    if ethertype == b"\x08\x00":
        assert checksum(bytes(ip[:20])) == 0, "the IPv4 header checksum is wrong"
        ip[8] = (ip[8] + hops) & 0xFF
        ip[10:12] = b"\0\0"
    else:
        ip[7] = (ip[7] + hops) & 0xFF
    return ethertype + bytes(ip)


class Seen:
    """A frame taken apart: `src` and `dst` are addresses as text (of ARP: sender and target), `protocol` is the last header's,
    `body` what follows the IP headers. Non-first fragments have `protocol` None."""

    def __init__(self, data):
        self.data, self.src, self.dst, self.protocol, self.body, self.ttl = data, None, None, None, b"", None
        self.dst_mac, self.src_mac = (":".join("%02x" % octet for octet in data[at:at + 6]) for at in (0, 6))
        self.ethertype = struct.unpack_from(">H", data, 12)[0]
        packet = data[14:]
        if self.ethertype == 0x0806:
            self.operation, = struct.unpack_from(">H", packet, 6)
            self.src, self.dst = str(ipaddress.ip_address(packet[14:18])), str(ipaddress.ip_address(packet[24:28]))
        elif self.ethertype == 0x0800:
            self.src, self.dst = str(ipaddress.ip_address(packet[12:16])), str(ipaddress.ip_address(packet[16:20]))
            self.ttl = packet[8]
            if not struct.unpack_from(">H", packet, 6)[0] & 0x1FFF:
                self.protocol, self.body = packet[9], packet[(packet[0] & 15) * 4:]
        elif self.ethertype == 0x86DD:
            self.src, self.dst = str(ipaddress.ip_address(packet[8:24])), str(ipaddress.ip_address(packet[24:40]))
            self.protocol, self.body, self.ttl = packet[6], packet[40:], packet[7]
            while self.protocol in (0, 43, 44, 60):
                if self.protocol == 44 and struct.unpack_from(">H", self.body, 2)[0] & 0xFFF8:
                    self.protocol = None
                    break
                self.protocol, self.body = self.body[0], self.body[8 + (8 * self.body[1] if self.protocol != 44 else 0):]

    def __repr__(self):
        return "%s > %s %04x %s > %s protocol %s %s" % (
            self.src_mac, self.dst_mac, self.ethertype, self.src, self.dst, self.protocol, self.body[:40].hex())

    @property
    def icmp(self):
        """Type and code of ICMP or ICMPv6."""
        return (self.body[0], self.body[1]) if self.protocol in (1, 58) and len(self.body) > 1 else None

    @property
    def neighbour(self):
        """What a neighbour solicitation (135) or advertisement (136) is about: type and target."""
        if self.protocol == 58 and self.body[:1] in (b"\x87", b"\x88") and len(self.body) >= 24:
            return self.body[0], str(ipaddress.ip_address(self.body[8:24]))

    @property
    def tcp_flags(self):
        return self.body[13] if self.protocol == 6 and len(self.body) > 13 else 0

    @property
    def ports(self):
        return struct.unpack_from(">HH", self.body) if self.protocol in (6, 17) and len(self.body) >= 4 else None


def write_pcap(path, frames):
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, _LINKTYPE_ETHERNET))
        for data in frames:
            out.write(struct.pack("<IIII", 0, 0, len(data), len(data)) + data)


def read_pcap(path, whole=True):
    """All complete frames of a pcap file that may still be written to; with `whole`, none was cut when it was captured."""
    data = open(path, "rb").read()
    frames, at = [], 24
    while at + 16 <= len(data):
        captured, original = struct.unpack_from("<II", data, at + 8)
        if at + 16 + captured > len(data):
            break
        assert captured == original or not whole, "the frame was cut when it was captured"
        frames.append(data[at + 16 : at + 16 + captured])
        at += 16 + captured
    return frames
