//! The names of engines: those that move the data of a file, and those that need none.

use std::fmt;
use std::str::FromStr;

use sluice_blk::disk::EngineKind;

/// How I/O is done, as `--engine` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EngineName {
    /// On a file or block device.
    File(EngineKind),
    /// In memory of the daemon.
    Ram,
    /// Not at all.
    Null,
}

impl EngineName {
    /// All of them, in the order of the help.
    const ALL: [Self; 4] =
        [Self::File(EngineKind::Uring), Self::File(EngineKind::Sync), Self::Ram, Self::Null];
}

impl Default for EngineName {
    fn default() -> Self {
        Self::File(EngineKind::default())
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(kind) => kind.fmt(f),
            Self::Ram => f.pad("ram"),
            Self::Null => f.pad("null"),
        }
    }
}

impl FromStr for EngineName {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|name| name.to_string() == word);
        found.ok_or_else(|| format!("must be one of {}", super::words(&Self::ALL).join(", ")))
    }
}
