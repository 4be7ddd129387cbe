//! Searches for an input that breaks `fuzz::answer`.

#![no_main]
#![expect(unsafe_code, reason = "libFuzzer calls in by a name that is not mangled")]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::answer(bytes));
