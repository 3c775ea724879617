//! `explain` and `schema`: what the doc comments of [`super::raw`] say, so that help cannot disagree with the program.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::diagnostic::{Diagnostic, Diagnostics};
use super::kind::Kind;
use super::names::closest;
use super::raw;

/// Columns of help text.
const WIDTH: usize = 96;

/// JSON Schema (draft 2020-12) of one kind.
pub fn schema(kind: Kind) -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let schema = match kind {
        Kind::HostConfig => generator.into_root_schema_for::<raw::HostConfig>(),
        Kind::Namespace => generator.into_root_schema_for::<raw::Namespace>(),
        Kind::Network => generator.into_root_schema_for::<raw::Network>(),
        Kind::NatPool => generator.into_root_schema_for::<raw::NatPool>(),
        Kind::AddressPool => generator.into_root_schema_for::<raw::AddressPool>(),
        Kind::Service => generator.into_root_schema_for::<raw::Service>(),
        Kind::EndpointSlice => generator.into_root_schema_for::<raw::EndpointSlice>(),
        Kind::Port => generator.into_root_schema_for::<raw::Port>(),
        Kind::Pod => generator.into_root_schema_for::<raw::Pod>(),
        Kind::NetworkPolicy => generator.into_root_schema_for::<raw::NetworkPolicy>(),
        Kind::ClusterNetworkPolicy => generator.into_root_schema_for::<raw::ClusterNetworkPolicy>(),
    };
    let mut schema = schema.to_value();
    for (field, value) in [("kind", kind.as_str()), ("apiVersion", kind.api_version())] {
        if let Some(property) = schema.pointer_mut(&format!("/properties/{field}")).and_then(Value::as_object_mut) {
            property.insert("const".to_owned(), json!(value));
        }
    }
    schema
}

/// JSON Schema of any object, for editors (`# yaml-language-server: $schema=…`).
pub fn schema_of_all() -> Value {
    let mut definitions = Map::new();
    let mut choices = Vec::new();
    for kind in Kind::ALL {
        let mut schema = schema(kind);
        if let Some(object) = schema.as_object_mut() {
            object.remove("$schema");
            // References are absolute: the definitions of every kind go into one place.
            if let Some(Value::Object(own)) = object.remove("$defs") {
                definitions.extend(own);
            }
        }
        definitions.insert(format!("Kind{kind}"), schema);
        choices.push(json!({"$ref": format!("#/$defs/Kind{kind}")}));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hostweave objects",
        "oneOf": choices,
        "$defs": definitions,
    })
}

/// Help for `KIND` or `KIND.field.path`; the list of kinds for an empty path.
///
/// # Errors
/// There is no such kind or field; says which one looks like it.
pub fn explain(path: &str) -> Result<String, Diagnostics> {
    if path.is_empty() {
        return Ok(kinds());
    }
    let mut words = path.split('.').filter(|word| !word.is_empty());
    let word = words.next().unwrap_or_default();
    let kind: Kind = word.parse().map_err(|error: super::kind::UnknownKind| {
        let diagnostic = Diagnostic::error("hostweave::config::unknown_kind", error.to_string());
        match error.similar {
            Some(similar) => diagnostic.with_help(format!("did you mean {similar}?")),
            None => diagnostic,
        }
    })?;
    let root = schema(kind);
    let mut node = &root;
    let mut description = text_of(node);
    let mut place = kind.to_string();
    for word in words {
        let word = word.split('[').next().unwrap_or(word);
        let fields = fields_of(node, &root);
        let Some(next) = fields.and_then(|fields| fields.get(word)) else {
            return Err(unknown_field(&place, word, fields).into());
        };
        // What a field says about itself is more precise than what its type says about any.
        description = text_of(next);
        if description.is_empty() {
            description = text_of(resolved(next, &root));
        }
        node = next;
        let _ = write!(place, ".{word}");
    }
    Ok(page(kind, &place, &description, node, &root))
}

/// Every kind with the first paragraph of its help.
fn kinds() -> String {
    let mut text = String::from("KINDS\n");
    for kind in Kind::ALL {
        let _ = writeln!(text, "  {kind} ({})", kind.api_version());
        let description = text_of(&schema(kind));
        wrap(description.split("\n\n").next().unwrap_or_default(), "      ", &mut text);
    }
    text
}

