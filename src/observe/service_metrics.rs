//! Metrics of Services.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::fabric::balance::report::ServiceCounts;

/// Writes them. `refused` are packets that met no backend.
pub(super) fn encode(
    services: &[ServiceCounts],
    refused: u64,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), Error> {
    {
        let help = "Backends of Services by state, counted for each L4 port";
        let mut metric = encoder.encode_descriptor("service_backends", help, None, MetricType::Gauge)?;
        for counts in services {
            for (state, count) in &counts.backends {
                let labels = [("service", &*counts.service), ("state", state.name())];
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                ConstGauge::new(count).encode(metric.encode_family(&labels)?)?;
            }
        }
    }
    {
        let help = "Connections that have begun to a Service";
        let mut metric = encoder.encode_descriptor("service_connections", help, None, MetricType::Counter)?;
        for counts in services {
            let labels = [("service", &*counts.service)];
            ConstCounter::new(counts.connections).encode(metric.encode_family(&labels)?)?;
        }
    }
    {
        let help = "Backends of a Service that were ejected because clients could not connect to them";
        let mut metric = encoder.encode_descriptor("service_ejections", help, None, MetricType::Counter)?;
        for counts in services {
            ConstCounter::new(counts.ejections).encode(metric.encode_family(&[("service", &*counts.service)])?)?;
        }
    }
    let help = "Packets to Services that had no backend for them";
    ConstCounter::new(refused).encode(encoder.encode_descriptor(
        "service_no_backend",
        help,
        None,
        MetricType::Counter,
    )?)
}
