//! What a cut bio is, against a naive model.

use proptest::prelude::*;
use sluice_mem::PAGE_SIZE;
use sluice_mem::gfp::Gfp;
use sluice_mem::kzalloc::Arena;
use sluice_mem::sglist::SgList;

use super::*;
use crate::bio::BioSet;
use crate::doubles::guest_ram::GuestRam;
use crate::sector::{DiskRange, Sector};

fn limits() -> impl Strategy<Value = QueueLimits> {
    let blocks = prop_oneof![Just((512, 512)), Just((4096, 512)), Just((512, 4096)), Just((4096, 4096))];
    let address = prop_oneof![Just(1), Just(4), Just(512), Just(4096)];
    let length = prop_oneof![Just(1), Just(512)];
    let most = prop_oneof![Just(4096), Just(12288), Just(65536), Just(1 << 20)];
    (blocks, address, length, most, any::<(bool, bool)>()).prop_map(
        |(blocks, address, length, most, (stable_writes, detached))| {
            QueueLimits {
                logical_block_size: blocks.0,
                disk_block_size: blocks.1,
                dma_alignment: address,
                // Direct I/O asks for whole blocks.
                length_alignment: if length == 512 { blocks.1 } else { 1 },
                stable_writes,
                detached,
                max_bytes: most,
                ..QueueLimits::default()
            }
        },
    )
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

/// A bio on the disk from sector `start` on, for `sg`.
fn bio(op: Op, start: u64, sg: SgList) -> Box<Bio> {
    let mut bio = BioSet::new(1).try_take(op, DiskRange::none()).expect("a bio is free");
    let mut whole = DiskRange::new(Sector(start), 16 << 20, Sector(1 << 20), 512).expect("inside");
    bio.range = whole.take_front(sg.bytes() as u64);
    bio.sg = sg;
    bio
}

/// Whether all pieces start at multiples of `start` and are multiples of `length` long.
fn is_aligned(sg: &SgList, start: u32, length: u32) -> bool {
    let (start, length) = (start as usize, length as usize);
    sg.pieces().iter().all(|p| p.as_ptr().addr().is_multiple_of(start) && p.len().is_multiple_of(length))
}

proptest! {
    #[test]
    fn pieces_of_a_bio_tile_it_and_are_legal(
        limits in limits(), start in 0..40_u64, pieces in pieces(), write: bool,
    ) {
        let (ram, arena) = (GuestRam::new(1, 4096), Arena::new(8 * PAGE_SIZE, 0).expect("8 pages"));
        let mut at = 0;
        let sg = ram.list(pieces.into_iter().map(|(gap, len)| {
            let addr = at + gap;
            at = addr + len as u64;
            (addr, len)
        }));
        let logical = u64::from(limits.logical_block_size);
        let mut bio = bio(if write { Op::Write { fua: false } } else { Op::Read }, start * (logical / 512), sg);
        let (block, most) = (limits.unit(), u64::from(limits.max_bytes));
        let mut next_offset = bio.range.offset();
        while bio.range.len() > 0 {
            let (offset, left) = (bio.range.offset(), bio.range.len());
            let piece = next_piece(&bio, &limits);
            let whole_block_here = offset.is_multiple_of(block) && left >= block;
            if !limits.has_partial_blocks() && !whole_block_here {
                let expected = Piece { bytes: logical, bounce: Some(BounceReason::Fragmented) };
                prop_assert_eq!(piece, expected, "the rest of a logical block is in the next bio");
                break;
            }
            prop_assert!(piece.bytes > 0 && piece.bytes <= left);
            if whole_block_here {
                prop_assert!(piece.bytes.is_multiple_of(block) && piece.bytes <= most);
                // As much as is allowed.
                prop_assert!(left - piece.bytes < block || piece.bytes + block > most);
            } else {
                let end_of_block = (offset + 1).next_multiple_of(block);
                let expected = Piece {
                    bytes: left.min(end_of_block - offset),
                    bounce: Some(BounceReason::PartialBlock),
                };
                prop_assert_eq!(piece, expected);
            }
            let front = bio.range.take_front(piece.bytes);
            prop_assert_eq!(front.offset(), next_offset);
            next_offset += front.len();
            let count = usize::try_from(piece.bytes).expect("small");
            let memory = bio.sg.split_front(count, &arena, Gfp::NOWAIT).expect("8 pages");
            let fits = is_aligned(&memory, limits.dma_alignment, limits.length_alignment);
            let stable = limits.stable_writes && write;
            match piece.bounce {
                _ if !whole_block_here => {}
                None => prop_assert!(fits && !stable && !limits.detached, "{:?}", memory.pieces()),
                Some(BounceReason::Misaligned) => prop_assert!(!fits),
                Some(BounceReason::StableWrites) => prop_assert!(fits && stable),
                Some(reason) => prop_assert!(
                    reason == BounceReason::Detached && fits && !stable && limits.detached
                ),
            }
        }
    }

    #[test]
    fn a_transfer_is_taken_as_it_is_if_it_is_one_piece_in_place_and_of_one_buffer(
        limits in limits(), start in 0..40_u64, pieces in pieces(), write: bool, alone: bool,
    ) {
        let ram = GuestRam::new(1, 4096);
        let count = if alone { 1 } else { 2 };
        let mut at = 0;
        let sg = ram.list(pieces.into_iter().take(count).map(|(gap, len)| {
            let addr = at + gap;
            at = addr + len as u64;
            (addr, len)
        }));
        let is_one = sg.pieces().len() == 1;
        let bio = bio(if write { Op::Write { fua: false } } else { Op::Read }, start, sg);
        let is_alone = !write || !limits.has_partial_blocks();
        let whole = Piece { bytes: bio.range.len(), bounce: None };
        let expected = next_piece(&bio, &limits) == whole && is_one && is_alone;
        // A bio begins at a logical block.
        if (start * 512).is_multiple_of(limits.logical_block_size.into()) {
            prop_assert_eq!(AsItIs::within(&limits).takes(&bio), expected);
        }
    }

    #[test]
    fn what_has_no_memory_is_one_piece_and_zeroes_are_many(
        limits in limits(),
        start in 0..20_u64,
        blocks in 0..100_000_u64,
        unmap: bool,
        fua: bool,
    ) {
        let (logical, unit) = (u64::from(limits.logical_block_size), limits.unit());
        let len = blocks * logical;
        let whole = DiskRange::new(Sector(start * (logical / 512)), len, Sector(u64::MAX), 512).expect("inside");
        let mut bio = BioSet::new(1).try_take(Op::Flush, whole).expect("a bio is free");
        prop_assert_eq!(next_piece(&bio, &limits), Piece { bytes: len, bounce: None });
        for op in [Op::Discard { fua }, Op::WriteZeroes { unmap, fua }, Op::SecureErase] {
            for by_writing in [false, true] {
                (bio.op, bio.range, bio.zero_by_writing) = (op, whole, by_writing);
                let most = if by_writing { limits.max_bytes.into() } else { u64::MAX };
                while bio.range.len() > 0 {
                    let piece = next_piece(&bio, &limits);
                    let (offset, left) = (bio.range.offset(), bio.range.len());
                    let expected = if offset.is_multiple_of(unit) && left >= unit {
                        let bytes = left.min(most);
                        let reason = by_writing.then_some(BounceReason::Zeroes);
                        Piece { bytes: bytes - bytes % unit, bounce: reason }
                    } else {
                        let bytes = left.min((offset + 1).next_multiple_of(unit) - offset);
                        Piece { bytes, bounce: Some(BounceReason::PartialBlock) }
                    };
                    prop_assert_eq!(piece, expected);
                    let _ = bio.range.take_front(piece.bytes);
                }
            }
        }
    }
}

/// A disk with direct I/O and blocks of 4096 bytes, of which the guest sees eighths.
fn large_blocks() -> QueueLimits {
    QueueLimits {
        disk_block_size: 4096,
        dma_alignment: 512,
        length_alignment: 4096,
        needs_pinning: true,
        ..QueueLimits::default()
    }
}

#[test]
fn the_part_of_a_buffer_that_fits_is_not_bounced_for_the_part_that_does_not() {
    let ram = GuestRam::new(1, 16);
    let read = bio(Op::Read, 8, ram.list([(0, 10240)]));
    assert_eq!(next_piece(&read, &large_blocks()), Piece { bytes: 8192, bounce: None });
    let limits = QueueLimits { max_bytes: 4096, ..large_blocks() };
    let read = bio(Op::Read, 8, ram.list([(0, 4096), (8192 + 7, 4096)]));
    assert_eq!(next_piece(&read, &limits), Piece { bytes: 4096, bounce: None });
}

#[test]
fn memory_that_cannot_be_pinned_is_bounced_where_the_disk_has_to_pin_it() {
    let Some(secret) = GuestRam::secret(4) else { return };
    let read = bio(Op::Read, 0, secret.list([(4096, 8192)]));
    let piece = |needs_pinning| {
        let limits = QueueLimits { needs_pinning, ..large_blocks() };
        next_piece(&read, &limits).bounce
    };
    assert_eq!((piece(true), piece(false)), (Some(BounceReason::Unaddressable), None));
}
