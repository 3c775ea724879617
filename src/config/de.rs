//! From a [`Node`] tree to the strict types of [`super::raw`], reporting every problem instead of the first.
//!
//! Serde stops at the first error. Here an unknown field is reported and skipped, and a value that does not fit is
//! reported, left out, and the object read again; a field that is missing ends it. `null` means "left out", as in
//! Kubernetes.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::fate::{self, Fate};
use super::kind::Kind;
use super::names::closest;
use super::node::{Document, Entry, Node, Path, Value};
use super::problem::Problem;

/// Problems of one object after which reading it again is given up.
const PROBLEMS_MAX: usize = 32;

/// Reads an object of `kind`. The value is there unless a problem is an error.
pub fn read<'de, T: Deserialize<'de>>(document: &'de Document, kind: Kind) -> (Option<T>, Vec<Problem>) {
    let mut poisoned = HashSet::new();
    let mut problems: Vec<Problem> = Vec::new();
    loop {
        let context = Context { kind, text: &document.source.text, found: RefCell::default(), poisoned: &poisoned };
        let result = T::deserialize(NodeDe { node: &document.root, trail: Trail::Root, context: &context });
        for problem in context.found.into_inner() {
            if !problems.iter().any(|known| known.path == problem.path && known.code == problem.code) {
                problems.push(problem);
            }
        }
        let error = match result {
            Ok(value) => return (Some(value), problems),
            Err(error) => error,
        };
        let path = error.path.clone().unwrap_or_default();
        let missing = matches!(error.what, What::Missing(_));
        if let Some(problem) = error.problem(&problems, &poisoned) {
            problems.push(problem);
        }
        // Leaving out the root, or what was left out before, would not get further.
        if missing || path.0.is_empty() || problems.len() >= PROBLEMS_MAX || !poisoned.insert(path) {
            return (None, problems);
        }
    }
}

/// What every step of reading one object shares.
struct Context<'a> {
    kind: Kind,
    /// Of the source, for quoting numbers as they were written.
    text: &'a str,
    found: RefCell<Vec<Problem>>,
    /// Values that were reported and are left out now.
    poisoned: &'a HashSet<Path>,
}

impl Context<'_> {
    /// Reports a field that the type does not have.
    fn unknown_field(&self, path: &Path, key: &str, fields: &[&'static str]) {
        let problem = match fate::of_field(self.kind, &path.schema_path()) {
            Some(Fate::Ignored(why)) => Problem::key(path, "ignored_field", format!("field {path} is ignored: {why}"))
                .warning()
                .label("ignored"),
            Some(Fate::NotYet) => {
                Problem::key(path, "not_yet_supported", format!("field {path} is not supported yet by this version"))
                    .label("not supported yet")
                    .help("remove it: ignoring it silently could open what it is meant to close")
            }
            Some(Fate::Refused(why)) => {
                Problem::key(path, "refused_field", format!("field {path} is not supported: {why}")).label("remove it")
            }
            None => {
                let problem = Problem::key(path, "unknown_field", format!("unknown field {path}"));
                let known = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
                let explain = explain_hint(self.kind, &path.parent());
                match closest(key, fields.iter().copied()) {
                    Some(similar) => problem.label(format!("did you mean {similar}?")),
                    None => problem.label("unknown"),
                }
                .help(format!("fields here: {known}. See: {explain}"))
            }
        };
        self.found.borrow_mut().push(problem);
    }
}

/// `hostweave explain Port.spec`.
pub fn explain_hint(kind: Kind, path: &Path) -> String {
    let path = path.schema_path();
    let dot = if path.is_empty() { "" } else { "." };
    format!("hostweave explain {kind}{dot}{path}")
}

/// The way to a node, on the stack: a path is only made where there is something to report.
#[derive(Clone, Copy)]
enum Trail<'t> {
    Root,
    Key(&'t Trail<'t>, &'t str),
    Index(&'t Trail<'t>, usize),
}

