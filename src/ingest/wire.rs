//! Cuts a byte stream into events: lines or frames. Pure; no I/O, no clock.
//!
//! Place: the reader of a socket connection feeds every read buffer through a [`Splitter`]; `forebay send` cuts
//! its input with the same one, and bodies of HTTP, which are whole, are cut by [`lines`] and [`frames`]. Events that lie whole in the buffer
//! are handed on as slices of it. Only what is cut off at the buffer's end is carried over in the splitter.
//!
//! Lines: any bytes up to `\n`; a `\r` before it is stripped, an empty line is skipped and is no event. A line
//! over the limit is rejected once, and the next one is read as usual. What stands before the end of the stream
//! without `\n` is an event too.
//! Frames, big-endian, `length` counting what follows it:
//!
//! | bytes | field |
//! | --- | --- |
//! | 4 | `length` = 2 + `key_length` + bytes of data |
//! | 2 | `key_length`; 0 lets the source's rule choose |
//! | `key_length` | key, UTF-8 |
//! | rest | data |
//!
//! Failure: a frame that is too large, or whose key is, is skipped by its length and rejected. One whose length
//! cannot be true (less than its own key, or over [`FRAME_BYTES_SKIPPED_MAX`]) means that the boundary is lost:
//! nothing after it can be read ([`Item::Lost`]).
//! *CHUNK-BLIND*: the events do not depend on how the stream was cut into buffers. *CARRY-BOUNDED*: the carry,
//! unused room included, never exceeds the largest event with its longest key and header.

use crate::ingest::Reject;
use crate::limits::KEY_BYTES_MAX;

/// Longest frame that is skipped by its length. What claims more is taken for a lost boundary.
pub const FRAME_BYTES_SKIPPED_MAX: usize = 64 << 20;

/// Bytes of `length` and `key_length`.
pub const FRAME_HEADER_BYTES: usize = 6;

/// Carry buffers above this are given back to the allocator once their event is through.
const CARRY_BYTES_KEPT: usize = 16 << 10;

/// How events are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// One event a line.
    #[default]
    Lines,
    /// Length-prefixed events with optional keys.
    Frames,
}

impl Format {
    /// As in the hello line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Frames => "frames",
        }
    }
}

/// What comes next in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// One event.
    Event {
        /// The key that its frame names; `None`: the source chooses.
        key: Option<&'a [u8]>,
        /// The event's bytes.
        data: &'a [u8],
    },
    /// One event that is refused for its form; it counts as one.
    Rejected(Reject),
    /// A frame whose length lies. It counts as one event; nothing after it can be told apart.
    Lost,
}

/// Where the stream stands between two buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the beginning or within an event whose bytes so far are in the carry.
    Within,
    /// The carry holds an event that was handed out; it is emptied before the next is read.
    Spent,
    /// Within a line that was rejected: everything up to its newline is skipped.
    SkipLine,
    /// Within a frame that was rejected: this many bytes are skipped.
    SkipBytes(usize),
    /// The boundary is lost.
    Lost,
}

/// An incremental splitter; one a connection.
#[derive(Debug)]
pub struct Splitter {
    format: Format,
    data_bytes_max: usize,
    carry: Vec<u8>,
    state: State,
}

impl Splitter {
    /// For events of at most `data_bytes_max` bytes, at the beginning of a stream.
    #[must_use]
    pub fn new(format: Format, data_bytes_max: usize) -> Self {
        Self { format, data_bytes_max, carry: Vec::new(), state: State::Within }
    }

    /// Bytes held over from earlier buffers.
    #[must_use]
    pub fn carried(&self) -> usize {
        if self.state == State::Spent { 0 } else { self.carry.len() }
    }

    /// The next item of the stream, whose next bytes are `input`; what was used is taken off `input`.
    /// `None`: all of `input` is used and more is needed.
    pub fn next<'a, 'b: 'a>(&'a mut self, input: &mut &'b [u8]) -> Option<Item<'a>> {
        if self.state == State::Spent {
            self.clear_carry();
        }
        match self.format {
            Format::Lines => self.next_line(input),
            Format::Frames => self.next_frame(input),
        }
    }

