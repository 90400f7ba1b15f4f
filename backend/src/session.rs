//! One connection: what the front-end's messages do to the device (vhost-user.rst).
//!
//! Framing and validation are the `vhost` crate's; it calls the methods here, one per message. What a message asks for
//! and cannot have is an error, and then nothing has changed: the crate answers with a non-zero acknowledgement where
//! one was asked for, and [`crate::server`] closes the connection where none was.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fs::File;
use std::io;
use std::sync::Arc;

use sluice_mem::dirty::DirtyLog;
use sluice_mem::guest::GuestMem;
use sluice_mem::region::{Region, RegionError, RegionInfo};
use sluice_mem::sigbus::Alarm;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::config::WriteError;
use crate::device::Device;
use crate::inflight::{InflightError, InflightInfo, InflightMem};
use crate::rings::{Meanwhile, RingAddrs, RingError, Rings};
use crate::state::{StateError, Transfer};
use crate::workers::Workers;

/// Why a message was refused: the front-end's mistake, or, in [`RingError::Start`], the host's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Bits that were not offered.
    #[error("{what} {bits:#x} were not offered")]
    Features {
        /// Which kind of features.
        what: &'static str,
        /// The bits.
        bits: u64,
    },
    /// A ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A region of memory.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Memory to mark in what was written.
    #[error("the log of what is written")]
    Log(#[source] RegionError),
    /// As many regions as there may be.
    #[error("{count} regions of memory: at most {} are possible", Session::REGIONS_MAX)]
    TooManyRegions {
        /// How many there would be.
        count: usize,
    },
    /// A region that is not there.
    #[error("no region of {size} bytes at guest address {guest_addr:#x} to remove")]
    NoSuchRegion {
        /// Its guest address.
        guest_addr: u64,
        /// Its size.
        size: u64,
    },
    /// Memory for what is in flight.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The device's state cannot be carried.
    #[error(transparent)]
    State(#[from] StateError),
    /// A part of the config space that does not exist.
    #[error("{size} bytes at offset {offset} of the config space")]
    ConfigRange {
        /// Where.
        offset: u32,
        /// How many.
        size: u32,
    },
    /// A field that cannot be written.
    #[error(transparent)]
    ConfigWrite(#[from] WriteError),
    /// A message that belongs to a feature that was not offered.
    #[error("{message} belongs to a feature that was not offered")]
    NotOffered {
        /// Its name.
        message: &'static str,
    },
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        Self::ReqHandlerError(std::io::Error::other(error))
    }
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    device: Arc<Device>,
    rings: Rings,
    /// Rings when memory of the guest was taken away.
    alarm: Arc<Alarm>,
    /// PROTOCOL_FEATURES was negotiated, so rings begin disabled.
    protocol_features: bool,
    /// The front-end has asked what is offered: the crate acknowledges nothing before.
    has_offered: bool,
    /// The protocol features that the front-end has chosen.
    protocol: VhostUserProtocolFeatures,
    /// The features that are in force.
    accepted: Option<u64>,
    /// What was last said by SET_FEATURES and SET_PROTOCOL_FEATURES, taken or not: the crate goes by that.
    acked_features: Option<u64>,
    acked_protocol: Option<u64>,
    /// The state that is being carried to another host, or from one.
    transfer: Option<Transfer>,
}

impl Session {
    /// The most regions of memory: what fits a message of the largest front-end (QEMU's `MAX_MEM_SLOTS`).
    pub const REGIONS_MAX: usize = 509;

    /// A new connection to `device`, called `name` in the log. While a message waits for the disk, `meanwhile` has turns.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn new(
        name: &str,
        device: Arc<Device>,
        workers: Arc<Workers>,
        meanwhile: Box<dyn Meanwhile>,
    ) -> io::Result<Self> {
        let rings = Rings::new(name, Arc::clone(&device), workers, meanwhile);
        let (alarm, protocol) = (Alarm::new()?, VhostUserProtocolFeatures::empty());
        Ok(Self {
            device,
            rings,
            alarm,
            protocol_features: false,
            has_offered: false,
            protocol,
            accepted: None,
            acked_features: None,
            acked_protocol: None,
            transfer: None,
        })
    }

    /// What rings when memory of the guest was taken away: then the connection is to be closed.
    #[must_use]
    pub fn alarm(&self) -> &Arc<Alarm> {
        &self.alarm
    }

    /// Whether a message that asks for an acknowledgement gets one.
    #[must_use]
    pub fn acknowledges(&self) -> bool {
        self.has_offered && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// Whether the front-end may ask for the config space.
    #[must_use]
    pub fn has_config(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::CONFIG)
    }

    /// Whether the device has so many queues, of such a size, that what they have in flight could be kept.
    #[must_use]
    pub fn can_track(&self, num_queues: u16, queue_size: u16) -> bool {
        InflightInfo { size: 0, offset: 0, num_queues, queue_size }.check(&self.device).is_ok()
    }

    fn set_regions(&mut self, regions: Vec<Region>) -> std::result::Result<(), SessionError> {
        if regions.len() > Self::REGIONS_MAX {
            return Err(SessionError::TooManyRegions { count: regions.len() });
        }
        let memory = GuestMem::new(regions)?;
        self.rings.check_memory(&memory)?;
        self.rings.set_memory(memory);
        Ok(())
    }

    fn try_set_features(&mut self, features: u64) -> std::result::Result<(), SessionError> {
        let unknown = features & !self.device.features();
        if unknown != 0 {
            return Err(SessionError::Features { what: "features", bits: unknown });
        }
        self.device.config().accept(features);
        self.accepted = Some(features);
        self.rings.set_features(features);
        self.protocol_features = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0;
        if !self.protocol_features {
            self.rings.set_all_enabled(true)?;
        }
        Ok(())
    }

    /// Begins to save the device's state, or to load one. Returns the fd that the front-end is to use.
    fn begin_transfer(
        &mut self,
        direction: VhostTransferStateDirection,
    ) -> std::result::Result<File, StateError> {
        self.transfer = None;
        if self.rings.are_running() {
            return Err(StateError::Running);
        }
        let (transfer, fd) = match direction {
            VhostTransferStateDirection::SAVE => Transfer::save(&self.device)?,
            VhostTransferStateDirection::LOAD => Transfer::load()?,
        };
        self.transfer = Some(transfer);
        Ok(fd)
    }

    fn end_transfer(&mut self) -> std::result::Result<(), StateError> {
        let transfer = self.transfer.take().ok_or(StateError::None)?;
        let is_writeback = transfer.check(&self.device)?;
        self.rings.note_writethrough(!is_writeback);
        Ok(())
    }

    /// Says what the front-end is told as a number only.
    fn tell(&self, error: &StateError) {
        self.device.faults().log(log::Level::Warn, format_args!("{}: {error}", self.rings.name()));
    }

    fn try_remove_region(&mut self, info: RegionInfo) -> std::result::Result<(), SessionError> {
        let RegionInfo { guest_addr, size, user_addr, .. } = info;
        let is_it = |region: &Region| {
            (region.guest_addr(), region.size(), region.user_addr()) == (guest_addr, size, user_addr)
        };
        let mut regions = self.rings.memory().regions().to_vec();
        let at = regions.iter().position(is_it).ok_or(SessionError::NoSuchRegion { guest_addr, size })?;
        regions.remove(at);
        self.set_regions(regions)
    }
}

