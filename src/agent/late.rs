//! Streams whose spool could not be opened at the start: tried again until it can be, beside the others.
//!
//! Place: [`Agent::start`](super::Agent::start) hands over what failed, [`Agent::drain`](super::Agent::drain) ends the tries and
//! takes what was opened. *NO-BLOCKING*: one stream's disk that is not mounted, full of somebody else's lock or closed to us
//! leaves the other streams alone. Meanwhile nothing is taken for the closed one: its sources answer 503 or refuse the hello,
//! `/readyz` is 503 and names it. *RECEIPT-AFTER-SYNC* needs no care here: a source has no way into a spool that is not open.
//!
//! Owner: one task for each such stream; opening itself is blocking work, which a drain waits for. Failure: told in log and
//! status, and again when the reason changes; tries become rarer up to [`RETRY_MAX`] and go on for ever, with jitter, since
//! the streams of an agent fail together.
//! Absent on purpose: what only another configuration or another program can mend; that is fatal at the start
//! ([`StartError::may_pass`](super::StartError::may_pass)).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::{Opening, StartError, Stream, letter_door, source_of, spool_door};
use crate::admin::AdminState;
use crate::dispatch::backoff::Backoff;
use crate::ingest::LiveSources;
use crate::metrics::locked;

/// No try comes sooner after the last one.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Nor later, beside [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Where a stream goes once it is open.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) sources: LiveSources,
    pub(super) admin: Option<Arc<AdminState>>,
    pub(super) opened: Arc<Mutex<Vec<Stream>>>,
}

/// Says so, where it is new.
pub(super) fn tell_closed(opening: &Opening, error: &StartError) {
    let reason = error.to_string();
    let mut held = locked(&opening.metrics.closed_reason);
    if *held != reason {
        tracing::error!(
            stream = opening.stream.name,
            "the spool cannot be opened: {reason}; the other streams go on, nothing is taken for this one, it is tried again"
        );
        *held = reason;
    }
}

/// Tries until it works, or the agent drains.
pub(super) async fn open(opening: Opening, places: Places, mut draining: watch::Receiver<bool>) {
    let opening = Arc::new(opening);
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let wait = RETRY_MIN + backoff.fail(opening.host.entropy.as_ref());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = draining.wait_for(|draining| *draining) => return,
        }
        let tried = Arc::clone(&opening);
        match tokio::task::spawn_blocking(move || tried.open()).await {
            Ok(Ok(stream)) => return take_in(stream, &opening, &places),
            Ok(Err(error)) => tell_closed(&opening, &error),
            Err(error) => tracing::error!(stream = opening.stream.name, %error, "the try to open the spool was given up"),
        }
    }
}

/// The stream is as if it had been there from the start.
fn take_in(stream: Stream, opening: &Opening, places: &Places) {
    if let Some(admin) = &places.admin {
        locked(&admin.spools).push(spool_door(&opening.config, &stream));
        locked(&admin.letters).push(letter_door(&stream));
    }
    locked(&opening.metrics.closed_reason).clear();
    for source in opening.config.sources.iter().filter(|source| source.stream == stream.name) {
        match source_of(&opening.config, source, &stream, &opening.agent_host) {
            Ok(source) => places.sources.now().opened(source),
            Err(error) => tracing::error!(%error, "a source of a stream that is open now stays closed"),
        }
    }
    tracing::info!(stream = stream.name, "the spool is open now: events are taken");
    locked(&places.opened).push(stream);
}
