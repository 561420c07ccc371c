//! Compression and encryption at rest: files whose content lies on the disk in blocks.
//!
//! Place: between the spool and [`Files`]. [`CodedFiles`] is a tree of files over another one; what is created in
//! `segments/` and `dead/`, where events lie, is coded as [`Coding`] says, and whatever lies there already is read as its own
//! header says. Nothing above knows: offsets, lengths and cuts are those of the content. So the spool's promises, its
//! recovery and its simulator hold for coded files as they do for plain ones, and a plain spool pays nothing.
//!
//! Layers: `keys` (where keys come from), `head` and `block` (bytes), `file` (one file).
//!
//! What it promises besides: with encryption, nothing of an event's key or data is on the disk in clear, dead letters and
//! bytes set aside included; what was changed by somebody without the key is taken for damage and never delivered. It does
//! not hide how many events there are, when, and about how large; it does not notice that a whole file, or its end, was put
//! back to an older state; and it protects nothing while the process lives, which holds the key.
//!
//! What it costs: the unit of damage is a block of up to 32 KiB instead of an event. *PAIRED*: what one program writes any
//! other with the key reads, whatever its own configuration says; so compression and keys can be changed at any start.
//!
//! Failure: a file whose key is not at hand cannot be opened ([`CodingError`]); that stops a start, and is never damage.

mod block;
mod file;
mod head;
pub mod keys;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use self::file::CodedFile;
use self::head::{FileHead, HEAD_BYTES};
pub use self::keys::{EncryptionKey, KeyError, KeyId, KeyRing, KeySource};
use crate::host::{Entropy, File, Files, Host, Space};

/// Bytes on the disk that an append of so much content adds to a coded file at most, its part of the table included. A block
/// for each 32 KiB, one for what is left, and one for a file's beginning.
#[must_use]
pub fn stored_at_most(content: u64) -> u64 {
    let besides = (block::HEADER_BYTES + block::TAG_BYTES + file::TABLE_ENTRY_BYTES) as u64;
    content + besides * (content / block::CONTENT_BYTES_MAX as u64 + 2)
}

/// The directories of a spool whose files hold events.
const CODED_DIRS: [&str; 2] = ["segments", "dead"];

/// How files are written from now on, and the keys to read those that are there.
#[derive(Clone, Debug, Default)]
pub struct Coding {
    /// Compress (zstd).
    pub compress: bool,
    /// The first key encrypts; without one nothing is.
    pub keys: KeyRing,
}

impl Coding {
    /// New files are not plain.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.compress || self.keys.first().is_some()
    }

    /// The host as a spool sees it that lies so.
    #[must_use]
    pub fn host(&self, host: &Host) -> Host {
        let coded = CodedFiles { inner: Arc::clone(&host.files), entropy: Arc::clone(&host.entropy), coding: self.clone() };
        Host { files: Arc::new(coded), ..host.clone() }
    }
}

/// Why a coded file cannot be opened; carried by an [`io::Error`].
#[derive(Debug)]
pub enum CodingError {
    /// Its key is not among those given.
    NoKey {
        /// The key it was written with.
        wanted: KeyId,
        /// The keys given.
        given: Vec<KeyId>,
    },
    /// Written by a newer program.
    OtherVersion {
        /// Version field of the header.
        version: u16,
        /// Flags field of the header.
        flags: u16,
    },
}

impl CodingError {
    /// The one in an I/O error, if that is what it is.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }
}

impl fmt::Display for CodingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey { wanted, given } if given.is_empty() => write!(
                f,
                "it is encrypted with the key {wanted}, and spool.encryption_keys names none; put that key's source there \
                 (--config FILE, or FOREBAY_SPOOL__ENCRYPTION_KEYS). Nothing was changed"
            ),
            Self::NoKey { wanted, given } => {
                let given: Vec<String> = given.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "it is encrypted with the key {wanted}, which is none of those in spool.encryption_keys ({}); put that \
                     key's source there, behind the one for new files. Nothing was changed",
                    given.join(", ")
                )
            }
            Self::OtherVersion { version, flags } => {
                write!(f, "a newer program wrote it (coding version {version}, flags {flags}); run that one")
            }
        }
    }
}

impl std::error::Error for CodingError {}

/// A tree of files in which those that hold events are coded.
#[derive(Debug)]
pub struct CodedFiles {
    inner: Arc<dyn Files>,
    entropy: Arc<dyn Entropy>,
    coding: Coding,
}

fn holds_events(path: &Path) -> bool {
    let dir = path.parent().and_then(Path::file_name);
    dir.is_some_and(|dir| CODED_DIRS.iter().any(|coded| dir == *coded))
}

impl CodedFiles {
    /// The file as its own header says.
    fn opened(&self, inner: Arc<dyn File>) -> io::Result<Arc<dyn File>> {
        let mut bytes = [0; HEAD_BYTES];
        let mut held = 0;
        while held < HEAD_BYTES {
            match inner.read_at(&mut bytes[held..], held as u64) {
                Ok(0) => break,
                Ok(read) => held += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let head = FileHead::find(&bytes[..held])
            .map_err(|other| io::Error::other(CodingError::OtherVersion { version: other.version, flags: other.flags }))?;
        let Some(head) = head else { return Ok(inner) };
        let key = match head.key {
            None => None,
            Some(wanted) => Some(
                self.coding
                    .keys
                    .get(wanted)
                    .ok_or_else(|| io::Error::other(CodingError::NoKey { wanted, given: self.coding.keys.ids().collect() }))?,
            ),
        };
        Ok(Arc::new(CodedFile::open(inner, head, key, Arc::clone(&self.entropy))?))
    }
}

impl Files for CodedFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inner = self.inner.open(path)?;
        if holds_events(path) { self.opened(inner) } else { Ok(inner) }
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inner = self.inner.open_read(path)?;
        if holds_events(path) { self.opened(inner) } else { Ok(inner) }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inner = self.inner.create(path)?;
        if !self.coding.is_on() || !holds_events(path) {
            return Ok(inner);
        }
        let key = self.coding.keys.first();
        let mut salt = [0; 16];
        if key.is_some() {
            self.entropy.fill(&mut salt);
        }
        let head = FileHead { compressed: self.coding.compress, key: key.map(EncryptionKey::id), salt };
        Ok(Arc::new(CodedFile::create(inner, head, key, Arc::clone(&self.entropy))))
    }

    fn codes(&self) -> bool {
        self.coding.is_on()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        self.inner.space(path)
    }
}
