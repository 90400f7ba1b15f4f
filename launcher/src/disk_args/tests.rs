//! One disk's options: each value that is possible, each that is not, and the words about it.

use clap::{Args, Command, FromArgMatches};
use sluice_blk::disk::EngineKind;

use super::key::KEYS;
use super::*;

fn parse_arguments(arguments: &[&str]) -> Result<DiskSpec, clap::Error> {
    let command = DiskSpec::augment_args(Command::new("test").no_binary_name(true));
    DiskSpec::from_arg_matches(&command.try_get_matches_from(arguments)?)
}

fn every_option() -> DiskSpec {
    DiskSpec {
        socket: SocketArgs {
            socket_path: Some("/run/a.sock".into()),
            socket_group: Some(Group { gid: 107 }),
            socket_mode: Some("0660".parse().unwrap()),
            fd: None,
        },
        disk: DiskArgs {
            blk_file: Some("/srv/a.img".into()),
            read_only: true,
            cache: Some(Cache::Directsync),
            num_queues: Some(4),
            queue_size: Some(1024),
            serial: Some("root disk".into()),
            logical_block_size: Some(4096),
            discard: Some(Discard::Ignore),
            discard_granularity: Some(32768),
            discard_alignment: Some(8192),
            write_zeroes: Some(false),
            lock: Some(Locking::Shared),
            in_order: true,
            on_enospc: Some(OnEnospc::Stop),
            io_timeout: Some(Duration::from_millis(2500)),
            memory_budget: Some(64 << 20),
            engine: Some(EngineName::File(EngineKind::Sync)),
            size: Some(1 << 30),
        },
    }
}

#[test]
fn the_command_line_and_the_table_know_the_same_options() {
    let command = DiskSpec::augment_args(Command::new("test"));
    let of_command: Vec<_> = command.get_arguments().filter_map(|argument| argument.get_long()).collect();
    let of_table: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(of_command, of_table);
}

#[test]
fn every_option_is_read_alike_with_an_equals_sign_with_a_space_and_in_a_disk_option() {
    let with_equals = [
        "--socket-path=/run/a.sock",
        "--socket-group=107",
        "--socket-mode=0660",
        "--blk-file=/srv/a.img",
        "--read-only",
        "--cache=directsync",
        "--num-queues=4",
        "--queue-size=1024",
        "--serial=root disk",
        "--logical-block-size=4096",
        "--discard=ignore",
        "--discard-granularity=32K",
        "--discard-alignment=8192",
        "--write-zeroes=off",
        "--lock=shared",
        "--in-order",
        "--on-enospc=stop",
        "--io-timeout=2.5",
        "--memory-budget=64M",
        "--engine=sync",
        "--size=1G",
    ];
    assert_eq!(parse_arguments(&with_equals).unwrap(), every_option());
    let with_spaces: Vec<&str> = with_equals.iter().flat_map(|argument| argument.split('=')).collect();
    assert_eq!(parse_arguments(&with_spaces).unwrap(), every_option());
    let disk_option = with_equals.map(|argument| &argument[2..]).join(",");
    assert_eq!(parse_disk_option(&disk_option), Ok(every_option()));
}

#[test]
fn the_settings_of_a_disk_describe_it_again() {
    let spec = every_option();
    let text: Vec<_> = spec.disk.settings().iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(parse_disk_option(&text.join(",")).unwrap().disk, spec.disk);
    assert_eq!(DiskArgs::default().settings(), []);
}

#[test]
fn an_option_that_is_left_out_stays_open() {
    assert_eq!(parse_arguments(&[]).unwrap(), DiskSpec::default());
}

#[test]
fn read_only_can_be_switched_off_by_name() {
    assert!(!parse_arguments(&["--read-only=off"]).unwrap().disk.read_only);
    assert!(!parse_disk_option("read-only=off").unwrap().disk.read_only);
    assert!(parse_disk_option("read-only=true").unwrap().disk.read_only);
}

#[test]
fn two_commas_are_one_in_the_value() {
    let spec = parse_disk_option("blk-file=/srv/a,,b,,,serial=x,,").unwrap();
    assert_eq!(spec.disk.blk_file, Some("/srv/a,b,".into()));
    assert_eq!(spec.disk.serial.as_deref(), Some("x,"));
}

#[test]
fn a_comma_that_was_not_doubled_is_explained() {
    let errors = parse_disk_option("blk-file=/srv/a,b.img").unwrap_err();
    assert!(errors[0].starts_with("b.img: there is no such option"), "{errors:?}");
    assert!(errors[0].ends_with("(a comma inside a value is written twice)"), "{errors:?}");
}

