//! A ring that is made and that no thread uses yet, and what rings are not let do.
//!
//! A ring can do most of what system calls can, past any filter of system calls. So each is restricted for good before it
//! does anything (io_uring_register(2), `IORING_REGISTER_RESTRICTIONS`): to the operations that engines and watches are
//! made of, to changes of its table of files, and to files of that table (`IOSQE_FIXED_FILE`). And it is made in two steps,
//! as whoever makes the threads of a daemon may want to take the right to make rings from all of them first.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};
use rustix::process::{Resource, getrlimit};

use super::Ring;

/// What may still be done to a ring that is in use: io_uring_register(2), `IORING_REGISTER_FILES_UPDATE`.
const REGISTER_FILES_UPDATE: u8 = 6;

/// The operations that engines and watches are made of.
const OPERATIONS: [u8; 9] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::UringCmd16::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
];

/// A ring that does nothing yet. It may be sent to the thread that is to use it.
pub struct DormantRing {
    pub(super) uring: IoUring,
    /// How many files its table has room for.
    pub(super) files_max: u32,
    pub(super) files: Files,
}

/// What entries may say of the file that they are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// Only its number in the table, and every entry must say that it does.
    Registered,
    /// Its number in the table, or an fd. For Linux before 6.13: there an entry that is in the kernel for long, as watches
    /// are, keeps every file open that leaves the table meanwhile.
    Any,
}

impl std::fmt::Debug for DormantRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DormantRing")
    }
}

impl DormantRing {
    /// How many files a ring has room for; fewer where RLIMIT_NOFILE is lower, which bounds the kernel's table.
    const FILES_MAX: u32 = 1025;

    /// A ring with room for `entries` submissions between two [`Ring::enter`]s; more are possible and cost a system call.
    ///
    /// # Errors
    /// When the kernel has no io_uring or does not allow it.
    pub fn new(entries: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(entries.saturating_mul(4))
            .setup_clamp()
            .build(entries)
            .or_else(|_| {
                IoUring::builder().setup_r_disabled().setup_cqsize(entries.saturating_mul(4)).build(entries)
            })?;
        // 6.15 is the first version after 6.13 that a ring can be told by.
        let files = if uring.params().is_feature_no_iowait() { Files::Registered } else { Files::Any };
        uring.submitter().register_restrictions(&mut restrictions(files))?;
        let files_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let files_max = Self::FILES_MAX.min(u32::try_from(files_max).unwrap_or(u32::MAX));
        uring.submitter().register_files_sparse(files_max)?;
        Ok(Self { uring, files_max, files })
    }

    /// Whether entries can only be about files that were registered with the ring.
    #[must_use]
    pub fn takes_registered_files_only(&self) -> bool {
        self.files == Files::Registered
    }

    /// The ring, for the calling thread.
    ///
    /// # Errors
    /// What io_uring_register(2) says.
    pub fn wake(self) -> io::Result<Ring> {
        self.uring.submitter().register_enable_rings()?;
        Ok(Ring::of(self))
    }
}

fn restrictions(files: Files) -> Vec<Restriction> {
    let mut all: Vec<_> = OPERATIONS.into_iter().map(Restriction::sqe_op).collect();
    all.push(Restriction::register_op(REGISTER_FILES_UPDATE));
    let flag = squeue::Flags::FIXED_FILE.bits();
    all.push(match files {
        Files::Registered => Restriction::sqe_flags_required(flag),
        Files::Any => Restriction::sqe_flags_allowed(flag),
    });
    all
}
