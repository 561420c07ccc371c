//! The Unix socket: binding it by clear rules, accepting, and the life of the door as a whole.
//!
//! Place: `run` binds at start, so that a path that cannot be had is an error there, and then serves until the
//! shutdown signal. Each connection is one task (`connection`), with a second one where it asked for
//! acknowledgements (`acks`).
//!
//! Binding: what stands at the path and is no socket is never touched. A socket that nobody answers is stale
//! and is replaced. One that is answered belongs to a living agent, which the error names. The mode is set
//! between bind and listen, when nobody can connect yet. At a clean stop the file is removed if it is still
//! ours (device and inode), so that a successor's socket survives its predecessor's end.
//!
//! Failure: an accept that fails for want of descriptors or memory is tried again after a pause; existing
//! connections go on. A connection's failure is its own.
//!
//! A socket that was passed (`activation`) is served in the same way, but it is not ours: its file stays, and who waits to be
//! accepted when the agent stops is left to the successor. Absent on purpose: abstract names, datagrams.

mod acks;
mod connection;
mod partials;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::task::JoinSet;

use crate::ingest::{LiveSources, Shutdown, stopped};
pub(crate) use connection::admit_user;

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 1024;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// What may be set about the door.
#[derive(Clone, Debug)]
pub struct UnixOptions {
    /// User ids that may connect; empty: whoever may open the socket.
    pub allowed_uids: Vec<u32>,
    /// Connections at once; further ones wait in the kernel's backlog. Default 4096.
    pub connections_max: usize,
    /// A client that leaves an event of more than 16 KiB unfinished this long is closed. Default 60 s.
    pub stuck_after: Duration,
}

impl Default for UnixOptions {
    fn default() -> Self {
        Self { allowed_uids: Vec::new(), connections_max: 4096, stuck_after: Duration::from_secs(60) }
    }
}

/// Why the socket cannot be bound.
#[derive(Debug)]
pub enum BindError {
    /// The socket's directory does not exist.
    NoDirectory {
        /// Where the socket should be.
        path: PathBuf,
    },
    /// Something else than a socket stands at the path. It is left alone.
    NotASocket {
        /// Where it stands.
        path: PathBuf,
    },
    /// A living process answers there.
    InUse {
        /// Where it answers.
        path: PathBuf,
        /// Its process id, where the kernel tells.
        pid: Option<i32>,
    },
    /// The operating system refused a step.
    Io {
        /// Where.
        path: PathBuf,
        /// The step, as in "cannot bind it".
        step: &'static str,
        /// What it said.
        error: io::Error,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tell("listen.socket", f)
    }
}

impl BindError {
    /// As `Display` tells it, of the socket that this key of the configuration names.
    pub(crate) fn tell(&self, key: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDirectory { path } => write!(
                f,
                "socket {}: the directory {} does not exist; create it (systemd: RuntimeDirectory=forebay) or set {key}",
                path.display(),
                path.parent().unwrap_or(Path::new("/")).display(),
            ),
            Self::NotASocket { path } => write!(
                f,
                "socket {}: something that is not a socket stands there, and it is left alone; move it away or set {key}",
                path.display(),
            ),
            Self::InUse { path, pid } => {
                write!(f, "socket {}: a living process ", path.display())?;
                if let Some(pid) = pid {
                    write!(f, "(pid {pid}) ")?;
                }
                write!(f, "answers there; stop it, or give this agent a {key} of its own")
            }
            Self::Io { path, step, error } => write!(f, "socket {}: cannot {step}: {error}", path.display()),
        }
    }
}

impl std::error::Error for BindError {}

/// A bound and listening socket.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    /// `None`: it was passed.
    file: Option<SocketFile>,
    options: UnixOptions,
}

