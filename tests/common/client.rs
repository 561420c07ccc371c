//! A client of the socket that owns some keys, numbers their events, and sends again what was not acknowledged.
//!
//! Place: `crash.rs` and `dead_shard.rs`. Owner: one thread runs one client; nobody else sends events of its keys. *The
//! client's side of KEY-ORDER*: after a lost connection it sends what was not acknowledged again, in the order in which it
//! was first sent, before anything new. Acknowledged events are forgotten: if the agent loses one, no one brings it back.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay::host::mix64;

use super::agent::DEADLINE;

/// An event: which of the client's keys, and its number there, from 1.
type Event = (usize, u64);

/// A client and what it remembers.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    /// Key and how many events of it were made.
    pub keys: Vec<(String, u64)>,
    padding: String,
    /// Most events sent and not acknowledged.
    window: usize,
    draws: u64,
    /// Not acknowledged, in order.
    open: VecDeque<Event>,
    /// Connections made.
    pub connections: u64,
}

impl Client {
    pub fn new(socket: &Path, keys: Vec<String>, padding_bytes: usize, window: usize, seed: u64) -> Self {
        let keys = keys.into_iter().map(|key| (key, 0)).collect();
        let padding = "x".repeat(padding_bytes);
        Self { socket: socket.into(), keys, padding, window, draws: mix64(seed), open: VecDeque::new(), connections: 0 }
    }

    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.draws)
    }

    /// Sends new events until `stop`, or until `most` were made, then waits until all are acknowledged. Lost connections
    /// are made again. `acked` counts for everybody.
    pub fn run(&mut self, most: u64, stop: &AtomicBool, acked: &AtomicU64) {
        let mut made = 0;
        while made < most && !stop.load(Ordering::SeqCst) || !self.open.is_empty() {
            // Any failure is the agent's end, and what was not acknowledged is sent again to the next one.
            if let Ok(stream) = self.connect() {
                let end = self.talk(stream, most, &mut made, stop, acked);
                let silent = end.is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
                assert!(!silent, "the agent neither took nor acknowledged anything for {DEADLINE:?}");
            }
        }
    }

    fn connect(&mut self) -> io::Result<UnixStream> {
        let start = Instant::now();
        let mut stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(e) if start.elapsed() > DEADLINE => panic!("nobody listens at {}: {e}", self.socket.display()),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.write_all(b"forebay/1 ack=on\n")?;
        self.connections += 1;
        Ok(stream)
    }

    fn talk(
        &mut self,
        mut stream: UnixStream,
        most: u64,
        made: &mut u64,
        stop: &AtomicBool,
        acked: &AtomicU64,
    ) -> io::Result<()> {
        let mut lines = Lines::default();
        let hello = lines.next(&mut stream)?;
        assert!(hello.starts_with("ok"), "the agent answered the hello with {hello:?}");
        // Of `open`, this many are sent on this connection; and this many of the connection were acknowledged before.
        let (mut sent, mut settled) = (0, 0u64);
        let mut bytes = Vec::new();
        loop {
            let batch = 1 + (self.draw() % 64) as usize;
            while self.open.len() < self.window && self.open.len() < sent + batch && *made < most && !stop.load(Ordering::SeqCst)
            {
                let at = (self.draw() % self.keys.len() as u64) as usize;
                self.keys[at].1 += 1;
                *made += 1;
                self.open.push_back((at, self.keys[at].1));
            }
            bytes.clear();
            for (at, number) in self.open.iter().skip(sent).take(self.window) {
                let (key, padding) = (&self.keys[*at].0, &self.padding);
                writeln!(bytes, r#"{{"userId":"{key}","n":{number},"pad":"{padding}"}}"#)?;
            }
            sent = self.open.len();
            stream.write_all(&bytes)?;
            if self.open.is_empty() {
                return Ok(());
            }
            if self.open.len() < self.window && *made < most && !stop.load(Ordering::SeqCst) && !self.draw().is_multiple_of(8) {
                continue;
            }
            let line = lines.next(&mut stream)?;
            if line == "bye" {
                return Ok(());
            }
            let upto: u64 =
                line.strip_prefix("ack ").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("the agent said {line:?}"));
            let newly = upto.checked_sub(settled).expect("acks only grow") as usize;
            assert!(newly <= sent, "acknowledged {newly} events of {sent} sent");
            self.open.drain(..newly);
            (sent, settled) = (sent - newly, upto);
            acked.fetch_add(newly as u64, Ordering::SeqCst);
        }
    }
}

/// Whole lines of a stream.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// The next line, without its end.
    pub fn next(&mut self, stream: &mut UnixStream) -> io::Result<String> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.bytes) {
                let line = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
                self.bytes.drain(..=end);
                return Ok(line);
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.bytes.extend_from_slice(&piece[..n]),
            }
        }
    }
}
