//! The sandbox of the daemon, as anybody can see it from outside, and how it is switched off.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crate::fixture::{FrontEnd, Place, Running, option, output_of, sluice};

/// A field of all threads of a process, as /proc has it.
fn field_of_threads(process: u32, name: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let field = |task: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(task.expect("a thread").path().join("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    tasks.filter_map(field).collect()
}

fn assert_all(process: u32, name: &str, expected: &str) {
    let found = field_of_threads(process, name);
    assert!(found.len() >= 4, "main, signals, control and a worker: {found:?}");
    assert!(found.iter().all(|value| value == expected), "{name} {found:?}, not {expected}");
}

fn is_root(place: &Place) -> bool {
    place.path().metadata().expect("a directory").uid() == 0
}

#[test]
fn every_thread_of_the_daemon_is_confined() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let daemon = Running::start(sluice().args([option("socket-path", &socket), option("blk-file", &disk)]));
    FrontEnd::connect(&socket).features();
    // A filter for what is answered, one for all else.
    for (name, value) in [("Seccomp:", "2"), ("Seccomp_filters:", "2"), ("NoNewPrivs:", "1")] {
        assert_all(daemon.id(), name, value);
    }
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_all(daemon.id(), set, "0000000000000000");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.id())).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let files = limit("Max open files");
    assert_eq!(files[0], files[1], "it cannot be raised again");
    let words = daemon.end();
    assert!(words.contains("in a sandbox: no privileges, "), "{words}");
    assert!(!socket.exists(), "it may remove its socket");
}

#[test]
fn without_a_sandbox_nothing_is_given_up() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let config = place.at("d.toml");
    let table = format!("[[disk]]\nsocket-path = {socket:?}\nblk-file = {disk:?}\n");
    std::fs::write(&config, format!("sandbox = \"none\"\n{table}")).unwrap();
    let start = |arguments: &[String]| {
        let daemon = Running::start(sluice().args(arguments));
        FrontEnd::connect(&socket).features();
        daemon
    };
    let options = [option("socket-path", &socket), option("blk-file", &disk), "--sandbox=none".into()];
    for arguments in [&options[..], &["serve".into(), option("config", &config)]] {
        let daemon = start(arguments);
        assert_all(daemon.id(), "Seccomp:", "0");
        assert_all(daemon.id(), "NoNewPrivs:", "0");
        assert!(daemon.end().contains("no sandbox"));
    }
    let daemon = start(&["serve".into(), option("config", &config), "--sandbox=on".into()]);
    assert_all(daemon.id(), "Seccomp:", "2");
    daemon.end();
}

#[test]
fn the_daemon_becomes_another_user_who_owns_the_sockets_and_can_remove_them() {
    let place = Place::new();
    if !is_root(&place) {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let (socket, disk) = (place.at("sockets/s"), place.disk("d"));
    std::fs::create_dir(place.at("sockets")).unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    chown(place.at("sockets"), Some(4321), None).unwrap();
    for sandbox in ["--sandbox=on", "--sandbox=none"] {
        let mut command = sluice();
        command.args([option("socket-path", &socket), option("blk-file", &disk), sandbox.into()]);
        let daemon = Running::start(command.args(["--user=4321", "--group=1234", "--socket-group=77"]));
        FrontEnd::connect(&socket).features();
        assert_all(daemon.id(), "Uid:", "4321 4321 4321 4321");
        assert_all(daemon.id(), "Gid:", "1234 1234 1234 1234");
        assert_all(daemon.id(), "Groups:", "");
        let metadata = socket.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (4321, 77));
        let words = daemon.end();
        assert!(!socket.exists(), "{words}");
    }
}

#[test]
fn a_user_without_a_group_is_wrong_usage_and_an_unknown_one_too() {
    let place = Place::new();
    let (socket, disk) = (place.at("s"), place.disk("d"));
    let words = |user: &str| {
        let options = [option("socket-path", &socket), option("blk-file", &disk), format!("--user={user}")];
        let (code, _, words) = output_of(sluice().args(options));
        assert_eq!(code, Some(2), "{words}");
        assert!(!socket.exists());
        words
    };
    assert!(words("4000000123").contains("user 4000000123 belongs to nobody here"));
    assert!(words("no such user").contains("there is no user of this name"));
}
