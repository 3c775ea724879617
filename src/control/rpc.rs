//! JSON-RPC 2.0: from octets to a checked request, and from a result to octets. Nothing here has side effects, so that
//! a request is refused before anything happens.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{ErrorKind, RpcError};
use super::method::{self, Prepared};

/// Octets of one line or HTTP body on the control socket: room for a large folder of YAML.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;

/// As [`REQUEST_BYTES_MAX`], on the read-only socket.
pub const REQUEST_BYTES_MAX_OBSERVE: usize = 64 << 10;

/// Requests of one batch.
pub const BATCH_MAX: usize = 256;

/// `id` of a request. Fractions and `null` are not accepted: an answer could not be told from another.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

/// A response.
#[derive(Clone, PartialEq, Debug)]
pub struct Response {
    /// That of the request; none where it could not be read.
    pub id: Option<Id>,
    /// What came of it.
    pub result: Result<Value, RpcError>,
}

impl Response {
    /// As JSON.
    pub fn to_value(&self) -> Value {
        match &self.result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": self.id, "result": result}),
            Err(error) => json!({"jsonrpc": "2.0", "id": self.id, "error": error}),
        }
    }
}

/// A request that may be called, or the error to answer with.
pub struct Request {
    /// None for a notification: it gets no response.
    pub id: Option<Id>,
    /// The method with its checked parameters.
    pub call: Result<Prepared, RpcError>,
    /// Whether it is a notification, which gets no response even if it fails.
    pub notification: bool,
}

/// What one line or body holds.
pub enum Incoming {
    /// A request.
    One(Request),
    /// Several; answered by one array.
    Batch(Vec<Request>),
}

/// Reads one line or HTTP body. Never fails: what cannot be read is a request that is answered by its error.
pub fn parse(octets: &[u8]) -> Incoming {
    let value: Value = match serde_json::from_slice(octets) {
        Ok(value) => value,
        Err(error) => {
            let error = RpcError::new(ErrorKind::ParseError, "", format!("this is not JSON: {error}"));
            return Incoming::One(refused(None, error.help("send one JSON-RPC 2.0 request a line")));
        }
    };
    match value {
        Value::Array(items) if items.is_empty() || items.len() > BATCH_MAX => {
            let message = format!("a batch has 1 to {BATCH_MAX} requests, not {}", items.len());
            Incoming::One(refused(None, RpcError::new(ErrorKind::InvalidRequest, "", message)))
        }
        Value::Array(items) => Incoming::Batch(items.into_iter().map(request).collect()),
        value => Incoming::One(request(value)),
    }
}

fn refused(id: Option<Id>, error: RpcError) -> Request {
    Request { id, call: Err(error), notification: false }
}

fn request(value: Value) -> Request {
    let Value::Object(mut fields) = value else {
        return refused(None, RpcError::new(ErrorKind::InvalidRequest, "", "a request is a JSON object"));
    };
    let id = match fields.remove("id") {
        None => None,
        Some(id) => match serde_json::from_value::<Id>(id) {
            Ok(id) => Some(id),
            Err(_) => {
                let message = "id must be a whole number or text";
                return refused(None, RpcError::new(ErrorKind::InvalidRequest, "id", message));
            }
        },
    };
    match envelope(fields) {
        Ok((name, params)) => Request { notification: id.is_none(), id, call: method::prepare(&name, params) },
        Err(error) => refused(id, error),
    }
}

/// `method` and `params` of a request.
fn envelope(mut fields: Map<String, Value>) -> Result<(String, Value), RpcError> {
    let invalid = |field: &str, message: &str| RpcError::new(ErrorKind::InvalidRequest, field, message);
    if fields.remove("jsonrpc").as_ref().and_then(Value::as_str) != Some("2.0") {
        return Err(invalid("jsonrpc", "jsonrpc must be \"2.0\""));
    }
    let Some(Value::String(name)) = fields.remove("method") else {
        return Err(invalid("method", "method must be the name of a method").help("see the method rpc.discover"));
    };
    let params = match fields.remove("params") {
        None => Value::Object(Map::new()),
        Some(params @ Value::Object(_)) => params,
        Some(_) => return Err(invalid("params", "params must be an object: parameters have names")),
    };
    match fields.keys().next() {
        Some(field) => Err(invalid(field, &format!("a request has no field {field:?}"))),
        None => Ok((name, params)),
    }
}

