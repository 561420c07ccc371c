//! mParticle's events API without HTTP: which batches a request holds, and what is wrong with it.
//!
//! Place: `http/mparticle` hands over a decoded body and sends what comes out. [`Batch`] is one batch, judged; [`record`] makes of
//! it what mParticle forwards to a Kinesis stream: one record for the batch, or one for each of its events.
//!
//! Failure: of a single batch a [`Wrong`], told as `{"errors":[…]}`; in bulk a bad batch is left out and counted, as mParticle
//! answers 202 all the same. Its sentences name fields, nothing of a batch. Pure.
//! Absent on purpose: identity resolution, profiles, regrouping of batches, mParticle's quotas.

pub mod record;

use std::borrow::Cow;

use super::json::{Memory, Scan};
use super::members::{Members, elements, name_in, text, whole};
use crate::config::MParticleConfig;

/// Arrays and objects within each other that a batch may have.
pub const DEPTH_MAX: usize = 128;

/// Bytes of a decoded body that mParticle itself takes.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;

/// Batches of a bulk request that mParticle itself takes.
pub const BULK_BATCHES_MAX: usize = 100;

/// Why a request or a batch cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The body is not JSON.
    NotJson,
    /// A batch is no object.
    NoBatch,
    /// The body of a bulk request is no array.
    NoBatches,
    /// `environment` is missing or unknown.
    Environment,
    /// `events` is no array of objects with an `event_type`.
    Events,
    /// Nested too deep.
    Depth,
    /// It holds too much, or its records would.
    TooLarge,
    /// More than mParticle takes, where the source keeps its limits.
    OverLimit,
}

impl Wrong {
    /// For the answer: what is wrong, and what is allowed.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotJson => "the body is not valid JSON",
            Self::NoBatch => "the body must be one JSON object, an event batch",
            Self::NoBatches => "the body must be a JSON array of event batches",
            Self::Environment => "environment is required: \"production\" or \"development\"",
            Self::Events => "events must be an array of objects, each with an event_type that is a string",
            Self::Depth => "the batch is nested deeper than 128",
            Self::TooLarge => "the request, or what would be made of it, is too large; send less in one",
            Self::OverLimit => {
                "a request takes 262144 bytes, and in bulk 100 batches: mParticle's own limits, which the source keeps (limits); \
                 send less in one"
            }
        }
    }
}

/// The body of an answer that is no success.
#[must_use]
pub fn errors(code: &str, message: &str) -> String {
    serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string()
}

/// Takes the array of a bulk request apart; at most `most` batches.
///
/// # Errors
/// It is none, or has more.
pub fn batches(body: &[u8], most: usize) -> Result<Vec<&str>, Wrong> {
    let json = whole(body).ok_or(Wrong::NotJson)?;
    if !json.starts_with('[') {
        return Err(Wrong::NoBatches);
    }
    elements(json, most).ok_or(Wrong::TooLarge)
}

/// Keeps mParticle's own limits on a request.
///
/// # Errors
/// It has more bytes, or more batches.
pub fn keep_limits(bytes: usize, batches: usize) -> Result<(), Wrong> {
    if bytes > REQUEST_BYTES_MAX || batches > BULK_BATCHES_MAX { Err(Wrong::OverLimit) } else { Ok(()) }
}

/// The one batch of a request, to be judged.
///
/// # Errors
/// The body is not JSON, as far as that can be told without reading it.
pub fn batch(body: &[u8]) -> Result<&str, Wrong> {
    let body = std::str::from_utf8(body).map_err(|_| Wrong::NotJson)?;
    Ok(body.trim_matches([' ', '\n', '\t', '\r']))
}

/// A batch that can be taken.
#[derive(Debug)]
pub struct Batch<'b> {
    members: Members<'b>,
    /// Those that are forwarded.
    events: Vec<Event<'b>>,
    /// Bytes of the batch without its events.
    rest_bytes: usize,
    identities: Vec<Identity<'b>>,
}

/// An event of a batch.
#[derive(Clone, Debug)]
struct Event<'b> {
    /// As sent.
    json: &'b str,
    /// Its `event_type`.
    kind: Cow<'b, str>,
}

