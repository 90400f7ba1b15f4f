//! Options of the threads that serve the queues of all disks: how many, where, and how long they look for work.

use std::str::FromStr;
use std::time::Duration;

use sluice_backend::workers::WorkersOptions;

/// What is said of the worker threads, on the command line or in the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct WorkerArgs {
    /// Threads that serve the queues of all disks [default: one per CPU, and no more than there are queues]
    #[arg(long, value_name = "N", value_parser = parse_workers)]
    pub(crate) workers: Option<usize>,

    /// The CPUs that the threads stay on, one each, such as 2-5,8 [default: where the kernel puts them]
    #[arg(long, value_name = "LIST")]
    pub(crate) worker_cpus: Option<CpuList>,

    /// How long a thread that has nothing to do may look for work before it sleeps, in microseconds; it does so only
    /// while work comes that soon, and with 0 never [default: 50]
    #[arg(long, value_name = "US", value_parser = parse_poll_max)]
    pub(crate) poll_max_us: Option<u32>,
}

impl WorkerArgs {
    /// With what another place says wherever this one says nothing.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            workers: self.workers.or(other.workers),
            worker_cpus: self.worker_cpus.or(other.worker_cpus),
            poll_max_us: self.poll_max_us.or(other.poll_max_us),
        }
    }

    /// How the threads are to be, for so many queues on so many CPUs.
    pub(crate) fn options(&self, queues: usize, cpus: usize) -> WorkersOptions {
        let listed = self.worker_cpus.clone().unwrap_or_default().0;
        let default = if listed.is_empty() { cpus } else { listed.len() };
        WorkersOptions {
            count: self.workers.unwrap_or(default.min(queues)),
            cpus: listed,
            poll_max: self
                .poll_max_us
                .map_or(WorkersOptions::POLL_MAX, |us| Duration::from_micros(us.into())),
            signals: None,
        }
    }
}

/// CPUs by their numbers, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CpuList(Vec<usize>);

impl CpuList {
    /// As many as the kernel's masks have room for here.
    const CPUS_MAX: usize = 1024;
}

impl FromStr for CpuList {
    type Err = String;

    /// Numbers and ranges, as the kernel's cpusets have them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < Self::CPUS_MAX);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err("must be numbers of CPUs and ranges of them, such as 2-5,8".into()),
            }
        }
        let mut sorted = cpus.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(format!("names CPU {} twice", twice[0])),
            None => Ok(Self(cpus)),
        }
    }
}

/// The most threads that one daemon makes sense of.
const WORKERS_MAX: usize = 1024;

pub(crate) fn parse_workers(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=WORKERS_MAX).contains(number));
    number.ok_or_else(|| format!("must be 1 to {WORKERS_MAX}"))
}

/// Longer than this, to sleep costs nothing beside the wait.
const POLL_MAX_US_MAX: u32 = 10_000;

pub(crate) fn parse_poll_max(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|us| *us <= POLL_MAX_US_MAX);
    number.ok_or_else(|| format!("must be 0 to {POLL_MAX_US_MAX} microseconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Result<Vec<usize>, String> {
        text.parse().map(|list: CpuList| list.0)
    }

    #[test]
    fn a_list_of_cpus_has_numbers_and_ranges() {
        assert_eq!(cpus("3"), Ok(vec![3]));
        assert_eq!(cpus("8,2-4,0"), Ok(vec![8, 2, 3, 4, 0]));
        for wrong in ["", "a", "1,", "3-2", "1-2-3", "-1", "1024", "0-1000000000000"] {
            assert!(cpus(wrong).unwrap_err().contains("such as 2-5,8"), "{wrong}");
        }
        assert_eq!(cpus("1-3,2").unwrap_err(), "names CPU 2 twice");
    }

    #[test]
    fn there_are_as_many_threads_as_have_something_to_do() {
        let count = |workers, list: Option<&str>, queues| {
            let worker_cpus = list.map(|list| list.parse().unwrap());
            WorkerArgs { workers, worker_cpus, poll_max_us: None }.options(queues, 4).count
        };
        assert_eq!((count(None, None, 9), count(None, None, 2)), (4, 2));
        assert_eq!((count(None, Some("1-2"), 9), count(None, Some("1-2"), 1)), (2, 1));
        assert_eq!(count(Some(7), Some("1-2"), 1), 7, "whatever is said");
    }

    #[test]
    fn the_command_line_is_heard_before_the_file() {
        let line = WorkerArgs { workers: Some(1), ..WorkerArgs::default() };
        let file = WorkerArgs { workers: Some(2), poll_max_us: Some(3), worker_cpus: None };
        let both = line.or(file);
        assert_eq!((both.workers, both.poll_max_us), (Some(1), Some(3)));
        assert_eq!(both.options(1, 1).poll_max, Duration::from_micros(3));
        assert_eq!(WorkerArgs::default().options(1, 1).poll_max, WorkersOptions::POLL_MAX);
    }
}
