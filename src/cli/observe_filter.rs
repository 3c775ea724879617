//! The filters of `hostweave observe`, with Hubble's names and meaning: the same flag again means "or", different flags mean
//! "and", `--not` negates the flag after it (`cilium/cilium hubble/cmd/observe/flows_filter.go`).
//!
//! Flags about either end (`--pod`, `--ip`, `--label`, `--port`) become two filters, one for each end.

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::failure::Failure;
use crate::observe::flow_filter::FlowFilter;

/// One flag as it was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// Its name.
    pub flag: &'static str,
    /// Its value.
    pub value: String,
    /// Whether `--not` stands before it.
    pub not: bool,
}

/// All flags, in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub struct Flags(pub Vec<Given>);

/// The two lists of filters.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Lists {
    /// One of these must want a flow.
    pub whitelist: Vec<FlowFilter>,
    /// None of these may.
    pub blacklist: Vec<FlowFilter>,
}

/// Name, value and help of every flag.
const FLAGS: &[(&str, &str, &str)] = &[
    ("pod", "POD", "From or to a port, [NAMESPACE/]NAME; the beginning of the name suffices"),
    ("from-pod", "POD", "From a port"),
    ("to-pod", "POD", "To a port"),
    ("ip", "ADDRESS", "From or to an address or range, such as 10.0.0.0/8"),
    ("from-ip", "ADDRESS", "From an address or range"),
    ("to-ip", "ADDRESS", "To an address or range"),
    ("snat-ip", "ADDRESS", "From an address or range as NAT shows it to the other side"),
    ("label", "SELECTOR", "From or to ports with these labels, such as app=web"),
    ("from-label", "SELECTOR", "From ports with these labels"),
    ("to-label", "SELECTOR", "To ports with these labels"),
    ("service", "SERVICE", "From or to a Service, [NAMESPACE/]NAME; the beginning of the name suffices"),
    ("from-service", "SERVICE", "From a Service's address, in files of Hubble"),
    ("to-service", "SERVICE", "To a Service"),
    ("interface", "PORT", "Sent by this port, NAMESPACE/NAME"),
    ("node-name", "NAME", "Seen by this host, such as host-*"),
    ("from-namespace", "NS", "From a namespace (either end: --namespace)"),
    ("to-namespace", "NS", "To a namespace"),
    ("identity", "ID", "From or to an identity: a number, host or world"),
    ("from-identity", "ID", "From an identity"),
    ("to-identity", "ID", "To an identity"),
    ("protocol", "PROTOCOL", "tcp, udp, sctp, icmp, icmpv4 or icmpv6"),
    ("port", "PORT", "From or to an L4 port"),
    ("from-port", "PORT", "From an L4 port"),
    ("to-port", "PORT", "To an L4 port"),
    ("verdict", "VERDICT", "FORWARDED, DROPPED, AUDIT or TRANSLATED"),
    (
        "drop-reason-desc",
        "REASON",
        "Why it was dropped: Hubble's name such as POLICY_DENIED, or ours such as spoofed_mac",
    ),
    ("traffic-direction", "DIRECTION", "ingress or egress, seen from the port whose policy is meant"),
    ("ip-version", "VERSION", "4, 6, or none for what is no IP packet"),
    ("ipv4", "", "Only IPv4"),
    ("ipv6", "", "Only IPv6"),
    ("tcp-flags", "FLAGS", "With these TCP flags, such as SYN,ACK"),
    ("uuid", "UUID", "The event with this name"),
    (
        "type",
        "TYPE",
        "new, closed, dropped, policy-verdict, trace[:to-endpoint] or drop[:REASON]; port shows what happened to ports and objects instead, a name \
         such as PortFaulted only that",
    ),
];

/// Flags that have a short form, as Hubble's.
const SHORT: &[(&str, char)] = &[("label", 'l'), ("type", 't'), ("ipv4", '4'), ("ipv6", '6')];

/// Flags without a value, and what they stand for.
const BARE: &[(&str, &str)] = &[("ipv4", "4"), ("ipv6", "6")];

