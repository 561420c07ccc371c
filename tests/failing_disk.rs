//! The real agent on a disk that fails: syncs and writes of the chosen files fail while a control file says so.
//!
//! Place: the real binary under `shim/failing_disk.c`, which gcc compiles here; clients of the socket that remember what
//! was acknowledged; a Kinesis over loopback HTTP that keeps every record. Without gcc these tests fail, since a skipped
//! one looks like one that passed; `FOREBAY_WITHOUT_GCC=1` skips them. The simulator (`sim.rs`) fails syncs too, and also
//! drops the pages, which a preloaded library cannot.
//!
//! Claims. *RECEIPT-AFTER-SYNC*: while syncs fail no receipt leaves, `/readyz` is 503 and says why, what was durable goes
//! on being delivered, and the agent neither ends nor spins. When the disk is well again, receipts come by themselves,
//! from a new file. *NOTHING-LOST*: each acknowledged event arrives, also when the agent is killed in the middle. A
//! ledger that cannot be written costs repeats and no more.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/agent.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod agent;
#[path = "common/client.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod client;
#[path = "common/sink.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod sink;

#[path = "common/manager.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod manager;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use agent::{Account, Agent, Setup};
use client::{Client, Pace};
use manager::Manager;
use sink::{Mode, Options, Sink, number_of};

const CLIENTS: usize = 3;
const WINDOW: usize = 200;
const SHARDS: usize = 8;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// The compiled shim, or `None` where there is no gcc and the user knows.
fn shim() -> Option<&'static Path> {
    static SHIM: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let made = SHIM.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let library = dir.path().join("failing_disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/failing_disk.c");
        let gcc = Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").output();
        match gcc {
            Ok(output) => {
                assert!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
                Some((dir, library))
            }
            Err(error) => {
                let known = std::env::var("FOREBAY_WITHOUT_GCC").is_ok_and(|value| value == "1");
                assert!(
                    known,
                    "no gcc ({error}), so no failing disk. Install gcc, or set FOREBAY_WITHOUT_GCC=1 to do without these tests: then \
                     only the simulator shows what a failed sync does"
                );
                None
            }
        }
    });
    made.as_ref().map(|(_, library)| library.as_path())
}

/// An agent's surroundings, with a disk that can be told to fail.
struct World {
    _dir: tempfile::TempDir,
    sink: Sink,
    setup: Setup,
    control: PathBuf,
}

impl World {
    fn new() -> Option<Self> {
        let shim = shim()?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = Options { shards: SHARDS, delay: Duration::from_millis(1), mode: Mode::Keep };
        let sink = Sink::start(options).expect("a loopback port");
        let mut setup = Setup::new(env!("CARGO_BIN_EXE_forebay"), dir.path(), sink.endpoint(), "kpl");
        let control = dir.path().join("fail");
        setup.spool = "checkpoint_interval = \"20ms\"\nsegment_bytes = \"8MiB\"".to_owned();
        setup.stream = "linger = \"2ms\"".to_owned();
        setup.env.push(("LD_PRELOAD", shim.display().to_string()));
        setup.env.push(("FAILING_DISK", control.display().to_string()));
        Some(Self { _dir: dir, sink, setup, control })
    }

    /// From now on these calls fail on files whose path holds `part`.
    fn fail(&self, calls: &str, part: &str, errno: i32) {
        let new = self.control.with_extension("new");
        fs::write(&new, format!("{calls} {part} {errno}\n")).expect("the control file");
        fs::rename(&new, &self.control).expect("the control file");
    }

    fn heal(&self) {
        fs::remove_file(&self.control).expect("the control file");
    }

    /// Stops deliveries and waits for what is durable and not delivered when a fault begins.
    fn backlog(&self, agent: &mut Agent, pace: &Pace) {
        self.hold_deliveries(true);
        let target = pace.acked() + 1000;
        agent.wait_for("a backlog", |agent| pace.acked() > target && agent.account().pending > 500);
    }

    fn hold_deliveries(&self, hold: bool) {
        (0..SHARDS).for_each(|shard| self.sink.set_dead(shard, hold));
    }

