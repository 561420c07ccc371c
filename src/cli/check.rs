//! The arguments of `forebay check` and `forebay iam-policy`, and their help.
//!
//! Place: part of `cli`, whose file tells the rules; `commands/check.rs` and `commands/iam_policy.rs` do the work.

use clap::Args;

use super::by_key;
use crate::config::SectionKind;
use crate::iam::is_account;

/// `forebay check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay check
  forebay check --stream clicks --region eu-west-1
  forebay check --local && forebay run

Reads the configuration (all errors at once, exit code 78), looks at the machine, then asks AWS with the credentials that the
agent would use: who am I, what is the stream, may it be written. Nothing is written to a stream. For each item a mark:
  ✓ good   ! to know   ✗ to mend   ? could not be told
and where a right is missing the statement to add. Exit code 1 if anything is to mend; run it as the user of the agent.")]
pub struct CheckArgs {
    /// The Kinesis data stream, by name or ARN, instead of the configuration's
    #[arg(long, value_name = "NAME", value_parser = by_key(SectionKind::Stream, "name"))]
    pub stream: Option<String>,
    /// AWS region of the stream
    #[arg(long, value_name = "R", value_parser = by_key(SectionKind::Stream, "region"))]
    pub region: Option<String>,
    /// Endpoint URL instead of the region's own
    #[arg(long, value_name = "URL", value_parser = by_key(SectionKind::Stream, "endpoint"))]
    pub endpoint: Option<String>,
    /// Where the spools live
    #[arg(long, value_name = "DIR", value_parser = by_key(SectionKind::Spool, "dir"))]
    pub spool_dir: Option<String>,
    /// Only what needs no network
    #[arg(long)]
    pub local: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `forebay iam-policy`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay iam-policy --stream clicks --region eu-west-1 --account 123456789012 > policy.json
  forebay iam-policy --config forebay.toml --ask
  forebay iam-policy --role arn:aws:iam::123456789012:role/events --trust

Nothing is asked over the network but with --ask. One document is printed as it is, ready for `aws iam put-role-policy`; several, where
roles are configured, as a list of {\"attach_to\", \"kind\", \"document\"}. What is not known stands as * in it, and is told on stderr.")]
pub struct IamPolicyArgs {
    /// The Kinesis data stream, by name or ARN, instead of the configuration's
    #[arg(long, value_name = "NAME", value_parser = by_key(SectionKind::Stream, "name"))]
    pub stream: Option<String>,
    /// AWS region of the stream
    #[arg(long, value_name = "R", value_parser = by_key(SectionKind::Stream, "region"))]
    pub region: Option<String>,
    /// Account of streams that are configured by name and without a role
    #[arg(long, value_name = "ID", value_parser = account)]
    pub account: Option<String>,
    /// ARN, id or alias of the key that encrypts the streams
    #[arg(long, value_name = "KEY")]
    pub kms_key: Option<String>,
    /// Ask AWS which account and which key the streams have, with the credentials at hand
    #[arg(long, conflicts_with_all = ["account", "kms_key"])]
    pub ask: bool,
    /// ARN of the role or user that forebay runs as, for the roles to trust [default: the role's account]
    #[arg(long, value_name = "ARN", value_parser = by_arn)]
    pub principal: Option<String>,
    /// Print only the document of this role
    #[arg(long, value_name = "ARN", value_parser = by_key(SectionKind::Stream, "role_arn"))]
    pub role: Option<String>,
    /// Print the role's trust policy instead of what it may do
    #[arg(long, requires = "role")]
    pub trust: bool,
}

fn account(text: &str) -> Result<String, String> {
    if is_account(text) { Ok(text.to_owned()) } else { Err("an account's number has twelve digits".into()) }
}

fn by_arn(text: &str) -> Result<String, String> {
    let is_arn = text.starts_with("arn:") && text.split(':').count() >= 6;
    if is_arn { Ok(text.to_owned()) } else { Err("not an ARN, such as arn:aws:iam::123456789012:role/app".into()) }
}
