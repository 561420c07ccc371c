//! Reads each value as its key's kind asks, and fills in what nobody gave.
//!
//! Place: between `layers` (what was given) and `check` (how the values fit together). Hands on [`InForce`]: for
//! every key its typed value and origin, which is also what `forebay config` prints. Here `${VAR}` is expanded
//! (in the file only: a variable's own value is taken as it is) and `*_file` keys are read.
//!
//! Failure: a value that does not fit becomes a problem and the default stands in its place, so that the rest
//! can still be judged; the section remembers the key as faulty and `check` does not judge it again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::Secret;
use super::env::{Environment, interpolate};
use super::errors::{Origin, Problem};
use super::layers::{Given, GivenSection, GivenValue, Raw, place};
use super::schema::{Fallback, Key, Kind, Rule, SectionKind};
use super::units;

/// A value, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Typed {
    /// Text, a word or a path. `None`: the key has no value.
    Text(Option<String>),
    /// Bytes.
    Bytes(u64),
    /// A time.
    Time(Duration),
    /// A number.
    Count(u64),
    /// Yes or no.
    Bool(bool),
    /// An address; `None`: off.
    Address(Option<SocketAddr>),
    /// Texts.
    Texts(Vec<String>),
    /// User ids.
    Ids(Vec<u32>),
    /// Texts that are never shown.
    Secrets(Vec<Secret>),
}

/// One key's value in force.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// Its value.
    pub value: Typed,
    /// Where that came from.
    pub origin: Origin,
}

/// One table with a value for each of its keys.
#[derive(Clone, Debug)]
pub struct Section {
    /// Which.
    pub kind: SectionKind,
    /// Its index, 0 where the table does not repeat.
    pub index: usize,
    /// In the order of the schema.
    pub settings: Vec<Setting>,
    faulty: BTreeSet<&'static str>,
}

/// Every value in force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// In the order of the file; streams and sources as often as they stand there.
    pub sections: Vec<Section>,
}

impl InForce {
    /// All sections of one kind.
    pub(crate) fn all(&self, kind: SectionKind) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }

    /// The same, to fill gaps.
    pub(crate) fn one_mut(&mut self, kind: SectionKind) -> &mut Section {
        self.sections.iter_mut().find(|section| section.kind == kind).expect("resolve makes every section that does not repeat")
    }

    /// The section of a kind that does not repeat.
    pub(crate) fn one(&self, kind: SectionKind) -> &Section {
        self.all(kind).next().expect("resolve makes every section that does not repeat")
    }
}

macro_rules! readers {
    ($($name:ident -> $type:ty: $variant:ident;)*) => {
        $(pub(crate) fn $name(&self, key: &str) -> $type {
            match &self.setting(key).value {
                Typed::$variant(value) => value.clone(),
                // The schema decides the kind; every key is read by a test (`the_example_equals_the_defaults`).
                other => unreachable!("{key} is {other:?} by the schema"),
            }
        })*
    };
}

impl Section {
    pub(crate) fn setting(&self, key: &str) -> &Setting {
        self.settings.iter().find(|setting| setting.key.name == key).expect("resolve makes a setting for each key of the schema")
    }

    readers! {
        text -> Option<String>: Text;
        bytes -> u64: Bytes;
        time -> Duration: Time;
        count -> u64: Count;
        bool -> bool: Bool;
        address -> Option<SocketAddr>: Address;
        texts -> Vec<String>: Texts;
        ids -> Vec<u32>: Ids;
        secrets -> Vec<Secret>: Secrets;
    }

    /// A word or a text that is never without a value once the configuration is good.
    pub(crate) fn word(&self, key: &str) -> String {
        self.text(key).unwrap_or_default()
    }

    /// A size that need not be given.
    pub(crate) fn bytes_if_given(&self, key: &str) -> Option<u64> {
        match &self.setting(key).value {
            Typed::Bytes(bytes) => Some(*bytes),
            _ => None,
        }
    }

    /// A share of `whole`, in bytes: what was given as a size, or as percent of it.
    pub(crate) fn share(&self, key: &str, whole: u64) -> Option<u64> {
        let text = self.text(key)?;
        match text.strip_suffix('%') {
            // `whole` is at most a PiB, so that the product fits.
            Some(percent) => percent.parse::<u64>().ok().map(|percent| whole * percent / 100),
            None => units::parse_bytes(&text).ok(),
        }
    }

