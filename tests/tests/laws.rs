//! The project checks itself: the law of layers, where unsafe code may be, and how files read.
//!
//! Each rule is one test and names the file and line that breaks it. The rules are those of STYLE.md and
//! ARCHITECTURE.md that a machine can check and that no lint of the compiler checks.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

/// The crates from left to right: each uses only those to its left.
const LAYERS: [&str; 4] = ["mem", "blk", "backend", "launcher"];
/// The crate that may use all and that nothing uses.
const TESTS: &str = "tests";
/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "common", "base", "helper", "manager"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn manifest(path: &Path) -> Table {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files below a directory that end in `.ext`, without what was built.
fn files(dir: &Path, ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() && name != "target" && !name.starts_with('.') {
            found.extend(files(&path, ext));
        } else if path.extension().is_some_and(|e| e == ext) {
            found.push(path);
        }
    }
    found
}

/// Path below the root and text of every Rust file of the project, those of the guests too.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let all = files(&root, "rs").into_iter().map(|path| {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(path).unwrap())
    });
    let all: Vec<_> = all.collect();
    assert!(all.len() > 50, "only {} files found: is this the repository?", all.len());
    all
}

fn assert_none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The crates of this workspace that a manifest names, in any of its tables of dependencies.
fn dependencies(manifest: &Table) -> Vec<String> {
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(|t| t.as_table()) {
        tables.extend(targets.values().filter_map(|t| t.as_table()));
    }
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let names = tables.iter().flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()));
    let names = names.flat_map(|table| table.keys());
    names.filter_map(|name| name.strip_prefix("sluice-")).map(str::to_owned).collect()
}

#[test]
fn a_crate_uses_only_crates_to_its_left() {
    let root = root();
    let mut broken = Vec::new();
    for (place, layer) in LAYERS.iter().enumerate() {
        for used in dependencies(&manifest(&root.join(layer).join("Cargo.toml"))) {
            if !LAYERS[..place].contains(&used.as_str()) {
                broken.push(format!("{layer} uses {used}"));
            }
        }
    }
    assert_none(&broken, "mem <- blk <- backend <- launcher; nothing uses tests");
}

