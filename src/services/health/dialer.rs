//! Connections for checks that say something: HTTP, gRPC.
//!
//! Each takes one of a network's slots. A backend that takes a connection and says nothing holds its slot until the timeout; a check
//! that waits for one has its full time from when it has it. When half of the slots are taken, a backend is first asked whether it
//! takes connections at all, which needs no slot: a host full of frozen guests delays nobody.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::check::{Deadline, explain};
use super::{Target, lock, tcp};
use crate::services::sockets::{Sockets, Stream};

/// Checks of one network that have a connection at a time: half of the connections that its stack has room for, so that DNS
/// over TCP has the others.
const SLOTS: usize = 256;

/// Octets that are taken from a backend in one check, TLS and all.
const OCTETS_MAX: usize = 64 * 1024;

/// Pieces that they may come in: who drips octets has each of them looked at with all before it.
const READS_MAX: usize = 512;

/// Opens connections.
pub struct Dialer {
    sockets: Sockets,
    /// By network.
    slots: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
}

impl Dialer {
    /// Opens them through these sockets.
    pub fn new(sockets: Sockets) -> Self {
        Self { sockets, slots: Mutex::default() }
    }

    /// A connection to the target, and until when the check may go on.
    ///
    /// # Errors
    /// The finding of the check.
    pub async fn dial(&self, target: &Target) -> Result<(Connection, Deadline), Cow<'static, str>> {
        let slots = self.slots(&target.network);
        if slots.available_permits() < SLOTS / 2 {
            tcp::check(&self.sockets, target).await?;
        }
        let slot = slots.acquire_owned().await.map_err(|_| "the host stops")?;
        let deadline = Deadline::new(target);
        let to = SocketAddr::new(target.address, target.l4);
        let connect = self.sockets.connect_briefly(&target.network, to);
        let stream = deadline.step("no TCP connection", connect).await?.map_err(|error| explain(&error))?;
        Ok((Connection { stream, octets: OCTETS_MAX, reads: READS_MAX, _slot: slot }, deadline))
    }

    fn slots(&self, network: &Arc<str>) -> Arc<Semaphore> {
        let mut slots = lock(&self.slots);
        if let Some(slots) = slots.get(network) {
            return Arc::clone(slots);
        }
        // Networks that are gone, or idle.
        slots.retain(|_, slots| Arc::strong_count(slots) > 1);
        Arc::clone(slots.entry(Arc::clone(network)).or_insert_with(|| Arc::new(Semaphore::new(SLOTS))))
    }
}

/// A connection that takes no more than [`OCTETS_MAX`] octets from the backend, in [`READS_MAX`] pieces. Dropping it resets it.
pub struct Connection {
    stream: Stream,
    octets: usize,
    reads: usize,
    _slot: OwnedSemaphorePermit,
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
