//! Makes a message's record and key: second of the two scans that a message gets. Pure but for time and chance.
//!
//! Place: the route has one [`Maker`] a request and hands it message by message; what it makes goes to `Source::encode_made`.
//! *RAW-SLICES*: members are copied as they were sent, in their order, without white space between tokens; where the rules are
//! the facade's, strings that are dates are written as it writes them, on the way. What the API adds or replaces follows at the
//! end: the merged `context` and `integrations`, then `messageId`, `channel`, `projectId`, `version`, `originalTimestamp`,
//! `sentAt`, `receivedAt`, `timestamp`, and `type` last. `writeKey` never gets into a record.
//!
//! Times: `receivedAt` is this machine's. `originalTimestamp` is what the client says, else `receivedAt`. `timestamp` is
//! `receivedAt - (sentAt - originalTimestamp)`: the client's clock is corrected by the time at which it sent. Without `sentAt` it
//! is taken to be right; without a time of the client's there is nothing to correct, and the time is `receivedAt`.
//!
//! Failure: a message that is not valid makes no record ([`Flaw`]).

use super::request::{Request, Shared, each_member, name_of};
use super::text::{content, id};
use super::{Call, DEPTH_MAX, Flaw, Rules, dates, limits};
use crate::config::SizeLimits;
use crate::ingest::Made;
use crate::ingest::json::{Memory, Scan};

/// What a record has at most besides what was sent, without `projectId`, bytes: names, times, a generated id.
const ADDED_BYTES_MAX: usize = 512;

/// Makes the records of one request.
#[derive(Debug)]
pub struct Maker<'q> {
    rules: &'q Rules,
    request: &'q Request<'q>,
    /// The largest record.
    bytes_max: usize,
    /// Segment's own limits hold.
    limited: bool,
    received_ms: i64,
    record: Vec<u8>,
    key: String,
    /// A track call's event, another call's type.
    event_type: String,
    id: String,
    scans: Scans,
}

/// Reused memory.
#[derive(Debug, Default)]
struct Scans {
    message: Memory,
    member: Memory,
    /// Which of the shared members a message has of its own.
    own: Vec<bool>,
}

/// Raw values of a message's own members, of several with one name the last.
#[derive(Debug, Default)]
struct Fields<'t> {
    call: Option<&'t [u8]>,
    message_id: Option<&'t [u8]>,
    timestamp: Option<&'t [u8]>,
    original_timestamp: Option<&'t [u8]>,
    sent_at: Option<&'t [u8]>,
    user_id: Option<&'t [u8]>,
    anonymous_id: Option<&'t [u8]>,
    session_id: Option<&'t [u8]>,
    previous_id: Option<&'t [u8]>,
    to: Option<&'t [u8]>,
    from: Option<&'t [u8]>,
    event: Option<&'t [u8]>,
    context: Option<&'t [u8]>,
    integrations: Option<&'t [u8]>,
    channel: Option<&'t [u8]>,
    version: Option<&'t [u8]>,
    /// Written into the record only by being replaced.
    dropped: Option<&'t [u8]>,
}

/// What becomes of a member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Copied,
    Replaced,
}

impl<'t> Fields<'t> {
    /// Where a member's value is noted, if it matters.
    #[inline]
    fn of(&mut self, name: &[u8], rules: &Rules, request: &Request<'_>) -> Option<(&mut Option<&'t [u8]>, Fate)> {
        let when = |replaced: bool| if replaced { Fate::Replaced } else { Fate::Copied };
        Some(match name {
            b"type" => (&mut self.call, Fate::Replaced),
            b"messageId" => (&mut self.message_id, Fate::Replaced),
            b"timestamp" => (&mut self.timestamp, Fate::Replaced),
            b"originalTimestamp" => (&mut self.original_timestamp, Fate::Replaced),
            b"sentAt" => (&mut self.sent_at, Fate::Replaced),
            b"receivedAt" | b"writeKey" => (&mut self.dropped, Fate::Replaced),
            b"projectId" => (&mut self.dropped, when(rules.project_id.is_some())),
            b"context" => (&mut self.context, when(!request.context.is_empty())),
            b"integrations" => (&mut self.integrations, when(!request.integrations.is_empty())),
            b"userId" => (&mut self.user_id, Fate::Copied),
            b"anonymousId" => (&mut self.anonymous_id, Fate::Copied),
            b"sessionId" => (&mut self.session_id, Fate::Copied),
            b"previousId" => (&mut self.previous_id, Fate::Copied),
            b"to" => (&mut self.to, Fate::Copied),
            b"from" => (&mut self.from, Fate::Copied),
            b"event" => (&mut self.event, Fate::Copied),
            b"channel" => (&mut self.channel, Fate::Copied),
            b"version" => (&mut self.version, Fate::Copied),
            _ => return None,
        })
    }
}

