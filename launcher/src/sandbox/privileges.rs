//! Privileges: another user, no capabilities, and no way to new ones.
//!
//! For the calling thread, and those that it makes. Root without capabilities is a user like others, who owns root's files.

use anyhow::{Context, Result};
use caps::CapSet;
use rustix::process::{Gid, Uid, getgid, getuid};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::Identity;

/// Becomes another user and group, and leaves all other groups: files are open already.
pub(super) fn become_other(identity: Identity) -> Result<()> {
    let Identity { uid, gid } = identity;
    // Whoever is started as that user already need not be let change it.
    if uid.is_none_or(|uid| getuid().as_raw() == uid) && gid.is_none_or(|gid| getgid().as_raw() == gid) {
        return Ok(());
    }
    if let Some(gid) = gid {
        let gid = Gid::from_raw(gid);
        set_thread_groups(&[]).context("cannot leave all groups (that takes CAP_SETGID)")?;
        set_thread_res_gid(gid, gid, gid)
            .with_context(|| format!("cannot become group {gid} (that takes CAP_SETGID)"))?;
    }
    if let Some(uid) = uid {
        let uid = Uid::from_raw(uid);
        set_thread_res_uid(uid, uid, uid)
            .with_context(|| format!("cannot become user {uid} (that takes CAP_SETUID)"))?;
    }
    Ok(())
}

/// Gives all capabilities up for good.
pub(super) fn give_up() -> Result<()> {
    // Takes a capability itself, and matters only to programs that are executed: those get none without it, either.
    if let Err(error) = caps::clear(None, CapSet::Bounding) {
        log::debug!("the bounding set of capabilities stays: {error}");
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).with_context(|| format!("{set:?} capabilities"))?;
    }
    set_no_new_privs(true).context("no_new_privs")
}
