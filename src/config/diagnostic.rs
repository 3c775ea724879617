//! Diagnostics: what is wrong, where, why, and what to write instead.
//!
//! A [`Diagnostic`] carries the source line itself, not the file: it travels through the control socket as JSON and
//! the client renders it exactly as an offline `validate` would. Rendering is miette's; this file only feeds it.

use std::fmt;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan,
};
use serde::{Deserialize, Serialize};

/// How bad it is. Anything with an [`Severity::Error`] is not applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing was applied.
    #[default]
    Error,
    /// It was applied, but may not do what the author meant.
    Warning,
}

/// A place in a source, with the line itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// File as the user named it; `<stdin>` for standard input.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column of the first character, from 1.
    pub column: u32,
    /// The line, without its line break.
    pub text: String,
    /// Offset of what is marked, in octets from the start of `text`.
    pub offset: u32,
    /// Length of what is marked, in octets; at least 1 unless the line is empty.
    pub length: u32,
    /// What stands under the mark.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
}

/// One problem.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// How bad it is.
    #[serde(default)]
    pub severity: Severity,
    /// Stable name, such as `hostweave::config::unknown_field`.
    pub code: String,
    /// One sentence with the values in it.
    pub message: String,
    /// The object, such as `Port shop/web-0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, such as `spec.addresses[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Where it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What to write or do instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code: code.to_owned(),
            message: message.into(),
            object: None,
            field: None,
            place: None,
            help: None,
        }
    }

    /// A warning without a place.
    pub fn warning(code: &str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Names the object.
    #[must_use]
    pub fn with_object(mut self, object: impl fmt::Display) -> Self {
        self.object = Some(object.to_string());
        self
    }

    /// Adds the place.
    #[must_use]
    pub fn with_place(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    /// Whether this one prevents the whole set from being applied.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The text a person reads, ending in a line break. `color` adds terminal escapes.
    pub fn render(&self, color: bool) -> String {
        let word = match self.severity {
            Severity::Error => "Error",
            Severity::Warning => "Warning",
        };
        if self.place.is_none() {
            let mut text = format!("{word}: {}\n", self.sentence());
            if let Some(help) = &self.help {
                for (number, line) in help.lines().enumerate() {
                    text.push_str(if number == 0 { "  help: " } else { "        " });
                    text.push_str(line);
                    text.push('\n');
                }
            }
            return text;
        }
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let mut body = String::new();
        // Writing to a String cannot fail; a renderer that fails anyway leaves what it wrote.
        let _ =
            GraphicalReportHandler::new_themed(theme).with_width(160).with_links(false).render_report(&mut body, self);
        // miette leaves an empty line after the code.
        let body = body.replacen("\n\n", "\n", 1);
        format!("{word}: {}\n", body.trim_end())
    }

    /// The message with the object before it.
    fn sentence(&self) -> String {
        let path = self.object.as_ref().and_then(|object| object.split(' ').nth(1)).unwrap_or_default();
        let named = self.message.strip_prefix("policy ").and_then(|rest| rest.strip_prefix(path));
        match &self.object {
            // `policy shop/lock-down selects 0 ports` says which object it is about.
            Some(_) if named.is_some_and(|rest| rest.starts_with(' ')) => self.message.clone(),
            Some(object) => format!("{object}: {}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())
    }
}

impl std::error::Error for Diagnostic {}

impl miette::Diagnostic for Diagnostic {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.as_ref().map(|place| place as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.as_ref()?;
        let label = (!place.label.is_empty()).then(|| place.label.clone());
        let span = LabeledSpan::new(label, place.offset as usize, place.length as usize);
        Some(Box::new(std::iter::once(span)))
    }
}

/// The one line that a [`Place`] holds, under its real number in its real file.
impl SourceCode for Place {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, MietteError> {
        // The place may come from the control socket: a mark outside its line is refused, not trusted.
        if span.offset().saturating_add(span.len()) > self.text.len() {
            return Err(MietteError::OutOfBounds);
        }
        let whole = SourceSpan::from((0, self.text.len()));
        let line = (self.line as usize).saturating_sub(1);
        // miette asks without context for the place that it prints in the head, and with context for the line.
        let head = lines_before == 0 && lines_after == 0;
        let column = if head { (self.column as usize).saturating_sub(1) } else { 0 };
        let contents = MietteSpanContents::new_named(self.file.clone(), self.text.as_bytes(), whole, line, column, 1);
        Ok(Box::new(contents))
    }
}

/// All problems of one request. As an error it holds at least one [`Severity::Error`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Whether anything prevents applying.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(Diagnostic::is_error)
    }

    /// Everything rendered, one after the other.
    pub fn render(&self, color: bool) -> String {
        self.0.iter().map(|diagnostic| diagnostic.render(color)).collect()
    }

    /// `value` with its warnings, or everything if anything is wrong.
    ///
    /// # Errors
    /// All diagnostics, if one of them is an error.
    pub fn or<T>(self, value: T) -> Result<(T, Vec<Diagnostic>), Diagnostics> {
        if self.has_errors() { Err(self) } else { Ok((value, self.0)) }
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(one: Diagnostic) -> Self {
        Self(vec![one])
    }
}

impl From<Vec<Diagnostic>> for Diagnostics {
    fn from(all: Vec<Diagnostic>) -> Self {
        Self(all)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Diagnostics {}
