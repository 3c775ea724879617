//! Checks that say something, against servers of every kind: right, wrong, and hostile.

use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::http::{HeaderMap, HeaderValue, Response};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::check::{Check, Checks, Finding};
use super::{HealthCheck, HealthSpec, Target};
use crate::services::lab::Lab;
use crate::services::sockets::{Sockets, Stream};
use crate::services::testing::{A_V4, A_V6};

const LIMIT: Duration = Duration::from_secs(30);
const BOTH: [IpAddr; 2] = [IpAddr::V4(A_V4), IpAddr::V6(A_V6)];

fn target(address: IpAddr, l4: u16, timeout_ms: u32, check: HealthCheck) -> Target {
    let spec = HealthSpec { check, l4: None, interval_ms: 5_000, timeout_ms, rise: 2, fall: 3 };
    Target::new("default".into(), address, Some(l4), Arc::new(spec)).unwrap()
}

fn http(tls: bool, host: Option<&str>) -> HealthCheck {
    HealthCheck::Http { tls, path: "/healthz?full=1".into(), host: host.map(str::to_owned), statuses: 200..=399 }
}

fn grpc(service: &str) -> HealthCheck {
    HealthCheck::Grpc { service: service.into() }
}

/// Serves every connection to a port of the guest.
fn serve<F>(guest: &Sockets, port: u16, server: impl Fn(Stream) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = guest.listen("default", port).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(server(stream));
        }
    });
}

/// Reads a request's head.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(octet) => head.push(octet),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Asks once, and how long that took.
async fn once(lab: &Lab, target: &Target) -> (Finding, Duration) {
    let checks = Checks::new(lab.sockets.clone());
    let started = Instant::now();
    (timeout(LIMIT, checks.check(target, false)).await.expect("a check ends").finding, started.elapsed())
}

async fn finding(lab: &Lab, address: IpAddr, l4: u16, check: HealthCheck) -> Finding {
    once(lab, &target(address, l4, 5_000, check)).await.0
}

