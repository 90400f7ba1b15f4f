//! A range of guest memory: pointer and length, to be copied in and out; never `&[u8]`.
//!
//! The guest may write to its memory at any moment, so a reference into it would be undefined behaviour. All access
//! is a copy in or out, and what is used more than once is copied out first, once (see `copy_once`). Ring indices are
//! accessed with single 16-bit atomic operations (virtio 1.3, 2.7.6 and 2.7.13 ask for the barriers that the
//! orderings give). No Linux counterpart.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]
#![expect(unsafe_code, reason = "reads and writes memory that another process shares")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering, compiler_fence};

use vm_memory::ByteValued;

use crate::guest::MemPin;
use crate::sync::word;

/// `len` bytes of guest memory, which stay mapped while this value lives (nearest in Linux: the `__user` pointers that
/// `vhost_get_user` and `vhost_put_user` take).
#[derive(Debug, Clone)]
pub struct GuestSlice {
    ptr: NonNull<u8>,
    len: usize,
    pin: MemPin,
}

impl GuestSlice {
    /// The range of `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The range must lie in one region of the memory that `pin` pins.
    pub(crate) unsafe fn new(ptr: NonNull<u8>, len: usize, pin: MemPin) -> Self {
        Self { ptr, len, pin }
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies out a value at `offset`, once; it may be torn if the guest writes meanwhile.
    ///
    /// # Panics
    /// When the value does not lie in the range.
    #[must_use]
    #[inline]
    pub fn read<T: ByteValued>(&self, offset: usize) -> T {
        match self.try_read(offset) {
            Some(value) => value,
            None => outside(offset, size_of::<T>(), self.len),
        }
    }

    /// The same; `None` when the value does not lie in the range.
    #[must_use]
    #[inline]
    pub fn try_read<T: ByteValued>(&self, offset: usize) -> Option<T> {
        let source = self.try_at(offset, size_of::<T>())?;
        let mut value = T::zeroed();
        let target = std::ptr::from_mut(&mut value).cast::<u8>();
        // SAFETY: `try_at` checked that the source has `size_of::<T>()` bytes, `value` is as long and ours alone, and
        // T is plain data for which every pattern of bytes is valid (ByteValued).
        unsafe { copy_once(source, target, size_of::<T>()) };
        Some(value)
    }

    /// Writes a value at `offset`.
    ///
    /// # Panics
    /// When the value does not lie in the range.
    #[inline]
    pub fn write<T: ByteValued>(&self, offset: usize, value: T) {
        #[cfg(all(feature = "crash-points", debug_assertions))]
        crate::crash::point();
        let target = self.at(offset, size_of::<T>());
        let source = std::ptr::from_ref(&value).cast::<u8>();
        // SAFETY: `at` checked that the target has `size_of::<T>()` bytes of mapped memory; `value` is as long.
        unsafe { std::ptr::copy_nonoverlapping(source, target, size_of::<T>()) };
    }

    /// Loads the little-endian 16-bit number at `offset`, atomically.
    ///
    /// # Panics
    /// When it does not lie in the range or is not aligned.
    #[must_use]
    #[inline]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(word(self.atomic(offset)).load(order))
    }

    /// Stores the little-endian 16-bit number at `offset`, atomically.
    ///
    /// # Panics
    /// When it does not lie in the range or is not aligned.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        #[cfg(all(feature = "crash-points", debug_assertions))]
        crate::crash::point();
        word(self.atomic(offset)).store(value.to_le(), order);
    }

    /// Marks the range as written, where the guest's memory has a log.
    pub fn mark_written(&self) {
        self.pin.memory().mark(self.ptr.as_ptr(), self.len);
    }

    /// The address of the `size` bytes at `offset`.
    #[inline]
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        match self.try_at(offset, size) {
            Some(address) => address,
            None => outside(offset, size, self.len),
        }
    }

    /// The same; `None` when they are not all in the range.
    #[inline]
    fn try_at(&self, offset: usize, size: usize) -> Option<*mut u8> {
        if offset.checked_add(size)? > self.len {
            return None;
        }
        // SAFETY: offset <= len, and the range [ptr, ptr + len) is one mapped region's part (`new`).
        Some(unsafe { self.ptr.as_ptr().add(offset) })
    }

    #[inline]
    fn atomic(&self, offset: usize) -> &AtomicU16 {
        let ptr = self.at(offset, size_of::<u16>()).cast::<u16>();
        if !ptr.is_aligned() {
            misaligned(offset);
        }
        // SAFETY: in range (`at`), aligned, mapped while `self` lives. It is only ever accessed atomically here; the
        // other process is outside of Rust's memory model and does single 16-bit accesses by virtio's rules.
        unsafe { AtomicU16::from_ptr(ptr) }
    }
}

/// Apart from where it is found, as there what the message says would be put in place each time.
#[cold]
#[inline(never)]
fn outside(offset: usize, size: usize, len: usize) -> ! {
    let end = offset.checked_add(size).expect("an offset into a slice is small");
    panic!("bytes {offset}..{end} of a slice of {len}")
}

#[cold]
#[inline(never)]
fn misaligned(offset: usize) -> ! {
    panic!("the 16-bit number at {offset} is not aligned")
}

/// Copies memory that somebody else may change at the same time. What was copied is what it stays: without the fence
/// the compiler might later read from `source` again instead of from `target`, past the checks of what was in there.
///
/// # Safety
/// `source` must be mapped memory of `len` bytes, and `target` as many bytes of ours that are not part of it.
pub(crate) unsafe fn copy_once(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: as the caller vouches.
    unsafe { std::ptr::copy_nonoverlapping(source, target, len) };
    compiler_fence(Ordering::Acquire);
}

/// The most that is copied at once by [`copy_blocks`]. For more, C libraries use an instruction (`rep movsb`) that takes
/// ten times as long when the target is a few bytes further in its page than the source is, as memory that has to
/// be bounced often is: measured on an AMD EPYC, 4096 bytes in 1215 ns, and in blocks of 1024 in 99.
const BLOCK: usize = 1024;

/// Copies `len` bytes, like `memmove`: the two may overlap.
///
/// # Safety
/// Both must be mapped memory of `len` bytes.
pub(crate) unsafe fn copy_blocks(source: *const u8, target: *mut u8, len: usize) {
    let overlap = source.addr().abs_diff(target.addr()) < len;
    let block = if overlap { len } else { BLOCK };
    for done in (0..len).step_by(block.max(1)) {
        let now = block.min(len.saturating_sub(done));
        // SAFETY: `done + now <= len`, and the caller vouches for so many bytes. What overlaps is copied at once.
        unsafe { std::ptr::copy(source.wrapping_add(done), target.wrapping_add(done), now) };
    }
}

#[cfg(test)]
mod tests;
