//! How an allocation may behave.
//!
//! The counterpart of Linux's `gfp_t`. Where Linux passes a bit mask and trusts the caller to know whether it may
//! sleep, here the permission to wait is a value: [`Gfp::kernel`] takes a [`MayWait`], which only control threads make
//! and which cannot leave its thread. Queue threads, on which the I/O of guests depends, have none, so an allocation that
//! waits does not compile there. On the control thread it does:
//!
//! ```
//! use sluice_mem::{budget::Budget, gfp::{Gfp, MayWait}};
//!
//! let permission = MayWait::on_control_thread();
//! let gfp = Gfp::kernel(&permission);
//! assert!(gfp.may_wait());
//! assert!(Budget::new("example's", 10).charge(10, gfp).is_ok());
//! // What can be taken anywhere waits nowhere.
//! let answer = std::thread::scope(|scope| scope.spawn(move || Gfp::NOWAIT.may_wait()).join());
//! assert!(!answer.unwrap());
//! ```
//!
//! And on a queue thread it does not, since neither the permission nor what was made of it can be taken along ("`*const
//! ()` cannot be shared between threads safely"):
//!
//! ```compile_fail,E0277
//! use sluice_mem::gfp::{Gfp, MayWait};
//!
//! let permission = MayWait::on_control_thread();
//! let gfp = Gfp::kernel(&permission);
//! std::thread::scope(|scope| scope.spawn(move || gfp.may_wait()).join());
//! ```
//!
//! ```compile_fail,E0277
//! let permission = sluice_mem::gfp::MayWait::on_control_thread();
//! std::thread::spawn(move || drop(permission));
//! ```
//!
//! Nor can a permission be made up, or be kept for longer than there is one ("field is private", "does not live long
//! enough"):
//!
//! ```compile_fail,E0451
//! let permission = sluice_mem::gfp::MayWait { _not_send: std::marker::PhantomData };
//! ```
//!
//! ```compile_fail,E0597
//! use sluice_mem::gfp::{Gfp, MayWait};
//!
//! let gfp = {
//!     let permission = MayWait::on_control_thread();
//!     Gfp::kernel(&permission)
//! };
//! gfp.may_wait();
//! ```
//!
//! There is no counterpart of `GFP_DMA`: all memory from [`kzalloc`](crate::kzalloc::kzalloc) is page-aligned, and so
//! addressable by direct I/O.

use std::marker::PhantomData;

/// How an allocation may behave: whether it may wait for memory, and whether it may use a reserve (Linux: `gfp_t`, which
/// says many things more about where memory is to come from; here it comes from one place).
#[derive(Debug, Clone, Copy)]
pub struct Gfp<'a> {
    reserve: bool,
    wait: Option<&'a MayWait>,
}

impl Gfp<'static> {
    /// Memory at once or an error, and never from a reserve (Linux: `GFP_NOWAIT`).
    pub const NOWAIT: Self = Self { reserve: false, wait: None };

    /// The same, and the reserve may be used: for work whose completion gives memory back (Linux: `GFP_ATOMIC`).
    pub const ATOMIC: Self = Self { reserve: true, wait: None };
}

impl<'a> Gfp<'a> {
    /// The allocation may wait until somebody gives memory back (Linux: `GFP_KERNEL`).
    #[must_use]
    pub fn kernel(permission: &'a MayWait) -> Self {
        Self { reserve: false, wait: Some(permission) }
    }

    /// Whether the allocation may wait.
    #[must_use]
    pub fn may_wait(self) -> bool {
        self.wait.is_some()
    }

    /// Whether the allocation may use a reserve.
    #[must_use]
    pub fn may_use_reserve(self) -> bool {
        self.reserve
    }
}

/// The permission to wait for memory: a token of a control thread.
///
/// It can be neither sent to nor shared with another thread. No Linux counterpart: there `might_sleep()` finds the mistake
/// when it is made, if it is made while somebody looks.
#[derive(Debug)]
pub struct MayWait {
    _not_send: PhantomData<*const ()>,
}

impl MayWait {
    /// Claims that the calling thread is a control thread: one on which no I/O of a guest depends.
    #[must_use]
    pub fn on_control_thread() -> Self {
        Self { _not_send: PhantomData }
    }
}
