//! Metrics in OpenMetrics text. Nothing is kept for them: a scrape reads the counters of ports and workers.

use std::fmt::Error;
use std::net::IpAddr;

use hostweave_nat::{RefusedCounts, Stats};
use hostweave_switch::stage::DropReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use hostweave_switch::counters::PortTotals;

use crate::fabric::balance::report::ServiceCounts;
use crate::fabric::report::{ConnectionReport, PolicyReport};
use crate::services::dns::DnsReport;
use crate::services::external_dns::ExternalDnsReport;
use crate::services::metadata::MetadataReport;
use crate::worker::verdicts::{ACTIONS, DIRECTIONS, MATCHES};

/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One port at the time of a scrape.
#[derive(Clone, Debug)]
pub struct PortSample {
    /// `namespace/name`.
    pub port: String,
    /// Its state.
    pub state: &'static str,
    /// Its counters.
    pub totals: PortTotals,
}

/// One worker at the time of a scrape. Seconds since the daemon started.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSample {
    /// Moving packets.
    pub busy_s: f64,
    /// Polling for nothing.
    pub polling_s: f64,
    /// Asleep.
    pub asleep_s: f64,
    /// Frames taken.
    pub packets: u64,
}

/// One NAT address at the time of a scrape.
#[derive(Clone, Debug)]
pub struct NatAddressSample {
    /// Its pool; empty for one that no pool has any more.
    pub pool: String,
    /// The address.
    pub address: IpAddr,
    /// L4 ports in blocks of workloads, and how many there are.
    pub leased: [u64; 2],
    /// L4 ports in use: UDP, TCP, ICMP identifiers.
    pub used: [u32; 3],
}

/// The uplink at the time of a scrape.
#[derive(Clone, Debug)]
pub struct UplinkSample {
    /// Its interface.
    pub interface: String,
    /// Whether frames pass.
    pub up: bool,
    /// Routers, and whether they answer.
    pub gateways: Vec<(IpAddr, bool)>,
    /// Its counters.
    pub totals: PortTotals,
    /// Frames from outside that the kernel dropped.
    pub missed: u64,
}

/// Everything that a scrape reads.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Ports.
    pub ports: Vec<PortSample>,
    /// Workers.
    pub workers: Vec<WorkerSample>,
    /// States that a port may have.
    pub port_states: &'static [&'static str],
    /// Revision of the objects.
    pub revision: u64,
    /// Events so far.
    pub events: u64,
    /// Events that subscribers have missed.
    pub events_lost: u64,
    /// Policy.
    pub policy: PolicyReport,
    /// Connections.
    pub connections: ConnectionReport,
    /// What the flow log has not, and what its subscribers missed.
    pub flows_lost: u64,
    /// DNS at the gateways.
    pub dns: DnsReport,
    /// Names of Services in a real zone.
    pub external_dns: ExternalDnsReport,
    /// Metadata for guests.
    pub metadata: MetadataReport,
    /// Services.
    pub services: Vec<ServiceCounts>,
    /// NAT.
    pub nat: Stats,
    /// Its addresses.
    pub nat_addresses: Vec<NatAddressSample>,
    /// NAT mappings that were refused, by pool.
    pub nat_refused: Vec<(String, RefusedCounts)>,
    /// The uplink, if there is one.
    pub uplink: Option<UplinkSample>,
}

