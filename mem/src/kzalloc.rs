//! Zeroed memory out of a bounded arena: the only allocator on the data path.
//!
//! kzalloc(9): "allocate memory; the memory is set to zero". Here as there, `size` says how many bytes and the
//! flags say how. What is different: memory comes from an [`Arena`] of a fixed size, so that no guest can make
//! the daemon grow, and `size` is at most one page (Linux has `KMALLOC_MAX_SIZE`; larger things are lists of
//! pages here, see [`crate::bounce`], so that fragmentation can never make an allocation fail).
//!
//! An arena is charged to a [`Budget`], its reserve when it is made and the rest in steps as it is used for the first
//! time: what no guest has needed yet does not count.
//!
//! Some pages of an arena are a reserve, which only [`Gfp::ATOMIC`] may use: what must go on so that memory comes
//! back is never starved by what merely wants to start.
//!
//! Zeroing is not paid twice. A page fresh from the kernel is zero already; one that comes back remembers how
//! far it was handed out, and only that much is cleared, when it is handed out again.
//!
//! ```
//! use sluice_mem::{gfp::Gfp, kzalloc::{kzalloc, Arena}};
//!
//! let arena = Arena::new(2 * 4096, 0)?;
//! let header = kzalloc(&arena, 16, Gfp::NOWAIT)?;
//! assert_eq!(header.len(), 16);
//! assert!(!arena.prepare(2, Gfp::NOWAIT), "one of two pages is in use");
//! drop(header);
//! assert!(arena.prepare(2, Gfp::NOWAIT));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![expect(unsafe_code, reason = "hands out parts of a mapping as memory")]

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::PAGE_SIZE;
use crate::budget::{Budget, Charge};
use crate::gfp::Gfp;

/// Why there is no memory (Linux: `NULL`, and a page of kernel log).
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocError {
    /// The arena is used up for now; memory comes back when I/O in flight completes.
    #[error("no page is free in an arena of {pages} pages, {reserve} of them in reserve")]
    Exhausted {
        /// How many pages the arena has in all.
        pages: usize,
        /// How many of them only [`Gfp::ATOMIC`] may use.
        reserve: usize,
    },
    /// More than one page was asked for.
    #[error("{size} bytes are more than one page of {PAGE_SIZE}")]
    TooLarge {
        /// How many bytes were asked for.
        size: usize,
    },
}

/// A fixed amount of page-aligned memory, used by one thread.
///
/// Cloning gives another handle to the same memory. Pages take up physical memory once they were used. The counterpart of
/// a zone of Linux's page allocator, with the reserve as its minimum watermark; it belongs to one thread, so that it
/// needs no lock, and what was seen to be free still is a moment later.
#[derive(Debug, Clone)]
pub struct Arena {
    inner: Rc<Inner>,
}

struct Inner {
    base: NonNull<u8>,
    pages: usize,
    reserve: usize,
    /// How many pages are free of those that the budget was charged for: all that most users ask.
    ready: Cell<usize>,
    state: RefCell<State>,
}

struct State {
    /// The first page of the list of free ones, and how many are in it. The list starts in ascending order and
    /// comes back as it was taken, so that neighbours tend to be handed out together and merge into one piece.
    free: u32,
    free_count: usize,
    /// What the budget has been charged for the pages that may be used so far.
    charge: Charge,
    pages: Vec<Page>,
}

#[derive(Clone, Copy)]
struct Page {
    /// The page after this one, in the list of free pages or in an allocation.
    next: u32,
    /// How many bytes from the start of the page may be other than zero.
    dirty: u16,
}

impl Arena {
    /// How many pages are charged at a time.
    const STEP_PAGES: usize = 64;

