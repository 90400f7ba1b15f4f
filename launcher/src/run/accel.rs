//! Whether KVM works here: found out by trying it.
//!
//! `/dev/kvm` can be there, open, make virtual machines and still run no ordinary kernel, where the host's processor
//! offers no virtualization and a hypervisor emulates each instruction, at a millionth of the speed and without SSE.
//! So QEMU is started with KVM on a firmware of a few instructions: it enables SSE, uses it, counts to ten millions
//! and ends with an exit code. Hardware does that in milliseconds, emulation fails at the first SSE instruction or
//! never gets to the end. Nothing is remembered: the next start finds out again.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long the trial may take; with hardware it is a tenth of a second, most of it QEMU's start.
const TRIAL_TIME_MAX: Duration = Duration::from_secs(3);
const FIRMWARE_BYTES: usize = 64 * 1024;
/// What the firmware writes to the exit device, and what QEMU makes of it.
const EXIT_CODE: u8 = 0x10;
const EXIT_STATUS: i32 = (EXIT_CODE as i32) << 1 | 1;
/// What QEMU says when an instruction cannot be emulated; the machine then stands still.
const EMULATION_FAILED: &[u8] = b"KVM internal error";

/// The firmware's instructions, at offset 0 of the segment in which the processor starts (16-bit code).
#[rustfmt::skip]
const CODE: [u8; 44] = [
    0x0f, 0x20, 0xe0,                   // mov eax, cr4
    0x66, 0x0d, 0x00, 0x02, 0x00, 0x00, // or eax, CR4.OSFXSR
    0x0f, 0x22, 0xe0,                   // mov cr4, eax
    0x0f, 0x20, 0xc0,                   // mov eax, cr0
    0x66, 0x83, 0xe0, 0xfb,             // and eax, ~CR0.EM
    0x0f, 0x22, 0xc0,                   // mov cr0, eax
    0x66, 0x0f, 0xef, 0xc0,             // pxor xmm0, xmm0
    0x66, 0x0f, 0xd4, 0xc0,             // paddq xmm0, xmm0
    0x66, 0xb9, 0x80, 0x96, 0x98, 0x00, // mov ecx, 10_000_000
    0x67, 0xe2, 0xfd,                   // loop to itself
    0xb0, EXIT_CODE,                    // mov al, EXIT_CODE
    0xe6, 0xf4,                         // out 0xf4, al
    0xf4,                               // hlt
];
/// The reset vector, and there a jump to offset 0.
const RESET_VECTOR: usize = 0xfff0;
const JUMP_TO_START: [u8; 3] = [0xe9, 0x0d, 0x00];

/// How a virtual machine's processors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// On the host's processor.
    Kvm,
    /// Translated by QEMU.
    Tcg,
}

/// Why KVM is no use here.
#[derive(Debug)]
pub(crate) enum NoKvm {
    OtherProcessor,
    Missing,
    NotOpened(io::Error),
    TrialFailed,
    TrialTooSlow,
    TrialEnded(ExitStatus, String),
}

impl fmt::Display for NoKvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherProcessor => write!(f, "the guest is for x86_64, this machine is not"),
            Self::Missing => write!(f, "there is no /dev/kvm"),
            Self::NotOpened(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "/dev/kvm: {error}; `sudo usermod -aG kvm $USER` and a new login mend that")
            }
            Self::NotOpened(error) => write!(f, "/dev/kvm: {error}"),
            Self::TrialFailed => write!(f, "/dev/kvm only emulates: an SSE instruction failed on it"),
            Self::TrialTooSlow => {
                let seconds = TRIAL_TIME_MAX.as_secs();
                write!(f, "/dev/kvm only emulates: ten million instructions took over {seconds} s")
            }
            Self::TrialEnded(status, words) => {
                write!(f, "a trial on /dev/kvm ended with {status}, {}", words.trim())
            }
        }
    }
}

/// Says whether KVM can be had at all, without trying it.
pub(crate) fn find_kvm() -> Result<(), NoKvm> {
    if !cfg!(target_arch = "x86_64") {
        return Err(NoKvm::OtherProcessor);
    }
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NoKvm::Missing),
        Err(error) => Err(NoKvm::NotOpened(error)),
    }
}

