//! A named entrance: which events it takes, which key each gets, which spool they go to.
//!
//! Place: the listeners hold `Sources`, choose one [`Source`] for a connection or a request, and have it
//! encode each event into a batch of its stream's spool. All rules of a source that concern an event are here,
//! so that socket and HTTP cannot differ. Rules beyond a key found by pointers are `rules`; a source without such rules does
//! not pay for them.
//!
//! Owner: sources never change, but for the ids that `dedupe` keeps. Each thread has its own scratch memory.
//!
//! Failure: an event that breaks a rule is a [`Reject`], which names the rule and never the event's contents. One that is
//! filtered, or a copy of an earlier one, is no failure: it is answered as success, counted, and leaves its batch as it is.
//! Absent on purpose: durability (the caller has the batch submitted and awaits what was [`Sent`]).

mod ruled;

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use self::ruled::Sent;
use self::ruled::{Given, GivenKey};
use crate::config::{AmplitudeConfig, KeyFallback, MParticleConfig, Secret, SizeLimits, SourceConfig, SourceKind};
use crate::event::KeyHash;
use crate::host::{Entropy, Host};
use crate::ingest::pointer::{PointerError, Pointers, Scratch};
use crate::ingest::rules;
use crate::ingest::rules::add::Facts;
use crate::ingest::rules::dedupe::{Dedupe, IDS_MAX, take_waits};
use crate::ingest::rules::key::is_entry;
use crate::ingest::segment;
use crate::limits::{EVENT_BYTES_MAX, KEY_BYTES_MAX, KEY_CHARS_MAX};
use crate::metrics::Limit;
use crate::spool::{Batch, Closed, Permit, SpoolHandle, Tenant};

/// Why an event was refused at the door. Closed: its labels are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Over the source's `max_event_bytes`.
    TooLarge,
    /// Over what the stream is known to take.
    OverStream,
    /// A key was given explicitly, and it is empty.
    EmptyKey,
    /// More than 256 Unicode characters.
    KeyTooLong,
    /// A key was given as bytes that are not UTF-8.
    KeyNotUtf8,
    /// Not one JSON text, where the source's pointers must be resolved.
    NotJson,
    /// Not what the source's kind of client sends.
    Malformed,
    /// No pointer found a key, and the source has `partition_key_fallback = "reject"`.
    NoKey,
    /// A frame was cut short, or its length lies.
    BadFrame,
    /// Not an event as the vendor's API defines one.
    NotValid,
    /// There is no room for it, and `spool.on_full` is to refuse.
    Full(Limit),
}

impl Reject {
    /// Value of the `reason` metric label; the first word of the reason that a client gets.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLarge | Self::OverStream => "too_large",
            Self::EmptyKey => "empty_key",
            Self::KeyTooLong => "key_too_long",
            Self::KeyNotUtf8 => "key_not_utf8",
            Self::NotJson => "not_json",
            Self::Malformed => "malformed",
            Self::NoKey => "no_key",
            Self::BadFrame => "bad_frame",
            Self::NotValid => "not_valid",
            Self::Full(_) => "full",
        }
    }

    /// What happened and what is allowed, for people. Holds nothing of the event.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::TooLarge => "the event is larger than the source's max_event_bytes",
            Self::OverStream => {
                "the event is larger than its stream is known to take (MaxRecordSizeInKiB, which Kinesis tells where \
                 kinesis:DescribeStreamSummary is allowed and UpdateMaxRecordSize raises)"
            }
            Self::EmptyKey => "the partition key is empty; it must have 1 to 256 characters",
            Self::KeyTooLong => "the partition key has more than 256 characters",
            Self::KeyNotUtf8 => "the partition key is not UTF-8",
            Self::NotJson => "the event is not JSON, which the source needs to find its partition key",
            Self::Malformed => "the event is not of the form that the source's kind has",
            Self::NoKey => "no entry of the source's partition_key finds a non-empty string or a number in the event",
            Self::BadFrame => "the frame is cut short or its length is wrong",
            Self::NotValid => "the event lacks what the vendor's API demands of one",
            Self::Full(limit) => limit.sentence(),
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.label(), self.sentence())
    }
}

/// `key` is one of these. No early end: neither the position of the first difference nor which key came close can be timed.
pub(super) fn is_one_of(keys: &[Secret], key: &str) -> bool {
    keys.iter().fold(false, |known, secret| known | same_bytes(secret.0.as_bytes(), key.as_bytes()))
}

