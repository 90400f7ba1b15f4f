//! A VM that moves to another QEMU while it runs.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Running;
use super::qmp::Monitor;

/// How often QEMU is asked how far it is.
const LOOK: Duration = Duration::from_millis(10);

/// Bytes a second: by default it is slow, for networks' sake.
const FAST: u64 = 8 << 30;
const MIDDLING: u64 = 96 << 20;
/// So slow that it cannot come to an end.
const SLOW: u64 = 16 << 10;

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

/// A migration that is under way.
pub struct Moving<'a> {
    source: &'a mut Monitor,
    result: Result<(), String>,
}

impl Moving<'_> {
    /// Now it may come to an end, as fast as it can.
    pub fn let_go(&mut self) {
        if self.result.is_ok() {
            self.result = limit(self.source, FAST);
        }
    }
}

impl Running {
    /// Moves the guest to a VM that was started [incoming](super::Vm::incoming), where it goes on. This one is ended; what the
    /// guest has said here is put before what it says there.
    ///
    /// # Panics
    /// If QEMU cannot.
    pub fn migrate(mut self, mut to: Running) -> (Running, Migration) {
        let moved = self.try_migrate(&mut to);
        self.leave(to, moved)
    }

    /// The same, in the middle of which something happens: a part of the memory has been sent by then, and the migration does not
    /// come to an end before `meanwhile` is over or [lets it go](Moving::let_go).
    ///
    /// # Panics
    /// As [`migrate`](Self::migrate).
    pub fn migrate_while(
        mut self,
        mut to: Running,
        meanwhile: impl FnOnce(&mut Moving<'_>),
    ) -> (Running, Migration) {
        let moved = self.try_migrate_while(&mut to, meanwhile);
        self.leave(to, moved)
    }

    /// The same, and this one does not end: a QEMU whose guest has gone comes second.
    ///
    /// # Panics
    /// As [`migrate`](Self::migrate).
    pub fn migrate_and_stay(mut self, mut to: Running) -> (Running, Running) {
        let moved = self.try_migrate(&mut to);
        self.expect_moved(&mut to, moved);
        (to, self)
    }

    /// Ends, as the guest has moved.
    fn leave(mut self, mut to: Running, moved: Result<Migration, String>) -> (Running, Migration) {
        let migration = self.expect_moved(&mut to, moved);
        self.stop();
        (to, migration)
    }

    fn expect_moved(&mut self, to: &mut Running, moved: Result<Migration, String>) -> Migration {
        let migration = match moved {
            Ok(migration) => migration,
            Err(why) => {
                let status = to.stop();
                eprintln!("QEMU that was to take the guest ({status}): {}", to.errors());
                let status = self.stop();
                self.ended(status).fail(&format!("the guest did not move: {why}"))
            }
        };
        to.continue_from(self);
        migration
    }

    /// Begins to move the guest, and when `meanwhile` is over thinks better of it: the guest goes on here, and the other VM is
    /// ended.
    ///
    /// # Panics
    /// If QEMU cannot.
    pub fn migrate_in_vain(&mut self, mut to: Running, meanwhile: impl FnOnce()) {
        if let Err(why) = self.try_in_vain(&mut to, meanwhile) {
            let status = self.stop();
            self.ended(status).fail(&format!("a migration was not given up: {why}"))
        }
    }

    fn try_in_vain(&mut self, to: &mut Running, meanwhile: impl FnOnce()) -> Result<(), String> {
        limit(self.qmp()?, SLOW)?;
        self.begin_to_migrate(to)?;
        let source = self.qmp()?;
        await_status(source, "active")?;
        meanwhile();
        source.ask("migrate_cancel", json!({}))?;
        await_status(source, "cancelled")
    }

    fn try_migrate_while(
        &mut self,
        to: &mut Running,
        meanwhile: impl FnOnce(&mut Moving<'_>),
    ) -> Result<Migration, String> {
        limit(self.qmp()?, MIDDLING)?;
        self.begin_to_migrate(to)?;
        let source = self.qmp()?;
        let begun = Instant::now();
        while !is_half_way(&source.ask("query-migrate", json!({}))?["ram"]) {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err("memory is not sent".to_owned());
            }
            std::thread::sleep(LOOK);
        }
        limit(source, SLOW)?;
        // What it may send at the old speed until it looks at the new one.
        std::thread::sleep(10 * LOOK);
        let ram = &source.ask("query-migrate", json!({}))?["ram"];
        if number(&ram["dirty-sync-count"]) > 1 {
            eprintln!("too late: nothing happens in the middle of this migration: {ram}");
            return self.await_completed();
        }
        let mut moving = Moving { source, result: Ok(()) };
        meanwhile(&mut moving);
        moving.let_go();
        moving.result?;
        self.await_completed()
    }

    fn begin_to_migrate(&mut self, to: &mut Running) -> Result<(), String> {
        let uri = format!("unix:{}", to.incoming_socket().display());
        // It listens when its monitor answers.
        to.qmp()?.ask("query-status", json!({}))?;
        let source = self.qmp()?;
        source.ask("migrate", json!({ "uri": uri }))?;
        Ok(())
    }

    fn try_migrate(&mut self, to: &mut Running) -> Result<Migration, String> {
        limit(self.qmp()?, FAST)?;
        self.begin_to_migrate(to)?;
        self.await_completed()
    }

    fn await_completed(&mut self) -> Result<Migration, String> {
        let source = self.qmp()?;
        let begun = Instant::now();
        loop {
            let told = source.ask("query-migrate", json!({}))?;
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

/// How fast memory is sent.
fn limit(source: &mut Monitor, bytes_per_second: u64) -> Result<(), String> {
    source.ask("migrate-set-parameters", json!({ "max-bandwidth": bytes_per_second }))?;
    Ok(())
}

/// Whether of all memory, which is sent in the order of its addresses, so much has been sent that it is the turn of what a guest
/// does not use: a Linux that has just booted uses less than that.
fn is_half_way(ram: &serde_json::Value) -> bool {
    let sent = number(&ram["total"]).saturating_sub(number(&ram["remaining"]));
    number(&ram["dirty-sync-count"]) > 1 || sent * 2 > number(&ram["total"])
}

fn number(value: &serde_json::Value) -> u64 {
    value.as_u64().unwrap_or_default()
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
