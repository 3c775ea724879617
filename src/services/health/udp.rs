//! `Udp`: a datagram is answered, by one that begins as expected.

use super::Target;
use super::check::{Deadline, Finding, explain, ident};
use crate::services::sockets::{Answer, Question, Sockets};

/// Octets of an unexpected answer that are shown.
const SHOWN: usize = 32;

/// Asks once.
pub async fn check(sockets: &Sockets, target: &Target, send: &[u8], expect: &[u8]) -> Finding {
    let deadline = Deadline::new(target);
    let question = Question::Datagram(target.l4, send);
    let asked =
        sockets.ask(&target.network, target.address, ident(target), question).map_err(|error| explain(&error))?;
    match deadline.step("no answer to the datagram", asked.answer()).await?.map_err(|error| explain(&error))? {
        Answer::Datagram(data) if !data.starts_with(expect) => {
            let shown = data.get(..SHOWN).unwrap_or(&data).escape_ascii();
            Err(format!("unexpected answer of {} octets: \"{shown}\"", data.len()).into())
        }
        _ => Ok("expected answer".into()),
    }
}
