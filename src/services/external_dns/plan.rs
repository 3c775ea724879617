//! What has to change in the zone, worked out from what it has and what is wanted. No I/O.
//!
//! A name is ours when its TXT records have our mark, in the form of external-dns's registry: `heritage=hostweave,
//! hostweave/owner=OWNER,hostweave/resource=service/NAMESPACE/NAME` (without spaces). A name that has addresses or an alias
//! and not that mark belongs to somebody else, and stays as it is (SEMANTICS DN11). A, AAAA and mark change together (DN12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::spec::{ExternalDnsSpec, RecordPolicy};

/// A TXT record: its strings.
pub type Text = Vec<Vec<u8>>;

/// What a name has in the zone, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Have {
    /// A records.
    pub a: BTreeSet<Ipv4Addr>,
    /// AAAA records.
    pub aaaa: BTreeSet<Ipv6Addr>,
    /// All TXT records.
    pub texts: BTreeSet<Text>,
    /// Time to live of its TXT records, which others may share.
    pub text_ttl: Option<u32>,
    /// Times to live of A and AAAA records.
    pub ttls: BTreeSet<u32>,
    /// Whether it is an alias, or belongs to another zone (CNAME, DNAME, NS).
    pub taken: bool,
    /// Whether the names below it are somewhere else (NS: RFC 1034 §4.2.1; DNAME: RFC 6672 §2.3).
    pub cut: bool,
}

/// Why a Service does not get a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denied {
    /// `namespace/name` of the Service.
    pub service: String,
    /// Whose doing it is.
    pub cause: Cause,
    /// In a sentence.
    pub why: String,
}

/// Whose doing it is that a Service does not get a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Somebody else has the name, or wants it as well.
    Conflict,
    /// The server does not want it there.
    Refused,
    /// The server cannot do it now.
    ServerFailure,
}

impl Cause {
    /// The reason in the condition `ExternalRecords`.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Conflict => "Conflict",
            Cause::Refused => "Refused",
            Cause::ServerFailure => "ServerFailure",
        }
    }
}

/// What a name is to stand for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// `namespace/name` of the Service.
    pub service: String,
    /// A records.
    pub a: BTreeSet<Ipv4Addr>,
    /// AAAA records.
    pub aaaa: BTreeSet<Ipv6Addr>,
}

/// A change of one name, all in one update.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The name.
    pub name: String,
    /// What it must still have.
    pub before: Have,
    /// What it is to have; `None` when it goes.
    pub after: Option<Wish>,
    /// Marks of ours that go.
    pub old_marks: Vec<Text>,
}

/// What has to be done, and what cannot be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Changes, by name.
    pub changes: Vec<Change>,
    /// Services that do not get a name, and why.
    pub conflicts: Vec<(String, String)>,
    /// Names that are ours and that nobody wants.
    pub unwanted: BTreeSet<String>,
}

/// What each name is to stand for, and which Services get nothing because another one has the name. Of two that want a name,
/// the one that has it keeps it, else the first by name gets it.
pub fn wishes(
    spec: &ExternalDnsSpec,
    have: &BTreeMap<String, Have>,
) -> (BTreeMap<String, Wish>, Vec<(String, String)>) {
    let mut claims: BTreeMap<&str, Vec<Wish>> = BTreeMap::new();
    for wanted in spec.wanted.iter().filter(|wanted| !wanted.addresses.is_empty()) {
        let mut wish = Wish { service: wanted.service.clone(), ..Wish::default() };
        for address in &wanted.addresses {
            match address {
                IpAddr::V4(address) => drop(wish.a.insert(*address)),
                IpAddr::V6(address) => drop(wish.aaaa.insert(*address)),
            }
        }
        for name in wanted.names.iter().collect::<BTreeSet<_>>() {
            claims.entry(name).or_default().push(wish.clone());
        }
    }
    let mut conflicts = Vec::new();
    let mut wishes = BTreeMap::new();
    for (name, mut claims) in claims {
        claims.sort_by(|a, b| a.service.cmp(&b.service));
        let has =
            |wish: &Wish| have.get(name).is_some_and(|have| have.texts.contains(&mark(&spec.owner, &wish.service)));
        let winner = claims.iter().position(has).unwrap_or(0);
        let wish = claims.remove(winner);
        let loses = |other: Wish| (other.service, format!("{name} is wanted by Service {} as well", wish.service));
        conflicts.extend(claims.into_iter().map(loses));
        wishes.insert(name.to_owned(), wish);
    }
    (wishes, conflicts)
}

