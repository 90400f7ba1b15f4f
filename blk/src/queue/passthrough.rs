//! Pass-through commands: what is not a read or a write (Linux: `BLOCK_PC`, `REQ_OP_DRV_IN`).

use sluice_mem::PAGE_SIZE;
use sluice_mem::bounce::Bounce;
use sluice_mem::gfp::Gfp;
use sluice_mem::sglist::SgList;

use super::{Completed, RefuseReason, Refused, RequestQueue};
use crate::bio::{BioChain, Op};
use crate::request::Status;
use crate::split::BounceReason;

/// A command that a pass-through request is initialised with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassthroughCommand {
    /// Who the disk is, written to the memory.
    DeviceId,
    /// How worn the disk is, written to the memory.
    Lifetime,
    /// The ranges are erased so that nothing can be recovered (Linux: `REQ_OP_SECURE_ERASE`).
    SecureErase,
}

/// A request made of a mapped chain, to be initialised by the caller and then executed, or else given up by
/// [`Passthrough::into_chain`], since its bios are the queue's.
#[derive(Debug)]
#[must_use]
pub struct Passthrough {
    chain: BioChain,
    bounce: Option<Bounce>,
    command: Option<PassthroughCommand>,
}

impl Passthrough {
    /// Initialises the request.
    pub fn with(mut self, command: PassthroughCommand) -> Self {
        self.command = Some(command);
        self
    }

    /// Gives up the request, and its chain back (Linux: `blk_put_request`).
    pub fn into_chain(self) -> BioChain {
        self.chain
    }
}

impl RequestQueue {
    /// The most memory of a chain that a pass-through command uses: more is not touched.
    const PASSTHROUGH_BYTES: usize = PAGE_SIZE;

    /// Makes a pass-through request of a mapped chain, to be initialised and then given to
    /// [`RequestQueue::execute`] (Linux: `blk_make_request`). Memory that the disk cannot take is bounced.
    ///
    /// # Errors
    /// Hands the chain back, as it was, when it is empty or not of one direction, or when it has to be bounced and `gfp`
    /// gets no memory for that.
    pub fn make_request(&mut self, chain: BioChain, gfp: Gfp<'_>) -> Result<Passthrough, Refused> {
        let chain = Self::check(chain)?;
        let Some(reason) = chain.iter().find_map(|bio| self.passthrough_bounce(&bio.sg)) else {
            return Ok(Passthrough { chain, bounce: None, command: None });
        };
        let bytes = chain.iter().map(|bio| bio.sg.bytes()).sum::<usize>().min(Self::PASSTHROUGH_BYTES);
        match Bounce::alloc(&self.arena, bytes, gfp) {
            Ok(bounce) => {
                self.stats.bounced(reason).add(1);
                Ok(Passthrough { chain, bounce: Some(bounce), command: None })
            }
            Err(_) => Err(Refused { chain, reason: RefuseReason::NoMemory }),
        }
    }

    /// Why memory of a pass-through command has to be bounced, if it has to.
    fn passthrough_bounce(&self, sg: &SgList) -> Option<BounceReason> {
        let limits = &self.config.limits;
        if !sg.is_aligned(sg.bytes(), limits.dma_alignment as usize, 1) {
            return Some(BounceReason::Misaligned);
        }
        (limits.needs_pinning && !sg.is_pinnable()).then_some(BounceReason::Unaddressable)
    }

    /// Executes a pass-through request (Linux: `blk_execute_rq_nowait`); [`RequestQueue::reap`] tells when it is done. One
    /// that was not initialised, or that the disk does not know, is not supported.
    ///
    /// # Errors
    /// Hands the chain back when the queue is full.
    pub fn execute(&mut self, request: Passthrough, cookie: u32) -> Result<(), Refused> {
        let Passthrough { mut chain, bounce, command } = request;
        if self.is_full() {
            return Err(Refused { chain, reason: RefuseReason::Full });
        }
        let answer = match command {
            Some(PassthroughCommand::DeviceId) => Some(&self.config.device_id[..]),
            Some(PassthroughCommand::Lifetime) => self.config.lifetime.as_ref().map(|lifetime| &lifetime[..]),
            Some(PassthroughCommand::SecureErase) if self.config.secure_erase => {
                let mut erased = BioChain::new();
                while let Some(mut bio) = chain.pop() {
                    bio.op = Op::SecureErase;
                    erased.push(bio);
                }
                return self.park_chain(erased, cookie);
            }
            Some(PassthroughCommand::SecureErase) | None => None,
        };
        let completed = match answer {
            Some(answer) => Completed { cookie, status: Status::Ok, bytes: write(answer, &chain, bounce) },
            None => Completed { cookie, status: Status::NotSupp, bytes: 0 },
        };
        self.bios.put_chain(chain);
        self.stats.chains.add(1);
        self.done.push(completed);
        Ok(())
    }
}

/// Writes an answer to the memory of a chain, as far as it goes, by way of `bounce` where there is one. Returns how many
/// bytes were written.
fn write(answer: &[u8], chain: &BioChain, bounce: Option<Bounce>) -> u32 {
    let mut left = answer;
    match bounce {
        None => {
            for bio in chain.iter() {
                left = &left[bio.sg.write(left)..];
            }
        }
        Some(bounce) => {
            let written = bounce.pages().write(left);
            let mut at = 0;
            for bio in chain.iter() {
                let now = bio.sg.bytes().min(written - at);
                bounce.copy_out(at, &bio.sg, now);
                at += now;
            }
            left = &left[written..];
        }
    }
    u32::try_from(answer.len() - left.len()).expect("an answer is short")
}
