//! A server that hands over to another one: what its front-end and its driver see of that, and what is not taken over.

use std::io::Write;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::handover::{Fds, HandoverError, ServerState};

/// How long everything may take.
fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// A server that has not begun, on the same disk or another one.
fn successor(disk: &TestDisk) -> Server {
    Server::held_back("next", disk.device(2), Workers::start(1).unwrap()).unwrap()
}

/// What went to another process as text and came back.
fn sent(state: &ServerState) -> ServerState {
    serde_json::from_value(serde_json::to_value(state).unwrap()).unwrap()
}

impl Bench {
    /// Lets another process's server take over.
    fn hand_over(&mut self) {
        let old = self.server.take().unwrap();
        let suspending = old.suspend();
        let (state, fds) = suspending.wait(soon()).unwrap();
        let mut new = successor(&self._disk);
        let adopting = new.adopt(sent(&state), fds);
        adopting.wait(soon()).unwrap();
        suspending.let_go();
        adopting.go();
        old.stop();
        self.server = Some(new);
    }

    /// Has a successor refuse, and says why.
    fn refuse(
        &self,
        disk: &TestDisk,
        change: impl Fn(&mut Value),
        keep: impl Fn(Fds) -> Fds,
    ) -> HandoverError {
        let suspending = self.server.as_ref().unwrap().suspend();
        let (state, fds) = suspending.wait(soon()).unwrap();
        let mut state = serde_json::to_value(state).unwrap();
        change(&mut state);
        let mut new = successor(disk);
        let adopting = new.adopt(serde_json::from_value(state).unwrap(), keep(fds));
        adopting.wait(soon()).unwrap_err()
    }
}

#[test]
fn a_driver_and_its_front_end_go_on_with_the_next_server() {
    let mut bench = Bench::new();
    let (front, mut driver) = bench.boot();
    driver.check_works(1, 0x11);
    for round in 0..10 {
        bench.hand_over();
        driver.check_works(round, 0x22);
        // Messages that the crate takes only of who has negotiated for them, with and without an answer.
        front.say(SET_VRING_ENABLE, &state(1, 1), &[]);
        let config = [&[20_u32, 4, 0].map(u32::to_ne_bytes).concat()[..], &[0; 4]].concat();
        assert_eq!(front.ask(GET_CONFIG, &config).split_off(12), 512_u32.to_ne_bytes());
        front.say_wrong(SET_VRING_NUM, &state(0, 3), &[]);
        assert!(bench.connect().is_closed_within(PATIENCE), "a second front-end");
    }
    assert_eq!(front.stop_ring(0), driver.next_avail);
    drop(front);
    bench.check_serves_soon();
}

/// Whatever was handed over, the next server would hand over.
#[test]
fn nothing_is_lost_from_one_server_to_the_next() {
    const EVENT_IDX: u64 = 1 << 29;
    let mut bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES | EVENT_IDX);
    front.set_memory(&bench.ram);
    let mut drivers = [RAM.start, RAM.start + 0x2_0000].map(|at| Driver::new(&bench.ram, at, 16));
    for (index, driver) in (0..).zip(&drivers) {
        front.start_ring(index, driver);
    }
    front.say(SET_VRING_ENABLE, &state(1, 0), &[]);
    let said = |bench: &Bench| {
        let (state, fds) = bench.server.as_ref().unwrap().suspend().wait(soon()).unwrap();
        (serde_json::to_value(state).unwrap(), Vec::from(fds).len())
    };
    let before = said(&bench);
    let rings = before.0["connection"]["session"]["rings"].as_array().unwrap();
    assert_eq!(rings.iter().map(|ring| ring["runs"] == true).collect::<Vec<_>>(), [true, false]);
    assert_eq!(before.0["connection"]["session"]["accepted"], FEATURES | EVENT_IDX);
    bench.hand_over();
    assert_eq!(said(&bench), before);
    // And the rings are of the kind that was negotiated.
    let driver = &mut drivers[0];
    driver.check_works(1, 0x11);
    // As if there were one more.
    driver.next_avail += 1;
    eventually(PATIENCE, || driver.wants_kick(true)).expect("it asks for the next kick by its event index");
}

