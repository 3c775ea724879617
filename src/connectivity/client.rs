//! What is asked of a guest, whatever it is made of.

use std::net::IpAddr;
use std::time::Duration;

use crate::guests::board::Board;
use crate::guests::member::Port;

/// A guest on a port of the test. Whatever waits ends early when the board says that somebody wants to stop.
pub trait Client {
    /// Its port.
    fn port(&self) -> &Port;

    /// Gets its addresses, IPv4 by DHCP, IPv6 from router advertisements, and starts to serve TCP and UDP.
    ///
    /// # Errors
    /// It gets none, or others than the daemon says.
    fn settle(&mut self, board: &Board) -> anyhow::Result<()>;

    /// Pings an address until it answers; the round trip.
    ///
    /// # Errors
    /// No answer comes.
    fn ping(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<Duration>;

    /// Whether an address answers neither a ping nor a TCP connection for a moment.
    ///
    /// # Errors
    /// The guest fails.
    fn hears_nothing_from(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<bool>;

    /// Whether a connection to an L4 port is refused by an answer, and not by silence.
    ///
    /// # Errors
    /// The guest fails.
    fn is_refused(&mut self, board: &Board, to: IpAddr, l4: u16) -> anyhow::Result<bool>;

    /// Whether it talks to the L4 port at which built-in guests serve.
    fn asks_built_in(&self) -> bool;

    /// Sends octets to another guest over TCP; how many.
    ///
    /// # Errors
    /// They do not all arrive.
    fn tcp(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<u64>;

    /// Exchanges datagrams with another guest.
    ///
    /// # Errors
    /// None arrives.
    fn udp(&mut self, board: &Board, to: IpAddr) -> anyhow::Result<()>;

    /// The addresses of a name, of `server`'s version of IP, as that server has them.
    ///
    /// # Errors
    /// No answer comes.
    fn resolve(&mut self, board: &Board, server: IpAddr, name: &str) -> anyhow::Result<Vec<IpAddr>>;
}
