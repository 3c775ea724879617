//! A flow as Hubble writes it: `flow.Flow` and `observer.ExportEvent` in protojson, field names exactly as in
//! `cilium/cilium api/v1/flow/flow.proto`. `hubble observe --input-file -` prints it unmodified, hence there is no
//! field of our own: what Hubble has no place for stands in the labels of a policy and in the summary.

use serde::{Deserialize, Serialize};

/// Monitor message type of a drop (`pkg/monitor/api`).
pub const TYPE_DROP: i32 = 1;
/// Of a packet seen on its way.
pub const TYPE_TRACE: i32 = 4;
/// Of a decision of policy.
pub const TYPE_POLICY_VERDICT: i32 = 5;

/// Trace reason of a connection that goes on.
pub const ESTABLISHED: &str = "ESTABLISHED";

/// Begins the summary of a connection that ended.
pub const CLOSED: &str = "closed";

/// Key of a policy's label that says where its rule was written.
pub const LABEL_ORIGIN: &str = "hostweave:origin=";
/// Key of a policy's label that says which rule it was, from 1, or its name.
pub const LABEL_RULE: &str = "hostweave:rule=";

/// One line of the export.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportEvent {
    /// What happened to a connection or packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<Flow>,
    /// Or how much of that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_events: Option<LostEvent>,
    /// Host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// When, RFC 3339 with nanoseconds, UTC.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub time: String,
}

/// `flow.LostEvent`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LostEvent {
    /// `PERF_EVENT_RING_BUFFER`: there was no room, or a port was over its rate; in a worker, or without `cpu`, where connections end. `HUBBLE_RING_BUFFER`: the reader is slow.
    pub source: String,
    /// How many; a number as text, as protojson writes 64-bit numbers.
    pub num_events_lost: String,
    /// The worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<i32>,
}

/// `flow.Flow`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Flow {
    /// When, RFC 3339 with nanoseconds, UTC.
    pub time: String,
    /// Names the event.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    /// `FORWARDED`, `DROPPED`, `AUDIT`, `TRANSLATED`.
    pub verdict: String,
    /// Hubble's number of the reason, see [`super::drop_reason`].
    #[serde(skip_serializing_if = "is_zero")]
    pub drop_reason: u32,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub drop_reason_desc: String,
    /// MAC addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ethernet: Option<Addresses>,
    /// IP addresses.
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ip>,
    /// Protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l4: Option<Layer4>,
    /// Sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Endpoint>,
    /// Receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Endpoint>,
    /// `L3_L4`.
    #[serde(rename = "Type")]
    pub flow_type: String,
    /// Host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// Kind of event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<EventType>,
    /// The Service whose address it was sent from; only Hubble says that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_service: Option<Service>,
    /// The Service whose address it was sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_service: Option<Service>,
    /// Seen from the port whose policy is meant: `INGRESS`, `EGRESS`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traffic_direction: String,
    /// Of traces: `TO_ENDPOINT`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_observation_point: String,
    /// Of a connection that goes on: `ESTABLISHED`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_reason: String,
    /// Whether it goes against the direction of its connection; not there if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_reply: Option<bool>,
    /// The port that sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Policies of the sender that let it pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress_allowed_by: Vec<Policy>,
    /// Policies of the receiver that let it pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress_allowed_by: Vec<Policy>,
    /// Policies of the sender that deny it, or would.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress_denied_by: Vec<Policy>,
    /// Policies of the receiver that deny it, or would.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress_denied_by: Vec<Policy>,
    /// For people.
    #[serde(rename = "Summary", skip_serializing_if = "String::is_empty")]
    pub summary: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `flow.Service`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// `flow.Ethernet`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// From.
    pub source: String,
    /// To.
    pub destination: String,
}

/// `flow.IP`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ip {
    /// From.
    pub source: String,
    /// As whom NAT shows the sender to the other side; none if as itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source_xlated: String,
    /// To.
    pub destination: String,
    /// `IPv4` or `IPv6`.
    #[serde(rename = "ipVersion")]
    pub ip_version: String,
}

