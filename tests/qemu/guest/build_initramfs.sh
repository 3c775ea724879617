#!/bin/bash
# Builds the guest's initramfs: build_initramfs.sh KERNEL_DIR BUSYBOX OUT.cpio
#
# KERNEL_DIR is an unpacked linux-image package. The archive is not compressed: unpacking costs seconds under TCG.
# Programs of this host are copied with the libraries they load, so that guest and host run the same versions.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kernel=$1 busybox=$2 out=$3
programs="dash ip ethtool iperf3 tcpdump curl nginx dig traceroute tracepath"
modules="virtio_pci virtio_console virtio_net"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
libs=$root/lib/x86_64-linux-gnu
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,proc,sys,dev,tmp,run,etc,root,modules,lib64,usr/share/udhcpc,var/run} "$libs"
cp "$busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -m755 "$here/init" "$root/init"
install -m755 "$here/udhcpc.script" "$root/usr/share/udhcpc/default.script"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
: >"$root/etc/resolv.conf"
cp /etc/protocols /etc/services "$root/etc/" 2>/dev/null || true

for name in $programs; do
    path=$(readlink -f "$(PATH=$PATH:/usr/sbin:/sbin command -v "$name")")
    cp -L "$path" "$root/usr/bin/$name"
    for library in $(ldd "$path" | grep -o '/[^ )]*'); do
        cp -Ln "$library" "$libs/"
    done
done
# 30 MB of Unicode tables that dig's libraries want to be there, and never look at: an empty one of the same name.
for data in "$libs"/libicudata.so.*; do
    [ -e "$data" ] || continue
    rm "$data"
    echo "const char icudt${data##*.}_dat[64] = {0};" | gcc -x c -shared -fPIC -Wl,-soname,"${data##*/}" -o "$data" -
done
# Python for `tests/netns/peer.py`: the interpreter and no more of its library than that needs, at the same paths as here.
python=$(PATH=/usr/bin:$PATH python3 -I -S "$here/python_files.py" "$root/python.list")
for library in $(xargs -a "$root/python.list" ldd 2>/dev/null | grep -o ' /[^ )]*'); do
    [ -e "$libs/${library##*/}" ] || cp -L "$library" "$libs/"
done
tar -C / -cf - -T "$root/python.list" 2>/dev/null | tar -C "$root" -xf -
rm "$root/python.list"
ln -s "$python" "$root/usr/bin/python3"
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
rm -f "$libs"/ld-linux*
cp -L /lib/x86_64-linux-gnu/libnss_{dns,files}.so.2 "$libs/" 2>/dev/null || true

# Modules in the order in which they must be loaded: dependencies first, each once.
version=$(ls "$kernel/lib/modules")
tree=$kernel/lib/modules/$version
[ -e "$tree/modules.dep" ] || PATH=$PATH:/usr/sbin:/sbin depmod -b "$kernel" "$version"
: >"$root/modules.list"
add() {
    local file=${1##*/}
    grep -qx "$file" "$root/modules.list" && return
    cp "$tree/$1" "$root/modules/$file"
    echo "$file" >>"$root/modules.list"
}
for module in $modules; do
    line=$(grep -E "/$module\.ko:" "$tree/modules.dep") || continue # built into the kernel
    for dependency in $(echo "${line#*:}" | tr ' ' '\n' | tac); do
        add "$dependency"
    done
    add "${line%%:*}"
done
(cd "$root" && find . | cpio -o -H newc --quiet) >"$out"
