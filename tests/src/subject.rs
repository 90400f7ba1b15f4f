//! What is tested: a device behind a socket, whichever way it came to be there.
//!
//! Every suite runs on every [`Subject`]. What one of them cannot do is a line in [`Subject::lacks`] with the reason,
//! here and nowhere else; a suite names the [`Ability`] that it needs and is skipped where it is lacking.

mod in_process;
pub(crate) mod process;

pub(crate) use self::process::QEMU;
pub use self::process::{arguments, sluice_path};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::disk::Disk;

/// How the sluice binary moves data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring.
    Uring,
    /// pread and pwrite.
    Sync,
    /// No file: memory of the process. The disk starts empty.
    Ram,
}

/// A device under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The product, as the process that people run.
    Sluice {
        /// Its `--engine`.
        engine: Engine,
        /// Its `--cache`.
        cache: &'static str,
    },
    /// The product's device, in this process, inside the stock daemon of the crate vhost-user-backend.
    Adapter,
    /// The reference device, in this process.
    Reference,
    /// QEMU's storage daemon, where it is installed: a back-end that nobody here wrote.
    Qemu,
}

/// Something that not every subject can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Refuses messages about rings and fields that do not exist.
    ChecksMessages,
    /// Makes no call that the driver does not want.
    CallSuppression,
    /// Honours VIRTQ_AVAIL_F_NO_INTERRUPT.
    NoInterruptFlag,
    /// Answers a bad message with an error and goes on, instead of hanging up.
    SurvivesBadMessage,
    /// Notices a ring that lies (loops, wild heads, bad tables), stops it and says so on its err event fd.
    BreaksRing,
    /// Refuses ring sizes and addresses that the specification forbids.
    ChecksRing,
    /// Answers GET_CONFIG at offset 0x100, as if at 0.
    ConfigAtMmioOffset,
    /// Says how many bytes it wrote to the guest, in every used element.
    ExactUsedLength,
    /// Answers malformed requests by the project's rules, not by others that the specification allows too.
    StrictRequests,
    /// Serves a block device as it serves a file.
    BlockDevices,
    /// Serves a ring larger than its own option says.
    LargerRings,
    /// Turns a second front-end away at once.
    RefusesSecond,
    /// Has memory slots: ADD_MEM_REG, REM_MEM_REG.
    MemorySlots,
    /// Serves another front-end on a connection that has had one.
    BeginsAgain,
    /// Has RESET_DEVICE.
    ResetDevice,
    /// Completes what is in flight before it answers GET_VRING_BASE.
    StopDrains,
    /// Looks at no ring any more when it has answered SET_VRING_ENABLE 0.
    DisableStops,
    /// Leaves the status flags of the front-end's event fds alone.
    LeavesFdFlags,
    /// Refuses features that it did not offer.
    RefusesFeatures,
    /// Serves requests of several segments of DISCARD and WRITE_ZEROES.
    ManyExtents,
    /// Offers just the features of the product, with all of its limits.
    ProductFeatures,
    /// Has a serial number that the test chooses.
    Serial,
    /// Serves drivers that know nothing of virtio 1 too.
    Transitional,
    /// Looks at the offset of GET_CONFIG.
    ConfigOffset,
    /// Takes SET_CONFIG with the flag that the vhost crate's front-end sets.
    ConfigFlags,
    /// Has the option `--cache`.
    CacheOption,
    /// Lets the guest switch the write cache off.
    WriteCacheSwitch,
    /// Copes with a front-end that gives no call fd.
    NoCallFd,
    /// Frees blocks of the file when they are discarded or zeroed with unmap.
    Unmaps,
    /// Takes a chain that starts with direct descriptors and ends with an indirect table.
    IndirectTail,
    /// Takes indirect tables that cross two regions, and buffers that do and are in an indirect table.
    IndirectAcrossRegions,
    /// Goes on after a descriptor of length 0.
    EmptyDescriptors,
    /// Refuses transfers that are not whole blocks.
    WholeBlocks,
    /// Knows nothing of the barrier bit, which was in the type field before virtio 1.
    NoBarrierBit,
    /// Has the options that say what discards and zeroes do.
    DiscardOptions,
    /// Fails reads past the end of a file that became shorter, and refuses sizes that it could not serve to the end.
    OddSizes,
    /// Serves several disks in one process.
    SeveralDisks,
    /// Keeps what is in flight in memory of the front-end: INFLIGHT_SHMFD.
    Inflight,
    /// Lives on when memory of the guest is taken away, and closes the connection.
    SurvivesLostMemory,
    /// Marks what it writes in a log: LOG_SHMFD.
    DirtyLog,
}

