//! Seccomp: the system calls that serving takes, and what happens on others.
//!
//! The table is by purpose. Whatever it does not have ends the process with SIGSYS, and the kernel says which call that was
//! (in its log, as an audit event of type 1326). One kind is answered instead, with EACCES: what opens files. Libraries look
//! for files where they can do without, a panic looks for the program's symbols, and a message that is readable is worth
//! more than a process that ends a little sooner.
//!
//! One filter for all threads: they share their memory, so that code in one of them can make another one do what it may
//! not do itself.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

/// A system call that is allowed.
enum Call {
    Always(libc::c_long),
    /// When the argument of this index, of 32 bits, is one of these.
    If(libc::c_long, u8, Vec<u64>),
    /// When the argument of this index has none of these bits.
    Without(libc::c_long, u8, u64),
}

use Call::{Always, If, Without};

/// Of io_uring_register(2): to signal other event fds.
const REGISTER: [u64; 2] = [4, 5];
/// What becomes of fds: duplicates, flags, what a memfd is sealed against, and the locks of disks.
const FCNTL: [libc::c_int; 7] = [
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GET_SEALS,
    libc::F_OFD_SETLK,
];
/// Of ioctl(2): sockets that do not wait (`FIONBIO`), how much has come (`FIONREAD`), and erasing a range of a block device
/// (`BLKSECDISCARD`).
const IOCTL: [u64; 3] = [0x5421, 0x541b, 0x127d];

/// Of prctl(2): what the kernel has told the program about itself at its start (`PR_GET_AUXV`), the size of pages for one.
/// rustix asks for it when it needs it.
const PRCTL: [u64; 1] = [0x4155_5856];

/// Disks, and the rings of the threads.
fn io() -> Vec<Call> {
    vec![
        Always(libc::SYS_io_uring_enter),
        If(libc::SYS_io_uring_register, 1, REGISTER.to_vec()),
        Always(libc::SYS_preadv),
        Always(libc::SYS_preadv2),
        Always(libc::SYS_pwritev),
        Always(libc::SYS_pwritev2),
        Always(libc::SYS_fsync),
        Always(libc::SYS_fdatasync),
        Always(libc::SYS_fallocate),
        If(libc::SYS_ioctl, 1, IOCTL.to_vec()),
    ]
}

/// Front-ends, event fds and the log.
fn fds() -> Vec<Call> {
    vec![
        Always(libc::SYS_accept4),
        // Once more, on a socket that was handed over: who connects is told who serves.
        Always(libc::SYS_listen),
        // Between a connection and the crate that reads its messages.
        If(libc::SYS_socketpair, 0, vec![number(libc::AF_UNIX)]),
        Always(libc::SYS_recvmsg),
        Always(libc::SYS_recvfrom),
        Always(libc::SYS_sendmsg),
        Always(libc::SYS_sendto),
        Always(libc::SYS_shutdown),
        Always(libc::SYS_getsockopt),
        If(libc::SYS_setsockopt, 1, vec![number(libc::SOL_SOCKET)]),
        Always(libc::SYS_getsockname),
        Always(libc::SYS_getpeername),
        Always(libc::SYS_read),
        Always(libc::SYS_write),
        Always(libc::SYS_readv),
        Always(libc::SYS_writev),
        Always(libc::SYS_close),
        If(libc::SYS_fcntl, 1, FCNTL.map(number).to_vec()),
        Always(libc::SYS_fstat),
        Always(libc::SYS_newfstatat),
        Always(libc::SYS_statx),
        Always(libc::SYS_fstatfs),
        Always(libc::SYS_lseek),
        Always(libc::SYS_eventfd2),
        Always(libc::SYS_ppoll),
        Always(libc::SYS_epoll_ctl),
        Always(libc::SYS_epoll_pwait),
        Always(libc::SYS_epoll_pwait2),
        #[cfg(target_arch = "x86_64")]
        Always(libc::SYS_poll),
        #[cfg(target_arch = "x86_64")]
        Always(libc::SYS_epoll_wait),
    ]
}

