//! `add`: fields put at the end of a JSON object by splicing. Pure.
//!
//! Grammar of an entry: `NAME=VALUE`, where NAME is a member's name and VALUE its text, or one of `{agent}` (`forebay` and
//! its version), `{host}` (this machine's name), `{received_at}` (when the agent made the record, UTC in milliseconds,
//! `2026-11-20T10:00:00.000Z`) and `{source}` (the source's name).
//!
//! *NEVER-OVERWRITES*: a member that the event has, even as null, stays as it is, and the field is left out. What is not a
//! JSON object is not touched. The event's own bytes stay as they are, white space and all; only those after its last
//! member, up to the closing brace, make room.

use std::fmt::Write as _;

use super::PointerList;
use crate::ingest::pointer::Hits;

/// What `{received_at}` takes.
const TIME_BYTES: usize = "2026-11-20T10:00:00.000Z".len();

/// What the host fields are filled with.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This machine's name.
    pub host: String,
    /// The source's name.
    pub source: String,
}

impl Facts {
    /// Of this machine and a source.
    #[must_use]
    pub fn of(source: &str) -> Self {
        let name = rustix::system::uname();
        Self { host: name.nodename().to_string_lossy().into_owned(), source: source.to_owned() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'e> {
    Fixed(&'e str),
    Agent,
    Host,
    ReceivedAt,
    Source,
}

fn parse(entry: &str) -> Option<(&str, Value<'_>)> {
    let (name, value) = entry.split_once('=')?;
    let value = match value {
        "{agent}" => Value::Agent,
        "{host}" => Value::Host,
        "{received_at}" => Value::ReceivedAt,
        "{source}" => Value::Source,
        // A slip, most likely.
        value if value.starts_with('{') && value.ends_with('}') => return None,
        value => Value::Fixed(value),
    };
    (!name.is_empty()).then_some((name, value))
}

/// `text` is an entry of `add`.
#[must_use]
pub fn is_entry(text: &str) -> bool {
    parse(text).is_some()
}

#[derive(Clone, Debug)]
struct Field {
    /// The pointer to the member of this name.
    at: usize,
    /// `"name":"value"`, or `"name":` where the value is the time.
    text: String,
    timed: bool,
}

/// The compiled list.
#[derive(Clone, Debug)]
pub struct Fields(Vec<Field>);

impl Fields {
    /// Numbers the pointers to the members. What is no entry is left out, and so is a name that stands twice.
    pub fn compile(entries: &[String], facts: &Facts, list: &mut PointerList) -> Self {
        let mut fields: Vec<Field> = Vec::new();
        for (name, value) in entries.iter().filter_map(|entry| parse(entry)) {
            let at = list.number(&format!("/{}", name.replace('~', "~0").replace('/', "~1")));
            if fields.iter().any(|field| field.at == at) {
                continue;
            }
            let quoted = |text: &str| serde_json::Value::from(text).to_string();
            let value = match value {
                Value::Fixed(text) => quoted(text),
                Value::Agent => quoted(concat!("forebay ", env!("CARGO_PKG_VERSION"))),
                Value::Host => quoted(&facts.host),
                Value::Source => quoted(&facts.source),
                Value::ReceivedAt => String::new(),
            };
            fields.push(Field { at, timed: value.is_empty(), text: format!("{}:{value}", quoted(name)) });
        }
        Self(fields)
    }

    /// Nothing is added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The most bytes that an event grows by.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.0.iter().map(|field| field.text.len() + 1 + if field.timed { TIME_BYTES + 2 } else { 0 }).sum()
    }

    /// Writes `event` with what it lacks to `out`. False, and nothing written: it stays as it is.
    pub fn splice(&self, event: &[u8], hits: Hits<'_>, received_ms: impl FnOnce() -> u64, out: &mut Vec<u8>) -> bool {
        let Some(open) = event.trim_ascii_end().strip_suffix(b"}").filter(|_| event.trim_ascii_start().starts_with(b"{")) else {
            return false;
        };
        let mut lacking = self.0.iter().filter(|field| !hits.is_there(field.at)).peekable();
        if lacking.peek().is_none() {
            return false;
        }
        let mut time = None;
        let mut received_ms = Some(received_ms);
        out.extend_from_slice(open.trim_ascii_end());
        for field in lacking {
            if out.last() != Some(&b'{') {
                out.push(b',');
            }
            out.extend_from_slice(field.text.as_bytes());
            if field.timed {
                if let Some(received_ms) = received_ms.take() {
                    time = Some(rfc_3339(received_ms()));
                }
                out.extend_from_slice(time.as_deref().unwrap_or("null").as_bytes());
            }
        }
        out.push(b'}');
        true
    }
}

/// A quoted moment, UTC.
fn rfc_3339(ms: u64) -> String {
    let moment = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX)).unwrap_or(jiff::Timestamp::MAX);
    let mut text = String::with_capacity(TIME_BYTES + 2);
    write!(text, "\"{moment:.3}\"").expect("a String takes any text");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::pointer::{Pointers, Scratch};