/// One entrance, bound to its stream's spool. Shared by all connections.
#[derive(Debug)]
pub struct Source {
    kind: SourceKind,
    /// Name or ARN.
    stream: String,
    data_bytes_max: usize,
    keys: Vec<Secret>,
    /// Id and secret.
    access_keys: Vec<(String, Secret)>,
    host: Host,
    rule: KeyRule,
    /// What there is beside [`KeyRule`], whose pointers then are among these.
    rules: Option<Box<rules::Rules>>,
    dedupe: Option<Arc<Dedupe>>,
    limits: SizeLimits,
    spool: SpoolHandle,
    amplitude: AmplitudeConfig,
    mparticle: MParticleConfig,
    segment: segment::Rules,
    /// The source as its spool knows it: name and quota.
    tenant: Tenant,
}

impl Source {
    /// Compiles a source's rules.
    ///
    /// # Errors
    /// A JSON pointer that RFC 6901 does not allow.
    pub fn new(config: &SourceConfig, spool: SpoolHandle, host: &Host) -> Result<Self, PointerError> {
        let tenant = spool.register(&config.name, config.spool_quota);
        let window = config.rules.dedupe;
        let usage = || Arc::clone(tenant.usage());
        let dedupe = (!window.is_zero()).then(|| Dedupe::new(window, usage(), Arc::clone(&host.clock), IDS_MAX));
        Self::made(config, spool, host, tenant, dedupe)
    }

    /// The same source with other rules, keys and vendor's settings: what it has in the spool and the ids it remembers stay its
    /// own. Name, stream, quota and `dedupe` of `config` must be what they were.
    ///
    /// # Errors
    /// As [`Source::new`].
    pub fn renewed(&self, config: &SourceConfig) -> Result<Self, PointerError> {
        Self::made(config, self.spool.clone(), &self.host, self.tenant.clone(), self.dedupe.clone())
    }

    fn made(
        config: &SourceConfig,
        spool: SpoolHandle,
        host: &Host,
        tenant: Tenant,
        dedupe: Option<Arc<Dedupe>>,
    ) -> Result<Self, PointerError> {
        let rules = rules::Rules::compile(config, &Facts::of(&config.name))?.map(Box::new);
        // Whatever is no entry of any form is an error here; entries of the other forms are in `rules`.
        let own = |entry: &&String| rules.is_none() || !is_entry(entry);
        let pointers: Vec<&String> = config.partition_key.iter().filter(own).collect();
        let pointers = Pointers::compile(&pointers)?;
        Ok(Self {
            kind: config.kind,
            stream: config.stream.clone(),
            data_bytes_max: config.max_event_bytes,
            keys: config.keys.clone(),
            access_keys: config.access_keys.iter().filter_map(access_key).collect(),
            host: host.clone(),
            rule: KeyRule { pointers, fallback: config.partition_key_fallback, entropy: Arc::clone(&host.entropy) },
            rules,
            dedupe,
            limits: config.rules.limits,
            tenant,
            segment: segment::Rules::new(&config.segment, host),
            spool,
            amplitude: config.amplitude.clone(),
            mparticle: config.mparticle.clone(),
        })
    }

    /// Has the ids that `dedupe` keeps survive this process: they are noted below the directory of the stream's spool. Does
    /// nothing for a source without `dedupe`.
    #[must_use]
    pub fn with_ids_in(self, host: &Host, spool_dir: &Path) -> Self {
        if let Some(dedupe) = &self.dedupe {
            dedupe.keep_in(host, spool_dir, IDS_MAX);
        }
        self
    }

    /// As configured.
    #[must_use]
    pub fn name(&self) -> &str {
        self.tenant.name()
    }

    /// What it speaks.
    #[must_use]
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// What its configuration says for Amplitude's door.
    #[must_use]
    pub fn amplitude(&self) -> &AmplitudeConfig {
        &self.amplitude
    }

    /// What its configuration says for mParticle's door.
    #[must_use]
    pub fn mparticle(&self) -> &MParticleConfig {
        &self.mparticle
    }

