//! The DHCPv4 server (RFC 2131, options RFC 2132, 3397, 3442, 6842), without state: each port has its addresses in the
//! tables, so every answer follows from the message and the port alone (SEMANTICS DH1–DH6). An attached public address
//! is the first of its port, and so the one that is given: as a /32, since the gateway is not in its subnet (DA1).
//!
//! The server identifier is the gateway's address, the same on every host. What a guest was told is not remembered
//! here; a confirmed lease and a declined address are reported to control by a note.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use hostweave_switch::MacAddr;
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Addressing, Network};
use hostweave_switch::wire::dhcp4::{
    self, BOOTREQUEST, CLIENT_PORT, FLAG_BROADCAST, Message, Reply, SERVER_PORT, message_type, option,
};
use hostweave_switch::wire::frame::{self, FRAME_LEN_MAX};
use hostweave_switch::wire::writer::{Full, Writer};
use ipnet::Ipv4Net;

use super::datagram::{COPY_LEN, udp_payload};
use super::{LocalContext, LocalNote, search, verdict};

/// Answers a UDP datagram to port 67 if it is for this server: broadcast, or to the gateway.
pub fn answer(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &[Segment], note: &mut Option<LocalNote>) -> Verdict {
    let Some((range, gateway)) = ctx.network.v4 else { return Verdict::Continue };
    let at = usize::from(packet.meta.layers.l3);
    let Some(header) = packet.head().get(at..).and_then(|header| header.first_chunk::<20>()) else {
        return Verdict::Continue;
    };
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    if ![gateway, Ipv4Addr::BROADCAST, range.broadcast()].contains(&destination) {
        return Verdict::Continue;
    }
    let mut copy = [0; COPY_LEN];
    let result = udp_payload(packet, arena, &mut copy).and_then(Message::check).and_then(|message| {
        let answer = decide(ctx, &message, gateway, note)?;
        frame::replace(packet, |frame| answer.emit(ctx, range, frame)).map_err(|_| DropReason::DhcpInvalid)
    });
    verdict(result)
}

/// An answer: what differs between OFFER, ACK, ACK to INFORM, and NAK.
struct Answer<'a> {
    kind: u8,
    message: Message<'a>,
    gateway: Ipv4Addr,
    /// The address given; `None` in a NAK and in the answer to INFORM.
    lease: Option<Ipv4Addr>,
}

/// RFC 2131 §4.3, one arm a message.
fn decide<'a>(
    ctx: &LocalContext<'_>,
    message: &Message<'a>,
    gateway: Ipv4Addr,
    note: &mut Option<LocalNote>,
) -> Result<Answer<'a>, DropReason> {
    if message.op() != BOOTREQUEST || message.chaddr() != ctx.port.mac.0 {
        return Err(DropReason::DhcpInvalid);
    }
    let server = message.option_address(option::SERVER_ID);
    if message.option(option::SERVER_ID).is_some() && server != Some(gateway) {
        // The guest chose another server.
        return Err(DropReason::DhcpNoAnswer);
    }
    let address = *ctx.port.v4.first().ok_or(DropReason::DhcpNoAnswer)?;
    let requested = message.option_address(option::REQUESTED_ADDRESS);
    let answer = |kind, lease| Ok(Answer { kind, message: *message, gateway, lease });
    match message.option_u8(option::MESSAGE_TYPE) {
        Some(message_type::DISCOVER) => answer(message_type::OFFER, Some(address)),
        Some(message_type::REQUEST) => {
            // SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in `ciaddr`
            // (RFC 2131 §4.3.2).
            let wanted = requested.or(Some(message.ciaddr()).filter(|ciaddr| !ciaddr.is_unspecified()));
            if wanted.ok_or(DropReason::DhcpInvalid)? == address {
                *note = Some(LocalNote::LeaseConfirmed(IpAddr::V4(address)));
                answer(message_type::ACK, Some(address))
            } else {
                answer(message_type::NAK, None)
            }
        }
        Some(message_type::DECLINE) => {
            if requested == Some(address) {
                *note = Some(LocalNote::AddressDeclined(address));
            }
            Err(DropReason::DhcpNoAnswer)
        }
        // The address stays with the port whether the guest uses it or not.
        Some(message_type::RELEASE) => Err(DropReason::DhcpNoAnswer),
        Some(message_type::INFORM) if ctx.port.v4.contains(&message.ciaddr()) => answer(message_type::ACK, None),
        _ => Err(DropReason::DhcpInvalid),
    }
}