/// Chooses between KVM and TCG for this QEMU; says why, where it is not KVM. The directory is for a passing file.
pub(crate) fn choose(qemu: &Path, directory: &Path) -> Result<(Accel, Option<NoKvm>)> {
    if let Err(why) = find_kvm() {
        return Ok((Accel::Tcg, Some(why)));
    }
    let trial = try_out(qemu, "kvm", directory).context("cannot find out whether KVM works")?;
    Ok(match trial {
        Ok(()) => (Accel::Kvm, None),
        Err(why) => (Accel::Tcg, Some(why)),
    })
}

/// Runs the trial firmware; the outer result is about starting QEMU at all.
fn try_out(qemu: &Path, accel: &str, directory: &Path) -> io::Result<Result<(), NoKvm>> {
    let firmware = directory.join("trial-firmware");
    std::fs::write(&firmware, firmware_image())?;
    let mut child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "pc", "-m", "16"])
        .args(["-accel", accel, "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
        .arg(&firmware)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let result = watch(&mut child);
    child.kill()?;
    child.wait()?;
    std::fs::remove_file(&firmware)?;
    result
}

/// Follows the trial's messages until it ends, fails or takes too long.
fn watch(child: &mut Child) -> io::Result<Result<(), NoKvm>> {
    let deadline = Instant::now() + TRIAL_TIME_MAX;
    let Some(mut messages) = child.stderr.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
    let mut words = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(NoKvm::TrialTooSlow));
        }
        if !is_readable(messages.as_fd(), left)? {
            continue;
        }
        let mut buffer = [0; 4096];
        let length = messages.read(&mut buffer)?;
        words.extend_from_slice(&buffer[..length]);
        if words.windows(EMULATION_FAILED.len()).any(|window| window == EMULATION_FAILED) {
            return Ok(Err(NoKvm::TrialFailed));
        }
        // The end of the messages is the end of the process.
        if length == 0 {
            let status = child.wait()?;
            return Ok(match status.code() {
                Some(EXIT_STATUS) => Ok(()),
                _ => Err(NoKvm::TrialEnded(status, String::from_utf8_lossy(&words).into_owned())),
            });
        }
    }
}

fn is_readable(fd: rustix::fd::BorrowedFd<'_>, wait: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(wait).map_err(io::Error::other)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn firmware_image() -> Vec<u8> {
    let mut image = vec![0; FIRMWARE_BYTES];
    image[..CODE.len()].copy_from_slice(&CODE);
    image[RESET_VECTOR..][..JUMP_TO_START.len()].copy_from_slice(&JUMP_TO_START);
    image
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A QEMU that does what the shell script says.
    fn stand_in(directory: &Path, script: &str) -> PathBuf {
        let path = directory.join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn trial(script: &str) -> Result<(), NoKvm> {
        let directory = tempfile::tempdir().unwrap();
        let result = try_out(&stand_in(directory.path(), script), "kvm", directory.path()).unwrap();
        assert!(!directory.path().join("trial-firmware").exists());
        result
    }

    #[test]
    fn the_firmware_runs_to_its_exit_code_on_a_processor_that_works() {
        let qemu = crate::run::find_program("qemu-system-x86_64").expect("QEMU: see scripts/setup.sh");
        let directory = tempfile::tempdir().unwrap();
        try_out(&qemu, "tcg", directory.path()).unwrap().expect("TCG runs it");
    }

    #[test]
    fn the_exit_code_is_what_counts() {
        assert!(trial("exit 33").is_ok());
        let error = trial("echo 'no such machine' >&2; exit 1").unwrap_err().to_string();
        assert_eq!(error, "a trial on /dev/kvm ended with exit status: 1, no such machine");
    }

    #[test]
    fn a_failed_instruction_ends_the_trial_at_once() {
        let start = Instant::now();
        assert!(matches!(
            trial("echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60"),
            Err(NoKvm::TrialFailed)
        ));
        assert!(start.elapsed() < TRIAL_TIME_MAX);
    }

    #[test]
    fn a_trial_that_comes_to_no_end_is_ended() {
        assert!(matches!(trial("exec sleep 60"), Err(NoKvm::TrialTooSlow)));
    }
}
