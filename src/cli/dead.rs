//! The arguments of `forebay dead`, and their help.
//!
//! Place: part of `cli`, whose file tells the rules; `commands/dead.rs` does the work.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Subcommand};

use super::by_key;
use crate::config::{SectionKind, parse_time};
use crate::spool::dead::Reason;

/// `forebay dead`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay dead ls --reason expired --limit 20
  forebay dead show 17
  forebay dead retry 17 18
  forebay dead retry --all --stream clicks
  forebay dead purge --reason expired --older-than 7d --yes

Letters are read from the spool's directory, with an agent running on it or without. retry and purge go through the
running agent's admin listener, or work on the directory of a stopped one.")]
pub struct DeadArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub what: DeadCommand,
    /// The stream [default: the only one; ls takes all]
    #[arg(long, value_name = "NAME", global = true, value_parser = by_key(SectionKind::Stream, "name"))]
    pub stream: Option<String>,
    /// Where the spools live [default: the configuration's]
    #[arg(long, value_name = "DIR", global = true, value_parser = by_key(SectionKind::Spool, "dir"))]
    pub spool_dir: Option<String>,
    /// The running agent's admin address [default: the configuration's]
    #[arg(long, value_name = "ADDR", global = true, value_parser = by_key(SectionKind::Listen, "admin"))]
    pub admin: Option<String>,
}

/// What `dead` does.
#[derive(Clone, Debug, Subcommand)]
pub enum DeadCommand {
    /// One line a letter, oldest first
    Ls(DeadLsArgs),
    /// All of one letter, its data as text or base64
    Show(DeadShowArgs),
    /// Hand letters back: their events are pending again, and leave the letters once they are durable in the spool
    Retry(DeadRetryArgs),
    /// Remove letters for good; the totals of dead and expired events keep counting them
    Purge(DeadPurgeArgs),
}

/// Which letters.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which letters")]
pub struct DeadFilter {
    /// Numbers, as ls tells them
    #[arg(value_name = "NUMBER", conflicts_with = "all")]
    pub numbers: Vec<u64>,
    /// All of them, or all that the other filters leave
    #[arg(long)]
    pub all: bool,
    /// expired, damaged, poison or too_large
    #[arg(long, value_name = "REASON", value_parser = reason())]
    pub reason: Option<Reason>,
    /// Of this partition key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Dead for longer than this, such as 7d
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub older_than: Option<Duration>,
}

impl DeadFilter {
    /// Nothing is narrowed down.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.reason.is_none() && self.key.is_none() && self.older_than.is_none()
    }
}

/// `forebay dead ls`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  forebay dead ls --key user-17 --json | jq .data")]
pub struct DeadLsArgs {
    /// Which letters.
    #[command(flatten)]
    pub filter: DeadFilter,
    /// At most so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u64,
    /// One JSON object a letter, with its data
    #[arg(long)]
    pub json: bool,
}

/// `forebay dead show`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  forebay dead show 17 --json")]
pub struct DeadShowArgs {
    /// Its number, as ls tells it
    #[arg(value_name = "NUMBER")]
    pub number: u64,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// `forebay dead retry`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  forebay dead retry --reason expired --limit 100

A retried event gets a new position, so it comes behind later events of its key that are in the spool or already delivered.
Where there are such events, and where that cannot be known any more, it is said, with the letters' numbers.
Its age begins anew, so that ttl does not take it again at once. accepted counts it a second time, as dead or expired did
once: the totals only grow, and they balance. Damaged letters cannot be retried.")]
pub struct DeadRetryArgs {
    /// Which letters.
    #[command(flatten)]
    pub filter: DeadFilter,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Print the totals as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `forebay dead purge`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:
  forebay dead purge --reason expired --older-than 7d --yes")]
pub struct DeadPurgeArgs {
    /// Which letters.
    #[command(flatten)]
    pub filter: DeadFilter,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Print the totals as one JSON object
    #[arg(long)]
    pub json: bool,
}

fn reason() -> impl clap::builder::TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::label))
        .map(|word| Reason::of_label(&word).expect("one of the labels above"))
}
