//! A batch as mParticle forwards it: the outgoing form of its JSON.
//!
//! Place: made for one record at a time while its batch in the spool is filled. A batch becomes one record, or each of its
//! events one, in a batch of its own. What is not named here passes as it was sent.
//!
//! What is made: `user_identities` is an array; `timestamp_unixtime_ms` (when it was received), `batch_id`, `message_id`,
//! `message_type`, `schema_version` and `source_info` are added, `unique_id` where the source has one; `ip` is left out. An event
//! gets `event_id`, `timestamp_unixtime_ms` and `event_start_unixtime_ms` where it has none. The switches of the source then
//! leave out what it is not to have.

use std::borrow::Cow;

use super::super::members::{Members, push_name, push_raw, push_text, push_uuid, text};
use super::{Batch, Identity};
use crate::config::MParticleConfig;
use crate::host::Host;

/// Members that are made here, whatever was sent under their names.
const MADE: [&str; 9] = [
    "events",
    "user_identities",
    "timestamp_unixtime_ms",
    "batch_id",
    "message_id",
    "message_type",
    "schema_version",
    "source_info",
    "unique_id",
];

/// The most that a record has beyond what was sent, but for its events and identities.
const OVERHEAD_BYTES: usize = 1024;

/// The most that an event gets.
const EVENT_OVERHEAD_BYTES: usize = 160;

/// The most that an identity gets: its names, and the time.
const IDENTITY_OVERHEAD_BYTES: usize = 112;

/// What is known of a request, for all of its records.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// When it was received, in milliseconds since 1970.
    pub now_ms: u64,
    /// For ids.
    pub host: &'a Host,
}

/// At least as many bytes as a record has: of all events, or of the one at `event`.
#[must_use]
pub fn bytes_max(batch: &Batch<'_>, event: Option<usize>, config: &MParticleConfig) -> usize {
    let events: usize = match event {
        Some(at) => batch.events[at].json.len() + EVENT_OVERHEAD_BYTES,
        None => batch.events.iter().map(|event| event.json.len() + EVENT_OVERHEAD_BYTES).sum(),
    };
    // As JSON, a character of the unique id has six bytes at most, or its four.
    let unique_id = config.unique_id.as_ref().map_or(0, |id| 6 * id.len());
    batch.rest_bytes + OVERHEAD_BYTES + unique_id + events + batch.identities.len() * IDENTITY_OVERHEAD_BYTES
}

/// Appends a record of all of a batch's events, or of the one at `event`, to `out`; gives its key, which is the batch's, or else
/// the `batch_id`.
pub fn write<'r>(
    batch: &'r Batch<'_>,
    event: Option<usize>,
    arrival: &Arrival<'_>,
    config: &MParticleConfig,
    out: &mut Vec<u8>,
) -> Cow<'r, str> {
    let Arrival { now_ms, host } = *arrival;
    let batch_id = positive(host);
    let metadata = config.include.contains("metadata");
    out.push(b'{');
    push_name(out, "events");
    out.push(b'[');
    let events = event.map_or(&batch.events[..], |at| &batch.events[at..=at]);
    for (at, event) in events.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        push_event(out, event.json, arrival, config);
    }
    out.push(b']');
    for (name, json) in batch.members.iter().filter(|(name, _)| !MADE.contains(name)) {
        match name {
            "ip" => {}
            "mp_deviceid" if !config.include.contains("mp_deviceid") => {}
            "application_info" | "device_info" => {
                if metadata {
                    push_name(out, name);
                    push_without(out, json, |name| config.exclude_metadata.contains(name));
                }
            }
            "context" => {
                push_name(out, name);
                push_without(out, json, |name| name == "location" && !config.include.contains("batch_location"));
            }
            _ => {
                push_name(out, name);
                push_raw(out, json);
            }
        }
    }
    if batch.members.given("user_identities").is_some() {
        push_name(out, "user_identities");
        push_identities(out, &batch.identities, now_ms);
    }
    if metadata {
        push_name(out, "source_info");
        push_source_info(out, batch, config);
    }
    push_name(out, "timestamp_unixtime_ms");
    push_number(out, now_ms);
    push_name(out, "batch_id");
    push_number(out, batch_id);
    push_name(out, "message_id");
    push_uuid(out, [host.entropy.next_u64(), host.entropy.next_u64()]);
    push_name(out, "message_type");
    push_text(out, "events");
    push_name(out, "schema_version");
    push_number(out, 2);
    if let Some(id) = &config.unique_id {
        push_name(out, "unique_id");
        push_text(out, id);
    }
    out.push(b'}');
    match batch.key() {
        key if key.is_empty() => Cow::Owned(batch_id.to_string()),
        key => key,
    }
}

