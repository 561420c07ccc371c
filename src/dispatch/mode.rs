//! What is known of the stream as a whole: above all, whether a record's key decides its shard.
//!
//! Place: the [`Dispatcher`] asks it what form records may have; its thread asks Kinesis (DescribeStreamSummary) when
//! [`Dispatcher::ask_for_summary`] says so. [`Mode`] is pure: it takes `now` and answers.
//!
//! On-demand streams can be switched at any moment to record distribution AUTO. Then keys and explicit hash keys decide
//! nothing, consumers drop aggregates that lie in a strange shard, and one key's events lie in many shards: no order can be
//! kept. There are two witnesses. What Kinesis says, asked first at some moment of the time that `ask_mode_within` gives and then
//! every few minutes with jitter, because an account has 20 such calls a second for all its streams. And where records land:
//! strangely by a listing made after they did, three times, and the service is taken to ignore keys, whatever it says, until none
//! has for a while; where keys lead, so often that it cannot be chance (`proof.rs`), and keys are taken to decide, until it says.
//!
//! *SAFE-UNLESS-KNOWN*: aggregates of KPL are packed only while keys are known to decide: Kinesis said so, or the configuration
//! vouches for it, or landings prove it while Kinesis has not answered. Or while nothing can hang on it: with one shard open no
//! hash is outside of its range, so no consumer drops an aggregate there. Once Kinesis refuses to say, neither landings nor a
//! single shard count. All that not for the sake of the events, which the landings protect (`answer.rs`), but because a fallback
//! that sets in after the damage is none.
//!
//! Failure: an answer that does not come, or is refused, stops nothing: it is asked for again, ever more rarely, and what was
//! known holds for a while. A form changes when no answer is outstanding; the queues then begin again from the marks, as after
//! a reshard, so that the chains of keys are whole. Absent on purpose: what to do about capacity mode or encryption, which are told only.

use std::time::Duration;

use super::Dispatcher;
use super::backoff::Backoff;
use super::proof::Proof;
use super::remembered::Remembered;
use crate::config::{Aggregate, Order};
use crate::event::ShardId;
use crate::host::Entropy;
use crate::kinesis::{ErrorClass, PutError, StreamSummary};
use crate::limits::RECORD_BYTES_MAX;
use crate::metrics::{ModeStatus, locked};

/// Time between two questions, give or take a quarter: 1,000 agents ask 3.3 times a second.
const REFRESH: Duration = Duration::from_secs(300);

/// What an answer is good for while no newer one can be had: three questions in a row failed.
const GOOD_FOR: Duration = Duration::from_secs(1_000);

/// The first wait after a failure is below this, the longest below `REFRESH`, and none is below `RETRY_MIN`.
const RETRY_BASE: Duration = Duration::from_secs(4);

/// See [`RETRY_BASE`].
const RETRY_MIN: Duration = Duration::from_secs(1);

/// Whoever is told that there were too many questions asks again within this time, or within `ask_mode_within` if that is more.
const SPREAD_MIN: Duration = Duration::from_secs(60);

/// As `REFRESH`, while Kinesis cannot be reached: when it can, aggregates are wanted soon, and nobody else's calls were taken.
const AWAY_RETRY_MAX: Duration = Duration::from_secs(30);

/// How long the first answer may take until that is told, and until a large record is sent without it.
const FIRST_ANSWER_WAIT: Duration = Duration::from_secs(3);

/// Mispredictions by a fresh map after which the service is taken to ignore keys.
const STRANGE_LANDINGS_MAX: u32 = 3;

/// How long after the last of them.
const SUSPICION: Duration = Duration::from_secs(600);

/// Landings of single events that wait for a listing to judge them. More would say nothing new.
const LANDINGS_MAX: usize = 16;

/// Whether a record's key decides its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Nobody has said.
    Unknown,
    /// They do.
    Decide,
    /// They do not: record distribution AUTO.
    Ignored,
}

impl Keys {
    /// Its word in status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Decide => "decide",
            Self::Ignored => "ignored",
        }
    }
}

