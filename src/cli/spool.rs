//! The arguments of `forebay spool`, and their help.
//!
//! Place: part of `cli`, whose file tells the rules; `commands/spool.rs` does the work.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::by_key;
use crate::commands::spool::range::{Bound, parse_bound};
use crate::config::SectionKind;

/// `forebay spool`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay spool ls
  forebay spool verify --dir /var/lib/forebay/clicks
  forebay spool cat --pending --from 2h --ndjson > pending.ndjson

Beside a running agent the marks of what is delivered come from its admin listener; without one, from the spool's own
store. All but replay read only and take no lock. The spool holds what is pending and the rest of files that are not yet
removed: what was delivered long ago is gone.")]
pub struct SpoolArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: SpoolCommand,
}

/// The commands of `forebay spool`.
#[derive(Clone, Debug, Subcommand)]
pub enum SpoolCommand {
    /// One line a segment: positions, events, pending, bytes, times, state
    #[command(after_help = "Examples:
  forebay spool ls
  forebay spool ls --stream clicks --json | jq '.segments[] | select(.pending > 0).path'")]
    Ls(SpoolLookArgs),
    /// Totals: the account, what is pending and since when, the alive share of each segment, the fullest lanes
    #[command(after_help = "Examples:
  forebay spool stat
  forebay spool stat --dir /var/lib/forebay/clicks --json | jq .pending")]
    Stat(SpoolLookArgs),
    /// Check every header, frame, index, the marks and the balance; exit code 1 when anything is wrong
    #[command(after_help = "Examples:
  forebay spool verify
  forebay spool verify --dir /mnt/rescued/clicks --json | jq '.findings[] | {file, offset, what}'

Exit code 0 when nothing is wrong, 1 when something is. Notes and warnings alone are nothing wrong.")]
    Verify(SpoolLookArgs),
    /// Print events
    Cat(SpoolCatArgs),
    /// Deliver events again that are still in the files
    Replay(SpoolReplayArgs),
}

impl SpoolCommand {
    /// Which spool it is about.
    #[must_use]
    pub fn place(&self) -> &SpoolPlaceArgs {
        match self {
            Self::Ls(args) | Self::Stat(args) | Self::Verify(args) => &args.place,
            Self::Cat(args) => &args.place,
            Self::Replay(args) => &args.place,
        }
    }
}

/// Which spool.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Which spool")]
pub struct SpoolPlaceArgs {
    /// The stream [default: the only one there is]
    #[arg(long, value_name = "NAME", conflicts_with = "dir", value_parser = by_key(SectionKind::Stream, "name"))]
    pub stream: Option<String>,
    /// The spool's own directory, with or without an agent [default: by the configuration, or where a running agent says]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The agent's admin address [default: the configuration's]
    #[arg(long, value_name = "ADDR", value_parser = by_key(SectionKind::Listen, "admin"))]
    pub admin: Option<String>,
}

/// Which events.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which events")]
pub struct SpoolRangeArgs {
    /// From this on: a position (120000), a time (2026-11-20T10:00:00Z), or how long ago (2h)
    #[arg(long, value_name = "WHERE", value_parser = parse_bound)]
    pub from: Option<Bound>,
    /// Up to this, itself not included: a position, a time, or how long ago
    #[arg(long, value_name = "WHERE", value_parser = parse_bound)]
    pub to: Option<Bound>,
    /// With this partition key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// `forebay spool ls`, `stat` and `verify`: a look at the whole of it.
#[derive(Clone, Debug, Args)]
pub struct SpoolLookArgs {
    /// Which spool.
    #[command(flatten)]
    pub place: SpoolPlaceArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `forebay spool cat`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay spool cat --from 2h --key u1
  forebay spool cat --pending --ndjson | jq .data
  forebay spool cat --from 120000 --to 120010

A line of NDJSON: {\"position\":7,\"time\":\"2026-11-20T10:00:00.123Z\",\"key\":\"u1\",\"hash\":\"…\",\"data\":\"…\"};
`data_base64` stands in place of `data` where it is no text, `explicit_hash` is true where the hash is not the key's.")]
pub struct SpoolCatArgs {
    /// Which spool.
    #[command(flatten)]
    pub place: SpoolPlaceArgs,
    /// Which events.
    #[command(flatten)]
    pub range: SpoolRangeArgs,
    /// Only what is not delivered yet, by the marks
    #[arg(long)]
    pub pending: bool,
    /// One JSON object an event
    #[arg(long, visible_alias = "ndjson")]
    pub json: bool,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max: Option<u64>,
}

/// `forebay spool replay`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay spool replay --from 120000 --to 130000
  forebay spool replay --from 2026-11-20T10:00:00Z --to 2026-11-20T11:00:00Z --key u1 --yes

The events are taken in again as new ones: with new positions, counted as accepted and as forebay_events_duplicated_total
with reason \"replay\". Consumers get them a second time, in their old order among themselves, but behind everything that
was accepted before the replay: a key's old events come after its newer ones. Only what is still in the spool's files can
be replayed; events of the range that are still pending are sent twice, too. A running agent does it while it goes on; a
stopped one's spool is appended to, and delivered at its next start.")]
pub struct SpoolReplayArgs {
    /// Which spool.
    #[command(flatten)]
    pub place: SpoolPlaceArgs,
    /// Which events.
    #[command(flatten)]
    pub range: SpoolRangeArgs,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}
