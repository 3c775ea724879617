//! Our drop reasons as Hubble knows them: the nearest value of `flow.DropReason` (`cilium/cilium api/v1/flow/flow.proto`) for each
//! of our closed list.

use hostweave_switch::stage::DropReason;

/// Number and name of Hubble's value. 0 stands where nothing is near: the reason's own name is in the flow's summary.
pub fn hubble(reason: DropReason) -> (u32, &'static str) {
    use DropReason as R;
    match reason {
        R::PolicyDenied => (133, "POLICY_DENIED"),
        R::PolicyPending => (165, "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION"),
        R::SpoofedMac => (130, "INVALID_SOURCE_MAC"),
        R::NotForRouter => (131, "INVALID_DESTINATION_MAC"),
        R::SpoofedIp | R::SpoofedArp | R::SpoofedNd => (132, "INVALID_SOURCE_IP"),
        R::FrameTooShort
        | R::FrameTooLong
        | R::TooManySegments
        | R::ChecksumBad
        | R::GsoBad
        | R::HeadersTooLong
        | R::Ipv4Malformed
        | R::Ipv4Option
        | R::Ipv6Malformed
        | R::NdInvalid
        | R::ArpInvalid
        | R::DhcpInvalid
        | R::DhcpServerFromGuest
        | R::FragmentOverlap => (134, "INVALID_PACKET_DROPPED"),
        R::L4Malformed | R::TcpInvalid | R::TcpOutOfWindow | R::IcmpUnrelated => {
            (135, "CT_TRUNCATED_OR_INVALID_HEADER")
        }
        R::NoConnection => (138, "CT_CANNOT_CREATE_ENTRY_FROM_PACKET"),
        R::EtherTypeUnknown => (139, "UNSUPPORTED_L3_PROTOCOL"),
        R::Ipv6ExtensionHeaders => (156, "INVALID_IPV6_EXTENSION_HEADER"),
        R::RouterAdvertisementFromGuest => (176, "FORBIDDEN_ICMPV6_MESSAGE"),
        R::ConnectionQuota | R::ConnectionTableFull => (155, "CT_MAP_INSERTION_FAILED"),
        R::FragmentQueueFull | R::FragmentTimeout => (175, "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND"),
        R::TtlExceeded => (196, "TTL_EXCEEDED"),
        R::NatNoMapping | R::NatNoPool | R::NatExhausted | R::NatPortLimit | R::NatTableFull | R::NatTupleTaken => {
            (167, "NO_MAPPING_FOR_NAT_MASQUERADE")
        }
        R::NatUnsupported => (168, "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE"),
        R::EgressNone | R::UplinkDown | R::NextHopUnresolved => (169, "FIB_LOOKUP_FAILED"),
        R::ServiceNoPort | R::ServiceNoBackend | R::ServiceEnded | R::ServiceNoLocalBackend => {
            (158, "SERVICE_BACKEND_NOT_FOUND")
        }
        R::ServiceSource => (177, "DENIED_BY_LB_SRC_RANGE_CHECK"),
        R::ServiceBackendUnreachable => (169, "FIB_LOOKUP_FAILED"),
        R::NotOurs => (151, "STALE_OR_UNROUTABLE_IP"),
        R::SourceNotOwned => (132, "INVALID_SOURCE_IP"),
        R::NoRoute | R::AddressNotForwardable => (151, "STALE_OR_UNROUTABLE_IP"),
        R::MulticastNotForwarded => (150, "UNKNOWN_L3_TARGET_ADDRESS"),
        R::PortDown | R::PortNotRunning | R::QueueDisabled => (203, "DROP_EP_NOT_READY"),
        R::GatewayNoService => (164, "LOCAL_HOST_IS_UNREACHABLE"),
        R::MtuExceeded => (157, "IP_FRAGMENTATION_NOT_SUPPORTED"),
        R::RateLimited => (198, "DROP_RATE_LIMITED"),
        R::LocalRateLimited
        | R::LocalDisabled
        | R::NeighborNoAnswer
        | R::DhcpNoAnswer
        | R::ProbeAnswer
        | R::GroupMembership
        | R::GuestRingFull
        | R::GuestRingBusy
        | R::GuestBufferTooSmall
        | R::GuestRingBroken
        | R::DeviceQueueFull
        | R::DeviceError
        | R::Internal => (0, "DROP_REASON_UNKNOWN"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers and names of `flow.DropReason` that may be given.
    const HUBBLE: &[(u32, &str)] = &[
        (0, "DROP_REASON_UNKNOWN"),
        (130, "INVALID_SOURCE_MAC"),
        (131, "INVALID_DESTINATION_MAC"),
        (132, "INVALID_SOURCE_IP"),
        (133, "POLICY_DENIED"),
        (134, "INVALID_PACKET_DROPPED"),
        (135, "CT_TRUNCATED_OR_INVALID_HEADER"),
        (138, "CT_CANNOT_CREATE_ENTRY_FROM_PACKET"),
        (139, "UNSUPPORTED_L3_PROTOCOL"),
        (150, "UNKNOWN_L3_TARGET_ADDRESS"),
        (151, "STALE_OR_UNROUTABLE_IP"),
        (155, "CT_MAP_INSERTION_FAILED"),
        (156, "INVALID_IPV6_EXTENSION_HEADER"),
        (157, "IP_FRAGMENTATION_NOT_SUPPORTED"),
        (158, "SERVICE_BACKEND_NOT_FOUND"),
        (164, "LOCAL_HOST_IS_UNREACHABLE"),
        (165, "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION"),
        (167, "NO_MAPPING_FOR_NAT_MASQUERADE"),
        (168, "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE"),
        (169, "FIB_LOOKUP_FAILED"),
        (175, "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND"),
        (176, "FORBIDDEN_ICMPV6_MESSAGE"),
        (177, "DENIED_BY_LB_SRC_RANGE_CHECK"),
        (196, "TTL_EXCEEDED"),
        (198, "DROP_RATE_LIMITED"),
        (203, "DROP_EP_NOT_READY"),
    ];

    #[test]
    fn every_reason_has_a_value_that_hubble_knows() {
        for reason in DropReason::ALL {
            assert!(HUBBLE.contains(&hubble(*reason)), "{}", reason.name());
        }
        // Users filter by these.
        for (reason, number) in [
            (DropReason::PolicyDenied, 133),
            (DropReason::SpoofedMac, 130),
            (DropReason::SpoofedIp, 132),
            (DropReason::Ipv4Malformed, 134),
            (DropReason::EtherTypeUnknown, 139),
            (DropReason::ConnectionQuota, 155),
            (DropReason::ConnectionTableFull, 155),
            (DropReason::NoRoute, 151),
            (DropReason::TtlExceeded, 196),
            (DropReason::RouterAdvertisementFromGuest, 176),
            (DropReason::FragmentTimeout, 175),
            (DropReason::NatNoMapping, 167),
        ] {
            assert_eq!(hubble(reason).0, number, "{}", reason.name());
        }
    }
}
