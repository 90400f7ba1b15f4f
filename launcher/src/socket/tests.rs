//! Sockets that are free, stale and live, and everything else that can stand at a path.

use std::collections::BTreeSet;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    listen_at(path, &SocketAccess::default())
}

fn error_at(path: &Path) -> String {
    let checked = check(path).expect_err("no socket can be made here").to_string();
    assert_eq!(listen(path).expect_err("no socket can be made here").to_string(), checked);
    checked
}

#[test]
fn a_socket_that_is_made_takes_connections_from_its_owner_only_and_goes_with_its_file() {
    let directory = directory();
    let path = directory.path().join("s");
    check(&path).unwrap();
    assert!(!path.exists(), "a check makes nothing");
    let (listener, file) = listen(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    drop(client);
    drop(file);
    assert!(!path.exists());
}

/// Mode, owner and group of a file, if there is one.
fn looks(path: &Path) -> Option<(u32, u32, u32)> {
    let metadata = path.symlink_metadata().ok()?;
    Some((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
}

#[test]
fn whoever_looks_sees_no_other_mode_or_owner_than_the_last_and_can_connect() {
    let directory = directory();
    let me = directory.path().metadata().unwrap();
    // Only root can give files away.
    let (uid, gid) = if me.uid() == 0 { (4321, 1234) } else { (me.uid(), me.gid()) };
    let access = SocketAccess { mode: "0660".parse().unwrap(), uid: Some(uid), gid: Some(gid) };
    const ROUNDS: usize = 200;
    let paths: Vec<_> = (0..ROUNDS).map(|round| directory.path().join(format!("s{round}"))).collect();
    let (round, done) = (Barrier::new(2), AtomicBool::new(false));
    let mut seen = BTreeSet::new();
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            let make = |path: &PathBuf| {
                round.wait();
                listen_at(path, &access).unwrap()
            };
            paths.iter().map(make).collect::<Vec<_>>()
        });
        let other_looker = scope.spawn(|| {
            let mut modes = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                modes.extend(modes_of_directories_in(directory.path()));
            }
            assert!(
                modes.is_subset(&BTreeSet::from([0o700])),
                "others can go to where sockets are made: {modes:?}"
            );
        });
        for path in &paths {
            round.wait();
            let first = loop {
                if let Some(looks) = looks(path) {
                    break looks;
                }
            };
            seen.insert((first, UnixStream::connect(path).is_ok()));
            seen.insert((looks(path).unwrap(), true));
        }
        drop(maker.join().unwrap());
        done.store(true, Ordering::Relaxed);
        other_looker.join().unwrap();
    });
    assert_eq!(seen, BTreeSet::from([((0o660, uid, gid), true)]));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
}

fn modes_of_directories_in(directory: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(directory).unwrap();
    let metadata = entries.filter_map(|entry| entry.ok()?.metadata().ok());
    metadata.filter(std::fs::Metadata::is_dir).map(|metadata| metadata.mode() & 0o7777).collect()
}

#[test]
fn the_umask_changes_nothing() {
    let directory = directory();
    for (mode, bits) in [("0666", 0o666), ("0777", 0o777), ("0000", 0)] {
        let path = directory.path().join(mode);
        let access = SocketAccess { mode: mode.parse().unwrap(), ..SocketAccess::default() };
        let _socket = listen_at(&path, &access).unwrap();
        assert_eq!(looks(&path).unwrap().0, bits, "the usual umask takes 0022 away");
    }
}