    /// An arena with a budget of its own: see [`Arena::within`].
    ///
    /// # Errors
    /// As [`Arena::within`].
    pub fn new(size: usize, reserve: usize) -> io::Result<Self> {
        let rounded = size.max(1).checked_next_multiple_of(PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
        Self::within(&Budget::new("arena's", rounded), size, reserve, Gfp::NOWAIT)
    }

    /// An arena of `size` bytes, of which `reserve` bytes are a reserve, both rounded up to whole pages. The reserve is
    /// charged to `budget` now.
    ///
    /// # Errors
    /// When the reserve is larger than the arena, the budget has no room for it, or the kernel does not give the
    /// address space.
    pub fn within(budget: &Arc<Budget>, size: usize, reserve: usize, gfp: Gfp<'_>) -> io::Result<Self> {
        let pages = size.div_ceil(PAGE_SIZE).max(1);
        let reserve = reserve.div_ceil(PAGE_SIZE);
        if reserve > pages {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let count = u32::try_from(pages).map_err(|_| io::ErrorKind::InvalidInput)?;
        let charge = budget.charge(reserve * PAGE_SIZE, gfp).map_err(io::Error::other)?;
        let list = (1..=count).map(|next| Page { next, dirty: 0 }).collect();
        let length = pages * PAGE_SIZE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a null hint and no MAP_FIXED: the kernel chooses a range that nothing else uses.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let state = RefCell::new(State { free: 0, free_count: pages, charge, pages: list });
        Ok(Self { inner: Rc::new(Inner { base, pages, reserve, ready: Cell::new(reserve), state }) })
    }

    /// Makes sure that `gfp` can have `count` pages, charging the budget for more where that is needed. Returns whether
    /// it can: then it still can until something is allocated (Linux: `radix_tree_preload` and its like).
    #[must_use]
    #[inline]
    pub fn prepare(&self, count: usize, gfp: Gfp<'_>) -> bool {
        count <= self.available_pages(gfp)
            || self.inner.charge(&mut self.inner.state.borrow_mut(), count, gfp)
    }

    /// How many pages `gfp` can have at this moment without charging the budget for more.
    #[must_use]
    #[inline]
    pub fn available_pages(&self, gfp: Gfp<'_>) -> usize {
        self.inner.ready.get().saturating_sub(self.inner.kept_from(gfp))
    }

    /// How many pages are in use.
    #[must_use]
    pub fn used_pages(&self) -> usize {
        self.inner.pages - self.inner.state.borrow().free_count
    }

    /// How many pages there are, free or in use.
    #[must_use]
    pub fn capacity_pages(&self) -> usize {
        self.inner.pages
    }
}

impl Inner {
    /// Where a page is. Only numbers of pages in the arena are ever in a list.
    fn address(&self, page: u32) -> NonNull<u8> {
        assert!((page as usize) < self.pages, "page {page} of {}", self.pages);
        // SAFETY: the page is in the arena, so its offset is inside the mapping.
        unsafe { self.base.add(page as usize * PAGE_SIZE) }
    }

    /// How many pages `gfp` leaves free.
    #[inline]
    fn kept_from(&self, gfp: Gfp<'_>) -> usize {
        if gfp.may_use_reserve() { 0 } else { self.reserve }
    }

    /// Charges the budget for so many pages that `gfp` can have `count` of them, if that is not so yet.
    fn charge(&self, state: &mut State, count: usize, gfp: Gfp<'_>) -> bool {
        // With the reserve, of which some may be in use.
        let Some(wanted) = count.checked_add(self.kept_from(gfp)) else { return false };
        let missing = wanted.saturating_sub(self.ready.get());
        let left = self.pages - state.charge.bytes() / PAGE_SIZE;
        if missing == 0 {
            return true;
        }
        if missing > left {
            return false;
        }
        let step = missing.max(Arena::STEP_PAGES).min(left);
        // The budget may have no room for a step, but for what is needed now.
        let charged = [(step, Gfp::NOWAIT), (missing, gfp)]
            .into_iter()
            .find(|(pages, gfp)| state.charge.grow(pages * PAGE_SIZE, *gfp).is_ok());
        self.ready.set(self.ready.get() + charged.map_or(0, |(pages, _)| pages));
        charged.is_some()
    }
}

impl std::fmt::Debug for Inner {
    /// Without the list of pages: whatever has a page would be shown with hundreds of them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Inner");
        shown.field("pages", &self.pages).field("reserve", &self.reserve).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `base` and the length are those of the mapping made in `Arena::new`, and every `KBox` holds
        // an `Rc` of this, so nothing points into the mapping any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.pages * PAGE_SIZE) };
        debug_assert!(unmapped.is_ok(), "an arena's mapping is unmapped once");
    }
}

/// Zeroed memory of `size` bytes, aligned to [`PAGE_SIZE`] and in one piece (Linux: kzalloc(9), which has no bound of its
/// own and lets a `gfp_t` sleep for others; an arena is only ever given memory back by its own thread, so this waits for
/// the arena's budget if for anything).
///
/// # Errors
/// [`AllocError::Exhausted`] while all pages that `gfp` may have are in use: the caller parks its work.
/// [`AllocError::TooLarge`] past one page.
pub fn kzalloc(arena: &Arena, size: usize, gfp: Gfp<'_>) -> Result<KBox, AllocError> {
    if size > PAGE_SIZE {
        return Err(AllocError::TooLarge { size });
    }
    let pages = Pages::alloc(arena, size, gfp)?;
    Ok(KBox { pages })
}

/// Memory from [`kzalloc`]; goes back to its arena when dropped (Linux: `kfree`).
#[derive(Debug)]
pub struct KBox {
    pages: Pages,
}

impl KBox {
    /// How many bytes were asked for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an allocation of nothing is of no use to anyone")]
    pub fn len(&self) -> usize {
        self.pages.len
    }