impl<'q> Maker<'q> {
    /// For the messages of `request`, received now. No record may be larger than `bytes_max`.
    #[must_use]
    pub fn new(rules: &'q Rules, request: &'q Request<'q>, bytes_max: usize) -> Self {
        let received_ms = i64::try_from(rules.clock.wall_ms()).unwrap_or(0);
        Self {
            rules,
            request,
            bytes_max,
            limited: false,
            received_ms,
            record: Vec::new(),
            key: String::new(),
            event_type: String::new(),
            id: String::new(),
            scans: Scans::default(),
        }
    }

    /// The same, of messages within Segment's own limits where `limits` are the vendor's.
    #[must_use]
    pub fn within(self, limits: SizeLimits) -> Self {
        Self { limited: limits == SizeLimits::Vendor, ..self }
    }

    /// At least as many bytes as a message's record will have.
    #[must_use]
    pub fn bytes_of(&self, message: &[u8]) -> usize {
        let project = self.rules.project_id.as_ref().map_or(0, String::len);
        // The most that a date grows: `"2012-12-02",` in an array becomes 29 bytes for 12, in year 10000.
        let sent = message.len() + self.request.shared_bytes() + self.request.metadata.map_or(0, <[u8]>::len);
        (sent * 5 / 2 + ADDED_BYTES_MAX + project).min(self.bytes_max)
    }

    /// The same for all messages together.
    #[must_use]
    pub fn bytes_of_all(&self) -> usize {
        self.request.messages().map(|message| self.bytes_of(message)).sum()
    }

