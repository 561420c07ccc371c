//! Finds an event's partition key by JSON pointers, in one pass over its bytes.
//!
//! Place: `source` compiles a source's `partition_key` list once and asks here for every event. The pointers
//! (RFC 6901) become one trie; event and trie are walked together, and whatever the trie does not name is skipped
//! ([`Scan`]). No tree is built, and nothing is allocated for strings without escapes; numbers and escaped strings
//! that a pointer names are read by serde_json, and their text goes to a buffer that is reused.
//!
//! Rules. A hit is a non-empty string or a number. The first pointer, in configured order, that has a hit wins.
//! Of members that share a name the last one counts, as in most readers: an earlier one leaves no hit behind.
//! Integers that fit 64 bits are written exactly, other numbers as the shortest text that reads back the same.
//!
//! A source with further rules asks for all that its pointers lead to at once ([`Pointers::find_all`]).
//!
//! Failure: the whole event must be one JSON text in UTF-8 with nothing after it, otherwise [`NotJson`], also
//! when all pointers were found before the fault. Half a surrogate pair is read as U+FFFD. Absent on purpose: limits on the
//! key's length (`source`).

use std::fmt::{self, Write as _};

use super::json::{Memory, Scan, Text};

/// The event is not one JSON text in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

/// A pointer that RFC 6901 does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointerError {
    /// As configured.
    pub pointer: String,
    /// What is wrong, and what would be right.
    pub problem: &'static str,
}

impl fmt::Display for PointerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JSON pointer {:?}: {}", self.pointer, self.problem)
    }
}

impl std::error::Error for PointerError {}

/// A step from one value of a document into a member of it.
#[derive(Clone, Debug)]
struct Child {
    /// Member name, unescaped.
    name: String,
    /// The same token read as an array index, where it is one.
    index: Option<usize>,
    /// Where it leads.
    node: usize,
}

/// One path of the trie.
#[derive(Clone, Debug, Default)]
struct Node {
    children: Vec<Child>,
    /// The first pointer that ends here.
    ends: Option<usize>,
    /// Every pointer that ends here or below: what a repeated member name wipes out.
    below: Vec<usize>,
}

/// A compiled, ordered set of JSON pointers. Immutable; shared by all threads.
#[derive(Clone, Debug)]
pub struct Pointers {
    nodes: Vec<Node>,
    count: usize,
}

/// Where a hit's text lies.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Empty,
    /// Byte range of the event.
    Event(usize, usize),
    /// Byte range of [`Scratch::text`].
    Text(usize, usize),
    /// Byte range of an event's text that is no key: `true`, `false` and the empty string.
    NoKey(usize, usize),
    Null,
    /// An array or an object.
    Container,
}

/// What the pointers lead to in one event, by their number in the list.
#[derive(Clone, Copy, Debug)]
pub struct Hits<'a> {
    slots: &'a [Slot],
    event: &'a str,
    text: &'a str,
}

impl<'a> Hits<'a> {
    /// The text of a non-empty string or a number.
    #[must_use]
    pub fn key(self, at: usize) -> Option<&'a str> {
        match self.slots[at] {
            Slot::Event(from, to) => Some(&self.event[from..to]),
            Slot::Text(from, to) => Some(&self.text[from..to]),
            Slot::Empty | Slot::NoKey(..) | Slot::Null | Slot::Container => None,
        }
    }

    /// The text of any string, number or boolean.
    #[must_use]
    pub fn text(self, at: usize) -> Option<&'a str> {
        match self.slots[at] {
            Slot::NoKey(from, to) => Some(&self.event[from..to]),
            _ => self.key(at),
        }
    }

    /// There is a value, and it is not null.
    #[must_use]
    pub fn has_value(self, at: usize) -> bool {
        self.is_there(at) && !matches!(self.slots[at], Slot::Null)
    }

    /// There is a value, which may be null.
    #[must_use]
    pub fn is_there(self, at: usize) -> bool {
        !matches!(self.slots[at], Slot::Empty)
    }
}

