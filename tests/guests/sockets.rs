//! The host's own services inside a network: a TCP echo service on the internal port, as any service is built.

use std::net::IpAddr;

use hostweave::services::sockets::Listener;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, PATIENCE, Up};

const GATEWAYS: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

async fn echo(listener: Listener, guest: Vec<IpAddr>) {
    while let Ok((mut stream, peer)) = listener.accept().await {
        assert_eq!(&*peer.network, "default");
        assert!(guest.contains(&peer.address), "{peer:?}");
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[test]
fn a_guest_reaches_an_echo_service_of_the_host_over_both_versions() {
    let mut host = Host::new(2);
    let spec = host.port("a", 10);
    let mut guest = host.guest(&spec).up();
    host.settle(&mut guest, &spec);
    let listener = host.fabric.sockets().listen("default", 7).unwrap();
    let service = host.runtime.spawn(echo(listener, spec.addresses().collect()));
    for gateway in GATEWAYS {
        let transfer = guest.tcp_transfer(gateway.parse::<IpAddr>().unwrap(), 7, 1 << 20, PATIENCE).unwrap();
        assert_eq!(transfer.bytes, 1 << 20);
    }
    service.abort();
    guest.nic().drain_tx(PATIENCE).unwrap();
    assert_eq!(guest.nic().violations(), []);
}

#[test]
fn a_port_where_nothing_listens_refuses() {
    let mut host = Host::new(1);
    let mut guest = host.ready_guest("a", 10);
    for gateway in GATEWAYS {
        let refused = guest.tcp_connect(gateway.parse().unwrap(), 81, PATIENCE).unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
    }
}

#[test]
fn the_host_connects_to_a_service_of_a_guest() {
    let mut host = Host::new(1);
    let spec = host.port("a", 10);
    let mut guest = host.guest(&spec).up();
    host.settle(&mut guest, &spec);
    guest.tcp_echo_server(7).unwrap();
    // The guest's stack then knows the router, and answers before anything is sent again.
    for gateway in GATEWAYS {
        guest.ping(gateway.parse::<IpAddr>().unwrap(), PATIENCE).unwrap();
    }
    let _running = guest.spawn("a", false).unwrap();
    let sockets = host.fabric.sockets();
    for address in spec.addresses() {
        host.runtime.block_on(async {
            let mut stream = sockets.connect("default", None, (address, 7).into()).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            let mut answer = [0; 5];
            tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
            assert_eq!(&answer, b"hello");
        });
    }
}
