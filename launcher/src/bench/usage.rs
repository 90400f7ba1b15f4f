//! What a process used, as /proc tells: processor time, context switches, memory.
//!
//! Processor time is utime + stime of the whole process, threads that have ended and kernel workers included, in ticks
//! of usually 10 ms. Context switches are those of each thread, whether it had to wait or was made to; a thread that
//! came and went within the interval is not seen. Memory is what is resident without what is shared with others: the
//! guest's memory belongs to the guest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// What a process has used since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    ticks: u64,
    /// Context switches by thread.
    switches: BTreeMap<u32, u64>,
}

/// What a process has used in an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) cpu: Duration,
    pub(super) switches: u64,
}

impl Usage {
    /// What the process has used until now.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let stat = fs::read_to_string(process.join("stat"))?;
        let ticks = ticks(&stat).ok_or_else(|| not_understood("stat", &stat))?;
        let mut by_thread = BTreeMap::new();
        for entry in fs::read_dir(process.join("task"))? {
            let entry = entry?;
            let thread = entry.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
            // A thread can end while this looks at it: then its switches are lost, as those of any that ended.
            if let Ok(status) = fs::read_to_string(entry.path().join("status")) {
                by_thread.insert(thread, switches(&status));
            }
        }
        Ok(Self { ticks, switches: by_thread })
    }

    /// What was used between an earlier look and this one.
    pub(super) fn since(&self, before: &Self) -> Spent {
        let earlier = |thread: &u32| before.switches.get(thread).copied().unwrap_or(0);
        let switches = self.switches.iter().map(|(thread, count)| count.saturating_sub(earlier(thread)));
        let seconds =
            self.ticks.saturating_sub(before.ticks) as f64 / rustix::param::clock_ticks_per_second() as f64;
        Spent { cpu: Duration::from_secs_f64(seconds), switches: switches.sum() }
    }
}

/// The resident memory of a process in bytes, without what it shares with others through files in memory.
pub(super) fn own_memory(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    // Huge pages are in none of the other lines.
    let own = ["RssAnon", "RssFile", "HugetlbPages"].iter().filter_map(|name| kib(&status, name));
    Ok(own.sum::<u64>() << 10)
}

/// utime + stime: fields 14 and 15; the name in field 2 can contain anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let mut field = || fields.next()?.parse::<u64>().ok();
    Some(field()? + field()?)
}

fn switches(status: &str) -> u64 {
    let names = ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"];
    names.iter().filter_map(|name| number(status, name)).sum()
}

fn kib(status: &str, name: &str) -> Option<u64> {
    number(status, name)
}

/// The number that stands behind a name.
fn number(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn not_understood(what: &str, text: &str) -> io::Error {
    io::Error::other(format!("cannot understand {what} of a process: {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_hides_nothing() {
        let stat = "4 (a) b) R 1 4 4 0 -1 4194304 90 0 0 0 7 11 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(18));
        assert_eq!(ticks("4 (a R 1"), None);
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t30\nnonvoluntary_ctxt_switches:\t4\n";
        assert_eq!(switches(status), 34);
        assert_eq!(number("VmRSS:\t  512 kB\nRssShmem:\t 8 kB\n", "VmRSS"), Some(512));
    }

    #[test]
    fn what_was_used_before_does_not_count_and_threads_may_come_and_go() {
        let usage =
            |ticks, switches: &[(u32, u64)]| Usage { ticks, switches: switches.iter().copied().collect() };
        let before = usage(100, &[(1, 10), (2, 500)]);
        let after = usage(150, &[(1, 12), (3, 5)]);
        let hertz = rustix::param::clock_ticks_per_second() as f64;
        let expected = Spent { cpu: Duration::from_secs_f64(50.0 / hertz), switches: 7 };
        assert_eq!(after.since(&before), expected);
    }

    #[test]
    fn a_busy_process_uses_processor_time_and_memory() {
        let pid = std::process::id();
        let before = Usage::of(pid).unwrap();
        let start = Instant::now();
        while Usage::of(pid).unwrap().since(&before).cpu < Duration::from_millis(30) {
            assert!(start.elapsed() < Duration::from_secs(20), "no processor time is counted");
        }
        assert!(own_memory(pid).unwrap() > 1 << 16);
    }
}
