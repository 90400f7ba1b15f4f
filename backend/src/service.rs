//! One ring being served: heads in, bios through the request queue, used elements out.
//!
//! ```text
//! take_head ─> ChainParser ─> RequestQueue ─> engine ─> RequestQueue ─> status byte ─> put_used ─> publish ─> call
//! ```
//!
//! A head is taken only when the queue has room for any legal chain, so what is not taken waits in the guest's ring. A
//! used element is never put without a status byte having been written. Everything is done in batches: `avail.idx` is
//! read once, `used.idx` is published once, and one decision is made about one call, which may wait (`coalesce`).

use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use sluice_blk::disk::LockGuard;
use sluice_blk::engine::ring::Ring;
use sluice_blk::overlap::Wake;
use sluice_blk::queue::{Completed, Refused, RequestQueue};
use sluice_blk::request::Status;
use sluice_mem::gfp::Gfp;
use sluice_mem::guest::MemPin;
use sluice_mem::slice::GuestSlice;

use self::setup::queue_config;
use crate::call::{Call, SignalRings};
use crate::chain::{Action, BlkStatus, ChainParser, Transfer};
use crate::coalesce::Coalescing;
use crate::device::Device;
use crate::vring::{RingFault, Vring};

pub use self::setup::{ServiceSetup, StartError};

mod setup;

/// A ring that is served by the thread that owns this.
#[derive(Debug)]
pub struct Service {
    name: String,
    device: Arc<Device>,
    vring: Vring,
    pin: MemPin,
    queue: RequestQueue,
    parser: ChainParser,
    /// The status byte of each head in flight.
    statuses: Vec<Option<GuestSlice>>,
    kick: Arc<File>,
    call: Option<Call>,
    coalescing: Coalescing,
    err: Option<Arc<File>>,
    signals: Arc<SignalRings>,
    /// Whether the driver kicks for what it makes available. While it does not, somebody has to look at the ring.
    armed: bool,
    broken: bool,
    // The last to go: when the queue has waited for all that the kernel has.
    _lock: LockGuard,
}

impl Service {
    /// How many heads are taken in a turn: a quarter of what the driver waits for, between these. What a disk does at once
    /// is shown to the driver before the next quarter is taken, so that both have something to do.
    const TURN_HEADS: RangeInclusive<usize> = 4..=64;

    /// How many bytes are to be moved by what is taken in a turn, and at most one chain more: some 30 us, for the same
    /// reason.
    const TURN_BYTES: usize = 256 << 10;

    /// How many descriptors are walked in a turn, and at most one chain more: some 0.1 ms. Chains of as many segments as
    /// may be would take a thousand times as long as small ones.
    const TURN_DESCRIPTORS: u64 = 2048;

    /// Starts serving, on the thread of `ring` that `wake` wakes; the driver is called with `signals`. Kicks from before count: whatever is available already
    /// is served.
    ///
    /// # Errors
    /// [`StartError`]; then nothing was started.
    pub fn start(
        setup: ServiceSetup,
        ring: Option<&Ring>,
        wake: Arc<dyn Wake>,
        signals: &Arc<SignalRings>,
    ) -> Result<Self, StartError> {
        let pin = MemPin::new(setup.memory);
        let vring = Vring::start(&setup.ring, &pin, setup.inflight.as_ref())?;
        let depth = vring.size().max(2);
        let device = setup.device;
        let engine = device.disk().engine(RequestQueue::tags(depth), ring).map_err(StartError::Host)?;
        let config = queue_config(&setup.name, &device, setup.index, depth, wake);
        let queue = RequestQueue::new(config, engine).map_err(StartError::Host)?;
        log::debug!("{}: ring of {} from index {}", setup.name, vring.size(), vring.next_avail());
        let mut call = setup.call.map(|call| Call::new(call, signals));
        if vring.is_resumed()
            && let Some(call) = &mut call
        {
            // What was given back last may have been so without a call.
            call.signal();
        }
        Ok(Self {
            name: setup.name,
            parser: ChainParser::new(vring.size()),
            statuses: (0..vring.size()).map(|_| None).collect(),
            device,
            vring,
            pin,
            queue,
            kick: setup.kick,
            call,
            coalescing: Coalescing::default(),
            err: setup.err,
            signals: Arc::clone(signals),
            armed: false,
            broken: false,
            _lock: setup.lock,
        })
    }

