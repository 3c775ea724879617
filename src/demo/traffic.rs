//! A TCP connection that is kept full until it is told to end, also through an end of the daemon.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostweave_guest::{Error, Guest};

use crate::guests::member::{DISCARD, Member, PATIENCE};

/// Octets that the sender hands to its stack at once.
const CHUNK: usize = 64 << 10;

/// Longest life of a connection: what the demo needs at most.
const LIFE_MAX: Duration = Duration::from_secs(3600);

/// The running connection.
pub struct Stream {
    shared: Arc<Shared>,
    result: Receiver<Result<(), Error>>,
    started: Instant,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    acknowledged: AtomicU64,
    reconnects: AtomicU64,
}

/// What a connection carried.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// Octets that the receiver acknowledged.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Carried {
    /// Gbit/s of TCP payload.
    pub fn gbit_per_s(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9) / 1e9
    }
}

impl Stream {
    /// Has `from` open a connection to the discard service at `to`.
    ///
    /// # Errors
    /// The guest's thread has ended.
    pub fn start(from: &Member, to: IpAddr) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_guest = Arc::clone(&shared);
        let result = from.guest()?.start(move |guest| fill(guest, to, &of_guest))?;
        Ok(Self { shared, result, started: Instant::now() })
    }

    /// Octets that the receiver acknowledged so far.
    pub fn bytes(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// How often the sender's card had to attach again.
    pub fn reconnects(&self) -> u64 {
        self.shared.reconnects.load(Ordering::Relaxed)
    }

    /// Waits until octets are acknowledged that were not before: the connection is alive. Returns how long it took.
    ///
    /// # Errors
    /// Nothing is acknowledged in time.
    pub fn moves(&self) -> anyhow::Result<Duration> {
        let (start, before) = (Instant::now(), self.bytes());
        while self.bytes() == before {
            if start.elapsed() > PATIENCE {
                bail!("the TCP connection stands still for {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(start.elapsed())
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// It had broken.
    pub fn end(self) -> anyhow::Result<Carried> {
        let carried = Carried { bytes: self.bytes(), elapsed: self.started.elapsed() };
        self.shared.end.store(true, Ordering::Relaxed);
        let result = self.result.recv_timeout(PATIENCE + PATIENCE);
        result.context("the sender does not come to an end")?.context("the TCP connection broke")?;
        Ok(carried)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
    }
}

fn fill(guest: &mut Guest, to: IpAddr, shared: &Shared) -> Result<(), Error> {
    let handle = guest.tcp_connect(to, DISCARD, PATIENCE)?;
    let chunk = vec![0x5a; CHUNK];
    let mut sent = 0u64;
    let result = loop {
        let turn = guest.run_until("end of the connection", LIFE_MAX, |guest| {
            let socket = guest.tcp_socket(handle);
            while socket.can_send() {
                match socket.send_slice(&chunk) {
                    Ok(count) if count > 0 => sent += count as u64,
                    _ => break,
                }
            }
            let alive = socket.may_send();
            shared.acknowledged.store(sent - socket.send_queue() as u64, Ordering::Relaxed);
            (!alive || shared.end.load(Ordering::Relaxed)).then_some(alive)
        });
        match turn {
            // The daemon is gone: attach again as soon as there is one.
            Err(Error::Disconnected) if !shared.end.load(Ordering::Relaxed) => {
                if guest.nic().reconnect().is_ok() {
                    shared.reconnects.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(true) => break Ok(()),
            Ok(false) => break Err(Error::Stack { what: format!("TCP to {to}: closed by the other side") }),
            Err(error) => break Err(error),
        }
    };
    guest.close(handle);
    result
}
