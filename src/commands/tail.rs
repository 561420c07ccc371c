//! `forebay tail`: prints a stream's events as a consumer would get them, KPL aggregates taken apart.
//!
//! Place: called by `main` with what the command line and the configuration say; reads through `consumer`. One
//! line an event: text for people, or one JSON object with `--json`. What an event holds cannot disturb the
//! terminal: control characters and bytes that are no text are written as `\n`, `\x1b` and the like.
//!
//! Failure: what a person must mend ends it with exit code 1; what may pass is told on stderr and waited out. A
//! closed stdout (`| head`) is the end, not a failure.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::consumer::{Arrival, Consumer, ConsumerOptions, Event};
use crate::host::Host;
use crate::kinesis::aws::{AwsKinesis, Target};
use crate::kinesis::{ErrorClass, PutError, ReadFrom};

/// What to print of which stream.
#[derive(Clone, Debug, PartialEq)]
pub struct TailOptions {
    /// Name or ARN.
    pub stream: String,
    /// AWS region; `None`: the ARN's, or as the AWS SDK finds it.
    pub region: Option<String>,
    /// Endpoint URL instead of the region's own.
    pub endpoint: Option<String>,
    /// Profile of the shared AWS configuration.
    pub profile: Option<String>,
    /// Role to assume.
    pub role_arn: Option<String>,
    /// External id for that role.
    pub external_id: Option<String>,
    /// Where to begin in each shard.
    pub from: ReadFrom,
    /// One JSON object an event, instead of text.
    pub json: bool,
    /// Stop after this many events.
    pub max: Option<u64>,
    /// Stop when no event came for this long.
    pub idle_exit: Option<Duration>,
}

impl TailOptions {
    fn target(&self) -> Target {
        Target {
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            profile: self.profile.clone(),
            role_arn: self.role_arn.clone(),
            external_id: self.external_id.clone(),
            // A page may hold 10 MiB; behind a thin line that takes its time.
            request_timeout: Duration::from_secs(30),
            ..Target::new(&*self.stream)
        }
    }
}

/// Why printing ended before its time.
#[derive(Debug)]
pub enum TailError {
    /// The stream cannot be read until somebody mends something.
    Read(PutError),
    /// Nobody takes the output any more, or the disk behind it is full.
    Write(io::Error),
}

/// Prints to stdout until told to stop. Exit code 0, or 1 when the stream cannot be read.
pub async fn run(options: TailOptions) -> ExitCode {
    let target = options.target();
    let poll = if target.is_loopback() { ConsumerOptions::loopback } else { ConsumerOptions::polite };
    let consumer = Consumer::new(Arc::new(AwsKinesis::open(target)), poll(options.from), Host::real());
    match print_events(consumer, &options, &mut io::stdout()).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(TailError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(TailError::Write(error)) => {
            eprintln!("forebay tail: cannot write to stdout: {error}");
            ExitCode::FAILURE
        }
        Err(TailError::Read(error)) => {
            eprintln!("forebay tail: cannot read stream {}: {error}", options.stream);
            ExitCode::FAILURE
        }
    }
}

/// Prints the consumer's events to `out`, each record's at once. Returns how many.
///
/// # Errors
/// See [`TailError`].
pub async fn print_events(
    mut consumer: Consumer,
    options: &TailOptions,
    out: &mut (impl Write + Send),
) -> Result<u64, TailError> {
    let mut printed = 0;
    let mut text = String::new();
    while options.max.is_none_or(|max| printed < max) {
        let arrival = match options.idle_exit {
            None => consumer.next().await,
            Some(idle) => match tokio::time::timeout(idle, consumer.next()).await {
                Ok(arrival) => arrival,
                Err(_) => break,
            },
        };
        let arrival = match arrival {
            Ok(arrival) => arrival,
            Err(error) if matches!(error.class, ErrorClass::Configuration | ErrorClass::Poison) => {
                return Err(TailError::Read(error));
            }
            Err(error) => {
                eprintln!("forebay tail: {error}; trying on");
                continue;
            }
        };
        text.clear();
        let room = options.max.map_or(usize::MAX, |max| usize::try_from(max - printed).unwrap_or(usize::MAX));
        for event in arrival.events.iter().take(room) {
            printed += 1;
            if options.json {
                text.push_str(&json_line(&arrival, event));
            } else {
                text_line(&mut text, &arrival, event);
            }
            text.push('\n');
        }
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(TailError::Write)?;
    }
    Ok(printed)
}

