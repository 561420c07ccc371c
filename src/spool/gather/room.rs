//! Whether there is room for a group, and what the sources have taken of it.
//!
//! Place: below `gather`. The commit thread asks its [`Room`] before each group, and books what it committed in the
//! [`Book`]; the doors only read the flags that follow from it ([`StreamMetrics::full_by`](crate::metrics::StreamMetrics::full_by), [`SourceUsage::is_full`]).
//!
//! Three limits, in this order: `max_bytes`, from the table of segments; the reserve, from statvfs, asked again after
//! [`SPACE_CHECK_INTERVAL`] or when what was free then, less what was written since, comes near it, so that no commit costs
//! a system call; and the device's own refusal, which `gather` meets when it writes.
//!
//! The book is kept by segment, since room comes back by segment. It is memory only: after a restart what earlier
//! segments hold counts for nobody, and they are the first to be delivered. Failure: a file system that does not tell its
//! room is taken to have some, which is said once. Absent on purpose: policy (what is done when there is none).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::commit::Writer;
use super::super::segment::{SegmentId, SegmentTable};
use super::{Gathering, Shared};
use crate::config::{OnFull, SpoolConfig, SyncClass};
use crate::metrics::{Limit, SourceUsage, locked};

/// How long an answer of statvfs is believed, while it is far from the reserve.
const SPACE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The reserve where none is set: several of the largest things that delivery may write meanwhile (a checkpoint, the
/// store of marks as it rewrites itself, dead letters) ...
const RESERVE_BYTES: u64 = 256 << 20;

/// ... but no more than this part of the file system: a small disk is not to be given up to caution. It is what ext4 sets
/// aside for root by default.
const RESERVE_PART: u64 = 20;

/// Room that is asked for beside a group after the device itself has refused: below it, it would refuse again.
const DISK_SLACK_BYTES: u64 = 1 << 20;

/// What a spool promises and does, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What a receipt means.
    pub sync: SyncClass,
    /// What happens to new events while there is no room.
    pub on_full: OnFull,
    /// Free bytes that are left on the file system. `None`: 256 MiB, or a twentieth of a smaller one.
    pub reserve: Option<u64>,
}

impl Default for Policy {
    /// Synced, blocking, and no reserve: what a spool does before it is told otherwise.
    fn default() -> Self {
        Self { sync: SyncClass::Always, on_full: OnFull::Block, reserve: Some(0) }
    }
}

impl Policy {
    /// As configured.
    #[must_use]
    pub fn of(config: &SpoolConfig) -> Self {
        Self { sync: config.sync, on_full: config.on_full, reserve: config.reserve }
    }
}

/// The commit thread's view of the limits.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Free bytes by the last statvfs, less what was written since; when that was asked; and the reserve in force.
    space: Option<(u64, Duration, u64)>,
    /// A file system that does not tell has been told of.
    told: bool,
}

impl Room {
    /// Why `cost` bytes more have no room, if they have none.
    pub(super) fn limit(&mut self, shared: &Shared, cost: u64) -> Option<Limit> {
        if shared.table.bytes() + cost > shared.max_bytes {
            return Some(Limit::MaxBytes);
        }
        if shared.policy().reserve == Some(0) {
            return None;
        }
        let now = shared.host.clock.monotonic();
        let far = self.space.is_some_and(|(free, asked, reserve)| {
            now.saturating_sub(asked) < SPACE_CHECK_INTERVAL && free.saturating_sub(cost) >= reserve
        });
        if !far {
            self.ask(shared, now);
        }
        self.space.filter(|(free, _, reserve)| free.saturating_sub(cost) < *reserve).map(|_| Limit::Reserve)
    }

    /// The same after the device refused, in place of trying it with events.
    pub(super) fn limit_after_refusal(&mut self, shared: &Shared, cost: u64) -> Option<Limit> {
        let refused = || shared.host.files.space(shared.table.dir()).is_ok_and(|space| space.free < cost + DISK_SLACK_BYTES);
        self.limit(shared, cost).or_else(|| refused().then_some(Limit::Disk))
    }

    /// Notes what was written.
    pub(super) fn wrote(&mut self, bytes: u64) {
        if let Some((free, _, _)) = &mut self.space {
            *free = free.saturating_sub(bytes);
        }
    }

