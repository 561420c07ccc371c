//! `/spool…` of the admin listener: where the spools are, the last saved marks, and replay.
//!
//! Place: for `forebay spool` beside a running agent, whose store of marks no other process can open. `agent` hands in
//! a [`SpoolDoor`] for each stream. Replay reads the agent's own files as the tools do (`spool::inspect`) and takes
//! the events in through the same door as all others: `admit`, `submit`, receipt; so they are accepted, get new
//! positions, and are counted as duplicates by request.
//!
//! One call replays one [`SLICE_BYTES`] at most and tells where to go on; the caller asks until its range is through.
//! So a call ends soon, a caller that goes away leaves nothing running, and memory is bounded.
//!
//! Failure: an unknown stream is 404 with the known ones; a spool that takes nothing now is 503; both say the remedy.
//! Absent on purpose: event data in answers. Who may read it reads the files.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::{Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::report::AccountReport;
use super::{Answer, json_answer};
use crate::event::{LANES, Position};
use crate::host::Host;
use crate::metrics::locked;
use crate::spool::SpoolHandle;
use crate::spool::frame::Frame;
use crate::spool::inspect::{InspectError, Select, SpoolDir};

/// Frame bytes that one call replays at most, unless a single event is larger.
pub const SLICE_BYTES: usize = 4 << 20;

/// The longest a replay waits for room in the spool before it answers 503.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(3);

/// The largest body of a replay.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What these paths answer to, for those who ask for others.
pub const ROUTES: [&str; 3] = ["GET /spool", "GET /spool/STREAM/marks", "POST /spool/STREAM/replay"];

/// One stream's spool, for this door.
#[derive(Clone, Debug)]
pub struct SpoolDoor {
    /// The stream as configured.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Where events are taken in.
    pub handle: SpoolHandle,
    /// Files and clock.
    pub host: Host,
}

/// `GET /spool`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpoolList {
    /// One for each stream.
    pub spools: Vec<SpoolPlace>,
}

/// Where a spool is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpoolPlace {
    /// The name in the paths: the directory's.
    pub stream: String,
    /// The directory, absolute where the system can tell.
    pub dir: PathBuf,
}

/// `GET /spool/STREAM/marks`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MarksReport {
    /// When the marks were saved, wall clock ms.
    pub saved_ms: u64,
    /// The agent's wall clock, ms.
    pub now_ms: u64,
    /// Position after the last event that was durable then.
    pub durable: u64,
    /// Dead letters, expired and dropped events then.
    pub dead: u64,
    /// Expired events then.
    pub expired: u64,
    /// Dropped events then.
    pub dropped: u64,
    /// For each of 1,024 lanes the first position that was not settled.
    pub marks: Vec<u64>,
    /// The balance now.
    pub account: AccountReport,
}

/// The body of `POST /spool/STREAM/replay`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayAsk {
    /// First position.
    pub from: u64,
    /// The position after the last.
    pub to: u64,
    /// Received at or after, wall clock ms.
    #[serde(default)]
    pub from_ms: Option<u64>,
    /// Received before, wall clock ms.
    #[serde(default)]
    pub to_ms: Option<u64>,
    /// With this key.
    #[serde(default)]
    pub key: Option<String>,
}

/// Its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Events that were taken in again and are durable.
    pub events: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// Where to go on; the range is through when it is `to`.
    pub next: u64,
}

impl SpoolDoor {
    fn plain_name(&self) -> String {
        self.dir.file_name().map_or_else(|| self.name.clone(), |name| name.to_string_lossy().into_owned())
    }

    fn marks(&self) -> Option<MarksReport> {
        let metrics = &self.handle.shared().metrics;
        // The account first: it may be a little older than the marks, never the other way round.
        let account = (*locked(&metrics.account)).into();
        let (saved_ms, saved) = locked(&metrics.saved_marks).clone()?;
        Some(MarksReport {
            saved_ms,
            now_ms: self.host.clock.wall_ms(),
            durable: saved.durable.0,
            dead: saved.dead,
            expired: saved.expired,
            dropped: saved.dropped,
            marks: saved.marks.iter().map(|mark| mark.0).collect(),
            account,
        })
    }

