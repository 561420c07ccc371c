//! What is answered of streams and their shards: what Kinesis told the agent last, in the form of the service's own answers.
//!
//! Place: the route makes a [`Stream`] of a source's stream and what is known of it, and asks here for the answer's body.
//!
//! Before Kinesis told anything, a stream is shown with one open shard that takes all hashes: libraries begin by listing
//! shards, and do not begin at all where that fails or lists none, while the agent takes records with or without a network. No
//! harm comes of it, since the agent finds each event's shard itself, and takes aggregates apart. A stream is always ACTIVE (or
//! UPDATING): that is what the agent is for.
//!
//! What the agent is not told is given as the service gives it for a new stream: 24 hours, no metrics, created at 0. Sequence
//! numbers are positions in the agent's spool, so that every shard begins at 0. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::Failure;
use super::request::{StreamRef, Violations, number, text};
use super::value::Value;
use crate::event::{KeyHash, ShardId};
use crate::iam::StreamArn;
use crate::kinesis::{ShardRange, StreamSummary};
use crate::limits::RECORD_BYTES_MAX;
use crate::shard_map::ShardMap;

/// The only shard of a stream of which nothing is known.
const FIRST_SHARD: &str = "shardId-000000000000";

/// The account where none is known.
pub const NO_ACCOUNT: &str = "000000000000";

/// Shards of one page at most, and by default of ListShards.
const PAGE_MAX: i64 = 10_000;

/// Shards of a page of DescribeStream by default.
const DESCRIBED: i64 = 100;

/// A stream as far as it is known.
#[derive(Clone, Debug)]
pub struct Stream {
    arn: StreamArn,
    map: Option<Arc<ShardMap>>,
    summary: Option<StreamSummary>,
}

impl Stream {
    /// A stream as it is configured, by name or ARN; `region` is the client's, for want of another.
    #[must_use]
    pub fn new(configured: &str, region: Option<&str>, map: Option<Arc<ShardMap>>, summary: Option<StreamSummary>) -> Self {
        let told = summary.as_ref().map(|summary| &summary.arn[..]).filter(|arn| arn.contains(":stream/"));
        let arn = StreamArn::new(told.unwrap_or(configured), Some(region.unwrap_or("us-east-1")), Some(NO_ACCOUNT));
        Self { arn, map, summary }
    }

