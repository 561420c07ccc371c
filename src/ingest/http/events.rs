//! `POST /ingest` and `/ingest/{source}`: a body becomes events, events a receipt, the receipt an answer.
//!
//! Place: the route of plain events. The source is chosen and the write key checked before the body is read. The
//! body's form follows its `Content-Type`: NDJSON, JSON (an array of events, or one object), or one raw event; `?format=lines`
//! and `?format=frames`, as on the socket, go before it.
//! Elements of an array are taken as the bytes they were sent as.
//!
//! *ALL-READ-FIRST*: a body that cannot be taken apart is refused before any of its events is accepted. Events
//! that break a rule of the source are listed, by their index from 0, in an otherwise good answer; only where
//! the request is a single event is its rejection the answer.
//!
//! While there is no room, the body is not read: who waits for room holds no memory. A request that is refused for its head
//! has its body read and forgotten, so that its client reads the answer.
//!
//! Failure: should the spool give out in the middle of a large request, the answer is 503 though some of its
//! events may be durable; the client sends all again (at least once, as everywhere).

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Context;
use super::answer::{self, Answer, Problem};
use super::body;
use super::submit::{self, EVENTS_MAX, Taken};
use crate::ingest::source::check_key;
use crate::ingest::wire::{self, Item};
use crate::ingest::{Reject, Source};
use crate::spool::Batch;

/// How a body is taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// An event a line.
    Lines,
    /// Length-prefixed events with optional keys.
    Frames,
    /// An array of events, or one object.
    Json,
    /// One event, any bytes.
    Raw,
}

/// Handles a request whose path named `source`, or none.
pub async fn ingest(request: Request<Incoming>, source: Option<String>, context: &Context) -> Result<Answer, Problem> {
    let (head, incoming) = request.into_parts();
    let judged = judge(&head, source.as_deref(), context);
    let judged = match judged {
        // Refusing is for later, when it is known how many events that are.
        Ok((source, ..)) if source.refuses().is_none() => submit::wait_for_room(source, || 0, context).await.and(judged),
        judged => judged,
    };
    let (source, form, partition_key) = match judged {
        Ok(judged) => judged,
        Err(problem) => {
            body::discard(incoming, &head.headers, &context.options).await;
            return Err(problem);
        }
    };
    let body = body::read(incoming, &head.headers, &context.memory, &context.options).await?;
    let events = take_apart(form, &body.bytes, source.data_bytes_max())?;
    let single = matches!(events, Events::One(_));
    submit::wait_for_room(source, || events.count(), context).await?;
    let taken = take(source, partition_key, events, body.bytes.len(), context).await?;
    // The events are in batches now; the body's memory can serve another request.
    drop(body);
    let done = taken.durable().await?;
    match done.rejected[..] {
        [(_, reject)] if single => Err(Problem::rejected(reject)),
        _ => Ok(answer::accepted(done.accepted(), done.left_out.len(), &done.rejected)),
    }
}

/// What a request's head says: source, form of the body, and the key of all its events.
type Judged<'r> = (&'r Arc<Source>, Option<Form>, Option<&'r str>);

fn judge<'r>(head: &'r Parts, source: Option<&str>, context: &'r Context) -> Result<Judged<'r>, Problem> {
    submit::unless_draining(context)?;
    let key = write_key(&head.headers);
    let source = context.sources.choose(source, key.as_deref())?;
    let form = match format(head.uri.query())? {
        None => form(head.headers.get(CONTENT_TYPE))?,
        named => named,
    };
    Ok((source, form, partition_key(&head.headers)?))
}

/// `format=lines` or `format=frames` of a query. Its other parameters mean nothing here.
fn format(query: Option<&str>) -> Result<Option<Form>, Problem> {
    let mut named = query.unwrap_or_default().split('&').filter_map(|part| part.strip_prefix("format="));
    match named.next() {
        None => Ok(None),
        Some("lines") => Ok(Some(Form::Lines)),
        Some("frames") => Ok(Some(Form::Frames)),
        Some(_) => Err(Problem::bad(
            "unknown format; known are format=lines and format=frames, and without either the Content-Type tells",
        )),
    }
}

