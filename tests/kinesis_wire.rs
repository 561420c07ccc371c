//! The AWS form of the Kinesis traits against answers written by hand, byte for byte as they stand on the wire.
//!
//! A loopback server reads each request whole and then does what the test says: answers, answers half, hangs
//! up, or keeps silent. Each test names what the agent must make of it. The requests are kept, so that what we
//! send can be asserted too.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where something fails, and looks at real clocks")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay::event::ShardId;
use forebay::kinesis::aws::{AwsKinesis, Target};
use forebay::kinesis::{EntryOutcome, ErrorClass, KinesisApi, KinesisReader, PutEntry, PutError, ReadFrom, ReadPoint};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the server does once it has read a request.
enum Answer {
    /// A whole answer.
    Full(u16, String),
    /// An answer with extra headers.
    Headers(u16, &'static str, String),
    /// Says a longer body than it sends, then hangs up.
    Truncated(String),
    /// Hangs up with a reset, without a byte.
    Reset,
    /// Keeps the connection open and says nothing.
    Silence,
    /// Answers a byte at a time, with so much time between two.
    Slow(Duration, String),
}

/// What the server does with a request. It reads the body first, unless the head alone decides.
type Answers = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A request as it came in.
struct Request {
    connection: usize,
    target: String,
    authorization: String,
    body: Value,
}

const ASSUMED: &str = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
    <AccessKeyId>assumed</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
    <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>";

const DENIED: &str = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
    <Code>AccessDenied</Code><Message>not authorized to perform sts:AssumeRole</Message></Error></ErrorResponse>";

struct Wire {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Wire {
    /// Serves the answers in order, one a request, over as many connections as come.
    async fn serve(answers: Vec<Answer>) -> Self {
        let answers = Mutex::new(VecDeque::from(answers));
        let next = move |_: &Request| answers.lock().unwrap().pop_front().expect("one request more than the test foresaw");
        Self::serve_by(Arc::new(next)).await
    }

    /// Serves each request as it deserves.
    async fn serve_by(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve_connection(stream, connection, Arc::clone(&answers), Arc::clone(&kept)));
            }
        });
        Self { address, requests }
    }

    /// A token service that hands out a role to whoever brings the external id `right`.
    async fn serve_sts() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut length = 0;
                    let mut line = String::new();
                    while stream.read_line(&mut line).await.unwrap() > 2 {
                        let value = line.to_ascii_lowercase();
                        length = value.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().unwrap());
                        line.clear();
                    }
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).await.unwrap();
                    let form = String::from_utf8(body).unwrap();
                    let answer = if form.contains("ExternalId=right") {
                        http(200, "Connection: close\r\n", ASSUMED, ASSUMED.len())
                    } else {
                        http(403, "Connection: close\r\n", DENIED, DENIED.len())
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        address
    }

    fn client(&self) -> AwsKinesis {
        self.client_with(Duration::from_secs(5))
    }

    fn client_with(&self, request_timeout: Duration) -> AwsKinesis {
        AwsKinesis::open_with_credentials(self.target(request_timeout), "id", "secret")
    }

    fn target(&self, request_timeout: Duration) -> Target {
        Target {
            region: Some("eu-west-1".into()),
            endpoint: Some(format!("http://{}", self.address)),
            request_timeout,
            ..Target::new("clicks")
        }
    }
}

