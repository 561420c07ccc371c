//! The admin listener, called over a real loopback socket: what it answers, whom it refuses, when it ends.
//!
//! Goal: every route's contract, and the names in `/metrics`, which are an interface (tests/golden/metrics.txt).
//! Method: `serve` on a free port over hand-filled numbers; requests are written as bytes, so that odd ones can be.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay::admin::{self, AdminState};
use forebay::commands::status::{self, StatusError, StatusOptions};
use forebay::host::Clock;
use forebay::kinesis::StreamSummary;
use forebay::metrics::{Account, Limit, ModeStatus, PolicyTold, ShardStatus, SourceUsage, StreamMetrics, locked};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Far above what any step takes; a test that reaches it fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// 1,000 s after the start, at 2,000,000 s of the epoch.
#[derive(Debug)]
struct StoppedClock;

impl Clock for StoppedClock {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1_000)
    }
    fn wall_ms(&self) -> u64 {
        2_000_000_000
    }
}

struct Agent {
    addr: SocketAddr,
    draining: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

impl Agent {
    async fn start(streams: Vec<(String, Arc<StreamMetrics>)>) -> Self {
        let listener = admin::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (drain, draining) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let mut state = AdminState::new(streams, drain, Arc::new(StoppedClock));
        state.started = Duration::from_secs(400);
        state.allowed_hosts = vec!["agent.internal".to_owned()];
        let served = tokio::spawn(admin::serve(listener, Arc::new(state), stopped));
        Self { addr, draining, stop, served }
    }

    /// Sends bytes on a connection of its own; gives status, head and body.
    async fn raw(&self, request: &str) -> (u16, String, String) {
        let exchange = async {
            let mut stream = TcpStream::connect(self.addr).await.expect("the listener is there");
            stream.write_all(request.as_bytes()).await.expect("a request is taken");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer in UTF-8, then end of file");
            answer
        };
        let answer = tokio::time::timeout(DEADLINE, exchange).await.expect("an answer within the deadline");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    async fn call(&self, method: &str, path: &str) -> (u16, String, String) {
        self.raw(&format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.addr)).await
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (code, head, body) = self.call("GET", path).await;
        assert!(head.contains("content-type: application/json"), "{head}");
        (code, serde_json::from_str(&body).expect("JSON"))
    }
}

/// A stream in good order with a number in every place.
fn busy_stream() -> Arc<StreamMetrics> {
    let metrics = StreamMetrics::default();
    let summary = StreamSummary {
        arn: "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks".into(),
        status: "ACTIVE".into(),
        on_demand: Some(true),
        ignores_keys: None,
        record_bytes_max: Some(1 << 20),
        key: Some("alias/aws/kinesis".into()),
    };
    *locked(&metrics.mode) = ModeStatus { summary: Some(summary), keys: "decide", aggregate: "kpl", ..ModeStatus::default() };
    metrics.dead_letters.store(3, Ordering::Relaxed);
    metrics.dead_letter_bytes.store(512, Ordering::Relaxed);
    "full".clone_into(&mut locked(&metrics.dead_reason));
    *locked(&metrics.account) = Account { accepted: 100, delivered: 60, dead: 3, expired: 2, dropped: 1 };
    locked(&metrics.rejected).insert(("we/b".to_owned(), "too_large"), 4);
    locked(&metrics.accepted_by_source).insert("we/b".to_owned(), 90);
    locked(&metrics.duplicated).insert("unknown_outcome", 5);
    metrics.spool_bytes.store(4_096, Ordering::Relaxed);
    metrics.oldest_pending_ms.store(1_999_998_500, Ordering::Relaxed);
    metrics.commit_seconds.observe_n(0.000_3, 10);
    metrics.receipt_seconds.observe_n(0.000_5, 100);
    metrics.delivery_seconds.observe_n(0.04, 60);
    locked(&metrics.put_requests).insert("ok", 7);
    locked(&metrics.put_requests).insert("throttle", 1);
    metrics.put_records.store(8, Ordering::Relaxed);
    metrics.put_bytes.store(9_000, Ordering::Relaxed);
    metrics.put_payload_units.store(8, Ordering::Relaxed);
    metrics.throttled.store(6, Ordering::Relaxed);
    let shard = |id: &str, lagging| ShardStatus {
        id: id.to_owned(),
        rate_bytes: 1 << 20,
        queued_events: 11,
        records: 4,
        throttled: 3,
        lagging,
        hot_keys: Vec::new(),
    };
    *locked(&metrics.shards) = vec![shard("shardId-000000000000", false), shard("shardId-000000000001", true)];
    metrics.writable.store(true, Ordering::Relaxed);
    metrics.policy.set(PolicyTold { sync: "always".to_owned(), on_full: "reject" }).expect("set once");
    let usage = SourceUsage::new("we/b", Some(8_192));
    usage.bytes.store(2_048, Ordering::Relaxed);
    *locked(&metrics.sources) = vec![Arc::new(usage)];
    Arc::new(metrics)
}

fn clicks(metrics: &Arc<StreamMetrics>) -> Vec<(String, Arc<StreamMetrics>)> {
    vec![("clicks".to_owned(), Arc::clone(metrics))]
}

/// `counter forebay_x_total{stream,source}` for each family and label set of an exposition.
fn names_of(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut kind = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.split(' ').nth(1).expect("a type");
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_once('{').expect("every sample has labels");
            let labels = rest.rsplit_once('}').expect("labels end").0;
            let keys: Vec<&str> = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(key, _)| key).collect();
            names.insert(format!("{kind} {name}{{{}}}", keys.join(",")));
        }
    }
    names
}

