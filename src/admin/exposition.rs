//! `/metrics`: every metric's name, labels and meaning, in the OpenMetrics text format.
//!
//! Place: `admin` calls [`encode`] for each scrape. Names and labels are an interface (dashboards and alerts
//! hang on them): `tests/golden/metrics.txt` holds them, and a test compares. Each HELP text below is the
//! metric's documentation. Counters of the balance and `forebay_spool_*` survive a restart with the spool;
//! all others count since the start of the process.
//!
//! *EXACT-ACCOUNT*: all streams are read once, each account under its lock, before the first line is written;
//! so every scrape balances. The encoder appends `_total` to a counter's name and `_info` to an info's; no
//! unit is given to it, because it would append that too.
//!
//! Absent on purpose: labels with unbounded values (keys, users, addresses).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::report::{ShardReport, SourceReport, StreamReport};
use crate::metrics::{Histogram, LATENCY_BOUNDS_SECONDS, StreamMetrics};

/// Value of the `Content-Type` header that goes with [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole exposition, `# EOF` included. `now_ms` is the wall clock.
///
/// # Errors
/// Only if the encoder refuses, which writing to a `String` does not make it do.
pub fn encode(streams: &[(String, Arc<StreamMetrics>)], now_ms: u64) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape {
        streams: streams
            .iter()
            .map(|(name, metrics)| Reading { report: StreamReport::read(name, metrics, now_ms), metrics: Arc::clone(metrics) })
            .collect(),
    }));
    let mut text = String::with_capacity(4096 + 8192 * streams.len());
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Reading {
    report: StreamReport,
    metrics: Arc<StreamMetrics>,
}

/// All streams at one moment.
#[derive(Debug)]
struct Scrape {
    streams: Vec<Reading>,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out { encoder, streams: &self.streams };
        out.balance()?;
        out.door()?;
        out.spool()?;
        out.latencies()?;
        out.puts()?;
        out.shards()?;
        out.build_info()
    }
}

struct Out<'e, 's> {
    encoder: DescriptorEncoder<'e>,
    streams: &'s [Reading],
}

impl Out<'_, '_> {
    /// A counter with one value a stream. `name` is without `_total`.
    fn counter(&mut self, name: &str, help: &str, value: impl Fn(&Reading) -> u64) -> fmt::Result {
        self.counters(name, help, |reading, emit| emit(&[("stream", &reading.report.name)], value(reading)))
    }

    /// A counter with any number of label sets a stream.
    fn counters(&mut self, name: &str, help: &str, each: impl Fn(&Reading, Emit<'_, u64>) -> fmt::Result) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for reading in self.streams {
            each(reading, &mut |labels: &[(&str, &str)], value| {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
            })?;
        }
        Ok(())
    }

    /// A gauge with one value a stream.
    fn gauge(&mut self, name: &str, help: &str, value: impl Fn(&Reading) -> f64) -> fmt::Result {
        self.gauges(name, help, |reading, emit| emit(&[("stream", &reading.report.name)], value(reading)))
    }

