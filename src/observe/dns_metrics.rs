//! Metrics of DNS at the gateways, and of names in a real zone.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::services::dns::DnsReport;
use crate::services::external_dns::ExternalDnsReport;

/// Writes them.
pub(super) fn encode(report: &DnsReport, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    {
        let help = "Answers to guests; zone is cluster, reverse, special, cache, upstream or failed";
        let mut metric = encoder.encode_descriptor("dns_queries", help, None, MetricType::Counter)?;
        for (zone, code, count) in &report.answers {
            ConstCounter::new(*count).encode(metric.encode_family(&[("zone", *zone), ("rcode", *code)])?)?;
        }
    }
    {
        let help = "What got no answer, or no whole one";
        let mut metric = encoder.encode_descriptor("dns_refusals", help, None, MetricType::Counter)?;
        for (reason, count) in [
            ("no_query", report.ignored),
            ("limit", report.limited),
            ("truncated", report.truncated),
            ("buffer_full", report.lost),
            ("connection_cut", report.connections_cut),
        ] {
            ConstCounter::new(count).encode(metric.encode_family(&[("reason", reason)])?)?;
        }
    }
    {
        let help = "1 for an upstream server that answers, 0 for one that does not";
        let mut metric = encoder.encode_descriptor("dns_upstream_up", help, None, MetricType::Gauge)?;
        for (server, up) in &report.upstreams {
            ConstGauge::new(i64::from(*up)).encode(metric.encode_family(&[("server", server.as_str())])?)?;
        }
    }
    let mut counter = |name: &str, help: &str, value: u64| {
        ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    };
    counter("dns_upstream_queries", "Questions to upstream servers", report.exchanges)?;
    counter("dns_upstream_failures", "Questions that an upstream server did not answer", report.upstream_failures)?;
    let cached = i64::try_from(report.cached).unwrap_or(i64::MAX);
    let help = "Answers of upstream servers that are kept";
    ConstGauge::new(cached).encode(encoder.encode_descriptor("dns_cache_entries", help, None, MetricType::Gauge)?)
}

/// Writes those of external DNS.
pub(super) fn encode_external(report: &ExternalDnsReport, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    for (name, help, value) in [
        ("external_dns_updates", "Names in the zone that were made, changed or deleted", report.updates),
        ("external_dns_looks", "Looks at the zone: its serial number, or all of it", report.looks),
        ("external_dns_transfers", "Looks that read all of the zone", report.transfers),
        ("external_dns_failures", "Looks at the zone that failed", report.failures),
    ] {
        ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
    }
    let refused = i64::try_from(report.refused).unwrap_or(i64::MAX);
    let help = "Names that Services do not get because the zone's server does not take them";
    ConstGauge::new(refused).encode(encoder.encode_descriptor(
        "external_dns_refused",
        help,
        None,
        MetricType::Gauge,
    )?)?;
    let conflicts = i64::try_from(report.conflicts).unwrap_or(i64::MAX);
    let help = "Names that Services do not get because somebody else has them";
    ConstGauge::new(conflicts).encode(encoder.encode_descriptor(
        "external_dns_conflicts",
        help,
        None,
        MetricType::Gauge,
    )?)
}
