//! Carries requests where a table of routes says: HTTP/1.1 and HTTP/2, TLS that ends here or passes through, tunnels.
//!
//! - [`auth`]: who may pass, by name and password.
//! - [`compress`]: answers, made smaller on their way.
//! - [`endpoint`]: where connections to backends go.
//! - [`live_set`]: who of a route's endpoints gets a request.
//! - [`hello`]: what a TLS client says first; [`rewound`]: what was read of a stream, to be read again.
//! - [`proxy_protocol`]: who connected to whoever connected here.
//! - [`tls`]: certificates by name, TLS that ends here, and TLS to backends.
//! - [`tunnel`]: bytes both ways.
#![forbid(unsafe_code)]

pub mod auth;
pub mod compress;
mod cookie;
pub mod endpoint;
pub mod live_set;
pub mod hello;
pub mod proxy_protocol;
pub mod rewound;
pub mod tls;
pub mod tunnel;
