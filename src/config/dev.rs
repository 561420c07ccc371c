//! What `--dev` chooses where nobody chose: a stream, a place for the spool, a socket that can be opened.
//!
//! Place: around `resolve`: the stream is named before it, the places are chosen after it. Also asked by `send`, which looks for the socket where such an agent
//! puts it. *Own spool*: an agent that delivers to an embedded Kinesis never opens a spool that another agent
//! may have filled for a real stream, since what it delivers from there would be gone. So a directory from the
//! file or the environment gets a subdirectory that no stream can be named like; only `--spool-dir` is taken as it is.

use std::path::{Path, PathBuf};

use super::check_flag;
use super::env::Environment;
use super::errors::{Origin, Problem};
use super::layers::{Given, GivenSection, Raw};
use super::resolve::{InForce, Typed};
use super::schema::SectionKind;

/// The stream of an agent that was given none.
pub const STREAM: &str = "dev";

/// Where the embedded Kinesis says it is.
pub const REGION: &str = "us-east-1";

/// Below a configured spool directory. `@` stands in no stream's name.
const SUBDIRECTORY: &str = "@dev";

/// The socket's usual directory.
const RUN_DIR: &str = "/run/forebay";

/// Names a stream and a region where nobody did, and lets its mode be asked for at once, before values are read.
pub(crate) fn name_stream(given: &mut Given) {
    if given.count(SectionKind::Stream) == 0 {
        given.section(SectionKind::Stream, 0);
    }
    for index in 0..given.count(SectionKind::Stream) {
        let stream = given.section(SectionKind::Stream, index);
        // Only a stream that nobody described is named here: elsewhere a missing name is a slip to be told.
        if stream.0.values().all(|value| matches!(value.origin, Origin::Flag(_))) {
            gap(stream, "name", STREAM);
        }
        let names_its_region =
            stream.0.get("name").is_some_and(|name| matches!(&name.raw, Raw::Text(name) if name.starts_with("arn:")));
        if !names_its_region {
            gap(stream, "region", REGION);
        }
        // Nobody shares the embedded Kinesis' account.
        gap(stream, "ask_mode_within", "0s");
    }
}

/// Gives a stream's key a value where none is.
fn gap(stream: &mut GivenSection, name: &str, value: &str) {
    let key = SectionKind::Stream.key(name).expect("the schema has these keys of a stream");
    if !stream.0.contains_key(name) {
        stream.give(key, Raw::Text(value.into()), Origin::Dev);
    }
}

/// Chooses spool directory and socket, after values were read. The notes are for the person who starts the agent.
pub(crate) fn choose_places(in_force: &mut InForce, env: &dyn Environment, problems: &mut Vec<Problem>) -> Vec<String> {
    let spool = in_force.one_mut(SectionKind::Spool);
    let setting = spool.setting("dir");
    let dir = match (&setting.origin, spool.text("dir")) {
        (Origin::Flag(_), Some(dir)) => PathBuf::from(dir),
        (Origin::Default, _) | (_, None) => state_dir(env),
        (_, Some(dir)) if Path::new(&dir).ends_with(SUBDIRECTORY) => dir.into(),
        (_, Some(dir)) => Path::new(&dir).join(SUBDIRECTORY),
    };
    if !matches!(setting.origin, Origin::Flag(_)) {
        spool.fill("dir", Typed::Text(Some(dir.to_string_lossy().into_owned())), Origin::Dev);
    }
    let mut notes = vec![format!("spool in {}", dir.display())];
    let listen = in_force.one_mut(SectionKind::Listen);
    if listen.setting("socket").origin == Origin::Default && listen.sound(&["socket"]) {
        let socket = socket(&dir, env).to_string_lossy().into_owned();
        notes.push(format!("socket at {socket}"));
        let fits = check_flag(SectionKind::Listen, "socket", &socket).is_ok();
        listen.fill("socket", Typed::Text(Some(socket)), Origin::Dev);
        if !fits {
            problems.push(listen.problem("socket", "the path is too long for a socket; choose another with --socket"));
        }
    }
    notes
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
