//! The whole agent put together: for each stream a spool with its commit thread and a dispatcher with its own;
//! the doors in front; the admin listener beside; and the order of the end.
//!
//! Place: `commands::run` starts one from a configuration and drains it at a signal; tests start one in-process.
//!
//! Start: lock, marks, recovery, threads, doors: in that order, so that nothing is accepted that could not be
//! made durable, and nothing waits for Kinesis or for credentials. With several streams, one whose spool cannot be opened is
//! tried again beside the others (`late`). *EXACT-ACCOUNT* begins here: pending is counted
//! from marks and indexes, dead comes from the checkpoint and what recovery just found, delivered is the rest.
//!
//! A listener that a service manager passed (`activation`) is taken in place of one that would be bound. A reload (`reload`) puts
//! other sources in the doors' hands and leaves everything else as it is.
//!
//! End: doors (what was read is submitted, acknowledgements flushed), last commit, delivery until the deadline,
//! last checkpoint, then the admin listener. What is not delivered stays in the spool.
//!
//! Failure: [`StartError`] before anything is accepted, if no stream can be opened, or one for a reason that the configuration or
//! the program must be changed for. A panic anywhere takes the process down (`exit`).

mod late;

pub mod reload;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::activation::{Passed, PassedError};
use crate::admin::dead::LetterDoor;
use crate::admin::spool::SpoolDoor;
use crate::admin::{self, AdminState, Drained};
use crate::checkpoint::{Checkpoint, MarkStore, SledMarks};
use crate::coding::{Coding, CodingError, KeyError};
use crate::config::{Config, OnFull, SourceConfig, StreamConfig, SyncClass};
use crate::dispatch::fresh::ahead::Ahead;
use crate::dispatch::run::{Ended, Event, Inbox, Parts, SentLog};
use crate::dispatch::{DispatchOptions, Dispatcher, remembered, run};
use crate::event::{LANES, Position};
use crate::host::{self, Host};
use crate::ingest::http::tls::{Pair, TlsError};
use crate::ingest::{LiveSources, Place, Source, Sources, http, unix};
use crate::kinesis::KinesisApi;
use crate::limits::Budgets;
use crate::metrics::{StreamMetrics, locked};
use crate::spool::cursor::Cursor;
use crate::spool::dead::desk::DeadLetters;
use crate::spool::gather::commit_loop;
use crate::spool::held::Held;
use crate::spool::{self, OpenError, Policy, Pulse, SpoolHandle, SpoolOptions};
use crate::supervisor::{Life, Party};

/// Why an agent does not start. Each names its place and the remedy.
#[derive(Debug)]
pub enum StartError {
    /// A stream's spool.
    Spool {
        /// The stream.
        stream: String,
        /// What is wrong.
        error: OpenError,
    },
    /// An encryption key.
    Key(KeyError),
    /// The socket.
    Socket(unix::BindError),
    /// An HTTP listener.
    Http(http::BindError),
    /// The TLS listener's certificate or key.
    Tls(TlsError),
    /// The admin port, or the metrics port.
    Admin(io::Error),
    /// What a service manager passed.
    Passed(PassedError),
    /// A source's pointers, which the configuration should have refused.
    Source(String),
    /// No thread is to be had.
    Threads(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spool { stream, error } => write!(f, "spool of stream {stream}: {error}"),
            Self::Key(error) => error.fmt(f),
            Self::Socket(error) => error.fmt(f),
            Self::Http(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::Admin(error) => error.fmt(f),
            Self::Passed(error) => error.fmt(f),
            Self::Source(error) => f.write_str(error),
            Self::Threads(error) => write!(f, "cannot start a thread: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl StartError {
    /// The configuration must change before a start can work: keys are missing, or a certificate is bad.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Key(_) | Self::Tls(_) | Self::Passed(_) => true,
            Self::Spool { error: OpenError::Io { error, .. }, .. } => {
                matches!(CodingError::of(error), Some(CodingError::NoKey { .. }))
            }
            _ => false,
        }
    }

    /// It may work later, with the same configuration and the same program: another agent holds the lock, a disk is not mounted
    /// yet or full, permissions are wrong.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Spool { error: OpenError::Io { .. } | OpenError::Locked { .. }, .. }) && !self.is_configuration()
    }
}

