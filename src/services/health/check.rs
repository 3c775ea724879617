//! One check: which kind, and what all kinds share.

use std::borrow::Cow;
use std::future::Future;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Target;
use super::{ping, tcp, udp};
use crate::fabric::spec::HealthCheck;
use crate::services::sockets::Sockets;

/// What a check found, for people: why it succeeded, or why it failed.
pub type Finding = Result<Cow<'static, str>, Cow<'static, str>>;

/// A check that is under way.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Finding> + Send + 'a>>;

/// Who checks.
pub type Prober = Arc<dyn Check>;

/// Checks targets. Tests have others than [`Checks`].
pub trait Check: Send + Sync {
    /// Asks the target once. Whoever calls gives up at the target's timeout.
    fn check<'a>(&'a self, target: &'a Target) -> Checking<'a>;
}

/// All kinds of checks.
pub struct Checks {
    sockets: Sockets,
}

impl Checks {
    /// Checks through these sockets.
    pub fn new(sockets: Sockets) -> Self {
        Self { sockets }
    }
}

impl Check for Checks {
    fn check<'a>(&'a self, target: &'a Target) -> Checking<'a> {
        let deadline = Deadline::new(target.timeout());
        match &target.spec.check {
            HealthCheck::Tcp => Box::pin(tcp::check(&self.sockets, target, deadline)),
            HealthCheck::Icmp => Box::pin(ping::check(&self.sockets, target, deadline)),
            HealthCheck::Udp { send, expect } => Box::pin(udp::check(&self.sockets, target, send, expect, deadline)),
            HealthCheck::Http { .. } | HealthCheck::Grpc { .. } => {
                Box::pin(async { Err("HTTP and gRPC cannot be checked".into()) })
            }
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
    pub fn new(timeout: Duration) -> Self {
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
        io::ErrorKind::NotConnected | io::ErrorKind::NotFound => "the network is gone".into(),
        _ => error.to_string().into(),
    }
}

/// Names a target among others: the same each time.
pub fn ident(target: &Target) -> u16 {
    BuildHasherDefault::<DefaultHasher>::new().hash_one(target) as u16
}
