//! Segment's HTTP tracking API, which several brands speak, and the record that its Kinesis destinations write. Pure: bytes in;
//! keys, records and words for answers out.
//!
//! Place: `http/segment.rs` reads a request and asks [`Path::of`] what it is; [`Request`] (in `request`) takes a body apart into
//! messages, and a [`Maker`] (in `message`) makes each one's record and key for the source's [`Rules`]. `dates` holds how
//! Segment reads times, `pixel` the two forms of a call in a query.
//!
//! *RAW-SLICES*: a record is spliced from slices of what was sent, in one scan; no JSON tree is built. So numbers keep all their
//! digits and strings their escapes, half surrogate pairs included. Between tokens white space goes, so that a record is one line.
//! Of members with one name the last counts, as in JavaScript.
//!
//! Failure: a body that is no JSON is refused as a whole ([`Malformed`]); a message that is not valid ([`Flaw`]) makes no record
//! and harms no other. Absent on purpose: anything of Segment's own state (tracking plans, identity graphs, GeoIP).

pub mod dates;
mod message;
mod pixel;
mod request;
mod text;

use std::fmt;
use std::sync::Arc;

pub use message::Maker;
pub use pixel::{body_of_query, decode};
pub use request::{Malformed, Request};

use crate::config::{SegmentConfig, SegmentProfile};
use crate::host::{Clock, Entropy, Host};

/// Arrays and objects that a message may have one in another.
pub const DEPTH_MAX: usize = 128;

/// The batch's own `context` and `integrations` together, bytes: they are written into each of its messages.
pub const SHARED_BYTES_MAX: usize = 32 << 10;

/// Segment's own limits, which a source with `limits = "vendor"` keeps. Sizes are of what was sent, once decoded.
pub mod limits {
    /// Bytes of one message.
    pub const MESSAGE_BYTES_MAX: usize = 32 << 10;
    /// Bytes of a batch's request.
    pub const BATCH_BYTES_MAX: usize = 500 << 10;
    /// Messages of a batch that are taken; those after them are not.
    pub const BATCH_MESSAGES_MAX: usize = 2500;
    /// Characters of a `messageId`.
    pub const MESSAGE_ID_CHARS_MAX: usize = 99;
}

/// A kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// What somebody did.
    Track,
    /// Who somebody is.
    Identify,
    /// A page was seen.
    Page,
    /// A screen was seen.
    Screen,
    /// Somebody belongs to a group.
    Group,
    /// Two ids are one person's.
    Alias,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Track, Self::Identify, Self::Page, Self::Screen, Self::Group, Self::Alias];

    /// As `type` says it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Track => "track",
            Self::Identify => "identify",
            Self::Page => "page",
            Self::Screen => "screen",
            Self::Group => "group",
            Self::Alias => "alias",
        }
    }

    /// The call of this word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.word() == word)
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path<'p> {
    /// One message. `short`: by its first letter, as only browsers do.
    One {
        /// What it is.
        call: Call,
        /// By its first letter.
        short: bool,
    },
    /// Many.
    Batch,
    /// MetaRouter's event of any form.
    Custom,
    /// One message in the query of an image.
    Pixel(Call),
    /// What a browser's library asks first, for this write key.
    Settings(&'p str),
    /// Nothing that makes a record: client metrics, and names that nobody knows.
    Other,
}

impl<'p> Path<'p> {
    /// Of a request's path; `None` if it does not begin with `/v1`.
    #[must_use]
    pub fn of(path: &'p str) -> Option<Self> {
        let rest = path.strip_prefix("/v1")?;
        let name = match rest.strip_prefix('/') {
            Some(name) => name.strip_suffix('/').unwrap_or(name),
            None if rest.is_empty() => rest,
            None => return None,
        };
        Some(match name {
            "batch" | "b" | "import" => Self::Batch,
            "custom/event" => Self::Custom,
            _ => {
                let short = Call::ALL.into_iter().find(|call| call.word().get(..1) == Some(name));
                let pixel = || {
                    let name = name.strip_prefix("pixel/")?;
                    Call::of_word(name.strip_suffix(".gif").unwrap_or(name)).map(Self::Pixel)
                };
                let settings = || name.strip_prefix("projects/")?.strip_suffix("/settings").map(Self::Settings);
                match (Call::of_word(name), short) {
                    (Some(call), _) => Self::One { call, short: false },
                    (None, Some(call)) => Self::One { call, short: true },
                    (None, None) => pixel().or_else(settings).unwrap_or(Self::Other),
                }
            }
        })
    }
}

