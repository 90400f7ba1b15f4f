//! What becomes of requests when the disk fails: each fault, for each kind of request, once, always and the third time. The
//! table of docs/faults.md.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use sluice_mem::anon::AnonMem;

use super::bench::range;
use super::*;
use crate::doubles::guest_ram::GuestRam;
use crate::engine::fault::{Fault, FaultEngine, Faults, Kind, When};
use crate::engine::ram::RamEngine;

/// How long each request is, and how far they are apart.
const LEN: usize = 8192;
const STEP: u64 = 64 << 10;
/// How many requests there are of a kind.
const COUNT: usize = 5;
/// Enough turns for everything that comes back by itself.
const TURNS: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(30);

const WHENS: [When; 3] = [When::Once, When::Always, When::Nth(3)];

const FAULTS: [Fault; 14] = [
    Fault::Error(Errno::IO),
    Fault::Error(Errno::NOSPC),
    Fault::Error(Errno::DQUOT),
    Fault::Error(Errno::AGAIN),
    Fault::Error(Errno::INTR),
    Fault::Error(Errno::FAULT),
    Fault::Error(Errno::OPNOTSUPP),
    Fault::Error(Errno::INVAL),
    Fault::Error(Errno::BUSY),
    Fault::Short,
    Fault::Nothing,
    Fault::Hang,
    Fault::Slow(7),
    Fault::Late(7),
];

/// A disk in memory with faults, a queue, and a guest's memory: a page-aligned buffer for each request.
struct Rig {
    queue: RequestQueue,
    faults: Faults,
    ram: GuestRam,
    now: Instant,
}

impl Rig {
    fn new(change: impl FnOnce(&mut QueueConfig)) -> Self {
        let mut config = QueueConfig::new(16, QueueLimits::default());
        change(&mut config);
        let memory = Arc::new(AnonMem::new(16 << 20).expect("address space"));
        let faults = Faults::default();
        let engine = RamEngine::new(memory, RequestQueue::tags(config.depth));
        let engine = FaultEngine::new(Box::new(engine), &faults);
        let queue = RequestQueue::new(config, Box::new(engine)).expect("address space");
        let now = queue.now;
        let mut rig = Self { queue, faults, ram: GuestRam::new(1, 256), now };
        // What is there before: something else than zeroes everywhere.
        for index in 0..COUNT {
            rig.fill(index, 0xb0);
            assert_eq!(rig.run(Kind::Write, index), Some(Status::Ok));
        }
        rig
    }

    fn with_deadline() -> Self {
        Self::new(|config| {
            config.limits.detached = true;
            config.io_timeout = Some(IoTimeout { after: TIMEOUT, fence: Arc::default() });
        })
    }

    fn fill(&self, index: usize, byte: u8) {
        self.ram.write(index as u64 * STEP, &[byte; LEN]);
    }

    /// Submits the request of this index. Its cookie is the index.
    fn submit(&mut self, kind: Kind, index: usize) {
        let op = match kind {
            Kind::Read => Op::Read,
            Kind::Write => Op::Write { fua: false },
            Kind::Sync => Op::Flush,
            Kind::Discard => Op::Discard { fua: false },
            Kind::Zero => Op::WriteZeroes { unmap: false, fua: false },
        };
        let at = index as u64 * STEP;
        let range = if kind == Kind::Sync { DiskRange::none() } else { range(at, LEN as u64) };
        let mut chain = BioChain::new();
        let bio = chain.push(self.queue.bios().try_take(op, range).expect("a bio is free"));
        if matches!(kind, Kind::Read | Kind::Write) {
            bio.sg = self.ram.list([(at, LEN)]);
        }
        self.queue.submit(chain, u32::try_from(index).expect("small")).expect("not full");
    }

    /// What has been answered after some turns.
    fn turns(&mut self) -> Vec<Completed> {
        let mut done = Vec::new();
        for _ in 0..TURNS {
            self.queue.advance(self.now);
            self.queue.dispatch();
            self.queue.reap(|completed| done.push(completed));
        }
        done
    }

    /// The answer to a request, if there is one.
    fn run(&mut self, kind: Kind, index: usize) -> Option<Status> {
        self.submit(kind, index);
        match self.turns()[..] {
            [] => None,
            [Completed { status, .. }] => Some(status),
            ref more => panic!("one was submitted: {more:?}"),
        }
    }

    /// What is on the disk where the request of this index goes.
    fn content(&mut self, index: usize) -> Vec<u8> {
        self.fill(index, 0xff);
        assert_eq!(self.run(Kind::Read, index), Some(Status::Ok), "a disk without faults is read");
        self.ram.read(index as u64 * STEP, LEN)
    }

    fn check_nothing_is_lost(&mut self) {
        assert!(self.queue.stopped.is_empty());
        check_nothing_is_held(&self.queue);
    }
}

