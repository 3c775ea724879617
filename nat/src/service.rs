//! Services: which backend a new connection to a Service's address goes to (SEMANTICS §2).

mod model;

pub use model::*;
