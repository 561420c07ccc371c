//! A real spool in a temporary directory, and what the tests of both doors need around it.
//!
//! Place: included by the tests of the socket and of every HTTP door. The commit thread can be started late, so that a
//! test can look at the time between submission and durability. Nothing here waits without a deadline.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::config::{KeyFallback, RuleConfig, Secret, SourceConfig, SourceKind};
use forebay::event::{KeyHash, LANES, Position};
use forebay::host::Host;
use forebay::ingest::http::{HttpOptions, bind};
use forebay::ingest::{Source, Sources};
use forebay::limits::EVENT_BYTES_MAX;
use forebay::metrics::StreamMetrics;
use forebay::spool::commit::Writer;
use forebay::spool::cursor::Cursor;
use forebay::spool::frame::Frame;
use forebay::spool::gather::commit_loop;
use forebay::spool::{Policy, SpoolHandle, SpoolOptions, open, prepare, remove_covered};
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// The longest that anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One stream's spool and its commit thread.
pub struct World {
    pub dir: tempfile::TempDir,
    pub handle: SpoolHandle,
    pub metrics: Arc<StreamMetrics>,
    writer: Option<Writer>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    /// A spool in which events become durable.
    pub fn new() -> Self {
        let mut world = Self::stalled();
        world.go();
        world
    }

    /// A spool in which nothing becomes durable until [`World::go`].
    pub fn stalled() -> Self {
        Self::with_policy(1 << 30, 64 << 20, Policy::default())
    }

    /// The same, of a size and with a policy. With `segment_bytes` 1 each commit takes a segment of its own, some 8.4 KB.
    pub fn with_policy(max_bytes: u64, segment_bytes: u64, policy: Policy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::real();
        let options = SpoolOptions { stream: "clicks".into(), dir: dir.path().join("spool"), max_bytes, segment_bytes };
        let metrics = Arc::new(StreamMetrics::default());
        prepare(&host, &options).unwrap();
        let opened = open(&host, &options, Position(0), &metrics).unwrap();
        opened.handle.set_policy(policy);
        Self { dir, handle: opened.handle, metrics, writer: Some(opened.writer), thread: None }
    }

    /// Starts the commit thread.
    pub fn go(&mut self) {
        let shared = Arc::clone(self.handle.shared());
        let writer = self.writer.take().expect("started once");
        self.thread = Some(std::thread::spawn(move || commit_loop(&shared, writer)));
    }

    /// All segments but the newest go, as when everything in them was delivered.
    pub fn deliver_all(&self) {
        let shared = self.handle.shared();
        remove_covered(&Host::real(), &shared.table, &[Position(u64::MAX); LANES]).unwrap();
        shared.space_freed();
    }

    /// Takes the directory away under the spool, starts the commit thread, and closes the spool: what was
    /// submitted does not become durable.
    pub fn go_and_fail(&mut self) {
        std::fs::remove_dir_all(self.dir.path().join("spool/segments")).unwrap();
        self.go();
        self.handle.close();
    }

    /// Key and data of every durable event, in order. Each key's hash is checked.
    pub fn events(&self) -> Vec<(String, Vec<u8>)> {
        let mut cursor = Cursor::new(Arc::clone(self.handle.shared()), Host::real().files);
        let mut found = Vec::new();
        let mut at = Position(0);
        while let Some(swept) = cursor.next(at).unwrap() {
            let mut bytes = &swept.chunk.bytes[..];
            while let Some(frame) = Frame::check(bytes) {
                let key = std::str::from_utf8(frame.key_bytes()).unwrap().to_owned();
                assert_eq!(frame.hash(), KeyHash::of_key(&key));
                assert_eq!(frame.position(), at);
                found.push((key, frame.data().to_vec()));
                at = Position(at.0 + 1);
                bytes = &bytes[frame.len()..];
            }
        }
        found
    }

    /// The data of every durable event as text.
    pub fn texts(&self) -> Vec<String> {
        self.events().into_iter().map(|(_, data)| String::from_utf8(data).unwrap()).collect()
    }

