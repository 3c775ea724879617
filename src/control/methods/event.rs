//! `event.*`: the log of events, as a list and as a feed.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::error::RpcError;
use crate::control::method::{Call, Feed, Outcome, Subscription};
use crate::observe::events::{EVENTS_MAX, Filter};

/// Events that are listed unless said otherwise.
const LAST_DEFAULT: usize = 100;

/// Parameters of `event.list` and `event.subscribe`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct List {
    /// How many past events; 100 for a list, 0 for a subscription if left out.
    pub last: Option<usize>,
    /// Which events.
    pub filter: Filter,
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let log = &call.controller.parts.events;
    let events = log.list(&params.filter, params.last.unwrap_or(LAST_DEFAULT).min(EVENTS_MAX));
    let events: Vec<Value> = events.iter().map(|event| json!(**event)).collect();
    Ok(json!({"events": events, "lost": log.lost()}))
}

pub fn subscribe(call: &Call<'_>, params: List) -> Result<Outcome, RpcError> {
    let last = params.last.unwrap_or(0).min(EVENTS_MAX);
    let (past, feed) = call.controller.parts.events.subscribe(&params.filter, last);
    Ok(Outcome::Subscription(Subscription {
        notification: "event.event",
        first: past.iter().map(|event| json!(**event)).collect(),
        feed: Feed::Events(feed, Box::new(params.filter)),
    }))
}
