//! Ports and Pods that change by themselves: no other object is given anything else for that, and nobody is to be told anything about it. What
//! is doubtful is none of these, and is planned with everything else.

use std::path::Path;
use std::sync::Arc;

use super::{Claims, ObjectSet, check_attachment, check_counts, check_pod, check_port};
use crate::config::checked::{Backend, Object, Port, Spec, annotations};
use crate::config::kind::{Kind, ObjectKey};

/// Ports and Pods that are looked at one by one.
const OBJECTS_MAX: usize = 64;

/// Whether a port or Pod that is written, or deleted, is one by itself, as far as it and what was there before say.
pub(super) fn is_lone(set: &ObjectSet, gone: bool, object: &Object) -> bool {
    let of = |kind| set.get(&ObjectKey::new(kind, object.key.namespace.as_deref(), &object.key.name)).map(|it| &**it);
    let (port, pod) = (of(Kind::Port), of(Kind::Pod));
    // Who has the address of a Service, and which, is settled among all.
    let attaches = |object: &Object| object.metadata.annotations.contains_key(annotations::ATTACH);
    if [port, pod, Some(object)].into_iter().flatten().any(attaches) {
        return false;
    }
    match (&object.spec, port.map(|port| &port.spec)) {
        // Without a port it is dubious.
        (Spec::Pod, before) => before.is_some(),
        (Spec::Port(_), Some(Spec::Port(before))) if gone => pod.is_none() && !is_hosts(before),
        (Spec::Port(now), Some(Spec::Port(before))) => has_the_same(before, now),
        (Spec::Port(now), None) => pod.is_none() && !is_hosts(now),
        _ => false,
    }
}

/// Whether nothing is wrong with ports and Pods of a set that was `before` without them, alone or beside others.
pub(super) fn fit<'a>(
    before: &ObjectSet,
    set: &ObjectSet,
    changes: impl Iterator<Item = &'a (bool, &'a Arc<Object>)>,
    runtime_dir: &Path,
) -> bool {
    let mut found = Vec::new();
    let mut new = false;
    for (index, (gone, object)) in changes.enumerate() {
        if index == OBJECTS_MAX {
            return false;
        }
        if !gone
            && let Some(pod) = set.get(&ObjectKey::new(Kind::Pod, object.key.namespace.as_deref(), &object.key.name))
        {
            check_pod(set, pod, &mut found);
        }
        match &object.spec {
            Spec::Port(port) if !gone && before.get(&object.key).is_none() => {
                new = true;
                let mut claims = Claims::default();
                let others = set.ports().filter(|(key, _, other)| **key != object.key && may_share(other, port));
                for (_, object, port) in others.chain([(&object.key, &***object, port)]) {
                    check_port(set, object, port, &mut claims, &mut found);
                    check_attachment(object, port, runtime_dir, &mut claims, &mut found);
                }
            }
            _ => {}
        }
    }
    if new {
        check_counts(set, &mut found);
    }
    found.is_empty()
}

/// Whether two ports may want something that only one can have.
fn may_share(a: &Port, b: &Port) -> bool {
    let mac = a.mac.is_some() && a.mac == b.mac;
    let address = || a.fixed().any(|address| b.fixed().any(|other| other == address));
    a.network == b.network && (mac || address())
        || match (&a.backend, &b.backend) {
            // Where neither is written they have their names.
            (Backend::VhostUser(a), Backend::VhostUser(b)) => a.socket.is_some() || b.socket.is_some(),
            (Backend::VhostUser(_), _) | (_, Backend::VhostUser(_)) => false,
            _ => true,
        }
}

/// Whether two versions of a port have the same addresses and attachment.
fn has_the_same(a: &Port, b: &Port) -> bool {
    let of = |port: &'_ Port| (port.network.clone(), port.mac, port.v4.clone(), port.v6.clone());
    of(a) == of(b) && a.backend == b.backend && !is_hosts(a)
}

/// Whether it is the host's own, which follows from its HostConfig.
fn is_hosts(port: &Port) -> bool {
    matches!(port.backend, Backend::Host(_))
}