    /// What the end of the stream makes of the rest: a last line without newline, or a frame cut short.
    pub fn finish(&mut self) -> Option<Item<'_>> {
        let state = std::mem::replace(&mut self.state, State::Spent);
        match (self.format, state) {
            (_, State::Spent | State::SkipLine | State::Lost) => None,
            (Format::Lines, _) => line(&self.carry, self.data_bytes_max),
            // It was rejected already, when its header was read.
            (Format::Frames, State::SkipBytes(_)) => None,
            (Format::Frames, _) => (!self.carry.is_empty()).then_some(Item::Rejected(Reject::BadFrame)),
        }
    }

    /// Carries `bytes` over, of which the caller knows that they are within the bound.
    fn carry(&mut self, bytes: &[u8]) {
        let (held, needed) = (self.carry.capacity(), self.carry.len() + bytes.len());
        if needed > held {
            // Doubled, so that little is moved, but not beyond the bound: an event of 10 MiB would take 16.
            let most = self.data_bytes_max + KEY_BYTES_MAX + FRAME_HEADER_BYTES;
            let room = (2 * held).min(most).max(needed);
            self.carry.reserve_exact(room - self.carry.len());
        }
        self.carry.extend_from_slice(bytes);
    }

    fn clear_carry(&mut self) {
        self.state = State::Within;
        if self.carry.capacity() > CARRY_BYTES_KEPT {
            self.carry = Vec::new();
        } else {
            self.carry.clear();
        }
    }

    fn next_line<'a, 'b: 'a>(&'a mut self, input: &mut &'b [u8]) -> Option<Item<'a>> {
        let max = self.data_bytes_max;
        loop {
            let Some(newline) = memchr::memchr(b'\n', input) else {
                if self.state == State::Within {
                    // One byte more than the limit may still turn out to be the CR of a CRLF.
                    if self.carry.len() + input.len() > max + 1 {
                        *input = &[];
                        self.clear_carry();
                        self.state = State::SkipLine;
                        return Some(Item::Rejected(Reject::TooLarge));
                    }
                    self.carry(input);
                }
                *input = &[];
                return None;
            };
            let (bytes, rest) = (&input[..newline], &input[newline + 1..]);
            *input = rest;
            if self.state == State::SkipLine {
                self.state = State::Within;
            } else if self.carry.is_empty() {
                if let Some(item) = line(strip_cr(bytes), max) {
                    return Some(item);
                }
            } else {
                if self.carry.len() + bytes.len() > max + 1 {
                    self.clear_carry();
                    return Some(Item::Rejected(Reject::TooLarge));
                }
                self.carry(bytes);
                if strip_cr(&self.carry).is_empty() {
                    self.clear_carry();
                    continue;
                }
                self.state = State::Spent;
                return line(strip_cr(&self.carry), max);
            }
        }
    }

    fn next_frame<'a, 'b: 'a>(&'a mut self, input: &mut &'b [u8]) -> Option<Item<'a>> {
        match self.state {
            State::Lost => {
                *input = &[];
                return None;
            }
            State::SkipBytes(left) => {
                let skipped = left.min(input.len());
                *input = &input[skipped..];
                self.state = if skipped == left { State::Within } else { State::SkipBytes(left - skipped) };
                if skipped < left {
                    return None;
                }
            }
            _ => {}
        }
        if input.is_empty() {
            return None;
        }
        // The header, from the carry where it was cut.
        if self.carry.is_empty() {
            if input.len() < FRAME_HEADER_BYTES {
                self.carry.extend_from_slice(input);
                *input = &[];
                return None;
            }
        } else if self.carry.len() < FRAME_HEADER_BYTES {
            let taken = (FRAME_HEADER_BYTES - self.carry.len()).min(input.len());
            self.carry.extend_from_slice(&input[..taken]);
            *input = &input[taken..];
            if self.carry.len() < FRAME_HEADER_BYTES {
                return None;
            }
        }
        let carried = !self.carry.is_empty();
        let header = Header::read(if carried { &self.carry } else { input });
        match header.verdict(self.data_bytes_max) {
            Verdict::Lost => {
                *input = &[];
                self.clear_carry();
                self.state = State::Lost;
                return Some(Item::Lost);
            }
            Verdict::Skip(reject) => {
                // The carry holds no more than the header: the verdict falls as soon as that is whole.
                if !carried {
                    *input = &input[FRAME_HEADER_BYTES..];
                }
                self.clear_carry();
                self.state = State::SkipBytes(header.length - 2);
                return Some(Item::Rejected(reject));
            }
            Verdict::Take => {}
        }
        let whole = 4 + header.length;
        if !carried && input.len() >= whole {
            let (frame, rest) = input.split_at(whole);
            *input = rest;
            return Some(header.event(frame));
        }
        let taken = (whole - self.carry.len()).min(input.len());
        self.carry(&input[..taken]);
        *input = &input[taken..];
        if self.carry.len() < whole {
            return None;
        }
        self.state = State::Spent;
        Some(header.event(&self.carry))
    }
}

