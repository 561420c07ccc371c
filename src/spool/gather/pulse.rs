//! Signs of life: whoever is asked for one answers, or is gone; who does neither hangs.
//!
//! Place: a watchdog (`supervisor`) hands a [`Pulse`] to the commit thread here, to each dispatcher's inbox and to the runtime,
//! and counts what comes back. An idle thread is woken by the question, so that none of them needs a timer to prove that it
//! lives. The commit thread answers wherever it waits: for groups, for room, for a disk that failed to take writes again. It
//! does not answer while a write or a sync does not come back, and that is what is to be found out.
//!
//! Absent on purpose: a judgement. How long is too long is the watchdog's to say.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::Shared;

/// A question for a sign of life. Dropping it is the answer, so that one who has ended is not missed.
#[derive(Debug)]
pub struct Pulse {
    /// Who is asked, for people.
    who: Arc<str>,
    answer: Sender<Arc<str>>,
}

impl Pulse {
    /// A question whose answer is `who` itself.
    #[must_use]
    pub fn new(who: &Arc<str>, answer: Sender<Arc<str>>) -> Self {
        Self { who: Arc::clone(who), answer }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        // Whoever has stopped listening does not want to know.
        self.answer.send(Arc::clone(&self.who)).ok();
    }
}

impl Shared {
    /// Asks the commit thread. Waits for nothing but the lock that every batch takes.
    pub fn ask_for_pulse(&self, pulse: Pulse) {
        let mut gathering = self.gathering();
        if !gathering.ended {
            gathering.pulse = Some(pulse);
            drop(gathering);
            self.arrived.notify_all();
        }
    }
}

/// The commit thread's end, however it comes: from then on nobody waits for its sign of life.
pub(super) struct LastPulse<'s>(pub(super) &'s Shared);

impl Drop for LastPulse<'_> {
    fn drop(&mut self) {
        let mut gathering = self.0.gathering();
        gathering.ended = true;
        gathering.pulse = None;
    }
}
