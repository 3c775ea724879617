//! The daemon and its control socket.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Daemon, Line, TWO_PORTS, http};

fn request(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
}

#[test]
fn addresses_and_objects_survive_a_restart_and_a_crash() {
    let mut daemon = Daemon::started();
    daemon.ok(&["port", "add", "shop/stored-0", "--label", "app=db"]);
    let before = daemon.json(&["port", "list", "-n", "shop"]);
    assert_eq!(before.as_array().unwrap().len(), 2);
    // A new port before the others in the file must not take their addresses.
    let more = TWO_PORTS.replace("name: file-0", "name: another");
    daemon.write("conf/05.yaml", more.rsplit("---").next().unwrap());
    assert_eq!(daemon.stop(), 0);
    for crash in [false, true] {
        daemon.start(&[]);
        let after = daemon.json(&["port", "list", "-n", "shop"]);
        for port in before.as_array().unwrap() {
            let same = after.as_array().unwrap().iter().find(|other| other["name"] == port["name"]).unwrap();
            for field in ["addresses", "mac", "uid", "labels"] {
                assert_eq!(same[field], port[field], "{field} of {}", port["name"]);
            }
        }
        if crash { daemon.kill() } else { assert_eq!(daemon.stop(), 0) }
    }
    // What a crash leaves behind does not stand in the way.
    assert!(daemon.control().exists());
    daemon.start(&[]);
}

#[test]
fn a_port_that_is_deleted_gives_its_address_back_and_comes_back_as_another() {
    let daemon = Daemon::started();
    let first = daemon.json(&["port", "add", "a"]);
    daemon.ok(&["port", "delete", "a"]);
    let second = daemon.json(&["port", "add", "a"]);
    assert_ne!(first["uid"], second["uid"]);
    assert!(daemon.path("run/ports/default.a.sock").exists());
    daemon.ok(&["port", "delete", "a"]);
    assert!(!daemon.path("run/ports/default.a.sock").exists());
}

#[test]
fn it_is_ready_fast_and_stops_without_leaving_sockets() {
    let mut daemon = Daemon::new();
    let started = Instant::now();
    daemon.start(&[]);
    // The limit is 100 ms to the first packet; this only notices if somebody adds a sleep.
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(daemon.stop(), 0);
    assert!(!daemon.control().exists() && !daemon.path("run/observe.sock").exists());
    assert!(!daemon.path("run/ports/shop.file-0.sock").exists());
}

#[test]
fn a_second_daemon_is_refused() {
    let daemon = Daemon::started();
    let done = daemon.fails_to_start(&[]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("another hostweave daemon runs here"), "{}", done.stderr);
    // The first one is not disturbed.
    daemon.ok(&["status"]);
}

#[test]
fn a_wrong_file_stops_the_start_with_its_line() {
    let daemon = Daemon::new();
    daemon.write("conf/10.yaml", &TWO_PORTS.replace("network: default", "netwrok: default"));
    let done = daemon.fails_to_start(&[]);
    assert_eq!(done.code, 5, "{}", done.stderr);
    assert!(done.stderr.contains("10.yaml:13:") && done.stderr.contains("did you mean network?"), "{}", done.stderr);
}

#[test]
fn a_reload_takes_over_what_is_right_and_refuses_what_is_wrong() {
    let daemon = Daemon::started();
    daemon.write("conf/10.yaml", &TWO_PORTS.replace("app: web", "app: changed"));
    daemon.signal(Signal::SIGHUP);
    let labels = || daemon.json(&["port", "get", "shop/file-0"])["labels"]["app"].clone();
    daemon.until("the file was read again", || labels() == "changed");

    daemon.write("conf/10.yaml", "kind: [");
    daemon.signal(Signal::SIGHUP);
    daemon.until("the failure is known", || daemon.cli(&["status"]).code == 1);
    assert_eq!(labels(), "changed");
    assert!(daemon.log().contains("10.yaml:1"), "{}", daemon.log());

    daemon.write("conf/10.yaml", TWO_PORTS);
    daemon.signal(Signal::SIGHUP);
    daemon.until("it is well again", || daemon.cli(&["status"]).code == 0);
    assert_eq!(labels(), "web");
}

#[test]
fn a_file_claims_a_stored_object_only_with_adopt() {
    let mut daemon = Daemon::started();
    daemon.ok(&["port", "add", "shop/stored-0"]);
    let uid = daemon.json(&["port", "get", "shop/stored-0"])["uid"].clone();
    assert_eq!(daemon.stop(), 0);
    daemon.write("conf/20.yaml", &TWO_PORTS.rsplit("---").next().unwrap().replace("file-0", "stored-0"));
    let done = daemon.fails_to_start(&[]);
    assert_eq!(done.code, 5);
    assert!(done.stderr.contains("--adopt") && done.stderr.contains("20.yaml"), "{}", done.stderr);
    daemon.start(&["--adopt"]);
    let port = daemon.json(&["port", "get", "shop/stored-0"]);
    assert_eq!(port["uid"], uid, "it is the same port");
    assert!(port["origin"].as_str().unwrap().contains("20.yaml"));
    // From now on the store does not have it.
    assert_eq!(daemon.stop(), 0);
    daemon.start(&[]);
}

