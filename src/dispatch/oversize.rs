//! Events that are larger than a record may be.
//!
//! Place: part of the [`Dispatcher`]; `pack` asks about the event whose turn it is. The doors take an event over 1 MiB only
//! where Kinesis has said that the stream takes such records, and the configuration sees to it that it fits a request. Both
//! may have changed since: somebody lowered the stream's limit, the stream was made anew, or a restart came with a smaller
//! `request_bytes_max`.
//!
//! *INSIDE-THE-LIMITS*: what is known to be too large is never sent; it becomes a dead letter that says what to raise.
//! *NO-BLOCKING*: so nothing waits behind it, but for the moments until Kinesis has first said what the stream takes, in the life
//! of this process: what was kept of an earlier one opens the doors, and is not sent on. Where it does not say, such an event is sent: it was taken in because the limit was known then. If it is refused after all, it is
//! found as any other refused event is (`suspects.rs`).
//!
//! Failure: while its letter cannot be written, or the store of letters is full, the event stays pending and its shard waits;
//! status tells why.

use std::time::Duration;

use super::Dispatcher;
use super::expire::Ending;
use super::queue::Slot;
use crate::limits::RECORD_BYTES_MAX;
use crate::spool::dead::{Letter, Reason};
use crate::spool::frame::FRAME_HEADER_BYTES;

/// How long an event waits before it is looked again whether Kinesis has said what the stream takes.
const WAIT: Duration = Duration::from_millis(100);

/// Whether an event can be a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// As far as is known.
    Fits,
    /// It could not; it has ended, and another event is the queue's first.
    Ended,
    /// The queue sends nothing for a moment.
    Waits,
}

/// Bytes that an event's record counts, if it is alone in it: data and key.
pub(super) fn billed_alone(slot: &Slot) -> usize {
    (slot.entry.len as usize).saturating_sub(FRAME_HEADER_BYTES)
}

impl Dispatcher {
    /// Judges the first ready event of a queue by its size; one that cannot be sent becomes a dead letter.
    pub(super) fn judge_size(&mut self, at: usize, slot: &Slot, now: Duration) -> Size {
        let (bytes, request) = (billed_alone(slot), self.options.request_bytes_max);
        if bytes <= RECORD_BYTES_MAX.min(request) {
            return Size::Fits;
        }
        if bytes > request {
            return self.end_as_too_large(
                at,
                slot,
                format!("with its key it has {bytes} bytes, more than request_bytes_max ({request}); raise that and retry it"),
                now,
            );
        }
        if !self.draining && !self.mode.is_confirmed(now) {
            self.queues[at].not_before = now + WAIT;
            self.wake(now + WAIT);
            return Size::Waits;
        }
        match self.mode.record_bytes_max() {
            Some(most) if bytes > most => self.end_as_too_large(
                at,
                slot,
                format!(
                    "with its key it has {bytes} bytes, and the stream's MaxRecordSizeInKiB is {}; raise that (UpdateMaxRecordSize) \
                     and retry it",
                    most >> 10
                ),
                now,
            ),
            _ => Size::Fits,
        }
    }

    fn end_as_too_large(&mut self, at: usize, slot: &Slot, detail: String, now: Duration) -> Size {
        let Some(seq) = self.queues[at].nth_ready(0) else { return Size::Waits };
        let ending = match self.endings.letters() {
            None => Ok(Ending::Dead(None)),
            Some(letters) => Self::room_for(&letters, u64::from(slot.entry.len)).and_then(|()| {
                let letter = self.letter_of(slot)?;
                let mut made = [match letter.reason {
                    Reason::Damaged => letter,
                    _ => Letter { reason: Reason::TooLarge, detail: detail.clone(), ..letter },
                }];
                letters.append(&mut made)?;
                Ok(Ending::of(&made[0]))
            }),
        };
        match ending {
            Ok(ending) => {
                self.letters_work();
                tracing::error!(position = slot.position.0, "an event is too large to be sent, and set aside as dead: {detail}");
                self.end(at, &[seq], std::iter::once(ending));
                Size::Ended
            }
            Err(error) => {
                self.letters_stuck(&error, now);
                let again = now + super::expire::RETRY_WAIT;
                self.queues[at].not_before = again;
                self.wake(again);
                Size::Waits
            }
        }
    }
}
