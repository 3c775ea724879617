//! Requests and answers without a network: who gets what, with and without tokens.

use std::net::IpAddr;
use std::sync::Arc;

use hostweave_switch::MacAddr;
use hostweave_switch::tables::{Network, PortId};
use http_body_util::BodyExt;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use super::answer::{Answer, answer};
use super::directory::Directory;
use super::spec::{MetadataSpec, PortMetadata, Tokens};
use super::token::Key;
use crate::fabric::spec::{AttachSpec, BackendSpec, Desired, PortSpec};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEpk2wXxzXHVZxUJKbo9PYt8WQkFz0zKqGxVv0pO3K9c ops@example";
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "X-aws-ec2-metadata-token";

fn network(name: &str) -> Network {
    Network {
        v4: Some(("192.0.2.0/24".parse().unwrap(), "192.0.2.1".parse().unwrap())),
        v6: Some(("2001:db8:1::/64".parse().unwrap(), "2001:db8:1::1".parse().unwrap())),
        learning: true,
        internal: PortId(0),
        ..Network::bare(name, 1)
    }
}

fn port(network: &str, name: &str, n: u8, metadata: PortMetadata) -> PortSpec {
    PortSpec {
        uid: Uuid::from_u128((u128::from(n) << 60) | u128::from(network == "blue")),
        network: network.to_owned(),
        mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, n]),
        v4: vec![[192, 0, 2, n].into()],
        v6: vec![format!("2001:db8:1::{n:x}").parse().unwrap()],
        backend: BackendSpec::Tap { name: name.to_owned(), netns: None },
        metadata: Arc::new(metadata),
        ..PortSpec::bare("shop", name)
    }
}

/// Ports `a` with everything, `b` with nothing, and one in another network with the addresses of `a`.
fn desired() -> Desired {
    let full = PortMetadata {
        user_data: b"#cloud-config\nhostname: x\n".to_vec(),
        vendor_data: "#cloud-config\n".to_owned(),
        ssh_keys: vec![KEY.to_owned(), format!("{} two words", KEY.rsplit_once(' ').unwrap().0)],
        ..PortMetadata::default()
    };
    let other = PortMetadata { user_data: b"other".to_vec(), ..PortMetadata::default() };
    let ports =
        vec![port("red", "a", 10, full), port("red", "b", 11, PortMetadata::default()), port("blue", "c", 10, other)];
    let attach = |address: &str, one_to_one| AttachSpec {
        address: address.parse().unwrap(),
        port: ports[0].uid,
        service: "shop/ip".to_owned(),
        one_to_one,
    };
    Desired {
        networks: vec![network("red"), network("blue")],
        attached: vec![attach("198.51.100.7", false), attach("2001:db8:aa::7", true)],
        metadata: Some(MetadataSpec { region: Some("ord1".to_owned()), ..MetadataSpec::default() }),
        ports: ports.into(),
        ..Desired::default()
    }
}

struct World {
    directory: Directory,
    key: Key,
    now_s: u64,
}

impl World {
    fn new(desired: &Desired) -> Self {
        let directory = Directory::new(desired, desired.metadata.as_ref().unwrap());
        Self { directory, key: Key::random().unwrap(), now_s: 100 }
    }

    fn send(&self, network: &str, address: &str, request: &Parts) -> Answer {
        let workload = self.directory.find(&network.into(), address.parse().unwrap()).unwrap();
        answer(&workload, &self.key, self.now_s, request)
    }

    fn token(&self, network: &str, address: &str) -> String {
        let reply = self.send(network, address, &request("PUT", "/latest/api/token", &[(TTL, "60")]));
        assert_eq!((reply.status(), &reply.headers()[TTL]), (StatusCode::OK, &hyper::header::HeaderValue::from(60)));
        body(reply)
    }

