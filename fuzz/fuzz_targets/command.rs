//! Searches for an input that breaks `fuzz::command`.

#![no_main]
#![expect(unsafe_code, reason = "libFuzzer calls in by a name that is not mangled")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::command(bytes));
