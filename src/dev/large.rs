//! Records over 1 MiB for the embedded Kinesis: each is judged by its stream's `MaxRecordSizeInKiB`.
//!
//! Place: the gate of `dev` asks here before a request goes to ferrokinesis, and its turn lasts as long. ferrokinesis 0.7.0 keeps
//! that setting (UpdateMaxRecordSize) and does not use it: its validation stops at 1 MiB a record and 5 MiB a request, it does
//! not count keys, and it does not tell of the setting. So what may be over one of these is judged and stored here, by the rules
//! of 2026: records up to the stream's limit with their keys, 10 MiB a request.
//!
//! With `enforce_limits`, a large record is taken when its shard has paid for the last one, at 1 MiB/s: no shard could ever
//! take it within one second, and Kinesis takes such records as bursts.
//!
//! Failure: what is no well-formed request in JSON goes on to ferrokinesis, which answers it. Absent on purpose: CBOR, which
//! forebay does not send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use ferrokinesis::actions::{Operation, dispatch};
use ferrokinesis::error::KinesisErrorResponse;
use ferrokinesis::sequence::partition_key_to_hash_key;
use ferrokinesis::store::Store;
use ferrokinesis::types::StoredRecordRef;
use ferrokinesis::util::base64_decoded_len;
use serde_json::{Value, json};

use super::BODY_BYTES_MAX;
use crate::limits::{KEY_CHARS_MAX, REQUEST_RECORDS_MAX, SHARD_BYTES_PER_SECOND};
use crate::metrics::locked;

/// Up to here ferrokinesis judges by itself: data of a record, and a request.
const OTHERS_RECORD_BYTES: usize = 1 << 20;
const OTHERS_REQUEST_BYTES: usize = 5 << 20;

/// Bytes of a request, data and keys.
const REQUEST_BYTES: usize = 10 << 20;

const JSON: &str = "application/x-amz-json-1.1";

/// When a shard will have paid for its last large record, ms: by stream and shard.
pub(super) type Paid = Arc<Mutex<HashMap<(String, String), u64>>>;

/// One record of a request.
struct Record<'a> {
    data: &'a str,
    key: &'a str,
    explicit: Option<u128>,
    bytes: usize,
}

impl<'a> Record<'a> {
    /// `None` where somebody else should say what is wrong with it.
    fn of(value: &'a Value) -> Option<Self> {
        let (data, key) = (value["Data"].as_str()?, value["PartitionKey"].as_str()?);
        let explicit = match &value["ExplicitHashKey"] {
            Value::Null => None,
            Value::String(text) => Some(text.parse().ok()?),
            _ => return None,
        };
        let chars = key.chars().count();
        (1..=KEY_CHARS_MAX).contains(&chars).then(|| Self { data, key, explicit, bytes: base64_decoded_len(data) + key.len() })
    }
}

/// Which call a request is, by its headers; `None` where it is no JSON.
pub(super) fn call(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    (text(CONTENT_TYPE.as_str())? == JSON).then(|| text("x-amz-target")?.rsplit('.').next()).flatten()
}

