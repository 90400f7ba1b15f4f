//! An engine with a file or memory under it, a guest's memory, and all that makes requests.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use sluice_mem::PAGE_SIZE;
use sluice_mem::anon::AnonMem;
use sluice_mem::gfp::Gfp;
use sluice_mem::kzalloc::Arena;
use sluice_mem::sglist::SgList;
use tempfile::NamedTempFile;

use crate::bio::{BioSet, Op};
use crate::doubles::guest_ram::GuestRam;
use crate::engine::null::NullEngine;
use crate::engine::ram::RamEngine;
use crate::engine::ring::{Ring, Wait};
use crate::engine::sync::SyncEngine;
use crate::engine::uring::UringEngine;
use crate::request::{Command, TagSet};
use crate::sector::{DiskRange, Sector};

use super::*;

/// Bytes of the file, or of the memory in its place.
pub(super) const FILE_BYTES: u64 = 8 << 20;

/// How many requests an engine of a rig takes at a time: more than its ring has entries.
const DEPTH: u16 = 64;

pub(super) struct Rig {
    pub(super) engine: Box<dyn Engine>,
    pub(super) ring: Option<Ring>,
    pub(super) ram: GuestRam,
    medium: Medium,
    tags: TagSet,
    bios: BioSet,
}

/// What a rig's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Cached,
    Direct,
    /// On a file system that is memory.
    InMemory,
}

/// What the engine keeps the data in.
pub(super) enum Medium {
    File(NamedTempFile),
    Memory(Arc<AnonMem>),
}

/// Calls `test` with every kind of engine that keeps data, on every kind of medium.
pub(super) fn with_each(test: impl Fn(Rig)) {
    with_each_file(&test);
    eprintln!("in memory");
    test(Rig::in_memory());
}

/// Calls `test` with every kind of engine on every kind of file.
pub(super) fn with_each_file(test: impl Fn(Rig)) {
    for uring in [false, true] {
        for kind in [Kind::Cached, Kind::Direct, Kind::InMemory] {
            let ring = uring.then(|| Ring::new(8).expect("tests need io_uring"));
            if let Some(rig) = Rig::new(kind, ring) {
                eprintln!("with io_uring: {uring}, file: {kind:?}");
                test(rig);
            }
        }
    }
}

impl Rig {
    /// An engine on a file of its own, on io_uring if there is a ring. `None`, and a word about it, where there is no such
    /// file.
    pub(super) fn new(kind: Kind, ring: Option<Ring>) -> Option<Self> {
        let file = match kind {
            Kind::InMemory => NamedTempFile::new_in("/dev/shm"),
            Kind::Cached | Kind::Direct => NamedTempFile::new(),
        };
        let file = file.expect("a temporary file");
        file.as_file().set_len(FILE_BYTES).expect("a sparse file");
        let flags = if kind == Kind::Direct { libc::O_DIRECT } else { 0 };
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(file.path());
        if opened.is_err() && kind == Kind::Direct {
            eprintln!("SKIPPED: direct I/O is not tested, as {} takes none", file.path().display());
            return None;
        }
        let backing = Arc::new(Backing::new(opened.expect("it exists"), false));
        assert!(backing.is_in_memory || kind != Kind::InMemory, "/dev/shm is a tmpfs");
        let engine = engine(&backing, ring.as_ref());
        Some(Self::with(engine, ring, Medium::File(file)))
    }

    /// The engine of a disk in memory.
    pub(super) fn in_memory() -> Self {
        let memory = Arc::new(AnonMem::new(FILE_BYTES).expect("some memory"));
        let engine = RamEngine::new(Arc::clone(&memory), DEPTH);
        Self::with(Box::new(engine), None, Medium::Memory(memory))
    }

    /// The null engine, which has no medium.
    pub(super) fn without_medium() -> Self {
        Self { engine: Box::new(NullEngine::new(DEPTH)), ..Self::in_memory() }
    }

    fn with(engine: Box<dyn Engine>, ring: Option<Ring>, medium: Medium) -> Self {
        let (tags, bios) = (TagSet::new(DEPTH), BioSet::new(DEPTH.into()));
        Self { engine, ring, ram: GuestRam::new(2, 512), medium, tags, bios }
    }

    /// The file, of an engine on one.
    pub(super) fn file(&self) -> &NamedTempFile {
        match &self.medium {
            Medium::File(file) => file,
            Medium::Memory(_) => panic!("a disk in memory has no file"),
        }
    }

