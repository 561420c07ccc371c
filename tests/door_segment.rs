//! Segment's API as its SDKs see it: routes, keys, answers to the byte, what is durable after them.
//!
//! Every test runs the real listener over a real spool. Records field by field are the business of the unit tests in
//! `src/ingest/segment`; the SDKs themselves run in `tests/interop`.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use doors::{Door, World, config, keyed, soon, until};
use forebay::config::{RuleConfig, SegmentConfig, SegmentProfile, SizeLimits, SourceConfig, SourceKind};
use forebay::ingest::Sources;
use forebay::ingest::http::HttpOptions;
use hyper::HeaderMap;
use serde_json::{Value, json};

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn is_success(&self) -> bool {
        self.status == 200 && self.body == br#"{"success":true}"#[..] && self.headers["content-type"] == "application/json"
    }

    /// Status and code of an error, which must have all that SDKs read.
    fn error(&self) -> (u16, String) {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body["success"], false, "{body}");
        assert!(body["message"].as_str().is_some_and(|message| message.len() > 10), "{body}");
        (self.status, body["code"].as_str().unwrap().to_owned())
    }
}

impl Door {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let (status, headers, body) = self.exchange(method, path, headers, body).await;
        Answer { status, headers, body }
    }

    async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send("POST", path, &[], body).await
    }
}

fn segment(name: &str) -> SourceConfig {
    SourceConfig { kind: SourceKind::Segment, partition_key: Vec::new(), ..config(name) }
}

fn segment_keyed(name: &str, key: &str) -> SourceConfig {
    SourceConfig { kind: SourceKind::Segment, partition_key: Vec::new(), ..keyed(name, key) }
}

fn all_calls(name: &str) -> SourceConfig {
    let all = SegmentConfig { profile: SegmentProfile::Astronomer, ..SegmentConfig::default() };
    SourceConfig { segment: all, ..segment(name) }
}

fn basic(key: &str) -> String {
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(key))
}

/// Key and record of every durable event.
fn records(world: &World) -> Vec<(String, Value)> {
    world.events().into_iter().map(|(key, data)| (key, serde_json::from_slice(&data).unwrap())).collect()
}

#[tokio::test]
async fn every_route_of_a_message_answers_success_to_the_byte_and_the_record_is_durable() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&all_calls("seg"))])).await;
    let mut expected = Vec::new();
    for call in ["track", "identify", "page", "screen", "group", "alias"] {
        for path in [format!("/v1/{call}"), format!("/v1/{}", &call[..1])] {
            // Browsers label JSON as text, others as a form.
            for label in ["application/json", "text/plain", "application/x-www-form-urlencoded"] {
                let user = format!("u{}", expected.len());
                let body = json!({"userId": user, "anonymousId": null, "event": "e", "previousId": "p", "groupId": "g", "writeKey": "k"});
                let answer = door.send("POST", &path, &[("content-type", label)], body.to_string()).await;
                assert!(answer.is_success(), "{path}: {answer:?}");
                expected.push((user, call));
            }
        }
    }
    let found = records(&world);
    let found: Vec<(String, &str)> = found.iter().map(|(key, record)| (key.clone(), record["type"].as_str().unwrap())).collect();
    assert_eq!(found, expected);
    door.end().await;
}

#[tokio::test]
async fn a_batch_takes_its_good_messages_and_counts_the_others() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&segment("seg"))])).await;
    let body = json!({"sentAt": "2024-01-01T00:00:00Z", "context": {"ip": "1.2.3.4"}, "batch": [
        {"type": "track", "event": "e", "userId": "a"},
        {"type": "track", "userId": "no event"},
        {"type": "screen", "userId": "not in this profile"},
        "no object",
        {"type": "identify", "anonymousId": "b", "integrations": {"All": false}},
        {"type": "identify", "userId": "", "anonymousId": "c", "context": {"x": 1}},
    ]});
    for path in ["/v1/batch", "/v1/b", "/v1/import", "/v1/import/"] {
        assert!(door.post(path, body.to_string()).await.is_success(), "{path}");
    }
    assert!(door.post("/v1/batch", r#"{"batch":[]}"#).await.is_success());
    let found = records(&world);
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["a", "c"].repeat(4));
    assert_eq!(found[1].1["context"], json!({"ip": "1.2.3.4", "x": 1}));
    assert_eq!((world.submitted(), world.rejected("not_valid")), (8, 8));
    door.end().await;
}