    /// Its stream as configured: name or ARN.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The machine.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Requests must be signed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        !self.access_keys.is_empty()
    }

    /// The secret of one of its access keys.
    #[must_use]
    pub fn secret_of(&self, id: &str) -> Option<&Secret> {
        self.access_keys.iter().find(|(known, _)| known == id).map(|(_, secret)| secret)
    }

    /// What its configuration says for Segment's door.
    #[must_use]
    pub fn segment(&self) -> &segment::Rules {
        &self.segment
    }

    /// Largest event data that it takes by its configuration, in bytes. Over [`EVENT_BYTES_MAX`] the stream has its say.
    #[must_use]
    pub fn data_bytes_max(&self) -> usize {
        self.data_bytes_max
    }

    /// Whose limits on the sizes of events and requests its door keeps.
    #[must_use]
    pub fn limits(&self) -> SizeLimits {
        self.limits
    }

    /// The most bytes that an event of `bytes` takes once its source's rules have been applied.
    #[must_use]
    pub fn grown(&self, bytes: usize) -> usize {
        self.rules.as_ref().map_or(bytes, |rules| rules.grown(bytes))
    }

    /// Some events take more bytes than they came with.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.grow())
    }

    /// Where its events go.
    #[must_use]
    pub fn spool(&self) -> &SpoolHandle {
        &self.spool
    }

    /// Whoever reaches the listener may send.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// `key` is one of the source's write keys. Takes the same time for every wrong key of one length.
    #[must_use]
    pub fn knows_key(&self, key: &str) -> bool {
        is_one_of(&self.keys, key)
    }

    /// Whether an event of that many bytes is taken, before it is encoded.
    ///
    /// # Errors
    /// [`Reject::TooLarge`] or [`Reject::OverStream`].
    pub fn judge_size(&self, bytes: usize) -> Result<(), Reject> {
        if bytes > self.data_bytes_max {
            Err(Reject::TooLarge)
        } else if bytes > EVENT_BYTES_MAX && bytes > self.spool.shared().metrics.event_bytes_max() {
            Err(Reject::OverStream)
        } else {
            Ok(())
        }
    }

    /// Appends one event to `batch`, with the key that the source's `partition_key` or its fallback choose; or leaves it out,
    /// because it is filtered or was stored before.
    ///
    /// # Errors
    /// The rule that the event breaks; `batch` is then unchanged. The caller counts it ([`Source::count_rejected`]).
    pub fn encode(&self, event: &[u8], batch: &mut Batch) -> Result<(), Reject> {
        self.judge_size(event.len())?;
        if let Some(rules) = &self.rules {
            return self.encode_by_rules(rules, &Given { key: GivenKey::None, ..Given::of(event) }, batch);
        }
        self.rule.choose(event, |key| batch.push(key, None, event))
    }

    /// Appends one event under the key that its frame or request names; the event can then be any bytes.
    ///
    /// # Errors
    /// As [`Source::encode`].
    pub fn encode_keyed(&self, key: &[u8], event: &[u8], batch: &mut Batch) -> Result<(), Reject> {
        self.judge_size(event.len())?;
        let key = std::str::from_utf8(key).map_err(|_| Reject::KeyNotUtf8)?;
        check_key(key)?;
        if let Some(rules) = &self.rules {
            return self.encode_by_rules(rules, &Given { key: GivenKey::Named(key), ..Given::of(event) }, batch);
        }
        batch.push(key, None, event);
        Ok(())
    }

    /// Appends one event that a vendor's door made of what it was sent. A `partition_key` that the source's configuration names
    /// goes before the vendor's rule for the key. A key of more than 256 characters becomes its SHA-256 in hexadecimal digits: vendors take
    /// such ids, and one of them must not cost a whole request.
    ///
    /// # Errors
    /// As [`Source::encode`].
    pub fn encode_made(&self, made: &Made<'_>, batch: &mut Batch) -> Result<(), Reject> {
        self.judge_size(made.data.len())?;
        if let Some(rules) = &self.rules {
            let by_vendor = (!made.key.is_empty()).then_some(made.key);
            let Made { hash, data, event_type, id, .. } = *made;
            let given = Given { data, key: GivenKey::Vendor(by_vendor), hash, event_type, id };
            return self.encode_by_rules(rules, &given, batch);
        }
        let mut take = |key: &str| batch.push(key, made.hash, made.data);
        let by_vendor = (!made.key.is_empty()).then_some(made.key);
        self.rule.choose_made(made.data, by_vendor, |key| match check_key(key) {
            Ok(()) => take(key),
            Err(_) => take(&short_key(key)),
        })
    }

    /// Hands a batch of this source's events to the commit thread ([`SpoolHandle::submit`]).
    pub fn submit(&self, mut batch: Batch, permit: Permit) -> Sent {
        let waits = if self.dedupe.is_some() { take_waits(&mut batch) } else { Vec::new() };
        Sent { receipt: self.spool.submit(batch, permit), waits }
    }

    /// Waits until `bytes` may be taken in: for memory, and, unless the policy is to refuse, for the source's quota.
    ///
    /// # Errors
    /// [`Closed`] when the spool takes nothing more.
    pub async fn admit(&self, bytes: usize) -> Result<Permit, Closed> {
        self.spool.admit_source(&self.tenant, bytes).await
    }

    /// An empty batch for events of this source.
    #[must_use]
    pub fn batch(&self) -> Batch {
        self.spool.batch_of(&self.tenant)
    }

    /// Why there is no room for its events at present, if there is none.
    #[must_use]
    pub fn full(&self) -> Option<Limit> {
        self.spool.full_for(&self.tenant)
    }

    /// The same, where the policy is to refuse what has no room. Ask once for each batch.
    #[must_use]
    pub fn refuses(&self) -> Option<Limit> {
        self.spool.refuses(&self.tenant)
    }

    /// Counts refused events in the stream's metrics.
    pub fn count_rejected(&self, reject: Reject, events: u64) {
        match reject {
            Reject::Full(limit) => self.spool.count_full(&self.tenant, limit, events),
            _ => self.spool.count_rejected(self.name(), reject.label(), events),
        }
    }
}

