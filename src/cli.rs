//! The command line: commands, flags, their help, and which configuration each command needs.
//!
//! Place: `main` parses it first; each command is handed its own arguments. A flag that stands for a key of the
//! configuration is judged by that key's own rule and then laid over file and environment ([`Request`]), so that
//! there is one way to read a value. Failure: clap's own report and exit code 64; help and version are no failure.
//!
//! Absent on purpose: what a command does.

mod check;
mod dead;
mod dev_cert;
mod spool;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::config::{Aggregate, Override, Purpose, Request, SectionKind, check_flag, parse_time};
use crate::exit::Exit;
use crate::kinesis::ReadFrom;
use crate::logging::{self, LogFormat};

pub use check::*;
pub use dead::*;
pub use dev_cert::*;
pub use spool::*;

/// Version, commit and features of this build. The commit is what the variable `FOREBAY_COMMIT` named when it was compiled, as
/// `packaging/release.sh` sets it.
#[must_use]
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("FOREBAY_COMMIT").unwrap_or("unknown");
        let features = if cfg!(feature = "dev") { "dev" } else { "none" };
        format!("{} (commit {commit}, features: {features})", env!("CARGO_PKG_VERSION"))
    });
    &VERSION
}

/// Takes an application's events, has them on disk before it says "received", and delivers them to Amazon Kinesis.
#[derive(Clone, Debug, Parser)]
#[command(name = "forebay", version = version(), max_term_width = 110, disable_help_subcommand = false)]
#[command(after_help = "Start here:
  forebay demo                              the whole way once, nothing else needed
  forebay run --dev                         an agent with an embedded Kinesis
  forebay run --stream NAME --region R      an agent for a stream of yours

Exit codes: 0 good, 1 the work failed, 64 the command line is wrong, 78 the configuration is wrong.")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// Configuration file [default: /etc/forebay/forebay.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true, env = "FOREBAY_CONFIG")]
    config: Option<PathBuf>,
    /// Form of the log lines on stderr
    #[arg(long, value_name = "FORM", global = true, env = "FOREBAY_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// error, warn, info, debug, trace, off, or a filter such as "info,forebay::spool=debug" [default: info for run, else warn]
    #[arg(long, value_name = "LEVEL", global = true, env = "FOREBAY_LOG_LEVEL", value_parser = logging::check_level)]
    log_level: Option<String>,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// The agent: takes events, keeps them on disk, delivers them
    Run(RunArgs),
    /// The whole way once, with an embedded Kinesis: send, deliver, read back, compare
    Demo(DemoArgs),
    /// Send events from files or stdin to the agent, and know that they are durable
    Send(SendArgs),
    /// Read a stream as a consumer would, with KPL aggregates taken apart
    Tail(TailArgs),
    /// What the agent holds, delivers and suffers from, now
    Status(StatusArgs),
    /// Ask the agent to stop accepting, deliver what it holds, and end; wait for that
    Drain(DrainArgs),
    /// Look into a spool, of a running agent or a stopped one: segments, events, checksums; deliver a range again
    Spool(SpoolArgs),
    /// What was set aside: list, show, hand back, purge
    Dead(DeadArgs),
    /// The configuration in force, each value with its origin
    Config(ConfigArgs),
    /// What would keep the agent from its work: configuration, disk, credentials, rights, streams
    Check(CheckArgs),
    /// The least rights for the configured streams, as IAM documents
    IamPolicy(IamPolicyArgs),
    /// A certificate for this machine, for the TLS listener
    DevCert(DevCertArgs),
}

/// Flags that stand for keys of the configuration.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Instead of a configuration file, or over it")]
pub struct AgentFlags {
    /// Deliver to an embedded Kinesis on a loopback port; no AWS account is touched
    #[arg(long, conflicts_with = "endpoint")]
    pub dev: bool,
    /// The Kinesis data stream, by name or ARN
    #[arg(long, value_name = "NAME", value_parser = by_key(SectionKind::Stream, "name"))]
    pub stream: Option<String>,
    /// AWS region of the stream
    #[arg(long, value_name = "R", value_parser = by_key(SectionKind::Stream, "region"))]
    pub region: Option<String>,
    /// Endpoint URL instead of the region's own
    #[arg(long, value_name = "URL", value_parser = by_key(SectionKind::Stream, "endpoint"))]
    pub endpoint: Option<String>,
    /// off: one event a record; kpl: aggregates of many; lines: many, a line each
    #[arg(long, value_name = "HOW", value_parser = by_key(SectionKind::Stream, "aggregate"))]
    pub aggregate: Option<String>,
    /// Unix socket; "" turns it off
    #[arg(long, value_name = "PATH", value_parser = by_key(SectionKind::Listen, "socket"))]
    pub socket: Option<String>,
    /// Address of the HTTP listener, loopback only; "" turns it off
    #[arg(long, value_name = "ADDR", value_parser = by_key(SectionKind::Listen, "http"))]
    pub http: Option<String>,
    /// Address of health, metrics and status, loopback only; "" turns it off
    #[arg(long, value_name = "ADDR", value_parser = by_key(SectionKind::Listen, "admin"))]
    pub admin: Option<String>,
    /// Where the spools live
    #[arg(long, value_name = "DIR", value_parser = by_key(SectionKind::Spool, "dir"))]
    pub spool_dir: Option<String>,
}

