//! The node agent and its command line.
//!
//! Two threads do the agent's work. The main thread observes the swarm ([`swarmesh_source`]) and answers the [`admin`] API;
//! the [`engine`]'s own thread plans and programs the kernel. They meet in a channel of updates and in [`view::Shared`], so
//! that a slow scrape never delays a change, and a big change never delays `/healthz`.
#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod choice;
pub mod cli;
pub mod config;
mod doctor;
pub mod engine;
pub mod flow_proxy;
mod names;
mod notify;
mod plane;
mod privilege;
mod router;
mod store;
pub mod view;

pub use names::{NameSettings, Names, NamesError, ResolverStatus};
pub use plane::Plane;
pub use router::Router;
pub use store::{Store, StoreError};
