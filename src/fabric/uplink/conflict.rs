//! Whether addresses of ours are somebody else's too: address conflict detection (RFC 5227) and duplicate address detection (RFC 4862
//! §5.4) as one state machine. It sends nothing and knows no clock.
//!
//! An address that arrives is *probed*: three questions without a source, a fifth of a second apart. Packets pass meanwhile (as with
//! RFC 4429, so that connections of an earlier run go on), but nothing is announced and no neighbour is answered. If nobody else
//! answers it is ours, and is announced. If somebody does it is *lost*: not used, and probed again after one second, two, four and so
//! on, until nobody has it any more; an address that moves here from another host is taken over that way. Of an address that is ours and
//! that somebody claims, what happens is a matter of [`OnConflict`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hostweave_switch::MacAddr;
use hostweave_switch::claimed::Claimed;

use crate::fabric::spec::OnConflict;

/// Probes of an address (RFC 5227 §1.1, `PROBE_NUM`).
const PROBES: u8 = 3;
/// Between two of them, and after the last. Less than RFC 5227's one to two seconds: an address that moves is waited for.
const APART: Duration = Duration::from_millis(200);
/// At most once within this time an address is defended (RFC 5227 §1.1, `DEFEND_INTERVAL`); two claims within it end its use where
/// addresses are given up.
const DEFEND: Duration = Duration::from_secs(10);
/// Claims that come so soon after each other are one: some hosts announce by a request and a reply.
const ONE_CLAIM: Duration = Duration::from_millis(500);
/// How long people see that an address of ours is claimed, after the last claim.
const CONTESTED: Duration = Duration::from_secs(60);
/// Between two parts of a round of probes that does not go in one.
const PAUSE: Duration = Duration::from_millis(10);
/// Until a lost address is probed again: this long first, then twice as long each time.
const RETRY: Duration = Duration::from_secs(1);
/// At most this long (RFC 5227 §1.1, `RATE_LIMIT_INTERVAL`).
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Addresses that arrived together.
#[derive(Debug)]
struct Batch {
    addresses: Vec<IpAddr>,
    /// Rounds of probes that are complete.
    rounds: u8,
    /// Probed in this round.
    sent: usize,
    due: Instant,
}

/// An address that somebody else has.
#[derive(Debug)]
struct Lost {
    mac: MacAddr,
    /// Probed in vain.
    tries: u32,
    /// When it is probed again; `None` while it is.
    again: Option<Instant>,
    /// Somebody has answered since.
    claimed: bool,
    /// It was ours, and in use.
    used: bool,
}

/// An address that is ours, and that somebody claims.
#[derive(Debug)]
struct Contested {
    mac: MacAddr,
    /// When it was last defended.
    defended: Instant,
    /// When it was last claimed.
    claimed: Instant,
}

/// What is to be done now.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Step {
    /// Addresses to be probed.
    pub probes: Vec<IpAddr>,
    /// Addresses that are ours from now on.
    pub settled: Vec<IpAddr>,
    /// Those of them that were lost.
    pub regained: Vec<IpAddr>,
    /// Addresses that somebody else has, and who.
    pub lost: Vec<(IpAddr, MacAddr)>,
}

/// What a claim of an address means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Nothing new.
    Known,
    /// People should know.
    Told,
    /// And the address is to be announced.
    Defended,
    /// The address is lost.
    Lost,
}

/// All addresses of ours.
#[derive(Default, Debug)]
pub struct Conflicts {
    mode: OnConflict,
    batches: Vec<Batch>,
    lost: HashMap<IpAddr, Lost>,
    /// Addresses that are ours and that somebody claimed of late.
    contested: HashMap<IpAddr, Contested>,
    /// Where workers note claims of each address that is not settled.
    unsettled: HashMap<IpAddr, Arc<Claimed>>,
    /// Tells this host from others that probe the same address at the same time: of its link address.
    pub salt: u8,
}