/// An id as mParticle's are: a positive number of 63 bits.
fn positive(host: &Host) -> u64 {
    host.entropy.next_u64() >> 1
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(number.to_string().as_bytes());
}

/// An event with what it must have.
fn push_event(out: &mut Vec<u8>, json: &str, arrival: &Arrival<'_>, config: &MParticleConfig) {
    let event = Members::of(json).unwrap_or_default();
    let data = event.given("data").and_then(Members::of).unwrap_or_default();
    out.push(b'{');
    for (name, value) in event.iter().filter(|(name, _)| *name != "data") {
        push_name(out, name);
        push_raw(out, value);
    }
    push_name(out, "data");
    out.push(b'{');
    let added = ["event_id", "timestamp_unixtime_ms", "event_start_unixtime_ms"];
    let location = config.include.contains("location");
    for (name, value) in data.iter() {
        if (name == "location" && !location) || (added.contains(&name) && value == "null") {
            continue;
        }
        push_name(out, name);
        push_raw(out, value);
    }
    if data.given("event_id").is_none() {
        push_name(out, "event_id");
        push_number(out, positive(arrival.host));
    }
    let now = arrival.now_ms.to_string();
    let timestamp = data.given("timestamp_unixtime_ms").unwrap_or_else(|| {
        push_name(out, "timestamp_unixtime_ms");
        push_raw(out, &now);
        &now
    });
    if data.given("event_start_unixtime_ms").is_none() {
        push_name(out, "event_start_unixtime_ms");
        // A time is a number; of what else somebody sent there, the length would have no bound.
        push_raw(out, if timestamp.len() <= 24 { timestamp } else { &now });
    }
    out.extend_from_slice(b"}}");
}

/// An object without some of its members; what is none passes as it was sent.
fn push_without(out: &mut Vec<u8>, json: &str, leave_out: impl Fn(&str) -> bool) {
    match Members::of(json) {
        Some(members) if members.iter().any(|(name, _)| leave_out(name)) => {
            out.push(b'{');
            for (name, value) in members.iter().filter(|(name, _)| !leave_out(name)) {
                push_name(out, name);
                push_raw(out, value);
            }
            out.push(b'}');
        }
        _ => push_raw(out, json),
    }
}

