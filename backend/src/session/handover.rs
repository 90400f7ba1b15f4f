//! A session that goes on in another process: what is said of it, and one that is made of that.

use std::fs::File;
use std::io;

use sluice_mem::guest::GuestMem;
use sluice_mem::region::{Region, RegionInfo};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_RO;

use super::{Session, SessionError};
use crate::config::DiskConfig;
use crate::device::Device;
use crate::handover::{DeviceState, Fds, HandoverError, InflightState, RegionState, SessionState};
use crate::inflight::{InflightInfo, InflightMem};
use crate::rings::Standstill;

/// Where the capacity ends in the config space.
const CAPACITY_BYTES: usize = 8;

impl Session {
    /// Stops all rings and waits for their I/O.
    pub(crate) fn stand_still(&mut self) -> Standstill {
        self.rings.stand_still()
    }

    /// Whether the front-end copies the guest's memory to another host.
    pub(crate) fn is_migrating(&self) -> bool {
        self.rings.is_logging()
    }

    /// Goes on where it has stopped.
    pub(crate) fn go_on(&mut self, standstill: Standstill) {
        self.rings.go_on(standstill);
    }

    /// What a successor has to know. The rings stand still.
    pub(crate) fn state(&self, standstill: &Standstill, fds: &mut Fds) -> io::Result<SessionState> {
        Ok(SessionState {
            has_offered: self.has_offered,
            acked_features: self.acked_features,
            acked_protocol: self.acked_protocol,
            protocol_features: self.protocol_features,
            accepted: self.accepted,
            regions: region_states(self.rings.memory(), fds)?,
            inflight: self.rings.inflight().map(|inflight| inflight_state(inflight, fds)).transpose()?,
            rings: self.rings.states(standstill, fds)?,
        })
    }

    /// Takes over what somebody else has negotiated with a guest that knows the device as `device` says. Rings run when the
    /// session is told to go on.
    ///
    /// # Errors
    /// [`HandoverError`] when the guest would notice a difference, or when no front-end could have said that.
    pub(crate) fn restore(
        &mut self,
        state: SessionState,
        device: &DeviceState,
        fds: &mut Fds,
    ) -> Result<Standstill, HandoverError> {
        let features = state.accepted.unwrap_or(0);
        let unknown = features & !self.device.features();
        if unknown != 0 {
            return Err(SessionError::Features { what: "features", bits: unknown }.into());
        }
        match state.accepted {
            Some(features) => self.device.config().accept(features),
            None => self.device.config().disconnect(),
        }
        self.accepted = state.accepted;
        self.device.config().set_writeback(device.writeback);
        check_unchanged(&self.device, device)?;
        self.protocol_features = state.protocol_features;
        let memory = self.map(state.regions, fds)?;
        let inflight = state.inflight.map(|inflight| self.open_inflight(&inflight, fds)).transpose()?;
        if let Some(inflight) = inflight {
            self.rings.set_inflight(inflight);
        }
        self.rings.restore(features, memory, state.rings, fds)
    }

    fn map(&self, states: Vec<RegionState>, fds: &mut Fds) -> Result<GuestMem, HandoverError> {
        let count = states.len();
        if count > Self::REGIONS_MAX {
            return Err(SessionError::TooManyRegions { count }.into());
        }
        let regions: Result<Vec<_>, HandoverError> = states
            .into_iter()
            .map(|RegionState { guest_addr, size, user_addr, mmap_offset, fd }| {
                let info = RegionInfo { guest_addr, size, user_addr, mmap_offset };
                let file: File = fds.take(fd)?;
                Ok(Region::map_watched(info, file, &self.alarm).map_err(SessionError::from)?)
            })
            .collect();
        Ok(GuestMem::new(regions?).map_err(SessionError::from)?)
    }

    fn open_inflight(&self, state: &InflightState, fds: &mut Fds) -> Result<InflightMem, HandoverError> {
        let InflightState { size, offset, num_queues, queue_size, fd } = *state;
        let info = InflightInfo { size, offset, num_queues, queue_size };
        let opened = InflightMem::open(info, fds.take(fd)?, &self.device, &self.alarm);
        Ok(opened.map_err(SessionError::from)?)
    }
}

impl DeviceState {
    /// What guests know of `device`.
    pub(crate) fn of(device: &Device) -> Self {
        Self {
            features: device.features(),
            config: device.config().read(0, DiskConfig::BYTES).unwrap_or_default(),
            id: device.id().to_vec(),
            writeback: device.config().is_writeback(),
        }
    }
}

/// Checks that a guest that knows the device as it `was` can go on with it: a disk that has grown is none that it could notice.
fn check_unchanged(device: &Device, was: &DeviceState) -> Result<(), HandoverError> {
    let now = DeviceState::of(device);
    let changed = |what, was: String, now: String| Err(HandoverError::Changed { what, was, now });
    let is_read_only = |state: &DeviceState| state.features & (1 << VIRTIO_BLK_F_RO) != 0;
    if is_read_only(was) != is_read_only(&now) {
        return changed("read-only option", is_read_only(was).to_string(), is_read_only(&now).to_string());
    }
    if was.id != now.id {
        let text = |id: &[u8]| String::from_utf8_lossy(id).trim_end_matches('\0').to_owned();
        return changed("serial number", text(&was.id), text(&now.id));
    }
    let (sectors_was, rest_was) = split(&was.config);
    let (sectors_now, rest_now) = split(&now.config);
    if sectors_now < sectors_was {
        return changed("capacity in sectors", sectors_was.to_string(), sectors_now.to_string());
    }
    if let Some(at) = rest_was.iter().zip(rest_now).position(|(was, now)| was != now) {
        let field = |rest: &[u8]| {
            format!("{:?}", rest.get(at..).unwrap_or_default().iter().take(4).collect::<Vec<_>>())
        };
        let what = "config space (number of queues, block sizes, limits of discards)";
        return changed(what, field(rest_was), field(rest_now));
    }
    Ok(())
}

/// The capacity, and the rest of a config space.
fn split(config: &[u8]) -> (u64, &[u8]) {
    match config.split_first_chunk::<CAPACITY_BYTES>() {
        Some((capacity, rest)) => (u64::from_le_bytes(*capacity), rest),
        None => (0, config),
    }
}

fn region_states(memory: &GuestMem, fds: &mut Fds) -> io::Result<Vec<RegionState>> {
    let states = memory.regions().iter().map(|region| {
        let (mmap_offset, fd) = file_of(region, fds)?;
        let (guest_addr, size, user_addr) = (region.guest_addr(), region.size(), region.user_addr());
        Ok(RegionState { guest_addr, size, user_addr, mmap_offset, fd })
    });
    states.collect()
}

fn inflight_state(inflight: &InflightMem, fds: &mut Fds) -> io::Result<InflightState> {
    let InflightInfo { size, offset, num_queues, queue_size } = inflight.info();
    let region = inflight.region().ok_or_else(|| io::Error::other("inflight memory without a region"))?;
    let (_, fd) = file_of(region, fds)?;
    Ok(InflightState { size, offset, num_queues, queue_size, fd })
}

/// Where a region begins in its file, and the file.
fn file_of(region: &Region, fds: &mut Fds) -> io::Result<(u64, crate::handover::FdIndex)> {
    let (file, start) = region.file().ok_or_else(|| io::Error::other("a region without a file"))?;
    Ok((start, fds.put(file)?))
}