/// The socket's file. Goes with this value: at a clean stop, and when the agent fails to start after all.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode, to know it again.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    /// Removes the file if it is still the one that was bound.
    #[allow(clippy::disallowed_methods, reason = "a socket's file is none of the spool's")]
    fn drop(&mut self) {
        let Self { path, identity } = self;
        let ours = fs::symlink_metadata(&*path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *identity);
        if ours && let Err(error) = fs::remove_file(&*path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove the socket file; the next start will replace it");
        }
    }
}

/// Binds `path` by the rules above. Must be called within a tokio runtime.
///
/// # Errors
/// [`BindError`], each with its remedy.
pub async fn bind(path: &Path, options: UnixOptions) -> Result<UnixDoor, BindError> {
    let (listener, file) = bind_file(path).await?;
    Ok(UnixDoor { listener, file: Some(file), options })
}

/// A socket that was passed, already listening.
#[must_use]
pub fn passed(listener: UnixListener, options: UnixOptions) -> UnixDoor {
    UnixDoor { listener, file: None, options }
}

/// The same, for whoever serves it in another way.
///
/// # Errors
/// [`BindError`], each with its remedy.
pub(crate) async fn bind_file(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let fail = |step| move |error| BindError::Io { path: path.to_owned(), step, error };
    clear_the_path(path).await?;
    let socket = UnixSocket::new_stream().map_err(fail("make it"))?;
    socket.bind(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BindError::NoDirectory { path: path.to_owned() },
        // Between our look and our bind somebody else was faster.
        io::ErrorKind::AddrInUse => BindError::InUse { path: path.to_owned(), pid: None },
        _ => BindError::Io { path: path.to_owned(), step: "bind it", error },
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(fail("set its mode to 0660"))?;
    let meta = fs::symlink_metadata(path).map_err(fail("look at it"))?;
    let listener = socket.listen(BACKLOG).map_err(fail("listen on it"))?;
    let file = SocketFile { path: path.to_owned(), identity: (meta.dev(), meta.ino()) };
    Ok((listener, file))
}

/// Removes a stale socket; refuses everything else that stands at `path`.
#[allow(clippy::disallowed_methods, reason = "a socket's file is none of the spool's")]
async fn clear_the_path(path: &Path) -> Result<(), BindError> {
    let fail = |step| move |error| BindError::Io { path: path.to_owned(), step, error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("look at it")(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(stream) => {
            // The credentials of whoever called listen.
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            Err(BindError::InUse { path: path.to_owned(), pid })
        }
        // A full backlog: somebody listens, though he does not accept just now.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(BindError::InUse { path: path.to_owned(), pid: None }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove the stale one")(error)),
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fail("tell whether somebody answers there")(error)),
    }
}

impl UnixDoor {
    /// Where it is bound; `None`: it was passed.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| &*file.path)
    }

    /// Serves until `shutdown`, then takes the socket file away and returns once all connections are done.
    pub async fn serve(self, sources: impl Into<LiveSources>, shutdown: Shutdown) {
        let Self { listener, file, options } = self;
        let connections_max = options.connections_max.max(1);
        let shared = Arc::new(connection::Shared::new(sources.into(), options));
        let mut connections: JoinSet<()> = JoinSet::new();
        let mut stop = stopped(shutdown.clone());
        let mut accepting = true;
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => note_end(ended),
                accepted = listener.accept(), if connections.len() < connections_max => match accepted {
                    Ok((stream, _)) => {
                        accepting = true;
                        connections.spawn(connection::serve(stream, Arc::clone(&shared), shutdown.clone()));
                    }
                    Err(error) => {
                        if std::mem::replace(&mut accepting, false) {
                            tracing::warn!(%error, "cannot accept connections on the socket; trying again (is the limit of open files too low?)");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Nobody finds the socket any more; who connected before is still served what the drain allows. Through a passed one
        // clients still come, and the next agent serves them.
        let ours = file.is_some();
        drop(file);
        while ours && let Ok(Ok((stream, _))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
            connections.spawn(connection::serve(stream, Arc::clone(&shared), shutdown.clone()));
        }
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a socket connection's task ended abnormally");
    }
}