#[test]
fn requests_that_come_while_it_is_handed_over_are_served_by_the_next_one() {
    let mut bench = Bench::new();
    let (_front, mut driver) = bench.boot();
    let old = bench.server.take().unwrap();
    let suspending = old.suspend();
    let (state, fds) = suspending.wait(soon()).unwrap();
    driver.offer(0, 0, 3);
    driver.kick();
    assert_eq!(driver.done_within(Duration::from_millis(30)), None, "it stands still");
    let mut new = successor(&bench._disk);
    let adopting = new.adopt(sent(&state), fds);
    adopting.wait(soon()).unwrap();
    assert_eq!(driver.done_within(Duration::from_millis(30)), None, "the old one has not let go");
    suspending.let_go();
    adopting.go();
    old.stop();
    assert_eq!(driver.done().1, 0);
    driver.check_works(3, 0x33);
}

#[test]
fn a_server_that_is_asked_in_vain_goes_on() {
    let bench = Bench::new();
    let (front, mut driver) = bench.boot();
    let server = bench.server.as_ref().unwrap();
    drop(server.suspend());
    driver.check_works(1, 0x11);
    let suspending = server.suspend();
    let said = suspending.wait(soon()).unwrap();
    driver.offer(0, 0, 3);
    driver.kick();
    drop((said, suspending));
    assert_eq!(driver.done().1, 0);
    // Two wishes at once: the second one is heard when the first is given up.
    let (first, second) = (server.suspend(), server.suspend());
    drop(first);
    assert!(second.wait(soon()).is_ok());
    drop(second);
    driver.check_works(1, 0x22);
    assert_eq!(front.stop_ring(0), driver.next_avail);
}

#[test]
fn one_that_nobody_is_connected_to_is_handed_over_with_its_socket() {
    let mut bench = Bench::new();
    bench.hand_over();
    bench.check_serves();
    // And who waits to be accepted is.
    let old = bench.server.take().unwrap();
    let suspending = old.suspend();
    let (state, fds) = suspending.wait(soon()).unwrap();
    let front = bench.connect();
    front.send(&FrontEnd::message(GET_FEATURES, 0, &[]), &[]).unwrap();
    let mut new = successor(&bench._disk);
    let adopting = new.adopt(sent(&state), fds);
    adopting.wait(soon()).unwrap();
    suspending.let_go();
    old.stop();
    adopting.go();
    assert_eq!(front.receive().unwrap().0, GET_FEATURES);
}

#[test]
fn a_message_of_which_a_part_has_come_is_taken_by_the_next_one() {
    let mut bench = Bench::new();
    let (front, mut driver) = bench.boot();
    let message = FrontEnd::message(SET_VRING_NUM, 8, &state(1, 32));
    for at in [1, 11, 12, 19] {
        front.send(&message[..at], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        bench.hand_over();
        driver.check_works(1, 0x11);
        (&front.stream).write_all(&message[at..]).unwrap();
        assert_eq!(front.receive().unwrap(), (SET_VRING_NUM, body(&[0])), "after {at} bytes");
    }
}

#[test]
fn a_front_end_that_has_not_negotiated_yet_does_so_with_the_next_one() {
    let mut bench = Bench::new();
    let front = bench.connect();
    front.send(&FrontEnd::message(SET_OWNER, 0, &[]), &[]).unwrap();
    front.ask(GET_FEATURES, &[]);
    bench.hand_over();
    front.negotiate(FEATURES);
    bench.hand_over();
    front.set_memory(&bench.ram);
    bench.hand_over();
    let mut driver = Driver::new(&bench.ram, RAM.start, 16);
    front.say(SET_VRING_NUM, &state(0, driver.size.into()), &[]);
    front.say(SET_VRING_ADDR, &FrontEnd::addrs(0, &driver), &[]);
    bench.hand_over();
    front.set_fd(SET_VRING_KICK, 0, &driver.kick);
    front.set_fd(SET_VRING_CALL, 0, &driver.call);
    bench.hand_over();
    front.say(SET_VRING_ENABLE, &state(0, 1), &[]);
    driver.check_works(1, 0x11);
}

#[test]
fn what_the_driver_has_said_of_the_write_cache_stays_said() {
    let mut bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES | 1 << 11);
    let writeback = || {
        let ask = [&[32_u32, 1, 0].map(u32::to_ne_bytes).concat()[..], &[0]].concat();
        front.ask(GET_CONFIG, &ask)[12]
    };
    assert_eq!(writeback(), 0, "without FLUSH there is no cache");
    bench.hand_over();
    assert_eq!(writeback(), 0);
}

