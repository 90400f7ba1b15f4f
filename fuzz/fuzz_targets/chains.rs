//! The fuzzer's side of [`sluice_fuzz::chains`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_fuzz::chains::run(bytes));
