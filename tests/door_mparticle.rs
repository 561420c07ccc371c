//! mParticle's door over real HTTP and a real spool: routes, authentication, answers to the letter, records, bulk.
//!
//! Every test runs the real listener.

#![allow(clippy::disallowed_methods, reason = "tests look at files and clocks from outside")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/doors.rs"]
mod doors;

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use doors::{Door, World, config};
use forebay::config::{KeyFallback, MParticleConfig, RuleConfig, Secret, SizeLimits, SourceConfig, SourceKind};
use forebay::ingest::Sources;
use forebay::ingest::http::HttpOptions;
use hyper::HeaderMap;
use serde_json::{Value, json};

impl Door {
    /// Status, headers and body.
    async fn send(&self, method: &str, path: &str, pair: Option<&str>, body: impl Into<Bytes>) -> (u16, HeaderMap, String) {
        let basic = pair.map(|pair| format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair)));
        let headers: Vec<(&str, &str)> = basic.iter().map(|basic| ("authorization", &basic[..])).collect();
        let (status, headers, body) = self.exchange(method, path, &headers, body).await;
        (status, headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// With some key; status and body.
    async fn post(&self, path: &str, body: impl ToString) -> (u16, String) {
        let (status, _, body) = self.send("POST", path, Some("key:secret"), body.to_string()).await;
        (status, body)
    }
}

fn mparticle(name: &str) -> SourceConfig {
    SourceConfig {
        kind: SourceKind::MParticle,
        partition_key: Vec::new(),
        partition_key_fallback: KeyFallback::Reject,
        ..config(name)
    }
}

fn only(world: &World, config: &SourceConfig) -> Sources {
    Sources::new([world.source(config)])
}

fn batch(mpid: u64, events: usize) -> Value {
    let event =
        |n: usize| json!({"event_type": "custom_event", "data": {"event_name": "Played", "custom_event_type": "other", "n": n}});
    json!({"environment": "production", "mpid": mpid, "events": (0..events).map(event).collect::<Vec<_>>(),
           "user_identities": {"customer_id": "c-1"}, "ip": "10.0.0.1"})
}

fn rows(world: &World) -> Vec<(String, Value)> {
    world.events().into_iter().map(|(key, data)| (key, serde_json::from_slice(&data).unwrap())).collect()
}

/// The code of an answer's only error.
fn code(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["errors"].as_array().unwrap().len(), 1);
    assert!(!body["errors"][0]["message"].as_str().unwrap().is_empty());
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_batch_is_202_without_a_body_once_its_record_is_durable() {
    let world = World::new();
    let door = Door::open(only(&world, &mparticle("app"))).await;
    assert_eq!(door.post("/v2/events", batch(7_346_244_611_012_968_789, 2)).await, (202, String::new()));
    let rows = rows(&world);
    assert_eq!(rows.len(), 1);
    let (key, row) = &rows[0];
    assert_eq!((key.as_str(), &row["mpid"]), ("7346244611012968789", &json!(7_346_244_611_012_968_789_u64)));
    assert_eq!((row["events"].as_array().unwrap().len(), row.get("ip")), (2, None));
    assert_eq!(row["user_identities"][0]["identity_type"], "customer_id");
    door.end().await;
}