#[tokio::test]
async fn metric_names_and_labels_are_those_of_the_golden_file() {
    let agent = Agent::start(clicks(&busy_stream())).await;
    let (code, head, text) = agent.call("GET", "/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(text.ends_with("# EOF\n"));
    let golden: BTreeSet<String> = include_str!("golden/metrics.txt").lines().map(str::to_owned).collect();
    let actual = names_of(&text);
    assert_eq!(actual, golden, "as it is now:\n{}", actual.iter().cloned().collect::<Vec<_>>().join("\n"));
    for line in text.lines().filter(|line| line.starts_with("# HELP ")) {
        assert!(line.ends_with('.'), "a metric without a sentence: {line}");
    }
}

#[tokio::test]
async fn metric_values_are_the_streams_numbers() {
    let agent = Agent::start(clicks(&busy_stream())).await;
    let (_, _, text) = agent.call("GET", "/metrics").await;
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        r#"forebay_events_accepted_total{stream="clicks"} 100"#,
        r#"forebay_events_delivered_total{stream="clicks"} 60"#,
        r#"forebay_events_dead_total{stream="clicks"} 3"#,
        r#"forebay_events_expired_total{stream="clicks"} 2"#,
        r#"forebay_events_dropped_total{stream="clicks"} 1"#,
        r#"forebay_spool_pending_events{stream="clicks"} 34.0"#,
        r#"forebay_events_rejected_total{stream="clicks",source="we/b",reason="too_large"} 4"#,
        r#"forebay_events_duplicated_total{stream="clicks",reason="unknown_outcome"} 5"#,
        r#"forebay_spool_oldest_seconds{stream="clicks"} 1.5"#,
        r#"forebay_source_spool_bytes{stream="clicks",source="we/b"} 2048.0"#,
        r#"forebay_source_quota_bytes{stream="clicks",source="we/b"} 8192.0"#,
        r#"forebay_commit_seconds_count{stream="clicks"} 10"#,
        r#"forebay_receipt_seconds_bucket{le="0.0004",stream="clicks"} 0"#,
        r#"forebay_receipt_seconds_bucket{le="0.0008",stream="clicks"} 100"#,
        r#"forebay_delivery_seconds_bucket{le="+Inf",stream="clicks"} 60"#,
        r#"forebay_put_requests_total{stream="clicks",outcome="throttle"} 1"#,
        r#"forebay_shard_rate_bytes{stream="clicks",shard="shardId-000000000001"} 1048576.0"#,
        r#"forebay_shards{stream="clicks"} 2.0"#,
        &format!(r#"forebay_build_info{{version="{version}"}} 1"#),
    ] {
        assert!(text.lines().any(|found| found == line), "missing: {line}\nin:\n{text}");
    }
}

#[tokio::test]
async fn a_label_value_cannot_break_out_of_its_quotes() {
    let metrics = busy_stream();
    locked(&metrics.accepted_by_source).insert("a\"} 1\nforged{x=\"\\".to_owned(), 1);
    let agent = Agent::start(clicks(&metrics)).await;
    let (_, _, text) = agent.call("GET", "/metrics").await;
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{text}");
    assert!(text.contains(r#"source="a\"} 1\nforged{x=\"\\""#), "{text}");
}

#[tokio::test]
async fn status_tells_every_stream_in_the_promised_shape() {
    let agent = Agent::start(clicks(&busy_stream())).await;
    let (code, mut status) = agent.json("/status").await;
    assert_eq!(code, 200);
    for name in ["commit", "receipt", "delivery"] {
        let latency = &mut status["streams"][0]["latency"][name];
        let (p50, p99) = (latency["p50"].as_f64().expect("a number"), latency["p99"].as_f64().expect("a number"));
        assert!(0.0 < p50 && p50 < p99 && p99 < 0.06, "{name}: {p50} {p99}");
        latency["p50"] = Value::Null;
        latency["p99"] = Value::Null;
    }
    let shard = |id: &str, lagging: bool| json!({"id": id, "rate_bytes": 1_048_576, "queued_events": 11, "records": 4, "throttled": 3, "lagging": lagging});
    assert_eq!(
        status,
        json!({
            "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "uptime_seconds": 600.0, "state": "accepting",
            "streams": [{
                "name": "clicks",
                "account": {"accepted": 100, "delivered": 60, "pending": 34, "dead": 3, "expired": 2, "dropped": 1},
                "accepted_by_source": {"we/b": 90},
                "rejected": {"we/b/too_large": 4},
                "duplicated": {"unknown_outcome": 5},
                "spool": {
                    "bytes": 4_096, "oldest_pending_seconds": 1.5, "writable": true,
                    "full": false, "closed_reason": "", "full_by": "", "sync": "always", "on_full": "reject",
                    "sources": {"we/b": {
                        "bytes": 2_048, "quota_bytes": 8_192, "full": false, "filtered": 0, "deduplicated": 0, "ids_forgotten": 0,
                    }},
                },
                "dead_letters": {"held": 3, "bytes": 512, "stuck_reason": "full"},
                "put": {"singly": false, "requests": {"ok": 7, "throttle": 1}, "records": 8, "bytes": 9_000, "payload_units": 8, "throttled": 6},
                "mode": {
                    "status": "ACTIVE", "capacity": "on_demand", "encryption": "kms", "record_bytes_max": 1_048_576,
                    "keys": "decide", "aggregate": "kpl", "is_fallback": false, "reason": "",
                },
                "advice": "",
                "paused_reason": "",
                "checkpoint_reason": "",
                "latency": {
                    "commit": {"p50": null, "p99": null, "count": 10},
                    "receipt": {"p50": null, "p99": null, "count": 100},
                    "delivery": {"p50": null, "p99": null, "count": 60},
                },
                "shards": [shard("shardId-000000000000", false), shard("shardId-000000000001", true)],
            }],
        })
    );
}

#[tokio::test]
async fn a_stream_without_events_has_no_quantiles_and_no_oldest_event() {
    let agent = Agent::start(clicks(&Arc::new(StreamMetrics::default()))).await;
    let (_, status) = agent.json("/status").await;
    let stream = &status["streams"][0];
    assert_eq!(stream["latency"]["receipt"], json!({"p50": null, "p99": null, "count": 0}));
    assert_eq!(stream["spool"]["oldest_pending_seconds"], json!(0.0));
}

#[tokio::test]
async fn an_agent_is_ready_only_while_every_spool_takes_events() {
    let (good, bad) = (busy_stream(), busy_stream());
    let agent = Agent::start(vec![("good".to_owned(), good), ("bad".to_owned(), Arc::clone(&bad))]).await;
    assert_eq!(agent.json("/readyz").await.0, 200);

    bad.writable.store(false, Ordering::Relaxed);
    let (code, body) = agent.json("/readyz").await;
    assert_eq!(
        (code, &body["ready"], &body["streams"][0]["ready"], &body["streams"][1]["ready"]),
        (503, &json!(false), &json!(true), &json!(false))
    );
    assert!(body["streams"][1]["reasons"][0].as_str().is_some_and(|reason| reason.contains("durable")), "{body}");

    bad.writable.store(true, Ordering::Relaxed);
    for (limit, name, words) in [
        (Limit::MaxBytes, "max_bytes", "spool.max_bytes"),
        (Limit::Reserve, "reserve", "spool.reserve"),
        (Limit::Disk, "disk", "no room"),
    ] {
        bad.set_full(Some(limit));
        let (code, body) = agent.json("/readyz").await;
        assert_eq!(code, 503);
        let told = body["streams"][1]["reasons"][0].as_str().expect("a reason").to_owned();
        assert!(told.contains("full") && told.contains(words), "{body}");
        assert_eq!(agent.json("/status").await.1["streams"][1]["spool"]["full_by"], name);
    }
    bad.set_full(None);
    assert_eq!(agent.json("/readyz").await.0, 200);
    assert_eq!(agent.json("/healthz").await, (200, json!({"alive": true})));
}

#[tokio::test]
async fn kinesis_being_away_does_not_make_the_agent_unready_but_is_told() {
    let metrics = busy_stream();
    *locked(&metrics.paused_reason) = "AccessDenied for kinesis:PutRecords".to_owned();
    let agent = Agent::start(clicks(&metrics)).await;
    let (code, body) = agent.json("/readyz").await;
    assert_eq!((code, &body["ready"], &body["streams"][0]["delivering"]), (200, &json!(true), &json!(false)));
    assert_eq!(body["streams"][0]["paused_reason"], json!("AccessDenied for kinesis:PutRecords"));
}

#[tokio::test]
async fn an_unknown_path_lists_the_known_ones() {
    let agent = Agent::start(Vec::new()).await;
    let (code, body) = agent.json("/metric").await;
    assert_eq!(code, 404);
    let own = [
        "GET /",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "GET /status",
        "POST /drain",
        "POST /dead/retry",
        "POST /dead/purge",
    ];
    let known: Vec<&str> = own.into_iter().chain(forebay::admin::spool::ROUTES).collect();
    assert_eq!(body["known"], json!(known));
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_one_and_changes_nothing() {
    let agent = Agent::start(Vec::new()).await;
    for (method, path, allowed) in [("POST", "/status", "get, head"), ("GET", "/drain", "post"), ("DELETE", "/", "get, head")] {
        let (code, head, body) = agent.call(method, path).await;
        assert_eq!(code, 405, "{method} {path}");
        assert!(head.contains(&format!("allow: {allowed}\r\n")) || head.ends_with(&format!("allow: {allowed}")), "{head}");
        assert!(serde_json::from_str::<Value>(&body).is_ok(), "{body}");
    }
    let (code, _, body) = agent.call("HEAD", "/healthz").await;
    assert_eq!((code, body.as_str()), (200, ""));
    assert!(!*agent.draining.borrow());
}

#[tokio::test]
async fn a_request_that_a_foreign_page_could_make_is_refused() {
    let agent = Agent::start(Vec::new()).await;
    let port = agent.addr.port();
    let heads = [
        format!("host: evil.example:{port}"),
        "host: 127.0.0.1.evil.example".to_owned(),
        "x-no-host: 1".to_owned(),
        format!("host: 127.0.0.1:{port}\r\nhost: evil.example"),
        format!("host: 127.0.0.1:{port}\r\norigin: http://evil.example"),
        format!("host: 127.0.0.1:{port}\r\norigin: http://127.0.0.1:{}", port ^ 1),
        format!("host: 127.0.0.1:{port}\r\norigin: null"),
    ];
    for head in heads {
        let (code, _, body) =
            agent.raw(&format!("POST /drain HTTP/1.1\r\n{head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(code, 403, "{head}: {body}");
        assert!(body.contains("error"), "{body}");
    }
    assert!(!*agent.draining.borrow(), "none of them may drain the agent");
}

#[tokio::test]
async fn loopback_names_listed_hosts_and_the_own_page_are_served() {
    let agent = Agent::start(Vec::new()).await;
    let port = agent.addr.port();
    let heads = [
        format!("host: localhost:{port}"),
        "host: [::1]:4711".to_owned(),
        "host: Agent.Internal:80".to_owned(),
        format!("host: 127.0.0.1:{port}\r\norigin: http://127.0.0.1:{port}"),
    ];
    for head in heads {
        let (code, _, body) = agent.raw(&format!("GET /status HTTP/1.1\r\n{head}\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(code, 200, "{head}: {body}");
    }
}

#[tokio::test]
async fn the_page_may_run_its_own_script_and_nothing_else() {
    let agent = Agent::start(Vec::new()).await;
    let (code, head, body) = agent.call("GET", "/").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/html; charset=utf-8") && head.contains("default-src 'none'"), "{head}");
    assert!(body.starts_with("<!doctype html>") && body.contains("fetch(\"/status\""));
}

#[tokio::test]
async fn drain_turns_the_watch_and_the_listener_stays_until_it_is_stopped() {
    let metrics = busy_stream();
    let mut agent = Agent::start(clicks(&metrics)).await;
    for _ in 0..2 {
        let (code, _, body) = agent.call("POST", "/drain").await;
        assert_eq!((code, serde_json::from_str::<Value>(&body).expect("JSON")), (202, json!({"state": "draining"})));
    }
    assert!(*agent.draining.wait_for(|drain| *drain).await.expect("the sender lives"));

    let (code, body) = agent.json("/readyz").await;
    assert_eq!(code, 503);
    assert!(body["reasons"][0].as_str().is_some_and(|reason| reason.contains("draining")), "{body}");
    assert_eq!(agent.json("/status").await.1["state"], json!("draining"));
    assert_eq!(agent.call("GET", "/healthz").await.0, 200);

    agent.stop.send(true).expect("serve still listens");
    tokio::time::timeout(DEADLINE, agent.served).await.expect("serve ends").expect("serve does not panic");
    assert!(TcpStream::connect(agent.addr).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn a_silent_connection_does_not_hold_up_the_end() {
    let agent = Agent::start(Vec::new()).await;
    let mut half = TcpStream::connect(agent.addr).await.expect("the listener is there");
    half.write_all(b"GET /status HT").await.expect("taken");
    // Served after the half request was accepted: connections are taken in order.
    assert_eq!(agent.call("GET", "/healthz").await.0, 200);
    agent.stop.send(true).expect("serve still listens");
    tokio::time::timeout(DEADLINE, agent.served).await.expect("serve ends").expect("serve does not panic");
}

#[tokio::test]
async fn a_caller_beyond_the_last_place_is_served_as_soon_as_one_is_free() {
    let agent = Agent::start(Vec::new()).await;
    let mut idle = Vec::new();
    for _ in 0..admin::CONNECTIONS_MAX {
        idle.push(TcpStream::connect(agent.addr).await.expect("the listener is there"));
    }
    let waiting = agent.call("GET", "/healthz");
    let freeing = async { drop(idle.pop()) };
    assert_eq!(tokio::join!(waiting, freeing).0.0, 200);
}

#[tokio::test]
async fn an_address_that_is_not_loopback_is_refused_with_the_remedy() {
    let error = admin::bind("0.0.0.0:0".parse().expect("an address")).await.expect_err("not loopback");
    assert!(error.to_string().contains("listen.admin") && error.to_string().contains("127.0.0.1:4711"), "{error}");
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = taken.local_addr().expect("an address");
    let error = admin::bind(addr).await.expect_err("taken");
    assert!(error.to_string().contains(&addr.to_string()) && error.to_string().contains("turn it off"), "{error}");
}

#[tokio::test]
async fn the_metrics_listener_tells_whoever_comes_and_changes_nothing() {
    let listener = admin::bind_metrics("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let (drain, draining) = watch::channel(false);
    let (stop, stopped) = watch::channel(false);
    let state = AdminState::new(clicks(&busy_stream()), drain, Arc::new(StoppedClock));
    let served = tokio::spawn(admin::serve_metrics(listener, Arc::new(state), stopped));
    let agent = Agent { addr, draining, stop, served };
    for path in ["/metrics", "/healthz", "/readyz"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: 10.1.2.3:4713\r\nconnection: close\r\n\r\n");
        assert_eq!(agent.raw(&request).await.0, 200, "{path}");
        assert_eq!(agent.call("POST", path).await.0, 405, "{path}");
    }
    assert!(agent.call("GET", "/metrics").await.2.contains("forebay_build_info"));
    for (method, path) in [("POST", "/drain"), ("GET", "/status"), ("GET", "/"), ("GET", "/spool"), ("POST", "/dead/retry")] {
        assert_eq!(agent.call(method, path).await.0, 404, "{method} {path}");
    }
    let page = format!("GET /metrics HTTP/1.1\r\nhost: {addr}\r\norigin: http://{addr}\r\nconnection: close\r\n\r\n");
    assert_eq!(agent.raw(&page).await.0, 403, "a page may not");
    assert!(!*agent.draining.borrow());
    let taken = admin::bind_metrics(addr).await.expect_err("taken");
    assert!(taken.to_string().contains("listen.metrics") && taken.to_string().contains("turn it off"), "{taken}");
    agent.stop.send_replace(true);
    tokio::time::timeout(DEADLINE, agent.served).await.expect("it ends").expect("it does not panic");
}

#[tokio::test]
async fn the_status_command_prints_what_a_person_asks_first() {
    let metrics = busy_stream();
    metrics.full.store(true, Ordering::Relaxed);
    *locked(&metrics.paused_reason) = "ResourceNotFound".to_owned();
    locked(&metrics.account).accepted = 1_234_567;
    let agent = Agent::start(clicks(&metrics)).await;
    let (raw, report) = status::fetch(agent.addr).await.expect("an agent answers");
    assert_eq!(
        serde_json::from_str::<Value>(&raw).expect("JSON"),
        serde_json::to_value(&report).expect("JSON"),
        "--json keeps every field"
    );
    let text = status::render(&report);
    let words: Vec<&str> = text.split_whitespace().collect();
    for word in [
        "clicks:",
        "accepting",
        "1,234,567",
        "60",
        "4.0",
        "1.5",
        "ResourceNotFound",
        "full",
        "shardId-000000000001",
        "we/b/too_large",
        "unknown_outcome",
    ] {
        assert!(words.iter().any(|found| found.trim_end_matches([',', ';']) == word), "missing {word} in:\n{text}");
    }
    assert_eq!(status::run(StatusOptions { admin: agent.addr, json: true, quiet: false }).await, ExitCode::SUCCESS);
}

#[tokio::test]
async fn the_status_command_fails_clearly_where_no_agent_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    drop(listener);
    let error = status::fetch(addr).await.expect_err("nobody listens");
    assert!(matches!(error, StatusError::NoAgent(..)), "{error:?}");
    assert!(error.to_string().contains(&addr.to_string()) && error.to_string().contains("listen.admin"), "{error}");
    assert_eq!(status::run(StatusOptions { admin: addr, json: false, quiet: false }).await, ExitCode::FAILURE);
}

#[tokio::test]
async fn the_status_command_knows_a_stranger_from_an_agent() {
    for (answer, hint) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "not forebay"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "404"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "broke"),
        ("", "broke"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let stranger = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            assert_ne!(stream.read(&mut [0; 4096]).await.expect("a request"), 0);
            stream.write_all(answer.as_bytes()).await.expect("the answer is taken");
        });
        let error = status::fetch(addr).await.expect_err("not forebay").to_string();
        assert!(error.contains(hint), "{answer:?}: {error}");
        stranger.await.expect("the stranger does not panic");
    }
}
