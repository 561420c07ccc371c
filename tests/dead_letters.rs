//! Dead letters with the real binary: events expire while every shard is dead, through kills; then `forebay dead` lists,
//! shows, retries and purges them, on the running agent's spool and on a stopped one's.
//!
//! Place: the agent between a client of the socket and a Kinesis over loopback HTTP whose shards throttle everything until
//! they are told otherwise. *EXACT-ACCOUNT* is asserted with every look at the account; that each expired event has one
//! letter, and each retried one arrives, by their numbers.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/real.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use real::agent::{Agent, Setup};
use real::client::{Client, Pace};
use real::sink::{Sink, number_of};
use real::{BINARY, temporary};
use serde_json::Value;

const SHARDS: usize = 3;

fn start(dir: &Path, aggregate: &'static str, ttl: &str) -> (Sink, Setup) {
    let sink = real::sink(SHARDS, 2);
    let mut setup = Setup::new(BINARY, dir, sink.endpoint(), aggregate);
    setup.spool = "segment_bytes = \"8MiB\"\ncheckpoint_interval = \"20ms\"".to_owned();
    setup.stream = format!("linger = \"5ms\"\nttl = \"{ttl}\"");
    (sink, setup)
}

/// `forebay dead …`, without a terminal: exit code, stdout, stderr.
fn dead(setup: &Setup, args: &[&str]) -> (i32, String, String) {
    let output = real::command(&["dead"]).args(args).arg("--config").arg(setup.file()).output();
    real::outcome(output.expect("the binary runs"))
}

fn good(setup: &Setup, args: &[&str]) -> String {
    let (code, out, err) = dead(setup, args);
    assert_eq!(code, 0, "forebay dead {args:?}: {out}{err}");
    out
}

/// All letters, by number.
fn letters(setup: &Setup) -> BTreeMap<u64, Value> {
    let text = good(setup, &["ls", "--json", "--limit", "0"]);
    let of = |line: &str| -> Value { serde_json::from_str(line).expect("a JSON object a line") };
    text.lines().map(of).map(|letter| (letter["number"].as_u64().expect("a number"), letter)).collect()
}

fn held(agent: &Agent) -> u64 {
    agent.status().expect("a status")["streams"][0]["dead_letters"]["held"].as_u64().expect("dead_letters.held")
}

fn arrived(sink: &Sink) -> BTreeSet<(String, u64)> {
    real::arrived(sink).into_iter().collect()
}

fn number_in(letter: &Value) -> (String, u64) {
    let data = letter["data"].as_str().expect("our events are text");
    (letter["key"].as_str().expect("a key").to_owned(), number_of(data.as_bytes()).expect("an event of ours"))
}

fn through_its_life(aggregate: &'static str) {
    let dir = temporary();
    let (sink, mut setup) = start(dir.path(), aggregate, "300ms");
    sink.set_all_dead(true);

    // Kills at different depths of expiring.
    let mut accepted = 0;
    for (round, after) in [1_u64, 150, 299, 400].into_iter().enumerate() {
        let mut agent = Agent::start(&setup);
        let expired = agent.account().expired;
        let keys = (0..20).map(|n| format!("user-{round}-{n}")).collect();
        Client::new(&setup.socket(), keys, 100, 200, 1).run(&Pace::of(300));
        accepted += 300;
        agent.wait_for("letters", |agent| agent.account().expired >= expired + after.min(300));
        agent.kill();
        let letters = letters(&setup).len() as u64;
        let mut agent = Agent::start(&setup);
        // What died has a letter, and nothing else was counted.
        let account = agent.account();
        assert!(account.expired >= letters && account.accepted >= accepted, "round {round}: {account:?}, {letters} letters");
        agent.wait_for("all to expire", |agent| agent.account().pending == 0);
        agent.kill();
    }
    // What is retried has time now.
    setup.stream = "linger = \"5ms\"\nttl = \"1h\"".to_owned();
    let mut agent = Agent::start(&setup);
    let account = agent.account();
    let all = letters(&setup);
    assert_eq!((account.expired, account.delivered, account.pending, account.dead), (all.len() as u64, 0, 0, 0));
    let events: BTreeSet<_> = all.values().map(number_in).collect();
    assert_eq!((events.len(), account.accepted), (all.len(), all.len() as u64), "one letter an event");
    assert!(events.len() >= 1200);
    assert_eq!(held(&agent), account.expired);

    // On the running agent.
    let (first, letter) = all.first_key_value().expect("letters");
    let shown = good(&setup, &["show", &first.to_string()]);
    assert!(
        shown.contains("expired: older than ttl (300 ms)") && shown.contains(letter["data"].as_str().expect("text")),
        "{shown}"
    );
    let (code, _, err) = dead(&setup, &["show", "999999"]);
    assert_eq!((code, err.contains("no dead letter 999999")), (1, true), "{err}");
    assert_eq!(dead(&setup, &["retry"]).0, 64, "which ones?");
    assert_eq!(dead(&setup, &["purge", "--all"]).0, 64, "nobody to ask");
    let by_key = good(&setup, &["ls", "--key", "user-2-7", "--json", "--limit", "0"]).lines().count();
    assert_eq!(by_key, all.values().filter(|letter| letter["key"] == "user-2-7").count());

    sink.set_all_dead(false);
    let second = all.keys().nth(1).expect("letters");
    let out = good(&setup, &["retry", &first.to_string(), &second.to_string(), "--json"]);
    assert!(out.contains("\"retried\":2"), "{out}");
    let out = good(&setup, &["retry", "--reason", "expired", "--limit", "18", "--json"]);
    assert!(out.contains("\"retried\":18"), "{out}");
    agent.wait_for("the retried events", |agent| agent.account().delivered == 20);
    let retried: BTreeSet<_> = all.values().take(20).map(number_in).collect();
    assert_eq!(arrived(&sink), retried);
    let now = agent.account();
    assert_eq!(
        (now.accepted, now.expired, now.pending, held(&agent)),
        (account.accepted + 20, account.expired, 0, account.expired - 20)
    );
    agent.kill();

    // On a stopped one's directory.
    let out = good(&setup, &["retry", "--limit", "30", "--all", "--json"]);
    assert!(out.contains("\"retried\":30"), "{out}");
    let left = letters(&setup);
    assert_eq!(left.len() as u64, account.expired - 50);
    let out = good(&setup, &["purge", "--all", "--yes"]);
    let (thousands, rest) = (left.len() / 1000, left.len() % 1000);
    assert_eq!(out, format!("purged {thousands},{rest:03} dead letters of stream events\n"));
    assert!(letters(&setup).is_empty() && good(&setup, &["ls"]).contains("no dead letters"));
    let mut agent = Agent::start(&setup);
    agent.wait_for("the events retried on disk", |agent| agent.account().delivered == 50);
    let now = agent.account();
    assert_eq!((now.accepted, now.expired, now.pending, held(&agent)), (account.accepted + 50, account.expired, 0, 0));
    assert_eq!(arrived(&sink), all.values().take(50).map(number_in).collect());
    assert!(agent.terminate().success());
    let log = setup.log_text();
    assert!(!log.contains("user-2-7"), "no key and no data of an event is in the log");
}

