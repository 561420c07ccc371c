//! What `/status` and `/readyz` say: the shape, and how it is read off the live numbers.
//!
//! Place: `admin` serves it, `forebay status` reads it back into the same types. Field names are an
//! interface: they are only ever added to. All times are seconds, all sizes bytes.
//!
//! Owner: nobody; a report is a copy. *EXACT-ACCOUNT*: each stream's account is copied under its lock, so that
//! accepted = delivered + pending + dead + expired + dropped holds in every report.
//!
//! Absent on purpose: event data, keys, rates (whoever polls twice can subtract).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::metrics::{Account, Histogram, HotKey, Limit, ModeStatus, SourceUsage, StreamMetrics, locked};

/// What the agent does with new events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// Events are taken.
    Accepting,
    /// No new events; what is in the spools is being delivered, then the agent exits.
    Draining,
}

/// The body of `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of the agent that answers.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Accepting or draining.
    pub state: AgentState,
    /// One entry a stream, in the order of the configuration.
    pub streams: Vec<StreamReport>,
}

/// One stream in `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Name as configured.
    pub name: String,
    /// The balance.
    pub account: AccountReport,
    /// Events accepted by this process, by source.
    #[serde(default)]
    pub accepted_by_source: BTreeMap<String, u64>,
    /// Events refused at the door by this process, by `source/reason`.
    pub rejected: BTreeMap<String, u64>,
    /// Events sent again though an earlier sending may have been stored, by reason.
    pub duplicated: BTreeMap<String, u64>,
    /// The spool.
    pub spool: SpoolReport,
    /// The dead letters.
    #[serde(default)]
    pub dead_letters: DeadReport,
    /// What went to Kinesis.
    pub put: PutReport,
    /// What is known of the stream as a whole.
    #[serde(default)]
    pub mode: ModeReport,
    /// What could be configured for more events a second; empty when there is nothing to say.
    #[serde(default)]
    pub advice: String,
    /// Why delivery is paused; empty when it is not.
    pub paused_reason: String,
    /// Why the marks of what is delivered cannot be saved; empty when they can.
    #[serde(default)]
    pub checkpoint_reason: String,
    /// Latencies since the start of the process.
    pub latency: LatencyReports,
    /// Shards as last seen.
    pub shards: Vec<ShardReport>,
}

/// accepted = delivered + pending + dead + expired + dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReport {
    /// Events ever receipted into this spool.
    pub accepted: u64,
    /// Of these: Kinesis has them, readable.
    pub delivered: u64,
    /// Neither delivered nor otherwise settled.
    pub pending: u64,
    /// Set aside with a reason.
    pub dead: u64,
    /// Too old by the user's rule.
    pub expired: u64,
    /// Given up by a policy the user chose.
    pub dropped: u64,
}

impl From<Account> for AccountReport {
    fn from(account: Account) -> Self {
        let Account { accepted, delivered, dead, expired, dropped } = account;
        Self { accepted, delivered, pending: account.pending(), dead, expired, dropped }
    }
}

/// The state of a stream's spool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpoolReport {
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Age of the oldest pending event; 0 when none is pending.
    pub oldest_pending_seconds: f64,
    /// The spool can make events durable.
    pub writable: bool,
    /// There is no room for new events: they wait or are refused, as `on_full` has it.
    pub full: bool,
    /// Why it could not be opened: nothing is taken for the stream, its numbers are not known, and it is tried again. Empty when
    /// it is open.
    #[serde(default)]
    pub closed_reason: String,
    /// Which limit that is: `max_bytes`, `reserve` or `disk`; empty while there is room.
    #[serde(default)]
    pub full_by: String,
    /// What a receipt means: `spool.sync` in force; empty before the spool runs.
    #[serde(default)]
    pub sync: String,
    /// `spool.on_full` in force.
    #[serde(default)]
    pub on_full: String,
    /// What each source has in the spool, by name.
    #[serde(default)]
    pub sources: BTreeMap<String, SourceReport>,
}

