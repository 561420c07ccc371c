//! The agent under a service manager: passed sockets, readiness, signs of life, reload, drain.
//!
//! Place: the real binary with a manager's socket and listeners that this test holds, as systemd does; a Kinesis over loopback HTTP.
//! `tests/packaging/run.sh` has the same with systemd itself. A disk that hangs is in `failing_disk.rs`, whose shim it needs.

#![allow(clippy::disallowed_methods, reason = "it watches a real process with real clocks and files")]

#[path = "common/agent.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod agent;
#[path = "common/client.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod client;
#[path = "common/manager.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod manager;
#[path = "common/sink.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the helpers")]
mod sink;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, DEADLINE, Setup};
use client::{Client, Pace};
use manager::Manager;
use sink::{Mode, Options, Sink};

struct World {
    _dir: tempfile::TempDir,
    sink: Sink,
    setup: Setup,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sink = Sink::start(Options { shards: 4, delay: Duration::ZERO, mode: Mode::Keep }).expect("a loopback port");
        let setup = Setup::new(env!("CARGO_BIN_EXE_forebay"), dir.path(), sink.endpoint(), "off");
        Self { _dir: dir, sink, setup }
    }

    fn send(&self, events: u64) {
        Client::new(&self.setup.socket(), vec!["k".into()], 10, 16, 7).run(&Pace::of(events));
    }

    /// Runs a command of the binary on the agent's configuration.
    fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.setup.binary);
        command.args(args).arg("--config").arg(self.setup.file()).env_clear().envs(self.setup.env.iter().cloned());
        command.output().expect("the binary runs")
    }

    fn delivered(&self) -> u64 {
        (0..4).map(|shard| self.sink.kept_count(shard) as u64).sum()
    }
}

/// Sends a signal to an agent that lives.
fn signal(agent: &Agent, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.pid()).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("the agent lives");
}

#[test]
fn the_manager_is_told_ready_once_events_are_taken_then_status_and_signs_of_life_while_idle_and_the_end() {
    let mut world = World::new();
    let manager = Manager::listen(&world.setup.dir);
    world.setup.env.extend(manager.environment(Duration::from_millis(300)));
    let agent = Agent::spawn(&world.setup);
    manager.wait_for("READY=1");
    assert!(UnixStream::connect(world.setup.socket()).is_ok(), "ready, and nobody listens");
    assert_eq!(manager.wait_for("STATUS="), "STATUS=accepting; 0 events in all, 0 pending");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    world.send(5);
    manager.wait_for("STATUS=accepting; 5 events in all, 0 pending");
    assert!(agent.terminate().success());
    manager.wait_for("STOPPING=1");
    manager.wait_for("EXTEND_TIMEOUT_USEC=");
}

#[test]
fn what_holds_delivery_up_stands_in_the_status_for_the_manager() {
    let mut world = World::new();
    world.sink.deny("PutRecords", true);
    world.sink.deny("PutRecord", true);
    let manager = Manager::listen(&world.setup.dir);
    world.setup.env.extend(manager.environment(Duration::from_millis(300)));
    let _agent = Agent::start(&world.setup);
    world.send(1);
    manager.wait_for("STATUS=accepting; 1 events in all, 1 pending; stream events: ");
}

#[test]
fn without_root_certificates_events_are_taken_and_the_status_says_what_to_install() {
    let mut world = World::new();
    world.setup.env.push(("SSL_CERT_FILE", "/nonexistent".into()));
    world.setup.env.push(("SSL_CERT_DIR", "/nonexistent".into()));
    let mut agent = Agent::start(&world.setup);
    world.send(1);
    agent.wait_for("the reason", |agent| agent.status().is_some_and(|status| status.to_string().contains("ca-certificates")));
    assert_eq!(agent.account().pending, 1);
}

#[test]
fn passed_sockets_are_used_and_stay_and_who_waits_there_while_no_agent_runs_is_served_by_the_next() {
    let mut world = World::new();
    let socket = UnixListener::bind(world.setup.socket()).expect("a socket");
    let port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = port.local_addr().expect("an address");
    world.setup.env.push(("FOREBAY_LISTEN__HTTP", address.to_string()));
    world.setup.env.push(("LISTEN_FDNAMES", "forebay:forebay".into()));
    world.setup.passed = vec![Arc::new(socket.into()), Arc::new(port.into())];

    let agent = Agent::start(&world.setup);
    world.send(3);
    assert!(agent.terminate().success());
    assert!(world.setup.socket().exists(), "a passed socket is not the agent's to remove");

    // Nobody accepts now, and nobody is refused.
    let mut plain = UnixStream::connect(world.setup.socket()).expect("the socket takes connections");
    plain.write_all(b"{\"userId\":\"waits\"}\n").expect("the socket has room");
    plain.shutdown(Shutdown::Write).expect("a half-closed socket");
    let posted = std::thread::spawn(move || post(address));
    let mut agent = Agent::start(&world.setup);
    assert!(posted.join().expect("the poster").starts_with("HTTP/1.1 200"), "who waited at the port was not served");
    agent.wait_for("all five events", |_| world.delivered() == 5);
    assert!(agent.terminate().success());
}

