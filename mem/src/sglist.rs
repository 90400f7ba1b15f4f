//! The pieces of memory that one transfer touches, in order, and what keeps them alive.
//!
//! The counterpart of an array of Linux's `struct bio_vec` (and of `struct scatterlist`). A list has room for
//! [`SgList::CAPACITY`] pieces; the first few live in the list itself, more of them in one page from
//! [`kzalloc`]. Its memory is either the guest's, pinned by a [`MemPin`], or pages of ours, so that a list can be
//! used from safe code at any time: what it points to cannot go away before it does. Pieces that follow one another
//! in memory are merged.
//!
//! ```
//! use std::sync::Arc;
//! use sluice_mem::{gfp::Gfp, guest::{GuestMem, MemPin}, kzalloc::Arena, region::{Region, RegionInfo}, sglist::SgList};
//!
//! # let file = tempfile::tempfile()?;
//! file.set_len(8192)?;
//! let info = RegionInfo { guest_addr: 0x10000, size: 8192, user_addr: 0, mmap_offset: 0 };
//! let memory = GuestMem::new(vec![Region::map(info, file)?])?;
//! let (pin, arena) = (MemPin::new(Arc::new(memory)), Arena::new(1 << 20, 0)?);
//!
//! // Two buffers of a guest, of which the disk takes the first 512 bytes.
//! let mut list = SgList::new();
//! list.push_guest(&pin, 0x10000, 100, &arena)?;
//! list.push_guest(&pin, 0x11000, 1000, &arena)?;
//! assert!(!list.is_aligned(512, 512, 512), "pieces of 100 and 412 bytes");
//! let front = list.split_front(512, &arena, Gfp::NOWAIT)?;
//! assert_eq!((front.bytes(), front.pieces().len(), list.bytes()), (512, 2, 588));
//!
//! // Pages of ours stand in for them: the data is read there, and copied.
//! let pages = SgList::alloc(&arena, 512, Gfp::NOWAIT)?;
//! pages.write(&[7; 512]);
//! front.copy_from(0, &pages, 0, 512);
//! let mut bytes = [0; 1];
//! pin.read(0x11000 + 411, &mut bytes)?;
//! assert_eq!(bytes, [7]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![expect(unsafe_code, reason = "copies from and to memory that another process shares")]

use std::ptr::NonNull;

use crate::PAGE_SIZE;
use crate::gfp::Gfp;
use crate::guest::{BadAddress, MemPin, Near};
use crate::kzalloc::{AllocError, Arena, KBox, Pages, kzalloc};
use crate::slice::{copy_blocks, copy_once};

/// One piece of memory: a `struct iovec`, to be handed to the kernel (Linux: `struct bio_vec`, which has a page and an
/// offset where this has an address: all memory is mapped here).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoVec(libc::iovec);

impl std::fmt::Debug for IoVec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}+{}", self.0.iov_base, self.0.iov_len)
    }
}

impl IoVec {
    const EMPTY: Self = Self(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });

    pub(crate) fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self(libc::iovec { iov_base: ptr.as_ptr().cast(), iov_len: len })
    }

    /// Where the piece starts.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// How many bytes it has, never 0 in a list.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a piece of a list is never empty")]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    fn end(&self) -> usize {
        self.as_ptr().addr() + self.len()
    }

    /// The piece without its first `count` bytes.
    fn skip(self, count: usize) -> Self {
        debug_assert!(count <= self.len());
        Self(libc::iovec { iov_base: self.as_ptr().wrapping_add(count).cast(), iov_len: self.len() - count })
    }

    fn truncate(self, len: usize) -> Self {
        debug_assert!(len <= self.len());
        Self(libc::iovec { iov_base: self.0.iov_base, iov_len: len })
    }

    /// Copies the piece out. Crate-private: whoever calls it has what keeps the piece alive.
    #[inline]
    pub(crate) fn copy_out(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.len());
        // SAFETY: a piece is mapped memory of `len` bytes; `bytes` is as long, and not part of it, being ours.
        unsafe { copy_once(self.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    }

    fn copy_in(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len());
        // SAFETY: a piece is mapped memory of `len` bytes, at least as long as `bytes`, which is ours.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_ptr(), bytes.len()) };
    }
}

/// The pieces of memory of one transfer (Linux: `bi_io_vec` with its `struct bvec_iter`). Linux's bios refer to pages that
/// somebody keeps; a list keeps what it refers to.
#[derive(Debug)]
pub struct SgList {
    inline: [IoVec; Self::INLINE],
    /// Where the pieces are once they are too many for `inline`.
    table: Option<KBox>,
    /// The pieces are `start..end`; those before were used up by [`SgList::advance`].
    start: usize,
    end: usize,
    bytes: usize,
    pinnable: bool,
    /// What keeps the memory alive where it is the guest's.
    guest: Option<MemPin>,
    /// What keeps the memory alive where it is ours.
    pages: Option<Pages>,
}