    async fn replay(&self, ask: ReplayAsk) -> Result<Replayed, (StatusCode, String)> {
        let bad = |text: &str| Err((StatusCode::BAD_REQUEST, text.to_owned()));
        if ask.from >= ask.to {
            return bad("the range is empty: `to` must be after `from`");
        }
        let durable = self.handle.shared().tail.durable();
        let door = self.clone();
        let slice = tokio::task::spawn_blocking(move || read_slice(&door.host, &door.dir, &ask, durable)).await;
        let slice = match slice {
            Ok(Ok(slice)) => slice,
            Ok(Err(error)) => return Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
            Err(error) => return Err((StatusCode::INTERNAL_SERVER_ERROR, format!("reading the spool: {error}"))),
        };
        let mut done = Replayed { next: slice.next, ..Replayed::default() };
        if slice.frames.is_empty() {
            return Ok(done);
        }
        let unavailable = |text: &str| (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
        let stopping = || unavailable("the agent is stopping; replay on the stopped agent's directory, or after its start");
        let permit = match tokio::time::timeout(ADMIT_TIMEOUT, self.handle.admit(slice.frames.len())).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(stopping()),
            Err(_) => {
                return Err(unavailable(
                    "the spool takes nothing now (full, or its disk is slow); forebay status says why. Try again later",
                ));
            }
        };
        let mut batch = self.handle.batch();
        let mut rest = &slice.frames[..];
        while let Some(frame) = Frame::parse(rest) {
            let key = std::str::from_utf8(frame.key_bytes()).expect("the frame was checked when it was read");
            batch.push(key, frame.explicit_hash().then(|| frame.hash()), frame.data());
            done.events += 1;
            done.bytes += frame.data().len() as u64;
            rest = &rest[frame.len()..];
        }
        let receipt = self.handle.submit(batch, permit);
        receipt.durable().await.map_err(|_| stopping())?;
        *locked(&self.handle.shared().metrics.duplicated).entry("replay").or_default() += done.events;
        Ok(done)
    }
}

/// Whole frames of one slice, one after the other, and where the next begins.
struct Slice {
    frames: Vec<u8>,
    next: u64,
}

fn read_slice(host: &Host, dir: &std::path::Path, ask: &ReplayAsk, durable: Position) -> Result<Slice, InspectError> {
    let spool = SpoolDir::open(host, dir)?;
    // One file a call, so that a call ends soon also when little of it is wanted.
    let heads = spool.heads()?;
    let bases = heads.iter().filter_map(|head| head.assumed).map(|header| header.base.0);
    let end = bases.filter(|base| *base > ask.from).min().unwrap_or(u64::MAX).min(ask.to);
    let select = Select {
        from: Position(ask.from),
        to: Position(end.min(durable.0)),
        from_ms: ask.from_ms,
        to_ms: ask.to_ms,
        key: ask.key.clone(),
        pending: None,
    };
    let mut slice = Slice { frames: Vec::new(), next: end };
    spool.walk::<InspectError>(&select, durable, |met| {
        if !slice.frames.is_empty() && slice.frames.len() + met.frame.len() > SLICE_BYTES {
            slice.next = met.frame.position().0;
            return Ok(ControlFlow::Break(()));
        }
        slice.frames.extend_from_slice(met.frame.bytes());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(slice)
}

/// Answers a path that begins with `/spool`; the caller was checked before.
pub(super) async fn respond<B>(doors: &[SpoolDoor], request: Request<B>) -> Answer
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches("/spool").split('/').filter(|part| !part.is_empty()).collect();
    let method = request.method().clone();
    let wrong_method = |allowed: &str| {
        let text = format!("{path} answers to {allowed} only");
        json_answer(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": text, "allowed": allowed}))
    };
    let door = |name: &str| doors.iter().find(|door| door.plain_name() == name);
    let unknown = || {
        let known: Vec<String> = doors.iter().map(SpoolDoor::plain_name).collect();
        json_answer(StatusCode::NOT_FOUND, &json!({"error": "this agent has no such stream", "known": known}))
    };
    match parts[..] {
        [] if method == Method::GET => {
            let place = |door: &SpoolDoor| SpoolPlace {
                stream: door.plain_name(),
                dir: std::path::absolute(&door.dir).unwrap_or_else(|_| door.dir.clone()),
            };
            json_answer(StatusCode::OK, &SpoolList { spools: doors.iter().map(place).collect() })
        }
        [] => wrong_method("GET"),
        [name, "marks"] => match door(name) {
            None => unknown(),
            Some(_) if method != Method::GET => wrong_method("GET"),
            Some(door) => match door.marks() {
                Some(marks) => json_answer(StatusCode::OK, &marks),
                None => json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "no marks were saved yet; try again"})),
            },
        },
        [name, "replay"] => {
            let door = match door(name) {
                None => return unknown(),
                Some(_) if method != Method::POST => return wrong_method("POST"),
                Some(door) => door.clone(),
            };
            let body = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return json_answer(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
            };
            let outcome = match serde_json::from_slice::<ReplayAsk>(&body) {
                // serde's words name the field and the place, never the value of a text.
                Err(error) => Err((StatusCode::BAD_REQUEST, format!("the body is no replay: {error}; needed are from and to"))),
                Ok(ask) => door.replay(ask).await,
            };
            match outcome {
                Ok(done) => json_answer(StatusCode::OK, &done),
                Err((status, error)) => json_answer(status, &json!({ "error": error })),
            }
        }
        _ => json_answer(StatusCode::NOT_FOUND, &json!({"error": "there is nothing at this path", "known": ROUTES})),
    }
}

impl From<MarksReport> for crate::checkpoint::Checkpoint {
    fn from(report: MarksReport) -> Self {
        let mut marks = Box::new([Position(0); LANES]);
        for (held, mark) in marks.iter_mut().zip(&report.marks) {
            *held = Position(*mark);
        }
        Self {
            clean: false,
            durable: Position(report.durable),
            dead: report.dead,
            expired: report.expired,
            dropped: report.dropped,
            marks,
        }
    }
}