    /// Makes a message's record and key. `None`: the source does not take this call, or the message does not want this
    /// destination.
    ///
    /// # Errors
    /// Why it is not valid.
    pub fn make(&mut self, message: &[u8]) -> Result<Option<Made<'_>>, Flaw> {
        self.judge_size(message)?;
        let limited = self.limited;
        let Self { rules, request, record, key, event_type, id: own_id, scans, .. } = self;
        let mut fields = Fields::default();
        record.clear();
        read(message, rules, request, record, &mut fields, &mut scans.message)?;
        let call = match request.call {
            Some(call) => call,
            None => fields.call.and_then(content).and_then(call_of).ok_or(Flaw::NoType)?,
        };
        judge(call, &fields)?;
        if limited && id(fields.message_id).is_some_and(|id| id.chars().count() > limits::MESSAGE_ID_CHARS_MAX) {
            return Err(Flaw::LongId);
        }
        if !rules.takes(call) || !wanted(rules, request, &fields, &mut scans.member) {
            return Ok(None);
        }
        if !request.context.is_empty() {
            merge(b"\"context\":{", &request.context, fields.context, rules.facade, record, scans)?;
        }
        if !request.integrations.is_empty() {
            merge(b"\"integrations\":{", &request.integrations, fields.integrations, rules.facade, record, scans)?;
        }
        replace(event_type, id(fields.event).filter(|_| call == Call::Track).as_deref().unwrap_or(call.word()));
        own_id.clear();
        separate(record);
        record.extend_from_slice(b"\"messageId\":");
        match (id(fields.message_id), fields.message_id) {
            (Some(sent), Some(raw)) => {
                own_id.push_str(&sent);
                put(raw, rules.facade, record);
            }
            _ => {
                own_id.extend(uuid(rules).map(char::from));
                record.push(b'"');
                record.extend_from_slice(own_id.as_bytes());
                record.push(b'"');
            }
        }
        // A valid message has one of these, so the key is never empty.
        let person = || id(fields.user_id).or_else(|| id(fields.to)).or_else(|| id(fields.anonymous_id));
        let person = || person().or_else(|| id(fields.session_id)).or_else(|| id(fields.previous_id));
        key.clear();
        match person() {
            Some(person) if !rules.by_message_id => key.push_str(&person),
            _ => key.push_str(own_id),
        }
        if fields.channel.is_none() {
            record.extend_from_slice(if request.from_browser { b",\"channel\":\"client\"" } else { b",\"channel\":\"server\"" });
        }
        if let Some(project) = &rules.project_id {
            record.extend_from_slice(b",\"projectId\":");
            record.extend_from_slice(project.as_bytes());
        }
        if fields.version.is_none() {
            record.extend_from_slice(b",\"version\":2");
        }
        put_times(&fields, request, self.received_ms, rules.facade, record);
        record.extend_from_slice(b",\"type\":\"");
        record.extend_from_slice(call.word().as_bytes());
        record.extend_from_slice(b"\"}");
        self.made()
    }

    /// Makes the record of an event of any form, as MetaRouter takes it: what was sent, and its metadata completed.
    ///
    /// # Errors
    /// Why it is not valid.
    pub fn make_custom(&mut self, event: &[u8]) -> Result<Option<Made<'_>>, Flaw> {
        self.judge_size(event)?;
        let Self { rules, request, record, key, event_type, id: own_id, scans, .. } = self;
        let metadata = request.metadata.ok_or(Flaw::NoMetadata)?;
        let (mut user, mut anonymous, mut event_id, mut time, mut name) = (None, None, None, None, None);
        each_member(metadata, &mut scans.member, |field, _, value| match field.as_ref() {
            "userID" => user = Some(value),
            "anonymousID" => anonymous = Some(value),
            "eventID" => event_id = Some(value),
            "timestamp" => time = Some(value),
            "eventName" => name = Some(value),
            _ => {}
        });
        let person = id(user).or_else(|| id(anonymous)).ok_or(Flaw::NoMetadata)?;
        replace(event_type, &id(name).ok_or(Flaw::NoMetadata)?);
        record.clear();
        record.push(b'{');
        copy_members(event, |name| name != b"_metarouter" && name != b"writeKey", rules.facade, record, &mut scans.message)?;
        separate(record);
        record.extend_from_slice(b"\"_metarouter\":{");
        let unkept = |name: &[u8]| {
            name == b"writeKey" || name == b"eventID" && id(event_id).is_none() || name == b"timestamp" && id(time).is_none()
        };
        copy_members(metadata, |name| !unkept(name), rules.facade, record, &mut scans.message)?;
        own_id.clear();
        match id(event_id) {
            Some(sent) => own_id.push_str(&sent),
            None => {
                own_id.extend(uuid(rules).map(char::from));
                record.extend_from_slice(b",\"eventID\":\"");
                record.extend_from_slice(own_id.as_bytes());
                record.push(b'"');
            }
        }
        if id(time).is_none() {
            record.extend_from_slice(b",\"timestamp\":");
            quoted_time(self.received_ms, record);
        }
        record.extend_from_slice(b"}}");
        key.clear();
        key.push_str(if rules.by_message_id { own_id } else { &person });
        self.made()
    }

    fn judge_size(&self, message: &[u8]) -> Result<(), Flaw> {
        if self.limited && message.len() > limits::MESSAGE_BYTES_MAX {
            return Err(Flaw::OverLimit);
        }
        // White space between tokens goes; nothing else makes a record smaller than its message.
        if message.len() / 2 > self.bytes_max { Err(Flaw::TooLarge) } else { Ok(()) }
    }

    fn made(&self) -> Result<Option<Made<'_>>, Flaw> {
        if self.record.len() > self.bytes_max {
            return Err(Flaw::TooLarge);
        }
        let (event_type, id) = (Some(self.event_type.as_str()), Some(self.id.as_str()));
        Ok(Some(Made { key: &self.key, hash: None, data: &self.record, event_type, id }))
    }
}

fn replace(held: &mut String, text: &str) {
    held.clear();
    held.push_str(text);
}

