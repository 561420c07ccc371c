//! TLS of `listen.https`: the pair of certificate and key, read at start and again when its files change.
//!
//! Place: `agent` reads the pair before anything is accepted, `listen` asks for the one in force at each handshake. rustls
//! with aws-lc-rs, TLS 1.2 and 1.3, ALPN for HTTP/2 and HTTP/1.1, no client certificates, no early data (it could be replayed).
//!
//! State: one [`Pair`] a listener. Whoever opens a connection looks at the files, at most once in `LOOK_EVERY`, and only
//! that connection waits for the disk. A connection keeps the pair that it began with, so a new one ends none.
//!
//! Failure: at start a bad pair is a configuration error. Later it is told in the log once, the pair before stays in
//! force, and the files are looked at again, since certificate and key are seldom replaced in one step.
//! Absent on purpose: certificates by name (SNI), client certificates, and a look at when a certificate ends.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, ServerConfig};
use tokio::time::Instant;

use crate::metrics::locked;

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Largest file of either kind. Chains have some KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a pair cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    key: &'static str,
    path: PathBuf,
    wrong: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}: {}", self.key, self.path, self.wrong)
    }
}

impl std::error::Error for TlsError {}

/// What the files looked like when they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([(u64, u64, i64, i64, i64, i64); 2]);

impl Stamp {
    fn of(paths: [&Path; 2]) -> io::Result<Self> {
        // Links are followed: secrets are often replaced by turning a link round.
        let of_one = |path: &Path| {
            let meta = fs::metadata(path)?;
            Ok::<_, io::Error>((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
        };
        Ok(Self([of_one(paths[0])?, of_one(paths[1])?]))
    }
}

#[derive(Debug)]
struct State {
    /// The pair in force.
    config: Arc<ServerConfig>,
    /// Of the files that it was read from. `None`: they are to be read again.
    stamp: Option<Stamp>,
    /// When the files were looked at last.
    looked: Instant,
    /// What was wrong at the last look, and has been told.
    told: Option<TlsError>,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Pair {
    certificate: PathBuf,
    key: PathBuf,
    state: Mutex<State>,
}

impl Pair {
    /// Reads the pair.
    ///
    /// # Errors
    /// [`TlsError`], which names the key of the configuration, the file and the remedy.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let stamp = Stamp::of([certificate, key]).ok();
        let config = read(certificate, key)?;
        let state = Mutex::new(State { config, stamp, looked: Instant::now(), told: None });
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), state })
    }

    /// The pair in force, after a look at the files where one is due.
    pub async fn current(self: &Arc<Self>) -> Arc<ServerConfig> {
        let due = {
            let mut state = locked(&self.state);
            let due = state.looked.elapsed() >= LOOK_EVERY;
            if due {
                state.looked = Instant::now();
            }
            due
        };
        if due {
            let pair = Arc::clone(self);
            if let Err(error) = tokio::task::spawn_blocking(move || pair.look()).await {
                tracing::error!(%error, "the look at the TLS certificate ended abnormally");
            }
        }
        Arc::clone(&locked(&self.state).config)
    }

    /// Reads the files again if they have changed, or were bad.
    fn look(&self) {
        let stamp = Stamp::of([&self.certificate, &self.key]).ok();
        if stamp.is_some() && locked(&self.state).stamp == stamp {
            return;
        }
        let outcome = read(&self.certificate, &self.key);
        let mut state = locked(&self.state);
        match outcome {
            Ok(config) => {
                state.config = config;
                state.stamp = stamp;
                state.told = None;
                tracing::info!(certificate = %self.certificate.display(), "the TLS certificate was read anew; connections that stand keep theirs");
            }
            Err(error) => {
                state.stamp = None;
                if state.told.as_ref() != Some(&error) {
                    tracing::warn!(%error, "the new TLS certificate cannot be used; the one before stays in force");
                    state.told = Some(error);
                }
            }
        }
    }
}

/// Both files as rustls takes them.
fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let about_certificate = |wrong: String| TlsError { key: "listen.tls_certificate", path: certificate.to_owned(), wrong };
    let about_key = |wrong: String| TlsError { key: "listen.tls_key", path: key.to_owned(), wrong };
    let unreadable = |error: io::Error| format!("cannot be read: {error}; `forebay dev-cert` makes a pair for this machine");
    let chain = bytes_of(certificate).map_err(|error| about_certificate(unreadable(error)))?;
    let key_bytes = bytes_of(key).map_err(|error| about_key(unreadable(error)))?;

    let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|_| about_certificate("is no whole PEM file".into()))?;
    if chain.is_empty() {
        let wrong = "holds no certificate; it must be PEM (-----BEGIN CERTIFICATE-----), the server's certificate first";
        return Err(about_certificate(wrong.into()));
    }
    let private = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| {
        about_key(
            "holds no private key that can be used; it must be PEM (-----BEGIN PRIVATE KEY-----), without a password".into(),
        )
    })?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| about_certificate(format!("TLS cannot be set up: {error}")))?
        .with_no_client_auth()
        .with_single_cert(chain, private);
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => about_key(format!(
            "is not the key of the certificate in {certificate:?} (listen.tls_certificate); give the two that belong together"
        )),
        rustls::Error::InvalidCertificate(error) => about_certificate(format!("is no certificate that can be read: {error:?}")),
        error => about_key(format!("cannot be used: {error}; keys are RSA of 2048 bits or more, ECDSA or Ed25519")),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[allow(clippy::disallowed_methods, reason = "a certificate lies outside of the spool, and no simulator has one in a file")]
fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(bytes)
}
