//! What watches a packet on its way: nobody, for a worker; `trace`, for a person.

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
    /// It leaves as this address and L4 port or identifier; `None` if that is not settled before it really does.
    Source(Option<(u128, u16)>),
    /// It leads to this port.
    Port(PortId),
    /// Here a connection would begin.
    Masked,
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
