//! The admin listener: health, readiness, metrics, status, a page for a person, and drain.
//!
//! Place: `run` binds it first and stops it last, so that a draining agent can still be watched. It reads the
//! streams' [`StreamMetrics`] and turns one switch, the drain watch; everything else it only tells. [`report`]
//! holds the JSON shapes, [`exposition`] the metrics.
//!
//! Owner: [`serve`] owns the listener and one task a connection, at most [`CONNECTIONS_MAX`] of them.
//!
//! Safety of the door: it binds loopback addresses only. A browser on the same machine could still be made to
//! call it, so a `Host` that is neither a loopback name nor a listed one is refused (DNS rebinding), and so is
//! an `Origin` that is not the page's own (a foreign page that posts `/drain`). A second door ([`serve_metrics`],
//! `listen.metrics`) may be on any address, for a Prometheus that comes from elsewhere: it tells health, readiness and
//! metrics, and nothing can be asked to happen through it.
//!
//! Failure: a connection that breaks ends alone; an `accept` that fails (out of descriptors) is tried again after
//! a pause. Absent on purpose: TLS, passwords, configuration changes, event data.

pub mod dead;
pub mod exposition;
pub mod report;
pub mod spool;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::host::Clock;
use crate::metrics::{StreamMetrics, locked};
use report::{AgentState, ReadyReport, StatusReport, StreamReport};

/// Connections served at once; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 64;

/// The longest a connection may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest an answer under way may hold up the end of [`serve`].
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The page of `/`; it fetches `/status` and loads nothing from elsewhere.
const PAGE: &str = include_str!("page.html");

/// Asks for the end.
const DRAIN: &str = "/drain";

/// Every path with its method, as the 404 answer lists them.
const ROUTES: [(&str, &str); 8] = [
    ("GET", "/"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/status"),
    ("POST", DRAIN),
    ("POST", dead::RETRY),
    ("POST", dead::PURGE),
];

/// What the metrics listener tells; nothing there changes anything.
const METRICS_ROUTES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Which of the two doors a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Face {
    /// `listen.admin`, loopback.
    Admin,
    /// `listen.metrics`, anywhere.
    Metrics,
}

/// What a drained agent left: the answer to `POST /drain?wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Events that stay in the spools, for the next start.
    pub pending: u64,
    /// The next start sends nothing twice.
    pub clean: bool,
}

/// What the listener reads, and the one switch it turns.
#[derive(Debug)]
pub struct AdminState {
    /// Stream names with their numbers, in the order of the configuration.
    pub streams: Vec<(String, Arc<StreamMetrics>)>,
    /// The agent's drain watch: true means drain. `POST /drain` sets it, `/status` and `/readyz` show it.
    pub draining: watch::Sender<bool>,
    /// How long the first who asked for the drain wants delivery to be waited for (`POST /drain?timeout_ms=N`).
    pub drain_within: Arc<OnceLock<Duration>>,
    /// What was left, once all streams have ended.
    pub drained: watch::Receiver<Option<Drained>>,
    /// Uptime and the age of events.
    pub clock: Arc<dyn Clock>,
    /// [`Clock::monotonic`] when the agent started.
    pub started: Duration,
    /// `listen.allowed_hosts`: host names besides loopback ones.
    pub allowed_hosts: Vec<String>,
    /// The open spools, for the tools that look into them ([`spool`]).
    pub spools: Mutex<Vec<spool::SpoolDoor>>,
    /// Streams whose dead letters may be retried and purged.
    pub letters: Mutex<Vec<dead::LetterDoor>>,
}

impl AdminState {
    /// State whose uptime begins now, with no host names besides loopback ones.
    #[must_use]
    pub fn new(streams: Vec<(String, Arc<StreamMetrics>)>, draining: watch::Sender<bool>, clock: Arc<dyn Clock>) -> Self {
        let started = clock.monotonic();
        Self {
            streams,
            draining,
            drain_within: Arc::default(),
            drained: watch::channel(None).1,
            clock,
            started,
            allowed_hosts: Vec::new(),
            spools: Mutex::default(),
            letters: Mutex::default(),
        }
    }

    /// What `/status` says now.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        let now_ms = self.clock.wall_ms();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.clock.monotonic().saturating_sub(self.started).as_secs_f64(),
            state: if *self.draining.borrow() { AgentState::Draining } else { AgentState::Accepting },
            streams: self.streams.iter().map(|(name, metrics)| StreamReport::read(name, metrics, now_ms)).collect(),
        }
    }

    /// What `/readyz` says now.
    #[must_use]
    pub fn ready(&self) -> ReadyReport {
        ReadyReport::read(&self.streams, *self.draining.borrow())
    }
}

/// Opens the listener.
///
/// # Errors
/// An address that is not loopback, or what the system says (in use, not permitted), with the address and the
/// remedy in the text.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    if !addr.ip().is_loopback() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "listen.admin = \"{addr}\": the admin listener has no password, so only loopback addresses are allowed; use \"127.0.0.1:4711\""
            ),
        ));
    }
    TcpListener::bind(addr).await.map_err(|error| {
        let remedy = "set listen.admin to a free loopback address, or to \"\" to turn it off";
        io::Error::new(error.kind(), format!("listen.admin = \"{addr}\": cannot listen: {error}; {remedy}"))
    })
}