/// The flag that negates.
const NOT: &str = "not";

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let flag = |(name, value, help): &(&'static str, &'static str, &'static str)| {
            let arg = Arg::new(*name).long(*name).help(*help).action(ArgAction::Append).help_heading("Filters");
            let arg = match SHORT.iter().find(|(long, _)| long == name) {
                Some((_, short)) => arg.short(*short),
                None => arg,
            };
            match BARE.iter().find(|(long, _)| long == name) {
                Some((_, stands_for)) => arg.num_args(0).default_missing_value(*stands_for),
                None => arg.value_name(*value),
            }
        };
        let not = Arg::new(NOT).long(NOT).help("Negates the filter after it").help_heading("Filters");
        let not = not.action(ArgAction::Append).num_args(0).default_missing_value("true");
        command.args(FLAGS.iter().map(flag)).arg(not)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut all: Vec<(usize, &'static str, String)> = Vec::new();
        for name in FLAGS.iter().map(|flag| flag.0).chain([NOT]) {
            let values = matches.get_many::<String>(name).into_iter().flatten().cloned();
            all.extend(matches.indices_of(name).into_iter().flatten().zip(values).map(|(at, value)| (at, name, value)));
        }
        all.sort();
        let mut flags = Vec::new();
        let mut not = false;
        for (_, flag, value) in all {
            match (flag, not) {
                (NOT, true) => return Err(usage("--not stands before a filter, and not twice")),
                (NOT, false) => not = true,
                (flag, not_before) => {
                    flags.push(Given { flag, value, not: not_before });
                    not = false;
                }
            }
        }
        if not {
            return Err(usage("--not stands before the filter that it negates"));
        }
        Ok(Self(flags))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn usage(message: &str) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{message}\n"))
}

/// One list in the making: a flow must match the left or the right filter.
#[derive(Default)]
struct Tracker {
    left: FlowFilter,
    right: FlowFilter,
    namespaces: [Vec<String>; 2],
    used: bool,
}

impl Flags {
    /// The filters. `namespace` is where names without one are, and what is shown if no name is given.
    ///
    /// # Errors
    /// A value makes no sense.
    pub fn lists(&self, namespace: Option<&str>) -> Result<Lists, Failure> {
        let (mut white, mut black) = (Tracker::default(), Tracker::default());
        for Given { flag, value, not } in &self.0 {
            let list = if *not { &mut black } else { &mut white };
            list.add(flag, value, namespace)?;
        }
        if let Some(namespace) = namespace {
            let ends = [&white.left, &white.right].map(|filter| [&filter.source_pod, &filter.destination_pod]);
            if ends.iter().flatten().all(|pods| pods.is_empty()) {
                white.left.source_pod.push(format!("{namespace}/"));
                white.right.destination_pod.push(format!("{namespace}/"));
                white.used = true;
            }
        }
        let lists = Lists { whitelist: white.filters(), blacklist: black.filters() };
        // The daemon says the same; a file has no daemon.
        for filter in lists.whitelist.iter().chain(&lists.blacklist) {
            filter
                .clone()
                .compile()
                .map_err(|error| Failure::usage(format!("{}: {}", flag_of(error.field), error.message)))?;
        }
        Ok(lists)
    }
}

/// The flag whose values are in a field of the filter.
fn flag_of(field: &str) -> &str {
    match field {
        "sourceIp" | "destinationIp" => "--ip",
        "sourceIpXlated" => "--snat-ip",
        "sourceLabel" | "destinationLabel" => "--label",
        "eventType" => "--type",
        "dropReasonDesc" => "--drop-reason-desc",
        "trafficDirection" => "--traffic-direction",
        "ipVersion" => "--ip-version",
        "tcpFlags" => "--tcp-flags",
        "verdict" => "--verdict",
        "protocol" => "--protocol",
        other => other,
    }
}

type Texts = fn(&mut FlowFilter) -> &mut Vec<String>;
type Ports = fn(&mut FlowFilter) -> &mut Vec<u16>;
type Numbers = fn(&mut FlowFilter) -> &mut Vec<u32>;

const PODS: [Texts; 2] = [|filter| &mut filter.source_pod, |filter| &mut filter.destination_pod];
const IPS: [Texts; 2] = [|filter| &mut filter.source_ip, |filter| &mut filter.destination_ip];
const LABELS: [Texts; 2] = [|filter| &mut filter.source_label, |filter| &mut filter.destination_label];
const SERVICES: [Texts; 2] = [|filter| &mut filter.source_service, |filter| &mut filter.destination_service];
const IDENTITIES: [Numbers; 2] = [|filter| &mut filter.source_identity, |filter| &mut filter.destination_identity];
const PORTS: [Ports; 2] = [|filter| &mut filter.source_port, |filter| &mut filter.destination_port];

