//! PLACEHOLDER for `forebay tail`, which replaces this file.

use std::process::ExitCode;

use crate::cli::TailArgs;
use crate::config::Config;
use crate::exit::Exit;

/// Fails.
pub async fn run(_args: TailArgs, _config: Option<Config>) -> ExitCode {
    eprintln!("forebay: tail is not part of this build");
    Exit::Failed.into()
}
