//! Sockets that are free, stale and live, and everything else that can stand at a path.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Barrier;

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn error_at(path: &Path) -> String {
    let checked = check(path).expect_err("no socket can be made here").to_string();
    assert_eq!(listen_at(path).expect_err("no socket can be made here").to_string(), checked);
    checked
}

#[test]
fn a_socket_that_is_made_takes_connections_from_its_owner_only_and_goes_with_its_file() {
    let directory = directory();
    let path = directory.path().join("s");
    check(&path).unwrap();
    assert!(!path.exists(), "a check makes nothing");
    let (listener, file) = listen_at(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    let client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    drop(client);
    drop(file);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = directory();
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let stale = identity(&path).unwrap();
    check(&path).unwrap();
    assert_eq!(identity(&path).unwrap(), stale, "a check replaces nothing");
    let (listener, _file) = listen_at(&path).unwrap();
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
    listen(&socket, 0).unwrap();
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
    let error = listen_at(Path::new("/proc/self/s")).unwrap_err().to_string();
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
                listen_at(&path)
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
    let (_listener, file) = listen_at(&path).unwrap();
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
