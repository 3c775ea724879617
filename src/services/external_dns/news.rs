//! What people are told of names in a zone: each change once, and each refusal once for as long as it lasts.

use std::collections::HashSet;

use tokio::sync::mpsc::UnboundedSender;

use super::plan::{Change, Denied, Have, marked_for};
use super::spec::ExternalDnsSpec;
use crate::fabric::spec::FabricEvent;

/// What became of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameChange {
    /// It is in the zone now.
    Created,
    /// It stands for something else.
    Updated,
    /// It is not there any more.
    Removed,
}

/// Where it is told.
pub struct News {
    events: UnboundedSender<FabricEvent>,
    /// Refusals that were told and last: of whom, and why.
    refused: HashSet<(String, String)>,
}

impl News {
    /// Nothing was told yet.
    pub fn new(events: UnboundedSender<FabricEvent>) -> Self {
        Self { events, refused: HashSet::new() }
    }

    /// A change is in the zone.
    pub fn changed(&self, spec: &ExternalDnsSpec, change: &Change) {
        let name = change.name.clone();
        let (service, what) = of(spec, change);
        self.tell(FabricEvent::ExternalName { service, name, zone: spec.zone.clone(), what });
    }

    /// These Services do not get a name: all of them, with the reasons.
    pub fn refused(&mut self, spec: &ExternalDnsSpec, problems: &[Denied]) {
        let now: HashSet<(String, String)> =
            problems.iter().map(|denied| (denied.service.clone(), denied.why.clone())).collect();
        // In their order.
        for Denied { service, why: reason, .. } in problems {
            if self.refused.insert((service.clone(), reason.clone())) {
                let (service, reason) = (service.clone(), reason.clone());
                self.tell(FabricEvent::ExternalNameRefused { service, zone: spec.zone.clone(), reason });
            }
        }
        self.refused = now;
    }

    fn tell(&self, event: FabricEvent) {
        // Nobody hears when the host is about to stop.
        let _ = self.events.send(event);
    }
}

/// Whose name it is, and what became of it.
fn of(spec: &ExternalDnsSpec, change: &Change) -> (String, NameChange) {
    let marked = |have: &Have| have.texts.iter().find_map(|text| marked_for(&spec.owner, text));
    match (&change.after, marked(&change.before)) {
        (None, before) => (before.unwrap_or_default(), NameChange::Removed),
        (Some(wish), None) => (wish.service.clone(), NameChange::Created),
        (Some(wish), Some(_)) => (wish.service.clone(), NameChange::Updated),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::super::plan::{Cause, Wish, mark, tests::spec};
    use super::*;

    #[test]
    fn each_refusal_is_told_once_while_it_lasts() {
        let (sender, mut receiver) = unbounded_channel();
        let mut news = News::new(sender);
        let mut told = |problems: &[(&str, &str)]| {
            let denied = |(service, why): &(&str, &str)| Denied {
                service: (*service).to_owned(),
                cause: Cause::Conflict,
                why: (*why).to_owned(),
            };
            let problems: Vec<_> = problems.iter().map(denied).collect();
            news.refused(&spec(&[]), &problems);
            let mut told = Vec::new();
            while let Ok(FabricEvent::ExternalNameRefused { service, reason, .. }) = receiver.try_recv() {
                told.push(format!("{service}: {reason}"));
            }
            told
        };
        assert_eq!(told(&[("a/b", "taken"), ("a/c", "taken")]), ["a/b: taken", "a/c: taken"]);
        assert!(told(&[("a/b", "taken"), ("a/c", "taken")]).is_empty());
        assert_eq!(told(&[("a/b", "taken by another"), ("a/b", "taken by another")]), ["a/b: taken by another"]);
        assert!(told(&[]).is_empty());
        assert_eq!(told(&[("a/b", "taken")]), ["a/b: taken"], "again");
    }

    #[test]
    fn whose_name_it_is_and_what_became_of_it() {
        let marked = |service| Have { texts: [mark("host-a", service)].into(), ..Have::default() };
        let change = |before, after: Option<&str>| Change {
            name: "web.example".to_owned(),
            before,
            after: after.map(|service| Wish { service: service.to_owned(), ..Wish::default() }),
            old_marks: Vec::new(),
        };
        // What others wrote beside it is none of ours.
        let foreign = Have { texts: [mark("host-b", "a/b")].into(), ..Have::default() };
        for (change, service, what) in [
            (change(Have::default(), Some("a/b")), "a/b", NameChange::Created),
            (change(foreign, Some("a/b")), "a/b", NameChange::Created),
            (change(marked("a/c"), Some("a/b")), "a/b", NameChange::Updated),
            (change(marked("a/c"), None), "a/c", NameChange::Removed),
        ] {
            assert_eq!(of(&spec(&[]), &change), (service.to_owned(), what));
        }
    }
}