#[test]
fn the_workspace_is_the_law_and_the_tests() {
    let workspace = manifest(&root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let members: Vec<_> = members.iter().map(|member| member.as_str().unwrap()).collect();
    let expected: Vec<_> = LAYERS.into_iter().chain([TESTS]).collect();
    assert_eq!(members, expected, "a new crate gets its place in the law");
    for member in members {
        let package = manifest(&root().join(member).join("Cargo.toml"));
        let name = package["package"]["name"].as_str().unwrap();
        assert_eq!(name, format!("sluice-{member}"));
        let lints = &package["lints"]["workspace"];
        assert_eq!(lints.as_bool(), Some(true), "{member} takes the lints of the workspace");
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    let without =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//!") || text.starts_with("//!\n"));
    let broken: Vec<_> = without.map(|(name, _)| name).collect();
    assert_none(&broken, "a file opens with `//!` and one sentence on what it is");
}

/// Whether a file declares at its head that it has unsafe code, and why.
fn is_opened(text: &str) -> bool {
    let packed: String = text.split_whitespace().collect();
    packed.contains("#![expect(unsafe_code,reason=")
}

/// The code of a line: without comments, and without what is between quotes.
fn code_of(line: &str) -> String {
    let line = line.split("//").next().unwrap_or_default();
    line.split('"').step_by(2).collect()
}

fn uses_unsafe(code: &str) -> bool {
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"]
        .iter()
        .any(|form| code.contains(form))
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

/// In `mem` unsafe code is at home; elsewhere a module, or one item, is opened for it with the reason.
#[test]
fn unsafe_code_is_in_mem_or_in_what_was_opened_for_it() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        if name.starts_with("mem/") || name.starts_with("guests/") || is_opened(&text) {
            continue;
        }
        // The indentation of the item that is opened, until it ends.
        let mut opened = None;
        for (number, line) in text.lines().enumerate() {
            let indentation = line.len() - line.trim_start().len();
            if line.trim_start().starts_with("#[expect(unsafe_code, reason") {
                opened = Some(indentation);
            }
            if uses_unsafe(&code_of(line)) && opened.is_none() {
                broken.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
            if opened == Some(indentation) && line.trim_start().starts_with('}') {
                opened = None;
            }
        }
    }
    assert_none(&broken, "unsafe code needs `expect(unsafe_code, reason = ...)` on its module or its item");
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut broken = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| !name.starts_with("guests/")) {
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = code_of(line);
            let opens = code.contains("unsafe {") || code.contains("unsafe impl");
            let above = &lines[number.saturating_sub(12)..number];
            if opens && !above.iter().any(|line| line.contains("// SAFETY:") || line.contains("# Safety")) {
                broken.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none(&broken, "an unsafe block has a `// SAFETY:` above it");
}

#[test]
fn no_queue_thread_makes_itself_a_permission_to_wait() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let on_the_path = name.starts_with("blk/src/") || name.starts_with("backend/src/");
        let is_test = name.contains("/tests");
        if on_the_path && !is_test && text.contains("MayWait::on_control_thread") {
            broken.push(name);
        }
    }
    assert_none(&broken, "code that runs on queue threads makes no `MayWait`");
}

#[test]
fn no_name_is_empty() {
    let mut broken = Vec::new();
    for (name, text) in sources() {
        let stem = Path::new(&name).with_extension("");
        if stem.components().any(|part| EMPTY_NAMES.contains(&part.as_os_str().to_string_lossy().as_ref())) {
            broken.push(name.clone());
        }
        for (number, line) in text.lines().enumerate() {
            let code = code_of(line);
            let mut words =
                code.split_whitespace().skip_while(|word| !["struct", "enum", "trait"].contains(word));
            let Some(named) = words.nth(1) else { continue };
            let named = named.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_lowercase();
            if EMPTY_NAMES.iter().any(|empty| named.ends_with(empty)) {
                broken.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none(&broken, "a name says what is inside");
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let start = lines.iter().position(|line| *line == "[workspace.dependencies]").unwrap();
    let table = lines[start + 1..].iter().take_while(|line| !line.starts_with('['));
    let mut broken = Vec::new();
    for (i, line) in table.enumerate().filter(|(_, line)| line.contains('=')) {
        let ours = line.starts_with("sluice-");
        let above = lines[start + i];
        if !ours && line.starts_with(|c: char| c.is_alphabetic()) && !above.starts_with("# ") {
            broken.push((*line).to_owned());
        }
    }
    assert_none(&broken, "a dependency has a comment above it that says what it is for");
}

#[test]
fn nothing_is_left_to_do() {
    // In pieces, so that this file does not break its own rule.
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let macros = [["to", "do!"].concat(), ["unimpl", "emented!"].concat()];
    let mut broken = Vec::new();
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let marked = marks.iter().any(|mark| has_word(line, mark));
            if marked || macros.iter().any(|name| code_of(line).contains(name.as_str())) {
                broken.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none(&broken, "what is to be done is done, or tracked elsewhere");
}

#[test]
fn a_lint_that_is_relaxed_says_why() {
    let mut broken = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| !name.starts_with("guests/")) {
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let opens = ["#[allow(", "#[expect(", "#![allow(", "#![expect("];
            if opens.iter().any(|open| line.trim_start().starts_with(open)) {
                let rest = &text[at..];
                let attribute = &rest[..rest.find(")]").unwrap_or(rest.len())];
                if !attribute.contains("reason") {
                    broken.push(format!("{name}: {}", line.trim()));
                }
            }
            at += line.len();
        }
    }
    assert_none(&broken, "an `allow` or `expect` has a `reason`");
}
