//! Kinesis over aws-sdk-kinesis: the only file, with its `classify`, that knows an SDK type.
//!
//! Place: `dispatch` writes through it, `consumer` reads through it, both by the traits of the parent module.
//! One [`AwsKinesis`] holds one client, and so one pool of kept-alive connections, for one stream.
//!
//! Nothing here touches the network before the first call: the client is built then, because the region and
//! the credentials may have to be asked for. A lookup that fails is not remembered, nor is a client whose credentials were
//! refused; the next call asks again.
//!
//! Time: an answer is waited for from the moment the signed request is handed to the connection, so that a slow
//! lookup of credentials (which has its own limit) is never taken for a lost answer. *UNKNOWN-IS-SAID*: whatever
//! may have been stored without our knowing is reported as unknown outcome, never as plain failure.
//!
//! Failure: every error is a [`PutError`] made by `classify`. Absent on purpose: retries, rate limits, order.

pub mod account;
mod classify;
mod client;
mod credentials;
mod singly;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_kinesis::config::{ConfigBag, Credentials, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::{BoxError, ProvideErrorMetadata};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, PutRecordsResultEntry, Shard, ShardIteratorType};
use aws_sdk_kinesis::{Client, config::http::HttpResponse, error::SdkError};
use tokio::sync::{Notify, OnceCell};

use super::{
    BoxFuture, EntryOutcome, ErrorClass, KinesisApi, KinesisReader, PutEntry, PutError, ReadFrom, ReadPage, ReadPoint,
    ShardRange, StoredRecord, StreamSummary,
};
use crate::config::StreamConfig;
use crate::event::ShardId;
use crate::metrics::locked;

/// Bytes that one GetRecords asks for, by way of its record limit. The service itself stops at 10 MiB, emulators do not.
const PAGE_BYTES: u64 = 8 << 20;

/// Most records of one GetRecords. AWS API reference, `GetRecords`, `Limit`.
const PAGE_RECORDS_MAX: u64 = 10_000;

/// Pages of one ListShards answer before we stop believing it: at 1,000 shards each, far above any account's quota.
const LIST_PAGES_MAX: usize = 1_000;

/// Which stream, and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Name or ARN of the stream.
    pub stream: String,
    /// AWS region; `None`: the ARN's, else as every AWS tool finds it.
    pub region: Option<String>,
    /// Endpoint URL instead of the region's own.
    pub endpoint: Option<String>,
    /// Profile of the shared AWS configuration.
    pub profile: Option<String>,
    /// Role to assume.
    pub role_arn: Option<String>,
    /// External id for that role.
    pub external_id: Option<String>,
    /// How long an answer is waited for once the request is on its way.
    pub request_timeout: Duration,
}

impl Target {
    /// A stream at the region's own endpoint, with the credentials of the environment, and 10 s for an answer.
    #[must_use]
    pub fn new(stream: impl Into<String>) -> Self {
        Self {
            stream: stream.into(),
            region: None,
            endpoint: None,
            profile: None,
            role_arn: None,
            external_id: None,
            request_timeout: Duration::from_secs(10),
        }
    }

    /// The ARN, where the stream is given by it: then requests carry `StreamARN` instead of `StreamName`.
    fn arn(&self) -> Option<&str> {
        self.stream.starts_with("arn:").then_some(self.stream.as_str())
    }

    /// The region that the target itself names: its own, else its ARN's (`arn:aws:kinesis:REGION:…`).
    fn named_region(&self) -> Option<&str> {
        self.region.as_deref().or_else(|| self.arn()?.split(':').nth(3)).filter(|region| !region.is_empty())
    }

    /// Whether the endpoint is on this machine, where nobody minds a busy poll.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let Some(endpoint) = self.endpoint.as_deref() else { return false };
        let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).split('/').next().unwrap_or_default();
        authority.starts_with("127.") || authority.starts_with("[::1]") || authority.split(':').next() == Some("localhost")
    }
}