/// The stream's mode, as far as it is known.
#[derive(Debug)]
pub struct Mode {
    /// The configuration says that keys decide, for where nobody can be asked.
    vouched: bool,
    /// The first question is asked at some moment of this time.
    ask_within: Duration,
    summary: Option<StreamSummary>,
    /// Until when the summary counts without another.
    good_until: Duration,
    /// What records may have by an answer that is too old for all else.
    record_bytes_before: Option<usize>,
    failure: Option<PutError>,
    /// Kinesis has answered since the start, or failed to.
    answered: bool,
    asked: bool,
    first_asked: Option<Duration>,
    not_before: Duration,
    backoff: Backoff,
    strange: u32,
    suspected_at: Option<Duration>,
    /// What landings tell while Kinesis has not answered.
    pub(super) proof: Proof,
}

fn record_bytes_max(summary: &StreamSummary) -> Option<usize> {
    Some(summary.record_bytes_max.unwrap_or(0).max(RECORD_BYTES_MAX))
}

impl Mode {
    /// Nothing is known yet. `vouched`: keys are taken to decide until somebody says otherwise. `ask_within`: of agents that start
    /// together, each asks at some moment of this time.
    #[must_use]
    pub fn new(vouched: bool, ask_within: Duration) -> Self {
        Self {
            vouched,
            ask_within,
            summary: None,
            good_until: Duration::ZERO,
            record_bytes_before: None,
            failure: None,
            answered: false,
            asked: false,
            first_asked: None,
            not_before: Duration::ZERO,
            backoff: Backoff::new(RETRY_BASE, REFRESH),
            strange: 0,
            suspected_at: None,
            proof: Proof::default(),
        }
    }

    /// What Kinesis said before this start. It counts as long as it would have without the stop, and meanwhile another answer
    /// can wait; an older one tells only how large records may be.
    pub fn remember(&mut self, remembered: Remembered, now: Duration, entropy: &dyn Entropy) {
        self.record_bytes_before = record_bytes_max(&remembered.summary);
        if remembered.age < GOOD_FOR {
            self.good_until = now + (GOOD_FOR - remembered.age);
            self.summary = Some(remembered.summary);
            self.take_time(now, entropy);
        }
    }

    /// The start: the first question is asked at some moment of the time that there is for it.
    pub fn take_time(&mut self, now: Duration, entropy: &dyn Entropy) {
        if !self.ask_within.is_zero() {
            self.not_before = now + entropy.jitter(self.ask_within);
        }
    }

    /// Kinesis is to be asked now. Asking counts as asked.
    pub fn ask(&mut self, now: Duration) -> bool {
        if self.asked || now < self.not_before {
            return false;
        }
        self.asked = true;
        self.first_asked.get_or_insert(now);
        true
    }

    /// Its answer.
    pub fn answered(&mut self, answer: Result<StreamSummary, PutError>, now: Duration, entropy: &dyn Entropy) {
        (self.asked, self.answered) = (false, true);
        match answer {
            Ok(summary) => {
                self.summary = Some(summary);
                self.good_until = now + GOOD_FOR;
                self.failure = None;
                self.proof.end();
                self.backoff.succeed();
                self.not_before = now + REFRESH * 3 / 4 + entropy.jitter(REFRESH / 2);
            }
            Err(error) => {
                let wait = self.backoff.fail(entropy);
                let wait = match error.class {
                    ErrorClass::Transient | ErrorClass::UnknownOutcome if wait > AWAY_RETRY_MAX => entropy.jitter(AWAY_RETRY_MAX),
                    // Too many ask at once: also the second time they would, after waits that begin with seconds.
                    ErrorClass::Throttle => wait.max(entropy.jitter(self.ask_within.max(SPREAD_MIN))),
                    _ => wait,
                };
                if Self::is_refusal(&error) {
                    self.proof.end();
                }
                self.failure = Some(error);
                self.not_before = now + RETRY_MIN + wait;
            }
        }
    }

    /// Kinesis does not want to say. Other failures leave the question open.
    const fn is_refusal(error: &PutError) -> bool {
        matches!(error.class, ErrorClass::Configuration | ErrorClass::Poison)
    }

    /// Landings are to tell whether keys decide: nobody else has, and nobody refused to.
    pub(super) fn wants_proof(&self, now: Duration) -> bool {
        !self.vouched && !self.is_answered(now) && !self.failure.as_ref().is_some_and(Self::is_refusal)
    }

