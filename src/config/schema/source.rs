//! The keys of `[[source]]`: those of every kind of source, then those of one kind each.
//!
//! Place: part of the schema's list. Keys that mean something for one kind only begin their sentence with it; which they are
//! stands in `check.rs`, which refuses them elsewhere.

use std::time::Duration;

use super::{Fallback, Key, Kind, POINTER, Rule, STREAM_NAME, is_name, key};
use crate::ingest::rules;
use crate::ingest::segment::Call;
use crate::limits;

static SOURCE_NAME: Rule =
    Rule { allowed: "1 to 128 of a-z, A-Z, 0-9, '_', '.', '-' (it stands in /ingest/NAME and in source=NAME)", holds: is_name };
static KEY_ENTRY: Rule = Rule {
    allowed: "a JSON pointer (RFC 6901) such as \"/userId\" or \"/context/traits/id\" (`~` is written ~0 and `/` in a name ~1), a \
              template of pointers such as \"{/context/site}-{/userId}\", or \"random\"",
    holds: rules::key::is_entry,
};
static CONDITION: Rule = Rule {
    allowed: "\"/pointer=text\" (that string, number or boolean is there), \"/pointer\" (a value other than null is there), or a \
              vendor's type of event such as \"Signed Up\"",
    holds: rules::filter::is_entry,
};
static FIELD: Rule = Rule {
    allowed: "\"name=value\", the value a text or one of {agent}, {host}, {received_at}, {source}",
    holds: rules::add::is_entry,
};
static EVENT_TYPE: Rule = Rule { allowed: "an event type, such as \"Song Played\"", holds: |name| !name.is_empty() };
static FORWARD: Rule = Rule {
    allowed: "\"lifecycle\", \"screen_views\", \"crash\", \"network_performance\", \"custom\", \"push\", \"commerce\", \
              \"user_attribute_change\" or \"user_identity_change\"",
    holds: |word| crate::config::MParticleConfig::FORWARD.contains(&word),
};
static INCLUDE: Rule = Rule {
    allowed: "\"location\", \"metadata\", \"empty_batches\", \"batch_location\" or \"mp_deviceid\"",
    holds: |word| crate::config::MParticleConfig::INCLUDE.contains(&word),
};
static MEMBER: Rule = Rule { allowed: "1 to 256 characters", holds: |name| (1..=256).contains(&name.chars().count()) };
static UNIQUE_ID: Rule = Rule { allowed: "at most 256 characters", holds: |id| id.chars().count() <= 256 };
static CALL: Rule = Rule {
    allowed: "one of \"track\", \"identify\", \"page\", \"screen\", \"group\", \"alias\"",
    holds: |word| Call::of_word(word).is_some(),
};
static SHORT_TEXT: Rule = Rule { allowed: "at most 256 characters", holds: |text| text.chars().count() <= 256 };
static WRITE_KEY: Rule = Rule {
    allowed: "1 to 256 visible ASCII characters without a space",
    holds: |key| (1..=256).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()),
};
static ACCESS_KEY: Rule = Rule {
    allowed: "ID:SECRET with an id of 1 to 128 of a-z, A-Z, 0-9, '_', '-' and a secret of 1 to 256 visible ASCII characters",
    holds: |pair| {
        pair.split_once(':').is_some_and(|(id, secret)| {
            (1..=128).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
                && (WRITE_KEY.holds)(secret)
        })
    },
};

