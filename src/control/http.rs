//! HTTP on the control socket: the same methods for `curl --unix-socket`, metrics, health and a feed of events
//! (Server-Sent Events).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hostweave_nat::{AddressStats, unmapped};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming as HttpBody};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method as Verb, Request as HttpRequest, Response as HttpResponse, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::connection::{Prefixed, Server, next, request_bytes_max};
use super::controller::Snapshot;
use super::error::{ErrorKind, RpcError};
use super::method::{self, Feed, Outcome};
use super::rpc::{self, Incoming, Request, Response};
use super::socket::Client;
use super::view::{PORT_STATES, PortView};
use crate::config::outside::nat_pools;
use crate::fabric::uplink::UplinkStatus;
use crate::observe::metrics::{self, NatAddressSample, PortSample, Sample, UplinkSample, WorkerSample};

/// Octets of a request's head.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Events that wait to be written to a client.
const EVENTS_WAITING_MAX: usize = 64;

type Reply = HttpResponse<Either<Full<Bytes>, EventBody>>;

/// Serves HTTP until either side ends the connection.
pub async fn serve(stream: Prefixed, client: Client, server: Server) {
    let stopper = server.clone();
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(answer(request, client, &server).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).max_buf_size(HEAD_BYTES_MAX).half_close(true);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = stopper.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

async fn answer(request: HttpRequest<HttpBody>, client: Client, server: &Server) -> Reply {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let result = match (request.method(), path.as_str()) {
        (&Verb::POST, "/rpc") => post_rpc(request, client, server).await,
        (&Verb::GET, "/metrics") => scrape(server).await,
        // It answers, hence it lives; the socket accepts only once everything is set up, hence it is ready.
        (&Verb::GET, "/healthz" | "/readyz") => Ok(plain(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")),
        (&Verb::GET, "/openrpc.json") => Ok(json_reply(StatusCode::OK, &method::openrpc())),
        (&Verb::GET, "/v1/events") => events(client, server).await,
        (&Verb::GET, path) if path.starts_with("/v1/") => objects(&path[4..], &query, client, server).await,
        (_, "/rpc") => return not_allowed("POST"),
        (&Verb::GET, _) => Err(RpcError::new(ErrorKind::NotFound, "path", format!("there is nothing at {path}"))
            .help("/rpc, /v1/<kind>, /v1/events, /metrics, /healthz, /readyz, /openrpc.json")),
        _ => return not_allowed("GET"),
    };
    result.unwrap_or_else(|error| {
        let status = StatusCode::from_u16(error.data.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json_reply(status, &json!({"error": error}))
    })
}

fn plain(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Reply {
    let mut reply = HttpResponse::new(Either::Left(Full::new(text.into())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    reply
}

fn json_reply(status: StatusCode, value: &Value) -> Reply {
    plain(status, "application/json", format!("{value}\n"))
}

fn not_allowed(verb: &'static str) -> Reply {
    let mut reply = plain(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", format!("use {verb}\n"));
    reply.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(verb));
    reply
}

/// JSON-RPC in the body of a request. Subscriptions need a connection of their own.
async fn post_rpc(request: HttpRequest<HttpBody>, client: Client, server: &Server) -> Result<Reply, RpcError> {
    let limit = request_bytes_max(client);
    let body = Limited::new(request.into_body(), limit).collect().await.map_err(|_| {
        let message = format!("the body was cut off, or has more than {limit} octets");
        RpcError::new(ErrorKind::InvalidRequest, "", message)
    })?;
    let response = match rpc::parse(&body.to_bytes()) {
        Incoming::One(request) => respond(request, client, server).await,
        Incoming::Batch(requests) => {
            let mut responses = Vec::new();
            for request in requests {
                responses.extend(respond(request, client, server).await);
            }
            (!responses.is_empty()).then_some(Value::Array(responses))
        }
    };
    Ok(match response {
        Some(response) => json_reply(StatusCode::OK, &response),
        None => plain(StatusCode::NO_CONTENT, "application/json", ""),
    })
}

async fn respond(request: Request, client: Client, server: &Server) -> Option<Value> {
    let result = match request.call {
        Ok(prepared) => value_of(server.call(prepared, client).await),
        Err(error) => Err(error),
    };
    (!request.notification).then(|| Response { id: request.id, result }.to_value())
}

fn value_of(outcome: Result<Outcome, RpcError>) -> Result<Value, RpcError> {
    match outcome? {
        Outcome::Value(value) => Ok(value),
        Outcome::Subscription(_) | Outcome::Unsubscribe(_) => {
            let error = RpcError::new(ErrorKind::Unavailable, "method", "a subscription needs JSON-RPC lines");
            Err(error.help("connect without HTTP, or use GET /v1/events"))
        }
    }
}

/// `/v1/KIND`, `/v1/KIND/NAME`, `/v1/KIND/NAMESPACE/NAME`, with `?namespace=` and `?selector=`.
async fn objects(path: &str, query: &str, client: Client, server: &Server) -> Result<Reply, RpcError> {
    let mut namespace = None;
    let mut selector = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "namespace" => namespace = Some(percent_decoded(value)),
            "selector" | "labelSelector" => selector = Some(percent_decoded(value)),
            _ => return Err(RpcError::new(ErrorKind::InvalidParams, key, format!("there is no parameter {key:?}"))),
        }
    }
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let (name, params) = match parts[..] {
        [kind] => ("object.list", json!({"kind": kind, "namespace": namespace, "selector": selector})),
        [kind, name] => ("object.get", json!({"kind": kind, "namespace": namespace, "name": name})),
        [kind, namespace, name] => ("object.get", json!({"kind": kind, "namespace": namespace, "name": name})),
        _ => return Err(RpcError::new(ErrorKind::NotFound, "path", "objects are at /v1/KIND[/NAMESPACE]/NAME")),
    };
    let value = value_of(server.call(method::prepare(name, params)?, client).await)?;
    Ok(json_reply(StatusCode::OK, &value))
}

/// `%2C` as `,` (RFC 3986 §2.1) and `+` as a space, as forms write it.
fn percent_decoded(text: &str) -> String {
    let octets = text.as_bytes();
    let mut decoded = Vec::with_capacity(octets.len());
    let mut index = 0;
    while let Some(octet) = octets.get(index) {
        let hex = octets.get(index + 1..index + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (octet, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                decoded.push(value);
                index += 3;
                continue;
            }
            (b'+', _) => decoded.push(b' '),
            (other, _) => decoded.push(*other),
        }
        index += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn nat_address(snapshot: &Snapshot, stats: &AddressStats) -> NatAddressSample {
    let address = unmapped(stats.address);
    let pool = nat_pools(&snapshot.set).find(|(_, pool)| pool.ranges.iter().any(|range| range.contains(address)));
    NatAddressSample {
        pool: pool.map(|(object, _)| object.key.name.clone()).unwrap_or_default(),
        address,
        leased: [stats.leased.into(), stats.total.into()],
        used: stats.used,
    }
}

fn uplink_sample(status: UplinkStatus) -> UplinkSample {
    UplinkSample {
        interface: status.spec.interface,
        up: status.link,
        gateways: status.gateways.iter().map(|hop| (hop.address, hop.mac.is_some())).collect(),
        totals: status.totals,
        missed: status.missed,
    }
}

async fn scrape(server: &Server) -> Result<Reply, RpcError> {
    let controller = server.controller.clone();
    // The fabric's lock may be held by a change that waits for a device.
    let text = tokio::task::spawn_blocking(move || {
        let snapshot = controller.snapshot();
        let fabric = &controller.parts.fabric;
        let ports = fabric.port_statuses().into_iter().map(|(port, status)| {
            let key = port.split_once('/').map(|(namespace, name)| crate::config::ObjectKey::port(namespace, name));
            let view = key.and_then(|key| PortView::new(&controller, &snapshot, &key));
            let state = view.map_or("running", |view| view.state().0);
            PortSample { port, state, totals: status.totals }
        });
        let workers = fabric.worker_reports().into_iter().map(|report| WorkerSample {
            busy_s: report.busy_s,
            polling_s: report.polling_s,
            asleep_s: report.asleep_s,
            packets: report.packets,
        });
        let nat = fabric.nat_report();
        let sample = Sample {
            ports: ports.collect(),
            workers: workers.collect(),
            port_states: PORT_STATES,
            revision: snapshot.revision,
            events: controller.parts.events.count(),
            events_lost: controller.parts.events.lost(),
            policy: fabric.policy_report(),
            connections: fabric.connection_report(),
            flows_lost: fabric.flow_log().lost(),
            dns: fabric.dns().report(),
            external_dns: fabric.external_dns().report(),
            metadata: fabric.metadata().report(),
            services: fabric.service_counts(),
            nat: nat.stats,
            nat_refused: nat.refused,
            nat_addresses: nat.addresses.iter().map(|stats| nat_address(&snapshot, stats)).collect(),
            uplink: fabric.uplink_status().map(uplink_sample),
        };
        sample.encode()
    });
    match text.await {
        Ok(Ok(text)) => Ok(plain(StatusCode::OK, metrics::CONTENT_TYPE, text)),
        _ => Err(RpcError::new(ErrorKind::Internal, "", "the metrics could not be written")),
    }
}

/// The feed of events, as Server-Sent Events (WHATWG HTML §9.2).
async fn events(client: Client, server: &Server) -> Result<Reply, RpcError> {
    let prepared = method::prepare("event.subscribe", json!({}))?;
    let Outcome::Subscription(subscription) = server.call(prepared, client).await? else {
        return Err(RpcError::new(ErrorKind::Internal, "", "event.subscribe gave no subscription"));
    };
    let (sender, waiting) = mpsc::channel(EVENTS_WAITING_MAX);
    let mut feed: Feed = subscription.feed;
    let controller = server.controller.clone();
    let stopper = server.clone();
    tokio::spawn(async move {
        loop {
            let value = tokio::select! {
                value = next(&mut feed, &controller) => value,
                () = sender.closed() => None,
                () = stopper.stopped() => None,
            };
            let Some(value) = value else { return };
            let id = value.get("seq").map(|seq| format!("id: {seq}\n")).unwrap_or_default();
            if sender.send(Bytes::from(format!("{id}data: {value}\n\n"))).await.is_err() {
                return;
            }
        }
    });
    let mut reply = HttpResponse::new(Either::Right(EventBody(waiting)));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    Ok(reply)
}

/// A body that is written as events happen.
pub struct EventBody(mpsc::Receiver<Bytes>);

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|event| event.map(|octets| Ok(Frame::data(octets))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decoding() {
        for (text, expected) in [("a%3Db%2Cc", "a=b,c"), ("a+b", "a b"), ("100%", "100%"), ("%zz", "%zz"), ("%2", "%2")]
        {
            assert_eq!(percent_decoded(text), expected);
        }
    }
}
