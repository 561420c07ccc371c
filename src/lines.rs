//! Events of one shard into one record, a line each: for consumers that split lines, such as what Firehose leaves on S3.
//!
//! Place: `dispatch` asks for each event's [`Line`] while it plans a record, the put task writes. Pure.
//!
//! The bytes: each event, then a newline, the last one too, so that records which somebody strings together stay lines. The
//! record's partition key, and explicit hash key if it has one, are its first event's.
//!
//! *ONE-EVENT-A-LINE*: no newline stands inside a line. In JSON a newline can only stand between tokens, where a space means
//! the same: it becomes one. Another event with a newline inside, and an empty one, which would be no line, has a record of its
//! own, byte for byte. Absent on purpose: reading; whoever splits lines can.

use serde::de::IgnoredAny;

/// How an event goes into a record of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// As a line among others.
    Shared,
    /// Alone in its record, as it is.
    Alone,
}

/// How this event goes.
#[must_use]
pub fn line_of(data: &[u8]) -> Line {
    if data.is_empty() {
        return Line::Alone;
    }
    let is_line = memchr::memchr(b'\n', data).is_none() || serde_json::from_slice::<IgnoredAny>(data).is_ok();
    if is_line { Line::Shared } else { Line::Alone }
}

/// Bytes of a line.
#[must_use]
pub const fn line_len(data_len: usize) -> usize {
    data_len + 1
}

/// Writes the events, each of which is [`Line::Shared`], as lines. `size`: their [`line_len`]s together.
///
/// # Panics
/// If that is not their size.
#[must_use]
pub fn write<'a>(events: impl IntoIterator<Item = &'a [u8]>, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    for data in events {
        let start = out.len();
        out.extend_from_slice(data);
        while let Some(at) = memchr::memchr(b'\n', &out[start..]) {
            out[start + at] = b' ';
        }
        out.push(b'\n');
    }
    assert!(out.len() == size, "EXACT-SIZE: planned {size} bytes of lines, wrote {}", out.len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_with_newlines_is_a_line_that_means_the_same_and_other_text_stands_alone() {
        let pretty = b"{\n  \"userId\": \"u\\n1\",\n  \"n\": [1,\n2]\n}\n";
        assert_eq!(line_of(pretty), Line::Shared);
        let line = write([&pretty[..]], line_len(pretty.len()));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(read(&line), read(pretty));
        for alone in [&b"two\nlines"[..], b"\n", b"", b"{\"cut\":\n", b"{\"a\": \"raw\nnewline\"}"] {
            assert_eq!(line_of(alone), Line::Alone, "{alone:?}");
        }
        assert_eq!(line_of(b"any bytes \xff\x00 but a newline"), Line::Shared);
    }

    proptest! {
        #[test]
        fn whoever_splits_lines_gets_every_event_back(events in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..20)) {
            let shared: Vec<&[u8]> =
                events.iter().map(|event| &event[..]).filter(|event| !event.contains(&b'\n')).collect();
            prop_assert!(shared.iter().all(|event| line_of(event) == Line::Shared));
            let record = write(shared.iter().copied(), shared.iter().map(|event| line_len(event.len())).sum());
            let mut read: Vec<&[u8]> = record.split(|byte| *byte == b'\n').collect();
            prop_assert_eq!(read.pop(), Some(&b""[..]), "the last line ends too");
            prop_assert_eq!(read, shared);
        }
    }
}
