//! A bound on how much a guest or a front-end can make the daemon log (Linux: `printk_ratelimited`).
//!
//! What can be provoked is logged through one of these: a few lines in a while, and then how many more there would have
//! been.

use std::fmt::Arguments;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A few lines in a while.
#[derive(Debug, Default)]
pub struct Ratelimit(Mutex<Option<Window>>);

#[derive(Debug, Clone, Copy)]
struct Window {
    start: Instant,
    lines: u32,
}

impl Ratelimit {
    /// How many lines there may be in a while.
    pub const BURST: u32 = 10;
    /// How long a while is.
    pub const INTERVAL: Duration = Duration::from_secs(60);

    /// Logs a line, unless there were too many of late.
    pub fn log(&self, level: log::Level, line: Arguments<'_>) {
        match self.pass(Instant::now()) {
            None => {}
            Some(0) => log::log!(level, "{line}"),
            Some(missed) => log::log!(level, "{line} (after {missed} lines that were left out)"),
        }
    }

    /// Whether a line may be logged now, and how many were left out before it.
    fn pass(&self, now: Instant) -> Option<u32> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = window.get_or_insert(Window { start: now, lines: 0 });
        let mut missed = 0;
        if now.duration_since(current.start) >= Self::INTERVAL {
            missed = current.lines.saturating_sub(Self::BURST);
            *current = Window { start: now, lines: 0 };
        }
        current.lines = current.lines.saturating_add(1);
        (current.lines <= Self::BURST).then_some(missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_in_a_while_and_then_a_number() {
        let (limit, start) = (Ratelimit::default(), Instant::now());
        for line in 0..1000 {
            let passed = limit.pass(start + Duration::from_millis(line));
            assert_eq!(passed, (line < 10).then_some(0), "line {line}");
        }
        assert_eq!(limit.pass(start + Ratelimit::INTERVAL), Some(990));
        assert_eq!(limit.pass(start + Ratelimit::INTERVAL), Some(0));
    }
}