    /// Its plain name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.arn.name
    }

    /// A request means this stream. An ARN is compared as far as the stream's own is known; one without an account is the one that
    /// the agent gave itself before it knew better.
    #[must_use]
    pub fn is_meant(&self, by: StreamRef<'_>) -> bool {
        let by_arn = |arn: &str| {
            let given = StreamArn::new(arn, None, None);
            let is_known = self.summary.is_some() || self.arn.account.as_deref() != Some(NO_ACCOUNT);
            let is_ours = given.account.as_deref() == Some(NO_ACCOUNT);
            given.name == self.arn.name
                && (!is_known || is_ours || (given.region == self.arn.region && given.account == self.arn.account))
        };
        by.name.is_none_or(|name| name == self.arn.name) && by.arn.is_none_or(by_arn)
    }

    /// The shard that takes a hash, as far as is known.
    #[must_use]
    pub fn shard_of(&self, hash: KeyHash) -> &str {
        self.map.as_deref().map_or(FIRST_SHARD, |map| &map.open()[map.shard_of(hash)].id.0)
    }

    /// `KMS` or `NONE`.
    #[must_use]
    pub fn encryption(&self) -> &'static str {
        if self.key().is_some() { "KMS" } else { "NONE" }
    }

    fn key(&self) -> Option<&str> {
        self.summary.as_ref().and_then(|summary| summary.key.as_deref())
    }

    fn status(&self) -> &'static str {
        if self.summary.as_ref().is_some_and(|summary| summary.status == "UPDATING") { "UPDATING" } else { "ACTIVE" }
    }

    fn mode(&self) -> Value<'static> {
        let on_demand = self.summary.as_ref().and_then(|summary| summary.on_demand) == Some(true);
        Value::map([("StreamMode", Value::text(if on_demand { "ON_DEMAND" } else { "PROVISIONED" }))])
    }

    /// All shards by name, or the open ones.
    fn shards(&self, open_only: bool) -> Vec<Cow<'_, ShardRange>> {
        let Some(map) = self.map.as_deref() else {
            let id = ShardId::from(FIRST_SHARD);
            return vec![Cow::Owned(ShardRange { id, first_hash: 0, last_hash: u128::MAX, open: true, parents: Vec::new() })];
        };
        let closed = if open_only { &[] } else { map.closed() };
        let mut shards: Vec<_> = map.open().iter().chain(closed).map(Cow::Borrowed).collect();
        shards.sort_by(|a, b| a.id.0.cmp(&b.id.0));
        shards
    }

    fn is_open(&self, shard: &ShardRange) -> bool {
        self.map.as_deref().is_none_or(|map| map.open().iter().any(|open| open.id == shard.id))
    }

    /// A page of shards after one of them, and whether there are more.
    fn page(&self, after: Option<&str>, most: i64, open_only: bool) -> (Vec<Value<'static>>, Option<String>) {
        let shards = self.shards(open_only);
        let mut rest = shards.iter().filter(|shard| after.is_none_or(|after| &shard.id.0[..] > after)).peekable();
        let page: Vec<_> = rest.by_ref().take(usize::try_from(most).unwrap_or(usize::MAX)).collect();
        let last = rest.peek().and(page.last()).map(|shard| shard.id.to_string());
        (page.into_iter().map(|shard| shard_value(shard, self.is_open(shard))).collect(), last)
    }

    /// What DescribeStream and DescribeStreamSummary have in common.
    fn described(&self) -> Vec<(&'static str, Value<'static>)> {
        let mut members = vec![
            ("StreamName", Value::text(self.arn.name.clone())),
            ("StreamARN", Value::text(self.arn.to_string())),
            ("StreamStatus", Value::text(self.status())),
            ("StreamModeDetails", self.mode()),
            ("RetentionPeriodHours", Value::Int(24)),
            ("StreamCreationTimestamp", Value::Time(0)),
            ("EnhancedMonitoring", Value::List(vec![Value::map([("ShardLevelMetrics", Value::List(Vec::new()))])])),
            ("EncryptionType", Value::text(self.encryption())),
        ];
        if let Some(key) = self.key().filter(|key| !key.is_empty()) {
            members.push(("KeyId", Value::text(key.to_owned())));
        }
        members
    }

    /// The answer to DescribeStreamSummary.
    #[must_use]
    pub fn summarized(&self) -> Value<'static> {
        let record_bytes = self.summary.as_ref().and_then(|summary| summary.record_bytes_max).unwrap_or(RECORD_BYTES_MAX);
        let mut members = self.described();
        members.push(("OpenShardCount", Value::Int(self.open_count())));
        members.push(("ConsumerCount", Value::Int(0)));
        members.push(("MaxRecordSizeInKiB", Value::Int((record_bytes >> 10) as i64)));
        Value::map([("StreamDescriptionSummary", Value::map(members))])
    }

    fn open_count(&self) -> i64 {
        self.map.as_deref().map_or(1, |map| map.open().len() as i64)
    }

    /// The answer to DescribeStream.
    ///
    /// # Errors
    /// A limit that is none.
    pub fn full(&self, request: &Value<'_>) -> Result<Value<'static>, Failure> {
        let most = page_size(request, "Limit", "limit")?.unwrap_or(DESCRIBED);
        let (shards, last) = self.page(text(request, "ExclusiveStartShardId")?, most, false);
        let mut members = self.described();
        members.push(("HasMoreShards", Value::Bool(last.is_some())));
        members.push(("Shards", Value::List(shards)));
        Ok(Value::map([("StreamDescription", Value::map(members))]))
    }

    /// The answer to ListShards, from where `page` says.
    #[must_use]
    pub fn listed(&self, page: &Page<'_>) -> Value<'static> {
        let (shards, last) = self.page(page.after.as_deref(), page.most, page.open_only);
        let mut members = vec![("Shards", Value::List(shards))];
        if let Some(last) = last {
            let open_only = if page.open_only { "open" } else { "all" };
            let token = format!("{open_only}\n{}\n{last}", self.arn.name);
            members.push(("NextToken", Value::text(BASE64_URL_SAFE_NO_PAD.encode(token))));
        }
        Value::map(members)
    }
}

/// Which shards ListShards asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<'v> {
    /// Their stream; with a token, the one that it was made for.
    pub stream: Cow<'v, str>,
    /// The same by ARN.
    pub arn: Option<&'v str>,
    after: Option<Cow<'v, str>>,
    most: i64,
    open_only: bool,
}

