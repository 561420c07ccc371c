//! Writes what packages install beside the binary and what is made from the command line's own declaration: man pages and shell
//! completions. `cargo run --example cli_files -- DIR`.
//!
//! Place: `packaging/release.sh` runs it before it builds packages. An example, so that the shipped binary does not carry it. Failure:
//! as the operating system says, exit code 1.

#![allow(clippy::disallowed_methods, reason = "no simulator has a part in files of a package")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use clap::CommandFactory as _;
use clap_complete::Shell;
use forebay::cli::Cli;

fn main() -> ExitCode {
    let Some(dir) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: cli_files DIR");
        return ExitCode::from(64);
    };
    match write_all(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cli_files: {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut command = Cli::command();
    command.build();
    page(dir, &command, "forebay")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "forebay", dir)?;
    }
    Ok(())
}

/// The page of a command, and those of the commands below it.
fn page(dir: &Path, command: &clap::Command, name: &str) -> io::Result<()> {
    // clap keeps names as static texts; there are some thirty of them, once.
    let title: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let named = command.clone().name(title).version(env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    clap_mangen::Man::new(named.disable_help_subcommand(true)).section("1").manual("forebay").render(&mut text)?;
    fs::File::create(dir.join(format!("{name}.1")))?.write_all(&text)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        page(dir, sub, &format!("{name}-{}", sub.get_name()))?;
    }
    Ok(())
}
