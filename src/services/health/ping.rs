//! `Icmp`: an echo request is answered.

use super::Target;
use super::check::{Deadline, Finding, explain, ident};
use crate::services::sockets::{Question, Sockets};

/// Asks once.
pub async fn check(sockets: &Sockets, target: &Target) -> Finding {
    let deadline = Deadline::new(target);
    let asked = sockets.ask(&target.network, target.address, ident(target), Question::Echo);
    let asked = asked.map_err(|error| explain(&error))?;
    let answer = deadline.step("no echo reply", asked.answer()).await?;
    answer.map(|_| "echo reply".into()).map_err(|error| explain(&error))
}
