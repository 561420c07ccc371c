//! A Kinesis over loopback HTTP that is cheap enough to stand beside the agent it measures.
//!
//! Place: in-process for `crash.rs` and `dead_shard.rs`; as a process of its own ([`serve_until_stdin_closes`]) for
//! `benches/throughput.rs`, so that the agent's CPU is alone in its /proc entry. Owner: a blocking thread for each
//! connection with buffers it keeps; what is shared is counters, and the records in the modes that look at them.
//!
//! Answers ListShards, DescribeStreamSummary and PutRecords (JSON 1.1), each entry with the shard that its explicit hash
//! key or its key's MD5 says, because the agent compares that with its prediction. [`Mode::Count`] looks at nothing
//! else; [`Mode::Keep`] keeps every record in its shard's order; [`Mode::Check`] takes each apart and follows the
//! sequence `"n":` of each partition key without keeping it.
//!
//! Failure: a body that cannot be walked is answered 400 and counted in `bad_requests`, which tests assert to be 0.
//! [`Sink::set_auto`] makes it a stream that ignores keys, [`Sink::set_limited`] one whose shards take no more than Kinesis'
//! do. Absent on purpose: signatures, TLS, CBOR, reading back, reshards (`tests/sim/delivery/service.rs` has those).

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

#[path = "kpl.rs"]
pub mod kpl;
#[path = "sink_wire.rs"]
pub mod wire;

use wire::{KeyCache, PutAnswer, Shards, WireEntry};

/// How closely the sink looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Counts entries.
    Count,
    /// Takes every record apart and checks each key's sequence.
    Check,
    /// Keeps every record.
    Keep,
}

/// What a sink is started with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub shards: usize,
    /// Waited before each answer: the round trip.
    pub delay: Duration,
    pub mode: Mode,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub requests: u64,
    pub bad_requests: u64,
    /// Stored.
    pub records: u64,
    pub throttled: u64,
    /// Of HTTP bodies.
    pub body_bytes: u64,
    /// Taken apart; only in [`Mode::Check`].
    pub events: u64,
    /// Events whose number is not above their key's last; only in [`Mode::Check`].
    pub duplicates: u64,
    /// Events whose number skips some of their key's; only in [`Mode::Check`].
    pub gaps: u64,
}

/// A record as kept.
#[derive(Clone, Debug)]
pub struct Kept {
    pub key: String,
    pub explicit_hash_key: Option<u128>,
    pub data: Vec<u8>,
    /// When its request took effect.
    pub at: Instant,
}

/// An event with the moment at which its record arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub event: kpl::Delivered,
    pub at: Instant,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    bad_requests: AtomicU64,
    records: AtomicU64,
    throttled: AtomicU64,
    body_bytes: AtomicU64,
    events: AtomicU64,
    duplicates: AtomicU64,
    gaps: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    shards: Shards,
    counters: Counters,
    sequence: AtomicU64,
    dead: Vec<AtomicBool>,
    /// Record distribution AUTO: keys decide nothing.
    auto: AtomicBool,
    /// Each shard takes what a Kinesis shard takes, no more.
    limited: AtomicBool,
    rooms: Mutex<Vec<Room>>,
    /// There is no such stream.
    missing: AtomicBool,
    /// Actions that are refused.
    denied: Mutex<HashSet<String>>,
    /// In [`Mode::Keep`], by shard. One lock a request, so that a request takes effect at one moment.
    kept: Mutex<Vec<Vec<Kept>>>,
    /// In [`Mode::Check`], the last number of each key.
    last: Mutex<HashMap<String, u64>>,
}

