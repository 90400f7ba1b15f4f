//! Guest memory that is taken away while it is mapped: whoever touches it gets a SIGBUS.
//!
//! A front-end that truncates the file behind a region (or whose host has no huge page left for it) would end the whole
//! daemon, with the disks of all other guests, since for a signal of a fault the default is to end. After [`survive`]
//! the page that was touched is replaced by one of zeroes, so that the thread can go on, and the region's [`Alarm`]
//! rings: what is read from then on is not the guest's any more, nothing is to be done for it, and its connection is to
//! be closed. The kernel does not get a signal: it answers I/O to such memory with EFAULT.
//!
//! A fault elsewhere is a mistake of ours, and ends the process as before. No Linux counterpart in the block layer (KVM
//! hands such faults to the program that runs the guest).
//!
//! What is global here has to be, as a signal handler has nothing else: the list of watched mappings. A handler may not
//! lock or allocate, so the list only grows, by slots that are used over again, and is read without a lock.
#![expect(unsafe_code, reason = "installs a signal handler and maps memory in it")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::fstatfs;

use crate::sync::{AtomicPtr, AtomicUsize, fence};

/// Tells that memory of a guest was taken away. One for all regions of a guest.
#[derive(Debug)]
pub struct Alarm {
    rung: AtomicBool,
    event: OwnedFd,
}

impl Alarm {
    /// An alarm that has not rung.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { rung: AtomicBool::new(false), event }))
    }

    /// Whether some of the memory is gone: what is read from it may be zeroes where the guest had something else.
    #[must_use]
    #[inline]
    pub fn has_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Safe in a signal handler.
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        // Fails only when it has rung 2^64 - 2 times.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

/// Readable once it has rung.
impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A mapping in the list. `start` is 0 while the slot is free, and the last that is written.
#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    alarm: AtomicPtr<Alarm>,
    next: Option<&'static Self>,
}

/// The slot that was made last.
static SLOTS: std::sync::atomic::AtomicPtr<Slot> = std::sync::atomic::AtomicPtr::new(ptr::null_mut());
/// Those of them that are free.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
/// What a SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl Slot {
    fn take() -> &'static Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = free.pop() {
            return slot;
        }
        // SAFETY: null, or a slot that was leaked below.
        let next = unsafe { SLOTS.load(Ordering::Relaxed).as_ref() };
        let slot = Box::leak(Box::new(Self::free(next)));
        // Only ever written under the lock of FREE.
        SLOTS.store(slot, Ordering::Release);
        slot
    }

    /// One that is free, in a list.
    fn free(next: Option<&'static Self>) -> Self {
        Self {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            alarm: AtomicPtr::new(ptr::null_mut()),
            next,
        }
    }

    /// Takes in a mapping. The slot is free, and the caller's.
    fn fill(&self, start: usize, len: usize, page: usize, alarm: *const Alarm) {
        // Who sees any of these sees that the slot was free before, also where another thread has freed it: then the
        // lock of FREE comes between, which the handler does not take.
        fence(Ordering::Release);
        self.len.store(len, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.alarm.store(alarm.cast_mut(), Ordering::Relaxed);
        self.start.store(start, Ordering::Release);
    }

    /// Is free again.
    fn clear(&self) {
        self.start.store(0, Ordering::Relaxed);
    }

    /// The start of the page of the mapping that `addr` is in, and the alarm, if the slot's mapping has it.
    fn find(&self, addr: usize) -> Option<(usize, usize, *const Alarm)> {
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Relaxed);
        let page = self.page.load(Ordering::Relaxed);
        let alarm = self.alarm.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        // Else the slot is another's by now, and what was read belongs to both.
        let is_whole = start != 0 && self.start.load(Ordering::Relaxed) == start;
        let offset = addr.checked_sub(start)?;
        (is_whole && offset < len).then(|| (addr - offset % page, page, alarm.cast_const()))
    }
}

/// A mapping that is watched for as long as this lives. Must be dropped before it is unmapped.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: &'static Slot,
    alarm: Arc<Alarm>,
}

impl Watch {
    /// Watches the mapping of `len` bytes of `file` at `start`.
    pub(crate) fn new(start: *mut u8, len: usize, page: usize, alarm: Arc<Alarm>) -> Self {
        let slot = Slot::take();
        slot.fill(start.addr(), len, page, Arc::as_ptr(&alarm));
        Self { slot, alarm }
    }

    pub(crate) fn alarm(&self) -> &Arc<Alarm> {
        &self.alarm
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.slot.clear();
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
    }
}

/// The size of the pages that a mapping of `file` has: what is replaced must be whole ones.
pub(crate) fn page_size_of(file: &File) -> usize {
    let huge = fstatfs(file).ok().filter(|fs| fs.f_type == libc::HUGETLBFS_MAGIC);
    huge.and_then(|fs| usize::try_from(fs.f_bsize).ok()).unwrap_or_else(rustix::param::page_size)
}

/// From now on the process survives that guest memory is taken away.
///
/// # Errors
/// What sigaction(2) says.
pub fn survive() -> io::Result<()> {
    let mut result = Ok(());
    BEFORE.get_or_init(|| {
        let (before, installed) = install();
        result = installed;
        before
    });
    result
}

fn install() -> (libc::sigaction, io::Result<()>) {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    // SAFETY: plain data of C, for which zeroes are a value: the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let mut before = action;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a handler may.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
    (before, if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) })
}

/// Does nothing but loads, stores and system calls, and leaves `errno` as it was.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler of this kind a valid one.
    let info = unsafe { &*info };
    // SAFETY: a function without conditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: each thread has its own, for as long as it lives.
    let saved = unsafe { errno.read() };
    let is_fault = info.si_code > 0;
    // SAFETY: plain data, which is the address if the signal is one of a fault, and is not used otherwise.
    let addr = unsafe { info.si_addr() }.addr();
    if !(is_fault && replace(addr)) {
        give_up(signal, is_fault);
    }
    // SAFETY: as above.
    unsafe { errno.write(saved) };
}

/// The signal is not for us: it does what it did before.
fn give_up(signal: libc::c_int, is_fault: bool) {
    let before = BEFORE.get().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: null (and then nothing is changed), or what was installed before. A fault happens again, to it.
    unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
    if !is_fault {
        // SAFETY: sends a signal to this thread. It was sent by a process, and arrives once more when this returns.
        unsafe { libc::raise(signal) };
    }
}

/// Replaces the page at `addr`, if that is in a watched mapping, and rings its alarm.
fn replace(addr: usize) -> bool {
    // SAFETY: null, or a slot that was leaked.
    let first: Option<&'static Slot> = unsafe { SLOTS.load(Ordering::Acquire).as_ref() };
    let slots = std::iter::successors(first, |slot| slot.next);
    let Some((page, len, alarm)) = slots.filter_map(|slot| slot.find(addr)).next() else { return false };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: a whole page of a mapping of guest memory, which nobody has a reference into: it is only ever copied. The
    // thread that was interrupted is about to touch it and so keeps the mapping.
    let mapped = unsafe { libc::mmap(ptr::with_exposed_provenance_mut(page), len, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the mapping's watch keeps the alarm.
    unsafe { &*alarm }.ring();
    true
}

#[cfg(all(test, feature = "loom"))]
mod loom;
#[cfg(test)]
mod tests;
