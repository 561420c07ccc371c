//! `forebay send` against the real door.
//!
//! Place: part of `ingest_unix.rs`, whose door it opens.

use super::*;
use forebay::commands::send::{SendError, SendOptions, Total, send};
use indicatif::ProgressBar;

fn options(socket: &Path, files: Vec<PathBuf>) -> SendOptions {
    SendOptions { socket: socket.to_owned(), source: None, key: None, files, json: false, quiet: true }
}

async fn run(options: &SendOptions) -> Result<Total, (Total, SendError)> {
    soon(send(options, &ProgressBar::hidden())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_lines_of_all_files_become_durable_in_order() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let first: String = (0..50_000).map(|number| format!("{{\"userId\":{number}}}\r\n\n")).collect();
    let first = doors::file(&world, "first", first.trim_end().as_bytes());
    let second = doors::file(&world, "second", b"{\"userId\":\"x\"}");
    let total = run(&options(&door.path, vec![first, second])).await.unwrap();
    assert_eq!((total.accepted, total.rejected, total.unsettled), (50_001, 0, 0));
    let texts = world.texts();
    assert_eq!(texts[49_999], "{\"userId\":49999}");
    assert_eq!(texts[50_000], "{\"userId\":\"x\"}");
    door.end().await;
}

#[tokio::test]
async fn rejected_events_are_counted_and_the_others_are_durable() {
    let world = World::new();
    let short = SourceConfig { max_event_bytes: 1000, ..config("web") };
    let door = Door::open(&world, Sources::new([world.source(&short)])).await;
    let text = format!("{{\"userId\":1}}\n{}\n{{\"userId\":2}}\nno json\n", "x".repeat(5000));
    let path = doors::file(&world, "input", text.as_bytes());
    let total = run(&options(&door.path, vec![path])).await.unwrap();
    assert_eq!((total.accepted, total.rejected, total.unsettled), (2, 2, 0));
    assert_eq!((world.rejected("too_large"), world.rejected("not_json")), (1, 1));
    door.end().await;
}

#[tokio::test]
async fn an_agent_that_stops_leaves_the_rest_unsettled() {
    let mut world = World::stalled();
    let door = Door::open(&world, world.web()).await;
    let path = doors::file(&world, "input", b"{\"userId\":1}\n{\"userId\":2}\n");
    let options = options(&door.path, vec![path]);
    let sending = tokio::spawn(async move { run(&options).await });
    until("both are submitted", || world.submitted() == 2).await;
    world.go_and_fail();
    let (total, error) = soon(sending).await.unwrap().unwrap_err();
    assert_eq!((total.accepted, total.unsettled), (0, 2));
    assert!(matches!(error, SendError::Closed(_)), "{error}");
    door.end().await;
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_told() {
    let world = World::new();
    let door = Door::open(&world, world.web()).await;
    let input = doors::file(&world, "input", b"{}");
    let good = options(&door.path, vec![input]);
    let nobody = SendOptions { socket: world.dir.path().join("nobody.sock"), ..good.clone() };
    let unknown = SendOptions { source: Some("nope".to_owned()), ..good.clone() };
    let spaced = SendOptions { key: Some("a b".to_owned()), ..good.clone() };
    let missing = SendOptions { files: vec![world.dir.path().join("missing")], ..good };
    for (options, part) in [
        (nobody, "is the agent running"),
        (unknown, "known are: web"),
        (spaced, "--key must not hold spaces"),
        (missing, "missing"),
    ] {
        let (_, error) = run(&options).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(world.submitted(), 0);
    door.end().await;
}
