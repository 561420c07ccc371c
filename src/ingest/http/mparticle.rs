//! mParticle's routes: `POST /v2/events`, `/v2/bulkevents` and `/v2/bulkevents/historical`.
//!
//! Place: the path alone leads here. Basic's user and password are the key and the secret; they choose the source before the body
//! is read. What a batch holds and what its records say is `ingest::mparticle`; here it is read, submitted and answered.
//!
//! *RECEIPT-AFTER-SYNC*: 202, with an empty body as mParticle's, leaves only when every record of the request is durable.
//! Historical batches are read and judged, and no record is made of them: mParticle forwards none either.
//!
//! Failure: `{"errors":[{"code":"…","message":"…"}]}`. A single bad batch is 400; in bulk, bad ones are left out and counted. An
//! agent that cannot take anything answers 503 without `Retry-After`: SDKs here do not send again by themselves.

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};

use super::Context;
use super::answer::{self, Answer, Problem};
use super::body::{self, BODY_BYTES_MAX};
use super::submit::{self, EVENTS_MAX};
use crate::config::{SizeLimits, SourceKind};
use crate::ingest::mparticle::record::{self, Arrival};
use crate::ingest::mparticle::{Batch, Wrong, batch, batches, errors, keep_limits};
use crate::ingest::{Made, NoSource, Reject, Source};

/// Bytes of all records of one request: with one record an event, what a batch's events have in common is there for each.
const MADE_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// One batch.
    Events,
    /// Several.
    Bulk,
    /// Several, which nobody forwards.
    Historical,
}

impl Call {
    /// By the path. `None`: it is none of mParticle's.
    pub fn of_path(path: &str) -> Option<Self> {
        match path.strip_prefix("/v2/")? {
            "events" => Some(Self::Events),
            "bulkevents" => Some(Self::Bulk),
            "bulkevents/historical" => Some(Self::Historical),
            _ => None,
        }
    }
}

/// Handles a request of a call.
pub async fn handle(call: Call, request: Request<Incoming>, context: &Context) -> Answer {
    let done = match *request.method() {
        Method::POST => take(call, request, context).await,
        _ => Err(Problem::method("POST").into()),
    };
    let (status, message) = match &done {
        Ok(()) => {
            let mut answer = Response::new(Full::new(Bytes::new()));
            *answer.status_mut() = StatusCode::ACCEPTED;
            return answer;
        }
        Err(Stop::Wrong(wrong @ (Wrong::TooLarge | Wrong::OverLimit))) => (StatusCode::PAYLOAD_TOO_LARGE, wrong.sentence()),
        Err(Stop::Wrong(wrong)) => (StatusCode::BAD_REQUEST, wrong.sentence()),
        Err(Stop::Problem(problem)) => (problem.status(), problem.text()),
        Err(Stop::NoBasic) => (StatusCode::UNAUTHORIZED, "Basic authentication with an API key and its secret is required"),
        Err(Stop::WrongBasic) => (StatusCode::FORBIDDEN, "no source of kind mparticle has this key"),
    };
    let code = status.canonical_reason().unwrap_or_default().to_ascii_uppercase().replace(' ', "_");
    let mut answer = answer::json(status, errors(&code, message));
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
    }
    answer
}

/// Why a request ends early.
enum Stop {
    /// In mParticle's words.
    Wrong(Wrong),
    /// As at any door.
    Problem(Problem),
    /// There is no key.
    NoBasic,
    /// The key is not known.
    WrongBasic,
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

/// `key:secret` of Basic.
fn basic(headers: &HeaderMap) -> Result<String, Stop> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(Stop::NoBasic)?;
    let (scheme, encoded) = value.trim().split_once(' ').ok_or(Stop::NoBasic)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Stop::NoBasic);
    }
    let decoded = base64::prelude::BASE64_STANDARD.decode(encoded.trim()).map_err(|_| Stop::WrongBasic)?;
    String::from_utf8(decoded).map_err(|_| Stop::WrongBasic)
}

/// The source that has `key:secret` among its keys, or the key alone.
fn source_of<'c>(context: &'c Context, pair: &str) -> Result<&'c Source, Stop> {
    let key = pair.split_once(':').map_or(pair, |(key, _)| key);
    let choose = |key: &str| context.sources.of_kind(SourceKind::MParticle, Some(key));
    let chosen = match choose(pair) {
        Err(NoSource::KeyUnknown | NoSource::KeyMissing) => choose(key),
        other => other,
    };
    match chosen {
        Ok(source) => Ok(source),
        Err(NoSource::KeyUnknown | NoSource::KeyMissing) => Err(Stop::WrongBasic),
        Err(NoSource::Unnamed { .. }) => {
            Err(Problem::not_found("several sources are of kind \"mparticle\"; give each its API keys (source.keys)").into())
        }
        Err(other) => Err(Problem::from(other).into()),
    }
}

