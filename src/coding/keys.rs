//! Encryption keys: where they come from, how one is told from another, and the key of one file.
//!
//! Place: the configuration names *key sources*; an agent or a tool reads them once, into a [`KeyRing`]. The first key
//! encrypts what is written from now on, all of them decrypt: so a key is changed by putting the new one in front, and the
//! old one goes once no file tells its id (`forebay spool ls`).
//!
//! A file's own key is derived from the configured one and 16 random bytes that its header tells (HKDF-SHA256, RFC 5869), so
//! that no two files share one, and nonces need be unique within a file only. A key's id is derived the same way and tells
//! nothing of the key.
//!
//! Failure: [`KeyError`], which names the source and never what was in it. Absent on purpose: making keys (`head -c 32
//! /dev/urandom` does), and fetching them from a key service at start: an agent must start without network.

use std::fmt;
use std::io;
use std::path::PathBuf;

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine as _;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A file with more is no key.
const SOURCE_BYTES_MAX: usize = 4096;

/// Tells a key from another; safe to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One key.
#[derive(Clone)]
pub struct EncryptionKey {
    bytes: [u8; KEY_BYTES],
    id: KeyId,
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncryptionKey({})", self.id)
    }
}

struct Id;

impl KeyType for Id {
    fn len(&self) -> usize {
        8
    }
}

impl EncryptionKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        let mut id = [0; 8];
        Salt::new(HKDF_SHA256, b"forebay encryption key")
            .extract(&bytes)
            .expand(&[b"id"], Id)
            .and_then(|okm| okm.fill(&mut id))
            .expect("HKDF yields eight bytes of anything");
        Self { bytes, id: KeyId(u64::from_be_bytes(id)) }
    }

    /// What tells it from another.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The key of the file whose header tells this salt.
    pub(super) fn of_file(&self, salt: &[u8; 16]) -> LessSafeKey {
        let prk = Salt::new(HKDF_SHA256, salt).extract(&self.bytes);
        let okm = prk.expand(&[b"forebay coded file 1"], &AES_256_GCM).expect("HKDF yields one key of anything");
        LessSafeKey::new(UnboundKey::from(okm))
    }

    /// The key in what a source holds: 32 bytes as they are, as 64 hexadecimal digits, or as base64.
    fn parse(held: &[u8]) -> Option<Self> {
        if let Ok(bytes) = <[u8; KEY_BYTES]>::try_from(held) {
            return Some(Self::new(bytes));
        }
        let text = std::str::from_utf8(held).ok()?.trim();
        let bytes = if text.len() == 2 * KEY_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            (0..KEY_BYTES).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect::<Option<Vec<u8>>>()?
        } else {
            let lenient = base64::engine::GeneralPurpose::new(
                &base64::alphabet::STANDARD,
                base64::engine::GeneralPurposeConfig::new()
                    .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
            );
            lenient.decode(text).ok()?
        };
        Some(Self::new(<[u8; KEY_BYTES]>::try_from(bytes.as_slice()).ok()?))
    }
}

/// Where a key is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `file:PATH`.
    File(PathBuf),
    /// `env:NAME`.
    Env(String),
    /// `credential:NAME`: a file of that name where systemd puts a service's credentials (systemd.exec(5),
    /// `LoadCredential=`, `LoadCredentialEncrypted=`).
    Credential(String),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

/// Why a source yields no key.
#[derive(Debug)]
pub struct KeyError {
    source: KeySource,
    why: String,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spool.encryption_keys: {}: {}", self.source, self.why)
    }
}

impl std::error::Error for KeyError {}

/// What a source may look like, for people.
pub const SOURCES_ALLOWED: &str = "\"file:/PATH\", \"env:VARIABLE\" or \"credential:NAME\" (of systemd)";

