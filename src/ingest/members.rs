//! JSON taken apart one level at a time: names decoded, values left as the bytes they were sent as.
//!
//! Place: the doors of vendors whose records are put together anew read a request's objects with it, and splice the values
//! into their records. So numbers keep all their digits and strings their escapes, half a surrogate pair included.
//!
//! Of members that share a name the last one counts, at the place of the first, as in JavaScript. Nothing here recurses:
//! what is nested is passed over by [`Scan`] without a stack. Pure.
//! Failure: `None` for what is not the JSON that was asked for. Absent on purpose: a tree.

use std::borrow::Cow;
use std::collections::HashMap;

use super::json::{Memory, Scan, Text};

/// Up to so many members a name is looked for among all of them.
const FEW: usize = 64;

/// One object's members.
#[derive(Clone, Debug, Default)]
pub struct Members<'t> {
    list: Vec<(Cow<'t, str>, &'t str)>,
    /// Where a name stands in the list, if there are many.
    places: HashMap<Cow<'t, str>, usize>,
}

impl<'t> Members<'t> {
    /// The members of `json`. `None`: it is no object.
    #[must_use]
    pub fn of(json: &'t str) -> Option<Self> {
        let mut memory = Memory::default();
        let mut scan = Scan::new(json.as_bytes(), &mut memory);
        let mut members = Self::default();
        scan.members(|scan, name| {
            members.put(name_in(json, name), &json[scan.span()?]);
            Some(())
        })?;
        scan.is_over().then_some(members)
    }

    /// The value of a name, as sent. `None` where it is absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'t str> {
        self.place(name).map(|at| self.list[at].1)
    }

    /// The same, where `null` is as good as absent.
    #[must_use]
    pub fn given(&self, name: &str) -> Option<&'t str> {
        self.get(name).filter(|value| *value != "null")
    }

    /// Names and values in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'t str)> {
        self.list.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// The same, by value.
    pub fn into_list(self) -> impl Iterator<Item = (Cow<'t, str>, &'t str)> {
        self.list.into_iter()
    }

    fn place(&self, name: &str) -> Option<usize> {
        if self.list.len() <= FEW { self.list.iter().position(|(own, _)| own == name) } else { self.places.get(name).copied() }
    }

    /// Adds a member, or changes the value of the one that has its name.
    pub fn put(&mut self, name: Cow<'t, str>, value: &'t str) {
        if let Some(at) = self.place(&name) {
            self.list[at].1 = value;
            return;
        }
        self.list.push((name, value));
        if self.list.len() == FEW + 1 {
            self.places = self.list.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        } else if let (true, Some((name, _))) = (self.list.len() > FEW, self.list.last()) {
            self.places.insert(name.clone(), self.list.len() - 1);
        }
    }
}

/// A name that a scan of `json` has found, as it is meant.
#[must_use]
pub fn name_in(json: &str, name: Text) -> Cow<'_, str> {
    match name.escaped {
        false => Cow::Borrowed(&json[name.start..name.end]),
        true => text(&json[name.start - 1..=name.end]).unwrap_or_default(),
    }
}

/// The elements of the array `json`, as sent, if it has no more than `most`. `None`: it is no array, or has more.
#[must_use]
pub fn elements(json: &str, most: usize) -> Option<Vec<&str>> {
    let mut memory = Memory::default();
    let mut scan = Scan::new(json.as_bytes(), &mut memory);
    let mut found = Vec::new();
    scan.elements(|scan| {
        if found.len() == most {
            return None;
        }
        found.push(&json[scan.span()?]);
        Some(())
    })?;
    scan.is_over().then_some(found)
}

/// The one JSON value that `body` is, without the white space around it. `None`: it is none, or not UTF-8.
#[must_use]
pub fn whole(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let mut memory = Memory::default();
    let mut scan = Scan::new(body, &mut memory);
    let span = scan.span()?;
    scan.is_over().then(|| &text[span])
}

/// What a JSON string means; half a surrogate pair means U+FFFD. `None`: `json` is no string.
#[must_use]
pub fn text(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    Some(Cow::Owned(serde_json::from_str(json).unwrap_or_else(|_| unescaped(inner))))
}

/// The content of a JSON string with half surrogate pairs in it.
fn unescaped(inner: &str) -> String {
    let mut out = String::with_capacity(inner.len());
    let mut parts = inner.split('\\');
    out.push_str(parts.next().unwrap_or_default());
    let mut high: Option<u32> = None;
    while let Some(part) = parts.next() {
        let unit = part.strip_prefix('u').and_then(|rest| u32::from_str_radix(rest.get(..4)?, 16).ok());
        if let (Some(first), Some(second @ 0xdc00..0xe000)) = (high, unit) {
            high = None;
            out.push(
                char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)).unwrap_or(char::REPLACEMENT_CHARACTER),
            );
            out.push_str(&part[5..]);
            continue;
        }
        out.extend(high.take().map(|_| char::REPLACEMENT_CHARACTER));
        match unit {
            Some(unit @ 0xd800..0xdc00) if part.len() == 5 => high = Some(unit),
            Some(unit) => {
                out.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER));
                out.push_str(&part[5..]);
            }
            // An escaped backslash: what follows it is plain.
            None if part.is_empty() => {
                out.push('\\');
                out.push_str(parts.next().unwrap_or_default());
            }
            None => {
                let mut rest = part.chars();
                out.extend(rest.next().map(|escape| match escape {
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    same => same,
                }));
                out.push_str(rest.as_str());
            }
        }
    }
    out.extend(high.map(|_| char::REPLACEMENT_CHARACTER));
    out
}

