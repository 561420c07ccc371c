//! `forebay config`: the configuration in force, each value with its origin.
//!
//! Place: `main` has read and judged it (a bad one ends there, code 78); this prints it, as a configuration file
//! or as JSON. Write keys are masked in both. With `--quiet`, for units and scripts, nothing is
//! printed.

use std::process::ExitCode;

use crate::cli::ConfigArgs;
use crate::config::Loaded;
use crate::exit::Exit;

/// Prints it.
#[must_use]
pub fn run(args: &ConfigArgs, loaded: &Loaded) -> ExitCode {
    if args.quiet {
        return Exit::Good.into();
    }
    let text = if args.json {
        format!("{:#}\n", loaded.in_force.to_json())
    } else {
        let source = loaded.file.as_ref().map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
        format!("# In force, from {source}, environment and flags.\n{}", loaded.in_force.to_toml())
    };
    match super::print(&text) {
        Ok(()) => Exit::Good.into(),
        Err(error) => {
            eprintln!("forebay: stdout: {error}");
            Exit::Failed.into()
        }
    }
}
