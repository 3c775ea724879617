//! `hostweave nat`: mappings, L4 ports of each address, and who had which.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{self, Format, cell, hint, print};
use super::{Session, complete, observe};
use crate::observe::time::rfc3339;

/// What to show of NAT.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show mappings: what is inside, and what the outside sees
    List(ListArgs),
    /// Show NAT pools and their CIDRs, which is what others let in who expect these ports
    Pools(PoolsArgs),
    /// Show how many L4 ports of each address are in use, and by whom
    Stats,
    /// Say who has, or had, an L4 port of a NAT address
    Lookup(LookupArgs),
}

/// Arguments of `nat list`. The same flag again means "or", different flags mean "and".
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Of a port, NAME or NAMESPACE/NAME
    #[arg(long, value_name = "NAME", add = complete::port())]
    pod: Vec<String>,
    /// With an address, inside or outside
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Of a NatPool
    #[arg(long, value_name = "NAME", add = complete::nat_pool())]
    pool: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    limit: usize,
}

/// Arguments of `nat pools`.
#[derive(clap::Args, Debug)]
pub struct PoolsArgs {
    /// Only this one
    #[arg(value_name = "NAME", add = complete::nat_pool())]
    name: Option<String>,
    /// The CIDRs alone, one a line
    #[arg(long)]
    cidr: bool,
}

/// Arguments of `nat lookup`.
#[derive(clap::Args, Debug)]
pub struct LookupArgs {
    /// ADDRESS:PORT, such as 203.0.113.7:40123 or [2001:db8::7]:40123
    #[arg(value_name = "ADDRESS:PORT")]
    outside: SocketAddr,
    /// At this time, such as 2026-11-23T12:03:00Z, or so long ago, such as 5m
    #[arg(long, value_name = "TIME", value_parser = observe::moment)]
    at: Option<SystemTime>,
}

/// Runs the command.
///
/// # Errors
/// The daemon's error, or the connection's; nobody had the L4 port.
pub fn run(session: &Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::List(args) => list(session, args),
        Command::Pools(args) => pools(session, args),
        Command::Stats => stats(session),
        Command::Lookup(args) => lookup(session, args),
    }
}

fn list(session: &Session, args: &ListArgs) -> Result<(), Failure> {
    let ports: Vec<String> =
        args.pod.iter().map(|name| session.qualified(name)).map(|(ns, name)| format!("{ns}/{name}")).collect();
    let params = json!({"ports": ports, "addresses": args.ip, "pool": args.pool, "limit": args.limit});
    let result = session.call("nat.list", params)?;
    let mappings = result["mappings"].as_array().map(Vec::as_slice).unwrap_or_default();
    match session.global.output {
        Format::Json => output::print_json(&json!(mappings))?,
        Format::Yaml => output::print_yaml(&json!(mappings))?,
        _ if mappings.is_empty() => hint("no mappings"),
        format => print(&mappings_table(mappings, format == Format::Wide))?,
    }
    let total = result["total"].as_u64().unwrap_or(0);
    if total > mappings.len() as u64 {
        hint(&format!("{} of {total} mappings; show more with --limit", mappings.len()));
    }
    Ok(())
}

fn mappings_table(mappings: &[Value], wide: bool) -> String {
    let mut header = vec!["PORT", "PROTO", "INSIDE", "OUTSIDE", "CONNECTIONS", "AGE", "EXPIRES"];
    if wide {
        header.extend(["NETWORK", "POOL", "REMOTE"]);
    }
    let rows = mappings.iter().map(|mapping| {
        let expires = mapping["expiresSeconds"].as_u64().map_or("-".to_owned(), |seconds| format!("{seconds}s"));
        let mut row = vec![
            who(mapping),
            cell(mapping, "/protocol"),
            end(&mapping["inside"]),
            end(&mapping["outside"]),
            cell(mapping, "/connections"),
            format!("{}s", cell(mapping, "/ageSeconds")),
            expires,
        ];
        if wide {
            row.extend([cell(mapping, "/network"), cell(mapping, "/pool"), end(&mapping["remote"])]);
        }
        row
    });
    output::table(&header, rows.collect())
}

