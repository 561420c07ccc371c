//! What is wrong with a configuration, said so that a person can mend it: all of it, in one report.
//!
//! Place: made by every other file of this module, shown by `main`, exit code 78. Each problem names the place,
//! the value, where it was given, what is allowed and, for a misspelt name, the nearest known one. Values of
//! secret keys never stand in it; neither do values that came out of `${...}` (the text before is shown).

use std::fmt;
use std::path::PathBuf;

/// Where a value in force came from. Later ones win over earlier ones, except `Dev` and `Derived`, which only fill gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// `--dev` chose it, because nobody gave it.
    Dev,
    /// It follows from the key named here.
    Derived(String),
    /// The configuration file and the line in it, from 1.
    File(PathBuf, usize),
    /// The environment variable of this name.
    Env(String),
    /// The flag of this name, with its dashes.
    Flag(&'static str),
}

impl Origin {
    /// Which of two given values wins: the higher.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::Default | Self::Dev | Self::Derived(_) => 0,
            Self::File(..) => 1,
            Self::Env(_) => 2,
            Self::Flag(_) => 3,
        }
    }

    /// One word for machines: `default`, `dev`, `derived`, `file`, `env`, `flag`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Dev => "dev",
            Self::Derived(_) => "derived",
            Self::File(..) => "file",
            Self::Env(_) => "env",
            Self::Flag(_) => "flag",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Dev => f.write_str("chosen by --dev"),
            Self::Derived(from) => write!(f, "from {from}"),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Env(name) => write!(f, "environment, {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key path, such as `stream[0].linger`, or the file or variable at fault.
    pub place: String,
    /// The value as it was given; `***` for secrets; `None` where there is none.
    pub given: Option<String>,
    /// Where it was given.
    pub origin: Option<Origin>,
    /// What is wrong, and the remedy where it is not plain.
    pub wrong: String,
    /// What is allowed.
    pub allowed: Option<String>,
    /// The nearest known name.
    pub nearest: Option<String>,
}

impl Problem {
    /// A problem at `place`, with nothing else known yet.
    pub(crate) fn new(place: impl Into<String>, wrong: impl Into<String>) -> Self {
        Self { place: place.into(), given: None, origin: None, wrong: wrong.into(), allowed: None, nearest: None }
    }

    pub(crate) fn given(mut self, given: impl Into<String>) -> Self {
        self.given = Some(given.into());
        self
    }

    pub(crate) fn origin(mut self, origin: &Origin) -> Self {
        self.origin = Some(origin.clone());
        self
    }

    pub(crate) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    pub(crate) fn nearest(mut self, nearest: Option<String>) -> Self {
        self.nearest = nearest;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(given) = &self.given {
            write!(f, " = {given}")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, "  ({origin})")?;
        }
        write!(f, "\n      {}", self.wrong)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; the nearest known one is {nearest}")?;
        }
        if let Some(allowed) = &self.allowed {
            write!(f, "\n      allowed: {allowed}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong, in the order in which a reader meets it. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = self.0.len();
        write!(f, "the configuration has {many} error{}", if many == 1 { "" } else { "s" })?;
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "\n{:>4}. {problem}", index + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The candidate that is spelt most like `name`; `None` only without candidates.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates.into_iter().min_by_key(|candidate| {
        // Distance first; equal distances are told apart by how alike the beginnings are.
        let alike = (strsim::jaro_winkler(name, candidate) * 1e6) as u64;
        (strsim::damerau_levenshtein(name, candidate), u64::MAX - alike)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_with_the_fewest_slips() {
        let keys = ["socket", "http", "admin", "allowed_uids", "allowed_hosts"];
        assert_eq!(nearest("sokcet", keys), Some("socket"));
        assert_eq!(nearest("allowed_host", keys), Some("allowed_hosts"));
        assert_eq!(nearest("htpp", keys), Some("http"));
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_report_holds_every_part_of_every_problem() {
        let one = Problem::new("stream[0].linger", "the unit is missing")
            .given("\"50\"")
            .origin(&Origin::File("/x.toml".into(), 7))
            .allowed("a time");
        let two = Problem::new("spool.max_byte", "unknown key").nearest(Some("spool.max_bytes".into()));
        let text = Problems(vec![one, two]).to_string();
        assert_eq!(
            text,
            "the configuration has 2 errors\n   1. stream[0].linger = \"50\"  (/x.toml, line 7)\n      the unit is missing\n      \
             allowed: a time\n   2. spool.max_byte\n      unknown key; the nearest known one is spool.max_bytes"
        );
    }
}
