//! What is tried, in order. Each check says what it saw, or what went wrong and why the daemon thinks so.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use hostweave_guest::Profile;
use serde_json::json;

use super::client::Client;
use super::emulated::Emulated;
use super::scene::{CLIENT, SECOND, SERVER, SERVICE, SPREAD, STRANGER, Scene, UNDECLARED};
use super::simulated::Simulated;
use crate::guests::board::{Board, Skip};
use crate::guests::lies;
use crate::guests::member::short;

/// The guests.
struct Cast {
    client: Box<dyn Client>,
    server: Box<dyn Client>,
    /// Beside the server; always of the built-in driver.
    second: Simulated,
    /// In the other network; always of the built-in driver.
    stranger: Simulated,
}

/// The test while it goes on.
pub struct Checks<'a> {
    board: &'a Board,
    scene: Scene,
    cast: Option<Cast>,
}

impl<'a> Checks<'a> {
    /// The objects are there, nobody is attached.
    pub fn new(board: &'a Board, scene: Scene) -> Self {
        Self { board, scene, cast: None }
    }

    /// Attaches guests of the built-in driver; whether that went well.
    pub fn attach_simulated(&mut self) -> bool {
        let board = self.board;
        board.step("attach", || {
            // Each VMM has its own order of messages.
            let attach = |name, profile| Simulated::attach(&self.scene.control, name, profile);
            let client = Box::new(attach(CLIENT, Profile::Qemu)?);
            let server = Box::new(attach(SERVER, Profile::CloudHypervisor)?);
            let (second, stranger) = (attach(SECOND, Profile::Dpdk)?, attach(STRANGER, Profile::Dpdk)?);
            self.cast = Some(Cast { client, server, second, stranger });
            Ok(format!(
                "4 built-in guests on ports of namespace {}, {}",
                self.scene.name,
                self.scene.cidrs.join(" and ")
            ))
        })
    }

    /// Boots Linux guests; whether that went well.
    pub fn attach_emulated(&mut self, folder: &Path) -> bool {
        let board = self.board;
        board.step("attach", || {
            let attach = |name| Simulated::attach(&self.scene.control, name, Profile::Dpdk);
            let (second, stranger) = (attach(SECOND)?, attach(STRANGER)?);
            let ([client, server], seen) = Emulated::boot(board, &self.scene.control, folder, [CLIENT, SERVER])?;
            self.cast = Some(Cast { client: Box::new(client), server: Box::new(server), second, stranger });
            Ok(format!("{seen}; ports of namespace {}", self.scene.name))
        })
    }

    /// Tries everything.
    pub fn run(&mut self) {
        let Self { board, scene, cast: Some(cast) } = self else { return };
        let settled = board.step("addresses", || {
            for guest in [cast.client.as_mut(), cast.server.as_mut(), &mut cast.second, &mut cast.stranger] {
                guest.settle(board)?;
            }
            Ok("IPv4 by DHCP, IPv6 from router advertisements, as the daemon gave them".to_owned())
        });
        if !settled {
            return;
        }
        board.step("gateway", || gateway(board, scene, cast));
        board.step("ping", || ping(board, scene, cast));
        board.step("TCP", || tcp(board, scene, cast));
        board.step("UDP", || udp(board, scene, cast));
        board.step("DNS", || dns(board, scene, cast));
        board.step("Service", || service(board, scene, cast));
        board.step("policy", || policy(board, scene, cast));
        board.step("isolation", || isolation(board, scene, cast));
        board.step("spoofing", || spoofing(board, scene, cast));
        board.step("egress", || egress(board, scene, cast));
    }

    /// Removes what exists for the test, then its guests, which have lost their ports.
    ///
    /// # Errors
    /// The daemon does not answer, or refuses.
    pub fn end(&mut self) -> anyhow::Result<String> {
        let gone = self.scene.remove()?;
        self.cast = None;
        Ok(format!("{gone} objects removed"))
    }
}

