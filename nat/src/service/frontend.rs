//! One address and range of L4 ports of a Service: which backend a new connection gets, and whether one that has begun may go on.

use std::net::Ipv6Addr;
use std::sync::atomic::AtomicU16;
use std::sync::{Arc, OnceLock};

use hostweave_switch::wire::proto;

use super::affinity::Affinity;
use super::group::Group;
use super::hash;
use super::maglev::Maglev;
use super::model::{Backend, FrontendSpec, Refusal};

/// A frontend, compiled.
#[derive(Debug)]
pub struct Frontend {
    pub(crate) spec: FrontendSpec,
    pub(crate) group: Arc<Group>,
    /// Those of the group, a step nearer.
    table: Maglev,
    backends: Arc<[Backend]>,
    /// For whoever looks up [`FrontendSpec::vni`]: the index that its network had last. A hint, to be checked.
    pub network: AtomicU16,
    /// `sessionAffinity`: for how many seconds, and what is remembered.
    affinity: Option<(u32, Arc<Affinity>)>,
    /// Of the Service and the name of its L4 port: clients keep their backends per L4 port of a Service, over all of its addresses,
    /// as kube-proxy has it.
    identity: u64,
}

/// Who asks for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// [`of_tuple`](super::hash::of_tuple) of the connection.
    pub hash: u64,
    /// Its address, IPv4-mapped for IPv4.
    pub client: u128,
    /// The L4 port that it asks for.
    pub l4: u16,
    /// Looks before this one that led to nothing. Each finds another backend, if there are several.
    pub attempt: u32,
    /// Seconds of the monotonic clock.
    pub now: u32,
}

/// The backend of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// Who it is.
    pub backend: &'a Backend,
    /// Its L4 port.
    pub l4: u16,
    /// Why this one.
    pub why: Why,
}

/// Why a connection gets a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// The table has it.
    Maglev,
    /// The client has it already.
    Affinity,
}

/// How a connection stands whose Service may have changed since it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its backend takes new connections as well.
    Active,
    /// Its backend takes no new ones: what is established over TCP or SCTP goes on, everything else selects again (SEMANTICS SV5, SV9).
    Draining,
    /// Its backend takes no new ones for a while, because clients could not connect to it: what it has answered goes on.
    Ejected,
    /// The Service, its L4 port or its backend is gone.
    Gone,
}

impl Frontend {
    /// `affinity` is what frontends share whose clients keep their backends.
    pub(crate) fn new(spec: FrontendSpec, group: Arc<Group>, affinity: &OnceLock<Arc<Affinity>>) -> Self {
        let identity = hash::of_port(&spec.service, &spec.port_name);
        let shared = |seconds| (seconds, Arc::clone(affinity.get_or_init(Arc::default)));
        let (table, backends) = (group.table.clone(), Arc::clone(&group.backends));
        let affinity = spec.affinity_s.map(shared);
        Self { spec, group, table, backends, network: AtomicU16::new(0), affinity, identity }
    }

    /// What it was compiled from.
    pub fn spec(&self) -> &FrontendSpec {
        &self.spec
    }

    /// Backends that take new connections, and all that are listed.
    pub fn counts(&self) -> (usize, usize) {
        (self.group.active, self.backends.len())
    }

    /// Whether a client may use it (SEMANTICS SV18).
    #[inline]
    pub fn admits(&self, client: u128) -> bool {
        if self.spec.sources.is_empty() {
            return true;
        }
        let client = Ipv6Addr::from(client).to_canonical();
        self.spec.sources.iter().any(|range| range.contains(&client))
    }

    /// The backend of a new connection. With `sessionAffinity` the client's own, if that takes new connections; otherwise the table's,
    /// by the client's address. Whether the client [may](Self::admits) is not looked at.
    ///
    /// # Errors
    /// None takes new connections: what the client gets (SEMANTICS SV16).
    pub fn choose(&self, asking: &Asking) -> Result<Chosen<'_>, Refusal> {
        if let Some((timeout, affinity)) = &self.affinity
            && asking.attempt == 0
            && let Some(name) = affinity.find(self.identity, asking.client, asking.now, *timeout)
            && let Some(index) = self.group.named(name)
            && let Some(backend) = self.backends.get(index)
        {
            return Ok(self.chosen(backend, asking, Why::Affinity));
        }
        let hash = match self.affinity {
            Some(_) => hash::of_client(self.identity, asking.client),
            None => asking.hash,
        };
        let index = self.table.pick(hash::again(hash, asking.attempt));
        let backend = index.and_then(|index| self.backends.get(usize::from(index)));
        let backend = backend.ok_or(self.spec.refusal)?;
        Ok(self.chosen(backend, asking, Why::Maglev))
    }

    fn chosen<'a>(&'a self, backend: &'a Backend, asking: &Asking, why: Why) -> Chosen<'a> {
        Chosen { backend, l4: backend.l4.unwrap_or(asking.l4), why }
    }

    /// Counts that a connection of `client` has begun with the backend `name`; with `sessionAffinity` it is remembered (SEMANTICS SV10).
    pub fn begun(&self, client: u128, name: &str, now: u32) {
        self.spec.begun.add();
        if let Some((timeout, affinity)) = &self.affinity {
            affinity.keep(self.identity, client, hash::of_name(name), now, *timeout);
        }
    }

    /// The backend with this address, and this L4 port for who asked for `l4` of the frontend.
    pub fn backend(&self, l4: u16, address: u128, backend_l4: u16) -> Option<&Backend> {
        // One address may be listed twice, by two names.
        let of = self.group.at(address).filter(|(_, backend)| backend.l4.unwrap_or(l4) == backend_l4);
        of.map(|(_, backend)| backend).max_by_key(|backend| (backend.active, backend.ejected))
    }

    /// How a connection to L4 port `l4` of the frontend stands that goes to a backend's `address` and L4 port `backend_l4`.
    pub fn standing(&self, l4: u16, address: u128, backend_l4: u16) -> Standing {
        match self.backend(l4, address, backend_l4) {
            Some(backend) if backend.active => Standing::Active,
            Some(backend) if backend.ejected => Standing::Ejected,
            Some(_) => Standing::Draining,
            None => Standing::Gone,
        }
    }
}

impl Standing {
    /// Whether a connection of this protocol goes on. `established`: whether its backend has answered it; over TCP and SCTP a backend
    /// has state of a connection that is lost elsewhere.
    pub fn goes_on(self, proto: u8, established: bool) -> bool {
        match self {
            Self::Active => true,
            Self::Ejected => established,
            Self::Draining => matches!(proto, proto::TCP | proto::SCTP) && established,
            Self::Gone => false,
        }
    }
}