impl Answer<'_> {
    fn emit(&self, ctx: &LocalContext<'_>, range: Ipv4Net, frame: &mut [u8]) -> Result<usize, Full> {
        let (mac, to) = self.destination(ctx);
        // RFC 2132 §9.10: the client's limit counts the IP datagram, and is at least 576.
        let limit = self.message.option_u16(option::MAX_MESSAGE_SIZE).unwrap_or(0).max(DATAGRAM_LEN_MIN);
        let limit = (usize::from(limit) + ETHERNET_LEN).min(FRAME_LEN_MAX).min(frame.len());
        let from = SocketAddrV4::new(self.gateway, SERVER_PORT);
        frame::udp4(&mut frame[..limit], mac, from, to, |writer| {
            self.header().emit(writer)?;
            self.options(ctx, range, writer)?;
            dhcp4::finish(writer)
        })
    }

    fn header(&self) -> Reply {
        let nak = self.kind == message_type::NAK;
        let relayed = !self.message.giaddr().is_unspecified();
        Reply {
            xid: self.message.xid(),
            // RFC 2131 §4.3.2: of a NAK through a relay, "the server MUST set the broadcast bit", so that the relay
            // reaches a client without a usable address.
            flags: if nak && relayed { self.message.flags() | FLAG_BROADCAST } else { self.message.flags() },
            ciaddr: if nak { Ipv4Addr::UNSPECIFIED } else { self.message.ciaddr() },
            yiaddr: self.lease.unwrap_or(Ipv4Addr::UNSPECIFIED),
            giaddr: self.message.giaddr(),
            chaddr: self.message.chaddr(),
        }
    }

    /// Where the answer goes: the rules of RFC 2131 §4.1, in their order.
    fn destination(&self, ctx: &LocalContext<'_>) -> (MacAddr, SocketAddrV4) {
        let message = &self.message;
        let broadcast = (MacAddr::BROADCAST, SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT));
        if !message.giaddr().is_unspecified() {
            return (ctx.port.mac, SocketAddrV4::new(message.giaddr(), SERVER_PORT));
        }
        if self.kind == message_type::NAK {
            return broadcast;
        }
        match (message.ciaddr(), self.lease) {
            (ciaddr, _) if !ciaddr.is_unspecified() => (ctx.port.mac, SocketAddrV4::new(ciaddr, CLIENT_PORT)),
            (_, Some(lease)) if message.flags() & FLAG_BROADCAST == 0 => {
                (ctx.port.mac, SocketAddrV4::new(lease, CLIENT_PORT))
            }
            _ => broadcast,
        }
    }

    /// The options that a client cannot do without come first; the others where there is room.
    fn options(&self, ctx: &LocalContext<'_>, range: Ipv4Net, writer: &mut Writer<'_>) -> Result<(), Full> {
        dhcp4::put(writer, option::MESSAGE_TYPE, &[self.kind])?;
        dhcp4::put(writer, option::SERVER_ID, &self.gateway.octets())?;
        // RFC 6842 §3: the server "MUST return the client identifier option, unaltered".
        if let Some(client_id) = self.message.option(option::CLIENT_ID) {
            dhcp4::put(writer, option::CLIENT_ID, client_id)?;
        }
        if self.kind == message_type::NAK {
            return dhcp4::put(writer, option::MESSAGE, b"the address is not this port's");
        }
        if self.lease.is_some() {
            put_times(writer, ctx.port.lease_s)?;
        }
        // Without a lease it is about the address that the client has.
        let address = self.lease.unwrap_or(self.message.ciaddr());
        let host = ctx.network.addressing == Addressing::Host || !range.contains(&address);
        let mask = if host { Ipv4Addr::BROADCAST } else { range.netmask() };
        dhcp4::put(writer, option::SUBNET_MASK, &mask.octets())?;
        put_routes(writer, self.gateway, host)?;
        dhcp4::put(writer, option::ROUTER, &self.gateway.octets())?;
        put_optional(ctx, writer);
        Ok(())
    }
}

