//! What a cut bio is, against a naive model.

use proptest::prelude::*;
use sluice_mem::PAGE_SIZE;
use sluice_mem::gfp::Gfp;
use sluice_mem::kzalloc::Arena;

use super::*;
use crate::bio::BioSet;
use crate::doubles::guest_ram::GuestRam;
use crate::sector::{DiskRange, Sector};

fn limits() -> impl Strategy<Value = QueueLimits> {
    let block = prop_oneof![Just(512), Just(4096)];
    let alignment = prop_oneof![Just(1), Just(4), Just(512), Just(4096)];
    let most = prop_oneof![Just(4096), Just(12288), Just(65536), Just(1 << 20)];
    (block, alignment, most).prop_map(|(logical_block_size, dma_alignment, max_bytes)| QueueLimits {
        logical_block_size,
        dma_alignment,
        max_bytes,
        ..QueueLimits::default()
    })
}

/// Gaps and lengths of pieces of memory, most of them multiples of something.
fn pieces() -> impl Strategy<Value = Vec<(u64, usize)>> {
    let unit = prop_oneof![Just(1), Just(4), Just(512), Just(4096)];
    (unit, prop::collection::vec((0..3_u64, 1..40_usize), 1..60)).prop_map(|(unit, pieces)| {
        pieces
            .into_iter()
            .map(|(gap, len)| (gap * unit, len * usize::try_from(unit).expect("small")))
            .collect()
    })
}

proptest! {
    #[test]
    fn pieces_of_a_bio_tile_it_and_are_legal(limits in limits(), pieces in pieces(), write: bool) {
        let (ram, arena) = (GuestRam::new(1, 4096), Arena::new(8 * PAGE_SIZE, 0).expect("8 pages"));
        let mut at = 0;
        let sg = ram.list(pieces.into_iter().map(|(gap, len)| {
            let addr = at + gap;
            at = addr + len as u64;
            (addr, len)
        }));
        let op = if write { Op::Write { fua: false } } else { Op::Read };
        let mut bio = BioSet::new(1).try_take(op, DiskRange::none()).expect("a bio is free");
        let mut whole = DiskRange::new(Sector(8), 16 << 20, Sector(1 << 20), 512).expect("inside");
        bio.range = whole.take_front(sg.bytes() as u64);
        bio.sg = sg;
        let (block, most) = (u64::from(limits.logical_block_size), u64::from(limits.max_bytes));
        let mut next_offset = bio.range.offset();
        while bio.range.len() > 0 {
            let piece = next_piece(&bio, &limits);
            if bio.range.len() < block {
                prop_assert_eq!(piece, Piece { bytes: block, bounce: Some(BounceReason::Fragmented) });
                break;
            }
            prop_assert!(piece.bytes > 0 && piece.bytes.is_multiple_of(block) && piece.bytes <= most);
            // As much as is allowed.
            prop_assert!(bio.range.len() - piece.bytes < block || piece.bytes + block > most);
            let front = bio.range.take_front(piece.bytes);
            prop_assert_eq!(front.offset(), next_offset);
            next_offset += front.len();
            let count = usize::try_from(piece.bytes).expect("small");
            let start = limits.dma_alignment as usize;
            let length = start.min(limits.logical_block_size as usize);
            let before = is_aligned(bio.sg.pieces().iter().map(|p| (p.as_ptr().addr(), p.len())), start, start);
            let memory = bio.sg.split_front(count, &arena, Gfp::Nowait).expect("8 pages");
            let after = is_aligned(memory.pieces().iter().map(|p| (p.as_ptr().addr(), p.len())), start, length);
            match piece.bounce {
                None => prop_assert!(after, "{:?}", memory.pieces()),
                Some(reason) => {
                    prop_assert_eq!(reason, BounceReason::Misaligned);
                    prop_assert!(!before);
                }
            }
        }
    }

    #[test]
    fn what_has_no_memory_is_one_piece_and_zeroes_are_many(
        limits in limits(),
        blocks in 0..100_000_u64,
        unmap: bool,
        fua: bool,
    ) {
        let len = blocks * u64::from(limits.logical_block_size);
        let range = DiskRange::new(Sector(0), len, Sector(u64::MAX), 512).expect("inside");
        let mut bio = BioSet::new(1).try_take(Op::Flush, range).expect("a bio is free");
        for op in [Op::Flush, Op::Discard { fua }, Op::WriteZeroes { unmap, fua }] {
            bio.op = op;
            prop_assert_eq!(next_piece(&bio, &limits), Piece { bytes: len, bounce: None });
        }
        bio.zero_by_writing = true;
        let mut left = len;
        while left > 0 {
            let piece = next_piece(&bio, &limits);
            prop_assert_eq!(piece.bounce, Some(BounceReason::Zeroes));
            prop_assert_eq!(piece.bytes, left.min(limits.max_bytes.into()));
            left -= bio.range.take_front(piece.bytes).len();
        }
    }
}

/// Whether all pieces start at multiples of `start` and are multiples of `length` long.
fn is_aligned(pieces: impl Iterator<Item = (usize, usize)>, start: usize, length: usize) -> bool {
    pieces.into_iter().all(|(addr, len)| addr % start == 0 && len % length == 0)
}
