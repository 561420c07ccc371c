//! `[[source]]` as the rest of the program takes it.
//!
//! Place: `check` builds these from what is in force; each door of `ingest` is handed its own. What only one kind of source has
//! is a struct of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Secret;

/// Where a source's partition keys come from when no pointer yields one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFallback {
    /// A random key for each event.
    Random,
    /// The event is rejected.
    Reject,
}

/// What a source speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// Plain events: socket and `/ingest`.
    #[default]
    Events,
    /// Segment's tracking API, which several brands speak.
    Segment,
    /// Amplitude's HTTP API.
    Amplitude,
    /// mParticle's events API.
    MParticle,
    /// The Kinesis API itself.
    Kinesis,
}

impl SourceKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Events, Self::Segment, Self::Amplitude, Self::MParticle, Self::Kinesis];

    /// As written in the file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Segment => "segment",
            Self::Amplitude => "amplitude",
            Self::MParticle => "mparticle",
            Self::Kinesis => "kinesis",
        }
    }

    /// The kind of this word; what the schema offers are such words.
    pub(crate) fn of_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.word() == word).unwrap_or_default()
    }
}

/// `[[source]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// Name; appears in `/ingest/{source}` and `source=` of the hello.
    pub name: String,
    /// Default `events`.
    pub kind: SourceKind,
    /// Name of the stream its events go to.
    pub stream: String,
    /// JSON pointers (RFC 6901), templates of them, or `random`; the first that yields a key decides.
    /// Default `/userId`, then `/anonymousId`; for other kinds than `events` none: the vendor's rule holds.
    pub partition_key: Vec<String>,
    /// Default random.
    pub partition_key_fallback: KeyFallback,
    /// Write keys that open this source; empty: open to whoever reaches the listener.
    pub keys: Vec<Secret>,
    /// For kind `kinesis`: access keys as `ID:SECRET`, one of which must have signed; empty: no signature is looked at.
    pub access_keys: Vec<Secret>,
    /// Largest event. Default `limits::EVENT_BYTES_MAX`, most `limits::EVENT_BYTES_CEILING`; fits a request of its stream.
    pub max_event_bytes: usize,
    /// Bytes that this source's undelivered events may take of the spool. `None`: all of it.
    pub spool_quota: Option<u64>,
    /// For kind `amplitude`.
    pub amplitude: AmplitudeConfig,
    /// For kind `mparticle`.
    pub mparticle: MParticleConfig,
    /// For kind `segment`.
    pub segment: SegmentConfig,
    /// What is done with its events beside finding a key.
    pub rules: RuleConfig,
}

/// What only a source of kind `amplitude` has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmplitudeConfig {
    /// Event types that become records; empty: all.
    pub events: BTreeSet<String>,
    /// Identify and group identify calls become records too. Default not.
    pub forward_identify: bool,
    /// Values of `user_properties` are written as texts. Default not.
    pub stringify_user_properties: bool,
}

/// What only a source of kind `mparticle` has: the switches of mParticle's own connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MParticleConfig {
    /// One record for a batch; else one for each of its events. Default yes.
    pub send_as_batch: bool,
    /// Kinds of events that are forwarded, of [`MParticleConfig::FORWARD`]. Default all but the changes.
    pub forward: BTreeSet<String>,
    /// What else a record holds, of [`MParticleConfig::INCLUDE`]. Default the first three.
    pub include: BTreeSet<String>,
    /// Names left out of `application_info`, `device_info` and `source_info`. Default none.
    pub exclude_metadata: BTreeSet<String>,
    /// The `unique_id` of every record. Default none.
    pub unique_id: Option<String>,
}

impl MParticleConfig {
    /// Words of `forward`.
    pub const FORWARD: [&str; 9] = [
        "lifecycle",
        "screen_views",
        "crash",
        "network_performance",
        "custom",
        "push",
        "commerce",
        "user_attribute_change",
        "user_identity_change",
    ];

    /// Words of `include`.
    pub const INCLUDE: [&str; 5] = ["location", "metadata", "empty_batches", "batch_location", "mp_deviceid"];
}

impl Default for MParticleConfig {
    fn default() -> Self {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            send_as_batch: true,
            forward: words(&Self::FORWARD[..7]),
            include: words(&Self::INCLUDE[..3]),
            exclude_metadata: BTreeSet::new(),
            unique_id: None,
        }
    }
}

/// Which destination's record a source of kind `segment` makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentProfile {
    /// Segment's "Amazon Kinesis": dates rewritten, key userId or else anonymousId, no screen calls.
    #[default]
    Classic,
    /// Segment's "AWS Kinesis (Actions)": strings as sent, key messageId, no alias calls.
    Actions,
    /// The same record as `Classic`, of all calls.
    Astronomer,
    /// The same record as `Classic`, of all calls.
    MetaRouter,
}

impl SegmentProfile {
    /// The profile of this word; what the schema offers are such words.
    pub(crate) fn of_word(word: &str) -> Self {
        match word {
            "actions" => Self::Actions,
            "astronomer" => Self::Astronomer,
            "metarouter" => Self::MetaRouter,
            _ => Self::Classic,
        }
    }
}

/// What only a source of kind `segment` has. What is `None` or empty is as the profile has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentConfig {
    /// Default `classic`.
    pub profile: SegmentProfile,
    /// Strings that are ISO dates are rewritten.
    pub facade: Option<bool>,
    /// The partition key is the messageId; with [`SegmentProfile::Actions`] it is in any case.
    pub use_message_id: bool,
    /// Calls that become records.
    pub types: Vec<String>,
    /// Name under which `integrations` turns this destination off.
    pub integration: Option<String>,
    /// Written into every record.
    pub project_id: Option<String>,
}

/// The part of `[[source]]` that says what is done with an event beside finding its key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleConfig {
    /// Types or conditions of which an event must meet one; empty: all are taken.
    pub allow: Vec<String>,
    /// Types or conditions of which an event must meet none.
    pub deny: Vec<String>,
    /// Fields to add, as `name=value`.
    pub add: Vec<String>,
    /// How long an event's id is remembered, so that a copy of it is not stored. Zero: not at all. At most 24 h.
    pub dedupe: Duration,
    /// The pointer to an event's id, for kinds whose door knows none.
    pub dedupe_id: Option<String>,
    /// Default `kinesis`.
    pub limits: SizeLimits,
    /// Default `json`.
    pub data_encoding: DataEncoding,
}

/// Whose limits on sizes and counts hold for what a vendor's SDK sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SizeLimits {
    /// What fits a Kinesis record and a request body is taken.
    #[default]
    Kinesis,
    /// The vendor's own.
    Vendor,
}

/// How a record's data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataEncoding {
    /// As it is.
    #[default]
    Json,
    /// As base64 text, so that a consumer decodes twice.
    Base64,
}
