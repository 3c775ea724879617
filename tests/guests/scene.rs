//! Guests under policies that are written as people write them, and what becomes of each packet.
//!
//! Nothing waits for a packet that does not come: the ledger says which packets were dropped, and why.

use std::sync::Arc;

use hostweave::config::{Source, Spec, load_sources};
use hostweave_guest::frames::{Body, Frame, L4, Path};
use hostweave_guest::{Guest, VnetHeader};
use hostweave_policy::model::Labels;
use hostweave_switch::counters::PortTotals;
use hostweave_switch::stage::DropReason;

use crate::support::{Host, PATIENCE, Up, eventually, paths};

/// A packet ended because of policy.
pub const DENIED: Result<(), DropReason> = Err(DropReason::PolicyDenied);
/// It went on.
pub const PASSED: Result<(), DropReason> = Ok(());

/// Ports `a`, `b`, `c`… of namespace `test`, each with its name as label `app`, and their guests.
pub struct Scene {
    pub host: Host,
    pub guests: Vec<Guest>,
    /// Of the next flow.
    src_port: u16,
}

impl Scene {
    /// With as many ports as there are names.
    pub fn new(names: &[&str]) -> Self {
        let mut host = Host::new(1);
        for (n, name) in (10..).zip(names) {
            let mut spec = host.spec("default", name, n, 1);
            spec.labels.insert("app".into(), (*name).into());
            host.desired.ports.push(spec.into());
        }
        host.apply();
        let guests = host.desired.ports.iter().map(|spec| host.guest(spec).up()).collect();
        Self { host, guests, src_port: 30_000 }
    }

    /// Replaces policies and namespaces by those of a text.
    pub fn policies(&mut self, yaml: &str) {
        let source = Source { name: "scene.yaml".into(), text: yaml.into() };
        let loaded = load_sources(vec![source]).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        let policy = &mut self.host.desired.policy;
        policy.policies.clear();
        policy.cluster_policies.clear();
        policy.namespaces.clear();
        for object in loaded.objects {
            match &object.spec {
                Spec::NetworkPolicy(one) => policy.policies.push(Arc::clone(one)),
                Spec::ClusterNetworkPolicy(one) => policy.cluster_policies.push(Arc::clone(one)),
                Spec::Namespace(one) => drop(policy.namespaces.insert(one.name.clone(), Arc::clone(one))),
                other => panic!("{other:?}"),
            }
        }
        self.host.apply();
    }

    /// Gives a port other labels: `app=b role=client`.
    pub fn label(&mut self, port: usize, labels: &str) {
        let pairs = labels.split_whitespace().map(|label| label.split_once('=').unwrap());
        let labels: Labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        self.host.desired.ports.edit(port).unwrap().labels = labels;
        self.host.apply();
    }

    /// The ways from one port to another: IPv4 first.
    pub fn paths(&self, from: usize, to: usize) -> Vec<Path> {
        paths(&self.host.desired.ports[from], &self.host.desired.ports[to])
    }

    fn totals(&self, port: usize) -> PortTotals {
        self.host.fabric.port_status(&self.host.desired.ports[port].full_name()).unwrap().totals
    }

    /// Sends one frame and says what became of it.
    pub fn fate(&mut self, from: usize, frame: &[u8]) -> Result<(), DropReason> {
        // What the guest has sent by itself before is counted by then.
        self.guests[from].nic().drain_tx(PATIENCE).unwrap();
        let before = self.totals(from);
        self.guests[from].send_frame(frame, &VnetHeader::default()).unwrap();
        eventually("the switch has taken the frame", || {
            let now = self.totals(from);
            now.received == before.received + 1 && now.input_closes()
        });
        let now = self.totals(from);
        let count = |totals: &PortTotals, reason| {
            totals.dropped.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count)
        };
        let grown = now.dropped.iter().find(|(reason, _)| count(&before, *reason) < count(&now, *reason));
        grown.map_or(Ok(()), |(reason, _)| Err(*reason))
    }

    /// The next frame that is for a guest and comes from another.
    pub fn next(&mut self, at: usize) -> Frame {
        loop {
            let (header, frame) = self.guests[at].recv_frame(PATIENCE).unwrap();
            let frame = Frame::parse(&header, &frame).unwrap();
            let advertisement = matches!(&frame.body, Body::Ip { l4: L4::Icmp { kind: 133..=137, .. }, .. });
            if matches!(frame.body, Body::Ip { .. }) && !advertisement {
                return frame;
            }
        }
    }

    /// As [`Scene::fate`]; a frame that goes on must arrive with this destination.
    pub fn deliver(&mut self, from: usize, to: usize, path: &Path, frame: &[u8]) -> Result<(), DropReason> {
        self.fate(from, frame)?;
        match self.next(to).body {
            Body::Ip { src, dst, .. } => assert_eq!((src, dst), (path.src, path.dst)),
            body => panic!("{body:?}"),
        }
        Ok(())
    }

    /// What becomes of a new UDP flow, the same in both families.
    pub fn udp(&mut self, from: usize, to: usize, dst_port: u16) -> Result<(), DropReason> {
        self.src_port += 1;
        let src_port = self.src_port;
        self.both(from, to, |path| path.udp(src_port, dst_port, b"new"))
    }

    /// What becomes of a frame, made for each family: it must be the same.
    pub fn both(&mut self, from: usize, to: usize, make: impl Fn(&Path) -> Vec<u8>) -> Result<(), DropReason> {
        let paths = self.paths(from, to);
        let fates: Vec<Result<(), DropReason>> =
            paths.iter().map(|path| self.deliver(from, to, path, &make(path))).collect();
        assert_eq!(fates[0], fates[1], "IPv4 and IPv6");
        fates[0]
    }
}
