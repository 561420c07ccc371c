//! Encryption at rest and compression with the real binary: what lies on the disk, which keys open it, and that everything
//! an operator does with a plain spool is done with a coded one.
//!
//! Place: the agent between a client of the socket and a Kinesis over loopback HTTP; kills are real, damage is made in real
//! files. *NOTHING-LOST* and *EXACT-ACCOUNT* are asserted as everywhere; here besides: not one byte run of an event's key or
//! data in any file, and no start, and no change, without the key.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real files, and damages them")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use real::agent::{Agent, Setup};
use real::client::{Client, Pace};
use real::sink::Sink;
use real::{BINARY, arrived, outcome, sent, temporary};
use serde_json::Value;

const SHARDS: usize = 2;

/// Stands in each key, and by the client's making in each event.
const SECRET: &str = "customer-4711";

fn start(dir: &Path, keys: &[&str], compression: &str) -> (Sink, Setup) {
    let sink = real::sink(SHARDS, 2);
    let mut setup = Setup::new(BINARY, dir, sink.endpoint(), "off");
    set(&mut setup, keys, compression);
    (sink, setup)
}

fn set(setup: &mut Setup, keys: &[&str], compression: &str) {
    setup.spool = format!("segment_bytes = \"8MiB\"\ncheckpoint_interval = \"20ms\"\nencryption_keys = {keys:?}");
    setup.stream = format!("linger = \"5ms\"\nspool_compression = \"{compression}\"");
}

/// A key file of its own for each number.
fn key(dir: &Path, number: u8) -> String {
    let path = dir.join(format!("key-{number}"));
    fs::write(&path, [number; 32]).expect("a key");
    format!("file:{}", path.display())
}

fn client(setup: &Setup, padding: usize) -> Client {
    Client::new(&setup.socket(), (0..20).map(|n| format!("{SECRET}-{n}")).collect(), padding, 200, 1)
}

fn spool_dir(setup: &Setup) -> PathBuf {
    setup.dir.join("spool/events")
}

/// Every file below a directory, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            let bytes = fs::read(&path).expect("a file");
            all.insert(path, bytes);
        }
    }
    all
}

fn holding(setup: &Setup, text: &str) -> Vec<PathBuf> {
    let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    files(&spool_dir(setup)).into_iter().filter(|(_, bytes)| holds(bytes)).map(|(path, _)| path).collect()
}

fn tool(setup: &Setup, args: &[&str]) -> (i32, String, String) {
    let output = real::command(args).arg("--config").arg(setup.file()).envs(setup.env.iter().cloned()).output();
    outcome(output.expect("the binary runs"))
}

fn good(setup: &Setup, args: &[&str]) -> String {
    let (code, out, err) = tool(setup, args);
    assert_eq!(code, 0, "forebay {args:?}: {out}{err}");
    out
}

fn segments(setup: &Setup) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&good(setup, &["spool", "ls", "--json"])).expect("JSON");
    listed["segments"].as_array().expect("segments").clone()
}

/// The distinct ids of the keys that segments are encrypted with, in their order.
fn key_ids(setup: &Setup) -> Vec<String> {
    let mut ids: Vec<String> = segments(setup).iter().map(|s| s["encryption_key"].as_str().unwrap_or("-").to_owned()).collect();
    ids.dedup();
    ids
}