/// An event as a vendor's door made it.
#[derive(Clone, Copy, Debug)]
pub struct Made<'m> {
    /// The partition key by the vendor's rule; empty where that finds none.
    pub key: &'m str,
    /// An explicit hash key, where the client gave one.
    pub hash: Option<KeyHash>,
    /// What the record is to hold.
    pub data: &'m [u8],
    /// Its type, by which `allow` and `deny` may name it; `None` where the vendor's events have none.
    pub event_type: Option<&'m str>,
    /// By which a copy of it is known (`dedupe`), together with the source; `None`: there may be copies.
    pub id: Option<&'m str>,
}

/// Id and secret of `ID:SECRET`, as the configuration has checked that it is.
fn access_key(pair: &Secret) -> Option<(String, Secret)> {
    pair.0.split_once(':').map(|(id, secret)| (id.to_owned(), Secret(secret.to_owned())))
}

/// A key that is too long, shortened so that equal ones stay equal.
fn short_key(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        text.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
        text
    })
}

/// Time depends on the lengths only.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

/// A partition key as Kinesis takes it.
///
/// # Errors
/// [`Reject::EmptyKey`] or [`Reject::KeyTooLong`].
pub fn check_key(key: &str) -> Result<(), Reject> {
    if key.is_empty() {
        Err(Reject::EmptyKey)
    } else if key.len() <= KEY_CHARS_MAX || (key.len() <= KEY_BYTES_MAX && key.chars().count() <= KEY_CHARS_MAX) {
        Ok(())
    } else {
        Err(Reject::KeyTooLong)
    }
}

/// How a source chooses an event's key.
#[derive(Debug)]
struct KeyRule {
    pointers: Pointers,
    fallback: KeyFallback,
    entropy: Arc<dyn Entropy>,
}

impl KeyRule {
    /// Hands the event's key to `take`.
    fn choose<R>(&self, event: &[u8], take: impl FnOnce(&str) -> R) -> Result<R, Reject> {
        SCRATCH.with_borrow_mut(|scratch| {
            let found = if self.pointers.is_empty() {
                None
            } else {
                match self.pointers.find(event, scratch) {
                    Ok(found) => found,
                    // Whoever takes events without a key takes those that cannot have one.
                    Err(_) if self.fallback == KeyFallback::Random => None,
                    Err(_) => return Err(Reject::NotJson),
                }
            };
            match (found, self.fallback) {
                (Some(key), _) => {
                    check_key(key)?;
                    Ok(take(key))
                }
                (None, _) => self.fall_back(take),
            }
        })
    }

    /// The same for an event whose vendor has a rule of its own, which found `by_vendor`. The key may be too long.
    fn choose_made<R>(&self, event: &[u8], by_vendor: Option<&str>, take: impl FnOnce(&str) -> R) -> Result<R, Reject> {
        SCRATCH.with_borrow_mut(|scratch| {
            let found = if self.pointers.is_empty() { None } else { self.pointers.find(event, scratch).unwrap_or(None) };
            match found.or(by_vendor) {
                Some(key) => Ok(take(key)),
                None => self.fall_back(take),
            }
        })
    }

    /// Without any key.
    fn fall_back<R>(&self, take: impl FnOnce(&str) -> R) -> Result<R, Reject> {
        match self.fallback {
            KeyFallback::Random => {
                let text = self.random();
                let key = std::str::from_utf8(&text).expect("hex digits are ASCII");
                Ok(take(key))
            }
            KeyFallback::Reject => Err(Reject::NoKey),
        }
    }

    /// A random key. Spread is all that is asked of it, not identity: 32 bits, so that it costs few bytes.
    fn random(&self) -> [u8; 8] {
        hex(self.entropy.next_u64() as u32)
    }
}