async fn serve_connection(stream: TcpStream, connection: usize, answers: Answers, requests: Arc<Mutex<Vec<Request>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut request = Request { connection, target: String::new(), authorization: String::new(), body: Value::Null };
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                if line.trim_end().is_empty() {
                    break;
                }
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap(),
                "x-amz-target" => request.target = value.trim().to_owned(),
                "authorization" => request.authorization = value.trim().to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        request.body = serde_json::from_slice(&body).unwrap();
        let answer = answers(&request);
        requests.lock().unwrap().push(request);
        let text = match answer {
            Answer::Full(status, body) => http(status, "", &body, body.len()),
            Answer::Headers(status, headers, body) => http(status, headers, &body, body.len()),
            Answer::Truncated(body) => {
                stream.write_all(http(200, "", &body, body.len() + 100).as_bytes()).await.unwrap();
                return;
            }
            Answer::Reset => {
                // With zero linger, closing sends RST.
                stream.get_ref().set_zero_linger().unwrap();
                return;
            }
            Answer::Slow(pause, body) => {
                for byte in http(200, "", &body, body.len()).into_bytes() {
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
                continue;
            }
            Answer::Silence => {
                // Until the client goes away.
                assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
                return;
            }
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn http(status: u16, headers: &str, body: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nx-amzn-RequestId: 1\r\nContent-Type: application/x-amz-json-1.1\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

fn entries(n: usize) -> Vec<PutEntry> {
    (0..n).map(|i| PutEntry { partition_key: format!("key-{i}"), explicit_hash_key: None, data: b"event".to_vec() }).collect()
}

fn stored(sequence: u32) -> Value {
    json!({"SequenceNumber": format!("4954{sequence:020}"), "ShardId": "shardId-000000000001"})
}

/// Puts two records and hands back the error that must come.
async fn failing_put(answer: Answer) -> PutError {
    let wire = Wire::serve(vec![answer]).await;
    wire.client().put_records(entries(2)).await.expect_err("the put must fail")
}

#[tokio::test]
async fn a_put_carries_names_keys_hashes_and_base64_and_is_signed() {
    let wire = Wire::serve(vec![Answer::Full(200, json!({"FailedRecordCount": 0, "Records": [stored(1)]}).to_string())]).await;
    let entry = PutEntry { partition_key: "a".into(), explicit_hash_key: Some(u128::MAX), data: vec![0, 255, 10] };
    wire.client().put_records(vec![entry]).await.unwrap();
    let requests = wire.requests.lock().unwrap();
    assert_eq!(requests[0].target, "Kinesis_20131202.PutRecords");
    assert!(requests[0].authorization.starts_with("AWS4-HMAC-SHA256 Credential=id/"), "{}", requests[0].authorization);
    assert_eq!(
        requests[0].body,
        json!({
            "StreamName": "clicks",
            "Records": [{"Data": "AP8K", "PartitionKey": "a", "ExplicitHashKey": "340282366920938463463374607431768211455"}]
        })
    );
}

#[tokio::test]
async fn a_stream_named_by_arn_is_sent_as_arn() {
    let wire = Wire::serve(vec![Answer::Full(200, json!({"FailedRecordCount": 0, "Records": [stored(1)]}).to_string())]).await;
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks";
    let target = Target { stream: arn.into(), region: None, ..wire.target(Duration::from_secs(5)) };
    AwsKinesis::open_with_credentials(target, "id", "secret").put_records(entries(1)).await.unwrap();
    let requests = wire.requests.lock().unwrap();
    assert_eq!(requests[0].body["StreamARN"], arn);
    assert_eq!(requests[0].body.get("StreamName"), None);
    assert!(requests[0].authorization.contains("/eu-west-1/kinesis/"), "the ARN's region signs");
}

#[tokio::test]
async fn each_record_of_a_partly_failed_request_gets_its_own_outcome() {
    let body = json!({"FailedRecordCount": 3, "EncryptionType": "NONE", "Records": [
        stored(1),
        {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "Rate exceeded for shard shardId-000000000001 in stream clicks under account 123456789012."},
        {"ErrorCode": "InternalFailure", "ErrorMessage": "Internal service failure."},
        {"ErrorCode": "KMSThrottlingException", "ErrorMessage": "slow"},
        {"ErrorCode": null, "ErrorMessage": null, "SequenceNumber": "49540000000000000000000002", "ShardId": "shardId-000000000000"},
        {},
    ]});
    let wire = Wire::serve(vec![Answer::Full(200, body.to_string())]).await;
    let outcomes = wire.client().put_records(entries(6)).await.unwrap();
    let classes: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            EntryOutcome::Stored { shard } => Ok(shard.to_string()),
            EntryOutcome::Failed(error) => Err(error.class),
        })
        .collect();
    assert_eq!(
        classes,
        [
            Ok("shardId-000000000001".into()),
            Err(ErrorClass::Throttle),
            Err(ErrorClass::Transient),
            Err(ErrorClass::Throttle),
            Ok("shardId-000000000000".into()),
            Err(ErrorClass::UnknownOutcome),
        ]
    );
    let EntryOutcome::Failed(throttled) = &outcomes[1] else { panic!() };
    assert!(throttled.message.contains("shardId-000000000001"), "the message that names the shard is kept");
}

#[tokio::test]
async fn an_answer_with_too_few_or_too_many_outcomes_is_an_unknown_outcome() {
    for n in [0, 1, 3] {
        let records: Vec<Value> = (0..n).map(stored).collect();
        let error = failing_put(Answer::Full(200, json!({"FailedRecordCount": 0, "Records": records}).to_string())).await;
        assert_eq!(error.class, ErrorClass::UnknownOutcome, "{error}");
    }
    assert_eq!(failing_put(Answer::Full(200, "{}".into())).await.class, ErrorClass::UnknownOutcome);
}

#[tokio::test]
async fn refusals_have_the_class_of_their_code() {
    for (status, code, class) in [
        (400, "AccessDeniedException", ErrorClass::Transient),
        (400, "ResourceNotFoundException", ErrorClass::Configuration),
        (400, "ExpiredTokenException", ErrorClass::Configuration),
        (403, "InvalidSignatureException", ErrorClass::Configuration),
        (400, "UnrecognizedClientException", ErrorClass::Configuration),
        (400, "KMSDisabledException", ErrorClass::Configuration),
        (400, "ProvisionedThroughputExceededException", ErrorClass::Throttle),
        (400, "KMSThrottlingException", ErrorClass::Throttle),
        (400, "InvalidArgumentException", ErrorClass::Poison),
        (400, "ValidationException", ErrorClass::Poison),
        (500, "InternalFailure", ErrorClass::UnknownOutcome),
        (503, "ServiceUnavailable", ErrorClass::UnknownOutcome),
        (400, "SomethingNobodyKnowsException", ErrorClass::UnknownOutcome),
    ] {
        let body = json!({"__type": code, "message": "in so many words"}).to_string();
        let error = failing_put(Answer::Full(status, body)).await;
        assert_eq!((error.class, error.code.as_str()), (class, code), "{error}");
        assert_eq!(error.message, "in so many words");
    }
}

/// Every error of PutRecords and of what stands before it: its class for a whole request, and for a record. Of a whole request
/// it is unknown what became of it, unless the service says so by the code; of a record it was not stored.
#[tokio::test]
async fn every_error_has_its_class_at_request_level_and_at_record_level() {
    use ErrorClass::{Configuration, Poison, Throttle, Transient, UnknownOutcome};
    for (status, code, request_level, record_level) in [
        (400, "ProvisionedThroughputExceededException", Throttle, Throttle),
        (400, "LimitExceededException", Throttle, Throttle),
        (400, "ThrottlingException", Throttle, Throttle),
        (400, "KMSThrottlingException", Throttle, Throttle),
        (500, "InternalFailure", UnknownOutcome, Transient),
        (503, "ServiceUnavailable", UnknownOutcome, UnknownOutcome),
        (400, "AccessDeniedException", Transient, Configuration),
        (400, "ResourceNotFoundException", Configuration, Configuration),
        (400, "ExpiredTokenException", Configuration, Configuration),
        (403, "ExpiredToken", Configuration, Configuration),
        (403, "InvalidSignatureException", Configuration, Configuration),
        (400, "UnrecognizedClientException", Configuration, Configuration),
        (400, "MissingAuthenticationTokenException", Configuration, Configuration),
        (400, "KMSDisabledException", Configuration, Configuration),
        (400, "KMSInvalidStateException", Configuration, Configuration),
        (400, "KMSAccessDeniedException", Configuration, Configuration),
        (400, "KMSNotFoundException", Configuration, Configuration),
        (400, "KMSOptInRequired", Configuration, Configuration),
        (400, "InvalidArgumentException", Poison, Poison),
        (400, "ValidationException", Poison, Poison),
        (400, "SerializationException", Poison, Poison),
        (413, "RequestEntityTooLarge", Poison, Poison),
        (400, "SomethingNobodyKnowsException", UnknownOutcome, UnknownOutcome),
    ] {
        let body = json!({"__type": code, "message": "in so many words"}).to_string();
        let error = failing_put(Answer::Full(status, body)).await;
        assert_eq!((error.class, error.code.as_str()), (request_level, code), "{error}");
        let body = json!({"FailedRecordCount": 1, "Records": [
            stored(1),
            {"ErrorCode": code, "ErrorMessage": "in so many words"},
        ]});
        let wire = Wire::serve(vec![Answer::Full(200, body.to_string())]).await;
        let outcomes = wire.client().put_records(entries(2)).await.unwrap();
        assert!(matches!(outcomes[0], EntryOutcome::Stored { .. }), "{code} of one record says nothing of another");
        let EntryOutcome::Failed(error) = &outcomes[1] else { panic!("{code} is no success") };
        assert_eq!((error.class, error.code.as_str()), (record_level, code), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_that_names_the_stream_is_a_configuration_error_and_no_refusal_shows_an_events_key() {
    let refused = |message: &str| Answer::Full(400, json!({"__type": "ValidationException", "message": message}).to_string());
    let error =
        failing_put(refused("1 validation error detected: Value 'a b' at 'streamName' failed to satisfy constraint")).await;
    assert_eq!(error.class, ErrorClass::Configuration, "{error}");
    let at = "at 'records.1.member.partitionKey' failed to satisfy constraint";
    let error = failing_put(refused(&format!("1 validation error detected: Value 'secret' {at}"))).await;
    assert_eq!(error.class, ErrorClass::Poison, "{error}");
    assert!(error.names_a_record() && !error.message.contains("secret"), "{error}");
}

#[tokio::test]
async fn an_answer_slower_than_the_request_timeout_is_an_unknown_outcome_and_a_slow_one_within_it_is_good() {
    let body = || json!({"FailedRecordCount": 0, "Records": [stored(1)]}).to_string();
    let wire = Wire::serve(vec![Answer::Slow(Duration::from_millis(20), body())]).await;
    let error = wire.client_with(Duration::from_millis(500)).put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::UnknownOutcome, "timeout"), "{error}");
    let wire = Wire::serve(vec![Answer::Slow(Duration::from_millis(1), body())]).await;
    wire.client_with(Duration::from_secs(60)).put_records(entries(1)).await.unwrap();
}

#[tokio::test]
async fn a_name_that_does_not_resolve_surely_stored_nothing() {
    let wire = Wire::serve(vec![]).await;
    // RFC 6761: nobody may give this name an address.
    let target = Target { endpoint: Some("http://kinesis.invalid".into()), ..wire.target(Duration::from_secs(30)) };
    let error = AwsKinesis::open_with_credentials(target, "id", "secret").put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Transient, "connect"), "{error}");
}

#[tokio::test]
async fn a_reset_in_the_middle_of_the_request_is_an_unknown_outcome() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Some of the body has come then, and most of it has not.
            stream.read_exact(&mut [0; 4096]).await.unwrap();
            stream.set_zero_linger().unwrap();
        }
    });
    let target = Target {
        region: Some("eu-west-1".into()),
        endpoint: Some(format!("http://{address}")),
        request_timeout: Duration::from_secs(20),
        ..Target::new("clicks")
    };
    let large = PutEntry { partition_key: "a".into(), explicit_hash_key: None, data: vec![7; 1_000_000] };
    let error = AwsKinesis::open_with_credentials(target, "id", "secret").put_records(vec![large; 4]).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::UnknownOutcome, "connection"), "{error}");
}