/// Why a message makes no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No JSON object.
    NotAnObject,
    /// More than [`DEPTH_MAX`] arrays and objects one in another.
    TooDeep,
    /// `type` is none of the six.
    NoType,
    /// Neither a userId nor an anonymousId.
    NoId,
    /// A track call without `event`.
    NoEvent,
    /// An alias call without userId and previousId.
    NoAlias,
    /// MetaRouter's event without its metadata.
    NoMetadata,
    /// It makes a record that is larger than the source's `max_event_bytes`.
    TooLarge,
    /// More than [`limits::MESSAGE_BYTES_MAX`], where the source keeps Segment's limits.
    OverLimit,
    /// A messageId over [`limits::MESSAGE_ID_CHARS_MAX`], where the source keeps Segment's limits.
    LongId,
}

impl Flaw {
    /// The `code` of an error's body.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotAnObject => "not_an_object",
            Self::TooDeep => "nested_too_deep",
            Self::NoType => "unknown_type",
            Self::NoId => "no_user_anon_id",
            Self::NoEvent => "no_event",
            Self::NoAlias => "no_previous_id",
            Self::NoMetadata => "no_metadata",
            Self::TooLarge | Self::OverLimit => "too_large",
            Self::LongId => "message_id_too_long",
        }
    }

    /// Its `message`. Holds nothing of the event.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotAnObject => "the message is not a JSON object",
            Self::TooDeep => "the message has more than 128 arrays and objects one in another",
            Self::NoType => "the message's type must be track, identify, page, screen, group or alias",
            Self::NoId => "the message needs a userId or an anonymousId, as a string that is not empty",
            Self::NoEvent => "a track call needs event, as a string that is not empty",
            Self::NoAlias => "an alias call needs userId and previousId, as strings that are not empty",
            Self::NoMetadata => {
                "a custom event needs _metarouter with eventName and userID or anonymousID, in the body, the query, or the header \
                 X-Event-Metadata"
            }
            Self::TooLarge => "the record is larger than the source's max_event_bytes",
            Self::OverLimit => "the message is larger than 32768 bytes, Segment's own limit, which the source keeps (limits)",
            Self::LongId => {
                "the messageId must have less than 100 characters, Segment's own limit, which the source keeps (limits)"
            }
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// A source's rules for its records. Immutable; shared by all requests.
#[derive(Debug)]
pub struct Rules {
    /// Strings that are dates are rewritten.
    facade: bool,
    /// The key is the messageId.
    by_message_id: bool,
    /// A bit for each [`Call`] that makes a record.
    calls: u8,
    /// This destination's name in `integrations`.
    integration: String,
    /// As JSON.
    project_id: Option<String>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Rules {
    /// Compiles what is configured.
    #[must_use]
    pub fn new(config: &SegmentConfig, host: &Host) -> Self {
        let actions = config.profile == SegmentProfile::Actions;
        let left_out = match config.profile {
            SegmentProfile::Classic => Some(Call::Screen),
            SegmentProfile::Actions => Some(Call::Alias),
            SegmentProfile::Astronomer | SegmentProfile::MetaRouter => None,
        };
        let chosen = |call: &Call| match config.types.is_empty() {
            true => Some(*call) != left_out,
            false => config.types.iter().any(|word| word == call.word()),
        };
        let usual = if actions { "AWS Kinesis (Actions)" } else { "Amazon Kinesis" };
        Self {
            facade: config.facade.unwrap_or(!actions),
            by_message_id: actions || config.use_message_id,
            calls: Call::ALL.into_iter().filter(chosen).fold(0, |calls, call| calls | call.bit()),
            integration: config.integration.clone().unwrap_or_else(|| usual.to_owned()),
            project_id: config.project_id.as_ref().map(|id| serde_json::Value::from(id.as_str()).to_string()),
            clock: Arc::clone(&host.clock),
            entropy: Arc::clone(&host.entropy),
        }
    }

    fn takes(&self, call: Call) -> bool {
        self.calls & call.bit() != 0
    }
}

/// What a browser's library gets when it asks for the settings of `key`; `host` is where it asked.
#[must_use]
pub fn settings(key: &str, host: &str) -> String {
    let everything = serde_json::json!({ "__default": { "enabled": true, "integrations": {} } });
    serde_json::json!({
        "integrations": {
            "Segment.io": {
                "apiKey": key,
                "apiHost": format!("{host}/v1"),
                "protocol": "http",
                "addBundledMetadata": true,
                "unbundledIntegrations": [],
                "versionSettings": { "version": "4.4.7", "componentTypes": ["browser"] },
            },
        },
        "plan": { "track": everything, "identify": everything, "group": everything },
        "edgeFunction": {},
        "analyticsNextEnabled": true,
        "middlewareSettings": {},
        "enabledMiddleware": {},
        "metrics": { "sampleRate": 0 },
        "legacyVideoPluginsEnabled": false,
        "remotePlugins": [],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_that_an_sdk_knows_is_told_by_its_path_alone() {
        let one = |call, short| Some(Path::One { call, short });
        for call in Call::ALL {
            assert_eq!(Path::of(&format!("/v1/{}", call.word())), one(call, false));
            assert_eq!(Path::of(&format!("/v1/{}", &call.word()[..1])), one(call, true));
            assert_eq!(Path::of(&format!("/v1/pixel/{}", call.word())), Some(Path::Pixel(call)));
        }
        for path in ["/v1/batch", "/v1/b", "/v1/import", "/v1/import/", "/v1/batch/"] {
            assert_eq!(Path::of(path), Some(Path::Batch), "{path}");
        }
        assert_eq!(Path::of("/v1/pixel/page.gif"), Some(Path::Pixel(Call::Page)));
        assert_eq!(Path::of("/v1/custom/event"), Some(Path::Custom));
        assert_eq!(Path::of("/v1/projects/k1/settings"), Some(Path::Settings("k1")));
        for path in ["/v1", "/v1/", "/v1/m", "/v1/unheard", "/v1/pixel/unheard", "/v1/projects/k1", "/v1//"] {
            assert_eq!(Path::of(path), Some(Path::Other), "{path}");
        }
        for path in ["/", "/v10/batch", "/v2/events", "/ingest", "/batch", "/identify"] {
            assert_eq!(Path::of(path), None, "{path}");
        }
    }

    #[test]
    fn a_profile_decides_what_is_not_configured() {
        let words = |config: &SegmentConfig| -> Vec<&str> {
            let rules = Rules::new(config, &Host::real());
            Call::ALL.into_iter().filter(|call| rules.takes(*call)).map(Call::word).collect()
        };
        let of = |profile| SegmentConfig { profile, ..SegmentConfig::default() };
        assert_eq!(words(&of(SegmentProfile::Classic)), ["track", "identify", "page", "group", "alias"]);
        assert_eq!(words(&of(SegmentProfile::Actions)), ["track", "identify", "page", "screen", "group"]);
        assert_eq!(words(&of(SegmentProfile::Astronomer)).len(), 6);
        assert_eq!(words(&SegmentConfig { types: vec!["screen".into()], ..SegmentConfig::default() }), ["screen"]);
        let actions = Rules::new(&of(SegmentProfile::Actions), &Host::real());
        assert!(actions.by_message_id && !actions.facade && actions.integration == "AWS Kinesis (Actions)");
        let classic = Rules::new(&of(SegmentProfile::Classic), &Host::real());
        assert!(!classic.by_message_id && classic.facade && classic.integration == "Amazon Kinesis");
    }
}
