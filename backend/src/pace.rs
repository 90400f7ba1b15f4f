//! How long a worker looks for work before it sleeps.
//!
//! To sleep and be woken costs some 10 us on a processor that has nothing else to do, more in a virtual machine. Who waits
//! for less is served sooner, and with less work in all, by a worker that stays awake. Who waits for longer should cost
//! nothing. So a worker learns from its waits, as Linux does when it polls before it halts a virtual CPU
//! (`halt_poll_ns` of KVM): a wait that was short, and yet slept through, doubles the time that is looked for work; a
//! long one halves it, down to nothing. An idle worker sleeps.
//!
//! While it looks, a worker gives way to whoever else wants its CPU: a driver is often woken right there, and could
//! otherwise not make the work that is looked for. Who gives way to one that computes, though, waits for a slice of
//! milliseconds, where a sleeper that is woken comes first. After such a stall a worker sleeps for a number of waits; for
//! twice as many if the last stall was not as many looks ago.
//!
//! Waits with I/O in flight are a matter of their own, as those are for the disk: a worker looks as long as a sleep costs,
//! and not through each access of a disk that takes ten times that.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// How long is looked for work before one kind of sleep.
#[derive(Debug)]
struct Window {
    now: Duration,
    max: Duration,
}

impl Window {
    /// Where it grows from.
    const START: Duration = Duration::from_micros(4);

    fn new(max: Duration) -> Self {
        Self { now: Duration::ZERO, max }
    }

    /// Learns that there was no work for `gap`.
    fn learn(&mut self, gap: Duration) {
        if gap > self.max {
            self.now /= 2;
            if self.now < Self::START {
                self.now = Duration::ZERO;
            }
        } else if gap > self.now {
            self.now = (self.now * 2).max(Self::START).min(self.max);
        }
    }
}

/// A wait that has begun.
#[derive(Debug)]
pub(crate) struct Wait {
    begun: Instant,
    io: bool,
}

/// What a worker has learned of its waits.
#[derive(Debug)]
pub(crate) struct Pace {
    idle: Window,
    io: Window,
    /// How many waits are slept through after a stall.
    penalty: u32,
    /// How many of them are left.
    sleeps: u32,
    /// How many looks have found work since the penalty was changed.
    found: u32,
}

impl Pace {
    /// The most that is looked with I/O in flight: about what a sleep costs.
    const IO_MAX: Duration = Duration::from_micros(8);

    /// Who is without the CPU for longer has met one that computes.
    const STALL: Duration = Duration::from_micros(100);

    /// How many waits are slept through after the first stall, and after the last of many.
    const PENALTY: RangeInclusive<u32> = 64..=65536;

    /// Looks for `max` at most; for zero, never.
    pub(crate) fn new(max: Duration) -> Self {
        let (idle, io) = (Window::new(max), Window::new(max.min(Self::IO_MAX)));
        Self { idle, io, penalty: *Self::PENALTY.start(), sleeps: 0, found: 0 }
    }

    /// There is no work, and `io` says whether I/O is in flight.
    pub(crate) fn begin(io: bool) -> Wait {
        Wait { begun: Instant::now(), io }
    }

    fn window(&mut self, wait: &Wait) -> &mut Window {
        if wait.io { &mut self.io } else { &mut self.idle }
    }

    /// Looks for work until there is some or the time for that is over; now and then it lets others have the CPU, by
    /// `give_way`. Returns whether there is work.
    pub(crate) fn look(
        &mut self,
        wait: &Wait,
        mut has_work: impl FnMut() -> bool,
        mut give_way: impl FnMut(),
    ) -> bool {
        let window = self.window(wait).now;
        if window.is_zero() || self.sleeps > 0 {
            self.sleeps = self.sleeps.saturating_sub(1);
            return false;
        }
        let mut before = wait.begun.elapsed();
        loop {
            // The clock costs more than a look does.
            for _ in 0..16 {
                if has_work() {
                    self.found();
                    return true;
                }
                std::hint::spin_loop();
            }
            give_way();
            let now = wait.begun.elapsed();
            if now - before > Self::STALL {
                self.stalled();
                return has_work();
            }
            if now >= window {
                return false;
            }
            before = now;
        }
    }

