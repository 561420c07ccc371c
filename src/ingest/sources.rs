//! All sources of an agent, and which of them a connection or a request is for.
//!
//! Place: each listener has [`LiveSources`] and takes the [`Sources`] of the moment for each connection or request; the path or the
//! hello tells the kind, a name or a write key the source. Sources never change, but that one whose stream's spool could not be
//! opened at the start is *closed* until it can be: it is known by name, kind and keys, and takes nothing. A reload puts others in
//! their place, and what has begun goes on with those that it began with. Failure: [`NoSource`], which names what there is and holds
//! no key.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::config::{Secret, SourceConfig, SourceKind, SyncClass};
use crate::host::Host;
use crate::ingest::source::{Source, is_one_of};
use crate::metrics::{StreamMetrics, locked};

/// All sources of an agent, as the listeners share them.
#[derive(Clone, Debug)]
pub struct Sources(Arc<[Arc<Place>]>);

/// A source, open or closed.
#[derive(Debug)]
pub struct Place {
    name: String,
    kind: SourceKind,
    stream: String,
    /// While it is closed.
    keys: Vec<Secret>,
    opened: OnceLock<Arc<Source>>,
    /// Of its stream: tells why it is closed.
    metrics: Arc<StreamMetrics>,
}

impl Place {
    /// One that takes events.
    #[must_use]
    pub fn open(source: Arc<Source>) -> Self {
        let (name, kind, stream) = (source.name().to_owned(), source.kind(), source.stream().to_owned());
        let metrics = Arc::clone(&source.spool().shared().metrics);
        Self { name, kind, stream, keys: Vec::new(), opened: OnceLock::from(source), metrics }
    }

    /// One whose spool is not open. `metrics` are its stream's.
    #[must_use]
    pub fn closed(config: &SourceConfig, metrics: Arc<StreamMetrics>) -> Self {
        let (name, stream) = (config.name.clone(), config.stream.clone());
        Self { name, kind: config.kind, stream, keys: config.keys.clone(), opened: OnceLock::new(), metrics }
    }

    /// It, once it is open.
    fn get(&self) -> Result<&Arc<Source>, NoSource> {
        self.opened
            .get()
            .ok_or_else(|| NoSource::Closed { stream: self.stream.clone(), reason: locked(&self.metrics.closed_reason).clone() })
    }

    /// Whoever reaches the listener may send.
    fn is_keyless(&self) -> bool {
        self.opened.get().map_or(self.keys.is_empty(), |source| source.is_open())
    }

    fn knows_key(&self, key: &str) -> bool {
        self.opened.get().map_or_else(|| is_one_of(&self.keys, key), |source| source.knows_key(key))
    }
}

/// The sources of the moment, as a reload may replace them. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct LiveSources(Arc<RwLock<Sources>>);

impl From<Sources> for LiveSources {
    fn from(sources: Sources) -> Self {
        Self(Arc::new(RwLock::new(sources)))
    }
}

impl LiveSources {
    /// Those of now.
    #[must_use]
    pub fn now(&self) -> Sources {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these.
    pub fn replace(&self, sources: Sources) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = sources;
    }
}

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
    /// Its stream's spool is not open yet: nothing can be made durable there.
    Closed {
        /// The stream.
        stream: String,
        /// Why not.
        reason: String,
    },
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
            Self::Closed { stream, reason } => {
                write!(f, "the spool of stream {stream} is not open, so nothing is taken for it; it is tried again: {reason}")
            }
        }
    }
}

impl std::error::Error for NoSource {}

impl Sources {
    /// In configured order; names are unique (the configuration sees to that).
    #[must_use]
    pub fn new(sources: impl IntoIterator<Item = Arc<Source>>) -> Self {
        Self::of(sources.into_iter().map(Place::open))
    }

    /// The same, of open and closed ones.
    #[must_use]
    pub fn of(places: impl IntoIterator<Item = Place>) -> Self {
        Self(places.into_iter().map(Arc::new).collect())
    }

