//! Questions of one packet to guests, from a gateway's address.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

pub use super::super::stack::question::{Answer, QUESTIONS_MAX, Question};

use super::super::stack::question::Key;
use super::{Shared, Sockets};

impl Sockets {
    /// Asks a guest something, from the gateway's address. `ident` names who asks: what asks the same guest the same thing again
    /// does well to have the same one, for the switch then sees one flow.
    ///
    /// # Errors
    /// `NotFound` without that network, `AddrNotAvailable` when its gateway has no address of that family,
    /// `InvalidInput` for a datagram that does not fit the network's MTU, `QuotaExceeded` beyond [`QUESTIONS_MAX`].
    pub fn ask(&self, network: &str, to: IpAddr, ident: u16, question: Question<'_>) -> io::Result<Asked> {
        let shared = self.network(network)?;
        let mut stack = shared.stack();
        let from = stack.source_for(to).filter(|from| from.is_ipv4() == to.is_ipv4());
        let from = from.ok_or(io::ErrorKind::AddrNotAvailable)?;
        if let Question::Datagram(_, data) = question
            && data.len() > stack.datagram_len_max(to)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let key = stack.questions.ask(from, to, ident, question).ok_or(io::ErrorKind::QuotaExceeded)?;
        drop(stack);
        shared.port.nudge();
        Ok(Asked { shared, key })
    }
}

/// A question that was asked. Dropping it forgets it.
pub struct Asked {
    shared: Arc<Shared>,
    key: Key,
}

impl Asked {
    /// The answer, once; waits for as long as it takes. Safe to cancel.
    ///
    /// # Errors
    /// `ConnectionRefused` for a reset or ICMP "port unreachable", `HostUnreachable` for other ICMP errors, `NotConnected` when the
    /// network is gone.
    pub async fn answer(&self) -> io::Result<Answer> {
        poll_fn(|cx| self.shared.stack().questions.poll(&self.key, cx)).await
    }

    /// Asks once more: the packet may have been lost.
    pub fn repeat(&self) {
        self.shared.stack().questions.repeat(&self.key);
        self.shared.port.nudge();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.shared.stack().questions.forget(&self.key);
    }
}
