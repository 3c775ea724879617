//! `Grpc`: `grpc.health.v1.Health/Check` says `SERVING`, over HTTP/2 without TLS (gRPC health checking protocol; gRPC over HTTP/2).
//! The two messages have one field each, so they are written and read here.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::pin;

use h2::{RecvStream, client};
use hyper::body::Bytes;
use hyper::http::{HeaderMap, HeaderValue, Request, StatusCode};

use super::Target;
use super::check::Finding;
use super::dialer::{Connection, Dial, chain};

/// Octets of a response's headers.
const HEADERS_LEN_MAX: u32 = 16 * 1024;
/// Octets that may be on their way to us.
const WINDOW: u32 = 16 * 1024;
/// Octets of an answer.
const MESSAGE_LEN_MAX: usize = 1024;
/// Octets before a message: whether it is compressed, and its length.
const PREFIX_LEN: usize = 5;
/// `HealthCheckRequest.service` and `HealthCheckResponse.status`.
const FIELD: u64 = 1;
/// `ServingStatus.SERVING`.
const SERVING: u64 = 1;

type Failure = Cow<'static, str>;

/// Asks once.
pub async fn check(dialer: Dial<'_>, target: &Target, service: &str) -> Finding {
    let (connection, deadline) = dialer.dial(target).await?;
    let authority = SocketAddr::new(target.address, target.l4);
    let status = deadline.step("no gRPC response", exchange(connection, authority, service)).await??;
    match status {
        SERVING => Ok("SERVING".into()),
        0 => Err("status UNKNOWN".into()),
        2 => Err("status NOT_SERVING".into()),
        3 => Err("status SERVICE_UNKNOWN".into()),
        other => Err(format!("status {other}").into()),
    }
}

async fn exchange(connection: Connection, authority: SocketAddr, service: &str) -> Result<u64, Failure> {
    let mut builder = client::Builder::new();
    builder.enable_push(false).max_header_list_size(HEADERS_LEN_MAX).initial_window_size(WINDOW).max_frame_size(16_384);
    let handshake = builder.handshake::<_, Bytes>(connection).await;
    let (sender, connection) = handshake.map_err(|error| chain("HTTP/2", &error))?;
    let mut call = pin!(call(sender, authority, service));
    tokio::select! {
        biased;
        status = &mut call => status,
        // The connection may end with the response in hand.
        _ = connection => call.await,
    }
}

async fn call(sender: client::SendRequest<Bytes>, authority: SocketAddr, service: &str) -> Result<u64, Failure> {
    let failed = |error: h2::Error| chain("HTTP/2", &error);
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", concat!("hostweave-health/", env!("CARGO_PKG_VERSION")))
        .body(())
        .map_err(|error| chain("HTTP/2", &error))?;
    let mut sender = sender.ready().await.map_err(failed)?;
    let (response, mut body) = sender.send_request(request, false).map_err(failed)?;
    body.send_data(question(service), true).map_err(failed)?;
    let response = response.await.map_err(failed)?;
    if response.status() != StatusCode::OK {
        return Err(format!("HTTP status {}, not a gRPC server", response.status().as_u16()).into());
    }
    // A server that has nothing to say puts the outcome beside the headers.
    outcome(response.headers())?;
    let mut body = response.into_body();
    let message = message(&mut body).await?;
    let trailers = body.trailers().await.map_err(failed)?;
    outcome(&trailers.unwrap_or_default())?;
    status(&message)
}

/// The length-prefixed request.
fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(2 + service.len());
    if !service.is_empty() {
        // Wire type 2: length-delimited.
        put_varint(&mut message, FIELD << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0][..], &len.to_be_bytes(), &message].concat().into()
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// `grpc-status` of headers or trailers, where there is one.
fn outcome(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).map(HeaderValue::as_bytes);
    match text("grpc-status") {
        None | Some(b"0") => Ok(()),
        Some(b"5") => Err("gRPC status 5 (NOT_FOUND): the server does not know this service".into()),
        Some(b"12") => Err("gRPC status 12 (UNIMPLEMENTED): the server has no grpc.health.v1.Health".into()),
        Some(code) => {
            let said = text("grpc-message").unwrap_or_default();
            let (code, said) = (code.escape_ascii(), said.get(..128).unwrap_or(said).escape_ascii());
            Err(format!("gRPC status {code} {said}").trim_end().to_owned().into())
        }
    }
}

/// The one message of a body.
async fn message(body: &mut RecvStream) -> Result<Vec<u8>, Failure> {
    let mut octets = Vec::new();
    while let Some(data) = body.data().await {
        // The window opens no further: the longest answer fits it.
        octets.extend_from_slice(&data.map_err(|error| chain("HTTP/2", &error))?);
        if octets.len() > PREFIX_LEN + MESSAGE_LEN_MAX {
            return Err(format!("an answer of more than {MESSAGE_LEN_MAX} octets").into());
        }
    }
    let (prefix, message) = octets.split_first_chunk::<PREFIX_LEN>().ok_or("the server ended without an answer")?;
    let [compressed, len @ ..] = *prefix;
    if compressed != 0 {
        return Err("a compressed answer, which was not asked for".into());
    }
    let right = u32::from_be_bytes(len) as usize == message.len();
    if right { Ok(message.to_vec()) } else { Err("an answer of another length than it says".into()) }
}

/// `HealthCheckResponse.status`; 0 when it is left out. Fields that are not known are skipped (protobuf encoding).
fn status(message: &[u8]) -> Result<u64, Failure> {
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let skip = match tag & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if tag >> 3 == FIELD {
                    status = value;
                }
                0
            }
            1 => 8,
            2 => varint(&mut rest)?,
            5 => 4,
            _ => return Err(MALFORMED.into()),
        };
        let skip = usize::try_from(skip).map_err(|_| MALFORMED)?;
        rest = rest.get(skip..).ok_or(MALFORMED)?;
    }
    Ok(status)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Failure> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (octet, after) = rest.split_first().ok_or(MALFORMED)?;
        *rest = after;
        value |= u64::from(octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(MALFORMED.into())
}

const MALFORMED: &str = "a malformed answer";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_as_protobuf_writes_them() {
        assert_eq!(&question("")[..], [0; 5]);
        assert_eq!(&question("a.B")[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        let long = question(&"x".repeat(300));
        assert_eq!((&long[..8], long.len()), (&[0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02][..], 308));
        for (message, expected) in [
            (&[][..], Ok(0)),
            (&[8, 1], Ok(1)),
            (&[8, 2, 8, 1], Ok(1)),
            (&[8, 0x80, 0x80, 0x04], Ok(1 << 16)),
            // Fields 2 to 5 of all wire types, then the status.
            (&[0x10, 5, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0x22, 2, 8, 9, 0x2d, 1, 2, 3, 4, 8, 1], Ok(1)),
            (&[8], Err(())),
            (&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Err(())),
            (&[0x22, 9, 1], Err(())),
            (&[0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1], Err(())),
            (&[0x0b], Err(())),
        ] {
            assert_eq!(status(message).map_err(drop), expected, "{message:?}");
        }
    }
}