    fn clients(&self) -> Vec<Client> {
        let keys = |client| (0..10).map(|key| format!("client{client}-key{key}")).collect();
        (0..CLIENTS).map(|client| Client::new(&self.setup.socket(), keys(client), 150, WINDOW, client as u64)).collect()
    }

    fn segments(&self) -> Vec<String> {
        let dir = self.setup.dir.join("spool/events/segments");
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("a spool")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits until all is delivered, ends the agent, and checks what arrived.
    fn end(&self, mut agent: Agent, clients: &[Client]) -> End {
        let account = agent.wait_drained();
        assert_eq!((account.dead, account.expired, account.dropped), (0, 0, 0));
        let counted = agent.duplicated();
        assert!(agent.terminate().success(), "{}", self.setup.log_tail());
        let repeated = self.check(clients);
        let made = clients.iter().flat_map(|client| &client.keys).map(|(_, made)| made).sum();
        End { account, made, repeated, counted }
    }

    /// Each key's events arrived, the first time each in order, and nothing else. Tells how many came again.
    fn check(&self, clients: &[Client]) -> u64 {
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        let mut repeated = 0;
        for shard in 0..SHARDS {
            for arrival in self.sink.events(shard) {
                let number = number_of(&arrival.event.data).expect("an event that was never sent arrived");
                let expected = next.entry(arrival.event.key.clone()).or_insert(1);
                assert!(number <= *expected, "KEY-ORDER: {} has {number} before {expected}", arrival.event.key);
                if number < *expected {
                    repeated += 1;
                } else {
                    *expected += 1;
                }
            }
        }
        for (key, made) in clients.iter().flat_map(|client| &client.keys) {
            assert_eq!(next.get(key).copied().unwrap_or(1), made + 1, "NOTHING-LOST: {key}: {made} were acknowledged");
        }
        repeated
    }
}

/// How it ended: what the clients made, what arrived again, what the agent counts of that.
struct End {
    account: Account,
    made: u64,
    repeated: u64,
    counted: u64,
}

/// Clients at work on threads, until the body ends; then all they sent is acknowledged.
fn under_load<T>(clients: &mut [Client], pace: &Pace, body: impl FnOnce() -> T) -> T {
    pace.allowed.store(u64::MAX, Ordering::SeqCst);
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| client.run(pace));
        }
        let result = body();
        pace.finish();
        result
    })
}

/// What arrived again was accepted again, because a client had no receipt for it, or is counted by the agent.
fn explained(repeated: u64, accepted_again: u64, counted: u64) {
    assert!(
        repeated <= accepted_again + counted,
        "DUPLICATES-EXPLAINED: {repeated} arrived again; {accepted_again} were accepted again, {counted} counted"
    );
}

/// `/readyz` is 503, and its reason holds these words.
fn wait_red(agent: &mut Agent, words: &str) {
    agent.wait_for("/readyz to turn red with its reason", |agent| {
        agent.get("/readyz").is_some_and(|(code, body)| code == 503 && body.contains(words))
    });
}

/// What the agent burns in a second or more of this.
fn cpu_share(agent: &Agent) -> f64 {
    let (begun, before) = (Instant::now(), agent.cpu());
    let window = Duration::from_millis(1500);
    while begun.elapsed() < window {
        thread::sleep(window.saturating_sub(begun.elapsed()));
    }
    (agent.cpu() - before).as_secs_f64() / begun.elapsed().as_secs_f64()
}