impl Sample {
    /// The text.
    ///
    /// # Errors
    /// None that is known of; the encoder reports errors of its writer.
    pub fn encode(self) -> Result<String, Error> {
        let mut registry = Registry::with_prefix("hostweave");
        let revision = option_env!("HOSTWEAVE_GIT_REVISION").unwrap_or("unknown");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("revision", revision)]);
        registry.register("build", "Version of the daemon", build);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }

    fn port_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        type Read = fn(&PortTotals) -> u64;
        let counters: [(&str, &str, Option<Unit>, Read); 4] = [
            ("port_receive", "Octets from the guest", Some(Unit::Bytes), |totals| totals.received_bytes),
            ("port_receive_packets", "Frames from the guest", None, |totals| totals.received),
            ("port_transmit", "Octets to the guest", Some(Unit::Bytes), |totals| totals.transmitted_bytes),
            ("port_transmit_packets", "Frames to the guest", None, |totals| totals.transmitted),
        ];
        for (name, help, unit, read) in counters {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for sample in &self.ports {
                let labels = [("port", sample.port.as_str())];
                ConstCounter::new(read(&sample.totals)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn port_drops(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "Frames that ended; egress comes from the guest, ingress goes to it";
        let mut metric = encoder.encode_descriptor("port_drops", help, None, MetricType::Counter)?;
        for sample in &self.ports {
            let directions = [("egress", &sample.totals.dropped), ("ingress", &sample.totals.tx_dropped)];
            for (direction, drops) in directions {
                for (reason, count) in drops.iter() {
                    let reason: &DropReason = reason;
                    let labels = [("port", sample.port.as_str()), ("direction", direction), ("reason", reason.name())];
                    ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    fn port_states(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut metric =
            encoder.encode_descriptor("port_state", "1 for the state of the port", None, MetricType::Gauge)?;
        for sample in &self.ports {
            for state in self.port_states {
                let labels = [("port", sample.port.as_str()), ("state", *state)];
                ConstGauge::new(i64::from(*state == sample.state)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn policy_metrics(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        {
            let help = "What policy said about new connections and denied packets, and what that rests on";
            let mut metric = encoder.encode_descriptor("policy_verdicts", help, None, MetricType::Counter)?;
            for (direction, actions) in DIRECTIONS.iter().zip(&self.policy.verdicts) {
                for (action, matches) in ACTIONS.iter().zip(actions) {
                    for (basis, count) in MATCHES.iter().zip(matches).filter(|(_, count)| **count > 0) {
                        let labels = [("direction", *direction), ("action", *action), ("match", *basis)];
                        ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
                    }
                }
            }
        }
        let help = "How long the last compilation of policies took";
        let unit = Unit::Seconds;
        let metric = encoder.encode_descriptor("policy_compile_duration", help, Some(&unit), MetricType::Gauge)?;
        ConstGauge::new(self.policy.compile_duration.as_secs_f64()).encode(metric)?;
        let help = "Connections that were not added to the table";
        let mut metric = encoder.encode_descriptor("conntrack_insert_failures", help, None, MetricType::Counter)?;
        for (reason, count) in [("quota", self.connections.refused_quota), ("full", self.connections.refused_full)] {
            ConstCounter::new(count).encode(metric.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }

    fn nat_metrics(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        {
            let help = "L4 ports of a NAT address that mappings use";
            let mut metric = encoder.encode_descriptor("nat_ports_in_use", help, None, MetricType::Gauge)?;
            for sample in &self.nat_addresses {
                let address = sample.address.to_string();
                for (protocol, used) in ["udp", "tcp", "icmp"].into_iter().zip(sample.used) {
                    let labels = [("pool", sample.pool.as_str()), ("address", &address), ("protocol", protocol)];
                    ConstGauge::new(i64::from(used)).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        let gauges = [
            ("nat_ports_leased", "L4 ports of a NAT address that lie in blocks of workloads"),
            ("nat_ports", "L4 ports that a NAT address has"),
        ];
        for (index, (name, help)) in gauges.into_iter().enumerate() {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for sample in &self.nat_addresses {
                let address = sample.address.to_string();
                let labels = [("pool", sample.pool.as_str()), ("address", address.as_str())];
                let value = i64::try_from(sample.leased[index]).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Mappings that were refused";
        let mut metric = encoder.encode_descriptor("nat_allocation_failures", help, None, MetricType::Counter)?;
        let reasons = |counts: &RefusedCounts| {
            [("exhausted", counts.exhausted), ("limit", counts.limited), ("table_full", counts.full)]
        };
        for (pool, reason, count) in self
            .nat_refused
            .iter()
            .flat_map(|(pool, counts)| reasons(counts).map(|(reason, count)| (pool, reason, count)))
        {
            let labels = [("pool", pool.as_str()), ("reason", reason)];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn uplink_metrics(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(uplink) = &self.uplink else { return Ok(()) };
        let interface = ("interface", uplink.interface.as_str());
        {
            let help = "1 if frames pass the uplink";
            let mut metric = encoder.encode_descriptor("uplink_up", help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::from(uplink.up)).encode(metric.encode_family(&[interface])?)?;
        }
        {
            let help = "1 if the router answers";
            let mut metric = encoder.encode_descriptor("uplink_gateway_up", help, None, MetricType::Gauge)?;
            for (gateway, up) in &uplink.gateways {
                let gateway = gateway.to_string();
                let labels = [interface, ("gateway", gateway.as_str())];
                ConstGauge::new(i64::from(*up)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let totals = &uplink.totals;
        for (name, help, unit, count) in [
            ("uplink_receive", "Octets from outside", Some(Unit::Bytes), totals.received_bytes),
            ("uplink_receive_packets", "Frames from outside", None, totals.received),
            ("uplink_transmit", "Octets to the outside", Some(Unit::Bytes), totals.transmitted_bytes),
            ("uplink_transmit_packets", "Frames to the outside", None, totals.transmitted),
            (
                "uplink_missed_packets",
                "Frames from outside that the kernel dropped because no worker took them in time",
                None,
                uplink.missed,
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            ConstCounter::new(count).encode(metric.encode_family(&[interface])?)?;
        }
        let help = "Frames that ended at the uplink; ingress comes from outside, egress goes there";
        let mut metric = encoder.encode_descriptor("uplink_drops", help, None, MetricType::Counter)?;
        for (direction, drops) in [("ingress", &totals.dropped), ("egress", &totals.tx_dropped)] {
            for (reason, count) in drops.iter() {
                let labels = [interface, ("direction", direction), ("reason", reason.name())];
                ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn worker_metrics(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let numbered = || self.workers.iter().enumerate().map(|(index, worker)| (index.to_string(), worker));
        {
            let help = "Part of the time since the start that the worker moved packets";
            let mut metric = encoder.encode_descriptor("worker_busy_ratio", help, None, MetricType::Gauge)?;
            for (index, worker) in numbered() {
                let total = worker.busy_s + worker.polling_s + worker.asleep_s;
                let ratio = if total > 0.0 { worker.busy_s / total } else { 0.0 };
                ConstGauge::new(ratio).encode(metric.encode_family(&[("worker", index.as_str())])?)?;
            }
        }
        {
            let help = "Time of the worker by what it did";
            let unit = Unit::Seconds;
            let mut metric = encoder.encode_descriptor("worker_time", help, Some(&unit), MetricType::Counter)?;
            for (index, worker) in numbered() {
                let states = [("busy", worker.busy_s), ("polling", worker.polling_s), ("asleep", worker.asleep_s)];
                for (state, seconds) in states {
                    let labels = [("worker", index.as_str()), ("state", state)];
                    ConstCounter::new(seconds).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        let mut metric =
            encoder.encode_descriptor("worker_packets", "Frames that the worker took", None, MetricType::Counter)?;
        for (index, worker) in numbered() {
            ConstCounter::new(worker.packets).encode(metric.encode_family(&[("worker", index.as_str())])?)?;
        }
        Ok(())
    }
}

impl Collector for Sample {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.port_counters(&mut encoder)?;
        self.port_drops(&mut encoder)?;
        self.port_states(&mut encoder)?;
        self.worker_metrics(&mut encoder)?;
        self.policy_metrics(&mut encoder)?;
        super::dns_metrics::encode(&self.dns, &mut encoder)?;
        super::dns_metrics::encode_external(&self.external_dns, &mut encoder)?;
        super::metadata_metrics::encode(&self.metadata, &mut encoder)?;
        super::service_metrics::encode(&self.services, self.connections.no_backend, &mut encoder)?;
        self.nat_metrics(&mut encoder)?;
        self.uplink_metrics(&mut encoder)?;
        let mut number = |name: &str, help: &str, kind, value: u64| {
            let metric = encoder.encode_descriptor(name, help, None, kind)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value).encode(metric),
                _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric),
            }
        };
        number("object_revision", "Revision of the objects", MetricType::Gauge, self.revision)?;
        number("events", "Events so far", MetricType::Counter, self.events)?;
        let help = "Events that were not told or that a subscriber missed";
        number("events_lost", help, MetricType::Counter, self.events_lost)?;
        number("policy_rules", "Rules of the policies in force", MetricType::Gauge, self.policy.stats.rules as u64)?;
        let help = "Grows whenever policy says something else";
        number("policy_revision", help, MetricType::Gauge, self.policy.revision)?;
        number("conntrack_entries", "Connections now", MetricType::Gauge, self.connections.used)?;
        let capacity = u64::from(self.connections.capacity);
        number("conntrack_capacity", "Connections at most", MetricType::Gauge, capacity)?;
        let help = "Connections that made room for newer ones";
        number("conntrack_evictions", help, MetricType::Counter, self.connections.evicted)?;
        number("nat_mappings", "NAT mappings now", MetricType::Gauge, self.nat.mappings)?;
        number("nat_capacity", "NAT mappings at most", MetricType::Gauge, self.nat.capacity)?;
        let help = "NAT mappings on an L4 port that others use too";
        number("nat_overloaded", help, MetricType::Counter, self.nat.overloaded)?;
        let help = "Packets from outside that a filter of NAT kept out";
        number("nat_filtered", help, MetricType::Counter, self.nat.filtered)?;
        let help = "Flow events that found no room or whose reader was too slow";
        number("flowlog_lost_events", help, MetricType::Counter, self.flows_lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        let totals = PortTotals {
            received: 3,
            received_bytes: 180,
            transmitted: 2,
            transmitted_bytes: 120,
            dropped: vec![(DropReason::SpoofedIp, 1)],
            tx_dropped: vec![(DropReason::SpoofedMac, 4)],
            ..PortTotals::default()
        };
        Sample {
            ports: vec![PortSample { port: "shop/web-0".into(), state: "running", totals }],
            workers: vec![WorkerSample { busy_s: 1.0, polling_s: 1.0, asleep_s: 2.0, packets: 3 }],
            port_states: &["running", "down"],
            revision: 17,
            events: 5,
            events_lost: 0,
            policy: PolicyReport {
                revision: 3,
                compile_duration: std::time::Duration::from_millis(250),
                verdicts: std::array::from_fn(|direction| [[direction as u64; MATCHES.len()]; ACTIONS.len()]),
                ..PolicyReport::default()
            },
            connections: ConnectionReport {
                used: 2,
                capacity: 10,
                evicted: 1,
                refused_quota: 4,
                refused_full: 0,
                no_backend: 3,
            },
            flows_lost: 9,
            external_dns: ExternalDnsReport {
                updates: 7,
                looks: 20,
                transfers: 3,
                failures: 0,
                conflicts: 1,
                refused: 2,
            },
            metadata: MetadataReport { answers: vec![("401".to_owned(), 3)], refused: 1, cut: 0 },
            services: vec![ServiceCounts {
                service: "shop/web".into(),
                serving: Some(crate::fabric::balance::serving::Serving::Everywhere),
                connections: 9,
                ejections: 2,
                backends: vec![(crate::fabric::balance::choice::BackendState::Unhealthy, 2)],
            }],
            dns: DnsReport { answers: vec![("cluster", "noerror", 6)], limited: 2, ..DnsReport::default() },
            nat: Stats { mappings: 6, capacity: 100, ..Stats::default() },
            nat_refused: vec![("ord1".into(), RefusedCounts { exhausted: 2, ..Default::default() })],
            nat_addresses: vec![NatAddressSample {
                pool: "ord1".into(),
                address: "2001:db8::7".parse().unwrap(),
                leased: [512, 64_512],
                used: [4, 1, 1],
            }],
            uplink: Some(UplinkSample {
                interface: "eth1".into(),
                up: true,
                gateways: vec![("198.51.100.1".parse().unwrap(), false)],
                totals: PortTotals {
                    received: 7,
                    tx_dropped: vec![(DropReason::SpoofedIp, 3)],
                    ..PortTotals::default()
                },
                missed: 12,
            }),
        }
    }

    #[test]
    fn a_scrape_has_the_documented_names() {
        let text = sample().encode().unwrap();
        for line in [
            "hostweave_port_receive_bytes_total{port=\"shop/web-0\"} 180",
            "hostweave_port_receive_packets_total{port=\"shop/web-0\"} 3",
            "hostweave_port_transmit_bytes_total{port=\"shop/web-0\"} 120",
            "hostweave_port_drops_total{port=\"shop/web-0\",direction=\"egress\",reason=\"spoofed_ip\"} 1",
            "hostweave_port_drops_total{port=\"shop/web-0\",direction=\"ingress\",reason=\"spoofed_mac\"} 4",
            "hostweave_port_state{port=\"shop/web-0\",state=\"running\"} 1",
            "hostweave_port_state{port=\"shop/web-0\",state=\"down\"} 0",
            "hostweave_worker_busy_ratio{worker=\"0\"} 0.25",
            "hostweave_object_revision 17",
            "hostweave_policy_verdicts_total{direction=\"ingress\",action=\"dropped\",match=\"none\"} 1",
            "hostweave_policy_rules 0",
            "hostweave_policy_revision 3",
            "hostweave_policy_compile_duration_seconds 0.25",
            "hostweave_conntrack_entries 2",
            "hostweave_conntrack_capacity 10",
            "hostweave_conntrack_evictions_total 1",
            "hostweave_conntrack_insert_failures_total{reason=\"quota\"} 4",
            "hostweave_flowlog_lost_events_total 9",
            "hostweave_service_backends{service=\"shop/web\",state=\"unhealthy\"} 2",
            "hostweave_service_no_backend_total 3",
            "hostweave_service_connections_total{service=\"shop/web\"} 9",
            "hostweave_service_ejections_total{service=\"shop/web\"} 2",
            "hostweave_dns_queries_total{zone=\"cluster\",rcode=\"noerror\"} 6",
            "hostweave_dns_refusals_total{reason=\"limit\"} 2",
            "hostweave_external_dns_updates_total 7",
            "hostweave_external_dns_looks_total 20",
            "hostweave_external_dns_transfers_total 3",
            "hostweave_external_dns_conflicts 1",
            "hostweave_external_dns_refused 2",
            "hostweave_metadata_requests_total{status=\"401\"} 3",
            "hostweave_metadata_connections_lost_total{reason=\"limit\"} 1",
            "hostweave_nat_ports_in_use{pool=\"ord1\",address=\"2001:db8::7\",protocol=\"udp\"} 4",
            "hostweave_nat_ports_leased{pool=\"ord1\",address=\"2001:db8::7\"} 512",
            "hostweave_nat_ports{pool=\"ord1\",address=\"2001:db8::7\"} 64512",
            "hostweave_nat_allocation_failures_total{pool=\"ord1\",reason=\"exhausted\"} 2",
            "hostweave_nat_mappings 6",
            "hostweave_nat_capacity 100",
            "hostweave_uplink_up{interface=\"eth1\"} 1",
            "hostweave_uplink_gateway_up{interface=\"eth1\",gateway=\"198.51.100.1\"} 0",
            "hostweave_uplink_receive_packets_total{interface=\"eth1\"} 7",
            "hostweave_uplink_missed_packets_total{interface=\"eth1\"} 12",
            "hostweave_uplink_drops_total{interface=\"eth1\",direction=\"egress\",reason=\"spoofed_ip\"} 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("hostweave_build_info{version="), "{text}");
    }
}
