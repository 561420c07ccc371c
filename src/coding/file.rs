//! One coded file: content in, blocks out, and back again.
//!
//! Place: made by [`CodedFiles`](super::CodedFiles), used as any other file by those above, who know its content only. A
//! file is: its header, twice (`head`), blocks (`block.rs`), and, once [`File::finish`] was called, a table of where blocks
//! begin with 32 bytes behind it that tell where the table is. Without a table, the blocks are walked once.
//!
//! Owner: the state, under one lock, is this handle's own; another handle of the same file, in this process or another,
//! finds what was appended since by walking on.
//!
//! A block that does not check, or that is forged, reads as zeroes: its extent is told by its neighbours, nothing above
//! takes zeroes for events, and so the damage is found, counted and gone around where it always is. Bytes behind the last
//! good block are a torn append and no content. A block that begins before the end of an earlier one takes the place of
//! what lies behind (after [`File::set_len`] into the middle of a block, which recovery does to a torn group).
//!
//! Failure: only the device's errors are errors.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::block::{CONTENT_BYTES_MAX, Coder, HEADER_BYTES, Header, Kind, table};
use super::head::{FileHead, HEAD_BYTES};
use super::keys::EncryptionKey;
use crate::host::{CodingOf, Entropy, File};
use crate::metrics::locked;

/// Content between two entries of the table, at least.
const MARK_BYTES: u64 = CONTENT_BYTES_MAX as u64;

/// Bytes read ahead: some blocks.
const WINDOW_BYTES: usize = 128 << 10;

/// Output buffers above this size are given back.
const KEEP_BYTES: usize = 1 << 20;

/// Bytes of a table's entry: where a block begins in the content, and where in the file.
pub(super) const TABLE_ENTRY_BYTES: usize = 16;

const TRAILER_BYTES: usize = 32;
const TRAILER_MAGIC: &[u8; 8] = b"FBYTABLE";

/// Where a block begins, in the content and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    start: u64,
    at: u64,
}

#[derive(Debug)]
struct State {
    coder: Coder,
    /// The header is still to be written.
    fresh: bool,
    /// Length of the content, as far as it was walked.
    len: u64,
    /// Offset in the file after the last good block.
    end: u64,
    /// Known beginnings, in order; so dense that what lies between two is walked in no time.
    marks: Vec<Mark>,
    /// A table was read or written: nothing is behind `end` but that.
    finished: bool,
    /// There may be bytes behind `end`.
    torn: bool,
    /// All of the file is known: this handle created it, or walked it to its end before it first wrote.
    writing: bool,
    /// The last known block may go on behind `len`: the next one takes the place of its end.
    cut: bool,
    /// Bytes of the file that were read ahead, and where they begin.
    window: (u64, Vec<u8>),
    held: Held,
    /// Reused for writing.
    out: Vec<u8>,
}

/// The content of one block, or of what is gone between two.
#[derive(Debug, Default)]
struct Held {
    /// Where it begins in the content.
    start: u64,
    /// Where it ends there.
    end: u64,
    /// The content; empty: zeroes.
    bytes: Vec<u8>,
    /// Offset in the file of its block.
    at: u64,
    /// Offset in the file behind it.
    next: u64,
}

impl Held {
    fn gone(&mut self, from: Mark, until: Mark) {
        (self.start, self.end, self.at, self.next) = (from.start, until.start, from.at, until.at);
        self.bytes.clear();
    }
}

/// What one step of a walk found.
enum Step {
    /// A good block at this offset.
    Block(u64, Header),
    /// None any more.
    End,
}

/// A file whose content is compressed, encrypted, or both.
#[derive(Debug)]
pub(super) struct CodedFile {
    inner: Arc<dyn File>,
    entropy: Arc<dyn Entropy>,
    head: FileHead,
    state: Mutex<State>,
}

impl CodedFile {
    /// A file that was just created and holds nothing.
    pub(super) fn create(inner: Arc<dyn File>, head: FileHead, key: Option<&EncryptionKey>, entropy: Arc<dyn Entropy>) -> Self {
        Self::new(inner, head, key, entropy, true)
    }

    /// A file with this header. What it holds is found when it is asked for.
    ///
    /// # Errors
    /// The device's.
    pub(super) fn open(
        inner: Arc<dyn File>,
        head: FileHead,
        key: Option<&EncryptionKey>,
        entropy: Arc<dyn Entropy>,
    ) -> io::Result<Self> {
        let file = Self::new(inner, head, key, entropy, false);
        file.read_table()?;
        Ok(file)
    }

