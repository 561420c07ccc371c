//! Amplitude's routes: `POST /2/httpapi` and `/batch`, `/identify` and `/groupidentify` by POST or GET.
//!
//! Place: the path alone leads here. The API key stands in the body, so the body is read before the source is chosen. What the
//! request holds and what its answers say is `ingest::amplitude`; here it is read, submitted and answered.
//!
//! *RECEIPT-AFTER-SYNC*: 200 leaves only when every record of the request is durable. Events that no record is made of (by the
//! source's `events`, or identify calls that are not forwarded) count as taken, as they do at Amplitude.
//!
//! Failure: Amplitude's own bodies, errors too, because its SDKs decide by them. Whoever must wait gets 503 with an empty body:
//! SDKs then send all again, while on 429 they hold single events back for 30 s and ignore `Retry-After`.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::Context;
use super::answer::{self, Answer, Problem};
use super::body;
use super::submit::{self, EVENTS_MAX};
use crate::config::{SizeLimits, SourceKind};
use crate::ingest::amplitude::identify::{Call as IdentifyCall, Form, Identification, Wrong};
use crate::ingest::amplitude::limits::{self, Most};
use crate::ingest::amplitude::record::{self, Arrival};
use crate::ingest::amplitude::{Event, Fault, Faults, Refusal, Upload, success};
use crate::ingest::{Made, NoSource, Reject, Source};

/// What a path asks for.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// Events; of them Amplitude itself takes this much in a request.
    Upload(Most),
    /// The properties of users or of groups.
    Identify(IdentifyCall),
}

impl Call {
    /// By the path. `None`: it is none of Amplitude's.
    pub fn of_path(path: &str) -> Option<Self> {
        match path {
            "/2/httpapi" => Some(Self::Upload(limits::HTTP_API)),
            "/batch" => Some(Self::Upload(limits::BATCH)),
            "/identify" => Some(Self::Identify(IdentifyCall::User)),
            "/groupidentify" => Some(Self::Identify(IdentifyCall::Group)),
            _ => None,
        }
    }
}

/// Handles a request of a call.
pub async fn handle(call: Call, request: Request<Incoming>, context: &Context) -> Answer {
    let done = match (call, request.method()) {
        (Call::Upload(most), &Method::POST) => upload(most, request, context).await,
        (Call::Identify(call), &Method::POST | &Method::GET) => return identified(identify(call, request, context).await),
        (Call::Upload(_), _) => Err(Problem::method("POST").into()),
        (Call::Identify(_), _) => return identified(Err(Problem::method("POST, GET").into())),
    };
    match done {
        Ok(body) => answer::json(StatusCode::OK, body),
        Err(Stop::Refused(refusal)) => {
            let (status, body) = refusal.answer();
            answer::json(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), body)
        }
        Err(Stop::Identify(wrong)) => text(StatusCode::BAD_REQUEST, wrong.word()),
        Err(Stop::Problem(problem)) => match problem.status() {
            StatusCode::SERVICE_UNAVAILABLE => text(StatusCode::SERVICE_UNAVAILABLE, ""),
            StatusCode::PAYLOAD_TOO_LARGE => answer::json(StatusCode::PAYLOAD_TOO_LARGE, Refusal::TooLarge.answer().1),
            StatusCode::BAD_REQUEST => answer::json(StatusCode::BAD_REQUEST, Refusal::NotJson.answer().1),
            status => answer::json(status, serde_json::json!({ "code": status.as_u16(), "error": problem.text() }).to_string()),
        },
    }
}

/// Why a request ends early.
enum Stop {
    /// In Amplitude's words.
    Refused(Refusal),
    /// In ours, to be told in its form.
    Problem(Problem),
    /// A call of the Identify API.
    Identify(Wrong),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Self {
        Self::Identify(wrong)
    }
}

