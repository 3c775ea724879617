//! `HostConfig`, checked.

use std::collections::HashSet;
use std::path::PathBuf;

use hostweave_switch::limits::WORKERS_MAX;

use super::{Account, absolute_path, account, queues};
use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw;

/// CPUs are numbered below this (`CPU_SETSIZE` of Linux).
const CPUS_MAX: u32 = 1024;

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
}

/// What ports get that do not say otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defaults {
    /// Queue pairs of a vhost-user port.
    pub queues: u16,
    /// Group that may open vhost-user sockets; `None` is the daemon's own.
    pub group: Option<Account>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            region: None,
            workers: vec![None],
            runtime_dir: None,
            state_dir: None,
            control_group: None,
            defaults: Defaults { queues: 1, group: None },
        }
    }
}

impl HostConfig {
    /// Checks what is written; values of fields that have a problem are meaningless.
    pub(super) fn check(raw: &raw::host_config::HostConfigSpec, problems: &mut Vec<Problem>) -> Self {
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
            let path = spec.key("defaultPolicy");
            let message = "spec.defaultPolicy deny is not supported yet by this version: it enforces no policies";
            let problem = Problem::value(&path, "not_yet_supported", message).label("not supported yet");
            problems.push(problem.help("write allow, or remove it"));
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
        }
        host
    }
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
            let count = super::range(count, 1, most, &path.key("count"), problems).unwrap_or(1);
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