impl Conflicts {
    /// What happens from now on. Returns addresses that are ours by that.
    pub fn set_mode(&mut self, mode: OnConflict) -> Vec<IpAddr> {
        self.mode = mode;
        if mode != OnConflict::Ignore {
            return Vec::new();
        }
        let probed = std::mem::take(&mut self.batches).into_iter().flat_map(|batch| batch.addresses);
        let mut ours: Vec<IpAddr> = probed.chain(std::mem::take(&mut self.lost).into_keys()).collect();
        ours.sort_unstable();
        ours.dedup();
        self.watch();
        ours
    }

    /// Addresses arrived, or the cable did. Returns those that need no probes.
    pub fn arrived(&mut self, mut addresses: Vec<IpAddr>, now: Instant) -> Vec<IpAddr> {
        if self.mode == OnConflict::Ignore {
            return addresses;
        }
        self.retain(|address| !addresses.contains(address));
        addresses.retain(|address| match self.lost.get_mut(address) {
            None => true,
            Some(lost) => {
                lost.again = Some(now);
                false
            }
        });
        if !addresses.is_empty() {
            // What was noted earlier is no answer.
            addresses.iter().filter_map(|address| self.unsettled.get(address)).for_each(|claimed| _ = claimed.take());
            self.batches.push(Batch { addresses, rounds: 0, sent: 0, due: now });
        }
        self.watch();
        Vec::new()
    }

    /// Only these addresses are ours from now on.
    pub fn keep(&mut self, keep: impl Fn(&IpAddr) -> bool) {
        self.retain(&keep);
        self.lost.retain(|address, _| keep(address));
        self.watch();
    }

    /// Has claims noted of exactly the addresses that are probed or lost.
    fn watch(&mut self) {
        let probed = self.batches.iter().flat_map(|batch| &batch.addresses);
        let mut known = std::mem::take(&mut self.unsettled);
        let unsettled =
            probed.chain(self.lost.keys()).map(|address| (*address, known.remove(address).unwrap_or_default()));
        self.unsettled = unsettled.collect();
    }

    fn retain(&mut self, keep: impl Fn(&IpAddr) -> bool) {
        for batch in &mut self.batches {
            let mut at = 0;
            let (sent, mut left) = (batch.sent, 0);
            batch.addresses.retain(|address| {
                let kept = keep(address);
                left += usize::from(!kept && at < sent);
                at += 1;
                kept
            });
            batch.sent -= left;
        }
        self.batches.retain(|batch| !batch.addresses.is_empty());
        self.contested.retain(|address, _| keep(address));
    }

    /// What is to be done now, with at most `max` probes.
    pub fn step(&mut self, now: Instant, max: usize) -> Step {
        let mut step = Step::default();
        self.contested.retain(|_, contested| now.saturating_duration_since(contested.claimed) < CONTESTED);
        self.try_again(now);
        let mut done = Vec::new();
        for batch in self.batches.iter_mut().filter(|batch| batch.due <= now) {
            if batch.rounds == PROBES {
                done.append(&mut batch.addresses);
                continue;
            }
            let room = max.saturating_sub(step.probes.len());
            let next: Vec<IpAddr> = batch.addresses.iter().skip(batch.sent).take(room).copied().collect();
            batch.sent += next.len();
            step.probes.extend(next);
            if batch.sent == batch.addresses.len() {
                (batch.sent, batch.rounds, batch.due) = (0, batch.rounds + 1, now + APART);
            } else {
                batch.due = now + PAUSE;
            }
        }
        self.batches.retain(|batch| !batch.addresses.is_empty());
        let finished = !done.is_empty();
        for address in done {
            let claim = self.unsettled.get(&address).and_then(|claimed| claimed.take());
            match self.lost.get_mut(&address) {
                Some(lost) if lost.claimed || claim.is_some() => {
                    lost.mac = claim.unwrap_or(lost.mac);
                    lost.tries += 1;
                    lost.again = Some(now + retry(self.salt, lost.tries));
                    continue;
                }
                Some(_) => {
                    self.lost.remove(&address);
                    step.regained.push(address);
                }
                None => {
                    if let Some(mac) = claim {
                        self.lose(address, mac, now, false);
                        step.lost.push((address, mac));
                        continue;
                    }
                }
            }
            step.settled.push(address);
        }
        if finished {
            self.watch();
        }
        step
    }

