//! How results look: tables for people, JSON and YAML for programs.

use std::io::{IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use super::failure::Failure;

/// `-o`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people with room.
    Wide,
    /// One line each; of `observe`, which has it unless said otherwise.
    Compact,
    /// A block of lines each; of `observe`.
    Dict,
    /// For programs; stable.
    #[value(alias = "jsonpb")]
    Json,
    /// For files; goes back into `apply`.
    Yaml,
    /// Names only.
    Name,
}

/// `--color`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether what goes to stderr is coloured.
    pub fn on_stderr(self) -> bool {
        self.on(&std::io::stderr())
    }

    /// Whether what goes to stdout is coloured.
    pub fn on_stdout(self) -> bool {
        self.on(&std::io::stdout())
    }

    fn on(self, stream: &impl IsTerminal) -> bool {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => wanted && stream.is_terminal(),
        }
    }
}

/// Writes a result.
///
/// # Errors
/// Nobody reads.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // `hostweave get ports | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// Writes a result as indented JSON.
///
/// # Errors
/// Nobody reads.
pub fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Writes a result as YAML.
///
/// # Errors
/// Nobody reads.
pub fn print_yaml(value: &Value) -> Result<(), Failure> {
    print(&yaml(value))
}

/// A value as YAML.
pub fn yaml(value: &Value) -> String {
    // JSON values have text keys and finite numbers only: there is nothing that YAML cannot say.
    let text = serde_saphyr::to_string(value).unwrap_or_default();
    if text.ends_with('\n') { text } else { text + "\n" }
}

/// A hint, which is no result.
pub fn hint(text: &str) {
    // Nobody may be reading: a hint is worth no failure.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Rows under a header, as kubectl has them.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.into_iter().map(|cell| printable(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt() + "\n"
}

/// Without control characters: what guests and files say must not drive the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A field of a JSON object as a cell; `-` where it is not there.
pub fn cell(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).map_or_else(|| "-".to_owned(), text)
}

/// A JSON value as a person reads it.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// The fields of `value` that are named, in that order, then the others: JSON objects have no order of their own.
pub fn ordered(value: &Value, first: &[&str]) -> String {
    let Value::Object(fields) = value else { return tree(value, 0) };
    let mut rest = fields.clone();
    let mut lines = String::new();
    let mut plain = serde_json::Map::new();
    for name in first {
        if let Some(field) = rest.remove(*name).filter(|field| !field.is_null()) {
            plain.insert((*name).to_owned(), field);
        }
    }
    let width = plain.keys().map(|key| title(key).len()).max().unwrap_or(0) + 2;
    for name in first {
        if let Some(field) = plain.get(*name) {
            lines += &format!("{:width$}{}\n", title(name) + ":", printable(&text(field)));
        }
    }
    lines + &tree(&Value::Object(rest), 0)
}

/// Nested values as indented lines, for `describe`.
pub fn tree(value: &Value, indent: usize) -> String {
    let pad = " ".repeat(indent);
    let mut lines = String::new();
    let Value::Object(fields) = value else { return format!("{pad}{}\n", printable(&text(value))) };
    let width = fields.keys().map(|key| title(key).len()).max().unwrap_or(0) + 2;
    for (key, value) in fields {
        let title = title(key) + ":";
        match value {
            // Keys of labels are not ours to capitalize.
            value if key == "labels" || key == "annotations" => {
                lines += &format!("{pad}{title:width$}{}\n", printable(&text(value)));
            }
            Value::Object(inner) if !inner.is_empty() => {
                lines += &format!("{pad}{title}\n{}", tree(value, indent + 2));
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                lines += &format!("{pad}{title}\n");
                for item in items {
                    lines += &format!("{pad}  -\n{}", tree(item, indent + 4));
                }
            }
            value => lines += &format!("{pad}{title:width$}{}\n", printable(&text(value))),
        }
    }
    lines
}

/// `socketPath` as `Socket path`.
fn title(key: &str) -> String {
    let mut title = String::new();
    for c in key.chars() {
        match c {
            '_' => title.push(' '),
            c if c.is_ascii_uppercase() => {
                title.push(' ');
                title.push(c.to_ascii_lowercase());
            }
            c if title.is_empty() => title.push(c.to_ascii_uppercase()),
            c => title.push(c),
        }
    }
    title
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_have_aligned_columns_and_no_borders() {
        let rows = vec![vec!["web-0".to_owned(), "running".to_owned()], vec!["a".to_owned(), "\u{1b}[2Jx".to_owned()]];
        assert_eq!(table(&["NAME", "STATE"], rows), "NAME    STATE\nweb-0   running\na       \u{fffd}[2Jx\n");
    }

    #[test]
    fn values_as_people_read_them() {
        let value = json!({"a": [1, "x"], "labels": {"app": "web"}, "none": null, "socketPath": "/run/x"});
        assert_eq!(cell(&value, "/a"), "1,x");
        assert_eq!(cell(&value, "/labels"), "app=web");
        assert_eq!(cell(&value, "/missing"), "-");
        assert_eq!(tree(&json!({"socketPath": "/run/x", "ip": null}), 0), "Ip:          -\nSocket path: /run/x\n");
        assert_eq!(ordered(&value, &["socketPath", "labels"]).lines().next(), Some("Socket path: /run/x"));
        assert!(ordered(&value, &["labels"]).starts_with("Labels: app=web\nA:"));
    }
}
