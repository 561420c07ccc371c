//! All sources of an agent, and which of them a connection or a request is for.
//!
//! Place: each listener has [`Sources`]; the path or the hello tells the kind, a name or a write key the source. Sources never
//! change. Failure: [`NoSource`], which names what there is and holds no key.

use std::fmt;
use std::sync::Arc;

use crate::config::{SourceKind, SyncClass};
use crate::host::Host;
use crate::ingest::source::Source;

/// All sources of an agent, as the listeners share them.
#[derive(Clone, Debug)]
pub struct Sources(Arc<[Arc<Source>]>);

/// No source can be chosen for a connection or a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSource {
    /// None was named, and there are several.
    Unnamed {
        /// The names there are.
        known: String,
    },
    /// There is no source of that name.
    Unknown {
        /// The names there are.
        known: String,
    },
    /// The source of that name speaks something else.
    OtherKind {
        /// What it speaks.
        kind: SourceKind,
    },
    /// No source is of the kind that the request speaks.
    NoneOfKind {
        /// That kind.
        kind: SourceKind,
    },
    /// The source wants a write key, and none was given.
    KeyMissing,
    /// The key given is not one of its keys.
    KeyUnknown,
}

impl fmt::Display for NoSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed { known } => write!(f, "no source is named, and there are several; name one of: {known}"),
            Self::Unknown { known } => write!(f, "unknown source; known are: {known}"),
            Self::OtherKind { kind } => write!(f, "the source is of kind {:?}, which has its own paths", kind.word()),
            Self::NoneOfKind { kind } => {
                write!(f, "no source is of kind {:?}; name one: [[source]] with kind = {:?}", kind.word(), kind.word())
            }
            Self::KeyMissing => f.write_str("the source wants a write key, and none was given"),
            Self::KeyUnknown => f.write_str("unknown key"),
        }
    }
}

impl std::error::Error for NoSource {}

impl Sources {
    /// In configured order; names are unique (the configuration sees to that).
    #[must_use]
    pub fn new(sources: impl IntoIterator<Item = Arc<Source>>) -> Self {
        Self(sources.into_iter().collect())
    }

    /// For plain events: chooses by name, else the only one, else the one that the write key belongs to; and checks the key.
    ///
    /// # Errors
    /// Why none can be had.
    pub fn choose(&self, name: Option<&str>, key: Option<&str>) -> Result<&Arc<Source>, NoSource> {
        let Some(name) = name else { return self.of_kind(SourceKind::Events, key) };
        let named = self.0.iter().find(|source| source.name() == name);
        let source = named.ok_or_else(|| NoSource::Unknown { known: self.names(SourceKind::Events) })?;
        match source.kind() {
            SourceKind::Events => Self::opened(source, key),
            kind => Err(NoSource::OtherKind { kind }),
        }
    }

    /// The only source of a kind, else the one that the write key belongs to; and checks the key.
    ///
    /// # Errors
    /// Why none can be had.
    pub fn of_kind(&self, kind: SourceKind, key: Option<&str>) -> Result<&Arc<Source>, NoSource> {
        let mut all = self.all_of(kind);
        let first = all.next().ok_or(NoSource::NoneOfKind { kind })?;
        if all.next().is_none() {
            return Self::opened(first, key);
        }
        if let Some(named) = key.and_then(|key| self.all_of(kind).find(|source| source.knows_key(key))) {
            return Ok(named);
        }
        // A key that some source could have known is more likely mistyped than meant for an open one.
        let keyed = self.all_of(kind).any(|source| !source.is_open());
        Err(match key {
            Some(_) if keyed => NoSource::KeyUnknown,
            _ => NoSource::Unnamed { known: self.names(kind) },
        })
    }

    fn opened<'s>(source: &'s Arc<Source>, key: Option<&str>) -> Result<&'s Arc<Source>, NoSource> {
        match key {
            _ if source.is_open() => Ok(source),
            None => Err(NoSource::KeyMissing),
            Some(key) if source.knows_key(key) => Ok(source),
            Some(_) => Err(NoSource::KeyUnknown),
        }
    }

    /// All sources of a kind, in configured order.
    pub fn all_of(&self, kind: SourceKind) -> impl Iterator<Item = &Arc<Source>> {
        self.0.iter().filter(move |source| source.kind() == kind)
    }

    /// The machine, as the first source knows it.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.0.first().map(|source| source.host())
    }

    /// Some source speaks it.
    #[must_use]
    pub fn speaks(&self, kind: SourceKind) -> bool {
        self.all_of(kind).next().is_some()
    }

    /// What a receipt of any of them means: all spools have one class.
    #[must_use]
    pub fn sync(&self) -> SyncClass {
        self.0.first().map(|source| source.spool().policy().sync).unwrap_or_default()
    }

    /// For people.
    fn names(&self, kind: SourceKind) -> String {
        let names: Vec<&str> = self.all_of(kind).map(|source| source.name()).collect();
        names.join(", ")
    }
}