    fn stalled(&mut self) {
        self.sleeps = self.penalty;
        self.penalty = (self.penalty * 2).min(*Self::PENALTY.end());
        self.found = 0;
    }

    fn found(&mut self) {
        self.found += 1;
        if self.found >= self.penalty {
            self.penalty = (self.penalty / 2).max(*Self::PENALTY.start());
            self.found = 0;
        }
    }

    /// There was no work until now.
    pub(crate) fn end(&mut self, wait: &Wait) {
        let gap = wait.begun.elapsed();
        self.window(wait).learn(gap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    fn after(window: &mut Window, gaps: impl IntoIterator<Item = u64>) -> Duration {
        gaps.into_iter().for_each(|gap| window.learn(us(gap)));
        window.now
    }

    #[test]
    fn short_waits_make_a_worker_stay_awake_and_long_ones_let_it_sleep() {
        let mut window = Window::new(us(50));
        assert_eq!(window.now, us(0), "at first it sleeps");
        assert_eq!(after(&mut window, [20]), us(4));
        assert_eq!(after(&mut window, [20, 20, 20]), us(32));
        assert_eq!(after(&mut window, [20; 100]), us(32), "which is enough for such waits");
        assert_eq!(after(&mut window, [49]), us(50), "and never more than it may be");
        assert_eq!(after(&mut window, [51]), us(25));
        assert_eq!(after(&mut window, [1000]), us(25) / 2);
        assert_eq!(after(&mut window, [1000, 1000]), us(0));
    }

    #[test]
    fn a_worker_that_may_not_look_never_does() {
        let mut pace = Pace::new(us(0));
        for io in [false, true] {
            let wait = Pace::begin(io);
            pace.end(&wait);
            assert!(!pace.look(&wait, || unreachable!("no look"), || ()));
        }
    }

    #[test]
    fn what_is_learned_of_a_disk_is_not_taken_for_what_the_driver_does() {
        let mut pace = Pace::new(us(50));
        pace.io.learn(us(5));
        assert_eq!((pace.io.now, pace.idle.now), (us(4), us(0)));
        pace.idle.learn(us(40));
        pace.io.learn(us(40));
        assert_eq!((pace.io.now, pace.idle.now), (us(0), us(4)), "a disk that is looked for only shortly");
    }

    #[test]
    fn a_look_ends_with_work_or_with_its_time() {
        let mut pace = Pace::new(us(50));
        pace.idle.learn(us(4));
        let mut looks = 0;
        let work = |looks: &mut u32| {
            *looks += 1;
            *looks == 3
        };
        assert!(pace.look(&Pace::begin(false), || work(&mut looks), || ()));
        assert_eq!(looks, 3);
        let mut ways = 0;
        assert!(!pace.look(&Pace::begin(false), || false, || ways += 1));
        assert!(ways > 0, "others had the CPU");
    }

    #[test]
    fn a_worker_that_lost_its_cpu_sleeps_for_a_while_and_longer_each_time() {
        let mut pace = Pace::new(us(50));
        pace.idle.learn(us(4));
        let stall = || std::thread::sleep(us(500));
        for penalty in [64, 128, 256] {
            let mut asked = 0;
            assert!(
                pace.look(
                    &Pace::begin(false),
                    || {
                        asked += 1;
                        asked > 16
                    },
                    stall
                ),
                "and work came meanwhile"
            );
            for _ in 0..penalty {
                assert!(!pace.look(&Pace::begin(false), || true, || ()));
            }
        }
        for _ in 0..512 + 256 + 128 {
            assert!(pace.look(&Pace::begin(false), || true, || ()));
        }
        assert_eq!(pace.penalty, 64, "and all is forgiven");
    }
}