    /// A time that may be off (zero); `None` where nobody said.
    pub(crate) fn time_or_off(&self, key: &str) -> Option<Duration> {
        let text = self.text(key)?;
        Some(units::parse_time(&text).unwrap_or(Duration::ZERO))
    }

    /// None of `keys` has been found faulty yet.
    pub(crate) fn sound(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.faulty.contains(key))
    }

    /// A problem about one of this section's values.
    pub(crate) fn problem(&self, key: &str, wrong: impl Into<String>) -> Problem {
        let setting = self.setting(key);
        let problem = Problem::new(place(self.kind, self.index, key), wrong);
        match &setting.value {
            Typed::Text(None) => problem,
            value => problem.given(value.to_toml()).origin(&setting.origin),
        }
    }

    /// Fills a gap that nobody filled.
    pub(crate) fn fill(&mut self, key: &'static str, value: Typed, origin: Origin) {
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.key.name == key) {
            setting.value = value;
            setting.origin = origin;
        }
    }
}

/// Types everything. Problems are added to `problems`.
pub(crate) fn resolve(given: &mut Given, env: &dyn Environment, read_secrets: bool, problems: &mut Vec<Problem>) -> InForce {
    let mut sections = Vec::new();
    for kind in SectionKind::ALL {
        let many = if kind.repeats() { given.count(kind) } else { 1 };
        for index in 0..many {
            let section = given.section(kind, index).clone();
            sections
                .push(Resolver { env, read_secrets, kind, index, given: &section, problems, faulty: BTreeSet::new() }.section());
        }
    }
    InForce { sections }
}

struct Resolver<'a> {
    env: &'a dyn Environment,
    read_secrets: bool,
    kind: SectionKind,
    index: usize,
    given: &'a GivenSection,
    problems: &'a mut Vec<Problem>,
    faulty: BTreeSet<&'static str>,
}

impl Resolver<'_> {
    fn section(mut self) -> Section {
        let mut settings: Vec<Setting> = self.kind.keys().iter().map(|key| self.setting(key)).collect();
        for key in self.kind.keys() {
            if let Kind::SecretsFile { of } = key.kind {
                self.secrets_file(key, of, &mut settings);
            }
        }
        Section { kind: self.kind, index: self.index, settings, faulty: self.faulty }
    }

    fn setting(&mut self, key: &'static Key) -> Setting {
        if let Some(given) = self.given.0.get(key.name) {
            match read(key, given, self.env) {
                Ok(value) => return Setting { key, value, origin: given.origin.clone() },
                Err(faults) => {
                    for (item, wrong) in faults {
                        let mut at = place(self.kind, self.index, key.name);
                        if let Some(item) = item {
                            at = format!("{at}[{item}]");
                        }
                        let shown = shown(key, &given.raw, item);
                        self.problems
                            .push(Problem::new(at, wrong).given(shown).origin(&given.origin).allowed(key.kind.allowed()));
                    }
                    self.faulty.insert(key.name);
                }
            }
        } else if key.fallback == Fallback::Required {
            let at = place(self.kind, self.index, key.name);
            self.problems.push(Problem::new(at, "missing").allowed(key.kind.allowed()));
            self.faulty.insert(key.name);
        }
        Setting { key, value: default(key, self.env), origin: Origin::Default }
    }

    /// `keys_file` stands for `keys`: whichever was given by the higher layer holds, both in one layer is an error.
    fn secrets_file(&mut self, file_key: &'static Key, of: &'static str, settings: &mut [Setting]) {
        let Some(file) = self.given.0.get(file_key.name) else { return };
        let at = place(self.kind, self.index, file_key.name);
        if let Some(plain) = self.given.0.get(of) {
            if plain.origin.rank() == file.origin.rank() {
                self.problems.push(
                    Problem::new(at, format!("`{of}` is given too; keep one of them"))
                        .given(file.raw.show())
                        .origin(&file.origin),
                );
                return;
            }
            if plain.origin.rank() > file.origin.rank() {
                return;
            }
        }
        let path = settings.iter().find(|setting| setting.key.name == file_key.name).map(|setting| setting.value.clone());
        let (Some(Typed::Text(Some(path))), true) = (path, self.read_secrets && !self.faulty.contains(file_key.name)) else {
            return;
        };
        let Some(Kind::Secrets(rule)) = self.kind.key(of).map(|key| key.kind) else { return };
        match read_secrets(&path, rule, self.env) {
            Ok(secrets) => {
                if let Some(setting) = settings.iter_mut().find(|setting| setting.key.name == of) {
                    setting.value = Typed::Secrets(secrets);
                    setting.origin = Origin::Derived(at);
                }
            }
            Err(faults) => {
                for wrong in faults {
                    let problem = Problem::new(at.clone(), wrong).given(file.raw.show()).origin(&file.origin);
                    self.problems.push(problem.allowed(file_key.kind.allowed()));
                }
                self.faulty.insert(file_key.name);
            }
        }
    }
}

