//! Configuration files that are right, and the exact words about those that are wrong.

use super::*;
use crate::disk_args::parse_disk_option;
use crate::plan::Plan;

fn errors_of(text: &str) -> Vec<String> {
    parse(Path::new("d.toml"), text).expect_err("the file is wrong").0
}

#[test]
fn every_option_means_what_it_means_in_a_disk_option() {
    let text = r#"
        # The first disk.
        [[disk]]
        socket-path = "/run/a.sock"
        socket-group = 107
        socket-mode = "0660"
        blk-file = '/srv/a.img'
        read-only = true
        cache = "directsync"
        num-queues = 4
        queue-size = 0x400
        serial = "root disk"
        logical-block-size = 4_096
        discard = "ignore"
        discard-granularity = "32K"
        write-zeroes = false
        in-order = true
        on-enospc = "stop"
        io-timeout = 2.5
        memory-budget = 67_108_864
        engine = "sync"

        [[disk]]
        fd = 3
        blk-file = "/srv/b.img"
        read-only = false

        [[disk]]
        fd = 4
        engine = "ram"
        size = "1G"
    "#;
    let disks = parse(Path::new("d.toml"), text).unwrap().disks;
    let specs: Vec<_> = disks.into_iter().map(|(spec, _)| spec).collect();
    assert_eq!(
        specs,
        [
            parse_disk_option(
                "socket-path=/run/a.sock,socket-group=107,socket-mode=0660,blk-file=/srv/a.img,read-only,cache=directsync,num-queues=4,\
                 queue-size=1024,serial=root disk,logical-block-size=4096,discard=ignore,\
                 discard-granularity=32K,write-zeroes=off,in-order,on-enospc=stop,io-timeout=2.5,memory-budget=64M,engine=sync"
            )
            .unwrap(),
            parse_disk_option("fd=3,blk-file=/srv/b.img").unwrap(),
            parse_disk_option("fd=4,engine=ram,size=1G").unwrap(),
        ]
    );
}

#[test]
fn every_error_of_a_file_is_reported_with_its_line_and_key() {
    let text = "title = \"disks\"\n\
                [[disk]]\n\
                socket-path = 7\n\
                blk-file = \"\"\n\
                read-only = \"yes\"\n\
                num-queues = \"4\"\n\
                queue-size = 300\n\
                \n\
                [[disk]]\n\
                sockt-path = \"/run/b.sock\"\n\
                color = \"blue\"\n\
                io-timeout = \"30\"\n\
                logical-block-size = 99999999999999999999\n";
    assert_eq!(
        errors_of(text),
        [
            "d.toml:1: title: is unknown here; memory-budget, workers, worker-cpus, poll-max-us, sandbox, user and group are for all disks, all else \
             belongs below a line [[disk]]",
            "d.toml:3: disk #1: socket-path = 7: must be a text in quotes",
            "d.toml:4: disk #1: blk-file = \"\": must be a path, and is empty",
            "d.toml:5: disk #1: read-only = \"yes\": must be true or false",
            "d.toml:6: disk #1: num-queues = \"4\": must be a number, without quotes",
            "d.toml:7: disk #1: queue-size = 300: must be a power of two from 2 to 1024",
            "d.toml:10: disk #2: sockt-path = \"/run/b.sock\": there is no such option; did you mean socket-path?",
            "d.toml:11: disk #2: color = \"blue\": there is no such option; a disk has socket-path, socket-group, socket-mode, fd, blk-file, \
             read-only, cache, num-queues, queue-size, serial, logical-block-size, discard, discard-granularity, \
             discard-alignment, write-zeroes, lock, in-order, on-enospc, io-timeout, memory-budget, engine, size",
            "d.toml:12: disk #2: io-timeout = \"30\": must be a number of seconds, without quotes",
            "d.toml:13: disk #2: logical-block-size = 99999999999999999999: must be 512 or 4096",
        ]
    );
}

