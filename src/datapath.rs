//! The packet path: every stage, in the order in which packets meet it, on one screen.
//!
//! ```text
//! rx ─ parse ─ guard ─ local ─ route ─ rewrite ─ tx
//!                      reply ◄┘
//! ```
//!
//! `rx` and `tx` are the worker's ([`crate::worker`]): they know rings and devices. What stands between them is this
//! function, and only this file knows the order. Each stage is a plain function that answers with a [`Verdict`].

use hostweave_switch::packet::Packet;
use hostweave_switch::payload::Segment;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_switch::tables::{Network, Port, Tables};
use hostweave_switch::{guard, parse, rewrite, route};

use crate::services::{self, LocalContext, LocalNote};

/// Takes one packet that `rx` received from `port` through the stages.
///
/// `Forward` leaves the rewritten packet with `meta.out_port` set, `Reply` the answer to `port`; `note` holds what
/// control must hear of it, if anything.
#[inline]
pub fn process(
    tables: &Tables,
    port: &Port,
    network: &Network,
    packet: &mut Packet,
    arena: &mut [Segment],
    note: &mut Option<LocalNote>,
) -> Verdict {
    macro_rules! stage {
        ($verdict:expr) => {
            match $verdict {
                Verdict::Continue => {}
                end => return end,
            }
        };
    }
    if !port.up {
        return Verdict::Drop(DropReason::PortDown);
    }
    stage!(parse::parse(packet, arena));
    stage!(guard::guard(port, network, packet));
    stage!(services::local(&LocalContext { tables, port, network }, packet, arena, note));
    match route::route(tables, port.network, packet) {
        Verdict::Forward => {}
        end => return end,
    }
    match tables.port(packet.meta.out_port) {
        Some(out) if out.up => rewrite::rewrite(packet, out),
        Some(_) => return Verdict::Drop(DropReason::PortDown),
        None => return Verdict::Drop(DropReason::Internal),
    }
    Verdict::Forward
}