/// Reused memory of [`Pointers::find`]; one a thread.
#[derive(Debug, Default)]
pub struct Scratch {
    slots: Vec<Slot>,
    text: String,
    scan: Memory,
}

impl Pointers {
    /// Compiles `pointers`, the earlier ones taking precedence. An empty list finds nothing.
    ///
    /// # Errors
    /// A pointer that neither is empty nor begins with `/`, or that holds `~` without `0` or `1` after it.
    pub fn compile<S: AsRef<str>>(pointers: &[S]) -> Result<Self, PointerError> {
        let mut nodes = vec![Node::default()];
        for (at, pointer) in pointers.iter().enumerate() {
            let pointer = pointer.as_ref();
            let fail = |problem| PointerError { pointer: pointer.to_owned(), problem };
            let tokens = match pointer.strip_prefix('/') {
                Some(rest) => rest.split('/').map(unescape).collect::<Option<Vec<String>>>(),
                None if pointer.is_empty() => Some(Vec::new()),
                None => return Err(fail("it must begin with `/`, as in \"/userId\"")),
            };
            let tokens = tokens.ok_or_else(|| fail("`~` must be followed by 0 (for ~) or 1 (for /)"))?;
            let mut node = 0;
            nodes[node].below.push(at);
            for token in tokens {
                node = match nodes[node].children.iter().find(|child| child.name == token) {
                    Some(child) => child.node,
                    None => {
                        let new = nodes.len();
                        nodes.push(Node::default());
                        nodes[node].children.push(Child { index: array_index(&token), name: token, node: new });
                        new
                    }
                };
                nodes[node].below.push(at);
            }
            nodes[node].ends.get_or_insert(at);
        }
        Ok(Self { nodes, count: pointers.len() })
    }

    /// No pointer at all: events need not even be JSON.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The text of the first pointer's hit in `event`, or `None` when no pointer has one.
    ///
    /// # Errors
    /// [`NotJson`] when the event as a whole is not JSON.
    pub fn find<'a>(&self, event: &'a [u8], scratch: &'a mut Scratch) -> Result<Option<&'a str>, NotJson> {
        let hits = self.find_all(event, scratch)?;
        Ok((0..self.count).find_map(|at| hits.key(at)))
    }

    /// What every pointer leads to in `event`. Of equal pointers only the first is answered.
    ///
    /// # Errors
    /// [`NotJson`] when the event as a whole is not JSON.
    pub fn find_all<'a>(&self, event: &'a [u8], scratch: &'a mut Scratch) -> Result<Hits<'a>, NotJson> {
        let event = std::str::from_utf8(event).map_err(|_| NotJson)?;
        scratch.text.clear();
        scratch.slots.clear();
        scratch.slots.resize(self.count, Slot::Empty);
        let Scratch { slots, text, scan } = scratch;
        let mut walk = Walk { nodes: &self.nodes, slots, text, event, scan: Scan::new(event.as_bytes(), scan) };
        walk.value(0).ok_or(NotJson)?;
        if !walk.scan.is_over() {
            return Err(NotJson);
        }
        let scratch: &'a Scratch = scratch;
        Ok(Hits { slots: &scratch.slots, event, text: &scratch.text })
    }
}

/// A reference token of RFC 6901, section 4: `~1` is `/`, `~0` is `~`. `None`: another `~`.
fn unescape(token: &str) -> Option<String> {
    let mut parts = token.split('~');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push(match part.as_bytes().first() {
            Some(b'0') => '~',
            Some(b'1') => '/',
            _ => return None,
        });
        text.push_str(&part[1..]);
    }
    Some(text)
}

/// A quoted JSON string with its halves of surrogate pairs replaced. `None`: it is no string all the same.
fn with_halves_replaced(quoted: &str) -> Option<String> {
    let unit = |at: usize| {
        let escape = quoted.as_bytes().get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(escape).ok()?, 16).ok()
    };
    let mut whole = String::with_capacity(quoted.len());
    let mut rest = 0;
    while let Some(found) = memchr::memchr(b'\\', &quoted.as_bytes()[rest..]) {
        let at = rest + found;
        whole.push_str(&quoted[rest..at]);
        let taken = match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                whole.push('\u{fffd}');
                rest = at + 6;
                continue;
            }
            (Some(_), _) => 6,
            // Any other escape is a character long, and of one byte.
            (None, _) => 2,
        };
        rest = at + taken;
        whole.push_str(quoted.get(at..rest)?);
    }
    whole.push_str(&quoted[rest..]);
    serde_json::from_str(&whole).ok()
}