/// The port's name, or its uid if nobody remembers it; and whether it is gone.
fn who(value: &Value) -> String {
    let name = value["port"].as_str().map_or_else(|| cell(value, "/uid"), str::to_owned);
    if value["gone"] == true { format!("{name} (gone)") } else { name }
}

/// `10.64.0.10:40000`; an ICMP identifier likewise; `-` for nothing.
fn end(end: &Value) -> String {
    let address = cell(end, "/address");
    match end["l4Port"].as_u64().or_else(|| end["icmpId"].as_u64()) {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address,
    }
}

fn pools(session: &Session, args: &PoolsArgs) -> Result<(), Failure> {
    let pools = session.call("nat.pools", json!({}))?;
    let mut pools = pools.as_array().cloned().unwrap_or_default();
    if let Some(name) = &args.name {
        pools.retain(|pool| pool["name"] == **name);
        if pools.is_empty() {
            return Err(Failure::new(3, format!("there is no NatPool {name:?}")).help("hostweave get natpools"));
        }
    }
    let shown = if args.cidr {
        pools.iter().flat_map(|pool| pool["cidrs"].as_array().into_iter().flatten()).cloned().collect()
    } else {
        pools
    };
    match session.global.output {
        Format::Json => output::print_json(&json!(shown)),
        Format::Yaml => output::print_yaml(&json!(shown)),
        _ if shown.is_empty() => {
            hint("no NAT pools: apply a NatPool (hostweave explain NatPool)");
            Ok(())
        }
        _ if args.cidr => print(&shown.iter().map(|cidr| output::text(cidr) + "\n").collect::<String>()),
        _ => print(&pools_table(&shown)),
    }
}

fn pools_table(pools: &[Value]) -> String {
    let list = |value: &Value, none: &str| {
        let words: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if words.is_empty() { none.to_owned() } else { words.join(",") }
    };
    let row = |pool: &Value| {
        vec![
            cell(pool, "/name"),
            list(&pool["cidrs"], "-"),
            cell(pool, "/addresses"),
            list(&pool["networks"], "all"),
            list(&pool["draining"], "-"),
        ]
    };
    output::table(&["POOL", "CIDRS", "ADDRESSES", "NETWORKS", "DRAINING"], pools.iter().map(row).collect())
}

fn stats(session: &Session) -> Result<(), Failure> {
    let stats = session.call("nat.stats", json!({}))?;
    match session.global.output {
        Format::Json => output::print_json(&stats),
        Format::Yaml => output::print_yaml(&stats),
        _ => print(&stats_text(&stats)),
    }
}

fn stats_text(stats: &Value) -> String {
    let mut text = format!(
        "mappings: {} of {}   blocks: {}   refused: {} exhausted, {} over a limit, {} table full\n\
         overloaded: {}   kept out by a filter: {}\n",
        cell(stats, "/mappings"),
        cell(stats, "/capacity"),
        cell(stats, "/blocks"),
        cell(stats, "/refused/exhausted"),
        cell(stats, "/refused/limit"),
        cell(stats, "/refused/tableFull"),
        cell(stats, "/overloaded"),
        cell(stats, "/filtered"),
    );
    let addresses = stats["addresses"].as_array().into_iter().flatten().map(|address| {
        let (leased, total) =
            (address["leasedPorts"].as_f64().unwrap_or(0.0), address["totalPorts"].as_f64().unwrap_or(0.0));
        let share = if total > 0.0 { 100.0 * leased / total } else { 0.0 };
        vec![
            cell(address, "/address"),
            cell(address, "/pool"),
            format!("{leased} of {total} ({share:.0}%)"),
            cell(address, "/usedPorts/tcp"),
            cell(address, "/usedPorts/udp"),
            cell(address, "/usedPorts/icmp"),
            if address["draining"] == true { "draining".to_owned() } else { "-".to_owned() },
        ]
    });
    let addresses: Vec<Vec<String>> = addresses.collect();
    if addresses.is_empty() {
        return text + "no NAT addresses: apply a NatPool (hostweave explain NatPool)\n";
    }
    text.push('\n');
    text += &output::table(&["ADDRESS", "POOL", "LEASED", "TCP", "UDP", "ICMP", "STATE"], addresses);
    let users: Vec<Vec<String>> = stats["users"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|user| vec![who(user), cell(user, "/leasedPorts")])
        .collect();
    if !users.is_empty() {
        text.push('\n');
        text += &output::table(&["BIGGEST-USER", "LEASED"], users);
    }
    text
}