#[test]
fn a_device_that_is_not_what_the_guest_knows_is_not_taken_over() {
    let bench = Bench::new();
    let (_front, mut driver) = bench.boot();
    let small = TestDisk::new(1023);
    let read_only = TestDisk::new(1024).with(|options| options.read_only = true);
    let blocks = TestDisk::new(1024).with(|options| options.logical_block_size = Some(4096));
    for (disk, what) in [(&small, "capacity"), (&read_only, "read-only"), (&blocks, "config space")] {
        let error = bench.refuse(disk, |_| (), |fds| fds).to_string();
        assert!(error.contains(what), "{error}");
        driver.check_works(1, 0x11);
    }
    let serial = |state: &mut Value| state["device"]["id"][0] = 65.into();
    assert!(bench.refuse(&bench._disk, serial, |fds| fds).to_string().contains("serial number"));
    let feature = |state: &mut Value| state["connection"]["session"]["accepted"] = (1_u64 << 60).into();
    assert!(bench.refuse(&bench._disk, feature, |fds| fds).to_string().contains("were not offered"));
    let error = bench.refuse(&bench._disk, |_| (), |_| Fds::default());
    assert!(matches!(error, HandoverError::NoFd { .. }), "{error}");
    driver.check_works(1, 0x22);
}

#[test]
fn a_disk_that_has_grown_is_taken_over() {
    let mut bench = Bench::new();
    let (_front, mut driver) = bench.boot();
    bench._disk.file.as_file().set_len(2048 * 512).unwrap();
    bench.hand_over();
    driver.check_works(1, 0x11);
}

#[test]
fn a_disk_in_memory_is_not_handed_over() {
    use sluice_blk::disk::{DiskOptions, Medium};
    let memory = Medium::Ram { bytes: 1 << 20 };
    let disk = TestDisk::new(8).with(|options| *options = DiskOptions::on(memory.clone()));
    let (_front, theirs) = UnixStream::pair().unwrap();
    let workers = Workers::start(1).unwrap();
    let server = Server::start("test", disk.device(1), workers, Socket::Connected(theirs)).unwrap();
    assert!(matches!(server.suspend().wait(soon()), Err(HandoverError::InMemory)));
}

/// The log of what is written would have to go along, and the copy of the guest goes elsewhere soon anyway.
#[test]
fn a_guest_that_is_being_copied_is_handed_over_when_that_is_done() {
    let mut bench = Bench::new();
    let (front, mut driver) = bench.boot();
    front.say(SET_FEATURES, &body(&[FEATURES | 1 << 26]), &[]);
    let suspending = bench.server.as_ref().unwrap().suspend();
    assert!(matches!(suspending.wait(soon()), Err(HandoverError::Migrating)));
    drop(suspending);
    driver.check_works(1, 0x11);
    front.say(SET_FEATURES, &body(&[FEATURES]), &[]);
    bench.hand_over();
    driver.check_works(2, 0x22);
}

/// A place in the state where a number or a list is.
fn places(state: &Value, path: &str, found: &mut Vec<String>) {
    match state {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| places(value, &format!("{path}/{name}"), found))
        }
        Value::Array(values) => {
            found.push(path.to_owned());
            values.iter().enumerate().for_each(|(at, value)| places(value, &format!("{path}/{at}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

fn wrong() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![
            0_u64,
            1,
            2,
            15,
            16,
            255,
            1024,
            1025,
            65535,
            65536,
            1 << 20,
            1 << 32,
            u64::MAX
        ])
        .prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        Just(Value::Array(vec![])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    /// A guest may have got hold of the process that says it.
    #[test]
    fn whatever_a_predecessor_says_ends_nothing(changes in prop::collection::vec((any::<prop::sample::Index>(), wrong()), 1..4), is_let_go: bool) {
        let bench = Bench::new();
        let (_front, mut driver) = bench.boot();
        let suspending = bench.server.as_ref().unwrap().suspend();
        let (state, fds) = suspending.wait(soon()).unwrap();
        let mut state = serde_json::to_value(state).unwrap();
        let mut found = Vec::new();
        places(&state, "", &mut found);
        for (at, value) in changes {
            if let Some(place) = state.pointer_mut(&found[at.index(found.len())]) {
                *place = value;
            }
        }
        if let Ok(state) = serde_json::from_value::<ServerState>(state) {
            let mut new = successor(&bench._disk);
            let adopting = new.adopt(state, fds);
            // Taken or not: it is there, and ends when it is told to.
            if adopting.wait(soon()).is_ok() && is_let_go {
                suspending.let_go();
                adopting.go();
                bench.stop();
                return Ok(());
            }
            drop(adopting);
            new.stop();
        }
        drop(suspending);
        driver.check_works(1, 0x11);
    }
}
