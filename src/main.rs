//! The binary: everything is in the library, so that tests, fuzzers and benchmarks can link it.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostweave::cli::main()
}
