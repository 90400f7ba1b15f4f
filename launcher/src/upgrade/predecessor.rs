//! The running daemon's half of an upgrade.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use sluice_backend::server::{Server, Suspending};

use super::starter::Starter;
use super::wire::{DiskState, Message, Peer};
use super::{PROTOCOL, STANDSTILL_MAX, START_MAX, TAKE_MAX, UpgradeError};

const WHO: &str = "next daemon";

/// What the next daemon has got: it serves now.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) pid: u32,
    /// Since when nobody has served.
    pub(crate) since: Instant,
    suspended: Vec<Suspending>,
}

impl Successor {
    /// Ends all servers, and leaves their connections as they are.
    pub(crate) fn let_go(self) {
        self.suspended.into_iter().for_each(Suspending::let_go);
    }
}

/// Has a next daemon started, and hands `servers` with their names over to it.
///
/// # Errors
/// [`UpgradeError`]: then all of them go on as before.
pub(crate) fn hand_over(starter: &Starter, servers: &[(&str, &Server)]) -> Result<Successor, UpgradeError> {
    let result = try_hand_over(starter, servers);
    if result.is_err() {
        starter.end();
    }
    result
}

fn try_hand_over(starter: &Starter, servers: &[(&str, &Server)]) -> Result<Successor, UpgradeError> {
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
    let since = Instant::now();
    let suspended: Vec<_> = servers.iter().map(|(_, server)| server.suspend()).collect();
    let (state, fds) = state_of(servers, &suspended, since + STANDSTILL_MAX)?;
    let until = Instant::now() + TAKE_MAX;
    peer.send(&state, &fds, TAKE_MAX).map_err(gone)?;
    match peer.receive(until).map_err(gone)? {
        (Message::Taken, _) => {}
        (Message::Refused { why }, _) => return Err(UpgradeError::Refused(why)),
        _ => return Err(UpgradeError::Confused { who: WHO }),
    }
    // From here on it is the next one's.
    peer.send(&Message::Go, &[], TAKE_MAX).map_err(gone)?;
    Ok(Successor { pid, since, suspended })
}

/// What all servers say when they stand still.
fn state_of(
    servers: &[(&str, &Server)],
    suspended: &[Suspending],
    until: Instant,
) -> Result<(Message, Vec<OwnedFd>), UpgradeError> {
    let (mut disks, mut all) = (Vec::new(), Vec::new());
    for ((name, _), suspending) in servers.iter().zip(suspended) {
        let disk = (*name).to_owned();
        let (server, fds) =
            suspending.wait(until).map_err(|error| UpgradeError::Disk { disk: disk.clone(), error })?;
        let fds: Vec<OwnedFd> = fds.into();
        disks.push(DiskState { disk, server, fds: fds.len() });
        all.extend(fds);
    }
    Ok((Message::State { disks }, all))
}
