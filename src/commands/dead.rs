//! `forebay dead`: lists, shows, retries and purges what was set aside.
//!
//! Place: called by `main`. Letters are read straight from the spool's directory, with an agent running on it or not. To
//! change something the writer of the store is needed: the running agent, asked over its admin listener, or, where the
//! directory's lock is free, this process itself, which holds the lock meanwhile and appends to the spool as an agent
//! would, through the same recovery.
//!
//! Data and keys of events are printed because a person asks for them here; they are escaped for terminals, and never
//! logged. A retried event comes behind all that its key received meanwhile; where that breaks the order of a key, and where it
//! cannot be known, it is said (`order`).
//!
//! Failure: one sentence on stderr with the place and the remedy, exit code 1; a wrong question 64. What was done before an
//! error stays done, and is told.

mod order;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use self::order::Order;
use super::spool::place;
use super::status::{StatusError, call, count};
use super::{asked, print};
use crate::admin::dead::{Ask, PURGE, RETRY};
use crate::admin::spool::SpoolList;
use crate::agent::spool_dir;
use crate::cli::{DeadArgs, DeadCommand, DeadFilter};
use crate::config::{self, Config};
use crate::event::Position;
use crate::exit::Exit;
use crate::host::{DirLock, Host};
use crate::spool::append::{self, AppendError, Appender, WithoutMarks};
use crate::spool::dead::desk::{DeadLetters, Done, Selection};
use crate::spool::dead::{DeadStore, Letter};
use crate::spool::inspect::{InspectError, SpoolDir};
use crate::spool::{self, OpenError, SpoolOptions};

/// The longest one ask of a running agent may take: it waits for its disk.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);

/// Characters of data that a line of `ls` shows.
const PREVIEW_CHARS: usize = 60;

/// One stream's spool on this machine.
struct Place {
    stream: String,
    dir: PathBuf,
    /// The machine, with the keys to read it.
    host: Host,
}

impl Place {
    fn letters(&self) -> PathBuf {
        spool::dead_dir(&self.dir)
    }
}

type Told<T> = Result<T, (Exit, String)>;

fn failed(text: impl Into<String>) -> (Exit, String) {
    (Exit::Failed, text.into())
}

/// Does what the command line asks for.
pub async fn run(args: DeadArgs, config: Option<&Config>) -> ExitCode {
    let Some(config) = config else {
        eprintln!("forebay dead: no configuration was read");
        return Exit::Configuration.into();
    };
    let found = where_the_agent_has_them(&args, config).await;
    let config = found.as_ref().unwrap_or(config);
    let result = match &args.what {
        DeadCommand::Ls(ls) => list(&args, config, &ls.filter, ls.limit, ls.json),
        DeadCommand::Show(show) => show_one(&args, config, show.number, show.json),
        DeadCommand::Retry(retry) => change(&args, config, &retry.filter, retry.limit, Change::Retry, retry.json).await,
        DeadCommand::Purge(purge) => {
            change(&args, config, &purge.filter, None, Change::Purge { yes: purge.yes }, purge.json).await
        }
    };
    match result {
        Ok(()) => Exit::Good.into(),
        Err((exit, text)) => {
            eprintln!("forebay dead: {text}");
            exit.into()
        }
    }
}

// === where ===

/// The configuration with the place of the spools of the agent that answers at the admin address, where no place was named and
/// none lie where the configuration says: so those of `run --dev` are found. `None`: the configuration is right as it is.
async fn where_the_agent_has_them(args: &DeadArgs, config: &Config) -> Option<Config> {
    if args.spool_dir.is_some() || places(args, config).is_ok() {
        return None;
    }
    let list = place::get::<SpoolList>(config.listen.admin?, "/spool").await.ok()?;
    let root = list.spools.first()?.dir.parent()?.to_owned();
    let mut config = config.clone();
    config.spool.dir = root;
    Some(config)
}

