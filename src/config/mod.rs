//! Every knob: unit in the name or type, default, range, one sentence; and how a configuration is read.
//!
//! Place: `main` reads it once through [`load`]; each component is handed its own part of [`Config`]. Read in
//! this order: `schema` (which keys there are), `layers` (file, environment, flags), `dev` (what `--dev` fills
//! in), `resolve` (text into typed values), `check` (how they fit together), `show` (what is in force), with
//! `units`, `env` and `errors` below them.
//!
//! Invariants. *All at once*: every error is found and told in one report. *Known keys only*: a name that is no
//! key is an error. *Origin*: each value in force knows who gave it; flags win over the environment, that over
//! the file, that over the default. *No secret shown*: write keys and what came out of `${...}` stand in no message.
//!
//! Failure: [`Problems`], exit code 78. Absent on purpose: reloading (`agent::reload` compares two that were read), and any look at AWS (that is `check`'s).

mod check;
mod dev;
mod env;
mod errors;
mod layers;
mod resolve;
mod schema;
mod show;
mod source;
mod units;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use env::{Environment, FILE_BYTES_MAX, RealEnvironment};
pub use errors::{Origin, Problem, Problems};
pub use layers::{ENV_PREFIX, env_name};
pub use resolve::{InForce, Section, Setting, Typed};
pub use schema::{Fallback, Key, Kind, Rule, SectionKind};
pub use source::{
    AmplitudeConfig, DataEncoding, KeyFallback, MParticleConfig, RuleConfig, SegmentConfig, SegmentProfile, SizeLimits,
    SourceConfig, SourceKind,
};
pub use units::{parse_bytes, parse_time, show_bytes, show_time};

use crate::coding::{Coding, KeyError, KeyRing, KeySource};

/// Read when it exists and `--config` is not given.
pub const DEFAULT_FILE: &str = "/etc/forebay/forebay.toml";

/// Who asks for a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `run`: all of it must be good.
    Agent,
    /// `send`, `status`: only where the agent listens. No stream is needed, key files are not read, a default file that this
    /// user may not read is passed over, and so are errors in the parts that a client does not use.
    Client,
    /// `tail`: as a client, but what is said of streams must be good too.
    Reader,
}

/// A flag that stands for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Section of the key. Of streams, the only one.
    pub section: SectionKind,
    /// The key.
    pub key: &'static str,
    /// The flag with its dashes.
    pub flag: &'static str,
    /// Its value.
    pub value: String,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Request {
    /// `--config`: must exist.
    pub file: Option<PathBuf>,
    /// Flags, which win over all else.
    pub flags: Vec<Override>,
    /// `--dev`: fills gaps so that no file is needed, and keeps away from the real spool.
    pub dev: bool,
    /// Who asks.
    pub purpose: Purpose,
}

/// A good configuration and how it came to be.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// For the components.
    pub config: Config,
    /// Every value with its origin.
    pub in_force: InForce,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What was chosen for the person, to be told at start.
    pub notes: Vec<String>,
}

/// Reads file, environment and flags.
///
/// # Errors
/// Everything that is wrong with them, at once.
pub fn load(env: &dyn Environment, request: &Request) -> Result<Loaded, Problems> {
    let mut given = layers::Given::default();
    let file = read_file(env, request, &mut given);
    let unreadable = !given.problems.is_empty();
    given.environment(env);
    given.flags(&request.flags);
    given.gaps();
    let agent = request.purpose == Purpose::Agent;
    // A file that cannot be read may well hold the stream: then that is the only thing to tell.
    let needs_stream = agent && !unreadable && !request.dev && given.count(SectionKind::Stream) == 0;
    if request.dev {
        dev::name_stream(&mut given);
    }
    if given.count(SectionKind::Source) == 0 && given.count(SectionKind::Stream) == 1 {
        let name = SectionKind::Source.key("name").expect("a source has a name");
        given.section(SectionKind::Source, 0).give(name, layers::Raw::Text("default".into()), Origin::Default);
    }

    let mut problems = std::mem::take(&mut given.problems);
    let mut in_force = resolve::resolve(&mut given, env, agent, &mut problems);
    if needs_stream {
        problems.push(no_stream(file.as_deref()));
    }
    let notes = if request.dev { dev::choose_places(&mut in_force, env, &mut problems) } else { Vec::new() };
    check::derive(&mut in_force);
    check::check(&in_force, &mut problems);
    if !agent {
        problems.retain(|problem| concerns(problem, request.purpose));
        find_socket(&mut in_force, env);
    }
    if !problems.is_empty() {
        // By line for who mends the file; what stands outside of it follows.
        problems.sort_by_key(|problem| match problem.origin {
            Some(Origin::File(_, line)) => line,
            _ => usize::MAX,
        });
        return Err(Problems(problems));
    }
    Ok(Loaded { config: check::build(&in_force), in_force, file, notes })
}

