//! What `trace` says of a flow: the packet path's own stages, run on a made-up packet so that they change nothing.

use std::collections::HashMap;

use anyhow::Context;
use hostweave::fabric::{Fabric, Picture};
use hostweave::observe::synthetic::{self, Tuple};
use hostweave::observe::trace::{self, Ended, Request};
use hostweave_guest::frames::Path;
use hostweave_switch::stage::DropReason;
use hostweave_switch::tables::PortId;

use crate::data::{Protocol, Verdict};

/// The tables as they are now.
pub struct Tracer<'a> {
    fabric: &'a Fabric,
    picture: Picture,
    /// By name.
    ports: HashMap<String, PortId>,
}

impl<'a> Tracer<'a> {
    /// Looks at what a host has published.
    pub fn new(fabric: &'a Fabric) -> Self {
        let picture = fabric.picture();
        let ports = picture.plane.tables.ports.iter().flatten().map(|port| (port.name.clone(), port.id)).collect();
        Self { fabric, picture, ports }
    }

    /// Whether the first packet of a flow with these L4 ports would go on, sent by port `from`; if not, it is policy that drops it.
    ///
    /// # Errors
    /// There is no such port or packet, or it would end for another reason.
    pub fn probe_verdict(
        &self,
        from: &str,
        verdict: &Verdict,
        path: &Path,
        [src_port, dst_port]: [u16; 2],
    ) -> anyhow::Result<bool> {
        let from = *self.ports.get(from).with_context(|| format!("no port {from}"))?;
        let protocol = match verdict.protocol {
            Protocol::Tcp => synthetic::Protocol::Tcp,
            Protocol::Udp => synthetic::Protocol::Udp,
            Protocol::Sctp => synthetic::Protocol::Sctp,
        };
        let tuple = Tuple { src: path.src, dst: path.dst, protocol, src_port, dst_port };
        let told = trace::run(&self.fabric.scene(&self.picture), &Request { from, tuple })?;
        match (told.verdict, told.reason.as_deref()) {
            (Ended::Forwarded, _) => Ok(true),
            (Ended::Dropped, Some(reason)) if reason == DropReason::PolicyDenied.name() => Ok(false),
            (ended, reason) => anyhow::bail!("{verdict}: trace says {ended:?} {reason:?}"),
        }
    }
}
