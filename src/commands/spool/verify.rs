//! `forebay spool verify`: checks everything, tells each finding with place, meaning and remedy.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use super::place::Place;
use super::{Failed, Sum, print, progress};
use crate::commands::status::{bytes, count};
use crate::exit::Exit;
use crate::spool::inspect::verify::{Finding, Level, Verified};

#[allow(clippy::disallowed_methods, reason = "how long it took, for the person who waits")]
pub(super) async fn run(place: Place, json: bool) -> Result<Exit, Failed> {
    let started = Instant::now();
    let marks = place.marks().await;
    let total = place.spool.heads()?.iter().map(|head| head.file_bytes).sum();
    let bar = progress::bar(total, true);
    let read = place.spool.bytes_read();
    let place = Arc::new(place);
    let (checked, before) = (Arc::clone(&place), marks.known.clone());
    let runtime = tokio::runtime::Handle::current();
    let verified =
        progress::watched(&bar, read, move || checked.spool.verify(before, || runtime.block_on(checked.marks()).known)).await?;
    let seconds = started.elapsed().as_secs_f64();
    let exit = if verified.good { Exit::Good } else { Exit::Failed };
    let text = if json {
        let mut all = serde_json::to_value(&verified).map_err(|error| error.to_string())?;
        all["account"] =
            verified.pending.map_or(serde_json::Value::Null, |pending| Sum::of(&marks, verified.accepted, pending).json());
        all["stream"] = place.spool.stream().into();
        all["dir"] = place.spool.dir().display().to_string().into();
        all["marks"] = marks.json();
        all["seconds"] = seconds.into();
        format!("{all:#}\n")
    } else {
        let mut out = format!("{}\n{}\n", place.title(), marks.line());
        let account = verified.pending.map(|pending| Sum::of(&marks, verified.accepted, pending));
        report(&mut out, &verified, account, seconds).expect("a String takes all");
        out
    };
    print(&text).map(|_| exit)
}

fn report(out: &mut String, verified: &Verified, account: Option<Sum>, seconds: f64) -> std::fmt::Result {
    for finding in &verified.findings {
        writeln!(out)?;
        tell(out, finding)?;
    }
    let of = |level: Level| verified.findings.iter().filter(|finding| finding.level == level).count() as u64;
    let rate = verified.bytes as f64 / seconds.max(1e-9) / 1e9;
    writeln!(
        out,
        "\n{} segments, {} events, {} read in {seconds:.2} s ({rate:.2} GB/s)",
        count(verified.segments),
        count(verified.events),
        bytes(verified.bytes)
    )?;
    if let Some(account) = account {
        account.write(out);
    }
    let several = |n: u64, what: &str| format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" });
    let others = format!("{}, {}", several(of(Level::Warning), "warning"), several(of(Level::Note), "note"));
    match of(Level::Error) {
        0 => writeln!(out, "good: nothing is wrong ({others})"),
        errors => writeln!(out, "BAD: {}, {others}", several(errors, "error")),
    }
}

fn tell(out: &mut String, finding: &Finding) -> std::fmt::Result {
    let level = match finding.level {
        Level::Note => "note",
        Level::Warning => "warning",
        Level::Error => "ERROR",
    };
    write!(out, "{level}: {}", finding.file.display())?;
    if let Some(offset) = finding.offset {
        write!(out, ", byte {offset}")?;
    }
    if let Some(length) = finding.bytes {
        write!(out, " (+{length})")?;
    }
    if let Some([from, to]) = finding.positions {
        write!(out, ", positions {from} up to {to}")?;
    }
    writeln!(out, "\n  {}", finding.what)?;
    writeln!(out, "  means: {}", finding.means)?;
    writeln!(out, "  remedy: {}", finding.remedy)
}
