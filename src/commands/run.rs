//! `forebay run`: the agent, until a signal or `POST /drain` ends it.
//!
//! SIGTERM and SIGINT drain; a second one ends the wait for delivery at once, which loses nothing: what is not
//! delivered stays in the spool. With `--dev` every stream leads to an embedded Kinesis on a loopback port, over
//! real HTTP with real signatures, and no endpoint, role or profile of the configuration is used.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::agent::Agent;
use crate::cli::RunArgs;
use crate::config::{Config, StreamConfig};
use crate::exit::Exit;
use crate::host::Host;
use crate::kinesis::KinesisApi;
use crate::kinesis::aws::AwsKinesis;

/// Runs until it is told to stop.
pub async fn run(args: RunArgs, config: Option<Config>) -> ExitCode {
    let Some(config) = config else {
        eprintln!("forebay run: no configuration was read");
        return Exit::Configuration.into();
    };
    raise_descriptor_limit();
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(terminate), Ok(interrupt)) = signals else {
        eprintln!("forebay run: cannot listen for signals");
        return Exit::Failed.into();
    };
    if args.agent.dev {
        return dev::run(&args, config, terminate, interrupt).await;
    }
    serve(&config, terminate, interrupt, |stream| Arc::new(AwsKinesis::connect(stream))).await
}

async fn serve(
    config: &Config,
    mut terminate: Signal,
    mut interrupt: Signal,
    connect: impl Fn(&StreamConfig) -> Arc<dyn KinesisApi>,
) -> ExitCode {
    let agent = match Agent::start(config, Host::real(), connect).await {
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
        streams = config.streams.len(),
        version = env!("CARGO_PKG_VERSION"),
        "accepting"
    );
    let mut drained = agent.draining();
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining; once more ends the wait for delivery"),
        asked = drained.wait_for(|draining| *draining) => {
            drop(asked);
            tracing::info!("asked to drain");
        }
    }
    let hurry = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let report = agent.drain(config.drain_timeout, hurry).await;
    if report.pending > 0 {
        tracing::warn!(pending = report.pending, "stopped; what is not delivered stays in the spool until the next start");
    } else {
        tracing::info!(clean = report.clean, "stopped; all is delivered");
    }
    Exit::Good.into()
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
    use super::{Arc, AwsKinesis, Config, Exit, ExitCode, Host, RunArgs, Signal, serve};
    use crate::dev::{ACCESS_KEY_ID, DevKinesis, DevOptions, SECRET_ACCESS_KEY};
    use crate::kinesis::aws::Target;
    use crate::limits::{KEY_BYTES_MAX, MARGIN_BYTES, RECORD_BYTES_MAX};

    pub(super) async fn run(args: &RunArgs, config: Config, terminate: Signal, interrupt: Signal) -> ExitCode {
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
        let code = serve(&config, terminate, interrupt, |stream| {
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
    use super::{Config, Exit, ExitCode, RunArgs, Signal};

    #[expect(clippy::unused_async, reason = "the same signature as with the feature")]
    pub(super) async fn run(_: &RunArgs, _: Config, _: Signal, _: Signal) -> ExitCode {
        eprintln!("forebay run --dev: this build has no embedded Kinesis (cargo feature `dev`)");
        Exit::Usage.into()
    }
}