/// Opens the metrics listener.
///
/// # Errors
/// What the system says (in use, not permitted), with the address and the remedy in the text.
pub async fn bind_metrics(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| {
        let remedy = "set listen.metrics to a free address, or to \"\" to turn it off";
        io::Error::new(error.kind(), format!("listen.metrics = \"{addr}\": cannot listen: {error}; {remedy}"))
    })
}

/// A port that was passed, already listening.
///
/// # Errors
/// It listens on an address that is not loopback, or as the system says.
pub fn on_port(listener: TcpListener) -> io::Result<TcpListener> {
    let address = listener.local_addr()?;
    if address.ip().is_loopback() {
        return Ok(listener);
    }
    let text = format!(
        "the service manager passed {address} for listen.admin, which has no password: only loopback addresses are allowed"
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Serves until `shutdown` turns true (or its sender is gone). Answers under way are finished, for at most a second.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, shutdown: watch::Receiver<bool>) {
    serve_as(Face::Admin, listener, state, shutdown).await;
}

/// As [`serve`], for whoever reaches the listener: health, readiness and metrics only.
pub async fn serve_metrics(listener: TcpListener, state: Arc<AdminState>, shutdown: watch::Receiver<bool>) {
    serve_as(Face::Metrics, listener, state, shutdown).await;
}

async fn serve_as(face: Face, listener: TcpListener, state: Arc<AdminState>, mut shutdown: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut shutdown) => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let (state, shutdown) = (Arc::clone(&state), shutdown.clone());
                connections.spawn(async move {
                    serve_connection(face, stream, state, shutdown).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin listener: cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all_closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSE_TIMEOUT, all_closed).await.is_err() {
        connections.shutdown().await;
    }
}

/// Resolves when the watch turns true or its sender is gone.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    drop(shutdown.wait_for(|stop| *stop).await);
}

/// A connection and its place among [`CONNECTIONS_MAX`]. Cancel-safe: a place not used is given back.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn serve_connection(face: Face, stream: TcpStream, state: Arc<AdminState>, mut shutdown: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let state = Arc::clone(&state);
        async move {
            if face == Face::Metrics {
                return Ok::<_, Infallible>(respond_metrics(&state, &request));
            }
            if is_spool_path(request.uri().path()) {
                return Ok(match check_caller(&state, &request) {
                    Err(refusal) => *refusal,
                    Ok(()) => {
                        let spools = locked(&state.spools).clone();
                        spool::respond(&spools, request).await
                    }
                });
            }
            let answer = respond(&state, &request);
            // Allowed, and it waits: for the disk, or for the end.
            Ok(match (answer.status(), request.uri().path()) {
                (StatusCode::CONTINUE, DRAIN) => drain(&state, request.uri().query().unwrap_or_default()).await,
                (StatusCode::CONTINUE, _) => dead::respond(&state, request).await,
                _ => answer,
            })
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut shutdown) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin listener: a connection broke");
    }
}

type Answer = Response<Full<Bytes>>;

fn is_spool_path(path: &str) -> bool {
    path == "/spool" || path.starts_with("/spool/")
}

/// The routing of all but `/spool…`. Never waits; `CONTINUE` stands for what is allowed and would have to.
fn respond<B>(state: &AdminState, request: &Request<B>) -> Answer {
    if let Err(refusal) = check_caller(state, request) {
        return *refusal;
    }
    let path = request.uri().path();
    let Some((method, _)) = ROUTES.iter().find(|(_, route)| *route == path) else {
        let known = ROUTES.iter().map(|(method, route)| format!("{method} {route}"));
        let known: Vec<String> = known.chain(spool::ROUTES.map(str::to_owned)).collect();
        return json_answer(StatusCode::NOT_FOUND, &json!({"error": "there is nothing at this path", "known": known}));
    };
    if let Some(refusal) = check_method(request, if *method == "GET" { "GET, HEAD" } else { method }) {
        return refusal;
    }
    match path {
        "/" => page(),
        "/healthz" | "/readyz" | "/metrics" => tell(state, path),
        "/status" => json_answer(StatusCode::OK, &state.status()),
        DRAIN | dead::RETRY | dead::PURGE => answer(StatusCode::CONTINUE, "application/json", ""),
        _ => unreachable!("the path is one of ROUTES, and each has its arm"),
    }
}