/// Everything that octets from a client go through before a method runs. For fuzzing.
pub fn fuzz_rpc(octets: &[u8]) {
    for line in octets.split(|octet| *octet == b'\n') {
        let requests = match parse(line) {
            Incoming::One(request) => vec![request],
            Incoming::Batch(requests) => requests,
        };
        for request in requests {
            let result = match request.call {
                Ok(prepared) => Ok(json!(prepared.method.name)),
                Err(error) => Err(error),
            };
            let response = Response { id: request.id, result }.to_value();
            assert!(response.get("result").is_some() != response.get("error").is_some());
            if let Some(error) = response.get("error") {
                assert!(error["data"]["kind"].is_string() && error["data"]["field"].is_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error_of(text: &str) -> RpcError {
        match parse(text.as_bytes()) {
            Incoming::One(request) => request.call.err().expect(text),
            Incoming::Batch(_) => panic!("{text} is not one request"),
        }
    }

    #[test]
    fn malformed_requests_are_refused_with_the_field() {
        for (text, kind, field) in [
            ("{", ErrorKind::ParseError, ""),
            ("nonsense", ErrorKind::ParseError, ""),
            ("[]", ErrorKind::InvalidRequest, ""),
            ("7", ErrorKind::InvalidRequest, ""),
            (r#"{"id":1,"method":"server.hello"}"#, ErrorKind::InvalidRequest, "jsonrpc"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"server.hello"}"#, ErrorKind::InvalidRequest, "jsonrpc"),
            (r#"{"jsonrpc":"2.0","id":1}"#, ErrorKind::InvalidRequest, "method"),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"server.hello"}"#, ErrorKind::InvalidRequest, "id"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"server.hello","params":[1]}"#, ErrorKind::InvalidRequest, "params"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"server.hello","extra":1}"#, ErrorKind::InvalidRequest, "extra"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"port.frobnicate"}"#, ErrorKind::MethodNotFound, "method"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"port.get","params":{}}"#, ErrorKind::InvalidParams, "name"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"port.get","params":{"name":1}}"#, ErrorKind::InvalidParams, "name"),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"port.get","params":{"name":"a","nmae":"b"}}"#,
                ErrorKind::InvalidParams,
                "nmae",
            ),
        ] {
            let error = error_of(text);
            assert_eq!((error.data.kind, error.data.field.as_str()), (kind, field), "{text}: {error}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_the_end() {
        let text = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(error_of(&text).data.kind, ErrorKind::ParseError);
    }

    #[test]
    fn a_request_without_id_is_a_notification() {
        let Incoming::One(request) = parse(br#"{"jsonrpc":"2.0","method":"server.hello"}"#) else { panic!() };
        assert!(request.notification && request.call.is_ok());
        let text = r#"[{"jsonrpc":"2.0","id":"a","method":"server.hello"},{"jsonrpc":"2.0","id":2,"method":"x"},3]"#;
        let Incoming::Batch(requests) = parse(text.as_bytes()) else { panic!() };
        assert_eq!(requests.iter().map(|request| request.call.is_ok()).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(requests[0].id, Some(Id::Text("a".into())));
    }

    /// Requests of every kind, for mutation.
    const CORPUS: &[&str] = &[
        r#"{"jsonrpc":"2.0","id":1,"method":"server.hello","params":{"client":"mytool/1.0"}}"#,
        r#"{"jsonrpc":"2.0","id":"x","method":"port.add","params":{"namespace":"shop","name":"web-0","labels":{"app":"web"}}}"#,
        r#"{"jsonrpc":"2.0","id":2,"method":"port.add","params":{"name":"c","tap":"hw0","addresses":["10.64.0.9"],"mayExist":true}}"#,
        r#"{"jsonrpc":"2.0","id":3,"method":"port.setLabels","params":{"name":"a","labels":{"a":null,"b":"c"}}}"#,
        r#"{"jsonrpc":"2.0","id":4,"method":"port.attachArgs","params":{"name":"a","vmm":"cloud-hypervisor","incoming":true}}"#,
        r#"{"jsonrpc":"2.0","id":5,"method":"object.apply","params":{"sources":[{"name":"x","text":"kind: Port"}],"dryRun":true}}"#,
        r#"{"jsonrpc":"2.0","id":6,"method":"object.delete","params":{"kind":"port","name":"a","ifExists":false}}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"event.subscribe","params":{"last":5,"filter":{"types":["PortFaulted"],"ips":["::1"]}}}"#,
        r#"{"jsonrpc":"2.0","id":9,"method":"flow.subscribe","params":{"since":"2026-11-23T15:30:01Z","filter":{"verdict":["DROPPED"]}}}"#,
        r#"{"jsonrpc":"2.0","id":10,"method":"conntrack.list","params":{"filter":{"states":["opening"],"l4Ports":[80]},"limit":5}}"#,
        r#"{"jsonrpc":"2.0","id":11,"method":"policy.matrix","params":{"l4Port":5432,"protocol":"tcp"}}"#,
        r#"[{"jsonrpc":"2.0","id":8,"method":"rpc.discover"},{"jsonrpc":"2.0","method":"server.status"}]"#,
    ];

    #[test]
    fn the_corpus_is_understood() {
        for text in CORPUS {
            let requests = match parse(text.as_bytes()) {
                Incoming::One(request) => vec![request],
                Incoming::Batch(requests) => requests,
            };
            for request in requests {
                assert!(request.call.is_ok(), "{text}: {:?}", request.call.err());
            }
        }
    }

    /// Mutations of the corpus, seeded: the same every time.
    #[test]
    fn mutated_requests_never_bring_it_down() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below.max(1) as u64).unwrap()
        };
        let words = ["{", "}", "[", "]", ":", ",", "null", "\"", "\\u0000", "1e999", "-1", "\n", "true", "\u{fe}"];
        for round in 0..20_000 {
            let mut text = CORPUS[random(CORPUS.len())].as_bytes().to_vec();
            for _ in 0..=random(5) {
                let at = random(text.len());
                match random(5) {
                    0 => text.truncate(at),
                    1 => drop(text.splice(at..at, words[random(words.len())].bytes())),
                    2 => drop(text.drain(at..(at + random(16)).min(text.len()))),
                    3 => {
                        let other = CORPUS[random(CORPUS.len())].as_bytes();
                        let from = random(other.len());
                        drop(text.splice(at..at, other[from..(from + random(32)).min(other.len())].iter().copied()));
                    }
                    _ if !text.is_empty() => text[at] = u8::try_from(random(256)).unwrap(),
                    _ => {}
                }
            }
            let copy = text.clone();
            let result = std::panic::catch_unwind(|| fuzz_rpc(&copy));
            assert!(result.is_ok(), "round {round}: {}", String::from_utf8_lossy(&text));
        }
    }

    proptest! {
        #[test]
        fn no_octets_bring_it_down(octets in prop::collection::vec(any::<u8>(), 0..256)) {
            fuzz_rpc(&octets);
        }

        #[test]
        fn no_parameters_bring_it_down(index in 0..method::METHODS.len(), text in "[\\{\\[\\]\\}\":,a-z0-9 ]{0,64}") {
            let name = method::METHODS[index].name;
            fuzz_rpc(format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{name}","params":{text}}}"#).as_bytes());
        }
    }
}
