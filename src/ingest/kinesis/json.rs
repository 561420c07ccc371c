//! JSON to [`Value`] and back.
//!
//! Place: read by the route when a request is `application/x-amz-json-1.1`. A reader of our own, because serde_json refuses
//! a text for one lone surrogate, which some SDKs send; here it becomes U+FFFD. Text without escapes is borrowed.
//!
//! More lenient than RFC 8259 in one thing: control characters may stand in a text as they are. Bounds are `value`'s.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use memchr::memchr2;

use super::value::{Bounds, Malformed, Value};

/// Reads a whole body.
///
/// # Errors
/// [`Malformed`].
pub fn read(body: &[u8]) -> Result<Value<'_>, Malformed> {
    let mut reader = Reader { body, at: 0, bounds: Bounds::default() };
    let value = reader.value(0)?;
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(Malformed::At(reader.at)),
    }
}

struct Reader<'b> {
    body: &'b [u8],
    at: usize,
    bounds: Bounds,
}

impl<'b> Reader<'b> {
    /// The first byte of the next token.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.body.get(self.at) {
            self.at += 1;
        }
        self.body.get(self.at).copied()
    }

    fn wrong<T>(&self) -> Result<T, Malformed> {
        Err(Malformed::At(self.at))
    }

    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.peek() != Some(byte) {
            return self.wrong();
        }
        self.at += 1;
        Ok(())
    }

    /// Past `byte`, if it is next.
    fn passes(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    // Bounded by DEPTH_MAX, so that the call stack is.
    fn value(&mut self, depth: usize) -> Result<Value<'b>, Malformed> {
        self.bounds.enter(depth)?;
        match self.peek() {
            Some(b'"') => self.text().map(Value::Text),
            Some(b'{') => {
                self.at += 1;
                let mut members = Vec::new();
                if self.passes(b'}') {
                    return Ok(Value::Map(members));
                }
                loop {
                    self.peek();
                    let name = self.text()?;
                    self.expect(b':')?;
                    members.push((name, self.value(depth + 1)?));
                    if self.passes(b'}') {
                        return Ok(Value::Map(members));
                    }
                    self.expect(b',')?;
                }
            }
            Some(b'[') => {
                self.at += 1;
                let mut items = Vec::new();
                if self.passes(b']') {
                    return Ok(Value::List(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    if self.passes(b']') {
                        return Ok(Value::List(items));
                    }
                    self.expect(b',')?;
                }
            }
            Some(b't') => self.word(b"true", Value::Bool(true)),
            Some(b'f') => self.word(b"false", Value::Bool(false)),
            Some(b'n') => self.word(b"null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.wrong(),
        }
    }

    fn word(&mut self, word: &[u8], value: Value<'b>) -> Result<Value<'b>, Malformed> {
        if !self.body[self.at..].starts_with(word) {
            return self.wrong();
        }
        self.at += word.len();
        Ok(value)
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        let begun = self.at;
        while self.body.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == begun { self.wrong() } else { Ok(()) }
    }

    fn number(&mut self) -> Result<Value<'b>, Malformed> {
        let begun = self.at;
        self.at += usize::from(self.body[self.at] == b'-');
        let whole = self.at;
        self.digits()?;
        if self.body[whole] == b'0' && self.at > whole + 1 {
            return self.wrong();
        }
        let end = self.at;
        if self.body.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.body.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.body.get(self.at), Some(b'+' | b'-')));
            self.digits()?;
        }
        let text = std::str::from_utf8(&self.body[begun..end]).map_err(|_| Malformed::At(begun))?;
        match text.parse() {
            Ok(number) if end == self.at => Ok(Value::Int(number)),
            _ => Ok(Value::Number),
        }
    }

    /// The text that begins at the present byte, which must be its quote.
    fn text(&mut self) -> Result<Cow<'b, str>, Malformed> {
        if self.body.get(self.at) != Some(&b'"') {
            return self.wrong();
        }
        self.at += 1;
        let run = self.run()?;
        if self.body[self.at] == b'"' {
            self.at += 1;
            return Ok(Cow::Borrowed(run));
        }
        let mut text = run.to_owned();
        loop {
            if self.body[self.at] == b'"' {
                self.at += 1;
                return Ok(Cow::Owned(text));
            }
            text.push(self.escape()?);
            text.push_str(self.run()?);
        }
    }

    /// What stands before the next quote or backslash, which is then the present byte.
    fn run(&mut self) -> Result<&'b str, Malformed> {
        let rest = &self.body[self.at..];
        let length = memchr2(b'"', b'\\', rest).ok_or(Malformed::At(self.body.len()))?;
        let run = std::str::from_utf8(&rest[..length]).map_err(|error| Malformed::At(self.at + error.valid_up_to()))?;
        self.at += length;
        Ok(run)
    }

    /// The character of the escape that begins at the present byte, a backslash.
    fn escape(&mut self) -> Result<char, Malformed> {
        let escaped = self.body.get(self.at + 1).copied();
        self.at += 2;
        Ok(match escaped {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let unit = self.unit()?;
                match unit {
                    0xd800..0xdc00 if self.body[self.at..].starts_with(b"\\u") => {
                        let before = self.at;
                        self.at += 2;
                        match self.unit()? {
                            low @ 0xdc00..0xe000 => {
                                let code = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                            }
                            _ => {
                                self.at = before;
                                char::REPLACEMENT_CHARACTER
                            }
                        }
                    }
                    // A lone surrogate is no character.
                    _ => char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER),
                }
            }
            _ => return Err(Malformed::At(self.at - 1)),
        })
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, Malformed> {
        let Some(digits) = self.body.get(self.at..self.at + 4) else { return self.wrong() };
        let mut unit = 0;
        for digit in digits {
            unit = unit * 16 + char::from(*digit).to_digit(16).ok_or(Malformed::At(self.at))?;
        }
        self.at += 4;
        Ok(unit)
    }
}

