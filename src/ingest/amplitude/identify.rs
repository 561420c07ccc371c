//! Amplitude's Identify and Group Identify API: forms, or a query, with an object or an array of objects in one field.
//!
//! Place: `http/amplitude` hands over the form's bytes. What comes out are the objects as they were sent, each with its key; they
//! are forwarded in this form, where the source forwards such calls at all.
//!
//! Failure: a [`Wrong`], whose word is the API's own. Pure. Absent on purpose: what the operations in them do to a user.

use std::borrow::Cow;

use super::super::members::{Members, depth, elements, text};
use super::DEPTH_MAX;

/// Which of the two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `/identify`.
    User,
    /// `/groupidentify`.
    Group,
}

/// What is wrong with such a call, as its answer says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// No API key.
    MissingKey,
    /// `identification` is missing or malformed.
    MissingEvent,
    /// Too many objects.
    TooLarge,
}

impl Wrong {
    /// The text of the answer.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::MissingKey => "missing_api_key",
            Self::MissingEvent => "missing_event",
            Self::TooLarge => "payload_too_large",
        }
    }
}

/// The fields of a form or of a query, decoded. What is not UTF-8 then is replaced. Of fields that share a name the last counts.
#[derive(Clone, Debug, Default)]
pub struct Form {
    api_key: Option<String>,
    identification: Option<String>,
}

impl Form {
    /// Reads `application/x-www-form-urlencoded`.
    #[must_use]
    pub fn read(encoded: &[u8]) -> Self {
        let mut form = Self::default();
        for pair in encoded.split(|byte| *byte == b'&') {
            let at = memchr::memchr(b'=', pair).unwrap_or(pair.len());
            let value = pair.get(at + 1..).unwrap_or_default();
            match decoded(&pair[..at]).as_str() {
                "api_key" => form.api_key = Some(decoded(value)),
                "identification" => form.identification = Some(decoded(value)),
                _ => {}
            }
        }
        form
    }

    /// The API key.
    ///
    /// # Errors
    /// There is none.
    pub fn api_key(&self) -> Result<&str, Wrong> {
        self.api_key.as_deref().filter(|key| !key.is_empty()).ok_or(Wrong::MissingKey)
    }

    /// The objects, at most `most` of them.
    ///
    /// # Errors
    /// They are missing, or one is not of the form that the call has.
    pub fn identifications(&self, call: Call, most: usize) -> Result<Vec<Identification<'_>>, Wrong> {
        let json = self.identification.as_deref().map(str::trim).ok_or(Wrong::MissingEvent)?;
        let all = if json.starts_with('[') {
            if super::super::members::whole(json.as_bytes()).is_none() {
                return Err(Wrong::MissingEvent);
            }
            elements(json, most).ok_or(Wrong::TooLarge)?
        } else {
            vec![json]
        };
        all.into_iter().map(|json| Identification::judge(json, call).ok_or(Wrong::MissingEvent)).collect()
    }
}

fn decoded(encoded: &[u8]) -> String {
    let digit = |at: usize| encoded.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut at = 0;
    while let Some(byte) = encoded.get(at) {
        at += 1;
        bytes.push(match (byte, digit(at), digit(at + 1)) {
            (b'+', ..) => b' ',
            (b'%', Some(high), Some(low)) => {
                at += 2;
                // Two hexadecimal digits are a byte.
                (high * 16 + low) as u8
            }
            (byte, ..) => *byte,
        });
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// One object of such a call.
#[derive(Debug)]
pub struct Identification<'f> {
    /// As sent.
    pub json: &'f str,
    /// Its user, else its device; or its group.
    pub key: Cow<'f, str>,
}

impl<'f> Identification<'f> {
    fn judge(json: &'f str, call: Call) -> Option<Self> {
        let members = Members::of(json)?;
        let name = |field: &str| {
            let json = members.given(field)?;
            let text = match text(json) {
                Some(text) => text,
                None if json.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => Cow::Borrowed(json),
                None => return None,
            };
            (!text.is_empty()).then_some(text)
        };
        let key = match call {
            Call::User => name("user_id").or_else(|| name("device_id"))?,
            Call::Group => {
                name("group_type")?;
                name("group_value")?
            }
        };
        (depth(json) <= DEPTH_MAX).then_some(Self { json, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(form: &str, call: Call) -> Result<Vec<String>, Wrong> {
        Form::read(form.as_bytes()).identifications(call, 3).map(|all| all.into_iter().map(|one| one.key.into_owned()).collect())
    }

    #[test]
    fn a_form_is_decoded_and_its_last_field_of_a_name_counts() {
        let form = Form::read(b"api_key=old&x&api_key=k%31&identification=%7B%22user_id%22%3A%22a+%C3%A4%25%22%7D&=");
        assert_eq!(form.api_key(), Ok("k1"));
        assert_eq!(form.identifications(Call::User, 3).unwrap()[0].key, "a ä%");
        assert_eq!(Form::read(b"").api_key(), Err(Wrong::MissingKey));
        assert_eq!(Form::read(b"%zz=%&api_key=%4&identification=%ff").api_key(), Ok("%4"));
    }

    #[test]
    fn an_object_or_an_array_names_users_devices_or_groups() {
        assert_eq!(keys(r#"identification={"user_id":"u","device_id":"d"}"#, Call::User).unwrap(), ["u"]);
        assert_eq!(keys(r#"identification=[{"device_id":"d"},{"user_id":7}]"#, Call::User).unwrap(), ["d", "7"]);
        assert_eq!(keys(r#"identification={"group_type":"org","group_value":"g"}"#, Call::Group).unwrap(), ["g"]);
        for (form, call) in [
            ("", Call::User),
            ("identification=", Call::User),
            ("identification=[{}]", Call::User),
            (r#"identification=[{"user_id":"u"}"#, Call::User),
            (r#"identification={"user_id":""}"#, Call::User),
            (r#"identification={"group_value":"g"}"#, Call::Group),
        ] {
            assert_eq!(keys(form, call), Err(Wrong::MissingEvent), "{form}");
        }
        assert_eq!(
            keys(r#"identification=[{"user_id":1},{"user_id":1},{"user_id":1},{"user_id":1}]"#, Call::User),
            Err(Wrong::TooLarge)
        );
    }
}
