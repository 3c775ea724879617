//! `edit`, with editors that are programs.

use std::path::Path;

use crate::support::{Daemon, Done, hostweave};

/// Runs `edit` with a shell script as the editor; `$1` is the file. Temporary files go to a folder that is looked into.
fn edit(daemon: &Daemon, object: &[&str], script: &str) -> Done {
    let editor = daemon.write("editor.sh", script);
    let temporary = daemon.path("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = hostweave();
    command.env("HOSTWEAVE_CONTROL", daemon.control()).env("TMPDIR", temporary).env_remove("VISUAL");
    command.env("PROGRAM", env!("CARGO_BIN_EXE_hostweave")).env("FOLDER", daemon.path(""));
    command.env("EDITOR", format!("sh {}", editor.display())).arg("edit").args(object);
    command.stdin(std::process::Stdio::null()).output().unwrap().into()
}

fn left(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn an_object_is_changed_in_the_editor() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "web", "-l", "app=web"]);
    let done = edit(&daemon, &["port/web"], "sed -i 's/app: web/app: db/' \"$1\"");
    assert_eq!((done.code, done.stdout.as_str()), (0, "Port default/web updated\n"), "{}", done.stderr);
    assert_eq!(daemon.json(&["port", "get", "web"])["labels"]["app"], "db");
    for script in ["true", "sed -i '/^[^#]/d' \"$1\"", ": > \"$1\""] {
        let done = edit(&daemon, &["port", "web"], script);
        assert_eq!((done.code, done.stderr.as_str()), (0, "nothing was changed\n"), "{script}");
    }
    assert_eq!(left(&daemon.path("tmp")), [""; 0]);
    assert_eq!(edit(&daemon, &["port", "web"], "exit 3").code, 1);
    assert_eq!(edit(&daemon, &["port", "none"], "true").code, 3);
}

#[test]
fn what_is_not_valid_comes_back_with_what_is_wrong() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "web"]);
    // First something that is refused, then mended by the comment that came with it.
    let script = "\
if grep -q '^# .*queues' \"$1\"
then cp \"$1\" \"$FOLDER/second\"; sed -i 's/^    vhostUser: {queues: 99}/    vhostUser: {queues: 2}/' \"$1\"
else sed -i 's/^    vhostUser: {}/    vhostUser: {queues: 99}/' \"$1\"
fi";
    let done = edit(&daemon, &["port/web"], script);
    assert_eq!((done.code, done.stdout.as_str()), (0, "Port default/web updated\n"), "{}", done.stderr);
    let second = std::fs::read_to_string(daemon.path("second")).unwrap();
    let line = second.lines().position(|line| line == "    vhostUser: {queues: 99}").unwrap() + 1;
    assert!(second.contains(&format!(":{line}:")), "line {line} is not named in\n{second}");
    assert!(daemon.ok(&["get", "port", "web", "-o", "yaml"]).contains("queues: 2"));
    // Left as it is: nothing is applied, and the text is kept.
    let done = edit(&daemon, &["port/web"], "sed -i 's/queues: 2/queues: 99/' \"$1\"");
    assert_eq!(done.code, 5, "{}", done.stderr);
    assert!(done.stderr.contains("is kept in") && done.stderr.contains("queues"), "{}", done.stderr);
    let kept = left(&daemon.path("tmp"));
    assert!(kept.len() == 1 && kept[0].contains("queues: 99"), "{kept:?}");
}

#[test]
fn what_somebody_else_changed_meanwhile_is_not_overwritten() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "web", "-l", "app=web"]);
    let script = "\"$PROGRAM\" port set-labels web app=other >/dev/null 2>&1; sed -i 's/app: web/app: mine/' \"$1\"";
    let done = edit(&daemon, &["port/web"], script);
    assert_eq!(done.code, 5, "{}", done.stderr);
    assert!(done.stderr.contains("changed by somebody else") && done.stderr.contains("is kept in"), "{}", done.stderr);
    assert_eq!(daemon.json(&["port", "get", "web"])["labels"]["app"], "other");
    assert!(left(&daemon.path("tmp"))[0].contains("app: mine"));
}

#[test]
fn what_comes_from_a_file_is_not_edited() {
    let daemon = Daemon::started();
    let done = edit(&daemon, &["port", "shop/file-0"], "echo opened > \"$FOLDER/opened\"");
    assert_eq!(done.code, 5);
    assert!(done.stderr.contains("conf/10.yaml:10") && !daemon.path("opened").exists(), "{}", done.stderr);
}
