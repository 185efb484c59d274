//! What a TLS client says first.
#![no_main]

libfuzzer_sys::fuzz_target!(|read: &[u8]| swarmesh_fuzz::hello::check(read));
