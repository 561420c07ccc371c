//! Log lines: text for people or JSON for collectors, on stderr, so that stdout holds data only.
//!
//! Place: `main` starts it once, before anything that may fail. A plain level is that of our own lines; the
//! libraries' are shown from `warn` on. No event data is ever logged; that is each caller's duty.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the life of the process. `level` has passed [`check_level`].
pub fn start(format: LogFormat, level: &str) {
    // A level that is no filter was refused by the command line; should one come here, our own lines are what matters.
    let filter = filter(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            builder.with_ansi(colour).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Judges a level or filter of the command line.
///
/// # Errors
/// What is allowed.
pub fn check_level(level: &str) -> Result<String, String> {
    let allowed = "allowed: error, warn, info, debug, trace, off, or a filter such as \"info,forebay::spool=debug\"";
    filter(level).map(|_| level.to_owned()).map_err(|_| allowed.to_owned())
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let directives = match level.to_ascii_lowercase() {
        plain if plain == "off" || plain == "error" => plain,
        plain if LEVELS.contains(&plain.as_str()) => format!("warn,aws_config=error,aws_runtime=error,forebay={plain}"),
        // A filter takes any word for a module's name: one without a level is a slip.
        other if other.contains('=') || other.split(',').any(|part| LEVELS.contains(&part)) => level.to_owned(),
        _ => return Err(String::new()),
    };
    EnvFilter::try_new(directives).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken_and_slips_are_not() {
        for level in ["info", "DEBUG", "off", "info,forebay::spool=debug", "forebay=trace"] {
            check_level(level).expect(level);
        }
        for level in ["", "verbose", "infos", "forebay=loud"] {
            check_level(level).expect_err(level);
        }
    }
}
