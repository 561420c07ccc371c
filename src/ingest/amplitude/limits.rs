//! Amplitude's own limits, which a source with `limits = "vendor"` keeps.
//!
//! Place: `http/amplitude` asks for the most that a request may hold, and has each event judged by [`faults`] after it was found
//! to be an event at all. Sizes are of what was sent, once decoded. *ALL-JUDGED-FIRST* holds for these faults too.
//!
//! Failure: a request over its limits is 413; an event over them is listed in the 400 under the field that is over, so that SDKs
//! drop that event and send the others again. Nothing is cut to fit. Pure. Absent on purpose: rates and quotas.

use super::Fault;
use crate::ingest::members::{Members, depth};

/// What a request may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Of its body.
    pub bytes: usize,
    /// Events, or identifications.
    pub items: usize,
}

/// Of `/2/httpapi`.
pub const HTTP_API: Most = Most { bytes: 1 << 20, items: 2000 };

/// Of `/batch`; its 20 MB are more than any body may have here.
pub const BATCH: Most = Most { bytes: 20_000_000, items: 2000 };

/// Of `/identify` and `/groupidentify`.
pub const IDENTIFY: Most = Most { bytes: 1 << 20, items: 1024 };

impl Most {
    /// A request with this much is within.
    #[must_use]
    pub const fn holds(self, bytes: usize, items: usize) -> bool {
        bytes <= self.bytes && items <= self.items
    }
}

/// Characters of a string.
pub const STRING_CHARS_MAX: usize = 1024;

/// Arrays and objects within each other, in a member's value.
pub const DEPTH_MAX: usize = 40;

/// Fields that a fault is told of by name.
const FIELDS: [&str; 7] =
    ["event_properties", "user_properties", "groups", "group_properties", "user_id", "device_id", "event_type"];

/// Which members of an event, as sent, are over Amplitude's limits.
#[must_use]
pub fn faults(json: &str) -> Vec<Fault> {
    let Some(members) = Members::of(json) else { return vec![Fault::NoObject] };
    let mut faults = Vec::new();
    for (name, value) in members.iter() {
        if depth(value) > DEPTH_MAX || has_long_string(value) {
            let fault = Fault::Invalid(FIELDS.into_iter().find(|field| *field == name).unwrap_or("event"));
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
    }
    faults
}

/// A string in `json`, which is JSON, means more characters than are allowed. Names count as strings. Of an escaped pair of
/// surrogates each half counts as one.
fn has_long_string(json: &str) -> bool {
    if json.len() <= STRING_CHARS_MAX {
        return false;
    }
    let (mut in_string, mut chars) = (false, 0_usize);
    let mut rest = json.chars();
    while let Some(next) = rest.next() {
        match next {
            '"' => (in_string, chars) = (!in_string, 0),
            _ if !in_string => continue,
            '\\' => {
                // What an escape stands for is one character.
                if rest.next() == Some('u') {
                    rest.nth(3);
                }
                chars += 1;
            }
            _ => chars += 1,
        }
        if chars > STRING_CHARS_MAX {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(properties: &str) -> String {
        format!(r#"{{"event_type":"a","user_id":"user-1","event_properties":{{"p":{properties}}}}}"#)
    }

    #[test]
    fn a_string_may_have_1024_characters_however_they_are_written() {
        for character in ["a", "ä", "🚀", r"\n", r"\u00e4", r#"\""#, r"\\"] {
            let string = |chars: usize| event(&format!("[1,\"{}\"]", character.repeat(chars)));
            assert_eq!(faults(&string(1024)), [], "{character}");
            assert_eq!(faults(&string(1025)), [Fault::Invalid("event_properties")], "{character}");
        }
        // Many short ones are no long one.
        assert_eq!(faults(&event(&format!("[{}1]", r#""aaaaaaaa","#.repeat(1000)))), []);
    }

    #[test]
    fn a_fault_names_its_field_and_what_is_no_known_field_is_the_event() {
        let long = "a".repeat(1025);
        for (name, told) in [("user_id", "user_id"), ("user_properties", "user_properties"), ("city", "event")] {
            assert_eq!(faults(&format!(r#"{{"{name}":"{long}","x":1}}"#)), [Fault::Invalid(told)]);
        }
        assert_eq!(faults(&format!(r#"{{"a":"{long}","b":"{long}"}}"#)), [Fault::Invalid("event")]);
    }

    #[test]
    fn a_members_value_may_be_nested_40_deep() {
        // The object of the properties is one of them.
        let nested = |depth: usize| event(&format!("{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1)));
        assert_eq!(faults(&nested(40)), []);
        assert_eq!(faults(&nested(41)), [Fault::Invalid("event_properties")]);
    }

    #[test]
    fn a_request_may_hold_exactly_its_most() {
        for most in [HTTP_API, BATCH, IDENTIFY] {
            assert!(most.holds(most.bytes, most.items));
            assert!(!most.holds(most.bytes + 1, 0) && !most.holds(0, most.items + 1));
        }
    }
}
