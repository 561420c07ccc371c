//! placeholder
#[path = "common/sink.rs"]
#[allow(dead_code, reason = "each test binary uses its own part of the double")]
mod sink;