impl Trail<'_> {
    fn path(&self) -> Path {
        match self {
            Trail::Root => Path::default(),
            Trail::Key(parent, key) => parent.path().key(key),
            Trail::Index(parent, index) => parent.path().index(*index),
        }
    }
}

/// What does not fit, and where. The path is filled in by the innermost node.
#[derive(Debug)]
struct Error {
    path: Option<Path>,
    /// As it is written in the source, where that is a number or the like.
    written: Option<String>,
    kind: Option<Kind>,
    what: What,
}

#[derive(Debug)]
enum What {
    Missing(&'static str),
    Variant { found: String, expected: &'static [&'static str] },
    Type { found: String, expected: String },
    Other(String),
}

impl Error {
    fn new(what: What) -> Self {
        Self { path: None, written: None, kind: None, what }
    }

    /// The problem to report; none where it only follows from one that is reported already.
    fn problem(self, known: &[Problem], poisoned: &HashSet<Path>) -> Option<Problem> {
        let path = self.path.unwrap_or_default();
        let hint = self.kind.map(|kind| explain_hint(kind, &path)).unwrap_or_default();
        let problem = match self.what {
            What::Missing(field) => {
                let wanted = path.key(field);
                let typo = |problem: &Problem| {
                    problem.code == "unknown_field"
                        && problem.path.parent() == path
                        && problem.label == format!("did you mean {field}?")
                };
                if poisoned.contains(&wanted) || known.iter().any(typo) {
                    return None;
                }
                Problem::key(&path, "missing_field", format!("field {wanted} is missing"))
                    .label(format!("{field} is required here"))
                    .help(format!("See: {hint}"))
            }
            What::Variant { found, expected } => {
                let message = format!("{path} {found:?} is not one of {}", expected.join(", "));
                let label = match closest(&found, expected.iter().copied()) {
                    Some(similar) => format!("did you mean {similar}?"),
                    None => format!("one of {}", expected.join(", ")),
                };
                Problem::value(&path, "unknown_value", message).label(label).help(format!("See: {hint}"))
            }
            What::Type { found, expected } => {
                let name = if path.0.is_empty() { "the object".to_owned() } else { path.to_string() };
                let problem = Problem::value(&path, "wrong_type", format!("{name} must be {expected}, not {found}"))
                    .label(format!("must be {expected}"));
                match self.written {
                    Some(written) if expected == "text" => problem.help(format!("put it in quotes: \"{written}\"")),
                    _ => problem.help(format!("See: {hint}")),
                }
            }
            What::Other(text) => Problem::value(&path, "wrong_value", format!("{path}: {text}")).label("here"),
        };
        Some(problem)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error::new(What::Other(message.to_string()))
    }

    fn missing_field(field: &'static str) -> Self {
        Error::new(What::Missing(field))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Error::new(What::Variant { found: variant.to_owned(), expected })
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Error::new(What::Type { found: found_words(&unexpected), expected: expected_words(&expected.to_string()) })
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }
}

/// A found value in the words of a YAML author.
fn found_words(unexpected: &Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(value) => format!("{value:?}"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map | Unexpected::StructVariant => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

/// What serde expects, in the words of a YAML author.
fn expected_words(expected: &str) -> String {
    match expected {
        "a string" => "text".to_owned(),
        "u16" | "u32" | "u64" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        other if other.starts_with("struct ") => "a mapping".to_owned(),
        other => other.to_owned(),
    }
}

/// A node on its way into a type.
struct NodeDe<'de, 't> {
    node: &'de Node,
    trail: Trail<'t>,
    context: &'t Context<'t>,
}

impl<'de> NodeDe<'de, '_> {
    /// Fills in where the error is, unless it happened deeper.
    fn locate(&self, mut error: Error) -> Error {
        if error.path.is_none() {
            error.path = Some(self.trail.path());
            error.kind = Some(self.context.kind);
            let plain =
                matches!(self.node.value, Value::Bool(_) | Value::Unsigned(_) | Value::Signed(_) | Value::Float(_));
            let start = self.node.mark.offset as usize;
            let end = start.saturating_add(self.node.mark.length as usize);
            error.written = plain.then(|| self.context.text.get(start..end).map(str::to_owned)).flatten();
        }
        error
    }

    fn visit<V: Visitor<'de>>(&self, fields: Option<&'static [&'static str]>, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::Sequence(items) => visitor.visit_seq(self.items(items)),
            Value::Mapping(entries) => visitor.visit_map(self.entries(entries, fields)),
        };
        result.map_err(|error| self.locate(error))
    }

    fn items(&self, items: &'de [Node]) -> Items<'de, '_> {
        Items { items, next: 0, trail: &self.trail, context: self.context }
    }

    fn entries(&self, entries: &'de [Entry], fields: Option<&'static [&'static str]>) -> Entries<'de, '_> {
        Entries { entries, current: None, fields, trail: &self.trail, context: self.context }
    }

    fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }
}

