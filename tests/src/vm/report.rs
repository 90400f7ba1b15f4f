//! What the guests report, read strictly: a report that is not what its contract says fails the test.

use std::collections::BTreeMap;

use super::Ended;

/// QEMU's status after the bare guest has written "passed" to isa-debug-exit.
const BARE_PASSED: i32 = 33;
/// QEMU's status after the Linux guest has written exit code 0 there.
const LINUX_PASSED: i32 = 1;

/// The report of the bare-metal guest: the names of its checks.
#[derive(Debug)]
pub struct BareReport {
    /// Those that passed.
    pub passed: Vec<String>,
    /// Those that the disk gave no occasion for, with the reason.
    pub skipped: Vec<String>,
    ended: Ended,
}

impl BareReport {
    /// The report of a guest whose checks all passed.
    ///
    /// # Panics
    /// If one failed, or the guest or QEMU did.
    #[track_caller]
    pub fn passed(ended: Ended) -> Self {
        let with = |prefix| -> Vec<String> {
            ended.console.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
        };
        let (passed, skipped, failed) = (with("ok "), with("skip "), with("FAIL "));
        let last = format!("done: {} ok, 0 failed, {} skipped", passed.len(), skipped.len());
        let ended_well = ended.status.code() == Some(BARE_PASSED);
        if !failed.is_empty() || ended.console.lines().last() != Some(&last) || !ended_well {
            ended.fail("the bare guest failed");
        }
        check_errors(&ended);
        BareReport { passed, skipped, ended }
    }

    /// Requires that a check was made, and not skipped.
    ///
    /// # Panics
    /// If it was not.
    #[track_caller]
    pub fn assert_made(&self, check: &str) {
        if !self.passed.iter().any(|name| name == check) {
            self.ended.fail(&format!("the check {check} was not made"));
        }
    }

    /// Requires that every check was made.
    ///
    /// # Panics
    /// If one was skipped.
    #[track_caller]
    pub fn assert_nothing_skipped(&self) {
        if !self.skipped.is_empty() {
            self.ended.fail(&format!("skipped: {:?}", self.skipped));
        }
    }
}

/// The report of the Linux guest.
#[derive(Debug)]
pub struct LinuxReport {
    values: BTreeMap<String, String>,
    ended: Ended,
}

impl LinuxReport {
    /// The report of a guest whose checks all passed. Of one that was reset, the last.
    ///
    /// # Panics
    /// If one failed, or the guest or QEMU did.
    #[track_caller]
    pub fn passed(ended: Ended) -> Self {
        const FIRST_LINE: &str = "sluice-guest=1\n";
        let Some((_, report)) = ended.results.rsplit_once(FIRST_LINE) else {
            ended.fail("the Linux guest reported nothing");
        };
        let values = values_of(report);
        let failed = values.iter().any(|(key, value)| key.starts_with("check.") && value != "ok");
        let ended_well = ended.status.code() == Some(LINUX_PASSED);
        if failed || report.lines().last() != Some("exit=0") || !ended_well {
            ended.fail("the Linux guest failed");
        }
        check_errors(&ended);
        LinuxReport { values, ended }
    }

    /// A result.
    ///
    /// # Panics
    /// If there is none of that name.
    #[track_caller]
    pub fn value(&self, key: &str) -> &str {
        match self.values.get(key) {
            Some(value) => value,
            None => self.ended.fail(&format!("no result {key}")),
        }
    }

    /// A result that is a number.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        let value = self.value(key);
        value.parse().unwrap_or_else(|_| self.ended.fail(&format!("{key} is no number: {value}")))
    }

    /// Requires a result.
    ///
    /// # Panics
    /// If it is another.
    #[track_caller]
    pub fn assert_value(&self, key: &str, expected: &str) {
        let value = self.value(key);
        if value != expected {
            self.ended.fail(&format!("{key} is {value:?} and not {expected:?}"));
        }
    }

    /// Requires that a check was made. That it passed is known.
    ///
    /// # Panics
    /// If it was not.
    #[track_caller]
    pub fn assert_made(&self, check: &str) {
        self.value(&format!("check.{check}"));
    }
}

/// The `KEY=VALUE` lines; texts of several lines are left out. The last of several with the same key counts, but a check
/// that failed once has failed.
fn values_of(report: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::<String, String>::new();
    let mut text: Option<String> = None;
    for line in report.lines() {
        if let Some(end) = &text {
            if line == end {
                text = None;
            }
        } else if let Some(name) = line.strip_prefix("@begin ") {
            text = Some(format!("@end {name}"));
        } else if let Some((key, value)) = line.split_once('=') {
            let failed = values.get(key).is_some_and(|value| value.starts_with("failed"));
            if !failed {
                values.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    values
}

/// QEMU has nothing to complain about in a good run, neither about its command line nor about the back-end.
#[track_caller]
fn check_errors(ended: &Ended) {
    if !ended.errors.trim().is_empty() {
        ended.fail("QEMU complains");
    }
}
