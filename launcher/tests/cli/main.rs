//! The program from outside: its exit codes, its words, its sockets, its signals.
//!
//! The device is asked no more than a vhost-user front-end asks first, which tells whether the right disk is served.

mod doctor;
mod fixture;

mod bench;
mod capabilities;
mod inherited;
mod run;
mod sandbox;
mod serving;
mod several;
mod usage;