/// What one scan finds in a batch.
#[derive(Default)]
struct Found<'b> {
    members: Members<'b>,
    events: Vec<Event<'b>>,
    /// Arrays and objects within each other.
    depth: usize,
    /// More events than may be.
    too_many: bool,
    /// Some are no objects, or have no type.
    wrong: bool,
}

impl<'b> Found<'b> {
    /// `None`: `json` is no object.
    fn read(json: &'b str, events_max: usize) -> Option<Self> {
        let mut found = Self::default();
        let mut memory = Memory::default();
        let mut scan = Scan::new(json.as_bytes(), &mut memory);
        scan.members(|scan, name| {
            let name = name_in(json, name);
            let span = if name == "events" && scan.token() == b'[' {
                let start = scan.at();
                found.read_events(json, scan, events_max)?;
                start..scan.at()
            } else {
                let (span, depth) = scan.span_and_depth()?;
                found.depth = found.depth.max(1 + depth);
                span
            };
            found.members.put(name, &json[span]);
            Some(())
        })?;
        scan.is_over().then_some(found)
    }

    /// Reads the array of events; those before it, under the same name, do not count.
    fn read_events(&mut self, json: &'b str, scan: &mut Scan<'_>, events_max: usize) -> Option<()> {
        self.events.clear();
        (self.too_many, self.wrong) = (false, false);
        self.depth = self.depth.max(2);
        let mut seen = 0;
        scan.elements(|scan| {
            let is_object = scan.token() == b'{';
            let start = scan.at();
            let mut kind = None;
            let mut depth = 0;
            if is_object {
                scan.members(|scan, name| {
                    let (span, deep) = scan.span_and_depth()?;
                    depth = depth.max(1 + deep);
                    if name_in(json, name) == "event_type" {
                        kind = text(&json[span]).filter(|kind| !kind.is_empty());
                    }
                    Some(())
                })?;
                depth = depth.max(1);
            } else {
                depth = scan.span_and_depth()?.1;
            }
            self.depth = self.depth.max(2 + depth);
            seen += 1;
            match kind {
                _ if seen > events_max => self.too_many = true,
                Some(kind) => self.events.push(Event { json: &json[start..scan.at()], kind }),
                None => self.wrong = true,
            }
            Some(())
        })
    }
}

/// Who it is about: a name of mParticle's, and a value as sent.
#[derive(Clone, Debug)]
struct Identity<'b> {
    kind: Cow<'b, str>,
    json: &'b str,
}

