//! A question to a name server, and the addresses in its answer.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

/// L4 port of name servers (RFC 1035 §4.2).
pub const PORT: u16 = 53;

/// A question for the addresses of a name.
///
/// # Errors
/// It is no name.
pub fn question(id: u16, name: &str, v6: bool) -> anyhow::Result<Vec<u8>> {
    let name = Name::from_ascii(name).with_context(|| format!("{name:?} is no name"))?;
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, if v6 { RecordType::AAAA } else { RecordType::A }));
    Ok(message.to_vec()?)
}

/// The addresses in the answer to question `id`.
///
/// # Errors
/// It is no answer, or a refusal.
pub fn addresses(id: u16, answer: &[u8]) -> anyhow::Result<Vec<IpAddr>> {
    let message = Message::from_vec(answer).context("the answer is no DNS message")?;
    ensure!(message.metadata.id == id, "the answer is to another question");
    let code = message.metadata.response_code;
    ensure!(code == ResponseCode::NoError, "the server says {code}");
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::V4(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
        _ => None,
    };
    Ok(message.answers.iter().filter_map(|record| address(&record.data)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_and_refusals_are_told() {
        let asked = question(7, "b.shop.port.cluster.local.", true).unwrap();
        let mut message = Message::from_vec(&asked).unwrap();
        assert_eq!(message.queries[0].query_type(), RecordType::AAAA);
        message.metadata.message_type = MessageType::Response;
        assert_eq!(addresses(7, &message.to_vec().unwrap()).unwrap(), [] as [IpAddr; 0]);
        assert!(addresses(8, &message.to_vec().unwrap()).is_err(), "another question's");
        message.metadata.response_code = ResponseCode::NXDomain;
        assert!(addresses(7, &message.to_vec().unwrap()).unwrap_err().to_string().contains("says"));
        assert!(addresses(7, b"x").is_err() && question(7, "a..b", false).is_err());
    }
}