/// The text of the page.
fn page(kind: Kind, place: &str, description: &str, node: &Value, root: &Value) -> String {
    let mut text = format!("KIND     {kind}\nVERSION  {}\n", kind.api_version());
    if place != kind.as_str() {
        let line = format!("FIELD    {place} <{}>", type_of(node, root));
        // Neither a path nor a type is torn apart.
        let fits = line.chars().count() <= WIDTH;
        let _ = writeln!(text, "{}", if fits { line } else { line.replacen(" <", "\nTYPE     <", 1) });
    }
    text.push('\n');
    wrap(description, "", &mut text);
    let choices = choices_of(node, root);
    if !choices.is_empty() {
        text.push_str("\nVALUES\n");
        for (name, description) in choices {
            let _ = writeln!(text, "  {name}");
            wrap(&description, "      ", &mut text);
        }
    }
    if let Some(fields) = fields_of(node, root) {
        text.push_str("\nFIELDS\n");
        let required = required_of(node, root);
        for (name, field) in fields {
            let mark = if required.contains(&name.as_str()) { ", required" } else { "" };
            let _ = writeln!(text, "  {name} <{}{mark}>", type_of(field, root));
            let own = text_of(field);
            let own = if own.is_empty() { text_of(resolved(field, root)) } else { own };
            wrap(&own, "      ", &mut text);
        }
    }
    text
}

fn unknown_field(place: &str, word: &str, fields: Option<&Map<String, Value>>) -> Diagnostic {
    let message = format!("{place} has no field {word:?}");
    let diagnostic = Diagnostic::error("hostweave::config::unknown_field", message);
    let Some(fields) = fields else { return diagnostic.with_help(format!("{place} has no fields")) };
    let known = fields.keys().map(String::as_str);
    diagnostic.with_help(match closest(word, known.clone()) {
        Some(similar) => format!("did you mean {place}.{similar}?"),
        None => format!("its fields are {}", known.collect::<Vec<_>>().join(", ")),
    })
}

/// What a schema stands for: references followed, "or null" left out, a list's elements.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut schema = schema;
    // Each turn goes one definition deeper; the types are not recursive.
    for _ in 0..16 {
        let reference = schema.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
        let next = reference.and_then(|pointer| root.pointer(pointer)).or_else(|| {
            let choices = schema.get("anyOf")?.as_array()?;
            let is_null = |choice: &&Value| choice.get("type").and_then(Value::as_str) == Some("null");
            let optional = choices.len() == 2 && choices.iter().any(|choice| is_null(&choice));
            choices.iter().find(|choice| !is_null(choice)).filter(|_| optional)
        });
        let Some(next) = next.or_else(|| schema.get("items")) else { return schema };
        schema = next;
    }
    schema
}

fn fields_of<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Map<String, Value>> {
    resolved(schema, root).get("properties").and_then(Value::as_object)
}

fn required_of<'a>(schema: &'a Value, root: &'a Value) -> Vec<&'a str> {
    let required = resolved(schema, root).get("required").and_then(Value::as_array);
    required.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The words of an enumeration, each with what it means.
fn choices_of(schema: &Value, root: &Value) -> Vec<(String, String)> {
    let choices = resolved(schema, root).get("oneOf").and_then(Value::as_array);
    let named = choices.into_iter().flatten().filter_map(|choice| {
        let name = choice.get("const")?.as_str()?;
        Some((name.to_owned(), text_of(choice)))
    });
    named.collect()
}

/// The type in a word or two.
fn type_of(schema: &Value, root: &Value) -> String {
    let kind = |schema: &Value| match schema.get("type") {
        Some(Value::String(name)) => Some(name.clone()),
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).find(|name| *name != "null").map(str::to_owned)
        }
        _ => None,
    };
    let own = kind(schema);
    let inner = resolved(schema, root);
    let name = if !choices_of(schema, root).is_empty() {
        choices_of(schema, root).into_iter().map(|(name, _)| name).collect::<Vec<_>>().join("|")
    } else {
        kind(inner).unwrap_or_else(|| match inner.get("anyOf").and_then(Value::as_array) {
            Some(choices) => choices.iter().filter_map(kind).collect::<Vec<_>>().join(" or "),
            None => "any".to_owned(),
        })
    };
    if own.as_deref() == Some("array") { format!("list of {name}") } else { name }
}

fn text_of(schema: &Value) -> String {
    schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Paragraphs of `text`, wrapped and indented.
fn wrap(text: &str, indent: &str, out: &mut String) {
    for (number, paragraph) in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()).enumerate() {
        if number > 0 {
            out.push('\n');
        }
        let mut line = indent.to_owned();
        for word in paragraph.split_whitespace() {
            if line.len() > indent.len() && line.chars().count() + 1 + word.chars().count() > WIDTH {
                let _ = writeln!(out, "{line}");
                line = indent.to_owned();
            }
            if line.len() > indent.len() {
                line.push(' ');
            }
            line.push_str(word);
        }
        let _ = writeln!(out, "{line}");
    }
}