/// Memory of guests, shared with front-ends and our own, none of it to be executed; whether the kernel can hold on to it is tried with a pipe.
fn memory() -> Vec<Call> {
    let exec = number(libc::PROT_EXEC);
    vec![
        Without(libc::SYS_mmap, 2, exec),
        Without(libc::SYS_mprotect, 2, exec),
        Always(libc::SYS_munmap),
        Always(libc::SYS_mremap),
        Always(libc::SYS_madvise),
        Always(libc::SYS_brk),
        Always(libc::SYS_memfd_create),
        Always(libc::SYS_ftruncate),
        If(libc::SYS_prctl, 0, PRCTL.to_vec()),
        Always(libc::SYS_pipe2),
        Always(libc::SYS_vmsplice),
    ]
}

/// Waiting, the time, signals to ourselves, and the end.
fn threads() -> Vec<Call> {
    vec![
        Always(libc::SYS_futex),
        Always(libc::SYS_sched_yield),
        Always(libc::SYS_sched_getaffinity),
        Always(libc::SYS_clock_gettime),
        Always(libc::SYS_clock_nanosleep),
        Always(libc::SYS_nanosleep),
        Always(libc::SYS_gettimeofday),
        Always(libc::SYS_getrandom),
        Always(libc::SYS_getpid),
        Always(libc::SYS_gettid),
        If(libc::SYS_tgkill, 0, vec![std::process::id().into()]),
        Always(libc::SYS_rt_sigaction),
        Always(libc::SYS_rt_sigprocmask),
        Always(libc::SYS_rt_sigreturn),
        Always(libc::SYS_sigaltstack),
        Always(libc::SYS_restart_syscall),
        Always(libc::SYS_exit),
        Always(libc::SYS_exit_group),
    ]
}

/// Sockets are removed at the end; landlock says where that can be done.
fn sockets_files() -> Vec<Call> {
    vec![
        Always(libc::SYS_unlinkat),
        #[cfg(target_arch = "x86_64")]
        Always(libc::SYS_unlink),
    ]
}

/// Answered with EACCES.
fn opening() -> Vec<libc::c_long> {
    vec![
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_readlinkat,
        libc::SYS_getcwd,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
    ]
}

fn number(value: libc::c_int) -> u64 {
    u64::from(value.unsigned_abs())
}

/// Filters the system calls of all threads, those that they make too.
pub(super) fn filter_all_threads() -> Result<()> {
    let [answering, allowing] = [answering(), allowing()];
    // Of several filters the strictest answer counts. The second one does not let a third one come.
    for filter in [answering?, allowing?] {
        apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

fn answering() -> Result<BpfProgram> {
    let rules = opening().into_iter().map(|call| (call, Vec::new())).collect();
    let errno = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    program(rules, SeccompAction::Allow, errno)
}

fn allowing() -> Result<BpfProgram> {
    let calls = [io(), fds(), memory(), threads(), sockets_files()].into_iter().flatten();
    let mut rules = BTreeMap::new();
    for call in calls {
        let (number, conditions) = rules_of(call)?;
        rules.insert(number, conditions);
    }
    rules.extend(opening().into_iter().map(|call| (call, Vec::new())));
    program(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// A call with its rules, of which one must hold; without any it is always allowed.
fn rules_of(call: Call) -> Result<(i64, Vec<SeccompRule>)> {
    let rule = |index, op, value| {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)?;
        SeccompRule::new(vec![condition]).context("a rule")
    };
    Ok(match call {
        Always(number) => (number, Vec::new()),
        If(number, index, values) => {
            let rules = values.into_iter().map(|value| rule(index, SeccompCmpOp::Eq, value));
            (number, rules.collect::<Result<_>>()?)
        }
        Without(number, index, bits) => (number, vec![rule(index, SeccompCmpOp::MaskedEq(bits), 0)?]),
    })
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().context("this architecture")?;
    SeccompFilter::new(rules, others, these, arch)?.try_into().context("a filter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_are_what_the_kernel_takes() {
        // linux/filter.h: BPF_MAXINSNS
        for filter in [allowing().unwrap(), answering().unwrap()] {
            assert!((10..4096).contains(&filter.len()), "{}", filter.len());
        }
    }

    #[test]
    fn no_call_is_in_the_table_twice() {
        let number = |call| match call {
            Always(number) | If(number, ..) | Without(number, ..) => number,
        };
        let calls = [io(), fds(), memory(), threads(), sockets_files()].into_iter().flatten().map(number);
        let mut all: Vec<_> = calls.chain(opening()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "the later one would be the only one");
    }
}
