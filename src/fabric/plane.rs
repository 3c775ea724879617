//! What workers read: the tables, and where packets come from and go to. Published as one pointer.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hostweave_nat::Pools;
use hostweave_nat::service::Services;
use hostweave_policy::model::World;
use hostweave_policy::table::Table;
use hostweave_switch::tables::{PortId, Tables};
use hostweave_uplink::device::Device;
use hostweave_vhost::{Attachment, FromGuestQueue, ToGuestQueue};

use crate::services::internal::InternalPort;

/// Names a place that packets come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SourceKey {
    /// The port.
    pub port: PortId,
    /// Which of its attachments, counted over the life of the port.
    pub attachment: u32,
    /// Queue pair.
    pub pair: u16,
}

/// A place that packets come from. Owned by exactly one worker.
#[derive(Clone)]
pub enum Source {
    /// A guest's transmit queue.
    Vhost(Arc<Attachment>, usize),
    /// A TAP device, or the uplink.
    Device(Arc<Device>),
    /// The host's own services in a network.
    Internal(Arc<InternalPort>),
}

impl Source {
    /// The guest's transmit queue, if this is one.
    #[inline]
    pub fn from_guest(&self) -> Option<&FromGuestQueue> {
        match self {
            Source::Vhost(attachment, pair) => Some(&attachment.queues().get(*pair)?.from_guest),
            _ => None,
        }
    }
}

/// Where packets for a port go.
pub enum Output {
    /// One VM; two attachments during a live migration on this host.
    Vhost(VhostOutput),
    /// A container, or the uplink.
    Device(Arc<Device>),
    /// The host's own services.
    Internal(Arc<InternalPort>),
}

/// The attachments of a port, of which at most one is active.
pub struct VhostOutput {
    /// Main socket first.
    pub attachments: Vec<Arc<Attachment>>,
    /// Index of the active one.
    pub active: AtomicUsize,
    /// Bit per receive queue that the active guest runs.
    pub running: AtomicU64,
    /// Held by a protocol thread while it changes the two. Not for workers.
    pub change: Mutex<()>,
    /// Held by the protocol thread that changes the two above: two guests may start at once.
    pub switching: Mutex<()>,
}

impl VhostOutput {
    /// Whether every flow has the same receive queue.
    #[inline]
    pub fn is_single(&self) -> bool {
        self.running.load(Ordering::Relaxed).is_power_of_two()
    }

    /// The receive queue for a flow: the one on which the guest last sent it (`wanted`), else by its hash; `None` when
    /// no queue runs.
    #[inline]
    pub fn queue(&self, wanted: u8, hash: u32) -> Option<(u16, &ToGuestQueue)> {
        let running = self.running.load(Ordering::Relaxed);
        if running == 0 {
            return None;
        }
        // Nearly every guest runs one queue.
        let pair = if running & (running - 1) == 0 {
            running.trailing_zeros()
        } else if running.checked_shr(u32::from(wanted)).is_some_and(|bits| bits & 1 != 0) {
            u32::from(wanted)
        } else {
            nth_set_bit(running, hash % running.count_ones())
        };
        let attachment = self.attachments.get(self.active.load(Ordering::Relaxed))?;
        Some((pair as u16, &attachment.queues().get(pair as usize)?.to_guest))
    }
}

/// Position of the `n`-th set bit, counted from zero.
#[inline]
fn nth_set_bit(mut bits: u64, n: u32) -> u32 {
    for _ in 0..n {
        bits &= bits - 1;
    }
    bits.trailing_zeros()
}

/// Everything a worker reads, immutable. A clone shares what is there per port: it costs the same beside ten thousand ports as beside ten.
#[derive(Clone, Default)]
pub struct Plane {
    /// Networks, ports, addresses.
    pub tables: Tables,
    /// Who may talk to whom.
    pub policy: Arc<Table>,
    /// Who has NAT addresses.
    pub pools: Arc<Pools>,
    /// Addresses of Services, and who stands behind them. What changes here changes [`Tables::crossings`];
    /// connections to them cross, so records need translations.
    pub services: Arc<Services>,
    /// What that was compiled from: names and labels, for those who explain. Not for workers.
    pub world: Arc<World>,
    /// Grows whenever policy says something else. Not for workers.
    pub policy_revision: u64,
    /// By [`PortId`].
    pub outputs: Arc<[Option<Arc<Output>>]>,
    /// By worker.
    pub sources: Vec<Arc<[(SourceKey, Source)]>>,
}

impl Plane {
    /// Where packets for this port go.
    #[inline]
    pub fn output(&self, port: PortId) -> Option<&Output> {
        self.outputs.get(port.0 as usize)?.as_deref()
    }
}

/// The worker that owns a source: queues of one port spread, so that a guest with several uses several workers.
pub fn owner(port: PortId, pair: usize, workers: usize) -> usize {
    (port.0 as usize + pair) % workers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_shares_what_is_there_per_port() {
        let sources = vec![Vec::new().into()];
        let plane = Plane { outputs: vec![None; 10_000].into(), sources, ..Plane::default() };
        let clone = plane.clone();
        assert!(Arc::ptr_eq(&plane.outputs, &clone.outputs) && Arc::ptr_eq(&plane.sources[0], &clone.sources[0]));
        let (tables, of_clone) = (&plane.tables, &clone.tables);
        assert!(Arc::ptr_eq(&tables.ports, &of_clone.ports) && Arc::ptr_eq(&tables.addresses, &of_clone.addresses));
    }

    #[test]
    fn nth_set_bit_counts_from_zero() {
        assert_eq!(nth_set_bit(0b1, 0), 0);
        assert_eq!(nth_set_bit(0b1010_0100, 0), 2);
        assert_eq!(nth_set_bit(0b1010_0100, 2), 7);
    }
}
