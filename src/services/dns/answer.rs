//! What is answered without asking anybody: the zone, names that mean the same everywhere, and what is refused.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{HINFO, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::message::{Origin, Request, Response};
use super::name::{Reverse, below};
use super::zone::{Found, Place, TTL_S, Zone, address_record};

/// Aliases that are followed for one query.
pub const ALIASES_MAX: usize = 8;

/// Seconds that the answer to ANY may be kept.
const ANY_TTL_S: u32 = 3_600;

/// What the zone has to say.
#[derive(Debug)]
pub enum Answer {
    /// All of it.
    Here(Response),
    /// So far; this has to be asked elsewhere.
    Ask(Response, Query),
}

/// Answers a request as far as the zone of the asking network goes.
pub fn answer(zone: &Zone, request: &Request) -> Answer {
    let (query, refuse) = (&request.query, |code| Answer::Here(Response::code(Origin::Special, code)));
    if request.edns.is_some_and(|options| options.version != 0) {
        return refuse(ResponseCode::BADVERS);
    }
    match query.query_type() {
        _ if query.query_class() != DNSClass::IN => return refuse(ResponseCode::Refused),
        // Transfers of zones, and types that only mean something to name servers among themselves (RFC 6895 §3.1).
        RecordType::AXFR | RecordType::IXFR => return refuse(ResponseCode::Refused),
        kind if (128..=254).contains(&u16::from(kind)) || kind == RecordType::OPT => {
            return refuse(ResponseCode::NotImp);
        }
        _ => {}
    }
    let mut response = Response::default();
    let mut name = query.name().clone();
    for follows in 0..ALIASES_MAX {
        if let Some(special) = special(&name, query) {
            merge(&mut response, special, follows > 0);
            return Answer::Here(response);
        }
        let (records, place) = match zone.find(&name) {
            Found::Elsewhere if query.query_type() == RecordType::ANY => {
                any(&mut response, name);
                return Answer::Here(response);
            }
            Found::Elsewhere if !request.recursion_desired && follows == 0 => return refuse(ResponseCode::Refused),
            Found::Elsewhere if !request.recursion_desired => return Answer::Here(response),
            Found::Elsewhere => return Answer::Ask(response, Query::query(name, query.query_type())),
            Found::Records(records, place) => (Some(records), place),
            Found::Nothing(place) => (None, place),
        };
        response.authoritative = true;
        response.origin = if place.reverse { Origin::Reverse } else { Origin::Cluster };
        let Some(records) = records else {
            response.code = ResponseCode::NXDomain;
            response.authorities.push(Record::from_rdata(place.apex, TTL_S, zone.soa().clone()));
            return Answer::Here(response);
        };
        match take(zone, request, name, records, place, &mut response) {
            Some(target) => name = target,
            None => return Answer::Here(response),
        }
    }
    // Aliases in a circle: what was found, without an end.
    Answer::Here(response)
}

/// Puts what a name has of the wanted type into a response. Returns where an alias leads instead.
fn take(
    zone: &Zone,
    request: &Request,
    name: Name,
    records: &[RData],
    place: Place,
    response: &mut Response,
) -> Option<Name> {
    let wanted = request.query.query_type();
    if wanted == RecordType::ANY {
        any(response, name);
        return None;
    }
    let before = response.answers.len();
    let record = |data: &RData| Record::from_rdata(name.clone(), TTL_S, data.clone());
    match wanted {
        RecordType::SOA if place.at_apex => response.answers.push(record(zone.soa())),
        RecordType::NS if place.at_apex => response.answers.push(record(zone.ns())),
        _ => response.answers.extend(records.iter().filter(|data| data.record_type() == wanted).map(record)),
    }
    let found = response.answers.get_mut(before..).unwrap_or_default();
    if !found.is_empty() {
        // Clients tend to take the first one.
        found.rotate_left(usize::from(request.id) % found.len());
        add_hosts(zone, records, wanted, response);
        return None;
    }
    let alias = records.iter().find_map(|record| match record {
        RData::CNAME(target) if wanted != RecordType::CNAME => Some(target),
        _ => None,
    });
    if let Some(target) = alias {
        response.answers.push(record(&RData::CNAME(target.clone())));
        return Some(target.0.clone());
    }
    // The name exists, the type does not (RFC 2308 §2.2).
    response.authorities.push(Record::from_rdata(place.apex, TTL_S, zone.soa().clone()));
    None
}

/// Adds the addresses of those that SRV records name.
fn add_hosts(zone: &Zone, records: &[RData], wanted: RecordType, response: &mut Response) {
    let targets = records.iter().filter_map(|data| match data {
        RData::SRV(srv) if wanted == RecordType::SRV => Some(&srv.target),
        _ => None,
    });
    for target in targets {
        if let Found::Records(hosts, _) = zone.find(target) {
            let host = |data: &RData| Record::from_rdata(target.clone(), TTL_S, data.clone());
            response.additionals.extend(hosts.iter().filter(|data| data.ip_addr().is_some()).map(host));
        }
    }
}

/// The answer to ANY: one record that says that it is not answered (RFC 8482 §4.2).
fn any(response: &mut Response, name: Name) {
    let refused = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    response.answers.push(Record::from_rdata(name, ANY_TTL_S, refused));
}

fn merge(response: &mut Response, special: Response, alias: bool) {
    response.code = special.code;
    response.answers.extend(special.answers);
    if !alias {
        response.origin = special.origin;
    }
}

/// Names that mean the same everywhere, and which no upstream server is to see (RFC 6761 §6.3, §6.4; RFC 7686; RFC 6303 §4.2).
fn special(name: &Name, query: &Query) -> Option<Response> {
    let top = name.iter().next_back()?;
    if [&b"invalid"[..], b"onion"].iter().any(|reserved| top.eq_ignore_ascii_case(reserved)) {
        return Some(Response::code(Origin::Special, ResponseCode::NXDomain));
    }
    let mut response = Response::code(Origin::Special, ResponseCode::NoError);
    let record = |data| Record::from_rdata(name.clone(), ANY_TTL_S, data);
    if top.eq_ignore_ascii_case(b"localhost") {
        match query.query_type() {
            RecordType::A => response.answers.push(record(address_record(Ipv4Addr::LOCALHOST.into()))),
            RecordType::AAAA => response.answers.push(record(address_record(Ipv6Addr::LOCALHOST.into()))),
            _ => {}
        }
        return Some(response);
    }
    let Reverse { net, deeper } = Reverse::of(name)?;
    if deeper || net.prefix_len() != net.max_prefix_len() || !net.addr().is_loopback() {
        return None;
    }
    if query.query_type() == RecordType::PTR {
        response.answers.push(record(RData::PTR(PTR(below(&Name::root(), &["localhost"])?))));
    }
    Some(response)
}
