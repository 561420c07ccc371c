//! What each command of `forebay` does, one file a command.

#[cfg(feature = "dev")]
pub mod demo;
pub mod tail;