/// A source's part of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Bytes of its events that this process accepted, in segments that are still there.
    pub bytes: u64,
    /// The most it may have; `None` without a quota.
    pub quota_bytes: Option<u64>,
    /// It is at its quota: its events wait or are refused, as `on_full` has it.
    pub full: bool,
    /// Events that this process did not store because of `allow` and `deny`.
    #[serde(default)]
    pub filtered: u64,
    /// Events that this process did not store because they were stored before (`dedupe`).
    #[serde(default)]
    pub deduplicated: u64,
    /// Ids for `dedupe` that this process forgot before their time, because there were too many.
    #[serde(default)]
    pub ids_forgotten: u64,
}

impl From<&SourceUsage> for SourceReport {
    fn from(usage: &SourceUsage) -> Self {
        Self {
            bytes: usage.bytes.load(Ordering::Relaxed),
            quota_bytes: (usage.quota < u64::MAX).then_some(usage.quota),
            full: usage.is_full(),
            filtered: usage.filtered.load(Ordering::Relaxed),
            deduplicated: usage.deduplicated.load(Ordering::Relaxed),
            ids_forgotten: usage.forgotten.load(Ordering::Relaxed),
        }
    }
}

/// The dead letters that are kept. What was retried or purged is in the account only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadReport {
    /// Letters.
    pub held: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Why none can be written, so that their events stay pending; empty when they can.
    pub stuck_reason: String,
}

/// What went to Kinesis since the start of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutReport {
    /// Each record by a PutRecord of its own, which is slower: PutRecords is denied.
    #[serde(default)]
    pub singly: bool,
    /// PutRecords by outcome: `ok`, `partial`, or an error class' name.
    pub requests: BTreeMap<String, u64>,
    /// Records stored.
    pub records: u64,
    /// Bytes stored: data and keys.
    pub bytes: u64,
    /// 25 KiB units stored, as provisioned streams bill them.
    pub payload_units: u64,
    /// Records that a shard refused for its rate.
    pub throttled: u64,
}

/// The stream's mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeReport {
    /// `ACTIVE` and its like, as Kinesis said last; empty before it did.
    pub status: String,
    /// `on_demand` or `provisioned`; empty when it is not known.
    pub capacity: String,
    /// `kms` or `none`; empty when it is not known.
    pub encryption: String,
    /// The largest record that the stream takes, bytes; `None` when it is not known.
    pub record_bytes_max: Option<u64>,
    /// Whether partition keys decide a record's shard: `decide`, `ignored` (record distribution AUTO), `unknown`.
    pub keys: String,
    /// The form of records in force: `off`, `kpl`, `lines`.
    pub aggregate: String,
    /// That is not the configured one.
    pub is_fallback: bool,
    /// What the mode costs the user, and why; empty when nothing.
    pub reason: String,
}

impl From<&ModeStatus> for ModeReport {
    fn from(mode: &ModeStatus) -> Self {
        let ModeStatus { summary, keys, aggregate, is_fallback, reason } = mode;
        let told = Self {
            keys: (*keys).into(),
            aggregate: (*aggregate).into(),
            is_fallback: *is_fallback,
            reason: reason.clone(),
            ..Self::default()
        };
        let Some(summary) = summary else { return told };
        let capacity = match summary.on_demand {
            Some(true) => "on_demand",
            Some(false) => "provisioned",
            None => "",
        };
        Self {
            status: summary.status.clone(),
            capacity: capacity.into(),
            encryption: (if summary.key.is_some() { "kms" } else { "none" }).into(),
            record_bytes_max: summary.record_bytes_max.map(|bytes| bytes as u64),
            ..told
        }
    }
}

/// The three latencies of an event's way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyReports {
    /// One fdatasync with its write.
    pub commit: LatencyReport,
    /// From admission to receipt.
    pub receipt: LatencyReport,
    /// From receipt to Kinesis' answer.
    pub delivery: LatencyReport,
}

/// Quantiles of one latency, estimated from its histogram; `None` without observations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Median, seconds.
    pub p50: Option<f64>,
    /// 99th percentile, seconds.
    pub p99: Option<f64>,
    /// Observations.
    pub count: u64,
}