/// `Authorization: Bearer KEY`, or the user of Basic, or `X-Api-Key: KEY`.
pub fn write_key(headers: &HeaderMap) -> Option<String> {
    let own = |value: &HeaderValue| value.to_str().ok().map(|text| text.trim().to_owned());
    let authorization = headers.get(AUTHORIZATION).and_then(own);
    let authorized = authorization.as_deref().and_then(|text| text.split_once(' ')).and_then(|(scheme, rest)| {
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            Some(rest.to_owned())
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = base64::prelude::BASE64_STANDARD.decode(rest).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            Some(text.split_once(':').map_or(text.as_str(), |(user, _)| user).to_owned())
        } else {
            None
        }
    });
    authorized.or_else(|| headers.get("x-api-key").and_then(own))
}

fn form(content_type: Option<&HeaderValue>) -> Result<Option<Form>, Problem> {
    let Some(value) = content_type else { return Ok(None) };
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "" => Ok(None),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => Ok(Some(Form::Lines)),
        "application/json" => Ok(Some(Form::Json)),
        "application/octet-stream" => Ok(Some(Form::Raw)),
        _ => Err(Problem::media_type(
            "unknown Content-Type; known are application/x-ndjson (an event a line), application/json (an array of \
             events or one object), application/octet-stream (one event)",
        )),
    }
}

fn partition_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get("x-partition-key") else { return Ok(None) };
    let refuse = |reject: Reject| Problem::bad(format!("X-Partition-Key: {reject}"));
    let key = std::str::from_utf8(value.as_bytes()).map_err(|_| refuse(Reject::KeyNotUtf8))?;
    check_key(key).map_err(refuse)?;
    Ok(Some(key))
}

/// The events of a body, as slices of it.
enum Events<'b> {
    /// Lines, and the largest event.
    Lines(&'b [u8], usize),
    /// Frames, and the largest event.
    Frames(&'b [u8], usize),
    /// Byte ranges of an array's elements.
    Elements(&'b [u8], Vec<(u32, u32)>),
    /// A request that is one event.
    One(&'b [u8]),
}

impl Events<'_> {
    /// How many, good or bad.
    fn count(&self) -> u64 {
        match self {
            Self::Lines(body, data_bytes_max) => wire::lines(body, *data_bytes_max).count() as u64,
            Self::Frames(body, data_bytes_max) => wire::frames(body, *data_bytes_max).count() as u64,
            Self::Elements(_, ranges) => ranges.len() as u64,
            Self::One(_) => 1,
        }
    }
}

/// Without a type, the first byte tells an array from lines.
fn take_apart(form: Option<Form>, body: &Bytes, data_bytes_max: usize) -> Result<Events<'_>, Problem> {
    let text = body.trim_ascii();
    let form = form.unwrap_or(if text.starts_with(b"[") { Form::Json } else { Form::Lines });
    match (form, text.first()) {
        (Form::Lines, _) => Ok(Events::Lines(body, data_bytes_max)),
        (Form::Frames, _) => {
            let broken = |item| matches!(item, Item::Lost | Item::Rejected(Reject::BadFrame));
            match wire::frames(body, data_bytes_max).position(broken) {
                None => Ok(Events::Frames(body, data_bytes_max)),
                Some(index) => {
                    Err(Problem::bad(format!("event {index}: {}; no event of the body is accepted", Reject::BadFrame.sentence())))
                }
            }
        }
        (Form::Raw, _) if body.is_empty() => Err(Problem::bad("the body is empty; it should be one event")),
        (Form::Raw, _) => Ok(Events::One(body)),
        (Form::Json, Some(b'[')) => Ok(Events::Elements(text, elements(text)?)),
        (Form::Json, Some(b'{')) => match serde_json::from_slice::<&RawValue>(text) {
            Ok(_) => Ok(Events::One(text)),
            Err(error) => Err(Problem::bad(format!(
                "event 0: the body is not one JSON object (line {}, column {})",
                error.line(),
                error.column()
            ))),
        },
        (Form::Json, _) => Err(Problem::bad("the body must be a JSON array of events or one JSON object")),
    }
}

/// Where the elements of the array `text` lie.
fn elements(text: &[u8]) -> Result<Vec<(u32, u32)>, Problem> {
    struct Ranges<'r> {
        ranges: &'r mut Vec<(u32, u32)>,
        text_at: usize,
    }
    impl<'de> Visitor<'de> for Ranges<'_> {
        /// False: there are too many.
        type Value = bool;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
            while let Some(raw) = seq.next_element::<&'de RawValue>()? {
                if self.ranges.len() == EVENTS_MAX {
                    return Ok(false);
                }
                let from = raw.get().as_ptr().addr() - self.text_at;
                // Bodies are far below 4 GiB.
                self.ranges.push((from as u32, (from + raw.get().len()) as u32));
            }
            Ok(true)
        }
    }
    let mut ranges = Vec::new();
    let mut parser = serde_json::Deserializer::from_slice(text);
    let outcome = parser.deserialize_seq(Ranges { ranges: &mut ranges, text_at: text.as_ptr().addr() });
    if ranges.len() == EVENTS_MAX && !matches!(outcome, Ok(true)) {
        return Err(too_many());
    }
    match outcome.and_then(|_| parser.end()) {
        Ok(()) => Ok(ranges),
        Err(error) => Err(Problem::bad(format!(
            "event {}: the array is not JSON there (line {}, column {}); none of its events is accepted",
            ranges.len(),
            error.line(),
            error.column()
        ))),
    }
}

