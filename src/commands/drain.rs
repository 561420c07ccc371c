//! `forebay drain`: asks the agent to stop accepting, to deliver what it holds and to end, and waits for that.
//!
//! Place: a person or a script before maintenance. Not a sidecar's preStop hook, which Kubernetes runs while the application still sends
//! (docs/KUBERNETES.md). One `POST /drain?wait` to the admin listener, whose answer comes when all
//! streams have ended. The agent's process is gone a moment later.
//!
//! Failure: no agent, or a connection that breaks (the agent was killed), in one sentence on stderr and exit code 1; so does an
//! agent that leaves events undelivered. They stay in its spool: nothing is lost by any of it. Absent on purpose: a limit of its own on
//! the time, since the agent keeps one.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, StatusCode};

use super::print;
use super::status::{StatusError, call, count};
use crate::admin::Drained;
use crate::exit::Exit;

/// An answer is a few numbers.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct DrainOptions {
    /// The agent's admin listener.
    pub admin: SocketAddr,
    /// How long delivery may take; `None`: the agent's own `drain_timeout`.
    pub timeout: Option<Duration>,
    /// Print JSON.
    pub json: bool,
}

/// Drains, and tells what is left. Exit code 0 when nothing is.
pub async fn run(options: DrainOptions) -> ExitCode {
    let drained = match ask(&options).await {
        Ok(drained) => drained,
        Err(error) => {
            eprintln!("forebay drain: {error}");
            return Exit::Failed.into();
        }
    };
    let Drained { pending, clean } = drained;
    let text = match (options.json, pending) {
        (true, _) => format!("{}\n", serde_json::json!({"pending": pending, "clean": clean})),
        (false, 0) => "drained: all is delivered\n".to_owned(),
        (false, _) => format!("drained: {} events stay in the spool, for the next start\n", count(pending)),
    };
    match print(&text) {
        Ok(()) if pending == 0 => Exit::Good.into(),
        Ok(()) => Exit::Failed.into(),
        Err(error) => {
            eprintln!("forebay drain: cannot write to stdout: {error}");
            Exit::Failed.into()
        }
    }
}

async fn ask(options: &DrainOptions) -> Result<Drained, StatusError> {
    let admin = options.admin;
    let mut path = "/drain?wait".to_owned();
    if let Some(timeout) = options.timeout {
        path.push_str(&format!("&timeout_ms={}", timeout.as_millis()));
    }
    let request = Request::post(path).body(Full::default()).expect("this path makes a valid request");
    let (status, body) = call(admin, request, ANSWER_BYTES_MAX).await?;
    if status != StatusCode::OK {
        return Err(StatusError::NotForebay(admin, format!("POST /drain says {status}")));
    }
    serde_json::from_slice(&body).map_err(|error| StatusError::NotForebay(admin, error.to_string()))
}
