//! `POST /`: the Kinesis API, so that an AWS SDK writes to the agent with nothing changed but its endpoint.
//!
//! Place: the route of `X-Amz-Target: Kinesis_20131202.…`. What a request means and what its answer says is made in
//! `ingest::kinesis`; here the body is read, the caller checked where a source lists access keys, the source found by the
//! stream that is named, and events submitted. SDKs find in an answer what they look for: a request id, and a CRC-32 of the body.
//!
//! *ALL-READ-FIRST*: what would be refused as a whole is, before any record is accepted. *RECEIPT-AFTER-SYNC*: a record's
//! sequence number is the position of its first event, all of whose events are durable. In PutRecords each record has its own
//! answer; only where there is no room for any of them the request is refused, because SDKs repeat that by themselves.
//!
//! Failure: every error has the service's form and code. No room is `ProvisionedThroughputExceededException`, an agent that
//! stops or whose disk fails is `ServiceUnavailable`: SDKs send again, and may so send twice what was durable.

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};

use super::Context;
use super::answer::{Answer, Problem};
use super::body;
use super::submit::{self, EVENTS_MAX};
use crate::config::SourceKind;
use crate::event::{KeyHash, Position};
use crate::host::Host;
use crate::ingest::kinesis::request::{self, Event, Put, StreamRef};
use crate::ingest::kinesis::shards::{self, NO_ACCOUNT, Page, Stream};
use crate::ingest::kinesis::signature::{self, Authorization, Signed};
use crate::ingest::kinesis::value::Value;
use crate::ingest::kinesis::{Failure, Operation, Protocol};
use crate::ingest::{Made, NoSource, Reject, Source};
use crate::limits::EVENT_BYTES_MAX;
use crate::metrics::locked;
use crate::spool::Batch;

/// Handles a request to `/`. Every end of it has the service's form.
pub async fn handle(request: Request<Incoming>, context: &Context) -> Answer {
    let (head, incoming) = request.into_parts();
    let protocol = Protocol::of_content_type(head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()));
    let id = context.sources.host().map(request_id).unwrap_or_default();
    match perform(&head, incoming, protocol, context).await {
        Ok(value) => reply(protocol, StatusCode::OK, &value, &id),
        Err(failure) => {
            let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::BAD_REQUEST);
            reply(protocol, status, &failure.body(), &id)
        }
    }
}

fn reply(protocol: Protocol, status: StatusCode, body: &Value<'_>, id: &str) -> Answer {
    let body = protocol.write(body);
    let crc = crc32fast::hash(&body);
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(protocol.content_type()));
    headers.insert("x-amz-crc32", HeaderValue::from(crc));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-amzn-requestid", id);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// A random UUID: SDKs show it with an error.
fn request_id(host: &Host) -> String {
    let random = u128::from(host.entropy.next_u64()) << 64 | u128::from(host.entropy.next_u64());
    // Version 4, variant 1 (RFC 9562).
    let hex = format!("{:032x}", random & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let status = problem.status().as_u16();
        let code = match status {
            _ if problem.is_full() => return Self::throughput(problem.text()),
            408 => "RequestTimeoutException",
            413 => "RequestEntityTooLargeException",
            503 => "ServiceUnavailable",
            _ => return Self::serialization(problem.text()),
        };
        Self { code, status, text: problem.text().to_owned() }
    }
}

async fn perform(head: &Parts, incoming: Incoming, protocol: Protocol, context: &Context) -> Result<Value<'static>, Failure> {
    let target = head.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
    let operation = Operation::of_target(target)?;
    submit::unless_draining(context)?;
    if !context.sources.speaks(SourceKind::Kinesis) {
        let problem = NoSource::NoneOfKind { kind: SourceKind::Kinesis };
        return Err(Failure::new("ResourceNotFoundException", problem.to_string()));
    }
    let body::Body { bytes, mut share } = body::read(incoming, &head.headers, &context.memory, &context.options).await?;
    let caller = Caller::new(head, &bytes, context)?;
    let request = protocol.read(&bytes)?;
    let named = |request: &Value<'_>| caller.source(StreamRef::read(request)?.required()?).map(|(_, stream)| stream);
    match operation {
        Operation::PutRecord | Operation::PutRecords => {
            let single = operation == Operation::PutRecord;
            let put = Put::read(&request, single)?;
            let (source, stream) = caller.source(put.stream)?;
            // What the records are decoded to; it goes back with the body.
            share.grow(put.decoded_bytes(), context.options.admit_timeout).await?;
            let under_way = accept(source, &put, single, context).await?;
            // The events are in batches now; the body's memory can serve another request.
            drop(put);
            drop(request);
            drop(bytes);
            drop(share);
            under_way.answer(&stream).await
        }
        Operation::ListShards => {
            let page = Page::read(&request)?;
            let (_, stream) = caller.source(StreamRef { name: Some(&page.stream), arn: page.arn })?;
            Ok(stream.listed(&page))
        }
        Operation::DescribeStreamSummary => named(&request).map(|stream| stream.summarized()),
        Operation::DescribeStream => named(&request)?.full(&request),
        Operation::ListStreams => shards::streams(&caller.streams(), &request),
        Operation::DescribeLimits => Ok(shards::limits(&caller.streams())),
        Operation::ListTagsForStream => {
            named(&request).map(|_| Value::map([("Tags", Value::List(Vec::new())), ("HasMoreTags", Value::Bool(false))]))
        }
        Operation::ListTagsForResource => Ok(Value::map([("Tags", Value::List(Vec::new()))])),
    }
}

