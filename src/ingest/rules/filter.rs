//! `allow` and `deny`: which events are stored. Pure.
//!
//! Grammar of an entry, which holds or does not hold for an event:
//! `/type=track`, the JSON pointer leads to that string, number or boolean (by its text; what follows the first `=` is the
//! text, and may be empty); `/properties/test`, it leads to a value other than null; anything else, such as `Signed Up`, is
//! the type of a vendor's event, as the vendor's door tells it. An event is stored when no entry of `deny` holds, and one of
//! `allow` does or there is none. Pointers look at the record as it would be written, without added fields.

use super::PointerList;
use crate::ingest::pointer::{Hits, Pointers};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition<P> {
    Type(String),
    Is(P, String),
    Has(P),
}

fn parse(text: &str) -> Option<Condition<&str>> {
    if !text.starts_with('/') {
        return (!text.is_empty()).then(|| Condition::Type(text.to_owned()));
    }
    let (pointer, value) = match text.split_once('=') {
        Some((pointer, value)) => (pointer, Some(value)),
        None => (text, None),
    };
    Pointers::compile(&[pointer]).ok()?;
    Some(match value {
        Some(value) => Condition::Is(pointer, value.to_owned()),
        None => Condition::Has(pointer),
    })
}

/// `text` is an entry of `allow` or `deny`.
#[must_use]
pub fn is_entry(text: &str) -> bool {
    parse(text).is_some()
}

/// The entry names a type, not a pointer.
#[must_use]
pub fn is_type(text: &str) -> bool {
    !text.starts_with('/')
}

/// Both lists, compiled.
#[derive(Clone, Debug)]
pub struct Filter {
    allow: Vec<Condition<usize>>,
    deny: Vec<Condition<usize>>,
}

impl Filter {
    /// Numbers the pointers. What is no entry is left out: the configuration refuses it.
    pub fn compile(allow: &[String], deny: &[String], list: &mut PointerList) -> Self {
        let mut compile = |entries: &[String]| {
            let entries = entries.iter().filter_map(|entry| parse(entry));
            entries
                .map(|condition| match condition {
                    Condition::Type(name) => Condition::Type(name),
                    Condition::Is(pointer, value) => Condition::Is(list.number(pointer), value),
                    Condition::Has(pointer) => Condition::Has(list.number(pointer)),
                })
                .collect()
        };
        Self { allow: compile(allow), deny: compile(deny) }
    }

    /// Every event passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// The event is to be stored. `hits` is `None` for one that is not JSON.
    #[must_use]
    pub fn passes(&self, event_type: Option<&str>, hits: Option<Hits<'_>>) -> bool {
        let holds = |condition: &Condition<usize>| match condition {
            Condition::Type(name) => event_type == Some(name),
            Condition::Is(at, value) => hits.is_some_and(|hits| hits.text(*at) == Some(value)),
            Condition::Has(at) => hits.is_some_and(|hits| hits.has_value(*at)),
        };
        !self.deny.iter().any(holds) && (self.allow.is_empty() || self.allow.iter().any(holds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::pointer::Scratch;

    fn passes(allow: &[&str], deny: &[&str], event_type: Option<&str>, event: &str) -> bool {
        let own = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
        let mut list = PointerList::default();
        let filter = Filter::compile(&own(allow), &own(deny), &mut list);
        let pointers = Pointers::compile(&list.texts).unwrap();
        let mut scratch = Scratch::default();
        filter.passes(event_type, pointers.find_all(event.as_bytes(), &mut scratch).ok())
    }

    #[test]
    fn deny_goes_before_allow_and_without_allow_all_the_rest_passes() {
        let event = r#"{"type":"track","properties":{"test":true,"n":1,"none":null,"e":""}}"#;
        assert!(passes(&[], &[], None, event));
        assert!(passes(&["/type=track", "/type=page"], &[], None, event));
        assert!(!passes(&["/type=page"], &[], None, event));
        assert!(!passes(&["/type=track"], &["/properties/test"], None, event));
        assert!(!passes(&[], &["/properties/test=true"], None, event));
        assert!(passes(&[], &["/properties/test=false", "/properties/n=1.0", "/properties/none", "/properties/x"], None, event));
        assert!(!passes(&[], &["/properties/n=1"], None, event));
        assert!(!passes(&[], &["/properties/e="], None, event));
        assert!(!passes(&[], &["/properties"], None, event));
    }

    #[test]
    fn a_name_is_the_type_that_the_door_tells() {
        assert!(!passes(&[], &["Signed Up"], Some("Signed Up"), "{}"));
        assert!(passes(&["Signed Up"], &[], Some("Signed Up"), "{}"));
        assert!(!passes(&["Signed Up"], &[], None, r#"{"event":"Signed Up"}"#));
    }

    #[test]
    fn what_is_not_json_meets_no_condition_on_a_pointer() {
        assert!(passes(&[], &["/a"], None, "no json"));
        assert!(!passes(&["/a"], &[], None, "no json"));
    }

    #[test]
    fn a_condition_begins_with_a_good_pointer_and_a_type_is_not_empty() {
        assert!(is_entry("/a=b=c") && is_entry("/a~1b") && is_entry("Signed Up") && is_entry("/") && is_entry("$identify"));
        assert!(!is_entry("") && !is_entry("/a~2=b"));
    }
}
