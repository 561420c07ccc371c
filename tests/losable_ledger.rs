//! The ledger, which holds the marks, harmed in every way between runs and under a running agent: nothing is lost.
//!
//! Place: the real binary, a ledger of real sled files, a Kinesis over loopback HTTP (`common/sink.rs`). One spool is
//! prepared, with events that were delivered and events that were not; each harm is done to a copy of it. Offsets and
//! bits are drawn from a seed, which is printed and can be given again as `FOREBAY_HARM_SEED`.
//!
//! Claims after each harm, *LOSABLE*: the agent starts within the deadline and does not end by itself; what was not
//! delivered arrives, and what is sent from then on; nothing arrives that was never sent; where marks are lost the log
//! says so; the balance holds (*EXACT-ACCOUNT*); the next start is a usual one, which sends nothing again.

#![allow(clippy::disallowed_methods, reason = "it harms the files of a real process")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use forebay::host::mix64;
use real::agent::{Agent, Setup};
use real::client::{Client, Pace};
use real::{BINARY, arrived, copy, sent, temporary};

const DELIVERED: u64 = 300;
const PENDING: u64 = 200;
const MORE: u64 = 100;
const SHARDS: usize = 4;

fn setup(dir: &Path, endpoint: String) -> Setup {
    let mut setup = Setup::new(BINARY, dir, endpoint, "off");
    setup.env.push(("FOREBAY_DRAIN_TIMEOUT", "5s".to_owned()));
    setup.spool = "checkpoint_interval = \"20ms\"".to_owned();
    setup.stream = "linger = \"1ms\"".to_owned();
    setup
}

fn keys(prefix: &str) -> Vec<String> {
    (0..10).map(|key| format!("{prefix}-{key}")).collect()
}

fn client(setup: &Setup, prefix: &str) -> Client {
    Client::new(&setup.socket(), keys(prefix), 100, 200, 7)
}

/// A spool with a ledger, as a clean stop leaves it: some events delivered, some not.
struct Template {
    _dir: tempfile::TempDir,
    spool: PathBuf,
    delivered: BTreeSet<(String, u64)>,
    pending: BTreeSet<(String, u64)>,
}

fn template() -> Template {
    let dir = temporary();
    let first = real::sink(SHARDS, 1);
    let mut setup = setup(dir.path(), first.endpoint());
    setup.env.push(("FOREBAY_DRAIN_TIMEOUT", "10ms".to_owned()));
    let mut agent = Agent::start(&setup);
    let mut early = client(&setup, "early");
    early.run(&Pace::of(DELIVERED));
    agent.wait_drained();
    // In the same segment, so that it stays.
    first.set_all_dead(true);
    let mut late = client(&setup, "late");
    late.run(&Pace::of(PENDING));
    assert!(agent.terminate().success());
    let spool = dir.path().join("spool");
    Template { _dir: dir, spool, delivered: sent(&early), pending: sent(&late) }
}

/// The files of a ledger, by name.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).expect("a ledger").map(|entry| entry.expect("an entry").path()).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found
}

fn ledger(setup: &Setup) -> PathBuf {
    setup.dir.join("spool/events/ledger")
}

/// Does the harm to a copy of the template's ledger and holds the agent to the claims. Tells how much of what had been delivered
/// was sent again, and what the agent said.
fn survives(template: &Template, what: &str, harm: impl FnOnce(&Path)) -> (u64, String) {
    let dir = temporary();
    let sink = real::sink(SHARDS, 1);
    let setup = setup(dir.path(), sink.endpoint());
    copy(&template.spool, &setup.dir.join("spool"));
    println!("harm: {what}");
    harm(&ledger(&setup));
    let begun = Instant::now();
    let mut agent = Agent::start(&setup);
    println!("ready after {:?}", begun.elapsed());
    let mut more = client(&setup, "more");
    more.run(&Pace::of(MORE));
    let account = agent.wait_drained();
    assert_eq!(account.accepted, DELIVERED + PENDING + MORE, "{what}: EXACT-ACCOUNT");
    assert!(agent.terminate().success(), "{what}: {}", setup.log_tail());

    let all = arrived(&sink);
    let set: BTreeSet<_> = all.iter().cloned().collect();
    assert!(
        template.pending.is_subset(&set),
        "{what}: NOTHING-LOST: {} of {PENDING}",
        template.pending.intersection(&set).count()
    );
    assert!(sent(&more).is_subset(&set), "{what}: NOTHING-LOST: what was sent after the start");
    let again = template.delivered.intersection(&set).count() as u64;
    assert_eq!(set.len() as u64, PENDING + MORE + again, "{what}: an event that was never sent arrived");
    assert_eq!(all.len(), set.len(), "{what}: DUPLICATES-EXPLAINED: one start sends once");
    let said = setup.log_text();
    if again > 0 {
        assert!(said.contains("marks"), "{what}: {again} events were sent again, and nothing is said of it: {said}");
    }
    // The next start is a usual one.
    assert!(Agent::start(&setup).terminate().success(), "{what}");
    assert_eq!(arrived(&sink).len(), all.len(), "{what}: the next start sent something again");
    (again, said)
}