impl<'de> Deserializer<'de> for NodeDe<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(None, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.is_null() {
            return visitor.visit_map(self.entries(&[], Some(fields))).map_err(|error| self.locate(error));
        }
        // A derived visitor would take a list as well, field by field.
        if let Value::Sequence(_) = self.node.value {
            return Err(self.locate(de::Error::invalid_type(Unexpected::Seq, &"a map")));
        }
        self.visit(Some(fields), visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() {
            return visitor.visit_map(self.entries(&[], None)).map_err(|error| self.locate(error));
        }
        self.visit(None, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() {
            return visitor.visit_seq(self.items(&[])).map_err(|error| self.locate(error));
        }
        self.visit(None, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let word = match &self.node.value {
            Value::Text(word) => word.as_str(),
            // Writers that follow YAML 1.1 turn `on` and `off` into booleans.
            Value::Bool(true) if variants.contains(&"on") => "on",
            Value::Bool(false) if variants.contains(&"off") => "off",
            _ => {
                let expected = format!("one of {}", variants.join(", "));
                let error = self.visit(None, Expecting(expected)).err();
                return Err(error.unwrap_or_else(|| self.locate(de::Error::unknown_variant("", variants))));
            }
        };
        visitor.visit_enum(Word(word)).map_err(|error| self.locate(error))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// Accepts nothing: makes the "must be …, not …" of whatever is there.
struct Expecting(String);

impl Visitor<'_> for Expecting {
    type Value = std::convert::Infallible;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A word that names a variant without content.
struct Word<'de>(&'de str);

impl<'de> EnumAccess<'de> for Word<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'de, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::UnitVariant, &"a mapping"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::UnitVariant, &"a list"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::UnitVariant, &"a mapping"))
    }
}

struct Items<'de, 't> {
    items: &'de [Node],
    next: usize,
    trail: &'t Trail<'t>,
    context: &'t Context<'t>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        while let Some(node) = self.items.get(self.next) {
            let trail = Trail::Index(self.trail, self.next);
            self.next += 1;
            if self.context.poisoned.is_empty() || !self.context.poisoned.contains(&trail.path()) {
                return seed.deserialize(NodeDe { node, trail, context: self.context }).map(Some);
            }
        }
        Ok(None)
    }
}

struct Entries<'de, 't> {
    /// What is left.
    entries: &'de [Entry],
    current: Option<&'de Entry>,
    /// The fields of a struct; `None` for a map, which takes any key.
    fields: Option<&'static [&'static str]>,
    trail: &'t Trail<'t>,
    context: &'t Context<'t>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while let Some((entry, rest)) = self.entries.split_first() {
            self.entries = rest;
            let trail = Trail::Key(self.trail, &entry.key);
            if !self.context.poisoned.is_empty() && self.context.poisoned.contains(&trail.path()) {
                continue;
            }
            if let Some(fields) = self.fields
                && !fields.contains(&entry.key.as_str())
            {
                self.context.unknown_field(&trail.path(), &entry.key, fields);
                continue;
            }
            self.current = Some(entry);
            let key: StringDeserializer<Error> = entry.key.clone().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let trail = Trail::Key(self.trail, &entry.key);
        seed.deserialize(NodeDe { node: &entry.node, trail, context: self.context })
    }
}
