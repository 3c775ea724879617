//! From files to objects: reading (the client's part), parsing and checking each object (the same code offline and in
//! the daemon). Every problem of every file is reported at once.

use std::io::Read;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use super::checked::{Object, Origin};
use super::diagnostic::{Diagnostic, Diagnostics};
use super::fate::KINDS_NOT_YET;
use super::kind::Kind;
use super::names::closest;
use super::node::{self, Document, Node, Path, SOURCE_BYTES_MAX, Source, Value};
use super::problem::Problem;

/// Files of one folder.
const FILES_MAX: usize = 65_536;

/// How standard input is called in diagnostics.
const STDIN: &str = "<stdin>";

/// Valid objects, in the order written, and what is dubious about them.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Each valid by itself; [`super::set::check_set`] checks them together.
    pub objects: Vec<Object>,
    /// Ignored fields and the like.
    pub warnings: Vec<Diagnostic>,
}

/// Reads files, the `.yaml`, `.yml` and `.json` files of folders (sorted by name, not recursive), and `-` as standard
/// input.
///
/// # Errors
/// Every path that cannot be read, is not UTF-8 or is too large.
pub fn read_paths(paths: &[PathBuf]) -> Result<Vec<Source>, Diagnostics> {
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        let files = if path.is_dir() { files_of(path) } else { Ok(vec![path.clone()]) };
        match files {
            Ok(files) => {
                for file in files {
                    match read_file(&file) {
                        Ok(source) => sources.push(source),
                        Err(problem) => problems.push(*problem),
                    }
                }
            }
            Err(problem) => problems.push(*problem),
        }
    }
    if problems.is_empty() { Ok(sources) } else { Err(Diagnostics(problems)) }
}

/// The objects of `sources`, each with `Origin::File`.
///
/// # Errors
/// All problems of all sources, warnings included.
pub fn load_sources(sources: Vec<Source>) -> Result<Loaded, Diagnostics> {
    let mut loaded = Loaded::default();
    let mut errors = Vec::new();
    for source in sources {
        load_source(source, &mut loaded, &mut errors);
    }
    if errors.is_empty() {
        return Ok(loaded);
    }
    // Warnings go after the errors: a person reads the end of a terminal last, but fixes errors first.
    errors.append(&mut loaded.warnings);
    Err(Diagnostics(errors))
}

/// [`read_paths`], then [`load_sources`].
///
/// # Errors
/// All problems of all sources, warnings included.
pub fn load_paths(paths: &[PathBuf]) -> Result<Loaded, Diagnostics> {
    load_sources(read_paths(paths)?)
}

/// The objects of one source; its errors say how many others are fine.
fn load_source(source: Source, loaded: &mut Loaded, errors: &mut Vec<Diagnostic>) {
    let source = Arc::new(source);
    let documents = match node::parse(&source) {
        Ok(documents) => documents,
        Err(problem) => return errors.push(*problem),
    };
    let (first_object, first_error) = (loaded.objects.len(), errors.len());
    for document in documents.into_iter().flat_map(expand) {
        let origin = Origin::File { file: source.name.clone(), line: document.line() };
        let kind = kind_of(&document);
        match kind.and_then(|kind| Object::from_document(Arc::new(document), kind, origin)) {
            Ok((object, warnings)) => {
                loaded.objects.push(object);
                loaded.warnings.extend(warnings);
            }
            Err(problems) => errors.extend(problems.0),
        }
    }
    let fine = loaded.objects.len() - first_object;
    if let Some(first) = errors.get_mut(first_error) {
        let count = match fine {
            0 => "nothing was applied".to_owned(),
            1 => "nothing was applied; 1 other object in this file is valid".to_owned(),
            _ => format!("nothing was applied; {fine} other objects in this file are valid"),
        };
        first.help = Some(match first.help.take() {
            Some(help) => {
                let mut letters = help.chars();
                let capital = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
                format!("{count}. {capital}{}", letters.as_str())
            }
            None => count,
        });
    }
}

/// A list (`- …` as `get -o json` prints it, or `kind: List` as kubectl does) as its elements.
fn expand(document: Document) -> Vec<Document> {
    let is_list = matches!(document.root.get("kind"), Some(Node { value: Value::Text(kind), .. }) if kind == "List");
    let Document { source, root } = document;
    let items = match root {
        Node { value: Value::Sequence(items), .. } => items,
        Node { value: Value::Mapping(entries), mark } if is_list => {
            let items = entries.into_iter().find(|entry| entry.key == "items").map(|entry| entry.node);
            match items {
                Some(Node { value: Value::Sequence(items), .. }) => items,
                Some(other) => vec![other],
                None => vec![Node { value: Value::Null, mark }],
            }
        }
        root => return vec![Document { source, root }],
    };
    items.into_iter().map(|root| Document { source: Arc::clone(&source), root }).collect()
}

