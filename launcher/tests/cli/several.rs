//! `sluice serve`: several disks in one process, all or none.

use crate::fixture::{FrontEnd, Place, Running, option, output_of, sluice};

#[test]
fn disks_of_the_command_line_and_of_a_file_are_served_side_by_side() {
    let place = Place::new();
    let config = place.at("d.toml");
    let table = |socket: &str, disk: &str, queues: u32| {
        format!(
            "[[disk]]\nsocket-path = \"{}\"\nblk-file = \"{}\"\nnum-queues = {queues}\n",
            place.at(socket).display(),
            place.disk(disk).display()
        )
    };
    std::fs::write(&config, table("s1", "d1", 1) + &table("s2", "d2", 2)).unwrap();
    let third = format!(
        "--disk=socket-path={},blk-file={},num-queues=3",
        place.at("s3").display(),
        place.disk("d3").display()
    );
    let daemon = Running::start(sluice().args(["serve", &option("config", &config), &third]));
    let mut front_ends = ["s1", "s2", "s3"].map(|socket| FrontEnd::connect(&place.at(socket)));
    assert_eq!(front_ends.each_mut().map(FrontEnd::queues), [1, 2, 3]);
    daemon.end();
    for socket in ["s1", "s2", "s3"] {
        assert!(!place.at(socket).exists());
    }
}

#[test]
fn one_disk_that_cannot_be_served_and_none_is() {
    let place = Place::new();
    place.disk("d1");
    place.disk("d4");
    let disk = |socket: &str, file: &str| {
        format!("--disk=socket-path={},blk-file={}", place.at(socket).display(), place.at(file).display())
    };
    let arguments = [disk("s1", "d1"), disk("s2", "missing"), disk("s3", "gone"), disk("no/s4", "d4")];
    let (code, _, words) = output_of(sluice().arg("serve").args(&arguments));
    assert_eq!(code, Some(1));
    let starts =
        ["error: --disk #2: blk-file: ", "error: --disk #3: blk-file: ", "error: --disk #4: socket-path="];
    let lines: Vec<_> = words.lines().collect();
    assert_eq!(lines.len(), starts.len(), "{words}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{words}");
    }
    assert!(!place.at("s1").exists());
}

#[test]
fn a_file_that_two_disks_would_write_is_refused() {
    let place = Place::new();
    let disk = place.disk("d");
    let arguments = ["s1", "s2"].map(|socket| {
        format!("--disk=socket-path={},blk-file={}", place.at(socket).display(), disk.display())
    });
    let (code, _, words) = output_of(sluice().arg("serve").args(&arguments));
    assert_eq!(code, Some(2));
    assert!(words.contains("is the file of --disk #1 too"), "{words}");
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_an_error_that_names_it() {
    let (code, _, words) = output_of(sluice().args(["serve", "--config=/no/d.toml"]));
    assert_eq!(code, Some(1));
    assert_eq!(words, "error: --config=/no/d.toml: No such file or directory (os error 2)\n");
}
