//! What a region says, and what it cannot say; and a ring that dies at any of its stores.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sluice_mem::crash;
use sluice_mem::sigbus::Alarm;

use super::*;
use crate::doubles::disk::TestDisk;
use crate::doubles::guest_ram::GuestRam;
use crate::vring::{RingSetup, SetupError, Vring};

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const RAM: std::ops::Range<u64> = 0x1000..0x10000;
const SIZE: u16 = 4;
/// Where the second queue's region is: each has room for the longest ring.
const AT: u64 = 16 + 16 * 1024 + 48;
const INFO: InflightInfo = InflightInfo { size: 0, offset: 0, num_queues: 2, queue_size: SIZE };

/// A guest's ring of four descriptors, and the region of its second queue.
struct Bench {
    ram: GuestRam,
    file: File,
    setup: InflightSetup,
}

impl Bench {
    fn new() -> Self {
        let device = TestDisk::new(8).device(2);
        let (info, file) = InflightMem::make(INFO, &device).expect("a good size");
        let alarm = Alarm::new().expect("an fd is free");
        let memory = InflightMem::open(info, file.try_clone().expect("an fd is free"), &device, &alarm);
        let setup = memory.expect("it was just made").queue(1).expect("there are two");
        Self { ram: GuestRam::new(&[RAM]), file, setup }
    }

    /// A guest that has made nothing available, and a region that nobody has used.
    fn reset(&self) {
        self.ram.write(AVAIL, &[0; 64]);
        self.ram.write(USED, &[0; 64]);
        self.file.write_all_at(&[0; 128], AT).expect("it is as long");
    }

    fn start(&self, next_avail: u16) -> Result<Vring, SetupError> {
        let ring = RingSetup {
            size: SIZE,
            desc: DESC,
            avail: AVAIL,
            used: USED,
            next_avail,
            ..RingSetup::default()
        };
        Vring::start(&ring, &self.ram.pin(), Some(&self.setup))
    }

    /// A ring that goes on where a front-end says that knows nothing but the used ring, as QEMU does.
    fn resume(&self) -> Vring {
        self.start(self.ram.read_u16(USED + 2)).expect("a good ring")
    }

