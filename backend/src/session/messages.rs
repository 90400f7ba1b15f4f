//! The messages of a front-end, one method each, as the crate `vhost` calls them.
//!
//! A message's numbers and files become the session's own types here; what is wrong with them is found where they go, and then
//! nothing has changed. What takes more than a few lines is a method of [`Session`].
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fs::File;

use sluice_mem::dirty::DirtyLog;
use sluice_mem::guest::GuestMem;
use sluice_mem::region::{Region, RegionError, RegionInfo};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::{Session, SessionError};
use crate::device::Device;
use crate::inflight::{InflightInfo, InflightMem};
use crate::rings::{RingAddrs, RingError};

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

fn ring(result: std::result::Result<(), RingError>) -> Result<()> {
    Ok(result.map_err(SessionError::from)?)
}

fn not_offered<T>(message: &'static str) -> Result<T> {
    Err(SessionError::NotOffered { message }.into())
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