// === PutRecord where PutRecords is denied ===

fn refuse(code: &str) -> Answer {
    Answer::Full(400, json!({"__type": code, "message": format!("{code}, in so many words")}).to_string())
}

/// A policy that allows PutRecords while the flag is set, and PutRecord but for these keys, which are answered so.
async fn serve_policy(together: &Arc<AtomicBool>, keys: &'static [(&'static str, &'static str)]) -> Wire {
    let together = Arc::clone(together);
    Wire::serve_by(Arc::new(move |request: &Request| {
        if request.target.ends_with(".PutRecord") {
            let key = request.body["PartitionKey"].as_str().unwrap();
            return match keys.iter().find(|(of, _)| *of == key || *of == "*") {
                Some((_, code)) => refuse(code),
                None => Answer::Full(200, stored(1).to_string()),
            };
        }
        if !together.load(Ordering::SeqCst) {
            return refuse("AccessDeniedException");
        }
        let records: Vec<Value> = request.body["Records"].as_array().unwrap().iter().map(|_| stored(1)).collect();
        Answer::Full(200, json!({"FailedRecordCount": 0, "Records": records}).to_string())
    }))
    .await
}

fn calls(wire: &Wire, name: &str) -> usize {
    wire.requests.lock().unwrap().iter().filter(|request| request.target.ends_with(name)).count()
}

