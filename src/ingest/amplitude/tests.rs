//! What is taken of a request, and how what is not is told.

use serde_json::{Value, json};

use super::*;

fn refused(body: &str) -> (u16, Value) {
    let (status, body) = Upload::read(body.as_bytes(), 10).err().unwrap().answer();
    (status, serde_json::from_str(&body).unwrap())
}

/// Looks at an event once it is judged.
fn judged<R>(event: &str, id_chars_min: usize, look: impl FnOnce(Result<Event<'_>, Vec<Fault>>) -> R) -> R {
    let body = format!(r#"{{"api_key":"k","events":[{event}]}}"#);
    let upload = Upload::read(body.as_bytes(), 1).unwrap();
    look(Event::judge(upload.sent().next().unwrap(), id_chars_min))
}

fn key(event: &str, id_chars_min: usize) -> Option<String> {
    judged(event, id_chars_min, |event| Some(event.ok()?.key().into_owned()))
}

fn faults(event: &str) -> Vec<Fault> {
    judged(event, ID_CHARS_MIN, |event| event.err()).unwrap_or_default()
}

#[test]
fn a_request_is_read_with_its_options_and_a_wrong_one_is_told_in_the_services_words() {
    let body =
        br#" {"api_key":"k","events":[{"a":1}, 2],"options":{"min_id_length":1},"client_upload_time":"2026-11-20T10:00:00.5Z"} "#;
    let upload = Upload::read(body, 10).unwrap();
    assert_eq!((upload.api_key.as_ref(), upload.count(), upload.id_chars_min), ("k", 2, 1));
    assert_eq!(upload.sent().map(|sent| sent.json).collect::<Vec<_>>(), ["{\"a\":1}", "2"]);
    assert_eq!(upload.client_upload_us, Some(1_795_168_800_500_000));
    assert_eq!(Upload::read(br#"{"api_key":"k","events":[],"options":null}"#, 10).unwrap().id_chars_min, 5);

    for body in ["", "nothing", "[]", "{", "{\"api_key\":\"k\",\"events\":[}"] {
        assert_eq!(refused(body), (400, json!({"code": 400, "error": "Invalid JSON request body"})), "{body}");
    }
    let missing = |field: &str| (400, json!({"code": 400, "error": "Request missing required field", "missing_field": field}));
    assert_eq!(refused(r#"{"events":[]}"#), missing("api_key"));
    assert_eq!(refused(r#"{"api_key":"k","events":null}"#), missing("events"));
    assert_eq!(refused(r#"{"api_key":"k","events":{}}"#).1["missing_field"], "events");
    let many = format!(r#"{{"api_key":"k","events":[{}0]}}"#, "0,".repeat(10));
    assert_eq!(refused(&many), (413, json!({"code": 413, "error": "Payload too large"})));
    assert!(Refusal::UnknownKey.answer().1.contains(r#""error":"Invalid API key:"#));
}

#[test]
fn of_what_is_sent_twice_the_last_counts_and_events_keep_to_themselves() {
    let body = br#"{"events":[{"user_id":"first","x":1},{"city":"c"}],"api_key":"a","events":[7,{"user_id":"user-1","city":null},
        {"event_type":"e"}],"api_key":"\u006b"}"#;
    let upload = Upload::read(body, 3).unwrap();
    assert_eq!((upload.api_key.as_ref(), upload.count()), ("k", 3));
    let given: Vec<_> = upload.sent().map(|sent| (sent.given(Field::UserId), sent.given(Field::City), sent.has_rest)).collect();
    assert_eq!(given, [(None, None, false), (Some("\"user-1\""), None, false), (None, None, false)]);
    assert_eq!(upload.sent().nth(2).unwrap().given(Field::EventType), Some("\"e\""));
    assert_eq!(refused(r#"{"api_key":"k","events":[1],"events":null}"#).1["missing_field"], "events");
    assert_eq!(Upload::read(br#"{"api_key":"k","events":7,"events":[]}"#, 1).unwrap().count(), 0);
    // What is too much is JSON all the same, or it is not.
    assert_eq!(refused(r#"{"api_key":"k","events":[0,0,0,0,0,0,0,0,0,0,0,x]}"#).1["error"], "Invalid JSON request body");
}

#[test]
fn upload_times_come_as_dates_or_milliseconds_and_others_do_not_count() {
    for (json, us) in [
        (r#""2026-11-20T10:00:00.123Z""#, Some(1_795_168_800_123_000)),
        (r#""2026-11-20T11:00:00+01:00""#, Some(1_795_168_800_000_000)),
        ("1795168800123", Some(1_795_168_800_123_000)),
        (r#""1795168800123""#, Some(1_795_168_800_123_000)),
        (r#""yesterday""#, None),
        ("-1", None),
        ("99999999999999999", None),
        ("{}", None),
    ] {
        assert_eq!(moment_us(json), us, "{json}");
    }
}

#[test]
fn an_event_needs_a_type_and_a_user_or_a_device() {
    assert_eq!(faults(r#"{"event_type":"a","user_id":"user-1"}"#), []);
    assert_eq!(faults(r#"{"event_type":"a","device_id":"device"}"#), []);
    assert_eq!(faults(r#"{"event_type":"","user_id":"user-1"}"#), [Fault::Missing("event_type")]);
    assert_eq!(faults(r#"{"event_type":7,"user_id":"user-1"}"#), [Fault::Invalid("event_type")]);
    assert_eq!(faults(r#"{"event_type":"a","user_id":null}"#), [Fault::Missing("user_id"), Fault::Missing("device_id")]);
    assert_eq!(faults("{}").len(), 3);
    assert_eq!(faults("[]"), [Fault::NoObject]);
    // A group's properties need neither.
    assert_eq!(faults(r#"{"event_type":"$groupidentify","groups":{"org":"acme"}}"#), []);
}

#[test]
fn an_id_that_can_be_none_is_taken_off_and_is_a_fault_only_where_no_other_is_left() {
    assert_eq!(key(r#"{"event_type":"a","user_id":"abcd","device_id":"device"}"#, 5).unwrap(), "device");
    assert_eq!(faults(r#"{"event_type":"a","user_id":"abcd"}"#), [Fault::TooShort("user_id")]);
    assert_eq!(
        faults(r#"{"event_type":"a","user_id":"abcd","device_id":"ääää"}"#),
        [Fault::TooShort("user_id"), Fault::TooShort("device_id")]
    );
    assert_eq!(faults(r#"{"event_type":"a","user_id":"äääää"}"#), []);
    assert_eq!(key(r#"{"event_type":"a","user_id":"abcd"}"#, 4).unwrap(), "abcd");
    for none in ["anonymous", "UNDEFINED", "00000000-0000-0000-0000-000000000000"] {
        assert_eq!(faults(&format!(r#"{{"event_type":"a","user_id":"{none}"}}"#)), [Fault::Invalid("user_id")], "{none}");
        let both = format!(r#"{{"event_type":"a","user_id":"{none}","device_id":"device"}}"#);
        assert_eq!(key(&both, 5).unwrap(), "device");
    }
    assert_eq!(key(r#"{"event_type":"a","user_id":"null"}"#, 1), None);
    assert_eq!(key(r#"{"event_type":"a","user_id":true}"#, 1), None);
    // Digits beyond what a double holds stay.
    assert_eq!(key(r#"{"event_type":"a","user_id":18446744073709551617}"#, 5).unwrap(), "18446744073709551617");
}

#[test]
fn a_time_is_whole_milliseconds() {
    let with = |time: &str| faults(&format!(r#"{{"event_type":"a","user_id":"user-1","time":{time}}}"#));
    for good in ["0", "1396381378123", "1396381378123.0", "1.396381378123e12", "null"] {
        assert_eq!(with(good), [], "{good}");
    }
    for bad in [r#""2026-11-20T10:00:00Z""#, r#""1396381378123""#, "-1", "1.5", "1e300", "99999999999999999999", "{}", "true"] {
        assert_eq!(with(bad), [Fault::Invalid("time")], "{bad}");
    }
}

#[test]
fn properties_are_objects_of_bounded_depth() {
    for (_, field) in OBJECTS {
        let event = |value: &str| format!(r#"{{"event_type":"a","user_id":"user-1","{field}":{value}}}"#);
        assert_eq!(faults(&event("{}")), []);
        assert_eq!(faults(&event("null")), []);
        assert_eq!(faults(&event("[]")), [Fault::Invalid(field)]);
        let nested = |n: usize| event(&format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n)));
        assert_eq!(faults(&nested(DEPTH_MAX - 1)), []);
        assert_eq!(faults(&nested(DEPTH_MAX)), [Fault::Invalid(field)]);
        assert_eq!(faults(&nested(100_000)), [Fault::Invalid(field)]);
    }
}

#[test]
fn one_answer_lists_all_that_is_wrong_by_index() {
    let mut all = Faults::default();
    let sent = [
        r#"{"user_id":"user-1"}"#,
        r#"{"event_type":"a","user_id":"user-1","time":"x"}"#,
        r#"{"event_type":"a","user_id":"ab"}"#,
    ];
    for (index, event) in sent.iter().enumerate() {
        for fault in faults(event) {
            all.add(index as u32, fault);
        }
    }
    let (status, body) = Refusal::Events(all).answer();
    assert_eq!(status, 400);
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({
            "code": 400,
            "error": "Request missing required field",
            "events_with_missing_fields": {"event_type": [0]},
            "events_with_invalid_fields": {"time": [1]},
            "events_with_invalid_id_lengths": {"user_id": [2]},
        })
    );
    let mut short = Faults::default();
    short.add(4, Fault::TooShort("device_id"));
    assert!(Refusal::Events(short).answer().1.contains("Invalid id length"));
}

#[test]
fn the_filter_knows_types_and_the_switch_identify_calls() {
    let event = |name: &str| format!(r#"{{"event_type":"{name}","user_id":"user-1"}}"#);
    let wanted = |name: &str, config: &AmplitudeConfig| judged(&event(name), 5, |event| event.unwrap().is_wanted(config));
    let all = AmplitudeConfig::default();
    assert!(wanted("Song Played", &all) && !wanted("$identify", &all) && !wanted("$groupidentify", &all));
    let some = AmplitudeConfig { events: ["Song Played".to_owned()].into(), forward_identify: true, ..Default::default() };
    assert!(wanted("Song Played", &some) && !wanted("song played", &some));
    assert!(wanted("$identify", &some) && wanted("$groupidentify", &some));
}

#[test]
fn a_success_has_the_four_keys_that_sdks_read() {
    let body: Value = serde_json::from_str(&success(3, 50, 1_396_381_378_123)).unwrap();
    assert_eq!(
        body,
        json!({"code": 200, "events_ingested": 3, "payload_size_bytes": 50, "server_upload_time": 1_396_381_378_123_u64})
    );
}
