//! The table of a disk's options: what `--disk` and configuration files look up.
//!
//! The parsers are those of the command line, so that a value means the same wherever it stands.

use super::{
    DiskSpec, parse_cache, parse_discard, parse_engine, parse_fd, parse_group, parse_io_timeout, parse_lock,
    parse_logical_block_size, parse_num_queues, parse_on_enospc, parse_path, parse_queue_size, parse_serial,
    parse_size, parse_size32, parse_size64, parse_socket_mode, parse_switch,
};

/// What a configuration file writes as the value of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    Text,
    /// A text, or a number that stands for it.
    Name,
    Number,
    /// A number of bytes, or a text with a unit.
    Size,
    Switch,
    /// A number of seconds, whole or not.
    Seconds,
}

/// One option: its name, its kind of value, and how it gets into a [`DiskSpec`].
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: ValueKind,
    set: fn(&mut DiskSpec, &str) -> Result<(), String>,
}

/// All options of a disk, in the order of the help.
pub(crate) const KEYS: [Key; 22] = [
    Key::new("socket-path", ValueKind::Text, |spec, text| {
        store(&mut spec.socket.socket_path, parse_path(text))
    }),
    Key::new("socket-group", ValueKind::Name, |spec, text| {
        store(&mut spec.socket.socket_group, parse_group(text))
    }),
    Key::new("socket-mode", ValueKind::Text, |spec, text| {
        store(&mut spec.socket.socket_mode, parse_socket_mode(text))
    }),
    Key::new("fd", ValueKind::Number, |spec, text| store(&mut spec.socket.fd, parse_fd(text))),
    Key::new("blk-file", ValueKind::Text, |spec, text| store(&mut spec.disk.blk_file, parse_path(text))),
    Key::new("read-only", ValueKind::Switch, |spec, text| {
        spec.disk.read_only = parse_switch(text)?;
        Ok(())
    }),
    Key::new("cache", ValueKind::Text, |spec, text| store(&mut spec.disk.cache, parse_cache(text))),
    Key::new("num-queues", ValueKind::Number, |spec, text| {
        store(&mut spec.disk.num_queues, parse_num_queues(text))
    }),
    Key::new("queue-size", ValueKind::Number, |spec, text| {
        store(&mut spec.disk.queue_size, parse_queue_size(text))
    }),
    Key::new("serial", ValueKind::Text, |spec, text| store(&mut spec.disk.serial, parse_serial(text))),
    Key::new("logical-block-size", ValueKind::Number, |spec, text| {
        store(&mut spec.disk.logical_block_size, parse_logical_block_size(text))
    }),
    Key::new("discard", ValueKind::Text, |spec, text| store(&mut spec.disk.discard, parse_discard(text))),
    Key::new("discard-granularity", ValueKind::Size, |spec, text| {
        store(&mut spec.disk.discard_granularity, parse_size32(text))
    }),
    Key::new("discard-alignment", ValueKind::Size, |spec, text| {
        store(&mut spec.disk.discard_alignment, parse_size32(text))
    }),
    Key::new("write-zeroes", ValueKind::Switch, |spec, text| {
        store(&mut spec.disk.write_zeroes, parse_switch(text))
    }),
    Key::new("lock", ValueKind::Text, |spec, text| store(&mut spec.disk.lock, parse_lock(text))),
    Key::new("in-order", ValueKind::Switch, |spec, text| {
        spec.disk.in_order = parse_switch(text)?;
        Ok(())
    }),
    Key::new("on-enospc", ValueKind::Text, |spec, text| {
        store(&mut spec.disk.on_enospc, parse_on_enospc(text))
    }),
    Key::new("io-timeout", ValueKind::Seconds, |spec, text| {
        store(&mut spec.disk.io_timeout, parse_io_timeout(text))
    }),
    Key::new("memory-budget", ValueKind::Size, |spec, text| {
        store(&mut spec.disk.memory_budget, parse_size(text))
    }),
    Key::new("engine", ValueKind::Text, |spec, text| store(&mut spec.disk.engine, parse_engine(text))),
    Key::new("size", ValueKind::Size, |spec, text| store(&mut spec.disk.size, parse_size64(text))),
];

impl Key {
    const fn new(
        name: &'static str,
        kind: ValueKind,
        set: fn(&mut DiskSpec, &str) -> Result<(), String>,
    ) -> Self {
        Self { name, kind, set }
    }

    /// The option of this name, or what to say about a name that is none.
    pub(crate) fn find(name: &str) -> Result<&'static Self, String> {
        KEYS.iter().find(|key| key.name == name).ok_or_else(|| match closest(name) {
            Some(key) => format!("there is no such option; did you mean {}?", key.name),
            None => {
                let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
                format!("there is no such option; a disk has {}", known.join(", "))
            }
        })
    }

    /// Parses the value and stores it; the error says what the value must be.
    pub(crate) fn set(&self, spec: &mut DiskSpec, text: &str) -> Result<(), String> {
        (self.set)(spec, text)
    }
}

fn store<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *place = Some(value?);
    Ok(())
}

/// The option that somebody meant who mistook one letter, a hyphen or a capital.
fn closest(name: &str) -> Option<&'static Key> {
    let letters = |text: &str| -> Vec<char> {
        text.chars().filter(|char| char.is_alphanumeric()).map(|char| char.to_ascii_lowercase()).collect()
    };
    let written = letters(name);
    KEYS.iter().find(|key| {
        let known = letters(key.name);
        let same_start = known.iter().zip(&written).take_while(|(a, b)| a == b).count();
        let same_end = known.iter().rev().zip(written.iter().rev()).take_while(|(a, b)| a == b).count();
        known == written || same_start + same_end + 1 >= known.len().max(written.len())
    })
}