    /// The same with other rules. One that is closed keeps its rules: it is opened with them, in all that share it.
    ///
    /// # Errors
    /// The first that `renew` gives.
    pub fn renewed<E>(&self, renew: impl Fn(&Arc<Source>) -> Result<Arc<Source>, E>) -> Result<Self, E> {
        let places = self.0.iter().map(|place| match place.opened.get() {
            Some(source) => renew(source).map(|source| Arc::new(Place::open(source))),
            None => Ok(Arc::clone(place)),
        });
        places.collect::<Result<_, _>>().map(Self)
    }

    /// The spool of this one's stream is open now: it takes events from here on.
    pub fn opened(&self, source: Arc<Source>) {
        if let Some(place) = self.0.iter().find(|place| place.name == source.name()) {
            place.opened.get_or_init(|| source);
        }
    }

    /// For plain events: chooses by name, else the only one, else the one that the write key belongs to; and checks the key.
    ///
    /// # Errors
    /// Why none can be had.
    pub fn choose(&self, name: Option<&str>, key: Option<&str>) -> Result<&Arc<Source>, NoSource> {
        let Some(name) = name else { return self.of_kind(SourceKind::Events, key) };
        let named = self.0.iter().find(|place| place.name == name);
        let place = named.ok_or_else(|| NoSource::Unknown { known: self.names(SourceKind::Events) })?;
        match place.kind {
            SourceKind::Events => Self::admitted(place, key),
            kind => Err(NoSource::OtherKind { kind }),
        }
    }

    /// The only source of a kind, else the one that the write key belongs to; and checks the key.
    ///
    /// # Errors
    /// Why none can be had.
    pub fn of_kind(&self, kind: SourceKind, key: Option<&str>) -> Result<&Arc<Source>, NoSource> {
        let mut all = self.places(kind);
        let first = all.next().ok_or(NoSource::NoneOfKind { kind })?;
        if all.next().is_none() {
            return Self::admitted(first, key);
        }
        if let Some(named) = key.and_then(|key| self.places(kind).find(|place| place.knows_key(key))) {
            return named.get();
        }
        // A key that some source could have known is more likely mistyped than meant for an open one.
        let keyed = self.places(kind).any(|place| !place.is_keyless());
        Err(match key {
            Some(_) if keyed => NoSource::KeyUnknown,
            _ => NoSource::Unnamed { known: self.names(kind) },
        })
    }

    /// Whoever has no good key does not learn whether it is closed.
    fn admitted<'s>(place: &'s Place, key: Option<&str>) -> Result<&'s Arc<Source>, NoSource> {
        match key {
            _ if place.is_keyless() => place.get(),
            None => Err(NoSource::KeyMissing),
            Some(key) if place.knows_key(key) => place.get(),
            Some(_) => Err(NoSource::KeyUnknown),
        }
    }

    fn places(&self, kind: SourceKind) -> impl Iterator<Item = &Place> {
        self.0.iter().map(Arc::as_ref).filter(move |place| place.kind == kind)
    }

    /// All sources of a kind that are open, in configured order.
    pub fn all_of(&self, kind: SourceKind) -> impl Iterator<Item = &Arc<Source>> {
        self.places(kind).filter_map(|place| place.opened.get())
    }

    /// The streams of those of a kind that are closed, and why.
    pub fn closed_of(&self, kind: SourceKind) -> impl Iterator<Item = (&str, NoSource)> {
        self.places(kind).filter_map(|place| Some((place.stream.as_str(), place.get().err()?)))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.0.iter().filter_map(|place| place.opened.get())
    }

    /// The machine, as the first open source knows it.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.all().next().map(|source| source.host())
    }

    /// Some source speaks it.
    #[must_use]
    pub fn speaks(&self, kind: SourceKind) -> bool {
        self.places(kind).next().is_some()
    }

    /// What a receipt of any of them means: all spools have one class.
    #[must_use]
    pub fn sync(&self) -> SyncClass {
        self.all().next().map(|source| source.spool().policy().sync).unwrap_or_default()
    }

    /// For people.
    fn names(&self, kind: SourceKind) -> String {
        let names: Vec<&str> = self.places(kind).map(|place| place.name.as_str()).collect();
        names.join(", ")
    }
}