/// All that it takes to open a stream.
#[derive(Debug)]
struct Opening {
    config: Arc<Config>,
    stream: StreamConfig,
    /// The machine, with the files as this stream's spool lies there.
    host: Host,
    /// The machine.
    agent_host: Host,
    api: Arc<dyn KinesisApi>,
    metrics: Arc<StreamMetrics>,
}

impl Opening {
    fn open(&self) -> Result<Stream, StartError> {
        let opened = start_stream(&self.config, &self.stream, self.host.clone(), Arc::clone(&self.api), &self.metrics);
        if opened.is_err() {
            self.metrics.writable.store(false, Ordering::Relaxed);
        }
        opened
    }
}

fn source_of(config: &Config, source: &SourceConfig, stream: &Stream, host: &Host) -> Result<Arc<Source>, StartError> {
    let made = Source::new(source, stream.handle.clone(), host).map_err(|error| StartError::Source(error.to_string()))?;
    Ok(Arc::new(made.with_ids_in(&stream.host, &spool_dir(&config.spool.dir, &source.stream))))
}

fn spool_door(config: &Config, stream: &Stream) -> SpoolDoor {
    SpoolDoor {
        name: stream.name.clone(),
        dir: spool_dir(&config.spool.dir, &stream.name),
        handle: stream.handle.clone(),
        host: stream.host.clone(),
    }
}

fn letter_door(stream: &Stream) -> LetterDoor {
    LetterDoor { stream: stream.name.clone(), letters: Arc::clone(&stream.letters), spool: stream.handle.clone() }
}

/// One stream of a running agent.
#[derive(Debug)]
struct Stream {
    name: String,
    /// The machine, with the files as this stream's spool lies there.
    host: Host,
    handle: SpoolHandle,
    commit: JoinHandle<()>,
    inbox: Inbox,
    dispatch: JoinHandle<Ended>,
    letters: Arc<DeadLetters>,
    _lock: host::DirLock,
}

/// What a drained agent leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Events that stay in the spools.
    pub pending: u64,
    /// The next start sends nothing twice.
    pub clean: bool,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// Those that are open.
    streams: Arc<Mutex<Vec<Stream>>>,
    /// Opens the others.
    late: JoinSet<()>,
    /// Of all streams, in the order of the configuration.
    metrics: Vec<(String, Arc<StreamMetrics>)>,
    doors: JoinSet<()>,
    admin: JoinSet<()>,
    draining: watch::Sender<bool>,
    /// How long whoever asked for the end wants delivery to be waited for.
    drain_within: Arc<OnceLock<Duration>>,
    drained: watch::Sender<Option<Drained>>,
    admin_stop: watch::Sender<bool>,
    sources: LiveSources,
    host: Host,
    /// Where HTTP listens.
    pub http: Option<SocketAddr>,
    /// Where HTTP over TLS listens.
    pub https: Option<SocketAddr>,
    /// Where the admin listener listens.
    pub admin_address: Option<SocketAddr>,
    /// Where the metrics listener listens.
    pub metrics_address: Option<SocketAddr>,
}

/// The directory of a stream's spool: its name, or the name in its ARN.
#[must_use]
pub fn spool_dir(root: &Path, stream: &str) -> PathBuf {
    root.join(stream.rsplit_once(":stream/").map_or(stream, |(_, name)| name))
}

/// The HTTP listeners that are configured. Their bodies share one memory.
struct HttpDoors {
    http: Option<http::HttpDoor>,
    https: Option<http::HttpDoor>,
    socket: Option<http::HttpDoor>,
}