#[test]
fn a_ledger_whose_files_are_deleted_truncated_flipped_or_overwritten_costs_repeats_only() {
    let seed = real::seed("FOREBAY_HARM_SEED");
    let template = template();
    assert_eq!(survives(&template, "none", |_| {}).0, 0, "without harm nothing is sent again");
    let (all, _) = survives(&template, "the whole ledger deleted", |ledger| fs::remove_dir_all(ledger).expect("removed"));
    assert_eq!(all, DELIVERED, "with the marks lost all that is there is sent again");
    let names: Vec<_> =
        files(&template.spool.join("events/ledger")).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert!(names.len() >= 2, "sled's files are {names:?}");
    let mut draws = (0u64..).map(|n| mix64(seed.wrapping_add(n)));
    let mut draw = |below: u64| draws.next().expect("endless") % below.max(1);
    for name in &names {
        let len = fs::metadata(template.spool.join("events/ledger").join(name)).expect("a file").len();
        let name_text = name.to_string_lossy();
        survives(&template, &format!("{name_text} deleted"), |ledger| fs::remove_file(ledger.join(name)).expect("removed"));
        survives(&template, &format!("{name_text} made a directory"), |ledger| {
            fs::remove_file(ledger.join(name)).expect("removed");
            fs::create_dir(ledger.join(name)).expect("created");
        });
        for to in [0, draw(len), draw(len)] {
            survives(&template, &format!("{name_text} truncated to {to} of {len}"), |ledger| {
                fs::OpenOptions::new().write(true).open(ledger.join(name)).and_then(|file| file.set_len(to)).expect("cut");
            });
        }
        // Most of a database file is empty: the bytes that say something are flipped.
        let bytes = fs::read(template.spool.join("events/ledger").join(name)).expect("a file");
        let telling: Vec<u64> = (0..len).filter(|at| bytes[*at as usize] != 0).collect();
        for _ in 0..6 {
            let (at, bit) = (telling[draw(telling.len() as u64) as usize], draw(8) as u32);
            survives(&template, &format!("{name_text}: bit {bit} of byte {at} of {len} flipped"), |ledger| {
                let mut bytes = fs::read(ledger.join(name)).expect("a file");
                bytes[at as usize] ^= 1 << bit;
                fs::write(ledger.join(name), bytes).expect("written");
            });
        }
        let noise: Vec<u8> = (0..len).map(|n| mix64(seed ^ n) as u8).collect();
        survives(&template, &format!("{name_text} overwritten with noise"), |ledger| {
            fs::write(ledger.join(name), noise).expect("written")
        });
        let (at, many) = (draw(len), 1 + draw(400));
        survives(&template, &format!("{name_text}: {many} bytes of noise at {at}"), |ledger| {
            let mut file = fs::OpenOptions::new().write(true).open(ledger.join(name)).expect("a file");
            file.seek(SeekFrom::Start(at)).expect("a place");
            file.write_all(&(0..many).map(|n| mix64(seed ^ n << 7) as u8).collect::<Vec<_>>()).expect("written");
        });
    }
}

#[test]
fn a_ledger_that_is_no_directory_or_not_readable_is_set_aside() {
    let template = template();
    let (all, said) = survives(&template, "a file in place of the directory", |ledger| {
        fs::remove_dir_all(ledger).expect("removed");
        fs::write(ledger, "not a directory").expect("written");
    });
    assert_eq!(all, DELIVERED);
    assert!(said.contains("set aside") && said.contains("ledger.damaged-1"), "{said}");
    survives(&template, "a link that leads nowhere", |ledger| {
        fs::remove_dir_all(ledger).expect("removed");
        std::os::unix::fs::symlink("/nowhere/at/all", ledger).expect("a link");
    });
    // root reads it all the same, and then nothing was lost.
    survives(&template, "mode 0", |ledger| {
        fs::set_permissions(ledger, fs::Permissions::from_mode(0o0)).expect("changed");
    });
}

