//! The block layer: from bios to the disk and back.
//!
//! Knows neither virtio nor vhost. A [`bio::Bio`] says what shall happen to a range of the disk and which memory
//! takes part; a [`queue::RequestQueue`] makes [`request::Request`]s of it that the disk can take (cut to its
//! limits, bounced where its direct I/O cannot address the memory), hands them to an [`engine::Engine`] and
//! completes the bios. Ownership is the state machine: a value moves bio -> request -> completion, and holding
//! it is being in that state.
//!
//! | module | what it is | Linux counterpart |
//! |---|---|---|
//! | [`sector`] | checked sector and byte arithmetic | `sector_t`, `SECTOR_SIZE` |
//! | [`limits`] | what a disk can take | `struct queue_limits` |
//! | [`bio`] | bios, chains of them, and their pool | `struct bio`, `struct bio_set` |
//! | [`split`] | how much of a bio is one legal piece, and whether it bounces | `blk-merge.c`, `blk_queue_bounce` |
//! | [`overlap`] | who writes to which blocks, where guests write parts of them | none |
//! | [`request`] | requests, tags, status | `struct request`, `blk_status_t` |
//! | [`queue`] | submit, make_request, dispatch, reap | `struct request_queue` |
//! | [`disk`] | an opened disk: capacity, identity, limits | `struct gendisk` |
//! | [`engine`] | ways to move the data | `blk_mq_ops` |
//! | [`stats`] | counters of a queue | `/sys/block/*/stat` |
//! | [`word`] | options that are one of a few words | `match_string` |

pub mod bio;
pub mod disk;
pub mod engine;
pub mod limits;
pub mod overlap;
pub mod queue;
pub mod request;
pub mod sector;
pub mod split;
pub mod stats;
pub mod word;

#[cfg(test)]
mod doubles;
