//! How a run went: the guest's exit code, out of its results or out of the VMM's status.

use std::process::ExitStatus;

use anyhow::{Result, bail};

use super::vm::Ending;

/// Who says how the guest's run went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The results, and without them the run failed.
    Results,
    /// The results if they end in an exit code, else the VMM.
    Vmm,
}

impl Verdict {
    /// The exit code of a run.
    pub(super) fn judge(self, ending: Ending, result: Option<u8>) -> Result<u8> {
        let status = match ending {
            Ending::Stopped => bail!("the VM was ended by a signal to sluice"),
            Ending::Exited(status) => status,
        };
        match (result, self) {
            (Some(code), _) => Ok(code),
            (None, Verdict::Results) => {
                bail!("the guest died: its results have no exit code (the VMM ended with {status})")
            }
            (None, Verdict::Vmm) => decode(status),
        }
    }
}

/// A guest's exit code out of QEMU's: isa-debug-exit makes (N << 1) | 1 of N, and QEMU's own errors are 1.
fn decode(status: ExitStatus) -> Result<u8> {
    match status.code().map(u8::try_from) {
        Some(Ok(0)) => Ok(0),
        Some(Ok(code)) if code % 2 == 1 && code > 1 => Ok(code >> 1),
        _ => bail!("the VMM ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn exited(code: i32) -> Ending {
        Ending::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn a_result_is_the_exit_code_whatever_the_vmm_says() {
        for verdict in [Verdict::Results, Verdict::Vmm] {
            assert_eq!(verdict.judge(exited(1), Some(0)).unwrap(), 0);
            assert_eq!(verdict.judge(exited(0), Some(4)).unwrap(), 4);
        }
    }

    #[test]
    fn a_job_without_a_result_has_failed() {
        let error = Verdict::Results.judge(exited(0), None).unwrap_err().to_string();
        assert_eq!(
            error,
            "the guest died: its results have no exit code (the VMM ended with exit status: 0)"
        );
    }

    #[test]
    fn without_results_the_exit_device_counts_and_a_status_of_one_is_an_error() {
        assert_eq!(Verdict::Vmm.judge(exited(0), None).unwrap(), 0);
        assert_eq!(Verdict::Vmm.judge(exited(33), None).unwrap(), 16);
        assert_eq!(Verdict::Vmm.judge(exited(3), None).unwrap(), 1);
        assert_eq!(Verdict::Vmm.judge(exited(255), None).unwrap(), 127);
        for ending in [exited(1), exited(2), Ending::Exited(ExitStatus::from_raw(9)), Ending::Stopped] {
            assert!(Verdict::Vmm.judge(ending, None).is_err(), "{ending:?}");
        }
    }
}
