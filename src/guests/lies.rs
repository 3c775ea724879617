//! A guest that pretends to be another, by its card's address, its own addresses, ARP and neighbour discovery.

use std::collections::BTreeMap;

use anyhow::ensure;
use hostweave_guest::frames::{self, Path};
use hostweave_guest::{Error, Guest};
use hostweave_switch::MacAddr;

use super::board::Board;
use super::control::Control;
use super::member::{Member, PATIENCE, Port};

/// Lies of each kind.
const LIES: u64 = 20;

/// Has `liar` pretend to be `victim` towards `other`, and sees to it that each frame is dropped for its reason; the reasons
/// with their counts.
///
/// # Errors
/// One passed, or was not counted.
pub fn refused(board: &Board, control: &Control, liar: &Member, victim: &Port, other: &Port) -> anyhow::Result<String> {
    let name = &liar.port.name;
    let before = control.counters(name)?;
    let (own, victim, other) = (liar.port.clone(), victim.clone(), other.clone());
    let told = liar.guest()?.start(move |guest| lies(guest, &own, &victim, &other))?;
    board.receive("lies", &told, PATIENCE)??;
    let expected =
        BTreeMap::from([("spoofed_ip", 2 * LIES), ("spoofed_mac", LIES), ("spoofed_arp", LIES), ("spoofed_nd", LIES)]);
    let seen = board.wait("all lies are counted", PATIENCE, || {
        let now = control.counters(name)?;
        let seen: BTreeMap<&str, u64> =
            expected.keys().map(|reason| (*reason, now.dropped(reason) - before.dropped(reason))).collect();
        let passed = now.get("/forwarded") - before.get("/forwarded");
        ensure!(passed == 0, "{passed} frames of {name} went on to others");
        Ok((seen == expected).then_some(seen))
    })?;
    let words: Vec<String> = seen.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    Ok(words.join(", "))
}

fn lies(guest: &mut Guest, own: &Port, victim: &Port, other: &Port) -> Result<(), Error> {
    let router = MacAddr::ROUTER.0;
    let own_v6 = Path::new(own.mac, router, own.v6, other.v6).ttl(255);
    let frames = [
        Path::new(own.mac, router, victim.v4, other.v4).udp(1, 9, b"I am db"),
        Path::new(own.mac, router, victim.v6, other.v6).udp(1, 9, b"I am db"),
        Path::new(victim.mac, router, own.v4, other.v4).udp(1, 9, b"my card is db's"),
        frames::arp_request(own.mac, victim.v4, other.v4),
        frames::neighbor_advertisement(own_v6, victim.v6, own.mac, 0x60),
    ];
    for _ in 0..LIES {
        for frame in &frames {
            guest.send_frame(frame, &Default::default())?;
        }
        guest.nic().drain_tx(PATIENCE)?;
    }
    Ok(())
}
