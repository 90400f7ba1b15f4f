//! Requests: what an engine is asked to do, with the memory and the bio it belongs to.
//!
//! A [`Request`] (Linux: `struct request`) owns its bio, which where the disk cannot take the bio's memory has a bounce
//! buffer that stands in for it. It moves into the engine and comes back from it with a result; in between nobody
//! else can touch what the kernel may be writing to.

use sluice_mem::bounce::Bounce;
use sluice_mem::sglist::SgList;

use crate::bio::Bio;
use crate::overlap::Held;
use crate::sector::DiskRange;

/// What an engine does. The offset and length are the request's. (Linux: `enum req_op` again; here a request's command is
/// another type than a bio's operation, as one bio may take several commands.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)] // As of `Op`.
pub enum Command {
    /// Disk to memory.
    Read,
    /// Memory to disk; with `dsync` durable on completion.
    Write {
        /// Durable on completion.
        dsync: bool,
    },
    /// Make what is written durable.
    Sync,
    /// Give the range's space back; its contents do not matter.
    Discard,
    /// Erase the range so that nothing can be recovered.
    SecureErase,
    /// Make the range read as zeroes; with `unmap` its space is given back.
    Zero {
        /// Give the space back.
        unmap: bool,
    },
}

/// A number that one request of a queue has while it is in flight (Linux: the tag of blk-mq).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u16);

impl Tag {
    /// The number, below the depth of the tag set.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The tags of a queue: how many requests an engine has at a time (Linux: `struct blk_mq_tags`, shared by CPUs; a queue
/// here has one thread).
#[derive(Debug)]
pub struct TagSet {
    free: Vec<Tag>,
    depth: u16,
}

impl TagSet {
    /// `depth` tags.
    #[must_use]
    pub fn new(depth: u16) -> Self {
        Self { free: (0..depth).rev().map(Tag).collect(), depth }
    }

    /// A tag, or `None` while all are in flight.
    #[inline]
    pub fn try_take(&mut self) -> Option<Tag> {
        self.free.pop()
    }

    /// Returns a tag.
    ///
    /// # Panics
    /// When more come back than were given.
    #[inline(always)]
    pub fn put(&mut self, tag: Tag) {
        assert!(self.free.len() < usize::from(self.depth), "a tag came back twice");
        self.free.push(tag);
    }

    /// Whether there is one to take.
    #[must_use]
    pub fn available(&self) -> bool {
        !self.free.is_empty()
    }

    /// How many are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        usize::from(self.depth) - self.free.len()
    }
}

/// How a chain of bios ended (Linux: `blk_status_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All of it was done.
    Ok,
    /// Some of it failed.
    IoErr,
    /// The disk does not do such things.
    NotSupp,
}

/// What an engine says of a request (Linux: the `res` of an I/O control block): how many bytes it moved, or the system's error.
pub type IoResult = Result<u32, rustix::io::Errno>;

/// A part of one disk block: the block is read, and for a write changed and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partial {
    /// Where in the block the bio begins.
    pub(crate) skip: usize,
    /// How many bytes of the block the bio has.
    pub(crate) len: usize,
}

/// What is to be known of a request beside its bios. It is kept in the first of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestState {
    tag: Tag,
    pub(crate) command: Command,
    /// What is still to do on the disk.
    range: DiskRange,
    pub(crate) partial: Option<Partial>,
    /// The blocks that nobody else may write to meanwhile.
    pub(crate) held: Option<Held>,
    /// How often in a row the engine said "again" without moving a byte.
    pub(crate) retries: u8,
}

impl RequestState {
    /// That of a bio which is no request.
    pub(crate) const NONE: Self = Self::new(Tag(u16::MAX), Command::Sync, DiskRange::none());

    const fn new(tag: Tag, command: Command, range: DiskRange) -> Self {
        Self { tag, command, range, partial: None, held: None, retries: 0 }
    }
}

/// One operation for an engine (Linux: `struct request`). Who has it has the memory: there is no completion callback, the
/// request itself comes back.
///
/// It is the bios that the operation does, one after the other on the disk, more than one only with a bounce buffer; and
/// so it is one pointer, as it is moved from hand to hand.
#[derive(Debug)]
pub struct Request(Box<Bio>);