impl AgentFlags {
    fn overrides(&self) -> Vec<Override> {
        use SectionKind::{Listen, Spool, Stream};
        let flags = [
            (Stream, "name", "--stream", &self.stream),
            (Stream, "region", "--region", &self.region),
            (Stream, "endpoint", "--endpoint", &self.endpoint),
            (Stream, "aggregate", "--aggregate", &self.aggregate),
            (Listen, "socket", "--socket", &self.socket),
            (Listen, "http", "--http", &self.http),
            (Listen, "admin", "--admin", &self.admin),
            (Spool, "dir", "--spool-dir", &self.spool_dir),
        ];
        flags.into_iter().filter_map(|(section, key, flag, value)| over(section, key, flag, value.as_ref())).collect()
    }
}

/// `forebay run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay run --dev
      An agent to try things with: `echo '{\"userId\":\"u1\"}' | forebay send`, then `forebay status`.
  forebay run --stream clicks --region eu-west-1
      One stream, no file; credentials as every AWS tool finds them.
  forebay run --config /etc/forebay/forebay.toml

SIGTERM stops accepting, delivers until drain_timeout, and leaves the rest in the spool for the next start.
With --dev the spool is a directory of its own, below a configured one or in $XDG_STATE_HOME/forebay; --spool-dir is taken as it is.")]
pub struct RunArgs {
    /// Flags over the configuration.
    #[command(flatten)]
    pub agent: AgentFlags,
    /// Shards of the embedded stream
    #[arg(long, value_name = "N", requires = "dev", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub dev_shards: u32,
    /// Let the embedded Kinesis throttle as the real one does: 1 MiB and 1,000 records a second for each shard
    #[arg(long, requires = "dev")]
    pub dev_enforce_limits: bool,
}

/// `forebay demo`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay demo
  forebay demo --events 200000 --shards 8 --aggregate off
  forebay demo --json | jq .totals

Exit code 0 only if every event arrived exactly once, and each key's in order.")]
pub struct DemoArgs {
    /// Events to send
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub events: u64,
    /// Users that they are about; each user's id is a partition key
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub users: u64,
    /// Shards of the embedded stream
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub shards: u32,
    /// kpl: aggregates of many events; off: one event a record
    #[arg(long, value_name = "HOW", default_value = "kpl", value_parser = aggregate())]
    pub aggregate: Aggregate,
    /// Keep the spool in this directory, to look at it afterwards [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `forebay send`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  echo '{\"userId\":\"u1\",\"event\":\"Signed Up\"}' | forebay send
  forebay send --source web events-*.ndjson

Each non-empty line is one event. Exit code 0 only if every one of them is durable in the agent's spool.")]
pub struct SendArgs {
    /// Files to send, one after the other; none, or -: stdin
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The agent's socket [default: the configuration's, or where a running agent put it]
    #[arg(long, value_name = "PATH", value_parser = by_key(SectionKind::Listen, "socket"))]
    pub socket: Option<String>,
    /// Source that the events belong to
    #[arg(long, value_name = "NAME", value_parser = by_key(SectionKind::Source, "name"))]
    pub source: Option<String>,
    /// Write key of that source; better given through the environment, where other users do not see it
    #[arg(long, value_name = "WRITEKEY", env = "FOREBAY_WRITE_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// Print the totals as one JSON object
    #[arg(long)]
    pub json: bool,
    /// No progress bar and no totals; errors are still told
    #[arg(long, short)]
    pub quiet: bool,
}

/// Where `tail` begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TailFrom {
    /// What arrives from now on
    #[default]
    Latest,
    /// The oldest record that the stream still holds
    TrimHorizon,
}

impl From<TailFrom> for ReadFrom {
    fn from(from: TailFrom) -> Self {
        match from {
            TailFrom::Latest => Self::Latest,
            TailFrom::TrimHorizon => Self::TrimHorizon,
        }
    }
}