fn hits(when: When, index: usize) -> bool {
    match when {
        When::Once => index == 0,
        When::Always => true,
        When::Nth(nth) => index + 1 == nth as usize,
    }
}

/// What a guest is told of the request of an index: the table. `None`: nothing, until the disk comes to itself.
fn expected(fault: Fault, kind: Kind, when: When, index: usize) -> Option<Status> {
    let hit = hits(when, index);
    let moves = matches!(kind, Kind::Read | Kind::Write);
    match fault {
        // Tried again, though not for ever.
        Fault::Error(Errno::AGAIN | Errno::INTR) if when != When::Always => Some(Status::Ok),
        // A failure to sync is never forgotten: what was not written then may be lost.
        Fault::Error(Errno::AGAIN | Errno::INTR) => Some(Status::IoErr),
        Fault::Error(_) if kind == Kind::Sync && (0..=index).any(|index| hits(when, index)) => {
            Some(Status::IoErr)
        }
        // Discards are advisory, and zeroes can be written.
        Fault::Error(Errno::OPNOTSUPP | Errno::INVAL | Errno::BUSY)
            if matches!(kind, Kind::Discard | Kind::Zero) =>
        {
            Some(Status::Ok)
        }
        Fault::Error(_) if hit => Some(Status::IoErr),
        Fault::Nothing if hit && moves => Some(Status::IoErr),
        Fault::Hang if hit => None,
        _ => Some(Status::Ok),
    }
}

#[test]
fn each_fault_has_its_answer() {
    for fault in FAULTS {
        for kind in Kind::ALL {
            for when in WHENS {
                check(fault, kind, when);
            }
        }
    }
}

fn check(fault: Fault, kind: Kind, when: When) {
    let mut rig = Rig::new(|_| ());
    rig.faults.add(kind, fault, when);
    let what = format!("{fault:?} of {kind:?}, {when:?}");
    let mut statuses = Vec::new();
    for index in 0..COUNT {
        rig.fill(index, 0xe0);
        let status = rig.run(kind, index);
        assert_eq!(status, expected(fault, kind, when, index), "{what}: request {index}");
        if kind == Kind::Read && status == Some(Status::Ok) {
            assert_eq!(rig.ram.read(index as u64 * STEP, LEN), [0xb0; LEN], "{what}: data of {index}");
        }
        statuses.push(status);
    }
    rig.faults.release();
    let late = rig.turns();
    // What the disk does not know it is not asked for again; of what it cannot do to one range only that is left out.
    let is_left_out = |index: usize| match fault {
        Fault::Error(Errno::OPNOTSUPP) => kind == Kind::Discard && (0..=index).any(|index| hits(when, index)),
        Fault::Error(Errno::INVAL | Errno::BUSY) => kind == Kind::Discard && hits(when, index),
        _ => false,
    };
    assert_eq!(late.len(), statuses.iter().filter(|status| status.is_none()).count(), "{what}: after that");
    assert!(late.iter().all(|completed| completed.status == Status::Ok), "{what}: what hung is done");
    for (index, status) in statuses.into_iter().enumerate() {
        let byte = match (kind, status) {
            (Kind::Write, Some(Status::Ok) | None) => 0xe0,
            (Kind::Discard | Kind::Zero, Some(Status::Ok) | None) if !is_left_out(index) => 0,
            _ => 0xb0,
        };
        assert_eq!(rig.content(index), vec![byte; LEN], "{what}: the disk at {index}");
    }
    rig.check_nothing_is_lost();
}

#[test]
fn what_needs_space_waits_until_there_is() {
    for error in [Errno::NOSPC, Errno::DQUOT] {
        for kind in [Kind::Write, Kind::Discard, Kind::Zero] {
            let mut rig = Rig::new(|config| config.on_enospc = OnEnospc::Stop);
            rig.faults.add(kind, Fault::Error(error), When::Always);
            rig.fill(0, 0xe0);
            assert_eq!(rig.run(kind, 0), None, "{kind:?} waits");
            assert_eq!(rig.run(kind, 1), None, "and another one");
            assert_eq!(rig.run(Kind::Read, 2), Some(Status::Ok), "what needs none does not");
            for second in 1..4 {
                rig.now = rig.queue.wake_at().expect("it is tried again");
                assert!(rig.turns().is_empty(), "there is none");
                assert_eq!(rig.queue.stats().stopped.value(), 2 + 2 * second, "but it is tried");
            }
            rig.faults.release();
            assert!(rig.turns().is_empty(), "it is not tried all the time");
            rig.now = rig.queue.wake_at().expect("it is tried again");
            rig.queue.advance(rig.now);
            assert!(rig.queue.has_parked(), "there is something to dispatch");
            assert_eq!(rig.turns().len(), 2);
            assert_eq!(rig.content(0), vec![if kind == Kind::Write { 0xe0 } else { 0 }; LEN]);
            rig.now = rig.queue.wake_at().expect("and then it is told");
            rig.turns();
            assert_eq!(rig.queue.wake_at(), None, "that all is well");
            rig.check_nothing_is_lost();
        }
    }
}

