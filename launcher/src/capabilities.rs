//! `--print-capabilities`: what management tools ask before they start the program.
//!
//! The answer is fixed by QEMU's vhost-user.json: one JSON object on standard output, exit code 0, and every other
//! argument ignored, wrong ones too. So it is looked for before the command line is parsed.

use std::ffi::{OsStr, OsString};

/// The type and the features of vhost-user.json that this program has.
pub(crate) const CAPABILITIES: &str = r#"{
  "type": "block",
  "features": [
    "read-only",
    "blk-file"
  ]
}"#;

/// Whether one of the arguments asks for the capabilities; what follows `--` is not for us.
pub(crate) fn are_asked_for(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .take_while(|argument| argument.as_os_str() != OsStr::new("--"))
        .any(|argument| argument.as_os_str() == OsStr::new("--print-capabilities"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(arguments: &[&str]) -> bool {
        are_asked_for(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn they_are_asked_for_among_any_other_arguments() {
        assert!(asked(&["--print-capabilities"]));
        assert!(asked(&["--nonsense=1", "--socket-path", "--print-capabilities"]));
        assert!(!asked(&["--socket-path=x"]));
        assert!(!asked(&["run", "--", "--print-capabilities"]));
    }
}
