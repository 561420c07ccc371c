//! PLACEHOLDER for `forebay status`, which replaces this file.

use std::process::ExitCode;

use crate::cli::StatusArgs;
use crate::config::Config;
use crate::exit::Exit;

/// Fails.
pub async fn run(_args: StatusArgs, _config: Option<Config>) -> ExitCode {
    eprintln!("forebay: status is not part of this build");
    Exit::Failed.into()
}
