//! Disks described in a TOML file: `[[disk]]` tables with the options of the command line as keys.
//!
//! ```toml
//! [[disk]]
//! socket-path = "/run/sluice/root.sock"
//! blk-file = "/srv/root.img"
//! num-queues = 4
//! ```
//!
//! Beside the disks, `memory-budget` bounds the memory of all of them together, and `workers`, `worker-cpus` and
//! `poll-max-us` say how the threads are to be that serve them, `sandbox`, `user` and `group` how these are confined.
//!
//! Every error of a file is found in one reading and names file, line and key. The values are read off the parsed
//! document with their places, not through serde, which would stop at the first error and forget where it was.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::accounts::{parse_group, parse_user};
use crate::disk_args::{DiskSpec, Key, ValueKind, parse_size};
use crate::plan::{Origin, UsageError};
use crate::sandbox::SandboxArgs;
use crate::worker_args::{WorkerArgs, parse_poll_max, parse_workers};

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) disks: Vec<(DiskSpec, Origin)>,
    /// The most memory for the I/O of all disks, in bytes.
    pub(crate) memory_budget: Option<usize>,
    /// How the threads are to be.
    pub(crate) workers: WorkerArgs,
    /// How they are confined.
    pub(crate) sandbox: SandboxArgs,
}

/// Reads a file's text; `path` is for the errors.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Config, UsageError> {
    let mut reader = Reader { path, text, errors: Vec::new() };
    let config = reader.document();
    if reader.errors.is_empty() { Ok(config) } else { Err(UsageError(reader.errors)) }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    errors: Vec<String>,
}

impl Reader<'_> {
    fn document(&mut self) -> Config {
        let (document, syntax_errors) = DeTable::parse_recoverable(self.text);
        for error in &syntax_errors {
            self.complain(&error.span().unwrap_or(0..0), error.message());
        }
        let mut config = Config::default();
        if !syntax_errors.is_empty() {
            return config;
        }
        let mut entries: Vec<_> = document.get_ref().iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("disk", DeValue::Array(tables)) => config.disks = self.tables(tables),
                ("disk", _) => {
                    self.complain(&name.span(), "disk: must be tables, each led by a line [[disk]]")
                }
                (key, value) => {
                    if let Err(why) = set_for_all(&mut config, key, value) {
                        self.complain(&name.span(), &format!("{key}: {why}"));
                    }
                }
            }
        }
        if config.disks.is_empty() && self.errors.is_empty() {
            self.complain(&(0..0), "no disk is described: add a line [[disk]] and options below it");
        }
        config
    }

    fn tables(&mut self, tables: &[Spanned<DeValue<'_>>]) -> Vec<(DiskSpec, Origin)> {
        let mut disks = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            match table.get_ref() {
                DeValue::Table(keys) => disks.push(self.disk(index + 1, &table.span(), keys)),
                _ => self.complain(&table.span(), "disk: must be tables, each led by a line [[disk]]"),
            }
        }
        disks
    }

    fn disk(&mut self, number: usize, span: &Range<usize>, keys: &DeTable<'_>) -> (DiskSpec, Origin) {
        let mut spec = DiskSpec::default();
        let mut key_lines = BTreeMap::new();
        let mut settings: Vec<_> = keys.iter().collect();
        settings.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in settings {
            let line = self.line(name.span().start);
            key_lines.insert(name.get_ref().to_string(), line);
            if let Err(why) = set(&mut spec, name.get_ref(), value.get_ref()) {
                let written =
                    self.text.get(value.span()).unwrap_or_default().lines().next().unwrap_or_default();
                self.complain(
                    &name.span(),
                    &format!("disk #{number}: {} = {written}: {why}", name.get_ref()),
                );
            }
        }
        let line = self.line(span.start);
        (spec, Origin::File { path: self.path.into(), number, line, key_lines })
    }

    fn complain(&mut self, span: &Range<usize>, why: &str) {
        self.errors.push(format!("{}:{}: {why}", self.path.display(), self.line(span.start)));
    }

    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

/// Sets what is said beside the disks, for all of them.
fn set_for_all(config: &mut Config, key: &str, value: &DeValue<'_>) -> Result<(), String> {
    match key {
        "memory-budget" => config.memory_budget = Some(size(value)?),
        "workers" => config.workers.workers = Some(parse_workers(number(value)?)?),
        "poll-max-us" => config.workers.poll_max_us = Some(parse_poll_max(number(value)?)?),
        "worker-cpus" => config.workers.worker_cpus = Some(text(value)?.parse()?),
        "sandbox" => config.sandbox.sandbox = Some(text(value)?.parse()?),
        "user" => config.sandbox.user = Some(parse_user(name(value)?)?),
        "group" => config.sandbox.group = Some(parse_group(name(value)?)?),
        _ => {
            return Err(
                "is unknown here; memory-budget, workers, worker-cpus, poll-max-us, sandbox, user and group \
                        are for all disks, all else belongs below a line [[disk]]"
                    .into(),
            );
        }
    }
    Ok(())
}

fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        _ => Err("must be a text in quotes".into()),
    }
}

fn name<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        DeValue::Integer(number) => Ok(number.as_str()),
        _ => Err("must be a name in quotes, or a number".into()),
    }
}

fn number<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::Integer(number) => Ok(number.as_str()),
        _ => Err("must be a number, without quotes".into()),
    }
}

fn size(value: &DeValue<'_>) -> Result<usize, String> {
    match value {
        DeValue::String(text) => parse_size(text),
        DeValue::Integer(number) => parse_size(number.as_str()),
        _ => Err("must be a number of bytes, or a text such as \"64M\"".into()),
    }
}

fn set(spec: &mut DiskSpec, name: &str, value: &DeValue<'_>) -> Result<(), String> {
    let key = Key::find(name)?;
    match (key.kind, value) {
        (ValueKind::Text | ValueKind::Name | ValueKind::Size, DeValue::String(text)) => key.set(spec, text),
        (ValueKind::Switch, DeValue::Boolean(on)) => key.set(spec, if *on { "on" } else { "off" }),
        (ValueKind::Seconds, DeValue::Float(number)) => key.set(spec, number.as_str()),
        (
            ValueKind::Number | ValueKind::Name | ValueKind::Size | ValueKind::Seconds,
            DeValue::Integer(number),
        ) => {
            // Hexadecimal and the like are numbers, too: the parsers of the command line know decimal ones.
            match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => key.set(spec, &number.to_string()),
                Err(_) => key.set(spec, number.as_str()),
            }
        }
        (ValueKind::Text, _) => Err("must be a text in quotes".into()),
        (ValueKind::Name, _) => Err("must be a name in quotes, or a number".into()),
        (ValueKind::Switch, _) => Err("must be true or false".into()),
        (ValueKind::Number, _) => Err("must be a number, without quotes".into()),
        (ValueKind::Seconds, _) => Err("must be a number of seconds, without quotes".into()),
        (ValueKind::Size, _) => Err("must be a number of bytes, or a text such as \"64M\"".into()),
    }
}

#[cfg(test)]
mod tests;
