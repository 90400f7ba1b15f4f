//! `sluice doctor`: each promise of the sandbox, tried on the machine that runs the tests; and that the doctor sees when one
//! is broken.

use std::collections::BTreeMap;

use crate::fixture::{output_of, sluice};

/// What has to be refused, and how: killed, or answered with an error.
const KILLED: &str = "killed (SIGSYS)";
const REFUSALS: [(&str, &str); 23] = [
    ("open a file: openat(/etc/passwd)", "EACCES"),
    ("make a directory: mkdirat", KILLED),
    ("remove a file that is not beside a socket", "EACCES"),
    ("change a file's mode: chmod", KILLED),
    ("look for a file: access", KILLED),
    ("start a program: execve(/bin/true)", KILLED),
    ("make a process: clone", KILLED),
    ("make a thread: clone3", KILLED),
    ("make a socket: socket(AF_INET)", KILLED),
    ("make a socket: socket(AF_UNIX)", KILLED),
    ("trace a process: ptrace", KILLED),
    ("signal a process: kill(parent)", KILLED),
    ("mount a file system: mount", KILLED),
    ("become root: setuid", KILLED),
    ("change a limit: prlimit64", KILLED),
    ("change the root directory: chroot", KILLED),
    ("make an io_uring: io_uring_setup", KILLED),
    ("io_uring: open a file", "EACCES"),
    ("io_uring: make a socket", "EACCES"),
    ("io_uring: connect a socket", "EACCES"),
    ("io_uring: chain operations", "EACCES"),
    ("io_uring: register memory", KILLED),
    ("io_uring: register files", KILLED),
];

/// The lines of the table that have a verdict: what it is about, the verdict, and how.
fn table(words: &str) -> BTreeMap<String, (String, String)> {
    let verdicts = [" refused ", " works ", " NOT REFUSED ", " FAILS "];
    let row = |line: &str| {
        let verdict = verdicts.iter().find(|verdict| line.contains(*verdict))?;
        let (what, how) = line.split_once(verdict)?;
        Some((what.trim().to_owned(), (verdict.trim().to_owned(), how.trim().to_owned())))
    };
    words.lines().filter(|line| line.starts_with("  ")).filter_map(row).collect()
}

#[test]
fn the_doctor_finds_everything_refused_in_the_sandbox_and_a_disk_served() {
    let (code, words, errors) = output_of(sluice().arg("doctor"));
    let mut table = table(&words);
    for (what, how) in REFUSALS {
        assert_eq!(table.remove(what), Some(("refused".to_owned(), how.to_owned())), "{what}: {words}");
    }
    for what in ["panic, and say where", "serve a disk"] {
        let (verdict, _) = table.remove(what).unwrap_or_else(|| panic!("{what}: {words}"));
        assert_eq!(verdict, "works", "{what}: {words}\n{errors}");
    }
    assert!(table.is_empty(), "nothing that this test does not know: {table:?}");
    assert_eq!(code, Some(0), "{words}\n{errors}");
    for fact in [
        "kernel",
        "io_uring",
        "landlock",
        "seccomp",
        "direct I/O",
        "huge pages",
        "open files",
        "locked memory",
    ] {
        assert!(words.lines().any(|line| line.trim_start().starts_with(fact)), "{fact}: {words}");
    }
}

#[test]
fn without_the_sandbox_the_doctor_finds_that_nothing_is_refused_but_by_the_rings() {
    let (code, words, errors) = output_of(sluice().args(["doctor", "--sandbox=none"]));
    assert_eq!(code, Some(1), "{words}\n{errors}");
    let table = table(&words);
    for (what, _) in REFUSALS {
        let expected = if what.starts_with("io_uring: ") { "refused" } else { "NOT REFUSED" };
        // Who is not root may not become root.
        let verdict = table.get(what).map(|(verdict, _)| verdict.as_str());
        assert!(verdict == Some(expected) || what.ends_with("setuid"), "{what}: {words}");
    }
    assert_eq!(table["serve a disk"].0, "works", "{words}\n{errors}");
}
