//! One connection to a control socket: JSON-RPC lines or HTTP, told apart by the first octet.
//!
//! Requests of a connection are answered one after the other; while one runs, the next is not read, so that a client
//! cannot pile up work. Notifications of subscriptions go out in between. Everything has a limit.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::controller::Controller;
use super::error::{ErrorKind, RpcError};
use super::http;
use super::method::{Call, Feed, Outcome, Prepared, Subscription};
use super::methods::object;
use super::rpc::{self, Incoming, REQUEST_BYTES_MAX, REQUEST_BYTES_MAX_OBSERVE, Request, Response};
use super::socket::Client;

/// Subscriptions of one connection.
const SUBSCRIPTIONS_MAX: usize = 16;

/// Lines that wait to be written.
const LINES_WAITING_MAX: usize = 256;

/// How long a client may take to read what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to send its first octet.
const FIRST_OCTET_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection works with.
#[derive(Clone)]
pub struct Server {
    /// The daemon's state.
    pub controller: Arc<Controller>,
    /// Becomes true when the daemon stops.
    pub stopping: watch::Receiver<bool>,
}

impl Server {
    /// Returns when the daemon stops.
    pub async fn stopped(&self) {
        // An error means that the daemon is gone, which is the same.
        drop(self.stopping.clone().wait_for(|stopping| *stopping).await);
    }

    /// Runs a method off the runtime's threads.
    pub async fn call(&self, prepared: Prepared, client: Client) -> Result<Outcome, RpcError> {
        let controller = Arc::clone(&self.controller);
        let body = move || prepared.call(&Call { controller: &controller, client: &client });
        tokio::task::spawn_blocking(body).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a method panicked");
            Err(RpcError::new(ErrorKind::Internal, "", "this is a bug of hostweave; the log says more"))
        })
    }
}

/// Octets of one request that this client may send.
pub fn request_bytes_max(client: Client) -> usize {
    if client.read_only { REQUEST_BYTES_MAX_OBSERVE } else { REQUEST_BYTES_MAX }
}

/// Serves a connection until either side ends it.
pub async fn serve(mut stream: UnixStream, client: Client, server: Server) {
    let mut first = [0];
    let read = tokio::time::timeout(FIRST_OCTET_TIMEOUT, stream.read_exact(&mut first)).await;
    if !matches!(read, Ok(Ok(_))) {
        return;
    }
    let stream = Prefixed { first: Some(first[0]), inner: stream };
    if matches!(first[0], b'{' | b'[') || first[0].is_ascii_whitespace() {
        lines(stream, client, server).await;
    } else {
        http::serve(stream, client, server).await;
    }
}

