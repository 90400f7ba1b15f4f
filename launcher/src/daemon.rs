//! The daemon: a plan that is being served.
//!
//! Starting goes in steps over all disks. A step that fails for some of them reports them all and leaves nothing behind:
//! disks are opened and places for sockets looked at, and only then is the first socket bound and the first disk served.
//! Ending takes the sockets' names away first, while they are still held, so that nobody takes them for stale and no
//! front-end finds a daemon that is about to go; then the I/O in flight is waited for.
//!
//! In between is the sandbox: what it refuses comes before it, files, sockets and io_urings; then this thread, still the only
//! one, is confined; the others are made; all are sealed together; and only then is a front-end listened to.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use sluice_backend::device::{Device, DeviceOptions};
use sluice_backend::reactor::DormantReactor;
use sluice_backend::server::{Server, Socket};
use sluice_backend::workers::{PreparedWorkers, Workers, WorkersOptions};
use sluice_blk::disk::{Disk, DiskOptions, EngineKind, serial_of};
use sluice_blk::queue::QueueMemory;
use sluice_mem::budget::Budget;

use crate::disk_args::{DiskArgs, EngineName, QUEUE_SIZE_DEFAULT};
use crate::inherited::InheritedSocket;
use crate::plan::{Endpoint, Plan, PlannedDisk, UsageError};
use crate::sandbox::{self, Identity, limits};
use crate::signals::{StopSignals, Wake};
use crate::socket::{self, SocketAccess, SocketFile};
use crate::systemd::Systemd;
use crate::upgrade::UpgradeError;
use crate::upgrade::predecessor::{self, Suspended};
use crate::upgrade::starter::Starter;
use crate::upgrade::successor::Predecessor;
use crate::worker_args::WorkerArgs;

/// All disks of a plan, being served. Dropping it stops it, as [`Daemon::stop`] does.
pub(crate) struct Daemon {
    // In this order they are dropped.
    files: Vec<SocketFile>,
    servers: Vec<Serving>,
}

struct Serving {
    server: Server,
    name: String,
    /// The same disk's name in the next daemon, wherever that starts from.
    identity: String,
    /// Whether it ends with its front-end, and otherwise not.
    is_connection: bool,
}

/// Why a daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was asked to, or nobody is left to be served.
    Stop,
    /// Another one is to go on.
    Upgrade,
}

/// Why disks cannot be served: all reasons at once, each with what it is about.
#[derive(Debug)]
pub(crate) struct StartError(pub(crate) Vec<String>);

/// A place where front-ends will connect, looked at and not yet made.
enum Place<'a> {
    ToBind(&'a Path),
    Inherited(InheritedSocket),
    /// Of a daemon that hands over: the file, if it has one.
    HandedOver(Option<&'a Path>),
}

/// The disks of a plan, opened, with nothing else touched.
pub(crate) struct OpenedDisks<'a> {
    plan: &'a Plan,
    cpus: usize,
    disks: Vec<(Device, Place<'a>)>,
    predecessor: Option<Predecessor>,
}

impl<'a> OpenedDisks<'a> {
    /// Opens all disks of a plan, or none. Those that a predecessor serves are taken over from it later.
    pub(crate) fn open(plan: &'a Plan, predecessor: Option<Predecessor>) -> Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let budget = daemon_budget(plan, cpus)?;
        if let Some(predecessor) = &predecessor {
            predecessor.check_all_are_in(&plan.disks.iter().map(identity).collect::<Vec<_>>())?;
        }
        let disks = each(&plan.disks, |planned| prepare(planned, cpus, &budget, predecessor.as_ref()))?;
        Ok(Self { plan, cpus, disks, predecessor })
    }

    /// Serves them, or none, and follows `signals`. In a sandbox if the plan has one: that must be the process's only
    /// thread.
    pub(crate) fn serve(self, signals: &mut StopSignals) -> Result<Daemon> {
        let Self { plan, cpus, disks, predecessor } = self;
        let sandbox = &plan.sandbox;
        let identity = sandbox.identity().map_err(|why| UsageError(vec![why]))?;
        let needs = Needs::of(&disks, &plan.workers, cpus);
        if sandbox.is_on() {
            limits::set_files(needs.files()).context("cannot limit the number of open files")?;
        }
        let Places { mut files, sockets } = Places::make(plan, disks, identity)?;
        let signal_rings = sandbox.is_on().then(|| needs.signals());
        let options = WorkersOptions { signals: signal_rings, ..needs.workers };
        let workers = PreparedWorkers::new(&options, DormantReactor::new)
            .context("cannot prepare threads for the queues")?;
        let directories: Vec<_> = files.iter().map(SocketFile::directory).collect();
        let confined = sandbox::confine(sandbox, identity, &directories)?;
        signals.follow().context("cannot follow signals")?;
        let workers = workers.start().context("cannot start threads for the queues")?;
        let (mut servers, sockets) = hold_back(sockets, &workers)?;
        confined.seal()?;
        if let Some(predecessor) = predecessor {
            take_over(predecessor, &mut servers)?;
            files.iter_mut().for_each(SocketFile::take_over);
        }
        for (serving, socket) in servers.iter_mut().zip(sockets) {
            if let Some(socket) = socket {
                serving.server.open(socket);
            }
        }
        Ok(Daemon { files, servers })
    }
}

/// The places where front-ends will connect, made.
struct Places<'a> {
    // Dropped in this order, if one cannot be made.
    files: Vec<SocketFile>,
    sockets: Vec<(&'a PlannedDisk, Device, Option<Socket>)>,
}

impl<'a> Places<'a> {
    fn make(plan: &'a Plan, disks: Vec<(Device, Place<'a>)>, identity: Identity) -> Result<Self> {
        let mut made = Self { files: Vec::new(), sockets: Vec::new() };
        for (planned, (device, place)) in plan.disks.iter().zip(disks) {
            let gid = planned.access.gid.or(identity.gid);
            let access = SocketAccess { uid: identity.uid, gid, ..planned.access };
            let (socket, file) = make(place, &access).with_context(|| planned.at_endpoint())?;
            made.sockets.push((planned, device, socket));
            made.files.extend(file);
        }
        Ok(made)
    }
}

