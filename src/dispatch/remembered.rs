//! What Kinesis last said of the stream, kept over a restart.
//!
//! Place: the dispatcher's thread writes each answer to `ledger.mode` beside the marks, and the next start hands it to
//! [`Mode`](super::mode::Mode). So a fleet that is restarted at once need not ask at once (an account has 20 such calls a second),
//! aggregates go out from the first record on, and events over 1 MiB are taken before Kinesis can be reached.
//!
//! *LOSABLE*: without the file, or with one that is damaged or from the future, Kinesis is asked as at a first start. It is
//! written without a sync and put in place by a rename. An answer counts for as long after it was given as it would have without
//! the restart; an older one tells only how large records may be.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::{Files, Host};
use crate::kinesis::StreamSummary;

const VERSION: u32 = 1;

/// A larger file is none of ours.
const BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// CRC-32 of the two that follow, as [`Kept::sum`] has it.
    crc: u32,
    /// Wall clock of the answer, ms.
    read_ms: u64,
    /// JSON of the summary.
    summary: String,
}

impl Kept {
    fn sum(read_ms: u64, summary: &str) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&read_ms.to_le_bytes());
        crc.update(summary.as_bytes());
        crc.finalize()
    }
}

/// An answer of before, and its age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// What Kinesis said.
    pub summary: StreamSummary,
    /// How long ago, by the wall clock.
    pub age: Duration,
}

/// Keeps an answer.
///
/// # Errors
/// The device's.
pub fn keep(files: &dyn Files, path: &Path, summary: &StreamSummary, wall_ms: u64) -> io::Result<()> {
    let summary = serde_json::to_string(summary).map_err(io::Error::other)?;
    let kept = Kept { version: VERSION, crc: Kept::sum(wall_ms, &summary), read_ms: wall_ms, summary };
    let text = serde_json::to_vec(&kept).map_err(io::Error::other)?;
    let new = path.with_extension("mode.new");
    match files.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    files.create(&new)?.append(&[&text])?;
    files.rename(&new, path)
}

/// The answer that was kept, if there is one that is whole.
#[must_use]
pub fn recall(host: &Host, path: &Path) -> Option<Remembered> {
    let read = || -> io::Result<Vec<u8>> {
        let file = host.files.open(path)?;
        let mut bytes = vec![0; file.len()?.min(BYTES_MAX) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::info!(path = %path.display(), %error, "what was known of the stream's mode cannot be read: Kinesis is asked");
            }
            return None;
        }
    };
    let kept: Kept = serde_json::from_slice(&bytes).ok()?;
    if kept.version != VERSION || kept.crc != Kept::sum(kept.read_ms, &kept.summary) {
        return None;
    }
    let summary = serde_json::from_str(&kept.summary).ok()?;
    // A clock that was set back makes an answer of the future: nobody knows how old it is.
    let age = host.clock.wall_ms().checked_sub(kept.read_ms)?;
    Some(Remembered { summary, age: Duration::from_millis(age) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> StreamSummary {
        StreamSummary {
            arn: "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks".to_owned(),
            status: "ACTIVE".to_owned(),
            on_demand: Some(true),
            ignores_keys: Some(false),
            record_bytes_max: Some(10 << 20),
            key: None,
        }
    }

    #[test]
    fn an_answer_reads_back_with_its_age_and_a_damaged_or_future_one_does_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (host, path) = (Host::real(), dir.path().join("ledger.mode"));
        assert_eq!(recall(&host, &path), None);
        let now = host.clock.wall_ms();
        keep(host.files.as_ref(), &path, &summary(), now - 60_000).expect("kept");
        let held = recall(&host, &path).expect("whole");
        assert_eq!(held.summary, summary());
        assert!((60..120).contains(&held.age.as_secs()));

        keep(host.files.as_ref(), &path, &summary(), now + 600_000).expect("kept over the old one");
        assert_eq!(recall(&host, &path), None, "from the future");

        keep(host.files.as_ref(), &path, &summary(), now).expect("kept");
        let file = host.files.open(&path).expect("it is there");
        let mut bytes = vec![0; file.len().expect("its length") as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let other = dir.path().join(format!("damaged-{at}"));
            host.files.create(&other).expect("created").append(&[&damaged]).expect("written");
            assert_eq!(recall(&host, &other), None, "byte {at}");
        }
    }
}
