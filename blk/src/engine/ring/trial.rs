//! Attempts at what rings must not do: for tests, and for whoever wants to see that they are refused on this host.
#![expect(unsafe_code, reason = "puts entries into the kernel's submission ring")]

use std::io;

use io_uring::{opcode, squeue, types};
use rustix::io::Errno;

use super::Client;

/// Something that a ring refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// To open a file by its name.
    OpenAt,
    /// To make a socket.
    Socket,
    /// To connect a socket.
    Connect,
    /// To make one operation depend on another.
    Link,
    /// To register memory.
    RegisterBuffers,
    /// To register files.
    RegisterFiles,
}

impl Attempt {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OpenAt, Self::Socket, Self::Connect, Self::Link, Self::RegisterBuffers, Self::RegisterFiles];

    fn entry(self) -> Option<squeue::Entry> {
        let name = c"/etc/passwd".as_ptr();
        Some(match self {
            Self::OpenAt => opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), name).build(),
            Self::Socket => opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            Self::Connect => opcode::Connect::new(types::Fd(0), name.cast(), 2).build(),
            Self::Link => opcode::Fsync::new(types::Fd(0)).build().flags(squeue::Flags::IO_LINK),
            Self::RegisterBuffers | Self::RegisterFiles => return None,
        })
    }
}

impl Client {
    /// Attempts something and waits for the answer, which is an error unless the ring is less than it should be.
    ///
    /// # Errors
    /// When the ring itself fails.
    pub fn attempt(&mut self, attempt: Attempt) -> io::Result<Result<u32, Errno>> {
        let Some(entry) = attempt.entry() else { return Ok(self.register(attempt)) };
        // SAFETY: the entry points to nothing, or to a text that is as long as the program lives and only read.
        unsafe { self.push(entry, 0) }?;
        loop {
            if let Some(event) = self.next_event() {
                let error = |_| Errno::from_raw_os_error(event.result.saturating_neg());
                return Ok(u32::try_from(event.result).map_err(error));
            }
            self.wait()?;
        }
    }

    fn register(&self, attempt: Attempt) -> Result<u32, Errno> {
        let inner = self.ring.0.borrow();
        let submitter = inner.uring.submitter();
        let answer = match attempt {
            Attempt::RegisterFiles => submitter.register_files_sparse(1),
            _ => submitter.register_buffers_sparse(1),
        };
        answer.map(|()| 0).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}
