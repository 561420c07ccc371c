//! `forebay spool replay`: delivers events again that are still in the spool's files.
//!
//! It first counts what is there, says what will happen, and asks. A running agent then takes the events in again,
//! slice by slice, through its admin listener; a stopped one's spool is appended to under its lock. The end of the
//! range is fixed before the first event is taken in, so that a replay never meets its own events.
//!
//! Failure: what was taken in before it is told, with the position from which to go on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use super::place::{LiveAgent, Place, ask};
use super::range::{select, show_ms};
use super::{Failed, print, progress};
use crate::admin::spool::{ReplayAsk, Replayed};
use crate::cli::SpoolReplayArgs;
use crate::commands::asked;
use crate::commands::status::{bytes, count};
use crate::config::Config;
use crate::event::Position;
use crate::exit::Exit;
use crate::spool::SpoolOptions;
use crate::spool::inspect::Select;
use crate::spool::replay::append;

/// How often a slice that the agent has no room for is asked for again, a second and the agent's own wait apart.
const TRIES_MAX: u32 = 5;

/// What of the range is there.
#[derive(Clone, Copy, Debug, Default)]
struct There {
    events: u64,
    bytes: u64,
    pending: u64,
    damaged: u64,
    first: Option<(Position, u64)>,
    last: Option<(Position, u64)>,
}

pub(super) async fn run(place: Place, args: SpoolReplayArgs, config: Option<&Config>) -> Result<Exit, Failed> {
    let now_ms = place.host.clock.wall_ms();
    if args.range.from.is_none() && args.range.to.is_none() && args.range.key.is_none() {
        return Err(Failed::Usage("name what to replay: --from and --to (a position, a time, how long ago), --key".to_owned()));
    }
    let mut select = select(args.range.from, args.range.to, args.range.key, now_ms).map_err(Failed::Usage)?;
    if let (None, Some(pid)) = (&place.agent, place.holder) {
        let text = format!(
            "process {pid} holds the lock of {}, but does not answer as its agent; name its admin address with --admin ADDR, or stop it",
            place.spool.dir().display()
        );
        return Err(Failed::Told(text));
    }
    let marks = place.marks().await;
    let checkpoint = marks.checkpoint();
    let bar = progress::bar(place.spool.heads()?.iter().map(|head| head.file_bytes).sum(), true);
    bar.set_message("counting");
    let place = Arc::new(place);
    let (counted, wanted) = (Arc::clone(&place), select.clone());
    let (there, end, begin, held_ms) =
        progress::watched(&bar, place.spool.bytes_read(), move || count_there(&counted, &wanted, &checkpoint)).await?;
    select.to = select.to.min(end);
    if there.events == 0 {
        let mut text = "nothing of this range".to_owned();
        if select.key.is_some() {
            text.push_str(" with this key");
        }
        text.push_str(&format!(" is in the files: they hold positions {} up to {}", begin.0, end.0));
        if let Some((from_ms, to_ms)) = held_ms {
            text.push_str(&format!(", received {} to {}", show_ms(from_ms), show_ms(to_ms)));
        }
        return Err(Failed::Told(text + ". What was delivered and removed cannot be replayed"));
    }
    explain(&place, &select, &there);
    if !args.yes && !confirmed()? {
        eprintln!("nothing was replayed");
        return Ok(Exit::Failed);
    }
    let done = match &place.agent {
        Some(agent) => live(agent, &select, &there).await,
        None => stopped(&place, &select, &there, config).await,
    };
    let (events, data_bytes, error) = match done {
        Ok((events, bytes)) => (events, bytes, None),
        Err((events, bytes, error)) => (events, bytes, Some(error)),
    };
    let how =
        if place.agent.is_some() { "delivery follows as for any event" } else { "they are delivered when the agent starts" };
    let text = if args.json {
        let all = json!({
            "there": there.events, "replayed": events, "bytes": data_bytes, "pending_of_range": there.pending,
            "damaged_in_range": there.damaged, "live": place.agent.is_some(), "complete": error.is_none(),
        });
        format!("{all}\n")
    } else {
        let gone = match there.events.saturating_sub(events) {
            missing if missing > 0 && error.is_none() => format!(", {} were settled and removed meanwhile", count(missing)),
            _ => String::new(),
        };
        format!("replayed {} events, {}{gone}; {how}\n", count(events), bytes(data_bytes))
    };
    let exit = print(&text)?;
    match error {
        None => Ok(exit),
        Some(error) => Err(Failed::Told(error)),
    }
}

/// What of the range is there; its end, and the first position in the files; the times that they hold instead.
type Counted = (There, Position, Position, Option<(u64, u64)>);

