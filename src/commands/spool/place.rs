//! Which spool is meant, whether an agent works on it, and the marks of what is settled.
//!
//! Place: first step of every `forebay spool` command. A directory that was named wins; then the configuration's
//! spool.dir; then where the agent that answers at the admin address keeps its spools, which finds one of `run --dev`.
//!
//! Marks come from the agent where one answers for this very directory, since sled opens for one process only; else
//! from a copy of the store's files. Every command says which. Failure: one sentence with the place and the remedy.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Failed;
use crate::admin::spool::{MarksReport, SpoolList};
use crate::agent::spool_dir;
use crate::checkpoint::{self, Checkpoint};
use crate::cli::SpoolPlaceArgs;
use crate::commands::status::{self, StatusError};
use crate::config::Config;
use crate::host::{self, Host};
use crate::metrics::Account;
use crate::spool::inspect::verify::KnownMarks;
use crate::spool::inspect::{InspectError, SpoolDir};
use crate::spool::recover::OpenError;

/// The longest the agent may take to say where its spools are, or its marks.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The agent that works on a spool.
#[derive(Clone, Debug)]
pub struct LiveAgent {
    /// Its admin listener.
    pub admin: SocketAddr,
    /// The stream's name in the listener's paths.
    pub stream: String,
}

/// A spool that was found.
#[derive(Debug)]
pub struct Place {
    /// Its directory, opened for looking.
    pub spool: SpoolDir,
    /// The agent that answers for it.
    pub agent: Option<LiveAgent>,
    /// The process that holds its lock, as far as the system tells, when no agent answers.
    pub holder: Option<u32>,
    /// Machine.
    pub host: Host,
}

/// Where marks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The running agent told them.
    Live,
    /// The spool's own store.
    Saved,
    /// There are none to be had.
    None,
}

/// Marks, and how far they can be trusted.
#[derive(Clone, Debug)]
pub struct Marks {
    /// Where from.
    pub origin: Origin,
    /// Since when they stand.
    pub age: Option<Duration>,
    /// The marks themselves, for `verify`.
    pub known: KnownMarks,
    /// What a person should know of them.
    pub caveat: Option<String>,
}

/// Finds the spool.
///
/// # Errors
/// A sentence for a person.
pub(super) async fn find(args: &SpoolPlaceArgs, config: Option<&Config>, host: &Host) -> Result<Place, Failed> {
    let admin = config.and_then(|config| config.listen.admin);
    let listed = match admin {
        Some(admin) => get::<SpoolList>(admin, "/spool").await.map(|list| list.spools),
        None => Err("listen.admin is off".to_owned()),
    };
    let spools = listed.as_deref().unwrap_or_default();
    let dir = match (&args.dir, &args.stream) {
        (Some(dir), _) => inside(host, dir)?,
        (None, wanted) => {
            let root = config.map(|config| config.spool.dir.clone()).unwrap_or_default();
            let mut found = spools_in(host, &root)?;
            let same = |dir: &Path, found: &[PathBuf]| found.iter().any(|held| is_same(held, dir));
            for place in spools {
                if !same(&place.dir, &found) {
                    found.push(place.dir.clone());
                }
            }
            let name_of = |dir: &Path| dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let known = found.iter().map(|dir| format!("  {}", dir.display())).collect::<Vec<_>>().join("\n");
            if let Some(wanted) = wanted {
                let name = name_of(&spool_dir(Path::new(""), wanted));
                found.retain(|dir| name_of(dir) == name);
            }
            match (&found[..], wanted) {
                ([first, ..], Some(_)) | ([first], None) => first.clone(),
                ([], _) => return Err(nothing(wanted.as_deref(), &root, &known, admin, listed.as_ref().err()).into()),
                (_, None) => {
                    return Err(format!("there are several spools; name one with --stream NAME or --dir DIR:\n{known}").into());
                }
            }
        }
    };
    let mut spool = SpoolDir::open(host, &dir).map_err(|error| told(&error))?;
    let mut host = host.clone();
    if let Some(config) = config {
        // With the keys to read it.
        host = config.coding(spool.stream()).map_err(Failed::Key)?.host(&host);
        spool = spool.through(&host);
    }
    let agent = spools.iter().find(|place| is_same(&place.dir, &dir)).zip(admin);
    let agent = agent.map(|(place, admin)| LiveAgent { admin, stream: place.stream.clone() });
    let holder = if agent.is_none() { host::lock_holder(&dir.join("lock")) } else { None };
    Ok(Place { spool, agent, holder, host })
}