impl From<&StreamConfig> for Target {
    fn from(config: &StreamConfig) -> Self {
        Self {
            stream: config.name.clone(),
            region: config.region.clone(),
            endpoint: config.endpoint.clone(),
            profile: config.profile.clone(),
            role_arn: config.role_arn.clone(),
            external_id: config.external_id.clone(),
            request_timeout: config.request_timeout,
        }
    }
}

/// One stream at AWS, or at whatever speaks its protocol.
#[derive(Debug)]
pub struct AwsKinesis {
    target: Target,
    fixed_credentials: Option<Credentials>,
    client: Mutex<Lease>,
    /// Mean size of the records of the last page, so that the next one asks for about [`PAGE_BYTES`].
    record_bytes: AtomicU64,
    /// Shard ids that answers named so far, so that a record's answer shares one instead of making its own, and is
    /// compared by address with the one that was listed.
    shard_ids: Mutex<ShardIds>,
    /// PutRecords, or PutRecord where only that is allowed.
    way: Mutex<singly::Way>,
    retry_put_records_after: Duration,
}

/// A client, from when it is first needed until its credentials are refused.
type Lease = Arc<OnceCell<Client>>;

/// One name for each shard, shared. Looked up for every record, so hashed quickly.
type ShardIds = HashSet<ShardId, foldhash::fast::RandomState>;

impl AwsKinesis {
    /// Prepares a stream as configured. Does no I/O and cannot fail: what is wrong is told by the calls, as
    /// [`ErrorClass::Configuration`].
    #[must_use]
    pub fn connect(config: &StreamConfig) -> Self {
        Self::open(config.into())
    }

    /// As [`AwsKinesis::connect`], with credentials given instead of looked up. For emulators.
    #[must_use]
    pub fn connect_with_credentials(config: &StreamConfig, access_key_id: &str, secret_access_key: &str) -> Self {
        Self::open_with_credentials(config.into(), access_key_id, secret_access_key)
    }

    /// As [`AwsKinesis::connect`], for callers that have no stream of the configuration.
    #[must_use]
    pub fn open(target: Target) -> Self {
        Self {
            target,
            fixed_credentials: None,
            client: Mutex::default(),
            record_bytes: AtomicU64::new(PAGE_BYTES / 100),
            shard_ids: Mutex::default(),
            way: Mutex::default(),
            retry_put_records_after: singly::RETRY_AFTER,
        }
    }

    /// Where PutRecords is denied, it is tried again after half of `wait` to all of it (60 s), later less often. For tests.
    #[must_use]
    pub fn retry_put_records_after(self, wait: Duration) -> Self {
        Self { retry_put_records_after: wait, ..self }
    }

    /// As [`AwsKinesis::open`], with credentials given instead of looked up.
    #[must_use]
    pub fn open_with_credentials(target: Target, access_key_id: &str, secret_access_key: &str) -> Self {
        let credentials = Credentials::new(access_key_id, secret_access_key, None, None, "forebay");
        Self { fixed_credentials: Some(credentials), ..Self::open(target) }
    }

