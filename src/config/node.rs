//! YAML (and JSON, its subset) as a tree that knows where each node stands, and the way from a field's path to a
//! [`Place`]. `serde-saphyr` parses, with its budgets against alias bombs and deep nesting; this file keeps the spans.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_saphyr::{Location, Options, Spanned};

use super::diagnostic::{Diagnostic, Place};

/// Octets of one source.
pub const SOURCE_BYTES_MAX: usize = 64 << 20;

/// Documents of one source.
pub const DOCUMENTS_MAX: usize = 131_072;

/// Nodes (scalars, sequences, mappings) of one source.
pub const NODES_MAX: usize = 4 << 20;

/// Nesting of sequences and mappings.
pub const DEPTH_MAX: usize = 32;

/// Octets of a source line that a diagnostic quotes.
const QUOTED_LINE_BYTES_MAX: usize = 240;

/// A text with the name by which the user knows it. Also what `object.apply` sends.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// File as the user named it; `<stdin>` for standard input.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Where a node stands. Lines and columns from 1, offset and length in octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// Line; 0 where the source is unknown.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
    /// First octet in the source.
    pub offset: u32,
    /// Octets.
    pub length: u32,
}

impl From<Location> for Mark {
    fn from(location: Location) -> Self {
        let span = location.span();
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            line: narrow(location.line()),
            column: narrow(location.column()),
            offset: span.byte_offset().map_or(u32::MAX, narrow),
            length: span.byte_len().map_or(1, narrow),
        }
    }
}

/// A value with its place.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it is written (for an alias: where the alias stands).
    pub mark: Mark,
}

impl Node {
    /// The value of a field of this mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
            _ => None,
        }
    }
}

/// Without places.
impl From<&serde_json::Value> for Node {
    fn from(value: &serde_json::Value) -> Self {
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => Value::Unsigned(value),
                (None, Some(value)) => Value::Signed(value),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::Text(text.clone()),
            serde_json::Value::Array(items) => Value::Sequence(items.iter().map(Node::from).collect()),
            serde_json::Value::Object(fields) => Value::Mapping(
                fields
                    .iter()
                    .map(|(key, value)| Entry { key: key.clone(), key_mark: Mark::default(), node: Node::from(value) })
                    .collect(),
            ),
        };
        Node { value, mark: Mark::default() }
    }
}

/// A value, as YAML's core schema types it.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A non-negative integer.
    Unsigned(u64),
    /// A negative integer.
    Signed(i64),
    /// A number with a fraction or exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// `[…]` or `- …`.
    Sequence(Vec<Node>),
    /// `{…}` or `key: …`, in the order written.
    Mapping(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_mark: Mark,
    /// The value.
    pub node: Node,
}

/// One step from a node to one of its children.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Field of a mapping.
    Key(String),
    /// Element of a sequence, from 0.
    Index(usize),
}

/// The way from an object to one of its fields. Displayed as `spec.addresses[0]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Path(pub Vec<Step>);

impl Path {
    /// Parses `spec.addresses[0]`-like text of our own making: keys separated by dots, then indices.
    pub fn of(text: &str) -> Self {
        text.split('.').filter(|part| !part.is_empty()).fold(Self::default(), |path, part| path.key(part))
    }

    /// The path of a field of this mapping.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.to_owned()));
        Self(steps)
    }

    /// The path of an element of this sequence.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    /// The path without its last step.
    #[must_use]
    pub fn parent(&self) -> Self {
        Self(self.0.split_last().map(|(_, rest)| rest.to_vec()).unwrap_or_default())
    }

    /// The keys alone, joined by dots: how `explain` names the field.
    pub fn schema_path(&self) -> String {
        let keys = self.0.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        });
        keys.collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if number == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// One object of a source.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// The source it stands in.
    pub source: Arc<Source>,
    /// Its root.
    pub root: Node,
}

impl Document {
    /// Line of its first field.
    pub fn line(&self) -> u32 {
        match &self.root.value {
            Value::Mapping(entries) => entries.first().map_or(self.root.mark.line, |entry| entry.key_mark.line),
            _ => self.root.mark.line,
        }
    }

    /// Line of the field or element at `path`, or of the nearest ancestor that is written; 0 where the source is unknown.
    pub fn line_of(&self, path: &Path) -> u32 {
        self.find(path).1.line
    }

    /// The place of the value at `path`, or of the nearest ancestor that is written.
    pub fn place_of_value(&self, path: &Path, label: &str) -> Option<Place> {
        place(&self.source, self.find(path).0, label)
    }

    /// The place of the key of the field at `path`, or of the nearest ancestor that is written.
    pub fn place_of_key(&self, path: &Path, label: &str) -> Option<Place> {
        place(&self.source, self.find(path).1, label)
    }

