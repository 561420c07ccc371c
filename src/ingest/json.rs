//! Walks over a JSON text without building anything: where each token ends, and that the whole is JSON.
//!
//! Place: `pointer` steers it to the members it wants and lets it skip the rest, for every event that comes in.
//! It is the hot part of finding a key: serde_json's own skipping costs twice as much for an event of 200 bytes.
//!
//! The grammar is RFC 8259, as serde_json's `IgnoredAny` takes it: nesting of any depth (kept as one byte a level,
//! not on the call stack), `\u` escapes checked for hex digits only. The text must be UTF-8 already. Pure.
//! Failure: `None` at the first byte that does not fit. Absent on purpose: values (the caller decodes what it wants).

use std::ops::Range;

use fearless_simd::{Level, Simd, SimdBase, SimdMask, dispatch, u8x64};

/// Where a string's content lies in the text, quotes excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// First byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
    /// It holds a backslash.
    pub escaped: bool,
}

/// Reused memory of a [`Scan`].
#[derive(Debug, Default)]
pub struct Memory {
    /// A bit for each byte of the text: it ends a run of plain string content (`"`, `\`, control characters).
    specials: Vec<u64>,
    /// For each array or object that a skipped value is in: the byte that closes it.
    nesting: Vec<u8>,
}

/// Finds the special bytes of the whole text at once, 64 of its bytes a step.
fn find_specials(bytes: &[u8], specials: &mut Vec<u64>) {
    specials.clear();
    dispatch!(Level::new(), simd => find_specials_with(simd, bytes, specials));
}

#[inline(always)]
fn find_specials_with<S: Simd>(simd: S, bytes: &[u8], specials: &mut Vec<u64>) {
    let (whole, rest) = bytes.as_chunks::<64>();
    specials.reserve(whole.len() + 1);
    for chunk in whole {
        specials.push(specials_of(simd, chunk));
    }
    if !rest.is_empty() {
        let mut last = [b' '; 64];
        last[..rest.len()].copy_from_slice(rest);
        specials.push(specials_of(simd, &last));
    }
}

#[inline(always)]
fn specials_of<S: Simd>(simd: S, chunk: &[u8; 64]) -> u64 {
    let chunk = u8x64::load_array_ref(simd, chunk);
    (chunk.simd_eq(b'"') | chunk.simd_eq(b'\\') | chunk.simd_lt(b' ')).to_bitmask()
}

/// A text. Its methods take the offset at which something begins and give the one at which it ends, so that the
/// offset stays in a register.
#[derive(Clone, Copy, Debug)]
struct Input<'t> {
    bytes: &'t [u8],
    specials: &'t [u64],
}

