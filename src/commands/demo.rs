//! PLACEHOLDER for `forebay demo`, which replaces this file.

use std::process::ExitCode;

use crate::cli::DemoArgs;
use crate::config::Config;
use crate::exit::Exit;

/// Fails.
pub async fn run(_args: DemoArgs, _config: Option<Config>) -> ExitCode {
    eprintln!("forebay: demo is not part of this build");
    Exit::Failed.into()
}
