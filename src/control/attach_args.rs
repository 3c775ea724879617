//! `port attach-args`: the exact text that attaches a VMM to a port, with the shared memory that everybody forgets.

use std::fmt::Write;
use std::path::Path;

use hostweave_switch::MacAddr;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fabric::spec::SocketMode;

/// Entries of the guest's rings; QEMU's default of 256 is too few for bursts.
const RING_SIZE: u16 = 1024;

/// Which VMM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    /// QEMU's command line.
    Qemu,
    /// cloud-hypervisor's command line.
    CloudHypervisor,
    /// libvirt's domain XML.
    Libvirt,
    /// crosvm's command line.
    Crosvm,
}

/// What the text depends on.
pub struct Facts<'a> {
    /// `namespace/name`.
    pub name: &'a str,
    /// The socket.
    pub socket: &'a Path,
    /// Whether hostweave listens there.
    pub mode: SocketMode,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// Octets of IP packet.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u16,
    /// Whether the VMM is the target of a live migration.
    pub incoming: bool,
    /// Whether the port has user data, SSH keys or the like for the guest's first boot.
    pub seeded: bool,
}

/// What cloud-init reads in the serial number: where its NoCloud finds what the port says. `nocloud-net`, because older
/// releases look for `nocloud` on disks only; newer ones take both.
const SEED: &str = "ds=nocloud-net;s=http://169.254.169.254/nocloud/";

/// The text, ready to paste.
pub fn text(vmm: Vmm, facts: &Facts<'_>) -> String {
    match vmm {
        Vmm::Qemu => qemu(facts),
        Vmm::CloudHypervisor => cloud_hypervisor(facts),
        Vmm::Libvirt => libvirt(facts),
        Vmm::Crosvm => crosvm(facts),
    }
}

/// A word for the shell: quoted where the shell would read something into it.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A value among QEMU options: a comma is written twice (QEMU `docs/system/invocation`, "keyval").
fn option(text: &str) -> String {
    text.replace(',', ",,")
}

/// An identifier that QEMU takes: letters, digits, `-`, `.`, `_`, beginning with a letter.
fn identifier(name: &str) -> String {
    let rest: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '.' }).collect();
    format!("hw-{rest}")
}

fn qemu(facts: &Facts<'_>) -> String {
    let id = identifier(facts.name);
    let path = option(&facts.socket.display().to_string());
    let chardev = match facts.mode {
        // reconnect: the guest goes on when the daemon is restarted.
        SocketMode::Listen => format!("socket,id={id},path={path},reconnect=1"),
        SocketMode::Connect => format!("socket,id={id},path={path},server=on,wait=off"),
    };
    let mut netdev = format!("vhost-user,id={id}-net,chardev={id}");
    let mut device = format!(
        "virtio-net-pci,netdev={id}-net,mac={},host_mtu={},rx_queue_size={RING_SIZE},tx_queue_size={RING_SIZE}",
        facts.mac, facts.mtu
    );
    if facts.queues > 1 {
        // One vector for each ring, one for configuration changes, one for the control queue.
        let _ = write!(netdev, ",queues={}", facts.queues);
        let _ = write!(device, ",mq=on,vectors={}", 2 * facts.queues + 2);
    }
    let mut lines = vec![
        "-object memory-backend-memfd,id=hw-mem,size=512M,share=on".to_owned(),
        "-machine memory-backend=hw-mem -m 512M".to_owned(),
        format!("-chardev {}", word(&chardev)),
        format!("-netdev {netdev}"),
        format!("-device {device}"),
    ];
    if facts.seeded {
        lines.push(format!("-smbios {}", word(&format!("type=1,serial={}", option(SEED)))));
    }
    if facts.incoming {
        lines.push("-incoming defer".to_owned());
    }
    lines.join(" \\\n") + "\n"
}

fn cloud_hypervisor(facts: &Facts<'_>) -> String {
    let mut net = format!(
        "mac={},mtu={},vhost_user=true,socket={},num_queues={},queue_size={RING_SIZE}",
        facts.mac,
        facts.mtu,
        facts.socket.display(),
        // cloud-hypervisor counts rings, not pairs.
        2 * facts.queues,
    );
    if facts.mode == SocketMode::Connect {
        net.push_str(",vhost_mode=server");
    }
    let cpus = facts.queues.max(1);
    format!("--cpus boot={cpus} \\\n--memory size=512M,shared=on \\\n--net {}\n", word(&net))
}

