//! The flow log: the last thousands of connections that began, ended or were refused, and packets that were dropped, with
//! a live feed of them.
//!
//! Filled by the fabric's maintenance thread from the queues of the workers. The log is bounded, and so is what a port may
//! cause per second; whatever is not in it is said by a record of its own ([`Entry::Lost`]), never silent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;
use uuid::Uuid;

use super::flow::{ExportEvent, LostEvent};
use super::flow_filter::Selection;
use super::flow_record::FlowRecord;
use super::time::rfc3339_nanos;

/// Records that are kept.
pub const FLOWS_KEPT: usize = 16_384;

/// Records that a subscriber may be behind before it loses some.
const BACKLOG_MAX: usize = 4_096;

/// Where events are lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LostAt {
    /// In a worker: it had no room, or a port was over its rate.
    Worker(usize),
    /// On the way of connections that ended, likewise.
    Ends,
    /// On the way to a slow reader.
    Reader,
}

/// What the log keeps.
#[derive(Clone, Debug)]
pub enum Entry {
    /// What happened.
    Flow(Box<FlowRecord>),
    /// How much is not known.
    Lost {
        /// When that was noticed.
        time: SystemTime,
        /// Where.
        place: LostAt,
        /// How many events.
        count: u64,
    },
}

/// The log.
pub struct FlowLog {
    kept: Mutex<VecDeque<(u64, Arc<Entry>)>>,
    feed: broadcast::Sender<Arc<Entry>>,
    /// Records so far, and with it the number of the last one.
    count: AtomicU64,
    lost: AtomicU64,
    /// The upper half of every record's name.
    run: u64,
}

impl Default for FlowLog {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            feed: broadcast::Sender::new(BACKLOG_MAX),
            count: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            run: Uuid::new_v4().as_u64_pair().0,
        }
    }
}

impl FlowLog {
    /// Adds what happened, in that order; their ids are given here.
    pub fn add(&self, records: impl Iterator<Item = FlowRecord>) {
        let mut kept = self.lock();
        for mut record in records {
            let number = self.count.load(Ordering::Relaxed) + 1;
            // Random in its upper half, counted in its lower: no two are the same, also over restarts.
            record.id =
                uuid::Builder::from_random_bytes(Uuid::from_u64_pair(self.run, number).into_bytes()).into_uuid();
            self.push(&mut kept, Entry::Flow(Box::new(record)));
        }
    }

    /// Says that events were lost on their way into the log.
    pub fn add_lost(&self, place: LostAt, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
        let entry = Entry::Lost { time: SystemTime::now(), place, count };
        self.push(&mut self.lock(), entry);
    }

    fn push(&self, kept: &mut VecDeque<(u64, Arc<Entry>)>, entry: Entry) {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if kept.len() == FLOWS_KEPT {
            kept.pop_front();
        }
        let entry = Arc::new(entry);
        kept.push_back((number, Arc::clone(&entry)));
        // Sent under the lock: subscribers see the order of the log. Nobody may be listening.
        let _ = self.feed.send(entry);
    }

    /// The last `last` flows that `selection` wants, oldest first, and what was lost among them.
    pub fn list(&self, selection: &Selection, last: usize, node: &str) -> Vec<ExportEvent> {
        newest(&self.entries(), selection, last, node)
    }

    /// The first `first` flows of those that are kept and wanted, oldest first, and what was lost among them.
    pub fn oldest(&self, selection: &Selection, first: usize, node: &str) -> Vec<ExportEvent> {
        let (entries, mut flows) = (self.entries(), 0);
        let wanted = entries.iter().filter_map(|entry| selection.pick(entry, node));
        wanted
            .take_while(|event| {
                flows += usize::from(event.flow.is_some());
                flows <= first
            })
            .collect()
    }

    /// As [`Self::list`], and a feed that continues exactly there.
    pub fn subscribe(
        &self,
        selection: &Selection,
        last: usize,
        node: &str,
    ) -> (Vec<ExportEvent>, broadcast::Receiver<Arc<Entry>>) {
        // Records are sent under this lock: none is missed between the two, none is told twice.
        let (entries, feed) = {
            let kept = self.lock();
            let entries: Vec<_> = kept.iter().map(|(_, entry)| Arc::clone(entry)).collect();
            (entries, self.feed.subscribe())
        };
        (newest(&entries, selection, last, node), feed)
    }