    /// Makes heads available, from index `at` on.
    fn offer(&self, at: u16, heads: &[u16]) {
        for (index, head) in (at..).zip(heads) {
            self.ram.write(AVAIL + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
            self.ram.write(AVAIL + 2, &(index + 1).to_le_bytes());
        }
    }

    /// What the driver has been shown: heads in the order in which they were given back.
    fn shown(&self) -> Vec<u16> {
        let count = self.ram.read_u16(USED + 2);
        assert!(count <= SIZE, "{count} used elements of {SIZE}");
        (0..count).map(|index| self.ram.read_u16(USED + 4 + 8 * u64::from(index))).collect()
    }

    fn region(&self) -> Vec<u8> {
        let mut bytes = vec![0; 16 + 16 * usize::from(SIZE)];
        self.file.read_exact_at(&mut bytes, AT).expect("it is as long");
        bytes
    }

    fn poke(&self, offset: usize, value: u16) {
        self.file.write_all_at(&value.to_le_bytes(), AT + offset as u64).expect("it is as long");
    }
}

fn drain(ring: &mut Vring) -> Vec<u16> {
    std::iter::from_fn(|| ring.take_head().expect("an honest driver")).collect()
}

#[test]
fn what_was_taken_and_not_given_back_is_taken_again_in_order() {
    let bench = Bench::new();
    bench.offer(0, &[3, 0, 2, 1]);
    let mut ring = bench.start(0).expect("a good ring");
    assert_eq!(drain(&mut ring), [3, 0, 2, 1]);
    ring.put_used(0, 1);
    ring.publish();
    ring.put_used(2, 1);
    drop(ring);
    let mut ring = bench.resume();
    assert_eq!(ring.available(), 3);
    assert_eq!(drain(&mut ring), [3, 2, 1], "2 was put, and the driver was not shown");
    assert_eq!(ring.next_avail(), 4);
    for head in [1, 2, 3] {
        ring.put_used(head, 1);
    }
    ring.publish();
    assert_eq!(bench.shown(), [0, 1, 2, 3]);
    bench.offer(4, &[2]);
    assert_eq!(drain(&mut ring), [2]);
    assert_eq!(drain(&mut bench.resume()), [2]);
}

#[test]
fn the_layout_is_that_of_the_specification() {
    let bench = Bench::new();
    bench.offer(0, &[1, 3]);
    let mut ring = bench.start(0).expect("a good ring");
    assert_eq!(drain(&mut ring), [1, 3]);
    ring.put_used(3, 1);
    ring.publish();
    ring.put_used(1, 1);
    let mut expected = vec![0; 80];
    expected[8..16].copy_from_slice(&[1, 0, 4, 0, 1, 0, 1, 0]);
    // Head 1: in flight, next is 3, counter 0. Head 3: given back, next is 0, counter 1.
    expected[32..48].copy_from_slice(&[1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    expected[64..80].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.region(), expected);
}

#[test]
fn a_fresh_region_begins_where_the_ring_is() {
    let bench = Bench::new();
    bench.ram.write(AVAIL + 2, &1000_u16.to_le_bytes());
    bench.ram.write(USED + 2, &1000_u16.to_le_bytes());
    bench.poke(at(2) + INFLIGHT, 1);
    let mut ring = bench.start(1000).expect("a good ring");
    assert_eq!(drain(&mut ring), [0; 0]);
    assert_eq!(ring.next_avail(), 1000);
    drop(ring);
    assert_eq!(bench.resume().next_avail(), 1000, "and is known by then");
}

#[test]
fn a_region_that_cannot_be_is_refused_and_not_touched() {
    let ok = |bench: &Bench| {
        bench.reset();
        bench.offer(0, &[0, 1, 2]);
        let mut ring = bench.start(0).expect("a good ring");
        assert_eq!(drain(&mut ring), [0, 1, 2]);
        ring.put_used(0, 1);
        ring.put_used(1, 1);
        // As if it had died when the driver was shown both.
        bench.ram.write(USED + 2, &2_u16.to_le_bytes());
    };
    type Bad = (fn(&Bench), InflightFault);
    let cases: [Bad; 8] = [
        (|bench| bench.poke(VERSION, 2), InflightFault::Version(2)),
        (|bench| bench.poke(DESC_NUM, 8), InflightFault::Heads { heads: 8, size: 4 }),
        (|bench| bench.poke(DESC_NUM, 2), InflightFault::Heads { heads: 2, size: 4 }),
        (|bench| bench.poke(LAST_BATCH_HEAD, 4), InflightFault::Batch { count: 2, head: 4 }),
        (|bench| bench.poke(at(1) + NEXT, 0xffff), InflightFault::Batch { count: 2, head: 0xffff }),
        (|bench| bench.poke(at(1) + NEXT, 1), InflightFault::Batch { count: 2, head: 1 }),
        (|bench| bench.poke(USED_IDX, 3), InflightFault::Batch { count: 0xffff, head: 1 }),
        (
            |bench| {
                bench.poke(at(3) + INFLIGHT, 1);
                bench.poke(at(3) + COUNTER, 2);
            },
            InflightFault::Counter(2),
        ),
    ];
    let bench = Bench::new();
    for (spoil, fault) in cases {
        ok(&bench);
        spoil(&bench);
        let before = bench.region();
        assert_eq!(bench.resume_error(), SetupError::Inflight(fault));
        assert_eq!(bench.region(), before, "{fault}");
    }
    ok(&bench);
    assert_eq!(drain(&mut bench.resume()), [2]);
}

impl Bench {
    fn resume_error(&self) -> SetupError {
        self.start(self.ram.read_u16(USED + 2)).map(|_| ()).expect_err("it cannot be")
    }
}

#[test]
fn memory_that_a_front_end_gives_back_is_checked() {
    let device = TestDisk::new(8).device(2);
    let alarm = Alarm::new().expect("an fd is free");
    let (info, file) = InflightMem::make(INFO, &device).expect("a good size");
    assert_eq!((info.size, info.offset), (2 * AT, 0));
    let open = |info| InflightMem::open(info, file.try_clone().expect("an fd is free"), &device, &alarm);
    assert!(open(info).is_ok());
    let size = |num_queues, queue_size| InflightInfo { num_queues, queue_size, ..info };
    for bad in [size(3, 4), size(0, 4), size(2, 0), size(2, 1025), size(65535, 65535)] {
        assert!(matches!(open(bad), Err(InflightError::Size { .. })), "{bad:?}");
        assert!(matches!(InflightMem::make(bad, &device), Err(InflightError::Size { .. })), "{bad:?}");
    }
    let short = InflightInfo { size: 255, ..info };
    assert!(matches!(open(short), Err(InflightError::TooSmall { need: 256, .. })));
    let least = open(InflightInfo { size: 256, ..info }).expect("two queues of 4").queue(1).expect("two");
    assert!(least.fits(4) && !least.fits(8));
    let fault = Inflight::start(&least, 8, 0).expect_err("it does not fit");
    assert_eq!(fault, InflightFault::Heads { heads: 7, size: 8 });
    for offset in [4096, 1] {
        let lie = InflightInfo { size: u64::MAX, offset, ..info };
        assert!(matches!(open(lie), Err(InflightError::Region(_))), "{lie:?}");
    }
    let more = open(info).expect("a good size");
    assert!(more.queue(1).is_some() && more.queue(2).is_none());
}

/// What a ring does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Take,
    /// Gives back the n-th of those in flight.
    Put(usize),
    Publish,
}

/// All ways in which a ring can deal with so many requests, all available at first.
fn lives(requests: usize) -> Vec<Vec<Step>> {
    fn go(left: usize, in_flight: usize, put: usize, steps: &mut Vec<Step>, lives: &mut Vec<Vec<Step>>) {
        if left + in_flight + put == 0 {
            return lives.push(steps.clone());
        }
        let mut step = |step, left, in_flight, put| {
            steps.push(step);
            go(left, in_flight, put, steps, lives);
            steps.pop();
        };
        if left > 0 {
            step(Step::Take, left - 1, in_flight + 1, put);
        }
        for which in 0..in_flight {
            step(Step::Put(which), left, in_flight - 1, put + 1);
        }
        if put > 0 {
            step(Step::Publish, left, in_flight, 0);
        }
    }
    let mut lives = Vec::new();
    go(requests, 0, 0, &mut Vec::new(), &mut lives);
    lives
}

fn live(ring: &mut Vring, steps: &[Step], taken: &mut Vec<u16>) {
    let mut in_flight = Vec::new();
    for step in steps {
        match step {
            Step::Take => {
                let head = ring.take_head().expect("an honest driver").expect("it is available");
                in_flight.push(head);
                taken.push(head);
            }
            Step::Put(which) => ring.put_used(in_flight.remove(*which), 1),
            Step::Publish => {
                ring.publish();
            }
        }
    }
}

/// Answers everything, one after the other.
fn finish(ring: &mut Vring) {
    for head in drain(ring) {
        ring.put_used(head, 1);
        ring.publish();
    }
}

/// What is right whenever a ring has died: what the driver was not shown is taken again, in order, and then it was shown
/// each request once.
fn check_successor(bench: &Bench, heads: &[u16], taken: &[u16], what: impl Fn() -> String) {
    let shown = bench.shown();
    let mut ring = bench.resume();
    let again: Vec<u16> = taken.iter().copied().filter(|head| !shown.contains(head)).collect();
    let left = heads.iter().filter(|head| !taken.contains(head));
    let expected: Vec<u16> = again.iter().chain(left).copied().collect();
    assert_eq!(drain(&mut ring), expected, "{}: {shown:?} were shown", what());
    for head in expected {
        ring.put_used(head, 1);
    }
    ring.publish();
    let mut all = bench.shown();
    all.sort_unstable();
    let mut heads = heads.to_vec();
    heads.sort_unstable();
    assert_eq!(all, heads, "{}: each once", what());
    assert!((0..SIZE).all(|head| bench.region()[at(head)] == 0), "{}: nothing is in flight", what());
}

#[test]
fn a_successor_comes_out_right_wherever_a_ring_has_died() {
    let bench = Bench::new();
    let heads = [2, 0, 3];
    let mut deaths = 0;
    for count in 1..=heads.len() {
        let heads = &heads[..count];
        for steps in lives(count) {
            for stores in 0.. {
                bench.reset();
                bench.offer(0, heads);
                let mut taken = Vec::new();
                let died = crash::run(stores, || {
                    live(&mut bench.start(0).expect("a good ring"), &steps, &mut taken);
                });
                // A head of which nothing was stored was not taken.
                let region = bench.region();
                let last = taken.len().saturating_sub(1);
                taken.retain(|head| region[at(*head)] != 0 || bench.shown().contains(head));
                assert!(taken.len() >= last);
                check_successor(&bench, heads, &taken, || format!("{steps:?}, dead after {stores} stores"));
                if died.is_ok() {
                    break;
                }
                deaths += 1;
            }
        }
    }
    assert!(deaths > 2000, "{deaths} deaths");
}

#[test]
fn a_successor_that_dies_too_leaves_what_is_right() {
    let bench = Bench::new();
    let heads = [1, 3];
    for steps in lives(heads.len()) {
        for first in 0.. {
            let mut first_died = false;
            for second in 0.. {
                bench.reset();
                bench.offer(0, &heads);
                let died = crash::run(first, || {
                    live(&mut bench.start(0).expect("a good ring"), &steps, &mut Vec::new());
                });
                first_died = died.is_err();
                let died = crash::run(second, || finish(&mut bench.resume()));
                finish(&mut bench.resume());
                let mut all = bench.shown();
                all.sort_unstable();
                assert_eq!(all, heads, "{steps:?}, dead after {first} stores, and then after {second}");
                if died.is_ok() {
                    break;
                }
            }
            if !first_died {
                break;
            }
        }
    }
}
