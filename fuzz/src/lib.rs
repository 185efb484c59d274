//! What must hold for whatever comes in by the wire. A target that is wrong about something panics.
#![forbid(unsafe_code)]

pub mod backend;
pub mod client;
pub mod hello;
pub mod ipvs;
mod names;
pub mod proxy_header;
mod raw;
pub mod upstream;
