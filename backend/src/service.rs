//! One ring being served: heads in, bios through the request queue, used elements out.
//!
//! ```text
//! take_head ─> ChainParser ─> RequestQueue ─> engine ─> RequestQueue ─> status byte ─> put_used ─> publish ─> call
//! ```
//!
//! A head is taken only when the queue has room for any legal chain, so what is not taken waits in the guest's ring. A
//! used element is never put without a status byte having been written. Everything is done in batches: `avail.idx` is
//! read once, `used.idx` is published once, and one decision is made about one call.

use std::fs::File;
use std::io;
use std::sync::Arc;

use sluice_blk::disk::{Cache, Discard};
use sluice_blk::engine::ring::Ring;
use sluice_blk::overlap::Wake;
use sluice_blk::queue::{Completed, QueueConfig, QueueMemory, Refused, RequestQueue};
use sluice_blk::request::Status;
use sluice_mem::gfp::Gfp;
use sluice_mem::guest::{GuestMem, MemPin};
use sluice_mem::slice::GuestSlice;

use crate::call::Call;
use crate::chain::{Action, BlkStatus, ChainParser};
use crate::device::Device;
use crate::vring::{RingFault, RingSetup, SetupError, Vring};

/// All that it takes to serve a ring.
#[derive(Debug)]
pub struct ServiceSetup {
    /// The connection and the ring, for the log.
    pub name: String,
    /// Which of the device's queues.
    pub index: u16,
    /// Where the ring is and where to begin.
    pub ring: RingSetup,
    /// The guest's memory.
    pub memory: Arc<GuestMem>,
    /// The disk and what the guest may know of it.
    pub device: Arc<Device>,
    /// The event fd by which the driver kicks.
    pub kick: Arc<File>,
    /// The event fd by which the driver is called; none when it polls.
    pub call: Option<Arc<File>>,
    /// The event fd by which a broken ring is told.
    pub err: Option<Arc<File>>,
}

/// Why a ring cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The front-end's mistake.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The host cannot.
    #[error("cannot make a request queue")]
    Host(#[source] io::Error),
}

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
    err: Option<Arc<File>>,
    /// There may be heads to take, and kicks are off.
    ready: bool,
    broken: bool,
}

impl Service {
    /// How many descriptors are walked in a turn, and at most one chain more: some 0.1 ms. Chains of as many segments as
    /// may be, in a whole ring of them, would take a thousand times as long as small ones.
    const TURN_DESCRIPTORS: u64 = 2048;