/// Lease time, T1 at 50 % and T2 at 87.5 % (RFC 2131 §4.4.5); an infinite lease has infinite times.
fn put_times(writer: &mut Writer<'_>, lease_s: u32) -> Result<(), Full> {
    let finite = lease_s != u32::MAX;
    let t1 = if finite { lease_s / 2 } else { lease_s };
    let t2 = if finite { lease_s - lease_s / 8 } else { lease_s };
    dhcp4::put(writer, option::LEASE_TIME, &lease_s.to_be_bytes())?;
    dhcp4::put(writer, option::RENEWAL_TIME, &t1.to_be_bytes())?;
    dhcp4::put(writer, option::REBINDING_TIME, &t2.to_be_bytes())
}

/// RFC 3442: a client that knows option 121 ignores option 3, so the default route stands in both. With a /32 lease
/// the gateway itself needs a route first, on link (router 0.0.0.0).
fn put_routes(writer: &mut Writer<'_>, gateway: Ipv4Addr, host: bool) -> Result<(), Full> {
    let [a, b, c, d] = gateway.octets();
    let routes = [32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d];
    dhcp4::put(writer, option::CLASSLESS_ROUTES, if host { &routes } else { &routes[9..] })
}

/// What a client can do without. An option that does not fit the client's message size is left out.
fn put_optional(ctx: &LocalContext<'_>, writer: &mut Writer<'_>) {
    let network = ctx.network;
    let _ = dhcp4::put(writer, option::MTU, &network.mtu.to_be_bytes());
    let (resolvers, count) = resolvers_v4(network);
    if count > 0 {
        let _ = dhcp4::put(writer, option::DNS, &resolvers.as_flattened()[..4 * count]);
    }
    if !ctx.port.hostname.is_empty() {
        let _ = dhcp4::put(writer, option::HOST_NAME, ctx.port.hostname.as_bytes());
    }
    if let Some(domain) = &network.domain {
        let _ = dhcp4::put(writer, option::DOMAIN_NAME, domain.as_str().as_bytes());
        // As much of the list as fits: an option's two octets and the end mark are not for it.
        let mut names = [0; OPTION_LEN_MAX];
        let room = writer.room().saturating_sub(3).min(OPTION_LEN_MAX);
        let mut list = Writer::new(&mut names[..room]);
        if search::put(&mut list, network, ctx.port) {
            let _ = dhcp4::put(writer, option::DOMAIN_SEARCH, list.written());
        }
    }
}

fn resolvers_v4(network: &Network) -> ([[u8; 4]; RESOLVERS_MAX], usize) {
    let mut resolvers = [[0; 4]; RESOLVERS_MAX];
    let mut count = 0;
    let v4 = network.resolvers.iter().filter_map(|resolver| match resolver {
        IpAddr::V4(resolver) => Some(resolver.octets()),
        IpAddr::V6(_) => None,
    });
    for (slot, resolver) in resolvers.iter_mut().zip(v4) {
        *slot = resolver;
        count += 1;
    }
    (resolvers, count)
}