/// RFC 6901, section 4: digits without leading zeros.
fn array_index(token: &str) -> Option<usize> {
    let digits = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_digit());
    (digits && (token == "0" || !token.starts_with('0'))).then(|| token.parse().ok()).flatten()
}

/// One pass over one event.
struct Walk<'p, 's> {
    nodes: &'p [Node],
    slots: &'s mut [Slot],
    text: &'s mut String,
    event: &'s str,
    scan: Scan<'s>,
}

impl Walk<'_, '_> {
    /// The value at a node of the trie. `None`: not JSON.
    fn value(&mut self, node: usize) -> Option<()> {
        let nodes = self.nodes;
        match self.scan.token() {
            b'{' if !nodes[node].children.is_empty() => {
                self.contains(node);
                self.object(&nodes[node].children)
            }
            b'[' if !nodes[node].children.is_empty() => {
                self.contains(node);
                self.array(&nodes[node].children)
            }
            b'"' => {
                let text = self.scan.string()?;
                let Some(hit) = nodes[node].ends else { return Some(()) };
                self.slots[hit] = if text.start == text.end {
                    Slot::NoKey(text.start, text.end)
                } else if text.escaped {
                    let decoded = self.decoded(text)?;
                    self.written(format_args!("{decoded}"))
                } else {
                    Slot::Event(text.start, text.end)
                };
                Some(())
            }
            b'-' | b'0'..=b'9' => {
                let number = self.scan.number()?;
                if let Some(hit) = nodes[node].ends {
                    // serde_json's own text of a number, so that a key reads as the number would in any JSON it writes. One
                    // beyond its range is taken as it stands.
                    self.slots[hit] = match serde_json::from_slice::<serde_json::Number>(number) {
                        Ok(number) => self.written(format_args!("{number}")),
                        Err(_) => Slot::Event(self.scan.at() - number.len(), self.scan.at()),
                    };
                }
                Some(())
            }
            first => {
                let start = self.scan.at();
                self.scan.skip()?;
                if let Some(hit) = nodes[node].ends {
                    self.slots[hit] = match first {
                        b'n' => Slot::Null,
                        b't' | b'f' => Slot::NoKey(start, self.scan.at()),
                        _ => Slot::Container,
                    };
                }
                Some(())
            }
        }
    }

    fn object(&mut self, children: &[Child]) -> Option<()> {
        self.scan.take(b'{');
        if self.scan.take(b'}') {
            return Some(());
        }
        loop {
            let name = self.scan.name()?;
            let child = if name.escaped {
                let name = self.decoded(name)?;
                children.iter().find(|child| child.name == name)
            } else {
                let name = &self.event[name.start..name.end];
                children.iter().find(|child| child.name == name)
            };
            match child {
                Some(child) => {
                    for &at in &self.nodes[child.node].below {
                        self.slots[at] = Slot::Empty;
                    }
                    self.value(child.node)?;
                }
                None => self.scan.skip()?,
            }
            if !self.scan.take(b',') {
                return self.scan.take(b'}').then_some(());
            }
        }
    }

    fn array(&mut self, children: &[Child]) -> Option<()> {
        self.scan.take(b'[');
        if self.scan.take(b']') {
            return Some(());
        }
        for index in 0.. {
            match children.iter().find(|child| child.index == Some(index)) {
                Some(child) => self.value(child.node)?,
                None => self.scan.skip()?,
            }
            if !self.scan.take(b',') {
                break;
            }
        }
        self.scan.take(b']').then_some(())
    }

    /// The node's value is an array or an object.
    fn contains(&mut self, node: usize) {
        if let Some(hit) = self.nodes[node].ends {
            self.slots[hit] = Slot::Container;
        }
    }