impl<'t> Input<'t> {
    /// The byte at an offset; 0 past the end.
    #[inline(always)]
    fn byte(self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Where the next token begins.
    #[inline(always)]
    fn token(self, mut at: usize) -> usize {
        while let b' ' | b'\n' | b'\t' | b'\r' = self.byte(at) {
            at += 1;
        }
        at
    }

    /// Past the next token, which must be `byte`.
    #[inline(always)]
    fn expect(self, at: usize, byte: u8) -> Option<usize> {
        let at = self.token(at);
        (self.byte(at) == byte).then_some(at + 1)
    }

    /// The next quote, backslash or control character at or after an offset.
    #[inline(always)]
    fn special(self, at: usize) -> Option<usize> {
        let mut word = at / 64;
        let mut bits = self.specials.get(word)? & (u64::MAX << (at % 64));
        while bits == 0 {
            word += 1;
            bits = *self.specials.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// Past a string; whether it holds a backslash.
    #[inline(always)]
    fn string(self, at: usize) -> Option<(usize, bool)> {
        let end = self.special(self.expect(at, b'"')?)?;
        if self.byte(end) == b'"' { Some((end + 1, false)) } else { self.escaped(end).map(|at| (at, true)) }
    }

    /// Past the rest of a string, from its first backslash on.
    #[cold]
    fn escaped(self, mut at: usize) -> Option<usize> {
        loop {
            match self.byte(at) {
                b'"' => return Some(at + 1),
                b'\\' => {
                    let digits = match self.byte(at + 1) {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 0,
                        b'u' => 4,
                        _ => return None,
                    };
                    let hex = self.bytes.get(at + 2..at + 2 + digits)?;
                    if !hex.iter().all(u8::is_ascii_hexdigit) {
                        return None;
                    }
                    at = self.special(at + 2 + digits)?;
                }
                // A control character.
                _ => return None,
            }
        }
    }

    /// Past a number, which begins at `at`.
    #[inline(always)]
    fn number(self, at: usize) -> Option<usize> {
        let whole = at + usize::from(self.byte(at) == b'-');
        let mut at = self.digits(whole)?;
        if self.byte(whole) == b'0' && at > whole + 1 {
            return None;
        }
        if self.byte(at) == b'.' {
            at = self.digits(at + 1)?;
        }
        if let b'e' | b'E' = self.byte(at) {
            at = self.digits(at + 1 + usize::from(matches!(self.byte(at + 1), b'+' | b'-')))?;
        }
        Some(at)
    }

    /// Past one digit at least.
    #[inline(always)]
    fn digits(self, start: usize) -> Option<usize> {
        let mut at = start;
        while self.byte(at).is_ascii_digit() {
            at += 1;
        }
        (at > start).then_some(at)
    }

    fn literal(self, at: usize, word: &[u8]) -> Option<usize> {
        self.bytes[at..].starts_with(word).then_some(at + word.len())
    }

    /// Past a member's name and the colon after it.
    #[inline(always)]
    fn name(self, at: usize) -> Option<usize> {
        self.expect(self.string(at)?.0, b':')
    }

    /// Past a value, whatever it is; and how many arrays and objects lie within each other in it.
    fn value(self, mut at: usize, nesting: &mut Vec<u8>) -> Option<(usize, usize)> {
        nesting.clear();
        let mut depth = 0;
        // What closes the array or object that holds the next value; 0 outside all.
        let mut close = 0;
        loop {
            at = self.token(at);
            at = match self.byte(at) {
                b'"' => self.string(at)?.0,
                open @ (b'{' | b'[') => {
                    // Of both pairs the closing one is two further on in ASCII.
                    let closes = open + 2;
                    match self.expect(at + 1, closes) {
                        Some(at) => {
                            depth = depth.max(nesting.len() + 1);
                            at
                        }
                        None => {
                            nesting.push(close);
                            depth = depth.max(nesting.len());
                            close = closes;
                            at = if close == b'}' { self.name(at + 1)? } else { at + 1 };
                            continue;
                        }
                    }
                }
                b'-' | b'0'..=b'9' => self.number(at)?,
                b't' => self.literal(at, b"true")?,
                b'f' => self.literal(at, b"false")?,
                b'n' => self.literal(at, b"null")?,
                _ => return None,
            };
            // A value has ended, and with it all that it was the last one of.
            loop {
                if close == 0 {
                    return Some((at, depth));
                }
                at = self.token(at);
                let next = self.byte(at);
                at += 1;
                if next == b',' {
                    if close == b'}' {
                        at = self.name(at)?;
                    }
                    break;
                }
                if next != close {
                    return None;
                }
                close = nesting.pop()?;
            }
        }
    }
}

/// A position in a text.
#[derive(Debug)]
pub struct Scan<'t> {
    input: Input<'t>,
    at: usize,
    nesting: &'t mut Vec<u8>,
}

impl<'t> Scan<'t> {
    /// At the start of `bytes`, which are UTF-8.
    #[inline]
    pub fn new(bytes: &'t [u8], Memory { specials, nesting }: &'t mut Memory) -> Self {
        find_specials(bytes, specials);
        Self { input: Input { bytes, specials }, at: 0, nesting }
    }

    /// The byte with which the next token begins; 0 at the end.
    #[inline]
    pub fn token(&mut self) -> u8 {
        self.at = self.input.token(self.at);
        self.input.byte(self.at)
    }

    /// The offset at which the scan stands: past the last token, or at the next one after [`Scan::token`].
    #[inline]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Passes over `byte` if the next token is it.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        let past = self.input.expect(self.at, byte);
        self.at = past.unwrap_or(self.at);
        past.is_some()
    }

    /// Nothing but white space is left.
    #[must_use]
    #[inline]
    pub fn is_over(&self) -> bool {
        self.input.token(self.at) == self.input.bytes.len()
    }

    /// Passes over a string.
    #[inline]
    pub fn string(&mut self) -> Option<Text> {
        let start = self.input.token(self.at) + 1;
        let (past, escaped) = self.input.string(self.at)?;
        self.at = past;
        Some(Text { start, end: past - 1, escaped })
    }

    /// Passes over a number; its bytes.
    #[inline]
    pub fn number(&mut self) -> Option<&'t [u8]> {
        let start = self.input.token(self.at);
        self.at = self.input.number(start)?;
        Some(&self.input.bytes[start..self.at])
    }

    /// Passes over a member's name and the colon after it.
    #[inline]
    pub fn name(&mut self) -> Option<Text> {
        let name = self.string()?;
        self.take(b':').then_some(name)
    }

    /// Passes over a value, whatever it is.
    #[inline]
    pub fn skip(&mut self) -> Option<()> {
        self.at = self.input.value(self.at, self.nesting)?.0;
        Some(())
    }

    /// Passes over a value; where it lies.
    #[inline]
    pub fn span(&mut self) -> Option<Range<usize>> {
        let start = self.input.token(self.at);
        self.skip()?;
        Some(start..self.at)
    }