fn push_identities(out: &mut Vec<u8>, identities: &[Identity<'_>], now_ms: u64) {
    out.push(b'[');
    for (at, identity) in identities.iter().enumerate() {
        out.extend_from_slice(if at > 0 { b",{" } else { b"{" });
        push_name(out, "identity_type");
        push_text(out, &identity.kind);
        push_name(out, "identity");
        if text(identity.json).is_some() {
            push_raw(out, identity.json);
        } else {
            push_text(out, identity.json);
        }
        push_name(out, "timestamp_unixtime_ms");
        push_number(out, now_ms);
        out.push(b'}');
    }
    out.push(b']');
}

/// Where it came from. What a client says of itself goes before what is taken for it.
fn push_source_info(out: &mut Vec<u8>, batch: &Batch<'_>, config: &MParticleConfig) {
    let sent = batch.members.given("source_info").and_then(Members::of).unwrap_or_default();
    let taken = [
        ("channel", r#""server_to_server""#),
        ("partner", "null"),
        ("replay_request_id", "null"),
        ("replay_job_id", "null"),
        ("is_historical", "false"),
    ];
    let kept = |name: &str| !config.exclude_metadata.contains(name);
    out.push(b'{');
    for (name, value) in taken.iter().filter(|(name, _)| kept(name)) {
        push_name(out, name);
        push_raw(out, sent.given(name).unwrap_or(value));
    }
    for (name, value) in sent.iter().filter(|(name, _)| kept(name) && taken.iter().all(|(own, _)| own != name)) {
        push_name(out, name);
        push_raw(out, value);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: u64 = 1_700_000_000_123;

    fn rows(batch: &str, config: &MParticleConfig) -> Vec<(String, Value)> {
        let batch = Batch::judge(batch, config, 100).unwrap();
        let host = Host::real();
        let arrival = Arrival { now_ms: NOW, host: &host };
        let records = batch.records(config);
        let parts = (0..records).map(|at| batch.is_apart(config).then_some(at));
        parts
            .map(|part| {
                let mut out = Vec::new();
                let key = write(&batch, part, &arrival, config, &mut out).into_owned();
                assert!(out.len() <= bytes_max(&batch, part, config), "{} bytes", out.len());
                assert!(!out.contains(&b'\n'));
                (key, serde_json::from_slice(&out).unwrap())
            })
            .collect()
    }

    fn row(batch: &str) -> Value {
        rows(batch, &MParticleConfig::default()).remove(0).1
    }

    const SENT: &str = r#"{
        "events":[{"event_type":"custom_event","data":{"event_name":"Vidéo","custom_attributes":{"n":1.50},"location":{"latitude":1}}},
                  {"event_type":"screen_view","data":{"event_id":-7,"timestamp_unixtime_ms":1402521613976,"screen_name":"s"}}],
        "device_info":{"brand":"b","ios_idfv":"idfv-1"},"application_info":{"package":"p","application_name":"a"},
        "user_attributes":{"age":"42","list":["a",null]},"deleted_user_attributes":["gone"],
        "user_identities":{"customerid":"c-1","email":"ä@example.com","facebook":null,"other":12345678901234567890},
        "environment":"production","context":{"data_plan":{"plan_id":"p"},"location":{"latitude":2}},
        "mpid":7346244611012968789,"ip":"172.217.12.142","source_request_id":"r-1","mp_deviceid":"d-1","consent_state":{"gdpr":{}}
    }"#;

    #[test]
    fn a_batch_gets_the_outgoing_form_and_what_is_not_named_passes() {
        let row = row(SENT);
        for (name, value) in [
            ("user_attributes", json!({"age": "42", "list": ["a", null]})),
            ("deleted_user_attributes", json!(["gone"])),
            ("environment", json!("production")),
            ("context", json!({"data_plan": {"plan_id": "p"}})),
            ("mpid", json!(7_346_244_611_012_968_789_u64)),
            ("source_request_id", json!("r-1")),
            ("consent_state", json!({"gdpr": {}})),
            ("device_info", json!({"brand": "b", "ios_idfv": "idfv-1"})),
            ("timestamp_unixtime_ms", json!(NOW)),
            ("schema_version", json!(2)),
            ("message_type", json!("events")),
            (
                "source_info",
                json!({"channel": "server_to_server", "partner": null, "replay_request_id": null, "replay_job_id": null,
                       "is_historical": false}),
            ),
            (
                "user_identities",
                json!([
                    {"identity_type": "customer_id", "identity": "c-1", "timestamp_unixtime_ms": NOW},
                    {"identity_type": "email", "identity": "ä@example.com", "timestamp_unixtime_ms": NOW},
                    {"identity_type": "other", "identity": "12345678901234567890", "timestamp_unixtime_ms": NOW},
                ]),
            ),
        ] {
            assert_eq!(row[name], value, "{name}");
        }
        for name in ["ip", "mp_deviceid", "unique_id"] {
            assert!(row.get(name).is_none(), "{name}");
        }
        assert!(row["batch_id"].as_i64().unwrap() > 0);
        assert_eq!(row["message_id"].as_str().unwrap().len(), 36);
    }

    #[test]
    fn events_get_an_id_and_times_where_they_have_none() {
        let row = row(SENT);
        let (first, second) = (&row["events"][0], &row["events"][1]);
        assert_eq!(first["event_type"], "custom_event");
        assert!(first["data"]["event_id"].as_i64().unwrap() > 0);
        assert_eq!(first["data"]["timestamp_unixtime_ms"], json!(NOW));
        assert_eq!(first["data"]["event_start_unixtime_ms"], json!(NOW));
        assert_eq!(first["data"]["custom_attributes"], json!({"n": 1.5}));
        assert_eq!(first["data"]["location"], json!({"latitude": 1}));
        assert_eq!(second["data"]["event_id"], json!(-7));
        assert_eq!(second["data"]["event_start_unixtime_ms"], json!(1_402_521_613_976_u64));
        assert_eq!(second["data"].as_object().unwrap().len(), 4);
    }

    #[test]
    fn one_record_an_event_holds_a_batch_of_one() {
        let config = MParticleConfig { send_as_batch: false, ..Default::default() };
        let rows = rows(SENT, &config);
        assert_eq!(rows.len(), 2);
        for ((key, row), name) in rows.iter().zip(["custom_event", "screen_view"]) {
            assert_eq!((key.as_str(), row["events"].as_array().unwrap().len()), ("7346244611012968789", 1));
            assert_eq!((&row["events"][0]["event_type"], &row["source_request_id"]), (&json!(name), &json!("r-1")));
        }
        assert_ne!(rows[0].1["batch_id"], rows[1].1["batch_id"]);
    }

    #[test]
    fn switches_leave_out_what_they_are_about() {
        let with = |include: &[&str], exclude: &[&str]| MParticleConfig {
            include: include.iter().map(|word| (*word).to_owned()).collect(),
            exclude_metadata: exclude.iter().map(|word| (*word).to_owned()).collect(),
            unique_id: Some("app-1".into()),
            ..Default::default()
        };
        let bare = rows(SENT, &with(&[], &[])).remove(0).1;
        for name in ["application_info", "device_info", "source_info"] {
            assert!(bare.get(name).is_none(), "{name}");
        }
        assert!(bare["events"][0]["data"].get("location").is_none());
        assert_eq!(bare["unique_id"], "app-1");
        let all = rows(SENT, &with(&MParticleConfig::INCLUDE, &["brand", "partner", "package"])).remove(0).1;
        assert_eq!((&all["mp_deviceid"], &all["context"]["location"]), (&json!("d-1"), &json!({"latitude": 2})));
        assert_eq!(
            (&all["device_info"], &all["application_info"]),
            (&json!({"ios_idfv": "idfv-1"}), &json!({"application_name": "a"}))
        );
        assert!(all["source_info"].get("partner").is_none() && all["source_info"].get("channel").is_some());
    }

    #[test]
    fn what_a_client_says_of_its_source_stays_and_made_members_are_ours() {
        let row = row(
            r#"{"environment":"development","source_info":{"channel":"partner","partner":"acme","x":1},"batch_id":1,"schema_version":1,
                "timestamp_unixtime_ms":1,"message_id":"m"}"#,
        );
        assert_eq!(row["source_info"]["channel"], "partner");
        assert_eq!((&row["source_info"]["partner"], &row["source_info"]["x"]), (&json!("acme"), &json!(1)));
        assert_eq!((&row["schema_version"], &row["timestamp_unixtime_ms"]), (&json!(2), &json!(NOW)));
        assert_ne!(row["batch_id"], json!(1));
        assert_eq!(row["events"], json!([]));
        assert!(row.get("user_identities").is_none());
    }

    #[test]
    fn a_batch_of_nobody_is_keyed_by_its_id() {
        let rows = rows(r#"{"environment":"production"}"#, &MParticleConfig::default());
        assert_eq!(rows[0].0, rows[0].1["batch_id"].to_string());
    }
}
