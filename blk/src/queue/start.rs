//! From parked bios to requests in the engine: what the disk has to do for a bio, how much of it at once, with which
//! memory, and whether all that it takes is there.

use sluice_mem::PAGE_SIZE;
use sluice_mem::bounce::Bounce;
use sluice_mem::gfp::Gfp;

use super::{RequestQueue, Writes, bytes_in_memory};
use crate::bio::{Bio, BioChain, Op};
use crate::overlap::{Access, Held};
use crate::request::{Command, Request, Status, Tag};
use crate::split::{BounceReason, Piece, next_piece};

/// What is to be done with a bio.
enum Step {
    Run(Command),
    End(Status),
}

impl RequestQueue {
    /// Whether a chain is one bio that the disk takes as it is, and nothing has to be waited for, nor waits before it.
    #[inline(always)]
    pub(super) fn starts_at_once(&self, chain: &BioChain) -> bool {
        let nothing_waits = self.parked.is_empty() && self.again.is_empty() && !self.stalled;
        let has_room = !self.is_full() && self.tags.available() && !self.is_fenced();
        nothing_waits
            && has_room
            && chain.only().is_some_and(|bio| bio.is_sound() && self.as_it_is.takes(bio))
    }

    /// Starts the bio of such a chain.
    #[inline(always)]
    pub(super) fn start_at_once(&mut self, mut bio: Box<Bio>, cookie: u32) {
        debug_assert_eq!(
            next_piece(&bio, &self.config.limits),
            Piece { bytes: bio.range.len(), bounce: None }
        );
        bio.chain = self.begin(cookie);
        self.chains[bio.chain as usize].pending = 1;
        let command = match bio.op {
            Op::Write { fua } => Command::Write { dsync: self.is_durable(fua) },
            _ => Command::Read,
        };
        let tag = self.tags.try_take().expect("there was one");
        match self.engine.submit(Request::new(tag, command, bio)) {
            Ok(()) => self.stats.requests.add(1),
            Err(request) => self.again.push_front(request),
        }
    }

    /// Whether a command has to make durable what it did.
    #[inline]
    fn is_durable(&self, fua: bool) -> bool {
        fua && !self.config.ignore_flush
    }

    /// Starts a bio, or as much of it as the disk takes at once. Hands back what has to wait.
    #[inline]
    pub(super) fn start(&mut self, mut bio: Box<Bio>) -> Result<(), Box<Bio>> {
        if self.chains[bio.chain as usize].status != Status::Ok || self.is_fenced() {
            // Another part of the same chain has failed, so this part need not be tried; or the disk must not be asked.
            self.drop_claim();
            self.finish_early(bio, Status::IoErr);
            return Ok(());
        }
        let command = match self.next_step(&mut bio) {
            Step::Run(command) => command,
            Step::End(status) => {
                self.drop_claim();
                self.finish_early(bio, status);
                return Ok(());
            }
        };
        let Some(piece) = self.affordable(&bio) else { return Err(bio) };
        if piece.bounce.is_some() && matches!(command, Command::Discard | Command::SecureErase) {
            // A part of a block: it has no space to give back, and cannot be erased.
            let part = self.cut(bio, piece.bytes);
            self.finish_early(part, if command == Command::Discard { Status::Ok } else { Status::IoErr });
            return Ok(());
        }
        let Ok(held) = self.hold(&bio, piece) else { return Err(bio) };
        let mut request = self.request(bio, piece, command);
        if held.is_some() {
            request.state_mut().held = held;
        }
        if let Err(request) = self.give(request) {
            self.again.push_front(request);
        }
        Ok(())
    }

    /// What the disk has to do for a bio.
    #[inline]
    fn next_step(&self, bio: &mut Bio) -> Step {
        let unmaps = !self.unsupported.zero_unmap && !self.config.ignore_discard;
        match bio.op {
            Op::Flush if self.config.ignore_flush => Step::End(Status::Ok),
            Op::Flush => Step::Run(Command::Sync),
            Op::DeviceId => Step::End(Status::NotSupp),
            _ if bio.range.len() == 0 => Step::End(Status::Ok),
            Op::Read => Step::Run(Command::Read),
            Op::Write { fua } => Step::Run(Command::Write { dsync: self.is_durable(fua) }),
            Op::Discard { .. } if self.unsupported.discard || self.config.ignore_discard => {
                Step::End(Status::Ok)
            }
            Op::Discard { .. } => Step::Run(Command::Discard),
            Op::SecureErase => Step::Run(Command::SecureErase),
            Op::WriteZeroes { unmap: true, .. } if unmaps && !bio.zero_by_writing => {
                Step::Run(Command::Zero { unmap: true })
            }
            Op::WriteZeroes { .. } if !self.unsupported.zero && !bio.zero_by_writing => {
                Step::Run(Command::Zero { unmap: false })
            }
            Op::WriteZeroes { fua, .. } => {
                bio.zero_by_writing = true;
                Step::Run(Command::Write { dsync: self.is_durable(fua) })
            }
        }
    }

    /// The next piece of a bio, if all that it takes is there: one thread owns it all, so it still is a moment later.
    ///
    /// Where the memory for a bounce buffer is short, the piece is as large as there is memory for: a partial allocation is
    /// progress.
    #[inline]
    fn affordable(&self, bio: &Bio) -> Option<Piece> {
        let piece = next_piece(bio, &self.config.limits);
        let cut = piece.bytes != bio.range.len();
        if !self.tags.available() || (cut && self.bios.available() == 0) {
            return None;
        }
        if !cut && piece.bounce.is_none() {
            return Some(piece);
        }
        self.with_memory(bio, piece)
    }

