//! The DHCPv6 server (RFC 8415), without state: each port has its addresses in the tables, so every answer follows
//! from the message and the port alone (SEMANTICS DH7–DH9).
//!
//! The first IA_NA of a message is bound to the port's first address, whatever DUID and IAID the client uses: a
//! firmware's client and that of the system it boots get the same one. Temporary addresses and prefixes are not
//! given. The server's DUID is that of the router's MAC address, the same on every host.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use hostweave_switch::MacAddr;
use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::ROUTER_LINK_LOCAL;
use hostweave_switch::wire::dhcp6::{
    self, ALL_SERVERS, Association, CLIENT_PORT, Message, SERVER_PORT, message_type, option, status,
};
use hostweave_switch::wire::frame;
use hostweave_switch::wire::writer::{Full, Writer};

use super::datagram::{COPY_LEN, udp_payload};
use super::ndp::resolvers_v6;
use super::{LocalContext, LocalNote, search, verdict};

/// Answers a UDP datagram to port 547 if it is for this server: multicast, or to the gateway.
pub fn answer(ctx: &LocalContext<'_>, packet: &mut Packet, arena: &[Segment], note: &mut Option<LocalNote>) -> Verdict {
    let Some((_, gateway)) = ctx.network.v6 else { return Verdict::Continue };
    let at = usize::from(packet.meta.layers.l3);
    let Some(header) = packet.head().get(at..).and_then(|header| header.first_chunk::<40>()) else {
        return Verdict::Continue;
    };
    let octets = |at: usize| Ipv6Addr::from(std::array::from_fn(|index| header[at + index]));
    let (source, destination) = (octets(8), octets(24));
    if ![ALL_SERVERS, ROUTER_LINK_LOCAL, gateway].contains(&destination) {
        return Verdict::Continue;
    }
    let mut copy = [0; COPY_LEN];
    let result = udp_payload(packet, arena, &mut copy).and_then(Message::check).and_then(|message| {
        let request = Request::check(ctx, message, destination != ALL_SERVERS)?;
        let answer = request.decide(note)?;
        let to = SocketAddrV6::new(source, CLIENT_PORT, 0, 0);
        let from = SocketAddrV6::new(ROUTER_LINK_LOCAL, SERVER_PORT, 0, 0);
        let built = frame::replace(packet, |frame| {
            frame::udp6(frame, ctx.port.mac, from, to, |writer| request.emit(answer, writer))
        });
        built.map_err(|_| DropReason::DhcpInvalid)
    });
    verdict(result)
}

/// A message that RFC 8415 §16 does not tell the server to discard.
struct Request<'a> {
    ctx: &'a LocalContext<'a>,
    message: Message<'a>,
    client: Option<&'a [u8]>,
    unicast: bool,
}

/// What an answer holds besides both identifiers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Associations with addresses, and the configuration; to Solicit without Rapid Commit.
    Advertise,
    /// The same as a Reply; with the option when the client asked for Rapid Commit.
    Lease { rapid: bool },
    /// Associations as far as they are unknown, and Success: to Release and Decline.
    Returned,
    /// One status: to Confirm, and to unicast that was not allowed.
    Status(u16, &'static str),
    /// The configuration alone.
    Information,
}

impl<'a> Request<'a> {
    fn check(ctx: &'a LocalContext<'a>, message: Message<'a>, unicast: bool) -> Result<Self, DropReason> {
        let client = message.duid(option::CLIENT_ID)?;
        let server = message.duid(option::SERVER_ID)?;
        // RFC 8415 §16.2 to §16.13: which messages must and must not name client and server.
        let (client_needed, server_needed) = match message.message_type() {
            message_type::SOLICIT | message_type::CONFIRM | message_type::REBIND => (true, Some(false)),
            message_type::REQUEST | message_type::RENEW | message_type::RELEASE | message_type::DECLINE => {
                (true, Some(true))
            }
            message_type::INFORMATION_REQUEST => (false, None),
            _ => return Err(DropReason::DhcpInvalid),
        };
        if (client_needed && client.is_none()) || server_needed.is_some_and(|needed| needed != server.is_some()) {
            return Err(DropReason::DhcpInvalid);
        }
        if server.is_some_and(|server| server != server_duid()) {
            return Err(DropReason::DhcpNoAnswer);
        }
        let request = Self { ctx, message, client, unicast };
        let mut count = 0;
        for (code, data) in message.options().filter(|(code, _)| is_association(*code)) {
            Association::check(code, data)?;
            count += 1;
        }
        // §16.12: an Information-request with an association is discarded.
        let information = message.message_type() == message_type::INFORMATION_REQUEST;
        if count > ASSOCIATIONS_MAX || (information && count > 0) {
            return Err(DropReason::DhcpInvalid);
        }
        Ok(request)
    }

