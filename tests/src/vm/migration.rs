//! A VM that moves to another QEMU while it runs.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Running;
use super::qmp::Monitor;

/// How often QEMU is asked how far it is.
const LOOK: Duration = Duration::from_millis(10);

/// How a migration went, as QEMU says (query-migrate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// From the command until all was there.
    pub total: Duration,
    /// How long the guest stood still.
    pub downtime: Duration,
    /// How often pages were sent that had been written meanwhile.
    pub rounds: u64,
}

impl Running {
    /// Moves the guest to a VM that was started [incoming](super::Vm::incoming), where it goes on. This one is ended; what the
    /// guest has said here is put before what it says there.
    ///
    /// # Panics
    /// If QEMU cannot.
    pub fn migrate(mut self, mut to: Running) -> (Running, Migration) {
        let moved = self.try_migrate(&mut to);
        let migration = match moved {
            Ok(migration) => migration,
            Err(why) => {
                let status = to.stop();
                eprintln!("QEMU that was to take the guest ({status}): {}", to.errors());
                let status = self.stop();
                self.ended(status).fail(&format!("the guest did not move: {why}"))
            }
        };
        self.stop();
        to.continue_from(&self);
        (to, migration)
    }

    /// Begins to move the guest and thinks better of it: the guest goes on here, and the other VM is ended.
    ///
    /// # Panics
    /// If QEMU cannot.
    pub fn migrate_in_vain(&mut self, mut to: Running) {
        if let Err(why) = self.try_in_vain(&mut to) {
            let status = self.stop();
            self.ended(status).fail(&format!("a migration was not given up: {why}"))
        }
    }

    fn try_in_vain(&mut self, to: &mut Running) -> Result<(), String> {
        // So slow that it cannot come to an end.
        self.begin_to_migrate(to, 8 << 20)?;
        let source = self.qmp()?;
        await_status(source, "active")?;
        source.ask("migrate_cancel", json!({}))?;
        await_status(source, "cancelled")
    }

    fn begin_to_migrate(&mut self, to: &mut Running, bytes_per_second: u64) -> Result<(), String> {
        let uri = format!("unix:{}", to.incoming_socket().display());
        // It listens when its monitor answers.
        to.qmp()?.ask("query-status", json!({}))?;
        let source = self.qmp()?;
        source.ask("migrate-set-parameters", json!({ "max-bandwidth": bytes_per_second }))?;
        source.ask("migrate", json!({ "uri": uri }))?;
        Ok(())
    }

    fn try_migrate(&mut self, to: &mut Running) -> Result<Migration, String> {
        // As fast as it can: by default it is slow, for networks' sake.
        self.begin_to_migrate(to, 8 << 30)?;
        let source = self.qmp()?;
        let begun = Instant::now();
        loop {
            let told = source.ask("query-migrate", json!({}))?;
            let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
            match told["status"].as_str() {
                Some("completed") => {
                    let time = |key: &str| Duration::from_millis(number(&told[key]));
                    let rounds = number(&told["ram"]["dirty-sync-count"]);
                    return Ok(Migration { total: time("total-time"), downtime: time("downtime"), rounds });
                }
                Some("failed" | "cancelled") | None => return Err(format!("{told}")),
                Some(_) if begun.elapsed() > Duration::from_secs(120) => {
                    return Err(format!("it does not come to an end: {told}"));
                }
                Some(_) => std::thread::sleep(LOOK),
            }
        }
    }
}

/// Waits until a migration is so far.
fn await_status(source: &mut Monitor, status: &str) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let told = source.ask("query-migrate", json!({}))?;
        match told["status"].as_str() {
            Some(now) if now == status => return Ok(()),
            Some("completed" | "failed") => return Err(format!("{told}")),
            _ if begun.elapsed() > Duration::from_secs(60) => return Err(format!("not {status}: {told}")),
            _ => std::thread::sleep(LOOK),
        }
    }
}
