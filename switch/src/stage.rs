//! What a stage says about a packet, and the closed list of reasons for which a packet may end.

/// What a stage decided. A stage never logs, allocates, waits or reads the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// Go on with the next stage.
    Continue,
    /// The head now holds the answer; it goes back to the port that sent the packet.
    Reply,
    /// `meta.out_port` says where; rewrite and transmit.
    Forward,
    /// A copy of it waits in a bounded buffer: a fragment before its first.
    Queued,
    /// The packet ends here.
    Drop(DropReason),
}

/// The stages in the order packets meet them. `trace` prints these names, ARCHITECTURE.md draws them; a test compares.
pub const STAGES: [&str; 14] = [
    "rx", "parse", "guard", "local", "flow", "conn", "dnat", "egress", "route", "ingress", "snat", "commit", "rewrite",
    "tx",
];

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet ended. The list is closed: metrics, `observe`, `port stats` and captures use these names.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// All reasons, in order of their discriminant.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The name in metrics and logs, `snake_case`, stable.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// One sentence for a person.
            pub fn help(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than an Ethernet header.
    FrameTooShort = "frame_too_short",
    /// The frame is longer than any that a port may send.
    FrameTooLong = "frame_too_long",
    /// The descriptor chain has more segments than the switch follows in one burst.
    TooManySegments = "too_many_segments",
    /// The virtio-net header asks for an impossible checksum (start or offset outside the packet) or for one that was not negotiated; or an
    /// ICMP error, or the IPv4 header that it quotes, has a wrong one.
    ChecksumBad = "checksum_bad",
    /// The virtio-net header asks for impossible segmentation: size 0 or below 48, more than 128 segments, a header length outside the frame, or a type that was not negotiated.
    GsoBad = "gso_bad",
    /// The headers reach beyond the first 512 octets.
    HeadersTooLong = "headers_too_long",
    /// Neither ARP, IPv4 nor IPv6; VLAN tags are not accepted from ports.
    EtherTypeUnknown = "ether_type_unknown",
    /// The IPv4 header breaks RFC 791 or RFC 1812 §5.2.2: version, length, checksum, or total length.
    Ipv4Malformed = "ipv4_malformed",
    /// An IPv4 option that the switch does not forward (source routing, RFC 7126).
    Ipv4Option = "ipv4_option",
    /// The IPv6 header breaks RFC 8200: version, payload length, or a malformed extension header.
    Ipv6Malformed = "ipv6_malformed",
    /// More IPv6 extension headers than the switch walks, or an order RFC 8200 forbids.
    Ipv6ExtensionHeaders = "ipv6_extension_headers",
    /// The TCP, UDP or ICMP header is cut off or malformed (RFC 7112 for the first fragment).
    L4Malformed = "l4_malformed",
    /// The source MAC is not the port's.
    SpoofedMac = "spoofed_mac",
    /// The source IPv4 or IPv6 address does not belong to the port, or is one of the network that the packet would enter.
    SpoofedIp = "spoofed_ip",
    /// An ARP message whose sender address or MAC is not the port's.
    SpoofedArp = "spoofed_arp",
    /// A neighbour discovery message for an address that is not the port's.
    SpoofedNd = "spoofed_nd",
    /// A router advertisement or redirect from a guest (RFC 6105, RFC 7113).
    RouterAdvertisementFromGuest = "ra_from_guest",
    /// A DHCP server's message from a guest.
    DhcpServerFromGuest = "dhcp_server_from_guest",
    /// A neighbour discovery message that RFC 4861 §7.1 tells receivers to discard.
    NdInvalid = "nd_invalid",
    /// An ARP message that is not Ethernet/IPv4 or is cut off.
    ArpInvalid = "arp_invalid",
    /// An ARP or neighbour message that needs no answer: a probe for the own address, an announcement of it, a reply.
    NeighborNoAnswer = "neighbor_no_answer",
    /// A DHCP message that is malformed, or not for this server.
    DhcpInvalid = "dhcp_invalid",
    /// A DHCP message that asks for no answer (release, decline, another server chosen).
    DhcpNoAnswer = "dhcp_no_answer",
    /// The guest asks the switch's own services faster than the port's limit.
    LocalRateLimited = "local_rate_limited",
    /// ARP, a neighbour or a router solicitation, which `HostConfig.spec.infrastructure` leaves unanswered.
    LocalDisabled = "local_disabled",
    /// More than `spec.limits` of the port lets it send or receive.
    RateLimited = "rate_limited",
    /// The destination MAC is neither the router's nor a group the router listens to.
    NotForRouter = "not_for_router",
    /// Broadcast or multicast that no service of the network listens to; a routed network does not flood.
    MulticastNotForwarded = "multicast_not_forwarded",
    /// Multicast listener and group membership reports (MLD, IGMP): accepted, nothing to do.
    GroupMembership = "group_membership",
    /// Sent to the gateway's own address, where nothing listens on that protocol or L4 port.
    GatewayNoService = "gateway_no_service",
    /// A source or destination that may not be forwarded: unspecified, loopback, link-local, or IPv4-mapped.
    AddressNotForwardable = "address_not_forwardable",
    /// TTL or hop limit reached zero here.
    TtlExceeded = "ttl_exceeded",
    /// No port owns the destination address, and no route leads to it.
    NoRoute = "no_route",
    /// The packet, or a segment of its GSO frame, is longer than the network's MTU, and must not be fragmented (IPv6, DF, GSO).
    MtuExceeded = "mtu_exceeded",
    /// The port is administratively down.
    PortDown = "port_down",
    /// The destination has no running attachment: no VMM is connected, or the guest's driver has not started the queue.
    PortNotRunning = "port_not_running",
    /// The receive queue is not enabled (`SET_VRING_ENABLE` 0).
    QueueDisabled = "queue_disabled",
    /// The destination guest has posted no receive buffers; it reads too slowly or stopped reading.
    GuestRingFull = "guest_ring_full",
    /// Another worker held the destination queue until the stash of this worker was full or too old.
    GuestRingBusy = "guest_ring_busy",
    /// Without `MRG_RXBUF` one receive chain must hold the whole frame, and this one is too small (SEMANTICS VU15).
    GuestBufferTooSmall = "guest_buffer_too_small",
    /// The destination's ring is broken; its port was stopped.
    GuestRingBroken = "guest_ring_broken",
    /// The queue to a TAP device, or to the host's own services, is full.
    DeviceQueueFull = "device_queue_full",
    /// The TAP device refused the frame (device down, or gone).
    DeviceError = "device_error",
    /// Part of no connection, and no packet that begins one: a TCP segment that is not a SYN (`HostConfig.spec.connections.looseTcp` lets it
    /// begin one), an ICMP reply that nobody asked for, or a packet whose connection was given up at that moment.
    NoConnection = "no_connection",
    /// A TCP segment outside the windows that both sides of its connection have shown (RFC 9293 §3.4, RFC 5961).
    TcpOutOfWindow = "tcp_out_of_window",
    /// A TCP segment that no TCP sends: impossible flags, or a handshake out of order.
    TcpInvalid = "tcp_invalid",
    /// The port has as many connections as it may have.
    ConnectionQuota = "connection_quota",
    /// The host's table of connections is full, or the port has its guaranteed share of it and the rest is taken.
    ConnectionTableFull = "connection_table_full",
    /// A policy, or the host's default, denies it; `observe` and `trace` say which rule.
    PolicyDenied = "policy_denied",
    /// The port's policy is not compiled yet.
    PolicyPending = "policy_pending",
    /// The network has no way out for this family: the host has no uplink, no NAT pool is for the network, or `egress` says `none`.
    EgressNone = "egress_none",
    /// The uplink has no carrier, or its device is down.
    UplinkDown = "uplink_down",
    /// Neither a gateway of the uplink nor, on its own link, the receiver has answered ARP or neighbour discovery.
    NextHopUnresolved = "next_hop_unresolved",
    /// From the uplink, to an address that the host does not own.
    NotOurs = "not_ours",
    /// From the uplink, unasked: no connection, no mapping that lets this sender in, no attached address.
    NatNoMapping = "nat_no_mapping",
    /// The network leaves by NAT, but no pool with an address of this family serves the port.
    NatNoPool = "nat_no_pool",
    /// The NAT pool has no block of L4 ports left; an event names the port that has most.
    NatExhausted = "nat_exhausted",
    /// The port has used up its blocks of L4 ports, or another of its NAT limits.
    NatPortLimit = "nat_port_limit",
    /// The host's table of NAT mappings is full.
    NatTableFull = "nat_table_full",
    /// A protocol that cannot share an address with others.
    NatUnsupported = "nat_unsupported",
    /// Another connection, which is not over, already has the outside tuple that this one would have.
    NatTupleTaken = "nat_tuple_taken",
    /// To a Service's address, on a protocol or L4 port that the Service does not have. It is answered, and never routed on.
    ServiceNoPort = "service_no_port",
    /// No backend of the Service takes connections: none is there, ready and healthy. It is answered at once.
    ServiceNoBackend = "service_no_backend",
    /// A segment of a connection to a Service that has ended, with its backend (`hostweave.dev/drain: reset`) or long ago. A client of this host
    /// is answered with a reset; one beyond the uplink once, if this host had the connection.
    ServiceEnded = "service_ended",
    /// The Service takes local backends only (`internalTrafficPolicy`, `externalTrafficPolicy`), and none of this host takes connections.
    ServiceNoLocalBackend = "service_no_local_backend",
    /// The Service has `loadBalancerSourceRanges`, and the sender is in none of them.
    ServiceSource = "service_source",
    /// The chosen backend is no port of this host, and the network of the sender does not lead to it; or the sender is beyond the uplink, as
    /// the backend is.
    ServiceBackendUnreachable = "service_backend_unreachable",
    /// About to leave by the uplink with a source address that is not the host's to use. Nothing else stands behind this check.
    SourceNotOwned = "source_not_owned",
    /// An ICMP error about no connection of the port that it goes to.
    IcmpUnrelated = "icmp_unrelated",
    /// A fragment of a datagram whose fragments overlap or contradict each other, or a second copy of one (RFC 5722).
    FragmentOverlap = "fragment_overlap",
    /// A fragment beyond what the port (from outside: the port that it is for) may have remembered or queued: datagrams, fragments or octets.
    FragmentQueueFull = "fragment_queue_full",
    /// A fragment that waited for the first fragment of its datagram, which did not come in time.
    FragmentTimeout = "fragment_timeout",
    /// The answer to a probe of `hostweave ping`: it ends at the port that the probe was sent for, and its guest does not get it.
    ProbeAnswer = "probe_answer",
    /// Something in the switch is wrong; the packet is dropped to be safe.
    Internal = "internal",
}

/// Number of drop reasons.
pub const DROP_REASONS: usize = DropReason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_snake_case_and_explained() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.name().chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
            assert!(reason.help().trim().ends_with('.'));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DROP_REASONS);
    }
}
