//! What a driver has asked for and been told, and what must therefore be on the disk when the power goes.

use std::ops::Range;

use sluice_tests::request::SECTOR;

/// A write of data, or of zeroes, and the times of its life. Times are the numbers of notes in the disk's log.
#[derive(Clone, Debug)]
struct Write {
    sectors: Range<usize>,
    is_data: bool,
    submitted: usize,
    acked: Option<usize>,
    /// It was promised to be durable when it was acknowledged: the driver had no cache to flush, all the time.
    is_through: bool,
}

/// All that has happened, as the driver knows it.
#[derive(Debug, Default)]
pub(crate) struct Story {
    now: usize,
    writes: Vec<Write>,
    /// When each flush was submitted, and when it was acknowledged.
    flushes: Vec<(usize, Option<usize>)>,
    /// Since when the driver has no cache to flush, if so.
    through_since: Option<usize>,
}

/// A sector of a write: all of it says whose it is.
pub(crate) fn content(write: usize, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (at, word) in bytes.chunks_exact_mut(8).zip(0_u64..) {
        at.copy_from_slice(&((write as u64 + 1) << 24 | (sector as u64) << 8 | word).to_le_bytes());
    }
    bytes
}

impl Story {
    /// How many things have happened.
    pub(crate) fn now(&self) -> usize {
        self.now
    }

    fn tick(&mut self) -> usize {
        self.now += 1;
        self.now - 1
    }

    /// A write is about to be submitted: its number. Zeroes if it has no data.
    pub(crate) fn write(&mut self, sectors: Range<usize>, is_data: bool) -> usize {
        let submitted = self.tick();
        self.writes.push(Write { sectors, is_data, submitted, acked: None, is_through: false });
        self.writes.len() - 1
    }

    /// A write was acknowledged.
    pub(crate) fn write_acked(&mut self, number: usize) {
        let now = self.tick();
        let write = &mut self.writes[number];
        write.acked = Some(now);
        write.is_through = self.through_since.is_some_and(|since| since <= write.submitted);
    }

    /// A flush is about to be submitted: its number.
    pub(crate) fn flush(&mut self) -> usize {
        let submitted = self.tick();
        self.flushes.push((submitted, None));
        self.flushes.len() - 1
    }

    /// A flush was acknowledged.
    pub(crate) fn flush_acked(&mut self, number: usize) {
        self.flushes[number].1 = Some(self.tick());
    }

    /// The driver has a cache to flush from now on, or has not had one for a moment.
    pub(crate) fn set_through(&mut self, is_through: bool) {
        let now = self.tick();
        self.through_since = is_through.then(|| self.through_since.unwrap_or(now));
    }

    /// Whether the driver has no cache to flush.
    pub(crate) fn is_through(&self) -> bool {
        self.through_since.is_some()
    }

    /// How many writes and flushes there were, and how many of the writes have to be there at the end.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let safe = self.writes.iter().filter(|write| self.is_safe(write, self.now)).count();
        (self.writes.len(), self.flushes.len(), safe)
    }

    /// When something became safe: flushes, and writes without a cache to flush.
    pub(crate) fn promises(&self) -> impl Iterator<Item = usize> {
        let through = self.writes.iter().filter(|write| write.is_through).filter_map(|write| write.acked);
        self.flushes.iter().filter_map(|(_, done)| *done).chain(through)
    }

    /// Whether a write has to be there if the power goes at this time.
    fn is_safe(&self, write: &Write, time: usize) -> bool {
        let Some(acked) = write.acked.filter(|acked| *acked < time) else { return false };
        let is_after = |(submitted, done): &(usize, Option<usize>)| {
            *submitted > acked && done.is_some_and(|done| done < time)
        };
        write.is_through || self.flushes.iter().any(is_after)
    }

    /// Whether a disk may hold this if the power goes at this time.
    pub(crate) fn check(&self, time: usize, disk: &[u8]) -> Result<(), String> {
        let mut sectors = disk.chunks(SECTOR).enumerate();
        sectors.try_for_each(|(sector, bytes)| self.check_sector(time, sector, bytes))
    }

    fn check_sector(&self, time: usize, sector: usize, bytes: &[u8]) -> Result<(), String> {
        let here = |write: &&Write| write.sectors.contains(&sector) && write.submitted < time;
        let writes = || self.writes.iter().enumerate().filter(|(_, write)| here(write));
        // What was acknowledged before this was submitted is gone when this is safe.
        let newest =
            writes().filter(|(_, write)| self.is_safe(write, time)).map(|(_, write)| write.submitted).max();
        let is_gone = |acked: usize| newest.is_some_and(|newest| acked < newest);
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        if is_zero && newest.is_none() {
            return Ok(());
        }
        let is_it = |(number, write): &(usize, &Write)| {
            let is_content = if write.is_data { bytes == content(*number, sector) } else { is_zero };
            is_content && !write.acked.is_some_and(is_gone)
        };
        if writes().any(|candidate| is_it(&candidate)) {
            return Ok(());
        }
        let first = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        let found =
            if is_zero { "zeroes".to_owned() } else { format!("write {}", (first >> 24).wrapping_sub(1)) };
        let lives: Vec<_> = writes()
            .map(|(number, write)| {
                let Write { is_data, submitted, acked, .. } = write;
                let safe = if self.is_safe(write, time) { ", safe" } else { "" };
                format!("write {number} ({submitted} to {acked:?}, data {is_data}{safe})")
            })
            .collect();
        Err(format!("at time {time} sector {sector} has {found}, of {}", lives.join("; ")))
    }
}
