//! The demo's agent: this very program as a child process, `forebay run` with a configuration of its own.
//!
//! Owner: the demo; the child is stopped with it, and killed if the demo ends in any other way. Its files lie in a
//! directory that only this user can enter. The child sees none of the user's `FOREBAY_*` and `AWS_*` variables, so
//! that a machine's own settings cannot lead the demo's events elsewhere.
//!
//! Failure: told with the last lines of the agent's log.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::fs;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::send::Http;
use crate::dev::{ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY};
use crate::host::{Entropy as _, RealEntropy};

/// Longest wait for the agent to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for it to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks at something that takes a moment.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Lines of its log that an error shows.
const LOG_LINES: usize = 15;

/// The longest path of a Unix socket that every system takes (`sun_path`).
const SOCKET_PATH_MAX: usize = 100;

/// A directory that goes away with the demo.
#[derive(Debug)]
pub(super) struct Workplace {
    dir: PathBuf,
}

impl Workplace {
    /// Makes it, for this user alone.
    pub(super) async fn create() -> Result<Self, String> {
        let name = format!("forebay-demo-{}-{:08x}", std::process::id(), RealEntropy.next_u64() >> 32);
        let fits = |dir: &PathBuf| dir.join("agent.sock").as_os_str().len() <= SOCKET_PATH_MAX;
        // A deep TMPDIR leaves no room for a socket's path.
        let dir = [std::env::temp_dir().join(&name), Path::new("/tmp").join(&name)].into_iter().find(fits);
        let dir = dir.ok_or_else(|| format!("no directory with a path short enough for a socket ({SOCKET_PATH_MAX} bytes)"))?;
        let made = fs::DirBuilder::new().mode(0o700).create(&dir).await;
        made.map_err(|error| format!("cannot make {}: {error}; set TMPDIR to a directory that can be written", dir.display()))?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Removes it with all that is in it.
    pub(super) async fn remove(self) -> Result<(), String> {
        fs::remove_dir_all(&self.dir).await.map_err(|error| format!("cannot remove {}: {error}", self.dir.display()))
    }
}

/// A running agent.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    log: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// Its data plane over HTTP.
    pub http: SocketAddr,
    admin: SocketAddr,
}

/// What the agent delivers where, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wiring<'a> {
    pub stream: &'a str,
    pub endpoint: &'a str,
    pub aggregate_kpl: bool,
    /// The spool's directory instead of one in the workplace.
    pub spool: Option<&'a Path>,
}

impl Agent {
    /// Starts it and waits until it is ready to take events.
    pub(super) async fn start(workplace: &Workplace, wiring: Wiring<'_>) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program's own file: {error}"))?;
        let (socket, config, log) = (workplace.path("agent.sock"), workplace.path("forebay.toml"), workplace.path("agent.log"));
        let (http, admin) = free_addresses().await.map_err(|error| format!("no free port on 127.0.0.1: {error}"))?;
        let spool = wiring.spool.map_or_else(|| workplace.path("spool"), Path::to_path_buf);
        let failed = |what: &Path, error: std::io::Error| format!("cannot write {}: {error}", what.display());
        let text = configuration(wiring, &socket, http, admin, &spool);
        fs::write(&config, text).await.map_err(|error| failed(&config, error))?;
        let output = fs::File::create(&log).await.map_err(|error| failed(&log, error))?.into_std().await;

        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if ["FOREBAY_", "AWS_"].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
                command.env_remove(name);
            }
        }
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        // The terminal's Ctrl-C is for the demo, which then stops the agent in good order.
        command.process_group(0);
        let child = command.spawn().map_err(|error| format!("cannot start the agent: {error}"))?;
        let mut agent = Self { child, log, socket, http, admin };
        agent.wait_until_ready().await?;
        Ok(agent)
    }

    async fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|error| format!("cannot ask for the agent's state: {error}"))? {
                return Err(self.with_log(&format!("the agent ended at once ({status})")).await);
            }
            let ready = async { Http::connect(self.admin).await?.send("GET", "/readyz", "".into()).await };
            match ready.await {
                Ok((200, _)) => return Ok(()),
                answer if Instant::now() >= deadline => {
                    let last = match answer {
                        Ok((status, body)) => format!("/readyz answers {status}: {}", String::from_utf8_lossy(&body)),
                        Err(error) => error,
                    };
                    return Err(self.with_log(&format!("the agent was not ready within {START_TIMEOUT:?} ({last})")).await);
                }
                _ => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// Its account of the one stream.
    pub(super) async fn status(&mut self) -> Result<Status, String> {
        let (code, body) = Http::connect(self.admin).await?.send("GET", "/status", "".into()).await?;
        let status: serde_json::Value = serde_json::from_slice(&body).map_err(|error| format!("/status ({code}): {error}"))?;
        Status::of(&status["streams"][0]).ok_or_else(|| format!("/status ({code}) has no account of the stream"))
    }

    /// Asks it to end, and waits. A process that does not end is killed, which is an error.
    pub(super) async fn stop(&mut self) -> Result<ExitStatus, String> {
        let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else {
            return self.child.wait().await.map_err(|error| format!("cannot wait for the agent: {error}"));
        };
        kill_process(pid, Signal::TERM).map_err(|error| format!("cannot signal the agent: {error}"))?;
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(status) => status.map_err(|error| format!("cannot wait for the agent: {error}")),
            Err(_) => {
                self.child.kill().await.map_err(|error| format!("cannot kill the agent: {error}"))?;
                Err(self.with_log(&format!("the agent did not end within {STOP_TIMEOUT:?} of SIGTERM")).await)
            }
        }
    }

    /// A sentence, and what the agent said last.
    pub(super) async fn with_log(&self, sentence: &str) -> String {
        let log = fs::read(&self.log).await.unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let mut text = sentence.to_owned();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            write!(text, "\n  | {line}").expect("a String takes all");
        }
        text
    }
}