    /// The same; and how many arrays and objects lie within each other in it.
    #[inline]
    pub fn span_and_depth(&mut self) -> Option<(Range<usize>, usize)> {
        let start = self.input.token(self.at);
        let (end, depth) = self.input.value(start, self.nesting)?;
        self.at = end;
        Some((start..end, depth))
    }

    /// Passes over an object. `each` gets each member's name and passes over its value.
    #[inline]
    pub fn members(&mut self, mut each: impl FnMut(&mut Self, Text) -> Option<()>) -> Option<()> {
        if !self.take(b'{') {
            return None;
        }
        if self.take(b'}') {
            return Some(());
        }
        loop {
            let name = self.name()?;
            each(self, name)?;
            if !self.take(b',') {
                return self.take(b'}').then_some(());
            }
        }
    }

    /// Passes over an array. `each` passes over each element.
    #[inline]
    pub fn elements(&mut self, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        if !self.take(b'[') {
            return None;
        }
        if self.take(b']') {
            return Some(());
        }
        loop {
            each(self)?;
            if !self.take(b',') {
                return self.take(b']').then_some(());
            }
        }
    }

    /// Passes over a value of a text that is known to be JSON, and appends it to `out` without the white space between its
    /// tokens. A string that is a value, not a name, and that `wanted` by its content is handed to `put`, which appends another
    /// one in its stead, quotes included, or nothing. Gives where the value lies. `None`: nested deeper than `depth_max`, or not JSON after all.
    #[inline]
    pub fn copy(
        &mut self,
        out: &mut Vec<u8>,
        depth_max: usize,
        wanted: impl Fn(&[u8]) -> bool,
        mut put: impl FnMut(&'t [u8], &mut Vec<u8>) -> bool,
    ) -> Option<Range<usize>> {
        let input = self.input;
        let mut at = input.token(self.at);
        let start = at;
        // From here on the text is to be appended as it is.
        let mut from = at;
        let mut depth = 0;
        loop {
            match input.byte(at) {
                b'"' => {
                    let (past, _) = input.string(at)?;
                    let content = &input.bytes[at + 1..past - 1];
                    if wanted(content) && (depth == 0 || input.byte(input.token(past)) != b':') {
                        out.extend_from_slice(&input.bytes[from..at]);
                        from = if put(content, out) { past } else { at };
                    }
                    at = past;
                }
                b'{' | b'[' => {
                    if depth == depth_max {
                        return None;
                    }
                    depth += 1;
                    at += 1;
                    continue;
                }
                b'}' | b']' => {
                    depth = usize::checked_sub(depth, 1)?;
                    at += 1;
                }
                b' ' | b'\n' | b'\t' | b'\r' => {
                    out.extend_from_slice(&input.bytes[from..at]);
                    at = input.token(at);
                    from = at;
                    continue;
                }
                b',' | b':' if depth > 0 => {
                    at += 1;
                    continue;
                }
                b'-' | b'0'..=b'9' => at = input.number(at)?,
                b't' => at = input.literal(at, b"true")?,
                b'f' => at = input.literal(at, b"false")?,
                b'n' => at = input.literal(at, b"null")?,
                _ => return None,
            }
            if depth == 0 {
                out.extend_from_slice(&input.bytes[from..at]);
                self.at = at;
                return Some(start..at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    fn is_json(text: &str) -> bool {
        let mut memory = Memory::default();
        let mut scan = Scan::new(text.as_bytes(), &mut memory);
        scan.skip().is_some() && scan.is_over()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn it_takes_what_serde_json_ignores_and_nothing_else(
            text in r#"[\[\]{}",:0-9a-f\.+trunlsE \\\x01é-]{0,14}|\[("[ab\\"ué]{0,12}",?|-?[0-9.eE+-]{1,5},?){0,4}\]|\{("a":[0-9"ntrue{}\[\]]{1,5},?){0,3}\}"#,
        ) {
            prop_assert_eq!(is_json(&text), serde_json::from_str::<IgnoredAny>(&text).is_ok(), "{}", text);
        }

        #[test]
        fn the_bytes_that_end_plain_content_are_found_wherever_they_are(bytes: Vec<u8>) {
            let mut specials = Vec::new();
            find_specials(&bytes, &mut specials);
            for (at, byte) in bytes.iter().enumerate() {
                prop_assert_eq!(specials[at / 64] >> (at % 64) & 1 == 1, matches!(byte, b'"' | b'\\' | ..0x20));
            }
        }
    }

    #[test]
    fn whatever_is_cut_off_is_not_json() {
        let text = r#" {"a":[1,-2.5e+3,true,false,null,"x\u00e4\n"],"b":{},"c":[],"longer than a word":"also longer than one"} "#;
        assert!(is_json(text));
        let last = text.trim_end().len() - 1;
        for end in (0..=last).filter(|end| text.is_char_boundary(*end)) {
            assert!(!is_json(&text[..end]), "{}", &text[..end]);
        }
    }
}