/// A running sink. It serves until the process ends: connections are not ended when this is dropped.
#[derive(Clone, Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Sink {
    /// Listens on a free loopback port.
    pub fn start(options: Options) -> io::Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0")?, options)
    }

    /// Serves a port that listens already.
    pub fn start_on(listener: TcpListener, options: Options) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            options,
            shards: Shards::new(options.shards),
            counters: Counters::default(),
            sequence: AtomicU64::new(0),
            dead: (0..options.shards).map(|_| AtomicBool::new(false)).collect(),
            auto: AtomicBool::new(false),
            limited: AtomicBool::new(false),
            rooms: Mutex::new(vec![Room::default(); options.shards]),
            missing: AtomicBool::new(false),
            denied: Mutex::default(),
            kept: Mutex::new(vec![Vec::new(); options.shards]),
            last: Mutex::new(HashMap::new()),
        });
        let sink = Self { shared: shared.clone(), address };
        thread::Builder::new().name("sink".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                // A connection that was reset before it was accepted concerns nobody else.
                if let Ok(stream) = stream {
                    thread::spawn(move || Connection::new(shared, stream).serve());
                }
            }
        })?;
        Ok(sink)
    }

    /// For the agent's `endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn shards(&self) -> Shards {
        self.shared.shards
    }

    /// While dead, a shard throttles every record.
    pub fn set_dead(&self, shard: usize, dead: bool) {
        self.shared.dead[shard].store(dead, Ordering::SeqCst);
    }

    /// As [`Sink::set_dead`], every shard.
    pub fn set_all_dead(&self, dead: bool) {
        (0..self.shared.dead.len()).for_each(|shard| self.set_dead(shard, dead));
    }

    /// While set, records go round the shards, whatever their keys.
    pub fn set_auto(&self, auto: bool) {
        self.shared.auto.store(auto, Ordering::SeqCst);
    }

    /// While set, a shard throttles what is over 1 MiB or 1,000 records a second; a second's worth may come at once.
    pub fn set_limited(&self, limited: bool) {
        self.shared.limited.store(limited, Ordering::SeqCst);
    }

    /// Bytes that each shard stored while it was limited, keys and data.
    pub fn stored_bytes(&self) -> Vec<u64> {
        lock(&self.shared.rooms).iter().map(|room| room.stored).collect()
    }

    /// While set, there is no such stream.
    pub fn set_missing(&self, missing: bool) {
        self.shared.missing.store(missing, Ordering::SeqCst);
    }

    /// While set, nobody may read the stream's summary.
    pub fn deny_summary(&self, denied: bool) {
        self.deny("DescribeStreamSummary", denied);
    }

    /// While set, nobody may do this (`PutRecords`, `ListShards`).
    pub fn deny(&self, action: &str, denied: bool) {
        let mut held = lock(&self.shared.denied);
        if denied {
            held.insert(action.to_owned())
        } else {
            held.remove(action)
        };
    }

    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// What a shard holds, in its order; only in [`Mode::Keep`].
    pub fn kept(&self, shard: usize) -> Vec<Kept> {
        lock(&self.shared.kept)[shard].clone()
    }

    /// The events a shard holds, taken apart, in its order; only in [`Mode::Keep`].
    pub fn events(&self, shard: usize) -> Vec<Arrived> {
        let mut events = Vec::new();
        for record in self.kept(shard) {
            let members = kpl::take_apart(&record.key, record.explicit_hash_key, &record.data);
            let members = members.unwrap_or_else(|why| panic!("shard {shard} holds a record that is none: {why}"));
            events.extend(members.into_iter().map(|event| Arrived { event, at: record.at }));
        }
        events
    }

    /// As [`Sink::events`], shard after shard.
    pub fn all_events(&self) -> impl Iterator<Item = Arrived> {
        (0..self.shared.dead.len()).flat_map(|shard| self.events(shard))
    }

    /// Records that a shard holds; only in [`Mode::Keep`].
    pub fn kept_count(&self, shard: usize) -> usize {
        lock(&self.shared.kept)[shard].len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn stats(&self) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let c = &self.counters;
        Stats {
            requests: of(&c.requests),
            bad_requests: of(&c.bad_requests),
            records: of(&c.records),
            throttled: of(&c.throttled),
            body_bytes: of(&c.body_bytes),
            events: of(&c.events),
            duplicates: of(&c.duplicates),
            gaps: of(&c.gaps),
        }
    }

    /// Takes every event of a record into account.
    fn check(&self, last: &mut HashMap<String, u64>, entry: &WireEntry<'_>, data: &[u8]) -> Result<(), &'static str> {
        let key = std::str::from_utf8(&entry.key).map_err(|_| "a key is not UTF-8")?;
        let events = kpl::take_apart(key, entry.explicit_hash_key, data).map_err(|_| "a damaged aggregate")?;
        for event in events {
            let number = number_of(&event.data).ok_or("an event without a number")?;
            self.counters.events.fetch_add(1, Ordering::Relaxed);
            let seen = last.get(&event.key).copied();
            let expected = seen.map_or(1, |seen| seen + 1);
            if number < expected {
                self.counters.duplicates.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if number > expected {
                self.counters.gaps.fetch_add(1, Ordering::Relaxed);
            }
            last.insert(event.key, number);
        }
        Ok(())
    }
}

/// Generators that patch numbers into a prepared buffer count from here, so that all have as many digits.
pub const NUMBER_BASE: u64 = 1_000_000_000;

/// The number after `"n":` in an event's JSON, less [`NUMBER_BASE`] where it is above it.
pub fn number_of(event: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(event, br#""n":"#)? + 4;
    let digits = event[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number: u64 = std::str::from_utf8(&event[at..at + digits]).ok()?.parse().ok()?;
    Some(if number > NUMBER_BASE { number - NUMBER_BASE } else { number })
}

struct Connection {
    shared: Arc<Shared>,
    stream: TcpStream,
    /// Kept at its largest, so that no page is cleared twice.
    input: Vec<u8>,
    filled: usize,
    answer: Vec<u8>,
    output: Vec<u8>,
    keys: KeyCache,
}

struct Head {
    len: usize,
    body: usize,
    target: String,
    get: Option<String>,
}

impl Connection {
    fn new(shared: Arc<Shared>, stream: TcpStream) -> Self {
        let (input, answer, output) = (vec![0; 1 << 20], Vec::new(), Vec::new());
        Self { shared, stream, input, filled: 0, answer, output, keys: KeyCache::default() }
    }

    /// Until the other side closes; it may do so at any moment, and that is no fault.
    fn serve(mut self) {
        if self.stream.set_nodelay(true).is_err() {
            return;
        }
        while let Ok(Some(head)) = self.read_request() {
            let status = self.handle(&head);
            let end = head.body + head.len;
            self.input.copy_within(end..self.filled, 0);
            self.filled -= end;
            if !self.shared.options.delay.is_zero() {
                thread::sleep(self.shared.options.delay);
            }
            self.output.clear();
            let kind = "application/x-amz-json-1.1";
            let length = self.answer.len();
            let written = write!(
                self.output,
                "HTTP/1.1 {status}\r\nx-amzn-RequestId: 0\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
            );
            self.output.extend_from_slice(&self.answer);
            if written.and_then(|()| self.stream.write_all(&self.output)).is_err() {
                return;
            }
        }
    }

    fn fill(&mut self) -> io::Result<bool> {
        if self.filled == self.input.len() {
            self.input.resize(self.input.len() * 2, 0);
        }
        let n = self.stream.read(&mut self.input[self.filled..])?;
        self.filled += n;
        Ok(n > 0)
    }

    fn read_request(&mut self) -> io::Result<Option<Head>> {
        let head = loop {
            if let Some(end) = memchr::memmem::find(&self.input[..self.filled], b"\r\n\r\n") {
                break parse_head(&self.input[..end], end + 4).ok_or(io::ErrorKind::InvalidData)?;
            }
            if !self.fill()? {
                return Ok(None);
            }
        };
        while self.filled < head.body + head.len {
            if !self.fill()? {
                return Ok(None);
            }
        }
        Ok(Some(head))
    }

    fn handle(&mut self, head: &Head) -> &'static str {
        const OK: &str = "200 OK";
        if let Some(path) = &head.get {
            self.answer = self.control(path);
            return OK;
        }
        let shared = self.shared.clone();
        let body = &self.input[head.body..head.body + head.len];
        if shared.missing.load(Ordering::SeqCst) {
            let error = serde_json::json!({"__type": "ResourceNotFoundException", "message": "Stream not found."});
            self.answer = error.to_string().into_bytes();
            return "400 Bad Request";
        }
        if lock(&shared.denied).contains(&head.target) {
            let message = format!("User: test is not authorized to perform: kinesis:{}", head.target);
            let error = serde_json::json!({"__type": "AccessDeniedException", "message": message});
            self.answer = error.to_string().into_bytes();
            return "400 Bad Request";
        }
        match head.target.as_str() {
            "PutRecord" => {
                // As a request of one record, whose outcome is the answer.
                let mut record: serde_json::Value = serde_json::from_slice(body).expect("JSON");
                record.as_object_mut().expect("an object").remove("StreamName");
                let several = serde_json::json!({"Records": [record]}).to_string().into_bytes();
                shared.counters.requests.fetch_add(1, Ordering::Relaxed);
                let put = put_records(&shared, &several, &mut self.keys, &mut self.answer);
                put.expect("the agent's own form");
                let answer: serde_json::Value = serde_json::from_slice(&self.answer).expect("our own answer");
                let outcome = &answer["Records"][0];
                if outcome["ErrorCode"].is_null() {
                    self.answer = outcome.to_string().into_bytes();
                    return OK;
                }
                let error = serde_json::json!({"__type": outcome["ErrorCode"], "message": outcome["ErrorMessage"]});
                self.answer = error.to_string().into_bytes();
                "400 Bad Request"
            }
            "PutRecords" => {
                shared.counters.requests.fetch_add(1, Ordering::Relaxed);
                shared.counters.body_bytes.fetch_add(head.len as u64, Ordering::Relaxed);
                match put_records(&shared, body, &mut self.keys, &mut self.answer) {
                    Ok(()) => OK,
                    Err(why) => {
                        shared.counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                        let error = serde_json::json!({"__type": "SerializationException", "message": why});
                        self.answer = error.to_string().into_bytes();
                        "400 Bad Request"
                    }
                }
            }
            "ListShards" => {
                self.answer = wire::list_shards(&shared.shards);
                OK
            }
            "DescribeStreamSummary" => {
                let request: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
                self.answer = wire::describe(
                    &shared.shards,
                    request["StreamName"].as_str().unwrap_or("stream"),
                    shared.auto.load(Ordering::SeqCst),
                );
                OK
            }
            other => {
                let message = format!("this sink does not do {other}");
                let error = serde_json::json!({"__type": "UnknownOperationException", "message": message});
                self.answer = error.to_string().into_bytes();
                "400 Bad Request"
            }
        }
    }

    /// `GET /stats` for a parent process.
    fn control(&self, path: &str) -> Vec<u8> {
        let stats = self.shared.stats();
        if path == "/stats" { stats.to_json().to_string().into_bytes() } else { b"{}".to_vec() }
    }
}

impl Stats {
    const NAMES: [&'static str; 8] =
        ["requests", "bad_requests", "records", "throttled", "body_bytes", "events", "duplicates", "gaps"];

    fn to_json(self) -> serde_json::Value {
        let Self { requests, bad_requests, records, throttled, body_bytes, events, duplicates, gaps } = self;
        let values = [requests, bad_requests, records, throttled, body_bytes, events, duplicates, gaps];
        Self::NAMES
            .into_iter()
            .zip(values)
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// From the answer of `GET /stats`.
    pub fn from_json(json: &serde_json::Value) -> Option<Self> {
        let mut values = [0; 8];
        for (value, name) in values.iter_mut().zip(Self::NAMES) {
            *value = json[name].as_u64()?;
        }
        let [requests, bad_requests, records, throttled, body_bytes, events, duplicates, gaps] = values;
        Some(Self { requests, bad_requests, records, throttled, body_bytes, events, duplicates, gaps })
    }
}

fn parse_head(head: &[u8], body: usize) -> Option<Head> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut request = lines.next()?.split(' ');
    let (method, path) = (request.next()?, request.next()?);
    let get = (method == "GET").then(|| path.to_owned());
    let mut parsed = Head { len: 0, body, target: String::new(), get };
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            parsed.len = value.trim().parse().ok()?;
        } else if name.eq_ignore_ascii_case("x-amz-target") {
            value.trim().rsplit('.').next()?.clone_into(&mut parsed.target);
        }
    }
    Some(parsed)
}

/// What a limited shard can take now.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// Room there was at that moment.
    since: Option<(Instant, f64, f64)>,
    stored: u64,
}

