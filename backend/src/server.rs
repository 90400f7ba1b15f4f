//! A listening socket and whoever is connected to it: one device, one front-end at a time, for as long as the daemon
//! serves it.
//!
//! The listening socket never goes away in between. A front-end that connects while another one is served is closed at
//! once, unless the other one has said nothing for so long that it hardly will. A disconnect stops the rings and waits
//! for their I/O; then the next front-end is served.

use std::fmt::{self, Arguments};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use log::Level;
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt::PeerCredentials};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

use crate::connection::{Connection, End, chain};
use crate::device::Device;
use crate::event::Event;
use crate::ratelimit::Ratelimit;
use crate::rings::Meanwhile;
use crate::session::Session;
use crate::workers::Workers;

pub use handover::{Adopting, Suspending};
use handover::{Adoption, Orders};

/// Where front-ends come from.
#[derive(Debug)]
pub enum Socket {
    /// They connect, one after another.
    Listener(UnixListener),
    /// One is connected already; the server ends when it leaves.
    Connected(UnixStream),
}

/// A device that is being served. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Event>,
    ended: Arc<Event>,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
    /// Held back until this says how to begin.
    gate: Option<Sender<Start>>,
}

/// How a server begins.
#[derive(Debug)]
enum Start {
    Serve(Socket),
    Adopt(Box<Adoption>),
}

impl Server {
    /// Serves `device` on a thread of its own. `name` is what the log calls it.
    ///
    /// # Errors
    /// When the host has no thread or no event fd.
    pub fn start(name: &str, device: Arc<Device>, workers: Arc<Workers>, socket: Socket) -> io::Result<Self> {
        let mut server = Self::held_back(name, device, workers)?;
        server.open(socket);
        Ok(server)
    }

    /// As [`Server::start`], but nothing is done before [`Server::open`] or [`Server::adopt`]: for who has something to do
    /// in between that concerns all threads. The thread has begun to run when this returns.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn held_back(name: &str, device: Arc<Device>, workers: Arc<Workers>) -> io::Result<Self> {
        let (stop, ended) = (Arc::new(Event::new()?), Arc::new(Event::new()?));
        let (name, log, orders) = (name.to_owned(), Ratelimit::default(), Arc::new(Orders::new()?));
        let serving =
            Serving { name, device, workers, stop: Arc::clone(&stop), orders: Arc::clone(&orders), log };
        let serving = Arc::new(serving);
        let end = Ended(Arc::clone(&ended));
        let (gate, opened) = channel();
        let (runs, running) = channel();
        // Linux cuts names of threads at 15 bytes.
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            let _ = runs.send(());
            // An error: it is stopped before it was opened.
            if let Ok(start) = opened.recv()
                && let Err(error) = serving.run(start)
            {
                log::error!("{}: cannot be served any more: {error}", serving.name);
            }
            drop(end);
        })?;
        let server = Self { stop, ended, orders, thread: Some(thread), gate: Some(gate) };
        running.recv().map_err(|_| io::Error::other("a control thread ended at once"))?;
        Ok(server)
    }

    /// Begins to serve.
    pub fn open(&mut self, socket: Socket) {
        self.begin(Start::Serve(socket));
    }

    fn begin(&mut self, start: Start) {
        if let Some(gate) = self.gate.take() {
            // The thread waits for this, and for nothing else.
            let _ = gate.send(start);
        }
    }

    /// Becomes readable when the server has ended by itself: a connected front-end has left, or the host failed.
    #[must_use]
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Asks it to stop, and does not wait: many servers stop together in the time of the slowest.
    pub fn ask_to_stop(&self) {
        self.stop.notify();
    }

    /// Stops serving: waits for the I/O in flight, then closes the connection.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask_to_stop();
        self.gate = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells that the server has ended, also when it has by a panic.
struct Ended(Arc<Event>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify();
    }
}

struct Serving {
    name: String,
    device: Arc<Device>,
    workers: Arc<Workers>,
    stop: Arc<Event>,
    orders: Arc<Orders>,
    log: Ratelimit,
}

/// What the control thread has to do.
enum Todo {
    Stop,
    /// Stand still.
    StandStill,
    /// The guest's memory was taken away.
    Close,
    /// See what has come on the connection.
    Handle,
    /// Another front-end wants to connect.
    Accept,
}

