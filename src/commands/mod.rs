//! One file a subcommand.

pub mod status;