fn nothing(wanted: Option<&str>, root: &Path, known: &str, admin: Option<SocketAddr>, error: Option<&String>) -> String {
    let mut text = match wanted {
        Some(name) => format!("there is no spool of stream {name} in {}", root.display()),
        None => format!("there is no spool in {}", root.display()),
    };
    match (admin, error) {
        (Some(admin), Some(_)) => text.push_str(&format!(", and no agent answers at {admin}")),
        (Some(admin), None) => text.push_str(&format!(", and the agent at {admin} has none either")),
        (None, _) => {}
    }
    if known.is_empty() {
        text.push_str(
            ". Name its directory with --dir DIR (an agent tells it in its log at the start: `spool open dir=…`), or the \
             configuration with --config FILE",
        );
    } else {
        text.push_str(&format!(". There are:\n{known}"));
    }
    text
}

/// An error of looking, with the remedy where rights are missing.
#[must_use]
pub fn told(error: &InspectError) -> String {
    let denied =
        matches!(error, InspectError::Open(OpenError::Io { error, .. }) if error.kind() == io::ErrorKind::PermissionDenied);
    let remedy = if denied { "; events lie there, so only the agent's own user may look: run this as that user" } else { "" };
    match error {
        InspectError::NoDirectory(_) => {
            format!("{error}; `forebay config` tells spool.dir, which holds a directory for each stream")
        }
        _ => format!("{error}{remedy}"),
    }
}

/// The spool that is this directory, or the only one in it.
fn inside(host: &Host, dir: &Path) -> Result<PathBuf, String> {
    if dir.join("format").exists() {
        return Ok(dir.to_owned());
    }
    let found = spools_in(host, dir)?;
    match &found[..] {
        [only] => Ok(only.clone()),
        // Opening says what is wrong with it.
        [] => Ok(dir.to_owned()),
        several => {
            let known = several.iter().map(|dir| format!("\n  {}", dir.display())).collect::<String>();
            Err(format!("{} holds several spools; name one of them with --dir:{known}", dir.display()))
        }
    }
}

