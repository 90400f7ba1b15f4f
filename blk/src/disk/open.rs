//! Opening a disk: the checks, the choice of the cache mode, and what to say when it does not work.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::topology::{self, DioAlign, Topology};
use super::{Backing, Cache, Disk, DiskOptions, ImageLock, Locking, Storage, identity, lifetime};
use crate::engine::sync::secure_erase;
use crate::limits::QueueLimits;
use crate::sector::{SECTOR_SIZE, Sector};

/// Why a disk cannot be served. All of these are the host's matter: a wrong option, or a file that is not as it
/// should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The file is missing, forbidden, or the like.
    #[error("cannot open {} for {}{}", path.display(), access(*read_only), hint(source, *read_only))]
    Open {
        /// The file.
        path: PathBuf,
        /// Whether it was to be opened for reading only.
        read_only: bool,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("{} is a {kind}: a disk is a regular file or a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The cache mode wants direct I/O, and the file does not take it.
    #[error("{} does not take direct I/O, which cache={cache} needs: use cache=writeback or cache=writethrough", path.display())]
    NoDirectIo {
        /// The file.
        path: PathBuf,
        /// The mode that was asked for.
        cache: Cache,
    },
    /// A block size that does not exist.
    #[error("a logical block size of {asked} bytes does not exist: 512 and 4096 do")]
    OddBlockSize {
        /// What was asked for.
        asked: u32,
    },
    /// A granularity or alignment that does not exist.
    #[error("a discard {what} of {asked} bytes does not exist: it is a multiple of the block size, {block}")]
    Discards {
        /// Which of the two.
        what: &'static str,
        /// What was asked for.
        asked: u32,
        /// The logical block size.
        block: u32,
    },
    /// The size is not whole blocks, so its end could not be addressed.
    #[error(
        "{} has {size} bytes, which is not a multiple of the {block} bytes that it is addressed in{way_out}; make it longer with `truncate -s %{block}`",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it must be a multiple of.
        block: u32,
        /// What else could be done.
        way_out: &'static str,
    },
    /// A size without a file that is not whole blocks.
    #[error("a disk of {bytes} bytes: it must be a multiple of the block size, {block}, and not empty")]
    Bytes {
        /// What was asked for.
        bytes: u64,
        /// What it must be a multiple of.
        block: u32,
    },
    /// There is not so much memory for a disk in memory.
    #[error("there is no memory for a disk of {bytes} bytes")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The size of a device is not whole blocks, so its end could not be addressed, not through the page cache either.
    #[error(
        "{} has {size} bytes, which is not a multiple of the {block} bytes that it is addressed in: its end cannot be reached",
        path.display()
    )]
    DeviceSize {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it must be a multiple of.
        block: u64,
    },
    /// The kernel gives a lock against all others only to those who may write.
    #[error("a read-only disk cannot be locked for itself: use lock=shared or lock=off, or leave it out")]
    ExclusiveReader,
    /// A thread that waits for the disk cannot look at the time.
    #[error(
        "a timeout for I/O needs engine=uring: with engine=sync a thread waits for the disk and cannot stop waiting"
    )]
    TimeoutOfSync,
    /// There is nothing to serve.
    #[error("{} is empty: give it a size with `truncate -s 1G`", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The system does not tell about the file.
    #[error("cannot find out about {}", path.display())]
    Query {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn access(read_only: bool) -> &'static str {
    if read_only { "reading" } else { "reading and writing" }
}

fn hint(error: &io::Error, read_only: bool) -> &'static str {
    let forbidden =
        matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
    if forbidden && !read_only { " (to serve it read-only, say so)" } else { "" }
}

pub(super) fn open(options: &DiskOptions, path: &Path) -> Result<Disk, DiskError> {
    let query = |source| DiskError::Query { path: path.to_owned(), source };
    let is_block = check_kind(options, path)?;
    let (file, cache, direct) = open_file(options, path, is_block)?;
    let topology = topology::topology(&file, is_block).map_err(query)?;
    let logical = choose_block(options, topology, direct)?;
    let mut limits = topology::limits(topology, logical, direct);
    choose_discards(options, &mut limits)?;
    let capacity = match is_block {
        true => device_capacity(path, &file, limits.unit().max(topology.logical.into()))?,
        false => file_capacity(path, &file, &limits, direct.is_some())?,
    };
    let canonical = path.canonicalize().map_err(query)?;
    let sysfs = if is_block { Some(topology::sysfs_device(&file).map_err(query)?) } else { None };
    let backing = Backing::new(file, is_block);
    Ok(Disk {
        secure_erase: can_secure_erase(&backing),
        storage: Storage::File(Arc::new(backing)),
        medium: options.medium.clone(),
        capacity,
        limits,
        cache,
        read_only: options.read_only,
        engine: options.engine,
        identity: identity::serial_of(&canonical),
        discard: options.discard,
        write_zeroes: options.write_zeroes,
        lifetime: sysfs.and_then(|device| lifetime::lifetime(&device)),
        overlaps: Arc::default(),
        lock: ImageLock::new(None, Locking::Off),
        on_enospc: options.on_enospc,
        io_timeout: None,
    })
}

/// Whether a block device can erase securely: it says so of a range that it would not erase, being no whole sectors.
fn can_secure_erase(backing: &Backing) -> bool {
    secure_erase(backing, 1, 1) == Err(Errno::INVAL)
}

