//! `describe` of policies: what they select now, and each rule in words with its line.

use serde_json::Value;

use super::output::{cell, printable, text};

/// Ports that are named; more are only counted.
const PORTS_NAMED_MAX: usize = 20;

/// The text without events. `item` is the answer of `object.get`.
pub fn describe(item: &Value) -> String {
    let object = &item["object"];
    let status = &object["status"];
    let mut lines = String::new();
    let mut line = |title: &str, value: String| {
        if value != "-" {
            lines += &format!("{:14}{}\n", format!("{title}:"), printable(&value));
        }
    };
    for (title, pointer) in [
        ("Name", "/metadata/name"),
        ("Namespace", "/metadata/namespace"),
        ("Labels", "/metadata/labels"),
        ("Annotations", "/metadata/annotations"),
    ] {
        line(title, cell(object, pointer));
    }
    line("Origin", cell(item, "/origin"));
    for (title, pointer) in [
        ("Tier", "/tier"),
        ("Priority", "/priority"),
        ("Subject", "/subject"),
        ("Pod selector", "/podSelector"),
        ("Isolates", "/policyTypes"),
        ("Mode", "/mode"),
    ] {
        line(title, cell(status, pointer));
    }
    line("Selects", selects(status));
    let cluster = status.get("tier").is_some();
    lines
        + &direction("Ingress", &status["rules"]["ingress"], cluster)
        + &direction("Egress", &status["rules"]["egress"], cluster)
}

/// `2 ports: shop/db-0, shop/db-1`.
fn selects(status: &Value) -> String {
    let ports = status["selects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Vec<String> = ports.iter().take(PORTS_NAMED_MAX).map(text).collect();
    let more = if ports.len() > PORTS_NAMED_MAX { ", …" } else { "" };
    match ports.len() {
        0 => "no port".to_owned(),
        1 => format!("1 port: {}", named.join(", ")),
        count => format!("{count} ports: {}{more}", named.join(", ")),
    }
}

fn direction(title: &str, rules: &Value, cluster: bool) -> String {
    let Some(rules) = rules.as_array() else { return format!("{title}: not isolated by this policy\n") };
    let (first, none) = if cluster {
        ("the first rule that matches decides", "no rules")
    } else {
        ("isolated; any of these rules allows", "isolated; nothing is allowed")
    };
    if rules.is_empty() {
        return format!("{title}: {none}\n");
    }
    let mut lines = format!("{title}: {first}\n");
    for (number, rule) in rules.iter().enumerate() {
        let (words, origin) = (cell(rule, "/text"), cell(rule, "/origin"));
        lines += &format!("  {}. {} ({})\n", number + 1, printable(&words), printable(&origin));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_reads_as_sentences() {
        let item = json!({
            "origin": "shop.yaml:1",
            "object": {
                "metadata": {"name": "db", "namespace": "shop"},
                "status": {
                    "podSelector": "app=db", "policyTypes": ["Ingress"], "mode": "enforce", "selects": ["shop/db-0"],
                    "rules": {"ingress": [{"text": "from anybody, on TCP 5432", "origin": "shop.yaml:7"}], "egress": null},
                },
            },
        });
        assert_eq!(
            describe(&item),
            "Name:         db\n\
             Namespace:    shop\n\
             Origin:       shop.yaml:1\n\
             Pod selector: app=db\n\
             Isolates:     Ingress\n\
             Mode:         enforce\n\
             Selects:      1 port: shop/db-0\n\
             Ingress: isolated; any of these rules allows\n  \
               1. from anybody, on TCP 5432 (shop.yaml:7)\n\
             Egress: not isolated by this policy\n"
        );
    }
}