    /// An answer counts now.
    fn is_answered(&self, now: Duration) -> bool {
        self.is_told_to_ignore() || (self.summary.is_some() && now < self.good_until)
    }

    /// A record landed where its key does not belong. Whether that is one too many just now.
    fn strange_landing(&mut self, now: Duration) -> bool {
        self.proof.end();
        if self.is_told_to_ignore() {
            return false;
        }
        let before = self.is_suspected(now);
        if self.suspected_at.is_some() && !before {
            (self.strange, self.suspected_at) = (0, None);
        }
        self.strange = self.strange.saturating_add(1);
        if self.strange >= STRANGE_LANDINGS_MAX {
            self.suspected_at = Some(now);
        }
        if before || !self.is_suspected(now) {
            return false;
        }
        // What Kinesis says of it is worth a question out of turn.
        self.not_before = self.not_before.min(now + RETRY_MIN);
        true
    }

    /// A reshard explains what landed strangely so far.
    fn explained(&mut self) {
        self.strange = 0;
    }

    fn is_suspected(&self, now: Duration) -> bool {
        self.suspected_at.is_some_and(|at| now.saturating_sub(at) < SUSPICION)
    }

    fn is_told_to_ignore(&self) -> bool {
        self.summary.as_ref().is_some_and(|summary| summary.ignores_keys == Some(true))
    }

    /// What is known now.
    #[must_use]
    pub fn keys(&self, now: Duration) -> Keys {
        if self.is_told_to_ignore() || self.is_suspected(now) {
            return Keys::Ignored;
        }
        // An answer without the field: a provisioned stream, or a service that does not know AUTO.
        let known = self.vouched || self.is_answered(now) || (self.wants_proof(now) && self.proof.holds(now));
        if known { Keys::Decide } else { Keys::Unknown }
    }

    /// Whether an answer has come, or takes so long that it is worth telling.
    pub(super) fn is_settled(&self, now: Duration) -> bool {
        self.summary.is_some()
            || self.failure.is_some()
            || self.first_asked.is_some_and(|at| now.saturating_sub(at) >= FIRST_ANSWER_WAIT)
    }

    /// What is known was said since the start, or nothing was in time. If not, it is asked for at once.
    pub(super) fn is_confirmed(&mut self, now: Duration) -> bool {
        if self.answered || self.first_asked.is_some_and(|at| now.saturating_sub(at) >= FIRST_ANSWER_WAIT) {
            return true;
        }
        self.not_before = self.not_before.min(now);
        false
    }

    /// The largest record that the stream takes, bytes, as Kinesis said last; `None` before it did. No stream takes less than
    /// 1 MiB, and a service that does not tell takes no more.
    pub(super) fn record_bytes_max(&self) -> Option<usize> {
        self.summary.as_ref().map_or(self.record_bytes_before, record_bytes_max)
    }

    /// The form that records may have, of the configured one. `one_shard`: all hashes lead there.
    fn form(&self, configured: Aggregate, one_shard: bool, now: Duration) -> Aggregate {
        match (configured, self.keys(now)) {
            (Aggregate::Kpl, Keys::Unknown) if one_shard && self.wants_proof(now) => Aggregate::Kpl,
            (Aggregate::Kpl, Keys::Unknown | Keys::Ignored) => Aggregate::Off,
            (other, _) => other,
        }
    }

    /// What the user loses by it, for people; empty when nothing. `form`: the one that records may have.
    fn reason(&self, configured: Aggregate, form: Aggregate, order: Order, now: Duration) -> String {
        let (cause, remedy) = match self.keys(now) {
            Keys::Decide => return String::new(),
            Keys::Ignored if self.is_told_to_ignore() => {
                ("the stream's record distribution is AUTO, which ignores partition keys".to_owned(), "")
            }
            Keys::Ignored => (
                "records land in shards that their partition keys do not lead to, as with record distribution AUTO".to_owned(),
                "",
            ),
            Keys::Unknown if configured != Aggregate::Kpl => return String::new(),
            Keys::Unknown => {
                let why = self.failure.as_ref().map_or_else(|| "no answer yet".to_owned(), ToString::to_string);
                (
                    format!("whether the stream ignores partition keys (record distribution AUTO) could not be read: {why}"),
                    "; allow kinesis:DescribeStreamSummary, or set record_distribution = \"keys\" if it is sure to keep to them",
                )
            }
        };
        let mut lost = Vec::new();
        if form != configured {
            lost.push("consumers drop aggregates there, so one event a record is sent instead of aggregate = \"kpl\"");
        }
        if order == Order::Key && self.keys(now) == Keys::Ignored {
            lost.push("order = \"key\" cannot be kept");
        }
        if lost.is_empty() { String::new() } else { format!("{cause}: {}{remedy}", lost.join(", and ")) }
    }
}

