//! `hostweave rpc`: any method of the control socket.

use serde_json::{Value, json};

use super::Session;
use super::failure::Failure;
use super::output::{self, Format};
use crate::control::method::{METHODS, parameter_names};

/// Arguments of `rpc`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Method, such as port.list
    #[arg(required_unless_present = "list")]
    method: Option<String>,
    /// Parameters, a JSON object
    #[arg(default_value = "{}")]
    params: String,
    /// List the methods
    #[arg(long)]
    list: bool,
}

/// Calls a method and prints its result as JSON.
///
/// # Errors
/// The parameters are not JSON, or the daemon's error.
pub fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    if args.list {
        return list(session);
    }
    let params: Value = serde_json::from_str(&args.params).map_err(|error| {
        Failure::usage(format!("the parameters are not JSON: {error}")).help("for example '{\"name\":\"web-0\"}'")
    })?;
    let method = args.method.as_deref().unwrap_or_default();
    let mut client = session.connect()?;
    let result = client.call(method, params)?;
    if !matches!(method, "event.subscribe" | "object.watch") {
        return output::print_json(&result);
    }
    // A subscription goes on until it is interrupted.
    loop {
        output::print(&format!("{}\n", client.notification()?))?;
    }
}

fn list(session: &Session) -> Result<(), Failure> {
    if session.global.output == Format::Json {
        return output::print_json(&crate::control::method::openrpc());
    }
    if session.global.output == Format::Name {
        return output::print(&METHODS.iter().map(|method| format!("{}\n", method.name)).collect::<String>());
    }
    let rows = METHODS.iter().map(|method| {
        let params = parameter_names(method).join(",");
        vec![method.name.to_owned(), output::text(&json!(params)), method.doc.to_owned()]
    });
    output::print(&output::table(&["METHOD", "PARAMETERS", "WHAT IT DOES"], rows.collect()))
}
