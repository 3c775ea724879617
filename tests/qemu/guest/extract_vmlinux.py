"""Takes the ELF kernel out of a bzImage: extract_vmlinux.py VMLINUZ OUT (Linux Documentation/x86/boot.rst)."""
import gzip
import lzma
import struct
import subprocess
import sys


def main(source, target):
    image = open(source, "rb").read()
    assert image[0x202:0x206] == b"HdrS", "not a bzImage"
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four octets are the kernel's own length field, not part of the zstd frame.
        elf = subprocess.run(["zstd", "-dc"], input=payload[:-4], stdout=subprocess.PIPE).stdout
    elif payload.startswith(b"\x02\x21\x4c\x18"):
        elf = subprocess.run(["lz4", "-dc"], input=payload, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    elif payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        elf = gzip.decompress(payload)
    else:
        sys.exit("unknown compression of the kernel: %r" % payload[:6])
    assert elf.startswith(b"\x7fELF"), "the payload is no ELF file"
    open(target, "wb").write(elf)


main(*sys.argv[1:])
