//! Verdicts of the compiled tables. One compiler lives through a case, as it does through the life of a daemon, so that every
//! step after the first is an update.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostweave_policy::compile::Compiler;
use hostweave_policy::model::{Direction, Endpoint, World};
use hostweave_policy::table::{Flow, Table};
use hostweave_switch::tables::{NetworkId, PortId, mapped};

use crate::cluster::{Cluster, Pod};
use crate::data::Verdict;

/// The compiler of a case.
#[derive(Default)]
pub struct Tables {
    compiler: Compiler,
    endpoints: BTreeMap<u32, Arc<Endpoint>>,
    table: Arc<Table>,
}

impl Tables {
    /// Compiles the world as it is now.
    pub fn update(&mut self, cluster: &Cluster) {
        let before = std::mem::take(&mut self.endpoints);
        for (_, pod) in cluster.inside() {
            let new = endpoint(pod);
            // What did not change is the same `Arc`, as the fabric has it.
            let kept = before.get(&pod.serial).filter(|old| ***old == new).cloned();
            self.endpoints.insert(pod.serial, kept.unwrap_or_else(|| Arc::new(new)));
        }
        let spec = cluster.policy_spec();
        let world = World {
            default: spec.default,
            infrastructure: spec.infrastructure,
            namespaces: spec.namespaces,
            endpoints: self.endpoints.values().cloned().collect(),
            policies: spec.policies,
            cluster_policies: spec.cluster_policies,
        };
        self.table = self.compiler.update(&world).table;
    }

    /// Whether a new flow passes: egress of the sender and ingress of the receiver (SEMANTICS NP20), of which an address
    /// outside has neither.
    pub fn allows(&self, from: &Pod, to: &Pod, verdict: &Verdict) -> bool {
        let ask = |direction, subject: &Pod, peer: &Pod| {
            let question = Flow {
                direction,
                subject: PortId(subject.serial),
                peer: (!peer.external).then_some(PortId(peer.serial)),
                peer_address: mapped(peer.address),
                proto: verdict.protocol.number(),
                dst_port: Some(verdict.port),
            };
            subject.external || self.table.decide(&question).allowed
        };
        ask(Direction::Egress, from, to) && ask(Direction::Ingress, to, from)
    }
}

fn endpoint(pod: &Pod) -> Endpoint {
    Endpoint {
        id: PortId(pod.serial),
        network: NetworkId(0),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        labels: pod.labels.clone(),
        named_ports: pod.ports.clone(),
    }
}
