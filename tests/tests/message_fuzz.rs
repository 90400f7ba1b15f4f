//! Random messages of a front-end that wants the daemon no good: it lives, holds nothing more than before, and serves the
//! next good connection.
//!
//! `SLUICE_MESSAGES` says how many there are in all. The disk is read-only: rings at any address may carry any request.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::collections::BTreeMap;

use sluice_tests::disk::DiskSpec;
use sluice_tests::frontend::Session;
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::holdings::Holdings;
use sluice_tests::rng::Rng;
use sluice_tests::subject::{Engine, Subject};
use sluice_tests::wire::message::{Known, Message, Pool, log_message, message};

/// A front-end with what it needs to be a nuisance.
struct Nuisance {
    guest: Guest,
    pool: Pool,
    known: Known,
    sent: BTreeMap<u32, u64>,
}

impl Nuisance {
    fn new() -> Self {
        let subject = Subject::Sluice { engine: Engine::Uring, cache: "writeback" };
        let spec = DiskSpec { read_only: true, queues: 2, bytes: 1 << 20, ..DiskSpec::default() };
        let mut guest = Guest::boot_with(subject, &spec, &Drive { rings: 2, ..Drive::default() });
        let pool = Pool::new(guest.memory.regions());
        let regions = guest.memory.regions().to_vec();
        let offered = guest.session().offered;
        let known = Known::new(&regions, &guest.lanes[0].ring, offered);
        Nuisance { guest, pool, known, sent: BTreeMap::new() }
    }

    /// A connection of random messages, on a device that is set up or is not.
    fn session(&mut self, seed: u64) {
        let mut rng = Rng::new(seed);
        if rng.one_in(2) {
            self.guest.reconnect();
            self.known.ring = Known::new(&[], &self.guest.lanes[0].ring, 0).ring;
        } else {
            self.guest.redial();
        }
        let count = rng.between(1, 40);
        for _ in 0..count {
            let make = if rng.one_in(8) { log_message } else { message };
            let message = make(&mut rng, &self.known, self.pool.len());
            let times = if rng.one_in(500) { 600 } else { 1 };
            for _ in 0..times {
                if !self.send(&message) {
                    return;
                }
            }
            if rng.one_in(4) {
                self.guest.ring().kick();
            }
        }
    }

    /// Sends a message, and says whether more can be said after it.
    fn send(&mut self, message: &Message) -> bool {
        *self.sent.entry(message.code).or_default() += 1;
        let fds = self.pool.some(&message.fds);
        let session: &mut Session = self.guest.session();
        let sent = session.raw_bytes(&message.to_bytes(), &fds);
        sent.is_ok() && !session.drain() && !message.is_cut()
    }
}

#[test]
fn any_messages_leave_the_daemon_as_it_was() {
    let count: u64 = std::env::var("SLUICE_MESSAGES").map_or(20_000, |text| text.parse().unwrap());
    let mut nuisance = Nuisance::new();
    let pid = nuisance.guest.served.pid().unwrap();
    nuisance.guest.check_works();
    nuisance.guest.settle();
    let before = Holdings::of(pid);
    let mut seeds = Rng::for_test(95);
    let mut seed = std::env::var("SLUICE_SEED").map_or(95, |text| text.parse().unwrap());
    let mut sessions = 0;
    while nuisance.sent.values().sum::<u64>() < count {
        let replay = Replay(seed);
        nuisance.session(seed);
        nuisance.guest.reconnect();
        nuisance.guest.check_works();
        assert_eq!(nuisance.guest.served.fault(), None);
        drop(replay);
        seed = seeds.next_u64();
        sessions += 1;
    }
    nuisance.guest.settle();
    before.await_of(pid);
    let (known, wild): (Vec<_>, Vec<_>) = nuisance.sent.iter().partition(|(code, _)| **code < 50);
    let sum = |sent: &[(&u32, &u64)]| sent.iter().map(|(_, count)| **count).sum::<u64>();
    println!(
        "{} messages with codes below 50, {} others, on {sessions} connections",
        sum(&known),
        sum(&wild)
    );
    assert_eq!(known.len(), 50, "each code is there: {known:?}");
}

/// Says how to replay a connection if it fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("replay: SLUICE_SEED={seed} cargo test --locked -p sluice-tests --test message_fuzz");
        }
    }
}