#[test]
fn malformed_lines_are_answered_and_the_connection_lives() {
    let daemon = Daemon::started();
    let mut line = daemon.connect();
    for (text, code) in [
        ("{", -32700),
        ("[]", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"nothing\"}", -32601),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"port.add\",\"params\":{\"name\":\"x\",\"nmae\":1}}", -32602),
    ] {
        line.send(&format!("{text}\n"));
        let answer = line.receive().unwrap();
        assert_eq!(answer["error"]["code"], code, "{answer}");
        assert!(answer["error"]["data"]["field"].is_string(), "{answer}");
    }
    // Refused before any side effect.
    assert_eq!(line.call("port.get", json!({"name": "x"}))["error"]["code"], -32011);
    // Several at once, a notification among them, and white space between.
    line.send(&format!(
        "\n  [{},{{\"jsonrpc\":\"2.0\",\"method\":\"server.hello\"}}]\n",
        request("server.hello", &json!({}))
    ));
    let answer = line.receive().unwrap();
    assert_eq!(answer.as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer[0]["result"]["product"], "hostweave");
}

#[test]
fn what_is_too_long_ends_the_connection_and_nothing_else() {
    let daemon = Daemon::started();
    let mut line = Line::connect(&daemon.path("run/observe.sock"));
    line.send("{");
    line.send(&" ".repeat(70_000));
    let answer = line.receive().unwrap();
    assert_eq!(answer["error"]["code"], -32600, "{answer}");
    assert!(line.receive().is_none());
    daemon.ok(&["status"]);
}

#[test]
fn the_read_only_socket_refuses_changes() {
    let daemon = Daemon::started();
    let mut line = Line::connect(&daemon.path("run/observe.sock"));
    assert_eq!(line.call("port.add", json!({"name": "x"}))["error"]["code"], -32015);
    assert_eq!(line.call("port.list", json!({}))["result"]["ports"].as_array().unwrap().len(), 1);
    let (status, body) =
        http(&daemon.path("run/observe.sock"), "POST /rpc", &request("port.delete", &json!({"name": "x"})));
    assert_eq!(status, 200);
    assert!(body.contains("-32015"), "{body}");
}

#[test]
fn a_port_is_added_as_the_documentation_shows() {
    let daemon = Daemon::started();
    let mut line = daemon.connect();
    let params = json!({"namespace": "shop", "name": "web-0", "labels": {"app": "web"}});
    let answer = line.call("port.add", params.clone());
    let port = &answer["result"]["port"];
    assert_eq!(port["state"], "waiting-for-frontend", "{answer}");
    assert!(port["ip"].as_str().unwrap().starts_with("10.64.0."));
    assert!(port["socketPath"].as_str().unwrap().ends_with("/ports/shop.web-0.sock"));
    assert!(answer["result"]["revision"].is_u64());
    let again = line.call("port.add", params);
    assert_eq!(again["error"]["code"], -32010);
    assert_eq!(again["error"]["data"]["kind"], "AlreadyExists");
    assert_eq!(again["error"]["data"]["field"], "name");
    // Who asked is in the log.
    let uid = nix::unistd::getuid();
    let log = daemon.log();
    let logged = |line: &str| line.contains("method=\"port.add\"") && line.contains(&format!("uid={uid}"));
    assert!(log.lines().any(logged), "{log}");
}

#[test]
fn the_service_manager_is_told() {
    let mut daemon = Daemon::new();
    let socket = std::os::unix::net::UnixDatagram::bind(daemon.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut lines, patience) = (Vec::new(), std::time::Instant::now() + Duration::from_secs(60));
    // Messages of different origin may come in any order: what was read on the way counts.
    let mut told = |what: &str, times: usize| {
        let mut buffer = [0; 4096];
        while lines.iter().filter(|line| *line == what).count() < times {
            assert!(std::time::Instant::now() < patience, "{what} was not told {times} times: {lines:?}");
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
            lines.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
    };
    daemon.notify = Some(daemon.path("notify"));
    daemon.start(&[]);
    told("READY=1", 1);
    told("STATUS=1 ports, 0 degraded", 1);
    daemon.signal(Signal::SIGHUP);
    told("RELOADING=1", 1);
    told("READY=1", 2);
    assert_eq!(daemon.stop(), 0);
    told("STOPPING=1", 1);
}

#[test]
fn events_are_told_over_http() {
    use std::io::{BufRead, BufReader, Write};
    let daemon = Daemon::started();
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.control()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("HTTP/1.1 200 OK"));
    assert!(lines.by_ref().take_while(|line| !line.is_empty()).any(|line| line == "content-type: text/event-stream"));
    daemon.ok(&["port", "add", "new-0"]);
    // That the daemon has started may be told first.
    let data = lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned));
    let mut events = data.map(|data| serde_json::from_str::<Value>(&data).unwrap());
    let event = events.find(|event| event["type"] != "DaemonStarted").unwrap();
    assert_eq!((&event["type"], &event["name"]), (&json!("ObjectCreated"), &json!("new-0")));
}

