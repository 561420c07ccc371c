//! `forebay spool` with the real binary: on a stopped agent's directory, beside a running agent under load, on damage.
//!
//! Checked: what the tools say is what was sent; nothing is changed by looking; each kind of damage is named with its
//! place and ends with exit code 1; a replay delivers exactly once more, and the account stays exact.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real files, and damages them")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test's helpers report")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::thread;

use real::agent::{Agent, Setup};
use real::client::{Client, Pace};
use real::sink::{Sink, number_of};
use real::{BINARY, command, copy, forebay, outcome};
use serde_json::Value;

const EVENTS: u64 = 100_000;
const USERS: u64 = 300;

fn event(number: u64) -> String {
    format!("{{\"userId\":\"u{}\",\"n\":{number},\"pad\":\"{}\"}}", number % USERS, "x".repeat(400))
}

/// `forebay spool ARGS --dir DIR`, asking no agent.
fn spool(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let nobody = nobody();
    let mut all = vec!["spool"];
    all.extend(args);
    all.extend(["--dir", dir.to_str().expect("UTF-8"), "--admin", &nobody]);
    forebay(&all)
}

/// A loopback address at which nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a loopback port").to_string()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in:\n{text}"))
}

/// Sends events through the real `send`.
fn send(setup: &Setup, numbers: impl Iterator<Item = u64>) {
    let socket = setup.socket();
    let mut child = command(&["send", "--socket", socket.to_str().unwrap()]).stdin(Stdio::piped()).spawn().expect("send runs");
    let text: String = numbers.map(|number| event(number) + "\n").collect();
    child.stdin.take().unwrap().write_all(text.as_bytes()).expect("send reads");
    let (code, stdout, stderr) = outcome(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{stdout}{stderr}");
}

/// A spool of [`EVENTS`] pending events in several segments, as a kill left it; made once.
fn pending_spool() -> &'static Path {
    static MADE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, dir) = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        // Nobody delivers there.
        let mut setup = Setup::new(BINARY, dir.path(), format!("http://{}", nobody()), "off");
        setup.spool = "segment_bytes = \"8MiB\"\ncheckpoint_interval = \"20ms\"".to_owned();
        let mut agent = Agent::start(&setup);
        send(&setup, 0..EVENTS);
        let admin = "/spool/events/marks";
        agent.wait_for("the marks to be saved", |agent| {
            agent.get(admin).is_some_and(|(_, body)| json(&body)["durable"] == EVENTS)
        });
        agent.kill();
        let spool = dir.path().join("spool/events");
        (dir, spool)
    });
    dir
}

/// A copy of it to damage.
fn damaged(how: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(pending_spool(), dir.path());
    how(dir.path());
    dir
}

fn segment(dir: &Path, id: u32) -> PathBuf {
    dir.join(format!("segments/{id:010}.seg"))
}

fn flip(path: &Path, at: impl FnOnce(&[u8]) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at(&bytes);
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Where the index of a sealed segment begins, by its footer.
fn index_at(bytes: &[u8]) -> usize {
    u64_at(bytes, bytes.len() - 64 + 32) as usize
}

/// Names, lengths and contents of all files, and when they were changed.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(fingerprint(&path));
        } else {
            found.insert(path.clone(), (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap()));
        }
    }
    found
}

