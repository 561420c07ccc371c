//! Gathers what was given: the file, then the environment over it, then the flags over both.
//!
//! Place: first step of `load`. Takes text apart and sorts every value under a known key, with its origin; what
//! is no known key becomes a problem that names the nearest one. Hands [`Given`] to `resolve`, which reads the
//! values. Nothing here looks at what a value says.
//!
//! Failure: a file that is no TOML is told with line and column, all such places at once, and then nothing else
//! of the file is used. The file's text never stands in a message: it may hold secrets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Override;
use super::env::Environment;
use super::errors::{Origin, Problem, nearest};
use super::schema::{Key, SectionKind};

/// What every variable of ours begins with.
pub const ENV_PREFIX: &str = "FOREBAY_";

/// Variables that the command line reads itself.
const ENV_OF_FLAGS: [&str; 4] = ["CONFIG", "LOG_FORMAT", "LOG_LEVEL", "WRITE_KEY"];

/// Streams or sources in one configuration, at most: each has its own spool, tasks and memory.
const REPEATS_MAX: usize = 256;

/// A value as somebody gave it, not read yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Raw>),
    /// A kind of value that no key takes, by TOML's name for it.
    Other(&'static str),
}

impl Raw {
    /// As it would stand in a file.
    pub(crate) fn show(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::Bool(yes) => yes.to_string(),
            Self::List(items) => format!("[{}]", items.iter().map(Self::show).collect::<Vec<_>>().join(", ")),
            Self::Other(what) => format!("a {what}"),
        }
    }
}

/// The winning value of one key.
#[derive(Clone, Debug)]
pub(crate) struct GivenValue {
    pub raw: Raw,
    pub origin: Origin,
}

/// One table: what was given of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct GivenSection(pub BTreeMap<&'static str, GivenValue>);

impl GivenSection {
    /// Keeps the value unless one that wins over it is there.
    pub(crate) fn give(&mut self, key: &'static Key, raw: Raw, origin: Origin) {
        let loses = self.0.get(key.name).is_some_and(|held| held.origin.rank() > origin.rank());
        if !loses {
            self.0.insert(key.name, GivenValue { raw, origin });
        }
    }
}

/// All that was given, by section and, where sections repeat, by index.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    sections: BTreeMap<(SectionKind, usize), GivenSection>,
    pub problems: Vec<Problem>,
}

impl Given {
    /// One section; made empty where nothing was given.
    pub(crate) fn section(&mut self, kind: SectionKind, index: usize) -> &mut GivenSection {
        self.sections.entry((kind, index)).or_default()
    }

    /// How many of a repeating section there are.
    pub(crate) fn count(&self, kind: SectionKind) -> usize {
        self.sections.keys().filter(|(held, _)| *held == kind).map(|(_, index)| index + 1).max().unwrap_or(0)
    }

