//! `partition_key`: pointers, templates of pointers, or `random`. Pure.
//!
//! Grammar of an entry, of which the first that yields a key decides:
//! `/userId` is a JSON pointer, which yields a non-empty string or a number; `{/context/site}-{/userId}` is a template,
//! which yields its text with the pointers' hits in it, if all of them hit; `random` always yields a random key. A template
//! holds at least one pointer, and no brace beside those around its pointers.

use super::PointerList;
use crate::ingest::pointer::{Hits, Pointers};

/// The word for a random key.
pub const RANDOM: &str = "random";

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part<P> {
    Text(String),
    Pointer(P),
}

/// One entry of the list; its pointers as texts, and compiled as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry<P> {
    Pointer(P),
    Template(Vec<Part<P>>),
    Random,
}

fn parse(text: &str) -> Option<Entry<&str>> {
    if text == RANDOM {
        return Some(Entry::Random);
    }
    if text.is_empty() || text.starts_with('/') {
        return Pointers::compile(&[text]).is_ok().then_some(Entry::Pointer(text));
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (before, after) = rest.split_once('{').unwrap_or((rest, ""));
        if before.contains('}') {
            return None;
        }
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        if before.len() == rest.len() {
            break;
        }
        let (pointer, after) = after.split_once('}')?;
        if pointer.contains('{') || Pointers::compile(&[pointer]).is_err() {
            return None;
        }
        parts.push(Part::Pointer(pointer));
        rest = after;
    }
    parts.iter().any(|part| matches!(part, Part::Pointer(_))).then_some(Entry::Template(parts))
}

/// `text` is an entry of `partition_key`.
#[must_use]
pub fn is_entry(text: &str) -> bool {
    parse(text).is_some()
}

/// What the entries make of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen<'k> {
    /// A key, which may be too long.
    Key(&'k str),
    /// A random one.
    Random,
}

/// The compiled list.
#[derive(Clone, Debug)]
pub struct Keys(Vec<Entry<usize>>);

impl Keys {
    /// Numbers the pointers. What is no entry is left out: the configuration refuses it.
    pub fn compile(entries: &[String], list: &mut PointerList) -> Self {
        let mut compile = |entry: Entry<&str>| match entry {
            Entry::Pointer(pointer) => Entry::Pointer(list.number(pointer)),
            Entry::Random => Entry::Random,
            Entry::Template(parts) => Entry::Template(
                parts
                    .into_iter()
                    .map(|part| match part {
                        Part::Text(text) => Part::Text(text),
                        Part::Pointer(pointer) => Part::Pointer(list.number(pointer)),
                    })
                    .collect(),
            ),
        };
        Self(entries.iter().filter_map(|entry| parse(entry)).map(&mut compile).collect())
    }

    /// No entry needs more than a pointer.
    #[must_use]
    pub fn are_pointers(&self) -> bool {
        self.0.iter().all(|entry| matches!(entry, Entry::Pointer(_)))
    }

    /// There is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first entry's key that there is. `hits` is `None` for an event that is not JSON.
    pub fn choose<'k>(&self, hits: Option<Hits<'k>>, scratch: &'k mut String) -> Option<Chosen<'k>> {
        for entry in &self.0 {
            match (entry, hits) {
                (Entry::Random, _) => return Some(Chosen::Random),
                (Entry::Pointer(at), Some(hits)) => {
                    if let Some(key) = hits.key(*at) {
                        return Some(Chosen::Key(key));
                    }
                }
                (Entry::Template(parts), Some(hits)) if write(parts, hits, scratch).is_some() => {
                    return Some(Chosen::Key(scratch));
                }
                _ => {}
            }
        }
        None
    }
}

fn write(parts: &[Part<usize>], hits: Hits<'_>, out: &mut String) -> Option<()> {
    out.clear();
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Pointer(at) => out.push_str(hits.key(*at)?),
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::pointer::Scratch;

    fn key(entries: &[&str], event: &str) -> Option<String> {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let mut list = PointerList::default();
        let keys = Keys::compile(&entries, &mut list);
        let pointers = Pointers::compile(&list.texts).unwrap();
        let mut scratch = Scratch::default();
        let hits = pointers.find_all(event.as_bytes(), &mut scratch).ok();
        let mut text = String::new();
        keys.choose(hits, &mut text).map(|chosen| match chosen {
            Chosen::Key(key) => key.to_owned(),
            Chosen::Random => "(random)".to_owned(),
        })
    }

    #[test]
    fn the_first_entry_that_yields_a_key_decides() {
        let event = r#"{"site":"a","n":7,"e":""}"#;
        assert_eq!(key(&["/none", "{/site}-{/n}", "/site"], event).as_deref(), Some("a-7"));
        assert_eq!(key(&["{/site}-{/none}", "/n"], event).as_deref(), Some("7"));
        assert_eq!(key(&["x{/e}", "y{/site}{/site}z"], event).as_deref(), Some("yaaz"));
        assert_eq!(key(&["/none", "random", "/site"], event).as_deref(), Some("(random)"));
        assert_eq!(key(&["/none"], event), None);
    }

    #[test]
    fn an_event_that_is_not_json_finds_none_but_a_random_one() {
        assert_eq!(key(&["/a", "{/a}"], "no json"), None);
        assert_eq!(key(&["/a", "random"], "no json").as_deref(), Some("(random)"));
    }

    #[test]
    fn what_is_no_entry_is_told() {
        for entry in ["", "/a", "/a~1b", "random", "{/a}", "{/a}{/b}", "x-{/a}-y", "{}"] {
            assert!(is_entry(entry), "{entry:?}");
        }
        for entry in ["userId", "{userId}", "{/a", "/a~2", "{/a}}", "a}b{/a}", "{{/a}}", "{/a~}"] {
            assert!(!is_entry(entry), "{entry:?}");
        }
    }
}
