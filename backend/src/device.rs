//! A device: a disk with an identity and a config space. It outlives the connections to it.

use std::sync::Arc;

use sluice_blk::disk::Disk;
use sluice_blk::queue::QueueMemory;
use sluice_mem::budget::Budget;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_IN_ORDER;

use crate::config::DiskConfig;
use crate::ratelimit::Ratelimit;

/// Bytes of an answer to GET_ID (virtio 1.3, 5.2.6).
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// How a disk is presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOptions {
    /// How many queues the guest may use, 1 to [`Device::QUEUES_MAX`].
    pub num_queues: u16,
    /// The descriptors that a queue is expected to have: a power of two, 2 to [`Device::QUEUE_SIZE_MAX`]. Front-ends
    /// that can be told are told; whatever they do, a ring of up to [`Device::QUEUE_SIZE_MAX`] is served.
    pub queue_size: u16,
    /// The serial number, at most [`ID_BYTES`] bytes of text. `None`: the disk's own.
    pub serial: Option<String>,
    /// The most memory that the device's queues may use for I/O, in bytes. `None`: so much that it is no bottleneck.
    pub memory_budget: Option<usize>,
    /// Requests are answered in the order in which the driver has made them available, also to a driver that does not ask for
    /// that: so that a successor of a process that has died finds in the ring what was not answered.
    pub in_order: bool,
}

/// Why a device cannot be made of a disk.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a number of queues.
    #[error("{num_queues} queues: 1 to {} are possible", Device::QUEUES_MAX)]
    NumQueues {
        /// What was asked for.
        num_queues: u16,
    },
    /// Not a size for a queue.
    #[error("a queue size of {queue_size}: a power of two from 2 to {} is possible", Device::QUEUE_SIZE_MAX)]
    QueueSize {
        /// What was asked for.
        queue_size: u16,
    },
    /// Too little memory for all queues to make progress.
    #[error(
        "a memory budget of {budget} bytes: {num_queues} queues need at least {least} to make progress, so raise it or use fewer queues"
    )]
    MemoryBudget {
        /// What was asked for.
        budget: usize,
        /// How many queues the device has.
        num_queues: u16,
        /// What they need.
        least: usize,
    },
    /// Too little memory is left for all queues to make progress.
    #[error(
        "a memory budget of {budget} bytes for all devices: {num_queues} queues need {least} more to make progress than \
         those of the others, so raise it or use fewer queues"
    )]
    DaemonBudget {
        /// The daemon's.
        budget: usize,
        /// How many queues the device has.
        num_queues: u16,
        /// What they need.
        least: usize,
    },
    /// Too long, or not printable.
    #[error("the serial number \"{serial}\": 1 to {ID_BYTES} printable ASCII characters are possible")]
    Serial {
        /// What was asked for.
        serial: String,
    },
}

/// A disk as a virtio-blk device.
#[derive(Debug)]
pub struct Device {
    disk: Disk,
    config: DiskConfig,
    id: [u8; ID_BYTES],
    num_queues: u16,
    queue_size: u16,
    in_order: bool,
    faults: Ratelimit,
    budget: Arc<Budget>,
    queue_budgets: Vec<Arc<Budget>>,
}

impl Device {
    /// The most queues of a device.
    pub const QUEUES_MAX: u16 = 256;
    /// The most descriptors of a queue.
    pub const QUEUE_SIZE_MAX: u16 = 1024;

    /// A device of `disk`, alone.
    ///
    /// # Errors
    /// [`DeviceError`] when an option is not possible.
    pub fn new(disk: Disk, options: &DeviceOptions) -> Result<Self, DeviceError> {
        Self::within(disk, options, &Budget::new("daemon's memory", usize::MAX))
    }

