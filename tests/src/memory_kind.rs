//! What guest memory may be made of, and how a VMM gets it.
//!
//! A back-end is handed a file descriptor and an offset whatever is behind it, but it is not all the same to it: huge pages
//! are mapped at their own multiples, a file may be one on a disk, and memory that is secret even to the kernel cannot be
//! given to direct I/O.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use crate::huge_pages::{self, HugePages};
use crate::memory::{GuestMemory, Region, SEAM, memory_file};

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// memfd_create: what VMMs use most.
    Memfd,
    /// memfd_create with huge pages.
    HugePages,
    /// A file of a tmpfs, as with `-mem-path /dev/shm`.
    Tmpfs,
    /// A file on a disk.
    File,
    /// memfd_secret: memory that only the processes that map it can reach.
    Secret,
}

/// A file that is guest memory, and the pages behind it.
#[derive(Debug)]
struct MemoryFile {
    file: Arc<File>,
    pages: Option<HugePages>,
}

/// Guest memory of two kinds side by side, with the boundary at [`SEAM`].
///
/// ```text
/// 0                4 MiB               8 MiB
/// | below          | above             |     each a few pages into its file
/// ```
#[derive(Debug)]
pub struct KindedMemory {
    /// The memory, mapped.
    pub memory: Arc<GuestMemory>,
    /// Given back when nobody has the memory any more.
    _pages: [Option<HugePages>; 2],
}

impl MemoryKind {
    /// Where regions of this kind begin in their files: not at the start, and where only pages matter at odd ones.
    fn file_offset(self) -> u64 {
        match self {
            Self::Memfd => 3 * 4096,
            Self::HugePages => huge_pages::BYTES,
            Self::Tmpfs => 4096,
            Self::File => 5 * 4096,
            Self::Secret => 7 * 4096,
        }
    }

    fn file(self, size: u64) -> Result<MemoryFile, String> {
        let sized = |file: File| {
            file.set_len(size).map_err(|e| format!("a file of {size} bytes: {e}"))?;
            Ok(MemoryFile { file: Arc::new(file), pages: None })
        };
        match self {
            Self::Memfd => Ok(MemoryFile { file: memory_file(size), pages: None }),
            Self::HugePages => {
                let pages = Some(HugePages::set_aside(size.div_ceil(huge_pages::BYTES))?);
                let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
                let file = rustix::fs::memfd_create("guest-memory", flags).map_err(|e| e.to_string())?;
                Ok(MemoryFile { pages, ..sized(file.into())? })
            }
            Self::Tmpfs => sized(tempfile::tempfile_in("/dev/shm").map_err(|e| format!("/dev/shm: {e}"))?),
            Self::File => sized(tempfile::tempfile_in(crate::disk::disk_dir()).map_err(|e| e.to_string())?),
            Self::Secret => sized(secret_file()?),
        }
    }
}

/// A file of secret memory.
fn secret_file() -> Result<File, String> {
    // SAFETY: the system call takes a number and returns a file descriptor or an error.
    #[expect(unsafe_code, reason = "no crate of ours wraps this system call")]
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(format!("no secret memory: {}", std::io::Error::last_os_error()));
    }
    let fd = i32::try_from(fd).expect("a file descriptor is an int");
    // SAFETY: the descriptor was just made, and nobody else has it.
    #[expect(unsafe_code, reason = "no crate of ours wraps this system call")]
    let file = unsafe { File::from_raw_fd(fd) };
    Ok(file)
}

impl KindedMemory {
    /// Bytes of each kind.
    pub const BYTES: u64 = SEAM;

    /// Memory of these kinds.
    ///
    /// # Errors
    /// Why this host has none of one of them.
    pub fn new(below: MemoryKind, above: MemoryKind) -> Result<Self, String> {
        let region = |kind: MemoryKind, guest_addr| {
            let MemoryFile { file, pages } = kind.file(kind.file_offset() + Self::BYTES)?;
            Ok::<_, String>((Region::new(guest_addr, Self::BYTES, &file, kind.file_offset()), pages))
        };
        let ((below, below_pages), (above, above_pages)) = (region(below, 0)?, region(above, SEAM)?);
        let memory = GuestMemory::with_seam(vec![below, above]);
        Ok(KindedMemory { memory, _pages: [below_pages, above_pages] })
    }
}