/// Judges one flag's value by its key, so that a bad one is a usage error before anything is read.
///
/// # Errors
/// What is wrong, and what is allowed.
pub fn check_flag(section: SectionKind, key: &str, value: &str) -> Result<String, String> {
    resolve::read_flag(section, key, value).map(|_| value.to_owned())
}

fn read_file(env: &dyn Environment, request: &Request, given: &mut layers::Given) -> Option<PathBuf> {
    let path = request.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    match env.read(path) {
        Ok(text) => {
            given.file(path, &text);
            Some(path.to_path_buf())
        }
        Err(error) if request.file.is_none() && error.kind() == io::ErrorKind::NotFound => None,
        Err(error)
            if request.file.is_none() && request.purpose != Purpose::Agent && error.kind() == io::ErrorKind::PermissionDenied =>
        {
            None
        }
        Err(error) => {
            let place = if request.file.is_some() { format!("--config {}", path.display()) } else { path.display().to_string() };
            given.problems.push(Problem::new(place, format!("the file cannot be read: {error}")));
            None
        }
    }
}

fn no_stream(file: Option<&Path>) -> Problem {
    let looked = match file {
        Some(file) => format!("no [[stream]] in {}", file.display()),
        None => format!("no stream is configured, and there is no {DEFAULT_FILE}"),
    };
    Problem::new(
        "stream",
        format!(
            "{looked}. The two shortest ways to start:\n        \
             forebay run --dev                           an embedded Kinesis, no AWS account needed\n        \
             forebay run --stream NAME --region REGION   a stream of your own"
        ),
    )
}

/// Whether a client or reader must care.
fn concerns(problem: &Problem, purpose: Purpose) -> bool {
    let unused = ["source", "spool", "drain_timeout", ENV_PREFIX].iter().any(|part| problem.place.starts_with(part));
    !unused && (purpose == Purpose::Reader || !problem.place.starts_with("stream"))
}

/// A client that was not told where the socket is looks where an agent may have put it.
fn find_socket(in_force: &mut InForce, env: &dyn Environment) {
    let listen = in_force.one_mut(SectionKind::Listen);
    let setting = listen.setting("socket");
    if let (Origin::Default, Typed::Text(Some(usual))) = (&setting.origin, &setting.value) {
        let found = dev::find_socket(Path::new(usual), env);
        if found != Path::new(usual) {
            let found = found.to_string_lossy().into_owned();
            listen.fill("socket", Typed::Text(Some(found)), Origin::Dev);
        }
    }
}

/// The whole configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Listeners.
    pub listen: Listen,
    /// Disk.
    pub spool: SpoolConfig,
    /// Kinesis streams, each with its own spool. At least one.
    pub streams: Vec<StreamConfig>,
    /// Named entrances. With none configured there is one, `default`, into the only stream.
    pub sources: Vec<SourceConfig>,
    /// How long SIGTERM waits for delivery before leaving the rest in the spool. Default 10 s, 0 to 1 h.
    pub drain_timeout: Duration,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Unix socket, mode 0660. `None` (written `""`): off. Default `/run/forebay/forebay.sock`.
    pub socket: Option<PathBuf>,
    /// User ids that may connect; empty: whoever may open the socket.
    pub allowed_uids: Vec<u32>,
    /// Data plane over HTTP; loopback only. Default `127.0.0.1:4710`.
    pub http: Option<SocketAddr>,
    /// The same over TLS; loopback only. Default off. With it, `tls_certificate` and `tls_key` are there.
    pub https: Option<SocketAddr>,
    /// PEM file of the TLS listener's certificate and chain.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub tls_key: Option<PathBuf>,
    /// The same over a Unix socket, mode 0660. Default off.
    pub http_socket: Option<PathBuf>,
    /// Health, metrics, status; loopback only. Default `127.0.0.1:4711`.
    pub admin: Option<SocketAddr>,
    /// Health, readiness and metrics for whoever reaches it, on any address. Default off.
    pub metrics: Option<SocketAddr>,
    /// Host names besides loopback ones that a `Host` header may carry.
    pub allowed_hosts: Vec<String>,
    /// Browser origins that may send. Default none.
    pub allowed_origins: Vec<String>,
}

/// `[spool]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SpoolConfig {
    /// Where the spools live, one directory a stream. Default `/var/lib/forebay`.
    pub dir: PathBuf,
    /// Ceiling for all files of one stream's spool. Default 10 GiB, 256 MiB to 1 PiB, at least four segments.
    pub max_bytes: u64,
    /// Bytes after which a segment is sealed. Default 64 MiB, 8 MiB to 512 MiB.
    pub segment_bytes: u64,
    /// How often the marks are made durable. Default 200 ms, 10 ms to 60 s. Bounds duplicates after a crash.
    pub checkpoint_interval: Duration,
    /// What a receipt means. Default always.
    pub sync: SyncClass,
    /// Default block.
    pub on_full: OnFull,
    /// Free bytes that the spool leaves on its file system. `None`: 256 MiB, or a twentieth of a smaller disk.
    pub reserve: Option<u64>,
    /// Ceiling for one stream's dead letters. Default 1 GiB, 1 MiB to 1 PiB.
    pub dead_max_bytes: u64,
    /// Where encryption keys come from; the first encrypts. Default none.
    pub encryption_keys: Vec<KeySource>,
}

