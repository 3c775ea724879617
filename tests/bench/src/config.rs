//! What the switches are told: hostweave's objects and Open vSwitch's rules, as texts.

use std::fmt::Write;
use std::path::Path;

use crate::crossing::{A_PUBLIC, B_PUBLIC, Dual, POOL, SERVICE, TARGET_PORT, Way};
use crate::flows::DST_PORT_FIRST;
use crate::generator::SIDES;
use crate::measure::SWITCH_CPU;
use crate::switches::Needs;

/// Ports of one namespace beside the two under test, and policies for them.
const NAMESPACE_PORTS: usize = 100;

/// Applications of a namespace: each has its policy.
const APPLICATIONS: usize = 10;

/// Rules of such a policy.
const RULES: usize = 10;

/// Seconds for which a connection is remembered where the policy cases run: longer than a run, for every switch, as all but one
/// are stopped at a time.
pub const TIMEOUT_S: u32 = 86_400;

/// Objects for one worker, one network and the ports, the first two with the generator's addresses.
pub fn hostweave(needs: &Needs, runtime: &Path, state: &Path) -> String {
    let mut yaml = format!(
        "apiVersion: hostweave.dev/v1alpha1\nkind: HostConfig\nmetadata: {{name: bench}}\nspec:\n  \
         workers: {{cpus: [{SWITCH_CPU}]}}\n  paths: {{runtime: {run}, state: {state}}}\n",
        run = runtime.display(),
        state = state.display(),
    );
    if needs.policy {
        let max = needs.table.map_or_else(String::new, |max| format!("max: {max}, "));
        // Connections that nobody answers keep their default: a port gives up those of the next minute only.
        yaml += &format!("  connections: {{{max}timeouts: {{udpStream: {TIMEOUT_S}}}}}\n");
    }
    if needs.way.leaves() {
        // Nothing passes there: routers that nobody resolves, on a device that nobody reads.
        yaml += "  uplink: {driver: tap, interface: hwbench0, addresses: [198.51.100.2/30, \"2001:db8:9::2/64\"], \
                 gateways: [198.51.100.1, \"2001:db8:9::1\"]}\n";
    }
    yaml += &format!(
        "---\napiVersion: hostweave.dev/v1alpha1\nkind: Network\nmetadata: {{name: default}}\n\
         spec: {{cidrs: [10.64.0.0/16, \"2001:db8:64::/64\"], serviceCIDRs: [10.96.0.0/16, \"fd00:96::/112\"], mtu: {mtu}, vni: 4096}}\n",
        mtu = needs.mtu(),
    );
    yaml += &crossing(needs.way, needs.mtu());
    for (i, side) in SIDES.iter().enumerate() {
        let annotations = match (needs.way, i) {
            (Way::Nat | Way::Attached, 1) => "net.coreweave.cloud/attachLoadbalancerIP: b",
            (Way::Attached, 0) => "net.coreweave.cloud/attachLoadbalancerIP: a, hostweave.dev/attach-mode: nat",
            _ => "",
        };
        yaml += &format!(
            "---\napiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {{name: p{i}, labels: {{app: p{i}}}, annotations: {{{annotations}}}}}\nspec:\n"
        );
        let mac = side.mac.map(|octet| format!("{octet:02x}")).join(":");
        yaml += &format!("  mac: {mac:?}\n");
        yaml += &match needs.way.leaves() && i == 1 {
            true => "  network: far\n".to_owned(),
            false => format!("  network: default\n  addresses: [{}, \"{}\"]\n", side.v4, side.v6),
        };
        if let Some(max) = needs.table {
            yaml += &format!("  limits: {{flows: {max}}}\n");
        }
    }
    // What comes from a file is changed in that file only: where there are neighbours, policies are applied at run time.
    if needs.policy && needs.ports == SIDES.len() {
        yaml += &match needs.way.leaves() {
            true => policies_beyond(),
            false => policies(needs.ports),
        };
    }
    for i in SIDES.len()..needs.ports {
        match needs.policy {
            true => yaml += &neighbour(i - SIDES.len(), runtime),
            false => yaml += &idle(i),
        }
    }
    yaml
}

/// Isolates one of the two ports under test in both directions but for UDP to and from the other, from an L4 port on.
pub fn policy(me: usize, other: usize, first: u16) -> String {
    let peer = format!("[{{podSelector: {{matchLabels: {{app: p{other}}}}}}}]");
    let ports = format!("[{{protocol: UDP, port: {first}, endPort: 65535}}]");
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: only-p{other}, namespace: default}}\nspec:\n  podSelector: {{matchLabels: {{app: p{me}}}}}\n  policyTypes: [Ingress, Egress]\n  \
         ingress: [{{from: {peer}, ports: {ports}}}]\n  egress: [{{to: {peer}, ports: {ports}}}]\n"
    )
}