    /// Reads the file's text into the lowest layer.
    pub(crate) fn file(&mut self, path: &Path, text: &str) {
        let (document, mut errors) = DeTable::parse_recoverable(text);
        errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            let (line, column) = line_and_column(text, at);
            let place = format!("{}, line {line}, column {column}", path.display());
            self.problems.push(Problem::new(place, format!("not TOML: {}", error.message())));
        }
        if !errors.is_empty() {
            return;
        }
        let file = FileText { path, text };
        for (name, value) in document.get_ref() {
            let section = SectionKind::ALL[1..].iter().find(|section| section.name() == name.get_ref().as_ref());
            match (section, value.get_ref()) {
                (Some(section), DeValue::Table(table)) if !section.repeats() => self.file_section(&file, *section, 0, table),
                (Some(section), DeValue::Array(tables)) if section.repeats() => {
                    for (index, table) in tables.iter().enumerate().take(REPEATS_MAX) {
                        match table.get_ref() {
                            // Named even when empty, so that its missing keys are told.
                            DeValue::Table(table) => self.file_section(&file, *section, index, table),
                            _ => self.wrong_shape(&file, *section, name),
                        }
                    }
                    if tables.len() > REPEATS_MAX {
                        let wrong = format!("{} of them; at most {REPEATS_MAX} are possible", tables.len());
                        self.problems.push(Problem::new(section.name(), wrong).origin(&file.origin(name)));
                    }
                }
                (Some(section), _) => self.wrong_shape(&file, *section, name),
                (None, _) => self.file_value(&file, SectionKind::Root, 0, name, value),
            }
        }
    }

    fn file_section(&mut self, file: &FileText<'_>, section: SectionKind, index: usize, table: &DeTable<'_>) {
        self.section(section, index);
        for (name, value) in table {
            self.file_value(file, section, index, name, value);
        }
    }

    fn file_value(
        &mut self,
        file: &FileText<'_>,
        section: SectionKind,
        index: usize,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) {
        match section.key(name.get_ref()) {
            Some(key) => self.section(section, index).give(key, raw(value.get_ref()), file.origin(name)),
            None => {
                let path = place(section, index, name.get_ref());
                let what =
                    if section == SectionKind::Root && value.get_ref().is_table() { "unknown table" } else { "unknown key" };
                let near = near_key(section, index, name.get_ref());
                self.problems.push(Problem::new(path, what).origin(&file.origin(name)).nearest(near));
            }
        }
    }

    fn wrong_shape(&mut self, file: &FileText<'_>, section: SectionKind, name: &Spanned<std::borrow::Cow<'_, str>>) {
        let header = if section.repeats() { format!("[[{}]]", section.name()) } else { format!("[{}]", section.name()) };
        let wrong = format!("this is a table: write {header} on a line of its own, its keys below");
        self.problems.push(Problem::new(section.name(), wrong).origin(&file.origin(name)));
    }

    /// Reads all variables that begin with [`ENV_PREFIX`] and name a key.
    ///
    /// One without `__` that resembles no key is left alone: `${...}` may use it, and Kubernetes puts
    /// `FOREBAY_SERVICE_HOST` and its like into every container beside a service of that name.
    pub(crate) fn environment(&mut self, env: &dyn Environment) {
        for variable in env.names(ENV_PREFIX) {
            let name = &variable[ENV_PREFIX.len()..];
            if ENV_OF_FLAGS.contains(&name) {
                continue;
            }
            let origin = Origin::Env(variable.clone());
            match (env_key(name), env.var(&variable)) {
                (Some((section, index, _)), _) if index >= REPEATS_MAX => {
                    let wrong = format!("the index {index} of {} is above {}", section.name(), REPEATS_MAX - 1);
                    self.problems.push(Problem::new(variable, wrong));
                }
                (Some((section, index, key)), Ok(value)) => self.section(section, index).give(key, Raw::Text(value), origin),
                (Some(_), Err(_)) => self.problems.push(Problem::new(variable, "the value is not valid UTF-8")),
                (None, _) => {
                    let known = env_names(name);
                    let near = nearest(name, known.iter().map(String::as_str));
                    // Two slips, an underscore too few counted as none.
                    let close = near
                        .is_some_and(|near| strsim::damerau_levenshtein(&name.replace("__", "_"), &near.replace("__", "_")) <= 2);
                    if close || name.contains("__") {
                        let near = near.map(|near| format!("{ENV_PREFIX}{near}"));
                        self.problems.push(Problem::new(variable, "unknown variable").nearest(near));
                    }
                }
            }
        }
    }

    /// Puts the flags over all else. Stream flags are about the only stream; with several they are a problem.
    pub(crate) fn flags(&mut self, flags: &[Override]) {
        let streams = self.count(SectionKind::Stream);
        for flag in flags {
            let Some(key) = flag.section.key(flag.key) else {
                unreachable!("the command line offers {}, which is no key", flag.flag);
            };
            if flag.section == SectionKind::Stream && streams > 1 {
                let wrong = format!("works with one stream, and the configuration has {streams}; change it there");
                self.problems.push(Problem::new(flag.flag, wrong).given(format!("{:?}", flag.value)));
                continue;
            }
            self.section(flag.section, 0).give(key, Raw::Text(flag.value.clone()), Origin::Flag(flag.flag));
        }
    }

    /// Tells of every index that is missing below one that was given (through the environment).
    pub(crate) fn gaps(&mut self) {
        for kind in [SectionKind::Stream, SectionKind::Source] {
            let missing: Vec<usize> =
                (0..self.count(kind)).filter(|index| !self.sections.contains_key(&(kind, *index))).collect();
            for index in missing {
                let wrong = "missing, while a later one was given; indexes count from 0 without gaps, after those in the file";
                self.problems.push(Problem::new(format!("{}[{index}]", kind.name()), wrong));
                self.sections.insert((kind, index), GivenSection::default());
            }
        }
    }
}