    /// Starts serving, on the thread of `ring` that `wake` wakes. Kicks from before count: whatever is available already
    /// is served.
    ///
    /// # Errors
    /// [`StartError`]; then nothing was started.
    pub fn start(setup: ServiceSetup, ring: Option<&Ring>, wake: Arc<dyn Wake>) -> Result<Self, StartError> {
        let pin = MemPin::new(setup.memory);
        let vring = Vring::start(&setup.ring, &pin)?;
        let depth = vring.size().max(2);
        let device = setup.device;
        let engine = device.disk().engine(RequestQueue::tags(depth), ring).map_err(StartError::Host)?;
        let config = queue_config(&device, setup.index, depth, wake);
        let queue = RequestQueue::new(config, engine).map_err(StartError::Host)?;
        log::debug!("{}: ring of {} from index {}", setup.name, vring.size(), vring.next_avail());
        Ok(Self {
            name: setup.name,
            parser: ChainParser::new(vring.size()),
            statuses: (0..vring.size()).map(|_| None).collect(),
            device,
            vring,
            pin,
            queue,
            kick: setup.kick,
            call: setup.call.map(Call::new),
            err: setup.err,
            ready: true,
            broken: false,
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
        self.call = call.map(Call::new);
        self.call_driver();
    }

    /// The driver has kicked.
    pub fn kicked(&mut self) {
        if !self.ready && !self.broken {
            self.vring.disable_kick();
            self.ready = true;
        }
    }

    /// Does all there is to do now, without waiting. Returns whether there may be more at once.
    pub fn turn(&mut self, stopping: bool) -> bool {
        if self.ready && !stopping {
            self.fetch();
        }
        self.queue.dispatch();
        self.complete();
        self.queue.has_parked() || (self.ready && !stopping && self.queue.can_accept())
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

    /// Takes heads and submits what they ask for: no more heads than the ring has descriptors, and no more than have a
    /// turn's worth of descriptors themselves, so that the other rings of the thread come to their turn.
    fn fetch(&mut self) {
        let enough = self.parser.walked() + Self::TURN_DESCRIPTORS;
        for _ in 0..self.vring.size() {
            if !self.queue.can_accept() || self.parser.walked() >= enough {
                // `ready` stays: to be continued after a completion, or in the next turn.
                return;
            }
            match self.vring.take_head() {
                Ok(Some(head)) => {
                    if let Err(fault) = self.begin(head) {
                        return self.break_ring(fault);
                    }
                }
                Ok(None) => {
                    self.ready = self.vring.enable_kick();
                    if !self.ready {
                        return;
                    }
                    self.vring.disable_kick();
                }
                Err(fault) => return self.break_ring(fault),
            }
        }
    }

    fn begin(&mut self, head: u16) -> Result<(), RingFault> {
        let parsed =
            self.parser.parse(&self.vring, head, &self.pin, self.device.config(), &mut self.queue)?;
        let cookie = u32::from(head);
        self.statuses[usize::from(head)] = Some(parsed.status);
        let accepted = match parsed.action {
            Action::Submit(chain) => self.queue.submit(chain, cookie),
            Action::Passthrough(chain, command) => self
                .queue
                .make_request(chain, Gfp::NOWAIT)
                .and_then(|request| self.queue.execute(request.with(command), cookie)),
            Action::Answer(status) => {
                self.finish(head, status, 0);
                Ok(())
            }
        };
        if let Err(Refused { chain, reason }) = accepted {
            debug_assert!(false, "a parsed chain was refused: {reason}");
            self.queue.bios().put_chain(chain);
            self.finish(head, BlkStatus::IoErr, 0);
        }
        Ok(())
    }

    /// Gives back what is done, and calls the driver if it wants that.
    fn complete(&mut self) {
        let (vring, statuses) = (&mut self.vring, &mut self.statuses);
        self.queue.reap(|completed| {
            let (head, status, bytes) = answer(completed);
            put(vring, statuses, head, status, bytes);
        });
        if self.vring.publish() {
            self.call_driver();
        }
    }

    fn finish(&mut self, head: u16, status: BlkStatus, bytes: u32) {
        put(&mut self.vring, &mut self.statuses, head, status, bytes);
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
        self.ready = false;
        self.broken = true;
        if let Some(err) = &self.err {
            Call::new(Arc::clone(err)).signal();
        }
    }
}

fn queue_config(device: &Device, index: u16, depth: u16, wake: Arc<dyn Wake>) -> QueueConfig {
    let disk = device.disk();
    QueueConfig {
        device_id: device.id().to_vec(),
        lifetime: disk.lifetime(),
        secure_erase: disk.has_secure_erase(),
        ignore_flush: disk.cache() == Cache::Unsafe,
        ignore_discard: disk.discard() == Discard::Ignore,
        memory: QueueMemory::of(Arc::clone(device.queue_budget(index))),
        overlaps: Some((Arc::clone(disk.overlaps()), wake)),
        ..QueueConfig::new(depth, device.config().limits())
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

/// Writes the status byte, then puts the used element, which counts it.
fn put(vring: &mut Vring, statuses: &mut [Option<GuestSlice>], head: u16, status: BlkStatus, bytes: u32) {
    let byte = statuses[usize::from(head)].take().expect("a head in flight has a status byte");
    byte.write(0, status as u8);
    vring.put_used(head, bytes + 1);
}

#[cfg(test)]
mod tests;