/// Appends `value` as JSON.
pub fn write(value: &Value<'_>, out: &mut Vec<u8>) {
    let quoted =
        |text: &str, out: &mut Vec<u8>| serde_json::to_writer(&mut *out, text).expect("text becomes JSON, and memory takes it");
    match value {
        Value::Null | Value::Number => out.extend_from_slice(b"null"),
        Value::Bool(is) => out.extend_from_slice(if *is { b"true" } else { b"false" }),
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Text(text) => quoted(text, out),
        Value::Bytes(bytes) => quoted(&BASE64_STANDARD.encode(bytes), out),
        Value::Time(ms) => out.extend_from_slice(format!("{}.{:03}", ms / 1000, ms % 1000).as_bytes()),
        Value::List(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Map(members) => {
            out.push(b'{');
            for (at, (name, member)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                quoted(name, out);
                out.push(b':');
                write(member, out);
            }
            out.push(b'}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::kinesis::value::{DEPTH_MAX, VALUES_MAX};
    use proptest::prelude::*;

    fn shown(json: &str) -> String {
        let mut out = Vec::new();
        write(&read(json.as_bytes()).unwrap(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_read_is_written_again() {
        let json = r#"{"a":[1,-2,null,true,false,{"b":"\u00e4\n\"\\"}],"c":{},"d":[]}"#;
        assert_eq!(shown(json), "{\"a\":[1,-2,null,true,false,{\"b\":\"ä\\n\\\"\\\\\"}],\"c\":{},\"d\":[]}");
    }

    #[test]
    fn a_surrogate_pair_is_a_character_and_a_lone_one_is_replaced() {
        assert_eq!(read(br#""\ud83d\ude80""#).unwrap(), Value::text("🚀"));
        assert_eq!(read(br#""\ud83dx""#).unwrap(), Value::text("\u{fffd}x"));
        assert_eq!(read(br#""\ud83d\ud83d\ude80""#).unwrap(), Value::text("\u{fffd}🚀"));
        assert_eq!(read(br#""\ude80\n""#).unwrap(), Value::text("\u{fffd}\n"));
    }

    #[test]
    fn text_without_escapes_is_borrowed() {
        assert!(matches!(read("\"schlüssel\"".as_bytes()), Ok(Value::Text(Cow::Borrowed("schlüssel")))));
    }

    #[test]
    fn of_equal_names_the_last_counts_and_null_is_nothing() {
        let value = read(br#"{"a":1,"a":2,"b":null}"#).unwrap();
        assert_eq!((value.get("a"), value.get("b"), value.get("c")), (Some(&Value::Int(2)), None, None));
    }

    #[test]
    fn numbers_that_are_no_64_bit_integers_are_numbers_all_the_same() {
        for text in ["1.5", "1e3", "-0.1E-2", "99999999999999999999"] {
            assert_eq!(read(text.as_bytes()), Ok(Value::Number), "{text}");
        }
        assert_eq!(read(b"-9223372036854775808"), Ok(Value::Int(i64::MIN)));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            "{",
            "[",
            "\"",
            "\"\\",
            "\"\\u12",
            "\"\\x\"",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "[1,]",
            "[1 2]",
            "01",
            "-",
            "1.",
            "1e",
            "tru",
            "{} {}",
            "{\"a\":1,}",
            "+1",
            "nul",
            "\"\u{0}",
        ] {
            assert!(matches!(read(text.as_bytes()), Err(Malformed::At(_))), "{text}");
        }
        assert!(matches!(read(b"\"\xff\""), Err(Malformed::At(1))));
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(nested(DEPTH_MAX + 1).as_bytes()).is_ok());
        assert_eq!(read(nested(DEPTH_MAX + 2).as_bytes()), Err(Malformed::TooDeep));
        assert_eq!(read("[".repeat(1 << 20).as_bytes()), Err(Malformed::TooDeep));
        let many = |values: usize| format!("[{}0]", "0,".repeat(values - 2));
        assert!(read(many(VALUES_MAX).as_bytes()).is_ok());
        assert_eq!(read(many(VALUES_MAX + 1).as_bytes()), Err(Malformed::TooMany));
    }

    #[test]
    fn a_time_is_seconds_with_milliseconds() {
        let mut out = Vec::new();
        write(&Value::Time(1_700_000_000_042), &mut out);
        assert_eq!(out, b"1700000000.042");
    }

    proptest! {
        #[test]
        fn serde_json_reads_the_same_where_it_reads(text: String, number: i64) {
            let json = serde_json::json!({ "text": text, "list": [number, null, {"deep": text}] }).to_string();
            let value = read(json.as_bytes()).unwrap();
            prop_assert_eq!(value.get("text"), Some(&Value::text(text)));
            prop_assert_eq!(shown(&json).parse::<serde_json::Value>().unwrap(), json.parse::<serde_json::Value>().unwrap());
        }
    }
}
