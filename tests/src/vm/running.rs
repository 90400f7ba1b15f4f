//! A VM that runs: waiting for it, and ending it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::qemu::{self, Files};
use super::qmp::Monitor;
use super::{Ended, Kernel, Vm};

/// How often a VM is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A VM that was started. It is killed when it is dropped, and its files go then.
///
/// QEMU starts no processes of its own. Should this process be killed itself, the guest still ends soon: both guests
/// have a timeout.
pub struct Running {
    child: Child,
    /// The files' directory, until it is kept for good.
    dir: Option<TempDir>,
    files: Files,
    command: String,
    deadline: Instant,
    time_max: Duration,
    /// QEMU stops listening to a monitor that hangs up.
    monitor: Option<UnixStream>,
    qmp: Option<Monitor>,
    /// What the guest has said elsewhere before: console, and results.
    before: [String; 2],
}

impl Running {
    pub(super) fn start(vm: &Vm) -> Self {
        let program = qemu::find(&vm.qemu).unwrap_or_else(|| {
            panic!("{} is not installed: install it with `scripts/setup.sh guest`", vm.qemu.display())
        });
        let dir = TempDir::with_prefix("sluice-vm-").expect("a directory for a VM can be made");
        let files = Files::in_dir(dir.path());
        if vm.kernel == Kernel::Linux {
            write_initramfs(vm, &files.initramfs);
        }
        let arguments = qemu::arguments(vm, &files);
        let command = qemu::shown(&program, &arguments);
        let errors = File::create(&files.errors).expect("a file for QEMU's messages can be made");
        let out = errors.try_clone().expect("a file can be cloned");
        let child = Command::new(&program)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("{command}\ndoes not start: {e}"));
        let deadline = Instant::now() + vm.time_max;
        Running {
            child,
            dir: Some(dir),
            files,
            command,
            deadline,
            time_max: vm.time_max,
            monitor: None,
            qmp: None,
            before: Default::default(),
        }
    }

    /// What the guest has printed on its first serial port so far.
    pub fn console(&self) -> String {
        format!("{}{}", self.before[0], text_of(&self.files.console))
    }

    /// What the guest has reported on its second serial port so far.
    pub fn results(&self) -> String {
        format!("{}{}", self.before[1], text_of(&self.files.results))
    }

    /// QEMU's own messages so far.
    pub(super) fn errors(&self) -> String {
        text_of(&self.files.errors)
    }

    /// The guest has said some things in another VM before.
    pub(super) fn continue_from(&mut self, other: &Self) {
        self.before = [other.console(), other.results()];
    }

    /// Where a guest is awaited.
    pub(super) fn incoming_socket(&self) -> &Path {
        &self.files.incoming
    }

    /// QEMU's monitor for programs.
    pub(super) fn qmp(&mut self) -> Result<&mut Monitor, String> {
        match &mut self.qmp {
            Some(monitor) => Ok(monitor),
            none => Ok(none.insert(Monitor::connect(&self.files.qmp)?)),
        }
    }

    /// Waits until `condition` is true.
    ///
    /// # Panics
    /// If the VM ends before that, or it takes too long.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Running) -> bool) {
        loop {
            let status = self.try_wait();
            if condition(self) {
                return;
            }
            if let Some(status) = status {
                self.ended(status).fail(&format!("it has ended before this happened: {what}"));
            }
            self.check_time(what);
            std::thread::sleep(LOOK);
        }
    }

    /// Resets the machine, as its reset button does.
    ///
    /// # Panics
    /// If QEMU's monitor does not take the command.
    pub fn reset(&mut self) {
        self.command("system_reset");
    }

    /// Gives QEMU's monitor a command.
    ///
    /// # Panics
    /// If it does not take it.
    pub fn command(&mut self, command: &str) {
        match self.command_monitor(command) {
            Ok(answer) if !answer.contains("Error") => {}
            answer => {
                let status = self.stop();
                self.ended(status).fail(&format!("QEMU's monitor on {command}: {answer:?}"));
            }
        }
    }

    /// Gives QEMU's monitor a command, again and again until it takes it.
    ///
    /// # Panics
    /// If it never does.
    pub fn wait_until_takes(&mut self, command: &str) {
        while !self.command_monitor(command).is_ok_and(|answer| !answer.contains("Error")) {
            self.check_time(command);
            std::thread::sleep(LOOK);
        }
    }

    /// What the monitor answers, with an echo of the command.
    fn command_monitor(&mut self, command: &str) -> io::Result<String> {
        let is_new = self.monitor.is_none();
        let stream = match &mut self.monitor {
            Some(stream) => stream,
            none => none.insert(UnixStream::connect(&self.files.monitor)?),
        };
        let left = self.deadline.saturating_duration_since(Instant::now()).max(LOOK);
        stream.set_read_timeout(Some(left))?;
        // A prompt means that QEMU takes a command, and the next one that it has taken it.
        if is_new {
            read_to_prompt(stream)?;
        }
        stream.write_all(format!("{command}\n").as_bytes())?;
        read_to_prompt(stream)
    }

    /// Ends the machine at once, as a crash of QEMU does.
    pub fn kill(mut self) {
        self.stop();
    }

    /// Waits until the VM has ended by itself.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn finish(mut self) -> Ended {
        loop {
            if let Some(status) = self.try_wait() {
                return self.ended(status);
            }
            self.check_time("the end of the guest");
            std::thread::sleep(LOOK);
        }
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    fn check_time(&mut self, what: &str) {
        if Instant::now() < self.deadline {
            return;
        }
        let status = self.stop();
        let seconds = self.time_max.as_secs_f32();
        self.ended(status).fail(&format!("killed after {seconds} s, while this was waited for: {what}"));
    }

    pub(super) fn stop(&mut self) -> ExitStatus {
        // Killing fails only when it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for")
    }

    pub(super) fn ended(&self, status: ExitStatus) -> Ended {
        Ended {
            status,
            console: self.console(),
            results: self.results(),
            errors: self.errors(),
            command: self.command.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if std::env::var_os("SLUICE_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept: {}", dir.keep().display());
        }
    }
}

/// The guest's initramfs with the VM's own files behind it.
fn write_initramfs(vm: &Vm, path: &Path) {
    let image = vm.images.initramfs();
    let mut bytes = std::fs::read(&image).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    bytes.extend_from_slice(&vm.files.bytes());
    std::fs::write(path, bytes).expect("an initramfs can be written");
}

/// What a guest wrote may be anything.
fn text_of(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn read_to_prompt(stream: &mut UnixStream) -> io::Result<String> {
    const PROMPT: &[u8] = b"(qemu) ";
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(PROMPT) {
        stream.read_exact(&mut byte)?;
        seen.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&seen).into_owned())
}
