//! What is zero, what is bounded, and what comes back.

use proptest::prelude::*;

use super::*;
use crate::gfp::MayWait;

fn bytes(memory: &KBox) -> Vec<u8> {
    // SAFETY: the memory is valid for `len` bytes and nobody writes to it meanwhile.
    unsafe { std::slice::from_raw_parts(memory.as_ptr().as_ptr(), memory.len()) }.to_vec()
}

fn fill(memory: &KBox) {
    // SAFETY: the memory is valid for `len` bytes and has no other user.
    unsafe { memory.as_ptr().write_bytes(0xaa, memory.len()) };
}

#[test]
fn the_memory_is_set_to_zero_also_when_it_is_reused() {
    let arena = Arena::new(PAGE_SIZE, 0).expect("one page");
    for size in [16, 4096, 1, 512, 4095, 4096] {
        let memory = kzalloc(&arena, size, Gfp::NOWAIT).expect("the only page is free");
        assert_eq!(bytes(&memory), vec![0; size], "old bytes in {size} bytes");
        fill(&memory);
    }
}

#[test]
fn memory_starts_on_a_page() {
    let arena = Arena::new(3 * PAGE_SIZE, 0).expect("three pages");
    let all: Vec<_> = (0..3).map(|_| kzalloc(&arena, 9, Gfp::NOWAIT).expect("a page")).collect();
    assert!(all.iter().all(|m| m.as_ptr().as_ptr().addr().is_multiple_of(PAGE_SIZE)));
}

#[test]
fn an_arena_is_bounded_and_memory_comes_back() {
    let arena = Arena::new(2 * PAGE_SIZE, 0).expect("two pages");
    let first = kzalloc(&arena, 1, Gfp::NOWAIT).expect("two are free");
    let _second = kzalloc(&arena, 1, Gfp::NOWAIT).expect("one is free");
    assert_eq!(kzalloc(&arena, 1, Gfp::NOWAIT).err(), Some(AllocError::Exhausted { pages: 2, reserve: 0 }));
    drop(first);
    assert!(kzalloc(&arena, 1, Gfp::NOWAIT).is_ok());
}

#[test]
fn only_atomic_allocations_use_the_reserve() {
    let arena = Arena::new(2 * PAGE_SIZE, PAGE_SIZE).expect("two pages");
    let _first = kzalloc(&arena, 1, Gfp::NOWAIT).expect("one page is no reserve");
    assert_eq!(kzalloc(&arena, 1, Gfp::NOWAIT).err(), Some(AllocError::Exhausted { pages: 2, reserve: 1 }));
    assert!(kzalloc(&arena, 1, Gfp::ATOMIC).is_ok());
}

#[test]
fn a_list_of_pages_is_all_or_nothing_and_zero() {
    let arena = Arena::new(3 * PAGE_SIZE, 0).expect("three pages");
    for round in 0..3 {
        let pages = Pages::alloc(&arena, 2 * PAGE_SIZE + 10, Gfp::NOWAIT).expect("three are free");
        let mut sizes = Vec::new();
        pages.for_each(|ptr, len| {
            sizes.push(len);
            // SAFETY: `len` bytes of memory that only this test uses.
            let memory = unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), len) };
            assert!(memory.iter().all(|byte| *byte == 0), "old bytes in round {round}");
            memory.fill(0x55);
        });
        assert_eq!(sizes, [PAGE_SIZE, PAGE_SIZE, 10]);
        assert_eq!(arena.available_pages(Gfp::ATOMIC), 0);
    }
    let _one = kzalloc(&arena, 1, Gfp::NOWAIT).expect("three are free");
    assert!(Pages::alloc(&arena, 3 * PAGE_SIZE, Gfp::NOWAIT).is_err());
    assert_eq!(arena.available_pages(Gfp::ATOMIC), 2);
}

#[test]
fn more_than_a_page_is_refused() {
    let arena = Arena::new(4 * PAGE_SIZE, 0).expect("four pages");
    assert_eq!(kzalloc(&arena, 4097, Gfp::NOWAIT).err(), Some(AllocError::TooLarge { size: 4097 }));
}

/// Fills pages that have to be zero, and returns where they are.
fn use_up(pages: &Pages) -> Vec<(usize, usize)> {
    let mut pieces = Vec::new();
    pages.for_each(|ptr, len| {
        // SAFETY: `len` bytes of memory that only this test uses.
        let memory = unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), len) };
        assert!(memory.iter().all(|byte| *byte == 0), "old bytes");
        memory.fill(0xa5);
        pieces.push((ptr.as_ptr().addr(), len));
    });
    pieces
}

