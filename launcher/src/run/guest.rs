//! What the virtual machine boots: a kernel that somebody names, the disk itself, or the project's Linux guest.
//!
//! The project's guest is looked for in `guests/` of the checkout in or below which we are started or were built. What
//! it and its host have agreed on (command line, results, exit code) is in guests/linux/README.md.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The last line of a guest's results: its exit code.
const EXIT_LINE: &str = "exit=";
/// What a kernel gets that somebody names without a command line: the console on the serial port, and an end to panics.
const CMDLINE_DEFAULT: &str = "console=ttyS0 panic=-1";

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Boot {
    /// A kernel, put into memory by the VMM.
    Kernel { kernel: PathBuf, initramfs: Option<PathBuf>, cmdline: String },
    /// Firmware, from the disk.
    Disk,
}

/// The project's Linux guest, as its build script left it.
#[derive(Debug)]
pub(crate) struct LinuxGuest {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
}

impl LinuxGuest {
    /// Finds the guest in a checkout around the working directory or around the running program.
    pub(crate) fn find() -> Result<Self> {
        let here = std::env::current_dir().context("cannot find the working directory")?;
        let program = std::env::current_exe().context("cannot find the running program")?;
        for directory in here.ancestors().chain(program.ancestors()) {
            if directory.join("guests/linux/cmdline").is_file() {
                return Self::of_checkout(directory);
            }
        }
        bail!(
            "no guest to boot: name one with --kernel, or boot from the disk with --boot=disk; the project's own \
             guest is found only in a checkout of the project"
        )
    }

    fn of_checkout(checkout: &Path) -> Result<Self> {
        let built = checkout.join("guests/.cache/linux");
        let (kernel, initramfs) = (built.join("vmlinux"), built.join("initramfs.cpio.zst"));
        if !kernel.is_file() || !initramfs.is_file() {
            bail!(
                "no guest to boot: the project's own guest is not built; run {} (and before it, on a new machine, \
                 `scripts/setup.sh guest`), or name a kernel with --kernel, or boot from the disk with --boot=disk",
                checkout.join("guests/linux/build.sh").display()
            );
        }
        let cmdline = checkout.join("guests/linux/cmdline");
        let cmdline = std::fs::read_to_string(&cmdline)
            .with_context(|| format!("cannot read {}", cmdline.display()))?
            .trim()
            .to_owned();
        Ok(Self { kernel, initramfs, cmdline })
    }

    /// Boots it to do a job; `words` are more of its command line.
    pub(crate) fn boot(self, job: &str, job_arguments: &[String], words: &[&str]) -> Boot {
        let mut cmdline = format!("{} sluice.job={job}", self.cmdline);
        for argument in job_arguments {
            cmdline.push_str(&format!(" sluice.{argument}"));
        }
        for word in words.iter().filter(|word| !word.is_empty()) {
            cmdline.push_str(&format!(" {word}"));
        }
        Boot::Kernel { kernel: self.kernel, initramfs: Some(self.initramfs), cmdline }
    }
}

/// Boots a kernel that somebody names.
pub(crate) fn named_kernel(kernel: &Path, initramfs: Option<&Path>, cmdline: Option<&str>) -> Result<Boot> {
    for (option, path) in [("--kernel", Some(kernel)), ("--initramfs", initramfs)] {
        if let Some(path) = path
            && let Err(error) = std::fs::File::open(path)
        {
            bail!("{option}={}: {error}", path.display());
        }
    }
    Ok(Boot::Kernel {
        kernel: kernel.into(),
        initramfs: initramfs.map(Path::to_owned),
        cmdline: cmdline.unwrap_or(CMDLINE_DEFAULT).into(),
    })
}

/// The exit code that ends a guest's results; none when the guest died before.
pub(crate) fn exit_code(results: &str) -> Option<u8> {
    results.lines().next_back()?.strip_prefix(EXIT_LINE)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_last_line_with_an_exit_code_is_a_result() {
        assert_eq!(exit_code("sluice-guest=1\njob=smoke\nexit=0\n"), Some(0));
        assert_eq!(exit_code("exit=3"), Some(3));
        assert_eq!(exit_code("exit=0\nkernel=6.12\n"), None);
        assert_eq!(exit_code("exit=\n"), None);
        assert_eq!(exit_code(""), None);
    }

    #[test]
    fn the_guest_gets_its_job_in_words_of_the_command_line() {
        let checkout = tempfile::tempdir().unwrap();
        let at = |name: &str| checkout.path().join(name);
        std::fs::create_dir_all(at("guests/linux")).unwrap();
        std::fs::create_dir_all(at("guests/.cache/linux")).unwrap();
        std::fs::write(at("guests/linux/cmdline"), "console=ttyS0 quiet\n").unwrap();
        let error = LinuxGuest::of_checkout(checkout.path()).unwrap_err().to_string();
        assert!(error.contains("guests/linux/build.sh"), "{error}");
        for name in ["vmlinux", "initramfs.cpio.zst"] {
            std::fs::write(at("guests/.cache/linux").join(name), "").unwrap();
        }
        let guest = LinuxGuest::of_checkout(checkout.path()).unwrap();
        let boot =
            guest.boot("fio", &["fio=demo".into(), "fio_size=8m".into()], &["", "sluice.results=hvc0"]);
        let Boot::Kernel { cmdline, .. } = boot else { panic!("a kernel") };
        assert_eq!(
            cmdline,
            "console=ttyS0 quiet sluice.job=fio sluice.fio=demo sluice.fio_size=8m sluice.results=hvc0"
        );
    }

    #[test]
    fn a_kernel_that_cannot_be_read_is_an_error_that_names_the_option() {
        let error = named_kernel(Path::new("/no/kernel"), None, None).unwrap_err().to_string();
        assert_eq!(error, "--kernel=/no/kernel: No such file or directory (os error 2)");
    }
}
