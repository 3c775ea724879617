//! The real binary, as people and programs meet it: a daemon without root in a folder of its own, the command line, JSON-RPC
//! lines and HTTP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bugreport;
mod cli;
mod connectivity;
mod control;
mod edit;
mod flows;
mod outside;
mod policy;
mod services;
mod support;
mod why;
