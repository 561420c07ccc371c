//! CBOR to [`Value`] and back, as far as the Kinesis API uses it (RFC 8949).
//!
//! Place: read by the route when a request is `application/x-amz-cbor-1.1`, which is what the Java SDKs speak: maps and
//! lists of indefinite length, byte strings for data, tag 1 for times, which the service counts in milliseconds. Strings in one piece are borrowed.
//!
//! Tags are passed over: none changes what a request means. Bounds are `value`'s; a length that lies is found before any memory
//! is taken for it. Names of members must be text.

use std::borrow::Cow;

use super::value::{Bounds, Malformed, Value};

/// Major types.
const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const LIST: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

/// Ends what has an indefinite length.
const BREAK: u8 = 0xff;

/// Reads a whole body.
///
/// # Errors
/// [`Malformed`].
pub fn read(body: &[u8]) -> Result<Value<'_>, Malformed> {
    let mut reader = Reader { body, at: 0, bounds: Bounds::default() };
    let value = reader.value(0)?;
    if reader.at == body.len() { Ok(value) } else { Err(Malformed::At(reader.at)) }
}

/// The head of a data item: its major type and its argument, `None` for an indefinite length.
struct Head {
    major: u8,
    /// The five low bits.
    info: u8,
    argument: Option<u64>,
}

struct Reader<'b> {
    body: &'b [u8],
    at: usize,
    bounds: Bounds,
}

impl<'b> Reader<'b> {
    fn take(&mut self, length: u64) -> Result<&'b [u8], Malformed> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end.and_then(|end| self.body.get(self.at..end)).ok_or(Malformed::At(self.at))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn head(&mut self) -> Result<Head, Malformed> {
        let begun = self.at;
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 31);
        let argument = match info {
            0..24 => Some(u64::from(info)),
            24..28 => {
                let bytes = self.take(1 << (info - 24))?;
                Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            }
            31 if matches!(major, BYTES..=MAP) => None,
            _ => return Err(Malformed::At(begun)),
        };
        Ok(Head { major, info, argument })
    }

    /// Past a break, if it is next.
    fn breaks(&mut self) -> bool {
        let is_next = self.body.get(self.at) == Some(&BREAK);
        self.at += usize::from(is_next);
        is_next
    }

    // Bounded by DEPTH_MAX, so that the call stack is.
    fn value(&mut self, depth: usize) -> Result<Value<'b>, Malformed> {
        self.bounds.enter(depth)?;
        let begun = self.at;
        let mut head = self.head()?;
        while head.major == TAG {
            head = self.head()?;
        }
        Ok(match (head.major, head.argument) {
            (UNSIGNED, Some(number)) => i64::try_from(number).map_or(Value::Number, Value::Int),
            // -1 - number
            (NEGATIVE, Some(number)) => i64::try_from(number).map_or(Value::Number, |number| Value::Int(!number)),
            (BYTES, length) => Value::Bytes(self.string(BYTES, length)?),
            (TEXT, length) => Value::Text(text(self.string(TEXT, length)?, begun)?),
            (LIST, length) => {
                let mut items = Vec::new();
                let mut left = length;
                while self.more(&mut left) {
                    items.push(self.value(depth + 1)?);
                }
                Value::List(items)
            }
            (MAP, length) => {
                let mut members = Vec::new();
                let mut left = length;
                while self.more(&mut left) {
                    let at = self.at;
                    let name = self.head()?;
                    if name.major != TEXT {
                        return Err(Malformed::At(at));
                    }
                    let name = text(self.string(TEXT, name.argument)?, at)?;
                    members.push((name, self.value(depth + 1)?));
                }
                Value::Map(members)
            }
            (_, Some(_)) => match head.info {
                20 => Value::Bool(false),
                21 => Value::Bool(true),
                22 | 23 => Value::Null,
                25..=27 => Value::Number,
                _ => return Err(Malformed::At(begun)),
            },
            (_, None) => return Err(Malformed::At(begun)),
        })
    }

    /// Another item follows; passes over the break where there is none. `left` counts them where their number was told.
    fn more(&mut self, left: &mut Option<u64>) -> bool {
        match left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => !self.breaks(),
        }
    }

    /// A string's bytes: one piece of a told length, or pieces of the same type up to a break.
    fn string(&mut self, major: u8, length: Option<u64>) -> Result<Cow<'b, [u8]>, Malformed> {
        if let Some(length) = length {
            return self.take(length).map(Cow::Borrowed);
        }
        let mut whole = Cow::Borrowed(&[][..]);
        while !self.breaks() {
            let begun = self.at;
            let Head { major: held, argument: Some(length), .. } = self.head()? else { return Err(Malformed::At(begun)) };
            if held != major {
                return Err(Malformed::At(begun));
            }
            let piece = self.take(length)?;
            match &mut whole {
                Cow::Borrowed([]) => whole = Cow::Borrowed(piece),
                whole => whole.to_mut().extend_from_slice(piece),
            }
        }
        Ok(whole)
    }
}