impl<'v> Page<'v> {
    /// From a request.
    ///
    /// # Errors
    /// As the service has them: neither stream nor token, both, a token that is none of ours.
    pub fn read(request: &'v Value<'_>) -> Result<Self, Failure> {
        let stream = StreamRef::read(request)?;
        let most = page_size(request, "MaxResults", "maxResults")?.unwrap_or(PAGE_MAX);
        let after = text(request, "ExclusiveStartShardId")?;
        match (text(request, "NextToken")?, stream) {
            (None, StreamRef { name: None, arn: None }) => {
                Err(Failure::argument("Either NextToken or StreamName should be provided."))
            }
            (None, stream) => {
                let filter = request.get("ShardFilter");
                let kind = filter.map(|filter| text(filter, "Type")).transpose()?.flatten();
                let after_filter = match (kind, filter) {
                    (Some("AFTER_SHARD_ID"), Some(filter)) => text(filter, "ShardId")?,
                    _ => None,
                };
                // Shards are not known by the time at which they closed: filters by time list all that the service still lists.
                let (after, open_only) = (after.or(after_filter).map(Cow::Borrowed), kind == Some("AT_LATEST"));
                Ok(Self { stream: Cow::Borrowed(stream.plain()), arn: stream.arn, after, most, open_only })
            }
            (Some(_), StreamRef { name: Some(_), .. }) => {
                Err(Failure::argument("NextToken and StreamName cannot be provided together."))
            }
            (Some(token), _) => {
                let wrong = || Failure::argument("The NextToken is none that the agent has given.");
                let token = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
                let token = String::from_utf8(token).map_err(|_| wrong())?;
                let mut parts = token.splitn(3, '\n').map(str::to_owned);
                let (Some(which), Some(stream), Some(after)) = (parts.next(), parts.next(), parts.next()) else {
                    return Err(wrong());
                };
                let open_only = which == "open";
                Ok(Self { stream: Cow::Owned(stream), arn: None, after: Some(Cow::Owned(after)), most, open_only })
            }
        }
    }
}

/// A number of things in a page, from 1 to 10,000.
fn page_size(request: &Value<'_>, name: &str, at: &str) -> Result<Option<i64>, Failure> {
    let size = number(request, name)?;
    let mut wrong = Violations::default();
    match size {
        Some(..1) => wrong.add(false, at, "have value greater than or equal to 1"),
        Some(10_001..) => wrong.add(false, at, "have value less than or equal to 10000"),
        _ => {}
    }
    wrong.judge().map(|()| size)
}

fn shard_value(shard: &ShardRange, open: bool) -> Value<'static> {
    let range = Value::map([
        ("StartingHashKey", Value::text(shard.first_hash.to_string())),
        ("EndingHashKey", Value::text(shard.last_hash.to_string())),
    ]);
    // An ending sequence number is how a closed shard is told from an open one.
    let begins = ("StartingSequenceNumber", Value::text("0"));
    let sequence = if open { vec![begins] } else { vec![begins, ("EndingSequenceNumber", Value::text("0"))] };
    let mut members = vec![
        ("ShardId", Value::text(shard.id.to_string())),
        ("HashKeyRange", range),
        ("SequenceNumberRange", Value::map(sequence)),
    ];
    for (name, parent) in ["ParentShardId", "AdjacentParentShardId"].into_iter().zip(&shard.parents) {
        members.push((name, Value::text(parent.to_string())));
    }
    Value::map(members)
}

