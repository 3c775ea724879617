//! What must be known of a Service's backends when the daemon starts anew: who left it and may have connections, and whom clients keep
//! out. Control writes it to the store and gives it back; who is drained it keeps itself.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::spec::{Condition, EndpointSpec, ServicePortSpec, ServiceSpec};
use super::Held;
use super::left::Was;

/// Of one Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Remembered {
    /// VNI of its network.
    pub vni: u32,
    /// Who has left it, by L4 port.
    pub left: Vec<LeftPort>,
    /// Whom clients could not connect to.
    pub ejected: Vec<Ejected>,
}

/// An L4 port of a Service that endpoints have left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeftPort {
    name: String,
    proto: u8,
    first: u16,
    last: u16,
    endpoints: Vec<LeftEndpoint>,
}

/// An endpoint that has left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LeftEndpoint {
    name: String,
    port: Option<Uuid>,
    address: IpAddr,
    l4: Option<u16>,
    weight: u16,
}

/// A backend that is out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ejected {
    /// Its address.
    pub address: IpAddr,
    /// Its L4 port.
    pub l4: u16,
    /// IP protocol.
    pub proto: u8,
    /// When it is back.
    pub until: SystemTime,
    /// Ejections that count, this one included.
    pub times: u32,
    /// Why.
    pub reason: String,
}

impl Held {
    /// What is to be remembered of a Service, if anything is.
    pub(super) fn remembered(&self) -> Option<Remembered> {
        let endpoint = |endpoint: &EndpointSpec| LeftEndpoint {
            name: endpoint.name.clone(),
            port: endpoint.port,
            address: endpoint.address,
            l4: endpoint.l4,
            weight: endpoint.weight,
        };
        let port = |(port, left): (&ServicePortSpec, &Vec<EndpointSpec>)| LeftPort {
            name: port.name.clone(),
            proto: port.proto,
            first: *port.l4.start(),
            last: *port.l4.end(),
            endpoints: left.iter().map(endpoint).collect(),
        };
        let left: Vec<LeftPort> =
            self.spec.ports.iter().zip(&*self.left).filter(|(_, left)| !left.is_empty()).map(port).collect();
        let ejected = self.outliers.ejected();
        (!left.is_empty() || !ejected.is_empty()).then_some(Remembered { vni: self.vni, left, ejected })
    }
}

impl Remembered {
    /// The Service as it was, for those who think of another one: as far as anybody left it.
    pub(super) fn was(&self, spec: &ServiceSpec) -> Was {
        let endpoint = |left: &LeftEndpoint| EndpointSpec {
            name: left.name.clone(),
            port: left.port,
            address: left.address,
            l4: left.l4,
            weight: left.weight,
            condition: Condition::NotReady,
            internal: true,
            external: true,
            rank: 0,
        };
        let port = |left: &LeftPort| ServicePortSpec {
            name: left.name.clone(),
            proto: left.proto,
            l4: left.first..=left.last,
            endpoints: Vec::new(),
        };
        let left = self.left.iter().map(|port| port.endpoints.iter().map(endpoint).collect()).collect();
        let ports = self.left.iter().map(port).collect();
        Was {
            vni: self.vni,
            spec: Arc::new(ServiceSpec { ports, ..spec.clone() }),
            left: Arc::new(left),
            ejected: HashSet::new(),
        }
    }
}
