//! The world of a case as its actions leave it. Policies and namespaces come in through the same strict reader as `apply`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use hostweave::config::{Kind, Object, ObjectKey, Origin, Spec};
use hostweave::fabric::spec::PolicySpec;
use hostweave_policy::model::{self, Labels};
use serde_json::json;

use crate::data::{self, Action, Verdict};

/// Pods, namespaces and policies.
#[derive(Default)]
pub struct Cluster {
    /// What a pod serves that does not say.
    served: Vec<model::NamedPort>,
    /// By `namespace/name`, external addresses among them.
    pub pods: BTreeMap<String, Pod>,
    namespaces: BTreeMap<String, Arc<model::Namespace>>,
    /// By kind, namespace and name.
    policies: BTreeMap<ObjectKey, Spec>,
    /// Pods that there have been.
    created: u32,
}

/// A pod as it is now.
pub struct Pod {
    /// Differs from that of every other pod of the case, those that are gone included.
    pub serial: u32,
    pub namespace: String,
    pub name: String,
    pub address: IpAddr,
    pub labels: Labels,
    pub ports: Vec<model::NamedPort>,
    pub external: bool,
}

impl Cluster {
    /// The world in which a case starts.
    ///
    /// # Errors
    /// When the data contradicts itself.
    pub fn new(file: &data::File, case: &data::Case) -> anyhow::Result<Self> {
        let mut cluster = Cluster { served: named_ports(&file.named_ports), ..Cluster::default() };
        for pod in file.pods_of(case)? {
            // Of an address outside there is no namespace to know.
            let (namespace, _) = split(&pod.pod)?;
            if !pod.external && !cluster.namespaces.contains_key(namespace) {
                let labels = pod.ns_labels.clone().unwrap_or_default();
                cluster.set_namespace(namespace, labels)?;
            }
            cluster.create_pod(pod)?;
        }
        Ok(cluster)
    }

    /// Makes one change.
    ///
    /// # Errors
    /// When it cannot be made: the object is there already, or is not there, or is refused.
    pub fn act(&mut self, action: &Action) -> anyhow::Result<()> {
        match action {
            Action::CreatePolicy { policy } => self.set_policy(policy, false),
            Action::UpdatePolicy { policy } => self.set_policy(policy, true),
            Action::DeletePolicy { namespace, name } => {
                let kind = if namespace.is_some() { Kind::NetworkPolicy } else { Kind::ClusterNetworkPolicy };
                let key = ObjectKey::new(kind, namespace.as_deref(), name);
                self.policies.remove(&key).map(drop).with_context(|| format!("{key} is not there"))
            }
            Action::CreateNamespace { namespace, .. } if self.namespaces.contains_key(namespace) => {
                bail!("namespace {namespace} is there already")
            }
            Action::CreateNamespace { namespace, labels } => self.set_namespace(namespace, labels.clone()),
            Action::SetNamespaceLabels { namespace, labels } => {
                self.namespace(namespace)?;
                self.set_namespace(namespace, labels.clone())
            }
            Action::AddNamespaceLabels { namespace, labels } => {
                let mut all = self.namespace(namespace)?.labels.clone();
                all.extend(labels.clone());
                self.set_namespace(namespace, all)
            }
            Action::DeleteNamespace { namespace } => {
                self.namespaces.remove(namespace).with_context(|| format!("namespace {namespace} is not there"))?;
                // What is in it goes with it (SEMANTICS NP9).
                self.policies.retain(|key, _| key.namespace.as_ref() != Some(namespace));
                self.pods.retain(|_, pod| pod.external || pod.namespace != *namespace);
                Ok(())
            }
            Action::CreatePod(pod) => self.create_pod(pod.clone()),
            Action::SetPodLabels { pod, labels } => {
                self.pod(pod)?.labels.clone_from(labels);
                Ok(())
            }
            Action::AddPodLabels { pod, labels } => {
                self.pod(pod)?.labels.extend(labels.clone());
                Ok(())
            }
            Action::DeletePod { pod } => {
                self.pods.remove(pod).map(drop).with_context(|| format!("pod {pod} is not there"))
            }
        }
    }

