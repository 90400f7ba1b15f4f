//! A VM that has ended, and how to tell a person about it.

use std::process::ExitStatus;

/// How many of its last lines are shown of each text.
const LINES_SHOWN: usize = 40;

/// What is left of a VM.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How QEMU ended.
    pub status: ExitStatus,
    /// The first serial port.
    pub console: String,
    /// The second serial port.
    pub results: String,
    /// QEMU's messages.
    pub errors: String,
    /// What QEMU was started with.
    pub command: String,
}

impl Ended {
    /// Fails the test, with everything that a person needs.
    ///
    /// # Panics
    /// Always.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        panic!(
            "{why}\nQEMU: {status}\n{errors}{results}{console}--- started with (SLUICE_KEEP=1 keeps its files)\n{command}",
            status = self.status,
            errors = last_lines("QEMU's messages", &self.errors),
            results = last_lines("results", &self.results),
            console = last_lines("console", &self.console),
            command = self.command,
        )
    }
}

fn last_lines(title: &str, text: &str) -> String {
    if text.trim().is_empty() {
        return format!("--- {title}: nothing\n");
    }
    let lines: Vec<_> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    let left_out = lines.len() - shown.len();
    format!("--- {title} ({left_out} lines before this)\n{}\n", shown.join("\n"))
}
