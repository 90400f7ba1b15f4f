//! The fuzzer's side of [`sluice_fuzz::messages`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_fuzz::messages::run(bytes));