    /// Marks of value and key at `path`; where the path leaves the tree, the key of the last node that is written is
    /// marked, since a whole block is too much to mark.
    fn find(&self, path: &Path) -> (Mark, Mark) {
        let mut node = &self.root;
        let mut key_mark = match &self.root.value {
            Value::Mapping(entries) => entries.first().map_or(self.root.mark, |entry| entry.key_mark),
            _ => self.root.mark,
        };
        for step in &path.0 {
            let next = match (step, &node.value) {
                (Step::Key(key), Value::Mapping(entries)) => {
                    entries.iter().find(|entry| entry.key == *key).map(|entry| (&entry.node, entry.key_mark))
                }
                (Step::Index(index), Value::Sequence(items)) => items.get(*index).map(|item| (item, item.mark)),
                _ => None,
            };
            let Some((next_node, next_key_mark)) = next else { return (key_mark, key_mark) };
            (node, key_mark) = (next_node, next_key_mark);
        }
        let value_mark = match &node.value {
            Value::Sequence(_) | Value::Mapping(_) | Value::Null => key_mark,
            _ => node.mark,
        };
        (value_mark, key_mark)
    }
}

/// The line that `mark` stands in. What is marked ends with the line at the latest.
pub fn place(source: &Source, mark: Mark, label: &str) -> Option<Place> {
    if mark.line == 0 {
        return None;
    }
    let offset = mark.offset as usize;
    let before = source.text.get(..offset)?;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let rest = &source.text[start..];
    let line = rest.split('\n').next().unwrap_or_default().trim_end_matches('\r');
    let mut cut = line.len().min(QUOTED_LINE_BYTES_MAX.max(offset - start + 1));
    cut = (cut..=line.len()).find(|end| line.is_char_boundary(*end)).unwrap_or(line.len());
    let text = line[..cut].to_owned();
    let in_line = (offset - start).min(text.len());
    let mut end = in_line.saturating_add(mark.length.max(1) as usize).min(text.len());
    end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
    Some(Place {
        file: source.name.clone(),
        line: mark.line,
        column: mark.column,
        offset: u32::try_from(in_line).ok()?,
        length: u32::try_from(end - in_line).ok()?,
        text,
        label: label.to_owned(),
    })
}

/// Every document of a source. Empty documents are left out.
///
/// # Errors
/// A syntax error, a duplicate key, or a source beyond the limits of this file; boxed, as it is large.
pub fn parse(source: &Arc<Source>) -> Result<Vec<Document>, Box<Diagnostic>> {
    if source.text.len() > SOURCE_BYTES_MAX {
        let message = format!("{} has {} octets; the limit is {SOURCE_BYTES_MAX}", source.name, source.text.len());
        return Err(Box::new(Diagnostic::error("hostweave::config::too_large", message)));
    }
    let roots = serde_saphyr::from_multiple_with_options::<Node>(&source.text, options())
        .map_err(|error| Box::new(syntax_error(source, &error)))?;
    Ok(roots.into_iter().map(|root| Document { source: Arc::clone(source), root }).collect())
}

/// YAML 1.2 booleans only, nothing that changes meaning behind the reader's back, bounded in every dimension.
fn options() -> Options {
    let budget = serde_saphyr::budget! {
        max_documents: DOCUMENTS_MAX,
        max_nodes: NODES_MAX,
        max_events: 4 * NODES_MAX,
        max_depth: DEPTH_MAX,
        flow_nesting_limit: DEPTH_MAX,
        max_total_scalar_bytes: SOURCE_BYTES_MAX,
    };
    serde_saphyr::options! {
        budget: budget,
        strict_booleans: true,
        emit_comments: false,
        reject_unsupported_tags: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    }
}

/// What the parser says, at its place.
fn syntax_error(source: &Source, error: &serde_saphyr::Error) -> Diagnostic {
    let code = match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { .. } => "hostweave::config::duplicate_field",
        serde_saphyr::Error::Budget { .. } => "hostweave::config::too_large",
        _ => "hostweave::config::syntax",
    };
    let text = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    // The place is shown apart.
    let message = text.split(" at line ").next().unwrap_or(&text).trim().to_owned();
    let mark = error.location().map(Mark::from).unwrap_or_default();
    let mut place = place(source, mark, "here");
    if place.is_none() && mark.line != 0 {
        place = place_of_line(source, mark);
    }
    Diagnostic::error(code, message).with_place(place)
}

/// The place of a mark whose offset is not known: found by line and column.
fn place_of_line(source: &Source, mark: Mark) -> Option<Place> {
    let line_index = (mark.line as usize).checked_sub(1)?;
    let start: usize = source.text.split_inclusive('\n').take(line_index).map(str::len).sum();
    let line = source.text.get(start..)?.split('\n').next()?;
    let in_line: usize = line.chars().take((mark.column as usize).saturating_sub(1)).map(char::len_utf8).sum();
    let offset = u32::try_from(start + in_line).ok()?;
    place(source, Mark { offset, length: 1, ..mark }, "here")
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { value: spanned.value, mark: spanned.referenced.into() })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let node = access.next_value()?;
            entries.push(Entry { key: key.value, key_mark: key.referenced.into(), node });
        }
        Ok(Value::Mapping(entries))
    }
}
