//! The fuzzer's side of [`sluice_fuzz::inflight`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_fuzz::inflight::run(bytes));
