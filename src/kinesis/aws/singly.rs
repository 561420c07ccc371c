//! PutRecord where PutRecords is denied: older policies of destinations grant only that.
//!
//! Place: between the trait's `put_records` and the two calls. A request whose PutRecords is denied is given back as not
//! stored; from then on the records of each request are sent by PutRecord, [`AT_ONCE`] at a time, and their answers are put
//! together as PutRecords would have answered. Entries of one request never have their order among each other, so sending
//! them side by side breaks none (*KEY-ORDER* is `dispatch`'s).
//!
//! Owner: one small state under a lock, never held over an await. Now and then one request tries PutRecords again, so that a
//! mended policy is found without a restart.
//!
//! Failure: a fault that concerns more than a record (no connection, no answer, credentials) stops the rest of the request,
//! which surely was not stored. Where PutRecord is denied too, that is a configuration error as ever.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use aws_sdk_kinesis::primitives::Blob;
use tokio::time::Instant;

use super::{AwsKinesis, Departure, shared};
use crate::host::{Entropy as _, RealEntropy};
use crate::kinesis::{BoxFuture, EntryOutcome, ErrorClass, PutEntry, PutError};
use crate::metrics::locked;

/// PutRecord calls under way for one request.
const AT_ONCE: usize = 32;

/// PutRecords is tried again after half of this to all of it.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Each time it is denied again the wait doubles, up to so many times.
const DOUBLINGS_MAX: u32 = 4;

/// How records are sent.
#[derive(Debug, Default)]
pub(super) enum Way {
    /// By PutRecords.
    #[default]
    Together,
    /// By PutRecord.
    Singly {
        /// It has worked.
        proven: bool,
        /// When PutRecords is tried again, and how often it was.
        retry_at: Instant,
        retries: u32,
    },
}

fn is_denied(error: &PutError) -> bool {
    error.code.starts_with("AccessDenied")
}

impl AwsKinesis {
    /// One PutRecords, or a PutRecord for each entry.
    pub(super) async fn put_either(&self, entries: Vec<PutEntry>) -> Result<Vec<EntryOutcome>, PutError> {
        let again = {
            let mut way = locked(&self.way);
            match &mut *way {
                Way::Together => None,
                Way::Singly { proven, retry_at, retries } => {
                    let due = *proven && Instant::now() >= *retry_at;
                    if due {
                        *retries = (*retries + 1).min(DOUBLINGS_MAX);
                        *retry_at = self.next_try(*retries);
                    }
                    Some(due)
                }
            }
        };
        match again {
            Some(false) => self.put_singly(entries).await,
            Some(true) => match self.put(entries.clone()).await {
                Err(denied) if is_denied(&denied) => self.put_singly(entries).await,
                answer => {
                    if answer.is_ok() {
                        *locked(&self.way) = Way::Together;
                        tracing::info!(stream = self.target.stream, "PutRecords is allowed now: records are sent together again");
                    }
                    answer
                }
            },
            None => self.put(entries).await.map_err(|error| if is_denied(&error) { self.go_singly(error) } else { error }),
        }
    }

    /// Records go singly, and that has worked.
    pub(super) fn goes_singly(&self) -> bool {
        matches!(*locked(&self.way), Way::Singly { proven: true, .. })
    }

    fn next_try(&self, retries: u32) -> Instant {
        let wait = self.retry_put_records_after.saturating_mul(1 << retries);
        Instant::now() + wait / 2 + RealEntropy.jitter(wait / 2)
    }

    /// The next request is sent singly; this one was not stored.
    fn go_singly(&self, denied: PutError) -> PutError {
        let mut way = locked(&self.way);
        if matches!(*way, Way::Together) {
            *way = Way::Singly { proven: false, retry_at: self.next_try(0), retries: 0 };
        }
        PutError { class: ErrorClass::Transient, ..denied }
    }

