//! Carries requests where a table of routes says: HTTP/1.1 and HTTP/2, TLS that ends here or passes through, tunnels.
//!
//! - [`endpoint`]: where connections to backends go.
//! - [`live_set`]: who of a route's endpoints gets a request.
#![forbid(unsafe_code)]

mod cookie;
pub mod endpoint;
pub mod live_set;