#[test]
fn every_wrong_setting_of_a_disk_option_is_reported_with_what_to_do() {
    let text = "socket-path=,socket-group=no such,socket-mode=8,fd=x,read-only=maybe,cache=fast,num-queues=0,queue-size=3,\
                serial=123456789012345678901,logical-block-size=1024,engine=aio,lock=on,on-enospc=ignore,io-timeout=0,sizes=x,size=0,colour=x,blk-file,num-queues=2,";
    let expected = [
        "socket-path=: must be a path, and is empty",
        "socket-group=no such: there is no group of this name",
        "socket-mode=8: must be permissions in octal, from 0000 to 0777, such as 0660",
        "fd=x: must be the number of an inherited descriptor, such as 3",
        "read-only=maybe: must be on or off",
        "cache=fast: must be one of none, writeback, writethrough, directsync, unsafe",
        "num-queues=0: must be a number from 1 to 256",
        "queue-size=3: must be a power of two from 2 to 1024",
        "serial=123456789012345678901: is 21 bytes long, at most 20 are possible",
        "logical-block-size=1024: must be 512 or 4096",
        "engine=aio: must be one of uring, sync, ram, null",
        "lock=on: must be one of exclusive, shared, off",
        "on-enospc=ignore: must be one of report, stop",
        "io-timeout=0: must be a number of seconds from 0.1 to 3600",
        "sizes=x: there is no such option; did you mean size?",
        "size=0: must be a size such as 4096, 64K, 16M or 1G",
        "colour=x: there is no such option; a disk has socket-path, socket-group, socket-mode, fd, blk-file, read-only, cache, num-queues, \
         queue-size, serial, logical-block-size, discard, discard-granularity, discard-alignment, write-zeroes, \
         lock, in-order, on-enospc, io-timeout, memory-budget, engine, size",
        "blk-file: has no value: write blk-file=VALUE",
        "num-queues=2: is given twice",
        "a setting is empty: there is a comma too many",
    ];
    assert_eq!(parse_disk_option(text).unwrap_err(), expected);
}

#[test]
fn a_wrong_value_on_the_command_line_names_the_option_the_value_and_what_to_do() {
    for (argument, words) in [
        ("--num-queues=257", "invalid value '257' for '--num-queues <N>': must be a number from 1 to 256"),
        (
            "--queue-size=2048",
            "invalid value '2048' for '--queue-size <N>': must be a power of two from 2 to 1024",
        ),
        (
            "--serial=",
            "invalid value '' for '--serial <TEXT>': is empty; leave the option out to have one derived",
        ),
        (
            "--fd=-1",
            "invalid value '-1' for '--fd <N>': must be the number of an inherited descriptor, such as 3",
        ),
        (
            "--cache=wb",
            "invalid value 'wb' for '--cache <MODE>': must be one of none, writeback, writethrough, directsync",
        ),
    ] {
        let error = parse_arguments(&[argument]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_socket_is_a_path_or_a_descriptor_but_not_both() {
    let error = parse_arguments(&["--socket-path=/a", "--fd=3"]).unwrap_err();
    assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
}

#[test]
fn the_edges_of_each_range_are_possible() {
    for text in ["num-queues=1", "num-queues=256", "queue-size=2", "queue-size=1024", "fd=0"] {
        assert!(parse_disk_option(text).is_ok(), "{text}");
    }
    for text in [
        "num-queues=65536",
        "num-queues=-1",
        "queue-size=0",
        "queue-size=1",
        "queue-size=65536",
        "serial=a\nb",
    ] {
        assert!(parse_disk_option(text).is_err(), "{text}");
    }
    assert!(parse_disk_option("serial=12345678901234567890").is_ok());
}

#[test]
fn sizes_have_units() {
    for (text, size) in [("4096", 4096), ("64K", 65536), ("16M", 16 << 20), ("1G", 1 << 30), ("2T", 2 << 40)]
    {
        assert_eq!(parse_size(text), Ok(size));
    }
    for text in ["", "0", "K", "1k", "-1", "1.5G", "99999999T"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn engines_are_called_as_they_call_themselves() {
    for name in ["uring", "sync", "ram", "null"] {
        assert_eq!(parse_engine(name).unwrap().to_string(), name);
    }
    assert_eq!(parse_engine("uring").unwrap(), EngineName::default());
}