#[test]
fn a_name_with_one_wrong_letter_is_recognised() {
    for (written, meant) in [
        ("num_queues", "num-queues"),
        ("Cache", "cache"),
        ("serail", "a disk has"),
        ("blkfile", "blk-file"),
        ("queuesize", "queue-size"),
        ("engin", "engine"),
        ("readonly", "read-only"),
    ] {
        let errors = errors_of(&format!("[[disk]]\n{written} = 1\n"));
        assert!(errors[0].contains(meant), "{errors:?}");
    }
}

#[test]
fn an_error_of_the_syntax_names_its_line() {
    let errors = errors_of("[[disk]]\nblk-file = \"/f\nfd = 3\n");
    assert!(errors[0].starts_with("d.toml:2: "), "{errors:?}");
    let twice = errors_of("[[disk]]\nfd = 3\nfd = 4\n");
    assert!(twice[0].starts_with("d.toml:3: "), "{twice:?}");
}

#[test]
fn disks_must_be_an_array_of_tables() {
    assert_eq!(errors_of("disk = 1"), ["d.toml:1: disk: must be tables, each led by a line [[disk]]"]);
    assert_eq!(errors_of("\ndisk = [1]"), ["d.toml:2: disk: must be tables, each led by a line [[disk]]"]);
    assert_eq!(errors_of("[disk]\nfd = 3"), ["d.toml:1: disk: must be tables, each led by a line [[disk]]"]);
}

#[test]
fn an_empty_file_describes_no_disk() {
    assert_eq!(errors_of(""), ["d.toml:1: no disk is described: add a line [[disk]] and options below it"]);
}

#[test]
fn errors_about_two_disks_name_the_lines_of_both() {
    let text = "[[disk]]\nfd = 3\nblk-file = \"/nowhere/f\"\n\n[[disk]]\nblk-file = \"/nowhere/g\"\nfd = 3\n\n[[disk]]\n";
    let disks = parse(Path::new("d.toml"), text).unwrap().disks;
    assert_eq!(
        Plan::new(disks, &[]).unwrap_err().0,
        [
            "d.toml:9: disk #3: socket-path is missing: give the path where front-ends connect, or an inherited \
             descriptor with fd",
            "d.toml:9: disk #3: blk-file is missing: give the raw file or block device to serve",
            "d.toml:7: disk #2: fd = 3: is the socket of d.toml:2: disk #1 too: each disk needs its own",
        ]
    );
}

#[test]
fn the_budget_of_all_disks_stands_beside_them() {
    let text = "memory-budget = \"1G\"\n[[disk]]\nfd = 3\nblk-file = \"/f\"\n";
    assert_eq!(parse(Path::new("d.toml"), text).unwrap().memory_budget, Some(1 << 30));
    assert_eq!(
        errors_of("memory-budget = \"much\"\n[[disk]]\n")[0],
        "d.toml:1: memory-budget: must be a size such as 4096, 64K, 16M or 1G"
    );
}

#[test]
fn the_threads_for_all_disks_stand_beside_them() {
    let disk = "[[disk]]\nfd = 3\nblk-file = \"/f\"\n";
    let text = format!("workers = 3\nworker-cpus = \"0-1,7\"\npoll-max-us = 0\n{disk}");
    let expected =
        WorkerArgs { workers: Some(3), worker_cpus: Some("0-1,7".parse().unwrap()), poll_max_us: Some(0) };
    assert_eq!(parse(Path::new("d.toml"), &text).unwrap().workers, expected);
    let text = format!("workers = 0\nworker-cpus = 1\npoll-max-us = \"50\"\n{disk}");
    assert_eq!(
        errors_of(&text),
        [
            "d.toml:1: workers: must be 1 to 1024",
            "d.toml:2: worker-cpus: must be a text in quotes",
            "d.toml:3: poll-max-us: must be a number, without quotes",
        ]
    );
}