impl Config {
    /// How the spool of this stream is written and read. One that is not configured is not compressed.
    ///
    /// # Errors
    /// An encryption key cannot be read.
    pub fn coding(&self, stream: &str) -> Result<Coding, KeyError> {
        let compress = self.streams.iter().any(|held| held.name == stream && held.spool_compression);
        Ok(Coding { compress, keys: self.spool.read_keys()? })
    }
}

impl SpoolConfig {
    /// Reads the encryption keys.
    ///
    /// # Errors
    /// The first source that yields none.
    #[allow(clippy::disallowed_methods, reason = "a key lies outside of the spool, and no simulator has one in a file")]
    pub fn read_keys(&self) -> Result<KeyRing, KeyError> {
        let env = |name: &str| std::env::var(name).ok();
        let keys = self.encryption_keys.iter().map(|source| source.read(env, |path| std::fs::read(path)));
        keys.collect::<Result<Vec<_>, _>>().map(KeyRing::new)
    }
}

/// What a receipt means. Every receipt's class is told: in the answer to a hello, in an HTTP header, in status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncClass {
    /// The event was synced (fdatasync): it survives a power cut.
    #[default]
    Always,
    /// The event was written, and is synced at most this much later. A process's end loses nothing, a power cut that much.
    Interval(Duration),
    /// The event was written, and is synced when its segment is sealed or the agent stops.
    Os,
}

impl SyncClass {
    /// As it is written, and as [`std::fmt::Display`] shows it: `always`, `interval:50ms`, `os`. What is neither is `always`.
    fn of_text(text: &str) -> Self {
        match text.strip_prefix("interval:").map(units::parse_time) {
            Some(Ok(time)) => Self::Interval(time),
            _ if text == "os" => Self::Os,
            _ => Self::Always,
        }
    }
}

impl std::fmt::Display for SyncClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Interval(time) => write!(f, "interval:{}", show_time(*time)),
            Self::Os => f.write_str("os"),
        }
    }
}

/// What happens to new events while there is no room for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// Their senders wait.
    #[default]
    Block,
    /// They are refused at once.
    Reject,
    /// The oldest make room for them, counted as dropped.
    DropOldest,
}

impl OnFull {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Reject => "reject",
            Self::DropOldest => "drop_oldest",
        }
    }
}

/// How events become records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// One event a record.
    Off,
    /// KPL aggregates: many events a record, for consumers that take them apart.
    Kpl,
    /// Many events a record, a line each.
    Lines,
}

impl Aggregate {
    /// Its word in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Kpl => "kpl",
            Self::Lines => "lines",
        }
    }
}

/// Whether the stream keeps to partition keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordDistribution {
    /// Kinesis is asked.
    Ask,
    /// It is taken to, where Kinesis does not answer.
    Keys,
}

/// What order is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One key's events arrive in the order in which they were receipted.
    Key,
    /// None is promised.
    None,
}

/// `[[stream]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamConfig {
    /// Name or, in the service's own form, ARN.
    pub name: String,
    /// AWS region; `None`: as the AWS SDK finds it.
    pub region: Option<String>,
    /// Role to assume.
    pub role_arn: Option<String>,
    /// External id for that role.
    pub external_id: Option<String>,
    /// Endpoint URL instead of the region's own.
    pub endpoint: Option<String>,
    /// Profile of the shared AWS configuration.
    pub profile: Option<String>,
    /// Default `off`.
    pub aggregate: Aggregate,
    /// Default `key`.
    pub order: Order,
    /// Default `ask`.
    pub record_distribution: RecordDistribution,
    /// The stream's mode is first asked for at some moment of this time. Default 100 s, 0 to 1 h.
    pub ask_mode_within: Duration,
    /// The longest an event waits for company. Default 50 ms, 0 to 10 s.
    pub linger: Duration,
    /// Ceiling of an aggregated record. Default 256 KiB, 1 KiB to 1 MiB less 1 KiB.
    pub record_bytes_max: usize,
    /// Ceiling of a request. Default 5 MiB less 1 KiB, 1 MiB to 10 MiB less 1 KiB.
    pub request_bytes_max: usize,
    /// Requests under way at once. Default 16, 1 to 64.
    pub requests_max: usize,
    /// Time after which an unanswered PutRecords counts as "outcome unknown". Default 10 s, 100 ms to 5 min.
    pub request_timeout: Duration,
    /// Events older than this become dead letters. Default zero, which is off; at most 30 days.
    pub ttl: Duration,
    /// Its spool's files are compressed. Default not.
    pub spool_compression: bool,
}

/// A string that never shows itself in logs or `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