/// What stands between the guests where the switch translates.
fn crossing(way: Way, mtu: usize) -> String {
    let (first, target) = (DST_PORT_FIRST, TARGET_PORT);
    let list = |Dual { v4, v6 }: Dual| format!("{v4}, \"{v6}\"");
    let far = format!(
        "---\napiVersion: hostweave.dev/v1alpha1\nkind: Network\nmetadata: {{name: far}}\n\
         spec: {{cidrs: [10.65.0.0/16, \"2001:db8:65::/64\"], mtu: {mtu}, vni: 4097}}\n---\n\
         apiVersion: hostweave.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: public}}\n\
         spec: {{type: public, addresses: [{}, {}]}}\n",
        list(A_PUBLIC),
        list(B_PUBLIC),
    );
    match way {
        Way::Stay => String::new(),
        Way::Nat => {
            far + &attached("b", "far", B_PUBLIC)
                + &format!(
                    "---\napiVersion: hostweave.dev/v1alpha1\nkind: NatPool\nmetadata: {{name: pool}}\nspec: {{addresses: [{}], \
                     portBlock: {{size: 4096, max: 61440}}, limits: {{mappings: 262144}}}}\n",
                    list(POOL)
                )
        }
        Way::Attached => far + &attached("b", "far", B_PUBLIC) + &attached("a", "default", A_PUBLIC),
        Way::Service { range } => {
            let annotations = if range { format!("hostweave.dev/port-range: {first}-65535") } else { String::new() };
            let target = if range { String::new() } else { format!(", targetPort: {target}") };
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, annotations: {{{annotations}}}}}\nspec:\n  \
                 selector: {{app: p1}}\n  ipFamilyPolicy: RequireDualStack\n  clusterIP: {}\n  clusterIPs: [{}]\n  \
                 ports: [{{protocol: UDP, port: {first}{target}}}]\n",
                SERVICE.v4,
                list(SERVICE)
            )
        }
    }
}

/// The `i`-th of many Services without a selector.
pub fn service(i: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\nspec: {{ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
    )
}

/// Its backends, somewhere beyond. The first one's address differs from `variant` to `variant`.
pub fn backends(i: usize, count: usize, variant: usize) -> String {
    let mut yaml = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{i}, labels: {{kubernetes.io/service-name: s{i}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for backend in 0..count {
        let number = if backend == 0 { variant % 10 * 16 } else { backend };
        // A text of octets: nothing here can fail.
        let _ = writeln!(yaml, "  - {{addresses: [11.{}.{}.{number}], conditions: {{ready: true}}}}", i / 256, i % 256);
    }
    yaml
}

/// A Service whose backends are so many L4 ports of the second port under test, each of which is checked.
pub fn checked(i: u16, count: u16, interval_s: u64) -> String {
    let list = |field: &dyn Fn(u16) -> String| (0..count).map(field).collect::<Vec<_>>().join(", ");
    let backend = |n: u16| 1 + i * count + n;
    let ports = list(&|n| format!("{{name: p{n}, port: {}}}", backend(n)));
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: h{i}, annotations: {{hostweave.dev/health-check: \
         '{{type: tcp, interval: {interval_s}s, timeout: 2s}}'}}}}\nspec: {{ports: [{ports}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: h{i}, labels: {{kubernetes.io/service-name: h{i}}}}}\n\
         addressType: IPv4\nports: [{ports}]\nendpoints: [{{addresses: [{}]}}]\n",
        SIDES[1].v4
    )
}

/// A Service that only holds an address, for a port of a network.
fn attached(name: &str, network: &str, Dual { v4, v6 }: Dual) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    hostweave.dev/network: {network}\n    \
         service.beta.kubernetes.io/coreweave-load-balancer-type: public\n    metallb.universe.tf/loadBalancerIPs: \"{v4},{v6}\"\n\
         spec:\n  type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n  selector: {{coreweave.cloud/ignore: ignore}}\n  \
         ports: [{{name: attach, port: 1, targetPort: attach}}]\n"
    )
}

/// As [`policies`], where the two ports are of different networks: A may reach B's public address. B lets in whoever it is, as it is
/// settled only with A's first mapping how A looks from outside.
fn policies_beyond() -> String {
    let ports = format!("ports: [{{protocol: UDP, port: {DST_PORT_FIRST}, endPort: 65535}}]");
    let Dual { v4, v6 } = B_PUBLIC;
    let to = format!("[{{ipBlock: {{cidr: {v4}/32}}}}, {{ipBlock: {{cidr: \"{v6}/128\"}}}}]");
    let policy = |me: usize, ingress: &str, egress: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: only-p{me}, namespace: default}}\nspec:\n  \
             podSelector: {{matchLabels: {{app: p{me}}}}}\n  policyTypes: [Ingress, Egress]\n  ingress: [{ingress}]\n  egress: [{egress}]\n"
        )
    };
    policy(0, "", &format!("{{to: {to}, {ports}}}")) + &policy(1, &format!("{{{ports}}}"), "")
}