#[test]
fn no_key_and_no_data_of_an_event_is_on_the_disk_and_all_of_it_is_delivered_after_a_kill() {
    for compression in ["off", "zstd"] {
        let dir = temporary();
        let (sink, mut setup) = start(dir.path(), &[], compression);
        let keys = key(dir.path(), 1);
        set(&mut setup, &[&keys], compression);
        setup.stream.push_str("\nttl = \"200ms\"");
        sink.set_all_dead(true);
        let mut agent = Agent::start(&setup);
        client(&setup, 200).run(&Pace::of(2000));
        // Some in letters, the rest pending.
        agent.wait_for("dead letters", |agent| agent.account().expired > 100);
        agent.kill();
        assert_eq!(holding(&setup, SECRET), Vec::<PathBuf>::new(), "{compression}");
        // The same search finds what a plain file holds.
        fs::write(spool_dir(&setup).join("segments/plain"), SECRET).expect("a file");
        assert_eq!(holding(&setup, SECRET).len(), 1);
        fs::remove_file(spool_dir(&setup).join("segments/plain")).expect("removed");

        // With the key, people see it, and it is delivered.
        let letters = good(&setup, &["dead", "ls", "--json", "--limit", "0"]);
        assert!(letters.lines().count() > 100 && letters.contains(SECRET));
        assert!(good(&setup, &["spool", "cat"]).contains(SECRET));
        good(&setup, &["spool", "verify"]);
        sink.set_all_dead(false);
        setup.stream = setup.stream.replace("200ms", "1h");
        let mut agent = Agent::start(&setup);
        agent.wait_drained();
        good(&setup, &["dead", "retry", "--all"]);
        let account = agent.wait_drained();
        assert_eq!(account.delivered + account.expired, account.accepted);
        let arrived: BTreeSet<(String, u64)> = arrived(&sink).into_iter().collect();
        assert_eq!(arrived.len(), 2000);
        assert!(agent.terminate().success());
        assert!(!setup.log_text().contains(SECRET));
    }
}

#[test]
fn without_the_right_key_nothing_starts_and_nothing_changes_and_both_keys_are_named() {
    let dir = temporary();
    let (first, second) = (key(dir.path(), 1), key(dir.path(), 2));
    let (sink, mut setup) = start(dir.path(), &[&first], "off");
    sink.set_all_dead(true);
    let agent = Agent::start(&setup);
    let mut client = client(&setup, 100);
    client.run(&Pace::of(500));
    agent.kill();
    let [id] = &key_ids(&setup)[..] else { panic!("one key") };
    let before = files(&spool_dir(&setup).join("segments"));
    for keys in [&[][..], &[second.as_str()]] {
        set(&mut setup, keys, "off");
        let status = Agent::spawn(&setup).wait_end();
        assert_eq!(status.code(), Some(78), "{}", setup.log_text());
        let told = setup.log_tail();
        assert!(told.contains(&format!("encrypted with the key {id}")) && told.contains("spool.encryption_keys"), "{told}");
        assert_eq!(files(&spool_dir(&setup).join("segments")), before);
        for args in [&["spool", "ls"][..], &["spool", "verify"], &["spool", "cat"], &["spool", "stat"]] {
            let (code, out, err) = tool(&setup, args);
            assert_eq!((code, out.contains(SECRET)), (1, false), "{args:?}: {out}{err}");
            assert!(err.contains(id.as_str()), "{args:?}: {err}");
        }
        assert_eq!(files(&spool_dir(&setup).join("segments")), before);
    }
    // A key that cannot be read is told by its source, by the agent and by the tools.
    for (source, why) in [
        ("file:/nowhere/key", "cannot be read"),
        ("env:NO_SUCH_VARIABLE", "not set"),
        ("credential:spool", "LoadCredential=spool"),
    ] {
        set(&mut setup, &[source], "off");
        assert_eq!(Agent::spawn(&setup).wait_end().code(), Some(78));
        assert!(setup.log_tail().contains(source) && setup.log_tail().contains(why), "{}", setup.log_tail());
        let (code, _, err) = tool(&setup, &["spool", "ls"]);
        assert!(code == 78 && err.contains(source), "{err}");
    }
    // With it, as a systemd credential this time, all is as it was.
    fs::copy(dir.path().join("key-1"), dir.path().join("spool-key")).expect("a copy");
    setup.env.push(("CREDENTIALS_DIRECTORY", dir.path().to_str().expect("UTF-8").to_owned()));
    set(&mut setup, &["credential:spool-key"], "off");
    sink.set_all_dead(false);
    let mut agent = Agent::start(&setup);
    assert_eq!(agent.wait_drained().delivered, 500);
    assert_eq!(arrived(&sink).into_iter().collect::<BTreeSet<_>>(), sent(&client));
}

