//! `hostweave edit`: an object in the user's editor, applied when the editor ends.
//!
//! What was read must still be so when it is applied: the text carries the revision, which the daemon compares. What is not
//! valid comes back into the editor, with what is wrong as a comment above it.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Session;
use super::complete;
use super::failure::{Failure, code};
use super::objects::{one, print_changes};
use super::output::hint;
use crate::config::{Diagnostic, Diagnostics, ObjectKey, Source, load_sources};

/// Arguments of `edit`.
#[derive(clap::Args, Debug)]
pub struct EditArgs {
    /// Kind, or KIND/NAME
    #[arg(add = complete::kind())]
    kind: String,
    /// Name, or NAMESPACE/NAME
    #[arg(add = complete::name())]
    name: Option<String>,
}

/// Changes an object in the user's editor. Nothing changed, or everything taken out: nothing is done.
///
/// # Errors
/// The object comes from a file; the editor failed; what it wrote is not valid and stays so; or somebody else has changed the
/// object meanwhile. What the user wrote is kept, and the file is named.
pub fn edit(session: &Session, args: &EditArgs) -> Result<(), Failure> {
    let editor = editor()?;
    let (kind, namespace, name) = one(session, &args.kind, args.name.as_deref())?;
    let item = session.call("object.get", json!({"kind": kind, "namespace": namespace, "name": name}))?;
    let key = ObjectKey::new(kind, Some(&namespace), &name);
    refuse_file(&key, item["origin"].as_str().unwrap_or_default())?;
    let original =
        Original { key, revision: item["object"]["metadata"]["resourceVersion"].as_str().map(str::to_owned) };
    let before = item["yaml"].as_str().unwrap_or_default().to_owned();
    let mut file = EditedFile::new(&original.key)?;
    let (mut body, mut refused): (String, Option<Failure>) = (before.clone(), None);
    loop {
        let header = header(&original.key, refused.as_ref());
        let after = file.edited(&editor, &header, &body)?;
        if after.trim().is_empty() || after == before {
            hint("nothing was changed");
            return file.remove();
        }
        if let Some(refused) = refused.take_if(|_| after == body) {
            return Err(file.kept(refused));
        }
        body = after;
        match original.check(&body).and_then(|()| {
            let source = json!({"name": file.path, "text": body});
            session.call("object.apply", json!({"sources": [source]}))
        }) {
            Ok(result) => {
                file.remove()?;
                session.warn(&result["warnings"]);
                return print_changes(session, &result, false);
            }
            Err(failure) if failure.code == code::REJECTED && !was_changed(&failure) => refused = Some(failure),
            Err(failure) => return Err(file.kept(failure)),
        }
    }
}

/// The user's editor, which may have arguments of its own, such as `code --wait`.
fn editor() -> Result<String, Failure> {
    let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match ["VISUAL", "EDITOR"].iter().find_map(set) {
        Some(editor) => Ok(editor),
        None if std::io::stdin().is_terminal() => Ok("vi".to_owned()),
        None => {
            let failure = Failure::usage("edit needs a terminal, or an editor that does without one (EDITOR)");
            Err(failure.help("without either: hostweave get … -o yaml, then apply -f"))
        }
    }
}

/// What comes from a file is changed only there.
fn refuse_file(key: &ObjectKey, origin: &str) -> Result<(), Failure> {
    if matches!(origin, "applied at run time" | "built in") {
        return Ok(());
    }
    let failure = Failure::new(code::REJECTED, format!("{key} comes from {origin} and is changed only there"));
    Err(failure.help("edit that file, then reload the daemon (SIGHUP)"))
}

/// Whether somebody else has changed the object: the editor cannot mend that.
fn was_changed(failure: &Failure) -> bool {
    failure.diagnostics.0.iter().any(|diagnostic| diagnostic.code == "hostweave::config::revision")
}

/// What was read.
struct Original {
    key: ObjectKey,
    revision: Option<String>,
}

impl Original {
    /// Whether a text is still this object, as it was read.
    fn check(&self, text: &str) -> Result<(), Failure> {
        let key = &self.key;
        let source = Source { name: "the text".to_owned(), text: text.to_owned() };
        let objects = load_sources(vec![source])?.objects;
        let problem = |message: String, help: &str| {
            let diagnostic = Diagnostic::error("hostweave::config::edit", message).with_object(key).with_help(help);
            Err(Failure::from(Diagnostics::from(diagnostic)))
        };
        let [object] = &objects[..] else {
            return problem(
                format!("there are {} objects in the text", objects.len()),
                "leave one; others: hostweave apply -f",
            );
        };
        if object.key != *key {
            let help = "edit changes no kind, namespace or name: apply it as a new object, and delete the old one";
            return problem(format!("the text is about {}", object.key), help);
        }
        let revision = object.metadata.resource_version.map(|revision| revision.to_string());
        match &self.revision {
            Some(read) if revision.as_ref() != Some(read) => {
                let help = format!(
                    "write metadata.resourceVersion: \"{read}\"; by it the daemon sees that nobody else has changed the object"
                );
                problem("metadata.resourceVersion is not the one that was read".to_owned(), &help)
            }
            _ => Ok(()),
        }
    }
}

