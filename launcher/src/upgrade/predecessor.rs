//! The running daemon's half of an upgrade: it hands over to the next one, or leaves everything with the service manager.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use sluice_backend::server::{Server, Suspending};

use super::starter::Starter;
use super::wire::{DiskState, Message, Peer, StoredState};
use super::{PROTOCOL, STANDSTILL_MAX, START_MAX, TAKE_MAX, UpgradeError};
use crate::systemd::{Systemd, without_repetition};

const WHO: &str = "next daemon";

/// Servers that stand still, as somebody else is going to serve.
#[derive(Debug)]
pub(crate) struct Suspended {
    /// Since when nobody serves.
    pub(crate) since: Instant,
    servers: Vec<Suspending>,
}

impl Suspended {
    /// Ends all servers, and leaves their connections as they are.
    pub(crate) fn let_go(self) {
        self.servers.into_iter().for_each(Suspending::let_go);
    }

    /// Stops all servers' rings. Returns what a successor has to know, with descriptors.
    fn stand_still(
        servers: &[(&str, &Server)],
    ) -> Result<(Self, Vec<DiskState>, Vec<OwnedFd>), UpgradeError> {
        let since = Instant::now();
        let suspended: Vec<_> = servers.iter().map(|(_, server)| server.suspend()).collect();
        let (disks, fds) = states_of(servers, &suspended, since + STANDSTILL_MAX)?;
        Ok((Self { since, servers: suspended }, disks, fds))
    }
}

/// Leaves `servers` with their names to a process that the service manager starts later.
///
/// # Errors
/// [`UpgradeError`]: then all of them go on as before.
pub(crate) fn store(manager: &Systemd, servers: &[(&str, &Server)]) -> Result<Suspended, UpgradeError> {
    let (suspended, disks, fds) = Suspended::stand_still(servers)?;
    let (places, fds) = without_repetition(fds);
    let stored = serde_json::to_vec(&StoredState { protocol: PROTOCOL, disks, places });
    let stored = stored.map_err(std::io::Error::from).and_then(|text| manager.store(&text, &fds));
    stored.map_err(|error| UpgradeError::Gone { who: "service manager", error })?;
    Ok(suspended)
}

/// Has a next daemon started, and hands `servers` with their names over to it. Returns the number of its process.
///
/// # Errors
/// [`UpgradeError`]: then all of them go on as before.
pub(crate) fn hand_over(
    starter: &Starter,
    servers: &[(&str, &Server)],
) -> Result<(u32, Suspended), UpgradeError> {
    let result = try_hand_over(starter, servers);
    if result.is_err() {
        starter.end();
    }
    result
}

fn try_hand_over(starter: &Starter, servers: &[(&str, &Server)]) -> Result<(u32, Suspended), UpgradeError> {
    let (ours, theirs) = UnixStream::pair().map_err(UpgradeError::NoStarter)?;
    starter.start(theirs.into())?;
    let peer = Peer::new(ours);
    let gone = |error| UpgradeError::Gone { who: WHO, error };
    let disks = servers.iter().map(|(name, _)| (*name).to_owned()).collect();
    let offer = Message::Offer { protocol: PROTOCOL, disks };
    peer.send(&offer, &[], START_MAX).map_err(gone)?;
    let pid = match peer.receive(Instant::now() + START_MAX).map_err(gone)? {
        (Message::Ready { pid }, _) => pid,
        (Message::Refused { why }, _) => return Err(UpgradeError::Refused(why)),
        _ => return Err(UpgradeError::Confused { who: WHO }),
    };
    let (suspended, disks, fds) = Suspended::stand_still(servers)?;
    let until = Instant::now() + TAKE_MAX;
    peer.send(&Message::State { disks }, &fds, TAKE_MAX).map_err(gone)?;
    match peer.receive(until).map_err(gone)? {
        (Message::Taken, _) => {}
        (Message::Refused { why }, _) => return Err(UpgradeError::Refused(why)),
        _ => return Err(UpgradeError::Confused { who: WHO }),
    }
    // From here on it is the next one's.
    peer.send(&Message::Go, &[], TAKE_MAX).map_err(gone)?;
    Ok((pid, suspended))
}

/// What all servers say when they stand still.
fn states_of(
    servers: &[(&str, &Server)],
    suspended: &[Suspending],
    until: Instant,
) -> Result<(Vec<DiskState>, Vec<OwnedFd>), UpgradeError> {
    let (mut disks, mut all) = (Vec::new(), Vec::new());
    for ((name, _), suspending) in servers.iter().zip(suspended) {
        let disk = (*name).to_owned();
        let (server, fds) =
            suspending.wait(until).map_err(|error| UpgradeError::Disk { disk: disk.clone(), error })?;
        let fds: Vec<OwnedFd> = fds.into();
        disks.push(DiskState { disk, server, fds: fds.len() });
        all.extend(fds);
    }
    Ok((disks, all))
}
