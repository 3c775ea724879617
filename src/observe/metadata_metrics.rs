//! Metrics of metadata for guests.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::services::metadata::MetadataReport;

/// Writes them.
pub(super) fn encode(report: &MetadataReport, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    {
        let help = "Answers to guests that asked for metadata";
        let mut metric = encoder.encode_descriptor("metadata_requests", help, None, MetricType::Counter)?;
        for (status, count) in &report.answers {
            ConstCounter::new(*count).encode(metric.encode_family(&[("status", status.as_str())])?)?;
        }
    }
    let help = "Connections that were refused because of a limit, or cut off: too slow, or no HTTP";
    let mut metric = encoder.encode_descriptor("metadata_connections_lost", help, None, MetricType::Counter)?;
    for (reason, count) in [("limit", report.refused), ("cut", report.cut)] {
        ConstCounter::new(count).encode(metric.encode_family(&[("reason", reason)])?)?;
    }
    Ok(())
}
