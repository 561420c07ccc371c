//! The data plane over HTTP: HTTP/1.1 and h2c on one loopback port.
//!
//! Place: `run` binds at start and serves until the shutdown signal. A connection is one task that hyper drives;
//! every request passes the guards (`guard`: host, origin), then its route. Bodies are read and decoded within
//! limits by `body`; a door (`events` for `/ingest`, one file for each vendor) judges them and makes the answer, and `submit`
//! is the way to the spool that all doors share. The path alone tells the door.
//!
//! *RECEIPT-AFTER-SYNC*: a success answer leaves only when every batch of the request is durable. *BOUNDED*:
//! bodies of all requests together share one memory budget; a request that waits too long for memory or for the
//! spool is answered 503 with `Retry-After`, having cost nothing.
//!
//! Failure: every answer other than 200 is `{"error":"…"}`, saying what is wrong and what is allowed, and holds
//! nothing of an event. Silent or slow clients run into timeouts: first byte, request head, each piece of a body.
//! At shutdown, requests under way are finished, later ones get 503 and the connection closes.
//! Absent on purpose: TLS and anything but loopback.

mod answer;
mod body;
mod events;
mod guard;
mod kinesis;
mod submit;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::ingest::{DRAIN_GRACE, Shutdown, Sources, stopped};
use answer::{Answer, Problem};

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 128;

/// How often a silent HTTP/2 connection is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// What may be set about the door.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Host names besides loopback ones that a `Host` header may carry.
    pub allowed_hosts: Vec<String>,
    /// Browser origins that may send, such as `https://app.example.com`.
    pub allowed_origins: Vec<String>,
    /// Connections at once; further ones wait in the kernel's backlog. Default 4096.
    pub connections_max: usize,
    /// First byte of a connection, and head of a request. Default 30 s.
    pub head_timeout: Duration,
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
            body_timeout: Duration::from_secs(60),
            admit_timeout: Duration::from_secs(8),
        }
    }
}

/// Why the port cannot be bound.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP listener {}: cannot bind it: {}", self.address, self.error)?;
        if self.error.kind() == io::ErrorKind::AddrInUse {
            f.write_str("; another process listens there: stop it, set listen.http to another port, or to \"\" to go without")?;
        }
        Ok(())
    }
}

impl std::error::Error for BindError {}

/// A bound and listening port.
#[derive(Debug)]
pub struct HttpDoor {
    listener: TcpListener,
    options: HttpOptions,
}

/// Binds `address`. Must be called within a tokio runtime.
///
/// # Errors
/// [`BindError`], with its remedy.
pub async fn bind(address: SocketAddr, options: HttpOptions) -> Result<HttpDoor, BindError> {
    // tokio sets SO_REUSEADDR, so that connections in TIME_WAIT do not keep a restarted agent out.
    let listener = TcpListener::bind(address).await.map_err(|error| BindError { address, error })?;
    Ok(HttpDoor { listener, options })
}

/// What all requests share.
#[derive(Debug)]
struct Context {
    sources: Sources,
    options: HttpOptions,
    memory: body::Memory,
    shutdown: Shutdown,
}

impl HttpDoor {
    /// Where it listens; of use where port 0 was asked for.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then returns once all connections are done.
    pub async fn serve(self, sources: Sources, shutdown: Shutdown) {
        let Self { listener, options } = self;
        let connections_max = options.connections_max.max(1);
        let context = Arc::new(Context { sources, options, memory: body::Memory::default(), shutdown: shutdown.clone() });
        let mut connections: JoinSet<()> = JoinSet::new();
        let mut stop = stopped(shutdown);
        let mut accepting = true;
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => note_end(ended),
                accepted = listener.accept(), if connections.len() < connections_max => match accepted {
                    Ok((stream, _)) => {
                        accepting = true;
                        connections.spawn(serve_connection(stream, Arc::clone(&context)));
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
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an HTTP connection's task ended abnormally");
    }
}

async fn serve_connection(stream: TcpStream, context: Arc<Context>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "an HTTP connection is gone already");
        return;
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(context.options.head_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .adaptive_window(false);
    let began = Arc::new(AtomicBool::new(false));
    let service = service_fn(|request| {
        began.store(true, Ordering::Relaxed);
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(handle(request, &context).await) }
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

async fn handle(request: Request<Incoming>, context: &Context) -> Answer {
    let one = request.version() < hyper::Version::HTTP_2;
    let origin = match guard::check(request.uri(), request.headers(), &context.options) {
        Ok(origin) => origin,
        Err(problem) => return problem.answer(),
    };
    let mut answer = match route(request, context, origin.is_some()).await {
        Ok(answer) => answer,
        Err(problem) => problem.answer(),
    };
    answer::name_class(&mut answer, context.sources.sync());
    if let Some(origin) = origin {
        guard::allow(origin, &mut answer);
    }
    if one && *context.shutdown.borrow() {
        answer::close(&mut answer);
    }
    answer
}

async fn route(request: Request<Incoming>, context: &Context, from_browser: bool) -> Result<Answer, Problem> {
    let path = request.uri().path();
    if path == "/" && request.headers().contains_key("x-amz-target") {
        return match *request.method() {
            Method::POST => Ok(kinesis::handle(request, context).await),
            _ => Err(Problem::method("POST")),
        };
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
        Method::OPTIONS if from_browser => Ok(guard::preflight()),
        _ => Err(Problem::method("POST")),
    }
}
