//! `hostweave whois`: whose an address is.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Session;
use super::failure::Failure;
use super::observe;
use super::output::{self, Format, cell, hint, print};
use crate::observe::time::rfc3339;

/// Arguments of `whois`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// ADDRESS, or ADDRESS:PORT for an L4 port of a NAT address
    #[arg(value_name = "ADDRESS[:PORT]")]
    place: Place,
    /// At this time, such as 2026-11-23T12:03:00Z, or so long ago, such as 5m; of L4 ports of NAT addresses and of attached public addresses (other owners are those of now)
    #[arg(long, value_name = "TIME", value_parser = observe::moment)]
    at: Option<SystemTime>,
}

/// An address with or without an L4 port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self { address, port: None });
        }
        let place: SocketAddr =
            text.parse().map_err(|_| "write an address, or 203.0.113.7:40123, or [2001:db8::7]:40123".to_owned())?;
        Ok(Self { address: place.ip(), port: Some(place.port()) })
    }
}

/// Says whose an address is.
///
/// # Errors
/// It is nobody's; the daemon's error, or the connection's.
pub fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let Place { address, port } = args.place;
    let result = session.call("whois.run", json!({"address": address, "l4Port": port, "at": args.at.map(rfc3339)}))?;
    let owners = result["owners"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&result)?,
        Format::Yaml => output::print_yaml(&result)?,
        Format::Name => owners.iter().try_for_each(|owner| print(&format!("{}\n", named(owner))))?,
        _ => print(&table(owners))?,
    }
    if owners.iter().any(|owner| owner["at"] == "now") {
        hint(
            "only attached public addresses and L4 ports of NAT addresses have a past: what begins with \"now\" need not have been so then",
        );
    }
    Ok(())
}

/// `port/shop/web-0`, as `get -o name` has it.
fn named(owner: &Value) -> String {
    format!("{}/{}", cell(owner, "/kind").to_ascii_lowercase(), cell(owner, "/name"))
}

fn table(owners: &[Value]) -> String {
    let rows = owners.iter().map(|owner| vec![cell(owner, "/kind"), cell(owner, "/name"), cell(owner, "/text")]);
    let mut text = output::table(&["KIND", "NAME", "WHAT"], rows.collect());
    for owner in owners {
        let leases: Vec<Value> = match &owner["lease"] {
            Value::Null => owner["leases"].as_array().cloned().unwrap_or_default(),
            lease => vec![lease.clone()],
        };
        if !leases.is_empty() {
            text = text + "\n" + &super::nat::leases_table(&leases);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_both_families() {
        let place = |address: &str, port| Ok(Place { address: address.parse().unwrap(), port });
        for (text, expected) in [
            ("203.0.113.7", place("203.0.113.7", None)),
            ("203.0.113.7:40123", place("203.0.113.7", Some(40_123))),
            ("2001:db8::7", place("2001:db8::7", None)),
            ("[2001:db8::7]", place("2001:db8::7", None)),
            ("[2001:db8::7]:40123", place("2001:db8::7", Some(40_123))),
        ] {
            assert_eq!(text.parse::<Place>(), expected, "{text}");
        }
        for bad in ["", "x", "203.0.113.7:", "203.0.113.7:70000", "203.0.113.0/24"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_owner_is_shown_with_its_blocks() {
        let lease = json!({"port": "shop/a", "address": "203.0.113.7", "firstPort": 1024, "lastPort": 1535,
                           "pool": "ord1", "since": "2026-11-23T12:00:00Z", "until": null});
        let owner = json!({"kind": "natPool", "name": "ord1", "text": "1 ports share it", "leases": [lease]});
        let text = table(std::slice::from_ref(&owner));
        assert!(text.contains("natPool   ord1") && text.contains("1024-1535") && text.contains("now"), "{text}");
        assert_eq!(named(&owner), "natpool/ord1");
    }
}