    /// A string with escapes, read as it is meant; half a surrogate pair, which some clients send, as U+FFFD.
    fn decoded(&self, text: Text) -> Option<String> {
        let quoted = &self.event[text.start - 1..=text.end];
        serde_json::from_str(quoted).ok().or_else(|| with_halves_replaced(quoted))
    }

    fn written(&mut self, text: fmt::Arguments<'_>) -> Slot {
        let from = self.text.len();
        self.text.write_fmt(text).expect("a String takes any text");
        Slot::Text(from, self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(pointers: &[&str], event: &str) -> Result<Option<String>, NotJson> {
        let mut scratch = Scratch::default();
        let pointers = Pointers::compile(pointers).unwrap();
        pointers.find(event.as_bytes(), &mut scratch).map(|key| key.map(str::to_owned))
    }

    fn key(pointers: &[&str], event: &str) -> Option<String> {
        find(pointers, event).unwrap()
    }

    #[test]
    fn the_first_pointer_in_configured_order_wins_wherever_it_stands_in_the_event() {
        let event = r#"{"anonymousId":"a","userId":"u"}"#;
        assert_eq!(key(&["/userId", "/anonymousId"], event).as_deref(), Some("u"));
        assert_eq!(key(&["/anonymousId", "/userId"], event).as_deref(), Some("a"));
    }

    #[test]
    fn empty_strings_null_booleans_and_containers_are_no_keys() {
        for value in [r#""""#, "null", "true", "false", "{}", "[]", r#"{"x":"y"}"#] {
            let event = format!(r#"{{"userId":{value},"anonymousId":"a"}}"#);
            assert_eq!(key(&["/userId", "/anonymousId"], &event).as_deref(), Some("a"), "{value}");
        }
    }

    #[test]
    fn integers_are_exact_and_floats_are_short() {
        for (number, text) in [
            ("0", "0"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("0.1", "0.1"),
            ("1.50", "1.5"),
            ("1e3", "1000.0"),
            ("-1e999", "-1e999"),
        ] {
            assert_eq!(key(&["/n"], &format!(r#"{{"n":{number}}}"#)).as_deref(), Some(text));
        }
    }

    #[test]
    fn of_members_with_one_name_the_last_counts() {
        assert_eq!(key(&["/a"], r#"{"a":"x","a":"y"}"#).as_deref(), Some("y"));
        assert_eq!(key(&["/a"], r#"{"a":"x","a":null}"#), None);
        assert_eq!(key(&["/a/b", "/c"], r#"{"a":{"b":"x"},"c":"z","a":{"d":1}}"#).as_deref(), Some("z"));
    }

    #[test]
    fn array_indexes_have_no_leading_zero_and_also_name_members() {
        assert_eq!(key(&["/a/1"], r#"{"a":["x","y"]}"#).as_deref(), Some("y"));
        assert_eq!(key(&["/a/01"], r#"{"a":["x","y"]}"#), None);
        assert_eq!(key(&["/a/-"], r#"{"a":["x","y"]}"#), None);
        assert_eq!(key(&["/a/1"], r#"{"a":{"1":"m"}}"#).as_deref(), Some("m"));
        assert_eq!(key(&["/0"], r#"["x"]"#).as_deref(), Some("x"));
    }

    #[test]
    fn escapes_work_in_pointers_in_names_and_in_values() {
        assert_eq!(key(&["/a~1b/m~0n"], r#"{"a/b":{"m~n":"x"}}"#).as_deref(), Some("x"));
        assert_eq!(key(&["/ä"], r#"{"\u00e4":"\"q\"\n"}"#).as_deref(), Some("\"q\"\n"));
        assert_eq!(key(&[""], r#" "whole" "#).as_deref(), Some("whole"));
        assert_eq!(key(&["/"], r#"{"":"empty name"}"#).as_deref(), Some("empty name"));
    }

    #[test]
    fn the_whole_event_must_be_json() {
        for event in ["", "  ", "{", r#"{"userId":"u"}x"#, r#"{"userId":"u"} {}"#, r#"{"userId":"u",}"#, "nul", "'a'"] {
            assert_eq!(find(&["/userId"], event), Err(NotJson), "{event}");
        }
        let pointers = Pointers::compile(&["/userId"]).unwrap();
        let invalid = b"{\"userId\":\"u\",\"x\":\"\xff\"}";
        assert_eq!(pointers.find(invalid, &mut Scratch::default()), Err(NotJson));
    }

    #[test]
    fn deep_nesting_that_no_pointer_names_is_skipped_without_recursion() {
        let deep = format!(r#"{{"x":{}{},"userId":"u"}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(key(&["/userId"], &deep).as_deref(), Some("u"));
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced_and_costs_nobody_a_key() {
        assert_eq!(key(&["/a"], r#"{"a":"x\ud800y"}"#).as_deref(), Some("x\u{fffd}y"));
        assert_eq!(key(&["/a"], r#"{"a":"\udc00\ud83d\ude80\\\ud83d\n"}"#).as_deref(), Some("\u{fffd}\u{1f680}\\\u{fffd}\n"));
        assert_eq!(key(&["/a"], r#"{"\ud800":1,"a":"u","b":"\udfff"}"#).as_deref(), Some("u"));
        assert_eq!(find(&["/a"], r#"{"a":"\ud80"}"#), Err(NotJson));
    }

    #[test]
    fn all_that_pointers_lead_to_is_told_apart() {
        let pointers = ["/s", "/n", "/t", "/f", "/e", "/null", "/o", "/l", "/none", "/o/p"];
        let compiled = Pointers::compile(&pointers).unwrap();
        let event = r#"{"s":"x","n":1.50,"t":true,"f":false,"e":"","null":null,"o":{"p":[]},"l":[1]}"#;
        let mut scratch = Scratch::default();
        let hits = compiled.find_all(event.as_bytes(), &mut scratch).unwrap();
        let all = |of: &dyn Fn(usize) -> Option<String>| (0..pointers.len()).filter_map(of).collect::<Vec<_>>();
        assert_eq!(all(&|at| hits.key(at).map(str::to_owned)), ["x", "1.5"]);
        assert_eq!(all(&|at| hits.text(at).map(str::to_owned)), ["x", "1.5", "true", "false", ""]);
        let named =
            |of: &dyn Fn(usize) -> bool| (0..pointers.len()).filter(|at| of(*at)).map(|at| pointers[at]).collect::<Vec<_>>();
        assert_eq!(named(&|at| !hits.has_value(at)), ["/null", "/none"]);
        assert_eq!(named(&|at| !hits.is_there(at)), ["/none"]);
    }

    #[test]
    fn malformed_pointers_are_named() {
        for pointer in ["userId", "/a~", "/a~2", "#/a"] {
            assert_eq!(Pointers::compile(&[pointer]).unwrap_err().pointer, pointer);
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            "[ab\"\\\\é\n]{0,3}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map("[ab01/~]{0,2}", inner, 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn expected(pointers: &[String], event: &serde_json::Value) -> Option<String> {
        pointers.iter().find_map(|pointer| match event.pointer(pointer)? {
            serde_json::Value::String(text) => (!text.is_empty()).then(|| text.clone()),
            serde_json::Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_a_tree_would_find(
            event in json(),
            pointers in prop::collection::vec("(/([ab]|0|1|~0|~1|01){0,2}){0,3}", 0..4),
        ) {
            let text = event.to_string();
            // serde_json's reader may round a float that its writer printed, so the tree is read back as well.
            let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
            let compiled = Pointers::compile(&pointers).unwrap();
            let mut scratch = Scratch::default();
            prop_assert_eq!(
                compiled.find(text.as_bytes(), &mut scratch).unwrap().map(str::to_owned),
                expected(&pointers, &tree)
            );
        }

        #[test]
        fn it_calls_json_what_serde_json_calls_json(text in "[\\[\\]{}\",:0-9a-e\\.trunlfs -]{0,12}") {
            let compiled = Pointers::compile(&["/a", "/0", ""]).unwrap();
            let ours = compiled.find(text.as_bytes(), &mut Scratch::default()).is_ok();
            prop_assert_eq!(ours, serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
