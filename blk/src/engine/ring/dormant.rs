//! A ring that is made and that no thread uses yet, and what rings are not let do.
//!
//! A ring can do most of what system calls can, past any filter of system calls. So each is restricted for good before it
//! does anything (io_uring_register(2), `IORING_REGISTER_RESTRICTIONS`): to the operations that engines and watches are
//! made of, without any flag, and nothing can be registered with it. And it is made in two steps, as whoever makes the
//! threads of a daemon may want to take the right to make rings from all of them first.
//!
//! Files, too, are not registered. That would save an operation the few nanoseconds of looking up an fd, less than can be
//! measured of a whole I/O. But the kernel takes some 30 ms to take the ring of a dead process apart, and what is registered stays
//! open until then, the disk's lock with it: a successor would wait for no reason. As it is, the last I/O holds the file.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};

use super::Ring;

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
}

impl std::fmt::Debug for DormantRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DormantRing")
    }
}

impl DormantRing {
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
        uring.submitter().register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        Ok(Self { uring })
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