fn libvirt(facts: &Facts<'_>) -> String {
    let (mode, reconnect) = match facts.mode {
        SocketMode::Listen => ("client", "\n    <reconnect enabled='yes' timeout='1'/>\n  </source>"),
        SocketMode::Connect => ("server", "</source>"),
    };
    let path = xml(&facts.socket.display().to_string());
    let queues = if facts.queues > 1 { format!(" queues='{}'", facts.queues) } else { String::new() };
    format!(
        "<!-- inside <domain> -->\n\
         <memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n\
         <!-- inside <devices> -->\n\
         <interface type='vhostuser'>\n  <mac address='{mac}'/>\n  <source type='unix' path='{path}' mode='{mode}'>{reconnect}\n  \
         <model type='virtio'/>\n  <mtu size='{mtu}'/>\n  \
         <driver{queues} rx_queue_size='{RING_SIZE}' tx_queue_size='{RING_SIZE}'/>\n</interface>\n",
        mac = facts.mac,
        mtu = facts.mtu,
    )
}

/// Text in an XML attribute.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

fn crosvm(facts: &Facts<'_>) -> String {
    let socket = facts.socket.display().to_string();
    // crosvm shares guest memory by itself, and takes MAC and MTU from the device's configuration space.
    match facts.mode {
        SocketMode::Listen => format!("--vhost-user {}\n", word(&format!("net,socket={socket}"))),
        SocketMode::Connect => {
            format!("# crosvm only connects: use mode listen\n--vhost-user {}\n", word(&format!("net,socket={socket}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(mode: SocketMode, queues: u16) -> Facts<'static> {
        Facts {
            name: "shop/web-0",
            socket: Path::new("/run/hostweave/ports/shop.web-0.sock"),
            mode,
            mac: MacAddr([2, 0, 0x0a, 0x40, 0, 0x0a]),
            mtu: 1500,
            queues,
            incoming: false,
            seeded: false,
        }
    }

    #[test]
    fn qemu_has_shared_memory_mtu_and_ring_size() {
        assert_eq!(
            text(Vmm::Qemu, &facts(SocketMode::Listen, 1)),
            "-object memory-backend-memfd,id=hw-mem,size=512M,share=on \\\n\
             -machine memory-backend=hw-mem -m 512M \\\n\
             -chardev socket,id=hw-shop.web-0,path=/run/hostweave/ports/shop.web-0.sock,reconnect=1 \\\n\
             -netdev vhost-user,id=hw-shop.web-0-net,chardev=hw-shop.web-0 \\\n\
             -device virtio-net-pci,netdev=hw-shop.web-0-net,mac=02:00:0a:40:00:0a,host_mtu=1500,rx_queue_size=1024,tx_queue_size=1024\n"
        );
        let text = text(Vmm::Qemu, &Facts { incoming: true, ..facts(SocketMode::Connect, 4) });
        assert!(text.contains("server=on,wait=off") && !text.contains("reconnect"), "{text}");
        assert!(text.contains("queues=4") && text.contains("mq=on,vectors=10"), "{text}");
        assert!(text.contains("-incoming defer"), "{text}");
        let seeded = super::text(Vmm::Qemu, &Facts { seeded: true, ..facts(SocketMode::Listen, 1) });
        let smbios = "-smbios 'type=1,serial=ds=nocloud-net;s=http://169.254.169.254/nocloud/'";
        assert!(seeded.contains(smbios), "{seeded}");
    }

    #[test]
    fn others_share_memory_too() {
        let text_of = |vmm, mode| text(vmm, &facts(mode, 2));
        let ch = text_of(Vmm::CloudHypervisor, SocketMode::Connect);
        assert!(ch.contains("shared=on") && ch.contains("num_queues=4") && ch.contains("vhost_mode=server"), "{ch}");
        let libvirt = text_of(Vmm::Libvirt, SocketMode::Listen);
        assert!(libvirt.contains("<access mode='shared'/>") && libvirt.contains("mode='client'"), "{libvirt}");
        assert!(libvirt.contains("queues='2'") && libvirt.contains("rx_queue_size='1024'"), "{libvirt}");
        assert!(text_of(Vmm::Crosvm, SocketMode::Listen).starts_with("--vhost-user net,socket=/run"));
    }

    #[test]
    fn paths_are_quoted_for_their_reader() {
        let odd = Facts { socket: Path::new("/tmp/a b,c'd"), ..facts(SocketMode::Listen, 1) };
        assert!(text(Vmm::Qemu, &odd).contains(r"'socket,id=hw-shop.web-0,path=/tmp/a b,,c'\''d,reconnect=1'"));
        assert!(text(Vmm::Libvirt, &odd).contains("path='/tmp/a b,c&apos;d'"));
    }
}
