//! Sockets that somebody else has opened: `--fd`, and socket activation.
//!
//! A test can hand a descriptor over as standard input without unsafe code, so `--fd=0` it is.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use crate::fixture::{FrontEnd, Place, Running, option, output_of, sluice};

#[test]
fn an_inherited_listening_socket_is_served_and_its_file_stays() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = sluice();
    command.args(["--fd=0", &option("blk-file", &disk)]).stdin(Stdio::from(OwnedFd::from(listener)));
    let daemon = Running::start(&mut command);
    for _ in 0..3 {
        FrontEnd::connect(&socket).features();
    }
    daemon.end();
    assert!(socket.exists(), "who made the socket removes it");
}

#[test]
fn with_an_inherited_connection_the_daemon_ends_when_the_front_end_leaves() {
    let place = Place::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = sluice();
    command
        .args(["--fd", "0", &option("blk-file", &place.disk("d"))])
        .stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut daemon = Running::start(&mut command);
    // The command holds the other end open, too.
    drop(command);
    let mut front_end = FrontEnd::on(ours);
    front_end.features();
    drop(front_end);
    let (code, words) = daemon.wait();
    assert_eq!(code, Some(0), "{words}");
}

#[test]
fn sockets_of_systemd_go_to_disks_without_a_socket() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$1""#)
        .args([env!("CARGO_BIN_EXE_sluice"), &option("blk-file", &disk)])
        .stdin(Stdio::from(OwnedFd::from(listener)));
    let daemon = Running::start(&mut command);
    FrontEnd::connect(&socket).features();
    daemon.end();
}

#[test]
fn a_descriptor_that_is_no_use_is_an_error_that_says_why() {
    let place = Place::new();
    let disk = option("blk-file", &place.disk("d"));
    let (code, _, words) = output_of(sluice().args(["--fd=77", &disk]));
    assert_eq!(code, Some(1));
    assert_eq!(
        words,
        "error: --fd=77: is not an open descriptor: whoever starts sluice must open it and let it be inherited\n"
    );
    let file = File::open(place.at("d")).unwrap();
    let (code, _, words) = output_of(sluice().args(["--fd=0", &disk]).stdin(Stdio::from(file)));
    assert_eq!(code, Some(1));
    assert_eq!(words, "error: --fd=0: is not a socket: pass a listening or connected Unix stream socket\n");
}