fn class_of(outcome: &EntryOutcome) -> Option<ErrorClass> {
    match outcome {
        EntryOutcome::Stored { .. } => None,
        EntryOutcome::Failed(error) => Some(error.class),
    }
}

#[tokio::test]
async fn where_put_records_is_denied_each_record_is_put_alone_and_has_its_own_outcome() {
    let denied = Arc::new(AtomicBool::new(false));
    let wire =
        serve_policy(&denied, &[("key-3", "ProvisionedThroughputExceededException"), ("key-70", "InvalidArgumentException")])
            .await;
    let client = wire.client();
    let error = client.put_records(entries(100)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Transient, "AccessDeniedException"), "it is sent again at once");
    let mut sent = entries(100);
    sent[9].explicit_hash_key = Some(77);
    let outcomes = client.put_records(sent).await.unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        let expected = match n {
            3 => Some(ErrorClass::Throttle),
            70 => Some(ErrorClass::Poison),
            _ => None,
        };
        assert_eq!(class_of(outcome), expected, "record {n}");
    }
    assert_eq!((outcomes.len(), calls(&wire, ".PutRecords"), calls(&wire, ".PutRecord")), (100, 1, 100));
    let requests = wire.requests.lock().unwrap();
    let ninth = requests.iter().find(|request| request.body["PartitionKey"] == "key-9").unwrap();
    assert_eq!(ninth.body, json!({"StreamName": "clicks", "Data": "ZXZlbnQ=", "PartitionKey": "key-9", "ExplicitHashKey": "77"}));
}

