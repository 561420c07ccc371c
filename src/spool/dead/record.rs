//! Bytes of dead letters: the header of a file of them, one letter, one note of a removal.
//!
//! Place: `dead.rs` keeps the files; here is what stands in them. Pure; nothing here does I/O.
//!
//! A file `dead/NNNNNNNNNN.dead` is a header of 48 bytes and letters, one after the other. Header: magic `FBYDEADL`,
//! u16 version 1, u16 flags 0, u32 file id, u64 number of the first letter, u64 creation time (wall clock ms), 12 bytes 0,
//! u32 CRC-32 of the 44 bytes before. A letter:
//!
//! | offset | type | field |
//! | --- | --- | --- |
//! | 0 | u32 | marker `FBDL`, by which the next letter is found behind damage |
//! | 4 | u32 | CRC-32 (IEEE) of all that follows in the letter |
//! | 8 | u32 | length of the whole letter in bytes, this header included |
//! | 12 | u8 | reason: 1 expired, 2 damaged, 3 poison, 4 too large |
//! | 13 | u8 | flags: 1 explicit hash key |
//! | 14 | u16 | length of the key in bytes; 0 of a damaged event, whose hash tells its lane only |
//! | 16 | u16 | length of the detail in bytes |
//! | 18 | u16 | reserved, 0 |
//! | 20 | u32 | attempts at sending that were answered or given up, as far as the process knew |
//! | 24 | u64 | number of the letter |
//! | 32 | u64 | position |
//! | 40 | u128 | key hash |
//! | 56 | u64 | receipt time, wall clock ms |
//! | 64 | u64 | time of death, wall clock ms |
//! | 72 | | key (UTF-8), then detail (UTF-8), then data to the end of the letter |
//!
//! A file `dead/NNNNNNNNNN.gone` tells which letters of its neighbour are removed: magic `FBYDGONE`, u16 version 1, 6 bytes
//! 0, then 32 bytes a removal: u32 CRC-32 of what follows, u8 1 retried or 2 purged, 3 bytes 0, u64 number, u64 new position
//! (0 of a purged one), u64 wall clock ms at which the file was written. All numbers are little-endian.
//!
//! Failure: bytes that do not check are no letter, never a panic; the next one is looked for behind them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::{KeyHash, Position};
use crate::limits::KEY_BYTES_MAX;

/// Bytes before the first letter.
pub const FILE_HEADER_BYTES: usize = 48;

/// Bytes of a letter before its key.
pub const LETTER_HEADER_BYTES: usize = 72;

/// Bytes of a file of removals before the first one.
pub const GONE_HEADER_BYTES: usize = 16;

/// Bytes of one removal.
pub const GONE_BYTES: usize = 32;

/// Longest detail kept, bytes.
pub const DETAIL_BYTES_MAX: usize = 512;

const MAGIC: &[u8; 8] = b"FBYDEADL";
const GONE_MAGIC: &[u8; 8] = b"FBYDGONE";
const MARKER: &[u8; 4] = b"FBDL";
const VERSION: u16 = 1;
const FLAG_EXPLICIT_HASH: u8 = 1;

/// Largest letter that a reader believes: the largest frame, and the detail.
const LETTER_BYTES_MAX: usize = (10 << 20) + 16_384;

/// Why an event became a letter. Closed: a letter of a reason unknown here was written by a newer program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Older than the stream's `ttl` before it was delivered.
    Expired,
    /// Its bytes no longer check.
    Damaged,
    /// Kinesis refused it for what it is, whatever the company.
    Poison,
    /// Larger than a record of the stream may be, or than a request.
    TooLarge,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Expired, Self::Damaged, Self::Poison, Self::TooLarge];

    /// As people and JSON have it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Damaged => "damaged",
            Self::Poison => "poison",
            Self::TooLarge => "too_large",
        }
    }

    /// The reason with this label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.label() == label)
    }

    const fn code(self) -> u8 {
        match self {
            Self::Expired => 1,
            Self::Damaged => 2,
            Self::Poison => 3,
            Self::TooLarge => 4,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Why a letter is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Its event is in the spool again, under this position.
    Retried(Position),
    /// A person said so.
    Purged,
}

/// One dead letter.
#[derive(Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its number: grows by one with each letter of the stream.
    pub number: u64,
    /// The event's position.
    pub position: Position,
    /// The event's partition key; empty when it is damaged.
    pub key: String,
    /// The event's hash; of a damaged one, the first of its lane.
    pub hash: KeyHash,
    /// The hash is an explicit hash key.
    pub explicit: bool,
    /// The event's data; of a damaged one, what lies where its frame lay.
    pub data: Vec<u8>,
    /// Receipt, wall clock ms; of a damaged one, the earliest it can have been.
    pub received_ms: u64,
    /// When it became a letter, wall clock ms.
    pub died_ms: u64,
    /// Why.
    pub reason: Reason,
    /// How often it was in a request, as far as the process knew.
    pub attempts: u32,
    /// One line for people, without event data, at most [`DETAIL_BYTES_MAX`] bytes.
    pub detail: String,
}

