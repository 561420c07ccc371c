//! The arguments of `forebay dev-cert`, and their help.
//!
//! Place: part of `cli`, whose file tells the rules; `commands/dev_cert.rs` does the work.

use std::path::PathBuf;

use clap::Args;

use crate::commands::dev_cert::check_name;

/// `forebay dev-cert`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay dev-cert
      ca.pem, cert.pem and key.pem in ./forebay-tls, and what to do with them.
  forebay dev-cert --dir /etc/forebay/tls --name agent.internal --name 10.0.0.7

It is for localhost, 127.0.0.1 and ::1, and for the names given besides. Clients must be told to trust ca.pem. The key that
signed it is not kept, so that nobody can sign anything else with it; with --force everything is made anew, and so is ca.pem.")]
pub struct DevCertArgs {
    /// Where the files go; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "forebay-tls")]
    pub dir: PathBuf,
    /// A further name or address that clients reach the agent by; may be given several times
    #[arg(long, value_name = "HOST", value_parser = check_name)]
    pub name: Vec<String>,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
}
