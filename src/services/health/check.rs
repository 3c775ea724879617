//! One check: which kind, and what all kinds share.

use std::borrow::Cow;
use std::future::Future;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Target;
use super::dialer::{Dial, Dialer};
use super::tls::Tls;
use super::{grpc, http, ping, tcp, udp};
use crate::fabric::spec::HealthCheck;
use crate::services::sockets::Sockets;

/// What a check found, for people: why it succeeded, or why it failed.
pub type Finding = Result<Cow<'static, str>, Cow<'static, str>>;

/// A check that is over.
pub struct Checked {
    /// What it found.
    pub finding: Finding,
    /// How long the target was asked, without what the check waited for room.
    pub took: Duration,
}

/// A check that is under way.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Checked> + Send + 'a>>;

/// Since when a target is asked.
pub struct Stopwatch {
    started: Instant,
    room: OnceLock<Instant>,
}

impl Stopwatch {
    /// From now on, unless the check must wait for room.
    pub fn new() -> Self {
        Self { started: Instant::now(), room: OnceLock::new() }
    }

    /// There is room for the check: it begins now.
    pub fn begin(&self) {
        let _ = self.room.set(Instant::now());
    }

    /// The check is over.
    pub fn over(&self, finding: Finding) -> Checked {
        Checked { finding, took: self.room.get().unwrap_or(&self.started).elapsed() }
    }
}

/// Who checks.
pub type Prober = Arc<dyn Check>;

/// Checks targets. Tests have others than [`Checks`].
pub trait Check: Send + Sync {
    /// Asks the target once. Over at the target's timeout, from when there was room for the check. `silent`: it said nothing the last time.
    fn check<'a>(&'a self, target: &'a Target, silent: bool) -> Checking<'a>;
}

/// All kinds of checks.
pub struct Checks {
    sockets: Sockets,
    dialer: Dialer,
    tls: Tls,
}

impl Checks {
    /// Checks through these sockets.
    pub fn new(sockets: Sockets) -> Self {
        Self { dialer: Dialer::new(sockets.clone()), tls: Tls::new(), sockets }
    }
}

impl Check for Checks {
    fn check<'a>(&'a self, target: &'a Target, silent: bool) -> Checking<'a> {
        let Self { sockets, dialer, tls } = self;
        let watch = Stopwatch::new();
        match &target.spec.check {
            HealthCheck::Tcp => Box::pin(async move { watch.over(tcp::check(sockets, target).await) }),
            HealthCheck::Icmp => Box::pin(async move { watch.over(ping::check(sockets, target).await) }),
            HealthCheck::Udp { send, expect } => {
                Box::pin(async move { watch.over(udp::check(sockets, target, send, expect).await) })
            }
            HealthCheck::Http { tls: secure, path, host, statuses } => Box::pin(async move {
                let (tls, dial) = (secure.then_some(tls), Dial { dialer, silent, watch: &watch });
                watch.over(http::check(dial, target, tls, path, host.as_deref(), statuses).await)
            }),
            HealthCheck::Grpc { service } => Box::pin(async move {
                watch.over(grpc::check(Dial { dialer, silent, watch: &watch }, target, service).await)
            }),
        }
    }
}

/// When a check is over.
#[derive(Clone, Copy)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// The deadline of a check that begins now.
    pub fn new(target: &Target) -> Self {
        let timeout = target.timeout();
        Self { at: Instant::now() + timeout, timeout }
    }

    /// When half of the time is over: what may have been lost is sent again.
    pub fn half(&self) -> Instant {
        self.at - self.timeout / 2
    }

    /// A step of the check. `waiting` says what did not happen when it is not done by then.
    ///
    /// # Errors
    /// The finding, at the deadline.
    pub async fn step<T>(&self, waiting: &str, step: impl Future<Output = T>) -> Result<T, Cow<'static, str>> {
        timeout_at(self.at, step).await.map_err(|_| format!("{waiting} within {:?}", self.timeout).into())
    }
}

/// What an error of a socket means.
pub fn explain(error: &io::Error) -> Cow<'static, str> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused if error.get_ref().is_some() => format!("port unreachable ({error})").into(),
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::HostUnreachable => format!("unreachable ({error})").into(),
        io::ErrorKind::AddrNotAvailable => "the network's gateway has no address of that IP version".into(),
        io::ErrorKind::QuotaExceeded => "too many checks wait for answers in this network".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".into(),
        io::ErrorKind::NotConnected | io::ErrorKind::NotFound => "the network is gone".into(),
        _ => error.to_string().into(),
    }
}

/// Names a target among others: the same each time.
pub fn ident(target: &Target) -> u16 {
    BuildHasherDefault::<DefaultHasher>::new().hash_one(target) as u16
}
