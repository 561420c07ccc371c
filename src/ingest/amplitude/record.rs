//! One event as a row of Amplitude's Export API: the JSON object that its Kinesis destination writes.
//!
//! Place: made for one event at a time while its batch is filled. Every row has every column, in alphabetical order; a column
//! that only Amplitude could fill is null, or what the event itself says. Values are spliced as they were sent.
//!
//! *NOTHING-LEFT-OUT*: what an event says and no column takes (`revenue`, `price`, `idfv` and the like) stands in `data` under
//! its own name. Absent on purpose: what needs Amplitude's state, which `docs/amplitude.md` lists.

use crate::config::AmplitudeConfig;
use crate::host::Host;

use super::super::members::{Members, push_name, push_raw, push_text, text, uuid};
use super::{Event, TIME_MS_MAX};

/// How a column gets its value.
#[derive(Clone, Copy)]
enum Column {
    /// As sent, under one of these names; else null.
    Sent(&'static [&'static str]),
    /// An object as sent; else an empty one.
    Object,
    /// The properties of the user, as sent or as texts.
    UserProperties,
    /// The session as sent; else -1, as Amplitude marks what belongs to none.
    Session,
    /// Where it came from, unless the client left that to Amplitude.
    Address,
    UserId,
    DeviceId,
    EventType,
    /// When it was received.
    Now,
    /// By the client's clock.
    ClientEventTime,
    /// By ours, where the client's is wrong.
    EventTime,
    ClientUploadTime,
    /// A new one.
    Uuid,
    /// What no other column takes.
    Rest,
    Null,
}

use Column::{Null, Object, Sent};

/// All columns, in the order of their names.
const COLUMNS: [(&str, Column); 55] = [
    ("$insert_id", Sent(&["insert_id", "$insert_id"])),
    ("$insert_key", Null),
    ("$schema", Null),
    ("adid", Sent(&["adid"])),
    ("amplitude_attribution_ids", Null),
    ("amplitude_event_type", Null),
    ("amplitude_id", Null),
    ("app", Null),
    ("city", Sent(&["city"])),
    ("client_event_time", Column::ClientEventTime),
    ("client_upload_time", Column::ClientUploadTime),
    ("country", Sent(&["country"])),
    ("data", Column::Rest),
    ("data_type", Null),
    ("device_brand", Sent(&["device_brand"])),
    ("device_carrier", Sent(&["carrier", "device_carrier"])),
    ("device_family", Sent(&["device_family"])),
    ("device_id", Column::DeviceId),
    ("device_manufacturer", Sent(&["device_manufacturer"])),
    ("device_model", Sent(&["device_model"])),
    ("device_type", Sent(&["device_type"])),
    ("dma", Sent(&["dma"])),
    ("event_id", Sent(&["event_id"])),
    ("event_properties", Object),
    ("event_time", Column::EventTime),
    ("event_type", Column::EventType),
    ("global_user_properties", Sent(&["global_user_properties"])),
    ("group_properties", Object),
    ("groups", Object),
    ("idfa", Sent(&["idfa"])),
    ("ip_address", Column::Address),
    ("is_attribution_event", Null),
    ("language", Sent(&["language"])),
    ("library", Sent(&["library"])),
    ("location_lat", Sent(&["location_lat"])),
    ("location_lng", Sent(&["location_lng"])),
    ("os_name", Sent(&["os_name"])),
    ("os_version", Sent(&["os_version"])),
    ("partner_id", Sent(&["partner_id"])),
    ("paying", Null),
    ("plan", Object),
    ("platform", Sent(&["platform"])),
    ("processed_time", Column::Now),
    ("region", Sent(&["region"])),
    ("sample_rate", Null),
    ("server_received_time", Column::Now),
    ("server_upload_time", Column::Now),
    ("session_id", Column::Session),
    ("source_id", Sent(&["source_id"])),
    ("start_version", Sent(&["start_version"])),
    ("user_creation_time", Null),
    ("user_id", Column::UserId),
    ("user_properties", Column::UserProperties),
    ("uuid", Column::Uuid),
    ("version_name", Sent(&["app_version", "version_name"])),
];

/// Names of an event's members that columns take, beside the columns' own.
const TAKEN: [&str; 5] = ["time", "ip", "session_id", "user_id", "device_id"];

