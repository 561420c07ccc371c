//! The data plane over HTTP: HTTP/1.1 and HTTP/2, on a loopback port, on one with TLS, on a Unix socket.
//!
//! Place: `run` binds at start, one [`HttpDoor`] a listener (`listen`), and serves until the shutdown signal. A connection is
//! one task that hyper drives, after the TLS handshake where there is one (`tls`);
//! every request passes the guards (`guard`: host, origin), then its route. Bodies are read and decoded within
//! limits by `body`; a door (`events` for `/ingest`, one file for each vendor) judges them and makes the answer, and `submit`
//! is the way to the spool that all doors share. The path alone tells the door.
//!
//! *RECEIPT-AFTER-SYNC*: a success answer leaves only when every batch of the request is durable. *BOUNDED*:
//! bodies of all requests together share one memory budget; a request that waits too long for memory or for the
//! spool is answered 503 with `Retry-After`, having cost nothing.
//!
//! Failure: every answer other than 200 is `{"error":"…"}`, saying what is wrong and what is allowed, and holds
//! nothing of an event. Silent or slow clients run into timeouts: first request's head, later heads, each piece of a body.
//!
//! *ALL-ANSWERED*: many SDKs throw away what they got no answer to. So at shutdown requests under way are finished, or answered
//! 503 before the time for that is over; connections are accepted until no older one is left, requests on them and those that
//! lie in an idle connection's socket get 503; only then is a connection closed, and the listening socket after the last.
//! Absent on purpose: anything but this machine.

mod amplitude;
mod answer;
mod body;
mod events;
mod guard;
mod kinesis;
mod listen;
mod mparticle;
mod segment;
mod submit;
pub mod tls;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::ingest::{DRAIN_GRACE, LiveSources, Shutdown, Sources, stopped, unix};
use answer::{Answer, Problem};
use listen::{Arrived, Listener, Via};
use tls::Pair;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 128;

/// How often a silent HTTP/2 connection is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long after the signal an idle connection is still listened to: a request may be on its way.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long before the end of [`DRAIN_GRACE`] a request that is still under way is answered, so that the answer gets out.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What may be set about the door.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Host names besides loopback ones that a `Host` header may carry.
    pub allowed_hosts: Vec<String>,
    /// Browser origins that may send, such as `https://app.example.com`.
    pub allowed_origins: Vec<String>,
    /// Connections at once; further ones wait in the kernel's backlog. Default 4096.
    pub connections_max: usize,
    /// From the beginning of a connection to the end of its first request's head. Default 30 s.
    pub head_timeout: Duration,
    /// From an answer to the end of the next request's head: how long a connection is kept for its client. Default 90 s:
    /// longer than SDKs keep theirs, so that none sends into a connection that is just being closed.
    pub idle_timeout: Duration,
    /// Each piece of a body. Default 60 s.
    pub body_timeout: Duration,
    /// How long a request may wait for memory or for the spool. Default 8 s.
    pub admit_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            connections_max: 4096,
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(90),
            body_timeout: Duration::from_secs(60),
            admit_timeout: Duration::from_secs(8),
        }
    }
}

/// Why a listener cannot be bound.
#[derive(Debug)]
pub enum BindError {
    /// A port.
    Port {
        /// Its key in the configuration.
        key: &'static str,
        /// Where it should be.
        address: SocketAddr,
        /// What the operating system said.
        error: io::Error,
    },
    /// The Unix socket.
    Socket(unix::BindError),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { key, address, error } => {
                write!(f, "HTTP listener {address}: cannot bind it: {error}")?;
                if error.kind() == io::ErrorKind::AddrInUse {
                    write!(f, "; another process listens there: stop it, set {key} to another port, or to \"\" to go without")?;
                }
                Ok(())
            }
            Self::Socket(error) => error.tell("listen.http_socket", f),
        }
    }
}

impl std::error::Error for BindError {}

/// A bound and listening port or socket.
#[derive(Debug)]
pub struct HttpDoor {
    listener: Listener,
    /// Bound by a service manager, which goes on listening when the agent ends.
    passed: bool,
    options: HttpOptions,
    memory: Arc<body::Memory>,
}

/// Binds `address`. Must be called within a tokio runtime.
///
/// # Errors
/// [`BindError`], with its remedy.
pub async fn bind(address: SocketAddr, options: HttpOptions) -> Result<HttpDoor, BindError> {
    let listener = Listener::Port(port("listen.http", address).await?);
    Ok(HttpDoor { listener, passed: false, options, memory: Arc::default() })
}

