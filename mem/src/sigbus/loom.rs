//! A slot of the list of watched mappings, read by a signal handler while threads use it over again.

use std::ptr;

use ::loom::sync::{Arc, Mutex};
use ::loom::thread;

use super::*;

/// Two mappings: start, length, page.
const ONE: (usize, usize, usize) = (0x10_0000, 0x1000, 0x1000);
const OTHER: (usize, usize, usize) = (0x40_0000, 0x20_0000, 0x10_0000);

fn fill(slot: &Slot, (start, len, page): (usize, usize, usize)) {
    slot.fill(start, len, page, ptr::null());
}

/// An address that is in neither mapping, but would be in one that begins as the first and is as long as the other.
fn check(slot: &Slot) {
    assert_eq!(slot.find(ONE.0 + ONE.1), None, "a mixture of mappings");
}

#[test]
fn loom_a_slot_that_is_used_over_again_by_the_same_thread_is_read_whole() {
    ::loom::model(|| {
        let slot = Arc::new(Slot::free(None));
        fill(&slot, ONE);
        let writer = Arc::clone(&slot);
        let thread = thread::spawn(move || {
            writer.clear();
            fill(&writer, OTHER);
        });
        check(&slot);
        thread.join().unwrap();
        assert_eq!(slot.find(OTHER.0).map(|found| found.1), Some(OTHER.2));
    });
}

/// The free list, and its lock, are how the slot gets from one thread to the other.
#[test]
fn loom_a_slot_that_is_used_over_again_by_another_thread_is_read_whole() {
    ::loom::model(|| {
        let slot = Arc::new(Slot::free(None));
        fill(&slot, ONE);
        let free = Arc::new(Mutex::new(false));
        let (first, first_free) = (Arc::clone(&slot), Arc::clone(&free));
        let first = thread::spawn(move || {
            first.clear();
            *first_free.lock().unwrap() = true;
        });
        let (second, second_free) = (Arc::clone(&slot), Arc::clone(&free));
        let second = thread::spawn(move || {
            if *second_free.lock().unwrap() {
                fill(&second, OTHER);
            }
        });
        check(&slot);
        first.join().unwrap();
        second.join().unwrap();
    });
}