#[test]
fn a_ledger_of_another_version_is_told_and_begun_anew() {
    let template = template();
    // Of ours: the marks' own version.
    let (again, said) = survives(&template, "marks of version 2", |ledger| {
        let db = sled::Config::new().path(ledger).open().expect("a good ledger");
        let mut bytes = db.get("checkpoint").expect("a good ledger").expect("marks").to_vec();
        bytes[4] = 2;
        let crc = crc32fast::hash(&bytes[4..]).to_le_bytes();
        bytes[..4].copy_from_slice(&crc);
        db.insert("checkpoint", bytes).expect("inserted");
        db.flush().expect("flushed");
    });
    assert_eq!(again, DELIVERED);
    assert!(said.contains("of another version") && said.contains("version=2"), "{said}");
    // Of sled: the version in its `conf`, which ends with a CRC-32.
    let (again, said) = survives(&template, "a sled of version 9.99", |ledger| {
        let mut bytes = fs::read(ledger.join("conf")).expect("conf");
        bytes.truncate(bytes.len() - 4);
        let text = String::from_utf8(bytes).expect("text").replace("0.34", "9.99");
        assert!(text.contains("9.99"), "sled's conf is {text}");
        let crc = crc32fast::hash(text.as_bytes()).to_le_bytes();
        fs::write(ledger.join("conf"), [text.as_bytes(), &crc].concat()).expect("written");
    });
    assert_eq!(again, DELIVERED);
    assert!(said.contains("set aside") && said.contains("9.99"), "{said}");
}

#[test]
fn a_note_of_what_was_sent_that_is_damaged_or_lost_costs_nothing() {
    let template = template();
    let note = |ledger: &Path| ledger.with_extension("sent");
    survives(&template, "ledger.sent deleted", |ledger| fs::remove_file(note(ledger)).expect("removed"));
    survives(&template, "ledger.sent is noise", |ledger| {
        fs::write(note(ledger), (0..5000).map(|n| mix64(n) as u8).collect::<Vec<_>>()).expect("written");
    });
    survives(&template, "ledger.sent is a directory", |ledger| {
        fs::remove_file(note(ledger)).expect("removed");
        fs::create_dir(note(ledger)).expect("created");
    });
    survives(&template, "ledger.sent knows of the far future", |ledger| {
        let position = u64::MAX.to_le_bytes();
        fs::write(note(ledger), [&position[..], &crc32fast::hash(&position).to_le_bytes()].concat()).expect("written");
    });
    survives(&template, "ledger.sent is huge", |ledger| {
        let file = fs::File::create(note(ledger)).expect("created");
        file.set_len(1 << 40).expect("a sparse file");
    });
}

/// An agent under load, whose ledger is harmed and which then ends one way or the other. Nothing is lost, and the
/// agent itself goes on: it delivers what is sent after the harm.
fn survives_running(what: &str, harm: impl Fn(&Path), kill: bool) {
    println!("harm under a running agent: {what}, then {}", if kill { "SIGKILL" } else { "SIGTERM" });
    let dir = temporary();
    let sink = real::sink(SHARDS, 1);
    let setup = setup(dir.path(), sink.endpoint());
    let mut agent = Agent::start(&setup);
    let mut client = client(&setup, "user");
    client.run(&Pace::of(DELIVERED));
    agent.wait_drained();
    harm(&ledger(&setup));
    // More than one checkpoint.
    for step in 1..=4 {
        client.run(&Pace::of(DELIVERED + step * MORE));
        let account = agent.wait_drained();
        assert_eq!(account.delivered, DELIVERED + step * MORE, "{what}: delivery goes on");
    }
    if kill {
        agent.kill();
    } else {
        assert!(agent.terminate().success(), "{what}: {}", setup.log_tail());
    }
    let mut agent = Agent::start(&setup);
    client.run(&Pace::of(DELIVERED + 5 * MORE));
    let account = agent.wait_drained();
    assert_eq!(account.accepted, DELIVERED + 5 * MORE, "{what}: EXACT-ACCOUNT");
    assert!(agent.terminate().success(), "{what}: {}", setup.log_tail());
    let set: BTreeSet<_> = arrived(&sink).into_iter().collect();
    assert_eq!(set, sent(&client), "{what}: NOTHING-LOST");
    let before = arrived(&sink).len();
    assert!(Agent::start(&setup).terminate().success(), "{what}");
    assert_eq!(arrived(&sink).len(), before, "{what}: the next start sent something again");
}

