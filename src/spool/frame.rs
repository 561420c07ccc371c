//! Bytes of one frame: an event as it lies on disk.
//!
//! Place: `Batch::push` encodes while an event is admitted, the commit thread stamps position, time and
//! checksum, readers check and decode. Pure; nothing here does I/O.
//!
//! | offset | type | field |
//! | --- | --- | --- |
//! | 0 | u32 | CRC-32 (IEEE) of all that follows in the frame |
//! | 4 | u32 | length of the whole frame in bytes, this header included |
//! | 8 | u64 | position |
//! | 16 | u128 | key hash |
//! | 32 | u32 | receipt time, milliseconds after the segment's creation time (saturating) |
//! | 36 | u16 | length of the key in bytes |
//! | 38 | u8 | flags: 1 explicit hash key, 2 first frame of a commit |
//! | 39 | u8 | reserved, 0 |
//! | 40 | | key (UTF-8), then data to the end of the frame |
//!
//! All numbers are little-endian. *PAIRED*: what is asserted before a frame is written is checked after it
//! is read. Failure: a frame that does not check is `None`, never a panic; `recover` and `cursor` decide
//! what the damage means.

use crate::event::{KeyHash, Position};
use crate::limits::KEY_BYTES_MAX;

/// Bytes before the key.
pub const FRAME_HEADER_BYTES: usize = 40;

/// The hash was given (an explicit hash key), it is not the key's MD5.
pub const FLAG_EXPLICIT_HASH: u8 = 1;

/// The frame begins a commit: everything before it in the file was durable when it was written.
pub const FLAG_COMMIT_START: u8 = 2;

const FLAGS_KNOWN: u8 = FLAG_EXPLICIT_HASH | FLAG_COMMIT_START;

