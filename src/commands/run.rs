//! `forebay run`: the agent, until a signal or `POST /drain` ends it.
//!
//! SIGHUP reads the configuration again (`agent::reload`). A service manager is told of all of it (`supervisor`), and may have
//! bound the listeners already (`activation`).
//!
//! SIGTERM and SIGINT drain; a second one ends the wait for delivery at once, which loses nothing: what is not
//! delivered stays in the spool. With `--dev` every stream leads to an embedded Kinesis on a loopback port, over
//! real HTTP with real signatures, and no endpoint, role or profile of the configuration is used.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::activation::Passed;
use crate::agent::Agent;
use crate::agent::reload::Reloaded;
use crate::cli::RunArgs;
use crate::config::{self, Loaded, RealEnvironment, Request, StreamConfig};
use crate::exit::Exit;
use crate::host::Host;
use crate::kinesis::KinesisApi;
use crate::kinesis::aws::AwsKinesis;
use crate::supervisor::Supervisor;

/// What the whole time beside delivery takes at the end, at the most: clients that read their last answers, the last commit,
/// requests under way, the last checkpoint.
const END_MAX: Duration = Duration::from_secs(60);

/// What the process was started with.
#[derive(Debug)]
pub struct Started {
    /// How its configuration was asked for, to ask again.
    pub request: Request,
    /// What was found.
    pub loaded: Loaded,
    /// What a service manager passed.
    pub passed: Passed,
}

/// The signals that the agent lives by.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Runs until it is told to stop.
pub async fn run(args: RunArgs, started: Started) -> ExitCode {
    raise_descriptor_limit();
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("forebay run: cannot listen for signals: {error}");
            return Exit::Failed.into();
        }
    };
    if args.agent.dev {
        return dev::run(&args, started, signals).await;
    }
    serve(started, signals, |stream| Arc::new(AwsKinesis::connect(stream))).await
}

async fn serve(started: Started, mut signals: Signals, connect: impl Fn(&StreamConfig) -> Arc<dyn KinesisApi>) -> ExitCode {
    let Started { request, loaded, passed } = started;
    let config = &loaded.config;
    let host = Host::real();
    let supervisor = Supervisor::start(&host.clock);
    let agent = match Agent::start(config, host, passed, connect).await {
        Ok(agent) => agent,
        Err(error) => {
            eprintln!("forebay run: {error}");
            return if error.is_configuration() { Exit::Configuration } else { Exit::Failed }.into();
        }
    };
    tracing::info!(
        socket = config.listen.socket.as_ref().map(|path| path.display().to_string()),
        http = agent.http.map(|address| address.to_string()),
        https = agent.https.map(|address| address.to_string()),
        http_socket = config.listen.http_socket.as_ref().map(|path| path.display().to_string()),
        admin = agent.admin_address.map(|address| address.to_string()),
        metrics = agent.metrics_address.map(|address| address.to_string()),
        streams = config.streams.len(),
        version = env!("CARGO_PKG_VERSION"),
        "accepting"
    );
    supervisor.ready(agent.life());
    let mut drained = agent.draining();
    let mut last: Option<Loaded> = None;
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = signals.interrupt.recv() => tracing::info!("SIGINT: draining; once more ends the wait for delivery"),
            asked = drained.wait_for(|draining| *draining) => {
                drop(asked);
                tracing::info!("asked to drain");
            }
            _ = signals.hangup.recv() => {
                supervisor.reloading();
                if let Some(new) = reload(&agent, &request, &loaded, last.as_ref().unwrap_or(&loaded)) {
                    last = Some(new);
                }
                supervisor.reloaded();
                continue;
            }
        }
        break;
    }
    let hurry = async move {
        tokio::select! {
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
        }
    };
    let within = agent.drain_within().unwrap_or(last.as_ref().unwrap_or(&loaded).config.drain_timeout);
    supervisor.stopping(within + END_MAX);
    let report = agent.drain(within, hurry).await;
    if report.pending > 0 {
        tracing::warn!(pending = report.pending, "stopped; what is not delivered stays in the spool until the next start");
    } else {
        tracing::info!(clean = report.clean, "stopped; all is delivered");
    }
    Exit::Good.into()
}

