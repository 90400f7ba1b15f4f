//! One disk on one socket: how it starts, ends, and keeps away from what is not its own.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::fixture::{FrontEnd, Place, Running, eventually, option, output_of, sluice};

const FEATURE_RO: u64 = 1 << 5;
const FEATURE_MQ: u64 = 1 << 12;
const FEATURE_VERSION_1: u64 = 1 << 32;

fn serve(socket: &Path, disk: &Path, more: &[&str]) -> Running {
    Running::start(sluice().args([option("socket-path", socket), option("blk-file", disk)]).args(more))
}

#[test]
fn a_disk_is_served_until_sigterm_or_sigint_and_its_socket_goes_with_it() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = serve(&socket, &disk, &[]);
        let mut front_end = FrontEnd::connect(&socket);
        assert_ne!(front_end.features() & FEATURE_VERSION_1, 0);
        daemon.signal(signal);
        let (code, words) = daemon.wait();
        assert_eq!(code, Some(0), "{words}");
        assert!(!socket.exists());
    }
}

#[test]
fn a_wish_to_end_that_arrives_as_several_signals_is_one_wish() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let mut daemon = serve(&socket, &disk, &[]);
    let mut front_end = FrontEnd::connect(&socket);
    front_end.features();
    daemon.signal(Signal::STOP);
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        daemon.signal(signal);
    }
    daemon.signal(Signal::CONT);
    let (code, words) = daemon.wait();
    assert_eq!(code, Some(0), "{words}");
    assert!(!socket.exists());
}

#[test]
fn front_ends_come_and_go() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let daemon = serve(&socket, &disk, &[]);
    for _ in 0..5 {
        FrontEnd::connect(&socket).features();
    }
    daemon.end();
}

#[test]
fn the_options_of_a_disk_reach_the_device() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let daemon = serve(&socket, &disk, &["--read-only", "--num-queues", "3", "--engine=sync"]);
    let mut front_end = FrontEnd::connect(&socket);
    let features = front_end.features();
    assert_eq!(features & (FEATURE_RO | FEATURE_MQ), FEATURE_RO | FEATURE_MQ);
    assert_eq!(front_end.queues(), 3);
    daemon.end();

    let daemon = serve(&socket, &disk, &["--num-queues=1"]);
    assert_eq!(FrontEnd::connect(&socket).features() & FEATURE_RO, 0);
    daemon.end();
}

#[test]
fn the_log_says_what_is_served_where_and_with_which_cache() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let daemon = serve(&socket, &disk, &["--cache=writethrough", "--serial=abc", "--num-queues=2"]);
    FrontEnd::connect(&socket).features();
    let words = daemon.end();
    for expected in
        [&disk.display().to_string(), &socket.display().to_string(), "cache writethrough", "serial abc"]
    {
        assert!(words.contains(expected), "{expected}: {words}");
    }

    let daemon = serve(&socket, &disk, &[]);
    FrontEnd::connect(&socket).features();
    let words = daemon.end();
    assert!(words.contains("cache none") || words.contains("cache writeback"), "{words}");
}

#[test]
fn disks_without_a_file_are_told_apart_by_their_sockets() {
    let place = Place::new();
    let log = |engine: &str, socket: &str, size: &str| {
        let socket = place.at(socket);
        let arguments = [format!("--engine={engine}"), format!("--size={size}")];
        let daemon = Running::start(sluice().arg(option("socket-path", &socket)).args(arguments));
        FrontEnd::connect(&socket).features();
        daemon.end()
    };
    let words = [log("ram", "a", "1M"), log("ram", "b", "1M"), log("null", "a", "2M"), log("ram", "a", "1M")];
    let serial = |words: &str| words.split_once("serial ").map(|(_, rest)| rest[..20].to_owned());
    let serials = words.each_ref().map(|words| serial(words).unwrap_or_else(|| panic!("no serial: {words}")));
    assert_ne!(serials[0], serials[1]);
    assert_eq!((&serials[0], &serials[2]), (&serials[3], &serials[3]), "and stay the same");
    let what =
        ["serving memory, 1048576 bytes, cache writeback, engine ram", "serving nothing, 2097152 bytes"];
    for (words, what) in [(&words[0], what[0]), (&words[2], what[1])] {
        assert!(words.contains(what), "{what}: {words}");
    }
}

