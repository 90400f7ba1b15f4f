//! Memory: the guest's, mapped and checked, and our own, zeroed and bounded.
//!
//! This is the leftmost crate of the workspace and the one where `unsafe` lives. Whatever it hands out is
//! sound to use from safe code: memory of a guest is only ever copied in and out, never borrowed as `&[u8]`,
//! and it stays mapped for as long as something that points into it is alive.
//!
//! | module | what it is | Linux counterpart |
//! |---|---|---|
//! | [`gfp`] | how an allocation may behave | `gfp_t` |
//! | [`budget`] | a bound on memory that threads share | memory cgroups |
//! | [`kzalloc`] | zeroed memory out of a bounded arena | `kzalloc(9)` |
//! | [`mempool`] | a fixed reserve of objects | `mempool_t` |
//! | [`region`] | one front-end fd, mapped | none |
//! | [`sigbus`] | guest memory that is taken away | none |
//! | [`dirty`] | which pages of it were written | `log_write` of vhost |
//! | [`guest`] | all regions: guest address to memory | none (`struct kvm_memslots`) |
//! | [`mod@slice`] | a range of guest memory, copied in and out | none |
//! | [`sync`] | what threads share | none |
//! | [`sglist`] | the pieces of memory that one transfer touches | `struct bio_vec` arrays, `struct scatterlist` |
//! | [`anon`] | memory that threads share and copy in and out of | `drivers/block/brd.c` |
//! | [`bounce`] | a stand-in for memory that the disk cannot take | `block/bounce.c` |

pub mod anon;
pub mod bounce;
pub mod budget;
#[cfg(all(feature = "crash-points", debug_assertions))]
pub mod crash;
pub mod dirty;
pub mod gfp;
pub mod guest;
pub mod kzalloc;
pub mod mempool;
pub mod region;
pub mod sglist;
pub mod sigbus;
pub mod slice;
pub mod sync;

/// The unit of every allocation, and the alignment that suits every disk.
///
/// 4096 on every machine, also where the kernel's pages are larger: it is the largest logical block size of a
/// disk, not a property of the memory management unit.
pub const PAGE_SIZE: usize = 4096;
