//! PLACEHOLDER for `forebay run`, which replaces this file.

use std::process::ExitCode;

use crate::cli::RunArgs;
use crate::config::Config;
use crate::exit::Exit;

/// Fails.
pub async fn run(_args: RunArgs, _config: Option<Config>) -> ExitCode {
    eprintln!("forebay: run is not part of this build");
    Exit::Failed.into()
}
