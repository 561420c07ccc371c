//! Sockets that a service manager bound and passes on (systemd's socket activation), in place of those that the agent would bind.
//!
//! Place: `main` takes them before there are threads ([`Passed::take`]); `agent` asks for each listener of the configuration
//! whether it was passed, binds those that were not, and has whatever is left over refused ([`Passed::finish`]).
//!
//! Which listener a socket is: its name (`FileDescriptorName=`) where that is a key of `[listen]`, else its address, which must be
//! the one that the configuration has for a listener. So one socket unit, whose sockets all have one name, can hold several.
//!
//! Invariants. *Theirs*: a passed socket is never unlinked, and when the agent stops it leaves the connections that wait there
//! to be accepted to its successor. *None forgotten*: a socket that is no listener of the configuration would take connections that
//! nobody serves; it is an error that names it.
//!
//! Failure: [`PassedError`], before anything is accepted. Absent on purpose: datagrams, `Accept=yes`, storing descriptors.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;

/// Keys of `[listen]` that are TCP ports.
const PORTS: [&str; 4] = ["http", "https", "admin", "metrics"];

/// Keys of `[listen]` that are Unix sockets.
const SOCKETS: [&str; 2] = ["socket", "http_socket"];

/// Why passed sockets cannot be used.
#[derive(Debug)]
pub enum PassedError {
    /// It is no stream socket, or none that listens, or not of the kind that its name says.
    Unfit {
        /// Name and address, as far as they are known.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The configuration has no listener for it.
    Unknown {
        /// Name and address.
        what: String,
    },
    /// Two were passed for one listener.
    Twice {
        /// The listener's key.
        key: &'static str,
    },
}

impl fmt::Display for PassedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit { what, why } => write!(f, "the service manager passed {what}, {why}"),
            Self::Unknown { what } => write!(
                f,
                "the service manager passed {what}, and no listener of the configuration has that name or address; \
                 let the socket unit's ListenStream= and the keys of [listen] say the same"
            ),
            Self::Twice { key } => write!(f, "the service manager passed two sockets for listen.{key}"),
        }
    }
}

impl std::error::Error for PassedError {}

#[derive(Debug)]
enum Listening {
    Port(TcpListener),
    Socket(UnixListener),
}

#[derive(Debug)]
struct One {
    /// `FileDescriptorName=`; by default the socket unit's own name.
    name: String,
    listening: Listening,
}

impl One {
    /// For people.
    fn what(&self) -> String {
        let address = match &self.listening {
            Listening::Port(port) => port.local_addr().map(|address| address.to_string()),
            Listening::Socket(socket) => socket.local_addr().map(|address| match address.as_pathname() {
                Some(path) => path.display().to_string(),
                None => "a socket without a path".to_owned(),
            }),
        };
        format!("{} (named {:?})", address.unwrap_or_else(|error| format!("a socket ({error})")), self.name)
    }

    fn is(&self, key: &str) -> bool {
        self.name == key
    }

    /// Its name is no key, so that its address decides.
    fn goes_by_address(&self) -> bool {
        !PORTS.contains(&&*self.name) && !SOCKETS.contains(&&*self.name)
    }
}

/// What was passed and is not yet used.
#[derive(Debug, Default)]
pub struct Passed(Vec<One>);

impl Passed {
    /// Takes what the environment says was passed to this very process, and takes that out of the environment. To be called
    /// once, while there is one thread.
    ///
    /// # Errors
    /// What is passed is no listening stream socket.
    pub fn take() -> Result<Self, PassedError> {
        // Variables that were left over by another process, and inherited, are no promise about our descriptors.
        let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
        if !ours {
            return Ok(Self::default());
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut found = ListenFd::from_env();
        let mut passed = Vec::with_capacity(found.len());
        for at in 0..found.len() {
            let name = names.next().unwrap_or_default();
            // The descriptor's family says which of the two it is.
            let listening = match found.take_unix_listener(at) {
                Ok(Some(socket)) => Ok(Listening::Socket(socket)),
                _ => found.take_tcp_listener(at).and_then(|port| match port {
                    Some(port) => Ok(Listening::Port(port)),
                    None => Err(io::ErrorKind::NotFound.into()),
                }),
            };
            let unfit = |why: String| PassedError::Unfit { what: format!("descriptor {at} (named {name:?})"), why };
            let listening = listening.map_err(|error| unfit(format!("which is no stream socket: {error}")))?;
            if !listens(&listening).map_err(|error| unfit(format!("which cannot be looked at: {error}")))? {
                return Err(unfit("which does not listen; Accept= of the socket unit must be no".to_owned()));
            }
            let one = One { name, listening };
            let is_port = matches!(one.listening, Listening::Port(_));
            if PORTS.contains(&&*one.name) && !is_port || SOCKETS.contains(&&*one.name) && is_port {
                let kind = if is_port { "a TCP port" } else { "a Unix socket" };
                return Err(PassedError::Unfit {
                    what: one.what(),
                    why: format!("which is {kind}; listen.{} is none", one.name),
                });
            }
            passed.push(one);
        }
        Ok(Self(passed))
    }

    /// The port for `listen.KEY`, if it was passed.
    ///
    /// # Errors
    /// [`PassedError::Twice`], or the operating system's.
    pub fn port(&mut self, key: &'static str, address: SocketAddr) -> Result<Option<tokio::net::TcpListener>, PassedError> {
        let at_address = |one: &One| match &one.listening {
            Listening::Port(port) => port.local_addr().is_ok_and(|bound| bound == address),
            Listening::Socket(_) => false,
        };
        let Some(One { name, listening: Listening::Port(port) }) = self.the_one(key, at_address)? else { return Ok(None) };
        let made = port.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(port));
        made.map(Some).map_err(|error| PassedError::Unfit { what: format!("{address} (named {name:?})"), why: error.to_string() })
    }