/// Which kind of object a document is.
///
/// # Errors
/// It has no `kind` or `apiVersion`, or one that is unknown or not supported yet.
pub(super) fn kind_of(document: &Document) -> Result<Kind, Diagnostics> {
    named_kind(document).map_err(|problem| problem.diagnose("", Some(document)).into())
}

fn named_kind(document: &Document) -> Result<Kind, Problem> {
    let help = "an object begins with apiVersion, kind and metadata. See: hostweave explain";
    if !matches!(document.root.value, Value::Mapping(_)) {
        let problem = Problem::value(&Path::default(), "wrong_type", "this is not an object: a mapping is expected");
        return Err(problem.label("not an object").help(help));
    }
    let text = |key: &str| match document.root.get(key).map(|node| &node.value) {
        Some(Value::Text(text)) => Ok(text.as_str()),
        Some(_) => {
            let path = Path::of(key);
            Err(Problem::value(&path, "wrong_type", format!("{key} must be text")).label("must be text").help(help))
        }
        None => {
            let problem = Problem::key(&Path::default(), "missing_field", format!("field {key} is missing"));
            Err(problem.label(format!("an object without {key}")).help(help))
        }
    };
    let word = text("kind")?;
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == word) else { return Err(unknown_kind(word)) };
    let version = text("apiVersion")?;
    if version == kind.api_version() {
        return Ok(kind);
    }
    let path = Path::of("apiVersion");
    let message = format!("apiVersion {version:?} has no kind {kind}");
    Err(Problem::value(&path, "unknown_value", message).label(format!("write {}", kind.api_version())))
}

/// A kind that is not supported, or not supported yet.
fn unknown_kind(word: &str) -> Problem {
    let path = Path::of("kind");
    if let Some((kind, version)) = KINDS_NOT_YET.iter().find(|(kind, _)| *kind == word) {
        let message = format!("kind {kind} ({version}) is not supported yet by this version");
        let problem = Problem::value(&path, "not_yet_supported", message).label("not supported yet");
        return problem.help("leave it out for now: hostweave applies nothing that it would not carry out");
    }
    let all = Kind::ALL.map(Kind::as_str);
    let message = format!("kind {word:?} is not one of {}", all.join(", "));
    let later = KINDS_NOT_YET.iter().map(|(kind, _)| *kind);
    let label = match closest(word, all.into_iter().chain(later)) {
        Some(similar) => format!("did you mean {similar}?"),
        None => "unknown kind".to_owned(),
    };
    Problem::value(&path, "unknown_kind", message).label(label)
}

/// The YAML and JSON files of a folder, sorted by name.
fn files_of(folder: &FilePath) -> Result<Vec<PathBuf>, Box<Diagnostic>> {
    let failed = |error: std::io::Error| unreadable(&folder.display().to_string(), &error.to_string());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let wanted = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if wanted && !hidden && !path.is_dir() {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            let message = format!("more than {FILES_MAX} files");
            return Err(unreadable(&folder.display().to_string(), &message));
        }
    }
    files.sort();
    Ok(files)
}

/// One file, or standard input for `-`.
fn read_file(path: &FilePath) -> Result<Source, Box<Diagnostic>> {
    let stdin = path.as_os_str() == "-";
    let name = if stdin { STDIN.to_owned() } else { path.display().to_string() };
    let result = if stdin { read_text(std::io::stdin().lock()) } else { std::fs::File::open(path).and_then(read_text) };
    match result {
        Ok(text) if text.len() > SOURCE_BYTES_MAX => {
            Err(unreadable(&name, &format!("more than {SOURCE_BYTES_MAX} octets")))
        }
        Ok(text) => Ok(Source { name, text }),
        Err(error) => Err(unreadable(&name, &error.to_string())),
    }
}

/// At most one octet more than is allowed, so that what is too large can be told.
fn read_text(reader: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    reader.take(SOURCE_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn unreadable(name: &str, reason: &str) -> Box<Diagnostic> {
    Box::new(Diagnostic::error("hostweave::config::unreadable", format!("cannot read {name}: {reason}")))
}