#[test]
fn letters_appear_survive_kills_and_are_listed_retried_and_purged_with_single_events() {
    through_its_life("off");
}

#[test]
fn letters_appear_survive_kills_and_are_listed_retried_and_purged_with_aggregates() {
    through_its_life("kpl");
}

#[test]
fn a_retry_says_of_which_letters_the_order_of_keys_is_lost_of_which_it_holds_and_of_which_nobody_knows() {
    let dir = temporary();
    let sink = real::sink(1, 2);
    let mut setup = Setup::new(BINARY, dir.path(), sink.endpoint(), "off");
    setup.spool = "segment_bytes = \"8MiB\"\ncheckpoint_interval = \"20ms\"".to_owned();
    setup.stream = "linger = \"5ms\"\nttl = \"2s\"".to_owned();
    sink.set_all_dead(true);
    let client = |keys: &[&str]| Client::new(&setup.socket(), keys.iter().map(|key| (*key).to_owned()).collect(), 10, 50, 1);
    let mut agent = Agent::start(&setup);
    client(&["gone-on", "ended"]).run(&Pace::of(20));
    agent.wait_for("letters", |agent| agent.account().expired == 20);

    // The shard waits a while after so many refusals, and what comes until then dies too.
    sink.set_all_dead(false);
    let mut probe = client(&["probe"]);
    for made in 1.. {
        probe.run(&Pace::of(made));
        agent.wait_for("its end", |agent| agent.account().pending == 0);
        if agent.account().delivered > 0 {
            break;
        }
    }
    // One of the keys goes on, and that is delivered.
    client(&["gone-on"]).run(&Pace::of(3));
    agent.wait_drained();
    let of_key = |key: &str| -> BTreeSet<u64> {
        letters(&setup).iter().filter(|(_, letter)| letter["key"] == key).map(|(n, _)| *n).collect()
    };
    let (ended, gone_on) = (of_key("ended"), of_key("gone-on"));
    assert_eq!(ended.len() + gone_on.len(), 20);
    // Half of one key's first: what came back of a key does not stand in the way of its next.
    let half: Vec<String> = ended.iter().take(ended.len() / 2).map(u64::to_string).collect();
    let half: Vec<&str> = half.iter().map(String::as_str).collect();
    let out = good(&setup, &[&["retry", "--json"], &half[..]].concat());
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told["order"], serde_json::json!({"kept": half.len(), "behind": 0, "unknown": 0, "behind_numbers": []}));
    agent.wait_drained();
    let out = good(&setup, &["retry", "--key", "ended"]);
    let left = ended.len() - half.len();
    assert!(
        out.contains(&format!("\n  {left} dead letters in the order of their keys")) && !out.contains("cannot be kept"),
        "{out}"
    );

    let first = gone_on.first().expect("some").to_string();
    let out = good(&setup, &["retry", &first]);
    let lost = format!(
        "the order of their keys cannot be kept for 1 dead letter: later events of these keys are delivered, or wait before them: {first}\n"
    );
    assert!(out.contains(&lost), "{out}");
    agent.wait_drained();

    // What came after is settled, and its files go.
    let mut filler = Client::new(&setup.socket(), (0..50).map(|n| format!("filler-{n}")).collect(), 60_000, 50, 1);
    filler.run(&Pace::of(300));
    agent.wait_drained();
    agent.wait_for("files to go", |agent| {
        agent.status().expect("a status")["streams"][0]["spool"]["bytes"].as_u64() < Some(9 << 20)
    });
    assert!(agent.terminate().success());
    let out = good(&setup, &["retry", "--key", "gone-on", "--json"]);
    let told: Value = serde_json::from_str(&out).expect("JSON");
    let unknown = gone_on.len() - 1;
    assert_eq!(
        (&told["retried"], &told["order"]["unknown"], &told["order"]["kept"]),
        (&unknown.into(), &unknown.into(), &0.into()),
        "{told}"
    );
    let mut agent = Agent::start(&setup);
    agent.wait_drained();
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (key, number) in real::arrived(&sink) {
        seen.entry(key).or_default().push(number);
    }
    assert!(seen["ended"].is_sorted() && seen["ended"].len() == ended.len(), "{seen:?}");
    assert!(agent.terminate().success());
}