impl From<&Histogram> for LatencyReport {
    fn from(histogram: &Histogram) -> Self {
        let [p50, p99] = histogram.quantiles([0.5, 0.99]).map_or([None; 2], |two| two.map(|s| Some(whole_nanos(s))));
        Self { p50, p99, count: histogram.count() }
    }
}

/// An estimate's digits below a nanosecond only lengthen the JSON.
fn whole_nanos(seconds: f64) -> f64 {
    (seconds * 1e9).round() / 1e9
}

/// One shard, as the limiter and the lanes see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Shard name.
    pub id: String,
    /// Bytes/s the limiter grants at present.
    pub rate_bytes: u64,
    /// Events waiting in memory.
    pub queued_events: u64,
    /// Records stored there by this process.
    pub records: u64,
    /// Throttled answers.
    pub throttled: u64,
    /// Reads its backlog from disk at present.
    pub lagging: bool,
    /// Keys that have a tenth or more of what goes there, the hottest first; left out where none has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hot_keys: Vec<HotKey>,
}

impl StreamReport {
    /// Reads one stream's numbers. `now_ms` is the wall clock, milliseconds since 1970 UTC.
    #[must_use]
    pub fn read(name: &str, metrics: &StreamMetrics, now_ms: u64) -> Self {
        let shards = locked(&metrics.shards)
            .iter()
            .map(|shard| ShardReport {
                id: shard.id.clone(),
                rate_bytes: shard.rate_bytes,
                queued_events: shard.queued_events,
                records: shard.records,
                throttled: shard.throttled,
                lagging: shard.lagging,
                hot_keys: shard.hot_keys.clone(),
            })
            .collect();
        Self {
            name: name.to_owned(),
            account: (*locked(&metrics.account)).into(),
            accepted_by_source: locked(&metrics.accepted_by_source).clone(),
            rejected: locked(&metrics.rejected)
                .iter()
                .map(|((source, reason), count)| (format!("{source}/{reason}"), *count))
                .collect(),
            duplicated: owned(&locked(&metrics.duplicated)),
            spool: SpoolReport {
                bytes: metrics.spool_bytes.load(Ordering::Relaxed),
                oldest_pending_seconds: oldest_seconds(metrics, now_ms),
                writable: metrics.writable.load(Ordering::Relaxed),
                full: metrics.full.load(Ordering::Relaxed),
                closed_reason: locked(&metrics.closed_reason).clone(),
                full_by: metrics.full_by().map(|limit| limit.name().to_owned()).unwrap_or_default(),
                sync: metrics.policy.get().map(|policy| policy.sync.clone()).unwrap_or_default(),
                on_full: metrics.policy.get().map(|policy| policy.on_full.to_owned()).unwrap_or_default(),
                sources: locked(&metrics.sources).iter().map(|usage| (usage.name.clone(), (&**usage).into())).collect(),
            },
            dead_letters: DeadReport {
                held: metrics.dead_letters.load(Ordering::Relaxed),
                bytes: metrics.dead_letter_bytes.load(Ordering::Relaxed),
                stuck_reason: locked(&metrics.dead_reason).clone(),
            },
            put: PutReport {
                singly: metrics.put_singly.load(Ordering::Relaxed),
                requests: owned(&locked(&metrics.put_requests)),
                records: metrics.put_records.load(Ordering::Relaxed),
                bytes: metrics.put_bytes.load(Ordering::Relaxed),
                payload_units: metrics.put_payload_units.load(Ordering::Relaxed),
                throttled: metrics.throttled.load(Ordering::Relaxed),
            },
            mode: (&*locked(&metrics.mode)).into(),
            advice: locked(&metrics.advice).clone(),
            paused_reason: locked(&metrics.paused_reason).clone(),
            checkpoint_reason: locked(&metrics.checkpoint_reason).clone(),
            latency: LatencyReports {
                commit: (&metrics.commit_seconds).into(),
                receipt: (&metrics.receipt_seconds).into(),
                delivery: (&metrics.delivery_seconds).into(),
            },
            shards,
        }
    }
}

