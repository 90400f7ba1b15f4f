//! A naive model of a disk that several writers share: for each sector, what may be there.
//!
//! Two writes that are under way at the same time may end in any order, but one that began when another had ended comes
//! after it, and what was there before is gone. So each sector has a history of versions, and a version may be read
//! unless another one is known to have replaced it before the read began.

use std::ops::Range;

use super::sectors;

/// What a version of a sector consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Bytes that no other sector and no other stamp has.
    Stamp(u64),
    /// So many of one byte.
    Fill(u8),
}

impl Content {
    /// The bytes of a sector with such content.
    pub(super) fn bytes(self, sector: usize) -> [u8; 512] {
        let mut bytes = [0; 512];
        match self {
            Self::Fill(byte) => bytes.fill(byte),
            Self::Stamp(stamp) => {
                let mut state = stamp << 32 | sector as u64;
                for word in bytes.chunks_exact_mut(8) {
                    // An xorshift generator of a seed that is not zero.
                    state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                    state ^= state >> 29;
                    word.copy_from_slice(&state.to_ne_bytes());
                }
            }
        }
        bytes
    }
}

/// What somebody has begun to put there.
#[derive(Debug, Clone, Copy)]
struct Version {
    content: Content,
    /// Which chain's it is.
    writer: u64,
    began: u64,
    ended: Option<u64>,
    /// It was said to be there. What has failed, and a discard, may be there or not.
    certain: bool,
}

/// A disk.
#[derive(Debug)]
pub(super) struct Model {
    sectors: Vec<Vec<Version>>,
}

impl Model {
    /// A disk of so many sectors that all have a stamp.
    pub(super) fn new(sectors: usize, stamp: u64) -> Self {
        let content = Content::Stamp(stamp);
        let first = Version { content, writer: 0, began: 0, ended: Some(0), certain: true };
        Self { sectors: vec![vec![first]; sectors] }
    }

    /// A chain begins to put `content` to a range of bytes.
    pub(super) fn begin(&mut self, range: &Range<u64>, content: Content, writer: u64, now: u64) {
        for versions in &mut self.sectors[sectors(range)] {
            versions.push(Version { content, writer, began: now, ended: None, certain: false });
        }
    }

    /// A chain has ended.
    pub(super) fn end(&mut self, range: &Range<u64>, writer: u64, certain: bool, now: u64) {
        for versions in &mut self.sectors[sectors(range)] {
            for version in versions.iter_mut().filter(|version| version.writer == writer) {
                (version.ended, version.certain) = (Some(now), certain);
            }
        }
    }

    /// Checks what was read of a range by somebody who began at `began`. `or` are bytes that may be there as well.
    pub(super) fn check(&self, range: &Range<u64>, data: &[u8], began: u64, or: Option<&[u8]>) {
        for (i, sector) in sectors(range).enumerate() {
            let place = i * 512..i * 512 + 512;
            self.check_sector(sector, &data[place.clone()], began, or.map(|or| &or[place]));
        }
    }

    fn check_sector(&self, sector: usize, data: &[u8], began: u64, or: Option<&[u8]>) {
        let versions = &self.sectors[sector];
        let gone = |version: &&Version| {
            let replaces = |other: &Version| other.certain && other.ended.is_some_and(|ended| ended < began);
            !versions
                .iter()
                .any(|other| replaces(other) && version.ended.is_some_and(|ended| ended < other.began))
        };
        let mut possible: Vec<[u8; 512]> = Vec::new();
        for version in versions.iter().filter(gone) {
            let bytes = version.content.bytes(sector);
            if bytes == data {
                return;
            }
            possible.push(bytes);
        }
        // What is under way may be there in part.
        let wrong = (0..512).find(|at| {
            let is = data[*at];
            !possible.iter().any(|bytes| bytes[*at] == is) && or.is_none_or(|or| or[*at] != is)
        });
        if let Some(at) = wrong {
            panic!("byte {at} of sector {sector} is {:#x}: {}", data[at], self.explain(sector, data));
        }
    }

    /// Whose data it is that should not be there.
    fn explain(&self, sector: usize, data: &[u8]) -> String {
        let versions = &self.sectors[sector];
        let whose = versions.iter().find(|version| version.content.bytes(sector) == data);
        format!("that is of {whose:?}, of {versions:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: Range<u64> = 512..1024;

    fn may_be_read(model: &Model, content: Content, began: u64) -> bool {
        std::panic::catch_unwind(|| model.check(&SECTOR, &content.bytes(1), began, None)).is_ok()
    }

    #[test]
    fn what_ended_before_another_began_is_gone_and_what_was_under_way_at_the_time_is_not() {
        let mut model = Model::new(4, 1);
        let [old, a, b, c] = [1, 2, 3, 4].map(Content::Stamp);
        model.begin(&SECTOR, a, 11, 1);
        assert!(may_be_read(&model, old, 1) && may_be_read(&model, a, 1), "either");
        model.begin(&SECTOR, b, 12, 2);
        model.end(&SECTOR, 11, true, 3);
        assert!(may_be_read(&model, old, 2), "by whoever began before");
        assert!(!may_be_read(&model, old, 4));
        assert!(may_be_read(&model, a, 4) && may_be_read(&model, b, 4));
        model.end(&SECTOR, 12, true, 5);
        model.begin(&SECTOR, c, 13, 6);
        model.end(&SECTOR, 13, false, 7);
        assert!(may_be_read(&model, a, 8) && may_be_read(&model, c, 8), "a failure replaces nothing");
        model.begin(&SECTOR, old, 14, 9);
        model.end(&SECTOR, 14, true, 10);
        assert!(!may_be_read(&model, a, 11) && !may_be_read(&model, c, 11));
    }
}
