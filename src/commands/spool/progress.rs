//! A progress bar over work that reads files: on a terminal only, moved by the bytes that were read.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on stderr where that is a terminal and `wanted`, nothing elsewhere.
#[must_use]
pub fn bar(bytes: u64, wanted: bool) -> ProgressBar {
    if !wanted || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    // The bar takes what the terminal's width leaves: a line that is too long would be two.
    match ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Stdout leads into a file: a bar beside it disturbs nobody.
#[must_use]
pub fn stdout_is_file() -> bool {
    std::fs::metadata("/dev/stdout").is_ok_and(|meta| meta.is_file())
}

/// Does blocking work on a thread of its own, and moves the bar by `read` meanwhile.
///
/// # Panics
/// When the work does.
pub async fn watched<T: Send + 'static>(bar: &ProgressBar, read: Arc<AtomicU64>, work: impl FnOnce() -> T + Send + 'static) -> T {
    let mut work = tokio::task::spawn_blocking(work);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let most = bar.length().unwrap_or(u64::MAX);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            _ = tick.tick() => bar.set_position(read.load(Ordering::Relaxed).min(most)),
        }
    };
    bar.finish_and_clear();
    done.expect("a panic ends the process before it is seen here")
}
