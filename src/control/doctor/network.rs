//! Whether what objects ask for works: the uplink and its routers, pools, MTUs, what guests negotiated.

use hostweave_uplink::netlink::interfaces::Held;
use hostweave_uplink::netlink::offloads::{self, Offloads};
use ipnet::IpNet;

use super::super::controller::{Controller, Snapshot};
use super::super::uplink_view;
use super::{Finding, pools, tap};
use crate::config::outside::{attachments, egress_of, nat_pools};
use crate::fabric::spec::{PortStatus, UplinkDriver, UplinkSpec};
use crate::fabric::uplink::UplinkStatus;
use crate::fabric::uplink::owned::cure;

/// Ports that a finding names.
const PORTS_NAMED_MAX: usize = 5;

/// virtio-net features (VIRTIO 1.3 §5.1.3): the guest takes partial checksums and large frames.
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO: u64 = 1 << 7 | 1 << 8;
const HOST_TSO: u64 = 1 << 11 | 1 << 12;

/// Looks at everything that concerns the network.
pub fn examine(controller: &Controller, snapshot: &Snapshot) -> Vec<Finding> {
    let fabric = &controller.parts.fabric;
    let mut findings = Vec::new();
    let status = fabric.uplink_status();
    findings.extend(wants_out(snapshot, status.is_some()));
    if let Some(status) = &status {
        findings.push(uplink(status));
        findings.extend(missed(status));
        findings.extend(gateways(snapshot, status));
        findings.extend(mtu_asked(status));
        findings.extend(mtu(snapshot, status));
        findings.extend(conflicts(status, &snapshot.desired.public));
        let name = &status.spec.interface;
        findings.extend(offloads::of(name).ok().map(|has| offload(name, has)));
        if status.spec.driver == UplinkDriver::Tap {
            findings.push(tap::examine(&snapshot.set, status));
        }
    }
    findings.extend(pools::examine(controller, snapshot));
    findings.extend(guests(&fabric.port_statuses()));
    let problems = snapshot.problems.iter().map(|problem| {
        let object = problem.object.as_deref().unwrap_or("objects");
        let help = problem.help.clone().unwrap_or_else(|| "change the object".to_owned());
        Finding::error("objects", format!("{object}: {}", problem.message), help)
    });
    findings.extend(problems);
    findings
}

/// What would leave, and cannot.
fn wants_out(snapshot: &Snapshot, uplink: bool) -> Option<Finding> {
    if uplink {
        return None;
    }
    let set = &snapshot.set;
    let pools = nat_pools(set).next().map(|(pool, _)| pool.key.to_string());
    let attached = attachments(set).next().map(|attachment| attachment.service_key().to_string());
    let wants = pools.or(attached)?;
    let message = format!("{wants} needs an uplink, and none is configured: ports reach only each other");
    Some(Finding::error(
        "uplink",
        message,
        "write HostConfig.spec.uplink. See: hostweave explain HostConfig.spec.uplink",
    ))
}

fn uplink(status: &UplinkStatus) -> Finding {
    let name = &status.spec.interface;
    if status.link {
        return Finding::ok("uplink", format!("{name} passes frames, MTU {}", status.mtu));
    }
    let reason = status.reason.as_deref().unwrap_or("it is down");
    let help = format!("look at: ip -d link show {name}");
    Finding::error("uplink", format!("nothing passes {name}: {reason}"), help)
}

/// Frames that came when no worker had time for them.
fn missed(status: &UplinkStatus) -> Option<Finding> {
    (status.missed > 0).then(|| {
        let (count, name) = (status.missed, &status.spec.interface);
        let message = format!("the kernel has dropped {count} frames from outside at {name} that no worker took in time");
        let help = "if uplink get shows more and more of them: give the workers CPUs of their own, or add some (HostConfig.spec.workers)";
        Finding::note("uplink", message, help)
    })
}

fn gateways(snapshot: &Snapshot, status: &UplinkStatus) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ipv4 in [true, false] {
        let hops: Vec<_> = status.gateways.iter().filter(|hop| hop.address.is_ipv4() == ipv4).collect();
        if hops.is_empty() {
            findings.extend(no_gateway(&status.spec, ipv4, uplink_view::leaves(snapshot, status, ipv4)));
        }
        for hop in hops {
            let address = hop.address;
            findings.push(match hop.mac {
                Some(mac) => Finding::ok("gateway", format!("{address} is at {mac}")),
                None if !status.link => Finding::error(
                    "gateway",
                    format!("{address} cannot be asked: the uplink is down"),
                    "see uplink above",
                ),
                None => {
                    let asked = if ipv4 { "ARP" } else { "neighbour discovery" };
                    let message = format!("{address} does not answer {asked} at {}", status.spec.interface);
                    let help = "is it the right interface, VLAN and address? From another host: ping the router";
                    Finding::error("gateway", message, help)
                }
            });
        }
    }
    findings
}