/// The items of a whole body of lines: what a [`Splitter`] would make of it, without a copy of the last line.
pub fn lines(body: &[u8], data_bytes_max: usize) -> impl Iterator<Item = Item<'_>> {
    let mut rest = Some(body);
    std::iter::from_fn(move || {
        loop {
            let bytes = rest?;
            let bytes = match memchr::memchr(b'\n', bytes) {
                Some(newline) => {
                    rest = Some(&bytes[newline + 1..]);
                    strip_cr(&bytes[..newline])
                }
                None => {
                    rest = None;
                    bytes
                }
            };
            if let Some(item) = line(bytes, data_bytes_max) {
                return Some(item);
            }
        }
    })
}

/// The items of a whole body of frames: what a [`Splitter`] would make of it. The last one may be a frame cut short
/// ([`Reject::BadFrame`]) or [`Item::Lost`].
pub fn frames(body: &[u8], data_bytes_max: usize) -> impl Iterator<Item = Item<'_>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if rest.len() < FRAME_HEADER_BYTES {
            rest = &[];
            return Some(Item::Rejected(Reject::BadFrame));
        }
        let header = Header::read(rest);
        let verdict = header.verdict(data_bytes_max);
        if matches!(verdict, Verdict::Lost) {
            rest = &[];
            return Some(Item::Lost);
        }
        let Some((frame, after)) = rest.split_at_checked(4 + header.length) else {
            rest = &[];
            return Some(match verdict {
                // As on the socket: it was rejected when its header was read.
                Verdict::Skip(reject) => Item::Rejected(reject),
                _ => Item::Rejected(Reject::BadFrame),
            });
        };
        rest = after;
        Some(match verdict {
            Verdict::Skip(reject) => Item::Rejected(reject),
            _ => header.event(frame),
        })
    })
}

/// A line's item; `None` for an empty one.
fn line(bytes: &[u8], data_bytes_max: usize) -> Option<Item<'_>> {
    match bytes.len() {
        0 => None,
        long if long > data_bytes_max => Some(Item::Rejected(Reject::TooLarge)),
        _ => Some(Item::Event { key: None, data: bytes }),
    }
}

fn strip_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The first six bytes of a frame.
#[derive(Clone, Copy)]
struct Header {
    length: usize,
    key_length: usize,
}

enum Verdict {
    Take,
    Skip(Reject),
    Lost,
}

impl Header {
    /// `bytes` holds at least [`FRAME_HEADER_BYTES`].
    fn read(bytes: &[u8]) -> Self {
        let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let key_length = u16::from_be_bytes([bytes[4], bytes[5]]);
        Self { length: length as usize, key_length: usize::from(key_length) }
    }

    fn verdict(self, data_bytes_max: usize) -> Verdict {
        let Some(data) = self.length.checked_sub(2 + self.key_length) else { return Verdict::Lost };
        if self.length > FRAME_BYTES_SKIPPED_MAX {
            Verdict::Lost
        } else if data > data_bytes_max {
            Verdict::Skip(Reject::TooLarge)
        } else if self.key_length > KEY_BYTES_MAX {
            Verdict::Skip(Reject::KeyTooLong)
        } else {
            Verdict::Take
        }
    }

