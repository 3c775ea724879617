//! House rules as tests: what ARCHITECTURE.md promises about the code and the documents, and how the code reads.
//!
//! Each test reads the source tree as text; none needs root, a network or a built dependency beyond this workspace. A rule that
//! cannot be checked here does not belong into a document. To allow `unsafe` in a new file, add it to `UNSAFE_PLACES` with the reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hostweave_switch::stage::{DropReason, STAGES};
use serde_json::Value;

/// Packages of this workspace, and which of each other they may know (dependencies of tests not counted).
const STAR: &[(&str, &[&str])] = &[
    ("hostweave-switch", &[]),
    ("hostweave-guest", &[]),
    ("hostweave-vhost", &["hostweave-switch"]),
    ("hostweave-uplink", &["hostweave-switch"]),
    ("hostweave-policy", &["hostweave-switch"]),
    ("hostweave-nat", &["hostweave-switch"]),
    ("hostweave-bench", &["hostweave-guest"]),
    (
        "hostweave",
        &[
            "hostweave-guest",
            "hostweave-nat",
            "hostweave-policy",
            "hostweave-switch",
            "hostweave-uplink",
            "hostweave-vhost",
        ],
    ),
];

/// Files that may contain `unsafe`, each with the reason.
const UNSAFE_PLACES: &[(&str, &str)] = &[
    ("tests/allocations.rs", "an allocator that counts"),
    ("switch/src/packet.rs", "its unit tests make segments of a buffer of their own"),
    ("switch/src/payload.rs", "segments of another party's memory: raw pointers that a borrow cannot describe"),
    ("switch/src/prefetch.rs", "prefetch instructions"),
    (
        "switch/src/shared.rs",
        "mappings as typed slices: memory that outlives the process, and memory that costs nothing untouched",
    ),
    ("switch/src/testing.rs", "packets of tests and fuzz targets: segments of a buffer of their own"),
    ("switch/uplink/src/device_tests.rs", "its tests make the namespaces in which they run"),
    ("vhost/src/memory.rs", "guest memory: mapped, shared with a process that writes at any time"),
    ("vhost/src/ring.rs", "virtqueues in guest memory: volatile and atomic accesses"),
    ("vhost/src/claim.rs", "the claim of a ring gives out the one mutable reference"),
    ("vhost/src/sigbus.rs", "signal handler for memory files that shrink"),
    ("vhost/src/sys.rs", "system calls without a safe wrapper"),
    ("vhost/guest/src/memory.rs", "the guest's own memory, shared with the backend"),
    ("tests/bench/src/uplink/bare.rs", "bare loops: system calls for many frames, and what TAP devices want"),
    ("switch/uplink/src/bpf.rs", "a system call that reads a program"),
    ("switch/uplink/src/xdp_socket.rs", "AF_XDP: rings and frames shared with the kernel"),
    ("switch/uplink/src/direct.rs", "system calls that read frames where they lie"),
    ("switch/uplink/src/sys.rs", "io_uring and TAP system calls"),
];

/// Licences a dependency may be used under.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "BSL-1.0",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "WTFPL",
];

const CODE_LINES_MAX: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below `folder` that the repository holds (nothing under `target` or a hidden folder), relative to the root.
fn files(folder: &str, accept: impl Fn(&str) -> bool + Copy) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != "__pycache__" && (!name.starts_with('.') || name == ".ci") {
                    walk(&path, found);
                }
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    let mut found: Vec<PathBuf> =
        found.into_iter().map(|path| path.strip_prefix(root()).map_or_else(|_| path.clone(), Path::to_owned)).collect();
    found.retain(|path| accept(&path.to_string_lossy()));
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    let found = files("", |path| path.ends_with(".rs"));
    assert!(found.len() > 20, "the walk found the sources");
    found
}

