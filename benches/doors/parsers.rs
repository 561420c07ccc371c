//! The pure part of each HTTP door, timed beside `serde_json::Value` over the same bytes.
//!
//! Place: first half of `benches/doors.rs`. A pass takes one request of a hundred messages from the body's bytes to the bytes of
//! its records and their keys, with the memory of one request, as the routes do; what follows (a source's rules, frames, the
//! spool) is in none of these. The yardstick reads the same bytes into trees and drops them: it makes no record. Both take
//! turns within a few milliseconds, and medians are told, so that a busy neighbour slows both.
//!
//! Failure: a panic where a door refuses what it is given, since then it would be timed over nothing.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use base64::Engine as _;
use forebay::config::{AmplitudeConfig, MParticleConfig, SegmentConfig, SegmentProfile};
use forebay::host::Host;
use forebay::ingest::amplitude::{self, Event, Upload};
use forebay::ingest::kinesis::request::{Put, decode, take_apart};
use forebay::ingest::kinesis::{Protocol, json};
use forebay::ingest::mparticle::{self, Batch, batch};
use forebay::ingest::pointer::{Pointers, Scratch};
use forebay::ingest::segment::{Maker, Path, Request, Rules};
use forebay::ingest::wire::{Item, lines};
use forebay::limits::KEY_BYTES_MAX;
use serde_json::Value;

/// Of one request.
pub const MESSAGES: usize = 100;

/// Before ten digits of a message's id.
pub const ID: &[u8] = b"node-next-";

/// The largest record, bytes.
const RECORD_BYTES_MAX: usize = (1 << 20) - KEY_BYTES_MAX;

/// Of each side; the middle one counts.
const ROUNDS: usize = 21;

const NOW_MS: u64 = 1_795_168_800_000;

/// A track call of some 500 B, as Segment's library for Node.js sends it.
pub fn message(number: usize) -> String {
    format!(
        concat!(
            r#"{{"userId":"user-{0:06}","type":"track","event":"Order Completed","properties":{{"orderId":"50314b8e-{0:06}","#,
            r#""total":30.5,"revenue":25.0,"currency":"USD","coupon":"hasbros","shipped":"2026-11-20","products":["#,
            r#"{{"product_id":"507f1f77","sku":"45790-32","name":"Monopoly: 3rd Edition","price":19,"quantity":1}}]}},"#,
            r#""context":{{"library":{{"name":"@segment/analytics-node","version":"2.3.0"}}}},"#,
            r#""timestamp":"2026-11-20T10:00:00.{1:03}Z","messageId":"node-next-1795168800-7ad5dbbc-{0:06}","#,
            r#""_metadata":{{"nodeVersion":"22.11.0","jsRuntime":"node"}}}}"#
        ),
        number,
        number % 1000
    )
}