impl Serving {
    /// How soon a message of which a part is there is looked at again, and how long nothing is accepted after the host
    /// could not.
    const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

    fn run(self: &Arc<Self>, start: Start) -> io::Result<()> {
        match start {
            Start::Serve(Socket::Connected(stream)) => self.welcome(stream, None).map(|_| ()),
            Start::Serve(Socket::Listener(listener)) => {
                listener.set_nonblocking(true)?;
                self.serve_next(Some(&Arc::new(listener)))
            }
            Start::Adopt(adoption) => self.adopt(*adoption),
        }
    }

    /// Serves whoever connects, one after another.
    fn serve_next(self: &Arc<Self>, listener: Option<&Arc<UnixListener>>) -> io::Result<()> {
        let Some(listener) = listener else { return Ok(()) };
        loop {
            match self.wait(None, Some(listener))? {
                Todo::Accept => {}
                Todo::StandStill if !self.stand_still(None, Some(listener)) => continue,
                _ => return Ok(()),
            }
            let Some(stream) = self.accept(listener)? else { continue };
            if self.is_over(self.welcome(stream, Some(listener))) {
                return Ok(());
            }
        }
    }

    /// Whether nobody is to be served after a connection that has ended so.
    fn is_over(&self, end: io::Result<End>) -> bool {
        match end {
            Ok(end) => matches!(end, End::Stopped | End::HandedOver),
            // The host has no fd left, or the like. The listener must not go away for that.
            Err(error) => {
                self.log(Level::Error, format_args!("cannot serve a front-end: {error}"));
                false
            }
        }
    }

    fn connect(
        self: &Arc<Self>,
        stream: UnixStream,
        listener: Option<&Arc<UnixListener>>,
    ) -> io::Result<Connection<'_>> {
        let meanwhile = Refusing { serving: Arc::clone(self), listener: listener.cloned() };
        let (device, workers) = (Arc::clone(&self.device), Arc::clone(&self.workers));
        let session = Session::new(&self.name, device, workers, Box::new(meanwhile))?;
        Connection::new(stream, session, &self.name, &self.log)
    }

    /// Serves one that has just connected.
    fn welcome(
        self: &Arc<Self>,
        stream: UnixStream,
        listener: Option<&Arc<UnixListener>>,
    ) -> io::Result<End> {
        let who = Credentials::of(&stream);
        let connection = self.connect(stream, listener)?;
        self.log(Level::Info, format_args!("a front-end has connected: {who}"));
        self.serve(connection, listener)
    }

    /// Serves one connection to its end, and refuses others meanwhile.
    fn serve(&self, mut connection: Connection<'_>, listener: Option<&Arc<UnixListener>>) -> io::Result<End> {
        let end = self.converse(&mut connection, listener.map(Arc::as_ref));
        drop(connection);
        self.device.config().disconnect();
        let end = end?;
        let is_usual = matches!(end, End::Left | End::Stopped | End::HandedOver);
        let level = if is_usual { Level::Info } else { Level::Warn };
        self.log(level, format_args!("{}", chain(&end)));
        Ok(end)
    }

    fn converse(&self, connection: &mut Connection<'_>, listener: Option<&UnixListener>) -> io::Result<End> {
        loop {
            let mut todo = self.wait(Some(connection), listener)?;
            if matches!(todo, Todo::Accept) && !connection.is_in_part() && is_readable(connection.stream())? {
                // The served one may have left just before the other one came: then the other one is next, not second.
                todo = Todo::Handle;
            }
            match todo {
                Todo::Stop => return Ok(End::Stopped),
                Todo::Close => return Ok(End::MemoryLost),
                Todo::StandStill if self.stand_still(Some(connection), listener) => {
                    return Ok(End::HandedOver);
                }
                Todo::StandStill => continue,
                Todo::Handle | Todo::Accept => {}
            }
            // Others that come and go all the time must not keep a part of a message from being looked at; and who has left
            // in the middle of a message does not keep the next one out.
            let is_due = matches!(todo, Todo::Handle) || connection.is_in_part();
            if is_due && let Err(end) = connection.handle() {
                return Ok(end);
            }
            match todo {
                Todo::Accept if connection.gives_way() => return Ok(End::GaveWay),
                Todo::Accept => self.refuse(listener)?,
                Todo::Stop | Todo::StandStill | Todo::Close | Todo::Handle => {}
            }
        }
    }

    /// Waits until there is something to do, the connection's first.
    fn wait(&self, connection: Option<&Connection<'_>>, listener: Option<&UnixListener>) -> io::Result<Todo> {
        let is_in_part = connection.is_some_and(Connection::is_in_part);
        let stream = connection.filter(|_| !is_in_part).map(Connection::stream);
        let sources = [
            Some((self.stop.as_fd(), Todo::Stop)),
            Some((self.orders.event.as_fd(), Todo::StandStill)),
            connection.map(|connection| (connection.alarm().as_fd(), Todo::Close)),
            stream.map(|stream| (stream.as_fd(), Todo::Handle)),
            listener.map(|listener| (listener.as_fd(), Todo::Accept)),
        ];
        let (fds, todo): (Vec<_>, Vec<_>) = sources.into_iter().flatten().unzip();
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        retry_on_intr(|| poll(&mut polled, is_in_part.then_some(&Self::PAUSE)))?;
        let ready = todo.into_iter().zip(polled).find(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map_or(Todo::Handle, |(todo, _)| todo))
    }

    fn refuse(&self, listener: Option<&UnixListener>) -> io::Result<()> {
        if let Some(listener) = listener
            && let Some(stream) = self.accept(listener)?
        {
            let who = Credentials::of(&stream);
            // Who has left already wanted to know whether somebody listens, or who: `sluice upgrade` does.
            let level = if has_left(&stream)? { Level::Debug } else { Level::Warn };
            self.log(level, format_args!("a second front-end was refused, one is connected: {who}"));
        }
        Ok(())
    }

    /// The next connection, if it is still there and the host can have it.
    fn accept(&self, listener: &UnixListener) -> io::Result<Option<UnixStream>> {
        match listener.accept() {
            Ok((stream, _)) => return Ok(Some(stream)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                self.log(Level::Error, format_args!("cannot accept a front-end: {error}"));
                // It stays in the queue, and the listener readable.
                let mut stop = [PollFd::new(&*self.stop, PollFlags::IN)];
                retry_on_intr(|| poll(&mut stop, Some(&Self::PAUSE)))?;
            }
        }
        Ok(None)
    }

    fn log(&self, level: Level, what: Arguments<'_>) {
        self.log.log(level, format_args!("{}: {what}", self.name));
    }
}

