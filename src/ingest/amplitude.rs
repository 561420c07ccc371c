//! Amplitude's ingestion API without HTTP: what a request holds, what is wrong with it, what the answer says.
//!
//! Place: `http/amplitude` hands over a decoded body and sends what comes out. [`Upload`] is a body of `/2/httpapi` or `/batch`,
//! taken apart in one scan; [`Event`] one of its events once it is judged, which happens once; [`record`] makes of it the row that
//! Amplitude's Kinesis destination writes. [`identify`] is the older Identify API, whose bodies are forms.
//!
//! *ALL-JUDGED-FIRST*: SDKs drop exactly the events whose indexes a 400 lists, and send all others of the request again. So every
//! event is judged before any is accepted, and one answer lists all that is wrong.
//!
//! Failure: a [`Refusal`], whose body is Amplitude's own. It names fields and indexes, nothing of an event. Pure.
//! Absent on purpose: Amplitude's state (users, properties as they add up, locations), and its quotas.

mod field;
pub mod identify;
pub mod limits;
pub mod record;
mod upload;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub use upload::{Sent, Upload};

use self::field::Field;
use super::members::{Members, depth, text};
use crate::config::AmplitudeConfig;

/// Characters that an id has at least, unless the request says otherwise.
pub const ID_CHARS_MIN: usize = 5;

/// Arrays and objects within each other that a value may have.
pub const DEPTH_MAX: usize = 128;

/// The last millisecond whose date has a year of four digits, less a day for shifted clocks.
pub const TIME_MS_MAX: i64 = 253_402_214_400_000;

/// Ids that many users share by accident. Amplitude takes them off an event, in any case of letters.
const NO_IDS: [&str; 18] = [
    "-1",
    "0",
    "00000000-0000-0000-0000-000000000000",
    "<nil>",
    "[]",
    "anonymous",
    "false",
    "lmy47d",
    "n/a",
    "na",
    "nil",
    "none",
    "null",
    "true",
    "undefined",
    "unknown",
    "{}",
    "",
];

/// Why a request, or some of its events, cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The body is no JSON object.
    NotJson,
    /// A field of the request is missing.
    Missing(&'static str),
    /// A field of the request is of the wrong type.
    Wrong(&'static str),
    /// No source has its API key.
    UnknownKey,
    /// It holds too much.
    TooLarge,
    /// These events.
    Events(Faults),
}

/// Which events have which faults: field by field their indexes from 0.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Faults {
    missing: BTreeMap<&'static str, Vec<u32>>,
    invalid: BTreeMap<&'static str, Vec<u32>>,
    too_short: BTreeMap<&'static str, Vec<u32>>,
    not_objects: bool,
}

