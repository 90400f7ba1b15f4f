//! When a driver is called for what is done: not as long as it has nothing to do but wait for more.
//!
//! To call a driver that sleeps takes 5 to 8 us of the worker's time, as much as several requests, and 14 to 30 us pass
//! until it runs. A driver that is called while most of what it waits for is still in its ring comes, takes the little that
//! is done, sleeps, and has to be called again soon. One that is called when nothing is left to do leaves the worker
//! without work until it has come. So it is called when as much is left as keeps the worker busy for about that long.
//!
//! What counts is only what is in the ring, and will be taken in the next turns. What a disk has may take any time, and does
//! not keep a worker busy: where the ring is empty, the driver is called at once. (Linux drivers of network cards:
//! interrupt moderation, there by time; QEMU: `notification-suppression`, once per batch.)

/// What a ring's calls are decided by.
#[derive(Debug, Default)]
pub(crate) struct Coalescing {
    /// For how many turns in a row the driver was not called.
    turns: u32,
    /// How many bytes the chains of the last turn that took any have moved, each.
    bytes_each: usize,
}

impl Coalescing {
    /// With so many chains in the ring, beside those of the last turn, a worker is busy until a driver has come.
    const CHAINS_AHEAD: usize = 8;
    /// And with so many bytes.
    const BYTES_AHEAD: usize = 128 << 10;
    /// A driver is called after so many turns in any case.
    const TURNS_MAX: u32 = 3;

    /// A turn has taken so many chains, which move so many bytes together.
    pub(crate) fn took(&mut self, chains: usize, bytes: usize) {
        if let Some(each) = bytes.checked_div(chains) {
            self.bytes_each = each;
        }
    }

    /// Whether the driver need not be called before the next turn, which finds `left` chains in the ring. If not, it is
    /// called now.
    pub(crate) fn can_wait(&mut self, left: usize) -> bool {
        let is_busy = left > Self::CHAINS_AHEAD || left.saturating_mul(self.bytes_each) > Self::BYTES_AHEAD;
        let waits = is_busy && self.turns < Self::TURNS_MAX;
        self.turns = if waits { self.turns + 1 } else { 0 };
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_waits_while_there_is_enough_to_do_and_not_for_long() {
        let mut small = Coalescing::default();
        small.took(4, 4 * 4096);
        assert!([0, 1, 8].iter().all(|left| !small.can_wait(*left)), "the worker would run out of work");
        let waits: Vec<_> = (0..8).map(|_| small.can_wait(9)).collect();
        assert_eq!(waits, [true, true, true, false, true, true, true, false]);
        assert!(small.can_wait(usize::MAX));
    }

    #[test]
    fn large_chains_keep_a_worker_busy_for_longer() {
        let mut large = Coalescing::default();
        large.took(2, 256 << 10);
        assert!(!large.can_wait(1) && large.can_wait(2));
        large.took(0, 0);
        assert!(large.can_wait(2), "a turn that takes nothing says nothing");
        large.took(1, 512);
        assert!(!large.can_wait(2));
    }
}
