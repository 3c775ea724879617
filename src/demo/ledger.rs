//! The ledger as anybody can check it from outside: both sums of all ports, from the numbers of `port stats`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::guests::board::Board;
use crate::guests::control::{Control, Counters};

/// How long traffic may take to come to rest.
const REST_TIMEOUT: Duration = Duration::from_secs(15);

/// What all ports did since the daemon started.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Frames taken from guests.
    pub received: u64,
    /// Frames of guests that went to another port.
    pub forwarded: u64,
    /// Frames of guests that the switch answered itself.
    pub replied: u64,
    /// Frames written to guests.
    pub transmitted: u64,
    /// Frames of guests, and for them, that ended, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// By how much each sum does not close: frames from guests, frames to guests.
    open: [i128; 2],
}

impl Ledger {
    /// Reads it as soon as nothing moves and both sums close.
    ///
    /// # Errors
    /// They do not close.
    pub fn close(control: &Control, board: &Board) -> anyhow::Result<Self> {
        let mut last = None;
        let closed = board.wait("the ledger closes", REST_TIMEOUT, || {
            let ledger = Self::read(&control.call("port.stats", json!({}))?);
            let quiet = last.as_ref() == Some(&ledger);
            let closes = ledger.open == [0, 0];
            if !quiet {
                std::thread::sleep(Duration::from_millis(20));
            }
            last = Some(ledger.clone());
            Ok((quiet && closes).then_some(ledger))
        });
        closed.with_context(|| format!("the last reading was {last:?}"))
    }

    fn read(stats: &Value) -> Self {
        let mut ledger = Self::default();
        for port in stats["ports"].as_array().into_iter().flatten() {
            let counters = Counters(port["counters"].clone());
            let of = |name: &str| counters.get(name);
            ledger.received += of("/receivedPackets");
            ledger.forwarded += of("/forwarded");
            ledger.replied += of("/replied");
            ledger.transmitted += of("/transmittedPackets");
            for (reason, count) in counters.all_dropped() {
                *ledger.dropped.entry(reason.to_owned()).or_default() += count;
            }
            let ended = of("/forwarded") + of("/replied") + counters.sum("dropped") + of("/queued");
            ledger.open[0] += i128::from(of("/receivedPackets")) - i128::from(ended);
        }
        // The output sum closes over the whole host: the networks' own ports are in it, too.
        let host = Counters(stats["host"].clone());
        let of = |name: &str| host.get(name);
        let made = of("/forwarded") + of("/replied") + of("/originated") + of("/extraSegments");
        let gone = of("/transmittedPackets") + host.sum("transmitDropped") + of("/transmitQueued");
        ledger.open[1] = i128::from(made) - i128::from(gone);
        ledger
    }

    /// Adds what another daemon did before this one.
    pub fn add(&mut self, other: &Ledger) {
        self.received += other.received;
        self.forwarded += other.forwarded;
        self.replied += other.replied;
        self.transmitted += other.transmitted;
        for (reason, count) in &other.dropped {
            *self.dropped.entry(reason.clone()).or_default() += count;
        }
    }
}

/// Reads the ledger of the running daemon when nothing moves any more, and puts it into words.
///
/// # Errors
/// A sum does not close.
pub fn balance(control: &Control, board: &Board) -> anyhow::Result<(Ledger, String)> {
    let ledger = Ledger::close(control, board)?;
    let Ledger { received, forwarded, replied, .. } = ledger;
    let ended = received - forwarded - replied;
    let seen =
        format!("closes: {received} frames from VMs = {forwarded} forwarded + {replied} answered + {ended} dropped");
    Ok((ledger, seen))
}

/// Reasons with their counts, the most frequent first.
pub fn reasons(dropped: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<(&String, &u64)> = dropped.iter().filter(|(_, count)| **count > 0).collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words: Vec<String> = sorted.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(forwarded: u64, transmitted: u64) -> Value {
        json!({"ports": [
            {"name": "a", "counters": {"receivedPackets": 10, "forwarded": forwarded, "replied": 3,
                "dropped": {"spoofed_ip": 2}, "transmittedPackets": 3}},
            {"name": "b", "counters": {"transmittedPackets": transmitted, "transmitDropped": {"guest_ring_full": 1}}},
        ], "host": {"forwarded": forwarded, "replied": 3, "transmittedPackets": 3 + transmitted, "transmitDropped": {"guest_ring_full": 1}}})
    }

    #[test]
    fn both_sums_are_taken_over_all_ports() {
        let ledger = Ledger::read(&stats(5, 4));
        assert_eq!(ledger.open, [0, 0]);
        assert_eq!((ledger.received, ledger.transmitted), (10, 7));
        assert_eq!(reasons(&ledger.dropped), "spoofed_ip 2, guest_ring_full 1");
    }

    #[test]
    fn a_lost_frame_shows() {
        assert_eq!(Ledger::read(&stats(4, 3)).open, [1, 0]);
        assert_eq!(Ledger::read(&stats(5, 3)).open, [0, 1]);
    }
}
