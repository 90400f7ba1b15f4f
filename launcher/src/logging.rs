//! Where log lines go and what they look like: standard error, filtered by `RUST_LOG` (env_logger's syntax).
//!
//! For the journal (the standard error is the stream that JOURNAL_STREAM names, systemd.exec(5)) a line is led by its
//! priority in angle brackets (sd-daemon(3)), and has no time, which the journal knows. Else by time and level.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use env_logger::{Builder, Env};
use log::Level;

/// Starts logging, at `default` where `RUST_LOG` says nothing.
pub(crate) fn start(default: &str) {
    let mut builder = Builder::from_env(Env::default().default_filter_or(default));
    if stderr_is_the_journal() {
        builder.format(|out, record| writeln!(out, "<{}>{}", priority(record.level()), record.args()));
    } else {
        builder.format(|out, record| {
            writeln!(out, "{} {:5} {}", out.timestamp_millis(), record.level(), record.args())
        });
    }
    builder.init();
}

/// syslog(3)'s number for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    // A file's metadata through /proc: fstat on the descriptor, whatever it is.
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|metadata| names_stream(&stream, metadata.dev(), metadata.ino()))
}

fn names_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream == format!("{device}:{inode}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(names_stream("9:1234", 9, 1234));
        assert!(!names_stream("9:1234", 9, 123));
        assert!(!names_stream("", 9, 1234));
    }

    #[test]
    fn levels_have_the_priorities_of_syslog() {
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        assert_eq!(levels.map(priority), [3, 4, 6, 7, 7]);
    }
}
