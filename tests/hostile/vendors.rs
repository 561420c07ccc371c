//! Rows for the paths of vendors and of the Kinesis API: what each door must say in its vendor's own form of an error.
//!
//! Place: included by `hostile.rs`, which sends them. Where a vendor accepts a request with a bad event in it, the row expects
//! that answer; what becomes of the event is tested with the door.

use super::{Row, Sent, gzip};

const SEGMENT: (&str, &str) = ("/v1/batch", "");
const SEGMENT_ALONE: (&str, &str) = ("/v1/track", "");
const AMPLITUDE: (&str, &str) = ("/2/httpapi", "");
const IDENTIFY: (&str, &str) = ("/identify", "");
const MPARTICLE: (&str, &str) = ("/v2/events", "authorization: Basic a2V5OnNlY3JldA==\r\n");
const MPARTICLE_BULK: (&str, &str) = ("/v2/bulkevents", "authorization: Basic a2V5OnNlY3JldA==\r\n");
const KINESIS: (&str, &str) = ("/", "x-amz-target: Kinesis_20131202.PutRecord\r\ncontent-type: application/x-amz-json-1.1\r\n");
const KINESIS_CBOR: (&str, &str) =
    ("/", "x-amz-target: Kinesis_20131202.PutRecord\r\ncontent-type: application/x-amz-cbor-1.1\r\n");

/// A body to a door, the only status that is right, and what the answer must say.
fn row(door: (&'static str, &'static str), name: &'static str, body: impl Into<Vec<u8>>, status: u16, says: &'static str) -> Row {
    let answers: &'static [u16] = match status {
        200 => &[200],
        202 => &[202],
        400 => &[400],
        408 => &[408],
        413 => &[413],
        other => panic!("no row expects {other}"),
    };
    Row { name, path: door.0, headers: door.1, sent: Sent::Body(body.into()), answers, says }
}

/// The same, said to be zipped.
fn zipped(
    door: (&'static str, &'static str),
    name: &'static str,
    body: impl Into<Vec<u8>>,
    status: u16,
    says: &'static str,
) -> Row {
    let body = body.into();
    let lines = format!("{}content-encoding: gzip\r\ncontent-length: {}\r\n", door.1, body.len());
    Row { sent: Sent::Bytes(whole(door.0, &lines, &body)), ..row(door, name, "", status, says) }
}

/// A body that is shorter than its length says.
fn short(door: (&'static str, &'static str), name: &'static str, body: &str, says: &'static str) -> Row {
    let lines = format!("{}content-length: {}\r\n", door.1, body.len() + 100);
    Row { sent: Sent::Bytes(whole(door.0, &lines, body.as_bytes())), ..row(door, name, "", 408, says) }
}

/// A length that is more than any body may have.
fn giant(door: (&'static str, &'static str), name: &'static str, status: u16, says: &'static str) -> Row {
    let lines = format!("{}content-length: 99999999999999\r\n", door.1);
    Row { sent: Sent::Bytes(whole(door.0, &lines, b"{}")), ..row(door, name, "", status, says) }
}