    /// Where the memory starts: `len` bytes, valid while this value lives, with no other user.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.pages.arena.address(self.pages.head)
    }
}

/// Zeroed memory of any size as a list of pages; goes back to its arena when dropped.
///
/// All or nothing: an allocation that fails has taken no page. (Linux: `alloc_pages_bulk`, which may give fewer pages than
/// were asked for.)
#[derive(Debug)]
pub struct Pages {
    arena: Rc<Inner>,
    head: u32,
    tail: u32,
    count: usize,
    len: usize,
}

impl Pages {
    /// Zeroed memory of `size` bytes, at least one page.
    ///
    /// # Errors
    /// [`AllocError::Exhausted`] while there are not enough pages that `gfp` may have.
    pub fn alloc(arena: &Arena, size: usize, gfp: Gfp<'_>) -> Result<Self, AllocError> {
        let inner = &arena.inner;
        let count = size.div_ceil(PAGE_SIZE).max(1);
        let mut state = inner.state.borrow_mut();
        if !inner.charge(&mut state, count, gfp) {
            return Err(AllocError::Exhausted { pages: inner.pages, reserve: inner.reserve });
        }
        let head = state.free;
        let (mut tail, mut next) = (head, head);
        for _ in 0..count {
            tail = next;
            let page = &mut state.pages[tail as usize];
            let dirty = usize::from(std::mem::take(&mut page.dirty));
            next = page.next;
            // SAFETY: the page was free, so nobody else has it, and `dirty` is at most a page.
            unsafe { inner.address(tail).write_bytes(0, dirty) };
        }
        state.free = next;
        state.free_count -= count;
        inner.ready.set(inner.ready.get() - count);
        Ok(Self { arena: Rc::clone(inner), head, tail, count, len: size })
    }

    /// Calls `piece` with the start and length of each page, in order. The last is as long as is left.
    pub fn for_each(&self, mut piece: impl FnMut(NonNull<u8>, usize)) {
        let state = self.arena.state.borrow();
        let (mut page, mut left) = (self.head, self.len);
        for _ in 0..self.count {
            piece(self.arena.address(page), left.min(PAGE_SIZE));
            left = left.saturating_sub(PAGE_SIZE);
            page = state.pages[page as usize].next;
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut state = self.arena.state.borrow_mut();
        let (mut page, mut left) = (self.head, self.len);
        for _ in 0..self.count {
            let entry = &mut state.pages[page as usize];
            // At most PAGE_SIZE, which fits.
            entry.dirty = u16::try_from(left.min(PAGE_SIZE)).unwrap_or(u16::MAX);
            left = left.saturating_sub(PAGE_SIZE);
            page = entry.next;
        }
        state.pages[self.tail as usize].next = state.free;
        state.free = self.head;
        state.free_count += self.count;
        self.arena.ready.set(self.arena.ready.get() + self.count);
    }
}

#[cfg(test)]
mod tests;
