//! A request's body, taken apart into messages and what they share. Pure.
//!
//! Place: first of the two scans that a message gets. It proves the body to be JSON and notes where each message lies; `message`
//! then scans each on its own. *ALL-READ-FIRST*: a body that is not JSON is refused before any of its messages is accepted.
//!
//! A batch's `context` and `integrations` are merged under each message's own, member by member; its `sentAt` and `writeKey` hold
//! for all. They may be large once, not many times ([`SHARED_BYTES_MAX`]).

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use super::limits::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX};
use super::text::{content, unescape};
use super::{Call, Path, SHARED_BYTES_MAX};
use crate::ingest::json::{Memory, Scan, Text};

/// Why a body is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The `code` of the answer's body.
    pub code: &'static str,
    /// Its `message`: what is wrong and what would be right.
    pub message: String,
}

fn malformed(code: &'static str, message: impl Into<String>) -> Malformed {
    Malformed { code, message: message.into() }
}

/// A member as it was sent.
#[derive(Clone, Copy, Debug)]
struct Member<'b> {
    member: &'b [u8],
    value: &'b [u8],
}

/// The members of an object that all messages of a batch share.
#[derive(Debug, Default)]
pub(super) struct Shared<'b> {
    members: Vec<Member<'b>>,
    by_name: HashMap<Cow<'b, str>, usize>,
    /// What they take at most when written.
    bytes: usize,
}

impl<'b> Shared<'b> {
    /// Of a raw value that is an object; anything else has no members.
    fn of(raw: &'b [u8], memory: &mut Memory) -> Self {
        let mut shared = Self { bytes: raw.len(), ..Self::default() };
        each_member(raw, memory, |name, member, value| {
            let of_name = Member { member, value };
            match shared.by_name.get(&name) {
                Some(&at) => shared.members[at] = of_name,
                None => {
                    shared.by_name.insert(name, shared.members.len());
                    shared.members.push(of_name);
                }
            }
        });
        shared
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Which of them has a name.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The raw value of a name.
    pub(super) fn value(&self, name: &str) -> Option<&'b [u8]> {
        self.position(name).map(|at| self.members[at].value)
    }

    /// The raw members, in their order.
    pub(super) fn all(&self) -> impl Iterator<Item = &'b [u8]> {
        self.members.iter().map(|member| member.member)
    }
}

/// Hands each member of a raw object that is known to be JSON to `each`: its name, the whole of it, its value. Of anything else
/// there are none.
pub(super) fn each_member<'b>(raw: &'b [u8], memory: &mut Memory, mut each: impl FnMut(Cow<'b, str>, &'b [u8], &'b [u8])) {
    Scan::new(raw, memory).members(|scan, name| {
        let value = scan.span()?;
        each(name_of(raw, name), &raw[name.start - 1..value.end], &raw[value]);
        Some(())
    });
}

/// The raw value of an object's member; of several the last.
pub(super) fn member<'b>(raw: &'b [u8], wanted: &str, memory: &mut Memory) -> Option<&'b [u8]> {
    let mut found = None;
    each_member(raw, memory, |name, _, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found
}

/// A member's name as it is meant.
pub(super) fn name_of(text: &[u8], name: Text) -> Cow<'_, str> {
    unescape(&text[name.start..name.end])
}

/// A batch's own `context` and `integrations`, raw; empty where there is none.
type RawShared<'b> = (&'b [u8], &'b [u8]);

/// A body, taken apart.
#[derive(Debug)]
pub struct Request<'b> {
    pub(super) body: &'b [u8],
    items: Vec<(u32, u32)>,
    /// What the path says that its one message is.
    pub(super) call: Option<Call>,
    pub(super) context: Shared<'b>,
    pub(super) integrations: Shared<'b>,
    /// Raw.
    pub(super) sent_at: Option<&'b [u8]>,
    /// Raw.
    write_key: Option<&'b [u8]>,
    /// MetaRouter's, raw; of an event of any form.
    pub(super) metadata: Option<&'b [u8]>,
    /// A browser sent it.
    pub(super) from_browser: bool,
}