/// Whether the path is a block device. Asked before it is opened: opening a pipe would wait for a writer.
fn check_kind(options: &DiskOptions, path: &Path) -> Result<bool, DiskError> {
    let kind = std::fs::metadata(path)
        .map_err(|source| DiskError::Open { path: path.to_owned(), read_only: options.read_only, source })?
        .file_type();
    let wrong = |kind| Err(DiskError::Kind { path: path.to_owned(), kind });
    match kind {
        kind if kind.is_file() => Ok(false),
        kind if kind.is_block_device() => Ok(true),
        kind if kind.is_dir() => wrong("directory"),
        kind if kind.is_fifo() => wrong("pipe"),
        kind if kind.is_socket() => wrong("socket"),
        _ => wrong("character device"),
    }
}

/// Opens the file with the cache mode that was asked for or that suits it. Returns it with the mode, and what direct I/O
/// asks for where it is used.
fn open_file(
    options: &DiskOptions,
    path: &Path,
    is_block: bool,
) -> Result<(File, Cache, Option<DioAlign>), DiskError> {
    if options.cache.is_none_or(Cache::is_direct) {
        let cache = options.cache.unwrap_or(Cache::None);
        if let Some((file, align)) = open_direct(options, path, is_block)? {
            return Ok((file, cache, Some(align)));
        }
        if options.cache.is_some() {
            return Err(DiskError::NoDirectIo { path: path.to_owned(), cache });
        }
    }
    let cache = options.cache.unwrap_or(Cache::Writeback);
    let file = open_flags(options, path, 0).map_err(|source| DiskError::Open {
        path: path.to_owned(),
        read_only: options.read_only,
        source,
    })?;
    Ok((file, cache, None))
}

/// The file opened for direct I/O, and what that asks for; `None` when it does not take any.
fn open_direct(
    options: &DiskOptions,
    path: &Path,
    is_block: bool,
) -> Result<Option<(File, topology::DioAlign)>, DiskError> {
    let owned = || path.to_owned();
    let file = match open_flags(options, path, libc::O_DIRECT) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        Err(source) => return Err(DiskError::Open { path: owned(), read_only: options.read_only, source }),
    };
    let align =
        topology::dio_align(&file, is_block).map_err(|source| DiskError::Query { path: owned(), source })?;
    Ok(align.filter(|align| align.is_usable()).map(|align| (file, align)))
}

/// Opens the file so that reads leave its access time alone, which costs them less; that is for the file's owner and for
/// who is privileged only (open(2)).
fn open_flags(options: &DiskOptions, path: &Path, flags: i32) -> io::Result<File> {
    let open = |flags: i32| {
        let mut how = OpenOptions::new();
        how.read(true).write(!options.read_only).custom_flags(flags | libc::O_CLOEXEC).open(path)
    };
    match open(flags | libc::O_NOATIME) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(flags),
        opened => opened,
    }
}

/// The logical block size that the guest will see.
fn choose_block(
    options: &DiskOptions,
    topology: Topology,
    direct: Option<DioAlign>,
) -> Result<u32, DiskError> {
    match options.logical_block_size {
        // Larger blocks than guests know are there through the page cache only, which takes any.
        None => Ok(topology::disk_block(topology, direct).max(topology.logical.min(4096))),
        Some(asked @ (512 | 4096)) => Ok(asked),
        Some(asked) => Err(DiskError::OddBlockSize { asked }),
    }
}

/// The units in which the guest shall discard.
pub(super) fn choose_discards(options: &DiskOptions, limits: &mut QueueLimits) -> Result<(), DiskError> {
    let block = limits.logical_block_size;
    let check = |what, asked: u32| match asked {
        0 => Err(DiskError::Discards { what, asked, block }),
        asked if !asked.is_multiple_of(block) => Err(DiskError::Discards { what, asked, block }),
        asked => Ok(asked),
    };
    if let Some(asked) = options.discard_granularity {
        limits.discard_granularity = check("granularity", asked)?;
        limits.discard_alignment = asked;
    }
    if let Some(asked) = options.discard_alignment {
        limits.discard_alignment = check("alignment", asked)?;
    }
    Ok(())
}

/// The size of a device, which the kernel reaches in its own blocks only.
fn device_capacity(path: &Path, file: &File, block: u64) -> Result<Sector, DiskError> {
    let size = size(path, file)?;
    if !size.is_multiple_of(block) {
        return Err(DiskError::DeviceSize { path: path.to_owned(), size, block });
    }
    Ok(Sector(size / SECTOR_SIZE))
}

fn file_capacity(path: &Path, file: &File, limits: &QueueLimits, direct: bool) -> Result<Sector, DiskError> {
    let size = size(path, file)?;
    let block = limits.logical_block_size.max(limits.disk_block_size);
    if !size.is_multiple_of(u64::from(block)) {
        let way_out = match direct && size.is_multiple_of(u64::from(limits.logical_block_size)) {
            true => " by direct I/O (cache=writeback would do)",
            false => "",
        };
        return Err(DiskError::Size { path: path.to_owned(), size, block, way_out });
    }
    Ok(Sector(size / SECTOR_SIZE))
}

fn size(path: &Path, file: &File) -> Result<u64, DiskError> {
    let path = || path.to_owned();
    let mut file: &File = file;
    match file.seek(SeekFrom::End(0)) {
        Ok(0) => Err(DiskError::Empty { path: path() }),
        Ok(size) => Ok(size),
        Err(source) => Err(DiskError::Query { path: path(), source }),
    }
}
