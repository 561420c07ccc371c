//! `forebay spool`: looks into a spool, checks it, prints its events, delivers a range again.
//!
//! Place: `main` hands over what the command line and the configuration say. [`place`] finds the spool and its marks,
//! `spool::inspect` reads it, and here it is printed: tables for people, JSON for programs. `verify`, `cat` and
//! `replay` have a file each.
//!
//! All but `replay` read only. Failure: one sentence on stderr with the place and the remedy, exit code 1; a command
//! line that contradicts itself is 64. A closed stdout (`| head`) is the end, not a failure.

mod cat;
pub mod place;
mod progress;
pub mod range;
mod replay;
mod verify;

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;

use self::place::{Marks, Place};
use self::range::show_ms;
use super::status::{bytes, count, seconds, write_table};
use crate::cli::{SpoolArgs, SpoolCommand};
use crate::coding::{KeyError, KeyId};
use crate::config::Config;
use crate::event::LANES;
use crate::exit::Exit;
use crate::host::Host;
use crate::spool::inspect::{Alive, InspectError, Seen, State};

/// Lanes that `stat` names.
const LANES_SHOWN: usize = 8;

/// Why a command did not do its work.
#[derive(Debug)]
enum Failed {
    /// The sentence for a person.
    Told(String),
    /// The same, and the command line is to blame.
    Usage(String),
    /// An encryption key cannot be read.
    Key(KeyError),
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Self::Told(text)
    }
}

impl From<InspectError> for Failed {
    fn from(error: InspectError) -> Self {
        Self::Told(place::told(&error))
    }
}

impl From<crate::spool::OpenError> for Failed {
    fn from(error: crate::spool::OpenError) -> Self {
        InspectError::Open(error).into()
    }
}

/// Runs one of the commands.
pub async fn run(args: SpoolArgs, config: Option<&Config>) -> ExitCode {
    let name = match &args.command {
        SpoolCommand::Ls(_) => "ls",
        SpoolCommand::Stat(_) => "stat",
        SpoolCommand::Verify(_) => "verify",
        SpoolCommand::Cat(_) => "cat",
        SpoolCommand::Replay(_) => "replay",
    };
    let outcome = match place::find(args.command.place(), config, &Host::real()).await {
        Err(error) => Err(error),
        Ok(place) => match args.command {
            SpoolCommand::Ls(args) => ls(place, args.json).await,
            SpoolCommand::Stat(args) => stat(place, args.json).await,
            SpoolCommand::Verify(args) => verify::run(place, args.json).await,
            SpoolCommand::Cat(args) => cat::run(place, args).await,
            SpoolCommand::Replay(args) => replay::run(place, args, config).await,
        },
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(Failed::Told(text)) => {
            eprintln!("forebay spool {name}: {text}");
            Exit::Failed.into()
        }
        Err(Failed::Usage(text)) => {
            eprintln!("forebay spool {name}: {text}");
            Exit::Usage.into()
        }
        Err(Failed::Key(error)) => {
            eprintln!("forebay spool {name}: {error}");
            Exit::Configuration.into()
        }
    }
}

fn print(text: &str) -> Result<Exit, Failed> {
    super::print(text).map(|()| Exit::Good).map_err(|error| Failed::Told(format!("cannot write to stdout: {error}")))
}

fn state(seen: &Seen) -> String {
    let mut text = match seen.state {
        State::Sealed => "sealed".to_owned(),
        State::Active => "active".to_owned(),
        State::Unsealed => "no index".to_owned(),
    };
    if seen.rewritten {
        text.push_str(", rewritten");
    }
    if seen.header_damaged {
        text.push_str(", header damaged");
    }
    if seen.damage > 0 {
        text.push_str(&format!(", {} damaged", count(seen.damage)));
    }
    if let Some(coding) = seen.coding {
        text.push_str(if coding.compressed { ", zstd" } else { "" });
        if let Some(key) = coding.encryption_key {
            text.push_str(&format!(", key {}", KeyId(key)));
        }
    }
    text
}

