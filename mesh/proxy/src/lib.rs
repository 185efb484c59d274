//! Carries requests where a table of routes says: HTTP/1.1 and HTTP/2, TLS that ends here or passes through, tunnels.
//!
//! - [`endpoint`]: where connections to backends go, and [`live_set`]: who of a route's gets a request.
//! - [`routing`]: what workers see of routes, and how it is changed.
//! - [`access_log`]: what is told of each request afterwards.
//! - [`auth`]: who may pass, by name and password.
//! - [`compress`]: answers, made smaller on their way.
//! - [`files`]: small files that are read again when they change.
//! - [`hello`]: what a TLS client asks for, read without using it up, and [`rewound`]: the stream that has it again.
//! - [`proxy_protocol`]: who connected to whoever connected here.
//! - [`tunnel`]: bytes both ways, unread.
//! - [`tls`]: TLS that ends here, and TLS to backends.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod auth;
pub mod compress;
pub mod config;
mod cookie;
pub mod endpoint;
pub mod files;
pub mod hello;
mod http;
pub mod live_set;
pub mod metrics;
mod passing;
mod patience;
pub mod proxy_protocol;
pub mod rewound;
pub mod routing;
pub mod tls;
pub mod tunnel;
mod upstream;
mod worker;

pub use config::Config;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use upstream::http1::understood as answers_fuzz;
pub use worker::{Proxy, ProxyError, Shared};