/// Copies what a message has of its own, and notes what matters.
fn read<'t>(
    message: &'t [u8],
    rules: &Rules,
    request: &Request<'_>,
    record: &mut Vec<u8>,
    fields: &mut Fields<'t>,
    memory: &mut Memory,
) -> Result<(), Flaw> {
    let mut scan = Scan::new(message, memory);
    if !scan.take(b'{') {
        return Err(Flaw::NotAnObject);
    }
    record.push(b'{');
    if scan.take(b'}') {
        return Ok(());
    }
    loop {
        let name = scan.name().ok_or(Flaw::NotAnObject)?;
        let raw_name = &message[name.start..name.end];
        let noted = match name.escaped {
            false => fields.of(raw_name, rules, request),
            true => fields.of(name_of(message, name).as_bytes(), rules, request),
        };
        match noted {
            Some((field, Fate::Replaced)) => *field = scan.span().map(|span| &message[span]),
            noted => {
                separate(record);
                record.push(b'"');
                record.extend_from_slice(raw_name);
                record.extend_from_slice(b"\":");
                let span = copy(&mut scan, rules.facade, record).ok_or(Flaw::TooDeep)?;
                if let Some((field, _)) = noted {
                    *field = Some(&message[span]);
                }
            }
        }
        if !scan.take(b',') {
            return Ok(());
        }
    }
}

/// Copies the members of an object whose name `is_kept`.
fn copy_members(
    object: &[u8],
    is_kept: impl Fn(&[u8]) -> bool,
    facade: bool,
    record: &mut Vec<u8>,
    memory: &mut Memory,
) -> Result<(), Flaw> {
    let mut scan = Scan::new(object, memory);
    if !scan.take(b'{') {
        return Err(Flaw::NotAnObject);
    }
    if scan.take(b'}') {
        return Ok(());
    }
    loop {
        let name = scan.name().ok_or(Flaw::NotAnObject)?;
        if is_kept(name_of(object, name).as_bytes()) {
            separate(record);
            record.extend_from_slice(&object[name.start - 1..=name.end]);
            record.push(b':');
            copy(&mut scan, facade, record).ok_or(Flaw::TooDeep)?;
        } else {
            scan.skip().ok_or(Flaw::NotAnObject)?;
        }
        if !scan.take(b',') {
            return Ok(());
        }
    }
}

/// Copies a member's value.
#[inline]
fn copy(scan: &mut Scan<'_>, facade: bool, record: &mut Vec<u8>) -> Option<std::ops::Range<usize>> {
    // Two levels are around it already: the message, and what is merged into it.
    if facade {
        scan.copy(record, DEPTH_MAX - 2, dates::may_be_date, dates::rewrite)
    } else {
        scan.copy(record, DEPTH_MAX - 2, |_| false, |_, _| false)
    }
}

/// A comma, where a member stands before.
fn separate(record: &mut Vec<u8>) {
    if record.last() != Some(&b'{') {
        record.push(b',');
    }
}

fn call_of(content: &[u8]) -> Option<Call> {
    Call::of_word(&super::text::unescape(content))
}

/// Whether a message is one.
fn judge(call: Call, fields: &Fields<'_>) -> Result<(), Flaw> {
    let has = |raw: Option<&[u8]>| id(raw).is_some();
    if call == Call::Alias {
        let is_whole = (has(fields.user_id) || has(fields.to)) && (has(fields.previous_id) || has(fields.from));
        return if is_whole { Ok(()) } else { Err(Flaw::NoAlias) };
    }
    if !has(fields.user_id) && !has(fields.anonymous_id) && !has(fields.session_id) {
        return Err(Flaw::NoId);
    }
    let has_event = fields.event.and_then(content).is_some_and(|event| !event.is_empty());
    if call == Call::Track && !has_event { Err(Flaw::NoEvent) } else { Ok(()) }
}

/// Whether a message's and its batch's `integrations` want this destination: by its name, else by `All`. Only `false` is no.
fn wanted(rules: &Rules, request: &Request<'_>, fields: &Fields<'_>, memory: &mut Memory) -> bool {
    let (mut named, mut all) = (None, None);
    if let Some(own) = fields.integrations.filter(|own| *own != b"{}") {
        each_member(own, memory, |name, _, value| match name.as_ref() {
            name if name == rules.integration => named = Some(value),
            "All" | "all" => all = Some(value),
            _ => {}
        });
    }
    let shared = |name: &str| request.integrations.value(name);
    let said = named.or_else(|| shared(&rules.integration)).or(all).or_else(|| shared("All")).or_else(|| shared("all"));
    said != Some(b"false")
}