/// The spools that are meant: the one named, those configured, or those that are there.
fn places(args: &DeadArgs, config: &Config) -> Told<Vec<Place>> {
    let root = &config.spool.dir;
    let mut names: Vec<String> = match &args.stream {
        Some(name) => vec![name.clone()],
        None => config.streams.iter().map(|stream| stream.name.clone()).collect(),
    };
    if names.is_empty() {
        names =
            Host::real().files.list(root).map_err(|error| failed(format!("listing {} (spool.dir): {error}", root.display())))?;
    }
    let mut found = Vec::new();
    for name in &names {
        let dir = spool_dir(root, name);
        let stream = match SpoolDir::open(&Host::real(), &dir) {
            Ok(spool) => Some(spool.stream().to_owned()),
            Err(InspectError::NoDirectory(_) | InspectError::NotASpool(_)) => None,
            // Among the spools other things may lie, a socket for one.
            Err(InspectError::Open(OpenError::Io { error, .. })) if error.kind() == io::ErrorKind::NotADirectory => None,
            Err(error) => return Err(failed(error.to_string())),
        };
        if let Some(stream) = stream {
            let coding = config.coding(&stream).map_err(|error| (Exit::Configuration, error.to_string()))?;
            found.push(Place { stream, dir, host: coding.host(&Host::real()) });
        }
    }
    if found.is_empty() {
        let what = args.stream.as_ref().map_or_else(|| "no spool".to_owned(), |name| format!("no spool of stream {name}"));
        return Err(failed(format!("{what} lies in {} (spool.dir); name another place with --spool-dir", root.display())));
    }
    Ok(found)
}

fn only_one(args: &DeadArgs, config: &Config) -> Told<Place> {
    let mut found = places(args, config)?;
    if found.len() > 1 {
        let names: Vec<&str> = found.iter().map(|place| place.stream.as_str()).collect();
        return Err((Exit::Usage, format!("there are several streams ({}); name one with --stream", names.join(", "))));
    }
    found.pop().ok_or_else(|| failed("no spool"))
}

fn selection(filter: &DeadFilter) -> Selection {
    let now_ms = Host::real().clock.wall_ms();
    Selection {
        numbers: filter.numbers.clone(),
        reason: filter.reason,
        key: filter.key.clone(),
        died_before_ms: filter.older_than.map(|age| now_ms.saturating_sub(age.as_millis() as u64)),
        ..Selection::default()
    }
}

/// Letters of a place that are meant and not removed, until `f` breaks off.
fn each(place: &Place, selection: &Selection, f: &mut dyn FnMut(Letter) -> ControlFlow<()>) -> Told<()> {
    let view = DeadStore::view(&place.host, &place.letters()).map_err(|error| failed(error.to_string()))?;
    let visited = view.visit(selection.first(), &mut |letter, removal| {
        if removal.is_some() || !selection.fits(&letter) { ControlFlow::Continue(()) } else { f(letter) }
    });
    visited.map_err(|error| failed(format!("reading {}: {error}", place.letters().display())))
}

// === ls and show ===

