//! `HostConfig`, checked.

use std::collections::HashSet;
use std::path::PathBuf;

use hostweave_policy::model::{self, DefaultPolicy};
use hostweave_switch::limits::{CONNECTIONS_MAX, WORKERS_MAX};

use super::{Account, absolute_path, account, dns, external_dns, guest, queues, range, uplink};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw;
use crate::fabric::spec::{
    CONNECTIONS_MAX_DEFAULT, DnsSpec, Established, ExternalDnsSpec, FLOWS_MAX_DEFAULT, LocalServices, MetadataSpec,
    Timeouts, UplinkSpec,
};

/// CPUs are numbered below this (`CPU_SETSIZE` of Linux).
const CPUS_MAX: u32 = 1024;

/// The host's own interface in a network, where no other name is written.
const HOST_INTERFACE: &str = "hostweave0";

/// The least that `connections.max` can be.
const CONNECTIONS_MIN: u32 = 1024;

/// The longest timeout, in seconds: 31 days.
const TIMEOUT_MAX_S: u32 = 31 * 24 * 3600;

/// How the host runs hostweave, defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostConfig {
    /// Region or site.
    pub region: Option<String>,
    /// One worker per entry, pinned to that CPU; `None` leaves placement to the kernel.
    pub workers: Vec<Option<usize>>,
    /// Folder of sockets, where written.
    pub runtime_dir: Option<PathBuf>,
    /// Folder of the store, where written.
    pub state_dir: Option<PathBuf>,
    /// Group that may use the control socket, where written.
    pub control_group: Option<Account>,
    /// What ports get that do not say otherwise.
    pub defaults: Defaults,
    /// What happens in a direction of a port that no policy isolates.
    pub default_policy: DefaultPolicy,
    /// What becomes of established connections when policies change.
    pub established: Established,
    /// Traffic of the host's own services.
    pub infrastructure: Infrastructure,
    /// DNS at the gateways.
    pub dns: DnsSpec,
    /// The zone in which Services have names, without what they ask for.
    pub external_dns: Option<ExternalDnsSpec>,
    /// Metadata for guests; `None` for none.
    pub metadata: Option<MetadataSpec>,
    /// The table of connections.
    pub connections: Connections,
    /// The way out of the host.
    pub uplink: Option<UplinkSpec>,
    /// The host's own interface in a network.
    pub host_access: Option<HostAccess>,
}

/// The host's own interface in a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAccess {
    /// Name of the network.
    pub network: String,
    /// Name of the device, 1 to 15 octets.
    pub interface: String,
}

/// Traffic between ports and the host's own services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Infrastructure {
    /// What passes whatever policies say.
    pub passes: model::Infrastructure,
    /// What is answered before policy.
    pub answers: LocalServices,
}

/// The table of connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connections {
    /// Connections that the host has room for.
    pub max: u32,
    /// Whether TCP in mid-stream begins a connection.
    pub loose_tcp: bool,
    /// When an idle one is forgotten.
    pub timeouts: Timeouts,
}

impl Default for Connections {
    fn default() -> Self {
        Self { max: CONNECTIONS_MAX_DEFAULT, loose_tcp: false, timeouts: Timeouts::default() }
    }
}

/// What ports get that do not say otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defaults {
    /// Queue pairs of a vhost-user port.
    pub queues: u16,
    /// Group that may open vhost-user sockets; `None` is the daemon's own.
    pub group: Option<Account>,
    /// Connections that a port may have opened at a time.
    pub flows_max: u32,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            region: None,
            workers: vec![None],
            runtime_dir: None,
            state_dir: None,
            control_group: None,
            defaults: Defaults { queues: 1, group: None, flows_max: FLOWS_MAX_DEFAULT },
            default_policy: DefaultPolicy::Allow,
            established: Established::Recheck,
            infrastructure: Infrastructure::default(),
            dns: DnsSpec::default(),
            external_dns: None,
            metadata: Some(MetadataSpec::default()),
            connections: Connections::default(),
            uplink: None,
            host_access: None,
        }
    }
}

