//! `--print-capabilities`, as management tools call it.

use crate::fixture::{output_of, sluice};

const EXPECTED: &str =
    "{\n  \"type\": \"block\",\n  \"features\": [\n    \"read-only\",\n    \"blk-file\"\n  ]\n}\n";

#[test]
fn capabilities_are_printed_whatever_else_is_asked_for() {
    for arguments in [
        &["--print-capabilities"][..],
        &["--socket-path=/no/s", "--print-capabilities", "--blk-file=/no/f"],
        &["--fd=many", "--nonsense", "--queue-size=3", "--print-capabilities"],
        &["serve", "--print-capabilities"],
    ] {
        assert_eq!(
            output_of(sluice().args(arguments)),
            (Some(0), EXPECTED.into(), String::new()),
            "{arguments:?}"
        );
    }
}