/// Where there is no router of a family.
fn no_gateway(spec: &UplinkSpec, ipv4: bool, wanted: bool) -> Option<Finding> {
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let subnet =
        spec.addresses.iter().find(|net| net.addr().is_ipv4() == ipv4 && net.prefix_len() < net.max_prefix_len());
    let help = "add one to HostConfig.spec.uplink.gateways";
    match subnet.map(IpNet::trunc) {
        None if wanted => {
            let message = format!("{family} packets would leave, and there is no {family} router");
            Some(Finding::error("gateway", message, help))
        }
        Some(net) => {
            let message = format!("there is no {family} router: nobody beyond {net} is reached");
            Some(Finding::warning("gateway", message, help))
        }
        None => None,
    }
}

/// An MTU that the interface does not have.
fn mtu_asked(status: &UplinkStatus) -> Option<Finding> {
    let asked = status.spec.mtu.filter(|asked| status.link && *asked > status.mtu)?;
    let (name, has) = (&status.spec.interface, status.mtu);
    let message =
        format!("HostConfig.spec.uplink.mtu {asked} asked, {name} has {has}: packets have {has} octets at most");
    let help = format!("ip link set dev {name} mtu {asked}, if the network beyond takes as much; or write mtu: {has}");
    Some(Finding::warning("mtu", message, help))
}

/// Guests that send larger packets than the uplink takes learn it by ICMP, packet by packet.
fn mtu(snapshot: &Snapshot, status: &UplinkStatus) -> Vec<Finding> {
    let mut findings = Vec::new();
    let set = &snapshot.set;
    for (name, network) in set.networks() {
        let leaves = [true, false].iter().any(|ipv4| egress_of(set, name, network, *ipv4).leaves());
        let attached = attachments(set)
            .any(|attachment| set.ports().any(|(key, _, port)| *key == attachment.port.key && port.network == name));
        if (leaves || attached) && network.mtu > status.mtu {
            let message = format!(
                "network {name} has MTU {}, and the uplink {}: guests learn of it by ICMP, which some block",
                network.mtu, status.mtu
            );
            let help = format!("write mtu: {} in Network {name}; guests learn it from virtio, DHCP and RA", status.mtu);
            findings.push(Finding::warning("mtu", message, help));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("mtu", format!("every packet of a network fits the uplink's MTU {}", status.mtu)));
    }
    findings
}

/// Somebody else who claims an address of ours, or the kernel that holds one, be it one of a `public` range that nobody has yet.
fn conflicts(status: &UplinkStatus, public: &[IpNet]) -> Vec<Finding> {
    let claimed = status.contested.iter().map(|(address, mac)| {
        let help = "two hosts have one address: take it away from one of them";
        Finding::error("address", format!("{mac} at the uplink claims our address {address}"), help)
    });
    let mut findings: Vec<Finding> = claimed.collect();
    for (address, mac) in &status.lost {
        let message = format!("{address} is not used: {mac} at the uplink has it");
        let help = "take it away from one of the two; it is used as soon as nobody else answers. Where a router answers for every \
                    address (proxy ARP): HostConfig.spec.uplink.addressConflicts: ignore";
        findings.push(Finding::error("address", message, help));
    }
    let held = hostweave_uplink::netlink::interfaces::addresses().unwrap_or_default();
    let ours = |held: &&Held| {
        status.owned.iter().any(|(address, _)| *address == held.address)
            || public.iter().any(|net| net.contains(&held.address))
    };
    for one in held.iter().filter(ours) {
        let message = format!("the kernel holds {} on {}: both answer for it", one.address, one.interface);
        findings.push(Finding::error("address", message, cure(one, &held, status.spec.driver)));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("address", format!("nobody else claims one of {} addresses", status.owned.len())));
    }
    findings
}