#[tokio::test]
async fn a_policy_that_is_mended_is_found_and_records_are_put_together_again() {
    let together = Arc::new(AtomicBool::new(false));
    let wire = serve_policy(&together, &[]).await;
    let client = wire.client().retry_put_records_after(Duration::from_millis(40));
    client.put_records(entries(1)).await.unwrap_err();
    let begun = Instant::now();
    let go_on = || assert!(begun.elapsed() < Duration::from_secs(60), "PutRecords is not tried again");
    while calls(&wire, ".PutRecords") < 3 {
        // Denied again and again, and not one request fails for it.
        assert_eq!(client.put_records(entries(2)).await.unwrap().iter().filter_map(class_of).count(), 0);
        go_on();
    }
    assert!(calls(&wire, ".PutRecord") > calls(&wire, ".PutRecords"), "now and then only");
    together.store(true, Ordering::SeqCst);
    let mut before = calls(&wire, ".PutRecord");
    loop {
        client.put_records(entries(2)).await.unwrap();
        go_on();
        let singly = calls(&wire, ".PutRecord");
        if singly == before {
            break;
        }
        before = singly;
    }
    client.put_records(entries(2)).await.unwrap();
    assert_eq!(calls(&wire, ".PutRecord"), before, "and it stays so");
}

#[tokio::test]
async fn where_put_record_is_denied_too_it_is_a_configuration_error_and_nothing_else_is_tried() {
    let denied = Arc::new(AtomicBool::new(false));
    let wire = serve_policy(&denied, &[("*", "AccessDeniedException")]).await;
    let client = wire.client();
    assert_eq!(client.put_records(entries(50)).await.unwrap_err().class, ErrorClass::Transient);
    let error = client.put_records(entries(50)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration);
    assert!(error.message.contains("neither PutRecords nor PutRecord is allowed"), "{error}");
    assert_eq!((calls(&wire, ".PutRecords"), calls(&wire, ".PutRecord")), (1, 1));
    denied.store(true, Ordering::SeqCst);
    client.put_records(entries(50)).await.expect("a mended policy is found by the next request");
}

#[tokio::test]
async fn a_fault_that_meets_every_record_stops_the_rest_of_a_request_whose_records_are_put_alone() {
    let denied = Arc::new(AtomicBool::new(false));
    let wire = serve_policy(&denied, &[("key-1", "ExpiredTokenException")]).await;
    let client = wire.client();
    client.put_records(entries(1)).await.unwrap_err();
    let outcomes = client.put_records(entries(400)).await.unwrap();
    assert_eq!(class_of(&outcomes[1]), Some(ErrorClass::Configuration));
    let unsent = outcomes.iter().filter(|outcome| class_of(outcome) == Some(ErrorClass::Transient)).count();
    assert_eq!(outcomes.len() - unsent, calls(&wire, ".PutRecord"), "what is not sent is not reported as anything else");
    assert!(unsent > 200, "{unsent} were not sent");
}

#[tokio::test]
async fn the_code_is_read_from_the_header_too() {
    let error = failing_put(Answer::Headers(
        400,
        "x-amzn-ErrorType: AccessDeniedException:http://internal.amazon.com/coral/\r\n",
        "{\"Message\":\"no\"}".into(),
    ))
    .await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Transient, "AccessDeniedException"), "PutRecord is tried next");
}

#[tokio::test]
async fn a_gateways_page_is_an_unknown_outcome() {
    for status in [500, 502, 504] {
        let error = failing_put(Answer::Full(status, "<html>bad gateway</html>".into())).await;
        assert_eq!(error.class, ErrorClass::UnknownOutcome, "{error}");
    }
    assert_eq!(
        failing_put(Answer::Full(200, "<html>welcome to this network</html>".into())).await.class,
        ErrorClass::UnknownOutcome
    );
}

#[tokio::test]
async fn a_truncated_answer_is_an_unknown_outcome() {
    let body = json!({"FailedRecordCount": 0, "Records": [stored(1), stored(2)]}).to_string();
    let error = failing_put(Answer::Truncated(body)).await;
    assert_eq!(error.class, ErrorClass::UnknownOutcome, "{error}");
}