fn whole(path: &str, lines: &str, body: &[u8]) -> Vec<u8> {
    [format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n").as_bytes(), body].concat()
}

fn deep(levels: usize) -> String {
    ["[".repeat(levels), "]".repeat(levels)].concat()
}

/// 100,000 members, with a comma after each.
fn many_keys() -> String {
    (0..100_000).map(|at| format!(r#""{at:05x}":1,"#)).collect()
}

fn same_keys() -> String {
    r#""a":1,"#.repeat(50_000)
}

fn digits() -> String {
    "9".repeat(500_000)
}

fn bomb() -> Vec<u8> {
    gzip(&vec![b' '; 64 << 20])
}

pub fn segment() -> Vec<Row> {
    const SUCCESS: &str = r#"{"success":true}"#;
    const NOT_JSON: &str = r#"{"code":"invalid_json","message":""#;
    const TOO_LARGE: &str = r#"{"code":"too_large","message":""#;
    let message = |value: &str| format!(r#"{{"type":"track","event":"e","userId":"u","x":{value}}}"#);
    let batch = |value: &str| format!(r#"{{"batch":[{}]}}"#, message(value));
    let zip = gzip(batch("1").as_bytes());
    vec![
        row(SEGMENT, "segment: depth bomb in a batch", batch(&deep(200_000)), 200, SUCCESS),
        row(SEGMENT_ALONE, "segment: depth bomb alone", message(&deep(200_000)), 400, r#""code":"nested_too_deep""#),
        row(SEGMENT, "segment: depth bomb as the batch", format!(r#"{{"batch":{}}}"#, deep(200_000)), 200, SUCCESS),
        row(
            SEGMENT,
            "segment: depth bomb that all share",
            format!(r#"{{"context":{{"a":{}}},"batch":[{}]}}"#, deep(10_000), message("1")),
            200,
            SUCCESS,
        ),
        row(SEGMENT, "segment: depth bomb without an end", format!(r#"{{"batch":[{}"#, "[".repeat(1 << 20)), 400, NOT_JSON),
        row(SEGMENT, "segment: depth bomb as the body", deep(200_000), 400, r#""code":"invalid_request""#),
        row(
            SEGMENT,
            "segment: 100,000 keys",
            format!(r#"{{"batch":[{{{}"type":"track","event":"e","userId":"u"}}]}}"#, many_keys()),
            200,
            SUCCESS,
        ),
        row(
            SEGMENT,
            "segment: 100,000 keys of the batch",
            format!(r#"{{{}"batch":[{}]}}"#, many_keys(), message("1")),
            200,
            SUCCESS,
        ),
        row(SEGMENT, "segment: equal keys", format!(r#"{{{}"batch":7,"batch":[{}]}}"#, same_keys(), message("1")), 200, SUCCESS),
        row(
            SEGMENT_ALONE,
            "segment: equal keys, the last without an id",
            r#"{"event":"e","userId":"u","userId":null}"#,
            400,
            r#""code":"no_user_anon_id""#,
        ),
        row(SEGMENT, "segment: a huge number", batch(&digits()), 200, SUCCESS),
        row(SEGMENT_ALONE, "segment: a huge number as id", format!(r#"{{"event":"e","userId":{}}}"#, digits()), 200, SUCCESS),
        row(
            SEGMENT_ALONE,
            "segment: a number beyond f64 as time",
            r#"{"event":"e","userId":"u","timestamp":1e999999}"#,
            200,
            SUCCESS,
        ),
        row(
            SEGMENT_ALONE,
            "segment: half surrogate pairs",
            r#"{"event":"\udc00","userId":"\ud800","\ud83d":"\ud83d"}"#,
            200,
            SUCCESS,
        ),
        row(SEGMENT_ALONE, "segment: NUL in a string", "{\"event\":\"e\",\"userId\":\"a\0b\"}", 400, NOT_JSON),
        row(SEGMENT, "segment: NULs", vec![0; 500_000], 400, r#""code":"invalid_request""#),
        row(SEGMENT, "segment: no UTF-8", b"{\"batch\":[\"\xff\"]}", 400, NOT_JSON),
        row(SEGMENT, "segment: too many messages", format!(r#"{{"batch":[{}1]}}"#, "1,".repeat(100_000)), 400, TOO_LARGE),
        zipped(SEGMENT, "segment: a gzip cut short", &zip[..zip.len() - 4], 400, r#"{"code":"invalid_request","message":""#),
        zipped(SEGMENT, "segment: a gzip bomb", bomb(), 400, TOO_LARGE),
        short(SEGMENT, "segment: a length above the body's", &batch("1"), r#"{"code":"timeout","message":""#),
        giant(SEGMENT, "segment: a length above all bodies", 400, TOO_LARGE),
    ]
}

pub fn amplitude() -> Vec<Row> {
    const SUCCESS: &str = r#"{"code":200,"events_ingested":1,"#;
    const NOT_JSON: &str = r#"{"code":400,"error":"Invalid JSON request body"}"#;
    const TOO_LARGE: &str = r#"{"code":413,"error":"Payload too large"}"#;
    let upload = |events: &str| format!(r#"{{"api_key":"k","events":[{events}]}}"#);
    let event = |members: &str| upload(&format!(r#"{{{members}"event_type":"e","user_id":"user-1"}}"#));
    let zip = gzip(event("").as_bytes());
    vec![
        row(
            AMPLITUDE,
            "amplitude: depth bomb",
            event(&format!(r#""user_properties":{{"a":{}}},"#, deep(200_000))),
            400,
            r#""events_with_invalid_fields":{"user_properties":[0]}"#,
        ),
        row(AMPLITUDE, "amplitude: depth bomb as an event", upload(&deep(200_000)), 400, r#""error":"Invalid event JSON""#),
        row(
            AMPLITUDE,
            "amplitude: depth bomb without an end",
            format!(r#"{{"api_key":"k","events":{}"#, "[".repeat(1 << 20)),
            400,
            NOT_JSON,
        ),
        row(AMPLITUDE, "amplitude: depth bomb as the body", deep(200_000), 400, NOT_JSON),
        row(AMPLITUDE, "amplitude: 70,000 keys", event(&many_keys()[..70_000 * 10]), 200, SUCCESS),
        row(
            AMPLITUDE,
            "amplitude: 100,000 keys of the request",
            format!(r#"{{{}"api_key":"k","events":[]}}"#, many_keys()),
            200,
            r#""events_ingested":0"#,
        ),
        row(AMPLITUDE, "amplitude: equal keys", event(&same_keys()), 200, SUCCESS),
        row(
            AMPLITUDE,
            "amplitude: equal keys, the last without a key",
            r#"{"api_key":"k","events":[],"api_key":null}"#,
            400,
            r#""missing_field":"api_key""#,
        ),
        row(AMPLITUDE, "amplitude: a huge number", event(&format!(r#""event_properties":{{"n":{}}},"#, digits())), 200, SUCCESS),
        row(
            AMPLITUDE,
            "amplitude: a huge number as time",
            event(&format!(r#""time":{},"#, digits())),
            400,
            r#""events_with_invalid_fields":{"time":[0]}"#,
        ),
        row(
            AMPLITUDE,
            "amplitude: a huge number as id",
            upload(&format!(r#"{{"event_type":"e","user_id":{}}}"#, "9".repeat(100_000))),
            200,
            SUCCESS,
        ),
        row(
            AMPLITUDE,
            "amplitude: half surrogate pairs",
            event(r#""event_properties":{"\ud800":"\udc00"},"device_id":"\ud83d\ud83d\ud83d\ud83d\ud83d","#),
            200,
            SUCCESS,
        ),
        row(AMPLITUDE, "amplitude: NUL in a string", event("\"city\":\"a\0b\","), 400, NOT_JSON),
        row(AMPLITUDE, "amplitude: NULs", vec![0; 500_000], 400, NOT_JSON),
        row(AMPLITUDE, "amplitude: too many events", upload(&format!("{}1", "1,".repeat(100_000))), 413, TOO_LARGE),
        row(
            AMPLITUDE,
            "amplitude: 20,000 events that are none",
            upload(&format!("{}1", "1,".repeat(20_000))),
            400,
            r#""error":"Invalid event JSON""#,
        ),
        zipped(AMPLITUDE, "amplitude: a gzip cut short", &zip[..zip.len() - 4], 400, NOT_JSON),
        zipped(AMPLITUDE, "amplitude: a gzip bomb", bomb(), 413, TOO_LARGE),
        short(AMPLITUDE, "amplitude: a length above the body's", &event(""), r#"{"code":408,"error":""#),
        giant(AMPLITUDE, "amplitude: a length above all bodies", 413, TOO_LARGE),
        row(
            IDENTIFY,
            "identify: depth bomb",
            format!("api_key=k&identification={{\"user_id\":\"u\",\"x\":{}}}", deep(200_000)),
            400,
            "missing_event",
        ),
        row(IDENTIFY, "identify: fields without an end", "a=%&".repeat(100_000), 400, "missing_api_key"),
        row(IDENTIFY, "identify: NULs", vec![0; 500_000], 400, "missing_api_key"),
        row(
            IDENTIFY,
            "identify: too many",
            format!("api_key=k&identification=[{}1]", "1,".repeat(100_000)),
            413,
            "payload_too_large",
        ),
        zipped(IDENTIFY, "identify: a gzip bomb", bomb(), 413, ""),
    ]
}

pub fn mparticle() -> Vec<Row> {
    const BAD: &str = r#"{"errors":[{"code":"BAD_REQUEST","message":""#;
    const TOO_LARGE: &str = r#"{"errors":[{"code":"PAYLOAD_TOO_LARGE","message":""#;
    let batch = |members: &str| format!(r#"{{{members}"environment":"production","mpid":7}}"#);
    let zip = gzip(batch("").as_bytes());
    vec![
        row(MPARTICLE, "mparticle: depth bomb", batch(&format!(r#""x":{},"#, deep(200_000))), 400, "nested deeper than 128"),
        row(MPARTICLE, "mparticle: depth bomb as the events", batch(&format!(r#""events":{},"#, deep(200_000))), 400, BAD),
        row(MPARTICLE, "mparticle: depth bomb without an end", format!(r#"{{"environment":{}"#, "[".repeat(1 << 20)), 400, BAD),
        row(MPARTICLE, "mparticle: depth bomb as the body", deep(200_000), 400, BAD),
        row(MPARTICLE_BULK, "mparticle: depth bomb in bulk", deep(200_000), 202, ""),
        row(MPARTICLE, "mparticle: 70,000 keys", batch(&many_keys()[..70_000 * 10]), 202, ""),
        row(
            MPARTICLE,
            "mparticle: 50,000 identities",
            batch(&format!(r#""user_identities":{{{}"z":1}},"#, &many_keys()[..50_000 * 10])),
            413,
            RECORD_TOO_LARGE,
        ),
        row(MPARTICLE, "mparticle: equal keys", batch(&same_keys()), 202, ""),
        row(
            MPARTICLE,
            "mparticle: equal keys, the last without a value",
            r#"{"environment":"production","environment":null}"#,
            400,
            "environment is required",
        ),
        row(
            MPARTICLE,
            "mparticle: a huge number as mpid",
            format!(r#"{{"environment":"production","mpid":{}}}"#, digits()),
            202,
            "",
        ),
        row(
            MPARTICLE,
            "mparticle: half surrogate pairs",
            r#"{"environment":"production","user_identities":{"customer_id":"\ud800"},"\udc00":"\ud83d"}"#,
            202,
            "",
        ),
        row(MPARTICLE, "mparticle: NUL in a string", "{\"environment\":\"production\",\"x\":\"a\0b\"}", 400, BAD),
        row(MPARTICLE, "mparticle: NULs", vec![0; 500_000], 400, BAD),
        row(MPARTICLE_BULK, "mparticle: too many batches", format!("[{}1]", "1,".repeat(100_000)), 413, TOO_LARGE),
        zipped(MPARTICLE, "mparticle: a gzip cut short", &zip[..zip.len() - 4], 400, BAD),
        zipped(MPARTICLE, "mparticle: a gzip bomb", bomb(), 413, TOO_LARGE),
        short(
            MPARTICLE,
            "mparticle: a length above the body's",
            &batch(""),
            r#"{"errors":[{"code":"REQUEST_TIMEOUT","message":""#,
        ),
        giant(MPARTICLE, "mparticle: a length above all bodies", 413, TOO_LARGE),
    ]
}

/// Each identity becomes an object with its time: the record is larger than a record may be.
const RECORD_TOO_LARGE: &str = r#"{"errors":[{"code":"PAYLOAD_TOO_LARGE""#;

pub fn kinesis() -> Vec<Row> {
    const SUCCESS: &str = r#""SequenceNumber":""#;
    const MALFORMED: &str = r#""__type":"SerializationException""#;
    let put = |members: &str| format!(r#"{{{members}"StreamName":"clicks","PartitionKey":"k","Data":"eA=="}}"#);
    let zip = gzip(put("").as_bytes());
    vec![
        row(KINESIS, "kinesis: depth bomb", put(&format!(r#""x":{},"#, deep(200_000))), 400, "nested deeper than 128"),
        row(KINESIS, "kinesis: depth bomb without an end", "[".repeat(1 << 20), 400, MALFORMED),
        row(KINESIS, "kinesis: 100,000 keys", put(&many_keys()), 400, "more than 65536 values"),
        row(KINESIS, "kinesis: equal keys", put(&(same_keys() + r#""Data":"","#)), 200, SUCCESS),
        row(
            KINESIS,
            "kinesis: equal keys, the last without a stream",
            r#"{"StreamName":"clicks","PartitionKey":"k","Data":"eA==","StreamName":null}"#,
            400,
            "InvalidArgumentException",
        ),
        row(KINESIS, "kinesis: a huge number", put(&format!(r#""x":{},"#, digits())), 200, SUCCESS),
        row(
            KINESIS,
            "kinesis: a huge number as the stream",
            format!(r#"{{"StreamName":{}}}"#, digits()),
            400,
            "StreamName is not a text",
        ),
        row(
            KINESIS,
            "kinesis: half a surrogate pair",
            r#"{"StreamName":"clicks","PartitionKey":"\ud800","Data":"eA=="}"#,
            200,
            SUCCESS,
        ),
        row(KINESIS, "kinesis: NULs", vec![0; 500_000], 400, MALFORMED),
        row(KINESIS, "kinesis: no base64", r#"{"StreamName":"clicks","PartitionKey":"k","Data":"\u0000"}"#, 400, MALFORMED),
        zipped(KINESIS, "kinesis: a gzip cut short", &zip[..zip.len() - 4], 400, MALFORMED),
        zipped(KINESIS, "kinesis: a gzip bomb", bomb(), 413, "RequestEntityTooLargeException"),
        short(KINESIS, "kinesis: a length above the body's", &put(""), "RequestTimeoutException"),
        giant(KINESIS, "kinesis: a length above all bodies", 413, "RequestEntityTooLargeException"),
    ]
}

/// A CBOR text of less than 24 bytes.
fn cbor_text(text: &str) -> Vec<u8> {
    [&[0x60 + text.len() as u8][..], text.as_bytes()].concat()
}

pub fn kinesis_cbor() -> Vec<Row> {
    const MALFORMED: &str = "SerializationException";
    // Without the map's head and the data.
    let members = ["StreamName", "clicks", "PartitionKey", "k", "Data"].map(cbor_text).concat();
    let put = |data: &[u8]| [&[0xa3][..], &members, data].concat();
    let good = put(b"\x41x");
    let equal = [&[0xbf][..], &[&members[..], b"\x41x"].concat().repeat(10_000), &[0xff]].concat();
    let keys: Vec<u8> = (0..100_000).flat_map(|at| [cbor_text(&format!("{at:05x}")), vec![1]].concat()).collect();
    let zip = gzip(&good);
    vec![
        row(KINESIS_CBOR, "cbor: depth bomb of lists", put(&vec![0x81; 500_000]), 400, "nested deeper than 128"),
        row(KINESIS_CBOR, "cbor: depth bomb of endless lists", put(&vec![0x9f; 500_000]), 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: depth bomb of endless texts", put(&vec![0x7f; 500_000]), 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: tags without an end", put(&vec![0xc1; 500_000]), 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: 100,000 keys", [&[0xbf][..], &keys, &[0xff]].concat(), 400, "more than 65536 values"),
        row(KINESIS_CBOR, "cbor: equal keys", equal, 200, "SequenceNumber"),
        row(KINESIS_CBOR, "cbor: a huge number as the data", put(b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff"), 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: half a surrogate pair", put(b"\x63\xed\xa0\x80"), 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: NULs", vec![0; 500_000], 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: bytes whose length lies", put(b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xffx"), 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: a list whose length lies", put(b"\x9b\x0f\xff\xff\xff\xff\xff\xff\xffx"), 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: cut short", &good[..good.len() - 1], 400, MALFORMED),
        row(KINESIS_CBOR, "cbor: nothing", "", 400, "InvalidArgumentException"),
        zipped(KINESIS_CBOR, "cbor: a gzip cut short", &zip[..zip.len() - 4], 400, MALFORMED),
        zipped(KINESIS_CBOR, "cbor: a gzip bomb", bomb(), 413, "RequestEntityTooLargeException"),
    ]
}
