//! A service manager as the agent sees it: the socket that it is told things on.
//!
//! Place: tests of the real binary. Owner: a [`Manager`] owns the socket's file, in the test's directory, and what it has heard. Failure:
//! panics when something is not heard before [`DEADLINE`].

use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::agent::DEADLINE;

/// What an agent says to its manager.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// Lines, in order.
    heard: RefCell<Vec<String>>,
}

impl Manager {
    pub fn listen(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket for notifications");
        Self { socket, path, heard: RefCell::default() }
    }

    /// For an agent whose watchdog bites after this long.
    pub fn environment(&self, watchdog: Duration) -> [(&'static str, String); 2] {
        [("NOTIFY_SOCKET", self.path.display().to_string()), ("WATCHDOG_USEC", watchdog.as_micros().to_string())]
    }

    /// Takes the next message, if one comes in time.
    fn hear(&self, within: Duration) -> bool {
        let mut bytes = [0; 4096];
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1)))).expect("a timeout");
        let Ok(n) = self.socket.recv(&mut bytes) else { return false };
        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
        self.heard.borrow_mut().extend(text.lines().map(str::to_owned));
        true
    }

    /// A line that begins so was heard since the last [`Manager::forget`].
    pub fn heard(&self, begin: &str) -> bool {
        self.heard.borrow().iter().any(|line| line.starts_with(begin))
    }

    /// Forgets all that was said so far.
    pub fn forget(&self) {
        while self.hear(Duration::ZERO) {}
        self.heard.borrow_mut().clear();
    }

    /// Waits for a line that begins so, said from now on or since the last [`Manager::forget`]; gives it, and forgets all up to it.
    pub fn wait_for(&self, begin: &str) -> String {
        let start = Instant::now();
        loop {
            let at = self.heard.borrow().iter().position(|line| line.starts_with(begin));
            if let Some(at) = at {
                return self.heard.borrow_mut().drain(..=at).next_back().expect("the line itself");
            }
            assert!(start.elapsed() < DEADLINE, "the manager was not told {begin:?}; it heard {:?}", self.heard.borrow());
            self.hear(Duration::from_secs(1));
        }
    }
}
