//! What happened and how much: the log of events, the flow log, and the metrics. All are read by people and programs; none is
//! ever asked by the packet path.

mod balanced;
mod dns_metrics;
pub mod drop_reason;
pub mod events;
pub mod flow;
pub mod flow_event;
pub mod flow_filter;
pub mod flow_log;
pub mod flow_record;
pub mod flow_text;
mod metadata_metrics;
pub mod metrics;
pub mod recorder;
mod service_metrics;
pub mod synthetic;
pub mod time;
pub mod trace;