/// Under load with receipts, these calls begin to fail on the files of events. Until the fault ends no receipt leaves and
/// delivery goes on.
fn commits_fail(calls: &str, part: &str, errno: i32, words: &str, kill: bool) {
    let Some(world) = World::new() else { return };
    let mut agent = Agent::start(&world.setup);
    let mut clients = world.clients();
    let pace = Pace::default();
    let agent = under_load(&mut clients, &pace, || {
        agent.wait_for("receipts", |_| pace.acked() > 2000);
        world.backlog(&mut agent, &pace);
        world.fail(calls, part, errno);
        wait_red(&mut agent, words);
        let durable = agent.account();
        let newest = world.segments().pop();

        world.hold_deliveries(false);
        let delivered = agent.wait_drained();
        assert_eq!(delivered.accepted, durable.accepted, "nothing becomes durable while the disk fails");
        let share = cpu_share(&agent);
        println!("{calls} {part} {errno}: {share:.3} of a core while the disk fails");
        assert!(share < 0.5, "the agent spins: {share:.2} of a core with nothing to do");
        assert_eq!(agent.account(), delivered, "nothing becomes durable while the disk fails");
        let acked = pace.acked();
        assert!(acked <= durable.accepted, "RECEIPT-AFTER-SYNC: {acked} receipts for {} durable events", durable.accepted);
        wait_red(&mut agent, words);
        assert!(world.segments().len() <= 4, "failed files pile up: {:?}", world.segments());
        assert!(world.setup.log_text().contains("the spool cannot be written"), "{}", world.setup.log_tail());

        if kill {
            agent.kill();
            world.heal();
            agent = Agent::start(&world.setup);
        } else {
            world.heal();
        }
        agent.wait_for("receipts again", |_| pace.acked() > acked + 1000);
        agent.wait_for("/readyz to be green", |agent| agent.get("/readyz").is_some_and(|(code, _)| code == 200));
        assert!(world.segments().pop() > newest, "what was written after the fault is in a new file");
        agent
    });
    let End { account, made, repeated, counted } = world.end(agent, &clients);
    println!("{calls} {part} {errno}, killed: {kill}: {made} events, {repeated} repeated, {counted} counted");
    if kill {
        explained(repeated, account.accepted - made, counted);
    } else {
        assert_eq!((repeated, account.accepted), (0, made), "DUPLICATES-EXPLAINED");
    }
}

const UNABLE: &str = "cannot make events durable";

#[test]
fn while_fdatasync_fails_no_receipt_leaves_delivery_goes_on_and_receipts_resume_in_a_new_file() {
    commits_fail("fdatasync", "/segments/", EIO, UNABLE, false);
}

#[test]
fn a_kill_while_fdatasync_fails_loses_nothing() {
    commits_fail("fdatasync", "/segments/", EIO, UNABLE, true);
}

#[test]
fn while_the_sync_of_the_directory_fails_nothing_in_a_new_file_is_receipted() {
    // Both: the first failure latches the file in use, and the new one needs its directory.
    commits_fail("fdatasync,fsync", "/segments", EIO, UNABLE, false);
}

#[test]
fn while_writes_find_no_space_no_receipt_leaves_and_what_is_there_is_delivered() {
    commits_fail("write", "/segments/", ENOSPC, "full", false);
}

#[test]
fn a_kill_while_writes_find_no_space_loses_nothing() {
    commits_fail("write", "/segments/", ENOSPC, "full", true);
}

