//! The Kinesis API as its clients speak it: what they ask, and what they are answered. Pure.
//!
//! Place: `ingest/http/kinesis` reads a request, asks here what it means, submits its events and writes the answer that is made
//! here. Reading order: [`value`] (the shape of a body), [`json`] and [`cbor`] (its two forms), [`request`] (records, judged and
//! taken apart), [`shards`] (streams and shards, described), [`signature`] (who asks).
//!
//! Every error is the service's own, as SDKs know how to treat it: a [`Failure`] has a code of the service and a text that holds
//! nothing of an event. *INSIDE-THE-LIMITS* begins here: a request that the service would refuse is refused as a whole, before
//! any of its records is accepted.
//!
//! Absent on purpose: reading records back, and changing streams. The agent is no Kinesis; it says so.

pub mod cbor;
pub mod json;
pub mod request;
pub mod shards;
pub mod signature;
pub mod value;

use std::fmt;

use value::{Malformed, Value};

/// What stands before the operation in `X-Amz-Target`.
const TARGET_PREFIX: &str = "Kinesis_20131202.";

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `application/x-amz-json-1.1`: most SDKs.
    Json,
    /// `application/x-amz-cbor-1.1`: those for Java.
    Cbor,
}

impl Protocol {
    /// By a request's `Content-Type`. What is not CBOR is JSON, under whatever name.
    #[must_use]
    pub fn of_content_type(content_type: Option<&str>) -> Self {
        match content_type {
            Some(name) if name.to_ascii_lowercase().contains("cbor") => Self::Cbor,
            _ => Self::Json,
        }
    }

    /// The `Content-Type` of an answer.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/x-amz-json-1.1",
            Self::Cbor => "application/x-amz-cbor-1.1",
        }
    }

    /// Reads a request's body, which must be a map. An empty one is an empty map.
    ///
    /// # Errors
    /// `SerializationException`.
    pub fn read(self, body: &[u8]) -> Result<Value<'_>, Failure> {
        let read = match self {
            _ if body.is_empty() => Ok(Value::Map(Vec::new())),
            Self::Json => json::read(body),
            Self::Cbor => cbor::read(body),
        };
        match read {
            Ok(map @ Value::Map(_)) => Ok(map),
            Ok(_) => Err(Failure::serialization("the body is not a structure")),
            Err(malformed) => Err(malformed.into()),
        }
    }

    /// Writes an answer's body.
    #[must_use]
    pub fn write(self, value: &Value<'_>) -> Vec<u8> {
        let mut body = Vec::with_capacity(1024);
        match self {
            Self::Json => json::write(value, &mut body),
            Self::Cbor => cbor::write(value, &mut body),
        }
        body
    }
}

/// What can be asked of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One record.
    PutRecord,
    /// Up to 500.
    PutRecords,
    /// Shards, page by page.
    ListShards,
    /// A stream without its shards.
    DescribeStreamSummary,
    /// A stream with its shards, page by page.
    DescribeStream,
    /// Streams.
    ListStreams,
    /// Shards that there are and may be.
    DescribeLimits,
    /// A stream's tags: none.
    ListTagsForStream,
    /// The same by ARN.
    ListTagsForResource,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PutRecord,
        Self::PutRecords,
        Self::ListShards,
        Self::DescribeStreamSummary,
        Self::DescribeStream,
        Self::ListStreams,
        Self::DescribeLimits,
        Self::ListTagsForStream,
        Self::ListTagsForResource,
    ];

    /// As it stands in `X-Amz-Target`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PutRecord => "PutRecord",
            Self::PutRecords => "PutRecords",
            Self::ListShards => "ListShards",
            Self::DescribeStreamSummary => "DescribeStreamSummary",
            Self::DescribeStream => "DescribeStream",
            Self::ListStreams => "ListStreams",
            Self::DescribeLimits => "DescribeLimits",
            Self::ListTagsForStream => "ListTagsForStream",
            Self::ListTagsForResource => "ListTagsForResource",
        }
    }

    /// By a request's `X-Amz-Target`.
    ///
    /// # Errors
    /// `UnknownOperationException`; `AccessDeniedException` for what only Kinesis itself can do: SDKs repeat neither.
    pub fn of_target(target: Option<&str>) -> Result<Self, Failure> {
        let name = target.and_then(|target| target.strip_prefix(TARGET_PREFIX)).ok_or_else(|| {
            Failure::new("UnknownOperationException", "X-Amz-Target must be Kinesis_20131202. and the name of an operation")
        })?;
        if let Some(operation) = Self::ALL.into_iter().find(|operation| operation.name() == name) {
            return Ok(operation);
        }
        if ELSEWHERE.contains(&name) {
            let offered: Vec<&str> = Self::ALL.iter().map(|operation| operation.name()).collect();
            let text = format!(
                "{name} is not offered by the agent, which takes records in; ask Kinesis itself. Offered are {}",
                offered.join(", ")
            );
            return Err(Failure::new("AccessDeniedException", text));
        }
        Err(Failure::new("UnknownOperationException", "the Kinesis API has no operation of this name"))
    }
}

