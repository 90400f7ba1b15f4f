//! What a disk may hold when the power goes: computed from the log of all that was done to it ([`crate::fuse_disk`]).
//!
//! A disk with a volatile cache promises this much and no more: a change that had ended when a sync began is there when that
//! sync has ended, and so is a write that was to be durable by itself. Of every other change any sectors may be there, each
//! whole or not at all; those of one place in their order.

use crate::fuse_disk::{Change, Event};
use crate::request::SECTOR;
use crate::rng::Rng;

/// Which of the changes that are not durable are there all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Luck {
    /// None of them.
    None,
    /// All of them.
    All,
    /// Each of their sectors with so many chances in 8.
    Sectors(u8),
    /// Each of them wholly or not at all.
    Changes,
}

impl Luck {
    /// One of them.
    pub fn any(rng: &mut Rng) -> Self {
        match rng.below(8) {
            0 => Self::None,
            1 => Self::All,
            2 | 3 => Self::Changes,
            chances => Self::Sectors(u8::try_from(2 * chances - 7).expect("few")),
        }
    }

    fn holds(self, whole: bool, rng: &mut Rng) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Sectors(chances) => rng.below(8) < usize::from(chances),
            Self::Changes => whole,
        }
    }
}

/// A change in a log.
#[derive(Debug)]
struct Entry<'a> {
    change: &'a Change,
    /// When it ended, if it did.
    end: Option<usize>,
    is_durable: bool,
}

/// What a disk of `bytes` zeroes holds when the power goes after the events of `log`.
pub fn disk_after(log: &[Event], bytes: usize, luck: Luck, rng: &mut Rng) -> Vec<u8> {
    let mut disk = vec![0; bytes];
    for entry in in_order(entries(log)) {
        let whole = rng.one_in(2);
        let (start, len) = extent(entry.change);
        for at in (start..start + len).step_by(SECTOR) {
            if entry.is_durable || luck.holds(whole, rng) {
                let sector = at..(at + SECTOR).min(start + len);
                match entry.change {
                    Change::Write { data, .. } => {
                        disk[sector.clone()].copy_from_slice(&data[sector.start - start..sector.end - start]);
                    }
                    _ => disk[sector].fill(0),
                }
            }
        }
    }
    disk
}

/// The changes of a log, by their numbers, and which are durable at its end.
fn entries(log: &[Event]) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    // Of each change that is a sync: how many events came before it.
    let mut begun = Vec::new();
    for (at, event) in log.iter().enumerate() {
        match event {
            Event::Begin(change) => {
                entries.push(Entry { change, end: None, is_durable: false });
                begun.push(at);
            }
            Event::End(number) => {
                entries[*number].end = Some(at);
                match entries[*number].change {
                    Change::Sync => {
                        let since = begun[*number];
                        let covered = |entry: &&mut Entry<'_>| entry.end.is_some_and(|end| end < since);
                        entries.iter_mut().filter(covered).for_each(|entry| entry.is_durable = true);
                    }
                    Change::Write { is_durable, .. } => entries[*number].is_durable = *is_durable,
                    Change::Zero { .. } => {}
                }
            }
            Event::Note(_) => {}
        }
    }
    entries
}

/// In the order in which they ended; what has not ended comes last.
fn in_order(mut entries: Vec<Entry<'_>>) -> Vec<Entry<'_>> {
    entries.retain(|entry| *entry.change != Change::Sync);
    entries.sort_by_key(|entry| entry.end.unwrap_or(usize::MAX));
    entries
}

/// Where a change begins and how many bytes it has.
fn extent(change: &Change) -> (usize, usize) {
    let (offset, len) = match change {
        Change::Write { offset, data, .. } => (*offset, data.len()),
        Change::Zero { offset, len } => (*offset, usize::try_from(*len).expect("a small disk")),
        Change::Sync => (0, 0),
    };
    (usize::try_from(offset).expect("a small disk"), len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8, is_durable: bool) -> Event {
        Event::Begin(Change::Write { offset, data: vec![byte; 1024], is_durable })
    }

    fn after(log: &[Event], luck: Luck) -> Vec<u8> {
        let disk = disk_after(log, 2048, luck, &mut Rng::new(1));
        disk.chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn only_what_had_ended_when_a_sync_began_is_durable_when_it_has_ended() {
        let sync = || Event::Begin(Change::Sync);
        let log =
            [write(0, 1, false), Event::End(0), write(1024, 2, false), sync(), Event::End(1), Event::End(2)];
        assert_eq!(after(&log[..5], Luck::None), [0, 0, 0, 0], "the sync has not ended");
        assert_eq!(after(&log, Luck::None), [1, 1, 0, 0], "the other one ended too late");
        assert_eq!(after(&log, Luck::All), [1, 1, 2, 2]);
        assert_eq!(after(&log[..1], Luck::All), [1, 1, 0, 0], "it may be there before it has ended");
    }

    #[test]
    fn later_changes_lie_on_earlier_ones_and_durable_ones_need_no_luck() {
        let zero = Event::Begin(Change::Zero { offset: 512, len: 512 });
        let log =
            [write(0, 1, true), Event::End(0), write(512, 2, false), zero, Event::End(2), Event::End(1)];
        assert_eq!(after(&log, Luck::None), [1, 1, 0, 0]);
        assert_eq!(after(&log, Luck::All), [1, 2, 2, 0]);
        assert_eq!(after(&log[..5], Luck::All), [1, 2, 2, 0], "what has not ended comes last");
    }

    #[test]
    fn a_change_is_torn_between_sectors_only() {
        let log = [write(0, 7, false), Event::End(0)];
        let mut rng = Rng::new(5);
        let kinds: std::collections::BTreeSet<_> = (0..100)
            .map(|_| {
                let disk = disk_after(&log, 1024, Luck::Sectors(4), &mut rng);
                disk.chunks(SECTOR).map(|sector| (sector[0], sector[SECTOR - 1])).collect::<Vec<_>>()
            })
            .collect();
        let (is, not) = ((7, 7), (0, 0));
        assert_eq!(
            kinds.into_iter().collect::<Vec<_>>(),
            [[not, not], [not, is], [is, not], [is, is]].map(Vec::from)
        );
    }
}