fn region_info(region: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
    }
}

fn inflight_info(inflight: &VhostUserInflight) -> InflightInfo {
    InflightInfo {
        size: inflight.mmap_size,
        offset: inflight.mmap_offset,
        num_queues: inflight.num_queues,
        queue_size: inflight.queue_size,
    }
}

fn not_offered<T>(message: &'static str) -> Result<T> {
    Err(SessionError::NotOffered { message }.into())
}

fn ring(result: std::result::Result<(), RingError>) -> Result<()> {
    Ok(result.map_err(SessionError::from)?)
}

impl VhostUserBackendReqHandlerMut for Session {
    /// A front-end begins. If there is memory, one has begun before, its device was unplugged, and this is another one on the
    /// same connection (QEMU's `device_del` and `device_add`), which knows nothing of the memory and the rings of the first.
    fn set_owner(&mut self) -> Result<()> {
        if !self.rings.memory().regions().is_empty() {
            self.rings.reset();
            self.rings.set_memory(GuestMem::default());
            self.accepted = None;
            self.device.config().disconnect();
        }
        Ok(())
    }

    /// Deprecated; front-ends that send it mean that rings stop.
    fn reset_owner(&mut self) -> Result<()> {
        ring(self.rings.set_all_enabled(false))
    }

    fn reset_device(&mut self) -> Result<()> {
        self.rings.reset();
        self.accepted = None;
        self.device.config().reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        self.has_offered = true;
        Ok(self.device.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.acked_features = Some(features);
        Ok(self.try_set_features(features)?)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let map = |(region, file)| Region::map_watched(region_info(region), file, &self.alarm);
        let regions: std::result::Result<Vec<_>, RegionError> = table.iter().zip(files).map(map).collect();
        self.set_regions(regions.map_err(SessionError::from)?)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        ring(self.rings.set_num(index, num))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        let used_log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        ring(self.rings.set_addrs(index, RingAddrs { desc, avail, used, used_log }))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        ring(self.rings.set_base(index, base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.rings.take_base(index).map_err(SessionError::from)?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        ring(self.rings.set_kick(u32::from(index), fd))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        ring(self.rings.set_call(u32::from(index), fd))
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        ring(self.rings.set_err(u32::from(index), fd))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(Device::PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        // Also when others of them are refused: the crate takes them all.
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        self.acked_protocol = Some(features);
        let unknown = features & !Device::PROTOCOL_FEATURES.bits();
        if unknown != 0 {
            return Err(SessionError::Features { what: "protocol features", bits: unknown }.into());
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.device.num_queues()))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        ring(self.rings.set_enabled(index, enable))
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let bytes = self.device.config().read(offset, size);
        Ok(bytes.ok_or(SessionError::ConfigRange { offset, size })?)
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let config = self.device.config();
        config.write(offset, data).map_err(SessionError::from)?;
        self.rings.note_writethrough(!config.is_writeback());
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(Self::REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        let region = Region::map_watched(region_info(region), fd, &self.alarm);
        let region = region.map_err(SessionError::from)?;
        let mut regions = self.rings.memory().regions().to_vec();
        regions.push(region);
        self.set_regions(regions)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Ok(self.try_remove_region(region_info(region))?)
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        not_offered("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(&mut self, inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let made = InflightMem::make(inflight_info(inflight), &self.device);
        let (info, file) = made.map_err(SessionError::from)?;
        let InflightInfo { size, offset, num_queues, queue_size } = info;
        Ok((VhostUserInflight::new(size, offset, num_queues, queue_size), file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let opened = InflightMem::open(inflight_info(inflight), file, &self.device, &self.alarm);
        let inflight = opened.map_err(SessionError::from)?;
        let config = self.device.config();
        if inflight.is_writethrough() {
            config.set_writeback(false);
        }
        inflight.set_writethrough(!config.is_writeback());
        self.rings.set_inflight(inflight);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        let begun = self.begin_transfer(direction);
        Ok(Some(begun.inspect_err(|error| self.tell(error)).map_err(SessionError::from)?))
    }

    fn check_device_state(&mut self) -> Result<()> {
        let checked = self.end_transfer();
        Ok(checked.inspect_err(|error| self.tell(error)).map_err(SessionError::from)?)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::map(log.mmap_size, log.mmap_offset, file, &self.alarm);
        ring(self.rings.set_log(log.map_err(SessionError::Log)?))
    }
}

mod handover;
#[cfg(test)]
mod tests;
