//! Positions that are settled though their lane's mark is not past them: a set with a bit for each.
//!
//! Place: the dispatcher adds what was sent ahead of a backlog, asks when it meets a position again, and forgets what all marks
//! have passed. At a clean stop it is written beside the marks (`ledger.ahead`), and read once at the next start: so nothing is
//! sent twice for having been sent early. *LOSABLE*: without the file, those events are sent again.
//!
//! | offset | type | field of the file |
//! | --- | --- | --- |
//! | 0 | u32 | CRC-32 of all that follows |
//! | 4 | u32 | version, 1 |
//! | 8 | u32 | CRC-32 of the marks of the checkpoint to which it belongs |
//! | 12 | u32 | blocks |
//! | 16 | u64 | events that were pending then |
//! | 24 | blocks × (u64, 64 × u64) | number of a block of 4,096 positions, and its bits |

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::event::Position;
use crate::host::{Files, Host};

/// Positions in a block.
const BLOCK: u64 = 4096;

const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const BLOCK_BYTES: usize = 8 + BLOCK as usize / 8;

/// A set of positions, half a KiB for each 4,096 in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    blocks: BTreeMap<u64, Box<[u64; 64]>>,
}

fn place(position: Position) -> (u64, usize, u64) {
    let within = position.0 % BLOCK;
    (position.0 / BLOCK, within as usize / 64, 1 << (within % 64))
}

impl Ahead {
    /// No positions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Bytes that it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Adds a position.
    pub fn insert(&mut self, position: Position) {
        let (block, word, bit) = place(position);
        self.blocks.entry(block).or_insert_with(|| Box::new([0; 64]))[word] |= bit;
    }

    /// Whether it is there.
    #[must_use]
    pub fn contains(&self, position: Position) -> bool {
        let (block, word, bit) = place(position);
        self.blocks.get(&block).is_some_and(|words| words[word] & bit != 0)
    }

    /// Takes a position away.
    pub fn remove(&mut self, position: Position) {
        let (block, word, bit) = place(position);
        if let Some(words) = self.blocks.get_mut(&block) {
            words[word] &= !bit;
        }
    }

    /// No position is there from here on.
    #[must_use]
    pub fn end(&self) -> Position {
        Position(self.blocks.last_key_value().map_or(0, |(last, _)| (last + 1) * BLOCK))
    }