    /// RFC 8415 §18.3, one arm a message.
    fn decide(&self, note: &mut Option<LocalNote>) -> Result<Answer, DropReason> {
        let kind = self.message.message_type();
        let address = self.ctx.port.v6.first().copied();
        if self.unicast {
            // Server unicast is not offered (DH9). §18.3.2: "the server discards the message and responds with a Reply
            // message containing a Status Code option with the value UseMulticast"; §16: the others are discarded.
            let answered = [message_type::REQUEST, message_type::RENEW, message_type::RELEASE, message_type::DECLINE];
            let status = Answer::Status(status::USE_MULTICAST, "use ff02::1:2");
            return if answered.contains(&kind) { Ok(status) } else { Err(DropReason::DhcpInvalid) };
        }
        let leases = address.is_some() && self.associations(option::IA_NA).next().is_some();
        let mut lease = |rapid| {
            if let Some(address) = address.filter(|_| leases) {
                *note = Some(LocalNote::LeaseConfirmed(IpAddr::V6(address)));
            }
            Ok(Answer::Lease { rapid })
        };
        match kind {
            message_type::SOLICIT if self.message.option(option::RAPID_COMMIT).is_some() => lease(true),
            message_type::SOLICIT => Ok(Answer::Advertise),
            message_type::REQUEST | message_type::RENEW | message_type::REBIND => lease(false),
            message_type::CONFIRM => self.confirm(),
            message_type::RELEASE | message_type::DECLINE => Ok(Answer::Returned),
            _ => Ok(Answer::Information),
        }
    }

    /// §18.3.3: "the server MUST NOT send a reply" when the client named no address.
    fn confirm(&self) -> Result<Answer, DropReason> {
        let associations = [option::IA_NA, option::IA_TA].into_iter().flat_map(|code| self.associations(code));
        let mut addresses = associations.flat_map(|association| association.addresses()).peekable();
        if addresses.peek().is_none() {
            return Err(DropReason::DhcpNoAnswer);
        }
        // The link is the port: an address of somebody else would not work here.
        let confirmed = addresses.all(|address| self.ctx.port.v6.contains(&address));
        Ok(match confirmed {
            true => Answer::Status(status::SUCCESS, "all addresses are this port's"),
            false => Answer::Status(status::NOT_ON_LINK, "an address is not this port's"),
        })
    }

    fn associations(&self, code: u16) -> impl Iterator<Item = Association<'a>> + use<'a> {
        let options = self.message.options().filter(move |option| option.0 == code);
        options.filter_map(move |(_, data)| Association::check(code, data).ok())
    }

    fn emit(&self, answer: Answer, writer: &mut Writer<'_>) -> Result<(), Full> {
        let kind = if answer == Answer::Advertise { message_type::ADVERTISE } else { message_type::REPLY };
        writer.u8(kind)?;
        writer.bytes(&self.message.transaction_id())?;
        if let Some(client) = self.client {
            dhcp6::put(writer, option::CLIENT_ID, client)?;
        }
        dhcp6::put(writer, option::SERVER_ID, &server_duid())?;
        match answer {
            Answer::Advertise => {
                // §18.2.1: 255 makes the client go on at once, without waiting for other servers.
                dhcp6::put(writer, option::PREFERENCE, &[255])?;
                self.put_associations(writer)?;
                self.put_configuration(writer)
            }
            Answer::Lease { rapid } => {
                if rapid {
                    dhcp6::put(writer, option::RAPID_COMMIT, &[])?;
                }
                self.put_associations(writer)?;
                self.put_configuration(writer)
            }
            Answer::Returned => {
                self.put_unknown(writer)?;
                dhcp6::put_status(writer, status::SUCCESS, "")
            }
            Answer::Status(code, text) => dhcp6::put_status(writer, code, text),
            Answer::Information => {
                if self.message.option(option::OPTION_REQUEST).is_some()
                    && self.message.requests(option::INFORMATION_REFRESH_TIME)
                {
                    let refresh = self.ctx.port.lease_s.max(REFRESH_MIN_S).to_be_bytes();
                    dhcp6::put(writer, option::INFORMATION_REFRESH_TIME, &refresh)?;
                }
                self.put_configuration(writer)
            }
        }
    }

