//! The client: libblkio's core, the same for every backend, over a socket or on the bare file with its io_uring.
//!
//! Each queue of a disk has a thread; the queues of many disks share one, which polls them in turn. Data is real: what
//! the last requests have read is compared with what the file has there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blkio::{Blkio, Blkioq};

use super::lane::{Buffers, Lane, PATIENCE};
use super::pattern::Pattern;
use super::statistics::Latencies;
use super::workload::{Op, Waiting, Workload};

/// How long a backend may take until it can be connected to.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How often that is tried.
const CONNECT_INTERVAL: Duration = Duration::from_micros(200);

/// What the client drives.
pub(super) enum Target<'a> {
    /// A backend, by a socket for each disk.
    Sockets(&'a [PathBuf]),
    /// The file itself.
    File { path: &'a Path, direct: bool },
}

/// A client that is connected and idle.
pub(super) struct Client {
    // Before what made them.
    lanes: Vec<Lane>,
    _disks: Vec<Blkio>,
    threads: usize,
}

impl Client {
    /// Connects to all disks, `bytes` long. `check` fails when there is no use in waiting any longer.
    pub(super) fn connect(
        target: &Target<'_>,
        workload: &Workload,
        bytes: u64,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let (mut lanes, mut disks) = (Vec::new(), Vec::new());
        match target {
            Target::File { path, direct } => {
                ensure!(workload.waiting == Waiting::Sleeping, "the bare file needs no polling");
                let mut disk = Blkio::new("io_uring")?;
                set_up(&mut disk, path, workload)?;
                disk.set_bool("direct", *direct)?;
                disk.connect().with_context(|| path.display().to_string())?;
                disk.set_i32("num-entries", i32::from(workload.depth.next_power_of_two()))?;
                lanes.extend(start(&mut disk, workload, bytes, 0, false)?);
                disks.push(disk);
            }
            Target::Sockets(sockets) => {
                for (index, socket) in sockets.iter().enumerate() {
                    let mut disk = connect(socket, workload, &mut check)?;
                    disk.set_i32("queue-size", workload.ring_size().into())?;
                    let found = disk.get_u64("capacity")?;
                    ensure!(found == bytes, "the disk has {found} bytes, not {bytes}");
                    lanes.extend(start(&mut disk, workload, bytes, index, true)?);
                    disks.push(disk);
                }
            }
        }
        ensure!(
            lanes.len() == 1 || workload.disks == 1 || workload.waiting == Waiting::Polling,
            "a thread can sleep on one queue only"
        );
        Ok(Self { lanes, _disks: disks, threads: workload.queues.into() })
    }

    /// Keeps all queues full for a while, then waits for what is in flight. Returns how long that took.
    pub(super) fn run(&mut self, time: Duration, latencies: &mut Latencies) -> Result<Duration> {
        let start = Instant::now();
        let end = start + time;
        if self.threads == 1 {
            drive(&mut self.lanes, end, latencies)?;
        } else {
            let share = self.lanes.len() / self.threads;
            let found: Vec<_> = std::thread::scope(|scope| {
                let threads = self.lanes.chunks_mut(share).map(|lanes| {
                    let mut latencies = Latencies::new();
                    scope.spawn(move || drive(lanes, end, &mut latencies).map(|()| latencies))
                });
                let threads: Vec<_> = threads.collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("no thread of the client panics"))
                    .collect()
            });
            for of_thread in found {
                latencies.add(&of_thread?);
            }
        }
        let last = self.lanes.iter().map(Lane::last).max().unwrap_or(start);
        Ok(last - start)
    }

    /// Does one request on each queue.
    pub(super) fn touch(&mut self) -> Result<()> {
        self.run(Duration::ZERO, &mut Latencies::new()).map(|_| ())
    }

    /// Checks what the last requests have read; says how many that were.
    pub(super) fn verify(&self) -> Result<usize> {
        self.lanes.iter().map(Lane::verify).sum()
    }
}

/// Keeps lanes full until `end`, then waits until they are empty.
fn drive(lanes: &mut [Lane], end: Instant, latencies: &mut Latencies) -> Result<()> {
    for lane in lanes.iter_mut() {
        lane.fill();
    }
    // One queue can be waited for, several are looked at in turn.
    let least = usize::from(lanes.len() == 1);
    let mut progress = Instant::now();
    while lanes.iter().any(|lane| !lane.is_empty()) {
        let mut completed = 0;
        for lane in lanes.iter_mut().filter(|lane| !lane.is_empty()) {
            completed += lane.turn(least, end, latencies)?;
        }
        if completed > 0 {
            progress = Instant::now();
        } else if progress.elapsed() > PATIENCE {
            bail!("no completion on any of {} queues", lanes.len());
        }
    }
    Ok(())
}