    /// Events that were submitted, durable or not.
    pub fn submitted(&self) -> u64 {
        self.handle.gathered() + self.metrics.accepted_by_source.lock().unwrap().values().sum::<u64>()
    }

    /// Rejected events of one reason.
    pub fn rejected(&self, reason: &str) -> u64 {
        let rejected = self.metrics.rejected.lock().unwrap();
        rejected.iter().filter(|((_, label), _)| *label == reason).map(|(_, count)| count).sum()
    }

    /// A source over this spool.
    pub fn source(&self, config: &SourceConfig) -> Arc<Source> {
        Arc::new(Source::new(config, self.handle.clone(), &Host::real()).unwrap())
    }

    /// One open source, `web`, keyed by `/userId`, whose fallback is random.
    pub fn web(&self) -> Sources {
        Sources::new([self.source(&config("web"))])
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A source keyed by `/userId`, which an event must have.
pub fn config(name: &str) -> SourceConfig {
    SourceConfig {
        name: name.to_owned(),
        kind: SourceKind::Events,
        stream: "clicks".to_owned(),
        partition_key: vec!["/userId".to_owned()],
        partition_key_fallback: KeyFallback::Reject,
        keys: Vec::new(),
        access_keys: Vec::new(),
        max_event_bytes: EVENT_BYTES_MAX,
        spool_quota: None,
        amplitude: Default::default(),
        mparticle: Default::default(),
        segment: Default::default(),
        rules: RuleConfig::default(),
    }
}

/// The same with a write key.
pub fn keyed(name: &str, key: &str) -> SourceConfig {
    SourceConfig { keys: vec![Secret(key.to_owned())], ..config(name) }
}

/// The shutdown signal's sending end.
pub struct Stop(pub watch::Sender<bool>);

impl Stop {
    pub fn new() -> (Self, watch::Receiver<bool>) {
        let (send, receive) = watch::channel(false);
        (Self(send), receive)
    }

    pub fn now(&self) {
        self.0.send_replace(true);
    }
}

/// A listening HTTP door.
pub struct Door {
    pub address: SocketAddr,
    pub stop: Stop,
    pub serving: tokio::task::JoinHandle<()>,
}

impl Door {
    pub async fn open(sources: Sources) -> Self {
        Self::with(sources, HttpOptions::default()).await
    }

    pub async fn with(sources: Sources, options: HttpOptions) -> Self {
        let door = bind("127.0.0.1:0".parse().unwrap(), options).await.unwrap();
        let address = door.address().unwrap();
        let (stop, shutdown) = Stop::new();
        Self { address, stop, serving: tokio::spawn(door.serve(sources, shutdown)) }
    }

    /// One request on a connection of its own; status, headers and body of the answer. `Host` is the door's, unless given.
    pub async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, HeaderMap, Bytes) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driving = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = soon(sender.send_request(request.body(Full::new(body.into())).unwrap())).await.unwrap();
        let (head, body) = response.into_parts();
        let body = soon(body.collect()).await.unwrap().to_bytes();
        driving.abort();
        (head.status.as_u16(), head.headers, body)
    }

    pub async fn end(self) {
        self.stop.now();
        soon(self.serving).await.unwrap();
    }
}

/// The result, or a failed test.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("within the test's patience")
}

/// Waits until `ready`.
pub async fn until(what: &str, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < PATIENCE, "still waiting: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Takes all the ingest memory of a spool, and keeps it.
pub fn exhaust(handle: &SpoolHandle) -> Vec<forebay::spool::Permit> {
    let of = |bytes: usize| std::iter::from_fn(move || handle.try_admit(bytes).ok());
    [usize::MAX, 1 << 20, 1 << 10, 1].into_iter().flat_map(of).collect()
}

/// A file in the world's directory.
pub fn file(world: &World, name: &str, bytes: &[u8]) -> PathBuf {
    let path = world.dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