fn fail_with(rule: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{rule}:\n  {}", problems.join("\n  "));
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A line of Rust without comments and without the contents of strings, so that words in them do not count as code.
/// `in_comment` and `in_string` say what the line begins in.
fn code_of(line: &str, in_comment: &mut bool, in_string: &mut bool) -> String {
    let chars: Vec<char> = line.chars().collect();
    let (mut code, mut i) = (String::new(), 0);
    while i < chars.len() {
        let rest = |text: &str| text.chars().enumerate().all(|(k, c)| chars.get(i + k) == Some(&c));
        if *in_comment {
            *in_comment = !rest("*/");
            i += if *in_comment { 1 } else { 2 };
        } else if *in_string {
            *in_string = chars[i] != '"';
            i += if chars[i] == '\\' { 2 } else { 1 };
        } else if rest("//") {
            break;
        } else if rest("/*") {
            *in_comment = true;
            i += 2;
        } else if rest("'\"'") || rest("b'\"'") {
            i += 3;
        } else {
            *in_string = chars[i] == '"';
            code.push(chars[i]);
            i += 1;
        }
    }
    code
}

fn code_lines(text: &str) -> Vec<String> {
    let (mut in_comment, mut in_string) = (false, false);
    text.lines().map(|line| code_of(line, &mut in_comment, &mut in_string)).collect()
}

/// The lines before the unit tests, which stand last in every file.
fn without_tests(lines: Vec<String>) -> Vec<String> {
    let tests = (0..lines.len()).find(|&i| {
        lines[i].trim() == "#[cfg(test)]" && lines.get(i + 1).is_some_and(|next| next.contains("mod tests"))
    });
    let end = tests.unwrap_or(lines.len());
    lines.into_iter().take(end).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

#[test]
fn crates_know_each_other_only_as_the_dependency_star_says() {
    let metadata = metadata(&["--no-deps"]);
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        seen.insert(name.to_owned());
        let Some((_, allowed)) = STAR.iter().find(|(known, _)| *known == name) else {
            problems.push(format!("package {name} is not in the star"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            let of_tests = dependency["kind"] == "dev";
            if other.starts_with("hostweave") && !of_tests && !allowed.contains(&other) {
                problems.push(format!("{name} must not know {other}"));
            }
        }
    }
    problems.extend(
        STAR.iter().filter(|(name, _)| !seen.contains(*name)).map(|(name, _)| format!("package {name} is missing")),
    );
    fail_with("the dependency star", &problems);
}

#[test]
fn dependencies_have_licences_that_may_be_combined_with_ours() {
    let metadata = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let expression = package["license"].as_str().unwrap_or("none");
        if !licence_allowed(expression) {
            problems.push(format!("{}: {expression}", package["name"]));
        }
        let source = package["source"].as_str().unwrap_or("registry+");
        if !source.starts_with("registry+") {
            problems.push(format!("{} does not come from the registry but from {source}", package["name"]));
        }
    }
    fail_with("licences", &problems);
}

/// SPDX expressions as crates write them: AND binds tighter than OR, `/` is an old way of writing OR.
fn licence_allowed(expression: &str) -> bool {
    let expression = expression.replace(" / ", " OR ").replace('/', " OR ");
    if let Some((inside, rest)) = expression.strip_prefix('(').and_then(|text| text.split_once(") AND ")) {
        return licence_allowed(inside) && licence_allowed(rest);
    }
    expression.split(" OR ").any(|choice| choice.split(" AND ").all(|part| LICENCES.contains(&part.trim())))
}

#[test]
fn unsafe_stands_only_in_its_places_and_says_why() {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for path in rust_files() {
        let name = path.to_string_lossy().into_owned();
        let text = read(&path);
        let (lines, code): (Vec<&str>, _) = (text.lines().collect(), code_lines(&text));
        let listed = UNSAFE_PLACES.iter().find(|(place, _)| *place == name);
        for (i, line) in code.iter().enumerate().filter(|(_, line)| has_word(line, "unsafe")) {
            if line.contains("unsafe_op_in_unsafe_fn") || line.contains("unsafe_code") {
                continue;
            }
            used.insert(name.clone());
            if listed.is_none() {
                problems.push(format!("{name}:{}: unsafe in a file that is not in UNSAFE_PLACES", i + 1));
                continue;
            }
            let block = line.contains("unsafe {") || line.trim_end().ends_with("unsafe") || has_word(line, "impl");
            let reasons = comment_before(&lines, &code, i);
            if block && !(reasons.contains("SAFETY:") && reasons.contains("JUSTIFICATION:")) {
                problems.push(format!("{name}:{}: no `SAFETY:` and `JUSTIFICATION:` above", i + 1));
            }
        }
        if listed.is_none() && name != "tests/tidy.rs" {
            let mentions = lines.iter().enumerate().filter(|(_, line)| line.contains("SAFETY:"));
            problems.extend(mentions.map(|(i, _)| format!("{name}:{}: `SAFETY:` without unsafe", i + 1)));
        }
    }
    let unused = UNSAFE_PLACES.iter().filter(|(place, _)| !used.contains(*place));
    problems.extend(unused.map(|(place, _)| format!("{place} is in UNSAFE_PLACES and has no unsafe")));
    fail_with("unsafe", &problems);
}

/// The comment on the line itself, and the nearest one above the statement that the line belongs to.
fn comment_before(lines: &[&str], code: &[String], at: usize) -> String {
    let mut text = lines[at].to_owned();
    let is_comment = |i: usize| code[i].trim().is_empty() && lines[i].trim_start().starts_with("//");
    // One comment may stand above two `unsafe impl` or above a statement of several lines.
    let above = (at.saturating_sub(8)..at).rev().take_while(|&i| !lines[i].trim().is_empty()).find(|&i| is_comment(i));
    let Some(mut i) = above else { return text };
    loop {
        text.push_str(lines[i]);
        if i == 0 || !is_comment(i - 1) {
            return text;
        }
        i -= 1;
    }
}

#[test]
fn files_open_with_what_they_are_and_stay_short() {
    let mut problems = Vec::new();
    for path in rust_files() {
        let text = read(&path);
        if !text.starts_with("//!") && !text.starts_with("#!") {
            problems.push(format!("{}: does not begin with `//!`", path.display()));
        }
        // Tests in a file of their own may be long: they are read case by case.
        if path.to_string_lossy().ends_with("_tests.rs") {
            continue;
        }
        let count = without_tests(code_lines(&text)).iter().filter(|line| !line.trim().is_empty()).count();
        if count > CODE_LINES_MAX {
            problems.push(format!("{}: {count} lines of code, at most {CODE_LINES_MAX}", path.display()));
        }
    }
    fail_with("files", &problems);
}

#[test]
fn nothing_is_left_undone_without_a_number() {
    let rust = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"];
    // Someone's own machine has no place here.
    let everywhere = ["/home/", concat!("/wo", "rk/"), "/Users/"];
    let mut problems = Vec::new();
    for path in
        files("", |path| [".rs", ".py", ".sh", ".md", ".toml", ".yaml", "/run"].iter().any(|end| path.ends_with(end)))
    {
        if path == Path::new("tests/tidy.rs") {
            continue;
        }
        for (i, line) in read(&path).lines().enumerate() {
            let place = format!("{}:{}", path.display(), i + 1);
            let marks = ["TODO", "FIXME", "XXX"].iter().filter(|mark| has_word(line, mark) && !line.contains("(#"));
            problems.extend(marks.map(|mark| format!("{place}: {mark} without an issue's number, as in {mark}(#12)")));
            let words =
                everywhere.iter().chain(rust.iter().filter(|_| path.extension().is_some_and(|end| end == "rs")));
            problems.extend(words.filter(|word| line.contains(**word)).map(|word| format!("{place}: {word}")));
        }
    }
    fail_with("words", &problems);
}

#[test]
fn architecture_draws_the_stages_in_their_order() {
    let drawn = STAGES.join(" ─ ");
    assert!(read("ARCHITECTURE.md").contains(&drawn), "ARCHITECTURE.md does not contain the line `{drawn}`");
    // …and the text explains each, in that order: "1. `rx` (…".
    let text = read("ARCHITECTURE.md");
    for (number, stage) in STAGES.iter().enumerate() {
        let item = format!("{}. `{stage}`", number + 1);
        assert!(text.contains(&item), "ARCHITECTURE.md has no item `{item}`");
    }
}

#[test]
fn the_table_of_drop_reasons_is_that_of_the_code() {
    let table = read("DROPS.md");
    let row = |reason: &DropReason| format!("| `{}` | {} |", reason.name(), reason.help().trim());
    let rows: Vec<String> = DropReason::ALL.iter().map(row).collect();
    let missing = rows.iter().filter(|row| !table.contains(*row)).map(|row| format!("missing: {row}"));
    let unknown = table.lines().filter(|line| line.starts_with("| `") && !rows.iter().any(|row| row == line));
    let problems: Vec<String> = missing.chain(unknown.map(|line| format!("unknown: {line}"))).collect();
    fail_with("the table of drop reasons in DROPS.md", &problems);
}

#[test]
fn every_example_configuration_loads() {
    let examples = files("configs", |path| path.ends_with(".yaml"));
    assert!(!examples.is_empty(), "configs/ holds examples");
    for example in examples {
        let output = hostweave(&["validate", "-f", &example.to_string_lossy()]);
        assert!(output.status.success(), "{}: {}", example.display(), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn readme_names_exactly_the_commands_that_exist() {
    let help = String::from_utf8(hostweave(&["--help"]).stdout).unwrap();
    let commands: BTreeSet<String> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| line.as_bytes().get(2).is_some_and(|c| *c != b' '))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert!(commands.len() > 10, "`hostweave --help` lists its commands:\n{help}");
    // A command in the README stands in a block or in backquotes: "hostweave NAME" there must exist. "hostweave is …" is prose.
    let readme = read("README.md");
    let (mut in_block, mut shown) = (false, String::new());
    for line in readme.lines() {
        in_block ^= line.starts_with("```");
        let quoted = line.split('`').skip(1).step_by(2).collect::<Vec<_>>().join("\n");
        shown.push_str(if in_block { line } else { &quoted });
        shown.push('\n');
    }
    let named: BTreeSet<&str> = shown
        .split("hostweave ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next())
        .filter(|word| !word.is_empty() && !word.starts_with('-'))
        .collect();
    let unknown = named.iter().filter(|word| !commands.contains(**word));
    let unnamed = commands.iter().filter(|name| *name != "help" && !named.contains(name.as_str()));
    let problems: Vec<String> = unknown
        .map(|word| format!("README.md shows `hostweave {word}`, which does not exist"))
        .chain(unnamed.map(|name| format!("README.md does not show `hostweave {name}`")))
        .collect();
    fail_with("commands", &problems);
}

#[test]
fn the_table_of_service_behaviours_names_tests_that_exist_and_all_of_its_suite() {
    let table = read("tests/netns/README.md");
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let named: BTreeSet<(&str, &str)> = quoted.filter_map(|text| text.split_once("::")).collect();
    assert!(named.len() > 20, "the table names its tests");
    let absent = named.iter().filter(|(suite, name)| !tests_of_suite(suite).contains(*name));
    let unnamed =
        tests_of_suite("kubernetes").into_iter().filter(|name| !named.contains(&("kubernetes", name.as_str())));
    let problems: Vec<String> = absent
        .map(|(suite, name)| format!("tests/netns/README.md names {suite}::{name}, which does not exist"))
        .chain(unnamed.map(|name| format!("tests/netns/README.md does not name kubernetes::{name}")))
        .collect();
    fail_with("the table of Service behaviours", &problems);
}

/// The tests of a suite with real kernels.
fn tests_of_suite(suite: &str) -> BTreeSet<String> {
    let text = read(format!("tests/netns/{suite}.py"));
    // The function that a decorator of one or two lines stands before.
    let decorated = text.split("\n@suite.test(").skip(1);
    let names = decorated.filter_map(|part| part.split("\ndef ").nth(1)?.split('(').next());
    names.map(str::to_owned).collect()
}

/// The tests that `cargo test` runs, by the names of their functions.
fn tests_of_cargo() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in rust_files() {
        let text = read(path);
        // Other attributes may stand between, on lines of their own.
        let functions = text.split("#[test]\n").skip(1).filter_map(|part| part.split("fn ").nth(1)?.split('(').next());
        found.extend(functions.map(str::to_owned));
    }
    found
}

/// Requirements of each RFC about NAT, numbered from one.
const REQUIREMENTS: &[(&str, u32)] = &[("4787", 14), ("5382", 10), ("5508", 11), ("6888", 15)];

#[test]
fn the_table_of_what_rfcs_require_of_a_nat_is_complete_and_names_tests_that_exist() {
    let table = read("nat/RFC.md");
    let known = tests_of_cargo();
    let (mut named, mut problems) = (BTreeSet::new(), Vec::new());
    for row in table.lines().filter(|line| line.starts_with("| ")).filter(|line| !line.starts_with("| Clause")) {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        if last.trim().is_empty() {
            problems.push(format!("neither a test nor a reason: {row}"));
        }
        for test in last.split('`').skip(1).step_by(2) {
            let exists = match test.split_once("::") {
                Some((suite, name)) => tests_of_suite(suite).contains(name),
                None => known.contains(test),
            };
            if !exists {
                problems.push(format!("{test} does not exist"));
            }
            named.insert(test.to_owned());
        }
    }
    for (rfc, count) in REQUIREMENTS {
        let part = table.split(&format!("\n## RFC {rfc}")).nth(1).and_then(|part| part.split("\n## ").next());
        let part = part.unwrap_or_default();
        let has = |number: u32| {
            let row = format!("| REQ-{number}");
            part.lines()
                .any(|line| line.strip_prefix(&row).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit())))
        };
        problems.extend(
            (1..=*count).filter(|number| !has(*number)).map(|number| format!("no row of RFC {rfc} REQ-{number}")),
        );
        let of_it = known.iter().filter(|test| test.starts_with(&format!("rfc{rfc}_")) && !named.contains(*test));
        problems.extend(of_it.map(|test| format!("{test} is not named")));
    }
    fail_with("nat/RFC.md", &problems);
}

fn hostweave(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_hostweave")).args(arguments).current_dir(root()).output().expect("hostweave runs")
}

#[test]
fn the_scanner_sees_code_and_not_words_in_comments_or_strings() {
    let source = "let a = \"unsafe {\"; // unsafe\n/* unsafe\n */ unsafe { b('\"', \"\\\"unsafe\") }\n";
    let code = code_lines(source);
    assert!(!has_word(&code[0], "unsafe") && !has_word(&code[1], "unsafe"));
    assert!(has_word(&code[2], "unsafe") && code[2].matches("unsafe").count() == 1);
    assert!(licence_allowed("(MIT OR GPL-3.0) AND Unicode-3.0") && licence_allowed("MIT/Apache-2.0"));
    assert!(!licence_allowed("GPL-3.0") && !licence_allowed("MIT AND GPL-3.0"));
}
