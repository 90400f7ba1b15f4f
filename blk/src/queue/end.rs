//! From results of the engine to chains that are done: what was moved is copied out, what was not is tried again, what the
//! disk does not know is done another way.

use rustix::io::Errno;

use super::{Chain, Completed, RequestQueue};
use crate::bio::{Bio, Op};
use crate::request::{Command, IoResult, Request, Status};

impl RequestQueue {
    /// How often in a row an engine may say "interrupted" or "again" of one request.
    pub(super) const RETRIES_MAX: u8 = 64;

    #[inline]
    pub(super) fn give(&mut self, request: Request) -> Result<(), Request> {
        if matches!(request.command(), Command::Write { .. }) && request.was_copied_in_vain() {
            self.end_early(request, Status::IoErr);
            return Ok(());
        }
        self.engine.submit(request)?;
        self.stats.requests.add(1);
        Ok(())
    }

    /// A request came back from the engine. Returns the chain that is done with it, if one is: the bios of a request are
    /// of one chain.
    #[inline]
    pub(super) fn end(&mut self, request: Request, result: IoResult) -> Option<Completed> {
        self.stalled = false;
        match result {
            // As most end: all was moved at once, and nothing is to be copied or divided.
            Ok(count) if request.is_plain() && request.is_all_moved(count) && self.late() == 0 => {
                let bytes = self.account(&request, count);
                let bio = self.release(request);
                self.finish(bio, Status::Ok, bytes)
            }
            _ => self.end_otherwise(request, result),
        }
    }

    fn end_otherwise(&mut self, request: Request, result: IoResult) -> Option<Completed> {
        if self.late() > 0 && self.chains[request.bio().chain as usize].is_late {
            // Nobody waits for it, and its guest may have its memory back.
            return self.finish_request(request, Status::IoErr);
        }
        let left = request.len();
        match (request.command(), result) {
            (Command::Read | Command::Write { .. }, Ok(count)) if count > 0 && u64::from(count) <= left => {
                if request.state().partial.is_some() {
                    self.moved_block(request, u64::from(count) == left)
                } else {
                    self.moved(request, count)
                }
            }
            (Command::Sync | Command::SecureErase, Ok(_)) => self.finish_request(request, Status::Ok),
            (Command::Discard | Command::Zero { .. }, Ok(_)) => self.changed(request),
            (_, Err(Errno::INTR | Errno::AGAIN)) if request.state().retries < Self::RETRIES_MAX => {
                self.try_again(request)
            }
            (Command::Discard | Command::Zero { .. }, Err(Errno::INVAL | Errno::BUSY)) => {
                self.do_another_way(request)
            }
            (Command::Discard | Command::Zero { .. }, Err(error)) if is_unsupported(error) => {
                self.fall_back(request)
            }
            (_, Err(error)) if self.waits_for_space(&request, error) => {
                self.stop_for_space(request);
                None
            }
            (_, result) => {
                self.log_failure(&request, result);
                self.finish_request(request, Status::IoErr)
            }
        }
    }

    /// `count` bytes were read or written; when that is not all, the rest is tried.
    fn moved(&mut self, mut request: Request, count: u32) -> Option<Completed> {
        let bytes = self.account(&request, count);
        self.credit(&request, bytes);
        let mut left = count;
        while let Some(bio) = request.advance(&mut left) {
            // Not the last bio of its chain.
            let _ = self.finish(bio, Status::Ok, 0);
        }
        request.state_mut().retries = 0;
        if request.len() == 0 {
            return self.finish_request(request, Status::Ok);
        }
        self.again.push_back(request);
        None
    }

    /// A block of which the bio has a part was read or written, `wholly` or not: then it is once more from its start.
    fn moved_block(&mut self, mut request: Request, wholly: bool) -> Option<Completed> {
        let (Some(partial), Some(bounce)) = (request.state().partial, &request.bio().bounce) else {
            unreachable!("a part of a block is bounced")
        };
        let len = u32::try_from(partial.len).expect("a block is small");
        if !wholly && request.state().retries < Self::RETRIES_MAX {
            return self.try_again(request);
        }
        match (request.bio().op, request.command()) {
            _ if !wholly => return self.finish_request(request, Status::IoErr),
            (Op::Read, _) => bounce.copy_out(partial.skip, &request.bio().sg, partial.len),
            // The block is there: now it is changed and written.
            (Op::Write { fua }, Command::Read) => {
                bounce.copy_in(partial.skip, &request.bio().sg);
                return self.write_back(request, fua);
            }
            (Op::WriteZeroes { fua, .. }, Command::Read) => {
                bounce.zero(partial.skip, partial.len);
                return self.write_back(request, fua);
            }
            _ => {}
        }
        let bytes = self.account(&request, len);
        self.credit(&request, bytes);
        request.state_mut().retries = 0;
        self.finish_request(request, Status::Ok)
    }

    fn write_back(&mut self, mut request: Request, fua: bool) -> Option<Completed> {
        request.state_mut().command = Command::Write { dsync: fua && !self.config.ignore_flush };
        request.state_mut().retries = 0;
        self.again.push_back(request);
        None
    }