/// Connects to a backend as soon as it listens.
fn connect(socket: &Path, workload: &Workload, check: &mut impl FnMut() -> Result<()>) -> Result<Blkio> {
    let deadline = Instant::now() + CONNECT_TIME_MAX;
    loop {
        let mut disk = Blkio::new("virtio-blk-vhost-user")?;
        set_up(&mut disk, socket, workload)?;
        match disk.connect() {
            Ok(()) => return Ok(disk),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot connect to {}", socket.display()));
            }
            Err(_) => check()?,
        }
        std::thread::sleep(CONNECT_INTERVAL);
    }
}

fn set_up(disk: &mut Blkio, path: &Path, workload: &Workload) -> Result<()> {
    disk.set_str("path", path.to_str().context("a path is no text")?)?;
    disk.set_bool("read-only", workload.op == Op::Read)?;
    Ok(())
}

/// Starts a disk's queues and gives each its memory.
fn start(
    disk: &mut Blkio,
    workload: &Workload,
    bytes: u64,
    index: usize,
    limited: bool,
) -> Result<Vec<Lane>> {
    let count = i32::from(workload.queues);
    let polling = workload.waiting == Waiting::Polling;
    disk.set_i32("num-queues", if polling { 0 } else { count })?;
    disk.set_i32("num-poll-queues", if polling { count } else { 0 })?;
    let started = disk.start()?;
    let region = disk.alloc_mem_region(usize::from(workload.queues) * Buffers::bytes(workload)?)?;
    disk.map_mem_region(&region)?;
    let queues: Vec<Blkioq> = if polling { started.poll_queues } else { started.queues };
    let lane = |(number, queue)| {
        let seed = u64::try_from(index * usize::from(workload.queues) + number)?;
        let buffers = Buffers::new(workload, &region, number)?;
        Ok(Lane::new(queue, buffers, Pattern::new(workload, bytes, seed), workload, limited))
    };
    queues.into_iter().enumerate().map(lane).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::media::fill;
    use super::super::workload::{Medium, Order};
    use super::*;

    const BYTES: u64 = 1 << 20;

    fn file(content: impl FnOnce(&mut std::fs::File)) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        content(file.as_file_mut());
        file
    }

    fn client(file: &tempfile::NamedTempFile, workload: &Workload) -> Client {
        let target = Target::File { path: file.path(), direct: false };
        Client::connect(&target, workload, BYTES, || Ok(())).unwrap()
    }

    #[test]
    fn what_is_read_is_counted_timed_and_verified() {
        let file = file(|file| fill(file, BYTES).unwrap());
        for workload in [
            Workload::new(Medium::Cached, Op::Read, 8),
            Workload { shift: 16, ..Workload::new(Medium::Cached, Op::Mixed, 4) },
            Workload { order: Order::Sequential, block: 65536, ..Workload::new(Medium::Cached, Op::Read, 2) },
        ] {
            let mut client = client(&file, &workload);
            let mut latencies = Latencies::new();
            let elapsed = client.run(Duration::from_millis(20), &mut latencies).unwrap();
            assert!(elapsed >= Duration::from_millis(20), "{workload}: {elapsed:?}");
            assert!(latencies.count() >= u64::from(workload.depth), "{workload}: {}", latencies.count());
            let verified = client.verify().unwrap();
            assert!(verified <= usize::from(workload.depth), "{workload}: {verified}");
            assert!(workload.op == Op::Mixed || verified > 0, "{workload}: {verified}");
        }
    }

    #[test]
    fn wrong_data_is_found() {
        let file = file(|file| file.write_all(&vec![1; 1 << 20]).unwrap());
        let mut client = client(&file, &Workload::new(Medium::Cached, Op::Read, 4));
        client.touch().unwrap();
        let error = client.verify().unwrap_err().to_string();
        assert!(error.contains("0x101010101010101"), "{error}");
    }

    #[test]
    fn a_request_that_fails_is_an_error() {
        let file = file(|file| file.set_len(4096).unwrap());
        let target = Target::File { path: file.path(), direct: false };
        // Half of the positions are none that a file can have.
        let workload = Workload::new(Medium::Cached, Op::Read, 16);
        let mut client = Client::connect(&target, &workload, u64::MAX, || Ok(())).unwrap();
        let error = client.run(Duration::from_millis(20), &mut Latencies::new()).unwrap_err().to_string();
        assert!(error.contains("failed: Invalid argument"), "{error}");
    }
}
