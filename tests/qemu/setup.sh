#!/bin/bash
# Prepares the test guest: a Debian kernel, and an initramfs with busybox and a few of this host's own programs.
#
#   tests/qemu/setup.sh [DIR]        DIR defaults to target/qemu-guest
#
# Needs the programs listed in tests/packages. Where QEMU is missing and this runs as root, QEMU 10 is installed from
# bookworm-backports (snapshots of type mapped-ram need 9.0, `reconnect-ms` 9.2). The lists of that suite live in an
# apt configuration of their own under DIR: the machine's own apt sources stay as they are.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/../../target/qemu-guest}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
stamp=$(cat "$here/setup.sh" "$here"/guest/* | sha256sum | cut -d' ' -f1)

qemu_is_new_enough() {
    local major
    major=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p')
    [ -n "$major" ] && [ "$major" -ge 10 ]
}

if qemu_is_new_enough && [ "$(cat "$dir/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

# The machine's own Debian mirror and its backports suite, in a private apt configuration.
private_apt() {
    local keyring mirror security
    keyring='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | awk '$2 == "bookworm" {print $1; exit}')
    security=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | awk '$2 == "bookworm-security" {print $1; exit}')
    mkdir -p "$dir"/apt/{lists,archives}/partial
    {
        echo "deb $keyring ${mirror:-http://deb.debian.org/debian} bookworm main"
        echo "deb $keyring ${mirror:-http://deb.debian.org/debian} bookworm-backports main"
        [ -z "$security" ] || echo "deb $keyring $security bookworm-security main"
    } >"$dir/apt/sources.list"
    cat >"$dir/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$dir/apt/lists";
Dir::Cache::archives "$dir/apt/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Lock::Timeout "300";
APT::Sandbox::User "root";
CONF
    export APT_CONFIG=$dir/apt/apt.conf
    apt-get update -qq
}

# The payload of a bzImage is the compressed ELF kernel; QEMU starts that through PVH, without firmware or decompression.
vmlinux() {
    python3 "$here/guest/extract_vmlinux.py" "$1" "$2"
}

private_apt
if ! qemu_is_new_enough; then
    [ "$(id -u)" = 0 ] || { echo "QEMU 10 is missing and only root may install it" >&2; exit 1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -t bookworm-backports qemu-system-x86 >/dev/null
fi

rm -rf "$dir/debs" "$dir/kernel" "$dir/busybox" && mkdir -p "$dir/debs"
version=$(apt-cache madison linux-image-cloud-amd64 | awk '$3 ~ /^6\.1\./ {print $3; exit}')
kernel=$(apt-cache depends "linux-image-cloud-amd64=$version" | awk '/Depends: linux-image/ {print $2; exit}')
(cd "$dir/debs" && apt-get download -qq "$kernel" busybox-static)
dpkg -x "$dir"/debs/linux-image-*.deb "$dir/kernel"
dpkg -x "$dir"/debs/busybox-static*.deb "$dir/busybox"
vmlinux "$dir"/kernel/boot/vmlinuz-* "$dir/vmlinux"
"$here/guest/build_initramfs.sh" "$dir/kernel" "$dir/busybox/bin/busybox" "$dir/initramfs.cpio"
rm -rf "$dir/debs" "$dir/kernel" "$dir/snapshot.mig" "$dir/snapshot.key"
echo "$stamp" >"$dir/stamp"
