//! The one shape that JSON and CBOR have in common: what a request says, and what an answer is written from.
//!
//! Place: `json` and `cbor` read a body into a [`Value`] and write one out again; `request` and `shards` know nothing of either
//! form. What a body holds is borrowed from it wherever it needs no decoding. *BOUNDED*: nesting ends at [`DEPTH_MAX`] and
//! the number of values at [`VALUES_MAX`], because a value costs more memory than the byte that it can be written with.
//!
//! Failure: [`Malformed`], which says what was wrong and nothing of the contents. Absent on purpose: numbers that are no
//! 64-bit integers (no request has one that counts).

use std::borrow::Cow;
use std::fmt;

/// Lists and maps within each other.
pub const DEPTH_MAX: usize = 128;

/// Values of one body: a full PutRecords has some 2,500.
pub const VALUES_MAX: usize = 1 << 16;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'b> {
    /// `null`, or what CBOR calls undefined.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Number,
    /// Text.
    Text(Cow<'b, str>),
    /// Bytes, where the form has such; JSON writes them as base64.
    Bytes(Cow<'b, [u8]>),
    /// Milliseconds since 1970 UTC. JSON writes seconds, CBOR milliseconds with tag 1, as the service does. Only in answers.
    Time(u64),
    /// A list.
    List(Vec<Value<'b>>),
    /// Members in the order in which they stand; of equal names the last counts.
    Map(Vec<(Cow<'b, str>, Value<'b>)>),
}

impl<'b> Value<'b> {
    /// Text.
    pub fn text(text: impl Into<Cow<'b, str>>) -> Self {
        Self::Text(text.into())
    }

    /// A map of members with fixed names.
    pub fn map(members: impl IntoIterator<Item = (&'static str, Value<'b>)>) -> Self {
        Self::Map(members.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect())
    }

    /// The member of a map; `None` where there is none, and where it is null.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value<'b>> {
        let Self::Map(members) = self else { return None };
        members.iter().rev().find(|(held, _)| held == name).map(|(_, value)| value).filter(|value| **value != Self::Null)
    }
}

/// A body that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not of its form, at about this byte.
    At(usize),
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// More than [`VALUES_MAX`] values.
    TooMany,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at) => write!(f, "the body is not well-formed at byte {at}"),
            Self::TooDeep => write!(f, "the body is nested deeper than {DEPTH_MAX} levels"),
            Self::TooMany => write!(f, "the body holds more than {VALUES_MAX} values"),
        }
    }
}

impl std::error::Error for Malformed {}

/// What is left of a reader's bounds.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    values: usize,
}

impl Bounds {
    /// One more value, at a depth.
    pub(super) fn enter(&mut self, depth: usize) -> Result<(), Malformed> {
        self.values += 1;
        if depth > DEPTH_MAX {
            Err(Malformed::TooDeep)
        } else if self.values > VALUES_MAX {
            Err(Malformed::TooMany)
        } else {
            Ok(())
        }
    }
}