/// What is wrong with a field of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not there.
    Missing(&'static str),
    /// It is not what it should be.
    Invalid(&'static str),
    /// It is an id with too few characters.
    TooShort(&'static str),
    /// The event is no JSON object.
    NoObject,
}

impl Faults {
    /// Notes a fault of the event at `index`.
    pub fn add(&mut self, index: u32, fault: Fault) {
        let (map, field) = match fault {
            Fault::Missing(field) => (&mut self.missing, field),
            Fault::Invalid(field) => (&mut self.invalid, field),
            Fault::TooShort(field) => (&mut self.too_short, field),
            Fault::NoObject => {
                self.not_objects = true;
                (&mut self.invalid, "event")
            }
        };
        map.entry(field).or_default().push(index);
    }

    /// None was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.invalid.is_empty() && self.too_short.is_empty()
    }
}

impl Refusal {
    /// Status and body of the answer.
    #[must_use]
    pub fn answer(&self) -> (u16, String) {
        let error = match self {
            Self::NotJson => "Invalid JSON request body",
            Self::Missing(_) => "Request missing required field",
            Self::Wrong(_) => "Invalid field values on some events",
            // What SDKs look for is the text up to the colon.
            Self::UnknownKey => "Invalid API key: no source of kind amplitude has it among its keys",
            Self::TooLarge => "Payload too large",
            Self::Events(faults) if faults.not_objects => "Invalid event JSON",
            Self::Events(faults) if !faults.missing.is_empty() => "Request missing required field",
            Self::Events(faults) if !faults.invalid.is_empty() => "Invalid field values on some events",
            Self::Events(_) => "Invalid id length for user_id or device_id",
        };
        let code = if *self == Self::TooLarge { 413 } else { 400 };
        let mut body = serde_json::json!({ "code": code, "error": error });
        match self {
            Self::Missing(field) | Self::Wrong(field) => body["missing_field"] = (*field).into(),
            Self::Events(faults) => {
                body["events_with_missing_fields"] = serde_json::json!(faults.missing);
                body["events_with_invalid_fields"] = serde_json::json!(faults.invalid);
                body["events_with_invalid_id_lengths"] = serde_json::json!(faults.too_short);
            }
            _ => {}
        }
        (code, body.to_string())
    }
}

/// The body of the answer to a request whose events are all safe. `uploaded_ms` is the wall clock.
#[must_use]
pub fn success(events: u64, payload_bytes: usize, uploaded_ms: u64) -> String {
    format!(
        r#"{{"code":200,"events_ingested":{events},"payload_size_bytes":{payload_bytes},"server_upload_time":{uploaded_ms}}}"#
    )
}

/// A moment as clients write it: ISO 8601 with an offset, or milliseconds since 1970.
fn moment_us(json: &str) -> Option<i64> {
    let ms_as_us = |ms: i64| (0..=TIME_MS_MAX).contains(&ms).then(|| ms * 1000);
    match text(json) {
        Some(text) => match text.trim().parse::<jiff::Timestamp>() {
            Ok(moment) => ms_as_us(moment.as_millisecond()).map(|_| moment.as_microsecond()),
            Err(_) => ms_as_us(text.trim().parse().ok()?),
        },
        None => ms_as_us(whole_number(json)?),
    }
}

/// A JSON number's value, if it is whole, also where it is written with a point or an exponent.
fn whole_number(json: &str) -> Option<i64> {
    if let Ok(number) = json.parse() {
        return Some(number);
    }
    let number: f64 = serde_json::from_str(json).ok()?;
    // Below 2^53, where each whole number is one.
    (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64)
}

/// An event that can be taken.
#[derive(Debug)]
pub struct Event<'u> {
    sent: Sent<'u>,
    event_type: Cow<'u, str>,
    user_id: Option<Id<'u>>,
    device_id: Option<Id<'u>>,
    time_ms: Option<i64>,
}

/// An id: as sent, and what that means.
#[derive(Debug)]
struct Id<'u> {
    json: &'u str,
    text: Cow<'u, str>,
}

/// Members that must be objects where they are given.
const OBJECTS: [(Field, &str); 4] = [
    (Field::EventProperties, "event_properties"),
    (Field::UserProperties, "user_properties"),
    (Field::Groups, "groups"),
    (Field::GroupProperties, "group_properties"),
];

/// The event type of a user's properties that change.
const IDENTIFY: &str = "$identify";

/// The event type of a group's properties that change. It need not name a user or a device.
const GROUP_IDENTIFY: &str = "$groupidentify";

