//! `hostweave uplink`: the way out of the host.

use serde_json::{Value, json};

use super::Session;
use super::failure::Failure;
use super::output::{self, Format, cell, print, printable};

/// What to do with the uplink.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show interface, routers and the addresses that the host owns there
    Get,
}

/// Runs the command.
///
/// # Errors
/// There is no uplink; the daemon's error, or the connection's.
pub fn run(session: &Session, command: &Command) -> Result<(), Failure> {
    let Command::Get = command;
    let uplink = session.call("uplink.get", json!({}))?;
    match session.global.output {
        Format::Json => output::print_json(&uplink),
        Format::Yaml => output::print_yaml(&uplink),
        Format::Name => print(&format!("uplink/{}\n", cell(&uplink, "/interface"))),
        format => print(&screen(&uplink, format == Format::Wide)),
    }
}

fn screen(uplink: &Value, wide: bool) -> String {
    let state = if uplink["link"] == true { "up" } else { "down" };
    let reason = uplink["reason"].as_str().map(|reason| format!(" ({})", printable(reason))).unwrap_or_default();
    let missed = uplink["missedPackets"].as_u64().filter(|missed| *missed > 0);
    let missed = missed.map(|missed| format!("   missed: {missed} (the kernel dropped them)")).unwrap_or_default();
    let vlan = uplink["vlan"].as_u64().map(|vlan| format!(", VLAN {vlan}")).unwrap_or_default();
    let mut text = format!(
        "{} {state}{reason}, driver {}, MAC {}, MTU {}{vlan}\naddresses: {}   routed here: {}\n\
         received: {} packets, {} octets   sent: {} packets, {} octets{missed}\ndropped: {}\n",
        cell(uplink, "/interface"),
        cell(uplink, "/driver"),
        cell(uplink, "/mac"),
        cell(uplink, "/mtu"),
        cell(uplink, "/addresses"),
        cell(uplink, "/routed"),
        cell(uplink, "/counters/receivedPackets"),
        cell(uplink, "/counters/receivedBytes"),
        cell(uplink, "/counters/transmittedPackets"),
        cell(uplink, "/counters/transmittedBytes"),
        cell(uplink, "/counters/dropped"),
    );
    let list = |field: &str| uplink[field].as_array().cloned().unwrap_or_default();
    let gateways = list("gateways");
    if gateways.is_empty() {
        text += "no routers: nobody but neighbours is reached (HostConfig.spec.uplink.gateways)\n";
    }
    for (heading, hops) in [("GATEWAY", gateways), ("NEIGHBOR", list("neighbors"))] {
        let row = |hop: &Value| ["/address", "/state", "/mac"].map(|field| cell(hop, field)).to_vec();
        if !hops.is_empty() {
            text += &format!("\n{}", output::table(&[heading, "STATE", "MAC"], hops.iter().map(row).collect()));
        }
    }
    let row = |conflict: &Value| ["/type", "/address", "/mac", "/used"].map(|field| cell(conflict, field)).to_vec();
    let conflicts: Vec<Vec<String>> = list("conflicts").iter().map(row).collect();
    if !conflicts.is_empty() {
        text += &format!("\n{}", output::table(&["CONDITION", "ADDRESS", "CLAIMED BY", "USED"], conflicts));
    }
    let owned = list("owned");
    let shown = owned.iter().filter(|address| wide || address["owner"] != "natPool");
    let row =
        |address: &Value| ["/address", "/owner", "/name", "/port", "/mode"].map(|field| cell(address, field)).to_vec();
    let rows: Vec<Vec<String>> = shown.map(row).collect();
    let hidden = owned.len() - rows.len();
    if !rows.is_empty() {
        text += &format!("\n{}", output::table(&["ADDRESS", "OWNER", "NAME", "PORT", "MODE"], rows));
    }
    if hidden > 0 {
        text += &format!("and {hidden} NAT addresses (-o wide, or hostweave nat stats)\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_screen() {
        let mut uplink = json!({
            "interface": "eth1", "driver": "afPacket", "link": false, "reason": "no carrier", "mac": "02:00:00:00:00:01",
            "mtu": 1500, "vlan": 7, "addresses": ["198.51.100.2/24"], "routed": [], "counters": {"dropped": {}}, "missedPackets": 12,
            "conflicts": [{"type": "Conflict", "address": "198.51.100.9", "mac": "02:00:00:00:00:66", "used": false}],
            "gateways": [{"address": "198.51.100.1", "mac": null, "state": "unresolved"}],
            "neighbors": [{"address": "198.51.100.77", "mac": "02:00:00:00:00:77", "state": "reachable"}],
            "owned": [{"address": "198.51.100.2", "owner": "host"},
                      {"address": "198.51.100.9", "owner": "natPool", "name": "ord1"},
                      {"address": "2001:db8:aa::7", "owner": "service", "name": "shop/ip", "port": "shop/a", "mode": "direct"}],
        });
        let text = screen(&uplink, false);
        for part in [
            "eth1 down (no carrier)",
            "VLAN 7",
            "missed: 12 (",
            "198.51.100.1   unresolved",
            "NEIGHBOR        STATE",
            "198.51.100.77   reachable   02:00:00:00:00:77",
            "shop/a   direct",
            "and 1 NAT",
            "198.51.100.9   02:00:00:00:00:66   false",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(screen(&uplink, true).contains("ord1"));
        uplink["missedPackets"] = 0.into();
        assert!(!screen(&uplink, true).contains("missed"));
    }
}