/// The most that a record has beyond its event: all names of columns, times, a UUID.
pub const OVERHEAD_BYTES: usize = 2048;

/// At least as many bytes as the record of `event` has.
#[must_use]
pub fn bytes_max(event: &str, config: &AmplitudeConfig) -> usize {
    // As a text, a value has twice as many at most: each quote and backslash in it gets a backslash.
    let widened = if config.stringify_user_properties { 2 * event.len() } else { event.len() };
    widened + OVERHEAD_BYTES
}

/// From this difference between the client's clock and ours on, its times are set right: Amplitude's rule.
const SKEW_US: i64 = 60_000_000;

/// What is known of a request, for all of its rows.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// When it was received, in microseconds since 1970.
    pub now_us: i64,
    /// When its client says that it sent it.
    pub client_upload_us: Option<i64>,
    /// For UUIDs.
    pub host: &'a Host,
}

/// Appends the record of `event` to `out`.
pub fn write(event: &Event<'_>, arrival: &Arrival<'_>, config: &AmplitudeConfig, out: &mut Vec<u8>) {
    let Arrival { now_us, client_upload_us, host } = *arrival;
    let client_upload_us = client_upload_us.unwrap_or(now_us);
    let client_event_us = event.time_ms.map_or(client_upload_us, |ms| ms * 1000);
    let members = &event.members;
    out.push(b'{');
    for (name, column) in COLUMNS {
        push_name(out, name);
        let sent = match column {
            Sent(names) => names.iter().find_map(|name| members.given(name)),
            Object => Some(members.given(name).filter(|value| value.starts_with('{')).unwrap_or("{}")),
            Column::Session => Some(members.given("session_id").unwrap_or("-1")),
            Column::Address => members.given("ip").filter(|ip| *ip != r#""$remote""#),
            Column::EventType => members.given("event_type"),
            Column::UserProperties => {
                let properties = members.given("user_properties").unwrap_or("{}");
                if config.stringify_user_properties {
                    push_stringified(out, properties);
                    continue;
                }
                Some(properties)
            }
            Column::UserId | Column::DeviceId => {
                let id = if matches!(column, Column::UserId) { &event.user_id } else { &event.device_id };
                match id {
                    // A number becomes a text, as the column has it.
                    Some(id) if !id.json.starts_with('"') => {
                        push_text(out, &id.text);
                        continue;
                    }
                    id => id.as_ref().map(|id| id.json),
                }
            }
            Column::Now | Column::ClientEventTime | Column::EventTime | Column::ClientUploadTime => {
                let us = match column {
                    Column::ClientEventTime => client_event_us,
                    Column::ClientUploadTime => client_upload_us,
                    Column::EventTime => event_time_us(client_event_us, client_upload_us, now_us),
                    _ => now_us,
                };
                push_time(out, us);
                continue;
            }
            Column::Uuid => {
                push_text(out, &uuid([host.entropy.next_u64(), host.entropy.next_u64()]));
                continue;
            }
            Column::Rest => {
                push_rest(out, members);
                continue;
            }
            Null => None,
        };
        push_raw(out, sent.unwrap_or("null"));
    }
    out.push(b'}');
}

/// The client's time, set right by the difference of the clocks where that is large.
fn event_time_us(client_event_us: i64, client_upload_us: i64, now_us: i64) -> i64 {
    let skew = now_us.saturating_sub(client_upload_us);
    if skew.abs() >= SKEW_US { client_event_us.saturating_add(skew) } else { client_event_us }
}

/// `"YYYY-MM-DD HH:MM:SS.ffffff"`, in UTC.
fn push_time(out: &mut Vec<u8>, us: i64) {
    // What was shifted out of the years of four digits stays at their ends.
    let moment = jiff::Timestamp::from_microsecond(us.clamp(0, TIME_MS_MAX * 1000)).unwrap_or_default();
    let at = moment.to_zoned(jiff::tz::TimeZone::UTC).datetime();
    let text = format!(
        "\"{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}\"",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.subsec_nanosecond() / 1000
    );
    out.extend_from_slice(text.as_bytes());
}

/// What no column takes, under its own names.
fn push_rest(out: &mut Vec<u8>, members: &Members<'_>) {
    out.push(b'{');
    for (name, value) in members.iter().filter(|(name, _)| !is_taken(name)) {
        push_name(out, name);
        push_raw(out, value);
    }
    out.push(b'}');
}

fn is_taken(name: &str) -> bool {
    let by_column = |(column, how): &(&str, Column)| match how {
        Sent(names) => names.contains(&name),
        Object | Column::UserProperties | Column::EventType => *column == name,
        _ => false,
    };
    TAKEN.contains(&name) || COLUMNS.iter().any(by_column)
}

/// Operations on user properties, whose operands are what is made text.
const OPERATIONS: [&str; 10] =
    ["$set", "$setOnce", "$add", "$append", "$prepend", "$unset", "$preInsert", "$postInsert", "$remove", "$clearAll"];

/// An object with its values as texts; null stays.
fn push_stringified(out: &mut Vec<u8>, object: &str) {
    let members = Members::of(object).unwrap_or_default();
    out.push(b'{');
    for (name, value) in members.iter() {
        push_name(out, name);
        match Members::of(value).filter(|_| OPERATIONS.contains(&name)) {
            Some(operands) => {
                out.push(b'{');
                for (name, value) in operands.iter() {
                    push_name(out, name);
                    push_as_text(out, value);
                }
                out.push(b'}');
            }
            None => push_as_text(out, value),
        }
    }
    out.push(b'}');
}

fn push_as_text(out: &mut Vec<u8>, value: &str) {
    if value == "null" || text(value).is_some() {
        push_raw(out, value);
    } else {
        let mut plain = Vec::with_capacity(value.len());
        push_raw(&mut plain, value);
        push_text(out, &String::from_utf8_lossy(&plain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn row_at(event: &str, now_us: i64, client_upload_us: Option<i64>, config: &AmplitudeConfig) -> Value {
        let host = Host::real();
        let mut out = Vec::new();
        let judged = Event::judge(event, 5).unwrap();
        write(&judged, &Arrival { now_us, client_upload_us, host: &host }, config, &mut out);
        assert!(out.len() <= bytes_max(event, config), "{} bytes of {}", out.len(), event.len());
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    fn row(event: &str) -> Value {
        row_at(event, 1_700_000_000_123_456, None, &AmplitudeConfig::default())
    }

    #[test]
    fn every_row_has_every_column_in_order_and_null_where_nothing_is_known() {
        assert!(COLUMNS.is_sorted_by(|a, b| a.0 < b.0));
        let mut out = Vec::new();
        let event = Event::judge(r#"{"event_type":"a","user_id":"user-1"}"#, 5).unwrap();
        let arrival = Arrival { now_us: 1_700_000_000_123_456, client_upload_us: None, host: &Host::real() };
        write(&event, &arrival, &AmplitudeConfig::default(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let members = Members::of(&text).unwrap();
        assert_eq!(members.iter().map(|(name, _)| name).collect::<Vec<_>>(), COLUMNS.map(|column| column.0));
        let known = [
            "client_event_time",
            "client_upload_time",
            "data",
            "event_properties",
            "event_time",
            "event_type",
            "group_properties",
            "groups",
            "plan",
            "processed_time",
            "server_received_time",
            "server_upload_time",
            "session_id",
            "user_id",
            "user_properties",
            "uuid",
        ];
        for (name, value) in members.iter() {
            assert_eq!(value != "null", known.contains(&name), "{name}: {value}");
        }
        assert_eq!(members.get("server_received_time"), Some(r#""2023-11-14 22:13:20.123456""#));
        assert_eq!((members.get("session_id"), members.get("data"), members.get("plan")), (Some("-1"), Some("{}"), Some("{}")));
    }

    #[test]
    fn renamed_members_land_in_their_columns_and_what_has_none_in_data() {
        let row = row(r#"{"event_type":"Söng","user_id":"user-1","device_id":"device-1","time":1396381378123,"insert_id":"i-1",
               "app_version":"2.1","carrier":"Verizon","ip":"10.1.2.3","session_id":9007199254740993,"event_id":7,
               "event_properties":{"load_time":0.8371,"n":[1,{"x":null}]},"user_properties":{"age":25},"groups":{"org":["a","b"]},
               "group_properties":{"x":1},"plan":{"branch":"main"},"language":"en-US","revenue":1.50,"price":4.99,"quantity":3,
               "productId":"p","idfv":"v","extra":{"a":1},"location_lat":37.77,"library":"sdk/1","$skip_user_properties_sync":true}"#);
        for (column, value) in [
            ("event_type", json!("Söng")),
            ("$insert_id", json!("i-1")),
            ("version_name", json!("2.1")),
            ("device_carrier", json!("Verizon")),
            ("ip_address", json!("10.1.2.3")),
            ("client_event_time", json!("2014-04-01 19:42:58.123000")),
            ("event_time", json!("2014-04-01 19:42:58.123000")),
            ("session_id", json!(9_007_199_254_740_993_u64)),
            ("event_properties", json!({"load_time": 0.8371, "n": [1, {"x": null}]})),
            ("user_properties", json!({"age": 25})),
            ("groups", json!({"org": ["a", "b"]})),
            ("plan", json!({"branch": "main"})),
            ("language", json!("en-US")),
            ("location_lat", json!(37.77)),
            ("library", json!("sdk/1")),
            (
                "data",
                json!({"revenue": 1.5, "price": 4.99, "quantity": 3, "productId": "p", "idfv": "v", "extra": {"a": 1},
                       "$skip_user_properties_sync": true}),
            ),
        ] {
            assert_eq!(row[column], value, "{column}");
        }
    }

    #[test]
    fn the_event_time_follows_our_clock_once_the_clients_is_off_by_a_minute() {
        let event = r#"{"event_type":"a","user_id":"user-1","time":1700000000000}"#;
        let upload = 1_700_000_010_000_000;
        let at = |now_us: i64| row_at(event, now_us, Some(upload), &AmplitudeConfig::default())["event_time"].clone();
        assert_eq!(at(upload + 59_999_999), json!("2023-11-14 22:13:20.000000"));
        assert_eq!(at(upload + 60_000_000), json!("2023-11-14 22:14:20.000000"));
        assert_eq!(at(upload - 59_999_999), json!("2023-11-14 22:13:20.000000"));
        assert_eq!(at(upload - 60_000_000), json!("2023-11-14 22:12:20.000000"));
        // Without a time the upload's is taken, and that is set right too.
        let row =
            row_at(r#"{"event_type":"a","user_id":"user-1"}"#, upload + 60_000_000, Some(upload), &AmplitudeConfig::default());
        assert_eq!(row["client_event_time"], json!("2023-11-14 22:13:30.000000"));
        assert_eq!((&row["event_time"], &row["client_upload_time"]), (&row["server_received_time"], &row["client_event_time"]));
    }

    #[test]
    fn a_client_that_leaves_its_address_to_the_service_gets_none_and_ids_are_texts() {
        let row = row(r#"{"event_type":"a","user_id":12345678901234567890,"device_id":"no","ip":"$remote"}"#);
        assert_eq!(
            (&row["ip_address"], &row["user_id"], &row["device_id"]),
            (&json!(null), &json!("12345678901234567890"), &json!(null))
        );
    }

    #[test]
    fn user_properties_become_texts_only_where_that_is_asked_for() {
        let config = AmplitudeConfig { stringify_user_properties: true, ..Default::default() };
        let event = r#"{"event_type":"$identify","user_id":"user-1","user_properties":
            {"$set":{"a":1.50,"b":true,"c":"x","d":[1,"\"\\"],"e":null},"plain":12345678901234567890,"o":{"$set":1}}}"#;
        assert_eq!(
            row_at(event, 0, None, &config)["user_properties"],
            json!({"$set": {"a": "1.50", "b": "true", "c": "x", "d": r#"[1,"\"\\"]"#, "e": null},
                   "plain": "12345678901234567890", "o": r#"{"$set":1}"#})
        );
        assert_eq!(row(event)["user_properties"]["$set"]["b"], json!(true));
    }

    #[test]
    fn half_a_surrogate_pair_and_long_numbers_pass_as_they_were_sent() {
        let event = r#"{"event_type":"a","user_id":"user-1","event_properties":{"\ud800":"x\udfff","n":123456789012345678901234567890.10}}"#;
        let judged = Event::judge(event, 5).unwrap();
        let mut out = Vec::new();
        let arrival = Arrival { now_us: 0, client_upload_us: None, host: &Host::real() };
        write(&judged, &arrival, &AmplitudeConfig::default(), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(r#""event_properties":{"\ud800":"x\udfff","n":123456789012345678901234567890.10}"#));
    }
}
