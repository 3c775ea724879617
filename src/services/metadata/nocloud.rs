//! Metadata as the network source of cloud-init's NoCloud wants it: four files behind a URL (`s=http://169.254.169.254/nocloud/`
//! in the serial number of the DMI table, or on the kernel's command line).
//!
//! What is made here is written as JSON, which is YAML: a MAC address without quotes is a number to some readers.

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use super::directory::Workload;

/// The files.
pub const FILES: [&str; 4] = ["meta-data", "user-data", "vendor-data", "network-config"];

/// A file. Missing user or vendor data are empty, not absent: cloud-init takes an absent file for a failure.
pub fn read(workload: &Workload<'_>, file: &str) -> Option<Bytes> {
    let metadata = &workload.port.metadata;
    match file {
        "meta-data" => Some(format!("{:#}\n", meta_data(workload)).into()),
        "user-data" => Some(Bytes::copy_from_slice(&metadata.user_data)),
        "vendor-data" => Some(metadata.vendor_data.clone().into()),
        "network-config" => match &metadata.network_config {
            Some(config) => Some(config.clone().into()),
            None => network_config(workload).map(|config| format!("{config:#}\n").into()),
        },
        _ => None,
    }
}

fn meta_data(workload: &Workload<'_>) -> Value {
    let port = workload.port;
    let mut data = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            data.insert(name.to_owned(), value);
        }
    };
    put("instance-id", workload.instance_id().into());
    put("local-hostname", port.hostname.as_str().into());
    put("local-ipv4", json!(port.v4.first()));
    put("local-ipv6", json!(port.v6.first()));
    put("mac", port.mac.to_string().into());
    put("public-ipv4", json!(workload.public(true).next()));
    put("public-ipv6", json!(workload.public(false).next()));
    put("region", json!(workload.spec.region));
    if !port.metadata.ssh_keys.is_empty() {
        put("public-keys", json!(port.metadata.ssh_keys));
    }
    Value::Object(data)
}

/// DHCP for the families that the port has (version 2 of cloud-init's format); `None` where DHCP does not answer.
fn network_config(workload: &Workload<'_>) -> Option<Value> {
    let port = workload.port;
    let ethernet = json!({
        "match": {"macaddress": port.mac.to_string()},
        // Renderers that know no match want a name.
        "set-name": "eth0",
        "dhcp4": !port.v4.is_empty(),
        "dhcp6": !port.v6.is_empty(),
    });
    workload.dhcp.then(|| json!({"version": 2, "ethernets": {"eth0": ethernet}}))
}