    fn ask(&mut self, shared: &Shared, now: Duration) {
        self.space = match shared.host.files.space(shared.table.dir()) {
            Ok(space) if space.total > 0 => {
                let reserve = shared.policy().reserve.unwrap_or(RESERVE_BYTES.min(space.total / RESERVE_PART));
                Some((space.free, now, reserve))
            }
            told => {
                if !std::mem::replace(&mut self.told, true) {
                    let error = told.err().map(|error| error.to_string());
                    tracing::warn!(error, "the file system of the spool does not tell its free space: spool.reserve is not kept");
                }
                None
            }
        };
    }
}

/// A time without room, from the first event without a place to the first that found one again.
#[derive(Debug)]
pub(super) struct Episode {
    /// What bound first.
    pub(super) limit: Limit,
    /// Bytes that had no room: so much must be free for it to be over.
    pub(super) cost: u64,
    /// Events refused before it.
    pub(super) refused_before: u64,
}

/// Which segment holds how many bytes of which source. A source is known by its number, from 1; 0 is nobody.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<BTreeMap<SegmentId, BTreeMap<u16, u64>>>);

impl Book {
    /// Books a committed group.
    pub(super) fn add(&self, segment: SegmentId, group: &Gathering, usages: &[Arc<SourceUsage>]) {
        if usages.is_empty() {
            return;
        }
        let mut book = locked(&self.0);
        let held = book.entry(segment).or_default();
        for waiting in &group.waiting {
            if let Some(usage) = usage(usages, waiting.source) {
                let bytes = u64::from(waiting.bytes);
                *held.entry(waiting.source).or_default() += bytes;
                usage.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Gives back what segments held that are in the table no more.
    pub(super) fn release(&self, table: &SegmentTable, usages: &[Arc<SourceUsage>]) {
        let mut book = locked(&self.0);
        let gone: Vec<SegmentId> = book.keys().copied().filter(|id| table.get(*id).is_none()).collect();
        for id in gone {
            for (source, bytes) in book.remove(&id).unwrap_or_default() {
                let Some(usage) = usage(usages, source) else { continue };
                usage.bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
        drop(book);
        for usage in usages.iter().filter(|usage| !usage.is_full()) {
            if usage.at_quota.swap(false, Ordering::Relaxed) {
                let refused = usage.refused.swap(0, Ordering::Relaxed);
                tracing::info!(source = usage.name, refused, "the source is below its spool_quota again");
            }
            usage.freed.notify_waiters();
        }
    }
}

/// A source by its number.
pub(super) fn usage(usages: &[Arc<SourceUsage>], source: u16) -> Option<&Arc<SourceUsage>> {
    usages.get(usize::from(source).checked_sub(1)?)
}

/// When the commit thread must sync what it wrote, in the class `interval`.
#[derive(Debug, Default)]
pub struct SyncTimer {
    due: Option<Duration>,
}

impl SyncTimer {
    /// Notes a write. The first one since the last sync begins the time.
    pub fn wrote(&mut self, class: SyncClass, now: Duration) {
        if let SyncClass::Interval(after) = class {
            self.due.get_or_insert(now + after);
        }
    }

    /// A sync is due sooner or later.
    pub(super) fn is_set(&self) -> bool {
        self.due.is_some()
    }

    /// How long until the sync is due, while one is.
    pub(super) fn remaining(&self, now: Duration) -> Option<Duration> {
        self.due.map(|due| due.saturating_sub(now))
    }

    /// Syncs if it is due. False if that failed.
    pub fn run(&mut self, writer: &mut Writer, now: Duration) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return true;
        }
        self.due = None;
        writer.sync();
        !told_doubtful(writer)
    }
}

/// Says loudly which receipted events a power cut may cost now. True if there are any.
pub(super) fn told_doubtful(writer: &mut Writer) -> bool {
    let Some(doubtful) = writer.take_doubtful() else { return false };
    tracing::error!(
        error = %doubtful.error,
        first = doubtful.first.0,
        events = doubtful.events,
        "a sync failed for events that were receipted before it (spool.sync is weaker than \"always\"): a power cut now may cost them; going on in a new file"
    );
    true
}