/// What has to change. `expired`: whether a name that nobody wants has been so for long enough.
pub fn plan(spec: &ExternalDnsSpec, have: &BTreeMap<String, Have>, expired: impl Fn(&str) -> bool) -> Plan {
    let (wishes, conflicts) = wishes(spec, have);
    let mut plan = Plan { conflicts, ..Plan::default() };
    let nothing = Have::default();
    for (name, wish) in &wishes {
        let before = have.get(name).unwrap_or(&nothing);
        let marks = marks(before, &spec.owner);
        let new_mark = mark(&spec.owner, &wish.service);
        let foreign = marks.is_empty() && (!before.a.is_empty() || !before.aaaa.is_empty() || has_mark(before));
        if let Some(above) = cut_above(name, &spec.zone, have) {
            let why =
                format!("{name} lies below {above}, where another zone begins or an alias for all names below stands");
            plan.conflicts.push((wish.service.clone(), why));
            continue;
        }
        if before.taken || foreign {
            let why = format!("{name} has records that somebody else has made; they stay as they are");
            plan.conflicts.push((wish.service.clone(), why));
            continue;
        }
        let right = before.a == wish.a && before.aaaa == wish.aaaa && before.ttls.iter().all(|ttl| *ttl == spec.ttl_s);
        if !right || marks != [&new_mark] {
            let old_marks = marks.into_iter().filter(|mark| **mark != new_mark).cloned().collect();
            let (name, before) = (name.clone(), before.clone());
            plan.changes.push(Change { name, before, after: Some(wish.clone()), old_marks });
        }
    }
    for (name, before) in have.iter().filter(|(name, _)| !wishes.contains_key(*name)) {
        let marks: Vec<Text> = marks(before, &spec.owner).into_iter().cloned().collect();
        if marks.is_empty() || spec.policy == RecordPolicy::UpsertOnly {
            continue;
        }
        plan.unwanted.insert(name.clone());
        if expired(name) && !before.taken {
            plan.changes.push(Change { name: name.clone(), before: before.clone(), after: None, old_marks: marks });
        }
    }
    plan
}

/// The name above one, up to the zone's own, that has the names below it somewhere else.
fn cut_above<'a>(name: &'a str, zone: &str, have: &BTreeMap<String, Have>) -> Option<&'a str> {
    let above = |name: &&'a str| name.split_once('.').map(|(_, above)| above);
    let all = std::iter::successors(above(&name), above);
    let within =
        all.take_while(|above| *above == zone || above.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.')));
    within.filter(|above| have.get(*above).is_some_and(|have| have.cut)).last()
}

/// Our mark at a name of a Service. A string of a TXT record has at most 255 octets (RFC 1035 §3.3.14).
pub fn mark(owner: &str, service: &str) -> Text {
    let text = format!("{}{service}", prefix(owner));
    text.as_bytes().chunks(255).map(<[u8]>::to_vec).collect()
}

/// The Service that a mark of ours names; `None` for any other text.
pub fn marked_for(owner: &str, text: &Text) -> Option<String> {
    let text = String::from_utf8(text.concat()).ok()?;
    text.strip_prefix(&prefix(owner)).map(str::to_owned)
}

fn prefix(owner: &str) -> String {
    format!("heritage=hostweave,hostweave/owner={owner},hostweave/resource=service/")
}