/// `shardId-000000000002  12ms  user-17  {"event":…}`
fn text_line(text: &mut String, arrival: &Arrival, event: &Event) {
    let lag = Duration::from_millis(arrival.lag_ms);
    let lag = if lag < Duration::from_secs(10) { format!("{}ms", lag.as_millis()) } else { format!("{}s", lag.as_secs()) };
    write!(text, "{}  {lag:>6}  ", arrival.shard).expect("a String takes all");
    printable(text, &event.key);
    text.push_str("  ");
    printable(text, &event.data);
    if !arrival.readable {
        text.push_str("  (in an aggregate of the wrong shard: KCL drops it)");
    }
}

/// Text as it is; control characters and bytes that are no UTF-8 escaped.
pub(super) fn printable(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => text.push('\t'),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a String takes all");
        }
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    shard: &'a str,
    sequence: &'a str,
    arrived_ms: u64,
    lag_ms: u64,
    behind_ms: u64,
    aggregated: bool,
    readable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explicit_hash_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

fn json_line(arrival: &Arrival, event: &Event) -> String {
    let key = std::str::from_utf8(&event.key).ok();
    let data = std::str::from_utf8(&event.data).ok();
    let line = JsonLine {
        shard: &arrival.shard.0,
        sequence: &arrival.sequence,
        arrived_ms: arrival.arrived_ms,
        lag_ms: arrival.lag_ms,
        behind_ms: arrival.behind_ms,
        aggregated: arrival.aggregated,
        readable: arrival.readable,
        key,
        key_base64: key.is_none().then(|| STANDARD.encode(&event.key)),
        explicit_hash_key: event.explicit_hash_key.map(|hash| hash.to_string()),
        data,
        data_base64: data.is_none().then(|| STANDARD.encode(&event.data)),
    };
    serde_json::to_string(&line).expect("a struct of texts and numbers becomes JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(data: &[u8]) -> Arrival {
        Arrival {
            shard: "shardId-000000000002".into(),
            sequence: "4957".into(),
            arrived_ms: 1_000,
            lag_ms: 12,
            behind_ms: 0,
            bytes: data.len(),
            aggregated: false,
            readable: true,
            events: vec![Event { key: b"user-17".to_vec(), explicit_hash_key: None, data: data.to_vec() }],
        }
    }

    fn as_text(data: &[u8]) -> String {
        let (mut text, arrival) = (String::new(), arrival(data));
        text_line(&mut text, &arrival, &arrival.events[0]);
        text
    }

    #[test]
    fn a_line_shows_shard_lag_key_and_data() {
        assert_eq!(as_text("{\"ü\":1}".as_bytes()), "shardId-000000000002    12ms  user-17  {\"ü\":1}");
    }

    #[test]
    fn no_event_can_break_the_line_or_steer_the_terminal() {
        let text = as_text(b"a\nb\x1b[2J\xff\xfe\x7f");
        assert!(text.ends_with("a\\nb\\u{1b}[2J\\xff\\xfe\\u{7f}"), "{text}");
        assert!(!text.chars().any(char::is_control));
    }

    #[test]
    fn json_carries_text_as_text_and_bytes_as_base64() {
        let value = |data: &[u8]| {
            let arrival = arrival(data);
            serde_json::from_str::<serde_json::Value>(&json_line(&arrival, &arrival.events[0])).unwrap()
        };
        assert_eq!(value(b"a\nb")["data"], "a\nb");
        assert_eq!(value(b"a\nb").get("data_base64"), None);
        assert_eq!(value(&[0, 255, 10])["data_base64"], "AP8K");
        assert_eq!(value(&[0, 255, 10]).get("data"), None);
        assert_eq!(value(b"x")["key"], "user-17");
    }
}
