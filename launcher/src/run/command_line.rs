//! A command line that is both run and shown: one option a line, quoted so that a shell takes it as it is.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;

/// A program and its options, each with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    program: OsString,
    options: Vec<Vec<OsString>>,
}

impl CommandLine {
    pub(crate) fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), options: Vec::new() }
    }

    /// Adds an option without a value.
    pub(crate) fn flag(&mut self, name: &str) -> &mut Self {
        self.options.push(vec![name.into()]);
        self
    }

    /// Adds an option with a value.
    pub(crate) fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.options.push(vec![name.into(), value.into()]);
        self
    }

    /// Adds arguments as somebody wrote them.
    pub(crate) fn extend(&mut self, arguments: &[OsString]) -> &mut Self {
        for argument in arguments {
            match self.options.last_mut() {
                Some(last) if !is_option(argument) && last.len() == 1 => last.push(argument.clone()),
                _ => self.options.push(vec![argument.clone()]),
            }
        }
        self
    }

    pub(crate) fn program(&self) -> &OsStr {
        &self.program
    }

    pub(crate) fn arguments(&self) -> impl Iterator<Item = &OsStr> {
        self.options.iter().flatten().map(OsString::as_os_str)
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote(&self.program))?;
        for option in &self.options {
            let words: Vec<_> = option.iter().map(|word| quote(word)).collect();
            write!(f, " \\\n    {}", words.join(" "))?;
        }
        Ok(())
    }
}

fn is_option(argument: &OsStr) -> bool {
    argument.as_encoded_bytes().starts_with(b"-")
}

/// A word as a POSIX shell needs it: as it is where that is safe, else in single quotes.
pub(crate) fn quote(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let is_safe = |char: char| char.is_ascii_alphanumeric() || "_-+./:=,@%".contains(char);
    if !text.is_empty() && text.chars().all(is_safe) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `key=PATH` inside a QEMU option, where a comma of the path is written twice.
pub(crate) fn path_setting(start: &str, path: &Path) -> OsString {
    let mut setting = OsString::from(start);
    for (index, part) in path.to_string_lossy().split(',').enumerate() {
        if index > 0 {
            setting.push(",,");
        }
        setting.push(part);
    }
    setting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_where_a_shell_would_change_them() {
        for (word, quoted) in [
            ("q35,memory-backend=mem", "q35,memory-backend=mem"),
            ("console=ttyS0 quiet", "'console=ttyS0 quiet'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("~/a*", "'~/a*'"),
        ] {
            assert_eq!(quote(OsStr::new(word)), quoted);
        }
    }

    #[test]
    fn a_shell_reads_back_what_is_shown() {
        let mut line = CommandLine::new("printf");
        line.flag("%s\\n").option("a b", "c'd\"$e").extend(&[
            "--x".into(),
            "y;z".into(),
            "*".into(),
            "".into(),
        ]);
        let output = std::process::Command::new("sh").arg("-c").arg(line.to_string()).output().unwrap();
        let expected: Vec<_> =
            line.arguments().skip(1).map(|word| format!("{}\n", word.to_string_lossy())).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.concat());
    }

    #[test]
    fn each_option_has_a_line_with_its_value() {
        let mut line = CommandLine::new("vmm");
        line.option("-M", "q35").flag("-no-reboot").extend(&["-device".into(), "virtio-rng-pci".into()]);
        assert_eq!(line.to_string(), "vmm \\\n    -M q35 \\\n    -no-reboot \\\n    -device virtio-rng-pci");
    }

    #[test]
    fn a_comma_of_a_path_is_doubled() {
        assert_eq!(path_setting("socket,path=", Path::new("/a,b/c")), "socket,path=/a,,b/c");
    }
}
