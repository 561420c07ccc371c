//! `forebay status`: asks a running agent's admin listener for `/status` and prints it.
//!
//! Place: called by `main`; also a building block for other commands that talk to the agent ([`fetch`]). One
//! HTTP/1.1 request over loopback, bounded in time and size.
//!
//! Failure: no agent, an answer that is not forebay's, or none in time end in one sentence on stderr that names
//! the address and the remedy, and exit code 1. Absent on purpose: refreshing (that is `top`), rates.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin::report::{AgentState, LatencyReport, ShardReport, SourceReport, StatusReport, StreamReport};

/// The longest the whole exchange may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is read: thousands of shards fit many times over.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Shards printed for each stream; `--json` has all.
const SHARDS_SHOWN_MAX: usize = 32;

/// What is told while it is so.
pub(super) const SINGLY: &str =
    "PutRecords is denied, so each record is sent by PutRecord, which is slower; allow kinesis:PutRecords";

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct StatusOptions {
    /// The agent's admin listener.
    pub admin: SocketAddr,
    /// Print the agent's JSON instead of a table.
    pub json: bool,
    /// Print nothing, and ask only whether the agent is ready.
    pub quiet: bool,
}

/// Why there is no status. `Display` is the sentence for a person.
#[derive(Debug)]
pub enum StatusError {
    /// Nobody listens there.
    NoAgent(SocketAddr, std::io::Error),
    /// No answer within the time limit.
    Timeout(SocketAddr),
    /// The connection broke, or what speaks there is no HTTP.
    Broken(SocketAddr, String),
    /// Something answers, but not with forebay's status.
    NotForebay(SocketAddr, String),
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAgent(admin, error) => write!(
                f,
                "no agent answers at {admin} ({error}); is `forebay run` running, and is its listen.admin this address?"
            ),
            Self::Timeout(admin) => {
                write!(
                    f,
                    "the agent at {admin} did not answer within {} s; it may be stuck or stopped: look at its log",
                    TIMEOUT.as_secs()
                )
            }
            Self::Broken(admin, error) => {
                write!(f, "the connection to {admin} broke ({error}); is that address forebay's listen.admin?")
            }
            Self::NotForebay(admin, what) => {
                write!(
                    f,
                    "what answers at {admin} is not forebay's admin listener ({what}); listen.admin in the agent's configuration tells the address"
                )
            }
        }
    }
}

impl std::error::Error for StatusError {}

