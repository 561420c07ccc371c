//! Records and keys, by claim. The judge of the facade's rules, Segment's own library, is asked in `tests/interop`.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::{SegmentConfig, SegmentProfile};
use crate::host::{Clock, Entropy, Host};
use crate::ingest::segment::Path;

#[derive(Debug)]
struct Fixed;

/// 2024-02-29T12:00:00.000Z.
const NOW_MS: u64 = 1_709_208_000_000;
const NOW: &str = "2024-02-29T12:00:00.000Z";

impl Clock for Fixed {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn wall_ms(&self) -> u64 {
        NOW_MS
    }
}

impl Entropy for Fixed {
    fn next_u64(&self) -> u64 {
        0xfedc_ba98_7654_3210
    }
}

fn rules(config: SegmentConfig) -> Rules {
    Rules::new(&config, &Host { clock: Arc::new(Fixed), entropy: Arc::new(Fixed), ..Host::real() })
}

fn classic() -> Rules {
    rules(SegmentConfig::default())
}

fn actions() -> Rules {
    rules(SegmentConfig { profile: SegmentProfile::Actions, ..SegmentConfig::default() })
}

const TRACK: Path<'_> = Path::One { call: Call::Track, short: false };

/// Key and record of each message of a body; `None` where it is not wanted.
fn records(rules: &Rules, path: Path<'_>, body: &str) -> Vec<Result<Option<(String, String)>, Flaw>> {
    let request = Request::take_apart(path, body.as_bytes(), 100).unwrap();
    let mut maker = Maker::new(rules, &request, 1 << 20);
    let sizes = Maker::new(rules, &request, 1 << 20);
    let made = |message: &[u8]| {
        let bytes_max = sizes.bytes_of(message);
        let made = maker.make(message)?;
        Ok(made.map(|made| {
            assert!(made.data.len() <= bytes_max, "{} bytes, at most {bytes_max} promised", made.data.len());
            (made.key.to_owned(), String::from_utf8(made.data.to_vec()).unwrap())
        }))
    };
    request.messages().map(made).collect()
}

fn one(rules: &Rules, message: &str) -> (String, String) {
    records(rules, TRACK, message).remove(0).unwrap().unwrap()
}

fn value(record: &str) -> Value {
    serde_json::from_str(record).unwrap()
}

fn batch(rules: &Rules, body: &str) -> Vec<Value> {
    let made = records(rules, Path::Batch, body);
    made.into_iter().map(|made| made.unwrap().map_or(Value::Null, |(_, record)| value(&record))).collect()
}

#[test]
fn a_record_is_what_was_sent_and_then_what_the_api_adds() {
    let message = r#" { "writeKey":"k", "type" : "page", "event":"Song Played","userId" : "u1",
        "properties":{"price":1.0, "big":12345678901234567890123, "a b":"\u00e4\ud800"},"messageId":"m1",
        "timestamp":"2024-02-29T11:59:50Z","sentAt":"2024-02-29T11:59:55.000Z" } "#;
    let (key, record) = one(&classic(), message);
    assert_eq!(key, "u1");
    assert_eq!(
        record,
        concat!(
            r#"{"event":"Song Played","userId":"u1","#,
            r#""properties":{"price":1.0,"big":12345678901234567890123,"a b":"\u00e4\ud800"},"#,
            r#""messageId":"m1","channel":"server","version":2,"originalTimestamp":"2024-02-29T11:59:50.000Z","#,
            r#""sentAt":"2024-02-29T11:59:55.000Z","receivedAt":"2024-02-29T12:00:00.000Z","#,
            r#""timestamp":"2024-02-29T11:59:55.000Z","type":"track"}"#
        )
    );
}

#[test]
fn the_facade_rewrites_dates_at_any_depth_but_never_names_and_actions_leave_them() {
    let message = r#"{"userId":"u","event":"2012-12-02","messageId":"m","timestamp":"2024-02-29T13:00:00+01:00",
        "properties":{"2012-12-02":["2012-12-02",{"d":"2012-12-02T02:30:08+02:00","n":"2012-12"}]}}"#;
    let record = value(&one(&classic(), message).1);
    assert_eq!(record["event"], "2012-12-02T00:00:00.000Z");
    assert_eq!(
        record["properties"]["2012-12-02"],
        json!(["2012-12-02T00:00:00.000Z", {"d": "2012-12-02T00:30:08.000Z", "n": "2012-12"}])
    );
    assert_eq!(record["originalTimestamp"], NOW);
    let record = value(&one(&actions(), message).1);
    assert_eq!(record["properties"]["2012-12-02"], json!(["2012-12-02", {"d": "2012-12-02T02:30:08+02:00", "n": "2012-12"}]));
    assert_eq!((&record["originalTimestamp"], &record["timestamp"]), (&json!("2024-02-29T13:00:00+01:00"), &json!(NOW)));
}