    fn try_again(&mut self, now: Instant) {
        let mut addresses = Vec::new();
        for (address, lost) in &mut self.lost {
            if lost.again.is_some_and(|at| at <= now) {
                (lost.again, lost.claimed) = (None, false);
                self.unsettled.get(address).and_then(|claimed| claimed.take());
                addresses.push(*address);
            }
        }
        if !addresses.is_empty() {
            self.batches.push(Batch { addresses, rounds: 0, sent: 0, due: now });
        }
    }

    /// Somebody else says that an address of ours is his.
    pub fn claimed(&mut self, address: IpAddr, mac: MacAddr, now: Instant) -> Claim {
        if self.mode == OnConflict::Ignore {
            return Claim::Told;
        }
        if let Some(lost) = self.lost.get_mut(&address) {
            (lost.mac, lost.claimed) = (mac, true);
            return Claim::Known;
        }
        if self.batches.iter().any(|batch| batch.addresses.contains(&address)) {
            self.retain(|probed| *probed != address);
            return self.lose(address, mac, now, false);
        }
        let before = self.contested.get(&address).map(|contested| contested.defended);
        let ago = before.map_or(DEFEND, |defended| now.saturating_duration_since(defended));
        if ago >= ONE_CLAIM && ago < DEFEND && self.mode == OnConflict::Yield {
            return self.lose(address, mac, now, true);
        }
        let defended = before.filter(|_| ago < DEFEND).unwrap_or(now);
        self.contested.insert(address, Contested { mac, defended, claimed: now });
        if ago < DEFEND { Claim::Known } else { Claim::Defended }
    }

    fn lose(&mut self, address: IpAddr, mac: MacAddr, now: Instant, used: bool) -> Claim {
        self.contested.remove(&address);
        self.unsettled.entry(address).or_default();
        self.lost.insert(address, Lost { mac, tries: 0, again: Some(now + retry(self.salt, 0)), claimed: true, used });
        Claim::Lost
    }

    /// When [`Conflicts::step`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        let again = self.lost.values().filter_map(|lost| lost.again);
        self.batches.iter().map(|batch| batch.due).chain(again).min()
    }

    /// Whether an address of ours is known to be ours alone.
    pub fn is_settled(&self, address: IpAddr) -> bool {
        !self.unsettled.contains_key(&address)
    }

    /// Whether somebody else has an address.
    pub fn is_lost(&self, address: IpAddr) -> bool {
        self.lost.contains_key(&address)
    }

    /// Whether somebody else has an address that was ours and in use: connections that began with it go on.
    pub fn was_used(&self, address: IpAddr) -> bool {
        self.lost.get(&address).is_some_and(|lost| lost.used)
    }

    /// Addresses that somebody else has, and who, in no order.
    pub fn lost(&self) -> impl Iterator<Item = (IpAddr, MacAddr)> {
        self.lost.iter().map(|(address, lost)| (*address, lost.mac))
    }

    /// Addresses that are ours and used, but that somebody else claimed within the last minute, and who, in no order.
    pub fn contested(&self) -> impl Iterator<Item = (IpAddr, MacAddr)> {
        self.contested.iter().map(|(address, contested)| (*address, contested.mac))
    }

    /// Addresses that are not known to be ours, lost or probed, and where workers note who claims them.
    pub fn unsettled(&self) -> impl Iterator<Item = (IpAddr, &Arc<Claimed>)> {
        self.unsettled.iter().map(|(address, claimed)| (*address, claimed))
    }
}

/// How long until a lost address is probed again. Two hosts that lost one by asking at once drift apart.
fn retry(salt: u8, tries: u32) -> Duration {
    let tries = tries.min(6);
    RETRY.saturating_mul(1 << tries).min(RETRY_MAX) + Duration::from_millis(4 * u64::from(salt)) * (tries + 1)
}

#[cfg(test)]
#[path = "conflict_tests.rs"]
mod tests;
