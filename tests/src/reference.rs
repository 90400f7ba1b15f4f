//! The reference device: virtio-blk the usual rust-vmm way, on `vhost-user-backend` and `virtio-queue`.
//!
//! It is the second opinion on every test, and the baseline for speed: one thread per ring, one request at a time,
//! plain reads and writes, a heap buffer per request. It shares no code with the product. Where the crates below it
//! cannot do what a device must do, [`crate::subject`] names it.

mod chain;
mod execute;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_bindings::{virtio_blk as blk, virtio_config, virtio_ring};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use self::chain::Buffers;
pub use self::execute::Backing;
use crate::disk::DiskSpec;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Buffers per request that the device tells the driver it takes.
const SEG_MAX: u32 = 256;
/// The longest buffer that it tells the driver it takes.
const SIZE_MAX: u32 = 4 << 20;
/// Ranges per DISCARD or WRITE_ZEROES request.
const EXTENTS_MAX: u32 = 32;
/// Offset of `writeback` in the configuration space.
const WRITEBACK: u32 = 32;

/// The device. One is made for each connection; the [`Backing`] lives on.
pub struct Reference {
    backing: Backing,
    spec: DiskSpec,
    memory: Mutex<Option<Memory>>,
    event_idx: AtomicBool,
}

impl Reference {
    /// A device that serves `backing`.
    pub fn new(backing: Backing, spec: &DiskSpec) -> Self {
        Reference { backing, spec: spec.clone(), memory: Mutex::new(None), event_idx: AtomicBool::new(false) }
    }

    /// The configuration space: struct virtio_blk_config up to write_zeroes_may_unmap.
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors_max = u32::try_from(self.backing.sectors()).unwrap_or(u32::MAX);
        let block = self.spec.logical_block.unwrap_or(512);
        put(0, &self.backing.sectors().to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &block.to_le_bytes());
        let per_page = 4096 / block;
        put(24, &[u8::try_from(per_page.ilog2()).expect("a small power")]);
        put(26, &u16::try_from(per_page).expect("a small number").to_le_bytes());
        put(32, &[u8::from(self.backing.writeback())]);
        put(34, &self.spec.queues.to_le_bytes());
        put(36, &sectors_max.to_le_bytes());
        put(40, &EXTENTS_MAX.to_le_bytes());
        put(44, &(block / 512).to_le_bytes());
        put(48, &sectors_max.to_le_bytes());
        put(52, &EXTENTS_MAX.to_le_bytes());
        put(56, &[1]);
        config
    }

    /// Answers everything in the available ring, and tells the driver if it wants to know.
    ///
    /// The vring stays locked while a request is worked on, so that GET_VRING_BASE waits for it.
    fn drain(&self, vring: &VringRwLock, memory: &Memory) -> Result<(), virtio_queue::Error> {
        loop {
            vring.disable_notification()?;
            while self.answer_one(vring, &memory.memory())? {}
            if vring.needs_notification()? {
                // A driver that polls gives no fd, or one that nobody reads: both are fine.
                let _ = vring.signal_used_queue();
            }
            let more = vring.enable_notification()?;
            let state = vring.get_ref();
            if !more || !state.is_enabled() || !state.get_queue().ready() {
                return Ok(());
            }
        }
    }

    fn answer_one(
        &self,
        vring: &VringRwLock,
        memory: &GuestMemoryLoadGuard<GuestMemoryMmap>,
    ) -> Result<bool, virtio_queue::Error> {
        let mut state = vring.get_mut();
        if !state.is_enabled() {
            return Ok(false);
        }
        // A ring that was stopped in the meantime is an error here and no work.
        let Some(chain) = state.get_queue_mut().iter(memory.clone()).ok().and_then(|mut heads| heads.next())
        else {
            return Ok(false);
        };
        let head = chain.head_index();
        let Some(buffers) = Buffers::of(chain) else {
            // There is no byte to report a status in, so there is no way to answer: the ring stops.
            state.get_queue_mut().set_ready(false);
            return Ok(false);
        };
        let used = self.backing.execute(&buffers, memory);
        state.add_used(head, used)?;
        Ok(true)
    }
}

impl VhostUserBackend for Reference {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.spec.queues.into()
    }

    fn max_queue_size(&self) -> usize {
        self.spec.queue_size.into()
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            virtio_config::VIRTIO_F_VERSION_1,
            virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
            virtio_ring::VIRTIO_RING_F_EVENT_IDX,
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
        ];
        if self.spec.queues > 1 {
            bits.push(blk::VIRTIO_BLK_F_MQ);
        }
        if self.spec.read_only {
            bits.push(blk::VIRTIO_BLK_F_RO);
        } else {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.iter().map(|bit| 1 << bit).sum::<u64>() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_idx.store(enabled, Ordering::Relaxed);
    }

    fn reset_device(&self) {
        self.backing.set_writeback(true);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let start = usize::try_from(offset).expect("u32 fits usize");
        let len = usize::try_from(size).expect("u32 fits usize");
        // Nothing is how this crate says "refused".
        self.config().get(start..start.saturating_add(len)).map_or(vec![], <[u8]>::to_vec)
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        match (offset, bytes) {
            (WRITEBACK, [on @ (0 | 1)]) => {
                self.backing.set_writeback(*on == 1);
                Ok(())
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.spec.queues).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn handle_event(
        &self,
        queue: u16,
        _: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(vring), Some(memory)) = (vrings.get(usize::from(queue)), memory) {
            // An error would end the ring's thread for good: a bad ring only stops being served.
            let _ = self.drain(vring, &memory);
        }
        Ok(())
    }
}