fn lookup(session: &Session, args: &LookupArgs) -> Result<(), Failure> {
    let params = json!({"address": args.outside.ip(), "l4Port": args.outside.port(), "at": args.at.map(rfc3339)});
    let lease = session.call("nat.lookup", params)?;
    match session.global.output {
        Format::Json => output::print_json(&lease),
        Format::Yaml => output::print_yaml(&lease),
        Format::Name => print(&format!("port/{}\n", who(&lease))),
        _ => print(&leases_table(std::slice::from_ref(&lease))),
    }
}

/// Who has which block, from when to when.
pub fn leases_table(leases: &[Value]) -> String {
    let rows = leases.iter().map(|lease| {
        vec![
            who(lease),
            cell(lease, "/address"),
            format!("{}-{}", cell(lease, "/firstPort"), cell(lease, "/lastPort")),
            cell(lease, "/pool"),
            cell(lease, "/since"),
            lease["until"].as_str().unwrap_or("now").to_owned(),
        ]
    });
    output::table(&["PORT", "ADDRESS", "L4-PORTS", "POOL", "SINCE", "UNTIL"], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_and_leases_as_people_read_them() {
        let mapping = json!({
            "protocol": "udp", "port": "shop/web-0", "uid": "x", "network": "default", "connections": 2, "ageSeconds": 9,
            "expiresSeconds": null, "pool": "ord1", "inside": {"address": "10.64.0.10", "l4Port": 4000},
            "outside": {"address": "2001:db8::7", "l4Port": 40123}, "remote": null,
        });
        let text = mappings_table(std::slice::from_ref(&mapping), true);
        assert!(text.contains("shop/web-0   udp     10.64.0.10:4000   [2001:db8::7]:40123   2"), "{text}");
        let gone = json!({
            "port": null, "uid": "0190", "gone": true, "address": "203.0.113.7", "firstPort": 40_000, "lastPort": 40_511,
            "pool": "ord1", "since": "2026-11-23T12:00:00Z", "until": "2026-11-23T12:05:00Z",
        });
        let known = leases_table(&[json!({"port": "shop/web-0", "uid": "0190", "gone": true})]);
        assert!(known.contains("shop/web-0 (gone)"), "{known}");
        let text = leases_table(&[gone]);
        assert!(text.contains("0190 (gone)   203.0.113.7   40000-40511   ord1"), "{text}");
        let stats = json!({
            "mappings": 3, "capacity": 10, "blocks": 1, "refused": {"exhausted": 1, "limit": 0, "tableFull": 0},
            "overloaded": 0, "filtered": 4, "users": [{"port": "shop/a", "leasedPorts": 512}],
            "addresses": [{"address": "203.0.113.7", "pool": "ord1", "leasedPorts": 512, "totalPorts": 64_512,
                           "usedPorts": {"tcp": 1, "udp": 2, "icmp": 0}, "draining": true}],
        });
        let text = stats_text(&stats);
        assert!(text.contains("512 of 64512 (1%)") && text.contains("draining") && text.contains("shop/a"), "{text}");
    }
}
