//! A virtual machine as a process: started, waited for, ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::command_line::CommandLine;
use crate::signals::{StopSignals, Wake};

/// How long a VMM may take to end after SIGTERM.
const END_TIME_MAX: Duration = Duration::from_secs(5);

/// How a virtual machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself.
    Exited(ExitStatus),
    /// By a signal that we got.
    Stopped,
}

/// A running VMM, ended when this is dropped. It owns the terminal meanwhile, and may have it in raw mode.
struct Vm {
    child: Child,
    /// Readable once the process has ended.
    ended: OwnedFd,
    terminal: Option<Termios>,
}

/// Starts a virtual machine on this terminal and waits until it ends or a signal asks for the end.
pub(crate) fn run(command_line: &CommandLine, signals: &StopSignals) -> Result<Ending> {
    let mut vm = Vm::start(command_line)?;
    match signals.wait(&[vm.ended.as_fd()]).context("cannot wait for the VM")? {
        // Upgrades are not asked for here.
        Wake::Stop | Wake::Upgrade => Ok(Ending::Stopped),
        Wake::Ready(_) => Ok(Ending::Exited(vm.child.wait().context("cannot wait for the VM")?)),
    }
}

impl Vm {
    fn start(command_line: &CommandLine) -> Result<Self> {
        let terminal = tcgetattr(io::stdin()).ok();
        let child = Command::new(command_line.program())
            .args(command_line.arguments())
            .spawn()
            .with_context(|| format!("cannot start {}", command_line.program().display()))?;
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let mut child = child;
        match ended {
            Ok(ended) => Ok(Self { child, ended, terminal }),
            Err(error) => {
                child.kill().context("cannot end the VM")?;
                Err(error).context("cannot watch the VM")
            }
        }
    }

    /// Asks for the end, and after a while does not ask any more.
    fn end(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        pidfd_send_signal(&self.ended, Signal::TERM)?;
        let timeout = Timespec::try_from(END_TIME_MAX).map_err(io::Error::other)?;
        let mut ended = [PollFd::new(&self.ended, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut ended, Some(&timeout)))? == 0 {
            self.child.kill()?;
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("cannot end the VM: {error}");
        }
        if let Some(terminal) = &self.terminal
            && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, terminal)
        {
            log::error!("cannot restore the terminal: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> CommandLine {
        let mut line = CommandLine::new("sh");
        line.option("-c", script);
        line
    }

    #[test]
    fn a_vm_that_ends_by_itself_has_its_status() {
        let signals = StopSignals::install().unwrap();
        assert_eq!(run(&shell("exit 7"), &signals).unwrap(), Ending::Exited(ExitStatus::from_raw(7 << 8)));
    }

    #[test]
    fn a_vm_that_does_not_exist_is_an_error_that_names_it() {
        let signals = StopSignals::install().unwrap();
        let error = run(&CommandLine::new("/no/vmm"), &signals).unwrap_err().to_string();
        assert_eq!(error, "cannot start /no/vmm");
    }

    #[test]
    fn a_vm_is_ended_when_it_is_dropped() {
        let vm = Vm::start(&shell("exec sleep 60")).unwrap();
        let start = Instant::now();
        let pid = vm.child.id();
        drop(vm);
        assert!(start.elapsed() < END_TIME_MAX);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