fn failed(text: &str) -> Finding {
    Err(text.to_owned().into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_asks_as_it_is_told_and_looks_at_the_status() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    let heard = Arc::new(Mutex::new(Vec::new()));
    for (port, status) in [(80, 200), (8080, 204), (8081, 302), (8082, 404), (8083, 503)] {
        let heard = Arc::clone(&heard);
        serve(&guest, port, move |mut stream| {
            let heard = Arc::clone(&heard);
            async move {
                let head = request(&mut stream).await;
                heard.lock().unwrap().push(head);
                let answer =
                    format!("HTTP/1.1 {status} Whatever\r\nLocation: /elsewhere\r\nContent-Length: 5\r\n\r\nhello");
                // What is more than the head is nobody's business: the connection is reset.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
    }
    for address in BOTH {
        assert_eq!(finding(&lab, address, 80, http(false, None)).await, Ok("status 200".into()));
        assert_eq!(finding(&lab, address, 8080, http(false, None)).await, Ok("status 204".into()));
        assert_eq!(finding(&lab, address, 8081, http(false, Some("shop.example"))).await, Ok("status 302".into()));
        assert_eq!(finding(&lab, address, 8082, http(false, None)).await, failed("status 404"));
        assert_eq!(finding(&lab, address, 8083, http(false, None)).await, failed("status 503"));
        assert_eq!(finding(&lab, address, 9, http(false, None)).await, failed("connection refused"));
        let heads = std::mem::take(&mut *heard.lock().unwrap());
        let bracketed = if address.is_ipv4() { address.to_string() } else { format!("[{address}]") };
        for (head, host) in heads.iter().zip([bracketed.clone(), format!("{bracketed}:8080"), "shop.example".into()]) {
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("get /healthz?full=1 http/1.1\r\n"), "{head}");
            assert!(head.contains(&format!("host: {host}\r\n")), "{head}");
            assert!(head.contains("user-agent: hostweave-health/") && head.contains("connection: close\r\n"), "{head}");
        }
    }
    let odd = HealthCheck::Http { tls: false, path: "/a b".into(), host: None, statuses: 200..=200 };
    let refused = finding(&lab, A_V4.into(), 80, odd).await.unwrap_err();
    assert!(refused.starts_with("path or host cannot be asked for"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_http_servers_cost_bounded_octets_and_time() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    async fn repeat(mut stream: Stream, first: &str, again: &str, pause: Duration) {
        request(&mut stream).await;
        let mut result = stream.write_all(first.as_bytes()).await;
        while result.is_ok() {
            sleep(pause).await;
            result = stream.write_all(again.as_bytes()).await;
        }
    }
    const OK: &str = "HTTP/1.1 200 OK\r\n";
    let (now, slow) = (Duration::ZERO, Duration::from_millis(40));
    let many: &'static str =
        "X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(9).leak();
    serve(&guest, 1, move |stream| repeat(stream, OK, many, now));
    serve(&guest, 2, move |stream| repeat(stream, OK, "X: y\r\n", now));
    serve(&guest, 3, move |stream| repeat(stream, OK, "X", slow));
    serve(&guest, 4, move |stream| repeat(stream, "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", many, now));
    serve(&guest, 5, |stream| async move {
        sleep(LIMIT).await;
        drop(stream);
    });
    serve(&guest, 6, |mut stream| async move { drop(request(&mut stream).await) });
    serve(&guest, 7, move |stream| repeat(stream, "", "\0\x01 nonsense \r\n", now));
    serve(&guest, 8, move |stream| repeat(stream, "", "HTTP/1.1 100 Continue\r\nX-Filler: aaaaaaaa\r\n\r\n", now));
    serve(&guest, 9, |mut stream| async move {
        request(&mut stream).await;
        // Answered, and never closed.
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
        sleep(LIMIT).await;
    });
    for address in BOTH {
        for (port, expected) in [
            (1, Err("HTTP: message head is too large")),
            // One limit or the other, as the pieces arrive.
            (2, Err("HTTP: ")),
            (3, Err("no HTTP response within 700ms")),
            (4, Ok("status 200")),
            (5, Err("no HTTP response within 700ms")),
            (6, Err("HTTP: connection closed before message completed")),
            (7, Err("HTTP: invalid HTTP version parsed")),
            (8, Err("HTTP: connection error: more than 65536 octets came, or in more than 512 pieces")),
            (9, Ok("status 200")),
        ] {
            let silent = matches!(port, 3 | 5);
            let timeout_ms = if silent { 700 } else { 20_000 };
            let (found, took) = once(&lab, &target(address, port, timeout_ms, http(false, None))).await;
            let found = found.as_deref().map_err(|text| if port == 2 { &text[..6] } else { text });
            assert_eq!(found, expected, "port {port}");
            assert!(!silent || took >= Duration::from_millis(700), "port {port}: {took:?}");
        }
    }
    // All of it is gone from the host's stack: as many connections again as it has room for.
    let check = target(A_V4.into(), 4, 5_000, http(false, None));
    for _ in 0..600 {
        assert_eq!(once(&lab, &check).await.0, Ok("status 200".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_take_connections_and_say_nothing_do_not_stop_others() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    serve(&guest, 80, |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    });
    let checks = Arc::new(Checks::new(lab.sockets.clone()));
    let ask = |address: IpAddr, timeout_ms| {
        let (checks, target) = (Arc::clone(&checks), target(address, 80, timeout_ms, http(false, None)));
        tokio::spawn(async move { checks.check(&target, false).await.finding })
    };
    // Nobody is there: 200 find a slot, the others learn that without one.
    let frozen: Vec<_> = (0..2_000).map(|index| ask([192, 0, 2, 20 + (index % 200) as u8].into(), 1_000)).collect();
    sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    for address in BOTH {
        assert_eq!(ask(address, 5_000).await.unwrap(), Ok("status 200".into()));
    }
    assert!(started.elapsed() < Duration::from_millis(4_000), "{:?}", started.elapsed());
    for check in frozen {
        let found = check.await.unwrap().unwrap_err();
        assert!(
            found.starts_with("no TCP connection within") || found.starts_with("no answer to a SYN within"),
            "{found}"
        );
    }
}

/// Their kernels accept, and nobody reads. Of both IP versions, for the stack has room for so many connections with one address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_backends_that_accept_do_not_delay_those_that_answer() {
    const FROZEN: usize = 600;
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    serve(&guest, 80, |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    });
    serve(&guest, 81, |stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let checks = Arc::new(Checks::new(lab.sockets.clone()));
    let ask = |address, port, silent| {
        // Far longer than the test: whoever waited for one of those would wait for all of it.
        let (checks, target) = (Arc::clone(&checks), target(address, port, 300_000, http(false, None)));
        tokio::spawn(async move { checks.check(&target, silent).await.finding })
    };
    let frozen: Vec<_> = (0..FROZEN).map(|number| ask(BOTH[number % 2], 81, true)).collect();
    // They have all that they may have.
    sleep(Duration::from_millis(500)).await;
    for address in [BOTH; 25].concat() {
        let answered = timeout(LIMIT, ask(address, 80, false)).await.expect("nobody waits for the frozen").unwrap();
        assert_eq!(answered, Ok("status 200".into()));
    }
    // The others wait for one of their kind to have had its time.
    assert!(frozen.iter().all(|check| !check.is_finished()));
    frozen.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A certificate that nobody signed, of no name that is asked for.
fn certificate() -> Arc<rustls::ServerConfig> {
    use base64::Engine;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let key = PrivatePkcs8KeyDer::from(decode(KEY));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = vec![CertificateDer::from(decode(CERTIFICATE))];
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key.into()).unwrap())
}

/// For tests only: P-256, PKCS#8.
const KEY: &str = "\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgfNi85Jyd0sKWV67xLg2rwLZELKjqk7SRkaFBMSTOkj2hRANCAAQN\
    lGWFTlsR7Cm7SrqbprbTYHc4AAKuIdCW8osimK9G9JvZa0CjaXn/hftXYCXdlgIav/+Jaa3eX9kza1ad7UV2";
const CERTIFICATE: &str = "\
    MIIBgzCCASmgAwIBAgIUZGGPbl0RIUf4MkwW3wzi4HJ+3aQwCgYIKoZIzj0EAwIwFjEUMBIGA1UEAwwLaGVhbHRoLnRlc3QwIBcN\
    MjYxMTI2MTYyNDQzWhgPMjEyNjExMDIxNjI0NDNaMBYxFDASBgNVBAMMC2hlYWx0aC50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0D\
    AQcDQgAEDZRlhU5bEewpu0q6m6a202B3OAACriHQlvKLIpivRvSb2WtAo2l5/4X7V2Al3ZYCGr//iWmt3l/ZM2tWne1FdqNTMFEw\
    HQYDVR0OBBYEFM73wQ1d7RFtJk833d0m644kwpk5MB8GA1UdIwQYMBaAFM73wQ1d7RFtJk833d0m644kwpk5MA8GA1UdEwEB/wQF\
    MAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgHTlGBSRtG7tzxGdz+2SHrS36LkwhVaop1rL43oT0W1oCIQCdFT0kKH+5JjbQTc8vrtny\
    kv9khSS9o/UGVwCM/Q2IRQ==";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_whatever_the_certificate() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    let acceptor = tokio_rustls::TlsAcceptor::from(certificate());
    let names = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&names);
    serve(&guest, 443, move |stream| {
        let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let head = request(&mut stream).await;
            seen.lock().unwrap().push((name, head.to_ascii_lowercase()));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
            sleep(LIMIT).await;
        }
    });
    // No TLS; silence; an endless handshake.
    serve(&guest, 80, |mut stream| async move { drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await) });
    serve(&guest, 81, |stream| async move {
        sleep(LIMIT).await;
        drop(stream);
    });
    serve(&guest, 82, |mut stream| async move {
        // Change cipher spec, allowed in TLS 1.3's middlebox mode (RFC 8446 §5).
        while stream.write_all(&[20, 3, 3, 0, 1, 1]).await.is_ok() {}
    });
    for address in BOTH {
        assert_eq!(finding(&lab, address, 443, http(true, Some("shop.example"))).await, Ok("status 200".into()));
        assert_eq!(finding(&lab, address, 443, http(true, None)).await, Ok("status 200".into()));
        let seen = std::mem::take(&mut *names.lock().unwrap());
        assert_eq!((seen[0].0.as_deref(), seen[1].0.as_deref()), (Some("shop.example"), None));
        assert!(seen[0].1.contains("host: shop.example\r\n"), "{seen:?}");
        let text = finding(&lab, address, 80, http(true, None)).await.unwrap_err();
        assert!(text.starts_with("TLS: "), "{text}");
        let (found, took) = once(&lab, &target(address, 81, 300, http(true, None))).await;
        assert_eq!(found, failed("TLS handshake not finished within 300ms"));
        assert!(took >= Duration::from_millis(300));
        let (found, took) = once(&lab, &target(address, 82, 5_000, http(true, None))).await;
        assert!(found.is_err() && took < Duration::from_secs(4), "{found:?} after {took:?}");
    }
}

/// A gRPC server whose answers are the name of the service that is asked for.
async fn grpc_server(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(
            (&request.headers()["content-type"], &request.headers()["te"]),
            (&"application/grpc".parse().unwrap(), &"trailers".parse().unwrap())
        );
        tokio::spawn(async move {
            let question = request.into_body().data().await.unwrap().unwrap();
            let service = String::from_utf8(question.get(7..).unwrap_or_default().to_vec()).unwrap();
            let (headers, message, trailers): (&[_], &[u8], &[_]) = match &*service {
                "" | "up" => (&[], &[0, 0, 0, 0, 2, 8, 1], &[("grpc-status", "0")]),
                "down" => (&[], &[0, 0, 0, 0, 2, 8, 2], &[("grpc-status", "0")]),
                "unknown" => (&[("grpc-status", "5"), ("grpc-message", "unknown service")], &[], &[]),
                "late" => (&[], &[0, 0, 0, 0, 2, 8, 1], &[("grpc-status", "14"), ("grpc-message", "gone\u{7}")]),
                "empty" => (&[], &[], &[("grpc-status", "0")]),
                "compressed" => (&[], &[1, 0, 0, 0, 2, 8, 1], &[("grpc-status", "0")]),
                "short" => (&[], &[0, 0, 0, 0, 9, 8, 1], &[("grpc-status", "0")]),
                "broken" => (&[], &[0, 0, 0, 0, 2, 8, 0x80], &[("grpc-status", "0")]),
                "long" => (&[], &[0; 2_000], &[("grpc-status", "0")]),
                "endless" => (&[], &[0, 0, 0, 0, 2, 8, 1], &[]),
                other => panic!("{other}"),
            };
            let mut response = Response::builder().status(200).header("content-type", "application/grpc");
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            let mut body =
                respond.send_response(response.body(()).unwrap(), message.is_empty() && trailers.is_empty()).unwrap();
            if !message.is_empty() {
                body.send_data(Bytes::copy_from_slice(message), false).unwrap();
            }
            if service == "endless" {
                // Never any trailers.
                sleep(LIMIT).await;
            }
            if !trailers.is_empty() {
                let map = trailers.iter().map(|(name, value): &(&'static str, &str)| {
                    (name.parse().unwrap(), HeaderValue::from_str(&value.replace('\u{7}', "!")).unwrap())
                });
                body.send_trailers(HeaderMap::from_iter(map)).unwrap();
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_health_of_the_server_and_of_services() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    serve(&guest, 50051, grpc_server);
    for address in BOTH {
        for (service, expected) in [
            ("", Ok("SERVING")),
            ("up", Ok("SERVING")),
            ("down", Err("status NOT_SERVING")),
            ("unknown", Err("gRPC status 5 (NOT_FOUND): the server does not know this service")),
            ("late", Err("gRPC status 14 gone!")),
            ("empty", Err("the server ended without an answer")),
            ("compressed", Err("a compressed answer, which was not asked for")),
            ("short", Err("an answer of another length than it says")),
            ("broken", Err("a malformed answer")),
            ("long", Err("an answer of more than 1024 octets")),
        ] {
            let found = finding(&lab, address, 50051, grpc(service)).await;
            assert_eq!(found.as_deref().map_err(|text| &**text), expected, "{service}");
        }
        let (found, took) = once(&lab, &target(address, 50051, 400, grpc("endless"))).await;
        assert_eq!(found, failed("no gRPC response within 400ms"));
        assert!(took < Duration::from_secs(4));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_grpc_servers() {
    let lab = Lab::new();
    let guest = lab.guest(A_V4, A_V6);
    // HTTP/1.1; no gRPC behind HTTP/2; frames without end; silence; an end.
    serve(&guest, 1, |mut stream| async move {
        drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        sleep(LIMIT).await;
    });
    serve(&guest, 2, |stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_response(Response::builder().status(404).body(()).unwrap(), true).unwrap();
        }
    });
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    serve(&guest, 3, |mut stream| async move {
        // PING (RFC 9113 §6.7), each of which wants an answer; nobody reads them.
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let mut result = stream.write_all(&SETTINGS).await;
        while result.is_ok() {
            result = stream.write_all(&ping.repeat(50)).await;
        }
    });
    serve(&guest, 4, |mut stream| async move {
        // HEADERS without END_HEADERS, then CONTINUATION for ever.
        drop(stream.write_all(&SETTINGS).await);
        let mut result = stream.write_all(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88]).await;
        let continuation = [&[0, 0x40, 0, 9, 0, 0, 0, 0, 1][..], &[0x82; 0x4000]].concat();
        while result.is_ok() {
            result = stream.write_all(&continuation).await;
        }
    });
    serve(&guest, 5, |stream| async move {
        sleep(LIMIT).await;
        drop(stream);
    });
    serve(&guest, 6, |stream| async move { drop(stream) });
    for address in BOTH {
        for (port, start) in [
            (1, "HTTP/2: "),
            (2, "HTTP status 404, not a gRPC server"),
            (3, ""),
            (4, "HTTP/2: "),
            (5, "no gRPC response within 1s"),
            (6, "HTTP/2: "),
        ] {
            let (found, took) = once(&lab, &target(address, port, 1_000, grpc(""))).await;
            let text = found.unwrap_err();
            assert!(text.starts_with(start), "port {port}: {text}");
            assert!(took < Duration::from_secs(4), "port {port}: {took:?}");
        }
    }
}