const ETHERNET_LEN: usize = 14;
/// Octets of the IP datagram that every client takes (RFC 2131 §2).
const DATAGRAM_LEN_MIN: u16 = 576;
/// Octets of an option's value (RFC 2132 §2).
const OPTION_LEN_MAX: usize = 255;
/// Resolvers in one answer.
const RESOLVERS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::testing::{A_V4, B_V4, GATEWAY_V4, GUEST_A, GUEST_B, Outcome, World, udp, udp_reply};
    use super::*;
    use dhcproto::v4::{DhcpOption, Flags, Message as Client, MessageType, Opcode, OptionCode};
    use dhcproto::{Decodable, Decoder, Encodable, Encoder};
    use hostweave_switch::tables::Domain;

    const LIST: [&str; 3] = ["default.svc.cluster.local.", "svc.cluster.local.", "cluster.local."];
    const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    fn client(kind: MessageType) -> Client {
        let mut message = Client::new_with_id(0x1234_5678, NOBODY, NOBODY, NOBODY, NOBODY, &GUEST_A.0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        message.opts_mut().insert(DhcpOption::ClientIdentifier(vec![1, 2, 3]));
        message
    }

    fn request(address: Ipv4Addr) -> Client {
        let mut message = client(MessageType::Request);
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        message
    }

    fn encode(message: &Client) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    fn send(world: &World, message: &Client) -> Outcome {
        let unicast = !message.ciaddr().is_unspecified();
        let to = if unicast { GATEWAY_V4 } else { Ipv4Addr::BROADCAST };
        world.ask(&udp(message.ciaddr().into(), 68, to.into(), 67, &encode(message)))
    }

    /// The answer, with the address and MAC it goes to.
    fn answer(outcome: Outcome) -> (Client, Ipv4Addr, MacAddr) {
        let frame = outcome.reply();
        let (src, dst, ports, bytes) = udp_reply(&frame);
        assert_eq!((src, ports), (GATEWAY_V4.into(), (67, 68)));
        assert!(bytes.len() >= 300);
        let message = Client::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!(
            (message.opcode(), message.xid(), message.chaddr()),
            (Opcode::BootReply, 0x1234_5678, &GUEST_A.0[..])
        );
        assert_eq!(message.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(GATEWAY_V4)));
        let client_id = DhcpOption::ClientIdentifier(vec![1, 2, 3]);
        assert_eq!(message.opts().get(OptionCode::ClientIdentifier), Some(&client_id));
        let IpAddr::V4(dst) = dst else { panic!("{dst}") };
        (message, dst, MacAddr(frame[..6].try_into().unwrap()))
    }

    fn option(message: &Client, code: OptionCode) -> &DhcpOption {
        message.opts().get(code).unwrap_or_else(|| panic!("no {code:?}"))
    }

    #[test]
    fn discover_is_answered_with_the_ports_address_and_everything_a_client_needs() {
        let (offer, dst, mac) = answer(send(&World::new(), &client(MessageType::Discover)));
        assert_eq!((offer.opts().msg_type(), offer.yiaddr()), (Some(MessageType::Offer), A_V4));
        assert_eq!((dst, mac), (A_V4, GUEST_A));
        let default = (Ipv4Net::default(), GATEWAY_V4);
        for expected in [
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::ClasslessStaticRoute(vec![default]),
            DhcpOption::Router(vec![GATEWAY_V4]),
            DhcpOption::AddressLeaseTime(3600),
            DhcpOption::Renewal(1800),
            DhcpOption::Rebinding(3150),
            DhcpOption::InterfaceMtu(1450),
            DhcpOption::DomainNameServer(vec![GATEWAY_V4]),
            DhcpOption::Hostname("a".to_owned()),
            DhcpOption::DomainName("cluster.local".to_owned()),
        ] {
            assert_eq!(option(&offer, (&expected).into()), &expected);
        }
        let DhcpOption::DomainSearch(names) = option(&offer, OptionCode::DomainSearch) else { panic!() };
        assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), LIST);
    }

    #[test]
    fn the_broadcast_flag_is_honoured() {
        let mut discover = client(MessageType::Discover);
        discover.set_flags(Flags::default().set_broadcast());
        let (offer, dst, mac) = answer(send(&World::new(), &discover));
        assert!(offer.flags().broadcast());
        assert_eq!((dst, mac), (Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
    }

    #[test]
    fn a_host_lease_has_a_route_to_the_gateway() {
        let mut world = World::new();
        world.network.addressing = Addressing::Host;
        let (offer, ..) = answer(send(&world, &client(MessageType::Discover)));
        assert_eq!(option(&offer, OptionCode::SubnetMask), &DhcpOption::SubnetMask(Ipv4Addr::BROADCAST));
        let routes = vec![(Ipv4Net::from(GATEWAY_V4), NOBODY), (Ipv4Net::default(), GATEWAY_V4)];
        assert_eq!(option(&offer, OptionCode::ClasslessStaticRoute), &DhcpOption::ClasslessStaticRoute(routes));
        assert_eq!(option(&offer, OptionCode::Router), &DhcpOption::Router(vec![GATEWAY_V4]));
    }

    #[test]
    fn da1_an_attached_address_is_given_as_a_host_lease_and_takes_the_place_of_the_private_one() {
        let mut world = World::new();
        let public = Ipv4Addr::new(203, 0, 113, 7);
        world.port.v4.insert(0, public);
        let (offer, dst, _) = answer(send(&world, &client(MessageType::Discover)));
        assert_eq!((offer.yiaddr(), dst), (public, public));
        assert_eq!(option(&offer, OptionCode::SubnetMask), &DhcpOption::SubnetMask(Ipv4Addr::BROADCAST));
        let routes = vec![(Ipv4Net::from(GATEWAY_V4), NOBODY), (Ipv4Net::default(), GATEWAY_V4)];
        assert_eq!(option(&offer, OptionCode::ClasslessStaticRoute), &DhcpOption::ClasslessStaticRoute(routes));
        assert_eq!(answer(send(&world, &request(public))).0.opts().msg_type(), Some(MessageType::Ack));
        // A guest that still has the private one learns at its next renewal.
        let mut renewing = client(MessageType::Request);
        renewing.set_ciaddr(A_V4);
        assert_eq!(answer(send(&world, &renewing)).0.opts().msg_type(), Some(MessageType::Nak));
        // One that keeps both by hand is told the prefix of each.
        let mut inform = client(MessageType::Inform);
        inform.set_ciaddr(A_V4);
        let mask = DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(option(&answer(send(&world, &inform)).0, OptionCode::SubnetMask), &mask);
        inform.set_ciaddr(public);
        let mask = DhcpOption::SubnetMask(Ipv4Addr::BROADCAST);
        assert_eq!(option(&answer(send(&world, &inform)).0, OptionCode::SubnetMask), &mask);
    }

    /// RFC 2131 §4.3.2: the four states of a client that sends REQUEST.
    #[test]
    fn request_is_answered_in_all_four_states() {
        let world = World::new();
        let confirmed = Some(LocalNote::LeaseConfirmed(A_V4.into()));
        let mut selecting = request(A_V4);
        selecting.opts_mut().insert(DhcpOption::ServerIdentifier(GATEWAY_V4));
        let mut renewing = client(MessageType::Request);
        renewing.set_ciaddr(A_V4);
        for message in [selecting, request(A_V4), renewing.clone()] {
            let outcome = send(&world, &message);
            assert_eq!(outcome.note, confirmed);
            let (ack, dst, mac) = answer(outcome);
            assert_eq!((ack.opts().msg_type(), ack.yiaddr()), (Some(MessageType::Ack), A_V4));
            assert_eq!((ack.ciaddr(), dst, mac), (message.ciaddr(), A_V4, GUEST_A));
        }
        // REBINDING: as RENEWING, but broadcast.
        let rebinding = udp(A_V4.into(), 68, Ipv4Addr::BROADCAST.into(), 67, &encode(&renewing));
        assert_eq!(answer(world.ask(&rebinding)).0.opts().msg_type(), Some(MessageType::Ack));
        // INIT-REBOOT with somebody else's address.
        let outcome = send(&world, &request(B_V4));
        assert_eq!(outcome.note, None);
        let (nak, dst, mac) = answer(outcome);
        assert_eq!((nak.opts().msg_type(), nak.yiaddr()), (Some(MessageType::Nak), NOBODY));
        assert_eq!((dst, mac), (Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
        assert_eq!(nak.opts().get(OptionCode::AddressLeaseTime), None);
    }

    #[test]
    fn inform_gets_options_without_a_lease() {
        let mut inform = client(MessageType::Inform);
        inform.set_ciaddr(A_V4);
        let (ack, dst, _) = answer(send(&World::new(), &inform));
        assert_eq!((ack.opts().msg_type(), ack.yiaddr(), dst), (Some(MessageType::Ack), NOBODY, A_V4));
        assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), None);
        assert_eq!(option(&ack, OptionCode::InterfaceMtu), &DhcpOption::InterfaceMtu(1450));
    }

    #[test]
    fn what_needs_no_answer_gets_none() {
        let world = World::new();
        let silence = Verdict::Drop(DropReason::DhcpNoAnswer);
        let mut decline = client(MessageType::Decline);
        decline.opts_mut().insert(DhcpOption::RequestedIpAddress(A_V4));
        let outcome = send(&world, &decline);
        assert_eq!((outcome.verdict, outcome.note), (silence, Some(LocalNote::AddressDeclined(A_V4))));
        let mut release = client(MessageType::Release);
        release.set_ciaddr(A_V4);
        assert_eq!(send(&world, &release).verdict, silence);
        let mut other_server = request(A_V4);
        other_server.opts_mut().insert(DhcpOption::ServerIdentifier(B_V4));
        assert_eq!(send(&world, &other_server).verdict, silence);
        let mut unaddressed = World::new();
        unaddressed.port.v4.clear();
        assert_eq!(send(&unaddressed, &client(MessageType::Discover)).verdict, silence);
    }

    #[test]
    fn only_the_ports_own_client_is_served() {
        let world = World::new();
        let invalid = Verdict::Drop(DropReason::DhcpInvalid);
        let mut other = client(MessageType::Discover);
        other.set_chaddr(&GUEST_B.0);
        assert_eq!(send(&world, &other).verdict, invalid);
        assert_eq!(send(&world, &client(MessageType::Offer)).verdict, invalid);
        let mut reply = client(MessageType::Discover);
        reply.set_opcode(Opcode::BootReply);
        assert_eq!(send(&world, &reply).verdict, invalid);
        let short = udp(NOBODY.into(), 68, Ipv4Addr::BROADCAST.into(), 67, &[0; 200]);
        assert_eq!(world.ask(&short).verdict, invalid);
        let mut corrupt =
            udp(NOBODY.into(), 68, Ipv4Addr::BROADCAST.into(), 67, &encode(&client(MessageType::Discover)));
        corrupt[100] ^= 1;
        assert_eq!(world.ask(&corrupt).verdict, invalid);
    }

    /// A small client limit leaves out what it can do without; a firmware's long message is read to its end.
    #[test]
    fn message_sizes_are_respected() {
        let mut world = World::new();
        let domain = ["a".repeat(63), "b".repeat(63), "c".repeat(63)].join(".");
        world.network.domain = Some(Domain::Written(domain.clone()));
        let mut discover = client(MessageType::Discover);
        discover.opts_mut().insert(DhcpOption::MaxMessageSize(100));
        let frame = send(&world, &discover).reply();
        assert!(frame.len() <= 14 + 576, "{}", frame.len());
        let (.., bytes) = udp_reply(&frame);
        let offer = Client::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!(option(&offer, OptionCode::InterfaceMtu), &DhcpOption::InterfaceMtu(1450));
        assert_eq!(offer.opts().get(OptionCode::DomainSearch), None);
        discover.opts_mut().insert(DhcpOption::MaxMessageSize(1472));
        discover.opts_mut().insert(DhcpOption::VendorExtensions(vec![7; 255]));
        discover.opts_mut().insert(DhcpOption::UserClass(vec![7; 255]));
        let (offer, ..) = answer(send(&world, &discover));
        assert_eq!(option(&offer, OptionCode::DomainName), &DhcpOption::DomainName(domain));
        assert!(offer.opts().get(OptionCode::DomainSearch).is_some());
    }
}