    /// Pods in the cluster, and their full names.
    pub fn inside(&self) -> impl Iterator<Item = (&String, &Pod)> {
        self.pods.iter().filter(|(_, pod)| !pod.external)
    }

    /// Sender and receiver of a flow.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn ends(&self, verdict: &Verdict) -> anyhow::Result<[&Pod; 2]> {
        let find = |name: &String| self.pods.get(name).with_context(|| format!("{verdict}: no pod {name}"));
        Ok([find(&verdict.from)?, find(&verdict.to)?])
    }

    /// What policy depends on besides the pods. What did not change is the same `Arc` as before.
    pub fn policy_spec(&self) -> PolicySpec {
        let mut spec = PolicySpec { namespaces: self.namespaces.clone(), ..PolicySpec::default() };
        for object in self.policies.values() {
            match object {
                Spec::NetworkPolicy(policy) => spec.policies.push(Arc::clone(policy)),
                Spec::ClusterNetworkPolicy(policy) => spec.cluster_policies.push(Arc::clone(policy)),
                _ => {}
            }
        }
        spec
    }

    fn pod(&mut self, name: &str) -> anyhow::Result<&mut Pod> {
        self.pods.get_mut(name).filter(|pod| !pod.external).with_context(|| format!("pod {name} is not there"))
    }

    fn namespace(&self, name: &str) -> anyhow::Result<&Arc<model::Namespace>> {
        self.namespaces.get(name).with_context(|| format!("namespace {name} is not there"))
    }

    fn create_pod(&mut self, pod: data::Pod) -> anyhow::Result<()> {
        let (namespace, name) = split(&pod.pod)?;
        if !pod.external {
            let known = &self.namespace(namespace)?.labels;
            if pod.ns_labels.as_ref().is_some_and(|labels| labels != known) {
                bail!("pod {} says that its namespace has other labels than it has", pod.pod);
            }
        }
        let made = Pod {
            serial: self.created,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            address: pod.ip,
            labels: pod.labels,
            ports: pod.ports.as_deref().map_or_else(|| self.served.clone(), named_ports),
            external: pod.external,
        };
        self.created += 1;
        match self.pods.entry(pod.pod) {
            Entry::Occupied(entry) => bail!("pod {} is there already", entry.key()),
            Entry::Vacant(entry) => entry.insert(made),
        };
        Ok(())
    }

    fn set_namespace(&mut self, name: &str, labels: Labels) -> anyhow::Result<()> {
        let written = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        match read(&written)?.spec {
            Spec::Namespace(namespace) => drop(self.namespaces.insert(name.to_owned(), namespace)),
            _ => bail!("{name} is no namespace"),
        }
        Ok(())
    }

    fn set_policy(&mut self, written: &serde_json::Value, known: bool) -> anyhow::Result<()> {
        let object = read(written)?;
        if !matches!(object.spec, Spec::NetworkPolicy(_) | Spec::ClusterNetworkPolicy(_)) {
            bail!("{} is no policy", object.key);
        }
        if let Some(namespace) = &object.key.namespace {
            self.namespace(namespace)?;
        }
        if self.policies.contains_key(&object.key) != known {
            bail!("{} is {}", object.key, if known { "not there" } else { "there already" });
        }
        self.policies.insert(object.key, object.spec);
        Ok(())
    }
}

fn read(written: &serde_json::Value) -> anyhow::Result<Object> {
    let (object, _warnings) = Object::from_json(written, Origin::Store).context("it is refused")?;
    Ok(object)
}

fn split(pod: &str) -> anyhow::Result<(&str, &str)> {
    pod.split_once('/').with_context(|| format!("{pod:?} is not NAMESPACE/NAME"))
}

fn named_ports(ports: &[data::NamedPort]) -> Vec<model::NamedPort> {
    let port = |port: &data::NamedPort| model::NamedPort {
        name: port.name.clone(),
        protocol: port.protocol.of_policy(),
        port: port.port,
    };
    ports.iter().map(port).collect()
}