impl<'b> Batch<'b> {
    /// Judges a batch as it was sent; at most `events_max` events.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(json: &'b str, config: &MParticleConfig, events_max: usize) -> Result<Self, Wrong> {
        let Some(Found { members, mut events, depth, too_many, wrong }) = Found::read(json, events_max) else {
            return Err(if whole(json.as_bytes()).is_some() { Wrong::NoBatch } else { Wrong::NotJson });
        };
        if depth > DEPTH_MAX {
            return Err(Wrong::Depth);
        }
        let environment = members.given("environment").and_then(text).ok_or(Wrong::Environment)?;
        if !matches!(environment.as_ref(), "production" | "development") {
            return Err(Wrong::Environment);
        }
        let sent = members.given("events");
        match sent {
            None => events.clear(),
            Some(sent) if !sent.starts_with('[') => return Err(Wrong::Events),
            Some(_) if too_many => return Err(Wrong::TooLarge),
            Some(_) if wrong => return Err(Wrong::Events),
            Some(_) => events.retain(|event| is_wanted(&event.kind, config)),
        }
        let rest_bytes = json.len() - sent.map_or(0, str::len);
        let identities = members.given("user_identities").and_then(Members::of).map(identities).unwrap_or_default();
        Ok(Self { events, rest_bytes, identities, members })
    }

    /// How many records are made of it.
    #[must_use]
    pub fn records(&self, config: &MParticleConfig) -> usize {
        match self.events.len() {
            0 if !config.include.contains("empty_batches") => 0,
            0 => 1,
            _ if config.send_as_batch => 1,
            many => many,
        }
    }

    /// By what a copy of the batch, or of its event of this index, is known, if its sender gave it a `source_request_id`.
    #[must_use]
    pub fn copy_id(&self, event: Option<usize>) -> Option<String> {
        let id = self.members.given("source_request_id").and_then(text).filter(|id| !id.is_empty())?;
        Some(event.map_or_else(|| id.to_string(), |event| format!("{id}\0{event}")))
    }

    /// The type of its event of this index, among those that are forwarded.
    #[must_use]
    pub fn event_type(&self, event: usize) -> Option<&str> {
        Some(&self.events.get(event)?.kind)
    }

    /// Each of its events becomes a record.
    #[must_use]
    pub fn is_apart(&self, config: &MParticleConfig) -> bool {
        !config.send_as_batch && !self.events.is_empty()
    }

    /// Whom it is about: its `mpid`, else its customer, else its first identity, else its device; empty where it names none.
    #[must_use]
    pub fn key(&self) -> Cow<'_, str> {
        let id = |members: &Members<'b>, name: &str| members.given(name).and_then(id_text).filter(|id| id != "0");
        if let Some(mpid) = id(&self.members, "mpid") {
            return mpid;
        }
        let customer = self.identities.iter().find(|identity| identity.kind == CUSTOMER_ID);
        if let Some(identity) = customer.or(self.identities.first()) {
            return id_text(identity.json).unwrap_or_default();
        }
        let device = self.members.given("device_info").and_then(Members::of).unwrap_or_default();
        id(&self.members, "mp_deviceid").or_else(|| DEVICE_IDS.iter().find_map(|name| id(&device, name))).unwrap_or_default()
    }
}

/// Ids in `device_info`, the most lasting first.
const DEVICE_IDS: [&str; 8] = [
    "ios_idfv",
    "android_uuid",
    "ios_advertising_id",
    "android_advertising_id",
    "fire_advertising_id",
    "roku_advertising_id",
    "microsoft_advertising_id",
    "amp_id",
];

/// As the API has it.
const CUSTOMER_ID: &str = "customer_id";

/// As the Python SDK sends it.
const CUSTOMER_ID_OF_PYTHON: &str = "customerid";

/// Those that have a value, under the API's names. Of a customer named twice the API's own name counts.
fn identities(sent: Members<'_>) -> Vec<Identity<'_>> {
    let twice = sent.given(CUSTOMER_ID).is_some();
    let mut all = Vec::new();
    for (name, json) in sent.into_list() {
        if id_text(json).is_none() || (twice && name == CUSTOMER_ID_OF_PYTHON) {
            continue;
        }
        let kind = if name == CUSTOMER_ID_OF_PYTHON { Cow::Borrowed(CUSTOMER_ID) } else { name };
        all.push(Identity { kind, json });
    }
    all
}

/// A string that is not empty, or a number's or a boolean's text.
fn id_text(json: &str) -> Option<Cow<'_, str>> {
    match text(json) {
        Some(text) => (!text.is_empty()).then_some(text),
        None => (!json.starts_with(['{', '[']) && json != "null").then_some(Cow::Borrowed(json)),
    }
}

/// The switch that an event type belongs to. Types without one are always forwarded.
fn switch(event_type: &str) -> Option<&'static str> {
    Some(match event_type {
        "session_start" | "session_end" | "first_run" | "application_state_transition" => "lifecycle",
        "screen_view" => "screen_views",
        "crash_report" | "breadcrumb" => "crash",
        "network_performance" => "network_performance",
        "custom_event" => "custom",
        "push_registration" | "push_message" => "push",
        "commerce_event" => "commerce",
        "user_attribute_change" => "user_attribute_change",
        "user_identity_change" => "user_identity_change",
        _ => return None,
    })
}

fn is_wanted(event_type: &str, config: &MParticleConfig) -> bool {
    switch(event_type).is_none_or(|switch| config.forward.contains(switch))
}

#[cfg(test)]
mod tests;