    /// The last position.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.blocks.iter().rev().find_map(|(block, words)| {
            let (word, bits) = words.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
            Some(Position(block * BLOCK + word as u64 * 64 + u64::from(63 - bits.leading_zeros())))
        })
    }

    /// Forgets blocks that lie wholly below `to`.
    pub fn forget_below(&mut self, to: Position) {
        while let Some(first) = self.blocks.first_entry().filter(|first| (first.key() + 1) * BLOCK <= to.0) {
            first.remove();
        }
    }

    fn encode(&self, checkpoint: &Checkpoint, pending: u64) -> Vec<u8> {
        let mut out = vec![0; 4];
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&marks_crc(checkpoint).to_le_bytes());
        out.extend_from_slice(&(self.blocks.len() as u32).to_le_bytes());
        out.extend_from_slice(&pending.to_le_bytes());
        for (number, words) in &self.blocks {
            out.extend_from_slice(&number.to_le_bytes());
            words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        }
        let crc = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], checkpoint: &Checkpoint) -> Option<(Self, u64)> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let good = u32_at(0)? == crc32fast::hash(bytes.get(4..)?)
            && u32_at(4)? == VERSION
            && u32_at(8)? == marks_crc(checkpoint)
            && bytes.len() == HEADER_BYTES + u32_at(12)? as usize * BLOCK_BYTES;
        if !good {
            return None;
        }
        let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
        let mut ahead = Self::default();
        for block in bytes[HEADER_BYTES..].chunks_exact(BLOCK_BYTES) {
            let mut words = Box::new([0; 64]);
            words.iter_mut().zip(block[8..].chunks_exact(8)).for_each(|(word, bytes)| *word = number(bytes));
            ahead.blocks.insert(number(block), words);
        }
        Some((ahead, number(&bytes[16..])))
    }

    /// Writes it beside the checkpoint of a clean stop; with nothing to tell, there is no file.
    ///
    /// # Errors
    /// The device's.
    pub fn save(&self, files: &dyn Files, path: &Path, checkpoint: &Checkpoint, pending: u64) -> io::Result<()> {
        match files.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.is_empty() {
            return Ok(());
        }
        let file = files.create(path)?;
        file.append(&[&self.encode(checkpoint, pending)])?;
        file.sync_data()
    }

    /// What was written beside this checkpoint, and how many events were pending then. The file is removed: it tells of one
    /// stop only. `None` when there is none that is whole and of this checkpoint, or when events came after it, of which `next`
    /// tells: the next position to be given.
    #[must_use]
    pub fn take(host: &Host, path: &Path, checkpoint: &Checkpoint, next: Position) -> Option<(Self, u64)> {
        let files = host.files.as_ref();
        let read = || -> io::Result<Vec<u8>> {
            let file = files.open(path)?;
            let mut bytes = vec![0; file.len()? as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was delivered ahead of a backlog cannot be read: it is sent again");
                return None;
            }
        };
        if let Err(error) = files.remove(path) {
            tracing::warn!(path = %path.display(), %error, "a file that was read once and for all could not be removed");
        }
        Self::decode(&bytes, checkpoint).filter(|_| checkpoint.durable == next)
    }
}

/// By which a file is known to belong to a checkpoint.
fn marks_crc(checkpoint: &Checkpoint) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&checkpoint.durable.0.to_le_bytes());
    checkpoint.marks.iter().for_each(|mark| crc.update(&mark.0.to_le_bytes()));
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(durable: u64) -> Checkpoint {
        Checkpoint { clean: true, durable: Position(durable), ..Checkpoint::default() }
    }

    #[test]
    fn what_was_sent_ahead_is_known_once_after_the_clean_stop_that_wrote_it_and_never_beside_another_checkpoint() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (host, path) = (Host::real(), dir.path().join("ledger.ahead"));
        let mut ahead = Ahead::default();
        let positions = [3, 4095, 4096, 1 << 40];
        positions.into_iter().for_each(|n| ahead.insert(Position(n)));
        let save = || ahead.save(host.files.as_ref(), &path, &clean(9), 7).expect("a good disk");
        save();
        let (found, pending) = Ahead::take(&host, &path, &clean(9), Position(9)).expect("a file");
        assert_eq!((&found, pending), (&ahead, 7));
        assert!(positions.into_iter().all(|n| found.contains(Position(n))) && !found.contains(Position(4)));
        assert_eq!(found.last(), Some(Position(1 << 40)));
        assert!(Ahead::take(&host, &path, &clean(9), Position(9)).is_none(), "once");
        save();
        assert!(Ahead::take(&host, &path, &clean(10), Position(10)).is_none(), "another checkpoint");
        save();
        assert!(Ahead::take(&host, &path, &clean(9), Position(10)).is_none(), "an event came since");
        let mut bytes = ahead.encode(&clean(9), 7);
        bytes[100] ^= 1;
        assert!(Ahead::decode(&bytes, &clean(9)).is_none() && Ahead::decode(&bytes[..20], &clean(9)).is_none(), "damaged");
    }

    #[test]
    fn what_all_marks_have_passed_is_forgotten() {
        let mut ahead = Ahead::default();
        [5, 5000, 9000].into_iter().for_each(|n| ahead.insert(Position(n)));
        ahead.forget_below(Position(8191));
        assert!(!ahead.contains(Position(5)) && ahead.contains(Position(5000)));
        ahead.forget_below(Position(1 << 20));
        assert!(ahead.is_empty());
    }
}