/// How many arrays and objects lie within each other in `json`, which is JSON.
#[must_use]
pub fn depth(json: &str) -> usize {
    let mut memory = Memory::default();
    Scan::new(json.as_bytes(), &mut memory).span_and_depth().map_or(0, |(_, depth)| depth)
}

/// Appends `json` as it was sent, but on one line.
pub fn push_raw(out: &mut Vec<u8>, json: &str) {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_none() {
        out.extend_from_slice(json.as_bytes());
    } else {
        // In a string a line's end is escaped: these stand between tokens.
        out.extend(json.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    }
}

/// Appends `text` as a JSON string.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a Vec takes any text");
}

/// Appends `"name":`, with a comma before it unless it is an object's first member.
pub fn push_name(out: &mut Vec<u8>, name: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    push_text(out, name);
    out.push(b':');
}

/// Appends a random UUID (version 4) as a JSON string: 36 characters in quotes.
pub fn push_uuid(out: &mut Vec<u8>, random: [u64; 2]) {
    let [high, low] = random;
    let bits = u128::from(high & !0xf000 | 0x4000) << 64 | u128::from(low & !(3 << 62) | 1 << 63);
    let mut text = *b"\"00000000-0000-0000-0000-000000000000\"";
    let mut rest = bits;
    for place in text.iter_mut().rev().filter(|place| **place == b'0') {
        *place = b"0123456789abcdef"[(rest & 0xf) as usize];
        rest >>= 4;
    }
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_the_bytes_that_were_sent_and_the_last_of_a_name_counts() {
        let members = Members::of(r#" {"a" : 1.50 , "b":[1, {"c":2}],"\u0061":18446744073709551616, "":null} "#).unwrap();
        let all: Vec<_> = members.iter().collect();
        assert_eq!(all, [("a", "18446744073709551616"), ("b", r#"[1, {"c":2}]"#), ("", "null")]);
        assert_eq!((members.get(""), members.given("")), (Some("null"), None));
        for wrong in ["[]", "1", "", "{", r#"{"a":}"#, r#"{"a":1} x"#, r#"{"a":1,}"#] {
            assert!(Members::of(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn many_members_are_found_as_few_are() {
        let json = |n: usize| {
            let all: Vec<String> = (0..n).chain(0..n).enumerate().map(|(at, name)| format!("\"{name}\":{at}")).collect();
            format!("{{{}}}", all.join(","))
        };
        for n in [1, FEW - 1, FEW, FEW + 1, FEW + 2, 5000] {
            let json = json(n);
            let members = Members::of(&json).unwrap();
            assert_eq!(members.iter().count(), n);
            for name in 0..n {
                assert_eq!(members.get(&name.to_string()), Some((n + name).to_string().as_str()));
            }
            assert_eq!(members.get("absent"), None);
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_taken_and_read_as_a_replacement_character() {
        assert_eq!(text(r#""a\ud83d\ude80""#).unwrap(), "a🚀");
        assert_eq!(text(r#""\ud83d""#).unwrap(), "\u{fffd}");
        assert_eq!(text(r#""\ud83dx\ude80\\u0041\n\ud83d\ud83d\ude80\"""#).unwrap(), "\u{fffd}x\u{fffd}\\u0041\n\u{fffd}🚀\"");
        let members = Members::of(r#"{"\ud83d":"\ude80"}"#).unwrap();
        assert_eq!(members.iter().collect::<Vec<_>>(), [("\u{fffd}", r#""\ude80""#)]);
        assert_eq!(text("7"), None);
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings_and_a_bomb_costs_no_stack() {
        assert_eq!(depth(r#"{"a":[1,{"}]":"[[[\""}],"b":{}}"#), 3);
        assert_eq!(depth("7"), 0);
        let bomb = format!("{{\"a\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(depth(Members::of(&bomb).unwrap().get("a").unwrap()), 1_000_000);
    }

    #[test]
    fn an_array_has_at_most_so_many_elements() {
        assert_eq!(elements(" [1, {\"a\":2} ,\"x\"]", 3).unwrap(), ["1", "{\"a\":2}", "\"x\""]);
        assert_eq!(elements("[1,2]", 1), None);
        assert_eq!(elements("{}", 1), None);
        assert_eq!(elements("[] []", 1), None);
    }

    #[test]
    fn what_is_spliced_stays_on_one_line_and_a_uuid_has_its_form() {
        let mut out = Vec::new();
        push_raw(&mut out, "{\r\n  \"a\": \"\\n\"\n}");
        assert_eq!(out, b"{  \"a\": \"\\n\"}");
        for (random, uuid) in [
            ([u64::MAX, u64::MAX], "\"ffffffff-ffff-4fff-bfff-ffffffffffff\""),
            ([0, 0], "\"00000000-0000-4000-8000-000000000000\""),
            ([0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef], "\"01234567-89ab-4def-8123-456789abcdef\""),
        ] {
            out.clear();
            push_uuid(&mut out, random);
            assert_eq!(std::str::from_utf8(&out), Ok(uuid));
        }
    }

    proptest! {
        #[test]
        fn texts_mean_what_serde_json_says(text_in in r#"["\\/bnu0-9a-f\n🚀]{0,20}"#) {
            let json = serde_json::to_string(&text_in).unwrap();
            prop_assert_eq!(text(&json).unwrap(), text_in.as_str());
            prop_assert_eq!(unescaped(&json[1..json.len() - 1]), text_in);
        }
    }
}