    /// Every association of the message, in its order, with an address or with the reason why not.
    fn put_associations(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let mut bound = false;
        for (code, data) in self.message.options() {
            let Some(association) = is_association(code).then(|| Association::check(code, data).ok()).flatten() else {
                continue;
            };
            match code {
                option::IA_NA => {
                    let address = self.ctx.port.v6.first().copied().filter(|_| !bound);
                    bound = true;
                    self.put_addresses(writer, &association, address)?;
                }
                option::IA_TA => dhcp6::put_with(writer, code, |writer| {
                    writer.bytes(&association.iaid)?;
                    dhcp6::put_status(writer, status::NO_ADDRS_AVAIL, "no temporary addresses")
                })?,
                _ => dhcp6::put_with(writer, code, |writer| {
                    put_association_header(writer, association.iaid, 0, 0)?;
                    dhcp6::put_status(writer, status::NO_PREFIX_AVAIL, "no prefix delegation")
                })?,
            }
        }
        Ok(())
    }

    fn put_addresses(
        &self,
        writer: &mut Writer<'_>,
        association: &Association<'_>,
        address: Option<Ipv6Addr>,
    ) -> Result<(), Full> {
        let kind = self.message.message_type();
        let refuse = |writer: &mut Writer<'_>, code, text| {
            put_association_header(writer, association.iaid, 0, 0)?;
            dhcp6::put_status(writer, code, text)
        };
        dhcp6::put_with(writer, option::IA_NA, |writer| {
            let renews = kind == message_type::RENEW || kind == message_type::REBIND;
            let Some(address) = address else {
                // §18.3.4, §18.3.5: an association that the server does not know.
                let code = if renews { status::NO_BINDING } else { status::NO_ADDRS_AVAIL };
                return refuse(writer, code, "one address a port");
            };
            // An attached address is the port's, though not of its network (SEMANTICS DA1).
            let on_link = |address: Ipv6Addr| {
                self.ctx.network.v6.is_some_and(|(range, _)| range.contains(&address))
                    || self.ctx.port.v6.contains(&address)
            };
            // §18.3.2: "If the server finds that the prefix on one or more IP addresses in any IA in the message from
            // the client is not appropriate for the link, the server MUST return the IA with the status NotOnLink."
            if kind == message_type::REQUEST && !association.addresses().all(on_link) {
                return refuse(writer, status::NOT_ON_LINK, "an address is not of this network");
            }
            let lease_s = self.ctx.port.lease_s;
            let (t1, t2) = match lease_s {
                u32::MAX => (lease_s, lease_s),
                // §14.2 recommends 0.5 and 0.8 of the shortest preferred lifetime.
                _ => (lease_s / 2, lease_s - lease_s / 5),
            };
            put_association_header(writer, association.iaid, t1, t2)?;
            dhcp6::put_address(writer, address, lease_s, lease_s)?;
            // §18.3.4: addresses that are no longer valid are returned with lifetimes of zero.
            let gone = association.addresses().filter(|other| renews && *other != address);
            gone.take(ADDRESSES_MAX).try_for_each(|other| dhcp6::put_address(writer, other, 0, 0))
        })
    }

    /// §18.3.7, §18.3.8: for each association that the server does not know, one with status NoBinding.
    fn put_unknown(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let own = |address: Ipv6Addr| self.ctx.port.v6.contains(&address);
        for association in self.associations(option::IA_NA).filter(|association| !association.addresses().any(own)) {
            dhcp6::put_with(writer, option::IA_NA, |writer| {
                put_association_header(writer, association.iaid, 0, 0)?;
                dhcp6::put_status(writer, status::NO_BINDING, "the address is not this port's")
            })?;
        }
        Ok(())
    }

    fn put_configuration(&self, writer: &mut Writer<'_>) -> Result<(), Full> {
        let network = self.ctx.network;
        if self.message.requests(option::DNS_SERVERS) && resolvers_v6(network).next().is_some() {
            dhcp6::put_with(writer, option::DNS_SERVERS, |writer| {
                resolvers_v6(network).take(RESOLVERS_MAX).try_for_each(|resolver| writer.bytes(&resolver.octets()))
            })?;
        }
        if network.domain.is_some() && self.message.requests(option::DOMAIN_LIST) {
            // A list without names is left out: the address matters more.
            let list = |writer: &mut Writer<'_>| search::put(writer, network, self.ctx.port).then_some(()).ok_or(Full);
            let _ = dhcp6::put_with(writer, option::DOMAIN_LIST, list);
        }
        Ok(())
    }
}

