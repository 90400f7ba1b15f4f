//! The workers of a daemon: a fixed number of threads that share the rings of all disks.
//!
//! They are made in two steps: [`PreparedWorkers`] have everything that a sandbox would refuse, and no thread, so that
//! whoever makes them can confine itself before there are threads, which it would have to confine one by one.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::call::SignalRings;
use crate::reactor::DormantReactor;
use crate::service::{ServiceSetup, StartError};
use crate::worker::{Command, Mailbox, RingId, Stopped, Worker};

/// How workers are to be.
#[derive(Debug, Clone)]
pub struct WorkersOptions {
    /// How many threads, at least one.
    pub count: usize,
    /// The CPUs that they stay on, one each, over again if there are more threads. None: where the kernel puts them.
    pub cpus: Vec<usize>,
    /// How long a worker that has nothing to do may stay awake for work that comes soon. Zero: not at all.
    pub poll_max: Duration,
    /// How many event fds of front-ends can be signalled at a time: those of all running rings, and one for each thread
    /// that may find one broken. None: as many as there are, but then the process must be let make an io_uring for each.
    pub signals: Option<usize>,
}

impl WorkersOptions {
    /// Chosen by measurement: what a driver that sleeps itself takes to come back, with some room.
    pub const POLL_MAX: Duration = Duration::from_micros(50);

    /// So many threads, with all else as it is by default.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { count, cpus: Vec::new(), poll_max: Self::POLL_MAX, signals: None }
    }
}

/// Workers before they have their threads.
#[derive(Debug)]
pub struct PreparedWorkers {
    seats: Vec<Seat>,
    signals: Arc<SignalRings>,
}

/// What a thread is made of.
#[derive(Debug)]
struct Seat {
    reactor: DormantReactor,
    mailbox: Arc<Mailbox>,
    cpu: Option<usize>,
    poll_max: Duration,
}

impl PreparedWorkers {
    /// Everything for as many threads as `options` say, at least one, each on a reactor of its own.
    ///
    /// # Errors
    /// When the host has no reactor for one.
    pub fn new(options: &WorkersOptions, reactor: fn() -> io::Result<DormantReactor>) -> io::Result<Self> {
        let mut cpus = options.cpus.iter().copied().cycle();
        let seats = (0..options.count.max(1)).map(|_| {
            let (reactor, mailbox) = (reactor()?, Mailbox::new()?);
            Ok(Seat { reactor, mailbox, cpu: cpus.next(), poll_max: options.poll_max })
        });
        let seats = seats.collect::<io::Result<_>>()?;
        let signals = options.signals.map_or_else(SignalRings::growing, SignalRings::fixed);
        Ok(Self { seats, signals })
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// When the host has no thread for one, or not the CPU that it is to stay on.
    pub fn start(self) -> io::Result<Arc<Workers>> {
        let Self { seats, signals } = self;
        let mut workers = Workers { threads: Vec::new(), signals, next: AtomicUsize::new(0) };
        for (index, seat) in seats.into_iter().enumerate() {
            let thread = Thread::start(format!("worker-{index}"), seat, Arc::clone(&workers.signals))?;
            workers.threads.push(thread);
        }
        Ok(Arc::new(workers))
    }
}

/// A daemon's worker threads. They end when this is dropped, which must not be before all rings are stopped.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Thread>,
    signals: Arc<SignalRings>,
    /// Which worker gets the next ring.
    next: AtomicUsize,
}

#[derive(Debug)]
struct Thread {
    mailbox: Arc<Mailbox>,
    handle: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// As [`PreparedWorkers::new`] and [`PreparedWorkers::start`].
    pub fn start(count: usize) -> io::Result<Arc<Self>> {
        PreparedWorkers::new(&WorkersOptions::new(count), DormantReactor::new)?.start()
    }

    /// What event fds of front-ends are signalled with.
    #[must_use]
    pub fn signals(&self) -> &Arc<SignalRings> {
        &self.signals
    }