fn too_many() -> Problem {
    Problem::too_large(format!("the body holds more than {EVENTS_MAX} events; send them in several requests"))
}

async fn take(
    source: &Source,
    key: Option<&str>,
    events: Events<'_>,
    body_bytes: usize,
    context: &Context,
) -> Result<Taken, Problem> {
    let encode = |item: Item<'_>, batch: &mut Batch| match (item, key) {
        (Item::Event { key: Some(key), data }, _) => source.encode_keyed(key, data, batch),
        (Item::Event { data, .. }, Some(key)) => source.encode_keyed(key.as_bytes(), data, batch),
        (Item::Event { data, .. }, None) => source.encode(data, batch),
        (Item::Rejected(reject), _) => Err(reject),
        (Item::Lost, _) => Err(Reject::BadFrame),
    };
    match events {
        Events::One(event) => submit::all(source, std::iter::once(whole(event)), bytes_of, encode, body_bytes, context).await,
        Events::Elements(text, ranges) => {
            let items = ranges.into_iter().map(|(from, to)| whole(&text[from as usize..to as usize]));
            submit::all(source, items, bytes_of, encode, body_bytes, context).await
        }
        Events::Lines(body, data_bytes_max) => {
            // *ALL-READ-FIRST*: counted before the first is submitted.
            if wire::lines(body, data_bytes_max).nth(EVENTS_MAX).is_some() {
                return Err(too_many());
            }
            submit::all(source, wire::lines(body, data_bytes_max), bytes_of, encode, body_bytes, context).await
        }
        Events::Frames(body, data_bytes_max) => {
            if wire::frames(body, data_bytes_max).nth(EVENTS_MAX).is_some() {
                return Err(too_many());
            }
            submit::all(source, wire::frames(body, data_bytes_max), bytes_of, encode, body_bytes, context).await
        }
    }
}

fn whole(data: &[u8]) -> Item<'_> {
    Item::Event { key: None, data }
}

