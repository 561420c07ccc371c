//! Bytes of one block: what was appended to a coded file at once, or 32 KiB of it, as it lies on disk.
//!
//! Place: `file` cuts what is written into blocks and finds them again. Pure; nothing here does I/O.
//!
//! | offset | type | field |
//! | --- | --- | --- |
//! | 0 | u32 | CRC-32 (IEEE) of all that follows in the block |
//! | 4 | u32 | length of the whole block in bytes, this header and the tag included |
//! | 8 | u64 | where its content begins in the file's content |
//! | 16 | u32 | length of its content |
//! | 20 | u8 | kind: 1 content, 2 table |
//! | 21 | u8 | codec: 0 as it is, 1 zstd |
//! | 22 | u16 | `BK` |
//! | 24 | | nonce, 12 bytes; zeroes where nothing is encrypted |
//! | 36 | | the content, compressed first, then encrypted with AES-256-GCM; 16 bytes of tag |
//!
//! All numbers are little-endian. Bytes 4 to 24 are authenticated with the content, so that no block can stand for
//! another of its file. *PAIRED*: [`Header::find`] takes only what [`write`] makes. Failure: bytes that are no block are
//! `None`, a block that does not decode is [`Bad`]; never a panic.

use std::io;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};

/// Content of one block at most: what must be decoded to read one event, and what a flipped bit can cost.
pub(super) const CONTENT_BYTES_MAX: usize = 32 << 10;

/// Bytes before the content.
pub(super) const HEADER_BYTES: usize = 36;

/// Bytes behind it, where it is encrypted.
pub(super) const TAG_BYTES: usize = 16;

/// Entries of a table that one block takes at most; a file of 512 MiB has 16,384.
const TABLE_BYTES_MAX: usize = 8 << 20;

const MAGIC: [u8; 2] = *b"BK";

/// zstd's first level: at these sizes higher ones cost much more than they save (`benches/coding.rs`).
const ZSTD_LEVEL: i32 = 1;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A part of the file's content.
    Content = 1,
    /// Where blocks begin; neither compressed nor encrypted.
    Table = 2,
}

const AS_IT_IS: u8 = 0;
const ZSTD: u8 = 1;

/// A block that checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the block.
    pub(super) stored: usize,
    /// Where its content begins.
    pub(super) start: u64,
    /// Length of its content.
    pub(super) content: usize,
    /// What it holds.
    pub(super) kind: Kind,
    codec: u8,
}

/// A block whose checksum is good, and which is not what was written: another key's, or forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Header {
    /// Bytes of the block that seems to begin here; `None` where none can.
    pub(super) fn peek(bytes: &[u8]) -> Option<usize> {
        if bytes.len() < HEADER_BYTES || bytes[22..24] != MAGIC {
            return None;
        }
        let stored = u32_at(bytes, 4) as usize;
        let most = match bytes[20] {
            1 => CONTENT_BYTES_MAX,
            2 => TABLE_BYTES_MAX,
            _ => return None,
        };
        (HEADER_BYTES..=HEADER_BYTES + most + TAG_BYTES).contains(&stored).then_some(stored)
    }

    /// The block at the start of `bytes`, if a whole one is there that checks.
    pub(super) fn find(bytes: &[u8]) -> Option<Self> {
        let stored = Self::peek(bytes)?;
        if bytes.len() < stored || crc32fast::hash(&bytes[4..stored]) != u32_at(bytes, 0) {
            return None;
        }
        let kind = if bytes[20] == Kind::Content as u8 { Kind::Content } else { Kind::Table };
        let start = u64::from(u32_at(bytes, 8)) | u64::from(u32_at(bytes, 12)) << 32;
        let header = Self { stored, start, content: u32_at(bytes, 16) as usize, kind, codec: bytes[21] };
        let shaped = header.codec <= ZSTD && (kind == Kind::Table || header.content <= CONTENT_BYTES_MAX);
        shaped.then_some(header)
    }

    /// Where its content ends.
    pub(super) fn end(&self) -> u64 {
        self.start + self.content as u64
    }
}

/// What is done to content, with what that needs again and again.
pub(super) struct Coder {
    pub(super) key: Option<LessSafeKey>,
    compress: bool,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Coder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coder").field("compress", &self.compress).finish_non_exhaustive()
    }
}

