//! One front-end that is connected: takes its messages, and decides which mistakes end the connection.
//!
//! A message that is refused leaves the connection open only if the front-end was told so: it asked for an
//! acknowledgement, and the message is one that is answered with nothing else. Otherwise the connection is closed, as a
//! front-end that waits for an answer would wait for ever, and one that waits for none would go on as if all were well.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_mem::sigbus::Alarm;
use vhost::vhost_user::message::{FrontendReq, VHOST_USER_CONFIG_SIZE, VhostUserHeaderFlag};
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::inbox::{Header, Look, answer_no_config, answer_no_inflight, ignore, look, peek_numbers, refuse};
use crate::ratelimit::Ratelimit;
use crate::relay::Relay;
use crate::session::Session;

/// Why a connection is served no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The front-end has closed it.
    #[error("the front-end has left")]
    Left,
    /// Nothing was ever said on it, and another front-end wants the device.
    #[error("the front-end said nothing, and another one has come")]
    GaveWay,
    /// A message that nobody may send, or that could not be answered.
    #[error("connection closed")]
    Message(#[source] Error),
    /// Something that is no message.
    #[error("connection closed: {0}")]
    Broken(&'static str),
    /// The guest's memory was taken away: its file was cut, or no huge page is left for it.
    #[error("connection closed: memory of the guest was taken away (is its file shorter than it was?)")]
    MemoryLost,
    /// The socket does not work.
    #[error("connection closed")]
    Socket(#[from] io::Error),
    /// The daemon stops.
    #[error("stopped")]
    Stopped,
    /// Another process goes on with it.
    #[error("handed over")]
    HandedOver,
}

/// A connection. Dropping it stops the rings first and closes it then: a front-end that sees it closed may use its
/// memory for something else.
pub(crate) struct Connection<'a> {
    name: &'a str,
    log: &'a Ratelimit,
    handler: BackendReqHandler<Mutex<Session>>,
    relay: Relay,
    session: Arc<Mutex<Session>>,
    alarm: Arc<Alarm>,
    stream: UnixStream,
    opened: Instant,
    has_spoken: bool,
    /// Since when there is a part of a message.
    part_since: Option<Instant>,
}

impl<'a> Connection<'a> {
    /// How long a message may take from its first byte to its last, or an answer to the one before to be taken.
    pub(crate) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long a connection may be silent at first when another front-end comes.
    pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);

    /// A connection on `stream`, over which `session` is spoken. What is refused goes to `log`, under `name`.
    pub(crate) fn new(
        stream: UnixStream,
        session: Session,
        name: &'a str,
        log: &'a Ratelimit,
    ) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        // Not waited for by design; the bound is for what the design has overlooked.
        stream.set_read_timeout(Some(Self::MESSAGE_TIMEOUT))?;
        stream.set_write_timeout(Some(Self::MESSAGE_TIMEOUT))?;
        let alarm = Arc::clone(session.alarm());
        let session = Arc::new(Mutex::new(session));
        let (relay, theirs) = Relay::pair(Self::MESSAGE_TIMEOUT)?;
        let handler = BackendReqHandler::from_stream(theirs, Arc::clone(&session));
        let (opened, has_spoken, part_since) = (Instant::now(), false, None);
        Ok(Self { name, log, handler, relay, session, alarm, stream, opened, has_spoken, part_since })
    }

    /// The socket. To be waited on, unless [`Connection::is_in_part`].
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Becomes readable when the guest's memory was taken away.
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Whether a part of a message is there, so that the socket is readable although there is nothing to be done.
    pub(crate) fn is_in_part(&self) -> bool {
        self.part_since.is_some()
    }

    /// Whether it should make room for another one.
    pub(crate) fn gives_way(&self) -> bool {
        !self.has_spoken && self.opened.elapsed() > Self::SILENCE_MAX
    }

    /// Handles a message, if all of one is there.
    ///
    /// # Errors
    /// Why the connection is to be closed.
    pub(crate) fn handle(&mut self) -> Result<(), End> {
        match look(&self.stream)? {
            Look::Message(header) => {
                self.part_since = None;
                self.has_spoken = true;
                self.take(header)
            }
            Look::Part
                if self.part_since.get_or_insert_with(Instant::now).elapsed() < Self::MESSAGE_TIMEOUT =>
            {
                Ok(())
            }
            Look::Part => Err(End::Broken("a message took too long, or its answer was not taken")),
            Look::End => Err(End::Left),
            Look::Broken(reason) => Err(End::Broken(reason)),
        }
    }

    fn take(&mut self, header: Header) -> Result<(), End> {
        if header.request() == Some(FrontendReq::SET_LOG_FD) && header.size == 0 && is_asked(header) {
            // An event fd that may be written to when the log has changed (vhost-user.rst, "Migration"): who copies the guest's
            // memory looks at the log anyway. The crate does not know the message.
            return Ok(ignore(&self.stream, header, self.is_acknowledged(header))?);
        }
        if !is_served(header) && self.is_acknowledged(header) {
            self.refused(format_args!("{header:?} is not served"));
            return Ok(refuse(&self.stream, header)?);
        }
        if let Some((offset, flags)) = self.config_that_cannot_be(header)? {
            return Ok(answer_no_config(&self.stream, header, offset, flags)?);
        }
        if self.asks_for_inflight_that_cannot_be(header)? {
            self.refused(format_args!("GET_INFLIGHT_FD for queues that the device does not have"));
            return Ok(answer_no_inflight(&self.stream, header)?);
        }
        self.relay.pass(&self.stream, header)?;
        let handled = self.handler.handle_request();
        self.relay.answer(&self.stream)?;
        match handled {
            Ok(()) => Ok(()),
            Err(Error::ReqHandlerError(error)) if self.is_acknowledged(header) => {
                self.refused(format_args!("{}", chain(&error)));
                Ok(())
            }
            Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => Err(End::Left),
            Err(error) => Err(End::Message(error)),
        }
    }

    /// Offset and flags of a GET_CONFIG whose range is in no config space at all. The crate ends the connection on those,
    /// where the specification has an answer.
    fn config_that_cannot_be(&self, header: Header) -> io::Result<Option<(u32, u32)>> {
        if header.request() != Some(FrontendReq::GET_CONFIG) || !self.session().has_config() {
            return Ok(None);
        }
        let Some([offset, size, flags]) = peek_numbers(&self.stream)? else { return Ok(None) };
        let can_be = size > 0 && offset.checked_add(size).is_some_and(|end| end <= VHOST_USER_CONFIG_SIZE);
        Ok((!can_be).then_some((offset, flags)))
    }

    /// Whether it is a GET_INFLIGHT_FD for queues that there are not. It has no answer that says no but one of no bytes, and the
    /// crate would have to end the connection.
    fn asks_for_inflight_that_cannot_be(&self, header: Header) -> io::Result<bool> {
        if header.request() != Some(FrontendReq::GET_INFLIGHT_FD) {
            return Ok(false);
        }
        // Size and offset, 64 bits each, say nothing yet; then there are two numbers of 16 bits.
        let Some([_, _, _, _, queues]) = peek_numbers(&self.stream)? else { return Ok(false) };
        let [a, b, c, d] = queues.to_ne_bytes();
        let (num_queues, queue_size) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        Ok(!self.session().can_track(num_queues, queue_size))
    }

    fn refused(&self, what: fmt::Arguments<'_>) {
        self.log.log(log::Level::Warn, format_args!("{}: refused: {what}", self.name));
    }

    /// Whether the front-end is told by an acknowledgement when the message is refused.
    fn is_acknowledged(&self, header: Header) -> bool {
        is_asked(header) && header.needs_reply() && !has_own_answer(header) && self.session().acknowledges()
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a header is of this version of the protocol, and no reply.
fn is_asked(header: Header) -> bool {
    header.flags & (VhostUserHeaderFlag::VERSION | VhostUserHeaderFlag::REPLY).bits() == 1
}

/// Whether a message is answered by something else than an acknowledgement.
fn has_own_answer(header: Header) -> bool {
    matches!(
        header.request(),
        Some(
            FrontendReq::GET_FEATURES
                | FrontendReq::GET_PROTOCOL_FEATURES
                | FrontendReq::GET_QUEUE_NUM
                | FrontendReq::GET_VRING_BASE
                | FrontendReq::GET_CONFIG
                | FrontendReq::GET_MAX_MEM_SLOTS
                | FrontendReq::SET_LOG_BASE
                | FrontendReq::GET_INFLIGHT_FD
                | FrontendReq::GET_STATUS
                | FrontendReq::SET_DEVICE_STATE_FD
                | FrontendReq::CHECK_DEVICE_STATE
                | FrontendReq::GET_SHARED_OBJECT
                | FrontendReq::GET_SHMEM_CONFIG
                | FrontendReq::POSTCOPY_ADVISE
        )
    )
}

/// Whether a message belongs to what is offered. The crate ends the connection on most of the others.
fn is_served(header: Header) -> bool {
    matches!(
        header.request(),
        Some(
            FrontendReq::GET_FEATURES
                | FrontendReq::SET_FEATURES
                | FrontendReq::SET_OWNER
                | FrontendReq::RESET_OWNER
                | FrontendReq::SET_MEM_TABLE
                | FrontendReq::SET_VRING_NUM
                | FrontendReq::SET_VRING_ADDR
                | FrontendReq::SET_VRING_BASE
                | FrontendReq::GET_VRING_BASE
                | FrontendReq::SET_VRING_KICK
                | FrontendReq::SET_VRING_CALL
                | FrontendReq::SET_VRING_ERR
                | FrontendReq::GET_PROTOCOL_FEATURES
                | FrontendReq::SET_PROTOCOL_FEATURES
                | FrontendReq::GET_QUEUE_NUM
                | FrontendReq::SET_VRING_ENABLE
                | FrontendReq::GET_CONFIG
                | FrontendReq::SET_CONFIG
                | FrontendReq::RESET_DEVICE
                | FrontendReq::GET_MAX_MEM_SLOTS
                | FrontendReq::ADD_MEM_REG
                | FrontendReq::REM_MEM_REG
                | FrontendReq::GET_INFLIGHT_FD
                | FrontendReq::SET_INFLIGHT_FD
                | FrontendReq::SET_LOG_BASE
                | FrontendReq::SET_DEVICE_STATE_FD
                | FrontendReq::CHECK_DEVICE_STATE
        )
    )
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

mod handover;

#[cfg(test)]
impl Connection<'_> {
    /// Makes it older than it is.
    pub(crate) fn age(&mut self, has_spoken: bool, age: Duration) {
        (self.has_spoken, self.opened) = (has_spoken, Instant::now() - age);
    }
}