impl HttpDoors {
    async fn bind(config: &Config, passed: &mut Passed) -> Result<Self, StartError> {
        let listen = &config.listen;
        let options = http::HttpOptions {
            allowed_hosts: listen.allowed_hosts.clone(),
            allowed_origins: listen.allowed_origins.clone(),
            ..http::HttpOptions::default()
        };
        let mut doors = Self { http: None, https: None, socket: None };
        // A bad certificate is told before anything is bound.
        let pair = match (&listen.tls_certificate, &listen.tls_key) {
            (Some(certificate), Some(key)) if listen.https.is_some() => {
                Some(Pair::read(certificate, key).map_err(StartError::Tls)?)
            }
            _ => None,
        };
        if let Some(address) = listen.http {
            doors.http = Some(match passed.port("http", address).map_err(StartError::Passed)? {
                Some(port) => http::HttpDoor::on_port(port, options.clone()),
                None => http::bind(address, options.clone()).await.map_err(StartError::Http)?,
            });
        }
        if let (Some(address), Some(pair)) = (listen.https, pair) {
            doors.https = Some(match passed.port("https", address).map_err(StartError::Passed)? {
                Some(port) => http::HttpDoor::on_tls(port, pair, options.clone()),
                None => http::bind_tls(address, pair, options.clone()).await.map_err(StartError::Http)?,
            });
        }
        if let Some(path) = &listen.http_socket {
            let uids = listen.allowed_uids.clone();
            doors.socket = Some(match passed.socket("http_socket", path).map_err(StartError::Passed)? {
                Some(socket) => http::HttpDoor::on_socket(socket, uids, options),
                None => http::bind_socket(path, uids, options).await.map_err(StartError::Http)?,
            });
        }
        let Self { http, https, socket } = &mut doors;
        let all: Vec<&mut http::HttpDoor> = [http, https, socket].into_iter().flatten().collect();
        if let [first, others @ ..] = &mut { all }[..] {
            for other in others {
                other.share_memory(first);
            }
        }
        Ok(doors)
    }
}

impl Agent {
    /// Starts everything. `connect` makes a stream's Kinesis; it must not wait for the network.
    ///
    /// # Errors
    /// [`StartError`]; nothing was accepted then.
    pub async fn start(
        config: &Config,
        host: Host,
        mut passed: Passed,
        connect: impl Fn(&StreamConfig) -> Arc<dyn KinesisApi>,
    ) -> Result<Self, StartError> {
        let (draining, shutdown) = watch::channel(false);
        let (admin_stop, admin_shutdown) = watch::channel(false);
        // Ports first: a second agent on the same configuration is told so before it touches a spool.
        let socket = match &config.listen.socket {
            Some(path) => {
                let options =
                    unix::UnixOptions { allowed_uids: config.listen.allowed_uids.clone(), ..unix::UnixOptions::default() };
                Some(match passed.socket("socket", path).map_err(StartError::Passed)? {
                    Some(socket) => unix::passed(socket, options),
                    None => unix::bind(path, options).await.map_err(StartError::Socket)?,
                })
            }
            None => None,
        };
        let HttpDoors { http, https, socket: http_socket } = HttpDoors::bind(config, &mut passed).await?;
        let admin_listener = match config.listen.admin {
            Some(address) => Some(match passed.port("admin", address).map_err(StartError::Passed)? {
                Some(port) => admin::on_port(port).map_err(StartError::Admin)?,
                None => admin::bind(address).await.map_err(StartError::Admin)?,
            }),
            None => None,
        };
        let metrics_listener = match config.listen.metrics {
            Some(address) => Some(match passed.port("metrics", address).map_err(StartError::Passed)? {
                Some(port) => port,
                None => admin::bind_metrics(address).await.map_err(StartError::Admin)?,
            }),
            None => None,
        };
        passed.finish().map_err(StartError::Passed)?;
        let keys = config.spool.read_keys().map_err(StartError::Key)?;
        let config = Arc::new(config.clone());
        let (mut streams, mut closed, mut metrics) = (Vec::with_capacity(config.streams.len()), Vec::new(), Vec::new());
        for stream in &config.streams {
            let coding = Coding { compress: stream.spool_compression, keys: keys.clone() };
            let opening = Opening {
                config: Arc::clone(&config),
                stream: stream.clone(),
                host: coding.host(&host),
                agent_host: host.clone(),
                api: connect(stream),
                metrics: Arc::default(),
            };
            metrics.push((stream.name.clone(), Arc::clone(&opening.metrics)));
            match opening.open() {
                Ok(stream) => streams.push(stream),
                Err(error) if error.may_pass() => closed.push((opening, error)),
                Err(error) => return Err(error),
            }
        }
        if streams.is_empty() && !closed.is_empty() {
            return Err(closed.swap_remove(0).1);
        }
        let sources = config.sources.iter().map(|source| {
            if let Some(stream) = streams.iter().find(|stream| stream.name == source.stream) {
                return source_of(&config, source, stream, &host).map(Place::open);
            }
            let metrics = metrics.iter().find(|(name, _)| *name == source.stream).map(|(_, metrics)| Arc::clone(metrics));
            let no_stream = || StartError::Source(format!("source {}: no stream {}", source.name, source.stream));
            Ok(Place::closed(source, metrics.ok_or_else(no_stream)?))
        });
        let sources = LiveSources::from(Sources::of(sources.collect::<Result<Vec<_>, _>>()?));
        for (opening, error) in &closed {
            late::tell_closed(opening, error);
        }
        let (drained, when_drained) = watch::channel(None);
        let drain_within = Arc::<OnceLock<Duration>>::default();

        let mut doors = JoinSet::new();
        let mut admin_tasks = JoinSet::new();
        let http_address = http.as_ref().and_then(|door| door.address().ok());
        let https_address = https.as_ref().and_then(|door| door.address().ok());
        if let Some(door) = socket {
            doors.spawn(door.serve(sources.clone(), shutdown.clone()));
        }
        for door in [http, https, http_socket].into_iter().flatten() {
            doors.spawn(door.serve(sources.clone(), shutdown.clone()));
        }
        let admin_address = admin_listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let metrics_address = metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let admin = (admin_listener.is_some() || metrics_listener.is_some()).then(|| {
            let mut state = AdminState::new(metrics.clone(), draining.clone(), Arc::clone(&host.clock));
            state.drain_within = Arc::clone(&drain_within);
            state.drained = when_drained;
            state.allowed_hosts.clone_from(&config.listen.allowed_hosts);
            locked(&state.spools).extend(streams.iter().map(|stream| spool_door(&config, stream)));
            locked(&state.letters).extend(streams.iter().map(letter_door));
            Arc::new(state)
        });
        if let (Some(state), Some(listener)) = (&admin, admin_listener) {
            admin_tasks.spawn(admin::serve(listener, Arc::clone(state), admin_shutdown.clone()));
        }
        if let (Some(state), Some(listener)) = (&admin, metrics_listener) {
            admin_tasks.spawn(admin::serve_metrics(listener, Arc::clone(state), admin_shutdown));
        }
        let places = late::Places { sources: sources.clone(), admin, opened: Arc::new(Mutex::new(streams)) };
        let mut late = JoinSet::new();
        for (opening, _) in closed {
            late.spawn(late::open(opening, places.clone(), shutdown.clone()));
        }
        let (http, https, streams, admin) = (http_address, https_address, places.opened, admin_tasks);
        Ok(Self {
            streams,
            late,
            metrics,
            doors,
            admin,
            draining,
            drain_within,
            drained,
            admin_stop,
            sources,
            host,
            http,
            https,
            admin_address,
            metrics_address,
        })
    }