    /// Serves a ring, on the thread whose turn it is. Waits until it is served.
    ///
    /// # Errors
    /// What [`crate::service::Service::start`] says.
    pub fn serve(&self, setup: ServiceSetup) -> Result<ServedRing, StartError> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let mailbox = Arc::clone(&self.threads[index].mailbox);
        let (reply, answer) = channel();
        mailbox.send(Command::Start(Box::new(setup), reply));
        let gone = |_| StartError::Host(io::Error::other("the worker thread is gone"));
        let id = answer.recv().map_err(gone)??;
        Ok(ServedRing { mailbox, id })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.mailbox.send(Command::Exit);
            if let Some(handle) = thread.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

impl Thread {
    fn start(name: String, seat: Seat, signals: Arc<SignalRings>) -> io::Result<Self> {
        let mailbox = Arc::clone(&seat.mailbox);
        let (reply, answer) = channel();
        let handle = std::thread::Builder::new().name(name).spawn(move || {
            let worker = match seat.take(signals) {
                Ok(worker) => worker,
                Err(error) => return drop(reply.send(Err(error))),
            };
            let _ = reply.send(Ok(()));
            if let Err(error) = worker.run() {
                // Guests' I/O may be in flight in a ring that cannot be asked any more.
                log::error!("a worker cannot go on: {error}");
                std::process::abort();
            }
        })?;
        answer.recv().map_err(|_| io::Error::other("a worker thread ended at once"))??;
        Ok(Self { mailbox, handle: Some(handle) })
    }
}

impl Seat {
    /// The worker, on the calling thread.
    fn take(self, signals: Arc<SignalRings>) -> io::Result<Worker> {
        let Self { reactor, mailbox, cpu, poll_max } = self;
        cpu.map_or(Ok(()), stay_on)?;
        Worker::new(mailbox, reactor.wake()?, signals, poll_max)
    }
}

/// Keeps the calling thread on a CPU.
fn stay_on(cpu: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        cpus.set(cpu);
    }
    sched_setaffinity(None, &cpus)
        .map_err(|errno| io::Error::other(format!("a thread cannot stay on CPU {cpu}: {errno}")))
}

/// A ring that a worker serves. Stop it before it is dropped.
#[derive(Debug)]
pub struct ServedRing {
    mailbox: Arc<Mailbox>,
    id: RingId,
}

impl ServedRing {
    /// Serves the ring no more, and waits for that.
    #[must_use]
    pub fn stop(self, meanwhile: impl FnMut()) -> Stopped {
        self.begin_to_stop().wait(meanwhile)
    }

    /// Takes no more of the ring's requests, and does not wait: many rings stop together in the time of the slowest.
    #[must_use]
    pub fn begin_to_stop(self) -> Stopping {
        let (reply, answer) = channel();
        self.mailbox.send(Command::Stop(self.id, reply));
        Stopping(answer)
    }

    /// Serves a ring that was held back, if it was.
    pub fn go(&self) {
        self.mailbox.send(Command::Go(self.id));
    }

    /// Calls the driver by `call` from now on, and once at once. Waits until the old fd is not used any more.
    pub fn set_call(&self, call: Option<Arc<File>>) {
        let (reply, answer) = channel();
        self.mailbox.send(Command::SetCall(self.id, call, reply));
        let _ = answer.recv();
    }
}

/// A ring that stops.
#[derive(Debug)]
pub struct Stopping(Receiver<Stopped>);

impl Stopping {
    /// How often something else is done while a ring stops. Longer than most disks take to answer: who comes back at once is
    /// not refused for that.
    const MEANWHILE: Duration = Duration::from_millis(80);

    /// Waits until all of the ring's requests are answered; then neither memory nor fds of the guest are touched any more. A
    /// disk may let it wait for long: now and then `meanwhile` is called.
    #[must_use]
    pub fn wait(self, mut meanwhile: impl FnMut()) -> Stopped {
        loop {
            match self.0.recv_timeout(Self::MEANWHILE) {
                Ok(stopped) => return stopped,
                Err(RecvTimeoutError::Timeout) => meanwhile(),
                // Workers live as long as there are rings.
                Err(RecvTimeoutError::Disconnected) => return Stopped::default(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
