//! Two bytes that say what was asked and how, and then an upstream's answer to it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| swarmesh_fuzz::upstream::check(input));