/// What a daemon may have open at a time.
struct Needs {
    disks: usize,
    queues: usize,
    workers: WorkersOptions,
}

impl Needs {
    /// Open files beside those of disks and queues: the log, signals, and some to spare.
    const FILES: usize = 128;
    /// For each disk: the file, the socket, a connection, events, and the memory of a front-end, 509 regions and those of
    /// a message on its way; and as many regions again for the next daemon.
    const FILES_PER_DISK: usize = 1152;
    /// For each queue: kick, call and err, and their successors, or those for the next daemon.
    const FILES_PER_QUEUE: usize = 6;
    /// For each worker: its ring and its mailbox.
    const FILES_PER_WORKER: usize = 4;

    fn of(disks: &[(Device, Place<'_>)], workers: &WorkerArgs, cpus: usize) -> Self {
        let queues = disks.iter().map(|(device, _)| usize::from(device.num_queues())).sum();
        Self { disks: disks.len(), queues, workers: workers.options(queues, cpus) }
    }

    /// How many event fds may have to be signalled at a time: the call fd of each queue, and the err fd of a ring that a
    /// thread has just found broken.
    fn signals(&self) -> usize {
        self.queues + self.workers.count + self.disks
    }

    fn files(&self) -> usize {
        Self::FILES
            + self.disks * Self::FILES_PER_DISK
            + self.queues * Self::FILES_PER_QUEUE
            + self.workers.count * Self::FILES_PER_WORKER
            + self.signals()
    }
}

/// A thread for each disk, which waits until it may serve.
fn hold_back(
    sockets: Vec<(&PlannedDisk, Device, Option<Socket>)>,
    workers: &Arc<Workers>,
) -> Result<(Vec<Serving>, Vec<Option<Socket>>)> {
    let (mut servers, mut rest) = (Vec::new(), Vec::new());
    for (planned, device, socket) in sockets {
        announce(planned, &device);
        let name = planned.endpoint.to_string();
        let is_connection = matches!(socket, Some(Socket::Connected(_)));
        let server = Server::held_back(&name, Arc::new(device), Arc::clone(workers))
            .with_context(|| format!("{}: cannot start a thread", planned.at_endpoint()))?;
        servers.push(Serving { server, name, identity: identity(planned), is_connection });
        rest.push(socket);
    }
    Ok((servers, rest))
}

/// Goes on with what a daemon hands over.
fn take_over(predecessor: Predecessor, servers: &mut [Serving]) -> Result<(), UpgradeError> {
    let mut by_name: BTreeMap<_, _> = servers
        .iter_mut()
        .filter(|serving| predecessor.serves(&serving.identity))
        .map(|serving| (serving.identity.clone(), &mut serving.server))
        .collect();
    let connections = predecessor.take_over(&mut by_name)?;
    for serving in servers {
        serving.is_connection |= connections.contains(&serving.identity);
    }
    Ok(())
}

/// A name that a disk has in any daemon.
fn identity(planned: &PlannedDisk) -> String {
    planned.endpoint.identity().to_string()
}

impl Daemon {
    /// Serves a plan, or nothing of it.
    pub(crate) fn start(plan: &Plan, signals: &mut StopSignals) -> Result<Self> {
        OpenedDisks::open(plan, None)?.serve(signals)
    }

    /// Returns when a signal asks for the end, or when nobody is left to be served: every disk was on a connection,
    /// and all of these were closed. An error: the last disk can be served no more, or a wait failed.
    pub(crate) fn wait(&mut self, signals: &StopSignals) -> Result<Ending> {
        loop {
            let ended: Vec<_> = self.servers.iter().map(|serving| serving.server.ended().as_fd()).collect();
            let index = match signals.wait(&ended).context("cannot wait for the end")? {
                Wake::Stop => {
                    log::info!("a signal asks for the end");
                    return Ok(Ending::Stop);
                }
                Wake::Upgrade => {
                    log::info!("a signal asks for an upgrade");
                    return Ok(Ending::Upgrade);
                }
                Wake::Ready(index) => index,
            };
            let Serving { server, name, is_connection, .. } = self.servers.remove(index);
            server.stop();
            match (self.servers.is_empty(), is_connection) {
                (true, true) => return Ok(Ending::Stop),
                (true, false) => bail!("{name}: can be served no more, and was the last disk"),
                (false, _) => log::info!("{} more disks are served", self.servers.len()),
            }
        }
    }

    /// Has another daemon take everything over. An error: this one goes on.
    pub(crate) fn hand_over(&self, starter: &Starter) -> Result<(u32, Suspended), UpgradeError> {
        predecessor::hand_over(starter, &self.named_servers())
    }

    /// Leaves everything with the service manager, for the next daemon that it starts. An error: this one goes on.
    pub(crate) fn store(&self, manager: &Systemd) -> Result<Suspended, UpgradeError> {
        predecessor::store(manager, &self.named_servers())
    }

    fn named_servers(&self) -> Vec<(&str, &Server)> {
        self.servers.iter().map(|serving| (serving.identity.as_str(), &serving.server)).collect()
    }

    /// Ends it, and leaves everything to `whom`.
    pub(crate) fn leave_to(self, whom: &str, suspended: Suspended) {
        let Self { files, servers } = self;
        let since = suspended.since;
        suspended.let_go();
        files.into_iter().for_each(SocketFile::leave);
        drop(servers);
        log::info!("handed over to {whom}; nobody has served for {:?}", since.elapsed());
    }

    /// Ends it: no I/O is in flight when this returns.
    pub(crate) fn stop(self) {
        let Self { files, servers } = self;
        drop(files);
        servers.iter().for_each(|serving| serving.server.ask_to_stop());
        drop(servers);
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for StartError {}

/// Does a step for each disk, also for those after a failure.
fn each<'a, T>(
    disks: &'a [PlannedDisk],
    step: impl Fn(&'a PlannedDisk) -> Result<T, Vec<String>>,
) -> Result<Vec<T>, StartError> {
    let mut done = Vec::new();
    let mut errors = Vec::new();
    for planned in disks {
        match step(planned) {
            Ok(value) => done.push(value),
            Err(why) => errors.extend(why),
        }
    }
    if errors.is_empty() { Ok(done) } else { Err(StartError(errors)) }
}

/// Everything for a disk that touches nothing.
fn prepare<'a>(
    planned: &'a PlannedDisk,
    cpus: usize,
    budget: &Arc<Budget>,
    predecessor: Option<&Predecessor>,
) -> Result<(Device, Place<'a>), Vec<String>> {
    let device = open(planned, cpus, budget).map_err(|why| format!("{}: {why:#}", planned.about_medium()));
    let place = look_at(planned, predecessor).map_err(|why| format!("{}: {why:#}", planned.at_endpoint()));
    match (device, place) {
        (Ok(device), Ok(place)) => Ok((device, place)),
        (device, place) => Err([device.err(), place.err()].into_iter().flatten().collect()),
    }
}

fn open(planned: &PlannedDisk, cpus: usize, budget: &Arc<Budget>) -> Result<Device> {
    let options = &planned.options;
    let disk = Disk::open(&DiskOptions {
        read_only: options.read_only,
        cache: options.cache,
        engine: match options.engine {
            Some(EngineName::File(kind)) => kind,
            _ => EngineKind::default(),
        },
        logical_block_size: options.logical_block_size,
        discard: options.discard.unwrap_or_default(),
        write_zeroes: options.write_zeroes.unwrap_or(true),
        discard_granularity: options.discard_granularity,
        discard_alignment: options.discard_alignment,
        locking: options.lock,
        on_enospc: options.on_enospc.unwrap_or_default(),
        io_timeout: options.io_timeout,
        ..DiskOptions::on(planned.medium.clone())
    })?;
    let device_options = DeviceOptions {
        num_queues: queues(options, cpus),
        queue_size: options.queue_size.unwrap_or(QUEUE_SIZE_DEFAULT),
        serial: options.serial.clone().or_else(|| serial_without_file(planned)),
        memory_budget: options.memory_budget,
        in_order: options.in_order,
    };
    Ok(Device::within(disk, &device_options, budget)?)
}

/// Who a disk without a file is: what its socket says, so that a guest can tell its disks from one another.
fn serial_without_file(planned: &PlannedDisk) -> Option<String> {
    (!planned.medium.is_file()).then(|| serial_of(Path::new(&planned.endpoint.identity().to_string())))
}

/// How many queues a disk has: one per CPU if nobody says.
fn queues(options: &DiskArgs, cpus: usize) -> u16 {
    let default = || u16::try_from(cpus).unwrap_or(Device::QUEUES_MAX).clamp(1, Device::QUEUES_MAX);
    options.num_queues.unwrap_or_else(default)
}

/// The memory for the I/O of all disks: without a bound of its own, as much as they may use together; else enough for
/// all queues of all disks to make progress.
fn daemon_budget(plan: &Plan, cpus: usize) -> Result<Arc<Budget>, StartError> {
    let queues: usize = plan.disks.iter().map(|planned| usize::from(queues(&planned.options, cpus))).sum();
    let least = queues * QueueMemory::LEAST;
    let limit = plan.memory_budget.unwrap_or(usize::MAX);
    if limit < least {
        return Err(StartError(vec![format!(
            "memory-budget = {limit}: {queues} queues need at least {least} bytes to make progress, so raise it or use \
             fewer queues"
        )]));
    }
    Ok(Budget::new("daemon's memory", limit))
}

fn look_at<'a>(planned: &'a PlannedDisk, predecessor: Option<&Predecessor>) -> Result<Place<'a>> {
    let is_handed_over = predecessor.is_some_and(|predecessor| predecessor.serves(&identity(planned)));
    match &planned.endpoint {
        Endpoint::Path(path) if is_handed_over => Ok(Place::HandedOver(Some(path))),
        Endpoint::Inherited(_) if is_handed_over => Ok(Place::HandedOver(None)),
        Endpoint::Path(path) => {
            socket::check(path)?;
            Ok(Place::ToBind(path))
        }
        Endpoint::Inherited(number) => Ok(Place::Inherited(InheritedSocket::take(*number)?)),
    }
}

fn make(place: Place<'_>, access: &SocketAccess) -> Result<(Option<Socket>, Option<SocketFile>)> {
    Ok(match place {
        Place::ToBind(path) => {
            let (listener, file) = socket::listen_at(path, access)?;
            (Some(Socket::Listener(listener)), Some(file))
        }
        Place::Inherited(InheritedSocket::Listening(listener)) => (Some(Socket::Listener(listener)), None),
        Place::Inherited(InheritedSocket::Connected(stream)) => (Some(Socket::Connected(stream)), None),
        // Somebody may have removed the file, which is no reason not to go on with who is connected.
        Place::HandedOver(path) => (None, path.and_then(|path| SocketFile::of_another(path).ok())),
    })
}

/// Says what is served, with everything that was chosen because nobody did.
fn announce(planned: &PlannedDisk, device: &Device) {
    let disk = device.disk();
    let chosen = match planned.options.cache {
        _ if !disk.medium().is_file() => "",
        None if disk.cache().is_direct() => " (the file takes direct I/O)",
        None => " (the file takes no direct I/O)",
        Some(_) => "",
    };
    let serial = String::from_utf8_lossy(device.id());
    log::info!(
        "{}: serving {}, {} bytes{}, cache {}{chosen}, engine {}, serial {}, queues {} of {}, memory for I/O up to {} MiB",
        planned.endpoint,
        disk.medium(),
        disk.capacity().0 << 9,
        if disk.is_read_only() { ", read-only" } else { "" },
        disk.cache(),
        planned.options.engine.unwrap_or_default(),
        serial.trim_end_matches('\0'),
        device.num_queues(),
        device.queue_size(),
        device.budget().limit() >> 20
    );
}
