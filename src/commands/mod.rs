//! What each command of `forebay` does, one file a command.
//!
//! Place: `main` parses, reads the configuration and calls one `run`. Each takes its own arguments and what it
//! needs of the configuration, prints data to stdout and everything else to stderr, and answers an exit code.

pub mod check;
pub mod config;
pub mod dead;
#[cfg(feature = "dev")]
pub mod demo;
pub mod dev_cert;
pub mod drain;
pub mod iam_policy;
pub mod run;
pub mod send;
pub mod spool;
pub mod status;
pub mod tail;

use std::io::{self, IsTerminal as _, Write as _};

use crate::cli::{DrainArgs, SendArgs, StatusArgs, TailArgs};
use crate::config::Config;
use crate::exit::Exit;

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

/// Asks a person for a yes, which only `y` and `yes` are. `None` when stdin is no terminal, and nobody is there.
///
/// # Errors
/// As the operating system says.
pub fn asked(question: &str) -> io::Result<Option<bool>> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut line = String::new();
    if io::stdin().read_line(&mut line)? == 0 {
        // Ctrl-D: what follows stands on a line of its own.
        eprintln!();
    }
    Ok(Some(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")))
}

/// What `send` is to do: its flags over the configuration.
///
/// # Errors
/// [`Exit::Configuration`], told, when the configuration has no socket.
pub fn send_options(args: SendArgs, config: Option<&Config>) -> Result<send::SendOptions, Exit> {
    let Some(socket) = config.and_then(|config| config.listen.socket.clone()) else {
        eprintln!("forebay send: listen.socket is off in this configuration; name the agent's socket with --socket PATH");
        return Err(Exit::Configuration);
    };
    let SendArgs { files, source, key, json, quiet, .. } = args;
    Ok(send::SendOptions { socket, source, key, files, json, quiet })
}

/// What `tail` is to do: its flags over what the configuration says of that stream.
#[must_use]
pub fn tail_options(args: TailArgs, config: Option<&Config>) -> tail::TailOptions {
    let known = config.and_then(|config| config.streams.iter().find(|stream| stream.name == args.stream));
    let of = |field: fn(&crate::config::StreamConfig) -> &Option<String>| known.and_then(|stream| field(stream).clone());
    tail::TailOptions {
        region: args.region.or_else(|| of(|stream| &stream.region)),
        endpoint: args.endpoint.or_else(|| of(|stream| &stream.endpoint)),
        profile: of(|stream| &stream.profile),
        role_arn: of(|stream| &stream.role_arn),
        external_id: of(|stream| &stream.external_id),
        stream: args.stream,
        from: args.from.into(),
        json: args.json,
        max: args.max,
        idle_exit: args.idle_exit,
    }
}

/// What `status` is to do.
///
/// # Errors
/// [`Exit::Configuration`], told, when the configuration has no admin listener.
pub fn status_options(args: &StatusArgs, config: Option<&Config>) -> Result<status::StatusOptions, Exit> {
    let Some(admin) = config.and_then(|config| config.listen.admin) else {
        eprintln!("forebay status: listen.admin is off in this configuration; name the agent's admin address with --admin ADDR");
        return Err(Exit::Configuration);
    };
    Ok(status::StatusOptions { admin, json: args.json, quiet: args.quiet })
}

/// What `drain` is to do.
///
/// # Errors
/// [`Exit::Configuration`], told, when the configuration has no admin listener.
pub fn drain_options(args: &DrainArgs, config: Option<&Config>) -> Result<drain::DrainOptions, Exit> {
    let Some(admin) = config.and_then(|config| config.listen.admin) else {
        eprintln!("forebay drain: listen.admin is off in this configuration; name the agent's admin address with --admin ADDR");
        return Err(Exit::Configuration);
    };
    Ok(drain::DrainOptions { admin, timeout: args.timeout, json: args.json })
}
