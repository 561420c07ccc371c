//! Every knob: unit in the name or type, default, range, one sentence.
//!
//! Place: `main` reads it once; each component is handed its own part.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// How long SIGTERM waits for delivery before leaving the rest in the spool. Default 10 s.
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
    /// Health, metrics, status; loopback only. Default `127.0.0.1:4711`.
    pub admin: Option<SocketAddr>,
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
    /// Ceiling for all files of one stream's spool. Default 10 GiB, at least 256 MiB.
    pub max_bytes: u64,
    /// Bytes after which a segment is sealed. Default 64 MiB, 8 MiB to 512 MiB.
    pub segment_bytes: u64,
    /// How often the marks are made durable. Default 200 ms, 10 ms to 60 s. Bounds duplicates after a crash.
    pub checkpoint_interval: Duration,
}

/// How events become records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// One event a record.
    Off,
    /// KPL aggregates: many events a record, for consumers that take them apart.
    Kpl,
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
    /// The longest an event waits for company. Default 50 ms, 0 to 10 s.
    pub linger: Duration,
    /// Ceiling of an aggregated record. Default 256 KiB, 1 KiB to 1 MiB less 1 KiB.
    pub record_bytes_max: usize,
    /// Ceiling of a request. Default 5 MiB less 1 KiB.
    pub request_bytes_max: usize,
    /// Requests under way at once. Default 16, 1 to 64.
    pub requests_max: usize,
    /// Time after which an unanswered PutRecords counts as "outcome unknown". Default 10 s, 100 ms to 5 min.
    pub request_timeout: Duration,
}

/// Where a source's partition keys come from when no pointer yields one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFallback {
    /// A random key for each event.
    Random,
    /// The event is rejected.
    Reject,
}

/// What a source speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Plain events: socket and `/ingest`.
    Events,
}

/// `[[source]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// Name; appears in `/ingest/{source}` and `source=` of the hello.
    pub name: String,
    /// Default `events`.
    pub kind: SourceKind,
    /// Name of the stream its events go to.
    pub stream: String,
    /// JSON pointers (RFC 6901); the first that is a non-empty string or a number is the key.
    pub partition_key: Vec<String>,
    /// Default random.
    pub partition_key_fallback: KeyFallback,
    /// Write keys that open this source; empty: open to whoever reaches the listener.
    pub keys: Vec<Secret>,
    /// Largest event. Default and most: `limits::EVENT_BYTES_MAX`.
    pub max_event_bytes: usize,
}

/// A string that never shows itself in logs or `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
