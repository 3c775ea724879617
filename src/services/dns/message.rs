//! Queries as they come in, and answers as they go out. The codec is hickory's; what it must not see is refused here
//! first: it makes room for as many questions as a header claims.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// Octets of the longest query that is read; one with every option that is in use has a few hundred.
pub const QUERY_LEN_MAX: usize = 4_096;

/// Octets of an answer over UDP that needs no fragments anywhere (SEMANTICS DN7).
pub const UDP_PAYLOAD: u16 = 1_232;

/// Octets of an answer to who says nothing about it (RFC 1035 §4.2.1).
const UDP_PAYLOAD_PLAIN: u16 = 512;

/// Octets of a header.
const HEADER_LEN: usize = 12;

/// A query that can be answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Chosen by the client.
    pub id: u16,
    /// RD.
    pub recursion_desired: bool,
    /// CD (RFC 4035 §3.1.6).
    pub checking_disabled: bool,
    /// The question.
    pub query: Query,
    /// What its OPT record says (RFC 6891).
    pub edns: Option<Options>,
}

/// What an OPT record says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Version of EDNS; ours is 0.
    pub version: u8,
    /// Octets of UDP payload that the client can take.
    pub payload: u16,
    /// DO (RFC 3225).
    pub dnssec_ok: bool,
}

/// Why something is no query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// Too short for a header, or a response: answering could begin a loop.
    Ignored,
    /// This is the answer.
    Refused(Vec<u8>, ResponseCode),
}

impl Request {
    /// Reads a query.
    ///
    /// # Errors
    /// It is none, or nothing that is understood.
    pub fn read(octets: &[u8]) -> Result<Self, Unreadable> {
        let header = octets.first_chunk::<HEADER_LEN>().filter(|header| header[2] & 0x80 == 0);
        let header = header.ok_or(Unreadable::Ignored)?;
        let refused = |code| Unreadable::Refused(header_only(header, code), code);
        if OpCode::from_u8(header[2] >> 3 & 15) != OpCode::Query {
            return Err(refused(ResponseCode::NotImp));
        }
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        // One question; no answers; OPT and whatever signs the query.
        if (count(4), count(6), count(8)) != (1, 0, 0) || count(10) > 2 {
            return Err(refused(ResponseCode::FormErr));
        }
        let Ok(mut message) = Message::from_vec(octets) else { return Err(refused(ResponseCode::FormErr)) };
        let Some(query) = message.queries.pop() else { return Err(refused(ResponseCode::FormErr)) };
        let edns = message.edns.as_ref().map(|edns| Options {
            version: edns.version(),
            payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        });
        Ok(Self {
            id: message.metadata.id,
            recursion_desired: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            query,
            edns,
        })
    }

    /// Octets of UDP payload that an answer may have.
    pub fn payload_max(&self) -> usize {
        let payload =
            self.edns.map_or(UDP_PAYLOAD_PLAIN, |options| options.payload.clamp(UDP_PAYLOAD_PLAIN, UDP_PAYLOAD));
        usize::from(payload)
    }
}

/// The answer to what could not be read: its header, and why.
fn header_only(query: &[u8; HEADER_LEN], code: ResponseCode) -> Vec<u8> {
    // QR, the opcode and RD as they were; RA.
    let flags = [0x80 | query[2] & 0x79, 0x80 | code.low()];
    [&query[..2], &flags, &[0; 8]].concat()
}

/// Where an answer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Origin {
    /// The cluster zone.
    Cluster,
    /// Reverse names of networks.
    Reverse,
    /// Names that mean the same everywhere, and what is refused (RFC 6761, RFC 8482).
    #[default]
    Special,
    /// An upstream's answer that was kept.
    Cache,
    /// An upstream server.
    Upstream,
    /// Every upstream server failed, or there are too many queries.
    Failed,
}

impl Origin {
    /// Every origin.
    pub const ALL: [Origin; 6] =
        [Self::Cluster, Self::Reverse, Self::Special, Self::Cache, Self::Upstream, Self::Failed];

    /// Its name in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Reverse => "reverse",
            Self::Special => "special",
            Self::Cache => "cache",
            Self::Upstream => "upstream",
            Self::Failed => "failed",
        }
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Where it comes from.
    pub origin: Origin,
    /// RCODE.
    pub code: ResponseCode,
    /// AA.
    pub authoritative: bool,
    /// AD, as the upstream server said.
    pub authentic: bool,
    /// Answer section.
    pub answers: Vec<Record>,
    /// Authority section.
    pub authorities: Vec<Record>,
    /// Additional section, without OPT.
    pub additionals: Vec<Record>,
}

impl Response {
    /// No more than a code.
    pub fn code(origin: Origin, code: ResponseCode) -> Self {
        Self { origin, code, ..Self::default() }
    }

    /// The answer to a request, in `most` octets. With the TC bit set are the answers that fit, as many as there is room for, because
    /// resolvers that do not ask over TCP (musl before 1.2.4) would have none at all otherwise; others discard them (RFC 2181 §9).
    pub fn encode(self, request: &Request, most: usize) -> Vec<u8> {
        let mut message = Message::new(request.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = request.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.authoritative = self.authoritative;
        message.metadata.authentic_data = self.authentic;
        message.metadata.checking_disabled = request.checking_disabled && !self.authoritative;
        message.metadata.response_code = self.code;
        message.queries.push(request.query.clone());
        message.answers = self.answers;
        message.authorities = self.authorities;
        message.additionals = self.additionals;
        if let Some(options) = &request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(options.dnssec_ok);
            message.edns = Some(edns);
        }
        if let Some(octets) = encoded(&message, most) {
            return octets;
        }
        if !message.additionals.is_empty() {
            message.additionals.clear();
            if let Some(octets) = encoded(&message, most) {
                return octets;
            }
        }
        message.authorities.clear();
        let fit = fitting(&message, most);
        message.answers.truncate(fit);
        message.metadata.truncation = true;
        encoded(&message, most).unwrap_or_default()
    }
}

/// How many of the answers fit.
fn fitting(message: &Message, most: usize) -> usize {
    // Name, type, class, TTL and length of an OPT record without options (RFC 6891 §6.1.2).
    const OPT: usize = 11;
    // In the header (RFC 1035 §4.1.1).
    const ANSWERS: std::ops::Range<usize> = 6..8;
    let mut octets = Vec::with_capacity(most);
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_max_size(u16::try_from(most.saturating_sub(OPT)).unwrap_or(u16::MAX));
    // It counts the records that it had room for.
    let emitted = message.emit(&mut encoder).is_ok();
    match octets.get(ANSWERS) {
        Some(&[high, low]) if emitted => usize::from(u16::from_be_bytes([high, low])),
        _ => 0,
    }
}

/// The message, if it fits.
fn encoded(message: &Message, most: usize) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(usize::from(UDP_PAYLOAD_PLAIN));
    let mut encoder = BinEncoder::new(&mut octets);
    message.emit(&mut encoder).ok()?;
    // The encoder sets TC itself where the length of a message ends.
    let whole = octets.get(2).is_some_and(|flags| flags & 2 != 0) == message.metadata.truncation;
    (whole && octets.len() <= most).then_some(octets)
}
