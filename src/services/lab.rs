//! Guests for tests of services that call guests: each is a TCP/IP stack of its own, with the guest's addresses, behind an internal
//! port like the host's. In place of worker and rings a task carries frames between them; every frame of the host goes through
//! `parse` and `guard`, as in a worker.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hostweave_switch::packet::{Burst, L3};
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::{Network, Port, PortId, PortKind};
use hostweave_switch::{MacAddr, guard, parse};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::internal::InternalPort;
use super::sockets::Sockets;
use super::testing::World;

/// The host's sockets in the network `default`, and its guests.
pub struct Lab {
    pub sockets: Sockets,
    shared: Arc<Shared>,
    carrier: JoinHandle<()>,
}

struct Shared {
    host: Arc<InternalPort>,
    guests: Mutex<HashMap<IpAddr, Arc<InternalPort>>>,
    wake: Arc<Notify>,
    /// Frames to guests that are to be lost, and that were.
    to_lose: AtomicUsize,
    lost: AtomicUsize,
}

impl Lab {
    pub fn new() -> Self {
        let sockets = Sockets::new().unwrap();
        let wake = Arc::new(Notify::new());
        let host = sockets.add_network(&World::new().network, waker(&wake));
        let shared = Arc::new(Shared {
            host,
            guests: Mutex::default(),
            wake,
            to_lose: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        });
        let carrier = tokio::spawn(carry(Arc::clone(&shared)));
        Self { sockets, shared, carrier }
    }

    /// A guest: its sockets, in a network `default` whose "gateway" it is.
    pub fn guest(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Sockets {
        let sockets = Sockets::new().unwrap();
        let network = World::new().network;
        let network =
            Network { v4: network.v4.map(|(net, _)| (net, v4)), v6: network.v6.map(|(net, _)| (net, v6)), ..network };
        let port = sockets.add_network(&network, waker(&self.shared.wake));
        let mut guests = self.shared.guests.lock().unwrap();
        guests.insert(v4.into(), Arc::clone(&port));
        guests.insert(v6.into(), port);
        drop(guests);
        sockets
    }

    /// Nothing reaches these addresses any more.
    pub fn freeze(&self, addresses: &[IpAddr]) {
        let mut guests = self.shared.guests.lock().unwrap();
        addresses.iter().for_each(|address| drop(guests.remove(address)));
    }

    /// The next frames to guests are lost.
    pub fn lose(&self, frames: usize) {
        self.shared.to_lose.store(frames, Ordering::SeqCst);
    }

    /// How many were.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

fn waker(wake: &Arc<Notify>) -> super::internal::Wake {
    let wake = Arc::clone(wake);
    Arc::new(move || wake.notify_one())
}

async fn carry(shared: Arc<Shared>) {
    let world = World::new();
    let internal = Port { id: PortId(0), kind: PortKind::Internal, mac: MacAddr::ROUTER, ..world.port };
    let mut burst = Burst::new();
    loop {
        let guests: HashMap<_, _> = shared.guests.lock().unwrap().clone();
        let mut moved = 0;
        while shared.host.take(&mut burst) > 0 {
            for index in 0..burst.len() {
                let (packet, arena) = burst.packet_mut(index);
                assert_eq!(parse::parse(packet, arena), Verdict::Continue);
                assert_eq!(guard::guard(&internal, &world.network, packet), Verdict::Continue);
                let to: IpAddr = match packet.meta.l3 {
                    L3::V4 => Ipv4Packet::new_unchecked(&packet.head()[14..]).dst_addr().into(),
                    _ => Ipv6Packet::new_unchecked(&packet.head()[14..]).dst_addr().into(),
                };
                let lose = shared.to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if lose.is_ok() {
                    shared.lost.fetch_add(1, Ordering::SeqCst);
                } else if let Some(guest) = guests.get(&to) {
                    // A full queue drops, as it does for a worker.
                    let _ = guest.deliver(packet, arena);
                }
                moved += 1;
            }
            burst.clear();
            shared.host.release();
        }
        for guest in guests.values() {
            while guest.take(&mut burst) > 0 {
                for index in 0..burst.len() {
                    let (packet, arena) = burst.packet_mut(index);
                    let _ = shared.host.deliver(packet, arena);
                    moved += 1;
                }
                burst.clear();
                guest.release();
            }
        }
        if moved == 0 {
            shared.wake.notified().await;
        }
    }
}