/// The source that an API key belongs to.
fn source_of<'c>(context: &'c Context, key: &str) -> Result<&'c Source, Stop> {
    match context.sources.of_kind(SourceKind::Amplitude, Some(key)) {
        Ok(source) => Ok(source),
        Err(NoSource::KeyUnknown | NoSource::KeyMissing) => Err(Refusal::UnknownKey.into()),
        Err(NoSource::Unnamed { .. }) => {
            Err(Problem::not_found("several sources are of kind \"amplitude\"; give each its API keys (source.keys)").into())
        }
        Err(other) => Err(Problem::from(other).into()),
    }
}

/// Nothing is read for a source that is not there.
fn unless_absent(context: &Context) -> Result<(), Problem> {
    submit::unless_draining(context)?;
    let kind = SourceKind::Amplitude;
    if context.sources.speaks(kind) { Ok(()) } else { Err(NoSource::NoneOfKind { kind }.into()) }
}

/// Events, judged all before the first is accepted.
async fn upload(most: Most, request: Request<Incoming>, context: &Context) -> Result<String, Stop> {
    unless_absent(context)?;
    let (head, incoming) = request.into_parts();
    let body = body::read(incoming, &head.headers, &context.memory, &context.options).await?;
    let upload = Upload::read(&body.bytes, EVENTS_MAX)?;
    let source = source_of(context, &upload.api_key)?;
    if source.limits() == SizeLimits::Vendor && !most.holds(body.bytes.len(), upload.count()) {
        // SDKs send the halves of a request that is too large, and give up only an event that is so alone.
        if upload.count() == 1 {
            source.count_rejected(Reject::TooLarge, 1);
        }
        return Err(Refusal::TooLarge.into());
    }
    let now_ms = source.host().clock.wall_ms();
    let arrival = Arrival::new(microseconds(now_ms), upload.client_upload_us, source.host());
    let wanted = judge_all(&upload, source, &arrival)?;
    let count = wanted.len() as u64;
    submit::wait_for_room(source, || count, context).await?;

    let config = source.amplitude();
    let bound = |(_, event): &(u32, Event<'_>)| record::bytes_max(event.json(), config);
    let bytes = wanted.iter().map(bound).sum();
    let indexes: Vec<u32> = wanted.iter().map(|(index, _)| *index).collect();
    let mut scratch = Vec::new();
    let taken = submit::all(
        source,
        wanted.into_iter(),
        bound,
        |(_, event), batch| {
            scratch.clear();
            record::write(&event, &arrival, config, &mut scratch);
            let (key, id) = (event.key(), event.copy_id());
            let event_type = Some(event.event_type());
            source.encode_made(&Made { key: &key, hash: None, data: &scratch, event_type, id: id.as_deref() }, batch)
        },
        bytes,
        context,
    )
    .await?;
    let (events, payload_bytes) = (upload.count() as u64, body.bytes.len());
    drop(upload);
    drop(body);
    let done = taken.durable().await?;
    if done.rejected.is_empty() {
        return Ok(success(events, payload_bytes, now_ms));
    }
    // A rule of the source refuses them: SDKs drop those that are listed, and send the others, which are durable, once more.
    let mut faults = Faults::default();
    for (at, reject) in done.rejected {
        let index = indexes.get(at as usize).copied().unwrap_or(at);
        faults.add(index, if reject == Reject::NoKey { Fault::Missing("user_id") } else { Fault::Invalid("event_properties") });
    }
    Err(Refusal::Events(faults).into())
}

/// The events that become records, by their index. The answer of a request of which one event is at fault lists them all, and
/// just those count as rejected: SDKs drop them, and send the others again.
fn judge_all<'u>(upload: &'u Upload<'_>, source: &Source, arrival: &Arrival<'_>) -> Result<Vec<(u32, Event<'u>)>, Stop> {
    let config = source.amplitude();
    let mut faults = Faults::default();
    let mut wanted = Vec::with_capacity(upload.count());
    for (index, sent) in (0..).zip(upload.sent()) {
        let event = match Event::judge(sent, upload.id_chars_min) {
            Ok(event) => event,
            Err(all) => {
                source.count_rejected(Reject::NotValid, 1);
                all.into_iter().for_each(|fault| faults.add(index, fault));
                continue;
            }
        };
        if source.limits() == SizeLimits::Vendor {
            let over = limits::faults(sent.json);
            if !over.is_empty() {
                source.count_rejected(Reject::TooLarge, 1);
                over.into_iter().for_each(|fault| faults.add(index, fault));
                continue;
            }
        }
        if !event.is_wanted(config) {
            continue;
        }
        if source.judge_size(record::bytes_max(sent.json, config)).is_err() {
            // So near the limit it is worth making the record twice.
            let mut made = Vec::new();
            record::write(&event, arrival, config, &mut made);
            if let Err(reject) = source.judge_size(made.len()) {
                source.count_rejected(reject, 1);
                if upload.count() == 1 {
                    return Err(Refusal::TooLarge.into());
                }
                faults.add(index, Fault::Invalid("event_properties"));
                continue;
            }
        }
        wanted.push((index, event));
    }
    if faults.is_empty() { Ok(wanted) } else { Err(Refusal::Events(faults).into()) }
}

