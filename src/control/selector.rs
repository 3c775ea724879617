//! Label selectors as `kubectl -l` reads them: `app=web,tier!=db,env in (a,b),env notin (c),ready,!old`.

use std::collections::BTreeMap;

use super::error::{ErrorKind, RpcError};

/// A selector: all its requirements must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Requirement {
    In(String, Vec<String>),
    /// Also holds where the label is missing, as in Kubernetes.
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// Which part is not a requirement.
    pub fn parse(text: &str) -> Result<Self, RpcError> {
        parts(text).map(requirement).collect::<Result<_, _>>().map(Self)
    }

    /// Whether all requirements hold.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Missing(key) => !labels.contains_key(key),
        })
    }
}

/// The parts between commas that stand outside parentheses.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth <= 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn requirement(part: &str) -> Result<Requirement, RpcError> {
    let bad = || {
        let message = format!("{part:?} is not a label requirement");
        RpcError::new(ErrorKind::InvalidParams, "selector", message)
            .help("write for example app=web, tier!=db, 'env in (a,b)', ready or !old, joined by commas")
    };
    let key = |text: &str| {
        let text = text.trim();
        crate::config::names::check_label_key(text).map(|()| text.to_owned()).map_err(|_| bad())
    };
    let value = |text: &str| {
        let text = text.trim();
        crate::config::names::check_label_value(text).map(|()| text.to_owned()).map_err(|_| bad())
    };
    if let Some((left, right)) = part.split_once('(') {
        let values = right.strip_suffix(')').ok_or_else(bad)?.split(',').map(value).collect::<Result<_, _>>()?;
        let mut words = left.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Requirement::In(key(name)?, values)),
            (Some(name), Some("notin"), None) => Ok(Requirement::NotIn(key(name)?, values)),
            _ => Err(bad()),
        };
    }
    if let Some((left, right)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key(left)?, vec![value(right)?]));
    }
    if let Some((left, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key(left)?, vec![value(right)?]));
    }
    match part.strip_prefix('!') {
        Some(name) => Ok(Requirement::Missing(key(name)?)),
        None => Ok(Requirement::Exists(key(part)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_match_as_in_kubernetes() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("env", "a")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=db", true),
            ("tier!=x", true),
            ("env in (a, b)", true),
            ("env in (b,c),app=web", false),
            ("env notin (b,c),app=web", true),
            ("tier notin (b)", true),
            ("app", true),
            ("!app", false),
            ("!tier", true),
            ("tier", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), expected, "{text}");
        }
        for bad in ["=x", "a b", "a in b", "a in (b", "a=b c", "a=(b)", "!"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }
}