/// The refusal of a method that is none of `allowed`.
fn check_method<B>(request: &Request<B>, allowed: &'static str) -> Option<Answer> {
    if allowed.split(", ").any(|one| one == request.method().as_str()) {
        return None;
    }
    let text = format!("{} answers to {allowed} only", request.uri().path());
    let mut answer = json_answer(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": text, "allowed": allowed}));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    Some(answer)
}

/// The routing of the metrics listener. Any `Host` will do, since it is called by the addresses of pods and machines; a page is refused,
/// by whatever name it came.
fn respond_metrics<B>(state: &AdminState, request: &Request<B>) -> Answer {
    let path = request.uri().path();
    if request.headers().contains_key(ORIGIN) {
        return json_answer(StatusCode::FORBIDDEN, &json!({"error": "pages may not call the metrics listener"}));
    }
    if !METRICS_ROUTES.contains(&path) {
        return json_answer(StatusCode::NOT_FOUND, &json!({"error": "there is nothing at this path", "known": METRICS_ROUTES}));
    }
    if let Some(refusal) = check_method(request, "GET, HEAD") {
        return refusal;
    }
    tell(state, path)
}

/// The answer at one of [`METRICS_ROUTES`].
fn tell(state: &AdminState, path: &str) -> Answer {
    match path {
        "/healthz" => json_answer(StatusCode::OK, &json!({"alive": true})),
        "/readyz" => {
            let report = state.ready();
            json_answer(if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &report)
        }
        "/metrics" => match exposition::encode(&state.streams, state.clock.wall_ms()) {
            Ok(text) => answer(StatusCode::OK, exposition::CONTENT_TYPE, text),
            Err(error) => json_answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": error.to_string()})),
        },
        _ => unreachable!("the path is one of METRICS_ROUTES, and each has its arm"),
    }
}

/// Turns the switch. With `wait` in the query the answer comes when the agent has drained, and tells what is left; `timeout_ms`
/// says how long delivery may take, in place of `drain_timeout`.
async fn drain(state: &AdminState, query: &str) -> Answer {
    let mut wait = false;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            None if part == "wait" => wait = true,
            Some(("timeout_ms", ms)) if ms.parse::<u32>().is_ok() => {
                let within = Duration::from_millis(ms.parse::<u32>().unwrap_or_default().into());
                // Only the first who asks is heard: by then the end has begun.
                state.drain_within.get_or_init(|| within);
            }
            _ => {
                let text = "the query of /drain takes wait and timeout_ms=N, in milliseconds";
                return json_answer(StatusCode::BAD_REQUEST, &json!({ "error": text }));
            }
        }
    }
    if !state.draining.send_replace(true) {
        tracing::info!("drain: asked for over the admin listener");
    }
    if wait {
        let mut drained = state.drained.clone();
        let told = drained.wait_for(Option::is_some).await.ok().and_then(|told| *told);
        if let Some(told) = told {
            return json_answer(StatusCode::OK, &told);
        }
    }
    json_answer(StatusCode::ACCEPTED, &json!({"state": AgentState::Draining}))
}

/// Refuses what only a browser led astray would send.
fn check_caller<B>(state: &AdminState, request: &Request<B>) -> Result<(), Box<Answer>> {
    let refuse = |error: String| Err(Box::new(json_answer(StatusCode::FORBIDDEN, &json!({ "error": error }))));
    let Some(host) = header(request, HOST) else {
        return refuse("a Host header is needed, such as Host: 127.0.0.1:4711".to_owned());
    };
    if !is_loopback_host(host) && !state.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host_name(host))) {
        return refuse(
            "this Host is neither a loopback name nor in listen.allowed_hosts; call the listener as 127.0.0.1 or localhost"
                .to_owned(),
        );
    }
    if request.headers().contains_key(ORIGIN) {
        let own = header(request, ORIGIN).and_then(|origin| origin.strip_prefix("http://"));
        if own != Some(host) {
            return refuse("pages of other origins may not call the admin listener".to_owned());
        }
    }
    Ok(())
}

/// A header that comes exactly once and is text.
fn header<B>(request: &Request<B>, name: HeaderName) -> Option<&str> {
    let mut values = request.headers().get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() { None } else { first.to_str().ok() }
}

/// The name or address of a `Host` header, without port and brackets.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(address, _)| address);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn is_loopback_host(host: &str) -> bool {
    let name = host_name(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn page() -> Answer {
    let mut answer = answer(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    answer.headers_mut().insert(
        "content-security-policy",
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
    );
    answer
}

fn json_answer(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_string(body) {
        Ok(text) => answer(status, "application/json", text + "\n"),
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the answer could not be written as JSON\n"),
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_and_addresses_are_loopback_hosts() {
        for host in ["localhost", "LOCALHOST:4711", "127.0.0.1", "127.0.0.1:4711", "127.8.9.10", "[::1]", "[::1]:4711"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "",
            ":",
            "[",
            "example.org",
            "localhost.example.org:4711",
            "127.0.0.1.example.org",
            "10.0.0.1:4711",
            "[::2]:4711",
            "0.0.0.0",
        ] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for banned in ["http://", "https://", "src=", "<link", "@import", "url("] {
            assert!(!PAGE.contains(banned), "{banned}");
        }
        assert!(!PAGE.contains("innerHTML"), "names and reasons come from outside: they are set as text");
    }
}