    /// Every record that is kept, oldest first.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().iter().map(|(_, entry)| Arc::clone(entry)).collect()
    }

    /// How far it reaches back, if there was more before that.
    pub fn reach(&self) -> Option<SystemTime> {
        let kept = self.lock();
        let (number, first) = kept.front()?;
        (*number > 1).then(|| first.time())
    }

    /// Records so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Events that were lost, by workers and by slow subscribers.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Counts what a subscriber missed, and says so to it.
    pub fn missed(&self, count: u64, node: &str) -> ExportEvent {
        self.lost.fetch_add(count, Ordering::Relaxed);
        Entry::Lost { time: SystemTime::now(), place: LostAt::Reader, count }.export(node)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Arc<Entry>)>> {
        // A panic while holding this lock cannot leave a half-written log.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last ones that are wanted, oldest first.
fn newest(entries: &[Arc<Entry>], selection: &Selection, last: usize, node: &str) -> Vec<ExportEvent> {
    let mut found = Vec::new();
    let mut flows = 0;
    for entry in entries.iter().rev() {
        if flows == last {
            break;
        }
        if let Some(event) = selection.pick(entry, node) {
            flows += usize::from(event.flow.is_some());
            found.push(event);
        }
    }
    found.reverse();
    found
}

impl Entry {
    /// When.
    pub fn time(&self) -> SystemTime {
        match self {
            Entry::Flow(record) => record.time,
            Entry::Lost { time, .. } => *time,
        }
    }

    /// As Hubble exports it.
    pub fn export(&self, node: &str) -> ExportEvent {
        let common = ExportEvent { node_name: node.into(), time: rfc3339_nanos(self.time()), ..ExportEvent::default() };
        match self {
            Entry::Flow(record) => ExportEvent { flow: Some(record.to_flow(node)), ..common },
            Entry::Lost { place, count, .. } => {
                let (source, cpu) = match place {
                    LostAt::Worker(index) => ("PERF_EVENT_RING_BUFFER", i32::try_from(*index).ok()),
                    LostAt::Ends => ("PERF_EVENT_RING_BUFFER", None),
                    LostAt::Reader => ("HUBBLE_RING_BUFFER", None),
                };
                let lost = LostEvent { source: source.into(), num_events_lost: count.to_string(), cpu };
                ExportEvent { lost_events: Some(lost), ..common }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hostweave_switch::flow::Kind;
    use hostweave_switch::wire::proto;

    use super::super::flow_record::tests::{denied, opened};
    use super::*;

    fn udp(count: u16) -> impl Iterator<Item = FlowRecord> {
        (0..count).map(|port| opened(proto::UDP, 1, port, Kind::Ports))
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let log = FlowLog::default();
        let more = u16::try_from(FLOWS_KEPT).unwrap() + 10;
        log.add(udp(more));
        let all = log.list(&Selection::default(), usize::MAX, "host-a");
        assert_eq!((all.len(), log.count()), (FLOWS_KEPT, u64::from(more)));
        assert_eq!(log.reach(), Some(log.entries()[0].time()));
        let other = FlowLog::default();
        assert_eq!(other.reach(), None);
        other.add(udp(1));
        assert_eq!(other.reach(), None, "nothing was before that");
        assert_eq!(all[0].flow.as_ref().unwrap().ports(), Some((1, 10)));
        let first = log.oldest(&Selection::default(), 2, "host-a");
        let ports: Vec<_> = first.iter().map(|event| event.flow.as_ref().unwrap().ports().unwrap().1).collect();
        assert_eq!(ports, [10, 11]);
        let last = log.list(&Selection::default(), 2, "host-a");
        let ports: Vec<_> = last.iter().map(|event| event.flow.as_ref().unwrap().ports().unwrap().1).collect();
        assert_eq!(ports, [more - 2, more - 1]);
        let mut ids: Vec<_> = all.into_iter().map(|event| event.flow.unwrap().uuid).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), FLOWS_KEPT);
    }

    #[test]
    fn what_was_lost_is_said() {
        let log = FlowLog::default();
        log.add([denied()].into_iter());
        log.add_lost(LostAt::Worker(1), 7);
        log.add(udp(1));
        let events = log.list(&Selection::default(), 10, "host-a");
        let line = serde_json::to_value(&events[1]).unwrap();
        assert_eq!(line["lost_events"]["source"], "PERF_EVENT_RING_BUFFER");
        assert_eq!((&line["lost_events"]["num_events_lost"], &line["lost_events"]["cpu"]), (&"7".into(), &1.into()));
        assert_eq!(log.lost(), 7);
        // It does not count as one of the flows that were asked for, and it is told whatever was asked for.
        let last = log.list(&Selection::default(), 1, "host-a");
        assert_eq!(last.len(), 1);
        let missed = log.missed(3, "host-a").lost_events.unwrap();
        assert_eq!((missed.source.as_str(), missed.cpu, log.lost()), ("HUBBLE_RING_BUFFER", None, 10));
    }

    #[test]
    fn a_subscription_continues_where_the_list_ends() {
        let log = FlowLog::default();
        log.add(udp(3));
        let (past, mut feed) = log.subscribe(&Selection::default(), 2, "");
        log.add([denied()].into_iter());
        assert_eq!(past.len(), 2);
        assert!(matches!(&*feed.try_recv().unwrap(), Entry::Flow(record) if record.event.key.dst_port() == 5432));
        assert!(feed.try_recv().is_err());
        log.add(udp(u16::try_from(BACKLOG_MAX).unwrap() + 5));
        assert!(matches!(feed.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
    }
}
