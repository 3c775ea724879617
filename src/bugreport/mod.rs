//! A bug report: one archive with what somebody else needs to understand a host.
//!
//! `collect` gathers documents from the daemon and the machine; what does not answer is missing, and the report says so.
//! `secrets` takes out what nobody else may have, always. `redact` replaces names and addresses, where that is wanted.

mod address;
mod archive;
mod collect;
mod host;
mod names;
mod redact;
mod secrets;

use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use redact::Redactor;

/// A file of the report.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// Path within the report.
    pub name: String,
    /// What is in it.
    pub body: Body,
}

/// What is in a file.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// Printed as indented JSON.
    Json(Value),
    /// Printed as it is.
    Text(String),
}

impl Document {
    fn json(name: &str, value: Value) -> Self {
        Self { name: name.to_owned(), body: Body::Json(value) }
    }

    fn text(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.to_owned(), body: Body::Text(text.into()) }
    }

    fn to_text(&self) -> String {
        match &self.body {
            Body::Json(value) => format!("{value:#}\n"),
            Body::Text(text) => text.clone(),
        }
    }
}

/// A finished report.
pub struct Report {
    /// The archive, a tar compressed by gzip.
    pub archive: Vec<u8>,
    /// Names of its files.
    pub files: Vec<String>,
    /// What could not be had, and why.
    pub missing: Vec<String>,
}

/// Makes a report of the daemon behind `control`, which may be down, and of this machine.
///
/// # Errors
/// The archive cannot be written.
pub fn make(control: &Path, redacted: bool, now: SystemTime) -> std::io::Result<Report> {
    let (documents, missing) = collect::collect(control);
    let mut own = host::own_names();
    own.push(control.display().to_string());
    let documents = finished(documents, &missing, redacted, &own);
    let archive = archive::pack(&documents, now)?;
    let files = documents.iter().map(|document| document.name.clone()).collect();
    Ok(Report { archive, files, missing })
}

/// Without secrets, and redacted if that is wanted; the list of what is missing with it.
fn finished(mut documents: Vec<Document>, missing: &[String], redacted: bool, own: &[String]) -> Vec<Document> {
    let mut about = ABOUT.to_owned();
    if redacted {
        about += ABOUT_REDACTED;
    }
    if !missing.is_empty() {
        about += &format!("\nNot in it:\n{}", missing.iter().map(|line| format!("  {line}\n")).collect::<String>());
    }
    secrets::strip(&mut documents);
    documents.insert(0, Document::text("README.txt", about));
    if redacted { Redactor::new(&documents, own).all(documents) } else { documents }
}

const ABOUT: &str = "\
A report of hostweave: versions, the machine, objects, ports, counters, metrics, summaries of connections and of NAT,
events, what `hostweave doctor` says, and the log where it could be read. User data of guests, keys and passwords are left
out.
";

const ABOUT_REDACTED: &str = "
Names, labels and addresses are replaced, the same one always by the same. Two addresses that had their first n bits in
common still have; the first octet of IPv4 addresses (more of private ones) and the first 16 bits of IPv6 addresses are
the real ones. Words of hostweave's own, such as `default` and `allow`, stay. The replacements are written down nowhere.
";

#[cfg(test)]
mod tests;
