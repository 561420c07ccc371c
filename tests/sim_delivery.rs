//! Seeded lives of delivery: the real spool and dispatcher against a simulated stream, in simulated time.
//!
//! Place: `sim/delivery/life.rs` is one life, `service.rs` the stream, `judge.rs` its consumers and the promises. Two thousand
//! seeds run here; `FOREBAY_SIM_SEEDS=from..to` runs others. `tests/sim.rs` is the same for the disk, with a stream that is good.

#[path = "sim/delivery/away.rs"]
mod away;
#[path = "common/fault_files.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the double")]
mod fault_files;
#[path = "sim/delivery/judge.rs"]
mod judge;
#[path = "common/kpl.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod kpl;
#[path = "sim/delivery/life.rs"]
mod life;
#[path = "sim/delivery/lives.rs"]
mod lives;
#[path = "sim/delivery/mutations.rs"]
mod mutations;
#[path = "sim/delivery/planted.rs"]
mod planted;
#[path = "sim/delivery/process.rs"]
mod process;
#[path = "sim/delivery/reshards.rs"]
mod reshards;
#[path = "sim/delivery/service.rs"]
mod service;
#[path = "sim/delivery/spells.rs"]
mod spells;
#[path = "sim/delivery/stops.rs"]
mod stops;

use std::ops::Range;

/// The seeds of this run.
fn seeds(default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("FOREBAY_SIM_SEEDS") else { return default };
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("FOREBAY_SIM_SEEDS is {text:?}; a range such as 100..200 is meant"))
}
