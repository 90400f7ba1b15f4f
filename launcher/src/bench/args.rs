//! The command line of `sluice bench`, and its help.

use std::path::PathBuf;
use std::time::Duration;

use super::contender::{BARE, QEMU, REFERENCE, SLUICE};

// Paragraphs are one line each: clap wraps them to the terminal.
const ABOUT: &str = "\
Measures sluice beside other backends, with the same client.

The client is libblkio's core, on one thread. Each backend is started for each measurement, in rounds (A B C A B C ...), \
and the bare file is read and written by the client's own io_uring. Every row of the table is a median over the rounds; \
a ratio is the median of the rounds' ratios. A bar that is missed is marked.";

const EXAMPLES: &str = "\
Examples:
  Everything, in about a quarter of an hour, with the figures for a program:
    sluice bench --json bench.json --chart bench.svg

  One row, longer:
    sluice bench --only cached-read-d32 --seconds 5 --rounds 9

  Another backend, or sluice with other options:
    sluice bench --only tmpfs \\
      --peer 'sync=sluice --engine=sync --cache=writeback \\
              --socket-path={socket} --blk-file={file}'

Files of 1 GiB are made in --dir and on --tmpfs, and removed at the end. For honest figures let nothing else run.";

/// Measure sluice beside other backends
#[derive(Debug, clap::Args)]
#[command(long_about = ABOUT, after_long_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// Only what has this in its name; can be given several times
    #[arg(long, value_name = "TEXT")]
    pub(super) only: Vec<String>,

    /// Show the names of all there is to measure, and measure nothing
    #[arg(long)]
    pub(super) list: bool,

    /// How often each is measured [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) rounds: Option<u16>,

    /// How long, after a fourth of it for warming up [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) seconds: Option<Duration>,

    /// One short round on small files, for trying: the figures say little
    #[arg(long)]
    pub(super) quick: bool,

    /// Measure this backend too: a shell command with {socket} and {file}, and if it wants them {direct} (true or
    /// false), {queues} and {ring}; can be given several times
    #[arg(long, value_name = "NAME=COMMAND", value_parser = parse_peer)]
    pub(super) peer: Vec<Peer>,

    /// The client on the first CPU, backends on the others [default: where the kernel puts them]
    #[arg(long)]
    pub(super) pin: bool,

    /// Write all figures here, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Draw rate and latency at depths 1 to 256 here, as SVG
    #[arg(long, value_name = "FILE")]
    pub(super) chart: Option<PathBuf>,

    /// Where the files for "cached" and "disk" are made
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    pub(super) dir: PathBuf,

    /// Where the files for "tmpfs" are made
    #[arg(long, value_name = "DIRECTORY", default_value = "/dev/shm")]
    pub(super) tmpfs: PathBuf,

    /// The reference device of the project's tests [default: reference-device beside this program]
    #[arg(long, value_name = "PROGRAM")]
    pub(super) reference: Option<PathBuf>,
}

/// A backend that somebody adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) command: String,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) rounds: u16,
    pub(super) time: Duration,
    /// Before it, not counted.
    pub(super) warm_up: Duration,
    /// How long quiet disks are watched.
    pub(super) quiet: Duration,
    /// The size of files.
    pub(super) bytes: u64,
}

impl BenchArgs {
    pub(super) fn extent(&self) -> Extent {
        let (rounds, time, quiet, bytes) = match self.quick {
            false => (5, Duration::from_secs(1), Duration::from_secs(10), 1 << 30),
            true => (1, Duration::from_millis(200), Duration::from_secs(1), 64 << 20),
        };
        let time = self.seconds.unwrap_or(time);
        Extent { rounds: self.rounds.unwrap_or(rounds), time, warm_up: time / 4, quiet, bytes }
    }

    /// Whether somebody wants to see what has this name.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().unwrap_or(f64::NAN);
    if (0.05..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be a number from 0.05 to 3600".into())
    }
}

fn parse_peer(text: &str) -> Result<Peer, String> {
    let (name, command) = text.split_once('=').ok_or("must be NAME=COMMAND")?;
    if name.is_empty() || [BARE, SLUICE, QEMU, REFERENCE].contains(&name) {
        return Err("needs a name of its own".into());
    }
    if !command.contains("{socket}") || !command.contains("{file}") {
        return Err("the command must have {socket} and {file}".into());
    }
    Ok(Peer { name: name.into(), command: command.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    #[command(no_binary_name = true)]
    struct Parser {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(arguments: &[&str]) -> Result<BenchArgs, String> {
        let parsed = <Parser as clap::Parser>::try_parse_from(arguments);
        parsed.map(|parser| parser.bench).map_err(|error| error.to_string())
    }

    #[test]
    fn five_rounds_of_a_second_unless_somebody_says_otherwise() {
        let extent = parse(&[]).unwrap().extent();
        assert_eq!((extent.rounds, extent.time, extent.bytes), (5, Duration::from_secs(1), 1 << 30));
        let extent = parse(&["--quick", "--rounds=3"]).unwrap().extent();
        assert_eq!((extent.rounds, extent.time), (3, Duration::from_millis(200)));
        let extent = parse(&["--seconds=2"]).unwrap().extent();
        assert_eq!((extent.time, extent.warm_up), (Duration::from_secs(2), Duration::from_millis(500)));
    }

    #[test]
    fn wrong_values_say_what_to_do() {
        for (argument, words) in [
            ("--seconds=0", "must be a number from 0.05 to 3600"),
            ("--seconds=nan", "must be a number from 0.05 to 3600"),
            ("--rounds=0", "0 is not in 1..=1000"),
            ("--peer=x", "must be NAME=COMMAND"),
            ("--peer=sluice=x {socket} {file}", "needs a name of its own"),
            ("--peer=x=y {socket}", "must have {socket} and {file}"),
        ] {
            let error = parse(&[argument]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_peers_command_may_contain_equal_signs() {
        let bench = parse(&["--peer", "x=y --s={socket} --f={file}"]).unwrap();
        assert_eq!(bench.peer, [Peer { name: "x".into(), command: "y --s={socket} --f={file}".into() }]);
    }

    #[test]
    fn what_is_wanted_is_found_by_a_part_of_its_name() {
        assert!(parse(&[]).unwrap().wants("anything"));
        let bench = parse(&["--only=cached", "--only=idle"]).unwrap();
        assert!(bench.wants("cached-read-d1") && bench.wants("idle"));
        assert!(!bench.wants("tmpfs-read-d1"));
    }
}