/// What of the range is there, where it ends, and, for whoever finds nothing, what the files hold instead: their first
/// position and times.
fn count_there(place: &Place, select: &Select, checkpoint: &crate::checkpoint::Checkpoint) -> Result<Counted, Failed> {
    let heads = place.spool.heads()?;
    let begin = heads.iter().find_map(|head| head.assumed).map_or(Position(0), |header| header.base);
    let mut there = There::default();
    let walked = place.spool.walk::<Failed>(select, checkpoint.durable, |met| {
        there.events += 1;
        there.bytes += met.frame.data().len() as u64;
        there.pending += u64::from(met.frame.position() >= checkpoint.marks[met.frame.hash().lane().index()]);
        there.first.get_or_insert((met.frame.position(), met.time_ms));
        there.last = Some((met.frame.position(), met.time_ms));
        Ok(ControlFlow::Continue(()))
    })?;
    there.damaged = walked.damaged;
    if let Some((last, _)) = there.last {
        return Ok((there, Position(last.0 + 1), begin, None));
    }
    let seen = place.spool.segments(&heads, checkpoint, None)?;
    let end = seen.last().map_or(begin, |(seen, _)| seen.segment.extent().end);
    let last_ms = seen.iter().rev().find_map(|(seen, _)| seen.last_ms);
    Ok((there, end, begin, seen.first().map(|(seen, _)| seen.segment.created_ms).zip(last_ms)))
}

fn explain(place: &Place, select: &Select, there: &There) {
    eprintln!("{}", place.title());
    let (Some((first, first_ms)), Some((last, last_ms))) = (there.first, there.last) else { return };
    eprintln!(
        "{} events ({}) of this range are still in the files: positions {} to {}, received {} to {}",
        count(there.events),
        bytes(there.bytes),
        first.0,
        last.0,
        show_ms(first_ms),
        show_ms(last_ms)
    );
    if let (None, Some(missing)) = (&select.key, first.0.checked_sub(select.from.0).filter(|missing| *missing > 0))
        && select.from_ms.is_none()
        && select.from > Position(0)
    {
        eprintln!("the {} positions before them are not there any more", count(missing));
    }
    if there.pending > 0 {
        eprintln!("{} of them are not delivered yet: they will be sent twice", count(there.pending));
    }
    eprintln!(
        "They are accepted again as new events, behind all others: consumers get a key's old events after its newer ones, and count them twice unless they look at an id."
    );
}

/// Nobody there to ask is a wrong command line.
fn confirmed() -> Result<bool, Failed> {
    match asked("Replay them?") {
        Ok(Some(yes)) => Ok(yes),
        Ok(None) => Err(Failed::Usage("stdin is no terminal, so nobody can be asked; add --yes".to_owned())),
        Err(error) => Err(Failed::Told(format!("cannot ask: {error}"))),
    }
}

type Done = Result<(u64, u64), (u64, u64, String)>;

/// Slice by slice through the agent.
async fn live(agent: &LiveAgent, select: &Select, there: &There) -> Done {
    let bar = progress::bar(there.bytes, true);
    bar.set_message("replaying");
    let path = format!("/spool/{}/replay", agent.stream);
    let (mut events, mut data_bytes, mut tries) = (0, 0, 0);
    let mut from = select.from.0.max(there.first.map_or(0, |(first, _)| first.0));
    while from < select.to.0 {
        let slice = ReplayAsk { from, to: select.to.0, from_ms: select.from_ms, to_ms: select.to_ms, key: select.key.clone() };
        let body = serde_json::to_string(&slice).expect("numbers and a text become JSON");
        match ask::<Replayed>(agent.admin, &path, Some(body)).await {
            Ok(done) if done.next > from => {
                events += done.events;
                data_bytes += done.bytes;
                from = done.next;
                tries = 0;
                bar.set_position(data_bytes);
            }
            Ok(_) => {
                bar.finish_and_clear();
                return Err((events, data_bytes, format!("the agent does not go on at position {from}; report it")));
            }
            // No room at the moment, perhaps.
            Err(error) if error.later && tries < TRIES_MAX => {
                tries += 1;
                bar.suspend(|| eprintln!("forebay spool replay: {}; waiting", error.text));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => {
                bar.finish_and_clear();
                return Err((events, data_bytes, format!("{}; go on with --from {from} --to {}", error.text, select.to.0)));
            }
        }
    }
    bar.finish_and_clear();
    Ok((events, data_bytes))
}

/// Appends under the spool's lock.
async fn stopped(place: &Arc<Place>, select: &Select, there: &There, config: Option<&Config>) -> Done {
    let Some(spool) = config.map(|config| config.spool.clone()) else {
        return Err((0, 0, "no configuration was read, which tells the spool's sizes".to_owned()));
    };
    let options = SpoolOptions {
        stream: place.spool.stream().to_owned(),
        dir: place.spool.dir().to_owned(),
        max_bytes: spool.max_bytes,
        segment_bytes: spool.segment_bytes,
    };
    let (host, select) = (place.host.clone(), select.clone());
    let total = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&total);
    let bar = progress::bar(there.bytes, true);
    bar.set_message("replaying");
    let done = progress::watched(&bar, total, move || {
        append(&host, &options, &select, |done| told.store(done.bytes, Ordering::Relaxed))
    })
    .await;
    match done {
        Ok(done) => Ok((done.events, done.bytes)),
        Err((done, error)) => Err((done.events, done.bytes, error.to_string())),
    }
}