fn post(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("the port takes connections");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let request = format!(
        "POST /ingest HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 14\r\n\r\n{{\"userId\":\"h\"}}"
    );
    stream.write_all(request.as_bytes()).expect("the socket has room");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("an answer");
    reply
}

#[test]
fn a_passed_socket_that_the_configuration_does_not_have_stops_the_start_and_is_named() {
    let mut world = World::new();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = port.local_addr().expect("an address");
    world.setup.passed = vec![Arc::new(port.into())];
    world.setup.env.push(("LISTEN_FDNAMES", "forebay-http".into()));
    let ended = Agent::spawn(&world.setup).wait_end();
    assert_eq!(ended.code(), Some(78));
    let log = world.setup.log_text();
    assert!(log.contains(&address.to_string()) && log.contains("\"forebay-http\""), "{log}");
}

#[test]
fn sockets_of_another_process_are_not_taken_for_passed_ones() {
    let mut world = World::new();
    world.setup.env.extend([("LISTEN_FDS", "1".to_owned()), ("LISTEN_PID", "1".to_owned())]);
    let agent = Agent::start(&world.setup);
    world.send(1);
    assert!(agent.terminate().success());
}

#[test]
fn sighup_takes_new_write_keys_at_once_names_what_needs_a_restart_and_refuses_a_wrong_file_as_a_whole() {
    let mut world = World::new();
    world.setup.more = "keys = [\"old-key-0123456789\"]\n".to_owned();
    let manager = Manager::listen(&world.setup.dir);
    world.setup.env.extend(manager.environment(Duration::from_secs(60)));
    let mut agent = Agent::start(&world.setup);
    manager.wait_for("READY=1");
    let answer = |key: &str| {
        let mut stream = UnixStream::connect(world.setup.socket()).expect("the agent listens");
        stream.write_all(format!("forebay/1 key={key}\n").as_bytes()).expect("the socket has room");
        client::Lines::default().next(&mut stream).expect("an answer")
    };
    assert!(answer("old-key-0123456789").starts_with("ok"));

    let text = fs::read_to_string(world.setup.file()).expect("the configuration");
    let write = |text: &str| fs::write(world.setup.file(), text).expect("the configuration");
    let reload = |agent: &Agent| {
        manager.forget();
        signal(agent, rustix::process::Signal::HUP);
        manager.wait_for("RELOADING=1");
        manager.wait_for("MONOTONIC_USEC=");
        manager.wait_for("READY=1");
    };
    let wrong = text.replace("old-key", "new-key").replace("[spool]", "[spool]\nmax_byte = \"1GiB\"");
    write(&wrong);
    reload(&agent);
    assert!(answer("old-key-0123456789").starts_with("ok"), "a wrong file changed something");
    assert!(answer("new-key-0123456789").starts_with("error"), "a wrong file was taken in part");

    write(&text.replace("old-key", "new-key").replace("[spool]", "[spool]\nmax_bytes = \"1GiB\""));
    reload(&agent);
    assert!(answer("new-key-0123456789").starts_with("ok"));
    assert!(answer("old-key-0123456789").starts_with("error"), "a withdrawn key still opens the source");
    agent.wait_for("both to be named", |_| {
        let log = world.setup.log_text();
        ["max_byte", "source app.keys", "spool.max_bytes"].iter().all(|named| log.contains(named))
    });
    assert!(!world.setup.log_text().contains("new-key"), "a key stands in the log");
    assert!(agent.terminate().success());
}

#[test]
fn drain_waits_for_the_delivery_of_what_is_there_and_tells_it() {
    let world = World::new();
    let agent = Agent::start(&world.setup);
    world.send(200);
    let drained = world.command(&["drain"]);
    assert!(drained.status.success(), "{drained:?}");
    assert_eq!(String::from_utf8_lossy(&drained.stdout), "drained: all is delivered\n");
    assert_eq!(world.delivered(), 200);
    assert!(agent.wait_end().success());
    let again = world.command(&["drain"]);
    assert_eq!(again.status.code(), Some(1), "there is no agent any more");
}

#[test]
fn drain_ends_by_its_own_timeout_and_tells_what_stays() {
    let world = World::new();
    world.sink.set_all_dead(true);
    let agent = Agent::start(&world.setup);
    world.send(7);
    let drained = world.command(&["drain", "--timeout", "100ms", "--json"]);
    assert_eq!(drained.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_slice(&drained.stdout).expect("JSON");
    assert_eq!(told["pending"], 7);
    assert!(agent.wait_end().success());
}

#[test]
fn status_quiet_prints_nothing_and_its_code_tells_whether_the_agent_is_ready() {
    let world = World::new();
    world.sink.set_all_dead(true);
    let agent = Agent::start(&world.setup);
    world.send(1);
    let ready = world.command(&["status", "--quiet"]);
    assert_eq!((ready.status.code(), ready.stdout.len(), ready.stderr.len()), (Some(0), 0, 0), "Kinesis being away is no matter");
    agent.kill();
    let gone = world.command(&["status", "--quiet"]);
    assert_eq!((gone.status.code(), gone.stdout.len(), gone.stderr.len()), (Some(1), 0, 0));
}