impl Dispatcher {
    /// The start: when the first question for the stream's summary is asked.
    pub fn take_time(&mut self, now: Duration) {
        self.mode.take_time(now, self.host.entropy.as_ref());
    }

    /// What Kinesis said of the stream before this start.
    pub fn remember(&mut self, remembered: Remembered, now: Duration) {
        self.mode.remember(remembered, now, self.host.entropy.as_ref());
        self.publish_mode(now);
    }

    /// Kinesis is to be asked for the stream's summary now. Asking counts as asked.
    pub fn ask_for_summary(&mut self, now: Duration) -> bool {
        self.mode.ask(now)
    }

    /// The answer to that.
    pub fn on_summary(&mut self, answer: Result<StreamSummary, PutError>, now: Duration) {
        if let Err(error) = &answer
            && self.mode.failure.as_ref() != Some(error)
        {
            tracing::info!(%error, "the stream's mode and limits (DescribeStreamSummary) could not be read; asking again");
        }
        self.mode.answered(answer, now, self.host.entropy.as_ref());
        if self.mode.keys(now) == Keys::Ignored {
            // Landings do not tell of reshards there.
            self.map_stale(now);
        }
        self.publish_mode(now);
    }

    /// The form that records may have: single events where the shards are not known.
    fn form_allowed(&self, now: Duration) -> Aggregate {
        let one_shard = self.map.as_ref().is_some_and(|map| map.open().len() == 1);
        if self.map_guessed { Aggregate::Off } else { self.mode.form(self.options.aggregate, one_shard, now) }
    }

    /// Takes the form of records that the mode allows. False while that has to wait for answers, and nothing may be sent.
    pub(super) fn settle_form(&mut self, now: Duration) -> bool {
        let form = self.form_allowed(now);
        if form == self.form {
            return true;
        }
        if !self.requests.is_empty() || !self.held.is_empty() {
            return false;
        }
        self.form = form;
        if self.map.is_some() {
            self.advance_marks();
            self.restart_queues(now);
        }
        self.publish_mode(now);
        true
    }

    /// A record that is readable there, whatever its shard's hashes, was stored in another shard than predicted.
    pub(super) fn landed_elsewhere(&mut self, shard: &ShardId, span: (u128, u128), now: Duration) {
        if self.mode.keys(now) == Keys::Ignored {
            // Asking for the shards each time would not explain it.
            self.mode.strange_landing(now);
            return;
        }
        if self.landings.len() < LANDINGS_MAX {
            self.landings.push((span, shard.clone()));
        }
        self.map_stale(now);
    }

    /// Judges such landings, with a map that was listed after them. False: it is too old for one of them.
    pub(super) fn judge_landings(&mut self, now: Duration) -> bool {
        let Some(map) = &self.map else { return true };
        let (mut strange, mut younger) = (0, Vec::new());
        for (span, shard) in std::mem::take(&mut self.landings) {
            match map.find(&shard) {
                Some(shard) => strange += u32::from(span.0 < shard.first_hash || shard.last_hash < span.1),
                None => younger.push((span, shard)),
            }
        }
        self.landings = younger;
        for _ in 0..strange {
            self.strange_landing(now);
        }
        self.landings.is_empty()
    }

    /// A record landed outside its keys' shard, by a map that was listed after it did.
    pub(super) fn strange_landing(&mut self, now: Duration) {
        if self.mode.strange_landing(now) {
            self.publish_mode(now);
        }
    }

