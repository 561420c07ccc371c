//! PLACEHOLDER for `forebay send`, which replaces this file.

use std::process::ExitCode;

use crate::cli::SendArgs;
use crate::config::Config;
use crate::exit::Exit;

/// Fails.
pub async fn run(_args: SendArgs, _config: Option<Config>) -> ExitCode {
    eprintln!("forebay: send is not part of this build");
    Exit::Failed.into()
}