#[test]
fn keys_and_compression_change_from_one_start_to_the_next_and_a_drained_spool_forgets_the_old_key() {
    let dir = temporary();
    let (first, second) = (key(dir.path(), 1), key(dir.path(), 2));
    let (sink, mut setup) = start(dir.path(), &[], "off");
    sink.set_all_dead(true);
    let mut client = client(&setup, 100);
    let mut ids = Vec::new();
    let stages: [(&[&str], &str); 5] =
        [(&[], "off"), (&[], "zstd"), (&[&first], "zstd"), (&[&second, &first], "off"), (&[&second, &first], "zstd")];
    for ((keys, compression), events) in stages.into_iter().zip((1..).map(|stage| 400 * stage)) {
        set(&mut setup, keys, compression);
        let agent = Agent::start(&setup);
        client.run(&Pace::of(events));
        agent.kill();
        good(&setup, &["spool", "verify"]);
        ids = key_ids(&setup);
    }
    assert_eq!((ids.len(), ids[0].as_str()), (3, "-"), "{ids:?}");
    let compressed: Vec<bool> = segments(&setup).iter().map(|s| s["compressed"].as_bool().expect("a bool")).collect();
    assert!(compressed.contains(&true) && compressed.contains(&false), "{compressed:?}");
    assert!(fs::read_to_string(spool_dir(&setup).join("format")).expect("a format").starts_with("forebay spool 2\n"));
    // All of it is one spool.
    let events = good(&setup, &["spool", "cat"]).lines().count();
    assert_eq!(events, 2000);
    sink.set_all_dead(false);
    let mut agent = Agent::start(&setup);
    assert_eq!(agent.wait_drained().delivered, 2000);
    assert!(agent.terminate().success());
    assert_eq!(arrived(&sink).into_iter().collect::<BTreeSet<_>>(), sent(&client));
    // What is left was written with the second key: the first can go.
    assert_eq!(key_ids(&setup), ids[2..]);
    set(&mut setup, &[&second], "zstd");
    let mut agent = Agent::start(&setup);
    assert_eq!(agent.wait_drained().delivered, 2000);
}

#[test]
fn a_compressed_spool_is_smaller_and_replay_verify_and_damage_are_as_ever() {
    let dir = temporary();
    let keys = key(dir.path(), 1);
    let (sink, mut setup) = start(dir.path(), &[&keys], "zstd");
    sink.set_all_dead(true);
    let agent = Agent::start(&setup);
    let mut client = client(&setup, 300);
    client.run(&Pace::of(60_000));
    agent.kill();
    let list = segments(&setup);
    let sum = |name: &str| list.iter().map(|s| s[name].as_u64().expect("a number")).sum::<u64>();
    let on_disk: u64 = files(&spool_dir(&setup).join("segments")).values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(sum("bytes"), on_disk);
    assert!(on_disk < sum("content_bytes") / 2, "{on_disk} of {}", sum("content_bytes"));

    // A replay by hand appends to the stopped agent's spool, compressed and encrypted.
    let out = good(&setup, &["spool", "replay", "--from", "100", "--to", "200", "--yes", "--json"]);
    assert!(out.contains("100"), "{out}");
    assert_eq!(holding(&setup, SECRET), Vec::<PathBuf>::new());
    good(&setup, &["spool", "verify"]);

    // One flipped bit in the middle of a sealed file: one block, a number of events, each told.
    let path = spool_dir(&setup).join("segments/0000000001.seg");
    let mut bytes = fs::read(&path).expect("a segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("damaged");
    let (code, out, _) = tool(&setup, &["spool", "verify", "--json"]);
    let report: Value = serde_json::from_str(&out).expect("JSON");
    let kinds: BTreeSet<&str> =
        report["findings"].as_array().expect("findings").iter().filter_map(|f| f["kind"].as_str()).collect();
    assert_eq!((code, kinds.contains("coding"), kinds.contains("frame")), (1, true, true), "{out}");

    sink.set_all_dead(false);
    set(&mut setup, &[&keys], "off");
    let mut agent = Agent::start(&setup);
    let account = agent.wait_drained();
    assert!((1..=200).contains(&account.dead), "a block of at most 32 KiB: {account:?}");
    let arrived: BTreeSet<(String, u64)> = arrived(&sink).into_iter().collect();
    assert_eq!(arrived.len() as u64, 60_000 - account.dead);
    assert_eq!(account.accepted, 60_100);
}