/// The value given, for a message: never a secret, and of a list only the item at fault.
fn shown(key: &Key, raw: &Raw, item: Option<usize>) -> String {
    if key.kind.is_secret() {
        return "\"***\"".into();
    }
    match (raw, item) {
        (Raw::List(items), Some(item)) => items.get(item).unwrap_or(raw).show(),
        _ => raw.show(),
    }
}

/// The default, through the same door as a person's value.
pub(crate) fn default(key: &'static Key, env: &dyn Environment) -> Typed {
    match key.fallback {
        Fallback::Toml(text) => {
            let raw = parse_toml_value(text).expect("`every_default_is_within_its_own_range` reads them all");
            read(key, &GivenValue { raw, origin: Origin::Default }, env)
                .expect("`every_default_is_within_its_own_range` reads them all")
        }
        Fallback::Required | Fallback::Unset => Typed::Text(None),
    }
}

/// Reads one value by its key alone: what a flag is checked with, before there is a configuration.
pub(crate) fn read_flag(section: SectionKind, key: &str, text: &str) -> Result<Typed, String> {
    let key = section.key(key).ok_or_else(|| format!("{key} is no key"))?;
    let given = GivenValue { raw: Raw::Text(text.into()), origin: Origin::Flag("") };
    read(key, &given, &super::env::RealEnvironment).map_err(|faults| {
        let wrong: Vec<String> = faults.into_iter().map(|(_, wrong)| wrong).collect();
        format!("{}; allowed: {}", wrong.join(", "), key.kind.allowed())
    })
}

type Faults = Vec<(Option<usize>, String)>;

fn read(key: &Key, given: &GivenValue, env: &dyn Environment) -> Result<Typed, Faults> {
    let raw = match &given.origin {
        Origin::File(..) => expand(&given.raw, env)?,
        Origin::Env(_) | Origin::Flag(_) if key.kind.is_list() => as_list(&given.raw)?,
        _ => given.raw.clone(),
    };
    if key.kind.is_list() {
        return read_list(key.kind, &raw);
    }
    read_single(key.kind, &raw).map_err(|wrong| vec![(None, wrong)])
}

