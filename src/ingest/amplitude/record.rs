//! One event as a row of Amplitude's Export API: the JSON object that its Kinesis destination writes.
//!
//! Place: made for one event at a time while its batch is filled. Every row has every column, in alphabetical order; a column
//! that only Amplitude could fill is null, or what the event itself says. Values are spliced as they were sent.
//!
//! *NOTHING-LEFT-OUT*: what an event says and no column takes (`revenue`, `price`, `idfv` and the like) stands in `data` under
//! its own name. Absent on purpose: what needs Amplitude's state, which `docs/amplitude.md` lists.

use crate::config::AmplitudeConfig;
use crate::host::Host;

use super::super::members::{Members, push_name, push_raw, push_text, push_uuid, text};
use super::field::Field;
use super::{Event, TIME_MS_MAX};

/// How a column gets its value.
#[derive(Clone, Copy)]
enum Column {
    /// As sent, else null.
    Sent(Field),
    /// The first of two as sent, or the second; else null.
    Either(Field, Field),
    /// An object as sent; else an empty one.
    Object(Field),
    /// The properties of the user, as sent or as texts.
    UserProperties,
    /// The session as sent; else -1, as Amplitude marks what belongs to none.
    Session,
    /// Where it came from, unless the client left that to Amplitude.
    Address,
    UserId,
    DeviceId,
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

use Column::{
    Address, ClientEventTime, ClientUploadTime, DeviceId, Either, EventTime, Now, Null, Object, Rest, Sent, Session, UserId,
    UserProperties, Uuid,
};

/// Columns, each with its name as a row has it.
macro_rules! columns {
    ($($name:literal = $column:expr,)*) => {
        [$((concat!("\"", $name, "\":"), $column)),*]
    };
}

/// All columns, in the order of their names.
const COLUMNS: [(&str, Column); 55] = columns! {
    "$insert_id" = Either(Field::InsertId, Field::InsertIdOfExport),
    "$insert_key" = Null,
    "$schema" = Null,
    "adid" = Sent(Field::Adid),
    "amplitude_attribution_ids" = Null,
    "amplitude_event_type" = Null,
    "amplitude_id" = Null,
    "app" = Null,
    "city" = Sent(Field::City),
    "client_event_time" = ClientEventTime,
    "client_upload_time" = ClientUploadTime,
    "country" = Sent(Field::Country),
    "data" = Rest,
    "data_type" = Null,
    "device_brand" = Sent(Field::DeviceBrand),
    "device_carrier" = Either(Field::Carrier, Field::DeviceCarrier),
    "device_family" = Sent(Field::DeviceFamily),
    "device_id" = DeviceId,
    "device_manufacturer" = Sent(Field::DeviceManufacturer),
    "device_model" = Sent(Field::DeviceModel),
    "device_type" = Sent(Field::DeviceType),
    "dma" = Sent(Field::Dma),
    "event_id" = Sent(Field::EventId),
    "event_properties" = Object(Field::EventProperties),
    "event_time" = EventTime,
    "event_type" = Sent(Field::EventType),
    "global_user_properties" = Sent(Field::GlobalUserProperties),
    "group_properties" = Object(Field::GroupProperties),
    "groups" = Object(Field::Groups),
    "idfa" = Sent(Field::Idfa),
    "ip_address" = Address,
    "is_attribution_event" = Null,
    "language" = Sent(Field::Language),
    "library" = Sent(Field::Library),
    "location_lat" = Sent(Field::LocationLat),
    "location_lng" = Sent(Field::LocationLng),
    "os_name" = Sent(Field::OsName),
    "os_version" = Sent(Field::OsVersion),
    "partner_id" = Sent(Field::PartnerId),
    "paying" = Null,
    "plan" = Object(Field::Plan),
    "platform" = Sent(Field::Platform),
    "processed_time" = Now,
    "region" = Sent(Field::Region),
    "sample_rate" = Null,
    "server_received_time" = Now,
    "server_upload_time" = Now,
    "session_id" = Session,
    "source_id" = Sent(Field::SourceId),
    "start_version" = Sent(Field::StartVersion),
    "user_creation_time" = Null,
    "user_id" = UserId,
    "user_properties" = UserProperties,
    "uuid" = Uuid,
    "version_name" = Either(Field::AppVersion, Field::VersionName),
};

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
    now: Moment,
    client_upload: Moment,
    host: &'a Host,
}