    /// Where this leads.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    async fn client(&self) -> Result<(Client, Lease), PutError> {
        let lease = locked(&self.client).clone();
        let make = async || {
            let session = client::session(&self.target, self.fixed_credentials.clone()).await?;
            Ok(client::kinesis(&session, &self.target))
        };
        let client = lease.get_or_try_init(make).await?.clone();
        Ok((client, lease))
    }

    /// Credentials were refused: the next call looks for them anew, since files and variables are read once for each client.
    /// The other requests of the same client, which fail too, do not throw away the new one.
    fn forget(&self, lease: &Lease) {
        let mut current = locked(&self.client);
        if Arc::ptr_eq(&current, lease) {
            *current = Lease::default();
        }
    }

    fn name(&self) -> Option<String> {
        self.target.arn().is_none().then(|| self.target.stream.clone())
    }

    fn arn(&self) -> Option<String> {
        self.target.arn().map(str::to_owned)
    }

    /// Waits for `sending`, but no longer than the request timeout after the departure.
    async fn answer<O, E>(
        &self,
        lease: &Lease,
        departure: &Departure,
        sending: impl Future<Output = Result<O, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<O, PutError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let overdue = async {
            departure.0.moment.notified().await;
            tokio::time::sleep(self.target.request_timeout).await;
        };
        tokio::select! {
            biased;
            answer = sending => answer.map_err(|error| {
                let left = departure.left();
                let error = if left { classify::answered(&error) } else { classify::never_left(&error, &self.target) };
                if classify::doubts_credentials(&error) {
                    self.forget(lease);
                }
                error
            }),
            () = overdue => Err(classify::overdue(self.target.request_timeout)),
        }
    }

    async fn put(&self, entries: Vec<PutEntry>) -> Result<Vec<EntryOutcome>, PutError> {
        let sent = entries.len();
        let records = entries.into_iter().map(request_entry).collect::<Result<Vec<_>, _>>()?;
        let departure = Departure::default();
        let (client, lease) = self.client().await?;
        let request = client.put_records().set_stream_name(self.name()).set_stream_arn(self.arn());
        let sending = request.set_records(Some(records)).customize().interceptor(departure.clone()).send();
        let output = self.answer(&lease, &departure, sending).await?;
        if output.records.len() != sent {
            return Err(classify::bad_answer(format!("{} outcomes for {sent} records", output.records.len())));
        }
        let mut shard_ids = locked(&self.shard_ids);
        Ok(output.records.into_iter().map(|record| entry_outcome(record, &mut shard_ids)).collect())
    }

    async fn list(&self) -> Result<Vec<ShardRange>, PutError> {
        let (client, lease) = self.client().await?;
        let mut ranges: Vec<ShardRange> = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..LIST_PAGES_MAX {
            // The service takes either the stream or the token of the page before, never both.
            let request = match token.take() {
                Some(token) => client.list_shards().next_token(token),
                None => client.list_shards().set_stream_name(self.name()).set_stream_arn(self.arn()),
            };
            let departure = Departure::default();
            let output = self.answer(&lease, &departure, request.customize().interceptor(departure.clone()).send()).await?;
            for shard in output.shards.unwrap_or_default() {
                let mut range = shard_range(shard)?;
                range.id = shared(&range.id.0, &mut locked(&self.shard_ids));
                ranges.push(range);
            }
            match output.next_token {
                Some(next) if !next.is_empty() => token = Some(next),
                _ => return Ok(ranges),
            }
        }
        Err(classify::bad_answer(format!("ListShards did not end after {LIST_PAGES_MAX} pages")))
    }

    async fn describe(&self) -> Result<StreamSummary, PutError> {
        let (client, lease) = self.client().await?;
        let request = client.describe_stream_summary().set_stream_name(self.name()).set_stream_arn(self.arn());
        let departure = Departure::default();
        let output = self.answer(&lease, &departure, request.customize().interceptor(departure.clone()).send()).await?;
        let told = output.stream_description_summary;
        let told = told.ok_or_else(|| classify::bad_answer("no description of the stream".into()))?;
        let encrypted = told.encryption_type.as_ref().is_some_and(|kind| kind.as_str() == "KMS");
        Ok(StreamSummary {
            arn: told.stream_arn,
            status: told.stream_status.as_str().to_owned(),
            on_demand: told.stream_mode_details.map(|mode| mode.stream_mode.as_str() == "ON_DEMAND"),
            ignores_keys: told.record_distribution_strategy.map(|strategy| strategy.as_str() != "USER_PARTITION_KEY"),
            record_bytes_max: told.max_record_size_in_kib.and_then(|kib| usize::try_from(kib).ok()).map(|kib| kib << 10),
            key: if encrypted { Some(told.key_id.unwrap_or_default()) } else { None },
        })
    }

    async fn shard_iterator(&self, shard: &ShardId, from: ReadPoint) -> Result<String, PutError> {
        let (client, lease) = self.client().await?;
        let request = client.get_shard_iterator();
        let request = request.set_stream_name(self.name()).set_stream_arn(self.arn()).shard_id(&*shard.0);
        let request = match from {
            ReadPoint::From(ReadFrom::TrimHorizon) => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            ReadPoint::From(ReadFrom::Latest) => request.shard_iterator_type(ShardIteratorType::Latest),
            ReadPoint::After(sequence) => {
                request.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(sequence)
            }
            ReadPoint::SinceMs(at) => request
                .shard_iterator_type(ShardIteratorType::AtTimestamp)
                .timestamp(aws_sdk_kinesis::primitives::DateTime::from_millis(i64::try_from(at).unwrap_or(i64::MAX))),
        };
        let departure = Departure::default();
        let output = self.answer(&lease, &departure, request.customize().interceptor(departure.clone()).send()).await?;
        output.shard_iterator.ok_or_else(|| classify::bad_answer("GetShardIterator without an iterator".into()))
    }

    async fn page(&self, iterator: String) -> Result<ReadPage, PutError> {
        let mean = self.record_bytes.load(Ordering::Relaxed).max(1);
        // Bounded by PAGE_RECORDS_MAX, so the cast is exact.
        let limit = (PAGE_BYTES / mean).clamp(8, PAGE_RECORDS_MAX) as i32;
        let (client, lease) = self.client().await?;
        let request = client.get_records().shard_iterator(iterator).limit(limit).set_stream_arn(self.arn());
        let departure = Departure::default();
        let output = self.answer(&lease, &departure, request.customize().interceptor(departure.clone()).send()).await?;
        let records: Vec<StoredRecord> = output
            .records
            .into_iter()
            .map(|record| StoredRecord {
                partition_key: record.partition_key.unwrap_or_default(),
                sequence: record.sequence_number,
                arrived_ms: record
                    .approximate_arrival_timestamp
                    .and_then(|at| u64::try_from(at.to_millis().ok()?).ok())
                    .unwrap_or_default(),
                data: record.data.into_inner(),
            })
            .collect();
        if !records.is_empty() {
            let bytes: usize = records.iter().map(|record| record.data.len()).sum();
            self.record_bytes.store((bytes / records.len()) as u64, Ordering::Relaxed);
        }
        let behind_ms = output.millis_behind_latest.and_then(|ms| u64::try_from(ms).ok()).unwrap_or_default();
        Ok(ReadPage { records, next: output.next_shard_iterator.filter(|next| !next.is_empty()), behind_ms })
    }
}