impl Room {
    const BYTES: f64 = 1048576.0;
    const RECORDS: f64 = 1000.0;

    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let (bytes_left, records_left) = self.since.map_or((Self::BYTES, Self::RECORDS), |(since, bytes, records)| {
            let seconds = now.saturating_duration_since(since).as_secs_f64();
            ((bytes + seconds * Self::BYTES).min(Self::BYTES), (records + seconds * Self::RECORDS).min(Self::RECORDS))
        });
        let has_room = bytes_left >= bytes as f64 && records_left >= 1.0;
        let taken = if has_room { (bytes as f64, 1.0) } else { (0.0, 0.0) };
        self.since = Some((now, bytes_left - taken.0, records_left - taken.1));
        self.stored += taken.0 as u64;
        has_room
    }
}

fn put_records(shared: &Shared, body: &[u8], keys: &mut KeyCache, answer: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut kept = (shared.options.mode == Mode::Keep).then(|| lock(&shared.kept));
    let mut last = (shared.options.mode == Mode::Check).then(|| lock(&shared.last));
    let mut answer = PutAnswer::new(answer);
    let (mut stored, mut throttled) = (0, 0);
    // Under the lock of `kept`, so that times do not go back within a shard.
    let at = Instant::now();
    let first = shared.sequence.fetch_add(512, Ordering::Relaxed);
    let mut rooms = shared.limited.load(Ordering::Relaxed).then(|| lock(&shared.rooms));
    let walked = wire::each_entry(body, |entry| {
        let shard = match shared.auto.load(Ordering::Relaxed) {
            true => ((first / 512 + stored) % shared.shards.count as u64) as usize,
            false => keys.shard(&shared.shards, &entry)?,
        };
        let bytes = entry.key.len() + entry.data_len();
        let has_room = rooms.as_mut().is_none_or(|rooms| rooms[shard].take(bytes, at));
        if !has_room || shared.dead[shard].load(Ordering::Relaxed) {
            throttled += 1;
            answer.throttled();
            return Ok(());
        }
        if kept.is_some() || last.is_some() {
            let data = BASE64.decode(entry.data).map_err(|_| "Data is not base64")?;
            if let Some(last) = &mut last {
                shared.check(last, &entry, &data)?;
            }
            if let Some(kept) = &mut kept {
                let key = String::from_utf8(entry.key.to_vec()).map_err(|_| "a key is not UTF-8")?;
                kept[shard].push(Kept { key, explicit_hash_key: entry.explicit_hash_key, data, at });
            }
        }
        answer.stored(first + stored, shard);
        stored += 1;
        Ok(())
    });
    answer.finish();
    shared.counters.records.fetch_add(stored, Ordering::Relaxed);
    shared.counters.throttled.fetch_add(throttled, Ordering::Relaxed);
    walked
}

/// The sink as a process: prints its endpoint as one line, serves until its standard input ends (the parent is gone).
pub fn serve_until_stdin_closes(options: Options) -> io::Result<()> {
    let sink = Sink::start(options)?;
    println!("{}", sink.endpoint());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// A GET on a loopback listener, without a client library: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        if let Some(end) = memchr::memmem::find(&reply, b"\r\n\r\n") {
            let head = parse_head(&reply[..end], end + 4);
            let len = head.filter(|head| head.len > 0).map(|head| head.len);
            if len.is_some_and(|len| reply.len() >= end + 4 + len) {
                break;
            }
        }
        match stream.read(&mut piece)? {
            0 => break,
            n => reply.extend_from_slice(&piece[..n]),
        }
    }
    let end = memchr::memmem::find(&reply, b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = reply.get(9..12).and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| code.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, reply.split_off(end + 4)))
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