impl Coder {
    pub(super) fn new(key: Option<LessSafeKey>, compress: bool) -> Self {
        Self { key, compress, compressor: None, decompressor: None, plain: Vec::new() }
    }

    /// Appends the block that holds `content`, which begins at `start` of the file's.
    ///
    /// # Errors
    /// None that this program knows of: the libraries' own.
    pub(super) fn write(&mut self, out: &mut Vec<u8>, start: u64, content: &[u8], nonce: [u8; 12]) -> io::Result<()> {
        debug_assert!(content.len() <= CONTENT_BYTES_MAX, "the file cuts its content first");
        let at = out.len();
        out.resize(at + HEADER_BYTES, 0);
        let mut codec = AS_IT_IS;
        if self.compress {
            let compressor = match &mut self.compressor {
                Some(compressor) => compressor,
                none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
            };
            self.plain.clear();
            self.plain.reserve(zstd::zstd_safe::compress_bound(content.len()));
            let bytes = compressor.compress_to_buffer(content, &mut self.plain)?;
            if bytes < content.len() {
                out.extend_from_slice(&self.plain);
                codec = ZSTD;
            }
        }
        if codec == AS_IT_IS {
            out.extend_from_slice(content);
        }
        let tag = if self.key.is_some() { TAG_BYTES } else { 0 };
        let stored = out.len() - at + tag;
        head(&mut out[at..], stored, start, content.len(), Kind::Content, codec);
        if let Some(key) = &self.key {
            let (header, text) = out[at..].split_at_mut(HEADER_BYTES);
            header[24..].copy_from_slice(&nonce);
            let aad = Aad::from(<[u8; 20]>::try_from(&header[4..24]).expect("twenty bytes"));
            let tag = key
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, text)
                .map_err(|_| io::Error::other("a block could not be encrypted"))?;
            out.extend_from_slice(tag.as_ref());
        }
        let crc = crc32fast::hash(&out[at + 4..]);
        out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(())
    }

    /// Puts the content of the block `bytes`, which begins with `header`, into `out`.
    pub(super) fn read(&mut self, header: &Header, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Bad> {
        let mut text = &bytes[HEADER_BYTES..header.stored];
        if let Some(key) = &self.key {
            let (cipher, tag) = text.split_at_checked(text.len().wrapping_sub(TAG_BYTES)).ok_or(Bad)?;
            let nonce = Nonce::assume_unique_for_key(<[u8; 12]>::try_from(&bytes[24..HEADER_BYTES]).expect("twelve bytes"));
            let aad = Aad::from(<[u8; 20]>::try_from(&bytes[4..24]).expect("twenty bytes"));
            self.plain.resize(cipher.len(), 0);
            key.open_separate_gather(nonce, aad, cipher, tag, &mut self.plain).map_err(|_| Bad)?;
            text = &self.plain;
        }
        out.clear();
        if header.codec == ZSTD {
            let decompressor = match &mut self.decompressor {
                Some(decompressor) => decompressor,
                none => none.insert(zstd::bulk::Decompressor::new().map_err(|_| Bad)?),
            };
            out.reserve_exact(header.content);
            decompressor.decompress_to_buffer(text, out).map_err(|_| Bad)?;
        } else {
            out.extend_from_slice(text);
        }
        if out.len() == header.content { Ok(()) } else { Err(Bad) }
    }
}

fn head(out: &mut [u8], stored: usize, start: u64, content: usize, kind: Kind, codec: u8) {
    out[4..8].copy_from_slice(&(stored as u32).to_le_bytes());
    out[8..16].copy_from_slice(&start.to_le_bytes());
    out[16..20].copy_from_slice(&(content as u32).to_le_bytes());
    out[20] = kind as u8;
    out[21] = codec;
    out[22..24].copy_from_slice(&MAGIC);
}

/// A table, as a block: its entries as they are.
pub(super) fn table(entries: &[u8], start: u64) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    out.extend_from_slice(entries);
    let stored = out.len();
    head(&mut out, stored, start, entries.len(), Kind::Table, AS_IT_IS);
    let crc = crc32fast::hash(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}
