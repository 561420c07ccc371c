//! `forebay check`: the real binary against an embedded Kinesis and this machine's own files.
//!
//! Goal: what it prints and how it ends. Method: an embedded Kinesis, which knows no rights; STS and IAM with real policies are
//! asked in `tests/interop`.

#![cfg(feature = "dev")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test ends where something fails; it runs a real process on real files"
)]

use std::path::Path;

use forebay::dev::{DevKinesis, DevOptions};
use serde_json::Value;

/// Exit code, stdout, stderr of `forebay check` with no credentials but an emulator's.
async fn check(home: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.env_clear().env("HOME", home).env("AWS_ACCESS_KEY_ID", "dev").env("AWS_SECRET_ACCESS_KEY", "dev").kill_on_drop(true);
    let spool = home.join("spool");
    std::fs::create_dir_all(&spool).unwrap();
    command.arg("check").args(args).arg("--spool-dir").arg(&spool);
    let output = command.output().await.unwrap();
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0, "the probe file is gone");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// `item: outcome` of each finding of a section.
fn outcomes(json: &str, section: usize) -> Vec<String> {
    let value: Value = serde_json::from_str(json).unwrap();
    let findings = value["sections"][section]["findings"].as_array().unwrap();
    findings.iter().map(|one| format!("{}: {}", one["about"].as_str().unwrap(), one["outcome"].as_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emulators_stream_is_looked_at_and_its_credentials_are_shown_to_nobody_else() {
    let home = tempfile::tempdir().unwrap();
    let options = DevOptions { port: 0, shards: 3, stream: "clicks".into(), enforce_limits: false };
    let kinesis = DevKinesis::start(options).await.unwrap();
    let endpoint = kinesis.endpoint().to_owned();
    let there = ["--stream", "clicks", "--region", "us-east-1", "--endpoint", &endpoint];
    let (code, stdout, stderr) = check(home.path(), &there).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(stdout.contains("  ✓ shards        3 open shards take 3MiB and 3000 records a second"), "{stdout}");
    assert!(stdout.contains("  ? credentials   the endpoint is an emulator's"), "{stdout}");

    let (code, stdout, _) = check(home.path(), &[&there[..], &["--json"]].concat()).await;
    assert_eq!(code, Some(0));
    let wanted =
        ["credentials: unknown", "stream: ok", "mode: ok", "encryption: ok", "limits: ok", "shards: ok", "writing: unknown"];
    assert_eq!(outcomes(&stdout, 1), wanted, "{stdout}");

    let (code, stdout, _) = check(home.path(), &["--stream", "clacks", "--region", "us-east-1", "--endpoint", &endpoint]).await;
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("stream/clacks does not exist"), "{stdout}");
    kinesis.stop().await;

    let (code, stdout, _) = check(home.path(), &there).await;
    assert_eq!(code, Some(1), "nobody listens any more: {stdout}");
    assert!(stdout.contains("Kinesis does not tell of"), "{stdout}");
}

#[tokio::test]
async fn with_local_nobody_is_asked() {
    let home = tempfile::tempdir().unwrap();
    let nowhere = ["--stream", "clicks", "--region", "us-east-1", "--endpoint", "http://127.0.0.1:1", "--local", "--json"];
    let (code, stdout, stderr) = check(home.path(), &nowhere).await;
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&value["ok"], value["sections"].as_array().unwrap().len()), (&Value::Bool(true), 1));
    assert_eq!(outcomes(&stdout, 0)[0], "configuration: ok");
}