    /// A gauge with any number of label sets a stream.
    fn gauges(&mut self, name: &str, help: &str, each: impl Fn(&Reading, Emit<'_, f64>) -> fmt::Result) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for reading in self.streams {
            each(reading, &mut |labels: &[(&str, &str)], value| family.encode_family(&labels)?.encode_gauge(&value))?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, of: impl Fn(&StreamMetrics) -> &Histogram) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for reading in self.streams {
            let (sum, counts) = of(&reading.metrics).snapshot();
            let bounds = LATENCY_BOUNDS_SECONDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            family.encode_family(&[("stream", reading.report.name.as_str())])?.encode_histogram::<NoLabelSet>(
                sum,
                counts.iter().sum(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    /// The balance: accepted = delivered + pending + dead + expired + dropped, in every scrape.
    fn balance(&mut self) -> fmt::Result {
        self.counter(
            "forebay_events_accepted",
            "Events ever made durable in this stream's spool: what was receipted.",
            |reading| reading.report.account.accepted,
        )?;
        self.counter("forebay_events_delivered", "Accepted events that Kinesis stored, readable by a consumer.", |reading| {
            reading.report.account.delivered
        })?;
        self.counter("forebay_events_dead", "Accepted events set aside as dead letters, each with its reason.", |reading| {
            reading.report.account.dead
        })?;
        self.counter("forebay_events_expired", "Accepted events that became too old by the configured rule.", |reading| {
            reading.report.account.expired
        })?;
        self.counter("forebay_events_dropped", "Accepted events given up by a policy the user chose.", |reading| {
            reading.report.account.dropped
        })?;
        self.gauge(
            "forebay_spool_pending_events",
            "Accepted events that are not settled: accepted - delivered - dead - expired - dropped.",
            |reading| reading.report.account.pending as f64,
        )?;
        self.gauge("forebay_dead_letters", "Dead letters that are kept: neither retried nor purged.", |reading| {
            reading.report.dead_letters.held as f64
        })?;
        self.gauge("forebay_dead_letter_bytes", "Bytes of the files of dead letters.", |reading| {
            reading.report.dead_letters.bytes as f64
        })
    }

    fn door(&mut self) -> fmt::Result {
        self.counters(
            "forebay_source_accepted",
            "Events accepted by this process, by the source they came through.",
            |reading, emit| by_label(reading, "source", &reading.report.accepted_by_source, emit),
        )?;
        self.counters(
            "forebay_events_rejected",
            "Events refused at the door and never accepted, by source and reason.",
            |reading, emit| {
                let stream = reading.report.name.as_str();
                reading.report.rejected.iter().try_for_each(|(key, count)| {
                    // A reason has no slash in it; a source's name may.
                    let (source, reason) = key.rsplit_once('/').unwrap_or((key, ""));
                    emit(&[("stream", stream), ("source", source), ("reason", reason)], *count)
                })
            },
        )?;
        self.counters(
            "forebay_events_filtered",
            "Events answered as success and never stored, because of their source's allow and deny; not part of the balance.",
            |reading, emit| by_rule(reading, emit, |source| source.filtered),
        )?;
        self.counters(
            "forebay_events_deduplicated",
            "Events answered as success and not stored again, because their id was stored before (dedupe); not part of the balance.",
            |reading, emit| by_rule(reading, emit, |source| source.deduplicated),
        )?;
        self.counters(
            "forebay_dedupe_ids_forgotten",
            "Ids for dedupe that were forgotten before their time, because a source had too many.",
            |reading, emit| by_rule(reading, emit, |source| source.ids_forgotten),
        )?;
        self.counters(
            "forebay_events_duplicated",
            "Events sent again though an earlier sending may have been stored, by reason: known duplicates.",
            |reading, emit| by_label(reading, "reason", &reading.report.duplicated, emit),
        )
    }

    fn spool(&mut self) -> fmt::Result {
        self.gauge("forebay_spool_bytes", "Bytes of all segment files of the stream's spool.", |reading| {
            reading.report.spool.bytes as f64
        })?;
        self.counter(
            "forebay_spool_rewritten_segments",
            "Segment files replaced by smaller ones because little of them was pending: a shard is stuck.",
            |reading| reading.metrics.rewritten_segments.load(std::sync::atomic::Ordering::Relaxed),
        )?;
        self.gauge("forebay_spool_oldest_seconds", "Age of the oldest pending event; 0 when none is pending.", |reading| {
            reading.report.spool.oldest_pending_seconds
        })?;
        self.gauge("forebay_spool_writable", "1 while the spool can make events durable.", |reading| {
            f64::from(u8::from(reading.report.spool.writable))
        })?;
        self.gauge(
            "forebay_spool_full",
            "1 while there is no room for new events (max_bytes, reserve or the disk; /status says which).",
            |reading| f64::from(u8::from(reading.report.spool.full)),
        )?;
        self.gauge(
            "forebay_checkpoint_failing",
            "1 while the marks of what is delivered cannot be saved: no disk space is freed, and a restart would send again.",
            |reading| f64::from(u8::from(!reading.report.checkpoint_reason.is_empty())),
        )?;
        self.gauges(
            "forebay_source_spool_bytes",
            "Bytes of a source's events, accepted by this process, in segments that are still there.",
            |reading, emit| by_source(reading, emit, |source| Some(source.bytes)),
        )?;
        self.gauges(
            "forebay_source_quota_bytes",
            "The most bytes that a source may have in the spool; only of sources with a quota.",
            |reading, emit| by_source(reading, emit, |source| source.quota_bytes),
        )?;
        self.gauge(
            "forebay_delivery_paused",
            "1 while delivery is paused for a cause that needs a person; /status says which.",
            |reading| f64::from(u8::from(!reading.report.paused_reason.is_empty())),
        )
    }

    fn latencies(&mut self) -> fmt::Result {
        self.histogram("forebay_commit_seconds", "One commit: the write of a group of frames and its fdatasync.", |metrics| {
            &metrics.commit_seconds
        })?;
        self.histogram("forebay_receipt_seconds", "From an event's admission to its receipt.", |metrics| {
            &metrics.receipt_seconds
        })?;
        self.histogram(
            "forebay_delivery_seconds",
            "From an event's receipt to the answer in which Kinesis says that it is stored, an observation an event.",
            |metrics| &metrics.delivery_seconds,
        )
    }

    fn puts(&mut self) -> fmt::Result {
        self.counters(
            "forebay_put_requests",
            "PutRecords requests by outcome: ok, partial (some records refused), or the class of the error.",
            |reading, emit| by_label(reading, "outcome", &reading.report.put.requests, emit),
        )?;
        self.counter("forebay_put_records", "Records that Kinesis stored.", |reading| reading.report.put.records)?;
        self.counter("forebay_put_bytes", "Bytes of the records that Kinesis stored: data and partition keys.", |reading| {
            reading.report.put.bytes
        })?;
        self.counter(
            "forebay_put_payload_units",
            "25 KiB units of the records that Kinesis stored: what a provisioned stream bills.",
            |reading| reading.report.put.payload_units,
        )?;
        self.gauge(
            "forebay_keys_ignored",
            "1 while the stream takes no notice of partition keys (record distribution AUTO): no order of keys can be kept.",
            |reading| f64::from(u8::from(reading.report.mode.keys == "ignored")),
        )?;
        self.gauge(
            "forebay_aggregate_fallback",
            "1 while one event a record is sent instead of aggregates, because keys are ignored or nobody could say; /status tells.",
            |reading| f64::from(u8::from(reading.report.mode.is_fallback)),
        )?;
        self.gauge(
            "forebay_put_singly",
            "1 while each record is sent by a PutRecord of its own, which is slower, because PutRecords is denied.",
            |reading| f64::from(u8::from(reading.report.put.singly)),
        )?;
        self.counter("forebay_throttled", "Records that a shard refused for its rate; each was sent again.", |reading| {
            reading.report.put.throttled
        })
    }

    fn shards(&mut self) -> fmt::Result {
        self.gauge("forebay_shards", "Shards of the stream as last seen.", |reading| reading.report.shards.len() as f64)?;
        self.gauges(
            "forebay_shard_rate_bytes",
            "Bytes a second that the limiter grants to the shard at present.",
            |reading, emit| by_shard(reading, emit, |shard| shard.rate_bytes as f64),
        )?;
        self.gauges("forebay_shard_queued_events", "Events that wait in memory for the shard.", |reading, emit| {
            by_shard(reading, emit, |shard| shard.queued_events as f64)
        })?;
        self.counters("forebay_shard_records", "Records that the shard stored.", |reading, emit| {
            by_shard(reading, emit, |shard| shard.records)
        })?;
        self.counters("forebay_shard_throttled", "Records that the shard refused for its rate.", |reading, emit| {
            by_shard(reading, emit, |shard| shard.throttled)
        })
    }

    fn build_info(&mut self) -> fmt::Result {
        self.encoder
            .encode_descriptor("forebay_build", "The agent's build.", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }
}

fn by_shard<V>(reading: &Reading, emit: Emit<'_, V>, value: impl Fn(&ShardReport) -> V) -> fmt::Result {
    let StreamReport { name, shards, .. } = &reading.report;
    shards.iter().try_for_each(|shard| emit(&[("stream", name), ("shard", &shard.id)], value(shard)))
}

fn by_source(reading: &Reading, emit: Emit<'_, f64>, value: impl Fn(&SourceReport) -> Option<u64>) -> fmt::Result {
    let StreamReport { name, spool, .. } = &reading.report;
    let values = spool.sources.iter().filter_map(|(source, report)| Some((source, value(report)?)));
    values.into_iter().try_for_each(|(source, value)| emit(&[("stream", name), ("source", source)], value as f64))
}

fn by_rule(reading: &Reading, emit: Emit<'_, u64>, value: impl Fn(&SourceReport) -> u64) -> fmt::Result {
    let StreamReport { name, spool, .. } = &reading.report;
    let mut sources = spool.sources.iter();
    sources.try_for_each(|(source, report)| emit(&[("stream", name), ("source", source)], value(report)))
}

fn by_label(reading: &Reading, label: &str, counts: &BTreeMap<String, u64>, emit: Emit<'_, u64>) -> fmt::Result {
    counts.iter().try_for_each(|(value, count)| emit(&[("stream", &reading.report.name), (label, value)], *count))
}

/// Writes one sample of the family at hand.
type Emit<'a, V> = &'a mut dyn FnMut(&[(&str, &str)], V) -> fmt::Result;