/// Writes what a batch shares, and over it what the message has of its own.
fn merge(
    opening: &[u8],
    shared: &Shared<'_>,
    own: Option<&[u8]>,
    facade: bool,
    record: &mut Vec<u8>,
    scans: &mut Scans,
) -> Result<(), Flaw> {
    scans.own.clear();
    scans.own.resize(shared.len(), false);
    // `null`, or what is no object, says nothing.
    let own = own.filter(|own| own.first() == Some(&b'{'));
    if let Some(own) = own {
        each_member(own, &mut scans.member, |name, _, _| {
            if let Some(at) = shared.position(&name) {
                scans.own[at] = true;
            }
        });
    }
    separate(record);
    record.extend_from_slice(opening);
    for (member, _) in shared.all().zip(&scans.own).filter(|(_, own)| !**own) {
        separate(record);
        let mut scan = Scan::new(member, &mut scans.member);
        let name = scan.name().ok_or(Flaw::NotAnObject)?;
        record.extend_from_slice(&member[name.start - 1..=name.end]);
        record.push(b':');
        copy(&mut scan, facade, record).ok_or(Flaw::TooDeep)?;
    }
    if let Some(own) = own {
        copy_members(own, |_| true, facade, record, &mut scans.member)?;
    }
    record.push(b'}');
    Ok(())
}

/// A raw string or number.
fn put(raw: &[u8], facade: bool, record: &mut Vec<u8>) {
    let date = content(raw).filter(|content| facade && dates::may_be_date(content));
    if !date.is_some_and(|content| dates::rewrite(content, record)) {
        record.extend_from_slice(raw);
    }
}

fn quoted_time(ms: i64, record: &mut Vec<u8>) {
    record.push(b'"');
    dates::write(ms, record);
    record.push(b'"');
}

/// `originalTimestamp`, `sentAt`, `receivedAt`, `timestamp`.
fn put_times(fields: &Fields<'_>, request: &Request<'_>, received_ms: i64, facade: bool, record: &mut Vec<u8>) {
    fn told(raws: [Option<&[u8]>; 2]) -> Option<(&[u8], i64)> {
        raws.into_iter().flatten().find_map(|raw| dates::of_value(raw).map(|ms| (raw, ms)))
    }
    // Text stays as the client wrote it; a number is no date to any reader.
    let as_told = |raw: &[u8], ms: i64, record: &mut Vec<u8>| match content(raw) {
        Some(text) if dates::parse(text, true).is_some() => put(raw, facade, record),
        _ => quoted_time(ms, record),
    };
    let original = told([fields.timestamp, fields.original_timestamp]);
    let sent = told([fields.sent_at, request.sent_at]);
    record.extend_from_slice(b",\"originalTimestamp\":");
    match original {
        Some((raw, ms)) => as_told(raw, ms, record),
        None => quoted_time(received_ms, record),
    }
    if let Some((raw, ms)) = sent {
        record.extend_from_slice(b",\"sentAt\":");
        as_told(raw, ms, record);
    }
    record.extend_from_slice(b",\"receivedAt\":");
    quoted_time(received_ms, record);
    record.extend_from_slice(b",\"timestamp\":");
    let timestamp = match (original, sent) {
        (Some((_, original)), Some((_, sent))) => received_ms - (sent - original),
        (Some((_, original)), None) => original,
        (None, _) => received_ms,
    };
    quoted_time(timestamp, record);
}

/// A random UUID (RFC 9562, version 4).
fn uuid(rules: &Rules) -> [u8; 36] {
    let mut bytes = [0; 16];
    rules.entropy.fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            at += 1;
        }
        for digit in [byte >> 4, byte & 15] {
            text[at] = b"0123456789abcdef"[usize::from(digit)];
            at += 1;
        }
    }
    text
}

#[cfg(test)]
mod tests;