/// What stands above the object: what to do, and what was wrong with the last try.
fn header(key: &ObjectKey, refused: Option<&Failure>) -> String {
    let head = format!(
        "# {key}: it is applied when you leave the editor. Nothing changed, or everything taken out: nothing is done.\n"
    );
    let Some(refused) = refused else { return head };
    let head = format!("{head}# Not applied. Left as it is: the text is kept in this file, and that is all.\n");
    let render = |shift: usize| -> String {
        let shifted = |diagnostic: &Diagnostic| {
            let mut diagnostic = diagnostic.clone();
            if let Some(place) = &mut diagnostic.place {
                place.line += u32::try_from(shift).unwrap_or(0);
            }
            diagnostic.render(false)
        };
        let text: String = refused.diagnostics.0.iter().map(shifted).collect();
        text.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect()
    };
    // Lines are counted as the editor does, from the first of these.
    let lines = head.lines().count() + render(0).lines().count();
    head + &render(lines)
}

/// A text without the lines of the header with which it was given to the editor.
fn without(header: &str, text: &str) -> String {
    if let Some(rest) = text.strip_prefix(header) {
        return rest.to_owned();
    }
    let ours = |line: &&str| header.lines().any(|of_header| of_header == line.trim_end());
    text.split_inclusive('\n').skip_while(ours).collect()
}

/// The file that the editor works on. Only this user may read it.
struct EditedFile {
    path: PathBuf,
}

impl EditedFile {
    fn new(key: &ObjectKey) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("hostweave-{}-{}.yaml", std::process::id(), key.name));
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path })
    }

    /// What the editor makes of a text.
    fn edited(&mut self, editor: &str, header: &str, body: &str) -> Result<String, Failure> {
        std::fs::File::options()
            .write(true)
            .truncate(true)
            .open(&self.path)?
            .write_all(format!("{header}{body}").as_bytes())?;
        let status = run(editor, &self.path)?;
        if !status.success() {
            return Err(self.kept(Failure::new(code::NEGATIVE, format!("{editor} failed: {status}"))));
        }
        Ok(without(header, &std::fs::read_to_string(&self.path)?))
    }

    /// It failed: what the user wrote stays.
    fn kept(&self, failure: Failure) -> Failure {
        hint(&format!("what you wrote is kept in {}", self.path.display()));
        failure
    }

    fn remove(self) -> Result<(), Failure> {
        Ok(std::fs::remove_file(&self.path)?)
    }
}

fn run(editor: &str, path: &Path) -> Result<std::process::ExitStatus, Failure> {
    let mut command = std::process::Command::new("sh");
    Ok(command.arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(path).status()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kind;

    const TEXT: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: Network
metadata: {name: corp, resourceVersion: \"7\"}
spec: {cidrs: [10.9.0.0/16]}
";

    fn original() -> Original {
        Original { key: ObjectKey::new(Kind::Network, None, "corp"), revision: Some("7".to_owned()) }
    }

    #[test]
    fn only_the_object_that_was_read_is_applied() {
        assert!(original().check(TEXT).is_ok());
        for (text, said) in [
            (TEXT.replace("corp", "other"), "the text is about Network other"),
            (TEXT.replace(", resourceVersion: \"7\"", ""), "is not the one that was read"),
            (TEXT.replace("\"7\"", "\"8\""), "is not the one that was read"),
            (format!("{TEXT}---\n{}", TEXT.replace("corp", "other")), "there are 2 objects"),
            (TEXT.replace("10.9.0.0/16", "10.9.0.0/99"), "10.9.0.0/99"),
        ] {
            let failure = original().check(&text).unwrap_err();
            assert_eq!(failure.code, code::REJECTED);
            assert!(failure.diagnostics.to_string().contains(said), "{}", failure.diagnostics);
        }
    }

    #[test]
    fn what_is_wrong_stands_above_with_the_line_that_the_editor_counts() {
        let text = TEXT.replace("10.9.0.0/16", "10.9.0.0/99");
        let failure = original().check(&text).unwrap_err();
        let header = header(&original().key, Some(&failure));
        assert!(header.lines().all(|line| line.starts_with('#')), "{header}");
        let whole = format!("{header}{text}");
        let at = whole.lines().position(|line| line.contains("/99]}") && !line.starts_with('#')).unwrap() + 1;
        assert!(header.contains(&format!(":{at}:")), "line {at} is not named in\n{header}");
        assert_eq!(without(&header, &whole), text);
    }

    #[test]
    fn comments_of_the_user_stay() {
        let header = header(&original().key, None);
        let own = format!("# why: ticket 7\n{TEXT}");
        assert_eq!(without(&header, &format!("{header}{own}")), own);
        assert_eq!(without(&header, &own), own, "the header was taken out");
        assert_eq!(without(&header, &header), "");
    }

    #[test]
    fn what_comes_from_a_file_is_refused_by_its_name() {
        let key = ObjectKey::new(Kind::Network, None, "corp");
        let failure = refuse_file(&key, "conf.d/10.yaml:3").unwrap_err();
        assert!(failure.code == code::REJECTED && failure.diagnostics.to_string().contains("conf.d/10.yaml:3"));
        assert!(refuse_file(&key, "applied at run time").is_ok() && refuse_file(&key, "built in").is_ok());
    }
}