    /// Status and body of a GET with a token.
    fn get(&self, network: &str, address: &str, path: &str) -> (u16, String) {
        let token = self.token(network, address);
        let reply = self.send(network, address, &request("GET", path, &[(TOKEN, &token)]));
        (reply.status().as_u16(), body(reply))
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn body(reply: Answer) -> String {
    let octets = futures_body(reply);
    String::from_utf8(octets).unwrap()
}

fn futures_body(reply: Answer) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(reply.into_body().collect()).unwrap().to_bytes().to_vec()
}

#[test]
fn ec2_paths_say_what_the_port_is() {
    let world = World::new(&desired());
    let mac = "network/interfaces/macs/52:54:00:12:34:0a";
    for (path, expected) in [
        ("/", "1.0\n2009-04-04\n2016-09-02\n2018-09-24\n2021-03-23\nlatest"),
        ("/latest", "dynamic\nmeta-data\nuser-data"),
        ("/latest/meta-data/instance-id", "i-0000000000000000a"),
        ("/2009-04-04/meta-data/local-hostname", "a"),
        ("/latest/meta-data/local-ipv4", "192.0.2.10"),
        ("/latest/meta-data/ipv6", "2001:db8:1::a"),
        ("/latest/meta-data/mac", "52:54:00:12:34:0a"),
        ("/latest/meta-data/public-ipv4", "198.51.100.7"),
        ("/latest/meta-data/public-ipv6", "2001:db8:aa::7"),
        ("/latest/meta-data/placement/", "availability-zone\nregion"),
        ("/latest/meta-data/placement/region", "ord1"),
        ("/latest/meta-data/public-keys/", "0=ops@example\n1=two"),
        ("/latest/meta-data/public-keys/0", "openssh-key"),
        ("/latest/meta-data/public-keys/0/openssh-key", KEY),
        ("/latest/meta-data/network/interfaces/macs", "52:54:00:12:34:0a/"),
        (&format!("/latest/meta-data/{mac}/subnet-ipv4-cidr-block"), "192.0.2.0/24"),
        (&format!("/latest/meta-data/{mac}/subnet-ipv6-cidr-blocks"), "2001:db8:1::/64"),
        (&format!("/latest/meta-data/{mac}/ipv6s"), "2001:db8:1::a"),
        ("/latest/user-data", "#cloud-config\nhostname: x\n"),
        ("//latest//meta-data//mac?x=y", "52:54:00:12:34:0a"),
    ] {
        assert_eq!(world.get("red", "192.0.2.10", path), (200, expected.to_owned()), "{path}");
    }
    let (_, root) = world.get("red", "192.0.2.10", "/latest/meta-data/");
    for name in ["hostname", "instance-id", "network/", "placement/", "public-keys/"] {
        assert!(root.lines().any(|line| line == name), "{name} in {root}");
    }
    let (_, document) = world.get("red", "192.0.2.10", "/latest/dynamic/instance-identity/document");
    assert_eq!(serde_json::from_str::<Value>(&document).unwrap()["region"], "ord1");
    // What a port has not is not there.
    for path in ["/latest/user-data", "/latest/meta-data/public-keys/", "/latest/meta-data/public-ipv4", "/latest/x"] {
        assert_eq!(world.get("red", "192.0.2.11", path).0, 404, "{path}");
    }
}

#[test]
fn a_port_gets_its_own_by_network_and_address_and_no_others() {
    let world = World::new(&desired());
    for own in ["192.0.2.10", "2001:db8:1::a", "198.51.100.7"] {
        assert_eq!(world.get("red", own, "/latest/meta-data/hostname"), (200, "a".to_owned()), "{own}");
    }
    assert_eq!(world.get("blue", "192.0.2.10", "/latest/user-data"), (200, "other".to_owned()));
    // An address behind 1:1 NAT is not what a guest sends from; one of another network is nobody's here.
    for nobody in ["192.0.2.99", "2001:db8:aa::7"] {
        assert!(world.directory.find(&"red".into(), nobody.parse().unwrap()).is_none(), "{nobody}");
    }
    assert!(world.directory.find(&"green".into(), "192.0.2.10".parse().unwrap()).is_none());
    // The token of one is nothing in the hands of another.
    let token = world.token("red", "192.0.2.10");
    let ask = request("GET", "/latest/user-data", &[(TOKEN, &token)]);
    for (network, address) in [("red", "192.0.2.11"), ("blue", "192.0.2.10")] {
        assert_eq!(world.send(network, address, &ask).status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(world.send("red", "2001:db8:1::a", &ask).status(), StatusCode::OK, "the same port's other family");
}

#[test]
fn an_address_that_moves_is_nobodys_until_it_has_moved() {
    let before = desired();
    let mut after = before.clone();
    let address: IpAddr = "192.0.2.10".parse().unwrap();
    let (a, b) = (before.ports[0].uid, before.ports[1].uid);
    after.ports.edit(0).unwrap().v4 = vec!["192.0.2.12".parse().unwrap()];
    after.ports.edit(1).unwrap().v4 = vec!["192.0.2.10".parse().unwrap()];
    let (old, new) = (World::new(&before).directory, World::new(&after).directory);
    let (rest, mut moved) = old.without_moved(&new);
    moved.sort();
    let expected = ["192.0.2.10", "192.0.2.11"].map(|address| ("red".into(), address.parse().unwrap()));
    assert_eq!(moved, expected);
    let owner = |directory: &Directory, address| directory.find(&"red".into(), address).map(|found| found.port.uid);
    assert_eq!((owner(&old, address), owner(&rest, address), owner(&new, address)), (Some(a), None, Some(b)));
    assert_eq!(owner(&rest, "2001:db8:1::a".parse().unwrap()), Some(a));
    assert_eq!(old.without_moved(&old).1, []);
}

#[test]
fn tokens_are_needed_unless_port_or_host_say_otherwise() {
    let mut desired = desired();
    let get = request("GET", "/latest/meta-data/mac", &[]);
    let wrong = request("GET", "/latest/meta-data/mac", &[(TOKEN, "AAAA")]);
    let status = |desired: &Desired, request: &Parts| World::new(desired).send("red", "192.0.2.11", request).status();
    assert_eq!(status(&desired, &get), StatusCode::UNAUTHORIZED);
    Arc::make_mut(&mut desired.ports.edit(1).unwrap().metadata).tokens = Some(Tokens::Optional);
    assert_eq!(status(&desired, &get), StatusCode::OK);
    assert_eq!(status(&desired, &wrong), StatusCode::UNAUTHORIZED, "a wrong one is refused all the same");
    Arc::make_mut(&mut desired.ports.edit(1).unwrap().metadata).tokens = None;
    desired.metadata.as_mut().unwrap().tokens = Tokens::Optional;
    assert_eq!(status(&desired, &get), StatusCode::OK);
    Arc::make_mut(&mut desired.ports.edit(1).unwrap().metadata).tokens = Some(Tokens::Required);
    assert_eq!(status(&desired, &get), StatusCode::UNAUTHORIZED);
    Arc::make_mut(&mut desired.ports.edit(1).unwrap().metadata).disabled = true;
    assert_eq!(status(&desired, &request("PUT", "/latest/api/token", &[(TTL, "60")])), StatusCode::FORBIDDEN);

    let mut world = World::new(&self::desired());
    let token = world.token("red", "192.0.2.10");
    let ask = request("GET", "/latest/meta-data/mac", &[(TOKEN, &token)]);
    world.now_s = 159;
    assert_eq!(world.send("red", "192.0.2.10", &ask).status(), StatusCode::OK);
    world.now_s = 160;
    assert_eq!(world.send("red", "192.0.2.10", &ask).status(), StatusCode::UNAUTHORIZED, "it has ended");
}

#[test]
fn nocloud_is_for_cloud_init_and_for_whoever_has_a_token() {
    let world = World::new(&desired());
    let agent = ("User-Agent", "Cloud-Init/22.4.2");
    let read = |address: &str, path: &str| {
        let reply = world.send("red", address, &request("GET", path, &[agent]));
        assert_eq!(reply.status(), StatusCode::OK, "{path}");
        body(reply)
    };
    for prefix in ["/nocloud/", "/"] {
        let data: Value = serde_json::from_str(&read("192.0.2.10", &format!("{prefix}meta-data"))).unwrap();
        assert_eq!(data["instance-id"], "i-0000000000000000a");
        assert_eq!((&data["local-hostname"], &data["mac"]), (&"a".into(), &"52:54:00:12:34:0a".into()));
        assert_eq!((&data["local-ipv4"], &data["local-ipv6"]), (&"192.0.2.10".into(), &"2001:db8:1::a".into()));
        assert_eq!((&data["public-ipv4"], &data["public-ipv6"]), (&"198.51.100.7".into(), &"2001:db8:aa::7".into()));
        assert_eq!(data["public-keys"][0], KEY);
        assert_eq!(read("192.0.2.10", &format!("{prefix}user-data")), "#cloud-config\nhostname: x\n");
        assert_eq!(read("192.0.2.10", &format!("{prefix}vendor-data")), "#cloud-config\n");
        let config: Value = serde_json::from_str(&read("192.0.2.10", &format!("{prefix}network-config"))).unwrap();
        assert_eq!(config["ethernets"]["eth0"]["match"]["macaddress"], "52:54:00:12:34:0a");
        assert_eq!(read("192.0.2.11", &format!("{prefix}user-data")), "", "empty, not absent");
        let path = format!("{prefix}user-data");
        let plain = request("GET", &path, &[("User-Agent", "curl/7.88.1")]);
        assert_eq!(world.send("red", "192.0.2.10", &plain).status(), StatusCode::UNAUTHORIZED);
        assert_eq!(world.get("red", "192.0.2.10", &path).0, 200);
    }
    // EC2's tree is not opened by a user agent.
    let ec2 = request("GET", "/latest/user-data", &[agent]);
    assert_eq!(world.send("red", "192.0.2.10", &ec2).status(), StatusCode::UNAUTHORIZED);
    // Without DHCP there is nothing to configure by it; what is written is served as it is.
    let mut desired = desired();
    desired.local.dhcp = false;
    Arc::make_mut(&mut desired.ports.edit(1).unwrap().metadata).network_config = Some("version: 1\n".to_owned());
    let world = World::new(&desired);
    let ask = request("GET", "/nocloud/network-config", &[agent]);
    assert_eq!(world.send("red", "192.0.2.10", &ask).status(), StatusCode::NOT_FOUND);
    assert_eq!(body(world.send("red", "192.0.2.11", &ask)), "version: 1\n");
}

#[test]
fn requests_that_mean_no_good_are_refused_with_a_reason() {
    let world = World::new(&desired());
    let token = world.token("red", "192.0.2.10");
    let with = |name: &'static str, value: &'static str| vec![(TOKEN, token.as_str()), (name, value)];
    let put = |value: &'static str| vec![(TTL, value)];
    for (method, path, headers, status) in [
        ("GET", "/latest/meta-data/", with("X-Forwarded-For", "203.0.113.9"), 403),
        ("GET", "/latest/meta-data/", with("Forwarded", "for=203.0.113.9"), 403),
        ("PUT", "/latest/api/token", vec![(TTL, "60"), ("X-Forwarded-For", "203.0.113.9")], 403),
        ("GET", "/latest/meta-data/", with("Host", "evil.example"), 421),
        ("GET", "/latest/meta-data/", with("Host", "169.254.169.254.evil.example"), 421),
        ("GET", "http://evil.example/latest/meta-data/", with("Host", "169.254.169.254"), 421),
        ("GET", "/latest/meta-data/", with("Host", "169.254.169.254"), 200),
        ("GET", "/latest/meta-data/", with("Host", "169.254.169.254:80"), 200),
        ("GET", "/latest/meta-data/", with("Host", "[fd00:ec2::254]"), 200),
        ("HEAD", "/latest/meta-data/mac", with("Host", "[fd00:ec2::254]:80"), 200),
        ("PUT", "/latest/api/token", put("0"), 400),
        ("PUT", "/latest/api/token", put("21601"), 400),
        ("PUT", "/latest/api/token", put("x"), 400),
        ("PUT", "/latest/api/token", vec![], 400),
        ("PUT", "/latest/api/token", put("21600"), 200),
        ("GET", "/latest/api/token", vec![], 405),
        ("POST", "/latest/user-data", with("Host", "169.254.169.254"), 405),
        ("DELETE", "/", vec![], 405),
        ("GET", "/openstack/latest/meta_data.json", vec![], 404),
        ("GET", "/nocloudmeta-data", vec![], 404),
        ("GET", "/latest/../latest/user-data", vec![(TOKEN, token.as_str())], 404),
        ("GET", "/latest/meta-data/mac/x", vec![(TOKEN, token.as_str())], 404),
    ] {
        let reply = world.send("red", "192.0.2.10", &request(method, path, &headers));
        assert_eq!(reply.status().as_u16(), status, "{method} {path} {headers:?}");
        assert!(status == 200 || body(reply).ends_with('\n'), "{method} {path} says why");
    }
}