impl<'u> Event<'u> {
    /// Judges an event as it was sent. Of several faults it has, all are told.
    ///
    /// # Errors
    /// Its faults.
    pub fn judge(sent: Sent<'u>, id_chars_min: usize) -> Result<Self, Vec<Fault>> {
        if !sent.json.starts_with('{') {
            return Err(vec![Fault::NoObject]);
        }
        let mut faults = Vec::new();
        let event_type = match sent.given(Field::EventType).map(text) {
            Some(Some(name)) if !name.is_empty() => name,
            Some(None) => {
                faults.push(Fault::Invalid("event_type"));
                Cow::Borrowed("")
            }
            _ => {
                faults.push(Fault::Missing("event_type"));
                Cow::Borrowed("")
            }
        };
        let time_ms = match sent.given(Field::Time) {
            None => None,
            Some(json) => {
                let time = if json.starts_with('"') { None } else { whole_number(json) };
                let time = time.filter(|ms| (0..=TIME_MS_MAX).contains(ms));
                if time.is_none() {
                    faults.push(Fault::Invalid("time"));
                }
                time
            }
        };
        for (field, name) in OBJECTS {
            if sent.given(field).is_some_and(|value| !value.starts_with('{')) {
                faults.push(Fault::Invalid(name));
            }
        }
        if sent.depth > DEPTH_MAX {
            let deep = |field| sent.given(field).is_some_and(|value| depth(value) >= DEPTH_MAX);
            let told = OBJECTS.into_iter().find(|(field, _)| deep(*field));
            faults.push(Fault::Invalid(told.map_or("event_properties", |(_, name)| name)));
        }
        let user_id = id(&sent, Field::UserId, "user_id", id_chars_min);
        let device_id = id(&sent, Field::DeviceId, "device_id", id_chars_min);
        // An id that cannot be one is taken off the event; only where none is left is that a fault.
        if user_id.is_err() && device_id.is_err() && event_type != GROUP_IDENTIFY {
            let told = [&user_id, &device_id].map(|id| id.as_ref().err().copied());
            let wrong = told.into_iter().flatten().filter(|fault| !matches!(fault, Fault::Missing(_)));
            let before = faults.len();
            faults.extend(wrong);
            if faults.len() == before {
                faults.extend(told.into_iter().flatten());
            }
        }
        if faults.is_empty() {
            Ok(Self { sent, event_type, user_id: user_id.ok(), device_id: device_id.ok(), time_ms })
        } else {
            Err(faults)
        }
    }

    /// The whole of it, as sent.
    #[must_use]
    pub fn json(&self) -> &'u str {
        self.sent.json
    }

    /// Its user, else its device, else the group that it is about; empty where there is none.
    #[must_use]
    pub fn key(&self) -> Cow<'_, str> {
        if let Some(id) = self.user_id.as_ref().or(self.device_id.as_ref()) {
            return Cow::Borrowed(&id.text);
        }
        let groups = self.sent.given(Field::Groups).and_then(Members::of).unwrap_or_default();
        let group = groups.iter().find_map(|(_, value)| text(value).filter(|name| !name.is_empty()));
        group.map_or(Cow::Borrowed(""), |name| Cow::Owned(name.into_owned()))
    }

    /// By what a copy of it is known, if its sender gave it an `insert_id`: that, and the device.
    #[must_use]
    pub fn copy_id(&self) -> Option<String> {
        let insert = self.sent.given(Field::InsertId).and_then(text).filter(|id| !id.is_empty())?;
        let device = self.device_id.as_ref().map_or("", |id| &id.text);
        Some(format!("{device}\0{insert}"))
    }

    /// Its event type.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// It is to become a record.
    #[must_use]
    pub fn is_wanted(&self, config: &AmplitudeConfig) -> bool {
        match self.event_type.as_ref() {
            IDENTIFY | GROUP_IDENTIFY => config.forward_identify,
            name => config.events.is_empty() || config.events.contains(name),
        }
    }
}

/// An id of an event. A number is taken for its digits.
fn id<'u>(sent: &Sent<'u>, field: Field, name: &'static str, chars_min: usize) -> Result<Id<'u>, Fault> {
    let json = sent.given(field).ok_or(Fault::Missing(name))?;
    let text = match text(json) {
        Some(text) => text,
        None if json.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => Cow::Borrowed(json),
        None => return Err(Fault::Invalid(name)),
    };
    if text.is_empty() {
        Err(Fault::Missing(name))
    } else if text.chars().take(chars_min).count() < chars_min {
        Err(Fault::TooShort(name))
    } else if NO_IDS.iter().any(|none| none.eq_ignore_ascii_case(&text)) {
        Err(Fault::Invalid(name))
    } else {
        Ok(Id { json, text })
    }
}

#[cfg(test)]
mod tests;
