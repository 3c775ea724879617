//! Since when conditions of objects are what they are: `lastTransitionTime` of `metav1.Condition`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::controller::{Action, Snapshot};
use super::outside_view::split;
use super::service_view::{ATTACHED, BACKENDS_IN_NETWORK};
use crate::config::checked::Object;
use crate::config::outside::{Attachment, attachment, attachments};
use crate::config::services::{concerned_by_change, foreign_among};
use crate::config::{Kind, ObjectKey};

/// An object, and the type of its condition.
type Condition = (ObjectKey, &'static str);

/// That there is an object.
const CREATED: &str = "";

/// See the module. What nobody has asked about yet is as it was when the daemon started, or when its object came.
pub struct Transitions {
    started: SystemTime,
    known: Mutex<HashMap<Condition, (bool, SystemTime)>>,
}

impl Default for Transitions {
    fn default() -> Self {
        Self::new()
    }
}

impl Transitions {
    /// The daemon starts now.
    pub fn new() -> Self {
        Self { started: SystemTime::now(), known: Mutex::default() }
    }

    /// A condition is like this from now on, if it was not before.
    pub fn note(&self, key: &ObjectKey, condition: &'static str, holds: bool) {
        self.look(key, condition, holds, SystemTime::now());
    }

    /// An object is new: so are its conditions, whenever somebody asks for them first.
    pub fn created(&self, key: &ObjectKey) {
        self.note(key, CREATED, true);
    }

    /// Since when a condition is like this.
    pub fn since(&self, key: &ObjectKey, condition: &'static str, holds: bool) -> SystemTime {
        self.look(key, condition, holds, self.started)
    }

    fn look(&self, key: &ObjectKey, condition: &'static str, holds: bool, first: SystemTime) -> SystemTime {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let first = known.get(&(key.clone(), CREATED)).map_or(first, |(_, created)| first.max(*created));
        let entry = known.entry((key.clone(), condition)).or_insert((holds, first));
        if entry.0 != holds {
            *entry = (holds, SystemTime::now());
        }
        entry.1
    }

    /// Forgets conditions of an object that is gone: another one of that name begins anew.
    pub fn forget(&self, key: &ObjectKey, conditions: &[&'static str]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for condition in conditions.iter().chain(&[CREATED]) {
            known.remove(&(key.clone(), *condition));
        }
    }
}

/// What a change of objects made of conditions of Services that are there before and after it, whoever looks at them: whether each holds
/// now. Looks only at those that the change can concern: it is made under control's lock.
pub fn of_services(
    before: &Snapshot,
    now: &Snapshot,
    changes: &[(Action, Arc<Object>)],
) -> Vec<(ObjectKey, &'static str, bool)> {
    let mut changed: Vec<(ObjectKey, &'static str, bool)> = attached(before, now, changes);
    // Where there is one network, no port is of another.
    if before.set.networks().count() < 2 && now.set.networks().count() < 2 {
        return changed;
    }
    let keys: HashSet<ObjectKey> = changes.iter().map(|(_, object)| object.key.clone()).collect();
    let concerned = concerned_by_change(&now.set, &before.desired.ports, &now.desired.ports, &keys);
    if concerned.as_ref().is_some_and(HashSet::is_empty) {
        return changed;
    }
    let wanted = |key: &ObjectKey| concerned.as_ref().is_none_or(|concerned| concerned.contains(key));
    let of = |snapshot: &Snapshot| foreign_among(&snapshot.set, &snapshot.desired.ports, wanted);
    let (old, new) = (of(before), of(now));
    let is_there = |key: &&ObjectKey| before.set.get(key).is_some() && now.set.get(key).is_some();
    let began = new.keys().filter(|key| !old.contains_key(*key)).map(|key| (key, false));
    let ended = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key, true));
    let other = began.chain(ended).filter(|(key, _)| is_there(key));
    changed.extend(other.map(|(key, holds)| (key.clone(), BACKENDS_IN_NETWORK, holds)));
    changed
}

/// Of Services whose addresses a port has: whether all are of use there.
fn attached(
    before: &Snapshot,
    now: &Snapshot,
    changes: &[(Action, Arc<Object>)],
) -> Vec<(ObjectKey, &'static str, bool)> {
    // What else changes may have any of them given other addresses.
    let all = changes.iter().any(|(_, object)| !matches!(object.key.kind, Kind::Port | Kind::Pod));
    let holds = |snapshot: &Snapshot| -> HashMap<ObjectKey, bool> {
        let of = |attachment: Attachment<'_>| (attachment.service_key(), split(snapshot, &attachment).1.is_empty());
        match all {
            true => attachments(&snapshot.set).map(of).collect(),
            false => changes.iter().filter_map(|(_, object)| attachment(&snapshot.set, &object.key)).map(of).collect(),
        }
    };
    if all && now.services.is_empty() && before.services.is_empty() {
        return Vec::new();
    }
    let (old, new) = (holds(before), holds(now));
    let other = new.into_iter().filter(|(key, holds)| old.get(key) != Some(holds) && before.set.get(key).is_some());
    other.map(|(key, holds)| (key, ATTACHED, holds)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kind;

    #[test]
    fn a_condition_has_the_time_of_its_last_change() {
        let transitions = Transitions::new();
        let key = ObjectKey::new(Kind::Service, Some("shop"), "web");
        let started = transitions.since(&key, "Ready", true);
        assert_eq!(started, transitions.started, "as it was when the daemon started");
        let changed = transitions.since(&key, "Ready", false);
        assert!(changed > started);
        assert_eq!(transitions.since(&key, "Ready", false), changed);
        transitions.note(&key, "Ready", false);
        assert_eq!(transitions.since(&key, "Ready", false), changed, "said again it is no change");
        transitions.forget(&key, &["Ready"]);
        transitions.created(&key);
        assert!(transitions.since(&key, "Ready", false) > changed, "another object");
    }
}