/// Who asks, and the sources that are open to him.
struct Caller<'c> {
    context: &'c Context,
    /// What the request says of itself; checked only where a source asks for it.
    auth: Option<Authorization<'c>>,
    open: Vec<&'c Source>,
}

impl<'c> Caller<'c> {
    fn new(head: &'c Parts, body: &[u8], context: &'c Context) -> Result<Self, Failure> {
        let header = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let read = header.map(Authorization::read);
        let auth = read.as_ref().and_then(|read| read.clone().ok());
        // Those that the caller's key opens come first.
        let mut open = Vec::new();
        let mut checked: Vec<(&str, Result<(), Failure>)> = Vec::new();
        for source in context.sources.all_of(SourceKind::Kinesis).filter(|source| source.is_signed()) {
            let Some((auth, secret)) = auth.as_ref().and_then(|auth| Some((auth, source.secret_of(auth.key_id)?))) else {
                continue;
            };
            // One secret is checked once: that takes a hash of the body.
            let known = checked.iter().position(|(held, _)| *held == secret.0);
            let known = known.unwrap_or_else(|| {
                checked.push((&secret.0, check(auth, &secret.0, head, body, source.host())));
                checked.len() - 1
            });
            if checked[known].1.is_ok() {
                open.push(&**source);
            }
        }
        if open.is_empty()
            && let Some((_, Err(failure))) = checked.pop()
        {
            return Err(failure);
        }
        open.extend(context.sources.all_of(SourceKind::Kinesis).filter(|source| !source.is_signed()).map(|source| &**source));
        let caller = Self { context, auth, open };
        let closed = context.sources.closed_of(SourceKind::Kinesis).next();
        match (read, closed) {
            _ if !caller.open.is_empty() => Ok(caller),
            (Some(Err(failure)), _) => Err(failure),
            // Who could know the key is not there yet.
            (_, Some((_, closed))) => Err(Problem::from(closed).into()),
            _ => Err(caller.stranger()),
        }
    }

    /// What somebody is told who has no good key.
    fn stranger(&self) -> Failure {
        match self.auth {
            None => Failure::new("MissingAuthenticationTokenException", "Missing Authentication Token"),
            Some(_) => Failure::new(
                "UnrecognizedClientException",
                "The security token included in the request is invalid: its access key is none of the source's access_keys.",
            ),
        }
    }

    /// The source of a stream.
    fn source(&self, by: StreamRef<'_>) -> Result<(&'c Source, Stream), Failure> {
        let meant = |source: &'c Source| Some((source, self.stream(source))).filter(|(_, stream)| stream.is_meant(by));
        if let Some(found) = self.open.iter().find_map(|source| meant(source)) {
            return Ok(found);
        }
        if self.context.sources.all_of(SourceKind::Kinesis).any(|source| meant(source).is_some()) {
            return Err(self.stranger());
        }
        let region = self.auth.as_ref().map(|auth| auth.region);
        let closed = |(stream, closed): (&str, NoSource)| Stream::new(stream, region, None, None).is_meant(by).then_some(closed);
        if let Some(closed) = self.context.sources.closed_of(SourceKind::Kinesis).find_map(closed) {
            return Err(Problem::from(closed).into());
        }
        let account = by.arn.and_then(|arn| arn.split(':').nth(4)).unwrap_or(NO_ACCOUNT);
        let known: Vec<String> = self.streams().iter().map(|stream| stream.name().to_owned()).collect();
        Err(Failure::no_stream(by.plain(), account, &known.join(", ")))
    }

    fn stream(&self, source: &Source) -> Stream {
        let metrics = &source.spool().shared().metrics;
        let (map, summary) = (locked(&metrics.shard_map).clone(), locked(&metrics.mode).summary.clone());
        Stream::new(source.stream(), self.auth.as_ref().map(|auth| auth.region), map, summary)
    }

    /// Each stream once.
    fn streams(&self) -> Vec<Stream> {
        let mut streams: Vec<Stream> = Vec::new();
        for stream in self.open.iter().map(|source| self.stream(source)) {
            if streams.iter().all(|held| held.name() != stream.name()) {
                streams.push(stream);
            }
        }
        streams
    }
}