    /// The fd by which the driver kicks.
    #[must_use]
    pub fn kick_fd(&self) -> &File {
        &self.kick
    }

    /// Calls the driver by another fd from now on, and at once: a call that has gone to the old fd while the front-end
    /// was changing it was perhaps not seen. A driver takes a call too many for nothing.
    pub fn set_call(&mut self, call: Option<Arc<File>>) {
        // Its ring is there for the new one.
        self.call = None;
        self.call = call.map(|call| Call::new(call, &self.signals));
        self.call_driver();
    }

    /// The driver has kicked, or may soon do so: its ring is looked at from now on.
    pub fn disarm(&mut self) {
        if self.armed {
            self.vring.disable_kick();
            self.armed = false;
        }
    }

    /// Asks the driver to kick, as nobody looks at the ring any more. Returns whether something is there already: then
    /// it does not kick, and is served in the next turn.
    pub fn arm(&mut self) -> bool {
        if self.armed || !self.can_fetch() {
            return false;
        }
        self.armed = !self.vring.enable_kick();
        if !self.armed {
            self.vring.disable_kick();
        }
        !self.armed
    }

    /// Whether a turn would take something from the ring. Costs a look at the driver's index.
    #[must_use]
    pub fn has_heads(&self) -> bool {
        !self.armed && self.vring.available() > 0 && self.can_fetch()
    }

