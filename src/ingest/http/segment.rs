//! The routes of Segment's tracking API, under `/v1`, in the forms that its SDKs send and take.
//!
//! Place: `route` hands every path under `/v1` over. The body is read and taken apart by `ingest/segment`, the write key found (the
//! header goes before the body), the source chosen, and the messages go to the spool through `submit`. `Content-Type` means
//! nothing: SDKs and browsers label JSON as anything.
//!
//! Answers: 200 `{"success":true}` to the byte, because SDKs take 202, 204 or another body for a failure and send all again. An
//! error has `code` and `message`, without which old SDKs retry what can never succeed, and is 400 where the API says so. A
//! message of a batch that is not valid is counted, and the others are taken; a message that came alone is told.
//!
//! *RECEIPT-AFTER-SYNC*: as everywhere; the pixel's image too comes with status 200 only once its message is durable, or can never
//! be. Absent on purpose: 429 (its answers make SDKs drop events; 503 does not).

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};

use super::Context;
use super::answer::{self, Answer, Problem};
use super::body;
use super::submit::{self, EVENTS_MAX, Taken};
use crate::config::{SizeLimits, SourceKind};
use crate::ingest::segment::{self, Flaw, Maker, Malformed, Path};
use crate::ingest::{NoSource, Reject, Source};
use crate::spool::Batch;

/// The answer to whatever was accepted.
const SUCCESS: &str = r#"{"success":true}"#;

/// A transparent GIF of one pixel.
const PIXEL: &[u8] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\
\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";

/// Why a request gets no `success`.
#[derive(Debug)]
enum Failure {
    /// As other doors have it.
    Problem(Problem),
    /// The request can never be accepted.
    Bad { status: StatusCode, code: &'static str, message: String },
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::Bad { status: StatusCode::BAD_REQUEST, code: malformed.code, message: malformed.message }
    }
}

impl From<Flaw> for Failure {
    fn from(flaw: Flaw) -> Self {
        Self::Bad { status: StatusCode::BAD_REQUEST, code: flaw.code(), message: flaw.sentence().to_owned() }
    }
}

impl From<NoSource> for Failure {
    fn from(problem: NoSource) -> Self {
        if matches!(problem, NoSource::Closed { .. }) {
            return Self::Problem(problem.into());
        }
        let (status, code) = match problem {
            NoSource::KeyMissing | NoSource::KeyUnknown => (StatusCode::UNAUTHORIZED, "invalid_write_key"),
            _ => (StatusCode::NOT_FOUND, "no_source"),
        };
        let message = match problem {
            NoSource::KeyMissing => "the source wants a write key: as the user of Basic, or as writeKey in the body".to_owned(),
            NoSource::Unnamed { known } => {
                format!("no write key tells which source is meant; give each of these its keys: {known}")
            }
            other => other.to_string(),
        };
        Self::Bad { status, code, message }
    }
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Bad { status, .. } => *status,
            // What is too large is a bad request to this API's clients.
            Self::Problem(problem) if problem.status() == StatusCode::PAYLOAD_TOO_LARGE => StatusCode::BAD_REQUEST,
            Self::Problem(problem) => problem.status(),
        }
    }

    fn answer(self) -> Answer {
        let status = self.status();
        let (code, message) = match &self {
            Self::Bad { code, message, .. } => (*code, message.as_str()),
            Self::Problem(problem) => (code_of(problem.status()), problem.text()),
        };
        let body = serde_json::json!({ "success": false, "code": code, "message": message }).to_string();
        let mut answer = match self {
            Self::Bad { .. } => reply(status, body.clone()),
            // With its headers: when to come again, what is allowed.
            Self::Problem(problem) => problem.answer(),
        };
        *answer.status_mut() = status;
        *answer.body_mut() = Full::new(body.into());
        answer
    }
}

fn code_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unknown_coding",
        StatusCode::REQUEST_TIMEOUT => "timeout",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        _ => "invalid_request",
    }
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = answer::json(status, String::new());
    *answer.body_mut() = Full::new(body.into());
    answer
}

