//! The other sides of an installed agent, for `tests/packaging/run.sh`: a Kinesis that follows every key's numbers, and applications
//! that send, send again what was not acknowledged, and count every connection that is refused.
//!
//! Place: an example, copied into the container beside the package. `peer sink PORT FILE` serves for ever and writes its totals to
//! FILE; `peer load SOCKET HTTP PREFIX STOP` sends until a file STOP exists, waits until all is acknowledged, and prints its totals. Keys
//! begin with PREFIX, so that each run has sequences of its own. Failure: exit code 1 with the reason; a panic is one too.

#![allow(clippy::disallowed_methods, reason = "no simulator has a part in this")]
#![allow(dead_code, reason = "the tests' modules have more than is needed here")]

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use std::{env, fs};

#[path = "../common/agent.rs"]
mod agent;
#[path = "../common/client.rs"]
mod client;
#[path = "../common/sink.rs"]
mod sink;

use client::{Client, Pace};
use sink::{Mode, Options, Sink, Stats};

/// Clients of the socket, each with keys of its own.
const CLIENTS: u64 = 2;

/// Events that each client makes a second at most: the machine is shared with a debug build.
const EVENTS_PER_SECOND: u64 = 1_000;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["sink", port, file] => serve(port, Path::new(file)),
        ["load", socket, http, prefix, stop] => load(Path::new(socket), http, prefix, Path::new(stop)),
        _ => Err(io::Error::other("usage: peer sink PORT FILE | peer load SOCKET HTTP PREFIX STOP")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: &str, file: &Path) -> io::Result<()> {
    let options = Options { shards: 4, delay: Duration::from_millis(5), mode: Mode::Check };
    let sink = Sink::start_on(TcpListener::bind(format!("127.0.0.1:{port}"))?, options)?;
    let new = file.with_extension("new");
    loop {
        let Stats { events, duplicates, gaps, bad_requests, .. } = sink.stats();
        fs::write(&new, format!("events={events} duplicates={duplicates} gaps={gaps} bad={bad_requests}\n"))?;
        fs::rename(&new, file)?;
        thread::sleep(Duration::from_millis(100));
    }
}

/// Connections tried and refused, by whoever.
#[derive(Default)]
struct Knocks {
    tried: AtomicU64,
    refused: AtomicU64,
    first: Mutex<String>,
}

impl Knocks {
    fn note<T>(&self, what: &str, tried: io::Result<T>) -> Option<T> {
        self.tried.fetch_add(1, Ordering::Relaxed);
        tried
            .inspect_err(|error| {
                if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    *self.first.lock().unwrap_or_else(PoisonError::into_inner) = format!("{what}: {error}");
                }
            })
            .ok()
    }
}

fn load(socket: &Path, http: &str, prefix: &str, stop: &Path) -> io::Result<()> {
    let http: SocketAddr = http.parse().map_err(io::Error::other)?;
    let (pace, knocks, ended) = (Pace::default(), Knocks::default(), AtomicBool::new(false));
    let (mut made, mut connections, mut posted) = (0, 0, 0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|at| {
                let keys = (0..8).map(|key| format!("{prefix}-{at}-{key}")).collect();
                let mut client = Client::new(socket, keys, 120, 256, at);
                let pace = &pace;
                scope.spawn(move || {
                    client.run(pace);
                    client
                })
            })
            .collect();
        let poster = scope.spawn(|| post(http, &format!("{prefix}-http"), &knocks, &ended));
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                drop(knocks.note("the socket", UnixStream::connect(socket)));
                drop(knocks.note("the HTTP port", TcpStream::connect(http)));
                thread::sleep(Duration::from_millis(2));
            }
        });
        while !stop.exists() {
            pace.allowed.fetch_add(EVENTS_PER_SECOND / 50, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
        }
        // What was allowed is made, so that the totals are exact.
        pace.finish.store(true, Ordering::SeqCst);
        for client in clients {
            let client = client.join().expect("a client does not panic");
            made += client.keys.iter().map(|(_, made)| made).sum::<u64>();
            connections += client.connections;
        }
        ended.store(true, Ordering::Relaxed);
        posted = poster.join().expect("the poster does not panic");
    });
    let (tried, refused) = (knocks.tried.into_inner(), knocks.refused.into_inner());
    let first = knocks.first.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("made={} connections={connections} posted={posted} knocks={tried} refused={refused} {first}", made + posted);
    if refused == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!("{refused} connections of {tried} were refused, the first: {first}")))
    }
}

/// One event a request over HTTP, each until it is answered with 200. Tells how many.
fn post(http: SocketAddr, key: &str, knocks: &Knocks, ended: &AtomicBool) -> u64 {
    let mut number = 0;
    while !ended.load(Ordering::Relaxed) {
        number += 1;
        while !post_once(http, key, number, knocks) {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(5));
    }
    number
}

fn post_once(http: SocketAddr, key: &str, number: u64, knocks: &Knocks) -> bool {
    let Some(mut stream) = knocks.note("the HTTP port", TcpStream::connect(http)) else { return false };
    let body = format!(r#"{{"userId":"{key}","n":{number}}}"#);
    let head = format!(
        "POST /ingest HTTP/1.1\r\nHost: {http}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut reply = Vec::new();
    let answered = stream
        .set_read_timeout(Some(agent::DEADLINE))
        .and_then(|()| stream.write_all((head + &body).as_bytes()))
        .and_then(|()| stream.read_to_end(&mut reply));
    answered.is_ok() && reply.starts_with(b"HTTP/1.1 200")
}