#[tokio::test]
async fn bulk_takes_the_good_batches_and_counts_the_others() {
    let world = World::new();
    let door = Door::open(only(&world, &mparticle("app"))).await;
    let body = json!([batch(1, 1), {"events": []}, 7, batch(2, 1)]);
    assert_eq!(door.post("/v2/bulkevents", body).await, (202, String::new()));
    let keys: Vec<String> = rows(&world).into_iter().map(|(key, _)| key).collect();
    assert_eq!((keys, world.rejected("malformed")), (vec!["1".to_owned(), "2".to_owned()], 2));
    // As alone.
    assert_eq!(door.post("/v2/events", r#"{"events":[]}"#).await.0, 400);
    assert_eq!(world.rejected("malformed"), 3);
    assert_eq!(door.post("/v2/bulkevents", "[]").await, (202, String::new()));
    door.end().await;
}

#[tokio::test]
async fn historical_batches_are_taken_and_never_forwarded() {
    let world = World::new();
    let door = Door::open(only(&world, &mparticle("app"))).await;
    assert_eq!(door.post("/v2/bulkevents/historical", json!([batch(1, 1)])).await, (202, String::new()));
    assert_eq!(door.post("/v2/bulkevents/historical", "{").await.0, 400);
    assert_eq!(world.submitted(), 0);
    door.end().await;
}

#[tokio::test]
async fn one_record_for_each_event_where_that_is_asked_for() {
    let world = World::new();
    let apart = MParticleConfig { send_as_batch: false, ..Default::default() };
    let door = Door::open(only(&world, &SourceConfig { mparticle: apart, ..mparticle("app") })).await;
    assert_eq!(door.post("/v2/bulkevents", json!([batch(1, 3), batch(2, 0)])).await.0, 202);
    let rows = rows(&world);
    let events: Vec<usize> = rows.iter().map(|(_, row)| row["events"].as_array().unwrap().len()).collect();
    assert_eq!(events, [1, 1, 1, 0]);
    assert_eq!(rows[2].1["events"][0]["data"]["n"], 2);
    // Much in common, and many events: more than any request may make.
    let mut large = batch(1, 20_000);
    large["user_attributes"] = json!({"a": "x".repeat(100_000)});
    let (status, body) = door.post("/v2/events", large).await;
    assert_eq!((status, code(&body).as_str()), (413, "PAYLOAD_TOO_LARGE"));
    assert_eq!(world.submitted(), 4);
    door.end().await;
}

#[tokio::test]
async fn a_missing_key_is_401_and_a_wrong_one_403() {
    let (one, other) = (World::new(), World::new());
    let keyed = |name: &str, key: &str| SourceConfig { keys: vec![Secret(key.to_owned())], ..mparticle(name) };
    let door =
        Door::open(Sources::new([one.source(&keyed("one", "key-1")), other.source(&keyed("other", "key-2:secret"))])).await;
    let (status, headers, body) = door.send("POST", "/v2/events", None, "{}").await;
    assert_eq!((status, code(&body).as_str(), &headers["www-authenticate"]), (401, "UNAUTHORIZED", &"Basic".parse().unwrap()));
    for (pair, status) in [("key-1:anything", 202), ("key-2:secret", 202), ("key-2:wrong", 403), ("key-2", 403), ("no:no", 403)] {
        let (answered, _, body) = door.send("POST", "/v2/events", Some(pair), batch(1, 1).to_string()).await;
        assert_eq!(answered, status, "{pair}: {body}");
        assert!(status == 202 || code(&body) == "FORBIDDEN");
    }
    assert_eq!((one.submitted(), other.submitted()), (1, 1));
    door.end().await;
}

#[tokio::test]
async fn bad_requests_are_told_in_an_array_of_errors() {
    let world = World::new();
    let door = Door::open(only(&world, &mparticle("app"))).await;
    let deep = format!(r#"{{"environment":"production","x":{}{}}}"#, "[".repeat(500_000), "]".repeat(500_000));
    for (path, body) in [
        ("/v2/events", ""),
        ("/v2/events", "{"),
        ("/v2/events", "[]"),
        ("/v2/events", "{}"),
        ("/v2/events", r#"{"environment":"production","events":[{}]}"#),
        ("/v2/events", &deep),
        ("/v2/bulkevents", "{}"),
        ("/v2/bulkevents", "[1,]"),
    ] {
        let (status, body) = door.post(path, body).await;
        assert_eq!((status, code(&body).as_str()), (400, "BAD_REQUEST"), "{path}");
    }
    let (status, _, body) = door.send("GET", "/v2/events", Some("k:s"), "").await;
    assert_eq!((status, code(&body).as_str()), (405, "METHOD_NOT_ALLOWED"));
    let (status, body) = door.post("/v2/events", " ".repeat(17 << 20)).await;
    assert_eq!((status, code(&body).as_str()), (413, "PAYLOAD_TOO_LARGE"));
    // Half a surrogate pair, long numbers and a long id are no reason to refuse.
    let odd = r#"{"environment":"production","user_attributes":{"\ud800":"\udfff","n":1234567890123456789012345678901234567890.10},"mpid":18446744073709551617}"#;
    assert_eq!(door.post("/v2/events", odd).await.0, 202);
    let (key, data) = world.events().pop().unwrap();
    assert_eq!(key, "18446744073709551617");
    let text = String::from_utf8(data).unwrap();
    assert!(text.contains(r#"{"\ud800":"\udfff","n":1234567890123456789012345678901234567890.10}"#), "{text}");
    door.end().await;
}

#[tokio::test]
async fn a_record_too_large_is_413_alone_and_left_out_in_bulk() {
    let world = World::new();
    let door = Door::open(only(&world, &SourceConfig { max_event_bytes: 4_000, ..mparticle("app") })).await;
    let mut large = batch(1, 1);
    large["user_attributes"] = json!({"a": "x".repeat(4_000)});
    let (status, body) = door.post("/v2/events", &large).await;
    assert_eq!((status, code(&body).as_str()), (413, "PAYLOAD_TOO_LARGE"));
    assert_eq!(door.post("/v2/bulkevents", json!([large, batch(2, 1)])).await.0, 202);
    assert_eq!((world.submitted(), world.rejected("too_large")), (1, 2));
    door.end().await;
}

#[tokio::test]
async fn without_a_source_of_the_kind_the_answer_names_the_remedy() {
    let world = World::new();
    let door = Door::open(world.web()).await;
    let (status, body) = door.post("/v2/events", batch(1, 1)).await;
    assert_eq!((status, code(&body).as_str()), (404, "NOT_FOUND"));
    assert!(body.contains("mparticle"));
    door.end().await;
}

#[tokio::test]
async fn an_agent_that_cannot_take_anything_answers_503_without_retry_after() {
    let world = World::stalled();
    let options = HttpOptions { admit_timeout: Duration::from_millis(50), ..Default::default() };
    let door = Door::with(only(&world, &mparticle("app")), options).await;
    let permits = doors::exhaust(&world.handle);
    let (status, headers, body) = door.send("POST", "/v2/events", Some("k:s"), batch(1, 1).to_string()).await;
    assert_eq!((status, code(&body).as_str(), headers.get("retry-after")), (503, "SERVICE_UNAVAILABLE", None));
    drop(permits);
    door.end().await;
}

#[tokio::test]
async fn with_limits_of_the_vendor_mparticles_own_are_kept_and_told_in_its_form() {
    let world = World::new();
    let vendor = RuleConfig { limits: SizeLimits::Vendor, ..RuleConfig::default() };
    let door = Door::open(only(&world, &SourceConfig { rules: vendor, ..mparticle("app") })).await;
    let of_bytes = |bytes: usize| {
        let json = batch(1, 1).to_string();
        format!("{json}{}", " ".repeat(bytes - json.len()))
    };
    assert_eq!(door.post("/v2/events", of_bytes(262_144)).await, (202, String::new()));
    let (status, body) = door.post("/v2/events", of_bytes(262_145)).await;
    assert_eq!((status, code(&body)), (413, "PAYLOAD_TOO_LARGE".to_owned()));
    for path in ["/v2/bulkevents", "/v2/bulkevents/historical"] {
        let (status, body) = door.post(path, json!(vec![batch(1, 1); 101])).await;
        assert_eq!((status, code(&body)), (413, "PAYLOAD_TOO_LARGE".to_owned()));
        assert_eq!(door.post(path, json!(vec![batch(1, 1); 100])).await, (202, String::new()));
    }
    assert_eq!(world.submitted(), 1 + 100);
    assert_eq!(world.rejected("too_large"), 1 + 101 + 101);
    door.end().await;
}