    fn new(inner: Arc<dyn File>, head: FileHead, key: Option<&EncryptionKey>, entropy: Arc<dyn Entropy>, fresh: bool) -> Self {
        let state = State {
            coder: Coder::new(key.map(|key| key.of_file(&head.salt)), head.compressed),
            fresh,
            len: 0,
            end: HEAD_BYTES as u64,
            marks: Vec::new(),
            finished: false,
            torn: false,
            writing: fresh,
            cut: false,
            window: (0, Vec::new()),
            held: Held::default(),
            out: Vec::new(),
        };
        Self { inner, entropy, head, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A handle that failed in the middle of an append is given up by its owner, as every file is.
        locked(&self.state)
    }

    /// Reads the table, if a whole one is there that checks.
    fn read_table(&self) -> io::Result<()> {
        let len = self.inner.len()?;
        if len < (HEAD_BYTES + HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Ok(());
        }
        let mut trailer = [0; TRAILER_BYTES];
        self.inner.read_exact_at(&mut trailer, len - TRAILER_BYTES as u64)?;
        let u64_at = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight bytes"));
        let crc = u32::from_le_bytes(trailer[28..].try_into().expect("four bytes"));
        let (at, content) = (u64_at(8), u64_at(16));
        let room = HEAD_BYTES as u64..=len - (HEADER_BYTES + TRAILER_BYTES) as u64;
        if &trailer[..8] != TRAILER_MAGIC || crc != crc32fast::hash(&trailer[..28]) || !room.contains(&at) {
            return Ok(());
        }
        let mut bytes = vec![0; (len - TRAILER_BYTES as u64 - at) as usize];
        self.inner.read_exact_at(&mut bytes, at)?;
        let Some(header) = Header::find(&bytes).filter(|header| header.kind == Kind::Table && header.stored == bytes.len())
        else {
            return Ok(());
        };
        let marks: Vec<Mark> = bytes[HEADER_BYTES..]
            .chunks_exact(TABLE_ENTRY_BYTES)
            .map(|entry| {
                let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
                Mark { start: number(0), at: number(8) }
            })
            .collect();
        let ordered = marks.is_sorted_by(|one, next| one.start <= next.start && one.at < next.at);
        let inside = marks.iter().all(|mark| mark.start < content && (HEAD_BYTES as u64..at).contains(&mark.at));
        if header.start != content || !ordered || !inside || marks.first().is_some_and(|first| first.start > 0) {
            return Ok(());
        }
        let mut state = self.state();
        (state.len, state.end, state.marks, state.finished) = (content, at, marks, true);
        Ok(())
    }

    /// Up to `want` bytes of the file at `at`, from what was read ahead if they are there; fewer at its end.
    fn raw<'a>(&self, window: &'a mut (u64, Vec<u8>), at: u64, want: usize) -> io::Result<&'a [u8]> {
        let held = |window: &(u64, Vec<u8>)| window.0 <= at && at + want as u64 <= window.0 + window.1.len() as u64;
        if !held(window) {
            let (start, bytes) = (at, &mut window.1);
            bytes.resize(want.max(WINDOW_BYTES), 0);
            let mut filled = 0;
            while filled < bytes.len() {
                match self.inner.read_at(&mut bytes[filled..], start + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        bytes.clear();
                        return Err(error);
                    }
                }
            }
            bytes.truncate(filled);
            window.0 = start;
        }
        let from = (at - window.0) as usize;
        let until = (from + want).min(window.1.len());
        Ok(&window.1[from.min(until)..until])
    }

    /// The block at `at`, if a good one is there. What was read ahead may be older than what is there now.
    fn block(&self, window: &mut (u64, Vec<u8>), at: u64) -> io::Result<Option<Header>> {
        for fresh in [false, true] {
            if fresh {
                window.1.clear();
            }
            let Some(stored) = Header::peek(self.raw(window, at, HEADER_BYTES)?) else { continue };
            if let Some(header) = Header::find(self.raw(window, at, stored)?) {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// The first good block at or behind `at` and before `until` whose content does not begin before `from`.
    fn next_block(&self, window: &mut (u64, Vec<u8>), at: u64, until: u64, from: u64) -> io::Result<Step> {
        if at >= until {
            return Ok(Step::End);
        }
        if let Some(header) = self.block(window, at)? {
            return Ok(Step::Block(at, header));
        }
        let mut at = at + 1;
        while at + HEADER_BYTES as u64 <= until {
            let bytes = self.raw(window, at, WINDOW_BYTES.min((until - at) as usize))?;
            if bytes.len() < HEADER_BYTES {
                break;
            }
            let last = bytes.len() - HEADER_BYTES;
            let candidate = (0..=last).find(|offset| Header::peek(&bytes[*offset..]).is_some());
            match candidate {
                Some(offset) => {
                    at += offset as u64;
                    if let Some(header) = self.block(window, at)?.filter(|header| header.start >= from) {
                        return Ok(Step::Block(at, header));
                    }
                    at += 1;
                }
                None => at += last as u64 + 1,
            }
        }
        Ok(Step::End)
    }

    /// Walks blocks that are not known yet, until `wanted` is inside the content, and no block behind takes its place, or
    /// no good block is left.
    fn grow(&self, state: &mut State, wanted: u64) -> io::Result<()> {
        if state.finished || state.fresh {
            return Ok(());
        }
        let until = self.inner.len()?;
        loop {
            let found = if state.len <= wanted {
                self.next_block(&mut state.window, state.end, until, state.len)?
            } else {
                let next = self.block(&mut state.window, state.end)?.filter(|next| next.start < state.len);
                next.map_or(Step::End, |next| Step::Block(state.end, next))
            };
            let (at, header) = match found {
                Step::Block(at, header) if header.kind == Kind::Content => (at, header),
                // The table of a file whose trailer does not check: what is behind it is that trailer.
                Step::Block(..) | Step::End => {
                    state.torn = until > state.end;
                    return Ok(());
                }
            };
            // Behind damage nothing begins earlier, and so much content cannot have been in the bytes between: what looks
            // like a block is none of ours.
            let gap = at - state.end;
            let most = state.len + (gap / HEADER_BYTES as u64 + 1) * CONTENT_BYTES_MAX as u64;
            if gap > 0 && header.start < state.len || header.start > most {
                state.end = at + 1;
                continue;
            }
            state.note(header.start, at);
            state.len = header.end();
            state.end = at + header.stored as u64;
        }
    }

    /// Makes the held content be what holds `offset`, which is inside the content.
    fn hold(&self, state: &mut State, offset: u64) -> io::Result<()> {
        let State { coder, marks, window, held, len, end, .. } = state;
        let following = marks.partition_point(|mark| mark.start <= offset);
        let limit = marks.get(following).copied();
        let mut from = match following.checked_sub(1) {
            Some(at) => marks[at],
            // The first blocks are gone.
            None => Mark { start: 0, at: HEAD_BYTES as u64 },
        };
        if held.next > from.at && held.end >= from.start && held.end <= offset {
            from = Mark { start: held.end, at: held.next };
        }
        let stop = limit.unwrap_or(Mark { start: *len, at: *end });
        loop {
            let found = match self.next_block(window, from.at, stop.at, from.start)? {
                Step::Block(at, header) if header.kind == Kind::Content && (from.start..stop.start).contains(&header.start) => {
                    Some((at, header))
                }
                Step::Block(..) | Step::End => None,
            };
            let Some((at, header)) = found.filter(|(_, header)| header.start <= offset) else {
                // What lay here is gone; its neighbours tell how much it was.
                held.gone(from, found.map_or(stop, |(at, header)| Mark { start: header.start, at }));
                return Ok(());
            };
            let end = header.end().min(stop.start);
            let next = at + header.stored as u64;
            if end > offset {
                let bytes = self.raw(window, at, header.stored)?;
                (held.start, held.end, held.at, held.next) = (header.start, end, at, next);
                if coder.read(&header, bytes, &mut held.bytes).is_err() {
                    held.bytes.clear();
                }
                return Ok(());
            }
            from = Mark { start: header.end(), at: next };
        }
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        if self.head.key.is_some() {
            self.entropy.fill(&mut nonce);
        }
        nonce
    }
}

impl State {
    /// Notes where a block begins, if the marks need it.
    fn note(&mut self, start: u64, at: u64) {
        let due = self.marks.last().is_none_or(|last| start >= last.start + MARK_BYTES);
        // One that takes the place of an earlier one's end, or that lies behind damage, must be found before that.
        if due || start != self.len || self.cut {
            self.marks.push(Mark { start, at });
        }
        self.cut = false;
    }

    fn forget_what_was_read(&mut self) {
        self.window.1.clear();
        self.held = Held::default();
    }
}

impl File for CodedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let state = &mut *state;
        if offset >= state.len {
            self.grow(state, offset)?;
        }
        if offset >= state.len || buf.is_empty() {
            return Ok(0);
        }
        if !(state.held.start..state.held.end).contains(&offset) {
            self.hold(state, offset)?;
        }
        let Held { start, end, bytes, .. } = &state.held;
        let read = buf.len().min((end - offset) as usize);
        match bytes.get((offset - start) as usize..) {
            Some(bytes) if !bytes.is_empty() => buf[..read].copy_from_slice(&bytes[..read]),
            _ => buf[..read].fill(0),
        }
        Ok(read)
    }

    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        if !state.writing {
            self.grow(state, u64::MAX)?;
            state.writing = true;
        }
        if state.torn || state.finished {
            self.inner.set_len(state.end)?;
            (state.torn, state.finished) = (false, false);
            state.forget_what_was_read();
        }
        let mut out = std::mem::take(&mut state.out);
        out.clear();
        if state.fresh {
            out.extend_from_slice(&self.head.encode());
        }
        let (mut start, mut marks) = (state.len, Vec::new());
        let begun = if state.fresh { 0 } else { state.end };
        let mut content: Vec<u8> = Vec::with_capacity(CONTENT_BYTES_MAX.min(parts.iter().map(|part| part.len()).sum()));
        let mut block = |content: &mut Vec<u8>, out: &mut Vec<u8>| -> io::Result<()> {
            if !content.is_empty() {
                marks.push((start, begun + out.len() as u64));
                state.coder.write(out, start, content, self.nonce())?;
                start += content.len() as u64;
                content.clear();
            }
            Ok(())
        };
        for (number, part) in parts.iter().enumerate() {
            // What a file begins with tells what it is, and is not to be lost with what follows.
            if state.fresh && number == 1 {
                block(&mut content, &mut out)?;
            }
            let mut rest = *part;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(CONTENT_BYTES_MAX - content.len()));
                content.extend_from_slice(now);
                if content.len() == CONTENT_BYTES_MAX {
                    block(&mut content, &mut out)?;
                }
                rest = later;
            }
        }
        block(&mut content, &mut out)?;
        state.torn = true;
        self.inner.append(&[&out])?;
        state.torn = false;
        state.fresh = false;
        for (start, at) in marks {
            state.len = start;
            state.note(start, at);
        }
        (state.len, state.end) = (start, begun + out.len() as u64);
        if out.capacity() <= KEEP_BYTES {
            state.out = out;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        self.grow(state, u64::MAX)?;
        if len > state.len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a coded file is not made longer without content"));
        }
        let mut end = state.end;
        if len < state.len {
            // A block that goes on behind `len` stays; what is appended next takes the place of its end.
            self.hold(state, len)?;
            end = if state.held.start < len { state.held.next } else { state.held.at };
        }
        self.inner.set_len(end)?;
        (state.len, state.end, state.cut, state.torn, state.finished) = (len, end, true, false, false);
        state.marks.retain(|mark| mark.start < len && mark.at < end);
        state.forget_what_was_read();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state();
        self.grow(&mut state, u64::MAX)?;
        Ok(state.len)
    }

    fn stored_len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn finish(&self) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        self.grow(state, u64::MAX)?;
        if state.finished || state.torn || state.fresh {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(state.marks.len() * TABLE_ENTRY_BYTES);
        for mark in &state.marks {
            entries.extend_from_slice(&mark.start.to_le_bytes());
            entries.extend_from_slice(&mark.at.to_le_bytes());
        }
        let table = table(&entries, state.len);
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..8].copy_from_slice(TRAILER_MAGIC);
        trailer[8..16].copy_from_slice(&state.end.to_le_bytes());
        trailer[16..24].copy_from_slice(&state.len.to_le_bytes());
        let crc = crc32fast::hash(&trailer[..28]);
        trailer[28..].copy_from_slice(&crc.to_le_bytes());
        state.torn = true;
        self.inner.append(&[&table, &trailer])?;
        (state.torn, state.finished) = (false, true);
        Ok(())
    }

    fn flaws(&self) -> io::Result<Vec<String>> {
        let mut flaws = Vec::new();
        let mut bytes = [0; HEAD_BYTES];
        if self.inner.len()? < HEAD_BYTES as u64 {
            return Ok(flaws);
        }
        self.inner.read_exact_at(&mut bytes, 0)?;
        if FileHead::good_copies(&bytes) < 2 {
            flaws.push("one of the two copies of the coding header does not check; the other one serves".to_owned());
        }
        let mut state = self.state();
        let state = &mut *state;
        self.grow(state, u64::MAX)?;
        let mut offset = 0;
        while offset < state.len {
            self.hold(state, offset)?;
            let Held { start, end, bytes, at, .. } = &state.held;
            if bytes.is_empty() {
                flaws.push(format!(
                    "the coded block at byte {at} of the file does not check: {} bytes of content from offset {start} are lost",
                    end - start
                ));
            }
            offset = *end;
        }
        Ok(flaws)
    }

    fn coding(&self) -> Option<CodingOf> {
        Some(CodingOf { compressed: self.head.compressed, encryption_key: self.head.key.map(|key| key.0) })
    }
}