pub(super) static SOURCE: [Key; 32] = [
    key("name", Kind::Text(&SOURCE_NAME), Fallback::Required, "Its name: /ingest/NAME over HTTP, source=NAME on the socket."),
    key(
        "kind",
        Kind::Choice { offered: &["events", "segment", "amplitude", "mparticle", "kinesis"] },
        Fallback::Toml("\"events\""),
        "What it speaks: \"events\", any bytes, one event a line, frame or JSON value; \"segment\" (Segment, Astronomer, MetaRouter, \
         RudderStack, Customer.io), \"amplitude\" and \"mparticle\", the API that SDKs of these vendors call; \"kinesis\", the \
         Kinesis API itself.",
    ),
    key("stream", Kind::Text(&STREAM_NAME), Fallback::Unset, "The stream its events go to; with one stream it may be left out."),
    key(
        "partition_key",
        Kind::Texts(&KEY_ENTRY),
        Fallback::Toml("[\"/userId\", \"/anonymousId\"]"),
        "Where an event's key is found: the first pointer that leads to a non-empty string or a number, the first template all of \
         whose pointers do, or \"random\"; for vendors' kinds not set: the vendor's own rule.",
    ),
    key(
        "partition_key_fallback",
        Kind::Choice { offered: &["random", "reject"] },
        Fallback::Toml("\"random\""),
        "What happens when no pointer yields a key: a random one, or the event is refused.",
    ),
    key(
        "keys",
        Kind::Secrets(&WRITE_KEY),
        Fallback::Toml("[]"),
        "Write keys that open this source; none: open to whoever reaches the listener.",
    ),
    key("keys_file", Kind::SecretsFile { of: "keys" }, Fallback::Unset, "A file with one write key a line, instead of `keys`."),
    key(
        "access_keys",
        Kind::Secrets(&ACCESS_KEY),
        Fallback::Toml("[]"),
        "For kind \"kinesis\": access keys, as ID:SECRET, one of which must have signed a request; none: signatures are not looked at.",
    ),
    key(
        "access_keys_file",
        Kind::SecretsFile { of: "access_keys" },
        Fallback::Unset,
        "A file with one ID:SECRET a line, instead of `access_keys`.",
    ),
    key(
        "max_event_bytes",
        Kind::Bytes { min: 1, max: limits::EVENT_BYTES_CEILING as u64 },
        Fallback::Toml("\"1022KiB\""),
        "The largest event taken; the default is what fits any Kinesis record with the longest key. More is taken while Kinesis says \
         that the stream takes such records (MaxRecordSizeInKiB), and needs a request_bytes_max that holds it.",
    ),
    key(
        "spool_quota",
        Kind::Share { of: "spool.max_bytes" },
        Fallback::Unset,
        "The most that undelivered events of this source may take of its stream's spool; at it, on_full holds for this source \
         alone. Not set: all of it.",
    ),
    key(
        "events",
        Kind::Texts(&EVENT_TYPE),
        Fallback::Toml("[]"),
        "With kind = \"amplitude\": the event types that become records; none listed: all. The others are answered as taken.",
    ),
    key(
        "forward_identify",
        Kind::Bool,
        Fallback::Toml("false"),
        "With kind = \"amplitude\": calls of identify and group identify become records too.",
    ),
    key(
        "stringify_user_properties",
        Kind::Bool,
        Fallback::Toml("false"),
        "With kind = \"amplitude\": values of user_properties are written as texts.",
    ),
    key(
        "send_as_batch",
        Kind::Bool,
        Fallback::Toml("true"),
        "With kind = \"mparticle\": a batch becomes one record; with false each of its events does, in a batch of its own.",
    ),
    key(
        "forward",
        Kind::Texts(&FORWARD),
        Fallback::Toml(
            "[\"lifecycle\", \"screen_views\", \"crash\", \"network_performance\", \"custom\", \"push\", \"commerce\"]",
        ),
        "With kind = \"mparticle\": the kinds of events that are forwarded; \"user_attribute_change\" and \"user_identity_change\" \
         are possible too, and what is of no kind always is.",
    ),
    key(
        "include",
        Kind::Texts(&INCLUDE),
        Fallback::Toml("[\"location\", \"metadata\", \"empty_batches\"]"),
        "With kind = \"mparticle\": what records hold besides; \"batch_location\" and \"mp_deviceid\" are possible too.",
    ),
    key(
        "exclude_metadata",
        Kind::Texts(&MEMBER),
        Fallback::Toml("[]"),
        "With kind = \"mparticle\": names that are left out of application_info, device_info and source_info.",
    ),
    key(
        "unique_id",
        Kind::Text(&UNIQUE_ID),
        Fallback::Toml("\"\""),
        "With kind = \"mparticle\": the unique_id that every record gets; \"\": none.",
    ),
    key(
        "profile",
        Kind::Choice { offered: &["classic", "actions", "astronomer", "metarouter"] },
        Fallback::Toml("\"classic\""),
        "With kind = \"segment\": which destination's record is written, Segment's \"Amazon Kinesis\" (\"classic\"), its newer \"AWS \
         Kinesis\" (\"actions\"), or that of the brand; the four keys below default to what it does.",
    ),
    key(
        "payload",
        Kind::Choice { offered: &["profile", "facade", "verbatim"] },
        Fallback::Toml("\"profile\""),
        "With kind = \"segment\": \"facade\" writes strings that are ISO dates as Segment's library does, in UTC with milliseconds; \
         \"verbatim\" leaves them; \"profile\" is \"verbatim\" for \"actions\", else \"facade\".",
    ),
    key(
        "use_message_id",
        Kind::Bool,
        Fallback::Toml("false"),
        "With kind = \"segment\": the partition key is the messageId, not userId or else anonymousId; with \"actions\" it always is.",
    ),
    key(
        "types",
        Kind::Texts(&CALL),
        Fallback::Toml("[]"),
        "With kind = \"segment\": the calls that become records, the others being answered as taken; none listed: \"classic\" has all \
         but screen, \"actions\" all but alias, the others all.",
    ),
    key(
        "integration",
        Kind::Text(&SHORT_TEXT),
        Fallback::Toml("\"\""),
        "With kind = \"segment\": the name under which a message's `integrations` turns this destination off; \"\" is \"AWS Kinesis \
         (Actions)\" for \"actions\", else \"Amazon Kinesis\".",
    ),
    key(
        "project_id",
        Kind::Text(&SHORT_TEXT),
        Fallback::Toml("\"\""),
        "With kind = \"segment\": written into every record as projectId, which names the source there; \"\": none.",
    ),
    key(
        "allow",
        Kind::Texts(&CONDITION),
        Fallback::Toml("[]"),
        "Events that meet one of these are stored, all others are answered as success, counted and not stored; none: all are.",
    ),
    key(
        "deny",
        Kind::Texts(&CONDITION),
        Fallback::Toml("[]"),
        "Events that meet one of these are answered as success, counted and not stored; goes before `allow`.",
    ),
    key(
        "add",
        Kind::Texts(&FIELD),
        Fallback::Toml("[]"),
        "Fields put at the end of an event that is a JSON object and has no member of that name.",
    ),
    key(
        "dedupe",
        Kind::TimeOrOff { min: Duration::from_secs(1), max: Duration::from_secs(86_400) },
        Fallback::Unset,
        "How long an event's id is remembered, also over a restart, so that a copy of it is answered as success, counted and not \
         stored; not set: \"10m\" for segment, amplitude and mparticle, \"off\" for events and kinesis.",
    ),
    key(
        "dedupe_id",
        Kind::Text(&POINTER),
        Fallback::Unset,
        "Where the id for `dedupe` is found in an event, for kinds events and kinesis; an event without one is never a copy.",
    ),
    key(
        "limits",
        Kind::Choice { offered: &["kinesis", "vendor"] },
        Fallback::Toml("\"kinesis\""),
        "Sizes and counts that a vendor's door enforces: \"kinesis\", what fits a record and a body of 16 MiB; \"vendor\", the \
         vendor's own.",
    ),
    key(
        "data_encoding",
        Kind::Choice { offered: &["json", "base64"] },
        Fallback::Toml("\"json\""),
        "How a record's data is written: \"json\", as it is; \"base64\", as base64 text, for consumers that decode twice.",
    ),
];
