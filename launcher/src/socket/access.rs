//! Who may connect to a socket: the mode and the owners of its file.

use std::fmt;
use std::str::FromStr;

use rustix::fs::Mode;

/// The permissions of a socket's file, as chmod(1) has them in octal. Who can write to it can read and write the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketMode(u32);

impl Default for SocketMode {
    /// The owner alone.
    fn default() -> Self {
        Self(0o600)
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_octal =
            (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(text, 8) {
            Ok(bits @ 0..=0o777) if is_octal => Ok(Self(bits)),
            _ => Err("must be permissions in octal, from 0000 to 0777, such as 0660".into()),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl From<SocketMode> for Mode {
    fn from(mode: SocketMode) -> Self {
        Mode::from_raw_mode(mode.0)
    }
}

/// Whose a socket is to be, and what they may. By default our own user's alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SocketAccess {
    pub(crate) mode: SocketMode,
    /// None: who we are.
    pub(crate) uid: Option<u32>,
    /// None: the group that files of ours get in this directory.
    pub(crate) gid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_three_or_four_octal_digits() {
        for (text, bits) in [("600", 0o600), ("0660", 0o660), ("0777", 0o777), ("0000", 0)] {
            assert_eq!(text.parse(), Ok(SocketMode(bits)), "{text}");
        }
        for wrong in ["", "66", "0o660", "1777", "4755", "0668", "06600", "-660", "+660", "rw-"] {
            assert!(wrong.parse::<SocketMode>().unwrap_err().contains("such as 0660"), "{wrong}");
        }
        assert_eq!(SocketMode::default().to_string(), "0600");
    }
}
