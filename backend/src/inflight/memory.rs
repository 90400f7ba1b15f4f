//! The memory in which a device keeps what is in flight: made for a front-end, or given back by one.
//!
//! One file for all queues of a device. What a front-end says of it is checked before it is mapped, and a queue has no more of it
//! than the longest ring needs, so that a front-end cannot have much mapped. What is in it is not looked at here, but for the
//! one byte that is about the device and not about a ring.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_mem::guest::{GuestMem, MemPin};
use sluice_mem::region::{Region, RegionError, RegionInfo};
use sluice_mem::sigbus::Alarm;
use sluice_mem::slice::GuestSlice;

use super::{HEAD_BYTES, HEADS, VERSION, VERSION_1};
use crate::device::Device;

/// Where the first queue says that the write cache is off.
const WRITETHROUGH: usize = HEADS + 2;

/// Why a region cannot be used: the front-end's mistake, but for the last.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InflightError {
    /// More queues, or longer ones, than the device has.
    #[error(
        "inflight memory for {num_queues} queues of {queue_size}: the device has {most} of at most {}",
        Device::QUEUE_SIZE_MAX
    )]
    Size {
        /// What was asked for.
        num_queues: u16,
        /// What was asked for.
        queue_size: u16,
        /// How many the device has.
        most: u16,
    },
    /// Too small for what it is to hold.
    #[error("inflight memory of {size} bytes: {num_queues} queues of {queue_size} need {need}")]
    TooSmall {
        /// What there is.
        size: u64,
        /// For what it is to be.
        num_queues: u16,
        /// For what it is to be.
        queue_size: u16,
        /// What that needs.
        need: u64,
    },
    /// It cannot be mapped.
    #[error("inflight memory")]
    Region(#[from] RegionError),
    /// The host has no memory, or no fd.
    #[error("cannot make inflight memory")]
    Host(#[source] io::Error),
}

/// What a front-end asks for, or gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightInfo {
    /// How many bytes there are.
    pub size: u64,
    /// Where they begin in the file.
    pub offset: u64,
    /// For how many queues.
    pub num_queues: u16,
    /// How many heads each of them has.
    pub queue_size: u16,
}

/// The regions of all queues of a device, mapped.
#[derive(Debug)]
pub struct InflightMem {
    memory: Arc<GuestMem>,
    /// As the front-end has said.
    info: InflightInfo,
    /// How many bytes each queue has.
    stride: u64,
}

/// Where one queue's region is.
#[derive(Debug, Clone)]
pub struct InflightSetup {
    pub(super) memory: Arc<GuestMem>,
    pub(super) at: u64,
    pub(super) stride: u64,
}

/// How many bytes a queue's region has: whole lines of a CPU's cache, so that queues do not share one.
fn stride(queue_size: u16) -> u64 {
    (HEADS + HEAD_BYTES * usize::from(queue_size)).next_multiple_of(64) as u64
}

impl InflightInfo {
    /// Whether the device can have so many queues, of such a size.
    ///
    /// # Errors
    /// [`InflightError::Size`] when not.
    pub fn check(&self, device: &Device) -> Result<(), InflightError> {
        let Self { num_queues, queue_size, .. } = *self;
        let most = device.num_queues();
        let can_be = (1..=most).contains(&num_queues) && (1..=Device::QUEUE_SIZE_MAX).contains(&queue_size);
        if can_be { Ok(()) } else { Err(InflightError::Size { num_queues, queue_size, most }) }
    }

    fn need(&self) -> u64 {
        stride(self.queue_size) * u64::from(self.num_queues)
    }

    /// How many bytes each queue has of what there is: whole lines of a cache, and no more than the longest ring needs.
    fn stride(&self) -> u64 {
        ((self.size / u64::from(self.num_queues)) & !63).min(stride(Device::QUEUE_SIZE_MAX))
    }
}

impl InflightMem {
    /// New memory, of zeroes, for what `info` asks; and where it is. It lives as long as somebody has the file. It is as large
    /// as the longest rings need: over virtio-mmio QEMU has rings of 1024, whatever it says.
    ///
    /// # Errors
    /// [`InflightError`] when the device has fewer queues, or the host no memory.
    pub fn make(info: InflightInfo, device: &Device) -> Result<(InflightInfo, File), InflightError> {
        info.check(device)?;
        let flags = MemfdFlags::CLOEXEC;
        let file = File::from(memfd_create("inflight", flags).map_err(|e| InflightError::Host(e.into()))?);
        let size = stride(Device::QUEUE_SIZE_MAX) * u64::from(info.num_queues);
        file.set_len(size).map_err(InflightError::Host)?;
        Ok((InflightInfo { size, offset: 0, ..info }, file))
    }

    /// The memory that a front-end has kept.
    ///
    /// # Errors
    /// [`InflightError`] when it cannot be what it is said to be.
    pub fn open(
        info: InflightInfo,
        file: File,
        device: &Device,
        alarm: &Arc<Alarm>,
    ) -> Result<Self, InflightError> {
        info.check(device)?;
        let InflightInfo { size, offset, num_queues, queue_size } = info;
        let need = info.need();
        if size < need {
            return Err(InflightError::TooSmall { size, num_queues, queue_size, need });
        }
        // The regions of a device are less than 5 MiB, whatever the front-end says.
        let stride = info.stride();
        let size = stride * u64::from(num_queues);
        let region = RegionInfo { guest_addr: 0, size, user_addr: 0, mmap_offset: offset };
        let memory = GuestMem::new(vec![Region::map_watched(region, file, alarm)?])?;
        Ok(Self { memory: Arc::new(memory), info, stride })
    }

    /// What the front-end has said of it.
    pub(crate) fn info(&self) -> InflightInfo {
        self.info
    }

    /// The memory as it is mapped.
    pub(crate) fn region(&self) -> Option<&Region> {
        self.memory.regions().first()
    }

    /// Whether somebody has used it while the driver had the write cache switched off.
    #[must_use]
    pub fn is_writethrough(&self) -> bool {
        let header = self.header();
        header.load_u16(VERSION, Ordering::Acquire) == VERSION_1 && header.read::<u8>(WRITETHROUGH) == 1
    }

    /// The driver has switched the write cache off, or on: for whoever uses the memory next.
    pub fn set_writethrough(&self, is_writethrough: bool) {
        self.header().write(WRITETHROUGH, u8::from(is_writethrough));
    }

    /// What the first queue has before its second head.
    fn header(&self) -> GuestSlice {
        let pin = MemPin::new(Arc::clone(&self.memory));
        pin.slice(0, HEADS + HEAD_BYTES).expect("a queue has a head")
    }

    /// The part of a queue, if it has one.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<InflightSetup> {
        (index < self.info.num_queues).then(|| InflightSetup {
            memory: Arc::clone(&self.memory),
            at: self.stride * u64::from(index),
            stride: self.stride,
        })
    }
}

impl InflightSetup {
    /// How many heads there is room for.
    pub(super) fn heads(&self) -> u16 {
        let bytes = usize::try_from(self.stride).unwrap_or(usize::MAX).saturating_sub(HEADS);
        u16::try_from(bytes / HEAD_BYTES).unwrap_or(u16::MAX)
    }

    /// Whether a ring of so many descriptors fits.
    #[must_use]
    pub fn fits(&self, size: u16) -> bool {
        stride(size) <= self.stride
    }
}
