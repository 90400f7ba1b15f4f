//! An upgrade: another process, of the program that is installed now, goes on with the disks and the connections of this one.
//!
//! ```text
//!  sluice upgrade, SIGUSR2      the running daemon             its starter          the next daemon
//!  ───────────────────────      ──────────────────             ───────────          ───────────────
//!  signal ────────────────────> start one ───────────────────> execve ────────────> reads options, opens disks,
//!                                                                                   makes threads, seals itself
//!                               stands still     <──────────── ready ────────────── waits
//!                               sockets, rings   ──────────────────────────────────> maps memory, checks all of it
//!                               lets go          <──────────── taken ──────────────
//!                               ends             ──────────────────────────────────> go: serves
//! ```
//!
//! Until the last step the running daemon can go on as if nothing had happened, and does when one before it fails or takes too
//! long. The next daemon does nothing that could be seen before that step, and ends when it does not come. A process in a
//! sandbox starts no program, so a small one does that for it, the [`starter`], which knows nothing of guests.

use std::io;
use std::time::Duration;

pub(crate) mod command;
pub(crate) mod predecessor;
pub(crate) mod starter;
pub(crate) mod successor;
mod wire;

pub(crate) use wire::PROTOCOL;

/// How long the next daemon may take to be ready, rings to stop, and the next daemon to take everything.
const START_MAX: Duration = Duration::from_secs(10);
const STANDSTILL_MAX: Duration = Duration::from_secs(5);
const TAKE_MAX: Duration = Duration::from_secs(5);

/// Why disks stay with who has them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    /// There is nobody who could start a program.
    #[error("no program can be started: {0}")]
    NoStarter(io::Error),
    /// The other one has said nothing in time, or has ended.
    #[error("the {who} has ended, or does not answer: {error}")]
    Gone { who: &'static str, error: io::Error },
    /// The other one has said something else than was its turn.
    #[error("the {who} does not keep to the protocol")]
    Confused { who: &'static str },
    /// The other one speaks another protocol.
    #[error("the running daemon hands over by protocol {theirs}, this program takes over by {PROTOCOL}")]
    Version { theirs: u32 },
    /// A disk that cannot be handed over.
    #[error("{disk}: {error}")]
    Disk { disk: String, error: sluice_backend::handover::HandoverError },
    /// A disk that would be served no more.
    #[error("{disk} is served, and not described any more: end the daemon to serve it no more")]
    Missing { disk: String },
    /// What the next daemon has said.
    #[error("the next daemon refuses: {0}")]
    Refused(String),
}