proptest! {
    #[test]
    fn memory_is_zero_and_nobody_elses_and_all_comes_back(
        steps in prop::collection::vec((0..9_usize, 1..5 * PAGE_SIZE, any::<bool>()), 1..120),
    ) {
        let (pages, reserve) = (12, 3);
        let arena = Arena::new(pages * PAGE_SIZE, reserve * PAGE_SIZE).expect("12 pages");
        let mut held: Vec<(Pages, Vec<(usize, usize)>)> = Vec::new();
        for (drop_one, size, atomic) in steps {
            if drop_one < held.len() {
                held.swap_remove(drop_one);
            }
            let in_use: usize = held.iter().map(|(_, pieces)| pieces.len()).sum();
            let (gfp, free) = if atomic {
                (Gfp::ATOMIC, pages - in_use)
            } else {
                (Gfp::NOWAIT, (pages - in_use).saturating_sub(reserve))
            };
            prop_assert_eq!((arena.used_pages(), arena.capacity_pages()), (in_use, pages));
            prop_assert!(arena.available_pages(gfp) <= free);
            prop_assert!(arena.prepare(free, gfp) && !arena.prepare(free + 1, gfp));
            prop_assert_eq!(arena.available_pages(gfp), free, "with a budget for all of it");
            let allocated = Pages::alloc(&arena, size, gfp);
            prop_assert_eq!(allocated.is_ok(), size.div_ceil(PAGE_SIZE) <= free);
            if let Ok(allocated) = allocated {
                let pieces = use_up(&allocated);
                prop_assert_eq!(pieces.iter().map(|piece| piece.1).sum::<usize>(), size);
                let theirs = held.iter().flat_map(|(_, pieces)| pieces).chain(&pieces);
                let mut starts: Vec<usize> = theirs.map(|piece| piece.0).collect();
                starts.sort_unstable();
                prop_assert!(starts.windows(2).all(|two| two[1] - two[0] >= PAGE_SIZE));
                held.push((allocated, pieces));
            }
        }
        drop(held);
        prop_assert_eq!(arena.used_pages(), 0);
    }
}

proptest! {
    #[test]
    fn what_can_be_prepared_can_be_had_and_that_is_what_the_arena_and_the_budget_have_room_for(
        steps in prop::collection::vec((0..5_usize, 0..130_usize, any::<bool>(), 0..200_usize), 1..60),
    ) {
        let (pages, reserve, limit) = (200, 40, 230);
        let budget = Budget::new("test", limit * PAGE_SIZE);
        let arena =
            Arena::within(&budget, pages * PAGE_SIZE, reserve * PAGE_SIZE, Gfp::NOWAIT).expect("all free");
        let mut held: Vec<Pages> = Vec::new();
        for (drop_one, count, atomic, others) in steps {
            if drop_one < held.len() {
                held.swap_remove(drop_one);
            }
            let gfp = if atomic { Gfp::ATOMIC } else { Gfp::NOWAIT };
            // Others take some of the budget for a while.
            let charged = budget.used() / PAGE_SIZE;
            let others = budget.charge(others.min(limit - charged) * PAGE_SIZE, Gfp::NOWAIT).expect("it is left");
            let used: usize = held.iter().map(|pages| pages.count).sum();
            let wanted = used + count + if atomic { 0 } else { reserve };
            let room = limit - others.bytes() / PAGE_SIZE;
            let fits = count == 0 || wanted <= pages && wanted.max(charged) <= room;
            prop_assert_eq!(arena.prepare(count, gfp), fits, "{} of {} used, {}", count, used, charged);
            prop_assert_eq!(arena.available_pages(gfp) >= count, fits);
            prop_assert!(budget.used() <= limit * PAGE_SIZE);
            let allocated = (count > 0).then(|| Pages::alloc(&arena, count * PAGE_SIZE, gfp));
            prop_assert!(allocated.as_ref().is_none_or(|allocated| allocated.is_ok() == fits));
            held.extend(allocated.and_then(Result::ok));
            drop(others);
        }
    }
}

#[test]
fn what_the_reserve_has_given_is_missing_from_what_others_may_have() {
    let budget = Budget::new("test", 1000 * PAGE_SIZE);
    let arena = Arena::within(&budget, 300 * PAGE_SIZE, 200 * PAGE_SIZE, Gfp::NOWAIT).expect("all fits");
    let _by_reserve = Pages::alloc(&arena, 190 * PAGE_SIZE, Gfp::ATOMIC).expect("it is free");
    assert!(!arena.prepare(1, Gfp::NOWAIT), "110 are free, and 200 of them would have to stay free");
    assert!(arena.prepare(110, Gfp::ATOMIC));
}

