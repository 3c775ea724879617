//! Packets that are too long for where they go and may be cut (SEMANTICS NA10): put aside when their way is found to be too
//! narrow, cut, and sent when the burst is over.

use hostweave_switch::fragment::{Ports, QueuedFrame};
use hostweave_switch::limits::HEAD_FIRST;
use hostweave_switch::packet::{Meta, Offload, Packet};
use hostweave_switch::parse::parse;
use hostweave_switch::payload::Segment;
use hostweave_switch::split;
use hostweave_switch::stage::{DropReason, Verdict};
use hostweave_vhost::{complete_checksum, segment};

/// A frame that is sent when the burst is over.
pub(super) struct Released {
    /// The frame.
    pub queued: QueuedFrame,
    /// What it is a piece of.
    pub piece: Option<Piece>,
}

/// A piece of a packet that was cut. Its headers were not looked at yet.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// The one that counts as the packet.
    pub first: bool,
    /// Those of the packet.
    pub ports: Ports,
}

impl Piece {
    /// Has its headers looked at, as those of the whole packet were.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(self, packet: &mut Packet, arena: &mut [Segment]) -> Result<(), DropReason> {
        match parse(packet, arena) {
            Verdict::Continue => {}
            Verdict::Drop(reason) => return Err(reason),
            _ => return Err(DropReason::Internal),
        }
        self.ports.write(&mut packet.meta);
        Ok(())
    }
}

impl From<QueuedFrame> for Released {
    fn from(queued: QueuedFrame) -> Self {
        Self { queued, piece: None }
    }
}

/// Cuts a packet to what fits `mtu`; `None` when it must not or cannot be cut. A GSO frame becomes its segments first, of which
/// each is a packet of its own: as a router would see them, had its sender not left that to others.
pub(super) fn cut(packet: &Packet, arena: &[Segment], mtu: u16) -> Option<Vec<Released>> {
    if !split::may_split(packet) {
        return None;
    }
    let mut frame = vec![0; packet.len()];
    packet.copy_frame(arena, &mut frame)?;
    let meta = packet.meta;
    let mut pieces = Vec::new();
    if meta.offload.is_gso() {
        let mut buffer = vec![0; frame.len()];
        let cut = |segment: &[u8]| {
            pieces.extend(split::split(segment, mtu).ok_or(DropReason::GsoBad)?);
            Ok::<(), DropReason>(())
        };
        segment(&frame, &meta.offload, &mut buffer, cut).ok()?;
    } else {
        if meta.offload.needs_csum() {
            complete_checksum(&mut frame, &meta.offload).ok()?;
        }
        pieces = split::split(&frame, mtu)?;
    }
    let (in_port, queue) = (meta.in_port, meta.queue);
    let released = |(index, frame)| {
        let meta = Meta { in_port, queue, offload: Offload::default(), ..Meta::default() };
        let piece = Piece { first: index == 0, ports: Ports::of(&packet.meta) };
        Released { queued: QueuedFrame { meta, head_len: HEAD_FIRST, frame }, piece: Some(piece) }
    };
    Some(pieces.into_iter().enumerate().map(released).collect())
}