    fn event(self, frame: &[u8]) -> Item<'_> {
        let (key, data) = frame[FRAME_HEADER_BYTES..].split_at(self.key_length);
        Item::Event { key: (!key.is_empty()).then_some(key), data }
    }
}

/// Appends the frame of `data` to `out`.
///
/// # Panics
/// If the key is longer than 65,535 bytes or the frame than 4 GiB: callers keep far below both.
pub fn write_frame(out: &mut Vec<u8>, key: &[u8], data: &[u8]) {
    let key_length = u16::try_from(key.len()).expect("callers keep keys below 64 KiB");
    let length = u32::try_from(2 + key.len() + data.len()).expect("callers keep frames below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&key_length.to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An item that owns its bytes.
    #[derive(Clone, Debug, PartialEq)]
    enum Owned {
        Event(Vec<u8>, Vec<u8>),
        Rejected(Reject),
        Lost,
    }

    fn own(item: Item<'_>) -> Owned {
        match item {
            Item::Event { key, data } => Owned::Event(key.unwrap_or_default().to_vec(), data.to_vec()),
            Item::Rejected(reject) => Owned::Rejected(reject),
            Item::Lost => Owned::Lost,
        }
    }

    /// All items of a stream that arrives in `chunks`; checks the bound of the carry on the way.
    fn split<'a>(format: Format, max: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Owned> {
        let mut splitter = Splitter::new(format, max);
        let mut items = Vec::new();
        for mut chunk in chunks {
            while let Some(item) = splitter.next(&mut chunk) {
                items.push(own(item));
            }
            assert!(chunk.is_empty());
            assert!(splitter.carried() <= max + KEY_BYTES_MAX + FRAME_HEADER_BYTES);
            assert!(splitter.carry.capacity() <= max + KEY_BYTES_MAX + FRAME_HEADER_BYTES, "CARRY-BOUNDED");
        }
        items.extend(splitter.finish().map(own));
        items
    }

    fn in_lines(stream: &[u8]) -> Vec<Owned> {
        split(Format::Lines, 8, [stream])
    }

    fn event(data: &[u8]) -> Owned {
        Owned::Event(Vec::new(), data.to_vec())
    }

    const TOO_LARGE: Owned = Owned::Rejected(Reject::TooLarge);

    #[test]
    fn a_line_without_newline_before_eof_is_an_event() {
        assert_eq!(in_lines(b"a\nb"), [event(b"a"), event(b"b")]);
    }

    #[test]
    fn the_cr_of_a_crlf_is_stripped_and_empty_lines_are_no_events() {
        assert_eq!(in_lines(b"a\r\n\r\n\n\nb\r\r\n"), [event(b"a"), event(b"b\r")]);
    }

    #[test]
    fn any_byte_but_newline_may_stand_in_a_line() {
        assert_eq!(in_lines(b"\0\xff\n"), [event(b"\0\xff")]);
    }

    #[test]
    fn too_long_a_line_is_rejected_once_and_the_next_is_read() {
        assert_eq!(in_lines(b"12345678\n123456789\nb\n"), [event(b"12345678"), TOO_LARGE, event(b"b")]);
        let one_by_one = [b'x'; 100];
        let stream = [&one_by_one[..], b"\nb\n"].concat();
        assert_eq!(split(Format::Lines, 8, stream.chunks(1)), [TOO_LARGE, event(b"b")]);
    }

    #[test]
    fn the_cr_does_not_count_against_the_limit() {
        assert_eq!(split(Format::Lines, 8, b"12345678\r\n".chunks(1)), [event(b"12345678")]);
    }

    fn frame(key: &[u8], data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(&mut out, key, data);
        out
    }

    #[test]
    fn a_frame_carries_its_key_and_any_bytes() {
        let stream = [frame(b"k", b"a\nb"), frame(b"", b""), frame(b"", b"c")].concat();
        let expected = [Owned::Event(b"k".to_vec(), b"a\nb".to_vec()), event(b""), event(b"c")];
        assert_eq!(split(Format::Frames, 8, [&stream[..]]), expected);
    }

    #[test]
    fn too_large_a_frame_is_skipped_by_its_length() {
        let stream = [frame(b"k", &[b'x'; 9]), frame(b"", b"c")].concat();
        assert_eq!(split(Format::Frames, 8, stream.chunks(3)), [TOO_LARGE, event(b"c")]);
    }

    #[test]
    fn too_long_a_key_is_skipped_by_its_length() {
        let stream = [frame(&[b'k'; KEY_BYTES_MAX + 1], b"x"), frame(b"", b"c")].concat();
        assert_eq!(split(Format::Frames, 8, stream.chunks(700)), [Owned::Rejected(Reject::KeyTooLong), event(b"c")]);
    }

    #[test]
    fn a_frame_whose_length_lies_ends_the_stream() {
        for lie in [&[0, 0, 0, 1, 0, 0][..], &[0, 0, 0, 5, 0, 4, 0, 0, 0], &[0xff, 0xff, 0xff, 0xff, 0, 0]] {
            let stream = [&frame(b"", b"c")[..], lie, &frame(b"", b"d")].concat();
            assert_eq!(split(Format::Frames, 8, stream.chunks(2)), [event(b"c"), Owned::Lost]);
        }
    }

    #[test]
    fn a_frame_cut_short_by_eof_is_a_bad_frame() {
        let whole = frame(b"k", b"data");
        for cut in 1..whole.len() {
            assert_eq!(split(Format::Frames, 8, [&whole[..cut]]), [Owned::Rejected(Reject::BadFrame)], "{cut}");
        }
    }

    /// Cuts `stream` at pseudo-random places drawn from `cuts`.
    fn chunked<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        let (mut rest, mut at) = (stream, 0);
        while !rest.is_empty() {
            let length = cuts.get(at % cuts.len().max(1)).copied().unwrap_or(1).clamp(1, rest.len());
            chunks.push(&rest[..length]);
            rest = &rest[length..];
            at += 1;
        }
        chunks
    }

    proptest! {
        #[test]
        fn any_chunking_of_lines_yields_the_same_events(
            stream in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), any::<u8>()], 0..200),
            cuts in prop::collection::vec(1usize..12, 1..20),
        ) {
            let expected: Vec<Owned> = {
                let mut lines: Vec<&[u8]> = stream.split(|byte| *byte == b'\n').collect();
                let last = lines.pop().unwrap_or_default();
                let lines = lines.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line));
                lines.chain([last]).filter(|line| !line.is_empty())
                    .map(|line| if line.len() > 8 { TOO_LARGE } else { event(line) }).collect()
            };
            prop_assert_eq!(&split(Format::Lines, 8, [&stream[..]]), &expected);
            prop_assert_eq!(&lines(&stream, 8).map(own).collect::<Vec<_>>(), &expected);
            prop_assert_eq!(split(Format::Lines, 8, chunked(&stream, &cuts)), expected);
        }

        #[test]
        fn any_chunking_of_frames_yields_the_same_events(
            frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..5), prop::collection::vec(any::<u8>(), 0..12)), 0..12),
            cuts in prop::collection::vec(1usize..30, 1..20),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (key, data) in frames {
                write_frame(&mut stream, &key, &data);
                expected.push(if data.len() > 8 { TOO_LARGE } else { Owned::Event(key, data) });
            }
            prop_assert_eq!(&split(Format::Frames, 8, [&stream[..]]), &expected);
            prop_assert_eq!(&super::frames(&stream, 8).map(own).collect::<Vec<_>>(), &expected);
            prop_assert_eq!(split(Format::Frames, 8, chunked(&stream, &cuts)), expected);
        }

        #[test]
        fn no_stream_of_frames_panics_or_depends_on_its_chunks(
            stream in prop::collection::vec(prop_oneof![3 => Just(0u8), 2 => 0u8..8, 1 => any::<u8>()], 0..200),
            cuts in prop::collection::vec(1usize..12, 1..20),
        ) {
            let whole = split(Format::Frames, 8, [&stream[..]]);
            prop_assert_eq!(&super::frames(&stream, 8).map(own).collect::<Vec<_>>(), &whole);
            prop_assert_eq!(whole, split(Format::Frames, 8, chunked(&stream, &cuts)));
        }
    }
}