fn microseconds(ms: u64) -> i64 {
    i64::try_from(ms.saturating_mul(1000)).unwrap_or(i64::MAX)
}

/// Properties of users or groups.
async fn identify(call: IdentifyCall, request: Request<Incoming>, context: &Context) -> Result<(), Stop> {
    unless_absent(context)?;
    let (head, incoming) = request.into_parts();
    let body = body::read(incoming, &head.headers, &context.memory, &context.options).await?;
    let encoded: Cow<'_, [u8]> = match (body.bytes.is_empty(), head.uri.query()) {
        (true, Some(query)) => Cow::Borrowed(query.as_bytes()),
        _ => Cow::Borrowed(&body.bytes),
    };
    let form = Form::read(&encoded);
    let source = source_of(context, form.api_key()?)?;
    let all = form.identifications(call, EVENTS_MAX)?;
    if source.limits() == SizeLimits::Vendor && !limits::IDENTIFY.holds(encoded.len(), all.len()) {
        source.count_rejected(Reject::TooLarge, all.len() as u64);
        return Err(Wrong::TooLarge.into());
    }
    if !source.amplitude().forward_identify {
        return Ok(());
    }
    for one in &all {
        source.judge_size(one.json.len()).map_err(|reject| {
            source.count_rejected(reject, 1);
            Wrong::TooLarge
        })?;
    }
    let count = all.len() as u64;
    submit::wait_for_room(source, || count, context).await?;
    let bytes = all.iter().map(|one| one.json.len()).sum();
    let mut scratch = Vec::new();
    let taken = submit::all(
        source,
        all.iter(),
        |one: &&Identification<'_>| one.json.len(),
        |one, batch| {
            scratch.clear();
            crate::ingest::members::push_raw(&mut scratch, one.json);
            source.encode_made(&Made { key: &one.key, hash: None, data: &scratch, event_type: None, id: None }, batch)
        },
        bytes,
        context,
    )
    .await?;
    match taken.durable().await?.rejected[..] {
        [] => Ok(()),
        _ => Err(Wrong::MissingEvent.into()),
    }
}

/// Answers of the Identify API are text.
fn identified(done: Result<(), Stop>) -> Answer {
    match done {
        Ok(()) => text(StatusCode::OK, "success"),
        Err(Stop::Identify(Wrong::TooLarge)) => text(StatusCode::PAYLOAD_TOO_LARGE, Wrong::TooLarge.word()),
        Err(Stop::Identify(wrong)) => text(StatusCode::BAD_REQUEST, wrong.word()),
        Err(Stop::Refused(_)) => text(StatusCode::BAD_REQUEST, "invalid_api_key"),
        Err(Stop::Problem(problem)) if problem.status() == StatusCode::SERVICE_UNAVAILABLE => {
            text(StatusCode::SERVICE_UNAVAILABLE, "")
        }
        Err(Stop::Problem(problem)) => text(problem.status(), problem.text()),
    }
}

fn text(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = status;
    if !text.is_empty() {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    answer
}
