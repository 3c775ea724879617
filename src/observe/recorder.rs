//! What watches a packet on its way: nobody, for a worker; `trace`, for a person.

use hostweave_nat::service::Why;
use hostweave_policy::infrastructure::BuiltIn;
use hostweave_policy::table::{Decision, Flow};
use hostweave_switch::connection::Found;
use hostweave_switch::stage::Verdict;
use hostweave_switch::tables::PortId;

/// What a stage tells.
#[derive(Clone, Copy, Debug)]
pub enum Detail {
    /// What it decided.
    Verdict(Verdict),
    /// The flow is in the cache.
    Hit,
    /// It is not; or there is no connection.
    Miss,
    /// There is a connection.
    Connection(Found),
    /// An ICMP error about a connection.
    Related(Found),
    /// What policy was asked, and answered.
    Policy(Flow, Decision),
    /// A built-in rule lets it pass whatever policies say.
    BuiltIn(BuiltIn),
    /// Its destination is this address and L4 port, inside.
    Destination(u128, u16),
    /// A Service has given it to a backend.
    Service(Balanced),
    /// It leaves as this address and L4 port or identifier; `None` if that is not settled before it really does.
    Source(Option<(u128, u16)>),
    /// It leads to this port.
    Port(PortId),
    /// Here a connection would begin.
    Masked,
}

/// Which backend a connection to a Service got.
#[derive(Clone, Copy, Debug)]
pub struct Balanced {
    /// The network that knows the Service's address, or that of the uplink.
    pub scope: u32,
    /// Address and L4 port of the backend.
    pub to: (u128, u16),
    /// Why this one.
    pub why: Why,
}

/// Watches the stages of [`crate::datapath`].
pub trait Recorder {
    /// Nothing may be changed: no connection begins, none is kept alive.
    const MASKED: bool;

    /// A stage has done its part. Names are those of `hostweave_switch::stage::STAGES`.
    fn stage(&mut self, name: &'static str, detail: Detail);
}

/// Watches nothing and costs nothing.
pub struct Unwatched;

impl Recorder for Unwatched {
    const MASKED: bool = false;

    #[inline(always)]
    fn stage(&mut self, _name: &'static str, _detail: Detail) {}
}
