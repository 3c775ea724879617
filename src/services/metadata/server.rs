//! Metadata in one network: TCP port 80 of 169.254.169.254 and fd00:ec2::254, behind its internal port. What reaches it is
//! hostile: everything has a limit, per port of the network, so that one guest does not take what others need.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use super::answer::{self, Answer, answer};
use super::counters::Counters;
use super::directory::Directory;
use super::token::Key;
use crate::services::sockets::{Listener, Peer, Stream};

/// L4 port.
pub const PORT: u16 = 80;
/// Connections of one network.
const CONNECTIONS_MAX: usize = 256;
/// Connections of one port.
const CONNECTIONS_PER_PORT_MAX: usize = 16;
/// Octets of a request's head.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Header fields of a request.
const HEADERS_MAX: usize = 64;
/// How long a client may take for the head of a request, and be silent between two.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// How long a connection may last.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Requests of one port that are answered a second, and at once after a pause.
const REQUESTS_PER_SECOND: f64 = 100.0;
const REQUESTS_AT_ONCE: f64 = 400.0;

/// What all networks share.
pub struct Service {
    /// Who has which address.
    pub directory: ArcSwap<Directory>,
    /// For tokens.
    key: Key,
    /// What is counted.
    pub counters: Counters,
    /// How much each port has asked for.
    rates: Mutex<HashMap<Uuid, Bucket>>,
    started: Instant,
}

/// Requests that a port may still make.
#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Service {
    /// Without ports.
    ///
    /// # Errors
    /// The kernel has no random octets.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            directory: ArcSwap::default(),
            key: Key::random()?,
            counters: Counters::default(),
            rates: Mutex::default(),
            started: Instant::now(),
        })
    }

    fn respond(&self, peer: &Peer, request: Request<Incoming>) -> Answer {
        let directory = self.directory.load();
        let now = Instant::now();
        let reply = match directory.find(&peer.network, peer.address) {
            None => answer::nobody(),
            Some(workload) if !self.may_ask(workload.port.uid, now) => answer::too_many(),
            Some(workload) => {
                let now_s = now.saturating_duration_since(self.started).as_secs();
                answer(&workload, &self.key, now_s, &request.into_parts().0)
            }
        };
        self.counters.answered(reply.status());
        reply
    }

    fn may_ask(&self, port: Uuid, now: Instant) -> bool {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = rates.entry(port).or_insert(Bucket { left: REQUESTS_AT_ONCE, at: now });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + passed * REQUESTS_PER_SECOND).min(REQUESTS_AT_ONCE);
        bucket.at = now;
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }

    /// Forgets ports that have not asked for so long that it makes no difference.
    pub fn forget_idle(&self) {
        let full_after = Duration::from_secs_f64(REQUESTS_AT_ONCE / REQUESTS_PER_SECOND);
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.retain(|_, bucket| bucket.at.elapsed() < full_after);
    }
}

/// Accepts connections until the network is gone.
pub async fn serve(service: Arc<Service>, listener: Listener) {
    let mut connections = JoinSet::new();
    let mut by_port = HashMap::<Uuid, Arc<Semaphore>>::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => return,
            },
            Some(_) = connections.join_next() => {
                by_port.retain(|_, places| places.available_permits() < CONNECTIONS_PER_PORT_MAX);
                continue;
            }
        };
        let port = service.directory.load().find(&peer.network, peer.address).map(|workload| workload.port.uid);
        let places = by_port
            .entry(port.unwrap_or_default())
            .or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_PER_PORT_MAX)));
        let place = Arc::clone(places).try_acquire_owned();
        let Some(place) = place.ok().filter(|_| connections.len() < CONNECTIONS_MAX) else {
            service.counters.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            continue;
        };
        let service = Arc::clone(&service);
        connections.spawn(async move {
            let ended = timeout(CONNECTION_MAX, serve_stream(&service, stream, peer)).await;
            if !matches!(ended, Ok(Ok(()))) {
                service.counters.cut.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            drop(place);
        });
    }
}

async fn serve_stream(service: &Service, stream: Stream, peer: Peer) -> hyper::Result<()> {
    let respond = service_fn(|request| {
        let reply = service.respond(&peer, request);
        async move { Ok::<_, Infallible>(reply) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    http.serve_connection(TokioIo::new(stream), respond).await
}
