//! Ways to misbehave, by name: each a function whose sentence says what it does.
//!
//! [`RING_ATTACKS`] break the rules inside the rings and the memory of a connected card, [`MESSAGE_ATTACKS`] those of
//! the vhost-user socket. A backend passes when it survives every one of them, goes on serving everybody else, keeps
//! no descriptor, and does to the offender what [`Expect`] says. Sources: virtio 1.2 §2.7 and §5.1.6, DPDK's vhost
//! security advisories (CVE-2020-10722 to 10726, 2020-14374 to 14378, 2021-3839, 2022-0669, 2022-2132).

pub mod messages;
pub mod rings;

use std::os::unix::net::UnixStream;

use crate::Error;
use crate::nic::Nic;

pub use messages::MESSAGE_ATTACKS;
pub use rings::RING_ATTACKS;

/// What must become of the offender's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The port stops, with a reason.
    Stops,
    /// The frame is dropped and the port goes on.
    Drops,
    /// Odd but allowed or left open: the backend only has to survive it.
    Survives,
}

/// Misbehaviour of a driver on a connected card.
#[derive(Clone, Copy, Debug)]
pub struct RingAttack {
    /// The function's name.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub sentence: &'static str,
    /// What must become of the port.
    pub expect: Expect,
    /// Whether it takes effect only when somebody sends to this port.
    pub needs_traffic: bool,
    /// Does it. The frame is a good one, to a neighbour, for the attacks that need one.
    pub run: fn(&mut Nic, &[u8]) -> Result<(), Error>,
}

/// Misbehaviour of a frontend on a fresh connection.
#[derive(Clone, Copy, Debug)]
pub struct MessageAttack {
    /// The function's name.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub sentence: &'static str,
    /// Does it, and gives the connection back: what becomes of it is the caller's to watch.
    /// A backend that hangs up on the way is not an error.
    pub run: fn(UnixStream) -> Result<UnixStream, Error>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_has_a_name_of_its_own_and_a_sentence() {
        let rings = RING_ATTACKS.iter().map(|a| (a.name, a.sentence));
        let all: Vec<_> = rings.chain(MESSAGE_ATTACKS.iter().map(|a| (a.name, a.sentence))).collect();
        for (i, (name, sentence)) in all.iter().enumerate() {
            assert!(sentence.trim().ends_with('.'), "{name}");
            assert!(all[i + 1..].iter().all(|(other, _)| other != name), "{name} twice");
        }
    }
}
