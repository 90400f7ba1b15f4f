//! What a list of pieces promises.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::guest::GuestMem;
use crate::region::{Region, RegionInfo};

/// A file in memory of `pages` pages, each byte numbered.
fn numbered(pages: usize) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let bytes: Vec<u8> = (0..=250u8).cycle().take(pages * PAGE_SIZE).collect();
    file.write_all(&bytes).expect("room in the temporary directory");
    file
}

fn region(guest_addr: u64, pages: usize) -> Region {
    let info =
        RegionInfo { guest_addr, size: (pages * PAGE_SIZE) as u64, user_addr: guest_addr, mmap_offset: 0 };
    Region::map(info, numbered(pages)).expect("a good region")
}

/// Two adjacent regions of two pages, a hole, and a region of two pages.
fn memory() -> MemPin {
    let regions = vec![region(0x1000, 2), region(0x3000, 2), region(0x8000, 2)];
    MemPin::new(Arc::new(GuestMem::new(regions).expect("disjoint")))
}

fn arena() -> Arena {
    Arena::new(64 * PAGE_SIZE, 0).expect("64 pages")
}

impl SgList {
    /// The bytes of all pieces.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.bytes()];
        assert_eq!(self.read(&mut all), all.len());
        all
    }
}

#[test]
fn a_range_over_two_regions_is_two_pieces() {
    let mut list = SgList::new();
    assert_eq!(list.push_guest(&memory(), 0x2ff0, 0x20, &arena()), Ok(0x20));
    assert_eq!(list.pieces().iter().map(IoVec::len).collect::<Vec<_>>(), [0x10, 0x10]);
}

#[test]
fn a_range_into_a_hole_is_an_error() {
    for (addr, len) in [(0x4ff0, 0x20), (0x5000, 1), (0, 1), (0xa000, 1), (u64::MAX, 2)] {
        let answer = SgList::new().push_guest(&memory(), addr, len, &arena());
        assert!(matches!(answer, Err(SgError::Address(_))), "{len} bytes at {addr:#x}: {answer:?}");
    }
}

#[test]
fn neighbours_merge() {
    let (pin, arena, mut list) = (memory(), arena(), SgList::new());
    for page in 0..2 {
        list.push_guest(&pin, 0x1000 + page * 0x1000, 0x1000, &arena).expect("mapped");
    }
    assert_eq!((list.pieces().len(), list.bytes()), (1, 0x2000));
}

#[test]
fn a_full_list_says_how_much_it_took() {
    let (pin, arena, mut list) = (memory(), arena(), SgList::new());
    for i in 0..SgList::CAPACITY as u64 {
        assert_eq!(list.push_guest(&pin, 0x1000 + 16 * i, 8, &arena), Ok(8), "piece {i}");
    }
    assert_eq!(list.push_guest(&pin, 0x8000, 8, &arena), Ok(0));
    assert_eq!(list.pieces().len(), SgList::CAPACITY);
}

#[test]
fn a_table_goes_back_to_its_arena() {
    let (pin, arena, mut list) = (memory(), arena(), SgList::new());
    for i in 0..10 {
        list.push_guest(&pin, 0x1000 + 16 * i, 8, &arena).expect("mapped");
    }
    assert_eq!(arena.used_pages(), 1);
    list.clear();
    assert_eq!(arena.used_pages(), 0);
}

#[test]
fn a_list_without_a_page_for_its_table_takes_what_fits() {
    let (pin, full, mut list) = (memory(), Arena::new(1, 1).expect("a reserve"), SgList::new());
    for i in 0..4 {
        assert_eq!(list.push_guest(&pin, 0x1000 + 16 * i, 8, &full), Ok(8));
    }
    let refused = list.push_guest(&pin, 0x1800, 8, &full);
    assert!(matches!(refused, Err(SgError::Memory(_))), "{refused:?}");
    assert_eq!(list.push_guest(&pin, 0x1000 + 16 * 3 + 8, 8, &full), Ok(8), "a neighbour needs no room");
    assert_eq!((list.pieces().len(), list.bytes()), (4, 40));
}

#[test]
fn a_list_that_cannot_be_split_is_as_it_was() {
    let (pin, arena, mut list) = (memory(), arena(), SgList::new());
    for i in 0..10 {
        list.push_guest(&pin, 0x1000 + 16 * i, 8, &arena).expect("mapped");
    }
    let (before, full) = (list.to_vec(), Arena::new(1, 1).expect("a reserve"));
    assert!(list.split_front(40, &full, Gfp::NOWAIT).is_err());
    assert_eq!(list.to_vec(), before);
    assert!(list.split_front(32, &full, Gfp::NOWAIT).is_ok(), "four pieces need no table");
    assert!(list.split_front(40, &full, Gfp::ATOMIC).is_ok());
    assert_eq!(list.to_vec(), before[72..]);
}

#[test]
#[should_panic(expected = "a list has pieces of one snapshot")]
fn a_list_of_two_snapshots_is_a_mistake_of_ours() {
    let mut list = SgList::new();
    list.push_guest(&memory(), 0x1000, 8, &arena()).expect("mapped");
    let _ = list.push_guest(&memory(), 0x1010, 8, &arena());
}

#[test]
#[should_panic(expected = "9 bytes of a list of 8")]
fn more_than_a_list_has_cannot_be_dropped() {
    let mut list = SgList::new();
    list.push_guest(&memory(), 0x1000, 8, &arena()).expect("mapped");
    list.advance(9);
}