fn read_single(kind: Kind, raw: &Raw) -> Result<Typed, String> {
    match kind {
        Kind::Text(rule) => text_by(rule, raw).map(|text| Typed::Text(Some(text))),
        Kind::SecretsFile { .. } => {
            let path = text(raw)?;
            if path.is_empty() { Err("an empty path".into()) } else { Ok(Typed::Text(Some(path.into()))) }
        }
        Kind::Choice { offered } => {
            let word = text(raw)?;
            if offered.contains(&word) {
                Ok(Typed::Text(Some(word.into())))
            } else {
                let near = super::errors::nearest(word, offered.iter().copied()).unwrap_or_default();
                Err(format!("no such word; the nearest known one is {near:?}"))
            }
        }
        Kind::Address => address(text(raw)?).map(Typed::Address),
        Kind::AnyAddress => any_address(text(raw)?).map(Typed::Address),
        Kind::Bytes { min, max } => {
            let bytes = match raw {
                Raw::Integer(number) => u64::try_from(*number).map_err(|_| "below zero".to_owned())?,
                raw => units::parse_bytes(text(raw)?)?,
            };
            in_range(bytes, min, max).map(Typed::Bytes)
        }
        Kind::Time { min, max } => {
            let time = match raw {
                Raw::Integer(0) => Duration::ZERO,
                Raw::Integer(_) => return Err("the unit is missing; units are us, ms, s, m, h, d".into()),
                raw => units::parse_time(text(raw)?)?,
            };
            in_range(time, min, max).map(Typed::Time)
        }
        Kind::TimeOrOff { min, max } => match text(raw)? {
            "off" => Ok(Typed::Text(Some("off".into()))),
            time => {
                let time = in_range(units::parse_time(time)?, min, max)?;
                Ok(Typed::Text(Some(units::show_time(time))))
            }
        },
        Kind::Sync { min, max } => {
            let word = text(raw)?;
            match word.split_once(':') {
                None if matches!(word, "always" | "os") => Ok(Typed::Text(Some(word.into()))),
                None if word == "interval" => Err("the time is missing, as in \"interval:50ms\"".into()),
                Some(("interval", time)) => {
                    let time = in_range(units::parse_time(time)?, min, max)?;
                    Ok(Typed::Text(Some(format!("interval:{}", units::show_time(time)))))
                }
                _ => {
                    let near = super::errors::nearest(word, ["always", "interval:50ms", "os"]).unwrap_or_default();
                    Err(format!("no such word; the nearest known one is {near:?}"))
                }
            }
        }
        Kind::Share { .. } => {
            let bytes = match raw {
                Raw::Integer(number) => u64::try_from(*number).map_err(|_| "below zero".to_owned())?,
                raw => match text(raw)?.trim().strip_suffix('%') {
                    Some(percent) => {
                        let percent: u64 = percent.trim().parse().map_err(|_| "not whole percent".to_owned())?;
                        let percent = in_range(percent, 1, 100)?;
                        return Ok(Typed::Text(Some(format!("{percent}%"))));
                    }
                    None => units::parse_bytes(text(raw)?)?,
                },
            };
            Ok(Typed::Text(Some(units::show_bytes(bytes))))
        }
        Kind::Count { min, max } => {
            let number = match raw {
                Raw::Integer(number) => u64::try_from(*number).map_err(|_| "below zero".to_owned())?,
                raw => text(raw)?.trim().parse().map_err(|_| "not a whole number".to_owned())?,
            };
            in_range(number, min, max).map(Typed::Count)
        }
        Kind::Bool => match raw {
            Raw::Bool(yes) => Ok(Typed::Bool(*yes)),
            raw => text(raw)?.trim().parse().map(Typed::Bool).map_err(|_| "neither true nor false".to_owned()),
        },
        Kind::Texts(_) | Kind::Ids | Kind::Secrets(_) => unreachable!("lists are read by read_list"),
    }
}

fn read_list(kind: Kind, raw: &Raw) -> Result<Typed, Faults> {
    let Raw::List(items) = raw else {
        return Err(vec![(None, format!("a list is needed, {} was given", type_of(raw)))]);
    };
    match kind {
        Kind::Texts(rule) => each(items, |item| text_by(rule, item)).map(Typed::Texts),
        Kind::Secrets(rule) => each(items, |item| text_by(rule, item).map(Secret)).map(Typed::Secrets),
        Kind::Ids => each(items, |item| match item {
            Raw::Integer(id) => u32::try_from(*id).map_err(|_| "not a user id".to_owned()),
            item => text(item)?.trim().parse().map_err(|_| "not a user id".to_owned()),
        })
        .map(Typed::Ids),
        _ => unreachable!("only lists come here"),
    }
}

fn each<T>(items: &[Raw], read: impl Fn(&Raw) -> Result<T, String>) -> Result<Vec<T>, Faults> {
    let mut values = Vec::with_capacity(items.len());
    let mut faults = Vec::new();
    for (at, item) in items.iter().enumerate() {
        match read(item) {
            Ok(value) => values.push(value),
            Err(wrong) => faults.push((Some(at), wrong)),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults) }
}

/// Expands `${VAR}` in every text of the value.
fn expand(raw: &Raw, env: &dyn Environment) -> Result<Raw, Faults> {
    match raw {
        Raw::Text(text) => {
            interpolate(text, env).map(Raw::Text).map_err(|wrong| wrong.into_iter().map(|wrong| (None, wrong)).collect())
        }
        Raw::List(items) => {
            let expanded = items.iter().enumerate().map(|(at, item)| {
                expand(item, env).map_err(|faults| faults.into_iter().map(|(_, wrong)| (Some(at), wrong)).collect::<Faults>())
            });
            let mut values = Vec::new();
            let mut faults = Vec::new();
            for item in expanded {
                match item {
                    Ok(value) => values.push(value),
                    Err(more) => faults.extend(more),
                }
            }
            if faults.is_empty() { Ok(Raw::List(values)) } else { Err(faults) }
        }
        other => Ok(other.clone()),
    }
}