#[tokio::test]
async fn a_thousand_messages_in_one_gzipped_body_keep_their_order() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&segment("seg"))])).await;
    let filler = "x".repeat(1000);
    let batch: Vec<Value> = (0..1000)
        .map(|n| json!({"type": "track", "event": "e", "userId": "u", "properties": {"n": n, "filler": filler}}))
        .collect();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(json!({ "batch": batch }).to_string().as_bytes()).unwrap();
    let headers = [("content-encoding", "gzip"), ("content-type", "application/x-www-form-urlencoded")];
    assert!(door.send("POST", "/v1/batch", &headers, encoder.finish().unwrap()).await.is_success());
    let numbers: Vec<u64> = records(&world).iter().map(|(_, record)| record["properties"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<u64>>());
    door.end().await;
}

#[tokio::test]
async fn what_is_refused_as_a_whole_has_a_code_and_a_message() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&segment("seg"))])).await;
    for (path, body, code) in [
        ("/v1/batch", "", "invalid_json"),
        ("/v1/batch", r#"{"batch":[{"type":"track","event":"e","userId":"u"},]}"#, "invalid_json"),
        ("/v1/batch", "{}", "invalid_request"),
        ("/v1/batch", "[]", "invalid_request"),
        ("/v1/track", "nonsense", "invalid_request"),
        ("/v1/track", r#"{"event":"e"}"#, "no_user_anon_id"),
        ("/v1/t", r#"{"userId":"u"}"#, "no_event"),
        ("/v1/alias", r#"{"userId":"u"}"#, "no_previous_id"),
        ("/v1/custom/event", r#"{"a":1}"#, "no_metadata"),
    ] {
        assert_eq!(door.post(path, body).await.error(), (400, code.to_owned()), "{path} {body}");
    }
    let large = format!(r#"{{"userId":"u","event":"e","x":"{}"}}"#, "x".repeat(2 << 20));
    assert_eq!(door.post("/v1/track", large.clone()).await.error(), (400, "too_large".to_owned()));
    // In a batch it is one that is not taken.
    assert!(
        door.post("/v1/batch", format!(r#"{{"batch":[{}]}}"#, large.replacen('{', r#"{"type":"track","#, 1))).await.is_success()
    );
    assert_eq!(door.post("/v1/batch", "x".repeat((16 << 20) + 1)).await.error(), (400, "too_large".to_owned()));
    assert_eq!(door.send("GET", "/v1/batch", &[], "").await.error(), (405, "method_not_allowed".to_owned()));
    assert_eq!(door.send("POST", "/v1/track", &[("content-encoding", "br")], "x").await.error().0, 415);
    assert_eq!(world.submitted(), 0);
    door.end().await;
}

#[tokio::test]
async fn the_write_key_tells_the_source_and_the_header_wins_over_the_body() {
    let world = World::new();
    let named = |name: &str| {
        let project = SegmentConfig { project_id: Some(name.to_owned()), ..SegmentConfig::default() };
        world.source(&SourceConfig { segment: project, ..segment_keyed(name, &format!("key-{name}")) })
    };
    let door = Door::open(Sources::new([named("one"), named("two")])).await;
    let message = |key: Value| json!({"event": "e", "userId": "u", "writeKey": key}).to_string();
    let of_batch = |key: Value| json!({"batch": [{"type": "track", "event": "e", "userId": "u"}], "writeKey": key}).to_string();
    for (headers, body, path) in [
        (Some(basic("key-one:")), message(json!("key-two")), "/v1/track"),
        (Some(basic("key-one")), message(Value::Null), "/v1/track"),
        (Some(basic("key-one:secret")), of_batch(json!("unheard")), "/v1/batch"),
        (None, message(json!("key-one")), "/v1/track"),
        (None, of_batch(json!("key-one")), "/v1/batch"),
        (Some("Bearer some.oauth.token".to_owned()), of_batch(json!("key-one")), "/v1/batch"),
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|value| ("authorization", value.as_str())).collect();
        let answer = door.send("POST", path, &headers, body).await;
        assert!(answer.is_success(), "{headers:?}: {answer:?}");
    }
    let unknown = basic("unheard:");
    assert_eq!(
        door.send("POST", "/v1/track", &[("authorization", unknown.as_str())], message(json!("key-one"))).await.error(),
        (401, "invalid_write_key".to_owned())
    );
    assert_eq!(door.post("/v1/track", message(json!("unheard"))).await.error(), (401, "invalid_write_key".to_owned()));
    assert_eq!(door.post("/v1/track", message(Value::Null)).await.error(), (404, "no_source".to_owned()));
    let found = records(&world);
    assert_eq!(found.len(), 6);
    assert!(found.iter().all(|(_, record)| record["projectId"] == "one" && record.get("writeKey").is_none()));
    door.end().await;
}

#[tokio::test]
async fn without_a_source_of_the_kind_the_answer_names_the_remedy() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let answer = door.post("/v1/batch", r#"{"batch":[]}"#).await;
    assert_eq!(answer.error(), (404, "no_source".to_owned()));
    assert!(String::from_utf8_lossy(&answer.body).contains("kind = \\\"segment\\\""));
    door.end().await;
}

#[tokio::test]
async fn client_metrics_and_unknown_names_are_swallowed() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&segment("seg"))])).await;
    for path in ["/v1/m", "/v1/unheard", "/v1/"] {
        assert!(door.post(path, r#"{"series":[{"type":"Counter"}]}"#).await.is_success(), "{path}");
    }
    assert_eq!(world.submitted(), 0);
    door.end().await;
}

#[tokio::test]
async fn a_pixel_is_always_an_image_and_its_message_a_record() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&segment_keyed("seg", "k"))])).await;
    let data = |message: Value| base64::prelude::BASE64_STANDARD_NO_PAD.encode(message.to_string());
    let good = data(json!({"writeKey": "k", "userId": "u1", "event": "Email Opened", "properties": {"n": 1.5}}));
    for query in [
        format!("data={good}"),
        "writeKey=k&userId=u2&event=Email%20Opened&properties=%7B%22n%22:1.5%7D".to_owned(),
        "data=***".to_owned(),
        format!("data={}", data(json!({"writeKey": "unheard", "userId": "u3", "event": "e"}))),
        String::new(),
    ] {
        let answer = door.send("GET", &format!("/v1/pixel/track?{query}"), &[], "").await;
        assert_eq!((answer.status, &answer.headers["content-type"]), (200, &"image/gif".parse().unwrap()), "{query}");
        assert!(answer.body.starts_with(b"GIF89a") && answer.body.ends_with(b";"));
    }
    let found = records(&world);
    assert_eq!(found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["u1", "u2"]);
    for (_, record) in found {
        assert_eq!(
            (&record["event"], &record["properties"], &record["channel"]),
            (&json!("Email Opened"), &json!({"n": 1.5}), &json!("client"))
        );
    }
    door.end().await;
}

