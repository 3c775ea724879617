//! Connections for checks that say something: HTTP, gRPC.
//!
//! Each takes one of a network's slots. A backend that takes a connection and says nothing holds its slot until the timeout; a check
//! that waits for one has its full time from when it has it. When half of the slots are taken, a backend is first asked whether it
//! takes connections at all, which needs no slot. Those that said nothing the last time have slots of their own, beside what nobody else
//! wants: a host full of frozen guests delays nobody but them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::check::{Deadline, Stopwatch, explain};
use super::{Target, lock, tcp};
use crate::services::sockets::{Sockets, Stream};

/// Checks of one network that have a connection at a time: half of the connections that its stack has room for, so that DNS
/// over TCP has the others.
const SLOTS: usize = 256;

/// Of those, the ones for backends that said nothing the last time.
const SILENT_SLOTS: usize = 64;

/// The others.
const BRISK_SLOTS: usize = SLOTS - SILENT_SLOTS;

/// Octets that are taken from a backend in one check, TLS and all.
const OCTETS_MAX: usize = 64 * 1024;

/// Pieces that they may come in: who drips octets has each of them looked at with all before it.
const READS_MAX: usize = 512;

/// Opens connections.
pub struct Dialer {
    sockets: Sockets,
    /// By network.
    slots: Mutex<HashMap<Arc<str>, Arc<Slots>>>,
}

/// Room for checks of one network.
struct Slots {
    brisk: Arc<Semaphore>,
    silent: Arc<Semaphore>,
}

impl Slots {
    fn new() -> Self {
        let semaphore = |slots| Arc::new(Semaphore::new(slots));
        Self { brisk: semaphore(BRISK_SLOTS), silent: semaphore(SILENT_SLOTS) }
    }

    /// Whether half of those are taken that backends have who answer.
    fn is_busy(&self) -> bool {
        self.brisk.available_permits() < BRISK_SLOTS / 2
    }

    async fn take(&self, silent: bool) -> Result<OwnedSemaphorePermit, AcquireError> {
        if !silent {
            return Arc::clone(&self.brisk).acquire_owned().await;
        }
        if let Ok(slot) = Arc::clone(&self.silent).try_acquire_owned() {
            return Ok(slot);
        }
        if !self.is_busy()
            && let Ok(slot) = Arc::clone(&self.brisk).try_acquire_owned()
        {
            return Ok(slot);
        }
        Arc::clone(&self.silent).acquire_owned().await
    }
}

/// Opens the connection of one check.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    /// Who opens it.
    pub dialer: &'a Dialer,
    /// Whether the backend said nothing the last time.
    pub silent: bool,
    /// Who must know when there is room.
    pub watch: &'a Stopwatch,
}

impl Dial<'_> {
    /// A connection to the target, and until when the check may go on.
    ///
    /// # Errors
    /// The finding of the check.
    pub async fn dial(self, target: &Target) -> Result<(Connection, Deadline), Cow<'static, str>> {
        let Dialer { sockets, .. } = self.dialer;
        let slots = self.dialer.slots(&target.network);
        if slots.is_busy() {
            tcp::check(sockets, target).await?;
        }
        let slot = slots.take(self.silent).await.map_err(|_| "the host stops")?;
        self.watch.begin();
        let deadline = Deadline::new(target);
        let to = SocketAddr::new(target.address, target.l4);
        let connect = sockets.connect_briefly(&target.network, to);
        let stream = deadline.step("no TCP connection", connect).await?.map_err(|error| explain(&error))?;
        Ok((Connection { stream, octets: OCTETS_MAX, reads: READS_MAX, _slot: (slot, slots) }, deadline))
    }
}

impl Dialer {
    /// Opens them through these sockets.
    pub fn new(sockets: Sockets) -> Self {
        Self { sockets, slots: Mutex::default() }
    }

    fn slots(&self, network: &Arc<str>) -> Arc<Slots> {
        let mut slots = lock(&self.slots);
        if let Some(slots) = slots.get(network) {
            return Arc::clone(slots);
        }
        // Networks that are gone, or idle.
        slots.retain(|_, slots| Arc::strong_count(slots) > 1);
        Arc::clone(slots.entry(Arc::clone(network)).or_insert_with(|| Arc::new(Slots::new())))
    }
}

/// A connection that takes no more than [`OCTETS_MAX`] octets from the backend, in [`READS_MAX`] pieces. Dropping it resets it.
pub struct Connection {
    stream: Stream,
    octets: usize,
    reads: usize,
    /// With the room that it is part of: a network is idle when nobody has any.
    _slot: (OwnedSemaphorePermit, Arc<Slots>),
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.octets == 0 || self.reads == 0 {
            let text = format!("more than {OCTETS_MAX} octets came, or in more than {READS_MAX} pieces");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::FileTooLarge, text)));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.octets = self.octets.saturating_sub(buffer.filled().len() - before);
        self.reads -= usize::from(result.is_ready());
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An error of a protocol with what caused it, for people.
pub fn chain(what: &str, error: &(dyn std::error::Error + 'static)) -> Cow<'static, str> {
    let mut text = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.into()
}
