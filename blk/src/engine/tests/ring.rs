//! What a ring and its clients promise beyond what engines need of them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::doubles::patience::in_time;
use crate::engine::ring::{Attempt, Client, DormantRing, Ring, Wait};
use crate::request::Command;

use super::rig::{Kind, Rig};

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd(2)")
}

fn write(event: &OwnedFd) {
    rustix::io::write(event, &1_u64.to_ne_bytes()).expect("room in the counter");
}

fn tokens(client: &mut Client) -> Vec<u32> {
    std::iter::from_fn(|| client.next_event()).map(|event| event.token).collect()
}

#[test]
fn a_ring_that_waits_is_woken_by_an_event() {
    in_time(|| {
        let ring = Ring::new(8).expect("tests need io_uring");
        let (mut client, event) = (ring.client(8), event());
        client.watch(event.as_fd(), 1).expect("it can be polled");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                write(&event);
            });
            while !ring.has_events() {
                ring.enter(Wait::Forever).expect("io_uring_enter(2)");
            }
        });
        assert_eq!(tokens(&mut client), [1]);
        assert!(!ring.has_events());
    });
}

#[test]
fn each_write_to_a_watched_event_fd_is_an_event() {
    in_time(|| {
        let ring = Ring::new(8).expect("tests need io_uring");
        let (mut client, events) = (ring.client(8), [event(), event()]);
        for (event, token) in events.iter().zip([7, 9]) {
            client.watch(event.as_fd(), token).expect("it can be polled");
        }
        for _ in 0..3 {
            for (event, token) in events.iter().zip([7, 9]) {
                write(event);
                ring.enter(Wait::Forever).expect("io_uring_enter(2)");
                assert_eq!(tokens(&mut client), [token], "though nobody has read it");
            }
        }
    });
}

#[test]
fn a_wait_brings_all_that_has_happened() {
    in_time(|| {
        let ring = Ring::new(64).expect("tests need io_uring");
        let mut client = ring.client(64);
        let events: Vec<OwnedFd> = (0..100).map(|_| event()).collect();
        for (event, token) in events.iter().zip(0..) {
            client.watch(event.as_fd(), token).expect("it can be polled");
        }
        events.iter().for_each(write);
        ring.enter(Wait::Forever).expect("io_uring_enter(2)");
        assert_eq!(tokens(&mut client).len(), events.len(), "more than Linux gives in one call");
    });
}

#[test]
fn what_was_written_before_the_watch_is_an_event_too() {
    in_time(|| {
        let ring = Ring::new(8).expect("tests need io_uring");
        let (mut client, event) = (ring.client(8), event());
        write(&event);
        client.watch(event.as_fd(), 1).expect("it can be polled");
        ring.enter(Wait::Forever).expect("io_uring_enter(2)");
        assert_eq!(tokens(&mut client), [1]);
    });
}

#[test]
fn a_watch_that_was_given_up_ends() {
    in_time(|| {
        let ring = Ring::new(8).expect("tests need io_uring");
        let mut client = ring.client(8);
        for on_its_way in [false, true] {
            let event = event();
            client.watch(event.as_fd(), 1).expect("it can be polled");
            if on_its_way {
                write(&event);
            }
            client.unwatch(1).expect("there is room");
            let mut ended = Vec::new();
            while client.in_kernel() > 0 {
                ring.enter(Wait::Forever).expect("io_uring_enter(2)");
                let events = std::iter::from_fn(|| client.next_event());
                ended.extend(events.filter(|event| !event.more).map(|event| event.token));
            }
            ended.sort_unstable();
            assert_eq!(ended, [1, Client::UNWATCHED]);
            write(&event);
            ring.enter(Wait::No).expect("io_uring_enter(2)");
            assert_eq!(tokens(&mut client), [0; 0]);
        }
    });
}

#[test]
fn a_client_can_be_dropped_with_watches() {
    in_time(|| {
        let ring = Ring::new(4).expect("tests need io_uring");
        let (mut other, kept) = (ring.client(8), event());
        other.watch(kept.as_fd(), 1).expect("it can be polled");
        let events: Vec<OwnedFd> = (0..20).map(|_| event()).collect();
        let mut client = ring.client(8);
        for (event, token) in events.iter().zip(0..) {
            client.watch(event.as_fd(), token).expect("it can be polled");
        }
        events.iter().for_each(write);
        drop(client);
        write(&kept);
        ring.enter(Wait::Forever).expect("io_uring_enter(2)");
        assert_eq!(tokens(&mut other), [1], "the other client's watch goes on");
    });
}

#[test]
fn an_event_that_came_early_is_not_slept_over() {
    in_time(|| {
        let ring = Ring::new(2).expect("tests need io_uring");
        let (mut client, kick) = (ring.client(8), event());
        client.watch(kick.as_fd(), 1).expect("it can be polled");
        write(&kick);
        // So many requests that the ring is full, and is entered, before anybody waits.
        let mut rig = Rig::new(Kind::Cached, Some(ring.clone())).expect("buffered files exist");
        for i in 0..64 {
            let request = rig.request(Command::Read, i * 512, 512, &[(i * 512, 512)]);
            rig.engine.submit(request).expect("as many as its depth");
        }
        let done = rig.wait(64);
        done.into_iter().for_each(|(request, _)| rig.put(request));
        ring.enter(Wait::Forever).expect("the kick's event waits to be taken");
        assert_eq!(tokens(&mut client), [1]);
    });
}

#[test]
fn a_ring_can_be_made_on_another_thread_than_uses_it() {
    let ring =
        std::thread::spawn(|| DormantRing::new(8).expect("tests need io_uring")).join().expect("no panic");
    let (ring, event) = (ring.wake().expect("it is nobody's yet"), event());
    let mut client = ring.client(8);
    client.watch(event.as_fd(), 1).expect("it can be polled");
    write(&event);
    ring.enter(Wait::Forever).expect("io_uring_enter(2)");
    assert_eq!(tokens(&mut client), [1]);
}

#[test]
fn a_ring_does_nothing_that_it_is_not_used_for() {
    let ring = Ring::new(8).expect("tests need io_uring");
    let mut client = ring.client(8);
    for attempt in Attempt::ALL {
        let answer = client.attempt(attempt).expect("the ring works");
        assert_eq!(answer, Err(Errno::ACCESS), "{attempt:?}");
    }
}

#[test]
fn what_is_watched_no_more_is_not_held_open() {
    let ring = Ring::new(8).expect("tests need io_uring");
    let mut client = ring.client(8);
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
    client.watch(writer.as_fd(), 1).expect("it can be polled");
    drop(writer);
    client.unwatch(1).expect("room in the ring");
    while client.in_kernel() > 0 {
        client.wait().expect("io_uring_enter(2)");
        while client.next_event().is_some() {}
    }
    // The end of the file, nobody can write any more; not "again", as while it is held open.
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
}
