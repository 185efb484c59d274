//! A client's datagram, as it is, through everything that happens to it before its answer leaves.
#![no_main]

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| swarmesh_fuzz::client::check(datagram));