/// `flow.Layer4`: one of them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Layer4 {
    /// TCP.
    #[serde(rename = "TCP", skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    /// UDP.
    #[serde(rename = "UDP", skip_serializing_if = "Option::is_none")]
    pub udp: Option<Ports>,
    /// SCTP.
    #[serde(rename = "SCTP", skip_serializing_if = "Option::is_none")]
    pub sctp: Option<Ports>,
    /// ICMP.
    #[serde(rename = "ICMPv4", skip_serializing_if = "Option::is_none")]
    pub icmpv4: Option<Icmp>,
    /// ICMPv6.
    #[serde(rename = "ICMPv6", skip_serializing_if = "Option::is_none")]
    pub icmpv6: Option<Icmp>,
}

/// `flow.TCP`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tcp {
    /// From.
    pub source_port: u16,
    /// To.
    pub destination_port: u16,
    /// Of the packet that caused the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<TcpFlags>,
}

/// `flow.UDP` and `flow.SCTP`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ports {
    /// From.
    pub source_port: u16,
    /// To.
    pub destination_port: u16,
}

/// `flow.ICMPv4` and `flow.ICMPv6`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Icmp {
    /// Type.
    #[serde(rename = "type")]
    pub kind: u32,
    /// Code.
    pub code: u32,
}

macro_rules! tcp_flags {
    ($($field:ident $name:literal $bit:literal,)+) => {
        /// `flow.TCPFlags`: those that are set.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct TcpFlags {
            $(
                #[doc = $name]
                #[serde(rename = $name, skip_serializing_if = "std::ops::Not::not")]
                pub $field: bool,
            )+
        }

        impl TcpFlags {
            /// From the octet in the header (RFC 9293 §3.1).
            pub fn from_octet(octet: u8) -> Self {
                Self { $($field: octet & $bit != 0,)+ }
            }

            /// The octet in the header.
            pub fn to_octet(self) -> u8 {
                0 $(| if self.$field { $bit } else { 0 })+
            }

            /// Names of those that are set, `SYN, ACK`.
            pub fn names(self) -> String {
                let all = [$((self.$field, $name)),+];
                all.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
            }

            /// The one with a name.
            pub fn named(name: &str) -> Option<Self> {
                $(if name.eq_ignore_ascii_case($name) { return Some(Self { $field: true, ..Self::default() }); })+
                None
            }
        }
    };
}

tcp_flags! {
    fin "FIN" 0x01,
    syn "SYN" 0x02,
    rst "RST" 0x04,
    psh "PSH" 0x08,
    ack "ACK" 0x10,
    urg "URG" 0x20,
    ece "ECE" 0x40,
    cwr "CWR" 0x80,
}

/// `flow.Endpoint`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Number of the port on this host.
    #[serde(rename = "ID", skip_serializing_if = "is_zero")]
    pub id: u32,
    /// Number that ports with the same namespace and labels share; below 256 what Cilium reserves: 1 the host, 2 the world.
    #[serde(skip_serializing_if = "is_zero")]
    pub identity: u32,
    /// Namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `k8s:app=web`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Name of the port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_name: String,
}

/// `flow.CiliumEventType`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EventType {
    /// [`TYPE_DROP`], [`TYPE_TRACE`] or [`TYPE_POLICY_VERDICT`].
    #[serde(rename = "type")]
    pub kind: i32,
    /// Of a drop, Hubble's number of the reason.
    #[serde(skip_serializing_if = "is_zero_i32")]
    pub sub_type: i32,
}

fn is_zero_i32(number: &i32) -> bool {
    *number == 0
}

/// `flow.NetworkInterface`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Number of the port.
    #[serde(skip_serializing_if = "is_zero")]
    pub index: u32,
    /// `namespace/name`.
    pub name: String,
}

/// `flow.Policy`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Name.
    pub name: String,
    /// Namespace; none for what is about the whole host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Where its rule was written, and which it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Of the policies in force; a number as text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Kind of object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