fn put_association_header(writer: &mut Writer<'_>, iaid: [u8; 4], t1_s: u32, t2_s: u32) -> Result<(), Full> {
    writer.bytes(&iaid)?;
    writer.u32(t1_s)?;
    writer.u32(t2_s)
}

fn is_association(code: u16) -> bool {
    matches!(code, option::IA_NA | option::IA_TA | option::IA_PD)
}

/// DUID-LL of the router's MAC address (RFC 8415 §11.4).
pub fn server_duid() -> [u8; 10] {
    let [a, b, c, d, e, f] = MacAddr::ROUTER.0;
    [0, 3, 0, 1, a, b, c, d, e, f]
}

/// Associations of one message, of all types.
const ASSOCIATIONS_MAX: usize = 8;
/// Foreign addresses of one association that are returned with lifetime zero.
const ADDRESSES_MAX: usize = 4;
/// Resolvers in one answer.
const RESOLVERS_MAX: usize = 8;
/// RFC 8415 §7.6, `IRT_MINIMUM`.
const REFRESH_MIN_S: u32 = 600;

#[cfg(test)]
mod tests {
    use super::super::testing::{A_LINK_LOCAL, A_V6, B_V6, GATEWAY_V6, Outcome, World, udp, udp_reply};
    use super::*;
    use dhcproto::v6::{
        DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IATA, Message as Client, MessageType, OptionCode, Status,
        StatusCode,
    };
    use dhcproto::{Decodable, Decoder, Encodable, Encoder};

