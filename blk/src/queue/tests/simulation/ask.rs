//! What a guest asks for: a random operation on a random part of the disk, with memory that lies as it likes.

use std::ops::Range;

use sluice_mem::kzalloc::kzalloc;

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;
use crate::sector::{DiskRange, Sector};

use super::super::flight::{moves_memory, pieces};
use super::super::*;
use super::model::Content;
use super::world::{SECRET_WINDOW_BYTES, SECTORS, WINDOW_BYTES};

/// How it is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    Bios(Op),
    Command(PassthroughCommand),
}

impl Asked {
    fn random(dice: &mut Dice) -> Self {
        let (fua, unmap) = (dice.chance(50), dice.chance(50));
        match dice.within(0..100) {
            0..34 => Self::Bios(Op::Read),
            34..70 => Self::Bios(Op::Write { fua }),
            70..75 => Self::Bios(Op::Flush),
            75..82 => Self::Bios(Op::Discard { fua }),
            82..91 => Self::Bios(Op::WriteZeroes { unmap, fua }),
            91..94 => Self::Command(PassthroughCommand::SecureErase),
            94..98 => Self::Command(PassthroughCommand::DeviceId),
            _ => Self::Command(PassthroughCommand::Lifetime),
        }
    }

    /// The operation of its bios.
    pub(super) fn op(self) -> Op {
        match self {
            Self::Bios(op) => op,
            Self::Command(PassthroughCommand::SecureErase) => Op::SecureErase,
            Self::Command(_) => Op::DeviceId,
        }
    }

    /// What is put to the disk, by the chain of a number.
    pub(super) fn content(self, number: u64) -> Content {
        use super::super::scripted::{DISCARDED, ERASED};
        match self.op() {
            Op::Discard { .. } => Content::Fill(DISCARDED),
            Op::SecureErase => Content::Fill(ERASED),
            Op::WriteZeroes { .. } => Content::Fill(0),
            _ => Content::Stamp(number),
        }
    }

    /// What a queue writes to memory in answer.
    pub(super) fn answer(self, config: &QueueConfig) -> Option<&[u8]> {
        match self {
            Self::Command(PassthroughCommand::DeviceId) => Some(&config.device_id),
            Self::Command(PassthroughCommand::Lifetime) => {
                config.lifetime.as_ref().map(|lifetime| &lifetime[..])
            }
            _ => None,
        }
    }

    /// How it has to end, when nothing, or something, was seen to fail on a disk that can erase or not.
    pub(super) fn status(
        self,
        config: &QueueConfig,
        ranges: &[Range<u64>],
        failed: bool,
        erases: bool,
    ) -> Status {
        let unit = config.limits.unit();
        let whole = |range: &Range<u64>| range.start.is_multiple_of(unit) && range.end.is_multiple_of(unit);
        match self {
            Self::Command(PassthroughCommand::SecureErase) if !config.secure_erase => Status::NotSupp,
            Self::Command(PassthroughCommand::SecureErase) if !erases || !ranges.iter().all(whole) => {
                Status::IoErr
            }
            Self::Command(_) if self.op() == Op::DeviceId => match self.answer(config) {
                Some(_) => Status::Ok,
                None => Status::NotSupp,
            },
            _ if failed => Status::IoErr,
            _ => Status::Ok,
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) asked: Asked,
    pub(super) ranges: Vec<Range<u64>>,
    /// The pieces of memory.
    pub(super) pieces: Vec<(u64, usize)>,
    /// They are in the memory that cannot be pinned.
    pub(super) secret: bool,
}

impl Ask {
    /// Anything; its memory is in the part that a slot has.
    pub(super) fn random(dice: &mut Dice, limits: &QueueLimits, slot: usize) -> Self {
        let asked = Asked::random(dice);
        let ranges = random_ranges(dice, asked.op(), limits.logical_block_size.into());
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let bytes = if asked.op() == Op::DeviceId { dice.within(1..40) } else { bytes };
        let secret = limits.needs_pinning && bytes <= SECRET_WINDOW_BYTES / 2 && dice.chance(30);
        let window = if secret { SECRET_WINDOW_BYTES } else { WINDOW_BYTES };
        let pieces = if moves_memory(asked.op()) {
            random_pieces(dice, bytes, slot as u64 * window..(slot as u64 + 1) * window)
        } else {
            Vec::new()
        };
        Self { asked, ranges, pieces, secret }
    }

    /// Fills the memory in and around the pieces: with `content` for the disk where that is written, else with anything.
    /// Returns where that memory is, and what it has now.
    pub(super) fn fill_memory(&self, dice: &mut Dice, ram: &GuestRam, content: Content) -> (u64, Vec<u8>) {
        let (Some(first), Some(last)) = (self.pieces.first(), self.pieces.last()) else {
            return (0, Vec::new());
        };
        let (start, end) = (first.0 - 40, last.0 + last.1 as u64 + 40);
        let mut memory = dice.bytes(usize::try_from(end - start).expect("a window is small"));
        if let Asked::Bios(Op::Write { .. }) = self.asked {
            let sectors = super::sectors(&self.ranges[0]);
            let data: Vec<u8> = sectors.flat_map(|sector| content.bytes(sector)).collect();
            let mut left = &data[..];
            for (addr, len) in &self.pieces {
                let (now, later) = left.split_at(*len);
                let at = usize::try_from(addr - start).expect("a window is small");
                memory[at..at + len].copy_from_slice(now);
                left = later;
            }
        }
        ram.list([(start, memory.len())]).write(&memory);
        (start, memory)
    }

