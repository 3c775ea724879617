//! The built-in guests: each a virtio-net driver with a TCP/IP stack, attached to a port's socket as a VMM would be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, bail};
use hostweave_guest::{Guest, GuestHandle, Profile};
use serde_json::Value;

use super::control::Control;

/// How long a guest may take for anything that has to work, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where guests echo TCP and UDP (RFC 862).
pub const ECHO: u16 = 7;

/// Where guests discard TCP (RFC 863).
pub const DISCARD: u16 = 9;

/// What the daemon says about a port, as far as its VM must know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Where the VMM connects to.
    pub socket: PathBuf,
    /// The hardware address of the guest's card.
    pub mac: [u8; 6],
    /// What DHCP must hand out.
    pub v4: Ipv4Addr,
    /// What the guest must form from router advertisements.
    pub v6: Ipv6Addr,
}

impl Port {
    /// Asks the daemon.
    ///
    /// # Errors
    /// There is no such port, or it has no addresses.
    pub fn ask(control: &Control, name: &str) -> anyhow::Result<Self> {
        let port = control.call("port.get", control.named(name))?["port"].take();
        Self::read(name, &port).with_context(|| format!("port {name} is not as it should be: {port}"))
    }

    fn read(name: &str, port: &Value) -> Option<Self> {
        let addresses = port["addresses"].as_array()?;
        let addresses: Vec<IpAddr> = addresses.iter().filter_map(|text| text.as_str()?.parse().ok()).collect();
        let mac: Vec<u8> =
            port["mac"].as_str()?.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
        Some(Self {
            name: name.to_owned(),
            socket: port["socketPath"].as_str()?.into(),
            mac: mac.try_into().ok()?,
            v4: addresses.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None })?,
            v6: addresses.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None })?,
        })
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Starts a VM on the port: what it does is up to [`Member::settle`].
    ///
    /// # Errors
    /// The socket is not there, or the two do not understand each other.
    pub fn boot(&self, profile: Profile, reconnect: bool) -> anyhow::Result<Member> {
        let mut member = Member { port: self.clone(), handle: None };
        member.start_again(profile, reconnect)?;
        Ok(member)
    }
}

/// A port and the guest on it.
pub struct Member {
    /// The port.
    pub port: Port,
    handle: Option<GuestHandle>,
}

impl Member {
    /// The guest, in its thread.
    ///
    /// # Errors
    /// There is none: it could not be started again.
    pub fn guest(&self) -> anyhow::Result<&GuestHandle> {
        self.handle.as_ref().with_context(|| format!("{} does not run", self.port.name))
    }

    /// Ends the VM and starts a new one on the same port. With `reconnect` it attaches again whenever it is thrown out.
    ///
    /// # Errors
    /// As for [`Port::boot`].
    pub fn start_again(&mut self, profile: Profile, reconnect: bool) -> anyhow::Result<()> {
        self.handle = None;
        let Port { name, socket, mac, .. } = &self.port;
        let builder = Guest::builder().profile(profile).socket(socket).mac(*mac).timeout(PATIENCE);
        let mut guest = builder.connect().with_context(|| format!("{name} cannot attach to its port"))?;
        guest.tcp_echo_server(ECHO)?;
        guest.udp_echo_server(ECHO)?;
        guest.tcp_sink_server(DISCARD)?;
        self.handle = Some(guest.spawn(name, reconnect)?);
        Ok(())
    }

    /// Has the guest get its addresses, IPv4 by DHCP, IPv6 from router advertisements.
    ///
    /// # Errors
    /// It gets none, or others than the daemon says.
    pub fn settle(&self) -> anyhow::Result<()> {
        let name = &self.port.name;
        let (lease, v6) = self.guest()?.call(|guest| (guest.dhcp(PATIENCE), guest.slaac(PATIENCE)))?;
        let (v4, v6) = (lease.with_context(|| name.clone())?.address, v6.with_context(|| name.clone())?);
        if (v4, v6) != (self.port.v4, self.port.v6) {
            bail!("{name} got {v4} and {v6}; the daemon gave {} and {}", self.port.v4, self.port.v6);
        }
        Ok(())
    }

    /// Pings an address `count` times.
    ///
    /// # Errors
    /// A ping stays without answer.
    pub fn ping(&self, to: IpAddr, count: usize, timeout: Duration) -> anyhow::Result<Vec<Duration>> {
        self.start_ping(to, count, timeout)?.end()
    }

    /// As [`Member::ping`], without waiting for it.
    ///
    /// # Errors
    /// The guest does not run.
    pub fn start_ping(&self, to: IpAddr, count: usize, timeout: Duration) -> anyhow::Result<Pings> {
        let ping = move |guest: &mut Guest| (0..count).map(|_| guest.ping(to, timeout)).collect();
        Ok(Pings { what: format!("{} pings {to}", self.port.name), result: self.guest()?.start(ping)? })
    }

    /// Whether an address stays silent for `time`.
    ///
    /// # Errors
    /// The guest fails in another way than that nobody answers.
    pub fn hears_nothing_from(&self, to: IpAddr, time: Duration) -> anyhow::Result<bool> {
        match self.guest()?.call(move |guest| guest.ping(to, time))? {
            Ok(_) => Ok(false),
            Err(hostweave_guest::Error::Timeout { .. }) => Ok(true),
            Err(error) => Err(error).with_context(|| format!("{} pings {to}", self.port.name)),
        }
    }
}

/// Pings under way.
pub struct Pings {
    what: String,
    result: Receiver<Result<Vec<Duration>, hostweave_guest::Error>>,
}

impl Pings {
    /// The round trips.
    ///
    /// # Errors
    /// A ping stayed without answer.
    pub fn end(self) -> anyhow::Result<Vec<Duration>> {
        let result = self.result.recv().with_context(|| self.what.clone())?;
        result.context(self.what)
    }
}

/// A time as people read it.
pub fn short(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 1_000_000.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_daemon_says_is_read() {
        let said = json!({
            "addresses": ["10.77.0.20", "fd77::1"], "mac": "02:00:0a:4d:00:14", "socketPath": "/run/x.sock",
        });
        let port = Port::read("db", &said).unwrap();
        assert_eq!(port.mac, [2, 0, 10, 77, 0, 20]);
        assert_eq!(port.addresses(), ["10.77.0.20".parse::<IpAddr>().unwrap(), "fd77::1".parse().unwrap()]);
        assert!(Port::read("db", &json!({"addresses": ["10.77.0.20"], "mac": "02", "socketPath": "x"})).is_none());
    }

    #[test]
    fn times_are_short() {
        assert_eq!(short(Duration::from_nanos(42_400)), "42 µs");
        assert_eq!(short(Duration::from_micros(1_500)), "1.5 ms");
        assert_eq!(short(Duration::from_millis(2_500)), "2.5 s");
    }
}