/// An agent is killed with a backlog and started again while these calls fail: it starts, delivers what was durable, takes
/// nothing, and takes events again by itself once the disk is well.
fn started_while_failing(calls: &str, part: &str) {
    let Some(world) = World::new() else { return };
    let mut agent = Agent::start(&world.setup);
    let mut clients = world.clients();
    let pace = Pace::default();
    let agent = under_load(&mut clients, &pace, || {
        agent.wait_for("receipts", |_| pace.acked() > 2000);
        world.backlog(&mut agent, &pace);
        let pending = agent.account().pending;
        agent.kill();
        world.fail(calls, part, EIO);
        let segments = world.segments();
        let acked = pace.acked();
        world.hold_deliveries(false);

        let mut agent = Agent::spawn(&world.setup);
        agent.wait_for("the agent to be up", |agent| agent.get("/readyz").is_some());
        wait_red(&mut agent, UNABLE);
        // All but the last group, which may have been on its way when the agent was killed: a group is what some clients have
        // under way.
        let in_doubt = (CLIENTS * WINDOW) as u64;
        agent.wait_for("what was durable to be delivered", |agent| {
            let account = agent.account();
            account.pending == 0 && account.delivered + in_doubt >= acked
        });
        assert!(pending > in_doubt, "a backlog of {pending} shows nothing");
        let share = cpu_share(&agent);
        assert!(share < 0.5, "the agent spins: {share:.2} of a core with nothing to do");
        assert_eq!(pace.acked(), acked, "RECEIPT-AFTER-SYNC: a receipt while nothing can be synced");
        assert!(world.setup.log_text().contains("what was found could not be synced"), "{}", world.setup.log_tail());
        wait_red(&mut agent, UNABLE);
        let left: Vec<String> = world.segments().into_iter().filter(|name| !segments.contains(name)).collect();
        assert!(left.is_empty(), "failed files pile up: {left:?}");

        world.heal();
        agent.wait_for("receipts again", |_| pace.acked() > acked + 1000);
        agent.wait_for("/readyz to be green", |agent| agent.get("/readyz").is_some_and(|(code, _)| code == 200));
        println!("{calls} {part}: started with {pending} pending; {share:.3} of a core while the disk fails");
        agent
    });
    let End { account, made, repeated, counted } = world.end(agent, &clients);
    explained(repeated, account.accepted - made, counted);
    let mut agent = Agent::start(&world.setup);
    assert_eq!(agent.wait_drained().dead, 0, "{}", world.setup.log_tail());
    assert!(agent.terminate().success());
}

#[test]
fn an_agent_that_is_started_while_fdatasync_fails_delivers_what_is_durable_and_takes_events_when_the_disk_is_well() {
    started_while_failing("fdatasync", "/segments/");
}

#[test]
fn an_agent_that_is_started_while_the_directory_cannot_be_synced_does_the_same() {
    started_while_failing("fsync", "/segments");
}

#[test]
fn what_an_agent_that_is_started_while_fdatasync_fails_sends_again_is_counted_to_the_last_event() {
    let Some(mut world) = World::new() else { return };
    world.setup.spool = "checkpoint_interval = \"60s\"".to_owned();
    let mut agent = Agent::start(&world.setup);
    let mut clients = world.clients();
    let pace = Pace::of(500);
    clients.iter_mut().for_each(|client| client.run(&pace));
    let delivered = agent.wait_drained();
    // No mark of it is saved, and of the last group, which is held back below, it is not known that it was durable.
    agent.kill();
    world.fail("fdatasync", "/segments/", EIO);
    let mut agent = Agent::spawn(&world.setup);
    agent.wait_for("the agent to be up", |agent| agent.get("/readyz").is_some());
    wait_red(&mut agent, UNABLE);
    world.heal();
    agent.wait_for("/readyz to be green", |agent| agent.get("/readyz").is_some_and(|(code, _)| code == 200));
    assert_eq!(agent.wait_drained(), delivered);
    let counted = agent.duplicated();
    assert!(agent.terminate().success(), "{}", world.setup.log_tail());
    let repeated = world.check(&clients);
    assert_eq!((repeated, counted), (delivered.accepted, delivered.accepted), "DUPLICATES-EXPLAINED");
}

