//! Label selectors, checked as `ValidateLabelSelector` of Kubernetes' apimachinery does.

use hostweave_policy::model::{self, Operator, Requirement};

use crate::config::names;
use crate::config::node::Path;
use crate::config::problem::Problem;
use crate::config::raw::selector as raw;

/// Checks a selector; values of fields that have a problem are meaningless.
pub(super) fn check(raw: &raw::LabelSelector, path: &Path, problems: &mut Vec<Problem>) -> model::Selector {
    let mut requirements = Vec::new();
    for (key, value) in raw.match_labels.iter().flatten() {
        let path = path.key("matchLabels").key(key);
        if let Err(reason) = names::check_label_key(key) {
            let message = format!("the key of label {key:?} {reason}");
            problems.push(Problem::key(&path, "invalid_label", message).label("not a valid key"));
        }
        check_value(key, value, &path, problems);
        requirements.push(Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) });
    }
    for (index, expression) in raw.match_expressions.iter().flatten().enumerate() {
        requirements.push(check_expression(expression, &path.key("matchExpressions").index(index), problems));
    }
    model::Selector { requirements }
}

/// As [`check`], for an optional one.
pub(super) fn check_option(
    raw: Option<&raw::LabelSelector>,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Option<model::Selector> {
    raw.map(|raw| check(raw, path, problems))
}

/// As [`check`], for one that must be there: left out, it could mean "all" as well as "none" (SEMANTICS NP5).
pub(super) fn check_required(
    raw: Option<&raw::LabelSelector>,
    path: &Path,
    problems: &mut Vec<Problem>,
) -> model::Selector {
    let Some(raw) = raw else {
        let problem = Problem::key(path, "missing_field", format!("field {path} is missing"));
        problems.push(problem.label("podSelector is required here").help("write podSelector: {} to select every port"));
        return model::Selector::default();
    };
    check(raw, path, problems)
}

fn check_expression(raw: &raw::Requirement, path: &Path, problems: &mut Vec<Problem>) -> Requirement {
    if let Err(reason) = names::check_label_key(&raw.key) {
        let path = path.key("key");
        let message = format!("{path} {:?} {reason}", raw.key);
        problems.push(Problem::value(&path, "invalid_label", message).label("not a valid key"));
    }
    let values = raw.values.clone().unwrap_or_default();
    let values_path = path.key("values");
    for (index, value) in values.iter().enumerate() {
        check_value(&raw.key, value, &values_path.index(index), problems);
    }
    let needs_values = matches!(raw.operator, raw::Operator::In | raw::Operator::NotIn);
    if needs_values && values.is_empty() {
        let message = format!("{values_path} is empty: operator {:?} needs at least one value", raw.operator);
        problems.push(Problem::value(&path.key("operator"), "missing_field", message).label("needs values"));
    } else if !needs_values && !values.is_empty() {
        let message = format!("{values_path} has no meaning with operator {:?}", raw.operator);
        let problem = Problem::key(&values_path, "conflict", message).label("remove it");
        problems.push(problem.help("Exists and DoesNotExist ask for the key alone; In and NotIn compare values"));
    }
    let operator = match raw.operator {
        raw::Operator::In => Operator::In(values),
        raw::Operator::NotIn => Operator::NotIn(values),
        raw::Operator::Exists => Operator::Exists,
        raw::Operator::DoesNotExist => Operator::DoesNotExist,
    };
    Requirement { key: raw.key.clone(), operator }
}

fn check_value(key: &str, value: &str, path: &Path, problems: &mut Vec<Problem>) {
    if let Err(reason) = names::check_label_value(value) {
        let message = format!("the value of label {key}, {value:?}, {reason}");
        problems.push(Problem::value(path, "invalid_label", message).label("no label has it"));
    }
}