    /// Becomes true when `POST /drain` or [`Agent::drain`] asked for the end.
    #[must_use]
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// How long whoever asked for the end by `POST /drain` wants delivery to be waited for, if they said.
    #[must_use]
    pub fn drain_within(&self) -> Option<Duration> {
        self.drain_within.get().copied()
    }

    /// Who must show signs of life, and a line on how things stand.
    #[must_use]
    pub fn life(&self) -> Life {
        let mut parties = Vec::new();
        for stream in &*locked(&self.streams) {
            let (spool, inbox) = (stream.handle.clone(), stream.inbox.clone());
            let commit = move |pulse| spool.shared().ask_for_pulse(pulse);
            parties.push(Party { who: format!("commit thread of {}", stream.name).into(), ask: Box::new(commit) });
            let dispatch = move |pulse| inbox.tell(Event::Pulse(pulse));
            parties.push(Party { who: format!("dispatcher of {}", stream.name).into(), ask: Box::new(dispatch) });
        }
        let runtime = tokio::runtime::Handle::current();
        let doors = move |pulse: Pulse| drop(runtime.spawn(async move { drop(pulse) }));
        parties.push(Party { who: "runtime of the doors".into(), ask: Box::new(doors) });
        let named = self.metrics.clone();
        Life { parties, status: Box::new(move || admin::report::line(&named)) }
    }

    /// A stream's counters.
    #[must_use]
    pub fn metrics(&self, stream: &str) -> Option<&Arc<StreamMetrics>> {
        self.metrics.iter().find(|(name, _)| name == stream).map(|(_, metrics)| metrics)
    }