#[test]
fn a_disk_in_memory_that_cannot_be_is_an_error_about_its_size() {
    for (size, words) in [
        ("1000", "--size: a disk of 1000 bytes: it must be a multiple of the block size, 512, and not empty"),
        ("1048576T", "--size: there is no memory for a disk of 1152921504606846976 bytes: "),
    ] {
        let place = Place::new();
        let arguments = ["--engine=ram".to_owned(), format!("--size={size}")];
        let socket = place.at("s");
        let (code, _, log) = output_of(sluice().arg(option("socket-path", &socket)).args(arguments));
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(words) && !socket.exists(), "{log}");
    }
}

#[test]
fn a_stale_socket_is_replaced() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let mut killed = serve(&socket, &disk, &[]);
    FrontEnd::connect(&socket).features();
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(socket.exists(), "a killed daemon leaves its socket");
    let daemon = serve(&socket, &disk, &[]);
    FrontEnd::connect(&socket).features();
    daemon.end();
}

#[test]
fn a_live_socket_is_refused_and_goes_on_living() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let first = serve(&socket, &disk, &[]);
    let mut front_end = FrontEnd::connect(&socket);
    front_end.features();
    let inode = socket.metadata().unwrap().ino();
    let mut second = serve(&socket, &place.disk("other"), &[]);
    let expected = format!(
        "error: --socket-path={}: another process serves this socket: stop it, or use another path\n",
        socket.display()
    );
    assert_eq!(second.wait(), (Some(1), expected));
    assert_eq!(socket.metadata().unwrap().ino(), inode);
    front_end.features();
    first.end();
}

#[test]
fn of_daemons_started_at_once_on_one_socket_one_serves() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    drop(UnixListener::bind(&socket).unwrap());
    let mut daemons: Vec<_> = (0..4).map(|_| serve(&socket, &disk, &["--read-only"])).collect();
    FrontEnd::connect(&socket).features();
    let losers = eventually("three daemons that gave up", || {
        let losers: Vec<_> = daemons
            .iter_mut()
            .enumerate()
            .filter_map(|(index, daemon)| daemon.has_ended().then_some(index))
            .collect();
        (losers.len() == 3).then_some(losers)
    });
    for (index, mut daemon) in daemons.into_iter().enumerate() {
        if losers.contains(&index) {
            assert_eq!(daemon.wait().0, Some(1));
        } else {
            FrontEnd::connect(&socket).features();
            daemon.end();
        }
    }
}

#[test]
fn what_is_no_disk_or_no_place_for_a_socket_is_an_error_before_anything_is_touched() {
    let place = Place::new();
    let disk = place.disk("d");
    std::fs::write(place.at("file"), "precious").unwrap();
    File::create(place.at("empty")).unwrap();
    let socket_errors = [
        (
            place.at("no/s"),
            format!("the directory {} does not exist: create it first", place.at("no").display()),
        ),
        (
            place.at("file"),
            "is a file, not a socket, and is left alone: remove it, or use another path".into(),
        ),
        (place.at(&"x".repeat(107)), "a socket's path can have 107: use a shorter one".into()),
    ];
    for (socket, words) in socket_errors {
        let (code, _, stderr) =
            output_of(sluice().args([option("socket-path", &socket), option("blk-file", &disk)]));
        assert_eq!(code, Some(1));
        let start = format!("error: --socket-path={}: ", socket.display());
        assert!(stderr.starts_with(&start) && stderr.trim_end().ends_with(&words), "{stderr}");
    }
    assert_eq!(std::fs::read_to_string(place.at("file")).unwrap(), "precious");
    for file in [place.at("missing"), place.at("empty"), place.path().into(), "/dev/null".into()] {
        let (code, _, stderr) =
            output_of(sluice().args([option("socket-path", &place.at("s")), option("blk-file", &file)]));
        assert_eq!(code, Some(1));
        assert!(stderr.starts_with("error: --blk-file: "), "{stderr}");
        assert!(stderr.contains(&file.display().to_string()), "{stderr}");
        assert!(!place.at("s").exists());
    }
}