/// A frame's bytes, checked for shape (lengths within bounds), seen as fields.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    bytes: &'a [u8],
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes`, if a whole one of plausible shape is there. Does not check the CRC.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return None;
        }
        let len = u32_at(bytes, 4) as usize;
        if len < FRAME_HEADER_BYTES || len > bytes.len() {
            return None;
        }
        let frame = Self { bytes: &bytes[..len] };
        let key_len = frame.key_len();
        let shaped = key_len > 0
            && key_len <= KEY_BYTES_MAX
            && FRAME_HEADER_BYTES + key_len <= len
            && bytes[38] & !FLAGS_KNOWN == 0
            && bytes[39] == 0;
        shaped.then_some(frame)
    }

    /// The frame at the start of `bytes`, checksum and key checked: what came back from disk.
    #[must_use]
    pub fn check(bytes: &'a [u8]) -> Option<Self> {
        let frame = Self::parse(bytes)?;
        let good = crc32fast::hash(&frame.bytes[4..]) == u32_at(frame.bytes, 0)
            && std::str::from_utf8(frame.key_bytes()).is_ok()
            && frame.position() < Position::LIMIT;
        good.then_some(frame)
    }

    /// Length of the frame that begins `bytes`, were it whole; `None` when the header is not.
    #[must_use]
    pub fn peek_len(bytes: &[u8]) -> Option<usize> {
        (bytes.len() >= 8).then(|| u32_at(bytes, 4) as usize)
    }

    /// Position field of the frame that begins `bytes` (at least 16 of them).
    #[must_use]
    pub fn peek_position(bytes: &[u8]) -> Option<Position> {
        (bytes.len() >= 16).then(|| Position(u64_at(bytes, 8)))
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a frame has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Position.
    #[must_use]
    pub fn position(&self) -> Position {
        Position(u64_at(self.bytes, 8))
    }

    /// Key hash.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash(u128::from(u64_at(self.bytes, 16)) | u128::from(u64_at(self.bytes, 24)) << 64)
    }

    /// Receipt time in milliseconds after the segment's creation.
    #[must_use]
    pub fn time_ms(&self) -> u32 {
        u32_at(self.bytes, 32)
    }

    fn key_len(&self) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[36], self.bytes[37]]))
    }

    /// The hash is an explicit hash key.
    #[must_use]
    pub fn explicit_hash(&self) -> bool {
        self.bytes[38] & FLAG_EXPLICIT_HASH != 0
    }

    /// The frame begins a commit.
    #[must_use]
    pub fn commit_start(&self) -> bool {
        self.bytes[38] & FLAG_COMMIT_START != 0
    }

    /// The partition key's bytes: UTF-8, 1 to 1024.
    #[must_use]
    pub fn key_bytes(&self) -> &'a [u8] {
        &self.bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + self.key_len()]
    }

    /// The event's data.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        &self.bytes[FRAME_HEADER_BYTES + self.key_len()..]
    }
}

/// Appends a frame without position, time and checksum: [`stamp`] adds them at commit.
///
/// # Panics
/// If the key is empty or longer than a partition key can be: ingest refuses those.
pub fn encode(out: &mut Vec<u8>, key: &str, hash: KeyHash, explicit: bool, data: &[u8]) {
    assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "ingest admits keys of 1 to {KEY_BYTES_MAX} bytes only");
    let len = FRAME_HEADER_BYTES + key.len() + data.len();
    out.reserve(len);
    let mut header = [0; FRAME_HEADER_BYTES];
    header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    header[16..32].copy_from_slice(&hash.0.to_le_bytes());
    header[36..38].copy_from_slice(&(key.len() as u16).to_le_bytes());
    header[38] = if explicit { FLAG_EXPLICIT_HASH } else { 0 };
    out.extend_from_slice(&header);
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(data);
}

/// Gives the frames that [`encode`] wrote, one after the other, the hash of their keys, but for those with an explicit
/// hash key. Many at once cost a fifth of what they cost one by one.
pub fn hash_keys(frames: &mut [u8]) {
    let mut at = 0;
    let mut starts = Vec::new();
    let mut keys = Vec::new();
    while let Some(frame) = Frame::parse(&frames[at..]) {
        if !frame.explicit_hash() {
            starts.push(at);
            keys.push(frame.key_bytes());
        }
        at += frame.len();
    }
    let hashes = KeyHash::of_keys(&keys);
    for (start, hash) in starts.into_iter().zip(hashes) {
        frames[start + 16..start + 32].copy_from_slice(&hash.0.to_le_bytes());
    }
}

/// Completes the frame that begins `bytes`; returns its length.
///
/// # Panics
/// If `bytes` does not begin with a frame that [`encode`] wrote.
pub fn stamp(bytes: &mut [u8], position: Position, time_ms: u32, commit_start: bool) -> usize {
    let len = u32_at(bytes, 4) as usize;
    let frame = &mut bytes[..len];
    frame[8..16].copy_from_slice(&position.0.to_le_bytes());
    frame[32..36].copy_from_slice(&time_ms.to_le_bytes());
    if commit_start {
        frame[38] |= FLAG_COMMIT_START;
    } else {
        frame[38] &= !FLAG_COMMIT_START;
    }
    let crc = crc32fast::hash(&frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(key: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, key, KeyHash::of_key(key), false, data);
        assert_eq!(stamp(&mut bytes, Position(7), 12, true), bytes.len());
        bytes
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_what_is_read(
            key in "\\PC{1,256}", hash: u128, explicit: bool, data: Vec<u8>, position in 0..Position::LIMIT.0, time: u32, start: bool, tail: Vec<u8>,
        ) {
            let mut bytes = Vec::new();
            encode(&mut bytes, &key, KeyHash(hash), explicit, &data);
            let len = stamp(&mut bytes, Position(position), time, start);
            bytes.extend_from_slice(&tail);
            let frame = Frame::check(&bytes).expect("just written");
            prop_assert_eq!(frame.len(), len);
            prop_assert_eq!(frame.position(), Position(position));
            prop_assert_eq!(frame.hash(), KeyHash(hash));
            prop_assert_eq!(frame.time_ms(), time);
            prop_assert_eq!(frame.explicit_hash(), explicit);
            prop_assert_eq!(frame.commit_start(), start);
            prop_assert_eq!(frame.key_bytes(), key.as_bytes());
            prop_assert_eq!(frame.data(), &data[..]);
        }

        #[test]
        fn a_flipped_bit_never_passes_the_check(data: Vec<u8>, at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = one("user", &data);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::check(&bytes).is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            if let Some(frame) = Frame::parse(&bytes) {
                prop_assert!(frame.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn frames_without_an_explicit_hash_key_get_the_hash_of_their_key() {
        let keys: Vec<String> = (1..40).map(|n| "k".repeat(n)).collect();
        let mut bytes = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            encode(&mut bytes, key, KeyHash(n as u128), n % 5 == 0, b"data");
        }
        hash_keys(&mut bytes);
        let mut at = 0;
        for (n, key) in keys.iter().enumerate() {
            let frame = Frame::parse(&bytes[at..]).expect("as many as were written");
            assert_eq!(frame.hash(), if n % 5 == 0 { KeyHash(n as u128) } else { KeyHash::of_key(key) });
            at += frame.len();
        }
        assert_eq!(at, bytes.len());
    }

    #[test]
    fn stamping_again_for_a_new_file_clears_the_commit_flag() {
        let mut bytes = one("k", b"data");
        stamp(&mut bytes, Position(8), 0, false);
        assert!(!Frame::check(&bytes).expect("whole").commit_start());
    }
}