/// With what the daemon would do to such a packet, if that is to drop it.
fn explained<T>(scene: &Scene, to: IpAddr, protocol: &str, result: anyhow::Result<T>) -> anyhow::Result<T> {
    let to = if to.is_ipv6() && protocol != "icmp" { format!("[{to}]") } else { to.to_string() };
    let to = if protocol == "icmp" { format!("{to}/icmp") } else { format!("{to}:7/{protocol}") };
    result.map_err(|error| match scene.why(&to) {
        Some(why) => anyhow!("{error:#}; trace says {why}"),
        None => error,
    })
}

fn gateway(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let gateways = scene.gateways()?;
    ensure!(gateways.len() == 2, "the network has {} gateways, not one of IPv4 and one of IPv6", gateways.len());
    for gateway in &gateways {
        explained(scene, *gateway, "icmp", cast.client.ping(board, *gateway))?;
    }
    Ok(format!("{} and {} answer", gateways[0], gateways[1]))
}

fn ping(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let mut best = [Duration::MAX; 2];
    for (i, best) in best.iter_mut().enumerate() {
        let to = cast.server.port().addresses()[i];
        *best = explained(scene, to, "icmp", cast.client.ping(board, to))?;
        let back = cast.client.port().addresses()[i];
        *best = cast.server.ping(board, back)?.min(*best);
    }
    Ok(format!("both ways; best round trip IPv4 {}, IPv6 {}", short(best[0]), short(best[1])))
}

fn tcp(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let mut bytes = 0;
    for to in cast.server.port().addresses() {
        bytes += explained(scene, to, "tcp", cast.client.tcp(board, to))?;
    }
    Ok(format!("{} MiB over IPv4 and IPv6", bytes >> 20))
}

fn udp(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    for to in cast.server.port().addresses() {
        explained(scene, to, "udp", cast.client.udp(board, to))?;
    }
    Ok("datagrams over IPv4 and IPv6".to_owned())
}

/// A name in the namespace of the test.
fn name_of(scene: &Scene, object: &str, kind: &str) -> anyhow::Result<String> {
    let status = scene.control.call("server.status", json!({}))?;
    let Some(domain) = status["dns"]["clusterDomain"].as_str() else { bail!("the daemon names no cluster domain") };
    Ok(format!("{object}.{}.{kind}.{}.", scene.name, domain.trim_end_matches('.')))
}

fn dns(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let name = name_of(scene, SERVER, "port")?;
    for gateway in scene.gateways()? {
        let found = cast.client.resolve(board, gateway, &name)?;
        let wanted = cast.server.port().addresses()[usize::from(gateway.is_ipv6())];
        ensure!(found == [wanted], "{gateway} says {name} has the addresses {found:?}, and not {wanted}");
    }
    Ok(format!("the gateways know {name}"))
}

/// Datagrams that may be sent to a Service before each of its two backends has had one: fewer than one in 10^18 times none has.
const SPREAD_TRIES: usize = 64;

/// By the name of a Service to its address, and on to the port behind it, over TCP and UDP; what it does not have is refused. Then one
/// with two backends, each of which gets its part.
fn service(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let mut reached = Vec::new();
    for gateway in scene.gateways()? {
        let address = service_address(board, scene, cast, gateway, SERVICE)?;
        explained(scene, address, "tcp", cast.client.tcp(board, address))?;
        explained(scene, address, "udp", cast.client.udp(board, address))?;
        let refused = cast.client.is_refused(board, address, UNDECLARED)?;
        ensure!(refused, "L4 port {UNDECLARED} of {address}, which the Service does not have, is not refused");
        reached.push(address.to_string());
    }
    let mut said =
        format!("TCP and UDP to {}, which {SERVER} answers; L4 port {UNDECLARED} refused", reached.join(" and "));
    if cast.client.asks_built_in() {
        for gateway in scene.gateways()? {
            let address = service_address(board, scene, cast, gateway, SPREAD)?;
            spreads(board, scene, cast, address)?;
        }
        said += &format!("; {SERVER} and {SECOND} share another Service");
    }
    Ok(said)
}

/// The address of a Service, by its name, of the gateway's version of IP.
fn service_address(
    board: &Board,
    scene: &Scene,
    cast: &mut Cast,
    gateway: IpAddr,
    service: &str,
) -> anyhow::Result<IpAddr> {
    let name = name_of(scene, service, "svc")?;
    let found = cast.client.resolve(board, gateway, &name)?;
    let [address] = found[..] else { bail!("{gateway} says {name} has the addresses {found:?}, and not one") };
    Ok(address)
}