    async fn put_singly(&self, entries: Vec<PutEntry>) -> Result<Vec<EntryOutcome>, PutError> {
        let mut entries = entries.into_iter();
        let mut outcomes = Vec::with_capacity(entries.len());
        let proven = matches!(*locked(&self.way), Way::Singly { proven: true, .. });
        if !proven && let Some(entry) = entries.next() {
            // The first one tells whether this is allowed.
            let outcome = self.put_one(entry).await;
            match &outcome {
                EntryOutcome::Stored { .. } => self.proven(),
                EntryOutcome::Failed(error) if is_denied(error) => {
                    *locked(&self.way) = Way::Together;
                    let message = format!("neither PutRecords nor PutRecord is allowed: {}", error.message);
                    return Err(PutError { message, ..error.clone() });
                }
                EntryOutcome::Failed(_) => {}
            }
            outcomes.push(outcome);
        }
        outcomes.extend(self.put_all(entries).await);
        Ok(outcomes)
    }

    fn proven(&self) {
        if let Way::Singly { proven, .. } = &mut *locked(&self.way)
            && !std::mem::replace(proven, true)
        {
            tracing::warn!(
                stream = self.target.stream,
                "PutRecords is denied and PutRecord is allowed: records are sent one by one, which is slower. Allow \
                 kinesis:PutRecords on the stream; it is tried again now and then"
            );
        }
    }

    /// The outcome of each, [`AT_ONCE`] under way.
    async fn put_all(&self, entries: std::vec::IntoIter<PutEntry>) -> Vec<EntryOutcome> {
        let mut outcomes: Vec<Option<EntryOutcome>> = vec![None; entries.len()];
        let mut waiting = entries.enumerate();
        let mut under_way: Vec<(usize, BoxFuture<'_, EntryOutcome>)> = Vec::new();
        let mut fault: Option<PutError> = None;
        poll_fn(|context| {
            loop {
                while fault.is_none() && under_way.len() < AT_ONCE {
                    let Some((n, entry)) = waiting.next() else { break };
                    under_way.push((n, Box::pin(self.put_one(entry))));
                }
                let before = under_way.len();
                under_way.retain_mut(|(n, call)| match call.as_mut().poll(context) {
                    Poll::Pending => true,
                    Poll::Ready(outcome) => {
                        fault = fault.take().or_else(|| concerns_all(&outcome));
                        outcomes[*n] = Some(outcome);
                        false
                    }
                });
                if under_way.is_empty() && (fault.is_some() || waiting.len() == 0) {
                    return Poll::Ready(());
                }
                if under_way.len() == before {
                    return Poll::Pending;
                }
            }
        })
        .await;
        let unsent = |why: &Option<PutError>| {
            let message = why.as_ref().map_or_else(String::new, |error| format!("not sent, because of {error}"));
            EntryOutcome::Failed(PutError { class: ErrorClass::Transient, code: "NotSent".into(), message })
        };
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| unsent(&fault))).collect()
    }

    async fn put_one(&self, entry: PutEntry) -> EntryOutcome {
        match self.try_put_one(entry).await {
            Ok(outcome) => outcome,
            Err(error) => EntryOutcome::Failed(error),
        }
    }

    async fn try_put_one(&self, entry: PutEntry) -> Result<EntryOutcome, PutError> {
        let departure = Departure::default();
        let (client, lease) = self.client().await?;
        let request = client.put_record().set_stream_name(self.name()).set_stream_arn(self.arn());
        let request = request
            .data(Blob::new(entry.data))
            .partition_key(entry.partition_key)
            .set_explicit_hash_key(entry.explicit_hash_key.map(|hash| hash.to_string()));
        let output = self.answer(&lease, &departure, request.customize().interceptor(departure.clone()).send()).await?;
        if output.sequence_number.is_empty() || output.shard_id.is_empty() {
            return Err(super::classify::bad_answer("neither sequence number nor shard".into()));
        }
        Ok(EntryOutcome::Stored { shard: shared(&output.shard_id, &mut locked(&self.shard_ids)) })
    }
}

/// What would meet the next record as well.
fn concerns_all(outcome: &EntryOutcome) -> Option<PutError> {
    match outcome {
        EntryOutcome::Failed(error) if !matches!(error.class, ErrorClass::Throttle | ErrorClass::Poison) => Some(error.clone()),
        _ => None,
    }
}