#[test]
fn what_waits_for_space_can_be_failed() {
    let mut rig = Rig::new(|config| config.on_enospc = OnEnospc::Stop);
    rig.faults.add(Kind::Write, Fault::Error(Errno::NOSPC), When::Always);
    assert_eq!(rig.run(Kind::Write, 0), None);
    rig.queue.fail_stopped();
    assert_eq!(rig.turns()[0].status, Status::IoErr);
    rig.check_nothing_is_lost();
}

#[test]
fn reads_do_not_wait_for_space() {
    let mut rig = Rig::new(|config| config.on_enospc = OnEnospc::Stop);
    for kind in [Kind::Read, Kind::Sync] {
        rig.faults.add(kind, Fault::Error(Errno::NOSPC), When::Once);
        assert_eq!(rig.run(kind, 0), Some(Status::IoErr), "{kind:?}");
    }
}

#[test]
fn what_takes_too_long_fails_and_fences_the_disk_until_it_has_landed() {
    for kind in Kind::ALL {
        let mut rig = Rig::with_deadline();
        rig.faults.add(kind, Fault::Hang, When::Once);
        rig.fill(0, 0xe0);
        assert_eq!(rig.run(kind, 0), None, "{kind:?} hangs");
        assert_eq!(rig.run(Kind::Read, 1), Some(Status::Ok), "others do not");
        rig.now += TIMEOUT - Duration::from_secs(1);
        assert!(rig.turns().is_empty(), "there is time");
        rig.now += TIMEOUT;
        assert_eq!(rig.turns().len(), 1, "{kind:?} is failed");
        assert!(rig.queue.is_answered() && !rig.queue.is_idle());
        for other in Kind::ALL {
            assert_eq!(rig.run(other, 1), Some(Status::IoErr), "{other:?} while the disk hangs");
        }
        rig.faults.release();
        rig.fill(0, 0xaa);
        assert!(rig.turns().is_empty(), "it is answered already");
        assert_eq!(rig.ram.read(0, LEN), [0xaa; LEN], "the guest has its memory back");
        rig.check_nothing_is_lost();
        let expected = match kind {
            Kind::Write => 0xe0,
            Kind::Discard | Kind::Zero => 0,
            Kind::Read | Kind::Sync => 0xb0,
        };
        assert_eq!(
            rig.content(0),
            vec![expected; LEN],
            "it was done, late, with what was to be written then"
        );
        for other in Kind::ALL {
            assert_eq!(rig.run(other, 1), Some(Status::Ok), "{other:?} afterwards");
        }
    }
}

#[test]
fn a_fence_is_for_all_queues_of_the_disk() {
    let fence: Arc<Fence> = Arc::default();
    let rigs = [(); 2].map(|()| {
        Rig::new(|config| {
            config.limits.detached = true;
            config.io_timeout = Some(IoTimeout { after: TIMEOUT, fence: Arc::clone(&fence) });
        })
    });
    let [mut hung, mut other] = rigs;
    hung.faults.add(Kind::Write, Fault::Hang, When::Once);
    assert_eq!(hung.run(Kind::Write, 0), None);
    hung.now += TIMEOUT;
    assert_eq!(hung.turns().len(), 1);
    assert_eq!(other.run(Kind::Write, 0), Some(Status::IoErr));
    drop(hung);
    assert_eq!(other.run(Kind::Write, 0), Some(Status::Ok), "when it is gone, so is what it had in flight");
}

#[test]
fn what_is_parked_behind_a_disk_that_hangs_fails_with_it() {
    let mut rig = Rig::new(|config| {
        config.limits.detached = true;
        config.limits.max_bytes = 512;
        config.io_timeout = Some(IoTimeout { after: TIMEOUT, fence: Arc::default() });
    });
    // More pieces than there are tags.
    rig.faults.add(Kind::Write, Fault::Hang, When::Always);
    for index in 0..COUNT {
        rig.submit(Kind::Write, index);
    }
    assert!(rig.turns().is_empty());
    rig.now += TIMEOUT;
    assert_eq!(rig.turns().len(), COUNT);
    rig.faults.release();
    assert!(rig.turns().is_empty());
    rig.check_nothing_is_lost();
}

#[test]
fn a_disk_that_has_time_has_no_deadline() {
    let mut rig = Rig::new(|_| ());
    rig.faults.add(Kind::Read, Fault::Hang, When::Once);
    assert_eq!(rig.run(Kind::Read, 0), None);
    rig.now += Duration::from_secs(1_000_000);
    assert!(rig.turns().is_empty());
    assert_eq!(rig.queue.wake_at(), None);
}
