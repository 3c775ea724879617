//! `Http`: `GET` is answered with the right status, over HTTP/1.1 with or without TLS. Headers are read up to a limit, the body is not.
//! Redirects are not followed: the status is what counts.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::pin;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Target;
use super::check::Finding;
use super::dialer::{Dial, chain};
use super::tls::Tls;

/// Octets of a response's status line and headers.
const HEADERS_LEN_MAX: usize = 16 * 1024;
/// Headers of a response.
const HEADERS_MAX: usize = 100;
/// Who asks.
const USER_AGENT: &str = concat!("hostweave-health/", env!("CARGO_PKG_VERSION"));

/// Asks once.
pub async fn check(
    dialer: Dial<'_>,
    target: &Target,
    tls: Option<&Tls>,
    path: &str,
    host: Option<&str>,
    statuses: &RangeInclusive<u16>,
) -> Finding {
    let request = request(target, tls.is_some(), path, host)?;
    let (connection, deadline) = dialer.dial(target).await?;
    let status = match tls {
        None => deadline.step("no HTTP response", exchange(connection, request)).await??,
        Some(tls) => {
            let stream = tls.connect(target, host, connection, deadline).await?;
            deadline.step("no HTTP response", exchange(stream, request)).await??
        }
    };
    let text = format!("status {}", status.as_u16());
    if statuses.contains(&status.as_u16()) { Ok(text.into()) } else { Err(text.into()) }
}

fn request(
    target: &Target,
    tls: bool,
    path: &str,
    host: Option<&str>,
) -> Result<Request<Empty<Bytes>>, Cow<'static, str>> {
    let well_known = if tls { 443 } else { 80 };
    let host = host.map_or_else(
        || match (target.address.is_ipv4(), target.l4 == well_known) {
            (true, true) => target.address.to_string(),
            (false, true) => format!("[{}]", target.address),
            _ => SocketAddr::new(target.address, target.l4).to_string(),
        },
        str::to_owned,
    );
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close");
    request.body(Empty::new()).map_err(|error| chain("path or host cannot be asked for", &error))
}

/// Sends the request and waits for the head of the response.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<StatusCode, Cow<'static, str>> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEADERS_LEN_MAX).max_headers(HEADERS_MAX);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| chain("HTTP", &error))?;
    let mut response = pin!(sender.send_request(request));
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        // The connection may end with the response in hand.
        _ = connection => response.await,
    };
    response.map(|response| response.status()).map_err(|error| chain("HTTP", &error))
}
