//! `conntrack.*`: the table of connections.

use std::net::IpAddr;

use hostweave_switch::flow::Kind;
use hostweave_switch::wire::proto;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::Call;
use crate::fabric::conntrack::{Allowed, ConnectionFilter, ConnectionView, STATES};
use crate::observe::flow_text;

/// Connections that are listed unless said otherwise.
const LIMIT_DEFAULT: usize = 10_000;

/// Protocols by name.
const PROTOCOLS: [(&str, u8); 5] = [
    ("tcp", proto::TCP),
    ("udp", proto::UDP),
    ("sctp", proto::SCTP),
    ("icmp", proto::ICMPV4),
    ("icmpv6", proto::ICMPV6),
];

/// Which connections: of the values of one condition any, and all conditions.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Filter {
    /// Of these ports, `namespace/name`, at either end.
    ports: Vec<String>,
    /// With one of these addresses, or of these ranges, at either end.
    addresses: Vec<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
    protocols: Vec<String>,
    /// With one of these L4 ports at either end.
    l4_ports: Vec<u16>,
    /// In these networks.
    networks: Vec<String>,
    /// `opening`, `established`, `closing`, `time-wait`, `closed` (TCP); `unreplied`, `replied` (others).
    states: Vec<String>,
}

/// Parameters of `conntrack.list`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct List {
    /// Which ones.
    filter: Filter,
    /// How many at most; 10000 if left out.
    limit: Option<usize>,
}

/// Parameters of `conntrack.flush`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Flush {
    /// Which ones.
    filter: Filter,
    /// All of them, where the filter has no condition.
    all: bool,
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let filter = params.filter.understand()?;
    let fabric = &call.controller.parts.fabric;
    let (views, total) = fabric.connections(&filter, params.limit.unwrap_or(LIMIT_DEFAULT));
    let (used, capacity) = fabric.connection_counts();
    let connections: Vec<Value> = views.iter().map(connection).collect();
    Ok(json!({"connections": connections, "total": total, "used": used, "capacity": capacity}))
}

pub fn flush(call: &Call<'_>, params: Flush) -> Result<Value, RpcError> {
    if params.filter.is_empty() && !params.all {
        let error =
            RpcError::new(ErrorKind::InvalidParams, "filter", "a filter without condition means every connection");
        return Err(error.help("say which ones, or all:true (--all)"));
    }
    let count = call.controller.parts.fabric.flush_connections(&params.filter.understand()?);
    Ok(json!({"flushed": count}))
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.ports.is_empty()
            && self.addresses.is_empty()
            && self.protocols.is_empty()
            && self.l4_ports.is_empty()
            && self.networks.is_empty()
            && self.states.is_empty()
    }

    fn understand(self) -> Result<ConnectionFilter, RpcError> {
        let bad =
            |field: &str, message: String| RpcError::new(ErrorKind::InvalidParams, format!("filter.{field}"), message);
        let net = |text: &String| {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>()
                .or_else(|_| address())
                .map_err(|_| bad("addresses", format!("{text:?} is neither an address nor a range such as 10.0.0.0/8")))
        };
        let protocol = |text: &String| {
            let named = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| *number);
            named.or_else(|| text.parse().ok()).ok_or_else(|| {
                let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
                bad("protocols", format!("{text:?} is neither a number nor one of {}", names.join(", ")))
            })
        };
        if let Some(state) = self.states.iter().find(|state| !STATES.contains(&state.as_str())) {
            return Err(bad("states", format!("{state:?} is not one of {}", STATES.join(", "))));
        }
        Ok(ConnectionFilter {
            addresses: self.addresses.iter().map(net).collect::<Result<_, _>>()?,
            protocols: self.protocols.iter().map(protocol).collect::<Result<_, _>>()?,
            ports: self.ports,
            l4_ports: self.l4_ports,
            networks: self.networks,
            states: self.states,
        })
    }
}

fn connection(view: &ConnectionView) -> Value {
    let key = &view.entry.key;
    let [source, destination] = view.addresses();
    let name = PROTOCOLS.iter().find(|(_, number)| *number == key.proto()).map(|(name, _)| *name);
    let [from, to] = &view.ports;
    let [egress, ingress] = view.allowed.each_ref().map(allowed);
    let mut json = json!({
        "network": view.network,
        "protocol": name.map_or_else(|| key.proto().to_string(), str::to_owned),
        "source": {"port": from, "address": source},
        "destination": {"port": to, "address": destination},
        "state": view.state,
        "replied": view.replied,
        "ageSeconds": view.age_s,
        "idleSeconds": view.idle_s,
        "expiresSeconds": view.expires_s,
        "egressAllowedBy": egress,
        "ingressAllowedBy": ingress,
    });
    match key.kind() {
        Kind::Ports => {
            json["source"]["l4Port"] = json!(key.src_port());
            json["destination"]["l4Port"] = json!(key.dst_port());
        }
        Kind::Query | Kind::Answer => json["icmpId"] = json!(key.src_port()),
        Kind::Addresses => {}
    }
    json
}

fn allowed(allowed: &Allowed) -> Value {
    match allowed {
        Allowed::Rule(policy) => json!({"by": "rule", "policy": policy, "text": flow_text::policy(policy)}),
        Allowed::Gone => json!({"by": "rule", "text": "a rule that was changed since"}),
        Allowed::NoPolicy => json!({"by": "none", "text": "no policy selects it"}),
        Allowed::BuiltIn(name) => json!({"by": "builtin", "text": name}),
        Allowed::Host => json!({"by": "host", "text": "the host itself"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_make_no_sense_name_the_field() {
        for (field, filter) in [
            ("filter.addresses", json!({"addresses": ["10.0.0"]})),
            ("filter.protocols", json!({"protocols": ["tpc"]})),
            ("filter.states", json!({"states": ["open"]})),
        ] {
            let filter: Filter = serde_json::from_value(filter).unwrap();
            assert_eq!(filter.understand().unwrap_err().data.field, field);
        }
        let filter: Filter = serde_json::from_value(json!({"protocols": ["TCP", "47"]})).unwrap();
        assert_eq!(filter.understand().unwrap().protocols, [6, 47]);
    }
}
