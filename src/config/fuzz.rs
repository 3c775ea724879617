//! One harness for property tests and `cargo fuzz`: octets that claim to be a file of objects.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::desired::{HostFacts, to_desired};
use super::ipam::{Assignments, assign};
use super::node::Source;
use super::outside::{ServiceAddresses, addresses};
use super::policies::{dubious, spec};
use super::{Object, Origin, check_set, load_sources};

/// Takes `data` through everything that a file goes through. Panics only if the program is wrong: a diagnostic that
/// cannot be rendered or sent, an object that is not what it prints.
pub fn fuzz_yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let loaded = match load_sources(vec![Source { name: "fuzz.yaml".to_owned(), text: text.to_owned() }]) {
        Ok(loaded) => loaded,
        Err(diagnostics) => return check_diagnostics(&diagnostics),
    };
    for object in &loaded.objects {
        check_round_trip(object);
    }
    let set = match check_set(loaded.objects.into_iter().map(Arc::new), Path::new("/run/hostweave")) {
        Ok((set, _)) => set,
        Err(diagnostics) => return check_diagnostics(&diagnostics),
    };
    for diagnostic in dubious(&set, set.iter().map(|(key, _)| key)) {
        assert!(!diagnostic.is_error() && !diagnostic.render(false).is_empty());
    }
    let (spec, same) = (spec(&set), spec(&set));
    assert!(spec.policies.iter().zip(&same.policies).all(|(a, b)| Arc::ptr_eq(a, b)), "a policy is compiled once");
    let mut count = 0;
    let mut new_uid = || {
        count += 1;
        Uuid::from_u128(count)
    };
    let plan = assign(&set, &Assignments::new(), &mut new_uid);
    let again = assign(&set, &plan.assignments, &mut new_uid);
    assert_eq!(plan.assignments, again.assignments, "an assignment is stable");
    let nobody = |_: &str| None;
    let facts =
        HostFacts { runtime_dir: Path::new("/run/hostweave"), group: &nobody, user: &nobody, node: &String::new };
    let services = addresses::assign(&set, &ServiceAddresses::new());
    assert_eq!(addresses::assign(&set, &services.addresses).changed, [], "an address is stable");
    let (desired, _) = to_desired(&set, &plan.assignments, &services.addresses, Default::default(), &facts);
    assert!(desired.ports.len() <= plan.assignments.len());
}

/// What the daemon says is what the client shows.
fn check_diagnostics(diagnostics: &super::Diagnostics) {
    assert!(diagnostics.has_errors());
    let sent = serde_json::to_string(diagnostics).unwrap_or_default();
    let received: super::Diagnostics = serde_json::from_str(&sent).unwrap_or_default();
    assert_eq!(*diagnostics, received);
    assert_eq!(diagnostics.render(false), received.render(false));
}

/// `get -o yaml` and the store give back what was written.
fn check_round_trip(object: &Object) {
    let yaml = Source { name: "again.yaml".to_owned(), text: object.to_yaml() };
    let loaded = load_sources(vec![yaml]).unwrap_or_else(|error| panic!("{}\n{error}", object.to_yaml()));
    assert!(loaded.objects.len() == 1 && loaded.objects[0].says_the_same(object), "{}", object.to_yaml());
    let (stored, _) = Object::from_json(&object.to_json(), Origin::Store).unwrap_or_else(|error| panic!("{error}"));
    assert!(stored.says_the_same(object), "{}", object.to_json());
}