    /// A device of `disk` among others, whose memory is charged to `daemon` too. What its queues need for progress is set
    /// aside here, for all of them: a queue that starts late, when the others are busy, finds it.
    ///
    /// # Errors
    /// [`DeviceError`] when an option is not possible.
    pub fn within(disk: Disk, options: &DeviceOptions, daemon: &Arc<Budget>) -> Result<Self, DeviceError> {
        let DeviceOptions { num_queues, queue_size, ref serial, memory_budget, in_order } = *options;
        if !(1..=Self::QUEUES_MAX).contains(&num_queues) {
            return Err(DeviceError::NumQueues { num_queues });
        }
        if !(2..=Self::QUEUE_SIZE_MAX).contains(&queue_size) || !queue_size.is_power_of_two() {
            return Err(DeviceError::QueueSize { queue_size });
        }
        let budget = memory_budget.unwrap_or(Self::memory_default(num_queues));
        let least = usize::from(num_queues) * QueueMemory::LEAST;
        if budget < least {
            return Err(DeviceError::MemoryBudget { budget, num_queues, least });
        }
        let serial = serial.as_deref().unwrap_or(disk.serial());
        let id = id_of(serial).ok_or_else(|| DeviceError::Serial { serial: serial.to_owned() })?;
        let config = DiskConfig::new(&disk, num_queues, queue_size);
        let budget = Budget::within(daemon, "device's memory", budget);
        let queue_budgets = (0..num_queues)
            .map(|_| Budget::with_min(&budget, "queue's memory", QueueMemory::LEAST, QueueMemory::MOST))
            .collect::<Result<_, _>>()
            .map_err(|_| DeviceError::DaemonBudget { budget: daemon.limit(), num_queues, least })?;
        let faults = Ratelimit::default();
        Ok(Self { disk, config, id, num_queues, queue_size, in_order, faults, budget, queue_budgets })
    }

    /// The protocol features to offer (vhost-user.rst).
    pub const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
        .union(VhostUserProtocolFeatures::CONFIG)
        .union(VhostUserProtocolFeatures::REPLY_ACK)
        .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
        .union(VhostUserProtocolFeatures::LOG_SHMFD)
        .union(VhostUserProtocolFeatures::DEVICE_STATE)
        .union(VhostUserProtocolFeatures::RESET_DEVICE);

    /// The features to offer: the device's, the rings' and the transport's.
    #[must_use]
    pub fn features(&self) -> u64 {
        let in_order = u64::from(self.in_order) << VIRTIO_F_IN_ORDER;
        let transport = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        self.config.features() | in_order | transport.bits()
    }

    /// So much memory that it is no bottleneck for so many queues, in bytes.
    #[must_use]
    pub fn memory_default(num_queues: u16) -> usize {
        usize::from(num_queues) * QueueMemory::MOST
    }

    /// What the memory of all of the device's queues is charged to.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// What the memory of a queue is charged to. What it needs for progress is its own as long as the device lives.
    ///
    /// # Panics
    /// When there is no such queue.
    #[must_use]
    pub fn queue_budget(&self, index: u16) -> &Arc<Budget> {
        &self.queue_budgets[usize::from(index)]
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The config space.
    #[must_use]
    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// The answer to GET_ID: the serial number, padded with zeroes.
    #[must_use]
    pub fn id(&self) -> &[u8; ID_BYTES] {
        &self.id
    }

    /// Where a guest's faults are logged.
    #[must_use]
    pub fn faults(&self) -> &Ratelimit {
        &self.faults
    }

    /// How many queues the guest may use.
    #[must_use]
    pub fn num_queues(&self) -> u16 {
        self.num_queues
    }

    /// Whether requests are answered in order.
    #[must_use]
    pub fn in_order(&self) -> bool {
        self.in_order
    }

    /// The descriptors that a queue is expected to have.
    #[must_use]
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }
}

fn id_of(serial: &str) -> Option<[u8; ID_BYTES]> {
    let printable = serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if serial.is_empty() || serial.len() > ID_BYTES || !printable {
        return None;
    }
    let mut id = [0; ID_BYTES];
    id[..serial.len()].copy_from_slice(serial.as_bytes());
    Some(id)
}

#[cfg(test)]
mod tests;