    /// The medium without its engine, which is dropped.
    pub(super) fn into_medium(self) -> Medium {
        self.medium
    }

    /// A request for `len` bytes at `offset` of the file, to or from `pieces` of memory.
    pub(super) fn request(
        &mut self,
        command: Command,
        offset: u64,
        len: u64,
        pieces: &[(u64, usize)],
    ) -> Request {
        let range = DiskRange::new(Sector(offset / 512), len, Sector(u64::MAX), 512).expect("whole sectors");
        let mut bio = self.bios.try_take(Op::Read, range).expect("a bio is free");
        bio.sg = self.ram.list(pieces.iter().copied());
        Request::new(self.tags.try_take().expect("a tag is free"), command, bio)
    }

    /// Waits for `count` requests to finish.
    pub(super) fn wait(&mut self, count: usize) -> Vec<(Request, IoResult)> {
        let mut done = Vec::new();
        loop {
            self.engine.reap(&mut done);
            match &self.ring {
                _ if done.len() >= count => break,
                Some(ring) => ring.enter(Wait::Forever).expect("io_uring_enter(2)"),
                None => panic!("{} of {count} requests finished", done.len()),
            }
        }
        assert_eq!(done.len(), count, "each comes back once");
        done
    }

    /// Gives back what a request was made of.
    pub(super) fn put(&mut self, request: Request) {
        let (tag, bio) = request.into_parts();
        self.tags.put(tag);
        self.bios.put(bio);
    }

    /// Has one request done.
    pub(super) fn run(
        &mut self,
        command: Command,
        offset: u64,
        len: u64,
        pieces: &[(u64, usize)],
    ) -> IoResult {
        let request = self.request(command, offset, len, pieces);
        let (tag, was) = (request.tag(), request.offset());
        self.engine.submit(request).expect("it is not full");
        let (request, result) = self.wait(1).pop().expect("one is done");
        assert_eq!((request.tag(), request.command(), request.offset()), (tag, command, was), "unchanged");
        self.put(request);
        result
    }

    /// What is on the medium, not asked through the engine.
    pub(super) fn in_file(&self, offset: u64, len: usize) -> Vec<u8> {
        self.medium.read(offset, len)
    }

    /// Fills the medium with `bytes` from `offset` on.
    pub(super) fn fill(&self, offset: u64, bytes: &[u8]) {
        match &self.medium {
            Medium::File(file) => file.as_file().write_all_at(bytes, offset).expect("there is room"),
            Medium::Memory(memory) => {
                for (at, bytes) in (offset..).step_by(PART).zip(bytes.chunks(PART)) {
                    let list = list(bytes.len());
                    list.write(bytes);
                    memory.write(at, &list);
                }
            }
        }
    }

    /// How much space the file takes; `None` for memory, which tells nobody.
    pub(super) fn allocated(&self) -> Option<u64> {
        let Medium::File(file) = &self.medium else { return None };
        file.as_file().sync_all().expect("fsync(2)");
        Some(file.as_file().metadata().expect("fstat(2)").blocks() * 512)
    }
}

impl Medium {
    /// What is on it.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        match self {
            Self::File(file) => file.as_file().read_exact_at(&mut bytes, offset).expect("inside the file"),
            Self::Memory(memory) => {
                for (at, bytes) in (offset..).step_by(PART).zip(bytes.chunks_mut(PART)) {
                    let list = list(bytes.len());
                    assert_eq!(memory.read(at, &list), bytes.len(), "inside the memory");
                    list.read(bytes);
                }
            }
        }
        bytes
    }
}

/// How many bytes of a disk in memory are looked at at a time: what one list takes.
const PART: usize = 1 << 20;

fn list(len: usize) -> SgList {
    let arena = Arena::new(len + 2 * PAGE_SIZE, 0).expect("address space");
    SgList::alloc(&arena, len, Gfp::NOWAIT).expect("enough pages")
}

/// An engine on `backing`: on io_uring if there is a ring.
pub(super) fn engine(backing: &Arc<Backing>, ring: Option<&Ring>) -> Box<dyn Engine> {
    match ring {
        Some(ring) => Box::new(UringEngine::new(Arc::clone(backing), DEPTH, ring)),
        None => Box::new(SyncEngine::new(Arc::clone(backing), DEPTH)),
    }
}
