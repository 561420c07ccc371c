//! What a source does with an event beside finding its key by pointers: filter, add fields, encode, suppress re-sends.
//!
//! Place: `source` compiles [`Rules`] once, for a source that has any, and has every event pass them; a source without rules
//! never comes here. The forms of the configuration's values are defined in [`key`], [`filter`] and [`add`], and the
//! configuration asks there whether a text is of the form.
//!
//! One pass: the pointers of all rules lie in one trie, and an event is walked over once. An event that is not JSON meets no
//! condition, has nothing added and finds no key.
//!
//! Owner: rules never change; [`dedupe`] alone has state. Pure but for that. This is no transformation language: what
//! the event says is never changed, only added to.

pub mod add;
pub mod dedupe;
pub mod filter;
pub mod journal;
pub mod key;
pub mod seen;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use self::add::{Facts, Fields};
use self::filter::Filter;
use self::key::Keys;
use crate::config::{DataEncoding, SourceConfig};
use crate::ingest::pointer::{Hits, PointerError, Pointers};

/// The pointers of all rules, each once.
#[derive(Debug, Default)]
pub struct PointerList {
    texts: Vec<String>,
    known: BTreeMap<String, usize>,
}

impl PointerList {
    /// The number under which this pointer's hit will be found.
    pub fn number(&mut self, pointer: &str) -> usize {
        if let Some(&number) = self.known.get(pointer) {
            return number;
        }
        let number = self.texts.len();
        self.texts.push(pointer.to_owned());
        self.known.insert(pointer.to_owned(), number);
        number
    }
}

/// A source's rules, compiled.
#[derive(Debug)]
pub struct Rules {
    /// Of all rules.
    pub pointers: Pointers,
    /// How the key is chosen.
    pub keys: Keys,
    /// Which events are stored.
    pub filter: Filter,
    /// What is put at the end of a JSON object.
    pub fields: Fields,
    /// Where the id of an event is found, that the door does not give.
    pub id: Option<usize>,
    base64: bool,
}

impl Rules {
    /// Compiles what is configured; `None` where pointers for the key are all there is.
    ///
    /// # Errors
    /// A JSON pointer that RFC 6901 does not allow.
    pub fn compile(config: &SourceConfig, facts: &Facts) -> Result<Option<Self>, PointerError> {
        let rules = &config.rules;
        let mut list = PointerList::default();
        let compiled = Self {
            keys: Keys::compile(&config.partition_key, &mut list),
            filter: Filter::compile(&rules.allow, &rules.deny, &mut list),
            fields: Fields::compile(&rules.add, facts, &mut list),
            id: rules.dedupe_id.as_deref().filter(|_| !rules.dedupe.is_zero()).map(|pointer| list.number(pointer)),
            base64: rules.data_encoding == DataEncoding::Base64,
            pointers: Pointers::compile(&list.texts)?,
        };
        let plain = compiled.keys.are_pointers()
            && compiled.filter.is_empty()
            && compiled.fields.is_empty()
            && rules.dedupe.is_zero()
            && !compiled.base64;
        Ok((!plain).then_some(compiled))
    }

    /// The most that an event of `bytes` can become.
    #[must_use]
    pub fn grown(&self, bytes: usize) -> usize {
        let bytes = bytes + self.fields.bytes_max();
        if self.base64 { bytes.div_ceil(3) * 4 } else { bytes }
    }

    /// Some events become larger than they came.
    #[must_use]
    pub fn grow(&self) -> bool {
        self.base64 || !self.fields.is_empty()
    }

    /// What is to be stored of an event: itself, or what `made` then holds. `received_ms` is asked for where it is needed.
    pub fn data<'d>(
        &self,
        event: &'d [u8],
        hits: Option<Hits<'_>>,
        received_ms: impl FnOnce() -> u64,
        made: &'d mut Made,
    ) -> &'d [u8] {
        let Made { spliced, encoded } = made;
        spliced.clear();
        let data = match hits {
            Some(hits) if self.fields.splice(event, hits, received_ms, spliced) => &spliced[..],
            _ => event,
        };
        if !self.base64 {
            return data;
        }
        encoded.clear();
        BASE64_STANDARD.encode_string(data, encoded);
        encoded.as_bytes()
    }
}

/// Reused memory of [`Rules::data`].
#[derive(Debug, Default)]
pub struct Made {
    spliced: Vec<u8>,
    encoded: String,
}

impl Made {
    /// Gives back what a rare giant took.
    pub fn shrink(&mut self, bytes: usize) {
        self.spliced.clear();
        self.spliced.shrink_to(bytes);
        self.encoded.clear();
        self.encoded.shrink_to(bytes);
    }
}