/// Operations of the service that the agent does not offer (AWS API reference, 2026-11).
const ELSEWHERE: [&str; 32] = [
    "AddTagsToStream",
    "CreateStream",
    "DecreaseStreamRetentionPeriod",
    "DeleteResourcePolicy",
    "DeleteStream",
    "DeregisterStreamConsumer",
    "DescribeAccountSettings",
    "DescribeStreamConsumer",
    "DisableEnhancedMonitoring",
    "EnableEnhancedMonitoring",
    "GetRecords",
    "GetResourcePolicy",
    "GetShardIterator",
    "IncreaseStreamRetentionPeriod",
    "ListStreamConsumers",
    "MergeShards",
    "PutResourcePolicy",
    "RegisterStreamConsumer",
    "RemoveTagsFromStream",
    "SplitShard",
    "StartStreamEncryption",
    "StopStreamEncryption",
    "SubscribeToShard",
    "TagResource",
    "UntagResource",
    "UpdateAccountSettings",
    "UpdateMaxRecordSize",
    "UpdateShardCount",
    "UpdateStreamMode",
    "UpdateStreamWarmThroughput",
    "UpdateRecordDistributionStrategy",
    "UpdateStreamRecordDistributionStrategy",
];

/// An error as the service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The name by which SDKs know it.
    pub code: &'static str,
    /// The HTTP status; most are 400.
    pub status: u16,
    /// For people. Holds nothing of an event.
    pub text: String,
}

impl Failure {
    /// With status 400.
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, status: 400, text: text.into() }
    }

    /// A body whose form is wrong, or a member that is of another type.
    pub fn serialization(text: impl Into<String>) -> Self {
        Self::new("SerializationException", text)
    }

    /// What the service says of arguments that its validation passes.
    pub fn argument(text: impl Into<String>) -> Self {
        Self::new("InvalidArgumentException", text)
    }

    /// There is no such stream.
    #[must_use]
    pub fn no_stream(name: &str, account: &str, known: &str) -> Self {
        Self::new(
            "ResourceNotFoundException",
            format!("Stream {name} under account {account} not found. The agent takes records for: {known}"),
        )
    }

    /// There is no room. SDKs send again, later and later.
    pub fn throughput(text: impl Into<String>) -> Self {
        Self::new("ProvisionedThroughputExceededException", text)
    }

    /// The body of the answer.
    #[must_use]
    pub fn body(&self) -> Value<'_> {
        Value::map([("__type", Value::text(self.code)), ("message", Value::text(&self.text[..]))])
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

impl std::error::Error for Failure {}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::serialization(malformed.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_tells_the_form_and_what_is_not_cbor_is_json() {
        for (name, protocol) in [
            (Some("application/x-amz-cbor-1.1"), Protocol::Cbor),
            (Some("Application/X-Amz-CBOR-1.1; charset=utf-8"), Protocol::Cbor),
            (Some("application/x-amz-json-1.1"), Protocol::Json),
            (Some("application/json"), Protocol::Json),
            (None, Protocol::Json),
        ] {
            assert_eq!(Protocol::of_content_type(name), protocol, "{name:?}");
        }
    }

    #[test]
    fn an_operation_is_offered_left_to_kinesis_or_unknown() {
        let code = |target: &str| Operation::of_target(Some(target)).map_err(|failure| failure.code);
        assert_eq!(code("Kinesis_20131202.PutRecords"), Ok(Operation::PutRecords));
        assert_eq!(code("Kinesis_20131202.GetRecords"), Err("AccessDeniedException"));
        assert_eq!(code("Kinesis_20131202.putRecords"), Err("UnknownOperationException"));
        assert_eq!(code("DynamoDB_20120810.PutItem"), Err("UnknownOperationException"));
        assert_eq!(Operation::of_target(None).unwrap_err().code, "UnknownOperationException");
    }

    #[test]
    fn a_body_is_a_map_or_empty() {
        assert_eq!(Protocol::Json.read(b""), Ok(Value::Map(vec![])));
        assert_eq!(Protocol::Cbor.read(b"\xa0"), Ok(Value::Map(vec![])));
        for (protocol, body) in
            [(Protocol::Json, &b"[]"[..]), (Protocol::Json, b"{"), (Protocol::Cbor, b"\x80"), (Protocol::Cbor, b"{}")]
        {
            assert_eq!(protocol.read(body).unwrap_err().code, "SerializationException");
        }
    }
}