    fn add(entries: &[&str], event: &str) -> String {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let facts = Facts { host: "a \"host\"".to_owned(), source: "web".to_owned() };
        let mut list = PointerList::default();
        let fields = Fields::compile(&entries, &facts, &mut list);
        let pointers = Pointers::compile(&list.texts).unwrap();
        let mut scratch = Scratch::default();
        let hits = pointers.find_all(event.as_bytes(), &mut scratch).unwrap();
        let mut out = Vec::new();
        if !fields.splice(event.as_bytes(), hits, || 1_763_632_800_007, &mut out) {
            assert!(out.is_empty());
            return event.to_owned();
        }
        assert!(out.len() <= event.len() + fields.bytes_max());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_come_after_the_events_own_which_stay_as_they_were_sent() {
        assert_eq!(add(&["env=prod"], r#" {"a" : 1.50, "b":{} } "#), r#" {"a" : 1.50, "b":{},"env":"prod"}"#);
        assert_eq!(add(&["env=prod", "x=y=z"], "{ }"), r#"{"env":"prod","x":"y=z"}"#);
        assert_eq!(add(&["empty="], r#"{"a":1}"#), r#"{"a":1,"empty":""}"#);
    }

    #[test]
    fn host_fields_are_filled_in() {
        let agent = concat!(r#"{"agent":"forebay "#, env!("CARGO_PKG_VERSION"), r#"","#);
        let made = add(&["agent={agent}", "host={host}", "at={received_at}", "again={received_at}", "source={source}"], "{}");
        assert_eq!(
            made,
            agent.to_owned()
                + r#""host":"a \"host\"","at":"2025-11-20T10:00:00.007Z","again":"2025-11-20T10:00:00.007Z","source":"web"}"#
        );
    }

    #[test]
    fn no_member_is_overwritten_whatever_its_value_and_however_its_name_is_written() {
        for event in [r#"{"env":"dev"}"#, r#"{"env":null}"#, r#"{"\u0065nv":{"x":1}}"#] {
            assert_eq!(add(&["env=prod"], event), event);
        }
        assert_eq!(add(&["a/b~=x", "c=d"], r#"{"a/b~":1}"#), r#"{"a/b~":1,"c":"d"}"#);
        assert_eq!(add(&["env=prod"], r#"{"in":{"env":1}}"#), r#"{"in":{"env":1},"env":"prod"}"#);
    }

    #[test]
    fn what_is_no_object_is_not_touched() {
        for event in ["[1]", "\"{}\"", "7", "null", "[{}]"] {
            assert_eq!(add(&["env=prod"], event), event);
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_added_once_and_slips_are_told() {
        assert_eq!(add(&["a=1", "a=2"], "{}"), r#"{"a":"1"}"#);
        assert!(is_entry("a=") && is_entry("a={host}") && is_entry("a={"));
        assert!(!is_entry("a") && !is_entry("=a") && !is_entry("a={hots}") && !is_entry(""));
    }
}
