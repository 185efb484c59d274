//! The nft plane on the kernel in memory: what it writes, what it leaves alone, and how it comes back from failures.

#[path = "../common/mod.rs"]
mod common;
mod direct;
mod failures;
mod flows;
mod late;
mod outside;
mod places;
mod plans;
mod strangers;
mod virtuals;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOSPC: i32 = 28;
const ENOBUFS: i32 = 105;
const UDP: u8 = 17;