/// What the uplink's own device leaves to the CPU. Frames of 64 KiB are cut, and checksums filled in, in front of a device that cannot.
fn offload(name: &str, has: Offloads) -> Finding {
    let off = [
        (has.tx_checksum, "tx", "checksums are filled in by the CPU"),
        (has.scatter_gather, "sg", "frames are copied together"),
        (has.tso, "tso", "large TCP segments are cut by the CPU"),
        (has.gro, "gro", "what comes in is not put together to large segments"),
    ];
    let off: Vec<_> = off.iter().filter(|(on, ..)| !on).collect();
    if off.is_empty() {
        return Finding::ok("offload", format!("{name} takes large frames and partial checksums"));
    }
    let what: Vec<&str> = off.iter().map(|(.., what)| *what).collect();
    let switches: Vec<String> = off.iter().map(|(_, switch, _)| format!("{switch} on")).collect();
    let message = format!("offload mismatch at the uplink {name}: {}", what.join("; "));
    Finding::note("offload", message, format!("ethtool -K {name} {}", switches.join(" ")))
}

/// What guests negotiated that costs the host, and where their memory lies.
fn guests(ports: &[(String, PortStatus)]) -> Vec<Finding> {
    let active = |status: &PortStatus| status.attachments.iter().find(|one| one.active && one.queue_pairs > 0).cloned();
    let guests: Vec<_> = ports.iter().filter_map(|(name, status)| Some((name.as_str(), active(status)?))).collect();
    let mut findings = Vec::new();
    let lacking = |wanted: &dyn Fn(u64) -> bool| -> Vec<&str> {
        guests.iter().filter(|(_, one)| one.features != 0 && !wanted(one.features)).map(|(name, _)| *name).collect()
    };
    let small = lacking(&|features| features & GUEST_TSO != 0 && features & GUEST_CSUM != 0);
    if !small.is_empty() {
        let message =
            format!("guests of {} take no large frames: they are cut into segments in software", named(&small));
        let help = "offload mismatch: in the guest ethtool -K DEV gro on rx on; in the VMM guest_csum=on,guest_tso4=on";
        findings.push(Finding::note("offload", message, help));
    }
    let senders = lacking(&|features| features & HOST_TSO != 0);
    if !senders.is_empty() {
        let message = format!("guests of {} send no large frames: each segment costs a whole packet", named(&senders));
        let help = "offload mismatch: in the guest ethtool -K DEV tx on tso on; in the VMM host_tso4=on,host_tso6=on";
        findings.push(Finding::note("offload", message, help));
    }
    let in_small_pages: Vec<&str> =
        guests.iter().filter(|(_, one)| matches!(one.memory, Some((_, false)))).map(|(name, _)| *name).collect();
    if !in_small_pages.is_empty() {
        let message = format!("memory of the guests of {} is in small pages", named(&in_small_pages));
        let help = "QEMU: memory-backend-memfd,hugetlb=on,share=on; cloud-hypervisor: --memory hugepages=on,shared=on";
        findings.push(Finding::note("hugepages", message, help));
    }
    findings
}

