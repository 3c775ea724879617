//! Looks at the daemon a few times a second, for the live view: ports, rates, drops, the worker's share of time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guests::board::{Board, PortRow};
use crate::guests::control::{Control, Counters};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(400);

/// Looks until the demo ends.
///
/// # Errors
/// When the system has no thread left.
pub fn start(board: &Arc<Board>, control: Control) -> std::io::Result<JoinHandle<()>> {
    let board = Arc::clone(board);
    std::thread::Builder::new().name("sampler".into()).spawn(move || {
        let mut sampler = Sampler { control, last: HashMap::new(), busy_s: 0.0, at: Instant::now() };
        while !board.stopped() {
            sampler.look(&board);
            board.rest(INTERVAL);
        }
    })
}

/// Packets, and octets sent and got by the guest, at the last look.
type Seen = [u64; 3];

struct Sampler {
    control: Control,
    last: HashMap<String, Seen>,
    busy_s: f64,
    at: Instant,
}

impl Sampler {
    /// Takes one look; a daemon that is down is what the view shows then.
    fn look(&mut self, board: &Board) {
        let ask = |method| self.control.call(method, json!({}));
        let (Ok(status), Ok(list), Ok(stats)) = (ask("server.status"), ask("port.list"), ask("port.stats")) else {
            let mut scene = board.scene();
            "the daemon is down".clone_into(&mut scene.daemon);
            for port in &mut scene.ports {
                *port = PortRow {
                    state: "no daemon".into(),
                    packets_per_s: 0.0,
                    sent_gbit_per_s: 0.0,
                    got_gbit_per_s: 0.0,
                    ..std::mem::take(port)
                };
            }
            return;
        };
        let elapsed_s = self.at.elapsed().as_secs_f64().max(1e-3);
        self.at = Instant::now();
        let mut drops = BTreeMap::new();
        let ports = list["ports"].as_array().into_iter().flatten();
        let ports = ports.map(|port| self.row(port, &stats, elapsed_s, &mut drops)).collect();
        let daemon = self.daemon(&status, elapsed_s);
        let mut scene = board.scene();
        (scene.ports, scene.drops, scene.daemon) = (ports, drops, daemon);
    }

    fn row(&mut self, port: &Value, stats: &Value, elapsed_s: f64, drops: &mut BTreeMap<String, u64>) -> PortRow {
        let text = |field: &str| port[field].as_str().unwrap_or_default().to_owned();
        let name = text("name");
        let same = |stat: &&Value| stat["name"] == port["name"] && stat["namespace"] == port["namespace"];
        let found = stats["ports"].as_array().into_iter().flatten().find(same);
        let counters = Counters(found.map_or(Value::Null, |stat| stat["counters"].clone()));
        let of = |name: &str| counters.get(name);
        let now: Seen =
            [of("/receivedPackets") + of("/transmittedPackets"), of("/receivedBytes"), of("/transmittedBytes")];
        // A daemon that was started again counts from zero.
        let before = self.last.insert(name.clone(), now).unwrap_or(now);
        let rate = |i: usize| now[i].saturating_sub(before[i]) as f64 / elapsed_s;
        for (reason, count) in counters.all_dropped() {
            *drops.entry(reason.to_owned()).or_default() += count;
        }
        let addresses: Vec<&str> =
            port["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let of_version = |v6: bool| addresses.iter().find(|text| text.contains(':') == v6).map_or("-", |text| text);
        PortRow {
            name,
            network: text("network"),
            addresses: [of_version(false).to_owned(), of_version(true).to_owned()],
            state: text("state"),
            packets_per_s: rate(0),
            sent_gbit_per_s: rate(1) * 8e-9,
            got_gbit_per_s: rate(2) * 8e-9,
        }
    }

    fn daemon(&mut self, status: &Value, elapsed_s: f64) -> String {
        let workers = status["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let busy_s: f64 = workers.iter().filter_map(|worker| worker["busySeconds"].as_f64()).sum();
        let share = ((busy_s - self.busy_s) / elapsed_s).clamp(0.0, workers.len() as f64);
        self.busy_s = busy_s;
        let (pid, uptime) = (&status["pid"], status["uptime"].as_str().unwrap_or("-"));
        format!("process {pid}, up {uptime}, {} worker {:.0} % busy", workers.len(), share * 100.0)
    }
}
