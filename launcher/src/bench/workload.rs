//! What is asked of a disk: medium, kind of request, depth, how the client waits.
//!
//! A workload has a name that says all that matters (`cached-read-d32`), by which it is chosen on the command line and
//! found in the JSON.

use std::fmt;

/// Where the data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Medium {
    /// A file on a file system with blocks, all of it in the page cache.
    Cached,
    /// A file on tmpfs.
    Tmpfs,
    /// A file on a file system with blocks, by direct I/O.
    Disk,
    /// A block device with blocks of 4096 bytes, by direct I/O, that is served with blocks of 512.
    Disk4k,
    /// Nowhere: reads and writes succeed without doing anything.
    Null,
    /// Memory of the backend.
    Ram,
}

/// What requests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Read,
    Write,
    /// 70 reads to 30 writes.
    Mixed,
}

/// Where requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Random,
    Sequential,
}

/// How the client waits for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// In poll(2), for the completion's eventfd.
    Sleeping,
    /// In a loop; there is no call fd at all.
    Polling,
}

/// One way of using a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) medium: Medium,
    pub(super) op: Op,
    pub(super) order: Order,
    /// Bytes of a request.
    pub(super) block: u32,
    /// Requests in flight on each queue.
    pub(super) depth: u16,
    pub(super) waiting: Waiting,
    /// Queues of each disk; each has a thread of the client.
    pub(super) queues: u16,
    /// Disks in the one backend, all driven by one thread.
    pub(super) disks: u16,
    /// How many bytes past a page every buffer begins.
    pub(super) shift: u16,
}

impl Medium {
    /// Whether the page cache is bypassed.
    pub(super) fn is_direct(self) -> bool {
        matches!(self, Self::Disk | Self::Disk4k)
    }
}

impl Workload {
    /// Random requests of 4 KiB from aligned buffers on one queue of one disk, by a client that sleeps.
    pub(super) const fn new(medium: Medium, op: Op, depth: u16) -> Self {
        Self {
            medium,
            op,
            order: Order::Random,
            block: 4096,
            depth,
            waiting: Waiting::Sleeping,
            queues: 1,
            disks: 1,
            shift: 0,
        }
    }

    /// The same, with a client that polls.
    pub(super) const fn polling(self) -> Self {
        Self { waiting: Waiting::Polling, ..self }
    }

    /// The elements that a ring needs for it: at least 256, as many as a front-end asks for. Each request of the
    /// client takes three, because it makes no indirect ones.
    pub(super) fn ring_size(&self) -> u16 {
        (3 * self.depth).next_power_of_two().max(256)
    }

    /// Whether what is read can be told by the stamps on the disk.
    pub(super) fn reads_stamps(&self) -> bool {
        self.op != Op::Write && self.medium != Medium::Null
    }

    /// Whether it leaves much behind that has yet to get to a disk.
    pub(super) fn is_written_to_cache(&self) -> bool {
        self.op != Op::Read && self.medium == Medium::Cached
    }

    /// What it is, for people.
    pub(super) fn words(&self) -> String {
        let order = match self.order {
            Order::Random => "random",
            Order::Sequential => "sequential",
        };
        let mut words =
            format!("{}, {order} {}, {}, depth {}", self.medium, self.op, size_words(self.block), self.depth);
        for (said, text) in [
            (self.shift > 0, format!("buffers misaligned by {}", self.shift)),
            (self.queues > 1, format!("{} queues", self.queues)),
            (self.disks > 1, format!("{} disks", self.disks)),
            (self.waiting == Waiting::Polling, "polling client".into()),
        ] {
            if said {
                words = format!("{words}, {text}");
            }
        }
        words
    }
}

/// The name.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.medium)?;
        if self.order == Order::Sequential {
            f.write_str("seq")?;
        }
        write!(f, "{}", self.op)?;
        if self.block != 4096 {
            write!(f, "-{}", size_words(self.block).replace(' ', ""))?;
        }
        write!(f, "-d{}", self.depth)?;
        for (said, text, number) in [
            (self.shift > 0, "shift", self.shift),
            (self.queues > 1, "queues", self.queues),
            (self.disks > 1, "disks", self.disks),
        ] {
            if said {
                write!(f, "-{text}{number}")?;
            }
        }
        f.write_str(if self.waiting == Waiting::Polling { "-polling" } else { "" })
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cached => "cached",
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
            Self::Disk4k => "disk4k",
            Self::Null => "null",
            Self::Ram => "ram",
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed => "mixed",
        })
    }
}

fn size_words(bytes: u32) -> String {
    if bytes.is_multiple_of(1024) { format!("{} KiB", bytes / 1024) } else { format!("{bytes} B") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_not_usual() {
        let usual = Workload::new(Medium::Cached, Op::Read, 32);
        assert_eq!(usual.to_string(), "cached-read-d32");
        let polling = Workload::new(Medium::Null, Op::Read, 128).polling();
        assert_eq!(polling.to_string(), "null-read-d128-polling");
        let sequential = Workload { order: Order::Sequential, block: 128 << 10, depth: 8, ..usual };
        assert_eq!(sequential.to_string(), "cached-seqread-128KiB-d8");
        assert_eq!(sequential.words(), "cached, sequential read, 128 KiB, depth 8");
        let odd = Workload { shift: 16, queues: 2, disks: 64, block: 512, ..usual };
        assert_eq!(odd.to_string(), "cached-read-512B-d32-shift16-queues2-disks64");
    }

    #[test]
    fn a_ring_holds_all_requests_in_flight() {
        for (depth, size) in [(1, 256), (64, 256), (85, 256), (86, 512), (128, 512), (256, 1024)] {
            assert_eq!(Workload::new(Medium::Disk, Op::Read, depth).ring_size(), size);
        }
    }
}
