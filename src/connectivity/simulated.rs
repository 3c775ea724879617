//! A guest of the built-in driver.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use hostweave_guest::{Error, Guest, Profile};

use super::client::Client;
use super::lookup;
use crate::guests::board::Board;
use crate::guests::control::Control;
use crate::guests::member::{ECHO, Member, Port};

/// How long a guest may take for anything that has to work.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long a silent address is waited for, each way.
const SILENCE: Duration = Duration::from_millis(600);

/// Octets that are sent to and fro over TCP and compared.
const COMPARED_BYTES: u64 = 1 << 20;

/// A datagram.
const DATAGRAM: &[u8] = b"hostweave connectivity test";

/// The guest.
pub struct Simulated(Member);

impl Simulated {
    /// Attaches a guest to a port.
    ///
    /// # Errors
    /// The socket is not there, or this user may not use it.
    pub fn attach(control: &Control, name: &str, profile: Profile) -> anyhow::Result<Self> {
        Ok(Self(Port::ask(control, name)?.boot(profile, false)?))
    }

    /// The port and its guest.
    pub fn member(&self) -> &Member {
        &self.0
    }

    /// Runs a job in the guest's thread.
    fn job<T: Send + 'static>(
        &self,
        board: &Board,
        what: &str,
        job: impl FnOnce(&mut Guest) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let what = format!("{} {what}", self.0.port.name);
        board.receive(&what, &self.0.guest()?.start(job)?, 4 * PATIENCE)
    }
}

impl Client for Simulated {
    fn port(&self) -> &Port {
        &self.0.port
    }

    fn settle(&mut self, board: &Board) -> anyhow::Result<()> {
        let Port { name, v4, v6, .. } = &self.0.port;
        let (lease, slaac) =
            self.job(board, "asks for addresses", |guest| (guest.dhcp(PATIENCE), guest.slaac(PATIENCE)))?;
        let got = (lease.with_context(|| name.clone())?.address, slaac.with_context(|| name.clone())?);
        ensure!(got == (*v4, *v6), "{name} got {} and {}; the daemon gave {v4} and {v6}", got.0, got.1);
        Ok(())
    }

    fn ping(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<Duration> {
        let name = &self.0.port.name;
        let first = self.job(board, "pings", move |guest| {
            // The first one finds out the way.
            guest.ping(to, PATIENCE)?;
            guest.ping(to, PATIENCE)
        })?;
        first.with_context(|| format!("{name} pings {to}"))
    }

    fn hears_nothing_from(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<bool> {
        let name = &self.0.port.name;
        let pinged = self.job(board, "pings", move |guest| guest.ping(to, SILENCE).map(drop))?;
        let connected = self.job(board, "connects", move |guest| {
            let handle = guest.tcp_connect(to, ECHO, SILENCE)?;
            guest.close(handle);
            Ok(())
        })?;
        for result in [pinged, connected] {
            match result {
                Ok(()) => return Ok(false),
                Err(Error::Timeout { .. } | Error::Stack { .. }) => {}
                Err(error) => return Err(error).with_context(|| format!("{name} tries {to}")),
            }
        }
        Ok(true)
    }

    fn is_refused(&mut self, board: &Board, to: IpAddr, l4: u16) -> anyhow::Result<bool> {
        let connected = self.job(board, "connects", move |guest| {
            let handle = guest.tcp_connect(to, l4, PATIENCE)?;
            guest.close(handle);
            Ok(())
        })?;
        match connected {
            Err(Error::Stack { .. }) => Ok(true),
            Ok(()) | Err(Error::Timeout { .. }) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{} tries {to}", self.0.port.name)),
        }
    }

    fn asks_built_in(&self) -> bool {
        true
    }

    fn tcp(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<u64> {
        let name = &self.0.port.name;
        let sent = self.job(board, "sends", move |guest| guest.tcp_transfer(to, ECHO, COMPARED_BYTES, PATIENCE))?;
        Ok(sent.with_context(|| format!("{name} to {to}"))?.bytes)
    }

    fn udp(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<()> {
        let name = &self.0.port.name;
        let answer = self.job(board, "sends", move |guest| guest.udp_exchange(to, ECHO, DATAGRAM, PATIENCE))?;
        let answer = answer.with_context(|| format!("{name} to {to}"))?;
        ensure!(answer == DATAGRAM, "the datagram that comes back from {to} is another one");
        Ok(())
    }

    fn resolve(&mut self, board: &Board, server: IpAddr, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        const ID: u16 = 0x6877;
        let question = lookup::question(ID, name, server.is_ipv6())?;
        let answer =
            self.job(board, "asks", move |guest| guest.udp_exchange(server, lookup::PORT, &question, PATIENCE))?;
        lookup::addresses(ID, &answer.with_context(|| format!("{name} from {server}"))?)
    }
}