#[test]
fn a_list_is_aligned_when_all_its_pieces_start_and_end_so() {
    let arena = arena();
    for (pieces, alignment) in [
        (&[(0x1000, 0x1000), (0x8000, 0x200)][..], 512),
        (&[(0x1000, 0x1000), (0x8000, 0x1000)], 4096),
        (&[(0x1200, 0x200), (0x8000, 0x204)], 4),
        (&[(0x1200, 0x200), (0x8002, 0x200)], 2),
        (&[(0x1001, 1)], 1),
        (&[], 4096),
    ] {
        let (pin, mut list) = (memory(), SgList::new());
        for (addr, len) in pieces {
            list.push_guest(&pin, *addr, *len, &arena).expect("mapped");
        }
        for power in 0..13 {
            let is = list.is_aligned(list.bytes(), 1 << power, 1 << power);
            assert_eq!(is, 1 << power <= alignment, "{pieces:x?} to {}", 1 << power);
        }
    }
}

#[test]
fn addresses_and_lengths_are_aligned_each_on_its_own_and_only_as_far_as_is_asked() {
    let (pin, arena, mut list) = (memory(), arena(), SgList::new());
    for (addr, len) in [(0x1010, 0x200), (0x8000, 0x410), (0x9001, 3)] {
        list.push_guest(&pin, addr, len, &arena).expect("mapped");
    }
    for (count, address, length, is) in [
        (0, 4096, 4096, true),
        (0x200, 16, 0x200, true),
        (0x200, 32, 0x200, false),
        (0x1f0, 16, 0x200, false),
        (0x400, 16, 0x200, true),
        (0x600, 16, 0x200, true),
        (0x610, 16, 0x200, false),
        (0x610, 16, 16, true),
        (0x611, 1, 1, true),
        (0x611, 2, 1, false),
    ] {
        assert_eq!(list.is_aligned(count, address, length), is, "{count:#x} bytes to {address}, {length}");
    }
}

#[test]
fn bytes_are_written_as_far_as_there_is_memory() {
    let (pin, arena, mut list) = (memory(), arena(), SgList::new());
    list.push_guest(&pin, 0x2ffe, 4, &arena).expect("two regions");
    assert_eq!(list.write(&[1, 2, 3]), 3);
    assert_eq!(list.to_vec()[..3], [1, 2, 3]);
    assert_eq!(list.write(&[9; 10]), 4);
    assert_eq!(list.to_vec(), [9; 4]);
    let mut read = [7; 6];
    assert_eq!(list.read(&mut read), 4);
    assert_eq!(read, [9, 9, 9, 9, 7, 7]);
    assert_eq!(list.read(&mut read[..1]), 1);
    list.zero(1, 2);
    assert_eq!(list.to_vec(), [9, 0, 0, 9]);
    list.zero(0, list.bytes());
    assert_eq!(list.to_vec(), [0; 4]);
    let mut around = [0; 6];
    pin.read(0x2ffd, &mut around).expect("mapped");
    assert!(around[0] != 0 && around[5] != 0, "only the list's bytes");
}

#[test]
fn a_guest_may_name_the_same_memory_twice() {
    let (pin, arena) = (memory(), arena());
    let mut lists = [SgList::new(), SgList::new()];
    lists[0].push_guest(&pin, 0x1000, 100, &arena).expect("mapped");
    lists[1].push_guest(&pin, 0x1010, 100, &arena).expect("mapped");
    let before = lists[0].to_vec();
    lists[1].copy_from(0, &lists[0], 0, 100);
    assert_eq!(lists[1].to_vec(), before);
}

fn fragments() -> impl Strategy<Value = Vec<(u64, usize)>> {
    prop::collection::vec((0x1000..0x4000u64, 1..0x400usize), 1..40)
}

proptest! {
    #[test]
    fn splitting_and_advancing_keep_the_bytes_in_order(pieces in fragments(), cut in 0..1000usize) {
        let (pin, arena, mut list) = (memory(), arena(), SgList::new());
        for (addr, len) in pieces {
            list.push_guest(&pin, addr, len, &arena).expect("mapped");
        }
        let all = list.to_vec();
        let at = all.len() * cut / 1000;
        let mut front = list.split_front(at, &arena, Gfp::NOWAIT).expect("64 pages");
        prop_assert_eq!(front.to_vec(), &all[..at]);
        prop_assert_eq!(list.to_vec(), &all[at..]);
        prop_assert_eq!(front.bytes() + list.bytes(), all.len());
        front.advance(at / 2);
        prop_assert_eq!(front.to_vec(), &all[at / 2..at]);
    }

    #[test]
    fn a_copy_is_the_same_bytes_whatever_the_pieces(pieces in fragments()) {
        let (pin, arena, mut list) = (memory(), arena(), SgList::new());
        for (addr, len) in pieces {
            list.push_guest(&pin, addr, len, &arena).expect("mapped");
        }
        let copy = SgList::alloc(&arena, list.bytes(), Gfp::NOWAIT).expect("64 pages");
        copy.copy_from(0, &list, 0, list.bytes());
        prop_assert_eq!(copy.to_vec(), list.to_vec());
        let skip = list.bytes() / 3;
        let shifted = SgList::alloc(&arena, list.bytes(), Gfp::NOWAIT).expect("64 pages");
        shifted.copy_from(skip, &list, skip / 2, list.bytes() - skip);
        prop_assert_eq!(&shifted.to_vec()[skip..], &list.to_vec()[skip / 2..list.bytes() - skip + skip / 2]);
        prop_assert!(shifted.to_vec()[..skip].iter().all(|byte| *byte == 0));
        shifted.zero(skip, list.bytes() / 2);
        prop_assert!(shifted.to_vec()[..skip + list.bytes() / 2].iter().all(|byte| *byte == 0));
    }
}