async fn ls(place: Place, json: bool) -> Result<Exit, Failed> {
    let marks = place.marks().await;
    let checkpoint = marks.checkpoint();
    let heads = place.spool.heads()?;
    let (bar, read) = (progress::bar(heads.iter().map(|head| head.file_bytes).sum(), true), place.spool.bytes_read());
    let title = place.title();
    let (stream, dir) = (place.spool.stream().to_owned(), place.spool.dir().to_owned());
    let work = move || place.spool.segments(&heads, &checkpoint, None);
    let rows = progress::watched(&bar, read, work).await?;
    if json {
        let segments: Vec<_> = rows.iter().map(|(seen, alive)| segment_json(seen, alive.events)).collect();
        return print(&format!("{:#}\n", json!({"stream": stream, "dir": dir, "marks": marks.json(), "segments": segments})));
    }
    let mut out = format!("{title}\n{}\n", marks.line());
    if rows.is_empty() {
        out.push_str("no segments: nothing was ever accepted here\n");
        return print(&out);
    }
    let names = ["segment", "base", "end", "events", "pending", "bytes", "created", "last event", "state"];
    let mut table = vec![names.map(str::to_owned).to_vec()];
    table.extend(rows.iter().map(|(seen, alive)| {
        vec![
            seen.segment.id.to_string(),
            count(seen.segment.base.0),
            count(seen.segment.extent().end.0),
            count(seen.events),
            count(alive.events),
            bytes(seen.file_bytes),
            show_ms(seen.segment.created_ms),
            seen.last_ms.map_or_else(|| "-".to_owned(), show_ms),
            state(seen),
        ]
    }));
    write_table(&mut out, &table, 1).expect("a String takes all");
    print(&out)
}

fn segment_json(seen: &Seen, pending: u64) -> serde_json::Value {
    let end = seen.segment.extent().end.0;
    json!({
        "id": seen.segment.id.0, "path": seen.segment.path, "base": seen.segment.base.0, "end": end, "events": seen.events,
        "pending": pending, "bytes": seen.file_bytes, "created_ms": seen.segment.created_ms, "last_event_ms": seen.last_ms,
        "state": seen.state, "rewritten": seen.rewritten, "damaged": seen.damage, "header_damaged": seen.header_damaged,
        "content_bytes": seen.segment.extent().content_bytes(),
        "compressed": seen.coding.is_some_and(|coding| coding.compressed),
        "encryption_key": seen.coding.and_then(|coding| coding.encryption_key).map(|key| KeyId(key).to_string()),
    })
}

/// What `stat` counts.
struct Counted {
    rows: Vec<(Seen, Alive)>,
    lanes: Box<[u64; LANES]>,
}