fn list(args: &DeadArgs, config: &Config, filter: &DeadFilter, limit: u64, as_json: bool) -> Told<()> {
    let selection = selection(filter);
    let mut out = String::new();
    let (mut shown, mut more) = (0, false);
    let places = places(args, config)?;
    for place in &places {
        let mut written = Ok(());
        each(place, &selection, &mut |letter| {
            if limit > 0 && shown == limit {
                more = true;
                return ControlFlow::Break(());
            }
            if shown == 0 && !as_json {
                out.push_str("number   reason    died                  attempts  bytes   key                   data\n");
            }
            shown += 1;
            out.push_str(&if as_json {
                to_json(&place.stream, &letter) + "\n"
            } else {
                line(&letter, places.len() > 1, &place.stream)
            });
            if out.len() > 64 << 10 {
                written = print(&std::mem::take(&mut out));
            }
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        written.map_err(|error| failed(format!("cannot write to stdout: {error}")))?;
    }
    if shown == 0 && !as_json {
        out.push_str("no dead letters\n");
    }
    print(&out).map_err(|error| failed(format!("cannot write to stdout: {error}")))?;
    if more {
        eprintln!("there are more; --limit 0 shows all");
    }
    Ok(())
}

fn line(letter: &Letter, several: bool, stream: &str) -> String {
    let preview: String = String::from_utf8_lossy(&letter.data).chars().take(PREVIEW_CHARS).collect();
    let mut text = format!(
        "{:<8} {:<9} {:<21} {:>8}  {:>6}  {:<20}  {}",
        letter.number,
        letter.reason.label(),
        time(letter.died_ms),
        letter.attempts,
        letter.data.len(),
        visible(&letter.key),
        visible(&preview)
    );
    if several {
        text.push_str("  ");
        text.push_str(stream);
    }
    text + "\n"
}

/// Control characters would speak to the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn time(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{ms} ms"), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn to_json(stream: &str, letter: &Letter) -> String {
    let (data, base64) = match std::str::from_utf8(&letter.data) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(&letter.data))),
    };
    let mut object = json!({
        "stream": stream,
        "number": letter.number,
        "reason": letter.reason,
        "position": letter.position.0,
        "key": letter.key,
        "explicit_hash_key": letter.explicit.then(|| letter.hash.0.to_string()),
        "received": time(letter.received_ms),
        "received_ms": letter.received_ms,
        "died": time(letter.died_ms),
        "died_ms": letter.died_ms,
        "attempts": letter.attempts,
        "detail": letter.detail,
    });
    match (data, base64) {
        (Some(text), _) => object["data"] = text.into(),
        (_, Some(text)) => object["data_base64"] = text.into(),
        _ => {}
    }
    object.to_string()
}

fn show_one(args: &DeadArgs, config: &Config, number: u64, as_json: bool) -> Told<()> {
    let place = only_one(args, config)?;
    let selection = Selection { numbers: vec![number], ..Selection::default() };
    let mut found = None;
    each(&place, &selection, &mut |letter| {
        found = Some(letter);
        ControlFlow::Break(())
    })?;
    let Some(letter) = found else {
        return Err(failed(format!("stream {} has no dead letter {number}; `forebay dead ls` lists them", place.stream)));
    };
    let text = if as_json { to_json(&place.stream, &letter) + "\n" } else { page(&place.stream, &letter) };
    print(&text).map_err(|error| failed(format!("cannot write to stdout: {error}")))
}

fn page(stream: &str, letter: &Letter) -> String {
    let mut text = String::new();
    let rows = [
        ("stream", stream.to_owned()),
        ("number", letter.number.to_string()),
        ("reason", format!("{}: {}", letter.reason, visible(&letter.detail))),
        ("position", letter.position.to_string()),
        ("key", visible(&letter.key)),
        ("hash key", if letter.explicit { format!("{} (explicit)", letter.hash.0) } else { letter.hash.0.to_string() }),
        ("received", time(letter.received_ms)),
        ("died", time(letter.died_ms)),
        ("attempts", letter.attempts.to_string()),
    ];
    for (name, value) in rows {
        writeln!(text, "{name:<9} {value}").expect("writing to a String does not fail");
    }
    match std::str::from_utf8(&letter.data) {
        Ok(data) => writeln!(
            text,
            "data      {} bytes\n\n{}",
            letter.data.len(),
            data.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}")
        ),
        Err(_) => {
            let data = base64::engine::general_purpose::STANDARD.encode(&letter.data);
            writeln!(text, "data      {} bytes, not UTF-8, as base64\n\n{data}", letter.data.len())
        }
    }
    .expect("writing to a String does not fail");
    text
}

// === retry and purge ===

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Retry,
    Purge { yes: bool },
}

