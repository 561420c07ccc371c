//! `forebay demo` as a user runs it: the real binary, agent and embedded Kinesis and all, judged by its exit code
//! and its own account; and `forebay tail` where its reader leaves early.
#![cfg(feature = "dev")]
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::process::Stdio;
use std::time::Duration;

use forebay::dev::{DevKinesis, DevOptions, REGION};
use forebay::kinesis::{KinesisApi as _, PutEntry};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

/// Generous: a debug build on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(120);

fn forebay(temp: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.env("TMPDIR", temp.path()).env("AWS_EC2_METADATA_DISABLED", "true").stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn is_empty(dir: &tempfile::TempDir) -> bool {
    dir.path().read_dir().unwrap().next().is_none()
}

async fn demo_is_right(aggregate: &str) {
    let temp = tempfile::tempdir().unwrap();
    let mut command = forebay(&temp);
    command.args(["demo", "--events", "8000", "--users", "100", "--shards", "3", "--json", "--aggregate", aggregate]);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stdout));
    let account: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, value) in
        [("accepted", 8000), ("delivered", 8000), ("arrived", 8000), ("missing", 0), ("duplicates", 0), ("order_violations", 0)]
    {
        assert_eq!(account[name], value, "{name} in {account}");
    }
    assert_eq!(account["shards"].as_object().unwrap().len(), 3, "{account}");
    let records = account["records"].as_u64().unwrap();
    if aggregate == "kpl" {
        assert!(records < 8000, "{records} records")
    } else {
        assert_eq!(records, 8000)
    }
    assert!(is_empty(&temp), "the demo left something behind");
}

#[tokio::test]
async fn the_demo_with_aggregates_delivers_every_event_once_and_in_order() {
    demo_is_right("kpl").await;
}

#[tokio::test]
async fn the_demo_with_plain_records_delivers_every_event_once_and_in_order() {
    demo_is_right("off").await;
}

#[tokio::test]
async fn an_interrupted_demo_leaves_neither_agent_nor_files() {
    let temp = tempfile::tempdir().unwrap();
    let mut command = forebay(&temp);
    let mut demo = command.args(["demo", "--events", "50000000"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines();
    let line = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the demo ended before its agent was up");
            if line.starts_with("agent on ") {
                return line;
            }
        }
    };
    let line = tokio::time::timeout(DEADLINE, line).await.unwrap();
    let address = line.rsplit("http://").next().unwrap().to_owned();
    let id = rustix::process::Pid::from_raw(demo.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let status = tokio::time::timeout(DEADLINE, demo.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(is_empty(&temp), "files are left behind");
    assert!(tokio::net::TcpStream::connect(&address).await.is_err(), "an agent still listens on {address}");
}

#[tokio::test]
async fn tail_ends_quietly_when_its_reader_has_seen_enough() {
    let options = DevOptions { port: 0, shards: 1, stream: "clicks".into(), enforce_limits: false };
    let dev = DevKinesis::start(options).await.unwrap();
    let entry = |n: usize| PutEntry { partition_key: n.to_string(), explicit_hash_key: None, data: b"an event".to_vec() };
    dev.client().put_records((0..500).map(entry).collect()).await.unwrap();
    let temp = tempfile::tempdir().unwrap();
    let mut command = forebay(&temp);
    command.args(["tail", "clicks", "--region", REGION, "--endpoint", dev.endpoint(), "--from", "trim-horizon"]);
    command.env("AWS_ACCESS_KEY_ID", "dev").env("AWS_SECRET_ACCESS_KEY", "dev");
    let mut tail = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(tail.stdout.take().unwrap());
    let mut line = String::new();
    tokio::time::timeout(DEADLINE, out.read_line(&mut line)).await.unwrap().unwrap();
    assert!(line.contains("an event"), "{line}");
    drop(out);
    // The pipe's buffer may have taken all that there was: it is the next event that finds nobody.
    let exit = async {
        loop {
            if let Some(status) = tail.try_wait().unwrap() {
                return status;
            }
            dev.client().put_records(vec![entry(0)]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let status = tokio::time::timeout(DEADLINE, exit).await.unwrap();
    let mut told = String::new();
    tail.stderr.take().unwrap().read_to_string(&mut told).await.unwrap();
    assert!(status.success() && told.is_empty(), "{status}: {told}");
    dev.stop().await;
}