/// The answer to ListStreams.
///
/// # Errors
/// A limit that is none.
pub fn streams(all: &[Stream], request: &Value<'_>) -> Result<Value<'static>, Failure> {
    let most = page_size(request, "Limit", "limit")?.unwrap_or(DESCRIBED);
    let after = match text(request, "NextToken")? {
        Some(token) => Some(token),
        None => text(request, "ExclusiveStartStreamName")?,
    };
    let mut all: Vec<&Stream> = all.iter().filter(|stream| after.is_none_or(|after| stream.name() > after)).collect();
    all.sort_by(|a, b| a.name().cmp(b.name()));
    let page: Vec<&Stream> = all.iter().copied().take(usize::try_from(most).unwrap_or(usize::MAX)).collect();
    let more = page.len() < all.len();
    let summary = |stream: &&Stream| {
        Value::map(stream.described().into_iter().filter(|(name, _)| {
            ["StreamName", "StreamARN", "StreamStatus", "StreamModeDetails", "StreamCreationTimestamp"].contains(name)
        }))
    };
    let mut members = vec![
        ("StreamNames", Value::List(page.iter().map(|stream| Value::text(stream.name().to_owned())).collect())),
        ("StreamSummaries", Value::List(page.iter().map(summary).collect())),
        ("HasMoreStreams", Value::Bool(more)),
    ];
    if let Some(last) = page.last().filter(|_| more) {
        members.push(("NextToken", Value::text(last.name().to_owned())));
    }
    Ok(Value::map(members))
}

/// The answer to DescribeLimits: of the account's limits the agent knows nothing, so that they are a new account's.
#[must_use]
pub fn limits(all: &[Stream]) -> Value<'static> {
    let on_demand = |stream: &&Stream| stream.summary.as_ref().and_then(|summary| summary.on_demand) == Some(true);
    Value::map([
        ("ShardLimit", Value::Int(20_000)),
        ("OpenShardCount", Value::Int(all.iter().map(Stream::open_count).sum())),
        ("OnDemandStreamCount", Value::Int(all.iter().filter(on_demand).count() as i64)),
        ("OnDemandStreamCountLimit", Value::Int(50)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::kinesis::json;
    use crate::shard_map::even_shards;

    fn stream(shards: u32) -> Stream {
        Stream::new("clicks", Some("eu-west-1"), Some(Arc::new(ShardMap::new(even_shards(shards)).unwrap())), None)
    }

    fn shown(value: &Value<'_>) -> serde_json::Value {
        let mut out = Vec::new();
        json::write(value, &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    fn list(stream: &Stream, request: serde_json::Value) -> serde_json::Value {
        let request = request.to_string();
        let request = json::read(request.as_bytes()).unwrap();
        shown(&stream.listed(&Page::read(&request).unwrap()))
    }

    #[test]
    fn shards_are_listed_page_by_page_without_one_twice() {
        let stream = stream(5);
        let mut request = serde_json::json!({ "StreamName": "clicks", "MaxResults": 2 });
        let mut ids = Vec::new();
        loop {
            let page = list(&stream, request);
            ids.extend(page["Shards"].as_array().unwrap().iter().map(|shard| shard["ShardId"].as_str().unwrap().to_owned()));
            match page["NextToken"].as_str() {
                Some(token) => request = serde_json::json!({ "NextToken": token, "MaxResults": 2 }),
                None => break,
            }
        }
        assert_eq!(ids, (0..5).map(|n| format!("shardId-{n:012}")).collect::<Vec<_>>());
        assert_eq!(list(&stream, serde_json::json!({ "StreamName": "clicks", "ExclusiveStartShardId": "shardId-000000000003" }))["Shards"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn closed_shards_have_an_end_and_are_left_out_at_latest() {
        let mut all = even_shards(1);
        for (n, mut child) in even_shards(2).into_iter().enumerate() {
            child.id = ShardId::from(format!("shardId-00000000001{n}").as_str());
            child.parents = vec![all[0].id.clone()];
            all.push(child);
        }
        let stream = Stream::new("clicks", None, Some(Arc::new(ShardMap::new(all).unwrap())), None);
        let shards = list(&stream, serde_json::json!({ "StreamName": "clicks" }))["Shards"].clone();
        assert_eq!(shards[0]["SequenceNumberRange"]["EndingSequenceNumber"], "0");
        assert_eq!(shards[1]["ParentShardId"], "shardId-000000000000");
        assert!(shards[1]["SequenceNumberRange"].get("EndingSequenceNumber").is_none());
        assert_eq!(shards[2]["HashKeyRange"]["EndingHashKey"], u128::MAX.to_string());
        let latest = list(&stream, serde_json::json!({ "StreamName": "clicks", "ShardFilter": { "Type": "AT_LATEST" } }));
        assert_eq!(latest["Shards"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_stream_of_which_nothing_is_known_has_one_shard() {
        let stream = Stream::new("clicks", None, None, None);
        assert_eq!(stream.shard_of(KeyHash(u128::MAX)), FIRST_SHARD);
        let shards = list(&stream, serde_json::json!({ "StreamName": "clicks" }))["Shards"].clone();
        assert_eq!((shards.as_array().unwrap().len(), &shards[0]["HashKeyRange"]["StartingHashKey"]), (1, &"0".into()));
        let summary = shown(&stream.summarized());
        assert_eq!(summary["StreamDescriptionSummary"]["StreamStatus"], "ACTIVE");
        assert_eq!(summary["StreamDescriptionSummary"]["OpenShardCount"], 1);
    }

    #[test]
    fn a_stream_is_meant_by_its_name_and_by_its_arn() {
        let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks";
        let known = Stream::new(arn, None, None, None);
        let by = |stream: &Stream, name: Option<&str>, arn: Option<&str>| stream.is_meant(StreamRef { name, arn });
        assert!(by(&known, Some("clicks"), None) && by(&known, None, Some(arn)) && by(&known, Some("clicks"), Some(arn)));
        assert!(!by(&known, Some("other"), None) && !by(&known, Some("other"), Some(arn)));
        let other = "arn:aws:kinesis:eu-west-1:999999999999:stream/clicks";
        assert!(!by(&known, None, Some(other)));
        // Told before the stream was described, and used afterwards.
        let told = Stream::new("clicks", Some("eu-west-1"), None, None).arn.to_string();
        assert!(by(&known, None, Some(&told)));
        // Configured by its name, and not described yet.
        assert!(by(&stream(1), None, Some(other)));
        assert!(!by(&stream(1), None, Some("arn:aws:kinesis:eu-west-1:999999999999:stream/other")));
    }

    #[test]
    fn a_page_needs_a_stream_or_a_token_of_ours() {
        let code =
            |request: &str| Page::read(&json::read(request.as_bytes()).unwrap()).map(|_| ()).map_err(|failure| failure.code);
        assert_eq!(code("{}"), Err("InvalidArgumentException"));
        assert_eq!(code(r#"{"NextToken":"YQ","StreamName":"clicks"}"#), Err("InvalidArgumentException"));
        assert_eq!(code(r#"{"NextToken":"YQ"}"#), Err("InvalidArgumentException"));
        assert_eq!(code(r#"{"StreamName":"clicks","MaxResults":0}"#), Err("ValidationException"));
        assert_eq!(code(r#"{"StreamName":"clicks","MaxResults":10001}"#), Err("ValidationException"));
        assert_eq!(code(r#"{"StreamName":"clicks","MaxResults":10000}"#), Ok(()));
    }

    #[test]
    fn streams_are_listed_by_name_page_by_page() {
        let all = ["b", "a", "c"].map(|name| Stream::new(name, None, None, None));
        let names = |request: &str| shown(&streams(&all, &json::read(request.as_bytes()).unwrap()).unwrap());
        assert_eq!(names("{}")["StreamNames"], serde_json::json!(["a", "b", "c"]));
        let first = names(r#"{"Limit":2}"#);
        assert_eq!((&first["HasMoreStreams"], &first["NextToken"]), (&true.into(), &"b".into()));
        assert_eq!(names(r#"{"NextToken":"b"}"#)["StreamNames"], serde_json::json!(["c"]));
        assert_eq!(shown(&limits(&all))["OpenShardCount"], 3);
    }
}