#[test]
fn a_socket_file_that_is_no_longer_ours_stays_at_the_end() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let daemon = serve(&socket, &disk, &[]);
    FrontEnd::connect(&socket).features();
    std::fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    daemon.end();
    assert!(socket.symlink_metadata().unwrap().file_type().is_socket());
}

#[test]
fn in_the_journal_a_line_starts_with_its_priority() {
    let place = Place::new();
    let (socket, disk, log) = (place.at("s"), place.disk("d"), place.at("log"));
    let file = File::create(&log).unwrap();
    let stream = file.metadata().map(|metadata| format!("{}:{}", metadata.dev(), metadata.ino())).unwrap();
    let mut command = sluice();
    command.args([option("socket-path", &socket), option("blk-file", &disk)]).env("JOURNAL_STREAM", stream);
    let daemon = Running::start_with_log(&mut command, Stdio::from(file));
    FrontEnd::connect(&socket).features();
    daemon.end();
    let words = std::fs::read_to_string(&log).unwrap();
    assert!(!words.is_empty());
    assert!(words.lines().all(|line| line.starts_with("<6>")), "{words}");
}

/// The CPUs that each worker of a process may run on, as /proc has them, in the order of their names.
fn workers_of(process: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let mut workers: Vec<_> = tasks
        .filter_map(|task| {
            let status = std::fs::read_to_string(task.expect("a thread").path().join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let name = field("Name:").filter(|name| name.starts_with("worker-"))?;
            Some((name.to_owned(), field("Cpus_allowed_list:")?.to_owned()))
        })
        .collect();
    workers.sort_unstable();
    workers.into_iter().map(|(_, cpus)| cpus).collect()
}

#[test]
fn there_are_as_many_workers_as_is_said_and_they_stay_where_they_are_to() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let daemon = serve(&socket, &disk, &["--num-queues=1", "--workers=3", "--worker-cpus=0"]);
    // Who is answered finds all threads there.
    FrontEnd::connect(&socket).features();
    assert_eq!(workers_of(daemon.id()), ["0", "0", "0"]);
    daemon.end();
    let daemon = serve(&socket, &disk, &["--num-queues=1"]);
    FrontEnd::connect(&socket).features();
    assert_eq!(workers_of(daemon.id()).len(), 1, "one queue is nothing for two");
    daemon.end();
    let (code, _, words) = output_of(sluice().args([
        option("socket-path", &socket),
        option("blk-file", &disk),
        "--worker-cpus=1023".to_owned(),
    ]));
    assert_eq!(code, Some(1));
    assert!(words.contains("CPU 1023"), "{words}");
}

#[test]
fn the_log_says_who_connects() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let daemon = serve(&socket, &disk, &[]);
    let mut served = FrontEnd::connect(&socket);
    served.features();
    // Refused, in the same words.
    let mut refused = UnixStream::connect(&socket).unwrap();
    assert_eq!(refused.read(&mut [0]).unwrap(), 0, "it is closed");
    let words = daemon.end();
    let me = place.path().metadata().unwrap();
    let who = format!("process {}, user {}, group {}", std::process::id(), me.uid(), me.gid());
    assert!(words.contains(&format!("a front-end has connected: {who}\n")), "{words}");
    assert!(words.contains(&format!("a second front-end was refused, one is connected: {who}\n")), "{words}");
}

#[test]
fn a_socket_has_the_mode_and_the_group_that_are_asked_for() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let me = place.path().metadata().unwrap();
    let gid = if me.uid() == 0 { 1234 } else { me.gid() };
    let daemon = serve(&socket, &disk, &["--socket-mode=0660", &format!("--socket-group={gid}")]);
    FrontEnd::connect(&socket).features();
    let metadata = socket.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o660, me.uid(), gid));
    daemon.end();
}