fn image(status: StatusCode) -> Answer {
    let mut answer = reply(status, PIXEL);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("image/gif"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    answer
}

/// Answers a request whose path is under `/v1`.
pub async fn serve(request: Request<Incoming>, context: &Context, from_browser: bool) -> Answer {
    let path = request.uri().path().to_owned();
    let path = Path::of(&path).unwrap_or(Path::Other);
    let asked = match path {
        Path::Pixel(_) | Path::Settings(_) => Method::GET,
        Path::One { .. } | Path::Batch | Path::Custom | Path::Other => Method::POST,
    };
    if *request.method() != asked {
        return Failure::from(Problem::method(if asked == Method::GET { "GET" } else { "POST" })).answer();
    }
    if let Path::Pixel(_) = path {
        return pixel(path, &request, context).await;
    }
    let outcome = match path {
        Path::Settings(key) => settings(key, &request, context),
        _ => take(path, request, context, from_browser).await.map(|()| reply(StatusCode::OK, SUCCESS)),
    };
    outcome.unwrap_or_else(Failure::answer)
}

/// Reads a request and takes what it holds.
async fn take(path: Path<'_>, request: Request<Incoming>, context: &Context, from_browser: bool) -> Result<(), Failure> {
    submit::unless_draining(context)?;
    if !context.sources.speaks(SourceKind::Segment) {
        return Err(NoSource::NoneOfKind { kind: SourceKind::Segment }.into());
    }
    let (head, incoming) = request.into_parts();
    let header_key = write_key(&head.headers);
    if let Some(key) = &header_key {
        // A wrong key costs no body.
        context.sources.of_kind(SourceKind::Segment, Some(key))?;
    }
    let body = body::read(incoming, &head.headers, &context.memory, &context.options).await?;
    if path == Path::Other {
        return Ok(());
    }
    let outside = match path {
        Path::Custom => match head.headers.get("x-event-metadata") {
            Some(value) => Some(value.as_bytes().to_vec()),
            None => head.uri.query().and_then(segment::body_of_query),
        },
        _ => None,
    };
    let mut messages = segment::Request::take_apart(path, &body.bytes, EVENTS_MAX)?;
    if let Some(outside) = &outside {
        messages.offer_metadata(outside);
    }
    if from_browser {
        messages.say_from_browser();
    }
    let key = header_key.or_else(|| messages.write_key());
    let source = context.sources.of_kind(SourceKind::Segment, key.as_deref())?;
    let over = match source.limits() {
        SizeLimits::Kinesis => 0,
        SizeLimits::Vendor => {
            let sent = messages.count() as u64;
            // SDKs give up a whole batch on 400.
            messages.keep_limits(path).inspect_err(|_| source.count_rejected(Reject::TooLarge, sent))?
        }
    };
    let under_way = submit(path, &messages, source, context).await?;
    if over > 0 {
        source.count_rejected(Reject::NotValid, over as u64);
    }
    // The messages are in batches now; the body's memory can serve another request.
    drop(messages);
    drop(body);
    under_way.durable(path).await
}

/// A request's messages on their way to the disk.
struct UnderWay {
    taken: Taken,
    /// Why the last of those that are not valid is none.
    flaw: Option<Flaw>,
}

/// Takes the messages to the spool.
async fn submit(path: Path<'_>, request: &segment::Request<'_>, source: &Source, context: &Context) -> Result<UnderWay, Failure> {
    submit::wait_for_room(source, || request.count() as u64, context).await?;
    let mut maker = Maker::new(source.segment(), request, source.data_bytes_max()).within(source.limits());
    let sizes = Maker::new(source.segment(), request, source.data_bytes_max());
    let mut flaw = None;
    let encode = |message: &[u8], batch: &mut Batch| {
        let made = if path == Path::Custom { maker.make_custom(message) } else { maker.make(message) };
        match made {
            Ok(Some(made)) => source.encode_made(&made, batch),
            // Nobody asked for its record.
            Ok(None) => Ok(()),
            Err(Flaw::TooLarge) => Err(Reject::TooLarge),
            Err(found) => {
                flaw = Some(found);
                Err(if found == Flaw::OverLimit { Reject::TooLarge } else { Reject::NotValid })
            }
        }
    };
    let bytes_of = |message: &&[u8]| sizes.bytes_of(message);
    let taken = submit::all(source, request.messages(), bytes_of, encode, sizes.bytes_of_all(), context).await?;
    Ok(UnderWay { taken, flaw })
}

impl UnderWay {
    /// Waits until all that was taken is durable. A message that came alone and was refused is told.
    async fn durable(self, path: Path<'_>) -> Result<(), Failure> {
        let done = self.taken.durable().await?;
        match (path, done.rejected.first()) {
            (Path::Batch, _) | (_, None) => Ok(()),
            (_, Some(&(_, reject))) => Err(match self.flaw {
                Some(flaw) => flaw.into(),
                None => Problem::rejected(reject).into(),
            }),
        }
    }
}

/// The user of Basic, with or without the colon after it. A Bearer token is OAuth's: it goes with the body's write key.
fn write_key(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(segment::decode(rest.trim().as_bytes())?).ok()?;
    let key = text.split_once(':').map_or(text.as_str(), |(user, _)| user);
    (!key.is_empty()).then(|| key.to_owned())
}

/// A message in the query of an image. Nobody reads an error there: what can never be accepted gets the image as well.
async fn pixel(path: Path<'_>, request: &Request<Incoming>, context: &Context) -> Answer {
    let taken = async {
        submit::unless_draining(context)?;
        let invalid = || Malformed { code: "invalid_request", message: "data is not base64".to_owned() };
        let body = segment::body_of_query(request.uri().query().unwrap_or_default()).ok_or_else(invalid)?;
        let message = segment::Request::take_apart(path, &body, 1)?;
        let key = write_key(request.headers()).or_else(|| message.write_key());
        let source = context.sources.of_kind(SourceKind::Segment, key.as_deref())?;
        submit(path, &message, source, context).await?.durable(path).await
    };
    match taken.await {
        Err(failure) if failure.status().is_server_error() => image(failure.status()),
        Err(failure) => {
            tracing::debug!(status = failure.status().as_u16(), "a pixel's message is not accepted");
            image(StatusCode::OK)
        }
        Ok(()) => image(StatusCode::OK),
    }
}

/// What analytics.js asks for before it sends anything.
fn settings(key: &str, request: &Request<Incoming>, context: &Context) -> Result<Answer, Failure> {
    context.sources.of_kind(SourceKind::Segment, Some(key))?;
    let named = request.uri().authority().map(|authority| authority.as_str());
    let host = named.or_else(|| request.headers().get(HOST).and_then(|host| host.to_str().ok())).unwrap_or("127.0.0.1");
    Ok(reply(StatusCode::OK, segment::settings(key, host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_key_is_the_user_of_basic_however_it_was_put() {
        let key = |value: &str| write_key(&HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]));
        // key: , key, key without padding, key:secret
        for value in ["Basic a2V5Og==", "basic a2V5", "Basic  a2V5Og", "Basic a2V5OnNlY3JldA=="] {
            assert_eq!(key(value).as_deref(), Some("key"), "{value}");
        }
        for value in ["Bearer a2V5", "Basic", "Basic Og==", "Basic ***"] {
            assert_eq!(key(value), None, "{value}");
        }
    }

    #[test]
    fn every_error_has_a_code_and_a_message() {
        for failure in [
            Failure::from(Flaw::NoId),
            Failure::from(NoSource::KeyUnknown),
            Failure::from(NoSource::NoneOfKind { kind: SourceKind::Segment }),
            Failure::from(Malformed { code: "invalid_json", message: "x".to_owned() }),
            Failure::from(Problem::overload("x")),
            Failure::from(Problem::too_large("x")),
        ] {
            let status = failure.status();
            let is_overload = status == StatusCode::SERVICE_UNAVAILABLE;
            let answer = failure.answer();
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers().contains_key("retry-after"), is_overload);
            assert!([400, 401, 404, 503].contains(&status.as_u16()));
        }
    }
}
