//! QEMU's monitor for programs (QMP): one command after the other, each with its answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A monitor that takes commands.
#[derive(Debug)]
pub(super) struct Monitor {
    lines: BufReader<UnixStream>,
}

/// How long QEMU may take to open its monitor, and to answer.
const PATIENCE: Duration = Duration::from_secs(60);

impl Monitor {
    /// Connects, as soon as QEMU listens.
    pub(super) fn connect(path: &Path) -> Result<Self, String> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error.to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let mut monitor = Monitor { lines: BufReader::new(stream) };
        // It greets, and then wants to be told that nothing special is wanted.
        monitor.receive()?;
        monitor.ask("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// A command, with its arguments; what it returns.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.lines.get_mut(), "{line}").map_err(|error| error.to_string())?;
        loop {
            let mut answer = self.receive()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{line}: {error}"));
            }
            // Others are events.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn receive(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err("QEMU has closed its monitor".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{error}: {line}")),
            Err(error) => Err(error.to_string()),
        }
    }
}
