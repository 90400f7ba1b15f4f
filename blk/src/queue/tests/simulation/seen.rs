//! What simulations have come across: a test that does not reach something does not test it.

/// Counts what a simulation has come across.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Seen {
    pub(super) steps: u64,
    pub(super) chains: u64,
    pub(super) failed: u64,
    pub(super) splits: u64,
    pub(super) parked: u64,
    pub(super) bounced: [u64; 6],
    /// Queues that waited for another one's write.
    pub(super) woken: u64,
    /// Commands for which there was no memory.
    pub(super) refused: u64,
    /// Queues that were dropped with chains under way.
    pub(super) dropped: u64,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.chains += other.chains;
        self.failed += other.failed;
        self.splits += other.splits;
        self.parked += other.parked;
        self.bounced.iter_mut().zip(other.bounced).for_each(|(sum, count)| *sum += count);
        self.woken += other.woken;
        self.refused += other.refused;
        self.dropped += other.dropped;
    }

    /// Whether it has come across everything at least once.
    pub(super) fn is_complete(&self) -> bool {
        let others = [self.failed, self.splits, self.parked, self.woken, self.refused, self.dropped];
        self.bounced.iter().chain(&others).all(|count| *count > 0)
    }
}