/// Reads the configuration again, and tells what came of it. `None`: it has errors, and nothing is changed.
fn reload(agent: &Agent, request: &Request, start: &Loaded, last: &Loaded) -> Option<Loaded> {
    let new = match config::load(&RealEnvironment, request) {
        Ok(new) => new,
        Err(problems) => {
            tracing::error!("SIGHUP: nothing is changed, the configuration has errors: {problems}");
            return None;
        }
    };
    let reloaded = match agent.reload(start, last, &new) {
        Ok(reloaded) => reloaded,
        Err(error) => {
            tracing::error!(%error, "SIGHUP: nothing is changed");
            return None;
        }
    };
    let Reloaded { taken, waiting } = reloaded;
    match taken.is_empty() {
        true => {
            tracing::info!("SIGHUP: the configuration was read again; nothing that can change while the agent runs has changed")
        }
        false => tracing::info!(changed = taken.join(", "), "SIGHUP: the configuration was read again"),
    }
    if !waiting.is_empty() {
        tracing::warn!(keys = waiting.join(", "), "these differ from what runs, and need a restart");
    }
    Some(new)
}

/// Thousands of connections need thousands of descriptors; the soft limit is often 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, current = limit.current, "the limit of open files could not be raised");
    }
}

#[cfg(feature = "dev")]
mod dev {
    use super::{Arc, AwsKinesis, Exit, ExitCode, Host, RunArgs, Signals, Started, serve};
    use crate::dev::{ACCESS_KEY_ID, DevKinesis, DevOptions, SECRET_ACCESS_KEY};
    use crate::kinesis::aws::Target;
    use crate::limits::{KEY_BYTES_MAX, MARGIN_BYTES, RECORD_BYTES_MAX};

    pub(super) async fn run(args: &RunArgs, started: Started, signals: Signals) -> ExitCode {
        let config = &started.loaded.config;
        // On a fresh machine nothing of the chosen place exists yet, and the socket may stand in it.
        if let Err(error) = Host::real().files.create_dir_all(&config.spool.dir) {
            eprintln!("forebay run --dev: cannot create {}: {error}", config.spool.dir.display());
            return Exit::Failed.into();
        }
        let plain = |name: &str| name.rsplit_once(":stream/").map_or(name, |(_, name)| name).to_owned();
        let Some(first) = config.streams.first() else { return Exit::Configuration.into() };
        let options =
            DevOptions { port: 0, shards: args.dev_shards, stream: plain(&first.name), enforce_limits: args.dev_enforce_limits };
        let kinesis = match DevKinesis::start(options).await {
            Ok(kinesis) => kinesis,
            Err(error) => {
                eprintln!("forebay run --dev: {error}");
                return Exit::Failed.into();
            }
        };
        for stream in &config.streams[1..] {
            if let Err(error) = kinesis.create_stream(&plain(&stream.name), args.dev_shards).await {
                eprintln!("forebay run --dev: stream {}: {error}", stream.name);
                return Exit::Failed.into();
            }
        }
        for stream in &config.streams {
            // Each takes what its sources may take.
            let sources = config.sources.iter().filter(|source| source.stream == stream.name);
            let largest = sources.map(|source| source.max_event_bytes).max().unwrap_or(0);
            let kib = (largest + KEY_BYTES_MAX + MARGIN_BYTES).div_ceil(1024).max(RECORD_BYTES_MAX / 1024) as u32;
            if let Err(error) = kinesis.set_record_kib_max(&plain(&stream.name), kib).await {
                eprintln!("forebay run --dev: stream {}: {error}", stream.name);
                return Exit::Failed.into();
            }
        }
        eprintln!("embedded Kinesis at {} (credentials {ACCESS_KEY_ID}/{SECRET_ACCESS_KEY}); read it with:", kinesis.endpoint());
        for stream in &config.streams {
            eprintln!(
                "  AWS_ACCESS_KEY_ID={ACCESS_KEY_ID} AWS_SECRET_ACCESS_KEY={SECRET_ACCESS_KEY} forebay tail {} --region us-east-1 --from trim-horizon --endpoint {}",
                plain(&stream.name),
                kinesis.endpoint()
            );
        }
        let base = kinesis.target();
        let code = serve(started, signals, |stream| {
            let target = Target { stream: plain(&stream.name), request_timeout: stream.request_timeout, ..base.clone() };
            Arc::new(AwsKinesis::open_with_credentials(target, ACCESS_KEY_ID, SECRET_ACCESS_KEY))
        })
        .await;
        kinesis.stop().await;
        code
    }
}

#[cfg(not(feature = "dev"))]
mod dev {
    use super::{Exit, ExitCode, RunArgs, Signals, Started};

    #[expect(clippy::unused_async, reason = "the same signature as with the feature")]
    pub(super) async fn run(_: &RunArgs, _: Started, _: Signals) -> ExitCode {
        eprintln!("forebay run --dev: this build has no embedded Kinesis (cargo feature `dev`)");
        Exit::Usage.into()
    }
}
