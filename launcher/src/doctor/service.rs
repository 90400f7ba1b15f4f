//! A daemon in its sandbox that serves a disk, and a front-end that uses it.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::once;
use crate::sandbox::Mode;

const BYTES: u64 = 4 << 20;

/// Serves a disk for a moment, and says what was done.
pub(super) fn serve(mode: Mode) -> Result<String> {
    let place = tempfile::tempdir()?;
    let (socket, disk) = (place.path().join("socket"), place.path().join("disk"));
    once::make_disk(&disk, BYTES)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(format!("--socket-path={}", socket.display())).arg(format!("--blk-file={}", disk.display()));
    command.arg(format!("--sandbox={mode}")).arg("--cache=writeback");
    command.env("RUST_LOG", "error").env_remove("LISTEN_FDS").stdin(Stdio::null());
    let mut daemon = Daemon(command.spawn().context("cannot start this program once more")?);
    let done = once::drive(&socket, BYTES, || daemon.check())?;
    daemon.end()?;
    ensure!(!socket.exists(), "its socket is still there");
    Ok(format!("{done} reads and writes"))
}

/// A process that does not outlive this.
struct Daemon(Child);

impl Daemon {
    fn check(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("the daemon ended: {status}"),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the daemon ended: {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
