//! The daemon is killed in the middle of writes, again and again, and a guest notices nothing: each request is answered once,
//! nothing acknowledged is lost, and nothing old lands on top of it.
//!
//! The driver's side is in this process and lives on: guest memory, the ring, and the memory for what is in flight, which it
//! gives to each successor, as QEMU does. Or it keeps nothing, and the daemon answers in order: then what the ring itself
//! says has to do.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::frontend::{Inflight, Session};
use sluice_tests::generations::{RING, Writer, spec};
use sluice_tests::guest::VERSION_1;
use sluice_tests::subject::{Engine, Served, Subject};
use sluice_tests::throttle::Throttle;

const URING: Subject = Subject::Sluice { engine: Engine::Uring, cache: "none" };
/// How often the daemon is killed: `SLUICE_KILLS`, else so often.
fn kills(default: usize) -> usize {
    std::env::var("SLUICE_KILLS").map_or(default, |count| count.parse().unwrap())
}

/// How a successor knows what was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Account {
    /// The front-end keeps it: INFLIGHT_SHMFD.
    Kept,
    /// From the ring: all is answered in order.
    Order,
}

/// The driver's side.
struct Rig {
    writer: Writer,
    inflight: Option<Inflight>,
    session: Option<Session>,
    served: Option<Served>,
    account: Account,
    throttle: Option<Throttle>,
    disk: Disk,
}

impl Rig {
    fn new(disk: Disk, throttle: Option<Throttle>, account: Account, seed: u64) -> Self {
        let writer = Writer::new(account == Account::Order, seed);
        let mut rig = Self { writer, inflight: None, session: None, served: None, account, throttle, disk };
        rig.serve();
        rig
    }

    /// A daemon, and all that a front-end says to it. It knows of the ring only what is in its memory.
    fn serve(&mut self) {
        let served = URING.serve(&self.disk);
        let mut session = Session::connect(served.socket());
        session.negotiate(VERSION_1).unwrap();
        session.set_mem_table(self.writer.memory.regions()).unwrap();
        if self.account == Account::Kept {
            if self.inflight.is_none() {
                self.inflight = Some(session.make_inflight(1, RING).unwrap());
            }
            session.set_inflight(self.inflight.as_ref().unwrap()).unwrap();
        }
        let base = self.base();
        session.start_ring(0, &self.writer.ring, base, true).unwrap();
        (self.session, self.served) = (Some(session), Some(served));
    }

    /// Where front-ends say that a ring is whose back-end has died: at the used index (QEMU), at the available one (Cloud
    /// Hypervisor), or at its start.
    fn base(&mut self) -> u16 {
        let (used, avail) = (self.writer.ring.used_idx(), self.writer.ring.next_avail());
        match self.account {
            Account::Kept => used,
            Account::Order => *self.writer.rng.pick(&[used, avail, 0]),
        }
    }

    /// From now on the daemon's writes take their time. Its successor's do not.
    fn slow_down(&self) {
        if let (Some(throttle), Some(served)) = (&self.throttle, &self.served) {
            throttle.add(served.pid().unwrap()).unwrap();
        }
    }

    fn kill(&mut self) {
        let served = self.served.take().unwrap();
        served.kill();
        self.session = None;
        // Not waited for: the successor comes at once, and what the dead one has left in the kernel may still land.
        let dead = served;
        self.serve();
        drop(dead);
    }
}

fn kill_often(mut rig: Rig, count: usize, turns: usize) {
    let mut replayed = 0;
    for kill in 0..count {
        let before = rig.writer.rng.between(1, turns);
        rig.slow_down();
        rig.writer.work(before);
        rig.kill();
        replayed += rig.writer.flying();
        let after = rig.writer.rng.between(0, turns);
        rig.writer.work(after);
        rig.writer.settle(&rig.disk.path(), &format!("kill {kill}"));
    }
    eprintln!("{count} kills, {replayed} writes under way then, {} in all", rig.writer.writes());
    assert!(replayed > count, "the daemon was idle when it was killed");
}

#[test]
fn a_guest_does_not_notice_that_the_daemon_is_killed() {
    kill_often(Rig::new(Disk::new(&spec()), None, Account::Kept, 7), kills(150), 12);
}

fn in_order() -> DiskSpec {
    DiskSpec { options: vec![("in-order", "on")], ..spec() }
}

#[test]
fn a_guest_whose_front_end_keeps_nothing_does_not_notice_it_if_all_is_answered_in_order() {
    kill_often(Rig::new(Disk::new(&in_order()), None, Account::Order, 7), kills(150).div_ceil(4), 12);
}

#[test]
fn writes_of_a_dead_daemon_never_land_on_later_ones() {
    let Some(of_device) = DiskSpec::on_device(512) else { return };
    let disk = |spec| Disk::new(&DiskSpec { device: of_device.device, ..spec });
    for (spec, account) in [(spec(), Account::Kept), (in_order(), Account::Order)] {
        let disk = disk(spec);
        // Each write takes its time, so that some are still on their way when a successor is there.
        let throttle = match Throttle::new(&disk.path(), 200) {
            Ok(throttle) => throttle,
            Err(why) => return eprintln!("skipped: no disk can be slowed down: {why}"),
        };
        let rig = Rig::new(disk, Some(throttle), account, 7);
        kill_often(rig, kills(150).div_ceil(if account == Account::Kept { 5 } else { 20 }), 6);
    }
}
