//! What comes before a client's first byte where the PROXY protocol is spoken.
#![no_main]

libfuzzer_sys::fuzz_target!(|read: &[u8]| swarmesh_fuzz::proxy_header::check(read));
