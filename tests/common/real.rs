//! What the tests of the real binary share: the agent's process, clients, a Kinesis over loopback HTTP, small set-up.
//!
//! Place: a test file says `mod real;` with this path, and takes what it needs. Failure: a panic, as everywhere in tests.

#[path = "agent.rs"]
pub mod agent;
#[path = "client.rs"]
pub mod client;
#[path = "sink.rs"]
pub mod sink;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use forebay::host::mix64;

use self::client::Client;
use self::sink::{Mode, Options, Sink, number_of};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_forebay");

/// A Kinesis that keeps all it is given, and takes so long for an answer.
pub fn sink(shards: usize, delay_ms: u64) -> Sink {
    Sink::start(Options { shards, delay: Duration::from_millis(delay_ms), mode: Mode::Keep }).expect("a loopback port")
}

pub fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// The seed that the environment gives under this name, or a fresh one; printed, so that it can be given again.
pub fn seed(variable: &str) -> u64 {
    let fresh = || mix64(Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()));
    let given = std::env::var(variable).ok();
    let seed = given.map_or_else(fresh, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")));
    println!("{variable}={seed}");
    seed
}

/// Everything that arrived, shard by shard: key and number.
pub fn arrived(sink: &Sink) -> Vec<(String, u64)> {
    let of = |arrival: sink::Arrived| {
        let number = number_of(&arrival.event.data).expect("an event that was never sent arrived");
        (arrival.event.key, number)
    };
    sink.all_events().map(of).collect()
}

/// What a client has sent: key and number.
pub fn sent(client: &Client) -> BTreeSet<(String, u64)> {
    client.keys.iter().flat_map(|(key, made)| (1..=*made).map(move |n| (key.clone(), n))).collect()
}

/// `forebay ARGS` with nothing of ours in its environment and nobody at its terminal.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, stdout, stderr.
pub fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

/// [`command`], run to its end.
pub fn forebay(args: &[&str]) -> (i32, String, String) {
    outcome(command(args).output().expect("the binary runs"))
}

/// Copies a directory with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}
