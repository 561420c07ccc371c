//! How the process ends: exit codes, and what a panic does.
//!
//! Place: `main` and every command. *No zombie*: a panic in any task or thread ends the whole process with
//! [`PANICKED`], since an agent that lost its commit thread or a lane would look healthy and move nothing. What
//! was receipted is on disk, so a supervisor's restart loses nothing.
//!
//! One exception: the store of the marks may be lost, and sled panics on some kinds of damage, in threads of its
//! own too. Such a panic is [`contained`]: it costs the marks, not the process.
//!
//! Absent on purpose: unwinding as a way to go on anywhere else, and `abort`, whose core file would hold event data.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::process::ExitCode;

/// The codes that scripts and supervisors may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Good = 0,
    /// The work failed.
    Failed = 1,
    /// The command line is wrong (`EX_USAGE` of sysexits.h).
    Usage = 64,
    /// The configuration is wrong (`EX_CONFIG` of sysexits.h).
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Exit code after a panic; the one Rust itself uses for a panic of the main thread.
pub const PANICKED: i32 = 101;

/// What the names of sled's own threads begin with.
const SLED_THREADS: &str = "sled-";

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on something that may be lost; `None` when it panicked. What `work` touched must not be used again.
pub fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    let outer = CONTAINED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work)).ok();
    CONTAINED.set(outer);
    done
}

/// From now on, a panic anywhere is logged and ends the process, unless it is [`contained`].
pub fn on_any_panic() {
    std::panic::set_hook(Box::new(|info| {
        let backtrace = Backtrace::capture();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let message = without_data(message(info));
        if CONTAINED.get() || thread.starts_with(SLED_THREADS) {
            tracing::warn!(%place, %thread, %message, "the store of the marks gave up on its files");
            return;
        }
        tracing::error!(%place, %thread, %message, "a bug: the process ends so that it can be started afresh; nothing receipted is lost");
        if !tracing::enabled!(tracing::Level::ERROR) {
            eprintln!("forebay: a bug at {place}: {message}");
        }
        if backtrace.status() == BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
        std::process::exit(PANICKED);
    }));
}

fn message<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    info.payload_as_str().unwrap_or("no message")
}

/// The first line, without what stands in quotes: std quotes the text it was working on, which may be an event's.
fn without_data(message: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    for c in message.lines().next().unwrap_or_default().chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'' | '`') => {
                quote = Some(c);
                out.push('…');
            }
            None => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contained_panic_is_none_and_containment_ends_with_it() {
        assert_eq!(contained(|| 7), Some(7));
        assert_eq!(contained(|| contained(|| -> u8 { panic!("as sled does") }).is_none()), Some(true));
        assert!(!CONTAINED.get());
    }

    #[test]
    fn no_text_in_quotes_leaves_a_panic_message() {
        let std_says = "byte index 1 is not a char boundary; it is inside 'é' (bytes 0..2) of `secret`\nleft: \"more\"";
        assert_eq!(without_data(std_says), "byte index 1 is not a char boundary; it is inside … (bytes 0..2) of …");
        assert_eq!(without_data("called `x` on \"open"), "called … on …");
        assert_eq!(
            without_data("index out of bounds: the len is 3 but the index is 7"),
            "index out of bounds: the len is 3 but the index is 7"
        );
    }
}