/// Refuses front-ends while the one that is served waits for the disk.
struct Refusing {
    serving: Arc<Serving>,
    listener: Option<Arc<UnixListener>>,
}

impl Meanwhile for Refusing {
    fn turn(&mut self) {
        let listener = self.listener.as_deref();
        // More than a backlog can have is not refused in one turn.
        for _ in 0..128 {
            match listener.map(is_readable) {
                Some(Ok(true)) => {}
                _ => return,
            }
            if self.serving.refuse(listener).is_err() {
                return;
            }
        }
    }
}

/// Who is at the other end of a connection, as the kernel knows it (unix(7), SO_PEERCRED): who has connected, or, of a
/// connection that was handed over, who has made it. What they do later changes nothing about it.
struct Credentials(nix::Result<UnixCredentials>);

impl Credentials {
    fn of(stream: &UnixStream) -> Self {
        Self(getsockopt(stream, PeerCredentials))
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // Of another namespace, which has no number in ours.
            Ok(who) if who.pid() == 0 => write!(f, "user {}, group {}", who.uid(), who.gid()),
            Ok(who) => write!(f, "process {}, user {}, group {}", who.pid(), who.uid(), who.gid()),
            Err(error) => write!(f, "nobody knows who ({error})"),
        }
    }
}

impl Server {
    /// Front-ends that may wait to be accepted or refused.
    pub const BACKLOG: i32 = 16;
}

/// Whether there is a message, a part of one, or the end of the connection; or somebody to be accepted.
fn is_readable(socket: &impl AsFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    retry_on_intr(|| poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    Ok(!polled[0].revents().is_empty())
}

/// Whether the other end is closed.
fn has_left(stream: &UnixStream) -> io::Result<bool> {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    retry_on_intr(|| poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

mod handover;
#[cfg(test)]
mod tests;