/// Marks of ours at a name.
fn marks<'a>(have: &'a Have, owner: &str) -> Vec<&'a Text> {
    let prefix = prefix(owner);
    have.texts.iter().filter(|text| text.concat().starts_with(prefix.as_bytes())).collect()
}

/// Whether anybody has marked a name, of those that know this form.
fn has_mark(have: &Have) -> bool {
    have.texts.iter().any(|text| text.concat().starts_with(b"heritage="))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::services::external_dns::spec::{Algorithm, TsigSpec, Wanted};

    pub fn spec(wanted: &[(&str, &str, &str)]) -> ExternalDnsSpec {
        let wanted = wanted.iter().map(|(service, name, addresses)| Wanted {
            service: (*service).to_owned(),
            names: vec![(*name).to_owned()],
            addresses: addresses.split_whitespace().map(|address| address.parse().unwrap()).collect(),
            problems: Vec::new(),
        });
        ExternalDnsSpec {
            server: "192.0.2.53:53".parse().unwrap(),
            zone: "example".to_owned(),
            tsig: TsigSpec { name: "k".into(), algorithm: Algorithm::HmacSha256, secret_file: "/k".into() },
            policy: RecordPolicy::Sync,
            base_domain: "example".to_owned(),
            ttl_s: 300,
            owner: "host-a".to_owned(),
            grace_s: 60,
            interval_s: 60,
            wanted: wanted.collect(),
        }
    }

    /// What a zone has: `name addresses marked-for`.
    fn zone(records: &[(&str, &str, &[Text])]) -> BTreeMap<String, Have> {
        let have = |(name, addresses, texts): &(&str, &str, &[Text])| {
            let mut have = Have { texts: texts.iter().cloned().collect(), ..Have::default() };
            for address in addresses.split_whitespace() {
                have.ttls.insert(300);
                match address.parse().unwrap() {
                    IpAddr::V4(address) => have.a.insert(address),
                    IpAddr::V6(address) => have.aaaa.insert(address),
                };
            }
            ((*name).to_owned(), have)
        };
        records.iter().map(have).collect()
    }

    /// `+name`, `~name`, `-name` for what is made, changed, deleted; `!service` for a conflict.
    fn summary(plan: &Plan) -> Vec<String> {
        let changes = plan.changes.iter().map(|change| match (&change.after, change.before == Have::default()) {
            (Some(_), true) => format!("+{}", change.name),
            (Some(_), false) => format!("~{}", change.name),
            (None, _) => format!("-{}", change.name),
        });
        changes.chain(plan.conflicts.iter().map(|(service, _)| format!("!{service}"))).collect()
    }

    fn ours(service: &str) -> Text {
        mark("host-a", service)
    }

    #[test]
    fn the_table_of_what_happens_to_a_name() {
        let wanted = [("shop/web", "web.example", "198.51.100.7 2001:db8::7")];
        let spf = vec![b"v=spf1 -all".to_vec()];
        let other = mark("host-b", "shop/web");
        let foreign = vec![b"heritage=external-dns,external-dns/owner=x".to_vec()];
        let right = "198.51.100.7 2001:db8::7";
        let check = |records: &[(&str, &str, &[Text])], expected: &[&str]| {
            assert_eq!(summary(&plan(&spec(&wanted), &zone(records), |_| true)), expected, "{records:?}");
        };
        check(&[], &["+web.example"]);
        check(&[("web.example", right, &[ours("shop/web")])], &[]);
        check(&[("web.example", "198.51.100.7", &[ours("shop/web")])], &["~web.example"]);
        check(&[("web.example", right, &[ours("shop/gone")])], &["~web.example"]);
        check(&[("web.example", "", std::slice::from_ref(&spf))], &["~web.example"]);
        check(&[("web.example", right, &[spf.clone(), ours("shop/web")])], &[]);
        check(&[("web.example", right, &[])], &["!shop/web"]);
        check(&[("web.example", right, std::slice::from_ref(&spf))], &["!shop/web"]);
        check(&[("web.example", right, std::slice::from_ref(&other))], &["!shop/web"]);
        check(&[("web.example", "", std::slice::from_ref(&other))], &["!shop/web"]);
        check(&[("web.example", "", std::slice::from_ref(&foreign))], &["!shop/web"]);
        // Names that are not wanted: only ours go.
        check(
            &[
                ("a.example", "198.51.100.1", &[ours("shop/a")]),
                ("b.example", "198.51.100.2", &[]),
                ("c.example", "198.51.100.3", std::slice::from_ref(&other)),
                ("web.example", right, &[ours("shop/web")]),
            ],
            &["-a.example"],
        );
        let mut alias = zone(&[("web.example", "", &[])]);
        alias.get_mut("web.example").unwrap().taken = true;
        assert_eq!(summary(&plan(&spec(&wanted), &alias, |_| true)), ["!shop/web"]);
    }

    #[test]
    fn names_go_after_their_grace_and_never_under_upsert_only() {
        let have = zone(&[("a.example", "198.51.100.1", &[ours("shop/a")])]);
        let waits = plan(&spec(&[]), &have, |_| false);
        assert_eq!((summary(&waits), waits.unwanted.len()), (vec![], 1));
        let keeps = ExternalDnsSpec { policy: RecordPolicy::UpsertOnly, ..spec(&[]) };
        assert_eq!(plan(&keeps, &have, |_| true), Plan::default());
        // A Service without an address (yet) wants no records.
        let pending = spec(&[("shop/a", "a.example", "")]);
        assert_eq!(plan(&pending, &have, |_| false).unwanted.len(), 1);
    }

    #[test]
    fn names_below_a_foreign_delegation_or_dname_are_somebody_elses() {
        let cut = Have { taken: true, cut: true, ..Have::default() };
        let alias = Have { taken: true, ..Have::default() };
        let wanted = spec(&[
            ("shop/a", "x.sub.example", "198.51.100.1"),
            ("shop/b", "x.y.sub.example", "198.51.100.2"),
            ("shop/c", "x.xsub.example", "2001:db8::3"),
            ("shop/d", "x.www.example", "2001:db8::4"),
        ]);
        let have = BTreeMap::from([("sub.example".to_owned(), cut.clone()), ("www.example".to_owned(), alias)]);
        let found = plan(&wanted, &have, |_| true);
        // A CNAME says nothing about names below it.
        assert_eq!(summary(&found), ["+x.www.example", "+x.xsub.example", "!shop/a", "!shop/b"]);
        assert!(found.conflicts[0].1.contains("below sub.example"), "{:?}", found.conflicts);
        // A DNAME at the top of the zone has everything below it.
        let top = BTreeMap::from([("example".to_owned(), cut)]);
        assert_eq!(plan(&wanted, &top, |_| true).conflicts.len(), 4);
    }

    #[test]
    fn of_two_services_one_has_the_name_and_keeps_it() {
        let both = spec(&[("shop/b", "x.example", "198.51.100.2"), ("shop/a", "x.example", "198.51.100.1")]);
        let first = plan(&both, &BTreeMap::new(), |_| true);
        assert_eq!(summary(&first), ["+x.example", "!shop/b"]);
        let have = zone(&[("x.example", "198.51.100.2", &[ours("shop/b")])]);
        assert_eq!(summary(&plan(&both, &have, |_| true)), ["!shop/a"]);
    }

    #[test]
    fn other_times_to_live_are_put_right_and_long_marks_are_cut_into_strings() {
        let spec = ExternalDnsSpec { ttl_s: 60, ..spec(&[("shop/a", "a.example", "198.51.100.1")]) };
        let have = zone(&[("a.example", "198.51.100.1", &[ours("shop/a")])]);
        assert_eq!(summary(&plan(&spec, &have, |_| true)), ["~a.example"]);
        let long = mark("host-a", &format!("shop/{}", "x".repeat(253)));
        assert!(long.len() == 2 && long.iter().all(|string| string.len() <= 255));
    }
}