    /// Stops accepting, commits, delivers for at most `timeout` or until `hurry` resolves, checkpoints, ends.
    pub async fn drain(mut self, timeout: Duration, hurry: impl Future<Output = ()> + Send) -> DrainReport {
        self.draining.send_replace(true);
        let until = self.host.clock.monotonic() + timeout;
        while self.doors.join_next().await.is_some() {}
        while self.late.join_next().await.is_some() {}
        let streams = std::mem::take(&mut *locked(&self.streams));
        let mut inboxes = Vec::new();
        let mut ends = JoinSet::new();
        for stream in streams {
            stream.handle.close();
            inboxes.push(stream.inbox.clone());
            let (commit, inbox, dispatch, lock) = (stream.commit, stream.inbox, stream.dispatch, stream._lock);
            ends.spawn_blocking(move || {
                if commit.join().is_err() {
                    tracing::error!("the commit thread panicked");
                }
                inbox.tell(Event::Drain(until));
                let ended = dispatch.join().unwrap_or(Ended { pending: 0, clean: false });
                drop(lock);
                ended
            });
        }
        let clock = Arc::clone(&self.host.clock);
        let mut hurry = std::pin::pin!(hurry);
        let mut hurried = false;
        let mut report = DrainReport { pending: 0, clean: true };
        loop {
            tokio::select! {
                ended = ends.join_next() => match ended {
                    Some(Ok(ended)) => {
                        report.pending += ended.pending;
                        report.clean &= ended.clean;
                    }
                    Some(Err(error)) => {
                        tracing::error!(%error, "a stream did not end well");
                        report.clean = false;
                    }
                    None => break,
                },
                () = &mut hurry, if !hurried => {
                    hurried = true;
                    for inbox in &inboxes {
                        inbox.tell(Event::Drain(clock.monotonic()));
                    }
                }
            }
        }
        self.drained.send_replace(Some(Drained { pending: report.pending, clean: report.clean }));
        self.admin_stop.send_replace(true);
        while self.admin.join_next().await.is_some() {}
        report
    }
}

