//! Traffic between ports and the host's own services that passes by a built-in rule, whatever policies say (SEMANTICS NP28,
//! NP34). ARP, ND, DHCP and echo to the gateway are answered before policy and are not in here.

use std::net::IpAddr;

use hostweave_switch::tables::{METADATA_V4, METADATA_V6};

use crate::model::Infrastructure;

/// A built-in rule.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BuiltIn {
    /// DNS (UDP and TCP 53) from a port to its gateway.
    Dns,
    /// Metadata (TCP 80) from a port to 169.254.169.254 or fd00:ec2::254.
    Metadata,
    /// Anything from the gateway to a port: its health probes.
    HealthProbes,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [BuiltIn; 3] = [BuiltIn::Dns, BuiltIn::Metadata, BuiltIn::HealthProbes];

    /// What trace, flow log and listings call it.
    pub const fn name(self) -> &'static str {
        match self {
            BuiltIn::Dns => "builtin/dns",
            BuiltIn::Metadata => "builtin/metadata",
            BuiltIn::HealthProbes => "builtin/health-probes",
        }
    }

    /// Whether configuration leaves it on.
    pub const fn enabled(self, infrastructure: &Infrastructure) -> bool {
        match self {
            BuiltIn::Dns => infrastructure.dns,
            BuiltIn::Metadata => infrastructure.metadata,
            BuiltIn::HealthProbes => infrastructure.health_probes,
        }
    }
}

impl Infrastructure {
    /// The built-in rule that lets a new connection pass. `from_internal`, `to_internal`: whether that side is the network's
    /// internal port (the gateway) rather than a workload. `dst_port`: as in [`crate::table::Flow`].
    pub fn builtin(
        &self,
        from_internal: bool,
        to_internal: bool,
        proto: u8,
        dst_port: Option<u16>,
        dst_address: IpAddr,
    ) -> Option<BuiltIn> {
        let rule = match (from_internal, to_internal, proto, dst_port) {
            (true, false, ..) => BuiltIn::HealthProbes,
            (false, true, TCP, Some(80)) if is_metadata(dst_address.to_canonical()) => BuiltIn::Metadata,
            (false, true, TCP | UDP, Some(53)) => BuiltIn::Dns,
            _ => return None,
        };
        rule.enabled(self).then_some(rule)
    }
}

/// Whether metadata is served there.
fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address == METADATA_V4,
        IpAddr::V6(address) => address == METADATA_V6,
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const METADATA: IpAddr = IpAddr::V4(METADATA_V4);

    #[test]
    fn np34_dns_and_metadata_pass_to_the_gateway_and_nothing_else() {
        let rules = Infrastructure::default();
        assert_eq!(rules.builtin(false, true, UDP, Some(53), GATEWAY), Some(BuiltIn::Dns));
        assert_eq!(rules.builtin(false, true, TCP, Some(53), GATEWAY), Some(BuiltIn::Dns));
        assert_eq!(rules.builtin(false, true, TCP, Some(80), METADATA), Some(BuiltIn::Metadata));
        assert_eq!(
            rules.builtin(false, true, TCP, Some(80), "::ffff:169.254.169.254".parse().unwrap()),
            Some(BuiltIn::Metadata)
        );
        assert_eq!(rules.builtin(false, true, TCP, Some(80), METADATA_V6.into()), Some(BuiltIn::Metadata));
        assert_eq!(rules.builtin(false, true, TCP, Some(80), GATEWAY), None);
        assert_eq!(rules.builtin(false, true, UDP, Some(80), METADATA), None);
        assert_eq!(rules.builtin(false, true, UDP, None, GATEWAY), None, "unknown L4");
        assert_eq!(rules.builtin(false, true, 1, Some(53), GATEWAY), None);
        assert_eq!(rules.builtin(false, false, UDP, Some(53), GATEWAY), None, "NP27: another resolver needs a rule");
    }

    #[test]
    fn np28_probes_pass_from_the_gateway_only() {
        let rules = Infrastructure::default();
        assert_eq!(rules.builtin(true, false, TCP, Some(8080), GATEWAY), Some(BuiltIn::HealthProbes));
        assert_eq!(rules.builtin(true, false, 1, None, GATEWAY), Some(BuiltIn::HealthProbes));
        assert_eq!(rules.builtin(false, false, TCP, Some(8080), GATEWAY), None);
    }

    #[test]
    fn each_can_be_switched_off() {
        let none = Infrastructure { dns: false, metadata: false, health_probes: false };
        assert!(BuiltIn::ALL.iter().all(|rule| !rule.enabled(&none)));
        assert_eq!(none.builtin(false, true, UDP, Some(53), GATEWAY), None);
        assert_eq!(none.builtin(false, true, TCP, Some(80), METADATA), None);
        assert_eq!(none.builtin(true, false, TCP, Some(80), GATEWAY), None);
    }
}
