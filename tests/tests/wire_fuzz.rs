//! Random chains, two in five of them wrong, over the socket of a running device: each answer is what the oracle says.
//!
//! `SLUICE_WIRE_REQUESTS` says how many requests there are in all, shared out among the devices. A failure says by which seed
//! its session is replayed.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use sluice_tests::disk::DiskSpec;
use sluice_tests::guest::Guest;
use sluice_tests::holdings::Holdings;
use sluice_tests::model::{IOERR, OK, UNSUPP};
use sluice_tests::rng::Rng;
use sluice_tests::subject::{Engine, Subject};
use sluice_tests::wire::lane::Lane;
use sluice_tests::wire::wrong::Wrong;

/// Requests of one connection.
const SESSION: usize = 4000;

/// The disk: small, so that all of it is compared after each session.
fn spec() -> DiskSpec {
    DiskSpec { bytes: 4 << 20, ..DiskSpec::default() }
}

/// How many requests there are to be, of those of the whole run.
fn requests(percent: usize) -> usize {
    let all = std::env::var("SLUICE_WIRE_REQUESTS").map_or(200_000, |text| text.parse().unwrap());
    all * percent / 100
}

/// Sessions with their seeds, the first of which is the seed of the test.
fn fuzz(subject: Subject, spec: &DiskSpec, percent: usize, test: &str, default: u64) {
    let mut lane = Lane::new(Guest::boot(subject, spec));
    let pid = lane.guest.served.pid().unwrap();
    lane.guest.check_works();
    lane.guest.settle();
    let before = Holdings::of(pid);
    let mut seeds = Rng::for_test(default);
    let mut seed = std::env::var("SLUICE_SEED").map_or(default, |text| text.parse().unwrap());
    let sessions = requests(percent).div_ceil(SESSION);
    for _ in 0..sessions {
        lane.session(seed, SESSION, test);
        seed = seeds.next_u64();
    }
    lane.guest.settle();
    before.await_of(pid);
    let tally = &lane.tally;
    println!("{subject}: {tally}");
    if std::env::var_os("SLUICE_SEED").is_none() {
        assert!(tally.status(OK) * 10 > tally.answers() * 6, "too few requests reach the disk");
        assert!(tally.status(IOERR) * 50 > tally.answers() && tally.status(UNSUPP) * 200 > tally.answers());
        assert!(tally.broken > 0 && tally.harmed > 0);
        assert!(
            Wrong::ALL.iter().all(|wrong| tally.wrongs.contains_key(wrong)),
            "not all that can be wrong was"
        );
    }
}

#[test]
fn memory_answers_what_is_due() {
    let subject = Subject::Sluice { engine: Engine::Ram, cache: "writeback" };
    fuzz(subject, &spec(), 40, "memory_answers_what_is_due", 90);
}

#[test]
fn blocks_of_4096_answer_what_is_due() {
    let subject = Subject::Sluice { engine: Engine::Ram, cache: "writeback" };
    let spec = DiskSpec { logical_block: Some(4096), ..spec() };
    fuzz(subject, &spec, 30, "blocks_of_4096_answer_what_is_due", 93);
}

#[test]
fn a_file_by_system_calls_answers_what_is_due() {
    let subject = Subject::Sluice { engine: Engine::Sync, cache: "writeback" };
    fuzz(subject, &spec(), 25, "a_file_by_system_calls_answers_what_is_due", 91);
}

/// With direct I/O, which takes as long as the disk does: fewer.
#[test]
fn a_file_by_io_uring_answers_what_is_due() {
    let subject = Subject::Sluice { engine: Engine::Uring, cache: "none" };
    fuzz(subject, &spec(), 5, "a_file_by_io_uring_answers_what_is_due", 92);
}

/// The control: the same chains at a back-end that nobody here wrote. What it does otherwise is said, and that it is
/// found shows that the oracle bites.
#[test]
#[ignore = "its subject is not the product: cargo test -p sluice-tests --test wire_fuzz -- --ignored --nocapture"]
fn another_back_end_is_caught() {
    if !Subject::Qemu.is_here() {
        eprintln!("skipped: {} is not installed", Subject::Qemu);
        return;
    }
    for seed in 0..2 {
        let run = || {
            Lane::new(Guest::boot(Subject::Qemu, &spec())).session(seed, 2000, "another_back_end_is_caught")
        };
        let caught = std::panic::catch_unwind(run).expect_err("2000 chains without a difference");
        let why = caught.downcast_ref::<String>().map_or("no words", String::as_str);
        println!("seed {seed}: {why}\n");
    }
}