    /// As much of a piece as there is memory for.
    fn with_memory(&self, bio: &Bio, piece: Piece) -> Option<Piece> {
        let cut = piece.bytes != bio.range.len();
        let buffer = piece.bounce.map_or(0, |_| pages(piece.bytes) + 1);
        if self.arena.prepare(usize::from(cut) + buffer, Gfp::ATOMIC) {
            return Some(piece);
        }
        if matches!(piece.bounce?, BounceReason::Fragmented | BounceReason::PartialBlock)
            || self.bios.available() == 0
        {
            return None;
        }
        // But for the tables of the buffer and of what is cut.
        let pages = self.arena.available_pages(Gfp::ATOMIC).checked_sub(2)?;
        let most = piece.bytes.min((pages * PAGE_SIZE) as u64);
        let bytes = most - most % self.config.limits.unit();
        (bytes > 0).then_some(Piece { bytes, ..piece })
    }

    /// Takes the blocks that a piece writes to, on a disk whose guests write parts of blocks. `Err` when somebody else
    /// has them: then this thread is woken when they are free.
    #[inline]
    fn hold(&mut self, bio: &Bio, piece: Piece) -> Result<Option<Held>, Busy> {
        let Some(writes) = &mut self.writes else { return Ok(None) };
        if bio.op == Op::Read || bio.op == Op::Flush {
            return Ok(None);
        }
        let access = match piece.bounce {
            Some(BounceReason::PartialBlock) => Access::Exclusive,
            _ => Access::Shared,
        };
        let mut range = bio.range;
        let blocks = range.take_front(piece.bytes).around(self.config.limits.unit());
        let held = writes.overlaps.try_take(writes.writer, blocks.offset(), blocks.len(), access);
        writes.has_claim = held.is_none();
        held.map(Some).ok_or(Busy)
    }

    /// The bio at the front will not be started: nobody needs to wait for it.
    pub(super) fn drop_claim(&mut self) {
        if let Some(Writes { overlaps, writer, has_claim }) = &mut self.writes
            && std::mem::take(has_claim)
        {
            overlaps.cancel(*writer);
        }
    }

    /// The request for a piece that [`RequestQueue::affordable`] has found.
    #[inline]
    fn request(&mut self, bio: Box<Bio>, piece: Piece, command: Command) -> Request {
        let tag = self.tags.try_take().expect("it was affordable");
        match piece.bounce {
            None => Request::new(tag, command, self.cut(bio, piece.bytes)),
            Some(reason) => self.bounced_request(tag, bio, piece.bytes, reason, command),
        }
    }

    fn bounced_request(
        &mut self,
        tag: Tag,
        bio: Box<Bio>,
        bytes: u64,
        reason: BounceReason,
        command: Command,
    ) -> Request {
        if reason == BounceReason::PartialBlock {
            let block = self.config.limits.unit();
            let mut bio = self.cut(bio, bytes);
            bio.bounce = Some(self.bounce(block, reason));
            return Request::part_of_block(tag, bio, block);
        }
        let mut bios = match reason {
            BounceReason::Fragmented => self.join(bio, bytes),
            _ => self.cut(bio, bytes),
        };
        let bounce = self.bounce(bytes, reason);
        if reason != BounceReason::Zeroes && command != Command::Read {
            copy_in(&bounce, &bios);
        }
        bios.bounce = Some(bounce);
        Request::new(tag, command, bios)
    }

    /// The first `bytes` of a bio. What is left of it goes back to the front of the FIFO.
    #[inline]
    fn cut(&mut self, bio: Box<Bio>, bytes: u64) -> Box<Bio> {
        if bytes == bio.range.len() { bio } else { self.split(bio, bytes) }
    }

    fn split(&mut self, mut bio: Box<Bio>, bytes: u64) -> Box<Bio> {
        let range = bio.range.take_front(bytes);
        let mut front = self.bios.try_take(bio.op, range).expect("it was affordable");
        front.chain = bio.chain;
        front.zero_by_writing = bio.zero_by_writing;
        if bio.sg.bytes() > 0 {
            let sg = bio.sg.split_front(bytes_in_memory(bytes), &self.arena, Gfp::ATOMIC);
            front.sg = sg.expect("it was affordable");
        }
        self.chains[bio.chain as usize].pending += 1;
        self.stats.splits.add(1);
        self.parked.push_front(bio);
        front
    }

    /// A bio that ends within a block, and after it the bios of its chain that have the rest of the block.
    fn join(&mut self, mut bios: Box<Bio>, block: u64) -> Box<Bio> {
        let (mut bytes, start) = (bios.range.len(), bios.range.offset());
        while bytes < block {
            let next =
                self.parked.pop_front().expect("a chain is whole blocks, and its bios follow one another");
            assert_eq!(next.chain, bios.chain, "a chain is whole blocks");
            assert_eq!(next.range.offset(), start + bytes, "a block that bios share is one range");
            let take = next.range.len().min(block - bytes);
            let next = self.cut(next, take);
            bytes += take;
            bios.append(next);
        }
        bios
    }

    fn bounce(&self, bytes: u64, reason: BounceReason) -> Bounce {
        self.stats.bounced(reason).add(1);
        Bounce::alloc(&self.arena, bytes_in_memory(bytes), Gfp::ATOMIC).expect("it was affordable")
    }
}

/// Somebody else writes there.
struct Busy;

fn copy_in(bounce: &Bounce, bios: &Bio) {
    let mut offset = 0;
    for bio in bios.list() {
        bounce.copy_in(offset, &bio.sg);
        offset += bio.sg.bytes();
    }
}

fn pages(bytes: u64) -> usize {
    bytes_in_memory(bytes).div_ceil(PAGE_SIZE)
}