fn check(auth: &Authorization<'_>, secret: &str, head: &Parts, body: &[u8], host: &Host) -> Result<(), Failure> {
    if head.headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Failure::new("InvalidSignatureException", "A signed body must be sent without a Content-Encoding."));
    }
    let header = |name: &str| {
        // HTTP/2 names the host in the URI, and has no names of headers that begin with a colon.
        let authority = || head.uri.authority().map(|authority| authority.as_str().as_bytes().to_vec());
        if name.starts_with(':') {
            return authority().filter(|_| name == ":authority");
        }
        let all: Vec<&[u8]> = head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        match all[..] {
            [] if name == HOST.as_str() => authority(),
            [] => None,
            _ => Some(all.join(&b","[..])),
        }
    };
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let signed = Signed { method: head.method.as_str(), path, query, header, body };
    signature::verify(auth, secret, &signed, i64::try_from(host.clock.wall_ms() / 1000).unwrap_or(i64::MAX))
}

/// A request whose events are submitted.
struct UnderWay {
    single: bool,
    /// Of each record, what decides its shard.
    hashes: Vec<KeyHash>,
    taken: submit::Taken,
    /// The record of each event that was taken, in their order.
    records: Vec<u32>,
    /// Records with an event that was refused.
    rejected: Vec<(u32, Reject)>,
}

async fn accept(source: &Source, put: &Put<'_>, single: bool, context: &Context) -> Result<UnderWay, Failure> {
    let takes = |bytes: usize| source.judge_size(bytes).is_ok();
    let stream_max = source.spool().shared().metrics.event_bytes_max().max(EVENT_BYTES_MAX);
    let most = source.data_bytes_max().min(stream_max);
    let mut arena = Vec::with_capacity(put.decoded_bytes());
    let data = request::decode(&put.records, &mut arena)?;
    let events = request::take_apart(&put.records, &data, EVENTS_MAX)?;
    if let Err(failure) = request::judge_sizes(&events, single, takes, most) {
        source.count_rejected(Reject::TooLarge, 1);
        return Err(failure);
    }
    submit::wait_for_room(source, || events.len() as u64, context).await?;
    let bytes_of = |event: &&Event<'_>| event.data.len();
    let bytes = events.iter().map(|event| event.data.len() + event.key.len() + 64).sum();
    let mut records = Vec::with_capacity(events.len());
    let encode = |event: &Event<'_>, batch: &mut Batch| {
        let before = batch.count();
        let made = Made { key: event.key, hash: event.hash, data: event.data, event_type: None, id: None };
        let outcome = source.encode_made(&made, batch);
        // A rule of the source may leave one out.
        records.extend((before..batch.count()).map(|_| event.record));
        outcome
    };
    let taken = submit::all(source, events.iter(), bytes_of, encode, bytes, context).await?;
    let rejected = taken.rejected().iter().map(|&(at, reject)| (events[at as usize].record, reject)).collect();
    let hashes = put.records.iter().map(request::Record::hash).collect();
    Ok(UnderWay { single, hashes, taken, records, rejected })
}

impl UnderWay {
    /// Waits until all is durable, and says so.
    async fn answer(self, stream: &Stream) -> Result<Value<'static>, Failure> {
        let Self { single, hashes, taken, records, rejected } = self;
        let mut firsts: Vec<Option<Position>> = vec![None; hashes.len()];
        let mut failures: Vec<Option<Failure>> = vec![None; hashes.len()];
        let mut of_events = records.into_iter();
        let mut durable = 0;
        for (outcome, events) in taken.outcomes().await? {
            for (record, nth) in of_events.by_ref().take(events as usize).zip(0..) {
                let record = record as usize;
                match outcome {
                    Ok(first) => {
                        durable += 1;
                        firsts[record] = firsts[record].or(Some(Position(first.0 + nth)));
                    }
                    Err(limit) => failures[record] = Some(Failure::throughput(Reject::Full(limit).to_string())),
                }
            }
        }
        for (record, reject) in rejected {
            failures[record as usize].get_or_insert_with(|| Failure::argument(reject.to_string()));
        }
        if let Some(Some(failure)) = failures.first()
            && (single || (durable == 0 && failures.iter().all(Option::is_some)))
        {
            return Err(failure.clone());
        }
        let failed = failures.iter().flatten().count();
        let mut sequence = Position::default();
        let mut stored = |first: Option<Position>, hash| {
            // One that a rule of the source left out has the number of the one before.
            sequence = first.unwrap_or(sequence);
            let shard = Value::text(stream.shard_of(hash).to_owned());
            vec![("ShardId", shard), ("SequenceNumber", Value::text(sequence.to_string()))]
        };
        let encryption = ("EncryptionType", Value::text(stream.encryption()));
        if single {
            let mut members = stored(firsts[0], hashes[0]);
            members.push(encryption);
            return Ok(Value::map(members));
        }
        let outcomes = failures.into_iter().zip(firsts).zip(hashes).map(|((failure, first), hash)| {
            Value::map(match failure {
                Some(failure) => vec![("ErrorCode", Value::text(failure.code)), ("ErrorMessage", Value::text(failure.text))],
                None => stored(first, hash),
            })
        });
        let records = Value::List(outcomes.collect());
        Ok(Value::map([("FailedRecordCount", Value::Int(failed as i64)), ("Records", records), encryption]))
    }
}
