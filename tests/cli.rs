//! The real binary's exit codes and reports: 0, 64, 78, and 101 after a panic.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real files")]

use std::io;
use std::process::{Command, Output, Stdio};

const ONE_STREAM: &str = "[[stream]]\nname = \"clicks\"\n";

/// Every part stands in the text.
fn assert_tells(report: &str, parts: &[&str]) {
    for part in parts {
        assert!(report.contains(part), "{part:?} is missing in:\n{report}");
    }
}

/// Runs it with nothing of ours in its environment.
fn forebay(args: &[&str], vars: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FOREBAY_") {
            command.env_remove(name);
        }
    }
    let Output { status, stdout, stderr } = command.args(args).envs(vars.iter().copied()).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

fn written(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("forebay.toml");
    std::fs::write(&path, text).expect("a file in it");
    let path = path.to_str().expect("UTF-8").to_owned();
    (dir, path)
}

#[test]
fn help_of_every_command_ends_well_and_shows_an_example() {
    for command in ["run", "demo", "send", "tail", "status", "drain", "spool", "config", "check", "iam-policy", "dev-cert"] {
        let (code, stdout, stderr) = forebay(&[command, "--help"], &[]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{command}");
        assert_tells(&stdout, &["Example", &format!("forebay {command}"), "--config", "--log-format"]);
    }
    let (code, stdout, _) = forebay(&["--help"], &[]);
    assert_eq!(code, 0);
    assert_tells(&stdout, &["forebay demo", "Exit codes: 0 good, 1 the work failed, 64"]);
    let (code, stdout, _) = forebay(&["--version"], &[]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with(concat!("forebay ", env!("CARGO_PKG_VERSION"), " (commit ")), "{stdout}");
    assert_tells(&stdout, &["features: "]);
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    for args in [
        &["run", "--no-such-flag"][..],
        &["run", "--http", "0.0.0.0:1"],
        &["run", "--dev", "--endpoint", "http://127.0.0.1:1"],
        &["demo", "--events", "0"],
        &["tail"],
        &["no-such-command"],
        &["status", "--log-level", "loud"],
        &[],
    ] {
        let (code, stdout, stderr) = forebay(args, &[]);
        assert_eq!((code, stdout.as_str()), (64, ""), "{args:?}: {stderr}");
        assert!(!stderr.is_empty());
    }
    assert_tells(&forebay(&["run", "--regoin", "x"], &[]).2, &["--region"]);
}

#[test]
fn a_wrong_configuration_ends_with_78_and_all_errors() {
    let (_dir, path) = written("[[stream]]\nname = \"clicks\"\nlinger = 50\n[spool]\nmax_byte = 1\n");
    for command in ["run", "config", "check"] {
        let (code, stdout, stderr) = forebay(&[command, "--config", &path], &[("FOREBAY_LISTEN__HTTP", "1.2.3.4:5")]);
        assert_eq!((code, stdout.as_str()), (78, ""), "{stderr}");
        assert_tells(
            &stderr,
            &["forebay: the configuration has 3 errors", "stream[0].linger = 50", "spool.max_bytes", "1.2.3.4:5"],
        );
    }
    let (code, _, stderr) = forebay(&["run", "--config", "/no/such/file.toml"], &[]);
    assert_eq!(code, 78);
    assert_tells(&stderr, &["--config /no/such/file.toml", "cannot be read"]);
}

#[test]
fn run_without_a_stream_ends_with_78_and_shows_how_to_start() {
    let (_dir, path) = written("");
    let (code, _, stderr) = forebay(&["run", "--config", &path], &[]);
    assert_eq!(code, 78);
    assert_tells(&stderr, &["forebay run --dev", "forebay run --stream NAME --region REGION"]);
}

#[test]
fn config_prints_what_is_in_force_as_toml_and_as_json() {
    let (_dir, path) = written(ONE_STREAM);
    let vars = [("FOREBAY_CONFIG", path.as_str()), ("FOREBAY_SPOOL__MAX_BYTES", "20GiB")];
    let (code, stdout, stderr) = forebay(&["config", "--region", "eu-west-1"], &vars);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_tells(
        &stdout,
        &["name = \"clicks\"", "# flag --region", "max_bytes = \"20GiB\"", "# environment, FOREBAY_SPOOL__MAX_BYTES"],
    );
    let (code, stdout, _) = forebay(&["config", "--json"], &vars);
    assert_eq!(code, 0);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown.pointer("/spool/max_bytes/value"), Some(&"20GiB".into()));
    assert_eq!(shown.pointer("/stream/0/name/at"), Some(&format!("{path}:2").into()));
}

#[test]
fn config_into_a_closed_pipe_is_no_failure() {
    let (_dir, path) = written(ONE_STREAM);
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["config", "--config", &path])
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_panic_in_a_task_ends_the_whole_process_with_101_and_says_where() {
    const CHILD: &str = "TEST_CHILD_PANICS";
    if std::env::var_os(CHILD).is_some() {
        forebay::logging::start(forebay::logging::LogFormat::Json, "info");
        forebay::exit::on_any_panic();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        // Without the hook the task's end would be noticed by nobody, and this would wait for ever.
        runtime.block_on(async {
            let task = tokio::spawn(async { panic!("the event was `secret`, position {}", 7) });
            std::future::pending::<()>().await;
            drop(task);
        });
        unreachable!("nothing wakes a pending future");
    }
    let name = "a_panic_in_a_task_ends_the_whole_process_with_101_and_says_where";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("the binary runs");
    assert_eq!(child.status.code(), Some(101));
    let stderr = String::from_utf8(child.stderr).unwrap();
    assert_tells(&stderr, &["\"level\":\"ERROR\"", "tests/cli.rs:", "the event was …, position 7"]);
    assert!(!stderr.contains("secret"), "{stderr}");
}