    const CLIENT: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 0x0a];

    fn client(kind: MessageType) -> Client {
        let mut message = Client::new_with_id(kind, [7, 8, 9]);
        message.opts_mut().insert(DhcpOption::ClientId(CLIENT.to_vec()));
        if matches!(kind, MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline) {
            message.opts_mut().insert(DhcpOption::ServerId(server_duid().to_vec()));
        }
        message
    }

    fn ia(id: u32, addresses: &[Ipv6Addr]) -> DhcpOption {
        let addresses = addresses.iter().map(|addr| {
            DhcpOption::IAAddr(IAAddr { addr: *addr, preferred_life: 0, valid_life: 0, opts: DhcpOptions::new() })
        });
        DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts: addresses.collect() })
    }

    /// dhcproto puts an option before those of the same code that are there already.
    fn with(kind: MessageType, options: impl IntoIterator<Item = DhcpOption>) -> Client {
        let mut message = client(kind);
        options.into_iter().for_each(|option| message.opts_mut().insert(option));
        message
    }

    fn send_to(world: &World, to: Ipv6Addr, message: &Client) -> Outcome {
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        world.ask(&udp(A_LINK_LOCAL.into(), 546, to.into(), 547, &bytes))
    }

    fn send(world: &World, message: &Client) -> Outcome {
        send_to(world, ALL_SERVERS, message)
    }

    fn answer(outcome: Outcome) -> Client {
        let (src, dst, ports, bytes) = udp_reply(&outcome.reply());
        assert_eq!((src, dst, ports), (ROUTER_LINK_LOCAL.into(), A_LINK_LOCAL.into(), (547, 546)));
        let message = Client::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!(message.xid(), [7, 8, 9]);
        assert_eq!(message.opts().get(OptionCode::ServerId), Some(&DhcpOption::ServerId(server_duid().to_vec())));
        message
    }

    /// (IAID, T1, T2, addresses with valid lifetimes, status).
    type Read = (u32, u32, u32, Vec<(Ipv6Addr, u32)>, Option<Status>);

    /// Each IA_NA.
    fn associations(message: &Client) -> Vec<Read> {
        let all = message.opts().get_all(OptionCode::IANA).unwrap_or_default();
        let read = |option: &DhcpOption| {
            let DhcpOption::IANA(ia) = option else { panic!("{option:?}") };
            let addresses = ia.opts.iter().filter_map(|option| match option {
                DhcpOption::IAAddr(address) => Some((address.addr, address.valid_life)),
                _ => None,
            });
            (ia.id, ia.t1, ia.t2, addresses.collect(), status(&ia.opts))
        };
        all.iter().map(read).collect()
    }

    fn status(options: &DhcpOptions) -> Option<Status> {
        match options.get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(StatusCode { status, .. })) => Some(*status),
            _ => None,
        }
    }

    #[test]
    fn solicit_and_request_give_the_ports_address() {
        let world = World::new();
        let lease = vec![(5, 1800, 2880, vec![(A_V6, 3600)], None)];
        let outcome = send(&world, &with(MessageType::Solicit, [ia(5, &[])]));
        assert_eq!(outcome.note, None);
        let advertise = answer(outcome);
        assert_eq!((advertise.msg_type(), associations(&advertise)), (MessageType::Advertise, lease.clone()));
        assert_eq!(advertise.opts().get(OptionCode::Preference), Some(&DhcpOption::Preference(255)));
        for kind in [MessageType::Request, MessageType::Renew, MessageType::Rebind] {
            let outcome = send(&world, &with(kind, [ia(5, &[A_V6])]));
            assert_eq!(outcome.note, Some(LocalNote::LeaseConfirmed(A_V6.into())));
            let reply = answer(outcome);
            assert_eq!((reply.msg_type(), associations(&reply)), (MessageType::Reply, lease.clone()));
            assert_eq!(reply.opts().get(OptionCode::ClientId), Some(&DhcpOption::ClientId(CLIENT.to_vec())));
            let resolvers = DhcpOption::DomainNameServers(vec![GATEWAY_V6]);
            assert_eq!(reply.opts().get(OptionCode::DomainNameServers), Some(&resolvers));
            let Some(DhcpOption::DomainSearchList(names)) = reply.opts().get(OptionCode::DomainSearchList) else {
                panic!("no search list")
            };
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            assert_eq!(names, ["default.svc.cluster.local.", "svc.cluster.local.", "cluster.local."]);
        }
    }

    #[test]
    fn da1_an_attached_address_is_given() {
        let mut world = World::new();
        let public: Ipv6Addr = "2001:db8:aa::7".parse().unwrap();
        world.port.v6.insert(0, public);
        for kind in [MessageType::Request, MessageType::Renew] {
            let reply = answer(send(&world, &with(kind, [ia(5, &[public])])));
            assert_eq!(associations(&reply)[0].3, [(public, 3600)]);
        }
        let both = send(&world, &with(MessageType::Confirm, [ia(5, &[public, A_V6])]));
        assert_eq!(status(answer(both).opts()), Some(Status::Success));
    }

    #[test]
    fn rapid_commit_takes_two_messages() {
        let outcome = send(&World::new(), &with(MessageType::Solicit, [ia(5, &[]), DhcpOption::RapidCommit]));
        assert_eq!(outcome.note, Some(LocalNote::LeaseConfirmed(A_V6.into())));
        let reply = answer(outcome);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
        assert_eq!(associations(&reply)[0].3, [(A_V6, 3600)]);
    }

    #[test]
    fn what_is_not_given_has_its_status() {
        let mut world = World::new();
        let prefix = DhcpOption::IAPD(IAPD { id: 1, t1: 0, t2: 0, opts: DhcpOptions::new() });
        let temporary = DhcpOption::IATA(IATA { id: 2, opts: DhcpOptions::new() });
        let reply = answer(send(&world, &with(MessageType::Request, [ia(6, &[]), ia(5, &[]), prefix, temporary])));
        assert_eq!(associations(&reply)[1], (6, 0, 0, vec![], Some(Status::NoAddrsAvail)));
        let Some(DhcpOption::IAPD(prefix)) = reply.opts().get(OptionCode::IAPD) else { panic!("no IA_PD") };
        assert_eq!((prefix.id, status(&prefix.opts)), (1, Some(Status::NoPrefixAvail)));
        let Some(DhcpOption::IATA(temporary)) = reply.opts().get(OptionCode::IATA) else { panic!("no IA_TA") };
        assert_eq!((temporary.id, status(&temporary.opts)), (2, Some(Status::NoAddrsAvail)));
        let outside = "2001:db8:0:2::7".parse().unwrap();
        let reply = answer(send(&world, &with(MessageType::Request, [ia(5, &[outside])])));
        assert_eq!(associations(&reply)[0].4, Some(Status::NotOnLink));
        // A renewal of somebody else's address takes it away and gives the own one.
        let reply = answer(send(&world, &with(MessageType::Renew, [ia(6, &[]), ia(5, &[B_V6])])));
        assert_eq!(associations(&reply)[0].3, [(A_V6, 3600), (B_V6, 0)]);
        assert_eq!(associations(&reply)[1].4, Some(Status::NoBinding));
        world.port.v6.clear();
        let outcome = send(&world, &with(MessageType::Solicit, [ia(5, &[]), DhcpOption::RapidCommit]));
        assert_eq!(outcome.note, None);
        assert_eq!(associations(&answer(outcome))[0].4, Some(Status::NoAddrsAvail));
    }

    #[test]
    fn confirm_says_whether_the_addresses_work_here() {
        let world = World::new();
        let confirm = |addresses: &[Ipv6Addr]| send(&world, &with(MessageType::Confirm, [ia(5, addresses)]));
        assert_eq!(status(answer(confirm(&[A_V6])).opts()), Some(Status::Success));
        assert_eq!(status(answer(confirm(&[A_V6, B_V6])).opts()), Some(Status::NotOnLink));
        assert_eq!(confirm(&[]).verdict, Verdict::Drop(DropReason::DhcpNoAnswer));
    }

    #[test]
    fn release_and_decline_are_acknowledged() {
        let world = World::new();
        for kind in [MessageType::Release, MessageType::Decline] {
            let reply = answer(send(&world, &with(kind, [ia(5, &[A_V6]), ia(6, &[B_V6])])));
            assert_eq!((reply.msg_type(), status(reply.opts())), (MessageType::Reply, Some(Status::Success)));
            assert_eq!(associations(&reply), [(6, 0, 0, vec![], Some(Status::NoBinding))]);
        }
    }

    #[test]
    fn information_is_given_without_addresses() {
        let world = World::new();
        let reply = answer(send(&world, &client(MessageType::InformationRequest)));
        assert!(reply.opts().get(OptionCode::DomainNameServers).is_some());
        assert!(reply.opts().get(OptionCode::IANA).is_none());
        let outcome = send(&world, &with(MessageType::InformationRequest, [ia(5, &[])]));
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::DhcpInvalid));
    }

    #[test]
    fn unicast_is_answered_with_use_multicast_or_not_at_all() {
        let world = World::new();
        for to in [ROUTER_LINK_LOCAL, GATEWAY_V6] {
            // A link-local source reaches the gateway's global address only where `guard` lets it.
            let outcome = send_to(&world, to, &with(MessageType::Request, [ia(5, &[])]));
            if to == ROUTER_LINK_LOCAL {
                assert_eq!(outcome.note, None);
                assert_eq!(status(answer(outcome).opts()), Some(Status::UseMulticast));
            } else {
                assert_eq!(outcome.verdict, Verdict::Drop(DropReason::AddressNotForwardable));
            }
        }
        let outcome = send_to(&world, ROUTER_LINK_LOCAL, &with(MessageType::Solicit, [ia(5, &[])]));
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::DhcpInvalid));
    }

    #[test]
    fn what_rfc_8415_tells_to_discard_is_discarded() {
        let world = World::new();
        let invalid = Verdict::Drop(DropReason::DhcpInvalid);
        let bare = |kind| Client::new_with_id(kind, [1, 2, 3]);
        let server = |duid: &[u8]| DhcpOption::ServerId(duid.to_vec());
        for kind in [MessageType::Solicit, MessageType::Request, MessageType::Confirm, MessageType::Renew] {
            assert_eq!(send(&world, &bare(kind)).verdict, invalid, "{kind:?} without client identifier");
        }
        for kind in [MessageType::Solicit, MessageType::Confirm, MessageType::Rebind] {
            assert_eq!(send(&world, &with(kind, [server(&server_duid())])).verdict, invalid, "{kind:?} with server");
        }
        for kind in [MessageType::Advertise, MessageType::Reply, MessageType::Reconfigure, MessageType::RelayForw] {
            assert_eq!(send(&world, &client(kind)).verdict, invalid, "{kind:?}");
        }
        let mut other = bare(MessageType::Request);
        other.opts_mut().insert(DhcpOption::ClientId(CLIENT.to_vec()));
        assert_eq!(send(&world, &other).verdict, invalid, "Request without server identifier");
        other.opts_mut().insert(server(&[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]));
        assert_eq!(send(&world, &other).verdict, Verdict::Drop(DropReason::DhcpNoAnswer));
        let many = (0..9).map(|id| ia(id, &[]));
        assert_eq!(send(&world, &with(MessageType::Solicit, many)).verdict, invalid);
    }
}
