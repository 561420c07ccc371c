//! What the fuzz targets of the doors do with a request's body.
//!
//! Place: part of `bodies.rs`. The bytes are the body as a client could send it; the second opinion is serde_json's.

use std::sync::Arc;

use forebay::config::{AmplitudeConfig, MParticleConfig, SegmentConfig, SegmentProfile};
use forebay::host::Host;
use forebay::ingest::amplitude::identify::{Call, Form};
use forebay::ingest::amplitude::record::{self, Arrival};
use forebay::ingest::amplitude::{Event, Upload};
use forebay::ingest::kinesis::request::{Put, decode, judge_sizes, take_apart};
use forebay::ingest::kinesis::shards::{Page, Stream, streams};
use forebay::ingest::kinesis::signature::Authorization;
use forebay::ingest::kinesis::value::Value;
use forebay::ingest::kinesis::{Protocol, cbor, json};
use forebay::ingest::members::Members;
use forebay::ingest::mparticle;
use forebay::ingest::segment::{Flaw, Maker, Path as Route, Request, Rules, SHARED_BYTES_MAX, body_of_query};

use super::Feed;
use super::fault_files::{FaultFiles, SimClock, sim_host};

/// Amplitude's requests: whatever is taken becomes one JSON object of bounded size on one line, with its members spliced.
pub fn amplitude(data: &[u8]) {
    let form = Form::read(data);
    for call in [Call::User, Call::Group] {
        for one in form.identifications(call, 1000).unwrap_or_default() {
            assert!(!one.key.is_empty() && serde_json::from_str::<serde::de::IgnoredAny>(one.json).is_ok());
        }
    }
    let upload = match Upload::read(data, 1000) {
        Ok(upload) => upload,
        Err(refusal) => {
            let (status, body) = refusal.answer();
            assert!(matches!(status, 400 | 413) && serde_json::from_str::<serde_json::Value>(&body).is_ok());
            return;
        }
    };
    let host = Host::real();
    for stringify_user_properties in [false, true] {
        let config = AmplitudeConfig { stringify_user_properties, ..AmplitudeConfig::default() };
        for sent in upload.sent() {
            let (json, theirs) = (sent.json, Members::of(sent.json));
            let Ok(event) = Event::judge(sent, upload.id_chars_min) else { continue };
            let theirs = theirs.expect("what is judged good is an object");
            let arrival = Arrival::new(1_700_000_000_000_000, upload.client_upload_us, &host);
            let mut row = Vec::new();
            record::write(&event, &arrival, &config, &mut row);
            assert!(row.len() <= record::bytes_max(json, &config), "the bound is too small");
            assert!(!row.contains(&b'\n'));
            let text = std::str::from_utf8(&row).expect("a row is UTF-8");
            let members = Members::of(text).expect("a row is one object");
            assert_eq!(members.iter().count(), 55);
            let lines = |text: &str| text.replace(['\n', '\r'], "");
            let spliced =
                ["event_properties", "groups", "group_properties"].map(|name| (name, theirs.given(name).unwrap_or("{}")));
            for (column, value) in spliced.into_iter().chain([("city", theirs.given("city").unwrap_or("null"))]) {
                assert_eq!(members.get(column).map(str::to_owned), Some(lines(value)), "{column}");
            }
        }
    }
}

/// mParticle's batches: whatever is taken becomes JSON objects of bounded size on one line each, with a key.
pub fn mparticle(data: &[u8]) {
    let batches = match data.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => mparticle::batches(data, 1000),
        _ => mparticle::batch(data).map(|batch| vec![batch]),
    };
    let host = Host::real();
    let apart = MParticleConfig {
        send_as_batch: false,
        include: MParticleConfig::INCLUDE.map(str::to_owned).into(),
        exclude_metadata: ["brand".to_owned()].into(),
        unique_id: Some("\u{1}\"".to_owned()),
        ..MParticleConfig::default()
    };
    for config in [MParticleConfig::default(), apart] {
        for json in batches.iter().flatten() {
            let Ok(batch) = mparticle::Batch::judge(json, &config, 1000) else { continue };
            for at in 0..batch.records(&config) {
                let part = batch.is_apart(&config).then_some(at);
                let arrival = mparticle::record::Arrival { now_ms: 1_700_000_000_000, host: &host };
                let mut row = Vec::new();
                let key = mparticle::record::write(&batch, part, &arrival, &config, &mut row);
                assert!(!key.is_empty());
                assert!(row.len() <= mparticle::record::bytes_max(&batch, part, &config), "the bound is too small");
                assert!(!row.contains(&b'\n'));
                let members = Members::of(std::str::from_utf8(&row).expect("a row is UTF-8")).expect("a row is one object");
                assert!(members.get("ip").is_none() && members.get("schema_version") == Some("2"));
            }
        }
    }
}

