//! DNS at one network's gateway: UDP and TCP port 53 behind its internal port. Nobody else reaches it, so it is no open
//! resolver (SEMANTICS DN10); what reaches it is hostile all the same.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{ALIASES_MAX, Answer, answer};
use super::counters::{Counters, count};
use super::exchange::Question;
use super::forward::Forwarder;
use super::message::{Origin, QUERY_LEN_MAX, Request, Response, Unreadable};
use super::zone::Zone;
use crate::services::sockets::{Listener, Peer, Stream, UdpSocket};

/// TCP connections of one network.
const CONNECTIONS_MAX: usize = 128;
/// TCP connections of one guest.
const CONNECTIONS_PER_PEER_MAX: usize = 16;
/// Queries that wait for upstream servers and came over UDP, of one network.
const LATER_MAX: usize = 1_024;
/// How long a TCP connection may be silent between queries (RFC 7766 §6.2.3).
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long a query or an answer may take on a TCP connection once it has begun.
const TRANSFER_MAX: Duration = Duration::from_secs(5);
/// How long a TCP connection may last.
const CONNECTION_MAX: Duration = Duration::from_secs(300);
/// Datagrams that are answered before other tasks get their turn.
const BATCH: usize = 32;

/// The server of one network.
pub struct Server {
    /// Its names.
    pub zone: ArcSwap<Zone>,
    /// For all other names.
    pub forwarder: Arc<Forwarder>,
    /// What is counted.
    pub counters: Arc<Counters>,
}

/// What becomes of a query.
pub enum Handled {
    /// This is the answer, and where it comes from.
    Reply(Vec<u8>, Origin),
    /// Somebody else has to be asked.
    Later(Box<Pending>),
    /// It was none.
    Nothing,
}

/// A query for which somebody else has to be asked.
pub struct Pending {
    request: Request,
    so_far: Response,
    question: Question,
    most: usize,
}

impl Server {
    /// Answers a query as far as that goes without waiting. `udp`: the answer must fit what the client can take.
    pub fn handle(&self, octets: &[u8], udp: bool) -> Handled {
        let request = match Request::read(octets) {
            Ok(request) => request,
            Err(Unreadable::Ignored) => {
                count(&self.counters.ignored);
                return Handled::Nothing;
            }
            Err(Unreadable::Refused(reply, code)) => {
                self.counters.answered(Origin::Special, code);
                return Handled::Reply(reply, Origin::Special);
            }
        };
        let most = if udp { request.payload_max() } else { usize::from(u16::MAX) };
        match self.look(&request) {
            Answer::Here(response) => {
                let origin = response.origin;
                Handled::Reply(self.finish(&request, response, most), origin)
            }
            Answer::Ask(so_far, query) => {
                let question = Question {
                    query,
                    dnssec_ok: request.edns.is_some_and(|options| options.dnssec_ok),
                    checking_disabled: request.checking_disabled,
                };
                Handled::Later(Box::new(Pending { request, so_far, question, most }))
            }
        }
    }

    /// Zone and cache.
    fn look(&self, request: &Request) -> Answer {
        match answer(&self.zone.load(), request) {
            Answer::Ask(so_far, query) => {
                let question = Question {
                    query: query.clone(),
                    dnssec_ok: request.edns.is_some_and(|options| options.dnssec_ok),
                    checking_disabled: request.checking_disabled,
                };
                match self.forwarder.cached_answer(&question) {
                    Some(cached) => Answer::Here(joined(so_far, cached)),
                    None => Answer::Ask(so_far, query),
                }
            }
            here => here,
        }
    }

    /// Asks somebody else. Also says who answered.
    pub async fn ask(&self, port: &Arc<str>, pending: Pending) -> (Vec<u8>, Option<std::net::SocketAddr>) {
        let Pending { request, so_far, question, most } = pending;
        let (response, server) = self.forwarder.ask(port, question).await;
        (self.finish(&request, joined(so_far, response), most), server)
    }

    fn finish(&self, request: &Request, response: Response, most: usize) -> Vec<u8> {
        self.counters.answered(response.origin, response.code);
        let octets = response.encode(request, most);
        if octets.get(2).is_some_and(|flags| flags & 2 != 0) {
            count(&self.counters.truncated);
        }
        octets
    }

    /// Whose limits count for a guest: its port, or, while the port is not known yet, its address.
    fn port_of(&self, peer: &Peer) -> Arc<str> {
        let zone = self.zone.load();
        match zone.owner(peer.address) {
            Some(port) => port.into(),
            None => format!("{}/{}", peer.network, peer.address).into(),
        }
    }
}

