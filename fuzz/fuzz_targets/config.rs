//! The fuzzer's side of [`sluice_fuzz::configuration`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_fuzz::configuration::run(bytes));
