//! From labels to routes, and from routes to a table that says where a request goes. No I/O, no clock.
//!
//! - [`dialect`]: labels of services and containers, in five languages, to routes.
//! - [`model`]: what a route is, as plain data. The proxy will know nothing else.
//! - [`table`]: routes to a [`Table`], which finds a request's route at a cost that does not follow the number of hosts.
#![forbid(unsafe_code)]

pub mod dialect;
pub mod model;
mod problem;
pub mod table;

pub use model::Route;
pub use problem::{Effect, Reason, RouteProblem};
pub use table::{Request, Table};