#[test]
fn letters_of_a_running_agent_are_found_where_it_keeps_them() {
    let dir = temporary();
    let (sink, setup) = start(dir.path(), "off", "200ms");
    sink.set_all_dead(true);
    let mut agent = Agent::start(&setup);
    Client::new(&setup.socket(), vec!["user".to_owned()], 100, 200, 1).run(&Pace::of(10));
    agent.wait_for("letters", |agent| agent.account().expired == 10);
    let elsewhere = |args: &[&str]| {
        let mut command = real::command(&["dead"]);
        command.args(args).arg("--config").arg(setup.file()).env("FOREBAY_SPOOL__DIR", dir.path().join("nothing-here"));
        real::outcome(command.output().expect("the binary runs"))
    };
    let (code, out, err) = elsewhere(&["ls", "--json"]);
    assert_eq!((code, out.lines().count()), (0, 10), "{err}");
    let (code, _, err) = elsewhere(&["purge", "--all", "--yes"]);
    assert_eq!((code, held(&agent)), (0, 0), "{err}");
    assert!(agent.terminate().success());
    let (code, _, err) = elsewhere(&["ls"]);
    assert!(code == 1 && err.contains("nothing-here") && err.contains("--spool-dir"), "{code} {err}");
}

#[test]
fn what_is_younger_than_ttl_is_delivered() {
    let dir = temporary();
    let (sink, setup) = start(dir.path(), "off", "1h");
    let mut agent = Agent::start(&setup);
    let mut client = Client::new(&setup.socket(), vec!["a".into(), "b".into()], 10, 50, 1);
    client.run(&Pace::of(200));
    let account = agent.wait_drained();
    assert_eq!((account.delivered, account.expired), (200, 0));
    assert_eq!(arrived(&sink).len(), 200);
    assert!(agent.terminate().success());
    assert!(good(&setup, &["ls"]).contains("no dead letters"));
    let (code, _, err) = dead(&setup, &["ls", "--stream", "other"]);
    assert_eq!((code, err.contains("no spool of stream other")), (1, true), "{err}");
}

#[test]
fn a_full_spool_drops_its_oldest_events_for_new_ones_and_counts_them() {
    let dir = temporary();
    let (sink, mut setup) = start(dir.path(), "kpl", "0s");
    setup.spool += "\nmax_bytes = \"256MiB\"\non_full = \"drop_oldest\"\nreserve = \"0B\"";
    sink.set_all_dead(true);
    let agent = Agent::start(&setup);
    let keys = (0..50).map(|n| format!("user-{n}")).collect();
    // A third more than the spool holds, every event of it acknowledged.
    let mut client = Client::new(&setup.socket(), keys, 60_000, 200, 1);
    client.run(&Pace::of(6_000));
    let account = agent.account();
    assert!(account.accepted == 6_000 && account.dropped > 500 && account.delivered == 0, "{account:?}");
    assert!(account.pending > 3_000, "no more is dropped than was needed: {account:?}");
    agent.kill();
    let mut agent = Agent::start(&setup);
    // A checkpoint may have been on its way: what it did not pass is pending again.
    assert!(agent.account().dropped <= account.dropped);
    let log = setup.log_text();
    assert_eq!(log.matches("its oldest undelivered events are given up").count(), 1, "one loud line an episode");
    sink.set_all_dead(false);
    agent.wait_for("some delivery", |agent| agent.account().delivered > 100);
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for arrival in sink.all_events() {
        let number = number_of(&arrival.event.data).expect("an event of ours");
        let before = last.insert(arrival.event.key, number);
        assert!(before.is_none_or(|before| before < number), "KEY-ORDER");
    }
    agent.kill();
}
