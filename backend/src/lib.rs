//! The vhost-user device: a disk, as a guest and its front-end see it.
//!
//! Two kinds of threads. Control threads speak vhost-user with a front-end and set rings up; worker threads serve
//! running rings and never wait for anything but I/O and kicks. State lives as long as what it belongs to: a
//! [`device::Device`] as long as the daemon serves it, a [`session::Session`] as long as one connection, a
//! [`service::Service`] from the start of a ring to its stop.
//!
//! | module | what it is | specification |
//! |---|---|---|
//! | [`device`] | a disk with its identity and config | virtio 5.2 |
//! | [`config`] | the config space and the features | virtio 5.2.3 to 5.2.5 |
//! | [`server`] | a listening socket and who is connected to it | vhost-user |
//! | `connection`, `inbox`, `relay` | who is connected, and what has come from there | vhost-user "message" |
//! | [`session`] | one connection: messages to state | vhost-user |
//! | [`state`] | what is carried to another host beside the rings | vhost-user "migrating back-end state" |
//! | [`rings`] | the rings of a session: set up, started, stopped | vhost-user "ring states" |
//! | [`handover`] | what a process hands to its successor | |
//! | [`vring`] | a running split ring | virtio 2.7 |
//! | [`chain`] | descriptor chain to bio chain: the trust boundary | virtio 5.2.6 |
//! | [`service`] | one ring being served | |
//! | `coalesce` | when a driver is called | |
//! | [`worker`], [`workers`] | the threads that serve rings | |
//! | `pace` | how long a worker looks for work before it sleeps | |
//! | [`call`] | calling a driver without waiting for anybody | |
//! | [`event`] | one thread waking another | |
//! | [`ratelimit`] | a bound on what can be logged | |
//! | [`reactor`] | what a worker waits on | |
//! | [`adapter`] | the same device inside a stock `VhostUserDaemon` | |

pub mod adapter;
pub mod call;
pub mod chain;
mod coalesce;
pub mod config;
mod connection;
pub mod device;
#[cfg(test)]
mod doubles;
pub mod event;
pub mod handover;
mod inbox;
pub mod inflight;
mod pace;
pub mod ratelimit;
pub mod reactor;
mod relay;
pub mod rings;
pub mod server;
pub mod service;
pub mod session;
pub mod state;
pub mod vring;
pub mod worker;
pub mod workers;