impl Tracker {
    fn add(&mut self, flag: &str, value: &str, namespace: Option<&str>) -> Result<(), Failure> {
        self.used = true;
        let number = || value.parse::<u16>().map_err(|_| Failure::usage(format!("--{flag} {value:?} is no L4 port")));
        // Those that Cilium reserves have names.
        let identity = || match value {
            "host" | "reserved:host" => Ok(1),
            "world" | "reserved:world" => Ok(2),
            number => number.parse::<u32>().map_err(|_| Failure::usage(format!("--{flag} {value:?} is no identity"))),
        };
        let pod = || match namespace {
            Some(namespace) if !value.contains('/') => format!("{namespace}/{value}"),
            _ => value.to_owned(),
        };
        match flag {
            "pod" => self.either(PODS, pod()),
            "from-pod" => self.both(PODS[0], pod()),
            "to-pod" => self.both(PODS[1], pod()),
            "ip" => self.either(IPS, value.to_owned()),
            "from-ip" => self.both(IPS[0], value.to_owned()),
            "to-ip" => self.both(IPS[1], value.to_owned()),
            "snat-ip" => self.both(|filter| &mut filter.source_ip_xlated, value.to_owned()),
            "label" => self.either(LABELS, value.to_owned()),
            "from-label" => self.both(LABELS[0], value.to_owned()),
            "to-label" => self.both(LABELS[1], value.to_owned()),
            "from-namespace" => self.namespaces[0].push(value.to_owned()),
            "to-namespace" => self.namespaces[1].push(value.to_owned()),
            "service" => self.either(SERVICES, pod()),
            "from-service" => self.both(SERVICES[0], pod()),
            "to-service" => self.both(SERVICES[1], pod()),
            "interface" => self.both(|filter| &mut filter.interface, pod()),
            "node-name" => self.both(|filter| &mut filter.node_name, value.to_owned()),
            "port" => self.either(PORTS, number()?),
            "from-port" => self.both(PORTS[0], number()?),
            "to-port" => self.both(PORTS[1], number()?),
            "identity" => self.either(IDENTITIES, identity()?),
            "from-identity" => self.both(IDENTITIES[0], identity()?),
            "to-identity" => self.both(IDENTITIES[1], identity()?),
            "protocol" => self.both(|filter| &mut filter.protocol, value.to_ascii_lowercase()),
            "verdict" => self.both(|filter| &mut filter.verdict, value.to_ascii_uppercase()),
            "drop-reason-desc" => self.both(|filter| &mut filter.drop_reason_desc, value.to_owned()),
            "traffic-direction" => self.both(|filter| &mut filter.traffic_direction, value.to_owned()),
            "ip-version" | "ipv4" | "ipv6" => self.both(|filter| &mut filter.ip_version, value.to_owned()),
            "tcp-flags" => self.both(|filter| &mut filter.tcp_flags, value.to_owned()),
            "uuid" => self.both(|filter| &mut filter.uuid, value.to_owned()),
            "type" => self.both(|filter| &mut filter.event_type, value.to_ascii_lowercase()),
            other => return Err(Failure::usage(format!("there is no filter --{other}"))),
        }
        Ok(())
    }

    /// Either end has it.
    fn either<T: Clone>(&mut self, [source, destination]: [fn(&mut FlowFilter) -> &mut Vec<T>; 2], value: T) {
        source(&mut self.left).push(value.clone());
        destination(&mut self.right).push(value);
    }

    fn both<T: Clone>(&mut self, field: fn(&mut FlowFilter) -> &mut Vec<T>, value: T) {
        field(&mut self.left).push(value.clone());
        field(&mut self.right).push(value);
    }

    fn filters(mut self) -> Vec<FlowFilter> {
        if !self.used {
            return Vec::new();
        }
        for (namespaces, pods) in self.namespaces.iter().zip(PODS) {
            for filter in [&mut self.left, &mut self.right] {
                in_namespaces(pods(filter), namespaces);
            }
        }
        if self.left == self.right { vec![self.left] } else { vec![self.left, self.right] }
    }
}