fn hex(number: u32) -> [u8; 8] {
    std::array::from_fn(|at| b"0123456789abcdef"[(number >> (28 - 4 * at)) as usize & 15])
}

thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default()));

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pointers: &[&str], fallback: KeyFallback) -> KeyRule {
        KeyRule { pointers: Pointers::compile(pointers).unwrap(), fallback, entropy: Host::real().entropy }
    }

    fn key(rule: &KeyRule, event: &[u8]) -> Result<String, Reject> {
        rule.choose(event, str::to_owned)
    }

    #[test]
    fn without_pointers_any_bytes_get_a_random_key() {
        let rule = rule(&[], KeyFallback::Random);
        let keys: std::collections::BTreeSet<String> = (0..64).map(|_| key(&rule, b"\xff\0").unwrap()).collect();
        assert!(keys.len() > 60);
        assert!(keys.iter().all(|key| key.len() == 8 && key.bytes().all(|byte| byte.is_ascii_hexdigit())));
    }

    #[test]
    fn an_event_that_is_not_json_is_rejected_where_its_key_must_be_found_and_gets_a_random_one_elsewhere() {
        for event in [&b"a line of a shell"[..], b"\xff\0", b"{\"userId\":"] {
            assert_eq!(key(&rule(&["/userId"], KeyFallback::Reject), event), Err(Reject::NotJson));
            assert_eq!(key(&rule(&["/userId"], KeyFallback::Random), event).unwrap().len(), 8);
        }
    }

    #[test]
    fn the_fallback_decides_where_no_pointer_has_a_hit() {
        assert_eq!(key(&rule(&["/userId"], KeyFallback::Reject), b"{}"), Err(Reject::NoKey));
        assert_eq!(key(&rule(&["/userId"], KeyFallback::Random), b"{}").unwrap().len(), 8);
        assert_eq!(key(&rule(&["/userId"], KeyFallback::Reject), br#"{"userId":7}"#).unwrap(), "7");
    }

    #[test]
    fn a_key_has_1_to_256_characters_not_bytes() {
        assert_eq!(check_key(""), Err(Reject::EmptyKey));
        assert_eq!(check_key(&"𝄞".repeat(256)), Ok(()));
        assert_eq!(check_key(&"𝄞".repeat(257)), Err(Reject::KeyTooLong));
        assert_eq!(check_key(&"a".repeat(257)), Err(Reject::KeyTooLong));
        let event = format!(r#"{{"userId":"{}"}}"#, "a".repeat(257));
        assert_eq!(key(&rule(&["/userId"], KeyFallback::Random), event.as_bytes()), Err(Reject::KeyTooLong));
    }

    #[test]
    fn a_vendors_key_gives_way_to_pointers_that_are_configured_and_the_fallback_comes_last() {
        let made = |rule: &KeyRule, by_vendor: Option<&str>| rule.choose_made(br#"{"id":"p"}"#, by_vendor, str::to_owned);
        assert_eq!(made(&rule(&["/id"], KeyFallback::Reject), Some("v")).unwrap(), "p");
        assert_eq!(made(&rule(&["/no"], KeyFallback::Reject), Some("v")).unwrap(), "v");
        assert_eq!(made(&rule(&[], KeyFallback::Reject), Some("v")).unwrap(), "v");
        assert_eq!(made(&rule(&[], KeyFallback::Reject), None), Err(Reject::NoKey));
        assert_eq!(made(&rule(&[], KeyFallback::Random), None).unwrap().len(), 8);
    }

    #[test]
    fn a_key_that_is_too_long_becomes_its_sha_256() {
        // printf 'abc' | sha256sum
        assert_eq!(short_key("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(check_key(&short_key(&"a".repeat(300))), Ok(()));
    }

    #[test]
    fn equal_bytes_are_told_from_different_ones() {
        assert!(same_bytes(b"secret", b"secret"));
        assert!(!same_bytes(b"secret", b"secreT"));
        assert!(!same_bytes(b"secret", b"secre"));
        assert!(same_bytes(b"", b""));
    }

    #[test]
    fn reject_labels_are_distinct_words() {
        let all = [
            Reject::TooLarge,
            Reject::EmptyKey,
            Reject::KeyTooLong,
            Reject::KeyNotUtf8,
            Reject::NotJson,
            Reject::Malformed,
            Reject::NoKey,
            Reject::BadFrame,
            Reject::NotValid,
        ];
        let labels: std::collections::BTreeSet<&str> = all.iter().map(|reject| reject.label()).collect();
        assert_eq!(labels.len(), all.len());
        assert!(all.iter().all(|reject| !reject.to_string().contains('\n')));
    }
}
