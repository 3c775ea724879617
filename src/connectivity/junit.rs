//! The result as JUnit XML, which CI systems read.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::{Guests, Report};
use crate::guests::board::Outcome;
use crate::observe::time::rfc3339;

/// The whole document. A check that was cut short counts as an error.
pub fn document(report: &Report, guests: Guests, began: SystemTime) -> String {
    let count = |wanted: fn(&Outcome) -> bool| report.steps.iter().filter(|step| wanted(&step.outcome)).count();
    let (failures, errors) =
        (count(|it| matches!(it, Outcome::Failed(_))), count(|it| matches!(it, Outcome::Running(_))));
    let skipped = count(|it| matches!(it, Outcome::Skipped(_)));
    let numbers = format!(
        "tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{}\"",
        report.steps.len(),
        seconds(report.steps.iter().map(|step| step.took).sum()),
    );
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"hostweave\" {numbers}>\n  \
         <testsuite name=\"connectivity\" {numbers} timestamp=\"{}\">\n",
        rfc3339(began)
    );
    for step in &report.steps {
        let head = format!(
            "    <testcase classname=\"connectivity.{}\" name=\"{}\" time=\"{}\">",
            guests.name(),
            escaped(step.name),
            seconds(step.took)
        );
        let body = match &step.outcome {
            Outcome::Passed(seen) => format!("<system-out>{}</system-out>", escaped(seen)),
            Outcome::Failed(why) => format!("<failure message=\"{}\"/>", escaped(why)),
            Outcome::Skipped(why) => format!("<skipped message=\"{}\"/>", escaped(why)),
            Outcome::Running(now) => format!("<error message=\"{}\"/>", escaped(now)),
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{head}{body}</testcase>");
    }
    text + "  </testsuite>\n</testsuites>\n"
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// Text as it may stand in XML 1.0, attributes included; what XML has no way to say becomes U+FFFD.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::board::Step;

    #[test]
    fn every_outcome_has_its_element() {
        let step = |name, outcome| Step { name, outcome, took: Duration::from_millis(1500) };
        let steps = vec![
            step("ping", Outcome::Passed("40 µs".into())),
            step("TCP", Outcome::Failed("a < b & \"c\"\u{1b}\nd".into())),
            step("egress", Outcome::Skipped("no uplink".into())),
            step("DNS", Outcome::Running("cut short".into())),
        ];
        let report = Report { steps, passed: false, summary: String::new() };
        let text = document(&report, Guests::Sim, SystemTime::UNIX_EPOCH);
        for part in [
            "<testsuite name=\"connectivity\" tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\" time=\"6.000\" \
             timestamp=\"1970-01-01T00:00:00.000000Z\">",
            "<testcase classname=\"connectivity.sim\" name=\"ping\" time=\"1.500\"><system-out>40 µs</system-out></testcase>",
            "<failure message=\"a &lt; b &amp; &quot;c&quot;\u{fffd}&#10;d\"/>",
            "<skipped message=\"no uplink\"/>",
            "<error message=\"cut short\"/>",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(text.matches("</testcase>").count(), 4);
        assert!(text.ends_with("</testsuites>\n"));
    }
}