#[tokio::test]
async fn settings_point_a_browsers_library_at_the_agent() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&segment_keyed("seg", "k"))])).await;
    let answer = door.send("GET", "/v1/projects/k/settings", &[], "").await;
    let settings: Value = serde_json::from_slice(&answer.body).unwrap();
    let own = &settings["integrations"]["Segment.io"];
    let host = format!("{}/v1", door.address);
    assert_eq!(
        (answer.status, &own["apiKey"], &own["apiHost"], &own["protocol"]),
        (200, &json!("k"), &json!(host), &json!("http"))
    );
    assert_eq!(door.send("GET", "/v1/projects/unheard/settings", &[], "").await.error().0, 401);
    door.end().await;
}

#[tokio::test]
async fn metarouters_events_of_any_form_take_their_metadata_from_body_header_or_query() {
    let world = World::new();
    let door = Door::open(Sources::new([world.source(&segment_keyed("seg", "k"))])).await;
    let metadata = |user: &str| json!({"writeKey": "k", "eventName": "page view", "userID": user});
    let in_body = json!({"_metarouter": metadata("u1"), "any": 1}).to_string();
    assert!(door.post("/v1/custom/event", in_body).await.is_success());
    let header = metadata("u2").to_string();
    assert!(door.send("POST", "/v1/custom/event", &[("x-event-metadata", header.as_str())], r#"{"any":2}"#).await.is_success());
    assert!(door.post("/v1/custom/event?writeKey=k&eventName=page%20view&userID=u3", r#"{"any":3}"#).await.is_success());
    for (at, (key, record)) in records(&world).into_iter().enumerate() {
        assert_eq!((key, &record["any"]), (format!("u{}", at + 1), &json!(at + 1)));
        let metadata = record["_metarouter"].as_object().unwrap();
        let names: Vec<&str> = metadata.keys().map(String::as_str).collect();
        assert_eq!(names, ["eventID", "eventName", "timestamp", "userID"]);
    }
    assert_eq!(world.submitted(), 3);
    door.end().await;
}

#[tokio::test]
async fn success_comes_after_the_commit_and_a_spool_that_fails_is_unavailable() {
    let mut world = World::stalled();
    let door = Door::open(Sources::new([world.source(&segment("seg"))])).await;
    let message = r#"{"event":"e","userId":"u"}"#;
    {
        let mut answer = std::pin::pin!(door.post("/v1/track", message));
        tokio::select! {
            early = &mut answer => panic!("{early:?} before anything is durable"),
            () = until("the message is submitted", || world.submitted() == 1) => {}
        }
        world.go_and_fail();
        let answer = soon(answer).await;
        assert_eq!(answer.error(), (503, "unavailable".to_owned()));
        assert!(answer.headers.contains_key("retry-after"));
    }
    let pixel = door.send("GET", "/v1/pixel/page?userId=u", &[], "").await;
    assert_eq!((pixel.status, &pixel.headers["content-type"]), (503, &"image/gif".parse().unwrap()));
    door.end().await;
}

#[tokio::test]
async fn hostile_bodies_get_a_clear_answer_and_the_next_request_is_served() {
    let world = World::new();
    let options = HttpOptions { body_timeout: Duration::from_secs(5), ..HttpOptions::default() };
    let door = Door::with(Sources::new([world.source(&segment("seg"))]), options).await;
    let deep =
        |n: usize| format!(r#"{{"batch":[{{"type":"identify","userId":"u","traits":{}{}}}]}}"#, "[".repeat(n), "]".repeat(n));
    let names: String = (0..50_000).map(|n| format!(r#""k{n}":{n},"#)).collect();
    for (body, status) in [
        (deep(1_000_000), 200),
        ("[".repeat(1_000_000), 400),
        (format!(r#"{{"batch":{}"#, "[".repeat(1_000_000)), 400),
        (format!(r#"{{"batch":[{{{names}"type":"identify","userId":"many names"}}]}}"#), 200),
        (format!(r#"{{"context":{{{names}"x":1}},"batch":[]}}"#), 400),
        (format!(r#"{{"batch":[{}1]}}"#, "1,".repeat(100_000)), 400),
        (r#"{"batch":[{"type":"identify","userId":"\ud800","traits":{"n":1e999999,"\u0000":"\u0000"}}]}"#.to_owned(), 200),
        ("{\"batch\":[\"\u{0}\"]}".to_owned(), 400),
    ] {
        let answer = door.post("/v1/batch", body).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    assert_eq!(door.post("/v1/batch", &b"{\"batch\":[\"\xff\"]}"[..]).await.error(), (400, "invalid_json".to_owned()));
    // serde_json reads no half surrogate pair.
    let keys: Vec<String> = world.events().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["many names", "\u{fffd}"]);
    let raw = world.texts();
    assert!(raw[1].contains(r#""userId":"\ud800","traits":{"n":1e999999,"\u0000":"\u0000"}"#), "{}", raw[1]);
    door.end().await;
}

#[tokio::test]
async fn with_limits_of_the_vendor_segments_own_are_kept_and_what_is_dropped_is_counted() {
    let world = World::new();
    let vendor = RuleConfig { limits: SizeLimits::Vendor, ..RuleConfig::default() };
    let door = Door::open(Sources::new([world.source(&SourceConfig { rules: vendor, ..segment("seg") })])).await;
    let message = |user: &str, bytes: usize| json!({"type": "track", "event": "e", "userId": user, "x": "x".repeat(bytes)});
    // Alone.
    assert!(door.post("/v1/track", message("alone", 32_000).to_string()).await.is_success());
    let answer = door.post("/v1/track", message("large", 33_000).to_string()).await;
    assert_eq!(answer.error(), (400, "too_large".to_owned()));
    let long = json!({"event": "e", "userId": "u", "messageId": "m".repeat(100)});
    assert_eq!(door.post("/v1/track", long.to_string()).await.error(), (400, "message_id_too_long".to_owned()));
    assert_eq!((world.rejected("too_large"), world.rejected("not_valid")), (1, 1));
    // In a batch.
    let batch = json!({"batch": [message("first", 1), message("large", 33_000), message("last", 1)]});
    assert!(door.post("/v1/batch", batch.to_string()).await.is_success());
    assert_eq!(world.rejected("too_large"), 2);
    let body = format!("{batch}{}", " ".repeat(512_001));
    assert_eq!(door.post("/v1/batch", body).await.error(), (400, "too_large".to_owned()));
    // The whole of it is given up.
    assert_eq!(world.rejected("too_large"), 5);
    let many: Vec<Value> = (0..2502).map(|n| json!({"type": "track", "event": "e", "userId": format!("n{n}")})).collect();
    assert!(door.post("/v1/batch", json!({"batch": many}).to_string()).await.is_success());
    assert_eq!(world.rejected("not_valid"), 3);
    let keys: Vec<String> = world.events().into_iter().map(|(key, _)| key).collect();
    assert_eq!(
        (keys.len(), &keys[..3], keys[2502].as_str()),
        (2503, &["alone", "first", "last"].map(str::to_owned)[..], "n2499")
    );
    door.end().await;
}