fn spools_in(host: &Host, root: &Path) -> Result<Vec<PathBuf>, String> {
    match host.files.list(root) {
        Ok(names) => Ok(names.into_iter().map(|name| root.join(name)).filter(|dir| dir.join("format").exists()).collect()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(told(&InspectError::Open(OpenError::Io { doing: format!("listing {}", root.display()), error }))),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Gets one path of the admin listener as JSON.
///
/// # Errors
/// A sentence for a person.
pub async fn get<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> Result<T, String> {
    ask(admin, path, None).await.map_err(|error| error.text)
}

/// Why the agent did not do what it was asked.
#[derive(Clone, Debug)]
pub struct AskError {
    /// The sentence for a person.
    pub text: String,
    /// It may do it later (503).
    pub later: bool,
}

impl From<String> for AskError {
    fn from(text: String) -> Self {
        Self { text, later: false }
    }
}

/// Asks the admin listener, with a body as POST.
///
/// # Errors
/// A sentence for a person: no agent, or what it answered.
pub async fn ask<T: DeserializeOwned>(admin: SocketAddr, path: &str, body: Option<String>) -> Result<T, AskError> {
    let (method, wait) = match body {
        None => ("GET", ASK_TIMEOUT),
        // A slice may wait for room, and for a slow disk.
        Some(_) => ("POST", Duration::from_secs(60)),
    };
    let request = Request::builder().method(method).uri(path).body(Full::new(Bytes::from(body.unwrap_or_default())));
    let request = request.map_err(|error| format!("{path}: {error}"))?;
    let answer = tokio::time::timeout(wait, status::call(admin, request, status::ANSWER_BYTES_MAX))
        .await
        .unwrap_or(Err(StatusError::Timeout(admin)));
    let (status, body) = answer.map_err(|error| error.to_string())?;
    if status != StatusCode::OK {
        let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let said = said.and_then(|said| said["error"].as_str().map(str::to_owned)).unwrap_or_else(|| status.to_string());
        let text = match status {
            StatusCode::NOT_FOUND => format!("the agent at {admin} does not know {path} ({said}); is it of an older version?"),
            _ => format!("the agent at {admin} says: {said}"),
        };
        return Err(AskError { text, later: status == StatusCode::SERVICE_UNAVAILABLE });
    }
    let answer = serde_json::from_slice(&body);
    answer.map_err(|error| format!("what answers at {admin} is not forebay's admin listener ({error})").into())
}

impl Place {
    /// The marks as they are now.
    pub async fn marks(&self) -> Marks {
        let mut caveat = None;
        if let Some(agent) = &self.agent {
            match get::<MarksReport>(agent.admin, &format!("/spool/{}/marks", agent.stream)).await {
                Ok(report) => {
                    let age = Some(Duration::from_millis(report.now_ms.saturating_sub(report.saved_ms)));
                    let report_account = report.account;
                    let account = Account {
                        accepted: report_account.accepted,
                        delivered: report_account.delivered,
                        dead: report_account.dead,
                        expired: report_account.expired,
                        dropped: report_account.dropped,
                    };
                    let checkpoint = Some(Checkpoint::from(report));
                    let known = KnownMarks { checkpoint, account: Some(account), unreadable: None, live: true };
                    return Marks { origin: Origin::Live, age, known, caveat: None };
                }
                Err(error) => caveat = Some(error),
            }
        } else if let Some(pid) = self.holder {
            caveat = Some(format!(
                "process {pid} holds this spool's lock, but does not answer as its agent (--admin ADDR names its address): \
                 these are its store's files, copied while it may write them"
            ));
        }
        let live = self.agent.is_some() || self.holder.is_some();
        let ledger = self.spool.dir().join("ledger");
        let (checkpoint, unreadable) = match checkpoint::peek(&ledger) {
            Ok(checkpoint) => (checkpoint, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let origin = if checkpoint.is_some() { Origin::Saved } else { Origin::None };
        let saved = std::fs::metadata(ledger.join("db")).and_then(|meta| meta.modified()).ok();
        let age = saved.filter(|_| checkpoint.is_some()).and_then(|saved| saved.elapsed().ok());
        Marks { origin, age, known: KnownMarks { checkpoint, account: None, unreadable, live }, caveat }
    }

    /// What stands above every table.
    #[must_use]
    pub fn title(&self) -> String {
        let agent = match (&self.agent, self.holder) {
            (Some(agent), _) => format!("agent at {}", agent.admin),
            (None, Some(pid)) => format!("in use by process {pid}"),
            (None, None) => "no agent".to_owned(),
        };
        format!("stream {} in {}, {agent}", self.spool.stream(), self.spool.dir().display())
    }
}

impl Marks {
    /// One line for a person.
    #[must_use]
    pub fn line(&self) -> String {
        let age = self.age.map(|age| format!(", saved {} ago", status::seconds(age.as_secs_f64()))).unwrap_or_default();
        let mut line = match self.origin {
            Origin::Live => format!("marks: live, told by the agent{age}"),
            Origin::Saved => format!("marks: saved, from the spool's own store{age}"),
            Origin::None => match &self.known.unreadable {
                Some(error) => {
                    format!("marks: none, the store cannot be read ({error}); all that is in the files counts as pending")
                }
                None => "marks: none; all that is in the files counts as pending".to_owned(),
            },
        };
        if let Some(caveat) = &self.caveat {
            line.push_str(&format!("\n  {caveat}"));
        }
        line
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let age = self.age.map(|age| age.as_secs_f64());
        json!({"origin": self.origin, "age_seconds": age, "caveat": self.caveat, "unreadable": self.known.unreadable})
    }

    /// The checkpoint to count by: without marks, one that settles nothing.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        self.known.checkpoint.clone().unwrap_or_default()
    }
}