impl Policy {
    /// `shop/db-only-from-web`, or the name alone.
    pub fn path(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }

    /// Where its rule was written.
    pub fn origin(&self) -> Option<&str> {
        self.labels.iter().find_map(|label| label.strip_prefix(LABEL_ORIGIN))
    }

    /// Which rule it was.
    pub fn rule(&self) -> Option<&str> {
        self.labels.iter().find_map(|label| label.strip_prefix(LABEL_RULE))
    }
}

impl Flow {
    /// L4 ports.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let l4 = self.l4.as_ref()?;
        let tcp = l4.tcp.as_ref().map(|tcp| (tcp.source_port, tcp.destination_port));
        let others = || l4.udp.as_ref().or(l4.sctp.as_ref()).map(|ports| (ports.source_port, ports.destination_port));
        tcp.or_else(others)
    }

    /// `TCP`, `UDP`, `SCTP`, `ICMPv4`, `ICMPv6`; none if it is not known.
    pub fn protocol(&self) -> Option<&'static str> {
        let l4 = self.l4.as_ref()?;
        let all = [
            (l4.tcp.is_some(), "TCP"),
            (l4.udp.is_some(), "UDP"),
            (l4.sctp.is_some(), "SCTP"),
            (l4.icmpv4.is_some(), "ICMPv4"),
            (l4.icmpv6.is_some(), "ICMPv6"),
        ];
        all.into_iter().find(|(there, _)| *there).map(|(_, name)| name)
    }

    /// Whether it is a connection that began.
    pub fn is_new(&self) -> bool {
        self.kind() == TYPE_POLICY_VERDICT && self.verdict != "DROPPED" && self.trace_reason != ESTABLISHED
    }

    /// Whether it is a connection that ended.
    pub fn is_closed(&self) -> bool {
        self.kind() == TYPE_TRACE && self.summary.starts_with(CLOSED)
    }

    /// Type of the event; 0 if it has none.
    pub fn kind(&self) -> i32 {
        self.event_type.map_or(0, |event_type| event_type.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_survive_and_have_names() {
        for octet in 0..=u8::MAX {
            assert_eq!(TcpFlags::from_octet(octet).to_octet(), octet);
        }
        assert_eq!(TcpFlags::from_octet(0x12).names(), "SYN, ACK");
        assert_eq!(serde_json::to_string(&TcpFlags::from_octet(0x02)).unwrap(), r#"{"SYN":true}"#);
        assert_eq!(TcpFlags::named("rst").unwrap().to_octet(), 4);
    }

    /// A line that Hubble wrote is understood, and nothing of it is lost.
    #[test]
    fn the_documented_line_is_ours() {
        let text = r#"{"flow":{"time":"2026-11-23T15:30:01.120334Z","uuid":"9d0c","verdict":"DROPPED","drop_reason":133,
            "drop_reason_desc":"POLICY_DENIED","ethernet":{"source":"02:00:0a:40:00:0c","destination":"02:00:0a:40:00:1f"},
            "IP":{"source":"10.64.0.12","destination":"10.64.0.31","ipVersion":"IPv4"},
            "l4":{"TCP":{"source_port":49152,"destination_port":5432,"flags":{"SYN":true}}},
            "source":{"ID":12,"identity":1012,"namespace":"shop","labels":["k8s:app=cache"],"pod_name":"cache-0"},
            "destination":{"ID":31,"identity":1031,"namespace":"shop","labels":["k8s:app=db"],"pod_name":"db-0"},
            "Type":"L3_L4","node_name":"host-a","event_type":{"type":5},"traffic_direction":"INGRESS","is_reply":false,
            "ingress_denied_by":[{"name":"db-only-from-web","namespace":"shop","revision":"17"}]},"node_name":"host-a",
            "time":"2026-11-23T15:30:01.120334Z"}"#;
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let event: ExportEvent = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&event).unwrap(), value);
        let flow = event.flow.unwrap();
        assert_eq!((flow.ports(), flow.protocol()), (Some((49152, 5432)), Some("TCP")));
    }
}