impl Default for SgList {
    fn default() -> Self {
        Self::new()
    }
}

impl SgList {
    /// How many pieces a list can have: as many as fit one page (Linux: `BIO_MAX_VECS`).
    pub const CAPACITY: usize = PAGE_SIZE / size_of::<IoVec>();
    /// How many of them need no table (Linux: `BIO_INLINE_VECS`).
    const INLINE: usize = 4;

    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inline: [IoVec::EMPTY; Self::INLINE],
            table: None,
            start: 0,
            end: 0,
            bytes: 0,
            pinnable: true,
            guest: None,
            pages: None,
        }
    }

    /// A list of zeroed pages of ours, `size` bytes in all, at least one (Linux: `bio_add_page` of each page).
    ///
    /// # Errors
    /// [`AllocError::Exhausted`] when `gfp` gets too few pages, [`AllocError::TooLarge`] when they could be more
    /// pieces than a list has room for. Then nothing was taken.
    pub fn alloc(arena: &Arena, size: usize, gfp: Gfp<'_>) -> Result<Self, AllocError> {
        if size > Self::CAPACITY * PAGE_SIZE {
            return Err(AllocError::TooLarge { size });
        }
        debug_assert!(size > 0, "a piece of a list is never empty");
        let mut list = Self::new();
        let pages = Pages::alloc(arena, size, gfp)?;
        // Worst case: no two pages are neighbours.
        if size.div_ceil(PAGE_SIZE) > Self::INLINE {
            list.table = Some(kzalloc(arena, PAGE_SIZE, gfp)?);
        }
        pages.for_each(|ptr, len| list.append(IoVec::new(ptr, len)));
        list.pages = Some(pages);
        Ok(list)
    }

    /// Empties the list and lets go of its memory.
    #[inline(always)]
    pub fn clear(&mut self) {
        // What is left in `inline` is outside of `start..end`, and seen by nobody.
        (self.start, self.end, self.bytes, self.pinnable) = (0, 0, 0, true);
        self.table = None;
        self.guest = None;
        self.pages = None;
    }

    /// How many bytes the pieces have together.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The pieces. Valid to use while the list is neither changed nor dropped.
    #[must_use]
    #[inline]
    pub fn pieces(&self) -> &[IoVec] {
        &self.all()[self.start..self.end]
    }

    /// The piece, where there is one only: as in most lists, which have no table.
    #[must_use]
    #[inline(always)]
    pub fn only_piece(&self) -> Option<IoVec> {
        (self.table.is_none() && (self.start, self.end) == (0, 1)).then_some(self.inline[0])
    }

    /// Appends guest memory: as much of the `len` bytes at `addr` as there is room for pieces. Returns how many
    /// bytes that was. A table is allocated from `arena` where needed. (Linux: `bio_iov_iter_get_pages`.)
    ///
    /// # Errors
    /// [`SgError::Address`] when some of the range is not in the guest's memory, [`SgError::Memory`] when there is
    /// no page for a table. The list may have got a part of the range.
    ///
    /// # Panics
    /// When the list already has pieces of another snapshot of memory.
    #[inline(always)]
    pub fn push_guest(
        &mut self,
        pin: &MemPin,
        addr: u64,
        len: usize,
        arena: &Arena,
    ) -> Result<usize, SgError> {
        match &self.guest {
            Some(own) => assert!(own.same(pin), "a list has pieces of one snapshot"),
            None => {
                assert!(self.pages.is_none(), "guest memory in a list of our own pages");
                self.guest = Some(pin.clone());
            }
        }
        let (mut at, mut left) = (addr, len);
        while left > 0 {
            let (piece, pinnable) = pin.memory().piece(at, left)?;
            if !self.reserve(piece, arena)? {
                break;
            }
            self.append(piece);
            self.pinnable &= pinnable;
            left -= piece.len();
            if left > 0 {
                at = at.checked_add(piece.len() as u64).ok_or(BadAddress { addr, len: len as u64 })?;
            }
        }
        Ok(len - left)
    }

    /// Makes an empty list one of `len` bytes of guest memory at `addr`, perhaps near a place, if they are in one region, as most are. Returns
    /// whether it is that now; else it is as it was.
    #[must_use]
    #[inline(always)]
    pub fn map_one(&mut self, near: &Near<'_>, addr: u64, len: usize) -> bool {
        assert!(self.end == 0 && self.guest.is_none() && self.pages.is_none(), "the list is empty");
        let Some((piece, pinnable)) = near.piece(addr, len) else { return false };
        (self.inline[0], self.end, self.bytes, self.pinnable) = (piece, 1, len, pinnable);
        self.guest = Some(near.pin().clone());
        true
    }

    /// Takes the first `count` bytes out of the list, into a list of their own (Linux: `bio_split`).
    ///
    /// # Errors
    /// When the new list needs a table and `gfp` gets no page; then this list is as it was.
    ///
    /// # Panics
    /// When the list has fewer bytes, or its pages are ours: such a list has one owner.
    pub fn split_front(&mut self, count: usize, arena: &Arena, gfp: Gfp<'_>) -> Result<Self, AllocError> {
        assert!(count <= self.bytes, "{count} bytes of a list of {}", self.bytes);
        let mut front = Self::new();
        assert!(self.pages.is_none(), "our own pages have one owner");
        front.guest = self.guest.clone();
        front.pinnable = self.pinnable;
        if self.pieces_of(count) > Self::INLINE {
            front.table = Some(kzalloc(arena, PAGE_SIZE, gfp)?);
        }
        let mut left = count;
        for piece in self.pieces() {
            if left == 0 {
                break;
            }
            let part = piece.truncate(piece.len().min(left));
            front.append(part);
            left -= part.len();
        }
        self.advance(count);
        Ok(front)
    }

    /// Drops the first `count` bytes: what is left is what a transfer that was cut short still has to do (Linux:
    /// `bio_advance`).
    ///
    /// # Panics
    /// When the list has fewer bytes.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.bytes, "{count} bytes of a list of {}", self.bytes);
        self.bytes -= count;
        let mut left = count;
        while left > 0 {
            let start = self.start;
            let piece = self.all()[start];
            if piece.len() <= left {
                left -= piece.len();
                self.start += 1;
            } else {
                self.all_mut()[start] = piece.skip(left);
                left = 0;
            }
        }
    }

    /// Copies `count` bytes of `from`, from its byte `from_at` on, to this list's bytes from `at` on (Linux:
    /// `bio_copy_data`). The two may overlap: a guest may name a buffer twice.
    ///
    /// # Panics
    /// When either has fewer bytes.
    pub fn copy_from(&self, at: usize, from: &Self, from_at: usize, count: usize) {
        let (mut targets, mut sources) = (self.range(at, count), from.range(from_at, count));
        let (mut target, mut source) = (IoVec::EMPTY, IoVec::EMPTY);
        let mut left = count;
        while left > 0 {
            if target.len() == 0 {
                target = targets.next().expect("as many bytes as `count`");
            }
            if source.len() == 0 {
                source = sources.next().expect("as many bytes as `count`");
            }
            let now = target.len().min(source.len());
            // SAFETY: both pieces are mapped memory of at least `now` bytes, kept alive by their lists.
            unsafe { copy_blocks(source.as_ptr(), target.as_ptr(), now) };
            (target, source) = (target.skip(now), source.skip(now));
            left -= now;
        }
    }

    /// The pieces of `count` bytes from byte `at` on, none of them empty.
    ///
    /// # Panics
    /// When the list has fewer bytes.
    fn range(&self, at: usize, count: usize) -> impl Iterator<Item = IoVec> {
        let end = at.checked_add(count).expect("lists are small");
        assert!(end <= self.bytes, "bytes {at}..{end} of a list of {}", self.bytes);
        let (mut before, mut left) = (at, count);
        self.pieces().iter().filter_map(move |piece| {
            let out = before.min(piece.len());
            before -= out;
            let part = piece.skip(out);
            let part = part.truncate(part.len().min(left));
            left -= part.len();
            (part.len() > 0).then_some(part)
        })
    }

    /// Writes `bytes` to the start of the memory, as far as it goes. Returns how many bytes that was (Linux:
    /// `memcpy_to_bvec`).
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut left = bytes;
        for piece in self.pieces() {
            let (now, later) = left.split_at(left.len().min(piece.len()));
            piece.copy_in(now);
            left = later;
        }
        bytes.len() - left.len()
    }

    /// Reads the start of the memory to `bytes`, as far as it goes. Returns how many bytes that was (Linux:
    /// `memcpy_from_bvec`).
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        let all = bytes.len();
        let mut left = bytes;
        for piece in self.pieces() {
            let (now, later) = left.split_at_mut(piece.len().min(left.len()));
            piece.truncate(now.len()).copy_out(now);
            left = later;
        }
        all - left.len()
    }

    /// Sets `count` bytes from byte `at` on to zero (Linux: `zero_fill_bio`).
    ///
    /// # Panics
    /// When the list has fewer bytes.
    pub fn zero(&self, at: usize, count: usize) {
        for piece in self.range(at, count) {
            // SAFETY: a piece is `len` bytes of mapped memory, kept alive by this list.
            unsafe { piece.as_ptr().write_bytes(0, piece.len()) };
        }
    }

    /// Marks all of the memory as written, where it is a guest's that has a log.
    #[inline(always)]
    pub fn mark_written(&self) {
        if let Some(pin) = &self.guest
            && pin.memory().log().is_some()
        {
            self.mark(pin);
        }
    }

    #[cold]
    fn mark(&self, pin: &MemPin) {
        self.pieces().iter().for_each(|piece| pin.memory().mark(piece.as_ptr(), piece.len()));
    }

    /// Whether of the first `count` bytes every piece starts at a multiple of `address` and is as long as a multiple of
    /// `length`, both powers of two (Linux: `iov_iter_is_aligned`).
    ///
    /// # Panics
    /// When the list has fewer bytes.
    #[must_use]
    #[inline(always)]
    pub fn is_aligned(&self, count: usize, address: usize, length: usize) -> bool {
        match self.pieces() {
            // As most are: a transfer of one piece.
            [piece] if piece.len() == count => Self::misaligned(*piece, address, length) == 0,
            _ => self.are_aligned(count, address, length),
        }
    }

    fn are_aligned(&self, count: usize, address: usize, length: usize) -> bool {
        self.range(0, count).all(|piece| Self::misaligned(piece, address, length) == 0)
    }

    /// Not zero where a piece does not start at a multiple of `address` or is not as long as one of `length`.
    #[inline]
    fn misaligned(piece: IoVec, address: usize, length: usize) -> usize {
        (piece.as_ptr().addr() & (address - 1)) | (piece.len() & (length - 1))
    }

    /// Whether memory of the guest that this belongs to was taken away: what was copied from it may not be the guest's.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.guest.as_ref().is_some_and(|pin| pin.memory().is_lost())
    }

    /// Whether the kernel can hold on to all of the memory, as direct I/O asks it to. What it cannot is answered with
    /// EFAULT.
    #[must_use]
    pub fn is_pinnable(&self) -> bool {
        self.pinnable
    }

    /// How many pieces the first `count` bytes are in.
    fn pieces_of(&self, count: usize) -> usize {
        let mut left = count;
        self.pieces()
            .iter()
            .take_while(|piece| {
                let wanted = left > 0;
                left = left.saturating_sub(piece.len());
                wanted
            })
            .count()
    }

    /// Makes room for `piece`. False when the list is full.
    #[inline(always)]
    fn reserve(&mut self, piece: IoVec, arena: &Arena) -> Result<bool, SgError> {
        if self.end < Self::INLINE || self.merges(piece) {
            return Ok(true);
        }
        if self.table.is_none() {
            self.table = Some(kzalloc(arena, PAGE_SIZE, Gfp::NOWAIT)?);
            let inline = self.inline;
            self.all_mut()[..Self::INLINE].copy_from_slice(&inline);
        }
        Ok(self.end < Self::CAPACITY)
    }

    #[inline]
    fn merges(&self, piece: IoVec) -> bool {
        self.end > self.start && self.all()[self.end - 1].end() == piece.as_ptr().addr()
    }

    /// Appends a piece for which there is room.
    #[inline(always)]
    fn append(&mut self, piece: IoVec) {
        self.bytes += piece.len();
        let end = self.end;
        if self.merges(piece) {
            let last = self.all()[end - 1];
            self.all_mut()[end - 1] = Self::merged(last, piece);
        } else {
            self.all_mut()[end] = piece;
            self.end += 1;
        }
    }

    fn merged(first: IoVec, second: IoVec) -> IoVec {
        IoVec(libc::iovec { iov_base: first.0.iov_base, iov_len: first.len() + second.len() })
    }

    #[inline]
    fn all(&self) -> &[IoVec] {
        match &self.table {
            None => &self.inline,
            // SAFETY: a table is one page, aligned to a page, zeroed when it was allocated (a valid IoVec), used
            // by nothing but this list, and borrowed for as long as `self`.
            Some(table) => unsafe {
                std::slice::from_raw_parts(table.as_ptr().as_ptr().cast(), Self::CAPACITY)
            },
        }
    }

    #[inline]
    fn all_mut(&mut self) -> &mut [IoVec] {
        match &self.table {
            None => &mut self.inline,
            // SAFETY: as in `all`, and `self` is borrowed mutably.
            Some(table) => unsafe {
                std::slice::from_raw_parts_mut(table.as_ptr().as_ptr().cast(), Self::CAPACITY)
            },
        }
    }
}

/// Why guest memory could not be appended.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum SgError {
    /// The guest's mistake.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// No page for a table of pieces.
    #[error("no memory for a table of pieces")]
    Memory(#[from] AllocError),
}

#[cfg(test)]
mod tests;