/// Two addresses that were free a moment ago.
async fn free_addresses() -> std::io::Result<(SocketAddr, SocketAddr)> {
    let (first, second) =
        (TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?);
    Ok((first.local_addr()?, second.local_addr()?))
}

fn configuration(wiring: Wiring<'_>, socket: &Path, http: SocketAddr, admin: SocketAddr, spool: &Path) -> String {
    // TOML's basic strings take JSON's escapes.
    let quoted = |text: &str| serde_json::to_string(text).expect("text becomes JSON");
    let path = |path: &Path| quoted(&path.to_string_lossy());
    format!(
        "[listen]\nsocket = {}\nhttp = \"{http}\"\nadmin = \"{admin}\"\n\n[spool]\ndir = {}\n\n\
         [[stream]]\nname = {}\nregion = \"{REGION}\"\nendpoint = {}\naggregate = \"{}\"\n\n\
         [[source]]\nname = \"demo\"\nkind = \"events\"\nstream = {}\n\
         partition_key = [\"/userId\", \"/anonymousId\"]\npartition_key_fallback = \"reject\"\n",
        path(socket),
        path(spool),
        quoted(wiring.stream),
        quoted(wiring.endpoint),
        if wiring.aggregate_kpl { "kpl" } else { "off" },
        quoted(wiring.stream),
    )
}

/// What the agent says of its stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub accepted: u64,
    pub delivered: u64,
    pub pending: u64,
    /// Dead, expired and dropped together: in the demo each would be a fault.
    pub set_aside: u64,
    /// Known re-sends.
    pub resent: u64,
    /// PutRecords of any outcome.
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    /// Why delivery is paused; empty when it is not.
    pub paused: String,
}

impl Status {
    fn of(stream: &serde_json::Value) -> Option<Self> {
        let account = |name: &str| stream["account"][name].as_u64();
        let sum =
            |counts: &serde_json::Value| counts.as_object().map_or(0, |counts| counts.values().filter_map(|n| n.as_u64()).sum());
        Some(Self {
            accepted: account("accepted")?,
            delivered: account("delivered")?,
            pending: account("pending")?,
            set_aside: account("dead")? + account("expired")? + account("dropped")?,
            resent: sum(&stream["duplicated"]),
            requests: sum(&stream["put"]["requests"]),
            records: stream["put"]["records"].as_u64()?,
            bytes: stream["put"]["bytes"].as_u64()?,
            paused: stream["paused_reason"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_toml_whatever_the_paths_hold() {
        let odd = Path::new("/tmp/a \"quoted\" \\ path");
        let wiring = Wiring { stream: "demo", endpoint: "http://127.0.0.1:1", aggregate_kpl: true, spool: None };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 4710));
        let text = configuration(wiring, odd, address, address, odd);
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(value["listen"]["socket"].as_str(), odd.to_str());
        assert_eq!(value["stream"][0]["aggregate"].as_str(), Some("kpl"));
        assert_eq!(value["source"][0]["partition_key"][1].as_str(), Some("/anonymousId"));
    }

    #[test]
    fn the_account_is_read_from_the_status() {
        let status = serde_json::json!({
            "name": "demo",
            "account": {"accepted": 10, "delivered": 7, "pending": 2, "dead": 1, "expired": 0, "dropped": 0},
            "duplicated": {"unknown_outcome": 3},
            "put": {"requests": {"ok": 4, "partial": 1}, "records": 6, "bytes": 600},
        });
        let read = Status::of(&status).unwrap();
        assert_eq!((read.accepted, read.delivered, read.pending, read.set_aside), (10, 7, 2, 1));
        assert_eq!((read.resent, read.requests, read.records, read.bytes), (3, 5, 6, 600));
        assert_eq!(Status::of(&serde_json::json!({"name": "demo"})), None);
    }

    #[tokio::test]
    async fn the_workplace_is_private_and_goes_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let workplace = Workplace::create().await.unwrap();
        let dir = workplace.dir.clone();
        assert_eq!(fs::metadata(&dir).await.unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(workplace.path("x"), "x").await.unwrap();
        workplace.remove().await.unwrap();
        assert!(!fs::try_exists(&dir).await.unwrap());
    }
}
