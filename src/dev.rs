//! A Kinesis for one machine: ferrokinesis in this process, behind a real HTTP endpoint on a loopback port.
//!
//! Place: `demo`, `run --dev` and the tests start it; the agent and the consumer reach it as they reach AWS, with
//! the SDK, a signature and JSON over HTTP. It asks for credentials but believes any: pass [`ACCESS_KEY_ID`] and
//! [`SECRET_ACCESS_KEY`] to `AwsKinesis::connect_with_credentials`, or to a child process as `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY` and `AWS_REGION`.
//!
//! Owner: the serving task; the store is ferrokinesis'. *ONE-AT-A-TIME*: a gate lets one request into the store at a
//! time. Without it its GetRecords keeps a map locked over an await, which stops the server under load, and a
//! reader can pass a sequence number that is not inserted yet. A change of shards is over before the gate opens
//! again, so no record can slip into a shard that a reader has just seen closed.
//!
//! Memory: all is kept in memory and nothing on disk. Records older than [`KEEP_HOURS`] hours are let go (AWS keeps
//! at least 24); at 1 MB/s that still is 3.6 GB, so this is for development and demonstration.
//!
//! Failure: a port that is taken, a stream name that Kinesis would refuse. Absent on purpose: on-demand streams,
//! AUTO distribution, child shards in answers, and everything else that ferrokinesis 0.7.0 does not know, but for records
//! over 1 MiB, which `large` sees to.

mod large;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use ferrokinesis::actions::{Operation, dispatch};
use ferrokinesis::store::{Store, StoreOptions};
use ferrokinesis::types::StreamStatus;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

use crate::kinesis::aws::{AwsKinesis, Target};

/// Region that the embedded Kinesis says it is in.
pub const REGION: &str = "us-east-1";
/// Access key id for clients of the embedded Kinesis. Any will do; this one is easy to recognise.
pub const ACCESS_KEY_ID: &str = "dev";
/// Secret access key to go with it.
pub const SECRET_ACCESS_KEY: &str = "dev";

/// Hours that a record is kept.
pub const KEEP_HOURS: u32 = 1;

/// Largest request body: 10 MiB of records in base64, with room for keys. axum's own limit is 2 MB.
const BODY_BYTES_MAX: usize = 16 << 20;

/// How often old records are let go.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Longest wait for open requests when stopping.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Most shards of a stream; AWS' highest default quota.
const SHARDS_MAX: u32 = 20_000;

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevOptions {
    /// Port on 127.0.0.1; 0 picks a free one.
    pub port: u16,
    /// Shards of the stream, 1 to 20,000.
    pub shards: u32,
    /// Name of the stream, 1 to 128 of `a-z A-Z 0-9 _ . -`.
    pub stream: String,
    /// Refuse what exceeds 1,000 records/s or 1 MiB/s a shard, record by record.
    pub enforce_limits: bool,
}

/// Why the embedded Kinesis cannot start, or cannot make a stream.
#[derive(Debug)]
pub enum DevError {
    /// The port cannot be listened on.
    Listen(SocketAddr, std::io::Error),
    /// No name for a Kinesis stream.
    StreamName(String),
    /// Not a number of shards.
    Shards(u32),
    /// Said by the emulator; a stream of that name exists, for one.
    Refused(String),
}

impl fmt::Display for DevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, error) => {
                write!(f, "the embedded Kinesis cannot listen on {address}: {error}; choose another port, or 0 for any free one")
            }
            Self::StreamName(name) => {
                write!(f, "{name:?} is no stream name: 1 to 128 letters, digits, underscores, dots and hyphens are allowed")
            }
            Self::Shards(shards) => write!(f, "{shards} shards: 1 to {SHARDS_MAX} are allowed"),
            Self::Refused(message) => write!(f, "the embedded Kinesis refused: {message}"),
        }
    }
}

impl std::error::Error for DevError {}

/// A running embedded Kinesis. Dropping it stops it at once; [`DevKinesis::stop`] lets open requests end.
#[derive(Debug)]
pub struct DevKinesis {
    address: SocketAddr,
    endpoint: String,
    stream: String,
    gate: Gate,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    sweeper: JoinHandle<()>,
}

