//! `sluice`, the program: disks for virtual machines over vhost-user sockets. A library only so that `trial` can be called
//! by the project's fuzzer.
//!
//! A map of the launcher. `cli` is the command line; `disk_args` one disk's options, wherever they are written;
//! `worker_args` the options of the threads, `accounts` users and groups; `config` the configuration file; `plan`
//! all disks, checked as a whole. `daemon` serves a plan on sockets made by `socket` or `inherited` from whoever
//! started us, in a `sandbox`, until `signals` ask for the end, or for an `upgrade`; `systemd` is told how things stand.
//! `run` adds a virtual machine, `bench` measures, `doctor` tries the sandbox out. `capabilities` is for management tools,
//! `logging` for everybody.
//!
//! Exit codes: 0 ended as asked, 1 failed, 2 wrong usage; of `sluice run` the guest's.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sluice_mem::sigbus;

mod accounts;
mod bench;
mod capabilities;
mod cli;
mod config;
mod daemon;
mod disk_args;
mod doctor;
mod inherited;
mod logging;
mod plan;
mod run;
mod sandbox;
mod signals;
mod socket;
mod systemd;
#[doc(hidden)]
pub mod trial;
mod upgrade;
mod worker_args;

use cli::{Cli, Command, ServeArgs};
use daemon::{Daemon, Ending, OpenedDisks, StartError};
use plan::{Origin, Plan, UsageError};
use signals::StopSignals;
use systemd::Systemd;
use upgrade::starter::{self, Starter};
use upgrade::successor::Predecessor;

/// The exit code for what did not work.
const FAILED: u8 = 1;
/// The exit code for a command line or a configuration that must be mended.
const WRONG_USAGE: u8 = 2;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if capabilities::are_asked_for(&arguments) {
        println!("{}", capabilities::CAPABILITIES);
        return ExitCode::SUCCESS;
    }
    match start(Cli::parse_from(arguments)) {
        Ok(code) => code.into(),
        Err(error) => report(&error).into(),
    }
}

fn start(cli: Cli) -> Result<u8> {
    match cli.command {
        Some(Command::Run(run)) => {
            // The terminal is the guest's: only what is wrong is said there.
            logging::start("warn");
            run::run(&run)
        }
        Some(Command::Bench(bench)) => {
            logging::start("warn");
            bench::run(&bench)
        }
        Some(Command::Doctor(doctor)) => {
            logging::start("error");
            doctor::run(&doctor)
        }
        Some(Command::Upgrade(upgrade)) => {
            logging::start("warn");
            upgrade::command::run(&upgrade)
        }
        Some(Command::Starter(args)) => starter::run(&args),
        Some(Command::Serve(serve)) => {
            logging::start("info");
            serve_until_stopped(&plan_of(&serve)?)
        }
        None => {
            logging::start("info");
            let plan = Plan::new(vec![(cli.disk, Origin::Arguments)], &inherited::activated())?;
            serve_until_stopped(&Plan { workers: cli.workers, sandbox: cli.sandbox, ..plan })
        }
    }
}

fn serve_until_stopped(plan: &Plan) -> Result<u8> {
    let manager = Systemd::from_environment()?;
    let predecessor = Predecessor::from_environment(manager.as_ref())?;
    // Opening a disk may take its time, and leaves nothing behind: until then a signal just ends the process.
    let disks = OpenedDisks::open(plan, predecessor)?;
    sigbus::survive().context("cannot take over SIGBUS")?;
    let mut signals = StopSignals::catch().context("cannot take over signals")?;
    signals.catch_upgrades().context("cannot take over SIGUSR2")?;
    let starter = Starter::launch();
    if let Err(error) = &starter {
        log::warn!("no upgrade will be possible, no program can be started: {error}");
    }
    let mut daemon = disks.serve(&mut signals)?;
    tell(manager.as_ref(), "READY=1");
    loop {
        match daemon.wait(&signals)? {
            Ending::Stop => break end(daemon, manager.as_ref()),
            Ending::Upgrade => match starter.as_ref().map(|starter| daemon.hand_over(starter)) {
                Ok(Ok((pid, suspended))) => {
                    // First of all, as the next one waits for the disks' locks.
                    daemon.leave_to(&format!("process {pid}"), suspended);
                    if let Ok(starter) = starter {
                        starter.leave();
                    }
                    break tell(manager.as_ref(), &format!("MAINPID={pid}"));
                }
                Ok(Err(error)) => {
                    // Whoever has asked again meanwhile has got the same answer.
                    signals.forget_upgrades();
                    log::error!("no upgrade, the disks are served as before: {error}");
                }
                Err(error) => log::error!("no upgrade, no program can be started: {error}"),
            },
        }
    }
    Ok(0)
}

/// Ends a daemon; where the service manager stores things, in such a way that the next one goes on with the front-ends.
fn end(daemon: Daemon, manager: Option<&Systemd>) {
    tell(manager, "STOPPING=1");
    match manager.filter(|manager| manager.stores()).map(|manager| daemon.store(manager)) {
        None => daemon.stop(),
        Some(Ok(suspended)) => daemon.leave_to("the service manager", suspended),
        Some(Err(error)) => {
            log::warn!("front-ends will have to connect again: {error}");
            daemon.stop();
        }
    }
}

fn tell(manager: Option<&Systemd>, state: &str) {
    if let Some(manager) = manager {
        manager.tell(state);
    }
}

/// All disks of a configuration file and of `--disk`, in this order.
fn plan_of(serve: &ServeArgs) -> Result<Plan> {
    let mut disks = Vec::new();
    let mut memory_budget = serve.memory_budget;
    let mut workers = serve.workers.clone();
    let mut sandbox = serve.sandbox.clone();
    let mut errors = Vec::new();
    if let Some(path) = &serve.config {
        let text = read_config(path)?;
        match config::parse(path, &text) {
            Ok(of_file) => {
                disks.extend(of_file.disks);
                memory_budget = memory_budget.or(of_file.memory_budget);
                workers = workers.or(of_file.workers);
                sandbox = sandbox.or(of_file.sandbox);
            }
            Err(UsageError(of_file)) => errors.extend(of_file),
        }
    }
    for (index, text) in serve.disks.iter().enumerate() {
        let number = index + 1;
        match disk_args::parse_disk_option(text) {
            Ok(spec) => disks.push((spec, Origin::DiskOption(number))),
            Err(of_disk) => {
                errors.extend(of_disk.into_iter().map(|why| format!("--disk #{number}: {why}")));
            }
        }
    }
    if !errors.is_empty() {
        return Err(UsageError(errors).into());
    }
    let plan = Plan::new(disks, &inherited::activated())?;
    Ok(Plan { memory_budget, workers, sandbox, ..plan })
}

fn read_config(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("--config={}", path.display()))
}

/// Says what went wrong, one line for each error, and returns the exit code for it.
fn report(error: &anyhow::Error) -> u8 {
    if let Some(UsageError(errors)) = error.downcast_ref() {
        report_each(errors);
        eprintln!("\nFor more information, try 'sluice --help'.");
        return WRONG_USAGE;
    }
    match error.downcast_ref() {
        Some(StartError(errors)) => report_each(errors),
        None => eprintln!("error: {error:#}"),
    }
    FAILED
}

fn report_each(errors: &[String]) {
    for error in errors {
        eprintln!("error: {error}");
    }
}
