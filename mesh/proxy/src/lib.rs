//! Carries requests where a table of routes says: HTTP/1.1 and HTTP/2, TLS that ends here or passes through, tunnels.
//!
//! - [`endpoint`]: where connections to backends go.
#![forbid(unsafe_code)]

pub mod endpoint;