#[tokio::test]
async fn a_reset_after_the_request_was_read_is_an_unknown_outcome() {
    let error = failing_put(Answer::Reset).await;
    assert_eq!(error.class, ErrorClass::UnknownOutcome, "{error}");
}

#[tokio::test]
async fn silence_is_an_unknown_outcome_after_the_request_timeout() {
    let wire = Wire::serve(vec![Answer::Silence]).await;
    let begun = Instant::now();
    let error = wire.client_with(Duration::from_millis(300)).put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::UnknownOutcome, "timeout"));
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(300) && waited < Duration::from_secs(4), "waited {waited:?}");
}

#[tokio::test]
async fn a_refused_connection_surely_stored_nothing() {
    let wire = Wire::serve(vec![]).await;
    // A port nobody listens on: bound once, then given back.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let target = Target { endpoint: Some(format!("http://{free}")), ..wire.target(Duration::from_secs(5)) };
    let error = AwsKinesis::open_with_credentials(target, "id", "secret").put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Transient, "connect"), "{error}");
}

#[tokio::test]
async fn a_tls_handshake_that_fails_surely_stored_nothing() {
    // Speaks no TLS: hangs up on the first bytes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        }
    });
    let target = Target {
        region: Some("eu-west-1".into()),
        endpoint: Some(format!("https://{address}")),
        request_timeout: Duration::from_secs(5),
        ..Target::new("clicks")
    };
    let error = AwsKinesis::open_with_credentials(target, "id", "secret").put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Transient, "connect"), "{error}");
}

#[tokio::test]
async fn requests_one_after_another_share_a_connection() {
    let good = || Answer::Full(200, json!({"FailedRecordCount": 0, "Records": [stored(1)]}).to_string());
    let wire = Wire::serve(vec![good(), good(), good()]).await;
    let client = wire.client();
    for _ in 0..3 {
        client.put_records(entries(1)).await.unwrap();
    }
    let connections: Vec<usize> = wire.requests.lock().unwrap().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 0, 0]);
}

#[tokio::test]
async fn a_failed_request_is_sent_once() {
    let wire = Wire::serve(vec![Answer::Full(500, json!({"__type": "InternalFailure"}).to_string())]).await;
    let error = wire.client().put_records(entries(1)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::UnknownOutcome);
    assert_eq!(wire.requests.lock().unwrap().len(), 1, "retries are dispatch's");
}

#[tokio::test]
async fn list_shards_follows_the_token_and_reads_parents_and_ends() {
    let page = |shards: Value, token: Option<&str>| {
        let mut page = json!({"Shards": shards});
        if let Some(token) = token {
            page["NextToken"] = json!(token);
        }
        Answer::Full(200, page.to_string())
    };
    let shard = |id: u32, first: &str, last: &str, parents: &[u32], end: Option<&str>| {
        let mut shard = json!({
            "ShardId": format!("shardId-{id:012}"),
            "HashKeyRange": {"StartingHashKey": first, "EndingHashKey": last},
            "SequenceNumberRange": {"StartingSequenceNumber": "1"},
        });
        for (parent, name) in parents.iter().zip(["ParentShardId", "AdjacentParentShardId"]) {
            shard[name] = json!(format!("shardId-{parent:012}"));
        }
        if let Some(end) = end {
            shard["SequenceNumberRange"]["EndingSequenceNumber"] = json!(end);
        }
        shard
    };
    let top = u128::MAX.to_string();
    let wire = Wire::serve(vec![
        page(json!([shard(0, "0", "9", &[], Some("7")), shard(1, "10", &top, &[], Some("7"))]), Some("more")),
        page(json!([shard(2, "0", &top, &[0, 1], None)]), None),
    ])
    .await;
    let shards = wire.client().list_shards().await.unwrap();
    assert_eq!(shards.len(), 3);
    assert_eq!((shards[0].first_hash, shards[0].last_hash, shards[0].open), (0, 9, false));
    assert_eq!((shards[2].last_hash, shards[2].open), (u128::MAX, true));
    assert_eq!(shards[2].parents, [ShardId::from("shardId-000000000000"), ShardId::from("shardId-000000000001")]);
    let requests = wire.requests.lock().unwrap();
    assert_eq!(requests[0].body, json!({"StreamName": "clicks"}));
    assert_eq!(requests[1].body, json!({"NextToken": "more"}), "the token stands alone");
}

#[tokio::test]
async fn a_shard_without_a_hash_range_is_a_bad_answer() {
    let shard = json!({"ShardId": "shardId-000000000000", "SequenceNumberRange": {"StartingSequenceNumber": "1"}});
    let wire = Wire::serve(vec![Answer::Full(200, json!({"Shards": [shard]}).to_string())]).await;
    let error = wire.client().list_shards().await.unwrap_err();
    assert!(error.message.contains("shardId-000000000000"), "{error}");
}

