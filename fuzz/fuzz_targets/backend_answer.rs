//! What a backend says to a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| swarmesh_fuzz::backend::check(input));