impl Subject {
    /// Whether the subject cannot do something, and why.
    pub fn lacks(self, ability: Ability) -> Option<&'static str> {
        match self {
            Subject::Sluice { .. } => None,
            Subject::Adapter => adapter_lacks(ability),
            Subject::Reference => reference_lacks(ability),
            Subject::Qemu => qemu_lacks(ability),
        }
    }

    /// Whether it serves what was on the disk before. Memory is empty at first.
    pub fn keeps_content(self) -> bool {
        !matches!(self, Subject::Sluice { engine: Engine::Ram, .. })
    }

    /// Starts serving a disk.
    ///
    /// # Panics
    /// If it refuses the disk.
    pub fn serve(self, disk: &Disk) -> Served {
        self.try_serve(disk).unwrap_or_else(|fault| panic!("{self}: {fault}"))
    }

    /// Starts serving a disk, or says why not.
    ///
    /// # Errors
    /// What the subject says of a disk that it refuses.
    pub fn try_serve(self, disk: &Disk) -> Result<Served, String> {
        let dir = Arc::new(tempfile::tempdir().expect("a directory for a socket can be made"));
        let socket = dir.path().join("socket");
        let backend: Arc<Mutex<dyn Backend + Send>> = match self {
            Subject::Sluice { engine, cache } => {
                Arc::new(Mutex::new(process::try_sluice(engine, cache, disk, &socket)?))
            }
            Subject::Adapter => Arc::new(Mutex::new(in_process::Daemon::adapter(disk, &socket)?)),
            Subject::Reference => Arc::new(Mutex::new(in_process::Daemon::reference(disk, &socket))),
            Subject::Qemu => Arc::new(Mutex::new(process::qemu(disk, &socket))),
        };
        Ok(Served { backend, socket, _dir: dir })
    }

    /// Starts serving two disks in one process, which ends with the last of what is returned.
    ///
    /// # Panics
    /// If the subject lacks [`Ability::SeveralDisks`].
    pub fn serve_two(self, disks: [&Disk; 2]) -> [Served; 2] {
        self.serve_two_with(disks, None)
    }

    /// The same on one thread: what holds it up holds up both.
    ///
    /// # Panics
    /// If the subject lacks [`Ability::SeveralDisks`].
    pub fn serve_two_on_one_thread(self, disks: [&Disk; 2]) -> [Served; 2] {
        self.serve_two_with(disks, Some(1))
    }

    fn serve_two_with(self, disks: [&Disk; 2], workers: Option<usize>) -> [Served; 2] {
        let Subject::Sluice { engine, cache } = self else { panic!("{self} serves one disk") };
        let dir = Arc::new(tempfile::tempdir().expect("a directory for sockets can be made"));
        let sockets = ["one", "two"].map(|name| dir.path().join(name));
        let pairs = [(disks[0], sockets[0].as_path()), (disks[1], sockets[1].as_path())];
        let backend: Arc<Mutex<dyn Backend + Send>> =
            Arc::new(Mutex::new(process::sluice_serving(engine, cache, &pairs, workers)));
        sockets.map(|socket| Served { backend: Arc::clone(&backend), socket, _dir: Arc::clone(&dir) })
    }

    /// Whether the subject can be tested on this machine. Only a peer may be missing, never the product.
    pub fn is_here(self) -> bool {
        self != Subject::Qemu || Path::new(process::QEMU).exists()
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Sluice { engine, cache } => write!(f, "sluice --engine={engine} --cache={cache}"),
            Subject::Adapter => write!(f, "the adapter"),
            Subject::Reference => write!(f, "the reference device"),
            Subject::Qemu => write!(f, "qemu-storage-daemon"),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Uring => "uring",
            Engine::Sync => "sync",
            Engine::Ram => "ram",
        })
    }
}