fn owned(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
}

/// Age of the oldest pending event in seconds; 0 when there is none, or when the wall clock went back.
fn oldest_seconds(metrics: &StreamMetrics, now_ms: u64) -> f64 {
    match metrics.oldest_pending_ms.load(Ordering::Relaxed) {
        0 => 0.0,
        oldest_ms => now_ms.saturating_sub(oldest_ms) as f64 / 1e3,
    }
}

/// What stands against readiness, and what ends it.
const fn full_reason(limit: Limit) -> &'static str {
    match limit {
        Limit::Reserve => {
            "the spool is full: its disk has less free than spool.reserve; it takes events again as delivery or somebody else frees space"
        }
        Limit::Disk => {
            "the spool is full: its disk has no room left; it takes events again as delivery or somebody else frees space"
        }
        Limit::MaxBytes | Limit::Quota => {
            "the spool is full (spool.max_bytes); it takes events again as delivery frees whole segments"
        }
    }
}

/// The body of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReadyReport {
    /// Events are taken and made durable. Decides between 200 and 503.
    pub ready: bool,
    /// What stands against it that concerns no single stream; empty when nothing does.
    pub reasons: Vec<String>,
    /// Each stream.
    pub streams: Vec<StreamReadiness>,
}

/// One stream in `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamReadiness {
    /// Name as configured.
    pub name: String,
    /// Its spool takes events.
    pub ready: bool,
    /// Why not; empty when it does.
    pub reasons: Vec<String>,
    /// Kinesis takes what the spool holds. Never decides readiness: that is what the spool is for.
    pub delivering: bool,
    /// Why it does not; empty when it does.
    pub paused_reason: String,
}

impl ReadyReport {
    /// Judges all streams.
    #[must_use]
    pub fn read(streams: &[(String, Arc<StreamMetrics>)], draining: bool) -> Self {
        let streams: Vec<_> = streams
            .iter()
            .map(|(name, metrics)| {
                let mut reasons = Vec::new();
                let closed = locked(&metrics.closed_reason).clone();
                if !closed.is_empty() {
                    reasons.push(format!("the spool is not open, and is tried again: {closed}"));
                } else if !metrics.writable.load(Ordering::Relaxed) {
                    let what = "the spool cannot make events durable (not open yet, or a write or sync failed: see the log)";
                    reasons.push(what.to_owned());
                }
                reasons.extend(metrics.full_by().map(|limit| full_reason(limit).to_owned()));
                let paused_reason = locked(&metrics.paused_reason).clone();
                StreamReadiness {
                    name: name.clone(),
                    ready: reasons.is_empty(),
                    reasons,
                    delivering: paused_reason.is_empty(),
                    paused_reason,
                }
            })
            .collect();
        let mut reasons = Vec::new();
        if draining {
            reasons.push("the agent is draining and takes no new events".to_owned());
        }
        let ready = reasons.is_empty() && streams.iter().all(|stream| stream.ready);
        Self { ready, reasons, streams }
    }
}

/// How the streams stand, in one line for a service manager: what was taken, what is pending, and what needs somebody.
#[must_use]
pub fn line(streams: &[(String, Arc<StreamMetrics>)]) -> String {
    let (mut accepted, mut pending) = (0, 0);
    let mut cares = String::new();
    for (name, metrics) in streams {
        {
            let account = locked(&metrics.account);
            accepted += account.accepted;
            pending += account.pending();
        }
        let paused = locked(&metrics.paused_reason).clone();
        let care = if !metrics.writable.load(Ordering::Relaxed) {
            "the spool cannot make events durable: see the log"
        } else if let Some(limit) = metrics.full_by() {
            full_reason(limit)
        } else if !paused.is_empty() {
            &paused
        } else {
            continue;
        };
        cares.push_str("; stream ");
        cares.push_str(name);
        cares.push_str(": ");
        cares.extend(care.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    format!("accepting; {accepted} events in all, {pending} pending{cares}")
}
