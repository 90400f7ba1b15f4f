//! An engine with a file, a guest's memory, and all that makes requests.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use tempfile::NamedTempFile;

use crate::bio::{BioSet, Op};
use crate::doubles::guest_ram::GuestRam;
use crate::engine::ring::Ring;
use crate::engine::sync::SyncEngine;
use crate::engine::uring::UringEngine;
use crate::request::{Command, TagSet};
use crate::sector::{DiskRange, Sector};

use super::*;

/// Bytes of the file.
pub(super) const FILE_BYTES: u64 = 8 << 20;

/// How many requests an engine of a rig takes at a time: more than its ring has entries.
const DEPTH: u16 = 64;

pub(super) struct Rig {
    pub(super) engine: Box<dyn Engine>,
    pub(super) ring: Option<Ring>,
    pub(super) ram: GuestRam,
    pub(super) file: NamedTempFile,
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

/// Calls `test` with every kind of engine on every kind of file.
pub(super) fn with_each(test: impl Fn(Rig)) {
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
        let (tags, bios) = (TagSet::new(DEPTH), BioSet::new(DEPTH.into()));
        Some(Self { engine, ring, ram: GuestRam::new(2, 512), file, tags, bios })
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
        Request::new(self.tags.try_take().expect("a tag is free"), command, bio, None)
    }

    /// Waits for `count` requests to finish.
    pub(super) fn wait(&mut self, count: usize) -> Vec<(Request, IoResult)> {
        let mut done = Vec::new();
        loop {
            self.engine.reap(&mut done);
            match &self.ring {
                _ if done.len() >= count => break,
                Some(ring) => ring.enter(true).expect("io_uring_enter(2)"),
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

    /// What is in the file, not asked through the engine.
    pub(super) fn in_file(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.as_file().read_exact_at(&mut bytes, offset).expect("inside the file");
        bytes
    }

    /// Fills the file with `bytes` from `offset` on.
    pub(super) fn fill(&self, offset: u64, bytes: &[u8]) {
        self.file.as_file().write_all_at(bytes, offset).expect("there is room");
    }

    /// How much space the file takes.
    pub(super) fn allocated(&self) -> u64 {
        self.file.as_file().sync_all().expect("fsync(2)");
        self.file.as_file().metadata().expect("fstat(2)").blocks() * 512
    }
}

/// An engine on `backing`: on io_uring if there is a ring.
pub(super) fn engine(backing: &Arc<Backing>, ring: Option<&Ring>) -> Box<dyn Engine> {
    match ring {
        Some(ring) => Box::new(UringEngine::new(Arc::clone(backing), DEPTH, ring).expect("a free slot")),
        None => Box::new(SyncEngine::new(Arc::clone(backing), DEPTH)),
    }
}