/// Requests of the Kinesis API: what serde_json reads we read alike, what we write we read again, and of a request that is good
/// every record yields events.
pub fn kinesis(data: &[u8]) {
    const EVENTS_MAX: usize = 1000;
    let mut feed = Feed(data);
    let protocol = if feed.byte() & 1 == 0 { Protocol::Json } else { Protocol::Cbor };
    let body = feed.0;
    if let Ok(header) = std::str::from_utf8(body) {
        let read = Authorization::read(header);
        assert!(read.is_err() || header.starts_with("AWS4-HMAC-SHA256"));
    }
    if protocol == Protocol::Json
        && let Ok(theirs) = serde_json::from_slice::<serde_json::Value>(body)
    {
        assert!(same_value(&json::read(body).expect("serde_json takes it"), &theirs), "we and serde_json read different values");
    }
    let Ok(value) = protocol.read(body) else { return };
    let mut text = Vec::new();
    json::write(&value, &mut text);
    assert!(text.len() <= 8 * body.len() + 64, "an answer out of proportion");
    serde_json::from_slice::<serde::de::IgnoredAny>(&text).expect("what is written is JSON");
    let mut bytes = Vec::new();
    cbor::write(&value, &mut bytes);
    let again = cbor::read(&bytes).expect("what is written is CBOR");
    let mut once_more = Vec::new();
    cbor::write(&again, &mut once_more);
    assert!(bytes == once_more, "what is written and read is written alike");
    for single in [true, false] {
        let Ok(put) = Put::read(&value, single) else { continue };
        let mut arena = Vec::new();
        let Ok(data) = decode(&put.records, &mut arena) else { continue };
        assert_eq!(data.len(), put.records.len());
        let Ok(events) = take_apart(&put.records, &data, EVENTS_MAX) else { continue };
        assert!(events.len() <= EVENTS_MAX && events.is_sorted_by_key(|event| event.record));
        for (record, whole) in (0..).zip(&data) {
            let mut mine = events.iter().filter(|event| event.record == record).peekable();
            assert!(mine.peek().is_some(), "a record without an event");
            assert!(mine.all(|event| event.aggregated || event.data == *whole));
        }
        assert!(events.iter().all(|event| !event.key.is_empty() && event.key.chars().count() <= 256));
        assert_eq!(judge_sizes(&events, single, |_| true, 0), Ok(()));
    }
    let stream = Stream::new("clicks", None, None, None);
    if let Ok(page) = Page::read(&value) {
        assert!(stream.listed(&page).get("Shards").is_some());
    }
    if let Ok(described) = stream.full(&value) {
        assert!(described.get("StreamDescription").is_some());
    }
    if let Ok(listed) = streams(&[stream], &value) {
        assert!(listed.get("StreamNames").is_some());
    }
}

fn same_value(ours: &Value<'_>, theirs: &serde_json::Value) -> bool {
    match (ours, theirs) {
        (Value::Null, serde_json::Value::Null) => true,
        (Value::Bool(a), serde_json::Value::Bool(b)) => a == b,
        (Value::Int(a), serde_json::Value::Number(b)) => Some(*a) == b.as_i64() || (*a == 0 && b.as_f64() == Some(0.0)),
        (Value::Number, serde_json::Value::Number(b)) => b.as_i64().is_none(),
        (Value::Text(a), serde_json::Value::String(b)) => a == b,
        (Value::List(a), serde_json::Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b)),
        (Value::Map(a), serde_json::Value::Object(b)) => {
            let last = |name: &str| a.iter().rev().find(|(held, _)| held == name).map(|(_, value)| value);
            a.iter().all(|(name, _)| b.contains_key(&**name))
                && b.iter().all(|(name, value)| last(name).is_some_and(|own| same_value(own, value)))
        }
        _ => false,
    }
}

/// A request to Segment's door, from its body to its records, which must be JSON on one line, no larger than was promised.
pub fn segment_api(data: &[u8]) {
    let Some((&choice, body)) = data.split_first() else { return };
    let path = ["/v1/batch", "/v1/track", "/v1/a", "/v1/custom/event"][usize::from(choice & 3)];
    let profile = if choice & 4 == 0 { SegmentProfile::Astronomer } else { SegmentProfile::Actions };
    let config = SegmentConfig { profile, project_id: (choice & 8 != 0).then(|| "p".to_owned()), ..SegmentConfig::default() };
    let host = sim_host(&FaultFiles::default(), &Arc::new(SimClock::new()), 1);
    let rules = Rules::new(&config, &host);
    let path = Route::of(path).expect("a path of the door");
    let text = std::str::from_utf8(body);
    if let Some(query) = text.ok().and_then(body_of_query) {
        // A parameter `data`, also one without a value or with escapes in its name, holds whatever it holds.
        let may_have_data = text.is_ok_and(|text| text.contains("data") || text.contains('%'));
        assert!(may_have_data || is_json(&query), "a query became no JSON");
    }
    let request = Request::take_apart(path, body, 1000);
    let mut request = match request {
        Ok(request) => request,
        Err(problem) => {
            assert!(problem.code != "invalid_json" || !is_json(body), "JSON was taken for none");
            return;
        }
    };
    assert!(is_json(body), "what is not JSON was taken for it");
    request.offer_metadata(br#"{"eventName":"e","userID":"u"}"#);
    let sizes = Maker::new(&rules, &request, 1 << 20);
    let mut maker = Maker::new(&rules, &request, 1 << 20);
    for message in request.messages() {
        let made = if path == Route::Custom { maker.make_custom(message) } else { maker.make(message) };
        let Ok(Some(made)) = made else {
            assert!(made.err() != Some(Flaw::TooLarge) || message.len() > (1 << 20) / 3 - SHARED_BYTES_MAX * 3);
            continue;
        };
        assert!(!made.key.is_empty() && made.data.len() <= sizes.bytes_of(message));
        assert!(is_json(made.data) && !made.data.contains(&b'\n'), "a record is no JSON on one line");
        // The tree refuses more: half a surrogate pair, a number beyond f64.
        if let Ok(tree) = serde_json::from_slice::<serde_json::Value>(made.data) {
            assert!(tree.get("writeKey").is_none() && tree["_metarouter"].get("writeKey").is_none() || path != Route::Custom);
            assert!(path == Route::Custom || ["receivedAt", "timestamp", "type"].iter().all(|name| tree[name].is_string()));
        }
    }
}

fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}