/// Answers a PutRecords or PutRecord that ferrokinesis would misjudge; `None`: it would not.
pub(super) async fn put(store: &Store, enforce: Option<&Paid>, call: &str, body: &Bytes) -> Option<Response> {
    let one = match call {
        "PutRecord" => true,
        "PutRecords" => false,
        _ => return None,
    };
    // In base64, nothing shorter holds such a record.
    if body.len() <= OTHERS_RECORD_BYTES {
        return None;
    }
    let request: Value = serde_json::from_slice(body).ok()?;
    let values = if one { std::slice::from_ref(&request) } else { request["Records"].as_array()?.as_slice() };
    let records = values.iter().map(Record::of).collect::<Option<Vec<_>>>()?;
    let stream = store.resolve_stream_name(&request).ok()?;
    let most = store.get_stream(&stream).await.ok()?.max_record_size_kib as usize * 1024;
    if let Some(at) = records.iter().position(|record| record.bytes > most) {
        let path = if one { "data".to_owned() } else { format!("records.{}.member.data", at + 1) };
        let told = format!(
            "1 validation error detected: Value at '{path}' failed to satisfy constraint: Member must have length less than or \
             equal to {most}"
        );
        return Some(refusal("ValidationException", &told));
    }
    let bytes: usize = records.iter().map(|record| record.bytes).sum();
    if records.len() > REQUEST_RECORDS_MAX {
        return None;
    }
    if bytes > REQUEST_BYTES {
        return Some(refusal("InvalidArgumentException", &format!("{bytes} bytes of data and keys exceed {REQUEST_BYTES}")));
    }
    let usual = |record: &Record<'_>| base64_decoded_len(record.data) <= OTHERS_RECORD_BYTES;
    if bytes <= OTHERS_REQUEST_BYTES && records.iter().all(usual) {
        return None;
    }
    let mut outcomes = Vec::with_capacity(records.len());
    for record in &records {
        outcomes.push(match usual(record) {
            true => put_usual(store, &stream, record).await,
            false => put_large(store, enforce, &stream, record).await,
        });
    }
    if one {
        return Some(match outcomes.pop()? {
            Ok(stored) => answer(StatusCode::OK, &stored),
            Err(error) => refused(&error),
        });
    }
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let told = outcomes.into_iter().map(|outcome| {
        outcome.unwrap_or_else(|error| json!({"ErrorCode": error.body.error_type, "ErrorMessage": error.body.message}))
    });
    Some(answer(StatusCode::OK, &json!({"FailedRecordCount": failed, "Records": told.collect::<Vec<_>>()})))
}

async fn put_usual(store: &Store, stream: &str, record: &Record<'_>) -> Result<Value, KinesisErrorResponse> {
    let mut request = json!({"StreamName": stream, "PartitionKey": record.key, "Data": record.data});
    if let Some(hash) = record.explicit {
        request["ExplicitHashKey"] = hash.to_string().into();
    }
    dispatch(store, Operation::PutRecord, request).await.map(Option::unwrap_or_default)
}

async fn put_large(
    store: &Store,
    enforce: Option<&Paid>,
    stream: &str,
    record: &Record<'_>,
) -> Result<Value, KinesisErrorResponse> {
    let hash = record.explicit.unwrap_or_else(|| partition_key_to_hash_key(record.key));
    let place = store.allocate_sequence(stream, &hash).await?;
    if let Some(paid) = enforce {
        let mut paid = locked(paid);
        let until = paid.entry((stream.to_owned(), place.shard_id.clone())).or_default();
        if *until > place.now {
            let told = format!("Rate exceeded for shard {}", place.shard_id);
            return Err(KinesisErrorResponse::client_error("ProvisionedThroughputExceededException", Some(&told)));
        }
        *until = place.now + record.bytes as u64 * 1000 / SHARD_BYTES_PER_SECOND;
    }
    let stored = StoredRecordRef {
        partition_key: record.key,
        data: record.data,
        approximate_arrival_timestamp: (place.now / 1000) as f64,
    };
    store.put_record(stream, &place.stream_key, &stored).await?;
    Ok(json!({"ShardId": place.shard_id, "SequenceNumber": place.seq_num}))
}

/// An answer to DescribeStreamSummary, with the setting that ferrokinesis leaves out.
pub(super) async fn tell(store: &Store, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, BODY_BYTES_MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let amended = async {
        let mut value: Value = serde_json::from_slice(&bytes).ok().filter(|_| parts.status == StatusCode::OK)?;
        let summary = value.get_mut("StreamDescriptionSummary")?;
        let stream = store.get_stream(summary["StreamName"].as_str()?).await.ok()?;
        summary["MaxRecordSizeInKiB"] = stream.max_record_size_kib.into();
        serde_json::to_vec(&value).ok()
    };
    match amended.await {
        Some(amended) => {
            parts.headers.remove(axum::http::header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(amended))
        }
        None => Response::from_parts(parts, Body::from(bytes)),
    }
}

fn refused(error: &KinesisErrorResponse) -> Response {
    refusal(&error.body.error_type, error.body.message.as_deref().unwrap_or_default())
}

fn refusal(code: &str, message: &str) -> Response {
    answer(StatusCode::BAD_REQUEST, &json!({"__type": code, "message": message}))
}

fn answer(status: StatusCode, value: &Value) -> Response {
    let mut response = (status, value.to_string()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}
