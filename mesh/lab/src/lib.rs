#![forbid(unsafe_code)]

pub mod command;
pub mod runtime;
pub mod stack;
pub mod swarm;
pub mod whoami;
