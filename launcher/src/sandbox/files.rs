//! Landlock: no file is opened, made, changed or removed by its name any more, no TCP port bound or connected to, nobody
//! outside signalled.
//!
//! With one exception: the daemon removes its sockets at the end, and landlock can say that for directories only. Files
//! that are open stay what they are, those that front-ends pass too. A kernel that has no landlock, or an older one, is
//! a line in the log: what it stops seccomp stops as well, but for the removal of files.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

/// All that this program knows of; what the kernel does not know is left out.
const ABI_MAX: ABI = ABI::V6;

/// What is going to be forbidden.
pub(super) struct Rules(RulesetCreated);

/// What the kernel forbids.
#[derive(Debug)]
pub(super) struct Enforced(RestrictionStatus);

impl Rules {
    /// Everything, but for the removal of files in `directories`.
    pub(super) fn new(directories: &[&Path]) -> Result<Self> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI_MAX))?
            .handle_access(AccessNet::from_all(ABI_MAX))?
            .scope(Scope::from_all(ABI_MAX))?
            .create()?;
        for directory in directories {
            let opened = PathFd::new(directory).with_context(|| directory.display().to_string())?;
            rules = rules.add_rule(PathBeneath::new(opened, AccessFs::RemoveFile))?;
        }
        Ok(Self(rules))
    }

    /// Forbids it to the calling thread and those that it makes, for good.
    pub(super) fn enforce(self) -> Result<Enforced> {
        let enforced = Enforced(self.0.restrict_self()?);
        match enforced.0.ruleset {
            RulesetStatus::FullyEnforced => {}
            RulesetStatus::PartiallyEnforced => log::info!("{enforced}: newer kernels forbid more"),
            RulesetStatus::NotEnforced => {
                log::warn!(
                    "{enforced} on this kernel: the daemon may remove files of the user that it runs as"
                );
            }
        }
        Ok(enforced)
    }
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.landlock {
            LandlockStatus::Available { effective_abi, kernel_abi } => {
                write!(f, "landlock ABI {}", kernel_abi.unwrap_or(effective_abi as i32))
            }
            LandlockStatus::NotEnabled => f.write_str("landlock not enabled"),
            _ => f.write_str("no landlock"),
        }
    }
}
