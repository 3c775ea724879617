//! Commands that need no daemon: `validate`, `explain`, `schema`, `completion`, `man`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::CommandFactory;

use super::failure::{Failure, code};
use super::{Cli, Session, output};
use crate::config::desired::{HostFacts, to_desired};
use crate::config::explain::{self, schema_of_all};
use crate::config::outside::{ServiceAddresses, addresses};
use crate::config::{Diagnostics, Kind, check_set, ipam, load_paths, policies};
use crate::control::paths::Paths;

/// Arguments of `validate`.
#[derive(clap::Args, Debug)]
pub struct ValidateArgs {
    /// Files, folders, or - for standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
}

/// Arguments of `explain`.
#[derive(clap::Args, Debug)]
pub struct ExplainArgs {
    /// Kind, or kind and field, such as Port.spec.backend
    #[arg(value_name = "KIND[.FIELD]")]
    path: Option<String>,
}

/// Arguments of `schema`.
#[derive(clap::Args, Debug)]
pub struct SchemaArgs {
    /// Kind; every kind if left out
    kind: Option<Kind>,
}

/// Arguments of `completion`.
#[derive(clap::Args, Debug)]
pub struct CompletionArgs {
    /// Shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(clap::Args, Debug)]
pub struct ManArgs {
    /// Folder to write to
    dir: PathBuf,
}

/// Checks files as the daemon would.
///
/// # Errors
/// All problems of all files.
pub fn validate(session: &Session, args: &ValidateArgs) -> Result<(), Failure> {
    let loaded = load_paths(&args.files)?;
    let objects = loaded.objects.into_iter().map(Arc::new);
    let count = objects.len();
    let (set, warnings) = check_set(objects, &Paths::system().runtime)?;
    let plan = ipam::assign(&set, &ipam::Assignments::new(), &mut uuid::Uuid::new_v4);
    let services = addresses::assign(&set, &ServiceAddresses::new());
    let mut problems = plan.problems;
    problems.extend(services.problems);
    if !problems.is_empty() {
        return Err(Diagnostics(problems).into());
    }
    // Files of policies alone say nothing about the ports that the daemon has.
    let has_ports = set.ports().next().is_some();
    let keys = || set.iter().map(|(key, _)| key).filter(|_| has_ports);
    let runtime = Paths::system().runtime;
    let facts = HostFacts::system(&runtime);
    let (desired, _) = to_desired(&set, &plan.assignments, &services.addresses, Default::default(), &facts);
    let mut dubious = policies::dubious(&set, keys());
    dubious.extend(crate::config::services::dubious(&set, &desired.ports, keys()));
    dubious.extend(crate::config::outside::dubious(&set, &services.addresses, keys()));
    let color = session.global.color.on_stderr();
    loaded
        .warnings
        .iter()
        .chain(&warnings)
        .chain(&dubious)
        .for_each(|warning| output::hint(warning.render(color).trim_end()));
    output::print(&format!("{count} object{} valid\n", if count == 1 { " is" } else { "s are" }))
}

/// Explains a kind or field.
///
/// # Errors
/// There is none such.
pub fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let Some(path) = &args.path else {
        let rows = Kind::ALL
            .map(|kind| vec![kind.as_str().to_owned(), kind.api_version().to_owned(), kind.short_names().join(",")]);
        return output::print(&output::table(&["KIND", "APIVERSION", "SHORT NAMES"], rows.into()));
    };
    let text = explain::explain(path).map_err(|problem| Failure { code: code::NOT_FOUND, diagnostics: problem })?;
    output::print(&format!("{}\n", text.trim_end()))
}

/// Prints JSON Schema.
///
/// # Errors
/// Nobody reads.
pub fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    output::print_json(&args.kind.map_or_else(schema_of_all, explain::schema))
}

/// Prints what a shell has to read to complete.
///
/// # Errors
/// Nobody reads.
pub fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    output::print(&super::complete::script(args.shell)?)
}

/// Writes man pages.
///
/// # Errors
/// The folder cannot be written to.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.dir)?;
    Ok(clap_mangen::generate_to(Cli::command(), &args.dir)?)
}
