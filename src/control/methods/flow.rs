//! `flow.*`: the flow log, as a list and as a feed, in Hubble's protojson.

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::error::{ErrorKind, RpcError};
use crate::control::method::{Call, Feed, Outcome, Subscription};
use crate::observe::flow_filter::{BadFilter, FlowFilter, Selection};
use crate::observe::flow_log::FLOWS_KEPT;
use crate::observe::time::parse_rfc3339;

/// Flows that are listed unless said otherwise.
const LAST_DEFAULT: usize = 100;

/// Filters of one list.
const FILTERS_MAX: usize = 64;

/// Parameters of `flow.list` and `flow.subscribe`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct List {
    /// How many past flows; 100 for a list, 0 for a subscription if left out.
    last: Option<usize>,
    /// Of a list, how many of the oldest flows instead.
    first: Option<usize>,
    /// Only flows not before this time, RFC 3339.
    since: Option<String>,
    /// Only flows not after this time, RFC 3339.
    until: Option<String>,
    /// Only flows that this filter wants; the same as one in the white list.
    filter: Option<FlowFilter>,
    /// Only flows that one of these filters wants, if there are any.
    whitelist: Vec<FlowFilter>,
    /// No flow that one of these filters wants.
    blacklist: Vec<FlowFilter>,
}

/// Parameters of `flow.unsubscribe`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unsubscribe {
    /// What `flow.subscribe` gave on this connection.
    subscription: u64,
}

pub fn list(call: &Call<'_>, params: List) -> Result<Value, RpcError> {
    let last = params.last.unwrap_or(LAST_DEFAULT).min(FLOWS_KEPT);
    let first = params.first;
    if first.is_some() && params.last.is_some() {
        return Err(RpcError::new(ErrorKind::InvalidParams, "first", "the first flows or the last ones, not both"));
    }
    let selection = selection(params)?;
    let log = call.controller.parts.fabric.flow_log();
    let node = call.controller.node_name();
    let flows = match first {
        Some(first) => log.oldest(&selection, first, &node),
        None => log.list(&selection, last, &node),
    };
    Ok(json!({"flows": flows, "seen": log.count(), "lost": log.lost()}))
}

pub fn subscribe(call: &Call<'_>, params: List) -> Result<Outcome, RpcError> {
    if params.first.is_some() {
        return Err(RpcError::new(ErrorKind::InvalidParams, "first", "a subscription goes on from the last flows"));
    }
    let last = params.last.unwrap_or(0).min(FLOWS_KEPT);
    let selection = selection(params)?;
    let node = call.controller.node_name();
    let (past, feed) = call.controller.parts.fabric.flow_log().subscribe(&selection, last, &node);
    Ok(Outcome::Subscription(Subscription {
        notification: "flow.event",
        first: past.iter().map(|event| json!(event)).collect(),
        feed: Feed::Flows { feed, selection: Box::new(selection), node },
    }))
}

pub fn unsubscribe(_: &Call<'_>, params: Unsubscribe) -> Result<Outcome, RpcError> {
    Ok(Outcome::Unsubscribe(params.subscription))
}

/// Understands the filters.
fn selection(params: List) -> Result<Selection, RpcError> {
    let List { since, until, filter, mut whitelist, blacklist, .. } = params;
    whitelist.extend(filter);
    for (field, list) in [("whitelist", &whitelist), ("blacklist", &blacklist)] {
        if list.len() > FILTERS_MAX {
            let message = format!("a list has at most {FILTERS_MAX} filters, not {}", list.len());
            return Err(RpcError::new(ErrorKind::InvalidParams, field, message));
        }
    }
    let compile = |list: Vec<FlowFilter>| list.into_iter().map(FlowFilter::compile).collect::<Result<Vec<_>, _>>();
    Ok(Selection {
        whitelist: compile(whitelist)?,
        blacklist: compile(blacklist)?,
        since: moment("since", since.as_deref())?,
        until: moment("until", until.as_deref())?,
    })
}

pub fn moment(field: &str, text: Option<&str>) -> Result<Option<SystemTime>, RpcError> {
    let Some(text) = text else { return Ok(None) };
    let error = || {
        let message = format!("{text:?} is no time");
        RpcError::new(ErrorKind::InvalidParams, field, message).help("write RFC 3339: 2026-11-23T15:30:01Z")
    };
    parse_rfc3339(text).map(Some).ok_or_else(error)
}

impl From<BadFilter> for RpcError {
    fn from(error: BadFilter) -> Self {
        RpcError::new(ErrorKind::InvalidParams, format!("filter.{}", error.field), error.message)
    }
}
