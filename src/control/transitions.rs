//! Since when conditions of objects are what they are: `lastTransitionTime` of `metav1.Condition`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::config::ObjectKey;

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