impl HostConfig {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(name: &str, raw: &raw::host_config::HostConfigSpec, problems: &mut Vec<Problem>) -> Self {
        let spec = Path::of("spec");
        let mut host = Self { region: raw.region.clone(), ..Self::default() };
        if let Some(region) = &raw.region
            && let Err(reason) = names::check_dns_label(region)
        {
            let path = spec.key("region");
            let message = format!("{path} {region:?} {reason}");
            problems.push(Problem::value(&path, "invalid_name", message).label("not a valid name"));
        }
        if raw.default_policy == Some(raw::host_config::DefaultPolicy::Deny) {
            host.default_policy = DefaultPolicy::Deny;
        }
        if raw.established == Some(raw::host_config::Established::Keep) {
            host.established = Established::Keep;
        }
        if let Some(infrastructure) = &raw.infrastructure {
            host.infrastructure = infrastructure_of(infrastructure);
        }
        if let Some(raw) = &raw.dns {
            host.dns = dns::check(raw, &spec.key("dns"), problems);
        }
        let external = raw.external_dns.as_deref();
        host.external_dns = external.map(|raw| external_dns::check(raw, name, &spec.key("externalDNS"), problems));
        host.metadata = guest::host(raw.metadata.as_ref(), raw.region.as_ref());
        if let Some(connections) = &raw.connections {
            host.connections = check_connections(connections, &spec.key("connections"), problems);
        }
        if let Some(raw) = &raw.uplink {
            host.uplink = Some(uplink::check(raw, &spec.key("uplink"), problems));
        }
        if let Some(raw) = &raw.host_access {
            let taken = host.uplink.as_ref().map(|uplink| uplink.interface.as_str());
            host.host_access = Some(check_host_access(raw, taken, &spec.key("hostAccess"), problems));
        }
        if let Some(workers) = &raw.workers {
            host.workers = check_workers(workers, &spec.key("workers"), problems);
        }
        if let Some(paths) = &raw.paths {
            let path = spec.key("paths");
            host.runtime_dir = paths.runtime.as_ref().map(|text| absolute_path(text, &path.key("runtime"), problems));
            host.state_dir = paths.state.as_ref().map(|text| absolute_path(text, &path.key("state"), problems));
        }
        let group = raw.control.as_ref().and_then(|control| control.group.as_ref());
        host.control_group = group.map(|group| account(group, &spec.key("control").key("group"), problems));
        if let Some(defaults) = &raw.defaults {
            let path = spec.key("defaults");
            host.defaults.queues = queues(defaults.queues, &path.key("queues"), problems).unwrap_or(1);
            host.defaults.group = defaults.group.as_ref().map(|group| account(group, &path.key("group"), problems));
            host.defaults.flows_max =
                range(defaults.flows, 1, CONNECTIONS_MAX, &path.key("flows"), problems).unwrap_or(FLOWS_MAX_DEFAULT);
        }
        host
    }
}

fn infrastructure_of(raw: &raw::host_config::Infrastructure) -> Infrastructure {
    let on = |written: Option<bool>| written.unwrap_or(true);
    Infrastructure {
        passes: model::Infrastructure {
            dns: on(raw.dns),
            metadata: on(raw.metadata),
            health_probes: on(raw.health_probes),
        },
        answers: LocalServices {
            dhcp: on(raw.dhcp),
            ra: on(raw.ra),
            ping: on(raw.ping),
            arp: on(raw.arp),
            nd: on(raw.nd),
        },
    }
}