#[test]
fn a_reserve_is_no_larger_than_its_arena() {
    assert!(Arena::new(PAGE_SIZE, 2 * PAGE_SIZE).is_err());
    assert!(Arena::new(usize::MAX, 0).is_err());
    let arena = Arena::new(1, 1).expect("a page, which is the reserve");
    assert_eq!((arena.available_pages(Gfp::NOWAIT), arena.available_pages(Gfp::ATOMIC)), (0, 1));
    assert_eq!(arena.capacity_pages(), 1);
}

#[test]
fn memory_outlives_the_handle_of_its_arena() {
    let arena = Arena::new(PAGE_SIZE, 0).expect("one page");
    let memory = kzalloc(&arena, 64, Gfp::NOWAIT).expect("it is free");
    drop(arena);
    fill(&memory);
    assert_eq!(bytes(&memory), [0xaa; 64]);
}

#[test]
fn an_arena_is_charged_as_it_is_used_and_its_reserve_at_once() {
    let budget = Budget::new("test", 100 * PAGE_SIZE);
    let arena = Arena::within(&budget, 200 * PAGE_SIZE, 10 * PAGE_SIZE, Gfp::NOWAIT).expect("10 fit");
    assert_eq!(budget.used(), 10 * PAGE_SIZE);
    let page = kzalloc(&arena, 1, Gfp::NOWAIT).expect("90 are left");
    assert_eq!(budget.used(), (10 + Arena::STEP_PAGES) * PAGE_SIZE);
    assert!(arena.prepare(89, Gfp::NOWAIT));
    assert!(!arena.prepare(90, Gfp::NOWAIT), "the budget is used up");
    assert!(arena.prepare(99, Gfp::ATOMIC));
    drop((page, arena));
    assert_eq!(budget.used(), 0);
}

#[test]
fn an_arena_whose_reserve_is_over_the_budget_is_not_made() {
    let budget = Budget::new("device's", 4 * PAGE_SIZE);
    let error = Arena::within(&budget, 9 * PAGE_SIZE, 5 * PAGE_SIZE, Gfp::NOWAIT).expect_err("4 fit");
    assert!(error.to_string().contains("the device's budget of 16384 bytes"), "{error}");
}

#[test]
fn what_was_charged_stays_charged_so_that_memory_that_comes_back_can_be_had_again() {
    let budget = Budget::new("test", 100 * PAGE_SIZE);
    let arena = Arena::within(&budget, 100 * PAGE_SIZE, 0, Gfp::NOWAIT).expect("all fits");
    drop(Pages::alloc(&arena, 70 * PAGE_SIZE, Gfp::NOWAIT).expect("100 fit"));
    let others = budget.charge(30 * PAGE_SIZE, Gfp::NOWAIT).expect("30 are left");
    assert!(arena.prepare(70, Gfp::NOWAIT) && !arena.prepare(71, Gfp::NOWAIT));
    assert_eq!((arena.available_pages(Gfp::NOWAIT), budget.used()), (70, 100 * PAGE_SIZE));
    drop(others);
    assert!(arena.prepare(71, Gfp::NOWAIT));
}

#[test]
fn on_a_control_thread_an_allocation_waits_for_the_budget_and_elsewhere_it_does_not() {
    let budget = Budget::new("test", 4 * PAGE_SIZE);
    let others = budget.charge(3 * PAGE_SIZE, Gfp::NOWAIT).expect("all free");
    let (refused, goes_on) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let arena = Arena::within(&budget, 4 * PAGE_SIZE, 0, Gfp::NOWAIT).expect("nothing in reserve");
            assert!(Pages::alloc(&arena, 2 * PAGE_SIZE, Gfp::NOWAIT).is_err());
            let permission = MayWait::on_control_thread();
            let gfp = Gfp::kernel(&permission);
            assert!(Pages::alloc(&arena, 5 * PAGE_SIZE, gfp).is_err(), "it could never be had");
            refused.send(()).expect("the other thread waits for it");
            Pages::alloc(&arena, 2 * PAGE_SIZE, gfp).map(|pages| pages.len)
        });
        goes_on.recv().expect("the waiter comes so far");
        drop(others);
        assert_eq!(waiter.join().expect("no panic"), Ok(2 * PAGE_SIZE));
    });
}
