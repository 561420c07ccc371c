//! The first 128 bytes of a coded file: how the rest of it lies there.
//!
//! Place: written with the first append, looked for whenever a file is opened. It stands there twice, since a flipped bit
//! in it would cost the whole file. Pure.
//!
//! | offset | type | field |
//! | --- | --- | --- |
//! | 0 | | magic `FBYCODED` |
//! | 8 | u16 | version, 1 |
//! | 10 | u16 | flags: 1 compressed (zstd), 2 encrypted (AES-256-GCM) |
//! | 12 | | 4 bytes reserved, 0 |
//! | 16 | u64 | id of the encryption key; 0 without |
//! | 24 | | salt of the file's own key, 16 bytes; 0 without |
//! | 40 | | 20 bytes reserved, 0 |
//! | 60 | u32 | CRC-32 of the 60 bytes before |
//! | 64 | | the same 64 bytes again |
//!
//! All numbers are little-endian. Failure: bytes without a header are those of a file that is not coded.

use super::keys::KeyId;

/// Bytes before the first block.
pub(super) const HEAD_BYTES: usize = 2 * COPY_BYTES;

const COPY_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"FBYCODED";
const VERSION: u16 = 1;
const FLAG_COMPRESSED: u16 = 1;
const FLAG_ENCRYPTED: u16 = 2;

/// What the header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHead {
    /// Blocks are compressed where that makes them smaller.
    pub(super) compressed: bool,
    /// The key that encrypts them.
    pub(super) key: Option<KeyId>,
    /// What the file's own key is derived with.
    pub(super) salt: [u8; 16],
}

/// A header of a newer program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherVersion {
    pub(super) version: u16,
    pub(super) flags: u16,
}

impl FileHead {
    /// The bytes.
    pub(super) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        let flags = if self.compressed { FLAG_COMPRESSED } else { 0 } | if self.key.is_some() { FLAG_ENCRYPTED } else { 0 };
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&flags.to_le_bytes());
        out[16..24].copy_from_slice(&self.key.map_or(0, |key| key.0).to_le_bytes());
        out[24..40].copy_from_slice(&self.salt);
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out.copy_within(..COPY_BYTES, COPY_BYTES);
        out
    }

    /// The header in the first bytes of a file, if it is there in one copy at least.
    pub(super) fn find(bytes: &[u8]) -> Result<Option<Self>, OtherVersion> {
        bytes.chunks_exact(COPY_BYTES).take(2).find_map(Self::of_copy).transpose()
    }

    /// How many of the two copies are good.
    pub(super) fn good_copies(bytes: &[u8]) -> usize {
        bytes.chunks_exact(COPY_BYTES).take(2).filter(|copy| Self::of_copy(copy).is_some()).count()
    }

    fn of_copy(copy: &[u8]) -> Option<Result<Self, OtherVersion>> {
        let u16_at = |at: usize| u16::from_le_bytes([copy[at], copy[at + 1]]);
        let crc = u32::from_le_bytes(copy[60..].try_into().ok()?);
        if &copy[..8] != MAGIC || crc != crc32fast::hash(&copy[..60]) {
            return None;
        }
        let (version, flags) = (u16_at(8), u16_at(10));
        if version != VERSION || flags & !(FLAG_COMPRESSED | FLAG_ENCRYPTED) != 0 {
            return Some(Err(OtherVersion { version, flags }));
        }
        let id = KeyId(u64::from_le_bytes(copy[16..24].try_into().ok()?));
        let key = (flags & FLAG_ENCRYPTED != 0).then_some(id);
        Some(Ok(Self { compressed: flags & FLAG_COMPRESSED != 0, key, salt: copy[24..40].try_into().ok()? }))
    }
}
