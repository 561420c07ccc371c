//! The first line of a socket connection, where it is a hello. Pure.
//!
//! `forebay/1 [source=NAME] [ack=on|off] [format=lines|frames] [key=WRITEKEY]\n`, options in any order, each at
//! most once. A client that sends none is a plain one: its first bytes are its first event, and nothing is ever
//! written to it. Called by the connection's reader; what it cannot make sense of becomes an `error` line.

use std::fmt;

use crate::ingest::wire::Format;

/// What a hello begins with. A first line that begins so is never an event.
const MAGIC: &[u8] = b"forebay/1";

/// Longest hello line in bytes, newline included.
pub const HELLO_BYTES_MAX: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff<'a> {
    /// May become a hello: more bytes are needed.
    More,
    /// The first bytes of the first event.
    Plain,
    /// A hello line, without its newline, and the bytes it took.
    Hello(&'a [u8], usize),
}

/// Looks at all bytes received so far.
#[must_use]
pub fn sniff(received: &[u8]) -> Sniff<'_> {
    let compared = received.len().min(MAGIC.len());
    if received[..compared] != MAGIC[..compared] {
        return Sniff::Plain;
    }
    match memchr::memchr(b'\n', received) {
        Some(newline) => Sniff::Hello(&received[..newline], newline + 1),
        // Longer than any hello: parsing it will say so.
        None if received.len() >= HELLO_BYTES_MAX => Sniff::Hello(received, received.len()),
        None => Sniff::More,
    }
}

/// What a client asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// `source=`.
    pub source: Option<String>,
    /// `key=`.
    pub key: Option<String>,
    /// `ack=on`.
    pub ack: bool,
    /// `format=`.
    pub format: Format,
}

/// Why a hello line is refused. Holds the offending option's name, never a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// Over [`HELLO_BYTES_MAX`].
    TooLong,
    /// Not UTF-8.
    NotUtf8,
    /// Something else than a space follows `forebay/1`.
    Version,
    /// Not one of the options.
    UnknownOption,
    /// The option stands twice.
    Repeated(&'static str),
    /// The option's value is not one of those allowed, which follow it.
    Value(&'static str, &'static str),
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the hello line is longer than {HELLO_BYTES_MAX} bytes"),
            Self::NotUtf8 => f.write_str("the hello line is not UTF-8"),
            Self::Version => f.write_str("unknown version; this agent speaks forebay/1"),
            Self::UnknownOption => {
                f.write_str("unknown option; known are source=NAME, ack=on|off, format=lines|frames, key=WRITEKEY")
            }
            Self::Repeated(option) => write!(f, "option {option} is given twice"),
            Self::Value(option, allowed) => write!(f, "option {option} must be {allowed}"),
        }
    }
}

impl std::error::Error for HelloError {}

impl Hello {
    /// Parses a line that [`sniff`] found.
    ///
    /// # Errors
    /// The first thing in it that is not understood.
    pub fn parse(line: &[u8]) -> Result<Self, HelloError> {
        if line.len() >= HELLO_BYTES_MAX {
            return Err(HelloError::TooLong);
        }
        let line = std::str::from_utf8(line).map_err(|_| HelloError::NotUtf8)?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        let options = line.as_bytes().strip_prefix(MAGIC).map_or("", |rest| &line[line.len() - rest.len()..]);
        if !options.is_empty() && !options.starts_with(' ') {
            return Err(HelloError::Version);
        }
        let mut hello = Self::default();
        let mut seen: Vec<&'static str> = Vec::new();
        for option in options.split(' ').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or(HelloError::UnknownOption)?;
            let name = match name {
                "source" => "source",
                "key" => "key",
                "ack" => "ack",
                "format" => "format",
                _ => return Err(HelloError::UnknownOption),
            };
            if seen.contains(&name) {
                return Err(HelloError::Repeated(name));
            }
            seen.push(name);
            match (name, value) {
                ("source" | "key", "") => return Err(HelloError::Value(name, "non-empty")),
                ("source", _) => hello.source = Some(value.to_owned()),
                ("key", _) => hello.key = Some(value.to_owned()),
                ("ack", "on") => hello.ack = true,
                ("ack", "off") => hello.ack = false,
                ("ack", _) => return Err(HelloError::Value(name, "on or off")),
                (_, "lines") => hello.format = Format::Lines,
                (_, "frames") => hello.format = Format::Frames,
                _ => return Err(HelloError::Value(name, "lines or frames")),
            }
        }
        Ok(hello)
    }

    /// The line that asks for this, newline included. Values must not hold spaces or newlines.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = String::from("forebay/1");
        if let Some(source) = &self.source {
            line.push_str(&format!(" source={source}"));
        }
        if let Some(key) = &self.key {
            line.push_str(&format!(" key={key}"));
        }
        line.push_str(if self.ack { " ack=on" } else { " ack=off" });
        line.push_str(&format!(" format={}\n", self.format.name()));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hello_is_recognised_however_little_of_it_has_come() {
        let line = b"forebay/1 ack=on\n";
        for cut in 0..line.len() {
            assert_eq!(sniff(&line[..cut]), Sniff::More, "{cut}");
        }
        assert_eq!(sniff(line), Sniff::Hello(&line[..16], 17));
        assert_eq!(sniff(b"forebay/2"), Sniff::Plain);
        assert_eq!(sniff(b"fore\n"), Sniff::Plain);
        assert_eq!(sniff(b"{\"a\":1}"), Sniff::Plain);
    }

    #[test]
    fn options_come_in_any_order_and_default_to_a_plain_client() {
        assert_eq!(Hello::parse(b"forebay/1"), Ok(Hello::default()));
        let expected = Hello { source: Some("web".into()), key: Some("k=1".into()), ack: true, format: Format::Frames };
        assert_eq!(Hello::parse(b"forebay/1 format=frames  key=k=1 ack=on source=web\r"), Ok(expected));
    }

    #[test]
    fn whatever_is_not_understood_is_refused() {
        for (line, error) in [
            (&b"forebay/10"[..], HelloError::Version),
            (b"forebay/1\tack=on", HelloError::Version),
            (b"forebay/1 ack", HelloError::UnknownOption),
            (b"forebay/1 acks=on", HelloError::UnknownOption),
            (b"forebay/1 ack=yes", HelloError::Value("ack", "on or off")),
            (b"forebay/1 format=json", HelloError::Value("format", "lines or frames")),
            (b"forebay/1 source=", HelloError::Value("source", "non-empty")),
            (b"forebay/1 ack=on ack=on", HelloError::Repeated("ack")),
            (b"forebay/1 key=\xff", HelloError::NotUtf8),
            (&[&b"forebay/1 key="[..], &[b'x'; HELLO_BYTES_MAX]].concat(), HelloError::TooLong),
        ] {
            assert_eq!(Hello::parse(line), Err(error));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            source in prop::option::of("[a-z]{1,9}"), key in prop::option::of("[!-~]{1,20}"), ack: bool, frames: bool,
        ) {
            let format = if frames { Format::Frames } else { Format::Lines };
            let hello = Hello { source, key, ack, format };
            let line = hello.line();
            let Sniff::Hello(bytes, used) = sniff(line.as_bytes()) else { panic!("not seen as a hello") };
            prop_assert_eq!(used, line.len());
            prop_assert_eq!(Hello::parse(bytes), Ok(hello));
        }
    }
}
