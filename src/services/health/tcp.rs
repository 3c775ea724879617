//! `Tcp`: a connection would be taken. A SYN that is answered by SYN with ACK is enough, and is reset (`Sockets::ask`): the
//! backend's program does not see connections that never say a word.

use tokio::time::timeout_at;

use super::Target;
use super::check::{Deadline, Finding, explain, ident};
use crate::services::sockets::{Question, Sockets};

/// Asks once.
pub async fn check(sockets: &Sockets, target: &Target) -> Finding {
    let deadline = Deadline::new(target);
    let question = Question::Connect(target.l4);
    let asked =
        sockets.ask(&target.network, target.address, ident(target), question).map_err(|error| explain(&error))?;
    let answer = match timeout_at(deadline.half(), asked.answer()).await {
        Ok(answer) => answer,
        Err(_) => {
            asked.repeat();
            deadline.step("no answer to a SYN", asked.answer()).await?
        }
    };
    answer.map(|_| "connection accepted".into()).map_err(|error| explain(&error))
}
