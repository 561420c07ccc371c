//! The applications of the demo: connections to the Unix socket that ask for acknowledgements, and HTTP clients.
//!
//! Each user belongs to one connection, which sends that user's events in order, so that the order in which they
//! are receipted is defined. A connection's users take turns at random. Failure: the first refusal, lost
//! connection or silence ends the connection with a sentence; nothing is sent twice.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::events;
use crate::host::mix64;

/// Events of one HTTP request.
const BATCH_EVENTS: usize = 250;

/// Bytes gathered before one write to the socket.
const WRITE_BYTES: usize = 64 << 10;

/// Longest wait for any answer of the agent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers of "not now" in a row after which an HTTP client gives up.
const RETRIES_MAX: u32 = 60;

/// The users of one connection, taking turns.
#[derive(Debug)]
pub(super) struct Crowd {
    /// User, next number, number of events.
    users: Vec<(u32, u32, u32)>,
    dice: u64,
}

impl Crowd {
    /// These of `all_users` users, who send `events` in all.
    pub(super) fn new(users: impl Iterator<Item = u32>, all_users: u32, events: u64) -> Self {
        let mut users: Vec<_> = users
            .map(|user| (user, 0, events::events_of(user, all_users, events)))
            .filter(|(_, _, events)| *events > 0)
            .collect();
        users.shrink_to_fit();
        let dice = users.first().map_or(0, |(user, _, _)| u64::from(*user));
        Self { users, dice }
    }

    /// Events that are still to come.
    pub(super) fn events(&self) -> u64 {
        self.users.iter().map(|(_, number, events)| u64::from(events - number)).sum()
    }

    /// Writes the next event, `false` when there is none.
    fn write_next(&mut self, out: &mut String) -> bool {
        if self.users.is_empty() {
            return false;
        }
        self.dice = mix64(self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let turn = (self.dice % self.users.len() as u64) as usize;
        let (user, number, events) = &mut self.users[turn];
        events::write(out, *user, *number);
        *number += 1;
        if number == events {
            self.users.swap_remove(turn);
        }
        true
    }
}

/// Sends a crowd's events over the socket as lines, and reports how many more are acknowledged as it goes.
pub(super) async fn over_socket(path: &Path, mut crowd: Crowd, durable: mpsc::Sender<u64>) -> Result<(), String> {
    let stream = UnixStream::connect(path).await.map_err(|error| format!("cannot connect to {}: {error}", path.display()))?;
    let (answers, mut events) = stream.into_split();
    let mut answers = BufReader::new(answers).lines();
    let broken = |error: std::io::Error| format!("the socket broke: {error}");
    events.write_all(b"forebay/1 ack=on\n").await.map_err(broken)?;
    let greeting = answer_line(&mut answers).await?;
    if !greeting.starts_with("ok") {
        return Err(format!("the agent answers the hello with {greeting:?}"));
    }
    let sending = async {
        let mut sent = 0_u64;
        let mut text = String::with_capacity(WRITE_BYTES + 1024);
        loop {
            let more = crowd.write_next(&mut text);
            if more {
                sent += 1;
                text.push('\n');
            }
            if text.len() >= WRITE_BYTES || !more {
                events.write_all(text.as_bytes()).await.map_err(broken)?;
                text.clear();
            }
            if !more {
                events.shutdown().await.map_err(broken)?;
                return Ok::<u64, String>(sent);
            }
        }
    };
    let mut sending = std::pin::pin!(sending);
    let (mut sent, mut acknowledged) = (None, 0);
    while sent != Some(acknowledged) {
        let line = tokio::select! {
            done = sending.as_mut(), if sent.is_none() => {
                sent = Some(done?);
                continue;
            }
            line = answer_line(&mut answers) => line?,
        };
        let Some(n) = line.strip_prefix("ack ").and_then(|n| n.parse::<u64>().ok()).filter(|n| *n >= acknowledged) else {
            return Err(format!("the agent says {line:?}"));
        };
        // A receiver that is gone means that the demo is being given up.
        durable.send(n - acknowledged).await.map_err(|_| "given up".to_owned())?;
        acknowledged = n;
    }
    Ok(())
}

/// The next line. May be dropped while it waits, without losing a piece of one.
async fn answer_line(answers: &mut Lines<BufReader<OwnedReadHalf>>) -> Result<String, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answers.next_line()).await {
        Err(_) => Err(format!("the agent says nothing for {ANSWER_TIMEOUT:?}")),
        Ok(Err(error)) => Err(format!("the socket broke: {error}")),
        Ok(Ok(None)) => Err("the agent closed the socket before all was acknowledged".into()),
        Ok(Ok(Some(line))) => Ok(line),
    }
}

/// Sends a crowd's events as ndjson batches to `POST /ingest`, one after another.
pub(super) async fn over_http(address: std::net::SocketAddr, mut crowd: Crowd, durable: mpsc::Sender<u64>) -> Result<(), String> {
    let mut connection = Http::connect(address).await?;
    loop {
        let mut body = String::new();
        let mut events = 0;
        while events < BATCH_EVENTS && crowd.write_next(&mut body) {
            body.push('\n');
            events += 1;
        }
        if events == 0 {
            return Ok(());
        }
        let body = Bytes::from(body);
        let mut attempt = 0;
        let answer = loop {
            let (status, answer) = connection.send("POST", "/ingest", body.clone()).await?;
            match status {
                200 => break answer,
                // "Not now" means that nothing of it was taken.
                429 | 503 if attempt < RETRIES_MAX => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                _ => return Err(format!("POST /ingest answers {status}: {}", String::from_utf8_lossy(&answer))),
            }
        };
        let accepted = serde_json::from_slice::<serde_json::Value>(&answer).ok().and_then(|answer| answer["accepted"].as_u64());
        if accepted != Some(events as u64) {
            return Err(format!("POST /ingest with {events} events answers {}", String::from_utf8_lossy(&answer)));
        }
        durable.send(events as u64).await.map_err(|_| "given up".to_owned())?;
    }
}

/// A kept-alive HTTP/1.1 connection to the agent.
#[derive(Debug)]
pub(super) struct Http {
    address: std::net::SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Http {
    /// Connects.
    pub(super) async fn connect(address: std::net::SocketAddr) -> Result<Self, String> {
        let broken = |error: &dyn std::fmt::Display| format!("cannot connect to {address}: {error}");
        let stream = TcpStream::connect(address).await.map_err(|error| broken(&error))?;
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "demo: HTTP connection");
            }
        });
        Ok(Self { address, sender })
    }

    /// One request and its whole answer: status and body.
    pub(super) async fn send(&mut self, method: &str, path: &str, body: Bytes) -> Result<(u16, Bytes), String> {
        let address = self.address;
        let broken = |error: &dyn std::fmt::Display| format!("{method} {path} at {address}: {error}");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", address.to_string())
            .header("content-type", "application/x-ndjson")
            .body(Full::new(body))
            .map_err(|error| broken(&error))?;
        let answer = async {
            self.sender.ready().await.map_err(|error| broken(&error))?;
            let answer = self.sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.map_err(|error| broken(&error))?.to_bytes();
            Ok((status, body))
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(broken(&format!("no answer for {ANSWER_TIMEOUT:?}"))),
        }
    }
}
