//! Samples of long connections for the flow log: who has talked for minutes is seen there again and again, not only at the beginning
//! and the end.
//!
//! Once a minute a walk through the table begins, a part of it each second. A second has a limit of samples, where a walk
//! stops and goes on with the next: with many long connections each is sampled less often.

use hostweave_switch::connection::{Connections, Entry};
use hostweave_switch::flow::TRUST_S;

use crate::observe::flow_event::FlowEvent;

/// Seconds from one walk to the next, and those for which a connection must have gone on.
const EVERY_S: u32 = 60;

/// Samples in one second at most.
const PER_S: usize = 64;

/// Records looked at in one second at least. A large table is gone through in half of [`EVERY_S`].
const LOOKS_MIN: u32 = 1_024;

/// Where the walk is.
#[derive(Default)]
pub(super) struct Samples {
    begun: u32,
    next: u32,
    waiting: bool,
}

impl Samples {
    /// The samples of this second. Called once in each.
    pub(super) fn take(&mut self, connections: &Connections, now: u32) -> Vec<FlowEvent> {
        if self.waiting && now.saturating_sub(self.begun) < EVERY_S {
            return Vec::new();
        }
        if self.waiting || self.next == 0 {
            *self = Self { begun: now, next: 0, waiting: false };
        }
        let looks = (connections.ever_used() / (EVERY_S / 2)).max(LOOKS_MIN);
        let (entries, last) = connections.entries_from(self.next, looks);
        let samples: Vec<Entry> = entries.filter(|entry| goes_on(entry, now)).take(PER_S).collect();
        let full = samples.last().filter(|_| samples.len() == PER_S);
        self.next = full.map_or(self.next.saturating_add(looks), |entry| entry.index + 1);
        self.waiting = last && full.is_none();
        samples.iter().map(|entry| FlowEvent::sample(entry, now)).collect()
    }
}

/// Whether a connection is old, and was heard of since the walk before.
fn goes_on(entry: &Entry, now: u32) -> bool {
    // Packets of the last round may not be noted yet.
    let seen = entry.seen[0].max(entry.seen[1]);
    entry.created.saturating_add(EVERY_S) <= now && now.saturating_sub(seen) < EVERY_S + TRUST_S
}

#[cfg(test)]
mod tests {
    use hostweave_switch::connection::{FreeRecords, NewConnection, Options, Timeouts};
    use hostweave_switch::flow::{FlowKey, Kind, NO_QUEUE};
    use hostweave_switch::tcp_track::Side;
    use hostweave_switch::wire::proto;

    use super::*;

    fn table(count: u16) -> (Connections, Vec<usize>) {
        let path = std::env::temp_dir().join(format!("hostweave-samples-{}-{count}", std::process::id()));
        let connections = Connections::open(&path, &Options { capacity: 4_096, boot: 1, now: 100 }).unwrap();
        std::fs::remove_file(path).unwrap();
        connections.make_available(4_096);
        connections.share([(0, 4_096)].into_iter());
        let mut free = FreeRecords::new();
        let connection = |port| {
            let key = FlowKey::new(1, 2, port, 53, proto::UDP, Kind::Ports);
            let new = NewConnection {
                key,
                hash: connections.keys().hash(&key, 1),
                vni: 1,
                in_port: 0,
                out_port: 1,
                basis: [0; 2],
                epoch: 1,
                queue: NO_QUEUE,
                side: Side::default(),
                translation: None,
                receiver_pays: false,
            };
            connections.commit(&new, &Timeouts::default(), &mut free, 100).unwrap().found.index as usize
        };
        let indices = (0..count).map(connection).collect();
        (connections, indices)
    }

    #[test]
    fn a_connection_that_goes_on_is_sampled_once_a_minute() {
        let (connections, indices) = table(2);
        let mut samples = Samples::default();
        let mut when = Vec::new();
        for now in 101..400 {
            // The second one is silent from the beginning: it has its one packet in the minute before the first walk.
            connections.records()[indices[0]].touch(0, now, 0);
            when.extend(samples.take(&connections, now).iter().map(|event| (now, event.key.src_port())));
        }
        when.sort_unstable();
        assert_eq!(when, [(161, 0), (161, 1), (221, 0), (281, 0), (341, 0)]);
    }

    #[test]
    fn of_many_each_has_its_turn_and_none_a_second_one_before() {
        let (connections, indices) = table(300);
        let mut samples = Samples::default();
        assert!(samples.take(&connections, 101).is_empty(), "all are new");
        let mut seen = Vec::new();
        for now in 161..220 {
            indices.iter().for_each(|index| connections.records()[*index].touch(0, now, 0));
            let events = samples.take(&connections, now);
            assert!(events.len() <= PER_S);
            seen.extend(events.iter().map(|event| event.key.src_port()));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..300).collect::<Vec<_>>());
    }
}