/// One record to be made: of a batch, or of one of its events.
type Part = (usize, Option<usize>);

async fn take(call: Call, request: Request<Incoming>, context: &Context) -> Result<(), Stop> {
    submit::unless_draining(context)?;
    let kind = SourceKind::MParticle;
    if !context.sources.speaks(kind) {
        return Err(Problem::from(NoSource::NoneOfKind { kind }).into());
    }
    let (head, incoming) = request.into_parts();
    let source = source_of(context, &basic(&head.headers)?)?;
    let config = source.mparticle();
    let body = body::read(incoming, &head.headers, &context.memory, &context.options).await?;
    let arrival = Arrival { now_ms: source.host().clock.wall_ms(), host: source.host() };

    let within = |batches: usize| {
        if source.limits() == SizeLimits::Kinesis {
            return Ok(());
        }
        keep_limits(body.bytes.len(), batches).inspect_err(|_| source.count_rejected(Reject::TooLarge, batches as u64))
    };
    let mut all = Vec::new();
    if call == Call::Events {
        within(1)?;
        let judged = batch(&body.bytes).and_then(|json| Batch::judge(json, config, EVENTS_MAX));
        all.push(judged.inspect_err(|_| source.count_rejected(Reject::Malformed, 1))?);
    } else {
        let sent = batches(&body.bytes, EVENTS_MAX)?;
        let many = sent.len();
        within(many)?;
        all.extend(sent.into_iter().filter_map(|json| Batch::judge(json, config, EVENTS_MAX).ok()));
        if all.len() < many {
            source.count_rejected(Reject::Malformed, (many - all.len()) as u64);
        }
    }
    if call == Call::Historical {
        return Ok(());
    }
    let (parts, bytes) = parts(&all, source, &arrival, call)?;
    let count = parts.len() as u64;
    submit::wait_for_room(source, || count, context).await?;
    let mut scratch = Vec::new();
    let taken = submit::all(
        source,
        parts.into_iter(),
        |&(batch, event): &Part| record::bytes_max(&all[batch], event, config),
        |(batch, event), into| {
            scratch.clear();
            let key = record::write(&all[batch], event, &arrival, config, &mut scratch);
            let id = all[batch].copy_id(event);
            let event_type = event.and_then(|event| all[batch].event_type(event));
            let made = Made { key: &key, hash: None, data: &scratch, event_type, id: id.as_deref() };
            source.encode_made(&made, into)
        },
        bytes,
        context,
    )
    .await?;
    drop(all);
    drop(body);
    let done = taken.durable().await?;
    match done.rejected[..] {
        [(_, reject), ..] if call == Call::Events => Err(Problem::rejected(reject).into()),
        _ => Ok(()),
    }
}

/// All records that are to be made, and the most bytes that they have.
fn parts(all: &[Batch<'_>], source: &Source, arrival: &Arrival<'_>, call: Call) -> Result<(Vec<Part>, usize), Stop> {
    let config = source.mparticle();
    let mut parts = Vec::new();
    let mut bytes = 0_usize;
    for (at, batch) in all.iter().enumerate() {
        let many = batch.records(config);
        if parts.len() + many > EVENTS_MAX {
            return Err(Wrong::TooLarge.into());
        }
        for event in 0..many {
            let part = (at, batch.is_apart(config).then_some(event));
            let most = record::bytes_max(batch, part.1, config);
            bytes = bytes.saturating_add(most);
            if bytes > MADE_BYTES_MAX {
                return Err(Wrong::TooLarge.into());
            }
            if source.judge_size(most).is_err() {
                // So near the limit it is worth making the record twice.
                let mut made = Vec::new();
                record::write(batch, part.1, arrival, config, &mut made);
                if let Err(reject) = source.judge_size(made.len()) {
                    source.count_rejected(reject, 1);
                    match call {
                        Call::Events => return Err(Problem::rejected(reject).into()),
                        _ => continue,
                    }
                }
            }
            parts.push(part);
        }
    }
    Ok((parts, bytes))
}