fn start_stream(
    config: &Config,
    stream: &StreamConfig,
    own: Host,
    api: Arc<dyn KinesisApi>,
    metrics: &Arc<StreamMetrics>,
) -> Result<Stream, StartError> {
    let host = &own;
    let failed = |error| StartError::Spool { stream: stream.name.clone(), error };
    let dir = spool_dir(&config.spool.dir, &stream.name);
    let io = |doing: &str, path: &Path, error: io::Error| {
        failed(OpenError::Io { doing: format!("{doing} {} (spool.dir)", path.display()), error })
    };
    host.files.create_dir_all(&dir).map_err(|error| io("creating", &dir, error))?;
    let lock_path = dir.join("lock");
    let lock = host::lock(&lock_path).map_err(|error| io("locking", &lock_path, error))?;
    let lock = lock.ok_or_else(|| failed(OpenError::Locked { path: lock_path.display().to_string() }))?;
    let options = SpoolOptions {
        stream: stream.name.clone(),
        dir: dir.clone(),
        max_bytes: config.spool.max_bytes,
        segment_bytes: config.spool.segment_bytes,
    };
    spool::prepare(host, &options).map_err(failed)?;

    let mut store = SledMarks::open(&dir.join("ledger"));
    let loaded = store.load();
    let durable = loaded.as_ref().map_or(Position(0), |checkpoint| checkpoint.durable);
    let opened = spool::open(host, &options, durable, metrics).map_err(failed)?;
    opened.handle.set_policy(Policy::of(&config.spool));
    let budgets = Budgets::of_one_in(config.streams.len());
    opened.handle.share_memory(&budgets);
    if config.spool.sync != SyncClass::Always {
        tracing::warn!(
            stream = stream.name,
            sync = %config.spool.sync,
            "spool.sync is weaker than \"always\": a power cut or a kernel crash may cost events that have a receipt"
        );
    }
    let next = opened.writer.next();
    let sent_path = dir.join("ledger.sent");
    let (mut sent_log, sent_high) = SentLog::open(host, &sent_path);
    // A group that is held back may have been durable all the same, and so sent.
    let found = opened.writer.held().map_or(next, Held::end);
    // With the marks lost, all that is there is sent again, however long ago it was sent first.
    let marks_lost = loaded.is_none() && found > Position(0);
    let clean = loaded.as_ref().is_some_and(|checkpoint| checkpoint.clean);
    let resent_below = match (marks_lost, clean) {
        (true, _) => found,
        // What is past a mark was never sent.
        (false, true) => Position(0),
        (false, false) => sent_high.min(found),
    };
    if loaded.is_some() && !clean {
        tracing::info!(
            stream = stream.name,
            "the last end was no clean one, or its last marks are lost: what was sent after these marks were saved is sent again"
        );
    }

    let mut checkpoint = loaded.unwrap_or_default();
    let shared = Arc::clone(opened.handle.shared());
    let mut cursor = Cursor::new(Arc::clone(&shared), Arc::clone(&host.files));
    let pending = count_pending(&mut cursor, &checkpoint.marks).map_err(|error| io("reading", &dir, error))?;
    let ahead_path = dir.join("ledger.ahead");
    // Read while the checkpoint is the one that it was written beside.
    let ahead = Ahead::take(host, &ahead_path, &checkpoint, next);
    let pending = ahead.as_ref().map_or(pending, |(_, then)| pending.min(*then));
    checkpoint = Checkpoint { clean: false, durable: next, dead: checkpoint.dead + opened.damaged_events, ..checkpoint };
    // What was found dead is known from now on, and what was durable stays so.
    if let Err(error) = store.save(&checkpoint) {
        tracing::error!(stream = stream.name, %error, "the marks cannot be saved: events are taken and delivered, but no disk space is freed, and a restart sends again");
        *locked(&metrics.checkpoint_reason) = error.to_string();
    }
    if clean {
        sent_log.restart(Position(0));
    }
    *locked(&metrics.saved_marks) = Some((host.clock.wall_ms(), Arc::new(checkpoint.clone())));
    {
        let mut account = locked(&metrics.account);
        account.accepted = next.0;
        account.dead = checkpoint.dead.min(next.0.saturating_sub(pending));
        account.expired = checkpoint.expired;
        account.dropped = checkpoint.dropped;
        account.delivered = next.0.saturating_sub(pending + account.dead + account.expired + account.dropped);
    }
    metrics.writable.store(true, Ordering::Relaxed);
    if marks_lost {
        tracing::warn!(
            stream = stream.name,
            ledger = %dir.join("ledger").display(),
            events = pending,
            "the marks of what was delivered are lost: nothing is missing, but all that is still in the spool is sent again"
        );
    }
    tracing::info!(
        stream = stream.name,
        dir = %dir.display(),
        pending,
        torn_bytes = opened.torn_bytes,
        damaged_events = opened.damaged_events,
        "spool open"
    );

    let mut dispatcher =
        Dispatcher::new(DispatchOptions::of(stream), host.clone(), cursor, Arc::clone(metrics), &checkpoint, resent_below);
    dispatcher.share_memory(&budgets);
    if let Some((ahead, _)) = ahead {
        dispatcher.know_settled(ahead);
    }
    let mode_path = dir.join("ledger.mode");
    if let Some(remembered) = remembered::recall(host, &mode_path) {
        dispatcher.remember(remembered, host.clock.monotonic());
    }
    let dead_dir = spool::dead_dir(&dir);
    let letters = DeadLetters::open(host, &dead_dir, config.spool.dead_max_bytes, metrics).map_err(failed)?;
    let letters = Arc::new(letters);
    let known = letters.store().unsettled(marks_lost);
    let kept = known.and_then(|known| dispatcher.keep_letters(Arc::clone(&letters), &known));
    kept.map_err(|error| io("reading", &dead_dir, error))?;
    let parts = Parts {
        dispatcher,
        host: host.clone(),
        api,
        runtime: tokio::runtime::Handle::current(),
        store: Box::new(store),
        checkpoint_interval: config.spool.checkpoint_interval,
        segment_bytes: config.spool.segment_bytes,
        sent_log,
        ahead: ahead_path,
        mode: mode_path,
        stream: stream.name.clone(),
    };
    let (inbox, dispatch) = run::start(parts).map_err(StartError::Threads)?;
    let waker = inbox.clone();
    shared.on_commit(Box::new(move || waker.committed()));
    if config.spool.on_full == OnFull::DropOldest {
        let dropper = inbox.clone();
        shared.on_no_room(Box::new(move || dropper.tell(Event::DropOldest)));
    }
    let writer = opened.writer;
    let commit = std::thread::Builder::new()
        .name(format!("commit-{}", stream.name))
        .spawn(move || commit_loop(&shared, writer))
        .map_err(StartError::Threads)?;
    let name = stream.name.clone();
    Ok(Stream { name, host: own, handle: opened.handle, commit, inbox, dispatch, letters, _lock: lock })
}

fn count_pending(cursor: &mut Cursor, marks: &[Position; LANES]) -> io::Result<u64> {
    let segments = cursor.shared().table.all();
    segments.iter().map(|segment| cursor.pending(segment, marks)).sum()
}
