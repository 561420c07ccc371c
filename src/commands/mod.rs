//! What each command of `forebay` does, one file a command.
//!
//! Place: `main` parses, reads the configuration and calls one `run`. Each takes its own arguments and what it
//! needs of the configuration, prints data to stdout and everything else to stderr, and answers an exit code.

pub mod config;
pub mod demo;
pub mod run;
pub mod send;
pub mod status;
pub mod tail;

use std::io::{self, Write as _};

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// As the operating system says, a closed pipe apart.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