    fn try_again(&mut self, mut request: Request) -> Option<Completed> {
        request.state_mut().retries += 1;
        self.again.push_back(request);
        None
    }

    /// Counts bytes that the guest wanted read or written. Returns how many of its memory were written.
    #[inline(always)]
    fn account(&self, request: &Request, count: u32) -> u32 {
        if request.command() == Command::Read {
            self.stats.bytes_read.add(u64::from(count));
            count
        } else {
            self.stats.bytes_written.add(u64::from(count));
            0
        }
    }

    /// So many bytes of the memory of a request were written, which is not done.
    fn credit(&mut self, request: &Request, bytes: u32) {
        self.chains[request.bio().chain as usize].credit(bytes);
    }

    /// A range was discarded or zeroed; with FUA that still has to be made durable.
    fn changed(&mut self, mut request: Request) -> Option<Completed> {
        let fua = matches!(request.bio().op, Op::Discard { fua: true } | Op::WriteZeroes { fua: true, .. });
        if fua && !self.config.ignore_flush {
            request.state_mut().command = Command::Sync;
            self.again.push_back(request);
            None
        } else {
            self.finish_request(request, Status::Ok)
        }
    }

    /// The disk does not know the command: the next best way, for this request and all that follow.
    fn fall_back(&mut self, request: Request) -> Option<Completed> {
        match request.command() {
            Command::Zero { unmap: true } => self.unsupported.zero_unmap = true,
            Command::Zero { unmap: false } => self.unsupported.zero = true,
            _ => self.unsupported.discard = true,
        }
        log::info!("{}: the disk cannot {:?}; going on without", self.config.name, request.command());
        let bio = self.release(request);
        self.parked.push_front(bio);
        None
    }

    /// The disk knows the command, but not for such a range or not now: for one that is not whole blocks of a device, which
    /// matter to it and not to its page cache (EINVAL), or one whose pages in the page cache are being written (EBUSY).
    fn do_another_way(&mut self, request: Request) -> Option<Completed> {
        if request.command() == Command::Discard {
            // It is advisory.
            return self.finish_request(request, Status::Ok);
        }
        let mut bio = self.release(request);
        bio.zero_by_writing = true;
        self.parked.push_front(bio);
        None
    }

    /// The first failures are told, then ever fewer: a guest must not fill the log.
    #[cold]
    fn log_failure(&self, request: &Request, result: IoResult) {
        let count = self.stats.failed.value() + 1;
        if !count.is_power_of_two() {
            return;
        }
        let (command, offset, len) = (request.command(), request.offset(), request.len());
        let name = &self.config.name;
        match result {
            Ok(moved) => log::warn!(
                "{name}: {command:?} of {len} bytes at {offset} moved {moved}: is the file shorter than it was? \
                 (failure {count} of this queue)"
            ),
            Err(e) => {
                log::warn!(
                    "{name}: {command:?} of {len} bytes at {offset}: {e} (failure {count} of this queue)"
                )
            }
        }
    }

    /// Gives back the tag and the blocks of a request. The bios that are not done are left.
    #[inline(always)]
    fn release(&mut self, mut request: Request) -> Box<Bio> {
        if let (Some(held), Some(writes)) = (request.state_mut().held.take(), &self.writes) {
            writes.overlaps.put(writes.writer, held);
        }
        let (tag, bios) = request.into_parts();
        self.tags.put(tag);
        bios
    }

    fn finish_request(&mut self, request: Request, mut status: Status) -> Option<Completed> {
        if request.was_copied_in_vain() {
            status = Status::IoErr;
        }
        let mut bios = self.release(request);
        while let Some(next) = bios.next.take() {
            let bio = std::mem::replace(&mut bios, next);
            // Not the last bio of its chain.
            let _ = self.finish(bio, status, 0);
        }
        self.finish(bios, status, 0)
    }

    /// A request is done without the engine having said so.
    pub(super) fn end_early(&mut self, request: Request, status: Status) {
        let completed = self.finish_request(request, status);
        self.done.extend(completed);
    }

    /// A bio is done without the engine.
    pub(super) fn finish_early(&mut self, bio: Box<Bio>, status: Status) {
        let completed = self.finish(bio, status, 0);
        self.done.extend(completed);
    }

    /// A bio is done, of whose memory `bytes` more were written. Returns its chain if it was the last of it.
    #[inline(always)]
    fn finish(&mut self, bio: Box<Bio>, status: Status, bytes: u32) -> Option<Completed> {
        let index = bio.chain;
        self.bios.put(bio);
        let chain = &mut self.chains[index as usize];
        chain.credit(bytes);
        if chain.status == Status::Ok {
            chain.status = status;
        }
        chain.pending -= 1;
        if chain.pending > 0 {
            return None;
        }
        if chain.is_late {
            self.landed(index);
            return None;
        }
        let Chain { cookie, status, bytes, .. } = *chain;
        self.free_chains.push(index);
        self.stats.chains.add(1);
        if status == Status::IoErr {
            self.stats.failed.add(1);
        }
        Some(Completed { cookie, status, bytes })
    }
}

/// What systems say of an fallocate(2) or a command that they do not know.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::NODEV)
}
