//! The resolver that a swarm's tasks ask on 127.0.0.11: names of their networks, and everything else forwarded.
//!
//! A [`Zone`] holds one network's names, an [`Asker`] the networks of one container, and [`respond`] answers from both
//! without waiting for anybody.
#![forbid(unsafe_code)]

mod answer;
mod asker;
pub mod forward;
mod server;
pub mod stats;
pub mod wire;
mod zone;

pub use answer::{Answer, Compat, ErrorKind, Outcome, Random, Settings, answers, respond};
pub use asker::{Asker, Found, Membership, reverse_name};
pub use server::{Server, Shared};
pub use zone::{Change, Host, NameHash, OwnerId, Record, ServicePort, Services, Zone, ZoneCell};