/// Names are those of these namespaces; without a name, all of them.
fn in_namespaces(pods: &mut Vec<String>, namespaces: &[String]) {
    if namespaces.is_empty() {
        return;
    }
    let names = if pods.is_empty() { vec![String::new()] } else { std::mem::take(pods) };
    for name in names {
        match name.contains('/') {
            true => pods.push(name),
            false => pods.extend(namespaces.iter().map(|namespace| format!("{namespace}/{name}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::observe::flow_filter::{EVENT_TYPES, PROTOCOLS, VERDICTS};

    fn flags(arguments: &[&str]) -> Result<Flags, clap::Error> {
        let command = Flags::augment_args(Command::new("observe").no_binary_name(true));
        Flags::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }

    fn lists(arguments: &[&str], namespace: Option<&str>) -> Lists {
        flags(arguments).unwrap().lists(namespace).unwrap()
    }

    fn json(filters: &[FlowFilter]) -> serde_json::Value {
        serde_json::to_value(filters).unwrap()
    }

    #[test]
    fn the_same_flag_is_or_and_others_are_and() {
        let lists = lists(&["--verdict", "DROPPED", "--verdict", "audit", "--protocol", "tcp"], None);
        assert_eq!(json(&lists.whitelist), serde_json::json!([{"verdict": ["DROPPED", "AUDIT"], "protocol": ["tcp"]}]));
        assert!(lists.blacklist.is_empty());
    }

    #[test]
    fn flags_about_either_end_are_two_filters() {
        let both = lists(&["--pod", "shop/web", "--to-port", "80"], None);
        assert_eq!(
            json(&both.whitelist),
            serde_json::json!([
                {"sourcePod": ["shop/web"], "destinationPort": [80]},
                {"destinationPod": ["shop/web"], "destinationPort": [80]},
            ])
        );
        let one = lists(&["--from-pod", "web", "--to-namespace", "db"], Some("shop"));
        assert_eq!(json(&one.whitelist), serde_json::json!([{"sourcePod": ["shop/web"], "destinationPod": ["db/"]}]));
        let namespace = lists(&[], Some("shop"));
        assert_eq!(
            json(&namespace.whitelist),
            serde_json::json!([{"sourcePod": ["shop/"]}, {"destinationPod": ["shop/"]}])
        );
        assert_eq!(lists(&[], None), Lists::default());
    }

    #[test]
    fn short_flags_and_those_without_a_value() {
        let short = lists(&["-4", "-t", "drop:POLICY_DENIED", "-l", "app=web", "--not", "-6"], None);
        let filter =
            |end: &str| serde_json::json!({"ipVersion": ["4"], "eventType": ["drop:policy_denied"], end: ["app=web"]});
        assert_eq!(json(&short.whitelist), serde_json::json!([filter("sourceLabel"), filter("destinationLabel")]));
        assert_eq!(json(&short.blacklist), serde_json::json!([{"ipVersion": ["6"]}]));
        let either = lists(&["--service", "db", "--identity", "world"], None);
        assert_eq!(
            json(&either.whitelist),
            serde_json::json!([
                {"sourceService": ["db"], "sourceIdentity": [2]},
                {"destinationService": ["db"], "destinationIdentity": [2]},
            ])
        );
        let one = lists(&["--to-service", "shop/db", "--interface", "shop/web-0", "--node-name", "host-*"], None);
        let expected = serde_json::json!([
            {"destinationService": ["shop/db"], "interface": ["shop/web-0"], "nodeName": ["host-*"]},
        ]);
        assert_eq!(json(&one.whitelist), expected);
    }

    #[test]
    fn not_negates_the_flag_after_it() {
        let lists = lists(&["--not", "--ip", "10.0.0.0/8", "--verdict", "DROPPED", "--not", "--protocol", "udp"], None);
        assert_eq!(json(&lists.whitelist), serde_json::json!([{"verdict": ["DROPPED"]}]));
        assert_eq!(
            json(&lists.blacklist),
            serde_json::json!([
                {"sourceIp": ["10.0.0.0/8"], "protocol": ["udp"]},
                {"destinationIp": ["10.0.0.0/8"], "protocol": ["udp"]},
            ])
        );
        assert!(flags(&["--not"]).is_err());
        assert!(flags(&["--not", "--not", "--ip", "::1"]).is_err());
    }

    #[test]
    fn values_that_make_no_sense_name_the_flag() {
        for (flag, value) in [
            ("--ip", "10.0.0"),
            ("--verdict", "NO"),
            ("--to-port", "http"),
            ("--type", "x"),
            ("--drop-reason-desc", "x"),
            ("--from-identity", "x"),
        ] {
            let failure = flags(&[flag, value]).unwrap().lists(None).unwrap_err();
            assert!(failure.diagnostics.render(false).contains(flag), "{}", failure.diagnostics.render(false));
        }
    }

    #[test]
    fn help_names_every_word() {
        for (flag, words) in [("verdict", VERDICTS), ("type", EVENT_TYPES), ("protocol", PROTOCOLS)] {
            let help = FLAGS.iter().find(|(name, ..)| *name == flag).unwrap().2;
            let missing: Vec<_> = words
                .iter()
                .filter(|word| !help.contains(**word) && !["REDIRECTED", "ERROR", "TRACED"].contains(word))
                .collect();
            assert!(missing.is_empty(), "--{flag}: {missing:?}");
        }
    }
}
