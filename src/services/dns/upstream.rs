//! The upstream servers: which there are, and which of them answer.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;

use super::spec::{PORT, SERVERS_MAX};
use crate::fabric::spec::FabricEvent;

/// Where the host's own resolvers stand (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Octets of it that are read.
const RESOLV_CONF_LEN_MAX: usize = 64 << 10;
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Failures in a row after which a server counts as down.
const FAILURES_MAX: u32 = 3;

/// One server.
#[derive(Debug)]
pub struct Upstream {
    /// Where it is asked.
    pub address: SocketAddr,
    failures: AtomicU32,
    down: AtomicBool,
}

impl Upstream {
    fn new(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, failures: AtomicU32::new(0), down: AtomicBool::new(false) })
    }

    /// Whether it did not answer lately.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }
}

/// All servers.
pub struct Upstreams {
    servers: ArcSwap<Vec<Arc<Upstream>>>,
    settings: Mutex<Settings>,
    events: UnboundedSender<FabricEvent>,
}

#[derive(Default)]
struct Settings {
    /// As configured; `None` for those of `resolv.conf`.
    written: Option<Vec<SocketAddr>>,
    /// Addresses that are our own, in some network.
    own: Vec<IpAddr>,
    looked: Option<Instant>,
}

impl Upstreams {
    /// None yet. What happens to them is told to `events`.
    pub fn new(events: UnboundedSender<FabricEvent>) -> Self {
        Self { servers: ArcSwap::default(), settings: Mutex::default(), events }
    }

    /// Takes over what is configured, and which addresses are our own: those of `resolv.conf` are not asked.
    pub fn configure(&self, written: Option<&[SocketAddr]>, own: Vec<IpAddr>) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        settings.written = written.map(<[SocketAddr]>::to_vec);
        settings.own = own;
        settings.looked = None;
        if let Some(written) = &settings.written {
            self.replace(written);
        }
    }

    /// The servers in the order in which they are to be asked: those that answer first. May read `resolv.conf`.
    pub fn in_order(&self) -> Vec<Arc<Upstream>> {
        self.look(Path::new(RESOLV_CONF));
        let mut servers = self.servers.load().to_vec();
        servers.sort_by_key(|server| server.is_down());
        servers
    }

    /// Every server, as last known.
    pub fn all(&self) -> Arc<Vec<Arc<Upstream>>> {
        self.servers.load_full()
    }

    fn look(&self, file: &Path) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = settings.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY);
        if settings.written.is_some() || fresh {
            return;
        }
        settings.looked = Some(Instant::now());
        let text = std::fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(..RESOLV_CONF_LEN_MAX).unwrap_or(&text)).into_owned();
        let mut found = nameservers(&text);
        found.retain(|address| !settings.own.contains(address));
        let found: Vec<SocketAddr> = found.into_iter().map(|address| SocketAddr::new(address, PORT)).collect();
        self.replace(&found);
    }

    /// Servers that stay keep what is known of them.
    fn replace(&self, addresses: &[SocketAddr]) {
        let before = self.servers.load();
        let same = before.iter().map(|server| server.address).eq(addresses.iter().take(SERVERS_MAX).copied());
        if same {
            return;
        }
        let known = |address: &SocketAddr| before.iter().find(|server| server.address == *address).map(Arc::clone);
        let servers =
            addresses.iter().take(SERVERS_MAX).map(|address| known(address).unwrap_or_else(|| Upstream::new(*address)));
        self.servers.store(Arc::new(servers.collect()));
    }

    /// Takes note of how an exchange ended.
    pub fn note(&self, server: &Upstream, failure: Option<String>) {
        match failure {
            None => {
                server.failures.store(0, Ordering::Relaxed);
                if server.down.swap(false, Ordering::Relaxed) {
                    self.tell(server, None);
                }
            }
            Some(reason) => {
                let failures = server.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if failures >= FAILURES_MAX && !server.down.swap(true, Ordering::Relaxed) {
                    self.tell(server, Some(reason));
                }
            }
        }
    }

    fn tell(&self, server: &Upstream, failure: Option<String>) {
        // Nobody listens during shutdown.
        let _ = self.events.send(FabricEvent::DnsUpstream { server: server.address.to_string(), failure });
    }
}

/// The addresses in a `resolv.conf`. Those of one link only (`fe80::1%eth0`) are left out.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for address in text.lines().filter_map(line) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn resolv_conf_names_servers_but_not_ourselves() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let text = "# nameserver 192.0.2.9\nsearch a.example\nnameserver 192.0.2.53\n nameserver 10.64.0.1\n\
                    nameserver\t2001:db8::53 # x\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\nnameserver\n";
        std::fs::write(&file, text).unwrap();
        let upstreams = Upstreams::new(unbounded_channel().0);
        upstreams.configure(None, vec!["10.64.0.1".parse().unwrap()]);
        upstreams.look(&file);
        let addresses: Vec<String> = upstreams.all().iter().map(|server| server.address.to_string()).collect();
        assert_eq!(addresses, ["192.0.2.53:53", "[2001:db8::53]:53"]);
        upstreams.configure(Some(&[]), Vec::new());
        assert!(upstreams.all().is_empty());
    }

    #[test]
    fn a_server_that_fails_is_asked_last_and_told_once() {
        let (events, mut told) = unbounded_channel();
        let upstreams = Upstreams::new(events);
        let addresses: Vec<SocketAddr> = ["192.0.2.1:53", "192.0.2.2:53"].map(|text| text.parse().unwrap()).into();
        upstreams.configure(Some(&addresses), Vec::new());
        let first = Arc::clone(&upstreams.all()[0]);
        for _ in 0..5 {
            upstreams.note(&first, Some("no answer".to_owned()));
        }
        assert_eq!(upstreams.in_order().iter().map(|s| s.address).collect::<Vec<_>>(), [addresses[1], addresses[0]]);
        upstreams.note(&first, None);
        assert_eq!(upstreams.in_order()[0].address, addresses[0]);
        let mut next = || match told.try_recv() {
            Ok(FabricEvent::DnsUpstream { server, failure }) => Some((server, failure)),
            _ => None,
        };
        assert_eq!(next(), Some(("192.0.2.1:53".to_owned(), Some("no answer".to_owned()))));
        assert_eq!(next(), Some(("192.0.2.1:53".to_owned(), None)));
        assert_eq!(next(), None);
    }
}