#[test]
fn http_serves_metrics_health_objects_and_calls() {
    let daemon = Daemon::started();
    let get = |path: &str| http(&daemon.control(), &format!("GET {path}"), "");
    assert_eq!(get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get("/readyz").0, 200);
    let (status, text) = get("/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("hostweave_port_receive_packets_total{port=\"shop/file-0\"} 0"), "{text}");
    assert!(text.contains("hostweave_port_state{port=\"shop/file-0\",state=\"waiting-for-frontend\"} 1"), "{text}");
    assert!(text.ends_with("# EOF\n"));
    assert!(get("/openrpc.json").1.contains("port.attachArgs"));
    assert!(get("/v1/ports?selector=app%3Dweb").1.contains("file-0"));
    assert!(!get("/v1/ports?selector=app%3Ddb").1.contains("file-0"));
    assert!(get("/v1/ports/shop/file-0").1.contains("\"uid\""));
    assert_eq!(get("/v1/ports/shop/none").0, 404);
    assert_eq!(get("/v1/ports?frobnicate=1").0, 400);
    assert_eq!(get("/nothing").0, 404);
    assert_eq!(http(&daemon.control(), "DELETE /v1/ports/shop/file-0", "").0, 405);
    let (status, body) = http(&daemon.control(), "POST /rpc", &request("port.get", &json!({"name": "none"})));
    assert_eq!(status, 200);
    assert!(body.contains("-32011"), "{body}");
    assert!(http(&daemon.control(), "POST /rpc", &request("event.subscribe", &json!({}))).1.contains("-32016"));
}

#[test]
fn subscriptions_begin_with_what_is_and_go_on_with_what_happens() {
    let daemon = Daemon::started();
    let mut objects = daemon.connect();
    let id = objects.call("object.watch", json!({"kind": "port"}))["result"].clone();
    let first = objects.receive().unwrap();
    assert_eq!(first["method"], "object.event");
    assert_eq!(first["params"]["subscription"], id);
    assert_eq!(first["params"]["result"]["object"]["metadata"]["name"], "file-0");
    let synced = objects.receive().unwrap();
    assert_eq!(synced["params"]["result"]["type"], "SYNCED");

    let mut events = daemon.connect();
    events.call("event.subscribe", json!({"filter": {"types": ["ObjectCreated"]}}));
    daemon.ok(&["port", "add", "new-0"]);
    let added = objects.receive().unwrap();
    assert_eq!(added["params"]["result"]["type"], "ADDED");
    assert!(added["params"]["result"]["revision"].as_u64() > synced["params"]["result"]["revision"].as_u64());
    let event = events.receive().unwrap();
    assert_eq!(event["params"]["result"]["name"], "new-0");
    // A subscription does not keep the daemon from stopping.
    let mut daemon = daemon;
    assert_eq!(daemon.stop(), 0);
    assert!(objects.receive().is_none());
}

#[test]
fn two_writers_cannot_overwrite_each_other() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "a"]);
    let yaml = daemon.ok(&["get", "port", "a", "-o", "yaml"]);
    assert!(yaml.contains("resourceVersion"), "{yaml}");
    daemon.ok(&["port", "set-labels", "a", "app=web"]);
    let done = daemon.cli_with(&["apply", "-f", "-"], &yaml);
    assert_eq!(done.code, 5);
    assert!(done.stderr.contains("changed by somebody else"), "{}", done.stderr);
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let daemon = Daemon::started();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut line = daemon.connect();
                for port in 0..5 {
                    let answer = line.call("port.add", json!({"name": format!("p-{number}-{port}")}));
                    assert!(answer["result"]["port"]["ip"].is_string(), "{answer}");
                }
            });
        }
    });
    let ports = daemon.json(&["port", "list"]);
    let mut addresses: Vec<&str> = ports.as_array().unwrap().iter().map(|port| port["ip"].as_str().unwrap()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 40);
}
