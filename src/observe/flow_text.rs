//! Flows for people: one line each, or a block of lines. Written from Hubble's JSON alone, so that files look as the live log does.

use super::flow::{Endpoint, ExportEvent, Flow, Policy, TYPE_DROP, TYPE_POLICY_VERDICT, TYPE_TRACE};

/// Columns of [`row`].
pub const COLUMNS: [&str; 6] = ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"];

/// `TIME: SRC -> DST TYPE VERDICT (summary)`; `<-` for replies, `<>` where the direction is not known.
pub fn compact(event: &ExportEvent) -> String {
    let Some(flow) = &event.flow else { return lost(event) };
    let arrow = match flow.is_reply {
        Some(false) => "->",
        Some(true) => "<-",
        None => "<>",
    };
    let (mut left, mut right) = (end(flow, true), end(flow, false));
    if flow.is_reply == Some(true) {
        // The one that began it stands on the left.
        std::mem::swap(&mut left, &mut right);
    }
    let summary = if flow.summary.is_empty() { String::new() } else { format!(" ({})", flow.summary) };
    format!("{}: {left} {arrow} {right} {} {}{summary}", event.time, type_word(flow), verdict(flow))
}

/// The cells of a table.
pub fn row(event: &ExportEvent) -> Vec<String> {
    let Some(flow) = &event.flow else {
        let lost = event.lost_events.clone().unwrap_or_default();
        let text = format!("{} events lost", lost.num_events_lost);
        return vec![event.time.clone(), String::new(), String::new(), "lost".into(), text, lost.source];
    };
    vec![
        event.time.clone(),
        end(flow, true),
        end(flow, false),
        type_word(flow).into(),
        verdict(flow),
        flow.summary.clone(),
    ]
}

/// A block of lines.
pub fn dict(event: &ExportEvent) -> String {
    COLUMNS.iter().zip(row(event)).map(|(name, cell)| format!("{name:>12}: {cell}\n")).collect()
}

fn lost(event: &ExportEvent) -> String {
    let lost = event.lost_events.clone().unwrap_or_default();
    let place = match lost.cpu {
        Some(worker) => format!("in worker {worker}: more at once than it may tell"),
        None if lost.source == "PERF_EVENT_RING_BUFFER" => "of connections that ended: too many at once".to_owned(),
        None => "on the way here: this reader is too slow".to_owned(),
    };
    format!("{}: {} events LOST {place}", event.time, lost.num_events_lost)
}

/// `shop/web-0:8080`; an address where nobody has a name.
fn end(flow: &Flow, source: bool) -> String {
    let endpoint = if source { &flow.source } else { &flow.destination };
    let address = flow.ip.as_ref().map(|ip| if source { &ip.source } else { &ip.destination });
    let address = address.map(String::as_str).filter(|address| !address.is_empty());
    let named = endpoint.as_ref().filter(|endpoint| !endpoint.pod_name.is_empty());
    let port = flow.ports().map(|(from, to)| format!(":{}", if source { from } else { to })).unwrap_or_default();
    let name = match (named, address) {
        (Some(endpoint), _) => format!("{}/{}", endpoint.namespace, endpoint.pod_name),
        (None, Some(address)) if address.contains(':') && !port.is_empty() => format!("[{address}]"),
        (None, Some(address)) => address.to_owned(),
        (None, None) => endpoint.as_ref().map_or_else(|| "-".to_owned(), reserved),
    };
    name + &port
}

fn reserved(endpoint: &Endpoint) -> String {
    endpoint.labels.first().cloned().unwrap_or_else(|| "-".to_owned())
}

fn type_word(flow: &Flow) -> &'static str {
    match flow.kind() {
        _ if flow.is_new() => "new",
        _ if flow.is_closed() => "closed",
        TYPE_POLICY_VERDICT => "policy-verdict",
        TYPE_DROP => "drop",
        TYPE_TRACE => "trace",
        _ => "flow",
    }
}

/// `INGRESS DROPPED POLICY_DENIED by shop/db-only-from-web conf.d/20-shop.yaml:9`.
fn verdict(flow: &Flow) -> String {
    let mut words = Vec::new();
    if flow.kind() == TYPE_POLICY_VERDICT && !flow.traffic_direction.is_empty() && !flow.is_new()
        || flow.verdict == "AUDIT"
    {
        words.push(flow.traffic_direction.clone());
    }
    words.push(flow.verdict.clone());
    if !flow.drop_reason_desc.is_empty() && flow.drop_reason != 0 {
        words.push(flow.drop_reason_desc.clone());
    }
    let denied = [&flow.egress_denied_by, &flow.ingress_denied_by];
    let allowed = [&flow.egress_allowed_by, &flow.ingress_allowed_by];
    let (preposition, lists) =
        if denied.iter().any(|list| !list.is_empty()) { ("by", denied) } else { ("by", allowed) };
    let policies: Vec<String> = lists.into_iter().flatten().map(policy).collect();
    if !policies.is_empty() {
        words.push(format!("{preposition} {}", policies.join(", ")));
    }
    words.join(" ")
}

/// `shop/web rule 2 conf.d/20-shop.yaml:14`.
pub fn policy(policy: &Policy) -> String {
    let rule = policy.rule().map(|rule| format!(" rule {rule}")).unwrap_or_default();
    let origin = policy.origin().map(|origin| format!(" {origin}")).unwrap_or_default();
    policy.path() + &rule + &origin
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hostweave_switch::flow::Kind;
    use hostweave_switch::wire::proto;

    use super::super::flow_log::{Entry, LostAt};
    use super::super::flow_record::{
        FlowRecord,
        tests::{denied, opened},
    };
    use super::*;

    fn export(record: FlowRecord) -> ExportEvent {
        Entry::Flow(Box::new(record)).export("host-a")
    }

    #[test]
    fn a_denied_packet_names_ports_reason_rule_and_line() {
        assert_eq!(
            compact(&export(denied())),
            "2026-11-23T15:30:01.120334567Z: shop/cache-0:49152 -> shop/db-0:5432 policy-verdict INGRESS DROPPED POLICY_DENIED \
             by shop/db-only-from-web conf.d/20-shop.yaml:9 (policy_denied; TCP Flags: SYN)"
        );
    }

    #[test]
    fn connections_and_losses_are_lines_too() {
        let mut record = opened(proto::UDP, 7, 53, Kind::Ports);
        record.destination = Arc::default();
        assert_eq!(
            compact(&export(record)),
            "2026-11-23T15:30:01.120334567Z: shop/cache-0:7 -> 10.64.0.31:53 new FORWARDED (UDP)"
        );
        let lost = Entry::Lost { time: denied().time, place: LostAt::Worker(1), count: 7 }.export("host-a");
        assert!(compact(&lost).contains("7 events LOST in worker 1"), "{}", compact(&lost));
        let ends = Entry::Lost { time: denied().time, place: LostAt::Ends, count: 7 }.export("host-a");
        assert!(compact(&ends).contains("7 events LOST of connections that ended"), "{}", compact(&ends));
        assert_eq!(row(&lost).len(), COLUMNS.len());
        assert!(dict(&export(denied())).contains("      SOURCE: shop/cache-0:49152\n"));
    }

    #[test]
    fn the_one_that_began_it_stands_on_the_left() {
        let mut event = export(denied());
        event.flow.as_mut().unwrap().is_reply = Some(true);
        assert!(compact(&event).contains("shop/db-0:5432 <- shop/cache-0:49152"));
        event.flow.as_mut().unwrap().is_reply = None;
        assert!(compact(&event).contains("shop/cache-0:49152 <> shop/db-0:5432"));
    }
}
