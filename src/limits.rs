//! Every bound, with its source, and the proofs that they fit together.
//!
//! Service limits are as of 2026-11-20. Where AWS raised one (10 MiB records, where the stream allows them, and 10 MiB
//! requests), `_MAX` is the older, safe value, which is the default, and `_CEILING` the newer one, which is the most that can
//! be set.

/// Records in one PutRecords. AWS API reference, `PutRecords`: "up to 500 records".
pub const REQUEST_RECORDS_MAX: usize = 500;

/// Bytes in one PutRecords, data before base64 plus partition keys. AWS API reference (5 MiB; 10 MiB where
/// the newer quota is in force). Refusals at exactly the limit were seen in the field, hence [`MARGIN_BYTES`].
pub const REQUEST_BYTES_MAX: usize = 5 << 20;

/// The same where the newer quota is in force, with [`MARGIN_BYTES`] off.
pub const REQUEST_BYTES_CEILING: usize = (10 << 20) - MARGIN_BYTES;

/// Bytes of one record, data before base64 plus partition key. Kinesis quotas page: 1 MiB by default.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// The same on a stream whose `MaxRecordSizeInKiB` was raised (`UpdateMaxRecordSize`: 1,024 to 10,240). Quotas page: such
/// records are meant to be few.
pub const RECORD_BYTES_CEILING: usize = 10 << 20;

/// What we stay below each byte limit.
pub const MARGIN_BYTES: usize = 1 << 10;

/// Unicode characters of a partition key, 1 to this. AWS API reference, `PartitionKey`.
pub const KEY_CHARS_MAX: usize = 256;

/// UTF-8 bytes that a key of [`KEY_CHARS_MAX`] characters can take.
pub const KEY_BYTES_MAX: usize = 4 * KEY_CHARS_MAX;

/// Bytes a shard takes each second. Kinesis quotas page.
pub const SHARD_BYTES_PER_SECOND: u64 = 1 << 20;

/// Records a shard takes each second. Kinesis quotas page.
pub const SHARD_RECORDS_PER_SECOND: u64 = 1_000;

/// Largest event data by default: with the longest key it still makes a record.
pub const EVENT_BYTES_MAX: usize = event_bytes_of(RECORD_BYTES_MAX);

/// Largest event data that can be configured.
pub const EVENT_BYTES_CEILING: usize = event_bytes_of(RECORD_BYTES_CEILING);

/// Largest event data that makes a record of at most `record_bytes` with any key.
#[must_use]
pub const fn event_bytes_of(record_bytes: usize) -> usize {
    record_bytes - MARGIN_BYTES - KEY_BYTES_MAX
}

/// Default ceiling of an aggregated record. Larger ones cost the SDK the same per byte, but may never get
/// into a shard that others use too (`docs/ARCHITECTURE.md`, "Record size").
pub const AGGREGATE_BYTES_DEFAULT: usize = 256 << 10;

/// Bytes of frames after which a segment is sealed and the next one begun.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Bytes that ingest may hold between a socket and the disk, for one stream.
pub const INGEST_BYTES_MAX: usize = 32 << 20;

/// The most of it that is admitted at once: the largest event, and the batch in which it lies. So the largest goes alone,
/// and does not wait for all others.
pub const ADMIT_BYTES_MAX: usize = INGEST_BYTES_MAX / 8 * 3;

/// Size that a batch buffer has at first and that ingest aims for.
pub const BATCH_BYTES: usize = 128 << 10;

/// Bytes of committed batches kept for a dispatcher that has not read them yet.
pub const HOT_TAIL_BYTES_MAX: usize = 16 << 20;

/// Bytes of batches the dispatcher keeps to pack records from; older ones are read from disk again.
pub const WINDOW_BYTES_MAX: usize = 12 << 20;

/// Bytes of record data that may be under way to Kinesis at once, for one stream.
pub const IN_FLIGHT_BYTES_MAX: usize = 12 << 20;

/// What one stream's part of the memory is, bytes, where several share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Of [`INGEST_BYTES_MAX`].
    pub ingest_bytes: usize,
    /// Of [`HOT_TAIL_BYTES_MAX`].
    pub hot_tail_bytes: usize,
    /// Of [`WINDOW_BYTES_MAX`].
    pub window_bytes: usize,
    /// Of [`IN_FLIGHT_BYTES_MAX`].
    pub in_flight_bytes: usize,
    /// A request is filled so far, if its stream allows as much: several are to be under way at once. A larger record goes
    /// alone.
    pub request_bytes: usize,
    /// In this many parts the memory is shared.
    pub parts: usize,
}

/// Below this part of the whole no stream's memory goes: so much it needs to keep its rate.
const PARTS_MAX: usize = 8;

impl Budgets {
    /// One of `streams` equal parts. Memory does not grow with the number of streams up to 8; each one more has as much as
    /// each of eight.
    #[must_use]
    pub const fn of_one_in(streams: usize) -> Self {
        let parts = if streams > PARTS_MAX {
            PARTS_MAX
        } else if streams == 0 {
            1
        } else {
            streams
        };
        let in_flight_bytes = IN_FLIGHT_BYTES_MAX / parts;
        Self {
            ingest_bytes: INGEST_BYTES_MAX / parts,
            hot_tail_bytes: HOT_TAIL_BYTES_MAX / parts,
            window_bytes: WINDOW_BYTES_MAX / parts,
            in_flight_bytes,
            request_bytes: if parts == 1 { usize::MAX } else { in_flight_bytes / 3 },
            parts,
        }
    }
}

impl Default for Budgets {
    /// All of it, for an only stream.
    fn default() -> Self {
        Self::of_one_in(1)
    }
}

const _: () = {
    assert!(EVENT_BYTES_MAX + KEY_BYTES_MAX + MARGIN_BYTES <= RECORD_BYTES_MAX);
    assert!(AGGREGATE_BYTES_DEFAULT <= RECORD_BYTES_MAX - MARGIN_BYTES);
    assert!(RECORD_BYTES_MAX <= REQUEST_BYTES_MAX - MARGIN_BYTES);
    assert!(REQUEST_BYTES_MAX <= IN_FLIGHT_BYTES_MAX);
    // The largest event that can be configured fits the largest request, and what is admitted at once.
    assert!(EVENT_BYTES_CEILING + KEY_BYTES_MAX <= REQUEST_BYTES_CEILING);
    assert!(EVENT_BYTES_CEILING + KEY_BYTES_MAX + 64 + 2 * BATCH_BYTES <= ADMIT_BYTES_MAX);
    // Equal parts fill the whole, and several requests of a part are under way at once, each with room for a usual record.
    let part = Budgets::of_one_in(PARTS_MAX);
    assert!(part.ingest_bytes * PARTS_MAX == INGEST_BYTES_MAX && part.window_bytes * PARTS_MAX == WINDOW_BYTES_MAX);
    assert!(3 * part.request_bytes <= part.in_flight_bytes && part.request_bytes >= 2 * AGGREGATE_BYTES_DEFAULT);
    // The largest event by default with its frame header fits the admission budget and a segment many times over.
    assert!(8 * (EVENT_BYTES_MAX + KEY_BYTES_MAX + 64) <= INGEST_BYTES_MAX);
    assert!(8 * (RECORD_BYTES_MAX as u64) <= SEGMENT_BYTES_DEFAULT);
    // Offsets in a segment are u32, sealed index included.
    assert!(SEGMENT_BYTES_DEFAULT < (u32::MAX / 4) as u64);
};
