//! Quotas, a full table, and what goes to make room (SEMANTICS CT11).

use super::*;

#[test]
fn ct11_a_port_at_its_quota_is_refused_and_nobody_else() {
    both(|v6| {
        let mut host = Host::new();
        host.connections.share([(A, 50), (B, 1024), (C, 1024)].into_iter());
        for port in 1000..1050 {
            host.to(A, &udp(A, B, v6, (port, 1))).unwrap();
            host.to(B, &udp(B, A, v6, (1, port))).unwrap();
        }
        assert_eq!(host.to(A, &udp(A, B, v6, (1050, 1))), Err(DropReason::ConnectionQuota));
        assert_eq!(host.to(C, &udp(C, B, v6, (1050, 1))), Ok(B));
        assert_eq!(host.to(B, &udp(B, A, v6, (1050, 1))), Ok(A), "what others begin with it is not its own");
        for port in 1000..1050 {
            assert_eq!(host.to(A, &udp(A, B, v6, (port, 1))), Ok(B), "what is established goes on");
        }
        assert_eq!(host.connections.evicted(), 0);
    });
}

#[test]
fn ct11_a_full_table_says_so_and_leaves_every_port_its_share() {
    both(|v6| {
        let mut host = Host::new();
        // Half of the table is guaranteed in equal parts: 256 each. One in 32 is for ports to come.
        host.connections.share([(A, 1024), (B, 1024)].into_iter());
        let mut refused = None;
        for port in 1000..2024 {
            match host.to(A, &udp(A, B, v6, (port, 1))) {
                Ok(_) => host.to(B, &udp(B, A, v6, (1, port))).map(drop).unwrap(),
                Err(reason) => refused = refused.or(Some((port, reason))),
            }
        }
        assert_eq!(refused, Some((1736, DropReason::ConnectionTableFull)));
        // The other worker's free records count for the table: it has its own to give.
        for port in 1000..1200 {
            assert_eq!(host.to(B, &udp(B, A, v6, (port, 9000))), Ok(A), "connection {port} of its share");
        }
    });
}

#[test]
fn a_connection_that_was_given_up_is_in_no_cache_any_more() {
    both(|v6| {
        let mut host = Host::new();
        host.connections.share([(A, 300), (B, 1024)].into_iter());
        let frame = |port| udp(A, B, v6, (port, 1));
        for port in 1000..1300 {
            host.to(A, &frame(port)).unwrap();
        }
        // Nobody has answered: each further one takes the place of an older one, where it finds one.
        for port in 1300..1600 {
            let sent = host.to(A, &frame(port));
            assert!(matches!(sent, Ok(B) | Err(DropReason::ConnectionQuota)), "{sent:?}");
        }
        assert!(host.connections.evicted() > 50, "{}", host.connections.evicted());
        assert!(host.connections.used_by(A) <= 300);
        let ports: std::collections::HashSet<u16> = host.entries().iter().map(|entry| entry.key.src_port()).collect();
        let gone: Vec<u16> = (1000..1600).filter(|port| !ports.contains(port)).collect();
        // The cache still has them. Policy is asked, and says no: the flow alone lets nothing pass.
        host.allow_only(&[]);
        host.plane.tables.epochs[0] -= 1;
        for port in gone {
            assert_eq!(host.to(A, &frame(port)), Err(DropReason::PolicyDenied), "port {port}");
        }
        // What is left is not touched by any of it, in the same second and epoch.
        for port in ports {
            assert_eq!(host.to(A, &frame(port)), Ok(B), "port {port}");
        }
    });
}

#[test]
fn ct11_an_answered_connection_is_not_given_up() {
    both(|v6| {
        let mut host = Host::new();
        host.connections.share([(A, 100), (B, 1024)].into_iter());
        for port in 1000..1050 {
            host.to(A, &udp(A, B, v6, (port, 1))).unwrap();
            host.to(B, &udp(B, A, v6, (1, port))).unwrap();
        }
        // A scan of its own: thousands that nobody answers.
        for port in 2000..6000 {
            let _ = host.to(A, &udp(A, B, v6, (port, 2)));
        }
        assert!(host.connections.evicted() > 0);
        assert!(host.connections.used_by(A) <= 100);
        for port in 1000..1050 {
            assert_eq!(host.to(A, &udp(A, B, v6, (port, 1))), Ok(B));
            assert_eq!(host.to(B, &udp(B, A, v6, (1, port))), Ok(A));
        }
        let answered = host.entries().iter().filter(|entry| entry.key.dst_port() == 1 && entry.seen[1] != 0).count();
        assert_eq!(answered, 50);
    });
}