#[test]
fn a_path_just_short_enough_needs_no_shorter_one() {
    let directory = directory();
    let length = PATH_BYTES_MAX - directory.path().as_os_str().len() - 1;
    let path = directory.path().join("x".repeat(length));
    let (_listener, _file) = listen(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_socket_that_somebody_else_named_meanwhile_is_left_alone() {
    let directory = directory();
    let (path, unseen) = (directory.path().join("s"), directory.path().join("unseen"));
    let theirs = UnixListener::bind(&path).unwrap();
    let _ours = UnixListener::bind(&unseen).unwrap();
    assert!(matches!(name_socket(&unseen, &path), Err(SocketError::Live)));
    UnixStream::connect(&path).unwrap();
    theirs.accept().unwrap();
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = directory();
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let stale = identity(&path).unwrap();
    check(&path).unwrap();
    assert_eq!(identity(&path).unwrap(), stale, "a check replaces nothing");
    let (listener, _file) = listen(&path).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_live_socket_is_left_alone_and_never_sees_the_probe() {
    let directory = directory();
    let path = directory.path().join("s");
    let live = UnixListener::bind(&path).unwrap();
    assert_eq!(error_at(&path), "another process serves this socket: stop it, or use another path");
    live.set_nonblocking(true).unwrap();
    assert_eq!(live.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_socket_that_is_bound_and_not_yet_listening_is_live() {
    let directory = directory();
    let path = directory.path().join("s");
    let socket = stream_socket(SocketType::STREAM).unwrap();
    bind(&socket, &address(&path).unwrap()).unwrap();
    assert!(matches!(check(&path), Err(SocketError::Live)));
}

#[test]
fn a_live_socket_with_a_full_backlog_is_live_at_once() {
    let directory = directory();
    let path = directory.path().join("s");
    let socket = stream_socket(SocketType::STREAM).unwrap();
    bind(&socket, &address(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    assert!(matches!(check(&path), Err(SocketError::Live)));
}

#[test]
fn a_live_datagram_socket_is_live() {
    let directory = directory();
    let path = directory.path().join("s");
    let _live = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(check(&path), Err(SocketError::Live)));
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("file"), "precious").unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    drop(UnixListener::bind(at("stale")).unwrap());
    std::os::unix::fs::symlink(at("stale"), at("link")).unwrap();
    let words = "not a socket, and is left alone: remove it, or use another path";
    assert_eq!(error_at(&at("file")), format!("is a file, {words}"));
    assert_eq!(error_at(&at("directory")), format!("is a directory, {words}"));
    assert_eq!(error_at(&at("link")), format!("is a symbolic link, {words}"));
    assert_eq!(error_at(Path::new("/dev/null")), format!("is a device or a pipe, {words}"));
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "precious");
    assert!(at("stale").exists());
}

#[test]
fn a_path_where_no_socket_can_be_says_why() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("file"), "").unwrap();
    let missing = format!("the directory {} does not exist: create it first", at("no").display());
    assert_eq!(error_at(&at("no/s")), missing);
    assert_eq!(error_at(&at("file/s")), format!("{} is not a directory", at("file").display()));
    let long = PathBuf::from(format!("/{}", "x".repeat(107)));
    assert_eq!(error_at(&long), "is 108 bytes long, a socket's path can have 107: use a shorter one");
    assert_eq!(error_at(Path::new("/")), "ends in no file name: name the socket, too");
    assert_eq!(error_at(Path::new("/tmp/..")), "ends in no file name: name the socket, too");
    // The last bytes that fit do fit.
    check(&PathBuf::from(format!("/tmp/{}", "x".repeat(102)))).unwrap();
}

#[test]
fn a_directory_that_takes_no_files_is_an_error() {
    // Nobody, not even root, makes files there.
    let error = listen(Path::new("/proc/self/s")).unwrap_err().to_string();
    assert!(error.starts_with("cannot ") || error.starts_with("the directory"), "{error}");
}

#[test]
fn of_daemons_that_start_at_once_on_a_stale_socket_exactly_one_wins() {
    let directory = directory();
    let path = directory.path().join("s");
    for _ in 0..50 {
        drop(UnixListener::bind(&path).unwrap());
        let start = Barrier::new(4);
        let results: Vec<_> = std::thread::scope(|scope| {
            let one = || {
                start.wait();
                listen(&path)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (winners, losers): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(winners.len(), 1);
        assert!(losers.iter().all(|loser| matches!(loser, Err(SocketError::Live))), "{losers:?}");
        let (listener, file) = winners.into_iter().next().unwrap().unwrap();
        let _client = UnixStream::connect(&path).expect("the winner's socket is the one at the path");
        listener.accept().unwrap();
        drop(file);
    }
}

#[test]
fn a_file_that_somebody_put_in_the_place_of_ours_stays() {
    let directory = directory();
    let path = directory.path().join("s");
    let (_listener, file) = listen(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(file);
    assert!(path.exists());
}

#[test]
fn a_directory_that_stays_locked_is_an_error_that_names_it() {
    let directory = directory();
    let _lock = lock_directory(directory.path(), Duration::ZERO).unwrap();
    let error = lock_directory(directory.path(), Duration::from_millis(30)).unwrap_err().to_string();
    let expected = format!(
        "the directory {} is kept locked by another process: see `lslocks`",
        directory.path().display()
    );
    assert_eq!(error, expected);
}
