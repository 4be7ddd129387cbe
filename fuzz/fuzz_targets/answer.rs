//! Searches for an input that makes `fuzz::check_answer` panic.

#![no_main]
#![expect(unsafe_code, reason = "libFuzzer calls an entry point with an unmangled name")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::check_answer(bytes));
