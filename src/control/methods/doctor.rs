//! `doctor.run`: what is wrong with the host, and what to do.

use serde_json::{Value, json};

use super::server::Empty;
use crate::control::doctor::examine;
use crate::control::error::RpcError;
use crate::control::method::Call;

pub fn run(call: &Call<'_>, _: Empty) -> Result<Value, RpcError> {
    Ok(json!({"findings": examine(call.controller)}))
}
