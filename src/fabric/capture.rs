//! Captures as the fabric gives them out: started on all workers at once, fetched with every verdict and rule in words, ended
//! when the handle is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hostweave_policy::table::{Basis, Table};
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::PortId;

use super::{Fabric, Inner};
use crate::observe::trace::{basis_text, default_deny_text};
use crate::worker::capture::{Capture, Drops, Record};
use crate::worker::watch::CAPTURES_MAX;

/// A capture that runs until this is dropped, or [`Fabric::stop_capture`] names it.
pub struct CaptureHandle {
    id: u64,
    inner: Arc<Inner>,
    capture: Arc<Capture>,
}

/// A packet that was captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// Time since the epoch of UNIX.
    pub at: Duration,
    /// Whose.
    pub port: PortId,
    /// Delivered to the guest; otherwise, sent by it.
    pub to_guest: bool,
    /// Octets that the frame had.
    pub len: u32,
    /// As many of them as were wanted.
    pub octets: Vec<u8>,
    /// `forwarded`, `replied`, `queued`, or `dropped` with the reason.
    pub verdict: &'static str,
    /// Verdict and rule, for people: `dropped: policy_denied; ingress: default deny: selected by shop/db-only`.
    pub comment: String,
}

impl Fabric {
    /// Starts a capture of `ports`, of `snaplen` octets of each frame. `None` when too many run already.
    pub fn capture(&self, ports: Vec<PortId>, snaplen: usize, drops: Drops) -> Option<CaptureHandle> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let capture = Arc::new(Capture::new(ports, snaplen, drops, self.inner.workers.len()));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let added = self.inner.watch.change(|watching| {
            let room = watching.captures.len() < CAPTURES_MAX;
            if room {
                watching.captures.push((id, Arc::clone(&capture)));
            }
            room
        });
        added.then(|| CaptureHandle { id, inner: Arc::clone(&self.inner), capture })
    }

    /// Ends a capture by its number. `false` if there is none such.
    pub fn stop_capture(&self, id: u64) -> bool {
        self.inner.stop_capture(id)
    }
}

impl Inner {
    fn stop_capture(&self, id: u64) -> bool {
        self.watch.change(|watching| {
            let before = watching.captures.len();
            watching.captures.retain(|(known, _)| *known != id);
            watching.captures.len() < before
        })
    }
}

impl Drop for CaptureHandle {
    fn drop(&mut self) {
        self.inner.stop_capture(self.id);
    }
}

impl CaptureHandle {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it was not ended by its number.
    pub fn runs(&self) -> bool {
        self.inner.watch.watching().captures.iter().any(|(id, _)| *id == self.id)
    }

    /// Packets that found no room so far.
    pub fn lost(&self) -> u64 {
        self.capture.lost()
    }

    /// What was captured since the last call, oldest first.
    pub fn fetch(&self) -> Vec<Captured> {
        let rings = self.capture.drain();
        let plane = self.inner.plane.load();
        let mut all = Vec::new();
        for ring in rings {
            let mut rest = &ring.octets[..];
            for record in &ring.records {
                let (octets, after) = rest.split_at(rest.len().min(record.captured as usize));
                rest = after;
                let Some(verdict) = record.verdict else { continue };
                all.push(Captured {
                    at: record.at,
                    port: record.port,
                    to_guest: record.to_guest,
                    len: record.len,
                    octets: octets.to_vec(),
                    verdict: verdict_word(verdict),
                    comment: comment(&plane.policy, record, verdict),
                });
            }
        }
        // Each worker's are in order.
        all.sort_by_key(|captured| captured.at);
        all
    }
}

fn comment(table: &Table, record: &Record, verdict: Verdict) -> String {
    let word = verdict_word(verdict);
    if let Verdict::Drop(reason) = verdict {
        let rule = record.denied.map(|(direction, subject, bits)| match Basis::from_u32(bits) {
            Some(Basis::NoRule) => format!("; {}", default_deny_text(table, subject, direction)),
            _ => format!("; {}", basis_text(table, bits)),
        });
        return format!("{word}: {}{}", reason.name(), rule.unwrap_or_default());
    }
    match record.basis {
        Some([egress, ingress]) => {
            format!("{word}; egress: {}; ingress: {}", basis_text(table, egress), basis_text(table, ingress))
        }
        None => word.to_owned(),
    }
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward | Verdict::Continue => "forwarded",
        Verdict::Reply => "replied",
        Verdict::Queued => "queued",
        Verdict::Drop(_) => "dropped",
    }
}