    /// The Unix socket for `listen.KEY`, if it was passed.
    ///
    /// # Errors
    /// [`PassedError::Twice`], or the operating system's.
    pub fn socket(&mut self, key: &'static str, path: &Path) -> Result<Option<tokio::net::UnixListener>, PassedError> {
        let at_path = |one: &One| match &one.listening {
            Listening::Port(_) => false,
            Listening::Socket(socket) => {
                socket.local_addr().is_ok_and(|bound| bound.as_pathname().is_some_and(|bound| is_same(bound, path)))
            }
        };
        let Some(One { name, listening: Listening::Socket(socket) }) = self.the_one(key, at_path)? else { return Ok(None) };
        let made = socket.set_nonblocking(true).and_then(|()| tokio::net::UnixListener::from_std(socket));
        made.map(Some)
            .map_err(|error| PassedError::Unfit { what: format!("{} (named {name:?})", path.display()), why: error.to_string() })
    }

    /// Nothing may be left over.
    ///
    /// # Errors
    /// [`PassedError::Unknown`].
    pub fn finish(self) -> Result<(), PassedError> {
        match self.0.first() {
            Some(one) => Err(PassedError::Unknown { what: one.what() }),
            None => Ok(()),
        }
    }

    fn the_one(&mut self, key: &'static str, by_address: impl Fn(&One) -> bool) -> Result<Option<One>, PassedError> {
        let meant = |one: &One| one.is(key) || one.goes_by_address() && by_address(one);
        let Some(at) = self.0.iter().position(meant) else { return Ok(None) };
        let one = self.0.swap_remove(at);
        if self.0.iter().any(meant) { Err(PassedError::Twice { key }) } else { Ok(Some(one)) }
    }
}

fn listens(listening: &Listening) -> io::Result<bool> {
    let listens = match listening {
        Listening::Port(port) => rustix::net::sockopt::socket_acceptconn(port),
        Listening::Socket(socket) => rustix::net::sockopt::socket_acceptconn(socket),
    };
    Ok(listens?)
}

/// One file, though a link may lie on the way (`/var/run`).
fn is_same(bound: &Path, path: &Path) -> bool {
    bound == path
        || match (bound.canonicalize(), path.canonicalize()) {
            (Ok(bound), Ok(path)) => bound == path,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> (One, SocketAddr) {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        (One { name: name.to_owned(), listening: Listening::Port(port) }, address)
    }

    #[tokio::test]
    async fn a_socket_is_known_by_a_name_that_is_a_key_and_else_by_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let socket = || One { name: "forebay.socket".into(), listening: Listening::Socket(UnixListener::bind(&path).unwrap()) };
        let (by_address, address) = port("forebay.socket");
        let (by_name, other) = port("admin");
        let mut passed = Passed(vec![socket(), by_address, by_name]);
        let found = passed.port("http", address).unwrap().expect("by its address");
        assert_eq!(found.local_addr().unwrap(), address);
        assert!(passed.port("https", other).unwrap().is_none(), "it is named as another listener");
        let found = passed.port("admin", address).unwrap().expect("by its name, whatever its address");
        assert_eq!(found.local_addr().unwrap(), other);
        assert!(passed.socket("socket", &dir.path().join("t.sock")).unwrap().is_none());
        assert!(passed.socket("socket", &path).unwrap().is_some());
        passed.finish().unwrap();
    }

    #[test]
    fn a_socket_that_is_no_listener_of_the_configuration_is_named() {
        let (one, address) = port("web");
        let told = Passed(vec![one]).finish().unwrap_err().to_string();
        assert!(told.contains(&address.to_string()) && told.contains("\"web\""), "{told}");
    }

    #[tokio::test]
    async fn two_sockets_for_one_listener_are_refused() {
        let (first, address) = port("http");
        let (second, _) = port("http");
        let told = Passed(vec![first, second]).port("http", address).unwrap_err().to_string();
        assert!(told.contains("listen.http"), "{told}");
    }
}
