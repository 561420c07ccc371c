//! Runs the real binary: writes its configuration, starts it, watches it, kills it.
//!
//! Place: for tests and benches that need the whole agent; Kinesis is the sink's endpoint. Owner: an [`Agent`] owns its
//! child process and kills it when dropped, so that a failing test leaves nothing behind. The spool outlives it: a second
//! [`Agent::start`] with the same [`Setup`] is a restart. Failure: panics with the end of the agent's log, because in a
//! test nothing else can be done about it. Waits poll a condition with a deadline; none hopes that a time is enough.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::sink::http_get;

/// Longest wait for something that takes milliseconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What an agent is started with; the same again after a crash.
#[derive(Clone, Debug)]
pub struct Setup {
    pub binary: PathBuf,
    /// Holds the configuration, the socket, the log and the spool.
    pub dir: PathBuf,
    /// Of the sink.
    pub endpoint: String,
    /// `kpl` or `off`.
    pub aggregate: &'static str,
    /// More lines for `[spool]`.
    pub spool: String,
    /// More lines for `[[stream]]`.
    pub stream: String,
    /// More tables: further streams, further sources.
    pub more: String,
    /// The whole environment beside HOME: credentials, and settings that win over the file (`FOREBAY_SPOOL__DIR`).
    pub env: Vec<(&'static str, String)>,
    /// Listening sockets that are passed to it as systemd does; two at the most. Their names are `LISTEN_FDNAMES` of `env`.
    pub passed: Vec<Arc<OwnedFd>>,
}

impl Setup {
    pub fn new(binary: &str, dir: impl Into<PathBuf>, endpoint: String, aggregate: &'static str) -> Self {
        let (spool, stream) = (String::new(), String::new());
        let env = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_EC2_METADATA_DISABLED", "true")];
        let env = env.map(|(name, value)| (name, value.to_owned())).to_vec();
        let more = String::new();
        Self { binary: binary.into(), dir: dir.into(), endpoint, aggregate, spool, stream, more, env, passed: Vec::new() }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("s.sock")
    }

    /// The configuration's file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("forebay.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// All that its agents have logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn configuration(&self, admin: SocketAddr) -> String {
        let mut text = String::new();
        let (socket, spool, endpoint, aggregate) = (self.socket(), self.dir.join("spool"), &self.endpoint, self.aggregate);
        let written = write!(
            text,
            r#"[listen]
socket = {socket:?}
http = ""
admin = "{admin}"

[spool]
dir = {spool:?}
{}

[[stream]]
name = "events"
region = "us-east-1"
endpoint = "{endpoint}"
aggregate = "{aggregate}"
{}

[[source]]
name = "app"
stream = "events"
partition_key = ["/userId"]
{}"#,
            self.spool, self.stream, self.more
        );
        written.expect("a String takes everything");
        if !self.stream.contains("ask_mode_within") {
            // A lone agent: what its stream is like, it is told at once.
            text = text.replacen("\n\n[[source]]", "\nask_mode_within = \"0s\"\n\n[[source]]", 1);
        }
        text
    }

    /// The last lines of the log, for a failure's text.
    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// The balance as `/status` tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub accepted: u64,
    pub delivered: u64,
    pub pending: u64,
    pub dead: u64,
    pub expired: u64,
    pub dropped: u64,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    setup: Setup,
    child: Child,
    admin: SocketAddr,
}

impl Agent {
    /// Starts the process and waits for nothing.
    pub fn spawn(setup: &Setup) -> Self {
        fs::create_dir_all(&setup.dir).expect("the test's directory");
        // The port is free at this moment, and nothing else on the machine is likely to take the next one given out.
        let admin = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a loopback port");
        let file = setup.file();
        fs::write(&file, setup.configuration(admin)).expect("the configuration");
        let log = fs::OpenOptions::new().create(true).append(true).open(setup.log()).expect("the log");
        let mut command = Command::new(&setup.binary);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log"));
        if !setup.passed.is_empty() {
            // A shell puts them where the protocol has them, and says so to the process that it becomes.
            command = Command::new("/bin/sh");
            let moved = r#"exec 3<&0 4<&1 0</dev/null 1>&2; export LISTEN_PID=$$; exec "$0" "$@""#;
            command.args(["-c", moved]).arg(&setup.binary);
            let mut sockets = setup.passed.iter().map(|socket| socket.try_clone().expect("a descriptor"));
            command.stdin(sockets.next().map_or_else(Stdio::null, Stdio::from));
            command.stdout(sockets.next().map_or_else(Stdio::null, Stdio::from));
        }
        let environment = setup.env.iter().map(|(name, value)| (*name, value.as_str()));
        let passed = setup.passed.len().to_string();
        let environment = environment.chain((!setup.passed.is_empty()).then_some(("LISTEN_FDS", passed.as_str())));
        let child = command
            .arg("run")
            .arg("--config")
            .arg(&file)
            .env_clear()
            .envs(environment)
            .env("HOME", &setup.dir)
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", setup.binary.display()));
        Self { setup: setup.clone(), child, admin }
    }