async fn stat(place: Place, json: bool) -> Result<Exit, Failed> {
    let marks = place.marks().await;
    let checkpoint = marks.checkpoint();
    let heads = place.spool.heads()?;
    let bar = progress::bar(heads.iter().map(|head| head.file_bytes).sum(), true);
    let (title, host) = (place.title(), place.host.clone());
    let (stream, dir) = (place.spool.stream().to_owned(), place.spool.dir().to_owned());
    let durable = checkpoint.durable;
    let counted = progress::watched(&bar, place.spool.bytes_read(), move || {
        let mut counted = Counted { rows: Vec::new(), lanes: Box::new([0; LANES]) };
        counted.rows = place.spool.segments(&heads, &checkpoint, Some(&mut counted.lanes))?;
        Ok::<_, Failed>(counted)
    })
    .await?;
    let pending: u64 = counted.rows.iter().map(|(_, alive)| alive.events).sum();
    let pending_bytes: u64 = counted.rows.iter().map(|(_, alive)| alive.bytes).sum();
    let file_bytes: u64 = counted.rows.iter().map(|(seen, _)| seen.file_bytes).sum();
    let oldest = counted.rows.iter().filter_map(|(_, alive)| alive.oldest).min_by_key(|(position, _)| *position);
    let age = oldest.map(|(_, ms)| host.clock.wall_ms().saturating_sub(ms) as f64 / 1e3);
    let next = counted.rows.last().map_or(0, |(seen, _)| seen.segment.extent().end.0).max(durable.0);
    let account = Sum::of(&marks, next, pending);
    let mut lanes: Vec<(usize, u64)> = counted.lanes.iter().copied().enumerate().filter(|(_, events)| *events > 0).collect();
    lanes.sort_by_key(|(lane, events)| (std::cmp::Reverse(*events), *lane));
    if json {
        let segments: Vec<_> = counted
            .rows
            .iter()
            .map(|(seen, alive)| {
                let mut segment = segment_json(seen, alive.events);
                segment["pending_bytes"] = json!(alive.bytes);
                segment["alive"] = json!(share(alive.events, seen.events));
                segment
            })
            .collect();
        let lanes: Vec<_> = lanes.iter().map(|(lane, events)| json!({"lane": lane, "pending": events})).collect();
        let oldest = oldest.map(|(position, ms)| json!({"position": position.0, "time": show_ms(ms), "age_seconds": age}));
        let all = json!({
            "stream": stream, "dir": dir, "marks": marks.json(), "account": account.json(), "pending": pending,
            "pending_bytes": pending_bytes, "bytes": file_bytes, "oldest_pending": oldest, "segments": segments, "lanes": lanes,
        });
        return print(&format!("{all:#}\n"));
    }
    let mut out = format!("{title}\n{}\n\n", marks.line());
    account.write(&mut out);
    let told = (|| {
        writeln!(out, "pending by the marks: {} events, {} of frames", count(pending), bytes(pending_bytes))?;
        if let (Some((position, ms)), Some(age)) = (oldest, age) {
            writeln!(out, "oldest pending: position {}, received {}, {} ago", count(position.0), show_ms(ms), seconds(age))?;
        }
        writeln!(out, "files: {} segments, {}\n", count(counted.rows.len() as u64), bytes(file_bytes))?;
        let mut table =
            vec![["segment", "events", "pending", "alive", "pending bytes", "bytes", "state"].map(str::to_owned).to_vec()];
        table.extend(counted.rows.iter().map(|(seen, alive)| {
            vec![
                seen.segment.id.to_string(),
                count(seen.events),
                count(alive.events),
                format!("{:.1} %", 100.0 * share(alive.events, seen.events)),
                bytes(alive.bytes),
                bytes(seen.file_bytes),
                state(seen),
            ]
        }));
        write_table(&mut out, &table, 1)?;
        if !lanes.is_empty() {
            writeln!(out, "\nlanes with the most pending, of {} that have any:", count(lanes.len() as u64))?;
            for (lane, events) in lanes.iter().take(LANES_SHOWN) {
                writeln!(out, "  lane {lane:>4}  {}", count(*events))?;
            }
        }
        Ok::<_, std::fmt::Error>(())
    })();
    told.expect("a String takes all");
    print(&out)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The balance, as the agent tells it or as the files and the marks imply it.
#[derive(Clone, Copy, Debug)]
struct Sum {
    accepted: u64,
    delivered: u64,
    pending: u64,
    dead: u64,
    expired: u64,
    dropped: u64,
    by: &'static str,
}

impl Sum {
    fn of(marks: &Marks, next: u64, pending: u64) -> Self {
        if let Some(account) = marks.known.account {
            return Self {
                accepted: account.accepted,
                delivered: account.delivered,
                pending: account.pending(),
                dead: account.dead,
                expired: account.expired,
                dropped: account.dropped,
                by: "the agent",
            };
        }
        let checkpoint = marks.checkpoint();
        let (dead, expired, dropped) = (checkpoint.dead, checkpoint.expired, checkpoint.dropped);
        let delivered = next.saturating_sub(pending + dead + expired + dropped);
        Self { accepted: next, delivered, pending, dead, expired, dropped, by: "files and marks" }
    }

    fn json(&self) -> serde_json::Value {
        let Self { accepted, delivered, pending, dead, expired, dropped, by } = self;
        json!({
            "accepted": accepted, "delivered": delivered, "pending": pending, "dead": dead, "expired": expired,
            "dropped": dropped, "by": by,
        })
    }

    fn write(&self, out: &mut String) {
        let [accepted, delivered, pending] = [self.accepted, self.delivered, self.pending].map(count);
        let [dead, expired, dropped] = [self.dead, self.expired, self.dropped].map(count);
        let line = writeln!(
            out,
            "accepted {accepted} = delivered {delivered} + pending {pending} + dead {dead} + expired {expired} + dropped {dropped}   (by {})",
            self.by
        );
        line.expect("a String takes all");
    }
}