impl KinesisApi for AwsKinesis {
    fn put_records(&self, entries: Vec<PutEntry>) -> BoxFuture<'_, Result<Vec<EntryOutcome>, PutError>> {
        Box::pin(self.put_either(entries))
    }

    fn list_shards(&self) -> BoxFuture<'_, Result<Vec<ShardRange>, PutError>> {
        Box::pin(self.list())
    }

    fn summary(&self) -> BoxFuture<'_, Result<StreamSummary, PutError>> {
        Box::pin(self.describe())
    }

    fn is_singly(&self) -> bool {
        self.goes_singly()
    }
}

impl KinesisReader for AwsKinesis {
    fn shards(&self) -> BoxFuture<'_, Result<Vec<ShardRange>, PutError>> {
        Box::pin(self.list())
    }

    fn iterator(&self, shard: &ShardId, from: ReadPoint) -> BoxFuture<'_, Result<String, PutError>> {
        let shard = shard.clone();
        Box::pin(async move { self.shard_iterator(&shard, from).await })
    }

    fn read(&self, iterator: String) -> BoxFuture<'_, Result<ReadPage, PutError>> {
        Box::pin(self.page(iterator))
    }
}

/// Knows whether a request was signed and handed to the connection. Before that, nothing can have been stored.
#[derive(Clone, Debug, Default)]
struct Departure(Arc<DepartureState>);

#[derive(Debug, Default)]
struct DepartureState {
    left: AtomicBool,
    moment: Notify,
}

impl Departure {
    fn left(&self) -> bool {
        self.0.left.load(Ordering::Acquire)
    }
}

impl Intercept for Departure {
    fn name(&self) -> &'static str {
        "Departure"
    }

    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.left.store(true, Ordering::Release);
        self.0.moment.notify_one();
        Ok(())
    }
}

/// Moves the data into the SDK; nothing is copied here.
fn request_entry(entry: PutEntry) -> Result<PutRecordsRequestEntry, PutError> {
    PutRecordsRequestEntry::builder()
        .data(Blob::new(entry.data))
        .partition_key(entry.partition_key)
        .set_explicit_hash_key(entry.explicit_hash_key.map(|hash| hash.to_string()))
        .build()
        .map_err(|error| PutError { class: ErrorClass::Poison, code: "Entry".into(), message: error.to_string() })
}