/// What the product's device cannot do inside the daemon of the crate vhost-user-backend 0.24.
fn adapter_lacks(ability: Ability) -> Option<&'static str> {
    match ability {
        Ability::SurvivesBadMessage => Some("vhost-user-backend ends the connection after any error"),
        Ability::ChecksRing => Some("vhost-user-backend's ring methods cannot say no"),
        Ability::LargerRings => Some("vhost-user-backend refuses it"),
        Ability::RefusesSecond => Some("vhost-user-backend accepts when it has served the one before"),
        Ability::SeveralDisks => Some("a daemon of vhost-user-backend serves one device"),
        Ability::BeginsAgain => Some("vhost-user-backend has one owner in a connection"),
        Ability::Inflight => Some("vhost-user-backend 0.24 refuses it"),
        Ability::SurvivesLostMemory => Some("vhost-user-backend looks at rings that are gone, too"),
        Ability::DirtyLog => {
            Some("vhost-user-backend marks what goes through vm-memory, and the kernel's writes do not")
        }
        _ => None,
    }
}

/// The limits of the crates vhost-user-backend 0.24 and virtio-queue 0.18 that the reference device is built on.
fn reference_lacks(ability: Ability) -> Option<&'static str> {
    match ability {
        Ability::NoInterruptFlag => Some("virtio-queue looks at used_event only"),
        Ability::SurvivesBadMessage => Some("vhost-user-backend ends the connection after any error"),
        Ability::BreaksRing => {
            Some("virtio-queue shows a broken chain as a shorter one; the err fd cannot be written")
        }
        Ability::ChecksRing => Some("virtio-queue ignores a bad size and says nothing"),
        Ability::LargerRings => Some("vhost-user-backend refuses it"),
        Ability::RefusesSecond => Some("vhost-user-backend accepts when it has served the one before"),
        Ability::BlockDevices => Some("the oracle asks a disk for nothing but its size"),
        Ability::ConfigAtMmioOffset => Some("not worth it for an oracle"),
        Ability::CacheOption => Some("it always starts in write-back mode"),
        Ability::DiscardOptions => Some("it has no options"),
        Ability::OddSizes => Some("it reads what is not there as zeroes"),
        Ability::SeveralDisks => Some("one is enough for an oracle"),
        Ability::BeginsAgain => Some("vhost-user-backend has one owner in a connection"),
        Ability::Inflight => Some("vhost-user-backend 0.24 refuses it"),
        Ability::SurvivesLostMemory => Some("it dies of SIGBUS"),
        Ability::DirtyLog => Some("not worth it for an oracle"),
        _ => None,
    }
}

/// Where QEMU's vhost-user-blk export decides otherwise. Our answers are those of the specification's device
/// requirements and of what Linux expects; QEMU's are tolerated by it.
fn qemu_lacks(ability: Ability) -> Option<&'static str> {
    match ability {
        Ability::StrictRequests => Some("it accepts some malformed requests, and stops the ring at others"),
        Ability::BreaksRing => Some("it stops serving a bad ring without a word to the front-end"),
        Ability::SurvivesBadMessage => Some("its library gives up on the connection"),
        Ability::ChecksMessages | Ability::ChecksRing => {
            Some("its library crashes on some, and answers yes to the rest")
        }
        Ability::ManyExtents => Some("it takes one range per request, and says so in max_discard_seg"),
        Ability::Serial => Some("it has no option for a serial number"),
        Ability::ExactUsedLength => Some("it counts the whole room of a request that failed"),
        Ability::StopDrains => Some("it stops a ring with requests in flight, and answers them never"),
        Ability::Transitional => Some("its library hangs up on a driver without VERSION_1"),
        Ability::RefusesFeatures => Some("it accepts whatever the driver says"),
        Ability::ProductFeatures => Some("it has its own features and limits, such as 126 segments"),
        Ability::ConfigOffset | Ability::ConfigAtMmioOffset => Some("it answers as if the offset were 0"),
        Ability::ConfigFlags => Some("it takes SET_CONFIG with flags 0 only"),
        Ability::CacheOption => Some("it calls that by other names"),
        Ability::DisableStops => Some("it goes on for a while after SET_VRING_ENABLE 0"),
        Ability::CallSuppression | Ability::NoInterruptFlag => {
            Some("it has NOTIFY_ON_EMPTY, which virtio 1 has not")
        }
        Ability::BlockDevices => Some("it has another driver for them"),
        Ability::RefusesSecond => Some("its library leaves the second waiting"),
        Ability::ResetDevice => Some("it does not offer it"),
        Ability::LeavesFdFlags => Some("it makes the front-end's event fds non-blocking"),
        Ability::NoCallFd => Some("it writes to the fd that it does not have, and stops the ring"),
        Ability::IndirectAcrossRegions => {
            Some("its library does not follow an indirect chain from one region into the next")
        }
        Ability::WholeBlocks => Some("it looks at where a transfer starts, not at its length"),
        Ability::NoBarrierBit => Some("it masks the bit, and takes the type for a read"),
        Ability::IndirectTail => Some("it takes an indirect table only as the first descriptor"),
        Ability::EmptyDescriptors => Some("it stops the ring at a descriptor of length 0"),
        Ability::DiscardOptions => Some("it calls them by other names"),
        Ability::OddSizes => Some("it reads what is not there as zeroes"),
        Ability::BeginsAgain => Some("its library hangs up when it is given memory that it has"),
        Ability::SeveralDisks => Some("it does, but isolation is the product's promise"),
        Ability::Inflight => Some("it checks nothing of what it is given back"),
        Ability::SurvivesLostMemory => Some("it dies of SIGBUS"),
        Ability::DirtyLog => Some("its library marks what is not seen at the time, and checks nothing"),
        _ => None,
    }
}