fn named(ports: &[&str]) -> String {
    let more = ports.len().saturating_sub(PORTS_NAMED_MAX);
    let names = ports.iter().take(PORTS_NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::doctor::Severity;
    use crate::fabric::spec::AttachmentStatus;

    #[test]
    fn each_offload_that_is_off_is_named_with_its_switch() {
        let all = Offloads { tx_checksum: true, scatter_gather: true, tso: true, gro: true };
        let good = offload("eth1", all);
        assert_eq!((good.severity, good.help.as_deref()), (Severity::Ok, None), "{good:?}");
        for (has, words, command) in [
            (Offloads { tx_checksum: false, ..all }, "checksums are filled in", "ethtool -K eth1 tx on"),
            (Offloads { scatter_gather: false, ..all }, "copied together", "ethtool -K eth1 sg on"),
            (Offloads { tso: false, ..all }, "TCP segments are cut", "ethtool -K eth1 tso on"),
            (Offloads { gro: false, ..all }, "not put together", "ethtool -K eth1 gro on"),
            (
                Offloads { tso: false, gro: false, ..all },
                "cut by the CPU; what comes in",
                "ethtool -K eth1 tso on gro on",
            ),
        ] {
            let found = offload("eth1", has);
            assert_eq!((found.check.as_str(), found.severity), ("offload", Severity::Note), "{found:?}");
            assert!(found.message.contains(words) && found.message.contains("eth1"), "{found:?}");
            assert_eq!(found.help.as_deref(), Some(command));
        }
    }

    /// A port whose guest negotiated these features and has its memory in such pages.
    fn guest(name: &str, features: u64, huge: bool) -> (String, PortStatus) {
        let attachment = AttachmentStatus {
            active: true,
            queue_pairs: 1,
            features,
            memory: Some((1 << 30, huge)),
            ..Default::default()
        };
        (name.to_owned(), PortStatus { attachments: vec![attachment], ..PortStatus::default() })
    }

    #[test]
    fn guests_that_cost_more_than_they_must_are_named() {
        let good = GUEST_CSUM | GUEST_TSO | HOST_TSO;
        let ipv6_only = GUEST_CSUM | 1 << 8 | 1 << 12;
        for (features, huge, expected) in [
            (good, true, &[][..]),
            (ipv6_only, true, &[]),
            (good & !GUEST_CSUM, true, &["take no large frames"]),
            (good & !GUEST_TSO, true, &["take no large frames"]),
            (good & !HOST_TSO, true, &["send no large frames"]),
            (good, false, &["small pages"]),
            (1 << 32, false, &["take no large frames", "send no large frames", "small pages"]),
            // Nothing is negotiated yet.
            (0, true, &[]),
        ] {
            let found = guests(&[guest("shop/good", good, true), guest("shop/other", features, huge)]);
            let said = |finding: &Finding, words: &str| finding.message.contains(words);
            assert!(
                found.len() == expected.len() && found.iter().zip(expected).all(|(one, words)| said(one, words)),
                "{found:?}"
            );
            for finding in &found {
                assert!(finding.severity == Severity::Note && finding.help.is_some(), "{finding:?}");
                assert!(said(finding, "shop/other") && !said(finding, "shop/good"), "{finding:?}");
            }
        }
        // Containers have no guest, and an attachment that is not used does not count.
        let mut others = [guest("shop/tap", 1 << 32, false), guest("shop/idle", 1 << 32, false)];
        others[0].1.attachments[0].queue_pairs = 0;
        others[1].1.attachments[0].active = false;
        assert_eq!(guests(&others), []);
        let many: Vec<_> = (0..7).map(|number| guest(&format!("shop/{number}"), good, false)).collect();
        let found = guests(&many);
        assert!(found[0].message.contains("shop/0, shop/1, shop/2, shop/3, shop/4 and 2 more"), "{found:?}");
    }

    #[test]
    fn an_mtu_that_the_interface_does_not_have_is_a_warning_with_the_command() {
        let status = |asked, mtu, link| UplinkStatus {
            spec: UplinkSpec {
                interface: "eth1".to_owned(),
                driver: UplinkDriver::AfXdp,
                mtu: asked,
                ..UplinkSpec::default()
            },
            link,
            mtu,
            ..UplinkStatus::default()
        };
        let warning = mtu_asked(&status(Some(9000), 1500, true)).unwrap();
        assert_eq!((warning.check.as_str(), warning.severity), ("mtu", Severity::Warning));
        assert!(warning.message.contains("mtu 9000 asked, eth1 has 1500"), "{warning:?}");
        let help = warning.help.unwrap();
        assert!(help.contains("ip link set dev eth1 mtu 9000") && help.contains("mtu: 1500"), "{help}");
        // As it is, less than it has, nothing asked, no interface.
        for (asked, link) in [(Some(1500), true), (Some(1280), true), (None, true), (Some(9000), false)] {
            assert_eq!(mtu_asked(&status(asked, asked.unwrap_or(1500).min(1500), link)), None);
        }
    }

    #[test]
    fn a_family_without_router_is_an_error_where_packets_leave_and_a_warning_where_there_are_neighbours() {
        let spec = |addresses: &[&str]| UplinkSpec {
            interface: "eth1".to_owned(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..UplinkSpec::default()
        };
        for (ipv4, subnet, within, host, other) in [
            (true, "198.51.100.2/24", "198.51.100.0/24", "198.51.100.2/32", "2001:db8::2/64"),
            (false, "2001:db8::2/64", "2001:db8::/64", "2001:db8::2/128", "198.51.100.2/24"),
        ] {
            let found = |addresses: &[&str], wanted| no_gateway(&spec(addresses), ipv4, wanted);
            assert_eq!(found(&[other, host], false), None);
            assert_eq!(found(&[host], true).unwrap().severity, Severity::Error);
            for wanted in [true, false] {
                let warning = found(&[subnet], wanted).unwrap();
                let beyond = format!("nobody beyond {within} is reached");
                assert!(warning.severity == Severity::Warning && warning.message.contains(&beyond), "{warning:?}");
            }
        }
    }
}