/// Prints the status. Exit code 0, or 1 when no agent answers; with `quiet` also when it is not ready.
pub async fn run(options: StatusOptions) -> ExitCode {
    if options.quiet {
        return if is_ready(options.admin).await { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let text = match fetch(options.admin).await {
        Ok((raw, _)) if options.json => raw,
        Ok((_, report)) => render(&report),
        Err(error) => {
            eprintln!("forebay status: {error}");
            return ExitCode::FAILURE;
        }
    };
    print(&text)
}

/// The agent takes events and can make them durable.
async fn is_ready(admin: SocketAddr) -> bool {
    let request = Request::get("/readyz").body(Full::default()).expect("a constant path makes a valid request");
    let answer = tokio::time::timeout(TIMEOUT, call(admin, request, ANSWER_BYTES_MAX)).await;
    matches!(answer, Ok(Ok((StatusCode::OK, _))))
}

/// Writes to stdout; a reader that left early (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("forebay status: cannot write to stdout: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Fetches `/status`: the JSON text as the agent sent it, and the same typed.
///
/// # Errors
/// See [`StatusError`].
pub async fn fetch(admin: SocketAddr) -> Result<(String, StatusReport), StatusError> {
    tokio::time::timeout(TIMEOUT, exchange(admin)).await.unwrap_or(Err(StatusError::Timeout(admin)))
}

async fn exchange(admin: SocketAddr) -> Result<(String, StatusReport), StatusError> {
    let request = Request::get("/status").body(Full::default()).expect("a constant path makes a valid request");
    let (status, body) = call(admin, request, ANSWER_BYTES_MAX).await?;
    if status != StatusCode::OK {
        return Err(StatusError::NotForebay(admin, format!("GET /status says {status}")));
    }
    let text =
        String::from_utf8(body.into()).map_err(|_| StatusError::NotForebay(admin, "the answer is not UTF-8".to_owned()))?;
    let report = serde_json::from_str(&text).map_err(|error| StatusError::NotForebay(admin, error.to_string()))?;
    Ok((text, report))
}

/// One exchange with the admin listener, without a limit of time; an answer over `bytes_max` is refused. The `Host`
/// header is added.
///
/// # Errors
/// See [`StatusError`].
pub async fn call(
    admin: SocketAddr,
    mut request: Request<Full<Bytes>>,
    bytes_max: usize,
) -> Result<(StatusCode, Bytes), StatusError> {
    let broken = |error: &dyn fmt::Display| StatusError::Broken(admin, error.to_string());
    let stream = TcpStream::connect(admin).await.map_err(|error| StatusError::NoAgent(admin, error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let host = admin.to_string().parse().expect("an address is a valid header");
    request.headers_mut().insert(hyper::header::HOST, host);
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), bytes_max).collect().await.map_err(|error| broken(&error))?.to_bytes();
        Ok((status, body))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        done = answer.as_mut() => done,
        // The connection may end right behind the answer: what has arrived is still read.
        _ = connection => answer.await,
    }
}

/// The table for a person.
#[must_use]
pub fn render(report: &StatusReport) -> String {
    let state = match report.state {
        AgentState::Accepting => "accepting",
        AgentState::Draining => "draining",
    };
    let mut out = format!("forebay {}, pid {}, up {}, {state}\n", report.version, report.pid, seconds(report.uptime_seconds));
    for stream in &report.streams {
        render_stream(&mut out, stream).expect("writing to a String does not fail");
    }
    out
}

fn render_stream(out: &mut String, stream: &StreamReport) -> fmt::Result {
    let StreamReport { account, spool, put, latency, .. } = stream;
    writeln!(out, "\n{}: {}", stream.name, state_of(stream))?;
    let mut facts = vec![
        ("accepted", count(account.accepted)),
        ("delivered", count(account.delivered)),
        ("pending", count(account.pending)),
        ("dead", count(account.dead)),
    ];
    if account.expired + account.dropped > 0 {
        facts.extend([("expired", count(account.expired)), ("dropped", count(account.dropped))]);
    }
    if stream.dead_letters.held > 0 {
        facts.push(("letters", count(stream.dead_letters.held)));
    }
    facts.push(("spool", bytes(spool.bytes)));
    if !spool.sync.is_empty() {
        facts.push(("sync", spool.sync.clone()));
    }
    facts.push(("oldest", if account.pending == 0 { "-".to_owned() } else { seconds(spool.oldest_pending_seconds) }));
    write_table(
        out,
        &[facts.iter().map(|(name, _)| (*name).to_owned()).collect(), facts.into_iter().map(|(_, value)| value).collect()],
        0,
    )?;
    writeln!(
        out,
        "  latency p50/p99: commit {}, receipt {}, delivery {}",
        quantiles(&latency.commit),
        quantiles(&latency.receipt),
        quantiles(&latency.delivery)
    )?;
    write!(out, "  put: {} records, {}, {} throttled", count(put.records), bytes(put.bytes), count(put.throttled))?;
    write_counts(out, "; requests", put.requests.iter())?;
    writeln!(out)?;
    if !stream.rejected.is_empty() {
        write_counts(out, "  rejected", stream.rejected.iter())?;
        writeln!(out)?;
    }
    for (what, of) in LEFT_OUT {
        let counts = stream.spool.sources.iter().map(|(source, report)| (source, of(report)));
        let counts: Vec<(&String, u64)> = counts.filter(|(_, count)| *count > 0).collect();
        if !counts.is_empty() {
            write_counts(out, what, counts.iter().map(|(source, count)| (*source, count)))?;
            writeln!(out)?;
        }
    }
    if !stream.duplicated.is_empty() {
        write_counts(out, "  sent again", stream.duplicated.iter())?;
        writeln!(out)?;
    }
    if !stream.advice.is_empty() {
        writeln!(out, "  advice: {}", stream.advice)?;
    }
    if !stream.shards.is_empty() {
        let mut rows = vec![["shard", "rate", "queued", "records", "throttled", ""].map(str::to_owned).to_vec()];
        rows.extend(stream.shards.iter().take(SHARDS_SHOWN_MAX).map(|shard| {
            vec![
                shard.id.clone(),
                format!("{}/s", bytes(shard.rate_bytes)),
                count(shard.queued_events),
                count(shard.records),
                count(shard.throttled),
                remarks(shard),
            ]
        }));
        write_table(out, &rows, 1)?;
        if let Some(more) = stream.shards.len().checked_sub(SHARDS_SHOWN_MAX).filter(|more| *more > 0) {
            writeln!(out, "  and {more} more shards (--json shows all)")?;
        }
    }
    Ok(())
}

/// What else there is to say of a shard.
fn remarks(shard: &ShardReport) -> String {
    let lags = shard.lagging.then(|| "reads from disk".to_owned());
    let hot = shard.hot_keys.first().map(|key| format!("{} % or more is one key (MD5 {})", key.percent, key.hash));
    lags.into_iter().chain(hot).collect::<Vec<_>>().join("; ")
}

fn state_of(stream: &StreamReport) -> String {
    let mut states = Vec::new();
    if !stream.spool.closed_reason.is_empty() {
        states.push(format!("the spool is not open, nothing is taken, it is tried again: {}", stream.spool.closed_reason));
    } else if !stream.spool.writable {
        states.push("the spool cannot make events durable".to_owned());
    }
    if stream.spool.full {
        let (by, what) = (&stream.spool.full_by, full_means(&stream.spool.on_full));
        let by = if by.is_empty() { String::new() } else { format!(" ({by})") };
        states.push(format!("the spool is full{by} and {what}"));
    }
    for (name, source) in stream.spool.sources.iter().filter(|(_, source)| source.full) {
        let (quota, what) = (bytes(source.quota_bytes.unwrap_or_default()), full_means(&stream.spool.on_full));
        states.push(format!("source {name} has filled its spool_quota of {quota} and the spool {what} from it"));
    }
    if !stream.dead_letters.stuck_reason.is_empty() {
        states.push(format!("no dead letters can be written: {}", stream.dead_letters.stuck_reason));
    }
    if !stream.checkpoint_reason.is_empty() {
        states.push(format!(
            "the marks cannot be saved, so no disk space is freed and a restart would send again: {}",
            stream.checkpoint_reason
        ));
    }
    if !stream.mode.reason.is_empty() {
        states.push(stream.mode.reason.clone());
    }
    if stream.put.singly {
        states.push(SINGLY.to_owned());
    }
    if !stream.paused_reason.is_empty() {
        states.push(format!("delivery is paused: {}", stream.paused_reason));
    }
    if states.is_empty() { "good".to_owned() } else { states.join("; ") }
}

/// What the agent does with events that have no room.
fn full_means(on_full: &str) -> &'static str {
    match on_full {
        "reject" => "refuses new events",
        "drop_oldest" => "drops the oldest events for new ones",
        _ => "holds events back",
    }
}