/// Binds `address` for HTTP over TLS. Must be called within a tokio runtime.
///
/// # Errors
/// [`BindError`], with its remedy.
pub async fn bind_tls(address: SocketAddr, pair: Pair, options: HttpOptions) -> Result<HttpDoor, BindError> {
    let listener = Listener::Tls(port("listen.https", address).await?, Arc::new(pair));
    Ok(HttpDoor { listener, passed: false, options, memory: Arc::default() })
}

/// Binds `path` for HTTP over a Unix socket, by the rules of [`unix`], for these user ids (none: whoever may open it).
/// Must be called within a tokio runtime.
///
/// # Errors
/// [`BindError`], with its remedy.
pub async fn bind_socket(path: &Path, allowed_uids: Vec<u32>, options: HttpOptions) -> Result<HttpDoor, BindError> {
    let (listener, file) = unix::bind_file(path).await.map_err(BindError::Socket)?;
    let listener = Listener::Socket { _file: Some(file), listener, allowed_uids };
    Ok(HttpDoor { listener, passed: false, options, memory: Arc::default() })
}

async fn port(key: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    // tokio sets SO_REUSEADDR, so that connections in TIME_WAIT do not keep a restarted agent out.
    TcpListener::bind(address).await.map_err(|error| BindError::Port { key, address, error })
}

/// What all requests share.
#[derive(Debug)]
struct Common {
    sources: LiveSources,
    options: Arc<HttpOptions>,
    memory: Arc<body::Memory>,
    shutdown: Shutdown,
}

/// The same for one request, with the sources of its beginning.
#[derive(Debug)]
struct Context {
    sources: Sources,
    options: Arc<HttpOptions>,
    memory: Arc<body::Memory>,
    shutdown: Shutdown,
}

impl Common {
    fn for_a_request(&self) -> Context {
        let Self { sources, options, memory, shutdown } = self;
        let (options, memory) = (Arc::clone(options), Arc::clone(memory));
        Context { sources: sources.now(), options, memory, shutdown: shutdown.clone() }
    }
}

impl HttpDoor {
    /// Where it listens; of use where port 0 was asked for.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.address()
    }

    /// A port that was passed, already listening.
    #[must_use]
    pub fn on_port(listener: TcpListener, options: HttpOptions) -> Self {
        Self { listener: Listener::Port(listener), passed: true, options, memory: Arc::default() }
    }

    /// A port with TLS that was passed, already listening.
    #[must_use]
    pub fn on_tls(listener: TcpListener, pair: Pair, options: HttpOptions) -> Self {
        Self { listener: Listener::Tls(listener, Arc::new(pair)), passed: true, options, memory: Arc::default() }
    }

    /// A Unix socket that was passed, already listening, for these user ids (none: whoever may open it).
    #[must_use]
    pub fn on_socket(listener: UnixListener, allowed_uids: Vec<u32>, options: HttpOptions) -> Self {
        let listener = Listener::Socket { _file: None, listener, allowed_uids };
        Self { listener, passed: true, options, memory: Arc::default() }
    }

    /// Bodies of this listener and of `other` share one budget.
    pub fn share_memory(&mut self, other: &Self) {
        self.memory = Arc::clone(&other.memory);
    }

    /// Serves until `shutdown`, then returns once all connections are done.
    pub async fn serve(self, sources: impl Into<LiveSources>, shutdown: Shutdown) {
        let Self { listener, passed, options, memory } = self;
        let connections_max = options.connections_max.max(1);
        let (sources, options) = (sources.into(), Arc::new(options));
        let context = Arc::new(Common { sources, options, memory, shutdown: shutdown.clone() });
        let mut connections: JoinSet<()> = JoinSet::new();
        let mut stop = stopped(shutdown);
        let mut accepting = true;
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => note_end(ended),
                accepted = listener.accept(), if connections.len() < connections_max => match accepted {
                    Ok(arrived) => {
                        accepting = true;
                        connections.spawn(serve_connection(arrived, Arc::clone(&context)));
                    }
                    Err(error) => {
                        if std::mem::replace(&mut accepting, false) {
                            tracing::warn!(%error, "cannot accept HTTP connections; trying again (is the limit of open files too low?)");
                        }
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Through a passed port clients still come, and the next agent serves them.
        let ours = !passed;
        // Who connects now is told, for as long as older connections are being finished; those that wait to be accepted always.
        let mut older = connections;
        let mut told: JoinSet<()> = JoinSet::new();
        let mut late = pin!(sleep(DRAIN_GRACE));
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept(), if ours && told.len() < connections_max => match accepted {
                    Ok(arrived) => drop(told.spawn(serve_connection(arrived, Arc::clone(&context)))),
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                },
                Some(ended) = told.join_next(), if !told.is_empty() => note_end(ended),
                ended = older.join_next() => match ended {
                    Some(ended) => note_end(ended),
                    None => break,
                },
                () = &mut late => break,
            }
        }
        drop(listener);
        while let Some(ended) = older.join_next().await {
            note_end(ended);
        }
        while let Some(ended) = told.join_next().await {
            note_end(ended);
        }
    }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an HTTP connection's task ended abnormally");
    }
}