    /// Whether nothing is to be done before the driver kicks.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        (self.armed || self.broken) && self.is_idle()
    }

    /// Not of a broken ring, and not before the queue has room again: what is there waits for a completion.
    fn can_fetch(&self) -> bool {
        !self.broken && self.queue.can_accept()
    }

    /// Does a share of what there is to do, without waiting: other rings of the thread come to their turn, and what has
    /// been done reaches the driver. Returns whether there may be more at once.
    pub fn turn(&mut self, stopping: bool) -> bool {
        if self.pin.memory().is_lost() {
            // What is in the ring now is not the guest's. The connection is being closed.
            self.broken = true;
        }
        if self.queue.has_clock() {
            self.queue.advance(Instant::now());
        }
        if stopping {
            self.queue.fail_stopped();
        }
        let mut more = self.complete();
        if !stopping && !self.armed {
            more |= self.fetch();
        }
        self.queue.dispatch();
        // What is done already: engines that need not wait, and requests that need no engine.
        more |= self.complete();
        self.call_if_due(stopping);
        more || self.queue.has_parked()
    }

    /// When a turn is due though nothing happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.queue.wake_at()
    }

    /// Whether all requests of the ring are answered: its memory is not touched any more. The disk may have some of them all
    /// the same, if they have failed by a timeout.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.queue.is_answered()
    }

    /// Whether nothing is in flight any more, of a ring that was stopped when all was answered.
    pub fn has_landed(&mut self) -> bool {
        self.queue.reap(|completed| unreachable!("{completed:?} was answered already"));
        self.queue.is_idle()
    }

    /// Whether nothing of the ring is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_idle()
    }

    /// The index of the next available entry.
    #[must_use]
    pub fn next_avail(&self) -> u16 {
        self.vring.next_avail()
    }

    /// Whether the driver has broken the ring.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Takes heads and submits what they ask for: a turn's worth. Returns whether there were any.
    fn fetch(&mut self) -> bool {
        let enough = self.parser.cost() + Self::TURN_DESCRIPTORS;
        let quarter = (self.queue.under_way() + self.vring.available()).div_ceil(4);
        let most = quarter.clamp(*Self::TURN_HEADS.start(), *Self::TURN_HEADS.end());
        let (mut taken, mut bytes) = (0, 0);
        while taken < most && bytes < Self::TURN_BYTES && self.parser.cost() < enough && self.can_fetch() {
            let begun = match self.vring.take_head() {
                Ok(None) => break,
                Ok(Some(head)) => self.begin(head),
                Err(fault) => Err(fault),
            };
            match begun {
                Ok(more) => bytes += more,
                Err(fault) => {
                    self.break_ring(fault);
                    return true;
                }
            }
            taken += 1;
        }
        self.coalescing.took(taken, bytes);
        taken > 0
    }

    /// Submits what a head asks for. Returns how many bytes that moves.
    #[inline(always)]
    fn begin(&mut self, head: u16) -> Result<usize, RingFault> {
        let transfer =
            self.parser.transfer(&self.vring, head, &self.pin, self.device.config(), &mut self.queue);
        let Some(Transfer { status, bio }) = transfer else { return self.begin_any(head) };
        let bytes = bio.sg.bytes();
        self.statuses[usize::from(head)] = Some(status);
        if let Err(refused) = self.queue.submit(bio.into(), head.into()) {
            self.refused(head, refused);
        }
        Ok(bytes)
    }

    /// The same for whatever it asks.
    #[inline(never)] // So that what nearly all come through is not held up by what few do.
    fn begin_any(&mut self, head: u16) -> Result<usize, RingFault> {
        let parsed =
            self.parser.parse(&self.vring, head, &self.pin, self.device.config(), &mut self.queue)?;
        let cookie = u32::from(head);
        let mut bytes = 0;
        self.statuses[usize::from(head)] = Some(parsed.status);
        let accepted = match parsed.action {
            Action::Submit(chain) => {
                bytes = chain.iter().map(|bio| bio.sg.bytes()).sum();
                self.queue.submit(chain, cookie)
            }
            Action::Passthrough(chain, command) => self
                .queue
                .make_request(chain, Gfp::NOWAIT)
                .and_then(|request| self.queue.execute(request.with(command), cookie)),
            Action::Answer(status) => {
                self.finish(head, status, 0);
                Ok(())
            }
        };
        if let Err(refused) = accepted {
            self.refused(head, refused);
        }
        Ok(bytes)
    }

    #[cold]
    fn refused(&mut self, head: u16, Refused { chain, reason }: Refused) {
        debug_assert!(false, "a parsed chain was refused: {reason}");
        self.queue.bios().put_chain(chain);
        self.finish(head, BlkStatus::IoErr, 0);
    }

    /// Gives back what is done. Returns whether anything was: then the driver is likely to have more.
    fn complete(&mut self) -> bool {
        let (vring, statuses, logs) =
            (&mut self.vring, &mut self.statuses, self.pin.memory().log().is_some());
        self.queue.reap(
            #[inline(always)]
            |completed| {
                let (head, status, bytes) = answer(completed);
                put(vring, statuses, logs, head, status, bytes);
            },
        );
        if !self.vring.has_unpublished() {
            return false;
        }
        self.vring.publish();
        self.disarm();
        true
    }

    /// Calls the driver for what it was shown, if it wants that, and if that cannot wait.
    fn call_if_due(&mut self, stopping: bool) {
        if !self.vring.has_untold() {
            return;
        }
        let goes_on = !stopping && !self.armed && self.can_fetch();
        if goes_on && self.coalescing.can_wait(self.vring.available()) {
            return;
        }
        if self.vring.wants_call() {
            self.call_driver();
        }
    }

    fn finish(&mut self, head: u16, status: BlkStatus, bytes: u32) {
        let logs = self.pin.memory().log().is_some();
        put(&mut self.vring, &mut self.statuses, logs, head, status, bytes);
    }

    fn call_driver(&mut self) {
        if let Some(call) = &mut self.call {
            call.signal();
        }
    }

    /// The ring itself lies: nothing more is fetched from it until it is set up anew.
    fn break_ring(&mut self, fault: RingFault) {
        let line = format_args!("{}: {fault}; the ring stops until it is reset", self.name);
        self.device.faults().log(log::Level::Warn, line);
        self.broken = true;
        if let Some(err) = &self.err {
            Call::new(Arc::clone(err), &self.signals).signal();
        }
    }
}

/// What the driver is told of a completed chain.
fn answer(completed: Completed) -> (u16, BlkStatus, u32) {
    let status = match completed.status {
        Status::Ok => BlkStatus::Ok,
        Status::IoErr => BlkStatus::IoErr,
        Status::NotSupp => BlkStatus::Unsupp,
    };
    let bytes = if status == BlkStatus::Ok { completed.bytes } else { 0 };
    (u16::try_from(completed.cookie).expect("a cookie is a head"), status, bytes)
}

/// Writes the status byte, marks it if what is written is logged, then puts the used element, which counts it.
#[inline(always)]
fn put(
    vring: &mut Vring,
    statuses: &mut [Option<GuestSlice>],
    logs: bool,
    head: u16,
    status: BlkStatus,
    bytes: u32,
) {
    let byte = statuses[usize::from(head)].take().expect("a head in flight has a status byte");
    byte.write(0, status as u8);
    if logs {
        byte.mark_written();
    }
    vring.put_used(head, bytes + 1);
}

#[cfg(test)]
mod tests;
