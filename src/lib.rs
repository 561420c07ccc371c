//! forebay: a local agent that has an application's events on disk before it says "received", and then gives
//! each Kinesis shard exactly what it can take.
//!
//! The way of one event; replay is the same way, entered at the cursor:
//!
//! ```text
//!  socket, HTTP --> ingest --> spool (commit > segments) --> dispatch (lanes > shards) --> aggregate --> kinesis
//!       ^             receipt <---'        ^                                                               |
//!       '----------------'                 '----------- checkpoint (sled) <-- answers, entry by entry <----'
//! ```
//!
//! The words, each with one meaning: an *event* is what an application hands over; a *frame* is an event on
//! disk; a *commit* is a group of frames made durable by one fdatasync; a *receipt* is the answer to the
//! application, after the commit; a *position* is an event's dense number in its stream's spool; a *lane* is one
//! of 1024 cuts of the key-hash space; a *record* is what Kinesis stores; a *request* is one PutRecords; a
//! *delivery* is an answer with a sequence number from a shard whose range holds the event; a *checkpoint* is
//! durable knowledge of deliveries; *settled* is delivered, dead, expired or dropped.
//!
//! The invariants, by the names that asserts and tests use: *RECEIPT-AFTER-SYNC*, *NOTHING-LOST*,
//! *DELIVERED-MEANS-READABLE*, *KEY-ORDER*, *NO-BLOCKING*, *EXACT-ACCOUNT*, *DUPLICATES-EXPLAINED*,
//! *INSIDE-THE-LIMITS*, *BORING-RECOVERY*. `docs/ARCHITECTURE.md` says what each means and where it is kept.
//!
//! Modules in reading order: [`event`] and [`limits`] (vocabulary and bounds), [`host`] (the door to the machine),
//! [`coding`] (files compressed and encrypted), [`spool`], [`dispatch`], [`aggregate`], [`lines`], [`shard_map`], [`kinesis`], [`checkpoint`], then [`ingest`], [`config`],
//! [`agent`] (all of it put together), [`admin`], and the commands.

// The tests' disk double is written against the library from outside, and its unit tests use it too.
#[cfg(test)]
extern crate self as forebay;

pub mod activation;
pub mod admin;
pub mod agent;
pub mod aggregate;
pub mod checkpoint;
pub mod cli;
pub mod coding;
pub mod commands;
pub mod config;
pub mod consumer;
pub mod deaggregate;
#[cfg(feature = "dev")]
pub mod dev;
pub mod dispatch;
pub mod event;
pub mod exit;
pub mod host;
pub mod iam;
pub mod ingest;
pub mod kinesis;
pub mod limits;
pub mod lines;
pub mod logging;
pub mod md5_lanes;
pub mod metrics;
pub mod shard_map;
pub mod spool;
pub mod supervisor;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeExamples;