/// The body of `/v1/batch` with the messages from `first` on.
pub fn segment_body(first: usize) -> String {
    let messages: Vec<String> = (first..first + MESSAGES).map(message).collect();
    format!(r#"{{"batch":[{}],"writeKey":"k","sentAt":"2026-11-20T10:00:01.000Z"}}"#, messages.join(","))
}

/// The same messages for `/ingest`, a line each.
pub fn lines_body(first: usize) -> String {
    (first..first + MESSAGES).map(message).fold(String::new(), |body, message| body + &message + "\n")
}

fn amplitude_body() -> String {
    let events: Vec<String> = (0..MESSAGES)
        .map(|number| {
            format!(
                concat!(
                    r#"{{"user_id":"user-{0:06}","device_id":"c0ffee-{0:06}","event_type":"Order Completed","#,
                    r#""time":1795168800123,"session_id":1795168800000,"event_id":{0},"insert_id":"7ad5dbbc-9c2f-{0:06}","#,
                    r#""platform":"Web","os_name":"Chrome","os_version":"131","language":"en-US","ip":"198.51.100.7","#,
                    r#""event_properties":{{"orderId":"50314b8e-{0:06}","total":30.5,"currency":"USD","products":["#,
                    r#"{{"sku":"45790-32","name":"Monopoly: 3rd Edition","price":19,"quantity":1}}]}},"#,
                    r#""user_properties":{{"plan":"pro","seats":7}},"library":"amplitude-ts/2.11.0"}}"#
                ),
                number
            )
        })
        .collect();
    format!(r#"{{"api_key":"k","events":[{}],"options":{{"min_id_length":5}}}}"#, events.join(","))
}

fn mparticle_body() -> String {
    let events: Vec<String> = (0..MESSAGES)
        .map(|number| {
            format!(
                concat!(
                    r#"{{"event_type":"custom_event","data":{{"event_name":"Order Completed","custom_event_type":"transaction","#,
                    r#""event_id":"-64967189077{0:06}","timestamp_unixtime_ms":1795168800123,"session_uuid":"9c2f-{0:06}","#,
                    r#""session_start_unixtime_ms":1795168800000,"source_message_id":"7ad5dbbc-9c2f-{0:06}","#,
                    r#""custom_attributes":{{"orderId":"50314b8e-{0:06}","total":"30.5","currency":"USD","coupon":"hasbros","#,
                    r#""sku":"45790-32","name":"Monopoly: 3rd Edition","price":"19","quantity":"1"}},"#,
                    r#""location":{{"latitude":52.52,"longitude":13.405,"accuracy":5}}}}}}"#
                ),
                number
            )
        })
        .collect();
    format!(
        concat!(
            r#"{{"environment":"production","mpid":7346244611012968789,"user_identities":{{"customer_id":"user-1"}},"#,
            r#""device_info":{{"brand":"b","platform":"iOS"}},"user_attributes":{{"plan":"pro"}},"events":[{}]}}"#
        ),
        events.join(",")
    )
}

fn kinesis_body() -> String {
    let mut body = r#"{"StreamName":"events","Records":["#.to_owned();
    for number in 0..MESSAGES {
        let data = base64::prelude::BASE64_STANDARD.encode(message(number));
        let comma = if number == 0 { "" } else { "," };
        write!(body, r#"{comma}{{"Data":"{data}","PartitionKey":"user-{number:06}"}}"#).expect("a String takes everything");
    }
    body + "]}"
}

/// What a part costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// A message, nanoseconds.
    pub nanos: f64,
}

/// Times all parts, prints a line each, and gives the costs of Segment's (classic) and of `/ingest`'s.
pub fn measure() -> (Cost, Cost) {
    println!("\nthe pure parts, {MESSAGES} messages a request, one thread; ratio: over serde_json::Value, same bytes, same run");
    println!("  {:<34}{:>9}{:>8}{:>10}{:>12}{:>8}", "", "B in", "ns", "MB/s in", "Value, ns", "ratio");
    let host = Host::real();
    let body = segment_body(0);
    let mut costs = Vec::new();
    for (name, profile) in
        [("segment, classic (dates)", SegmentProfile::Classic), ("segment, actions (verbatim)", SegmentProfile::Actions)]
    {
        let config = SegmentConfig { profile, ..SegmentConfig::default() };
        let rules = Rules::new(&config, &host);
        costs.push(compare(name, &body, || {
            let request = Request::take_apart(Path::Batch, body.as_bytes(), MESSAGES).expect("a good body");
            let mut maker = Maker::new(&rules, &request, RECORD_BYTES_MAX);
            request.messages().map(|message| maker.make(message).expect("valid").expect("wanted").data.len()).sum()
        }));
    }
    amplitude(&host);
    mparticle(&host);
    let body = kinesis_body();
    compare("kinesis, PutRecords JSON", &body, || {
        let value = Protocol::Json.read(black_box(body.as_bytes())).expect("a good body");
        let put = Put::read(&value, false).expect("PutRecords");
        let mut arena = Vec::new();
        let data = decode(&put.records, &mut arena).expect("base64");
        let events = take_apart(&put.records, &data, MESSAGES).expect("few events");
        events.iter().map(|event| event.data.len()).sum()
    });
    compare("  of it, the JSON alone", &body, || {
        let value = json::read(black_box(body.as_bytes())).expect("a good body");
        black_box(value).get("Records").map_or(0, |_| body.len())
    });
    let body = lines_body(0);
    let pointers = Pointers::compile(&["/userId"]).expect("a pointer");
    let mut scratch = Scratch::default();
    costs.push(compare("/ingest, lines, one pointer", &body, || {
        lines(body.as_bytes(), RECORD_BYTES_MAX)
            .map(|item| {
                let Item::Event { data, .. } = item else { panic!("a line is an event") };
                pointers.find(data, &mut scratch).expect("JSON").expect("a key").len() + data.len()
            })
            .sum()
    }));
    (costs[0], costs[2])
}

fn amplitude(host: &Host) {
    let body = amplitude_body();
    let config = AmplitudeConfig::default();
    compare("amplitude, 55 columns", &body, || {
        let upload = Upload::read(body.as_bytes(), MESSAGES).expect("a good body");
        let arrival = amplitude::record::Arrival::new(NOW_MS as i64 * 1000, None, host);
        // All are judged before the first is taken.
        let judge = |sent| Event::judge(sent, upload.id_chars_min).expect("a good event");
        let judged: Vec<Event<'_>> = upload.sent().map(judge).collect();
        let mut row = Vec::new();
        let write = |event: &Event<'_>| {
            row.clear();
            amplitude::record::write(event, &arrival, &config, &mut row);
            row.len()
        };
        judged.iter().map(write).sum()
    });
}

fn mparticle(host: &Host) {
    let body = mparticle_body();
    for (name, send_as_batch) in [("mparticle, one record", true), ("mparticle, a record an event", false)] {
        let config = MParticleConfig { send_as_batch, ..MParticleConfig::default() };
        compare(name, &body, || {
            let json = batch(body.as_bytes()).expect("a good body");
            let judged = Batch::judge(json, &config, MESSAGES).expect("a good batch");
            let arrival = mparticle::record::Arrival { now_ms: NOW_MS, host };
            let mut row = Vec::new();
            let mut write = |at: usize| {
                row.clear();
                let part = judged.is_apart(&config).then_some(at);
                mparticle::record::write(&judged, part, &arrival, &config, &mut row).len() + row.len()
            };
            (0..judged.records(&config)).map(&mut write).sum()
        });
    }
}

/// `part` gives the bytes that it made of the body.
fn compare(name: &str, body: &str, mut part: impl FnMut() -> usize) -> Cost {
    // What was made is about as large as what came in: nothing was left out.
    assert!(part() > body.len() / 2, "{name}: it made too little");
    let mut yardstick = || {
        let values = serde_json::Deserializer::from_str(black_box(body)).into_iter::<Value>();
        values.map(|value| usize::from(black_box(value.expect("JSON")).is_object())).sum()
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(round(&mut part));
        theirs.push(round(&mut yardstick));
    }
    let (nanos, value) = (median(ours) / MESSAGES as f64, median(theirs) / MESSAGES as f64);
    let bytes = body.len() as f64 / MESSAGES as f64;
    println!("  {name:<34}{bytes:>9.0}{nanos:>8.0}{:>10.0}{value:>12.0}{:>8.2}", bytes * 1000.0 / nanos, nanos / value);
    Cost { nanos }
}

/// Nanoseconds a pass, over some ten milliseconds: of this thread's CPU time, as the agent's is CPU time too.
fn round(pass: &mut dyn FnMut() -> usize) -> f64 {
    let (start, cpu, mut passes) = (Instant::now(), thread_cpu(), 0);
    while start.elapsed() < Duration::from_millis(10) {
        black_box(pass());
        passes += 1;
    }
    (thread_cpu() - cpu) / f64::from(passes)
}

/// Nanoseconds of CPU that this thread has had.
fn thread_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