/// `taken` is the uplink's interface.
fn check_host_access(
    raw: &raw::host_config::HostAccess,
    taken: Option<&str>,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> HostAccess {
    let interface = raw.interface.as_deref().unwrap_or(HOST_INTERFACE);
    let wrong = match names::check_device_name(interface) {
        // The kernel's settings for every interface stand under these names.
        Ok(()) if matches!(interface, "all" | "default") => Some("is no name of one interface".to_owned()),
        Ok(()) => None,
        Err(reason) => Some(reason),
    };
    if let Some(reason) = wrong {
        let path = path.key("interface");
        let message = format!("{path} {interface:?} {reason}");
        problems.push(Problem::value(&path, "invalid_name", message).label("not a device name"));
    } else if taken == Some(interface) {
        let message = format!("{} {interface} is the uplink's interface", path.key("interface"));
        let problem = Problem::key(path, "conflict", message).label("taken");
        problems.push(problem.help("the daemon makes the device itself: write a name that no interface has"));
    }
    if let Err(reason) = names::check_dns_subdomain(&raw.network) {
        let path = path.key("network");
        let message = format!("{path} {:?} {reason}", raw.network);
        problems.push(Problem::value(&path, "invalid_name", message).label("not a valid name"));
    }
    HostAccess { network: raw.network.clone(), interface: interface.to_owned() }
}

fn check_connections(raw: &raw::host_config::Connections, path: &Path, problems: &mut Vec<Problem>) -> Connections {
    let mut connections = Connections::default();
    if let Some(max) = range(raw.max, CONNECTIONS_MIN, CONNECTIONS_MAX, &path.key("max"), problems) {
        connections.max = max;
    }
    connections.loose_tcp = raw.loose_tcp.unwrap_or(false);
    let Some(raw) = &raw.timeouts else { return connections };
    let timeouts = &mut connections.timeouts;
    for (field, written, timeout) in [
        ("tcpEstablished", raw.tcp_established, &mut timeouts.tcp_established),
        ("tcpOpening", raw.tcp_opening, &mut timeouts.tcp_opening),
        ("tcpClosing", raw.tcp_closing, &mut timeouts.tcp_closing),
        ("tcpTimeWait", raw.tcp_time_wait, &mut timeouts.tcp_time_wait),
        ("tcpClosed", raw.tcp_closed, &mut timeouts.tcp_closed),
        ("udpUnreplied", raw.udp_unreplied, &mut timeouts.udp_unreplied),
        ("udpStream", raw.udp_stream, &mut timeouts.udp_stream),
        ("icmp", raw.icmp, &mut timeouts.icmp),
        ("sctp", raw.sctp, &mut timeouts.sctp),
        ("other", raw.other, &mut timeouts.other),
    ] {
        let path = path.key("timeouts").key(field);
        if let Some(seconds) = range(written, 1, TIMEOUT_MAX_S, &path, problems) {
            *timeout = seconds;
        }
    }
    connections
}

fn check_workers(workers: &raw::host_config::Workers, path: &Path, problems: &mut Vec<Problem>) -> Vec<Option<usize>> {
    match (&workers.cpus, workers.count) {
        (Some(_), Some(_)) => {
            let message = format!("{path} has both cpus and count; write one of them");
            problems.push(Problem::key(path, "conflict", message).label("cpus and count"));
            Vec::new()
        }
        (Some(cpus), None) => check_cpus(cpus, &path.key("cpus"), problems),
        (None, count) => {
            let most = u32::try_from(WORKERS_MAX).unwrap_or(u32::MAX);
            let count = range(count, 1, most, &path.key("count"), problems).unwrap_or(1);
            vec![None; count as usize]
        }
    }
}

fn check_cpus(cpus: &[u32], path: &Path, problems: &mut Vec<Problem>) -> Vec<Option<usize>> {
    if cpus.is_empty() || cpus.len() > WORKERS_MAX {
        let message = format!("{path} lists {} CPUs; 1 to {WORKERS_MAX} are allowed", cpus.len());
        problems.push(Problem::value(path, "out_of_range", message).label("wrong number of CPUs"));
    }
    let mut seen = HashSet::new();
    for (index, cpu) in cpus.iter().enumerate() {
        let path = path.index(index);
        if *cpu >= CPUS_MAX {
            let message = format!("{path} {cpu} is not a CPU: numbers end at {}", CPUS_MAX - 1);
            problems.push(Problem::value(&path, "out_of_range", message).label("no such CPU"));
        } else if !seen.insert(*cpu) {
            let message = format!("{path} {cpu} is listed twice; each worker needs a CPU of its own");
            problems.push(Problem::value(&path, "duplicate", message).label("second time"));
        }
    }
    cpus.iter().map(|cpu| usize::try_from(*cpu).ok()).collect()
}
