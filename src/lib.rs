pub mod checkpoint;
pub mod config;
pub mod event;
pub mod host;
pub mod kinesis;
pub mod limits;
pub mod metrics;
pub mod spool;
