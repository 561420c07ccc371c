//! Seeded crashes of the real spool on a disk that loses power.

#[path = "common/fake_kinesis.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the double")]
mod fake_kinesis;
#[path = "common/fault_files.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the double")]
mod fault_files;