#[test]
fn looking_into_a_stopped_agents_spool_tells_what_was_sent_and_changes_nothing() {
    let dir = pending_spool();
    let before = fingerprint(dir);

    let (code, stdout, stderr) = spool(dir, &["ls", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let ls = json(&stdout);
    assert_eq!((&ls["stream"], &ls["marks"]["origin"]), (&"events".into(), &"saved".into()));
    let segments = ls["segments"].as_array().unwrap();
    assert!(segments.len() >= 4, "{stdout}");
    let mut next = 0;
    for segment in segments {
        assert_eq!(segment["base"], next);
        next = segment["end"].as_u64().unwrap();
        assert_eq!((&segment["events"], &segment["damaged"]), (&segment["pending"], &0.into()));
    }
    assert_eq!(next, EVENTS);
    assert_eq!(segments.last().unwrap()["state"], "active");

    let (code, stdout, _) = spool(dir, &["stat", "--json"]);
    let stat = json(&stdout);
    assert_eq!((code, &stat["pending"], &stat["oldest_pending"]["position"]), (0, &EVENTS.into(), &0.into()));
    assert_eq!((&stat["account"]["accepted"], &stat["account"]["delivered"]), (&EVENTS.into(), &0.into()));
    let in_lanes: u64 = stat["lanes"].as_array().unwrap().iter().map(|lane| lane["pending"].as_u64().unwrap()).sum();
    assert_eq!(in_lanes, EVENTS);

    let (code, stdout, stderr) = spool(dir, &["verify"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("good: nothing is wrong") && stdout.contains("GB/s"), "{stdout}");
    assert!(stdout.contains("accepted 100,000 = delivered 0 + pending 100,000 + dead 0"), "EXACT-ACCOUNT: {stdout}");

    let (code, stdout, stderr) = spool(dir, &["cat", "--ndjson"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let mut lines = 0;
    for (number, line) in (0..).zip(stdout.lines()) {
        let line = json(line);
        assert_eq!((&line["position"], &line["data"]), (&number.into(), &event(number).into()));
        assert_eq!(line["key"], format!("u{}", number % USERS));
        lines += 1;
    }
    assert_eq!(lines, EVENTS);

    assert!(fingerprint(dir) == before, "looking changed something in {}", dir.display());
}

#[test]
fn cat_selects_by_position_time_key_and_number() {
    let dir = pending_spool();
    let positions = |args: &[&str]| {
        let mut all = vec!["cat", "--json"];
        all.extend(args);
        let (code, stdout, stderr) = spool(dir, &all);
        assert_eq!(code, 0, "{stderr}");
        stdout.lines().map(|line| json(line)["position"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    // Across the boundary of two files.
    let (_, stdout, _) = spool(dir, &["ls", "--json"]);
    let base = json(&stdout)["segments"][1]["base"].as_u64().unwrap();
    let (from, to) = ((base - 3).to_string(), (base + 3).to_string());
    assert_eq!(positions(&["--from", &from, "--to", &to]), (base - 3..base + 3).collect::<Vec<_>>());
    assert_eq!(positions(&["--key", "u7", "--max", "3"]), [7, 307, 607]);
    assert_eq!(positions(&["--key", "u7", "--from", "301", "--to", "608", "--pending"]), [307, 607]);
    assert_eq!(positions(&["--from", "1h", "--max", "2"]), [0, 1]);
    assert_eq!(positions(&["--to", "1h"]), [0u64; 0]);
    assert_eq!(positions(&["--from", "1980-01-01T00:00:00Z", "--to", "2"]), [0, 1]);
    let (code, stdout, _) = spool(dir, &["cat", "--from", "7", "--to", "8"]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with("7  2") && stdout.ends_with(&format!("Z  u7  {}\n", event(7))), "{stdout}");
}

#[test]
fn cat_into_a_closed_pipe_is_no_failure() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let dir = pending_spool().to_str().unwrap();
    let output = command(&["spool", "cat", "--dir", dir]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

/// What `verify` says of a damaged copy: exit code 1, and the first error.
fn first_error(how: impl FnOnce(&Path)) -> Value {
    let dir = damaged(how);
    let (code, stdout, stderr) = spool(dir.path(), &["verify", "--json"]);
    assert_eq!(code, 1, "{stdout}{stderr}");
    let report = json(&stdout);
    assert_eq!(report["good"], false);
    let errors = report["findings"].as_array().unwrap().iter().filter(|finding| finding["level"] == "error");
    let mut error = errors.clone().next().expect("an error").clone();
    for field in ["what", "means", "remedy"] {
        assert!(error[field].as_str().is_some_and(|text| text.len() > 10), "{error}");
    }
    let file = Path::new(error["file"].as_str().unwrap()).file_name().unwrap().to_string_lossy().into_owned();
    error["file"] = file.into();
    error
}

#[test]
fn verify_names_each_damaged_part_of_a_file_by_its_place() {
    let second = fs::read(segment(pending_spool(), 2)).unwrap();
    let base = u64_at(&second, 16);
    let frame_len = u32::from_le_bytes(second[68..72].try_into().unwrap());
    let index = index_at(&second) as u64;
    let len = second.len() as u64;
    let end = u64_at(&second, second.len() - 64 + 24);

    // The second frame's data; the first frame's length.
    let error = first_error(|dir| flip(&segment(dir, 2), |_| 64 + frame_len as usize + 60));
    assert_eq!((&error["kind"], &error["file"]), (&"frame".into(), &"0000000002.seg".into()));
    assert_eq!(
        (&error["offset"], &error["positions"]),
        (&(64 + u64::from(frame_len)).into(), &Value::from(vec![base + 1, base + 2]))
    );
    let error = first_error(|dir| flip(&segment(dir, 2), |_| 68));
    assert_eq!(
        (&error["kind"], &error["offset"], &error["positions"]),
        (&"frame".into(), &64.into(), &Value::from(vec![base, base + 1]))
    );
    // The last frame of a sealed file.
    let error = first_error(|dir| flip(&segment(dir, 2), |bytes| index_at(bytes) - 1));
    assert_eq!((&error["kind"], &error["positions"]), (&"frame".into(), &Value::from(vec![end - 1, end])));

    let error = first_error(|dir| flip(&segment(dir, 2), |_| 20));
    assert_eq!((&error["kind"], &error["offset"]), (&"header".into(), &0.into()));
    let error = first_error(|dir| flip(&segment(dir, 2), |bytes| index_at(bytes) + 77));
    assert_eq!((&error["kind"], &error["offset"]), (&"directory".into(), &index.into()));
    let error = first_error(|dir| flip(&segment(dir, 2), |bytes| index_at(bytes) + 8192 + 77));
    assert_eq!((&error["kind"], &error["offset"]), (&"entries".into(), &(index + 8192).into()));
    for back in [1, 20, 63] {
        let error = first_error(|dir| flip(&segment(dir, 2), |bytes| bytes.len() - back));
        assert_eq!((&error["kind"], &error["offset"]), (&"footer".into(), &(len - 64).into()), "{back} bytes from the end");
    }
}

#[test]
fn verify_notices_an_index_that_is_whole_and_wrong() {
    // A lane's entries swapped with another's, all checksums made anew: nothing that a disk does.
    let error = first_error(|dir| {
        let path = segment(dir, 2);
        let mut bytes = fs::read(&path).unwrap();
        let (index, len) = (index_at(&bytes), bytes.len());
        let entries = index + 8192..len - 64;
        let (first, last) = (entries.start, entries.end - 8);
        for at in 0..8 {
            bytes.swap(first + at, last + at);
        }
        let crc = crc32fast::hash(&bytes[entries]).to_le_bytes();
        bytes[len - 64 + 52..len - 64 + 56].copy_from_slice(&crc);
        let crc = crc32fast::hash(&bytes[len - 64..len - 4]).to_le_bytes();
        bytes[len - 4..].copy_from_slice(&crc);
        fs::write(&path, bytes).unwrap();
    });
    assert_eq!(error["kind"], "entries");
    assert!(error["what"].as_str().unwrap().contains("2 stand under another lane"), "{error}");
}

#[test]
fn verify_names_what_is_missing_and_which_positions_it_held() {
    let ends: Vec<u64> =
        (1..=2).map(|id| fs::read(segment(pending_spool(), id)).unwrap()).map(|b| u64_at(&b, b.len() - 40)).collect();
    let cut = |id: u32| {
        move |dir: &Path| {
            let file = fs::File::options().write(true).open(segment(dir, id)).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
    };
    let error = first_error(cut(2));
    assert_eq!(
        (&error["kind"], &error["file"], &error["positions"][1]),
        (&"truncated".into(), &"0000000002.seg".into(), &ends[1].into())
    );
    let newest = fs::read_dir(pending_spool().join("segments")).unwrap().count() as u32;
    let error = first_error(cut(newest));
    assert_eq!((&error["kind"], &error["positions"][1]), (&"truncated".into(), &EVENTS.into()));

    let error = first_error(|dir| fs::remove_file(segment(dir, 2)).unwrap());
    assert_eq!((&error["kind"], &error["file"]), (&"positions".into(), &"0000000003.seg".into()));
    assert_eq!(error["positions"], Value::from(vec![ends[0], ends[1]]));
    let error = first_error(|dir| fs::remove_file(segment(dir, newest)).unwrap());
    assert_eq!((&error["kind"], &error["positions"][1]), (&"marks".into(), &EVENTS.into()));

    let error = first_error(|dir| {
        for name in ["db", "conf"] {
            let path = dir.join("ledger").join(name);
            let len = fs::metadata(&path).unwrap().len();
            fs::write(&path, vec![0xa5; len as usize]).unwrap();
        }
    });
    assert_eq!((&error["kind"], &error["file"]), (&"marks".into(), &"ledger".into()));
    // Lost marks alone cost no event.
    let dir = damaged(|dir| fs::remove_dir_all(dir.join("ledger")).unwrap());
    let (code, stdout, _) = spool(dir.path(), &["verify"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("warning: ") && stdout.contains("there are no marks"), "{stdout}");
}

#[test]
fn damage_that_a_start_has_counted_is_a_note_and_a_torn_tail_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(BINARY, dir.path(), format!("http://{}", nobody()), "off");
    setup.spool = "segment_bytes = \"8MiB\"".to_owned();
    let spool_dir = dir.path().join("spool/events");
    copy(pending_spool(), &spool_dir);
    let newest = fs::read_dir(spool_dir.join("segments")).unwrap().count() as u32;
    // In the file that has no index: recovery meets it, counts it, sets it aside.
    let first = u32::from_le_bytes(fs::read(segment(&spool_dir, newest)).unwrap()[68..72].try_into().unwrap()) as usize;
    flip(&segment(&spool_dir, newest), |_| 64 + first + 60);
    let (code, stdout, _) = spool(&spool_dir, &["verify"]);
    assert_eq!(code, 1, "{stdout}");
    let agent = Agent::start(&setup);
    assert_eq!(agent.account().dead, 1);
    agent.kill();
    let (code, stdout, _) = spool(&spool_dir, &["verify", "--json"]);
    let report = json(&stdout);
    assert_eq!((code, &report["good"]), (0, &true.into()), "{stdout}");
    let notes: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|note| (note["level"].clone(), note["kind"].clone())).collect();
    assert_eq!(notes, [("note".into(), "frame".into())], "{stdout}");
    assert_eq!(report["account"]["dead"], 1);

    let torn =
        damaged(|dir| fs::File::options().append(true).open(segment(dir, newest)).unwrap().write_all(&[0x55; 100]).unwrap());
    let (code, stdout, _) = spool(torn.path(), &["verify", "--json"]);
    assert_eq!((code, &json(&stdout)["findings"][0]["kind"]), (0, &"torn_tail".into()), "{stdout}");
}

#[test]
fn beside_an_agent_under_load_all_tools_work_and_find_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let sink = real::sink(64, 2);
    let mut setup = Setup::new(BINARY, dir.path(), sink.endpoint(), "kpl");
    setup.spool = "segment_bytes = \"8MiB\"\ncheckpoint_interval = \"20ms\"".to_owned();
    setup.stream = "linger = \"5ms\"".to_owned();
    let mut agent = Agent::start(&setup);
    let config = setup.file();
    let config = config.to_str().unwrap();
    let pace = Pace::default();
    let keys = (0..200).map(|key| format!("key{key}")).collect();
    let mut client = Client::new(&setup.socket(), keys, 700, 2_000, 7);
    let (mut rounds, mut segments) = (0, 0);
    // One that takes nothing keeps a few events of each file, and so files are rewritten as well as removed.
    sink.set_dead(0, true);
    thread::scope(|scope| {
        scope.spawn(|| client.run(&pace));
        pace.allowed.store(60_000, Ordering::SeqCst);
        // Some files are begun, delivered and removed while the tools look.
        while pace.acked() < 60_000 || rounds < 3 {
            rounds += 1;
            let (code, stdout, stderr) = forebay(&["spool", "verify", "--json", "--config", config]);
            assert_eq!(code, 0, "{stdout}{stderr}");
            assert_eq!(json(&stdout)["marks"]["origin"], "live");
            for args in [&["ls", "--json"][..], &["stat", "--json"]] {
                let (code, stdout, stderr) = forebay(&[&["spool"], args, &["--config", config]].concat());
                assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
                let last = json(&stdout)["segments"].as_array().unwrap().last().map_or(0, |last| last["id"].as_u64().unwrap());
                segments = last.max(segments);
            }
            let (code, stdout, stderr) = forebay(&["spool", "cat", "--json", "--pending", "--config", config]);
            assert_eq!((code, stderr.as_str()), (0, ""));
            let positions: Vec<u64> = stdout.lines().map(|line| json(line)["position"].as_u64().unwrap()).collect();
            assert!(positions.is_sorted_by(|a, b| a < b));
        }
        pace.finish();
    });
    agent.wait_for("a rewritten file", |_| {
        let (_, stdout, _) = forebay(&["spool", "ls", "--json", "--config", config]);
        json(&stdout)["segments"].as_array().unwrap().iter().any(|segment| segment["rewritten"] == true)
    });
    let (code, stdout, stderr) = forebay(&["spool", "verify", "--config", config]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("(0 warnings, 0 notes)"), "{stdout}");
    agent.wait_for("nothing but the dead shard's keys to be pending", |_| {
        let (_, stdout, _) = forebay(&["spool", "cat", "--json", "--pending", "--config", config]);
        let keys: std::collections::BTreeSet<String> = stdout.lines().map(|line| json(line)["key"].to_string()).collect();
        (1..20).contains(&keys.len())
    });
    sink.set_dead(0, false);
    assert!(segments >= 3, "the load was too small: {segments} segments");
    let account = agent.wait_drained();
    // The marks are saved a moment later.
    agent.wait_for("saved marks to cover all", |_| {
        let (_, stdout, _) = forebay(&["spool", "stat", "--json", "--config", config]);
        json(&stdout)["pending"] == 0
    });
    let (code, stdout, _) = forebay(&["spool", "stat", "--stream", "events", "--json", "--config", config]);
    assert_eq!((code, &json(&stdout)["account"]["delivered"]), (0, &account.accepted.into()));
}

/// How often each numbered event arrived.
fn arrivals(sink: &Sink, shards: usize) -> BTreeMap<u64, u64> {
    let mut times = BTreeMap::new();
    for arrived in (0..shards).flat_map(|shard| sink.events(shard)) {
        *times.entry(number_of(&arrived.event.data).expect("a number")).or_default() += 1;
    }
    times
}

#[test]
fn a_replay_delivers_the_range_exactly_once_more_live_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let sink = real::sink(4, 0);
    let setup = Setup::new(BINARY, dir.path(), sink.endpoint(), "kpl");
    let mut agent = Agent::start(&setup);
    send(&setup, 0..1_000);
    assert_eq!(agent.wait_drained().delivered, 1_000);
    let file = setup.file();
    let config = file.to_str().unwrap();

    // Nobody is there to be asked.
    let (code, _, stderr) = forebay(&["spool", "replay", "--from", "100", "--to", "200", "--config", config]);
    assert_eq!(code, 64);
    assert!(stderr.contains("100 events") && stderr.contains("add --yes"), "{stderr}");

    let (code, stdout, stderr) =
        forebay(&["spool", "replay", "--from", "100", "--to", "200", "--yes", "--json", "--config", config]);
    assert_eq!(code, 0, "{stderr}");
    let said = json(&stdout);
    assert_eq!((&said["there"], &said["replayed"], &said["live"]), (&100.into(), &100.into(), &true.into()));
    let account = agent.wait_drained();
    assert_eq!((account.accepted, account.delivered), (1_100, 1_100), "EXACT-ACCOUNT");
    let times = arrivals(&sink, 4);
    for number in 0..1_000 {
        let expected = if (100..200).contains(&number) { 2 } else { 1 };
        assert_eq!(times[&number], expected, "event {number}");
    }
    let (_, metrics) = agent.get("/metrics").unwrap();
    assert!(metrics.contains("forebay_events_duplicated_total{stream=\"events\",reason=\"replay\"} 100"), "{metrics}");

    // What is told of a spool in use when its agent's address is not known.
    let spool_dir = dir.path().join("spool/events");
    let (code, _, stderr) = spool(&spool_dir, &["replay", "--from", "0", "--yes"]);
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("process {} holds the lock", agent.pid())) && stderr.contains("--admin"), "{stderr}");
    assert!(agent.terminate().success());

    let (code, stdout, stderr) = spool(&spool_dir, &["replay", "--key", "u7", "--to", "1000", "--yes", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let said = json(&stdout);
    assert_eq!((&said["replayed"], &said["live"], &said["pending_of_range"]), (&4.into(), &false.into(), &0.into()));
    let (code, stdout, _) = spool(&spool_dir, &["verify"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("accepted 1,104 = delivered 1,100 + pending 4 "), "EXACT-ACCOUNT: {stdout}");
    let mut agent = Agent::start(&setup);
    let account = agent.wait_drained();
    assert_eq!((account.accepted, account.delivered), (1_104, 1_104), "EXACT-ACCOUNT");
    let times = arrivals(&sink, 4);
    let twice = |number: &u64| (100..200).contains(number) as u64 + u64::from(number % USERS == 7);
    assert!((0..1_000).all(|number| times[&number] == 1 + twice(&number)), "{times:?}");
    // The replayed ones came behind everything, in their own order.
    let of_key: Vec<u64> = (0..4)
        .flat_map(|shard| sink.events(shard))
        .filter(|arrived| arrived.event.key == "u7")
        .map(|arrived| number_of(&arrived.event.data).unwrap())
        .collect();
    assert_eq!(of_key, [7, 307, 607, 907, 7, 307, 607, 907], "KEY-ORDER");
}

#[test]
fn errors_name_the_place_and_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let tells = |dir: &Path, args: &[&str], code: i32, parts: &[&str]| {
        let (found, stdout, stderr) = spool(dir, args);
        assert_eq!((found, stdout.as_str()), (code, ""), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is missing in:\n{stderr}");
        }
    };
    tells(&at("none"), &["ls"], 1, &["forebay spool ls: there is no directory", "none", "spool.dir"]);
    fs::create_dir_all(at("empty")).unwrap();
    tells(&at("empty"), &["stat"], 1, &["is no spool", "`format`"]);
    fs::create_dir_all(at("newer/segments")).unwrap();
    fs::write(at("newer/format"), "forebay spool 3\nstream events\n").unwrap();
    tells(&at("newer"), &["verify"], 1, &["another version", "forebay spool 3", "Run the version that wrote it"]);
    copy(pending_spool(), &at("root/one"));
    copy(pending_spool(), &at("root/two"));
    tells(&at("root"), &["ls"], 1, &["several spools", "root/one", "root/two", "--dir"]);
    tells(&at("root/one"), &["cat", "--from", "9", "--to", "9"], 64, &["the range is empty"]);
    tells(&at("root/one"), &["cat", "--from", "yesterday"], 64, &["2026-11-20T10:00:00Z", "2h"]);
    tells(&at("root/one"), &["replay", "--yes"], 64, &["--from and --to"]);
    tells(&at("root/one"), &["replay", "--from", "99999999", "--yes"], 1, &["nothing of this range", "positions 0 up to 100000"]);

    let config = at("forebay.toml");
    fs::write(&config, format!("[listen]\nadmin = \"{}\"\n[spool]\ndir = {:?}\n", nobody(), at("root"))).unwrap();
    let config = config.to_str().unwrap();
    let (code, _, stderr) = forebay(&["spool", "ls", "--stream", "three", "--config", config]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("no spool of stream three") && stderr.contains("root/two") && stderr.contains("no agent answers"),
        "{stderr}"
    );
    let (code, _, stderr) = forebay(&["spool", "ls", "--config", config]);
    assert_eq!(code, 1);
    assert!(stderr.contains("name one with --stream"), "{stderr}");
    let (code, stdout, _) = forebay(&["spool", "ls", "--stream", "two", "--config", config]);
    assert_eq!(code, 0);
    assert!(stdout.contains("root/two, no agent") && stdout.contains("marks: saved"), "{stdout}");
    for command in ["ls", "stat", "verify", "cat", "replay"] {
        let (code, stdout, _) = forebay(&["spool", command, "--help"]);
        assert_eq!(code, 0);
        assert!(stdout.contains(&format!("Examples:\n  forebay spool {command}")), "{stdout}");
    }
}