/// A list in a variable or flag: a TOML array, or its items between commas; empty: no item.
fn as_list(raw: &Raw) -> Result<Raw, Faults> {
    match raw {
        Raw::Text(text) if text.trim_start().starts_with('[') => {
            parse_toml_value(text).ok_or_else(|| vec![(None, "begins like a TOML array, but is none".into())])
        }
        Raw::Text(text) if text.trim().is_empty() => Ok(Raw::List(Vec::new())),
        Raw::Text(text) => Ok(Raw::List(text.split(',').map(|item| Raw::Text(item.trim().to_owned())).collect())),
        other => Ok(other.clone()),
    }
}

fn parse_toml_value(text: &str) -> Option<Raw> {
    toml::de::DeValue::parse(text).ok().map(|value| super::layers::raw(value.get_ref()))
}

fn text(raw: &Raw) -> Result<&str, String> {
    match raw {
        Raw::Text(text) => Ok(text),
        other => Err(format!("a text in quotes is needed, {} was given", type_of(other))),
    }
}

fn text_by(rule: &Rule, raw: &Raw) -> Result<String, String> {
    let text = text(raw)?;
    if (rule.holds)(text) { Ok(text.into()) } else { Err("not of the form that is needed".into()) }
}

fn type_of(raw: &Raw) -> String {
    match raw {
        Raw::Text(_) => "a text".into(),
        Raw::Integer(_) => "a whole number".into(),
        Raw::Bool(_) => "a boolean".into(),
        Raw::List(_) => "a list".into(),
        Raw::Other(what) => format!("a {what}"),
    }
}

fn in_range<T: PartialOrd>(value: T, min: T, max: T) -> Result<T, String> {
    if value < min {
        Err("too small".into())
    } else if value > max {
        Err("too large".into())
    } else {
        Ok(value)
    }
}

fn address(text: &str) -> Result<Option<SocketAddr>, String> {
    let address = any_address(text)?;
    if address.is_some_and(|address| !address.ip().is_loopback()) {
        return Err("not a loopback address; the agent speaks only with its own machine".into());
    }
    Ok(address)
}

fn any_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "not an address with a port".to_owned())
}

/// One secret a line; blank lines do not count. No line stands in a message.
fn read_secrets(path: &str, rule: &Rule, env: &dyn Environment) -> Result<Vec<Secret>, Vec<String>> {
    let text = env.read(Path::new(path)).map_err(|error| vec![format!("the file cannot be read: {error}")])?;
    let mut secrets = Vec::new();
    let mut faults = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line = line.trim();
        if (rule.holds)(line) {
            secrets.push(Secret(line.into()));
        } else {
            faults.push(format!("line {} of the file is not {}", at + 1, rule.allowed));
        }
    }
    if secrets.is_empty() && faults.is_empty() {
        // Taken for "no keys", it would open the source to everybody.
        faults.push("the file holds no key".into());
    }
    if faults.is_empty() { Ok(secrets) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::env::RealEnvironment;

    #[test]
    fn every_default_is_within_its_own_range() {
        for section in SectionKind::ALL {
            for key in section.keys() {
                default(key, &RealEnvironment);
            }
        }
    }

    #[test]
    fn only_loopback_addresses_are_taken() {
        assert_eq!(address(""), Ok(None));
        assert_eq!(address("127.0.0.1:0"), Ok(Some("127.0.0.1:0".parse().unwrap())));
        assert_eq!(address("[::1]:4710"), Ok(Some("[::1]:4710".parse().unwrap())));
        for text in ["0.0.0.0:4710", "10.0.0.1:4710", "[::]:4710"] {
            assert!(address(text).unwrap_err().contains("not a loopback address"), "{text}");
        }
        for text in ["localhost:4710", "127.0.0.1", ":4710", "127.0.0.1:70000"] {
            assert!(address(text).unwrap_err().contains("not an address"), "{text}");
            assert!(any_address(text).unwrap_err().contains("not an address"), "{text}");
        }
        assert_eq!(any_address(""), Ok(None));
        assert_eq!(any_address("0.0.0.0:4713"), Ok(Some("0.0.0.0:4713".parse().unwrap())));
    }
}
