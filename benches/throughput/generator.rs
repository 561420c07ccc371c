//! The load: a process that writes numbered events to the socket as fast as it is let, or one each millisecond.
//!
//! Place: `throughput.rs` starts it (`--role generator`, `--role latency`) and speaks with it over its standard streams.
//! It must cost little beside the agent: a connection's events are rendered once, and from pass to pass only the digits
//! of their numbers change. Owner: a writing and a reading thread for each connection; the acknowledged count is an atomic.
//! Failure: any refusal or lost connection ends the process with a message, and with it the bench.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::sink::NUMBER_BASE;

/// Users of one connection where nothing else is said; each has one event in every pass over the buffer.
pub const USERS: usize = 1500;

/// Bytes of one write, at least.
const WRITE_BYTES: usize = 128 << 10;

/// One pass: an event line of exactly `bytes` (its newline included) for each user.
struct Pass {
    lines: Vec<u8>,
    /// Where each event's number begins.
    numbers: Vec<usize>,
    line_bytes: usize,
}

impl Pass {
    fn new(connection: usize, users: usize, line_bytes: usize) -> Self {
        let (mut lines, mut numbers) = (Vec::new(), Vec::new());
        for user in 0..users {
            let id = connection * users + user;
            let start = lines.len();
            lines.extend_from_slice(format!(r#"{{"userId":"u{id:06}","n":"#).as_bytes());
            numbers.push(lines.len());
            lines.extend_from_slice(NUMBER_BASE.to_string().as_bytes());
            lines.extend_from_slice(br#","event":"Product Viewed","properties":{"sku":"G-32","price":18.99,"text":""#);
            let fill = line_bytes - 4 - (lines.len() - start);
            lines.extend((0..fill).map(|at| b'a' + ((at * 7 + user) % 26) as u8));
            lines.extend_from_slice(b"\"}}\n");
            assert_eq!(lines.len() - start, line_bytes);
        }
        Self { lines, numbers, line_bytes }
    }

    /// Adds one to every number.
    fn advance(&mut self) {
        let digits = NUMBER_BASE.to_string().len();
        for at in &self.numbers {
            let mut place = at + digits - 1;
            while self.lines[place] == b'9' {
                self.lines[place] = b'0';
                place -= 1;
            }
            self.lines[place] += 1;
        }
    }
}

/// A connection after its hello, and a reader for the agent's lines.
fn connect(socket: &Path) -> io::Result<(UnixStream, io::BufReader<UnixStream>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"forebay/1 ack=on\n")?;
    let mut reader = io::BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.starts_with("ok") { Ok((stream, reader)) } else { Err(io::Error::other(format!("the agent said {line:?}"))) }
}

/// The number of an `ack N` line.
fn acked(line: &str) -> io::Result<u64> {
    let number = line.trim_end().strip_prefix("ack ").and_then(|number| number.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("the agent said {line:?}")))
}

/// Ends the process when a thread of it cannot go on.
fn or_exit<T>(what: &str, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("generator: {what}: {error}");
        std::process::exit(1)
    })
}

/// Writes until told to stop. Commands on standard input: `snap` answers `acked`, `stop` ends the writing, waits until all
/// is acknowledged and answers `acked`. `rate` is events/s over all connections; none: as fast as the agent takes them.
pub fn load(socket: &Path, connections: usize, users: usize, event_bytes: usize, rate: Option<f64>) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut counts = Vec::new();
    let mut threads = Vec::new();
    for connection in 0..connections {
        let (mut stream, mut reader) = connect(socket)?;
        let count = Arc::new(AtomicU64::new(0));
        let sent = Arc::new(AtomicU64::new(u64::MAX));
        counts.push(Arc::clone(&count));
        let (stop, sent_at_end) = (Arc::clone(&stop), Arc::clone(&sent));
        threads.push(thread::spawn(move || {
            let mut pass = Pass::new(connection, users, event_bytes);
            let lines_each = WRITE_BYTES.div_ceil(pass.line_bytes);
            let (mut events, start) = (0u64, Instant::now());
            'passes: loop {
                pass.advance();
                for piece in pass.lines.chunks(lines_each * pass.line_bytes) {
                    if stop.load(Ordering::Relaxed) {
                        break 'passes;
                    }
                    or_exit("writing", stream.write_all(piece));
                    events += (piece.len() / pass.line_bytes) as u64;
                    if let Some(rate) = rate {
                        let due = Duration::from_secs_f64(events as f64 * connections as f64 / rate);
                        thread::sleep(due.saturating_sub(start.elapsed()));
                    }
                }
            }
            sent_at_end.store(events, Ordering::SeqCst);
        }));
        threads.push(thread::spawn(move || {
            let mut line = String::new();
            // Only the last acknowledgement comes after the last event was written, so the loop ends on it; when it
            // came before the count was stored, there is nothing to read any more, and a short timeout looks again.
            or_exit("a timeout", reader.get_ref().set_read_timeout(Some(Duration::from_millis(20))));
            while count.load(Ordering::SeqCst) < sent.load(Ordering::SeqCst) {
                match reader.read_line(&mut line) {
                    Ok(0) => or_exit("reading", Err(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {
                        count.store(or_exit("reading", acked(&line)), Ordering::SeqCst);
                        line.clear();
                    }
                    // What came of a line stays in `line`.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => or_exit("reading", Err(error)),
                }
            }
        }));
    }
    let total = || counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<u64>();
    for command in io::stdin().lock().lines() {
        match command?.as_str() {
            "snap" => println!("{}", total()),
            "stop" => break,
            other => return Err(io::Error::other(format!("no command {other:?}"))),
        }
    }
    stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
    }
    println!("{}", total());
    Ok(())
}

/// One event each millisecond on one connection, for `seconds`; prints each event's time until its receipt, in
/// nanoseconds, one a line.
pub fn latency(socket: &Path, event_bytes: usize, seconds: u64) -> io::Result<()> {
    let events = (seconds * 1000) as usize;
    let (mut stream, mut reader) = connect(socket)?;
    let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let writing = thread::spawn({
        let sent = Arc::clone(&sent);
        // Users that no load uses: their numbers begin anew.
        let mut pass = Pass::new(900, USERS, event_bytes);
        move || {
            let start = Instant::now();
            for event in 0..events {
                let due = start + Duration::from_millis(event as u64);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let user = event % USERS;
                if user == 0 {
                    pass.advance();
                }
                let line = &pass.lines[user * pass.line_bytes..(user + 1) * pass.line_bytes];
                sent.lock().expect("nobody panics with it").push(Instant::now());
                or_exit("writing", stream.write_all(line));
            }
            stream
        }
    });
    let mut nanos = Vec::with_capacity(events);
    let mut line = String::new();
    while nanos.len() < events {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let now = Instant::now();
        let upto = acked(&line)? as usize;
        let sent = sent.lock().expect("nobody panics with it");
        nanos.extend(sent[nanos.len()..upto].iter().map(|at| now.duration_since(*at).as_nanos() as u64));
    }
    drop(writing.join());
    let text: Vec<String> = nanos.iter().map(u64::to_string).collect();
    println!("{}", text.join("\n"));
    // The parent ends it.
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
