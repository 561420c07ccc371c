//! The thread that rewrites segments, and how a rewritten one takes its place under the dispatcher.
//!
//! Place: `run.rs` starts one [`Rewriter`] a stream and lets it look after each saved checkpoint; what it made comes back
//! through the inbox, and [`Dispatcher::swap_in`] puts it in place. Owner: the thread owns the planner and the copy; the
//! dispatcher owns every offset that anybody holds, and so it alone renames: no read can come between the rename and the
//! move of the offsets, because both happen on its thread.
//!
//! *NO-BLOCKING*: one segment at a time, in steps, each followed by as long a rest as it took; the dispatcher's part is a
//! rename and a walk over its slots. The directory is synced by the thread, later: until then a power cut may bring the old
//! file back, which is as good.
//!
//! Failure: an error leaves the old file, is logged once, and is tried again after a later checkpoint.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Dispatcher;
use super::run::{Event, Inbox};
use crate::event::{LANES, Position};
use crate::host::Host;
use crate::spool::gather::Shared;
use crate::spool::rewrite::{NotRewritten, Planner, Rewritten, rewrite};
use crate::spool::segment::SegmentTable;

/// How long a segment must have been under a quarter alive: one that is being drained goes by itself.
const DWELL: Duration = Duration::from_secs(10);

/// The longest rest between two steps of a copy.
const REST_MAX: Duration = Duration::from_millis(250);

/// What the thread goes by.
#[derive(Debug)]
struct Look {
    marks: Box<[Position; LANES]>,
    swept: Position,
    /// A copy took its place since the last look.
    renamed: bool,
}

/// The dispatcher thread's end of it.
#[derive(Debug)]
pub struct Rewriter {
    looks: Option<Sender<Look>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    busy: bool,
    renamed: bool,
}

/// Starts the thread.
///
/// # Errors
/// When the system gives none.
pub fn start(host: &Host, table: Arc<SegmentTable>, segment_bytes: u64, stream: &str, inbox: Inbox) -> std::io::Result<Rewriter> {
    let (looks, received) = channel::<Look>();
    let stop = Arc::<AtomicBool>::default();
    let mut work = Work {
        host: host.clone(),
        dir: table.dir().to_owned(),
        table,
        planner: Planner::new(segment_bytes, DWELL),
        stop: Arc::clone(&stop),
        failing: false,
    };
    let thread = std::thread::Builder::new().name(format!("rewrite-{stream}")).spawn(move || {
        while let Ok(look) = received.recv() {
            let copy = work.look(&look);
            inbox.tell(Event::Rewritten(copy.map(Box::new)));
        }
    })?;
    Ok(Rewriter { looks: Some(looks), thread: Some(thread), stop, busy: false, renamed: false })
}

impl Rewriter {
    /// Lets the thread look, unless it is at work.
    pub fn look(&mut self, marks: &[Position; LANES], swept: Position) {
        let Some(looks) = self.looks.as_ref().filter(|_| !self.busy) else { return };
        let renamed = std::mem::take(&mut self.renamed);
        self.busy = looks.send(Look { marks: Box::new(*marks), swept, renamed }).is_ok();
    }

    /// Its answer came.
    pub fn done(&mut self) {
        self.busy = false;
    }

    /// A copy took its place.
    pub fn renamed(&mut self) {
        self.renamed = true;
    }

    /// Ends the thread. A copy that was not finished, or not put in place, is removed now or by the next opening.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.looks.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that rewrites segments panicked");
        }
    }
}

/// The thread's own.
#[derive(Debug)]
struct Work {
    host: Host,
    dir: PathBuf,
    table: Arc<SegmentTable>,
    planner: Planner,
    stop: Arc<AtomicBool>,
    failing: bool,
}

impl Work {
    fn look(&mut self, look: &Look) -> Option<Rewritten> {
        if look.renamed
            && let Err(error) = self.host.files.sync_dir(&self.dir)
        {
            tracing::warn!(%error, "the directory of the segments could not be synced after a rewriting");
        }
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let (files, now) = (self.host.files.as_ref(), self.host.clock.monotonic());
        let chosen = match self.planner.choose(files, &self.table, &look.marks, look.swept, now) {
            Ok(chosen) => chosen?,
            Err(error) => return self.failed(&NotRewritten::Io(error)),
        };
        let (clock, stop) = (Arc::clone(&self.host.clock), Arc::clone(&self.stop));
        let mut step_began = now;
        let go_on = || {
            let took = clock.monotonic().saturating_sub(step_began);
            std::thread::sleep(took.min(REST_MAX));
            step_began = clock.monotonic();
            !stop.load(Ordering::Relaxed)
        };
        match rewrite(&self.host, &chosen, &look.marks, go_on) {
            Ok(copy) => {
                self.failing = false;
                Some(copy)
            }
            Err(NotRewritten::Stopped) => None,
            Err(error @ NotRewritten::Damaged { .. }) => {
                tracing::warn!(segment = %chosen.id, %error, "a segment is not made smaller");
                self.planner.leave_alone(chosen.id);
                None
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &NotRewritten) -> Option<Rewritten> {
        if matches!(error, NotRewritten::Io(error) if error.kind() == std::io::ErrorKind::NotFound) {
            // Removed meanwhile: all in it is settled.
            return None;
        }
        if !self.failing {
            tracing::warn!(%error, "a segment of which little is pending could not be made smaller; trying again later");
        }
        self.failing = true;
        None
    }
}

impl Dispatcher {
    /// What the spool shares with its readers.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        self.cursor.shared()
    }

    /// The first position that was not handed out to the queues.
    #[must_use]
    pub fn swept(&self) -> Position {
        self.sweep
    }

    /// Puts a rewritten segment in its place, and moves every offset that points into it. False when the old file stays.
    pub fn swap_in(&mut self, copy: &Rewritten) -> bool {
        let shared = Arc::clone(self.cursor.shared());
        let (id, files) = (copy.id(), self.host.files.as_ref());
        let moved = |offset| copy.moved(offset);
        // What is not settled is past every mark that was ever saved, and so it was copied.
        let complete = self.queues.iter().all(|queue| queue.can_move(id, moved));
        debug_assert!(complete, "NOTHING-LOST: a rewritten segment lacks an event that is not settled");
        if !complete {
            tracing::error!(segment = %id, "a rewritten segment lacks an event that is not settled: the old file stays");
            copy.discard(files);
            return false;
        }
        let before = shared.table.get(id).map_or(0, |segment| segment.extent().file_bytes);
        match copy.install(files, &shared.table) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                tracing::warn!(segment = %id, %error, "a rewritten segment could not take its place; trying again later");
                return false;
            }
        }
        self.forget_file(id);
        for queue in &mut self.queues {
            queue.move_frames(id, moved);
            for lag in [&mut queue.lag, &mut queue.fresh_lag].into_iter().flatten() {
                lag.place = lag.place.filter(|(of, _)| *of != id);
            }
            let lags = [&mut queue.lag, &mut queue.fresh_lag].into_iter().flatten();
            for lag in lags.filter(|lag| lag.segment.is_some_and(|(of, _)| of == id)) {
                // What was left out is settled, and would only be skipped.
                lag.entries.retain_mut(|(_, entry)| {
                    copy.moved(entry.offset).is_some_and(|offset| {
                        entry.offset = offset;
                        true
                    })
                });
            }
        }
        self.metrics.rewritten_segments.fetch_add(1, Ordering::Relaxed);
        shared.space_freed();
        tracing::info!(segment = %id, before, after = copy.file_bytes(), "a segment was rewritten to what is pending of it");
        true
    }
}
