//! What was sent and what became of it, counted: to see that good and bad requests of all kinds were among it.

use std::collections::BTreeMap;
use std::fmt;

use super::wrong::Wrong;
use crate::model::{IOERR, OK, UNSUPP};

/// Counters of outcomes.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Chains, by status.
    pub statuses: BTreeMap<u8, u64>,
    /// Rings that broke, as was due.
    pub broken: u64,
    /// Rings that were set to harm themselves.
    pub harmed: u64,
    /// Chains with nothing wrong.
    pub good: u64,
    /// Chains with something wrong, by what.
    pub wrongs: BTreeMap<Wrong, u64>,
    /// Batches that were published.
    pub batches: u64,
}

impl Tally {
    /// Counts a chain that was sent.
    pub fn sent(&mut self, wrong: &[Wrong]) {
        self.good += u64::from(wrong.is_empty());
        for &wrong in wrong {
            *self.wrongs.entry(wrong).or_default() += 1;
        }
    }

    /// Counts an answer.
    pub fn answered(&mut self, status: u8) {
        *self.statuses.entry(status).or_default() += 1;
    }

    /// Chains that were answered.
    pub fn answers(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Answers with this status.
    pub fn status(&self, status: u8) -> u64 {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Tally) {
        for (&status, &count) in &other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (&wrong, &count) in &other.wrongs {
            *self.wrongs.entry(wrong).or_default() += count;
        }
        self.broken += other.broken;
        self.harmed += other.harmed;
        self.good += other.good;
        self.batches += other.batches;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ok, ioerr, unsupp] = [OK, IOERR, UNSUPP].map(|status| self.status(status));
        let all = self.answers();
        write!(
            f,
            "{all} requests answered in {} batches: {ok} OK, {ioerr} IOERR, {unsupp} UNSUPP; ",
            self.batches
        )?;
        write!(f, "{} rings broken, {} harmed; {} good chains; ", self.broken, self.harmed, self.good)?;
        write!(f, "wrong: {:?}", self.wrongs)
    }
}
