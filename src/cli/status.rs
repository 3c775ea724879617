//! `hostweave status`: one screen.

use std::time::Instant;

use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, code};
use super::output::{self, Format, cell, print, text};

/// Arguments of `status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Wait until the daemon is ready, as long as --timeout says
    #[arg(long)]
    wait: bool,
}

/// Says how the daemon is; exit code 1 if something is degraded.
///
/// # Errors
/// The daemon cannot be reached.
pub fn run(session: &Session, args: &Args) -> Result<u8, Failure> {
    let status = if args.wait { wait(session)? } else { session.call("server.status", json!({}))? };
    match session.global.output {
        Format::Json => output::print_json(&status)?,
        Format::Yaml => output::print_yaml(&status)?,
        _ => print(&screen(&status))?,
    }
    let degraded = status["degraded"].as_array().is_some_and(|reasons| !reasons.is_empty());
    Ok(if degraded { code::NEGATIVE } else { code::OK })
}

/// Asks until the daemon answers.
fn wait(session: &Session) -> Result<Value, Failure> {
    let started = Instant::now();
    loop {
        match session.call("server.status", json!({})) {
            Err(failure) if failure.code == code::UNREACHABLE => {
                if started.elapsed() >= session.global.timeout {
                    return Err(Failure { code: code::TIMEOUT, ..failure });
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            answer => return answer,
        }
    }
}

fn screen(status: &Value) -> String {
    let degraded: Vec<String> = status["degraded"].as_array().into_iter().flatten().map(text).collect();
    let health = if degraded.is_empty() { "ok" } else { "degraded" };
    let mut screen = format!(
        "hostweave {} {health}, up {}, process {}, revision {}\n",
        cell(status, "/version"),
        cell(status, "/uptime"),
        cell(status, "/pid"),
        cell(status, "/revision"),
    );
    screen += &format!(
        "networks: {}   ports: {} ({})   events: {}\n",
        cell(status, "/networks"),
        cell(status, "/ports/total"),
        cell(status, "/ports/states"),
        cell(status, "/events/total"),
    );
    screen += &uplink(&status["uplink"]);
    screen += &format!(
        "connections: {} of {}   policies: {} and {} of the cluster, {} rules, revision {}   flows: {}, lost: {}\n\n",
        cell(status, "/connections/used"),
        cell(status, "/connections/capacity"),
        cell(status, "/policy/networkPolicies"),
        cell(status, "/policy/clusterNetworkPolicies"),
        cell(status, "/policy/rules"),
        cell(status, "/policy/revision"),
        cell(status, "/flows/total"),
        cell(status, "/flows/lost"),
    );
    let percent = |worker: &Value, field: &str| {
        let of = |field: &str| worker[field].as_f64().unwrap_or(0.0);
        let total = of("busySeconds") + of("pollingSeconds") + of("asleepSeconds");
        format!("{:.1}%", if total > 0.0 { 100.0 * of(field) / total } else { 0.0 })
    };
    let rows = status["workers"].as_array().into_iter().flatten().map(|worker| {
        let share = |field| percent(worker, field);
        vec![
            cell(worker, "/worker"),
            share("busySeconds"),
            share("pollingSeconds"),
            share("asleepSeconds"),
            cell(worker, "/packets"),
        ]
    });
    screen += &output::table(&["WORKER", "BUSY", "POLLING", "ASLEEP", "PACKETS"], rows.collect());
    for reason in degraded {
        screen += &format!("\ndegraded: {}", output::printable(&reason));
    }
    if screen.ends_with('\n') { screen } else { screen + "\n" }
}

/// The way out, in one line.
fn uplink(uplink: &Value) -> String {
    if uplink.is_null() {
        return "uplink: none\n".to_owned();
    }
    let state = if uplink["link"] == true { "up" } else { "down" };
    let reason =
        uplink["reason"].as_str().map(|reason| format!(" ({})", output::printable(reason))).unwrap_or_default();
    let lost = uplink["lost"].as_array().filter(|lost| !lost.is_empty());
    let lost = lost.map(|lost| format!("   addresses lost: {}", lost.len())).unwrap_or_default();
    format!(
        "uplink: {} {state}{reason}   routers: {} of {} answer{lost}\n",
        cell(uplink, "/interface"),
        cell(uplink, "/gateways/up"),
        cell(uplink, "/gateways/total"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_has_the_uplink_in_one_line() {
        let line = |uplink: Value| {
            let screen = screen(&json!({"uplink": uplink, "degraded": []}));
            screen.lines().find(|line| line.starts_with("uplink: ")).unwrap().to_owned()
        };
        assert_eq!(line(Value::Null), "uplink: none");
        let mut up =
            json!({"interface": "eth1", "link": true, "reason": null, "gateways": {"up": 1, "total": 2}, "lost": []});
        assert_eq!(line(up.clone()), "uplink: eth1 up   routers: 1 of 2 answer");
        up["lost"] = json!(["203.0.113.1", "2001:db8::1"]);
        assert_eq!(line(up), "uplink: eth1 up   routers: 1 of 2 answer   addresses lost: 2");
        let down = json!({"interface": "eth1", "link": false, "reason": "gone\u{1b}[2J", "gateways": {"up": 0, "total": 0}, "lost": []});
        assert!(line(down.clone()).starts_with("uplink: eth1 down (gone") && !line(down).contains('\u{1b}'));
    }
}