impl<'a> Arrival<'a> {
    /// Received at `now_us`, in microseconds since 1970; `client_upload_us`: when its client says that it sent it. `host` gives
    /// UUIDs.
    #[must_use]
    pub fn new(now_us: i64, client_upload_us: Option<i64>, host: &'a Host) -> Self {
        Self { now: Moment::of(now_us), client_upload: Moment::of(client_upload_us.unwrap_or(now_us)), host }
    }
}

/// A time, and how a row has it: `"YYYY-MM-DD HH:MM:SS.ffffff"`, in UTC.
#[derive(Clone, Copy, Debug)]
struct Moment {
    us: i64,
    json: [u8; 28],
}

impl Moment {
    fn of(us: i64) -> Self {
        // What was shifted out of the years of four digits stays at their ends.
        let moment = jiff::Timestamp::from_microsecond(us.clamp(0, TIME_MS_MAX * 1000)).unwrap_or_default();
        let at = jiff::tz::Offset::UTC.to_datetime(moment);
        let mut json = *b"\"0000-00-00 00:00:00.000000\"";
        for (number, place) in [
            (i32::from(at.year()), 1..5),
            (i32::from(at.month()), 6..8),
            (i32::from(at.day()), 9..11),
            (i32::from(at.hour()), 12..14),
            (i32::from(at.minute()), 15..17),
            (i32::from(at.second()), 18..20),
            (at.subsec_nanosecond() / 1000, 21..27),
        ] {
            let mut rest = number;
            for digit in json[place].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        Self { us, json }
    }
}

/// Appends the record of `event` to `out`.
pub fn write(event: &Event<'_>, arrival: &Arrival<'_>, config: &AmplitudeConfig, out: &mut Vec<u8>) {
    let Arrival { now, client_upload, host } = arrival;
    let client_event = event.time_ms.map_or(*client_upload, |ms| Moment::of(ms * 1000));
    let event_us = event_time_us(client_event.us, client_upload.us, now.us);
    let event_time = if event_us == client_event.us { client_event } else { Moment::of(event_us) };
    let sent = event.sent.all_given();
    let of = |field: Field| sent[field as usize];
    out.reserve(event.sent.json.len() + OVERHEAD_BYTES);
    let mut before = b'{';
    for (name, column) in &COLUMNS {
        out.push(before);
        before = b',';
        out.extend_from_slice(name.as_bytes());
        let value = match *column {
            Null => None,
            Sent(field) => of(field),
            Either(field, other) => of(field).or_else(|| of(other)),
            Object(field) => Some(of(field).filter(|value| value.starts_with('{')).unwrap_or("{}")),
            Session => Some(of(Field::SessionId).unwrap_or("-1")),
            Address => of(Field::Ip).filter(|ip| *ip != r#""$remote""#),
            UserProperties => {
                let properties = of(Field::UserProperties).unwrap_or("{}");
                if config.stringify_user_properties {
                    push_stringified(out, properties);
                    continue;
                }
                Some(properties)
            }
            UserId | DeviceId => {
                let id = if matches!(column, UserId) { &event.user_id } else { &event.device_id };
                match id {
                    // A number becomes a text, as the column has it.
                    Some(id) if !id.json.starts_with('"') => {
                        push_text(out, &id.text);
                        continue;
                    }
                    id => id.as_ref().map(|id| id.json),
                }
            }
            Now | ClientEventTime | EventTime | ClientUploadTime => {
                let moment = match column {
                    ClientEventTime => &client_event,
                    ClientUploadTime => client_upload,
                    EventTime => &event_time,
                    _ => now,
                };
                out.extend_from_slice(&moment.json);
                continue;
            }
            Uuid => {
                push_uuid(out, [host.entropy.next_u64(), host.entropy.next_u64()]);
                continue;
            }
            Rest if event.sent.has_rest => {
                push_rest(out, event.sent.json);
                continue;
            }
            Rest => Some("{}"),
        };
        match value {
            None => out.extend_from_slice(b"null"),
            Some(value) => push_raw(out, value),
        }
    }
    out.push(b'}');
}

/// The client's time, set right by the difference of the clocks where that is large.
fn event_time_us(client_event_us: i64, client_upload_us: i64, now_us: i64) -> i64 {
    let skew = now_us.saturating_sub(client_upload_us);
    if skew.abs() >= SKEW_US { client_event_us.saturating_add(skew) } else { client_event_us }
}

/// What no column takes, under its own names.
fn push_rest(out: &mut Vec<u8>, event: &str) {
    let members = Members::of(event).unwrap_or_default();
    out.push(b'{');
    for (name, value) in members.iter().filter(|(name, _)| Field::of(name.as_bytes()).is_none()) {
        push_name(out, name);
        push_raw(out, value);
    }
    out.push(b'}');
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
    use super::super::Upload;
    use super::*;
    use serde_json::{Value, json};

    fn text_at(event: &str, now_us: i64, client_upload_us: Option<i64>, config: &AmplitudeConfig) -> String {
        let host = Host::real();
        let mut out = Vec::new();
        let body = format!(r#"{{"api_key":"k","events":[{event}]}}"#);
        let upload = Upload::read(body.as_bytes(), 1).unwrap();
        let judged = Event::judge(upload.sent().next().unwrap(), 5).unwrap();
        write(&judged, &Arrival::new(now_us, client_upload_us, &host), config, &mut out);
        assert!(out.len() <= bytes_max(event, config), "{} bytes of {}", out.len(), event.len());
        assert!(!out.contains(&b'\n'));
        String::from_utf8(out).unwrap()
    }

    fn row_at(event: &str, now_us: i64, client_upload_us: Option<i64>, config: &AmplitudeConfig) -> Value {
        serde_json::from_str(&text_at(event, now_us, client_upload_us, config)).unwrap()
    }

    fn row(event: &str) -> Value {
        row_at(event, 1_700_000_000_123_456, None, &AmplitudeConfig::default())
    }

    #[test]
    fn every_row_has_every_column_in_order_and_null_where_nothing_is_known() {
        assert!(COLUMNS.is_sorted_by(|a, b| a.0 < b.0));
        let event = r#"{"event_type":"a","user_id":"user-1"}"#;
        let text = text_at(event, 1_700_000_000_123_456, None, &AmplitudeConfig::default());
        let members = Members::of(&text).unwrap();
        let names: Vec<_> = members.iter().map(|(name, _)| format!("\"{name}\":")).collect();
        assert_eq!(names, COLUMNS.map(|column| column.0));
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
        let text = text_at(event, 0, None, &AmplitudeConfig::default());
        assert!(text.contains(r#""event_properties":{"\ud800":"x\udfff","n":123456789012345678901234567890.10}"#));
    }

    #[test]
    fn of_members_with_one_name_the_last_counts_however_it_is_written() {
        let row = row(
            r#"{"event_type":"a","user_id":"user-1","city":"first","x":1,"\u0063ity":"last","region":"r","region":null,"x":2,
                "$insert_id":"export","event_properties":{"a":1},"event_properties":{"b":2}}"#,
        );
        assert_eq!((&row["city"], &row["region"], &row["$insert_id"]), (&json!("last"), &json!(null), &json!("export")));
        assert_eq!((&row["event_properties"], &row["data"]), (&json!({"b": 2}), &json!({"x": 2})));
    }

    #[test]
    fn every_field_is_found_by_its_name_and_lands_in_a_column() {
        for (name, how) in &COLUMNS {
            if let Sent(_) | Object(_) = how {
                let name = name.trim_end_matches(':').trim_matches('"');
                let own = json!({"of": name});
                let mut event = json!({"event_type": "a", "user_id": "user-1"});
                if name != "event_type" {
                    event[name] = own.clone();
                    let row = row(&event.to_string());
                    assert_eq!((&row[name], &row["data"]), (&own, &json!({})), "{name}");
                }
            }
        }
    }
}