impl fmt::Debug for Letter {
    /// Without key and data: a letter in a log or a panic tells no event.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Letter")
            .field("number", &self.number)
            .field("position", &self.position)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Letter {
    /// Bytes that it takes in its file.
    #[must_use]
    pub fn len(&self) -> usize {
        LETTER_HEADER_BYTES + self.key.len() + self.detail.len() + self.data.len()
    }

    /// Never: a letter has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Appends its bytes.
    ///
    /// # Panics
    /// If key or detail are longer than they may be: the spool keeps no such key, and the detail is ours.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.key.len() <= KEY_BYTES_MAX && self.detail.len() <= DETAIL_BYTES_MAX, "a letter within its bounds");
        let start = out.len();
        let mut header = [0; LETTER_HEADER_BYTES];
        header[..4].copy_from_slice(MARKER);
        header[8..12].copy_from_slice(&(self.len() as u32).to_le_bytes());
        header[12] = self.reason.code();
        header[13] = if self.explicit { FLAG_EXPLICIT_HASH } else { 0 };
        header[14..16].copy_from_slice(&(self.key.len() as u16).to_le_bytes());
        header[16..18].copy_from_slice(&(self.detail.len() as u16).to_le_bytes());
        header[20..24].copy_from_slice(&self.attempts.to_le_bytes());
        header[24..32].copy_from_slice(&self.number.to_le_bytes());
        header[32..40].copy_from_slice(&self.position.0.to_le_bytes());
        header[40..56].copy_from_slice(&self.hash.0.to_le_bytes());
        header[56..64].copy_from_slice(&self.received_ms.to_le_bytes());
        header[64..72].copy_from_slice(&self.died_ms.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(self.detail.as_bytes());
        out.extend_from_slice(&self.data);
        let crc = crc32fast::hash(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The letter at the start of `bytes` and its length, if a whole one is there.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        if bytes.len() < LETTER_HEADER_BYTES || &bytes[..4] != MARKER {
            return None;
        }
        let len = u32_at(bytes, 8) as usize;
        if !(LETTER_HEADER_BYTES..=LETTER_BYTES_MAX.min(bytes.len())).contains(&len) {
            return None;
        }
        let bytes = &bytes[..len];
        let (key_len, detail_len) = (usize::from(u16_at(bytes, 14)), usize::from(u16_at(bytes, 16)));
        if LETTER_HEADER_BYTES + key_len + detail_len > len || crc32fast::hash(&bytes[8..]) != u32_at(bytes, 4) {
            return None;
        }
        let (key, rest) = bytes[LETTER_HEADER_BYTES..].split_at(key_len);
        let (detail, data) = rest.split_at(detail_len);
        let letter = Self {
            number: u64_at(bytes, 24),
            position: Position(u64_at(bytes, 32)),
            key: String::from_utf8(key.to_vec()).ok()?,
            hash: KeyHash(u128::from(u64_at(bytes, 40)) | u128::from(u64_at(bytes, 48)) << 64),
            explicit: bytes[13] & FLAG_EXPLICIT_HASH != 0,
            data: data.to_vec(),
            received_ms: u64_at(bytes, 56),
            died_ms: u64_at(bytes, 64),
            reason: Reason::of_code(bytes[12])?,
            attempts: u32_at(bytes, 20),
            detail: String::from_utf8(detail.to_vec()).ok()?,
        };
        Some((letter, len))
    }
}

/// The first 48 bytes of a file of letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The file's id.
    pub id: u32,
    /// Number of its first letter; letters of older files from this number on were never known to be durable.
    pub first: u64,
    /// Wall clock at creation, ms.
    pub created_ms: u64,
}

/// What the first 48 bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFound {
    /// A header.
    Good(FileHeader),
    /// Torn or flipped.
    Damaged,
    /// Whole, and written by a newer program.
    OtherVersion(u16),
}