    /// The shards have changed: that explains strange landings.
    pub(super) fn landings_explained(&mut self) {
        self.mode.explained();
        self.mode.proof.missed();
    }

    /// A record that landed in a strange shard is as good as in its own: any consumer reads it, and there is no order to keep.
    pub(super) fn readable_anywhere(&self, now: Duration) -> bool {
        self.form == Aggregate::Lines && (self.options.order == Order::None || self.mode.keys(now) == Keys::Ignored)
    }

    /// Writes what status tells of the mode; says in the log what has changed for the user.
    pub(super) fn publish_mode(&self, now: Duration) {
        let keys = self.mode.keys(now);
        let form = self.form_allowed(now);
        let reason = match self.mode.reason(self.options.aggregate, form, self.options.order, now) {
            known if known.is_empty() && form != self.options.aggregate => {
                format!(
                    "the shards are not known: one event a record is sent instead of aggregate = {:?}; allow kinesis:ListShards",
                    self.options.aggregate.name()
                )
            }
            known if known.is_empty() && self.map_guessed => {
                "the shards are not known: what each takes is found by trying; allow kinesis:ListShards".to_owned()
            }
            known => known,
        };
        if let Some(bytes) = self.mode.record_bytes_max() {
            self.metrics.set_record_bytes_max(bytes);
        }
        // That nothing is known yet is how each start is, and worth no word.
        let waits = self.options.aggregate == Aggregate::Kpl && keys == Keys::Unknown && !self.mode.is_settled(now);
        let told = ModeStatus {
            summary: self.mode.summary.clone(),
            keys: keys.name(),
            aggregate: form.name(),
            is_fallback: !waits && form != self.options.aggregate,
            reason: if waits { String::new() } else { reason },
        };
        let mut held = locked(&self.metrics.mode);
        if held.reason != told.reason {
            match told.reason.as_str() {
                "" => tracing::info!(aggregate = told.aggregate, "partition keys decide a record's shard again"),
                reason => tracing::error!(aggregate = told.aggregate, "{reason}"),
            }
        }
        *held = told;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::RealEntropy;
    use crate::kinesis::ErrorClass;

    fn told(ignores_keys: Option<bool>) -> Result<StreamSummary, PutError> {
        Ok(StreamSummary {
            arn: String::new(),
            status: "ACTIVE".into(),
            on_demand: None,
            ignores_keys,
            record_bytes_max: None,
            key: None,
        })
    }

    fn refused(class: ErrorClass) -> Result<StreamSummary, PutError> {
        Err(PutError { class, code: "LimitExceededException".into(), message: String::new() })
    }

    const WITHIN: Duration = Duration::from_secs(100);

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Questions of one agent in that time, each answered alike.
    fn questions(answer: &Result<StreamSummary, PutError>, until: Duration) -> usize {
        let (mut mode, mut asked) = (Mode::new(false, WITHIN), 0);
        let mut now = Duration::ZERO;
        while now < until {
            if mode.ask(now) {
                asked += 1;
                assert!(!mode.ask(now), "one question at a time");
                mode.answered(answer.clone(), now, &RealEntropy);
            }
            now += Duration::from_millis(200);
        }
        asked
    }

    #[test]
    fn a_thousand_agents_stay_within_the_accounts_twenty_questions_a_second() {
        let hour = seconds(3600);
        let asked = questions(&told(None), hour);
        assert!((9..=17).contains(&asked), "{asked} in an hour, so up to 4.7/s of a thousand agents");
        for class in [ErrorClass::Throttle, ErrorClass::Configuration] {
            let asked = questions(&refused(class), hour);
            assert!(asked < 60, "{asked} in an hour");
        }
    }

    #[test]
    fn the_first_question_comes_at_some_moment_of_the_time_that_there_is_for_it() {
        let first = |within: Duration| {
            let mut mode = Mode::new(false, within);
            mode.take_time(seconds(5), &RealEntropy);
            (0..2_000).find(|n| mode.ask(seconds(5) + Duration::from_millis(n * 100))).expect("it is asked")
        };
        assert_eq!(first(Duration::ZERO), 0);
        let mut firsts: Vec<u64> = (0..200).map(|_| first(WITHIN)).collect();
        firsts.sort_unstable();
        assert!(firsts[20] > 20 && firsts[100] > 250 && firsts[100] < 750 && firsts[199] <= 1_000, "{firsts:?}");
    }

    #[test]
    fn an_answer_of_before_the_start_holds_for_the_rest_of_its_time_and_need_not_be_asked_for_at_once() {
        let remembered = |age: u64, ignores_keys: Option<bool>| {
            let summary = StreamSummary { record_bytes_max: Some(4 << 20), ..told(ignores_keys).expect("an answer") };
            Remembered { summary, age: seconds(age) }
        };
        let mut mode = Mode::new(false, WITHIN);
        mode.remember(remembered(400, None), seconds(1), &RealEntropy);
        assert_eq!((mode.keys(seconds(1)), mode.is_settled(seconds(1))), (Keys::Decide, true));
        assert_eq!(mode.keys(seconds(602)), Keys::Unknown, "1,000 s after the answer");
        assert!(mode.ask(seconds(101)), "asked in its time");
        assert!(!mode.is_confirmed(seconds(1)), "none of it was said since the start");
        mode.answered(told(None), seconds(102), &RealEntropy);
        assert!(mode.is_confirmed(seconds(102)));
        let mut mode = Mode::new(false, WITHIN);
        mode.remember(remembered(400, Some(true)), seconds(1), &RealEntropy);
        assert_eq!(mode.keys(seconds(1)), Keys::Ignored);
        let mut mode = Mode::new(false, WITHIN);
        mode.remember(remembered(1_000, None), seconds(1), &RealEntropy);
        assert_eq!((mode.keys(seconds(1)), mode.is_settled(seconds(1))), (Keys::Unknown, false), "too old");
        assert!(mode.ask(seconds(1)), "no time was taken");
        assert_eq!(mode.record_bytes_max(), Some(4 << 20), "large records go on");
    }

    #[test]
    fn an_answer_holds_for_a_while_and_then_nothing_is_known() {
        let mut mode = Mode::new(false, WITHIN);
        assert_eq!((mode.keys(seconds(0)), mode.form(Aggregate::Kpl, false, seconds(0))), (Keys::Unknown, Aggregate::Off));
        mode.answered(told(None), seconds(10), &RealEntropy);
        assert_eq!((mode.keys(seconds(10)), mode.form(Aggregate::Kpl, false, seconds(10))), (Keys::Decide, Aggregate::Kpl));
        mode.answered(refused(ErrorClass::Transient), seconds(300), &RealEntropy);
        assert_eq!(mode.keys(seconds(1000)), Keys::Decide);
        assert_eq!(mode.keys(seconds(1011)), Keys::Unknown);
        assert_eq!(mode.form(Aggregate::Lines, false, seconds(1011)), Aggregate::Lines, "no consumer drops lines");
        mode.answered(told(Some(true)), seconds(1100), &RealEntropy);
        assert_eq!(mode.keys(seconds(1_000_000)), Keys::Ignored, "AUTO is believed until something else is said");
    }

    #[test]
    fn strange_landings_outweigh_what_kinesis_says_until_there_are_none_for_a_while() {
        let mut mode = Mode::new(true, WITHIN);
        mode.answered(told(Some(false)), seconds(0), &RealEntropy);
        assert!(!mode.strange_landing(seconds(1)) && !mode.strange_landing(seconds(2)));
        mode.explained();
        assert!(!mode.strange_landing(seconds(3)) && !mode.strange_landing(seconds(4)), "a reshard explained the others");
        assert!(mode.strange_landing(seconds(5)), "the third");
        assert_eq!(mode.keys(seconds(5)), Keys::Ignored);
        assert!(mode.ask(seconds(7)), "a question out of turn");
        mode.answered(told(Some(false)), seconds(7), &RealEntropy);
        assert!(!mode.strange_landing(seconds(300)), "it is known");
        assert_eq!(mode.keys(seconds(899)), Keys::Ignored);
        mode.answered(told(Some(false)), seconds(899), &RealEntropy);
        assert_eq!(mode.keys(seconds(900)), Keys::Decide);
        assert!(!mode.strange_landing(seconds(901)) && mode.keys(seconds(901)) == Keys::Decide, "one is not three");
    }
}