/// The marks cannot be saved; all else goes on. The end comes by SIGKILL in the fault, or after it.
fn ledger_fails(kill: bool) {
    let Some(world) = World::new() else { return };
    let mut agent = Agent::start(&world.setup);
    let mut clients = world.clients();
    let pace = Pace::default();
    let mut agent = under_load(&mut clients, &pace, || {
        agent.wait_for("receipts", |_| pace.acked() > 1000);
        world.fail("fdatasync,fsync,write,change", "/ledger/", EIO);
        agent.wait_for("the failure to be told", |_| world.setup.log_text().contains("the marks cannot be saved"));
        let (target, delivered) = (pace.acked() + 2000, agent.account().delivered + 2000);
        agent.wait_for("receipts and deliveries all the same", |agent| {
            pace.acked() > target && agent.account().delivered > delivered
        });
        assert_eq!(agent.get("/readyz").map(|(code, _)| code), Some(200), "a ledger is not what readiness is about");
        let told = world.setup.log_text().matches("the marks cannot be saved").count();
        assert!(told < 5, "it is told {told} times");
        if kill {
            agent.kill();
            world.heal();
            agent = Agent::start(&world.setup);
        } else {
            world.heal();
            agent.wait_for("the marks to be saved again", |_| world.setup.log_text().contains("the marks can be saved again"));
        }
        agent
    });
    let Account { accepted, dead, .. } = agent.wait_drained();
    assert_eq!(dead, 0);
    let counted = agent.duplicated();
    assert!(agent.terminate().success(), "{}", world.setup.log_tail());
    let repeated = world.check(&clients);
    let made: u64 = clients.iter().flat_map(|client| &client.keys).map(|(_, made)| made).sum();
    println!("ledger, killed: {kill}: {made} events, {repeated} repeated");
    if kill {
        explained(repeated, accepted - made, counted);
    } else {
        assert_eq!(repeated, 0, "DUPLICATES-EXPLAINED: a store that fails is no reason to send again");
    }
    // And the marks are kept: the next start sends nothing.
    let arrived = world.sink.stats().records;
    assert!(Agent::start(&world.setup).terminate().success());
    assert_eq!(world.sink.stats().records, arrived, "the next start sent something again");
}

#[test]
fn marks_that_cannot_be_saved_are_told_and_hold_up_neither_receipts_nor_delivery() {
    ledger_fails(false);
}

#[test]
fn a_kill_while_marks_cannot_be_saved_costs_repeats_and_no_event() {
    ledger_fails(true);
}

/// Ends by itself with this code, and its words hold these.
fn refuses(world: &World, words: &[&str]) {
    let before = world.setup.log_text().len();
    let status = Agent::spawn(&world.setup).wait_end();
    let said = world.setup.log_text().split_off(before);
    assert_eq!(status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
fn a_spool_on_a_read_only_disk_is_told_at_the_start_and_nothing_is_accepted() {
    let Some(world) = World::new() else { return };
    let spool = world.setup.dir.join("spool").display().to_string();
    world.fail("change,write", "/spool", EROFS);
    // Where there is none yet, and where there is one.
    refuses(&world, &[&spool, "spool.dir", "Read-only file system"]);
    world.heal();
    let mut agent = Agent::start(&world.setup);
    let mut clients = world.clients();
    let pace = Pace::default();
    under_load(&mut clients, &pace, || agent.wait_for("receipts", |_| pace.acked() > 500));
    agent.kill();
    world.fail("change,write", "/spool", EROFS);
    refuses(&world, &[&spool, "spool.dir", "Read-only file system"]);
    world.heal();
    let mut agent = Agent::start(&world.setup);
    agent.wait_drained();
    assert!(agent.terminate().success());
    world.check(&clients);
}

/// A write or sync that never comes back is no error that could be answered: only a supervisor can end it.
#[test]
fn while_a_sync_hangs_the_watchdog_is_not_fed_and_the_log_names_the_thread_and_after_it_it_is() {
    let Some(mut world) = World::new() else { return };
    let manager = Manager::listen(world.setup.dir.as_path());
    world.setup.env.extend(manager.environment(Duration::from_millis(600)));
    let mut agent = Agent::start(&world.setup);
    manager.wait_for("WATCHDOG=1");
    world.fail("fdatasync", "segments", -1);
    let pace = Pace::of(1);
    thread::scope(|scope| {
        scope.spawn(|| Client::new(&world.setup.socket(), vec!["k".into()], 10, 1, 7).run(&pace));
        agent.wait_for("the thread that hangs to be named", |_| {
            world
                .setup
                .log_text()
                .lines()
                .any(|line| line.contains("no sign of life") && line.contains("commit thread of events"))
        });
        // Told once: it may have been heard already.
        manager.wait_for("STATUS=no sign of life of: commit thread of events");
        assert!(!manager.heard("WATCHDOG=1"), "a hanging agent fed the watchdog");
        assert_eq!(pace.acked(), 0, "RECEIPT-AFTER-SYNC");
        world.heal();
        manager.wait_for("WATCHDOG=1");
    });
    assert_eq!(pace.acked(), 1);
}