impl FileHeader {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut out = [0; FILE_HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&self.first.to_le_bytes());
        out[24..32].copy_from_slice(&self.created_ms.to_le_bytes());
        let crc = crc32fast::hash(&out[..44]);
        out[44..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// What these bytes begin with.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> HeaderFound {
        let Some(bytes) = bytes.first_chunk::<FILE_HEADER_BYTES>() else { return HeaderFound::Damaged };
        if &bytes[..8] != MAGIC || u32_at(bytes, 44) != crc32fast::hash(&bytes[..44]) {
            return HeaderFound::Damaged;
        }
        let (version, flags) = (u16_at(bytes, 8), u16_at(bytes, 10));
        if version != VERSION || flags != 0 {
            return HeaderFound::OtherVersion(version);
        }
        HeaderFound::Good(Self { id: u32_at(bytes, 12), first: u64_at(bytes, 16), created_ms: u64_at(bytes, 24) })
    }
}

/// The letters of one file.
#[derive(Debug)]
pub struct Letters<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Offset after the last good letter so far.
    pub good_end: usize,
    /// Stretches that do not check, with a good letter behind them.
    pub damaged: u32,
}

impl<'a> Letters<'a> {
    /// Walks a whole file's bytes.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        let start = FILE_HEADER_BYTES.min(bytes.len());
        Self { bytes, at: start, good_end: start, damaged: 0 }
    }
}

impl Iterator for Letters<'_> {
    type Item = Letter;

    fn next(&mut self) -> Option<Letter> {
        let mut skipped = false;
        loop {
            if let Some((letter, len)) = Letter::decode(&self.bytes[self.at..]) {
                self.at += len;
                self.good_end = self.at;
                self.damaged += u32::from(skipped);
                return Some(letter);
            }
            // Behind what does not check, the next marker may begin a letter.
            let from = self.at + 1;
            let next = self.bytes.get(from..).and_then(|rest| memchr::memmem::find(rest, MARKER))?;
            self.at = from + next;
            skipped = true;
        }
    }
}

/// The removals in a file's bytes, those that check.
#[must_use]
pub fn decode_gone(bytes: &[u8]) -> Vec<(u64, Removal)> {
    if bytes.len() < GONE_HEADER_BYTES || &bytes[..8] != GONE_MAGIC || u16_at(bytes, 8) != VERSION {
        return Vec::new();
    }
    let notes = bytes[GONE_HEADER_BYTES..].chunks_exact(GONE_BYTES);
    notes
        .filter(|note| u32_at(note, 0) == crc32fast::hash(&note[4..]))
        .filter_map(|note| match note[4] {
            1 => Some((u64_at(note, 8), Removal::Retried(Position(u64_at(note, 16))))),
            2 => Some((u64_at(note, 8), Removal::Purged)),
            _ => None,
        })
        .collect()
}

/// A whole file of removals, written at `now_ms`.
#[must_use]
pub fn encode_gone(removals: impl IntoIterator<Item = (u64, Removal)>, now_ms: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(GONE_MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.resize(GONE_HEADER_BYTES, 0);
    for (number, removal) in removals {
        let (code, position) = match removal {
            Removal::Retried(position) => (1, position.0),
            Removal::Purged => (2, 0),
        };
        let mut note = [0; GONE_BYTES];
        note[4] = code;
        note[8..16].copy_from_slice(&number.to_le_bytes());
        note[16..24].copy_from_slice(&position.to_le_bytes());
        note[24..32].copy_from_slice(&now_ms.to_le_bytes());
        let crc = crc32fast::hash(&note[4..]);
        note[..4].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&note);
    }
    out
}
