//! One connection: what the front-end's messages do to the device (vhost-user.rst).
//!
//! Framing and validation are the `vhost` crate's; it calls the methods in `messages`, one per message. What a message asks for
//! and cannot have is an error, and then nothing has changed: the crate answers with a non-zero acknowledgement where
//! one was asked for, and [`crate::server`] closes the connection where none was.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fs::File;
use std::io;
use std::sync::Arc;

use sluice_mem::guest::GuestMem;
use sluice_mem::region::{Region, RegionError, RegionInfo};
use sluice_mem::sigbus::Alarm;
use vhost::vhost_user::Error;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};

use crate::config::WriteError;
use crate::device::Device;
use crate::inflight::{InflightError, InflightInfo};
use crate::rings::{Meanwhile, RingError, Rings};
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

mod handover;
mod messages;
#[cfg(test)]
mod tests;