impl<'b> Request<'b> {
    /// Takes a body apart as its path asks; at most `items_max` messages.
    ///
    /// # Errors
    /// [`Malformed`]: nothing of it can be accepted.
    pub fn take_apart(path: Path<'_>, body: &'b [u8], items_max: usize) -> Result<Self, Malformed> {
        let mut memory = Memory::default();
        let mut request = Request {
            body,
            items: Vec::new(),
            call: None,
            context: Shared::default(),
            integrations: Shared::default(),
            sent_at: None,
            write_key: None,
            metadata: None,
            from_browser: matches!(path, Path::One { short: true, .. } | Path::Pixel(_)),
        };
        if std::str::from_utf8(body).is_err() {
            return Err(malformed("invalid_json", "the body is not UTF-8"));
        }
        let batch = match path {
            Path::One { call, .. } | Path::Pixel(call) => {
                request.call = Some(call);
                false
            }
            Path::Batch => true,
            Path::Custom | Path::Settings(_) | Path::Other => false,
        };
        let mut scan = Scan::new(body, &mut memory);
        if scan.token() != b'{' {
            let message = if batch { "the body must be an object with the array batch" } else { "the body must be one message" };
            return Err(if body.trim_ascii().is_empty() { not_json(body) } else { malformed("invalid_request", message) });
        }
        let read = if batch { request.read_batch(&mut scan, items_max) } else { request.read_one(&mut scan) };
        let (context, integrations) = match read {
            Some(Ok(shared)) if scan.is_over() => shared,
            Some(Err(problem)) => return Err(problem),
            _ => return Err(not_json(body)),
        };
        if context.len() + integrations.len() > SHARED_BYTES_MAX {
            let message = format!("the batch's own context and integrations have more than {} KiB", SHARED_BYTES_MAX >> 10);
            return Err(malformed("too_large", message));
        }
        request.context = Shared::of(context, &mut memory);
        request.integrations = Shared::of(integrations, &mut memory);
        if path == Path::Custom {
            request.metadata = member(body, "_metarouter", &mut memory).filter(|raw| raw.first() == Some(&b'{'));
        }
        Ok(request)
    }

    /// MetaRouter's metadata from beside the body, where the body has none. What is not a JSON object is none.
    pub fn offer_metadata(&mut self, raw: &'b [u8]) {
        let mut memory = Memory::default();
        let mut scan = Scan::new(raw, &mut memory);
        let is_object = scan.token() == b'{' && std::str::from_utf8(raw).is_ok() && scan.skip().is_some() && scan.is_over();
        if is_object && self.metadata.is_none() {
            self.metadata = Some(raw.trim_ascii());
        }
    }

    /// Keeps Segment's own limits on a batch, and tells how many messages are left out by them: those after the 2,500th, which
    /// Segment answers as success too.
    ///
    /// # Errors
    /// [`Malformed`]: the whole body is too large.
    pub fn keep_limits(&mut self, path: Path<'_>) -> Result<usize, Malformed> {
        if path != Path::Batch {
            return Ok(0);
        }
        if self.body.len() > BATCH_BYTES_MAX {
            let message = format!(
                "the batch's body is larger than {BATCH_BYTES_MAX} bytes, Segment's own limit, which the source keeps (limits); \
                 send it in several"
            );
            return Err(malformed("too_large", message));
        }
        let over = self.items.len().saturating_sub(BATCH_MESSAGES_MAX);
        self.items.truncate(BATCH_MESSAGES_MAX);
        Ok(over)
    }

    /// Notes that a browser sent it.
    pub fn say_from_browser(&mut self) {
        self.from_browser = true;
    }

