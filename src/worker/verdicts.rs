//! Counters of what policy said: about each connection that began, and each packet that it denied. One writer, the worker.

use std::sync::atomic::{AtomicU64, Ordering};

use hostweave_policy::model::Direction;
use hostweave_policy::table::{Basis, Decision};

use crate::connect::{Denied, Opened};

/// What became of it, as metrics call it.
pub const ACTIONS: [&str; 3] = ["forwarded", "dropped", "audit"];

/// What the decision rests on, as metrics call it: a rule, that there is none, the host's default, a built-in rule, the port
/// itself.
pub const MATCHES: [&str; 5] = ["rule", "none", "default", "builtin", "self"];

/// Directions, as metrics call them.
pub const DIRECTIONS: [&str; 2] = ["egress", "ingress"];

/// See the file's head. By direction, action and match.
#[derive(Default)]
pub struct Verdicts([[[AtomicU64; MATCHES.len()]; ACTIONS.len()]; DIRECTIONS.len()]);

/// What [`Verdicts`] held when it was read, in the same order.
pub type VerdictCounts = [[[u64; MATCHES.len()]; ACTIONS.len()]; DIRECTIONS.len()];

impl Verdicts {
    /// Counts what policy said about a packet: both sides when it began a connection, one when it was denied.
    #[inline]
    pub fn count(&self, opened: Option<&Opened>, denied: Option<&Denied>) {
        // What was said again is not about a new one.
        if let Some(opened) = opened.filter(|opened| opened.again.is_none()) {
            self.decision(Direction::Egress, &opened.allowed.egress);
            self.decision(Direction::Ingress, &opened.allowed.ingress);
        }
        if let Some(denied) = denied {
            self.decision(denied.direction, &denied.decision);
        }
    }

    fn decision(&self, direction: Direction, decision: &Decision) {
        let basis = match decision.basis {
            Basis::Rule(_) => 0,
            Basis::NotSelected | Basis::NoRule => 1,
            Basis::HostDefault => 2,
            Basis::BuiltIn(_) => 3,
            Basis::Myself => 4,
            // Nobody's policy was asked.
            Basis::Host | Basis::NotCompiled => return,
        };
        let action = match (decision.allowed, decision.audit) {
            (false, _) => 1,
            (true, Some(_)) => 2,
            (true, None) => 0,
        };
        let direction = usize::from(direction == Direction::Ingress);
        super::add(&self.0[direction][action][basis], 1);
    }

    /// The counters now, added to those of other workers.
    pub fn add_to(&self, sum: &mut VerdictCounts) {
        let counters = self.0.iter().flatten().flatten();
        for (sum, counter) in sum.iter_mut().flatten().flatten().zip(counters) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use hostweave_policy::table::RuleId;
    use hostweave_switch::tables::PortId;

    use super::*;
    use crate::connect::Allowed;

    #[test]
    fn both_sides_of_a_new_connection_and_the_denying_one_are_counted() {
        let verdicts = Verdicts::default();
        let decision = |allowed, basis, audit| Decision { allowed, basis, audit };
        let allowed = Allowed {
            egress: decision(true, Basis::NotSelected, None),
            ingress: decision(true, Basis::NotSelected, Some(RuleId(1))),
        };
        let opened = Opened { out_port: PortId(1), allowed, there: None, again: None, shared: false };
        verdicts.count(Some(&opened), None);
        let denied = decision(false, Basis::NoRule, None);
        verdicts.count(None, Some(&Denied { direction: Direction::Ingress, decision: denied, out_port: PortId(1) }));
        verdicts.count(None, None);
        let mut sum = VerdictCounts::default();
        verdicts.add_to(&mut sum);
        let mut expected = VerdictCounts::default();
        (expected[0][0][1], expected[1][2][1], expected[1][1][1]) = (1, 1, 1);
        assert_eq!(sum, expected);
    }
}