fn bytes_of(item: &Item<'_>) -> usize {
    match item {
        Item::Event { data, .. } => data.len(),
        Item::Rejected(_) | Item::Lost => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(value: &str) -> HeaderValue {
        HeaderValue::from_str(value).unwrap()
    }

    fn texts(body: &str) -> Vec<String> {
        elements(body.as_bytes()).unwrap().iter().map(|&(from, to)| body[from as usize..to as usize].to_owned()).collect()
    }

    fn problem(result: Result<impl Sized, Problem>) -> (u16, String) {
        let problem = result.err().unwrap();
        let text = format!("{problem:?}");
        (problem.answer().status().as_u16(), text)
    }

    #[test]
    fn elements_are_the_bytes_that_were_sent() {
        assert_eq!(texts(r#" [ {"a" : 1.50} ,"x\u00e4", [1, 2],null ] "#), [r#"{"a" : 1.50}"#, r#""x\u00e4""#, "[1, 2]", "null"]);
        assert_eq!(texts("[]"), [""; 0]);
    }

    #[test]
    fn a_broken_array_is_refused_with_the_index_of_the_event() {
        for (body, index) in
            [("[1,2,{\"a\":}]", 2), ("[1", 1), ("[1,]", 1), ("[", 0), ("[1] 2", 1), ("[1 2]", 1), ("[\"\u{1}\"]", 0)]
        {
            let (status, text) = problem(elements(body.as_bytes()));
            assert_eq!(status, 400, "{body}");
            assert!(text.contains(&format!("event {index}:")), "{body}: {text}");
        }
    }

    #[test]
    fn more_events_than_a_request_may_hold_are_refused() {
        let body = |count: usize| format!("[{}1]", "1,".repeat(count - 1));
        assert_eq!(elements(body(EVENTS_MAX).as_bytes()).unwrap().len(), EVENTS_MAX);
        assert_eq!(problem(elements(body(EVENTS_MAX + 1).as_bytes())).0, 413);
    }

    #[test]
    fn the_form_follows_the_type_and_without_one_the_first_byte() {
        let apart = |form, body: &'static str| match take_apart(form, &Bytes::from_static(body.as_bytes()), 100) {
            Ok(Events::Lines(..)) => "lines",
            Ok(Events::Frames(..)) => "frames",
            Ok(Events::Elements(..)) => "array",
            Ok(Events::One(event)) if event == body.trim().as_bytes() => "one",
            Ok(Events::One(_)) => "other",
            Err(_) => "problem",
        };
        assert_eq!(apart(None, "{\"a\":1}\n{\"a\":2}\n"), "lines");
        assert_eq!(apart(None, " [1]"), "array");
        assert_eq!(apart(Some(Form::Lines), "[1]"), "lines");
        assert_eq!(apart(Some(Form::Json), " {\"a\":\n1} "), "one");
        assert_eq!(apart(Some(Form::Json), "{\"a\":1}{"), "problem");
        assert_eq!(apart(Some(Form::Json), "7"), "problem");
        assert_eq!(apart(Some(Form::Json), ""), "problem");
        assert_eq!(apart(Some(Form::Frames), "\0\0\0\x03\0\0x"), "frames");
        assert_eq!(apart(Some(Form::Frames), ""), "frames");
        assert_eq!(apart(Some(Form::Frames), "\0\0\0\x03\0\0"), "problem");
        assert_eq!(apart(Some(Form::Raw), "[1]"), "one");
        assert_eq!(apart(Some(Form::Raw), ""), "problem");
    }

    #[test]
    fn types_are_compared_without_parameters_and_case() {
        assert_eq!(form(Some(&header("Application/JSON; charset=utf-8"))).unwrap(), Some(Form::Json));
        assert_eq!(form(None).unwrap(), None);
        assert_eq!(problem(form(Some(&header("text/plain")))).0, 415);
    }

    #[test]
    fn a_format_in_the_query_is_a_known_one() {
        assert_eq!(format(None).unwrap(), None);
        assert_eq!(format(Some("x=y&format=frames&format=z")).unwrap(), Some(Form::Frames));
        assert_eq!(format(Some("format=lines")).unwrap(), Some(Form::Lines));
        let (status, text) = problem(format(Some("format=csv")));
        assert!(status == 400 && text.contains("format=frames"), "{text}");
    }

    #[test]
    fn a_write_key_comes_as_bearer_as_the_user_of_basic_or_as_api_key() {
        let key = |name: &'static str, value: &str| {
            write_key(&HeaderMap::from_iter([(hyper::header::HeaderName::from_static(name), header(value))]))
        };
        assert_eq!(key("authorization", "Bearer k1").as_deref(), Some("k1"));
        assert_eq!(key("authorization", "basic azE6").as_deref(), Some("k1"));
        assert_eq!(key("x-api-key", "k1").as_deref(), Some("k1"));
        assert_eq!(key("authorization", "Digest k1"), None);
        assert_eq!(key("authorization", "Basic ???"), None);
    }

    #[test]
    fn a_partition_key_header_obeys_the_rules_of_keys() {
        let key = |value: &[u8]| {
            let headers = HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static("x-partition-key"),
                HeaderValue::from_bytes(value).unwrap(),
            )]);
            partition_key(&headers).map(|key| key.unwrap().to_owned())
        };
        assert_eq!(key("schlüssel".as_bytes()).unwrap(), "schlüssel");
        for (value, label) in [(&b""[..], "empty_key"), (b"\xff", "key_not_utf8"), (&[b'k'; 257], "key_too_long")] {
            let (status, text) = problem(key(value));
            assert_eq!(status, 400);
            assert!(text.contains(label));
        }
    }

    proptest! {
        #[test]
        fn an_array_is_taken_apart_as_its_writer_put_it_together(
            parts in prop::collection::vec("[0-9]{1,3}|\"[a-c ,\\[\\]]{0,4}\"|\\{\\}|\\[1,\\[2\\]\\]|null", 0..6)
        ) {
            let parts: Vec<String> = parts.into_iter()
                .map(|part| if part.len() > 1 && part.starts_with('0') { "0".to_owned() } else { part }).collect();
            prop_assert_eq!(texts(&format!("[{}]", parts.join(" , "))), parts);
        }
    }
}
