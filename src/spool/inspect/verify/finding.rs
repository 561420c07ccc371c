//! Something that `verify` found: where, which positions, what it means for events, and what to do.
//!
//! Place: made by `verify.rs` and `whole.rs`, printed by `forebay spool verify`; the names are an interface (`--json`).

use std::path::PathBuf;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Known or harmless.
    Note,
    /// May be nothing; cannot be decided from here.
    Warning,
    /// Wrong.
    Error,
}

/// What is wrong. The names are an interface (`--json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A segment's first 64 bytes.
    Header,
    /// A segment of another version.
    OtherVersion,
    /// A block of a compressed or encrypted file, or what tells how it lies on the disk.
    Coding,
    /// A frame's checksum or shape.
    Frame,
    /// The footer of an index.
    Footer,
    /// The directory of an index, or what it says.
    Directory,
    /// The entries of an index, or what they say.
    Entries,
    /// No index where one should be.
    NoIndex,
    /// Events behind the end of a file.
    Truncated,
    /// Bytes behind the last good frame.
    TornTail,
    /// Positions that no file has.
    Positions,
    /// The store of the marks, or what it says.
    Marks,
    /// accepted = delivered + pending + dead + expired + dropped.
    Balance,
}

/// Something found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is.
    pub kind: Kind,
    /// Where.
    pub file: PathBuf,
    /// At which byte of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Positions concerned: the first, and the one after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<[u64; 2]>,
    /// What is there.
    pub what: String,
    /// What it means for events.
    pub means: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    pub(super) fn at(&mut self, offset: u64, bytes: u64) -> &mut Self {
        (self.offset, self.bytes) = (Some(offset), (bytes > 0).then_some(bytes));
        self
    }

    pub(super) fn means(&mut self, text: &str) -> &mut Self {
        text.clone_into(&mut self.means);
        self
    }

    pub(super) fn remedy(&mut self, text: &str) -> &mut Self {
        text.clone_into(&mut self.remedy);
        self
    }
}

/// `1 event`, `2 events`.
pub(super) fn events(n: u64) -> String {
    format!("{n} event{}", if n == 1 { "" } else { "s" })
}
