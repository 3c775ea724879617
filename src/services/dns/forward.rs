//! Names that are nobody's here: cache, then the upstream servers, one after the other.
//!
//! # Theory of operation
//!
//! Whoever asks what is being asked already waits for the same answer. The exchange is a task of its own and ends by its
//! own limits, whoever waits for it. There are limits on what one port and what all ports together may have under way;
//! beyond them the answer is SERVFAIL at once, never silence (SEMANTICS DN9).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use tokio::sync::watch;
use tokio::time::timeout;

use super::cache::{Asked, Cache, Kept};
use super::counters::{Counters, count};
use super::exchange::{self, Question};
use super::message::{Origin, Response};
use super::name::Key;
use super::upstream::Upstreams;

/// Questions of one port that may be under way.
pub const PER_PORT_MAX: usize = 64;
/// Questions that may be under way upstream.
pub const EXCHANGES_MAX: usize = 512;
/// Queries that may wait for them.
pub const WAITING_MAX: usize = 4_096;
/// How long all servers together may take: resolvers of guests give up after five seconds.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// An answer, who gave it, and its age in seconds.
#[derive(Clone)]
struct Outcome {
    kept: Arc<Kept>,
    server: Option<SocketAddr>,
}

/// Asks upstream servers.
pub struct Forwarder {
    /// The servers.
    pub upstreams: Upstreams,
    cache: Mutex<Cache>,
    under_way: Mutex<HashMap<Asked, watch::Receiver<Option<Outcome>>>>,
    waiting: Mutex<Waiting>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Waiting {
    all: usize,
    by_port: HashMap<Arc<str>, usize>,
}

/// A place among those who wait; gives itself back.
struct Place<'a> {
    forwarder: &'a Forwarder,
    port: Arc<str>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.forwarder.waiting);
        waiting.all -= 1;
        if let Some(count) = waiting.by_port.get_mut(&self.port) {
            *count -= 1;
            if *count == 0 {
                waiting.by_port.remove(&self.port);
            }
        }
    }
}

/// Ends the entry of an exchange, however it ends.
struct UnderWay {
    forwarder: Arc<Forwarder>,
    asked: Asked,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.forwarder.under_way).remove(&self.asked);
    }
}

impl Forwarder {
    /// A forwarder without anything in its cache.
    pub fn new(upstreams: Upstreams, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            upstreams,
            cache: Mutex::default(),
            under_way: Mutex::default(),
            waiting: Mutex::default(),
            counters,
        })
    }

    /// Answers that are kept.
    pub fn cached(&self) -> usize {
        lock(&self.cache).len()
    }

    /// Forgets every answer: other servers may say something else.
    pub fn forget(&self) {
        lock(&self.cache).clear();
    }

    /// The answer that is kept, if there is one.
    pub fn cached_answer(&self, question: &Question) -> Option<Response> {
        let kept = lock(&self.cache).get(&asked(question), Instant::now());
        kept.map(|(kept, age)| response(&kept, age, Origin::Cache))
    }

    /// Asks for `port`. Never fails: what has no answer is SERVFAIL. Also says who answered.
    pub async fn ask(self: &Arc<Self>, port: &Arc<str>, question: Question) -> (Response, Option<SocketAddr>) {
        let failed = |why: &str| {
            tracing::debug!(%port, why, "a DNS query is not forwarded");
            (Response::code(Origin::Failed, ResponseCode::ServFail), None)
        };
        let Some(_place) = self.wait(port) else {
            count(&self.counters.limited);
            return failed("too many of this port or of all ports are under way");
        };
        let Some(mut receiver) = self.begin(question) else {
            count(&self.counters.limited);
            return failed("too many different ones are under way");
        };
        let outcome = receiver.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        match outcome {
            Some(Outcome { kept, server: Some(server) }) => (response(&kept, 0, Origin::Upstream), Some(server)),
            _ => failed("no server answered"),
        }
    }

    fn wait(&self, port: &Arc<str>) -> Option<Place<'_>> {
        let mut waiting = lock(&self.waiting);
        let Waiting { all, by_port } = &mut *waiting;
        if *all >= WAITING_MAX || by_port.get(port).is_some_and(|count| *count >= PER_PORT_MAX) {
            return None;
        }
        *all += 1;
        *by_port.entry(Arc::clone(port)).or_default() += 1;
        Some(Place { forwarder: self, port: Arc::clone(port) })
    }

    /// The exchange that is under way, or a new one.
    fn begin(self: &Arc<Self>, question: Question) -> Option<watch::Receiver<Option<Outcome>>> {
        let asked = asked(&question);
        let mut under_way = lock(&self.under_way);
        if let Some(receiver) = under_way.get(&asked) {
            return Some(receiver.clone());
        }
        if under_way.len() >= EXCHANGES_MAX {
            return None;
        }
        let (sender, receiver) = watch::channel(None);
        under_way.insert(asked.clone(), receiver.clone());
        drop(under_way);
        let entry = UnderWay { forwarder: Arc::clone(self), asked };
        tokio::spawn(async move {
            let forwarder = &entry.forwarder;
            let outcome = timeout(PATIENCE, forwarder.exchange(&question)).await.ok().flatten();
            let outcome = outcome.unwrap_or_else(|| Outcome { kept: Arc::new(Kept::failure()), server: None });
            lock(&forwarder.cache).put(entry.asked.clone(), Arc::clone(&outcome.kept), Instant::now());
            drop(entry);
            sender.send_replace(Some(outcome));
        });
        Some(receiver)
    }

    /// Asks one server after the other until one knows, or says that there is nothing to know.
    async fn exchange(&self, question: &Question) -> Option<Outcome> {
        let servers = self.upstreams.in_order();
        let mut last = None;
        // A second round: a datagram may be lost.
        for server in servers.iter().chain(&servers) {
            count(&self.counters.exchanges);
            match exchange::ask(server.address, question).await {
                Ok(kept) => {
                    self.upstreams.note(server, None);
                    let settled = matches!(kept.code, ResponseCode::NoError | ResponseCode::NXDomain);
                    let outcome = Outcome { kept: Arc::new(kept), server: Some(server.address) };
                    if settled {
                        return Some(outcome);
                    }
                    if last.as_ref().is_some_and(|last: &Outcome| last.server == outcome.server) {
                        break;
                    }
                    last = Some(outcome);
                }
                Err(error) => {
                    count(&self.counters.upstream_failures);
                    self.upstreams.note(server, Some(error.to_string()));
                }
            }
        }
        last
    }
}

fn asked(question: &Question) -> Asked {
    Asked {
        name: Key::of(question.query.name()).octets().into(),
        kind: question.query.query_type().into(),
        flags: (question.dnssec_ok, question.checking_disabled),
    }
}

/// An answer of an upstream server as ours, `age` seconds later. Codes that only mean something between servers are
/// SERVFAIL to a client.
fn response(kept: &Kept, age: u32, origin: Origin) -> Response {
    let code = match kept.code {
        code @ (ResponseCode::NoError | ResponseCode::NXDomain) => code,
        _ => return Response::code(origin, ResponseCode::ServFail),
    };
    let mut response = Response::code(origin, code);
    response.authentic = kept.authentic;
    response.answers.clone_from(&kept.answers);
    response.authorities.clone_from(&kept.authorities);
    for record in response.answers.iter_mut().chain(&mut response.authorities) {
        record.ttl = record.ttl.saturating_sub(age);
    }
    response
}

/// Everything behind these locks is whole between two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
