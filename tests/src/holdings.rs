//! What a process holds, as /proc tells (proc(5)): to see that it gives back what it took for a connection.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

/// How long a process may take to give things back after its peer has left.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts of what a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// File descriptors.
    pub fds: usize,
    /// Threads, without those that the kernel makes for an io_uring, which come and go.
    pub threads: usize,
    /// Mappings of files and of memory that is shared; the allocator's own come and go.
    pub mappings: usize,
}

impl Holdings {
    /// What the process holds now.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn of(pid: u32) -> Self {
        let count = |what: &str| {
            let dir = fs::read_dir(format!("/proc/{pid}/{what}"));
            dir.unwrap_or_else(|e| panic!("process {pid}: {what}: {e}")).count()
        };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a process has mappings");
        // Address, permissions, offset, device, inode, path: a mapping of nothing has inode 0.
        let of_files = |line: &&str| line.split_whitespace().nth(4).is_some_and(|inode| inode != "0");
        Holdings {
            fds: count("fd"),
            threads: threads_of(pid),
            mappings: maps.lines().filter(of_files).count(),
        }
    }

    /// What the process holds when that has not changed for a while.
    ///
    /// # Panics
    /// If it goes on to change.
    pub fn settled_of(pid: u32) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut same) = (Self::of(pid), 0);
        while same < 10 {
            assert!(Instant::now() < deadline, "process {pid} goes on to take and give back");
            std::thread::sleep(Duration::from_millis(10));
            let now = Self::of(pid);
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    /// Waits until the process holds just this, as it gives back what it has in its own time.
    ///
    /// # Panics
    /// If it does not.
    pub fn await_of(self, pid: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Holdings::of(pid);
            if now == self {
                return;
            }
            assert!(Instant::now() < deadline, "process {pid} holds {now}, and held {self} before");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} fds, {} threads, {} mappings of files", self.fds, self.threads, self.mappings)
    }
}

fn threads_of(pid: u32) -> usize {
    let dir = fs::read_dir(format!("/proc/{pid}/task")).expect("a process has threads");
    let names = dir.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| !name.starts_with("iou-")).count()
}

/// The memory of its own that a process has resident, in KiB.
///
/// # Panics
/// If there is no such process.
pub fn resident_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process has memory");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no line Anonymous in {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fd_and_a_thread_are_seen() {
        let me = std::process::id();
        // Other tests of this process come and go: more fds than before is all that can be said.
        let files: Vec<_> = (0..200).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let with = Holdings::of(me);
        assert!(with.fds >= 200 && with.threads >= 1 && with.mappings > 0, "{with}");
        assert!(resident_kib(me) > 0);
        drop(files);
    }
}