impl Request {
    /// A request for `bios`, whose memory is that of the only bio, or of the first one's bounce buffer.
    #[inline]
    pub(crate) fn new(tag: Tag, command: Command, mut bios: Box<Bio>) -> Self {
        debug_assert!(bios.next.is_none() || bios.bounce.is_some());
        let range = bios.rest().fold(bios.range, |range, bio| range.extended(bio.range.len()));
        bios.state = RequestState::new(tag, command, range);
        Self(bios)
    }

    /// A request for a bio that is a part of a block of `block` bytes, which its bounce buffer stands in for. It begins
    /// with reading the block.
    pub(crate) fn part_of_block(tag: Tag, bio: Box<Bio>, block: u64) -> Self {
        let range = bio.range.around(block);
        let in_block = |bytes: u64| usize::try_from(bytes).expect("a block is small");
        let partial =
            Partial { skip: in_block(bio.range.offset() - range.offset()), len: in_block(bio.range.len()) };
        debug_assert_eq!(range.len(), block, "a part of one block");
        let mut request = Self::new(tag, Command::Read, bio);
        *request.state_mut() =
            RequestState { partial: Some(partial), ..RequestState::new(tag, Command::Read, range) };
        request
    }

    #[inline]
    pub(crate) fn state(&self) -> &RequestState {
        &self.0.state
    }

    #[inline]
    pub(crate) fn state_mut(&mut self) -> &mut RequestState {
        &mut self.0.state
    }

    /// Its number among the requests in flight.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.0.state.tag
    }

    /// What shall be done.
    #[must_use]
    pub fn command(&self) -> Command {
        self.0.state.command
    }

    /// Where on the disk it starts, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.state.range.offset()
    }

    /// How many bytes of the disk it concerns. 0 for [`Command::Sync`] of a flush.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a request is never empty, a flush has no range")]
    pub fn len(&self) -> u64 {
        self.0.state.range.len()
    }

    /// The memory that the disk shall use: `len` bytes for reads and writes. The pieces, and what they point to, are
    /// valid while the request lives.
    #[must_use]
    pub fn sg(&self) -> &SgList {
        self.0.bounce.as_ref().map_or(&self.0.sg, Bounce::pages)
    }

    /// Whether it is one bio in memory of its own: what was moved need not be copied or divided.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.0.next.is_none() && self.0.bounce.is_none()
    }

    /// Whether it is a read or a write, and `count` bytes are all that it has to do.
    #[inline]
    pub(crate) fn is_all_moved(&self, count: u32) -> bool {
        let RequestState { command, range, .. } = &self.0.state;
        matches!(command, Command::Read | Command::Write { .. })
            && u64::from(count) == range.len()
            && count > 0
    }

    /// Whether data was copied from or to memory that the guest may have had no more by then. Where nothing is copied, the
    /// kernel says so itself.
    #[inline]
    pub(crate) fn was_copied_in_vain(&self) -> bool {
        self.0.bounce.is_some() && self.0.list().any(|bio| bio.sg.is_lost())
    }

    /// The first bio that is not done.
    pub(crate) fn bio(&self) -> &Bio {
        &self.0
    }

    /// The first `count` bytes are done: they are copied out where that is due. Returns a bio that is done with them
    /// and not the last: to be called again with what is left of `count` until it returns none.
    #[inline]
    pub(crate) fn advance(&mut self, count: &mut u32) -> Option<Box<Bio>> {
        let bios = &mut *self.0;
        let now = u32::try_from(bios.range.len()).unwrap_or(u32::MAX).min(*count);
        *count -= now;
        let _ = bios.state.range.take_front(u64::from(now));
        let _ = bios.range.take_front(u64::from(now));
        if let Some(bounce) = &mut bios.bounce {
            if bios.state.command == Command::Read {
                bounce.copy_out(0, &bios.sg, now as usize);
            }
            bounce.advance(now as usize);
        }
        if !bios.zero_by_writing {
            bios.mark_written();
            bios.sg.advance(now as usize);
        }
        let is_done = bios.range.len() == 0;
        let mut next = bios.next.take_if(|_| is_done)?;
        next.bounce = bios.bounce.take();
        next.state = bios.state;
        Some(std::mem::replace(&mut self.0, next))
    }

    /// The tag, and the bios that are not done.
    #[inline]
    pub(crate) fn into_parts(mut self) -> (Tag, Box<Bio>) {
        self.0.bounce = None;
        (self.0.state.tag, self.0)
    }
}
