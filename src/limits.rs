//! Every bound, with its source, and the proofs that they fit together.
//!
//! Service limits are as of 2026-11-20; where AWS raised one (10 MiB records and requests, only where the
//! stream allows it), the older, safe value stands here and the newer one is a setting.

/// Records in one PutRecords. AWS API reference, `PutRecords`: "up to 500 records".
pub const REQUEST_RECORDS_MAX: usize = 500;

/// Bytes in one PutRecords, data before base64 plus partition keys. AWS API reference (5 MiB; 10 MiB where
/// the newer quota is in force). Refusals at exactly the limit were seen in the field, hence [`MARGIN_BYTES`].
pub const REQUEST_BYTES_MAX: usize = 5 << 20;

/// Bytes of one record, data before base64 plus partition key. Kinesis quotas page: 1 MiB by default.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

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
pub const EVENT_BYTES_MAX: usize = RECORD_BYTES_MAX - MARGIN_BYTES - KEY_BYTES_MAX;

/// Default ceiling of an aggregated record. Larger ones cost the SDK the same per byte, but may never get
/// into a shard that others use too (`docs/ARCHITECTURE.md`, "Record size").
pub const AGGREGATE_BYTES_DEFAULT: usize = 256 << 10;

/// Bytes of frames after which a segment is sealed and the next one begun.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Bytes that ingest may hold between a socket and the disk, for one stream.
pub const INGEST_BYTES_MAX: usize = 32 << 20;

/// Size that a batch buffer has at first and that ingest aims for.
pub const BATCH_BYTES: usize = 128 << 10;

/// Bytes of committed batches kept for a dispatcher that has not read them yet.
pub const HOT_TAIL_BYTES_MAX: usize = 16 << 20;

/// Bytes of batches the dispatcher keeps to pack records from; older ones are read from disk again.
pub const WINDOW_BYTES_MAX: usize = 16 << 20;

/// Bytes of record data that may be under way to Kinesis at once, for one stream.
pub const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;

const _: () = {
    assert!(EVENT_BYTES_MAX + KEY_BYTES_MAX + MARGIN_BYTES <= RECORD_BYTES_MAX);
    assert!(AGGREGATE_BYTES_DEFAULT <= RECORD_BYTES_MAX - MARGIN_BYTES);
    assert!(RECORD_BYTES_MAX <= REQUEST_BYTES_MAX - MARGIN_BYTES);
    assert!(REQUEST_BYTES_MAX <= IN_FLIGHT_BYTES_MAX);
    // The largest event with its frame header fits the admission budget and a segment many times over.
    assert!(8 * (EVENT_BYTES_MAX + KEY_BYTES_MAX + 64) <= INGEST_BYTES_MAX);
    assert!(8 * (RECORD_BYTES_MAX as u64) <= SEGMENT_BYTES_DEFAULT);
    // Offsets in a segment are u32, sealed index included.
    assert!(SEGMENT_BYTES_DEFAULT < (u32::MAX / 4) as u64);
};