impl KeySource {
    /// The source that a text names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(':')?;
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\0', '=']) && name != "." && name != "..";
        match scheme {
            "file" if rest.starts_with('/') && !rest.contains('\0') => Some(Self::File(rest.into())),
            "env" if plain(rest) => Some(Self::Env(rest.to_owned())),
            "credential" if plain(rest) => Some(Self::Credential(rest.to_owned())),
            _ => None,
        }
    }

    /// Reads the key. `env` looks a variable up, `read` a file.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(
        &self,
        env: impl Fn(&str) -> Option<String>,
        read: impl Fn(&std::path::Path) -> io::Result<Vec<u8>>,
    ) -> Result<EncryptionKey, KeyError> {
        let failed = |why: String| KeyError { source: self.clone(), why };
        let from_file = |path: &std::path::Path| {
            let held = read(path).map_err(|error| failed(format!("{} cannot be read: {error}", path.display())))?;
            if held.is_empty() { Err(failed(format!("{} is empty", path.display()))) } else { Ok(held) }
        };
        let held = match self {
            Self::File(path) => from_file(path)?,
            Self::Env(name) => env(name).ok_or_else(|| failed("the variable is not set".to_owned()))?.into_bytes(),
            Self::Credential(name) => {
                let dir = env("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    failed(format!(
                        "CREDENTIALS_DIRECTORY is not set: systemd sets it for a service with LoadCredential={name}:PATH"
                    ))
                })?;
                from_file(&PathBuf::from(dir).join(name))?
            }
        };
        let shape = || {
            failed(format!(
                "{} bytes that are no key; it must be 32 bytes as they are, 64 hexadecimal digits, or base64 of 32 bytes \
                 (`head -c 32 /dev/urandom > FILE` makes one)",
                held.len()
            ))
        };
        if held.len() > SOURCE_BYTES_MAX {
            return Err(shape());
        }
        EncryptionKey::parse(&held).ok_or_else(shape)
    }
}

/// The keys at hand: the first writes, all read.
#[derive(Clone, Debug, Default)]
pub struct KeyRing(Vec<EncryptionKey>);

impl KeyRing {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<EncryptionKey>) -> Self {
        Self(keys)
    }

    /// The key for what is written now.
    #[must_use]
    pub fn first(&self) -> Option<&EncryptionKey> {
        self.0.first()
    }

    /// The key of this id.
    #[must_use]
    pub fn get(&self, id: KeyId) -> Option<&EncryptionKey> {
        self.0.iter().find(|key| key.id == id)
    }

    /// Their ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(EncryptionKey::id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str, env: &[(&str, &str)], file: &[u8]) -> Result<EncryptionKey, String> {
        let source = KeySource::parse(source).expect("a source");
        let lookup = |name: &str| env.iter().find(|(held, _)| *held == name).map(|(_, value)| (*value).to_owned());
        source.read(lookup, |_| Ok(file.to_vec())).map_err(|error| error.to_string())
    }

    #[test]
    fn one_key_is_the_same_as_bytes_hexadecimal_and_base64_from_any_source() {
        let raw: Vec<u8> = (0..32).collect();
        let hex: String = raw.iter().map(|byte| format!("{byte:02X}")).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(&raw);
        let id = read("file:/k", &[], &raw).unwrap().id();
        assert_eq!(read("file:/k", &[], format!("{hex}\n").as_bytes()).unwrap().id(), id);
        assert_eq!(read("file:/k", &[], base64.trim_end_matches('=').as_bytes()).unwrap().id(), id);
        assert_eq!(read("env:K", &[("K", &base64)], b"").unwrap().id(), id);
        assert_eq!(read("credential:k", &[("CREDENTIALS_DIRECTORY", "/run/c")], &raw).unwrap().id(), id);
        assert_ne!(EncryptionKey::new([1; 32]).id(), id);
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_remedy_and_without_its_text() {
        for held in [&b"hunter2"[..], &[7; 31], &[7; 33], b"zz", &[b'a'; 63], &[0; 5000]] {
            let error = read("file:/k", &[], held).unwrap_err();
            assert!(error.contains("file:/k") && error.contains("/dev/urandom"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(read("file:/k", &[], b"").unwrap_err().contains("is empty"));
        assert!(read("env:K", &[], b"").unwrap_err().contains("not set"));
        assert!(read("credential:k", &[], b"").unwrap_err().contains("LoadCredential=k:"));
    }

    #[test]
    fn sources_are_named_by_their_kind() {
        for text in ["file:/etc/forebay/key", "env:FOREBAY_KEY", "credential:spool"] {
            assert_eq!(KeySource::parse(text).expect("a source").to_string(), text);
        }
        for text in ["", "/etc/key", "file:key", "env:", "credential:../x", "kms:alias/x", "env:A=B"] {
            assert_eq!(KeySource::parse(text), None, "{text}");
        }
    }
}
