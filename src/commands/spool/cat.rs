//! `forebay spool cat`: prints events, as text for people or as NDJSON.
//!
//! What an event holds cannot disturb the terminal (`tail`'s rule). Lines are written as they come, through one buffer;
//! a closed stdout is the end.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write as _};
use std::ops::ControlFlow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::place::{Origin, Place};
use super::range::{select, show_ms};
use super::{Failed, progress};
use crate::cli::SpoolCatArgs;
use crate::commands::tail::printable;
use crate::exit::Exit;
use crate::spool::inspect::{Met, Walked};

#[derive(Serialize)]
struct Line<'a> {
    position: u64,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    hash: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    explicit_hash: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

fn json_line(met: &Met<'_>) -> String {
    let data = std::str::from_utf8(met.frame.data()).ok();
    let line = Line {
        position: met.frame.position().0,
        time: show_ms(met.time_ms),
        key: std::str::from_utf8(met.frame.key_bytes()).ok(),
        hash: met.frame.hash().0.to_string(),
        explicit_hash: met.frame.explicit_hash(),
        data,
        data_base64: data.is_none().then(|| STANDARD.encode(met.frame.data())),
    };
    serde_json::to_string(&line).expect("a struct of texts and numbers becomes JSON")
}

/// `120000  2026-11-20T10:00:00.123Z  u1  {"event":…}`
fn text_line(text: &mut String, met: &Met<'_>) {
    write!(text, "{}  {}  ", met.frame.position(), show_ms(met.time_ms)).expect("a String takes all");
    printable(text, met.frame.key_bytes());
    text.push_str("  ");
    printable(text, met.frame.data());
}

pub(super) async fn run(place: Place, args: SpoolCatArgs) -> Result<Exit, Failed> {
    let now_ms = place.host.clock.wall_ms();
    let mut select = select(args.range.from, args.range.to, args.range.key, now_ms).map_err(Failed::Usage)?;
    let marks = place.marks().await;
    let checkpoint = marks.checkpoint();
    if args.pending {
        if marks.origin == Origin::None || marks.caveat.is_some() {
            eprintln!("forebay spool cat: {}", marks.line());
        }
        select.pending = Some(checkpoint.marks.clone());
    }
    let total = place.spool.heads()?.iter().map(|head| head.file_bytes).sum();
    let bar = progress::bar(total, progress::stdout_is_file());
    let read = place.spool.bytes_read();
    let (json, max) = (args.json, args.max.unwrap_or(u64::MAX));
    let walked = progress::watched(&bar, read, move || {
        let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
        let mut text = String::new();
        let mut printed = 0;
        let walked = place.spool.walk::<Stop>(&select, checkpoint.durable, |met| {
            text.clear();
            if json {
                text.push_str(&json_line(met));
            } else {
                text_line(&mut text, met);
            }
            text.push('\n');
            out.write_all(text.as_bytes()).map_err(Stop::Write)?;
            printed += 1;
            Ok(if printed < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        out.flush().map_err(Stop::Write).and(walked)
    })
    .await;
    match walked {
        Ok(Walked { damaged, .. }) => {
            if damaged > 0 {
                eprintln!(
                    "forebay spool cat: {damaged} events in the files that were read are damaged and left out; forebay spool verify tells them"
                );
            }
            Ok(Exit::Good)
        }
        Err(Stop::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Good),
        Err(Stop::Write(error)) => Err(Failed::Told(format!("cannot write to stdout: {error}"))),
        Err(Stop::Read(error)) => Err(error.into()),
    }
}

/// Why printing ended early.
enum Stop {
    Write(io::Error),
    Read(crate::spool::OpenError),
}

impl From<crate::spool::OpenError> for Stop {
    fn from(error: crate::spool::OpenError) -> Self {
        Self::Read(error)
    }
}