impl DevKinesis {
    /// Listens, creates the stream, and returns when it is active.
    ///
    /// # Errors
    /// See [`DevError`].
    pub async fn start(options: DevOptions) -> Result<Self, DevError> {
        let store = Store::new(StoreOptions {
            // Changes of shards are awaited behind the gate, so there is nothing to simulate.
            create_stream_ms: 0,
            update_stream_ms: 0,
            delete_stream_ms: 0,
            shard_limit: SHARDS_MAX.saturating_mul(4),
            enforce_limits: options.enforce_limits,
            aws_region: REGION.into(),
            ..StoreOptions::default()
        });
        let paid = options.enforce_limits.then(large::Paid::default);
        let gate = Gate { store: store.clone(), turn: Arc::new(Mutex::new(())), paid };
        let router: Router = ferrokinesis::create_router(store)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(middleware::from_fn_with_state(gate.clone(), one_at_a_time));

        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
        let listen_error = |error| DevError::Listen(wanted, error);
        let listener = TcpListener::bind(wanted).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        gate.create_stream(&options.stream, options.shards).await?;

        // Answers are small and awaited: Nagle's delay would be most of their latency.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "embedded Kinesis: TCP_NODELAY");
            }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let until = async move {
                // An error means that the sender is gone: then too the end has come.
                stopped.await.unwrap_or_default();
            };
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(until).await {
                tracing::error!(%error, "embedded Kinesis stopped");
            }
        });
        let sweeper = tokio::spawn(gate.clone().sweep());
        let endpoint = format!("http://{address}");
        Ok(Self { address, endpoint, stream: options.stream, gate, stop: Some(stop), server, sweeper })
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// One more stream, active on return.
    ///
    /// # Errors
    /// A name or a number that Kinesis would refuse, or a stream that exists.
    pub async fn create_stream(&self, name: &str, shards: u32) -> Result<(), DevError> {
        self.gate.create_stream(name, shards).await
    }

    /// Sets the largest record that a stream takes (UpdateMaxRecordSize), KiB: 1,024, as a new stream has it, to 10,240.
    ///
    /// # Errors
    /// Another number, or a stream that does not exist.
    pub async fn set_record_kib_max(&self, name: &str, kib: u32) -> Result<(), DevError> {
        self.gate.set_record_kib_max(name, kib).await
    }

    /// How the first stream is reached.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { region: Some(REGION.into()), endpoint: Some(self.endpoint.clone()), ..Target::new(&*self.stream) }
    }

    /// A client of the first stream, to write and to read.
    #[must_use]
    pub fn client(&self) -> AwsKinesis {
        AwsKinesis::open_with_credentials(self.target(), ACCESS_KEY_ID, SECRET_ACCESS_KEY)
    }

    /// Stops listening, waits up to 2 s for open requests, and lets go of everything stored.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the server has ended already.
            stop.send(()).unwrap_or_default();
        }
        if tokio::time::timeout(STOP_TIMEOUT, &mut self.server).await.is_err() {
            tracing::debug!("embedded Kinesis: cut open requests");
        }
    }
}

impl Drop for DevKinesis {
    fn drop(&mut self) {
        self.server.abort();
        self.sweeper.abort();
    }
}

/// The store and whose turn it is to use it.
#[derive(Clone)]
struct Gate {
    store: Store,
    turn: Arc<Mutex<()>>,
    /// Where rates are enforced: what large records cost.
    paid: Option<large::Paid>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    async fn create_stream(&self, name: &str, shards: u32) -> Result<(), DevError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > 128 || !name.bytes().all(allowed) {
            return Err(DevError::StreamName(name.into()));
        }
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(DevError::Shards(shards));
        }
        let turn = self.turn.lock().await;
        let request = serde_json::json!({"StreamName": name, "ShardCount": shards});
        let outcome = dispatch(&self.store, Operation::CreateStream, request).await;
        outcome.map_err(|error| DevError::Refused(error.body.message.unwrap_or(error.body.error_type)))?;
        self.settle().await;
        drop(turn);
        Ok(())
    }

    async fn set_record_kib_max(&self, name: &str, kib: u32) -> Result<(), DevError> {
        let refused = |error: ferrokinesis::error::KinesisErrorResponse| {
            DevError::Refused(error.body.message.unwrap_or(error.body.error_type))
        };
        let turn = self.turn.lock().await;
        let arn = self.store.get_stream(name).await.map_err(refused)?.stream_arn;
        let request = serde_json::json!({"StreamARN": arn, "MaxRecordSizeInKiB": kib});
        dispatch(&self.store, Operation::UpdateMaxRecordSize, request).await.map_err(refused)?;
        drop(turn);
        Ok(())
    }

    /// Returns when no stream is being created, changed or deleted. Such changes run in tasks of the store, which
    /// were given no delay, so this is a matter of a few turns of the scheduler.
    async fn settle(&self) {
        loop {
            let mut changing = false;
            for name in self.store.list_stream_names().await {
                let status = self.store.get_stream(&name).await.map(|stream| stream.stream_status);
                changing |= status.is_ok_and(|status| status != StreamStatus::Active);
            }
            if !changing {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets go of old records, for ever.
    async fn sweep(self) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tick.tick().await;
            let turn = self.turn.lock().await;
            for name in self.store.list_stream_names().await {
                let gone = self.store.delete_expired_records(&name, KEEP_HOURS).await;
                tracing::debug!(stream = name, records = gone, "embedded Kinesis: old records let go");
            }
            drop(turn);
        }
    }
}

/// *ONE-AT-A-TIME*. The body is read before the turn begins, so that a slow client holds up nobody.
async fn one_at_a_time(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let changes_shards = is_control(&parts.headers);
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let call = large::call(&parts.headers).unwrap_or_default().to_owned();
    let turn = gate.turn.lock().await;
    if let Some(response) = large::put(&gate.store, gate.paid.as_ref(), &call, &body).await {
        return response;
    }
    let mut response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if call == "DescribeStreamSummary" {
        response = large::tell(&gate.store, response).await;
    }
    if changes_shards {
        gate.settle().await;
    }
    drop(turn);
    response
}

/// Whether a request may create, change or delete a stream.
fn is_control(headers: &HeaderMap) -> bool {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default();
    ["Create", "Delete", "Split", "Merge", "Update"].iter().any(|verb| operation.starts_with(verb))
}
