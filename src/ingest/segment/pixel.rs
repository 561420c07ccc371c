//! A call in the query of an image, and MetaRouter's metadata in a query: both become JSON. Pure.
//!
//! Two forms: `data` holds the message as base64 of JSON, or each parameter is a member of it. Of the latter those that are
//! objects in the API (`properties`, `traits`, `context`, `integrations`) are taken as such where they read as one.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::value::RawValue;

/// base64 as browsers and people write it: padded or not.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

/// Decodes base64 of either alphabet, padded or not.
#[must_use]
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

/// The message that a query holds, as JSON. `None`: it holds `data` that is no base64.
#[must_use]
pub fn body_of_query(query: &str) -> Option<Vec<u8>> {
    let parameters: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(name), percent_decoded(value))
        })
        .collect();
    if let Some((_, data)) = parameters.iter().find(|(name, _)| name == "data") {
        // A plus sign that nobody escaped was read as a space.
        return decode(data.replace(' ', "+").as_bytes());
    }
    let mut body = String::from("{");
    for (name, value) in &parameters {
        if body.len() > 1 {
            body.push(',');
        }
        body.push_str(&serde_json::Value::from(name.as_str()).to_string());
        body.push(':');
        let is_object = ["properties", "traits", "context", "integrations"].contains(&name.as_str())
            && value.trim_start().starts_with('{')
            && serde_json::from_str::<&RawValue>(value).is_ok();
        match is_object {
            true => body.push_str(value.trim()),
            false => body.push_str(&serde_json::Value::from(value.as_str()).to_string()),
        }
    }
    body.push('}');
    Some(body.into_bytes())
}

/// `%41` and `+`, as forms write them; what is not UTF-8 is replaced.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let hex = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
        bytes.push(match (first, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            (byte, _) => *byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(query: &str) -> String {
        String::from_utf8(body_of_query(query).unwrap()).unwrap()
    }

    #[test]
    fn data_is_base64_padded_or_not_and_of_either_alphabet() {
        for query in ["data=eyJhIjoxfQ==", "data=eyJhIjoxfQ", "x=1&data=eyJhIjoxfQ%3D%3D"] {
            assert_eq!(body(query), r#"{"a":1}"#, "{query}");
        }
        // A plus sign of base64 that nobody escaped.
        assert_eq!(body("data=eyJhIjoiPj4+In0"), r#"{"a":">>>"}"#);
        assert_eq!(body("data=eyJhIjoiPj4-In0"), r#"{"a":">>>"}"#);
        assert_eq!(body_of_query("data=***"), None);
    }

    #[test]
    fn parameters_are_members() {
        let query = "userId=u%201&event=Email+Opened&properties=%7B%22a%22%3A1.0%7D&traits=x&b&%C3%A4=%zz";
        assert_eq!(
            body(query),
            r#"{"userId":"u 1","event":"Email Opened","properties":{"a":1.0},"traits":"x","b":"","ä":"%zz"}"#
        );
        assert_eq!(body(""), "{}");
    }
}