    /// Starts the process and waits until it accepts events.
    pub fn start(setup: &Setup) -> Self {
        let mut agent = Self::spawn(setup);
        agent.wait_ready();
        agent
    }

    /// Waits until the agent accepts events.
    pub fn wait_ready(&mut self) {
        let mut status = None;
        self.wait_for("the agent to be ready", |agent| {
            if let Some(code) = agent.child.try_wait().expect("a child can be waited for") {
                panic!("the agent ended with {code} at its start; its log:\n{}", agent.setup.log_tail());
            }
            status = http_get(agent.admin, "/readyz").ok().map(|(status, _)| status);
            status == Some(200) && UnixStream::connect(agent.setup.socket()).is_ok()
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Status code and body of a path of the admin listener, if the agent answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let (status, body) = http_get(self.admin, path).ok()?;
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// `/status`, if the agent answers.
    pub fn status(&self) -> Option<serde_json::Value> {
        let (status, body) = http_get(self.admin, "/status").ok()?;
        (status == 200).then(|| serde_json::from_slice(&body).ok())?
    }

    /// The only stream's balance, checked.
    pub fn account(&self) -> Account {
        let status = self.status().unwrap_or_else(|| panic!("no /status; the log:\n{}", self.setup.log_tail()));
        let account = &status["streams"][0]["account"];
        let of = |name: &str| account[name].as_u64().unwrap_or_else(|| panic!("no account.{name} in {status}"));
        let [accepted, delivered, pending] = ["accepted", "delivered", "pending"].map(of);
        let [dead, expired, dropped] = ["dead", "expired", "dropped"].map(of);
        assert_eq!(accepted, delivered + pending + dead + expired + dropped, "EXACT-ACCOUNT: {account}");
        Account { accepted, delivered, pending, dead, expired, dropped }
    }

    /// Events that were or may have been sent more than once since this process began, over all reasons.
    pub fn duplicated(&self) -> u64 {
        let status = self.status().unwrap_or_else(|| panic!("no /status; the log:\n{}", self.setup.log_tail()));
        let reasons = status["streams"][0]["duplicated"].as_object().unwrap_or_else(|| panic!("no duplicated in {status}"));
        reasons.values().map(|count| count.as_u64().expect("a count")).sum()
    }

    /// Polls until `done`, and panics with the log when the deadline passes.
    pub fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            if start.elapsed() > DEADLINE {
                let status = self.status().map_or_else(|| "no answer".to_owned(), |status| status.to_string());
                panic!("waited too long for {what}; /status: {status}\nthe log:\n{}", self.setup.log_tail());
            }
            thread::sleep(Duration::from_millis(3));
        }
    }

    /// Waits until nothing is pending, and gives the balance.
    pub fn wait_drained(&mut self) -> Account {
        let mut account = Account::default();
        self.wait_for("everything to be delivered", |agent| {
            account = agent.account();
            account.pending == 0
        });
        account
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // An error means that it has ended already.
        if self.child.kill().is_ok() {
            self.child.wait().expect("a killed child ends");
        }
    }

    /// SIGTERM, and waits for nothing.
    pub fn ask_to_end(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the agent lives");
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(self) -> ExitStatus {
        self.ask_to_end();
        self.wait_end()
    }

    /// Waits until the process has ended.
    pub fn wait_end(mut self) -> ExitStatus {
        let mut code = None;
        self.wait_for("the agent to end", |agent| {
            code = agent.child.try_wait().expect("a child can be waited for");
            code.is_some()
        });
        code.expect("waited for")
    }

    /// User and system time of the process so far, in ticks of 10 ms.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.pid())
    }

    /// The most memory it ever held, bytes (VmHWM).
    pub fn rss_peak(&self) -> u64 {
        self.memory("VmHWM")
    }

    /// A size that `/proc/PID/status` tells under this name, bytes.
    pub fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a living process");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let line = line.unwrap_or_else(|| panic!("Linux tells no {name}"));
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
        kib << 10
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

/// User and system time of a living process, in ticks of 10 ms (USER_HZ is 100 wherever Linux runs).
pub fn cpu_of(pid: u32) -> Duration {
    let mut text = String::new();
    let read = fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read_to_string(&mut text));
    read.expect("a living process");
    // The second field is the name in parentheses, and may hold anything.
    let rest = &text[text.rfind(')').expect("a name in parentheses") + 2..];
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(10 * ticks)
}