/// A stream whose first octet was read already.
pub struct Prefixed {
    first: Option<u8>,
    inner: UnixStream,
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The subscriptions of a connection, which end with it.
#[derive(Default)]
struct Subscriptions {
    tasks: JoinSet<()>,
    handles: HashMap<u64, AbortHandle>,
}

impl Subscriptions {
    /// Ends one. `false` if there is none of that number.
    fn end(&mut self, id: u64) -> bool {
        let handle = self.handles.remove(&id);
        handle.inspect(AbortHandle::abort).is_some()
    }
}

/// JSON-RPC, one message a line.
async fn lines(stream: Prefixed, client: Client, server: Server) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (sender, mut waiting) = mpsc::channel::<Vec<u8>>(LINES_WAITING_MAX);
    let writing = tokio::spawn(async move {
        while let Some(line) = waiting.recv().await {
            if !matches!(tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&line)).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    let mut subscriptions = Subscriptions::default();
    let mut lines = Lines { buffer: Vec::new(), searched: 0, limit: request_bytes_max(client) };
    loop {
        let line = tokio::select! {
            line = lines.next(&mut reader) => line,
            () = server.stopped() => break,
        };
        match line {
            Ok(Some(line)) if line.trim_ascii().is_empty() => {}
            Ok(Some(line)) => {
                if !answer(&line, client, &server, &sender, &mut subscriptions).await {
                    break;
                }
            }
            Ok(None) => break,
            Err(TooLong(limit)) => {
                let message = format!("a request has at most {limit} octets on this socket");
                let error = RpcError::new(ErrorKind::InvalidRequest, "", message);
                send(&sender, &Response { id: None, result: Err(error) }.to_value()).await;
                break;
            }
        }
    }
    // Subscriptions end with their connection; what was answered is still written.
    drop(subscriptions);
    drop(sender);
    let _ = writing.await;
}

/// Answers one line. `false` if nobody reads the answers.
async fn answer(
    line: &[u8],
    client: Client,
    server: &Server,
    sender: &mpsc::Sender<Vec<u8>>,
    subscriptions: &mut Subscriptions,
) -> bool {
    let mut started = Vec::new();
    let response = match rpc::parse(line) {
        Incoming::One(request) => respond(request, client, server, subscriptions, &mut started).await,
        Incoming::Batch(requests) => {
            let mut responses = Vec::new();
            for request in requests {
                responses.extend(respond(request, client, server, subscriptions, &mut started).await);
            }
            (!responses.is_empty()).then_some(Value::Array(responses))
        }
    };
    let alive = match response {
        Some(response) => send(sender, &response).await,
        None => true,
    };
    // After the response: a client knows its subscription before it hears from it.
    for (id, subscription) in started {
        let forward = forward(id, subscription, server.controller.clone(), sender.clone());
        subscriptions.handles.insert(id, subscriptions.tasks.spawn(forward));
    }
    alive
}

async fn respond(
    request: Request,
    client: Client,
    server: &Server,
    subscriptions: &mut Subscriptions,
    started: &mut Vec<(u64, Subscription)>,
) -> Option<Value> {
    let result = match request.call {
        Ok(prepared) => server.call(prepared, client).await,
        Err(error) => Err(error),
    };
    let result = match result {
        Ok(Outcome::Value(value)) => Ok(value),
        Ok(Outcome::Subscription(_)) if subscriptions.handles.len() + started.len() >= SUBSCRIPTIONS_MAX => {
            let message = format!("a connection has at most {SUBSCRIPTIONS_MAX} subscriptions");
            Err(RpcError::new(ErrorKind::Exhausted, "", message))
        }
        Ok(Outcome::Subscription(subscription)) => {
            static NEXT: AtomicU64 = AtomicU64::new(1);
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            started.push((id, subscription));
            Ok(json!(id))
        }
        Ok(Outcome::Unsubscribe(id)) if subscriptions.end(id) => Ok(json!(true)),
        Ok(Outcome::Unsubscribe(id)) => {
            let message = format!("this connection has no subscription {id}");
            Err(RpcError::new(ErrorKind::NotFound, "subscription", message))
        }
        Err(error) => Err(error),
    };
    (!request.notification).then(|| Response { id: request.id, result }.to_value())
}

async fn send(sender: &mpsc::Sender<Vec<u8>>, value: &Value) -> bool {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    sender.send(line).await.is_ok()
}

/// Sends a subscription's notifications until nobody reads them.
async fn forward(id: u64, subscription: Subscription, controller: Arc<Controller>, sender: mpsc::Sender<Vec<u8>>) {
    let Subscription { notification, first, mut feed } = subscription;
    let wrap = |result: Value| json!({"jsonrpc": "2.0", "method": notification, "params": {"subscription": id, "result": result}});
    for value in first {
        if !send(&sender, &wrap(value)).await {
            return;
        }
    }
    while let Some(value) = next(&mut feed, &controller).await {
        if !send(&sender, &wrap(value)).await {
            return;
        }
    }
}

/// The next notification; `None` when the daemon stops.
pub async fn next(feed: &mut Feed, controller: &Controller) -> Option<Value> {
    loop {
        let missed = match feed {
            Feed::Events(events, filter) => match events.recv().await {
                Ok(event) if filter.wants(&event) => return Some(json!(*event)),
                Ok(_) => continue,
                Err(RecvError::Lagged(count)) => count,
                Err(RecvError::Closed) => return None,
            },
            Feed::Flows { feed, selection, node } => match feed.recv().await {
                Ok(entry) => match selection.pick(&entry, node) {
                    Some(event) => return Some(json!(event)),
                    None => continue,
                },
                Err(RecvError::Lagged(count)) => {
                    return Some(json!(controller.parts.fabric.flow_log().missed(count, node)));
                }
                Err(RecvError::Closed) => return None,
            },
            Feed::Objects { changes, after, selection } => match changes.recv().await {
                Ok(change) if change.revision > *after && selection.wants(&change.object.key) => {
                    return Some(object::change_json(&change));
                }
                Ok(_) => continue,
                Err(RecvError::Lagged(count)) => count,
                Err(RecvError::Closed) => return None,
            },
            Feed::Capture(capture) => return capture.next().await,
        };
        controller.parts.events.count_lost(missed);
        return Some(json!({"type": "LOST", "lost": missed}));
    }
}

/// A line was longer than this.
struct TooLong(usize);

/// Lines of a stream, each bounded.
struct Lines {
    buffer: Vec<u8>,
    /// Octets of `buffer` that hold no line break.
    searched: usize,
    limit: usize,
}

impl Lines {
    /// The next line without its break; `None` at the end. Octets after the last break are a line too. Cancel safe.
    async fn next(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>, TooLong> {
        loop {
            if let Some(position) = self.buffer[self.searched..].iter().position(|octet| *octet == b'\n') {
                let rest = self.buffer.split_off(self.searched + position + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.limit {
                return Err(TooLong(self.limit));
            }
            self.buffer.reserve(8 << 10);
            match reader.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) if self.buffer.is_empty() => return Ok(None),
                Ok(0) | Err(_) => {
                    self.searched = 0;
                    return Ok(Some(std::mem::take(&mut self.buffer)));
                }
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_split_and_bounded() {
        let mut input: &[u8] = b"one\n\ntwo\nrest";
        let mut lines = Lines { buffer: Vec::new(), searched: 0, limit: 16 };
        let mut all = Vec::new();
        while let Ok(Some(line)) = lines.next(&mut input).await {
            all.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(all, ["one\n", "\n", "two\n", "rest"]);

        let long = vec![b'x'; 100_000];
        let mut lines = Lines { buffer: Vec::new(), searched: 0, limit: 16 };
        assert!(matches!(lines.next(&mut &*long).await, Err(TooLong(16))));
    }
}