/// Where in which file.
struct FileText<'a> {
    path: &'a Path,
    text: &'a str,
}

impl FileText<'_> {
    fn origin<T>(&self, at: &Spanned<T>) -> Origin {
        Origin::File(self.path.to_path_buf(), line_and_column(self.text, at.span().start).0)
    }
}

/// `stream[0].linger`, `spool.dir`, `drain_timeout`.
pub(crate) fn place(section: SectionKind, index: usize, key: &str) -> String {
    match section {
        SectionKind::Root => key.to_owned(),
        _ if section.repeats() => format!("{}[{index}].{key}", section.name()),
        _ => format!("{}.{key}", section.name()),
    }
}

/// The same key's environment variable.
#[must_use]
pub fn env_name(section: SectionKind, index: usize, key: &str) -> String {
    let mut name = String::from(ENV_PREFIX);
    if section != SectionKind::Root {
        name.push_str(&section.name().to_ascii_uppercase());
        name.push_str("__");
    }
    if section.repeats() {
        // Writing into a String does not fail.
        write!(name, "{index}__").expect("a String takes all");
    }
    name.push_str(&key.to_ascii_uppercase());
    name
}

/// The key that a variable (without the prefix) names.
fn env_key(name: &str) -> Option<(SectionKind, usize, &'static Key)> {
    if name != name.to_ascii_uppercase() {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split("__").collect();
    let (section, index, key) = match parts[..] {
        [key] => ("", 0, key),
        [section, key] => (section, 0, key),
        [section, index, key] => (section, index.parse().ok()?, key),
        _ => return None,
    };
    let section = SectionKind::ALL.into_iter().find(|kind| kind.name() == section)?;
    if section.repeats() != (parts.len() == 3) {
        return None;
    }
    Some((section, index, section.key(key)?))
}

/// All variables there are, without the prefix, with the index that `like` carries.
fn env_names(like: &str) -> Vec<String> {
    let index = like.split("__").nth(1).and_then(|index| index.parse().ok()).unwrap_or(0);
    let names = SectionKind::ALL.into_iter().flat_map(|section| section.keys().iter().map(move |key| (section, key)));
    names.map(|(section, key)| env_name(section, index, key.name)[ENV_PREFIX.len()..].to_owned()).collect()
}

/// The nearest known key: in the same section, unless the very name stands in another.
fn near_key(section: SectionKind, index: usize, name: &str) -> Option<String> {
    if let Some(other) = SectionKind::ALL.into_iter().find(|other| other.key(name).is_some()) {
        return Some(place(other, 0, name));
    }
    let mut names: Vec<&str> = section.keys().iter().map(|key| key.name).collect();
    if section == SectionKind::Root {
        names.extend(SectionKind::ALL[1..].iter().map(|section| section.name()));
    }
    let near = nearest(name, names)?;
    Some(match SectionKind::ALL[1..].iter().find(|table| section == SectionKind::Root && table.name() == near) {
        Some(table) if table.repeats() => format!("[[{near}]]"),
        Some(_) => format!("[{near}]"),
        None => place(section, index, near),
    })
}

pub(crate) fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Raw::Other("number beyond 64 bits"), Raw::Integer)
        }
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(_) => Raw::Other("number with a point"),
        DeValue::Boolean(yes) => Raw::Bool(*yes),
        DeValue::Datetime(_) => Raw::Other("date"),
        DeValue::Table(_) => Raw::Other("table"),
    }
}

/// From 1, of a byte offset.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    (memchr::memchr_iter(b'\n', before).count() + 1, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}
