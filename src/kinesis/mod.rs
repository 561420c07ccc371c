//! Kinesis as the rest of the program sees it: two small traits and plain types.
//!
//! Place: `dispatch` writes through [`KinesisApi`], `tail` and `demo` read through [`KinesisReader`].
//! `aws` holds the real form over aws-sdk-kinesis; no SDK type leaves that file. Tests and simulators bring
//! their own forms. Failure: every error carries a [`ErrorClass`], which alone decides what happens next.
//! Absent on purpose: retries (they live in `dispatch`, which knows about order).

pub mod aws;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::event::ShardId;

/// A boxed future, so that the traits can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One record of a PutRecords request.
#[derive(Clone, Debug)]
pub struct PutEntry {
    /// 1 to 256 Unicode characters.
    pub partition_key: String,
    /// Sent in decimal; decides the shard instead of the key's MD5.
    pub explicit_hash_key: Option<u128>,
    /// The record's bytes, before base64.
    pub data: Vec<u8>,
}

impl PutEntry {
    /// Bytes that count against the service's limits: data before base64 plus the key.
    #[must_use]
    pub fn billed_bytes(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

/// What Kinesis said about one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryOutcome {
    /// Stored, in this shard. The shard may differ from the predicted one (see "the reshard trap").
    Stored {
        /// Where it lies.
        shard: ShardId,
    },
    /// Not stored.
    Failed(PutError),
}

/// What an error means for the events concerned. The only input to the retry policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The shard (or the stream) takes no more just now: slow it down, send again.
    Throttle,
    /// A passing fault, surely not stored: send again after a jittered wait, for ever.
    Transient,
    /// No answer, or one that does not tell: may have been stored. Send again, count it.
    UnknownOutcome,
    /// Permissions, credentials, a stream or key that is missing: pause the stream, say it loudly, try again gently.
    Configuration,
    /// The request itself is refused for its contents.
    Poison,
}

impl ErrorClass {
    /// Value of the `outcome` and `reason` metric labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::Transient => "transient",
            Self::UnknownOutcome => "unknown_outcome",
            Self::Configuration => "configuration",
            Self::Poison => "poison",
        }
    }
}

/// A failed request or a failed record of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutError {
    /// What to do about it.
    pub class: ErrorClass,
    /// The service's error code (`ProvisionedThroughputExceededException`), or ours (`timeout`, `connect`).
    pub code: String,
    /// For people. Holds no event data.
    pub message: String,
}

impl PutError {
    /// The service says that it refuses a record, by its validation's path (`records.1.member.data`) or by a record's field.
    #[must_use]
    pub fn names_a_record(&self) -> bool {
        self.class == ErrorClass::Poison && ["'records.", "ExplicitHashKey"].iter().any(|name| self.message.contains(name))
    }
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for PutError {}

/// An open or closed shard and the hashes that it takes, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRange {
    /// Name.
    pub id: ShardId,
    /// Smallest hash.
    pub first_hash: u128,
    /// Largest hash.
    pub last_hash: u128,
    /// Takes writes (has no ending sequence number).
    pub open: bool,
    /// Shards it came from: one after a split, two after a merge, none at the beginning.
    pub parents: Vec<ShardId>,
}

/// What the service says of a stream as a whole. `None`: it does not say.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StreamSummary {
    /// Its ARN.
    pub arn: String,
    /// `ACTIVE`, `UPDATING`, `CREATING`, `DELETING`.
    pub status: String,
    /// Capacity by demand instead of by shards that somebody chose.
    pub on_demand: Option<bool>,
    /// Record distribution AUTO, or one that is not known here: partition keys and explicit hash keys decide nothing. Told of
    /// on-demand streams only.
    pub ignores_keys: Option<bool>,
    /// Largest record, data before base64 plus key.
    pub record_bytes_max: Option<usize>,
    /// The key that encrypts it, as ARN, id or alias; empty where encryption is told without one. `None`: not encrypted.
    pub key: Option<String>,
}

/// The write side, bound to one stream.
pub trait KinesisApi: Send + Sync + fmt::Debug {
    /// One PutRecords. The answer has exactly one outcome for each entry, in order.
    fn put_records(&self, entries: Vec<PutEntry>) -> BoxFuture<'_, Result<Vec<EntryOutcome>, PutError>>;

    /// All shards, every page of the answer, open and closed.
    fn list_shards(&self) -> BoxFuture<'_, Result<Vec<ShardRange>, PutError>>;

    /// What the service says of the stream: DescribeStreamSummary. One account shares 20 such calls a second.
    fn summary(&self) -> BoxFuture<'_, Result<StreamSummary, PutError>>;

    /// Records go one by one, by PutRecord, because PutRecords is denied.
    fn is_singly(&self) -> bool {
        false
    }
}

/// A record as a consumer gets it.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// The outer partition key.
    pub partition_key: String,
    /// Place in the shard; grows (decimal, longer than u128 is not seen).
    pub sequence: String,
    /// When Kinesis took it, milliseconds since 1970 UTC.
    pub arrived_ms: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

/// One GetRecords answer.
#[derive(Clone, Debug)]
pub struct ReadPage {
    /// In shard order.
    pub records: Vec<StoredRecord>,
    /// Where to go on; `None` when the shard is closed and read to its end.
    pub next: Option<String>,
    /// How far behind the newest record this page is.
    pub behind_ms: u64,
}

/// Where in a shard reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// The oldest record that is kept.
    TrimHorizon,
    /// Only what arrives from now on.
    Latest,
}

/// Where an iterator is put: where reading starts, or where it was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPoint {
    /// As the user chose.
    From(ReadFrom),
    /// After the record with this sequence number.
    After(String),
    /// At the first record that arrived at or after this time, milliseconds since 1970 UTC.
    SinceMs(u64),
}

/// The read side, bound to one stream.
pub trait KinesisReader: Send + Sync + fmt::Debug {
    /// All shards, open and closed.
    fn shards(&self) -> BoxFuture<'_, Result<Vec<ShardRange>, PutError>>;
    /// A shard iterator.
    fn iterator(&self, shard: &ShardId, from: ReadPoint) -> BoxFuture<'_, Result<String, PutError>>;
    /// The next records of an iterator.
    fn read(&self, iterator: String) -> BoxFuture<'_, Result<ReadPage, PutError>>;
}
