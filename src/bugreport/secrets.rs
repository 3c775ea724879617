//! What nobody else may have: user data of guests, keys, passwords. Taken out of every document, redacted or not.
//!
//! A field is known by its name, wherever it stands. Its value is taken out of all other texts, too, should it have got
//! into a message or into the log.

use serde_json::Value;

use super::{Body, Document};

/// What stands in the place of a secret.
pub const LEFT_OUT: &str = "<left out>";

/// Parts of the names of fields that hold secrets, without `-`, `_` and capitals.
const WORDS: [&str; 14] = [
    "userdata",
    "vendordata",
    "networkconfig",
    "tsig",
    "password",
    "passphrase",
    "secret",
    "token",
    "privatekey",
    "credential",
    "apikey",
    "sshkey",
    "publickey",
    "authorizedkey",
];

/// Fields that are named like secrets and hold none: names of objects that do, and whether there must be some.
const HARMLESS: [&str; 3] = ["secretname", "secretnames", "tokens"];

/// An annotation that holds the whole object once more, as somebody wrote it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Shortest value that is looked for in other texts.
const SOUGHT_LEN_MIN: usize = 6;

/// Shortest line of a value that is: user data has many that say nothing.
const SOUGHT_LINE_LEN_MIN: usize = 12;

/// Takes secrets out.
pub fn strip(documents: &mut [Document]) {
    let mut values = Vec::new();
    for document in documents.iter_mut() {
        if let Body::Json(value) = &mut document.body {
            strip_value(value, &mut values);
        }
    }
    values.retain(|value: &String| value.len() >= SOUGHT_LEN_MIN);
    // Longer ones first: one may be part of another.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    values.dedup();
    for document in documents {
        match &mut document.body {
            Body::Json(value) => scrub(value, &values),
            Body::Text(text) => scrub_text(text, &values),
        }
    }
}

fn is_secret(field: &str) -> bool {
    let name: String = field.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    field == LAST_APPLIED || !HARMLESS.contains(&&*name) && WORDS.iter().any(|word| name.contains(word))
}

fn strip_value(value: &mut Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                // A number counts secrets, and is none.
                if is_secret(name) && matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_)) {
                    strings(value, found);
                    *value = Value::String(LEFT_OUT.to_owned());
                } else {
                    strip_value(value, found);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| strip_value(item, found)),
        Value::String(text) if text.contains("PRIVATE KEY-----") => {
            found.push(text.clone());
            LEFT_OUT.clone_into(text);
        }
        _ => {}
    }
}

/// All texts within a secret, and each line of those with several: a log may have broken them up.
fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.values().for_each(|value| strings(value, found)),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::String(text) => {
            found.push(text.clone());
            let lines = text.lines().map(str::trim).filter(|line| line.len() >= SOUGHT_LINE_LEN_MIN);
            found.extend(lines.map(str::to_owned));
        }
        _ => {}
    }
}

fn scrub(value: &mut Value, secrets: &[String]) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|value| scrub(value, secrets)),
        Value::Array(items) => items.iter_mut().for_each(|item| scrub(item, secrets)),
        Value::String(text) => scrub_text(text, secrets),
        _ => {}
    }
}

fn scrub_text(text: &mut String, secrets: &[String]) {
    for secret in secrets {
        if text.contains(secret) {
            *text = text.replace(secret, LEFT_OUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_known_by_the_names_of_their_fields() {
        for name in [
            "userData",
            "user-data",
            "tsigKey",
            "adminPassword",
            "TOKEN",
            "private_key",
            "sshKeys",
            "userDataBase64",
            LAST_APPLIED,
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["secretName", "name", "keys", "data", "users", "tokens"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_secret_is_taken_out_of_every_document() {
        let port =
            json!({"spec": {"metadata": {"userData": "#cloud-config\n  password: hunter22\n", "hostname": "w"}}});
        let zone =
            json!({"tsig": {"name": "k", "key": "c2VjcmV0LXNlY3JldA=="}, "note": "-----BEGIN PRIVATE KEY-----\nxyz"});
        let mut documents = [
            Document::json("a", port),
            Document::json("b", json!({"message": "cannot sign with c2VjcmV0LXNlY3JldA=="})),
            Document::text("log", "line: password: hunter22\nother"),
            Document::json("c", zone),
        ];
        strip(&mut documents);
        let all: String = documents.iter().map(Document::to_text).collect();
        for secret in ["hunter22", "c2VjcmV0LXNlY3JldA==", "cloud-config", "xyz"] {
            assert!(!all.contains(secret), "{secret} is in\n{all}");
        }
        assert!(
            all.contains("hostname") && all.contains("other") && all.contains("cannot sign with <left out>"),
            "{all}"
        );
    }
}