/// Datagrams go to both backends.
fn spreads(board: &Board, scene: &Scene, cast: &mut Cast, address: IpAddr) -> anyhow::Result<()> {
    for _ in 0..SPREAD_TRIES {
        explained(scene, address, "udp", cast.client.udp(board, address))?;
        if scene.backends_in_use(SPREAD, address.is_ipv6())? == 2 {
            return Ok(());
        }
    }
    bail!("of {SPREAD_TRIES} datagrams to {address} all went to one of its two backends")
}

/// Denied by policy: nothing passes, and the reason is counted. Allowed again: it passes.
fn policy(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let denied = || Ok::<u64, anyhow::Error>(scene.control.counters(CLIENT)?.dropped("policy_denied"));
    let before = denied()?;
    scene.admit(false)?;
    let closed = cast.server.port().addresses().into_iter().try_for_each(|to| {
        ensure!(cast.client.hears_nothing_from(board, to)?, "{to} answers, though no policy lets anybody reach it");
        Ok(())
    });
    // Whatever was seen: what follows needs an open door.
    scene.admit(true)?;
    closed?;
    let count = denied()? - before;
    ensure!(count > 0, "no packet was counted as denied");
    for to in cast.server.port().addresses() {
        explained(scene, to, "icmp", cast.client.ping(board, to))?;
    }
    Ok(format!("denied: no answer to ping and TCP ({count} packets dropped); allowed again: answers"))
}

/// The other network, which has the same addresses, is out of reach.
fn isolation(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let name = STRANGER;
    let own = cast.stranger.port().addresses();
    let targets = [cast.client.port().addresses(), cast.server.port().addresses()].concat();
    let others: Vec<IpAddr> = targets.into_iter().filter(|to| !own.contains(to)).collect();
    ensure!(!others.is_empty(), "{name} has all addresses of the others: there is nothing to try");
    let before = scene.control.counters(name)?.get("/forwarded");
    for to in &others {
        ensure!(cast.stranger.hears_nothing_from(board, *to)?, "{name} reaches {to} of another network");
    }
    let passed = scene.control.counters(name)?.get("/forwarded") - before;
    ensure!(passed == 0, "{passed} frames of {name} went on to others");
    Ok(format!("{} addresses of another network with the same prefixes do not answer", others.len()))
}

/// `stranger` pretends to be `server`.
fn spoofing(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let liar = cast.stranger.member();
    let words = lies::refused(board, &scene.control, liar, cast.server.port(), cast.client.port())?;
    Ok(format!("{STRANGER} pretends to be {SERVER}: dropped, {words}"))
}

/// The routers at the uplink, through NAT or with the port's own address.
fn egress(board: &Board, scene: &Scene, cast: &mut Cast) -> anyhow::Result<String> {
    let Ok(uplink) = scene.control.call("uplink.get", json!({})) else {
        return Err(Skip("the host has no uplink".to_owned()).into());
    };
    let gateways = uplink["gateways"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (mut reached, mut closed) = (Vec::new(), Vec::new());
    for text in gateways.iter().filter_map(|gateway| gateway["address"].as_str()) {
        let to: IpAddr = text.parse().with_context(|| format!("{text:?} is no address"))?;
        match scene.why(&format!("{to}/icmp")) {
            // No pool serves this network: that is the host's choice.
            Some(why) if why.starts_with("egress_none") || why.starts_with("nat_no_pool") => closed.push(text),
            _ => {
                let round_trip = explained(scene, to, "icmp", cast.client.ping(board, to))?;
                reached.push(format!("{to} ({})", short(round_trip)));
            }
        }
    }
    let closed = if closed.is_empty() { String::new() } else { format!("no way out to {}", closed.join(" and ")) };
    match (reached.is_empty(), closed.is_empty()) {
        (true, true) => Err(Skip("the uplink has no gateway".to_owned()).into()),
        (true, false) => Err(Skip(format!("{closed}: no NatPool serves a new network")).into()),
        (false, true) => Ok(format!("{} beyond the uplink", reached.join(", "))),
        (false, false) => Ok(format!("{} beyond the uplink; {closed}", reached.join(", "))),
    }
}
