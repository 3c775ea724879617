//! `hostweave ping`: a real probe through the packet path, from a port whose guest need not help.

use std::time::Duration;

use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, code};
use super::output::{self, Format, cell, print, printable};
use crate::observe::trace::Trace;

/// Between two probes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `ping`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The port for which probes are sent: NAMESPACE/PORT, its address, or gateway
    from: String,
    /// Where to: NAMESPACE/PORT, an address, or gateway
    to: String,
    /// How many probes
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    count: u16,
    /// Open a TCP connection to this L4 port instead of asking for an echo
    #[arg(long, value_name = "L4PORT")]
    tcp: Option<u16>,
    /// Network, where the ends do not say it
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// How long to wait for each answer
    #[arg(short = 'W', long, default_value = "1s", value_parser = super::parse_duration, value_name = "TIME")]
    wait: Duration,
}

/// Sends probes; exit code 1 if one was denied or not answered.
///
/// # Errors
/// There is no such port, or the daemon cannot be reached.
pub fn run(session: &Session, args: &Args) -> Result<u8, Failure> {
    let to = match args.tcp {
        None => format!("{}/icmp", args.to),
        Some(port) if args.to.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{}]:{port}/tcp", args.to),
        Some(port) => format!("{}:{port}/tcp", args.to),
    };
    let text = !matches!(session.global.output, Format::Json | Format::Yaml);
    let mut client = session.connect()?;
    let mut results = Vec::new();
    for sequence in 1..=args.count {
        if sequence > 1 {
            std::thread::sleep(INTERVAL);
        }
        let params = json!({
            "from": args.from, "to": to, "namespace": session.global.namespace, "network": args.network,
            "timeoutMs": args.wait.as_millis(), "sequence": sequence,
        });
        let result = client.call("probe.run", params)?;
        if text {
            if sequence == 1 {
                print(&path(&result["path"])?)?;
            }
            print(&line(sequence, &result))?;
        }
        let hopeless = result["path"]["verdict"] == "DROPPED";
        results.push(result);
        if hopeless {
            break;
        }
    }
    match session.global.output {
        Format::Json => output::print_json(&json!(results))?,
        Format::Yaml => output::print_yaml(&json!(results))?,
        _ => print(&summary(&results))?,
    }
    let reached = |result: &Value| result["answer"]["reached"] == true;
    Ok(if results.iter().all(reached) { code::OK } else { code::NEGATIVE })
}

/// The stages that the first probe met.
fn path(path: &Value) -> Result<String, Failure> {
    let trace: Trace = serde_json::from_value(path.clone())
        .map_err(|error| Failure::new(code::INTERNAL, format!("the daemon's answer makes no sense: {error}")))?;
    let text = trace.text();
    // The exit code of a ping depends on the answer, too.
    let stages = text.lines().filter(|line| !line.starts_with(" verdict"));
    Ok(stages.map(|line| printable(line) + "\n").collect())
}

fn line(sequence: u16, result: &Value) -> String {
    let to = result["path"]["to"].as_str().map(|to| format!("{to} ")).unwrap_or_default();
    let address = cell(result, "/path/tuple/dst");
    match &result["answer"] {
        Value::Null => format!("probe {sequence} to {to}{address}: {}\n", printable(&cell(result, "/why"))),
        answer => format!(
            "probe {sequence} to {to}{address}: {}, ttl {}, {}\n",
            cell(answer, "/text"),
            cell(answer, "/ttl"),
            milliseconds(answer["rttMicroseconds"].as_f64().unwrap_or(0.0)),
        ),
    }
}

fn milliseconds(microseconds: f64) -> String {
    format!("{:.3} ms", microseconds / 1e3)
}

/// `4 sent, 4 answered, round trip 0.040 / 0.051 / 0.080 ms (least, mean, most)`.
fn summary(results: &[Value]) -> String {
    let times: Vec<f64> = results.iter().filter_map(|result| result["answer"]["rttMicroseconds"].as_f64()).collect();
    let mut text = format!("{} sent, {} answered", results.len(), times.len());
    if !times.is_empty() {
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let [least, mean, most] = [least, mean, most].map(|time| format!("{:.3}", time / 1e3));
        text += &format!(", round trip {least} / {mean} / {most} ms (least, mean, most)");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_their_absence_as_lines() {
        let path = json!({"to": "shop/db-0", "tuple": {"dst": "10.64.0.31"}});
        let answered = json!({"path": path, "answer": {"text": "echo reply", "ttl": 63, "rttMicroseconds": 51.5}});
        assert_eq!(line(1, &answered), "probe 1 to shop/db-0 10.64.0.31: echo reply, ttl 63, 0.051 ms\n");
        let silent = json!({"path": path, "answer": null, "why": "no answer in 1000 ms"});
        assert_eq!(line(2, &silent), "probe 2 to shop/db-0 10.64.0.31: no answer in 1000 ms\n");
        assert_eq!(
            summary(&[answered, silent.clone()]),
            "2 sent, 1 answered, round trip 0.051 / 0.051 / 0.051 ms (least, mean, most)\n"
        );
        assert_eq!(summary(&[silent]), "1 sent, 0 answered\n");
    }
}
