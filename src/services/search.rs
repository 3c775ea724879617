//! The search list that DHCPv4, DHCPv6 and router advertisements hand out: where a guest's resolver looks for names that have few dots. That of
//! a pod, as kubelet writes it (Kubernetes, "DNS for Services and Pods"), so that `web` and `web.shop` are found as they are there.

use hostweave_switch::tables::{Domain, Network, Port};
use hostweave_switch::wire::writer::Writer;

/// The names, best first, each as its parts.
fn names<'a>(network: &'a Network, port: &'a Port) -> impl Iterator<Item = impl Iterator<Item = &'a str>> {
    let namespace = port.name.split_once('/').map(|(namespace, _)| namespace);
    let (domain, services) = match &network.domain {
        None => (None, false),
        Some(Domain::Written(domain)) => (Some(domain), false),
        Some(Domain::Zone(zone)) => (Some(zone), true),
    };
    let of_namespace = namespace.filter(|_| services).map(|namespace| [Some(namespace), Some("svc")]);
    let of_services = services.then_some([None, Some("svc")]);
    let prefixes = [of_namespace, of_services, Some([None; 2])];
    domain.into_iter().flat_map(move |domain| {
        let name = move |prefix: [Option<&'a str>; 2]| {
            prefix.into_iter().flatten().chain(domain.strip_suffix('.').unwrap_or(domain).split('.'))
        };
        prefixes.into_iter().flatten().map(name)
    })
}

/// Appends the names in uncompressed wire form, which all three protocols take (RFC 3397 §2, RFC 8415 §10, RFC 8106 §5.2), those that
/// fit. Returns whether there is one.
pub fn put(writer: &mut Writer<'_>, network: &Network, port: &Port) -> bool {
    let start = writer.len();
    for name in names(network, port) {
        let _ = writer.name(name);
    }
    writer.len() > start
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    fn list(world: &World, room: usize) -> String {
        let mut buffer = vec![0; room];
        let mut writer = Writer::new(&mut buffer);
        let any = put(&mut writer, &world.network, &world.port);
        assert_eq!(any, !writer.written().is_empty());
        let labels = writer.written().iter().map(|octet| if *octet < 20 { b'.' } else { *octet });
        String::from_utf8(labels.collect()).unwrap().replace("..", " ")
    }

    #[test]
    fn it_is_that_of_a_pod_with_the_namespace_of_the_port() {
        let mut world = World::new();
        assert_eq!(
            list(&world, 300),
            ".default.svc.cluster.local .svc.cluster.local .cluster.local.".replace(" .", " ")
        );
        world.port.name = "shop/a".to_owned();
        world.network.domain = Some(Domain::Zone("k8s.example.".to_owned()));
        assert_eq!(list(&world, 300), ".shop.svc.k8s.example svc.k8s.example k8s.example.");
    }

    #[test]
    fn a_domain_that_is_written_is_the_only_one() {
        let mut world = World::new();
        world.network.domain = Some(Domain::Written("a.example".to_owned()));
        assert_eq!(list(&world, 300), ".a.example.");
        world.network.domain = None;
        assert_eq!(list(&world, 300), "");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let world = World::new();
        for (room, names) in [(300, 3), (61, 3), (60, 2), (42, 2), (41, 1), (27, 1), (26, 1), (15, 1), (14, 0)] {
            assert_eq!(list(&world, room).split(' ').filter(|name| !name.is_empty()).count(), names, "{room}");
        }
    }
}
