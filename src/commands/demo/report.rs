//! What the demo prints at its end, for people and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::{DemoOptions, Outcome};

/// Characters of a sample event that are shown.
const SAMPLE_CHARS: usize = 110;

const FITS: &str = "a String takes all";

/// The table, some events, the totals, the verdict.
pub(super) fn text(options: &DemoOptions, outcome: &Outcome) -> String {
    let Outcome { ledger, status, .. } = outcome;
    let mut out = String::new();
    writeln!(out, "\n{:<22} {:>10} {:>12} {:>12}", "shard", "records", "events", "bytes").expect(FITS);
    for (shard, totals) in &ledger.shards {
        let (records, events, bytes) = (count(totals.records), count(totals.events), count(totals.bytes));
        writeln!(out, "{shard:<22} {records:>10} {events:>12} {bytes:>12}").expect(FITS);
    }

    writeln!(out, "\nsome of what arrived:").expect(FITS);
    for (shard, key, event) in ledger.samples.values() {
        let shown: String = event.chars().take(SAMPLE_CHARS).collect();
        let more = if shown.len() < event.len() { "…" } else { "" };
        writeln!(out, "  {shard}  {key}  {shown}{more}").expect(FITS);
    }

    writeln!(out, "\ntotals:").expect(FITS);
    let mut line = |name: &str, value: u64, remark: &str| {
        writeln!(out, "  {name:<18} {:>10}{}{remark}", count(value), if remark.is_empty() { "" } else { "   " }).expect(FITS);
    };
    line("accepted", status.accepted, "");
    let socket = count(outcome.receipted - outcome.over_http.min(outcome.receipted));
    line("receipts", outcome.receipted, &format!("{socket} through the socket, {} over HTTP", count(outcome.over_http)));
    line("delivered", status.delivered, "");
    let per_record = status.delivered as f64 / status.records.max(1) as f64;
    let how = if options.aggregate_kpl { "KPL aggregates" } else { "one event a record" };
    line("records", status.records, &format!("{per_record:.1} events each ({how})"));
    line("requests", status.requests, "");
    line(
        "duplicates",
        ledger.duplicates,
        &if status.resent > 0 { format!("{} known re-sends", status.resent) } else { String::new() },
    );
    line("order violations", ledger.disordered, "");

    let rate = outcome.receipted as f64 / outcome.sending.as_secs_f64().max(1e-6);
    writeln!(
        out,
        "\nsent and receipted in {} ({} events/s); all delivered {} later (a shard takes 1 MiB or 1,000 records a second); \
         read back and compared in {}",
        seconds(outcome.sending),
        count(rate as u64),
        seconds(outcome.delivering),
        seconds(outcome.reading)
    )
    .expect(FITS);
    if outcome.problems.is_empty() {
        let events = count(options.events);
        writeln!(out, "{events} events arrived exactly once, byte for byte, each user's in order.").expect(FITS);
    } else {
        for problem in &outcome.problems {
            writeln!(out, "WRONG: {problem}").expect(FITS);
        }
    }
    if let Some(dir) = &options.keep {
        writeln!(out, "the spool is kept in {}", dir.display()).expect(FITS);
    }
    out
}

/// The same as one object.
pub(super) fn json(options: &DemoOptions, outcome: &Outcome) -> String {
    let Outcome { ledger, status, .. } = outcome;
    let shards: serde_json::Map<String, serde_json::Value> = ledger
        .shards
        .iter()
        .map(|(shard, totals)| {
            (shard.clone(), json!({"records": totals.records, "events": totals.events, "bytes": totals.bytes}))
        })
        .collect();
    let object = json!({
        "events": options.events,
        "users": options.users,
        "aggregate": if options.aggregate_kpl { "kpl" } else { "off" },
        "receipted": outcome.receipted,
        "accepted": status.accepted,
        "delivered": status.delivered,
        "arrived": ledger.arrived,
        "missing": ledger.missing(),
        "duplicates": ledger.duplicates,
        "order_violations": ledger.disordered,
        "altered": ledger.altered,
        "foreign": ledger.foreign,
        "unreadable": ledger.unreadable,
        "records": status.records,
        "requests": status.requests,
        "resent": status.resent,
        "shards": shards,
        "seconds": {
            "sending": outcome.sending.as_secs_f64(),
            "delivering": outcome.delivering.as_secs_f64(),
            "reading": outcome.reading.as_secs_f64(),
        },
        "problems": outcome.problems,
    });
    format!("{object}\n")
}

/// With commas: `50,000`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_commas_at_every_thousand() {
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (50_000, "50,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
    }
}