async fn change(
    args: &DeadArgs,
    config: &Config,
    filter: &DeadFilter,
    limit: Option<u64>,
    what: Change,
    as_json: bool,
) -> Told<()> {
    if filter.is_empty() && !filter.all {
        return Err((Exit::Usage, "say which letters: their numbers, --reason, --key, --older-than, or --all".into()));
    }
    let place = only_one(args, config)?;
    let mut selection = selection(filter);
    let mut meant = 0_u64;
    each(&place, &selection, &mut |_| {
        meant += 1;
        ControlFlow::Continue(())
    })?;
    let meant = limit.map_or(meant, |limit| meant.min(limit));
    if let Change::Purge { yes: false } = what
        && meant > 0
        && !confirmed(meant, &place.stream)?
    {
        return Err(failed("nothing was purged"));
    }
    let bar = if meant > 0 && io::stderr().is_terminal() && !as_json { ProgressBar::new(meant) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} letters") {
        bar.set_style(style);
    }
    // Found out before the first comes back.
    let stream = config.streams.iter().find(|stream| stream.name == place.stream);
    let ordered = stream.is_none_or(|stream| stream.order == config::Order::Key);
    let order = (what == Change::Retry && ordered).then(|| Order::look(&place, &selection, limit));
    let mut agent = Worker::open(args, config, &place)?;
    let mut total = Done::default();
    let error = loop {
        selection.limit = limit.map(|limit| limit - total.done);
        match agent.work(what, &selection).await {
            Ok(done) => {
                total.done += done.done;
                total.refused += done.refused;
                total.refusals.extend(done.refusals);
                bar.set_position(total.done + total.refused);
                match done.next.filter(|_| limit.is_none_or(|limit| total.done < limit)) {
                    Some(next) => selection.from = next,
                    None => break None,
                }
            }
            Err(error) => break Some(error),
        }
    };
    bar.finish_and_clear();
    agent.close();
    tell(&place, what, &total, order.as_ref(), error.as_deref(), as_json)?;
    match error {
        Some(error) => Err(failed(error)),
        None if total.refused > 0 => Err(failed(format!("{} that cannot be retried stay", dead_letters(total.refused)))),
        None => Ok(()),
    }
}

fn tell(place: &Place, what: Change, total: &Done, order: Option<&Order>, error: Option<&str>, as_json: bool) -> Told<()> {
    let verb = if what == Change::Retry { "retried" } else { "purged" };
    let text = if as_json {
        let mut object = json!({"stream": place.stream, verb: total.done, "refused": total.refused, "refusals": total.refusals, "error": error});
        if let Some(order) = order {
            object["order"] = order.json();
        }
        object.to_string() + "\n"
    } else {
        let mut text = format!("{verb} {} of stream {}\n", dead_letters(total.done), place.stream);
        for refusal in &total.refusals {
            writeln!(text, "  {} stays: {}", refusal.number, refusal.reason).expect("writing to a String does not fail");
        }
        text.push_str(&order.map(Order::text).unwrap_or_default());
        text
    };
    print(&text).map_err(|error| failed(format!("cannot write to stdout: {error}")))
}

fn confirmed(meant: u64, stream: &str) -> Told<bool> {
    match asked(&format!("Purge {} of stream {stream} for good?", dead_letters(meant))) {
        Ok(Some(yes)) => Ok(yes),
        Ok(None) => Err((Exit::Usage, "purging is for good; without a terminal to ask on, say --yes".into())),
        Err(error) => Err(failed(format!("cannot ask: {error}"))),
    }
}

/// `1 dead letter`, `1,150 dead letters`.
fn dead_letters(n: u64) -> String {
    format!("{} dead letter{}", count(n), if n == 1 { "" } else { "s" })
}

/// Who changes the store: the agent that runs on it, or we in its place.
enum Worker {
    Agent { admin: SocketAddr, stream: String },
    Ourselves(Box<Stopped>),
}

/// A stopped agent's spool, locked.
struct Stopped {
    letters: DeadLetters,
    /// Opened with the first letter that is retried.
    spool: Option<Appender>,
    host: Host,
    options: SpoolOptions,
    lock: DirLock,
}

