//! What is answered to a request for metadata. No I/O, no clock.
//!
//! EC2's tree needs a token, which only a `PUT` gives: a program in the guest that can be talked into a `GET` reads nothing.
//! cloud-init's NoCloud knows no tokens; its files are given to cloud-init itself, by its `User-Agent`, which such a program
//! does not send, and to whoever has a token. Requests that went through a proxy, or whose `Host` is somebody else (DNS
//! rebinding), are refused.

use std::net::IpAddr;

use hostweave_switch::tables::{METADATA_V4, METADATA_V6};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, FORWARDED, HOST, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::directory::Workload;
use super::nocloud;
use super::spec::Tokens;
use super::token::{Key, TTL_S};
use super::tree::{Tree, VERSIONS};

/// What goes back.
pub type Answer = Response<Full<Bytes>>;

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How cloud-init begins its `User-Agent`.
const CLOUD_INIT: &[u8] = b"Cloud-Init/";

const PLAIN: &str = "text/plain; charset=utf-8";
const OCTETS: &str = "application/octet-stream";

const NEEDS_TOKEN: &str = "a token is needed: PUT /latest/api/token with the header X-aws-ec2-metadata-token-ttl-seconds (1 to \
                           21600), then send it as X-aws-ec2-metadata-token\n";

/// The answer to a request of `workload` at `now_s`, a clock in seconds that only goes forward.
pub fn answer(workload: &Workload<'_>, key: &Key, now_s: u64, request: &Parts) -> Answer {
    if workload.port.metadata.disabled {
        return refuse(StatusCode::FORBIDDEN, "metadata is switched off for this port\n");
    }
    if request.headers.contains_key(FORWARDED_FOR) || request.headers.contains_key(FORWARDED) {
        return refuse(StatusCode::FORBIDDEN, "metadata is not given to proxies\n");
    }
    if !is_for_us(request) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "this is 169.254.169.254, and no other host\n");
    }
    let path: Vec<&str> = request.uri.path().split('/').filter(|part| !part.is_empty()).collect();
    if path == ["latest", "api", "token"] {
        return issue(workload, key, now_s, request);
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        return not_allowed("GET, HEAD");
    }
    let file = match path[..] {
        ["nocloud", file] | [file] if nocloud::FILES.contains(&file) => Some(file),
        _ => None,
    };
    if file.is_none() && path.first().is_some_and(|version| !VERSIONS.contains(version)) {
        return refuse(StatusCode::NOT_FOUND, "there is nothing here; see /latest/meta-data/ and /nocloud/meta-data\n");
    }
    if !may_read(workload, key, now_s, request, file.is_some()) {
        return refuse(StatusCode::UNAUTHORIZED, NEEDS_TOKEN);
    }
    let found = match (file, &path[..]) {
        (Some(file), _) => nocloud::read(workload, file).map(|octets| (octets, content_type(file))),
        (None, path) => ec2(workload, path),
    };
    match found {
        Some((octets, kind)) => reply(StatusCode::OK, kind, octets),
        None => refuse(StatusCode::NOT_FOUND, "there is nothing here\n"),
    }
}

/// EC2's tree: versions, and what each has.
fn ec2(workload: &Workload<'_>, path: &[&str]) -> Option<(Bytes, &'static str)> {
    let text = match path {
        [] => VERSIONS.join("\n"),
        [_] => "dynamic\nmeta-data\nuser-data".to_owned(),
        [_, "user-data"] => {
            let data = &workload.port.metadata.user_data;
            return (!data.is_empty()).then(|| (Bytes::copy_from_slice(data), OCTETS));
        }
        [_, "meta-data", path @ ..] => Tree::meta_data(workload).read(path)?,
        [_, "dynamic", path @ ..] => Tree::dynamic(workload).read(path)?,
        _ => return None,
    };
    Some((text.into(), PLAIN))
}

fn content_type(file: &str) -> &'static str {
    if file == "user-data" { OCTETS } else { PLAIN }
}

/// Whether the request may read: with a token, or where none is needed. A wrong token is always refused, as EC2 does.
fn may_read(workload: &Workload<'_>, key: &Key, now_s: u64, request: &Parts, nocloud: bool) -> bool {
    match request.headers.get(TOKEN) {
        Some(token) => key.accepts(workload.port.uid, now_s, token.as_bytes()),
        None => {
            let agent = request.headers.get(hyper::header::USER_AGENT);
            let cloud_init = agent.is_some_and(|agent| agent.as_bytes().starts_with(CLOUD_INIT));
            workload.tokens() == Tokens::Optional || (nocloud && cloud_init)
        }
    }
}

fn issue(workload: &Workload<'_>, key: &Key, now_s: u64, request: &Parts) -> Answer {
    if request.method != Method::PUT {
        return not_allowed("PUT");
    }
    let ttl = request.headers.get(TOKEN_TTL).and_then(|ttl| ttl.to_str().ok()?.trim().parse::<u64>().ok());
    let Some(ttl_s) = ttl.filter(|ttl| TTL_S.contains(ttl)) else {
        let hint = "the header X-aws-ec2-metadata-token-ttl-seconds must say for how long, 1 to 21600\n";
        return refuse(StatusCode::BAD_REQUEST, hint);
    };
    let mut answer = reply(StatusCode::OK, PLAIN, key.issue(workload.port.uid, now_s, ttl_s).into());
    answer.headers_mut().insert(TOKEN_TTL, HeaderValue::from(ttl_s));
    answer
}

/// Whether it is addressed to metadata, by address. A client may say nothing (HTTP/1.0).
fn is_for_us(request: &Parts) -> bool {
    let host = match (request.uri.authority(), request.headers.get(HOST)) {
        (Some(authority), _) => Some(authority.as_str()),
        (None, Some(host)) => Some(host.to_str().unwrap_or("?")),
        (None, None) => None,
    };
    host.is_none_or(|host| {
        let host = host.strip_suffix(":80").unwrap_or(host);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let ours = [IpAddr::V4(METADATA_V4), IpAddr::V6(METADATA_V6)];
        bare.parse().is_ok_and(|address| ours.contains(&address))
    })
}

/// The answer to whoever asks too often.
pub fn too_many() -> Answer {
    let mut answer = refuse(StatusCode::TOO_MANY_REQUESTS, "too many requests; try again in a second\n");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// The answer to an address that no port has (any more).
pub fn nobody() -> Answer {
    refuse(StatusCode::NOT_FOUND, "no port has this address\n")
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn refuse(status: StatusCode, why: &'static str) -> Answer {
    reply(status, PLAIN, Bytes::from_static(why.as_bytes()))
}

fn reply(status: StatusCode, kind: &'static str, octets: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(octets));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