fn idle(i: usize) -> String {
    format!(
        "---\napiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {{name: p{i}}}\nspec: {{network: default}}\n"
    )
}

/// The `n`-th port beside those under test, in a namespace with policies of its own, which its first port brings along. It waits
/// for a VMM that listens, which takes one descriptor, where a socket of ours takes six.
fn neighbour(n: usize, runtime: &Path) -> String {
    let (namespace, app) = (n / NAMESPACE_PORTS, n % APPLICATIONS);
    let socket = runtime.join(format!("vmm-{n}.sock"));
    let mut yaml = format!(
        "---\napiVersion: hostweave.dev/v1alpha1\nkind: Port\nmetadata: {{name: p{n}, namespace: team-{namespace}, \
         labels: {{app: app-{app}}}}}\nspec: {{network: default, backend: {{vhostUser: {{mode: connect, socketPath: {}}}}}}}\n",
        socket.display()
    );
    if n.is_multiple_of(NAMESPACE_PORTS) {
        let tier = namespace % 10;
        yaml += &format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: team-{namespace}, labels: {{tier: tier-{tier}}}}}\n"
        );
    }
    yaml
}

/// The policies of a host with so many ports: those of the two under test, and of their neighbours.
pub fn policies(ports: usize) -> String {
    let namespaces = (ports - SIDES.len()).div_ceil(NAMESPACE_PORTS);
    let neighbours = (0..namespaces).flat_map(|namespace| (0..APPLICATIONS).map(move |app| (namespace, app)));
    let under_test = [policy(0, 1, DST_PORT_FIRST), policy(1, 0, DST_PORT_FIRST)];
    let neighbours = neighbours.map(|(namespace, app)| neighbours_policy(namespace, app, 1000));
    under_test.into_iter().chain(neighbours).collect()
}

/// The policy of one application of one namespace; its rules begin at an L4 port.
pub fn neighbours_policy(namespace: usize, app: usize, first: usize) -> String {
    let mut yaml = format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: app-{app}, namespace: team-{namespace}}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: app-{app}}}}}\n  policyTypes: [Ingress]\n  ingress:\n"
    );
    for rule in 0..RULES {
        let peer = match rule % 4 {
            0 => format!("{{podSelector: {{matchLabels: {{app: app-{rule}}}}}}}"),
            1 => format!("{{namespaceSelector: {{matchLabels: {{tier: tier-{rule}}}}}}}"),
            2 => format!("{{ipBlock: {{cidr: 10.65.{rule}.0/24}}}}"),
            _ => format!("{{ipBlock: {{cidr: \"2001:db8:{namespace:x}:{rule:x}::/64\"}}}}"),
        };
        // A text of octets: nothing here can fail.
        let _ = writeln!(yaml, "    - {{from: [{peer}], ports: [{{protocol: TCP, port: {}}}]}}", first + rule);
    }
    yaml
}

/// Rules of Open vSwitch: from port to port, with a firewall that follows connections where a case wants one, and NAT of what the
/// first port begins. It keeps source ports where it can, and here it can.
pub fn ovs(policy: bool, way: Way) -> Vec<String> {
    if !policy {
        return vec!["in_port=1,actions=output:2".into(), "in_port=2,actions=output:1".into()];
    }
    let mut rules = vec!["table=0,priority=0,actions=drop".to_owned(), "table=1,priority=0,actions=drop".to_owned()];
    for family in ["ip", "ipv6"] {
        let nat = if way == Way::Nat { ",nat" } else { "" };
        rules.push(format!("table=0,priority=10,{family},ct_state=-trk,actions=ct(table=1{nat})"));
        let udp = if family == "ip" { "udp" } else { "udp6" };
        for (from, to) in [(1, 2), (2, 1)] {
            let commit = match (way, from, family) {
                (Way::Nat, 1, "ip") => format!("ct(commit,nat(src={}))", POOL.v4),
                (Way::Nat, 1, _) => format!("ct(commit,nat(src={}))", POOL.v6),
                _ => "ct(commit)".to_owned(),
            };
            // With NAT, connections begin on one side only.
            if way != Way::Nat || from == 1 {
                rules.push(format!(
                    "table=1,priority=10,{udp},ct_state=+trk+new,in_port={from},actions={commit},output:{to}"
                ));
            }
            rules.push(format!("table=1,priority=10,{family},ct_state=+trk+est,in_port={from},actions=output:{to}"));
        }
    }
    rules
}
