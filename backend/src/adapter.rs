//! The same device inside a stock `VhostUserDaemon` of the crate `vhost-user-backend`.
//!
//! Programs of the rust-vmm world host devices through that crate; [`daemon`] gives them this one. The crate speaks
//! with the front-end, but serves no ring: it is told that it has no threads (`queues_per_thread` is empty), and its
//! rings are [`AdapterVring`]s, which pass everything on to [`Rings`], so that each ring event arrives at our workers.
//!
//! What the stock daemon cannot do, this device cannot do inside of it: no second connection to the same daemon, no
//! inflight tracking, no log of what was written (and so no migration), at most 64 queues, memory tables sorted by address only, a ring size that is no power of two is
//! not refused but leaves the ring unstarted, and what a front-end gets wrong about a ring is logged instead of
//! answered, since the crate's ring methods return nothing. The crate does not tell when the front-end has left: rings
//! run until the daemon is dropped, so drop it when `serve` or `wait` returns. And it maps regions without a look at how
//! long their files are.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_mem::guest::GuestMem;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{
    VhostUserBackend, VhostUserDaemon, VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT,
};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::device::Device;
use crate::rings::{RingAddrs, RingError, Rings};
use crate::workers::Workers;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A stock daemon, called `name`, that serves `device`; its rings are served by `workers`.
///
/// # Errors
/// What `VhostUserDaemon::new` says.
pub fn daemon(
    name: &str,
    device: Arc<Device>,
    workers: Arc<Workers>,
) -> Result<VhostUserDaemon<Arc<Adapter>>, vhost_user_backend::Error> {
    let rings = Arc::new(Mutex::new(Rings::new(name, Arc::clone(&device), workers, Box::new(()))));
    // The daemon makes its rings by itself, on this thread, and gives them nothing to know their device by.
    NEW_VRINGS.set(Some(NewVrings { rings: Arc::clone(&rings), next: 0 }));
    let adapter = Arc::new(Adapter { device, rings });
    let daemon = VhostUserDaemon::new(name.to_owned(), adapter, Memory::new(GuestMemoryMmap::new()));
    NEW_VRINGS.set(None);
    daemon
}

/// What the rings belong to that are made on this thread.
struct NewVrings {
    rings: Arc<Mutex<Rings>>,
    next: u32,
}

thread_local! {
    static NEW_VRINGS: RefCell<Option<NewVrings>> = const { RefCell::new(None) };
}

/// A device as the crate wants it.
#[derive(Debug)]
pub struct Adapter {
    device: Arc<Device>,
    rings: Arc<Mutex<Rings>>,
}

impl VhostUserBackend for Adapter {
    type Bitmap = ();
    type Vring = AdapterVring;

    fn num_queues(&self) -> usize {
        usize::from(self.device.num_queues())
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.device.queue_size())
    }

    fn features(&self) -> u64 {
        // The crate has a log of its own, for what goes through vm-memory: our writes do not.
        self.device.features() & !VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    fn acked_features(&self, features: u64) {
        self.device.config().accept(features);
        lock(&self.rings).set_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let ours = VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::DEVICE_STATE;
        Device::PROTOCOL_FEATURES.difference(ours)
    }

    fn reset_device(&self) {
        lock(&self.rings).reset();
        self.device.config().reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // `acked_features` says it too.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // What is not as long as was asked for is answered with an error.
        self.device.config().read(offset, size).unwrap_or_default()
    }

    fn set_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        self.device.config().write(offset, data).map_err(io::Error::other)
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        lock(&self.rings).set_memory(GuestMem::from_vm_memory(&memory.memory()));
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn handle_event(&self, _: u16, _: EventSet, _: &[AdapterVring], _: usize) -> io::Result<()> {
        Err(io::Error::other("the crate has no thread that could see an event"))
    }
}

/// A ring as the crate wants it. The crate's own state is kept beside, for what it asks of it.
#[derive(Clone)]
pub struct AdapterVring {
    state: VringMutex<Memory>,
    rings: Arc<Mutex<Rings>>,
    index: u32,
}

impl AdapterVring {
    /// Does something to the ring. What goes wrong can only be logged.
    fn with(&self, act: impl FnOnce(&mut Rings, u32) -> Result<(), RingError>) {
        if let Err(error) = act(&mut lock(&self.rings), self.index) {
            log::warn!("{error}");
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for AdapterVring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for AdapterVring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for AdapterVring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let state = VringMutex::new(memory, max_queue_size)?;
        NEW_VRINGS.with_borrow_mut(|new| {
            let new = new.as_mut().expect("`adapter::daemon` makes the daemon");
            let index = new.next;
            new.next += 1;
            Ok(Self { state, rings: Arc::clone(&new.rings), index })
        })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.state.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.state.get_mut()
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), QueueError> {
        self.state.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.state.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.state.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.state.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.state.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.state.set_enabled(enabled);
        self.with(|rings, index| rings.set_enabled(index, enabled));
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.state.set_queue_info(desc, avail, used)?;
        // The crate has turned the front-end's addresses into the guest's.
        self.with(|rings, index| rings.set_addrs(index, RingAddrs { desc, avail, used, used_log: None }));
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.state.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.state.set_queue_next_avail(base);
        self.with(|rings, index| rings.set_base(index, u32::from(base)));
    }

    fn set_queue_next_used(&self, index: u16) {
        // Ours is what the ring has in memory when it starts.
        self.state.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.state.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.state.set_queue_size(size);
        self.with(|rings, index| rings.set_num(index, u32::from(size)));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.state.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.state.set_queue_ready(ready);
        if !ready {
            // GET_VRING_BASE: the crate asks for the index next.
            self.with(|rings, index| {
                let base = rings.take_base(index)?;
                self.state.set_queue_next_avail(base);
                Ok(())
            });
        }
    }

    fn set_kick(&self, kick: Option<File>) {
        if let Some(kick) = kick.as_ref().and_then(|kick| kick.try_clone().ok()) {
            self.with(|rings, index| rings.set_kick(index, Some(kick)));
        }
        self.state.set_kick(kick);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.state.read_kick()
    }

    fn set_call(&self, call: Option<File>) {
        self.with(|rings, index| rings.set_call(index, call));
    }

    fn set_err(&self, err: Option<File>) {
        self.with(|rings, index| rings.set_err(index, err));
    }
}

fn lock(rings: &Mutex<Rings>) -> MutexGuard<'_, Rings> {
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}
