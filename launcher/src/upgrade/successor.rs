//! The next daemon's half of an upgrade.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result};
use sluice_backend::handover::Fds;
use sluice_backend::server::{Adopting, Server};

use super::wire::{DiskState, Message, Peer, StoredState};
use super::{PROTOCOL, STANDSTILL_MAX, START_MAX, TAKE_MAX, UpgradeError};
use crate::inherited;
use crate::systemd::{Stored, Systemd};

/// The variable that has the number of a descriptor by which a running daemon hands over.
pub(crate) const HANDOVER: &str = "SLUICE_HANDOVER";
/// The variable that has the number of sockets that the first daemon got from systemd.
pub(crate) const ACTIVATED: &str = "SLUICE_ACTIVATED";

const WHO: &str = "running daemon";

/// A daemon that hands over to this process, or that has left everything with the service manager.
#[derive(Debug)]
pub(crate) struct Predecessor {
    /// What it serves.
    disks: Vec<String>,
    way: Way,
}

/// How things come from there to here.
#[derive(Debug)]
enum Way {
    Peer(Peer),
    Store { disks: Vec<DiskState>, fds: Vec<OwnedFd> },
}

/// A disk that is taken over.
struct Taking {
    adopting: Adopting,
    disk: String,
}

impl Predecessor {
    /// The daemon that has had this process started for that, if one has; or one that has left things with the manager.
    pub(crate) fn from_environment(manager: Option<&Systemd>) -> Result<Option<Self>> {
        let Ok(number) = std::env::var(HANDOVER) else { return Self::from_store(manager) };
        let about = || format!("{HANDOVER}={number}");
        let number = number.parse().with_context(about)?;
        let fd: OwnedFd = inherited::take(number).with_context(about)?;
        Ok(Some(Self::meet(UnixStream::from(fd))?))
    }

    /// What is stored is used once: a process that fails on it is not to fail on it again when it is started again.
    fn from_store(manager: Option<&Systemd>) -> Result<Option<Self>> {
        let Some(manager) = manager else { return Ok(None) };
        let Some(stored) = Stored::among(&inherited::passed())? else { return Ok(None) };
        manager.forget(&stored);
        match Self::restore(&stored) {
            Ok(predecessor) => Ok(Some(predecessor)),
            Err(error) => {
                log::warn!("begins anew, what an earlier daemon has left is of no use: {error:#}");
                Ok(None)
            }
        }
    }

    fn restore(stored: &Stored) -> Result<Self> {
        let StoredState { protocol, disks, places } = serde_json::from_slice(&stored.text)?;
        if protocol != PROTOCOL {
            return Err(UpgradeError::Version { theirs: protocol }.into());
        }
        let fd = |place| stored.fds.get(place).with_context(|| format!("descriptor {place} was not kept"));
        let fds = places.iter().map(|place| Ok(fd(place)?.try_clone()?)).collect::<Result<_>>()?;
        let names = disks.iter().map(|disk| disk.disk.clone()).collect();
        Ok(Self { disks: names, way: Way::Store { disks, fds } })
    }

    fn meet(stream: UnixStream) -> Result<Self, UpgradeError> {
        let peer = Peer::new(stream);
        match peer.receive(Instant::now() + START_MAX) {
            Ok((Message::Offer { protocol: PROTOCOL, disks }, _)) => Ok(Self { disks, way: Way::Peer(peer) }),
            Ok((Message::Offer { protocol, .. }, _)) => Err(UpgradeError::Version { theirs: protocol }),
            Ok(_) => Err(UpgradeError::Confused { who: WHO }),
            Err(error) => Err(UpgradeError::Gone { who: WHO, error }),
        }
    }

    /// Whether it serves a disk of this name.
    pub(crate) fn serves(&self, disk: &str) -> bool {
        self.disks.iter().any(|served| served == disk)
    }

    /// Checks that all that it serves is among `disks`.
    pub(crate) fn check_all_are_in(&self, disks: &[String]) -> Result<(), UpgradeError> {
        match self.disks.iter().find(|served| !disks.contains(served)) {
            Some(missing) => Err(UpgradeError::Missing { disk: missing.clone() }),
            None => Ok(()),
        }
    }

    /// Takes everything over, when `servers`, each with the name of its disk, could begin. Returns which of them serve a connection that ends with its
    /// front-end. They serve when this returns.
    pub(crate) fn take_over(
        self,
        servers: &mut BTreeMap<String, &mut Server>,
    ) -> Result<Vec<String>, UpgradeError> {
        match self.way {
            Way::Peer(peer) => take_from(&peer, servers),
            Way::Store { disks, fds } => {
                let connections = connections_of(&disks);
                adopt(disks, fds, servers)?.into_iter().for_each(|taking| taking.adopting.go());
                Ok(connections)
            }
        }
    }
}

/// Takes over from a daemon that runs.
fn take_from(peer: &Peer, servers: &mut BTreeMap<String, &mut Server>) -> Result<Vec<String>, UpgradeError> {
    let gone = |error| UpgradeError::Gone { who: WHO, error };
    let ready = Message::Ready { pid: std::process::id() };
    peer.send(&ready, &[], TAKE_MAX).map_err(gone)?;
    let (message, fds) = peer.receive(Instant::now() + STANDSTILL_MAX + TAKE_MAX).map_err(gone)?;
    let Message::State { disks } = message else { return Err(UpgradeError::Confused { who: WHO }) };
    let connections = connections_of(&disks);
    let taken = match adopt(disks, fds, servers) {
        Ok(taken) => taken,
        Err(error) => {
            let refused = Message::Refused { why: error.to_string() };
            // It hears of it by the end of this process, too.
            let _ = peer.send(&refused, &[], TAKE_MAX);
            return Err(error);
        }
    };
    peer.send(&Message::Taken, &[], TAKE_MAX).map_err(gone)?;
    match peer.receive(Instant::now() + TAKE_MAX).map_err(gone)? {
        (Message::Go, _) => taken.into_iter().for_each(|taking| taking.adopting.go()),
        _ => return Err(UpgradeError::Confused { who: WHO }),
    }
    Ok(connections)
}

/// Those that serve a connection that ends with its front-end.
fn connections_of(disks: &[DiskState]) -> Vec<String> {
    let connections = disks.iter().filter(|disk| disk.server.is_connection());
    connections.map(|disk| disk.disk.clone()).collect()
}

/// Has each disk's server take over, and waits until all have, but for that they serve.
fn adopt(
    disks: Vec<DiskState>,
    mut fds: Vec<OwnedFd>,
    servers: &mut BTreeMap<String, &mut Server>,
) -> Result<Vec<Taking>, UpgradeError> {
    let mut taken = Vec::new();
    for DiskState { disk, server: state, fds: count } in disks {
        let rest = fds.split_off(count.min(fds.len()));
        let its = Fds::from(std::mem::replace(&mut fds, rest));
        let Some(server) = servers.remove(&disk) else { return Err(UpgradeError::Missing { disk }) };
        taken.push(Taking { adopting: server.adopt(state, its), disk });
    }
    let until = Instant::now() + TAKE_MAX;
    for Taking { adopting, disk } in &taken {
        adopting.wait(until).map_err(|error| UpgradeError::Disk { disk: disk.clone(), error })?;
    }
    Ok(taken)
}