    /// Raw `context` and `integrations` of the batch. `None`: not JSON.
    fn read_batch(&mut self, scan: &mut Scan<'_>, items_max: usize) -> Option<Result<RawShared<'b>, Malformed>> {
        let (mut context, mut integrations): (&[u8], &[u8]) = (b"", b"");
        let mut is_batch = false;
        scan.take(b'{');
        if !scan.take(b'}') {
            loop {
                let name = scan.name()?;
                match name_of(self.body, name).as_ref() {
                    "batch" if scan.token() == b'[' => {
                        is_batch = true;
                        self.items.clear();
                        if let Err(problem) = self.read_items(scan, items_max)? {
                            return Some(Err(problem));
                        }
                    }
                    "batch" => {
                        is_batch = false;
                        scan.skip()?;
                    }
                    "context" => context = self.value(scan)?,
                    "integrations" => integrations = self.value(scan)?,
                    "sentAt" => self.sent_at = Some(self.value(scan)?),
                    "writeKey" => self.write_key = Some(self.value(scan)?),
                    _ => scan.skip()?,
                }
                if !scan.take(b',') {
                    break;
                }
            }
            if !scan.take(b'}') {
                return None;
            }
        }
        if !scan.is_over() {
            return None;
        }
        Some(match is_batch {
            true => Ok((context, integrations)),
            false => Err(malformed("invalid_request", "the body must hold the array batch")),
        })
    }

    fn read_items(&mut self, scan: &mut Scan<'_>, items_max: usize) -> Option<Result<(), Malformed>> {
        scan.take(b'[');
        if scan.take(b']') {
            return Some(Ok(()));
        }
        loop {
            if self.items.len() == items_max {
                let message = format!("more than {items_max} messages in one request; send them in several");
                return Some(Err(malformed("too_large", message)));
            }
            let span = scan.span()?;
            self.items.push(short(&span));
            if !scan.take(b',') {
                return scan.take(b']').then_some(Ok(()));
            }
        }
    }

    fn read_one(&mut self, scan: &mut Scan<'_>) -> Option<Result<RawShared<'b>, Malformed>> {
        let span = scan.span()?;
        self.items.push(short(&span));
        Some(Ok((b"", b"")))
    }

    fn value(&self, scan: &mut Scan<'_>) -> Option<&'b [u8]> {
        scan.span().map(|span| &self.body[span])
    }

    /// The write key that the body names, of the batch or of the one message.
    #[must_use]
    pub fn write_key(&self) -> Option<String> {
        let mut memory = Memory::default();
        let of_one = match (self.metadata, self.call, &self.items[..]) {
            (Some(metadata), ..) => member(metadata, "writeKey", &mut memory),
            (None, Some(_), &[(from, to)]) => member(&self.body[from as usize..to as usize], "writeKey", &mut memory),
            _ => None,
        };
        let key = self.write_key.or(of_one);
        key.and_then(content).filter(|key| !key.is_empty()).map(|key| unescape(key).into_owned())
    }

    /// Messages, good or bad.
    #[must_use]
    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// The messages as they were sent.
    pub fn messages(&self) -> impl Iterator<Item = &'b [u8]> + Send {
        let body = self.body;
        self.items.iter().map(move |&(from, to)| &body[from as usize..to as usize])
    }

    /// Bytes that what is shared adds to a record at most, before dates grow.
    pub(super) fn shared_bytes(&self) -> usize {
        self.context.bytes + self.integrations.bytes
    }
}

/// Bodies are far below 4 GiB.
fn short(span: &Range<usize>) -> (u32, u32) {
    (span.start as u32, span.end as u32)
}

/// Says where, as far as the second look can tell.
fn not_json(body: &[u8]) -> Malformed {
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Err(error) => {
            malformed("invalid_json", format!("the body is not JSON (line {}, column {})", error.line(), error.column()))
        }
        Ok(_) => malformed("invalid_json", "the body is not JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(body: &str) -> Result<Request<'_>, Malformed> {
        Request::take_apart(Path::Batch, body.as_bytes(), 3)
    }

    const TRACK: Path<'_> = Path::One { call: Call::Track, short: false };

    #[test]
    fn messages_are_the_bytes_that_were_sent_good_or_bad() {
        let request = batch(r#" {"batch" : [ {"a" : 1.50} ,7, "x" ] ,"writeKey":"k\u0031"} "#).unwrap();
        let texts: Vec<&[u8]> = request.messages().collect();
        assert_eq!(texts, [&b"{\"a\" : 1.50}"[..], b"7", b"\"x\""]);
        assert_eq!(request.write_key().as_deref(), Some("k1"));
        assert_eq!(batch(r#"{"batch":[]}"#).unwrap().count(), 0);
        // Of two, the last one counts.
        assert_eq!(batch(r#"{"batch":[1,2],"batch":[3]}"#).unwrap().count(), 1);
        assert_eq!(batch(r#"{"batch":[1],"writeKey":null}"#).unwrap().write_key(), None);
        let one = Request::take_apart(TRACK, br#"{"writeKey":"a","x":{"writeKey":"b"}}"#, 1).unwrap();
        assert_eq!(one.write_key().as_deref(), Some("a"));
    }

    #[test]
    fn what_is_no_json_or_no_batch_is_refused_as_a_whole() {
        for (body, code) in [
            ("", "invalid_json"),
            ("{", "invalid_json"),
            (r#"{"batch":[1,}"#, "invalid_json"),
            (r#"{"batch":[1]} x"#, "invalid_json"),
            ("{\"batch\":[\"\u{1}\"]}", "invalid_json"),
            (r#"{"batch":[1]"#, "invalid_json"),
            ("[]", "invalid_request"),
            ("{}", "invalid_request"),
            (r#"{"batch":{}}"#, "invalid_request"),
            (r#"{"batch":[1],"batch":null}"#, "invalid_request"),
            (r#"{"batch":[1,2,3,4]}"#, "too_large"),
        ] {
            assert_eq!(batch(body).unwrap_err().code, code, "{body}");
        }
        assert_eq!(Request::take_apart(TRACK, b"{} {}", 1).unwrap_err().code, "invalid_json");
        assert_eq!(Request::take_apart(TRACK, b"[{}]", 1).unwrap_err().code, "invalid_request");
        assert_eq!(Request::take_apart(TRACK, b"{\"a\":\"\xff\"}", 1).unwrap_err().code, "invalid_json");
        let big = format!(r#"{{"context":{{"x":"{}"}},"batch":[]}}"#, "x".repeat(SHARED_BYTES_MAX));
        assert_eq!(batch(&big).unwrap_err().code, "too_large");
    }

    #[test]
    fn segments_own_limits_are_512000_bytes_and_2500_messages_of_a_batch() {
        let of = |messages: usize, bytes: usize| {
            let body = format!("{{\"batch\":[{}1]}}", "1,".repeat(messages - 1));
            let body = format!("{body}{}", " ".repeat(bytes.saturating_sub(body.len())));
            let mut request = Request::take_apart(Path::Batch, body.as_bytes(), 10_000).unwrap();
            request.keep_limits(Path::Batch).map(|over| (request.count(), over)).map_err(|problem| problem.code)
        };
        assert_eq!(of(2500, 512_000), Ok((2500, 0)));
        assert_eq!(of(2501, 0), Ok((2500, 1)));
        assert_eq!(of(1, 512_001), Err("too_large"));
        // A message that comes alone has a limit of its own.
        let one = format!("{{}}{}", " ".repeat(600_000));
        assert_eq!(Request::take_apart(TRACK, one.as_bytes(), 1).unwrap().keep_limits(TRACK), Ok(0));
    }
}
