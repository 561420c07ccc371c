//! A client of the socket that owns some keys, numbers their events, and sends again what was not acknowledged.
//!
//! Place: the tests of the real binary. Owner: one thread runs one client; nobody else sends events of its keys. *The
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

/// What tells clients how far to go, and how far they all are.
#[derive(Debug, Default)]
pub struct Pace {
    /// Events that each client may make.
    pub allowed: AtomicU64,
    /// End once all that is allowed is made and acknowledged, rather than wait for more.
    pub finish: AtomicBool,
    /// Acknowledged to all clients.
    pub acked: AtomicU64,
}

impl Pace {
    /// This many events and no more.
    pub fn of(events: u64) -> Self {
        Self { allowed: AtomicU64::new(events), finish: AtomicBool::new(true), acked: AtomicU64::new(0) }
    }

    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    /// No event more.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::SeqCst);
        self.allowed.store(0, Ordering::SeqCst);
    }
}

/// A client and what it remembers.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    /// Where there are several.
    source: Option<String>,
    /// Key and how many events of it were made.
    pub keys: Vec<(String, u64)>,
    padding: String,
    /// Most events sent and not acknowledged.
    window: usize,
    draws: u64,
    /// Events made of all keys.
    made: u64,
    /// Not acknowledged, in order.
    open: VecDeque<Event>,
    /// Connections made.
    pub connections: u64,
}

impl Client {
    pub fn new(socket: &Path, keys: Vec<String>, padding_bytes: usize, window: usize, seed: u64) -> Self {
        let keys = keys.into_iter().map(|key| (key, 0)).collect();
        let padding = "x".repeat(padding_bytes);
        Self {
            socket: socket.into(),
            source: None,
            keys,
            padding,
            window,
            draws: mix64(seed),
            made: 0,
            open: VecDeque::new(),
            connections: 0,
        }
    }

    /// Names the source in its hello.
    #[allow(dead_code, reason = "most agents have one source")]
    pub fn for_source(mut self, name: &str) -> Self {
        self.source = Some(name.to_owned());
        self
    }

    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.draws)
    }

    fn may_make(&self, pace: &Pace) -> bool {
        self.made < pace.allowed.load(Ordering::SeqCst)
    }

    /// Nothing is open and nothing more will come.
    fn done(&self, pace: &Pace) -> bool {
        self.open.is_empty() && pace.finish.load(Ordering::SeqCst) && !self.may_make(pace)
    }

    /// Sends what the pace allows and takes acknowledgements until it is told to finish and all is acknowledged. Lost
    /// connections are made again.
    pub fn run(&mut self, pace: &Pace) {
        while !self.done(pace) {
            // Any failure is the agent's end, and what was not acknowledged is sent again to the next one.
            if let Ok(stream) = self.connect() {
                let end = self.talk(stream, pace);
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
        let source = self.source.as_ref().map(|name| format!(" source={name}")).unwrap_or_default();
        stream.write_all(format!("forebay/1 ack=on{source}\n").as_bytes())?;
        self.connections += 1;
        Ok(stream)
    }

    fn talk(&mut self, mut stream: UnixStream, pace: &Pace) -> io::Result<()> {
        let mut lines = Lines::default();
        let hello = lines.next(&mut stream)?;
        assert!(hello.starts_with("ok"), "the agent answered the hello with {hello:?}");
        // Of `open`, this many are sent on this connection; and this many of the connection were acknowledged before.
        let (mut sent, mut settled) = (0, 0u64);
        let mut bytes = Vec::new();
        loop {
            let batch = 1 + (self.draw() % 64) as usize;
            while self.open.len() < self.window.min(sent + batch) && self.may_make(pace) {
                let at = (self.draw() % self.keys.len() as u64) as usize;
                self.keys[at].1 += 1;
                self.made += 1;
                self.open.push_back((at, self.keys[at].1));
            }
            bytes.clear();
            for (at, number) in self.open.iter().skip(sent).take(self.window) {
                let (key, padding) = (&self.keys[*at].0, &self.padding);
                writeln!(bytes, r#"{{"userId":"{key}","n":{number},"pad":"{padding}"}}"#)?;
            }
            sent = self.open.len();
            stream.write_all(&bytes)?;
            if self.done(pace) {
                return Ok(());
            }
            if self.open.is_empty() {
                // Until more is allowed. That the agent is gone shows at the next write.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            if self.open.len() < self.window && self.may_make(pace) && !self.draw().is_multiple_of(8) {
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
            pace.acked.fetch_add(newly as u64, Ordering::SeqCst);
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
