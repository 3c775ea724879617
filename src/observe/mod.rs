//! What happened and how much: the log of events and the metrics. Both are read by people and programs; neither is
//! ever asked by the packet path.

pub mod events;
pub mod flow_event;
pub mod metrics;
pub mod recorder;
pub mod synthetic;
pub mod time;
pub mod trace;
