//! The sandbox: what the daemon gives up once it has everything that it needs.
//!
//! Guests and front-ends are not trusted. Should one of them ever make the daemon run code of theirs, that code finds
//! itself in a process that can do what serving takes, with the files and sockets that it has, and nothing else. Layers, each
//! of which stops what the others let through:
//!
//! | layer | what it stops | module |
//! | --- | --- | --- |
//! | restricted rings | io_uring operations other than those of a disk | `blk::engine::ring` |
//! | limits | core files with guests' memory in them, more open files than are needed | [`limits`] |
//! | user, capabilities | whatever takes privileges | [`privileges`] |
//! | landlock | opening, making, removing files; TCP; signals to others | [`files`] |
//! | seccomp | system calls that serving does not take | [`syscalls`] |
//!
//! All but the last are of threads, not of processes, so they are taken on by the only thread there is, in [`confine`], and
//! the others inherit them. Then the threads are made, and what it takes to make threads is given up too, by all of them at
//! once, in [`Confined::seal`]: a filter that was there before would have to allow it for good. Until then nobody is served.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::accounts::{Group, User, parse_group, parse_user};

mod files;
pub(crate) mod limits;
mod privileges;
mod syscalls;

/// Whether there is a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    On,
    None,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "none" => Ok(Self::None),
            _ => Err("must be on or none".into()),
        }
    }
}

/// What is said of the sandbox, on the command line or in the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct SandboxArgs {
    /// Whether the daemon gives up what it does not need, once it serves: on or none [default: on]
    ///
    /// Then it can open no file, make no socket and start no program any more, and has no privileges. `sluice doctor`
    /// shows whether that holds on this host.
    #[arg(long, value_name = "on|none", value_parser = Mode::from_str, help_heading = "Sandbox")]
    pub(crate) sandbox: Option<Mode>,

    /// The user to become, a name or a number, when disks are opened and sockets made
    ///
    /// The sockets are this user's. For a socket to be removed at the end, the user must be let write to its directory.
    #[arg(long, value_name = "USER", value_parser = parse_user, help_heading = "Sandbox")]
    pub(crate) user: Option<User>,

    /// The group to become, a name or a number [default: that of --user]
    #[arg(long, value_name = "GROUP", value_parser = parse_group, help_heading = "Sandbox")]
    pub(crate) group: Option<Group>,
}

impl SandboxArgs {
    /// With what another place says wherever this one says nothing.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            sandbox: self.sandbox.or(other.sandbox),
            user: self.user.or(other.user),
            group: self.group.or(other.group),
        }
    }

    /// No sandbox: for a process that has more to do than to serve.
    pub(crate) fn none() -> Self {
        Self { sandbox: Some(Mode::None), ..Self::default() }
    }

    /// Whether there is to be one.
    pub(crate) fn is_on(&self) -> bool {
        self.sandbox != Some(Mode::None)
    }

    /// Who to become.
    ///
    /// # Errors
    /// What somebody must mend.
    pub(crate) fn identity(&self) -> Result<Identity, String> {
        let primary = self.user.and_then(|user| user.primary_gid);
        let gid = self.group.map(|group| group.gid).or(primary);
        match (self.user, gid) {
            (Some(user), None) => Err(format!(
                "user {} belongs to nobody here, so it has no group: give one with group",
                user.uid
            )),
            (user, gid) => Ok(Identity { uid: user.map(|user| user.uid), gid }),
        }
    }
}

/// Who a process is to become; None: stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// A process that is confined, but for what it takes to make threads.
#[derive(Debug)]
#[must_use = "seal it when its threads are made"]
pub(crate) struct Confined {
    /// None: there is to be no sandbox.
    landlock: Option<files::Enforced>,
}

/// Confines the calling thread, which must be the only one, and all that it makes. It can remove files in
/// `directories`, and do nothing else to files by their names.
///
/// # Errors
/// When the host refuses what a sandbox cannot do without.
pub(crate) fn confine(
    arguments: &SandboxArgs,
    identity: Identity,
    directories: &[&Path],
) -> Result<Confined> {
    if arguments.is_on() || identity != Identity::default() {
        ensure!(threads()? == 1, "a process with several threads cannot be confined");
    }
    if !arguments.is_on() {
        privileges::become_other(identity)?;
        return Ok(Confined { landlock: None });
    }
    let advice = "(--sandbox=none does without a sandbox)";
    limits::forbid_core().context("cannot forbid core files")?;
    // While this thread may still open the directories.
    let rules = files::Rules::new(directories).with_context(|| format!("landlock {advice}"))?;
    privileges::become_other(identity)?;
    privileges::give_up().with_context(|| format!("cannot give privileges up {advice}"))?;
    let landlock = rules.enforce().with_context(|| format!("landlock {advice}"))?;
    Ok(Confined { landlock: Some(landlock) })
}

impl Confined {
    /// What landlock stops, as far as that is known.
    pub(crate) fn landlock(&self) -> String {
        self.landlock.as_ref().map_or_else(|| "not used".to_owned(), ToString::to_string)
    }

    /// Gives up, for all threads, what serving does not take. What they do else ends the process.
    ///
    /// # Errors
    /// When the kernel has no seccomp, or not for all threads at once.
    pub(crate) fn seal(self) -> Result<()> {
        let Some(landlock) = self.landlock else {
            log::info!("no sandbox");
            return Ok(());
        };
        syscalls::filter_all_threads()
            .context("the kernel takes no filter of system calls (--sandbox=none does without a sandbox)")?;
        log::info!("in a sandbox: no privileges, {landlock}, system calls filtered");
        Ok(())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::None => "none",
        })
    }
}

fn threads() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task").context("/proc is not there")?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_is_on_unless_it_is_switched_off() {
        assert!(SandboxArgs::default().is_on());
        assert!(SandboxArgs { sandbox: Some(Mode::On), ..SandboxArgs::none() }.is_on());
        assert!(!SandboxArgs::none().is_on());
        assert!(!SandboxArgs::default().or(SandboxArgs::none()).is_on());
        assert_eq!("off".parse::<Mode>().unwrap_err(), "must be on or none");
    }

    #[test]
    fn a_user_brings_a_group_unless_one_is_named() {
        let identity = |user: Option<&str>, group: Option<&str>| {
            let (user, group) = (user.map(parse_user), group.map(parse_group));
            SandboxArgs { sandbox: None, user: user.map(Result::unwrap), group: group.map(Result::unwrap) }
                .identity()
        };
        assert_eq!(identity(None, None), Ok(Identity::default()));
        assert_eq!(identity(Some("root"), None), Ok(Identity { uid: Some(0), gid: Some(0) }));
        assert_eq!(identity(Some("0"), Some("7")), Ok(Identity { uid: Some(0), gid: Some(7) }));
        assert_eq!(identity(None, Some("7")), Ok(Identity { uid: None, gid: Some(7) }));
        assert_eq!(
            identity(Some("4000000123"), Some("7")),
            Ok(Identity { uid: Some(4_000_000_123), gid: Some(7) })
        );
        assert!(identity(Some("4000000123"), None).unwrap_err().contains("give one with group"));
    }

    #[test]
    fn a_process_with_several_threads_is_not_confined() {
        // The test harness has one for each test, and one that waits for them.
        let error = confine(&SandboxArgs::default(), Identity::default(), &[]).unwrap_err();
        assert!(error.to_string().contains("several threads"), "{error}");
    }
}