impl Worker {
    fn open(args: &DeadArgs, config: &Config, place: &Place) -> Told<Self> {
        let options = SpoolOptions {
            stream: place.stream.clone(),
            dir: place.dir.clone(),
            max_bytes: config.spool.max_bytes,
            segment_bytes: config.spool.segment_bytes,
        };
        let lock = match append::lock(&options) {
            Ok(lock) => Some(lock),
            Err(OpenError::Locked { .. }) => None,
            Err(error) => return Err(failed(error.to_string())),
        };
        let Some(lock) = lock else {
            let stream = place.stream.clone();
            let Some(admin) = config.listen.admin else {
                return Err((
                    Exit::Configuration,
                    format!(
                        "an agent runs on {}, and listen.admin is off in this configuration; name its admin address with --admin ADDR",
                        args.stream.as_ref().unwrap_or(&stream)
                    ),
                ));
            };
            return Ok(Self::Agent { admin, stream });
        };
        let host = place.host.clone();
        // Before the first letter is written there, as before the first event.
        spool::prepare(&host, &options).map_err(|error| failed(error.to_string()))?;
        let letters = DeadLetters::open(&host, &place.letters(), config.spool.dead_max_bytes, &Arc::default());
        let letters = letters.map_err(|error| failed(error.to_string()))?;
        Ok(Self::Ourselves(Box::new(Stopped { letters, spool: None, host, options, lock })))
    }

    async fn work(&mut self, what: Change, selection: &Selection) -> Result<Done, String> {
        match self {
            Self::Agent { admin, stream } => {
                let ask = Ask { stream: Some(stream.clone()), selection: selection.clone() };
                let path = if what == Change::Retry { RETRY } else { PURGE };
                let asked = tokio::time::timeout(ASK_TIMEOUT, post(*admin, path, &ask)).await;
                asked.unwrap_or_else(|_| Err(format!("the agent at {admin} did not answer within {} s", ASK_TIMEOUT.as_secs())))
            }
            Self::Ourselves(stopped) => {
                let Stopped { letters, spool, host, options, lock } = &mut **stopped;
                match what {
                    Change::Purge { .. } => letters.purge(selection),
                    Change::Retry => letters.retry(selection, &mut |letters| {
                        // Lost marks are no reason to refuse: what the letters hold does not depend on them.
                        let spool = match spool {
                            Some(spool) => spool,
                            None => spool.insert(
                                Appender::open(host, options, lock, WithoutMarks::GoOn).map_err(|error| unwritten(&error))?,
                            ),
                        };
                        write(spool, letters).map_err(|error| unwritten(&error))
                    }),
                }
            }
        }
    }

    fn close(self) {
        let Self::Ourselves(stopped) = self else { return };
        if let Some(Err(error)) = stopped.spool.map(Appender::close) {
            tracing::warn!(%error, "the end of what was retried could not be noted; the next agent finds it by reading");
        }
    }
}

/// Appends letters' events to a stopped agent's spool, as that agent would.
fn write(spool: &mut Appender, letters: &[Letter]) -> Result<Position, AppendError> {
    let mut frames = Vec::new();
    for letter in letters {
        spool::frame::encode(&mut frames, &letter.key, letter.hash, letter.explicit, &letter.data);
    }
    spool.commit(frames, letters.len() as u64)
}

fn unwritten(error: &AppendError) -> String {
    match error {
        AppendError::Full(_) => {
            "the spool is full: letters can be retried when Kinesis has taken events, or with a higher spool.max_bytes".into()
        }
        other => other.to_string(),
    }
}

/// The most that an agent's answer may hold.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Asks a running agent.
async fn post(admin: SocketAddr, path: &str, ask: &Ask) -> Result<Done, String> {
    let broken =
        |error: &dyn std::fmt::Display| format!("the connection to {admin} broke ({error}); is it the agent's listen.admin?");
    let body = serde_json::to_vec(ask).map_err(|error| error.to_string())?;
    let request = Request::post(path)
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("a constant path makes a valid request");
    let (status, body) = call(admin, request, ANSWER_BYTES_MAX).await.map_err(|error| match error {
        StatusError::NoAgent(_, error) => format!(
            "an agent runs on this spool, but none answers at {admin} ({error}); is its listen.admin this address? --admin names another"
        ),
        StatusError::Broken(_, error) => broken(&error),
        other => other.to_string(),
    })?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|error| broken(&error));
    }
    let told: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Err(told["error"].as_str().map_or_else(|| format!("the agent at {admin} answers {status}"), str::to_owned))
}
