//! Where the figures come from: the machine, the kernel, the file systems, the versions.

use std::ffi::CStr;
use std::fs;
use std::num::NonZero;
use std::path::Path;

use rustix::system::uname;

use super::contender::Contender;

/// What a reader of figures wants to know about their origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) processor: String,
    pub(super) cpus: usize,
    pub(super) kernel: String,
    /// The file systems of the two directories.
    pub(super) file_systems: [String; 2],
    /// Processes that were running or waiting to run, on average over the last minute.
    pub(super) load: String,
    /// Contenders with their versions.
    pub(super) versions: Vec<(String, String)>,
}

impl Host {
    pub(super) fn look(directories: [&Path; 2], contenders: &[Contender]) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let text = |words: &CStr| words.to_string_lossy().into_owned();
        let version = |contender: &Contender| Some((contender.name().to_owned(), contender.version()?));
        Self {
            processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpus: std::thread::available_parallelism().map_or(1, NonZero::get),
            kernel: text(uname().release()),
            file_systems: directories.map(|path| {
                let path = path.canonicalize().unwrap_or_else(|_| path.into());
                file_system(&mounts, &path)
            }),
            load: load(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
            versions: contenders.iter().filter_map(version).collect(),
        }
    }

    /// A few lines for people.
    pub(super) fn words(&self) -> String {
        let [disk, tmpfs] = &self.file_systems;
        let mut words = format!(
            "{} CPUs ({}), Linux {}, files on {disk} and {tmpfs}, load {} at the start\n",
            self.cpus, self.processor, self.kernel, self.load
        );
        for (name, version) in &self.versions {
            words.push_str(&format!("{name}: {version}\n"));
        }
        words
    }

    /// Why the figures may be worth less than they look.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.load.parse::<f64>().is_ok_and(|load| load > 0.5) {
            warnings.push(format!("the load is {}: other programs take part in what is measured", self.load));
        }
        if cfg!(debug_assertions) {
            warnings.push("this is a debug build: sluice and the client are slower than need be".into());
        }
        if self.file_systems[0] == "tmpfs" {
            warnings.push("--dir is on tmpfs: \"cached\" and \"disk\" are not what they say".into());
        }
        if self.cpus < 2 {
            warnings.push("there is one CPU: client and backend take turns".into());
        }
        warnings
    }
}

fn processor(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, name)| name.trim()).into()
}

fn load(loadavg: &str) -> String {
    loadavg.split_whitespace().next().unwrap_or("unknown").into()
}

/// The type of the file system that a path is on: that of the longest mount point above it, the last of the same.
fn file_system(mounts: &str, path: &Path) -> String {
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        path.starts_with(point).then_some((point.len(), kind))
    });
    above.max_by_key(|(len, _)| *len).map_or("unknown", |(_, kind)| kind).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_is_that_of_a_path() {
        let mounts = "/dev/a / ext4 rw 0 0\nt /dev/shm tmpfs rw 0 0\n/dev/b /dev xfs rw 0 0\n";
        for (path, kind) in
            [("/var/tmp", "ext4"), ("/dev/shm/x", "tmpfs"), ("/dev/null", "xfs"), ("/device", "ext4")]
        {
            assert_eq!(file_system(mounts, Path::new(path)), kind, "{path}");
        }
        assert_eq!(file_system("", Path::new("/")), "unknown");
    }

    #[test]
    fn a_busy_machine_is_warned_about() {
        let mut host = Host::look([Path::new("/"), Path::new("/")], &[Contender::Sluice, Contender::Bare]);
        assert_eq!(host.versions.len(), 1);
        assert!(!host.kernel.is_empty());
        host.load = load("3.10 2.0 1.0 1/100 4");
        assert!(host.warnings().iter().any(|warning| warning.contains("3.10")), "{:?}", host.warnings());
        assert!(host.words().contains("load 3.10"));
    }

    #[test]
    fn a_processor_has_a_name() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: Fast One\n"), "Fast One");
        assert_eq!(processor(""), "unknown");
    }
}