#[tokio::test]
async fn reading_goes_on_after_a_sequence_number_and_ends_with_the_shard() {
    let wire = Wire::serve(vec![
        Answer::Full(200, json!({"ShardIterator": "it-1"}).to_string()),
        Answer::Full(
            200,
            json!({"MillisBehindLatest": 1500, "Records": [
                {"ApproximateArrivalTimestamp": 1.5, "Data": "AP8K", "PartitionKey": "k", "SequenceNumber": "8"}
            ]})
            .to_string(),
        ),
    ])
    .await;
    let client = wire.client();
    let iterator = client.iterator(&"shardId-000000000000".into(), ReadPoint::After("7".into())).await.unwrap();
    let page = client.read(iterator).await.unwrap();
    assert_eq!((page.next, page.behind_ms), (None, 1500));
    assert_eq!((page.records[0].sequence.as_str(), page.records[0].arrived_ms), ("8", 1500));
    assert_eq!(page.records[0].data, [0, 255, 10]);
    let requests = wire.requests.lock().unwrap();
    assert_eq!(requests[0].body["ShardIteratorType"], "AFTER_SEQUENCE_NUMBER");
    assert_eq!(requests[0].body["StartingSequenceNumber"], "7");
    assert_eq!(requests[1].body["ShardIterator"], "it-1");
}

#[tokio::test]
async fn a_denied_read_is_a_configuration_error() {
    let wire =
        Wire::serve(vec![Answer::Full(400, json!({"__type": "AccessDeniedException", "message": "no"}).to_string())]).await;
    let from = ReadPoint::From(ReadFrom::Latest);
    let error = wire.client().iterator(&"shardId-000000000000".into(), from).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration);
}

/// Runs the test `name` of this binary in a process of its own, with exactly the environment given.
async fn in_bare_environment(name: &str, environment: &[(&str, String)]) {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env_clear().kill_on_drop(true);
    let home = tempfile::tempdir().unwrap();
    command.env("HOME", home.path()).envs(environment.iter().map(|(name, value)| (name, value)));
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn missing_credentials_are_told_soon_with_the_remedy() {
    // Metadata service that takes connections and says nothing: what a laptop behind a firewall sees.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metadata = format!("http://{}", silent.local_addr().unwrap());
    in_bare_environment("child_without_credentials", &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)]).await;
}

#[tokio::test]
#[ignore = "runs as the child of missing_credentials_are_told_soon_with_the_remedy"]
async fn child_without_credentials() {
    let wire = Wire::serve(vec![]).await;
    let client = AwsKinesis::open(wire.target(Duration::from_millis(100)));
    let begun = Instant::now();
    let error = client.put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Configuration, "NoCredentials"), "{error}");
    assert!(error.message.contains("set AWS_ACCESS_KEY_ID=dev"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(8), "took {:?}", begun.elapsed());

    let far = Target { endpoint: Some("http://kinesis.invalid".into()), ..wire.target(Duration::from_millis(100)) };
    let error = AwsKinesis::open(far).put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Configuration, "NoCredentials"), "{error}");
    assert!(error.message.contains("run where a role is attached"), "{error}");

    let target = Target { region: None, ..wire.target(Duration::from_millis(100)) };
    let error = AwsKinesis::open(target).list_shards().await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Configuration, "NoRegion"), "{error}");
}

#[tokio::test]
async fn credentials_of_the_environment_and_an_assumed_role_are_used() {
    let roles = Wire::serve_sts().await;
    let environment = [
        ("AWS_ACCESS_KEY_ID", "base".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ("AWS_REGION", "eu-central-1".to_owned()),
        ("AWS_ENDPOINT_URL_STS", format!("http://{roles}")),
    ];
    in_bare_environment("child_with_a_role", &environment).await;
}

#[tokio::test]
#[ignore = "runs as the child of credentials_of_the_environment_and_an_assumed_role_are_used"]
async fn child_with_a_role() {
    let good = || Answer::Full(200, json!({"FailedRecordCount": 0, "Records": [stored(1)]}).to_string());
    let wire = Wire::serve(vec![good(), good()]).await;
    let plain = Target { region: None, ..wire.target(Duration::from_secs(5)) };
    AwsKinesis::open(plain.clone()).put_records(entries(1)).await.unwrap();
    let role = Some("arn:aws:iam::123456789012:role/writer".to_owned());
    let assumed = Target { role_arn: role.clone(), external_id: Some("right".into()), ..plain.clone() };
    AwsKinesis::open(assumed).put_records(entries(1)).await.unwrap();
    {
        let requests = wire.requests.lock().unwrap();
        assert!(requests[0].authorization.contains("Credential=base/"), "{}", requests[0].authorization);
        assert!(requests[0].authorization.contains("/eu-central-1/"), "{}", requests[0].authorization);
        assert!(requests[1].authorization.contains("Credential=assumed/"), "{}", requests[1].authorization);
    }
    let refused = Target { role_arn: role, external_id: Some("wrong".into()), ..plain };
    let error = AwsKinesis::open(refused).put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Configuration, "NoCredentials"), "{error}");
    assert!(error.message.contains("role/writer") && error.message.contains("external_id"), "{error}");
}