/// `forebay tail`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay tail clicks --region eu-west-1
  forebay tail clicks --from trim-horizon --max 10 --json
  forebay tail dev --endpoint http://127.0.0.1:4567 --idle-exit 5s")]
pub struct TailArgs {
    /// The stream, by name or ARN
    #[arg(value_name = "STREAM", value_parser = by_key(SectionKind::Stream, "name"))]
    pub stream: String,
    /// AWS region [default: the configuration's for this stream, or as the AWS SDK finds it]
    #[arg(long, value_name = "R", value_parser = by_key(SectionKind::Stream, "region"))]
    pub region: Option<String>,
    /// Endpoint URL instead of the region's own
    #[arg(long, value_name = "URL", value_parser = by_key(SectionKind::Stream, "endpoint"))]
    pub endpoint: Option<String>,
    /// Where to begin in each shard
    #[arg(long, value_name = "WHERE", default_value = "latest")]
    pub from: TailFrom,
    /// One JSON object an event
    #[arg(long)]
    pub json: bool,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max: Option<u64>,
    /// Stop when no event came for this long, such as 5s
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub idle_exit: Option<Duration>,
}

/// `forebay status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay status
  forebay status --admin 127.0.0.1:4711 --json | jq '.streams[].account.pending'
  forebay status --quiet && echo ready
      For health checks: exit code 0 while the agent takes events and can make them durable, else 1; Kinesis being away is no matter.")]
pub struct StatusArgs {
    /// The agent's admin address [default: the configuration's]
    #[arg(long, value_name = "ADDR", value_parser = by_key(SectionKind::Listen, "admin"))]
    pub admin: Option<String>,
    /// Print the agent's answer as JSON
    #[arg(long)]
    pub json: bool,
    /// Print nothing: the exit code says whether the agent is ready
    #[arg(long, conflicts_with = "json")]
    pub quiet: bool,
}

/// `forebay drain`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay drain
  forebay drain --timeout 45s
      Before maintenance: no more events are taken, what is there is delivered for at most that long, then the agent ends. So does
      SIGTERM with drain_timeout, which is what systemd and Kubernetes send; as a preStop hook beside an application that still sends,
      this comes too early.

Exit code 0 when all was delivered; 1 when events stay in the spool, which is told, and which the next start delivers, or when there is
no agent.")]
pub struct DrainArgs {
    /// The agent's admin address [default: the configuration's]
    #[arg(long, value_name = "ADDR", value_parser = by_key(SectionKind::Listen, "admin"))]
    pub admin: Option<String>,
    /// How long delivery may take, such as 45s, up to 1h [default: the agent's drain_timeout]
    #[arg(long, value_name = "TIME", value_parser = drain_time)]
    pub timeout: Option<Duration>,
    /// Print one JSON object: pending, clean
    #[arg(long)]
    pub json: bool,
}

/// `forebay config`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay config
      Says what `forebay run` would work with, as a configuration file; all errors at once if there are any.
  forebay config --stream clicks --region eu-west-1 > forebay.toml
  FOREBAY_SPOOL__MAX_BYTES=20GiB forebay config --json | jq .spool.max_bytes")]
pub struct ConfigArgs {
    /// Flags over the configuration, as `run` takes them.
    #[command(flatten)]
    pub agent: AgentFlags,
    /// Print JSON: value, origin and place of each key
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(long, conflicts_with = "json")]
    pub quiet: bool,
}