fn both_ends(what: &str, harm: impl Fn(&Path)) {
    for kill in [false, true] {
        survives_running(what, &harm, kill);
    }
}

#[test]
fn a_ledger_that_vanishes_under_a_running_agent_is_begun_anew() {
    both_ends("deleted", |ledger| fs::remove_dir_all(ledger).expect("removed"));
    both_ends("moved away", |ledger| fs::rename(ledger, ledger.with_extension("elsewhere")).expect("renamed"));
    both_ends("its database deleted", |ledger| fs::remove_file(ledger.join("db")).expect("removed"));
    both_ends("replaced by a file", |ledger| {
        fs::remove_dir_all(ledger).expect("removed");
        fs::write(ledger, "not a directory").expect("written");
    });
}

#[test]
fn a_ledger_that_is_harmed_under_a_running_agent_costs_repeats_only() {
    let seed = real::seed("FOREBAY_HARM_SEED");
    both_ends("its database cut to nothing", |ledger| {
        fs::OpenOptions::new().write(true).open(ledger.join("db")).and_then(|file| file.set_len(0)).expect("cut");
    });
    both_ends("its database full of noise", |ledger| {
        let path = ledger.join("db");
        let len = fs::metadata(&path).expect("a file").len();
        let mut file = fs::OpenOptions::new().write(true).open(&path).expect("a file");
        file.write_all(&(0..len).map(|n| mix64(seed ^ n) as u8).collect::<Vec<_>>()).expect("written");
    });
    both_ends("all but its database deleted", |ledger| {
        for path in files(ledger).into_iter().filter(|path| !path.ends_with("db")) {
            fs::remove_file(path).expect("removed");
        }
    });
}

#[test]
fn marks_that_cannot_be_saved_are_told_in_status_and_metrics_until_they_can() {
    let dir = temporary();
    let sink = real::sink(SHARDS, 1);
    let setup = setup(dir.path(), sink.endpoint());
    let mut agent = Agent::start(&setup);
    let ledger = ledger(&setup);
    let reason = |agent: &Agent| {
        let status = agent.status().expect("an answer");
        status["streams"][0]["checkpoint_reason"].as_str().expect("checkpoint_reason").to_owned()
    };
    let failing = |agent: &Agent| {
        let (_, metrics) = agent.get("/metrics").expect("an answer");
        let line = metrics.lines().find_map(|line| line.strip_prefix("forebay_checkpoint_failing{stream=\"events\"} "));
        line.expect("forebay_checkpoint_failing").parse::<f64>().expect("a number")
    };
    let told = || real::forebay(&["status", "--config", setup.file().to_str().expect("UTF-8")]).1;
    assert_eq!((reason(&agent).as_str(), failing(&agent)), ("", 0.0));
    assert!(told().contains("events: good"), "{}", told());

    // A file stands where the store should be, whatever is made in its place, until it is not set aside any more.
    let mut client = client(&setup, "user");
    let mut events = 0;
    agent.wait_for("the marks to fail", |agent| {
        // It may be made anew at this very moment; then the next look meets it.
        let free = || fs::remove_dir_all(&ledger).is_ok() || !ledger.exists();
        let harmed = ledger.is_file() || free() && fs::write(&ledger, "not a directory").is_ok();
        events += 1;
        client.run(&Pace::of(events));
        harmed && reason(agent).contains("set aside already")
    });
    assert_eq!(failing(&agent), 1.0);
    assert!(told().contains("the marks cannot be saved, so no disk space is freed"), "{}", told());

    fs::remove_file(&ledger).expect("removed");
    agent.wait_for("the marks to be saved again", |agent| {
        events += 1;
        client.run(&Pace::of(events));
        reason(agent).is_empty()
    });
    assert_eq!(failing(&agent), 0.0);
    assert!(told().contains("events: good"), "{}", told());
    assert_eq!(agent.wait_drained().delivered, events, "delivery went on all the while");
    assert!(agent.terminate().success());
}