#[tokio::test]
async fn keys_replaced_in_a_shared_file_are_found_once_the_old_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credentials").to_str().unwrap().to_owned();
    in_bare_environment("child_with_a_shared_file", &[("AWS_SHARED_CREDENTIALS_FILE", file)]).await;
}

#[tokio::test]
#[ignore = "runs as the child of keys_replaced_in_a_shared_file_are_found_once_the_old_ones_are_refused"]
async fn child_with_a_shared_file() {
    let keys = |name: &str| {
        let file = std::env::var("AWS_SHARED_CREDENTIALS_FILE").unwrap();
        std::fs::write(file, format!("[default]\naws_access_key_id = {name}\naws_secret_access_key = s\n")).unwrap();
    };
    let good = || Answer::Full(200, json!({"FailedRecordCount": 0, "Records": [stored(1)]}).to_string());
    let refused = |code: &str| Answer::Full(400, json!({"__type": code, "message": "no"}).to_string());
    let answers = vec![good(), refused("ResourceNotFoundException"), good(), refused("UnrecognizedClientException"), good()];
    let wire = Wire::serve(answers).await;
    let client = AwsKinesis::open(wire.target(Duration::from_secs(5)));
    keys("old");
    client.put_records(entries(1)).await.unwrap();
    keys("new");
    // A stream that is missing says nothing against the keys, and the client that stands is kept.
    client.put_records(entries(1)).await.unwrap_err();
    client.put_records(entries(1)).await.unwrap();
    let error = client.put_records(entries(1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Configuration, "UnrecognizedClientException"));
    client.put_records(entries(1)).await.unwrap();
    let requests = wire.requests.lock().unwrap();
    let used: Vec<&str> = requests
        .iter()
        .map(|request| request.authorization.split("Credential=").nth(1).unwrap().split('/').next().unwrap())
        .collect();
    assert_eq!(used, ["old", "old", "old", "old", "new"]);
}

#[tokio::test]
async fn the_summary_tells_mode_limit_and_key_and_a_strategy_that_is_not_known_is_not_taken_to_keep_to_keys() {
    let described = |strategy: Option<&str>| {
        let mut told = json!({
            "StreamName": "clicks", "StreamARN": "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks",
            "StreamStatus": "UPDATING", "RetentionPeriodHours": 24, "StreamCreationTimestamp": 1_767_225_600,
            "EnhancedMonitoring": [], "EncryptionType": "KMS", "KeyId": "alias/events", "OpenShardCount": 4,
            "StreamModeDetails": {"StreamMode": "ON_DEMAND"}, "MaxRecordSizeInKiB": 10_240,
        });
        if let Some(strategy) = strategy {
            told["RecordDistributionStrategy"] = strategy.into();
        }
        Answer::Full(200, json!({"StreamDescriptionSummary": told}).to_string())
    };
    let told = [("AUTO", Some(true)), ("USER_PARTITION_KEY", Some(false)), ("SOMETHING_NEW", Some(true))];
    let answers = told.iter().map(|(strategy, _)| described(Some(strategy))).chain([described(None)]).collect();
    let wire = Wire::serve(answers).await;
    let client = wire.client();
    for ignores_keys in told.into_iter().map(|(_, ignores)| ignores).chain([None]) {
        let summary = client.summary().await.unwrap();
        assert_eq!(summary.ignores_keys, ignores_keys);
        assert_eq!(
            (summary.status.as_str(), summary.on_demand, summary.key.as_deref()),
            ("UPDATING", Some(true), Some("alias/events"))
        );
        assert_eq!(summary.record_bytes_max, Some(10 << 20));
    }
    let requests = wire.requests.lock().unwrap();
    assert!(requests.iter().all(|request| request.target == "Kinesis_20131202.DescribeStreamSummary"), "{}", requests[0].target);
    assert_eq!(requests[0].body, json!({"StreamName": "clicks"}));
}
