//! Texts out of raw JSON values. Pure.

use std::borrow::Cow;

/// The text between a string's quotes as it is meant. Half a surrogate pair, which JSON can write and UTF-8 cannot, becomes
/// U+FFFD. `content` is of a text that is known to be JSON.
pub fn unescape(content: &[u8]) -> Cow<'_, str> {
    let plain = |bytes| String::from_utf8_lossy(bytes);
    let Some(first) = memchr::memchr(b'\\', content) else { return plain(content) };
    let mut text = plain(&content[..first]).into_owned();
    let mut rest = &content[first..];
    while let Some(at) = memchr::memchr(b'\\', rest) {
        text.push_str(&plain(&rest[..at]));
        rest = &rest[at + 1..];
        let Some((&kind, after)) = rest.split_first() else { break };
        rest = after;
        text.push(match kind {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (high, after) = unit(rest);
                rest = after;
                let low = rest.strip_prefix(b"\\u").map(unit);
                match (high, low) {
                    (0xd800..=0xdbff, Some((low @ 0xdc00..=0xdfff, after))) => {
                        rest = after;
                        let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                    }
                    _ => char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER),
                }
            }
            other => char::from(other),
        });
    }
    text.push_str(&plain(rest));
    Cow::Owned(text)
}

/// Four hexadecimal digits, and what follows them.
fn unit(text: &[u8]) -> (u32, &[u8]) {
    let (digits, rest) = text.split_at(text.len().min(4));
    let value = digits.iter().fold(0, |value, digit| value << 4 | char::from(*digit).to_digit(16).unwrap_or(0));
    (value, rest)
}

/// The content of a raw value that is a string.
pub fn content(raw: &[u8]) -> Option<&[u8]> {
    match raw {
        [b'"', content @ .., b'"'] => Some(content),
        _ => None,
    }
}

/// An id as text: of a string, or of a number as JavaScript prints it, but for digits that it would lose. `None` where there is
/// none: `""`, `null`, or what is no id.
pub fn id(raw: Option<&[u8]>) -> Option<Cow<'_, str>> {
    let raw = raw?;
    match (content(raw), raw.first()?) {
        (Some(content), _) => (!content.is_empty()).then(|| unescape(content)),
        (None, b'-' | b'0'..=b'9') => {
            let text = std::str::from_utf8(raw).ok()?;
            match text.parse::<f64>() {
                Ok(number) if text.contains(['.', 'e', 'E']) => Some(Cow::Owned(number.to_string())),
                _ => Some(Cow::Borrowed(text)),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_read_and_half_pairs_replaced() {
        assert_eq!(unescape(br#"a\n\"\/\\\u00e4\ud83d\ude80"#), "a\n\"/\\ä🚀");
        assert_eq!(unescape(br"x\ud83dy"), "x\u{fffd}y");
        assert_eq!(unescape(br"\ude80\ud83d"), "\u{fffd}\u{fffd}");
        assert_eq!(unescape(br"\ud83d\ud83d\ude80"), "\u{fffd}🚀");
        assert_eq!(unescape(br"\ud83d\u0041"), "\u{fffd}A");
    }

    #[test]
    fn ids_are_texts_and_numbers() {
        let id = |raw: &'static str| id(Some(raw.as_bytes())).map(Cow::into_owned);
        assert_eq!(id("\"u1\"").as_deref(), Some("u1"));
        assert_eq!(id("12345678901234567890123").as_deref(), Some("12345678901234567890123"));
        assert_eq!(id("1.0").as_deref(), Some("1"));
        assert_eq!(id("0").as_deref(), Some("0"));
        for raw in ["\"\"", "null", "true", "{}", "[]"] {
            assert_eq!(id(raw), None, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn a_string_reads_as_serde_json_reads_it(text: String, escaped in "(\\\\[nrtbf\"/\\\\]|\\\\u00[0-9a-f]{2}|[a-zä ]){0,12}") {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(unescape(&json.as_bytes()[1..json.len() - 1]), text);
            let meant: String = serde_json::from_str(&format!("\"{escaped}\"")).unwrap();
            prop_assert_eq!(unescape(escaped.as_bytes()), meant);
        }
    }
}