impl Cli {
    /// Parses the process's own command line; what is wrong with it, or the help that was asked for, is printed.
    ///
    /// # Errors
    /// [`Exit::Usage`], or [`Exit::Good`] after help and version.
    pub fn from_command_line() -> Result<Self, Exit> {
        Self::try_parse().and_then(Self::checked).map_err(|error| {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Good };
            match error.print() {
                // Whoever asked has seen enough (`| head`), or cannot be reached: the code says the same either way.
                Ok(()) | Err(_) => exit,
            }
        })
    }

    /// What clap's attributes cannot say.
    fn checked(self) -> Result<Self, clap::Error> {
        let wants_dev = match &self.command {
            Command::Run(args) => args.agent.dev.then_some("--dev"),
            Command::Config(args) => args.agent.dev.then_some("--dev"),
            Command::Demo(_) => Some("demo"),
            _ => None,
        };
        if let (Some(what), false) = (wants_dev, cfg!(feature = "dev")) {
            let message = format!("this build has no embedded Kinesis, which {what} needs; build with `--features dev`");
            return Err(Self::command().error(ErrorKind::InvalidSubcommand, message));
        }
        Ok(self)
    }

    /// Form of the log lines.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        self.global.log_format
    }

    /// Level of the log lines: the agent tells its life, other commands only what went wrong.
    #[must_use]
    pub fn log_level(&self) -> &str {
        let usual = if matches!(self.command, Command::Run(_)) { "info" } else { "warn" };
        self.global.log_level.as_deref().unwrap_or(usual)
    }

    /// The configuration that the command needs; `demo` brings its own, `dev-cert` needs none.
    #[must_use]
    pub fn config_request(&self) -> Option<Request> {
        use SectionKind::Listen;
        let (flags, dev, purpose) = match &self.command {
            Command::Demo(_) | Command::DevCert(_) => return None,
            Command::Run(args) => (args.agent.overrides(), args.agent.dev, Purpose::Agent),
            Command::Config(args) => (args.agent.overrides(), args.agent.dev, Purpose::Agent),
            Command::Send(args) => {
                (over(Listen, "socket", "--socket", args.socket.as_ref()).into_iter().collect(), false, Purpose::Client)
            }
            Command::Status(args) => {
                (over(Listen, "admin", "--admin", args.admin.as_ref()).into_iter().collect(), false, Purpose::Client)
            }
            Command::Drain(args) => {
                (over(Listen, "admin", "--admin", args.admin.as_ref()).into_iter().collect(), false, Purpose::Client)
            }
            Command::Spool(args) => {
                let admin = args.command.place().admin.as_ref();
                (over(Listen, "admin", "--admin", admin).into_iter().collect(), false, Purpose::Client)
            }
            Command::Dead(args) => {
                let flags = [
                    over(Listen, "admin", "--admin", args.admin.as_ref()),
                    over(SectionKind::Spool, "dir", "--spool-dir", args.spool_dir.as_ref()),
                ];
                (flags.into_iter().flatten().collect(), false, Purpose::Client)
            }
            Command::Tail(_) => (Vec::new(), false, Purpose::Reader),
            Command::Check(args) => {
                let flags = [
                    over(SectionKind::Stream, "name", "--stream", args.stream.as_ref()),
                    over(SectionKind::Stream, "region", "--region", args.region.as_ref()),
                    over(SectionKind::Stream, "endpoint", "--endpoint", args.endpoint.as_ref()),
                    over(SectionKind::Spool, "dir", "--spool-dir", args.spool_dir.as_ref()),
                ];
                (flags.into_iter().flatten().collect(), false, Purpose::Agent)
            }
            Command::IamPolicy(args) => {
                let flags = [
                    over(SectionKind::Stream, "name", "--stream", args.stream.as_ref()),
                    over(SectionKind::Stream, "region", "--region", args.region.as_ref()),
                ];
                (flags.into_iter().flatten().collect(), false, Purpose::Reader)
            }
        };
        Some(Request { file: self.global.config.clone(), flags, dev, purpose })
    }
}

fn over(section: SectionKind, key: &'static str, flag: &'static str, value: Option<&String>) -> Option<Override> {
    value.map(|value| Override { section, key, flag, value: value.clone() })
}

/// Judges a flag as the configuration judges its key.
fn by_key(section: SectionKind, key: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |value| check_flag(section, key, value)
}

/// A time that the key `drain_timeout` could have.
fn drain_time(text: &str) -> Result<Duration, String> {
    check_flag(SectionKind::Root, "drain_timeout", text).and_then(|text| parse_time(&text).map_err(|error| error.to_string()))
}

fn aggregate() -> impl clap::builder::TypedValueParser<Value = Aggregate> {
    PossibleValuesParser::new(["kpl", "off"]).map(|word| if word == "kpl" { Aggregate::Kpl } else { Aggregate::Off })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_contradiction_in_the_declarations() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_in_its_help() {
        for command in Cli::command().get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("forebay {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn a_flag_is_judged_by_the_rule_of_its_key() {
        let bad = |args: &[&str]| Cli::try_parse_from(args).unwrap_err().to_string();
        assert!(bad(&["forebay", "run", "--http", "0.0.0.0:1"]).contains("not a loopback address"));
        assert!(bad(&["forebay", "run", "--aggregate", "kpi"]).contains("\"lines\""));
        assert!(bad(&["forebay", "run", "--dev-shards", "9"]).contains("--dev"));
        assert!(bad(&["forebay", "tail", "x", "--idle-exit", "5"]).contains("unit is missing"));
        let cli = Cli::try_parse_from(["forebay", "run", "--dev", "--http", "", "--dev-shards", "2"]).unwrap();
        let request = cli.config_request().unwrap();
        assert!(request.dev);
        assert_eq!(request.flags.len(), 1);
    }
}