    /// Bios for it, as many as that takes and sometimes more.
    pub(super) fn build(&self, dice: &mut Dice, queue: &mut RequestQueue, ram: &GuestRam) -> BioChain {
        let op = self.asked.op();
        let whole = |range: &Range<u64>| {
            let len = range.end - range.start;
            DiskRange::new(Sector(range.start / 512), len, Sector(SECTORS as u64), 512).expect("on the disk")
        };
        let mut chain = BioChain::new();
        if !moves_memory(op) {
            for range in &self.ranges {
                chain.push(queue.bios().try_take(op, whole(range)).expect("room was seen"));
            }
            if chain.is_empty() {
                chain.push(queue.bios().try_take(op, DiskRange::none()).expect("room was seen"));
            }
            return chain;
        }
        let mut range = self.ranges.first().map_or(DiskRange::none(), whole);
        let mut pieces = self.pieces.iter().copied();
        let (mut next, mut early) = (pieces.next(), 4);
        let arena = queue.arena().clone();
        while next.is_some() {
            let bio = chain.push(queue.bios().try_take(op, DiskRange::none()).expect("room was seen"));
            while let Some((addr, len)) = next {
                let pushed = bio.sg.push_guest(ram.pin(), addr, len, &arena).expect("room was seen");
                if pushed < len {
                    next = Some((addr + pushed as u64, len - pushed));
                    break;
                }
                next = pieces.next();
                if early > 0 && dice.chance(5) {
                    early -= 1;
                    break;
                }
            }
            let bytes = bio.sg.bytes() as u64;
            bio.range = if op == Op::DeviceId { DiskRange::none() } else { range.take_front(bytes) };
        }
        assert!(chain.len() <= BioSet::CHAIN_MAX, "the simulation makes legal chains");
        chain
    }

    /// Submits `chain`, or makes a request of it and executes that. False when there was no memory for that: then the
    /// chain came back as it was.
    pub(super) fn start(
        &self,
        dice: &mut Dice,
        queue: &mut RequestQueue,
        chain: BioChain,
        cookie: u32,
    ) -> bool {
        let Asked::Command(command) = self.asked else {
            queue.submit(chain, cookie).expect("not full");
            return true;
        };
        let before = shapes(&chain);
        // Memory that somebody else has just taken.
        let count = if dice.chance(30) { usize::MAX } else { 0 };
        let arena = queue.arena().clone();
        let hogs: Vec<_> = (0..count).map_while(|_| kzalloc(&arena, 64, Gfp::NOWAIT).ok()).collect();
        let made = queue.make_request(chain, if dice.chance(50) { Gfp::NOWAIT } else { Gfp::ATOMIC });
        drop(hogs);
        match made {
            Ok(request) => {
                queue.execute(request.with(command), cookie).expect("not full");
                true
            }
            Err(Refused { chain, reason }) => {
                assert_eq!((reason, shapes(&chain)), (RefuseReason::NoMemory, before));
                queue.bios().put_chain(chain);
                false
            }
        }
    }
}

/// What of the disk is concerned: mostly where others are too.
fn random_ranges(dice: &mut Dice, op: Op, block: u64) -> Vec<Range<u64>> {
    let count = match op {
        Op::Flush | Op::DeviceId => 0,
        Op::Discard { .. } | Op::WriteZeroes { .. } | Op::SecureErase => dice.within(1..4),
        _ => 1,
    };
    let disk = if dice.chance(60) { 4 * 4096 } else { SECTORS as u64 * 512 };
    let most = dice.pick(&[1, 1, 3, 9, 40, 80]);
    (0..count)
        .map(|_| {
            let blocks = disk / block;
            let len = dice.within(1..most + 1).min(blocks).min((40 << 10) / block);
            let start = dice.within(0..blocks - len + 1);
            start * block..(start + len) * block
        })
        .collect()
}

/// Memory of so many bytes, not at the edges of its window: aligned or not, in pieces that are large or tiny.
fn random_pieces(dice: &mut Dice, bytes: u64, window: Range<u64>) -> Vec<(u64, usize)> {
    let (unit, most) = match dice.within(0..6) {
        0 | 1 => (4096, 3),
        2 => (512, 4),
        3 if bytes <= 8 << 10 => (1, 20),
        4 => (4, 2000),
        _ => (1, 6000),
    };
    let margin = 1024;
    let start = window.start + margin;
    let at = start.next_multiple_of(unit) + dice.within(0..3) * unit.min(512);
    pieces(dice, bytes, (unit, most), at..window.end - margin)
}
