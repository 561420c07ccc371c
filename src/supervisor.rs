//! What a service manager is told (systemd's notification protocol): ready, reloading, stopping, a line of status, signs of life.
//!
//! Place: `commands::run` has one [`Supervisor`] for the life of the agent. Without `NOTIFY_SOCKET` it does nothing, and has no thread.
//!
//! One thread, in two phases, and an end. *Starting*: a recovery that takes long asks for more time, within `START_MAX`. *Running*: at a third of the
//! time that the manager's watchdog allows, each party that must live (the commit thread and the dispatcher of each stream, the
//! runtime of the doors) is asked for a [`Pulse`]; only when all have answered is the watchdog fed. Whoever hangs is named in the
//! log, and the manager kills what is not fed: nothing receipted is lost by that. *Stopping*: the thread is gone; one message told
//! how long the end may take.
//!
//! Invariants: nothing here runs more often than every [`TELL_EVERY`], or than a shorter watchdog asks for, so that an idle agent
//! stays idle; no party needs a timer.
//! Failure: a manager that cannot be told is told of once in the log, and the agent goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::host::Clock;
use crate::spool::Pulse;

/// How often the line of status is renewed, and the watchdog fed at the least, where it allows that.
pub const TELL_EVERY: Duration = Duration::from_secs(10);

/// How much time is asked for at a time while the agent starts.
const START_STEP: Duration = Duration::from_secs(30);

/// How long a start may go on asking. Recovery takes about a second for 10 GiB; what takes this long hangs.
const START_MAX: Duration = Duration::from_secs(30 * 60);

/// Asks one party for a sign of life; must not wait for it.
pub type Ask = Box<dyn Fn(Pulse) + Send>;

/// A party that must live.
pub struct Party {
    /// For people.
    pub who: Arc<str>,
    /// How it is asked.
    pub ask: Ask,
}

/// What the thread needs of a running agent.
pub struct Life {
    /// Who must live.
    pub parties: Vec<Party>,
    /// The line of status.
    pub status: Box<dyn Fn() -> String + Send>,
}

enum Word {
    Ready(Life),
    /// The line of status is to be told afresh.
    Told,
}

/// The line to the service manager.
#[derive(Debug)]
pub struct Supervisor {
    thread: Option<Sender<Word>>,
}

impl Supervisor {
    /// Takes up the line that the environment names, if it names one.
    #[must_use]
    pub fn start(clock: &Arc<dyn Clock>) -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self { thread: None };
        }
        let watchdog = sd_notify::watchdog_enabled();
        let (sender, words) = channel();
        let clock = Arc::clone(clock);
        let thread = std::thread::Builder::new().name("supervisor".into()).spawn(move || watch(&words, watchdog, &*clock));
        match thread {
            Ok(_) => Self { thread: Some(sender) },
            Err(error) => {
                tracing::error!(%error, "no thread for signs of life: a watchdog of the service manager would end this agent");
                Self { thread: None }
            }
        }
    }

    /// The agent accepts; from now on it shows that it lives.
    pub fn ready(&self, life: Life) {
        let Some(sender) = &self.thread else { return };
        tell(&[NotifyState::Ready, NotifyState::Status(&(life.status)())]);
        // It lives until this end of the line is dropped.
        sender.send(Word::Ready(life)).ok();
    }

    /// A new configuration is being read.
    pub fn reloading(&self) {
        if self.thread.is_none() {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration again")]),
            Err(error) => tracing::warn!(%error, "the service manager cannot be told of the reload"),
        }
    }

    /// That is done, well or not.
    pub fn reloaded(&self) {
        let Some(sender) = &self.thread else { return };
        tell(&[NotifyState::Ready]);
        sender.send(Word::Told).ok();
    }

    /// The agent accepts no more, and ends `within` that time.
    pub fn stopping(self, within: Duration) {
        // The thread ends by itself; should it wait for somebody who hangs, the end need not wait for it.
        let Some(_) = self.thread else { return };
        let within = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::Stopping, NotifyState::Status("delivering what is left"), NotifyState::ExtendTimeoutUsec(within)]);
    }
}

/// Told once in the life of the process.
static DEAF: AtomicBool = AtomicBool::new(false);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states)
        && !DEAF.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(%error, "the service manager cannot be told (NOTIFY_SOCKET)");
    }
}

fn watch(words: &Receiver<Word>, watchdog: Option<Duration>, clock: &dyn Clock) {
    let Some(life) = starting(words, clock) else { return };
    let period = watchdog.map_or(TELL_EVERY, |limit| TELL_EVERY.min(limit / 3));
    let mut missing = Vec::new();
    loop {
        match words.recv_timeout(period) {
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let status = (life.status)();
        if watchdog.is_none() {
            tell(&[NotifyState::Status(&status)]);
            continue;
        }
        let silent = ask_all(&life.parties, period, clock);
        if silent.is_empty() {
            if !missing.is_empty() {
                tracing::info!("all threads show signs of life again");
            }
            tell(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
        } else if missing != silent {
            let who = silent.join(", ");
            tracing::error!(
                who,
                "no sign of life: if this lasts, the service manager's watchdog ends the agent, which loses nothing receipted"
            );
            tell(&[NotifyState::Status(&format!("no sign of life of: {who}"))]);
        }
        missing = silent;
    }
}

fn starting(words: &Receiver<Word>, clock: &dyn Clock) -> Option<Life> {
    let begun = clock.monotonic();
    loop {
        match words.recv_timeout(START_STEP / 3) {
            Ok(Word::Ready(life)) => return Some(life),
            Ok(Word::Told) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if clock.monotonic().saturating_sub(begun) < START_MAX => {
                let step = u32::try_from(START_STEP.as_micros()).unwrap_or(u32::MAX);
                tell(&[NotifyState::ExtendTimeoutUsec(step), NotifyState::Status("opening the spools")]);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Asks everybody at once; tells who has not answered when `patience` is over.
fn ask_all(parties: &[Party], patience: Duration, clock: &dyn Clock) -> Vec<Arc<str>> {
    let (answer, answers) = channel();
    for party in parties {
        (party.ask)(Pulse::new(&party.who, answer.clone()));
    }
    drop(answer);
    let mut silent: Vec<Arc<str>> = parties.iter().map(|party| Arc::clone(&party.who)).collect();
    let until = clock.monotonic() + patience;
    while !silent.is_empty() {
        match answers.recv_timeout(until.saturating_sub(clock.monotonic())) {
            Ok(who) => silent.retain(|other| *other != who),
            Err(_) => break,
        }
    }
    silent
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::host::Host;

    fn party(who: &str, ask: impl Fn(Pulse) + Send + 'static) -> Party {
        Party { who: who.into(), ask: Box::new(ask) }
    }

    #[test]
    fn who_answers_or_is_gone_is_not_missed_and_who_keeps_the_question_is() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keeper = Arc::clone(&kept);
        let (gone, _) = channel::<Pulse>();
        let parties = [
            party("answers", drop),
            party("has ended", move |pulse| drop(gone.send(pulse))),
            party("hangs", move |pulse| keeper.lock().unwrap().push(pulse)),
        ];
        let clock = Host::real().clock;
        let silent = ask_all(&parties, Duration::from_millis(20), &*clock);
        assert_eq!(silent.iter().map(|who| &**who).collect::<Vec<_>>(), ["hangs"]);
        kept.lock().unwrap().clear();
        assert!(ask_all(&parties[..2], Duration::from_secs(60), &*clock).is_empty());
    }
}
