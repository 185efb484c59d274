//! What the netns and swarm tiers share: labs that clean up after themselves, and clients inside of their namespaces.
#![forbid(unsafe_code)]

pub mod agents;
pub mod browser;
pub mod certificates;
pub mod clients;
pub mod dockerlab;
pub mod http;
pub mod lab;
pub mod load;
pub mod names;
pub mod netns;
pub mod patience;
pub mod plane;
pub mod printed;
pub mod rows;
pub mod service_create;
pub mod stray;
pub mod websocket;
