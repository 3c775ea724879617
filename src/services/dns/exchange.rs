//! One question to one upstream server, from a kernel socket of the host: UDP, and TCP when the answer is cut off.
//!
//! Each question has a socket of its own: the kernel picks its port at random, as the id is, and takes answers from
//! nobody else (RFC 5452 §9.2). What is no answer to the question is ignored, not an end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::cache::Kept;
use super::message::UDP_PAYLOAD;

/// How long one server may take over UDP.
pub const UDP_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long one server may take over TCP, connecting included.
pub const TCP_TIMEOUT: Duration = Duration::from_secs(2);

/// What is asked, and how.
#[derive(Clone, Debug)]
pub struct Question {
    /// The question.
    pub query: Query,
    /// DO.
    pub dnssec_ok: bool,
    /// CD.
    pub checking_disabled: bool,
}

/// Asks one server.
///
/// # Errors
/// It does not answer, or not in time.
pub async fn ask(server: SocketAddr, question: &Question) -> io::Result<Kept> {
    let answer = match over_udp(server, question, true).await? {
        // Servers older than EDNS (RFC 6891 §7).
        answer if answer.metadata.response_code == ResponseCode::FormErr => over_udp(server, question, false).await?,
        answer => answer,
    };
    let answer = if answer.metadata.truncation { over_tcp(server, question).await? } else { answer };
    // Every record is written with at least eleven octets, so that this is no less than its length.
    let len = answer.to_vec().map(|octets| octets.len()).unwrap_or(usize::MAX);
    Ok(Kept {
        code: answer.metadata.response_code,
        authentic: answer.metadata.authentic_data,
        answers: answer.answers,
        authorities: answer.authorities,
        len,
    })
}

async fn over_udp(server: SocketAddr, question: &Question, edns: bool) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let (id, octets) = written(question, edns)?;
    let exchange = async {
        socket.send(&octets).await?;
        let mut buffer = vec![0; usize::from(UDP_PAYLOAD)];
        loop {
            let len = socket.recv(&mut buffer).await?;
            if let Some(answer) = read(&buffer[..len], id, question) {
                return Ok(answer);
            }
        }
    };
    timeout(UDP_TIMEOUT, exchange).await?
}

async fn over_tcp(server: SocketAddr, question: &Question) -> io::Result<Message> {
    let (id, octets) = written(question, true)?;
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let len = u16::try_from(octets.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        stream.write_all(&[&len.to_be_bytes()[..], &octets].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        read(&answer, id, question).ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    timeout(TCP_TIMEOUT, exchange).await?
}

/// The question as octets, with a random id.
fn written(question: &Question, edns: bool) -> io::Result<(u16, Vec<u8>)> {
    let [high, low, ..] = *uuid::Uuid::new_v4().as_bytes();
    let id = u16::from_be_bytes([high, low]);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.queries.push(question.query.clone());
    if edns {
        let mut options = Edns::new();
        options.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(question.dnssec_ok);
        message.edns = Some(options);
    }
    Ok((id, message.to_vec().map_err(io::Error::other)?))
}

/// The answer to this question, or nothing.
fn read(octets: &[u8], id: u16, question: &Question) -> Option<Message> {
    let header = octets.first_chunk::<12>()?;
    let ours = header[..2] == id.to_be_bytes() && header[2] & 0x80 != 0 && header[4..6] == [0, 1];
    let message = ours.then(|| Message::from_vec(octets).ok()).flatten()?;
    let same = message.queries.first().is_some_and(|query| *query == question.query);
    (same && message.metadata.op_code == OpCode::Query).then_some(message)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let query = |name: &str, kind| Query::query(Name::from_ascii(name).unwrap(), kind);
        let question =
            Question { query: query("www.example.", RecordType::A), dnssec_ok: false, checking_disabled: false };
        let (id, octets) = written(&question, true).unwrap();
        assert_eq!(read(&octets, id, &question).map(|_| ()), None, "a query is no answer");
        let answer = |id, query: Query| {
            let mut message = Message::new(id, MessageType::Response, OpCode::Query);
            message.queries.push(query);
            message.to_vec().unwrap()
        };
        let right = answer(id, query("WWW.example.", RecordType::A));
        assert!(read(&right, id, &question).is_some());
        assert!(read(&right, id ^ 1, &question).is_none());
        assert!(read(&answer(id, query("www.example.", RecordType::AAAA)), id, &question).is_none());
        assert!(read(&answer(id, query("ww2.example.", RecordType::A)), id, &question).is_none());
        for len in 0..right.len() {
            assert!(read(&right[..len], id, &question).is_none());
        }
        let many = [&right[..4], &[0xff, 0xff], &right[6..]].concat();
        assert!(read(&many, id, &question).is_none());
    }

    #[test]
    fn ids_differ() {
        let query = Query::query(Name::root(), RecordType::NS);
        let question = Question { query, dnssec_ok: true, checking_disabled: false };
        let ids: std::collections::HashSet<u16> = (0..64).map(|_| written(&question, true).unwrap().0).collect();
        assert!(ids.len() > 48, "{ids:?}");
    }
}