fn text(bytes: Cow<'_, [u8]>, at: usize) -> Result<Cow<'_, str>, Malformed> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| Malformed::At(at)),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| Malformed::At(at)),
    }
}

/// Appends `value` as CBOR, all lengths told.
pub fn write(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Null | Value::Number => out.push(0xf6),
        Value::Bool(is) => out.push(0xf4 + u8::from(*is)),
        Value::Int(number) => match u64::try_from(*number) {
            Ok(number) => write_head(UNSIGNED, number, out),
            Err(_) => write_head(NEGATIVE, !*number as u64, out),
        },
        Value::Text(text) => {
            write_head(TEXT, text.len() as u64, out);
            out.extend_from_slice(text.as_bytes());
        }
        Value::Bytes(bytes) => {
            write_head(BYTES, bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
        Value::Time(ms) => {
            write_head(TAG, 1, out);
            write_head(UNSIGNED, *ms, out);
        }
        Value::List(items) => {
            write_head(LIST, items.len() as u64, out);
            items.iter().for_each(|item| write(item, out));
        }
        Value::Map(members) => {
            write_head(MAP, members.len() as u64, out);
            for (name, member) in members {
                write_head(TEXT, name.len() as u64, out);
                out.extend_from_slice(name.as_bytes());
                write(member, out);
            }
        }
    }
}

fn write_head(major: u8, argument: u64, out: &mut Vec<u8>) {
    let bytes = argument.to_be_bytes();
    let (info, length) = match argument {
        0..24 => (argument as u8, 0),
        24..0x100 => (24, 1),
        0x100..0x1_0000 => (25, 2),
        0x1_0000..0x1_0000_0000 => (26, 4),
        _ => (27, 8),
    };
    out.push(major << 5 | info);
    out.extend_from_slice(&bytes[8 - length..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::kinesis::value::DEPTH_MAX;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 8949, appendix A.
        for (hex, value) in [
            ("00", Value::Int(0)),
            ("1864", Value::Int(100)),
            ("1b000000e8d4a51000", Value::Int(1_000_000_000_000)),
            ("1bffffffffffffffff", Value::Number),
            ("29", Value::Int(-10)),
            ("3903e7", Value::Int(-1000)),
            ("f93c00", Value::Number),
            ("fb3ff199999999999a", Value::Number),
            ("f5", Value::Bool(true)),
            ("f6", Value::Null),
            ("f7", Value::Null),
            ("c11a514b67b0", Value::Int(1_363_896_240)),
            ("4401020304", Value::Bytes(vec![1, 2, 3, 4].into())),
            ("62c3bc", Value::text("ü")),
            ("5f42010243030405ff", Value::Bytes(vec![1, 2, 3, 4, 5].into())),
            ("7f657374726561646d696e67ff", Value::text("streaming")),
            ("9f018202039f0405ffff", read(&bytes("8301820203820405")).unwrap()),
            ("bf61610161629f0203ffff", read(&bytes("a26161016162820203")).unwrap()),
            ("bfff", Value::Map(vec![])),
        ] {
            assert_eq!(read(&bytes(hex)), Ok(value), "{hex}");
        }
    }

    #[test]
    fn what_is_no_cbor_is_refused() {
        for hex in [
            "",
            "18",
            "1c",
            "5f",
            "5f01ff",
            "5f5fffff",
            "7f4100ff",
            "61ff",
            "a1",
            "a101",
            "a10101",
            "bf6161ff",
            "ff",
            "1f",
            "df",
            "0000",
            "5bffffffffffffffff",
            "9bffffffffffffffff",
            "bb7fffffffffffffff",
            "f8ff",
        ] {
            assert!(matches!(read(&bytes(hex)), Err(Malformed::At(_))), "{hex}");
        }
    }

    #[test]
    fn depth_is_bounded_and_a_run_of_tags_is_no_depth() {
        let nested = |depth: usize| [vec![0x81; depth], vec![0x00]].concat();
        assert!(read(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(read(&nested(DEPTH_MAX + 1)), Err(Malformed::TooDeep));
        assert_eq!(read(&vec![0x9f; 1 << 20]), Err(Malformed::TooDeep));
        assert_eq!(read(&[vec![0xc1; 1 << 20], vec![0x00]].concat()), Ok(Value::Int(0)));
    }

    #[test]
    fn a_time_is_tag_1_with_milliseconds() {
        let mut out = Vec::new();
        write(&Value::Time(1_700_000_000_042), &mut out);
        assert_eq!(out, bytes("c1 1b 0000018bcfe5682a"));
    }

    fn any_value() -> impl Strategy<Value = Value<'static>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<String>().prop_map(Value::text),
            any::<Vec<u8>>().prop_map(|bytes| Value::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(4, 32, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::List),
                prop::collection::vec((any::<String>().prop_map(Cow::Owned), inner), 0..5).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in any_value()) {
            let mut out = Vec::new();
            write(&value, &mut out);
            prop_assert_eq!(read(&out), Ok(value));
        }
    }
}
