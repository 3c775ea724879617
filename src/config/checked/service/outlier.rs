//! The annotation `hostweave.dev/outlier-detection`: passive ejection of backends.

use std::ops::RangeInclusive;

use super::health::{milliseconds, read_yaml};
use crate::config::checked::{Metadata, annotations};
use crate::config::problem::Problem;
use crate::config::raw::outlier_detection::OutlierDetection as Raw;
use crate::fabric::spec::OutlierSpec;

/// Where nothing is written, as Envoy has it, but for the share: a Service of a host has few backends.
const DEFAULT: OutlierSpec = OutlierSpec { consecutive_failures: 5, base_ejection_s: 30, max_ejection_percent: 50 };

/// What may be written.
const FAILURES: RangeInclusive<u32> = 1..=80;
const BASE_MS: RangeInclusive<u32> = 1_000..=3_600_000;
const PERCENT: RangeInclusive<u32> = 1..=100;

/// How it is written, for people.
const FORM: &str = "for example off, or {consecutiveFailures: 5, baseEjectionTime: 30s, maxEjectionPercent: 50}";

/// What is written, or else the default; `None` when it is `off`.
pub(super) fn detection(metadata: &Metadata, problems: &mut Vec<Problem>) -> Option<OutlierSpec> {
    let Some(text) = metadata.annotations.get(annotations::OUTLIER_DETECTION) else { return Some(DEFAULT) };
    if text.trim() == "off" {
        return None;
    }
    let raw: Raw = read_yaml(text, annotations::OUTLIER_DETECTION, "needs off or values", problems, &problem)?;
    let mut number = |field, value: Option<u32>, allowed: RangeInclusive<u32>, default: u8| {
        let Some(value) = value else { return default };
        if !allowed.contains(&value) {
            let (least, most) = (allowed.start(), allowed.end());
            let message = format!("{field} {value} is out of range: {least} to {most} are allowed");
            problems.push(problem("out_of_range", &message, &format!("{field}: {least} to {most}")));
        }
        u8::try_from(value).unwrap_or(default)
    };
    let consecutive_failures =
        number("consecutiveFailures", raw.consecutive_failures, FAILURES, DEFAULT.consecutive_failures);
    let max_ejection_percent =
        number("maxEjectionPercent", raw.max_ejection_percent, PERCENT, DEFAULT.max_ejection_percent);
    let base_ejection_s =
        raw.base_ejection_time.as_deref().map_or(DEFAULT.base_ejection_s, |text| base(text, problems));
    Some(OutlierSpec { consecutive_failures, base_ejection_s, max_ejection_percent })
}

/// Seconds; what is written more finely is rounded up.
fn base(text: &str, problems: &mut Vec<Problem>) -> u32 {
    let Some(ms) = milliseconds(text) else {
        let message = format!("baseEjectionTime {text:?} is not a time such as 30s or 1m");
        problems.push(problem("wrong_value", &message, "not a time"));
        return DEFAULT.base_ejection_s;
    };
    if !BASE_MS.contains(&ms) {
        let message = format!("baseEjectionTime {text} is out of range: 1s to 60m are allowed");
        problems.push(problem("out_of_range", &message, "baseEjectionTime: 1s to 60m"));
    }
    ms.div_ceil(1_000)
}

fn problem(code: &'static str, message: &str, label: &str) -> Problem {
    let path = annotations::path_of(annotations::OUTLIER_DETECTION);
    let message = format!("annotation {}: {message}", annotations::OUTLIER_DETECTION);
    Problem::value(&path, code, message).label(label).help(FORM)
}
