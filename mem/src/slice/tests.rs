//! Copies in and out, and atomic numbers.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, Le32};

use super::*;
use crate::guest::GuestMem;

fn memory() -> Arc<GuestMem> {
    let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("memory");
    Arc::new(GuestMem::from_vm_memory(&theirs))
}

fn slice(addr: u64, len: usize) -> GuestSlice {
    MemPin::new(memory()).slice(addr, len).expect("mapped")
}

#[test]
fn values_are_read_as_they_were_written_wherever_they_lie() {
    let slice = slice(3, 100);
    assert!(slice.len() == 100 && !slice.is_empty());
    for offset in [0, 1, 5, 92] {
        slice.write(offset, 0x0102_0304_0506_0708_u64);
        assert_eq!(slice.read::<u64>(offset), 0x0102_0304_0506_0708);
        assert_eq!(slice.read::<[u8; 8]>(offset), 0x0102_0304_0506_0708_u64.to_ne_bytes());
    }
    slice.write(1, Le32::from(0x0a0b_0c0d));
    assert_eq!(slice.read::<[u8; 4]>(1), [0xd, 0xc, 0xb, 0xa]);
}

#[test]
fn an_empty_slice_has_nothing() {
    assert!(slice(0xfff, 0).is_empty());
    assert_eq!(slice(0xfff, 0).read::<[u8; 0]>(0), [0; 0]);
}

#[test]
#[should_panic(expected = "bytes 93..101 of a slice of 100")]
fn a_read_past_the_end_is_a_mistake_of_ours() {
    let _ = slice(0, 100).read::<u64>(93);
}

#[test]
#[should_panic(expected = "bytes 100..101 of a slice of 100")]
fn a_write_past_the_end_is_a_mistake_of_ours() {
    slice(0, 100).write(100, 1_u8);
}

#[test]
#[should_panic(expected = "an offset into a slice is small")]
fn an_offset_that_wraps_is_a_mistake_of_ours() {
    let _ = slice(0, 100).read::<u16>(usize::MAX);
}

#[test]
fn numbers_are_little_endian() {
    let slice = slice(2, 4);
    slice.store_u16(2, 0x1234, Ordering::Release);
    assert_eq!(slice.read::<[u8; 4]>(0), [0, 0, 0x34, 0x12]);
    slice.write(0, [0xcd_u8, 0xab]);
    assert_eq!(slice.load_u16(0, Ordering::Acquire), 0xabcd);
}

#[test]
#[should_panic(expected = "the 16-bit number at 1 is not aligned")]
fn an_atomic_number_is_aligned() {
    let _ = slice(0, 100).load_u16(1, Ordering::Acquire);
}

#[test]
#[should_panic(expected = "bytes 99..101 of a slice of 100")]
fn an_atomic_number_past_the_end_is_a_mistake_of_ours() {
    slice(1, 100).store_u16(99, 0, Ordering::Release);
}

#[test]
fn what_is_released_with_a_number_is_there_when_the_number_is() {
    let memory = memory();
    let other = Arc::clone(&memory);
    let writer = std::thread::spawn(move || {
        let slice = MemPin::new(other).slice(0, 0x1000).expect("mapped");
        for round in 1..20_000_u16 {
            slice.write(64, [u64::from(round); 8]);
            slice.store_u16(0, round, Ordering::Release);
            while slice.load_u16(2, Ordering::Acquire) != round {
                std::thread::yield_now();
            }
        }
    });
    let slice = MemPin::new(memory).slice(0, 0x1000).expect("mapped");
    for round in 1..20_000_u16 {
        while slice.load_u16(0, Ordering::Acquire) != round {
            std::thread::yield_now();
        }
        assert_eq!(slice.read::<[u64; 8]>(64), [u64::from(round); 8]);
        slice.store_u16(2, round, Ordering::Release);
    }
    writer.join().expect("the writer is well");
}

#[test]
fn copies_in_blocks_are_those_of_memmove() {
    let bytes: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 4096, 4999] {
        for (from, to) in [(0, 5000), (5000, 1), (0, 1), (1, 0), (3000, 3000), (0, BLOCK), (BLOCK + 1, 0)] {
            let (mut expected, mut copied) = (bytes.clone(), bytes.clone());
            expected.copy_within(from..from + len, to);
            let start = copied.as_mut_ptr();
            // SAFETY: both ranges end within `copied`.
            unsafe { copy_blocks(start.wrapping_add(from), start.wrapping_add(to), len) };
            assert!(copied == expected, "{len} bytes from {from} to {to}");
        }
    }
}