/// An alias that led elsewhere, with what was found there.
fn joined(mut so_far: Response, rest: Response) -> Response {
    if so_far.answers.is_empty() {
        return rest;
    }
    so_far.code = rest.code;
    so_far.origin = rest.origin;
    so_far.answers.extend(rest.answers);
    so_far.authorities.extend(rest.authorities);
    so_far
}

const _: () = assert!(ALIASES_MAX > 0 && QUERY_LEN_MAX <= u16::MAX as usize);

/// Answers datagrams until the network is gone.
pub async fn serve_udp(server: Arc<Server>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(LATER_MAX));
    let mut later = JoinSet::new();
    let mut buffer = vec![0; QUERY_LEN_MAX];
    let mut taken = 0;
    while let Ok(datagram) = socket.recv_from(&mut buffer).await {
        taken += 1;
        if taken % BATCH == 0 {
            while later.try_join_next().is_some() {}
            // A guest that floods us must not keep the runtime from everybody else.
            tokio::task::yield_now().await;
        }
        let (peer, local) = (datagram.peer, datagram.local);
        let to = (peer.address, peer.port).into();
        match server.handle(&buffer[..datagram.len], true) {
            Handled::Reply(reply, _) => send(&server, &socket, &reply, local, to),
            Handled::Nothing => {}
            Handled::Later(pending) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    count(&server.counters.limited);
                    let reply = server.refuse(*pending);
                    send(&server, &socket, &reply, local, to);
                    continue;
                };
                let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                later.spawn(async move {
                    let (reply, _) = server.ask(&server.port_of(&peer), *pending).await;
                    send(&server, &socket, &reply, local, to);
                    drop(place);
                });
            }
        }
    }
}

impl Server {
    /// The answer to a query for which there is no room.
    fn refuse(&self, pending: Pending) -> Vec<u8> {
        let failed = Response::code(Origin::Failed, ResponseCode::ServFail);
        self.finish(&pending.request, joined(pending.so_far, failed), pending.most)
    }
}

fn send(server: &Server, socket: &UdpSocket, reply: &[u8], from: std::net::IpAddr, to: std::net::SocketAddr) {
    if socket.try_send_to(reply, from, to).is_err() {
        count(&server.counters.lost);
    }
}

/// Accepts connections until the network is gone.
pub async fn serve_tcp(server: Arc<Server>, listener: Listener) {
    let mut connections = JoinSet::new();
    let mut by_peer = std::collections::HashMap::<_, Arc<Semaphore>>::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => return,
            },
            Some(_) = connections.join_next() => {
                by_peer.retain(|_, places| places.available_permits() < CONNECTIONS_PER_PEER_MAX);
                continue;
            }
        };
        let port = server.port_of(&peer);
        let places =
            by_peer.entry(Arc::clone(&port)).or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_PER_PEER_MAX)));
        let place = Arc::clone(places).try_acquire_owned();
        let Some(place) = place.ok().filter(|_| connections.len() < CONNECTIONS_MAX) else {
            count(&server.counters.connections_cut);
            continue;
        };
        let server = Arc::clone(&server);
        connections.spawn(async move {
            let ended = timeout(CONNECTION_MAX, serve_stream(&server, stream, &port)).await;
            if !matches!(ended, Ok(true)) {
                count(&server.counters.connections_cut);
            }
            drop(place);
        });
    }
}

/// Answers the queries of a connection, one after the other. Returns whether the client ended it in order.
async fn serve_stream(server: &Server, mut stream: Stream, port: &Arc<str>) -> bool {
    let mut query = vec![0; QUERY_LEN_MAX];
    loop {
        let mut prefix = [0; 2];
        match timeout(IDLE_MAX, stream.read(&mut prefix[..1])).await {
            Ok(Ok(0)) => return true,
            Ok(Ok(_)) => {}
            _ => return false,
        }
        let received = timeout(TRANSFER_MAX, async {
            stream.read_exact(&mut prefix[1..]).await.ok()?;
            let len = usize::from(u16::from_be_bytes(prefix));
            // More than any query has: the client has lost its place, or means no good.
            let query = query.get_mut(..len)?;
            stream.read_exact(query).await.ok()?;
            Some(len)
        });
        let Ok(Some(len)) = received.await else { return false };
        let reply = match server.handle(&query[..len], false) {
            Handled::Reply(reply, _) => reply,
            Handled::Later(pending) => server.ask(port, *pending).await.0,
            Handled::Nothing => return false,
        };
        let Ok(len) = u16::try_from(reply.len()) else { return false };
        let framed = [&len.to_be_bytes()[..], &reply].concat();
        if !matches!(timeout(TRANSFER_MAX, stream.write_all(&framed)).await, Ok(Ok(()))) {
            return false;
        }
    }
}
