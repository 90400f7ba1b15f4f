//! How an allocation may behave.
//!
//! The counterpart of Linux's `gfp_t`. All allocations here are made by queue threads, which must not sleep, so
//! there is no `GFP_KERNEL`: memory comes at once or not at all. What is left to say is whether an allocation
//! may use the reserve that guarantees forward progress (Linux: `__GFP_HIGH`, `__GFP_MEMALLOC`).

/// How an allocation may behave.
///
/// Memory from [`kzalloc`](crate::kzalloc::kzalloc) is page-aligned, so all of it is addressable by direct
/// I/O; there is no counterpart of `GFP_DMA`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gfp {
    /// Memory at once or an error, and never from the reserve (Linux: `GFP_NOWAIT`).
    Nowait,
    /// The same, and the reserve may be used: for work whose completion gives memory back (Linux:
    /// `GFP_ATOMIC`).
    Atomic,
}
