//! Bugs planted on purpose between the simulated service and the real dispatcher: each makes the two together behave as a
//! dispatcher would that has the bug.
//!
//! Place: `life.rs` asks at each seam; `mutations.rs` proves that each is found, by the name of the promise it breaks. The
//! product has no switches for them. What a bug hides from the dispatcher, it sends itself (*side lane*), as the buggy
//! dispatcher would have.

use forebay::event::ShardId;
use forebay::kinesis::{EntryOutcome, ErrorClass, PutEntry, PutError};

use crate::judge::{Parcel, md5_of};
use crate::kpl::take_apart;
use crate::service::Shard;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// No bug.
    None,
    /// Where a record landed is never looked at.
    LandingsUnjudged,
    /// Of an aggregate in a strange shard only the members that do not belong there are sent again.
    OnlyOutOfRangeSentAgain,
    /// An outcome that is not known is taken for a good one.
    UnknownTakenAsDelivered,
    /// A failed record of an answered request is taken for a good one.
    PartialTakenAsDelivered,
    /// What failed goes behind what was not sent yet.
    RequeuedAtTheBack,
    /// One failed record, and all of its request is sent again.
    WholeRequestAgain,
    /// With an order to keep, several records of a shard are under way at once.
    SeveralUnderWay,
    /// New shards are sent to while their parents' records are under way, whatever becomes of those.
    ChildrenBeforeParents,
    /// The map is listed once.
    MapAskedOnce,
    /// Expired credentials end delivery.
    StopsAtExpiredToken,
    /// The marks are those of what was handed out.
    MarksAheadOfDelivery,
    /// The same, and nobody looks: only a crash shows it.
    MarksAheadUnseen,
    /// Nothing is counted as sent again.
    DuplicatesUncounted,
    /// A restart does not count what it sends again.
    RestartUncounted,
    /// Requests for one shard are evidence that keys decide.
    ProofByOneShard,
}

/// What a bug sees of a request.
pub struct Request<'a> {
    pub entries: &'a [PutEntry],
    pub parcels: &'a [Parcel],
    /// The shard of each record, by the map that the dispatcher had.
    pub predicted: &'a [ShardId],
}

impl Plant {
    /// Requests are kept for it.
    pub fn keeps_entries(self) -> bool {
        self != Self::None
    }

    /// The run of requests that a dispatcher with this bug would have counted, after one more. Once it is long enough, it believes
    /// that keys decide.
    pub fn run_of_one_shard(self, request: &Request<'_>, answer: &Result<Vec<EntryOutcome>, PutError>, run: u32) -> u32 {
        let Ok(outcomes) = answer else { return run };
        let stored = outcomes.iter().zip(request.predicted).filter_map(|(outcome, predicted)| match outcome {
            EntryOutcome::Stored { shard } => Some(shard == predicted),
            EntryOutcome::Failed(_) => None,
        });
        if self != Self::ProofByOneShard || request.predicted.is_empty() {
            run
        } else if stored.clone().all(|right| right) {
            run + u32::from(stored.count() > 0)
        } else {
            0
        }
    }

    /// What the dispatcher hears instead of the truth, and the records that the bug goes on to send itself.
    pub fn distort(
        self,
        request: &Request<'_>,
        shards: &[Shard],
        truth: Result<Vec<EntryOutcome>, PutError>,
    ) -> (Result<Vec<EntryOutcome>, PutError>, Vec<PutEntry>) {
        let good = |n: usize| EntryOutcome::Stored { shard: request.predicted[n].clone() };
        let mut own = Vec::new();
        if request.predicted.is_empty() {
            return (truth, own);
        }
        let failed = |outcome: &EntryOutcome| matches!(outcome, EntryOutcome::Failed(_));
        let told = match (self, truth) {
            (Self::UnknownTakenAsDelivered, Err(error)) if error.class == ErrorClass::UnknownOutcome => {
                Ok((0..request.parcels.len()).map(good).collect())
            }
            (Self::WholeRequestAgain, Ok(outcomes)) if outcomes.iter().any(failed) => {
                let error = outcomes.iter().find_map(|outcome| match outcome {
                    EntryOutcome::Failed(error) => Some(error.clone()),
                    EntryOutcome::Stored { .. } => None,
                });
                let error = error.expect("one failed");
                Ok(outcomes.iter().map(|_| EntryOutcome::Failed(error.clone())).collect())
            }
            (_, Ok(outcomes)) => Ok(outcomes
                .into_iter()
                .enumerate()
                .map(|(n, outcome)| match (self, &outcome) {
                    (Self::LandingsUnjudged, EntryOutcome::Stored { .. }) => good(n),
                    (Self::PartialTakenAsDelivered, EntryOutcome::Failed(_)) => good(n),
                    (Self::RequeuedAtTheBack, EntryOutcome::Failed(_)) => {
                        own.push(request.entries[n].clone());
                        good(n)
                    }
                    (Self::OnlyOutOfRangeSentAgain, EntryOutcome::Stored { shard }) => {
                        let landed = shards.iter().find(|known| known.range.id == *shard).expect("its own shards");
                        let (first, last) = (landed.range.first_hash, landed.range.last_hash);
                        if request.parcels[n].events.len() > 1 && !request.parcels[n].fits(first, last) {
                            let entry = &request.entries[n];
                            let members = take_apart(&entry.partition_key, entry.explicit_hash_key, &entry.data);
                            let members = members.expect("it was opened before").into_iter().map(|member| PutEntry {
                                partition_key: member.key,
                                explicit_hash_key: member.explicit_hash_key,
                                data: member.data,
                            });
                            let hash = |entry: &PutEntry| entry.explicit_hash_key.unwrap_or_else(|| md5_of(&entry.partition_key));
                            own.extend(members.filter(|member| !(first..=last).contains(&hash(member))));
                        }
                        good(n)
                    }
                    _ => outcome,
                })
                .collect()),
            (_, truth) => truth,
        };
        (told, own)
    }
}