/// A running device.
trait Backend {
    /// Why the device is not running, if it is not.
    fn fault(&mut self) -> Option<String>;

    /// Asks a process to end, and does not wait for that.
    fn ask_to_end(&mut self);

    /// Ends a process at once.
    fn kill(&mut self);

    /// The process that the device is, if it is one of its own.
    fn pid(&self) -> Option<u32> {
        None
    }
}

/// A device that serves a disk on a socket, until dropped.
pub struct Served {
    /// One for all disks of a process.
    backend: Arc<Mutex<dyn Backend + Send>>,
    socket: PathBuf,
    _dir: Arc<tempfile::TempDir>,
}

impl Served {
    /// Asks its process to end, as a service manager does. That it does is checked at the end.
    pub fn ask_to_end(&self) {
        self.backend.lock().expect("no test panics with it").ask_to_end();
    }

    /// The process that the device is, if it is one of its own.
    pub fn pid(&self) -> Option<u32> {
        self.backend.lock().expect("no test panics with it").pid()
    }

    /// Ends its process at once, as an unlucky one ends.
    pub fn kill(&self) {
        self.backend.lock().expect("no test panics with it").kill();
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Why it is not running any more, if it is not.
    pub fn fault(&mut self) -> Option<String> {
        self.backend.lock().expect("no test panics with it").fault()
    }
}

/// Makes a test out of each function, for each subject: `suite! { function: [abilities it needs], ... }`.
///
/// The test is called `function::subject`, so that a failure names what failed. Each function takes the subject.
#[macro_export]
macro_rules! suite {
    ($($test:ident: [$($need:ident),*],)+) => {$(
        mod $test {
            use $crate::subject::{Ability, Engine, Subject};

            const NEEDS: &[Ability] = &[$(Ability::$need),*];

            fn on(subject: Subject) {
                $crate::subject::run_if_able(subject, NEEDS, super::$test);
            }

            #[test]
            fn uring_none() {
                on(Subject::Sluice { engine: Engine::Uring, cache: "none" });
            }

            #[test]
            fn uring_writeback() {
                on(Subject::Sluice { engine: Engine::Uring, cache: "writeback" });
            }

            #[test]
            fn sync_none() {
                on(Subject::Sluice { engine: Engine::Sync, cache: "none" });
            }

            #[test]
            fn sync_writeback() {
                on(Subject::Sluice { engine: Engine::Sync, cache: "writeback" });
            }

            #[test]
            fn adapter() {
                on(Subject::Adapter);
            }

            #[test]
            fn reference() {
                on(Subject::Reference);
            }

            #[test]
            fn qemu() {
                on(Subject::Qemu);
            }
        }
    )+};
}

/// Runs a test on a subject, or says why not.
pub fn run_if_able(subject: Subject, needs: &[Ability], test: impl FnOnce(Subject)) {
    if !subject.is_here() {
        eprintln!("skipped: {subject} is not installed");
        return;
    }
    for &need in needs {
        if let Some(why) = subject.lacks(need) {
            eprintln!("skipped: {subject} lacks {need:?}: {why}");
            return;
        }
    }
    eprintln!("on {subject}");
    test(subject);
}
