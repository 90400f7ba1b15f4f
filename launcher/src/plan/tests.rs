//! What makes a plan, what does not, and the words about it.

use super::*;
use crate::disk_args::parse_disk_option;

fn plan_of(options: &[&str], activated: &[RawFd]) -> Result<Plan, UsageError> {
    let described = |(index, text): (usize, &&str)| {
        (parse_disk_option(text).expect("the option is right"), Origin::DiskOption(index + 1))
    };
    Plan::new(options.iter().enumerate().map(described).collect(), activated)
}

fn errors_of(options: &[&str], activated: &[RawFd]) -> Vec<String> {
    plan_of(options, activated).expect_err("the plan is wrong").0
}

#[test]
fn disks_keep_their_order_sockets_files_and_options() {
    let plan =
        plan_of(&["socket-path=/a,blk-file=/f,num-queues=3", "fd=7,blk-file=/g,read-only"], &[]).unwrap();
    assert_eq!(plan.disks[0].endpoint, Endpoint::Path("/a".into()));
    assert_eq!(plan.disks[0].medium, Medium::File("/f".into()));
    assert_eq!(plan.disks[0].options.num_queues, Some(3));
    assert_eq!(plan.disks[1].endpoint, Endpoint::Inherited(7));
    assert!(plan.disks[1].options.read_only);
    assert_eq!(plan.disks.len(), 2);
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    assert_eq!(
        errors_of(&["blk-file=/f", "socket-path=/a", "socket-path=/b,fd=3,blk-file=/g"], &[]),
        [
            "--disk #1: socket-path is missing: give the path where front-ends connect, or an inherited descriptor \
             with fd",
            "--disk #2: blk-file is missing: give the raw file or block device to serve",
            "--disk #3: fd=3: cannot be used with socket-path: give one of them",
        ]
    );
}

#[test]
fn a_single_disk_on_the_command_line_misses_its_options_by_their_names() {
    let errors = Plan::new(vec![(DiskSpec::default(), Origin::Arguments)], &[]).unwrap_err().0;
    assert_eq!(
        errors,
        [
            "--socket-path is missing: give the path where front-ends connect, or an inherited descriptor with fd",
            "--blk-file is missing: give the raw file or block device to serve",
        ]
    );
}

#[test]
fn no_disk_is_no_plan() {
    assert_eq!(
        errors_of(&[], &[]),
        ["no disk is described: give --disk or a configuration file with [[disk]] tables"]
    );
}

#[test]
fn two_disks_on_one_socket_are_an_error_however_the_path_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let first = format!("socket-path={path}/s,blk-file=/f");
    let second =
        format!("socket-path={path}/../{}/./s,blk-file=/g", directory.path().file_name().unwrap().display());
    let errors = errors_of(&[&first, &second, "fd=3,blk-file=/h", "fd=3,blk-file=/i"], &[]);
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].starts_with("--disk #2: socket-path="), "{errors:?}");
    assert!(errors[0].ends_with(": is the socket of --disk #1 too: each disk needs its own"), "{errors:?}");
    assert_eq!(errors[1], "--disk #4: fd=3: is the socket of --disk #3 too: each disk needs its own");
}

#[test]
fn a_file_is_shared_only_by_disks_that_all_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    std::fs::write(&file, "x").unwrap();
    std::os::unix::fs::symlink(&file, directory.path().join("link")).unwrap();
    std::fs::hard_link(&file, directory.path().join("hard")).unwrap();
    let disk = |socket: &str, name: &str, more: &str| {
        format!("socket-path=/{socket},blk-file={}/{name}{more}", directory.path().display())
    };
    for name in ["f", "link", "hard"] {
        for more in ["", ",read-only"] {
            let errors = errors_of(&[&disk("a", "f", ""), &disk("b", name, more)], &[]);
            assert_eq!(errors.len(), 1, "{errors:?}");
            let words =
                "is the file of --disk #1 too: a file can be under two disks only when both are read-only";
            assert!(errors[0].ends_with(words), "{errors:?}");
        }
        assert!(plan_of(&[&disk("a", "f", ",read-only"), &disk("b", name, ",read-only")], &[]).is_ok());
    }
}

#[test]
fn descriptors_of_socket_activation_go_to_the_disks_without_a_socket_in_order() {
    let plan = plan_of(&["blk-file=/f", "socket-path=/s,blk-file=/g", "blk-file=/h"], &[3, 4]).unwrap();
    let endpoints: Vec<_> = plan.disks.into_iter().map(|disk| disk.endpoint).collect();
    assert_eq!(endpoints, [Endpoint::Inherited(3), Endpoint::Path("/s".into()), Endpoint::Inherited(4)]);
}

#[test]
fn socket_activation_must_pass_as_many_descriptors_as_disks_need() {
    assert_eq!(
        errors_of(&["blk-file=/f"], &[3, 4]),
        ["LISTEN_FDS passes 2 sockets, and 1 disks name no socket of their own: these numbers must be equal"]
    );
}

#[test]
fn descriptors_of_socket_activation_can_be_named_by_number() {
    let plan = plan_of(&["fd=4,blk-file=/f", "fd=3,blk-file=/g"], &[3, 4]).unwrap();
    assert_eq!(plan.disks[0].endpoint, Endpoint::Inherited(4));
}

#[test]
fn a_disk_has_a_file_or_a_size_as_its_engine_needs() {
    let options = ["socket-path=/a,engine=ram,size=1M", "socket-path=/b,engine=null,size=2M"];
    let disks = plan_of(&options, &[]).unwrap().disks;
    let media: Vec<_> = disks.into_iter().map(|disk| disk.medium).collect();
    assert_eq!(media, [Medium::Ram { bytes: 1 << 20 }, Medium::Null { bytes: 2 << 20 }]);
    let errors = errors_of(
        &[
            "fd=1,engine=ram",
            "fd=2,engine=null,blk-file=/f",
            "fd=3,engine=ram,blk-file=/f,size=1M",
            "fd=4,engine=sync,blk-file=/f,size=1M",
            "fd=5,size=1M",
            "fd=6,engine=uring",
        ],
        &[],
    );
    assert_eq!(
        errors,
        [
            "--disk #1: size is missing: engine=ram needs to know how large the disk is, such as 1G",
            "--disk #2: blk-file=/f: cannot be used with engine=null, which needs no file: give a size instead",
            "--disk #3: blk-file=/f: cannot be used with engine=ram, which needs no file: give a size instead",
            "--disk #4: size=1048576: is only for engine=ram and engine=null: a file has a size of its own",
            "--disk #5: size=1048576: is only for engine=ram and engine=null: a file has a size of its own",
            "--disk #6: blk-file is missing: give the raw file or block device to serve",
        ]
    );
}

#[test]
fn a_socket_that_is_made_has_its_mode_and_group_and_an_inherited_one_keeps_its_own() {
    let plan = plan_of(&["socket-path=/a,socket-mode=0660,socket-group=7,engine=ram,size=1M"], &[]).unwrap();
    let access = SocketAccess { mode: "0660".parse().unwrap(), uid: None, gid: Some(7) };
    assert_eq!(plan.disks[0].access, access);
    let words = "is for a socket that is made at socket-path, an inherited one is what it is";
    assert_eq!(
        errors_of(&["socket-mode=600,socket-group=7,engine=ram,size=1M"], &[3]),
        [format!("--disk #1: socket-group=7: {words}"), format!("--disk #1: socket-mode=0600: {words}")]
    );
}
