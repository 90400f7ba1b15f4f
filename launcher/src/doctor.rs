//! `sluice doctor`: what this host offers, and whether the sandbox keeps what it promises here.
//!
//! Whether something is refused is found out by trying it: each [`attempt`] in a process of its own, confined as the daemon
//! is and by the same code, as most of them do not survive it. Then a daemon in its sandbox serves a disk ([`service`]): a
//! sandbox that refuses everything would pass the first part. What the [`host`] offers is told, and not judged.
//!
//! Exit code 0: everything was refused that has to be, and the disk was served.

use std::fmt::Display;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::sandbox::Mode;

mod attempt;
mod host;
mod service;

use attempt::{Attempt, Expected};

/// The exit code when something was not refused, or not served.
const FAILED: u8 = 1;

/// Look at what this host offers, and try out the sandbox
///
/// Tries, each in a confined process of its own, what the daemon must not be able to do, and says how it was refused; then
/// serves a disk from the sandbox. Exit code 0: all was refused, and the disk served.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Whether there is to be a sandbox, on or none: without one nothing is refused, and that has to show [default: on]
    #[arg(long, value_name = "on|none", value_parser = Mode::from_str)]
    sandbox: Option<Mode>,

    /// What a confined process is to try (for this program itself)
    #[arg(long, value_name = "NAME", hide = true)]
    attempt: Option<String>,
}

/// Examines, prints a table, and returns the exit code.
pub(crate) fn run(arguments: &DoctorArgs) -> Result<u8> {
    let mode = arguments.sandbox.unwrap_or(Mode::On);
    if let Some(name) = &arguments.attempt {
        return attempt::run(name, mode);
    }
    println!("This host");
    for (what, found) in host::findings().into_iter().chain([("landlock", landlock(mode)?)]) {
        println!("  {what:<44} {found}");
    }
    println!("\nIn the sandbox, each in a process of its own");
    let mut failed = 0;
    for attempt in Attempt::all() {
        let (verdict, how) = examine(attempt, mode)?;
        failed += u32::from(verdict.is_bad());
        row(&attempt.what, verdict.word(), &how);
    }
    println!("\nA daemon in the sandbox");
    match service::serve(mode) {
        Ok(how) => row("serve a disk", "works", &how),
        Err(error) => {
            failed += 1;
            row("serve a disk", "FAILS", &format!("{error:#}"));
        }
    }
    match failed {
        0 => println!("\nAll is refused that has to be, and the disk is served."),
        failed => println!("\n{failed} of these are not as they should be."),
    }
    Ok(if failed == 0 { 0 } else { FAILED })
}

fn row(what: &str, verdict: &str, how: &dyn Display) {
    println!("  {what:<44} {verdict:<12} {how}");
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Refused,
    Works,
    NotRefused,
    Fails,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Works => "works",
            Self::NotRefused => "NOT REFUSED",
            Self::Fails => "FAILS",
        }
    }

    fn is_bad(self) -> bool {
        matches!(self, Self::NotRefused | Self::Fails)
    }
}

/// Has a process try it.
fn examine(attempt: &Attempt, mode: Mode) -> Result<(Verdict, String)> {
    let Output { status, stdout, stderr } = confined(&attempt.what, mode)?;
    let (words, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Ok(judge(attempt.expected, status, &words, &errors))
}

/// What a process that is confined says of landlock.
fn landlock(mode: Mode) -> Result<String> {
    let output = confined(attempt::LANDLOCK, mode)?;
    let words = String::from_utf8_lossy(&output.stdout);
    let found =
        words.strip_prefix(attempt::CONFINED).map(|found| found.trim().trim_start_matches("landlock "));
    Ok(found.map_or_else(|| "cannot tell".to_owned(), str::to_owned))
}

/// A process that is confined as a daemon is, tries something, and has ended.
fn confined(what: &str, mode: Mode) -> Result<Output> {
    let place = tempfile::tempdir().context("cannot make a temporary directory")?;
    Command::new("/proc/self/exe")
        .args(["doctor", &format!("--sandbox={mode}"), "--attempt", what])
        .env("TMPDIR", place.path())
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LOG", "off")
        .stdin(Stdio::null())
        .output()
        .context("cannot start this program once more")
}

/// What the end of a process and its words mean.
fn judge(expected: Expected, status: ExitStatus, words: &str, errors: &str) -> (Verdict, String) {
    // Words before that are those of a process that was not confined.
    let Some((_, answer)) = words.split_once(attempt::CONFINED) else {
        let last = errors.lines().last().unwrap_or("it said nothing");
        return (Verdict::Fails, format!("no confined process: {last} ({status})"));
    };
    let answer = answer.trim().to_owned();
    let killed = status.signal() == Some(Signal::SYS.as_raw());
    match (expected, status.code()) {
        (Expected::Refused, _) if killed => (Verdict::Refused, "killed (SIGSYS)".into()),
        (Expected::Refused, Some(code)) if code == i32::from(attempt::REFUSED) => (Verdict::Refused, answer),
        (Expected::Refused, _) => {
            (Verdict::NotRefused, if answer.is_empty() { status.to_string() } else { answer })
        }
        (Expected::Works(how), Some(0)) if errors.contains(how) => (Verdict::Works, answer),
        (Expected::Works(_), _) => (Verdict::Fails, status.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(expected: Expected, status: i32, words: &str) -> Verdict {
        judge(expected, ExitStatus::from_raw(status), words, "panicked").0
    }

    #[test]
    fn only_what_was_tried_in_a_confined_process_was_refused() {
        const CONFINED: &str = "confined: EACCES";
        let exit = |code: u8| i32::from(code) << 8;
        assert_eq!(verdict(Expected::Refused, Signal::SYS.as_raw(), CONFINED), Verdict::Refused);
        assert_eq!(verdict(Expected::Refused, exit(attempt::REFUSED), CONFINED), Verdict::Refused);
        assert_eq!(verdict(Expected::Refused, exit(attempt::REFUSED), ""), Verdict::Fails);
        assert_eq!(verdict(Expected::Refused, Signal::SYS.as_raw(), ""), Verdict::Fails);
        assert_eq!(verdict(Expected::Refused, Signal::SEGV.as_raw(), CONFINED), Verdict::NotRefused);
        assert_eq!(verdict(Expected::Refused, exit(0), CONFINED), Verdict::NotRefused);
        assert_eq!(verdict(Expected::Works("panicked"), exit(0), CONFINED), Verdict::Works);
        assert_eq!(verdict(Expected::Works("other"), exit(0), CONFINED), Verdict::Fails);
        assert_eq!(verdict(Expected::Works("panicked"), Signal::SYS.as_raw(), CONFINED), Verdict::Fails);
    }
}
