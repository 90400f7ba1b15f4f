//! `sluice`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice_launcher::main()
}