#[test]
fn payload_is_chosen_apart_from_the_profile() {
    let message = r#"{"userId":"u","event":"e","d":"2012-12-02"}"#;
    let d = |facade| {
        let rules = rules(SegmentConfig { facade: Some(facade), ..SegmentConfig::default() });
        value(&one(&rules, message).1)["d"].clone()
    };
    assert_eq!(d(true), "2012-12-02T00:00:00.000Z");
    assert_eq!(d(false), "2012-12-02");
}

#[test]
fn clocks_that_go_wrong_are_corrected_by_the_time_of_sending() {
    let stamp = |times: &str| {
        let record = value(&one(&actions(), &format!(r#"{{"userId":"u","event":"e"{times}}}"#)).1);
        let text = |name: &str| record[name].as_str().map(str::to_owned);
        (text("timestamp").unwrap(), text("originalTimestamp").unwrap(), text("sentAt"))
    };
    let all = |stamp: &str, original: &str, sent: Option<&str>| (stamp.to_owned(), original.to_owned(), sent.map(str::to_owned));
    // A client a day ahead, ten seconds before it sent.
    assert_eq!(
        stamp(r#","timestamp":"2024-03-01T11:59:50Z","sentAt":"2024-03-01T12:00:00Z""#),
        all("2024-02-29T11:59:50.000Z", "2024-03-01T11:59:50Z", Some("2024-03-01T12:00:00Z"))
    );
    // Without sentAt it is believed; without a time of its own it is now, however wrong its clock.
    assert_eq!(stamp(r#","timestamp":1330516800"#), all("2012-02-29T12:00:00.000Z", "2012-02-29T12:00:00.000Z", None));
    assert_eq!(stamp(r#","sentAt":"2030-01-01T00:00:00Z""#), all(NOW, NOW, Some("2030-01-01T00:00:00Z")));
    assert_eq!(stamp(""), all(NOW, NOW, None));
    assert_eq!(stamp(r#","timestamp":null,"sentAt":"soon""#), all(NOW, NOW, None));
    // Some SDKs send originalTimestamp instead.
    assert_eq!(stamp(r#","originalTimestamp":"2024-01-01T00:00:00.000Z""#).0, "2024-01-01T00:00:00.000Z");
    assert_eq!(stamp(r#","timestamp":"2024-01-02","originalTimestamp":"2024-01-01""#).1, "2024-01-02");
}

#[test]
fn of_two_members_with_one_name_the_last_counts() {
    let message = r#"{"userId":"a","userId":"b","event":"e","messageId":"m1","messageId":"m2","user\u0049d":"c"}"#;
    let (key, record) = one(&classic(), message);
    assert_eq!((key.as_str(), &value(&record)["userId"], &value(&record)["messageId"]), ("c", &json!("c"), &json!("m2")));
}

#[test]
fn the_key_is_the_user_or_the_anonymous_id_or_the_message_id() {
    let by_message = rules(SegmentConfig { use_message_id: true, ..SegmentConfig::default() });
    for (ids, classic_key, message_key) in [
        (r#""userId":"u","anonymousId":"a","messageId":"m""#, "u", "m"),
        (r#""userId":"","anonymousId":"a","messageId":"m""#, "a", "m"),
        (r#""userId":null,"anonymousId":"a","messageId":"m""#, "a", "m"),
        (r#""userId":12345678901234567890123,"messageId":"m""#, "12345678901234567890123", "m"),
        (r#""sessionId":"s","messageId":"m""#, "s", "m"),
        (r#""userId":"\ud83d\ude80\ud800","messageId":7"#, "🚀\u{fffd}", "7"),
    ] {
        let message = format!(r#"{{"event":"e",{ids}}}"#);
        assert_eq!(one(&classic(), &message).0, classic_key, "{message}");
        assert_eq!(one(&by_message, &message).0, message_key, "{message}");
        assert_eq!(one(&actions(), &message).0, message_key, "{message}");
    }
    let alias = Path::One { call: Call::Alias, short: true };
    let made = records(&classic(), alias, r#"{"from":"old","to":"new"}"#).remove(0).unwrap().unwrap();
    assert_eq!(made.0, "new");
}

#[test]
fn a_message_id_is_kept_or_made() {
    for id in ["null", "\"\"", "{}"] {
        let (key, record) = one(&actions(), &format!(r#"{{"userId":"u","event":"e","messageId":{id}}}"#));
        assert_eq!(key, "10325476-98ba-4cfe-9032-547698badcfe");
        assert_eq!(value(&record)["messageId"], json!(key));
    }
    assert_eq!(
        value(&one(&classic(), r#"{"userId":"u","event":"e","messageId":"2012-12-02"}"#).1)["messageId"],
        "2012-12-02T00:00:00.000Z"
    );
}

#[test]
fn what_is_not_valid_makes_no_record_and_harms_no_other() {
    let body = r#"{"batch":[
        7, "x", null, {}, {"type":"track","userId":"u"}, {"type":"track","event":"e","userId":null,"anonymousId":""},
        {"type":"alias","userId":"u"}, {"type":"Track","event":"e","userId":"u"}, {"type":"track","event":"","userId":"u"},
        {"type":"tr\u0061ck","event":"e","userId":"u"}]}"#;
    let found: Vec<Option<Flaw>> = records(&classic(), Path::Batch, body).into_iter().map(Result::err).collect();
    let object = Some(Flaw::NotAnObject);
    let (id, kind, event) = (Some(Flaw::NoId), Some(Flaw::NoType), Some(Flaw::NoEvent));
    assert_eq!(found, [object, object, object, kind, event, id, Some(Flaw::NoAlias), kind, event, None]);
}

#[test]
fn depth_has_an_end_and_costs_nobody_his_stack() {
    let message = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"batch":[{{"type":"identify","userId":"u","traits":{open}{close}}}]}}"#)
    };
    assert!(records(&classic(), Path::Batch, &message(126))[0].is_ok());
    assert_eq!(records(&classic(), Path::Batch, &message(127))[0], Err(Flaw::TooDeep));
    assert_eq!(records(&classic(), Path::Batch, &message(200_000))[0], Err(Flaw::TooDeep));
}

#[test]
fn a_batch_shares_context_integrations_and_sent_at_and_the_message_wins() {
    let body = r#"{"context":{"ip":"1.2.3.4","library":{"name":"b","v":"2012-12-02"},"x":1.0},"integrations":{"All":true,"Mail":false},
        "sentAt":"2024-02-29T11:00:00Z","timestamp":"1999-01-01","writeKey":"k","batch":[
        {"type":"identify","userId":"u","timestamp":"2024-02-29T10:00:00Z"},
        {"type":"identify","userId":"u","context":{"library":{"name":"i"},"l\u0069b":1},"integrations":{"Mail":true},
         "sentAt":"2024-02-29T12:00:00Z"},
        {"type":"identify","userId":"u","context":null,"integrations":null}]}"#;
    let made = batch(&classic(), body);
    let context = json!({"ip": "1.2.3.4", "library": {"name": "b", "v": "2012-12-02T00:00:00.000Z"}, "x": 1.0});
    assert_eq!(made[0]["context"], context);
    assert_eq!(made[0]["timestamp"], "2024-02-29T11:00:00.000Z");
    assert_eq!(made[0]["sentAt"], "2024-02-29T11:00:00.000Z");
    assert_eq!(made[1]["context"], json!({"ip": "1.2.3.4", "library": {"name": "i"}, "x": 1.0, "lib": 1}));
    assert_eq!(made[1]["integrations"], json!({"All": true, "Mail": true}));
    assert_eq!((&made[1]["sentAt"], &made[1]["timestamp"]), (&json!(NOW), &json!(NOW)));
    assert_eq!((&made[2]["context"], &made[2]["integrations"]), (&context, &json!({"All": true, "Mail": false})));
    assert!(made.iter().all(|record| record.get("writeKey").is_none() && record["messageId"].is_string()));
}

#[test]
fn calls_that_the_profile_leaves_out_make_no_record() {
    let body = r#"{"batch":[{"type":"screen","userId":"u"},{"type":"alias","userId":"u","previousId":"p"},{"type":"page","userId":"u"}]}"#;
    let made = |rules: &Rules| -> Vec<bool> { batch(rules, body).iter().map(Value::is_object).collect() };
    assert_eq!(made(&classic()), [false, true, true]);
    assert_eq!(made(&actions()), [true, false, true]);
}

#[test]
fn integrations_turn_the_destination_off_by_name_or_altogether() {
    let made = |shared: &str, own: &str| {
        let body = format!(r#"{{"integrations":{shared},"batch":[{{"type":"page","userId":"u","integrations":{own}}}]}}"#);
        records(&classic(), Path::Batch, &body).remove(0).unwrap().is_some()
    };
    for (own, is_made) in [
        ("{}", true),
        ("null", true),
        (r#"{"Amazon Kinesis":false}"#, false),
        (r#"{"Amazon Kinesis":{"x":1}}"#, true),
        (r#"{"All":false}"#, false),
        (r#"{"all":false,"Mixpanel":true}"#, false),
        (r#"{"All":false,"Amazon Kinesis":true}"#, true),
        (r#"{"All":false,"Amazon Kinesis":{"x":1}}"#, true),
        (r#"{"All":true,"Amazon\u0020Kinesis":false}"#, false),
        (r#"{"Mixpanel":false}"#, true),
    ] {
        assert_eq!(made("null", own), is_made, "{own}");
        assert_eq!(made(own, "{}"), is_made, "{own}");
    }
    assert!(made(r#"{"Amazon Kinesis":false}"#, r#"{"Amazon Kinesis":true}"#));
    assert!(!made(r#"{"Amazon Kinesis":true}"#, r#"{"Amazon Kinesis":false}"#));
    let named = rules(SegmentConfig { integration: Some("Lake".into()), ..SegmentConfig::default() });
    let body = r#"{"event":"e","userId":"u","integrations":{"Lake":false,"Amazon Kinesis":true}}"#;
    assert_eq!(records(&named, TRACK, body), [Ok(None)]);
}

#[test]
fn a_project_is_named_and_what_a_client_says_of_it_does_not_count() {
    let named = rules(SegmentConfig { project_id: Some("p\"1".into()), ..SegmentConfig::default() });
    let message = r#"{"event":"e","userId":"u","projectId":"theirs","version":"1.1","channel":"mobile"}"#;
    let record = value(&one(&named, message).1);
    assert_eq!((&record["projectId"], &record["version"], &record["channel"]), (&json!("p\"1"), &json!("1.1"), &json!("mobile")));
    assert_eq!(value(&one(&classic(), message).1)["projectId"], "theirs");
}

#[test]
fn a_browsers_message_says_so() {
    let path = Path::One { call: Call::Page, short: true };
    let made = records(&classic(), path, r#"{"anonymousId":"a"}"#).remove(0).unwrap().unwrap();
    assert_eq!(value(&made.1)["channel"], "client");
}

#[test]
fn an_event_of_any_form_needs_metarouters_metadata_and_loses_its_write_key() {
    let made = |body: &str, outside: &str| {
        let mut request = Request::take_apart(Path::Custom, body.as_bytes(), 1).unwrap();
        request.offer_metadata(outside.as_bytes());
        let rules = classic();
        let mut maker = Maker::new(&rules, &request, 1 << 20);
        let message = request.messages().next().unwrap();
        let made = maker.make_custom(message)?.unwrap();
        Ok((made.key.to_owned(), String::from_utf8(made.data.to_vec()).unwrap(), request.write_key()))
    };
    let whole = r#"{ "_metarouter":{"writeKey":"k","eventName":"page view","userID":"u"} , "json":"whatever", "n":1.0}"#;
    let record = concat!(
        r#"{"json":"whatever","n":1.0,"_metarouter":{"eventName":"page view","userID":"u","#,
        r#""eventID":"10325476-98ba-4cfe-9032-547698badcfe","timestamp":"2024-02-29T12:00:00.000Z"}}"#
    );
    assert_eq!(made(whole, ""), Ok(("u".into(), record.into(), Some("k".into()))));
    let outside = r#" {"eventName":"e","anonymousID":"a","eventID":"i","timestamp":"2024-01-01T00:00:00Z"} "#;
    let record = r#"{"_metarouter":{"eventName":"e","anonymousID":"a","eventID":"i","timestamp":"2024-01-01T00:00:00.000Z"}}"#;
    assert_eq!(made("{}", outside), Ok(("a".into(), record.into(), None)));
    for outside in ["", "[]", "{", "{}", r#"{"eventName":"e"}"#, r#"{"userID":"u"}"#] {
        assert_eq!(made("{}", outside), Err(Flaw::NoMetadata), "{outside}");
    }
}

#[test]
fn a_record_over_the_limit_is_refused_before_it_is_made_whole() {
    let rules = classic();
    let body = format!(r#"{{"event":"e","userId":"u","x":"{}"}}"#, "x".repeat(3000));
    let request = Request::take_apart(TRACK, body.as_bytes(), 1).unwrap();
    let message = request.messages().next().unwrap();
    for (bytes_max, is_made) in [(10, false), (2000, false), (4000, true)] {
        assert_eq!(Maker::new(&rules, &request, bytes_max).make(message).is_ok(), is_made);
    }
}

#[test]
fn segments_own_limits_are_32768_bytes_of_a_message_and_99_characters_of_its_id() {
    let rules = classic();
    let made = |body: &str, limits: SizeLimits| {
        let request = Request::take_apart(TRACK, body.as_bytes(), 1).unwrap();
        let message = request.messages().next().unwrap();
        Maker::new(&rules, &request, 1 << 20).within(limits).make(message).map(|made| made.is_some())
    };
    let of_bytes = |bytes: usize| {
        let bare = r#"{"event":"e","userId":"u","x":""}"#;
        bare.replace("\"x\":\"", &format!("\"x\":\"{}", "x".repeat(bytes - bare.len())))
    };
    assert_eq!(of_bytes(32_768).len(), 32_768);
    assert_eq!(made(&of_bytes(32_768), SizeLimits::Vendor), Ok(true));
    assert_eq!(made(&of_bytes(32_769), SizeLimits::Vendor), Err(Flaw::OverLimit));
    assert_eq!(made(&of_bytes(32_769), SizeLimits::Kinesis), Ok(true));
    let of_id = |chars: usize| format!(r#"{{"event":"e","userId":"u","messageId":"{}"}}"#, "ä".repeat(chars));
    assert_eq!(made(&of_id(99), SizeLimits::Vendor), Ok(true));
    assert_eq!(made(&of_id(100), SizeLimits::Vendor), Err(Flaw::LongId));
    assert_eq!(made(&of_id(100), SizeLimits::Kinesis), Ok(true));
}

/// JSON of any form, some of it dates.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|number| Value::from(f64::from(number) / 64.0)),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\\.[0-9]{1,7})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
            .prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c0-9\"ä -]{0,12}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

/// A JSON text without the white space that stands outside of its strings.
fn without_space(text: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let kept = |letter: &char| {
        let is_space = !in_string && letter.is_ascii_whitespace();
        in_string ^= *letter == '"' && !escaped;
        escaped = in_string && *letter == '\\' && !escaped;
        !is_space
    };
    text.chars().filter(kept).collect()
}

/// The facade's rule for one value, on a tree.
fn on_a_tree(value: Value) -> Value {
    match value {
        Value::String(text) => {
            let mut out = Vec::new();
            match dates::rewrite(serde_json::to_string(&text).unwrap().trim_matches('"').as_bytes(), &mut out) {
                true => serde_json::from_slice(&out).unwrap(),
                false => Value::String(text),
            }
        }
        Value::Array(items) => items.into_iter().map(on_a_tree).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(name, value)| (name, on_a_tree(value))).collect::<serde_json::Map<_, _>>().into()
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn splicing_makes_what_a_tree_would_have_made(properties in any_json(), pretty: bool, context in any_json()) {
        let message = json!({"batch": [{"type": "track", "event": "e", "userId": "u", "properties": properties, "z": 1}], "context": {"c": context}});
        let body = if pretty { serde_json::to_string_pretty(&message) } else { serde_json::to_string(&message) }.unwrap();
        let made = batch(&classic(), &body);
        prop_assert_eq!(&made[0]["properties"], &on_a_tree(properties));
        prop_assert_eq!(&made[0]["context"]["c"], &on_a_tree(context));
        prop_assert_eq!(&made[0]["z"], &json!(1));
        let made = records(&classic(), Path::Batch, &body).remove(0).unwrap().unwrap().1;
        prop_assert_eq!(&without_space(&made), &made);
    }
}
