//! Amplitude's door over real HTTP and a real spool: routes, answers to the letter, rows, filters, refusals.
//!
//! Every test runs the real listener. What SDKs decide by (the code in the body, the indexes of events) is compared whole.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use doors::{Door, World, config};
use forebay::config::{AmplitudeConfig, KeyFallback, RuleConfig, Secret, SizeLimits, SourceConfig, SourceKind};
use forebay::ingest::Sources;
use forebay::ingest::http::HttpOptions;
use serde_json::{Value, json};

impl Door {
    /// Status and body.
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> (u16, String) {
        let (status, _, body) = self.exchange(method, path, headers, body).await;
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.send("POST", path, &[], body.to_string()).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

fn amplitude(name: &str) -> SourceConfig {
    SourceConfig {
        kind: SourceKind::Amplitude,
        partition_key: Vec::new(),
        partition_key_fallback: KeyFallback::Random,
        ..config(name)
    }
}

fn only(world: &World, config: &SourceConfig) -> Sources {
    Sources::new([world.source(config)])
}

fn event(user: &str) -> Value {
    json!({"event_type": "Song Played", "user_id": user, "event_properties": {"n": 1}})
}

/// Key and row of every durable event.
fn rows(world: &World) -> Vec<(String, Value)> {
    world.events().into_iter().map(|(key, data)| (key, serde_json::from_slice(&data).unwrap())).collect()
}

#[tokio::test]
async fn a_good_request_is_answered_with_all_four_keys_once_its_rows_are_durable() {
    let world = World::new();
    let door = Door::open(only(&world, &amplitude("app"))).await;
    for path in ["/2/httpapi", "/batch"] {
        let body = json!({"api_key": "any", "events": [event("user-1"), {"event_type": "b", "device_id": "device-1"}]});
        let (status, answer) = door.post(path, &body).await;
        assert_eq!((status, answer.as_object().unwrap().len()), (200, 4));
        assert_eq!((&answer["code"], &answer["events_ingested"]), (&json!(200), &json!(2)));
        assert_eq!(answer["payload_size_bytes"], json!(body.to_string().len()));
        assert!(answer["server_upload_time"].as_u64().unwrap() > 1_700_000_000_000);
    }
    let rows = rows(&world);
    assert_eq!(rows.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["user-1", "device-1", "user-1", "device-1"]);
    assert_eq!((&rows[0].1["event_type"], &rows[0].1["event_properties"]), (&json!("Song Played"), &json!({"n": 1})));
    assert_eq!((rows[0].1.as_object().unwrap().len(), &rows[1].1["user_id"]), (55, &json!(null)));
    assert_ne!(rows[0].1["uuid"], rows[2].1["uuid"]);
    door.end().await;
}

#[tokio::test]
async fn a_zipped_body_of_any_type_is_measured_as_decoded() {
    let world = World::new();
    let door = Door::open(only(&world, &amplitude("app"))).await;
    let body = json!({"api_key": "any", "events": [event("user-1")]}).to_string();
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    zip.write_all(body.as_bytes()).unwrap();
    let headers = [("content-encoding", "gzip"), ("content-type", "text/plain")];
    let (status, answer) = door.send("POST", "/2/httpapi", &headers, zip.finish().unwrap()).await;
    assert_eq!(status, 200);
    assert!(answer.contains(&format!("\"payload_size_bytes\":{},", body.len())));
    door.end().await;
}

#[tokio::test]
async fn events_at_fault_are_listed_and_none_of_their_request_is_accepted() {
    let world = World::new();
    let door = Door::open(only(&world, &amplitude("app"))).await;
    let events = json!([event("user-1"), {"user_id": "user-1"}, {"event_type": "a", "user_id": "u"}, {"event_type": "a", "user_id": "user-1", "time": "2026"}]);
    let (status, answer) = door.post("/2/httpapi", &json!({"api_key": "k", "events": events})).await;
    assert_eq!(status, 400);
    assert_eq!(
        answer,
        json!({
            "code": 400,
            "error": "Request missing required field",
            "events_with_missing_fields": {"event_type": [1]},
            "events_with_invalid_fields": {"time": [3]},
            "events_with_invalid_id_lengths": {"user_id": [2]},
        })
    );
    // Those that the SDK drops now count, and the one that it sends again does not.
    assert_eq!((world.submitted(), world.rejected("not_valid")), (0, 3));
    // The least length of an id is the request's own.
    let body = json!({"api_key": "k", "events": [{"event_type": "a", "user_id": "u"}], "options": {"min_id_length": 1}});
    assert_eq!(door.post("/2/httpapi", &body).await.0, 200);
    assert_eq!(world.events()[0].0, "u");
    door.end().await;
}

#[tokio::test]
async fn what_is_no_request_is_told_in_the_services_form() {
    let world = World::new();
    let door = Door::open(only(&world, &amplitude("app"))).await;
    let not_json = json!({"code": 400, "error": "Invalid JSON request body"});
    for body in [&b"{"[..], b"", b"[1]", b"\xff\xfe", b"{\"api_key\":\"k\"} {}"] {
        let (status, answer) = door.send("POST", "/2/httpapi", &[], body).await;
        assert_eq!((status, serde_json::from_str::<Value>(&answer).unwrap()), (400, not_json.clone()));
    }
    let (status, answer) = door.send("POST", "/2/httpapi", &[("content-encoding", "gzip")], "no gzip").await;
    assert_eq!((status, serde_json::from_str::<Value>(&answer).unwrap()), (400, not_json));
    let (_, answer) = door.post("/batch", &json!({"events": []})).await;
    assert_eq!(answer, json!({"code": 400, "error": "Request missing required field", "missing_field": "api_key"}));
    let (status, answer) = door.send("GET", "/2/httpapi", &[], "").await;
    assert_eq!((status, serde_json::from_str::<Value>(&answer).unwrap()["code"].clone()), (405, json!(405)));
    let (status, answer) = door.send("POST", "/2/httpapi", &[], vec![b' '; 17 << 20]).await;
    let too_large = json!({"code": 413, "error": "Payload too large"});
    assert_eq!((status, serde_json::from_str::<Value>(&answer).unwrap()), (413, too_large));
    door.end().await;
}

#[tokio::test]
async fn an_event_too_large_for_a_record_is_413_alone_and_listed_among_others() {
    let world = World::new();
    let small = SourceConfig { max_event_bytes: 4_000, ..amplitude("app") };
    let door = Door::open(only(&world, &small)).await;
    let mut large = event("user-1");
    large["event_properties"]["text"] = "x".repeat(4_000).into();
    let (status, answer) = door.post("/2/httpapi", &json!({"api_key": "k", "events": [large]})).await;
    assert_eq!((status, answer), (413, json!({"code": 413, "error": "Payload too large"})));
    let (status, answer) = door.post("/2/httpapi", &json!({"api_key": "k", "events": [event("user-1"), large]})).await;
    assert_eq!((status, &answer["events_with_invalid_fields"]), (400, &json!({"event_properties": [1]})));
    assert_eq!((world.submitted(), world.rejected("too_large")), (0, 2));
    // One whose bound is over the limit, but not its record.
    let mut near = event("user-1");
    near["event_properties"]["text"] = "x".repeat(2_200).into();
    assert_eq!(door.post("/2/httpapi", &json!({"api_key": "k", "events": [near]})).await.0, 200);
    door.end().await;
}

#[tokio::test]
async fn the_api_key_in_the_body_chooses_the_source() {
    let (one, other) = (World::new(), World::new());
    let keyed = |name: &str, key: &str| SourceConfig { keys: vec![Secret(key.to_owned())], ..amplitude(name) };
    let door = Door::open(Sources::new([one.source(&keyed("one", "key-1")), other.source(&keyed("other", "key-2"))])).await;
    let body = |key: &str| json!({"api_key": key, "events": [event("user-1")]});
    assert_eq!(door.post("/2/httpapi", &body("key-2")).await.0, 200);
    assert_eq!((one.submitted(), other.submitted()), (0, 1));
    let (status, answer) = door.post("/2/httpapi", &body("key-3")).await;
    assert_eq!((status, &answer["code"]), (400, &json!(400)));
    assert!(answer["error"].as_str().unwrap().starts_with("Invalid API key:"));
    let (status, answer) = door.send("GET", "/identify?api_key=key-3&identification={}", &[], "").await;
    assert_eq!((status, answer.as_str()), (400, "invalid_api_key"));
    door.end().await;
}

#[tokio::test]
async fn without_a_source_of_the_kind_the_answer_names_the_remedy() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let (status, answer) = door.post("/2/httpapi", &json!({"api_key": "k", "events": [event("user-1")]})).await;
    assert_eq!((status, &answer["code"]), (404, &json!(404)));
    assert!(answer["error"].as_str().unwrap().contains("kind = \"amplitude\""));
    let (status, answer) = door.send("POST", "/identify", &[], "api_key=k").await;
    assert_eq!(status, 404);
    assert!(answer.contains("kind = \"amplitude\""));
    door.end().await;
}

#[tokio::test]
async fn events_that_the_source_does_not_want_are_answered_as_taken() {
    let world = World::new();
    let some = AmplitudeConfig { events: ["Song Played".to_owned()].into(), ..Default::default() };
    let door = Door::open(only(&world, &SourceConfig { amplitude: some, ..amplitude("app") })).await;
    let events =
        json!([{"event_type": "Other", "user_id": "user-1"}, event("user-2"), {"event_type": "$identify", "user_id": "user-3"}]);
    let (status, answer) = door.post("/2/httpapi", &json!({"api_key": "k", "events": events})).await;
    assert_eq!((status, &answer["events_ingested"]), (200, &json!(3)));
    assert_eq!(rows(&world).len(), 1);
    assert_eq!(rows(&world)[0].0, "user-2");
    door.end().await;
}

#[tokio::test]
async fn identify_calls_are_taken_and_forwarded_in_their_own_form_where_that_is_asked_for() {
    let world = World::new();
    let door = Door::open(only(&world, &amplitude("app"))).await;
    let form = "api_key=k&identification=%5B%7B%22user_id%22%3A%22u%22%2C%22user_properties%22%3A%7B%22%24set%22%3A%7B%22a%22%3A1.50%7D%7D%7D%5D";
    assert_eq!(door.send("POST", "/identify", &[], form).await, (200, "success".to_owned()));
    assert_eq!(world.submitted(), 0);
    door.end().await;

    let forward = AmplitudeConfig { forward_identify: true, ..Default::default() };
    let door = Door::open(only(&world, &SourceConfig { amplitude: forward, ..amplitude("app") })).await;
    assert_eq!(door.send("POST", "/identify", &[], form).await, (200, "success".to_owned()));
    assert_eq!(door.send("GET", &format!("/identify?{form}"), &[], "").await, (200, "success".to_owned()));
    let group = "api_key=k&identification={\"group_type\":\"org\",\"group_value\":\"g+1\",\"group_properties\":{\"x\":null}}";
    assert_eq!(door.send("POST", "/groupidentify", &[], group).await, (200, "success".to_owned()));
    let user = (r#"u"#.to_owned(), br#"{"user_id":"u","user_properties":{"$set":{"a":1.50}}}"#.to_vec());
    let group = ("g 1".to_owned(), br#"{"group_type":"org","group_value":"g 1","group_properties":{"x":null}}"#.to_vec());
    assert_eq!(world.events(), [user.clone(), user, group]);
    for bad in ["api_key=k", "api_key=k&identification=%5B%7B", "api_key=k&identification={\"user_properties\":{}}"] {
        assert_eq!(door.send("POST", "/identify", &[], bad).await, (400, "missing_event".to_owned()));
    }
    assert_eq!(door.send("POST", "/identify", &[], "").await, (400, "missing_api_key".to_owned()));
    assert_eq!(door.send("PUT", "/identify", &[], "").await.0, 405);
    // From an SDK, they are rows.
    let events = json!([{"event_type": "$groupidentify", "groups": {"org": "acme"}, "group_properties": {"$set": {"a": 1}}}]);
    assert_eq!(door.post("/2/httpapi", &json!({"api_key": "k", "events": events})).await.0, 200);
    let (key, row) = rows(&world).pop().unwrap();
    assert_eq!(
        (key.as_str(), &row["event_type"], &row["group_properties"]),
        ("acme", &json!("$groupidentify"), &json!({"$set": {"a": 1}}))
    );
    door.end().await;
}

#[tokio::test]
async fn an_agent_that_cannot_take_anything_answers_503_without_a_body() {
    let mut world = World::stalled();
    let options = HttpOptions { admit_timeout: Duration::from_millis(50), ..Default::default() };
    let door = Door::with(only(&world, &amplitude("app")), options).await;
    let permits = doors::exhaust(&world.handle);
    let body = json!({"api_key": "k", "events": [event("user-1")]}).to_string();
    assert_eq!(door.send("POST", "/2/httpapi", &[], body.clone()).await, (503, String::new()));
    drop(permits);
    world.go_and_fail();
    assert_eq!(door.send("POST", "/2/httpapi", &[], body).await, (503, String::new()));
    door.end().await;
}

#[tokio::test]
async fn hostile_bodies_get_a_clear_answer() {
    let world = World::new();
    let door = Door::open(only(&world, &amplitude("app"))).await;
    let upload = |event: &str| format!("{{\"api_key\":\"k\",\"events\":[{event}]}}");
    let with = |value: &str| upload(&format!("{{\"event_type\":\"a\",\"user_id\":\"user-1\",\"event_properties\":{value}}}"));
    let keys: Vec<String> = (0..100_000).map(|n| format!("\"k{n}\":{n}")).collect();
    for (name, body, status) in [
        ("depth bomb", with(&format!("{}{}", "{\"a\":".repeat(500_000), "1".to_owned() + &"}".repeat(500_000))), 400),
        ("depth bomb of the body", "[".repeat(1 << 20), 400),
        ("keys", upload(&format!("{{\"event_type\":\"a\",\"user_id\":\"user-1\",{}}}", keys[..50_000].join(","))), 200),
        ("duplicates", upload("{\"event_type\":\"x\",\"event_type\":\"a\",\"user_id\":\"user-0\",\"user_id\":\"user-1\"}"), 200),
        ("lone surrogate", with("{\"\\ud800\":\"\\udc00\"}"), 200),
        ("surrogate as an id", upload("{\"event_type\":\"a\",\"user_id\":\"\\ud800\\ud800\\ud800abc\"}"), 200),
        ("nul", with("{\"a\":\"\\u0000\"}"), 200),
        ("raw nul", with("{\"a\":\"\0\"}"), 400),
        ("huge number", with(&format!("{{\"a\":1{}}}", "0".repeat(10_000))), 200),
        ("huge exponent", upload("{\"event_type\":\"a\",\"user_id\":\"user-1\",\"time\":1e999999}"), 400),
        ("long id", upload(&format!("{{\"event_type\":\"a\",\"user_id\":\"{}\"}}", "ä".repeat(300))), 200),
        ("empty", upload(""), 200),
        ("many bad ones", upload(&format!("{}1", "1,".repeat(50_000))), 400),
    ] {
        assert_eq!(door.send("POST", "/2/httpapi", &[], body).await.0, status, "{name}");
    }
    let keys: Vec<String> = world.events().into_iter().map(|(key, _)| key).collect();
    assert_eq!(&keys[..4], ["user-1", "user-1", "user-1", "\u{fffd}\u{fffd}\u{fffd}abc"]);
    assert_eq!(keys.last().unwrap().len(), 64);
    door.end().await;
}

#[tokio::test]
async fn with_limits_of_the_vendor_amplitudes_own_are_kept_and_told_in_its_form() {
    let world = World::new();
    let vendor = RuleConfig { limits: SizeLimits::Vendor, ..RuleConfig::default() };
    let identify = AmplitudeConfig { forward_identify: true, ..AmplitudeConfig::default() };
    let config = SourceConfig { rules: vendor, amplitude: identify, ..amplitude("app") };
    let door = Door::open(only(&world, &config)).await;
    let body = |events: Vec<Value>| json!({"api_key": "k", "events": events});
    let too_large = (413, json!({"code": 413, "error": "Payload too large"}));
    // Events of a request.
    for path in ["/2/httpapi", "/batch"] {
        assert_eq!(door.post(path, &body(vec![event("user-1"); 2001])).await, too_large);
        assert_eq!(door.post(path, &body(vec![event("user-1"); 2000])).await.0, 200);
    }
    assert_eq!(world.submitted(), 4000);
    // Bytes of a request: the two paths differ.
    let padded = format!("{}{}", body(vec![event("user-1")]), " ".repeat(1 << 20));
    let (status, answer) = door.send("POST", "/2/httpapi", &[], padded.clone()).await;
    assert_eq!((status, serde_json::from_str::<Value>(&answer).unwrap()), too_large);
    assert_eq!(door.send("POST", "/batch", &[], padded).await.0, 200);
    // Strings and depth of an event.
    let with = |properties: Value| json!({"event_type": "a", "user_id": "user-1", "event_properties": properties});
    let nested = |depth: usize| (1..depth).fold(json!({}), |inner, _| json!({ "a": inner }));
    let events =
        vec![with(json!({"s": "x".repeat(1024)})), with(json!({"s": "x".repeat(1025)})), with(nested(40)), with(nested(41))];
    let (status, answer) = door.post("/2/httpapi", &body(events)).await;
    assert_eq!((status, &answer["events_with_invalid_fields"]), (400, &json!({"event_properties": [1, 3]})));
    // The Identify API.
    let form = |many: usize| format!("api_key=k&identification={}", json!(vec![json!({"user_id": "user-1"}); many]));
    assert_eq!(door.send("POST", "/identify", &[], form(1025)).await, (413, "payload_too_large".to_owned()));
    assert_eq!(door.send("POST", "/identify", &[], form(1024)).await, (200, "success".to_owned()));
    assert_eq!(world.submitted(), 4001 + 1024);
    door.end().await;
}

#[tokio::test]
async fn an_event_of_a_request_that_the_sdk_sends_in_halves_is_not_counted_as_rejected() {
    let world = World::new();
    let vendor = RuleConfig { limits: SizeLimits::Vendor, ..RuleConfig::default() };
    let door = Door::open(only(&world, &SourceConfig { rules: vendor, ..amplitude("app") })).await;
    let large: Vec<Value> = (0..2)
        .map(|n| {
            let mut large = event(&format!("user-{n}"));
            large["event_properties"] = (0..600).map(|n| (n.to_string(), Value::from("x".repeat(1000)))).collect();
            large
        })
        .collect();
    let post = async |events: &[Value]| door.post("/2/httpapi", &json!({"api_key": "k", "events": events})).await;
    assert_eq!(post(&large).await.0, 413);
    assert_eq!(world.rejected("too_large"), 0);
    for half in large.chunks(1) {
        assert_eq!(post(half).await.0, 200);
    }
    assert_eq!((world.submitted(), world.rejected("too_large")), (2, 0));
    // One that is too large alone has no halves.
    let mut alone = large[0].clone();
    for (name, value) in large[1]["event_properties"].as_object().unwrap() {
        alone["event_properties"][format!("other {name}")] = value.clone();
    }
    assert_eq!(post(&[alone]).await.0, 413);
    assert_eq!((world.submitted(), world.rejected("too_large")), (2, 1));
    door.end().await;
}