/// Tells one of a source's counts.
type CountOf = fn(&SourceReport) -> u64;

/// What rules of sources leave out, and how it is told.
const LEFT_OUT: [(&str, CountOf); 2] =
    [("  filtered", |source| source.filtered), ("  stored before", |source| source.deduplicated)];

fn write_counts<'a>(out: &mut String, title: &str, counts: impl Iterator<Item = (&'a String, &'a u64)>) -> fmt::Result {
    for (at, (name, n)) in counts.enumerate() {
        write!(out, "{} {name} {}", if at == 0 { title } else { "," }, count(*n))?;
    }
    Ok(())
}

/// Right-aligned columns, the first `left` of them left-aligned, two spaces apart.
pub(super) fn write_table(out: &mut String, rows: &[Vec<String>], left: usize) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column < left {
                write!(line, "  {cell:<width$}")?;
            } else {
                write!(line, "  {cell:>width$}")?;
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn quantiles(latency: &LatencyReport) -> String {
    match (latency.p50, latency.p99) {
        (Some(p50), Some(p99)) => format!("{}/{}", seconds(p50), seconds(p99)),
        _ => "-".to_owned(),
    }
}

/// 1234567 as 1,234,567.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

pub(super) fn seconds(s: f64) -> String {
    match s {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3_600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([count(0), count(999), count(1_000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([bytes(0), bytes(1023), bytes(1 << 20), bytes(u64::MAX)], ["0 B", "1023 B", "1.0 MiB", "16384.0 PiB"]);
        assert_eq!(
            [seconds(0.000_25), seconds(0.25), seconds(90.0), seconds(600.0), seconds(36_000.0)],
            ["250 us", "250.0 ms", "90.0 s", "10 min", "10.0 h"]
        );
    }
}
