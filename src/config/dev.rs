//! What `--dev` chooses where nobody chose: a stream, a place for the spool, a socket that can be opened.
//!
//! Place: between `layers` and `resolve`; also asked by `send`, which looks for the socket where such an agent
//! puts it. *Own spool*: an agent that delivers to an embedded Kinesis never opens a spool that another agent
//! may have filled for a real stream, since what it delivers from there would be gone. So a directory from the
//! file or the environment gets a subdirectory that no stream can be named like; only `--spool-dir` is taken as it is.

use std::path::{Path, PathBuf};

use super::env::Environment;
use super::errors::Origin;
use super::layers::{Given, Raw};
use super::schema::SectionKind;

/// The stream of an agent that was given none.
pub const STREAM: &str = "dev";

/// Where the embedded Kinesis says it is.
pub const REGION: &str = "us-east-1";

/// Below a configured spool directory. `@` stands in no stream's name.
const SUBDIRECTORY: &str = "@dev";

/// The socket's usual directory.
const RUN_DIR: &str = "/run/forebay";

/// Fills the gaps. The notes are for the person who starts the agent.
pub(crate) fn fill(given: &mut Given, env: &dyn Environment) -> Vec<String> {
    if given.count(SectionKind::Stream) == 0 {
        given.section(SectionKind::Stream, 0);
    }
    for index in 0..given.count(SectionKind::Stream) {
        // Only the stream that nobody gave is named here: one without its name elsewhere is a slip to be told.
        if given.section(SectionKind::Stream, index).0.values().all(|value| matches!(value.origin, Origin::Flag(_))) {
            gap(given, SectionKind::Stream, index, "name", STREAM);
        }
        let names_its_region = given
            .section(SectionKind::Stream, index)
            .0
            .get("name")
            .is_some_and(|name| matches!(&name.raw, Raw::Text(name) if name.starts_with("arn:")));
        if !names_its_region {
            gap(given, SectionKind::Stream, index, "region", REGION);
        }
    }
    let dir = spool_dir(given, env);
    let mut notes = vec![format!("spool in {}", dir.display())];
    if !given.section(SectionKind::Listen, 0).0.contains_key("socket") {
        let socket = socket(&dir, env);
        notes.push(format!("socket at {}", socket.display()));
        gap(given, SectionKind::Listen, 0, "socket", &socket.to_string_lossy());
    }
    notes
}

/// Gives a value where none is.
fn gap(given: &mut Given, kind: SectionKind, index: usize, name: &str, value: &str) {
    let key = kind.key(name).expect("dev names keys of the schema");
    let section = given.section(kind, index);
    if !section.0.contains_key(name) {
        section.give(key, Raw::Text(value.into()), Origin::Dev);
    }
}

/// The spool's directory under *Own spool*, put in force.
fn spool_dir(given: &mut Given, env: &dyn Environment) -> PathBuf {
    let section = given.section(SectionKind::Spool, 0);
    if let Some(dir) = section.0.get_mut("dir") {
        if let Raw::Text(path) = &mut dir.raw {
            if !matches!(dir.origin, Origin::Flag(_)) && !path.is_empty() {
                *path = format!("{}/{SUBDIRECTORY}", path.trim_end_matches('/'));
            }
            return path.as_str().into();
        }
        // Not a text: told by `resolve`.
        return PathBuf::new();
    }
    let dir = state_dir(env);
    gap(given, SectionKind::Spool, 0, "dir", &dir.to_string_lossy());
    dir
}

/// `$XDG_STATE_HOME/forebay`, `~/.local/state/forebay` (the XDG default), or `forebay-dev` here.
fn state_dir(env: &dyn Environment) -> PathBuf {
    absolute(env, "XDG_STATE_HOME")
        .or_else(|| absolute(env, "HOME").filter(|home| env.is_writable_dir(home)).map(|home| home.join(".local/state")))
        .map_or_else(|| "forebay-dev".into(), |state| state.join("forebay"))
}

/// The usual place if it can be written, else the user's runtime directory, else beside the spool.
fn socket(spool: &Path, env: &dyn Environment) -> PathBuf {
    if env.is_writable_dir(Path::new(RUN_DIR)) {
        return Path::new(RUN_DIR).join("forebay.sock");
    }
    match absolute(env, "XDG_RUNTIME_DIR").filter(|dir| env.is_writable_dir(dir)) {
        Some(dir) => dir.join("forebay.sock"),
        None => spool.join("forebay.sock"),
    }
}

/// Where a client finds the socket when nobody told it: the first that stands there, or the usual one.
pub(crate) fn find_socket(usual: &Path, env: &dyn Environment) -> PathBuf {
    let runtime = absolute(env, "XDG_RUNTIME_DIR").map(|dir| dir.join("forebay.sock"));
    let candidates = [Some(usual.to_path_buf()), runtime, Some(state_dir(env).join("forebay.sock"))];
    candidates.into_iter().flatten().find(|path| env.exists(path)).unwrap_or_else(|| usual.to_path_buf())
}

/// A directory from a variable. The XDG specification says that relative ones are to be ignored.
fn absolute(env: &dyn Environment, name: &str) -> Option<PathBuf> {
    env.var(name).ok().map(PathBuf::from).filter(|path| path.is_absolute())
}