async fn serve_connection(arrived: Arrived, context: Arc<Common>) {
    let opened = arrived.open(context.options.head_timeout, context.shutdown.clone()).await;
    let Some((stream, via)) = opened else { return };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(context.options.idle_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .adaptive_window(false);
    let began = Arc::new(AtomicBool::new(false));
    let service = service_fn(|request| {
        began.store(true, Ordering::Relaxed);
        let context = context.for_a_request();
        async move { Ok::<_, Infallible>(handle(request, via, &context).await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stop = stopped(context.shutdown.clone());
    // hyper's own timeout begins with the request's head, once it has told HTTP/1.1 from HTTP/2: it never does for
    // a client that is silent from the start.
    let mut opening = pin!(sleep(context.options.head_timeout));
    let outcome = loop {
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            () = opening.as_mut(), if !opening.is_elapsed() => if !began.load(Ordering::Relaxed) { return },
            () = &mut stop => {
                // A request may lie in the socket, or be on its way, while hyper takes the connection for idle.
                let last_words = pin!(sleep(LAST_WORDS));
                tokio::select! {
                    outcome = connection.as_mut() => break outcome,
                    () = last_words => {}
                }
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    outcome = connection => break outcome,
                    () = sleep(DRAIN_GRACE) => return,
                }
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

async fn handle(request: Request<Incoming>, via: Via, context: &Context) -> Answer {
    let one = request.version() < hyper::Version::HTTP_2;
    let origin = match guard::check(&request, via, &context.options) {
        Ok(origin) => origin,
        Err(problem) => {
            let mut answer = problem.answer();
            guard::vary(&mut answer, &context.options);
            return answer;
        }
    };
    let late = async {
        let mut shutdown = context.shutdown.clone();
        // An error means that the sender is gone, which is a stop too.
        let _sender_is_gone = shutdown.wait_for(|stop| *stop).await.is_err();
        sleep(DRAIN_GRACE - LAST_ANSWERS).await;
    };
    let answered = tokio::select! {
        biased;
        answered = submit::patient(context.options.admit_timeout, route(request, context, origin.is_some())) => answered,
        () = late => Err(submit::draining()),
    };
    let mut answer = match answered {
        Ok(answer) => answer,
        Err(problem) => problem.answer(),
    };
    answer::name_class(&mut answer, context.sources.sync());
    if let Some(origin) = origin {
        guard::allow(origin, &mut answer);
    }
    guard::vary(&mut answer, &context.options);
    if one && *context.shutdown.borrow() {
        answer::close(&mut answer);
    }
    answer
}

async fn route(request: Request<Incoming>, context: &Context, from_browser: bool) -> Result<Answer, Problem> {
    let path = request.uri().path();
    if request.method() == Method::OPTIONS && from_browser {
        return Ok(guard::preflight());
    }
    if let Some(call) = amplitude::Call::of_path(path) {
        return Ok(amplitude::handle(call, request, context).await);
    }
    if let Some(call) = mparticle::Call::of_path(path) {
        return Ok(mparticle::handle(call, request, context).await);
    }
    if path == "/" && request.headers().contains_key("x-amz-target") {
        return match *request.method() {
            Method::POST => Ok(kinesis::handle(request, context).await),
            _ => Err(Problem::method("POST")),
        };
    }
    if path == "/v1" || path.starts_with("/v1/") {
        return Ok(segment::serve(request, context, from_browser).await);
    }
    let source = match path.strip_prefix("/ingest") {
        Some("" | "/") => None,
        Some(rest) if rest.starts_with('/') => Some(rest[1..].trim_end_matches('/').to_owned()),
        _ => {
            return Err(Problem::not_found(
                "there is nothing at this path; events go to POST /ingest or /ingest/{source}, the Kinesis API to POST /",
            ));
        }
    };
    match *request.method() {
        Method::POST => events::ingest(request, source, context).await,
        _ => Err(Problem::method("POST")),
    }
}