/// The one id of that name.
fn shared(name: &str, known: &mut ShardIds) -> ShardId {
    if let Some(id) = known.get(name) {
        return id.clone();
    }
    let id = ShardId::from(name);
    known.insert(id.clone());
    id
}

fn entry_outcome(entry: PutRecordsResultEntry, known: &mut ShardIds) -> EntryOutcome {
    // kinesis-local writes `"ErrorCode": null` on good records and some emulators an empty string: neither is an error.
    if let Some(code) = entry.error_code.filter(|code| !code.is_empty()) {
        return EntryOutcome::Failed(classify::entry(code, entry.error_message.unwrap_or_default()));
    }
    match (entry.sequence_number, entry.shard_id) {
        (Some(sequence), Some(shard)) if !sequence.is_empty() && !shard.is_empty() => {
            EntryOutcome::Stored { shard: shared(&shard, known) }
        }
        _ => EntryOutcome::Failed(classify::bad_answer("a record with neither sequence number and shard nor error code".into())),
    }
}

fn shard_range(shard: Shard) -> Result<ShardRange, PutError> {
    let hash = |text: Option<&str>| {
        let parsed = text.and_then(|text| text.parse::<u128>().ok());
        parsed.ok_or_else(|| classify::bad_answer(format!("shard {} without a readable hash range", shard.shard_id)))
    };
    let range = shard.hash_key_range.as_ref();
    let first_hash = hash(range.map(|range| range.starting_hash_key.as_str()))?;
    let last_hash = hash(range.map(|range| range.ending_hash_key.as_str()))?;
    let ended = shard.sequence_number_range.as_ref().and_then(|range| range.ending_sequence_number.as_deref());
    let parents = [shard.parent_shard_id.as_deref(), shard.adjacent_parent_shard_id.as_deref()];
    Ok(ShardRange {
        id: shard.shard_id.as_str().into(),
        first_hash,
        last_hash,
        open: ended.is_none_or(str::is_empty),
        parents: parents.into_iter().flatten().filter(|parent| !parent.is_empty()).map(ShardId::from).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_names_its_region_unless_another_is_given() {
        let mut target = Target::new("arn:aws:kinesis:eu-west-1:123456789012:stream/clicks");
        assert_eq!(target.named_region(), Some("eu-west-1"));
        assert!(target.arn().is_some());
        target.region = Some("us-east-2".into());
        assert_eq!(target.named_region(), Some("us-east-2"));
        assert_eq!(Target::new("clicks").named_region(), None);
        assert_eq!(Target::new("arn:aws").named_region(), None);
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let at = |endpoint: &str| Target { endpoint: Some(endpoint.into()), ..Target::new("s") }.is_loopback();
        assert!(at("http://127.0.0.1:4567"));
        assert!(at("http://localhost:4567/"));
        assert!(at("http://[::1]:4567"));
        assert!(!at("https://kinesis.eu-west-1.amazonaws.com"));
        assert!(!at("http://localhost.example.com"));
        assert!(!Target::new("s").is_loopback());
    }

    #[test]
    fn a_good_record_is_one_with_a_sequence_number_and_a_shard() {
        let stored = PutRecordsResultEntry::builder().sequence_number("1").shard_id("shardId-000000000000").build();
        assert_eq!(
            entry_outcome(stored, &mut ShardIds::default()),
            EntryOutcome::Stored { shard: "shardId-000000000000".into() }
        );
        for odd in [
            PutRecordsResultEntry::builder().build(),
            PutRecordsResultEntry::builder().shard_id("shardId-000000000000").build(),
            PutRecordsResultEntry::builder().sequence_number("1").build(),
        ] {
            let EntryOutcome::Failed(error) = entry_outcome(odd, &mut ShardIds::default()) else {
                panic!("stored without proof")
            };
            assert_eq!(error.class, ErrorClass::UnknownOutcome);
        }
    }
}
