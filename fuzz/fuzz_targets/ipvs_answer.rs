//! What a netlink socket for IPVS reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|read: &[u8]| swarmesh_fuzz::ipvs::check(read));
